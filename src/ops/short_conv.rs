//! Short depthwise convolution along the sequence.

use serde::{Deserialize, Serialize};

use super::{Args, Slot};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// What is applied to the sums of a [`ShortConv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x / (1 + exp(-x))`, also called swish.
    Silu,
}

/// Short depthwise convolution along the sequence: `y[c, t] = act(Σ_k w_k x[c, t - padding_left + k] + bias[c])`, each
/// channel by itself, with zeros where `x` has no token. Linear-attention blocks (Mamba, DeltaNet, CHELA, GAM) put it
/// before the attention.
///
/// # Weights
///
/// - `[heads, taps]`: channel `c` uses the row of head `c / (channels / heads)`. With as many heads as channels, a
///   depthwise convolution; with fewer, a lightweight one (Wu et al., arXiv:1901.10430).
/// - `[batch, seq, heads, taps]`: each token has weights of its own, a dynamic convolution (the same paper).
///
/// The last tap is the one of the latest token. [`ShortConv::softmax`] takes the softmax over the taps first;
/// [`ShortConv::renormalise`] leaves out taps that fall outside.
///
/// # Causality and state
///
/// With [`ShortConv::padding_left`] of `taps - 1`, which [`ShortConv::new`] sets, a token sees itself and the
/// `taps - 1` before it. Then [`ShortConv::initial_state`] holds the inputs before the first token, the latest last,
/// and [`ShortConv::final_state`] takes those for the next call: the last `taps - 1` of the initial state (zeros
/// where there is none) followed by `x`. So calls on the pieces of a sequence give what one call on the whole does.
///
/// # Layouts
///
/// All tensors may have any strides. `[batch, seq, channels]` tensors are views (`layout.transposed(1, 2)`), and
/// ONNX's weights `[channels, 1, taps]` are `[channels, taps]`. Four elements are read at once along channels or
/// tokens, whichever lie side by side in all of `x` and `y`.
///
/// # Numbers
///
/// Sums and softmax are f32 whatever the storage. A number that is not finite stays within its channel, and within
/// its sequence where several are packed.
///
/// Sources: operator CausalConvWithState of ONNX, opset 27; Wu et al. (arXiv:1901.10430).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShortConv {
    /// Input, f32 or f16 `[batch, channels, seq]`.
    pub x: Layout,
    /// Output, of the same shape and element type, and not in the same place.
    pub y: Layout,
    /// Weights, f32 or f16 `[heads, taps]` or `[batch, seq, heads, taps]`, where `heads` divides the channels.
    pub weight: Layout,
    /// Added to the sums, of the weights' element type, `[channels]`.
    #[serde(default)]
    pub bias: Option<Layout>,
    /// Taps before a token's own place, at most `taps - 1`: that many zeros are before the first token, and
    /// `taps - 1 - padding_left` after the last.
    pub padding_left: u64,
    /// Whether the softmax over the taps is taken of the weights.
    #[serde(default)]
    pub softmax: bool,
    /// Whether taps outside the sequence get no weight in the softmax; an initial state counts as inside. Needs
    /// weights per token.
    #[serde(default)]
    pub renormalise: bool,
    /// What is applied to the sums.
    #[serde(default)]
    pub activation: Activation,
    /// Inputs before the first token, of `x`'s element type `[batch, channels, taps - 1]`; zeros when absent. Batch
    /// counts sequences where they are packed.
    #[serde(default)]
    pub initial_state: Option<Layout>,
    /// Inputs for the next call, of the same shape and element type, when wanted.
    #[serde(default)]
    pub final_state: Option<Layout>,
    /// Whether the final state takes the place of the initial one: one buffer and one layout for both.
    #[serde(default)]
    pub in_place: bool,
    /// Packed sequences: where each begins and, last, where the last one ends, u32 `[sequences + 1]`, rising from 0.
    /// Needs a batch of 1. Nothing reaches over the ends of a sequence, and each has a state of its own. Outputs of
    /// tokens past the last end are 0. Places that fall or overrun give some defined result.
    #[serde(default)]
    pub cu_seqlens: Option<Layout>,
}

impl ShortConv {
    /// Causal convolution of `x` into an output that lies as `x` does, with neither bias nor state.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(x: Layout, weight: Layout) -> Self {
        // As x lies, without its gaps: channels side by side, or tokens.
        let side_by_side = |axis| x.strides.get(axis).copied() == Some(1);
        let y = match *x.shape.as_slice() {
            [batch, channels, seq] if side_by_side(1) && !side_by_side(2) => {
                Layout::new(x.dtype, [batch, seq, channels]).transposed(1, 2)
            }
            _ => Layout::new(x.dtype, x.shape.clone()),
        };
        Self {
            y,
            x,
            padding_left: weight.shape.last().map_or(0, |taps| taps.saturating_sub(1)),
            weight,
            bias: None,
            softmax: false,
            renormalise: false,
            activation: Activation::None,
            initial_state: None,
            final_state: None,
            in_place: false,
            cu_seqlens: None,
        }
    }

    /// Adds a bias to each channel.
    #[must_use]
    pub fn bias(mut self, bias: Layout) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Applies `x / (1 + exp(-x))` to the sums.
    #[must_use]
    pub fn silu(mut self) -> Self {
        self.activation = Activation::Silu;
        self
    }

    /// Sets the number of taps before a token's own place.
    #[must_use]
    pub fn padding_left(mut self, taps: u64) -> Self {
        self.padding_left = taps;
        self
    }

    /// Takes the softmax over the taps.
    #[must_use]
    pub fn softmax(mut self) -> Self {
        self.softmax = true;
        self
    }

    /// Takes the softmax over the taps inside the sequence.
    #[must_use]
    pub fn renormalised(mut self) -> Self {
        self.softmax = true;
        self.renormalise = true;
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, y: Layout) -> Self {
        self.y = y;
        self
    }

    /// Starts from this state.
    #[must_use]
    pub fn initial_state(mut self, state: Layout) -> Self {
        self.initial_state = Some(state);
        self
    }

    /// Asks for the state after the last token, in a contiguous tensor.
    #[must_use]
    pub fn with_final_state(mut self) -> Self {
        self.final_state = Some(Layout::new(self.x.dtype, self.state_shape()));
        self
    }

    /// Carries the state on from call to call in a contiguous tensor, which is read and overwritten.
    #[must_use]
    pub fn carried_state(mut self) -> Self {
        self = self.with_final_state();
        self.initial_state = self.final_state.clone();
        self.in_place = true;
        self
    }

    /// Sets where packed sequences begin and end.
    #[must_use]
    pub fn packed(mut self, cu_seqlens: Layout) -> Self {
        self.cu_seqlens = Some(cu_seqlens);
        self
    }

    /// How many taps there are.
    pub fn taps(&self) -> u64 {
        self.weight.shape.last().copied().unwrap_or(0)
    }

    /// How many rows of weights a token has.
    pub(crate) fn heads(&self) -> u64 {
        let axis = self.weight.rank().saturating_sub(2);
        self.weight.shape.get(axis).copied().unwrap_or(0)
    }

    /// Whether each token has weights of its own.
    pub(crate) fn dynamic(&self) -> bool {
        self.weight.rank() == 4
    }

    /// Batch, channels and tokens.
    pub(crate) fn sizes(&self) -> [u64; 3] {
        std::array::from_fn(|axis| self.x.shape.get(axis).copied().unwrap_or(1))
    }

    /// Batch entries, or packed sequences: how many states there are.
    pub(crate) fn sequences(&self) -> u64 {
        match &self.cu_seqlens {
            Some(cu) => cu.shape.first().map_or(1, |len| len.saturating_sub(1)),
            None => self.x.shape.first().copied().unwrap_or(0),
        }
    }

    fn state_shape(&self) -> [u64; 3] {
        let [_, channels, _] = self.sizes();
        [
            self.sequences(),
            channels,
            self.taps().saturating_sub(1).max(1),
        ]
    }

    pub(super) fn check(&self) -> Result<()> {
        for (slot, layout) in self.tensors() {
            layout.check(slot.name())?;
        }
        if self.x.rank() != 3 {
            return Err(Error::invalid(
                "x",
                format!("{} axes in shape {:?}", self.x.rank(), self.x.shape),
                "give it 3 axes, [batch, channels, seq]; [batch, seq, channels] is a transposed layout",
            ));
        }
        real("x", &self.x)?;
        if self.x.shape != self.y.shape || self.x.dtype != self.y.dtype {
            return Err(Error::invalid(
                "y",
                format!(
                    "{} {:?} where x is {} {:?}",
                    self.y.dtype, self.y.shape, self.x.dtype, self.x.shape
                ),
                "give the output the input's shape and element type",
            ));
        }
        self.y.check_output("y")?;
        self.check_weight()?;
        self.check_terms()?;
        self.check_states()
    }

    fn check_weight(&self) -> Result<()> {
        let [batch, channels, seq] = self.sizes();
        real("weight", &self.weight)?;
        let fits = match *self.weight.shape.as_slice() {
            [_, _] => true,
            [entries, tokens, _, _] => entries == batch && tokens == seq,
            _ => false,
        };
        if !fits {
            return Err(Error::invalid(
                "weight",
                format!(
                    "shape {:?} where [heads, taps] or [{batch}, {seq}, heads, taps] is expected",
                    self.weight.shape
                ),
                "leave out axes of length 1, such as the middle one of [channels, 1, taps]",
            ));
        }
        let heads = self.heads();
        if !channels.is_multiple_of(heads) {
            return Err(Error::invalid(
                "weight",
                format!("{heads} heads for {channels} channels"),
                "give a number of heads that divides the channels; as many for one row per channel",
            ));
        }
        if let Some(bias) = &self.bias
            && (bias.shape != [channels] || bias.dtype != self.weight.dtype)
        {
            return Err(Error::invalid(
                "bias",
                format!(
                    "{} {:?} where {} [{channels}] is expected",
                    bias.dtype, bias.shape, self.weight.dtype
                ),
                "give one number per channel, of the weights' element type",
            ));
        }
        Ok(())
    }

    /// What goes together and what does not.
    fn check_terms(&self) -> Result<()> {
        let taps = self.taps();
        if self.padding_left >= taps {
            return Err(Error::invalid(
                "padding_left",
                format!("{} of {taps} taps", self.padding_left),
                "give at most one less than there are taps, which is causal",
            ));
        }
        if self.renormalise && !(self.softmax && self.dynamic()) {
            return Err(Error::invalid(
                "renormalise",
                "without a softmax of weights per token",
                "leave it out, or give weights [batch, seq, heads, taps] and set softmax",
            ));
        }
        let Some(cu) = &self.cu_seqlens else {
            return Ok(());
        };
        if cu.dtype != DType::U32 || cu.rank() != 1 || self.sequences() == 0 {
            return Err(Error::invalid(
                "cu_seqlens",
                format!("{} {:?}", cu.dtype, cu.shape),
                "give u32 [sequences + 1]",
            ));
        }
        if self.sizes()[0] != 1 {
            return Err(Error::invalid(
                "cu_seqlens",
                format!("packed sequences in a batch of {}", self.sizes()[0]),
                "pack all sequences into one batch entry",
            ));
        }
        Ok(())
    }

    fn check_states(&self) -> Result<()> {
        let taps = self.taps();
        for (name, state) in [
            ("initial_state", &self.initial_state),
            ("final_state", &self.final_state),
        ] {
            let Some(state) = state else { continue };
            if taps == 1 || self.padding_left != taps - 1 {
                return Err(Error::invalid(
                    name,
                    format!(
                        "a state of {taps} taps, {} of them before a token's own place",
                        self.padding_left
                    ),
                    "leave it out: only a causal convolution of two taps or more carries one",
                ));
            }
            if state.shape != self.state_shape() || state.dtype != self.x.dtype {
                return Err(Error::invalid(
                    name,
                    format!(
                        "{} {:?} where {} {:?} is expected",
                        state.dtype,
                        state.shape,
                        self.x.dtype,
                        self.state_shape()
                    ),
                    "give it [batch or sequences, channels, taps - 1], and x's element type",
                ));
            }
        }
        if let Some(state) = &self.final_state {
            state.check_output("final_state")?;
        }
        if self.in_place && (self.initial_state.is_none() || self.initial_state != self.final_state)
        {
            return Err(Error::invalid(
                "final_state",
                "its layout differs from the initial one's, but the state is in place",
                "use one layout for both",
            ));
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![(Slot::X, &self.x), (Slot::Weight, &self.weight)];
        let initial = (self.initial_state.as_ref()).filter(|_| !self.in_place);
        for (slot, layout) in [
            (Slot::Bias, self.bias.as_ref()),
            (Slot::InitialState, initial),
            (Slot::CuSeqlens, self.cu_seqlens.as_ref()),
            (Slot::Y, Some(&self.y)),
            (Slot::FinalState, self.final_state.as_ref()),
        ] {
            list.extend(layout.map(|layout| (slot, layout)));
        }
        list
    }
}

fn real(name: &str, layout: &Layout) -> Result<()> {
    if matches!(layout.dtype, DType::F32 | DType::F16) {
        Ok(())
    } else {
        Err(Error::invalid(
            name,
            format!("elements are {}", layout.dtype),
            "give f32 or f16",
        ))
    }
}

/// The tensors of a [`ShortConv`], as far as the op has them.
#[derive(Debug, Clone)]
pub struct ShortConvArgs<'a> {
    /// Input.
    pub x: View<'a>,
    /// Weights.
    pub weight: View<'a>,
    /// Output.
    pub y: View<'a>,
    /// Bias.
    pub bias: Option<View<'a>>,
    /// Inputs before the first token; absent when the state is in place.
    pub initial_state: Option<View<'a>>,
    /// Inputs for the next call, or the state of a call in place.
    pub final_state: Option<View<'a>>,
    /// Where packed sequences begin.
    pub cu_seqlens: Option<View<'a>>,
}

impl<'a> ShortConvArgs<'a> {
    /// Tensors of an op with nothing optional.
    pub fn new(x: View<'a>, weight: View<'a>, y: View<'a>) -> Self {
        Self {
            x,
            weight,
            y,
            bias: None,
            initial_state: None,
            final_state: None,
            cu_seqlens: None,
        }
    }
}

impl<'a> From<ShortConvArgs<'a>> for Args<'a> {
    fn from(args: ShortConvArgs<'a>) -> Self {
        let mut list = vec![
            (Slot::X, args.x),
            (Slot::Weight, args.weight),
            (Slot::Y, args.y),
        ];
        for (slot, view) in [
            (Slot::Bias, args.bias),
            (Slot::InitialState, args.initial_state),
            (Slot::FinalState, args.final_state),
            (Slot::CuSeqlens, args.cu_seqlens),
        ] {
            list.extend(view.map(|view| (slot, view)));
        }
        Self(list)
    }
}
