//! Not planned yet.

use super::Outline;
use crate::{
    caps::Caps,
    error::{Error, Result},
    ops::RouteScores,
};

pub(super) fn outline(_op: &RouteScores, _caps: &Caps, _tuning: &super::Tuning) -> Result<Outline> {
    Err(Error::unsupported(
        "this op",
        "it has no kernel yet",
        "wait",
    ))
}
