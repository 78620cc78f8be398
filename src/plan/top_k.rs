//! Selection of the best elements of rows: by one workgroup per row, or by the best groups of long ones.
//!
//! Other ops plan selections as steps of their own: see [`Selection`].

use super::{
    Outline, Range, Schedule, Step, grid, places,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Kernel,
        top_k::{self, From, MOST_ROOM, To},
        top_k_gather, top_k_groups, top_k_rows,
    },
    ops::{Slot, TopK},
    tensor::{DType, Layout},
};

/// Rows up to which one workgroup reads all of a row a few times.
const LONG: u64 = 2048;
/// Rows up to which one invocation of a software device reads all of a row once.
const LONG_ALONE: u64 = 8192;
/// Invocations that keep a software device busy.
const SOFTWARE_INVOCATIONS: u64 = 2048;
/// Rows of which more than this share is taken are not worth groups: one of so many.
const LEAST_SHARE: u64 = 64;
/// Rows from which a software device gives one to each invocation.
const MANY_ROWS: u64 = 16;
/// Rows up to which any device does.
const SHORT: u64 = 256;
/// Sizes of groups.
const GROUPS: std::ops::RangeInclusive<u64> = 16..=1024;
/// Bytes that an invocation of a software device reads in one stretch.
const STRETCH_BYTES: u64 = 32768;
/// Candidates that an invocation copies.
const SOFTWARE_RUN: u64 = 16;

/// Where rows come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// A tensor `[.., length]`, f32 or f16, in the slot `x` or `scores`.
    Tensor(Slot, &'a Layout),
    /// f32 rows in scratch, from this place on and so far apart, both in floats: those of the rows that are selected
    /// from together, numbered with the last axis fastest. An element of the bits `u32::MAX` counts as not there.
    Scratch { at: u64, stride: u64 },
}

/// Where indices go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    /// Nowhere.
    Nowhere,
    /// A u32 tensor `[.., k]`, in the slot `indices`.
    Tensor(&'a Layout),
    /// Scratch, as a [`Source::Scratch`], `k` places a row.
    Scratch { at: u64, stride: u64 },
}

/// A selection from rows, which a plan turns into steps: first [`Selection::operands`] and [`Selection::floats`] say
/// which rows go together, then [`Selection::steps`] selects from those.
///
/// `k` may be more than `length`: places that nothing is left for hold `NONE`. The steps read what steps before them
/// left in scratch, and change nothing there but from `room.at` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selection<'a> {
    /// Axes of rows.
    pub rows: [u64; 3],
    /// Elements of a row.
    pub length: u64,
    pub k: u64,
    pub largest: bool,
    /// Best first; else ascending.
    pub sorted: bool,
    pub skip_hidden: bool,
    pub source: Source<'a>,
    /// u32, over the axes of rows.
    pub row_len: Option<&'a Layout>,
    /// Of the source's type, `[.., k]`.
    pub values: Option<&'a Layout>,
    pub indices: Target<'a>,
}

/// Scratch for a selection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// The first float that it may use.
    pub at: u64,
    /// Bytes of scratch that steps bind, from its start.
    pub bytes: u64,
}

/// The last three axes of rows: a layout's axes but the `own` last.
pub(super) fn row_strides(layout: &Layout, own: usize) -> [u64; 3] {
    let rows = layout.rank().saturating_sub(own);
    std::array::from_fn(|axis| match (rows + axis).checked_sub(3) {
        Some(at) if at < rows && layout.shape[at] > 1 => layout.strides[at],
        _ => 0,
    })
}

/// A tensor of rows, with all of each row.
pub(super) fn operand(slot: Slot, layout: &Layout, own: usize) -> Operand<3> {
    let along = match (own, layout.shape.last(), layout.strides.last()) {
        (1, Some(len), Some(stride)) => stride * (len - 1) + 1,
        _ => 1,
    };
    Operand::new(slot.name(), layout, row_strides(layout, own), along)
}

/// The same, with the elements of a row as a fourth axis.
fn by_elements(slot: Slot, layout: &Layout) -> Operand<4> {
    let [a, b, c] = row_strides(layout, 1);
    let element = layout.strides.last().copied().unwrap_or(0);
    Operand::new(slot.name(), layout, [a, b, c, element], 1)
}

impl Selection<'_> {
    fn of(op: &TopK) -> Selection<'_> {
        Selection {
            rows: axes_of_rows(&op.x),
            length: op.x.shape.last().copied().unwrap_or(1),
            k: op.k,
            largest: op.largest,
            sorted: op.sorted,
            skip_hidden: op.skip_hidden,
            source: Source::Tensor(Slot::X, &op.x),
            row_len: op.row_len.as_ref(),
            values: op.values.as_ref(),
            indices: op.indices.as_ref().map_or(Target::Nowhere, Target::Tensor),
        }
    }

    /// The tensors that steps bind, all of a row at a time: they decide which rows go together. The source is not
    /// among them where a row of it spans more than a binding; then rows go one by one.
    pub fn operands(&self, caps: &Caps) -> Vec<(Slot, Operand<3>)> {
        let mut list = Vec::new();
        if let Source::Tensor(slot, layout) = self.source
            && !self.cuts_rows(caps)
        {
            list.push((slot, operand(slot, layout, 1)));
        }
        list.extend(
            self.row_len
                .map(|l| (Slot::RowLen, operand(Slot::RowLen, l, 0))),
        );
        list.extend(
            self.values
                .map(|l| (Slot::Values, operand(Slot::Values, l, 1))),
        );
        if let Target::Tensor(layout) = self.indices {
            list.push((Slot::Indices, operand(Slot::Indices, layout, 1)));
        }
        list
    }

    /// Whether one row of the source spans more than a binding.
    pub fn cuts_rows(&self, caps: &Caps) -> bool {
        match self.source {
            Source::Tensor(slot, layout) => {
                let operand = operand(slot, layout, 1);
                operand.inner * operand.element + u64::from(caps.storage_alignment)
                    > caps.max_binding_bytes
            }
            Source::Scratch { .. } => false,
        }
    }

    /// Floats of scratch per row.
    ///
    /// # Errors
    /// When the device's loop budget is too small for a row.
    pub fn floats(&self, caps: &Caps) -> Result<u64> {
        let one = Part {
            start: [0; 3],
            len: [1; 3],
        };
        let room = Room { at: 0, bytes: 4 };
        let mut builder = Builder::new(self, &one, caps, room);
        builder.run()?;
        Ok(builder.floats)
    }

    /// The steps that select from the rows of a block.
    pub fn steps(&self, block: &Part<3>, caps: &Caps, room: Room) -> Result<Vec<Step>> {
        let mut builder = Builder::new(self, block, caps, room);
        builder.run()?;
        Ok(builder.steps)
    }

    /// How many rows go together along each axis, where steps of others bind these `operands` and take `besides` floats
    /// of scratch per row.
    pub fn fit(
        &self,
        caps: &Caps,
        mut operands: Vec<Operand<3>>,
        besides: u64,
    ) -> Result<[u64; 3]> {
        operands.extend(self.operands(caps).into_iter().map(|(_, operand)| operand));
        let limit = caps.max_binding_bytes;
        let lens = if self.cuts_rows(caps) {
            [1; 3]
        } else {
            self.rows
        };
        let mut part = slice::fit(lens, &operands, limit, u64::from(caps.storage_alignment))?;
        let floats = self.floats(caps)?.saturating_add(besides);
        let most = limit.min(caps.max_buffer_bytes);
        while (part.iter().product::<u64>()).saturating_mul(floats.saturating_mul(4)) > most {
            match (0..3).find(|&axis| part[axis] > 1) {
                Some(axis) => part[axis] = part[axis].div_ceil(2),
                None => {
                    return Err(Error::unsupported(
                        format!("rows of {} elements, {} of them taken", self.length, self.k),
                        format!(
                            "a row takes {} bytes of scratch, and a binding holds {limit}",
                            floats * 4
                        ),
                        "ask for the adapter's own limits when you create the device, or cut the rows",
                    ));
                }
            }
        }
        slice::check_count(self.rows, part, limit)?;
        Ok(part)
    }
}

/// The axes of rows of a tensor `[.., length]`.
pub(super) fn axes_of_rows(layout: &Layout) -> [u64; 3] {
    let rows = layout.rank().saturating_sub(1);
    std::array::from_fn(|axis| match (rows + axis).checked_sub(3) {
        Some(at) if at < rows => layout.shape[at],
        _ => 1,
    })
}

pub(super) fn outline(op: &TopK, caps: &Caps) -> Result<Outline> {
    let selection = Selection::of(op);
    let part = selection.fit(caps, Vec::new(), 0)?;
    let floats = selection.floats(caps)?;
    let scratch_bytes = part.iter().product::<u64>() * floats * 4;
    let room = Room {
        at: 0,
        bytes: scratch_bytes,
    };
    let whole = Part {
        start: [0; 3],
        len: selection.rows,
    };
    let mut steps = Vec::new();
    for block in slice::parts(whole, part, &[0, 1, 2]) {
        steps.extend(selection.steps(&block, caps, room)?);
    }
    let why = match steps.first().map(|step| step.kernel) {
        Some(Kernel::TopKGroups(_)) => "rows are long: only their best groups are read twice",
        Some(Kernel::TopKRows(_)) => "rows are short: each invocation keeps a sorted list",
        _ => "a workgroup per row counts keys by their bits",
    };
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: why.into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes,
    })
}

/// A stage of a selection: rows of so many elements.
#[derive(Debug, Clone, Copy)]
struct Stage {
    from: From,
    /// In scratch: where the first row begins, and how far apart rows are, in floats.
    at: u64,
    stride: u64,
    length: u64,
    /// A list of groups in scratch that elements stand for, and the size of groups.
    list: Option<(u64, u64)>,
    /// Whether the rows' own lengths, and what is hidden, are still to be looked at.
    raw: bool,
}

/// Makes the steps of a selection for one block of rows.
struct Builder<'a> {
    selection: &'a Selection<'a>,
    block: &'a Part<3>,
    caps: &'a Caps,
    room: Room,
    rows: u64,
    /// Floats per row that are taken of scratch.
    floats: u64,
    steps: Vec<Step>,
}

impl<'a> Builder<'a> {
    fn new(selection: &'a Selection<'a>, block: &'a Part<3>, caps: &'a Caps, room: Room) -> Self {
        Self {
            selection,
            block,
            caps,
            room,
            rows: block.len.iter().product(),
            floats: 0,
            steps: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<()> {
        let (from, at, stride) = match self.selection.source {
            Source::Tensor(Slot::X, _) => (From::X, 0, 0),
            Source::Tensor(..) => (From::Scores, 0, 0),
            Source::Scratch { at, stride } => (From::Numbers, at, stride),
        };
        let stage = Stage {
            from,
            at,
            stride,
            length: self.selection.length,
            list: None,
            raw: true,
        };
        match self.by_rows() {
            Some(variant) => self.rows_alone(&stage, variant),
            None => self.solve(stage, None),
        }
    }

    /// The variant that gives each invocation a row, where that pays. It does not depend on the block, so that all
    /// blocks have what the smallest asks of scratch.
    fn by_rows(&self) -> Option<top_k_rows::Variant> {
        let selection = self.selection;
        let rows: u64 = selection.rows.iter().product();
        let longest = match self.caps.software {
            true if rows >= MANY_ROWS => LONG_ALONE,
            _ => SHORT,
        };
        let room = small(selection.k.next_power_of_two());
        if selection.length > longest.min(u64::from(self.caps.loop_budget).saturating_sub(1))
            || room > top_k_rows::MOST_ROOM
            || self.selection.cuts_rows(self.caps)
        {
            return None;
        }
        // What begins at a multiple of four, in rows that do, and runs along.
        let fours = |layout: &Layout| {
            let rows = row_strides(layout, 1);
            layout.strides.last() == Some(&1)
                && layout.offset.is_multiple_of(4)
                && rows.iter().all(|stride| stride.is_multiple_of(4))
        };
        let (rows_from, vec4) = match selection.source {
            Source::Tensor(slot, layout) => (
                if slot == Slot::X {
                    From::X
                } else {
                    From::Scores
                },
                fours(layout) && selection.length.is_multiple_of(4),
            ),
            Source::Scratch { .. } => (From::Numbers, false),
        };
        let (indices, index_fours) = match selection.indices {
            Target::Nowhere => (To::Nowhere, true),
            Target::Tensor(layout) => (To::Indices, fours(layout)),
            Target::Scratch { .. } => (To::Scratch, false),
        };
        let out4 =
            selection.k.is_multiple_of(4) && index_fours && selection.values.is_none_or(fours);
        let workgroup: u32 = match rows / self.rows_each(rows) {
            _ if !self.caps.software => 64,
            ..1024 => 16,
            1024..8192 => 64,
            _ => 256,
        };
        Some(top_k_rows::Variant {
            workgroup: workgroup.min(1 << self.caps.max_invocations.max(1).ilog2()),
            room,
            rows: rows_from,
            lens: selection.row_len.is_some(),
            skip: selection.skip_hidden,
            values: selection.values.is_some(),
            indices,
            sorted: selection.sorted || selection.k == 1,
            vec4,
            out4,
            f16: self.f16(),
        })
    }

    /// Rows that an invocation reads one after the other: on a CPU, a stretch of memory of its own.
    fn rows_each(&self, rows: u64) -> u64 {
        if !self.caps.software {
            return 1;
        }
        let length = self.selection.length;
        let budget = u64::from(self.caps.loop_budget) / (length + 2);
        let stretch = STRETCH_BYTES / (4 * length.max(1));
        (rows / SOFTWARE_INVOCATIONS)
            .min(stretch)
            .min(budget)
            .max(1)
    }

    fn rows_alone(&mut self, stage: &Stage, variant: top_k_rows::Variant) -> Result<()> {
        let run = self.rows_each(self.rows);
        let mut params = top_k_rows::Params {
            rows: small(self.rows),
            run: small(run),
            length: small(stage.length),
            k: small(self.selection.k),
            flip: self.flip(),
            worst: self.worst(),
            size_1: small(self.block.len[1]),
            size_2: small(self.block.len[2]),
            ..top_k_rows::Params::default()
        };
        let mut ranges = Vec::new();
        let p = &mut params;
        [p.x_at, p.x_0, p.x_1, p.x_2, p.x_element] = self.source(stage, None, &mut ranges);
        [p.len_at, p.len_0, p.len_1, p.len_2] = self.lens(&mut ranges);
        if let Some(layout) = self.selection.values {
            [
                p.values_at,
                p.values_0,
                p.values_1,
                p.values_2,
                p.values_element,
            ] = self.rows_of(Slot::Values, layout, &mut ranges);
        }
        [
            p.indices_at,
            p.indices_0,
            p.indices_1,
            p.indices_2,
            p.indices_element,
        ] = self.target(&mut ranges);
        let scratch = stage.from.scratch() || variant.indices == To::Scratch;
        let invocations = self.rows.div_ceil(run);
        let workgroups = invocations.div_ceil(variant.workgroup.into());
        self.push(variant.into(), ranges, scratch, params.bytes(), workgroups)
    }

    /// Where indices go: first place and strides.
    fn target(&self, ranges: &mut Vec<Range>) -> [u32; 5] {
        match self.selection.indices {
            Target::Tensor(layout) => self.rows_of(Slot::Indices, layout, ranges),
            Target::Scratch { at, stride } => self.dense(at, stride),
            Target::Nowhere => [0; 5],
        }
    }

    /// Bits of the value of a place that holds nothing.
    fn worst(&self) -> u32 {
        if self.selection.largest {
            f32::NEG_INFINITY.to_bits()
        } else {
            f32::INFINITY.to_bits()
        }
    }

    fn alloc(&mut self, floats: u64) -> u64 {
        let at = self.room.at + self.floats * self.rows;
        self.floats += floats;
        at
    }

    fn f16(&self) -> bool {
        let source = match self.selection.source {
            Source::Tensor(_, layout) => Some(layout),
            Source::Scratch { .. } => self.selection.values,
        };
        source.is_some_and(|layout| layout.dtype == DType::F16)
    }

    /// Bits that turn the order round.
    fn flip(&self) -> u32 {
        if self.selection.largest { 0 } else { 1 << 31 }
    }

    /// Selects from a stage: the result, or an ascending list in scratch.
    fn solve(&mut self, stage: Stage, list: Option<u64>) -> Result<()> {
        let k = self.selection.k;
        let cut = !stage.from.scratch() && self.selection.cuts_rows(self.caps);
        let (variant, share) = self.selecting(&stage, list);
        let places = k.next_power_of_two();
        let fits = variant.iterations(share, k, places) <= self.caps.loop_budget.into();
        let short = stage.length <= LONG || stage.length / LEAST_SHARE < k;
        if !cut && fits && (short || stage.list.is_some()) {
            return self.select(&stage, list);
        }
        let group = self.group(stage.length);
        if !cut && (stage.list.is_some() || group * k >= stage.length) {
            if fits {
                return self.select(&stage, list);
            }
            return Err(Error::unsupported(
                format!("{k} of rows of {} elements", self.selection.length),
                format!(
                    "a kernel may loop {} times on this device, and takes {} for {} elements",
                    self.caps.loop_budget,
                    variant.iterations(share, k, places),
                    stage.length,
                ),
                "measure the device's loop budget (Engine::measure), take fewer, or cut the rows",
            ));
        }
        let groups = stage.length.div_ceil(group);
        let keys = self.alloc(groups);
        self.groups(&stage, group, groups, keys)?;
        let best = self.alloc(k);
        let above = Stage {
            from: From::Keys,
            at: keys,
            stride: groups,
            length: groups,
            list: None,
            raw: false,
        };
        self.solve(above, Some(best))?;
        let candidates = self.alloc(k * group);
        self.gather(&stage, group, best, candidates)?;
        let last = Stage {
            from: match stage.from {
                From::Keys => From::Keys,
                _ => From::Numbers,
            },
            at: candidates,
            stride: k * group,
            length: k * group,
            list: Some((best, group)),
            raw: false,
        };
        self.solve(last, list)
    }

    /// Elements of a group: few are read again, and groups are grouped in their turn.
    fn group(&self, length: u64) -> u64 {
        let ratio = (length / self.selection.k).max(1).ilog2();
        (1u64 << ratio.div_ceil(3)).clamp(*GROUPS.start(), *GROUPS.end())
    }

    /// The variant that selects from a stage, and the elements of each invocation.
    fn selecting(&self, stage: &Stage, list: Option<u64>) -> (top_k::Variant, u64) {
        let outer = list.is_none();
        let sorted = outer && self.selection.sorted && self.selection.k > 1;
        let places = small(self.selection.k.next_power_of_two());
        let workgroup = if self.caps.software { 64 } else { 256 };
        let variant = top_k::Variant {
            workgroup: workgroup.min(1 << self.caps.max_invocations.max(1).ilog2()),
            rows: stage.from,
            listed: stage.list.is_some(),
            lens: stage.raw && self.selection.row_len.is_some(),
            skip: self.selection.skip_hidden && stage.from != From::Keys,
            values: outer && self.selection.values.is_some(),
            indices: match self.selection.indices {
                _ if !outer => To::Scratch,
                Target::Nowhere => To::Nowhere,
                Target::Tensor(_) => To::Indices,
                Target::Scratch { .. } => To::Scratch,
            },
            sorted,
            room: match places {
                _ if !sorted => 0,
                ..=64 => 64,
                65..=256 => 256,
                257..=MOST_ROOM => MOST_ROOM,
                _ => 0,
            },
            stretch: self.caps.software,
            f16: self.f16() && (!stage.from.scratch() || outer && self.selection.values.is_some()),
        };
        (variant, stage.length.div_ceil(variant.workgroup.into()))
    }

    fn select(&mut self, stage: &Stage, list: Option<u64>) -> Result<()> {
        let (variant, share) = self.selecting(stage, list);
        let k = self.selection.k;
        let places_count = k.next_power_of_two();
        let sort_at = if variant.sorted && variant.room == 0 {
            self.alloc(2 * places_count)
        } else {
            0
        };
        let (list_at, group) = stage.list.unwrap_or((0, 1));
        let mut params = top_k::Params {
            rows: small(self.rows),
            length: small(stage.length),
            share: small(share),
            k: small(k),
            places: small(places_count),
            flip: self.flip(),
            worst: self.worst(),
            size_1: small(self.block.len[1]),
            size_2: small(self.block.len[2]),
            list_at: small(list_at),
            list_row: small(k),
            group: small(group),
            sort_at: small(sort_at),
            ..top_k::Params::default()
        };
        let mut ranges = Vec::new();
        let p = &mut params;
        [p.x_at, p.x_0, p.x_1, p.x_2, p.x_element] = self.source(stage, None, &mut ranges);
        if variant.lens {
            [p.len_at, p.len_0, p.len_1, p.len_2] = self.lens(&mut ranges);
        }
        if let Some(layout) = self.selection.values.filter(|_| variant.values) {
            [
                p.values_at,
                p.values_0,
                p.values_1,
                p.values_2,
                p.values_element,
            ] = self.rows_of(Slot::Values, layout, &mut ranges);
        }
        [
            p.indices_at,
            p.indices_0,
            p.indices_1,
            p.indices_2,
            p.indices_element,
        ] = match list {
            Some(at) => self.dense(at, k),
            None => self.target(&mut ranges),
        };
        let scratch = variant.uses_scratch();
        self.push(variant.into(), ranges, scratch, params.bytes(), self.rows)
    }

    fn groups(&mut self, stage: &Stage, group: u64, groups: u64, keys: u64) -> Result<()> {
        let (element_bytes, vec4) = match self.selection.source {
            Source::Tensor(_, layout) if !stage.from.scratch() => {
                let [a, b, c, along] = by_elements(Slot::X, layout).strides;
                let fours = |stride: u64| stride.is_multiple_of(4);
                let vec4 = along == 1
                    && fours(layout.offset)
                    && fours(stage.length)
                    && [a, b, c].into_iter().all(fours);
                (layout.dtype.size(), vec4)
            }
            _ => (4, false),
        };
        let software = self.caps.software;
        let lanes = match (software, vec4) {
            (true, _) => 1,
            (false, true) => small(group / 4).min(8),
            (false, false) => small(group).min(16),
        };
        let variant = top_k_groups::Variant {
            workgroup: 64,
            lanes,
            rows: stage.from,
            lens: stage.raw && self.selection.row_len.is_some(),
            skip: self.selection.skip_hidden && stage.from != From::Keys,
            vec4,
            f16: self.f16() && !stage.from.scratch(),
        };
        let budget = u64::from(self.caps.loop_budget);
        let mut run = match lanes {
            1 => (STRETCH_BYTES / (group * element_bytes)).max(1),
            _ => 1,
        };
        while run > 1 && variant.iterations(run, group) > budget {
            run /= 2;
        }
        if variant.iterations(run, group) > budget {
            return Err(Error::unsupported(
                format!("rows of {} elements", self.selection.length),
                format!("a kernel may loop {budget} times on this device"),
                "measure the device's loop budget (Engine::measure)",
            ));
        }
        for (first, length) in self.cuts(stage, group)? {
            let here = length.div_ceil(group);
            let runs = here.div_ceil(run);
            let teams = self.rows * runs;
            let mut params = top_k_groups::Params {
                teams: small(teams),
                runs: small(runs),
                run: small(run),
                groups: small(here),
                group: small(group),
                first: small(first),
                first_group: small(first / group),
                length: small(length),
                flip: self.flip(),
                size_1: small(self.block.len[1]),
                size_2: small(self.block.len[2]),
                keys_at: small(keys),
                keys_row: small(groups),
                ..top_k_groups::Params::default()
            };
            let mut ranges = Vec::new();
            let p = &mut params;
            [p.x_at, p.x_0, p.x_1, p.x_2, p.x_element] =
                self.source(stage, Some((first, length)), &mut ranges);
            if variant.lens {
                [p.len_at, p.len_0, p.len_1, p.len_2] = self.lens(&mut ranges);
            }
            let workgroups = teams.div_ceil(u64::from(variant.workgroup / lanes));
            self.push(variant.into(), ranges, true, params.bytes(), workgroups)?;
        }
        Ok(())
    }

    fn gather(&mut self, stage: &Stage, group: u64, best: u64, out: u64) -> Result<()> {
        let variant = top_k_gather::Variant {
            rows: stage.from,
            lens: stage.raw && self.selection.row_len.is_some(),
            f16: self.f16() && !stage.from.scratch(),
        };
        let k = self.selection.k;
        let run = if self.caps.software { SOFTWARE_RUN } else { 1 };
        let runs = k * group / run;
        let invocations = self.rows * runs;
        for (first, length) in self.cuts(stage, group)? {
            let mut params = top_k_gather::Params {
                invocations: small(invocations),
                runs: small(runs),
                run: small(run),
                group: small(group),
                first: small(first),
                length: small(length),
                whole: small(stage.length),
                size_1: small(self.block.len[1]),
                size_2: small(self.block.len[2]),
                list_at: small(best),
                list_row: small(k),
                out_at: small(out),
                out_row: small(k * group),
                ..top_k_gather::Params::default()
            };
            let mut ranges = Vec::new();
            let p = &mut params;
            [p.x_at, p.x_0, p.x_1, p.x_2, p.x_element] =
                self.source(stage, Some((first, length)), &mut ranges);
            if variant.lens {
                [p.len_at, p.len_0, p.len_1, p.len_2] = self.lens(&mut ranges);
            }
            let workgroups = invocations.div_ceil(top_k_gather::WORKGROUP.into());
            self.push(variant.into(), ranges, true, params.bytes(), workgroups)?;
        }
        Ok(())
    }

    /// The parts of a row that dispatches bind, each but the last of whole groups: first element and length.
    fn cuts(&self, stage: &Stage, group: u64) -> Result<Vec<(u64, u64)>> {
        let whole = vec![(0, stage.length)];
        let Source::Tensor(slot, layout) = self.selection.source else {
            return Ok(whole);
        };
        if stage.from.scratch() || !self.selection.cuts_rows(self.caps) {
            return Ok(whole);
        }
        let stride = layout.strides.last().copied().unwrap_or(1).max(1);
        let most = (self.caps.max_binding_bytes - u64::from(self.caps.storage_alignment))
            / (stride * layout.dtype.size());
        let length = most / group * group;
        if length == 0 {
            return Err(Error::unsupported(
                format!("{} with elements {stride} apart", slot.name()),
                format!(
                    "a binding holds {} bytes, which must be enough for {group} elements",
                    self.caps.max_binding_bytes
                ),
                "use strides that keep a row together",
            ));
        }
        slice::check_count([stage.length], [length], self.caps.max_binding_bytes)?;
        Ok((0..stage.length)
            .step_by(length as usize)
            .map(|first| (first, length.min(stage.length - first)))
            .collect())
    }

    /// First element and strides of a stage's rows, or of a part of them, in what is bound.
    fn source(&self, stage: &Stage, cut: Option<(u64, u64)>, ranges: &mut Vec<Range>) -> [u32; 5] {
        let (slot, layout) = match self.selection.source {
            Source::Tensor(slot, layout) if !stage.from.scratch() => (slot, layout),
            _ => return self.dense(stage.at, stage.stride),
        };
        let operand = by_elements(slot, layout);
        let (first, length) = cut.unwrap_or((0, stage.length));
        let [a, b, c] = self.block.start;
        let [rows_a, rows_b, rows_c] = self.block.len;
        let part = Part {
            start: [a, b, c, first],
            len: [rows_a, rows_b, rows_c, length],
        };
        let window = operand.window(&part, self.caps.storage_alignment.into());
        ranges.push(Range {
            slot,
            offset: window.offset,
            size: window.size,
        });
        let [a, b, c, element] = places(operand.strides, part.len);
        [window.first, a, b, c, element]
    }

    /// Rows in scratch, one after the other.
    fn dense(&self, at: u64, stride: u64) -> [u32; 5] {
        let [_, b, c] = self.block.len;
        [at, b * c * stride, c * stride, stride, 1].map(small)
    }

    fn lens(&self, ranges: &mut Vec<Range>) -> [u32; 4] {
        let Some(layout) = self.selection.row_len else {
            return [0; 4];
        };
        let operand = operand(Slot::RowLen, layout, 0);
        let window = operand.window(self.block, self.caps.storage_alignment.into());
        ranges.push(Range {
            slot: Slot::RowLen,
            offset: window.offset,
            size: window.size,
        });
        let [a, b, c] = places(operand.strides, self.block.len);
        [window.first, a, b, c]
    }

    fn rows_of(&self, slot: Slot, layout: &Layout, ranges: &mut Vec<Range>) -> [u32; 5] {
        let operand = operand(slot, layout, 1);
        let window = operand.window(self.block, self.caps.storage_alignment.into());
        ranges.push(Range {
            slot,
            offset: window.offset,
            size: window.size,
        });
        let [a, b, c] = places(operand.strides, self.block.len);
        let element = layout.strides.last().copied().unwrap_or(1);
        [window.first, a, b, c, small(element)]
    }

    fn push(
        &mut self,
        kernel: Kernel,
        mut ranges: Vec<Range>,
        scratch: bool,
        params: Vec<u8>,
        workgroups: u64,
    ) -> Result<()> {
        if let Err(reason) = kernel.supports(self.caps) {
            return Err(Error::unsupported(
                format!(
                    "selecting from {}",
                    if self.f16() { DType::F16 } else { DType::F32 }
                ),
                reason,
                "create the device with these features and limits, or store the tensor as f32",
            ));
        }
        if scratch {
            ranges.push(Range {
                slot: Slot::Scratch,
                offset: 0,
                size: self.room.bytes,
            });
        }
        self.steps.push(Step {
            kernel,
            ranges,
            params,
            grid: grid(workgroups, self.caps)?,
        });
        Ok(())
    }
}
