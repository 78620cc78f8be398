//! Subgroup-broadcast attention: each lane owns query rows; keys and values go round by broadcast.

use serde::{Deserialize, Serialize};

pub use super::AttentionParams as Params;
use super::{AttentionIo, attention::one_subgroup};
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Lanes of a subgroup; the workgroup is one.
    pub subgroup: u32,
    /// Query rows per lane.
    pub rows: u32,
    /// Keys per step.
    pub keys: u32,
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
    /// Packed rows per workgroup.
    pub fn tile_rows(&self) -> u32 {
        self.rows * self.subgroup
    }

    /// Loop iterations for a number of keys.
    pub fn iterations(&self, keys: u64) -> u64 {
        keys.div_ceil(self.keys.into())
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.io.constants();
        list.extend([
            ("VEC4", self.vec4.into()),
            ("SUBGROUP", self.subgroup),
            ("ROWS", self.rows),
            ("KEYS", self.keys),
            ("D4", self.d4),
            ("V4", self.v4),
            ("K_CHUNK", self.d4.min(self.subgroup)),
            ("V_CHUNK", self.v4.min(self.subgroup)),
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
