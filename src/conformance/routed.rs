//! Attention to keys that are chosen on the device: MoBA, NSA, Quest and Loki.
//!
//! Scores, the choice and attention over it are calls one after the other; what was chosen is compared too.

use super::{
    case::Values,
    outputs::Outputs,
    problem::{AttentionProblem, Input, Problem, Reader},
};
use crate::{
    Attention, BlockMask, Blocks, Causal, DType, Divisor, Layout, Merge, Mod, NONE, Pool, PoolRule,
    Route, RouteScores, Stage, Statistic, Visible, Weights,
    ops::{Slot, dims},
};

/// The rows of a list, without the places that are not used.
pub(super) fn listed(outputs: &Outputs, call: usize, width: u64) -> Result<Vec<Vec<i64>>, String> {
    let all = outputs.integers(call, Slot::Indices)?;
    let used = |row: &[i64]| {
        let numbers = row.iter().copied();
        numbers
            .filter(|&number| number != i64::from(NONE))
            .collect()
    };
    Ok(all.chunks(width.max(1) as usize).map(used).collect())
}

/// Some of the rows of `[batch, heads, rows, channels]`.
pub(super) fn rows(layout: &Layout, first: u64, count: u64) -> Layout {
    let mut part = layout.clone();
    if let (Some(len), Some(stride)) = (part.shape.get_mut(2), layout.strides.get(2)) {
        *len = count;
        part = part.at(first * stride);
    }
    part
}

/// The elements of an input.
pub(super) fn given(reader: &mut Reader<'_>, name: &str) -> Result<Values, String> {
    Ok(reader.input(name)?.values.clone())
}

/// The bits that a route wrote, for rows of one query and blocks of so many keys.
pub(super) fn bits(route: &Route, block_kv: u64) -> Result<BlockMask, String> {
    Ok(BlockMask {
        bits: route.bits.clone().ok_or("a route without bits")?,
        block_q: 1,
        block_kv,
    })
}

/// Quest: pages by an upper bound on what their keys can score.
pub(super) fn quest(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    let page = reader.count("page")? as u64;
    let pages = (reader.size("token_budget")? / page).max(3);
    let (q, k) = (given(reader, "q")?, given(reader, "k")?);
    let mut calls = Problem::none();
    let mut bound = |rule| {
        let op = Pool::new(problem.op.k.clone(), page).rule(rule);
        let layout = op.y.clone();
        (calls.call(op, [(Slot::X, k.clone().into())]), layout)
    };
    let ((high, layout), (low, _)) = (bound(PoolRule::Max), bound(PoolRule::Min));
    let op = RouteScores::new(problem.op.q.clone(), layout.clone()).bounds(layout);
    let scores_layout = op.out.clone();
    let scores = calls.call(
        op,
        [
            (Slot::Q, q.into()),
            (Slot::K, Input::Output(high, Slot::Y)),
            (Slot::KMin, Input::Output(low, Slot::Y)),
        ],
    );
    let route = Route::new(scores_layout, pages).blocks(1, page).bits_only();
    let mask = bits(&route, page)?;
    let route = calls.call(route, [(Slot::Scores, Input::Output(scores, Slot::Out))]);
    problem.blocks(mask, Input::Output(route, Slot::Bits));
    let keys = dims(&problem.op.k)[2] as usize;
    let page = page as usize;
    calls.then(problem.done());
    Ok(calls
        .expect(Slot::O, "o")
        .expect_visible("kept")
        // The source keeps a score per key.
        .expect_host("page_score", move |outputs| {
            let all = outputs.of(scores, Slot::Out)?;
            let rows = all.chunks(keys.div_ceil(page));
            Ok(rows
                .flat_map(|row| (0..keys).filter_map(|key| row.get(key / page).copied()))
                .collect())
        }))
}

/// MoBA: the query's own block, and earlier ones by the mean of their keys. Packed sequences are attended one by one,
/// and chosen for in one call too.
pub(super) fn moba(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let whole = AttentionProblem::of(reader, DType::F32)?.op;
    let chunk = reader.count("chunk")? as u64;
    let topk = reader.count("topk")? as u64;
    let bounds = reader.input("cu_seqlens")?;
    let starts = bounds.lengths()?;
    let [batch, heads, len, _] = dims(&whole.q);
    let rising = starts.windows(2).all(|pair| pair[0] < pair[1]);
    let all = starts.first() == Some(&0) && starts.last().copied().map(u64::from) == Some(len);
    if batch != 1 || whole.k.shape != whole.q.shape || !rising || !all {
        return Err(format!(
            "sequences that begin at {starts:?} of {len} tokens"
        ));
    }
    let [q, k, v] = ["q", "k", "v"].map(|name| given(reader, name));
    let (q, k, v) = (q?, k?, v?);
    let mut calls = Problem::none();
    let mut own = Vec::new();
    for pair in starts.windows(2) {
        let (first, count) = (u64::from(pair[0]), u64::from(pair[1] - pair[0]));
        let part = |layout| rows(layout, first, count);
        let pool = Pool::new(part(&whole.k), chunk);
        let means = pool.y.clone();
        let pooled = calls.call(pool, [(Slot::X, k.clone().into())]);
        let op = RouteScores::new(part(&whole.q), means);
        let scores_layout = op.out.clone();
        let scores = calls.call(
            op,
            [
                (Slot::Q, q.clone().into()),
                (Slot::K, Input::Output(pooled, Slot::Y)),
            ],
        );
        let route = Route::new(scores_layout, topk)
            .blocks(1, chunk)
            .visible(Visible::Causal)
            .own()
            .with_bits();
        let mask = bits(&route, chunk)?;
        let route = calls.call(route, [(Slot::Scores, Input::Output(scores, Slot::Out))]);
        own.push((route, count));
        let op = Attention::new(part(&whole.q), part(&whole.k), part(&whole.v))
            .causal(Causal::TopLeft)
            .output(part(&whole.o))
            .block_mask(mask);
        calls.call(
            op,
            [
                (Slot::Q, q.clone().into()),
                (Slot::K, k.clone().into()),
                (Slot::V, v.clone().into()),
                (Slot::Blocks, Input::Output(route, Slot::Bits)),
                (Slot::O, Input::Shared(0)),
            ],
        );
    }
    let calls = calls.expect_shared(0, "o");
    // What is stored for a token's row counts up to its own block; those after it are hidden from all its keys.
    let places: Vec<i64> = own
        .iter()
        .flat_map(|&(_, count)| (0..count).map(|place| (place / chunk) as i64))
        .collect();
    let last = places.clone();
    let counts = move |row: usize, block: i64| {
        row.checked_rem(last.len())
            .and_then(|place| last.get(place))
            .is_some_and(|&own| block <= own)
    };
    if own.len() == 1 {
        let (route, _) = own[0];
        return Ok(calls.expect_sets(
            "selected_blocks",
            move |outputs| listed(outputs, route, topk),
            counts,
        ));
    }
    packed_choice(
        calls,
        (q, k),
        &whole,
        Packed {
            starts,
            chunk,
            topk,
        },
    )
    .map(|(calls, route, first_blocks)| {
        calls.expect_sets(
            "selected_blocks",
            move |outputs| {
                let mut all = listed(outputs, route, topk)?;
                for (row, place) in all.iter_mut().zip((0..heads).flat_map(|_| &first_blocks)) {
                    for number in row {
                        *number -= place;
                    }
                }
                Ok(all)
            },
            counts,
        )
    })
}

/// How tokens are packed, and what is chosen for each.
struct Packed {
    starts: Vec<u32>,
    chunk: u64,
    topk: u64,
}

/// Adds the choice of blocks for all packed sequences at once; the number of its call, and the first block of each
/// token's sequence.
fn packed_choice(
    mut calls: Problem,
    (q, k): (Values, Values),
    whole: &Attention,
    packed: Packed,
) -> Result<(Problem, usize, Vec<i64>), String> {
    let mut blocks: Vec<i64> = Vec::new();
    let mut first_blocks = Vec::new();
    for pair in packed.starts.windows(2) {
        let first = blocks.len() as i64;
        first_blocks.extend((pair[0]..pair[1]).map(|_| first));
        blocks.extend(
            (pair[0]..pair[1])
                .step_by(packed.chunk as usize)
                .map(i64::from),
        );
    }
    blocks.extend(packed.starts.last().copied().map(i64::from));
    let starts = Layout::new(DType::U32, [blocks.len() as u64]);
    let pool = Pool::by_starts(whole.k.clone(), starts.clone());
    let means = pool.y.clone();
    let pooled = calls.call(
        pool,
        [
            (Slot::X, k.into()),
            (Slot::BlockStarts, Values::Integer(blocks.clone()).into()),
        ],
    );
    let op = RouteScores::new(whole.q.clone(), means);
    let scores_layout = op.out.clone();
    let scores = calls.call(
        op,
        [
            (Slot::Q, q.into()),
            (Slot::K, Input::Output(pooled, Slot::Y)),
        ],
    );
    let sequences = Layout::new(DType::U32, [packed.starts.len() as u64]);
    let mut route = Route::new(scores_layout, packed.topk)
        .visible(Visible::Causal)
        .own()
        .packed(sequences);
    route.blocks = Blocks::Starts(starts);
    let cu: Vec<i64> = packed.starts.iter().copied().map(i64::from).collect();
    let route = calls.call(
        route,
        [
            (Slot::Scores, Input::Output(scores, Slot::Out)),
            (Slot::BlockStarts, Values::Integer(blocks).into()),
            (Slot::CuSeqlens, Values::Integer(cu).into()),
        ],
    );
    Ok((calls, route, first_blocks))
}

/// Native sparse attention: compressed blocks, the blocks whose compressed keys get most weight from a group of
/// heads, and a window; the three write parts of one buffer, and are added up by their gates.
pub(super) fn nsa(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let whole = AttentionProblem::of(reader, DType::F32)?.op;
    let block = reader.count("block_size")? as u64;
    let most = reader.count("S")? as u64;
    let window = super::streaming::window(reader, "window")?;
    let [q, k, v] = ["q", "k", "v"].map(|name| given(reader, name));
    let (q, k, v) = (q?, k?, v?);
    let [batch, q_heads, len, _] = dims(&whole.q);
    let [_, kv_heads, keys, _] = dims(&whole.k);
    if len != keys {
        return Err(format!("{len} queries of {keys} keys"));
    }
    let mut calls = Problem::none();
    let compress =
        |layout: &Layout| Pool::new(layout.clone(), block).rule(PoolRule::Mean(Divisor::Block));
    let (k_pool, v_pool) = (compress(&whole.k), compress(&whole.v));
    let (k_layout, v_layout) = (k_pool.y.clone(), v_pool.y.clone());
    let k_cmp = calls.call(k_pool, [(Slot::X, k.clone().into())]);
    let v_cmp = calls.call(v_pool, [(Slot::X, v.clone().into())]);

    let [width] = whole
        .o
        .shape
        .get(3..)
        .and_then(|s| s.try_into().ok())
        .ok_or("no outputs")?;
    let branches = Merge::gated(
        Layout::f32([3, batch, q_heads, len, width]),
        Layout::f32([3, batch, q_heads, len]),
    );
    let mut gates = Vec::new();
    for name in ["g_cmp", "g_slc", "g_swa"] {
        match given(reader, name)? {
            Values::Real(gate) => gates.extend(gate),
            _ => return Err(format!("{name} is not of real numbers")),
        }
    }
    let branch = |number| branches.o_part(number).ok_or("three branches");
    let complete = Mod::new(format!(
        "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {{
            return (kv_index + 1u) * {block}u <= q_index + 1u;
        }}"
    ));
    let scale = whole.effective_scale();
    let compressed = Attention::new(whole.q.clone(), k_layout, v_layout)
        .scale(scale)
        .modified(complete)
        .output(branch(0)?)
        .with_lse();
    let first = calls.call(
        compressed.clone(),
        [
            (Slot::Q, q.clone().into()),
            (Slot::K, Input::Output(k_cmp, Slot::Y)),
            (Slot::V, Input::Output(v_cmp, Slot::Y)),
            (Slot::O, Input::Shared(0)),
        ],
    );
    let weights = Weights::new(
        compressed,
        Statistic::Matrix {
            stage: Stage::Weights,
            heads: 0..q_heads,
            rows: 0..len,
        },
    );
    let weights_layout = weights.out.clone();
    let weights = calls.call(
        weights,
        [
            (Slot::Q, q.clone().into()),
            (Slot::K, Input::Output(k_cmp, Slot::Y)),
            (Slot::Lse, Input::Output(first, Slot::Lse)),
        ],
    );
    let route = Route::new(weights_layout, most)
        .group(q_heads / kv_heads)
        .blocks(1, block)
        .visible(Visible::Complete)
        .own()
        .with_bits();
    let mask = bits(&route, block)?;
    let route = calls.call(route, [(Slot::Scores, Input::Output(weights, Slot::Out))]);
    let causal = Attention::new(whole.q.clone(), whole.k.clone(), whole.v.clone())
        .scale(scale)
        .causal(Causal::TopLeft);
    let mut near = causal.clone().output(branch(2)?);
    near.window = window;
    let selected = causal.output(branch(1)?).block_mask(mask);
    let qkv = || {
        let all = [(Slot::Q, &q), (Slot::K, &k), (Slot::V, &v)];
        let all = all.map(|(slot, values)| (slot, Input::from(values.clone())));
        all.into_iter().chain([(Slot::O, Input::Shared(0))])
    };
    let blocks = (Slot::Blocks, Input::Output(route, Slot::Bits));
    calls.call(selected, qkv().chain([blocks]));
    calls.call(near, qkv());
    // All three, and those that the case keeps apart.
    let [all, compressed, others] = [0..3, 0..1, 1..3].map(|parts| {
        let mut op = branches.clone().output(whole.o.clone());
        for layout in [Some(&mut op.o_parts), op.gates.as_mut()]
            .into_iter()
            .flatten()
        {
            let first = layout
                .strides
                .first()
                .map_or(0, |stride| stride * parts.start);
            if let Some(count) = layout.shape.first_mut() {
                *count = parts.end - parts.start;
            }
            layout.offset += first;
        }
        let gates = Values::Real(gates.clone());
        let inputs = [
            (Slot::OParts, Input::Shared(0)),
            (Slot::Gates, gates.into()),
        ];
        calls.call(op, inputs)
    });
    Ok(calls
        .expect_of(all, Slot::O, "o")
        .expect_of(k_cmp, Slot::Y, "k_cmp")
        .expect_of(v_cmp, Slot::Y, "v_cmp")
        .expect_of(compressed, Slot::O, "o_cmp")
        .expect_of(others, Slot::O, "o_slc_swa")
        .expect_sets(
            "block_indices",
            move |outputs| listed(outputs, route, most),
            |_, _| true,
        ))
}

/// Loki: keys by the first channels of a rotation, attended in all channels.
pub(super) fn loki(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    let (rank, most) = (reader.count("r")? as u64, reader.count("k")? as u64);
    let causal = reader.flag("causal");
    let [batch, _, queries, dim] = dims(&problem.op.q);
    let [_, kv_heads, keys, _] = dims(&problem.op.k);
    // The source computes it and leaves it be.
    reader.input("alpha")?;
    let rotation = reader.input("pca")?;
    if rotation.shape != [1, kv_heads, dim, dim] || rank > dim || (causal && queries != keys) {
        return Err(format!(
            "a rotation of shape {:?}, {rank} channels, {queries} queries of {keys} keys",
            rotation.shape
        ));
    }
    // Its first columns, as rows.
    let columns = Layout::f32([batch, kv_heads, rank, dim]).with_strides([0, dim * dim, 1, dim]);
    let mut calls = Problem::none();
    let mut turned = |layout: &Layout, values: Values| {
        let op = RouteScores::new(layout.clone(), columns.clone());
        let layout = op.out.clone();
        let inputs = [
            (Slot::Q, values.into()),
            (Slot::K, rotation.values.clone().into()),
        ];
        (calls.call(op, inputs), layout)
    };
    let (q, q_layout) = turned(&problem.op.q, given(reader, "q")?);
    let (k, k_layout) = turned(&problem.op.k, given(reader, "k")?);
    let op = RouteScores::new(q_layout, k_layout).scale(1.0 / (dim as f32).sqrt());
    let scores_layout = op.out.clone();
    let scores = calls.call(
        op,
        [
            (Slot::Q, Input::Output(q, Slot::Out)),
            (Slot::K, Input::Output(k, Slot::Out)),
        ],
    );
    let mut route = Route::new(scores_layout, most).with_bits();
    if causal {
        route = route.visible(Visible::Causal);
        problem.op.causal = Causal::TopLeft;
    }
    let mask = bits(&route, 1)?;
    let list = route.indices.clone().ok_or("a route without a list")?;
    let route = calls.call(route, [(Slot::Scores, Input::Output(scores, Slot::Out))]);
    // Over the list, and over bits that say the same.
    let mut by_bits = AttentionProblem::of(reader, DType::F32)?;
    by_bits.op = problem.op.clone();
    by_bits.blocks(mask, Input::Output(route, Slot::Bits));
    problem.op = problem.op.key_index(list, 1);
    problem.bind(Slot::Index, Input::Output(route, Slot::Indices));
    let over_list = calls.then(problem.done());
    calls.then(by_bits.done());
    let calls = calls.expect_of(over_list, Slot::O, "o");
    Ok(calls.expect(Slot::O, "o").expect_sets(
        "kept",
        move |outputs| listed(outputs, route, most),
        // Rows with too few keys before them store keys after the query, which it does not see.
        move |row, key| !causal || key <= (row as u64 % queries) as i64,
    ))
}
