//! Wrong tensors on a real device: each gets an error that names it, and the device still works,
//! its owner none the wiser.

mod small;

use foveate::{
    AttentionArgs, DType, Engine, Error, Layout, Merge, MergeArgs, Op, Rotary, RotaryArgs, Softmax,
    SoftmaxArgs, Statistic, View, Weights,
    ops::{Args, Slot},
    reference,
};
use small::{App, attention, tuning};

/// Plans with small kernels and binds; what went wrong.
fn refused<'a>(app: &App, op: impl Into<Op>, args: impl Into<Args<'a>>) -> Error {
    let plan = app
        .engine
        .plan_with(&op.into(), &tuning())
        .expect("the op itself is right");
    let before = app.engine.counters();
    let error = plan.bind(args).expect_err("the tensors are wrong");
    assert_eq!(app.engine.counters(), before, "nothing is allocated for it");
    error
}

const TOO_SMALL: &str = "make the buffer larger; sizes count in multiples of 4 bytes";
const OWN_BUFFER: &str = "give each output a buffer of its own: a dispatch cannot read and write \
                          one buffer, whatever the ranges";

#[test]
fn wrong_attention_tensors() {
    let app = App::open();
    let op = attention();
    let [q, k, v, o] = [256, 192, 192, 256].map(|size| app.buffer(size));
    let args = || {
        AttentionArgs::new(
            View::new(&q, op.q.clone()),
            View::new(&k, op.k.clone()),
            View::new(&v, op.v.clone()),
            View::new(&o, op.o.clone()),
        )
    };

    for (short, bytes) in [("k", 188), ("q", 4), ("o", 252)] {
        let buffer = app.buffer(bytes);
        let mut args = args();
        let (view, needed) = match short {
            "k" => (&mut args.k, 192),
            "q" => (&mut args.q, 256),
            _ => (&mut args.o, 256),
        };
        view.buffer = &buffer;
        assert_eq!(
            refused(&app, op.clone(), args),
            Error::invalid(
                short,
                format!("its buffer holds {bytes} bytes, and the layout ends at {needed}"),
                TOO_SMALL,
            )
        );
    }
    app.still_works();

    // Large enough for the shape, not for the offset.
    let mut late = op.clone();
    late.v = late.v.at(1);
    let mut late_args = args();
    late_args.v.layout = late.v.clone();
    assert_eq!(
        refused(&app, late, late_args),
        Error::invalid(
            "v",
            "its buffer holds 192 bytes, and the layout ends at 196",
            TOO_SMALL,
        )
    );

    let plain = app.buffer_for(256, wgpu::BufferUsages::COPY_DST);
    let mut no_storage = args();
    no_storage.o.buffer = &plain;
    assert_eq!(
        refused(&app, op.clone(), no_storage),
        Error::invalid(
            "o",
            "its buffer has usage BufferUsages(COPY_DST)",
            "create it with BufferUsages::STORAGE",
        )
    );
    app.still_works();

    // An output in an input's buffer: in the same place, and well apart.
    let wide = app.buffer(4096);
    for offset in [0, 512] {
        let mut op = op.clone();
        op.o = op.o.at(offset);
        let mut args = args();
        args.q.buffer = &wide;
        args.o = View::new(&wide, op.o.clone());
        assert_eq!(
            refused(&app, op, args),
            Error::invalid("o", "is in the buffer of q", OWN_BUFFER)
        );
        app.still_works();
    }
    let with_lse = op.clone().with_lse();
    let lse = with_lse.lse.clone().expect("asked for");
    let mut two_outputs = with_lse.clone();
    two_outputs.lse = Some(lse.clone().at(512));
    let mut shared = args();
    shared.o.buffer = &wide;
    shared.lse = Some(View::new(&wide, lse.clone().at(512)));
    assert_eq!(
        refused(&app, two_outputs, shared),
        Error::invalid("o", "is in the buffer of lse", OWN_BUFFER)
    );
    app.still_works();

    assert_eq!(
        refused(&app, with_lse, args()),
        Error::invalid(
            "lse",
            "is missing, and the planned op has one",
            "bind a view for it",
        )
    );
    let without_k = args();
    let list = vec![
        (Slot::Q, without_k.q),
        (Slot::V, without_k.v),
        (Slot::O, without_k.o),
    ];
    assert_eq!(
        refused(&app, op.clone(), Args(list)),
        Error::invalid(
            "k",
            "is missing, and the planned op has one",
            "bind a view for it",
        )
    );
    let mut surplus = args();
    surplus.mask = Some(View::new(&wide, Layout::new(DType::Bool, [4, 6])));
    assert_eq!(
        refused(&app, op.clone(), surplus),
        Error::invalid(
            "mask",
            "is given, but the planned op has none",
            "leave it out, or plan an op that has it",
        )
    );
    // More buffers than any op may have.
    let mut spare = args();
    spare.buffers = vec![View::new(&wide, Layout::f32([4])); 5];
    assert_eq!(
        refused(&app, op.clone(), spare),
        Error::invalid(
            "buffer_0",
            "is given, but the planned op has none",
            "leave it out, or plan an op that has it",
        )
    );
    let mut list: Args<'_> = args().into();
    list.0.push((Slot::Q, args().q));
    assert_eq!(
        refused(&app, op.clone(), list),
        Error::invalid("q", "is given more than once", "bind one view for it")
    );
    let mut other = args();
    other.q.layout = other.q.layout.transposed(1, 2);
    let error = refused(&app, op, other);
    assert!(
        matches!(&error, Error::Invalid { argument, remedy, .. }
            if argument == "q" && remedy == "plan the op with the layouts that you bind"),
        "{error}"
    );
    app.still_works();
}

#[test]
fn inputs_may_share_a_buffer() {
    let app = App::open();
    let [q, k, v] = small::inputs();
    let all = app.filled(&[q, k, v].concat());
    let mut op = attention();
    op.k = op.k.at(64);
    op.v = op.v.at(112);
    let o = app.buffer(256);
    let plan = app
        .engine
        .plan_with(&op.clone().into(), &tuning())
        .expect("plans");
    let args = AttentionArgs::new(
        View::new(&all, op.q),
        View::new(&all, op.k),
        View::new(&all, op.v),
        View::new(&o, op.o),
    );
    app.run(&plan.bind(args).expect("binds"));
    let error = reference::error(&app.read(&o), &small::expected());
    assert!(error < 1e-5, "error {error}");
    app.saw_no_error();
}

#[test]
fn softmax_in_place_and_not() {
    let app = App::open();
    let data: Vec<f32> = (0..15).map(|i| (i as f32 * 0.7).cos()).collect();
    let exact: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
    let expected = reference::softmax(&exact, &[3, 5], 1, 1.0, false);
    let x = Layout::f32([3, 5]);
    let buffer = app.filled(&data);
    let view = || View::new(&buffer, x.clone());

    let both = SoftmaxArgs {
        x: Some(view()),
        y: view(),
    };
    assert_eq!(
        refused(&app, Softmax::new(x.clone(), 1), both.clone()),
        Error::invalid("y", "is in the buffer of x", OWN_BUFFER)
    );
    let in_place = Softmax::new(x.clone(), 1).in_place();
    assert_eq!(
        refused(&app, in_place.clone(), both),
        Error::invalid(
            "x",
            "is given, but the planned op has none",
            "leave it out, or plan an op that has it",
        )
    );
    let plan = app.engine.plan(&in_place.into()).expect("plans");
    let call = plan
        .bind(SoftmaxArgs { x: None, y: view() })
        .expect("one buffer is right in place");
    app.run(&call);
    let error = reference::error(&app.read(&buffer), &expected);
    assert!(error < 1e-5, "error {error}");
    app.saw_no_error();
}

#[test]
fn wrong_merge_tensors() {
    let app = App::open();
    let op = Merge::new(Layout::f32([3, 1, 2, 4, 8]), Layout::f32([3, 1, 2, 4]));
    let [o_parts, lse_parts, o] = [768, 96, 256].map(|size| app.buffer(size));
    let args = || {
        MergeArgs::new(
            View::new(&o_parts, op.o_parts.clone()),
            View::new(&lse_parts, Layout::f32([3, 1, 2, 4])),
            View::new(&o, op.o.clone()),
        )
    };

    let short = app.buffer(92);
    let mut short_args = args();
    short_args.lse_parts = Some(View::new(&short, Layout::f32([3, 1, 2, 4])));
    assert_eq!(
        refused(&app, op.clone(), short_args),
        Error::invalid(
            "lse_parts",
            "its buffer holds 92 bytes, and the layout ends at 96",
            TOO_SMALL,
        )
    );
    assert_eq!(
        refused(&app, op.clone().gates(Layout::f32([3, 1, 2, 4])), args()),
        Error::invalid(
            "gates",
            "is missing, and the planned op has one",
            "bind a view for it",
        )
    );
    // Over the first part: a merge is never in place.
    let mut over = args();
    over.o.buffer = &o_parts;
    assert_eq!(
        refused(&app, op.clone(), over),
        Error::invalid("o", "is in the buffer of o_parts", OWN_BUFFER)
    );
    assert_eq!(
        refused(&app, op.clone().with_lse(), args()),
        Error::invalid(
            "lse",
            "is missing, and the planned op has one",
            "bind a view for it",
        )
    );
    let mut surplus = args();
    surplus.lse = Some(View::new(&short, Layout::f32([1, 2, 4])));
    assert_eq!(
        refused(&app, op, surplus),
        Error::invalid(
            "lse",
            "is given, but the planned op has none",
            "leave it out, or plan an op that has it",
        )
    );
    app.still_works();
}

#[test]
fn wrong_rotary_tensors() {
    let app = App::open();
    let table = Layout::f32([10, 4]);
    let op = Rotary::new(Layout::f32([1, 2, 4, 8]), table.clone(), table.clone())
        .positions(Layout::new(DType::U32, [1, 4]));
    let [x, cos, sin, positions, y] = [256, 160, 160, 16, 256].map(|size| app.buffer(size));
    let args = || RotaryArgs {
        x: Some(View::new(&x, op.x.clone())),
        cos: View::new(&cos, table.clone()),
        sin: View::new(&sin, table.clone()),
        positions: Some(View::new(&positions, Layout::new(DType::U32, [1, 4]))),
        y: View::new(&y, op.y.clone()),
    };
    app.run(
        &app.engine
            .plan(&op.clone().into())
            .expect("plans")
            .bind(args())
            .expect("all is right"),
    );

    let mut short = args();
    short.sin.buffer = &positions;
    assert_eq!(
        refused(&app, op.clone(), short),
        Error::invalid(
            "sin",
            "its buffer holds 16 bytes, and the layout ends at 160",
            TOO_SMALL,
        )
    );
    let mut over = args();
    over.y.buffer = &x;
    assert_eq!(
        refused(&app, op.clone(), over),
        Error::invalid("y", "is in the buffer of x", OWN_BUFFER)
    );
    let mut missing = args();
    missing.positions = None;
    assert_eq!(
        refused(&app, op.clone(), missing),
        Error::invalid(
            "positions",
            "is missing, and the planned op has one",
            "bind a view for it",
        )
    );
    assert_eq!(
        refused(&app, op.clone().in_place(), args()),
        Error::invalid(
            "x",
            "is given, but the planned op has none",
            "leave it out, or plan an op that has it",
        )
    );
    // Tables may share a buffer: nobody writes them.
    let mut shared = args();
    shared.sin.buffer = &cos;
    let plan = app.engine.plan(&op.into()).expect("plans");
    app.run(&plan.bind(shared).expect("one buffer for both tables"));
    app.still_works();
}

#[test]
fn wrong_tensors_for_weights() {
    let app = App::open();
    let op = Weights::new(attention().with_lse(), Statistic::LargestWeight);
    let lse_layout = op.attention.lse.clone().expect("it is asked for");
    let lse = app.buffer(lse_layout.end_bytes());
    let lse_in = |buffer| Some(View::new(buffer, lse_layout.clone()));
    let [q, k, out, keys] = [&op.attention.q, &op.attention.k, &op.out, &op.out]
        .map(|layout| app.buffer(layout.end_bytes()));
    let v = View::new(&k, op.attention.v.clone());
    let mut args = AttentionArgs::new(
        View::new(&q, op.attention.q.clone()),
        View::new(&k, op.attention.k.clone()),
        v.clone(),
        v,
    );
    args.lse = lse_in(&lse);
    let out_view = || View::new(&out, op.out.clone());
    let keys_view = |buffer| Some(View::new(buffer, op.keys.clone().expect("it has them")));

    assert_eq!(
        refused(&app, op.clone(), op.args(args.clone(), out_view(), None)),
        Error::invalid(
            "keys",
            "is missing, and the planned op has one",
            "bind a view for it",
        )
    );
    // Both outputs in one buffer.
    assert_eq!(
        refused(
            &app,
            op.clone(),
            op.args(args.clone(), out_view(), keys_view(&out))
        ),
        Error::invalid("out", "is in the buffer of keys", OWN_BUFFER)
    );
    // The log-sum-exp is an input: it may share a buffer with inputs, not with outputs.
    let mut over = args.clone();
    over.lse = lse_in(&q);
    let plan = app.engine.plan(&op.clone().into()).expect("plans");
    plan.bind(op.args(over.clone(), out_view(), keys_view(&keys)))
        .expect("inputs may share");
    over.lse = lse_in(&out);
    assert_eq!(
        refused(
            &app,
            op.clone(),
            op.args(over, out_view(), keys_view(&keys))
        ),
        Error::invalid("out", "is in the buffer of lse", OWN_BUFFER)
    );
    app.still_works();
}

#[test]
fn ops_that_cannot_be_planned_leave_the_device_alone() {
    let app = App::open();
    let huge = app.engine.caps().max_buffer_bytes;
    let mut ops: Vec<Op> = vec![
        attention().scale(f32::NAN).into(),
        attention().output(Layout::f32([1, 2, 4, 7])).into(),
        Merge::new(Layout::f32([3, 1, 2, 4, 8]), Layout::f32([2, 1, 2, 4])).into(),
        Weights::new(attention(), Statistic::Entropy).into(),
        Softmax::new(Layout::f32([3, 0]), 1).into(),
        Rotary::new(
            Layout::f32([1, 2, 4, 7]),
            Layout::f32([4, 3]),
            Layout::f32([4, 3]),
        )
        .into(),
        Softmax::new(Layout::f32([3, 5]), 7).into(),
        Softmax::new(Layout::f32([huge]), 0).into(),
    ];
    let no_f16 = app.engine.caps().clone();
    ops.push(Softmax::new(Layout::f16([3, 5]), 1).into());
    let engine = app.engine.clone().with_caps(foveate::Caps {
        f16: false,
        ..no_f16
    });
    let before = engine.counters();
    for op in ops {
        let error = engine.plan(&op).expect_err("it is wrong");
        assert!(
            matches!(error, Error::Invalid { .. } | Error::Unsupported { .. }),
            "{error}"
        );
    }
    assert_eq!(engine.counters(), before, "nothing is compiled for them");
    app.still_works();
}

#[test]
fn a_buffer_of_another_device_is_the_engines_own_error() {
    let adapter = small::adapter();
    let [app, stranger] = [(); 2].map(|()| App::open_on(&adapter));
    let op = attention();
    let [k, v, o] = [192, 192, 256].map(|size| app.buffer(size));
    let elsewhere = stranger.buffer(256);
    let plan = app
        .engine
        .plan_with(&op.clone().into(), &tuning())
        .expect("plans");
    let args = AttentionArgs::new(
        View::new(&elsewhere, op.q),
        View::new(&k, op.k),
        View::new(&v, op.v),
        View::new(&o, op.o),
    );
    let error = plan.bind(args).expect_err("wgpu refuses it");
    assert!(matches!(error, Error::Device(_)), "{error}");
    app.still_works();
    stranger.still_works();
}

#[test]
fn no_adapter_is_an_error_that_says_what_to_install() {
    let error = foveate::choose(&[], None).expect_err("there is none");
    assert!(error.to_string().contains("mesa-vulkan-drivers"), "{error}");
    let adapters = foveate::adapters();
    assert!(!adapters.is_empty(), "tests need an adapter");
    for choice in ["no such adapter", "999"] {
        let error = foveate::choose(&adapters, Some(choice)).expect_err("matches nothing");
        assert!(error.to_string().contains(choice), "{error}");
        assert!(
            error.to_string().contains(&adapters[0].get_info().name),
            "{error}"
        );
    }
}

/// An engine on a device with the least that WebGPU gives: no features, default limits.
#[test]
fn a_device_with_nothing_extra_is_enough() {
    let (device, queue) = pollster::block_on(small::adapter().request_device(&Default::default()))
        .expect("the adapter gives a device");
    let app = App::on(device, queue);
    assert_eq!(app.engine.caps().subgroup, None);
    assert!(!app.engine.caps().f16);
    assert!(!app.device.features().intersects(Engine::wanted_features()));
    app.still_works();
}
