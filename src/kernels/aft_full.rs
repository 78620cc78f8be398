//! The attention-free transformer with a bias per pair of positions.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;
/// Positions that ask, per workgroup.
pub const ROWS: u32 = 4;
/// Positions whose biases are made at once.
pub const KEYS: u32 = WORKGROUP / ROWS;
/// Workgroup memory, in bytes.
pub const WORKGROUP_BYTES: u32 = WORKGROUP * 4;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Whether the bias is given by factors.
    pub factors: bool,
    /// Whether the bias is added; else keys are multiplied by it.
    pub add: bool,
    /// Whether later positions are hidden.
    pub causal: bool,
    /// Whether there are several ranges, whose results go to scratch.
    pub split: bool,
    /// f16 storage.
    pub f16: bool,
    /// f16 bias.
    pub f16_bias: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("FACTORS", self.factors.into()),
            ("ADD", self.add.into()),
            ("CAUSAL", self.causal.into()),
            ("SPLIT", self.split.into()),
            ("F16", self.f16.into()),
            ("F16_BIAS", self.f16_bias.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if WORKGROUP_BYTES > caps.workgroup_bytes {
            return Err(format!(
                "{WORKGROUP_BYTES} bytes of workgroup memory, and the device has {}",
                caps.workgroup_bytes
            ));
        }
        let f16 = self.f16 || self.f16_bias;
        super::fits(caps, f16, WORKGROUP, 5 + u32::from(self.factors))
    }
}

params! {
    /// Parameters of the attention-free transformer.
    Params {
        groups: u32, blocks: u32, tiles: u32, channels: u32, dim: u32, heads: u32, rows: u32,
        first_row: u32, len: u32, ranges: u32, range_length: u32, rank: u32,
        q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
        k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
        o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
        bias_at: u32, bias_row: u32, bias_column: u32,
        columns_at: u32, columns_row: u32, columns_column: u32,
    }
}
