//! Scans on every adapter, against the f64 reference.

mod common;

use std::collections::BTreeMap;

use common::{gpus, name, place, say, untouched_around};
use foveate::{
    Caps, DType, Denominator, Error, Gpu, Layout, Op, Scan, ScanRule, Schedule, Scores, Tensor,
    Tuning,
    kernels::Kernel,
    ops::{Args, Slot},
    plan::Outline,
    reference::{self, ScanInputs, noise},
};

const F32: f64 = 1e-5;
/// Half of the last place of f16.
const F16: f64 = 1.0 / 2048.0;

/// Elements by slot, row-major.
type Data = BTreeMap<Slot, Vec<f32>>;

/// A scan with its numbers.
#[derive(Clone)]
struct Problem {
    op: Scan,
    tuning: Tuning,
    /// How large scores are.
    size: f32,
    /// Where packed sequences begin.
    cu: Vec<u32>,
    /// The largest error of what is stored as f32.
    most: f64,
}

impl Problem {
    fn new(op: Scan) -> Self {
        Self {
            op,
            tuning: Tuning::default(),
            size: 3.0,
            cu: Vec::new(),
            most: F32,
        }
    }

    fn splits(mut self, splits: u32) -> Self {
        self.tuning.splits = Some(splits);
        self
    }

    fn per_head(&self) -> bool {
        let ScanRule::Softmax { scores, .. } = &self.op.rule else {
            return false;
        };
        !matches!(scores, Scores::Channel(_))
    }

    fn softmax(&self) -> Option<Denominator> {
        match self.op.rule {
            ScanRule::Softmax { denominator, .. } => Some(denominator),
            _ => None,
        }
    }

    /// Inputs of all kinds: decays from 1 to those that clear the state, scores some of which are hidden, and a
    /// state that has seen something. What storage cannot hold is rounded.
    fn data(&self) -> Data {
        let mut list: Vec<(Slot, Layout)> = Op::from(self.op.clone())
            .tensors()
            .into_iter()
            .filter(|(slot, _)| !slot.is_output() && *slot != Slot::CuSeqlens)
            .map(|(slot, layout)| (slot, layout.clone()))
            .collect();
        if let (true, Some(state)) = (self.op.in_place, &self.op.initial_state) {
            list.push((Slot::InitialState, state.clone()));
        }
        let sums = matches!(self.op.rule, ScanRule::Sum { .. });
        let numbers = list.into_iter().map(|(slot, layout)| {
            let mut values = noise(7 + slot as u64, layout.elements() as usize);
            let row = *layout.shape.last().expect("axes") as usize;
            for (n, x) in values.iter_mut().enumerate() {
                *x = match slot {
                    Slot::Decay => match n % 37 {
                        3 => 0.0,
                        11 => -1000.0,
                        19 => f32::NEG_INFINITY,
                        _ => -0.3 * x.abs(),
                    },
                    Slot::X if !sums && n % 41 == 0 => f32::NEG_INFINITY,
                    Slot::X if !sums => *x * self.size,
                    Slot::K => *x * self.size / (row as f32).sqrt(),
                    Slot::InitialState if self.softmax().is_some() => {
                        let u = if self.per_head() {
                            n % row == 1
                        } else {
                            n / row % 3 == 1
                        };
                        if u { 1.0 + x.abs() } else { *x }
                    }
                    _ => *x,
                };
                if layout.dtype == DType::F16 {
                    *x = half::f16::from_f32(*x).to_f32();
                }
            }
            (slot, values)
        });
        numbers.collect()
    }

    /// What each output should hold.
    fn expected(&self, data: &Data) -> BTreeMap<Slot, Vec<f64>> {
        let input = match &self.op.rule {
            ScanRule::Sum { x, .. } | ScanRule::LogSumExp { x, .. } => x,
            ScanRule::Softmax { v, .. } => v,
        };
        let lens: Vec<usize> = input.shape.iter().map(|&n| n as usize).collect();
        let (heads, seq, channels) = match lens[..] {
            [_, heads, seq, channels] => (heads, seq, channels),
            [_, seq, channels] => (1, seq, channels),
            _ => panic!("{lens:?}"),
        };
        let wide = |slot: Slot| -> Option<Vec<f64>> {
            data.get(&slot)
                .map(|values| values.iter().map(|&x| x.into()).collect())
        };
        let (x, decay, q, k, v) = (
            wide(Slot::X),
            wide(Slot::Decay),
            wide(Slot::Q),
            wide(Slot::K),
            wide(Slot::V),
        );
        let initial = wide(Slot::InitialState);
        let gate = wide(Slot::Gate);
        let o_len = match (&self.op.o, self.softmax()) {
            (Some(o), Some(Denominator::All)) => o.shape[o.rank() - 2] as usize,
            _ => seq,
        };
        let sequences: Vec<(usize, usize, usize)> = if self.cu.is_empty() {
            (0..lens[0]).map(|b| (b, 0, seq)).collect()
        } else {
            let pairs = self.cu.windows(2);
            pairs
                .map(|pair| (0, pair[0] as usize, pair[1] as usize))
                .collect()
        };
        let state_len = match (self.softmax(), self.per_head()) {
            (None, _) => channels,
            (Some(_), true) => channels + 2,
            (Some(_), false) => 3 * channels,
        };
        let state_at = |part: usize, c: usize| match (self.softmax(), self.per_head()) {
            (None, _) => c,
            (Some(_), true) => {
                if part == 2 {
                    2 + c
                } else {
                    part
                }
            }
            (Some(_), false) => part * channels + c,
        };
        let all = lens[0] * heads;
        let mut out: BTreeMap<Slot, Vec<f64>> = BTreeMap::from([
            (Slot::O, vec![0.0; all * o_len * channels]),
            (Slot::Weights, vec![0.0; all * seq * channels]),
            (Slot::LogDecay, vec![0.0; all * seq * channels]),
            (Slot::States, vec![0.0; all * seq * state_len]),
            (
                Slot::FinalState,
                vec![0.0; sequences.len() * heads * state_len],
            ),
        ]);
        for (entry, &(b, begin, end)) in sequences.iter().enumerate() {
            for h in 0..heads {
                for c in 0..channels {
                    let row = b * heads + h;
                    let at = |t: usize| (row * seq + t) * channels + c;
                    let take = |values: &[f64]| -> Vec<f64> {
                        (begin..end).map(|t| values[at(t)]).collect()
                    };
                    let before = |part: usize| {
                        let state = initial.as_ref()?;
                        Some(state[(entry * heads + h) * state_len + state_at(part, c)])
                    };
                    let none = f64::NEG_INFINITY;
                    let got = match &self.op.rule {
                        ScanRule::Sum { .. } => reference::scan(&ScanInputs::Sum {
                            x: &take(x.as_ref().expect("x")),
                            g: decay.as_ref().map(|g| take(g)).as_deref(),
                            initial: before(0).unwrap_or(0.0),
                        }),
                        ScanRule::LogSumExp { .. } => reference::scan(&ScanInputs::LogSumExp {
                            x: &take(x.as_ref().expect("x")),
                            initial: before(0).unwrap_or(none),
                        }),
                        ScanRule::Softmax {
                            scores,
                            denominator,
                            ..
                        } => {
                            let s: Vec<f64> = match scores {
                                Scores::Channel(_) => take(x.as_ref().expect("x")),
                                Scores::Head(_) => (begin..end)
                                    .map(|t| x.as_ref().expect("x")[row * seq + t])
                                    .collect(),
                                Scores::Query {
                                    q: layout, scale, ..
                                } => {
                                    let dim = *layout.shape.last().expect("axes") as usize;
                                    let (q, k) = (q.as_ref().expect("q"), k.as_ref().expect("k"));
                                    (begin..end)
                                        .map(|t| {
                                            let dot: f64 = (0..dim)
                                                .map(|d| {
                                                    q[h * dim + d] * k[(row * seq + t) * dim + d]
                                                })
                                                .sum();
                                            dot * scale.map_or(1.0, |scale| f64::from(scale.0))
                                        })
                                        .collect()
                                }
                            };
                            reference::scan(&ScanInputs::Softmax {
                                s: &s,
                                v: &take(v.as_ref().expect("v")),
                                denominator: *denominator,
                                initial: [
                                    before(0).unwrap_or(none),
                                    before(1).unwrap_or(0.0),
                                    before(2).unwrap_or(0.0),
                                ],
                            })
                        }
                    };
                    let fill = |out: &mut Vec<f64>, values: &[f64]| {
                        for (t, &value) in values.iter().enumerate() {
                            out[at(begin + t)] = value;
                        }
                    };
                    fill(out.get_mut(&Slot::Weights).expect("there"), &got.weights);
                    fill(out.get_mut(&Slot::LogDecay).expect("there"), &got.log_decay);
                    let o = out.get_mut(&Slot::O).expect("there");
                    if o_len == seq {
                        fill(o, &got.o);
                    } else {
                        for t in 0..o_len {
                            o[(row * o_len + t) * channels + c] = got.o[0];
                        }
                    }
                    let nothing = match self.softmax() {
                        Some(_) => [none, 0.0, 0.0],
                        None if matches!(self.op.rule, ScanRule::Sum { .. }) => [0.0; 3],
                        None => [none, 0.0, 0.0],
                    };
                    let start = [0, 1, 2].map(|part| {
                        if part > 0 && self.softmax().is_none() {
                            0.0
                        } else {
                            before(part).unwrap_or(nothing[part])
                        }
                    });
                    let last = got.states.last().copied().unwrap_or(start);
                    let parts = if self.softmax().is_some() { 3 } else { 1 };
                    for part in 0..parts {
                        let place = state_at(part, c);
                        out.get_mut(&Slot::FinalState).expect("there")
                            [(entry * heads + h) * state_len + place] = last[part];
                        for (t, state) in got.states.iter().enumerate() {
                            out.get_mut(&Slot::States).expect("there")
                                [(row * seq + begin + t) * state_len + place] = state[part];
                        }
                    }
                }
            }
        }
        if let Some(gate) = gate {
            let o = out.get_mut(&Slot::O).expect("there");
            for (o, g) in o.iter_mut().zip(gate) {
                *o /= 1.0 + (-g).exp();
            }
        }
        out
    }

    /// Uploads, runs and downloads; nothing around the outputs may have been written.
    fn run(&self, gpu: &Gpu, data: &Data) -> Data {
        let op = Op::from(self.op.clone());
        let plan = gpu
            .engine()
            .plan_with(&op, &self.tuning)
            .unwrap_or_else(|error| panic!("{}: {error}: {op:?}", name(gpu)));
        let tensors: Vec<(Slot, Tensor)> = op
            .tensors()
            .into_iter()
            .map(|(slot, layout)| {
                let tensor = if slot == Slot::CuSeqlens {
                    gpu.upload_u32(&self.cu, [self.cu.len() as u64])
                        .expect("fits")
                } else if slot == Slot::FinalState && self.op.in_place {
                    place(gpu, layout.clone(), &data[&Slot::InitialState]).expect("fits")
                } else {
                    let empty = Vec::new();
                    place(gpu, layout.clone(), data.get(&slot).unwrap_or(&empty)).expect("fits")
                };
                (slot, tensor)
            })
            .collect();
        let args = Args(tensors.iter().map(|(slot, t)| (*slot, t.view())).collect());
        gpu.run(&plan.bind(args).expect("binds")).expect("runs");
        let outputs = tensors.iter().filter(|(slot, _)| slot.is_output());
        outputs
            .map(|(slot, tensor)| {
                untouched_around(gpu, tensor)
                    .unwrap_or_else(|error| panic!("{slot:?}: {error}: {op:?}"));
                (*slot, gpu.download(tensor).expect("reads back"))
            })
            .collect()
    }

    fn check(&self, gpu: &Gpu) {
        let data = self.data();
        self.compare(gpu, &self.run(gpu, &data), &self.expected(&data));
    }

    fn compare(&self, gpu: &Gpu, got: &Data, expected: &BTreeMap<Slot, Vec<f64>>) {
        for (slot, got) in got {
            let tensors = Op::from(self.op.clone());
            let dtype = tensors
                .tensors()
                .into_iter()
                .find(|(other, _)| other == slot);
            let f16 = dtype.is_some_and(|(_, layout)| layout.dtype == DType::F16);
            for (part, got, expected) in self.parts(*slot, got, &expected[slot]) {
                let error = reference::error(&got, &expected);
                let finite = || expected.iter().filter(|x| x.is_finite());
                let largest = finite().fold(0.0f64, |most, x| most.max(x.abs()));
                let rms =
                    (finite().map(|x| x * x).sum::<f64>() / finite().count().max(1) as f64).sqrt();
                // Rounding counts most where numbers are largest.
                let stored = if f16 && rms > 0.0 {
                    F16 * largest / rms
                } else {
                    0.0
                };
                assert!(
                    error <= self.most + stored,
                    "{}: {slot:?} part {part}: {error:e}: {:?} {:?} {:?}",
                    name(gpu),
                    self.op,
                    self.tuning,
                    self.cu,
                );
            }
        }
    }

    /// The parts of states one by one, since some are large.
    fn parts(&self, slot: Slot, got: &[f32], expected: &[f64]) -> Vec<(usize, Vec<f32>, Vec<f64>)> {
        let state = matches!(slot, Slot::FinalState | Slot::States) && self.softmax().is_some();
        let row = self.op.state_shape().last().copied().expect("axes") as usize;
        let part_of = |n: usize| match (state, self.per_head()) {
            (false, _) => 0,
            (true, true) => (n % row).min(2),
            (true, false) => n / row % 3,
        };
        let parts = if state { 3 } else { 1 };
        (0..parts)
            .map(|part| {
                let own = |n: &usize| part_of(*n) == part;
                assert_eq!(got.len(), expected.len(), "{slot:?}");
                let places: Vec<usize> = (0..got.len()).filter(own).collect();
                let got = places.iter().map(|&n| got[n]).collect();
                (part, got, places.iter().map(|&n| expected[n]).collect())
            })
            .collect()
    }
}

/// Every rule on tensors of this layout, with all that it may write.
fn rules(x: &Layout) -> Vec<Scan> {
    let rank = x.rank();
    let mut per_head = x.clone();
    per_head.shape.pop();
    per_head.strides.pop();
    per_head = Layout::new(x.dtype, per_head.shape);
    let dim = 12;
    let mut keys = x.shape.clone();
    keys[rank - 1] = dim;
    let query = match rank {
        4 => vec![x.shape[1], dim],
        _ => vec![dim],
    };
    let query = Scores::Query {
        q: Layout::new(x.dtype, query),
        k: Layout::new(x.dtype, keys),
        scale: Some(0.7.into()),
    };
    let mut list = vec![
        Scan::sum(x.clone()),
        Scan::decayed_sum(x.clone(), Layout::f32(x.shape.clone())),
        Scan::decayed_sum(x.clone(), x.clone()).gate(x.clone()),
        Scan::log_sum_exp(x.clone()).with_weights(),
    ];
    for (n, scores) in [Scores::Channel(x.clone()), Scores::Head(per_head), query]
        .into_iter()
        .enumerate()
    {
        let plain = Scan::softmax(scores, x.clone());
        list.push(plain.clone().with_states());
        list.push(plain.clone().denominator(Denominator::Step));
        list.push(plain.clone().denominator(Denominator::All));
        if n == 0 {
            list.push(plain.clone().gate(x.clone()));
            list.push(plain.denominator(Denominator::All).gate(x.clone()));
        }
    }
    list
}

/// The same with states in and out, in one place or two.
fn carried(op: Scan, in_place: bool) -> Scan {
    let state = Layout::f32(op.state_shape());
    if in_place {
        op.carried_in_place(state)
    } else {
        op.carried(Some(state.clone()), Some(state))
    }
}

fn with_caps(gpu: &Gpu, change: impl FnOnce(&mut Caps)) -> Gpu {
    let mut caps = gpu.engine().caps().clone();
    change(&mut caps);
    let mut changed = gpu.clone();
    *changed.engine_mut() = gpu.engine().clone().with_caps(caps);
    changed
}

#[test]
fn hostile_shapes() {
    for gpu in gpus() {
        for (number, shape) in [
            [1, 1, 1, 1],
            [1, 1, 1, 64],
            [2, 3, 2, 5],
            [2, 2, 33, 3],
            [1, 2, 129, 1],
            [1, 1, 129, 100],
            [3, 1, 1000, 5],
            [1, 1, 1000, 64],
        ]
        .into_iter()
        .enumerate()
        {
            for op in rules(&Layout::f32(shape)) {
                let carried = carried(op.clone(), number % 4 < 2);
                let splits = [1, 3];
                Problem::new(op).splits(splits[number % 2]).check(gpu);
                Problem::new(carried)
                    .splits(splits[1 - number % 2])
                    .check(gpu);
            }
        }
    }
}

#[test]
fn no_axis_of_heads() {
    for gpu in gpus() {
        for op in rules(&Layout::f32([2, 70, 12])) {
            Problem::new(op.clone()).check(gpu);
            Problem::new(carried(op, false)).splits(4).check(gpu);
        }
    }
}

fn outline(gpu: &Gpu, op: &Scan) -> Outline {
    let plan = gpu.engine().plan(&op.clone().into()).expect("plans");
    plan.outline().clone()
}

fn vec4(gpu: &Gpu, op: &Scan) -> bool {
    match outline(gpu, op).steps[0].kernel {
        Kernel::Scan(variant) => variant.vec4,
        other => panic!("{other:?}"),
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
        for shape in [[2, 2, 70, 12], [1, 3, 37, 7]] {
            for op in rules(&Layout::f16(shape)) {
                Problem::new(carried(op.clone(), false)).check(gpu);
                Problem::new(carried(op, true)).splits(3).check(gpu);
            }
            // Decays of a log-sum-exp that stay f32.
            let mut op = Scan::log_sum_exp(Layout::f16(shape)).with_weights();
            if let ScanRule::LogSumExp { log_decay, .. } = &mut op.rule {
                *log_decay = Some(Layout::f32(shape));
            }
            Problem::new(op).check(gpu);
        }
        ran += 1;
    }
    say(format_args!(
        "f16 ran on {ran} of {} adapters",
        gpus().len()
    ));
}

/// Segments by the dozen, windows that small bindings cut, slices of heads and channels, folded grids.
#[test]
fn slices_of_small_bindings_and_loop_budgets() {
    for gpu in gpus() {
        let small = with_caps(gpu, |caps| {
            caps.max_binding_bytes = 4096;
            caps.max_workgroups = 3;
            caps.loop_budget = 24;
        });
        for shape in [[2, 2, 300, 12], [1, 3, 301, 5]] {
            for (number, op) in rules(&Layout::f32(shape)).into_iter().enumerate() {
                let op = carried(op, number % 2 == 0);
                assert!(outline(&small, &op).steps.len() > 8);
                Problem::new(op).check(&small);
            }
        }
    }
}

/// The shortest loops that a plan can do with.
#[test]
fn loop_budgets_of_a_few_iterations() {
    let gpu = &gpus()[0];
    for budget in 0..4 {
        let small = with_caps(gpu, |caps| caps.loop_budget = budget);
        let error = small
            .engine()
            .plan(&Scan::sum(Layout::f32([1, 1, 9, 4])).into());
        let error = error.expect_err("no loops");
        assert!(error.to_string().contains("loop budget"), "{error}");
    }
    let small = with_caps(gpu, |caps| caps.loop_budget = 7);
    for op in rules(&Layout::f32([1, 2, 200, 3])) {
        let query = matches!(
            op.rule,
            ScanRule::Softmax {
                scores: Scores::Query { .. },
                ..
            }
        );
        if query {
            // Its 12 dims are a loop.
            let error = small.engine().plan(&op.into()).expect_err("too many dims");
            assert!(error.to_string().contains("dims of a query"), "{error}");
        } else {
            Problem::new(carried(op, true)).check(&small);
        }
    }
}

/// Long sequences: few channels take segments, and every invocation stays within the budget.
#[test]
fn long_sequences_of_few_channels() {
    for gpu in gpus() {
        for (shape, splits) in [([1, 1, 200_000, 1], None), ([1, 2, 100_003, 4], Some(2))] {
            let x = Layout::f32(shape);
            for op in [
                Scan::decayed_sum(x.clone(), x.clone()),
                Scan::log_sum_exp(x.clone()),
                Scan::softmax(Scores::Channel(x.clone()), x.clone()),
            ] {
                let mut problem = Problem::new(carried(op, false));
                problem.tuning.splits = splits;
                if splits.is_none() {
                    assert_eq!(outline(gpu, &problem.op).schedule, Schedule::Ranges);
                } else {
                    // Sums of 50,000 terms, one after the other, whose mean is small.
                    problem.most = 3e-4;
                }
                problem.check(gpu);
            }
        }
        // A million tokens of ones.
        let count = 1 << 20;
        let x = gpu
            .upload(&vec![1.0; count], [1, count as u64, 1])
            .expect("fits");
        let op = Scan::sum(x.layout().clone());
        let o = gpu
            .allocate(op.o.clone().expect("an output"))
            .expect("fits");
        let args = Args(vec![(Slot::X, x.view()), (Slot::O, o.view())]);
        gpu.compute(&op.into(), args).expect("runs");
        let got = gpu.download(&o).expect("reads back");
        assert!(got.iter().enumerate().all(|(t, &x)| x == (t + 1) as f32));
    }
}

#[test]
fn strided_views() {
    for gpu in gpus() {
        for channels in [5, 8] {
            // [batch, seq, heads, channels] in memory, rows padded and shifted.
            let row = channels + 4;
            let padded = Layout::f32([2, 70, 3, channels])
                .with_strides([70 * 3 * row, 3 * row, row, 1])
                .at(4)
                .transposed(1, 2);
            // Channels far apart, tokens side by side.
            let turned = Layout::f32([2, 3, channels, 70]).transposed(2, 3);
            let plain = Layout::f32([2, 3, 70, channels]);
            for other in [&padded, &turned] {
                for mut op in rules(other) {
                    let contiguous = op.o.clone().expect("an output");
                    Problem::new(op.clone()).check(gpu);
                    // The output strided, the input not.
                    op.o = Some(other.clone());
                    Problem::new(op).splits(3).check(gpu);
                    assert_eq!(contiguous.shape, other.shape);
                }
            }
            assert_eq!(vec4(gpu, &Scan::sum(plain.clone())), channels == 8);
            assert_eq!(vec4(gpu, &Scan::sum(padded.clone())), channels == 8);
            assert!(!vec4(gpu, &Scan::sum(turned.clone())));
            // States with room between their parts, and scores that repeat themselves.
            let scores = plain.clone().with_strides([70, 0, 1, 0]);
            let mut op = Scan::softmax(Scores::Channel(plain.clone()), plain.clone()).with_states();
            let state = Layout::f32([2, 3, 3, channels])
                .with_strides([200, 60, 20, 2])
                .at(3);
            op = op.carried(Some(state.clone()), Some(state.clone().at(1)));
            op.states =
                Some(Layout::f32([2, 3, 70, 3, channels]).with_strides([70 * 200, 60, 200, 20, 2]));
            Problem::new(op.clone()).check(gpu);
            Problem::new(op.carried_in_place(state))
                .splits(5)
                .check(gpu);
            let rows = Layout::f32([2, 3, 70]).with_strides([400, 0, 3]).at(2);
            let both = [Scores::Channel(scores), Scores::Head(rows)];
            for scores in both {
                let op = Scan::softmax(scores, plain.clone());
                let problem = Problem::new(op);
                let data = problem.data();
                let mut same = data.clone();
                // What lies in one place is the last that was put there.
                if let ScanRule::Softmax {
                    scores: Scores::Channel(x) | Scores::Head(x),
                    ..
                } = &problem.op.rule
                {
                    same.insert(Slot::X, seen(x, &data[&Slot::X]));
                }
                problem.compare(gpu, &problem.run(gpu, &data), &problem.expected(&same));
            }
        }
    }
}

/// What a tensor of this layout reads as once these elements were written to it in order.
fn seen(layout: &Layout, data: &[f32]) -> Vec<f32> {
    let place = |number: usize| {
        let mut rest = number as u64;
        let mut at = layout.offset;
        for (len, stride) in layout.shape.iter().zip(&layout.strides).rev() {
            at += rest % len * stride;
            rest /= len;
        }
        at
    };
    let stored: BTreeMap<u64, f32> = data
        .iter()
        .enumerate()
        .map(|(n, &x)| (place(n), x))
        .collect();
    (0..data.len()).map(|n| stored[&place(n)]).collect()
}

/// A sequence in three calls, each of which starts where the one before it ended.
#[test]
fn calls_in_a_row_are_one_call() {
    for gpu in gpus() {
        for op in rules(&Layout::f32([1, 1, 100, 12])) {
            if op.rule_reaches_all() {
                continue;
            }
            let state = Layout::f32(op.state_shape());
            let whole = Problem::new(op.clone().carried(None, Some(state.clone())));
            let data = whole.data();
            let mut rows = Data::new();
            let mut state_so_far: Option<Vec<f32>> = None;
            for (start, end, splits) in [(0, 1, 1), (1, 41, 3), (41, 100, 1)] {
                let piece = Problem::new(shortened(&op, end - start)).splits(splits);
                let mut part = Data::new();
                for (slot, values) in &data {
                    let cut = if *slot == Slot::Q {
                        values.clone()
                    } else {
                        let row = values.len() / 100;
                        values[start as usize * row..end as usize * row].to_vec()
                    };
                    part.insert(*slot, cut);
                }
                let mut piece = piece;
                piece.op = match &state_so_far {
                    None => piece.op.carried(None, Some(state.clone())),
                    Some(_) => piece.op.carried_in_place(state.clone()),
                };
                if let Some(state) = state_so_far {
                    part.insert(Slot::InitialState, state);
                }
                let got = piece.run(gpu, &part);
                state_so_far = got.get(&Slot::FinalState).cloned();
                for (slot, values) in got {
                    let all = rows.entry(slot).or_default();
                    if slot == Slot::FinalState {
                        all.clear();
                    }
                    all.extend(values);
                }
            }
            whole.compare(gpu, &rows, &whole.expected(&data));
        }
    }
}

trait Reaches {
    fn rule_reaches_all(&self) -> bool;
}

impl Reaches for Scan {
    fn rule_reaches_all(&self) -> bool {
        matches!(
            self.rule,
            ScanRule::Softmax {
                denominator: Denominator::All,
                ..
            }
        )
    }
}

/// The same op on contiguous tensors of so many tokens.
fn shortened(op: &Scan, tokens: u64) -> Scan {
    let mut op = op.clone();
    let cut = |layout: &mut Layout| {
        layout.shape[2] = tokens;
        *layout = Layout::new(layout.dtype, layout.shape.clone());
    };
    match &mut op.rule {
        ScanRule::Sum { x, decay } => {
            cut(x);
            decay.as_mut().map(cut);
        }
        ScanRule::LogSumExp {
            x,
            log_decay,
            weights,
        } => {
            cut(x);
            log_decay.as_mut().map(cut);
            weights.as_mut().map(cut);
        }
        ScanRule::Softmax { scores, v, .. } => {
            cut(v);
            match scores {
                Scores::Channel(x) | Scores::Head(x) | Scores::Query { k: x, .. } => cut(x),
            }
        }
    }
    for layout in [&mut op.o, &mut op.gate, &mut op.states] {
        layout.as_mut().map(cut);
    }
    op
}

#[test]
fn packed_sequences() {
    for gpu in gpus() {
        // With an empty one, ones of one token, a long one, and tokens that belong to none.
        let cu = vec![0, 3, 3, 4, 71, 72, 90];
        for (number, shape) in [[1, 2, 90, 8], [1, 2, 97, 5]].into_iter().enumerate() {
            for op in rules(&Layout::f32(shape)) {
                let op = op.packed(Layout::new(DType::U32, [cu.len() as u64]));
                for splits in [1, 4] {
                    let carried = carried(op.clone(), number == 0);
                    let mut problem = Problem::new(carried).splits(splits);
                    problem.cu = cu.clone();
                    problem.check(gpu);
                }
                let mut problem = Problem::new(op);
                problem.cu = cu.clone();
                problem.check(gpu);
            }
        }
        // In slices of heads, channels and sequences.
        let small = with_caps(gpu, |caps| caps.max_binding_bytes = 4096);
        for mut op in rules(&Layout::f32([1, 3, 45, 20])) {
            // These are too long for a binding.
            op.states = None;
            let mut problem = Problem::new(carried(op.packed(Layout::new(DType::U32, [5])), true));
            problem.cu = vec![0, 15, 16, 16, 40];
            problem.check(&small);
        }
        // Numbers that make no sense read nothing outside.
        let x = gpu.upload(&noise(1, 120), [1, 30, 4]).expect("fits");
        let o = gpu.upload(&[9.0; 160], [160]).expect("fits");
        let cu = gpu.upload_u32(&[7, 5, u32::MAX, 3], [4]).expect("fits");
        let layout = x.layout().clone();
        let op = Scan::sum(layout.clone()).packed(cu.layout().clone());
        let inside = o.with_layout(layout);
        let args = [
            (Slot::X, x.view()),
            (Slot::O, inside.view()),
            (Slot::CuSeqlens, cu.view()),
        ];
        gpu.compute(&op.into(), Args(args.into())).expect("runs");
        let all = gpu.download(&o).expect("reads back");
        assert!(all[120..].iter().all(|&x| x == 9.0), "{}", name(gpu));
    }
}

/// Scores of any size overflow nothing.
#[test]
fn scores_of_any_size() {
    for gpu in gpus() {
        for size in [0.0, 80.0, 3000.0] {
            for op in rules(&Layout::f32([1, 2, 66, 8])) {
                for splits in [1, 4] {
                    let mut problem = Problem::new(carried(op.clone(), false)).splits(splits);
                    problem.size = size;
                    let data = problem.data();
                    let got = problem.run(gpu, &data);
                    if size <= 80.0 {
                        // Errors of large scores, which f32 rounds, are errors of weights.
                        let expected = problem.expected(&data);
                        for (slot, values) in &got {
                            for (part, got, expected) in
                                problem.parts(*slot, values, &expected[slot])
                            {
                                let error = reference::error(&got, &expected);
                                assert!(
                                    error < 1e-4,
                                    "{}: {slot:?} {part} {error:e} {op:?}",
                                    name(gpu)
                                );
                            }
                        }
                    }
                    assert!(
                        got.values().flatten().all(|x| !x.is_nan()),
                        "{}: {op:?}",
                        name(gpu)
                    );
                }
            }
        }
    }
}

/// Where every score is hidden there is nothing: outputs of 0, and what minus infinity stands for.
#[test]
fn hidden_scores_leave_nothing() {
    for gpu in gpus() {
        for splits in [1, 3] {
            let x = Layout::f32([1, 1, 40, 4]);
            for op in rules(&x) {
                if matches!(op.rule, ScanRule::Sum { .. })
                    || matches!(
                        &op.rule,
                        ScanRule::Softmax {
                            scores: Scores::Query { .. },
                            ..
                        }
                    )
                {
                    continue;
                }
                let state = Layout::f32(op.state_shape());
                let problem = Problem::new(op.carried(None, Some(state))).splits(splits);
                let mut data = problem.data();
                let scores = data.get_mut(&Slot::X).expect("scores");
                scores.fill(f32::NEG_INFINITY);
                let expected = problem.expected(&data);
                problem.compare(gpu, &problem.run(gpu, &data), &expected);
                // Nothing until half of the way.
                let half = data[&Slot::X].len() / 2;
                data.get_mut(&Slot::X).expect("scores")[half..].fill(0.5);
                let expected = problem.expected(&data);
                problem.compare(gpu, &problem.run(gpu, &data), &expected);
            }
        }
    }
}

/// A decay of 1 keeps the state to the bit, one of exp(-1000) leaves nothing of it.
#[test]
fn decays_of_one_and_of_nothing() {
    for gpu in gpus() {
        for splits in [1, 5] {
            let x = Layout::f32([1, 1, 50, 4]);
            let op = Scan::decayed_sum(x.clone(), x.clone());
            let state = Layout::f32(op.state_shape());
            let problem = Problem::new(op.carried(Some(state), None)).splits(splits);
            let mut data = problem.data();
            data.insert(Slot::InitialState, vec![1e30; 4]);
            data.insert(Slot::X, vec![0.0; 200]);
            data.insert(Slot::Decay, vec![0.0; 200]);
            assert!(problem.run(gpu, &data)[&Slot::O].iter().all(|&o| o == 1e30));
            data.get_mut(&Slot::Decay).expect("decays")[100..104].fill(-1000.0);
            let o = &problem.run(gpu, &data)[&Slot::O];
            assert!(o[..100].iter().all(|&o| o == 1e30));
            assert!(o[100..].iter().all(|&o| o == 0.0), "{}", name(gpu));
        }
    }
}

#[test]
fn an_output_of_another_length() {
    for gpu in gpus() {
        for (tokens, splits) in [(1, 1), (300, 3)] {
            let x = Layout::f32([2, 2, 70, 8]);
            let o = Layout::f32([2, 2, tokens, 8]);
            let op = Scan::softmax(Scores::Channel(x.clone()), x)
                .denominator(Denominator::All)
                .output(o.clone())
                .gate(o);
            Problem::new(carried(op, false)).splits(splits).check(gpu);
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let x = Layout::f32([2, 3, 9, 4]);
    let sum = || Scan::sum(x.clone());
    let softmax = || Scan::softmax(Scores::Channel(x.clone()), x.clone());
    let f16 = Layout::f16([2, 3, 9, 4]);
    let mut two_places = sum().carried_in_place(Layout::f32([2, 3, 4]));
    two_places.final_state = Some(Layout::f32([2, 3, 4]).at(1));
    let wide = Layout::f32([2, 3, 9, 5]);
    for (op, argument, said) in [
        (Scan::sum(Layout::f32([9, 4])), "x", "2 axes"),
        (
            Scan::softmax(Scores::Channel(x.clone()), Layout::f32([4])),
            "v",
            "1 axes",
        ),
        (
            Scan::decayed_sum(x.clone(), wide.clone()),
            "decay",
            "[2, 3, 9, 5]",
        ),
        (Scan::decayed_sum(x.clone(), f16.clone()), "decay", "f16"),
        (Scan::sum(Layout::new(DType::U32, [2, 3, 9, 4])), "x", "u32"),
        (
            Scan::softmax(Scores::Channel(f16.clone()), x.clone()),
            "x",
            "f16",
        ),
        (
            Scan::softmax(Scores::Head(x.clone()), x.clone()),
            "x",
            "expected",
        ),
        (
            Scan::softmax(
                Scores::Query {
                    q: Layout::f32([3, 6]),
                    k: x.clone(),
                    scale: None,
                },
                x.clone(),
            ),
            "k",
            "[2, 3, 9, 6] is expected",
        ),
        (
            Scan::softmax(
                Scores::Query {
                    q: Layout::f32([3, 4]),
                    k: x.clone(),
                    scale: Some(f32::NAN.into()),
                },
                x.clone(),
            ),
            "scale",
            "not finite",
        ),
        (sum().output(wide.clone()), "o", "[2, 3, 9, 5]"),
        (
            sum().output(x.clone().with_strides([0, 36, 4, 1])),
            "o",
            "strides",
        ),
        (sum().without_output(), "o", "every other output"),
        (softmax().gate(wide), "gate", "[2, 3, 9, 5]"),
        (
            softmax().gate(x.clone()).without_output().with_states(),
            "gate",
            "not wanted",
        ),
        (
            Scan::log_sum_exp(x.clone()).gate(x.clone()),
            "gate",
            "log-sum-exp",
        ),
        (sum().with_states(), "states", "is the state"),
        (
            softmax().denominator(Denominator::All).with_states(),
            "states",
            "all tokens have one",
        ),
        (
            sum().carried(Some(Layout::f32([2, 4])), None),
            "initial_state",
            "[2, 3, 4]",
        ),
        (
            sum().carried(Some(Layout::f16([2, 3, 4])), None),
            "initial_state",
            "f16",
        ),
        (
            softmax().carried(None, Some(Layout::f32([2, 3, 4]))),
            "final_state",
            "[2, 3, 3, 4]",
        ),
        (two_places, "final_state", "in place"),
        (
            sum().packed(Layout::new(DType::U32, [3])),
            "cu_seqlens",
            "batch",
        ),
        (
            Scan::sum(Layout::f32([1, 9, 4])).packed(Layout::new(DType::U32, [1])),
            "cu_seqlens",
            "[1]",
        ),
        (
            Scan::sum(Layout::f32([1, 9, 4])).packed(Layout::f32([3])),
            "cu_seqlens",
            "f32",
        ),
    ] {
        let error = Outline::new(&op.clone().into(), &Caps::minimum(), &Tuning::default());
        match error.expect_err("something is wrong") {
            Error::Invalid {
                argument: named,
                found,
                ..
            } => {
                assert_eq!(named, argument, "{op:?}");
                assert!(found.contains(said), "{named}: {found}");
            }
            other => panic!("{other}"),
        }
    }
    // f16 on a device without it, and schedules that cannot be.
    let error = Outline::new(&Scan::sum(f16).into(), &Caps::minimum(), &Tuning::default());
    assert!(
        error
            .expect_err("no f16")
            .to_string()
            .contains("SHADER_F16")
    );
    let with = |schedule, splits| Tuning {
        schedule: Some(schedule),
        splits,
        ..Tuning::default()
    };
    for tuning in [
        with(Schedule::Rows, Some(3)),
        with(Schedule::Tile, None),
        with(Schedule::Rows, Some(0)),
    ] {
        assert!(Outline::new(&sum().into(), &Caps::minimum(), &tuning).is_err());
    }
    let packed = Scan::sum(Layout::f32([1, 9000, 4])).packed(Layout::new(DType::U32, [3]));
    let narrow = Caps {
        max_binding_bytes: 4096,
        ..Caps::minimum()
    };
    let error = Outline::new(&packed.into(), &narrow, &Tuning::default());
    assert!(
        error
            .expect_err("too long")
            .to_string()
            .contains("pack fewer tokens")
    );
}

/// Random sizes, strides and limits: a plan or an error that says what to do, and never a panic.
#[test]
fn any_op_plans_or_says_why() {
    let mut state = 1u64;
    let mut draw = |most: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % most
    };
    for _ in 0..3000 {
        let most = 2 << draw(17);
        let sizes = [1 + draw(3), 1 + draw(4), 1 + draw(most), 1 + draw(70)];
        let most = 2 << draw(16);
        let x = Layout::f32(sizes);
        let list = rules(&x);
        let chosen = draw(list.len() as u64) as usize;
        let op = carried(list[chosen].clone(), draw(2) == 0);
        let caps = Caps {
            loop_budget: 1 + draw(most) as u32,
            max_binding_bytes: 1024 << draw(18),
            storage_alignment: 4 << draw(7),
            software: draw(2) == 0,
            ..Caps::minimum()
        };
        let tuning = Tuning {
            splits: (draw(3) == 0).then(|| 1 + draw(300) as u32),
            ..Tuning::default()
        };
        if let Ok(outline) = Outline::new(&op.clone().into(), &caps, &tuning) {
            for step in &outline.steps {
                for range in &step.ranges {
                    assert!(range.size <= caps.max_binding_bytes, "{op:?} {caps:?}");
                    assert_eq!(range.offset % u64::from(caps.storage_alignment), 0);
                    if range.slot == Slot::Scratch {
                        assert!(range.offset + range.size <= outline.scratch_bytes);
                    }
                }
            }
        }
    }
}
