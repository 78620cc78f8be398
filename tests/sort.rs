//! Stable sorts by bucket on every adapter, against the reference.

mod common;

use common::{
    bits::{get, numbers, put, with_caps},
    gpus, name,
};
use foveate::{
    Caps, DType, Error, Gpu, Layout, NONE, Sort, SortArgs, Tuning, plan::Outline, reference,
};

fn check_on(gpu: &Gpu, op: &Sort, data: &[u32]) {
    let x = put(gpu, &op.x, data);
    let indices = put(gpu, &op.indices, &[]);
    let inverse = op.inverse.as_ref().map(|layout| put(gpu, layout, &[]));
    let starts = op.starts.as_ref().map(|layout| put(gpu, layout, &[]));
    let args = SortArgs {
        x: x.view(),
        indices: indices.view(),
        inverse: inverse.as_ref().map(|tensor| tensor.view()),
        starts: starts.as_ref().map(|tensor| tensor.view()),
    };
    gpu.compute(&op.clone().into(), args)
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    let got = [
        Some(get(gpu, &indices)),
        inverse.map(|tensor| get(gpu, &tensor)),
        starts.map(|tensor| get(gpu, &tensor)),
    ];
    let n = op.x.shape[2] as usize;
    let rows: Vec<_> = data
        .chunks(n)
        .map(|row| reference::sort(row, op.buckets as u32))
        .collect();
    for (got, (what, expected)) in got.into_iter().zip([
        (
            "indices",
            rows.iter()
                .flat_map(|row| row.indices.clone())
                .collect::<Vec<u32>>(),
        ),
        (
            "inverse",
            rows.iter().flat_map(|row| row.inverse.clone()).collect(),
        ),
        (
            "starts",
            rows.iter().flat_map(|row| row.starts.clone()).collect(),
        ),
    ]) {
        if let Some(got) = got
            && got != expected
        {
            let at = got.iter().zip(&expected).position(|(a, b)| a != b);
            panic!("{}: {what} differ at {at:?}: {op:?}", name(gpu));
        }
    }
}

/// Random buckets, a tenth of the elements with none.
fn check(gpu: &Gpu, op: &Sort) {
    let bound = (op.buckets + op.buckets / 10 + 1).min(u64::from(u32::MAX)) as u32;
    let mut data = numbers(op.buckets, op.x.elements() as usize, bound);
    for at in (3..data.len()).step_by(17) {
        data[at] = NONE;
    }
    check_on(gpu, op, &data);
}

fn plain(shape: [u64; 3], buckets: u64) -> Sort {
    Sort::new(Layout::new(DType::U32, shape), buckets)
        .with_inverse()
        .with_starts()
}

#[test]
fn hostile_shapes() {
    for gpu in gpus() {
        for (shape, buckets) in [
            ([1, 1, 1], 1),
            ([1, 1, 2], 1),
            ([2, 3, 67], 4),
            ([1, 2, 64], 7),
            ([3, 1, 1000], 63),
            ([1, 2, 1025], 64),
            ([1, 1, 4099], 300),
            ([1, 1, 5000], 65_536),
            ([2, 1, 300], 70_000),
        ] {
            check(gpu, &plain(shape, buckets));
        }
        // The order alone; and with one of the others.
        let alone = Sort::new(Layout::new(DType::U32, [2, 2, 130]), 20);
        check(gpu, &alone);
        check(gpu, &alone.clone().with_inverse());
        check(gpu, &alone.with_starts());
        // Numbers of 24 bits, without starts of so many.
        let op = Sort::new(Layout::new(DType::U32, [1, 1, 777]), 1 << 23);
        check(gpu, &op.with_inverse());
    }
}

#[test]
fn all_alike_and_all_without_a_bucket() {
    for gpu in gpus() {
        for value in [0, 5, 11, 12, NONE] {
            check_on(gpu, &plain([1, 1, 3000], 12), &vec![value; 3000]);
        }
        let falling: Vec<u32> = (0..3000).rev().collect();
        check_on(gpu, &plain([1, 1, 3000], 3000), &falling);
    }
}

#[test]
fn long_rows() {
    for gpu in gpus() {
        check(gpu, &plain([1, 1, 200_003], 1000));
        check(gpu, &plain([1, 2, 70_001], 65_536));
    }
}

#[test]
fn strided_views() {
    for gpu in gpus() {
        let apart = |width: u64| {
            Layout::new(DType::U32, [2, 3, width])
                .with_strides([2, 4, 13])
                .at(3)
        };
        let mut op = plain([2, 3, 100], 9);
        op.x = apart(100);
        op.indices = apart(100);
        op.inverse = Some(apart(100));
        op.starts = Some(apart(10));
        check(gpu, &op);
        // One row for all.
        op.x = Layout::new(DType::U32, [2, 3, 100]).with_strides([0, 0, 1]);
        let row = numbers(1, 100, 12);
        check_on(gpu, &op, &row.repeat(6));
    }
}

#[test]
fn narrow_caps() {
    for gpu in gpus() {
        let small = with_caps(gpu, |caps| {
            caps.max_binding_bytes = 4096;
            caps.max_workgroups = 3;
            caps.loop_budget = 300;
        });
        let op = plain([2, 7, 100], 5);
        let steps = small.engine().plan(&op.clone().into()).expect("plans");
        assert!(steps.outline().steps.len() > 4, "{}", steps.explain());
        check(&small, &op);
        check(&small, &plain([2, 3, 300], 100));
        // Chunks of a hardware device, and of a software one.
        for software in [false, true] {
            let other = with_caps(gpu, |caps| caps.software = software);
            check(&other, &plain([1, 1, 33_000], 500));
            check(&other, &plain([3, 40, 700], 30));
        }
        let error = small.engine().plan(&plain([1, 1, 5000], 5).into());
        let error = error.expect_err("no row fits");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

#[test]
fn what_is_refused() {
    let invalid = |op: Sort, argument: &str, found: &str| {
        let error = Outline::new(&op.into(), &Caps::minimum(), &Tuning::default());
        match error.expect_err("is wrong") {
            Error::Invalid {
                argument: a,
                found: f,
                ..
            } => assert_eq!((a.as_str(), f.as_str()), (argument, found)),
            other => panic!("{other}"),
        }
    };
    let x = Layout::new(DType::U32, [2, 3, 5]);
    invalid(Sort::new(x.clone(), 0), "buckets", "0");
    invalid(Sort::new(x.clone(), (1 << 31) + 1), "buckets", "2147483649");
    invalid(
        Sort::new(Layout::f32([2, 3, 5]), 4),
        "x",
        "elements are f32",
    );
    invalid(
        Sort::new(Layout::new(DType::U32, [3, 5]), 4),
        "x",
        "2 axes in shape [3, 5]",
    );
    let mut op = Sort::new(x.clone(), 4).with_starts();
    op.buckets = 5;
    invalid(op, "starts", "shape [2, 3, 5] where [2, 3, 6] is expected");
    let mut op = Sort::new(x, 4).with_inverse();
    op.inverse = Some(Layout::new(DType::U32, [2, 3, 5]).with_strides([0, 5, 1]));
    invalid(
        op,
        "inverse",
        "strides [0, 5, 1] put several elements of shape [2, 3, 5] in one place",
    );
}
