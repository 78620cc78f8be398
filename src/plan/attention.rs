//! Attention: which schedule, which variant, which slices and key ranges.

use super::{
    Outline, Range, SMALL_SUBGROUP, Schedule, Step, Tuning, WANTED_WORKGROUPS, by_fours, grid,
    layout_places,
    slice::{self, Operand, Part, Window},
    small,
};
use crate::{
    caps::{Caps, MatrixShape},
    error::{Error, Result},
    kernels::{
        AttentionIo, AttentionParams, Kernel, attention_decode, attention_matrix, attention_merge,
        attention_subgroup, attention_tile,
    },
    ops::{Attention, Causal, Slot, dims},
    tensor::{DType, Layout},
};

// The iteration space: batch entries, KV heads, query heads of each, query rows, keys.
const BATCH: usize = 0;
const HEAD: usize = 1;
const GROUP: usize = 2;
const ROW: usize = 3;
const KEY: usize = 4;
const AXES: usize = 5;

/// Keys below which a range is not worth a workgroup of its own.
const LEAST_SPLIT_KEYS: u64 = 512;
/// Rows per KV head below which most of a matrix would be empty.
const LEAST_MATRIX_ROWS: u64 = 16;
/// Rows per KV head up to which reading K and V once counts for more than sharing loads.
const MOST_DECODE_ROWS: u64 = 8;
/// Vectors of q, all rows of a workgroup, that the decode schedule holds.
const DECODE_VECTORS: u64 = 256;
/// Bytes of K that a lane of a software device reads before the lanes move on: two pages.
const STRETCH_BYTES: u64 = 8192;
/// Positions are compared as signed 32-bit numbers.
const MAX_POSITIONS: u64 = 1 << 29;

/// A schedule with its variant, as far as planning needs to know it.
#[derive(Debug, Clone, Copy)]
enum Choice {
    Decode(attention_decode::Variant),
    Subgroup(attention_subgroup::Variant),
    Tile(attention_tile::Variant),
    Matrix(attention_matrix::Variant),
}

impl Choice {
    fn schedule(self) -> Schedule {
        match self {
            Self::Decode(_) => Schedule::Decode,
            Self::Subgroup(_) => Schedule::Subgroup,
            Self::Tile(_) => Schedule::Tile,
            Self::Matrix(_) => Schedule::Matrix,
        }
    }

    fn kernel(self, partial: bool) -> Kernel {
        let io = |io: AttentionIo| AttentionIo {
            partial,
            lse: io.lse && !partial,
            ..io
        };
        match self {
            Self::Decode(variant) => attention_decode::Variant {
                io: io(variant.io),
                ..variant
            }
            .into(),
            Self::Subgroup(variant) => attention_subgroup::Variant {
                io: io(variant.io),
                ..variant
            }
            .into(),
            Self::Tile(variant) => attention_tile::Variant {
                io: io(variant.io),
                ..variant
            }
            .into(),
            Self::Matrix(variant) => attention_matrix::Variant {
                io: io(variant.io),
                ..variant
            }
            .into(),
        }
    }

    fn tile_rows(self) -> u64 {
        match self {
            Self::Decode(variant) => variant.rows.into(),
            Self::Subgroup(variant) => variant.tile_rows().into(),
            Self::Tile(_) => attention_tile::TILE.into(),
            Self::Matrix(variant) => variant.tile_rows().into(),
        }
    }

    /// Keys per iteration of the loop over keys.
    fn step_keys(self) -> u64 {
        match self {
            Self::Decode(variant) => variant.subgroup.into(),
            Self::Subgroup(variant) => variant.keys.into(),
            Self::Tile(_) => attention_tile::TILE.into(),
            Self::Matrix(variant) => variant.keys.into(),
        }
    }

    /// The most keys that one invocation may loop over.
    fn most_keys(self, head_dim: u64, budget: u32) -> Option<u64> {
        // One iteration less than the budget, for the check that ends the loop.
        let budget = u64::from(budget.saturating_sub(1));
        let step = self.step_keys();
        let keys = match self {
            Self::Decode(variant) => variant.keys_in(budget),
            Self::Subgroup(variant) => budget / variant.iterations(step) * step,
            Self::Tile(variant) => budget / variant.iterations(step, head_dim) * step,
            Self::Matrix(variant) => budget / variant.iterations(step) * step,
        };
        (keys > 0).then_some(keys)
    }
}

pub(super) fn outline(op: &Attention, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let (choice, why, rejected) = choose(op, caps, tuning)?;
    let space = Space::new(op, caps, choice)?;
    space.outline(tuning, why, rejected)
}

type Rejected = Vec<(Schedule, String)>;

fn choose(op: &Attention, caps: &Caps, tuning: &Tuning) -> Result<(Choice, String, Rejected)> {
    let io = AttentionIo {
        f16: op.q.dtype == DType::F16,
        mask: op.mask.is_some(),
        bias: op.bias.as_ref().map(|bias| bias.dtype == DType::F16),
        lens: op.kv_len.is_some(),
        lse: op.lse.is_some(),
        partial: false,
    };
    let [.., head_dim] = dims(&op.q);
    let [.., value_dim] = dims(&op.v);
    check_numbers(tuning)?;
    let decode = Choice::Decode(decode_variant(op, io, caps, tuning));
    let subgroup = Choice::Subgroup(subgroup_variant(op, io, caps, tuning));
    let tile = Choice::Tile(attention_tile::Variant {
        v_chunks: small(value_dim.div_ceil(attention_tile::TILE.into())),
        io,
    });
    let matrix = matrix_variant(op, io, caps);
    let forced = |schedule| tuning.schedule.is_some_and(|wanted| wanted != schedule);
    let mut rejected = Rejected::new();
    let mut chosen: Option<(Choice, String)> = None;
    for (candidate, why) in [
        (
            decode,
            "few rows per KV head: reading keys and values once is the cost, so each lane reads keys \
             of its own",
        ),
        (
            subgroup,
            "a load costs more than arithmetic on devices with subgroups this small, so each is \
             shared by broadcast",
        ),
        (
            Choice::Matrix(matrix),
            "matrix instructions do both products, and fill on this many rows",
        ),
        (
            tile,
            "needs no subgroup operations: keys and values are shared in workgroup memory",
        ),
    ] {
        let schedule = candidate.schedule();
        // The whole kernel must run, and so must the partial one and the merge.
        let merge = attention_merge::Variant {
            source: attention_merge::Source::Scratch,
            f16: io.f16,
            lse: io.lse,
        };
        let runs = [
            candidate.kernel(false),
            candidate.kernel(true),
            merge.into(),
        ]
        .into_iter()
        .try_for_each(|kernel| kernel.supports(caps));
        let reason = if forced(schedule) {
            Some("the caller asked for another".to_owned())
        } else if let Err(reason) = runs {
            Some(reason)
        } else if candidate.most_keys(head_dim, caps.loop_budget).is_none() {
            Some("the loop budget is smaller than one step".into())
        } else if tuning.schedule.is_none()
            && let Some(reason) = unsuited(schedule, op, caps)
        {
            Some(reason)
        } else if chosen.is_some() {
            Some("the one before it fits better".into())
        } else {
            None
        };
        match reason {
            Some(reason) => rejected.push((schedule, reason)),
            None if tuning.schedule.is_some() => {
                chosen = Some((candidate, "the caller asked for it".into()));
            }
            None => chosen = Some((candidate, why.into())),
        }
    }
    let Some((choice, why)) = chosen else {
        let reasons: Vec<String> = rejected
            .iter()
            .map(|(schedule, reason)| format!("{schedule}: {reason}"))
            .collect();
        return Err(Error::unsupported(
            format!("attention with {} tensors", op.q.dtype),
            reasons.join("; "),
            "create the device with these features and limits, or store the tensors as f32",
        ));
    };
    Ok((choice, why, rejected))
}

/// The matrix variant; without matrices on the device one that it does not support, which says so.
fn matrix_variant(op: &Attention, io: AttentionIo, caps: &Caps) -> attention_matrix::Variant {
    let [.., head_dim] = dims(&op.q);
    let [.., value_dim] = dims(&op.v);
    let shape = caps.matrix(io.f16).unwrap_or(MatrixShape {
        side: if io.f16 { 16 } else { 8 },
        f16: io.f16,
        emulated: false,
    });
    let sizes = (packed_rows(op), small(head_dim), small(value_dim));
    let mut variant = attention_matrix::Variant::new(shape, caps, io, sizes);
    variant.vec4 = [&op.q, &op.k, &op.v, &op.o].into_iter().all(by_fours);
    variant
}

/// Why a schedule that could run is not for this op or device, unless the caller asks for it.
fn unsuited(schedule: Schedule, op: &Attention, caps: &Caps) -> Option<String> {
    let rows = packed_rows(op);
    let wide = caps
        .fixed_subgroup()
        .is_some_and(|size| size > SMALL_SUBGROUP)
        && !caps.software;
    match schedule {
        Schedule::Decode if rows > MOST_DECODE_ROWS => Some(format!(
            "{rows} rows per KV head are enough to share each load among"
        )),
        Schedule::Decode if wide => Some(
            "subgroups of more than 8 lanes: it keeps more per lane than hardware has registers"
                .into(),
        ),
        Schedule::Subgroup if wide => Some(
            "subgroups of more than 8 lanes: workgroup memory is the faster way to share".into(),
        ),
        Schedule::Matrix if rows < LEAST_MATRIX_ROWS => Some(format!(
            "{rows} rows per KV head leave most of a matrix empty"
        )),
        Schedule::Matrix
            if caps
                .matrix(op.q.dtype == DType::F16)
                .is_some_and(|m| m.emulated) =>
        {
            Some("emulated matrices are for tests alone".into())
        }
        Schedule::Matrix if !caps.matrices_checked => Some(
            "not checked on this device: ask for it, tune, or set Caps::matrices_checked".into(),
        ),
        _ => None,
    }
}

fn check_numbers(tuning: &Tuning) -> Result<()> {
    for (name, number) in [("rows", tuning.rows), ("keys", tuning.keys)] {
        if let Some(number) = number
            && !(1..=8).contains(&number)
        {
            return Err(Error::invalid(
                format!("tuning.{name}"),
                number.to_string(),
                "give a number from 1 to 8",
            ));
        }
    }
    Ok(())
}

/// Query rows that share a KV head.
fn packed_rows(op: &Attention) -> u64 {
    let [_, q_heads, q_len, _] = dims(&op.q);
    let [_, kv_heads, ..] = dims(&op.k);
    q_heads / kv_heads.max(1) * q_len
}

fn decode_variant(
    op: &Attention,
    io: AttentionIo,
    caps: &Caps,
    tuning: &Tuning,
) -> attention_decode::Variant {
    let [.., head_dim] = dims(&op.q);
    let [.., value_dim] = dims(&op.v);
    let vec4 = [&op.q, &op.k, &op.v, &op.o].into_iter().all(by_fours);
    let (d4, v4) = (vectors(head_dim, vec4), vectors(value_dim, vec4));
    // Each row of q stays in registers, or in what takes their place.
    let fit = (DECODE_VECTORS / u64::from(d4.max(v4))).max(1);
    let rows = packed_rows(op)
        .next_power_of_two()
        .min(MOST_DECODE_ROWS)
        .min(fit);
    // A software device reads best when each lane stays in pages of its own; hardware, when
    // neighbours read neighbours.
    let software = caps.cpu_vectors();
    let row_bytes =
        op.k.strides
            .get(2)
            .map_or(1, |stride| stride * op.k.dtype.size())
            .max(1);
    let stretch = if software {
        small(
            (STRETCH_BYTES / row_bytes)
                .clamp(1, 256)
                .next_power_of_two(),
        )
    } else {
        1
    };
    attention_decode::Variant {
        subgroup: caps.subgroup.map_or(0, |(min, _)| min),
        rows: tuning.rows.unwrap_or(small(rows)),
        stretch,
        d4,
        v4,
        vec4,
        io,
    }
}

fn subgroup_variant(
    op: &Attention,
    io: AttentionIo,
    caps: &Caps,
    tuning: &Tuning,
) -> attention_subgroup::Variant {
    let [.., head_dim] = dims(&op.q);
    let [.., value_dim] = dims(&op.v);
    let vec4 = [&op.q, &op.k, &op.v, &op.o].into_iter().all(by_fours);
    // As many rows as stay near, each with a row of q and one of o; as many keys as keep the code of a
    // step within a CPU's instruction cache, past which it runs at half the speed.
    let (rows, keys) = match head_dim.max(value_dim) {
        ..=16 => (4, 4),
        17..=64 => (4, 2),
        65..=96 => (4, 1),
        97..=128 => (3, 1),
        129..=192 => (2, 1),
        _ => (1, 1),
    };
    attention_subgroup::Variant {
        subgroup: caps.subgroup.map_or(0, |(min, _)| min),
        rows: tuning.rows.unwrap_or(rows),
        keys: tuning.keys.unwrap_or(keys),
        d4: vectors(head_dim, vec4),
        v4: vectors(value_dim, vec4),
        vec4,
        io,
    }
}

/// Vectors of four in a row. Rows that are read element by element are padded, so that few
/// variants serve all dims.
fn vectors(dim: u64, vec4: bool) -> u32 {
    let padded = if vec4 {
        dim
    } else if dim <= 8 {
        dim.next_multiple_of(4)
    } else if dim <= 64 {
        dim.next_multiple_of(16)
    } else {
        dim.next_multiple_of(64)
    };
    small(padded.div_ceil(4))
}

/// The strides of a layout that has been checked to have four axes.
fn strides(layout: &Layout) -> [u64; 4] {
    std::array::from_fn(|axis| layout.strides.get(axis).copied().unwrap_or(0))
}

/// An op's tensors over the iteration space.
struct Space<'a> {
    op: &'a Attention,
    caps: &'a Caps,
    choice: Choice,
    lens: [u64; AXES],
    head_dim: u64,
    value_dim: u64,
    mask: Option<Layout>,
    bias: Option<Layout>,
    operands: Vec<(Slot, Operand<AXES>)>,
}

impl<'a> Space<'a> {
    fn new(op: &'a Attention, caps: &'a Caps, choice: Choice) -> Result<Self> {
        let [batch, q_heads, q_len, head_dim] = dims(&op.q);
        let [_, kv_heads, kv_len, _] = dims(&op.k);
        let [.., value_dim] = dims(&op.v);
        let group = q_heads / kv_heads;
        for (name, len) in [("q", q_len * group), ("k", kv_len)] {
            if len > MAX_POSITIONS {
                return Err(Error::unsupported(
                    format!("{name} with {len} rows per KV head"),
                    format!("positions are counted up to {MAX_POSITIONS}"),
                    "split the sequence",
                ));
            }
        }
        let scores = [batch, q_heads, q_len, kv_len];
        let broadcast = |name, layout: &Option<Layout>| {
            layout
                .as_ref()
                .map(|layout: &Layout| layout.broadcast(name, &scores))
                .transpose()
        };
        let mask = broadcast("mask", &op.mask)?;
        let bias = broadcast("bias", &op.bias)?;

        let mut operands = Vec::new();
        let mut add = |slot: Slot, layout: &Layout, axes: [u64; AXES], inner| {
            operands.push((slot, Operand::new(slot.name(), layout, axes, inner)));
        };
        // Tensors with query heads: those of one KV head are neighbours.
        let queries = |[b, h, m, n]: [u64; 4]| [b, h * group, h, m, n];
        for (slot, layout) in [(Slot::Q, &op.q), (Slot::O, &op.o)] {
            let [b, h, m, d] = strides(layout);
            let dim = dims(layout)[3];
            add(slot, layout, queries([b, h, m, 0]), d * (dim - 1) + 1);
        }
        for (slot, layout) in [(Slot::K, &op.k), (Slot::V, &op.v)] {
            let [b, h, n, d] = strides(layout);
            let dim = dims(layout)[3];
            add(slot, layout, [b, h, 0, 0, n], d * (dim - 1) + 1);
        }
        if let Some(lse) = &op.lse {
            let [b, h, m, _] = strides(lse);
            add(Slot::Lse, lse, queries([b, h, m, 0]), 1);
        }
        for (slot, layout) in [(Slot::Mask, &mask), (Slot::Bias, &bias)] {
            if let Some(layout) = layout {
                add(slot, layout, queries(strides(layout)), 1);
            }
        }
        if let Some(lens) = &op.kv_len {
            add(Slot::KvLen, lens, [strides(lens)[0], 0, 0, 0, 0], 1);
        }
        Ok(Self {
            op,
            caps,
            choice,
            lens: [batch, kv_heads, group, q_len, kv_len],
            head_dim,
            value_dim,
            mask,
            bias,
            operands,
        })
    }

    fn outline(
        &self,
        tuning: &Tuning,
        why: String,
        rejected: Vec<(Schedule, String)>,
    ) -> Result<Outline> {
        let alignment = u64::from(self.caps.storage_alignment);
        let operands: Vec<Operand<AXES>> = self.operands.iter().map(|(_, o)| o.clone()).collect();
        let limit = self.caps.max_binding_bytes;
        let mut part = slice::fit(self.lens, &operands, limit, alignment)?;
        let mut split_keys = self.split_keys(&part, tuning)?;
        // Key slices hold whole ranges, so that a range is one window.
        if part[KEY] < self.lens[KEY] {
            let step = self.choice.step_keys();
            // A slice shorter than a step is a range of its own.
            if part[KEY] > step {
                part[KEY] = part[KEY] / step * step;
            }
            split_keys = split_keys.min(part[KEY]);
            part[KEY] = part[KEY] / split_keys * split_keys;
        }
        let splits = self.all_splits(&part, split_keys);
        let partial = splits > 1;
        if splits >= u64::from(self.caps.loop_budget) {
            return Err(Error::unsupported(
                format!("{splits} key ranges"),
                format!(
                    "a kernel may loop {} times on this device, and the merge loops over them",
                    self.caps.loop_budget
                ),
                "split the sequence",
            ));
        }
        let scratch_of = |part: &[u64; AXES]| {
            let rows: u64 = part[..KEY].iter().product();
            rows.saturating_mul(splits)
                .saturating_mul((self.value_dim + 2) * 4)
        };
        while partial && scratch_of(&part) > limit {
            match [ROW, GROUP, HEAD, BATCH]
                .into_iter()
                .find(|&axis| part[axis] > 1)
            {
                Some(axis) => part[axis] = part[axis].div_ceil(2),
                None => {
                    return Err(Error::unsupported(
                        format!("{splits} key ranges"),
                        "the partial results of one row do not fit a binding",
                        "split the sequence",
                    ));
                }
            }
        }

        slice::check_count(self.lens, part, limit)?;
        let whole = Part {
            start: [0; AXES],
            len: self.lens,
        };
        let mut steps = Vec::new();
        for rows in slice::parts(whole, part, &[BATCH, HEAD, GROUP, ROW]) {
            let mut split_start = 0;
            for keys in slice::parts(rows, part, &[KEY]) {
                let here = keys.len[KEY].div_ceil(split_keys);
                steps.push(self.attend(&keys, split_keys, (split_start, here, splits), partial)?);
                split_start += here;
            }
            if partial {
                steps.push(self.merge(&rows, splits)?);
            }
        }
        Ok(Outline {
            op: self.op.clone().into(),
            schedule: self.choice.schedule(),
            why,
            rejected,
            splits,
            steps,
            scratch_bytes: if partial { scratch_of(&part) } else { 0 },
        })
    }

    /// Keys per range: at most what the loop budget allows; fewer when there are few rows.
    fn split_keys(&self, part: &[u64; AXES], tuning: &Tuning) -> Result<u64> {
        let step = self.choice.step_keys();
        let most = self
            .choice
            .most_keys(self.head_dim, self.caps.loop_budget)
            .unwrap_or(step);
        let keys = part[KEY];
        let tiles =
            part[BATCH] * part[HEAD] * (part[ROW] * part[GROUP]).div_ceil(self.choice.tile_rows());
        let wanted = match tuning.splits {
            Some(0) => {
                return Err(Error::invalid(
                    "tuning.splits",
                    "0",
                    "give at least 1 range",
                ));
            }
            Some(splits) => splits.into(),
            None => (WANTED_WORKGROUPS / tiles.max(1)).min(keys / LEAST_SPLIT_KEYS),
        };
        let even = keys.div_ceil(wanted.max(1)).next_multiple_of(step);
        Ok(even.min(most))
    }

    fn all_splits(&self, part: &[u64; AXES], split_keys: u64) -> u64 {
        let full = self.lens[KEY] / part[KEY];
        let rest = self.lens[KEY] % part[KEY];
        full * part[KEY].div_ceil(split_keys) + rest.div_ceil(split_keys)
    }

    fn window(&self, slot: Slot, part: &Part<AXES>) -> Option<Window> {
        let alignment = u64::from(self.caps.storage_alignment);
        self.operands
            .iter()
            .find(|(other, _)| *other == slot)
            .map(|(_, operand)| operand.window(part, alignment))
    }

    fn attend(
        &self,
        part: &Part<AXES>,
        split_keys: u64,
        (split_start, splits, all_splits): (u64, u64, u64),
        partial: bool,
    ) -> Result<Step> {
        let op = self.op;
        let kernel = self.choice.kernel(partial);
        let [batch, kv_heads, group, q_len, kv_len] = part.len;
        let row_tiles = (q_len * group).div_ceil(self.choice.tile_rows());
        let tiles = batch * kv_heads * row_tiles * splits;
        let all_keys = self.lens[KEY] as i32;
        let (diagonal, diagonal_lens) = match op.causal {
            Causal::None => (all_keys, 0),
            Causal::TopLeft => (0, 0),
            Causal::BottomRight => (-(self.lens[ROW] as i32), 1),
        };
        let mut params = AttentionParams {
            tiles: small(tiles),
            row_tiles: small(row_tiles),
            splits: small(splits),
            split_keys: small(split_keys),
            split_start: small(split_start),
            all_splits: small(all_splits),
            kv_heads: small(kv_heads),
            group: small(group),
            all_group: small(self.lens[GROUP]),
            q_len: small(q_len),
            kv_len: small(kv_len),
            all_keys: small(self.lens[KEY]),
            head_dim: small(self.head_dim),
            value_dim: small(self.value_dim),
            row_start: small(part.start[ROW]),
            key_start: small(part.start[KEY]),
            diagonal,
            diagonal_lens,
            scale: op.effective_scale() * std::f32::consts::LOG2_E,
            minus_infinity: f32::NEG_INFINITY,
            ..AttentionParams::default()
        };
        let mut ranges = Vec::new();
        for &(slot, _) in &self.operands {
            if partial && slot.is_output() {
                continue;
            }
            let Some(window) = self.window(slot, part) else {
                continue;
            };
            ranges.push(Range {
                slot,
                offset: window.offset,
                size: window.size,
            });
            let at = window.first;
            match slot {
                Slot::Q => {
                    params.q_at = at;
                    [params.q_batch, params.q_head, params.q_row, params.q_dim] =
                        layout_places(&op.q);
                }
                Slot::K => {
                    params.k_at = at;
                    [params.k_batch, params.k_head, params.k_row, params.k_dim] =
                        layout_places(&op.k);
                }
                Slot::V => {
                    params.v_at = at;
                    [params.v_batch, params.v_head, params.v_row, params.v_dim] =
                        layout_places(&op.v);
                }
                Slot::O => {
                    params.o_at = at;
                    [params.o_batch, params.o_head, params.o_row, params.o_dim] =
                        layout_places(&op.o);
                }
                Slot::Lse => {
                    params.lse_at = at;
                    if let Some(lse) = &op.lse {
                        [params.lse_batch, params.lse_head, params.lse_row, _] = layout_places(lse);
                    }
                }
                Slot::Mask => {
                    params.mask_at = at;
                    if let Some(mask) = &self.mask {
                        [
                            params.mask_batch,
                            params.mask_head,
                            params.mask_row,
                            params.mask_key,
                        ] = layout_places(mask);
                    }
                }
                Slot::Bias => {
                    params.bias_at = at;
                    if let Some(bias) = &self.bias {
                        [
                            params.bias_batch,
                            params.bias_head,
                            params.bias_row,
                            params.bias_key,
                        ] = layout_places(bias);
                    }
                }
                Slot::KvLen => {
                    params.kv_len_at = at;
                    if let Some(lens) = &op.kv_len {
                        [params.kv_len_batch] = layout_places(lens);
                    }
                }
                Slot::X | Slot::Y | Slot::OParts | Slot::LseParts | Slot::Scratch => {}
            }
        }
        if partial {
            ranges.push(self.scratch(part, all_splits));
        }
        Ok(Step {
            kernel,
            ranges,
            params: params.bytes(),
            grid: grid(tiles, self.caps)?,
        })
    }

    fn scratch(&self, part: &Part<AXES>, splits: u64) -> Range {
        let rows: u64 = part.len[..KEY].iter().product();
        Range {
            slot: Slot::Scratch,
            offset: 0,
            size: rows * splits * (self.value_dim + 2) * 4,
        }
    }

    fn merge(&self, part: &Part<AXES>, splits: u64) -> Result<Step> {
        let op = self.op;
        let [batch, kv_heads, group, q_len, _] = part.len;
        let elements = batch * kv_heads * group * q_len * self.value_dim;
        let mut params = attention_merge::Params {
            elements: small(elements),
            splits: small(splits),
            value_dim: small(self.value_dim),
            q_len: small(q_len),
            kv_heads: small(kv_heads),
            group: small(group),
            all_group: small(self.lens[GROUP]),
            minus_infinity: f32::NEG_INFINITY,
            ..attention_merge::Params::default()
        };
        let mut ranges = vec![self.scratch(part, splits)];
        for slot in [Slot::O, Slot::Lse] {
            let Some(window) = self.window(slot, part) else {
                continue;
            };
            ranges.push(Range {
                slot,
                offset: window.offset,
                size: window.size,
            });
            match (slot, &op.lse) {
                (Slot::Lse, Some(lse)) => {
                    params.lse_at = window.first;
                    [params.lse_batch, params.lse_head, params.lse_row, _] = layout_places(lse);
                }
                _ => {
                    params.o_at = window.first;
                    [params.o_batch, params.o_head, params.o_row, params.o_dim] =
                        layout_places(&op.o);
                }
            }
        }
        let variant = attention_merge::Variant {
            source: attention_merge::Source::Scratch,
            f16: op.o.dtype == DType::F16,
            lse: op.lse.is_some(),
        };
        let workgroups = elements.div_ceil(attention_merge::WORKGROUP.into());
        Ok(Step {
            kernel: variant.into(),
            ranges,
            params: params.bytes(),
            grid: grid(workgroups, self.caps)?,
        })
    }
}
