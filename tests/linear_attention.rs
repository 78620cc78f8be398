//! Linear attention on every adapter, against the f64 reference.

mod common;

use common::{
    gpus,
    linear::{Case, Sizes, gentle, is_op},
    name, say,
};
use foveate::{
    DType, Decay, FeatureMap, Gpu, Guard, Layout, LinearAttention, Normaliser, Reach, Real,
    Schedule, Similarity, Tuning, UpdateRule, ops::Slot, reference::noise,
};

const F32: f64 = 2e-5;
const F16: f64 = 2e-3;

const REACHES: [Reach; 4] = [
    Reach::Causal,
    Reach::Before,
    Reach::BeforeBucket { tokens: 8 },
    Reach::All,
];

/// Runs `check` on every adapter; fails when there is none.
fn each(check: impl Fn(&Gpu, &str)) {
    let mut ran = 0;
    for gpu in gpus() {
        check(gpu, &name(gpu));
        ran += 1;
    }
    assert!(ran > 0, "nothing ran");
}

fn all_close(cases: &[Case]) {
    assert!(!cases.is_empty(), "no case");
    each(|gpu, label| {
        for case in cases {
            case.close(gpu, label, F32);
        }
    });
}

/// The same in both walks, each with the tokens in one segment and in three.
fn all_close_in_each_walk(cases: &[Case]) {
    assert!(!cases.is_empty(), "no case");
    each(|gpu, label| {
        for schedule in [Schedule::Subgroup, Schedule::Tile] {
            if schedule == Schedule::Subgroup && gpu.engine().caps().fixed_subgroup().is_none() {
                say(format_args!("skipped: {label} has no fixed subgroup size"));
                continue;
            }
            for splits in [None, Some(3)] {
                let tuning = Tuning {
                    schedule: Some(schedule),
                    splits,
                    ..Tuning::default()
                };
                let label = format!("{label}, {schedule}, {splits:?}");
                for case in cases {
                    case.close_with(gpu, &tuning, &label, F32);
                }
            }
        }
    });
}

/// Every adapter with f16; the others are counted.
fn each_with_f16(check: impl Fn(&Gpu, &str)) {
    let mut ran = 0;
    for gpu in gpus() {
        if gpu.engine().caps().f16 {
            check(gpu, &name(gpu));
            ran += 1;
        } else {
            say(format_args!(
                "skipped: {} has no f16 (1 skipped)",
                name(gpu)
            ));
        }
    }
    assert!(ran > 0, "no adapter with f16");
}

fn rules(sizes: &Sizes) -> [UpdateRule; 5] {
    [
        UpdateRule::Linear,
        UpdateRule::Delta {
            beta: None,
            read: None,
        },
        sizes.delta(false),
        sizes.delta(true),
        sizes.low_rank(),
    ]
}

fn normaliser(guard: Guard) -> Normaliser {
    Normaliser {
        eps: Real(0.1),
        guard,
        safe: false,
    }
}

/// With states in and out (and sums, with a normaliser).
fn with_states(op: LinearAttention) -> LinearAttention {
    let mut op = op.with_final_state();
    op.initial_state = op.final_state.clone();
    op.initial_sum = op.final_sum.clone();
    op
}

#[test]
fn rules_decays_and_reaches() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(19, [8, 8]).heads(2, [2, 1, 2]);
    for rule in rules(&sizes) {
        for decay in sizes.decays() {
            for reach in REACHES {
                let op = sizes
                    .op()
                    .rule(rule.clone())
                    .decay(decay.clone())
                    .reach(reach);
                if is_op(&op) {
                    cases.push(Case::new(with_states(op)));
                }
            }
        }
    }
    assert!(cases.len() > 60);
    all_close(&cases);
}

#[test]
fn lengths_beside_chunks() {
    let mut cases = Vec::new();
    for seq in [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 67, 129] {
        let sizes = Sizes::new(seq, [8, 8]);
        let op = sizes.op();
        cases.extend([
            Case::new(op.clone()),
            Case::new(op.clone().decay(sizes.head_decay())),
            Case::new(op.clone().decay(sizes.token_decay()).with_final_state()),
            Case::new(op.clone().decay(sizes.key_decay()).with_final_state()),
            Case::new(
                op.clone()
                    .rule(sizes.delta(false))
                    .decay(sizes.token_decay()),
            ),
            Case::new(op.clone().rule(sizes.low_rank()).decay(sizes.key_decay())),
            Case::new(op.clone().reach(Reach::BeforeBucket { tokens: 16 })),
            Case::new(op.clone().reach(Reach::BeforeBucket { tokens: 5 })),
            Case::new(op.reach(Reach::All)),
        ]);
    }
    all_close(&cases);
}

#[test]
fn dims() {
    let mut cases = Vec::new();
    for dims in [
        [1, 1],
        [3, 5],
        [5, 3],
        [1, 40],
        [40, 1],
        [16, 64],
        [64, 16],
        [100, 7],
        [7, 100],
        [64, 64],
        [256, 256],
    ] {
        let sizes = Sizes::new(if dims[0] > 64 { 9 } else { 21 }, dims);
        let op = sizes.op();
        cases.push(Case::new(with_states(
            op.clone().decay(sizes.token_decay()),
        )));
        cases.push(Case::new(op.clone().reach(Reach::All)));
        // Fewer of what compiles longer.
        if dims[0] != 64 {
            let delta = op.clone().rule(sizes.delta(false));
            cases.push(Case::new(with_states(delta.decay(sizes.key_decay()))));
        }
        if dims[0] < 16 {
            cases.push(Case::new(op.clone().decay(sizes.value_decay())));
            cases.push(Case::new(op.rule(sizes.low_rank())));
        }
    }
    all_close(&cases);
}

#[test]
fn heads_that_share() {
    let mut cases = Vec::new();
    for heads in [
        [4, 1, 2],
        [1, 1, 4],
        [8, 2, 4],
        [2, 4, 4],
        [6, 1, 1],
        [2, 1, 6],
        [3, 3, 3],
    ] {
        let sizes = Sizes::new(10, [8, 8]).heads(2, heads);
        let op = sizes.op();
        let decayed = op.clone().decay(sizes.token_decay());
        cases.push(Case::new(with_states(
            decayed.clone().rule(sizes.delta(true)),
        )));
        cases.push(Case::new(with_states(decayed)));
        cases.push(Case::new(op.clone().decay(sizes.head_decay())));
        cases.push(Case::new(op.clone().rule(sizes.low_rank())));
        cases.push(Case::new(
            op.reach(Reach::Before)
                .bonus(Layout::f32([heads[2], 8]))
                .decay(sizes.key_decay()),
        ));
    }
    all_close(&cases);
}

/// `[batch, seq, heads, dim]`, rows apart, further into the buffer; the last two axes exchanged; a stride of 2.
fn layouts() -> [fn(Slot, &Layout) -> Layout; 3] {
    [
        |_, old| {
            let shape = &old.shape;
            let layout = match shape[..] {
                [b, h, s, d] => Layout::new(old.dtype, [b, s, h, d + 3]).transposed(1, 2),
                [b, h, s] => Layout::new(old.dtype, [b, s, h]).transposed(1, 2),
                _ => Layout::new(old.dtype, shape.clone()),
            };
            Layout {
                shape: shape.clone(),
                ..layout
            }
            .at(5)
        },
        |_, old| {
            let mut shape = old.shape.clone();
            let rank = shape.len();
            if rank < 2 {
                return old.clone().at(1);
            }
            shape.swap(rank - 1, rank - 2);
            Layout::new(old.dtype, shape).transposed(rank - 1, rank - 2)
        },
        |slot, old| {
            let strides: Vec<u64> = old.strides.iter().map(|stride| 2 * stride).collect();
            let layout = old.clone().with_strides(strides);
            if slot == Slot::O {
                layout.at(1)
            } else {
                layout
            }
        },
    ]
}

#[test]
fn any_layout() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(19, [12, 8]).heads(2, [4, 1, 2]);
    for layout in layouts() {
        for in_place in [false, true] {
            let mut op = with_states(
                sizes
                    .op()
                    .decay(sizes.key_decay())
                    .features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne)
                    .normaliser(normaliser(Guard::Add)),
            );
            op.in_place = in_place;
            cases.push(Case::new(op).laid_out(layout));
            let mut op = with_states(sizes.op().decay(sizes.token_decay()));
            op.rule = sizes.delta(true);
            op.in_place = in_place;
            cases.push(Case::new(op).laid_out(layout));
        }
        let heads = sizes.op().decay(sizes.head_decay());
        cases.push(Case::new(heads).laid_out(layout));
        let low_rank = sizes.op().rule(sizes.low_rank());
        cases.push(Case::new(low_rank).laid_out(layout));
        let before = sizes.op().reach(Reach::Before);
        cases.push(Case::new(before.bonus(Layout::f32([2, 12]))).laid_out(layout));
    }
    all_close(&cases);
}

/// One number for all: strides of 0.
#[test]
fn inputs_that_repeat() {
    let sizes = Sizes::new(19, [8, 8]).heads(2, [2, 2, 2]);
    let mut op = sizes
        .op()
        .decay(sizes.token_decay())
        .rule(sizes.delta(false));
    op.q = op.q.with_strides([0, 0, 8, 1]);
    op.decay = Decay::Token(Layout::f32([2, 2, 19]).with_strides([0, 1, 0]));
    let mut case = Case::new(op);
    // The elements as they are read.
    let q = noise(1, 19 * 8);
    *case.of(Slot::Q) = [&q[..]; 4].concat();
    let decay = [-0.3f32, -0.01];
    *case.of(Slot::Decay) = (0..76).map(|at| decay[at / 19 % 2]).collect();
    all_close(&[case]);
}

#[test]
fn tokens_that_are_there() {
    let mut cases = Vec::new();
    let lens = [0, 1, 8, 13, 19, 1000];
    let sizes = Sizes::new(19, [8, 8]).heads(6, [2, 1, 2]);
    for reach in REACHES {
        let plain = sizes.op().reach(reach);
        let features = plain
            .clone()
            .features(FeatureMap::Sigmoid, FeatureMap::Sigmoid)
            .normaliser(normaliser(Guard::AtLeast));
        cases.push(Case::new(plain.clone().with_final_state()).lens(&lens));
        cases.push(Case::new(with_states(features)).lens(&lens));
        for (decay, rule) in [
            (sizes.token_decay(), UpdateRule::Linear),
            (sizes.key_decay(), sizes.delta(false)),
            (Decay::None, sizes.low_rank()),
        ] {
            let op = plain.clone().decay(decay).rule(rule);
            if is_op(&op) {
                cases.push(Case::new(with_states(op)).lens(&lens));
            }
        }
    }
    let bonus = sizes.op().reach(Reach::Before).bonus(Layout::f32([2, 8]));
    cases.push(Case::new(bonus).lens(&lens));
    let mut carried = sizes.op().decay(sizes.token_decay()).carried_state();
    carried.rule = sizes.delta(false);
    cases.push(Case::new(carried).lens(&lens));
    all_close(&cases);
}

/// Of no token, of one, shorter and longer than a chunk; the last two tokens belong to none.
#[test]
fn packed_sequences() {
    let cu = [0, 0, 1, 10, 10, 27, 45, 45];
    let mut cases = Vec::new();
    let sizes = Sizes::new(47, [8, 8]).heads(1, [2, 1, 2]);
    let count = Layout::new(DType::U32, [cu.len() as u64]);
    for reach in REACHES {
        let plain = sizes.op().reach(reach).packed(count.clone());
        cases.push(Case::new(plain.clone().with_final_state()).packed(&cu));
        let features = plain
            .clone()
            .features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne)
            .normaliser(normaliser(Guard::Add));
        cases.push(Case::new(with_states(features)).packed(&cu));
        let cosine = plain
            .clone()
            .similarity(Similarity::Cosine { length: 50 })
            .with_final_state();
        cases.push(Case::new(cosine).packed(&cu));
        for (decay, rule) in [
            (sizes.token_decay(), UpdateRule::Linear),
            (sizes.key_decay(), sizes.delta(false)),
            (sizes.head_decay(), sizes.low_rank()),
        ] {
            let op = plain.clone().decay(decay).rule(rule);
            if is_op(&op) {
                cases.push(Case::new(with_states(op)).packed(&cu));
            }
        }
    }
    let two = Layout::new(DType::U32, [2]);
    let op = sizes.op().decay(sizes.token_decay()).packed(two);
    for only in [[0, 47], [0, 46], [0, 0], [0, 1]] {
        cases.push(Case::new(with_states(op.clone())).packed(&only));
    }
    all_close(&cases);
}

/// Where every decay is 0, or clears some channels, what is left is the token itself; where it is 1, nothing is lost.
#[test]
fn decays_of_zero_and_one() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(37, [8, 8]).heads(1, [2, 2, 2]);
    for decay in sizes.decays() {
        if decay == Decay::None {
            continue;
        }
        for rule in [UpdateRule::Linear, sizes.delta(false), sizes.low_rank()] {
            for g in [-1000.0, 0.0, -60.0, -1e-8] {
                let op = sizes.op().decay(decay.clone()).rule(rule.clone());
                let mut case = Case::new(with_states(op));
                case.of(Slot::Decay).fill(g);
                cases.push(case);
            }
        }
    }
    all_close(&cases);
}

#[test]
fn features() {
    let maps = [
        FeatureMap::EluPlusOne,
        FeatureMap::Relu,
        FeatureMap::SquaredRelu,
        FeatureMap::Exp { factor: Real(0.5) },
        FeatureMap::Softmax,
        FeatureMap::Sigmoid,
        FeatureMap::Silu,
    ];
    let mut cases = Vec::new();
    for (number, &map) in maps.iter().enumerate() {
        for dims in [[8, 8], [5, 3]] {
            let sizes = Sizes::new(19, dims).heads(1, [2, 1, 1]);
            let other = maps[(number + 3) % maps.len()];
            cases.push(Case::new(
                sizes.op().features(map, other).with_final_state(),
            ));
            let decayed = sizes.op().features(other, map).decay(sizes.token_decay());
            cases.push(Case::new(decayed));
        }
    }
    let sizes = Sizes::new(19, [8, 8]);
    for rule in [sizes.delta(false), sizes.low_rank()] {
        let op = sizes.op().rule(rule);
        cases.push(Case::new(
            op.features(FeatureMap::Silu, FeatureMap::Softmax),
        ));
    }
    all_close(&cases);
}

#[test]
fn large_numbers_in_features() {
    let sizes = Sizes::new(9, [8, 8]);
    let mut cases = Vec::new();
    for map in [
        FeatureMap::EluPlusOne,
        FeatureMap::Softmax,
        FeatureMap::Sigmoid,
        FeatureMap::Silu,
    ] {
        let mut case = Case::new(sizes.op().features(map, map).with_final_state());
        for slot in [Slot::Q, Slot::K] {
            let x = case.of(slot);
            x.iter_mut().for_each(|x| *x *= 300.0);
        }
        cases.push(case);
    }
    all_close(&cases);
}

#[test]
fn normalisers() {
    let mut cases = Vec::new();
    for seq in [1, 19] {
        let sizes = Sizes::new(seq, [8, 8]).heads(2, [2, 1, 2]);
        for guard in [Guard::Add, Guard::AtLeast, Guard::Keys] {
            for reach in REACHES {
                for decay in [Decay::None, sizes.token_decay(), sizes.key_decay()] {
                    let op = sizes
                        .op()
                        .reach(reach)
                        .decay(decay)
                        .features(FeatureMap::Sigmoid, FeatureMap::Sigmoid)
                        .normaliser(normaliser(guard));
                    if is_op(&op) {
                        cases.push(Case::new(op.clone()));
                        cases.push(Case::new(with_states(op)));
                    }
                }
            }
        }
        // A query of zeros, guarded and not; the first that sees no key.
        for (guard, eps) in [(Guard::AtLeast, 0.1), (Guard::Add, 0.0), (Guard::Keys, 0.1)] {
            for reach in [Reach::Causal, Reach::Before] {
                let relu = sizes.op().features(FeatureMap::Relu, FeatureMap::Sigmoid);
                let normaliser = Normaliser {
                    eps: Real(eps),
                    ..normaliser(guard)
                };
                let mut case = Case::new(relu.reach(reach).normaliser(normaliser));
                case.of(Slot::Q)[..8].fill(-1.0);
                cases.push(case);
            }
        }
    }
    all_close(&cases);
}

/// Keys whose exponentials overflow, with states and without; the largest comes late, early, in a state.
#[test]
fn safe_normalisers() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(21, [8, 8]).heads(2, [2, 1, 2]);
    let exp = FeatureMap::Exp { factor: Real(2.0) };
    for reach in REACHES {
        for decay in [Decay::None, sizes.token_decay(), sizes.key_decay()] {
            for (shift, slope) in [(100.0, 0.0), (-200.0, 1.0), (0.0, -0.5)] {
                let op = sizes
                    .op()
                    .reach(reach)
                    .decay(decay.clone())
                    .features(FeatureMap::Softmax, exp)
                    .normaliser(Normaliser {
                        safe: true,
                        ..normaliser(Guard::Add)
                    });
                if !is_op(&op) {
                    continue;
                }
                for op in [op.clone().with_final_state(), with_states(op)] {
                    let mut case = Case::new(op);
                    for (at, x) in case.of(Slot::K).iter_mut().enumerate() {
                        *x = 0.25 * *x + shift + slope * (at / 8 % 21) as f32;
                    }
                    // What the state holds is of the same size.
                    if case.op.initial_sum.is_some() {
                        let rows = case.of(Slot::InitialSum).chunks_mut(9);
                        rows.for_each(|row| row[8] = 2.0 * shift + 1.0);
                    }
                    cases.push(case.clone());
                    cases.push(case.lens(&[0, 13]));
                }
            }
        }
    }
    all_close(&cases);
}

#[test]
fn cosines() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(21, [8, 8]).heads(1, [2, 1, 2]);
    for length in [21, 50] {
        for reach in REACHES {
            for decay in [Decay::None, sizes.token_decay(), sizes.value_decay()] {
                let op = sizes
                    .op()
                    .reach(reach)
                    .decay(decay)
                    .features(FeatureMap::Relu, FeatureMap::Relu)
                    .similarity(Similarity::Cosine { length });
                if !is_op(&op) {
                    continue;
                }
                cases.push(Case::new(with_states(op.clone())));
                let guarded = op.normaliser(normaliser(Guard::AtLeast));
                if is_op(&guarded) {
                    cases.push(Case::new(with_states(guarded)));
                }
            }
        }
    }
    all_close(&cases);
}

#[test]
fn powers_of_the_score() {
    let mut cases = Vec::new();
    for seq in [1, 9, 33] {
        let sizes = Sizes::new(seq, [8, 5]).heads(2, [4, 1, 2]);
        for similarity in [Similarity::Taylor, Similarity::Square] {
            for reach in [Reach::Causal, Reach::All] {
                for decay in [Decay::None, sizes.head_decay(), sizes.token_decay()] {
                    let op = sizes.op().similarity(similarity).reach(reach).decay(decay);
                    if is_op(&op) {
                        cases.push(Case::new(op.clone()));
                        cases.push(Case::new(op.normalised(1e-3)));
                    }
                }
            }
        }
    }
    all_close(&cases);
}

#[test]
fn several_updates_per_token() {
    let mut cases = Vec::new();
    for updates in [2, 3] {
        let sizes = Sizes::new(19, [8, 8]).heads(2, [2, 1, 2]);
        let more = Sizes {
            seq: 19 * updates,
            ..sizes
        };
        for rule in [
            UpdateRule::Linear,
            more.delta(false),
            more.delta(true),
            more.low_rank(),
        ] {
            for decay in [Decay::None, sizes.token_decay(), sizes.key_decay()] {
                let mut op = sizes
                    .op()
                    .decay(decay)
                    .rule(rule.clone())
                    .updates_per_token(updates);
                op.k = more.op().k;
                op.v = more.op().v;
                let op = with_states(op);
                cases.push(Case::new(op.clone()));
                cases.push(Case::new(op).lens(&[19, 7]));
            }
        }
    }
    all_close(&cases);
}

#[test]
fn more_keys_than_queries() {
    let mut cases = Vec::new();
    for [queries, keys] in [[1, 40], [40, 1], [9, 33]] {
        let mut op = Sizes::new(queries, [8, 8]).op().reach(Reach::All);
        let other = Sizes::new(keys, [8, 8]).op();
        op.k = other.k;
        op.v = other.v;
        cases.push(Case::new(op.clone()));
        let features = op.features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne);
        cases.push(Case::new(with_states(
            features.clone().normaliser(normaliser(Guard::Add)),
        )));
        cases.push(Case::new(features.normaliser(normaliser(Guard::Add))).lens(&[3]));
    }
    all_close(&cases);
}

/// The tokens `from..to` of a case, its state carried in place.
fn part(case: &Case, sizes: &Sizes, from: u64, to: u64) -> Case {
    let cut = Sizes {
        seq: to - from,
        ..*sizes
    };
    let mut op = case.op.clone();
    let shorter = |layout: &Layout| {
        let mut shape = layout.shape.clone();
        shape[2] = to - from;
        Layout::new(layout.dtype, shape)
    };
    op.q = shorter(&op.q);
    op.k = shorter(&op.k);
    op.v = shorter(&op.v);
    op.o = shorter(&op.o);
    op.decay = match &op.decay {
        Decay::Token(layout) => Decay::Token(shorter(layout)),
        Decay::Key(layout) => Decay::Key(shorter(layout)),
        other => other.clone(),
    };
    op.rule = match &op.rule {
        UpdateRule::Linear => UpdateRule::Linear,
        UpdateRule::Delta { .. } => cut.delta(false),
        UpdateRule::LowRank { .. } => cut.low_rank(),
    };
    let mut part = case.clone();
    part.op = op;
    for (slot, x) in &mut part.data {
        let per_token = match slot {
            Slot::Bonus | Slot::FinalState | Slot::FinalSum => continue,
            Slot::Decay if matches!(case.op.decay, Decay::Head(_)) => continue,
            _ => x.len() as u64 / (sizes.seq * rows(case, sizes, *slot)),
        };
        let rows = rows(case, sizes, *slot);
        *x = (0..rows)
            .flat_map(|row| {
                let start = row * sizes.seq;
                x[((start + from) * per_token) as usize..((start + to) * per_token) as usize]
                    .to_vec()
            })
            .collect();
    }
    part
}

/// Batch entries times heads of a tensor with tokens.
fn rows(case: &Case, sizes: &Sizes, slot: Slot) -> u64 {
    let [q, k, v] = sizes.heads;
    let heads = match slot {
        Slot::Q => q,
        Slot::K | Slot::Read | Slot::Write => k,
        _ => v,
    };
    case.op.q.shape[0] * heads
}

/// A sequence in several calls, the state in place, gives what one call gives.
#[test]
fn calls_in_turn_are_one_call() {
    let sizes = Sizes::new(37, [8, 8]).heads(2, [2, 1, 2]);
    let exp = FeatureMap::Exp { factor: Real(1.0) };
    let ops = [
        sizes.op().decay(sizes.head_decay()),
        sizes
            .op()
            .decay(sizes.token_decay())
            .rule(sizes.delta(false)),
        sizes.op().decay(sizes.key_decay()).rule(sizes.low_rank()),
        sizes
            .op()
            .features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne)
            .normaliser(normaliser(Guard::Add)),
        sizes
            .op()
            .features(FeatureMap::Softmax, exp)
            .normaliser(Normaliser {
                safe: true,
                ..normaliser(Guard::Add)
            }),
        sizes.op().reach(Reach::Before).bonus(Layout::f32([2, 8])),
    ];
    each(|gpu, label| {
        for op in &ops {
            let whole = Case::new(op.clone().carried_state());
            let want = whole.expected();
            let mut carried = whole.clone();
            let mut o = vec![Vec::new(); 4];
            for [from, to] in [[0, 1], [1, 9], [9, 30], [30, 36], [36, 37]] {
                let case = part(&carried, &sizes, from, to);
                let got = case
                    .run(gpu)
                    .unwrap_or_else(|error| panic!("{label}: {error}"));
                for (all, rows) in o.iter_mut().zip(got.o.chunks(got.o.len() / 4)) {
                    all.extend_from_slice(rows);
                }
                *carried.of(Slot::FinalState) = got.state.expect("a state");
                if let Some(sum) = got.sum {
                    *carried.of(Slot::FinalSum) = sum;
                }
            }
            let error = foveate::reference::error(&o.concat(), &want.o);
            assert!(error <= F32, "{label}: o {error:e}: {op:?}");
            let error = foveate::reference::error(carried.of(Slot::FinalState), &want.state);
            assert!(error <= F32, "{label}: state {error:e}: {op:?}");
        }
    });
}

#[test]
fn half_precision() {
    each_with_f16(|gpu, label| {
        let f16 = |layout: &Layout| Layout::new(DType::F16, layout.shape.clone());
        let sizes = Sizes::new(33, [16, 8]).heads(2, [2, 1, 2]);
        for states in [DType::F32, DType::F16] {
            for gate in [DType::F32, DType::F16] {
                for (decay, rule) in [
                    (sizes.token_decay(), UpdateRule::Linear),
                    (sizes.key_decay(), sizes.delta(false)),
                    (sizes.key_decay(), sizes.low_rank()),
                    (sizes.head_decay(), UpdateRule::Linear),
                ] {
                    let op = with_states(sizes.op().decay(decay).rule(rule));
                    let head = matches!(op.decay, Decay::Head(_));
                    let case = Case::new(op).laid_out(|slot, layout| {
                        let dtype = match slot {
                            Slot::InitialState | Slot::FinalState => states,
                            Slot::Decay if head => DType::F32,
                            Slot::Decay | Slot::Beta => gate,
                            _ => DType::F16,
                        };
                        Layout::new(dtype, layout.shape.clone())
                    });
                    case.close(gpu, label, F16);
                }
            }
        }
        // Odd dims, strides, a normaliser; sums and states of f16 in place.
        let sizes = Sizes::new(21, [5, 3]).heads(1, [2, 1, 1]);
        let mut op = sizes
            .op()
            .features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne)
            .normaliser(normaliser(Guard::Add))
            .carried_state();
        op.in_place = true;
        let case = Case::new(op).laid_out(|_, layout| f16(layout).at(1));
        case.close(gpu, label, F16);
        // States of f16 beside inputs of f32.
        let op = with_states(sizes.op().decay(sizes.token_decay()));
        let case = Case::new(op).laid_out(|slot, layout| match slot {
            Slot::InitialState | Slot::FinalState => f16(layout),
            _ => layout.clone(),
        });
        case.close(gpu, label, F16);
    });
}

/// Keys and values in another order, where all are seen, change nothing.
#[test]
fn order_does_not_count_where_all_are_seen() {
    each(|gpu, label| {
        let sizes = Sizes::new(33, [8, 8]);
        let op = sizes
            .op()
            .reach(Reach::All)
            .features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne)
            .normaliser(normaliser(Guard::Add));
        let case = Case::new(op);
        let mut turned = case.clone();
        for slot in [Slot::K, Slot::V] {
            let rows: Vec<Vec<f32>> = (turned.of(slot).chunks(8)).map(<[f32]>::to_vec).collect();
            let order = (0..33).map(|row| rows[row * 10 % 33].clone());
            *turned.of(slot) = order.collect::<Vec<_>>().concat();
        }
        let [a, b] = [&case, &turned].map(|case| case.run(gpu).expect("it runs").o);
        let want: Vec<f64> = a.iter().map(|&x| x.into()).collect();
        let error = foveate::reference::error(&b, &want);
        assert!(error <= F32, "{label}: {error:e}");
        turned.close(gpu, label, F32);
    });
}

/// Runs a case with and without a number that is not finite; every row of the output but those of `spoilt` must have
/// the same bits.
fn stays_within(case: &Case, slot: Slot, at: usize, spoilt: impl Fn(usize) -> bool) {
    each(|gpu, label| {
        let clean = case.run(gpu).expect("it runs");
        for bad in [f32::NAN, f32::INFINITY] {
            let mut case = case.clone();
            case.of(slot)[at] = bad;
            let got = case.run(gpu).expect("it runs");
            let width = case.op.o.shape[3] as usize;
            for (row, (got, clean)) in got.o.chunks(width).zip(clean.o.chunks(width)).enumerate() {
                let same = got
                    .iter()
                    .zip(clean)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(
                    same || spoilt(row),
                    "{label}: {bad} of {slot:?} in row {row}: {got:?} and not {clean:?}"
                );
            }
        }
    });
}

#[test]
fn what_is_not_finite_stays_in_its_head() {
    let sizes = Sizes::new(11, [8, 8]).heads(2, [4, 2, 2]);
    // The second batch entry's first state: outputs of its heads 0 and 1.
    let spoilt = |row: usize| (row / 11) / 4 == 1 && (row / 11) % 4 < 2;
    for (decay, rule) in [
        (sizes.head_decay(), UpdateRule::Linear),
        (sizes.key_decay(), sizes.delta(false)),
    ] {
        let case = Case::new(sizes.op().decay(decay).rule(rule));
        stays_within(&case, Slot::K, 2 * 11 * 8 + 3, spoilt);
        stays_within(&case, Slot::V, 2 * 11 * 8 + 3, spoilt);
    }
    let all = sizes.op().reach(Reach::All);
    stays_within(&Case::new(all), Slot::V, 2 * 11 * 8 + 3, spoilt);
}

/// Tokens before one are not touched by it, nor other packed sequences.
#[test]
fn what_is_not_finite_stays_in_its_sequence() {
    let sizes = Sizes::new(40, [8, 8]);
    let cu = [0, 5, 17, 40];
    let op = sizes.op().packed(Layout::new(DType::U32, [4]));
    for op in [
        op.clone().decay(sizes.token_decay()),
        op.clone().reach(Reach::All),
        op.rule(sizes.delta(false)),
    ] {
        let case = Case::new(op).packed(&cu);
        stays_within(&case, Slot::V, 9 * 8, |row| (5..17).contains(&row));
    }
}

/// What lies past the valid tokens is not read into anything.
#[test]
fn tokens_that_are_not_there_do_not_count() {
    let sizes = Sizes::new(21, [8, 8]);
    for op in [
        sizes.op().decay(sizes.token_decay()),
        sizes.op().reach(Reach::All),
        sizes.op().decay(sizes.key_decay()).rule(sizes.delta(false)),
    ] {
        let case = Case::new(op).lens(&[10]);
        for slot in [Slot::K, Slot::V] {
            stays_within(&case, slot, 12 * 8 + 1, |_| false);
        }
    }
}

/// Sequences past a driver's loop limits.
#[test]
fn long_sequences() {
    let mut cases = Vec::new();
    for decay in [Decay::None, Sizes::new(5000, [4, 4]).head_decay()] {
        let op = Sizes::new(5000, [4, 4]).op().decay(decay);
        let mut case = Case::new(op.with_final_state());
        if let Some((_, g)) = case.data.iter_mut().find(|(slot, _)| *slot == Slot::Decay) {
            g.fill(-0.01);
        }
        cases.push(case);
    }
    let sizes = Sizes::new(3000, [4, 4]);
    cases.push(Case::new(
        sizes.op().rule(sizes.delta(false)).with_final_state(),
    ));
    cases.push(Case::new(sizes.op().reach(Reach::All)));
    all_close(&cases);
}

/// States that are joined from those of parts of the tokens: every decay and reach, states that last, lengths that end in
/// any part.
#[test]
fn states_of_segments() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(50, [8, 8]).heads(2, [2, 1, 2]);
    let mut push = |op: LinearAttention| {
        if !is_op(&op) {
            return;
        }
        let mut case = Case::new(op);
        if let Some((_, g)) = case.data.iter_mut().find(|(slot, _)| *slot == Slot::Decay) {
            *g = noise(9, g.len());
            gentle(g);
        }
        cases.push(case.clone());
        for lens in [[50, 20], [34, 0]] {
            cases.push(case.clone().lens(&lens));
        }
    };
    for reach in REACHES {
        for decay in sizes.decays() {
            push(with_states(sizes.op().reach(reach).decay(decay.clone())));
            let features = sizes
                .op()
                .features(FeatureMap::EluPlusOne, FeatureMap::Sigmoid)
                .normaliser(normaliser(Guard::Add));
            push(features.reach(reach).decay(decay).carried_state());
        }
        let cosine = sizes.op().similarity(Similarity::Cosine { length: 60 });
        push(cosine.reach(reach).with_final_state());
    }
    let before = sizes.op().reach(Reach::Before).decay(sizes.key_decay());
    push(before.bonus(Layout::f32([2, 8])));
    push(sizes.op().reach(Reach::BeforeBucket { tokens: 30 }));
    all_close_in_each_walk(&cases);
}

/// Tokens in other numbers than a step takes, in segments of one or of none.
#[test]
fn few_tokens_in_segments() {
    let mut cases = Vec::new();
    for seq in [1, 2, 3, 4, 7] {
        let sizes = Sizes::new(seq, [5, 3]);
        for decay in [Decay::None, sizes.token_decay()] {
            cases.push(Case::new(with_states(sizes.op().decay(decay))));
        }
        cases.push(Case::new(sizes.op().reach(Reach::All)));
        cases.push(Case::new(
            sizes.op().reach(Reach::BeforeBucket { tokens: 2 }),
        ));
        cases.push(Case::new(
            sizes.op().rule(sizes.delta(false)).with_final_state(),
        ));
    }
    all_close_in_each_walk(&cases);
}

/// Numbers for choices, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        // SplitMix64 (Steele et al., 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize].clone()
    }
}

/// An op of any terms that go together.
fn any_case(dice: &mut Dice) -> Case {
    loop {
        let heads = dice.of(&[
            [1, 1, 1],
            [4, 1, 2],
            [2, 2, 2],
            [1, 1, 3],
            [2, 1, 1],
            [2, 4, 4],
        ]);
        let lengths = [1, 2, 5, 8, 13, 16, 31, 32, 33, 50, 65, 100];
        let dims = [1, 3, 4, 6, 8, 12, 16, 20];
        let packed = dice.below(5) == 0;
        let sizes = Sizes {
            batch: if packed { 1 } else { 1 + dice.below(2) },
            heads,
            seq: dice.of(&lengths),
            dims: [dice.of(&dims), dice.of(&dims)],
        };
        let tokens = 1 + dice.below(20);
        let reach = dice.of(&[
            Reach::Causal,
            Reach::Causal,
            Reach::Before,
            Reach::BeforeBucket { tokens },
            Reach::All,
        ]);
        let updates = if dice.below(6) == 0 {
            1 + dice.below(3)
        } else {
            1
        };
        let more = Sizes {
            seq: sizes.seq * updates,
            ..sizes
        };
        let mut op = sizes
            .op()
            .reach(reach)
            .decay(dice.of(&sizes.decays()))
            .rule(dice.of(&rules(&more)))
            .updates_per_token(updates);
        op.k = more.op().k;
        op.v = more.op().v;
        if dice.below(5) == 0 {
            let length = sizes.seq + dice.below(9);
            op.similarity = Similarity::Cosine { length };
        }
        let signed = [FeatureMap::Identity, FeatureMap::Identity, FeatureMap::Silu];
        let positive = [
            FeatureMap::EluPlusOne,
            FeatureMap::Softmax,
            FeatureMap::Sigmoid,
            FeatureMap::Exp { factor: Real(0.7) },
        ];
        if dice.below(4) == 0 {
            op = op.features(dice.of(&positive), dice.of(&positive));
            op.normaliser = Some(Normaliser {
                safe: matches!(op.feature_k, FeatureMap::Exp { .. }) && dice.below(2) == 0,
                ..normaliser(dice.of(&[Guard::Add, Guard::AtLeast, Guard::Keys]))
            });
        } else {
            op = op.features(dice.of(&signed), dice.of(&signed));
            if dice.below(2) == 0 && reach == Reach::Before {
                op.bonus = Some(Layout::f32([heads[2], sizes.dims[0]]));
            }
        }
        let cu = {
            let mut ends: Vec<u32> = (0..4).map(|_| dice.below(sizes.seq + 1) as u32).collect();
            ends[0] = 0;
            ends.sort_unstable();
            ends
        };
        if packed {
            op = op.packed(Layout::new(DType::U32, [cu.len() as u64]));
        }
        op = match dice.below(4) {
            0 => op.with_final_state(),
            1 => with_states(op),
            2 => op.carried_state(),
            _ => op,
        };
        if !is_op(&op) {
            continue;
        }
        let mut case = Case::new(op);
        if packed {
            case = case.packed(&cu);
        } else if dice.below(3) == 0 {
            let lens: Vec<u32> = (0..sizes.batch)
                .map(|_| dice.below(sizes.seq + 2) as u32)
                .collect();
            case = case.lens(&lens);
        }
        match dice.below(6) {
            choice @ 0..3 => return case.laid_out(layouts()[choice as usize]),
            _ => return case,
        }
    }
}

/// Terms together as no test above has them; PROPTEST_CASES says how many, where there is time for more.
#[test]
fn terms_at_random() {
    let wanted = std::env::var("PROPTEST_CASES").ok();
    let count = wanted.and_then(|n| n.parse().ok()).unwrap_or(30);
    let cases: Vec<Case> = (0..count).map(|seed| any_case(&mut Dice(seed))).collect();
    all_close_in_each_walk(&cases);
}
