//! Merges attention results over parts of the keys.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// Where the parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// In scratch: partial results of key ranges, not yet divided by their totals.
    Scratch,
    /// In tensors of the caller's: outputs, and what weights them.
    Parts {
        /// Whether outputs are read and written four elements at a time.
        vec4: bool,
        /// What weights them.
        weights: Weights,
    },
}

/// What weights parts of the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// Their log-sum-exps.
    LogSumExps,
    /// Gates.
    Gates {
        /// Whether gates are f16.
        f16: bool,
    },
    /// Both.
    Both {
        /// Whether gates are f16.
        f16: bool,
    },
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Where the parts are.
    pub source: Source,
    /// f16 output, and parts but for those in scratch.
    pub f16: bool,
    /// Log-sum-exp output.
    pub lse: bool,
    /// A factor on each row.
    pub gate: bool,
}

impl Variant {
    /// Elements per invocation.
    pub fn width(&self) -> u32 {
        if matches!(self.source, Source::Parts { vec4: true, .. }) {
            4
        } else {
            1
        }
    }

    /// Iterations of an invocation, checks that end loops counted: largest totals are found first.
    pub fn iterations(&self, parts: u64) -> u64 {
        let loops = if self.weights().0 { 2 } else { 1 };
        parts.saturating_add(1).saturating_mul(loops)
    }

    /// Whether parts have totals or log-sum-exps, and gates; and whether these are f16.
    fn weights(&self) -> (bool, bool, bool) {
        match self.source {
            Source::Scratch => (true, false, false),
            Source::Parts { weights, .. } => match weights {
                Weights::LogSumExps => (true, false, false),
                Weights::Gates { f16 } => (false, true, f16),
                Weights::Both { f16 } => (true, true, f16),
            },
        }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let (totals, gates, gates_f16) = self.weights();
        vec![
            ("ANY_F16", (self.f16 || gates_f16).into()),
            ("TOTALS", totals.into()),
            ("GATES", gates.into()),
            ("GATES_F16", gates_f16.into()),
            ("F16", self.f16.into()),
            ("PARTS", (self.source != Source::Scratch).into()),
            ("VEC4", (self.width() == 4).into()),
            ("LSE", self.lse.into()),
            ("GATE", self.gate.into()),
            ("WORKGROUP", WORKGROUP),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let (totals, gates, gates_f16) = self.weights();
        if (self.f16 || gates_f16) && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if WORKGROUP > caps.max_invocations {
            return Err(format!(
                "{WORKGROUP} invocations per workgroup to merge results, and the device allows {}",
                caps.max_invocations
            ));
        }
        let lse_parts = totals && self.source != Source::Scratch;
        let given = [lse_parts, gates, self.lse, self.gate];
        let buffers = 2 + given.into_iter().map(u32::from).sum::<u32>();
        if buffers > caps.max_storage_buffers {
            return Err(format!(
                "{buffers} storage buffers to merge results, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the merge.
    Params {
        elements: u32, splits: u32, partial_start: u32, value_dim: u32, q_len: u32, kv_heads: u32, group: u32,
        all_group: u32, minus_infinity: f32,
        o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
        lse_at: u32, lse_batch: u32, lse_head: u32, lse_row: u32,
        gate_at: u32, gate_batch: u32, gate_head: u32, gate_row: u32,
        o_parts_at: u32, o_parts_part: u32, o_parts_batch: u32, o_parts_head: u32,
        o_parts_row: u32, o_parts_dim: u32,
        lse_parts_at: u32, lse_parts_part: u32, lse_parts_batch: u32, lse_parts_head: u32,
        lse_parts_row: u32,
        gates_at: u32, gates_part: u32, gates_batch: u32, gates_head: u32, gates_row: u32,
    }
}
