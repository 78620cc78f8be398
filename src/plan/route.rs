//! Routing: rows by one invocation each where lists are short; else ranks in scratch, a selection from these, and lists.

use super::{
    Outline, Range, Schedule, Step, by_fours, grid, layout_places, layout_strides,
    pool::starts_places,
    slice::{self, Operand, Part, Window},
    small,
    top_k::{Room, Selection, Source, Target},
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Kernel, ROUTE_WORKGROUP, RouteIo, RouteOutputs, RouteParams, route_lists, route_ranks,
        route_rows::{self, MOST_PLACES},
    },
    ops::{FirstQuery, Keep, Route, RouteMass, Slot, Visible, dims},
    tensor::{DType, Layout},
};

pub(super) fn outline(op: &Route, caps: &Caps) -> Result<Outline> {
    let [_, _, _, blocks] = dims(&op.scores);
    let most = op.keep.most();
    let variant = route_rows::Variant {
        places: small(most.next_power_of_two()),
        share: matches!(op.keep, Keep::TopP { .. }),
        given: given(op),
        io: io(op),
        outputs: outputs(op),
    };
    let iterations = variant.iterations(blocks, op.group, most);
    let fits = iterations <= caps.loop_budget.into();
    // Long rows are read by many invocations, unless there are rows enough for all.
    let rows: u64 = lens(op).iter().product();
    let short = blocks <= LONG || (blocks <= LONGEST && rows >= ENOUGH_ROWS);
    if most <= MOST_PLACES && fits && short {
        by_rows(op, caps, variant)
    } else {
        by_selection(op, caps)
    }
}

/// Blocks up to which one invocation reads a row.
const LONG: u64 = 2048;
/// The same where there are so many rows.
const LONGEST: u64 = 16_384;
const ENOUGH_ROWS: u64 = 4096;

/// Ranks in scratch, a selection from these, and lists of what was selected.
fn by_selection(op: &Route, caps: &Caps) -> Result<Outline> {
    let [_, _, _, blocks] = dims(&op.scores);
    let share = matches!(op.keep, Keep::TopP { .. });
    let ranks = route_ranks::Variant { share, io: io(op) };
    let lists = route_lists::Variant {
        share,
        given: given(op),
        outputs: outputs(op),
    };
    supported(op, caps, ranks.into())?;
    supported(op, caps, lists.into())?;
    let k = op.keep.most().min(blocks);
    let budget = u64::from(caps.loop_budget);
    let mut stretch = if caps.software { SOFTWARE_STRETCH } else { 4 };
    while stretch > 4 && ranks.iterations(stretch, op.group) > budget {
        stretch /= 2;
    }
    let iterations = lists
        .iterations(blocks, k, op.keep.most())
        .max(ranks.iterations(stretch, op.group));
    if iterations > budget {
        return Err(Error::unsupported(
            format!("routing among {blocks} blocks of {} heads each", op.group),
            format!(
                "a kernel may loop {} times on this device, and takes {iterations}",
                caps.loop_budget
            ),
            "measure the device's loop budget (Engine::measure), use larger blocks, or sum heads before",
        ));
    }

    // In scratch: ranks, scores beside them where mass counts, what was selected, and the selection's own room.
    let lens = lens(op);
    let pitch = blocks.next_multiple_of(4);
    let planes = 1 + u64::from(share);
    let besides = planes * pitch + k;
    let selection = |rows: u64| Selection {
        rows: lens,
        length: blocks,
        k,
        largest: true,
        sorted: share,
        skip_hidden: false,
        source: Source::Scratch {
            at: 0,
            stride: pitch,
        },
        row_len: None,
        values: None,
        indices: Target::Scratch {
            at: rows * planes * pitch,
            stride: k,
        },
    };
    let bound = operands(op, true);
    let of_bindings = fit(lens, &bound, caps)?;
    let of_selection = selection(1).fit(caps, Vec::new(), besides)?;
    let part: [u64; 3] = std::array::from_fn(|axis| of_bindings[axis].min(of_selection[axis]));
    slice::check_count(lens, part, caps.max_binding_bytes)?;
    let floats = besides + selection(1).floats(caps)?;
    let scratch = |rows: u64| rows * floats * 4;

    let mut steps = Vec::new();
    for piece in slice::parts(whole(lens), part, &[0, 1, 2]) {
        let rows: u64 = piece.len.iter().product();
        let own = Range {
            slot: Slot::Scratch,
            offset: 0,
            size: scratch(rows),
        };
        let windows = windows(&bound, &piece, caps);
        let parts = pitch.div_ceil(stretch);
        let params = RouteParams {
            parts: small(parts),
            stretch: small(stretch),
            masses_at: small(rows * pitch),
            pitch: small(pitch),
            list_at: small(rows * planes * pitch),
            ..params(op, &piece, &windows)
        };
        let (written, read): (Vec<_>, Vec<_>) =
            windows.into_iter().partition(|(slot, ..)| slot.is_output());
        let mut bound = ranges(&read);
        bound.push(own);
        steps.push(Step {
            kernel: ranks.into(),
            ranges: bound,
            params: params.bytes(),
            grid: grid((rows * parts).div_ceil(ROUTE_WORKGROUP.into()), caps)?,
        });
        let room = Room {
            at: rows * besides,
            bytes: scratch(rows),
        };
        steps.extend(selection(rows).steps(&piece, caps, room)?);
        let mut bound = ranges(&written);
        bound.push(own);
        steps.push(Step {
            kernel: lists.into(),
            ranges: bound,
            params: list_params(&params, k).bytes(),
            grid: grid(rows, caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: "ranks are left in scratch, and selected from".into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: scratch(part.iter().product()),
    })
}

/// Blocks that an invocation ranks on a software device.
const SOFTWARE_STRETCH: u64 = 32;

/// What the lists take of the parameters.
fn list_params(all: &RouteParams, selected: u64) -> route_lists::Params {
    route_lists::Params {
        count: all.count,
        heads: all.heads,
        rows: all.rows,
        blocks: all.blocks,
        k: all.k,
        selected: small(selected),
        p: all.p,
        least: all.least,
        indices_at: all.indices_at,
        indices_batch: all.indices_batch,
        indices_head: all.indices_head,
        indices_row: all.indices_row,
        indices_place: all.indices_place,
        counts_at: all.counts_at,
        counts_batch: all.counts_batch,
        counts_head: all.counts_head,
        counts_row: all.counts_row,
        bits_at: all.bits_at,
        bits_batch: all.bits_batch,
        bits_head: all.bits_head,
        bits_row: all.bits_row,
        bits_word: all.bits_word,
        ranks_at: all.ranks_at,
        masses_at: all.masses_at,
        pitch: all.pitch,
        list_at: all.list_at,
    }
}

/// Each row by an invocation.
fn by_rows(op: &Route, caps: &Caps, variant: route_rows::Variant) -> Result<Outline> {
    supported(op, caps, variant.into())?;
    let lens = lens(op);
    let operands = operands(op, true);
    let part = fit(lens, &operands, caps)?;
    let mut steps = Vec::new();
    for piece in slice::parts(whole(lens), part, &[0, 1, 2]) {
        let windows = windows(&operands, &piece, caps);
        let count: u64 = piece.len.iter().product();
        steps.push(Step {
            kernel: variant.into(),
            ranges: ranges(&windows),
            params: params(op, &piece, &windows).bytes(),
            grid: grid(count.div_ceil(ROUTE_WORKGROUP.into()), caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: "an invocation per row passes ranks along a chain of the best".into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

fn supported(op: &Route, caps: &Caps, kernel: Kernel) -> Result<()> {
    kernel.supports(caps).map_err(|reason| {
        Error::unsupported(
            format!("routing by scores of {}", op.scores.dtype),
            reason,
            "create the device with these features and limits, store scores as f32, or ask for fewer outputs",
        )
    })
}

fn given(op: &Route) -> bool {
    let mass = match op.keep {
        Keep::TopP { mass, .. } => mass,
        Keep::TopK { .. } => RouteMass::Softmax,
    };
    mass == RouteMass::Given
}

fn io(op: &Route) -> RouteIo {
    RouteIo {
        row_starts: op.rows.starts().is_some(),
        starts: op.blocks.starts().is_some(),
        lengths: op.kv_len.is_some(),
        packed: op.cu_seqlens.is_some(),
        vec4: by_fours(&op.scores),
        f16: op.scores.dtype == DType::F16,
    }
}

fn outputs(op: &Route) -> RouteOutputs {
    RouteOutputs {
        indices: op.indices.is_some(),
        counts: op.counts.is_some(),
        bits: op.bits.is_some(),
    }
}

/// The iteration space: batch entries, heads after summing, rows.
fn lens(op: &Route) -> [u64; 3] {
    let [batch, heads, rows, _] = dims(&op.scores);
    [batch, heads / op.group, rows]
}

fn whole(len: [u64; 3]) -> Part<3> {
    Part { start: [0; 3], len }
}

type Bound<'a> = (Slot, &'a Layout, Operand<3>);

/// How many rows go together, as far as bindings tell.
fn fit(lens: [u64; 3], operands: &[Bound<'_>], caps: &Caps) -> Result<[u64; 3]> {
    let list: Vec<Operand<3>> = operands.iter().map(|(.., o)| o.clone()).collect();
    let limit = caps.max_binding_bytes;
    let part = slice::fit(lens, &list, limit, caps.storage_alignment.into())?;
    slice::check_count(lens, part, limit)?;
    Ok(part)
}

/// Each tensor over the iteration space; outputs where they are wanted.
fn operands(op: &Route, outputs: bool) -> Vec<Bound<'_>> {
    let [_, _, _, blocks] = dims(&op.scores);
    let [b, h, row, block] = layout_strides(&op.scores);
    let inner = (op.group - 1) * h + (blocks - 1) * block + 1;
    let scores = Operand::new("scores", &op.scores, [b, h * op.group, row], inner);
    let mut list = vec![(Slot::Scores, &op.scores, scores)];
    if let Some(starts) = op.rows.starts() {
        let [b, h, row] = starts_places(starts);
        let operand = Operand::new("row_starts", starts, [b, h, row], row + 1);
        list.push((Slot::RowStarts, starts, operand));
    }
    if let Some(starts) = op.blocks.starts() {
        let [b, h, block] = starts_places(starts);
        let operand = Operand::new("block_starts", starts, [b, h, 0], blocks * block + 1);
        list.push((Slot::BlockStarts, starts, operand));
    }
    if let Some(lens) = &op.kv_len {
        let [entry] = layout_strides(lens);
        let operand = Operand::new("kv_len", lens, [entry, 0, 0], 1);
        list.push((Slot::KvLen, lens, operand));
    }
    if let Some(starts) = &op.cu_seqlens {
        let [step] = layout_strides(starts);
        let inner = (starts.elements() - 1) * step + 1;
        let operand = Operand::new("cu_seqlens", starts, [0; 3], inner);
        list.push((Slot::CuSeqlens, starts, operand));
    }
    let written = [
        (Slot::Indices, &op.indices),
        (Slot::Counts, &op.counts),
        (Slot::Bits, &op.bits),
    ];
    for (slot, layout) in written {
        if let (true, Some(layout)) = (outputs, layout) {
            let [b, h, row, place] = layout_strides(layout);
            let places = layout.shape.get(3).copied().unwrap_or(1);
            let inner = (places - 1) * place + 1;
            list.push((
                slot,
                layout,
                Operand::new(slot.name(), layout, [b, h, row], inner),
            ));
        }
    }
    list
}

fn windows<'a>(
    operands: &[Bound<'a>],
    piece: &Part<3>,
    caps: &Caps,
) -> Vec<(Slot, &'a Layout, Window)> {
    let window = |operand: &Operand<3>| operand.window(piece, caps.storage_alignment.into());
    let each = operands.iter();
    each.map(|(slot, layout, operand)| (*slot, *layout, window(operand)))
        .collect()
}

fn ranges(windows: &[(Slot, &Layout, Window)]) -> Vec<Range> {
    let each = windows.iter();
    each.map(|(slot, _, window)| Range {
        slot: *slot,
        offset: window.offset,
        size: window.size,
    })
    .collect()
}

/// The parameters of a slice.
fn params(op: &Route, piece: &Part<3>, windows: &[(Slot, &Layout, Window)]) -> RouteParams {
    let [_, heads, rows] = piece.len;
    let (p, least) = match op.keep {
        Keep::TopK { .. } => (0.0, 0),
        Keep::TopP { p, min, .. } => (p.0, min),
    };
    let (first_query, from_end) = match op.first_query {
        FirstQuery::At(at) => (at, false),
        FirstQuery::BeforeEnd(back) => (back, true),
    };
    let mut params = RouteParams {
        count: small(piece.len.iter().product()),
        heads: small(heads),
        rows: small(rows),
        blocks: small(dims(&op.scores)[3]),
        group: small(op.group),
        first_row: small(piece.start[2]),
        k: small(op.keep.most()),
        p,
        least: small(least),
        block_q: small(op.rows.size().unwrap_or(0)),
        block_kv: small(op.blocks.size().unwrap_or(0)),
        first_query: small(first_query),
        from_end: from_end.into(),
        visible: match op.visible {
            Visible::All => 0,
            Visible::Causal => 1,
            Visible::Complete => 2,
        },
        own: op.own.into(),
        first: small(op.first),
        recent: small(op.recent),
        ..RouteParams::default()
    };
    let p = &mut params;
    for (slot, layout, window) in windows {
        let at = window.first;
        match slot {
            Slot::Scores => {
                p.scores_at = at;
                [p.scores_batch, p.scores_head, p.scores_row, p.scores_block] =
                    layout_places(layout);
            }
            Slot::RowStarts => {
                p.row_starts_at = at;
                [p.row_starts_batch, p.row_starts_head, p.row_starts_row] =
                    starts_places(layout).map(small);
            }
            Slot::BlockStarts => {
                p.starts_at = at;
                [p.starts_batch, p.starts_head, p.starts_block] = starts_places(layout).map(small);
            }
            Slot::KvLen => {
                p.lens_at = at;
                [p.lens_batch] = layout_places(layout);
            }
            Slot::CuSeqlens => {
                p.cu_at = at;
                [p.cu_step] = layout_places(layout);
                p.sequences = small(layout.elements() - 1);
            }
            Slot::Indices => {
                p.indices_at = at;
                [
                    p.indices_batch,
                    p.indices_head,
                    p.indices_row,
                    p.indices_place,
                ] = layout_places(layout);
            }
            Slot::Counts => {
                p.counts_at = at;
                [p.counts_batch, p.counts_head, p.counts_row] = layout_places(layout);
            }
            _ => {
                p.bits_at = at;
                [p.bits_batch, p.bits_head, p.bits_row, p.bits_word] = layout_places(layout);
            }
        }
    }
    params
}
