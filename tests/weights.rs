//! Attention's scores and weights on every adapter, against the f64 reference.

mod common;

use common::{Blocks, Heads, Problem, SENTINEL, Terms, gpus, name, place, say, untouched_around};
use foveate::{
    Attention, AttentionArgs, Caps, Causal, Corner, DType, Gpu, Layout, Mod, Stage, Statistic,
    Tensor, Tuning, Weights, Window,
    reference::{self, AttentionInputs, Matrix, noise},
};

const F32: f64 = 1e-5;
const F16: f64 = 2e-3;

/// What the tests add to a problem in WGSL, and the same for the reference.
struct Change {
    source: &'static str,
    score: Option<fn(f64, [usize; 4]) -> f64>,
    visible: Option<fn([usize; 4]) -> bool>,
    prob: Option<fn(f64, [usize; 4]) -> f64>,
}

const PLAIN: Change = Change {
    source: "",
    score: None,
    visible: None,
    prob: None,
};

impl Change {
    fn on<'a>(&'a self, a: &AttentionInputs<'a>) -> AttentionInputs<'a> {
        let score = self
            .score
            .as_ref()
            .map(|f| f as &dyn Fn(f64, [usize; 4]) -> f64);
        let visible = self
            .visible
            .as_ref()
            .map(|f| f as &dyn Fn([usize; 4]) -> bool);
        let prob = self
            .prob
            .as_ref()
            .map(|f| f as &dyn Fn(f64, [usize; 4]) -> f64);
        AttentionInputs {
            score,
            visible,
            prob,
            ..a.clone()
        }
    }
}

/// What came out, and what should have.
struct Outcome {
    out: Vec<f32>,
    keys: Vec<u32>,
    want: Vec<f64>,
    /// The weights of all rows.
    weights: Matrix,
}

/// Runs a statistic on the log-sum-exp of the reference, into outputs with gaps.
fn outcome(
    gpu: &Gpu,
    problem: &Problem,
    statistic: &Statistic,
    change: &Change,
    half: bool,
) -> Outcome {
    let ([q, k, v], mask, bias) = problem.random();
    let (mask, bias) = (mask.as_ref(), bias.as_ref());
    let (lse, (want, _), weights) = problem.with_inputs((&q, &k, &v), mask, bias, |a| {
        let a = change.on(a);
        (
            reference::attention(&a).lse,
            reference::weights(&a, statistic),
            Matrix::of(&a, Stage::Weights),
        )
    });
    let lse: Vec<u8> = lse.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
    let (out, keys) = problem
        .with_op(gpu, (&q, &k, &v), mask, bias, |mut op, args, [_, sums]| {
            gpu.write(sums, &lse)?;
            if !change.source.is_empty() {
                op = op.modified(Mod::new(change.source));
            }
            run(gpu, op, args, statistic, half)
        })
        .unwrap_or_else(|error| panic!("{}: {statistic:?}: {error}", name(gpu)));
    Outcome {
        out,
        keys,
        want,
        weights,
    }
}

/// Layers of one set of keys add up: the first writes, the others add.
#[test]
fn mass_over_layers() {
    for gpu in gpus() {
        let few = smaller(gpu, |caps| caps.loop_budget = 60);
        for gpu in [gpu, &few] {
            let mut want = vec![0.0; 2 * 4 * 29];
            let mut out: Option<Tensor> = None;
            for q_len in [37, 5, 16] {
                let problem = Problem::new([2, 4, 2], [q_len, 29], 8);
                let ([q, k, v], ..) = problem.random();
                let (lse, (mass, _)) = problem.with_inputs((&q, &k, &v), None, None, |a| {
                    let lse = reference::attention(a).lse;
                    (lse, reference::weights(a, &Statistic::Mass))
                });
                for (sum, mass) in want.iter_mut().zip(mass) {
                    *sum += mass;
                }
                let lse: Vec<u8> = lse.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
                let sum = problem.with_op(gpu, (&q, &k, &v), None, None, |op, args, [_, sums]| {
                    gpu.write(sums, &lse)?;
                    let mut op = Weights::new(op, Statistic::Mass);
                    op.out = with_gaps(&op.out);
                    let sum = match out.take() {
                        None => place(gpu, op.out.clone(), &[])?,
                        Some(sum) => {
                            op = op.accumulate();
                            sum
                        }
                    };
                    let args = op.args(args, sum.view(), None);
                    gpu.compute(&op.into(), args)?;
                    Ok(sum)
                });
                out = Some(sum.unwrap_or_else(|error| panic!("{}: {error}", name(gpu))));
            }
            let out = out.expect("ran");
            untouched_around(gpu, &out).expect("reads back");
            let error = reference::error(&gpu.download(&out).expect("reads back"), &want);
            assert!(error <= F32, "{}: {error:e}", name(gpu));
        }
    }
    let op = Attention::new(
        Layout::f32([1, 1, 2, 4]),
        Layout::f32([1, 1, 3, 4]),
        Layout::f32([1, 1, 3, 4]),
    );
    let op = Weights::new(op.with_lse(), Statistic::Entropy).accumulate();
    let error = foveate::Op::from(op).check().expect_err("adds up masses");
    assert!(error.to_string().starts_with("accumulate: "), "{error}");
}

/// Rows of a contiguous layout with a gap after each, from an odd place on.
fn with_gaps(layout: &Layout) -> Layout {
    let mut wide = layout.shape.clone();
    if let Some(last) = wide.last_mut() {
        *last += 3;
    }
    let strides = Layout::new(layout.dtype, wide).strides;
    Layout::new(layout.dtype, layout.shape.clone())
        .with_strides(strides)
        .at(5)
}

fn run(
    gpu: &Gpu,
    op: Attention,
    args: AttentionArgs<'_>,
    statistic: &Statistic,
    half: bool,
) -> foveate::Result<(Vec<f32>, Vec<u32>)> {
    let mut op = Weights::new(op, statistic.clone());
    op.out = with_gaps(&op.out);
    if half {
        op.out.dtype = DType::F16;
    }
    op.keys = op.keys.as_ref().map(with_gaps);
    let out = place(gpu, op.out.clone(), &[])?;
    let keys = match &op.keys {
        Some(keys) => Some(place(gpu, keys.clone(), &[])?),
        None => None,
    };
    let args = op.args(args, out.view(), keys.as_ref().map(Tensor::view));
    gpu.compute(&op.into(), args)?;
    untouched_around(gpu, &out)?;
    let keys = match keys {
        Some(keys) => {
            let as_f32 = Layout {
                dtype: DType::F32,
                ..keys.layout().clone()
            };
            untouched_around(gpu, &keys.with_layout(as_f32))?;
            gpu.download_u32(&keys)?
        }
        None => Vec::new(),
    };
    Ok((gpu.download(&out)?, keys))
}

fn check(gpu: &Gpu, problem: &Problem, statistic: &Statistic, change: &Change) {
    check_in(gpu, problem, statistic, change, false);
}

fn check_in(gpu: &Gpu, problem: &Problem, statistic: &Statistic, change: &Change, half: bool) {
    let label = || {
        format!(
            "{}: {statistic:?} of {problem:?} {}",
            name(gpu),
            change.source
        )
    };
    let Outcome {
        out,
        keys,
        want,
        weights,
    } = outcome(gpu, problem, statistic, change, half);
    let most = if half || problem.dtype == DType::F16 {
        F16
    } else {
        F32
    };
    let error = reference::error(&out, &want);
    // A large weight among many small ones is rounded more than they are.
    let finite = || want.iter().filter(|x| x.is_finite());
    let squares: f64 = finite().map(|x| x * x).sum();
    let rms = (squares / finite().count().max(1) as f64).sqrt();
    let largest = finite().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let limit = most.max(most / 4.0 * largest / rms.max(1e-30));
    assert!(error <= limit, "{error:e} {}", label());
    assert_eq!(keys.is_empty(), !statistic.has_keys());
    let count = keys.len() / weights.rows.len();
    for (row, keys) in keys.chunks(count.max(1)).enumerate() {
        let visible = weights.visible[row]
            .iter()
            .filter(|visible| **visible)
            .count();
        for (place, &key) in keys.iter().enumerate() {
            if place >= visible {
                assert_eq!(key, u32::MAX, "place {place} of row {row} {}", label());
                assert_eq!(out[row * count + place], 0.0);
                continue;
            }
            // Near ties may change places; each key is a visible one, once, and has the weight it is said to have.
            assert!(
                weights.visible[row][key as usize],
                "key {key} of row {row} {}",
                label()
            );
            assert!(
                !keys[..place].contains(&key),
                "key {key} twice in row {row} {}",
                label()
            );
            let apart =
                (weights.rows[row][key as usize] - f64::from(out[row * count + place])).abs();
            assert!(
                apart <= most,
                "key {key} of row {row}: {apart:e} {}",
                label()
            );
        }
    }
}

/// Every statistic.
fn statistics(problem: &Problem) -> Vec<Statistic> {
    let (heads, rows) = (0..problem.q_heads as u64, 0..problem.q_len as u64);
    let mut list = vec![
        Statistic::Entropy,
        Statistic::LargestWeight,
        Statistic::LargestScore,
        Statistic::Mass,
        Statistic::Top { count: 5 },
    ];
    list.extend(
        [Stage::Scaled, Stage::Capped, Stage::Final, Stage::Weights].map(|stage| {
            Statistic::Matrix {
                stage,
                heads: heads.clone(),
                rows: rows.clone(),
            }
        }),
    );
    list
}

fn all(problem: &Problem, change: &Change) {
    for gpu in gpus() {
        for statistic in statistics(problem) {
            check(gpu, problem, &statistic, change);
        }
    }
}

fn with(heads: [usize; 3], lengths: [usize; 2], dim: usize, terms: Terms) -> Problem {
    let mut problem = Problem::new(heads, lengths, dim);
    problem.value_dim = 1;
    problem.terms = terms;
    problem
}

#[test]
fn odd_shapes() {
    for (heads, lengths, dim) in [
        ([1, 1, 1], [1, 1], 1),
        ([2, 3, 1], [5, 7], 3),
        ([1, 4, 2], [9, 63], 8),
        ([2, 2, 2], [3, 65], 5),
        ([1, 1, 1], [2, 200], 256),
        ([1, 2, 1], [70, 9], 17),
    ] {
        all(&with(heads, lengths, dim, Terms::default()), &PLAIN);
    }
}

#[test]
fn causal_windows_and_lengths() {
    for causal in [Causal::None, Causal::TopLeft, Causal::BottomRight] {
        let mut problem = with([2, 4, 2], [9, 70], 8, Terms::default());
        problem.causal = causal;
        problem.lens = Some(vec![70, 5]);
        all(&problem, &PLAIN);
    }
    let corner = Corner::BottomRight;
    let mut problem = with(
        [2, 2, 1],
        [12, 150],
        8,
        Terms {
            window: Some(Window {
                left: Some(20),
                right: Some(2),
                first: 3,
                corner,
            }),
            q_lens: Some(vec![12, 7]),
            prefix: Some(vec![4, 0]),
            ..Terms::default()
        },
    );
    all(&problem, &PLAIN);
    problem.terms.window = None;
    problem.causal = Causal::BottomRight;
    problem.terms.head_windows = Some(vec![[5, 2], [u32::MAX, 0]]);
    all(&problem, &PLAIN);
}

#[test]
fn masks_biases_sinks_and_caps() {
    let mut problem = with([2, 4, 2], [6, 90], 8, Terms::default());
    problem.mask = Some([2, 1, 6, 90]);
    problem.bias = Some([1, 4, 6, 90]);
    problem.bshd = Some(3);
    all(&problem, &PLAIN);
    problem.terms.sinks = Some(vec![0.5, -1.0, 30.0, 2.0]);
    problem.terms.softcap = Some(1.5);
    problem.scale = Some(0.9);
    all(&problem, &PLAIN);
}

#[test]
fn block_masks() {
    for (block_q, block_kv, causal) in [
        (4, 16, Causal::None),
        (3, 7, Causal::BottomRight),
        (1, 1, Causal::TopLeft),
    ] {
        let mut problem = with(
            [2, 2, 1],
            [10, 140],
            8,
            Terms {
                blocks: Some(Blocks {
                    block_q,
                    block_kv,
                    per_batch: true,
                    heads: if block_q == 3 {
                        Heads::Query
                    } else {
                        Heads::Shared
                    },
                }),
                ..Terms::default()
            },
        );
        problem.causal = causal;
        all(&problem, &PLAIN);
    }
}

/// A mask of a row for every query, and blocks of keys that begin there.
fn chunks(starts: Vec<u32>) -> Terms {
    Terms {
        blocks: Some(Blocks {
            block_q: 1,
            block_kv: 0,
            per_batch: false,
            heads: Heads::Query,
        }),
        block_starts: Some(starts),
        ..Terms::default()
    }
}

#[test]
fn block_masks_of_chunks() {
    for starts in [
        vec![0u32, 3, 3, 10, 50, 51, 60, 140],
        (0..=45).map(|n| 5 + n * 3 - n % 2).collect(),
    ] {
        let mut problem = with([2, 2, 1], [10, 140], 8, chunks(starts));
        problem.causal = Causal::BottomRight;
        all(&problem, &PLAIN);
    }
}

#[test]
fn packed_sequences() {
    let packed = [vec![0, 3, 3, 10, 14], vec![0, 70, 75, 75, 100]];
    let mut problem = with(
        [1, 4, 2],
        [16, 110],
        8,
        Terms {
            packed: Some(packed),
            ..Terms::default()
        },
    );
    all(&problem, &PLAIN);
    problem.causal = Causal::BottomRight;
    problem.terms.window = Some(Window {
        left: Some(9),
        first: 2,
        ..Window::default()
    });
    all(&problem, &PLAIN);
}

#[test]
fn mods() {
    let change = Change {
        source:
            "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
            return 0.5 * score - 0.25 * f32(kv_index % 3u) + 0.125 * f32(head);
        }
        fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {
            return (q_index + kv_index + batch) % 5u != 0u;
        }
        fn prob_mod(weight: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
            return weight * f32(kv_index % 4u) - 0.001 * f32(head);
        }",
        score: Some(|score, [_, h, _, j]| 0.5 * score - 0.25 * (j % 3) as f64 + 0.125 * h as f64),
        visible: Some(|[b, _, i, j]| (i + j + b) % 5 != 0),
        prob: Some(|weight, [_, h, _, j]| weight * (j % 4) as f64 - 0.001 * h as f64),
    };
    let mut problem = with([2, 4, 2], [7, 80], 8, Terms::default());
    problem.causal = Causal::BottomRight;
    all(&problem, &change);
    problem.terms.sinks = Some(vec![0.5, -1.0, 3.0, 2.0]);
    problem.lens = Some(vec![66, 0]);
    all(&problem, &change);
}

#[test]
fn ranges_of_the_matrix() {
    let mut problem = with([2, 6, 2], [9, 40], 8, Terms::default());
    problem.causal = Causal::TopLeft;
    for (heads, rows) in [
        (0..1, 0..9),
        (1..5, 3..8),
        (2..4, 8..9),
        (1..6, 0..1),
        (3..6, 2..3),
    ] {
        for stage in [Stage::Final, Stage::Weights] {
            let statistic = Statistic::Matrix {
                stage,
                heads: heads.clone(),
                rows: rows.clone(),
            };
            for gpu in gpus() {
                check(gpu, &problem, &statistic, &PLAIN);
            }
        }
    }
}

#[test]
fn half_precision_storage() {
    let mut ran = 0;
    for gpu in gpus() {
        if !gpu.engine().caps().f16 {
            say(format_args!("skipped: {} has no f16", name(gpu)));
            continue;
        }
        let mut problem = with([2, 4, 2], [7, 70], 12, Terms::default());
        problem.causal = Causal::BottomRight;
        problem.dtype = DType::F16;
        problem.bias = Some([1, 1, 7, 70]);
        for statistic in statistics(&problem) {
            check(gpu, &problem, &statistic, &PLAIN);
            if matches!(statistic, Statistic::Matrix { .. }) {
                check_in(gpu, &problem, &statistic, &PLAIN, true);
            }
        }
        ran += 1;
    }
    say(format_args!(
        "f16 ran on {ran} of {} adapters",
        gpus().len()
    ));
}

/// The same device with less of everything.
fn smaller(gpu: &Gpu, change: impl FnOnce(&mut Caps)) -> Gpu {
    let mut caps = gpu.engine().caps().clone();
    change(&mut caps);
    let mut small = gpu.clone();
    *small.engine_mut() = gpu.engine().clone().with_caps(caps);
    small
}

#[test]
fn slices_budgets_and_folded_grids_change_nothing() {
    for gpu in gpus() {
        let bindings = smaller(gpu, |caps| {
            caps.max_binding_bytes = 2048;
            caps.max_workgroups = 5;
        });
        let budget = smaller(gpu, |caps| caps.loop_budget = 400);
        let both = smaller(gpu, |caps| {
            caps.max_binding_bytes = 4096;
            caps.loop_budget = 500;
        });
        for small in [&bindings, &budget, &both] {
            let mut problem = with([2, 4, 2], [21, 300], 8, Terms::default());
            problem.causal = Causal::BottomRight;
            problem.mask = Some([1, 1, 21, 300]);
            problem.terms.sinks = Some(vec![0.5, -1.0, 3.0, 2.0]);
            for statistic in statistics(&problem) {
                check(small, &problem, &statistic, &PLAIN);
            }
            problem.terms.blocks = Some(Blocks {
                block_q: 2,
                block_kv: 5,
                per_batch: false,
                heads: Heads::Query,
            });
            problem.terms.window = Some(Window {
                left: Some(100),
                first: 20,
                ..Window::default()
            });
            problem.terms.sinks = None;
            for statistic in statistics(&problem) {
                check(small, &problem, &statistic, &PLAIN);
            }
        }
    }
}

/// More keys, and more queries, than one loop nest may take.
#[test]
fn long_rows_and_columns() {
    for gpu in gpus() {
        let gpu = smaller(gpu, |caps| caps.loop_budget = caps.loop_budget.min(65_535));
        let rows = with([1, 1, 1], [1, 150_000], 128, Terms::default());
        for statistic in [
            Statistic::Entropy,
            Statistic::LargestWeight,
            Statistic::LargestScore,
        ] {
            check(&gpu, &rows, &statistic, &PLAIN);
        }
        // Thousands of short blocks, some of no keys.
        let pairs = chunks((0..=9000u32).map(|n| (n * 2).min(16_384)).collect());
        let blocks = with([1, 1, 1], [3, 16_384], 64, pairs.clone());
        let columns = with([1, 1, 1], [20_000, 300], 16, pairs);
        check(&gpu, &blocks, &Statistic::Entropy, &PLAIN);
        check(&gpu, &columns, &Statistic::Mass, &PLAIN);
        check(
            &gpu,
            &with([1, 1, 1], [1, 70_000], 4, Terms::default()),
            &Statistic::Top { count: 64 },
            &PLAIN,
        );
        check(
            &gpu,
            &with([1, 1, 1], [70_000, 3], 32, Terms::default()),
            &Statistic::Mass,
            &PLAIN,
        );
    }
}

/// What must hold between the statistics of one attention, with the log-sum-exp that attention itself wrote.
#[test]
fn statistics_agree() {
    let mut problem = with([2, 4, 2], [11, 90], 8, Terms::default());
    problem.causal = Causal::TopLeft;
    problem.value_dim = 8;
    let tuning = Tuning::QUICK_START;
    for gpu in gpus() {
        for sinks in [None, Some(vec![0.5, -1.0, 3.0, 2.0])] {
            problem.terms.sinks = sinks.clone();
            let ([q, k, v], ..) = problem.random();
            problem
                .with_op(gpu, (&q, &k, &v), None, None, |op, args, [_, lse]| {
                    let plan = gpu.engine().plan_with(&op.clone().into(), &tuning)?;
                    gpu.run(&plan.bind(args.clone())?)?;
                    let lse = gpu.download(lse)?;
                    let of = |statistic: Statistic| {
                        run(gpu, op.clone(), args.clone(), &statistic, false)
                    };
                    let (rows, _) = of(Statistic::Matrix {
                        stage: Stage::Weights,
                        heads: 0..4,
                        rows: 0..11,
                    })?;
                    let (largest, key) = of(Statistic::LargestWeight)?;
                    let (top, top_keys) = of(Statistic::Top { count: 64 })?;
                    let (first, first_keys) = of(Statistic::Top { count: 1 })?;
                    assert_eq!((&largest, &key), (&first, &first_keys));
                    let (mass, _) = of(Statistic::Mass)?;
                    for (number, row) in rows.chunks(90).enumerate() {
                        // All but what the sink takes.
                        let sink = sinks.as_ref().map_or(0.0, |sinks| {
                            f64::from(sinks[number / 11 % 4] - lse[number]).exp()
                        });
                        let sum: f64 = row.iter().map(|&w| f64::from(w)).sum();
                        assert!((sum + sink - 1.0).abs() < 1e-5, "{sum} and {sink}");
                        assert_eq!(largest[number], row.iter().copied().fold(0.0, f32::max));
                        assert_eq!(row[key[number] as usize], largest[number]);
                        let list = &top[number * 64..][..64];
                        let keys = &top_keys[number * 64..][..64];
                        assert_eq!((list[0], keys[0]), (largest[number], key[number]));
                        assert!(list.windows(2).all(|pair| pair[0] >= pair[1]));
                        // A causal row sees itself and what is before it.
                        let seen = number % 11 + 1;
                        for (place, (&w, &key)) in list.iter().zip(keys).enumerate() {
                            let want = if place < seen { row[key as usize] } else { 0.0 };
                            assert_eq!(w, want);
                            assert_eq!(key == u32::MAX, place >= seen);
                        }
                    }
                    if sinks.is_none() {
                        for head in mass.chunks(90) {
                            let sum: f32 = head.iter().sum();
                            assert!((sum - 11.0).abs() < 1e-4, "{sum} for 11 queries");
                        }
                    }
                    Ok(())
                })
                .unwrap_or_else(|error| panic!("{}: {error}", name(gpu)));
        }
    }
}

#[test]
fn ties_go_to_the_lowest_key() {
    for gpu in gpus() {
        let q = gpu.upload(&[0.0; 8], [1, 1, 1, 8]).expect("fits");
        let k = gpu
            .upload(&noise(1, 8 * 200), [1, 1, 200, 8])
            .expect("fits");
        let lse = gpu.upload(&[200f32.ln()], [1, 1, 1]).expect("fits");
        let op =
            Attention::new(q.layout().clone(), k.layout().clone(), k.layout().clone()).with_lse();
        let o = gpu.allocate(op.o.clone()).expect("fits");
        let mut args = AttentionArgs::new(q.view(), k.view(), k.view(), o.view());
        args.lse = Some(lse.view());
        for budget in [65_535, 160] {
            let small = smaller(gpu, |caps| caps.loop_budget = budget);
            let (w, keys) = run(
                &small,
                op.clone(),
                args.clone(),
                &Statistic::Top { count: 7 },
                false,
            )
            .expect("runs");
            assert_eq!(keys, [0, 1, 2, 3, 4, 5, 6], "{}", name(gpu));
            assert!(reference::error(&w, &[0.005; 7]) < F32);
            let (_, keys) = run(
                &small,
                op.clone(),
                args.clone(),
                &Statistic::LargestWeight,
                false,
            )
            .expect("runs");
            assert_eq!(keys, [0], "{}", name(gpu));
        }
    }
}

/// Rows that see nothing, of zeros and minus infinities; a sink alone is a largest score.
#[test]
fn empty_rows() {
    for gpu in gpus() {
        let mut problem = with([2, 2, 2], [3, 70], 8, Terms::default());
        problem.lens = Some(vec![0, 70]);
        for statistic in statistics(&problem) {
            check(gpu, &problem, &statistic, &PLAIN);
            let Outcome { out, keys, .. } = outcome(gpu, &problem, &statistic, &PLAIN, false);
            let empty = &out[..out.len() / 2];
            match statistic {
                Statistic::LargestScore
                | Statistic::Matrix {
                    stage: Stage::Final,
                    ..
                } => {
                    assert!(
                        empty.iter().all(|&x| x == f32::NEG_INFINITY),
                        "{}",
                        name(gpu)
                    );
                }
                Statistic::Matrix {
                    stage: Stage::Scaled | Stage::Capped,
                    ..
                } => {
                    assert!(empty.iter().all(|&x| x.is_finite() && x != SENTINEL));
                }
                _ => assert!(empty.iter().all(|&x| x == 0.0), "{}", name(gpu)),
            }
            assert!(keys[..keys.len() / 2].iter().all(|&key| key == u32::MAX));
        }
        problem.terms.sinks = Some(vec![0.5, -2.0]);
        let Outcome { out, .. } = outcome(gpu, &problem, &Statistic::LargestScore, &PLAIN, false);
        assert!(
            reference::error(&out[..6], &[0.5, 0.5, 0.5, -2.0, -2.0, -2.0]) < 1e-6,
            "{out:?}"
        );
    }
}

#[test]
fn with_tensors_of_ones_own() {
    let gpu = &gpus()[0];
    let q = gpu.upload(&[1.0, 0.0], [1, 1, 1, 2]).expect("fits");
    let k = gpu
        .upload(&[0.0, 5.0, 3f32.ln(), 7.0], [1, 1, 2, 2])
        .expect("fits");
    // Weights of 1/4 and 3/4.
    let (w, keys) = gpu
        .weights(&q, &k, Statistic::Top { count: 3 }, |op| op.scale(1.0))
        .expect("runs");
    let w = gpu.download(&w).expect("reads back");
    assert!(reference::error(&w, &[0.75, 0.25, 0.0]) < 1e-6, "{w:?}");
    let keys = gpu
        .download_u32(&keys.expect("it has some"))
        .expect("reads back");
    assert_eq!(keys, [1, 0, u32::MAX]);
    let mask = Layout::new(DType::Bool, [1, 1, 1, 2]);
    let error = gpu
        .weights(&q, &k, Statistic::Mass, |op| op.mask(mask))
        .expect_err("it has no tensor");
    assert!(
        error.to_string().starts_with("mask: has no tensor"),
        "{error}"
    );
}
