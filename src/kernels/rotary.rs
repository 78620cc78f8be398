//! Rotary position embedding.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// f16 input and output.
    pub f16: bool,
    /// f16 tables.
    pub f16_tables: bool,
    /// Whether positions are on the device.
    pub positions: bool,
    /// Whether neighbouring channels are pairs.
    pub interleaved: bool,
    /// Whether elements are read and written four at a time.
    pub vec4: bool,
    /// Whether the output is the input.
    pub in_place: bool,
}

impl Variant {
    /// Pairs per invocation, and elements where they are copied.
    pub fn width(&self) -> u32 {
        if self.vec4 { 4 } else { 1 }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("F16", self.f16.into()),
            ("F16_TABLES", self.f16_tables.into()),
            ("POSITIONS", self.positions.into()),
            ("INTERLEAVED", self.interleaved.into()),
            ("VEC4", self.vec4.into()),
            ("IN_PLACE", self.in_place.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if (self.f16 || self.f16_tables) && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if WORKGROUP > caps.max_invocations {
            return Err(format!(
                "{WORKGROUP} invocations per workgroup, and the device allows {}",
                caps.max_invocations
            ));
        }
        let buffers = 4 - u32::from(self.in_place) + u32::from(self.positions);
        if buffers > caps.max_storage_buffers {
            return Err(format!(
                "{buffers} storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the rotary embedding.
    Params {
        invocations: u32, units: u32, pairs: u32, rotary_dim: u32, seq: u32, heads: u32,
        each: u32, groups: u32, last_position: u32, sign: f32,
        x_at: u32, x_batch: u32, x_head: u32, x_token: u32, x_channel: u32,
        y_at: u32, y_batch: u32, y_head: u32, y_token: u32, y_channel: u32,
        cos_at: u32, cos_batch: u32, cos_row: u32, cos_pair: u32,
        sin_at: u32, sin_batch: u32, sin_row: u32, sin_pair: u32,
        positions_at: u32, positions_batch: u32, positions_token: u32,
    }
}
