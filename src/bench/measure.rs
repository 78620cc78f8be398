//! Timing workloads on a device, beside its ceilings, and checking what they compute.

use std::time::{Duration, Instant};

use super::{
    Ceilings, Clock, Cost, Expected, Lap, Measured, Outcome, Profile, Row, Sample, Spread, Tensors,
    Timer, Timing, Workload, cost,
    probe::{Bounds, Pace, Probes},
    survey,
    tensors::overwrites_inputs,
};
use crate::{Call, Engine, Error, Gpu, Op, Plan, Result, Schedule, Tensor, Tuning};

/// Bytes past which sets of tensors do not fit a cache together.
const PAST_CACHES: f64 = 256e6;

/// Short runs are repeated for so long in a round ...
const LEAST_TIME: Duration = Duration::from_millis(200);
/// ... up to this many times as often as asked for.
const MOST_TIMES: usize = 4;
/// Longest wanted run of a probe, in ms.
const MOST_PROBE_MS: f64 = 20.0;

/// A device whose ceilings are known, to time workloads on.
#[derive(Debug)]
pub struct Bench<'a> {
    gpu: &'a Gpu,
    ceilings: Ceilings,
    probes: Probes,
    runs: usize,
}

impl<'a> Bench<'a> {
    /// Measures the ceilings of a device, to time workloads `runs` times beside them.
    ///
    /// # Errors
    /// [`Error::Device`] when a launch fails.
    pub fn new(gpu: &'a Gpu, runs: usize) -> Result<Self> {
        let (ceilings, probes) = survey(gpu, runs)?;
        Ok(Self {
            gpu,
            ceilings,
            probes,
            runs: runs.max(1),
        })
    }

    /// The ceilings.
    pub fn ceilings(&self) -> &Ceilings {
        &self.ceilings
    }

    /// Times workloads and checks their results. Without a tuning, the engine chooses. What the device cannot run is
    /// skipped.
    ///
    /// There are [`Self::ROUNDS`] rounds over all workloads, each with tensors allocated anew, and the runs of all
    /// rounds count together: where memory lies can make a kernel faster or slower for as long as it lies there.
    /// `each` is told what comes next: [`Self::ROUNDS`] + 1 times per workload.
    pub fn rows(
        &self,
        workloads: &[(&Workload, Option<Tuning>)],
        mut each: impl FnMut(&Workload),
    ) -> Vec<Row> {
        let mut tasks: Vec<Result<Task<'_>>> = Vec::new();
        for (workload, tuning) in workloads {
            each(workload);
            tasks.push(Task::new(self, workload, tuning.as_ref()));
        }
        for round in 0..Self::ROUNDS {
            for (task, (workload, _)) in tasks.iter_mut().zip(workloads) {
                each(workload);
                if let Ok(runner) = task
                    && let Err(error) = runner.round(self, round)
                {
                    *task = Err(error);
                }
            }
        }
        let rows = tasks.into_iter().zip(workloads);
        rows.map(|(task, (workload, _))| {
            let outcome = match task.and_then(|task| task.measured(self)) {
                Ok(measured) => Outcome::Measured(Box::new(measured)),
                Err(error @ Error::Unsupported { .. }) => Outcome::Skipped {
                    reason: error.to_string(),
                },
                Err(error) => Outcome::Failed {
                    reason: error.to_string(),
                },
            };
            Row::new(workload, outcome)
        })
        .collect()
    }

    /// Rounds over all workloads.
    pub const ROUNDS: usize = 3;
}

/// A workload between its rounds: what was compiled, the reference, and the runs so far. It holds no tensors.
struct Task<'a> {
    workload: &'a Workload,
    tuning: Option<&'a Tuning>,
    op: Op,
    /// An engine of its own: compilation counts for this row.
    engine: Engine,
    plan: Plan,
    cost: Cost,
    expected: Expected,
    create: Duration,
    host: Profile,
    cached: Duration,
    laps: Vec<(Lap, Pace)>,
    err: f64,
    sets: usize,
}

impl<'a> Task<'a> {
    /// Compiles a workload, and computes its reference.
    fn new(bench: &Bench<'_>, workload: &'a Workload, tuning: Option<&'a Tuning>) -> Result<Self> {
        let op = workload.op();
        let engine = bench.gpu.engine().fresh(None);
        let start = Instant::now();
        let plan = planned(&engine, &op, tuning)?;
        let create = start.elapsed();
        Ok(Self {
            workload,
            tuning,
            cost: cost(&op),
            expected: workload.expected(&workload.inputs(0)),
            op,
            engine,
            plan,
            create,
            host: Profile::default(),
            cached: Duration::ZERO,
            laps: Vec::new(),
            err: 0.0,
            sets: 0,
        })
    }

    fn bounds<'b>(&self, bench: &'b Bench<'_>) -> Bounds<'b> {
        let matrix = self.plan.outline().schedule == Schedule::Matrix;
        Bounds::new(&bench.probes, &bench.ceilings, self.cost, matrix)
    }

    /// One round: tensors of its own, timed and checked. The first one also looks at where host time goes.
    fn round(&mut self, bench: &Bench<'_>, round: usize) -> Result<()> {
        let runs = share_of(bench.runs, round, Bench::ROUNDS);
        if runs == 0 {
            return Ok(());
        }
        let inputs = self.workload.inputs(0);
        let sets = Sets::new(bench.gpu, &self.op, &self.plan, &inputs, {
            // More than there are runs would never have their turn.
            ((PAST_CACHES / self.cost.bytes()).ceil() as usize).clamp(1, runs)
        })?;
        // From here on nothing may be compiled: neither by planning again nor by running.
        let compiled = self.engine.counters().misses;
        let first = sets.list.first();
        if round == 0 {
            self.host = Profile::new(
                bench.gpu,
                self.create,
                first.map(|(_, call)| call),
                || planned(&self.engine, &self.op, self.tuning),
                || first.map(|(set, _)| set.bind(&self.plan)).transpose(),
            )?;
        }
        self.laps.extend(sets.laps(&self.bounds(bench), runs)?);
        self.host.late_pipelines += self.engine.counters().misses - compiled;
        // f64::max passes over NaN, which no error is.
        self.err = self.err.max(sets.error(&self.expected)?);
        self.sets += sets.list.len();
        if round == 0 {
            let again = self.engine.fresh(Some(&self.engine));
            self.cached = sets.first_result(&again, self.tuning)?;
        }
        Ok(())
    }

    /// All rounds together.
    fn measured(self, bench: &Bench<'_>) -> Result<Measured> {
        let bounds = self.bounds(bench);
        let Self {
            plan,
            cost,
            expected,
            host,
            laps,
            err,
            ..
        } = self;
        let timing = Timing::of(&laps.iter().map(|(lap, _)| *lap).collect::<Vec<_>>())?;
        let clock = timing.gpu.map_or(Clock::Wall, |_| Clock::Gpu);
        let never = || Error::invalid("runs", "0", "run at least once");
        let samples = laps.iter().map(|&(lap, pace)| {
            let mut sample = Sample {
                wall_ms: lap.wall,
                gpu_ms: lap.gpu,
                pace_gflops: pace.fma,
                pace_matrix_gflops: pace.matrix,
                pace_read_gbps: pace.read,
                pace_copy_gbps: pace.copy,
                share: 0.0,
            };
            sample.share = bounds.share(sample.ms(clock), pace);
            sample
        });
        let samples: Vec<Sample> = samples.collect();
        let share =
            Spread::of(samples.iter().map(|sample| sample.share).collect()).ok_or_else(never)?;
        let paces: Vec<Pace> = laps.iter().map(|(_, pace)| *pace).collect();
        let pace = Pace::median(&paces).ok_or_else(never)?;
        let ms = timing.median();
        let without_run = |first: f64| (first - timing.wall.median).max(0.0);
        Ok(Measured {
            schedule: plan.outline().schedule.to_string(),
            why: plan.outline().why.clone(),
            clock,
            gpu_ms: timing.gpu,
            wall_ms: timing.wall,
            gflops: cost.gflops(ms),
            gbps: cost.gbps(ms),
            operations: cost.operations,
            bytes: cost.bytes(),
            bound: bounds.bound(pace),
            share,
            samples,
            err: err.is_finite().then_some(err),
            err_limit: expected.err_limit,
            right: err <= expected.err_limit && host.late_pipelines == 0,
            first_compile_ms: without_run(host.create_ms + host.first_ms),
            cached_compile_ms: without_run(self.cached.as_secs_f64() * 1e3),
            scratch_bytes: plan.scratch_bytes(),
            sets: self.sets as u32,
            host,
        })
    }
}

/// The part of `runs` that falls to one of several rounds: as even as can be, the first ones having more.
fn share_of(runs: usize, round: usize, rounds: usize) -> usize {
    runs / rounds + usize::from(round < runs % rounds)
}

fn planned(engine: &Engine, op: &Op, tuning: Option<&Tuning>) -> Result<Plan> {
    match tuning {
        Some(tuning) => engine.plan_with(op, tuning),
        None => engine.plan(op),
    }
}

/// Sets of tensors of one row, each with its call, that take turns.
struct Sets<'a> {
    gpu: &'a Gpu,
    op: &'a Op,
    list: Vec<(Tensors, Call)>,
    /// What the op overwrites of its inputs, as it was.
    original: Option<Tensors>,
    /// What is in the outputs before each is written.
    wrong: Tensor,
}

impl<'a> Sets<'a> {
    fn new(
        gpu: &'a Gpu,
        op: &'a Op,
        plan: &Plan,
        inputs: &[Vec<f32>],
        count: usize,
    ) -> Result<Self> {
        let first = Tensors::upload(gpu, op, inputs)?;
        let original = overwrites_inputs(op)
            .then(|| first.copied(gpu))
            .transpose()?;
        let copies = (1..count)
            .map(|_| first.copied(gpu))
            .collect::<Result<Vec<_>>>()?;
        let wrong = first.wrong(gpu)?;
        let list = std::iter::once(first).chain(copies).map(|set| {
            let call = set.bind(plan)?;
            Ok((set, call))
        });
        Ok(Self {
            gpu,
            op,
            list: list.collect::<Result<Vec<_>>>()?,
            original,
            wrong,
        })
    }

    /// Makes all tensors what they were before the first run, and outputs wrong.
    fn reset(&self) -> Result<()> {
        self.list.iter().try_for_each(|(set, _)| {
            set.reset(self.gpu, self.op, self.original.as_ref(), &self.wrong)
        })
    }

    /// Times runs, the pace of the device around each: as many as asked for, and more of what is short. A set has its
    /// turn again when all others had theirs.
    fn laps(&self, bounds: &Bounds<'_>, runs: usize) -> Result<Vec<(Lap, Pace)>> {
        let timer = Timer::new(self.gpu)?;
        let mut shortest = f64::INFINITY;
        for (_, call) in &self.list {
            shortest = shortest.min(timer.run(call)?.ms());
        }
        self.reset()?;
        // What disturbs a long run for a part of it should have as long to disturb the probes.
        let least_ms = shortest.min(MOST_PROBE_MS);
        // Once for what only happens once.
        bounds.pace(&timer, 0.0)?;
        let start = Instant::now();
        let mut before = bounds.pace(&timer, least_ms)?;
        let mut laps = Vec::with_capacity(runs);
        for (_, call) in self.list.iter().cycle() {
            let enough = laps.len() >= runs && start.elapsed() >= LEAST_TIME;
            if enough || laps.len() >= MOST_TIMES * runs {
                break;
            }
            let lap = timer.run(call)?;
            let after = bounds.pace(&timer, least_ms)?;
            laps.push((lap, before.between(after)));
            before = after;
        }
        Ok(laps)
    }

    /// The worst error of all sets, each of which had its turn. A state that was carried on is another one after each
    /// run, so there each set starts anew and runs once.
    fn error(&self, expected: &Expected) -> Result<f64> {
        if self.original.is_some() {
            self.reset()?;
            for (_, call) in &self.list {
                self.gpu.run(call)?;
            }
        }
        self.list.iter().try_fold(0.0f64, |worst, (set, _)| {
            Ok(worst.max(set.error(self.gpu, self.op, expected)?))
        })
    }

    /// Time to the first result of an engine. The tensors are of no use afterwards.
    fn first_result(&self, engine: &Engine, tuning: Option<&Tuning>) -> Result<Duration> {
        let Some((set, _)) = self.list.first() else {
            return Ok(Duration::ZERO);
        };
        let start = Instant::now();
        let plan = planned(engine, self.op, tuning)?;
        let planned = start.elapsed();
        let call = set.bind(&plan)?;
        let start = Instant::now();
        self.gpu.run(&call)?;
        Ok(planned + start.elapsed())
    }
}
