//! What the attention schedules share: what they read and write, and their parameters.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{
    caps::Caps,
    shader::{Constants, mods::Mods},
};

/// What an attention kernel reads and writes; part of every schedule's variant.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct AttentionIo {
    /// f16 storage.
    pub f16: bool,
    /// Boolean mask.
    pub mask: bool,
    /// The mask's bytes for the keys of a step lie in one word.
    pub mask_words: bool,
    /// Additive bias; whether it is stored as f16.
    pub bias: Option<bool>,
    /// Valid keys per batch entry.
    pub kv_len: bool,
    /// Valid queries per batch entry.
    pub q_len: bool,
    /// Keys per batch entry that every query sees.
    pub prefix: bool,
    /// Packed sequences.
    pub packed: bool,
    /// A window per query head.
    pub head_windows: bool,
    /// Keys before a query's window may be hidden, or those of a later row may end before those of an
    /// earlier one: every row of a tile is asked what it sees.
    pub lower: bool,
    /// Keys at the start are seen besides the window.
    pub early: bool,
    /// Block mask.
    pub blocks: bool,
    /// Its blocks of keys begin anywhere.
    pub block_starts: bool,
    /// The rows of a tile may see different blocks of a block mask.
    pub mixed_blocks: bool,
    /// Lists of keys.
    pub lists: bool,
    /// Logits in the denominator.
    pub sinks: bool,
    /// Soft cap on scores.
    pub softcap: bool,
    /// A factor on each row of the output.
    pub gate: bool,
    /// Functions of the caller's on scores and visibility.
    pub mods: Mods,
    /// Weights are normalised by what an earlier pass has left in scratch, and changed by the caller's
    /// functions.
    pub probs: bool,
    /// Log-sum-exp output.
    pub lse: bool,
    /// Partial results to scratch instead of outputs.
    pub partial: bool,
}

impl AttentionIo {
    pub(super) fn constants(self) -> Constants {
        vec![
            ("F16", self.f16.into()),
            ("MASK", self.mask.into()),
            ("MASK_WORDS", self.mask_words.into()),
            ("BIAS", self.bias.is_some().into()),
            ("BIAS_F16", (self.bias == Some(true)).into()),
            ("KV_LEN", self.kv_len.into()),
            ("Q_LEN", self.q_len.into()),
            ("PREFIX", self.prefix.into()),
            ("PACKED", self.packed.into()),
            ("HEAD_WINDOWS", self.head_windows.into()),
            ("LOWER", self.lower.into()),
            ("EARLY", self.early.into()),
            ("BLOCKS", self.blocks.into()),
            ("BLOCK_STARTS", self.block_starts.into()),
            ("MIXED_BLOCKS", self.mixed_blocks.into()),
            ("RUN_BITS", 1),
            ("LISTS", self.lists.into()),
            ("RUNS", self.runs().into()),
            ("SINKS", self.sinks.into()),
            ("SOFTCAP", self.softcap.into()),
            ("SCORE_MOD", self.mods.has_score().into()),
            ("MASK_MOD", self.mods.has_mask().into()),
            ("KEY_RANGE", self.mods.has_range().into()),
            ("PROB_MOD", self.probs.into()),
            ("SCRATCH", (self.partial || self.probs).into()),
            ("LSE", self.lse.into()),
            ("GATE", self.gate.into()),
            ("PARTIAL", self.partial.into()),
        ]
    }

    /// The same for kernels that look at pairs of query and key; `lse` is an input there, and `probs` says
    /// that weights are changed.
    pub(super) fn of_pairs(self) -> Constants {
        let mut list = self.constants();
        list.retain(|(name, _)| !["SCRATCH", "GATE", "PARTIAL"].contains(name));
        for (name, value) in &mut list {
            match *name {
                // They ask of each key by itself.
                "MIXED_BLOCKS" => *value = self.blocks.into(),
                "RUN_BITS" => *value = 0,
                _ => {}
            }
        }
        list
    }

    /// Whether a tile may visit several runs of keys.
    pub fn runs(self) -> bool {
        (self.early || self.blocks) && !self.lists
    }

    pub(super) fn supports(self, caps: &Caps) -> Result<(), String> {
        let scratch = self.probs && !self.partial;
        self.supports_with(4 + u32::from(scratch), caps)
    }

    /// Whether a device can run a kernel that binds so many buffers besides.
    pub(super) fn supports_with(self, others: u32, caps: &Caps) -> Result<(), String> {
        if (self.f16 || self.bias == Some(true)) && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        let given = [
            self.mask,
            self.bias.is_some(),
            self.kv_len,
            self.q_len,
            self.prefix,
            // Where queries begin, and where keys do.
            self.packed,
            self.packed,
            self.head_windows,
            self.blocks,
            self.block_starts,
            self.lists,
            self.sinks,
            self.lse && !self.partial,
            self.gate,
        ];
        let given = given.into_iter().map(u32::from).sum::<u32>();
        let buffers = others + given + self.mods.buffers() as u32;
        if buffers > caps.max_storage_buffers {
            return Err(format!(
                "{buffers} storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

/// What kernels need whose workgroup is one subgroup of this many lanes.
pub(super) fn one_subgroup(lanes: u32, caps: &Caps) -> Result<(), String> {
    match caps.subgroup {
        None => return Err("the device has no subgroup operations".into()),
        Some((min, max)) if min != max => {
            return Err(format!(
                "the subgroup size may be anything from {min} to {max}"
            ));
        }
        Some((size, _)) if size != lanes => {
            return Err(format!("subgroups have {size} lanes"));
        }
        Some(_) => {}
    }
    if lanes > caps.max_invocations {
        return Err("a subgroup is larger than a workgroup may be".into());
    }
    Ok(())
}

params! {
    /// Parameters of every attention schedule (`shaders/shared/attention.wgsl`).
    AttentionParams {
        tiles: u32, row_tiles: u32, splits: u32, split_keys: u32, split_start: u32, all_splits: u32,
        kv_heads: u32, group: u32, all_group: u32, q_len: u32, kv_len: u32, all_keys: u32,
        head_dim: u32, value_dim: u32, row_start: u32, key_start: u32,
        batch_start: u32, head_start: u32, all_rows: u32,
        corner: i32, left: i32, right: i32, early: u32, sequences: u32, partial_start: u32,
        block_q: u32, block_kv: u32, blocks_heads: u32, kv_blocks: u32, list_rows: u32, entries: u32,
        scale: f32, softcap: f32, minus_infinity: f32,
        q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
        k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
        o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
        lse_at: u32, lse_batch: u32, lse_head: u32, lse_row: u32,
        mask_at: u32, mask_batch: u32, mask_head: u32, mask_row: u32, mask_key: u32,
        bias_at: u32, bias_batch: u32, bias_head: u32, bias_row: u32, bias_key: u32,
        kv_len_at: u32, kv_len_batch: u32,
        q_len_at: u32, q_len_batch: u32,
        prefix_len_at: u32, prefix_len_batch: u32,
        cu_q_at: u32, cu_q_sequence: u32,
        cu_kv_at: u32, cu_kv_sequence: u32,
        head_windows_at: u32, head_windows_head: u32, head_windows_part: u32,
        sinks_at: u32, sinks_head: u32,
        gate_at: u32, gate_batch: u32, gate_head: u32, gate_row: u32,
        blocks_at: u32, blocks_batch: u32, blocks_head: u32, blocks_row: u32, blocks_word: u32,
        block_starts_at: u32, block_starts_block: u32,
        index_at: u32, index_batch: u32, index_head: u32, index_row: u32, index_entry: u32,
        buffer_0_at: u32, buffer_1_at: u32, buffer_2_at: u32, buffer_3_at: u32,
    }
}
