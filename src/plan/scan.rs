//! Scans: into how many segments the sequence is cut, which windows of it fit a binding, and what joins them.

use super::{
    Outline, Range, Schedule, Step, Tuning, by_fours, grid,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Kernel,
        scan::{Carried, Params, Phase, Scores as Source, Tensors, Variant, WORKGROUP},
        scan_join, scan_scores,
    },
    ops::{Denominator, Real, Scan, ScanRule, ScanStrides, Scores, Slot},
    tensor::DType,
};

/// The axes of the iteration space.
const ENTRY: usize = 0;
const HEAD: usize = 1;
const TOKEN: usize = 2;
const CHANNEL: usize = 3;

/// Invocations that keep a device busy.
const WANTED_INVOCATIONS: u64 = 1 << 16;
/// The same on a software device.
const WANTED_SOFTWARE_INVOCATIONS: u64 = 1 << 8;
/// No segment is made shorter than this to fill the device.
const LEAST_SEGMENT: u64 = 32;
/// Tokens that an invocation loads at once.
const BLOCK: u32 = 8;

/// A tensor over the iteration space.
struct Placed {
    slot: Slot,
    operand: Operand<4>,
    strides: ScanStrides,
}

/// An op with what the plan has decided for all of its slices.
struct Plan<'a> {
    op: &'a Scan,
    caps: &'a Caps,
    variant: Variant,
    /// Lengths of the space, whose tokens are those of the input.
    lens: [u64; 4],
    tensors: Vec<Placed>,
    /// What [`Phase::Spread`] binds; its tokens are those of the output.
    spread: Vec<Placed>,
    /// Lengths of a slice.
    part: [u64; 4],
    spread_part: u64,
    /// Tokens per segment, and segments per window.
    segment: u64,
    spread_segment: u64,
    segments: u64,
}

pub(super) fn outline(op: &Scan, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let mut variant = variant(op);
    let sizes = op.sizes();
    let lens = [op.sequences(), sizes.heads, sizes.seq, sizes.channels];
    let steps_budget = u64::from(caps.loop_budget.saturating_sub(3));
    if steps_budget == 0 || op.key_dim() > steps_budget {
        return Err(Error::unsupported(
            "a scan",
            format!(
                "a kernel may loop {} times on this device, and it loops over tokens, and dims of a query",
                caps.loop_budget
            ),
            "raise the loop budget of the caps, or compute the scores beforehand",
        ));
    }

    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let tensors = placed(op, |slot| {
        slot != Slot::Gate && slot != Slot::O || !op.reaches_all()
    });
    let spread = placed(op, |slot| {
        op.reaches_all()
            && matches!(
                slot,
                Slot::Gate | Slot::O | Slot::FinalState | Slot::CuSeqlens
            )
    });
    let operands = |list: &[Placed]| -> Vec<Operand<4>> {
        list.iter().map(|placed| placed.operand.clone()).collect()
    };
    let mut part = slice::fit(lens, &operands(&tensors), limit, alignment)?;
    let spread_lens = [lens[ENTRY], lens[HEAD], op.output_len(), lens[CHANNEL]];
    let mut spread_part = spread_lens[TOKEN];
    if op.reaches_all() {
        let wanted = [part[ENTRY], part[HEAD], spread_lens[TOKEN], part[CHANNEL]];
        let fits = slice::fit(wanted, &operands(&spread), limit, alignment)?;
        spread_part = fits[TOKEN];
        part = [fits[ENTRY], fits[HEAD], part[TOKEN], fits[CHANNEL]];
    }
    let width = u64::from(variant.width());
    let by_width = |channels: u64| (channels / width * width).max(width);
    if part[CHANNEL] < lens[CHANNEL] {
        part[CHANNEL] = by_width(part[CHANNEL]);
    }
    let packed = op.cu_seqlens.is_some();
    if packed && (part[TOKEN] < lens[TOKEN] || spread_part < spread_lens[TOKEN]) {
        return Err(Error::unsupported(
            format!("packed sequences of {} tokens", lens[TOKEN]),
            format!(
                "a binding holds {limit} bytes, and only the device knows where sequences begin"
            ),
            "pack fewer tokens, or use strides that keep the tokens of a head together",
        ));
    }

    // Tokens per segment: enough segments to fill the device, each within the loop budget.
    let rows = |part: &[u64; 4]| part[ENTRY] * part[HEAD] * part[CHANNEL].div_ceil(width);
    let mut window = part[TOKEN];
    let wanted = wanted_segments(rows(&part), window, caps, tuning)?;
    let segment = window.div_ceil(wanted).clamp(1, steps_budget);
    // Windows are of whole segments, and one join goes through them.
    if window < lens[TOKEN] {
        window = window / segment * segment;
    }
    let most = steps_budget * segment;
    if window > most {
        if packed {
            return Err(Error::unsupported(
                format!("packed sequences of {} tokens", lens[TOKEN]),
                format!(
                    "a kernel may loop {} times on this device",
                    caps.loop_budget
                ),
                "pack fewer tokens",
            ));
        }
        window = most;
    }
    part[TOKEN] = window;
    let segments = window.div_ceil(segment);
    let spread_segment = spread_part
        .div_ceil(wanted)
        .clamp(1, steps_budget)
        .min(spread_part);

    let per_token = if variant.scores == Source::Scratch {
        1
    } else {
        0
    };
    let shared_state = op.in_place && op.per_head() && rows(&lens) > 1;
    let split = part[TOKEN] < lens[TOKEN]
        || segments > 1
        || op.reaches_all()
        || shared_state
        || variant.scores == Source::Scratch;
    variant.split = split;
    let scratch_of = |part: &[u64; 4]| {
        let slots = (segments + 1) * u64::from(variant.carried.parts());
        4 * (slots * rows(part) * width + per_token * part[ENTRY] * part[HEAD] * part[TOKEN])
            .next_multiple_of(width)
    };
    while split && scratch_of(&part) > limit {
        let axis = [CHANNEL, HEAD, ENTRY]
            .into_iter()
            .find(|&axis| part[axis] > if axis == CHANNEL { width } else { 1 });
        match axis {
            Some(CHANNEL) => part[CHANNEL] = by_width(part[CHANNEL].div_ceil(2)),
            Some(axis) => part[axis] = part[axis].div_ceil(2),
            None => {
                return Err(Error::unsupported(
                    format!("{segments} segments of a sequence"),
                    "the states before each of them do not fit a binding",
                    "scan the sequence in several calls that carry the state on",
                ));
            }
        }
    }
    slice::check_count(lens, part, limit)?;
    slice::check_count(
        spread_lens,
        [part[ENTRY], part[HEAD], spread_part, part[CHANNEL]],
        limit,
    )?;

    let plan = Plan {
        op,
        caps,
        variant,
        lens,
        tensors,
        spread,
        part,
        spread_part,
        segment,
        spread_segment,
        segments,
    };
    plan.check_variants()?;
    let splits = if packed || part[TOKEN] == lens[TOKEN] {
        segments
    } else {
        lens[TOKEN].div_ceil(segment)
    };
    let schedule = if splits > 1 {
        Schedule::Ranges
    } else {
        Schedule::Rows
    };
    if let Some(wanted) = tuning.schedule
        && wanted != schedule
    {
        return Err(Error::unsupported(
            format!("a scan with schedule {wanted}"),
            format!("sequences of {} tokens take {splits} segments", lens[TOKEN]),
            "leave the schedule open",
        ));
    }
    let (why, rejected) = match schedule {
        Schedule::Ranges => (
            format!("segments of {segment} tokens, which are joined, then walked through again"),
            (
                Schedule::Rows,
                format!(
                    "{} tokens: one walk would leave the device idle, pass the loop budget or not fit a binding",
                    lens[TOKEN]
                ),
            ),
        ),
        _ => (
            "each invocation walks through the sequence of its channels".to_owned(),
            (
                Schedule::Ranges,
                "there are channels enough, or tokens are few".to_owned(),
            ),
        ),
    };
    let steps = plan.steps()?;
    Ok(Outline {
        op: op.clone().into(),
        schedule,
        why,
        rejected: vec![rejected],
        splits,
        steps,
        scratch_bytes: if split { scratch_of(&part) } else { 0 },
    })
}

/// Segments that fill the device, as far as they are not too short.
fn wanted_segments(rows: u64, tokens: u64, caps: &Caps, tuning: &Tuning) -> Result<u64> {
    let invocations = if caps.software {
        WANTED_SOFTWARE_INVOCATIONS
    } else {
        WANTED_INVOCATIONS
    };
    match (tuning.splits, tuning.schedule) {
        (Some(0), _) => Err(Error::invalid(
            "tuning.splits",
            "0",
            "give at least 1 segment",
        )),
        (Some(splits), _) => Ok(u64::from(splits).min(tokens)),
        (None, Some(Schedule::Ranges)) => Ok(2.min(tokens)),
        (None, Some(Schedule::Rows)) => Ok(1),
        // Segments are read twice: two would be slower than one.
        (None, _) => match (invocations / rows.max(1)).min(tokens / LEAST_SEGMENT) {
            0..4 => Ok(1),
            segments => Ok(segments),
        },
    }
}

fn variant(op: &Scan) -> Variant {
    let carried = match &op.rule {
        ScanRule::Sum { decay, .. } => Carried::Sum {
            decay: decay.is_some(),
        },
        ScanRule::LogSumExp { .. } => Carried::LogSumExp,
        ScanRule::Softmax { denominator, .. } => Carried::Softmax {
            step: *denominator == Denominator::Step,
        },
    };
    let scores = match &op.rule {
        ScanRule::Softmax {
            scores: Scores::Head(_),
            ..
        } => Source::Head,
        ScanRule::Softmax {
            scores: Scores::Query { .. },
            ..
        } => Source::Scratch,
        _ => Source::Channel,
    };
    let of = |slot: Slot| {
        let tensors = op.tensors().into_iter();
        tensors
            .filter(move |(other, _)| *other == slot)
            .map(|(_, layout)| layout)
            .next()
    };
    // Those whose channels are read one vector at a time; states are read one by one.
    let rows = [
        Slot::X,
        Slot::Decay,
        Slot::V,
        Slot::O,
        Slot::Gate,
        Slot::LogDecay,
        Slot::Weights,
    ];
    let vec4 = rows
        .into_iter()
        .filter(|&slot| !(slot == Slot::X && scores != Source::Channel))
        .filter_map(of)
        .all(by_fours);
    Variant {
        carried,
        phase: Phase::Apply,
        scores,
        tensors: Tensors {
            o: op.o.is_some(),
            gate: op.gate.is_some(),
            log_decay: of(Slot::LogDecay).is_some(),
            weights: of(Slot::Weights).is_some(),
            states: op.states.is_some(),
            initial: op.initial_state.is_some(),
            last: op.final_state.is_some(),
            in_place: op.in_place,
            packed: op.cu_seqlens.is_some(),
        },
        split: false,
        block: BLOCK,
        f16: op.input().dtype == DType::F16,
        f16_decay: [Slot::Decay, Slot::LogDecay]
            .into_iter()
            .filter_map(of)
            .any(|layout| layout.dtype == DType::F16),
        vec4,
    }
}

/// The tensors that are bound slice by slice, over sequences, heads, tokens and channels.
fn placed(op: &Scan, wanted: impl Fn(Slot) -> bool) -> Vec<Placed> {
    let packed = op.cu_seqlens.is_some();
    let tensors = op.tensors().into_iter();
    tensors
        .filter(|(slot, _)| wanted(*slot))
        .map(|(slot, layout)| {
            let strides = op.strides(slot, layout);
            // From the first element of a row to its last.
            let span = |axes: usize| {
                let lens = layout.shape.iter().zip(&layout.strides).rev().take(axes);
                lens.fold(1, |span, (len, stride)| span + stride * (len - 1))
            };
            let state_axes = if op.per_head() || strides.part == 0 {
                1
            } else {
                2
            };
            let (channel, inner) = match slot {
                Slot::InitialState | Slot::FinalState | Slot::States => (0, span(state_axes)),
                Slot::Q | Slot::K | Slot::CuSeqlens => (0, span(1)),
                Slot::X if op.per_head() => (0, 1),
                _ => (strides.channel, 1),
            };
            let by_sequence = matches!(slot, Slot::InitialState | Slot::FinalState);
            let batch = if slot == Slot::CuSeqlens || (packed && !by_sequence) {
                0
            } else {
                strides.batch
            };
            let over = [batch, strides.head, strides.token, channel];
            Placed {
                slot,
                operand: Operand::new(slot.name(), layout, over, inner),
                strides,
            }
        })
        .collect()
}

impl Plan<'_> {
    fn packed(&self) -> bool {
        self.op.cu_seqlens.is_some()
    }

    /// The phases over each window, in order, as far as it has so many segments.
    fn phases(&self) -> Vec<Phase> {
        let mut list = Vec::new();
        if self.variant.split && (self.segments > 1 || self.op.reaches_all()) {
            list.push(Phase::Reduce);
            if self.variant.carried == (Carried::Softmax { step: true }) {
                list.push(Phase::Sums);
            }
        }
        if !self.op.reaches_all() {
            list.push(Phase::Apply);
        }
        list
    }

    fn join(&self, sums: bool) -> scan_join::Variant {
        let initial = self.op.initial_state.is_some();
        scan_join::Variant {
            carried: self.variant.carried,
            sums,
            per_head: self.op.per_head(),
            initial,
            in_place: initial && self.op.in_place,
            vec4: self.variant.vec4,
        }
    }

    fn scores(&self) -> Option<scan_scores::Variant> {
        match &self.op.rule {
            ScanRule::Softmax {
                scores: Scores::Query { q, k, .. },
                ..
            } => Some(scan_scores::Variant {
                f16: self.variant.f16,
                vec4: by_fours(q) && by_fours(k),
            }),
            _ => None,
        }
    }

    /// Whether the device runs all kernels.
    fn check_variants(&self) -> Result<()> {
        let mut kernels: Vec<Kernel> = self
            .phases()
            .into_iter()
            .map(|phase| self.variant.of_phase(phase).into())
            .collect();
        if self.variant.split {
            kernels.push(self.join(false).into());
        }
        if self.op.reaches_all() {
            kernels.push(self.variant.of_phase(Phase::Spread).into());
        }
        kernels.extend(self.scores().map(Kernel::from));
        for kernel in kernels {
            if let Err(reason) = kernel.supports(self.caps) {
                return Err(Error::unsupported(
                    format!("a scan of {}", self.op.input().dtype),
                    reason,
                    "create the device with these features and limits, store the tensors as f32, or leave out \
                     what is optional",
                ));
            }
        }
        Ok(())
    }

    fn steps(&self) -> Result<Vec<Step>> {
        let whole = Part {
            start: [0; 4],
            len: self.lens,
        };
        let mut steps = Vec::new();
        if self.packed() {
            self.clear(&mut steps)?;
        }
        for block in slice::parts(whole, self.part, &[ENTRY, HEAD, CHANNEL]) {
            for piece in slice::parts(block, self.part, &[TOKEN]) {
                self.window(&piece, &mut steps)?;
            }
            if self.op.reaches_all() {
                // After the last window, whose end is in the slot past its segments.
                let tokens =
                    self.lens[TOKEN] - (self.lens[TOKEN] - 1) / self.part[TOKEN] * self.part[TOKEN];
                let start_slot = tokens.div_ceil(self.segment);
                let mut spread = block;
                spread.len[TOKEN] = self.op.output_len();
                let cut = [0, 0, self.spread_part, 0];
                for piece in slice::parts(spread, cut, &[TOKEN]) {
                    let segments = piece.len[TOKEN].div_ceil(self.spread_segment);
                    let mut walk = self.walk(Phase::Spread, &piece, segments);
                    walk.params.segment_length = small(self.spread_segment);
                    walk.params.start_slot = small(start_slot);
                    walk.params.carries = u32::from(piece.start[TOKEN] > 0);
                    steps.push(walk.step(self, &self.spread)?);
                }
            }
        }
        Ok(steps)
    }

    /// The dispatches over one window of a slice.
    fn window(&self, piece: &Part<4>, steps: &mut Vec<Step>) -> Result<()> {
        let segments = piece.len[TOKEN].div_ceil(self.segment);
        // The last segment's result is only wanted where no other phase walks through it.
        let reduced = if self.op.reaches_all() {
            segments
        } else {
            segments - 1
        };
        let variant = self.variant;
        if variant.split {
            if let Some(scores) = self.scores() {
                steps.push(self.score(scores, piece)?);
            }
            let sums = variant.carried == (Carried::Softmax { step: true }) && reduced > 0;
            for (phase, sums) in [(Phase::Reduce, false), (Phase::Sums, true)]
                .into_iter()
                .take(1 + usize::from(sums))
            {
                if reduced > 0 {
                    let walk = self.walk(phase, piece, reduced);
                    steps.push(walk.step(self, &self.tensors)?);
                }
                steps.push(self.joined(sums, piece, reduced)?);
            }
        }
        if !self.op.reaches_all() {
            let walk = self.walk(Phase::Apply, piece, segments);
            steps.push(walk.step(self, &self.tensors)?);
        }
        Ok(())
    }

    /// Zeros to what packed sequences leave out.
    fn clear(&self, steps: &mut Vec<Step>) -> Result<()> {
        let written = [Slot::O, Slot::LogDecay, Slot::Weights, Slot::States];
        if !self
            .op
            .tensors()
            .iter()
            .any(|(slot, _)| written.contains(slot))
        {
            return Ok(());
        }
        let whole = Part {
            start: [0; 4],
            len: [1, self.lens[HEAD], self.lens[TOKEN], self.lens[CHANNEL]],
        };
        let tensors = if self.op.reaches_all() {
            &self.spread
        } else {
            &self.tensors
        };
        for piece in slice::parts(whole, self.part, &[HEAD, CHANNEL]) {
            let segments = piece.len[TOKEN].div_ceil(self.spread_segment);
            let mut walk = self.walk(Phase::Clear, &piece, segments);
            walk.params.segment_length = small(self.spread_segment);
            steps.push(walk.step(self, tensors)?);
        }
        Ok(())
    }

    /// Units of channels, and rows of them, of a slice.
    fn rows(&self, piece: &Part<4>) -> (u64, u64) {
        let units = piece.len[CHANNEL].div_ceil(u64::from(self.variant.width()));
        (units, piece.len[ENTRY] * piece.len[HEAD] * units)
    }

    /// Elements of scratch before the scores.
    fn scores_at(&self, rows: u64) -> u64 {
        let parts = u64::from(self.variant.carried.parts());
        (self.segments + 1) * parts * rows * u64::from(self.variant.width())
    }

    fn scratch(&self, piece: &Part<4>) -> Range {
        let (_, rows) = self.rows(piece);
        let scores = if self.variant.scores == Source::Scratch {
            // Where the output is longer, what is spread has none.
            piece.len[ENTRY] * piece.len[HEAD] * piece.len[TOKEN].min(self.part[TOKEN])
        } else {
            0
        };
        let elements = self.scores_at(rows) + scores;
        Range {
            slot: Slot::Scratch,
            offset: 0,
            size: 4 * elements.next_multiple_of(u64::from(self.variant.width())),
        }
    }

    /// A dispatch of the scan over some segments of a slice.
    fn walk(&self, phase: Phase, piece: &Part<4>, segments: u64) -> Walk {
        let (units, rows) = self.rows(piece);
        let carries = piece.start[TOKEN] + piece.len[TOKEN] < self.lens[TOKEN];
        let last_channels = piece.start[CHANNEL] + piece.len[CHANNEL] == self.lens[CHANNEL];
        Walk {
            variant: self.variant.of_phase(phase),
            piece: *piece,
            params: Params {
                invocations: small(rows * segments),
                units: small(units),
                heads: small(piece.len[HEAD]),
                segments: small(segments),
                last_segment: small(piece.len[TOKEN].div_ceil(self.segment) - 1),
                segment_length: small(self.segment),
                length: small(piece.len[TOKEN]),
                rows: small(rows),
                start_slot: 0,
                carry_slot: small(self.segments),
                carries: carries.into(),
                // In place, the slices before the last still read them.
                maxima: last_channels.into(),
                channel_start: small(piece.start[CHANNEL]),
                entry_start: small(piece.start[ENTRY]),
                sequences: small(self.lens[ENTRY]),
                scores_at: small(self.scores_at(rows)),
                minus_infinity: f32::NEG_INFINITY,
                ..Params::default()
            },
        }
    }

    fn joined(&self, sums: bool, piece: &Part<4>, segments: u64) -> Result<Step> {
        let variant = self.join(sums);
        let (units, rows) = self.rows(piece);
        let mut params = scan_join::Params {
            invocations: small(rows),
            units: small(units),
            heads: small(piece.len[HEAD]),
            rows: small(rows),
            segments: small(segments),
            carry_slot: small(self.segments),
            first_window: u32::from(piece.start[TOKEN] == 0),
            channel_start: small(piece.start[CHANNEL]),
            ..scan_join::Params::default()
        };
        let mut ranges = vec![self.scratch(piece)];
        let slot = if self.op.in_place {
            Slot::FinalState
        } else {
            Slot::InitialState
        };
        let bound = self.tensors.iter().chain(&self.spread);
        let state = bound.into_iter().find(|tensor| tensor.slot == slot);
        if let Some(tensor) = state.filter(|_| variant.initial) {
            let place = tensor.place(piece, self.caps);
            params.initial_at = place.at;
            [
                params.initial_batch,
                params.initial_head,
                _,
                params.initial_part,
                params.initial_channel,
            ] = place.strides;
            ranges.push(place.range);
        }
        Ok(Step {
            kernel: variant.into(),
            ranges,
            params: params.bytes(),
            grid: self.grid(rows)?,
        })
    }

    fn score(&self, variant: scan_scores::Variant, piece: &Part<4>) -> Result<Step> {
        let (_, rows) = self.rows(piece);
        let packed_batch = if self.packed() { 1 } else { piece.len[ENTRY] };
        let invocations = packed_batch * piece.len[HEAD] * piece.len[TOKEN];
        let scale = match &self.op.rule {
            ScanRule::Softmax {
                scores: Scores::Query { scale, .. },
                ..
            } => scale.map_or(1.0, |Real(scale)| scale),
            _ => 1.0,
        };
        let width = if variant.vec4 { 4 } else { 1 };
        let mut params = scan_scores::Params {
            invocations: small(invocations),
            length: small(piece.len[TOKEN]),
            heads: small(piece.len[HEAD]),
            units: small(self.op.key_dim() / width),
            scores_at: small(self.scores_at(rows)),
            scale,
            ..scan_scores::Params::default()
        };
        let mut ranges = vec![self.scratch(piece)];
        for tensor in &self.tensors {
            let place = tensor.place(piece, self.caps);
            match tensor.slot {
                Slot::Q => {
                    params.q_at = place.at;
                    [_, params.q_head, _, _, params.q_dim] = place.strides;
                }
                Slot::K => {
                    params.k_at = place.at;
                    [
                        params.k_batch,
                        params.k_head,
                        params.k_token,
                        _,
                        params.k_dim,
                    ] = place.strides;
                }
                _ => continue,
            }
            ranges.push(place.range);
        }
        Ok(Step {
            kernel: variant.into(),
            ranges,
            params: params.bytes(),
            grid: self.grid(invocations)?,
        })
    }

    fn grid(&self, invocations: u64) -> Result<[u32; 3]> {
        if invocations > u64::from(u32::MAX) {
            return Err(Error::unsupported(
                format!("{invocations} invocations in one dispatch"),
                "their number must fit 32 bits",
                "split the op over batch or heads",
            ));
        }
        grid(invocations.div_ceil(WORKGROUP.into()), self.caps)
    }
}

/// Where a tensor lies in a slice.
struct Place {
    range: Range,
    at: u32,
    /// Of batch entries or sequences, heads, tokens, parts and channels.
    strides: [u32; 5],
}

impl Placed {
    fn place(&self, piece: &Part<4>, caps: &Caps) -> Place {
        let window = self.operand.window(piece, caps.storage_alignment.into());
        let s = &self.strides;
        let batch = if self.slot == Slot::CuSeqlens {
            s.batch
        } else {
            self.operand.strides[ENTRY]
        };
        Place {
            range: Range {
                slot: self.slot,
                offset: window.offset,
                size: window.size,
            },
            at: window.first,
            strides: [batch, s.head, s.token, s.part, s.channel].map(small),
        }
    }
}

/// A dispatch in the making.
struct Walk {
    variant: Variant,
    piece: Part<4>,
    params: Params,
}

impl Walk {
    fn step(mut self, plan: &Plan<'_>, tensors: &[Placed]) -> Result<Step> {
        let variant = self.variant;
        let mut ranges = Vec::new();
        if variant.split {
            ranges.push(plan.scratch(&self.piece));
        }
        for tensor in tensors {
            let mut place = tensor.place(&self.piece, plan.caps);
            let [batch, head, token, part, channel] = place.strides;
            let p = &mut self.params;
            let has = variant.tensors;
            let bound = match tensor.slot {
                Slot::X => {
                    [p.x_batch, p.x_head, p.x_token, p.x_channel] = [batch, head, token, channel];
                    p.x_at = place.at;
                    variant.reads_x()
                }
                Slot::Decay => {
                    [p.decay_batch, p.decay_head, p.decay_token, p.decay_channel] =
                        [batch, head, token, channel];
                    p.decay_at = place.at;
                    variant.reads_decay()
                }
                Slot::V => {
                    [p.v_batch, p.v_head, p.v_token, p.v_channel] = [batch, head, token, channel];
                    p.v_at = place.at;
                    variant.reads_v()
                }
                Slot::Gate => {
                    [p.gate_batch, p.gate_head, p.gate_token, p.gate_channel] =
                        [batch, head, token, channel];
                    p.gate_at = place.at;
                    has.gate
                }
                Slot::O => {
                    [p.o_batch, p.o_head, p.o_token, p.o_channel] = [batch, head, token, channel];
                    p.o_at = place.at;
                    has.o
                }
                Slot::LogDecay => {
                    [
                        p.log_decay_batch,
                        p.log_decay_head,
                        p.log_decay_token,
                        p.log_decay_channel,
                    ] = [batch, head, token, channel];
                    p.log_decay_at = place.at;
                    has.log_decay
                }
                Slot::Weights => {
                    [
                        p.weights_batch,
                        p.weights_head,
                        p.weights_token,
                        p.weights_channel,
                    ] = [batch, head, token, channel];
                    p.weights_at = place.at;
                    has.weights
                }
                Slot::States => {
                    [p.states_batch, p.states_head, p.states_token] = [batch, head, token];
                    [p.states_part, p.states_channel] = [part, channel];
                    p.states_at = place.at;
                    has.states
                }
                Slot::InitialState => {
                    [p.initial_batch, p.initial_head] = [batch, head];
                    [p.initial_part, p.initial_channel] = [part, channel];
                    p.initial_at = place.at;
                    has.initial
                }
                Slot::FinalState => {
                    [p.final_batch, p.final_head] = [batch, head];
                    [p.final_part, p.final_channel] = [part, channel];
                    p.final_at = place.at;
                    if has.in_place {
                        [p.initial_batch, p.initial_head] = [batch, head];
                        [p.initial_part, p.initial_channel] = [part, channel];
                        p.initial_at = place.at;
                    }
                    has.last
                }
                Slot::CuSeqlens => {
                    p.cu_step = batch;
                    p.cu_at = place.at;
                    has.packed
                }
                _ => false,
            };
            if bound {
                place.range.slot = tensor.slot;
                ranges.push(place.range);
            }
        }
        let invocations = u64::from(self.params.units)
            * u64::from(self.params.heads)
            * u64::from(self.params.segments)
            * self.piece.len[ENTRY];
        Ok(Step {
            kernel: variant.into(),
            ranges,
            params: self.params.bytes(),
            grid: plan.grid(invocations)?,
        })
    }
}
