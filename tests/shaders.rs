//! Every kernel and variant that plans can ask for, without a GPU: naga takes it, SPIR-V (checked
//! by spirv-val where that is installed), MSL and HLSL come out of it, and what Rust says of it is
//! what the WGSL says.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use foveate::{
    AftFull, Attention, BiasTerm, BlockMask, Blocks, Caps, Causal, ClusterUpdate, DType, Decay,
    Denominator, Divergence, Divisor, Error, Evict, FeatureMap, FlowAttention, Gather, Guard,
    HrrAttention, Keep, Layout, LinearAttention, Local, LocalWeights, Merge, Mod, Normaliser, Op,
    Pool, PoolRule, PositionBias, RandomFeatures, Reach, Real, Rotary, Route, RouteMass,
    RouteScores, Scan, ScanRule, Scatter, ScatterMean, Schedule, Scores, ShortConv, Similarity,
    Softmax, Sort, Stage, Statistic, TopK, TopP, Tuning, UpdateRule, VerticalSlash, Visible,
    Weights, Window,
    caps::MatrixShape,
    kernels::{
        Kernel, ROUTE_WORKGROUP, STEMS, aft_full, attention_mass, attention_matrix,
        attention_merge, attention_tile, attention_weights, ceiling_fma, ceiling_matrix,
        ceiling_stream, ceiling_workgroup, cluster_assign, cluster_join, divergence, evict,
        flow_read, gather, hrr_attention, linear_attention_join, linear_attention_quadratic,
        linear_attention_step, list_sums, loop_count, order_count, order_scatter, order_starts,
        pool, random_features, range_join, range_sums, rotary, route_lists, route_scores_subgroup,
        route_scores_tile, scan, scatter, short_conv_state, top_k, top_k_gather, top_k_rows,
        vertical_slash,
    },
    plan::Outline,
};
use naga::{
    AddressSpace, StorageAccess,
    back::{hlsl, msl, spv},
    valid::{Capabilities, ValidationFlags, Validator},
};

/// A device with everything, whose subgroups have this many lanes.
fn caps(lanes: u32) -> Caps {
    Caps {
        subgroup: Some((lanes, lanes)),
        software: lanes <= 8,
        f16: true,
        workgroup_bytes: 32 << 10,
        max_invocations: 1024,
        ..Caps::minimum()
    }
}

fn float(half: bool) -> DType {
    if half { DType::F16 } else { DType::F32 }
}

fn plan(op: impl Into<Op>, caps: &Caps, tuning: &Tuning, into: &mut BTreeSet<Kernel>) {
    let op = op.into();
    let outline = Outline::new(&op, caps, tuning)
        .unwrap_or_else(|error| panic!("{op:?} does not plan: {error}"));
    for step in outline.steps {
        step.kernel
            .supports(caps)
            .unwrap_or_else(|reason| panic!("{:?} was planned, but {reason}", step.kernel));
        into.insert(step.kernel);
    }
}

fn attention(dtype: DType, head_dim: u64, value_dim: u64) -> Attention {
    Attention::new(
        Layout::new(dtype, [2, 4, 3, head_dim]),
        Layout::new(dtype, [2, 2, 64, head_dim]),
        Layout::new(dtype, [2, 2, 64, value_dim]),
    )
}

/// Every combination of what attention reads and writes, both schedules, whole and split.
fn attention_inputs(into: &mut BTreeSet<Kernel>) {
    for half in [false, true] {
        for bias in [None, Some(DType::F32), Some(DType::F16)] {
            for bits in 0..8 {
                for dim in [5, 8] {
                    let mut op = attention(float(half), dim, dim).causal(Causal::BottomRight);
                    if let Some(dtype) = bias {
                        op = op.bias(Layout::new(dtype, [1, 1, 3, 64]));
                    }
                    if bits & 1 != 0 {
                        op = op.mask(Layout::new(DType::Bool, [2, 1, 3, 64]));
                    }
                    if bits & 2 != 0 {
                        op = op.kv_len(Layout::new(DType::U32, [2]));
                    }
                    if bits & 4 != 0 {
                        op = op.with_lse();
                    }
                    for schedule in [Schedule::Decode, Schedule::Subgroup, Schedule::Tile] {
                        for splits in [1, 2] {
                            let tuning = Tuning {
                                schedule: Some(schedule),
                                rows: Some(1),
                                keys: Some(1),
                                splits: Some(splits),
                            };
                            plan(op.clone(), &caps(8), &tuning, into);
                        }
                    }
                }
            }
        }
    }
}

/// What changes or hides scores, by number; an op with none for numbers past the last.
fn with_term(op: Attention, number: u32) -> Attention {
    let numbers = |shape: &[u64]| Layout::new(DType::U32, shape.to_vec());
    let window = |left, first| Window {
        left: Some(left),
        right: Some(1),
        first,
        ..Window::default()
    };
    let rows = op.q.shape[2];
    match number {
        0 => op.window(window(7, 0)),
        1 => op.window(window(7, 2)),
        2 => op.q_len(numbers(&[2])),
        3 => op.prefix_len(numbers(&[2])),
        4 => op.head_windows(numbers(&[4, 2])),
        5 => op.sinks(Layout::f32([4])),
        6 => op.softcap(30.0),
        7 => op.block_mask(BlockMask {
            bits: numbers(&[2, 4, rows, 1]),
            block_q: 1,
            block_kv: 16,
        }),
        8 => op.modified(
            Mod::new(
                "fn score_mod(s: f32, b: u32, h: u32, i: u32, j: u32) -> f32 { return s + slopes(h); }
                 fn mask_mod(b: u32, h: u32, i: u32, j: u32) -> bool { return j <= i + valid_keys(b); }",
            )
            .buffer("slopes", Layout::f32([4])),
        ),
        9 => op.modified(Mod::new(
            "fn key_range(b: u32, h: u32, i: u32) -> vec2<u32> { return vec2<u32>(i, i + 5u); }",
        )),
        10 => op.modified(Mod::new(
            "fn prob_mod(w: f32, b: u32, h: u32, i: u32, j: u32) -> f32 { return w * w; }",
        )),
        11 => {
            let mut op = op;
            for layout in [&mut op.q, &mut op.k, &mut op.v, &mut op.o] {
                layout.shape[0] = 1;
            }
            op.with_lse().packed(numbers(&[6]), numbers(&[6]))
        }
        12 => {
            let rows = op.q.shape[..3].to_vec();
            op.gate(Layout::f32(rows))
        }
        // Rows of a tile see the same blocks.
        13 => op.block_mask(BlockMask {
            bits: numbers(&[2, 2, 1, 1]),
            block_q: rows,
            block_kv: 16,
        }),
        14 => op.key_index(numbers(&[1, 2, rows, 9]), 1),
        15 => with_term(op, 7).block_starts(numbers(&[9])),
        16 => with_term(op, 13).block_starts(numbers(&[9])),
        _ => op,
    }
}

const TERMS: u32 = 17;
const LISTS: u32 = 14;

/// A device with everything, and room for many terms.
fn terms_caps() -> Caps {
    Caps {
        max_storage_buffers: 20,
        matrices: vec![
            MatrixShape {
                side: 16,
                f16: true,
                emulated: false,
            },
            MatrixShape {
                side: 8,
                f16: false,
                emulated: true,
            },
        ],
        workgroup_bytes: 48 << 10,
        ..caps(8)
    }
}

/// Each term alone, and those that go together all at once, in each schedule, whole and split.
fn attention_terms(into: &mut BTreeSet<Kernel>) {
    let caps = terms_caps();
    let schedules = [
        Schedule::Decode,
        Schedule::Subgroup,
        Schedule::Tile,
        Schedule::Matrix,
    ];
    for schedule in schedules {
        for splits in [1, 2] {
            let tuning = Tuning {
                schedule: Some(schedule),
                rows: Some(1),
                keys: Some(1),
                splits: Some(splits),
            };
            for half in [false, true] {
                let plain = || {
                    attention(float(half), 8, 8)
                        .causal(Causal::TopLeft)
                        .with_lse()
                };
                // Matrices of f16 take no weights of any size.
                let probs = !(half && schedule == Schedule::Matrix);
                let lists = schedule != Schedule::Matrix;
                let runs = |&number: &u32| (number != 10 || probs) && (number != LISTS || lists);
                for number in (0..TERMS).filter(runs) {
                    plan(with_term(plain(), number), &caps, &tuning, into);
                }
                // A window beside windows of heads, and sequences beside lengths, are errors.
                let all = [1, 2, 3, 5, 6, 7, 8, 9, 12, 10];
                let all = all.into_iter().take(if probs { 10 } else { 9 });
                let all = all.fold(plain(), with_term);
                plan(all.clone(), &caps, &tuning, into);
                if lists {
                    let mut listed = with_term(all, LISTS);
                    listed.block_mask = None;
                    plan(listed, &caps, &tuning, into);
                }
                let packed = [0, 5, 6, 8, 11].into_iter().fold(plain(), with_term);
                plan(packed, &caps, &tuning, into);
            }
        }
    }
}

/// Dims from 1 to 256, and subgroups of any size.
fn attention_sizes(into: &mut BTreeSet<Kernel>) {
    let small = Tuning {
        rows: Some(1),
        keys: Some(1),
        ..Tuning::default()
    };
    for dim in 1..=256 {
        let op = attention(DType::F32, dim, dim);
        plan(op, &caps(8), &small, into);
        let op = attention(DType::F32, dim, 257 - dim);
        plan(op, &Caps::minimum(), &small, into);
    }
    for (head_dim, value_dim) in [
        (1, 1),
        (5, 5),
        (16, 16),
        (40, 40),
        (64, 64),
        (80, 80),
        (128, 128),
        (64, 256),
        (256, 8),
        (256, 256),
    ] {
        for lanes in [4, 8] {
            let op = attention(DType::F32, head_dim, value_dim);
            plan(op, &caps(lanes), &Tuning::default(), into);
        }
        for half in [false, true] {
            let op = attention(float(half), head_dim, value_dim).with_lse();
            plan(op, &caps(32), &Tuning::default(), into);
        }
    }
    for schedule in [Schedule::Decode, Schedule::Subgroup] {
        let tuning = Tuning {
            schedule: Some(schedule),
            ..small
        };
        for lanes in [4, 8, 16, 32, 64, 128] {
            for half in [false, true] {
                let op = attention(float(half), 40, 24);
                plan(op, &caps(lanes), &tuning, into);
            }
        }
        let open = Tuning {
            schedule: Some(schedule),
            ..Tuning::default()
        };
        for dim in [16, 64, 80, 128, 256] {
            plan(attention(DType::F32, dim, dim), &caps(8), &open, into);
        }
    }
}

/// Each shape of matrices, in hardware and emulated, on devices of different subgroups and workgroup
/// memory, with all that attention reads and writes.
fn attention_matrices(into: &mut BTreeSet<Kernel>) {
    for (side, f16) in [(16, true), (8, true), (8, false)] {
        for emulated in [false, true] {
            for (lanes, workgroup_bytes) in [((32, 32), 48 << 10), ((4, 64), 32 << 10)] {
                let caps = Caps {
                    subgroup: Some(lanes),
                    workgroup_bytes,
                    matrices: vec![MatrixShape {
                        side,
                        f16,
                        emulated,
                    }],
                    ..caps(8)
                };
                for (head_dim, value_dim) in [(5, 5), (16, 40), (64, 64), (128, 128), (256, 72)] {
                    for (extras, splits) in [(false, 1), (true, 1), (true, 2)] {
                        let dtype = float(f16);
                        let mut op = Attention::new(
                            Layout::new(dtype, [2, 4, 80, head_dim]),
                            Layout::new(dtype, [2, 2, 64, head_dim]),
                            Layout::new(dtype, [2, 2, 64, value_dim]),
                        );
                        if extras {
                            op = op
                                .mask(Layout::new(DType::Bool, [2, 1, 80, 64]))
                                .bias(Layout::new(dtype, [1, 1, 80, 64]))
                                .kv_len(Layout::new(DType::U32, [2]))
                                .with_lse();
                        }
                        let tuning = Tuning {
                            schedule: Some(Schedule::Matrix),
                            splits: Some(splits),
                            ..Tuning::default()
                        };
                        plan(op, &caps, &tuning, into);
                    }
                }
            }
        }
    }
}

fn softmax_ops(into: &mut BTreeSet<Kernel>) {
    let no_subgroups = Caps {
        f16: true,
        ..Caps::minimum()
    };
    for caps in [no_subgroups, caps(4), caps(8), caps(32)] {
        for bits in 0..8 {
            for length in [1, 5, 32, 33, 64, 257, 1000, 1024, 4096, 4097] {
                for (shape, axis) in [([3, length], 1), ([length, 300], 0)] {
                    let x = Layout::new(float(bits & 1 != 0), shape);
                    let mut op = Softmax::new(x, axis).scale(0.5);
                    op.log = bits & 2 != 0;
                    if bits & 4 != 0 {
                        op = op.in_place();
                    }
                    for splits in [None, Some(2)] {
                        let tuning = Tuning {
                            splits,
                            ..Tuning::default()
                        };
                        plan(op.clone(), &caps, &tuning, into);
                    }
                }
            }
        }
    }
}

fn merge_ops(into: &mut BTreeSet<Kernel>) {
    for bits in 0..8 {
        let value_dim = if bits & 1 != 0 { 8 } else { 5 };
        let mut op = Merge::new(
            Layout::new(float(bits & 2 != 0), [3, 2, 4, 7, value_dim]),
            Layout::f32([3, 2, 4, 7]),
        );
        if bits & 4 != 0 {
            op = op.with_lse();
        }
        plan(op.clone(), &caps(8), &Tuning::default(), into);
        for gates in [DType::F32, DType::F16] {
            let mut op = op.clone().gates(Layout::new(gates, [3, 2, 4, 7]));
            plan(op.clone(), &caps(8), &Tuning::default(), into);
            (op.lse_parts, op.lse) = (None, None);
            plan(op, &caps(8), &Tuning::default(), into);
        }
    }
}

/// Every statistic, of attention with each of its terms.
fn weights_ops(into: &mut BTreeSet<Kernel>) {
    let mut list = vec![
        Statistic::Entropy,
        Statistic::LargestWeight,
        Statistic::LargestScore,
        Statistic::Mass,
        Statistic::Top { count: 7 },
    ];
    list.extend(
        [Stage::Scaled, Stage::Capped, Stage::Final, Stage::Weights].map(|stage| {
            Statistic::Matrix {
                stage,
                heads: 1..3,
                rows: 0..2,
            }
        }),
    );
    let caps = Caps {
        max_storage_buffers: 16,
        ..caps(8)
    };
    let mods =
        "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
            return score + 1.0;
        }
        fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {
            return q_index != kv_index;
        }
        fn prob_mod(weight: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
            return weight * 0.5;
        }
        fn key_range(batch: u32, head: u32, q_index: u32) -> vec2<u32> {
            return vec2<u32>(0u, q_index + 7u);
        }";
    for statistic in list {
        for half in [false, true] {
            for term in 0..9 {
                let mut op = attention(float(half), 9, 5).with_lse();
                op = match term {
                    1 => op
                        .mask(Layout::new(DType::Bool, [2, 1, 3, 64]))
                        .bias(Layout::new(float(!half), [1, 4, 3, 64])),
                    2 => op
                        .causal(Causal::BottomRight)
                        .kv_len(Layout::new(DType::U32, [2]))
                        .q_len(Layout::new(DType::U32, [2])),
                    3 => op
                        .window(Window {
                            left: Some(4),
                            first: 2,
                            ..Window::default()
                        })
                        .prefix_len(Layout::new(DType::U32, [2])),
                    4 => op.sinks(Layout::f32([4])).softcap(3.0),
                    5 => op.block_mask(BlockMask {
                        bits: Layout::new(DType::U32, [1, 1, 2, 1]),
                        block_q: 2,
                        block_kv: 16,
                    }),
                    6 => op.modified(Mod::new(mods)),
                    7 => op.head_windows(Layout::new(DType::U32, [4, 2])),
                    8 => Attention::new(
                        Layout::new(float(half), [1, 4, 3, 9]),
                        Layout::new(float(half), [1, 2, 64, 9]),
                        Layout::new(float(half), [1, 2, 64, 5]),
                    )
                    .with_lse()
                    .packed(Layout::new(DType::U32, [3]), Layout::new(DType::U32, [3])),
                    _ => op,
                };
                let mut op = Weights::new(op, statistic.clone());
                if half && matches!(statistic, Statistic::Matrix { .. }) {
                    op.out.dtype = DType::F16;
                }
                plan(op, &caps, &Tuning::default(), into);
            }
        }
    }
}

fn rotary_ops(into: &mut BTreeSet<Kernel>) {
    for bits in 0..64 {
        let head_dim = if bits & 1 != 0 { 16 } else { 6 };
        let table = Layout::new(float(bits & 2 != 0), [9, head_dim / 2]);
        let x = Layout::new(float(bits & 4 != 0), [2, 3, 5, head_dim]);
        let mut op = Rotary::new(x, table.clone(), table);
        if bits & 8 != 0 {
            op = op.positions(Layout::new(DType::U32, [2, 5]));
        }
        if bits & 16 != 0 {
            op = op.interleaved();
        }
        if bits & 32 != 0 {
            op = op.in_place();
        }
        plan(op, &caps(8), &Tuning::default(), into);
    }
}

/// Every map, similarity, decay, reach and guard, and attention inside groups, by all pairs.
fn linear_quadratic_ops(into: &mut BTreeSet<Kernel>) {
    let tuning = Tuning {
        schedule: Some(Schedule::Quadratic),
        ..Tuning::default()
    };
    let maps = [
        FeatureMap::Identity,
        FeatureMap::EluPlusOne,
        FeatureMap::Relu,
        FeatureMap::SquaredRelu,
        FeatureMap::Exp { factor: Real(0.5) },
        FeatureMap::Softmax,
        FeatureMap::Sigmoid,
        FeatureMap::Silu,
    ];
    let lens = |len: u64| Layout::new(DType::U32, [len]);
    // Short, and so long that dispatches hand sums on.
    for seq in [5, 40_000] {
        for half in [false, true] {
            let sized = |batch: u64, dim: u64| {
                let layout = |heads, dim| Layout::new(float(half), [batch, heads, seq, dim]);
                LinearAttention::new(layout(4, 8), layout(2, 8), layout(2, dim))
            };
            let op = || sized(2, 40);
            let mut list: Vec<LinearAttention> =
                [1, 32, 33, 100, 256].map(|dim| sized(1, dim)).into();
            list.extend(
                (0..maps.len()).map(|n| op().features(maps[n], maps[(n + 3) % maps.len()])),
            );
            let tokens = |dtype| Decay::Token(Layout::new(dtype, [2, 2, seq]));
            for decay in [
                Decay::Head(Layout::f32([2])),
                tokens(DType::F32),
                tokens(float(half)),
            ] {
                for similarity in [
                    Similarity::Product,
                    Similarity::Taylor,
                    Similarity::Square,
                    Similarity::Cosine { length: 50_000 },
                ] {
                    list.push(op().decay(decay.clone()).similarity(similarity));
                }
            }
            let exp = FeatureMap::Exp { factor: Real(0.5) };
            for reach in [
                Reach::Causal,
                Reach::Before,
                Reach::BeforeBucket { tokens: 7 },
                Reach::All,
            ] {
                for guard in [Guard::Add, Guard::AtLeast, Guard::Keys] {
                    for safe in [false, true] {
                        let eps = Real(0.1);
                        let normaliser = Normaliser { eps, guard, safe };
                        // Queries that lose their largest exponent are the walk's.
                        let map_q = if safe { FeatureMap::Softmax } else { exp };
                        let features = op().features(map_q, exp).normaliser(normaliser);
                        list.push(features.reach(reach).kv_len(lens(2)));
                    }
                }
                list.push(sized(1, 8).reach(reach).packed(lens(9)));
            }
            list.push(op().reach(Reach::Before).bonus(Layout::f32([2, 8])));
            for weights in [
                LocalWeights::Softmax,
                LocalWeights::SquaredRelu,
                LocalWeights::Laplace,
            ] {
                for tokens in [3, 20_000] {
                    let local = Local::new(tokens, weights);
                    let own = |heads| Layout::new(float(half), [2, heads, seq, 12]);
                    let bias = Layout::f32([4, tokens, tokens]).with_strides([0, 0, 1]);
                    list.push(op().local(local.clone()));
                    list.push(op().reach(Reach::All).local(local.clone()).kv_len(lens(2)));
                    list.push(op().local(local.clone().own(own(4), own(2)).bias(bias)));
                    list.push(sized(1, 8).packed(lens(9)).local(local));
                }
            }
            for op in list {
                plan(op, &caps(8), &tuning, into);
            }
        }
    }
}

fn random_features_ops(into: &mut BTreeSet<Kernel>) {
    for bits in 0..4 {
        let x = Layout::new(float(bits & 1 != 0), [2, 3, 9, 16]);
        let y = Layout::new(float(bits & 2 != 0), [2, 3, 9, 40]);
        for op in [
            RandomFeatures::queries,
            RandomFeatures::keys,
            RandomFeatures::relu,
        ] {
            let op = op(x.clone(), Layout::f32([40, 16])).output(y.clone());
            plan(op, &caps(8), &Tuning::default(), into);
        }
    }
}

fn linear_walk_ops(into: &mut BTreeSet<Kernel>) {
    for (bits, tokens) in (0..512u32).flat_map(|bits| [(bits, 40), (bits, 1)]) {
        let set = |bit: u32| bits >> bit & 1 != 0;
        let dtype = float(set(0));
        let (key_dim, value_dim) = if set(1) { (6, 5) } else { (8, 8) };
        let rows = |dim: u64| Layout::new(dtype, [2, 2, tokens, dim]);
        let gates = float(set(0) && set(2));
        let mut op = LinearAttention::new(rows(key_dim), rows(key_dim), rows(value_dim));
        op.decay = match bits % 5 {
            0 => Decay::None,
            1 => Decay::Head(Layout::f32([2])),
            2 => Decay::Token(Layout::new(gates, [2, 2, tokens])),
            3 => Decay::Key(Layout::new(gates, [2, 2, tokens, key_dim])),
            _ => Decay::Value(Layout::new(gates, [2, 2, tokens, value_dim])),
        };
        let read = op.k.clone();
        op.rule = match bits % 7 {
            0 => UpdateRule::Delta {
                beta: None,
                read: Some(read),
            },
            1 => UpdateRule::Delta {
                beta: Some(Layout::new(gates, [2, 2, tokens])),
                read: None,
            },
            2 => UpdateRule::Delta {
                beta: Some(Layout::new(gates, [2, 2, tokens, value_dim])),
                read: None,
            },
            3 => UpdateRule::LowRank {
                read: read.clone(),
                write: read,
            },
            _ => UpdateRule::Linear,
        };
        op.reach = match bits % 11 {
            0 | 1 => Reach::Before,
            2 | 3 => Reach::BeforeBucket { tokens: 8 },
            4 | 5 => Reach::All,
            _ => Reach::Causal,
        };
        op.feature_q = [
            FeatureMap::Identity,
            FeatureMap::Softmax,
            FeatureMap::Exp { factor: Real(0.5) },
            FeatureMap::Sigmoid,
        ][bits as usize % 4];
        op.feature_k = [
            FeatureMap::Silu,
            FeatureMap::Exp { factor: Real(0.5) },
            FeatureMap::Softmax,
            FeatureMap::EluPlusOne,
            FeatureMap::Relu,
            FeatureMap::SquaredRelu,
        ][bits as usize % 6];
        if bits % 13 == 0 {
            op = op.similarity(Similarity::Cosine { length: 64 });
        }
        if set(3) {
            let exp = matches!(op.feature_k, FeatureMap::Exp { .. });
            op = op.normaliser(Normaliser {
                eps: Real(1e-6),
                guard: [Guard::Add, Guard::AtLeast, Guard::Keys][bits as usize % 3],
                safe: exp && set(4),
            });
        }
        if set(4) && op.reach == Reach::Before {
            op.bonus = Some(Layout::f32([2, key_dim]));
        }
        if set(5) {
            op = op.with_final_state();
            if set(6) {
                op.initial_state = op.final_state.clone();
                op.initial_sum = op.final_sum.clone();
                op.in_place = set(7);
            }
        }
        if set(8) {
            op.kv_len = Some(Layout::new(DType::U32, [2]));
        }
        if Op::from(op.clone()).check().is_err() {
            continue;
        }
        let sums = op.rule == UpdateRule::Linear && !op.normaliser.is_some_and(|with| with.safe);
        let whole = Op::from(op.clone());
        let names = || whole.tensors().into_iter().map(|(slot, _)| slot.name());
        let tensors = names().count();
        let states = names()
            .filter(|name| name.ends_with("_state") || name.ends_with("_sum"))
            .count();
        // The buffers of the smallest device, and as many as any of these ops has.
        for (lanes, buffers) in [(4, 8), (8, 8), (8, 16)] {
            let caps = Caps {
                max_storage_buffers: buffers,
                ..caps(lanes)
            };
            for tuning in [
                Tuning::default(),
                Tuning::QUICK_START,
                Tuning {
                    splits: Some(4),
                    ..Tuning::default()
                },
                Tuning {
                    schedule: Some(Schedule::Tile),
                    ..Tuning::default()
                },
            ] {
                let kernels = Outline::new(&whole, &caps, &tuning);
                let reason = match &kernels {
                    Ok(_) => "",
                    Err(Error::Unsupported { reason, .. }) => reason,
                    Err(error) => panic!("{op:?}: {error}"),
                };
                let segments = sums && tuning.splits.is_some() && tokens > 1;
                // Where a kernel cannot bind the states, scratch has them.
                let scratch = usize::from(states > 0 || segments);
                let too_many = tensors - states + scratch > buffers as usize;
                let refused = match op.reach {
                    Reach::BeforeBucket { .. } if !sums => Some("joined as sums"),
                    Reach::Causal | Reach::Before if too_many => Some("storage buffers"),
                    _ => None,
                };
                match refused {
                    Some(words) => assert!(
                        reason.contains(words),
                        "{tensors} tensors, not refused for {words} but `{reason}`: {op:?}"
                    ),
                    None => assert!(kernels.is_ok(), "{tensors} tensors, `{reason}`: {op:?}"),
                }
                into.extend(
                    kernels
                        .iter()
                        .flat_map(|outline| &outline.steps)
                        .map(|step| step.kernel),
                );
            }
        }
    }
    let packed = |reach| {
        let rows = Layout::f32([1, 2, 40, 8]);
        LinearAttention::new(rows.clone(), rows.clone(), rows)
            .reach(reach)
            .packed(Layout::new(DType::U32, [4]))
            .with_final_state()
    };
    for reach in [Reach::Causal, Reach::All] {
        plan(packed(reach), &caps(8), &Tuning::default(), into);
    }
}

fn short_conv_ops(into: &mut BTreeSet<Kernel>) {
    let caps = caps(8);
    let mut with = |op: ShortConv| plan(op, &caps, &Tuning::default(), into);
    for bits in 0..64u32 {
        let set = |bit: u32| bits >> bit & 1 != 0;
        // Channels side by side, tokens, and neither by fours.
        let (channels, seq) = [(8, 40), (6, 40), (6, 37)][bits as usize % 3];
        let x = Layout::new(float(set(0)), [1, channels, seq]);
        let x = if channels == 8 {
            Layout::new(x.dtype, [1, seq, channels]).transposed(1, 2)
        } else {
            x
        };
        for taps in [1, 2 + u64::from(bits) % 7, 4, 9, 12] {
            for heads in [channels, 1 + u64::from(set(0) != set(4))] {
                let row = Layout::new(float(set(1)), [heads, taps]);
                let mut op = ShortConv::new(x.clone(), row);
                if set(2) {
                    op.weight = Layout::new(op.weight.dtype, [1, seq, heads, taps]);
                }
                if set(3) {
                    op = op.softmax();
                    op.renormalise = set(2) && set(4);
                }
                if set(4) {
                    let bias = Layout::new(op.weight.dtype, [channels]);
                    op = op.bias(bias).silu();
                }
                if set(5) {
                    op = op.packed(Layout::new(DType::U32, [4]));
                }
                with(op.clone());
                if taps == 1 {
                    continue;
                }
                with(op.clone().padding_left(taps / 2));
                with(op.clone().carried_state());
                let op = op.with_final_state();
                with(op.clone());
                let initial = op.final_state.clone().expect("set");
                with(op.clone().initial_state(initial));
                // Short enough for one invocation to have all of it.
                if !set(2) {
                    let mut short = op;
                    short.x = Layout::new(short.x.dtype, [1, channels, 1]);
                    short.y = short.x.clone();
                    with(short.carried_state());
                }
            }
        }
    }
}

/// Every rule and where its scores come from, with states, gates and what else it may have, whole and in segments.
fn scan_ops(into: &mut BTreeSet<Kernel>) {
    let caps = Caps {
        max_storage_buffers: 12,
        ..caps(8)
    };
    for bits in 0..64 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let dtype = float(has(0));
        let channels = if has(1) { 8 } else { 5 };
        let packed = has(2);
        let batch = if packed { 1 } else { 2 };
        let x = Layout::new(dtype, [batch, 3, 70, channels]);
        let per_head = Layout::new(dtype, [batch, 3, 70]);
        let query = Scores::Query {
            q: Layout::new(dtype, [3, channels]),
            k: x.clone(),
            scale: None,
        };
        let g = Layout::new(float(has(0) && has(3)), x.shape.clone());
        let mut log_sum_exp = Scan::log_sum_exp(x.clone());
        if has(3) {
            log_sum_exp = log_sum_exp.with_weights();
        }
        if let ScanRule::LogSumExp { log_decay, .. } = &mut log_sum_exp.rule
            && has(4)
        {
            *log_decay = Some(Layout::f32(x.shape.clone()));
        }
        let mut list = vec![
            Scan::sum(x.clone()),
            Scan::decayed_sum(x.clone(), g),
            log_sum_exp,
        ];
        for scores in [Scores::Channel(x.clone()), Scores::Head(per_head), query] {
            for denominator in [Denominator::Prefix, Denominator::Step, Denominator::All] {
                let mut op = Scan::softmax(scores.clone(), x.clone()).denominator(denominator);
                if has(3) && denominator != Denominator::All {
                    op = op.with_states();
                }
                list.push(op);
            }
        }
        for mut op in list {
            if has(4) && !matches!(op.rule, ScanRule::LogSumExp { .. }) {
                op = op.gate(x.clone());
            }
            if packed {
                op = op.packed(Layout::new(DType::U32, [4]));
            }
            let state = Layout::f32(op.state_shape());
            op = match (has(4), has(5)) {
                (false, false) => op,
                (true, false) => op.carried(Some(state.clone()), Some(state)),
                (false, true) => op.carried_in_place(state),
                (true, true) => op.carried(None, Some(state)).without_output(),
            };
            if op.o.is_none() {
                op.gate = None;
            }
            for splits in [1, 3] {
                let tuning = Tuning {
                    splits: Some(splits),
                    ..Tuning::default()
                };
                plan(op.clone(), &caps, &tuning, into);
            }
        }
    }
}

/// Holographic reduced representations of every size of a row, flow attention both ways, and all kinds of bias of the
/// attention-free transformer, whole and split.
fn form_ops(into: &mut BTreeSet<Kernel>) {
    for half in [false, true] {
        for dim in [1, 3, 16, 40, 64, 100, 130, 256] {
            let x = Layout::new(float(half), [2, 3, 9, dim]);
            let op = HrrAttention::new(x.clone(), x.clone(), x.clone());
            let masked = op.clone().mask(Layout::new(DType::Bool, [2, 9]));
            let flow = FlowAttention::new(x.clone(), x.clone(), x);
            plan(op, &caps(8), &Tuning::default(), into);
            plan(masked, &caps(8), &Tuning::default(), into);
            plan(flow.clone(), &caps(8), &Tuning::default(), into);
            plan(flow.causal(), &caps(8), &Tuning::default(), into);
        }
        for bits in 0..32 {
            let x = Layout::new(float(half), [2, 3, 19, 5]);
            let bias = |shape: [u64; 2]| Layout::new(float(half && bits & 1 != 0), shape);
            let bias = if bits & 2 != 0 {
                PositionBias::Factors {
                    rows: bias([19, 2]),
                    columns: bias([19, 2]),
                }
            } else {
                PositionBias::Matrix(bias([19, 19]))
            };
            let mut op = AftFull::new(x.clone(), x.clone(), x, bias);
            op.causal = bits & 4 != 0;
            if bits & 8 != 0 {
                op.term = BiasTerm::Multiply;
            }
            let tuning = Tuning {
                splits: Some(if bits & 16 != 0 { 2 } else { 1 }),
                ..Tuning::default()
            };
            plan(op, &caps(8), &tuning, into);
        }
    }
}

fn top_k_ops(into: &mut BTreeSet<Kernel>) {
    for lanes in [8, 32] {
        for (length, k) in [
            (5, 1),
            (60, 8),
            (500, 100),
            (5000, 300),
            (8000, 4096),
            (90_000, 64),
        ] {
            for bits in 0..64 {
                let x = Layout::new(float(bits & 1 != 0), [2, 3, length + (bits >> 5)]);
                let mut op = TopK::new(x, k);
                op.sorted = bits & 2 != 0;
                op.skip_hidden = bits & 4 != 0;
                if bits & 8 != 0 {
                    op.values = None;
                } else if bits & 16 != 0 {
                    op.indices = None;
                }
                if bits & 16 != 0 {
                    op.row_len = Some(Layout::new(DType::U32, [2, 3]));
                }
                plan(op, &caps(lanes), &Tuning::default(), into);
            }
        }
    }
    for lanes in [8, 32] {
        for bits in 0..32 {
            let mut op = TopP::new(Layout::new(float(bits & 1 != 0), [2, 3, 100]), 0.5, 40);
            op.sorted = bits & 2 != 0;
            if bits & 4 != 0 {
                op.mass = RouteMass::Given;
            }
            if bits & 8 != 0 {
                op.counts = None;
            }
            op.row_len = (bits & 16 != 0).then(|| Layout::new(DType::U32, [2, 3]));
            plan(op, &caps(lanes), &Tuning::default(), into);
        }
    }
    // Groups of groups.
    let little = Caps {
        loop_budget: 1500,
        ..caps(8)
    };
    let op = TopK::new(Layout::f32([1, 1 << 20]), 2);
    plan(op, &little, &Tuning::default(), into);
    // Rows in scratch with values of f16, for selections that are parts of other ops.
    for sorted in [false, true] {
        for indices in [top_k::To::Nowhere, top_k::To::Indices] {
            let variant = top_k_rows::Variant {
                workgroup: 64,
                room: 8,
                rows: top_k::From::Numbers,
                lens: false,
                skip: sorted,
                values: true,
                indices,
                sorted,
                vec4: false,
                out4: sorted,
                f16: true,
            };
            into.insert(variant.into());
        }
    }
}

/// Rows by an index, sorts with digits of all sizes, means of rows put back, clusters, and lists of kept keys.
fn index_ops(into: &mut BTreeSet<Kernel>) {
    let open = Tuning::default();
    let numbers = |shape: &[u64]| Layout::new(DType::U32, shape.to_vec());
    for dtype in [DType::F32, DType::F16, DType::U32] {
        for dim in [5, 6, 8] {
            let x = Layout::new(dtype, [2, 3, 9, dim]);
            plan(Gather::new(x, numbers(&[2, 3, 7])), &caps(8), &open, into);
        }
    }
    for lanes in [8, 32] {
        for buckets in [1, 2, 7, 12, 30, 60, 100, 200, 1000, 2000, 20_000, 70_000] {
            let sort = Sort::new(numbers(&[2, 3, 100]), buckets);
            plan(sort.clone(), &caps(lanes), &open, into);
            plan(sort.with_inverse().with_starts(), &caps(lanes), &open, into);
            for (half, dim) in [(false, 5), (false, 8), (true, 5), (true, 8)] {
                let x = Layout::new(float(half), [2, 3, 4, 9, dim]);
                let mean = ScatterMean::new(x, numbers(&[2, 3, 4, 9]), buckets);
                plan(mean, &caps(lanes), &open, into);
                let x = Layout::new(float(half), [2, 3, 40, dim]);
                let update = ClusterUpdate::new(x, Layout::f32([3, buckets, dim]), 0.9);
                plan(update.clone(), &caps(lanes), &open, into);
                plan(update.with_assigned(), &caps(lanes), &open, into);
            }
        }
    }
    for half in [false, true] {
        let list = [numbers(&[2, 3, 70]), Layout::f32([2, 3, 70])];
        let weight = Layout::new(float(half), [2, 6, 70]);
        let [index, scores] = list;
        let op = Evict::new(index, scores, weight);
        for op in [op.clone(), op.in_place()] {
            plan(op.clone(), &caps(8), &open, into);
            plan(op.with_places(), &caps(8), &open, into);
        }
    }
    let lists = [numbers(&[2, 3, 70]), numbers(&[2, 3, 9])];
    let [columns, diagonals] = lists;
    let op = VerticalSlash::new(columns, diagonals, [64, 16], [1000, 40_000]);
    for op in [op.clone(), op.clone().or(), op.or_by_head()] {
        plan(op, &caps(8), &open, into);
    }
    let op = Divergence::new(Layout::f32([2, 3, 70]), Layout::f32([2, 3, 70]), 0.1);
    plan(op.clone(), &caps(8), &open, into);
    plan(op.with_distance(), &caps(8), &open, into);
    for bits in 0..16 {
        let mut op = if bits & 1 != 0 {
            let x = Layout::new(float(bits & 2 != 0), [2, 3, 9]);
            Scatter::new(x, numbers(&[2, 3, 9]), 70)
        } else {
            let y = Layout::new(float(bits & 2 != 0), [2, 3, 70]);
            Scatter::ones(numbers(&[2, 3, 9]), 70).output(y)
        };
        if bits & 4 != 0 {
            op = op.gate(Layout::f32([2, 3]));
        }
        if bits & 8 != 0 {
            op = op.factor(2.0);
        }
        plan(op, &caps(8), &open, into);
    }
}

/// Pooling, scores and choices, with every flag that their kernels have.
fn route_ops(into: &mut BTreeSet<Kernel>) {
    let numbers = |shape: &[u64]| Layout::new(DType::U32, shape.to_vec());
    let rules = [PoolRule::Mean(Divisor::Len), PoolRule::Max, PoolRule::Min];
    for bits in 0..64u32 {
        let has = |bit: u32| bits >> bit & 1 != 0;
        for (number, rule) in rules.into_iter().enumerate() {
            let channels = [1, 12, 64, 300][(bits as usize / 4 + number) % 4];
            let x = Layout::new(float(has(0)), [2, 2, 33, channels]);
            let mut op = if has(1) {
                Pool::by_starts(x, numbers(&[5]))
            } else {
                Pool::new(x, 8)
            };
            op = op.rule(rule);
            op.normalise = has(2);
            if has(3) {
                op = op.kv_len(numbers(&[2]));
            }
            if has(4) {
                op.x = op.x.at(1);
            }
            op.y.dtype = float(has(5));
            plan(op, &caps(8), &Tuning::default(), into);
        }
        for schedule in [Schedule::Subgroup, Schedule::Tile] {
            let channels = [5, 12, 64][bits as usize / 2 % 3];
            let x = |heads, rows| Layout::new(float(has(0)), [1, heads, rows, channels]);
            let mut op = RouteScores::new(x(4, 9), x(2, if has(5) { 8 } else { 7 }));
            if has(1) {
                op = op.clone().bounds(op.k);
            }
            op.relu = has(2);
            if has(3) {
                op = op.head_weights(Layout::f32([1, 4, 9]));
            }
            if has(4) {
                op = op.sum_heads();
            }
            let tuning = Tuning {
                schedule: Some(schedule),
                ..Tuning::default()
            };
            plan(op, &caps(8), &tuning, into);
        }
        for k in [1, 3, 64, 100] {
            let scores = Layout::new(float(has(0)), [2, 4, 9, if has(1) { 40 } else { 33 }]);
            let mut op = Route::new(scores, k).visible(Visible::Causal).own();
            if k > 1 && has(2) {
                op = op.keep(Keep::TopP {
                    p: Real(0.9),
                    mass: if has(4) {
                        RouteMass::Given
                    } else {
                        RouteMass::Softmax
                    },
                    min: 1,
                    max: k,
                });
            }
            if has(3) {
                op = op.with_counts().with_bits();
            }
            if has(4) {
                op.rows = Blocks::Starts(numbers(&[10]));
                op.blocks = Blocks::Starts(numbers(&[2, 1, op.scores.shape[3] + 1]));
            }
            if has(5) {
                op = op.kv_len(numbers(&[2])).packed(numbers(&[3]));
            }
            let caps = Caps {
                max_storage_buffers: 8,
                ..caps(8)
            };
            plan(op, &caps, &Tuning::default(), into);
        }
    }
}

/// Every variant, made once for all tests.
fn kernels() -> &'static [Kernel] {
    static KERNELS: OnceLock<Vec<Kernel>> = OnceLock::new();
    KERNELS.get_or_init(all_kernels)
}

fn all_kernels() -> Vec<Kernel> {
    let mut set = BTreeSet::new();
    top_k_ops(&mut set);
    route_ops(&mut set);
    random_features_ops(&mut set);
    linear_quadratic_ops(&mut set);
    weights_ops(&mut set);

    attention_terms(&mut set);
    attention_inputs(&mut set);
    attention_sizes(&mut set);
    attention_matrices(&mut set);
    softmax_ops(&mut set);
    merge_ops(&mut set);
    rotary_ops(&mut set);
    linear_walk_ops(&mut set);
    short_conv_ops(&mut set);
    scan_ops(&mut set);
    form_ops(&mut set);
    index_ops(&mut set);
    set.extend([
        ceiling_fma::Variant {
            f16: false,
            workgroup: 64,
        }
        .into(),
        ceiling_fma::Variant {
            f16: true,
            workgroup: 256,
        }
        .into(),
        ceiling_workgroup::Variant { workgroup: 64 }.into(),
        ceiling_matrix::Variant {
            side: 16,
            f16: true,
            lanes: 32,
        }
        .into(),
        ceiling_matrix::Variant {
            side: 8,
            f16: true,
            lanes: 64,
        }
        .into(),
        ceiling_matrix::Variant {
            side: 8,
            f16: false,
            lanes: 64,
        }
        .into(),
        ceiling_stream::Variant {
            copy: false,
            stretch: true,
            workgroup: 256,
        }
        .into(),
        ceiling_stream::Variant {
            copy: true,
            stretch: false,
            workgroup: 64,
        }
        .into(),
        Kernel::from(loop_count::Variant {}),
    ]);
    set.into_iter().collect()
}

/// A module with what the tests ask of it.
struct Reflected {
    module: naga::Module,
    info: naga::valid::ModuleInfo,
}

impl Reflected {
    fn new(wgsl: &str) -> Result<Self, String> {
        let module =
            naga::front::wgsl::parse_str(wgsl).map_err(|error| error.emit_to_string(wgsl))?;
        let allowed = Capabilities::SHADER_FLOAT16
            | Capabilities::SUBGROUP
            | Capabilities::COOPERATIVE_MATRIX;
        let info = Validator::new(ValidationFlags::all(), allowed)
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all())
            .validate(&module)
            .map_err(|error| error.emit_to_string(wgsl))?;
        Ok(Self { module, info })
    }

    /// A u32 constant of the module.
    fn constant(&self, name: &str) -> u32 {
        let (_, constant) = self
            .module
            .constants
            .iter()
            .find(|(_, constant)| constant.name.as_deref() == Some(name))
            .unwrap_or_else(|| panic!("no constant {name}"));
        match self.module.global_expressions[constant.init] {
            naga::Expression::Literal(naga::Literal::U32(value)) => value,
            ref other => panic!("{name} is {other:?}"),
        }
    }

    /// Name, type and offset of the fields of `struct Params`.
    fn params(&self) -> Vec<(String, &'static str, u32)> {
        let (_, ty) = self
            .module
            .types
            .iter()
            .find(|(_, ty)| ty.name.as_deref() == Some("Params"))
            .expect("every kernel has a struct Params");
        let naga::TypeInner::Struct { members, .. } = &ty.inner else {
            panic!("Params is no struct");
        };
        members
            .iter()
            .map(|member| {
                let kind = match self.module.types[member.ty].inner {
                    naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
                    naga::TypeInner::Scalar(naga::Scalar::I32) => "i32",
                    naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
                    _ => "something else",
                };
                let name = member.name.clone().expect("members have names");
                (name, kind, member.offset)
            })
            .collect()
    }

    /// Bindings as naga sees them: number, name, whether uniform, whether writable.
    fn bindings(&self) -> Vec<(u32, String, bool, bool)> {
        let mut list: Vec<_> = self
            .module
            .global_variables
            .iter()
            .filter_map(|(_, global)| {
                let binding = global.binding?;
                assert_eq!(binding.group, 0);
                let writable = match global.space {
                    AddressSpace::Storage { access } => access.contains(StorageAccess::STORE),
                    _ => false,
                };
                let uniform = global.space == AddressSpace::Uniform;
                let name = global.name.clone().expect("bindings have names");
                Some((binding.binding, name, uniform, writable))
            })
            .collect();
        list.sort();
        list
    }

    fn workgroup_bytes(&self) -> u32 {
        let types = &self.module.types;
        self.module
            .global_variables
            .iter()
            .filter(|(_, global)| global.space == AddressSpace::WorkGroup)
            .map(|(_, global)| types[global.ty].inner.size(self.module.to_ctx()))
            .sum()
    }
}

fn eq<T: PartialEq + std::fmt::Debug>(what: &str, wgsl: T, rust: T) -> Result<(), String> {
    if wgsl == rust {
        Ok(())
    } else {
        Err(format!("{what}: {wgsl:?} in WGSL, {rust:?} in Rust"))
    }
}

/// Holds what Rust says of a kernel against the module.
fn agrees(kernel: Kernel, module: &Reflected) -> Result<(), String> {
    let shader = kernel.shader()?;
    let rust: Vec<_> = kernel
        .param_fields()
        .iter()
        .enumerate()
        .map(|(place, &(name, kind))| (name.to_owned(), kind, place as u32 * 4))
        .collect();
    eq("Params", module.params(), rust)?;

    let rust: Vec<_> = shader
        .bindings
        .iter()
        .map(|b| (b.index, b.name.clone(), b.uniform, b.writable))
        .collect();
    let storage = rust.iter().filter(|binding| !binding.2).count();
    eq("bindings", module.bindings(), rust)?;
    // WebGPU promises 8; a variant with more must say so, and how many.
    let with = |max_storage_buffers| {
        let caps = Caps {
            max_storage_buffers,
            ..terms_caps()
        };
        let refusal = kernel.supports(&caps).err().unwrap_or_default();
        refusal.contains("storage buffers")
    };
    let storage = storage as u32;
    if storage > 8 && (with(storage) || !with(storage - 1)) {
        return Err(format!(
            "{storage} storage buffers, and supports() says otherwise"
        ));
    }
    // A binding that no statement uses is missing from a pipeline's own layout.
    let used = module.info.get_entry_point(0);
    for (handle, global) in module.module.global_variables.iter() {
        if used[handle].is_empty() {
            return Err(format!("{:?} is declared and never used", global.name));
        }
    }

    let entry = match module.module.entry_points.as_slice() {
        [entry] => entry,
        other => return Err(format!("{} entry points", other.len())),
    };
    eq("entry point", entry.name.as_str(), "main")?;
    let (workgroup, memory) = match kernel {
        Kernel::AttentionSubgroup(variant) => {
            for (name, rust) in [
                ("SUBGROUP", variant.subgroup),
                ("ROWS", variant.rows),
                ("KEYS", variant.keys),
                ("D4", variant.d4),
                ("V4", variant.v4),
            ] {
                eq(name, module.constant(name), rust)?;
            }
            (variant.subgroup, 0)
        }
        Kernel::AttentionDecode(variant) => {
            for (name, rust) in [
                ("SUBGROUP", variant.subgroup),
                ("ROWS", variant.rows),
                ("STRETCH", variant.stretch),
                ("D4", variant.d4),
                ("V4", variant.v4),
            ] {
                eq(name, module.constant(name), rust)?;
            }
            (variant.subgroup, 0)
        }
        Kernel::AttentionTile(variant) => {
            for name in ["ROWS", "KEYS", "CHUNK"] {
                eq(name, module.constant(name), attention_tile::TILE)?;
            }
            eq("V_CHUNKS", module.constant("V_CHUNKS"), variant.v_chunks)?;
            (attention_tile::THREADS, attention_tile::WORKGROUP_BYTES)
        }
        Kernel::LinearAttentionQuadratic(variant) => {
            for name in ["ROWS", "KEYS", "CHUNK"] {
                eq(
                    name,
                    module.constant(name),
                    linear_attention_quadratic::TILE,
                )?;
            }
            eq("V_CHUNKS", module.constant("V_CHUNKS"), variant.v_chunks)?;
            (
                linear_attention_quadratic::THREADS,
                variant.workgroup_bytes(),
            )
        }
        Kernel::RandomFeatures(variant) => {
            for (name, rust) in [
                ("WORKGROUP", random_features::WORKGROUP),
                ("ROWS", random_features::ROWS),
                ("MAX_DIM", random_features::MAX_DIM),
            ] {
                eq(name, module.constant(name), rust)?;
            }
            (random_features::WORKGROUP, variant.workgroup_bytes())
        }
        Kernel::AttentionMerge(variant) => {
            eq("WIDTH", module.constant("WIDTH"), variant.width())?;
            (attention_merge::WORKGROUP, 0)
        }
        Kernel::AttentionWeights(variant) => {
            let size = attention_weights::WORKGROUP;
            eq("WORKGROUP", module.constant("WORKGROUP"), size)?;
            eq("MOST", module.constant("MOST"), attention_weights::MOST)?;
            (size, variant.workgroup_bytes())
        }
        Kernel::AttentionMass(_) => {
            eq("KEYS", module.constant("KEYS"), attention_mass::KEYS)?;
            eq("ROWS", module.constant("ROWS"), attention_mass::ROWS)?;
            (
                attention_mass::KEYS * attention_mass::ROWS,
                attention_mass::WORKGROUP_BYTES,
            )
        }
        Kernel::AttentionMatrix(variant) => {
            for (name, rust) in [
                ("SIDE", variant.side),
                ("LANES", variant.lanes),
                ("KEYS", variant.keys),
                ("GROUPS", attention_matrix::GROUPS),
                ("ROWS", variant.tile_rows()),
            ] {
                eq(name, module.constant(name), rust)?;
            }
            (variant.threads(), variant.workgroup_bytes())
        }
        Kernel::Softmax(variant) => {
            eq("LANES", module.constant("LANES"), variant.lanes)?;
            eq("HELD", module.constant("HELD"), variant.held)?;
            (variant.workgroup, variant.workgroup_bytes())
        }
        Kernel::Rotary(variant) => {
            eq("WIDTH", module.constant("WIDTH"), variant.width())?;
            (rotary::WORKGROUP, 0)
        }
        Kernel::LinearAttention(variant) => {
            let width = variant.width() / (variant.lanes * variant.columns);
            eq("WIDTH", module.constant("WIDTH"), width)?;
            eq("ROWS4", module.constant("ROWS4"), variant.rows4())?;
            (variant.lanes, variant.workgroup_bytes())
        }
        Kernel::LinearAttentionJoin(_) => (linear_attention_join::WORKGROUP, 0),
        Kernel::LinearAttentionStep(variant) => {
            eq("ROWS4", module.constant("ROWS4"), variant.0.rows4())?;
            (linear_attention_step::WORKGROUP, 0)
        }
        Kernel::ShortConv(variant) => {
            eq("WIDTH", module.constant("WIDTH"), variant.width())?;
            (variant.workgroup, 0)
        }
        Kernel::ShortConvState(_) => (short_conv_state::WORKGROUP, 0),
        Kernel::Scan(variant) => {
            eq("WIDTH", module.constant("WIDTH"), variant.width())?;
            eq("PARTS", module.constant("PARTS"), variant.carried.parts())?;
            (scan::WORKGROUP, 0)
        }
        Kernel::ScanJoin(variant) => {
            eq("PARTS", module.constant("PARTS"), variant.carried.parts())?;
            (scan::WORKGROUP, 0)
        }
        Kernel::ScanScores(_) => (scan::WORKGROUP, 0),
        Kernel::RangeSums(_) => (range_sums::WORKGROUP, 0),
        Kernel::Gather(_) => (gather::WORKGROUP, 0),
        Kernel::OrderCount(order_count::Variant { bits, .. })
        | Kernel::OrderScatter(order_scatter::Variant { bits, .. }) => {
            eq("DIGITS", module.constant("DIGITS"), 1 << bits)?;
            (order_count::WORKGROUP, (4 << bits) * order_count::WORKGROUP)
        }
        Kernel::OrderScan(variant) => (variant.workgroup, 4 * variant.workgroup),
        Kernel::OrderStarts(_) => (order_starts::WORKGROUP, 0),
        Kernel::ListSums(_) => (list_sums::WORKGROUP, 0),
        Kernel::ClusterAssign(_) => (cluster_assign::WORKGROUP, 0),
        Kernel::ClusterJoin(_) => (cluster_join::WORKGROUP, 4 * cluster_join::WORKGROUP),
        Kernel::Evict(_) => (evict::WORKGROUP, 12 * evict::WORKGROUP),
        Kernel::VerticalSlash(_) => (vertical_slash::WORKGROUP, 4 * vertical_slash::WORDS),
        Kernel::Scatter(_) => {
            eq("SLOTS", module.constant("SLOTS"), scatter::SLOTS)?;
            (scatter::WORKGROUP, 4 * scatter::SLOTS)
        }
        Kernel::Divergence(_) => (divergence::WORKGROUP, 8 * divergence::WORKGROUP),
        Kernel::RangeJoin(_) => (range_join::WORKGROUP, 0),
        Kernel::FlowRead(variant) => {
            eq("UNITS", module.constant("UNITS"), variant.units)?;
            (flow_read::WORKGROUP, 0)
        }
        Kernel::HrrAttention(variant) => {
            if let hrr_attention::Role::Score { lanes, .. } = variant.role {
                eq("LANES", module.constant("LANES"), lanes)?;
            }
            (hrr_attention::WORKGROUP, variant.workgroup_bytes())
        }
        Kernel::Pool(variant) => {
            eq("LANES", module.constant("LANES"), variant.lanes)?;
            let memory = if variant.normalise {
                4 * pool::WORKGROUP
            } else {
                0
            };
            (pool::WORKGROUP, memory)
        }
        Kernel::RouteScoresSubgroup(variant) => {
            for (name, rust) in [
                ("SUBGROUP", variant.subgroup),
                ("ROWS", variant.rows),
                ("D4", variant.d4),
                ("COLUMNS", route_scores_subgroup::COLUMNS),
            ] {
                eq(name, module.constant(name), rust)?;
            }
            (variant.subgroup, 0)
        }
        Kernel::RouteScoresTile(variant) => {
            eq("TILE", module.constant("TILE"), route_scores_tile::TILE)?;
            (route_scores_tile::THREADS, variant.workgroup_bytes())
        }
        Kernel::RouteRanks(_) => (ROUTE_WORKGROUP, 0),
        Kernel::RouteLists(_) => {
            eq("WORDS", module.constant("WORDS"), route_lists::WORDS)?;
            (ROUTE_WORKGROUP, route_lists::WORKGROUP_BYTES)
        }
        Kernel::RouteRows(variant) => {
            eq("K", module.constant("K"), variant.places)?;
            (ROUTE_WORKGROUP, 0)
        }
        Kernel::AftFull(_) => {
            eq("ROWS", module.constant("ROWS"), aft_full::ROWS)?;
            (aft_full::WORKGROUP, aft_full::WORKGROUP_BYTES)
        }
        Kernel::TopK(variant) => {
            for (name, rust) in [("BINS", top_k::BINS), ("COARSE", top_k::COARSE)] {
                eq(name, module.constant(name), rust)?;
            }
            (variant.workgroup, variant.workgroup_bytes())
        }
        Kernel::TopKGroups(variant) => {
            eq("LANES", module.constant("LANES"), variant.lanes)?;
            (variant.workgroup, variant.workgroup_bytes())
        }
        Kernel::TopKRows(variant) => {
            eq("ROOM", module.constant("ROOM"), variant.room)?;
            (variant.workgroup, 0)
        }
        Kernel::TopP(variant) => (variant.workgroup, variant.workgroup_bytes()),
        Kernel::TopKGather(_) => (top_k_gather::WORKGROUP, 0),
        Kernel::CeilingFma(variant) => {
            let per_iteration = module.constant("CHAINS") * module.constant("STEPS");
            eq(
                "multiply-adds",
                per_iteration.into(),
                ceiling_fma::MULTIPLY_ADDS,
            )?;
            (variant.workgroup, 0)
        }
        Kernel::CeilingMatrix(variant) => {
            let products = module.constant("CHAINS") * module.constant("STEPS");
            let each = 2 * variant.side.pow(3);
            let groups = module.constant("GROUPS");
            let per_iteration = u64::from(products * each * groups);
            eq("operations", per_iteration, variant.operations())?;
            let bytes = if variant.f16 { 2 } else { 4 };
            (
                groups * variant.lanes,
                2 * bytes * variant.side.pow(2) + 4 * module.constant("ROOM") * groups,
            )
        }
        Kernel::CeilingStream(variant) => {
            eq("LOADS", module.constant("LOADS"), variant.loads())?;
            (variant.workgroup, 0)
        }
        Kernel::CeilingWorkgroup(variant) => {
            let reads = module.constant("READS").into();
            eq("READS", reads, ceiling_workgroup::READS)?;
            (variant.workgroup, ceiling_workgroup::WORKGROUP_BYTES)
        }
        Kernel::LoopCount(_) => (1, 0),
    };
    eq("workgroup", entry.workgroup_size, [workgroup, 1, 1])?;
    eq("workgroup memory", module.workgroup_bytes(), memory)
}

fn write_spirv(module: &Reflected) -> Result<Vec<u8>, String> {
    let options = spv::Options {
        lang_version: (1, 3),
        ..Default::default()
    };
    let words = spv::write_vec(&module.module, &module.info, &options, None)
        .map_err(|error| format!("SPIR-V: {error}"))?;
    Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn write_msl(module: &Reflected) -> Result<(), String> {
    let options = msl::Options {
        lang_version: (2, 4),
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions::default();
    msl::write_string(&module.module, &module.info, &options, &pipeline)
        .map(|_| ())
        .map_err(|error| format!("MSL: {error}"))
}

fn write_hlsl(module: &Reflected) -> Result<(), String> {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        ..Default::default()
    };
    let pipeline = hlsl::PipelineOptions::default();
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module.module, &module.info, None)
        .map(|_| ())
        .map_err(|error| format!("HLSL: {error}"))
}

fn spirv_val_is_there() -> bool {
    Command::new("spirv-val")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What spirv-val says of a module.
enum Verdict {
    Valid,
    /// It is older than the cooperative matrices (SPIRV-Tools before 2023.4) that the module uses.
    Unknown,
}

fn spirv_val(bytes: &[u8]) -> Result<Verdict, String> {
    let fail = |error: std::io::Error| format!("spirv-val: {error}");
    let mut child = Command::new("spirv-val")
        .args(["--target-env", "vulkan1.1", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    // The pipe is dropped here, which ends the program's input.
    let written = child.stdin.take().map(|mut pipe| pipe.write_all(bytes));
    let output = child.wait_with_output().map_err(fail)?;
    if !output.status.success() {
        // CooperativeMatrixKHR.
        if String::from_utf8_lossy(&output.stderr).contains("Invalid capability operand: 6022") {
            return Ok(Verdict::Unknown);
        }
        return Err(format!(
            "spirv-val: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    written.unwrap_or(Ok(())).map_err(fail)?;
    Ok(Verdict::Valid)
}

/// Whether a kernel uses the device's own matrices.
fn has_matrices(kernel: Kernel) -> bool {
    match kernel {
        Kernel::AttentionMatrix(variant) => !variant.emulated,
        Kernel::CeilingMatrix(_) => true,
        _ => false,
    }
}

/// Checks a kernel; says whether spirv-val took part.
fn check(kernel: Kernel, with_spirv_val: bool) -> Result<bool, String> {
    let module = Reflected::new(&kernel.shader()?.wgsl)?;
    agrees(kernel, &module)?;
    write_msl(&module)?;
    if has_matrices(kernel) {
        // HLSL has none; nor does an adapter of DirectX list any, so that no plan comes to this.
        let hlsl = Validator::new(ValidationFlags::all(), hlsl::supported_capabilities())
            .validate(&module.module);
        if hlsl.is_ok() {
            return Err("HLSL now has matrices: write it, as for the other kernels".into());
        }
    } else {
        write_hlsl(&module)?;
    }
    let spirv = write_spirv(&module)?;
    if !with_spirv_val {
        return Ok(false);
    }
    match spirv_val(&spirv)? {
        Verdict::Valid => Ok(true),
        Verdict::Unknown if has_matrices(kernel) => Ok(false),
        Verdict::Unknown => Err("spirv-val sees matrices where there are none".into()),
    }
}

#[test]
fn every_variant_is_valid_on_every_backend_and_agrees_with_rust() {
    let kernels = kernels();
    let with_spirv_val = spirv_val_is_there();
    let next = AtomicUsize::new(0);
    let validated = AtomicUsize::new(0);
    let work = || {
        let mut failures = Vec::new();
        while let Some(&kernel) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            match check(kernel, with_spirv_val) {
                Ok(true) => {
                    validated.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => {}
                Err(message) => failures.push(format!("{kernel:?}\n{message}")),
            }
        }
        failures
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("a worker panicked"))
            .collect()
    });
    assert!(
        failures.is_empty(),
        "{} of {} kernels fail; the first:\n{}",
        failures.len(),
        kernels.len(),
        failures[0]
    );
    let validated = validated.into_inner();
    let skipped = kernels.len() - validated;
    let why = if with_spirv_val {
        "is too old for cooperative matrices"
    } else {
        "is not installed"
    };
    println!(
        "{} kernels checked; spirv-val: {validated} checked, {skipped} skipped because it {why}",
        kernels.len(),
    );
    let matrices = kernels.iter().filter(|&&k| has_matrices(k)).count();
    assert!(
        !with_spirv_val || skipped == 0 || skipped == matrices,
        "spirv-val left out {skipped}, and {matrices} kernels have matrices"
    );
    for stem in STEMS {
        let count = kernels.iter().filter(|k| k.stem() == *stem).count();
        println!("  {stem}: {count}");
        assert!(count > 0, "no variant of {stem} was checked");
    }
    assert!(kernels.len() >= 300, "only {} kernels", kernels.len());
}

/// What a kernel needs of a device: matrices, subgroups, f16.
fn needs(kernel: Kernel) -> [bool; 3] {
    let wgsl = kernel.shader().expect("builds").wgsl;
    let without_subgroups = || {
        let module = naga::front::wgsl::parse_str(&wgsl).expect("parses");
        let others = Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
        Validator::new(ValidationFlags::all(), others)
            .validate(&module)
            .is_ok()
    };
    let subgroups = wgsl.contains("subgroup") && !without_subgroups();
    [
        has_matrices(kernel),
        subgroups,
        wgsl.contains("enable f16;"),
    ]
}

/// docs/backends.md ends with a table of the variants: this is what it should be.
fn table_of_variants() -> String {
    let mut lines = vec![
        "| kernel | variants | need nothing | f16 | subgroups | matrices |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    let kernels: Vec<(&str, [bool; 3])> = kernels()
        .iter()
        .filter(|kernel| !matches!(kernel, Kernel::AttentionMatrix(variant) if variant.emulated))
        .map(|&kernel| (kernel.stem(), needs(kernel)))
        .collect();
    let row = |name: &str, of: &dyn Fn(&str) -> bool| {
        let of: Vec<[bool; 3]> = (kernels.iter())
            .filter(|(stem, _)| of(stem))
            .map(|(_, needs)| *needs)
            .collect();
        let count = |wanted: &dyn Fn(&[bool; 3]) -> bool| of.iter().filter(|n| wanted(n)).count();
        format!(
            "| {name} | {} | {} | {} | {} | {} |",
            of.len(),
            count(&|needs| *needs == [false; 3]),
            count(&|needs| needs[2]),
            count(&|needs| needs[1]),
            count(&|needs| needs[0]),
        )
    };
    for stem in STEMS {
        lines.push(row(&format!("`{stem}`"), &|other| other == *stem));
    }
    lines.push(row("all", &|_| true));
    lines.join("\n")
}

#[test]
fn the_table_of_variants_is_true() {
    const MARK: &str = "<!-- The rest is written by tests/shaders.rs. -->\n\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/backends.md");
    let text = std::fs::read_to_string(path).expect("docs/backends.md");
    let (prose, _) = text.split_once(MARK).expect("the mark before the table");
    let wanted = format!("{prose}{MARK}{}\n", table_of_variants());
    if std::env::var_os("FOVEATE_WRITE_DOCS").is_some() {
        std::fs::write(path, &wanted).expect("docs/backends.md can be written");
    } else {
        assert!(
            text == wanted,
            "docs/backends.md is out of date: FOVEATE_WRITE_DOCS=1 cargo test --test shaders table_of_variants"
        );
    }
}

/// Browsers compile WGSL with other compilers than naga. Tint is Chromium's; it runs without a driver.
#[test]
fn every_variant_compiles_in_tint() {
    // More in one process, and Dawn runs out of something.
    const BATCH: usize = 400;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/web/tint.mjs");
    let kernels: Vec<Kernel> = (kernels().iter().copied())
        // WebGPU has no matrices; emulated ones are for tests.
        .filter(|kernel| {
            !matches!(
                kernel,
                Kernel::AttentionMatrix(_) | Kernel::CeilingMatrix(_)
            )
        })
        .collect();
    // The check would be blind if it let this through, which naga does: a barrier that not all invocations reach.
    let blind = "@compute @workgroup_size(2) fn main(@builtin(local_invocation_index) i: u32) {
        if (i == 0u) { workgroupBarrier(); }
    }";
    let texts = serde_json::json!([{"name": "blind", "wgsl": blind}]).to_string();
    match tint(script, &texts).expect("runs") {
        Some(refused) => assert!(refused.contains("uniform control flow"), "{refused}"),
        None => return,
    }
    let batches: Vec<&[Kernel]> = kernels.chunks(BATCH).collect();
    let next = AtomicUsize::new(0);
    let compiled = AtomicUsize::new(0);
    let work = || -> Result<(), String> {
        while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            let texts: Vec<serde_json::Value> = batch
                .iter()
                .map(|kernel| {
                    let wgsl = kernel.shader()?.wgsl;
                    // As portable plans have it: naga refuses the directive that browsers ask for.
                    let enable = if needs(*kernel)[1] {
                        "enable subgroups;\n"
                    } else {
                        ""
                    };
                    let name = format!("{kernel:?}");
                    Ok(serde_json::json!({"name": name, "wgsl": format!("{enable}{wgsl}")}))
                })
                .collect::<Result<_, String>>()?;
            let Some(refused) = tint(script, &serde_json::Value::from(texts).to_string())? else {
                return Ok(());
            };
            if refused != "[]" {
                return Err(refused);
            }
            compiled.fetch_add(batch.len(), Ordering::Relaxed);
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let result: Result<(), String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker panicked"))
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let compiled = compiled.into_inner();
    assert_eq!(compiled, kernels.len());
    println!("Tint: {compiled} of {} kernels compiled", kernels.len());
}

/// What Tint refuses, as JSON; none where Node or Dawn is missing.
fn tint(script: &str, texts: &str) -> Result<Option<String>, String> {
    let child = Command::new("node")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "skipped Tint: node: {error} (1 skipped)");
            return Ok(None);
        }
    };
    // The pipe is dropped here, which ends the program's input.
    let written = (child.stdin.take()).map(|mut pipe| pipe.write_all(texts.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        let _ = writeln!(std::io::stderr(), "skipped Tint: {errors} (1 skipped)");
        return Ok(None);
    }
    if !output.status.success() {
        return Err(format!("web/tint.mjs: {}: {errors}", output.status));
    }
    written
        .unwrap_or(Ok(()))
        .map_err(|error| error.to_string())?;
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// The checks above would be blind if they let any of these through.
#[test]
fn the_checks_see_what_does_not_agree() {
    let kernel = Kernel::from(attention_merge::Variant {
        source: attention_merge::Source::Scratch,
        f16: false,
        lse: true,
        gate: false,
    });
    let shader = kernel.shader().expect("builds");
    for changes in [
        [("q_len", "q_length")].as_slice(),
        &[
            ("params.splits", "u32(params.splits)"),
            (" splits: u32", " splits: i32"),
        ],
        &[("WORKGROUP: u32 = 64u", "WORKGROUP: u32 = 32u")],
        &[("@binding(3)", "@binding(9)")],
        &[(
            "var<storage, read> scratch",
            "var<storage, read_write> scratch",
        )],
    ] {
        let mut wgsl = shader.wgsl.clone();
        for (from, to) in changes {
            assert!(wgsl.contains(from), "{from} is no longer in the file");
            wgsl = wgsl.replace(from, to);
        }
        let module = Reflected::new(&wgsl).unwrap_or_else(|error| panic!("{changes:?}: {error}"));
        assert!(agrees(kernel, &module).is_err(), "{changes:?} passed");
    }
}
