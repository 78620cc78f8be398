//! Comparing records of benchmarks: which rows belong together, how they compare, and what is unusual.
//!
//! No device is needed. Everything that is random goes by a fixed seed: the same files give the same figures.

mod columns;
mod flags;
mod ratio;
mod regressions;
mod rows;

use schemars::JsonSchema;
use serde::Serialize;

pub use columns::{Against, Column, Source};
pub use flags::Flag;
pub use ratio::{By, Interval, Ratios, Verdict};
pub use regressions::{Cause, Gate, Regression, regressions};
pub use rows::{Cell, Figures, Row, State};

use crate::{Error, Result, bench::schema_text};

/// Records side by side.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(title = "foveate comparison")]
pub struct Comparison {
    /// A column for each device of each record. The first one is the reference.
    pub columns: Vec<Column>,
    /// A row for each workload, in the order of the first record that has it.
    pub rows: Vec<Row>,
    /// Geometric means of the ratios, per op, and over all of them (`op` is none) at the end.
    pub means: Vec<Mean>,
}

/// Geometric means of the ratios of some rows of a column.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Mean {
    /// The op; none for all.
    pub op: Option<String>,
    /// Place of the column.
    pub column: usize,
    /// How many rows have ratios.
    pub rows: usize,
    /// Of the ratios of times.
    pub time: f64,
    /// Of the ratios at equal pace.
    pub paced: f64,
}

impl Comparison {
    /// Puts records side by side. Each source is a column or, with several devices, several.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no device to compare, or but one.
    pub fn new(sources: &[Source]) -> Result<Self> {
        let devices = columns::devices(sources);
        if devices.len() < 2 {
            return Err(Error::invalid(
                "records",
                format!("{} device in all", devices.len()),
                "give two records, or one of several devices (foveate bench --adapter all)",
            ));
        }
        let mut rows = rows::rows(&devices);
        flags::mark(&devices, &mut rows);
        let means = means(devices.len(), &rows);
        Ok(Self {
            columns: devices.into_iter().map(|device| device.column).collect(),
            rows,
            means,
        })
    }

    /// The schema of comparisons, as JSON.
    ///
    /// # Errors
    /// [`Error::File`] when there is no JSON of it.
    pub fn schema() -> Result<String> {
        schema_text(&schemars::schema_for!(Self))
    }
}

/// Ops in the order of the rows, each with the means of every column, then all ops together.
fn means(columns: usize, rows: &[Row]) -> Vec<Mean> {
    let mut ops: Vec<Option<&str>> = Vec::new();
    for row in rows {
        if !ops.contains(&Some(row.op.as_str())) {
            ops.push(Some(&row.op));
        }
    }
    if ops.len() > 1 {
        ops.push(None);
    }
    let mut means = Vec::new();
    for op in ops {
        for column in 0..columns {
            let ratios: Vec<&Ratios> = rows
                .iter()
                .filter(|row| op.is_none_or(|op| op == row.op))
                .filter_map(|row| row.cells.get(column)?.ratios.as_ref())
                .collect();
            if ratios.is_empty() {
                continue;
            }
            means.push(Mean {
                op: op.map(str::to_owned),
                column,
                rows: ratios.len(),
                time: ratio::geometric_mean(ratios.iter().map(|ratios| ratios.time.ratio)),
                paced: ratio::geometric_mean(ratios.iter().map(|ratios| ratios.paced.ratio)),
            });
        }
    }
    means
}
