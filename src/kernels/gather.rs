//! Rows of a tensor that an index names.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Whether numbers are moved as single f16; else as u32, which may be pairs of f16.
    pub f16: bool,
    /// Whether they are moved four at a time.
    pub vec4: bool,
}

impl Variant {
    /// Numbers per unit.
    pub fn width(&self) -> u32 {
        if self.vec4 { 4 } else { 1 }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("F16", self.f16.into()),
            ("VEC4", self.vec4.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, self.f16, WORKGROUP, 3)
    }
}

params! {
    /// Parameters of the gather.
    Params {
        invocations: u32, lanes: u32, units: u32, each: u32, chunks: u32, rows: u32, block: u32, outer: u32,
        inner: u32, n: u32, blocks: u32, window: u32, window_rows: u32, first: u32,
        x_at: u32, x_batch: u32, x_outer: u32, x_inner: u32, x_row: u32, x_unit: u32,
        index_at: u32, index_batch: u32, index_outer: u32, index_inner: u32, index_entry: u32,
        y_at: u32, y_batch: u32, y_outer: u32, y_inner: u32, y_row: u32, y_unit: u32,
    }
}
