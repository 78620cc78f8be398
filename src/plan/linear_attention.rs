//! Linear attention: which form it takes.

mod quadratic;
mod walk;

use super::{Outline, Schedule, Tuning};
use crate::{
    caps::Caps,
    error::{Error, Result},
    ops::{LinearAttention, Similarity},
};

pub(super) fn outline(op: &LinearAttention, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let squares = matches!(op.similarity, Similarity::Taylor | Similarity::Square);
    if let Similarity::Cosine { length } = op.similarity
        && length > u32::MAX.into()
    {
        return Err(Error::unsupported(
            format!("a cosine over {length} tokens"),
            "kernels count them in 32 bits",
            "use a length of at most 4294967295, or no cosine, which so long a one hardly differs from",
        ));
    }
    let mut outline = match tuning.schedule {
        Some(Schedule::Quadratic) => quadratic::outline(op, caps, "it was asked for")?,
        None if squares => quadratic::outline(
            op,
            caps,
            "a state would have as many rows as the square of the key dimension",
        )?,
        Some(schedule) if squares => {
            return Err(Error::unsupported(
                format!("{:?} in the {schedule} schedule", op.similarity),
                "a state would have as many rows as the square of the key dimension",
                "leave the schedule open, or choose quadratic",
            ));
        }
        _ => walk::outline(op, caps, tuning)?,
    };
    quadratic::add_local(op, caps, &mut outline)?;
    Ok(outline)
}
