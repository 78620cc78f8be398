//! Not planned yet.

use super::Outline;
use crate::{
    caps::Caps,
    error::{Error, Result},
    ops::Route,
};

pub(super) fn outline(_op: &Route, _caps: &Caps) -> Result<Outline> {
    Err(Error::unsupported(
        "this op",
        "it has no kernel yet",
        "wait",
    ))
}
