//! Scores for routing: which schedule, which slices, and how many columns and heads a dispatch takes.

use super::{
    Outline, Range, SMALL_SUBGROUP, Schedule, Step, Tuning, WANTED_WORKGROUPS, by_fours, grid,
    layout_places, layout_strides,
    slice::{self, Operand, Part, Window},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Kernel, ScoresIo, ScoresParams, route_scores_subgroup as subgroup,
        route_scores_tile as tile,
    },
    ops::{RouteScores, ScoreRule, Slot, dims},
    tensor::{DType, Layout},
};

/// Axes of the iteration space: batch entries, KV heads, query heads of each, rows, columns.
const AXES: usize = 5;
const HEAD: usize = 2;
const COLUMN: usize = 4;

/// A schedule, and what of the work one of its workgroups takes.
struct Choice {
    schedule: Schedule,
    why: String,
    rejected: Vec<(Schedule, String)>,
    kernel: Kernel,
    tile_rows: u64,
    /// Columns that a step has at least.
    step: u64,
    /// Loop iterations of one summed head, with so few columns, and besides.
    least: u64,
}

pub(super) fn outline(op: &RouteScores, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let lens = lens(op);
    let operands = operands(op);
    let list: Vec<Operand<AXES>> = operands.iter().map(|(.., o)| o.clone()).collect();
    let alignment = u64::from(caps.storage_alignment);
    let limit = caps.max_binding_bytes;
    let mut part = slice::fit(lens, &list, limit, alignment)?;
    // Scores are written four at a time where slices allow it.
    if part[COLUMN] < lens[COLUMN] && part[COLUMN] >= 4 {
        part[COLUMN] -= part[COLUMN] % 4;
    }
    let fours = part[COLUMN] == lens[COLUMN] || part[COLUMN].is_multiple_of(4);
    let io = ScoresIo {
        bounds: op.rule == ScoreRule::Bounds,
        relu: op.relu,
        weights: op.head_weights.is_some(),
        out4: fours && by_fours(&op.out),
        f16: op.q.dtype == DType::F16,
    };
    let choice = choose(op, io, caps, tuning)?;
    let budget = u64::from(caps.loop_budget).saturating_sub(1);
    if op.sum_heads {
        part[HEAD] = part[HEAD].min(budget / choice.least);
    }
    if budget < choice.least {
        return Err(Error::unsupported(
            format!("scores of {} channels", dims(&op.q)[3]),
            format!(
                "a kernel may loop {} times on this device, and takes {}",
                caps.loop_budget,
                choice.least + 1
            ),
            "measure the device's loop budget (Engine::measure), or use fewer channels per head",
        ));
    }
    slice::check_count(lens, part, limit)?;
    let whole = Part {
        start: [0; AXES],
        len: lens,
    };
    let mut steps = Vec::new();
    // Heads that are summed follow one another.
    for piece in slice::parts(whole, part, &[0, 1, 3, COLUMN, HEAD]) {
        let windows: Vec<(Slot, &Layout, Window)> = operands
            .iter()
            .map(|(slot, layout, operand)| (*slot, *layout, operand.window(&piece, alignment)))
            .collect();
        let (params, workgroups) = params(op, &piece, &choice, budget, &windows);
        steps.push(Step {
            kernel: choice.kernel,
            ranges: windows
                .iter()
                .map(|(slot, _, window)| Range {
                    slot: *slot,
                    offset: window.offset,
                    size: window.size,
                })
                .collect(),
            params: params.bytes(),
            grid: grid(workgroups, caps)?,
        });
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: choice.schedule,
        why: choice.why,
        rejected: choice.rejected,
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

fn lens(op: &RouteScores) -> [u64; AXES] {
    let [batch, _, rows, _] = dims(&op.q);
    let [_, kv_heads, columns, _] = dims(&op.k);
    [batch, kv_heads, op.group(), rows, columns]
}

/// Lanes that own rows, where subgroups are small or vectors of a CPU; tiles everywhere else.
fn choose(op: &RouteScores, io: ScoresIo, caps: &Caps, tuning: &Tuning) -> Result<Choice> {
    let channels = dims(&op.q)[3];
    let tiled = tile::Variant { io };
    let lanes = caps.fixed_subgroup().unwrap_or(SMALL_SUBGROUP);
    let d4 = channels.div_ceil(4);
    let keys = [Some(&op.q), Some(&op.k), op.k_min.as_ref()];
    let broadcast = subgroup::Variant {
        subgroup: lanes,
        rows: match tuning.rows {
            Some(rows) => rows.clamp(1, 8),
            // As many as registers hold.
            None if d4 <= 16 => 4,
            None if d4 <= 32 => 2,
            None => 1,
        },
        d4: small(d4),
        vec4: keys.into_iter().flatten().all(by_fours),
        io,
    };
    let rows = dims(&op.q)[2];
    let against_broadcast = if let Err(reason) = Kernel::from(broadcast).supports(caps) {
        Some((true, reason))
    } else if d4 > MOST_VECTORS {
        Some((
            true,
            format!("{channels} channels are too many for registers"),
        ))
    } else if !caps.cpu_vectors() && lanes > SMALL_SUBGROUP {
        Some((
            false,
            format!("subgroups of {lanes} lanes fit tiles better"),
        ))
    } else {
        None
    };
    let against_tile = Kernel::from(tiled).supports(caps).err();
    let refuse = |reason: &str| {
        Err(Error::unsupported(
            format!("scores of {} queries", op.q.dtype),
            reason,
            "create the device with these features and limits, or store the tensors as f32",
        ))
    };
    let by_tile = |why: &str, reason: String| Choice {
        schedule: Schedule::Tile,
        why: why.into(),
        rejected: vec![(Schedule::Subgroup, reason)],
        kernel: tiled.into(),
        tile_rows: tile::TILE.into(),
        step: tile::TILE.into(),
        least: tile::Variant::iterations(channels),
    };
    let by_broadcast = |why: &str, reason: String| Choice {
        schedule: Schedule::Subgroup,
        why: why.into(),
        rejected: vec![(Schedule::Tile, reason)],
        kernel: broadcast.into(),
        tile_rows: broadcast.tile_rows().into(),
        step: subgroup::COLUMNS.into(),
        least: subgroup::Variant::iterations(subgroup::COLUMNS.into()),
    };
    match (tuning.schedule, against_broadcast, against_tile) {
        (Some(Schedule::Subgroup), Some((true, reason)), _) => Err(Error::unsupported(
            "schedule subgroup",
            reason,
            "leave the schedule open, or ask for tile",
        )),
        (Some(Schedule::Subgroup), ..) => {
            Ok(by_broadcast("asked for", "subgroup is asked for".into()))
        }
        (Some(_), _, None) => Ok(by_tile("asked for", "tile is asked for".into())),
        (None, None, _) => Ok(by_broadcast(
            "lanes own rows, and columns go round by broadcast",
            format!("loads cost more than arithmetic on this device ({rows} rows)"),
        )),
        (None, Some((_, reason)), None) => Ok(by_tile("tiles in workgroup memory", reason)),
        (_, _, Some(reason)) => refuse(&reason),
    }
}

/// Vectors of four channels in a row that a lane holds.
const MOST_VECTORS: u64 = 64;

/// Strides of heads over KV heads and the query heads of each.
fn of_heads(stride: u64, group: u64) -> [u64; 2] {
    [stride * group, stride]
}

/// Each tensor over the iteration space.
fn operands(op: &RouteScores) -> Vec<(Slot, &Layout, Operand<AXES>)> {
    let group = op.group();
    let along = |layout: &Layout, stride: u64| (dims(layout)[3] - 1) * stride + 1;
    let [b, h, row, channel] = layout_strides(&op.q);
    let [kv, head] = of_heads(h, group);
    let q = Operand::new("q", &op.q, [b, kv, head, row, 0], along(&op.q, channel));
    let mut list = vec![(Slot::Q, &op.q, q)];
    for (slot, layout) in [(Slot::K, Some(&op.k)), (Slot::KMin, op.k_min.as_ref())] {
        if let Some(layout) = layout {
            let [b, h, row, channel] = layout_strides(layout);
            let inner = along(layout, channel);
            let operand = Operand::new(slot.name(), layout, [b, h, 0, 0, row], inner);
            list.push((slot, layout, operand));
        }
    }
    if let Some(weights) = &op.head_weights {
        let [b, h, row] = layout_strides(weights);
        let [kv, head] = of_heads(h, group);
        let operand = Operand::new("head_weights", weights, [b, kv, head, row, 0], 1);
        list.push((Slot::HeadWeights, weights, operand));
    }
    let [b, h, row, column] = layout_strides(&op.out);
    let [kv, head] = if op.sum_heads {
        [h, 0]
    } else {
        of_heads(h, group)
    };
    let out = Operand::new("out", &op.out, [b, kv, head, row, column], 1);
    list.push((Slot::Out, &op.out, out));
    list
}

/// The parameters of a slice, and its workgroups.
fn params(
    op: &RouteScores,
    piece: &Part<AXES>,
    choice: &Choice,
    budget: u64,
    windows: &[(Slot, &Layout, Window)],
) -> (ScoresParams, u64) {
    let [batch, kv_heads, group, rows, columns] = piece.len;
    let (heads, summed) = if op.sum_heads { (1, group) } else { (group, 1) };
    let row_tiles = rows.div_ceil(choice.tile_rows);
    let others = batch * kv_heads * heads * row_tiles;
    let range = match choice.schedule {
        Schedule::Tile => choice.step,
        _ => {
            // As many columns as the loop budget allows, and fewer where workgroups are wanted.
            let most = (budget / summed).saturating_sub(2).max(1);
            let ranges = WANTED_WORKGROUPS.div_ceil(others);
            let steps = columns.div_ceil(choice.step);
            steps.div_ceil(ranges).clamp(1, most) * choice.step
        }
    };
    let ranges = columns.div_ceil(range);
    let workgroups = others * ranges;
    let mut params = ScoresParams {
        tiles: small(workgroups),
        row_tiles: small(row_tiles),
        ranges: small(ranges),
        range: small(range),
        kv_heads: small(kv_heads),
        heads: small(heads),
        summed: small(summed),
        rows: small(rows),
        columns: small(columns),
        channels: small(dims(&op.q)[3]),
        add: u32::from(op.sum_heads && piece.start[HEAD] > 0),
        scale: op.scale.0,
        ..ScoresParams::default()
    };
    let p = &mut params;
    let group = small(op.group());
    for (slot, layout, window) in windows {
        let at = window.first;
        match slot {
            Slot::Q => {
                p.q_at = at;
                [p.q_batch, p.q_head, p.q_row, p.q_channel] = layout_places(layout);
                p.q_group = p.q_head.saturating_mul(group);
            }
            Slot::K => {
                p.k_at = at;
                [p.k_batch, p.k_head, p.k_row, p.k_channel] = layout_places(layout);
            }
            Slot::KMin => {
                p.low_at = at;
                [p.low_batch, p.low_head, p.low_row, p.low_channel] = layout_places(layout);
            }
            Slot::HeadWeights => {
                p.weights_at = at;
                [p.weights_batch, p.weights_head, p.weights_row] = layout_places(layout);
                p.weights_group = p.weights_head.saturating_mul(group);
            }
            _ => {
                p.out_at = at;
                [p.out_batch, p.out_head, p.out_row, p.out_column] = layout_places(layout);
                p.out_group = p.out_head;
                if !op.sum_heads {
                    p.out_group = p.out_head.saturating_mul(group);
                }
            }
        }
    }
    (params, workgroups)
}
