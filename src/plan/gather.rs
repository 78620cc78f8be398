//! Rows by an index: which slices.

use super::Outline;
use crate::{
    caps::Caps,
    error::{Error, Result},
    ops::Gather,
};

pub(super) fn outline(_op: &Gather, _caps: &Caps) -> Result<Outline> {
    Err(Error::unsupported(
        "this op",
        "it has no kernels yet",
        "compute it on the host",
    ))
}
