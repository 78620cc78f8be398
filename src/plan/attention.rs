//! Attention: which slices and key ranges.

pub(super) mod weights;

use super::{
    Outline, Range, Step, Tuning, WANTED_WORKGROUPS,
    choose::{Choice, MOST_PROB_RANGES, Rejected, choose},
    grid, layout_places,
    slice::{self, Operand, Part, Window},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{AttentionParams, Kernel, attention_merge},
    ops::{Attention, Corner, KeyIndex, Slot, dims},
    shader::mods::Mods,
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
/// Positions are compared as signed 32-bit numbers.
const MAX_POSITIONS: u64 = 1 << 29;
/// A window's side that holds every place.
const ALL_PLACES: i32 = 1 << 30;

pub(super) fn outline(op: &Attention, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let (choice, why, rejected) = choose(op, caps, tuning)?;
    let space = Space::new(op, caps, choice)?;
    space.outline(tuning, why, rejected)
}

/// The strides of a layout that has been checked to have four axes.
fn strides(layout: &Layout) -> [u64; 4] {
    std::array::from_fn(|axis| layout.strides.get(axis).copied().unwrap_or(0))
}

/// The same, where axes of length 1 are shared by all.
fn shared(layout: &Layout) -> [u64; 4] {
    let lens = dims(layout);
    let strides = strides(layout);
    std::array::from_fn(|axis| if lens[axis] == 1 { 0 } else { strides[axis] })
}

/// One pass over the keys.
#[derive(Debug, Clone, Copy)]
struct Pass {
    /// It leaves partial results in scratch.
    partial: bool,
    /// It reads maxima and totals that the pass before has left there.
    probs: bool,
    /// Where its partial results begin, in bytes.
    start: u64,
}

/// An op's tensors over the iteration space.
struct Space<'a> {
    op: &'a Attention,
    caps: &'a Caps,
    choice: Choice,
    mods: Mods,
    lens: [u64; AXES],
    head_dim: u64,
    value_dim: u64,
    mask: Option<Layout>,
    bias: Option<Layout>,
    gate: Option<Layout>,
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
        for (slot, lens) in [
            (Slot::KvLen, &op.kv_len),
            (Slot::QLen, &op.q_len),
            (Slot::PrefixLen, &op.prefix_len),
        ] {
            if let Some(lens) = lens {
                add(slot, lens, [strides(lens)[0], 0, 0, 0, 0], 1);
            }
        }
        for (slot, starts) in [(Slot::CuQ, &op.cu_q), (Slot::CuKv, &op.cu_kv)] {
            if let Some(starts) = starts {
                let [sequence, ..] = strides(starts);
                add(
                    slot,
                    starts,
                    [0; AXES],
                    sequence * (dims(starts)[0] - 1) + 1,
                );
            }
        }
        if let Some(windows) = &op.head_windows {
            let [h, part, ..] = strides(windows);
            add(Slot::HeadWindows, windows, queries([0, h, 0, 0]), part + 1);
        }
        let gate = op
            .gate
            .as_ref()
            .map(|gate| gate.broadcast("gate", &scores[..3]))
            .transpose()?;
        if let Some(gate) = &gate {
            let [b, h, m, _] = strides(gate);
            add(Slot::Gate, gate, queries([b, h, m, 0]), 1);
        }
        if let Some(sinks) = &op.sinks {
            let [h, ..] = strides(sinks);
            add(Slot::Sinks, sinks, queries([0, h, 0, 0]), 1);
        }
        if let Some(mask) = &op.block_mask {
            // Rows and words are found by the whole tensor's places.
            let [b, h, row, word] = shared(&mask.bits);
            let [_, heads, rows, words] = dims(&mask.bits);
            let axes = if heads == kv_heads {
                [b, h, 0, 0, 0]
            } else {
                queries([b, h, 0, 0])
            };
            let inner = row * (rows - 1) + word * (words - 1) + 1;
            add(Slot::Blocks, &mask.bits, axes, inner);
        }
        if let Some(starts) = &op.block_starts {
            let [block, ..] = strides(starts);
            let inner = block * (dims(starts)[0] - 1) + 1;
            add(Slot::BlockStarts, starts, [0; AXES], inner);
        }
        if let Some(KeyIndex { index, block_q }) = &op.key_index {
            let [b, h, list, entry] = shared(index);
            let [_, heads, lists, entries] = dims(index);
            let inner = entry * (entries - 1) + 1;
            // Lists of one query each lie with it; others are found by the whole tensor's places.
            let (row, inner) = match block_q {
                1 => (list, inner),
                _ => (0, inner + list * (lists - 1)),
            };
            let axes = if heads == kv_heads {
                [b, h, 0, row, 0]
            } else {
                queries([b, h, row, 0])
            };
            add(Slot::Index, index, axes, inner);
        }
        let buffers = op.mods.iter().flat_map(|change| &change.buffers);
        for (slot, buffer) in Slot::BUFFERS.into_iter().zip(buffers) {
            let elements = buffer.layout.elements();
            add(slot, &buffer.layout, [0; AXES], elements);
        }
        Ok(Self {
            op,
            caps,
            choice,
            mods: Mods::link(&op.mods)?,
            lens: [batch, kv_heads, group, q_len, kv_len],
            head_dim,
            value_dim,
            mask,
            bias,
            gate,
            operands,
        })
    }

    fn outline(&self, tuning: &Tuning, why: String, rejected: Rejected) -> Result<Outline> {
        let alignment = u64::from(self.caps.storage_alignment);
        let operands: Vec<Operand<AXES>> = self.operands.iter().map(|(_, o)| o.clone()).collect();
        let limit = self.caps.max_binding_bytes;
        let mut part = slice::fit(self.lens, &operands, limit, alignment)?;
        self.align_lists(&mut part)?;
        let mut split_keys = self.split_keys(&part, tuning)?;
        // Key slices hold whole ranges, so that a range is one window. Lists are walked in full in each.
        if part[KEY] < self.lens[KEY] && self.op.key_index.is_none() {
            let step = self.choice.step_keys();
            // A slice shorter than a step is a range of its own.
            if part[KEY] > step {
                part[KEY] = part[KEY] / step * step;
            }
            split_keys = split_keys.min(part[KEY]);
            part[KEY] = part[KEY] / split_keys * split_keys;
        }
        let splits = self.all_splits(&part, split_keys);
        let probs = self.mods.has_prob();
        let remedy = match tuning.splits {
            Some(_) => "ask for fewer ranges (tuning.splits), or split the sequence",
            None => "split the sequence",
        };
        // The merge loops over them for the largest maximum, and for the sums.
        if splits > 1 && 2 * (splits + 1) > u64::from(self.caps.loop_budget) {
            return Err(Error::unsupported(
                format!("{splits} key ranges"),
                format!(
                    "a kernel may loop {} times on this device, and the merge loops over them twice",
                    self.caps.loop_budget
                ),
                remedy,
            ));
        }
        if probs && splits > MOST_PROB_RANGES {
            return Err(Error::unsupported(
                format!("{splits} key ranges with a prob_mod"),
                format!(
                    "its second pass looks at the ranges of the first, at most {MOST_PROB_RANGES}"
                ),
                remedy,
            ));
        }
        // What mods make of weights is not normalised again: a first pass finds maximum and total.
        let scratch_of = |part: &[u64; AXES]| {
            let region = self.region(part, splits);
            match (probs, splits > 1) {
                (true, true) => region.saturating_mul(2),
                (false, false) => 0,
                _ => region,
            }
        };
        while scratch_of(&part) > limit {
            // Queries that share a list stay together.
            let fewest = match &self.op.key_index {
                Some(lists) if lists.block_q < self.lens[ROW] => lists.block_q,
                _ => 1,
            };
            match [ROW, GROUP, HEAD, BATCH]
                .into_iter()
                .find(|&axis| part[axis] > if axis == ROW { fewest } else { 1 })
            {
                Some(axis) => {
                    part[axis] = part[axis].div_ceil(2);
                    self.align_lists(&mut part)?;
                }
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
            let mut passes = vec![Pass {
                partial: probs || splits > 1,
                probs: false,
                start: 0,
            }];
            if probs {
                passes.push(Pass {
                    partial: splits > 1,
                    probs: true,
                    start: if splits > 1 {
                        self.region(&rows.len, splits)
                    } else {
                        0
                    },
                });
            }
            for pass in passes {
                let mut split_start = 0;
                for keys in slice::parts(rows, part, &[KEY]) {
                    let here = self.places(keys.len[KEY]).div_ceil(split_keys);
                    let ranges = (split_start, here, splits);
                    steps.push(self.attend(&keys, split_keys, ranges, pass)?);
                    split_start += here;
                }
                // A first pass is merged for the log-sum-exp.
                if pass.partial && (!probs || pass.probs || self.op.lse.is_some()) {
                    steps.push(self.merge(&rows, splits, pass)?);
                }
            }
        }
        Ok(Outline {
            op: self.op.clone().into(),
            schedule: self.choice.schedule(),
            why,
            rejected,
            splits,
            steps,
            scratch_bytes: scratch_of(&part),
        })
    }

    /// Bytes of scratch that a pass leaves partial results in.
    fn region(&self, part: &[u64; AXES], splits: u64) -> u64 {
        let rows: u64 = part[..KEY].iter().product();
        rows.saturating_mul(splits)
            .saturating_mul((self.value_dim + 2) * 4)
    }

    /// Keys per range: at most what the loop budget allows; fewer when there are few rows.
    fn split_keys(&self, part: &[u64; AXES], tuning: &Tuning) -> Result<u64> {
        let step = self.choice.step_keys();
        let most = self
            .choice
            .most_keys(self.op, self.caps.loop_budget)
            .unwrap_or(step);
        let keys = self.places(part[KEY]);
        let visited = self.visited_keys(part).min(keys);
        let tiles = part[BATCH] * part[HEAD] * self.row_tiles(part[ROW], part[GROUP]);
        let wanted = match tuning.splits {
            Some(0) => {
                return Err(Error::invalid(
                    "tuning.splits",
                    "0",
                    "give at least 1 range",
                ));
            }
            Some(splits) => splits.into(),
            None => (WANTED_WORKGROUPS / tiles.max(1)).min(visited / LEAST_SPLIT_KEYS),
        };
        let even = keys.div_ceil(wanted.max(1)).next_multiple_of(step);
        // The loops over a range of any length end when what a tile sees of it does.
        let most = if visited < most { even } else { most };
        Ok(even.min(most))
    }

    /// The most keys that a tile of rows visits, as far as windows tell.
    fn visited_keys(&self, part: &[u64; AXES]) -> u64 {
        let reach = self.op.reach();
        // In packed sequences a tile may hold the end of one and the start of another.
        let given = [&self.op.head_windows, &self.op.prefix_len, &self.op.cu_q];
        let bounded = given.into_iter().all(Option::is_none);
        let bounded = bounded && self.op.key_index.is_none();
        // A walk by blocks takes those between the first keys and the window too.
        let bounded = bounded && (self.op.block_mask.is_none() || reach.early == 0);
        let (Some(left), Some(right), true) = (reach.left, reach.right, bounded) else {
            return u64::MAX;
        };
        let rows = self.choice.tile_rows();
        // A tile that crosses heads holds the last queries of one and the first of another.
        let aligned = part[GROUP] == 1 || part[ROW].is_multiple_of(rows);
        let queries = if aligned {
            rows.min(part[ROW])
        } else {
            part[ROW]
        };
        // A step that each of two runs does not fill, and the 8 keys between that join them in `walk_of`.
        [left, right, reach.early, 2 * self.choice.step_keys() + 8]
            .into_iter()
            .fold(queries, u64::saturating_add)
    }

    /// Whether the rows of a tile may lie in several rows of blocks of a block mask, or in several heads.
    fn mixed_blocks(&self, part: &Part<AXES>) -> bool {
        let Some(mask) = &self.op.block_mask else {
            return false;
        };
        let rows = self.choice.tile_rows();
        let heads_alike = [1, self.lens[HEAD]].contains(&dims(&mask.bits)[1]);
        let one_head = part.len[GROUP] == 1 || part.len[ROW].is_multiple_of(rows);
        let one_block = mask.block_q.is_multiple_of(rows) && part.start[ROW].is_multiple_of(rows);
        let all_queries = mask.block_q >= self.lens[ROW];
        !((one_head && one_block) || (all_queries && (one_head || heads_alike)))
    }

    fn all_splits(&self, part: &[u64; AXES], split_keys: u64) -> u64 {
        let full = self.lens[KEY] / part[KEY];
        let rest = self.lens[KEY] % part[KEY];
        let ranges = |keys| self.places(keys).div_ceil(split_keys);
        full * ranges(part[KEY]) + if rest > 0 { ranges(rest) } else { 0 }
    }

    /// Places that a walk over so many keys has: those of a list, where there is one.
    fn places(&self, keys: u64) -> u64 {
        match &self.op.key_index {
            Some(lists) => dims(&lists.index)[3],
            None => keys,
        }
    }

    /// Tiles over the rows of a KV head. A tile's rows share a list.
    fn row_tiles(&self, q_len: u64, group: u64) -> u64 {
        let tile = self.choice.tile_rows();
        match &self.op.key_index {
            Some(lists) => {
                let rows = lists.block_q.min(q_len);
                q_len.div_ceil(rows) * (rows * group).div_ceil(tile)
            }
            None => (q_len * group).div_ceil(tile),
        }
    }

    /// Makes slices begin where lists do, and hold one query head of a group where each has lists of its own.
    fn align_lists(&self, part: &mut [u64; AXES]) -> Result<()> {
        let Some(KeyIndex { index, block_q }) = &self.op.key_index else {
            return Ok(());
        };
        let heads = dims(index)[1];
        if heads != 1 && heads != self.lens[HEAD] {
            part[GROUP] = 1;
        }
        if part[ROW] < self.lens[ROW] && *block_q < self.lens[ROW] {
            part[ROW] = part[ROW] / block_q * block_q;
            if part[ROW] == 0 {
                return Err(Error::unsupported(
                    format!("lists for {block_q} queries each"),
                    "the tensors of so many queries do not fit a binding",
                    "give a list to fewer queries, or split the sequence",
                ));
            }
        }
        Ok(())
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
        splits: (u64, u64, u64),
        pass: Pass,
    ) -> Result<Step> {
        let (tiles, params, mut ranges) = self.bindings(part, split_keys, splits, pass);
        if pass.partial || pass.probs {
            ranges.push(self.scratch(part, splits.2, pass));
        }
        let mixed = self.mixed_blocks(part);
        Ok(Step {
            kernel: self.choice.kernel(pass.partial, pass.probs, mixed),
            ranges,
            params: params.bytes(),
            grid: grid(tiles, self.caps)?,
        })
    }

    /// The number of workgroups, the parameters, and what of the op's tensors is bound.
    fn bindings(
        &self,
        part: &Part<AXES>,
        split_keys: u64,
        (split_start, splits, all_splits): (u64, u64, u64),
        pass: Pass,
    ) -> (u64, AttentionParams, Vec<Range>) {
        let op = self.op;
        let Pass { partial, probs, .. } = pass;
        let [batch, kv_heads, group, q_len, kv_len] = part.len;
        let row_tiles = self.row_tiles(q_len, group);
        let tiles = batch * kv_heads * row_tiles * splits;
        let reach = op.reach();
        let places = |count: Option<u64>| {
            count.map_or(ALL_PLACES, |count| count.min(ALL_PLACES as u64) as i32)
        };
        let head_start = part.start[HEAD] * self.lens[GROUP] + part.start[GROUP];
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
            batch_start: small(part.start[BATCH]),
            head_start: small(head_start),
            all_rows: small(self.lens[ROW]),
            corner: (reach.corner == Corner::BottomRight).into(),
            left: places(reach.left),
            right: places(reach.right),
            early: places(Some(reach.early)) as u32,
            partial_start: small(pass.start / 4),
            sequences: op.cu_q.as_ref().map_or(0, |cu| small(dims(cu)[0] - 1)),
            block_q: op
                .block_mask
                .as_ref()
                .map_or(1, |mask| small(mask.block_q.min(MAX_POSITIONS))),
            block_kv: op
                .block_mask
                .as_ref()
                .map_or(1, |mask| small(mask.block_kv.min(MAX_POSITIONS))),
            blocks_heads: match &op.block_mask {
                Some(mask) if dims(&mask.bits)[1] == self.lens[HEAD] => small(self.lens[GROUP]),
                _ => 1,
            },
            kv_blocks: op
                .block_starts
                .as_ref()
                .map_or(0, |starts| small(dims(starts)[0] - 1)),
            list_rows: op
                .key_index
                .as_ref()
                .map_or(1, |lists| small(lists.block_q.min(q_len))),
            entries: op
                .key_index
                .as_ref()
                .map_or(0, |lists| small(dims(&lists.index)[3])),
            scale: op.effective_scale() * std::f32::consts::LOG2_E,
            softcap: op.softcap.unwrap_or(1.0) * std::f32::consts::LOG2_E,
            minus_infinity: f32::NEG_INFINITY,
            ..AttentionParams::default()
        };
        let mut ranges = Vec::new();
        for &(slot, _) in &self.operands {
            if (partial && (slot.is_output() || slot == Slot::Gate))
                || (probs && matches!(slot, Slot::Lse | Slot::Sinks))
            {
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
                Slot::QLen => {
                    params.q_len_at = at;
                    if let Some(lens) = &op.q_len {
                        [params.q_len_batch] = layout_places(lens);
                    }
                }
                Slot::PrefixLen => {
                    params.prefix_len_at = at;
                    if let Some(lens) = &op.prefix_len {
                        [params.prefix_len_batch] = layout_places(lens);
                    }
                }
                Slot::CuQ => {
                    params.cu_q_at = at;
                    if let Some(starts) = &op.cu_q {
                        [params.cu_q_sequence] = layout_places(starts);
                    }
                }
                Slot::CuKv => {
                    params.cu_kv_at = at;
                    if let Some(starts) = &op.cu_kv {
                        [params.cu_kv_sequence] = layout_places(starts);
                    }
                }
                Slot::HeadWindows => {
                    params.head_windows_at = at;
                    if let Some(windows) = &op.head_windows {
                        [params.head_windows_head, params.head_windows_part] =
                            layout_places(windows);
                    }
                }
                Slot::Sinks => {
                    params.sinks_at = at;
                    if let Some(sinks) = &op.sinks {
                        [params.sinks_head] = layout_places(sinks);
                    }
                }
                Slot::Gate => {
                    params.gate_at = at;
                    if let Some(gate) = &self.gate {
                        [params.gate_batch, params.gate_head, params.gate_row] =
                            layout_places(gate);
                    }
                }
                Slot::Blocks => {
                    params.blocks_at = at;
                    if let Some(mask) = &op.block_mask {
                        [
                            params.blocks_batch,
                            params.blocks_head,
                            params.blocks_row,
                            params.blocks_word,
                        ] = layout_places(&mask.bits);
                    }
                }
                Slot::BlockStarts => {
                    params.block_starts_at = at;
                    if let Some(starts) = &op.block_starts {
                        [params.block_starts_block] = layout_places(starts);
                    }
                }
                Slot::Index => {
                    if let Some(KeyIndex { index, block_q }) = &op.key_index {
                        let [b, h, list, entry] = shared(index);
                        // The first of several queries' lists, where the window begins with the tensor's first.
                        let first = match block_q {
                            1 => 0,
                            _ => part.start[ROW] / block_q,
                        };
                        let each = dims(index)[1] != self.lens[HEAD];
                        params.index_at = at + small(first * list);
                        params.index_batch = small(b);
                        params.index_head = small(if each { h * self.lens[GROUP] } else { h });
                        params.index_row = small(list);
                        params.index_entry = small(entry);
                    }
                }
                Slot::Buffer0 => params.buffer_0_at = at,
                Slot::Buffer1 => params.buffer_1_at = at,
                Slot::Buffer2 => params.buffer_2_at = at,
                Slot::Buffer3 => params.buffer_3_at = at,
                _ => {}
            }
        }
        (tiles, params, ranges)
    }

    /// All of scratch that a pass reads or writes.
    fn scratch(&self, part: &Part<AXES>, splits: u64, pass: Pass) -> Range {
        Range {
            slot: Slot::Scratch,
            offset: 0,
            size: pass.start + self.region(&part.len, splits),
        }
    }

    fn merge(&self, part: &Part<AXES>, splits: u64, pass: Pass) -> Result<Step> {
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
        params.partial_start = small(pass.start / 4);
        let mut ranges = vec![self.scratch(part, splits, pass)];
        for slot in [Slot::O, Slot::Lse, Slot::Gate] {
            let wanted = !(pass.probs && slot == Slot::Lse);
            let Some(window) = self.window(slot, part).filter(|_| wanted) else {
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
                (Slot::Gate, _) => {
                    params.gate_at = window.first;
                    if let Some(gate) = &self.gate {
                        [params.gate_batch, params.gate_head, params.gate_row] =
                            layout_places(gate);
                    }
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
            lse: op.lse.is_some() && !pass.probs,
            gate: op.gate.is_some(),
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

/// See [`Outline::visited_tiles`].
pub(super) fn visited_tiles(op: &Attention, kernel: Kernel) -> Option<(u64, u64)> {
    const MOST_TILES: u64 = 1 << 20;
    let choice = Choice::of(kernel)?;
    let [batch, q_heads, q_len, _] = dims(&op.q);
    let [_, kv_heads, kv_len, _] = dims(&op.k);
    let rows = q_heads / kv_heads * q_len;
    let (tile, step) = (choice.tile_rows(), choice.step_keys());
    let tiles = rows.div_ceil(tile);
    // Places in packed sequences count from starts that only the device knows.
    if tiles > MOST_TILES || op.cu_q.is_some() || op.key_index.is_some() {
        return None;
    }
    // Numbers below 2^29, as the plan has seen to.
    let [m, n] = [q_len, kv_len].map(|len| len as i64);
    let reach = op.reach();
    let count = |keys: Option<u64>| {
        keys.map_or(i64::from(ALL_PLACES), |keys| {
            keys.min(ALL_PLACES as u64) as i64
        })
    };
    let ahead = match reach.corner {
        Corner::TopLeft => 0,
        Corner::BottomRight => n - m,
    };
    let sight = |query: u64| {
        let place = query as i64 + ahead;
        let limit = (place + count(reach.right) + 1).clamp(0, n);
        let first = (place - count(reach.left)).clamp(0, limit);
        (first, limit, count(Some(reach.early)).min(limit))
    };
    let steps = |keys: i64| keys.max(0) as u64;
    let visited: u64 = (0..tiles)
        .map(|number| {
            let first_row = number * tile;
            let last_row = (first_row + tile).min(rows) - 1;
            // A tile that crosses heads holds the last queries of one and the first of another.
            let (low, high) = if first_row / q_len == last_row / q_len {
                (first_row % q_len, last_row % q_len)
            } else {
                (0, q_len - 1)
            };
            let ((first, ..), (_, limit, early)) = (sight(low), sight(high));
            if early >= first {
                steps(limit).div_ceil(step)
            } else {
                steps(early).div_ceil(step) + steps(limit - first).div_ceil(step)
            }
        })
        .sum();
    let heads = batch * kv_heads;
    Some((heads * visited, heads * tiles * kv_len.div_ceil(step)))
}
