//! Plans, without a GPU: op and caps in; schedule, grid, ranges and scratch, or the exact error,
//! out.

use std::collections::{BTreeMap, BTreeSet};

use foveate::{
    Attention, BlockMask, Blocks, Caps, Causal, Corner, DType, Error, Keep, KeyIndex, Layout,
    Merge, Mod, Op, Pool, PoolRule, Real, Rotary, Route, RouteMass, RouteScores, Schedule,
    ShortConv, Softmax, Stage, Statistic, Tuning, Weights, Window,
    caps::MatrixShape,
    kernels::{
        Kernel,
        attention_merge::{Source, Weights as PartWeights},
        attention_weights::Kind,
        short_conv, short_conv_state,
        softmax::Phase,
    },
    ops::Slot,
    plan::{Outline, Range, Step},
};
use proptest::prelude::*;

/// Mesa's software device, as far as plans see it.
fn lavapipe() -> Caps {
    Caps {
        max_buffer_bytes: 2 << 30,
        storage_alignment: 16,
        uniform_alignment: 16,
        workgroup_bytes: 32 << 10,
        max_invocations: 1024,
        subgroup: Some((8, 8)),
        f16: true,
        software: true,
        ..Caps::minimum()
    }
}

fn outline(op: impl Into<Op>, caps: &Caps) -> Result<Outline, Error> {
    Outline::new(&op.into(), caps, &Tuning::default())
}

fn planned(op: impl Into<Op>, caps: &Caps) -> Outline {
    let outline = outline(op, caps).unwrap_or_else(|error| panic!("{error}"));
    keeps_the_limits(&outline, caps).unwrap_or_else(|message| panic!("{message}"));
    outline
}

/// q `[b, hq, m, d]`, k `[b, hkv, n, d]`, v `[b, hkv, n, dv]`, all f32.
fn attention([b, hq, hkv, m, n, d, dv]: [u64; 7]) -> Attention {
    Attention::new(
        Layout::f32([b, hq, m, d]),
        Layout::f32([b, hkv, n, d]),
        Layout::f32([b, hkv, n, dv]),
    )
}

fn plain() -> Attention {
    attention([1, 2, 2, 4, 6, 8, 8])
}

/// Three parts of two heads of four rows.
fn merge() -> Merge {
    Merge::new(Layout::f32([3, 1, 2, 4, 8]), Layout::f32([3, 1, 2, 4]))
}

/// Two heads of four tokens, and tables of ten positions.
fn rotary() -> Rotary {
    let table = Layout::f32([10, 4]);
    Rotary::new(Layout::f32([1, 2, 4, 8]), table.clone(), table)
}

/// A step's parameters by name; every one is 4 bytes long.
fn params(step: &Step) -> BTreeMap<&'static str, u32> {
    let words = step.params.chunks_exact(4);
    step.kernel
        .param_fields()
        .iter()
        .zip(words)
        .map(|(&(name, _), word)| {
            (
                name,
                u32::from_le_bytes([word[0], word[1], word[2], word[3]]),
            )
        })
        .collect()
}

/// The most iterations in one invocation of a step, as far as they are counted here: of attention, those of its keys.
fn iterations(step: &Step) -> u64 {
    let of = params(step);
    let of = |name: &str| u64::from(of[name]);
    match step.kernel {
        Kernel::AttentionSubgroup(variant) => {
            // One turn per step of keys; all else is unrolled.
            let keys = of("split_keys").min(of("kv_len"));
            keys.div_ceil(variant.keys.into())
        }
        Kernel::AttentionDecode(variant) => {
            // Blocks of a stretch per lane, and as many turns in each as a stretch has keys.
            let keys = of("split_keys").min(of("kv_len"));
            let lanes = u64::from(variant.subgroup);
            let stretch = keys.div_ceil(lanes).clamp(1, variant.stretch.into());
            keys.div_ceil(lanes * stretch) * stretch
        }
        Kernel::AttentionTile(variant) => {
            // Counted from the WGSL, not by the code that the plan divides by: per tile of 32
            // keys one turn; per chunk of 32 dims of q and k one turn, 16 loads and 32 products;
            // 4 rows of 8 maxima; per chunk of v 16 loads and 32 keys.
            let keys = of("split_keys").min(of("kv_len"));
            let scores = of("head_dim").div_ceil(32) * (1 + 16 + 32);
            let values = u64::from(variant.v_chunks) * (16 + 32);
            keys.div_ceil(32) * (1 + scores + 4 * 8 + values)
        }
        Kernel::AttentionMatrix(variant) => {
            // Counted from the WGSL. Per tile of keys one turn; loads of keys and of values, four
            // elements at a time; for each product one turn for the strips and one per matrix of
            // keys; for sums that are scaled, per chunk two turns and four elements at a time.
            let keys = of("split_keys").min(of("kv_len"));
            let (side, per_tile) = (u64::from(variant.side), u64::from(variant.keys));
            let threads = 4 * u64::from(variant.lanes);
            let row_of = |dim: u64| dim.div_ceil(side) * side / 4;
            let loads = (per_tile * row_of(of("head_dim"))).div_ceil(threads)
                + (per_tile * row_of(of("value_dim"))).div_ceil(threads);
            let products = 2 * (1 + per_tile / side);
            let scaled = (u64::from(variant.tile_rows()) * per_tile / 4).div_ceil(threads);
            let chunks = (row_of(of("value_dim")) * 4).div_ceil(per_tile);
            keys.div_ceil(per_tile) * (1 + loads + products + 1 + chunks * (2 + scaled))
        }
        // Counted from the WGSL: for the largest total, where there are totals, and for the sums.
        Kernel::AttentionMerge(variant) => match variant.source {
            Source::Parts {
                weights: PartWeights::Gates { .. },
                ..
            } => of("splits") + 1,
            _ => 2 * (of("splits") + 1),
        },
        Kernel::AttentionWeights(variant) => {
            // Counted from the WGSL, the check that ends a loop too: 64 keys a turn; four dims a turn; for
            // lists, their places and 64 candidates; else 64 sums at the end.
            let dot = 2 + of("head_dim").div_ceil(4);
            let (turn, end) = match variant.kind {
                Kind::Top => (dot + 1 + of("value_dim") + 64, 0),
                Kind::Matrix { .. } => (dot, 0),
                _ => (dot, 65),
            };
            of("kv_len").div_ceil(64) * turn + 1 + end
        }
        Kernel::AttentionMass(_) => {
            // 8 queries a turn, four dims a turn; 8 sums at the end.
            let dot = 2 + of("head_dim").div_ceil(4);
            of("q_len").div_ceil(8) * dot + 1 + 9
        }
        Kernel::Rotary(_) => of("each"),
        Kernel::ShortConv(variant) => {
            // Counted from the WGSL, the checks that end loops too: steps of a run, each a walk along the taps where
            // they do not fit registers, after one for the softmax (per token, where tokens have weights); for packed
            // sequences, a search at each token.
            let tokens = of("each");
            let block = u64::from(variant.block);
            let along = of("taps").div_ceil(4) + 1;
            let walk = match (variant.taps, variant.softmax, variant.rows) {
                (Some(_), ..) => 0,
                (None, short_conv::Softmax::None, _) => along,
                (None, _, short_conv::Rows::Token) => along * (1 + block),
                (None, ..) => along * 2,
            };
            if variant.packed {
                let search = u64::from(of("sequences").ilog2()) + 2;
                tokens * (2 + search + walk) + 1
            } else {
                tokens.div_ceil(block) * (1 + walk) + 1
            }
        }
        Kernel::ShortConvState(_) => of("elements") + 1,
        Kernel::Softmax(variant) => {
            let width = if variant.vec4 { 4 } else { 1 };
            let range = of("split_length").min(of("length"));
            let along = range.div_ceil(width * u64::from(variant.lanes));
            if variant.phase == Phase::Apply {
                along.max(of("all_splits"))
            } else {
                along
            }
        }
        Kernel::Pool(variant) => {
            // Counted from the WGSL, the checks that end loops too: rows in fours and up to three more, once for each
            // vector, three times where rows are divided by their lengths, which lanes put together twice.
            let rows = match variant.starts {
                true => of("rows"),
                false => of("block").min(of("rows")),
            };
            let pooled = rows / 4 + 1 + 3 + 1;
            let vectors = of("channels").div_ceil(4).div_ceil(variant.lanes.into());
            let walk = vectors * (1 + pooled) + 1;
            let write = vectors * (1 + pooled + 5) + 1;
            match variant.normalise {
                true => 2 * (walk + u64::from(variant.lanes)) + write,
                false => write,
            }
        }
        Kernel::RouteRows(variant) => {
            // Four blocks a turn, with the other heads of a group: once or twice, and again by words of bits; places
            // of the list that hold nothing.
            let turns = of("blocks").div_ceil(4) * (1 + of("group"));
            let words = of("blocks").div_ceil(32) * 2;
            let walks = if variant.share { 2 } else { 1 };
            walks * (turns + 1) + turns + words + 1 + of("k") + 1
        }
        Kernel::RouteRanks(_) => of("stretch").div_ceil(4) * (1 + of("group")) + 1,
        Kernel::RouteLists(variant) => {
            // Words are cleared, counted and written by segments of 2048, 64 invocations side by side, which add what
            // each has; one may have all blocks that are taken.
            let words = of("blocks").div_ceil(32);
            let each = words.min(2048).div_ceil(64);
            let places = of("selected").div_ceil(64);
            let segment = 1 + 3 * (each + 1) + each + (places + 1) + 65;
            let lists =
                words.div_ceil(2048) * segment + 1 + of("selected") + of("k").div_ceil(64) + 1;
            match variant.share {
                true => lists + 2 * (of("blocks").div_ceil(64) + 1) + 3 * 65 + of("selected") + 1,
                false => lists,
            }
        }
        ref other => panic!("{other:?} is no part of an op"),
    }
}

/// Workgroups that a step has work for.
fn work(step: &Step) -> u64 {
    let of = params(step);
    u64::from(match step.kernel {
        Kernel::AttentionMerge(_) => {
            of["elements"].div_ceil(foveate::kernels::attention_merge::WORKGROUP)
        }
        Kernel::Softmax(_) => of["groups"],
        Kernel::Rotary(_) => of["invocations"].div_ceil(foveate::kernels::rotary::WORKGROUP),
        Kernel::ShortConv(variant) => of["invocations"].div_ceil(variant.workgroup),
        Kernel::ShortConvState(_) => of["invocations"].div_ceil(short_conv_state::WORKGROUP),
        _ => of["tiles"],
    })
}

/// What an op needs of a tensor: all of it, but for tables whose rows the host knows.
fn needed(op: &Op, slot: Slot, layout: &Layout) -> Layout {
    let mut layout = layout.clone();
    if let (Op::Rotary(op), Slot::Cos | Slot::Sin) = (op, slot)
        && op.positions.is_none()
        && op.cos.rank() == 2
        && layout.shape[0] > 1
    {
        layout.offset += op.offset * layout.strides[0];
        layout.shape[0] = op.x.shape[2];
    }
    layout
}

/// What every plan must keep, whatever the op and the caps.
fn keeps_the_limits(outline: &Outline, caps: &Caps) -> Result<(), String> {
    let ensure = |holds: bool, message: String| if holds { Ok(()) } else { Err(message) };
    let ends: BTreeMap<Slot, u64> = outline
        .op
        .tensors()
        .into_iter()
        .map(|(slot, layout)| (slot, layout.end_bytes()))
        .collect();
    let mut bound: BTreeMap<Slot, Vec<Range>> = BTreeMap::new();
    for step in &outline.steps {
        let kernel = step.kernel;
        kernel.supports(caps)?;
        ensure(
            step.ranges.len() as u64 <= u64::from(caps.max_storage_buffers),
            format!("{kernel:?} binds {} buffers", step.ranges.len()),
        )?;
        ensure(
            step.params.len().div_ceil(16) == (kernel.param_fields().len() * 4).div_ceil(16),
            format!("{} bytes of parameters for {kernel:?}", step.params.len()),
        )?;
        for range in &step.ranges {
            let end = match range.slot {
                Slot::Scratch => outline.scratch_bytes,
                slot => ends[&slot].next_multiple_of(4),
            };
            ensure(
                range.offset % u64::from(caps.storage_alignment) == 0
                    && range.size > 0
                    && range.size % 4 == 0
                    && range.size <= caps.max_binding_bytes
                    && range.offset + range.size <= end,
                format!("{range:?} of {end} bytes in {kernel:?}"),
            )?;
            bound.entry(range.slot).or_default().push(*range);
        }
        let side = u64::from(caps.max_workgroups);
        let [x, y, z] = step.grid.map(u64::from);
        ensure(
            x <= side && y <= side && z == 1 && x * y <= u64::from(u32::MAX),
            format!("grid {:?}", step.grid),
        )?;
        ensure(
            x * y >= work(step) && work(step) > 0,
            format!("grid {:?} for {} workgroups", step.grid, work(step)),
        )?;
        ensure(
            iterations(step) <= caps.loop_budget.into(),
            format!("{} iterations in {kernel:?}", iterations(step)),
        )?;
    }
    // Together the ranges of each tensor reach from its first element to its last, without a gap
    // where the tensor has none.
    let partly = matches!(
        &outline.op,
        Op::Weights(Weights {
            statistic: Statistic::Matrix { .. },
            ..
        })
    );
    for (slot, layout) in outline.op.tensors() {
        // A part of the matrix needs a part of the inputs.
        if partly && !outline.op.is_output(slot) {
            continue;
        }
        let layout = &needed(&outline.op, slot, layout);
        let ranges = bound
            .get_mut(&slot)
            .ok_or_else(|| format!("{} is bound nowhere", slot.name()))?;
        ranges.sort_by_key(|range| range.offset);
        let start = layout.offset * layout.dtype.size();
        let dense = *layout == Layout::new(layout.dtype, layout.shape.clone()).at(layout.offset);
        let mut reached = start;
        for range in ranges.iter() {
            ensure(
                !dense || range.offset <= reached,
                format!("{} is not bound from byte {reached}", slot.name()),
            )?;
            reached = reached.max(range.offset + range.size);
        }
        ensure(
            ranges[0].offset <= start && reached >= layout.end_bytes(),
            format!(
                "{} is bound from {} to {reached}",
                slot.name(),
                ranges[0].offset
            ),
        )?;
    }
    let (rows, width) = match &outline.op {
        Op::Attention(op) => {
            let [b, h, m, _] = op.q.shape[..] else {
                return Err("q has 4 axes".into());
            };
            (b * h * m, op.v.shape[3] + 2)
        }
        Op::Softmax(op) => (op.x.elements() / op.x.shape[op.axis], 2),
        Op::Merge(_)
        | Op::Rotary(_)
        | Op::Weights(_)
        | Op::LinearAttention(_)
        | Op::ShortConv(_)
        | Op::RandomFeatures(_) => (0, 0),
        Op::Scan(_) => return Err("tests/scan.rs has the tests of this op".into()),
        Op::TopK(_) | Op::TopP(_) => {
            return Err("tests/top_k.rs and tests/top_p.rs have the tests of these ops".into());
        }
        Op::Pool(_) | Op::RouteScores(_) | Op::Route(_) => {
            return Err("tests/route.rs has the tests of this op".into());
        }
        Op::HrrAttention(_) | Op::FlowAttention(_) | Op::AftFull(_) => {
            return Err("tests/forms.rs has the tests of this op".into());
        }
        Op::VerticalSlash(_) | Op::Divergence(_) => {
            return Err("tests/patterns.rs has the tests of these ops".into());
        }
        Op::Scatter(_) => return Err("tests/scatter.rs has the tests of this op".into()),
        Op::Gather(_) | Op::Sort(_) | Op::ScatterMean(_) | Op::ClusterUpdate(_) | Op::Evict(_) => {
            return Err("tests/gather.rs and tests/sort.rs have the tests of this op".into());
        }
    };
    // A second pass, for functions on weights, has partial results of its own where keys are split.
    let split = outline.splits > 1;
    let passes = match &outline.op {
        Op::Attention(op)
            if op
                .mods
                .iter()
                .any(|change| change.source.contains("prob_mod")) =>
        {
            1 + u64::from(split)
        }
        _ => u64::from(split),
    };
    let each = u128::from(rows) * u128::from(outline.splits) * u128::from(width) * 4;
    let most = each * u128::from(passes);
    ensure(
        u128::from(outline.scratch_bytes) <= most && (passes > 0) == (outline.scratch_bytes > 0),
        format!("{} bytes of scratch, at most {most}", outline.scratch_bytes),
    )?;
    ensure(
        outline.scratch_bytes <= caps.max_buffer_bytes,
        "scratch is larger than a buffer".into(),
    )?;
    let text = outline.explain();
    for (schedule, reason) in &outline.rejected {
        ensure(
            *schedule != outline.schedule && !reason.is_empty(),
            format!("{schedule} is rejected for `{reason}`"),
        )?;
        ensure(
            text.contains(&format!("not {schedule}: {reason}")),
            format!("explain() does not name {schedule}"),
        )?;
    }
    // Each schedule of the op is chosen or rejected.
    let all = match outline.op {
        Op::Attention(_) => 4,
        Op::Softmax(_) | Op::Scan(_) => 2,
        // Subgroup broadcast, where it does not pay.
        Op::LinearAttention(_) => outline.rejected.len() + 1,
        Op::Merge(_)
        | Op::Rotary(_)
        | Op::Weights(_)
        | Op::ShortConv(_)
        | Op::RandomFeatures(_) => 1,
        Op::HrrAttention(_) | Op::FlowAttention(_) => 1,
        Op::AftFull(_) | Op::RouteScores(_) => 2,
        Op::Pool(_) | Op::Route(_) => 1,
        Op::Gather(_) | Op::Sort(_) | Op::ScatterMean(_) | Op::ClusterUpdate(_) | Op::Evict(_) => 1,
        Op::TopK(_) | Op::TopP(_) | Op::VerticalSlash(_) | Op::Divergence(_) => 1,
        Op::Scatter(_) => 1,
    };
    ensure(
        outline.rejected.len() == all - 1,
        "a schedule is missing".into(),
    )
}

#[test]
fn schedules_by_caps() {
    let with = |change: fn(&mut Caps)| {
        let mut caps = lavapipe();
        change(&mut caps);
        caps
    };
    let op = attention([1, 2, 2, 64, 64, 64, 64]);
    for (caps, schedule, reason) in [
        (lavapipe(), Schedule::Subgroup, "fits better"),
        (Caps::minimum(), Schedule::Tile, "no subgroup operations"),
        (
            with(|caps| caps.subgroup = Some((4, 4))),
            Schedule::Subgroup,
            "fits better",
        ),
        (
            with(|caps| {
                caps.subgroup = Some((32, 32));
                caps.software = false;
            }),
            Schedule::Tile,
            "more than 8 lanes",
        ),
        (
            with(|caps| caps.subgroup = Some((4, 8))),
            Schedule::Tile,
            "anything from 4 to 8",
        ),
        (
            with(|caps| caps.workgroup_bytes = 4096),
            Schedule::Subgroup,
            "bytes of workgroup memory",
        ),
        (
            with(|caps| caps.loop_budget = 64),
            Schedule::Subgroup,
            "loop budget",
        ),
    ] {
        let outline = planned(op.clone(), &caps);
        assert_eq!(outline.schedule, schedule, "{caps:?}");
        let told = outline.rejected.iter().any(|(other, why)| {
            !matches!(other, Schedule::Decode | Schedule::Matrix) && why.contains(reason)
        });
        assert!(told, "{:?}", outline.rejected);
    }
}

/// A GPU whose subgroups have 32 lanes and multiply matrices of f16.
fn with_matrices() -> Caps {
    Caps {
        workgroup_bytes: 48 << 10,
        subgroup: Some((32, 32)),
        software: false,
        matrices_checked: true,
        matrices: vec![MatrixShape {
            side: 16,
            f16: true,
            emulated: false,
        }],
        ..lavapipe()
    }
}

fn halved(shape: [u64; 7]) -> Attention {
    let mut op = attention(shape);
    for layout in [&mut op.q, &mut op.k, &mut op.v, &mut op.o] {
        layout.dtype = DType::F16;
    }
    op
}

#[test]
fn matrices_where_they_fit() {
    let with = |change: fn(&mut Caps)| {
        let mut caps = with_matrices();
        change(&mut caps);
        caps
    };
    let shape = [1, 8, 2, 256, 256, 64, 64];
    let emulated = |caps: &mut Caps| caps.matrices[0].emulated = true;
    let eights = |caps: &mut Caps| {
        caps.matrices = vec![MatrixShape {
            side: 8,
            f16: false,
            emulated: false,
        }];
        caps.subgroup = Some((4, 64));
    };
    // Why not matrices; nothing where they are chosen.
    for (op, caps, reason) in [
        (halved(shape), with_matrices(), ""),
        (halved([1, 1, 1, 16, 256, 64, 64]), with_matrices(), ""),
        (halved([1, 8, 1, 2, 256, 64, 64]), with_matrices(), ""),
        (
            halved([1, 8, 8, 15, 256, 64, 64]),
            with_matrices(),
            "15 rows per KV head",
        ),
        // What is stored as f32 is never rounded to f16.
        (attention(shape), with_matrices(), "no 8x8 matrices of f32"),
        (attention(shape), with(eights), ""),
        (halved(shape), with(eights), "no 16x16 matrices of f16"),
        (
            halved(shape),
            with(|caps| caps.matrices.clear()),
            "no 16x16 matrices of f16",
        ),
        (
            halved(shape),
            with(|caps| caps.subgroup = None),
            "no subgroup operations",
        ),
        (
            halved([1, 8, 2, 256, 256, 128, 128]),
            with(|caps| caps.workgroup_bytes = 16 << 10),
            "bytes of workgroup memory",
        ),
        (
            halved(shape),
            with(|caps| caps.max_invocations = 64),
            "128 invocations",
        ),
        (
            halved(shape),
            with(|caps| caps.max_storage_buffers = 3),
            "storage buffers",
        ),
        (halved(shape), with(emulated), "for tests alone"),
        (
            halved(shape),
            with(|caps| caps.matrices_checked = false),
            "not checked on this device",
        ),
        (
            halved(shape),
            with(|caps| caps.subgroup = Some((8, 8))),
            "fits better",
        ),
    ] {
        let text = format!("{:?}, {caps:?}", op.q);
        if reason.contains("storage buffers") {
            // No other schedule can either.
            let error = outline(op, &caps).expect_err("too few buffers");
            assert!(error.to_string().contains(reason), "{error}");
            continue;
        }
        let outline = planned(op, &caps);
        let why = outline
            .rejected
            .iter()
            .find(|(other, _)| *other == Schedule::Matrix)
            .map_or("", |(_, why)| why.as_str());
        assert_eq!(
            outline.schedule == Schedule::Matrix,
            reason.is_empty(),
            "{text}: {why}"
        );
        assert!(why.contains(reason), "{text}: {why}");
    }
    // Few rows take a smaller tile, and so does a device with less workgroup memory.
    let tile = |op: Attention, caps: &Caps| match planned(op, caps).steps[0].kernel {
        Kernel::AttentionMatrix(variant) => (variant.tile_rows(), variant.keys),
        ref other => panic!("{other:?}"),
    };
    assert_eq!(tile(halved(shape), &with_matrices()), (128, 32));
    let short = halved([1, 8, 2, 16, 256, 64, 64]);
    assert_eq!(tile(short, &with_matrices()), (64, 32));
    let wide = halved([1, 8, 2, 256, 256, 256, 256]);
    assert_eq!(tile(wide, &with_matrices()), (64, 32));
    let small = with(|caps| caps.workgroup_bytes = 16 << 10);
    assert_eq!(tile(halved(shape), &small), (64, 16));
}

#[test]
fn a_small_attention_is_one_dispatch_without_scratch() {
    let outline = planned(plain(), &lavapipe());
    assert_eq!(outline.steps.len(), 1);
    assert_eq!(outline.splits, 1);
    assert_eq!(outline.scratch_bytes, 0);
    // 2 heads of 4 rows, up to 32 rows in a tile.
    assert_eq!(outline.steps[0].grid, [2, 1, 1]);
    let mut slots: Vec<Slot> = outline.steps[0].ranges.iter().map(|r| r.slot).collect();
    slots.sort();
    assert_eq!(slots, [Slot::Q, Slot::K, Slot::V, Slot::O]);
}

#[test]
fn splits_cost_scratch_and_a_merge() {
    for schedule in [Schedule::Subgroup, Schedule::Tile] {
        let tuning = Tuning {
            schedule: Some(schedule),
            splits: Some(4),
            ..Tuning::default()
        };
        let op = attention([2, 4, 2, 3, 256, 8, 5]).with_lse();
        let outline = Outline::new(&op.into(), &lavapipe(), &tuning).expect("plans");
        keeps_the_limits(&outline, &lavapipe()).expect("keeps the limits");
        assert_eq!(outline.splits, 4);
        assert_eq!(outline.scratch_bytes, 2 * 4 * 3 * 4 * (5 + 2) * 4);
        let stems: Vec<_> = outline.steps.iter().map(|s| s.kernel.stem()).collect();
        assert_eq!(
            stems,
            [format!("attention_{schedule}").as_str(), "attention_merge"]
        );
    }
    // Decoding one token fills the device without being asked to.
    let outline = planned(attention([1, 8, 2, 1, 8192, 64, 64]), &lavapipe());
    assert!(outline.splits > 1);
}

#[test]
fn tensors_past_one_binding_are_sliced() {
    // 244 MiB each of K and V.
    let op = attention([1, 1, 1, 4, 1_000_000, 64, 64]);
    let outline = planned(op, &lavapipe());
    let slices = outline
        .steps
        .iter()
        .filter(|step| !matches!(step.kernel, Kernel::AttentionMerge(_)));
    assert!(slices.count() >= 2);
    assert!(outline.splits > 1);

    // Queries and outputs past a binding too.
    let outline = planned(attention([2, 8, 8, 40_000, 16, 64, 64]), &lavapipe());
    assert!(outline.steps.len() >= 2);
    assert_eq!(outline.splits, 1);

    let outline = planned(Softmax::new(Layout::f32([1, 100_000_000]), 1), &lavapipe());
    assert_eq!(outline.schedule, Schedule::Ranges);
    let outline = planned(Softmax::new(Layout::f32([100_000_000, 1]), 1), &lavapipe());
    assert!(outline.steps.len() >= 3);

    // Keys so far apart that a binding holds fewer of them than a step takes.
    let far = Layout::f32([1, 1, 12, 8]).with_strides([0, 0, 12 << 20, 1]);
    let mut op = attention([1, 1, 1, 4, 12, 8, 8]);
    op.k = far.clone();
    op.v = far;
    for caps in [
        lavapipe(),
        Caps {
            max_buffer_bytes: 1 << 30,
            ..Caps::minimum()
        },
    ] {
        assert!(planned(op.clone(), &caps).splits > 1);
    }
}

#[test]
fn the_loop_budget_holds() {
    // keeps_the_limits counts the iterations.
    for budget in [300, 1000, 65_535, 1 << 22] {
        for subgroup in [None, Some((8, 8))] {
            let caps = Caps {
                loop_budget: budget,
                subgroup,
                ..lavapipe()
            };
            let keys = (u64::from(budget) * 8).min(500_000);
            planned(attention([1, 2, 1, 16, keys, 64, 64]), &caps);
            planned(Softmax::new(Layout::f32([3, 200_000]), 1), &caps);
            let length = (u64::from(budget) * 50).min(200_000);
            planned(Softmax::new(Layout::f32([length, 300]), 0), &caps);
        }
    }
    // Many blocks of any length, some perhaps without keys, on a device that was not measured.
    let mut op = attention([1, 2, 2, 1024, 8192, 64, 64]);
    op = op
        .block_mask(BlockMask {
            bits: Layout::new(DType::U32, [1, 1, 1024, 256]),
            block_q: 1,
            block_kv: 0,
        })
        .block_starts(Layout::new(DType::U32, [8193]));
    for subgroup in [None, Some((8, 8))] {
        let caps = Caps {
            subgroup,
            ..lavapipe()
        };
        planned(op.clone(), &caps);
    }
    // A list of every query, whose heads are far apart.
    let mut op = attention([1, 8, 1, 131_072, 8192, 64, 64]);
    op = op.key_index(Layout::new(DType::U32, [1, 8, 131_072, 4096]), 1);
    let caps = Caps {
        max_buffer_bytes: 1 << 40,
        ..lavapipe()
    };
    planned(op, &caps);
    let caps = Caps {
        loop_budget: 1,
        ..lavapipe()
    };
    for error in [
        outline(plain(), &caps).expect_err("no budget"),
        outline(Softmax::new(Layout::f32([3, 200]), 1), &caps).expect_err("no budget"),
    ] {
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

/// The limit is that of an invocation: loops that follow one another are counted together.
#[test]
fn loops_of_pooling_and_routing_add_up() {
    let keep = |max| Keep::TopP {
        p: Real(0.5),
        mass: RouteMass::Given,
        min: 0,
        max,
    };
    for budget in [300, 1000, 65_535] {
        let caps = Caps {
            loop_budget: budget,
            ..lavapipe()
        };
        let mut planned = BTreeSet::new();
        let mut refused = 0;
        let mut look = |op: Op| match Outline::new(&op, &caps, &Tuning::default()) {
            Ok(outline) => {
                for step in &outline.steps {
                    // Selections have their own count.
                    if matches!(
                        step.kernel,
                        Kernel::Pool(_)
                            | Kernel::RouteRows(_)
                            | Kernel::RouteRanks(_)
                            | Kernel::RouteLists(_)
                    ) {
                        let found = iterations(step);
                        assert!(found <= budget.into(), "{found} of {budget}: {op:?}");
                        planned.insert(step.kernel.stem());
                    }
                }
            }
            Err(error) => {
                assert!(matches!(error, Error::Unsupported { .. }), "{error}");
                refused += 1;
            }
        };
        let budget = u64::from(budget);
        for rows in [
            8,
            budget / 2,
            budget,
            budget * 3 / 2,
            3 * budget,
            5 * budget,
        ] {
            for channels in [3, 64, 300] {
                let op = Pool::new(Layout::f32([1, 1, rows, channels]), rows);
                look(op.clone().normalised().into());
                look(op.rule(PoolRule::Max).into());
            }
        }
        let blocks = [
            20,
            200,
            2048,
            budget * 8,
            20 * budget,
            40 * budget,
            61 * budget,
        ];
        for blocks in blocks {
            for group in [1, 3, 25, 100, 1000] {
                let scores = Layout::f32([1, group, 1, blocks]);
                for places in [4, 64, 200] {
                    let op = Route::new(scores.clone(), places).group(group).with_bits();
                    look(op.clone().into());
                    look(op.keep(keep(places)).into());
                }
            }
        }
        assert!(refused > 4, "{refused} of budget {budget}");
        assert!(planned.len() > 2, "{planned:?} of budget {budget}");
    }
}

/// Tensors whose batch entries are further apart than 32 bits tell, in slices.
#[test]
fn far_batch_entries_are_bound_where_they_are() {
    let caps = Caps {
        max_buffer_bytes: 1 << 40,
        ..lavapipe()
    };
    let far = 1u64 << 32;
    let apart = |dtype, shape: [u64; 4], head: u64| {
        let row = shape[3];
        Layout::new(dtype, shape).with_strides([far + 16, head, row, 1])
    };
    let check = |op: Op| {
        let outline = outline(op, &caps).unwrap_or_else(|error| panic!("{error}"));
        for (slot, layout) in outline.op.tensors() {
            if layout.strides[0] <= far - 16 {
                continue;
            }
            // The second batch entry, from its first byte to its last.
            let second = layout.strides[0] * layout.dtype.size();
            let last = layout.end_bytes();
            let ranges = outline.steps.iter().flat_map(|step| &step.ranges);
            let own: Vec<&Range> = ranges.filter(|range| range.slot == slot).collect();
            assert!(
                own.iter()
                    .any(|range| (range.offset..range.offset + range.size).contains(&second)),
                "{} is not bound at {second}",
                slot.name()
            );
            let end = own.iter().map(|range| range.offset + range.size).max();
            assert_eq!(end, Some(last), "{}", slot.name());
        }
    };
    let out = RouteScores::new(Layout::f32([2, 64, 8192, 8]), Layout::f32([2, 64, 8192, 8]));
    assert_eq!(out.out.strides[0], far);
    check(out.into());
    let small = |head| apart(DType::F32, [2, 2, 4, 8], head);
    let mut scores = RouteScores::new(small(64), small(100));
    scores.out = apart(DType::F32, [2, 2, 4, 4], 16);
    let weights = Layout::f32([2, 2, 4]).with_strides([far, 4, 1]);
    check(scores.bounds(small(64)).head_weights(weights).into());
    let starts = Layout::new(DType::U32, [2, 1, 3]).with_strides([far + 8, 3, 1]);
    let pool = Pool::by_starts(small(50), starts.clone());
    check(pool.output(apart(DType::F32, [2, 2, 2, 8], 16)).into());
    check(
        Pool::new(small(32), 2)
            .kv_len(Layout::new(DType::U32, [2]).with_strides([far]))
            .into(),
    );
    let mut route = Route::new(apart(DType::F32, [2, 2, 4, 8], 32), 3);
    route.blocks = Blocks::Starts(Layout::new(DType::U32, [2, 1, 9]).with_strides([far + 8, 9, 1]));
    route.indices = Some(apart(DType::U32, [2, 2, 4, 3], 12));
    check(route.into());
}

#[test]
fn grids_past_65535_are_folded() {
    let outline = planned(attention([70_000, 1, 1, 1, 4, 8, 8]), &lavapipe());
    assert_eq!(outline.steps[0].grid, [65_535, 2, 1]);
    let narrow = Caps {
        max_workgroups: 1000,
        ..lavapipe()
    };
    let outline = planned(Softmax::new(Layout::f32([4_000_000, 4]), 1), &narrow);
    let [x, y, z] = outline.steps[0].grid;
    assert_eq!((x, z), (1000, 1));
    assert!(y > 1);
}

#[test]
fn softmax_schedules() {
    for (shape, axis, schedule, kernels) in [
        ([64, 16], 1, Schedule::Rows, 1),
        ([16, 64], 0, Schedule::Rows, 1),
        ([4096, 4096], 1, Schedule::Rows, 1),
        ([1, 1 << 20], 1, Schedule::Ranges, 2),
        ([2, 1 << 20], 1, Schedule::Ranges, 2),
    ] {
        let outline = planned(Softmax::new(Layout::f32(shape), axis), &lavapipe());
        assert_eq!(outline.schedule, schedule, "{shape:?}");
        assert_eq!(outline.steps.len(), kernels, "{shape:?}");
    }
}

fn invalid(argument: &str, found: &str, remedy: &str) -> Error {
    Error::invalid(argument, found, remedy)
}

#[test]
fn exact_errors() {
    let apart = "give an output strides that keep its elements apart";
    let agree = "make it agree with q, k and v";
    let empty = "every axis must be at least 1 long; skip the call for empty work";
    let mut table: Vec<(Op, Error)> = Vec::new();
    let mut case = |op: Attention, error| table.push((op.into(), error));

    case(
        attention([1, 3, 2, 4, 6, 8, 8]),
        invalid(
            "k",
            "2 KV heads do not divide 3 query heads",
            "each KV head serves a whole group of query heads",
        ),
    );
    let mut op = plain();
    op.k = Layout::f32([1, 2, 6, 7]);
    case(
        op,
        invalid(
            "k",
            "shape [1, 2, 6, 7] where [1, 2, 6, 8] is expected",
            agree,
        ),
    );
    let mut op = plain();
    op.v = Layout::f32([1, 2, 5, 8]);
    case(
        op,
        invalid(
            "v",
            "shape [1, 2, 5, 8] where [1, 2, 6, 8] is expected",
            agree,
        ),
    );
    case(
        plain().output(Layout::f32([1, 2, 4, 9])),
        invalid(
            "o",
            "shape [1, 2, 4, 9] where [1, 2, 4, 8] is expected",
            agree,
        ),
    );
    let mut op = plain();
    op.lse = Some(Layout::f32([1, 2, 5]));
    case(
        op,
        invalid("lse", "shape [1, 2, 5] where [1, 2, 4] is expected", agree),
    );
    case(
        plain().kv_len(Layout::new(DType::U32, [2])),
        invalid("kv_len", "shape [2] where [1] is expected", agree),
    );
    case(
        plain().mask(Layout::new(DType::Bool, [3, 6])),
        invalid(
            "mask",
            "shape [3, 6] does not broadcast to [1, 2, 4, 6]",
            "give each axis its full length or 1",
        ),
    );
    case(
        plain().bias(Layout::f32([1, 1, 1, 2, 4, 6])),
        invalid(
            "bias",
            "6 axes in shape [1, 1, 1, 2, 4, 6]",
            "give it 4 axes, as the docs of Attention list them",
        ),
    );
    case(
        plain().mask(Layout::f32([4, 6])),
        invalid("mask", "elements are f32", "give bool (one byte each)"),
    );
    case(
        plain().kv_len(Layout::f32([1])),
        invalid("kv_len", "elements are f32", "give u32"),
    );
    case(
        plain().bias(Layout::new(DType::Bool, [4, 6])),
        invalid("bias", "elements are bool", "give f32 or f16"),
    );
    let mut op = plain();
    op.v = Layout::f16([1, 2, 6, 8]);
    case(
        op,
        invalid("v", "elements are f16", "give q's element type"),
    );
    let mut op = plain();
    op.q = Layout::new(DType::U32, [1, 2, 4, 8]);
    case(op, invalid("q", "elements are u32", "give f32 or f16"));
    let mut op = plain();
    op.q = Layout::f32([2, 4, 8]);
    case(
        op,
        invalid(
            "q",
            "3 axes in shape [2, 4, 8]",
            "give it 4 axes, as the docs of Attention list them",
        ),
    );
    case(
        attention([1, 2, 2, 0, 6, 8, 8]),
        invalid("q", "shape [1, 2, 0, 8] holds no element", empty),
    );
    case(
        attention([1, 2, 2, 4, 0, 8, 8]),
        invalid("k", "shape [1, 2, 0, 8] holds no element", empty),
    );
    for (scale, found) in [
        (f32::NAN, "NaN is not finite, or too large"),
        (f32::INFINITY, "inf is not finite, or too large"),
        (f32::NEG_INFINITY, "-inf is not finite, or too large"),
    ] {
        case(
            plain().scale(scale),
            invalid("scale", found, "give a number below 2e38"),
        );
    }
    let repeated = Layout::f32([1, 2, 4, 8]).with_strides([64, 32, 0, 1]);
    case(
        plain().output(repeated),
        invalid(
            "o",
            "strides [64, 32, 0, 1] put several elements of shape [1, 2, 4, 8] in one place",
            apart,
        ),
    );
    let mut op = plain().with_lse();
    op.lse = Some(Layout::f32([1, 2, 4]).with_strides([8, 3, 1]));
    case(
        op,
        invalid(
            "lse",
            "strides [8, 3, 1] put several elements of shape [1, 2, 4] in one place",
            apart,
        ),
    );
    let mut op = plain();
    op.q.strides.pop();
    case(
        op,
        invalid("q", "4 axes but 3 strides", "give one stride per axis"),
    );
    for (d, dv, name, dim) in [(257, 8, "q", 257), (8, 300, "v", 300)] {
        case(
            attention([1, 2, 2, 4, 6, d, dv]),
            Error::unsupported(
                format!("{name} with head_dim {dim}"),
                "kernels hold a row of at most 256",
                "split the head",
            ),
        );
    }
    let mut op = plain();
    op.k = Layout::f32([1, 2, 6, 8]).at(1 << 40);
    case(
        op,
        Error::unsupported(
            format!("k of {} bytes", (1u64 << 42) + 384),
            "a buffer holds at most 2147483648 bytes on this device",
            "split the tensor over batch or heads, or ask for the adapter's own limits when you \
             create the device",
        ),
    );

    let x = Layout::f32([3, 5]);
    let mut case = |op: Softmax, error| table.push((op.into(), error));
    case(
        Softmax::new(x.clone(), 2),
        invalid("axis", "2 of a tensor with 2 axes", "count axes from 0"),
    );
    case(
        Softmax::new(x.clone(), 1).output(Layout::f32([5, 3])),
        invalid(
            "y",
            "f32 [5, 3] where x is f32 [3, 5]",
            "give the output the input's shape and element type",
        ),
    );
    case(
        Softmax::new(x.clone(), 1).scale(f32::NAN),
        invalid("scale", "is not finite", "give a finite number"),
    );
    case(
        Softmax::new(Layout::new(DType::Bool, [3, 5]), 1),
        invalid("x", "elements are bool", "softmax takes f32 or f16"),
    );
    case(
        Softmax::new(Layout::f32([3, 0]), 0),
        invalid("x", "shape [3, 0] holds no element", empty),
    );
    case(
        Softmax::new(Layout::f32([]), 0),
        invalid("x", "shape [] holds no element", empty),
    );
    case(
        Softmax::new(x.clone(), 1).output(x.clone().with_strides([1, 1])),
        invalid(
            "y",
            "strides [1, 1] put several elements of shape [3, 5] in one place",
            apart,
        ),
    );
    let mut op = Softmax::new(x.clone(), 1).in_place();
    op.y = x.clone().at(4);
    case(
        op,
        invalid(
            "y",
            "its layout differs from x's, but the call is in place",
            "use one layout for both",
        ),
    );
    // Four axes of rows, none of which continues the next.
    let scattered = Layout::f32([2, 2, 2, 2, 2]).with_strides([1000, 300, 90, 20, 1]);
    case(
        Softmax::new(scattered.clone(), 4).output(scattered),
        Error::unsupported(
            "x with 4 separate axes of rows",
            "a kernel walks over three",
            "make neighbouring axes contiguous, or call once per slice of one axis",
        ),
    );

    let mut case = |op: Merge, error| table.push((op.into(), error));
    let agree = "make it agree with o_parts";
    let axes = |n| format!("give it {n} axes, as the docs of Merge list them");
    for (slot, shape) in [
        ("lse_parts", vec![2, 1, 2, 4]),
        ("lse_parts", vec![3, 1, 2, 5]),
    ] {
        let mut op = merge();
        op.lse_parts = Some(Layout::f32(shape.clone()));
        let found = format!("shape {shape:?} where [3, 1, 2, 4] is expected");
        case(op, invalid(slot, &found, agree));
    }
    gates_that_are_wrong(&mut case);
    case(
        merge().output(Layout::f32([1, 2, 4, 9])),
        invalid(
            "o",
            "shape [1, 2, 4, 9] where [1, 2, 4, 8] is expected",
            agree,
        ),
    );
    let mut op = merge();
    op.lse = Some(Layout::f32([2, 1, 4]));
    case(
        op,
        invalid("lse", "shape [2, 1, 4] where [1, 2, 4] is expected", agree),
    );
    case(
        Merge::new(Layout::f32([1, 2, 4, 8]), Layout::f32([1, 2, 4])),
        invalid("o_parts", "4 axes in shape [1, 2, 4, 8]", &axes(5)),
    );
    let mut op = merge();
    op.lse_parts = Some(Layout::f32([3, 2, 4]));
    case(
        op,
        invalid("lse_parts", "3 axes in shape [3, 2, 4]", &axes(4)),
    );
    case(
        Merge::new(Layout::f32([0, 1, 2, 4, 8]), Layout::f32([0, 1, 2, 4])),
        invalid("o_parts", "shape [0, 1, 2, 4, 8] holds no element", empty),
    );
    case(
        Merge::new(
            Layout::new(DType::U32, [3, 1, 2, 4, 8]),
            Layout::f32([3, 1, 2, 4]),
        ),
        invalid("o_parts", "elements are u32", "give f32 or f16"),
    );
    case(
        Merge::new(Layout::f32([3, 1, 2, 4, 8]), Layout::f16([3, 1, 2, 4])),
        invalid("lse_parts", "elements are f16", "give f32"),
    );
    case(
        merge().output(Layout::f16([1, 2, 4, 8])),
        invalid("o", "elements are f16", "give the element type of o_parts"),
    );
    case(
        merge().output(Layout::f32([1, 2, 4, 8]).with_strides([64, 32, 4, 1])),
        invalid(
            "o",
            "strides [64, 32, 4, 1] put several elements of shape [1, 2, 4, 8] in one place",
            apart,
        ),
    );
    let mut op = merge();
    op.lse = Some(Layout::f32([1, 2, 4]).with_strides([8, 0, 1]));
    case(
        op,
        invalid(
            "lse",
            "strides [8, 0, 1] put several elements of shape [1, 2, 4] in one place",
            apart,
        ),
    );
    case(
        Merge::new(
            Layout::f32([65_535, 1, 1, 1, 4]),
            Layout::f32([65_535, 1, 1, 1]),
        ),
        Error::unsupported(
            "a merge of 65535 parts",
            "a kernel may loop 65535 times on this device, and takes 131072",
            "merge some parts at a time, with the log-sum-exp of each",
        ),
    );
    // Part by part, each 64 MiB: a row's parts are too far apart for one binding.
    case(
        Merge::new(
            Layout::f32([3, 1, 32, 4096, 128]),
            Layout::f32([3, 1, 32, 4096]),
        ),
        Error::unsupported(
            "o_parts with the parts of a row over 134218256 bytes",
            "a binding holds 134217728 bytes",
            "merge some parts at a time, with the log-sum-exp of each, or use strides that keep the \
             parts of a row together, such as those of [batch, q_heads, q_len, parts, value_dim]",
        ),
    );

    rotaries_that_are_wrong(&mut table);

    for (op, error) in table {
        assert_eq!(outline(op.clone(), &lavapipe()), Err(error), "{op:?}");
    }
}

fn rotaries_that_are_wrong(table: &mut Vec<(Op, Error)>) {
    let invalid = |argument: &str, found: &str, remedy: &str| {
        Error::invalid(argument, found.to_owned(), remedy)
    };
    let mut case = |change: &dyn Fn(&mut Rotary), error| {
        let mut op = rotary();
        change(&mut op);
        table.push((op.into(), error));
    };
    let even = "give an even number from 2 to the number of channels";
    for (dim, found) in [
        (7, "7 of 8 channels"),
        (10, "10 of 8 channels"),
        (0, "0 of 8 channels"),
    ] {
        case(
            &|op| op.rotary_dim = dim,
            invalid("rotary_dim", found, even),
        );
    }
    let per_pair = "give one number per pair: half as many as rotary_dim";
    // As wide as the head, as some models store them; of other tokens; flat.
    for shape in [vec![10, 8], vec![1, 5, 4], vec![2, 4, 4], vec![40]] {
        let found = format!("shape {shape:?} where [positions, 4] or [1 or 1, 4, 4] is expected");
        case(
            &|op| op.cos = Layout::f32(shape.clone()),
            invalid("cos", &found, per_pair),
        );
        case(
            &|op| op.sin = Layout::f32(shape.clone()),
            invalid("sin", &found, per_pair),
        );
    }
    case(
        &|op| op.sin = Layout::f32([11, 4]),
        invalid(
            "sin",
            "f32 [11, 4] where cos is f32 [10, 4]",
            "give both tables one shape and element type",
        ),
    );
    case(
        &|op| op.sin.dtype = DType::F16,
        invalid(
            "sin",
            "f16 [10, 4] where cos is f32 [10, 4]",
            "give both tables one shape and element type",
        ),
    );
    case(
        &|op| op.cos.dtype = DType::U32,
        invalid("cos", "elements are u32", "give f32 or f16"),
    );
    case(
        &|op| op.x = Layout::f32([2, 4, 8]),
        invalid(
            "x",
            "3 axes in shape [2, 4, 8]",
            "give it 4 axes, [batch, heads, seq, head_dim]",
        ),
    );
    case(
        &|op| op.x.dtype = DType::Bool,
        invalid("x", "elements are bool", "give f32 or f16"),
    );
    case(
        &|op| op.y = Layout::f16([1, 2, 4, 8]),
        invalid(
            "y",
            "f16 [1, 2, 4, 8] where x is f32 [1, 2, 4, 8]",
            "give the output the input's shape and element type",
        ),
    );
    case(
        &|op| {
            op.in_place = true;
            op.x.offset = 4;
        },
        invalid(
            "y",
            "its layout differs from x's, but the call is in place",
            "use one layout for both",
        ),
    );
    case(
        &|op| op.y.strides[2] = 4,
        invalid(
            "y",
            "strides [64, 32, 4, 1] put several elements of shape [1, 2, 4, 8] in one place",
            "give an output strides that keep its elements apart",
        ),
    );
    for (offset, last) in [(7, 10), (u64::MAX, u64::MAX - 1)] {
        case(
            &|op| op.offset = offset,
            invalid(
                "cos",
                &format!("10 positions, and the last token is at {last}"),
                "make longer tables",
            ),
        );
    }
    let by_token = |op: &mut Rotary| {
        op.cos = Layout::f32([1, 4, 4]);
        op.sin = op.cos.clone();
    };
    let by_position = "or give tables of shape [positions, rotary_dim / 2]";
    case(
        &|op| {
            by_token(op);
            op.offset = 1;
        },
        invalid(
            "offset",
            "1 beside tables that have a row per token",
            &format!("leave it out, {by_position}"),
        ),
    );
    let positions = |shape: &[u64]| Some(Layout::new(DType::U32, shape));
    case(
        &|op| {
            by_token(op);
            op.positions = positions(&[1, 4]);
        },
        invalid(
            "positions",
            "are given beside tables that have a row per token",
            &format!("leave them out, {by_position}"),
        ),
    );
    case(
        &|op| {
            op.offset = 1;
            op.positions = positions(&[1, 4]);
        },
        invalid(
            "offset",
            "1 beside a tensor of positions",
            "leave one of them out",
        ),
    );
    for shape in [vec![4], vec![1, 5], vec![2, 4]] {
        let found = format!("shape {shape:?} where [1 or 1, 4] is expected");
        case(
            &|op| op.positions = positions(&shape),
            invalid("positions", &found, "give one per token"),
        );
    }
    case(
        &|op| op.positions = Some(Layout::f32([1, 4])),
        invalid("positions", "elements are f32", "give u32"),
    );
    // 160 MB of cosines, any of which a token may ask for.
    case(
        &|op| {
            op.cos = Layout::f32([10_000_000, 4]);
            op.sin = op.cos.clone();
            op.positions = positions(&[1, 4]);
        },
        Error::unsupported(
            "cos of 160000016 bytes",
            "a binding holds 134217728 bytes",
            "with positions in a tensor the whole table is bound: make it shorter, or give a row \
             per token, [batch, seq, rotary_dim / 2]",
        ),
    );
}

#[test]
fn rotaries_by_layout() {
    let step = |op: Rotary, caps: &Caps| planned(op, caps).steps.remove(0);
    let at = |op: Rotary| params(&step(op, &lavapipe()));
    // Two vectors of turned channels per invocation; one of those that are copied, but not in place.
    assert_eq!(at(rotary())["units"], 1);
    let mut partial = rotary();
    partial.x = Layout::f32([1, 2, 4, 20]);
    partial.y = partial.x.clone();
    assert_eq!(at(partial.clone())["units"], 1 + 3);
    assert_eq!(at(partial.clone().in_place())["units"], 1);
    partial.rotary_dim = 4;
    partial.cos = Layout::f32([10, 2]);
    partial.sin = partial.cos.clone();
    assert_eq!(at(partial)["units"], 2 + 16);
    // Rows of the table from the offset, the whole of it for positions on the device.
    let of = |op: Rotary| {
        let range = step(op, &lavapipe()).ranges;
        let cos = range.iter().find(|range| range.slot == Slot::Cos);
        cos.map(|range| (range.offset, range.size))
    };
    assert_eq!(of(rotary().offset(3)), Some((48, 64)));
    let all = rotary().positions(Layout::new(DType::U32, [1, 4]));
    assert_eq!(of(all.clone()), Some((0, 160)));
    assert_eq!(at(all)["last_position"], 9);
    // A table past a binding, of which few rows are asked for.
    let mut long = rotary().offset(9_000_000);
    long.cos = Layout::f32([10_000_000, 4]);
    long.sin = long.cos.clone();
    assert_eq!(of(long), Some((144_000_000, 64)));

    // Heads share an invocation when there are tokens enough.
    let many = |seq| {
        let table = Layout::f32([seq, 32]);
        Rotary::new(Layout::f32([1, 12, seq, 64]), table.clone(), table)
    };
    assert_eq!(at(many(1))["each"], 1);
    assert_eq!(at(many(4096))["each"], 6);
    let hardware = Caps {
        software: false,
        ..lavapipe()
    };
    assert_eq!(params(&step(many(4096), &hardware))["each"], 2);
}

#[test]
fn what_the_device_lacks_is_named() {
    let no_f16 = Caps::minimum();
    let half = Attention::new(
        Layout::f16([1, 2, 4, 8]),
        Layout::f16([1, 2, 6, 8]),
        Layout::f16([1, 2, 6, 8]),
    );
    for (op, caps, words) in [
        (Op::from(half), no_f16.clone(), "SHADER_F16"),
        (
            plain().bias(Layout::f16([4, 6])).into(),
            no_f16.clone(),
            "SHADER_F16",
        ),
        (
            Softmax::new(Layout::f16([3, 5]), 1).into(),
            no_f16,
            "SHADER_F16",
        ),
        (
            plain().mask(Layout::new(DType::Bool, [4, 6])).into(),
            Caps {
                max_storage_buffers: 4,
                ..lavapipe()
            },
            "5 storage buffers, and the device allows 4",
        ),
        (
            Merge::new(Layout::f16([3, 1, 2, 4, 8]), Layout::f32([3, 1, 2, 4])).into(),
            Caps::minimum(),
            "SHADER_F16",
        ),
        (
            merge().with_lse().into(),
            Caps {
                max_storage_buffers: 3,
                ..lavapipe()
            },
            "4 storage buffers to merge results, and the device allows 3",
        ),
        (
            Rotary {
                cos: Layout::f16([10, 4]),
                sin: Layout::f16([10, 4]),
                ..rotary()
            }
            .into(),
            Caps::minimum(),
            "SHADER_F16",
        ),
        (
            rotary().positions(Layout::new(DType::U32, [1, 4])).into(),
            Caps {
                max_storage_buffers: 4,
                ..lavapipe()
            },
            "5 storage buffers, and the device allows 4",
        ),
        (
            rotary().into(),
            Caps {
                loop_budget: 1,
                ..lavapipe()
            },
            "may loop 1 times",
        ),
        (
            plain().into(),
            Caps {
                max_invocations: 32,
                ..lavapipe()
            },
            "invocations per workgroup to merge",
        ),
    ] {
        let error = outline(op, &caps).expect_err(words);
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    for (caps, argument) in [
        (
            Caps {
                storage_alignment: 0,
                ..lavapipe()
            },
            "caps.storage_alignment",
        ),
        (
            Caps {
                uniform_alignment: 48,
                ..lavapipe()
            },
            "caps.uniform_alignment",
        ),
        (
            Caps {
                max_binding_bytes: 1 << 40,
                ..lavapipe()
            },
            "caps.max_binding_bytes",
        ),
        (
            Caps {
                subgroup: Some((0, 0)),
                ..lavapipe()
            },
            "caps.subgroup",
        ),
    ] {
        let error = outline(plain(), &caps).expect_err(argument);
        assert!(
            matches!(&error, Error::Invalid { argument: found, .. } if found == argument),
            "{error}"
        );
    }
}

#[test]
fn tuning_that_cannot_be_kept_is_an_error() {
    let softmax = Op::from(Softmax::new(Layout::f32([64, 16]), 1));
    let attention = Op::from(plain());
    let merge = Op::from(merge());
    let tuning = Tuning::default();
    let schedule = |schedule| Tuning {
        schedule: Some(schedule),
        ..tuning
    };
    let splits = Tuning {
        splits: Some(0),
        ..tuning
    };
    for (op, tuning, argument) in [
        (&attention, splits, "tuning.splits"),
        (&softmax, splits, "tuning.splits"),
        (
            &attention,
            Tuning {
                rows: Some(0),
                ..tuning
            },
            "tuning.rows",
        ),
        (
            &attention,
            Tuning {
                keys: Some(9),
                ..tuning
            },
            "tuning.keys",
        ),
        (&attention, schedule(Schedule::Rows), "no schedule `rows`"),
        (&softmax, schedule(Schedule::Tile), "no schedule `tile`"),
        (&merge, schedule(Schedule::Ranges), "no schedule `ranges`"),
    ] {
        let error = Outline::new(op, &lavapipe(), &tuning).expect_err(argument);
        assert!(error.to_string().contains(argument), "{error}");
    }
    let subgroup = schedule(Schedule::Subgroup);
    let error = Outline::new(&attention, &Caps::minimum(), &subgroup).expect_err("no subgroups");
    assert!(
        error.to_string().contains("no subgroup operations"),
        "{error}"
    );
}

#[test]
fn weights_that_cannot_be() {
    let op = || plain().with_lse();
    let matrix = |heads, rows| Statistic::Matrix {
        stage: Stage::Final,
        heads,
        rows,
    };
    let within = "give a range that is not empty and lies within the queries";
    for (op, error) in [
        (
            Weights::new(plain(), Statistic::Mass),
            Error::invalid(
                "lse",
                "is missing, and weights are made with it",
                "plan the attention with_lse() too, and bind what it wrote",
            ),
        ),
        (
            Weights::new(op(), Statistic::Top { count: 65 }),
            Error::invalid("statistic", "the top 65 keys", "give a count from 1 to 64"),
        ),
        (
            Weights::new(op(), matrix(0..3, 0..1)),
            Error::invalid("statistic", "heads 0..3 of 2", within),
        ),
        (
            Weights::new(op(), matrix(0..1, 3..3)),
            Error::invalid("statistic", "rows 3..3 of 4", within),
        ),
        (
            Weights::new(op(), Statistic::Entropy).output(Layout::f16([1, 2, 4])),
            Error::invalid("out", "elements are f16", "give f32"),
        ),
        (
            Weights::new(op(), Statistic::Mass).output(Layout::f32([1, 2, 4])),
            Error::invalid(
                "out",
                "shape [1, 2, 4] where [1, 2, 6] is expected",
                "make it agree with q, k and the statistic",
            ),
        ),
        (
            Weights::new(op(), Statistic::Mass).keys_output(Layout::f32([1, 2, 6])),
            Error::invalid(
                "keys",
                "is given, and the statistic has no numbers of keys",
                "leave it out",
            ),
        ),
        (
            Weights::new(op(), Statistic::LargestWeight).keys_output(Layout::f32([1, 2, 4])),
            Error::invalid("keys", "elements are f32", "give u32"),
        ),
    ] {
        assert_eq!(outline(op, &lavapipe()).expect_err("it is wrong"), error);
    }
    let short = Caps {
        loop_budget: 70,
        ..lavapipe()
    };
    let error = outline(Weights::new(op(), Statistic::Entropy), &short).expect_err("too few");
    assert!(
        error.to_string().contains("a kernel may loop 70 times"),
        "{error}"
    );
}

/// What a statistic has no use for is neither asked for nor bound.
#[test]
fn weights_bind_what_they_read() {
    let op = plain()
        .with_lse()
        .sinks(Layout::f32([2]))
        .mask(Layout::new(DType::Bool, [4, 6]));
    let slots = |statistic| {
        let outline = planned(Weights::new(op.clone(), statistic), &lavapipe());
        let mut slots: Vec<Slot> = outline.steps[0].ranges.iter().map(|r| r.slot).collect();
        slots.sort_unstable();
        slots
    };
    let matrix = |stage| Statistic::Matrix {
        stage,
        heads: 0..2,
        rows: 0..4,
    };
    use Slot::{K, Keys, Lse, Mask, Out, Q, Sinks};
    assert_eq!(slots(matrix(Stage::Scaled)), [Q, K, Out]);
    assert_eq!(slots(matrix(Stage::Final)), [Q, K, Mask, Out]);
    assert_eq!(slots(Statistic::Mass), [Q, K, Lse, Mask, Out]);
    assert_eq!(slots(Statistic::LargestScore), [Q, K, Mask, Sinks, Out]);
    assert_eq!(
        slots(Statistic::LargestWeight),
        [Q, K, Lse, Mask, Out, Keys]
    );
}

fn gates_that_are_wrong(case: &mut impl FnMut(Merge, Error)) {
    let gates = Layout::f32([3, 1, 2, 4]);
    let gated = || Merge::gated(Layout::f32([3, 1, 2, 4, 8]), gates.clone());
    let mut op = merge();
    op.lse_parts = None;
    case(
        op,
        invalid(
            "lse_parts",
            "is missing, and so are gates",
            "give what weights the parts: log-sum-exps, gates or both",
        ),
    );
    case(
        gated().with_lse(),
        invalid(
            "lse",
            "is asked for, and a sum by gates alone has none",
            "leave it out, or give lse_parts too",
        ),
    );
    case(
        merge().gates(Layout::f32([3, 1, 4, 2])),
        invalid(
            "gates",
            "shape [3, 1, 4, 2] where [3, 1, 2, 4] is expected",
            "make it agree with o_parts",
        ),
    );
    case(
        gated().gates(Layout::f32([3, 1, 2])),
        invalid(
            "gates",
            "3 axes in shape [3, 1, 2]",
            "give it 4 axes, as the docs of Merge list them",
        ),
    );
    case(
        gated().gates(Layout::new(DType::U32, [3, 1, 2, 4])),
        invalid("gates", "elements are u32", "give f32 or f16"),
    );
    let many = Merge::gated(
        Layout::f32([65_535, 1, 1, 1, 4]),
        Layout::f32([65_535, 1, 1, 1]),
    );
    let refused = |turns: u64, remedy| {
        Error::unsupported(
            "a merge of 65535 parts",
            format!("a kernel may loop 65535 times on this device, and takes {turns}"),
            remedy,
        )
    };
    case(
        many.clone(),
        refused(
            65_536,
            "add some parts up at a time, and then their sums, with gates of 1",
        ),
    );
    let mut both = many;
    both.lse_parts = both.gates.clone();
    case(
        both,
        refused(
            131_072,
            "give Attention::gate to the calls that make the parts, and merge some at a time, with the \
             log-sum-exp of each",
        ),
    );
}

#[test]
fn merges_by_layout() {
    let variant = |op: Merge| match planned(op, &lavapipe()).steps[0].kernel {
        Kernel::AttentionMerge(variant) => variant,
        other => panic!("{other:?}"),
    };
    let vec4 = |op: Merge| matches!(variant(op).source, Source::Parts { vec4: true, .. });
    assert!(vec4(merge()));
    assert!(vec4(merge().output(Layout::f32([1, 2, 4, 8]).at(4))));
    assert!(!vec4(merge().output(Layout::f32([1, 2, 4, 8]).at(2))));
    let mut odd = merge();
    odd.o_parts = odd.o_parts.with_strides([70, 64, 32, 8, 1]);
    assert!(!vec4(odd));
    let odd = Merge::new(Layout::f32([3, 1, 2, 4, 6]), Layout::f32([3, 1, 2, 4]));
    assert!(!vec4(odd.clone()));

    // A gate per token.
    let shared = Layout::f16([3, 1, 2, 4]).with_strides([8, 0, 0, 1]);
    let both = merge().gates(shared.at(5));
    let mut alone = both.clone();
    alone.lse_parts = None;
    for (op, weights) in [
        (merge(), PartWeights::LogSumExps),
        (both, PartWeights::Both { f16: true }),
        (alone, PartWeights::Gates { f16: true }),
    ] {
        let vec4 = true;
        assert_eq!(variant(op.clone()).source, Source::Parts { vec4, weights });
        let outline = planned(op.clone(), &lavapipe());
        let step = params(&outline.steps[0]);
        let places = ["at", "part", "batch", "head", "row"]
            .map(|axis| step[format!("gates_{axis}").as_str()]);
        assert_eq!(
            places,
            if op.gates.is_some() {
                [5, 8, 0, 0, 1]
            } else {
                [0; 5]
            }
        );
        let bound: Vec<Slot> = outline.steps[0].ranges.iter().map(|r| r.slot).collect();
        let tensors: Vec<Slot> = Op::from(op)
            .tensors()
            .iter()
            .map(|(slot, _)| *slot)
            .collect();
        assert_eq!(bound, tensors);
    }

    let outline = planned(odd.with_lse(), &lavapipe());
    assert_eq!(outline.schedule, Schedule::Rows);
    assert_eq!((outline.steps.len(), outline.scratch_bytes), (1, 0));
    let step = params(&outline.steps[0]);
    assert_eq!((step["splits"], step["elements"]), (3, 48));
    assert_eq!(
        (
            step["o_parts_part"],
            step["lse_parts_part"],
            step["o_parts_head"]
        ),
        (48, 8, 24)
    );
    assert_eq!(outline.steps[0].grid, [1, 1, 1]);

    // Part by part, 64 KiB each, do not fit a binding; row by row they do, in slices.
    let caps = Caps {
        max_binding_bytes: 128 << 10,
        ..lavapipe()
    };
    let lse = Layout::f32([3, 1, 2, 128]);
    let apart = Merge::new(Layout::f32([3, 1, 2, 128, 64]), lse.clone());
    assert!(Outline::new(&apart.into(), &caps, &Tuning::default()).is_err());
    let near = Layout::f32([1, 2, 128, 3, 64]);
    let near = near.transposed(2, 3).transposed(1, 2).transposed(0, 1);
    assert_eq!(near.shape, [3, 1, 2, 128, 64]);
    assert_eq!(planned(Merge::new(near, lse), &caps).steps.len(), 2);
}

#[test]
fn millions_of_slices_are_refused_at_once() {
    let caps = Caps {
        max_binding_bytes: 1024,
        max_buffer_bytes: 1 << 40,
        ..lavapipe()
    };
    let start = std::time::Instant::now();
    for error in [
        outline(Softmax::new(Layout::f32([1 << 30, 4]), 1), &caps),
        outline(attention([1, 1, 1, 1, 1 << 28, 16, 16]), &caps),
        outline(attention([1 << 20, 8, 8, 4, 4, 16, 16]), &caps),
    ] {
        let error = error.expect_err("far too many");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
    assert!(start.elapsed().as_secs() < 5);
}

fn any_caps() -> impl Strategy<Value = Caps> {
    let binding = prop_oneof![
        Just(128u64 << 20),
        (4u64..4096).prop_map(|n| n * 256),
        Just(1 << 31),
    ];
    let buffer = prop_oneof![Just(256u64 << 20), Just(1 << 34), Just(1 << 62)];
    let subgroup = prop_oneof![
        Just(None),
        (0u32..8).prop_map(|n| Some((1 << n, 1 << n))),
        Just(Some((4, 32))),
    ];
    let alignment = prop_oneof![Just(16u32), Just(32), Just(256)];
    let groups = prop_oneof![Just(65_535u32), Just(100), Just(u32::MAX)];
    let budget = prop_oneof![Just(65_535u32), Just(1 << 22), 0u32..2000, Just(u32::MAX)];
    (
        (binding, buffer, 0u32..12, alignment),
        (0u32..64, 5u32..11, groups),
        (subgroup, any::<bool>(), any::<(bool, bool)>(), budget),
    )
        .prop_map(
            |((binding, buffer, buffers, alignment), (kib, invocations, groups), rest)| {
                let (subgroup, f16, (software, matrices_checked), loop_budget) = rest;
                Caps {
                    max_binding_bytes: binding,
                    max_buffer_bytes: buffer,
                    max_storage_buffers: buffers,
                    storage_alignment: alignment,
                    uniform_alignment: alignment,
                    workgroup_bytes: kib << 10,
                    max_invocations: 1 << invocations,
                    max_workgroups: groups,
                    subgroup,
                    f16,
                    software,
                    matrices_checked,
                    matrices: if kib % 2 == 0 {
                        vec![
                            MatrixShape {
                                side: 16,
                                f16: true,
                                emulated: false,
                            },
                            MatrixShape {
                                side: 8,
                                f16: false,
                                emulated: false,
                            },
                        ]
                    } else {
                        Vec::new()
                    },
                    loop_budget,
                }
            },
        )
}

/// Lengths from ordinary to absurd.
fn any_len() -> impl Strategy<Value = u64> {
    prop_oneof![
        40 => 1u64..9,
        20 => 1u64..2000,
        4 => (0u32..63).prop_map(|bits| 1 << bits),
        1 => Just(0),
    ]
}

fn any_dtype() -> impl Strategy<Value = DType> {
    prop_oneof![
        20 => Just(DType::F32),
        15 => Just(DType::F16),
        1 => Just(DType::Bool),
        1 => Just(DType::U32),
    ]
}

/// A layout of a shape: contiguous, transposed, padded, repeated or with any strides at all.
fn laid_out(dtype: DType, shape: Vec<u64>) -> impl Strategy<Value = Layout> {
    let rank = shape.len();
    let offset = prop_oneof![60 => Just(0u64), 30 => 0u64..100, 1 => any::<u64>()];
    let stride = prop_oneof![
        3 => 0u64..3000,
        1 => (0u32..64).prop_map(|bits| 1u64 << bits),
        1 => any::<u64>(),
    ];
    let kind = prop_oneof![
        30 => Just(0u8),
        15 => Just(1),
        15 => Just(2),
        2 => Just(3),
        2 => Just(4),
        5 => Just(5),
    ];
    (
        kind,
        offset,
        prop::collection::vec(stride, rank),
        0..rank.max(1),
        0..rank.max(1),
    )
        .prop_map(move |(kind, offset, strides, a, b)| {
            let mut layout = Layout::new(dtype, shape.clone()).at(offset);
            match kind {
                1 => {
                    // The strides of a buffer whose axes lie the other way round.
                    let other = Layout::new(dtype, shape.clone()).transposed(a, b).shape;
                    layout.strides = Layout::new(dtype, other).transposed(a, b).strides;
                }
                2 => {
                    for stride in &mut layout.strides[..rank.saturating_sub(1)] {
                        *stride = stride.saturating_add(a as u64 * 4).saturating_mul(3);
                    }
                }
                3 => {
                    if let Some(stride) = layout.strides.get_mut(a) {
                        *stride = 0;
                    }
                }
                4 => layout.strides = strides,
                5 => {
                    // What stands beside an axis of length 1 means nothing.
                    for (axis, stride) in strides.into_iter().enumerate() {
                        if shape[axis] == 1 {
                            layout.strides[axis] = stride;
                        }
                    }
                }
                _ => {}
            }
            layout
        })
}

fn any_scale() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![4 => Just(None), 2 => (-4.0f32..4.0).prop_map(Some), 1 => any::<f32>().prop_map(Some)]
}

fn any_softmax() -> impl Strategy<Value = Op> {
    (prop::collection::vec(any_len(), 0..6), any_dtype())
        .prop_flat_map(|(shape, dtype)| {
            let rank = shape.len();
            (
                laid_out(dtype, shape.clone()),
                laid_out(dtype, shape),
                0..rank + 1,
                (any_scale(), any::<bool>(), 0u8..3),
            )
        })
        .prop_map(|(x, y, axis, (scale, log, output))| {
            let mut op = Softmax::new(x, axis);
            op.scale = scale;
            op.log = log;
            match output {
                0 => op,
                1 => op.in_place(),
                _ => op.output(y),
            }
            .into()
        })
}

/// Drops some leading axes and sets some lengths to 1, as masks may.
fn broadcastable(shape: [u64; 4]) -> impl Strategy<Value = Vec<u64>> {
    (0usize..4, 0u8..16).prop_map(move |(drop, ones)| {
        (drop..4)
            .map(|axis| {
                if ones & (1 << axis) != 0 {
                    1
                } else {
                    shape[axis]
                }
            })
            .collect()
    })
}

/// What else may change or hide scores, sensible more often than not.
fn any_terms(op: Attention) -> impl Strategy<Value = Op> {
    let [batch, heads, rows] = [0, 1, 2].map(|axis| op.q.shape[axis]);
    let keys = op.k.shape[2];
    let numbers = |shape: Vec<u64>| laid_out(DType::U32, shape);
    let side = || prop_oneof![2 => Just(None), 3 => any_len().prop_map(Some), 1 => any::<u64>().prop_map(Some)];
    let window =
        (side(), side(), any_len(), any::<bool>()).prop_map(|(left, right, first, corner)| {
            Window {
                left,
                right,
                first,
                corner: if corner {
                    Corner::TopLeft
                } else {
                    Corner::BottomRight
                },
            }
        });
    let index_heads = prop::sample::select(vec![1, op.k.shape[1], heads]);
    let heads_of_lists = index_heads.clone();
    let blocks = (any_len(), any_len())
        .prop_flat_map(move |(block_q, block_kv)| {
            let count = |len: u64, block: u64| len.div_ceil(block.max(1));
            let blocks = count(keys, block_kv);
            let words = blocks.div_ceil(32);
            let bits = index_heads.clone().prop_flat_map(move |heads| {
                laid_out(DType::U32, vec![batch, heads, count(rows, block_q), words])
            });
            let starts = prop::option::of(laid_out(DType::U32, vec![blocks + 1]));
            (bits, starts).prop_map(move |(bits, starts)| {
                let mask = BlockMask {
                    bits,
                    block_q,
                    block_kv,
                };
                (mask, starts)
            })
        })
        .boxed();
    let lists = (any_len(), 1u64..9)
        .prop_flat_map(move |(block_q, entries)| {
            let count = rows.div_ceil(block_q.max(1));
            heads_of_lists
                .clone()
                .prop_flat_map(move |heads| {
                    laid_out(DType::U32, vec![batch, heads, count, entries])
                })
                .prop_map(move |index| KeyIndex { index, block_q })
        })
        .boxed();
    let text = prop_oneof![
        4 => Just("fn score_mod(s: f32, b: u32, h: u32, i: u32, j: u32) -> f32 { return -s; }"),
        2 => Just("fn mask_mod(b: u32, h: u32, i: u32, j: u32) -> bool { return i != j; }"),
        2 => Just("fn key_range(b: u32, h: u32, i: u32) -> vec2<u32> { return vec2<u32>(i, i + 9u); }"),
        2 => Just("fn prob_mod(w: f32, b: u32, h: u32, i: u32, j: u32) -> f32 { return w; }"),
        1 => Just("fn nothing() {}"),
    ];
    let change = (text, prop::option::of(numbers(vec![7])))
        .boxed()
        .prop_map(|(text, buffer)| {
            let change = Mod::new(text);
            match buffer {
                Some(layout) => change.buffer("data", layout),
                None => change,
            }
        });
    (
        (
            numbers(vec![batch]),
            numbers(vec![batch]),
            numbers(vec![5]),
            numbers(vec![5]),
        ),
        (
            numbers(vec![heads, 2]),
            laid_out(DType::F32, vec![heads]),
            laid_out(DType::F32, vec![heads, rows]),
        ),
        (
            window,
            blocks,
            prop::collection::vec(change, 0..3),
            any_scale(),
            lists,
        ),
        // Mostly few of them.
        (prop::array::uniform11(prop::bool::weighted(0.2)), 0u8..10),
    )
        .prop_map(
            move |(
                (q_len, prefix, cu_q, cu_kv),
                (head_windows, sinks, gate),
                rest,
                (wanted, odd),
            )| {
                let (window, blocks, mods, softcap, lists) = rest;
                let mut op = op.clone();
                op.q_len = wanted[0].then_some(q_len);
                op.prefix_len = wanted[1].then_some(prefix);
                op.cu_q = wanted[2].then_some(cu_q);
                op.cu_kv = wanted[2].then_some(cu_kv);
                op.head_windows = wanted[3].then_some(head_windows);
                op.sinks = wanted[4].then_some(sinks);
                op.gate = wanted[9].then_some(gate);
                op.window = wanted[5].then_some(window);
                if wanted[6] {
                    (op.block_mask, op.block_starts) = (Some(blocks.0), blocks.1);
                }
                op.key_index = wanted[10].then_some(lists);
                op.softcap = softcap.filter(|_| wanted[7]);
                if wanted[8] {
                    op.mods = mods;
                }
                // Terms that exclude each other, but for one op in ten.
                if odd != 0 {
                    if op.key_index.is_some() {
                        (op.block_mask, op.block_starts) = (None, None);
                    }
                    if op.cu_q.is_some() {
                        if batch == 1 {
                            (op.q_len, op.kv_len, op.prefix_len) = (None, None, None);
                        } else {
                            (op.cu_q, op.cu_kv) = (None, None);
                        }
                    }
                    if let Some(window) = &mut op.window {
                        window.corner = match op.causal {
                            Causal::BottomRight => Corner::BottomRight,
                            Causal::TopLeft => Corner::TopLeft,
                            Causal::None => window.corner,
                        };
                        if op.head_windows.is_some() {
                            (window.left, window.first) = (None, 0);
                        }
                    }
                }
                op.into()
            },
        )
}

fn any_attention() -> impl Strategy<Value = Op> {
    any_plain_attention()
        .boxed()
        .prop_flat_map(any_terms)
        .boxed()
}

fn any_plain_attention() -> impl Strategy<Value = Attention> {
    let dim = || prop_oneof![40 => 1u64..257, 1 => any_len()];
    (
        (any_len(), 1u64..5, 1u64..5, any_len(), any_len()),
        (dim(), dim(), any_dtype(), any_dtype()),
        any::<[bool; 5]>(),
    )
        .prop_flat_map(|(lens, rest, wanted)| {
            let (b, hkv, group, m, n) = lens;
            let (d, dv, dtype, other) = rest;
            let hq = hkv * group;
            let scores = [b, hq, m, n];
            // An output of another type is an error: now and then.
            let odd = if d % 32 == 0 { other } else { dtype };
            let extra = move |dtype: DType| {
                broadcastable(scores).prop_flat_map(move |shape| laid_out(dtype, shape))
            };
            (
                (
                    laid_out(dtype, vec![b, hq, m, d]),
                    laid_out(dtype, vec![b, hkv, n, d]),
                    laid_out(dtype, vec![b, hkv, n, dv]),
                    laid_out(odd, vec![b, hq, m, dv]),
                ),
                (
                    laid_out(DType::F32, vec![b, hq, m]),
                    laid_out(DType::U32, vec![b]),
                    extra(DType::Bool),
                    extra(if other == DType::U32 {
                        DType::F32
                    } else {
                        other
                    }),
                ),
                (any_scale(), 0u8..3, Just(wanted)),
            )
        })
        .prop_map(
            |((q, k, v, o), (lse, lens, mask, bias), (scale, causal, wanted))| {
                let mut op = Attention::new(q, k, v).causal(match causal {
                    0 => Causal::None,
                    1 => Causal::TopLeft,
                    _ => Causal::BottomRight,
                });
                op.scale = scale;
                if wanted[0] {
                    op.o = o;
                }
                op.lse = wanted[1].then_some(lse);
                op.kv_len = wanted[2].then_some(lens);
                op.mask = wanted[3].then_some(mask);
                op.bias = wanted[4].then_some(bias);
                op
            },
        )
}

fn any_merge() -> impl Strategy<Value = Op> {
    (
        (any_len(), any_len(), 1u64..9, any_len(), any_len()),
        (any_dtype(), any_dtype(), any::<[bool; 4]>()),
    )
        .prop_flat_map(|((parts, b, h, m, d), (dtype, other, wanted))| {
            // Another type is an error: now and then.
            let odd = if d % 8 == 3 { other } else { dtype };
            (
                laid_out(dtype, vec![parts, b, h, m, d]),
                laid_out(DType::F32, vec![parts, b, h, m]),
                laid_out(odd, vec![b, h, m, d]),
                laid_out(DType::F32, vec![b, h, m]),
                (laid_out(other, vec![parts, b, h, m]), Just(wanted)),
            )
        })
        .prop_map(|(o_parts, lse_parts, o, lse, (gates, wanted))| {
            let mut op = Merge::new(o_parts, lse_parts);
            if wanted[2] {
                op = op.gates(gates);
            }
            if wanted[3] {
                op.lse_parts = None;
            }
            if wanted[0] {
                op.o = o;
            }
            op.lse = wanted[1].then_some(lse);
            op.into()
        })
}

fn any_rotary() -> impl Strategy<Value = Op> {
    let dim = || prop_oneof![20 => (1u64..65).prop_map(|n| 2 * n), 5 => 1u64..65, 1 => any_len()];
    (
        (any_len(), any_len(), any_len(), dim(), dim()),
        (any_dtype(), any_dtype(), any_len(), 0u64..200),
        any::<[bool; 8]>(),
    )
        .prop_flat_map(
            |((b, h, s, d, turned), (dtype, tables, rows, offset), wanted)| {
                let d = d.max(turned);
                let half = turned / 2;
                let batch = if wanted[0] { b } else { 1 };
                let offset = if wanted[1] { offset } else { 0 };
                // One row per token, or per position, mostly enough of them.
                let shape = match (wanted[2], d % 16) {
                    (true, _) => vec![batch, s, half],
                    (false, 3) => vec![rows, half],
                    (false, _) => vec![s.saturating_add(offset), half],
                };
                (
                    laid_out(dtype, vec![b, h, s, d]),
                    laid_out(dtype, vec![b, h, s, d]),
                    laid_out(tables, shape.clone()),
                    laid_out(tables, shape),
                    laid_out(DType::U32, vec![batch, s]),
                    Just((turned, offset, wanted)),
                )
            },
        )
        .prop_map(|(x, y, cos, sin, positions, (turned, offset, wanted))| {
            let mut op = Rotary::new(x, cos, sin).rotary_dim(turned);
            // Beside positions, and beside rows per token, an offset is an error: now and then.
            op.positions = (wanted[3] && !wanted[2]).then_some(positions);
            if op.positions.is_none() && op.cos.rank() == 2 || turned % 8 == 2 {
                op.offset = offset;
            }
            op.interleaved = wanted[4];
            op.inverse = wanted[5];
            match (wanted[6], wanted[7]) {
                (true, _) => op.in_place(),
                (false, true) => op.output(y),
                (false, false) => op,
            }
            .into()
        })
}

fn any_short_conv() -> impl Strategy<Value = Op> {
    let taps = || prop_oneof![20 => 1u64..10, 5 => 10u64..200, 1 => any_len()];
    (
        (any_len(), any_len(), any_len(), taps(), 1u64..9),
        (any_dtype(), any_dtype(), 1u64..5, 0u64..9),
        any::<[bool; 10]>(),
    )
        .prop_flat_map(
            |((b, c, s, taps, heads), (dtype, weights, sequences, padding), wanted)| {
                let packed = wanted[0] && !wanted[1];
                let b = if packed { 1 } else { b };
                // One row per channel, or a row per head.
                let heads = if wanted[2] { c } else { heads };
                let rows = if wanted[3] {
                    vec![b, s, heads, taps]
                } else {
                    vec![heads, taps]
                };
                let entries = if packed { sequences } else { b };
                let states = vec![entries, c, taps.saturating_sub(1).max(1)];
                // Channels or tokens outermost in memory.
                let shape = if wanted[4] {
                    vec![b, s, c]
                } else {
                    vec![b, c, s]
                };
                (
                    laid_out(dtype, shape.clone()),
                    laid_out(dtype, shape),
                    laid_out(weights, rows),
                    laid_out(weights, vec![c]),
                    laid_out(dtype, states.clone()),
                    laid_out(dtype, states),
                    laid_out(DType::U32, vec![sequences + 1]),
                    Just((packed, padding, wanted)),
                )
            },
        )
        .prop_map(
            |(x, y, weight, bias, initial, last, cu, (packed, padding, wanted))| {
                let turn = |layout: Layout| {
                    if wanted[4] {
                        layout.transposed(1, 2)
                    } else {
                        layout
                    }
                };
                let mut op = ShortConv::new(turn(x), weight);
                if wanted[5] {
                    op = op.output(turn(y));
                }
                op.bias = wanted[6].then_some(bias);
                op.cu_seqlens = packed.then_some(cu);
                op.softmax = wanted[7];
                op.renormalise = wanted[7] && wanted[3] && wanted[8];
                if wanted[8] {
                    op.padding_left = padding.min(op.taps().saturating_sub(1));
                }
                // Beside taps that look ahead, a state is an error: now and then.
                if op.padding_left + 1 == op.taps() && op.taps() > 1 || padding == 8 {
                    op.initial_state = wanted[9].then_some(initial);
                    op.final_state = wanted[1].then_some(last);
                    if wanted[9] && wanted[1] && wanted[6] {
                        op.initial_state = op.final_state.clone();
                        op.in_place = true;
                    }
                }
                op.into()
            },
        )
}

fn any_tuning() -> impl Strategy<Value = Tuning> {
    let schedule = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Schedule::Decode)),
        1 => Just(Some(Schedule::Subgroup)),
        1 => Just(Some(Schedule::Tile)),
        1 => Just(Some(Schedule::Matrix)),
        1 => Just(Some(Schedule::Rows)),
        1 => Just(Some(Schedule::Ranges)),
    ];
    let number = || prop_oneof![5 => Just(None), 1 => (0u32..10).prop_map(Some)];
    let splits = prop_oneof![
        5 => Just(None),
        2 => (0u32..10).prop_map(Some),
        1 => any::<u32>().prop_map(Some),
    ];
    (schedule, number(), number(), splits).prop_map(|(schedule, rows, keys, splits)| Tuning {
        schedule,
        rows,
        keys,
        splits,
    })
}

/// Plans, and checks what came out; says whether it was a plan.
fn try_plan(op: &Op, caps: &Caps, tuning: &Tuning) -> Result<bool, TestCaseError> {
    let start = std::time::Instant::now();
    let result = Outline::new(op, caps, tuning);
    prop_assert!(
        start.elapsed().as_secs() < 10,
        "planning took {:?}",
        start.elapsed()
    );
    match result {
        Ok(outline) => {
            keeps_the_limits(&outline, caps).map_err(TestCaseError::fail)?;
            Ok(true)
        }
        Err(error) => {
            prop_assert!(
                matches!(error, Error::Invalid { .. } | Error::Unsupported { .. }),
                "{error:?}"
            );
            Ok(false)
        }
    }
}

fn sweep(op: impl Strategy<Value = Op>) {
    let wanted = std::env::var("PROPTEST_CASES").ok();
    let cases = wanted.and_then(|n| n.parse().ok()).unwrap_or(3000);
    let caps = prop_oneof![
        3 => Just(lavapipe()),
        1 => Just(Caps::minimum()),
        4 => any_caps(),
    ];
    let plans = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(op, caps, any_tuning()), |(op, caps, tuning)| {
            if try_plan(&op, &caps, &tuning)? {
                plans.set(plans.get() + 1);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    println!("{} of {cases} random ops have a plan", plans.get());
    assert!(plans.get() > cases / 20, "only {} plans", plans.get());
}

#[test]
fn any_softmax_plans_or_fails_cleanly() {
    sweep(any_softmax());
}

#[test]
fn any_attention_plans_or_fails_cleanly() {
    sweep(any_attention());
}

#[test]
fn visible_pairs_are_counted() {
    for (causal, ahead) in [(Causal::TopLeft, 0), (Causal::BottomRight, 1)] {
        for m in 1..12i64 {
            for n in 1..12i64 {
                let pairs: i64 = (0..m).map(|i| (i + 1 + ahead * (n - m)).clamp(0, n)).sum();
                let q = Layout::f32([1, 1, m as u64, 4]);
                let k = Layout::f32([1, 1, n as u64, 4]);
                let op = Attention::new(q, k.clone(), k).causal(causal);
                assert_eq!(op.visible_pairs(), pairs as f64, "{causal:?} {m} {n}");
            }
        }
    }
}

fn any_weights() -> impl Strategy<Value = Op> {
    let range = || {
        (any_len(), any_len()).prop_map(|(start, len)| {
            let start = start.saturating_sub(1);
            start..start.saturating_add(len)
        })
    };
    let stage = prop_oneof![
        Just(Stage::Scaled),
        Just(Stage::Capped),
        Just(Stage::Final),
        Just(Stage::Weights),
    ];
    let statistic = prop_oneof![
        Just(Statistic::Entropy),
        Just(Statistic::LargestWeight),
        Just(Statistic::LargestScore),
        Just(Statistic::Mass),
        (0u64..70).prop_map(|count| Statistic::Top { count }),
        (stage, range(), range(), any::<bool>()).prop_map(|(stage, heads, rows, whole)| {
            Statistic::Matrix {
                stage,
                // An empty range stands for all.
                heads: if whole { 0..0 } else { heads },
                rows: if whole { 0..0 } else { rows },
            }
        }),
    ];
    (any_attention(), statistic, any_dtype(), 0u64..9).prop_map(
        |(op, mut statistic, dtype, pad)| {
            let Op::Attention(attention) = op else {
                return op;
            };
            if let Statistic::Matrix { heads, rows, .. } = &mut statistic
                && heads.is_empty()
            {
                *heads = 0..attention.q.shape.get(1).copied().unwrap_or(1);
                *rows = 0..attention.q.shape.get(2).copied().unwrap_or(1);
            }
            let mut op = Weights::new(attention, statistic);
            // Now and then without what weights need.
            if op.attention.lse.is_none() && pad < 8 {
                op.attention = op.attention.with_lse();
            }
            if matches!(op.statistic, Statistic::Matrix { .. }) {
                op.out = Layout::new(dtype, op.out.shape.clone());
            }
            op.out = op.out.at(pad);
            op.into()
        },
    )
}

#[test]
fn any_weights_plan_or_fail_cleanly() {
    sweep(any_weights());
}

#[test]
fn any_merge_plans_or_fails_cleanly() {
    sweep(any_merge());
}

#[test]
fn any_rotary_plans_or_fails_cleanly() {
    sweep(any_rotary());
}

#[test]
fn any_short_conv_plans_or_fails_cleanly() {
    sweep(any_short_conv());
}

/// What a plan says of the key tiles that it visits, beside the keys that its rows see one by one.
#[test]
fn visited_tiles_hold_what_is_seen_and_little_more() {
    let caps = lavapipe();
    let mut partly = 0;
    for (m, n) in [(1u64, 90u64), (37, 90), (64, 64), (100, 33), (256, 256)] {
        for corner in [Corner::TopLeft, Corner::BottomRight] {
            for (left, right, first) in [
                (None, None, 0),
                (None, Some(0), 0),
                (Some(5), Some(0), 0),
                (Some(5), Some(9), 3),
                (Some(40), None, 7),
                (Some(0), Some(0), 200),
            ] {
                let k = Layout::f32([1, 2, n, 8]);
                let op = Attention::new(Layout::f32([1, 2, m, 8]), k.clone(), k).window(Window {
                    left,
                    right,
                    first,
                    corner,
                });
                let tuning = Tuning {
                    schedule: Some(Schedule::Subgroup),
                    rows: Some(2),
                    keys: Some(4),
                    splits: Some(1),
                };
                let outline = Outline::new(&op.into(), &caps, &tuning).expect("plans");
                let (visited, all) = outline.visited_tiles().expect("attention");
                let (rows, step) = (16, 4);
                assert_eq!(all, 2 * m.div_ceil(rows) * n.div_ceil(step));
                let sees = |i: u64, j: u64| {
                    let ahead = if corner == Corner::TopLeft {
                        0
                    } else {
                        n as i64 - m as i64
                    };
                    let (place, j) = (i as i64 + ahead, j as i64);
                    let near = left.is_none_or(|left| j >= place - left as i64);
                    (near || j < first as i64)
                        && right.is_none_or(|right| j <= place + right as i64)
                };
                let (mut least, mut most) = (0, 0);
                for tile in 0..m.div_ceil(rows) {
                    let own = tile * rows..(tile * rows + rows).min(m);
                    let seen = (0..n).filter(|&j| own.clone().any(|i| sees(i, j))).count() as u64;
                    least += seen.div_ceil(step);
                    // Two runs, each with a step that it does not fill.
                    most += seen.div_ceil(step) + 1;
                }
                assert!(
                    (2 * least..=2 * most).contains(&visited),
                    "{m} x {n}, {left:?} {right:?} {first} {corner:?}: {visited}, not {least} to {most} twice"
                );
                partly += u32::from(visited * 2 < all);
                assert!(
                    outline
                        .explain()
                        .contains(&format!("visits {visited} of {all} key tiles"))
                );
            }
        }
    }
    assert!(partly > 10, "only {partly} skip more than half");
}
