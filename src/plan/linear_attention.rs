//! Linear attention: which walks over the tokens.

use super::Outline;
use crate::{
    caps::Caps,
    error::{Error, Result},
    ops::LinearAttention,
};

pub(super) fn outline(_: &LinearAttention, _: &Caps) -> Result<Outline> {
    Err(Error::unsupported(
        "linear attention",
        "no schedule covers it yet",
        "wait for the next version",
    ))
}
