//! Patterns per head: columns and diagonals as blocks, the choice among patterns, and FlexPrefill's whole way from a
//! sample of queries to attention over the chosen blocks, on every adapter, against the references.

mod common;

use common::{
    bits::{get, numbers, put},
    gpus, name, place, say, untouched_around,
};
use foveate::{
    Attention, AttentionArgs, BlockMask, Call, Caps, Causal, DType, Divergence, DivergenceArgs,
    Error, Gpu, Keep, Layout, NONE, Op, Pool, PoolArgs, Real, Route, RouteArgs, RouteMass,
    RouteScores, RouteScoresArgs, Softmax, SoftmaxArgs, Stage, Statistic, Tensor, TopP, TopPArgs,
    Tuning, VerticalSlash, VerticalSlashArgs, Visible, Weights,
    ops::Args,
    plan::Outline,
    reference::{self, AttentionInputs, noise},
};

fn ints(shape: &[u64]) -> Layout {
    Layout::new(DType::U32, shape.to_vec())
}

fn words_of(taken: &[bool], blocks: usize) -> Vec<u32> {
    let row = |row: &[bool]| -> Vec<u32> {
        let word = |word: &[bool]| {
            word.iter()
                .rev()
                .fold(0, |bits, &bit| bits << 1 | u32::from(bit))
        };
        row.chunks(32).map(word).collect()
    };
    taken.chunks(blocks).flat_map(row).collect()
}

/// Runs the op on lists of both kinds, with another index where it has one, and compares every bit.
fn check(gpu: &Gpu, op: &VerticalSlash, [columns, diagonals]: [&[u32]; 2]) {
    let [batch, heads, rows] = [0, 1, 2].map(|axis| op.bits.shape[axis] as usize);
    let words = op.bits.elements() as usize;
    let other: Vec<u32> = numbers(5, words, 1 << 24);
    let choice: Vec<u32> = numbers(9, batch * heads, 3);
    let tensors = [
        put(gpu, &op.columns, columns),
        put(gpu, &op.diagonals, diagonals),
    ];
    let others = op.other.as_ref().map(|layout| put(gpu, layout, &other));
    let choices = op
        .head_choice
        .as_ref()
        .map(|layout| put(gpu, layout, &choice));
    let bits = put(gpu, &op.bits, &[]);
    let args = VerticalSlashArgs {
        columns: tensors[0].view(),
        diagonals: tensors[1].view(),
        other: others.as_ref().map(Tensor::view),
        head_choice: choices.as_ref().map(Tensor::view),
        bits: bits.view(),
    };
    gpu.compute(&op.clone().into(), args)
        .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
    let places = |layout: &Layout| layout.shape[2] as usize;
    let back = |&number: &u32| match op.sample_query {
        None => number,
        Some(query) => (query as u32).checked_sub(number).unwrap_or(NONE),
    };
    let diagonals: Vec<u32> = diagonals.iter().map(back).collect();
    let mut expected: Vec<u32> = columns
        .chunks(places(&op.columns))
        .zip(diagonals.chunks(places(&op.diagonals)))
        .flat_map(|lists| {
            let sizes = [op.block_q as usize, op.block_kv as usize];
            let blocks = op.blocks as usize;
            let taken =
                reference::vertical_slash(lists, sizes, [rows, blocks], op.first_query as usize);
            words_of(&taken, blocks)
        })
        .collect();
    let per_head = words / batch / heads;
    for (at, (word, other)) in expected.iter_mut().zip(&other).enumerate() {
        match (&op.other, &op.head_choice) {
            (None, _) => {}
            (Some(_), None) => *word |= other,
            (Some(_), Some(_)) if choice[at / per_head] != 0 => *word = *other,
            (Some(_), Some(_)) => {}
        }
    }
    assert_eq!(get(gpu, &bits), expected, "{}: {op:?}", name(gpu));
}

#[test]
fn lists_of_columns_and_diagonals() {
    for gpu in gpus() {
        for (sizes, [q_len, kv_len], first_query, [columns, diagonals]) in [
            ([1, 1], [1, 1], 0, [1, 1]),
            ([16, 16], [100, 100], 0, [5, 3]),
            ([64, 64], [1000, 1000], 0, [70, 130]),
            // A row spans blocks, blocks span rows, and neither divides the other.
            ([48, 5], [300, 300], 0, [9, 7]),
            ([3, 40], [100, 400], 300, [20, 66]),
            ([7, 3], [50, 500], 450, [1, 200]),
            ([130, 1], [130, 130], 0, [4, 3]),
            // More than 512 words.
            ([500, 2], [1000, 40_000], 39_000, [90, 70]),
        ] {
            let bound = kv_len as u32 + kv_len as u32 / 8 + 1;
            let lists = |seed: u64, places: u64| {
                let mut list = numbers(seed, 2 * 3 * places as usize, bound);
                for at in (0..list.len()).step_by(7) {
                    list[at] = NONE;
                }
                list
            };
            let op = VerticalSlash::new(
                ints(&[2, 3, columns]),
                ints(&[2, 3, diagonals]),
                sizes,
                [q_len, kv_len],
            )
            .first_query(first_query);
            let by_key = op.clone().diagonals_of(q_len / 2);
            for op in [op.clone(), by_key, op.clone().or(), op.or_by_head()] {
                check(gpu, &op, [&lists(1, columns), &lists(2, diagonals)]);
            }
        }
    }
}

#[test]
fn strided_lists_and_bits_and_the_furthest_positions() {
    for gpu in gpus() {
        let mut op =
            VerticalSlash::new(ints(&[2, 2, 6]), ints(&[2, 2, 4]), [8, 8], [64, 64]).or_by_head();
        op.columns = op.columns.with_strides([1, 100, 7]).at(3);
        op.diagonals = op.diagonals.with_strides([0, 20, 2]).at(1);
        op.bits = op.bits.with_strides([100, 40, 3, 1]).at(5);
        op.other = op
            .other
            .map(|layout| layout.with_strides([0, 0, 2, 1]).at(1));
        op.head_choice = op
            .head_choice
            .map(|layout| layout.with_strides([1, 5]).at(2));
        // Lists and choices that tensors share are the same for both.
        let columns = numbers(3, 24, 64);
        let diagonals = numbers(4, 8, 64).repeat(2);
        let shared = VerticalSlash {
            other: None,
            head_choice: None,
            ..op
        };
        check(gpu, &shared, [&columns, &diagonals]);
        let last = u32::MAX / 2;
        let op = VerticalSlash::new(
            ints(&[1, 1, 4]),
            ints(&[1, 1, 4]),
            [1 << 16, 1 << 22],
            [1 << 16, 1 << 31],
        )
        .first_query((1 << 31) - (1 << 16));
        check_far(
            gpu,
            &op,
            [
                &[last, 5, NONE, last - (1 << 22)],
                &[0, last, 1 << 30, NONE],
            ],
        );
    }
}

/// The same, for blocks that are too long for the reference, which goes query by query.
fn check_far(gpu: &Gpu, op: &VerticalSlash, [columns, diagonals]: [&[u32]; 2]) {
    let tensors = [
        put(gpu, &op.columns, columns),
        put(gpu, &op.diagonals, diagonals),
    ];
    let bits = put(gpu, &op.bits, &[]);
    let args = VerticalSlashArgs {
        columns: tensors[0].view(),
        diagonals: tensors[1].view(),
        other: None,
        head_choice: None,
        bits: bits.view(),
    };
    gpu.compute(&op.clone().into(), args).expect("runs");
    let first = op.first_query;
    let last = first + op.block_q - 1;
    let mut taken = vec![false; op.blocks as usize];
    for &column in columns {
        if u64::from(column) <= last {
            taken[(u64::from(column) / op.block_kv) as usize] = true;
        }
    }
    for &back in diagonals {
        for query in [first, last] {
            if let Some(key) = query.checked_sub(back.into()) {
                taken[(key / op.block_kv) as usize] = true;
            }
        }
    }
    assert_eq!(
        get(gpu, &bits),
        words_of(&taken, taken.len()),
        "{}",
        name(gpu)
    );
}

#[test]
fn distances_and_choices() {
    for gpu in gpus() {
        for length in [1u64, 2, 63, 64, 65, 1000, 5000] {
            let heads = 6;
            let count = (heads * length) as usize;
            let sample: Vec<f32> = noise(1, count).iter().map(|x| x.abs()).collect();
            let mut estimate: Vec<f32> = noise(2, count).iter().map(|x| x.abs()).collect();
            let row = length as usize;
            // The same but for the scale; near; of other places; nothing; and negative elements.
            for (to, from) in estimate[..row].iter_mut().zip(&sample[..row]) {
                *to = from * 3.0;
            }
            for (at, (to, from)) in estimate[row..2 * row]
                .iter_mut()
                .zip(&sample[row..])
                .enumerate()
            {
                *to = from * (1.0 + 1e-3 * (at % 2) as f32);
            }
            for (at, to) in estimate[2 * row..3 * row].iter_mut().enumerate() {
                *to *= (at % 2) as f32;
            }
            estimate[3 * row..4 * row].fill(0.0);
            for to in estimate[4 * row..5 * row].iter_mut().step_by(3) {
                *to = -*to;
            }
            let layout = Layout::f32([2, heads / 2, length]);
            let mut op = Divergence::new(layout.clone(), layout.clone(), 0.1).with_distance();
            op.chosen = op.chosen.with_strides([9, 2]).at(4);
            let tensors =
                [&sample, &estimate].map(|data| place(gpu, layout.clone(), data).expect("fits"));
            let chosen = put(gpu, &op.chosen, &[]);
            let distance = place(gpu, op.distance.clone().expect("asked for"), &[]).expect("fits");
            let args = DivergenceArgs {
                sample: tensors[0].view(),
                estimate: tensors[1].view(),
                chosen: chosen.view(),
                distance: Some(distance.view()),
            };
            gpu.compute(&op.clone().into(), args)
                .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
            untouched_around(gpu, &distance).expect("reads back");
            let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let expected: Vec<f64> = sample
                .chunks(row)
                .zip(estimate.chunks(row))
                .map(|(p, r)| reference::jensen_shannon(&wide(p), &wide(r)))
                .collect();
            for (got, expected) in gpu
                .download(&distance)
                .expect("reads back")
                .iter()
                .zip(&expected)
            {
                let error = (f64::from(*got) - expected).abs();
                assert!(
                    error <= 2e-6 + 1e-5 * expected,
                    "{}: {got} for {expected}, {length}",
                    name(gpu)
                );
            }
            let choices = get(gpu, &chosen);
            for (at, (&choice, &expected)) in choices.iter().zip(&expected).enumerate() {
                assert!(
                    (expected - 0.1).abs() > 1e-4,
                    "head {at} of {length} decides nothing"
                );
                assert_eq!(
                    choice,
                    u32::from(expected < 0.1),
                    "{}: head {at}, {length}",
                    name(gpu)
                );
            }
        }
    }
}

/// Sums past the largest number, and near the smallest, are no distributions; and never the same.
#[test]
fn sums_that_cannot_be_divided_by_choose_nothing() {
    for gpu in gpus() {
        let layout = Layout::f32([1, 2, 4]);
        let op = Divergence::new(layout.clone(), layout.clone(), 0.1).with_distance();
        let data = [
            [3e38f32, 3e38, 0.0, 0.0, 1e-38, 0.0, 0.0, 0.0],
            [0.0, 0.0, 3e38, 3e38, 1e-38, 0.0, 0.0, 0.0],
        ];
        let tensors = data.map(|data| place(gpu, layout.clone(), &data).expect("fits"));
        let chosen = put(gpu, &op.chosen, &[]);
        let distance = place(gpu, op.distance.clone().expect("asked for"), &[]).expect("fits");
        let args = DivergenceArgs {
            sample: tensors[0].view(),
            estimate: tensors[1].view(),
            chosen: chosen.view(),
            distance: Some(distance.view()),
        };
        gpu.compute(&op.into(), args).expect("runs");
        assert_eq!(get(gpu, &chosen), [0, 0], "{}", name(gpu));
        for distance in gpu.download(&distance).expect("reads back") {
            assert!((distance - 0.832_554_6).abs() < 1e-6, "{distance}");
        }
    }
}

fn refused(op: impl Into<Op>, argument: &str) {
    let error = Outline::new(&op.into(), &Caps::minimum(), &Tuning::default());
    match error.expect_err("is wrong") {
        Error::Invalid {
            argument: found, ..
        } => assert_eq!(found, argument),
        other => panic!("{other}"),
    }
}

#[test]
fn bad_patterns_are_named() {
    let op = || VerticalSlash::new(ints(&[1, 2, 5]), ints(&[1, 2, 6]), [16, 16], [64, 64]);
    let with = |change: fn(&mut VerticalSlash)| {
        let mut op = op();
        change(&mut op);
        op
    };
    refused(with(|op| op.block_q = 0), "block_q");
    refused(with(|op| op.block_kv = 0), "block_kv");
    refused(with(|op| op.blocks = 0), "blocks");
    refused(with(|op| op.blocks = 33), "bits");
    refused(with(|op| op.columns = ints(&[1, 3, 5])), "columns");
    refused(with(|op| op.columns = Layout::f32([1, 2, 5])), "columns");
    refused(with(|op| op.diagonals = ints(&[2, 5])), "diagonals");
    refused(with(|op| op.other = Some(ints(&[1, 2, 4, 2]))), "blocks");
    refused(
        with(|op| op.head_choice = Some(ints(&[1, 2]))),
        "head_choice",
    );
    refused(
        Divergence::new(Layout::f32([1, 2, 9]), Layout::f32([1, 2, 8]), 0.1),
        "estimate",
    );
    for threshold in [0.0, -1.0, f32::NAN] {
        let layout = Layout::f32([1, 2, 9]);
        refused(
            Divergence::new(layout.clone(), layout, threshold),
            "threshold",
        );
    }
    let far = VerticalSlash::new(ints(&[1, 1, 5]), ints(&[1, 1, 6]), [16, 16], [64, 1 << 32]);
    let error = Outline::new(&far.into(), &Caps::minimum(), &Tuning::default());
    assert!(matches!(error, Err(Error::Unsupported { .. })), "{error:?}");
}

/// Queries and keys of a head.
const TOKENS: u64 = 320;
const HEADS: u64 = 4;
const DIM: u64 = 16;
const BLOCK: u64 = 16;
const BLOCKS: u64 = TOKENS / BLOCK;
/// The queries that the choice is made by: the last block.
const SAMPLE: u64 = BLOCK;
/// The mass that columns, diagonals and blocks are to hold.
const MASS: f32 = 0.8;
const THRESHOLD: f32 = 0.1;

/// Tensors on the device, and the calls that fill them, in order.
struct Chain<'a> {
    gpu: &'a Gpu,
    calls: Vec<Call>,
}

impl Chain<'_> {
    fn tensor(&self, layout: &Layout) -> Tensor {
        self.gpu.allocate(layout.clone()).expect("a tensor")
    }

    fn push<'b>(&mut self, op: impl Into<Op>, args: impl Into<Args<'b>>) {
        let op = op.into();
        let plan = self.gpu.engine().plan(&op);
        let plan = plan.unwrap_or_else(|error| panic!("{error}: {op:?}"));
        self.calls.push(plan.bind(args).expect("a call"));
    }

    fn pool(&mut self, x: &Tensor, layout: Layout, block: u64) -> Tensor {
        let op = Pool::new(layout.clone(), block);
        let y = self.tensor(&op.y);
        let view = x.with_layout(layout);
        let args = PoolArgs {
            x: view.view(),
            y: y.view(),
            block_starts: None,
            kv_len: None,
        };
        self.push(op, args);
        y
    }

    /// The softmax over blocks, or their scores.
    fn scores(&mut self, q: &Tensor, k: &Tensor) -> Tensor {
        let op = RouteScores::new(q.layout().clone(), k.layout().clone()).scale(0.25);
        let out = self.tensor(&op.out);
        let args = RouteScoresArgs {
            q: q.view(),
            k: k.view(),
            k_min: None,
            head_weights: None,
            out: out.view(),
        };
        self.push(op, args);
        out
    }

    /// As many of the largest of each head as make up the mass, and their number.
    fn best(&mut self, x: &Tensor) -> [Tensor; 2] {
        let [.., length] = x.layout().shape[..] else {
            panic!("no axes")
        };
        let x = x.with_layout(Layout::f32([1, HEADS, length]));
        let op = TopP::new(x.layout().clone(), MASS, length).mass(RouteMass::Given);
        let indices = self.tensor(&op.indices);
        let counts = self.tensor(op.counts.as_ref().expect("are asked for"));
        let args = TopPArgs {
            x: x.view(),
            row_len: None,
            indices: indices.view(),
            counts: Some(counts.view()),
        };
        self.push(op, args);
        [indices, counts]
    }
}

/// What the host says of a head, in f64.
struct Host {
    columns: Vec<u32>,
    diagonals: Vec<u32>,
    distance: f64,
}

/// The largest, best first, up to a share of their sum; and by how much the choice is safe from rounding.
fn best(x: &[f64]) -> (Vec<u32>, f64) {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
    let bound = f64::from(MASS) * x.iter().sum::<f64>();
    let mut sum = 0.0;
    let mut margin = f64::MAX;
    let mut taken = Vec::new();
    for &at in &order {
        if sum >= bound {
            break;
        }
        sum += x[at];
        margin = margin.min((sum - bound).abs() / bound);
        taken.push(at as u32);
    }
    if let Some(&next) = order.get(taken.len()) {
        let last = taken.last().map_or(0.0, |&at| x[at as usize]);
        margin = margin.min((last - x[next]) / last);
    }
    taken.sort_unstable();
    (taken, margin)
}

fn host(q: &[f32], k: &[f32], head: usize) -> Host {
    let [n, dim, block] = [TOKENS, DIM, BLOCK].map(|x| x as usize);
    let row = |x: &[f32], at: usize| -> Vec<f64> {
        x[(head * n + at) * dim..][..dim]
            .iter()
            .map(|&x| x.into())
            .collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / 4.0;
    let softmax = |scores: Vec<f64>| -> Vec<f64> {
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let all: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        scores.iter().map(|s| (s - max).exp() / all).collect()
    };
    let first = n - SAMPLE as usize;
    let mut vertical = vec![0.0; n];
    let mut slash = vec![0.0; first + 1];
    for query in first..n {
        let own = row(q, query);
        let weights = softmax((0..=query).map(|key| dot(&own, &row(k, key))).collect());
        for (key, weight) in weights.iter().enumerate() {
            vertical[key] += weight;
            // By the key that the first of the sample has on the diagonal, where it has one.
            if let Some(sum) = (key + first)
                .checked_sub(query)
                .and_then(|at| slash.get_mut(at))
            {
                *sum += weight;
            }
        }
    }
    let mean = |x: &[f32], at: usize| -> Vec<f64> {
        let rows: Vec<_> = (at * block..(at + 1) * block)
            .map(|at| row(x, at))
            .collect();
        (0..dim)
            .map(|d| rows.iter().map(|row| row[d]).sum::<f64>() / block as f64)
            .collect()
    };
    let blocks = n / block;
    let last = mean(q, blocks - 1);
    let estimate = softmax((0..blocks).map(|at| dot(&last, &mean(k, at))).collect());
    let sample: Vec<f64> = vertical
        .chunks(block)
        .map(|part| part.iter().sum())
        .collect();
    let (columns, safe) = best(&vertical);
    let (diagonals, safe_too) = best(&slash);
    assert!(
        safe.min(safe_too) > 1e-5,
        "head {head} is chosen by rounding: {safe:.1e}, {safe_too:.1e}"
    );
    Host {
        columns,
        diagonals,
        distance: reference::jensen_shannon(&sample, &estimate),
    }
}

/// The shares of columns, diagonals and blocks in the weights of the sample, each `[1, heads, length]`.
fn shares(chain: &mut Chain<'_>, q: &Tensor, k: &Tensor) -> [Tensor; 3] {
    let first = TOKENS - SAMPLE;
    let row =
        |rows: u64| Layout::f32([1, HEADS, rows, DIM]).with_strides([0, TOKENS * DIM, DIM, 1]);
    let sample = q.with_layout(row(SAMPLE).at(first * DIM));
    let op = Attention::new(
        sample.layout().clone(),
        k.layout().clone(),
        k.layout().clone(),
    )
    .causal(Causal::BottomRight)
    .with_lse();
    let o = chain.tensor(&op.o);
    let lse = chain.tensor(op.lse.as_ref().expect("is asked for"));
    let args = AttentionArgs {
        lse: Some(lse.view()),
        ..AttentionArgs::new(sample.view(), k.view(), k.view(), o.view())
    };
    chain.push(op.clone(), args.clone());
    let statistic = Statistic::Matrix {
        stage: Stage::Weights,
        heads: 0..HEADS,
        rows: 0..SAMPLE,
    };
    let op = Weights::new(op, statistic);
    let matrix = chain.tensor(&op.out);
    chain.push(op.clone(), op.args(args, matrix.view(), None));
    let strides = |row: u64| [0, SAMPLE * TOKENS, row, 1];
    let columns = Layout::f32([1, HEADS, SAMPLE, TOKENS]).with_strides(strides(TOKENS));
    // A step down is a step to the right too.
    let diagonals = Layout::f32([1, HEADS, SAMPLE, first + 1]).with_strides(strides(TOKENS + 1));
    let vertical = chain.pool(&matrix, columns, SAMPLE);
    let slash = chain.pool(&matrix, diagonals, SAMPLE);
    let blocks = chain.pool(&vertical, Layout::f32([1, HEADS, TOKENS, 1]), BLOCK);
    [vertical, slash, blocks]
}

#[test]
fn flexprefill_from_a_sample_of_queries_to_the_output() {
    let count = (HEADS * TOKENS * DIM) as usize;
    let mut q = noise(11, count);
    let [k, v] = [noise(12, count), noise(13, count)];
    // Heads whose weights are nearly even, which the means of blocks tell well, and heads of a few large weights.
    for (head, q) in q.chunks_mut(count / HEADS as usize).enumerate() {
        let scale = [0.3, 6.0, 0.5, 8.0][head];
        q.iter_mut().for_each(|x| *x *= scale);
    }
    let said: Vec<Host> = (0..HEADS as usize).map(|head| host(&q, &k, head)).collect();
    let near: Vec<bool> = said
        .iter()
        .map(|head| head.distance < THRESHOLD.into())
        .collect();
    assert_eq!(near, [true, false, true, false]);
    for gpu in gpus() {
        let shape = [1, HEADS, TOKENS, DIM];
        let [q_tensor, k_tensor, v_tensor] =
            [&q, &k, &v].map(|data| gpu.upload(data, shape).expect("a tensor"));
        let mut chain = Chain {
            gpu,
            calls: Vec::new(),
        };
        let [vertical, slash, of_sample] = shares(&mut chain, &q_tensor, &k_tensor);
        let columns = chain.best(&vertical);
        let diagonals = chain.best(&slash);

        // The estimate: means of blocks of queries against means of blocks of keys.
        let [q_means, k_means] =
            [&q_tensor, &k_tensor].map(|x| chain.pool(x, x.layout().clone(), BLOCK));
        let scores = chain.scores(&q_means, &k_means);
        let last = Layout::f32([1, HEADS, 1, BLOCKS])
            .with_strides([0, BLOCKS * BLOCKS, 0, 1])
            .at((BLOCKS - 1) * BLOCKS);
        let softmax = Softmax::new(last.clone(), 3);
        let estimate = chain.tensor(&softmax.y);
        let x = scores.with_layout(last);
        chain.push(
            softmax,
            SoftmaxArgs {
                x: Some(x.view()),
                y: estimate.view(),
            },
        );
        let rows = Layout::f32([1, HEADS, BLOCKS]);
        let op = Divergence::new(rows.clone(), rows.clone(), THRESHOLD);
        let chosen = chain.tensor(&op.chosen);
        let (sample, estimate) = (
            of_sample.with_layout(rows.clone()),
            estimate.with_layout(rows),
        );
        let args = DivergenceArgs {
            sample: sample.view(),
            estimate: estimate.view(),
            chosen: chosen.view(),
            distance: None,
        };
        chain.push(op, args);

        // Blocks by mass, for heads that the estimate serves.
        let keep = Keep::TopP {
            p: Real(MASS),
            mass: RouteMass::Softmax,
            min: 1,
            max: BLOCKS,
        };
        let op = Route::new(scores.layout().clone(), 1)
            .keep(keep)
            .blocks(BLOCK, BLOCK)
            .visible(Visible::Causal)
            .own()
            .bits_only();
        let by_mass = chain.tensor(op.bits.as_ref().expect("are asked for"));
        let args = RouteArgs {
            bits: Some(by_mass.view()),
            ..RouteArgs::new(scores.view())
        };
        chain.push(op, args);
        let op = VerticalSlash::new(
            columns[0].layout().clone(),
            diagonals[0].layout().clone(),
            [BLOCK, BLOCK],
            [TOKENS, TOKENS],
        )
        .diagonals_of(TOKENS - SAMPLE)
        .or_by_head();
        let bits = chain.tensor(&op.bits);
        let args = VerticalSlashArgs {
            columns: columns[0].view(),
            diagonals: diagonals[0].view(),
            other: Some(by_mass.view()),
            head_choice: Some(chosen.view()),
            bits: bits.view(),
        };
        chain.push(op, args);
        let mask = BlockMask {
            bits: bits.layout().clone(),
            block_q: BLOCK,
            block_kv: BLOCK,
        };
        let layout = q_tensor.layout().clone();
        let op = Attention::new(layout.clone(), layout.clone(), layout)
            .causal(Causal::TopLeft)
            .block_mask(mask.clone());
        let o = chain.tensor(&op.o);
        let args = AttentionArgs {
            blocks: Some(bits.view()),
            ..AttentionArgs::new(q_tensor.view(), k_tensor.view(), v_tensor.view(), o.view())
        };
        chain.push(op.clone(), args);
        gpu.run_all(&chain.calls).expect("the calls run");

        let place = name(gpu);
        let expected: Vec<u32> = near.iter().map(|&near| near.into()).collect();
        assert_eq!(
            gpu.download_u32(&chosen).expect("choices"),
            expected,
            "{place}"
        );
        let by_mass = gpu.download_u32(&by_mass).expect("bits");
        let mut words = Vec::new();
        for (head, (said, &near)) in said.iter().zip(&near).enumerate() {
            for (list, expected) in [(&columns, &said.columns), (&diagonals, &said.diagonals)] {
                let [length] = [list[0].layout().shape[2] as usize];
                let all = gpu.download_u32(&list[0]).expect("a list");
                let count = gpu.download_u32(&list[1]).expect("counts")[head] as usize;
                let mut found = all[head * length..][..count].to_vec();
                found.sort_unstable();
                assert_eq!(&found, expected, "{place}: head {head}");
            }
            let back: Vec<u32> = said
                .diagonals
                .iter()
                .map(|&key| (TOKENS - SAMPLE) as u32 - key)
                .collect();
            let sizes = [BLOCK as usize; 2];
            let lines =
                reference::vertical_slash((&said.columns, &back), sizes, [BLOCKS as usize; 2], 0);
            let own = words_of(&lines, BLOCKS as usize);
            words.extend(if near {
                by_mass[head * own.len()..][..own.len()].to_vec()
            } else {
                own
            });
        }
        assert_eq!(gpu.download_u32(&bits).expect("bits"), words, "{place}");
        let [q, k, v] =
            [&q, &k, &v].map(|data| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let expected = reference::attention(&AttentionInputs {
            blocks: Some((&mask, &words)),
            ..AttentionInputs::of(&op, &q, &k, &v)
        });
        let error = reference::error(&gpu.download(&o).expect("an output"), &expected.o);
        assert!(error < 1e-5, "{place}: {error:.1e}");
        say(format_args!("{place}: {error:.1e}"));
    }
}
