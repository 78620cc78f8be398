//! Short convolutions on every adapter, against the f64 reference.

mod common;

use common::{gpus, name, place, say, untouched_around};
use foveate::{
    Activation, Caps, DType, Error, Gpu, Layout, Op, ShortConv, ShortConvArgs, Tensor, Tuning,
    kernels::{Kernel, short_conv::Read},
    plan::Outline,
    reference::{self, ShortConvInputs, ShortConvOutputs, noise},
};

const F32: f64 = 2e-6;
/// Rounding of a sum counts more where SiLU leaves little of it.
const SILU: f64 = 1e-5;
const F16: f64 = 2e-3;

/// Noise that this storage holds exactly.
fn numbers(seed: u64, layout: &Layout) -> Vec<f32> {
    let mut data = noise(seed, layout.elements() as usize);
    if layout.dtype == DType::F16 {
        for x in &mut data {
            *x = half::f16::from_f32(*x).to_f32();
        }
    }
    data
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| x.into()).collect()
}

/// The inputs of an op.
struct Data {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    state: Option<Vec<f32>>,
    cu: Option<Vec<u32>>,
}

impl Data {
    fn of(op: &ShortConv, cu: Option<&[u32]>) -> Self {
        Self {
            x: numbers(1, &op.x),
            weight: numbers(2, &op.weight),
            bias: op.bias.as_ref().map(|layout| numbers(3, layout)),
            state: op.initial_state.as_ref().map(|layout| numbers(4, layout)),
            cu: cu.map(<[u32]>::to_vec),
        }
    }

    fn expected(&self, op: &ShortConv) -> ShortConvOutputs {
        let [batch, channels, seq] = [0, 1, 2].map(|axis| op.x.shape[axis] as usize);
        let dynamic = op.weight.rank() == 4;
        let cu: Option<Vec<usize>> = self
            .cu
            .as_ref()
            .map(|cu| cu.iter().map(|&n| n as usize).collect());
        reference::short_conv(&ShortConvInputs {
            batch,
            channels,
            seq,
            heads: op.weight.shape[op.weight.rank() - 2] as usize,
            taps: op.taps() as usize,
            padding_left: op.padding_left as usize,
            softmax: op.softmax,
            renormalise: op.renormalise,
            silu: op.activation == Activation::Silu,
            x: &wide(&self.x),
            weight: &wide(&self.weight),
            dynamic,
            bias: self.bias.as_deref().map(wide).as_deref(),
            initial_state: self.state.as_deref().map(wide).as_deref(),
            cu_seqlens: cu.as_deref(),
        })
    }

    /// Output and final state on the device; all around them untouched.
    fn run(&self, gpu: &Gpu, op: &ShortConv) -> (Vec<f32>, Option<Vec<f32>>) {
        let put = |layout: &Layout, data: &[f32]| place(gpu, layout.clone(), data).expect("fits");
        let x = put(&op.x, &self.x);
        let weight = put(&op.weight, &self.weight);
        let y = put(&op.y, &[]);
        let with = |layout: &Option<Layout>, data: &Option<Vec<f32>>| -> Option<Tensor> {
            Some(put(layout.as_ref()?, data.as_deref()?))
        };
        let bias = with(&op.bias, &self.bias);
        let initial = with(&op.initial_state, &self.state);
        let last = match (&op.final_state, op.in_place) {
            (_, true) => initial.clone(),
            (layout, false) => layout.as_ref().map(|layout| put(layout, &[])),
        };
        let cu = self
            .cu
            .as_ref()
            .map(|cu| gpu.upload_u32(cu, [cu.len() as u64]).expect("fits"));
        let mut args = ShortConvArgs::new(x.view(), weight.view(), y.view());
        args.bias = bias.as_ref().map(Tensor::view);
        args.initial_state = initial.as_ref().filter(|_| !op.in_place).map(Tensor::view);
        args.final_state = last.as_ref().map(Tensor::view);
        args.cu_seqlens = cu.as_ref().map(Tensor::view);
        let plan = gpu
            .engine()
            .plan(&op.clone().into())
            .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
        gpu.run(&plan.bind(args).expect("binds")).expect("runs");
        untouched_around(gpu, &y).expect("reads back");
        let state = last.map(|last| {
            untouched_around(gpu, &last).expect("reads back");
            gpu.download(&last).expect("reads back")
        });
        (gpu.download(&y).expect("reads back"), state)
    }
}

fn check_packed(gpu: &Gpu, op: &ShortConv, cu: Option<&[u32]>) {
    let data = Data::of(op, cu);
    let expected = data.expected(op);
    let (y, state) = data.run(gpu, op);
    let error = reference::error(&y, &expected.y);
    let most = match (op.x.dtype, op.activation) {
        (DType::F16, _) => F16,
        (_, Activation::Silu) => SILU,
        _ => F32,
    };
    assert!(error <= most, "{}: {error:e}: {op:?}", name(gpu));
    if let Some(state) = state {
        // Inputs are copied to the bit.
        assert_eq!(wide(&state), expected.final_state, "{}: {op:?}", name(gpu));
    }
}

fn check(gpu: &Gpu, op: &ShortConv) {
    check_packed(gpu, op, None);
}

/// `[batch, channels, seq]` with channels or tokens side by side.
fn shaped(dtype: DType, [batch, channels, seq]: [u64; 3], channels_last: bool) -> Layout {
    if channels_last {
        Layout::new(dtype, [batch, seq, channels]).transposed(1, 2)
    } else {
        Layout::new(dtype, [batch, channels, seq])
    }
}

fn causal(dtype: DType, shape: [u64; 3], taps: u64, channels_last: bool) -> ShortConv {
    ShortConv::new(
        shaped(dtype, shape, channels_last),
        Layout::new(dtype, [shape[1], taps]),
    )
}

/// With all that a causal convolution may have.
fn full(op: ShortConv) -> ShortConv {
    let bias = Layout::new(op.weight.dtype, [op.x.shape[1]]);
    op.bias(bias).silu().carried_state()
}

fn read(gpu: &Gpu, op: &ShortConv) -> Read {
    let plan = gpu.engine().plan(&op.clone().into()).expect("plans");
    match plan.outline().steps[0].kernel {
        Kernel::ShortConv(variant) => variant.read,
        other => panic!("{other:?}"),
    }
}

const SHAPES: [[u64; 3]; 10] = [
    [1, 1, 1],
    [2, 3, 1],
    [1, 4, 2],
    [2, 5, 7],
    [3, 4, 8],
    [1, 64, 33],
    [2, 100, 16],
    [1, 8, 130],
    [2, 3, 64],
    [1, 2, 700],
];

#[test]
fn causal_convolutions_of_hostile_shapes() {
    for gpu in gpus() {
        for shape in SHAPES {
            for channels_last in [true, false] {
                for taps in [1, 2, 4] {
                    check(gpu, &causal(DType::F32, shape, taps, channels_last));
                }
                check(gpu, &full(causal(DType::F32, shape, 4, channels_last)));
            }
        }
    }
}

#[test]
fn every_number_of_taps() {
    for gpu in gpus() {
        for taps in (1..=10).chain([13, 16, 31, 64, 301]) {
            for (shape, channels_last) in [([1, 8, 37], true), ([2, 3, 40], false)] {
                let op = causal(DType::F32, shape, taps, channels_last);
                check(gpu, &op);
                if taps > 1 {
                    check(gpu, &full(op.clone()));
                }
                check(gpu, &op.padding_left((taps - 1) / 2));
            }
        }
    }
}

#[test]
fn states_in_out_and_in_place() {
    for gpu in gpus() {
        for shape in [
            [2, 3, 1],
            [2, 4, 2],
            [1, 8, 3],
            [2, 5, 29],
            [2, 8, 700],
            [1, 3, 2600],
        ] {
            for channels_last in [true, false] {
                for taps in [2, 4, 11] {
                    let op = causal(DType::F32, shape, taps, channels_last);
                    let out = op.clone().with_final_state();
                    let both = out
                        .clone()
                        .initial_state(out.final_state.clone().expect("set"));
                    let apart = Layout::f32([shape[0], taps - 1, shape[1]])
                        .transposed(1, 2)
                        .at(3);
                    check(gpu, &op.clone().initial_state(apart.clone()));
                    check(gpu, &out.clone());
                    check(gpu, &both);
                    check(gpu, &op.clone().carried_state());
                    let mut op = both;
                    op.final_state = Some(apart);
                    check(gpu, &op);
                }
            }
        }
    }
}

/// A sequence in pieces, the state carried in place, gives what it does as a whole.
#[test]
fn pieces_give_the_whole() {
    let pieces = [1, 2, 1, 40, 3, 1, 17];
    let seq: u64 = pieces.iter().sum();
    for gpu in gpus() {
        for taps in [3, 4, 8, 12] {
            let channels = 8;
            let all = causal(DType::F32, [1, channels, seq], taps, true).silu();
            let data = Data::of(&all, None);
            let (whole, _) = data.run(gpu, &all);
            let y = gpu.allocate(all.y.clone()).expect("fits");
            let x = place(gpu, all.x.clone(), &data.x).expect("fits");
            let weight = place(gpu, all.weight.clone(), &data.weight).expect("fits");
            let zeros = vec![0.0; (channels * (taps - 1)) as usize];
            let state = gpu.upload(&zeros, [1, channels, taps - 1]).expect("fits");
            let mut first = 0;
            for len in pieces {
                let part = |layout: &Layout| {
                    let mut part = layout.clone().at(first * channels);
                    part.shape[2] = len;
                    part
                };
                let op = ShortConv::new(part(&all.x), all.weight.clone())
                    .output(part(&all.y))
                    .silu()
                    .carried_state();
                let plan = gpu.engine().plan(&op.clone().into()).expect("plans");
                let (x, y) = (x.with_layout(op.x.clone()), y.with_layout(op.y.clone()));
                let mut args = ShortConvArgs::new(x.view(), weight.view(), y.view());
                args.final_state = Some(state.view());
                gpu.run(&plan.bind(args).expect("binds")).expect("runs");
                first += len;
            }
            let error = reference::error(&gpu.download(&y).expect("reads back"), &wide(&whole));
            assert!(error <= F32, "{}: {error:e} with {taps} taps", name(gpu));
        }
    }
}

#[test]
fn weights_of_heads() {
    for gpu in gpus() {
        for channels_last in [true, false] {
            for (channels, heads) in [(12, 3), (16, 2), (6, 2), (40, 8), (8, 8), (8, 1)] {
                for taps in [3, 4, 8, 9, 31] {
                    let x = shaped(DType::F32, [2, channels, 21], channels_last);
                    let op = ShortConv::new(x, Layout::f32([heads, taps]));
                    check(gpu, &op);
                    check(gpu, &op.clone().softmax());
                    check(gpu, &op.padding_left(taps / 2).softmax());
                }
            }
        }
    }
}

#[test]
fn weights_of_tokens() {
    for gpu in gpus() {
        for channels_last in [true, false] {
            for (channels, heads) in [(12, 3), (6, 2), (8, 8), (8, 1)] {
                for (taps, seq) in [(1, 3), (3, 21), (4, 16), (7, 5), (9, 5), (31, 21)] {
                    let x = shaped(DType::F32, [2, channels, seq], channels_last);
                    let op = ShortConv::new(x, Layout::f32([2, seq, heads, taps]));
                    check(gpu, &op);
                    check(gpu, &op.clone().softmax());
                    check(gpu, &op.clone().renormalised());
                    if taps > 1 {
                        check(gpu, &full(op.clone().renormalised()));
                    }
                    check(gpu, &op.padding_left(taps / 2).renormalised());
                }
            }
        }
    }
}

#[test]
fn packed_sequences() {
    for gpu in gpus() {
        for cu in [
            vec![0, 1],
            vec![0, 40],
            vec![0, 1, 2, 9, 9, 9, 30, 33, 40],
            vec![0, 0, 20, 40, 40],
        ] {
            let sequences = cu.len() as u64 - 1;
            let seq = u64::from(cu[sequences as usize]);
            for channels_last in [true, false] {
                for taps in [2, 4, 11] {
                    for channels in [3, 8] {
                        let cu_layout = Layout::new(DType::U32, [sequences + 1]);
                        let x = shaped(DType::F32, [1, channels, seq], channels_last);
                        let op = ShortConv::new(x, Layout::f32([channels, taps]));
                        let op = op.packed(cu_layout);
                        check_packed(gpu, &op, Some(&cu));
                        check_packed(gpu, &op.clone().with_final_state(), Some(&cu));
                        check_packed(gpu, &full(op.clone()), Some(&cu));
                        check_packed(gpu, &op.clone().padding_left(taps / 2), Some(&cu));
                        let mut dynamic = op;
                        dynamic.weight = Layout::f32([1, seq, 1, taps]);
                        let dynamic = dynamic.padding_left(taps / 2).renormalised();
                        check_packed(gpu, &dynamic, Some(&cu));
                    }
                }
            }
        }
    }
}

/// Tokens after the last sequence: zeros, also where x holds none.
#[test]
fn tokens_after_the_last_sequence_are_zero() {
    for gpu in gpus() {
        for taps in [4, 9] {
            let op = causal(DType::F32, [1, 4, 20], taps, true)
                .packed(Layout::new(DType::U32, [3]))
                .silu();
            let mut data = Data::of(&op, Some(&[0, 5, 12]));
            for channel in data.x.chunks_mut(20) {
                channel[12..].fill(f32::NAN);
            }
            let (y, _) = data.run(gpu, &op);
            for (channel, x) in y.chunks(20).zip(data.x.chunks(20)) {
                assert!(channel[12..].iter().all(|&y| y == 0.0), "{channel:?} {x:?}");
                assert!(channel[..12].iter().all(|&y| y.is_finite() && y != 0.0));
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
        for shape in [[2, 3, 1], [2, 5, 7], [1, 8, 33], [2, 4, 64]] {
            for channels_last in [true, false] {
                for taps in [4, 9] {
                    let op = causal(DType::F16, shape, taps, channels_last);
                    check(gpu, &op);
                    check(gpu, &full(op.clone()));
                    let mut mixed = op.clone();
                    mixed.weight.dtype = DType::F32;
                    check(gpu, &full(mixed));
                    let mut mixed = op;
                    mixed.x.dtype = DType::F32;
                    mixed.y.dtype = DType::F32;
                    check(gpu, &full(mixed));
                }
            }
        }
        ran += 1;
    }
    say(format_args!(
        "f16 ran on {ran} of {} adapters",
        gpus().len()
    ));
}

#[test]
fn strided_views() {
    for gpu in gpus() {
        for taps in [4, 9] {
            // Rows padded and shifted, by fours and not.
            for (pad, shift) in [(4, 8), (3, 5)] {
                let row = 12 + pad;
                let padded = Layout::f32([2, 16, 12])
                    .with_strides([16 * row + pad, row, 1])
                    .at(shift)
                    .transposed(1, 2);
                let op = causal(DType::F32, [2, 12, 16], taps, true);
                let mut input = op.clone();
                input.x = padded.clone();
                check(gpu, &full(input.clone()));
                check(gpu, &full(op.clone().output(padded.clone())));
                check(gpu, &full(input.output(padded)));
            }
            // One order in, the other out.
            let op = causal(DType::F32, [2, 12, 16], taps, true);
            check(
                gpu,
                &full(op.output(shaped(DType::F32, [2, 12, 16], false))),
            );
            // Weights [taps, channels], and from one tensor with others.
            let mut op = causal(DType::F32, [2, 12, 16], taps, true);
            op.weight = Layout::f32([taps, 12]).transposed(0, 1);
            check(gpu, &full(op.clone()));
            op.weight = Layout::f32([12, taps]).with_strides([3 * taps, 2]).at(1);
            check(gpu, &full(op));
            // A batch that repeats, weights that all channels share, strides of nothing.
            let mut op = causal(DType::F32, [1, 12, 16], taps, true);
            op.x.strides[0] = 7;
            op.weight = Layout::f32([1, taps]).with_strides([5, 1]);
            check(gpu, &op);
        }
    }
}

#[test]
fn all_ways_to_read_are_taken() {
    let gpu = &gpus()[0];
    let op = |shape, channels_last| causal(DType::F32, shape, 4, channels_last);
    assert_eq!(read(gpu, &op([2, 8, 5], true)), Read::Channels4);
    assert_eq!(read(gpu, &op([2, 8, 1], true)), Read::Channels4);
    assert_eq!(read(gpu, &op([2, 6, 5], true)), Read::One);
    assert_eq!(read(gpu, &op([2, 6, 8], false)), Read::Tokens4);
    assert_eq!(read(gpu, &op([2, 6, 9], false)), Read::One);
    assert_eq!(read(gpu, &op([2, 6, 8], false).padding_left(1)), Read::One);
    let turned = op([2, 8, 8], true).output(shaped(DType::F32, [2, 8, 8], false));
    assert_eq!(read(gpu, &turned), Read::One);
    // Four channels of one head, or of four.
    let mut heads = op([2, 12, 5], true);
    heads.weight.shape[0] = 3;
    assert_eq!(read(gpu, &heads), Read::Channels4);
    heads.weight.shape[0] = 6;
    assert_eq!(read(gpu, &heads), Read::One);
}

/// A device of small bindings, few workgroups and a small budget.
fn small(gpu: &Gpu) -> Gpu {
    let caps = gpu.engine().caps().clone();
    let mut small = gpu.clone();
    *small.engine_mut() = gpu.engine().clone().with_caps(Caps {
        max_binding_bytes: 2048,
        max_workgroups: 3,
        loop_budget: 150,
        ..caps
    });
    small
}

#[test]
fn slices_of_small_bindings_and_grids() {
    for gpu in gpus() {
        let small = small(gpu);
        for taps in [4, 9, 21] {
            for (channels, channels_last) in [(8, true), (5, true), (6, false), (64, true)] {
                // The tokens that a token's taps reach must fit one binding.
                if channels * taps * 4 > 1100 {
                    continue;
                }
                let op = causal(DType::F32, [2, channels, 304], taps, channels_last);
                let plan = small.engine().plan(&op.clone().into()).expect("plans");
                assert!(plan.outline().steps.len() >= 8, "{}", plan.explain());
                check(&small, &op);
                check(&small, &full(op.clone()));
                check(&small, &op.clone().with_final_state());
                check(&small, &op.clone().padding_left(taps / 2));
                let mut dynamic = op.clone().renormalised();
                let heads = channels / (1 + u64::from(channels % 2 == 0));
                dynamic.weight = Layout::f32([2, 304, heads, taps]);
                if taps < 21 {
                    check(&small, &dynamic);
                }
                // States of all sequences must fit one as well.
                if channels < 64 && taps < 21 {
                    let mut packed = op;
                    packed.x = shaped(DType::F32, [1, channels, 304], channels_last);
                    packed.y = packed.x.clone();
                    let packed = packed.packed(Layout::new(DType::U32, [5]));
                    let cu = [0, 3, 120, 120, 304];
                    check_packed(&small, &full(packed), Some(&cu));
                }
            }
        }
    }
}

#[test]
fn more_workgroups_than_a_grid_axis_holds() {
    for gpu in gpus() {
        let caps = gpu.engine().caps().clone();
        let mut narrow = gpu.clone();
        *narrow.engine_mut() = gpu.engine().clone().with_caps(Caps {
            max_workgroups: 20,
            ..caps
        });
        check(&narrow, &causal(DType::F32, [3, 20_000, 1], 4, true));
        check(&narrow, &full(causal(DType::F32, [1, 3, 40_000], 3, false)));
    }
}

/// Long sequences and long runs of them.
#[test]
fn many_tokens() {
    for gpu in gpus() {
        check(gpu, &full(causal(DType::F32, [1, 3, 300_001], 4, true)));
        check(gpu, &full(causal(DType::F32, [1, 4, 200_000], 4, false)));
    }
}

/// Weights that no exponential takes as they are.
#[test]
fn large_weights_in_the_softmax() {
    for gpu in gpus() {
        for taps in [4, 9] {
            for dynamic in [false, true] {
                let mut op = causal(DType::F32, [1, 4, 6], taps, true).softmax();
                if dynamic {
                    op.weight = Layout::f32([1, 6, 4, taps]);
                    op = op.renormalised();
                }
                let mut data = Data::of(&op, None);
                for (at, w) in data.weight.iter_mut().enumerate() {
                    *w = *w * 300.0 - 2e4 + if at % 5 == 0 { 3e4 } else { 0.0 };
                }
                // Only large numbers, where f32 is exact enough: what is compared is the softmax.
                for w in &mut data.weight {
                    *w = w.round();
                }
                let (y, _) = data.run(gpu, &op);
                let error = reference::error(&y, &data.expected(&op).y);
                assert!(error <= F32, "{}: {error:e}", name(gpu));
            }
        }
    }
}

/// What is not finite stays in its channel and its sequence.
#[test]
fn numbers_that_are_not_finite_stay_where_they_are() {
    for gpu in gpus() {
        for taps in [4, 9] {
            let op =
                causal(DType::F32, [1, 8, 24], taps, true).packed(Layout::new(DType::U32, [3]));
            let mut data = Data::of(&op, Some(&[0, 11, 24]));
            data.x[3 * 24 + 10] = f32::NAN;
            let (y, _) = data.run(gpu, &op);
            let bad: Vec<usize> = (0..y.len()).filter(|&at| !y[at].is_finite()).collect();
            assert_eq!(bad, [3 * 24 + 10], "{}", name(gpu));
        }
    }
}

#[test]
fn wrong_ops_are_errors_that_name_the_argument() {
    let case = |change: &dyn Fn(&mut ShortConv), argument: &str| {
        let mut op = causal(DType::F32, [2, 12, 16], 4, true);
        Op::from(op.clone()).check().expect("is right");
        change(&mut op);
        match Op::from(op).check() {
            Err(Error::Invalid {
                argument: found,
                remedy,
                ..
            }) => {
                assert_eq!(found, argument);
                assert!(!remedy.is_empty());
            }
            other => panic!("{argument}: {other:?}"),
        }
    };
    case(&|op| op.x = Layout::f32([2, 12, 16, 1]), "x");
    case(&|op| op.x.dtype = DType::U32, "x");
    case(&|op| op.x.shape[0] = 0, "x");
    case(&|op| op.y.shape[2] = 15, "y");
    case(&|op| op.y.dtype = DType::F16, "y");
    case(&|op| op.y.strides[0] = 0, "y");
    case(&|op| op.weight = Layout::f32([12, 1, 4]), "weight");
    case(&|op| op.weight = Layout::f32([5, 4]), "weight");
    case(&|op| op.weight = Layout::f32([24, 4]), "weight");
    case(&|op| op.weight = Layout::f32([2, 15, 12, 4]), "weight");
    case(&|op| op.weight.dtype = DType::Bool, "weight");
    case(&|op| op.bias = Some(Layout::f32([11])), "bias");
    case(&|op| op.bias = Some(Layout::f16([12])), "bias");
    case(&|op| op.padding_left = 4, "padding_left");
    case(&|op| op.renormalise = true, "renormalise");
    case(
        &|op| (op.softmax, op.renormalise) = (true, true),
        "renormalise",
    );
    let state = Layout::f32([2, 12, 3]);
    case(
        &|op| op.initial_state = Some(Layout::f32([2, 12, 4])),
        "initial_state",
    );
    case(
        &|op| op.initial_state = Some(Layout::f16([2, 12, 3])),
        "initial_state",
    );
    case(
        &|op| op.final_state = Some(Layout::f32([3, 12, 3])),
        "final_state",
    );
    case(
        &|op| op.final_state = Some(state.clone().with_strides([36, 0, 1])),
        "final_state",
    );
    case(
        &|op| *op = op.clone().padding_left(2).initial_state(state.clone()),
        "initial_state",
    );
    case(
        &|op| {
            op.weight = Layout::f32([12, 1]);
            *op = op.clone().padding_left(0).with_final_state();
        },
        "final_state",
    );
    case(&|op| op.in_place = true, "final_state");
    case(
        &|op| {
            *op = op.clone().carried_state();
            op.initial_state = Some(state.clone().at(1));
        },
        "final_state",
    );
    case(
        &|op| op.cu_seqlens = Some(Layout::new(DType::U32, [3])),
        "cu_seqlens",
    );
    case(&|op| op.cu_seqlens = Some(Layout::f32([3])), "cu_seqlens");
    case(
        &|op| op.cu_seqlens = Some(Layout::new(DType::U32, [1])),
        "cu_seqlens",
    );
}

#[test]
fn what_a_device_cannot_do_is_an_error_that_says_so() {
    let refused =
        |op: ShortConv, caps: Caps| match Outline::new(&op.into(), &caps, &Tuning::default()) {
            Err(Error::Unsupported { what, reason, .. }) => format!("{what}: {reason}"),
            other => panic!("{other:?}"),
        };
    let half = causal(DType::F16, [1, 4, 8], 4, true);
    assert!(refused(half, Caps::minimum()).contains("SHADER_F16"));
    // Four taps at a time, and the loop around.
    let long = |taps| causal(DType::F32, [1, 4, 8], taps, true);
    let caps = Caps {
        loop_budget: 1000,
        ..Caps::minimum()
    };
    Outline::new(&long(3900).into(), &caps, &Tuning::default()).expect("plans");
    assert!(refused(long(4000), caps.clone()).contains("4000 taps"));
    assert!(refused(long(3900).with_final_state(), caps).contains("3899 inputs"));
}

#[test]
fn ops_are_data() {
    let op = full(causal(DType::F16, [1, 8, 24], 4, true).renormalised())
        .packed(Layout::new(DType::U32, [3]));
    let op = Op::from(op);
    let text = serde_json::to_string(&op).expect("serialises");
    assert!(text.starts_with(r#"{"short_conv":{"#), "{text}");
    assert_eq!(serde_json::from_str::<Op>(&text).expect("reads back"), op);
    // What may be left out.
    let layout = |shape: &str, strides: &str| {
        format!(r#"{{"dtype":"f32","shape":{shape},"strides":{strides}}}"#)
    };
    let (x, weight) = (layout("[1,2,4]", "[8,4,1]"), layout("[2,3]", "[3,1]"));
    let text =
        format!(r#"{{"short_conv":{{"x":{x},"y":{x},"weight":{weight},"padding_left":2}}}}"#);
    let short = serde_json::from_str::<Op>(&text).expect("reads");
    let want = ShortConv::new(Layout::f32([1, 2, 4]), Layout::f32([2, 3]));
    assert_eq!(short, want.into());
}
