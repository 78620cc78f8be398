//! The best key of each group of neighbouring elements.

use serde::{Deserialize, Serialize};

use super::{params, top_k::From};
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// Invocations that share a group.
    pub lanes: u32,
    /// Where rows come from.
    pub rows: From,
    /// Whether rows have lengths of their own.
    pub lens: bool,
    /// Whether NaN and the worse infinity are left out.
    pub skip: bool,
    /// Four elements at a time.
    pub vec4: bool,
    /// f16 storage.
    pub f16: bool,
}

impl Variant {
    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        if self.lanes > 1 {
            4 * self.workgroup
        } else {
            0
        }
    }

    /// Iterations of all loops of an invocation that has `run` groups of `group` elements.
    pub fn iterations(&self, run: u64, group: u64) -> u64 {
        let width = if self.vec4 { 4 } else { 1 };
        let units = group / (width * u64::from(self.lanes)).min(group);
        run * (units.div_ceil(4) + 8) + 8
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", self.workgroup),
            ("LANES", self.lanes),
            ("JOINED", (self.lanes > 1).into()),
            ("X", (self.rows == From::X).into()),
            ("SCORES", (self.rows == From::Scores).into()),
            ("IN_SCRATCH", self.rows.scratch().into()),
            ("KEYS", (self.rows == From::Keys).into()),
            ("LENS", self.lens.into()),
            ("SKIP", self.skip.into()),
            ("VEC4", self.vec4.into()),
            ("F16", self.f16.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, self.f16, self.workgroup, 3)
    }
}

params! {
    /// Parameters of the groups.
    Params {
        teams: u32, runs: u32, run: u32, groups: u32, group: u32, first: u32, first_group: u32, length: u32, flip: u32,
        size_1: u32, size_2: u32,
        x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
        len_at: u32, len_0: u32, len_1: u32, len_2: u32,
        keys_at: u32, keys_row: u32,
    }
}
