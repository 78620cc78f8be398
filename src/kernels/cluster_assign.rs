//! The centroid with the largest product of each token.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// f16 tokens.
    pub f16: bool,
    /// Whether channels are read four at a time.
    pub vec4: bool,
    /// Whether the clusters of tokens go to a tensor too.
    pub output: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("F16", self.f16.into()),
            ("VEC4", self.vec4.into()),
            ("OUTPUT", self.output.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, self.f16, WORKGROUP, 3 + u32::from(self.output))
    }
}

params! {
    /// Parameters of the choice.
    Params {
        invocations: u32, quads: u32, n: u32, batch: u32, dim: u32, clusters: u32, first: u32, count: u32, last: u32,
        assigned_place: u32, best_place: u32,
        x_at: u32, x_batch: u32, x_head: u32, x_token: u32, x_dim: u32,
        means_at: u32, means_head: u32, means_cluster: u32, means_dim: u32,
        assigned_at: u32, assigned_batch: u32, assigned_head: u32, assigned_token: u32,
    }
}
