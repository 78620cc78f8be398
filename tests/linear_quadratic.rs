//! Linear attention by all pairs, and attention inside groups beside it, on every adapter, against the f64
//! reference.

mod common;

use common::{
    gpus,
    linear::{Case, Sizes, is_op},
    name, say,
};
use foveate::{
    Caps, DType, Decay, Error, FeatureMap, Gpu, Guard, Layout, LinearAttention, Local,
    LocalWeights, Normaliser, Op, Reach, Real, Schedule, Similarity, Tuning, UpdateRule, ops::Slot,
    plan::Outline,
};

const F32: f64 = 2e-5;
// Numbers several times their RMS are stored to 2^-11 of themselves.
const F16: f64 = 4e-3;

const PAIRS: Tuning = Tuning {
    schedule: Some(Schedule::Quadratic),
    rows: None,
    keys: None,
    splits: None,
};

const REACHES: [Reach; 4] = [
    Reach::Causal,
    Reach::Before,
    Reach::BeforeBucket { tokens: 8 },
    Reach::All,
];

const MAPS: [FeatureMap; 8] = [
    FeatureMap::Identity,
    FeatureMap::EluPlusOne,
    FeatureMap::Relu,
    FeatureMap::SquaredRelu,
    FeatureMap::Exp { factor: Real(0.7) },
    FeatureMap::Softmax,
    FeatureMap::Sigmoid,
    FeatureMap::Silu,
];

const WEIGHTS: [LocalWeights; 3] = [
    LocalWeights::Softmax,
    LocalWeights::SquaredRelu,
    LocalWeights::Laplace,
];

/// Every case on every adapter; fails when there is none of either.
fn all_close(cases: &[Case]) {
    assert!(!cases.is_empty() && !gpus().is_empty());
    for gpu in gpus() {
        for case in cases {
            case.close_with(gpu, &PAIRS, &name(gpu), F32);
        }
    }
}

fn normaliser(guard: Guard) -> Normaliser {
    Normaliser {
        eps: Real(0.1),
        guard,
        safe: false,
    }
}

#[test]
fn similarities_decays_and_reaches() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(67, [9, 10]).heads(2, [2, 1, 2]);
    for similarity in [
        Similarity::Product,
        Similarity::Taylor,
        Similarity::Square,
        Similarity::Cosine { length: 67 },
    ] {
        for decay in &sizes.decays()[..3] {
            for reach in REACHES {
                let op = sizes
                    .op()
                    .similarity(similarity)
                    .decay(decay.clone())
                    .reach(reach);
                if is_op(&op) {
                    cases.push(Case::new(op));
                }
            }
        }
    }
    assert!(cases.len() > 30);
    all_close(&cases);
}

#[test]
fn sizes() {
    let mut cases = Vec::new();
    for seq in [1, 2, 31, 32, 33, 64, 65, 129] {
        let sizes = Sizes::new(seq, [8, 8]);
        cases.push(Case::new(sizes.op()));
        cases.push(Case::new(
            sizes
                .op()
                .decay(sizes.token_decay())
                .features(FeatureMap::Sigmoid, FeatureMap::Sigmoid)
                .normalised(0.1),
        ));
    }
    for dims in [[1, 1], [3, 5], [33, 31], [100, 65], [64, 128], [256, 256]] {
        let sizes = Sizes::new(40, dims);
        cases.push(Case::new(sizes.op().similarity(Similarity::Taylor)));
    }
    for heads in [[4, 1, 2], [1, 1, 4], [8, 2, 4], [2, 3, 6], [6, 1, 1]] {
        let sizes = Sizes::new(10, [8, 8]).heads(2, heads);
        cases.push(Case::new(sizes.op().decay(sizes.head_decay())));
        cases.push(Case::new(sizes.op().decay(sizes.token_decay())));
    }
    all_close(&cases);
}

#[test]
fn maps_and_guards() {
    let mut cases = Vec::new();
    for (n, map) in MAPS.into_iter().enumerate() {
        for width in [8, 5, 41] {
            let sizes = Sizes::new(19, [width, 6]).heads(1, [2, 1, 1]);
            let op = sizes.op().features(map, MAPS[(n + 3) % MAPS.len()]);
            cases.push(Case::new(op));
        }
    }
    let exp = FeatureMap::Exp { factor: Real(2.0) };
    let sizes = Sizes::new(70, [8, 8]).heads(2, [2, 1, 2]);
    for (turn, reach) in REACHES.into_iter().enumerate() {
        for (n, guard) in [Guard::Add, Guard::AtLeast, Guard::Keys]
            .into_iter()
            .enumerate()
        {
            // Each guard with each decay, and each reach with each, but not all three.
            for decay in &sizes.decays()[(turn + n) % 3..][..1] {
                let op = sizes
                    .op()
                    .reach(reach)
                    .decay(decay.clone())
                    .features(FeatureMap::Sigmoid, FeatureMap::Softmax)
                    .normaliser(normaliser(guard));
                let cosine = Similarity::Cosine { length: 70 };
                // Keys that overflow, rising and falling.
                let safe = Normaliser {
                    safe: true,
                    ..normaliser(guard)
                };
                let large = op
                    .clone()
                    .features(FeatureMap::Softmax, exp)
                    .normaliser(safe);
                for op in [op.clone(), op.similarity(cosine), large] {
                    if !is_op(&op) {
                        continue;
                    }
                    let mut case = Case::new(op);
                    if case.op.feature_k == exp {
                        for (at, x) in case.of(Slot::K).iter_mut().enumerate() {
                            *x = 0.25 * *x + 100.0 - 0.5 * (at as f32 / 280.0 - 1.0).abs();
                        }
                    }
                    cases.push(case);
                }
            }
        }
    }
    assert!(cases.len() > 40);
    all_close(&cases);
}

#[test]
fn lengths_bonuses_and_packed_sequences() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(75, [8, 8]).heads(4, [2, 1, 2]);
    let packed = Sizes { batch: 1, ..sizes };
    // Of no token, of one, long and short; the last tokens belong to none.
    let cu = [0, 0, 1, 40, 40, 57, 70];
    let count = Layout::new(DType::U32, [cu.len() as u64]);
    for reach in REACHES {
        for number in 0..3 {
            let op = |sizes: &Sizes| {
                let decay = sizes.decays()[number].clone();
                sizes.op().reach(reach).decay(decay)
            };
            if is_op(&op(&sizes)) {
                cases.push(Case::new(op(&sizes)).lens(&[0, 1, 37, 1000]));
                let op = op(&packed).features(FeatureMap::Relu, FeatureMap::Sigmoid);
                let op = op
                    .normaliser(normaliser(Guard::AtLeast))
                    .packed(count.clone());
                cases.push(Case::new(op).packed(&cu));
            }
        }
    }
    let bonus = |sizes: &Sizes| {
        let op = sizes.op().reach(Reach::Before).bonus(Layout::f32([2, 8]));
        op.features(FeatureMap::Sigmoid, FeatureMap::Silu)
    };
    cases.push(Case::new(bonus(&sizes)).lens(&[0, 1, 37, 1000]));
    cases.push(Case::new(bonus(&packed).packed(count)).packed(&cu));
    let twice = Sizes { seq: 40, ..sizes };
    let mut op = twice.op().updates_per_token(2);
    op.q.shape[2] = 20;
    op.o.shape[2] = 20;
    op.decay = Decay::Token(Layout::f32([4, 2, 20]));
    cases.push(Case::new(op.clone()).lens(&[0, 1, 17, 1000]));
    op.decay = sizes.head_decay();
    cases.push(Case::new(op));
    let mut more = sizes.op().reach(Reach::All);
    more.k = Layout::f32([4, 1, 100, 8]);
    more.v = Layout::f32([4, 2, 100, 8]);
    cases.push(Case::new(more));
    all_close(&cases);
}

/// `[batch, seq, heads, dim]`, rows apart and further into the buffer.
fn moved(_: Slot, old: &Layout) -> Layout {
    let layout = match old.shape[..] {
        [b, h, s, d] => Layout::new(old.dtype, [b, s, h, d + 3]).transposed(1, 2),
        _ => old.clone(),
    };
    let strides = layout.strides;
    old.clone().with_strides(strides).at(5)
}

/// A device whose loops, or bindings, end early.
fn narrowed(gpu: &Gpu, loops: u32, bytes: u64) -> Gpu {
    let mut caps = gpu.engine().caps().clone();
    caps.loop_budget = loops;
    caps.max_binding_bytes = bytes;
    let mut narrow = gpu.clone();
    *narrow.engine_mut() = gpu.engine().clone().with_caps(caps);
    narrow
}

#[test]
fn dispatches_that_hand_sums_on() {
    let sizes = Sizes::new(99, [8, 9]).heads(2, [2, 1, 2]);
    let mut cases = vec![
        Case::new(sizes.op().reach(Reach::Before).bonus(Layout::f32([2, 8]))),
        Case::new(sizes.op().decay(sizes.head_decay())),
    ];
    for reach in REACHES {
        let op = sizes
            .op()
            .reach(reach)
            .features(FeatureMap::Sigmoid, FeatureMap::Sigmoid)
            .normalised(0.1);
        cases.push(Case::new(op.clone()).lens(&[0, 77]));
        let decayed = op.decay(sizes.token_decay());
        if is_op(&decayed) {
            cases.push(Case::new(decayed));
        }
        let exp = FeatureMap::Exp { factor: Real(1.0) };
        let safe = sizes.op().features(FeatureMap::Softmax, exp).reach(reach);
        cases.push(Case::new(safe.normaliser(Normaliser {
            safe: true,
            ..normaliser(Guard::Add)
        })));
        cases.push(Case::new(
            sizes
                .op()
                .reach(reach)
                .local(Local::new(90, LocalWeights::Softmax)),
        ));
    }
    for gpu in gpus() {
        let loops = narrowed(gpu, 280, gpu.engine().caps().max_binding_bytes);
        let bytes = narrowed(gpu, 65_535, 6000);
        for case in &cases {
            for (narrow, least) in [(&loops, 2), (&bytes, 4)] {
                let op = Op::from(case.op.clone());
                let plan = narrow.engine().plan_with(&op, &PAIRS).expect("plans");
                let steps = plan.outline().steps.len();
                assert!(steps >= least, "{steps} of {least}: {op:?}");
                let case = case.clone().laid_out(moved);
                case.close_with(narrow, &PAIRS, &name(gpu), F32);
            }
        }
    }
}

/// More keys than a loop on the worst driver may count, each with a say.
#[test]
fn long_sequences() {
    let seq = 20_000;
    let mut op = LinearAttention::new(
        Layout::f32([1, 1, 1, 4]),
        Layout::f32([1, 1, seq, 4]),
        Layout::f32([1, 1, seq, 160]),
    );
    op.reach = Reach::All;
    let mut case = Case::new(op.similarity(Similarity::Square).normalised(1e-6));
    case.of(Slot::V).iter_mut().for_each(|x| *x += 1.0);
    for gpu in gpus() {
        let plan = gpu.engine().plan(&case.op.clone().into()).expect("plans");
        let scratch = plan.outline().scratch_bytes;
        assert!(scratch > 0, "one dispatch took all keys");
        case.close(gpu, &name(gpu), F32);
    }
}

#[test]
fn groups() {
    let mut cases = Vec::new();
    let sizes = Sizes::new(75, [8, 12]).heads(3, [4, 1, 2]);
    let packed = Sizes { batch: 1, ..sizes };
    let cu = [0, 0, 1, 40, 40, 57, 70];
    let count = Layout::new(DType::U32, [cu.len() as u64]);
    for weights in WEIGHTS {
        for tokens in [1, 7, 32, 50, 1000] {
            for reach in [Reach::Causal, Reach::All, Reach::BeforeBucket { tokens }] {
                let local = Local::new(tokens, weights).mix(0.5, 1.5);
                let op = sizes.op().reach(reach).local(local.clone());
                cases.push(Case::new(op.clone()).lens(&[0, 33, 1000]));
                let own = |heads| Layout::f32([3, heads, 75, 21]);
                let heads = if tokens == 7 { 1 } else { 4 };
                let bias = Layout::f32([heads, tokens, tokens]);
                let rich = local.clone().own(own(4), own(1)).bias(bias).scale(0.4);
                if tokens < 1000 {
                    cases.push(Case::new(op.local(rich)));
                }
                let op = packed.op().reach(reach).local(local).packed(count.clone());
                cases.push(Case::new(op).packed(&cu));
            }
        }
    }
    // Large scores overflow no exponential.
    let local = Local::new(40, LocalWeights::Softmax).scale(300.0);
    cases.push(Case::new(sizes.op().local(local)));
    all_close(&cases);
    let moved: Vec<Case> = (cases.into_iter().step_by(5))
        .map(|case| case.laid_out(moved))
        .collect();
    all_close(&moved);
}

#[test]
fn half_precision() {
    let mut ran = 0;
    for gpu in gpus() {
        if !gpu.engine().caps().f16 {
            say(format_args!("skipped: {} has no f16", name(gpu)));
            continue;
        }
        let sizes = Sizes::new(45, [12, 10]).heads(2, [2, 1, 2]);
        for decay in &sizes.decays()[..3] {
            let half = |_: Slot, layout: &Layout| Layout::f16(layout.shape.clone());
            let mut op = sizes.op().similarity(Similarity::Taylor).normalised(0.1);
            op.decay = decay.clone();
            let f32_decay = Case::new(op).laid_out(|slot, layout| match slot {
                Slot::Decay => layout.clone(),
                _ => half(slot, layout),
            });
            f32_decay.close_with(gpu, &PAIRS, &name(gpu), F16);
            if matches!(decay, Decay::Token(_)) {
                f32_decay
                    .laid_out(half)
                    .close_with(gpu, &PAIRS, &name(gpu), F16);
            }
        }
        let mut op = sizes.op();
        for layout in [&mut op.q, &mut op.k, &mut op.v, &mut op.o] {
            layout.dtype = DType::F16;
        }
        let own = |heads| Layout::f16([2, heads, 45, 9]);
        let local = Local::new(20, LocalWeights::Softmax).own(own(2), own(1));
        let op = op.local(local.bias(Layout::f32([2, 20, 20])));
        Case::new(op).close_with(gpu, &PAIRS, &name(gpu), F16);
        ran += 1;
    }
    assert!(ran > 0, "no adapter with f16");
}

/// What is not finite in one sequence changes no other.
#[test]
fn what_is_not_finite_stays_in_its_sequence() {
    let sizes = Sizes::new(20, [8, 8]);
    let op = sizes.op().packed(Layout::new(DType::U32, [3]));
    let local = Local::new(4, LocalWeights::Softmax);
    for op in [op.clone(), op.local(local)] {
        let case = Case::new(op).packed(&[0, 9, 20]);
        for slot in [Slot::Q, Slot::K, Slot::V] {
            let mut spoilt = case.clone();
            spoilt.of(slot)[9 * 8] = f32::NAN;
            for gpu in gpus() {
                let clean = case.run_with(gpu, &PAIRS).expect("runs").o;
                let o = spoilt.run_with(gpu, &PAIRS).expect("runs").o;
                assert_eq!(o[..9 * 8], clean[..9 * 8], "{}: {slot:?}", name(gpu));
                assert!(
                    o[9 * 8..].iter().any(|x| x.is_nan()),
                    "{}: {slot:?}",
                    name(gpu)
                );
            }
        }
    }
}

#[test]
fn named_errors() {
    let fails = |op: LinearAttention, tuning: &Tuning| -> Error {
        Outline::new(&op.into(), &Caps::minimum(), tuning).expect_err("refused")
    };
    let says = |error: &Error, words: &[&str]| {
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{text} lacks {word}");
        }
    };
    let sizes = Sizes::new(8, [4, 4]);
    let unsupported = [
        (sizes.op().with_final_state(), "state"),
        (sizes.op().decay(sizes.key_decay()), "decay per channel"),
        (sizes.op().decay(sizes.value_decay()), "decay per channel"),
        (sizes.op().rule(sizes.delta(false)), "rule"),
        (
            sizes
                .op()
                .similarity(Similarity::Cosine { length: 1 << 40 }),
            "length of at most",
        ),
    ];
    for (op, word) in unsupported {
        let error = fails(op, &PAIRS);
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        says(&error, &[word]);
    }
    let walk = Tuning {
        schedule: Some(Schedule::Subgroup),
        ..PAIRS
    };
    let square = sizes.op().similarity(Similarity::Square);
    assert!(matches!(
        fails(square.clone(), &walk),
        Error::Unsupported { .. }
    ));
    let decode = Tuning {
        schedule: Some(Schedule::Decode),
        ..PAIRS
    };
    says(
        &fails(square.clone(), &decode),
        &["tuning.schedule", "quadratic"],
    );
    let caps = Caps {
        loop_budget: 40,
        ..Caps::minimum()
    };
    let error = Outline::new(&square.clone().into(), &caps, &PAIRS).expect_err("refused");
    says(&error, &["loop 40 times", "measure"]);
    let caps = Caps {
        workgroup_bytes: 8 << 10,
        ..Caps::minimum()
    };
    let error = Outline::new(&square.into(), &caps, &PAIRS).expect_err("refused");
    says(&error, &["bytes of workgroup memory"]);

    let local = |local: Local| fails(sizes.op().local(local), &PAIRS);
    let softmax = |tokens| Local::new(tokens, LocalWeights::Softmax);
    says(&local(softmax(0)), &["local.tokens", "at least one"]);
    let narrow = Local {
        q: Some(Layout::f32([1, 1, 8, 3])),
        ..softmax(2)
    };
    says(&local(narrow), &["local.q", "one width"]);
    let own = Layout::f32([1, 1, 7, 3]);
    says(
        &local(softmax(2).own(own.clone(), own)),
        &["local_q", "agree"],
    );
    let wide = Layout::f32([1, 1, 8, 300]);
    says(
        &local(softmax(2).own(wide.clone(), wide)),
        &["local.q", "256"],
    );
    says(&local(softmax(2).bias(Layout::f32([1, 3, 3]))), &["bias"]);
    says(
        &local(softmax(2).mix(1.0, f32::NAN)),
        &["local.scale", "finite"],
    );
    let mut more = sizes.op().reach(Reach::All);
    more.k.shape[2] = 9;
    more.v.shape[2] = 9;
    says(&fails(more.local(softmax(2)), &PAIRS), &["as many keys"]);

    let factors = LinearAttention::log_normal_factors(1.0, 0.5, (0.15, -0.35));
    assert!(factors.is_ok_and(|[a, b]| a > 0.0 && (b - 2.0 * a).abs() < 1e-6));
    says(
        &LinearAttention::log_normal_factors(0.0, 1.0, (0.15, -0.35)).expect_err("refused"),
        &["deviation_q"],
    );
    assert_eq!(sizes.op().rule, UpdateRule::Linear);
}
