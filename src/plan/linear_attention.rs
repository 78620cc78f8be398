//! Linear attention: which form it takes.

mod quadratic;
mod walk;

use super::{Outline, Schedule, Tuning};
use crate::{
    caps::Caps,
    error::Result,
    ops::{LinearAttention, Similarity},
};

pub(super) fn outline(op: &LinearAttention, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let squares = matches!(op.similarity, Similarity::Taylor | Similarity::Square);
    let mut outline = match tuning.schedule {
        Some(Schedule::Quadratic) => quadratic::outline(op, caps, "it was asked for")?,
        None if squares => quadratic::outline(
            op,
            caps,
            "a state would have as many rows as the square of the key dimension",
        )?,
        _ => walk::outline(op, caps, tuning)?,
    };
    quadratic::add_local(op, caps, &mut outline)?;
    Ok(outline)
}
