//! Decode attention: the lanes of a subgroup share a few query rows, and each reads keys of its own.

use serde::{Deserialize, Serialize};

pub use super::AttentionParams as Params;
use super::{AttentionIo, attention::one_subgroup};
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Lanes of a subgroup; the workgroup is one.
    pub subgroup: u32,
    /// Packed query rows per workgroup.
    pub rows: u32,
    /// Most neighbouring keys that a lane reads before the lanes move on together.
    pub stretch: u32,
    /// Vectors of four in a row of q and k.
    pub d4: u32,
    /// Vectors of four in a row of v and o.
    pub v4: u32,
    /// Whether q, k, v and o are read and written four elements at a time.
    pub vec4: bool,
    /// What it reads and writes.
    pub io: AttentionIo,
}

impl Variant {
    /// Loop iterations for a run of keys, at most.
    pub fn iterations(&self, keys: u64) -> u64 {
        // Short runs are shared out evenly.
        let each = keys.div_ceil(self.subgroup.max(1).into());
        each + each.min(self.stretch.into())
    }

    /// The most keys that a number of loop iterations is enough for: the last block of stretches may
    /// leave lanes idle.
    pub fn keys_in(&self, iterations: u64) -> u64 {
        iterations.saturating_sub(self.stretch.into()) * u64::from(self.subgroup)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.io.constants();
        list.extend([
            ("VEC4", self.vec4.into()),
            ("SUBGROUP", self.subgroup),
            ("ROWS", self.rows),
            ("D4", self.d4),
            ("V4", self.v4),
            ("STRETCH", self.stretch),
        ]);
        list
    }

    fn mods(&self) -> &'static str {
        self.io.mods.text()
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        one_subgroup(self.subgroup, caps)?;
        self.io.supports(caps)
    }
}
