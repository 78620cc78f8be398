//! Rows by an index: which slices, and how many rows an invocation moves.

use super::{
    Outline, Range, Schedule, Step, by_fours, grid,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::gather::{Params, Variant, WORKGROUP},
    ops::{Gather, Slot},
    tensor::{DType, Layout},
};

/// Invocations that keep a device busy; rows share an invocation where there are more.
const WANTED_INVOCATIONS: u64 = 1 << 18;
/// The same on a software device.
const WANTED_SOFTWARE_INVOCATIONS: u64 = 1 << 12;
/// Rows per invocation, at most.
const MOST_ROWS: u64 = 64;
/// Invocations that share a row, at most.
const MOST_LANES: u64 = 64;
/// Rows are counted in 32 bits, with a block to spare.
const MOST: u64 = 1 << 31;

pub(super) fn outline(op: &Gather, caps: &Caps) -> Result<Outline> {
    let (x, y) = match (in_pairs(&op.x), in_pairs(&op.y)) {
        (Some(x), Some(y)) => (x, y),
        _ => (op.x.clone(), op.y.clone()),
    };
    let variant = Variant {
        f16: x.dtype == DType::F16,
        vec4: by_fours(&x) && by_fours(&y),
    };
    if let Err(reason) = crate::kernels::Variant::supports(&variant, caps) {
        return Err(Error::unsupported(
            format!("a gather of {}", op.x.dtype),
            reason,
            "create the device with these features and limits, or use rows of an even number of elements that lie \
             side by side",
        ));
    }
    let width = u64::from(variant.width());
    let space = Space::new(op, x, y);
    if space.x.shape[2].max(op.block) > MOST {
        return Err(Error::unsupported(
            format!("{} rows of x in blocks of {}", space.x.shape[2], op.block),
            format!("kernels count up to {MOST}"),
            "gather from a part of the rows",
        ));
    }
    let units = space.x.shape[3] / width;
    let budget = u64::from(caps.loop_budget);
    // An iteration for each unit, two for the row: its own, and the check that ends the loop over units.
    let lanes = if caps.software {
        units.div_ceil((budget / 2).max(1))
    } else {
        units
            .min(MOST_LANES)
            .max(units.div_ceil((budget / 2).max(1)))
    };
    let row_cost = units.div_ceil(lanes) + 2;
    let most_rows = budget.saturating_sub(1) / row_cost;
    if most_rows == 0 {
        return Err(Error::unsupported(
            "a gather",
            format!(
                "a kernel may loop {budget} times on this device, and a row takes it {row_cost}"
            ),
            "raise the loop budget of the caps",
        ));
    }

    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let operands = space.operands(op);
    let list: Vec<Operand<5>> = operands.iter().map(|(_, o)| o.clone()).collect();
    let part = slice::fit(space.lens, &list, limit, alignment)?;
    slice::check_count(space.lens, part, limit)?;
    let whole = Part {
        start: [0; 5],
        len: space.lens,
    };
    let n = space.x.shape[2];
    let mut steps = Vec::new();
    // Windows of rows of x come last, so that they follow one another on one part of y.
    for piece in slice::parts(whole, part, &[0, 1, 2, 3, 4]) {
        let [batch, outer, inner, entries, window_rows] = piece.len;
        let rows = entries * op.block;
        let heads = batch * outer * inner;
        let wanted = if caps.software {
            WANTED_SOFTWARE_INVOCATIONS
        } else {
            WANTED_INVOCATIONS
        };
        let each = (heads * rows * lanes / wanted)
            .clamp(1, MOST_ROWS.min(most_rows))
            .min(rows);
        let chunks = rows.div_ceil(each);
        let invocations = lanes * chunks * heads;
        let mut params = Params {
            invocations: small(invocations),
            lanes: small(lanes),
            units: small(units),
            each: small(each),
            chunks: small(chunks),
            rows: small(rows),
            block: small(op.block),
            outer: small(outer),
            inner: small(inner),
            n: small(n),
            blocks: small(n.div_ceil(op.block)),
            window: small(piece.start[4]),
            window_rows: small(window_rows),
            first: (piece.start[4] == 0).into(),
            ..Params::default()
        };
        let mut ranges = Vec::new();
        for (slot, operand) in &operands {
            let window = operand.window(&piece, alignment);
            let [b, o, i, m, n] = operand.strides;
            let p = &mut params;
            // Tensors of vectors are counted in vectors.
            let counted = |stride: u64| small(stride / width);
            match slot {
                Slot::X => {
                    p.x_at = window.first / variant.width();
                    [p.x_batch, p.x_outer, p.x_inner, p.x_row] = [b, o, i, n].map(counted);
                    p.x_unit = unit(&space.x, width);
                }
                Slot::Y => {
                    p.y_at = window.first / variant.width();
                    [p.y_batch, p.y_outer, p.y_inner] = [b, o, i].map(counted);
                    p.y_row = counted(space.y.strides[2]);
                    p.y_unit = unit(&space.y, width);
                }
                _ => {
                    p.index_at = window.first;
                    [p.index_batch, p.index_outer, p.index_inner, p.index_entry] =
                        [b, o, i, m].map(small);
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
            grid: grid(invocations.div_ceil(WORKGROUP.into()), caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: "each invocation moves its rows".into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

/// From one unit of a row to the next.
fn unit(layout: &Layout, width: u64) -> u32 {
    if width > 1 {
        1
    } else {
        small(layout.strides[3])
    }
}

/// A tensor of f16 in words of two, where they lie so; others as they are.
fn in_pairs(layout: &Layout) -> Option<Layout> {
    if layout.dtype != DType::F16 {
        return Some(layout.clone());
    }
    let mut axes = layout.strides.iter().zip(&layout.shape).rev();
    let (&stride, &len) = axes.next()?;
    let paired = stride == 1
        && len % 2 == 0
        && layout.offset.is_multiple_of(2)
        && axes.all(|(stride, len)| stride % 2 == 0 || *len == 1);
    if !paired {
        return None;
    }
    let mut words = layout.clone();
    words.dtype = DType::U32;
    words.offset /= 2;
    let last = words.shape.len() - 1;
    words.shape[last] /= 2;
    for stride in &mut words.strides[..last] {
        *stride /= 2;
    }
    Some(words)
}

/// The iteration space: batch entries, heads of the tensor that has fewer, heads of the other for each, entries of the
/// index, rows of x.
struct Space {
    lens: [u64; 5],
    x: Layout,
    y: Layout,
}

impl Space {
    fn new(op: &Gather, x: Layout, y: Layout) -> Self {
        let [batch, heads] = [y.shape[0], y.shape[1]];
        let outer = x.shape[1].min(op.index.shape[1]);
        let lens = [batch, outer, heads / outer, op.index.shape[2], x.shape[2]];
        Self { lens, x, y }
    }

    /// Strides over batch entries and heads.
    fn heads(&self, layout: &Layout) -> [u64; 3] {
        let [_, outer, inner, ..] = self.lens;
        let axis = |axis: usize| match layout.shape[axis] {
            1 => 0,
            _ => layout.strides[axis],
        };
        let [batch, head] = [axis(0), axis(1)];
        if layout.shape[1] == outer && inner > 1 {
            [batch, head, 0]
        } else {
            [batch, head * inner, head]
        }
    }

    fn operands(&self, op: &Gather) -> Vec<(Slot, Operand<5>)> {
        // The strides of an axis of length 1 mean nothing.
        let stride = |layout: &Layout, axis: usize| match layout.shape[axis] {
            1 => 0,
            _ => layout.strides[axis],
        };
        let along = |layout: &Layout, axis: usize, len: u64| stride(layout, axis) * (len - 1);
        let dim = self.x.shape[3];
        let [xb, xo, xi] = self.heads(&self.x);
        let x = Operand::new(
            "x",
            &self.x,
            [xb, xo, xi, 0, stride(&self.x, 2)],
            along(&self.x, 3, dim) + 1,
        );
        let [ib, io, ii] = self.heads(&op.index);
        let index = Operand::new("index", &op.index, [ib, io, ii, stride(&op.index, 2), 0], 1);
        let [yb, yo, yi] = self.heads(&self.y);
        let y = Operand::new(
            "y",
            &self.y,
            [yb, yo, yi, stride(&self.y, 2) * op.block, 0],
            along(&self.y, 2, op.block) + along(&self.y, 3, dim) + 1,
        );
        vec![(Slot::X, x), (Slot::Index, index), (Slot::Y, y)]
    }
}
