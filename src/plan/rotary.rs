//! Rotary position embedding: which slices, and how many heads share a reading of the tables.

use super::{
    Outline, Range, Schedule, Step, by_fours, grid, layout_places,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::rotary::{Params, Variant, WORKGROUP},
    ops::{Rotary, Slot, dims},
    tensor::{DType, Layout},
};

/// Heads per invocation, at most: on llvmpipe eight take half the time of one, and thirty-two, which
/// walk through that many places at once, more than one.
const MOST_HEADS: u64 = 8;
/// Invocations that keep a device busy; fewer heads share an invocation until there are as many.
const WANTED_INVOCATIONS: u64 = 1 << 18;
/// The same on a software device.
const WANTED_SOFTWARE_INVOCATIONS: u64 = 1 << 12;

pub(super) fn outline(op: &Rotary, caps: &Caps) -> Result<Outline> {
    let variant = variant(op);
    let wanted = || {
        format!(
            "rotary embedding of {} with tables of {}",
            op.x.dtype, op.cos.dtype
        )
    };
    if let Err(reason) = crate::kernels::Variant::supports(&variant, caps) {
        return Err(Error::unsupported(
            wanted(),
            reason,
            "create the device with these features and limits, or store the tensors as f32",
        ));
    }
    // The loop over heads may always end after one.
    let most_heads = MOST_HEADS.min(caps.loop_budget.saturating_sub(1).into());
    if most_heads == 0 {
        return Err(Error::unsupported(
            wanted(),
            format!(
                "a kernel may loop {} times on this device, and it loops over heads",
                caps.loop_budget
            ),
            "raise the loop budget of the caps",
        ));
    }

    let [batch, heads, seq, head_dim] = dims(&op.x);
    let width = u64::from(variant.width());
    let pairs = op.rotary_dim / 2 / width;
    // In place, channels that are not turned are where they should be.
    let copied = if op.in_place {
        0
    } else {
        (head_dim - op.rotary_dim) / width
    };
    let units = pairs + copied;
    let lens = [batch, heads, seq];
    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let operands = operands(op, caps)?;
    let list: Vec<Operand<3>> = operands.iter().map(|(_, o)| o.clone()).collect();
    let part = slice::fit(lens, &list, limit, alignment)?;
    slice::check_count(lens, part, limit)?;

    let whole = Part {
        start: [0; 3],
        len: lens,
    };
    let mut steps = Vec::new();
    for piece in slice::parts(whole, part, &[0, 1, 2]) {
        let [batch, heads, seq] = piece.len;
        let each = heads_each(heads, batch * seq * units, most_heads, caps);
        let groups = heads.div_ceil(each);
        let invocations = batch * groups * seq * units;
        let mut params = Params {
            invocations: small(invocations),
            units: small(units),
            pairs: small(pairs),
            rotary_dim: small(op.rotary_dim),
            seq: small(seq),
            heads: small(heads),
            each: small(each),
            groups: small(groups),
            last_position: small(op.cos.shape.first().map_or(0, |rows| rows - 1)),
            sign: if op.inverse { -1.0 } else { 1.0 },
            ..Params::default()
        };
        strides(op, &mut params);
        let mut ranges = Vec::new();
        for (slot, operand) in &operands {
            let window = operand.window(&piece, alignment);
            let at = match slot {
                Slot::X => &mut params.x_at,
                Slot::Cos => &mut params.cos_at,
                Slot::Sin => &mut params.sin_at,
                Slot::Positions => &mut params.positions_at,
                _ => &mut params.y_at,
            };
            *at = window.first;
            ranges.push(Range {
                slot: *slot,
                offset: window.offset,
                size: window.size,
            });
        }
        if op.in_place {
            params.x_at = params.y_at;
        }
        steps.push(Step {
            kernel: variant.into(),
            ranges,
            params: params.bytes(),
            grid: grid(invocations.div_ceil(WORKGROUP.into()), caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: "each invocation turns its channels of some heads of a token".into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

fn variant(op: &Rotary) -> Variant {
    // The tables' last axis is as long as half of what is turned, so that no vector crosses it.
    let tensors = [&op.x, &op.y, &op.cos, &op.sin];
    Variant {
        f16: op.x.dtype == DType::F16,
        f16_tables: op.cos.dtype == DType::F16,
        positions: op.positions.is_some(),
        interleaved: op.interleaved,
        vec4: tensors.into_iter().all(by_fours),
        in_place: op.in_place,
    }
}

/// Heads per invocation: as many as may be, while there are invocations enough.
fn heads_each(heads: u64, per_head: u64, most: u64, caps: &Caps) -> u64 {
    let wanted = if caps.software {
        WANTED_SOFTWARE_INVOCATIONS
    } else {
        WANTED_INVOCATIONS
    };
    let groups = heads
        .div_ceil(most)
        .max(wanted.div_ceil(per_head))
        .min(heads);
    heads.div_ceil(groups)
}

/// Each tensor over the iteration space: batch entries, heads, tokens.
fn operands(op: &Rotary, caps: &Caps) -> Result<Vec<(Slot, Operand<3>)>> {
    let mut list = Vec::new();
    let of_heads = |layout: &Layout| {
        let [b, h, t, d] = strides_of(layout);
        ([b, h, t], d * (layout.shape[3] - 1) + 1)
    };
    if !op.in_place {
        let (strides, inner) = of_heads(&op.x);
        list.push((Slot::X, Operand::new("x", &op.x, strides, inner)));
    }
    let (strides, inner) = of_heads(&op.y);
    list.push((Slot::Y, Operand::new("y", &op.y, strides, inner)));
    for (slot, table) in [(Slot::Cos, &op.cos), (Slot::Sin, &op.sin)] {
        let table = op.rows_read(table);
        let operand = if op.positions.is_some() {
            // A token may ask for any row.
            let [row, pair] = strides_of(&table);
            let inner = row * (table.shape[0] - 1) + pair * (table.shape[1] - 1) + 1;
            Operand::new(slot.name(), &table, [0; 3], inner)
        } else {
            let [b, t, pair] = strides_of(&table);
            let inner = pair * (table.shape[2] - 1) + 1;
            Operand::new(slot.name(), &table, [b, 0, t], inner)
        };
        let bytes = operand.inner * operand.element + u64::from(caps.storage_alignment);
        if op.positions.is_some() && bytes > caps.max_binding_bytes {
            return Err(Error::unsupported(
                format!("{} of {bytes} bytes", slot.name()),
                format!("a binding holds {} bytes", caps.max_binding_bytes),
                "with positions in a tensor the whole table is bound: make it shorter, or give a \
                 row per token, [batch, seq, rotary_dim / 2]",
            ));
        }
        list.push((slot, operand));
    }
    if let Some(positions) = &op.positions {
        let [b, t] = strides_of(positions);
        let operand = Operand::new("positions", positions, [b, 0, t], 1);
        list.push((Slot::Positions, operand));
    }
    Ok(list)
}

/// Strides, 0 along axes of length 1: those of tables and positions serve longer ones.
fn strides_of<const AXES: usize>(layout: &Layout) -> [u64; AXES] {
    std::array::from_fn(|axis| match layout.shape.get(axis) {
        None | Some(1) => 0,
        Some(_) => layout.strides.get(axis).copied().unwrap_or(0),
    })
}

fn strides(op: &Rotary, params: &mut Params) {
    let p = params;
    [p.x_batch, p.x_head, p.x_token, p.x_channel] = layout_places(&op.x);
    [p.y_batch, p.y_head, p.y_token, p.y_channel] = layout_places(&op.y);
    let table = |layout: &Layout| -> [u32; 3] {
        let table = op.rows_read(layout);
        if op.positions.is_some() {
            let [row, pair] = layout_places(&table);
            [0, row, pair]
        } else {
            layout_places(&table)
        }
    };
    [p.cos_batch, p.cos_row, p.cos_pair] = table(&op.cos);
    [p.sin_batch, p.sin_row, p.sin_pair] = table(&op.sin);
    if let Some(positions) = &op.positions {
        [p.positions_batch, p.positions_token] = layout_places(positions);
    }
}
