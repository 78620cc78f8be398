//! Selections written into dense rows, on every adapter, against the reference.

mod common;

use common::{
    bits::{get, numbers, put, with_caps},
    gpus, name, place, untouched_around,
};
use foveate::{
    DType, Error, Gpu, Layout, NONE, Op, Scatter, ScatterArgs, Tensor, Tuning,
    plan::Outline,
    reference::{self, noise},
};

/// An index with entries in and out of bounds, repeated ones, and places that are not used.
fn some_index(op: &Scatter) -> Vec<u32> {
    let n = *op.y.shape.last().expect("has axes") as u32;
    let mut index = numbers(5, op.index.elements() as usize, n + n / 4 + 1);
    for (at, entry) in index.iter_mut().enumerate() {
        match at % 13 {
            4 => *entry = NONE,
            7 => *entry = n,
            9 => *entry = 1 << 31,
            5 | 11 => *entry = n - 1,
            _ => {}
        }
    }
    index
}

fn half(dtype: DType, data: Vec<f32>) -> Vec<f32> {
    let round = |x: f32| half::f16::from_f32(x).to_f32();
    match dtype {
        DType::F16 => data.into_iter().map(round).collect(),
        _ => data,
    }
}

fn check(gpu: &Gpu, op: &Scatter) {
    let index = some_index(op);
    let rows = (op.index.elements() / op.index.shape.last().expect("has axes")) as usize;
    let x = half(op.y.dtype, noise(3, index.len()));
    let gate = noise(4, rows);
    let index_tensor = put(gpu, &op.index, &index);
    let [x_tensor, gate_tensor] = [(&op.x, &x), (&op.gate, &gate)].map(|(layout, data)| {
        let layout = layout.clone()?;
        Some(place(gpu, layout, data).expect("fits"))
    });
    let y = place(gpu, op.y.clone(), &[]).expect("fits");
    let args = ScatterArgs {
        x: x_tensor.as_ref().map(Tensor::view),
        index: index_tensor.view(),
        gate: gate_tensor.as_ref().map(Tensor::view),
        y: y.view(),
    };
    gpu.compute(&op.clone().into(), args)
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    untouched_around(gpu, &y).expect("reads back");
    let got = gpu.download(&y).expect("reads back");

    let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|&x| x.into()).collect() };
    let factor = f64::from(op.factor.0);
    let factors: Vec<f64> = match &op.gate {
        Some(_) => wide(&gate).iter().map(|gate| gate * factor).collect(),
        None => vec![factor; rows],
    };
    let n = *op.y.shape.last().expect("has axes") as usize;
    let x = op.x.is_some().then(|| wide(&x));
    let fill = half(op.y.dtype, vec![op.fill.0])[0];
    let want = reference::scatter(x.as_deref(), &index, &factors, n, fill.into());
    if op.gate.is_none() && op.factor.0 == 1.0 {
        assert_eq!(wide(&got), want, "{}: {op:?}", name(gpu));
    }
    // Each element by itself: most places hold the fill, which makes the RMS small. Two roundings of f32, and one of f16.
    let (relative, least) = match op.y.dtype {
        DType::F16 => (6e-4, 6e-8),
        _ => (2e-7, 0.0),
    };
    for (at, (got, want)) in wide(&got).iter().zip(&want).enumerate() {
        let near = (got - want).abs() <= relative * want.abs() + least;
        assert!(near, "{}: {got} for {want} at {at}: {op:?}", name(gpu));
    }
}

/// An op on contiguous tensors, with what `bits` says.
fn some(dtype: DType, rows: &[u64], [k, n]: [u64; 2], bits: u32) -> Scatter {
    let list = [rows, &[k]].concat();
    let index = Layout::new(DType::U32, list.clone());
    let mut op = if bits & 1 != 0 {
        Scatter::new(Layout::new(dtype, list), index, n)
    } else {
        let y = Layout::new(dtype, [rows, &[n]].concat());
        Scatter::ones(index, n).output(y)
    };
    if bits & 2 != 0 {
        let rows = if rows.is_empty() { &[1] } else { rows };
        op = op.gate(Layout::f32(rows));
    }
    if bits & 4 != 0 {
        op = op.factor(-1.5);
    }
    if bits & 8 != 0 {
        op = op.fill(0.25);
    }
    op
}

const SHAPES: [(&[u64], [u64; 2]); 9] = [
    (&[], [1, 1]),
    (&[], [20, 7]),
    (&[1], [3, 1]),
    (&[40], [3, 8]),
    (&[2, 33], [2, 6]),
    (&[2, 3, 5], [9, 70]),
    (&[3, 2], [64, 1024]),
    (&[2, 2, 2], [5, 1500]),
    (&[3], [1300, 2100]),
];

#[test]
fn hostile_shapes() {
    for gpu in gpus() {
        for (rows, lens) in SHAPES {
            for bits in 0..16 {
                check(gpu, &some(DType::F32, rows, lens, bits));
                if gpu.engine().caps().f16 {
                    check(gpu, &some(DType::F16, rows, lens, bits));
                }
            }
        }
    }
}

/// Rows with gaps, axes exchanged, from an odd place on.
fn turned(layout: &Layout) -> Layout {
    let mut strides = vec![0; layout.rank()];
    let mut next = 1;
    let order = (0..layout.rank()).map(|axis| (axis + 1) % layout.rank());
    for axis in order {
        strides[axis] = next;
        next *= layout.shape[axis] + 1;
    }
    layout.clone().with_strides(strides).at(3)
}

#[test]
fn strided_views_slices_and_folded_grids() {
    for gpu in gpus() {
        let small = with_caps(gpu, |caps| {
            caps.max_binding_bytes = 4096;
            caps.max_workgroups = 3;
            caps.loop_budget = 40;
        });
        for (rows, lens) in SHAPES {
            for bits in [0, 3, 13] {
                let plain = some(DType::F32, rows, lens, bits);
                let mut op = plain.clone();
                op.x = op.x.as_ref().map(turned);
                op.gate = op.gate.as_ref().map(turned);
                op.index = turned(&op.index);
                op.y = turned(&op.y);
                check(gpu, &op);
                // A list of 1300 entries fits neither this binding nor the budget.
                if lens[0] < 1000 {
                    check(&small, &plain);
                }
            }
        }
        // A row longer than a binding.
        let long = some(DType::F32, &[2], [30, 5000], 5);
        let outline = small.engine().plan(&long.clone().into()).expect("plans");
        assert!(outline.outline().steps.len() >= 10);
        check(&small, &long);
    }
}

/// Elements that are no numbers come through, and so does what fills.
#[test]
fn copied_to_the_bit() {
    for gpu in gpus() {
        let x = Layout::f32([1, 4]);
        let op =
            Scatter::new(x.clone(), Layout::new(DType::U32, [1, 4]), 5).fill(f32::NEG_INFINITY);
        let bits = [f32::INFINITY, -0.0, f32::MIN_POSITIVE, f32::NEG_INFINITY].map(f32::to_bits);
        let (x, index) = (put(gpu, &x, &bits), put(gpu, &op.index, &[4, 0, 2, NONE]));
        let y = put(gpu, &op.y, &[]);
        let args = ScatterArgs {
            x: Some(x.view()),
            index: index.view(),
            gate: None,
            y: y.view(),
        };
        gpu.compute(&op.into(), args).expect("runs");
        let none = f32::NEG_INFINITY.to_bits();
        let want = [bits[1], none, bits[2], none, bits[0]];
        assert_eq!(get(gpu, &y), want, "{}", name(gpu));
    }
}

#[test]
fn wrong_ops_are_refused() {
    let index = Layout::new(DType::U32, [2, 3, 4]);
    let plain = || Scatter::new(Layout::f32([2, 3, 4]), index.clone(), 9);
    let mut long = plain();
    long.index = Layout::new(DType::U32, [1, 1, 1, 2, 3]);
    let expected = "make it agree with the other tensors";
    for (op, argument, remedy) in [
        (plain().output(Layout::f32([2, 4, 9])), "y", expected),
        (plain().output(Layout::f16([2, 3, 9])), "x", "give f16"),
        (plain().gate(Layout::f32([2, 4])), "gate", expected),
        (plain().gate(Layout::f16([2, 3])), "gate", "give f32"),
        (plain().factor(f32::NAN), "factor", "give a finite number"),
        (Scatter::ones(Layout::f32([2, 3]), 4), "index", "give u32"),
        (
            long,
            "index",
            "give it 1 to 4 axes, the last along a row's entries",
        ),
    ] {
        match Op::from(op.clone()).check() {
            Err(Error::Invalid {
                argument: found,
                remedy: said,
                ..
            }) => assert_eq!(
                (found.as_str(), said.as_str()),
                (argument, remedy),
                "{op:?}"
            ),
            other => panic!("{other:?}: {op:?}"),
        }
    }
    let caps = foveate::Caps {
        loop_budget: 40,
        ..gpus()[0].engine().caps().clone()
    };
    let op = Scatter::ones(Layout::new(DType::U32, [9000]), 4);
    let error = Outline::new(&op.into(), &caps, &Tuning::default()).expect_err("is too long");
    assert!(
        error
            .to_string()
            .contains("index with 9000 entries in a row"),
        "{error}"
    );
}
