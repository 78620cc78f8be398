//! Rows taken by an index and put back, on every adapter, against the reference.

mod common;

use common::{
    bits::{get, numbers, put, with_caps},
    gpus, name,
};
use foveate::{
    Caps, DType, Error, Gather, GatherArgs, Gpu, Layout, NONE, Op, Tuning,
    kernels::Kernel,
    plan::Outline,
    reference::{self, GatherInputs},
};

/// Elements that no sentinel is.
fn elements(layout: &Layout) -> Vec<u32> {
    let most = if layout.dtype == DType::F16 {
        0xb000
    } else {
        0xd000_0000
    };
    numbers(3, layout.elements() as usize, most)
}

/// An index with rows in and out of bounds, repeated ones, and places that are not used.
fn some_index(op: &Gather) -> Vec<u32> {
    let blocks = op.x.shape[2].div_ceil(op.block) as u32;
    let mut index = numbers(5, op.index.elements() as usize, blocks + blocks / 4 + 1);
    for (at, entry) in index.iter_mut().enumerate() {
        match at % 13 {
            4 => *entry = NONE,
            7 => *entry = blocks,
            9 => *entry = 1 << 31,
            11 => *entry = blocks - 1,
            _ => {}
        }
    }
    index
}

fn check(gpu: &Gpu, op: &Gather) {
    let (x, index) = (elements(&op.x), some_index(op));
    let x_tensor = put(gpu, &op.x, &x);
    let index_tensor = put(gpu, &op.index, &index);
    let y = put(gpu, &op.y, &[]);
    let args = GatherArgs {
        x: x_tensor.view(),
        index: index_tensor.view(),
        y: y.view(),
    };
    gpu.compute(&op.clone().into(), args)
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    let got = get(gpu, &y);

    let [batch, heads] = [op.y.shape[0], op.y.shape[1]];
    let of = |layout: &Layout, all: &[u32], b: u64, h: u64| -> Vec<u32> {
        let own = (b.min(layout.shape[0] - 1), h / (heads / layout.shape[1]));
        let each = all.len() as u64 / layout.shape[0] / layout.shape[1];
        let at = (own.0 * layout.shape[1] + own.1) * each;
        all[at as usize..(at + each) as usize].to_vec()
    };
    let mut expected = Vec::new();
    for b in 0..batch {
        for h in 0..heads {
            expected.extend(reference::gather(&GatherInputs {
                x: &of(&op.x, &x, b, h),
                dim: op.x.shape[3] as usize,
                index: &of(&op.index, &index, b, h),
                block: op.block as usize,
            }));
        }
    }
    assert_eq!(got.len(), expected.len());
    if let Some(at) = (0..got.len()).find(|&at| got[at] != expected[at]) {
        panic!(
            "{}: element {at} is {:x}, and not {:x}: {op:?}",
            name(gpu),
            got[at],
            expected[at]
        );
    }
}

fn plain(dtype: DType, x: [u64; 4], index: [u64; 3], block: u64) -> Gather {
    Gather::new(Layout::new(dtype, x), Layout::new(DType::U32, index)).block(block)
}

fn variant(op: &Gather, caps: &Caps) -> (bool, bool) {
    let outline = Outline::new(&op.clone().into(), caps, &Tuning::default()).expect("plans");
    match outline.steps[0].kernel {
        Kernel::Gather(variant) => (variant.f16, variant.vec4),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_shapes() {
    for gpu in gpus() {
        for (x, index, block) in [
            ([1, 1, 1, 1], [1, 1, 1], 1),
            ([1, 1, 7, 1], [1, 1, 20], 1),
            ([2, 3, 5, 6], [2, 3, 9], 1),
            ([2, 3, 5, 8], [1, 3, 9], 1),
            ([2, 3, 5, 8], [2, 1, 9], 2),
            ([1, 2, 13, 5], [3, 6, 4], 4),
            ([2, 6, 13, 4], [2, 2, 4], 5),
            ([1, 1, 33, 80], [2, 4, 70], 1),
            ([1, 2, 3, 16], [1, 2, 5], 7),
            ([1, 1, 300, 12], [1, 1, 3000], 1),
        ] {
            for dtype in [DType::F32, DType::U32] {
                check(gpu, &plain(dtype, x, index, block));
            }
        }
    }
}

#[test]
fn half_precision_in_words_and_alone() {
    for gpu in gpus() {
        // In words, no device feature is needed.
        for (x, index) in [([2, 3, 5, 6], [2, 3, 9]), ([2, 3, 5, 16], [2, 1, 9])] {
            let op = plain(DType::F16, x, index, 2);
            assert_eq!(variant(&op, &Caps::minimum()), (false, x[3] == 16));
            check(gpu, &op);
        }
        let odd = plain(DType::F16, [2, 3, 5, 7], [2, 3, 9], 1);
        if gpu.engine().caps().f16 {
            check(gpu, &odd);
            check(gpu, &plain(DType::F16, [1, 1, 5, 1], [1, 1, 11], 1));
        } else {
            let error = gpu.engine().plan(&odd.into()).expect_err("no f16");
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        }
    }
}

#[test]
fn strided_views() {
    for gpu in gpus() {
        for dim in [6, 16] {
            let row = dim + 4;
            let padded = Layout::f32([2, 5, 3, dim])
                .with_strides([15 * row, 3 * row, row, 1])
                .at(4)
                .transposed(1, 2);
            let index = Layout::new(DType::U32, [2, 3, 5])
                .with_strides([40, 3, 7])
                .at(2);
            let mut op = Gather::new(padded.clone(), index);
            check(gpu, &op);
            check(gpu, &op.clone().output(padded));
            op.x = Layout::f32([2, 3, dim, 5]).transposed(2, 3);
            check(gpu, &op);
            op.y = Layout::f32([2, 3, dim, 5]).transposed(2, 3);
            check(gpu, &op);
        }
    }
}

/// Slices of y, heads of x, and windows of the rows of one head.
#[test]
fn narrow_caps() {
    for gpu in gpus() {
        let small = with_caps(gpu, |caps| {
            caps.max_binding_bytes = 2048;
            caps.max_workgroups = 3;
            caps.loop_budget = 12;
        });
        for (dim, block) in [(6, 1), (16, 1), (16, 3), (1, 2)] {
            for (x, index) in [
                ([2, 4, 61, dim], [2, 4, 70]),
                ([1, 1, 700, dim], [2, 3, 90]),
                ([2, 6, 200, dim], [1, 2, 40]),
            ] {
                let op = plain(DType::F32, x, index, block);
                let steps = small.engine().plan(&op.clone().into()).expect("plans");
                assert!(dim == 1 || steps.outline().steps.len() > 4);
                check(&small, &op);
            }
        }
        // Where rows share an invocation.
        let few = with_caps(gpu, |caps| caps.software = true);
        check(&few, &plain(DType::F32, [1, 2, 300, 8], [1, 4, 21_000], 1));
        check(&few, &plain(DType::U32, [1, 2, 300, 3], [1, 2, 14_001], 3));
    }
}

/// Rows that several invocations share: on hardware, and where a row is past the loop budget of one.
#[test]
fn shared_rows() {
    for gpu in gpus() {
        for (software, budget) in [(false, 65_535), (false, 12), (true, 12)] {
            let other = with_caps(gpu, |caps| {
                caps.software = software;
                caps.loop_budget = budget;
            });
            for (dim, block) in [(80, 1), (81, 3), (300, 2), (1030, 1)] {
                let op = plain(DType::F32, [2, 2, 13, dim], [2, 4, 9], block);
                check(&other, &op);
            }
            let view = Layout::f32([1, 90, 7, 2]).transposed(1, 3);
            let index = Layout::new(DType::U32, [1, 2, 20]);
            check(&other, &Gather::new(view, index));
        }
    }
}

#[test]
fn an_order_and_back() {
    let gpu = &gpus()[0];
    let n = 1000u32;
    let order: Vec<u32> = (0..n).map(|i| i * 7 % n).collect();
    let mut inverse = vec![0; n as usize];
    for (place, &i) in order.iter().enumerate() {
        inverse[i as usize] = place as u32;
    }
    let x = elements(&Layout::f32([1, 1, 1000, 8]));
    let mut tensor = put(gpu, &Layout::f32([1, 1, 1000, 8]), &x);
    for index in [order, inverse] {
        let index = put(gpu, &Layout::new(DType::U32, [1, 1, 1000]), &index);
        let op = Gather::new(tensor.layout().clone(), index.layout().clone());
        let y = put(gpu, &op.y, &[]);
        let args = GatherArgs {
            x: tensor.view(),
            index: index.view(),
            y: y.view(),
        };
        gpu.compute(&op.into(), args).expect("runs");
        tensor = y;
    }
    assert_eq!(get(gpu, &tensor), x);
}

#[test]
fn what_is_refused() {
    let good = || plain(DType::F32, [2, 4, 5, 8], [2, 4, 3], 1);
    let invalid = |op: Gather, argument: &str, found: &str| {
        let error = Outline::new(&op.into(), &Caps::minimum(), &Tuning::default());
        match error.expect_err("is wrong") {
            Error::Invalid {
                argument: a,
                found: f,
                ..
            } => {
                assert_eq!((a.as_str(), f.as_str()), (argument, found));
            }
            other => panic!("{other}"),
        }
    };
    invalid(good().block(0), "block", "0 rows");
    let mut op = good();
    op.index.dtype = DType::F32;
    invalid(op, "index", "elements are f32");
    let mut op = good();
    op.x.dtype = DType::Bool;
    invalid(op, "x", "elements are bool");
    let mut op = good();
    op.y = Layout::f32([2, 4, 3, 9]);
    invalid(op, "y", "shape [2, 4, 3, 9] where [2, 4, 3, 8] is expected");
    let mut op = good();
    op.index = Layout::new(DType::U32, [2, 3, 3]);
    invalid(
        op,
        "index",
        "2 batch entries and 3 heads, where the other has more: 2 and 4",
    );
    let mut op = good();
    op.index = Layout::new(DType::U32, [3, 4, 3]);
    invalid(
        op,
        "x",
        "2 batch entries and 4 heads, where the other has more: 3 and 4",
    );
    let mut op = good();
    op.y.strides[2] = 0;
    let shape = "strides [96, 24, 0, 1] put several elements of shape [2, 4, 3, 8] in one place";
    invalid(op, "y", shape);
    let op: Op = good().into();
    let kernel_budget = Caps {
        loop_budget: 2,
        ..Caps::minimum()
    };
    let error = Outline::new(&op, &kernel_budget, &Tuning::default()).expect_err("no budget");
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}
