//! Pooling: which slices, and how many invocations share a block.

use super::{
    Outline, Range, Schedule, Step, by_fours, grid, layout_places, layout_strides,
    slice::{self, Operand, Part, Window},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Variant as _,
        pool::{Params, Rule, Variant, WORKGROUP},
    },
    ops::{Divisor, Pool, PoolRule, Slot, dims},
    tensor::{DType, Layout},
};

pub(super) fn outline(op: &Pool, caps: &Caps) -> Result<Outline> {
    let [batch, heads, rows, channels] = dims(&op.x);
    let [_, _, blocks, _] = dims(&op.y);
    let variant = variant(op);
    if let Err(reason) = variant.supports(caps) {
        return Err(Error::unsupported(
            format!("pooling of {} into {}", op.x.dtype, op.y.dtype),
            reason,
            "create the device with these features and limits, or store the tensors as f32",
        ));
    }
    // A block that a tensor tells may have all rows.
    let longest = op.blocks.size().unwrap_or(rows).min(rows);
    let iterations = variant.iterations(longest, channels);
    if iterations > caps.loop_budget.into() {
        return Err(Error::unsupported(
            format!("blocks of up to {longest} rows of {channels} channels"),
            format!(
                "a kernel may loop {} times on this device, and takes {iterations}",
                caps.loop_budget
            ),
            "pool shorter blocks and then their means, or measure the device's loop budget (Engine::measure)",
        ));
    }

    let lens = [batch, heads, blocks];
    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let operands = operands(op);
    let list: Vec<Operand<3>> = operands.iter().map(|(.., o)| o.clone()).collect();
    let part = slice::fit(lens, &list, limit, alignment)?;
    slice::check_count(lens, part, limit)?;
    let whole = Part {
        start: [0; 3],
        len: lens,
    };
    let mut steps = Vec::new();
    for piece in slice::parts(whole, part, &[0, 1, 2]) {
        let [batch, heads, blocks] = piece.len;
        let count = batch * heads * blocks;
        let windows: Vec<(Slot, &Layout, Window)> = operands
            .iter()
            .map(|(slot, layout, operand)| {
                let mut window = operand.window(&piece, alignment);
                // The last block may have fewer rows than its size.
                let end = layout.end_bytes().next_multiple_of(4);
                window.size = window.size.min(end.saturating_sub(window.offset));
                (*slot, *layout, window)
            })
            .collect();
        let params = params(op, &piece, &windows);
        let per_workgroup = u64::from(WORKGROUP / variant.lanes);
        steps.push(Step {
            kernel: variant.into(),
            ranges: windows
                .iter()
                .map(|(slot, _, window)| Range {
                    slot: *slot,
                    offset: window.offset,
                    size: window.size,
                })
                .collect(),
            params: params.bytes(),
            grid: grid(count.div_ceil(per_workgroup), caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: "lanes share the channels of a block, and walk down its rows".into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

fn variant(op: &Pool) -> Variant {
    let vectors = dims(&op.x)[3].div_ceil(4);
    Variant {
        rule: match op.rule {
            PoolRule::Mean(_) => Rule::Mean,
            PoolRule::Max => Rule::Max,
            PoolRule::Min => Rule::Min,
        },
        lanes: small(vectors.next_power_of_two().min(WORKGROUP.into())),
        normalise: op.normalise,
        starts: op.blocks.starts().is_some(),
        lengths: op.kv_len.is_some(),
        vec4: by_fours(&op.x),
        f16: op.x.dtype == DType::F16,
        f16_y: op.y.dtype == DType::F16,
    }
}

/// Each tensor over batch entries, heads and blocks.
fn operands(op: &Pool) -> Vec<(Slot, &Layout, Operand<3>)> {
    let [.., rows, channels] = dims(&op.x);
    let [x_batch, x_head, x_row, x_channel] = layout_strides(&op.x);
    let (x_block, rows) = match op.blocks.size() {
        // One block has none after it, however far away that would be.
        Some(size) if dims(&op.y)[2] == 1 => (0, size.min(rows)),
        Some(size) => (op.stride() * x_row, size.min(rows)),
        None => (0, rows),
    };
    let inner = (rows - 1) * x_row + (channels - 1) * x_channel + 1;
    let x = Operand::new("x", &op.x, [x_batch, x_head, x_block], inner);
    let [y_batch, y_head, y_row, y_channel] = layout_strides(&op.y);
    let inner = (channels - 1) * y_channel + 1;
    let y = Operand::new("y", &op.y, [y_batch, y_head, y_row], inner);
    let mut list = vec![(Slot::X, &op.x, x), (Slot::Y, &op.y, y)];
    if let Some(starts) = op.blocks.starts() {
        let places = starts_places(starts);
        let [.., block] = places;
        let operand = Operand::new("block_starts", starts, places, block + 1);
        list.push((Slot::BlockStarts, starts, operand));
    }
    if let Some(lens) = &op.kv_len {
        let [entry] = layout_strides(lens);
        let operand = Operand::new("kv_len", lens, [entry, 0, 0], 1);
        list.push((Slot::KvLen, lens, operand));
    }
    list
}

/// Strides of starts over batch entries, heads and blocks, which may be one list for all.
pub(super) fn starts_places(starts: &Layout) -> [u64; 3] {
    if starts.rank() == 1 {
        let [block] = layout_strides(starts);
        [0, 0, block]
    } else {
        layout_strides(starts)
    }
}

fn params(op: &Pool, piece: &Part<3>, windows: &[(Slot, &Layout, Window)]) -> Params {
    let [_, heads, blocks] = piece.len;
    let first_block = piece.start[2];
    let mut params = Params {
        count: small(piece.len.iter().product()),
        heads: small(heads),
        blocks: small(blocks),
        channels: small(dims(&op.x)[3]),
        rows: small(dims(&op.x)[2]),
        block: small(op.blocks.size().unwrap_or(0)),
        step: small(op.stride()),
        first_block: small(first_block),
        first_row: small(first_block * op.stride()),
        divisor: match op.rule {
            PoolRule::Mean(Divisor::Block) => 1,
            PoolRule::Mean(Divisor::SqrtLen) => 2,
            _ => 0,
        },
        ..Params::default()
    };
    let p = &mut params;
    for (slot, layout, window) in windows {
        match slot {
            Slot::X => {
                p.x_at = window.first;
                [p.x_batch, p.x_head, p.x_row, p.x_channel] = layout_places(layout);
            }
            Slot::Y => {
                p.y_at = window.first;
                [p.y_batch, p.y_head, p.y_row, p.y_channel] = layout_places(layout);
            }
            Slot::BlockStarts => {
                p.starts_at = window.first;
                [p.starts_batch, p.starts_head, p.starts_block] = starts_places(layout).map(small);
            }
            _ => {
                p.lens_at = window.first;
                [p.lens_batch] = layout_places(layout);
            }
        }
    }
    params
}
