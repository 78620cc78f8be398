//! Scans: a state per channel that takes in one token after the other.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// What a [`Scan`] carries from token to token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanRule {
    /// `h_t = exp(g_t) h_{t-1} + x_t`, and `o = h`: the gated linear recurrence of HGRN (arXiv:2311.04823); without
    /// a decay, a cumulative sum.
    Sum {
        /// `x`, f32 or f16 `[batch, heads, seq, channels]`.
        x: Layout,
        /// `g`, natural logarithms of the factors, of the same shape; f32, or `x`'s element type. 0 or less where the
        /// state must not grow; below -87 (minus infinity too) the factor is exactly 0.
        #[serde(default)]
        decay: Option<Layout>,
    },
    /// `z_t = log(exp(z_{t-1}) + exp(x_t))`, and `o = z`, by way of the largest `x` so far.
    LogSumExp {
        /// `x`, f32 or f16 `[batch, heads, seq, channels]`.
        x: Layout,
        /// `z_{t-1} - z_t` of each token, of `x`'s shape, when wanted: the decay of a sum of `exp(x_t - z_t)`, as
        /// attention with bounded memory has it (ABC, arXiv:2110.02488). 0 for a token before which there is
        /// nothing. f32, or `x`'s element type.
        #[serde(default)]
        log_decay: Option<Layout>,
        /// `exp(x_t - z_t)` of each token, of `x`'s shape and element type, when wanted.
        #[serde(default)]
        weights: Option<Layout>,
    },
    /// Softmax attention with a score per key and no more, as a recurrence over `(m, u, w)`: the largest score so
    /// far, and the sums of `exp(s - m)` and of `exp(s - m) v`; `o = w / u`. Aaren (arXiv:2405.13956), and AFT-simple
    /// (arXiv:2105.14103) with its `q` as [`Scan::gate`].
    Softmax {
        /// `s`.
        scores: Scores,
        /// `v`, f32 or f16 `[batch, heads, seq, channels]`.
        v: Layout,
        /// What each weight is divided by.
        #[serde(default)]
        denominator: Denominator,
    },
}

/// Where a [`ScanRule::Softmax`] has its scores from. A score of minus infinity hides its token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// A tensor of the values' shape and element type: one per channel.
    Channel(Layout),
    /// A tensor of the values' element type, `[batch, heads, seq]`: one for all channels of a head.
    Head(Layout),
    /// `scale q . k`, of one query per head.
    Query {
        /// Queries, `[heads, dim]`, of the values' element type.
        q: Layout,
        /// Keys, `[batch, heads, seq, dim]`, of the values' element type.
        k: Layout,
        /// Factor on the product; 1 when absent.
        #[serde(default)]
        scale: Option<Real>,
    },
}

/// What the weights of a [`ScanRule::Softmax`] are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Denominator {
    /// The sum over the tokens up to the output's: `o_i = Σ_{j<=i} exp(s_j) v_j / Σ_{j<=i} exp(s_j)`.
    #[default]
    Prefix,
    /// The sum over the tokens up to the value's: `o_i = Σ_{j<=i} (exp(s_j) / Σ_{l<=j} exp(s_l)) v_j`, which some
    /// code has for AFT-simple. `w` is that sum.
    Step,
    /// The sum over all tokens, and so the output: every token gets the same, but for its gate. The output may have
    /// another length than the values, where sequences are not packed.
    All,
}

/// A scan along the sequence, each channel for itself. Time does not depend on what is carried, and calls may carry
/// it on.
///
/// All tensors may leave out the axis of heads, `[batch, seq, channels]`.
///
/// # States
///
/// f32. For [`ScanRule::Sum`] `h` and for [`ScanRule::LogSumExp`] `z`, `[batch, heads, channels]`. For
/// [`ScanRule::Softmax`] with scores per channel `m`, `u`, `w`, `[batch, heads, 3, channels]`; with scores per head
/// `m`, `u`, and `w` of every channel, `[batch, heads, 2 + channels]`. Before any visible token `z` and `m` are minus
/// infinity, and `u` and `w` are 0. Batch counts sequences where they are packed.
///
/// # Numbers
///
/// Sums, products and exponentials are f32 whatever the storage. Inputs must be finite, but for a decay or a score
/// of minus infinity. Scores may be of any size below 1e38. A number that is not finite stays within its channel, and
/// its sequence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scan {
    /// What is carried, and its inputs.
    pub rule: ScanRule,
    /// Output, of the input's shape and element type, when wanted.
    #[serde(default)]
    pub o: Option<Layout>,
    /// Factors on the output, of its shape and element type: `sigmoid(gate) o`. Not for
    /// [`ScanRule::LogSumExp`].
    #[serde(default)]
    pub gate: Option<Layout>,
    /// The state after every token, for [`ScanRule::Softmax`]: f32, as states are, with an axis of tokens after that
    /// of heads. Not with [`Denominator::All`].
    #[serde(default)]
    pub states: Option<Layout>,
    /// State before the first token; nothing when absent.
    #[serde(default)]
    pub initial_state: Option<Layout>,
    /// State after the last token, when wanted.
    #[serde(default)]
    pub final_state: Option<Layout>,
    /// Whether the final state takes the place of the initial one: one buffer and one layout for both.
    #[serde(default)]
    pub in_place: bool,
    /// Packed sequences: where each begins and, last, where the last one ends, u32 `[sequences + 1]`, rising from 0.
    /// Needs a batch of 1. Each sequence has a state of its own. Outputs of tokens past the last end are 0.
    #[serde(default)]
    pub cu_seqlens: Option<Layout>,
}

/// Lengths of a scan's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScanSizes {
    pub batch: u64,
    pub heads: u64,
    pub seq: u64,
    pub channels: u64,
}

/// Strides of a scan's tensor along each axis, 0 where it has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ScanStrides {
    pub batch: u64,
    pub head: u64,
    pub token: u64,
    /// From `m` to `u`, and from there to (the first) `w`.
    pub part: u64,
    pub channel: u64,
}

impl Scan {
    fn with(rule: ScanRule) -> Self {
        let mut scan = Self {
            rule,
            o: None,
            gate: None,
            states: None,
            initial_state: None,
            final_state: None,
            in_place: false,
            cu_seqlens: None,
        };
        let input = scan.input();
        scan.o = Some(Layout::new(input.dtype, input.shape.clone()));
        scan
    }

    /// The cumulative sum of `x` along the sequence.
    ///
    /// Shapes are checked when the op is planned, so this and its sisters take any. All of them give a contiguous
    /// output.
    pub fn sum(x: Layout) -> Self {
        Self::with(ScanRule::Sum { x, decay: None })
    }

    /// `h_t = exp(g_t) h_{t-1} + x_t`.
    pub fn decayed_sum(x: Layout, g: Layout) -> Self {
        let decay = Some(g);
        Self::with(ScanRule::Sum { x, decay })
    }

    /// The logarithm of the cumulative sum of `exp(x)`.
    pub fn log_sum_exp(x: Layout) -> Self {
        Self::with(ScanRule::LogSumExp {
            x,
            log_decay: None,
            weights: None,
        })
    }

    /// Softmax attention with these scores over the tokens so far.
    pub fn softmax(scores: Scores, v: Layout) -> Self {
        Self::with(ScanRule::Softmax {
            scores,
            v,
            denominator: Denominator::Prefix,
        })
    }

    /// Asks for the decays and weights of a running log-sum-exp, contiguous; other rules have none.
    #[must_use]
    pub fn with_weights(mut self) -> Self {
        if let ScanRule::LogSumExp {
            x,
            log_decay,
            weights,
        } = &mut self.rule
        {
            let layout = Layout::new(x.dtype, x.shape.clone());
            *log_decay = Some(layout.clone());
            *weights = Some(layout);
        }
        self
    }

    /// Sets what the weights of a softmax are divided by; other rules have none.
    #[must_use]
    pub fn denominator(mut self, chosen: Denominator) -> Self {
        if let ScanRule::Softmax { denominator, .. } = &mut self.rule {
            *denominator = chosen;
        }
        self
    }

    /// Writes to this layout.
    #[must_use]
    pub fn output(mut self, o: Layout) -> Self {
        self.o = Some(o);
        self
    }

    /// Wants no output, only states, decays or weights.
    #[must_use]
    pub fn without_output(mut self) -> Self {
        self.o = None;
        self
    }

    /// Multiplies the output by the sigmoid of this.
    #[must_use]
    pub fn gate(mut self, gate: Layout) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Asks for the state after every token, contiguous.
    #[must_use]
    pub fn with_states(mut self) -> Self {
        let sizes = self.sizes();
        let mut shape = vec![sizes.batch];
        if self.has_heads() {
            shape.push(sizes.heads);
        }
        shape.push(sizes.seq);
        shape.extend(self.state_tail());
        self.states = Some(Layout::f32(shape));
        self
    }

    /// Starts from a state, and leaves the last one elsewhere; either may be absent.
    #[must_use]
    pub fn carried(mut self, initial: Option<Layout>, last: Option<Layout>) -> Self {
        self.initial_state = initial;
        self.final_state = last;
        self.in_place = false;
        self
    }

    /// Starts from a state, and leaves the last one in its place.
    #[must_use]
    pub fn carried_in_place(mut self, state: Layout) -> Self {
        self.initial_state = Some(state.clone());
        self.final_state = Some(state);
        self.in_place = true;
        self
    }

    /// Packs several sequences into the one batch entry.
    #[must_use]
    pub fn packed(mut self, cu_seqlens: Layout) -> Self {
        self.cu_seqlens = Some(cu_seqlens);
        self
    }

    /// The shape of states: [`Layout::f32`] of it is one.
    pub fn state_shape(&self) -> Vec<u64> {
        let mut shape = vec![self.sequences()];
        if self.has_heads() {
            shape.push(self.sizes().heads);
        }
        shape.extend(self.state_tail());
        shape
    }

    fn state_tail(&self) -> Vec<u64> {
        let channels = self.sizes().channels;
        match &self.rule {
            ScanRule::Sum { .. } | ScanRule::LogSumExp { .. } => vec![channels],
            ScanRule::Softmax {
                scores: Scores::Channel(_),
                ..
            } => vec![3, channels],
            ScanRule::Softmax { .. } => vec![channels.saturating_add(2)],
        }
    }

    /// Batch entries, or packed sequences.
    pub(crate) fn sequences(&self) -> u64 {
        match &self.cu_seqlens {
            Some(cu) => cu.shape.first().map_or(1, |len| len.saturating_sub(1)),
            None => self.sizes().batch,
        }
    }

    /// The tensor that has all axes.
    pub(crate) fn input(&self) -> &Layout {
        match &self.rule {
            ScanRule::Sum { x, .. } | ScanRule::LogSumExp { x, .. } => x,
            ScanRule::Softmax { v, .. } => v,
        }
    }

    fn has_heads(&self) -> bool {
        self.input().rank() != 3
    }

    /// Lengths of the axes of the input.
    pub(crate) fn sizes(&self) -> ScanSizes {
        let strides_or_lens = |lens: &[u64]| self.axes(lens);
        let [batch, heads, seq, channels] = strides_or_lens(&self.input().shape).map(|n| n.max(1));
        ScanSizes {
            batch,
            heads,
            seq,
            channels,
        }
    }

    /// Numbers of axes, with 0 for the heads where they are left out.
    fn axes(&self, numbers: &[u64]) -> [u64; 4] {
        let at = |axis: usize| numbers.get(axis).copied().unwrap_or(0);
        if self.has_heads() {
            [at(0), at(1), at(2), at(3)]
        } else {
            [at(0), 0, at(1), at(2)]
        }
    }

    /// Tokens of the output.
    pub(crate) fn output_len(&self) -> u64 {
        match (&self.o, self.reaches_all()) {
            (Some(o), true) => self.axes(&o.shape)[2],
            _ => self.sizes().seq,
        }
    }

    pub(crate) fn reaches_all(&self) -> bool {
        matches!(
            self.rule,
            ScanRule::Softmax {
                denominator: Denominator::All,
                ..
            }
        )
    }

    /// Whether the channels of a head share their scores.
    pub(crate) fn per_head(&self) -> bool {
        matches!(
            self.rule,
            ScanRule::Softmax {
                scores: Scores::Head(_) | Scores::Query { .. },
                ..
            }
        )
    }

    /// Where the elements of a tensor lie.
    pub(crate) fn strides(&self, slot: Slot, layout: &Layout) -> ScanStrides {
        let lead = usize::from(self.has_heads());
        let at = |axis: usize| layout.strides.get(axis).copied().unwrap_or(0);
        let head = if lead == 1 { at(1) } else { 0 };
        match slot {
            Slot::InitialState | Slot::FinalState | Slot::States => {
                let tokens = usize::from(slot == Slot::States);
                let first = 1 + lead + tokens;
                let (part, channel) = match &self.rule {
                    ScanRule::Softmax { .. } if self.per_head() => (at(first), at(first)),
                    ScanRule::Softmax { .. } => (at(first), at(first + 1)),
                    _ => (0, at(first)),
                };
                ScanStrides {
                    batch: at(0),
                    head,
                    token: if tokens == 1 { at(1 + lead) } else { 0 },
                    part,
                    channel,
                }
            }
            Slot::Q => ScanStrides {
                head: if lead == 1 { at(0) } else { 0 },
                channel: at(lead),
                ..ScanStrides::default()
            },
            Slot::CuSeqlens => ScanStrides {
                batch: at(0),
                ..ScanStrides::default()
            },
            _ => {
                let [batch, head, token, channel] = self.axes(&layout.strides);
                ScanStrides {
                    batch,
                    head,
                    token,
                    part: 0,
                    channel,
                }
            }
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let input = self.input();
        if !(3..=4).contains(&input.rank()) {
            let slot = if matches!(self.rule, ScanRule::Softmax { .. }) {
                Slot::V
            } else {
                Slot::X
            };
            return Err(Error::invalid(
                slot.name(),
                format!("{} axes in shape {:?}", input.rank(), input.shape),
                "give it [batch, heads, seq, channels], or [batch, seq, channels]",
            ));
        }
        self.check_terms()?;
        for (slot, layout) in self.tensors() {
            layout.check(slot.name())?;
            self.check_type(slot, layout)?;
            self.check_shape(slot, layout)?;
            if slot.is_output() {
                layout.check_output(slot.name())?;
            }
        }
        if self.in_place && self.initial_state != self.final_state {
            return Err(Error::invalid(
                "final_state",
                "its layout differs from the initial one's, but the call is in place",
                "use one layout for both",
            ));
        }
        if let ScanRule::Softmax {
            scores:
                Scores::Query {
                    scale: Some(Real(scale)),
                    ..
                },
            ..
        } = self.rule
            && !scale.is_finite()
        {
            return Err(Error::invalid(
                "scale",
                format!("{scale} is not finite"),
                "give a finite number",
            ));
        }
        Ok(())
    }

    /// What goes together and what does not.
    fn check_terms(&self) -> Result<()> {
        let softmax = matches!(self.rule, ScanRule::Softmax { .. });
        if !self.tensors().iter().any(|(slot, _)| slot.is_output()) {
            return Err(Error::invalid(
                "o",
                "is absent, and so is every other output",
                "ask for the output, or for a final state",
            ));
        }
        if self.gate.is_some() && self.o.is_none() {
            return Err(Error::invalid(
                "gate",
                "factors on an output that is not wanted",
                "ask for the output, or leave the gate out",
            ));
        }
        if self.gate.is_some() && matches!(self.rule, ScanRule::LogSumExp { .. }) {
            return Err(Error::invalid(
                "gate",
                "factors on a log-sum-exp",
                "leave it out",
            ));
        }
        if self.states.is_some() && (!softmax || self.reaches_all()) {
            return Err(Error::invalid(
                "states",
                if softmax {
                    "the state after every token, where all tokens have one"
                } else {
                    "the output of this rule is the state after every token"
                },
                "leave it out",
            ));
        }
        if let Some(cu) = &self.cu_seqlens {
            if cu.rank() != 1 || !(2..=u32::MAX.into()).contains(&cu.shape[0]) {
                return Err(Error::invalid(
                    "cu_seqlens",
                    format!("shape {:?}", cu.shape),
                    "give [sequences + 1] numbers, of fewer than 2^32 sequences",
                ));
            }
            if self.sizes().batch != 1 {
                return Err(Error::invalid(
                    "cu_seqlens",
                    "packed sequences in a batch",
                    "pack all sequences into one batch entry",
                ));
            }
            if self.output_len() != self.sizes().seq {
                return Err(Error::invalid(
                    "cu_seqlens",
                    "an output of another length than the values, and one list says where both begin",
                    "call once per sequence",
                ));
            }
        }
        Ok(())
    }

    fn check_type(&self, slot: Slot, layout: &Layout) -> Result<()> {
        let dtype = layout.dtype;
        let main = self.input().dtype;
        let (good, want) = match slot {
            Slot::CuSeqlens => (dtype == DType::U32, "u32".to_owned()),
            Slot::InitialState | Slot::FinalState | Slot::States => {
                (dtype == DType::F32, "f32".to_owned())
            }
            Slot::Decay | Slot::LogDecay => (
                dtype == DType::F32 || dtype == main,
                format!("f32, or {main} as the input has"),
            ),
            _ if !matches!(main, DType::F32 | DType::F16) => (false, "f32 or f16".to_owned()),
            _ => (dtype == main, format!("{main} as the input has")),
        };
        if good {
            Ok(())
        } else {
            Err(Error::invalid(
                slot.name(),
                format!("elements are {dtype}"),
                format!("give {want}"),
            ))
        }
    }

    fn check_shape(&self, slot: Slot, layout: &Layout) -> Result<()> {
        let sizes = self.sizes();
        let with_heads = |heads: u64, rest: &[u64]| {
            let mut shape = vec![sizes.batch];
            if self.has_heads() {
                shape.push(heads);
            }
            shape.extend(rest);
            shape
        };
        let want = match slot {
            Slot::InitialState | Slot::FinalState => self.state_shape(),
            Slot::States => {
                let mut tail = vec![sizes.seq];
                tail.extend(self.state_tail());
                with_heads(sizes.heads, &tail)
            }
            Slot::CuSeqlens => return Ok(()),
            Slot::X if self.per_head() => with_heads(sizes.heads, &[sizes.seq]),
            Slot::O | Slot::Gate => with_heads(sizes.heads, &[self.output_len(), sizes.channels]),
            Slot::Q | Slot::K => {
                let dim = layout.shape.last().copied().unwrap_or(1);
                match (slot, self.key_dim()) {
                    (Slot::Q, _) if self.has_heads() => vec![sizes.heads, dim],
                    (Slot::Q, _) => vec![dim],
                    (_, key_dim) => with_heads(sizes.heads, &[sizes.seq, key_dim]),
                }
            }
            _ => with_heads(sizes.heads, &[sizes.seq, sizes.channels]),
        };
        if layout.shape == want {
            Ok(())
        } else {
            Err(Error::invalid(
                slot.name(),
                format!("shape {:?} where {want:?} is expected", layout.shape),
                "make it agree with the input, as the docs of Scan list the axes",
            ))
        }
    }

    /// Dims of the query, where there is one.
    pub(crate) fn key_dim(&self) -> u64 {
        match &self.rule {
            ScanRule::Softmax {
                scores: Scores::Query { q, .. },
                ..
            } => q.shape.last().copied().unwrap_or(1),
            _ => 0,
        }
    }

    pub(crate) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = Vec::new();
        match &self.rule {
            ScanRule::Sum { x, decay } => {
                list.push((Slot::X, x));
                list.extend(decay.as_ref().map(|layout| (Slot::Decay, layout)));
            }
            ScanRule::LogSumExp {
                x,
                log_decay,
                weights,
            } => {
                list.push((Slot::X, x));
                list.extend(log_decay.as_ref().map(|layout| (Slot::LogDecay, layout)));
                list.extend(weights.as_ref().map(|layout| (Slot::Weights, layout)));
            }
            ScanRule::Softmax { scores, v, .. } => {
                match scores {
                    Scores::Channel(x) | Scores::Head(x) => list.push((Slot::X, x)),
                    Scores::Query { q, k, .. } => list.extend([(Slot::Q, q), (Slot::K, k)]),
                }
                list.push((Slot::V, v));
            }
        }
        let initial = if self.in_place {
            None
        } else {
            self.initial_state.as_ref()
        };
        for (slot, layout) in [
            (Slot::O, self.o.as_ref()),
            (Slot::Gate, self.gate.as_ref()),
            (Slot::States, self.states.as_ref()),
            (Slot::InitialState, initial),
            (Slot::FinalState, self.final_state.as_ref()),
            (Slot::CuSeqlens, self.cu_seqlens.as_ref()),
        ] {
            list.extend(layout.map(|layout| (slot, layout)));
        }
        list
    }
}

/// The tensors of a [`Scan`], as far as the op has them.
#[derive(Debug, Clone, Default)]
pub struct ScanArgs<'a> {
    /// What is summed up, or the scores.
    pub x: Option<View<'a>>,
    /// Decays of a sum.
    pub decay: Option<View<'a>>,
    /// Queries, one per head.
    pub q: Option<View<'a>>,
    /// Keys.
    pub k: Option<View<'a>>,
    /// Values.
    pub v: Option<View<'a>>,
    /// Output.
    pub o: Option<View<'a>>,
    /// Factors on the output.
    pub gate: Option<View<'a>>,
    /// Decays of a log-sum-exp.
    pub log_decay: Option<View<'a>>,
    /// Weights of a log-sum-exp.
    pub weights: Option<View<'a>>,
    /// The state after every token.
    pub states: Option<View<'a>>,
    /// State before the first token; absent when the call is in place.
    pub initial_state: Option<View<'a>>,
    /// State after the last token, or the one of a call in place.
    pub final_state: Option<View<'a>>,
    /// Where packed sequences begin.
    pub cu_seqlens: Option<View<'a>>,
}

impl<'a> From<ScanArgs<'a>> for Args<'a> {
    fn from(args: ScanArgs<'a>) -> Self {
        let all = [
            (Slot::X, args.x),
            (Slot::Decay, args.decay),
            (Slot::Q, args.q),
            (Slot::K, args.k),
            (Slot::V, args.v),
            (Slot::O, args.o),
            (Slot::Gate, args.gate),
            (Slot::LogDecay, args.log_decay),
            (Slot::Weights, args.weights),
            (Slot::States, args.states),
            (Slot::InitialState, args.initial_state),
            (Slot::FinalState, args.final_state),
            (Slot::CuSeqlens, args.cu_seqlens),
        ];
        let given = all.into_iter();
        Self(
            given
                .filter_map(|(slot, view)| view.map(|view| (slot, view)))
                .collect(),
        )
    }
}
