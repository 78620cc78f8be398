//! Routing: rows by one invocation each where lists are short; else ranks in scratch, a selection from these, and lists.

use super::{
    Outline, Range, Schedule, Step, by_fours, grid, layout_places,
    pool::starts_places,
    slice::{self, Operand, Part, Window},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Kernel, ROUTE_WORKGROUP, RouteIo, RouteOutputs, RouteParams,
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
    let iterations = route_rows::Variant::iterations(blocks, op.group);
    let short = most <= MOST_PLACES && iterations <= caps.loop_budget.into();
    if !short {
        return Err(Error::unsupported(
            format!("lists of {most} of {blocks} blocks"),
            format!(
                "a kernel takes {iterations} of {} loops, and holds lists of {MOST_PLACES}",
                caps.loop_budget
            ),
            "take fewer",
        ));
    }
    by_rows(op, caps, variant)
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
    let [b, h, row, block] = layout_places(&op.scores).map(u64::from);
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
        let [entry] = layout_places(lens);
        let operand = Operand::new("kv_len", lens, [entry.into(), 0, 0], 1);
        list.push((Slot::KvLen, lens, operand));
    }
    if let Some(starts) = &op.cu_seqlens {
        let [step] = layout_places(starts).map(u64::from);
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
            let [b, h, row, place] = layout_places(layout).map(u64::from);
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
