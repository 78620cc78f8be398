//! Timing workloads on a device, beside its ceilings, and checking what they compute.

use std::time::{Duration, Instant};

use super::{
    Ceilings, Clock, Expected, Lap, Measured, Outcome, Profile, Row, Sample, Spread, Tensors,
    Timer, Timing, Workload, cost,
    probe::{Bounds, Pace, Probes},
    survey,
    tensors::overwrites_inputs,
};
use crate::{Call, Engine, Error, Gpu, Op, Plan, Result, Schedule, Tensor, Tuning};

/// Bytes past which sets of tensors do not fit a cache together.
const PAST_CACHES: f64 = 256e6;

/// Short runs are repeated for so long ...
const LEAST_TIME: Duration = Duration::from_millis(1500);
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

    /// Times a workload and checks its result. Without a tuning, the engine chooses. What the device cannot run is
    /// skipped.
    pub fn row(&self, workload: &Workload, tuning: Option<&Tuning>) -> Row {
        let outcome = match self.measure(workload, tuning) {
            Ok(measured) => Outcome::Measured(Box::new(measured)),
            Err(error @ Error::Unsupported { .. }) => Outcome::Skipped {
                reason: error.to_string(),
            },
            Err(error) => Outcome::Failed {
                reason: error.to_string(),
            },
        };
        Row::new(workload, outcome)
    }

    fn measure(&self, workload: &Workload, tuning: Option<&Tuning>) -> Result<Measured> {
        let gpu = self.gpu;
        let op = workload.op();
        // An engine of its own: compilation counts for this row.
        let engine = gpu.engine().fresh(None);
        let make_plan = || planned(&engine, &op, tuning);
        let start = Instant::now();
        let plan = make_plan()?;
        let create = start.elapsed();

        let cost = cost(&op);
        let inputs = workload.inputs(0);
        let sets = Sets::new(gpu, &op, &plan, &inputs, {
            // More than there are runs would never have their turn.
            ((PAST_CACHES / cost.bytes()).ceil() as usize).clamp(1, self.runs)
        })?;
        // From here on nothing may be compiled: neither by planning again nor by running.
        let compiled = engine.counters().misses;
        let first = sets.list.first();
        let mut host = Profile::new(gpu, create, first.map(|(_, call)| call), make_plan, || {
            first.map(|(set, _)| set.bind(&plan)).transpose()
        })?;
        let matrix = plan.outline().schedule == Schedule::Matrix;
        let bounds = Bounds::new(&self.probes, &self.ceilings, cost, matrix);
        let laps = sets.laps(&bounds, self.runs)?;
        host.late_pipelines = engine.counters().misses - compiled;
        let expected = workload.expected(&inputs);
        let err = sets.error(&expected)?;

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
        let again = sets.first_result(&engine.fresh(Some(&engine)), tuning)?;
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
            cached_compile_ms: without_run(again.as_secs_f64() * 1e3),
            scratch_bytes: plan.scratch_bytes(),
            sets: sets.list.len() as u32,
            host,
        })
    }
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
            Ok(worst.max(set.error(self.gpu, expected)?))
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
