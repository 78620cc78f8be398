//! Whether something became worse.

use std::fmt;

use super::{By, Comparison, Interval, State};
use crate::{Error, Result};

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
            Cause::NothingPaired => write!(f, "no row is right in both records"),
        }
    }
}

/// What became worse by more than a part of `limit` (0.1 of 10 %), in every record after the first, or, of a single
/// record, in every device after the first. A row is slower only when the lower end of its interval is past the limit.
///
/// # Errors
/// [`Error::Invalid`] for a limit that is none.
pub fn regressions(comparison: &Comparison, limit: f64, by: By) -> Result<Vec<Regression>> {
    if !(limit.is_finite() && limit >= 0.0) {
        return Err(Error::invalid(
            "limit",
            limit.to_string(),
            "give a share of 0 or more, as 10%",
        ));
    }
    let several = comparison.columns.iter().any(|column| column.source > 0);
    let mut found = Vec::new();
    for (place, column) in comparison.columns.iter().enumerate() {
        if several && column.source == 0 {
            // A device of the first record that no later one has: what was right there is gone.
            let followed = comparison
                .columns
                .iter()
                .any(|later| later.source > 0 && later.reference == Some(place));
            if !followed {
                found.push(Regression {
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
        let mut paired = 0;
        for row in &comparison.rows {
            let (Some(before), Some(now)) = (row.cells.get(reference), row.cells.get(place)) else {
                continue;
            };
            let cause = match now.ratios {
                Some(ratios) => {
                    paired += 1;
                    let interval = ratios.by(by);
                    (interval.low > 1.0 + limit).then_some(Cause::Slower(interval))
                }
                None => (before.state == State::Right).then_some(Cause::Lost(now.state)),
            };
            found.extend(cause.map(|cause| Regression {
                column: column.label.clone(),
                workload: Some(row.workload.clone()),
                cause,
            }));
        }
        if paired == 0 {
            found.push(Regression {
                column: column.label.clone(),
                workload: None,
                cause: Cause::NothingPaired,
            });
        }
    }
    Ok(found)
}
