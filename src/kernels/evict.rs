//! One step of a list of kept keys.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// f16 weights.
    pub f16: bool,
    /// Whether the list and its scores are changed where they are.
    pub in_place: bool,
    /// Whether the place of the new token is written.
    pub places: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("F16", self.f16.into()),
            ("IN_PLACE", self.in_place.into()),
            ("PLACES", self.places.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let buffers = 4 + 2 * u32::from(!self.in_place) + u32::from(self.places);
        super::fits(caps, self.f16, WORKGROUP, buffers)
    }
}

params! {
    /// Parameters of the step.
    Params {
        workgroups: u32, heads: u32, group: u32, budget: u32, rounds: u32, columns: u32, by_position: u32, recent: u32,
        ascending: u32,
        index_at: u32, index_batch: u32, index_head: u32, index_place: u32,
        scores_at: u32, scores_batch: u32, scores_head: u32, scores_place: u32,
        weight_at: u32, weight_batch: u32, weight_head: u32, weight_column: u32,
        positions_at: u32, positions_batch: u32,
        indices_at: u32, indices_batch: u32, indices_head: u32, indices_place: u32,
        new_scores_at: u32, new_scores_batch: u32, new_scores_head: u32, new_scores_place: u32,
        places_at: u32, places_batch: u32, places_head: u32,
    }
}
