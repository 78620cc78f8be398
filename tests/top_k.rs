//! Top-k on every adapter, exactly as sorting on the host has it.

mod common;

use std::sync::{Mutex, PoisonError};

use common::{SENTINEL, bits::with_caps, gpus, name, place, say};
use foveate::{
    Caps, DType, Error, Gpu, Layout, Op, Tensor, TopK, TopKArgs, Tuning,
    plan::Outline,
    reference::{self, TopKRule, noise},
};
use proptest::prelude::*;

/// Numbers of hostile kinds, one kind per row.
fn numbers(seed: u64, rows: usize, length: usize) -> Vec<f32> {
    let mut data = noise(seed, rows * length);
    for (number, row) in data.chunks_mut(length).enumerate() {
        match number % 6 {
            // Many equal ones, of both zeros.
            1 => row.iter_mut().for_each(|x| *x = (*x * 2.0).round()),
            // Denormal numbers.
            2 => row
                .iter_mut()
                .for_each(|x| *x = f32::from_bits(x.to_bits() & 0x8000_00ff)),
            // NaN and infinities among numbers.
            3 => row.iter_mut().enumerate().for_each(|(j, x)| match j % 5 {
                0 => *x = f32::from_bits(0x7fc0_0001 | (j as u32 & 1) << 31),
                1 => *x = f32::INFINITY,
                2 => *x = f32::NEG_INFINITY,
                3 => *x = f32::from_bits(u32::MAX),
                _ => {}
            }),
            // All equal.
            4 => row.fill(if number % 4 == 0 { f32::NAN } else { -0.0 }),
            // Rising.
            5 => row.iter_mut().enumerate().for_each(|(j, x)| *x = j as f32),
            _ => {}
        }
    }
    data
}

fn round(dtype: DType, data: &mut [f32]) {
    if dtype == DType::F16 {
        for x in data {
            *x = half::f16::from_f32(*x).to_f32();
        }
    }
}

fn place_of(layout: &Layout, number: usize) -> usize {
    let mut rest = number as u64;
    let mut at = layout.offset;
    for (len, stride) in layout.shape.iter().zip(&layout.strides).rev() {
        at += rest % len * stride;
        rest /= len;
    }
    at as usize
}

/// A tensor of sentinels.
fn sentinels(gpu: &Gpu, layout: &Layout) -> Tensor {
    let tensor = place(
        gpu,
        Layout {
            dtype: if layout.dtype == DType::U32 {
                DType::F32
            } else {
                layout.dtype
            },
            ..layout.clone()
        },
        &[],
    )
    .expect("fits");
    tensor.with_layout(layout.clone())
}

/// What a tensor holds, as bits of f32 or u32; all around it must be sentinels.
fn read(gpu: &Gpu, tensor: &Tensor) -> Vec<u32> {
    let layout = tensor.layout();
    let count = tensor.buffer().size() / layout.dtype.size();
    let flat = tensor.with_layout(Layout::new(layout.dtype, [count]));
    let (all, sentinel): (Vec<u32>, u32) = match layout.dtype {
        DType::U32 => (
            gpu.download_u32(&flat).expect("reads back"),
            SENTINEL.to_bits(),
        ),
        dtype => {
            let all = gpu.download(&flat).expect("reads back");
            let mut sentinel = [SENTINEL];
            round(dtype, &mut sentinel);
            (
                all.iter().map(|x| x.to_bits()).collect(),
                sentinel[0].to_bits(),
            )
        }
    };
    let mut inside = vec![false; all.len()];
    let values = (0..layout.elements() as usize)
        .map(|number| {
            inside[place_of(layout, number)] = true;
            all[place_of(layout, number)]
        })
        .collect();
    for (at, (&x, inside)) in all.iter().zip(inside).enumerate() {
        assert!(
            inside || x == sentinel,
            "element {at} around the output was written"
        );
    }
    values
}

/// Runs it and compares it with the reference, bit by bit but for what a NaN of f16 carries.
fn check_with(gpu: &Gpu, op: &TopK, data: &[f32], lens: Option<&[u32]>) {
    // Long dispatches of one test would keep the OpenGL device from another for longer than it waits.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let length = *op.x.shape.last().expect("has axes") as usize;
    let mut data = data.to_vec();
    round(op.x.dtype, &mut data);
    let x = place(gpu, op.x.clone(), &data).expect("fits");
    let row_len = lens.map(|lens| {
        let shape = op.row_len.as_ref().expect("is given").shape.clone();
        gpu.upload_u32(lens, shape).expect("fits")
    });
    let values = op.values.as_ref().map(|layout| sentinels(gpu, layout));
    let indices = op.indices.as_ref().map(|layout| sentinels(gpu, layout));
    let plan = gpu
        .engine()
        .plan(&op.clone().into())
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    let call = plan
        .bind(TopKArgs {
            x: x.view(),
            row_len: row_len.as_ref().map(Tensor::view),
            values: values.as_ref().map(Tensor::view),
            indices: indices.as_ref().map(Tensor::view),
        })
        .expect("binds");
    gpu.run(&call).expect("runs");
    let values = values.map(|tensor| read(gpu, &tensor));
    let indices = indices.map(|tensor| read(gpu, &tensor));
    let rule = TopKRule {
        k: op.k as usize,
        largest: op.largest,
        sorted: op.sorted,
        skip_hidden: op.skip_hidden,
    };
    for (number, row) in data.chunks(length).enumerate() {
        let len = lens.map_or(length, |lens| lens[number] as usize);
        let (expected_values, expected_indices) = reference::top_k(row, len, &rule);
        let places = number * rule.k..(number + 1) * rule.k;
        if let Some(indices) = &indices {
            let found = &indices[places.clone()];
            assert_eq!(
                found,
                expected_indices,
                "{}: row {number} of {op:?}",
                name(gpu)
            );
        }
        if let Some(values) = &values {
            for (place, (&found, &expected)) in
                values[places].iter().zip(&expected_values).enumerate()
            {
                // In scratch, one NaN stands for what is not there, and goes there as another.
                let another = op.x.dtype == DType::F16 || expected.to_bits() == u32::MAX;
                let nan = f32::from_bits(found).is_nan() && expected.is_nan();
                assert!(
                    found == expected.to_bits() || nan && another,
                    "{}: value {place} of row {number} is {found:x}, not {:x}: {op:?}",
                    name(gpu),
                    expected.to_bits()
                );
            }
        }
    }
}

fn check(gpu: &Gpu, op: &TopK) {
    let length = *op.x.shape.last().expect("has axes") as usize;
    let rows = op.x.elements() as usize / length;
    check_with(gpu, op, &numbers(7, rows, length), None);
}

/// The ways of a selection.
fn ways(op: &TopK) -> [TopK; 6] {
    let op = || op.clone();
    [
        op(),
        op().smallest(),
        op().unsorted().values(None),
        op().skip_hidden().indices(None),
        op().smallest().skip_hidden().unsorted(),
        op().skip_hidden(),
    ]
}

#[test]
fn hostile_shapes() {
    for gpu in gpus() {
        for (length, k) in [
            (1, 1),
            (2, 1),
            (2, 2),
            (3, 2),
            (15, 15),
            (63, 1),
            (64, 8),
            (65, 16),
            (127, 127),
            (256, 17),
            (257, 64),
            (1009, 1),
            (1024, 65),
            (4096, 300),
        ] {
            for op in ways(&TopK::new(Layout::f32([7, length]), k)) {
                check(gpu, &op);
            }
        }
    }
}

/// Where rows are many, a software device gives each to one invocation.
#[test]
fn many_rows() {
    for gpu in gpus() {
        for (length, k) in [(1, 1), (5, 3), (64, 8), (301, 16), (3000, 9), (4096, 1)] {
            let op = TopK::new(Layout::f32([19, length]), k);
            check(gpu, &op);
            check(gpu, &op.smallest().skip_hidden().unsorted());
        }
        check(gpu, &TopK::new(Layout::f32([8200, 8]), 4));
    }
}

/// Variants for hardware, on the devices that are here: groups joined by 4, 8 and 16 lanes, workgroups of 256 that read
/// neighbours, copies of single elements, and short rows one to an invocation.
#[test]
fn as_hardware_has_it() {
    for gpu in gpus() {
        let hard = with_caps(gpu, |caps| caps.software = false);
        for (length, k) in [
            (1, 1),
            (63, 5),
            (256, 16),
            (257, 3),
            (1009, 64),
            (4099, 1100),
        ] {
            let op = TopK::new(Layout::f32([6, length]), k);
            check(&hard, &op);
            check(&hard, &op.skip_hidden().smallest().unsorted());
        }
        for (length, k) in [(16_384, 64), (9004, 3), (9001, 3), (33_000, 1)] {
            let op = TopK::new(Layout::f32([2, 3, length]), k);
            check(&hard, &op);
            let op = op.smallest().row_len(Layout::new(DType::U32, [2, 3]));
            let data = numbers(5, 6, length as usize);
            let lens = [0, 1, 77, length as u32 / 2, length as u32, u32::MAX];
            check_with(&hard, &op, &data, Some(&lens));
        }
        if gpu.engine().caps().f16 {
            for (length, k) in [(64, 8), (700, 40), (16_384, 64), (9001, 3)] {
                check(&hard, &TopK::new(Layout::f16([6, length]), k).skip_hidden());
            }
        }
        // A row in several bindings.
        let narrow = with_caps(&hard, |caps| {
            caps.max_binding_bytes = 32_768;
            caps.loop_budget = 1500;
        });
        check(&narrow, &TopK::new(Layout::f32([2, 40_000]), 10));
    }
}

#[test]
fn as_many_as_may_be() {
    for gpu in gpus() {
        for length in [4096, 4099, 9001] {
            let op = TopK::new(Layout::f32([6, length]), 4096);
            check(gpu, &op);
            check(gpu, &op.unsorted().smallest());
        }
    }
}

#[test]
fn long_rows() {
    for gpu in gpus() {
        for (rows, length, k) in [
            (6, 70_000, 1),
            (6, 70_000, 8),
            (2, 70_000, 4096),
            (6, 262_144, 64),
            (2, 1_048_577, 100),
        ] {
            let op = TopK::new(Layout::f32([rows, length]), k);
            check(gpu, &op);
            check(gpu, &op.skip_hidden().smallest());
        }
    }
}

#[test]
fn rows_with_lengths() {
    for gpu in gpus() {
        for (length, k) in [(40, 5), (64, 8), (700, 30), (9000, 3), (70_000, 20)] {
            let x = Layout::f32([2, 4, length]);
            let op = TopK::new(x, k).row_len(Layout::new(DType::U32, [2, 4]));
            let data = numbers(9, 8, length as usize);
            let half = length as u32 / 2;
            let lens = [
                0,
                1,
                3,
                half,
                half + 1,
                length as u32 - 1,
                length as u32,
                u32::MAX,
            ];
            for op in ways(&op) {
                check_with(gpu, &op, &data, Some(&lens));
            }
        }
    }
}

#[test]
fn any_strides_and_ranks() {
    for gpu in gpus() {
        let x = Layout::f32([3, 2, 2, 50])
            .with_strides([900, 7, 400, 8])
            .at(5);
        let out = |dtype| {
            Layout::new(dtype, [3, 2, 2, 6])
                .with_strides([1, 200, 100, 5])
                .at(3)
        };
        let op = TopK::new(x, 6)
            .values(Some(out(DType::F32)))
            .indices(Some(out(DType::U32)));
        for op in ways(&op) {
            check(gpu, &op);
        }
        check(gpu, &TopK::new(Layout::f32([77]), 7));
        check(
            gpu,
            &TopK::new(Layout::f32([30, 9_000]).transposed(0, 1), 3),
        );
        check(gpu, &TopK::new(Layout::f32([1, 1, 1, 1]), 1));
        // Along an axis whose neighbours are far apart.
        check(
            gpu,
            &TopK::new(Layout::f32([12_000, 4]).transposed(0, 1), 9),
        );
        // A row that is repeated.
        let repeated = Layout::f32([4, 100]).with_strides([0, 1]);
        let data: Vec<f32> = numbers(3, 1, 100).repeat(4);
        check_with(gpu, &TopK::new(repeated, 9), &data, None);
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
        for (length, k) in [(1, 1), (64, 8), (63, 5), (1000, 300), (70_000, 40)] {
            for op in ways(&TopK::new(Layout::f16([6, length]), k)) {
                check(gpu, &op);
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
fn more_rows_than_a_grid_axis_holds() {
    for gpu in gpus() {
        check(gpu, &TopK::new(Layout::f32([66_000, 5]), 2));
    }
}

#[test]
fn small_bindings_and_budgets() {
    for gpu in gpus() {
        let caps = gpu.engine().caps().clone();
        let narrow = |bytes, budget| {
            let mut small = gpu.clone();
            *small.engine_mut() = gpu.engine().clone().with_caps(Caps {
                max_binding_bytes: bytes,
                max_workgroups: 7,
                loop_budget: budget,
                ..caps.clone()
            });
            small
        };
        let small = narrow(4096, 2000);
        for (rows, length, k) in [(50, 64, 8), (9, 700, 3), (3, 5000, 2)] {
            let op = TopK::new(Layout::f32([rows, length]), k);
            for op in ways(&op) {
                check(&small, &op);
            }
        }
        // A row in several bindings, and with lengths.
        let small = narrow(65_536, 1500);
        let op = TopK::new(Layout::f32([4, 90_000]), 10);
        check(&small, &op);
        let op = op.row_len(Layout::new(DType::U32, [4]));
        let data = numbers(4, 4, 90_000);
        check_with(&small, &op, &data, Some(&[5, 16_385, 70_001, 90_000]));
    }
}

#[test]
fn what_is_wrong_is_named() {
    let caps = Caps::minimum();
    let error = |op: TopK| {
        Outline::new(&op.into(), &caps, &Tuning::default()).expect_err("the op is wrong")
    };
    let op = || TopK::new(Layout::f32([3, 10]), 4);
    assert_eq!(
        error(TopK::new(Layout::f32([3, 10]), 11)),
        Error::invalid(
            "k",
            "11 of rows of 10 elements",
            "take at most as many as a row has"
        )
    );
    for k in [0, 4097] {
        assert_eq!(
            error(TopK::new(Layout::f32([3, 10_000]), k)),
            Error::invalid("k", format!("{k}"), "give 1 to 4096")
        );
    }
    assert_eq!(
        error(op().values(None).indices(None)),
        Error::invalid(
            "values",
            "neither values nor indices are asked for",
            "give at least one of them a layout"
        )
    );
    let argument = |op: TopK| match error(op) {
        Error::Invalid { argument, .. } => argument,
        other => panic!("{other}"),
    };
    assert_eq!(argument(TopK::new(Layout::new(DType::U32, [4]), 1)), "x");
    assert_eq!(argument(TopK::new(Layout::f32([1, 1, 1, 1, 9]), 1)), "x");
    assert_eq!(argument(op().values(Some(Layout::f16([3, 4])))), "values");
    assert_eq!(
        argument(op().indices(Some(Layout::new(DType::U32, [3, 5])))),
        "indices"
    );
    assert_eq!(argument(op().indices(Some(Layout::f32([3, 4])))), "indices");
    assert_eq!(
        argument(op().row_len(Layout::new(DType::U32, [3, 1]))),
        "row_len"
    );
    let together = Layout::new(DType::U32, [3, 4]).with_strides([2, 1]);
    assert_eq!(argument(op().indices(Some(together))), "indices");
    for loop_budget in [0, 1, 100] {
        let little = Caps {
            loop_budget,
            ..Caps::minimum()
        };
        let refused = Outline::new(
            &TopK::new(Layout::f32([1, 5000]), 50).into(),
            &little,
            &Tuning::default(),
        );
        assert!(matches!(refused, Err(Error::Unsupported { .. })));
    }
}

#[test]
fn outputs_need_buffers_of_their_own() {
    let gpu = &gpus()[0];
    let op = TopK::new(Layout::f32([3, 10]), 4);
    let x = gpu.upload(&[0.0; 30], [3, 10]).expect("fits");
    let out = gpu.upload(&[0.0; 12], [3, 4]).expect("fits");
    let plan = gpu.engine().plan(&Op::from(op)).expect("plans");
    let indices = out.with_layout(Layout::new(DType::U32, [3, 4]));
    let bound = plan.bind(TopKArgs {
        x: x.view(),
        row_len: None,
        values: Some(out.view()),
        indices: Some(indices.view()),
    });
    assert!(bound.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn small_problems(
        rows in 1u64..9,
        length in 1u64..300,
        part in 0.0f64..1.0,
        way in 0usize..6,
        seed in any::<u64>(),
        half in any::<bool>(),
    ) {
        let k = ((part * length as f64) as u64).clamp(1, length);
        for gpu in gpus() {
            if half && !gpu.engine().caps().f16 {
                continue;
            }
            let dtype = if half { DType::F16 } else { DType::F32 };
            let op = TopK::new(Layout::new(dtype, [rows, length]), k);
            let data = numbers(seed, rows as usize, length as usize);
            check_with(gpu, &ways(&op)[way], &data, None);
        }
    }
}
