//! Orders by bucket.

use super::Outline;
use crate::{
    caps::Caps,
    error::{Error, Result},
    ops::Sort,
};

pub(super) fn outline(_op: &Sort, _caps: &Caps) -> Result<Outline> {
    Err(Error::unsupported(
        "this op",
        "it has no kernels yet",
        "compute it on the host",
    ))
}
