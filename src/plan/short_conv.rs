//! Short convolution: which slices, what is read at once, and how long a run of tokens is.

use super::{
    Outline, Range, Schedule, Step, grid,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        short_conv::{LONG_TAPS, MOST_TAPS, Params, Read, Rows, Softmax, State, Variant},
        short_conv_state,
    },
    ops::{Activation, ShortConv, Slot},
    tensor::{DType, Layout},
};

/// Invocations that keep a device busy; runs are longer where there are more.
const WANTED_INVOCATIONS: u64 = 1 << 17;
/// The same on a software device.
const WANTED_SOFTWARE_INVOCATIONS: u64 = 1 << 12;
/// Tokens of a run where neighbours are channels: each run reads its weights, and taps - 1 inputs more than it has.
/// Longer ones read less; but on a CPU, 128 take three times as long, since each token's channels are in another
/// page: while neighbours follow soon enough, every page is a stream.
const RUN: u64 = 16;
/// Where neighbours are runs, each a stream of its own, at most.
const MOST_RUN: u64 = 1024;
/// Tokens per step where weights are the same for all tokens, taps in registers.
const BLOCK: u32 = 8;
/// Where each token has its own.
const DYNAMIC_BLOCK: u32 = 4;
const WORKGROUP: u32 = 64;

/// Slicing counts batch entries, rows of weights, units of a row, and groups of tokens.
const AXES: usize = 4;

/// How the tensors are walked through.
struct Walk {
    variant: Variant,
    /// Channels per unit.
    lanes: u64,
    /// Units that share a row of weights.
    inner: u64,
    /// Tokens that slices keep together.
    group: u64,
    /// Whether neighbours are runs.
    runs_first: bool,
    budget: u64,
}

pub(super) fn outline(op: &ShortConv, caps: &Caps) -> Result<Outline> {
    let [batch, channels, seq] = op.sizes();
    let mut walk = Walk::new(op, caps)?;
    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let groups = seq.div_ceil(walk.group);
    let lens = [
        batch,
        channels / (walk.lanes * walk.inner),
        walk.inner,
        groups,
    ];
    let operands = walk.operands(op);
    let list: Vec<Operand<AXES>> = operands.iter().map(|(_, o)| o.clone()).collect();
    let part = slice::fit(lens, &list, limit, alignment)?;
    slice::check_count(lens, part, limit)?;
    let whole = Part {
        start: [0; AXES],
        len: lens,
    };
    let pieces = slice::parts(whole, part, &[0, 1, 2, 3]);

    // An invocation that has a whole sequence writes its state too.
    let fused = op.final_state.is_some()
        && walk.variant.taps.is_some()
        && op.cu_seqlens.is_none()
        && part[3] == groups
        && walk.run(batch * channels / walk.lanes, seq, caps) >= seq;
    walk.variant.state.written = fused;
    let wanted = || format!("a convolution of {} by {}", op.x.dtype, op.weight.dtype);
    let remedy = "create the device with these features and limits, or store the tensors as f32";
    if let Err(reason) = crate::kernels::Variant::supports(&walk.variant, caps) {
        return Err(Error::unsupported(wanted(), reason, remedy));
    }
    let mut steps = Vec::new();
    for piece in pieces {
        steps.push(walk.step(op, &piece, fused, caps)?);
    }
    if op.final_state.is_some() && !fused {
        let variant = short_conv_state::Variant {
            f16: op.x.dtype == DType::F16,
            initial: op.initial_state.is_some(),
            in_place: op.in_place,
            packed: op.cu_seqlens.is_some(),
        };
        if let Err(reason) = crate::kernels::Variant::supports(&variant, caps) {
            return Err(Error::unsupported(wanted(), reason, remedy));
        }
        state_steps(op, variant, caps, &mut steps)?;
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: match walk.variant.taps {
            Some(_) => "each invocation walks along a run of tokens, its last inputs in registers",
            None => "each invocation walks along the taps of a few tokens",
        }
        .into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

impl Walk {
    fn new(op: &ShortConv, caps: &Caps) -> Result<Self> {
        let [_, channels, seq] = op.sizes();
        let taps = op.taps();
        let heads = op.heads();
        let per_head = channels / heads;
        let dynamic = op.dynamic();
        let packed = op.cu_seqlens.is_some();
        let long = taps > MOST_TAPS.into();
        let ahead = op.padding_left + 1 < taps;
        let read = if [&op.x, &op.y].iter().all(|x| fours(x, 1))
            && (per_head.is_multiple_of(4) || (per_head == 1 && !dynamic))
        {
            Read::Channels4
        } else if !long && !packed && !ahead && [&op.x, &op.y].iter().all(|x| fours(x, 2)) {
            Read::Tokens4
        } else {
            Read::One
        };
        let rows = match read {
            _ if dynamic => Rows::Token,
            Read::Channels4 if per_head == 1 => Rows::Lanes,
            _ => Rows::Unit,
        };
        let block = match read {
            // No step may end past the last token.
            Read::Tokens4 => [16, 8].into_iter().find(|&n| seq % n == 0).unwrap_or(4) as u32,
            _ => {
                let most = if dynamic { DYNAMIC_BLOCK } else { BLOCK };
                [8, 4, 2]
                    .into_iter()
                    .find(|&n| n <= most && seq >= n.into())
                    .unwrap_or(1)
            }
        };
        let lanes = if read == Read::Channels4 { 4 } else { 1 };
        let variant = Variant {
            f16: op.x.dtype == DType::F16,
            f16_weight: op.weight.dtype == DType::F16,
            read,
            rows,
            weight4: fours(&op.weight, op.weight.rank() - 1),
            taps: (!long).then(|| small(taps)),
            block,
            bias: op.bias.is_some(),
            softmax: match (op.softmax, op.renormalise) {
                (false, _) => Softmax::None,
                (true, false) => Softmax::All,
                (true, true) => Softmax::Inside,
            },
            ahead: ahead && !long,
            silu: op.activation == Activation::Silu,
            state: State {
                initial: op.initial_state.is_some(),
                written: false,
                in_place: op.in_place,
            },
            packed,
            workgroup: WORKGROUP,
        };
        let beside = |axis: usize| {
            [&op.x, &op.y]
                .iter()
                .any(|x| x.strides.get(axis) == Some(&1))
        };
        Ok(Self {
            variant,
            lanes,
            inner: match rows {
                Rows::Lanes => 1,
                _ => per_head / lanes,
            },
            group: if read == Read::Tokens4 {
                block.into()
            } else {
                1
            },
            runs_first: read == Read::Tokens4
                || (read == Read::One && beside(2) && !(beside(1) && channels > 1)),
            budget: loops(op, block, caps)?,
        })
    }

    /// Tokens per run.
    fn run(&self, units: u64, tokens: u64, caps: &Caps) -> u64 {
        let block = u64::from(self.variant.block);
        if self.variant.taps.is_none() {
            return block;
        }
        let wanted = if caps.software {
            WANTED_SOFTWARE_INVOCATIONS
        } else {
            WANTED_INVOCATIONS
        };
        let run = if self.runs_first {
            tokens.div_ceil(wanted.div_ceil(units)).clamp(RUN, MOST_RUN)
        } else {
            RUN
        };
        run.next_multiple_of(block)
            .min(self.budget.saturating_mul(block))
    }

    /// Each tensor over the iteration space; x with what is around a token.
    fn operands(&self, op: &ShortConv) -> Vec<(Slot, Operand<AXES>)> {
        let taps = op.taps();
        let lanes = self.lanes;
        let of_tokens = |layout: &Layout, around: u64| {
            let [b, c, t] = strides_of(layout);
            let strides = [b, c * lanes * self.inner, c * lanes, t * self.group];
            (strides, c * (lanes - 1) + t * (self.group - 1 + around) + 1)
        };
        // Places before a slice are whole groups of four where four are read at once.
        let around = (taps - 1).next_multiple_of(if self.group > 1 { 4 } else { 1 });
        let (strides, inner) = of_tokens(&op.x, around);
        let mut list = vec![(Slot::X, Operand::new("x", &op.x, strides, inner))];
        let (strides, inner) = of_tokens(&op.y, 0);
        list.push((Slot::Y, Operand::new("y", &op.y, strides, inner)));

        let (strides, inner) = match strides_of(&op.weight) {
            [b, t, h, k] if op.dynamic() => (
                [b, h, 0, t * self.group],
                t * (self.group - 1) + k * (taps - 1) + 1,
            ),
            [h, k, ..] => {
                let rows = if self.variant.rows == Rows::Lanes {
                    lanes
                } else {
                    1
                };
                ([0, h * rows, 0, 0], h * (rows - 1) + k * (taps - 1) + 1)
            }
        };
        list.push((
            Slot::Weight,
            Operand::new("weight", &op.weight, strides, inner),
        ));
        if let Some(bias) = &op.bias {
            let [c] = strides_of(bias);
            let strides = [0, c * lanes * self.inner, c * lanes, 0];
            let inner = c * (lanes - 1) + 1;
            list.push((Slot::Bias, Operand::new("bias", bias, strides, inner)));
        }
        // The states of packed sequences are written by a step of their own.
        let last = op.final_state.as_ref();
        let last = last.filter(|_| op.cu_seqlens.is_none() || op.in_place);
        for (slot, state) in [
            (Slot::InitialState, op.initial_state.as_ref()),
            (Slot::FinalState, last),
        ] {
            if let Some(state) = state {
                let [b, c, k] = strides_of(state);
                let mut inner = c * (lanes - 1) + k * (taps.saturating_sub(2)) + 1;
                let mut strides = [b, c * lanes * self.inner, c * lanes, 0];
                if op.cu_seqlens.is_some() {
                    // A token may be of any sequence.
                    inner += b * (op.sequences() - 1);
                    strides[0] = 0;
                }
                list.push((slot, Operand::new(slot.name(), state, strides, inner)));
            }
        }
        if let Some(cu) = &op.cu_seqlens {
            list.push((Slot::CuSeqlens, places_operand(cu, op)));
        }
        list
    }

    fn step(&self, op: &ShortConv, piece: &Part<AXES>, fused: bool, caps: &Caps) -> Result<Step> {
        let alignment = u64::from(caps.storage_alignment);
        let seq = op.sizes()[2];
        let [batch, rows, inner, groups] = piece.len;
        let first = piece.start[3] * self.group;
        let tokens = (groups * self.group).min(seq - first);
        let units = rows * inner;
        // Where an invocation writes the state, it has the whole sequence in slices too.
        let each = if fused {
            tokens.next_multiple_of(u64::from(self.variant.block))
        } else {
            self.run(batch * units, tokens, caps)
        };
        let runs = tokens.div_ceil(each);
        let invocations = batch * units * runs;
        // What of x the slice sees.
        let ahead = op.taps() - 1 - op.padding_left;
        let four = if self.group > 1 { 4 } else { 1 };
        let before = op.padding_left.next_multiple_of(four).min(first);
        let end = (first + tokens + ahead).min(seq);
        let mut params = Params {
            invocations: small(invocations),
            units: small(units),
            inner: small(inner),
            runs: small(runs),
            runs_first: self.runs_first.into(),
            each: small(each),
            tokens: small(tokens),
            before: small(before),
            window: small(end - (first - before)),
            window_start: small(first - before),
            taps: small(op.taps()),
            padding: small(op.padding_left),
            sequences: small(op.sequences()),
            ..Params::default()
        };
        self.strides(op, &mut params);
        let mut ranges = Vec::new();
        for (slot, operand) in self.operands(op) {
            let mut operand = operand;
            let mut seen = *piece;
            let unused = match slot {
                Slot::FinalState => !fused && !op.in_place,
                Slot::InitialState => op.in_place,
                _ => false,
            };
            if unused {
                continue;
            }
            if slot == Slot::X {
                // By the token, with those around that are there.
                let [_, c, t] = strides_of(&op.x);
                operand.strides[3] = t;
                operand.inner = c * (self.lanes - 1) + 1;
                seen.start[3] = first - before;
                seen.len[3] = end - (first - before);
            } else if slot == Slot::Y || (slot == Slot::Weight && op.dynamic()) {
                let token = operand.strides[3] / self.group;
                operand.inner -= token * (self.group - 1);
                operand.strides[3] = token;
                seen.start[3] = first;
                seen.len[3] = tokens;
            }
            let window = operand.window(&seen, alignment);
            let at = match slot {
                Slot::X => &mut params.x_at,
                Slot::Weight => &mut params.weight_at,
                Slot::Bias => &mut params.bias_at,
                Slot::InitialState => &mut params.initial_state_at,
                Slot::FinalState => &mut params.final_state_at,
                Slot::CuSeqlens => &mut params.cu_seqlens_at,
                _ => &mut params.y_at,
            };
            *at = window.first;
            ranges.push(Range {
                slot,
                offset: window.offset,
                size: window.size,
            });
        }
        if op.in_place {
            params.initial_state_at = params.final_state_at;
        }
        Ok(Step {
            kernel: self.variant.into(),
            ranges,
            params: params.bytes(),
            grid: grid(invocations.div_ceil(self.variant.workgroup.into()), caps)?,
        })
    }

    fn strides(&self, op: &ShortConv, p: &mut Params) {
        let lanes = self.lanes;
        let of_channels = |stride: u64| {
            [
                small(stride * lanes * self.inner),
                small(stride * lanes),
                small(stride),
            ]
        };
        let [b, c, t] = strides_of(&op.x);
        [p.x_outer, p.x_unit, _] = of_channels(c);
        [p.x_batch, p.x_token] = [small(b), small(t)];
        let [b, c, t] = strides_of(&op.y);
        [p.y_outer, p.y_unit, _] = of_channels(c);
        [p.y_batch, p.y_token] = [small(b), small(t)];
        match strides_of(&op.weight) {
            [b, t, h, k] if op.dynamic() => {
                [p.weight_batch, p.weight_token] = [small(b), small(t)];
                [p.weight_outer, p.weight_tap] = [small(h), small(k)];
            }
            [h, k, ..] => {
                let rows = if self.variant.rows == Rows::Lanes {
                    lanes
                } else {
                    1
                };
                p.weight_outer = small(h * rows);
                [p.weight_lane, p.weight_tap] = [small(h), small(k)];
            }
        }
        if let Some(bias) = &op.bias {
            let [c] = strides_of(bias);
            [p.bias_outer, p.bias_unit, p.bias_lane] = of_channels(c);
        }
        if let Some(state) = &op.initial_state {
            let [b, c, k] = strides_of(state);
            [
                p.initial_state_outer,
                p.initial_state_unit,
                p.initial_state_lane,
            ] = of_channels(c);
            [p.initial_state_batch, p.initial_state_tap] = [small(b), small(k)];
        }
        if let Some(state) = &op.final_state {
            let [b, c, k] = strides_of(state);
            [p.final_state_outer, p.final_state_unit, p.final_state_lane] = of_channels(c);
            [p.final_state_batch, p.final_state_tap] = [small(b), small(k)];
        }
        if let Some(cu) = &op.cu_seqlens {
            let [step] = strides_of(cu);
            p.cu_seqlens_step = small(step);
        }
    }
}

/// Steps of BLOCK tokens that the loop budget allows a run; or why not one.
fn loops(op: &ShortConv, block: u32, caps: &Caps) -> Result<u64> {
    let taps = op.taps();
    // Each token of a step may be of another sequence: the search for it, and the checks that end the loops.
    let search = match op.cu_seqlens {
        Some(_) => u64::from(u64::BITS - op.sequences().leading_zeros()) + 3,
        None => 0,
    };
    let walk = if taps > MOST_TAPS.into() {
        let once = taps.div_ceil(LONG_TAPS.into()) + 1;
        let sums = match (op.softmax, op.dynamic()) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => u64::from(block),
        };
        once.saturating_mul(1 + sums)
    } else {
        0
    };
    let sequences = if op.cu_seqlens.is_some() {
        u64::from(block)
    } else {
        1
    };
    let step = sequences * (1 + search + walk);
    // The loop over steps may always end after one.
    let budget = u64::from(caps.loop_budget).saturating_sub(1) / step;
    if budget == 0 {
        return Err(Error::unsupported(
            format!("a convolution of {taps} taps"),
            format!(
                "a kernel may loop {} times on this device, and a token takes {}",
                caps.loop_budget,
                step + 1
            ),
            "use fewer taps or packed sequences, or raise the loop budget of the caps",
        ));
    }
    Ok(budget)
}

/// Copies the last inputs to the state.
fn state_steps(
    op: &ShortConv,
    variant: short_conv_state::Variant,
    caps: &Caps,
    steps: &mut Vec<Step>,
) -> Result<()> {
    let Some(last) = &op.final_state else {
        return Ok(());
    };
    let [_, channels, seq] = op.sizes();
    let sequences = op.sequences();
    let elements = op.taps() - 1;
    if elements >= caps.loop_budget.into() {
        return Err(Error::unsupported(
            format!("a state of {elements} inputs"),
            format!(
                "a kernel may loop {} times on this device, and it loops over them",
                caps.loop_budget
            ),
            "use fewer taps, or raise the loop budget of the caps",
        ));
    }
    let packed = op.cu_seqlens.is_some();
    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    // The iteration space: sequences, channels, tokens. Only the last tokens of a sequence count; where it ends is
    // known, but for packed ones.
    let first = if packed { 0 } else { seq - elements.min(seq) };
    let [b, c, t] = strides_of(&op.x);
    let around = if packed { elements } else { seq - first };
    let x_strides = if packed { [0, c, t] } else { [b, c, 0] };
    let tokens = if packed { seq } else { 1 };
    let mut operands = vec![(
        Slot::X,
        Operand::new(
            "x",
            &op.x.clone().at(first * t),
            x_strides,
            t * around.saturating_sub(u64::from(!packed)) + 1,
        ),
    )];
    let initial = op.initial_state.as_ref().filter(|_| !op.in_place);
    for (slot, state) in [
        (Slot::InitialState, initial),
        (Slot::FinalState, Some(last)),
    ] {
        if let Some(state) = state {
            let [b, c, k] = strides_of(state);
            let inner = k * (elements - 1) + 1;
            let operand = Operand::new(slot.name(), state, [b, c, 0], inner);
            operands.push((slot, operand));
        }
    }
    if let Some(cu) = &op.cu_seqlens {
        let [step] = strides_of(cu);
        let operand = Operand::new(Slot::CuSeqlens.name(), cu, [step, 0, 0], step + 1);
        operands.push((Slot::CuSeqlens, operand));
    }
    let lens = [sequences, channels, tokens];
    let list: Vec<Operand<3>> = operands.iter().map(|(_, o)| o.clone()).collect();
    let part = slice::fit(lens, &list, limit, alignment)?;
    slice::check_count(lens, part, limit)?;
    let whole = Part {
        start: [0; 3],
        len: lens,
    };
    for piece in slice::parts(whole, part, &[0, 1, 2]) {
        let [sequences, channels, tokens] = piece.len;
        let before = if packed {
            elements.min(piece.start[2])
        } else {
            0
        };
        let window_start = if packed {
            piece.start[2] - before
        } else {
            first
        };
        let mut params = short_conv_state::Params {
            invocations: small(sequences * channels),
            channels: small(channels),
            before: small(before),
            window: small(if packed { before + tokens } else { around }),
            window_start: small(window_start),
            seq: small(seq),
            elements: small(elements),
            x_batch: small(b),
            x_channel: small(c),
            x_token: small(t),
            ..short_conv_state::Params::default()
        };
        let state = |layout: Option<&Layout>| -> [u32; 3] {
            layout.map_or([0; 3], |layout| strides_of(layout).map(small))
        };
        [
            params.initial_state_batch,
            params.initial_state_channel,
            params.initial_state_tap,
        ] = state(op.initial_state.as_ref());
        [
            params.final_state_batch,
            params.final_state_channel,
            params.final_state_tap,
        ] = state(Some(last));
        let mut ranges = Vec::new();
        for (slot, operand) in &operands {
            let mut operand = operand.clone();
            let mut seen = piece;
            if *slot == Slot::X && packed {
                operand.inner = 1;
                seen.start[2] = window_start;
                seen.len[2] = before + tokens;
            }
            let window = operand.window(&seen, alignment);
            let at = match slot {
                Slot::X => &mut params.x_at,
                Slot::InitialState => &mut params.initial_state_at,
                Slot::CuSeqlens => &mut params.cu_seqlens_at,
                _ => &mut params.final_state_at,
            };
            *at = window.first;
            ranges.push(Range {
                slot: *slot,
                offset: window.offset,
                size: window.size,
            });
        }
        if op.in_place {
            params.initial_state_at = params.final_state_at;
        }
        if let Some(cu) = &op.cu_seqlens {
            let [step] = strides_of(cu);
            params.cu_seqlens_step = small(step);
        }
        let invocations = sequences * channels;
        steps.push(Step {
            kernel: variant.into(),
            ranges,
            params: params.bytes(),
            grid: grid(
                invocations.div_ceil(short_conv_state::WORKGROUP.into()),
                caps,
            )?,
        });
    }
    Ok(())
}

/// The places of packed sequences, all of them for each point of a space.
fn places_operand(cu: &Layout, op: &ShortConv) -> Operand<AXES> {
    let [step] = strides_of(cu);
    let inner = step * op.sequences() + 1;
    Operand::new(Slot::CuSeqlens.name(), cu, [0; AXES], inner)
}

/// Whether elements can be read four at a time along an axis.
fn fours(layout: &Layout, along: usize) -> bool {
    let mut axes = layout.strides.iter().zip(&layout.shape).enumerate();
    layout.offset.is_multiple_of(4)
        && axes.all(|(axis, (stride, len))| {
            if axis == along {
                *stride == 1 && len % 4 == 0
            } else {
                stride % 4 == 0 || *len == 1
            }
        })
}

/// Strides, 0 along axes of length 1, whose own mean nothing.
fn strides_of<const RANK: usize>(layout: &Layout) -> [u64; RANK] {
    std::array::from_fn(|axis| match layout.shape.get(axis) {
        None | Some(1) => 0,
        Some(_) => layout.strides.get(axis).copied().unwrap_or(0),
    })
}
