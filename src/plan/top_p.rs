//! Selection by mass: the best elements are sorted first, then counted.

use super::{
    Outline, Range, Schedule, Step, grid, places,
    slice::{self, Operand, Part},
    small,
    top_k::{Room, Selection, Source, Target, axes_of_rows, operand},
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Kernel,
        top_p::{Params, Variant},
    },
    ops::{RouteMass, Slot, TopP},
    tensor::{DType, Layout},
};

pub(super) fn outline(op: &TopP, caps: &Caps) -> Result<Outline> {
    let list = op.max.next_power_of_two();
    let selection = Selection {
        rows: axes_of_rows(&op.x),
        length: op.x.shape.last().copied().unwrap_or(1),
        k: op.max,
        largest: true,
        sorted: true,
        skip_hidden: true,
        source: Source::Tensor(Slot::X, &op.x),
        row_len: op.row_len.as_ref(),
        values: None,
        indices: Target::Scratch {
            at: 0,
            stride: list,
        },
    };
    let workgroup: u32 = if caps.software { 64 } else { 256 };
    let variant = Variant {
        workgroup: workgroup.min(1 << caps.max_invocations.max(1).ilog2()),
        softmax: op.mass == RouteMass::Softmax,
        lens: op.row_len.is_some(),
        counts: op.counts.is_some(),
        sorted: op.sorted,
        f16: op.x.dtype == DType::F16,
    };
    let share = selection.length.div_ceil(variant.workgroup.into());
    let iterations = variant.iterations(share, op.max);
    if iterations > caps.loop_budget.into() || selection.cuts_rows(caps) {
        return Err(Error::unsupported(
            format!("rows of {} elements", selection.length),
            format!(
                "one workgroup sums a row, in {iterations} iterations, and this device allows {}; and a binding of {} \
                 bytes must hold it",
                caps.loop_budget, caps.max_binding_bytes
            ),
            "measure the device's loop budget (Engine::measure), or take the best elements of parts of the rows first",
        ));
    }
    let kernel = Kernel::from(variant);
    if let Err(reason) = kernel.supports(caps) {
        return Err(Error::unsupported(
            format!("selecting by mass from {}", op.x.dtype),
            reason,
            "create the device with these features and limits, or store the tensor as f32",
        ));
    }
    let tensors: Vec<(Slot, &Layout, Operand<3>)> = [
        (Slot::X, Some(&op.x), 1),
        (Slot::RowLen, op.row_len.as_ref(), 0),
        (Slot::Indices, Some(&op.indices), 1),
        (Slot::Counts, op.counts.as_ref(), 0),
    ]
    .into_iter()
    .filter_map(|(slot, layout, own)| layout.map(|l| (slot, l, operand(slot, l, own))))
    .collect();
    let operands = tensors.iter().map(|(_, _, operand)| operand.clone());
    let part = selection.fit(caps, operands.collect(), list)?;
    let rows: u64 = part.iter().product();
    let scratch_bytes = rows * (selection.floats(caps)? + list) * 4;
    let room = Room {
        at: rows * list,
        bytes: scratch_bytes,
    };
    let whole = Part {
        start: [0; 3],
        len: selection.rows,
    };
    let mut steps = Vec::new();
    for block in slice::parts(whole, part, &[0, 1, 2]) {
        steps.extend(selection.steps(&block, caps, room)?);
        let rows = block.len.iter().product();
        let mut params = Params {
            rows: small(rows),
            length: small(selection.length),
            share: small(share),
            least: small(op.min),
            most: small(op.max),
            list_share: small(op.max.div_ceil(variant.workgroup.into())),
            places: small(list),
            p: op.p.0,
            size_1: small(block.len[1]),
            size_2: small(block.len[2]),
            ..Params::default()
        };
        let p = &mut params;
        let mut ranges = Vec::new();
        for (slot, layout, operand) in &tensors {
            let window = operand.window(&block, caps.storage_alignment.into());
            ranges.push(Range {
                slot: *slot,
                offset: window.offset,
                size: window.size,
            });
            let [a, b, c] = places(operand.strides, block.len);
            let along = small(layout.strides.last().copied().unwrap_or(0));
            let first = window.first;
            match slot {
                Slot::X => [p.x_at, p.x_0, p.x_1, p.x_2, p.x_element] = [first, a, b, c, along],
                Slot::RowLen => [p.len_at, p.len_0, p.len_1, p.len_2] = [first, a, b, c],
                Slot::Counts => {
                    [p.counts_at, p.counts_0, p.counts_1, p.counts_2] = [first, a, b, c]
                }
                _ => {
                    [
                        p.indices_at,
                        p.indices_0,
                        p.indices_1,
                        p.indices_2,
                        p.indices_element,
                    ] = [first, a, b, c, along];
                }
            }
        }
        ranges.push(Range {
            slot: Slot::Scratch,
            offset: 0,
            size: scratch_bytes,
        });
        steps.push(Step {
            kernel,
            ranges,
            params: params.bytes(),
            grid: grid(rows, caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: "the best elements are sorted, and a workgroup per row sums its mass".into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes,
    })
}
