//! Not planned yet.

use super::Outline;
use crate::{
    caps::Caps,
    error::{Error, Result},
    ops::Pool,
};

pub(super) fn outline(_op: &Pool, _caps: &Caps) -> Result<Outline> {
    Err(Error::unsupported(
        "this op",
        "it has no kernel yet",
        "wait",
    ))
}
