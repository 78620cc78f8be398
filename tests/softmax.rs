//! Softmax and log-softmax on every adapter, against the f64 reference.

mod common;

use common::{gpus, name, place, say, untouched_around};
use foveate::{
    Caps, DType, Gpu, Layout, Schedule, Softmax, SoftmaxArgs, Tuning,
    reference::{self, noise},
};

const F32: f64 = 1e-5;
const F16: f64 = 2e-3;

/// The error of a softmax of these numbers, and everything around the output untouched.
fn error(gpu: &Gpu, op: &Softmax, data: &[f32], tuning: &Tuning) -> f64 {
    let x = place(gpu, op.x.clone(), data).expect("fits");
    let y = if op.in_place {
        x.clone()
    } else {
        place(gpu, op.y.clone(), &[]).expect("fits")
    };
    let plan = gpu
        .engine()
        .plan_with(&op.clone().into(), tuning)
        .unwrap_or_else(|error| panic!("{}: {error}", name(gpu)));
    let call = plan
        .bind(SoftmaxArgs {
            x: (!op.in_place).then(|| x.view()),
            y: y.view(),
        })
        .expect("binds");
    gpu.run(&call).expect("runs");
    untouched_around(gpu, &y).expect("reads back");
    let shape: Vec<usize> = op.x.shape.iter().map(|&len| len as usize).collect();
    let wide: Vec<f64> = data.iter().map(|&x| x.into()).collect();
    let scale = op.scale.unwrap_or(1.0).into();
    let expected = reference::softmax(&wide, &shape, op.axis, scale, op.log);
    reference::error(&gpu.download(&y).expect("reads back"), &expected)
}

/// Without outliers: the error counts against the RMS, which a row's largest weight leaves far
/// behind as rows grow.
fn numbers(layout: &Layout) -> Vec<f32> {
    noise(11, layout.elements() as usize)
        .into_iter()
        .map(|x| half::f16::from_f32(x.clamp(-1.5, 1.5)).to_f32())
        .collect()
}

fn check(gpu: &Gpu, op: &Softmax, tuning: &Tuning, most: f64) {
    let error = error(gpu, op, &numbers(&op.x), tuning);
    assert!(error <= most, "{}: {error:e}: {op:?}", name(gpu));
}

#[test]
fn hostile_lengths() {
    for gpu in gpus() {
        for length in [
            1, 2, 3, 4, 5, 31, 32, 33, 127, 128, 129, 512, 516, 1023, 4096, 5000,
        ] {
            let op = Softmax::new(Layout::f32([7, length]), 1);
            check(gpu, &op, &Tuning::default(), F32);
        }
    }
}

#[test]
fn any_axis_of_any_rank() {
    for gpu in gpus() {
        for (shape, axes) in [
            (vec![9], 1),
            (vec![5, 6], 2),
            (vec![3, 4, 5], 3),
            (vec![2, 3, 20, 17], 4),
            (vec![2, 1, 3, 1, 40], 5),
        ] {
            for axis in 0..axes {
                let op = Softmax::new(Layout::f32(shape.clone()), axis);
                check(gpu, &op, &Tuning::default(), F32);
                check(gpu, &op.log(), &Tuning::default(), F32);
            }
        }
    }
}

#[test]
fn in_place_scaled_and_logarithmic() {
    for gpu in gpus() {
        for length in [6, 64, 700, 3000] {
            let op = Softmax::new(Layout::f32([5, length]), 1).scale(-0.5);
            check(gpu, &op, &Tuning::default(), F32);
            check(gpu, &op.clone().in_place(), &Tuning::default(), F32);
            check(gpu, &op.log().in_place(), &Tuning::default(), F32);
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
        for length in [7, 64, 1000] {
            let op = Softmax::new(Layout::f16([5, length]), 1);
            check(gpu, &op, &Tuning::default(), F16);
            check(gpu, &op.log(), &Tuning::default(), F16);
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
        for shape in [[70_000, 3], [66_000, 64]] {
            let op = Softmax::new(Layout::f32(shape), 1);
            check(gpu, &op, &Tuning::default(), F32);
        }
    }
}

#[test]
fn long_rows_in_ranges() {
    for gpu in gpus() {
        let op = Softmax::new(Layout::f32([2, 300_001]), 1);
        check(gpu, &op, &Tuning::default(), F32);
        check(gpu, &op.log().in_place(), &Tuning::default(), F32);
        // Along the first axis, rows lie side by side.
        let op = Softmax::new(Layout::f32([70_001, 9]), 0);
        check(gpu, &op, &Tuning::default(), F32);
    }
}

#[test]
fn strided_views_and_slices() {
    for gpu in gpus() {
        let padded = Layout::f32([3, 5, 24]).with_strides([200, 40, 1]).at(7);
        let op = Softmax::new(padded.clone(), 2);
        check(gpu, &op, &Tuning::default(), F32);
        check(
            gpu,
            &op.clone().output(padded.clone()),
            &Tuning::default(),
            F32,
        );
        check(gpu, &op.in_place(), &Tuning::default(), F32);
        let turned = Softmax::new(Layout::f32([24, 36]).transposed(0, 1), 1);
        check(gpu, &turned, &Tuning::default(), F32);

        let caps = gpu.engine().caps().clone();
        let mut small = gpu.clone();
        *small.engine_mut() = gpu.engine().clone().with_caps(Caps {
            max_binding_bytes: 2048,
            max_workgroups: 3,
            loop_budget: 100,
            ..caps
        });
        for (shape, axis) in [([6, 2000], 1), ([50, 40], 0), ([40, 50], 1)] {
            let op = Softmax::new(Layout::f32(shape), axis);
            check(&small, &op, &Tuning::default(), F32);
            check(&small, &op.in_place(), &Tuning::default(), F32);
        }
    }
}

/// Devices without subgroups join a row in workgroup memory: also tested where there are some.
#[test]
fn rows_joined_in_workgroup_memory() {
    for gpu in gpus() {
        let caps = gpu.engine().caps().clone();
        let mut plain = gpu.clone();
        *plain.engine_mut() = gpu.engine().clone().with_caps(Caps {
            subgroup: None,
            ..caps
        });
        for length in [16, 100, 513, 2048, 20_000] {
            let op = Softmax::new(Layout::f32([3, length]), 1);
            check(&plain, &op, &Tuning::default(), F32);
            check(&plain, &op.log(), &Tuning::default(), F32);
        }
        let ranges = Tuning {
            schedule: Some(Schedule::Ranges),
            splits: Some(5),
            ..Tuning::default()
        };
        let op = Softmax::new(Layout::f32([3, 999]), 1);
        check(&plain, &op, &ranges, F32);
    }
}

/// The least finite number is a number: alone in a row it has equal parts.
#[test]
fn the_least_finite_number_is_not_minus_infinity() {
    for gpu in gpus() {
        for length in [4, 40, 1000] {
            for (log, even, odd) in [
                (false, f32::MIN, f32::MIN),
                (true, f32::MIN, f32::MIN),
                (true, 0.0, f32::MIN),
            ] {
                let data: Vec<f32> = (0..length)
                    .map(|j| if j % 2 == 0 { even } else { odd })
                    .collect();
                let mut op = Softmax::new(Layout::f32([1, length as u64]), 1);
                op.log = log;
                let error = error(gpu, &op, &data, &Tuning::default());
                assert!(error <= F32, "{}: {error:e}: {op:?}", name(gpu));
            }
        }
    }
}

/// Minus infinity has weight 0; a row of nothing else gives 0, or minus infinity. Large numbers
/// keep their differences.
#[test]
fn infinities_and_large_numbers() {
    for gpu in gpus() {
        for length in [5, 40, 2000] {
            let mut data = noise(5, 3 * length);
            for x in data.iter_mut().skip(1).step_by(3) {
                *x = f32::NEG_INFINITY;
            }
            data[length..2 * length].fill(f32::NEG_INFINITY);
            for x in &mut data[2 * length..] {
                *x += 10_000.0;
            }
            for log in [false, true] {
                let mut op = Softmax::new(Layout::f32([3, length as u64]), 1);
                op.log = log;
                let error = error(gpu, &op, &data, &Tuning::default());
                assert!(error <= F32, "{}: {error:e}: {op:?}", name(gpu));
            }
        }
    }
}

#[test]
fn the_dtype_must_be_a_real_number() {
    let op = Softmax::new(Layout::new(DType::U32, [4]), 0);
    assert!(gpus()[0].engine().plan(&op.into()).is_err());
}
