//! Tile attention: workgroup memory and register micro-tiles, no subgroups.

use serde::{Deserialize, Serialize};

use super::AttentionIo;
pub use super::AttentionParams as Params;
use crate::{caps::Caps, shader::Constants};

/// Rows and keys of a tile, dims of a chunk; a test ties them to the WGSL.
pub const TILE: u32 = 32;
/// Invocations per workgroup.
pub const THREADS: u32 = 64;
/// Workgroup memory, in bytes.
pub const WORKGROUP_BYTES: u32 = 4 * (3 * TILE * (TILE + 1) + TILE * 8 + TILE);

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Chunks of 32 in a row of v and o.
    pub v_chunks: u32,
    /// What it reads and writes.
    pub io: AttentionIo,
}

impl Variant {
    /// Loop iterations for a number of keys, those of all loops within counted.
    pub fn iterations(&self, keys: u64, head_dim: u64) -> u64 {
        let loads = u64::from(TILE * TILE / THREADS);
        let tile = u64::from(TILE);
        let scores = head_dim.div_ceil(tile) * (1 + loads + tile);
        let values = u64::from(self.v_chunks) * (loads + tile);
        let rows = 4 * 8;
        keys.div_ceil(tile) * (1 + scores + rows + values)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.io.constants();
        list.push(("V_CHUNKS", self.v_chunks));
        list
    }

    fn mods(&self) -> &'static str {
        self.io.mods.text()
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if caps.workgroup_bytes < WORKGROUP_BYTES {
            return Err(format!(
                "{WORKGROUP_BYTES} bytes of workgroup memory, and the device has {}",
                caps.workgroup_bytes
            ));
        }
        if caps.max_invocations < THREADS {
            return Err(format!(
                "{THREADS} invocations per workgroup, and the device allows {}",
                caps.max_invocations
            ));
        }
        self.io.supports(caps)
    }
}
