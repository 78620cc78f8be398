//! A selection into dense rows: which slices, and tiles of how many places.

use super::{
    Outline, Range, Schedule, Step, grid,
    slice::{self, Operand, Part},
    small,
    top_k::{axes_of_rows, row_strides},
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::scatter::{Params, SLOTS, Variant, WORKGROUP},
    ops::{Scatter, Slot},
    tensor::{DType, Layout},
};

/// Places of a workgroup where devices run many at a time.
const FEWER_SLOTS: u64 = 256;

pub(super) fn outline(op: &Scatter, caps: &Caps) -> Result<Outline> {
    let variant = Variant {
        f16: op.y.dtype == DType::F16,
        values: op.x.is_some(),
        gate: op.gate.is_some(),
        factor: op.factor.0 != 1.0 && op.gate.is_none(),
    };
    if let Err(reason) = crate::kernels::Variant::supports(&variant, caps) {
        return Err(Error::unsupported(
            format!("a scatter of {}", op.y.dtype),
            reason,
            "create the device with these features and limits, or store the tensors as f32",
        ));
    }
    let last = |layout: &Layout| layout.shape.last().copied().unwrap_or(1);
    let (entries, n) = (last(&op.index), last(&op.y));

    // The iteration space: three axes of rows, and the places of a row. Each point has all of its row's list.
    let [a, b, c] = axes_of_rows(&op.index);
    let lens = [a, b, c, n];
    let operands: Vec<(Slot, Operand<4>)> = super::Op::from(op.clone())
        .tensors()
        .into_iter()
        .map(|(slot, layout)| (slot, operand(slot, layout)))
        .collect();
    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let list: Vec<Operand<4>> = operands.iter().map(|(_, o)| o.clone()).collect();
    let part = slice::fit(lens, &list, limit, alignment)?;
    slice::check_count(lens, part, limit)?;

    // Loops over a tile's places, over its lists, over its places: with the check that ends each.
    let lanes = u64::from(WORKGROUP);
    let most = if caps.software {
        u64::from(SLOTS)
    } else {
        FEWER_SLOTS
    };
    let cost = |rows: u64, columns: u64| {
        2 * (rows * columns).div_ceil(lanes) + (rows * entries).div_ceil(lanes) + 3
    };
    let budget = u64::from(caps.loop_budget);
    let mut columns = part[3].min(most);
    while columns > 1 && cost(1, columns) > budget {
        columns = columns.div_ceil(2);
    }
    if cost(1, columns) > budget {
        return Err(Error::unsupported(
            format!("index with {entries} entries in a row"),
            format!(
                "a kernel may loop {budget} times on this device, and takes {} for a row",
                cost(1, columns)
            ),
            "measure the device's loop budget (Engine::measure), or list fewer",
        ));
    }
    let mut rows = most / columns;
    while rows > 1 && (cost(rows, columns) > budget || rows * entries > MOST_ENTRIES) {
        rows = rows.div_ceil(2);
    }

    let whole = Part {
        start: [0; 4],
        len: lens,
    };
    let mut steps = Vec::new();
    for piece in slice::parts(whole, part, &[0, 1, 2, 3]) {
        let [a, b, c, len] = piece.len;
        let column_tiles = len.div_ceil(columns);
        let workgroups = (a * b * c).div_ceil(rows) * column_tiles;
        let mut params = Params {
            workgroups: small(workgroups),
            rows: small(a * b * c),
            columns: small(len),
            first_column: small(piece.start[3]),
            entries: small(entries),
            tile_rows: small(rows),
            tile_columns: small(columns),
            column_tiles: small(column_tiles),
            len_b: small(b),
            len_c: small(c),
            fill: op.fill.0,
            factor: op.factor.0,
            ..Params::default()
        };
        let p = &mut params;
        let mut ranges = Vec::new();
        for (slot, operand) in &operands {
            let window = operand.window(&piece, alignment);
            let [a, b, c, column] = operand.strides.map(small);
            let along = |layout: Option<&Layout>| {
                let stride = layout
                    .filter(|l| last(l) > 1)
                    .and_then(|l| l.strides.last());
                stride.map_or(0, |&stride| small(stride))
            };
            match slot {
                Slot::X => {
                    (p.x_at, p.x_entry) = (window.first, along(op.x.as_ref()));
                    [p.x_a, p.x_b, p.x_c] = [a, b, c];
                }
                Slot::Index => {
                    (p.index_at, p.index_entry) = (window.first, along(Some(&op.index)));
                    [p.index_a, p.index_b, p.index_c] = [a, b, c];
                }
                Slot::Gate => {
                    p.gate_at = window.first;
                    [p.gate_a, p.gate_b, p.gate_c] = [a, b, c];
                }
                _ => {
                    (p.y_at, p.y_column) = (window.first, column);
                    [p.y_a, p.y_b, p.y_c] = [a, b, c];
                }
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
            grid: grid(workgroups, caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: "a workgroup reads the lists of a tile's rows, and writes its places".into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

/// Entries of a workgroup's lists, at most, where there are several.
const MOST_ENTRIES: u64 = 4096;

/// A tensor over rows and places: those of inputs are all of a list's.
fn operand(slot: Slot, layout: &Layout) -> Operand<4> {
    let stride = layout.strides.last().copied().unwrap_or(0);
    let len = layout.shape.last().copied().unwrap_or(1);
    let own = usize::from(slot != Slot::Gate);
    let [a, b, c] = row_strides(layout, own);
    match slot {
        Slot::Y => {
            let along = if len > 1 { stride } else { 0 };
            Operand::new(slot.name(), layout, [a, b, c, along], 1)
        }
        Slot::Gate => Operand::new(slot.name(), layout, [a, b, c, 0], 1),
        _ => Operand::new(slot.name(), layout, [a, b, c, 0], stride * (len - 1) + 1),
    }
}
