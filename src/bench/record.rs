//! The record of a benchmark: one JSON file, of a version, with what was measured on one device or several.
//!
//! `docs/bench-record.schema.json` is made from these types, and their comments are its descriptions.

use std::{fs, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Adapter, Ceilings, Opened, Profile, Spread, Workload};
use crate::{DType, Error, Result};

/// What `foveate bench` measured. Times are in ms or microseconds, rates in 10^9 per second, as names say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "foveate bench record")]
pub struct Record {
    /// Always "foveate-bench".
    pub format: String,
    /// Version of this format, 1. A field that is added does not change it; one that changes its meaning does.
    pub version: u32,
    /// Version of foveate.
    pub foveate: String,
    /// Commit of the source folder that the program was built from, as it was when the record was made, if it is
    /// still there; ends in "-dirty" where files differ from the commit.
    pub commit: Option<String>,
    /// The suite, or the name of the file of shapes.
    pub suite: String,
    /// Timed runs asked for, of each row; short ones may have more.
    pub runs: u32,
    /// The devices, in the order in which they ran.
    pub devices: Vec<DeviceRecord>,
}

/// What was measured on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceRecord {
    /// The adapter.
    pub adapter: Adapter,
    /// How the device was opened; none when it could not be.
    pub opened: Option<Opened>,
    /// Its own ceilings, before the rows were timed; or, where that is more, while a row was (median of its runs).
    pub ceilings: Option<Ceilings>,
    /// Why it could not be opened, or its ceilings not be measured; there are no rows then.
    pub error: Option<String>,
    /// A row for each workload.
    pub rows: Vec<Row>,
}

/// An op on a shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// What the workload is called in its suite.
    pub workload: String,
    /// The op, as `workload.op` of the definition has it.
    pub op: String,
    /// Storage of the main tensors.
    pub dtype: DType,
    /// The op and its shape, in words.
    pub shape: String,
    /// The workload, as a file of shapes has it. Rows of two records whose definitions are equal but for the name
    /// belong together. One that this version does not know, of another version's op say, stays as it is.
    #[schemars(with = "Workload")]
    pub definition: Value,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It ran; whether its result is right, it says itself.
    Measured(Box<Measured>),
    /// The device cannot run it.
    Skipped {
        /// What it lacks.
        reason: String,
    },
    /// It should have run, and did not.
    Failed {
        /// What went wrong.
        reason: String,
    },
}

/// Times, rates and errors of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measured {
    /// The schedule chosen.
    pub schedule: String,
    /// Why.
    pub why: String,
    /// Which clock counts in rates and shares.
    pub clock: Clock,
    /// Time on the GPU, in ms, between timestamps around the pass; none where the device has none.
    pub gpu_ms: Option<Spread>,
    /// Wall time, in ms, of recording, submitting and waiting for a run.
    pub wall_ms: Spread,
    /// Floating-point operations of the op's definition, at the median time, in GFLOP/s.
    pub gflops: f64,
    /// Bytes, each input read once and each output written once, at the median time, in GB/s.
    pub gbps: f64,
    /// Floating-point operations of the op's definition.
    pub operations: f64,
    /// Bytes of its inputs and outputs.
    pub bytes: f64,
    /// Which ceiling is the lower one for this op, at the median pace of its runs.
    pub bound: Bound,
    /// Share of the lower roofline: in each run, the least time that the ceilings allow at their rates of just before
    /// and just after that run, over the time taken. 1 is all that the device can do.
    pub share: Spread,
    /// The runs, in order.
    pub samples: Vec<Sample>,
    /// `max |x - reference| / RMS(reference)` against f64: the worst of all sets of tensors. None where the output is
    /// not of numbers, or indices are wrong.
    pub err: Option<f64>,
    /// The most that `err` may be: 2e-5 (f16 storage: 2e-3; times the square root of `kv_len / 1024` in longer
    /// attention), or 1e-6 (1e-3) of the largest element where that is more, as in a softmax of long rows.
    pub err_limit: f64,
    /// Whether the result is right, and nothing was compiled while the clock ran.
    pub right: bool,
    /// Compilation in a new engine, with the first dispatch, less a median run, in ms. Drivers with a cache of their
    /// own may have seen the kernels in an earlier process, or in an earlier row.
    pub first_compile_ms: f64,
    /// The same in a further engine, which gets what the pipeline cache holds, in ms.
    pub cached_compile_ms: f64,
    /// Scratch memory of one call, in bytes.
    pub scratch_bytes: u64,
    /// Sets of tensors that took turns.
    pub sets: u32,
    /// Where host time goes.
    pub host: Profile,
}

/// One timed run, with the pace of the device around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// Wall time, in ms.
    pub wall_ms: f64,
    /// Time on the GPU, in ms.
    pub gpu_ms: Option<f64>,
    /// Rate of the kernel that reached the ceiling of multiply-adds in f32, in GFLOP/s: mean of just before and just
    /// after.
    pub pace_gflops: f64,
    /// The same of matrices, where the op runs on them.
    #[serde(default)]
    pub pace_matrix_gflops: Option<f64>,
    /// The same of streaming reads, in GB/s.
    pub pace_read_gbps: f64,
    /// The same of copies, in GB/s.
    pub pace_copy_gbps: f64,
    /// Share of the lower roofline at that pace.
    pub share: f64,
}

impl Sample {
    /// The pace of the device around the run: the geometric mean of the rates of multiply-adds, reads and copies. What
    /// other work takes from the machine, it takes from all of them; three say it with less noise than one. Matrices
    /// do not count, so that the pace is of the same kernels whatever the schedule.
    pub fn pace(&self) -> f64 {
        (self.pace_gflops * self.pace_read_gbps * self.pace_copy_gbps).cbrt()
    }

    /// The time by this clock.
    pub fn ms(&self, clock: Clock) -> f64 {
        match clock {
            Clock::Gpu => self.gpu_ms.unwrap_or(self.wall_ms),
            Clock::Wall => self.wall_ms,
        }
    }
}

/// A clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// Timestamps of the GPU.
    Gpu,
    /// The host's clock.
    Wall,
}

/// A ceiling that bounds an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Multiply-adds in f32.
    MultiplyAdd,
    /// Cooperative matrices.
    Matrix,
    /// Streaming reads.
    Read,
    /// Copies.
    Copy,
}

impl Measured {
    /// The spread that counts.
    pub fn ms(&self) -> Spread {
        match (self.clock, self.gpu_ms) {
            (Clock::Gpu, Some(gpu)) => gpu,
            _ => self.wall_ms,
        }
    }
}

impl Row {
    /// The row of a workload.
    pub fn new(workload: &Workload, outcome: Outcome) -> Self {
        Self {
            workload: workload.name().into(),
            op: workload.family().into(),
            dtype: workload.dtype(),
            shape: workload.describe(),
            definition: serde_json::to_value(workload).unwrap_or_default(),
            outcome,
        }
    }

    /// The workload, where this version knows it.
    pub fn known(&self) -> Option<Workload> {
        serde_json::from_value(self.definition.clone()).ok()
    }

    /// What was measured, if anything.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Skipped { .. } | Outcome::Failed { .. } => None,
        }
    }

    /// Whether it neither failed nor is wrong.
    pub fn passed(&self) -> bool {
        match &self.outcome {
            Outcome::Measured(measured) => measured.right,
            Outcome::Skipped { .. } => true,
            Outcome::Failed { .. } => false,
        }
    }
}

impl DeviceRecord {
    /// Whether it was opened, ran at least one row, and none failed or is wrong.
    pub fn passed(&self) -> bool {
        self.error.is_none()
            && self.rows.iter().all(Row::passed)
            && self.rows.iter().any(|row| row.measured().is_some())
    }
}

/// What a file says of itself, whatever else is in it.
#[derive(Deserialize)]
struct Kind {
    format: Option<String>,
    version: Option<u32>,
}

impl Record {
    /// What `format` is.
    pub const FORMAT: &str = "foveate-bench";
    /// The version that this program writes and reads.
    pub const VERSION: u32 = 1;

    /// Reads a record.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read, is of another format or another version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|error| Error::file(path, format!("{error}; check the path")))?;
        Self::parse(&text).map_err(|error| Error::file(path, error))
    }

    /// Reads the text of a record.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        const MAKE: &str = "make one with: foveate bench --out FILE";
        let wrong = |found: String, remedy: &str| Err(Error::invalid("record", found, remedy));
        let kind: Kind = match serde_json::from_str(text) {
            Ok(kind) => kind,
            Err(error) => return wrong(format!("is not JSON of a record ({error})"), MAKE),
        };
        match (kind.format.as_deref(), kind.version) {
            (Some(Self::FORMAT), Some(Self::VERSION)) => {}
            (Some(Self::FORMAT), version) => {
                let found = version.map_or("no version".into(), |found| format!("version {found}"));
                return wrong(
                    format!(
                        "is of {found}, and this program reads version {}",
                        Self::VERSION
                    ),
                    "use the foveate that wrote it, or measure again with: foveate bench --out FILE",
                );
            }
            _ => return wrong(format!("`format` is not \"{}\"", Self::FORMAT), MAKE),
        }
        let record: Self = match serde_json::from_str(text) {
            Ok(record) => record,
            Err(error) => {
                let found = format!("does not follow docs/bench-record.schema.json ({error})");
                return wrong(found, MAKE);
            }
        };
        match record.impossible() {
            Some(found) => wrong(found, MAKE),
            None => Ok(record),
        }
    }

    /// The record as JSON.
    ///
    /// # Errors
    /// [`Error::File`] when there is no JSON of it.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|error| Error::file("JSON", error))
    }

    /// The schema of records, as JSON.
    ///
    /// # Errors
    /// [`Error::File`] when there is no JSON of it.
    pub fn schema() -> Result<String> {
        schema_text(&schemars::schema_for!(Self))
    }
}

/// Numbers of measurements beyond these are none.
const LEAST: f64 = 1e-30;
const MOST: f64 = 1e30;

impl Record {
    /// The first field whose value no measurement has, in words.
    fn impossible(&self) -> Option<String> {
        self.devices.iter().find_map(|device| {
            let ceilings = device.ceilings.as_ref().and_then(Ceilings::impossible);
            let ceilings = ceilings.map(|field| format!("`ceilings.{field}`"));
            let row = |row: &Row| {
                let field = row.measured()?.impossible()?;
                Some(format!("`{field}` of the row \"{}\"", row.workload))
            };
            let found = ceilings.or_else(|| device.rows.iter().find_map(row))?;
            Some(format!("{found} is no measurement"))
        })
    }
}

impl Ceilings {
    /// The first field that is no rate. 0 is one: of what could not be measured.
    fn impossible(&self) -> Option<&'static str> {
        let fields = [
            ("fma_gflops", Some(self.fma_gflops)),
            ("fma_f16_gflops", self.fma_f16_gflops),
            ("matrix_gflops", self.matrix_gflops),
            ("read_gbps", Some(self.read_gbps)),
            ("copy_gbps", Some(self.copy_gbps)),
            ("workgroup_gbps", self.workgroup_gbps),
            ("dispatch_us", Some(self.dispatch_us)),
            ("submit_us", Some(self.submit_us)),
            ("upload_gbps", Some(self.upload_gbps)),
            ("readback_gbps", Some(self.readback_gbps)),
        ];
        let wrong = |value: &f64| !(0.0..MOST).contains(value);
        let mut fields = fields.into_iter();
        fields
            .find(|(_, value)| value.as_ref().is_some_and(wrong))
            .map(|(name, _)| name)
    }
}

impl Measured {
    /// The first field whose value cannot be.
    fn impossible(&self) -> Option<String> {
        let spread = |name: &str, spread: &Spread| {
            [spread.median, spread.p10, spread.p90].map(|value| (name.to_owned(), value))
        };
        let mut above: Vec<(String, f64)> = [
            ("bytes", self.bytes),
            ("gbps", self.gbps),
            ("err_limit", self.err_limit),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        above.extend(spread("wall_ms", &self.wall_ms));
        above.extend(self.gpu_ms.iter().flat_map(|gpu| spread("gpu_ms", gpu)));
        above.extend(spread("share", &self.share));
        for (place, run) in self.samples.iter().enumerate() {
            let fields = [
                ("wall_ms", Some(run.wall_ms)),
                ("gpu_ms", run.gpu_ms),
                ("pace_gflops", Some(run.pace_gflops)),
                ("pace_matrix_gflops", run.pace_matrix_gflops),
                ("pace_read_gbps", Some(run.pace_read_gbps)),
                ("pace_copy_gbps", Some(run.pace_copy_gbps)),
                ("share", Some(run.share)),
            ];
            let there = fields
                .into_iter()
                .filter_map(|(name, value)| Some((format!("samples[{place}].{name}"), value?)));
            above.extend(there);
        }
        // An op may do no arithmetic, and an error may be 0.
        let from_zero = [
            ("operations", self.operations),
            ("gflops", self.gflops),
            ("err", self.err.unwrap_or(0.0)),
            ("first_compile_ms", self.first_compile_ms),
            ("cached_compile_ms", self.cached_compile_ms),
        ];
        if self.samples.is_empty() {
            return Some("samples".into());
        }
        let above = above.into_iter();
        let mut above = above.filter(|(_, value)| !(LEAST..MOST).contains(value));
        let mut from_zero = from_zero
            .into_iter()
            .filter(|(_, value)| !(0.0..MOST).contains(value));
        let found = above.next().map(|(name, _)| name);
        found.or_else(|| from_zero.next().map(|(name, _)| name.to_owned()))
    }
}

/// A schema as the text of a file.
pub(crate) fn schema_text(schema: &schemars::Schema) -> Result<String> {
    serde_json::to_string_pretty(schema)
        .map(|text| text + "\n")
        .map_err(|error| Error::file("the schema", error))
}
