//! Top-p on every adapter, as sorting on the host has it, where the bound is further off than rounding.

mod common;

use std::sync::{Mutex, PoisonError};

use common::{SENTINEL, bits::with_caps, gpus, name, place, say};
use foveate::{
    Caps, DType, Error, Gpu, Layout, NONE, RouteMass, Tensor, TopP, TopPArgs, Tuning,
    plan::Outline,
    reference::{self, TopPRule, noise},
};

/// How far from the bound a sum must be, as a share of the whole, for f32 to decide as f64 does.
const MARGIN: f64 = 1e-5;

fn sentinels(gpu: &Gpu, layout: &Layout) -> Tensor {
    let tensor = place(gpu, Layout::f32(layout.shape.clone()), &[]).expect("fits");
    tensor.with_layout(layout.clone())
}

/// Runs it and compares it with the reference; the number of rows that were near the bound.
fn check(gpu: &Gpu, op: &TopP, data: &[f32], lens: Option<&[u32]>) -> usize {
    // Long dispatches of one test would keep the OpenGL device from another for longer than it waits.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let length = *op.x.shape.last().expect("has axes") as usize;
    let mut data = data.to_vec();
    if op.x.dtype == DType::F16 {
        for x in &mut data {
            *x = half::f16::from_f32(*x).to_f32();
        }
    }
    let x = place(gpu, op.x.clone(), &data).expect("fits");
    let row_len = lens.map(|lens| {
        let shape = op.row_len.as_ref().expect("is given").shape.clone();
        gpu.upload_u32(lens, shape).expect("fits")
    });
    let indices = sentinels(gpu, &op.indices);
    let counts = op.counts.as_ref().map(|layout| sentinels(gpu, layout));
    let plan = gpu
        .engine()
        .plan(&op.clone().into())
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    let call = plan
        .bind(TopPArgs {
            x: x.view(),
            row_len: row_len.as_ref().map(Tensor::view),
            indices: indices.view(),
            counts: counts.as_ref().map(Tensor::view),
        })
        .expect("binds");
    gpu.run(&call).expect("runs");
    let indices = gpu.download_u32(&indices).expect("reads back");
    let counts = counts.map(|counts| gpu.download_u32(&counts).expect("reads back"));
    let rule = TopPRule {
        p: op.p.0.into(),
        mass: op.mass,
        min: op.min as usize,
        max: op.max as usize,
        sorted: op.sorted,
    };
    let mut near = 0;
    for (number, row) in data.chunks(length).enumerate() {
        let len = lens.map_or(length, |lens| lens[number] as usize);
        let (expected, count, margin) = reference::top_p(row, len, &rule);
        let found = &indices[number * rule.max..(number + 1) * rule.max];
        assert!(!found.contains(&SENTINEL.to_bits()), "a place is unwritten");
        let taken = found.iter().filter(|&&index| index != NONE).count();
        if let Some(counts) = &counts {
            assert_eq!(
                counts[number] as usize,
                taken,
                "{}: row {number}",
                name(gpu)
            );
        }
        if margin < MARGIN {
            near += 1;
            assert!(
                taken.abs_diff(count) <= 1,
                "{}: {taken} and not {count} of row {number} of {op:?}",
                name(gpu)
            );
            // The best so many all the same.
            let exactly = TopPRule {
                min: taken,
                max: taken,
                ..rule
            };
            let (mut expected, ..) = reference::top_p(row, len, &exactly);
            expected.resize(rule.max, NONE);
            assert_eq!(found, expected, "{}: row {number} of {op:?}", name(gpu));
            continue;
        }
        assert_eq!(found, expected, "{}: row {number} of {op:?}", name(gpu));
    }
    near
}

#[test]
fn shares_of_softmax_and_of_weights() {
    let mut near = 0;
    let mut rows = 0;
    for gpu in gpus() {
        for (length, max) in [
            (1, 1),
            (5, 3),
            (64, 64),
            (257, 100),
            (1000, 700),
            (9001, 4096),
        ] {
            for p in [0.05, 0.5, 0.9, 0.99] {
                let data: Vec<f32> = noise(3, 5 * length).iter().map(|x| x * 3.0).collect();
                let op = TopP::new(Layout::f32([5, length as u64]), p, max);
                near += check(gpu, &op, &data, None);
                let given = op
                    .clone()
                    .mass(RouteMass::Given)
                    .unsorted()
                    .at_least(max / 2);
                near += check(gpu, &given, &data, None);
                rows += 10;
            }
        }
    }
    assert!(
        near * 10 < rows,
        "{near} of {rows} rows are near their bound"
    );
}

#[test]
fn lengths_strides_and_what_is_hidden() {
    for gpu in gpus() {
        for mass in [RouteMass::Softmax, RouteMass::Given] {
            let x = Layout::f32([2, 4, 80]).with_strides([900, 200, 2]).at(3);
            let mut data = noise(5, 640);
            data[..80].fill(f32::NEG_INFINITY);
            data[80..160].fill(f32::NAN);
            data[200] = f32::INFINITY;
            data[250] = f32::NAN;
            for x in data[320..400].iter_mut().step_by(2) {
                *x = f32::NEG_INFINITY;
            }
            data[400..480].fill(-1.0);
            let op = TopP::new(x, 0.7, 50).mass(mass).at_least(2);
            check(gpu, &op, &data, None);
            let op = op.unsorted().row_len(Layout::new(DType::U32, [2, 4]));
            check(gpu, &op, &data, Some(&[0, 9, 80, 1, 33, 80, 2, u32::MAX]));
        }
    }
}

/// The bound may fall between the places of two invocations, or at either side of that by rounding.
#[test]
fn many_equal_masses() {
    for gpu in gpus() {
        for gpu in [gpu.clone(), with_caps(gpu, |caps| caps.software = false)] {
            for (length, mass, p) in [
                (256, 0.3, 0.25),
                (1024, 0.1, 0.5),
                (2048, 0.2, 0.25),
                (1000, 0.7, 0.1),
            ] {
                for mass_of in [RouteMass::Given, RouteMass::Softmax] {
                    let op = TopP::new(Layout::f32([1, length]), p, length).mass(mass_of);
                    check(&gpu, &op, &vec![mass; length as usize], None);
                }
            }
            // Every bound that ends a stretch of four places, or of one, of 256.
            let masses = [0.1, 0.2, 0.3, 0.7, 1.0 / 3.0];
            let data: Vec<f32> = masses.iter().flat_map(|&mass| [mass; 256]).collect();
            for of_256 in [1, 4, 12, 64, 100, 104, 128, 252] {
                let p = of_256 as f32 / 256.0;
                let op = TopP::new(Layout::f32([5, 256]), p, 256).mass(RouteMass::Given);
                check(&gpu, &op, &data, None);
            }
            // A few values, each many times.
            let data: Vec<f32> = noise(6, 4 * 1000)
                .iter()
                .map(|x| (x * 2.0).round() * 0.1)
                .collect();
            for p in [0.2, 0.5, 0.8] {
                let op = TopP::new(Layout::f32([4, 1000]), p, 900);
                check(&gpu, &op.clone().mass(RouteMass::Given), &data, None);
                check(&gpu, &op.unsorted(), &data, None);
            }
        }
    }
}

/// All of the mass takes all, also what rounding says is nothing.
#[test]
fn all_of_the_mass() {
    for gpu in gpus() {
        let mut data = vec![-30.0; 2 * 300];
        data[7] = 0.0;
        data[300..].fill(0.0);
        data[400] = 1e-30;
        data[401] = f32::NAN;
        data[402] = -1.0;
        data[403] = 1e10;
        for mass in [RouteMass::Softmax, RouteMass::Given] {
            for max in [300, 200] {
                let op = TopP::new(Layout::f32([2, 300]), 1.0, max).mass(mass);
                check(gpu, &op, &data, None);
            }
        }
    }
}

#[test]
fn masses_whose_sum_is_past_the_largest_number_or_tiny() {
    for gpu in gpus() {
        let op = |n, p| TopP::new(Layout::f32([1, n]), p, n.min(100)).mass(RouteMass::Given);
        check(gpu, &op(5, 0.1), &[f32::INFINITY; 5], None);
        check(
            gpu,
            &op(5, 0.5),
            &[f32::INFINITY, 1.0, 3e38, -1e38, 2e38],
            None,
        );
        check(gpu, &op(100, 0.01), &[3e37; 100], None);
        check(gpu, &op(70_000, 0.0003), &[3e38; 70_000], None);
        check(gpu, &op(10, 0.35), &[2e-38; 10], None);
    }
}

/// Variants for hardware, on the devices that are here.
#[test]
fn as_hardware_has_it() {
    for gpu in gpus() {
        let gpu = with_caps(gpu, |caps| caps.software = false);
        let mut near = 0;
        for (length, max) in [(3, 2), (200, 16), (257, 100), (1000, 700), (9001, 60)] {
            let data: Vec<f32> = noise(4, 3 * length).iter().map(|x| x * 3.0).collect();
            let op = TopP::new(Layout::f32([3, length as u64]), 0.4, max);
            near += check(&gpu, &op, &data, None);
            let given = op.mass(RouteMass::Given).unsorted().at_least(max / 2);
            near += check(&gpu, &given, &data, None);
        }
        assert!(near < 6, "{near} of 30 rows are near their bound");
    }
}

#[test]
fn half_precision_and_small_bindings() {
    for gpu in gpus() {
        let data = noise(8, 40 * 300);
        if gpu.engine().caps().f16 {
            check(
                gpu,
                &TopP::new(Layout::f16([40, 300]), 0.6, 200),
                &data,
                None,
            );
        } else {
            say(format_args!("skipped: {} has no f16", name(gpu)));
        }
        let mut small = gpu.clone();
        *small.engine_mut() = gpu.engine().clone().with_caps(Caps {
            max_binding_bytes: 8192,
            max_workgroups: 3,
            loop_budget: 3000,
            ..gpu.engine().caps().clone()
        });
        let op = TopP::new(Layout::f32([40, 300]), 0.6, 200).unsorted();
        check(&small, &op, &data, None);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let error = |op: TopP| {
        Outline::new(&op.into(), &Caps::minimum(), &Tuning::default()).expect_err("is wrong")
    };
    let op = |p, max| TopP::new(Layout::f32([3, 10]), p, max);
    for p in [0.0, -1.0, 1.5, f32::NAN] {
        assert_eq!(
            error(op(p, 4)),
            Error::invalid("p", format!("{p}"), "give a number above 0, at most 1")
        );
    }
    assert_eq!(
        error(op(0.5, 11)),
        Error::invalid(
            "max",
            "11 of rows of 10 elements",
            "take at most as many as a row has"
        )
    );
    assert_eq!(
        error(op(0.5, 4).at_least(5)),
        Error::invalid("min", "5 where max is 4", "give at most as much as max")
    );
    let long = TopP::new(Layout::f32([1, 1 << 25]), 0.5, 4);
    assert!(matches!(error(long), Error::Unsupported { .. }));
}
