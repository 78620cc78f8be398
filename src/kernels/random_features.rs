//! Random features of queries and keys.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup; a test ties it to the WGSL.
pub const WORKGROUP: u32 = 64;
/// Rows of a tile; a test ties it to the WGSL.
pub const ROWS: u32 = 4;
/// Largest dimension of a row; a test ties it to the WGSL.
pub const MAX_DIM: u32 = 256;

/// What a dispatch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Relu features.
    Relu,
    /// Softmax features, less the largest product of each row.
    Row,
    /// The largest product of each tile, to scratch.
    Maxima,
    /// Softmax features, less the largest product of all tiles.
    All,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What a dispatch does.
    pub phase: Phase,
    /// f16 input.
    pub x_f16: bool,
    /// f16 output; no matter where only maxima are found.
    pub y_f16: bool,
}

impl Variant {
    /// Loop iterations of an invocation, of all loops.
    pub fn iterations(&self, dim: u64, features: u64, tiles: u64) -> u64 {
        let lanes = u64::from(WORKGROUP);
        let passes = match self.phase {
            Phase::Row => 2,
            _ => 1,
        };
        let maxima = match self.phase {
            Phase::All => tiles.div_ceil(lanes) + 1,
            _ => 0,
        };
        let staged = (u64::from(ROWS) * dim).div_ceil(lanes) + 1;
        staged + maxima + passes * (features.div_ceil(lanes) * (dim + 2) + 1) + dim + 1 + lanes + 1
    }

    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        let numbers = match self.phase {
            Phase::Relu => 0,
            Phase::Maxima => ROWS * WORKGROUP,
            Phase::Row | Phase::All => ROWS * WORKGROUP + ROWS,
        };
        4 * (ROWS * MAX_DIM + numbers)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let all = self.phase == Phase::All;
        let maxima = self.phase == Phase::Maxima;
        vec![
            ("X_F16", self.x_f16.into()),
            ("Y_F16", self.y_f16.into()),
            ("RELU", (self.phase == Phase::Relu).into()),
            ("MAXIMA", maxima.into()),
            ("ALL", all.into()),
            ("SCRATCH", (all || maxima).into()),
            ("SQUARES", (all || self.phase == Phase::Row).into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if (self.x_f16 || self.y_f16) && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        for (name, needs, has) in [
            (
                "bytes of workgroup memory",
                self.workgroup_bytes(),
                caps.workgroup_bytes,
            ),
            ("invocations per workgroup", WORKGROUP, caps.max_invocations),
        ] {
            if needs > has {
                return Err(format!("{needs} {name}, and the device has {has}"));
            }
        }
        Ok(())
    }
}

params! {
    /// Parameters of the kernel.
    Params {
        tiles: u32,
        heads: u32,
        rows: u32,
        dim: u32,
        features: u32,
        row_tiles: u32,
        all_tiles: u32,
        all_heads: u32,
        batch_start: u32,
        head_start: u32,
        tile_start: u32,
        scale: f32,
        factor: f32,
        eps: f32,
        x_at: u32, x_batch: u32, x_head: u32, x_row: u32, x_dim: u32,
        projection_at: u32, projection_feature: u32, projection_dim: u32,
        y_at: u32, y_batch: u32, y_head: u32, y_row: u32, y_dim: u32,
    }
}
