//! Counts the iterations that a device really does.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// The only variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        Vec::new()
    }

    fn supports(&self, _: &Caps) -> Result<(), String> {
        Ok(())
    }
}

params! {
    /// Parameters of the loop measurement.
    Params { iterations: u32 }
}

/// What the kernel's generator reaches after a number of iterations.
pub fn last_state(iterations: u32) -> u32 {
    (0..iterations).fold(1u32, |state, _| {
        state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
    })
}
