//! The whole host path on wgpu's device that computes nothing: plan, bind, record, submit. Needs
//! no driver, so it runs anywhere: `cargo test --features noop --test noop`.

mod small;

use foveate::{
    Attention, AttentionArgs, Causal, DType, Layout, Merge, Op, Rotary, Schedule, Softmax,
    SoftmaxArgs, Stage, Statistic, Tuning, View, Weights,
    ops::{Args, Slot},
};
use small::App;

fn noop() -> App {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    App::on(device, queue)
}

/// Plans an op, binds buffers of the right size, records and submits; the number of dispatches.
fn run(app: &App, op: &Op, tuning: &Tuning) -> usize {
    let plan = app.engine.plan_with(op, tuning).expect("plans");
    assert_eq!(plan.scratch_bytes(), plan.outline().scratch_bytes);
    assert!(
        plan.explain()
            .contains(&plan.outline().schedule.to_string())
    );
    let buffers: Vec<(Slot, wgpu::Buffer, Layout)> = op
        .tensors()
        .into_iter()
        .map(|(slot, layout)| {
            let size = layout.end_bytes().next_multiple_of(4);
            (slot, app.buffer(size), layout.clone())
        })
        .collect();
    let views = buffers
        .iter()
        .map(|(slot, buffer, layout)| (*slot, View::new(buffer, layout.clone())))
        .collect();
    let call = plan.bind(Args(views)).expect("binds");
    let before = app.engine.counters();
    app.run(&call);
    app.run(&call);
    assert_eq!(app.engine.counters(), before, "recording costs nothing");
    app.saw_no_error();
    plan.outline().steps.len()
}

#[test]
fn ops_go_all_the_way() {
    let app = noop();
    let small = small::tuning();
    assert_eq!(run(&app, &small::attention().into(), &small), 1);

    let split = Tuning {
        splits: Some(3),
        schedule: Some(Schedule::Tile),
        ..small
    };
    let op = Attention::new(
        Layout::f32([2, 4, 5, 40]),
        Layout::f32([2, 2, 200, 40]),
        Layout::f32([2, 2, 200, 24]).at(8),
    )
    .causal(Causal::BottomRight)
    .mask(Layout::new(DType::Bool, [5, 200]))
    .bias(Layout::f32([2, 1, 1, 200]))
    .kv_len(Layout::new(DType::U32, [2]))
    .with_lse();
    assert_eq!(run(&app, &op.into(), &split), 2);

    let x = Layout::f32([3, 7, 50]);
    for axis in 0..3 {
        run(&app, &Softmax::new(x.clone(), axis).log().into(), &small);
        run(
            &app,
            &Softmax::new(x.clone(), axis).in_place().into(),
            &small,
        );
    }
    let long = Softmax::new(Layout::f32([1, 1 << 18]), 1);
    assert_eq!(run(&app, &long.into(), &Tuning::default()), 2);

    let merge = Merge::new(Layout::f32([5, 2, 3, 7, 12]), Layout::f32([5, 2, 3, 7]));
    assert_eq!(run(&app, &merge.with_lse().into(), &small), 1);

    for statistic in [
        Statistic::Entropy,
        Statistic::LargestScore,
        Statistic::Mass,
        Statistic::Top { count: 3 },
    ] {
        let op = Weights::new(small::attention().with_lse(), statistic);
        assert_eq!(run(&app, &op.into(), &small), 1);
    }
    // Heads 1..3 of pairs: the end of one pair, and the beginning of the next.
    let op = Attention::new(
        Layout::f32([1, 4, 5, 8]),
        Layout::f32([1, 2, 9, 8]),
        Layout::f32([1, 2, 9, 8]),
    );
    let matrix = Statistic::Matrix {
        stage: Stage::Final,
        heads: 1..3,
        rows: 2..5,
    };
    assert_eq!(run(&app, &Weights::new(op, matrix).into(), &small), 2);
    let rotary = rotary([2, 3, 7, 12]);
    assert_eq!(run(&app, &rotary.clone().in_place().into(), &small), 1);
    let positions = Layout::new(DType::U32, [2, 7]);
    assert_eq!(run(&app, &rotary.positions(positions).into(), &small), 1);
}

/// With a table of 1000 positions.
fn rotary(shape: [u64; 4]) -> Rotary {
    let table = Layout::f32([1000, shape[3] / 2]);
    Rotary::new(Layout::f32(shape), table.clone(), table)
}

#[test]
fn slices_bind_within_the_buffers() {
    let mut app = noop();
    let caps = foveate::Caps {
        max_binding_bytes: 64 << 10,
        ..app.engine.caps().clone()
    };
    app.engine = app.engine.with_caps(caps);
    let op = Attention::new(
        Layout::f32([1, 2, 100, 64]),
        Layout::f32([1, 2, 1000, 64]),
        Layout::f32([1, 2, 1000, 64]),
    );
    let steps = run(&app, &op.with_lse().into(), &Tuning::default());
    assert!(steps > 4, "{steps} steps");
    let op = Softmax::new(Layout::f32([3, 40_000]), 1);
    let steps = run(&app, &op.into(), &Tuning::default());
    assert!(steps > 4, "{steps} steps");
    // All parts of a row near each other, so that slices of rows hold them.
    let parts = Layout::f32([1, 2, 1000, 3, 64]);
    let parts = parts.transposed(2, 3).transposed(1, 2).transposed(0, 1);
    let op = Merge::new(parts, Layout::f32([3, 1, 2, 1000]));
    let steps = run(&app, &op.with_lse().into(), &Tuning::default());
    assert!(steps > 4, "{steps} steps");
    let op = Attention::new(
        Layout::f32([1, 2, 100, 64]),
        Layout::f32([1, 2, 1000, 64]),
        Layout::f32([1, 2, 1000, 64]),
    );
    for statistic in [Statistic::Top { count: 9 }, Statistic::Mass] {
        let op = Weights::new(op.clone().with_lse(), statistic);
        let steps = run(&app, &op.into(), &Tuning::default());
        assert!(steps > 4, "{steps} steps");
    }
    let op = rotary([1, 4, 900, 64]).offset(100);
    let steps = run(&app, &op.into(), &Tuning::default());
    assert!(steps > 4, "{steps} steps");
}

#[test]
fn warm_up_submits() {
    let app = noop();
    let ops = [
        small::attention().into(),
        Softmax::new(Layout::f32([3, 5]), 1).into(),
    ];
    app.engine.warm_up(&app.queue, &ops).expect("warms up");
    let before = app.engine.counters();
    assert_eq!(before.misses, 2);
    for op in &ops {
        app.engine.plan(op).expect("plans");
    }
    let after = app.engine.counters();
    assert_eq!((after.misses, after.hits), (before.misses, before.hits + 2));
    app.saw_no_error();
}

#[test]
fn wrong_tensors_are_refused() {
    let app = noop();
    let op = small::attention();
    let [q, k, v, o] = [256, 192, 192, 100].map(|size| app.buffer(size));
    let plan = app.engine.plan(&op.clone().into()).expect("plans");
    let args = AttentionArgs::new(
        View::new(&q, op.q),
        View::new(&k, op.k),
        View::new(&v, op.v),
        View::new(&o, op.o),
    );
    let error = plan.bind(args).expect_err("o is too small");
    assert!(
        error
            .to_string()
            .starts_with("o: its buffer holds 100 bytes"),
        "{error}"
    );

    let x = Layout::f32([16, 4]);
    let plan = app
        .engine
        .plan(&Softmax::new(x.clone(), 1).into())
        .expect("plans");
    let args = SoftmaxArgs {
        x: Some(View::new(&q, x.clone())),
        y: View::new(&q, x),
    };
    let error = plan.bind(args).expect_err("not in place");
    assert!(
        error.to_string().starts_with("y: is in the buffer of x"),
        "{error}"
    );
    app.saw_no_error();
}
