//! Means of rows put back, k-means steps, and lists of kept keys, on every adapter, against the references.

mod common;

use common::{
    bits::{get, numbers, put, with_caps},
    gpus, name, place, say, untouched_around,
};
use foveate::{
    Caps, ClusterUpdate, ClusterUpdateArgs, DType, Error, Evict, EvictArgs, Gpu, Layout, NONE, Op,
    ScatterMean, ScatterMeanArgs, Tuning,
    plan::Outline,
    reference::{self, ClusterUpdateInputs, EvictInputs, Kept, noise},
};

const F32: f64 = 5e-6;
const F16: f64 = 2e-3;

/// Noise that this storage holds exactly.
fn reals(seed: u64, layout: &Layout) -> Vec<f32> {
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

/// Adapters with f16, or all.
fn with(half: bool) -> impl Iterator<Item = &'static Gpu> {
    gpus().iter().filter(move |gpu| {
        let there = !half || gpu.engine().caps().f16;
        if !there {
            say(format_args!("skipped: {} has no f16", name(gpu)));
        }
        there
    })
}

fn refused(op: impl Into<Op>, argument: &str, found: &str) {
    let error = Outline::new(&op.into(), &Caps::minimum(), &Tuning::default());
    match error.expect_err("is wrong") {
        Error::Invalid {
            argument: a,
            found: f,
            ..
        } => assert_eq!((a.as_str(), f.as_str()), (argument, found)),
        other => panic!("{other}"),
    }
}

// Means of rows put back.

fn check_mean(gpu: &Gpu, op: &ScatterMean, index: &[u32]) {
    let x = reals(1, &op.x);
    let x_tensor = place(gpu, op.x.clone(), &x).expect("fits");
    let index_tensor = put(gpu, &op.index, index);
    let y = place(gpu, op.y.clone(), &[]).expect("fits");
    let args = ScatterMeanArgs {
        x: x_tensor.view(),
        index: index_tensor.view(),
        y: y.view(),
    };
    gpu.compute(&op.clone().into(), args)
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    untouched_around(gpu, &y).expect("reads back");
    let [groups, places, dim] = [2, 3, 4].map(|axis| op.x.shape[axis] as usize);
    let rows = groups * places;
    let expected: Vec<f64> = x
        .chunks(rows * dim)
        .zip(index.chunks(rows))
        .flat_map(|(x, index)| {
            let n = op.y.shape[2] as usize;
            reference::scatter_mean(&wide(x), dim, index, n, op.epsilon.0.into())
        })
        .collect();
    let got = gpu.download(&y).expect("reads back");
    let error = reference::error(&got, &expected);
    let most = if op.x.dtype == DType::F16 { F16 } else { F32 };
    assert!(error <= most, "{}: {error:e}: {op:?}", name(gpu));
    // Where no row names a token, the zeros are exact.
    for (got, expected) in got.iter().zip(&expected) {
        assert!(*expected != 0.0 || *got == 0.0);
    }
}

fn mean(dtype: DType, [batch, heads, groups, places, n, dim]: [u64; 6]) -> (ScatterMean, Vec<u32>) {
    let op = ScatterMean::new(
        Layout::new(dtype, [batch, heads, groups, places, dim]),
        Layout::new(DType::U32, [batch, heads, groups, places]),
        n,
    );
    let bound = n as u32 + n as u32 / 8 + 1;
    let mut index = numbers(7, op.index.elements() as usize, bound);
    for at in (5..index.len()).step_by(11) {
        index[at] = NONE;
    }
    (op.epsilon(1e-5), index)
}

#[test]
fn means_of_rows_put_back() {
    for half in [false, true] {
        for gpu in with(half) {
            let dtype = if half { DType::F16 } else { DType::F32 };
            for shape in [
                [1, 1, 1, 1, 1, 1],
                [2, 3, 4, 9, 20, 6],
                [2, 1, 3, 17, 33, 8],
                [1, 2, 7, 20, 129, 40],
                [1, 2, 2, 300, 5, 12],
                [1, 1, 16, 64, 700, 64],
            ] {
                let (op, index) = mean(dtype, shape);
                check_mean(gpu, &op, &index);
            }
        }
    }
}

#[test]
fn means_of_one_token_of_none_and_of_strided_views() {
    for gpu in gpus() {
        let (op, index) = mean(DType::F32, [1, 2, 3, 50, 10, 8]);
        check_mean(gpu, &op, &vec![3; index.len()]);
        check_mean(gpu, &op, &vec![NONE; index.len()]);
        check_mean(gpu, &op, &vec![10; index.len()]);
        for dim in [6, 8] {
            let (mut op, index) = mean(DType::F32, [2, 3, 4, 5, 30, dim]);
            op.x = Layout::f32([2, 4, 5, 3, dim])
                .with_strides([800, 180, 36, 12, 1])
                .at(4)
                .transposed(2, 3)
                .transposed(1, 2);
            op.x.shape = vec![2, 3, 4, 5, dim];
            op.x.strides = vec![800, 12, 180, 36, 1];
            op.index = Layout::new(DType::U32, [2, 3, 4, 5])
                .with_strides([100, 31, 7, 1])
                .at(2);
            op.y = Layout::f32([2, 30, 3, dim]).transposed(1, 2);
            check_mean(gpu, &op, &index);
        }
    }
}

#[test]
fn means_under_narrow_caps() {
    for gpu in gpus() {
        let small = with_caps(gpu, |caps| {
            caps.max_binding_bytes = 8192;
            caps.max_workgroups = 3;
            caps.loop_budget = 300;
        });
        // All places name one token: more than one dispatch may walk along.
        let (op, index) = mean(DType::F32, [1, 2, 4, 200, 9, 2]);
        check_mean(&small, &op, &vec![4; index.len()]);
        check_mean(&small, &op, &index);
        let (op, index) = mean(DType::F32, [3, 5, 2, 20, 30, 8]);
        check_mean(&small, &op, &index);
        let (op, _) = mean(DType::F16, [1, 2, 4, 200, 9, 2]);
        let error = small.engine().plan(&op.into()).expect_err("is rounded");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

#[test]
fn means_that_are_refused() {
    let good = || mean(DType::F32, [2, 3, 4, 5, 6, 8]).0;
    refused(good().epsilon(-1.0), "epsilon", "-1");
    refused(good().epsilon(f32::NAN), "epsilon", "NaN");
    let mut op = good();
    op.index.dtype = DType::F32;
    refused(op, "index", "elements are f32");
    let mut op = good();
    op.y = Layout::f32([2, 3, 6, 7]);
    refused(op, "y", "shape [2, 3, 6, 7] where [2, 3, 6, 8] is expected");
    let mut op = good();
    op.x.dtype = DType::U32;
    refused(op, "x", "elements are u32");
}

// Steps of k-means.

fn check_update(gpu: &Gpu, op: &ClusterUpdate) {
    let x = reals(1, &op.x);
    let means = reals(2, &op.means);
    check_update_of(gpu, op, &x, &means);
}

fn check_update_of(gpu: &Gpu, op: &ClusterUpdate, x: &[f32], means: &[f32]) {
    let x_tensor = place(gpu, op.x.clone(), x).expect("fits");
    let means_tensor = place(gpu, op.means.clone(), means).expect("fits");
    let new_means = place(gpu, op.new_means.clone(), &[]).expect("fits");
    let assigned = op.assigned.as_ref().map(|layout| put(gpu, layout, &[]));
    let args = ClusterUpdateArgs {
        x: x_tensor.view(),
        means: means_tensor.view(),
        new_means: new_means.view(),
        assigned: assigned.as_ref().map(|tensor| tensor.view()),
    };
    gpu.compute(&op.clone().into(), args)
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    untouched_around(gpu, &new_means).expect("reads back");
    let (expected, clusters) = reference::cluster_update(&ClusterUpdateInputs {
        batch: op.x.shape[0] as usize,
        heads: op.x.shape[1] as usize,
        dim: op.x.shape[3] as usize,
        x: &wide(x),
        means: &wide(means),
        decay: op.decay.0.into(),
    });
    if let Some(assigned) = assigned {
        assert_eq!(get(gpu, &assigned), clusters, "{}: {op:?}", name(gpu));
    }
    let got = gpu.download(&new_means).expect("reads back");
    let error = reference::error(&got, &expected);
    assert!(error <= 5e-6, "{}: {error:e}: {op:?}", name(gpu));
}

fn update(dtype: DType, [batch, heads, n, clusters, dim]: [u64; 5]) -> ClusterUpdate {
    ClusterUpdate::new(
        Layout::new(dtype, [batch, heads, n, dim]),
        Layout::f32([heads, clusters, dim]),
        0.9,
    )
    .with_assigned()
}

#[test]
fn steps_of_k_means() {
    for half in [false, true] {
        for gpu in with(half) {
            let dtype = if half { DType::F16 } else { DType::F32 };
            for shape in [
                [1, 1, 1, 1, 1],
                [1, 2, 9, 7, 8],
                [3, 2, 67, 5, 7],
                [2, 3, 130, 33, 16],
                [1, 1, 500, 3, 100],
                [1, 2, 40, 90, 64],
            ] {
                let mut op = update(dtype, shape);
                check_update(gpu, &op);
                op.assigned = None;
                op.decay = 0.0.into();
                check_update(gpu, &op);
            }
        }
    }
}

#[test]
fn steps_on_strided_views_with_ties_and_one_cluster() {
    for gpu in gpus() {
        let mut op = update(DType::F32, [2, 3, 20, 5, 8]);
        op.x = Layout::f32([2, 20, 3, 8]).transposed(1, 2);
        op.means = Layout::f32([5, 3, 8]).transposed(0, 1);
        op.new_means = Layout::f32([3, 8, 5]).transposed(1, 2);
        op.assigned = Some(
            Layout::new(DType::U32, [2, 3, 20])
                .with_strides([100, 1, 4])
                .at(1),
        );
        check_update(gpu, &op);
        // All centroids alike: the first takes all.
        let op = update(DType::F32, [1, 1, 300, 6, 4]);
        let x = reals(1, &op.x);
        check_update_of(gpu, &op, &x, &[0.25; 24]);
    }
}

#[test]
fn steps_under_narrow_caps() {
    for gpu in gpus() {
        let small = with_caps(gpu, |caps| {
            caps.max_binding_bytes = 16_384;
            caps.max_workgroups = 20;
            caps.loop_budget = 300;
        });
        check_update(&small, &update(DType::F32, [2, 4, 40, 20, 12]));
        // Centroids in several dispatches, and tokens of a cluster in parts.
        check_update(&small, &update(DType::F32, [1, 1, 400, 100, 8]));
        check_update(&small, &update(DType::F32, [1, 1, 900, 1, 4]));
    }
}

#[test]
fn steps_as_hardware_has_them() {
    for gpu in gpus() {
        let hard = with_caps(gpu, |caps| caps.software = false);
        for shape in [[1, 1, 3, 2, 1], [3, 2, 67, 5, 7], [1, 2, 900, 6, 40]] {
            check_update(&hard, &update(DType::F32, shape));
        }
        if gpu.engine().caps().f16 {
            check_update(&hard, &update(DType::F16, [2, 1, 130, 9, 16]));
        }
        let narrow = with_caps(&hard, |caps| {
            caps.max_binding_bytes = 16_384;
            caps.loop_budget = 300;
        });
        check_update(&narrow, &update(DType::F32, [1, 1, 400, 100, 8]));
    }
}

#[test]
fn steps_that_are_refused() {
    let good = || update(DType::F32, [2, 3, 20, 5, 8]);
    let mut op = good();
    op.decay = 1.5.into();
    refused(op, "decay", "1.5");
    let mut op = good();
    op.means = Layout::f32([2, 5, 8]);
    refused(op, "means", "shape [2, 5, 8] where [3, 5, 8] is expected");
    let mut op = good();
    op.assigned = Some(Layout::f32([2, 3, 20]));
    refused(op, "assigned", "elements are f32");
    let mut op = good();
    op.x.dtype = DType::U32;
    refused(op, "x", "elements are u32");
}

// Lists of kept keys.

/// As many steps as there are positions, in place or from one pair of tensors to the other; lists are filled before
/// the first with as many keys as `filled`.
fn check_evict(gpu: &Gpu, op: &Evict, filled: usize, new: &[u32]) {
    let [batch, heads, budget] = [0, 1, 2].map(|axis| op.index.shape[axis] as usize);
    let [q_heads, columns] = [1, 2].map(|axis| op.weight.shape[axis] as usize);
    let mut lists: Vec<Kept> = (0..batch * heads)
        .map(|list| Kept {
            index: (0..budget)
                .map(|j| {
                    if j < filled {
                        (j * 3 + list) as u32
                    } else {
                        NONE
                    }
                })
                .collect(),
            scores: noise(list as u64 + 40, budget)
                .iter()
                .map(|&x| f64::from(x.abs()))
                .collect(),
        })
        .collect();
    let index: Vec<u32> = lists.iter().flat_map(|list| list.index.clone()).collect();
    let scores: Vec<f32> = lists
        .iter()
        .flat_map(|list| list.scores.iter().map(|&x| x as f32))
        .collect();
    let mut from = (
        put(gpu, &op.index, &index),
        place(gpu, op.scores.clone(), &scores).expect("fits"),
    );
    let plan = gpu
        .engine()
        .plan(&op.clone().into())
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    for (step, &position) in new.iter().enumerate() {
        let weight = reals(step as u64 + 9, &op.weight);
        let weight: Vec<f32> = weight.iter().map(|x| x.abs()).collect();
        let weight_tensor = place(gpu, op.weight.clone(), &weight).expect("fits");
        let entries = op.positions.shape[0] as usize;
        let positions = put(gpu, &op.positions, &vec![position; entries]);
        let to = if op.in_place {
            from.clone()
        } else {
            (
                put(gpu, &op.indices, &[]),
                place(gpu, op.new_scores.clone(), &[]).expect("fits"),
            )
        };
        let places = op.places.as_ref().map(|layout| put(gpu, layout, &[]));
        let args = EvictArgs {
            before: (!op.in_place).then(|| (from.0.view(), from.1.view())),
            weight: weight_tensor.view(),
            positions: positions.view(),
            indices: to.0.view(),
            new_scores: to.1.view(),
            places: places.as_ref().map(|tensor| tensor.view()),
        };
        gpu.run(&plan.bind(args).expect("binds")).expect("runs");

        let mut put_at = Vec::new();
        for (list, kept) in lists.iter_mut().enumerate() {
            let (b, h) = (list / heads, list % heads);
            let group = q_heads / heads;
            let mut own = vec![0.0; columns];
            for g in 0..group {
                let at = (b * q_heads + h * group + g) * columns;
                for (own, &w) in own.iter_mut().zip(&weight[at..]) {
                    *own += f64::from(w);
                }
            }
            let place = reference::evict(
                kept,
                &EvictInputs {
                    weight: &own,
                    by_position: op.by_position,
                    position,
                    recent: op.recent,
                    ascending: op.ascending,
                },
            );
            put_at.push(place.map_or(NONE, |place| place as u32));
        }
        let index: Vec<u32> = lists.iter().flat_map(|list| list.index.clone()).collect();
        assert_eq!(
            get(gpu, &to.0),
            index,
            "{}: step {step} of {op:?}",
            name(gpu)
        );
        untouched_around(gpu, &to.1).expect("reads back");
        let scores: Vec<f64> = lists.iter().flat_map(|list| list.scores.clone()).collect();
        let got = gpu.download(&to.1).expect("reads back");
        let error = reference::error(&got, &scores);
        assert!(
            error <= F32,
            "{}: {error:e}: step {step} of {op:?}",
            name(gpu)
        );
        if let Some(places) = places {
            assert_eq!(get(gpu, &places), put_at, "{}: {op:?}", name(gpu));
        }
        from = to;
    }
}

fn list(batch: u64, heads: u64, q_heads: u64, budget: u64) -> Evict {
    Evict::new(
        Layout::new(DType::U32, [batch, heads, budget]),
        Layout::f32([batch, heads, budget]),
        Layout::f32([batch, q_heads, budget]),
    )
}

#[test]
fn steps_of_lists() {
    for gpu in gpus() {
        for (shape, filled) in [
            ([1, 1, 1, 1], 1),
            ([1, 2, 2, 6], 0),
            ([2, 3, 6, 17], 17),
            ([1, 2, 8, 64], 60),
            ([1, 1, 2, 200], 199),
        ] {
            let [batch, heads, q_heads, budget] = shape;
            let op = list(batch, heads, q_heads, budget).with_places();
            let new: Vec<u32> = (1000..1012).collect();
            check_evict(gpu, &op, filled, &new);
            check_evict(gpu, &op.clone().in_place(), filled, &new);
            let recent = op.clone().recent(4.min(budget));
            check_evict(gpu, &recent, filled, &new);
            check_evict(gpu, &recent.keeping_places().in_place(), filled, &new);
            check_evict(gpu, &op.keeping_places(), filled, &[1000, NONE, 1001]);
        }
    }
}

#[test]
fn lists_with_weights_by_position_of_f16_and_in_strided_views() {
    for gpu in gpus() {
        let mut op = list(2, 2, 4, 20).by_position();
        // Keys 0 to 59, of which weights do not know the last, and then new ones.
        op.weight = Layout::f32([2, 4, 50]);
        check_evict(gpu, &op, 20, &[60, 61, 62]);
        op.index = Layout::new(DType::U32, [2, 2, 20])
            .with_strides([90, 45, 2])
            .at(1);
        op.indices = op.index.clone();
        op.new_scores = Layout::f32([2, 20, 2]).transposed(1, 2);
        op.scores = op.new_scores.clone();
        op.weight = Layout::f32([2, 50, 4]).transposed(1, 2);
        op = op.positions(Layout::new(DType::U32, [1]));
        check_evict(gpu, &op, 20, &[60, 61, 62]);
        check_evict(gpu, &op.clone().in_place(), 18, &[60, 61, 62, 63]);
    }
    for gpu in with(true) {
        let mut op = list(1, 2, 2, 9);
        op.weight.dtype = DType::F16;
        check_evict(gpu, &op, 9, &[100, 101]);
    }
}

#[test]
fn lists_under_narrow_caps() {
    for gpu in gpus() {
        let small = with_caps(gpu, |caps| {
            caps.max_binding_bytes = 1024;
            caps.max_workgroups = 2;
            caps.loop_budget = 120;
        });
        let op = list(3, 4, 8, 70).with_places();
        let plan = small.engine().plan(&op.clone().into()).expect("plans");
        assert!(plan.outline().steps.len() > 3);
        check_evict(&small, &op, 70, &[500, 501]);
        check_evict(&small, &op.in_place(), 66, &[500, 501, 502, 503, 504]);
        let error = small.engine().plan(&list(1, 1, 1, 2000).into());
        let error = error.expect_err("too many rounds");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

#[test]
fn lists_that_are_refused() {
    let good = || list(2, 3, 6, 17);
    refused(good().recent(18), "recent", "18 of 17 places");
    let mut op = good();
    op.weight = Layout::f32([2, 4, 17]);
    refused(op, "weight", "4 query heads, and the list has 3 heads");
    let mut op = good();
    op.weight = Layout::f32([2, 6, 18]);
    refused(
        op,
        "weight",
        "shape [2, 6, 18] where [2, 6, 17] is expected",
    );
    let mut op = good();
    op.positions = Layout::new(DType::U32, [3]);
    refused(op, "positions", "shape [3] where [2] is expected");
    let mut op = good().in_place();
    op.new_scores = op.new_scores.at(1);
    refused(
        op,
        "indices",
        "the layouts of the list or its scores differ, but the call is in place",
    );
}
