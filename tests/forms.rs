//! Forms without a softmax over pairs of queries and keys, on every adapter, against the f64 references: attention of
//! holographic reduced representations, flow attention, and the attention-free transformer.

mod common;

use std::collections::BTreeMap;

use common::{gpus, name, place, untouched_around};
use foveate::{
    AftFull, BiasTerm, Caps, DType, Error, FlowAttention, Gpu, HrrAttention, Layout, Op,
    PositionBias, Schedule, Tensor, Tuning,
    kernels::Kernel,
    ops::{Args, Slot},
    plan::{Outline, Step},
    reference::{self, AftFullInputs, FlowAttentionInputs, HrrAttentionInputs, noise},
};

const F32: f64 = 1e-5;
const F16: f64 = 4e-3;

/// How a tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    Contiguous,
    /// `[batch, seq, heads, dim]`, padded and shifted.
    Inside,
    /// The last two axes exchanged.
    Turned,
}

const LIES: [Lie; 3] = [Lie::Contiguous, Lie::Inside, Lie::Turned];

fn layout(dtype: DType, [batch, heads, seq, dim]: [u64; 4], lie: Lie) -> Layout {
    match lie {
        Lie::Contiguous => Layout::new(dtype, [batch, heads, seq, dim]),
        Lie::Inside => {
            let row = dim + 3;
            Layout::new(dtype, [batch, seq, heads, dim])
                .with_strides([seq * heads * row, heads * row, row, 1])
                .at(5)
                .transposed(1, 2)
        }
        Lie::Turned => Layout::new(dtype, [batch, heads, dim, seq]).transposed(2, 3),
    }
}

/// Noise of this size that the storage holds exactly.
fn numbers(seed: u64, layout: &Layout, size: f32) -> Vec<f32> {
    let data = noise(seed, layout.elements() as usize).into_iter();
    data.map(|x| match layout.dtype {
        DType::F16 => half::f16::from_f32(size * x).to_f32(),
        _ => size * x,
    })
    .collect()
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| x.into()).collect()
}

fn mask_tensor(gpu: &Gpu, layout: &Layout, data: &[f32]) -> Tensor {
    let mut bytes = vec![false; layout.end_bytes() as usize];
    let [_, seq] = layout.shape[..] else {
        panic!("a mask has two axes");
    };
    for (number, &x) in (0u64..).zip(data) {
        let (b, t) = (number / seq, number % seq);
        let at = layout.offset + b * layout.strides[0] + t * layout.strides[1];
        bytes[at as usize] = x != 0.0;
    }
    let tensor = gpu.upload_bool(&bytes, [bytes.len() as u64]);
    tensor.expect("fits").with_layout(layout.clone())
}

/// The output of an op on the device; nothing around it is touched, and all of it is written.
fn output(gpu: &Gpu, op: &Op, inputs: &[(Slot, Vec<f32>)], tuning: &Tuning) -> Vec<f32> {
    let tensors: Vec<(Slot, Tensor)> = op
        .tensors()
        .into_iter()
        .map(|(slot, layout)| {
            let data = inputs.iter().find(|(other, _)| *other == slot);
            let data = data.map(|(_, data)| data.as_slice()).unwrap_or_default();
            let tensor = match layout.dtype {
                DType::Bool => mask_tensor(gpu, layout, data),
                _ => place(gpu, layout.clone(), data).expect("fits"),
            };
            (slot, tensor)
        })
        .collect();
    let plan = gpu
        .engine()
        .plan_with(op, tuning)
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    keeps_the_limits(plan.outline(), gpu.engine().caps());
    let views = tensors.iter().map(|(slot, tensor)| (*slot, tensor.view()));
    gpu.run(&plan.bind(Args(views.collect())).expect("binds"))
        .expect("runs");
    let (_, o) = tensors.iter().find(|(s, _)| *s == Slot::O).expect("an o");
    untouched_around(gpu, o).expect("reads back");
    gpu.download(o).expect("reads back")
}

fn params(step: &Step) -> BTreeMap<&'static str, u32> {
    let words = step.params.chunks(4);
    let fields = step.kernel.param_fields().iter().zip(words);
    fields
        .map(|((name, _), word)| (*name, u32::from_le_bytes(word.try_into().expect("a word"))))
        .collect()
}

/// Iterations of the loops of one invocation, checks that end them too, counted from the WGSL.
fn iterations(step: &Step) -> u64 {
    let params = params(step);
    let of = |name: &str| u64::from(params[name]);
    match step.kernel {
        Kernel::RangeSums(_) => of("range_length").min(of("len")) + 1 + 5,
        Kernel::RangeJoin(_) => of("ranges") + 1,
        Kernel::FlowRead(_) => {
            let tokens = of("range_length").min(of("len"));
            of("units") + 1 + tokens * (of("units") + 2) + 1
        }
        Kernel::HrrAttention(variant) => match variant.role {
            foveate::kernels::hrr_attention::Role::Score {
                lanes, channels, ..
            } => {
                let dim = of("dim");
                let staged = dim.div_ceil(64) + 1 + dim.div_ceil(lanes.into()) + 1;
                staged + u64::from(channels) * (dim + 1) + 2 * (u64::from(lanes.ilog2()) + 1)
            }
            _ => of("dim") + 1,
        },
        Kernel::AftFull(_) => {
            let turns = of("range_length").min(of("len")).div_ceil(16);
            turns * (1 + 17 + of("rank") + 1) + 1
        }
        Kernel::AttentionMerge(_) => 2 * (of("splits") + 1),
        other => panic!("{other:?} is no part of these ops"),
    }
}

fn keeps_the_limits(outline: &Outline, caps: &Caps) {
    assert!(outline.scratch_bytes <= caps.max_buffer_bytes);
    for step in &outline.steps {
        let side = caps.max_workgroups;
        assert!(step.grid.iter().all(|&n| (1..=side).contains(&n)));
        assert!(step.kernel.supports(caps).is_ok(), "{:?}", step.kernel);
        let loops = iterations(step);
        assert!(loops <= caps.loop_budget.into(), "{loops}: {step:?}");
        for range in &step.ranges {
            assert!(range.offset.is_multiple_of(caps.storage_alignment.into()));
            assert!(range.size > 0 && range.size <= caps.max_binding_bytes);
            if range.slot == Slot::Scratch {
                assert!(range.offset + range.size <= outline.scratch_bytes);
            }
        }
    }
}

/// The same adapter, planned for as a device with other caps.
fn with_caps(gpu: &Gpu, change: impl FnOnce(&mut Caps)) -> Gpu {
    let mut caps = gpu.engine().caps().clone();
    change(&mut caps);
    let mut other = gpu.clone();
    *other.engine_mut() = gpu.engine().clone().with_caps(caps);
    other
}

/// Compares with what the reference gives.
fn check(gpu: &Gpu, op: &Op, inputs: &[(Slot, Vec<f32>)], tuning: &Tuning) {
    let got = output(gpu, op, inputs, tuning);
    let error = reference::error(&got, &expected(op, inputs));
    let dtype = op.tensors()[0].1.dtype;
    let most = if dtype == DType::F16 { F16 } else { F32 };
    assert!(error <= most, "{}: {error:e}: {op:?}", name(gpu));
}

fn expected(op: &Op, inputs: &[(Slot, Vec<f32>)]) -> Vec<f64> {
    let given = |slot| inputs.iter().find(|(other, _)| *other == slot);
    let all = |slot| given(slot).map(|(_, data)| wide(data)).unwrap_or_default();
    let (q, k, v) = (all(Slot::Q), all(Slot::K), all(Slot::V));
    let [batch, heads, q_len, dim] =
        [0, 1, 2, 3].map(|axis| op.tensors()[0].1.shape[axis] as usize);
    match op {
        Op::HrrAttention(op) => {
            let mask: Option<Vec<bool>> =
                given(Slot::Mask).map(|(_, data)| data.iter().map(|&x| x != 0.0).collect());
            assert_eq!(mask.is_some(), op.mask.is_some());
            reference::hrr_attention(&HrrAttentionInputs {
                batch,
                heads,
                seq: q_len,
                dim,
                q: &q,
                k: &k,
                v: &v,
                mask: mask.as_deref(),
            })
        }
        Op::FlowAttention(op) => reference::flow_attention(&FlowAttentionInputs {
            sequences: batch * heads,
            q_len,
            kv_len: op.k.shape[2] as usize,
            key_dim: dim,
            value_dim: op.v.shape[3] as usize,
            causal: op.causal,
            eps: op.eps.0.into(),
            q: &q,
            k: &k,
            v: &v,
        }),
        Op::AftFull(op) => {
            let bias = match &op.bias {
                PositionBias::Matrix(_) => all(Slot::Bias),
                PositionBias::Factors { rows, .. } => {
                    let rank = rows.shape[1] as usize;
                    let (rows, columns) = (all(Slot::BiasRows), all(Slot::BiasColumns));
                    let (rows, columns) = (rows.chunks(rank), columns.chunks(rank));
                    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
                    rows.take(q_len)
                        .flat_map(|a| columns.clone().take(q_len).map(move |b| dot(a, b)))
                        .collect()
                }
            };
            reference::aft_full(&AftFullInputs {
                sequences: batch * heads,
                seq: q_len,
                dim,
                causal: op.causal,
                multiply: op.term == BiasTerm::Multiply,
                q: &q,
                k: &k,
                v: &v,
                bias: &bias,
            })
        }
        other => panic!("{other:?} is tested elsewhere"),
    }
}

/// Noise for all that an op reads but masks.
fn random(op: &Op, size: f32) -> Vec<(Slot, Vec<f32>)> {
    let tensors = op.tensors().into_iter().zip(1..);
    tensors
        .filter(|((slot, layout), _)| *slot != Slot::O && layout.dtype != DType::Bool)
        .map(|((slot, layout), seed)| (slot, numbers(seed, layout, size)))
        .collect()
}

fn splits(splits: u32) -> Tuning {
    Tuning {
        splits: Some(splits),
        ..Tuning::default()
    }
}

fn hrr(dtype: DType, shape: [u64; 4], lie: Lie) -> HrrAttention {
    let x = layout(dtype, shape, lie);
    HrrAttention::new(x.clone(), x.clone(), x.clone()).output(x)
}

fn flow(dtype: DType, lens: [u64; 4], dims: [u64; 2], lie: Lie) -> FlowAttention {
    let [batch, heads, q_len, kv_len] = lens;
    let [key_dim, value_dim] = dims;
    FlowAttention::new(
        layout(dtype, [batch, heads, q_len, key_dim], lie),
        layout(dtype, [batch, heads, kv_len, key_dim], lie),
        layout(dtype, [batch, heads, kv_len, value_dim], lie),
    )
    .output(layout(dtype, [batch, heads, q_len, value_dim], lie))
}

fn aft(dtype: DType, shape: [u64; 4], rank: Option<u64>, lie: Lie) -> AftFull {
    let x = layout(dtype, shape, lie);
    let seq = shape[2];
    let bias = match (rank, lie) {
        (None, Lie::Turned) => PositionBias::Matrix(Layout::f32([seq, seq]).transposed(0, 1)),
        (None, _) => PositionBias::Matrix(Layout::new(dtype, [seq, seq])),
        // More positions than tokens.
        (Some(rank), Lie::Turned) => PositionBias::Factors {
            rows: Layout::f32([rank, seq + 3]).transposed(0, 1),
            columns: Layout::f32([seq, rank]).at(2),
        },
        (Some(rank), _) => PositionBias::Factors {
            rows: Layout::new(dtype, [seq, rank]),
            columns: Layout::new(dtype, [seq + 9, rank]),
        },
    };
    AftFull::new(x.clone(), x.clone(), x.clone(), bias).output(x)
}

const SHAPES: [[u64; 4]; 8] = [
    [1, 1, 1, 1],
    [2, 3, 1, 16],
    [2, 3, 7, 3],
    [1, 2, 67, 16],
    [3, 1, 131, 1],
    [2, 1, 29, 40],
    [1, 2, 17, 64],
    [1, 1, 13, 100],
];

#[test]
fn hrr_shapes() {
    for gpu in gpus() {
        for (number, shape) in SHAPES.into_iter().enumerate() {
            let op = hrr(DType::F32, shape, LIES[number % 3]).into();
            check(gpu, &op, &random(&op, 1.0), &Tuning::default());
        }
        let op = hrr(DType::F32, [1, 1, 5, 256], Lie::Contiguous).into();
        check(gpu, &op, &random(&op, 1.0), &Tuning::default());
    }
}

#[test]
fn hrr_masks() {
    for gpu in gpus() {
        let plain = hrr(DType::F32, [3, 2, 11, 5], Lie::Contiguous);
        for mask in [
            Layout::new(DType::Bool, [3, 11]),
            Layout::new(DType::Bool, [11, 3]).transposed(0, 1).at(1),
            // One for all batch entries.
            Layout::new(DType::Bool, [3, 11]).with_strides([0, 1]),
        ] {
            let repeated = mask.strides[0] == 0;
            let op: Op = plain.clone().mask(mask).into();
            for seen in [
                |_, _| false,
                |_: usize, t: usize| t == 10,
                |_, t| t < 4,
                |b: usize, t: usize| b == 1 && t.is_multiple_of(2),
            ] {
                let own = |n: usize| if repeated { 1 } else { n / 11 };
                let mask = (0..33).map(|n| f32::from(u8::from(seen(own(n), n % 11))));
                let mut inputs = random(&op, 1.0);
                inputs.push((Slot::Mask, mask.collect()));
                check(gpu, &op, &inputs, &Tuning::default());
                // What is hidden is 0, and not near it.
                let got = output(gpu, &op, &inputs, &Tuning::default());
                for (row, got) in got.chunks(5).enumerate() {
                    let (b, t) = (row / 22, row % 11);
                    let seen = seen(if repeated { 1 } else { b }, t);
                    assert!(seen || got.iter().all(|&x| x == 0.0), "row {row}: {got:?}");
                }
            }
        }
    }
}

#[test]
fn hrr_numbers_of_any_size() {
    for gpu in gpus() {
        let op: Op = hrr(DType::F32, [1, 2, 19, 24], Lie::Contiguous).into();
        for size in [1e-8, 1e-3, 1e5, 1e8] {
            check(gpu, &op, &random(&op, size), &Tuning::default());
        }
        // Rows of zeros: of values, of queries, and of all keys.
        for slot in [Slot::Q, Slot::K, Slot::V] {
            let mut inputs = random(&op, 1.0);
            let (_, data) = inputs.iter_mut().find(|(s, _)| *s == slot).expect("there");
            let rows = if slot == Slot::K { 19 } else { 3 };
            data[..rows * 24].fill(0.0);
            check(gpu, &op, &inputs, &Tuning::default());
        }
    }
}

#[test]
fn flow_shapes() {
    for gpu in gpus() {
        for (number, [batch, heads, seq, dim]) in SHAPES.into_iter().enumerate() {
            let lie = LIES[number % 3];
            for (kv_len, value_dim, causal) in [
                (seq, dim, true),
                (seq, 5, true),
                (seq, dim, false),
                (2 * seq + 1, 5, false),
                (seq.div_ceil(3), dim + 1, false),
            ] {
                let lens = [batch, heads, seq, kv_len];
                let mut op = flow(DType::F32, lens, [dim, value_dim], lie);
                op.causal = causal;
                let op = op.into();
                check(gpu, &op, &random(&op, 1.0), &Tuning::default());
            }
        }
        for causal in [true, false] {
            let mut op = flow(DType::F32, [1, 1, 3, 3], [256, 300], Lie::Contiguous);
            op.causal = causal;
            let op = op.into();
            check(gpu, &op, &random(&op, 1.0), &Tuning::default());
        }
    }
}

#[test]
fn flow_numbers_of_any_size() {
    for gpu in gpus() {
        for causal in [true, false] {
            for (size, eps) in [(30.0, 1e-6), (1e4, 1e-6), (1e-3, 0.5), (1.0, 0.0)] {
                let mut op = flow(DType::F32, [1, 2, 23, 23], [8, 6], Lie::Inside).eps(eps);
                op.causal = causal;
                let op = op.into();
                check(gpu, &op, &random(&op, size), &Tuning::default());
            }
        }
    }
}

#[test]
fn aft_shapes() {
    for gpu in gpus() {
        for (number, shape) in SHAPES.into_iter().enumerate() {
            for causal in [false, true] {
                for rank in [None, Some(1), Some(8)] {
                    for term in [BiasTerm::Add, BiasTerm::Multiply] {
                        let mut op = aft(DType::F32, shape, rank, LIES[number % 3]).term(term);
                        op.causal = causal;
                        let op = op.into();
                        check(gpu, &op, &random(&op, 1.0), &Tuning::default());
                    }
                }
            }
        }
    }
}

#[test]
fn aft_numbers_of_any_size() {
    for gpu in gpus() {
        for term in [BiasTerm::Add, BiasTerm::Multiply] {
            let op: Op = aft(DType::F32, [1, 2, 23, 5], None, Lie::Contiguous)
                .term(term)
                .into();
            for size in [1e-4, 30.0, 1e18] {
                check(gpu, &op, &random(&op, size), &Tuning::default());
            }
        }
        // Hidden positions, all of them for one row.
        for causal in [false, true] {
            let mut op = aft(DType::F32, [1, 2, 23, 5], None, Lie::Contiguous);
            op.causal = causal;
            let op: Op = op.into();
            let mut inputs = random(&op, 1.0);
            let bias = inputs.iter_mut().find(|(slot, _)| *slot == Slot::Bias);
            let (_, bias) = bias.expect("a bias");
            for (number, x) in bias.iter_mut().enumerate() {
                if number / 23 == 3 || number % 5 == 0 {
                    *x = f32::NEG_INFINITY;
                }
            }
            for tuning in [Tuning::default(), splits(2)] {
                check(gpu, &op, &inputs, &tuning);
                let got = output(gpu, &op, &inputs, &tuning);
                assert!(got[3 * 5..4 * 5].iter().all(|&x| x == 0.0));
            }
        }
    }
}

/// One op of each form, of these tokens.
fn forms(dtype: DType, [batch, heads, seq, dim]: [u64; 4]) -> Vec<Op> {
    let shape = [batch, heads, seq, dim];
    let lens = [batch, heads, seq, seq];
    vec![
        hrr(dtype, shape, Lie::Contiguous).into(),
        flow(dtype, lens, [dim, dim + 2], Lie::Inside).into(),
        flow(dtype, lens, [dim, dim + 2], Lie::Turned)
            .causal()
            .into(),
        aft(dtype, shape, Some(3), Lie::Contiguous).into(),
        aft(dtype, shape, None, Lie::Inside)
            .term(BiasTerm::Multiply)
            .causal()
            .into(),
    ]
}

#[test]
fn half_precision_storage() {
    let mut ran = 0;
    for gpu in gpus() {
        if !gpu.engine().caps().f16 {
            continue;
        }
        ran += 1;
        for op in forms(DType::F16, [2, 2, 37, 18]) {
            check(gpu, &op, &random(&op, 1.0), &Tuning::default());
        }
    }
    common::say(format_args!("f16 on {ran} adapters"));
}

#[test]
fn any_number_of_ranges() {
    for gpu in gpus() {
        for op in forms(DType::F32, [2, 2, 101, 6]) {
            for number in [1, 2, 7, 101, 500] {
                check(gpu, &op, &random(&op, 1.0), &splits(number));
            }
        }
    }
}

#[test]
fn long_sequences_on_a_low_loop_budget() {
    for gpu in gpus() {
        for budget in [150, 700] {
            let low = with_caps(gpu, |caps| caps.loop_budget = budget);
            for op in forms(DType::F32, [1, 2, 1009, 9]) {
                let plan = low.engine().plan(&op).expect("plans");
                assert!(plan.outline().splits > 1, "{op:?}");
                check(&low, &op, &random(&op, 1.0), &Tuning::default());
            }
        }
    }
}

#[test]
fn sequences_past_the_loop_budget_of_drivers() {
    let gpu = &gpus()[0];
    let seq = 70_001;
    let ops: Vec<Op> = vec![
        hrr(DType::F32, [1, 1, seq, 2], Lie::Contiguous).into(),
        flow(DType::F32, [1, 1, 3, seq], [2, 1], Lie::Contiguous).into(),
    ];
    for op in ops {
        check(gpu, &op, &random(&op, 1.0), &Tuning::default());
        check(gpu, &op, &random(&op, 1.0), &splits(1));
    }
    // The causal reference takes the square of the length; this one has an output that is known: equal keys share
    // evenly, so that each output is the mean of the values so far, times one number.
    let op: Op = flow(DType::F32, [1, 1, seq, seq], [1, 1], Lie::Contiguous)
        .causal()
        .into();
    let count = seq as usize;
    // Around 1, so that means do not shrink.
    let v: Vec<f32> = noise(9, count).into_iter().map(|x| x + 1.0).collect();
    let inputs = [
        (Slot::Q, vec![0.0; count]),
        (Slot::K, vec![0.0; count]),
        (Slot::V, v.clone()),
    ];
    let mut sum = 0.0;
    let means = v.iter().zip(1..).map(|(&v, n)| {
        sum += f64::from(v);
        sum / f64::from(n)
    });
    // q = k = 1/2: flows are n / (n / 4) = 4, what is conserved 1 / 2 * (4 / 2 n) / n = 1.
    let wanted: Vec<f64> = means.map(|mean| mean / (1.0 + (-1.0f64).exp())).collect();
    let got = output(gpu, &op, &inputs, &Tuning::default());
    let error = reference::error(&got, &wanted);
    assert!(error <= F32, "{error:e}");
}

#[test]
fn slices_where_bindings_are_small() {
    for gpu in gpus() {
        let small = with_caps(gpu, |caps| caps.max_binding_bytes = 5 << 10);
        for op in forms(DType::F32, [3, 4, 21, 7]) {
            for tuning in [Tuning::default(), splits(3)] {
                let outline = Outline::new(&op, small.engine().caps(), &tuning).expect("plans");
                let all = Outline::new(&op, gpu.engine().caps(), &tuning).expect("plans");
                assert!(outline.steps.len() > all.steps.len(), "{op:?}");
                check(&small, &op, &random(&op, 1.0), &tuning);
            }
        }
        // A bias past a binding: its rows are cut.
        let op: Op = aft(DType::F32, [1, 1, 101, 2], None, Lie::Contiguous)
            .causal()
            .into();
        for tuning in [Tuning::default(), splits(3)] {
            check(&small, &op, &random(&op, 1.0), &tuning);
        }
    }
}

/// The error of an op that does not plan, as text.
fn refusal(op: impl Into<Op>, caps: &Caps, tuning: &Tuning) -> String {
    let op = op.into();
    match Outline::new(&op, caps, tuning) {
        Err(error @ (Error::Invalid { .. } | Error::Unsupported { .. })) => error.to_string(),
        other => panic!("{op:?}: {other:?}"),
    }
}

#[test]
fn errors_name_what_is_wrong() {
    let caps = Caps::minimum();
    let x = || Layout::f32([2, 3, 5, 4]);
    let invalid = |op: Op, said: &str| {
        let text = refusal(op, &caps, &Tuning::default());
        assert!(text.contains(said), "{said}: {text}");
    };
    let plain = || HrrAttention::new(x(), x(), x());
    let mut op = plain();
    op.q = Layout::f32([2, 3, 5]);
    invalid(op.into(), "q");
    let mut op = plain();
    op.k = Layout::f32([2, 3, 6, 4]);
    invalid(op.into(), "k");
    let mut op = plain();
    op.v.dtype = DType::F16;
    invalid(op.into(), "v");
    invalid(plain().output(x().with_strides([0; 4])).into(), "o");
    invalid(
        plain().mask(Layout::new(DType::Bool, [2, 4])).into(),
        "mask",
    );
    invalid(plain().mask(Layout::f32([2, 5])).into(), "mask");
    let wide = Layout::f32([1, 1, 5, 257]);
    invalid(
        HrrAttention::new(wide.clone(), wide.clone(), wide.clone()).into(),
        "257 channels",
    );

    let plain = || FlowAttention::new(x(), x(), x());
    invalid(plain().eps(-1.0).into(), "eps");
    invalid(plain().eps(f32::NAN).into(), "eps");
    let mut op = plain();
    op.k = Layout::f32([2, 3, 6, 4]);
    op.v = op.k.clone();
    invalid(op.clone().causal().into(), "k");
    op.v = x();
    invalid(op.into(), "v");
    let mut op = plain();
    op.k = Layout::f32([5]);
    invalid(op.into(), "k");
    invalid(
        FlowAttention::new(wide.clone(), wide.clone(), wide).into(),
        "257 channels",
    );

    let factors = |rows: Layout, columns: Layout| {
        let bias = PositionBias::Factors { rows, columns };
        AftFull::new(x(), x(), x(), bias)
    };
    let table = |rank| Layout::f32([5, rank]);
    invalid(factors(table(3), table(2)).into(), "bias_columns");
    invalid(factors(Layout::f32([4, 3]), table(3)).into(), "bias_rows");
    invalid(factors(table(3), Layout::f32([5])).into(), "bias_columns");
    let matrix = |bias| AftFull::new(x(), x(), x(), PositionBias::Matrix(bias));
    invalid(matrix(Layout::f32([5, 4])).into(), "bias");
    invalid(matrix(Layout::f16([5, 5])).into(), "bias");
    let huge = factors(table(1 << 20), table(1 << 20));
    invalid(huge.into(), "rank 1048576");

    // What a device cannot do, with the remedy.
    for op in forms(DType::F16, [1, 1, 5, 4]) {
        let text = refusal(op, &caps, &Tuning::default());
        assert!(text.contains("f16"), "{text}");
    }
    for op in forms(DType::F32, [1, 1, 5000, 4]) {
        let low = Caps {
            loop_budget: 40,
            ..caps.clone()
        };
        let text = refusal(op.clone(), &low, &Tuning::default());
        assert!(text.contains("loop"), "{text}");
        let text = refusal(op.clone(), &caps, &splits(0));
        assert!(text.contains("tuning.splits"), "{text}");
        let tile = Tuning {
            schedule: Some(Schedule::Tile),
            ..Tuning::default()
        };
        assert!(refusal(op.clone(), &caps, &tile).contains("tuning.schedule"));
        let few = Caps {
            max_invocations: 32,
            ..caps.clone()
        };
        let text = refusal(op, &few, &Tuning::default());
        assert!(text.contains("64 invocations"), "{text}");
    }
    // One head's sums in a binding.
    let small = Caps {
        max_binding_bytes: 64 << 10,
        ..caps.clone()
    };
    let op = hrr(DType::F32, [1, 1, 40, 200], Lie::Contiguous);
    let text = refusal(op, &small, &Tuning::default());
    assert!(text.contains("scratch"), "{text}");
}

#[test]
fn plans_keep_the_limits_or_say_why_not() {
    let (mut planned, mut refused) = (0, 0);
    let mut seeds = noise(11, 1 << 16).into_iter();
    let mut pick = |most: u64| {
        let x = seeds.next().expect("enough noise").abs();
        (f64::from(x) * 1e6) as u64 % most
    };
    for _ in 0..400 {
        let caps = Caps {
            max_binding_bytes: 4 << (8 + pick(18)),
            loop_budget: 1 << (5 + pick(12)),
            max_workgroups: 65_535 >> pick(3),
            software: pick(2) == 0,
            ..Caps::minimum()
        };
        let scale = pick(21);
        let seq = 1 + pick(1 << scale);
        let shape = [1 + pick(4), 1 + pick(5), seq, 1 + pick(256)];
        let tuning = match pick(4) {
            0 => splits(1 + pick(40) as u32),
            _ => Tuning::default(),
        };
        for op in forms(DType::F32, shape) {
            let outline = match Outline::new(&op, &caps, &tuning) {
                Ok(outline) => outline,
                Err(Error::Unsupported { .. }) => {
                    refused += 1;
                    continue;
                }
                Err(error) => panic!("{error}: {op:?}"),
            };
            planned += 1;
            keeps_the_limits(&outline, &caps);
            for (slot, layout) in op.tensors() {
                let steps = outline.steps.iter();
                let bound = steps
                    .flat_map(|step| &step.ranges)
                    .filter(|r| r.slot == slot);
                let end = bound.map(|range| range.offset + range.size).max();
                // Factors may have more positions than there are tokens.
                assert!(
                    end >= Some(layout.end_bytes()) || slot == Slot::BiasColumns,
                    "{slot:?} of {op:?}"
                );
            }
        }
    }
    assert!(planned > 200 && refused > 50, "{planned} and {refused}");
}

#[test]
fn ops_are_data() {
    for op in forms(DType::F16, [1, 2, 5, 4]) {
        let text = serde_json::to_string(&op).expect("writes");
        let back: Op = serde_json::from_str(&text).expect("reads");
        assert_eq!(op, back);
        for (slot, _) in op.tensors() {
            assert_eq!(op.is_output(slot), slot == Slot::O);
        }
    }
}
