//! How much weight each key of attention gets.

use serde::{Deserialize, Serialize};

use super::AttentionIo;
pub use super::AttentionParams as Params;
use crate::{caps::Caps, shader::Constants};

/// Keys of a workgroup; a test ties it to the WGSL.
pub const KEYS: u32 = 8;
/// Queries that a workgroup looks at side by side; a test ties it to the WGSL.
pub const ROWS: u32 = 8;
/// Workgroup memory, in bytes.
pub const WORKGROUP_BYTES: u32 = 4 * KEYS * ROWS;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What it reads.
    pub io: AttentionIo,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        self.io.of_pairs()
    }

    fn mods(&self) -> &'static str {
        self.io.mods.text()
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::attention_weights::supports(self.io, 1, caps)?;
        if caps.workgroup_bytes < WORKGROUP_BYTES {
            return Err(format!(
                "{WORKGROUP_BYTES} bytes of workgroup memory, and the device has {}",
                caps.workgroup_bytes
            ));
        }
        Ok(())
    }
}
