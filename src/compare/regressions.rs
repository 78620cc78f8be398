//! Whether something became worse.

use std::fmt;

use super::{Against, By, Comparison, Interval, State};
use crate::{Error, Result, bench::Spread};

/// Something that became worse.
#[derive(Debug, Clone, PartialEq)]
pub struct Regression {
    /// The column.
    pub column: String,
    /// The workload; none where the column as a whole is of no use.
    pub workload: Option<String>,
    /// What it is.
    pub cause: Cause,
}

/// What became worse.
#[derive(Debug, Clone, PartialEq)]
pub enum Cause {
    /// Slower, with the whole interval past the limit.
    Slower(Interval),
    /// It was right, and is not.
    Lost(State),
    /// It is right in both, and its runs give no ratio.
    NoRatio,
    /// No row could be compared.
    NothingPaired,
}

impl fmt::Display for Regression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload = self.workload.as_deref().unwrap_or("all rows");
        write!(f, "{}, {workload}: ", self.column)?;
        match &self.cause {
            Cause::Slower(Interval { ratio, low, high }) => {
                write!(f, "{ratio:.3} of the reference ({low:.3} to {high:.3})")
            }
            Cause::Lost(state) => write!(f, "was right, is {}", state.word()),
            Cause::NoRatio => write!(f, "is right in both records, but has no times to compare"),
            Cause::NothingPaired => write!(f, "no row is right in both records"),
        }
    }
}

/// What a limit found, and how much it could see.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// What became worse.
    pub worse: Vec<Regression>,
    /// Rows that were compared.
    pub compared: usize,
    /// Half the width of the intervals, as a part of the ratio: the median of those that have one.
    pub half_width: Option<f64>,
    /// Rows without an interval, or with one so wide that a slowdown by the limit, twice in a row, would not show.
    pub too_noisy: usize,
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            compared,
            half_width,
            too_noisy,
            ..
        } = self;
        write!(f, "{compared} rows compared, ")?;
        match half_width {
            Some(half) => write!(f, "median interval +-{:.1} %, ", half * 100.0)?,
            None => write!(f, "none with an interval, ")?,
        }
        write!(f, "{too_noisy} rows too noisy for this limit")
    }
}

/// What became worse by more than a part of `limit` (0.1 of 10 %), in every record after the first, or, of a single
/// record, in every device after the first. A row is slower only when the lower end of its interval is past the limit.
/// A device that the first record does not have is compared with nothing, and does not fail.
///
/// # Errors
/// [`Error::Invalid`] for a limit that is none.
pub fn regressions(comparison: &Comparison, limit: f64, by: By) -> Result<Gate> {
    if !(limit.is_finite() && limit >= 0.0) {
        return Err(Error::invalid(
            "limit",
            limit.to_string(),
            "give a share of 0 or more, as 10%",
        ));
    }
    let several = comparison.columns.iter().any(|column| column.source > 0);
    let mut worse = Vec::new();
    let mut intervals: Vec<Interval> = Vec::new();
    for (place, column) in comparison.columns.iter().enumerate() {
        if several && column.source == 0 {
            // A device of the first record that no later one has: what was right there is gone.
            let followed = comparison.columns.iter().any(|later| {
                later.source > 0 && later.against == Against::Same && later.reference == Some(place)
            });
            if !followed {
                worse.push(Regression {
                    column: column.label.clone(),
                    workload: None,
                    cause: Cause::Lost(State::Missing),
                });
            }
            continue;
        }
        let Some(reference) = column.reference else {
            continue;
        };
        let before = intervals.len();
        for row in &comparison.rows {
            let (Some(was), Some(now)) = (row.cells.get(reference), row.cells.get(place)) else {
                continue;
            };
            let cause = match (now.ratios, was.state, now.state) {
                (Some(ratios), ..) => {
                    let interval = ratios.by(by);
                    intervals.push(interval);
                    (interval.low > 1.0 + limit).then_some(Cause::Slower(interval))
                }
                (None, State::Right, State::Right) => Some(Cause::NoRatio),
                (None, State::Right, state) => Some(Cause::Lost(state)),
                (None, ..) => None,
            };
            worse.extend(cause.map(|cause| Regression {
                column: column.label.clone(),
                workload: Some(row.workload.clone()),
                cause,
            }));
        }
        if intervals.len() == before {
            worse.push(Regression {
                column: column.label.clone(),
                workload: None,
                cause: Cause::NothingPaired,
            });
        }
    }
    let known = intervals.iter().filter(|interval| interval.is_known());
    let halves = known.map(|Interval { ratio, low, high }| (high - low) / 2.0 / ratio);
    Ok(Gate {
        worse,
        compared: intervals.len(),
        half_width: Spread::of(halves.collect()).map(|spread| spread.median),
        too_noisy: intervals
            .iter()
            .filter(|Interval { ratio, low, .. }| *low * (1.0 + limit) < *ratio)
            .count(),
    })
}
