//! Scores for routing: tiles in workgroup memory, no subgroups.

use serde::{Deserialize, Serialize};

use super::ScoresIo;
pub use super::ScoresParams as Params;
use crate::{caps::Caps, shader::Constants};

/// Rows and columns of a tile, channels of a chunk; a test ties them to the WGSL.
pub const TILE: u32 = 32;
/// Invocations per workgroup.
pub const THREADS: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What it reads and writes.
    pub io: ScoresIo,
}

impl Variant {
    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        let arrays = 2 + u32::from(self.io.bounds);
        4 * arrays * TILE * (TILE + 1)
    }

    /// Loop iterations for a summed head, those of all loops within counted.
    pub fn iterations(channels: u64) -> u64 {
        let loads = u64::from(TILE * TILE / THREADS);
        channels.div_ceil(TILE.into()) * (loads + u64::from(TILE) + 3) + 2
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        self.io.constants(false)
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let bytes = self.workgroup_bytes();
        if caps.workgroup_bytes < bytes {
            return Err(format!(
                "{bytes} bytes of workgroup memory, and the device has {}",
                caps.workgroup_bytes
            ));
        }
        self.io.supports(caps, THREADS)
    }
}
