//! Scores for routing: each lane owns rows; columns go round by broadcast.

use serde::{Deserialize, Serialize};

pub use super::ScoresParams as Params;
use super::{ScoresIo, attention::one_subgroup};
use crate::{caps::Caps, shader::Constants};

/// Columns per step.
pub const COLUMNS: u32 = 4;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Lanes of a subgroup; the workgroup is one.
    pub subgroup: u32,
    /// Rows per lane.
    pub rows: u32,
    /// Vectors of four in a row of q and k.
    pub d4: u32,
    /// Whether q and k are read four channels at a time.
    pub vec4: bool,
    /// What it reads and writes.
    pub io: ScoresIo,
}

impl Variant {
    /// Rows per workgroup.
    pub fn tile_rows(&self) -> u32 {
        self.rows * self.subgroup
    }

    /// Loop iterations for a summed head and a number of columns.
    pub fn iterations(columns: u64) -> u64 {
        columns.div_ceil(COLUMNS.into()) + 2
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.io.constants(self.vec4);
        list.extend([
            ("SUBGROUP", self.subgroup),
            ("ROWS", self.rows),
            ("D4", self.d4),
            ("CHUNK", self.d4.min(self.subgroup)),
        ]);
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        one_subgroup(self.subgroup, caps)?;
        self.io.supports(caps, self.subgroup)
    }
}
