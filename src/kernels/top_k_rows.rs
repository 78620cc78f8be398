//! The best elements of each short row, by insertion into a sorted list.

use serde::{Deserialize, Serialize};

use super::{
    params,
    top_k::{From, To},
};
use crate::{caps::Caps, shader::Constants};

/// Longest list.
pub const MOST_ROOM: u32 = 16;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// Places of the list.
    pub room: u32,
    /// Where rows come from: not keys.
    pub rows: From,
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
    /// Four elements are read at a time.
    pub vec4: bool,
    /// Four places are written at a time.
    pub out4: bool,
    /// f16 storage.
    pub f16: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let scratch = self.rows.scratch() || self.indices == To::Scratch;
        vec![
            ("WORKGROUP", self.workgroup),
            ("ROOM", self.room),
            ("X", (self.rows == From::X).into()),
            ("SCORES", (self.rows == From::Scores).into()),
            ("IN_SCRATCH", self.rows.scratch().into()),
            ("LENS", self.lens.into()),
            ("SKIP", self.skip.into()),
            ("VALUES", self.values.into()),
            ("INDICES", (self.indices == To::Indices).into()),
            ("TO_SCRATCH", (self.indices == To::Scratch).into()),
            ("USES_SCRATCH", scratch.into()),
            ("SORTED", self.sorted.into()),
            ("VEC4", self.vec4.into()),
            ("OUT4", self.out4.into()),
            ("F16", self.f16.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, self.f16, self.workgroup, 5)
    }
}

params! {
    /// Parameters of the selection.
    Params {
        rows: u32, run: u32, length: u32, k: u32, flip: u32, worst: u32, size_1: u32, size_2: u32,
        x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
        len_at: u32, len_0: u32, len_1: u32, len_2: u32,
        values_at: u32, values_0: u32, values_1: u32, values_2: u32, values_element: u32,
        indices_at: u32, indices_0: u32, indices_1: u32, indices_2: u32, indices_element: u32,
    }
}
