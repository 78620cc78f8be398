//! The terms of attention beyond masks and biases, on every adapter, against the f64 reference: windows,
//! lengths, packed sequences, sinks, soft cap, block masks.

mod common;

use common::{Blocks, CHEAP, DECODE, Heads, Lists, Problem, TILE, Terms, gpus, name, say};
use foveate::{
    Attention, AttentionArgs, BlockMask, Causal, Corner, DType, Engine, Gpu, Layout, NONE,
    Schedule, Tuning, Window,
    reference::{self, AttentionInputs},
};

const F32: f64 = 1e-5;
const F16: f64 = 2e-3;
const HUGE: u64 = u64::MAX;

/// Runs `check` for every schedule on every adapter that can run it; fails when none ran.
fn each(check: impl Fn(&Gpu, &Tuning, &str)) {
    let mut ran = 0;
    for gpu in gpus() {
        for tuning in [&CHEAP, &DECODE, &TILE] {
            let needs_subgroups = tuning.schedule != Some(Schedule::Tile);
            if needs_subgroups && gpu.engine().caps().fixed_subgroup().is_none() {
                say(format_args!(
                    "skipped: {} has no fixed subgroup size",
                    name(gpu)
                ));
                continue;
            }
            check(
                gpu,
                tuning,
                &format!("{}, {:?}", name(gpu), tuning.schedule),
            );
            ran += 1;
        }
    }
    assert!(ran > 0, "nothing ran");
}

/// Every problem in every schedule, also with its keys in three ranges.
fn all_close(problems: &[Problem]) {
    each(|gpu, tuning, label| {
        for problem in problems {
            for splits in [None, Some(3)] {
                let tuning = Tuning { splits, ..*tuning };
                close(problem, gpu, &tuning, label, F32);
            }
        }
    });
}

fn close(problem: &Problem, gpu: &Gpu, tuning: &Tuning, label: &str, most: f64) {
    let (o, lse) = problem
        .errors(gpu, tuning)
        .unwrap_or_else(|error| panic!("{label}: {problem:?}: {error}"));
    assert!(
        o <= most && lse <= F32,
        "{label}: o {o:e}, lse {lse:e}: {problem:?}"
    );
}

fn with(heads: [usize; 3], lengths: [usize; 2], causal: Causal, terms: Terms) -> Problem {
    Problem {
        causal,
        terms,
        ..Problem::new(heads, lengths, 8)
    }
}

fn window(left: Option<u64>, right: Option<u64>, first: u64, corner: Corner) -> Terms {
    Terms {
        window: Some(Window {
            left,
            right,
            first,
            corner,
        }),
        ..Terms::default()
    }
}

const CAUSALS: [Causal; 3] = [Causal::None, Causal::TopLeft, Causal::BottomRight];

/// Lengths beside tiles of every schedule: one, fewer, one more, several.
const LENGTHS: [[usize; 2]; 6] = [[1, 1], [1, 70], [33, 1], [31, 65], [65, 31], [37, 131]];

#[test]
fn windows() {
    let mut problems = Vec::new();
    for (number, lengths) in LENGTHS.into_iter().enumerate() {
        for causal in CAUSALS {
            for (left, right, first) in [
                (Some(0), Some(0), 0),
                (Some(5), None, 0),
                (None, Some(3), 0),
                (Some(40), Some(7), 3),
                (Some(2), Some(0), 35),
            ] {
                let corner = match causal {
                    Causal::BottomRight => Corner::BottomRight,
                    Causal::None if number % 2 == 1 => Corner::BottomRight,
                    _ => Corner::TopLeft,
                };
                let terms = window(left, right, first, corner);
                problems.push(with([1, 2, 1], lengths, causal, terms));
            }
        }
    }
    all_close(&problems);
}

/// The corner of causal masking is the window's where the window names none.
#[test]
fn windows_take_the_corner_of_causal_masking() {
    let terms = window(Some(4), None, 0, Corner::default());
    all_close(&[with([1, 1, 1], [9, 40], Causal::BottomRight, terms)]);
}

#[test]
fn windows_with_lengths_and_first_keys() {
    let mut problems = Vec::new();
    for causal in CAUSALS {
        for first in [0, 2, 90] {
            let corner = match causal {
                Causal::BottomRight => Corner::BottomRight,
                _ => Corner::TopLeft,
            };
            let mut problem = with(
                [3, 4, 2],
                [37, 90],
                causal,
                window(Some(6), None, first, corner),
            );
            // None at all, past the end, in between.
            problem.lens = Some(vec![0, 1000, 53]);
            problems.push(problem.clone());
            problem.terms.q_lens = Some(vec![37, 20, 5]);
            problems.push(problem);
        }
    }
    all_close(&problems);
}

/// The numbers, not only what is near them: a window over everything is no window.
#[test]
fn windows_over_everything_are_dense() {
    each(|gpu, tuning, label| {
        for causal in CAUSALS {
            let dense = Problem {
                causal,
                ..Problem::new([1, 2, 1], [21, 45], 8)
            };
            let corner = match causal {
                Causal::BottomRight => Corner::BottomRight,
                _ => Corner::TopLeft,
            };
            for size in [45, u64::from(u32::MAX), i32::MAX as u64, 1 << 31, HUGE] {
                for first in [0, HUGE] {
                    let windowed = Problem {
                        terms: window(Some(size), Some(size), first, corner),
                        ..dense.clone()
                    };
                    close(&windowed, gpu, tuning, label, F32);
                }
            }
        }
    });
}

#[test]
fn valid_queries() {
    let mut problems = Vec::new();
    for causal in CAUSALS {
        let terms = Terms {
            q_lens: Some(vec![0, 40, 1, u32::MAX]),
            ..Terms::default()
        };
        let mut problem = with([4, 2, 1], [40, 50], causal, terms);
        problems.push(problem.clone());
        problem.lens = Some(vec![50, 20, u32::MAX, 0]);
        problems.push(problem);
    }
    all_close(&problems);
}

#[test]
fn prefixes() {
    let mut problems = Vec::new();
    for causal in CAUSALS {
        for windowed in [false, true] {
            let corner = match causal {
                Causal::BottomRight => Corner::BottomRight,
                _ => Corner::TopLeft,
            };
            let mut terms = if windowed {
                window(Some(4), Some(2), 0, corner)
            } else {
                Terms::default()
            };
            terms.prefix = Some(vec![0, 17, u32::MAX]);
            let mut problem = with([3, 2, 2], [35, 66], causal, terms);
            problems.push(problem.clone());
            problem.lens = Some(vec![66, 9, 40]);
            problems.push(problem);
        }
    }
    all_close(&problems);
}

/// Heads that see everything, a few, the start, nothing; two share a KV head.
#[test]
fn windows_of_heads() {
    let mut problems = Vec::new();
    for causal in CAUSALS {
        for right in [None, Some(0), Some(5)] {
            let corner = match causal {
                Causal::BottomRight => Corner::BottomRight,
                _ => Corner::TopLeft,
            };
            let terms = Terms {
                head_windows: Some(vec![
                    [u32::MAX, 0],
                    [5, 3],
                    [0, 4],
                    [0, 0],
                    [1, u32::MAX],
                    [1 << 31, 0],
                ]),
                window: right.map(|right| Window {
                    right: Some(right),
                    corner,
                    ..Window::default()
                }),
                ..Terms::default()
            };
            let mut problem = with([2, 6, 3], [37, 70], causal, terms);
            problems.push(problem.clone());
            problem.lens = Some(vec![70, 31]);
            problems.push(problem);
        }
    }
    all_close(&problems);
}

/// Sequences of every sort: none, of one token, without keys, without queries, longer than a tile.
#[test]
fn packed_sequences() {
    let mut problems = Vec::new();
    for causal in CAUSALS {
        for windowed in [false, true] {
            let corner = match causal {
                Causal::BottomRight => Corner::BottomRight,
                _ => Corner::TopLeft,
            };
            for packed in [
                [vec![0, 0, 1, 8, 8, 45, 52], vec![0, 3, 4, 4, 20, 90, 97]],
                [vec![0, 52], vec![0, 97]],
                // The last queries and keys belong to no sequence.
                [vec![0, 20, 40], vec![0, 30, 80]],
                // Decoding: a query of each.
                [(0..=52).collect(), (0..=52).map(|n| n * 3 / 2).collect()],
            ] {
                let mut terms = if windowed {
                    window(Some(6), None, 2, corner)
                } else {
                    Terms::default()
                };
                terms.packed = Some(packed);
                problems.push(with([1, 4, 2], [52, 97], causal, terms));
            }
        }
    }
    all_close(&problems);
}

/// Nonsense gives some result: every output is written, and nothing outside of them.
#[test]
fn sequences_that_fall_or_overrun() {
    each(|gpu, tuning, label| {
        for packed in [
            [vec![0, 30, 10, 52], vec![0, 60, 20, 97]],
            [vec![0, 40, 1000], vec![0, 90, 5000]],
            [vec![0, u32::MAX, 7], vec![u32::MAX, 0, 1 << 31]],
            [vec![9, 9, 9], vec![200, 300, 400]],
        ] {
            for causal in CAUSALS {
                let terms = Terms {
                    packed: Some(packed.clone()),
                    ..Terms::default()
                };
                let problem = with([1, 2, 1], [52, 97], causal, terms);
                let [q, k, v] = [(1, 2 * 52), (2, 97), (3, 97)]
                    .map(|(seed, rows)| foveate::reference::noise(seed, rows * 8));
                // `run` looks for what was not written, and for what was written outside.
                let (o, lse) = problem
                    .run(gpu, tuning, (&q, &k, &v), None, None)
                    .unwrap_or_else(|error| panic!("{label}: {error}"));
                assert!(o.iter().all(|x| x.is_finite()), "{label}: {packed:?}");
                let written = |x: &f32| *x != common::SENTINEL && !x.is_nan();
                assert!(lse.iter().all(written), "{label}: {packed:?}");
            }
        }
    });
}

#[test]
fn sinks() {
    let mut problems = Vec::new();
    for causal in CAUSALS {
        let terms = Terms {
            sinks: Some(vec![0.5, -3.0, 60.0, -1e4]),
            ..Terms::default()
        };
        // More queries than keys: bottom-right leaves rows that see none; so does a length of 0.
        let mut problem = with([2, 4, 2], [40, 33], causal, terms);
        problems.push(problem.clone());
        problem.lens = Some(vec![0, 20]);
        problems.push(problem.clone());
        problem.terms.window = Some(Window {
            left: Some(3),
            ..Window::default()
        });
        problems.push(problem);
    }
    all_close(&problems);
}

#[test]
fn gates() {
    let mut problems = Vec::new();
    for gate in [[2, 4, 40], [1, 4, 1], [2, 1, 40], [1, 1, 1]] {
        let terms = Terms {
            gate: Some(gate),
            sinks: Some(vec![0.5, -3.0, 1.0, -1e4]),
            ..Terms::default()
        };
        let mut problem = with([2, 4, 2], [40, 33], Causal::BottomRight, terms);
        problem.bshd = Some(0);
        problems.push(problem);
    }
    all_close(&problems);
}

#[test]
fn soft_caps() {
    let mut problems = Vec::new();
    for (cap, scale) in [(0.5, None), (20.0, None), (2.0, Some(30.0)), (1e20, None)] {
        for biased in [false, true] {
            let terms = Terms {
                softcap: Some(cap),
                ..Terms::default()
            };
            let mut problem = with([1, 4, 2], [17, 66], Causal::BottomRight, terms);
            problem.scale = scale;
            problem.bias = biased.then_some([1, 4, 17, 66]);
            problems.push(problem);
        }
    }
    all_close(&problems);
}

#[test]
fn block_masks() {
    let mut problems = Vec::new();
    for (block_q, block_kv) in [(1, 1), (7, 3), (16, 32), (1000, 5), (5, HUGE), (33, 64)] {
        for (per_batch, heads) in [
            (false, Heads::Shared),
            (true, Heads::Shared),
            (true, Heads::Kv),
            (true, Heads::Query),
        ] {
            let terms = Terms {
                blocks: Some(Blocks {
                    block_q,
                    block_kv,
                    per_batch,
                    heads,
                }),
                ..Terms::default()
            };
            problems.push(with([2, 4, 2], [71, 139], Causal::None, terms.clone()));
            let mut problem = with([2, 4, 2], [37, 110], Causal::BottomRight, terms);
            problem.lens = Some(vec![110, 61]);
            problems.push(problem);
        }
    }
    all_close(&problems);
}

/// Blocks of keys of any length, some of none, with gaps between them, and more of them than a word has bits; also
/// in packed sequences, where they count from the start of the tensor.
#[test]
fn block_masks_of_chunks() {
    let chunks = [0u32, 3, 3, 10, 50, 51, 60, 139].to_vec();
    let many: Vec<u32> = (0..=45).map(|n| 5 + n * 3 - n % 2).collect();
    let mut problems = Vec::new();
    for starts in [chunks, many, vec![20, 90]] {
        for (block_q, heads) in [(1, Heads::Kv), (16, Heads::Shared), (33, Heads::Query)] {
            let terms = Terms {
                blocks: Some(Blocks {
                    block_q,
                    block_kv: 0,
                    per_batch: true,
                    heads,
                }),
                block_starts: Some(starts.clone()),
                ..Terms::default()
            };
            problems.push(with(
                [2, 4, 2],
                [71, 139],
                Causal::BottomRight,
                terms.clone(),
            ));
            let mut packed = with([1, 4, 2], [71, 139], Causal::BottomRight, terms);
            packed.terms.packed = Some([vec![0, 5, 40, 71], vec![0, 20, 61, 139]]);
            problems.push(packed);
        }
    }
    all_close(&problems);
}

/// Lists of one query and of several, of more rows than a tile and of fewer, alone and with all that hides keys
/// by their numbers.
#[test]
fn key_lists() {
    let mut problems = Vec::new();
    for (block_q, entries) in [(1, 1), (1, 13), (3, 40), (16, 33), (50, 7), (1000, 70)] {
        for (per_batch, heads) in [
            (false, Heads::Shared),
            (true, Heads::Kv),
            (true, Heads::Query),
        ] {
            let terms = Terms {
                lists: Some(Lists {
                    block_q,
                    entries,
                    per_batch,
                    heads,
                }),
                ..Terms::default()
            };
            problems.push(with([2, 6, 2], [37, 71], Causal::None, terms.clone()));
            let mut problem = with([2, 6, 2], [37, 71], Causal::BottomRight, terms);
            problem.lens = Some(vec![71, 49]);
            problem.mask = Some([2, 1, 37, 71]);
            problem.bias = Some([1, 6, 37, 71]);
            problem.terms.sinks = Some(vec![0.0, 1.0, -2.0, 3.0, 0.5, 0.1]);
            problem.terms.window = window(Some(30), None, 2, Corner::BottomRight).window;
            problems.push(problem);
        }
        // Numbers of keys are those of the whole tensor.
        let mut packed = with([1, 4, 2], [37, 71], Causal::BottomRight, Terms::default());
        packed.terms.packed = Some([vec![0, 5, 20, 37], vec![0, 30, 31, 70]]);
        packed.terms.lists = Some(Lists {
            block_q,
            entries,
            per_batch: false,
            heads: Heads::Kv,
        });
        problems.push(packed);
    }
    all_close(&problems);
}

/// Lists of keys in ranges, and in tensors that take several slices.
#[test]
fn key_lists_in_parts() {
    each(|gpu, tuning, label| {
        for (block_q, heads) in [(1, Heads::Kv), (1, Heads::Query), (4, Heads::Shared)] {
            let terms = Terms {
                lists: Some(Lists {
                    block_q,
                    entries: 90,
                    per_batch: true,
                    heads,
                }),
                ..Terms::default()
            };
            let problem = with([2, 4, 2], [23, 300], Causal::BottomRight, terms);
            let split = Tuning {
                splits: Some(5),
                ..*tuning
            };
            close(&problem, gpu, &split, label, F32);
            let mut caps = gpu.engine().caps().clone();
            caps.max_binding_bytes = 4096;
            let engine = gpu.engine().clone().with_caps(caps);
            let ([q, k, v], ..) = problem.random();
            let tensors = (q.as_slice(), k.as_slice(), v.as_slice());
            let want = problem.reference(tensors, None, None);
            let [o, lse] = problem
                .with_op(gpu, tensors, None, None, |op, args, [o, lse]| {
                    let plan = engine.plan_with(&op.into(), tuning)?;
                    assert!(plan.outline().steps.len() > 4, "{label}: it is in slices");
                    gpu.run(&plan.bind(args)?)?;
                    Ok([gpu.download(o)?, gpu.download(lse)?])
                })
                .unwrap_or_else(|error| panic!("{label}: {error}"));
            let errors = [
                reference::error(&o, &want.o),
                reference::error(&lse, &want.lse),
            ];
            assert!(
                errors.iter().all(|&e| e <= F32),
                "{label}, {block_q}: {errors:?}"
            );
        }
    });
}

/// What an index may not be, each with its remedy.
#[test]
fn indices_that_fit_nothing() {
    let caps = foveate::Caps::minimum();
    let q = Layout::f32([2, 4, 10, 8]);
    let kv = Layout::f32([2, 2, 20, 8]);
    let op = Attention::new(q, kv.clone(), kv);
    let numbers = |shape: [u64; 4]| Layout::new(DType::U32, shape);
    let error = |op: Attention| {
        let outline = foveate::plan::Outline::new(&op.into(), &caps, &Tuning::default());
        outline.expect_err("it is wrong").to_string()
    };
    for (index, block_q, want) in [
        (numbers([2, 4, 5, 3]), 0, "give a block_q of at least 1"),
        (numbers([2, 4, 10, 3]), 2, "[2, 4, 5, 3] is expected"),
        (numbers([2, 3, 5, 3]), 2, "the second 1 or kv_heads"),
        (numbers([3, 4, 5, 3]), 2, "[2, 4, 5, 3] is expected"),
        (Layout::f32([2, 4, 5, 3]), 2, "give u32"),
    ] {
        let found = error(op.clone().key_index(index.clone(), block_q));
        assert!(found.contains(want), "{index:?}: {found}");
    }
    let both = op
        .clone()
        .key_index(numbers([2, 4, 5, 3]), 2)
        .block_mask(BlockMask {
            bits: numbers([1, 1, 5, 1]),
            block_q: 2,
            block_kv: 2,
        });
    let found = error(both);
    assert!(
        found.contains("leave the keys that blocks hide out of the lists"),
        "{found}"
    );
    let found = error(op.clone().block_starts(Layout::new(DType::U32, [6])));
    assert!(
        found.contains("give the mask whose blocks begin there"),
        "{found}"
    );
    let three = op.block_mask(BlockMask {
        bits: numbers([1, 3, 5, 1]),
        block_q: 2,
        block_kv: 2,
    });
    assert!(error(three).contains("[2, 4, 5, 1] is expected"));
}

/// Everything that goes together, with masks and biases, in f32 and f16, and in strided tensors.
#[test]
fn all_at_once() {
    each(|gpu, tuning, label| {
        if name(gpu).contains("SwiftShader") {
            say(format_args!(
                "skipped: {} binds 10 buffers at most, and takes minutes to compile fewer of these terms",
                name(gpu)
            ));
            return;
        }
        let mut problem = with(
            [2, 4, 2],
            [37, 90],
            Causal::BottomRight,
            Terms {
                q_lens: Some(vec![30, 37]),
                prefix: Some(vec![3, 40]),
                sinks: Some(vec![0.0, 1.0, -2.0, 3.0]),
                softcap: Some(2.0),
                blocks: Some(Blocks {
                    block_q: 9,
                    block_kv: 10,
                    per_batch: false,
                    heads: Heads::Query,
                }),
                ..window(Some(20), Some(1), 2, Corner::BottomRight)
            },
        );
        problem.lens = Some(vec![90, 51]);
        problem.mask = Some([1, 4, 37, 90]);
        problem.bias = Some([2, 1, 37, 90]);
        problem.bshd = Some(3);
        for splits in [None, Some(4)] {
            close(&problem, gpu, &Tuning { splits, ..*tuning }, label, F32);
        }
        problem.terms.window = None;
        problem.terms.head_windows = Some(vec![[4, 1], [u32::MAX, 0], [9, 0], [30, 3]]);
        close(&problem, gpu, tuning, label, F32);
        if gpu.engine().caps().f16 {
            problem.dtype = DType::F16;
            close(&problem, gpu, tuning, label, F16);
        }
    });
}

/// Halves, and dims that fill no vector.
#[test]
fn halves_and_odd_dims() {
    each(|gpu, tuning, label| {
        if !gpu.engine().caps().f16 {
            say(format_args!("skipped: {} has no f16", name(gpu)));
            return;
        }
        let mut windowed = with(
            [1, 2, 1],
            [37, 70],
            Causal::TopLeft,
            window(Some(9), None, 2, Corner::TopLeft),
        );
        windowed.terms.sinks = Some(vec![0.5, 1.5]);
        let packed = Terms {
            packed: Some([vec![0, 5, 20, 37], vec![0, 30, 31, 70]]),
            softcap: Some(3.0),
            ..Terms::default()
        };
        let packed = with([1, 2, 1], [37, 70], Causal::BottomRight, packed);
        for mut problem in [windowed, packed] {
            problem.dtype = DType::F16;
            (problem.head_dim, problem.value_dim) = (5, 11);
            close(&problem, gpu, tuning, label, F16);
        }
    });
}

/// With keys of zero and one-hot values the output is the weights: a mask error is not off by little.
#[test]
fn probes_see_what_the_reference_sees() {
    let (m, n) = (37, 70);
    let of = |causal, terms| with([1, 4, 2], [m, n], causal, terms);
    let br = Corner::BottomRight;
    let problems = [
        of(Causal::None, window(Some(5), Some(2), 3, Corner::TopLeft)),
        of(Causal::None, window(Some(5), Some(2), 3, br)),
        of(Causal::BottomRight, window(Some(11), None, 1, br)),
        of(
            Causal::TopLeft,
            Terms {
                head_windows: Some(vec![[1, 0], [4, 2], [0, 1], [u32::MAX, 0]]),
                ..Terms::default()
            },
        ),
        of(
            Causal::BottomRight,
            Terms {
                packed: Some([vec![0, 1, 9, 9, 37], vec![0, 5, 5, 20, 61]]),
                ..window(Some(7), None, 2, br)
            },
        ),
        of(
            Causal::TopLeft,
            Terms {
                prefix: Some(vec![13]),
                q_lens: Some(vec![31]),
                ..window(Some(3), None, 0, Corner::TopLeft)
            },
        ),
        of(
            Causal::None,
            Terms {
                blocks: Some(Blocks {
                    block_q: 5,
                    block_kv: 3,
                    per_batch: false,
                    heads: Heads::Query,
                }),
                ..Terms::default()
            },
        ),
    ];
    each(|gpu, tuning, label| {
        for problem in &problems {
            let mut problem = problem.clone();
            problem.value_dim = n;
            let q = vec![1.0; 4 * m * 8];
            let k = vec![0.0; 2 * n * 8];
            let v: Vec<f32> = (0..2 * n * n)
                .map(|at| if at / n % n == at % n { 1.0 } else { 0.0 })
                .collect();
            let tensors = (q.as_slice(), k.as_slice(), v.as_slice());
            let (o, _) = problem
                .run(gpu, tuning, tensors, None, None)
                .unwrap_or_else(|error| panic!("{label}: {error}"));
            let expected = problem.reference(tensors, None, None).o;
            for (at, (&x, &want)) in o.iter().zip(&expected).enumerate() {
                let right = if want == 0.0 {
                    x == 0.0
                } else {
                    (f64::from(x) / want - 1.0).abs() < 1e-6
                };
                assert!(
                    right,
                    "{label}: weight {at} is {x}, not {want}: {problem:?}"
                );
            }
        }
    });
}

/// What is hidden by lengths, windows and sequences is not read, so it may be anything.
#[test]
fn keys_of_no_sequence_cannot_poison() {
    each(|gpu, tuning, label| {
        let terms = Terms {
            packed: Some([vec![0, 3, 5], vec![0, 13, 22]]),
            ..Terms::default()
        };
        let problem = with([1, 2, 1], [5, 40], Causal::None, terms);
        let [q, mut k, mut v] = [(1, 2 * 5), (2, 40), (3, 40)]
            .map(|(seed, rows)| foveate::reference::noise(seed, rows * 8));
        let clean = problem
            .run(gpu, tuning, (&q, &k, &v), None, None)
            .unwrap_or_else(|error| panic!("{label}: {error}"));
        for (row, (k, v)) in k.chunks_mut(8).zip(v.chunks_mut(8)).enumerate() {
            if row >= 22 {
                k.fill(f32::NAN);
                v.fill(f32::INFINITY);
            }
        }
        let dirty = problem
            .run(gpu, tuning, (&q, &k, &v), None, None)
            .expect("runs");
        assert_eq!(clean, dirty, "{label}");
    });
}

/// Slices of the tensors and folded grids keep places where they are.
#[test]
fn slices_change_nothing() {
    use foveate::Caps;
    each(|gpu, tuning, label| {
        let windowed = with(
            [2, 4, 2],
            [37, 131],
            Causal::BottomRight,
            Terms {
                sinks: Some(vec![0.5, -1.0, 2.0, 0.0]),
                q_lens: Some(vec![30, 37]),
                prefix: Some(vec![70, 2]),
                ..window(Some(17), None, 3, Corner::BottomRight)
            },
        );
        let heads = with(
            [1, 4, 2],
            [37, 131],
            Causal::TopLeft,
            Terms {
                head_windows: Some(vec![[3, 1], [u32::MAX, 0], [9, 2], [1, 5]]),
                blocks: Some(Blocks {
                    block_q: 7,
                    block_kv: 3,
                    per_batch: false,
                    heads: Heads::Query,
                }),
                ..Terms::default()
            },
        );
        let packed = with(
            [1, 4, 2],
            [37, 131],
            Causal::BottomRight,
            Terms {
                packed: Some([vec![0, 5, 20, 37], vec![0, 30, 31, 131]]),
                softcap: Some(3.0),
                ..Terms::default()
            },
        );
        let caps = gpu.engine().caps().clone();
        let small = [
            Caps {
                max_binding_bytes: 4096,
                ..caps.clone()
            },
            Caps {
                max_workgroups: 13,
                ..caps.clone()
            },
            Caps {
                loop_budget: 2000,
                ..caps
            },
        ];
        for caps in small {
            let mut small = gpu.clone();
            *small.engine_mut() = gpu.engine().clone().with_caps(caps);
            for problem in [&windowed, &heads, &packed] {
                close(problem, &small, tuning, label, F32);
            }
        }
    });
}

/// The plan's own choice of schedule and tile, with its default ranges of keys.
#[test]
fn default_tuning() {
    for gpu in gpus() {
        if name(gpu).contains("SwiftShader") {
            say(format_args!(
                "skipped: {} takes minutes and gigabytes to compile default tiles with windows",
                name(gpu)
            ));
            continue;
        }
        for (lengths, terms) in [
            (
                [1, 300],
                Terms {
                    sinks: Some(vec![0.5, 1.5]),
                    ..window(Some(99), None, 4, Corner::BottomRight)
                },
            ),
            (
                [70, 300],
                Terms {
                    head_windows: Some(vec![[20, 4], [u32::MAX, 0]]),
                    ..Terms::default()
                },
            ),
        ] {
            let problem = with([1, 2, 1], lengths, Causal::BottomRight, terms);
            close(&problem, gpu, &Tuning::default(), &name(gpu), F32);
        }
    }
}

/// Decoding: one plan and one bound call serve every length of a cache, which only the device knows.
#[test]
fn one_call_serves_every_length() {
    let (heads, rows, cache, dim) = (2usize, 3usize, 700usize, 8usize);
    each(|gpu, tuning, label| {
        let new = Layout::f32([1, heads, rows, dim].map(|len| len as u64));
        let whole = Layout::f32([1, heads, cache, dim].map(|len| len as u64));
        let op = Attention::new(new.clone(), whole.clone(), whole.clone())
            .causal(Causal::BottomRight)
            .kv_len(Layout::new(DType::U32, [1]));
        let data = [(1, rows), (2, cache), (3, cache)]
            .map(|(seed, len)| reference::noise(seed, heads * len * dim));
        let wide = data
            .each_ref()
            .map(|data| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let upload =
            |data: &[f32], layout: &Layout| gpu.upload(data, layout.shape.clone()).unwrap();
        let (q, k, v) = (
            upload(&data[0], &new),
            upload(&data[1], &whole),
            upload(&data[2], &whole),
        );
        let o = gpu.allocate(new).unwrap();
        let length = gpu.upload_u32(&[0], [1]).unwrap();
        let tuning = Tuning {
            splits: Some(3),
            ..*tuning
        };
        // An engine of its own, so that its counters are not those of other tests.
        let engine = Engine::new(gpu.device());
        let plan = engine.plan_with(&op.clone().into(), &tuning).unwrap();
        assert!(plan.outline().splits >= 3);
        let args = AttentionArgs {
            kv_len: Some(length.view()),
            ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
        };
        let call = plan.bind(args).unwrap();
        let before = engine.counters();
        // None, one, less than a range, ranges that share what is valid, all, and past the end.
        for filled in [0usize, 1, 5, 129, 300, 384, 500, 700, 1000] {
            gpu.write(&length, bytemuck::bytes_of(&(filled as u32)))
                .unwrap();
            gpu.run(&call).unwrap();
            let expected = reference::attention(&AttentionInputs {
                lens: Some(&[filled]),
                ..AttentionInputs::of(&op, &wide[0], &wide[1], &wide[2])
            });
            let got = gpu.download(&o).unwrap();
            let error = reference::error(&got, &expected.o);
            let zeros = got.iter().all(|&x| x == 0.0);
            assert!(
                if filled == 0 { zeros } else { error <= F32 },
                "{label}, {filled} keys: {error:e}"
            );
        }
        let after = engine.counters();
        assert_eq!(
            (before.misses, before.buffers, before.bind_groups),
            (after.misses, after.buffers, after.bind_groups)
        );
    });
}

/// What no query of a tile sees is not read: NaN there does not reach the output.
#[test]
fn hidden_tiles_are_never_read() {
    let (rows, keys, dim) = (5usize, 600usize, 8usize);
    // Keys that some query sees: by a window with first keys, and by blocks of 100.
    let windowed = Window {
        left: Some(20),
        first: 3,
        ..Window::default()
    };
    let words = [0b01_0010u32];
    let [bits] = words;
    // A list with unused places between, and a key that is past the valid ones.
    let list = [77u32, NONE, 3, 500, NONE];
    each(|gpu, tuning, label| {
        for (blocks, lists) in [(false, false), (true, false), (false, true)] {
            let layout = |len: usize| Layout::f32([1, 1, len, dim].map(|len| len as u64));
            let mut op = Attention::new(layout(rows), layout(keys), layout(keys));
            if blocks {
                op = op.block_mask(BlockMask {
                    bits: Layout::new(DType::U32, [1, 1, 1, 1]),
                    block_q: 16,
                    block_kv: 100,
                });
            } else if lists {
                op.kv_len = Some(Layout::new(DType::U32, [1]));
                op = op.key_index(Layout::new(DType::U32, [1, 1, 1, 5]), 16);
            } else {
                op = op.causal(Causal::BottomRight).window(windowed);
            }
            let seen = |key: usize| {
                if blocks {
                    bits >> (key / 100) & 1 == 1
                } else if lists {
                    key == 3 || key == 77
                } else {
                    key < 3 || key + 20 >= keys - rows
                }
            };
            let q = reference::noise(1, rows * dim);
            let [k, v] = [2, 3].map(|seed| reference::noise(seed, keys * dim));
            let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let mask = op.block_mask.clone();
            let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
            let expected = reference::attention(&AttentionInputs {
                blocks: mask.as_ref().map(|mask| (mask, &words[..])),
                lists: op.key_index.as_ref().map(|lists| (lists, &list[..])),
                lens: lists.then_some(&[450][..]),
                ..AttentionInputs::of(&op, &q64, &k64, &v64)
            });
            let poisoned = |data: Vec<f32>| -> Vec<f32> {
                let places = data.iter().enumerate();
                places
                    .map(|(n, &x)| if seen(n / dim) { x } else { f32::NAN })
                    .collect()
            };
            let upload = |data: &[f32], len| gpu.upload(data, layout(len).shape).unwrap();
            let (q, o) = (upload(&q, rows), gpu.allocate(layout(rows)).unwrap());
            let (k, v) = (upload(&poisoned(k), keys), upload(&poisoned(v), keys));
            let tensor = gpu.upload_u32(&words, [1, 1, 1, 1]).unwrap();
            let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
            args.blocks = blocks.then(|| tensor.view());
            let tensor = gpu.upload_u32(&list, [1, 1, 1, 5]).unwrap();
            args.index = lists.then(|| tensor.view());
            let tensor = gpu.upload_u32(&[450], [1]).unwrap();
            args.kv_len = lists.then(|| tensor.view());
            let plan = gpu.engine().plan_with(&op.into(), tuning).unwrap();
            gpu.run(&plan.bind(args).unwrap()).unwrap();
            let error = reference::error(&gpu.download(&o).unwrap(), &expected.o);
            assert!(
                error <= F32,
                "{label}, blocks {blocks}, lists {lists}: {error:e}"
            );
        }
    });
}

/// Keys that each row sees, counted: with q and k of 0 the sum of exponentials is their number. Ranges as long as
/// the loop budget allows count as short ones do.
#[test]
fn long_ranges_lose_no_key() {
    let sequences = |lens: &[(u32, u32)]| {
        let mut starts = [vec![0], vec![0]];
        for &(queries, keys) in lens {
            for (list, len) in starts.iter_mut().zip([queries, keys]) {
                list.push(list.last().unwrap() + len);
            }
        }
        Terms {
            packed: Some(starts),
            ..Terms::default()
        }
    };
    let problem = |heads, lengths, dim, terms| Problem {
        terms,
        ..Problem::new(heads, lengths, dim)
    };
    let subgroup = (Schedule::Subgroup, Some(4), Some(2));
    let decode = (Schedule::Decode, Some(1), None);
    let tile = (Schedule::Tile, None, None);
    // A tile that holds rows of two sequences visits what lies between their windows.
    let mut between = sequences(&[(16, 1_000_000), (16, 16)]);
    between.window = Some(Window {
        left: Some(4),
        right: Some(4),
        ..Window::default()
    });
    // Small blocks, of rows that lie in many heads.
    let blocks = Terms {
        blocks: Some(Blocks {
            block_q: 2,
            block_kv: 4,
            per_batch: false,
            heads: Heads::Query,
        }),
        ..Terms::default()
    };
    // Blocks between the first keys and the window are visited too.
    let blocks_between = Terms {
        blocks: Some(Blocks {
            block_q: 64,
            block_kv: 64,
            per_batch: false,
            heads: Heads::Shared,
        }),
        window: Some(Window {
            left: Some(256),
            right: Some(0),
            first: 4,
            corner: Corner::BottomRight,
        }),
        ..Terms::default()
    };
    // Two long runs.
    let early = Terms {
        window: Some(Window {
            left: Some(560_000 - 2400),
            right: Some(0),
            first: 2304,
            corner: Corner::BottomRight,
        }),
        ..Terms::default()
    };
    // A search among many sequences for every row.
    let mut many = vec![(0, 0); 999];
    many.push((32, 299_000));
    let plain = || Terms::default();
    for gpu in gpus() {
        if gpu.engine().caps().fixed_subgroup().is_none() {
            say(format_args!(
                "skipped: {} has no fixed subgroup size",
                name(gpu)
            ));
            continue;
        }
        for (label, problem, schedules) in [
            (
                "sequences with a window",
                problem([1, 1, 1], [32, 1_000_016], 4, between.clone()),
                vec![subgroup],
            ),
            (
                "blocks",
                problem([1, 11, 1], [3, 16_384], 4, blocks.clone()),
                vec![subgroup, tile],
            ),
            (
                "blocks, first keys and a window",
                problem([1, 1, 1], [128, 100_000], 64, blocks_between.clone()),
                vec![tile],
            ),
            (
                "first keys",
                problem([1, 1, 1], [1, 560_000], 8, early.clone()),
                vec![decode],
            ),
            (
                "many sequences",
                problem([1, 1, 1], [32, 299_000], 4, sequences(&many)),
                vec![subgroup],
            ),
            (
                "all",
                problem([1, 1, 1], [3, 700_000], 4, plain()),
                vec![subgroup, decode, tile],
            ),
        ] {
            let q = vec![0.0; problem.q_heads * problem.q_len * problem.head_dim];
            let k = vec![0.0; problem.kv_heads * problem.kv_len * problem.head_dim];
            let v = vec![1.0; problem.kv_heads * problem.kv_len * problem.value_dim];
            for (schedule, rows, keys) in schedules {
                let seen = |splits| -> Vec<f64> {
                    let tuning = Tuning {
                        schedule: Some(schedule),
                        rows,
                        keys,
                        splits: Some(splits),
                    };
                    let (_, lse) = problem
                        .run(gpu, &tuning, (&q, &k, &v), None, None)
                        .unwrap_or_else(|error| panic!("{label}: {error}"));
                    lse.iter().map(|&x| f64::from(x).exp()).collect()
                };
                let (long, short) = (seen(1), seen(64));
                assert!(
                    short.iter().any(|&count| count > 0.5),
                    "{label}: nothing is seen"
                );
                for (row, (long, short)) in long.iter().zip(&short).enumerate() {
                    // f32 logarithms of a million are good to a key in a million.
                    assert!(
                        (long - short).abs() <= 1e-5 * short,
                        "{label}, {schedule}, row {row}: {long} keys in few ranges, {short} in many"
                    );
                }
            }
        }
    }
}

/// Rows of a mask that begin at words, whose bytes are loaded together; and rows that do not.
#[test]
fn masks_in_words() {
    let mut problems = Vec::new();
    for keys in [64, 68, 131] {
        for shape in [[1, 1, 37, keys], [2, 4, 37, keys], [1, 4, 1, keys]] {
            let mut problem = with([2, 4, 2], [37, keys], Causal::None, Terms::default());
            problem.mask = Some(shape);
            problems.push(problem.clone());
            problem.causal = Causal::BottomRight;
            problem.lens = Some(vec![keys as u32 - 3, 21]);
            problems.push(problem);
        }
    }
    all_close(&problems);
    let four = Tuning {
        keys: Some(4),
        ..CHEAP
    };
    for gpu in gpus() {
        if gpu.engine().caps().fixed_subgroup().is_some() {
            for problem in &problems {
                close(problem, gpu, &four, &name(gpu), F32);
            }
        }
    }
}
