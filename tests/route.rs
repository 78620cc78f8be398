//! Routing on every adapter, against the f64 references: pooling, scores, and the choice of blocks.

mod common;

use common::{SENTINEL, gpus, name, place, untouched_around};
use foveate::{
    Blocks, Caps, DType, Divisor, Error, FirstQuery, Gpu, Keep, Layout, NONE, Op, Pool, PoolRule,
    Real, Route, RouteMass, RouteScores, Schedule, ScoreRule, Tensor, Tuning, Visible,
    ops::{Args, Slot},
    plan::Outline,
    reference::{self, PoolInputs, RouteInputs, RouteScoresInputs, noise},
};

const F32: f64 = 1e-5;
const F16: f64 = 2e-3;

/// How a tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    Contiguous,
    /// `[batch, seq, heads, dim]`, padded and shifted.
    Inside,
    /// The last two axes exchanged.
    Turned,
}

const LIES: [Lie; 3] = [Lie::Contiguous, Lie::Inside, Lie::Turned];

fn layout(dtype: DType, [batch, heads, seq, dim]: [u64; 4], lie: Lie) -> Layout {
    match lie {
        Lie::Contiguous => Layout::new(dtype, [batch, heads, seq, dim]),
        Lie::Inside => {
            let row = dim + 3;
            Layout::new(dtype, [batch, seq, heads, dim])
                .with_strides([seq * heads * row, heads * row, row, 1])
                .at(5)
                .transposed(1, 2)
        }
        Lie::Turned => Layout::new(dtype, [batch, heads, dim, seq]).transposed(2, 3),
    }
}

fn numbers(layout: &[u32]) -> Layout {
    Layout::new(DType::U32, [layout.len() as u64])
}

/// Noise that the storage holds exactly.
fn random(seed: u64, layout: &Layout) -> Vec<f32> {
    let data = noise(seed, layout.elements() as usize).into_iter();
    data.map(|x| match layout.dtype {
        DType::F16 => half::f16::from_f32(x).to_f32(),
        _ => x,
    })
    .collect()
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| x.into()).collect()
}

/// Integers travel as the numbers of the same bits.
fn bits(data: &[u32]) -> Vec<f32> {
    data.iter().map(|&x| f32::from_bits(x)).collect()
}

fn as_f32(tensor: &Tensor) -> Tensor {
    let mut layout = tensor.layout().clone();
    if layout.dtype == DType::U32 {
        layout.dtype = DType::F32;
    }
    tensor.with_layout(layout)
}

/// The outputs of an op on the device, integers as bits; nothing around them is touched, and all of them is written.
fn outputs(
    gpu: &Gpu,
    op: &Op,
    inputs: &[(Slot, Vec<f32>)],
    tuning: &Tuning,
) -> Vec<(Slot, Vec<f32>)> {
    let plan = gpu
        .engine()
        .plan_with(op, tuning)
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    keeps_the_limits(plan.outline(), gpu.engine().caps());
    let tensors: Vec<(Slot, Tensor)> = op
        .tensors()
        .into_iter()
        .map(|(slot, layout)| {
            let data = inputs.iter().find(|(other, _)| *other == slot);
            let data = data.map(|(_, data)| data.as_slice()).unwrap_or_default();
            assert!(op.is_output(slot) || data.len() as u64 == layout.elements());
            (slot, place(gpu, layout.clone(), data).expect("fits"))
        })
        .collect();
    let views = tensors.iter().map(|(slot, tensor)| (*slot, tensor.view()));
    gpu.run(&plan.bind(Args(views.collect())).expect("binds"))
        .expect("runs");
    let written = tensors.iter().filter(|(slot, _)| op.is_output(*slot));
    written
        .map(|(slot, tensor)| {
            let tensor = as_f32(tensor);
            untouched_around(gpu, &tensor).expect("reads back");
            (*slot, gpu.download(&tensor).expect("reads back"))
        })
        .collect()
}

fn keeps_the_limits(outline: &Outline, caps: &Caps) {
    assert!(outline.scratch_bytes <= caps.max_buffer_bytes);
    for step in &outline.steps {
        let side = caps.max_workgroups;
        assert!(step.grid.iter().all(|&n| (1..=side).contains(&n)));
        assert!(step.kernel.supports(caps).is_ok(), "{:?}", step.kernel);
        for range in &step.ranges {
            assert!(range.offset.is_multiple_of(caps.storage_alignment.into()));
            assert!(range.size > 0 && range.size <= caps.max_binding_bytes);
            if range.slot == Slot::Scratch {
                assert!(range.offset + range.size <= outline.scratch_bytes);
            }
        }
    }
}

/// The same adapter, planned for as a device with other caps.
fn with_caps(gpu: &Gpu, change: impl FnOnce(&mut Caps)) -> Gpu {
    let mut caps = gpu.engine().caps().clone();
    change(&mut caps);
    let mut other = gpu.clone();
    *other.engine_mut() = gpu.engine().clone().with_caps(caps);
    other
}

fn halves(gpu: &Gpu) -> &'static [DType] {
    if gpu.engine().caps().f16 {
        &[DType::F32, DType::F16]
    } else {
        &[DType::F32]
    }
}

// Pooling.

/// Blocks as the reference has them, for each sequence.
fn ranges(
    blocks: &Blocks,
    step: u64,
    count: u64,
    starts: &[u32],
    sequences: usize,
) -> Vec<Vec<(usize, usize)>> {
    let count = count as usize;
    (0..sequences)
        .map(|sequence| match blocks {
            Blocks::Size(size) => (0..count)
                .map(|j| (j * step as usize, j * step as usize + *size as usize))
                .collect(),
            Blocks::Starts(layout) => {
                // One list for all, or one for each sequence.
                let own = if layout.rank() == 1 { 0 } else { sequence };
                let list = &starts[own * (count + 1)..(own + 1) * (count + 1)];
                list.windows(2)
                    .map(|w| (w[0] as usize, (w[1] as usize).max(w[0] as usize)))
                    .collect()
            }
        })
        .collect()
}

fn check_pool(gpu: &Gpu, op: &Pool, starts: &[u32], lens: &[u32]) {
    let [batch, heads, rows, channels] = [0, 1, 2, 3].map(|axis| op.x.shape[axis] as usize);
    let x = random(1, &op.x);
    let inputs = [
        (Slot::X, x.clone()),
        (Slot::BlockStarts, bits(starts)),
        (Slot::KvLen, bits(lens)),
    ];
    let step = op.step.unwrap_or(match op.blocks {
        Blocks::Size(size) => size,
        Blocks::Starts(_) => 0,
    });
    let blocks = ranges(&op.blocks, step, op.y.shape[2], starts, batch * heads);
    let lens: Vec<usize> = lens
        .iter()
        .flat_map(|&len| std::iter::repeat_n(len as usize, heads))
        .collect();
    let expected = reference::pool(&PoolInputs {
        sequences: batch * heads,
        rows,
        channels,
        x: &wide(&x),
        blocks: &blocks,
        block: match op.blocks {
            Blocks::Size(size) => size as usize,
            Blocks::Starts(_) => 0,
        },
        rule: op.rule,
        normalise: op.normalise,
        lens: &lens,
    });
    let op: Op = op.clone().into();
    let got = outputs(gpu, &op, &inputs, &Tuning::default());
    let [(_, y)] = &got[..] else {
        panic!("one output")
    };
    let most = if op.tensors().iter().any(|(_, l)| l.dtype == DType::F16) {
        F16
    } else {
        F32
    };
    let error = reference::error(y, &expected);
    assert!(error <= most, "{}: {error:e}: {op:?}", name(gpu));
}

const RULES: [PoolRule; 5] = [
    PoolRule::Mean(Divisor::Len),
    PoolRule::Mean(Divisor::Block),
    PoolRule::Mean(Divisor::SqrtLen),
    PoolRule::Max,
    PoolRule::Min,
];

#[test]
fn pool_shapes() {
    for gpu in gpus() {
        let shapes = [
            ([1, 1, 1, 1], 1),
            ([2, 3, 7, 5], 3),
            ([1, 2, 64, 64], 16),
            ([2, 1, 67, 40], 16),
            ([1, 1, 131, 256], 64),
            ([1, 2, 13, 300], 13),
            ([1, 1, 9, 3], 20),
            ([1, 3, 257, 32], 1),
        ];
        for (number, (shape, block)) in shapes.into_iter().enumerate() {
            for (rule, normalise) in RULES.into_iter().zip([false, true, false, false, true]) {
                for &dtype in halves(gpu) {
                    let x = layout(dtype, shape, LIES[number % 3]);
                    let mut op = Pool::new(x, block).rule(rule);
                    op.normalise = normalise;
                    if number % 2 == 1 {
                        let mut out = op.y.shape.clone();
                        out.swap(2, 3);
                        op = op.output(Layout::f32(out).transposed(2, 3).at(7));
                    }
                    check_pool(gpu, &op, &[], &[]);
                }
            }
        }
    }
}

#[test]
fn pool_of_blocks_that_overlap_or_are_left_out() {
    for gpu in gpus() {
        let x = Layout::f32([1, 2, 70, 12]);
        check_pool(gpu, &Pool::new(x.clone(), 32).step(16), &[], &[]);
        check_pool(gpu, &Pool::new(x.clone(), 80).step(16), &[], &[]);
        check_pool(gpu, &Pool::new(x.clone(), 3).step(10), &[], &[]);
        // Blocks that begin inside the sequence and end past it.
        let all = Pool::new(x.clone(), 32).step(16);
        check_pool(
            gpu,
            &all.clone().output(Layout::f32([1, 2, 5, 12])),
            &[],
            &[],
        );
        check_pool(gpu, &all.output(Layout::f32([1, 2, 2, 12])), &[], &[]);
    }
}

#[test]
fn pool_of_blocks_from_a_tensor() {
    for gpu in gpus() {
        for (number, rule) in [RULES[0], RULES[2], RULES[3], RULES[4]]
            .into_iter()
            .enumerate()
        {
            let x = layout(DType::F32, [2, 2, 29, 12], LIES[number % 3]);
            // With blocks of none, past the end, and falling.
            let starts = [0, 4, 4, 5, 21, 29, 29, 40, 7, u32::MAX];
            let op = Pool::by_starts(x.clone(), numbers(&starts)).rule(rule);
            check_pool(gpu, &op, &starts, &[]);
            check_pool(gpu, &op.clone().normalised(), &starts, &[]);
            let op = op.kv_len(numbers(&[0; 2]));
            check_pool(gpu, &op, &starts, &[0, 22]);
            let own: Vec<u32> = (0..4).flat_map(|n| [n, 5 + n, 9 + 2 * n, 29]).collect();
            let op = Pool::by_starts(x, Layout::new(DType::U32, [2, 2, 4])).rule(rule);
            check_pool(gpu, &op, &own, &[]);
        }
    }
}

#[test]
fn pool_of_lengths() {
    for gpu in gpus() {
        for rule in RULES {
            let x = Layout::f32([4, 1, 33, 8]);
            let op = Pool::new(x, 8).rule(rule).kv_len(numbers(&[0; 4]));
            check_pool(gpu, &op, &[], &[0, 1, 17, u32::MAX]);
        }
    }
}

#[test]
fn pool_in_slices() {
    for gpu in gpus() {
        let narrow = with_caps(gpu, |caps| caps.max_binding_bytes = 4 << 10);
        let op = Pool::new(Layout::f32([2, 2, 131, 16]), 16);
        check_pool(&narrow, &op, &[], &[]);
        check_pool(
            &narrow,
            &op.clone().kv_len(numbers(&[0; 2])),
            &[],
            &[40, 130],
        );
        check_pool(&narrow, &op.clone().step(8), &[], &[]);
        let plan = narrow.engine().plan(&op.into()).expect("plans");
        assert!(plan.outline().steps.len() > 4);
        let starts = [0, 3, 40, 50, 60];
        let op = Pool::by_starts(Layout::f32([2, 2, 60, 16]), numbers(&starts));
        check_pool(&narrow, &op, &starts, &[]);
    }
}

#[test]
fn pool_says_what_is_wrong() {
    let plan =
        |op: Pool| Outline::new(&op.into(), &Caps::minimum(), &Tuning::default()).map(|_| ());
    let x = || Layout::f32([1, 2, 64, 8]);
    let invalid =
        |argument: &str, found: &str, remedy: &str| Err(Error::invalid(argument, found, remedy));
    assert_eq!(
        plan(Pool::new(x(), 0)),
        invalid("blocks", "blocks of no positions", "give a size from 1")
    );
    assert_eq!(
        plan(Pool::new(x(), 16).output(Layout::f32([1, 2, 5, 8]))),
        invalid(
            "y",
            "5 blocks, and 4 begin inside 64 rows",
            "give y at most 4 rows"
        )
    );
    assert_eq!(
        plan(Pool::by_starts(x(), Layout::new(DType::U32, [2, 2, 5]))),
        invalid(
            "block_starts",
            "shape [2, 2, 5] where [5] or [1 or 1, 2 or 1, 5] is expected",
            "give the start of each block, and the end of the last"
        )
    );
    let starts = Layout::new(DType::U32, [5]);
    let blocks = Pool::by_starts(x(), starts).rule(PoolRule::Mean(Divisor::Block));
    assert_eq!(
        plan(blocks),
        invalid(
            "rule",
            "divides by the rows of a whole block, and block_starts gives each its own",
            "divide by Len or SqrtLen"
        )
    );
    assert_eq!(
        plan(Pool::new(x(), 16).step(0)),
        invalid("step", "0 rows", "give at least 1")
    );
    assert_eq!(
        plan(Pool::new(x(), 16).step(u64::MAX)),
        Err(Error::unsupported(
            "steps of 18446744073709551615 rows",
            "positions are counted to 2147483648",
            "give a step of at most as many rows as x has"
        ))
    );
    // One block, of rows that are far apart.
    let apart = Layout::f32([1, 1, 2, 8]).with_strides([0, 0, 1 << 24, 1]);
    assert_eq!(plan(Pool::new(apart, 2).step(1 << 31)), Ok(()));
    assert_eq!(
        plan(Pool::new(Layout::f32([1, 1, 1 << 22, 4]), 1 << 20)),
        Err(Error::unsupported(
            "blocks of up to 1048576 rows of 4 channels",
            "a kernel may loop 65535 times on this device, and takes 262157",
            "pool shorter blocks and then their means, or measure the device's loop budget (Engine::measure)"
        ))
    );
}

// Scores.

fn on(schedule: Schedule) -> Tuning {
    Tuning {
        schedule: Some(schedule),
        ..Tuning::QUICK_START
    }
}

fn check_scores(gpu: &Gpu, op: &RouteScores, tuning: &Tuning) {
    let [batch, q_heads, rows, channels] = [0, 1, 2, 3].map(|axis| op.q.shape[axis] as usize);
    let (q, k) = (random(1, &op.q), random(2, &op.k));
    // Bounds below the upper ones.
    let k_min: Option<Vec<f32>> = op.k_min.as_ref().map(|layout| {
        let lower = random(3, layout).into_iter().zip(&k);
        lower.map(|(x, &high)| x.min(high)).collect()
    });
    let weights = op.head_weights.as_ref().map(|layout| random(4, layout));
    let (wide_min, wide_weights) = (k_min.as_deref().map(wide), weights.as_deref().map(wide));
    let expected = reference::route_scores(&RouteScoresInputs {
        batch,
        q_heads,
        kv_heads: op.k.shape[1] as usize,
        rows,
        columns: op.k.shape[2] as usize,
        channels,
        q: &wide(&q),
        k: &wide(&k),
        k_min: wide_min.as_deref(),
        head_weights: wide_weights.as_deref(),
        scale: op.scale.0.into(),
        relu: op.relu,
        sum_heads: op.sum_heads,
    });
    let inputs: Vec<_> = [
        (Slot::Q, Some(q)),
        (Slot::K, Some(k)),
        (Slot::KMin, k_min),
        (Slot::HeadWeights, weights),
    ]
    .into_iter()
    .filter_map(|(slot, data)| data.map(|data| (slot, data)))
    .collect();
    let op: Op = op.clone().into();
    let got = outputs(gpu, &op, &inputs, tuning);
    let [(_, out)] = &got[..] else {
        panic!("one output")
    };
    let error = reference::error(out, &expected);
    assert!(error <= F32, "{}: {error:e}: {op:?}", name(gpu));
}

/// Rows, columns, channels and the heads of queries and keys.
fn scores(
    dtype: DType,
    batch: u64,
    heads: [u64; 2],
    [rows, columns, channels]: [u64; 3],
    lie: Lie,
) -> RouteScores {
    RouteScores::new(
        layout(dtype, [batch, heads[0], rows, channels], lie),
        layout(dtype, [batch, heads[1], columns, channels], lie),
    )
}

/// The same with everything that an op may have, by the bits of a number.
fn with_terms(mut op: RouteScores, terms: usize) -> RouteScores {
    if terms & 1 != 0 {
        op = op.clone().bounds(op.k);
    }
    if terms & 2 != 0 {
        op = op.relu();
    }
    if terms & 4 != 0 {
        let shape = op.q.shape[..3].to_vec();
        op = op.head_weights(Layout::f32(shape));
    }
    if terms & 8 != 0 {
        op = op.sum_heads();
    }
    op.scale(if terms & 2 != 0 { -0.5 } else { 0.3 })
}

const SCHEDULES: [Schedule; 2] = [Schedule::Subgroup, Schedule::Tile];

fn schedules(gpu: &Gpu) -> &'static [Schedule] {
    if gpu.engine().caps().fixed_subgroup().is_some() {
        &SCHEDULES
    } else {
        &SCHEDULES[1..]
    }
}

#[test]
fn scores_of_shapes() {
    for gpu in gpus() {
        let shapes = [
            [1, 1, 1],
            [31, 33, 8],
            [33, 31, 5],
            [7, 129, 64],
            [65, 4, 36],
            [1, 67, 33],
            [40, 30, 100],
        ];
        for &schedule in schedules(gpu) {
            for (number, shape) in shapes.into_iter().enumerate() {
                let heads = [[1, 1], [4, 2], [3, 1]][number % 3];
                let lie = LIES[number / 2 % 3];
                let mut op = scores(DType::F32, 2, heads, shape, lie);
                if number % 2 == 1 {
                    let mut out = op.out.shape.clone();
                    out.swap(2, 3);
                    op = op.output(Layout::f32(out).transposed(2, 3).at(3));
                }
                check_scores(gpu, &op, &on(schedule));
            }
        }
        // More channels than lanes hold.
        let op = scores(DType::F32, 1, [2, 1], [9, 10, 300], Lie::Contiguous);
        check_scores(gpu, &op, &Tuning::default());
        for &dtype in halves(gpu) {
            let op = scores(dtype, 1, [2, 2], [70, 36, 64], Lie::Contiguous);
            check_scores(gpu, &op, &Tuning::default());
        }
    }
}

#[test]
fn scores_with_every_term() {
    for gpu in gpus() {
        for &schedule in schedules(gpu) {
            for terms in [0, 1, 2, 4, 8, 13, 14, 15] {
                let lie = LIES[terms % 3];
                let op = scores(DType::F32, 2, [6, 2], [35, 13 + terms as u64 % 4, 12], lie);
                check_scores(gpu, &with_terms(op, terms), &on(schedule));
            }
        }
    }
}

#[test]
fn scores_in_slices() {
    for gpu in gpus() {
        for &schedule in schedules(gpu) {
            for terms in [0, 13, 14] {
                for (bytes, budget) in [(4 << 10, 65_535), (1 << 20, 130), (2 << 10, 64)] {
                    let budget = if schedule == Schedule::Tile {
                        budget + 50
                    } else {
                        budget
                    };
                    let narrow = with_caps(gpu, |caps| {
                        caps.max_binding_bytes = bytes;
                        caps.loop_budget = budget;
                    });
                    let op = scores(DType::F32, 2, [6, 2], [40, 70, 16], Lie::Contiguous);
                    check_scores(&narrow, &with_terms(op, terms), &on(schedule));
                }
            }
        }
    }
}

#[test]
fn scores_say_what_is_wrong() {
    let plan = |op: RouteScores| {
        Outline::new(&op.into(), &Caps::minimum(), &Tuning::default()).map(|_| ())
    };
    let good = || scores(DType::F32, 1, [4, 2], [8, 8, 16], Lie::Contiguous);
    assert_eq!(plan(good()), Ok(()));
    let mut op = good();
    op.rule = ScoreRule::Bounds;
    assert_eq!(
        plan(op),
        Err(Error::invalid(
            "k_min",
            "is absent, and the rule is bounds",
            "give lower bounds beside the upper ones in k"
        ))
    );
    assert_eq!(
        plan(scores(DType::F32, 1, [3, 2], [8, 8, 16], Lie::Contiguous)),
        Err(Error::invalid(
            "k",
            "2 heads for 3 query heads",
            "give a number of heads that divides the query heads"
        ))
    );
    assert_eq!(
        plan(good().head_weights(Layout::f32([1, 4, 7]))),
        Err(Error::invalid(
            "head_weights",
            "shape [1, 4, 7] where [1, 4, 8] is expected",
            "make it agree with the other tensors"
        ))
    );
    assert_eq!(
        plan(good().scale(f32::NAN)),
        Err(Error::invalid("scale", "NaN", "give a finite number"))
    );
    assert_eq!(
        plan(good().sum_heads().output(Layout::f32([1, 4, 8, 8]))),
        Err(Error::invalid(
            "out",
            "shape [1, 4, 8, 8] where [1, 2, 8, 8] is expected",
            "make it agree with the other tensors"
        ))
    );
    let mut caps = Caps::minimum();
    caps.loop_budget = 100;
    assert_eq!(
        Outline::new(&good().into(), &caps, &on(Schedule::Subgroup)).map(|_| ()),
        Err(Error::unsupported(
            "schedule subgroup",
            "the device has no subgroup operations",
            "leave the schedule open, or ask for tile"
        ))
    );
    let op = scores(DType::F32, 1, [4, 2], [8, 8, 64], Lie::Contiguous);
    assert_eq!(
        Outline::new(&op.into(), &caps, &Tuning::default()).map(|_| ()),
        Err(Error::unsupported(
            "scores of 64 channels",
            "a kernel may loop 100 times on this device, and takes 105",
            "measure the device's loop budget (Engine::measure), or use fewer channels per head"
        ))
    );
}

// Choices.

/// What an op on the device reads beside scores.
#[derive(Debug, Clone, Copy, Default)]
struct Given<'a> {
    row_starts: &'a [u32],
    block_starts: &'a [u32],
    lens: &'a [u32],
    cu: &'a [u32],
}

/// Scores with few values, so that many are equal and sums are exact, and some that are no numbers.
fn few_values(op: &Route) -> Vec<f32> {
    let mut scores = noise(11, op.scores.elements() as usize);
    scores
        .iter_mut()
        .for_each(|x| *x = (*x * 8.0).round() / 8.0);
    let special = [
        f32::NEG_INFINITY,
        f32::NAN,
        f32::INFINITY,
        -0.0,
        0.0,
        -f32::NAN,
    ];
    for (number, x) in scores.iter_mut().enumerate() {
        // Infinity and finite numbers are all the same in sums.
        if number % 13 == 5 && !(op.group > 1 && number % 78 == 31) {
            *x = special[number / 13 % special.len()];
        }
    }
    scores
}

fn routed(op: &Route, scores: &[f32], given: Given<'_>) -> Vec<reference::Routed> {
    let [batch, heads, rows, blocks] = [0, 1, 2, 3].map(|axis| op.scores.shape[axis] as usize);
    let sequences = batch * heads / op.group as usize;
    let size = |blocks: &Blocks| match blocks {
        Blocks::Size(size) => *size,
        Blocks::Starts(_) => 0,
    };
    let mut row_ranges = ranges(
        &op.rows,
        size(&op.rows),
        rows as u64,
        given.row_starts,
        sequences,
    );
    for (sequence, rows) in row_ranges.iter_mut().enumerate() {
        let origin = match op.first_query {
            FirstQuery::At(at) => at as usize,
            FirstQuery::BeforeEnd(back) => {
                let len = given.lens[sequence * batch / sequences];
                (len as usize).saturating_sub(back as usize)
            }
        };
        for row in rows {
            *row = (row.0 + origin, row.1 + origin);
        }
    }
    let block_ranges = ranges(
        &op.blocks,
        size(&op.blocks),
        blocks as u64,
        given.block_starts,
        sequences,
    );
    let usizes = |list: &[u32]| -> Vec<usize> { list.iter().map(|&n| n as usize).collect() };
    reference::route(&RouteInputs {
        batch,
        heads,
        group: op.group as usize,
        rows,
        blocks,
        scores: &wide(scores),
        keep: op.keep,
        visible: op.visible,
        own: op.own,
        first: op.first as usize,
        recent: op.recent as usize,
        row_ranges: &row_ranges,
        block_ranges: &block_ranges,
        lens: &usizes(given.lens),
        cu_seqlens: &usizes(given.cu),
    })
}

fn check_route(gpu: &Gpu, op: &Route, scores: &[f32], given: Given<'_>) {
    let scores: Vec<f32> = match op.scores.dtype {
        DType::F16 => scores
            .iter()
            .map(|&x| half::f16::from_f32(x).to_f32())
            .collect(),
        _ => scores.to_vec(),
    };
    let expected = routed(op, &scores, given);
    let inputs = [
        (Slot::Scores, scores),
        (Slot::RowStarts, bits(given.row_starts)),
        (Slot::BlockStarts, bits(given.block_starts)),
        (Slot::KvLen, bits(given.lens)),
        (Slot::CuSeqlens, bits(given.cu)),
    ];
    let got = outputs(gpu, &op.clone().into(), &inputs, &Tuning::default());
    let of = |slot| {
        let found = got.iter().find(|(other, _)| *other == slot);
        found.map(|(_, data)| -> Vec<u32> { data.iter().map(|x| x.to_bits()).collect() })
    };
    let (indices, counts, words) = (of(Slot::Indices), of(Slot::Counts), of(Slot::Bits));
    let places = match op.keep {
        Keep::TopK { k } => k,
        Keep::TopP { max, .. } => max,
    } as usize;
    let words_each = op.scores.shape[3].div_ceil(32) as usize;
    let (mut clear, mut all) = (0, 0);
    for (row, expected) in expected.iter().enumerate() {
        all += 1;
        let what = || format!("{} row {row}: {op:?}", name(gpu));
        // All outputs tell of the same blocks.
        let set = words.as_ref().map(|words| -> Vec<u32> {
            let own = &words[row * words_each..][..words_each];
            let has = |j: &u32| own[*j as usize / 32] >> (j % 32) & 1 == 1;
            (0..32 * words_each as u32).filter(has).collect()
        });
        let list = indices.as_ref().map(|indices| -> Vec<u32> {
            let own = &indices[row * places..][..places];
            assert!(!own.contains(&SENTINEL.to_bits()), "{}", what());
            let taken = own.iter().position(|&j| j == NONE).unwrap_or(places);
            assert!(own[taken..].iter().all(|&j| j == NONE), "{}", what());
            own[..taken].to_vec()
        });
        let taken = set.as_ref().or(list.as_ref()).expect("an output");
        assert!(taken.is_sorted_by(|a, b| a < b), "{}", what());
        assert!(
            taken.iter().all(|&j| u64::from(j) < op.scores.shape[3]),
            "{}",
            what()
        );
        assert!(list.as_ref().is_none_or(|list| list == taken), "{}", what());
        if let Some(counts) = &counts {
            assert_eq!(counts[row] as usize, taken.len(), "{}", what());
        }
        assert!(
            taken.len().abs_diff(expected.blocks.len()) <= 1,
            "{} blocks and not {}: {}",
            taken.len(),
            expected.blocks.len(),
            what()
        );
        if expected.share_margin < 1e-5 {
            continue;
        }
        clear += 1;
        if let Some(indices) = &indices {
            let list = &indices[row * places..][..places];
            let mut wanted: Vec<u32> = expected.blocks.iter().map(|&j| j as u32).collect();
            wanted.resize(places, NONE);
            assert_eq!(list, wanted, "{}", what());
        }
        if let Some(words) = &words {
            let mut wanted = vec![0u32; words_each];
            for &j in &expected.blocks {
                wanted[j / 32] |= 1 << (j % 32);
            }
            assert_eq!(
                &words[row * words_each..][..words_each],
                wanted,
                "{}",
                what()
            );
        }
    }
    assert!(2 * clear > all, "{clear} of {all} rows are clear: {op:?}");
}

fn top_k(scores: [u64; 4], k: u64) -> Route {
    Route::new(Layout::f32(scores), k).with_counts().with_bits()
}

const VISIBLES: [Visible; 3] = [Visible::All, Visible::Causal, Visible::Complete];

#[test]
fn choices_of_every_kind() {
    for gpu in gpus() {
        let mut number = 0;
        for visible in VISIBLES {
            for own in [false, true] {
                for (first, recent) in [(0, 0), (1, 0), (0, 2), (2, 3)] {
                    for (block_q, block_kv) in [(1, 1), (1, 8), (8, 8), (16, 4), (4, 16), (5, 3)] {
                        number += 1;
                        let blocks = [33, 40, 7][number % 3];
                        let mut op = top_k([2, 2, 9, blocks], 12).blocks(block_q, block_kv);
                        op = op.visible(visible).forced(first, recent);
                        op.own = own;
                        if number % 2 == 0 {
                            op = op.first_query(FirstQuery::At(number as u64 % 40));
                        }
                        check_route(gpu, &op, &few_values(&op), Given::default());
                    }
                }
            }
        }
    }
}

#[test]
fn choices_of_shapes() {
    for gpu in gpus() {
        for (shape, k) in [
            ([1, 1, 1, 1], 1),
            ([1, 1, 1, 1], 7),
            ([1, 2, 65, 31], 1),
            ([3, 1, 5, 129], 2),
            ([1, 1, 3, 1000], 64),
            ([2, 2, 67, 67], 25),
            ([1, 1, 130, 64], 16),
        ] {
            let op = top_k(shape, k).visible(Visible::Causal).own();
            check_route(gpu, &op, &few_values(&op), Given::default());
            for lie in LIES {
                for &dtype in halves(gpu) {
                    let mut op = Route::new(layout(dtype, shape, lie), k);
                    let list = op.indices.clone().expect("a list");
                    let [b, h, m, places] = [0, 1, 2, 3].map(|axis| list.shape[axis]);
                    op.indices = Some(layout(DType::U32, [b, h, m, places], lie));
                    check_route(gpu, &op, &few_values(&op), Given::default());
                    check_route(
                        gpu,
                        &op.clone().bits_only(),
                        &few_values(&op),
                        Given::default(),
                    );
                }
            }
        }
    }
}

#[test]
fn choices_by_groups_of_heads() {
    for gpu in gpus() {
        for group in [1, 2, 6] {
            for blocks in [36, 35] {
                let op = top_k([2, 6, 11, blocks], 5).group(group).blocks(4, 2);
                let op = op.visible(Visible::Complete).own().forced(1, 0);
                check_route(gpu, &op, &few_values(&op), Given::default());
            }
        }
        // Sums past the largest number, and of infinities.
        let op = top_k([1, 3, 1, 6], 3).group(3);
        let (max, inf) = (f32::MAX, f32::INFINITY);
        let scores = [
            [-max, max, inf, 1.0, -max, 0.5],
            [-max, max, -inf, f32::NAN, 1.0, 0.25],
            [-max, max, 0.0, 2.0, 0.0, 0.125],
        ];
        let inputs = [(Slot::Scores, scores.as_flattened().to_vec())];
        let got = outputs(gpu, &op.into(), &inputs, &Tuning::default());
        let list: Vec<u32> = got[0].1.iter().map(|x| x.to_bits()).collect();
        assert_eq!(list, [0, 1, 5], "{}", name(gpu));
    }
}

#[test]
fn choices_within_lengths() {
    for gpu in gpus() {
        for visible in VISIBLES {
            for (block_q, block_kv) in [(1, 1), (1, 16), (8, 4)] {
                let op = top_k([5, 2, 6, 20], 6).blocks(block_q, block_kv).own();
                let op = op.visible(visible).forced(1, 2).kv_len(numbers(&[0; 5]));
                let given = Given {
                    lens: &[0, 1, 17, 3 * block_kv as u32, u32::MAX],
                    ..Given::default()
                };
                check_route(gpu, &op, &few_values(&op), given);
                let op = op.first_query(FirstQuery::BeforeEnd(6 * block_q));
                let given = Given {
                    lens: &[0, 1, 17, 65, 20 * block_kv as u32],
                    ..given
                };
                check_route(gpu, &op, &few_values(&op), given);
            }
        }
    }
}

#[test]
fn a_decoding_step_sees_its_partial_page() {
    for gpu in gpus() {
        let op = top_k([3, 4, 1, 9], 3)
            .blocks(1, 16)
            .visible(Visible::Causal);
        let op = op
            .own()
            .kv_len(numbers(&[0; 3]))
            .first_query(FirstQuery::BeforeEnd(1));
        let given = Given {
            lens: &[1, 33, 129],
            ..Given::default()
        };
        let scores: Vec<f32> = few_values(&op);
        check_route(gpu, &op, &scores, given);
        let rows = routed(&op, &scores, given);
        assert!(
            rows.iter()
                .zip([0, 2, 8].iter().flat_map(|n| [n; 4]))
                .all(|(row, own)| row.blocks.contains(own))
        );
    }
}

#[test]
fn choices_of_blocks_and_rows_from_tensors() {
    for gpu in gpus() {
        for visible in VISIBLES {
            for own in [false, true] {
                // With blocks and rows of none.
                let (rows, blocks) = ([0, 3, 3, 10, 30, 41], [2, 2, 5, 9, 9, 9, 20, 28, 33]);
                let mut op = top_k([2, 2, 5, 8], 4).visible(visible).forced(1, 1);
                op.own = own;
                op.rows = Blocks::Starts(numbers(&rows));
                op.blocks = Blocks::Starts(numbers(&blocks));
                let given = Given {
                    row_starts: &rows,
                    block_starts: &blocks,
                    ..Given::default()
                };
                check_route(gpu, &op, &few_values(&op), given);
                // One list for each sequence.
                let own_lists: Vec<u32> = (0..4).flat_map(|n| blocks.map(|at| at + n)).collect();
                op.blocks = Blocks::Starts(Layout::new(DType::U32, [2, 2, 9]));
                op = op.kv_len(numbers(&[0; 2])).first_query(FirstQuery::At(2));
                let given = Given {
                    block_starts: &own_lists,
                    lens: &[21, 40],
                    ..given
                };
                check_route(gpu, &op, &few_values(&op), given);
            }
        }
    }
}

#[test]
fn packed_sequences_keep_to_themselves() {
    for gpu in gpus() {
        // MoBA's chunks of 8 in sequences of 40, 1 and 26.
        let cu = [0, 40, 41, 67];
        let starts = [0, 8, 16, 24, 32, 40, 41, 49, 57, 65, 67];
        for visible in VISIBLES {
            let mut op = top_k([1, 2, 67, 10], 3).visible(visible).own().forced(1, 0);
            op.blocks = Blocks::Starts(numbers(&starts));
            op = op.packed(numbers(&cu));
            let given = Given {
                block_starts: &starts,
                cu: &cu,
                ..Given::default()
            };
            check_route(gpu, &op, &few_values(&op), given);
            // Blocks of a size that sequences cut, sequences of none, and rows past the last.
            let cu = [3, 3, 20, 20, 43];
            let op = top_k([1, 2, 50, 13], 3).blocks(1, 4).visible(visible).own();
            let op = op.packed(numbers(&cu));
            let given = Given {
                cu: &cu,
                ..Given::default()
            };
            check_route(gpu, &op, &few_values(&op), given);
        }
    }
}

#[test]
fn choices_by_mass() {
    for gpu in gpus() {
        for mass in [RouteMass::Softmax, RouteMass::Given] {
            for p in [0.05, 0.5, 0.9, 1.0] {
                for (min, max) in [(0, 1), (1, 20), (5, 40), (0, 64)] {
                    let op = top_k([1, 2, 17, 45], 1).keep(Keep::TopP {
                        p: Real(p),
                        mass,
                        min,
                        max,
                    });
                    let scores = few_values(&op);
                    let scores: Vec<f32> = scores
                        .iter()
                        .map(|x| if *x == f32::INFINITY { 3.0 } else { *x })
                        .collect();
                    check_route(gpu, &op, &scores, Given::default());
                    if max >= 20 {
                        let op = op.visible(Visible::Causal).own().forced(2, 3).blocks(3, 2);
                        check_route(gpu, &op, &scores, Given::default());
                    }
                }
            }
        }
        // Nothing but what is forced is worth anything, or nothing at all.
        let op = top_k([1, 1, 8, 8], 1).keep(Keep::TopP {
            p: Real(0.9),
            mass: RouteMass::Softmax,
            min: 2,
            max: 4,
        });
        let hidden = [f32::NEG_INFINITY; 64];
        check_route(gpu, &op, &hidden, Given::default());
        check_route(
            gpu,
            &op.visible(Visible::Causal).own(),
            &hidden,
            Given::default(),
        );
    }
}

/// Masses whose sum is past the largest number, by one invocation per row and by a selection.
#[test]
fn masses_of_huge_scores() {
    for gpu in gpus() {
        for (blocks, max) in [(30, 20), (130, 100)] {
            for mass in [RouteMass::Softmax, RouteMass::Given] {
                for p in [0.3, 1.0] {
                    let op = top_k([1, 1, 5, blocks], 1).keep(Keep::TopP {
                        p: Real(p),
                        mass,
                        min: 0,
                        max,
                    });
                    let mut scores = noise(8, 5 * blocks as usize);
                    for (number, row) in scores.chunks_mut(blocks as usize).enumerate() {
                        match number {
                            0 => row[5] = f32::INFINITY,
                            1 => row[3..12].fill(f32::INFINITY),
                            2 => row.fill(3e38),
                            3 => row.iter_mut().for_each(|x| *x *= 3e38),
                            _ => row.iter_mut().for_each(|x| *x *= 1e-35),
                        }
                    }
                    check_route(gpu, &op, &scores, Given::default());
                    let op = op.visible(Visible::Causal).forced(1, 2).blocks(64, 3);
                    check_route(gpu, &op, &scores, Given::default());
                }
            }
        }
    }
}

/// Variants for hardware, on the devices that are here.
#[test]
fn choices_as_hardware_has_them() {
    for gpu in gpus() {
        let hard = with_caps(gpu, |caps| caps.software = false);
        for (shape, k) in [
            ([2, 4, 7, 150], 100),
            ([1, 2, 2, 4099], 7),
            ([2, 2, 9, 60], 8),
        ] {
            let op = top_k(shape, k).visible(Visible::Causal).group(2).own();
            let op = op.blocks(1, 1).first_query(FirstQuery::At(shape[3] - 5));
            check_route(&hard, &op, &few_values(&op), Given::default());
        }
        let op = top_k([1, 2, 3, 9001], 70).forced(2, 0);
        check_route(&hard, &op, &few_values(&op), Given::default());
        let op = top_k([1, 2, 9, 210], 1).keep(Keep::TopP {
            p: Real(0.6),
            mass: RouteMass::Softmax,
            min: 3,
            max: 130,
        });
        check_route(&hard, &op, &few_values(&op), Given::default());
        let op = Pool::new(Layout::f32([2, 1, 67, 40]), 16).normalised();
        check_pool(&hard, &op, &[], &[]);
    }
}

#[test]
fn long_lists_and_long_rows() {
    for gpu in gpus() {
        for visible in VISIBLES {
            let op = top_k([2, 4, 7, 150], 100).visible(visible).group(2).own();
            let op = op.blocks(20, 3).forced(2, 5).kv_len(numbers(&[0; 2]));
            let given = Given {
                lens: &[420, 77],
                ..Given::default()
            };
            check_route(gpu, &op, &few_values(&op), given);
        }
        for (shape, k) in [
            ([1, 1, 3, 90], 4096),
            ([1, 2, 1, 4099], 7),
            ([1, 1, 2, 70_001], 80),
        ] {
            let op = top_k(shape, k);
            check_route(gpu, &op, &few_values(&op), Given::default());
            check_route(
                gpu,
                &op.clone().bits_only(),
                &few_values(&op),
                Given::default(),
            );
            check_route(
                gpu,
                &Route::new(op.scores.clone(), k),
                &few_values(&op),
                Given::default(),
            );
        }
        for mass in [RouteMass::Softmax, RouteMass::Given] {
            for (p, min) in [(0.3, 1), (0.95, 70), (1.0, 0)] {
                let op = top_k([1, 2, 9, 210], 1).keep(Keep::TopP {
                    p: Real(p),
                    mass,
                    min,
                    max: 130,
                });
                let mut scores = few_values(&op);
                scores.iter_mut().for_each(|x| *x = x.min(3.0));
                check_route(gpu, &op, &scores, Given::default());
                let op = op.visible(Visible::Causal).own().forced(1, 2).blocks(64, 4);
                check_route(gpu, &op, &scores, Given::default());
            }
        }
        let narrow = with_caps(gpu, |caps| caps.max_binding_bytes = 16 << 10);
        let op = top_k([2, 2, 19, 150], 80)
            .visible(Visible::Causal)
            .own()
            .blocks(8, 1);
        check_route(&narrow, &op, &few_values(&op), Given::default());
        let plan = narrow.engine().plan(&op.into()).expect("plans");
        assert!(plan.outline().steps.len() > 8);
    }
}

#[test]
fn choices_in_slices() {
    for gpu in gpus() {
        for bytes in [9 << 10, 12 << 10] {
            let narrow = with_caps(gpu, |caps| caps.max_binding_bytes = bytes);
            let op = top_k([2, 4, 37, 50], 6)
                .visible(Visible::Causal)
                .own()
                .group(2);
            let op = op.blocks(3, 2).kv_len(numbers(&[0; 2]));
            let given = Given {
                lens: &[70, 100],
                ..Given::default()
            };
            check_route(&narrow, &op, &few_values(&op), given);
            let plan = narrow.engine().plan(&op.into()).expect("plans");
            assert!(plan.outline().steps.len() > 4);
        }
    }
}

#[test]
fn choices_say_what_is_wrong() {
    let plan =
        |op: Route| Outline::new(&op.into(), &Caps::minimum(), &Tuning::default()).map(|_| ());
    let good = || top_k([1, 4, 8, 8], 3);
    let invalid =
        |argument: &str, found: &str, remedy: &str| Err(Error::invalid(argument, found, remedy));
    assert_eq!(plan(good()), Ok(()));
    assert_eq!(
        plan(good().group(3)),
        invalid(
            "group",
            "3 of 4 heads",
            "give a number from 1 that divides the heads of the scores"
        )
    );
    assert_eq!(
        plan(top_k([1, 1, 8, 8], 0)),
        invalid("k", "0", "give 1 to 4096")
    );
    assert_eq!(
        plan(top_k([1, 1, 8, 8], 5000)),
        invalid("k", "5000", "give 1 to 4096")
    );
    assert_eq!(
        plan(good().own().forced(2, 2)),
        invalid(
            "k",
            "3, and up to 4 blocks are forced (own, first, recent)",
            "give at least 4, or force fewer"
        )
    );
    assert_eq!(plan(good().own().forced(2, 0)), Ok(()));
    assert_eq!(
        plan(good().blocks(8, 2).own()),
        invalid(
            "k",
            "3, and up to 4 blocks are forced (own, first, recent)",
            "give at least 4, or force fewer"
        )
    );
    assert_eq!(
        plan(good().first_query(FirstQuery::BeforeEnd(1))),
        invalid(
            "first_query",
            "counts from the end of the keys, and there is no kv_len",
            "give kv_len, or a position, as FirstQuery::At"
        )
    );
    let packed = good().kv_len(numbers(&[0])).packed(numbers(&[0; 3]));
    assert_eq!(
        plan(packed.first_query(FirstQuery::BeforeEnd(1))),
        invalid(
            "first_query",
            "counts from the end of a batch entry, whose sequences are packed",
            "give a position, as FirstQuery::At"
        )
    );
    assert_eq!(
        plan(good().packed(numbers(&[0]))),
        invalid(
            "cu_seqlens",
            "shape [1]",
            "give [sequences + 1] numbers: where each sequence begins, and where the last ends"
        )
    );
    let mut none = good();
    none.indices = None;
    none.counts = None;
    none.bits = None;
    assert_eq!(
        plan(none),
        invalid(
            "indices",
            "no output is asked for",
            "ask for indices, counts or bits"
        )
    );
    let share = |p, min| {
        plan(good().keep(Keep::TopP {
            p: Real(p),
            mass: RouteMass::Softmax,
            min,
            max: 4,
        }))
    };
    assert_eq!(share(0.5, 1), Ok(()));
    assert_eq!(
        share(0.0, 1),
        invalid("p", "0", "give a share above 0 and at most 1")
    );
    assert_eq!(
        share(f32::NAN, 1),
        invalid("p", "NaN", "give a share above 0 and at most 1")
    );
    assert_eq!(
        share(0.5, 5),
        invalid("min", "5 where max is 4", "give at most max")
    );
    assert_eq!(
        plan(good().blocks(1, 1 << 30)),
        Err(Error::unsupported(
            "blocks: 8 blocks of 1073741824 positions",
            "positions are counted to 2147483648",
            "split the sequence"
        ))
    );
    let mut op = good();
    op.bits = Some(Layout::new(DType::U32, [1, 4, 8, 2]));
    assert_eq!(
        plan(op),
        invalid(
            "bits",
            "shape [1, 4, 8, 2] where [1, 4, 8, 1] is expected",
            "make it agree with the other tensors"
        )
    );
}
