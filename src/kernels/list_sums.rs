//! Sums of the rows of lists.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Whether sums of parts of lists go to scratch; else means go to a tensor.
    pub parts: bool,
    /// f16 rows.
    pub f16: bool,
    /// Whether channels are read and written four at a time.
    pub vec4: bool,
}

impl Variant {
    /// Channels per invocation.
    pub fn width(&self) -> u32 {
        if self.vec4 { 4 } else { 1 }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("PARTS", self.parts.into()),
            ("F16", self.f16.into()),
            ("VEC4", self.vec4.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, self.f16, WORKGROUP, 2 + u32::from(!self.parts))
    }
}

params! {
    /// Parameters of the sums.
    Params {
        invocations: u32, units: u32, dim: u32, parts: u32, lists: u32, heads: u32, places: u32, width: u32, skip: u32,
        most: u32, epsilon: f32, order_at: u32, starts_at: u32, parts_at: u32,
        x_at: u32, x_batch: u32, x_head: u32, x_outer: u32, x_inner: u32, x_dim: u32,
        y_at: u32, y_batch: u32, y_head: u32, y_list: u32, y_dim: u32,
    }
}
