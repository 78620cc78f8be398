//! Attention on every adapter, against the f64 reference.

mod common;

use std::{cell::RefCell, collections::BTreeSet};

use common::{CHEAP, DECODE, Problem, TILE, gpus, name, say, with_emulated_matrices};
use foveate::{
    Attention, Caps, Causal, DType, Gpu, Layout, Schedule, Tuning, kernels::Kernel, plan::Outline,
    reference::noise,
};

/// On emulated matrices, where the device has none of its own.
const MATRIX: Tuning = Tuning {
    schedule: Some(Schedule::Matrix),
    rows: None,
    keys: None,
    splits: None,
};

const F32: f64 = 1e-5;
const F16: f64 = 2e-3;

/// Runs `check` for every schedule on every adapter that can run it; fails when none ran.
fn each(check: impl Fn(&Gpu, &Tuning, &str)) {
    let mut ran = 0;
    for gpu in gpus() {
        let emulated = with_emulated_matrices(gpu, 8, false);
        let all = [
            (gpu, &CHEAP),
            (gpu, &DECODE),
            (gpu, &TILE),
            (&emulated, &MATRIX),
        ];
        for (gpu, tuning) in all {
            if let Some(reason) = why_not(gpu, tuning) {
                say(format_args!("skipped: {} {reason}", name(gpu)));
                continue;
            }
            let label = format!("{}, {:?}", name(gpu), tuning.schedule);
            check(gpu, tuning, &label);
            ran += 1;
        }
    }
    assert!(ran > 0, "nothing ran");
}

/// Why an adapter is not tested with a schedule.
fn why_not(gpu: &Gpu, tuning: &Tuning) -> Option<&'static str> {
    if tuning.schedule == Some(Schedule::Tile) {
        None
    } else if gpu.engine().caps().fixed_subgroup().is_none() {
        Some("has no fixed subgroup size")
    } else if tuning.schedule == Some(Schedule::Matrix) && name(gpu).contains("SwiftShader") {
        Some("takes minutes and gigabytes to compile emulated matrices")
    } else {
        None
    }
}

fn close(problem: &Problem, gpu: &Gpu, tuning: &Tuning, label: &str, most: f64) {
    let (o, lse) = problem
        .errors(gpu, tuning)
        .unwrap_or_else(|error| panic!("{label}: {problem:?}: {error}"));
    assert!(
        o <= most && lse <= most,
        "{label}: o {o:e}, lse {lse:e}: {problem:?}"
    );
}

#[test]
fn hostile_lengths() {
    each(|gpu, tuning, label| {
        for (m, n) in [
            (1, 1),
            (1, 2),
            (7, 31),
            (8, 32),
            (9, 33),
            (32, 64),
            (33, 65),
            (67, 1),
            (1, 129),
            (31, 257),
        ] {
            let problem = Problem::new([1, 2, 2], [m, n], 16);
            close(&problem, gpu, tuning, label, F32);
        }
    });
}

#[test]
fn hostile_head_dims() {
    each(|gpu, tuning, label| {
        for (head_dim, value_dim) in [
            (1, 1),
            (5, 3),
            (8, 40),
            (40, 5),
            (33, 64),
            (64, 33),
            (80, 16),
            (128, 65),
            (256, 256),
            (255, 129),
        ] {
            let mut problem = Problem::new([1, 2, 1], [9, 19], head_dim);
            problem.value_dim = value_dim;
            close(&problem, gpu, tuning, label, F32);
        }
    });
}

#[test]
fn causal_and_lengths() {
    each(|gpu, tuning, label| {
        for causal in [Causal::None, Causal::TopLeft, Causal::BottomRight] {
            for (m, n) in [(33, 33), (19, 67), (67, 19), (1, 40)] {
                for lens in [None, Some(vec![0, 17]), Some(vec![5, 1_000_000])] {
                    let mut problem = Problem::new([2, 4, 2], [m, n], 8);
                    problem.causal = causal;
                    problem.lens = lens;
                    close(&problem, gpu, tuning, label, F32);
                }
            }
        }
    });
}

#[test]
fn grouped_heads() {
    each(|gpu, tuning, label| {
        for heads in [[1, 6, 1], [2, 6, 2], [1, 6, 3], [2, 3, 3]] {
            for m in [1, 5, 37] {
                let mut problem = Problem::new(heads, [m, 45], 8);
                problem.causal = Causal::BottomRight;
                close(&problem, gpu, tuning, label, F32);
            }
        }
    });
}

#[test]
fn masks_and_biases_of_every_broadcast() {
    each(|gpu, tuning, label| {
        let full = [2, 4, 11, 21];
        for shape in [
            full,
            [1, 1, 11, 21],
            [2, 1, 1, 21],
            [1, 4, 11, 1],
            [1, 1, 1, 1],
        ] {
            let mut problem = Problem::new([2, 4, 2], [11, 21], 8);
            problem.mask = Some(shape);
            close(&problem, gpu, tuning, label, F32);
            problem.mask = None;
            problem.bias = Some(shape);
            close(&problem, gpu, tuning, label, F32);
        }
        let mut problem = Problem::new([2, 4, 2], [11, 21], 8);
        problem.mask = Some(full);
        problem.bias = Some([1, 4, 11, 21]);
        problem.lens = Some(vec![21, 13]);
        problem.causal = Causal::BottomRight;
        problem.scale = Some(-0.7);
        close(&problem, gpu, tuning, label, F32);
    });
}

#[test]
fn strided_and_shifted_views() {
    each(|gpu, tuning, label| {
        // A shift of 4 keeps loads of four; 3 does not.
        for pad in [0, 3, 4] {
            let mut problem = Problem::new([2, 4, 2], [13, 29], 8);
            problem.bshd = Some(pad);
            problem.causal = Causal::TopLeft;
            close(&problem, gpu, tuning, label, F32);
        }
    });
}

#[test]
fn half_precision_storage() {
    let mut ran = 0;
    for gpu in gpus() {
        if !gpu.engine().caps().f16 {
            say(format_args!("skipped: {} has no f16", name(gpu)));
            continue;
        }
        let emulated = [16, 8].map(|side| with_emulated_matrices(gpu, side, true));
        let [large, small] = &emulated;
        for (gpu, tuning) in [(gpu, CHEAP), (gpu, TILE), (large, MATRIX), (small, MATRIX)] {
            if why_not(gpu, &tuning).is_some() {
                continue;
            }
            for (dim, pad) in [(16, None), (5, None), (16, Some(1))] {
                let mut problem = Problem::new([1, 4, 2], [9, 33], dim);
                problem.dtype = DType::F16;
                problem.bshd = pad;
                problem.bias = Some([1, 4, 9, 33]);
                let label = format!("{}, {:?}", name(gpu), tuning.schedule);
                let (o, lse) = problem.errors(gpu, &tuning).expect("runs");
                // lse is f32, and computed from exactly the inputs.
                assert!(
                    o <= F16 && lse <= F32,
                    "{label}: o {o:e}, lse {lse:e}: {problem:?}"
                );
            }
        }
        ran += 1;
    }
    say(format_args!(
        "f16 ran on {ran} of {} adapters",
        gpus().len()
    ));
}

/// With keys of zero and one-hot values the output is the attention weights: hidden keys must have
/// exactly none, and the others equal parts.
#[test]
fn weights_are_exact() {
    each(|gpu, tuning, label| {
        let (m, n) = (23, 41);
        for causal in [Causal::None, Causal::TopLeft, Causal::BottomRight] {
            let mut problem = Problem::new([2, 1, 1], [m, n], 4);
            problem.value_dim = n;
            problem.causal = causal;
            problem.lens = Some(vec![30, 41]);
            let q = vec![1.0; 2 * m * 4];
            let k = vec![0.0; 2 * n * 4];
            let v: Vec<f32> = (0..2 * n * n)
                .map(|at| if at / n % n == at % n { 1.0 } else { 0.0 })
                .collect();
            let mask: Vec<bool> = (0..m * n).map(|at| at % 3 != 1).collect();
            let mask = ([1, 1, m, n], mask);
            let tensors = (q.as_slice(), k.as_slice(), v.as_slice());
            let (o, _) = problem
                .run(gpu, tuning, tensors, Some(&mask), None)
                .expect("runs");
            let expected = problem.reference(tensors, Some(&mask), None).o;
            for (at, (&x, &want)) in o.iter().zip(&expected).enumerate() {
                let right = if want == 0.0 {
                    x == 0.0
                } else {
                    (f64::from(x) / want - 1.0).abs() < 1e-6
                };
                assert!(right, "{label}: {causal:?}: weight {at} is {x}, not {want}");
            }
        }
    });
}

#[test]
fn what_is_hidden_cannot_poison() {
    each(|gpu, tuning, label| {
        let mut problem = Problem::new([2, 2, 2], [5, 40], 8);
        problem.lens = Some(vec![13, 22]);
        let q = foveate::reference::noise(1, 2 * 2 * 5 * 8);
        let mut k = foveate::reference::noise(2, 2 * 2 * 40 * 8);
        let mut v = foveate::reference::noise(3, 2 * 2 * 40 * 8);
        let clean = problem
            .run(gpu, tuning, (&q, &k, &v), None, None)
            .expect("runs");
        // Past each length: what a cache that was never written may hold.
        for (row, (k, v)) in k.chunks_mut(8).zip(v.chunks_mut(8)).enumerate() {
            if row % 40 >= [13, 22][row / 80] {
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

#[test]
fn splits_slices_and_folded_grids_change_nothing() {
    each(|gpu, tuning, label| {
        let mut problem = Problem::new([2, 4, 2], [37, 131], 8);
        problem.causal = Causal::BottomRight;
        problem.lens = Some(vec![131, 77]);
        problem.mask = Some([1, 4, 37, 131]);
        for splits in [1, 2, 3, 50] {
            let tuning = Tuning {
                splits: Some(splits),
                ..*tuning
            };
            close(&problem, gpu, &tuning, label, F32);
        }
        let caps = gpu.engine().caps().clone();
        for (what, caps) in [
            (
                "bindings of 4 KiB",
                Caps {
                    max_binding_bytes: 4096,
                    ..caps.clone()
                },
            ),
            (
                "few workgroups per axis",
                Caps {
                    // A workgroup of the decode schedule has few rows.
                    max_workgroups: if tuning.schedule == Some(Schedule::Decode) {
                        13
                    } else {
                        9
                    },
                    ..caps.clone()
                },
            ),
            (
                "a loop budget of 600",
                Caps {
                    loop_budget: 600,
                    ..caps
                },
            ),
        ] {
            let mut small = gpu.clone();
            *small.engine_mut() = gpu.engine().clone().with_caps(caps);
            close(&problem, &small, tuning, &format!("{label}, {what}"), F32);
        }
    });
}

#[test]
fn the_order_of_keys_does_not_matter() {
    each(|gpu, tuning, label| {
        let problem = Problem::new([1, 1, 1], [9, 50], 8);
        let q = foveate::reference::noise(1, 9 * 8);
        let k = foveate::reference::noise(2, 50 * 8);
        let v = foveate::reference::noise(3, 50 * 8);
        let reversed = |data: &[f32]| data.chunks(8).rev().flatten().copied().collect::<Vec<_>>();
        let (o, _) = problem
            .run(gpu, tuning, (&q, &k, &v), None, None)
            .expect("runs");
        let turned = (q.as_slice(), &reversed(&k)[..], &reversed(&v)[..]);
        let (p, _) = problem.run(gpu, tuning, turned, None, None).expect("runs");
        let wide: Vec<f64> = o.iter().map(|&x| x.into()).collect();
        let error = foveate::reference::error(&p, &wide);
        assert!(error <= 2e-6, "{label}: {error:e}");
    });
}

/// Each variant that the plan itself chooses, once: rows and keys at their defaults.
#[test]
fn variants_that_ship() {
    for gpu in gpus() {
        let software = gpu.info().backend == wgpu::Backend::Gl || name(gpu).contains("SwiftShader");
        for dim in [8, 64, 128, 256] {
            if software && dim > 64 {
                say(format_args!(
                    "skipped: dim {dim} on {}, which compiles slowly",
                    name(gpu)
                ));
                continue;
            }
            let mut problem = Problem::new([1, 2, 1], [40, 70], dim);
            problem.causal = Causal::TopLeft;
            close(&problem, gpu, &Tuning::default(), &name(gpu), F32);
        }
    }
}

/// What the project promises of f32 at 1,024 keys, where rounding has had time to add up; causal rows
/// near the start are large beside the RMS.
#[test]
fn a_thousand_keys_within_1e_5() {
    for gpu in gpus() {
        for (heads, dim) in [([1, 4, 2], 64), ([1, 4, 1], 128)] {
            let mut problem = Problem::new(heads, [1024, 1024], dim);
            problem.causal = Causal::TopLeft;
            for tuning in [Tuning::default(), TILE] {
                close(&problem, gpu, &tuning, &name(gpu), F32);
            }
        }
    }
}

/// At the default register tile, with everything that a variant may have: rows past the first of a
/// lane have masks, biases and partial results of their own.
#[test]
fn default_tiles_with_every_input() {
    for gpu in gpus() {
        let mut problem = Problem::new([2, 4, 2], [37, 90], 32);
        problem.mask = Some([1, 4, 37, 90]);
        problem.bias = Some([2, 1, 37, 90]);
        problem.lens = Some(vec![90, 41]);
        problem.causal = Causal::BottomRight;
        close(&problem, gpu, &Tuning::default(), &name(gpu), F32);
        let splits = Tuning {
            splits: Some(3),
            ..Tuning::default()
        };
        close(&problem, gpu, &splits, &name(gpu), F32);
        if gpu.engine().caps().f16 {
            let mut problem = Problem::new([1, 4, 2], [37, 45], 20);
            problem.dtype = DType::F16;
            problem.bshd = Some(1);
            problem.causal = Causal::TopLeft;
            let (o, lse) = problem.errors(gpu, &Tuning::default()).expect("runs");
            assert!(
                o <= F16 && lse <= F32,
                "{}: o {o:e}, lse {lse:e}",
                name(gpu)
            );
        }
    }
}

/// The matrix schedule on emulated matrices of every kind that an adapter can store, with the tiles that
/// devices with less and less workgroup memory get. Returns how many ran.
fn each_matrix_tile(check: impl Fn(&Gpu, DType, &str)) -> usize {
    let mut ran = 0;
    let mut slow = 0;
    for gpu in gpus() {
        if let Some(reason) = why_not(gpu, &MATRIX) {
            say(format_args!("skipped: {} {reason}", name(gpu)));
            slow += usize::from(gpu.engine().caps().fixed_subgroup().is_some());
            continue;
        }
        for (side, f16) in [(16, true), (8, true), (8, false)] {
            let emulated = with_emulated_matrices(gpu, side, f16);
            let caps = emulated.engine().caps().clone();
            if f16 && !caps.f16 {
                say(format_args!("skipped: {} has no f16", name(gpu)));
                continue;
            }
            for kib in [32, 24, 16] {
                let mut gpu = emulated.clone();
                *gpu.engine_mut() = emulated.engine().clone().with_caps(Caps {
                    workgroup_bytes: caps.workgroup_bytes.min(kib << 10),
                    ..caps.clone()
                });
                let dtype = if f16 { DType::F16 } else { DType::F32 };
                let label = format!("{}, {side}x{side} {dtype}, {kib} KiB", name(&gpu));
                check(&gpu, dtype, &label);
                ran += 1;
            }
        }
    }
    assert!(ran + slow > 0, "nothing ran");
    ran
}

#[test]
fn matrices_of_every_kind() {
    let tiles = RefCell::new(BTreeSet::new());
    let ran = each_matrix_tile(|gpu, dtype, label| {
        let mut problem = Problem::new([2, 4, 2], [75, 90], 20);
        problem.dtype = dtype;
        problem.causal = Causal::BottomRight;
        problem.lens = Some(vec![90, 61]);
        problem.mask = Some([1, 4, 75, 90]);
        problem.bias = Some([2, 1, 75, 90]);
        for (dims, pad, splits) in [
            ((20, 12), None, None),
            ((5, 33), Some(3), None),
            ((16, 24), Some(4), Some(2)),
        ] {
            (problem.head_dim, problem.value_dim) = dims;
            problem.bshd = pad;
            let tuning = Tuning { splits, ..MATRIX };
            let (o, lse) = problem
                .errors(gpu, &tuning)
                .unwrap_or_else(|error| panic!("{label}: {error}"));
            // Weights in f16 are off by up to 2^-12 each, on top of what storing o in f16 costs.
            let most = if dtype == DType::F16 {
                let (stored, _) = problem.errors(gpu, &TILE).expect("runs");
                stored + F16 / 2.0
            } else {
                F32
            };
            assert!(
                o <= most && lse <= F32,
                "{label}: o {o:e} of {most:e}, lse {lse:e}: {problem:?}"
            );
        }
        let op = Attention::new(
            Layout::new(dtype, [1, 1, 200, 16]),
            Layout::new(dtype, [1, 1, 64, 16]),
            Layout::new(dtype, [1, 1, 64, 16]),
        );
        let outline = Outline::new(&op.into(), gpu.engine().caps(), &MATRIX).expect("plans");
        if let Kernel::AttentionMatrix(variant) = outline.steps[0].kernel {
            tiles
                .borrow_mut()
                .insert((variant.side, variant.strips, variant.keys));
        }
    });
    let tiles = tiles.into_inner();
    assert!(ran == 0 || tiles.len() >= 4, "only these tiles: {tiles:?}");
}

/// Maxima that grow from tile to tile, at a pace of its own for each row: sums so far are brought to a
/// new maximum now in this row, now in that, and what came before still counts.
#[test]
fn matrix_sums_follow_growing_maxima() {
    each_matrix_tile(|gpu, dtype, label| {
        let (m, n, d) = (70, 150, 8);
        let mut problem = Problem::new([1, 1, 1], [m, n], d);
        // Several matrices of sums, in more than one chunk.
        problem.value_dim = 40;
        problem.dtype = dtype;
        problem.scale = Some(std::f32::consts::LN_2);
        let mut q = vec![0.0; m * d];
        for (row, q) in q.chunks_mut(d).enumerate() {
            q[row % d] = (row % 7) as f32 * 0.125;
        }
        // Scores in base 2 of 0 to 0.75 per key, so up to 24 from one tile of 32 to the next.
        let k: Vec<f32> = (0..n * d).map(|at| (at / d) as f32).collect();
        let v: Vec<f32> = noise(3, n * problem.value_dim)
            .iter()
            .map(|&x| half::f16::from_f32(x).to_f32())
            .collect();
        let turned: Vec<f32> = k.iter().map(|x| (n - 1) as f32 - x).collect();
        for k in [&k, &turned] {
            let (o, lse) = problem
                .check(gpu, &MATRIX, (&q, k, &v), None, None)
                .unwrap_or_else(|error| panic!("{label}: {error}"));
            let most = if dtype == DType::F16 { F16 } else { F32 };
            assert!(o <= most && lse <= F32, "{label}: o {o:e}, lse {lse:e}");
        }
    });
}

/// Some models mask with the least finite number: a row of nothing else is a mean of its values, not
/// an empty row; minus infinity makes an empty row.
#[test]
fn the_least_finite_bias_is_not_minus_infinity() {
    each(|gpu, tuning, label| {
        let (m, n) = (5, 37);
        let problem = Problem::new([1, 1, 1], [m, n], 8);
        let [q, k, v] = [(1, m), (2, n), (3, n)].map(|(seed, rows)| noise(seed, rows * 8));
        let bias: Vec<f32> = (0..m * n)
            .map(|at| match (at / n, at % n % 2) {
                (0, _) => f32::MIN,
                (1, _) => f32::NEG_INFINITY,
                (2, 0) => f32::MIN,
                (3, 0) => f32::NEG_INFINITY,
                _ => 0.5,
            })
            .collect();
        let bias = ([1, 1, m, n], bias);
        let tensors = (q.as_slice(), k.as_slice(), v.as_slice());
        let expected = problem.reference(tensors, None, Some(&bias));
        let (o, lse) = problem
            .run(gpu, tuning, tensors, None, Some(&bias))
            .expect("runs");
        let error = foveate::reference::error(&o, &expected.o);
        assert!(error <= F32, "{label}: {error:e}");
        // The first row's is at the floor of biases, as the docs say; the others are the reference's.
        assert!(
            (-1.01e38..=-0.99e38).contains(&lse[0]),
            "{label}: {}",
            lse[0]
        );
        let error = foveate::reference::error(&lse[1..], &expected.lse[1..]);
        assert!(error <= F32, "{label}: {error:e}");
    });
}

/// Issue of the loop limit: llvmpipe leaves a loop after 65,535 iterations. And of size: 244 MiB
/// each for K and V, where a binding holds 128 MiB.
#[test]
fn a_million_keys() {
    let gpu = gpus()
        .iter()
        .find(|gpu| gpu.engine().caps().fixed_subgroup().is_some())
        .unwrap_or(&gpus()[0]);
    let (n, d) = (1_000_000, 64);
    let problem = Problem::new([1, 1, 1], [3, n], d);
    // Cheap to make, and no two rows alike.
    let numbers = |seed: u32| -> Vec<f32> {
        let mut state = seed;
        (0..n * d)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    };
    let q: Vec<f32> = foveate::reference::noise(7, 3 * d);
    let (k, v) = (numbers(1), numbers(2));
    let tuning = Tuning::default();
    let (o, lse) = problem
        .check(gpu, &tuning, (&q, &k, &v), None, None)
        .expect("runs");
    // The output is a mean of a million values that cancel, so small beside its terms.
    assert!(
        o <= 1e-4 && lse <= F32,
        "{}: o {o:e}, lse {lse:e}",
        name(gpu)
    );
}

/// The tile schedule counts many loop iterations per key, so its budget ends far sooner; the wider the
/// rows, the sooner.
#[test]
fn many_keys_in_tiles() {
    let wide = Problem::new([1, 1, 1], [2, 20_000], 256);
    close(&wide, &gpus()[0], &TILE, &name(&gpus()[0]), 1e-4);
    for gpu in gpus().iter().take(2) {
        let problem = Problem::new([1, 1, 1], [2, 50_000], 8);
        close(&problem, gpu, &TILE, &name(gpu), 1e-4);
    }
}
