//! What the schedules of scores for routing share.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// What a schedule of scores reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScoresIo {
    /// Whether keys have lower bounds.
    pub bounds: bool,
    /// Whether scores below 0 count as 0.
    pub relu: bool,
    /// Whether heads have weights.
    pub weights: bool,
    /// Whether scores are written four at a time.
    pub out4: bool,
    /// f16 storage of queries and keys.
    pub f16: bool,
}

impl ScoresIo {
    pub(super) fn constants(&self, vec4: bool) -> Constants {
        vec![
            ("BOUNDS", self.bounds.into()),
            ("RELU", self.relu.into()),
            ("WEIGHTS", self.weights.into()),
            ("OUT4", self.out4.into()),
            ("F16", self.f16.into()),
            ("VEC4", vec4.into()),
        ]
    }

    pub(super) fn supports(&self, caps: &Caps, workgroup: u32) -> Result<(), String> {
        let buffers = 3 + u32::from(self.bounds) + u32::from(self.weights);
        super::fits(caps, self.f16, workgroup, buffers)
    }
}

params! {
    /// Parameters of both schedules (`shaders/shared/route_scores.wgsl`).
    ScoresParams {
        tiles: u32, row_tiles: u32, ranges: u32, range: u32, kv_heads: u32, heads: u32, summed: u32,
        rows: u32, columns: u32, channels: u32, add: u32, scale: f32,
        q_at: u32, q_batch: u32, q_group: u32, q_head: u32, q_row: u32, q_channel: u32,
        k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_channel: u32,
        low_at: u32, low_batch: u32, low_head: u32, low_row: u32, low_channel: u32,
        weights_at: u32, weights_batch: u32, weights_group: u32, weights_head: u32, weights_row: u32,
        out_at: u32, out_batch: u32, out_group: u32, out_head: u32, out_row: u32, out_column: u32,
    }
}
