//! Linear attention by all pairs of query and key, and attention inside groups: which slices.

use super::super::{
    Outline, Range, Schedule, Step, grid, layout_places,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Feature,
        linear_attention_quadratic::{Divisor, Fading, Pair, Params, STATE, Sight, TILE, Variant},
    },
    ops::{
        Decay, FeatureMap, Guard, LinearAttention, Local, LocalWeights, Reach, Real, Similarity,
        Slot, UpdateRule, dims,
    },
    tensor::{DType, Layout},
};

// The iteration space: batch entries, queries, tokens of keys.
const BATCH: usize = 0;
const ROW: usize = 1;
const TOKEN: usize = 2;
const AXES: usize = 3;

/// Positions are compared as 32-bit numbers.
const MAX_POSITIONS: u64 = 1 << 29;

pub(super) fn outline(op: &LinearAttention, caps: &Caps, why: &str) -> Result<Outline> {
    covers(op)?;
    let form = Form::linear(op, caps)?;
    let (steps, scratch_bytes) = form.steps()?;
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Quadratic,
        why: why.into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes,
    })
}

/// Adds the attention inside groups, where an op has it, after what computes the linear one.
pub(super) fn add_local(op: &LinearAttention, caps: &Caps, outline: &mut Outline) -> Result<()> {
    if let Some(local) = &op.local {
        let (steps, scratch_bytes) = Form::local(op, local, caps).steps()?;
        outline.steps.extend(steps);
        // What the steps before have left in scratch is of no more use.
        outline.scratch_bytes = outline.scratch_bytes.max(scratch_bytes);
    }
    Ok(())
}

/// Whether pairs say what an op computes.
fn covers(op: &LinearAttention) -> Result<()> {
    let fail = |what: &str, reason: &str| {
        Err(Error::unsupported(
            format!("{what} in the quadratic schedule"),
            reason,
            "leave the schedule open",
        ))
    };
    if op.rule != UpdateRule::Linear {
        return fail("another rule than Linear", "it is no sum over pairs");
    }
    if op.initial_state.is_some() || op.final_state.is_some() {
        return fail("a state", "there is none");
    }
    if matches!(op.decay, Decay::Key(_) | Decay::Value(_)) {
        return fail("a decay per channel", "a pair has one factor");
    }
    if op.bonus.is_some() && op.feature_k == FeatureMap::Softmax {
        return fail(
            "a bonus with keys mapped by a softmax",
            "the own key's maximum and sum are not known there",
        );
    }
    if op.normaliser.is_some_and(|normaliser| normaliser.safe)
        && matches!(op.feature_q, FeatureMap::Exp { .. })
    {
        return fail(
            "a safe normaliser with queries mapped by an exponential",
            "queries keep their largest exponent there",
        );
    }
    Ok(())
}

/// One of the sums over pairs that an op is made of.
struct Form<'a> {
    op: &'a LinearAttention,
    caps: &'a Caps,
    variant: Variant,
    q: (Slot, &'a Layout),
    k: (Slot, &'a Layout),
    bias: Option<Layout>,
    params: Params,
}

impl<'a> Form<'a> {
    fn linear(op: &'a LinearAttention, caps: &'a Caps) -> Result<Self> {
        let (pair, length) = match op.similarity {
            Similarity::Product => (Pair::Product, 0),
            Similarity::Taylor => (Pair::Taylor, 0),
            Similarity::Square => (Pair::Square, 0),
            Similarity::Cosine { length } => (Pair::Cosine, length),
        };
        let (sight, reach) = match op.reach {
            Reach::Causal => (Sight::Causal, 0),
            Reach::Before => (Sight::Before, 0),
            Reach::BeforeBucket { tokens } => (Sight::Bucket, tokens),
            Reach::All => (Sight::All, 0),
        };
        let variant = Variant {
            pair,
            sight,
            fading: match &op.decay {
                Decay::Head(_) => Fading::Head,
                Decay::Token(layout) => Fading::Token {
                    f16: layout.dtype == DType::F16,
                },
                _ => Fading::None,
            },
            feature_q: op.feature_q.into(),
            feature_k: op.feature_k.into(),
            softmax_q: op.feature_q == FeatureMap::Softmax,
            softmax_k: op.feature_k == FeatureMap::Softmax,
            safe: op.normaliser.is_some_and(|normaliser| normaliser.safe),
            divisor: op.normaliser.map(|normaliser| match normaliser.guard {
                Guard::Add => Divisor::Add,
                Guard::AtLeast => Divisor::AtLeast,
                Guard::Keys => Divisor::Keys,
            }),
            bonus: op.bonus.is_some(),
            ..shared(op)
        };
        let params = Params {
            reach: small(reach.min(MAX_POSITIONS)),
            length: small(length),
            scale: op.effective_scale(),
            factor_q: Feature::factor(op.feature_q),
            factor_k: Feature::factor(op.feature_k),
            eps: op.normaliser.map_or(0.0, |normaliser| normaliser.eps.0),
            ..Params::default()
        };
        Ok(Self {
            op,
            caps,
            variant,
            q: (Slot::Q, &op.q),
            k: (Slot::K, &op.k),
            bias: None,
            params,
        })
    }

    fn local(op: &'a LinearAttention, local: &'a Local, caps: &'a Caps) -> Self {
        let softmax = local.weights == LocalWeights::Softmax;
        let variant = Variant {
            pair: match local.weights {
                LocalWeights::Softmax => Pair::Softmax,
                LocalWeights::SquaredRelu => Pair::SquaredRelu,
                LocalWeights::Laplace => Pair::Laplace,
            },
            sight: match op.reach {
                Reach::All => Sight::Group,
                _ => Sight::GroupCausal,
            },
            divisor: softmax.then_some(Divisor::Add),
            local: true,
            own_q: local.q.is_some(),
            own_k: local.k.is_some(),
            bias: local.bias.is_some(),
            ..shared(op)
        };
        let q = match &local.q {
            Some(q) => (Slot::LocalQ, q),
            None => (Slot::Q, &op.q),
        };
        let k = match &local.k {
            Some(k) => (Slot::LocalK, k),
            None => (Slot::K, &op.k),
        };
        let [Real(mix_o), Real(mix_local)] = local.mix;
        let params = Params {
            reach: small(local.tokens.min(MAX_POSITIONS)),
            scale: match local.scale {
                Some(Real(scale)) => scale,
                None => 1.0 / (dims(q.1)[3] as f32).sqrt(),
            },
            factor_q: 1.0,
            factor_k: 1.0,
            mix_o,
            mix_local,
            ..Params::default()
        };
        // One head's bias may serve all.
        let bias = local.bias.clone().map(|mut bias| {
            if bias.shape.first() == Some(&1) {
                bias.shape[0] = dims(&op.o)[1];
                bias.strides[0] = 0;
            }
            bias
        });
        Self {
            op,
            caps,
            variant,
            q,
            k,
            bias,
            params,
        }
    }

    /// What is read, of one head of the output or of all, over the iteration space.
    fn operands(&self, head: Option<u64>) -> Vec<(Slot, Operand<AXES>)> {
        let op = self.op;
        let updates = op.updates_per_token;
        let heads = dims(&op.o)[1];
        let mut operands = Vec::new();
        // The axes of the space, the tensor's axis of heads, and its axes within a point.
        let mut add = |slot: Slot,
                       layout: &Layout,
                       axes: [u64; AXES],
                       of_heads: Option<usize>,
                       inner: &[(u64, u64)]| {
            let mut operand = Operand::new(slot.name(), layout, axes, 1);
            let within = inner.iter().map(|(stride, len)| stride * (len - 1));
            operand.inner += within.sum::<u64>();
            if let Some(axis) = of_heads {
                let (stride, own) = (layout.strides[axis], layout.shape[axis]);
                match head {
                    Some(head) => operand.offset += head / (heads / own) * stride,
                    None => operand.inner += (own - 1) * stride,
                }
            }
            operands.push((slot, operand));
        };
        let strides = |layout: &Layout| -> [u64; 4] {
            std::array::from_fn(|axis| layout.strides.get(axis).copied().unwrap_or(0))
        };
        for (slot, layout) in [self.q, (Slot::O, &op.o)] {
            let [b, _, m, d] = strides(layout);
            add(slot, layout, [b, m, 0], Some(1), &[(d, dims(layout)[3])]);
        }
        for (slot, layout) in [self.k, (Slot::V, &op.v)] {
            let [b, _, n, d] = strides(layout);
            let inner = [(d, dims(layout)[3]), (n, updates)];
            add(slot, layout, [b, 0, n * updates], Some(1), &inner);
        }
        match &op.decay {
            _ if self.variant.local => {}
            Decay::Head(layout) => add(Slot::Decay, layout, [0; AXES], Some(0), &[]),
            Decay::Token(layout) => {
                let [b, _, t, _] = strides(layout);
                add(Slot::Decay, layout, [b, 0, t], Some(1), &[]);
            }
            _ => {}
        }
        if let Some(bonus) = op.bonus.as_ref().filter(|_| self.variant.bonus) {
            let inner = [(strides(bonus)[1], bonus.shape[1])];
            add(Slot::Bonus, bonus, [0; AXES], Some(0), &inner);
        }
        if let Some(bias) = &self.bias {
            let [_, m, n, _] = strides(bias);
            let tokens = bias.shape[1];
            add(
                Slot::Bias,
                bias,
                [0; AXES],
                Some(0),
                &[(m, tokens), (n, tokens)],
            );
        }
        if let Some(lens) = &op.kv_len {
            add(Slot::KvLen, lens, [strides(lens)[0], 0, 0], None, &[]);
        }
        if let Some(starts) = &op.cu_seqlens {
            let inner = [(strides(starts)[0], starts.shape[0])];
            add(Slot::CuSeqlens, starts, [0; AXES], None, &inner);
        }
        operands
    }

    /// The dispatches, and the bytes of scratch that they share.
    fn steps(mut self) -> Result<(Vec<Step>, u64)> {
        let op = self.op;
        let caps = self.caps;
        let [batch, heads, rows, value_dim] = dims(&op.o);
        let keys = dims(self.k.1)[2];
        let tokens = keys / op.updates_per_token;
        for (name, len) in [("q", rows), ("k", keys)] {
            if len > MAX_POSITIONS {
                return Err(Error::unsupported(
                    format!("{name} with {len} tokens"),
                    format!("positions are counted up to {MAX_POSITIONS}"),
                    "split the sequence",
                ));
            }
        }
        if let Err(reason) = crate::kernels::Variant::supports(&self.variant, caps) {
            return Err(Error::unsupported(
                format!("linear attention by pairs, of {}", op.q.dtype),
                reason,
                "create the device with these features and limits, or store the tensors as f32",
            ));
        }
        let lens = [batch, rows, tokens];
        let alignment = u64::from(caps.storage_alignment);
        let limit = caps.max_binding_bytes;
        // All heads at once where each tensor fits one binding, else one after the other.
        let whole = Part {
            start: [0; AXES],
            len: lens,
        };
        let fits = |(_, operand): &(Slot, Operand<AXES>)| {
            operand.window(&whole, alignment).size + alignment <= limit
        };
        let groups: Vec<Option<u64>> = if self.operands(None).iter().all(fits) {
            vec![None]
        } else {
            (0..heads).map(Some).collect()
        };
        let at_once = if groups == [None] { heads } else { 1 };
        let list: Vec<Operand<AXES>> = (self.operands(groups[0]).into_iter())
            .map(|(_, operand)| operand)
            .collect();
        let mut part = slice::fit(lens, &list, limit, alignment)?;
        let most = self.most_tokens()?;
        if part[TOKEN] > most {
            part[TOKEN] = tokens.div_ceil(tokens.div_ceil(most));
        }
        self.variant.scratch = part[TOKEN] < tokens;
        let region = |part: &[u64; AXES]| {
            (part[BATCH] * at_once * part[ROW]).saturating_mul((value_dim + STATE) * 4)
        };
        let side = u64::from(caps.max_workgroups);
        let workgroups = side.saturating_mul(side).min(u32::MAX.into());
        loop {
            let tiles = part[BATCH] * at_once * part[ROW].div_ceil(TILE.into());
            if tiles <= workgroups && (!self.variant.scratch || region(&part) <= limit) {
                break;
            }
            match [ROW, BATCH].into_iter().find(|&axis| part[axis] > 1) {
                Some(axis) => part[axis] = part[axis].div_ceil(2),
                None => break,
            }
        }
        let ways = groups.len() as u64;
        slice::check_count([batch * ways, rows, tokens], part, limit)?;

        let mut steps = Vec::new();
        for head in groups {
            let operands = self.operands(head);
            for rows in slice::parts(whole, part, &[BATCH, ROW]) {
                let mut ranges = slice::parts(rows, part, &[TOKEN]);
                ranges.reverse();
                let count = ranges.len();
                for (number, piece) in ranges.into_iter().enumerate() {
                    let ends = [number == 0, number + 1 == count];
                    let mut step = self.step(&piece, &operands, at_once, ends)?;
                    if self.variant.scratch {
                        step.ranges.push(Range {
                            slot: Slot::Scratch,
                            offset: 0,
                            size: region(&rows.len),
                        });
                    }
                    steps.push(step);
                }
            }
        }
        let scratch = if self.variant.scratch {
            region(&part)
        } else {
            0
        };
        Ok((steps, scratch))
    }

    /// The most tokens of keys that a dispatch may loop over.
    fn most_tokens(&self) -> Result<u64> {
        let op = self.op;
        let sequences = op.cu_seqlens.as_ref().map_or(1, |starts| dims(starts)[0]);
        let key_dim = dims(self.q.1)[3];
        let (once, each) = self.variant.iterations(key_dim, sequences);
        let budget = u64::from(self.caps.loop_budget).saturating_sub(once);
        let tile = u64::from(TILE);
        let keys = (budget / each).saturating_sub(1) * tile;
        let most = keys / op.updates_per_token;
        if most == 0 {
            return Err(Error::unsupported(
                "linear attention by pairs",
                format!(
                    "a kernel may loop {} times on this device, fewer than one tile takes",
                    self.caps.loop_budget
                ),
                "measure the device (Engine::measure), or use fewer updates per token or sequences",
            ));
        }
        // A tile of queries in groups visits no more than the groups that they lie in.
        let visited = u64::from(self.params.reach) * 2 + tile;
        if self.variant.local && visited <= keys {
            return Ok(u64::MAX);
        }
        Ok(most)
    }

    fn step(
        &self,
        part: &Part<AXES>,
        operands: &[(Slot, Operand<AXES>)],
        heads: u64,
        [first, last]: [bool; 2],
    ) -> Result<Step> {
        let op = self.op;
        let share = |layout: &Layout| small((dims(&op.o)[1] / dims(layout)[1]).max(1));
        let tiles = part.len[BATCH] * heads * part.len[ROW].div_ceil(TILE.into());
        let updates = op.updates_per_token;
        let mut params = Params {
            tiles: small(tiles),
            heads: small(heads),
            rows: small(part.len[ROW]),
            keys: small(part.len[TOKEN] * updates),
            row_start: small(part.start[ROW]),
            key_start: small(part.start[TOKEN] * updates),
            tokens: small(dims(self.k.1)[2] / updates),
            updates: small(updates),
            key_dim: small(dims(self.q.1)[3]),
            value_dim: small(dims(&op.v)[3]),
            q_share: share(&op.q),
            k_share: share(&op.k),
            v_share: share(&op.v),
            first: first.into(),
            last: last.into(),
            sequences: (op.cu_seqlens.as_ref())
                .map_or(0, |starts| small(dims(starts)[0].saturating_sub(1))),
            ..self.params
        };
        self.strides(&mut params);
        let alignment = u64::from(self.caps.storage_alignment);
        let mut ranges = Vec::new();
        for (slot, operand) in operands {
            let window = operand.window(part, alignment);
            let at = match slot {
                Slot::Q | Slot::LocalQ => &mut params.q_at,
                Slot::K | Slot::LocalK => &mut params.k_at,
                Slot::V => &mut params.v_at,
                Slot::Decay => &mut params.decay_at,
                Slot::Bonus => &mut params.bonus_at,
                Slot::Bias => &mut params.bias_at,
                Slot::KvLen => &mut params.kv_len_at,
                Slot::CuSeqlens => &mut params.cu_seqlens_at,
                _ => &mut params.o_at,
            };
            *at = window.first;
            ranges.push(Range {
                slot: *slot,
                offset: window.offset,
                size: window.size,
            });
        }
        Ok(Step {
            kernel: self.variant.into(),
            ranges,
            params: params.bytes(),
            grid: grid(tiles, self.caps)?,
        })
    }

    fn strides(&self, p: &mut Params) {
        let op = self.op;
        [p.q_batch, p.q_head, p.q_row, p.q_dim] = layout_places(self.q.1);
        [p.k_batch, p.k_head, p.k_row, p.k_dim] = layout_places(self.k.1);
        [p.v_batch, p.v_head, p.v_row, p.v_dim] = layout_places(&op.v);
        [p.o_batch, p.o_head, p.o_row, p.o_dim] = layout_places(&op.o);
        match &op.decay {
            Decay::Head(layout) => [p.decay_head] = layout_places(layout),
            Decay::Token(layout) => {
                [p.decay_batch, p.decay_head, p.decay_token] = layout_places(layout);
            }
            _ => {}
        }
        if let Some(bonus) = &op.bonus {
            [p.bonus_head, p.bonus_dim] = layout_places(bonus);
        }
        if let Some(bias) = &self.bias {
            [p.bias_head, p.bias_row, p.bias_key] = layout_places(bias);
        }
        if let Some(lens) = &op.kv_len {
            [p.kv_len_batch] = layout_places(lens);
        }
        if let Some(starts) = &op.cu_seqlens {
            [p.cu_seqlens_sequence] = layout_places(starts);
        }
    }
}

/// What all forms of an op have.
fn shared(op: &LinearAttention) -> Variant {
    Variant {
        v_chunks: small(dims(&op.v)[3].div_ceil(TILE.into())),
        f16: op.q.dtype == DType::F16,
        kv_len: op.kv_len.is_some(),
        packed: op.cu_seqlens.is_some(),
        ..Variant::default()
    }
}
