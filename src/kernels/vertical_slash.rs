//! Blocks that columns and diagonals pass through.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;
/// Words of a row that a workgroup makes.
pub const WORDS: u32 = 512;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Whether there is another index.
    pub other: bool,
    /// Whether some heads have that one instead.
    pub by_head: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("WORDS", WORDS),
            ("OTHER", self.other.into()),
            ("BY_HEAD", self.by_head.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let buffers = 3 + u32::from(self.other) + u32::from(self.by_head);
        super::fits(caps, false, WORKGROUP, buffers)
    }
}

params! {
    /// Parameters of the kernel.
    Params {
        workgroups: u32, windows: u32, rows: u32, heads: u32, words: u32, blocks: u32, block_q: u32, block_kv: u32,
        first_query: u32, column_count: u32, diagonal_count: u32, by_key: u32, sample_query: u32,
        columns_at: u32, columns_batch: u32, columns_head: u32, columns_place: u32,
        diagonals_at: u32, diagonals_batch: u32, diagonals_head: u32, diagonals_place: u32,
        bits_at: u32, bits_batch: u32, bits_head: u32, bits_row: u32, bits_word: u32,
        blocks_at: u32, blocks_batch: u32, blocks_head: u32, blocks_row: u32, blocks_word: u32,
        head_choice_at: u32, head_choice_batch: u32, head_choice_head: u32,
    }
}
