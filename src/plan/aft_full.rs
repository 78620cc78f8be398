//! The attention-free transformer: which slices, and ranges of positions where the loop budget asks for them.

use super::{
    Outline, Range, Schedule, Step, Tuning, grid, layout_places,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Kernel,
        aft_full::{KEYS, Params, ROWS, Variant, WORKGROUP},
        attention_merge,
    },
    ops::{AftFull, BiasTerm, PositionBias, Slot, dims},
    tensor::{DType, Layout},
};

pub(super) fn outline(op: &AftFull, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let [batch, heads, len, dim] = dims(&op.q);
    let (factors, bias_type, rank) = match &op.bias {
        PositionBias::Matrix(bias) => (false, bias.dtype, 0),
        PositionBias::Factors { rows, .. } => (true, rows.dtype, rows.shape[1]),
    };
    let length = range_length(len, rank, caps, tuning)?;
    let splits = len.div_ceil(length);
    let schedule = if splits > 1 {
        Schedule::Ranges
    } else {
        Schedule::Rows
    };
    if let Some(wanted) = tuning.schedule
        && wanted != schedule
    {
        return Err(Error::unsupported(
            format!("the attention-free transformer with schedule {wanted}"),
            format!("{len} positions take {splits} ranges"),
            "leave the schedule open",
        ));
    }
    let variant = Variant {
        factors,
        add: op.term == BiasTerm::Add,
        causal: op.causal,
        split: splits > 1,
        f16: op.q.dtype == DType::F16,
        f16_bias: bias_type == DType::F16,
    };
    let merge = attention_merge::Variant {
        source: attention_merge::Source::Scratch,
        f16: variant.f16,
        lse: false,
        gate: false,
    };
    let mut kernels: Vec<Kernel> = vec![variant.into()];
    kernels.extend((splits > 1).then_some(Kernel::from(merge)));
    for kernel in kernels {
        if let Err(reason) = kernel.supports(caps) {
            return Err(Error::unsupported(
                format!(
                    "the attention-free transformer of {} with a bias of {bias_type}",
                    op.q.dtype
                ),
                reason,
                "create the device with these features and limits, or store the tensors as f32",
            ));
        }
    }

    // The iteration space: batch entries, heads, positions that ask. Each point has all of the others.
    let lens = [batch, heads, len];
    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let operands = operands(op);
    let list: Vec<Operand<3>> = operands
        .iter()
        .map(|(_, operand)| operand.clone())
        .collect();
    let mut part = slice::fit(lens, &list, limit, alignment)?;
    let scratch_of = |part: [u64; 3]| match splits {
        1 => 0,
        _ => (part.iter().product::<u64>() * dim * splits).saturating_mul(12),
    };
    if splits > 1 {
        // What joins the ranges knows of heads, channels and rows only.
        part[0] = 1;
    }
    while scratch_of(part) > limit.min(caps.max_buffer_bytes) {
        match (0..3).find(|&axis| part[axis] > 1) {
            Some(axis) => part[axis] = part[axis].div_ceil(2),
            None => {
                return Err(Error::unsupported(
                    format!("{dim} channels in {splits} ranges"),
                    format!(
                        "the partial results of one position do not fit a binding of {limit} bytes"
                    ),
                    "use more heads of fewer channels",
                ));
            }
        }
    }
    slice::check_count(lens, part, limit)?;

    let whole = Part {
        start: [0; 3],
        len: lens,
    };
    let mut steps = Vec::new();
    for piece in slice::parts(whole, part, &[0, 1, 2]) {
        let [batch, heads, rows] = piece.len;
        let channels = batch * heads * dim;
        let blocks = channels.div_ceil(WORKGROUP.into());
        let tiles = rows.div_ceil(ROWS.into());
        let groups = blocks * tiles * splits;
        let mut params = Params {
            groups: small(groups),
            blocks: small(blocks),
            tiles: small(tiles),
            channels: small(channels),
            dim: small(dim),
            heads: small(heads),
            rows: small(rows),
            first_row: small(piece.start[2]),
            len: small(len),
            ranges: small(splits),
            range_length: small(length),
            rank: small(rank),
            ..Params::default()
        };
        let mut ranges = Vec::new();
        let mut o_window = None;
        for (slot, layout) in crate::ops::Op::from(op.clone()).tensors() {
            let Some((_, operand)) = operands.iter().find(|(other, _)| *other == slot) else {
                continue;
            };
            let window = operand.window(&piece, alignment);
            let range = Range {
                slot,
                offset: window.offset,
                size: window.size,
            };
            place(&mut params, slot, layout, window.first);
            if slot == Slot::O {
                o_window = Some((window.first, range));
            }
            if slot != Slot::O || splits == 1 {
                ranges.push(range);
            }
        }
        let scratch = Range {
            slot: Slot::Scratch,
            offset: 0,
            size: scratch_of(piece.len),
        };
        if splits > 1 {
            ranges.push(scratch);
        }
        steps.push(Step {
            kernel: variant.into(),
            ranges,
            params: params.bytes(),
            grid: grid(groups, caps)?,
        });
        if let (true, Some((o_at, o_range))) = (splits > 1, o_window) {
            let elements = channels * rows;
            // Heads count as batch entries there, channels as heads, and each output has one dim.
            let params = attention_merge::Params {
                elements: small(elements),
                splits: small(splits),
                value_dim: 1,
                q_len: small(rows),
                kv_heads: small(dim),
                group: 1,
                all_group: 1,
                o_at,
                o_batch: params.o_head,
                o_head: params.o_dim,
                o_row: params.o_row,
                ..Default::default()
            };
            steps.push(Step {
                kernel: merge.into(),
                ranges: vec![scratch, o_range],
                params: params.bytes(),
                grid: grid(elements.div_ceil(attention_merge::WORKGROUP.into()), caps)?,
            });
        }
    }
    let (other, reason) = match schedule {
        Schedule::Ranges => (
            Schedule::Rows,
            format!("{len} positions in {splits} ranges"),
        ),
        _ => (
            Schedule::Ranges,
            "the loop budget allows all positions at once".into(),
        ),
    };
    Ok(Outline {
        op: op.clone().into(),
        schedule,
        why: "each invocation has a channel, and shares the biases of its positions with others"
            .into(),
        rejected: vec![(other, reason)],
        splits,
        steps,
        scratch_bytes: scratch_of(part),
    })
}

/// Positions per range: all of them, unless the loop budget or the caller wants fewer.
fn range_length(len: u64, rank: u64, caps: &Caps, tuning: &Tuning) -> Result<u64> {
    let budget = u64::from(caps.loop_budget);
    let keys = u64::from(KEYS);
    // A turn makes biases, and takes in as many positions; both check their ends.
    let turn = 1 + (keys + 1) + (rank + 1);
    let most = budget.saturating_sub(1) / turn * keys;
    let wanted = match (tuning.splits, tuning.schedule) {
        (Some(0), _) => {
            return Err(Error::invalid(
                "tuning.splits",
                "0",
                "give at least 1 range",
            ));
        }
        (Some(splits), _) => splits.into(),
        (None, Some(Schedule::Ranges)) => 2,
        (None, _) => 1,
    };
    let length = len.div_ceil(wanted).next_multiple_of(keys).min(most);
    if length == 0 || 2 * (len.div_ceil(length) + 1) > budget {
        return Err(Error::unsupported(
            format!("{len} positions with biases of rank {rank}"),
            format!(
                "a kernel may loop {budget} times on this device, takes {turn} for {keys} positions, and then loops \
                 over ranges of them"
            ),
            "measure the device's loop budget (Engine::measure), or give the bias as a matrix",
        ));
    }
    Ok(length)
}

/// Each tensor over the iteration space.
fn operands(op: &AftFull) -> Vec<(Slot, Operand<3>)> {
    let of = |slot: Slot, layout: &Layout| {
        let span = |axis: usize, len: u64| layout.strides[axis] * (len - 1);
        let [_, _, seq, dim] = dims(&op.q);
        let strides = &layout.strides;
        let (strides, inner) = match slot {
            Slot::Q | Slot::O => ([strides[0], strides[1], strides[2]], span(3, dim)),
            Slot::K | Slot::V => ([strides[0], strides[1], 0], span(2, seq) + span(3, dim)),
            // All other positions, whichever asks.
            Slot::BiasColumns => ([0; 3], span(0, seq) + span(1, layout.shape[1])),
            _ => ([0, 0, strides[0]], span(1, layout.shape[1])),
        };
        Operand::new(slot.name(), layout, strides, inner + 1)
    };
    crate::ops::Op::from(op.clone())
        .tensors()
        .into_iter()
        .map(|(slot, layout)| (slot, of(slot, layout)))
        .collect()
}

/// Where a tensor begins in what is bound, and its strides.
fn place(params: &mut Params, slot: Slot, layout: &Layout, first: u32) {
    let p = params;
    let [a, b, c, d] = layout_places(layout);
    let all = [first, a, b, c, d];
    match slot {
        Slot::Q => [p.q_at, p.q_batch, p.q_head, p.q_row, p.q_dim] = all,
        Slot::K => [p.k_at, p.k_batch, p.k_head, p.k_row, p.k_dim] = all,
        Slot::V => [p.v_at, p.v_batch, p.v_head, p.v_row, p.v_dim] = all,
        Slot::O => [p.o_at, p.o_batch, p.o_head, p.o_row, p.o_dim] = all,
        Slot::BiasColumns => [p.columns_at, p.columns_row, p.columns_column, _, _] = all,
        _ => [p.bias_at, p.bias_row, p.bias_column, _, _] = all,
    }
}
