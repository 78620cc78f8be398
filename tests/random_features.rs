//! Random features on every adapter, against the f64 reference, and what they are for.

mod common;

use common::{gpus, name, place, say, untouched_around};
use foveate::{
    Caps, DType, Error, Gpu, Guard, Layout, LinearAttention, LinearAttentionArgs, Normaliser, Op,
    RandomFeatures, RandomFeaturesArgs, Reach, Real, Schedule, Tuning,
    plan::Outline,
    reference::{self, noise},
};

const F32: f64 = 2e-5;
const F16: f64 = 4e-3;

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

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// The features on the device, and the reference; what lies around the output untouched.
fn both(gpu: &Gpu, op: &RandomFeatures, factor: f32) -> (Vec<f32>, Vec<f64>) {
    let data: Vec<f32> = numbers(1, &op.x).iter().map(|x| factor * x).collect();
    let directions = numbers(2, &op.projection);
    let x = place(gpu, op.x.clone(), &data).expect("fits");
    let projection = place(gpu, op.projection.clone(), &directions).expect("fits");
    let y = place(gpu, op.y.clone(), &[]).expect("fits");
    let plan = gpu.engine().plan(&op.clone().into()).expect("plans");
    let args = RandomFeaturesArgs {
        x: x.view(),
        projection: projection.view(),
        y: y.view(),
    };
    gpu.run(&plan.bind(args).expect("binds")).expect("runs");
    untouched_around(gpu, &y).expect("all written, and no more");
    let want = reference::random_features(op, &wide(&data), &wide(&directions));
    (gpu.download(&y).expect("downloads"), want)
}

fn kinds(x: &Layout, projection: &Layout) -> [RandomFeatures; 3] {
    let both = || (x.clone(), projection.clone());
    let make = |make: fn(Layout, Layout) -> RandomFeatures| {
        let (x, projection) = both();
        make(x, projection)
    };
    [
        make(RandomFeatures::queries),
        make(RandomFeatures::keys),
        make(RandomFeatures::relu),
    ]
}

fn close(gpu: &Gpu, op: &RandomFeatures, factor: f32, most: f64) {
    let (got, want) = both(gpu, op, factor);
    let error = reference::error(&got, &want);
    assert!(error <= most, "{}: {error:e}: {op:?}", name(gpu));
}

#[test]
fn shapes() {
    for gpu in gpus() {
        for (shape, features) in [
            ([1, 1, 1, 1], 1),
            ([2, 3, 5, 7], 9),
            ([1, 2, 33, 32], 40),
            ([2, 1, 6, 256], 65),
            ([1, 1, 700, 4], 200),
        ] {
            let projection = Layout::f32([features, shape[3]]);
            for op in kinds(&Layout::f32(shape), &projection) {
                // Exponents of some size carry their rounding into all features.
                close(gpu, &op, 0.3, F32);
                close(gpu, &op.scale(0.3).eps(0.01), 0.5, F32);
            }
        }
    }
}

#[test]
fn layouts_and_slices() {
    let x = Layout::f32([2, 9, 3, 13]).transposed(1, 2).at(3);
    let projection = Layout::f32([13, 20]).transposed(0, 1).at(5);
    let y = Layout::f32([2, 9, 3, 22]).transposed(1, 2).at(1);
    let y = Layout {
        shape: vec![2, 3, 9, 20],
        ..y
    };
    for gpu in gpus() {
        let mut caps = gpu.engine().caps().clone();
        caps.max_binding_bytes = 2000;
        let mut narrow = gpu.clone();
        *narrow.engine_mut() = gpu.engine().clone().with_caps(caps);
        for op in kinds(&x, &projection) {
            let op = op.output(y.clone());
            close(gpu, &op, 1.0, F32);
            let steps = |gpu: &Gpu| {
                let plan = gpu.engine().plan(&op.clone().into()).expect("plans");
                plan.outline().steps.len()
            };
            assert!(steps(&narrow) > 2 * steps(gpu), "{op:?}");
            close(&narrow, &op, 1.0, F32);
        }
    }
}

/// Products far past what an exponential holds.
#[test]
fn large_numbers() {
    let [queries, _, relu] = kinds(&Layout::f32([1, 2, 9, 8]), &Layout::f32([16, 8]));
    for gpu in gpus() {
        for op in [queries.clone(), relu.clone()] {
            close(gpu, &op, 100.0, F32);
        }
    }
}

#[test]
fn half_precision() {
    let mut ran = 0;
    for gpu in gpus() {
        if !gpu.engine().caps().f16 {
            say(format_args!("skipped: {} has no f16", name(gpu)));
            continue;
        }
        let projection = Layout::f32([12, 10]);
        for op in kinds(&Layout::f16([2, 2, 9, 10]), &projection) {
            close(gpu, &op, 1.0, F32);
            close(gpu, &op.output(Layout::f16([2, 2, 9, 12])), 1.0, F16);
        }
        ran += 1;
    }
    assert!(ran > 0, "no adapter with f16");
}

/// With many directions, the products of features come near softmax attention.
#[test]
fn features_stand_for_softmax() {
    let (seq, dim, features) = (12, 4, 128);
    let x = Layout::f32([1, 1, seq, dim]);
    // Normally distributed directions, by sums of noise of deviation 1.
    let directions = noise(9, (features * dim) as usize);
    let deviation =
        (directions.iter().map(|x| x * x).sum::<f32>() / directions.len() as f32).sqrt();
    let directions: Vec<f32> = directions.iter().map(|x| x / deviation).collect();
    let [q, k, v] = [1, 2, 3].map(|seed| {
        let data = noise(seed, (seq * dim) as usize);
        data.iter().map(|x| 0.5 * x).collect::<Vec<f32>>()
    });
    for gpu in gpus() {
        let upload = |data: &[f32]| gpu.upload(data, [1, 1, seq, dim]).expect("fits");
        let projection = gpu.upload(&directions, [features, dim]).expect("fits");
        let make = |data: &[f32], op: RandomFeatures| {
            let x = upload(data);
            let y = gpu.allocate(op.y.clone()).expect("fits");
            let plan = gpu.engine().plan(&op.eps(1e-6).into()).expect("plans");
            let args = RandomFeaturesArgs {
                x: x.view(),
                projection: projection.view(),
                y: y.view(),
            };
            gpu.run(&plan.bind(args).expect("binds")).expect("runs");
            y
        };
        let layout = projection.layout().clone();
        let q_features = make(&q, RandomFeatures::queries(x.clone(), layout.clone()));
        let k_features = make(&k, RandomFeatures::keys(x.clone(), layout));
        let v_tensor = upload(&v);
        let op = LinearAttention::new(
            q_features.layout().clone(),
            k_features.layout().clone(),
            x.clone(),
        )
        .scale(1.0)
        .reach(Reach::All)
        .normaliser(Normaliser {
            eps: Real(0.0),
            guard: Guard::Add,
            safe: false,
        });
        let o = gpu.allocate(op.o.clone()).expect("fits");
        // One variant for all widths, which compiles fast.
        let tuning = Tuning {
            schedule: Some(Schedule::Quadratic),
            ..Tuning::default()
        };
        let plan = gpu.engine().plan_with(&op.into(), &tuning).expect("plans");
        let args = LinearAttentionArgs::new(
            q_features.view(),
            k_features.view(),
            v_tensor.view(),
            o.view(),
        );
        gpu.run(&plan.bind(args).expect("binds")).expect("runs");
        let softmax = reference::attention(&reference::AttentionInputs {
            batch: 1,
            q_heads: 1,
            kv_heads: 1,
            q_len: seq as usize,
            kv_len: seq as usize,
            head_dim: dim as usize,
            value_dim: dim as usize,
            q: &wide(&q),
            k: &wide(&k),
            v: &wide(&v),
            scale: 0.5,
            ..reference::AttentionInputs::default()
        });
        let error = reference::error(&gpu.download(&o).expect("downloads"), &softmax.o);
        // Nearer than the mean of the values, which is what equal weights give.
        let mean: Vec<f32> = (0..seq * dim)
            .map(|at| {
                let column = v.iter().skip((at % dim) as usize).step_by(dim as usize);
                column.sum::<f32>() / seq as f32
            })
            .collect();
        let of_mean = reference::error(&mean, &softmax.o);
        assert!(error < 0.75 * of_mean, "{}: {error}, {of_mean}", name(gpu));
    }
}

#[test]
fn named_errors() {
    let fails = |op: RandomFeatures, caps: &Caps| -> String {
        let error: Error =
            Outline::new(&Op::from(op), caps, &Tuning::default()).expect_err("refused");
        error.to_string()
    };
    let minimum = Caps::minimum();
    let x = || Layout::f32([1, 1, 4, 8]);
    let good = || RandomFeatures::keys(x(), Layout::f32([5, 8]));
    let cases = [
        (
            RandomFeatures::keys(x(), Layout::f32([5, 7])),
            "projection: shape",
        ),
        (
            RandomFeatures::keys(x(), Layout::f16([5, 8])),
            "the projection as f32",
        ),
        (
            RandomFeatures::keys(Layout::f32([4, 8]), Layout::f32([5, 8])),
            "x: 2 axes",
        ),
        (good().output(Layout::f32([1, 1, 4, 6])), "y: shape"),
        (good().eps(-1.0), "eps of 0"),
        (good().scale(f32::INFINITY), "finite scale"),
        (
            RandomFeatures::keys(Layout::f32([1, 1, 4, 300]), Layout::f32([5, 300])),
            "at most 256",
        ),
        (
            RandomFeatures::keys(Layout::f16([1, 1, 4, 8]), Layout::f32([5, 8])),
            "SHADER_F16",
        ),
    ];
    for (op, words) in cases {
        let text = fails(op, &minimum);
        assert!(text.contains(words), "{text} lacks {words}");
    }
    let caps = Caps {
        loop_budget: 60,
        ..Caps::minimum()
    };
    assert!(fails(good(), &caps).contains("fewer features"));
}
