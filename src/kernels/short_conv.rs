//! Short depthwise convolution along the sequence.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Most taps whose inputs stay in registers.
pub const MOST_TAPS: u32 = 8;
/// Taps at a time where there are more.
pub const LONG_TAPS: u32 = 4;

/// What is read and written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    /// An element.
    One,
    /// Four channels of a token.
    Channels4,
    /// Four tokens of a channel.
    Tokens4,
}

/// Whose weights a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// A channel's own, where four channels are read at once.
    Lanes,
    /// Those of all channels of a unit.
    Unit,
    /// Those of all channels of a unit, for one token.
    Token,
}

/// The softmax over taps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Softmax {
    /// None.
    None,
    /// Of all taps.
    All,
    /// Of the taps inside the sequence.
    Inside,
}

/// The state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct State {
    /// Whether there are inputs before the first token.
    pub initial: bool,
    /// Whether the state after the last token is written.
    pub written: bool,
    /// Whether it is the one that was read.
    pub in_place: bool,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// f16 input, output and states.
    pub f16: bool,
    /// f16 weights and bias.
    pub f16_weight: bool,
    /// What is read and written at once.
    pub read: Read,
    /// Whose weights a row is.
    pub rows: Rows,
    /// Whether weights are read four taps at a time.
    pub weight4: bool,
    /// The taps, where they stay in registers.
    pub taps: Option<u32>,
    /// Tokens per step.
    pub block: u32,
    /// Whether there is a bias.
    pub bias: bool,
    /// The softmax over taps.
    pub softmax: Softmax,
    /// Whether taps reach past a token's own place.
    pub ahead: bool,
    /// Whether the activation is SiLU.
    pub silu: bool,
    /// The state.
    pub state: State,
    /// Whether sequences are packed.
    pub packed: bool,
    /// Invocations per workgroup.
    pub workgroup: u32,
}

impl Variant {
    /// Elements read at once.
    pub fn width(&self) -> u32 {
        if self.read == Read::One { 1 } else { 4 }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let flag = |name, yes: bool| (name, u32::from(yes));
        vec![
            ("WORKGROUP", self.workgroup),
            ("TAPS", self.taps.unwrap_or(LONG_TAPS)),
            ("BLOCK", self.block),
            flag("F16", self.f16),
            flag("F16_WEIGHT", self.f16_weight),
            flag("VEC4", self.read != Read::One),
            flag("CHANNELS4", self.read == Read::Channels4),
            flag("TOKENS4", self.read == Read::Tokens4),
            flag("WEIGHT4", self.weight4),
            flag("LANES4", self.rows == Rows::Lanes),
            flag("DYNAMIC", self.rows == Rows::Token),
            flag("BIAS", self.bias),
            flag("SOFTMAX", self.softmax != Softmax::None),
            flag("RENORM", self.softmax == Softmax::Inside),
            flag("AHEAD", self.ahead),
            flag("SILU", self.silu),
            flag("INITIAL", self.state.initial),
            flag("FINAL", self.state.written),
            flag("STATE", self.state.written || self.state.in_place),
            flag("IN_PLACE", self.state.in_place),
            flag("PACKED", self.packed),
            flag("LONG", self.taps.is_none()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if (self.f16 || self.f16_weight) && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if self.workgroup > caps.max_invocations {
            return Err(format!(
                "{} invocations per workgroup, and the device allows {}",
                self.workgroup, caps.max_invocations
            ));
        }
        let state = self.state;
        let buffers = 3
            + u32::from(self.bias)
            + u32::from(state.initial && !state.in_place)
            + u32::from(state.written || state.in_place)
            + u32::from(self.packed);
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
    /// Parameters of the convolution.
    Params {
        invocations: u32, units: u32, inner: u32, runs: u32, runs_first: u32, each: u32, tokens: u32,
        before: u32, window: u32, window_start: u32, taps: u32, padding: u32, sequences: u32,
        x_at: u32, x_batch: u32, x_outer: u32, x_unit: u32, x_token: u32,
        y_at: u32, y_batch: u32, y_outer: u32, y_unit: u32, y_token: u32,
        weight_at: u32, weight_batch: u32, weight_token: u32, weight_outer: u32, weight_lane: u32,
        weight_tap: u32,
        bias_at: u32, bias_outer: u32, bias_unit: u32, bias_lane: u32,
        initial_state_at: u32, initial_state_batch: u32, initial_state_outer: u32,
        initial_state_unit: u32, initial_state_lane: u32, initial_state_tap: u32,
        final_state_at: u32, final_state_batch: u32, final_state_outer: u32,
        final_state_unit: u32, final_state_lane: u32, final_state_tap: u32,
        cu_seqlens_at: u32, cu_seqlens_step: u32,
    }
}
