//! Copies the elements of groups that a list names.

use serde::{Deserialize, Serialize};

use super::{params, top_k::From};
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Where rows come from.
    pub rows: From,
    /// Whether rows have lengths of their own.
    pub lens: bool,
    /// f16 storage.
    pub f16: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("X", (self.rows == From::X).into()),
            ("SCORES", (self.rows == From::Scores).into()),
            ("IN_SCRATCH", self.rows.scratch().into()),
            ("KEYS", (self.rows == From::Keys).into()),
            ("LENS", self.lens.into()),
            ("SKIP", 0),
            ("F16", self.f16.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, self.f16, WORKGROUP, 3)
    }
}

params! {
    /// Parameters of the copy.
    Params {
        invocations: u32, runs: u32, run: u32, group: u32, first: u32, length: u32, whole: u32, size_1: u32, size_2: u32,
        x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
        len_at: u32, len_0: u32, len_1: u32, len_2: u32,
        list_at: u32, list_row: u32, out_at: u32, out_row: u32,
    }
}
