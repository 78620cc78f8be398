//! Centroids moved towards the direction of their tokens' sum.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// The only variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![("WORKGROUP", WORKGROUP)]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, false, WORKGROUP, 3)
    }
}

params! {
    /// Parameters of the join.
    Params {
        workgroups: u32, clusters: u32, dim: u32, parts: u32, decay: f32, starts_at: u32, parts_at: u32,
        means_at: u32, means_head: u32, means_cluster: u32, means_dim: u32,
        new_means_at: u32, new_means_head: u32, new_means_cluster: u32, new_means_dim: u32,
    }
}
