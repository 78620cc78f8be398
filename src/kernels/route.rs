//! What the kernels of routing share.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const ROUTE_WORKGROUP: u32 = 64;

/// What routing reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteIo {
    /// Whether a tensor says which queries rows have.
    pub row_starts: bool,
    /// Whether a tensor says where blocks begin.
    pub starts: bool,
    /// Whether batch entries have lengths.
    pub lengths: bool,
    /// Whether sequences are packed.
    pub packed: bool,
    /// Whether scores are read four at a time.
    pub vec4: bool,
    /// f16 scores.
    pub f16: bool,
}

impl RouteIo {
    pub(super) fn constants(&self, given: bool) -> Constants {
        vec![
            ("WORKGROUP", ROUTE_WORKGROUP),
            ("ROW_STARTS", self.row_starts.into()),
            ("STARTS", self.starts.into()),
            ("LENGTHS", self.lengths.into()),
            ("PACKED", self.packed.into()),
            ("VEC4", self.vec4.into()),
            ("F16", self.f16.into()),
            ("GIVEN", given.into()),
        ]
    }

    /// Iterations that find what a row may and must take, the checks that end them counted: each search halves 32 bits.
    pub(super) fn searches(&self) -> u64 {
        let blocks = if self.starts { 5 } else { 0 };
        33 * (blocks + u64::from(self.packed))
    }

    /// With so many tensors that are written.
    pub(super) fn supports(&self, caps: &Caps, written: u32) -> Result<(), String> {
        let flags = [self.row_starts, self.starts, self.lengths, self.packed];
        let read = 1 + flags.map(u32::from).iter().sum::<u32>();
        super::fits(caps, self.f16, ROUTE_WORKGROUP, read + written)
    }
}

/// Which outputs a kernel of routing writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RouteOutputs {
    /// Lists.
    pub indices: bool,
    /// Their lengths.
    pub counts: bool,
    /// Bits.
    pub bits: bool,
}

impl RouteOutputs {
    pub(super) fn constants(&self) -> Constants {
        vec![
            ("INDICES", self.indices.into()),
            ("COUNTS", self.counts.into()),
            ("BITS", self.bits.into()),
        ]
    }

    pub(super) fn count(&self) -> u32 {
        let flags = [self.indices, self.counts, self.bits];
        flags.map(u32::from).iter().sum()
    }
}

params! {
    /// Parameters of what reads scores (`shaders/shared/route.wgsl`).
    RouteParams {
        count: u32, heads: u32, rows: u32, blocks: u32, group: u32, first_row: u32, k: u32, p: f32, least: u32,
        block_q: u32, block_kv: u32, first_query: u32, from_end: u32, visible: u32, own: u32, first: u32,
        recent: u32, sequences: u32,
        scores_at: u32, scores_batch: u32, scores_head: u32, scores_row: u32, scores_block: u32,
        row_starts_at: u32, row_starts_batch: u32, row_starts_head: u32, row_starts_row: u32,
        starts_at: u32, starts_batch: u32, starts_head: u32, starts_block: u32,
        lens_at: u32, lens_batch: u32, cu_at: u32, cu_step: u32,
        indices_at: u32, indices_batch: u32, indices_head: u32, indices_row: u32, indices_place: u32,
        counts_at: u32, counts_batch: u32, counts_head: u32, counts_row: u32,
        bits_at: u32, bits_batch: u32, bits_head: u32, bits_row: u32, bits_word: u32,
        parts: u32, stretch: u32, ranks_at: u32, masses_at: u32, pitch: u32, list_at: u32,
    }
}
