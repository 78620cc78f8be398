//! Merging attention results on every adapter, against the f64 reference and against attention itself.

mod common;

use common::{Problem, gpus, name, place, say, untouched_around};
use foveate::{
    Attention, AttentionArgs, Caps, Causal, DType, Gpu, Layout, Merge, MergeArgs, Tensor, Tuning,
    reference::{self, noise},
};

const F32: f64 = 1e-5;
const F16: f64 = 2e-3;

/// Kernels that drivers compile fast.
const SMALL: Tuning = Tuning {
    schedule: None,
    rows: Some(1),
    keys: Some(1),
    splits: None,
};

/// Contiguous parts of a merge, as every test makes them.
struct Parts {
    count: usize,
    o: Vec<f32>,
    lse: Vec<f32>,
    gates: Vec<f32>,
}

impl Parts {
    /// Random ones for an op, log-sum-exps apart enough that some parts count for little, gates of either sign.
    fn random(op: &Merge) -> Self {
        let half = |x| half::f16::from_f32(x).to_f32();
        let rows = (op.o_parts.elements() / op.o_parts.shape[4]) as usize;
        let o = noise(21, op.o_parts.elements() as usize)
            .into_iter()
            .map(half)
            .collect();
        let gates = noise(23, rows).into_iter().map(half).collect();
        let lse = noise(22, rows).into_iter().map(|x| x * 4.0).collect();
        Self {
            count: op.o_parts.shape[0] as usize,
            o,
            lse,
            gates,
        }
    }

    fn rows(&self) -> usize {
        self.lse.len() / self.count
    }

    fn value_dim(&self) -> usize {
        self.o.len() / self.lse.len()
    }

    /// Takes a row of a part out: it saw no key, and its output was never written.
    fn drop(&mut self, part: usize, row: usize) {
        let at = part * self.rows() + row;
        let width = self.value_dim();
        self.lse[at] = f32::NEG_INFINITY;
        self.o[at * width..][..width].fill(f32::NAN);
    }

    /// Shuts a row of a part: its output was never written.
    fn shut(&mut self, part: usize, row: usize) {
        let at = part * self.rows() + row;
        let width = self.value_dim();
        self.gates[at] = if part == 0 { -0.0 } else { 0.0 };
        self.o[at * width..][..width].fill(f32::NAN);
    }

    /// By log-sum-exps alone.
    fn merged(&self) -> reference::AttentionOutputs {
        let [o, lse] = [&self.o, &self.lse].map(|data| wide(data));
        reference::merge(&o, &lse, self.count)
    }

    /// What an op makes of them.
    fn expected(&self, op: &Merge) -> reference::AttentionOutputs {
        let mut merged = self.merged();
        if op.gates.is_some() {
            let [o, lse, gates] = [&self.o, &self.lse, &self.gates].map(|data| wide(data));
            let lse = op.lse_parts.is_some().then_some(&lse[..]);
            merged.o = reference::merge_gated(&o, lse, &gates, self.count);
        }
        merged
    }
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| x.into()).collect()
}

/// Merges on the device; everything around the outputs stays as it was.
fn run(gpu: &Gpu, op: &Merge, parts: &Parts) -> (Vec<f32>, Vec<f32>) {
    let o_parts = place(gpu, op.o_parts.clone(), &parts.o).expect("fits");
    let weights = [(&op.lse_parts, &parts.lse), (&op.gates, &parts.gates)];
    let [lse_parts, gates] = weights.map(|(layout, data)| {
        let layout = layout.clone()?;
        Some(place(gpu, layout, data).expect("fits"))
    });
    merge(gpu, op, &o_parts, lse_parts.as_ref(), gates.as_ref())
}

fn merge(
    gpu: &Gpu,
    op: &Merge,
    o_parts: &Tensor,
    lse_parts: Option<&Tensor>,
    gates: Option<&Tensor>,
) -> (Vec<f32>, Vec<f32>) {
    let o = place(gpu, op.o.clone(), &[]).expect("fits");
    let lse = op
        .lse
        .clone()
        .map(|layout| place(gpu, layout, &[]).expect("fits"));
    let args = MergeArgs {
        o_parts: o_parts.view(),
        lse_parts: lse_parts.map(Tensor::view),
        gates: gates.map(Tensor::view),
        o: o.view(),
        lse: lse.as_ref().map(Tensor::view),
    };
    gpu.compute(&op.clone().into(), args)
        .unwrap_or_else(|error| panic!("{}: {error}", name(gpu)));
    untouched_around(gpu, &o).expect("reads back");
    let lse = lse.map(|lse| {
        untouched_around(gpu, &lse).expect("reads back");
        gpu.download(&lse).expect("reads back")
    });
    (
        gpu.download(&o).expect("reads back"),
        lse.unwrap_or_default(),
    )
}

fn check(gpu: &Gpu, op: &Merge, parts: &Parts, most: f64) {
    let expected = parts.expected(op);
    let (o, lse) = run(gpu, op, parts);
    let error = reference::error(&o, &expected.o);
    assert!(error <= most, "{}: o {error:e}: {op:?}", name(gpu));
    if op.lse.is_some() {
        let error = reference::error(&lse, &expected.lse);
        assert!(error <= F32, "{}: lse {error:e}: {op:?}", name(gpu));
    }
}

fn contiguous(dtype: DType, [p, b, h, m, d]: [u64; 5]) -> Merge {
    Merge::new(
        Layout::new(dtype, [p, b, h, m, d]),
        Layout::f32([p, b, h, m]),
    )
}

const SHAPES: [[u64; 5]; 9] = [
    [1, 1, 1, 1, 1],
    [1, 2, 3, 5, 8],
    [2, 1, 1, 1, 4],
    [2, 3, 2, 7, 5],
    [3, 1, 4, 31, 12],
    [5, 2, 1, 33, 31],
    [7, 1, 2, 17, 64],
    [2, 1, 1, 3, 300],
    [300, 1, 2, 3, 20],
];

#[test]
fn hostile_shapes() {
    for gpu in gpus() {
        for shape in SHAPES {
            let op = contiguous(DType::F32, shape);
            let parts = Parts::random(&op);
            check(gpu, &op, &parts, F32);
            check(gpu, &op.with_lse(), &parts, F32);
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
        for shape in SHAPES {
            let op = contiguous(DType::F16, shape).with_lse();
            check(gpu, &op, &Parts::random(&op), F16);
        }
        ran += 1;
    }
    say(format_args!(
        "f16 ran on {ran} of {} adapters",
        gpus().len()
    ));
}

/// One part comes back as it is.
#[test]
fn one_part_is_copied() {
    for gpu in gpus() {
        for dim in [7, 8] {
            let op = contiguous(DType::F32, [1, 2, 3, 5, dim]).with_lse();
            let mut parts = Parts::random(&op);
            parts.lse[3] = 9876.54;
            let (o, lse) = run(gpu, &op, &parts);
            assert_eq!(o, parts.o, "{}", name(gpu));
            assert_eq!(lse, parts.lse, "{}", name(gpu));
        }
    }
}

#[test]
fn strided_views_slices_and_folded_grids() {
    // [batch, seq, heads, parts, dim] in memory, with padding: all parts of a row are neighbours.
    let near = |[p, b, h, m, d]: [u64; 5], pad: u64| {
        let row = d + pad;
        let o_parts = Layout::f32([p, b, h, m, d])
            .with_strides([row, m * h * p * row, p * row, h * p * row, 1])
            .at(pad);
        let lse_parts = Layout::f32([p, b, h, m])
            .with_strides([1, m * h * (p + 1), p + 1, h * (p + 1)])
            .at(5);
        let o = Layout::f32([b, m, h, d])
            .with_strides([m * h * row, h * row, row, 1])
            .at(pad)
            .transposed(1, 2);
        let mut op = Merge::new(o_parts, lse_parts).output(o).with_lse();
        op.lse = Some(
            Layout::f32([b, m, h])
                .with_strides([2 * m * h, 2 * h, 2])
                .at(3)
                .transposed(1, 2),
        );
        op
    };
    for gpu in gpus() {
        for shape in SHAPES {
            for pad in [0, 3, 4] {
                let op = near(shape, pad);
                check(gpu, &op, &Parts::random(&op), F32);
            }
        }
        // The elements of a row apart, too.
        let turned = Layout::f32([3, 2, 9, 4, 20]).transposed(3, 4);
        let op = Merge::new(turned, Layout::f32([3, 2, 9, 20]))
            .output(Layout::f32([2, 9, 4, 20]).transposed(2, 3));
        check(gpu, &op, &Parts::random(&op), F32);

        let mut small = gpu.clone();
        *small.engine_mut() = gpu.engine().clone().with_caps(Caps {
            max_binding_bytes: 4096,
            max_workgroups: 3,
            loop_budget: 12,
            ..gpu.engine().caps().clone()
        });
        for shape in [[3, 2, 3, 40, 8], [5, 3, 2, 20, 13]] {
            for pad in [0, 3, 4] {
                let op = near(shape, pad);
                let outline = small.engine().plan(&op.clone().into()).expect("plans");
                assert!(outline.outline().steps.len() > 2);
                check(&small, &op, &Parts::random(&op), F32);
            }
        }
    }
}

/// A part that saw no key may hold anything; a row of which no part saw one is empty.
#[test]
fn empty_parts_and_rows() {
    for gpu in gpus() {
        for dtype in [DType::F32, DType::F16] {
            if dtype == DType::F16 && !gpu.engine().caps().f16 {
                continue;
            }
            for dim in [6, 8] {
                for count in [1, 2, 5] {
                    let op = contiguous(dtype, [count, 2, 2, 3, dim]).with_lse();
                    let mut parts = Parts::random(&op);
                    for part in 0..count as usize {
                        // Each part in turn, alone; all in row 11; all but one in row 10.
                        parts.drop(part, part);
                        parts.drop(part, 11);
                        if part > 0 {
                            parts.drop(part, 10);
                        }
                    }
                    let most = if dtype == DType::F16 { F16 } else { F32 };
                    check(gpu, &op, &parts, most);
                    let (o, lse) = run(gpu, &op, &parts);
                    let width = dim as usize;
                    assert!(o[11 * width..].iter().all(|&x| x == 0.0), "{}", name(gpu));
                    assert_eq!(lse[11], f32::NEG_INFINITY, "{}", name(gpu));
                }
            }
        }
    }
}

/// Differences count, however large the numbers; the least that attention gives is not minus infinity.
#[test]
fn large_log_sum_exps() {
    for gpu in gpus() {
        for dim in [3, 4] {
            let op = contiguous(DType::F32, [3, 1, 1, 4, dim]).with_lse();
            let mut parts = Parts::random(&op);
            for (row, lse) in [
                [1000.0, 1000.5, 999.0],
                [-5e4, -5e4 + 1.0, -6e4],
                [-1e38, -1e38, -1e38],
                [9e37, -9e37, f32::NEG_INFINITY],
            ]
            .into_iter()
            .enumerate()
            {
                for (part, lse) in lse.into_iter().enumerate() {
                    parts.lse[part * 4 + row] = lse;
                }
            }
            let expected = parts.merged();
            let (o, lse) = run(gpu, &op, &parts);
            let error = reference::error(&o, &expected.o);
            assert!(error <= F32, "{}: {error:e}", name(gpu));
            for (lse, expected) in lse.iter().zip(&expected.lse) {
                let error = (f64::from(*lse) / expected - 1.0).abs();
                assert!(error <= 1e-6, "{}: {lse} for {expected}", name(gpu));
            }
        }
    }
}

/// Attention over key ranges, each by a call of its own into its part of one buffer, and merged: that
/// over all keys. `causal` holds of the last range; the keys of those before it are visible to all.
fn in_ranges(gpu: &Gpu, problem: &Problem, ranges: &[u64]) {
    let [b, hq, hkv, m, n, d, dv] = [
        problem.batch,
        problem.q_heads,
        problem.kv_heads,
        problem.q_len,
        problem.kv_len,
        problem.head_dim,
        problem.value_dim,
    ]
    .map(|len| len as u64);
    let (q, k, v) = (
        noise(1, (b * hq * m * d) as usize),
        noise(2, (b * hkv * n * d) as usize),
        noise(3, (b * hkv * n * dv) as usize),
    );
    let whole = problem.reference((&q, &k, &v), None, None);
    let q = gpu.upload(&q, [b, hq, m, d]).expect("fits");
    let k = gpu.upload(&k, [b, hkv, n, d]).expect("fits");
    let v = gpu.upload(&v, [b, hkv, n, dv]).expect("fits");

    let op = contiguous(DType::F32, [ranges.len() as u64, b, hq, m, dv]).with_lse();
    let o_parts = place(gpu, op.o_parts.clone(), &[]).expect("fits");
    let lse_parts = op.lse_parts.clone().expect("has them");
    let lse_parts = place(gpu, lse_parts, &[]).expect("fits");
    let mut start = 0;
    for (part, &len) in (0..).zip(ranges) {
        let keys = |tensor: &Tensor, dim: u64| {
            tensor.with_layout(
                Layout::f32([b, hkv, len, dim])
                    .with_strides(tensor.layout().strides.clone())
                    .at(start * dim),
            )
        };
        let (k, v) = (keys(&k, d), keys(&v, dv));
        let o = o_parts.with_layout(op.o_part(part).expect("is there"));
        let lse = lse_parts.with_layout(op.lse_part(part).expect("is there"));
        let last = part + 1 == ranges.len() as u64;
        let mut attention =
            Attention::new(q.layout().clone(), k.layout().clone(), v.layout().clone())
                .output(o.layout().clone())
                .causal(if last { problem.causal } else { Causal::None });
        attention.lse = Some(lse.layout().clone());
        let lens = problem.lens.as_ref().map(|lens| {
            let here: Vec<u32> = lens
                .iter()
                .map(|&all| all.saturating_sub(start as u32).min(len as u32))
                .collect();
            gpu.upload_u32(&here, [b]).expect("fits")
        });
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
        args.lse = Some(lse.view());
        if let Some(lens) = &lens {
            attention = attention.kv_len(lens.layout().clone());
            args.kv_len = Some(lens.view());
        }
        let plan = gpu
            .engine()
            .plan_with(&attention.into(), &SMALL)
            .expect("plans");
        gpu.run(&plan.bind(args).expect("binds")).expect("runs");
        start += len;
    }
    assert_eq!(start, n, "the ranges are all keys");
    assert!(op.o_part(ranges.len() as u64).is_none());

    let (o, lse) = merge(gpu, &op, &o_parts, Some(&lse_parts), None);
    for (what, got, want) in [("o", o, whole.o), ("lse", lse, whole.lse)] {
        let error = reference::error(&got, &want);
        assert!(error <= F32, "{}: {what} {error:e}: {problem:?}", name(gpu));
    }
}

#[test]
fn attention_in_key_ranges_is_attention_of_the_whole() {
    for gpu in gpus() {
        in_ranges(gpu, &Problem::new([1, 1, 1], [3, 7], 8), &[7]);
        in_ranges(gpu, &Problem::new([1, 1, 1], [3, 7], 8), &[1; 7]);
        let mut problem = Problem::new([2, 4, 2], [9, 50], 8);
        problem.value_dim = 5;
        in_ranges(gpu, &problem, &[20, 1, 29]);
        // A prompt in chunks: the chunk's own keys are causal, all before it are seen.
        problem.causal = Causal::BottomRight;
        in_ranges(gpu, &problem, &[20, 21, 9]);
        // Lengths that end before a range leave it empty for that batch entry.
        problem.causal = Causal::None;
        problem.lens = Some(vec![50, 13]);
        in_ranges(gpu, &problem, &[20, 1, 29]);
        problem.lens = Some(vec![0, 21]);
        in_ranges(gpu, &problem, &[20, 1, 29]);
    }
}

/// A merge of merges is the merge of all.
#[test]
fn merges_nest() {
    for gpu in gpus() {
        let all = contiguous(DType::F32, [5, 1, 2, 6, 8]).with_lse();
        let mut parts = Parts::random(&all);
        parts.drop(0, 3);
        parts.drop(1, 3);
        let expected = parts.merged();
        let o_parts = place(gpu, all.o_parts.clone(), &parts.o).expect("fits");
        let lse_layout = all.lse_parts.clone().expect("has them");
        let lse_parts = place(gpu, lse_layout, &parts.lse).expect("fits");

        let halves = contiguous(DType::F32, [2, 1, 2, 6, 8]).with_lse();
        let o_halves = place(gpu, halves.o_parts.clone(), &[]).expect("fits");
        let lse_layout = halves.lse_parts.clone().expect("has them");
        let lse_halves = place(gpu, lse_layout, &[]).expect("fits");
        for (half, (start, count)) in (0..).zip([(0, 2), (2, 3)]) {
            let mut op = contiguous(DType::F32, [count, 1, 2, 6, 8]);
            op.o_parts = op.o_parts.at(start * 96);
            let lse_layout = op.lse_parts.take().expect("has them").at(start * 12);
            op.lse_parts = Some(lse_layout.clone());
            op.o = halves.o_part(half).expect("is there");
            op.lse = halves.lse_part(half);
            let [o, lse] = [
                (&o_halves, Some(op.o.clone())),
                (&lse_halves, op.lse.clone()),
            ]
            .map(|(tensor, layout)| tensor.with_layout(layout.expect("is there")));
            let o_parts = o_parts.with_layout(op.o_parts.clone());
            let lse_parts = lse_parts.with_layout(lse_layout);
            let mut args = MergeArgs::new(o_parts.view(), lse_parts.view(), o.view());
            args.lse = Some(lse.view());
            gpu.compute(&op.into(), args).expect("runs");
        }
        let (o, lse) = merge(gpu, &halves, &o_halves, Some(&lse_halves), None);
        let error = reference::error(&o, &expected.o);
        assert!(error <= F32, "{}: {error:e}", name(gpu));
        let error = reference::error(&lse, &expected.lse);
        assert!(error <= F32, "{}: {error:e}", name(gpu));
    }
}

/// The same merge with gates, and by gates alone.
fn with_gates(op: &Merge, gates: Layout) -> [Merge; 2] {
    let both = op.clone().gates(gates);
    let mut alone = both.clone();
    (alone.lse_parts, alone.lse) = (None, None);
    [both, alone]
}

/// `[parts, batch, q_heads, q_len]` of the op.
fn rows_of(op: &Merge) -> &[u64] {
    &op.o_parts.shape[..4]
}

#[test]
fn gates_of_hostile_shapes() {
    for gpu in gpus() {
        for shape in SHAPES {
            let op = contiguous(DType::F32, shape).with_lse();
            let parts = Parts::random(&op);
            let half = [DType::F32, DType::F16]
                .into_iter()
                .filter(|dtype| *dtype == DType::F32 || gpu.engine().caps().f16);
            for dtype in half {
                for op in with_gates(&op, Layout::new(dtype, rows_of(&op))) {
                    check(gpu, &op, &parts, F32);
                }
            }
            if gpu.engine().caps().f16 {
                let op = contiguous(DType::F16, shape).with_lse();
                for op in with_gates(&op, Layout::f32(rows_of(&op))) {
                    // Gates make some rows several times as large as others, and their roundings with them.
                    check(gpu, &op, &parts, 2.0 * F16);
                }
            }
        }
    }
}

#[test]
fn gates_of_strided_views_and_slices() {
    for gpu in gpus() {
        let mut small = gpu.clone();
        *small.engine_mut() = gpu.engine().clone().with_caps(Caps {
            max_binding_bytes: 4096,
            max_workgroups: 3,
            loop_budget: 12,
            ..gpu.engine().caps().clone()
        });
        for [p, b, h, m, d] in [[3, 2, 3, 40, 8], [5, 3, 2, 20, 13]] {
            // [batch, seq, heads, parts, dim] in memory, and gates as a linear layer writes them: [batch, seq,
            // heads, parts], an odd number of places from the start.
            let o_parts = Layout::f32([b, m, h, p, d])
                .transposed(1, 3)
                .transposed(0, 1);
            assert_eq!(o_parts.shape, [p, b, h, m, d]);
            let gates = Layout::f32([p, b, h, m])
                .with_strides([1, m * h * p, p, h * p])
                .at(3);
            let lse_parts = gates.clone().at(1);
            let op = Merge::new(o_parts, lse_parts).with_lse();
            let parts = Parts::random(&op);
            for op in with_gates(&op, gates) {
                check(gpu, &op, &parts, F32);
                let outline = small.engine().plan(&op.clone().into()).expect("plans");
                assert!(outline.outline().steps.len() > 2);
                check(&small, &op, &parts, F32);
            }
        }
    }
}

/// A gate per head, per token, or for all of a part, is not copied for each row.
#[test]
fn gates_that_rows_share() {
    let [p, b, h, m, d] = [3, 2, 4, 5, 8];
    for gpu in gpus() {
        for strides in [[h, 0, 1, 0], [b * m, m, 0, 1], [1, 0, 0, 0]] {
            let op = contiguous(DType::F32, [p, b, h, m, d]).with_lse();
            let mut parts = Parts::random(&op);
            let stored = noise(24, 64);
            let mut at = 0;
            for part in 0..p {
                for batch in 0..b {
                    for head in 0..h {
                        for i in 0..m {
                            let place = [part, batch, head, i];
                            let steps = place.iter().zip(&strides).map(|(n, stride)| n * stride);
                            parts.gates[at] = stored[steps.sum::<u64>() as usize];
                            at += 1;
                        }
                    }
                }
            }
            let buffer = gpu.upload(&stored, [64]).expect("fits");
            let gates = Layout::f32([p, b, h, m]).with_strides(strides);
            let tensor = buffer.with_layout(gates.clone());
            for op in with_gates(&op, gates) {
                let o_parts = place(gpu, op.o_parts.clone(), &parts.o).expect("fits");
                let lse_parts = op.lse_parts.clone();
                let lse_parts =
                    lse_parts.map(|layout| place(gpu, layout, &parts.lse).expect("fits"));
                let (o, _) = merge(gpu, &op, &o_parts, lse_parts.as_ref(), Some(&tensor));
                let error = reference::error(&o, &parts.expected(&op).o);
                assert!(error <= F32, "{}: {error:e}: {op:?}", name(gpu));
            }
        }
    }
}

/// A part whose gate is 0 may hold anything; so may one that saw no key, if log-sum-exps are given.
#[test]
fn parts_that_are_shut() {
    for gpu in gpus() {
        for dim in [6, 8] {
            for count in [1, 2, 5] {
                let op = contiguous(DType::F32, [count, 2, 2, 3, dim]).with_lse();
                let mut parts = Parts::random(&op);
                for part in 0..count as usize {
                    parts.shut(part, part);
                    parts.shut(part, 11);
                    if part > 0 {
                        parts.shut(part, 10);
                    }
                }
                let [mut both, alone] = with_gates(&op, Layout::f32(rows_of(&op)));
                check(gpu, &alone, &parts, F32);
                let (o, _) = run(gpu, &alone, &parts);
                let last = 11 * dim as usize;
                assert!(o[last..].iter().all(|&x| x == 0.0), "{}", name(gpu));

                parts.drop(0, 7);
                parts.drop(count as usize - 1, 8);
                check(gpu, &both, &parts, F32);
                let (o, lse) = run(gpu, &both, &parts);
                assert!(o[last..].iter().all(|&x| x == 0.0), "{}", name(gpu));
                // What the row saw is what it saw, whatever its gates.
                assert!(lse[11].is_finite(), "{}", name(gpu));
                both.lse = None;
                check(gpu, &both, &parts, F32);
            }
        }
    }
}

/// Gates of 1, given to each part, are no gates; a merge with gates is one of attention with gates.
#[test]
fn gates_are_those_of_the_parts() {
    for gpu in gpus() {
        let op = contiguous(DType::F32, [4, 2, 3, 5, 8]).with_lse();
        let mut parts = Parts::random(&op);
        let [both, _] = with_gates(&op, Layout::f32(rows_of(&op)));
        let gated = run(gpu, &both, &parts);
        // Onto the parts themselves.
        let width = parts.value_dim();
        for (row, gate) in parts.o.chunks_mut(width).zip(&parts.gates) {
            for x in row {
                *x *= gate;
            }
        }
        parts.gates.fill(1.0);
        let expected = parts.merged();
        for (o, lse) in [gated, run(gpu, &both, &parts), run(gpu, &op, &parts)] {
            let error = reference::error(&o, &expected.o);
            assert!(error <= F32, "{}: {error:e}", name(gpu));
            let error = reference::error(&lse, &expected.lse);
            assert!(error <= F32, "{}: {error:e}", name(gpu));
        }
    }
}

#[test]
fn with_tensors_of_ones_own() {
    let gpu = &gpus()[0];
    let o_parts = gpu
        .upload(&[1.0, 2.0, 3.0, 4.0], [2, 1, 1, 1, 2])
        .expect("fits");
    // Weights of 1/4 and 3/4.
    let lse_parts = gpu.upload(&[0.0, 3f32.ln()], [2, 1, 1, 1]).expect("fits");
    let o = gpu.merge(&o_parts, &lse_parts, |op| op).expect("runs");
    let o = gpu.download(&o).expect("reads back");
    assert!(reference::error(&o, &[2.5, 3.5]) < 1e-6, "{o:?}");
    let error = gpu
        .merge(&o_parts, &lse_parts, Merge::with_lse)
        .expect_err("it has nowhere to go");
    assert!(
        error.to_string().starts_with("lse: has no tensor"),
        "{error}"
    );
    let error = gpu
        .merge(&o_parts, &lse_parts, |op| {
            op.gates(Layout::f32([2, 1, 1, 1]))
        })
        .expect_err("they have no tensor");
    assert!(
        error.to_string().starts_with("gates: has no tensor"),
        "{error}"
    );

    // Half of the first, and twice the second.
    let gates = gpu.upload(&[0.5, 2.0], [2, 1, 1, 1]).expect("fits");
    let op = Merge::gated(o_parts.layout().clone(), gates.layout().clone());
    let o = gpu.allocate(op.o.clone()).expect("fits");
    let args = MergeArgs::gated(o_parts.view(), gates.view(), o.view());
    gpu.compute(&op.into(), args).expect("runs");
    assert_eq!(gpu.download(&o).expect("reads back"), [6.5, 9.0]);
}
