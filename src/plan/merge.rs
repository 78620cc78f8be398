//! Merging attention results, by log-sum-exps or gates: which slices.

use super::{
    Outline, Range, Schedule, Step, by_fours, grid, layout_places,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::attention_merge::{Params, Source, Variant, WORKGROUP, Weights},
    ops::{Merge, Slot},
    tensor::{DType, Layout},
};

/// What to do where one dispatch cannot take all parts of a row.
fn fewer_parts(op: &Merge) -> &'static str {
    match (&op.lse_parts, &op.gates) {
        (Some(_), None) => "merge some parts at a time, with the log-sum-exp of each",
        (None, _) => "add some parts up at a time, and then their sums, with gates of 1",
        _ => {
            "give Attention::gate to the calls that make the parts, and merge some at a time, with the \
             log-sum-exp of each"
        }
    }
}

pub(super) fn outline(op: &Merge, caps: &Caps) -> Result<Outline> {
    let gates_f16 = |gates: &Layout| gates.dtype == DType::F16;
    let weights = match (&op.lse_parts, &op.gates) {
        (_, None) => Weights::LogSumExps,
        (None, Some(gates)) => Weights::Gates {
            f16: gates_f16(gates),
        },
        (Some(_), Some(gates)) => Weights::Both {
            f16: gates_f16(gates),
        },
    };
    let variant = Variant {
        source: Source::Parts {
            vec4: by_fours(&op.o_parts) && by_fours(&op.o),
            weights,
        },
        f16: op.o.dtype == DType::F16,
        lse: op.lse.is_some(),
        gate: false,
    };
    if let Err(reason) = crate::kernels::Variant::supports(&variant, caps) {
        return Err(Error::unsupported(
            format!("a merge of {} parts", op.o.dtype),
            reason,
            "create the device with these features and limits, or store the tensors as f32",
        ));
    }
    let [parts, batch, heads, q_len, value_dim] = axes(&op.o_parts.shape);
    if variant.iterations(parts) > caps.loop_budget.into() {
        return Err(Error::unsupported(
            format!("a merge of {parts} parts"),
            format!(
                "a kernel may loop {} times on this device, and takes {}",
                caps.loop_budget,
                variant.iterations(parts)
            ),
            fewer_parts(op),
        ));
    }

    // The iteration space: batch entries, heads, rows. Each point has all parts of its row.
    let lens = [batch, heads, q_len];
    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let mut operands: Vec<(Slot, Operand<3>)> = Vec::new();
    let [part, b, h, m, d] = axes(&op.o_parts.strides);
    let inner = part * (parts - 1) + d * (value_dim - 1) + 1;
    operands.push((
        Slot::OParts,
        Operand::new("o_parts", &op.o_parts, [b, h, m], inner),
    ));
    for (slot, layout) in [(Slot::LseParts, &op.lse_parts), (Slot::Gates, &op.gates)] {
        let Some(layout) = layout else { continue };
        let [part, b, h, m] = axes(&layout.strides);
        let inner = part * (parts - 1) + 1;
        operands.push((slot, Operand::new(slot.name(), layout, [b, h, m], inner)));
    }
    let of_parts = operands.len();
    let [b, h, m, d] = axes(&op.o.strides);
    let inner = d * (value_dim - 1) + 1;
    operands.push((Slot::O, Operand::new("o", &op.o, [b, h, m], inner)));
    if let Some(lse) = &op.lse {
        operands.push((Slot::Lse, Operand::new("lse", lse, axes(&lse.strides), 1)));
    }
    for (_, operand) in operands.iter().take(of_parts) {
        let bytes = operand.inner * operand.element + alignment;
        if parts > 1 && bytes > limit {
            return Err(Error::unsupported(
                format!(
                    "{} with the parts of a row over {bytes} bytes",
                    operand.name
                ),
                format!("a binding holds {limit} bytes"),
                format!(
                    "{}, or use strides that keep the parts of a row together, such as \
                     those of [batch, q_heads, q_len, parts, value_dim]",
                    fewer_parts(op)
                ),
            ));
        }
    }
    let list: Vec<Operand<3>> = operands.iter().map(|(_, o)| o.clone()).collect();
    let part = slice::fit(lens, &list, limit, alignment)?;
    slice::check_count(lens, part, limit)?;

    let whole = Part {
        start: [0; 3],
        len: lens,
    };
    let mut steps = Vec::new();
    for piece in slice::parts(whole, part, &[0, 1, 2]) {
        let [_, heads, q_len] = piece.len;
        let elements = piece.len.iter().product::<u64>() * (value_dim / u64::from(variant.width()));
        let mut params = Params {
            elements: small(elements),
            splits: small(parts),
            value_dim: small(value_dim),
            q_len: small(q_len),
            // No heads are packed together here.
            kv_heads: small(heads),
            group: 1,
            all_group: 1,
            minus_infinity: f32::NEG_INFINITY,
            ..Params::default()
        };
        strides(op, &mut params);
        let mut ranges = Vec::new();
        for (slot, operand) in &operands {
            let window = operand.window(&piece, alignment);
            match slot {
                Slot::OParts => params.o_parts_at = window.first,
                Slot::LseParts => params.lse_parts_at = window.first,
                Slot::Gates => params.gates_at = window.first,
                Slot::Lse => params.lse_at = window.first,
                _ => params.o_at = window.first,
            }
            ranges.push(Range {
                slot: *slot,
                offset: window.offset,
                size: window.size,
            });
        }
        steps.push(Step {
            kernel: variant.into(),
            ranges,
            params: params.bytes(),
            grid: grid(elements.div_ceil(WORKGROUP.into()), caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: "each invocation reads its elements of all parts".into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

fn strides(op: &Merge, params: &mut Params) {
    let p = params;
    [
        p.o_parts_part,
        p.o_parts_batch,
        p.o_parts_head,
        p.o_parts_row,
        p.o_parts_dim,
    ] = layout_places(&op.o_parts);
    if let Some(lse_parts) = &op.lse_parts {
        [
            p.lse_parts_part,
            p.lse_parts_batch,
            p.lse_parts_head,
            p.lse_parts_row,
        ] = layout_places(lse_parts);
    }
    if let Some(gates) = &op.gates {
        [p.gates_part, p.gates_batch, p.gates_head, p.gates_row] = layout_places(gates);
    }
    [p.o_batch, p.o_head, p.o_row, p.o_dim] = layout_places(&op.o);
    if let Some(lse) = &op.lse {
        [p.lse_batch, p.lse_head, p.lse_row] = layout_places(lse);
    }
}

/// The numbers of a layout that has been checked to have so many axes.
fn axes<const AXES: usize>(numbers: &[u64]) -> [u64; AXES] {
    std::array::from_fn(|axis| numbers.get(axis).copied().unwrap_or(1))
}
