//! Rows: workloads, each with a cell per column.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    columns::{self, Device},
    flags::Flag,
    ratio::Ratios,
};
use crate::{
    DType,
    bench::{self, Bound, Clock, Measured, Outcome, Sample, Spread},
};

/// A workload on every device.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Row {
    /// What the workload is called.
    pub workload: String,
    /// The op.
    pub op: String,
    /// Storage.
    pub dtype: DType,
    /// The op and its shape, in words.
    pub shape: String,
    /// Length of the sequence, where there is one.
    pub length: Option<u64>,
    /// What this row has in common with those that differ in the length alone, in words.
    pub series: Option<String>,
    /// A cell per column.
    pub cells: Vec<Cell>,
}

/// A workload on one device.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Cell {
    /// What came of it.
    pub state: State,
    /// Why it failed or was skipped.
    pub reason: Option<String>,
    /// What was measured.
    pub figures: Option<Figures>,
    /// How it compares with the column's reference, where both are right.
    pub ratios: Option<Ratios>,
    /// What is unusual.
    pub flags: Vec<Flag>,
    /// The runs that ratios come from, record by record, each with the clock of its shares.
    #[serde(skip)]
    pub(super) samples: Vec<(Clock, Vec<Sample>)>,
}

/// What came of a workload on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It ran, and the result is right.
    Right,
    /// It ran, and the result is wrong, or something was compiled while the clock ran.
    Wrong,
    /// It did not run.
    Failed,
    /// The device cannot run it.
    Skipped,
    /// The record has no such row.
    Missing,
}

impl State {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Missing => "missing",
        }
    }
}

/// Times, rates and errors of a row on a device.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Figures {
    /// The schedule.
    pub schedule: String,
    /// Which ceiling is the lower one.
    pub bound: Bound,
    /// Records of this device that were taken together have different schedules; `schedule` is the first one's.
    pub mixed_schedules: bool,
    /// The clock that `ms` is by.
    pub clock: Clock,
    /// Time that counts, in ms.
    pub ms: Spread,
    /// Wall time, in ms.
    pub wall_ms: Spread,
    /// GFLOP/s at the median.
    pub gflops: f64,
    /// GB/s at the median.
    pub gbps: f64,
    /// Operations per byte.
    pub intensity: f64,
    /// Share of the lower roofline.
    pub share: Spread,
    /// Error against f64; none where it has no bound.
    pub err: Option<f64>,
    /// The most that is right.
    pub err_limit: f64,
    /// Pipelines that were created after the first plan, which makes a row wrong.
    pub late_pipelines: u64,
    /// Compilation in a new engine, in ms.
    pub first_compile_ms: f64,
    /// The same when the pipeline cache knows it, in ms.
    pub cached_compile_ms: f64,
    /// Scratch memory, in bytes.
    pub scratch_bytes: u64,
}

/// Runs of a cell by one clock, record by record.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Runs {
    /// Times.
    pub ms: Vec<Vec<f64>>,
    /// Times that the runs would have taken at a pace of 1.
    pub paced: Vec<Vec<f64>>,
    /// Shares of the roofline.
    pub shares: Vec<Vec<f64>>,
}

impl Runs {
    /// All runs by this clock.
    fn of(samples: &[(Clock, Vec<Sample>)], clock: Clock) -> Self {
        let each = |value: &dyn Fn(Clock, &Sample) -> f64| {
            let records = samples.iter();
            records
                .map(|(own, runs)| runs.iter().map(|run| value(*own, run)).collect())
                .collect()
        };
        Self {
            ms: each(&|_, run| run.ms(clock)),
            paced: each(&|_, run| run.ms(clock) * run.pace()),
            // Shares are by the record's own clock.
            shares: each(&|own, run| run.share * run.ms(own) / run.ms(clock)),
        }
    }
}

/// A workload by its definition alone, whatever it is called. The number tells those apart that a record has twice.
type Key = (String, usize);

/// The rows of a device with their keys.
fn keyed(record: &bench::DeviceRecord) -> Vec<(Key, &bench::Row)> {
    let mut seen: Vec<String> = Vec::new();
    let rows = record.rows.iter().map(|row| {
        let definition = match row.known() {
            Some(workload) => format!("{:?}", workload.named("")),
            None => {
                let mut definition = row.definition.clone();
                if let Some(fields) = definition.as_object_mut() {
                    fields.remove("name");
                }
                definition.to_string()
            }
        };
        let before = seen.iter().filter(|other| **other == definition).count();
        seen.push(definition.clone());
        ((definition, before), row)
    });
    rows.collect()
}

/// All rows of all devices, with their ratios.
pub(super) fn rows(devices: &[Device<'_>]) -> Vec<Row> {
    let keyed: Vec<Vec<Vec<(Key, &bench::Row)>>> = devices
        .iter()
        .map(|device| device.records.iter().map(|record| keyed(record)).collect())
        .collect();
    let mut keys: Vec<(&Key, &bench::Row)> = Vec::new();
    for (key, row) in keyed.iter().flatten().flatten() {
        if !keys.iter().any(|(known, _)| *known == key) {
            keys.push((key, row));
        }
    }
    let row = |(key, row): (&Key, &bench::Row)| {
        let mut cells: Vec<Cell> = keyed
            .iter()
            .map(|records| {
                let find = |record: &Vec<(Key, &'_ bench::Row)>| {
                    let found = record.iter().find(|(other, _)| other == key);
                    found.map(|(_, row)| row.outcome.clone())
                };
                Cell::of(&records.iter().map(find).collect::<Vec<_>>())
            })
            .collect();
        let ratios: Vec<Option<Ratios>> = cells
            .iter()
            .zip(devices)
            .map(|(cell, device)| {
                let reference = cells.get(device.column.reference?)?;
                let right = [reference, cell]
                    .iter()
                    .all(|cell| cell.state == State::Right);
                let first = devices.get(device.column.reference?)?;
                let alike = columns::same(&first.column.adapter, &device.column.adapter);
                // By the clock that both have.
                let clock = match (reference.clock(), cell.clock()) {
                    (Clock::Gpu, Clock::Gpu) => Clock::Gpu,
                    _ => Clock::Wall,
                };
                let [before, now] = [reference, cell].map(|cell| Runs::of(&cell.samples, clock));
                right.then(|| Ratios::of(&before, &now, alike))?
            })
            .collect();
        for (cell, ratios) in cells.iter_mut().zip(ratios) {
            cell.ratios = ratios;
        }
        let (length, series) = row.known().and_then(|workload| workload.series()).unzip();
        Row {
            workload: row.workload.clone(),
            op: row.op.clone(),
            dtype: row.dtype,
            shape: row.shape.clone(),
            length,
            series,
            cells,
        }
    };
    keys.into_iter().map(row).collect()
}

impl Cell {
    /// What came of a workload in all records of a device: the worst of them.
    fn of(outcomes: &[Option<Outcome>]) -> Self {
        let state = |outcome: &Option<Outcome>| match outcome {
            Some(Outcome::Measured(measured)) if measured.right => State::Right,
            Some(Outcome::Measured(_)) => State::Wrong,
            Some(Outcome::Failed { .. }) => State::Failed,
            Some(Outcome::Skipped { .. }) => State::Skipped,
            None => State::Missing,
        };
        let order = [State::Failed, State::Wrong, State::Missing, State::Skipped];
        let worst = order
            .into_iter()
            .find(|&bad| outcomes.iter().any(|outcome| state(outcome) == bad));
        // The reason of the outcome that counts.
        let of_worst = outcomes
            .iter()
            .filter(|outcome| Some(state(outcome)) == worst);
        let reason = of_worst.flatten().find_map(|outcome| match outcome {
            Outcome::Failed { reason } | Outcome::Skipped { reason } => Some(reason.clone()),
            Outcome::Measured(_) => None,
        });
        let measured: Vec<&Measured> = outcomes
            .iter()
            .flatten()
            .filter_map(|outcome| match outcome {
                Outcome::Measured(measured) => Some(&**measured),
                _ => None,
            })
            .collect();
        let mut cell = Self {
            state: worst.unwrap_or(State::Right),
            reason,
            figures: None,
            ratios: None,
            flags: Vec::new(),
            samples: measured
                .iter()
                .map(|one| (one.clock, one.samples.clone()))
                .collect(),
        };
        cell.figures = Figures::of(&measured, &cell);
        cell
    }

    /// What was measured, where it is right.
    pub fn right(&self) -> Option<&Figures> {
        let right = self.state == State::Right;
        self.figures.as_ref().filter(|_| right)
    }

    /// The clock of all runs: the GPU's only where each of them has it.
    fn clock(&self) -> Clock {
        let gpu = self.samples.iter().all(|(clock, runs)| {
            *clock == Clock::Gpu && runs.iter().all(|run| run.gpu_ms.is_some())
        });
        if gpu { Clock::Gpu } else { Clock::Wall }
    }
}

impl Figures {
    /// Of all records: their runs together, the largest error, the first compilations.
    fn of(measured: &[&Measured], cell: &Cell) -> Option<Self> {
        let first = measured.first()?;
        let clock = cell.clock();
        let runs = Runs::of(&cell.samples, clock);
        let wall = Runs::of(&cell.samples, Clock::Wall);
        // A record may have been written without its samples.
        let ms = Spread::of(runs.ms.concat()).unwrap_or(first.ms());
        let share = Spread::of(runs.shares.concat()).unwrap_or(first.share);
        let errors: Option<Vec<f64>> = measured.iter().map(|one| one.err).collect();
        Some(Self {
            schedule: first.schedule.clone(),
            mixed_schedules: measured.iter().any(|one| one.schedule != first.schedule),
            bound: first.bound,
            clock,
            ms,
            wall_ms: Spread::of(wall.ms.concat()).unwrap_or(first.wall_ms),
            gflops: first.operations / ms.median / 1e6,
            gbps: first.bytes / ms.median / 1e6,
            intensity: first.operations / first.bytes,
            share,
            err: errors.map(|errors| errors.into_iter().fold(0.0, f64::max)),
            err_limit: first.err_limit,
            late_pipelines: measured.iter().map(|one| one.host.late_pipelines).sum(),
            first_compile_ms: first.first_compile_ms,
            cached_compile_ms: first.cached_compile_ms,
            scratch_bytes: first.scratch_bytes,
        })
    }
}
