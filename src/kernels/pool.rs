//! Rows of blocks, pooled.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;
/// Rows that an invocation reads in a turn of its loop.
pub const ROWS_PER_TURN: u64 = 4;

/// What becomes of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A sum over a divisor.
    Mean,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What becomes of rows.
    pub rule: Rule,
    /// Invocations per block: a power of two up to the workgroup's.
    pub lanes: u32,
    /// Whether pooled rows are divided by their length.
    pub normalise: bool,
    /// Whether a tensor says where blocks begin.
    pub starts: bool,
    /// Whether batch entries have lengths.
    pub lengths: bool,
    /// Whether rows are read four channels at a time.
    pub vec4: bool,
    /// f16 input.
    pub f16: bool,
    /// f16 output.
    pub f16_y: bool,
}

impl Variant {
    /// Iterations of all loops of an invocation for blocks of so many rows, checks that end them counted.
    pub fn iterations(&self, rows: u64, channels: u64) -> u64 {
        let turns = rows / ROWS_PER_TURN + 2 + ROWS_PER_TURN;
        let vectors = channels.div_ceil(4).div_ceil(self.lanes.into());
        let write = vectors * (turns + 6) + 1;
        if self.normalise {
            // Rows are made two times more, each with a number that lanes join.
            write + 2 * (vectors * (turns + 1) + 1 + u64::from(self.lanes))
        } else {
            write
        }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("LANES", self.lanes),
            ("MEAN", (self.rule == Rule::Mean).into()),
            ("MAX", (self.rule == Rule::Max).into()),
            ("MIN", (self.rule == Rule::Min).into()),
            ("NORMALISE", self.normalise.into()),
            ("STARTS", self.starts.into()),
            ("LENGTHS", self.lengths.into()),
            ("VEC4", self.vec4.into()),
            ("F16", self.f16.into()),
            ("F16_Y", self.f16_y.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let buffers = 2 + u32::from(self.starts) + u32::from(self.lengths);
        super::fits(caps, self.f16 || self.f16_y, WORKGROUP, buffers)
    }
}

params! {
    /// Parameters of pooling.
    Params {
        count: u32, heads: u32, blocks: u32, channels: u32, rows: u32, block: u32, step: u32,
        first_block: u32, first_row: u32, divisor: u32,
        x_at: u32, x_batch: u32, x_head: u32, x_row: u32, x_channel: u32,
        y_at: u32, y_batch: u32, y_head: u32, y_row: u32, y_channel: u32,
        starts_at: u32, starts_batch: u32, starts_head: u32, starts_block: u32,
        lens_at: u32, lens_batch: u32,
    }
}
