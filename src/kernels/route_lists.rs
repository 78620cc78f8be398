//! From what was selected of each row to lists, numbers and bits.

use serde::{Deserialize, Serialize};

use super::{ROUTE_WORKGROUP, RouteOutputs, params};
use crate::{caps::Caps, shader::Constants};

/// Words of bits in workgroup memory; a test ties it to the WGSL.
pub const WORDS: u32 = 2048;
/// Workgroup memory, in bytes.
pub const WORKGROUP_BYTES: u32 = 4 * (WORDS + ROUTE_WORKGROUP);

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Whether mass decides how many are taken.
    pub share: bool,
    /// Whether scores are masses; else their exponentials are.
    pub given: bool,
    /// What it writes.
    pub outputs: RouteOutputs,
}

impl Variant {
    /// Iterations of all loops of an invocation, the checks that end them counted, for so many blocks, selected ones and
    /// places of a list.
    pub fn iterations(&self, blocks: u64, selected: u64, places: u64) -> u64 {
        let lanes = u64::from(ROUTE_WORKGROUP);
        let words = blocks.div_ceil(32);
        let each = words.min(WORDS.into()).div_ceil(lanes);
        let turns = |count: u64| count.div_ceil(lanes) + 1;
        // One invocation may have the bits of all that is selected.
        let segment = 1 + 3 * (each + 1) + each + turns(selected) + lanes + 1;
        let lists = words.div_ceil(WORDS.into()) * segment + 1 + selected + turns(places);
        if self.share {
            // Scores are walked through twice, three numbers joined, and what was selected is counted.
            lists + 2 * turns(blocks) + 3 * (lanes + 1) + selected + 1
        } else {
            lists
        }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.outputs.constants();
        list.extend([
            ("WORKGROUP", ROUTE_WORKGROUP),
            ("SHARE", self.share.into()),
            ("GIVEN", self.given.into()),
        ]);
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if caps.workgroup_bytes < WORKGROUP_BYTES {
            return Err(format!(
                "{WORKGROUP_BYTES} bytes of workgroup memory, and the device has {}",
                caps.workgroup_bytes
            ));
        }
        super::fits(caps, false, ROUTE_WORKGROUP, 1 + self.outputs.count())
    }
}

params! {
    /// Parameters of the lists.
    Params {
        count: u32, heads: u32, rows: u32, blocks: u32, k: u32, selected: u32, p: f32, least: u32,
        indices_at: u32, indices_batch: u32, indices_head: u32, indices_row: u32, indices_place: u32,
        counts_at: u32, counts_batch: u32, counts_head: u32, counts_row: u32,
        bits_at: u32, bits_batch: u32, bits_head: u32, bits_row: u32, bits_word: u32,
        ranks_at: u32, masses_at: u32, pitch: u32, list_at: u32,
    }
}
