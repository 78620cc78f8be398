//! Rotary position embedding on every adapter, against the f64 reference.

mod common;

use common::{gpus, name, place, say, untouched_around};
use foveate::{
    Caps, DType, Gpu, Layout, Op, Rotary, RotaryArgs, Tensor,
    kernels::Kernel,
    reference::{self, RotaryInputs, noise},
    rotary_tables,
};

const F32: f64 = 1e-6;
const F16: f64 = 2e-3;

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

/// The tables of an op, by position or by token, in what their storage holds.
fn tables(op: &Rotary) -> [Vec<f32>; 2] {
    let rows = op.cos.elements() / (op.rotary_dim / 2);
    // From far out, so that every angle counts.
    let (cos, sin) = rotary_tables(1000..1000 + rows, op.rotary_dim, 10_000.0).expect("tables");
    [cos, sin].map(|mut table| {
        if op.cos.dtype == DType::F16 {
            for x in &mut table {
                *x = half::f16::from_f32(*x).to_f32();
            }
        }
        table
    })
}

/// A tensor of whole numbers of any layout.
fn place_u32(gpu: &Gpu, layout: &Layout, data: &[u32]) -> Tensor {
    let tensor = gpu.allocate(layout.clone()).expect("fits");
    let mut all = vec![u32::MAX; tensor.buffer().size() as usize / 4];
    let columns = layout.shape[1];
    for (number, &x) in data.iter().enumerate() {
        let (b, t) = (number as u64 / columns, number as u64 % columns);
        let at = layout.offset + b * layout.strides[0] + t * layout.strides[1];
        all[at as usize] = x;
    }
    let bytes: Vec<u8> = all.iter().flat_map(|x| x.to_le_bytes()).collect();
    gpu.write(&tensor, &bytes).expect("writes");
    tensor
}

/// The output on the device, and the reference; everything around the output untouched.
fn both(gpu: &Gpu, op: &Rotary, positions: &[u32]) -> (Vec<f32>, Vec<f64>) {
    let data = numbers(3, &op.x);
    let [cos, sin] = tables(op);
    let x = place(gpu, op.x.clone(), &data).expect("fits");
    let y = if op.in_place {
        x.clone()
    } else {
        place(gpu, op.y.clone(), &[]).expect("fits")
    };
    let cos_tensor = place(gpu, op.cos.clone(), &cos).expect("fits");
    let sin_tensor = place(gpu, op.sin.clone(), &sin).expect("fits");
    let position_tensor = op
        .positions
        .as_ref()
        .map(|layout| place_u32(gpu, layout, positions));
    let plan = gpu
        .engine()
        .plan(&op.clone().into())
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    let call = plan
        .bind(RotaryArgs {
            x: (!op.in_place).then(|| x.view()),
            cos: cos_tensor.view(),
            sin: sin_tensor.view(),
            positions: position_tensor.as_ref().map(|tensor| tensor.view()),
            y: y.view(),
        })
        .expect("binds");
    gpu.run(&call).expect("runs");
    untouched_around(gpu, &y).expect("reads back");

    let [batch, heads, seq, head_dim] = [0, 1, 2, 3].map(|axis| op.x.shape[axis] as usize);
    let rows: Vec<usize> = (0..batch * seq)
        .map(|token| {
            let (b, t) = (token / seq, token % seq);
            match (&op.positions, op.cos.shape.as_slice()) {
                (Some(layout), &[rows, _]) => {
                    let b = if layout.shape[0] == 1 { 0 } else { b };
                    (positions[b * seq + t] as usize).min(rows as usize - 1)
                }
                (None, &[1, _, _]) => t,
                (None, &[_, _, _]) => token,
                _ => op.offset as usize + t,
            }
        })
        .collect();
    let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|&x| x.into()).collect() };
    let expected = reference::rotary(&RotaryInputs {
        batch,
        heads,
        seq,
        head_dim,
        rotary_dim: op.rotary_dim as usize,
        interleaved: op.interleaved,
        inverse: op.inverse,
        x: &wide(&data),
        cos: &wide(&cos),
        sin: &wide(&sin),
        rows: &rows,
    });
    (gpu.download(&y).expect("reads back"), expected)
}

fn check_at(gpu: &Gpu, op: &Rotary, positions: &[u32]) {
    let (got, expected) = both(gpu, op, positions);
    let error = reference::error(&got, &expected);
    let most = if op.x.dtype == DType::F16 { F16 } else { F32 };
    assert!(error <= most, "{}: {error:e}: {op:?}", name(gpu));
    // What is not turned is copied to the bit.
    let width = op.x.shape[3] as usize;
    let data = numbers(3, &op.x);
    for (got, data) in got.chunks(width).zip(data.chunks(width)) {
        let turned = op.rotary_dim as usize;
        assert_eq!(got[turned..], data[turned..], "{}: {op:?}", name(gpu));
    }
}

fn check(gpu: &Gpu, op: &Rotary) {
    check_at(gpu, op, &[]);
}

/// Both ways to pair channels, forth and back, in place and not.
fn check_all(gpu: &Gpu, op: &Rotary) {
    for interleaved in [false, true] {
        let mut op = op.clone();
        op.interleaved = interleaved;
        check(gpu, &op);
        check(gpu, &op.clone().inverse());
        check(gpu, &op.in_place());
    }
}

/// Positions from 0, and twelve rows of table to spare.
fn plain(dtype: DType, shape: [u64; 4], rotary_dim: u64) -> Rotary {
    let table = Layout::f32([shape[2] + 12, rotary_dim / 2]);
    Rotary::new(Layout::new(dtype, shape), table.clone(), table).rotary_dim(rotary_dim)
}

fn vec4(gpu: &Gpu, op: &Rotary) -> bool {
    let plan = gpu.engine().plan(&op.clone().into()).expect("plans");
    match plan.outline().steps[0].kernel {
        Kernel::Rotary(variant) => variant.vec4,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_shapes() {
    for gpu in gpus() {
        for (shape, rotary_dim) in [
            ([1, 1, 1, 2], 2),
            ([1, 1, 1, 8], 8),
            ([2, 3, 5, 6], 6),
            ([2, 3, 5, 7], 2),
            ([1, 17, 13, 8], 8),
            ([3, 1, 31, 16], 8),
            ([1, 2, 37, 24], 14),
            ([2, 5, 11, 64], 64),
            ([1, 11, 7, 80], 32),
            ([1, 9, 129, 128], 128),
        ] {
            check_all(gpu, &plain(DType::F32, shape, rotary_dim));
        }
    }
}

#[test]
fn both_ways_to_read_are_taken() {
    let gpu = &gpus()[0];
    let whole = plain(DType::F32, [2, 3, 5, 16], 16);
    assert!(vec4(gpu, &whole));
    assert!(vec4(gpu, &plain(DType::F32, [2, 3, 5, 16], 8)));
    // No vector may cross the end of the turned channels.
    assert!(!vec4(gpu, &plain(DType::F32, [2, 3, 5, 16], 12)));
    let turned = Layout::f32([2, 3, 16, 5]).transposed(2, 3);
    assert!(!vec4(gpu, &whole.output(turned)));
}

#[test]
fn half_precision_storage() {
    let mut ran = 0;
    for gpu in gpus() {
        if !gpu.engine().caps().f16 {
            say(format_args!("skipped: {} has no f16", name(gpu)));
            continue;
        }
        for (shape, rotary_dim) in [([2, 3, 5, 6], 6), ([2, 5, 11, 64], 64), ([1, 3, 9, 20], 8)] {
            let op = plain(DType::F16, shape, rotary_dim);
            check_all(gpu, &op);
            // Tables of f16, under either storage.
            let mut tables = op.clone();
            tables.cos.dtype = DType::F16;
            tables.sin.dtype = DType::F16;
            check_all(gpu, &tables);
            tables.x.dtype = DType::F32;
            tables.y.dtype = DType::F32;
            check_all(gpu, &tables);
        }
        ran += 1;
    }
    say(format_args!(
        "f16 ran on {ran} of {} adapters",
        gpus().len()
    ));
}

#[test]
fn positions_in_a_tensor() {
    for gpu in gpus() {
        for (shape, rotary_dim) in [([2, 3, 5, 6], 4), ([2, 3, 5, 16], 16)] {
            let op = plain(DType::F32, shape, rotary_dim);
            // Any order, repeated, and past the table, which takes the last of its 17 rows.
            let some = [3, 0, 16, 17, 7, 7, u32::MAX, 1, 1 << 31, 15];
            let each = op.clone().positions(Layout::new(DType::U32, [2, 5]));
            check_at(gpu, &each, &some);
            check_at(gpu, &each.clone().interleaved().in_place(), &some);
            let one = op.clone().positions(Layout::new(DType::U32, [1, 5]));
            check_at(gpu, &one, &some[..5]);
            let apart = Layout::new(DType::U32, [2, 5]).with_strides([40, 3]).at(2);
            check_at(gpu, &op.positions(apart), &some);
        }
        // A table of one row.
        let mut op = plain(DType::F32, [1, 2, 3, 8], 8);
        op.cos = Layout::f32([1, 4]);
        op.sin = op.cos.clone();
        check_at(
            gpu,
            &op.positions(Layout::new(DType::U32, [1, 3])),
            &[0, 1, 9],
        );
    }
}

#[test]
fn positions_counted_from_an_offset() {
    for gpu in gpus() {
        for dim in [6, 16] {
            // A step of decoding, a chunk, and up to the last row.
            check(gpu, &plain(DType::F32, [2, 3, 1, dim], dim).offset(7));
            check(gpu, &plain(DType::F32, [2, 3, 5, dim], dim).offset(3));
            check(gpu, &plain(DType::F32, [2, 3, 5, dim], dim).offset(12));
        }
    }
}

#[test]
fn tables_by_token() {
    for gpu in gpus() {
        for dim in [6, 16] {
            for entries in [1, 3] {
                let mut op = plain(DType::F32, [3, 2, 5, dim], dim);
                op.cos = Layout::f32([entries, 5, dim / 2]);
                op.sin = op.cos.clone();
                check_all(gpu, &op);
            }
        }
    }
}

#[test]
fn strided_views() {
    for gpu in gpus() {
        for dim in [6, 16] {
            // [batch, seq, heads, dim] in memory, rows padded and shifted.
            let row = dim + 4;
            let padded = Layout::f32([2, 5, 3, dim])
                .with_strides([15 * row, 3 * row, row, 1])
                .at(4)
                .transposed(1, 2);
            let mut op = plain(DType::F32, [2, 3, 5, dim], dim);
            op.x = padded.clone();
            check_all(gpu, &op);
            check(gpu, &op.clone().output(padded));
            // Channels far apart; tables in one tensor [rows, 2, dim / 2], and of odd strides.
            op.x = Layout::f32([2, 3, dim, 5]).transposed(2, 3);
            check_all(gpu, &op);
            let table = Layout::f32([17, dim / 2]).with_strides([dim, 1]);
            op.cos = table.clone();
            op.sin = table.at(dim / 2);
            check_all(gpu, &op);
            op.cos = Layout::f32([dim / 2, 17]).transposed(0, 1);
            op.sin = Layout::f32([17, dim / 2]).with_strides([dim + 1, 2]).at(3);
            check_all(gpu, &op);
            // One head for all: an input may repeat itself.
            op.x = Layout::f32([2, 3, 5, dim]).with_strides([5 * dim, 0, dim, 1]);
            let gathered = both_of_repeated(gpu, &op);
            assert!(gathered <= F32, "{}: {gathered:e}", name(gpu));
        }
    }
}

/// The error where all heads of the input are one.
fn both_of_repeated(gpu: &Gpu, op: &Rotary) -> f64 {
    let mut single = op.clone();
    single.x.shape[1] = 1;
    single.y = Layout::f32(single.x.shape.clone());
    let (_, one) = both(gpu, &single, &[]);
    let data = numbers(3, &single.x);
    let x = place(gpu, single.x.clone(), &data).expect("fits");
    let x = x.with_layout(op.x.clone());
    let [cos, sin] = tables(op);
    let cos = place(gpu, op.cos.clone(), &cos).expect("fits");
    let sin = place(gpu, op.sin.clone(), &sin).expect("fits");
    let y = gpu.rotary(&x, &cos, &sin, |_| op.clone()).expect("runs");
    let [batch, heads] = [op.x.shape[0] as usize, op.x.shape[1] as usize];
    let entry = one.len() / batch;
    let expected: Vec<f64> = (0..batch * heads)
        .flat_map(|n| one[n / heads * entry..][..entry].to_vec())
        .collect();
    reference::error(&gpu.download(&y).expect("reads back"), &expected)
}

#[test]
fn slices_of_small_bindings_and_grids() {
    for gpu in gpus() {
        let caps = gpu.engine().caps().clone();
        let mut small = gpu.clone();
        *small.engine_mut() = gpu.engine().clone().with_caps(Caps {
            max_binding_bytes: 2048,
            max_workgroups: 3,
            loop_budget: 4,
            ..caps
        });
        for dim in [6, 16] {
            let op = plain(DType::F32, [2, 7, 61, dim], dim).offset(5);
            let plan = small.engine().plan(&op.clone().into()).expect("plans");
            assert!(plan.outline().steps.len() > 8, "{}", plan.explain());
            check_all(&small, &op);
            let mut by_token = op.clone().offset(0);
            by_token.cos = Layout::f32([2, 61, dim / 2]);
            by_token.sin = by_token.cos.clone();
            check_all(&small, &by_token);
            let mut short = plain(DType::F32, [2, 7, 61, dim], dim);
            short.cos = Layout::f32([20, dim / 2]);
            short.sin = short.cos.clone();
            let positions: Vec<u32> = (0..122).map(|n| n * 37 % 23).collect();
            let op = short.positions(Layout::new(DType::U32, [2, 61]));
            check_at(&small, &op, &positions);
        }
    }
}

/// Where tokens are many, heads share an invocation: the last group may have fewer.
#[test]
fn heads_that_share_an_invocation() {
    for gpu in gpus() {
        let caps = gpu.engine().caps().clone();
        let mut few = gpu.clone();
        *few.engine_mut() = gpu.engine().clone().with_caps(Caps {
            software: true,
            ..caps
        });
        for (dim, turned) in [(6, 2), (16, 16)] {
            // Room after the last head, where nothing may be written.
            let padded = Layout::f32([2, 2100, 11, dim])
                .with_strides([2100 * 13 * dim, 13 * dim, dim, 1])
                .transposed(1, 2);
            let op = plain(DType::F32, [2, 11, 2100, dim], turned).output(padded);
            let plan = few.engine().plan(&op.clone().into()).expect("plans");
            let fields = plan.outline().steps[0].kernel.param_fields();
            let at = fields.iter().position(|(name, _)| *name == "each");
            let at = at.expect("a parameter") * 4;
            assert_eq!(plan.outline().steps[0].params[at..at + 4], [6, 0, 0, 0]);
            check(&few, &op);
            check(&few, &op.interleaved());
        }
    }
}

/// More workgroups than an axis of the grid holds: it is folded.
#[test]
fn more_workgroups_than_a_grid_axis_holds() {
    for gpu in gpus() {
        let caps = gpu.engine().caps().clone();
        let mut narrow = gpu.clone();
        *narrow.engine_mut() = gpu.engine().clone().with_caps(Caps {
            max_workgroups: 100,
            ..caps
        });
        let gpu = &narrow;
        check(gpu, &plain(DType::F32, [1, 3, 20_000, 10], 10));
        check(gpu, &plain(DType::F32, [70_000, 2, 1, 8], 8).interleaved());
    }
}

/// Angles of positions past a million: f32 would be off by a tenth.
#[test]
fn tables_are_right_far_out() {
    for start in [0u64, 1_000_000, 1 << 31] {
        let (cos, sin) = rotary_tables(start..start + 3, 8, 500_000.0).expect("tables");
        assert_eq!((cos.len(), sin.len()), (12, 12));
        for row in 0..3 {
            for i in 0..4 {
                // In another way: by repeated square roots, and the angle taken off its turns first.
                let frequency = 1.0 / 500_000f64.sqrt().sqrt().powi(i as i32);
                let angle = ((start + row) as f64 * frequency) % std::f64::consts::TAU;
                let at = row as usize * 4 + i;
                // Half a unit of f32, and what f64 leaves of so many turns.
                let most = 3.1e-8 + (start + 3) as f64 * 4e-16;
                let error = (f64::from(cos[at]) - angle.cos()).abs();
                assert!(error <= most, "{start} + {row}, {i}: {error:e}");
                let error = (f64::from(sin[at]) - angle.sin()).abs();
                assert!(error <= most, "{start} + {row}, {i}: {error:e}");
            }
        }
    }
    for (positions, rotary_dim, base) in [
        (0..4, 0, 1e4),
        (0..4, 7, 1e4),
        (0..4, 8, 0.0),
        (0..4, 8, f64::NAN),
        (4..4, 8, 1e4),
        (0..u64::MAX, 8, 1e4),
        (0..1 << 58, 8, 1e4),
    ] {
        rotary_tables(positions, rotary_dim, base).expect_err("no tables");
    }
}

/// What it is for: the product of a turned query and a turned key depends on how far they are apart.
#[test]
fn products_depend_on_the_distance_of_positions() {
    const DIM: usize = 32;
    for gpu in gpus() {
        let (q, k) = (noise(1, DIM), noise(2, DIM));
        let turned = |data: &[f32], position: u64, interleaved: bool| -> Vec<f64> {
            let (cos, sin) =
                rotary_tables(position..position + 1, DIM as u64, 10_000.0).expect("tables");
            let x = gpu.upload(data, [1, 1, 1, DIM as u64]).expect("uploads");
            let table = |data: &[f32]| gpu.upload(data, [1, DIM as u64 / 2]).expect("uploads");
            let y = gpu
                .rotary(&x, &table(&cos), &table(&sin), |op| {
                    if interleaved { op.interleaved() } else { op }
                })
                .expect("runs");
            let y = gpu.download(&y).expect("reads back");
            y.into_iter().map(f64::from).collect()
        };
        for interleaved in [false, true] {
            let product = |m, n| -> f64 {
                let (q, k) = (turned(&q, m, interleaved), turned(&k, n, interleaved));
                q.iter().zip(&k).map(|(a, b)| a * b).sum()
            };
            let plain: f64 = q.iter().zip(&k).map(|(&a, &b)| f64::from(a * b)).sum();
            assert!((product(0, 0) - plain).abs() < 1e-5);
            let near = product(9, 2);
            for shift in [1, 500, 1_000_000] {
                let far = product(9 + shift, 2 + shift);
                assert!((near - far).abs() < 1e-5, "{near} {far} by {shift}");
            }
            // And it does depend on it.
            assert!((near - product(12, 2)).abs() > 1e-2);
        }
    }
}

#[test]
fn turning_back_undoes_it() {
    for gpu in gpus() {
        let op = plain(DType::F32, [2, 3, 5, 16], 16);
        let data = numbers(3, &op.x);
        let [cos, sin] = tables(&op);
        let x = gpu.upload(&data, op.x.shape.clone()).expect("uploads");
        let cos = gpu.upload(&cos, op.cos.shape.clone()).expect("uploads");
        let sin = gpu.upload(&sin, op.sin.shape.clone()).expect("uploads");
        let there = gpu.rotary(&x, &cos, &sin, |op| op).expect("runs");
        let back = gpu
            .rotary(&there, &cos, &sin, |op| op.inverse().in_place())
            .expect("runs");
        let wide: Vec<f64> = data.iter().map(|&x| x.into()).collect();
        let moved = reference::error(&gpu.download(&x).expect("reads back"), &wide);
        assert_eq!(moved, 0.0, "the input stays");
        let error = reference::error(&gpu.download(&back).expect("reads back"), &wide);
        assert!(error <= F32, "{}: {error:e}", name(gpu));
    }
}

#[test]
fn positions_need_a_tensor() {
    let gpu = &gpus()[0];
    let x = gpu.upload(&[0.0; 12], [1, 1, 3, 4]).expect("uploads");
    let table = gpu.upload(&[0.0; 6], [3, 2]).expect("uploads");
    let error = gpu
        .rotary(&x, &table, &table, |op| {
            op.positions(Layout::new(DType::U32, [1, 3]))
        })
        .expect_err("there is none");
    assert!(error.to_string().contains("RotaryArgs"), "{error}");
}

#[test]
fn ops_are_data() {
    let op = plain(DType::F16, [2, 3, 5, 16], 8)
        .interleaved()
        .inverse()
        .in_place()
        .positions(Layout::new(DType::U32, [1, 5]));
    let op = Op::from(op);
    let text = serde_json::to_string(&op).expect("serialises");
    assert!(text.starts_with(r#"{"rotary":{"#), "{text}");
    assert_eq!(serde_json::from_str::<Op>(&text).expect("reads back"), op);
    // What may be left out.
    let layout = |shape: &str| format!(r#"{{"dtype":"f32","shape":{shape},"strides":[4,4,4,1]}}"#);
    let table = r#"{"dtype":"f32","shape":[1,2],"strides":[2,1]}"#;
    let x = layout("[1,1,1,4]");
    let text =
        format!(r#"{{"rotary":{{"x":{x},"y":{x},"cos":{table},"sin":{table},"rotary_dim":4}}}}"#);
    let short = serde_json::from_str::<Op>(&text).expect("reads");
    let table = Layout::f32([1, 2]);
    let want = Rotary::new(Layout::f32([1, 1, 1, 4]), table.clone(), table);
    assert_eq!(short, want.into());
}
