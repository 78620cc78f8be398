//! The best elements of each row, by radix selection.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Bins of a pass.
pub const BINS: u32 = 256;
/// Sums of bins.
pub const COARSE: u32 = 16;
/// Longest list that is sorted in workgroup memory.
pub const MOST_ROOM: u32 = 1024;

/// Where rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// The tensor `x`.
    X,
    /// The tensor `scores`.
    Scores,
    /// Numbers in scratch.
    Numbers,
    /// Keys in scratch.
    Keys,
}

impl From {
    /// Whether they are in scratch.
    pub fn scratch(self) -> bool {
        matches!(self, Self::Numbers | Self::Keys)
    }
}

/// Where indices go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum To {
    /// Nowhere.
    Nowhere,
    /// The tensor `indices`.
    Indices,
    /// Scratch.
    Scratch,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// Where rows come from.
    pub rows: From,
    /// Whether a list in scratch names groups of elements.
    pub listed: bool,
    /// Whether rows have lengths of their own.
    pub lens: bool,
    /// Whether NaN and the worse infinity are left out.
    pub skip: bool,
    /// Whether values are written.
    pub values: bool,
    /// Where indices go.
    pub indices: To,
    /// Whether the best comes first.
    pub sorted: bool,
    /// Places of a list in workgroup memory; 0: lists are sorted in scratch, or not at all.
    pub room: u32,
    /// Whether each invocation reads a stretch of its own when it counts.
    pub stretch: bool,
    /// f16 storage.
    pub f16: bool,
}

impl Variant {
    /// Whether scratch is bound.
    pub fn uses_scratch(&self) -> bool {
        self.rows.scratch()
            || self.listed
            || self.indices == To::Scratch
            || (self.sorted && self.room == 0)
    }

    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        4 * (BINS + COARSE + 2 * self.workgroup + 2 * self.room)
    }

    /// Iterations of all loops of an invocation, the checks that end them counted.
    pub fn iterations(&self, share: u64, k: u64, places: u64) -> u64 {
        let workgroup = u64::from(self.workgroup);
        let bins = u64::from(BINS);
        let turns = |count: u64| count.div_ceil(workgroup) + 1;
        let coarse = u64::from(COARSE);
        let find = turns(coarse) * (bins / coarse + 1) + coarse + 1 + bins / coarse + 1;
        let sort = if self.sorted {
            let stages = u64::from(places.max(1).ilog2());
            turns(places) + (stages + 1) + (stages + 1) * (stages + 1) * turns(places / 2)
        } else {
            0
        };
        5 + 4 * (turns(bins) + share + 1 + find) + 2 * (share + 1) + 10 + sort + turns(k)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", self.workgroup),
            ("ROOM", self.room),
            ("HELD", (self.room > 0).into()),
            ("X", (self.rows == From::X).into()),
            ("SCORES", (self.rows == From::Scores).into()),
            ("IN_SCRATCH", self.rows.scratch().into()),
            ("KEYS", (self.rows == From::Keys).into()),
            ("LISTED", self.listed.into()),
            ("LENS", self.lens.into()),
            ("SKIP", self.skip.into()),
            ("VALUES", self.values.into()),
            ("INDICES", (self.indices == To::Indices).into()),
            ("TO_SCRATCH", (self.indices == To::Scratch).into()),
            ("USES_SCRATCH", self.uses_scratch().into()),
            ("SORTED", self.sorted.into()),
            ("STRETCH", self.stretch.into()),
            ("F16", self.f16.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, self.f16, self.workgroup, 5)?;
        if self.workgroup_bytes() > caps.workgroup_bytes {
            return Err(format!(
                "{} bytes of workgroup memory, and the device has {}",
                self.workgroup_bytes(),
                caps.workgroup_bytes
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the selection.
    Params {
        rows: u32, length: u32, share: u32, k: u32, places: u32, flip: u32, worst: u32, size_1: u32, size_2: u32,
        x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
        len_at: u32, len_0: u32, len_1: u32, len_2: u32,
        values_at: u32, values_0: u32, values_1: u32, values_2: u32, values_element: u32,
        indices_at: u32, indices_0: u32, indices_1: u32, indices_2: u32, indices_element: u32,
        list_at: u32, list_row: u32, group: u32, sort_at: u32,
    }
}
