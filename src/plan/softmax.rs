//! Softmax: which lanes share a row, which slices, and whether rows are split into ranges.

use super::{
    Outline, Range, Schedule, Step, Tuning, WANTED_WORKGROUPS, grid, places,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::softmax::{Params, Phase, Reduction, Variant},
    ops::{Slot, Softmax},
    tensor::DType,
};

/// The axis of the iteration space that runs along a row.
const ELEMENT: usize = 3;
/// No range of a row is made shorter than this to fill the device.
const LEAST_RANGE: u64 = 16_384;
/// Vectors, or elements, that a lane reads per step.
const BLOCK: u64 = 8;
/// The same where each lane reads a stretch of its own.
const STRETCH_BLOCK: u32 = 4;
/// Bytes of a stretch from which a software device reads best when each lane has its own: a page.
/// Several lanes in turn in one page are the worst, at a third of the speed.
const LEAST_STRETCH_BYTES: u64 = 4096;
/// Rows from which each may have a single lane of a software device.
const MANY_ROWS: u64 = 512;
/// Invocations of a workgroup on a software device, where there are rows enough.
const MOST_SOFTWARE_INVOCATIONS: u32 = 512;
/// Vectors, or elements, that a lane may hold of a row, which are read once.
const MOST_HELD: u64 = 16;
/// The same on a software device, whose registers are memory; more would take long to compile.
const MOST_SOFTWARE_HELD: u64 = 32;

/// The rows of a tensor pair: up to three axes of rows, and the axis of elements.
struct Rows {
    lens: [u64; 4],
    x: [u64; 4],
    y: [u64; 4],
}

impl Rows {
    fn new(op: &Softmax) -> Result<Self> {
        // (x stride, y stride, length) of every axis but the rows' own, outermost first.
        let mut axes: Vec<(u64, u64, u64)> = (0..op.x.rank())
            .filter(|&axis| axis != op.axis && op.x.shape[axis] > 1)
            .map(|axis| (op.x.strides[axis], op.y.strides[axis], op.x.shape[axis]))
            .collect();
        axes.sort_by_key(|&axis| std::cmp::Reverse(axis));
        let mut merged: Vec<(u64, u64, u64)> = Vec::new();
        for (x, y, len) in axes {
            match merged.last_mut() {
                Some(outer) if outer.0 == x * len && outer.1 == y * len => {
                    *outer = (x, y, outer.2 * len);
                }
                _ => merged.push((x, y, len)),
            }
        }
        if merged.len() > 3 {
            return Err(Error::unsupported(
                format!("x with {} separate axes of rows", merged.len()),
                "a kernel walks over three",
                "make neighbouring axes contiguous, or call once per slice of one axis",
            ));
        }
        let mut rows = Self {
            lens: [1, 1, 1, op.x.shape[op.axis]],
            x: [0, 0, 0, op.x.strides[op.axis]],
            y: [0, 0, 0, op.y.strides[op.axis]],
        };
        let lead = 3 - merged.len();
        for (axis, (x, y, len)) in merged.into_iter().enumerate() {
            rows.lens[lead + axis] = len;
            rows.x[lead + axis] = x;
            rows.y[lead + axis] = y;
        }
        Ok(rows)
    }

    fn count(lens: &[u64; 4]) -> u64 {
        lens[0] * lens[1] * lens[2]
    }
}

pub(super) fn outline(op: &Softmax, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let rows = Rows::new(op)?;
    let mut operands = vec![(Slot::Y, Operand::new("y", &op.y, rows.y, 1))];
    if !op.in_place {
        operands.push((Slot::X, Operand::new("x", &op.x, rows.x, 1)));
    }
    let (mut variant, sharing) = variant(op, &rows, caps);
    if let Err(reason) = variant.supports_all(caps) {
        return Err(Error::unsupported(
            format!("softmax of {}", op.x.dtype),
            reason,
            "create the device with these features and limits, or store the tensor as f32",
        ));
    }

    let alignment = u64::from(caps.storage_alignment);
    let list: Vec<Operand<4>> = operands
        .iter()
        .map(|(_, operand)| operand.clone())
        .collect();
    let width = if variant.vec4 { 4 } else { 1 };
    let mut part = slice::fit(rows.lens, &list, caps.max_binding_bytes, alignment)?;
    if part[ELEMENT] < rows.lens[ELEMENT] {
        part[ELEMENT] = (part[ELEMENT] / width * width).max(width);
    }

    // Elements per range: what the loop budget allows, and enough ranges to fill the device.
    let steps = u64::from(caps.loop_budget.saturating_sub(1)).max(1);
    let most = steps * width * u64::from(variant.lanes);
    let groups = Rows::count(&part).div_ceil(u64::from(variant.workgroup / variant.lanes));
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
        (None, Some(Schedule::Rows)) => 1,
        (None, _) => (WANTED_WORKGROUPS / groups.max(1)).min(part[ELEMENT] / LEAST_RANGE),
    };
    let even = part[ELEMENT]
        .div_ceil(wanted.max(1))
        .next_multiple_of(width);
    let range = even.min(most).max(width);
    if part[ELEMENT] < rows.lens[ELEMENT] {
        part[ELEMENT] = (part[ELEMENT] / range * range).max(range);
    }
    let splits = rows.lens[ELEMENT] / part[ELEMENT] * part[ELEMENT].div_ceil(range)
        + (rows.lens[ELEMENT] % part[ELEMENT]).div_ceil(range);
    let schedule = if splits > 1 {
        // Ranges hold nothing from one dispatch to the next.
        variant.held = 0;
        variant.rest = true;
        Schedule::Ranges
    } else {
        Schedule::Rows
    };
    if splits >= u64::from(caps.loop_budget) {
        return Err(Error::unsupported(
            format!("rows in {splits} ranges"),
            format!(
                "a kernel may loop {} times on this device, and the second pass loops over them",
                caps.loop_budget
            ),
            "split the rows",
        ));
    }
    if let Some(wanted) = tuning.schedule
        && wanted != schedule
    {
        return Err(Error::unsupported(
            format!("softmax with schedule {wanted}"),
            format!(
                "rows of {} elements take {splits} ranges",
                rows.lens[ELEMENT]
            ),
            "leave the schedule open",
        ));
    }
    let scratch_of = |part: &[u64; 4]| Rows::count(part) * splits * 8;
    while splits > 1 && scratch_of(&part) > caps.max_binding_bytes {
        match (0..ELEMENT).rev().find(|&axis| part[axis] > 1) {
            Some(axis) => part[axis] = part[axis].div_ceil(2),
            None => {
                return Err(Error::unsupported(
                    format!("{splits} ranges of a row"),
                    "the partial results of one row do not fit a binding",
                    "split the rows",
                ));
            }
        }
    }

    slice::check_count(rows.lens, part, caps.max_binding_bytes)?;
    let whole = Part {
        start: [0; 4],
        len: rows.lens,
    };
    let mut steps = Vec::new();
    let phases: &[Phase] = if splits > 1 {
        &[Phase::Reduce, Phase::Apply]
    } else {
        &[Phase::Whole]
    };
    for block in slice::parts(whole, part, &[0, 1, 2]) {
        for &phase in phases {
            variant.phase = phase;
            let mut split_start = 0;
            for piece in slice::parts(block, part, &[ELEMENT]) {
                let here = piece.len[ELEMENT].div_ceil(range);
                let count = Rows::count(&piece.len);
                let groups = count.div_ceil(u64::from(variant.workgroup / variant.lanes)) * here;
                let mut params = Params {
                    groups: small(groups),
                    rows: small(count),
                    length: small(piece.len[ELEMENT]),
                    splits: small(here),
                    split_length: small(range),
                    split_start: small(split_start),
                    all_splits: small(splits),
                    size_1: small(piece.len[1]),
                    size_2: small(piece.len[2]),
                    scale: op.scale.unwrap_or(1.0),
                    minus_infinity: f32::NEG_INFINITY,
                    ..Params::default()
                };
                [params.x_0, params.x_1, params.x_2, params.x_element] = places(rows.x, rows.lens);
                [params.y_0, params.y_1, params.y_2, params.y_element] = places(rows.y, rows.lens);
                let mut ranges = Vec::new();
                for (slot, operand) in &operands {
                    let window = operand.window(&piece, alignment);
                    match slot {
                        Slot::X => params.x_at = window.first,
                        _ => params.y_at = window.first,
                    }
                    if phase != Phase::Reduce || *slot == Slot::X || op.in_place {
                        ranges.push(Range {
                            slot: *slot,
                            offset: window.offset,
                            size: window.size,
                        });
                    }
                }
                if op.in_place {
                    params.x_at = params.y_at;
                }
                if phase != Phase::Whole {
                    ranges.push(Range {
                        slot: Slot::Scratch,
                        offset: 0,
                        size: count * splits * 8,
                    });
                }
                steps.push(Step {
                    kernel: variant.into(),
                    ranges,
                    params: params.bytes(),
                    grid: grid(groups, caps)?,
                });
                split_start += here;
            }
        }
    }
    let (other, reason) = match schedule {
        Schedule::Ranges => (
            Schedule::Rows,
            format!(
                "rows of {} elements: a workgroup each would leave the device idle, pass the loop \
                 budget or not fit a binding",
                rows.lens[ELEMENT]
            ),
        ),
        _ => (
            Schedule::Ranges,
            "there are rows enough, and each fits one workgroup".into(),
        ),
    };
    Ok(Outline {
        op: op.clone().into(),
        schedule,
        why: sharing,
        rejected: vec![(other, reason)],
        splits,
        steps,
        scratch_bytes: if splits > 1 { scratch_of(&part) } else { 0 },
    })
}

impl Variant {
    /// Whether a device can run all phases.
    fn supports_all(&self, caps: &Caps) -> Result<(), String> {
        [Phase::Whole, Phase::Reduce, Phase::Apply]
            .into_iter()
            .try_for_each(|phase| crate::kernels::Variant::supports(&Self { phase, ..*self }, caps))
    }
}

fn variant(op: &Softmax, rows: &Rows, caps: &Caps) -> (Variant, String) {
    let length = rows.lens[ELEMENT];
    let fours = |strides: &[u64; 4], offset: u64| {
        strides[ELEMENT] == 1
            && offset.is_multiple_of(4)
            && (0..ELEMENT).all(|axis| rows.lens[axis] == 1 || strides[axis].is_multiple_of(4))
    };
    let vec4 =
        length.is_multiple_of(4) && fours(&rows.x, op.x.offset) && fours(&rows.y, op.y.offset);
    let units = length / if vec4 { 4 } else { 1 };
    let side_by_side = rows.x[ELEMENT] != 1 && rows.lens[2] >= 8 && rows.x[2] < rows.x[ELEMENT];
    let subgroup = caps.fixed_subgroup().unwrap_or(0);
    let most = prev_power_of_two(caps.max_invocations.min(256).into());
    // Enough lanes to hold the row; few enough that each has some work.
    let wanted = units
        .div_ceil(MOST_HELD)
        .next_power_of_two()
        .max(prev_power_of_two((units / BLOCK).clamp(1, 32)))
        .min(most);
    let software = caps.cpu_vectors() && subgroup > 1;
    let unit_bytes = op.x.dtype.size() * if vec4 { 4 } else { 1 };
    let pages = |lanes: u64| software && units / lanes * unit_bytes >= LEAST_STRETCH_BYTES;
    let count = Rows::count(&rows.lens);
    let along = rows.x[ELEMENT] == 1 && rows.y[ELEMENT] == 1;
    let whole = along && pages(1) && count >= MANY_ROWS && units < caps.loop_budget.into();
    let (lanes, reduction, sharing) = if whole {
        let sharing = "rows are many and long: each invocation takes one, in pages of its own";
        (1, Reduction::None, sharing.to_owned())
    } else if side_by_side {
        let sharing = "rows lie side by side, so each invocation takes one";
        (1, Reduction::None, sharing.to_owned())
    } else if subgroup > 1 && units >= subgroup.into() && (software || wanted <= subgroup.into()) {
        let sharing = format!("a subgroup of {subgroup} invocations per row");
        (subgroup, Reduction::Subgroup, sharing)
    } else if wanted == 1 || software {
        let sharing = "short rows: one invocation each";
        (1, Reduction::None, sharing.to_owned())
    } else {
        let sharing = format!("{wanted} invocations per row, joined in workgroup memory");
        (small(wanted), Reduction::Workgroup, sharing)
    };
    let stretch = whole || (pages(lanes.into()) && reduction == Reduction::Subgroup);
    // Software launches few large workgroups faster than many small ones, while there are enough.
    let invocations = if software {
        let fair = prev_power_of_two(count * u64::from(lanes) / (WANTED_WORKGROUPS / 2));
        small(fair).clamp(if whole { 8 } else { 64 }, MOST_SOFTWARE_INVOCATIONS)
    } else {
        64
    };
    let share = units.div_ceil(lanes.into());
    let most_held = if software {
        MOST_SOFTWARE_HELD
    } else {
        MOST_HELD
    };
    let rest = share > most_held;
    let variant = Variant {
        workgroup: lanes
            .max(invocations.min(small(prev_power_of_two(caps.max_invocations.into())))),
        lanes,
        reduction,
        held: small(if stretch {
            0
        } else if rest {
            most_held
        } else {
            share.next_power_of_two()
        }),
        rest,
        block: if stretch { STRETCH_BLOCK } else { BLOCK as u32 },
        stretch,
        phase: Phase::Whole,
        f16: op.x.dtype == DType::F16,
        vec4,
        in_place: op.in_place,
        log: op.log,
    };
    (variant, sharing)
}

fn prev_power_of_two(number: u64) -> u64 {
    1 << number.max(1).ilog2()
}
