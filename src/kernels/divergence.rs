//! The distance of two distributions.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Whether distances are written.
    pub distance: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![("WORKGROUP", WORKGROUP), ("DISTANCE", self.distance.into())]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, false, WORKGROUP, 3 + u32::from(self.distance))
    }
}

params! {
    /// Parameters of the kernel.
    Params {
        workgroups: u32, heads: u32, length: u32, threshold: f32,
        sample_at: u32, sample_batch: u32, sample_head: u32, sample_place: u32,
        estimate_at: u32, estimate_batch: u32, estimate_head: u32, estimate_place: u32,
        chosen_at: u32, chosen_batch: u32, chosen_head: u32,
        distance_at: u32, distance_batch: u32, distance_head: u32,
    }
}
