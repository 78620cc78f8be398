//! Scans along the sequence.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// What is carried from token to token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carried {
    /// A sum, which decays.
    Sum {
        /// Whether it does.
        decay: bool,
    },
    /// A maximum, and the sum of exponentials relative to it.
    LogSumExp,
    /// The same, and a sum of values.
    Softmax {
        /// Whether each value is divided by the sum of its own token.
        step: bool,
    },
}

impl Carried {
    /// Numbers per channel.
    pub fn parts(self) -> u32 {
        match self {
            Self::Sum { .. } | Self::LogSumExp => 2,
            Self::Softmax { .. } => 3,
        }
    }

    /// The flags of `shaders/shared/scan_state.wgsl` and `scan_slots.wgsl`.
    pub(super) fn constants(self) -> [(&'static str, u32); 3] {
        let softmax = matches!(self, Self::Softmax { .. });
        [
            ("SUM", matches!(self, Self::Sum { .. }).into()),
            ("VALUES", softmax.into()),
            ("STEP", (self == Self::Softmax { step: true }).into()),
        ]
    }
}

/// What a dispatch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// What each segment makes of nothing, to scratch.
    Reduce,
    /// The same of the sum of values, where each value is divided by the sum of its own token.
    Sums,
    /// Each segment from its start.
    Apply,
    /// The result of all tokens, to every token.
    Spread,
    /// Zeros to the tokens past the last sequence.
    Clear,
}

/// Where scores come from; the summands of a sum are like those of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// One per channel.
    Channel,
    /// One per head.
    Head,
    /// One per head, computed before and left in scratch.
    Scratch,
}

/// Which tensors, besides the input, a scan has.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Tensors {
    /// The output.
    pub o: bool,
    /// Factors on the output.
    pub gate: bool,
    /// The decays that lead from one log-sum-exp to the next.
    pub log_decay: bool,
    /// Each token's share of its log-sum-exp.
    pub weights: bool,
    /// The state of every token.
    pub states: bool,
    /// The state before the first token, which is read here.
    pub initial: bool,
    /// The state after the last token.
    pub last: bool,
    /// Whether these are one.
    pub in_place: bool,
    /// Where packed sequences begin.
    pub packed: bool,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What is carried.
    pub carried: Carried,
    /// What it does.
    pub phase: Phase,
    /// Where the input comes from.
    pub scores: Scores,
    /// Which tensors this phase has.
    pub tensors: Tensors,
    /// Whether starts are in scratch.
    pub split: bool,
    /// Tokens that are loaded at once.
    pub block: u32,
    /// f16 input and output.
    pub f16: bool,
    /// f16 decays.
    pub f16_decay: bool,
    /// Whether channels are read and written four at a time.
    pub vec4: bool,
}

impl Variant {
    /// The same for another phase: with those of its tensors that the phase has.
    pub fn of_phase(self, phase: Phase) -> Self {
        let all = self.tensors;
        let writes = matches!(phase, Phase::Apply | Phase::Clear);
        let split = self.split && phase != Phase::Clear;
        Self {
            phase,
            split,
            tensors: Tensors {
                o: all.o && (writes || phase == Phase::Spread),
                gate: all.gate && all.o && matches!(phase, Phase::Apply | Phase::Spread),
                log_decay: all.log_decay && writes,
                weights: all.weights && writes,
                states: all.states && writes,
                // Where starts are in scratch, they come from there.
                initial: all.initial && phase == Phase::Apply && !split,
                last: all.last && matches!(phase, Phase::Apply | Phase::Spread),
                in_place: all.in_place && all.initial && phase == Phase::Apply && !split,
                packed: all.packed,
            },
            ..self
        }
    }

    /// Channels per invocation.
    pub fn width(&self) -> u32 {
        if self.vec4 { 4 } else { 1 }
    }

    /// Whether it reads its input.
    fn walks(&self) -> bool {
        matches!(self.phase, Phase::Reduce | Phase::Sums | Phase::Apply)
    }

    /// Whether the input is a tensor.
    pub fn reads_x(&self) -> bool {
        self.walks() && self.scores != Scores::Scratch
    }

    /// Whether it reads decays.
    pub fn reads_decay(&self) -> bool {
        self.walks() && self.carried == Carried::Sum { decay: true }
    }

    /// Whether it reads values.
    pub fn reads_v(&self) -> bool {
        self.walks()
            && match self.carried {
                Carried::Softmax { step } => !(step && self.phase == Phase::Reduce),
                _ => false,
            }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let tensors = &self.tensors;
        let mut list = vec![
            ("WORKGROUP", WORKGROUP),
            ("BLOCK", self.block),
            ("F16", self.f16.into()),
            ("F16_DECAY", self.f16_decay.into()),
            ("VEC4", self.vec4.into()),
            ("PER_HEAD", (self.scores != Scores::Channel).into()),
            ("X", self.reads_x().into()),
            ("DECAY", self.reads_decay().into()),
            ("V", self.reads_v().into()),
            ("GATE", tensors.gate.into()),
            ("OUTPUT", tensors.o.into()),
            ("LOG_DECAY", tensors.log_decay.into()),
            ("WEIGHTS", tensors.weights.into()),
            ("STATES", tensors.states.into()),
            ("INITIAL", tensors.initial.into()),
            ("IN_PLACE", tensors.in_place.into()),
            ("FINAL", tensors.last.into()),
            ("PACKED", tensors.packed.into()),
            ("SPLIT", self.split.into()),
            ("WALK", self.walks().into()),
            ("APPLY", (self.phase == Phase::Apply).into()),
            ("SUMS", (self.phase == Phase::Sums).into()),
            ("SPREAD", (self.phase == Phase::Spread).into()),
            ("CLEAR", (self.phase == Phase::Clear).into()),
        ];
        list.extend(self.carried.constants());
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if (self.f16 || self.f16_decay) && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if WORKGROUP > caps.max_invocations {
            return Err(format!(
                "{WORKGROUP} invocations per workgroup, and the device allows {}",
                caps.max_invocations
            ));
        }
        let tensors = &self.tensors;
        let buffers = [
            tensors.o,
            self.reads_x(),
            self.reads_decay(),
            self.reads_v(),
            tensors.gate,
            tensors.log_decay,
            tensors.weights,
            tensors.states,
            tensors.initial && !tensors.in_place,
            tensors.last,
            self.split,
            tensors.packed,
        ];
        let buffers = buffers.into_iter().map(u32::from).sum::<u32>();
        if buffers > caps.max_storage_buffers {
            return Err(format!(
                "{buffers} storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the scan.
    Params {
        invocations: u32, units: u32, heads: u32, segments: u32, last_segment: u32, segment_length: u32,
        length: u32, rows: u32, start_slot: u32, carry_slot: u32, carries: u32, maxima: u32,
        channel_start: u32, entry_start: u32, sequences: u32, scores_at: u32, minus_infinity: f32,
        x_at: u32, x_batch: u32, x_head: u32, x_token: u32, x_channel: u32,
        decay_at: u32, decay_batch: u32, decay_head: u32, decay_token: u32, decay_channel: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_token: u32, v_channel: u32,
        gate_at: u32, gate_batch: u32, gate_head: u32, gate_token: u32, gate_channel: u32,
        o_at: u32, o_batch: u32, o_head: u32, o_token: u32, o_channel: u32,
        log_decay_at: u32, log_decay_batch: u32, log_decay_head: u32, log_decay_token: u32,
        log_decay_channel: u32,
        weights_at: u32, weights_batch: u32, weights_head: u32, weights_token: u32, weights_channel: u32,
        states_at: u32, states_batch: u32, states_head: u32, states_token: u32, states_part: u32,
        states_channel: u32,
        initial_at: u32, initial_batch: u32, initial_head: u32, initial_part: u32, initial_channel: u32,
        final_at: u32, final_batch: u32, final_head: u32, final_part: u32, final_channel: u32,
        cu_at: u32, cu_step: u32,
    }
}
