//! Rows, the table, and the best peer.

use comfy_table::{Table, presets};
use foveate::{
    DType,
    bench::{Spread, Workload},
};
use serde::Serialize;

use crate::{
    compare::OWN,
    peer::{Kind, Peer},
};

/// One peer, in one of its variants, on one workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    kind: &'static str,
    workload: String,
    shape: String,
    dtype: DType,
    /// The peer's name.
    pub peer: String,
    /// Which of its ways.
    pub variant: String,
    /// What it is compared as; `None` for foveate's own failures.
    pub compared_as: Option<Kind>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Numbers, of a result that may be wrong.
    Measured(Box<Measured>),
    /// None.
    Failed {
        /// Why.
        failed: String,
        /// Who it is up to.
        cause: Cause,
    },
}

/// Who a failure is up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The peer is not set up.
    Missing,
    /// The peer cannot do it, or broke.
    Peer,
    /// foveate's side broke.
    Foveate,
}

impl Outcome {
    /// A failure.
    pub fn failed(cause: Cause, failed: impl Into<String>) -> Self {
        Self::Failed {
            failed: failed.into(),
            cause,
        }
    }
}

/// Both sides, measured in turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The peer's version.
    pub version: String,
    /// The peer's device, in its own words.
    pub device: String,
    /// Median of foveate's wall times.
    pub foveate_ms: f64,
    /// Median of the peer's.
    pub peer_ms: f64,
    /// The peer's time over foveate's, pair by pair.
    pub ratio: Spread,
    /// GFLOP/s at the medians.
    pub gflops: Both,
    /// GB/s at the medians, each input read once and each output written once.
    pub gbps: Both,
    /// `max |o - reference| / RMS(reference)` against f64.
    pub err: Both,
    /// How foveate did it.
    pub foveate_note: String,
    /// The most that an error may be.
    pub err_limit: f64,
    /// Whether the peer's result is right.
    pub right: bool,
    /// Whether foveate's is.
    pub foveate_right: bool,
    /// What a copy reaches on the peer's device, bytes read plus written.
    pub copy_gbps: Option<f64>,
    /// Cores that other processes kept busy meanwhile.
    pub other_cores: Option<f64>,
    /// What a reader should know.
    pub note: String,
}

/// Cores kept busy by others past which a row is not to be trusted.
const BUSY: f64 = 0.3;

/// A number of each side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Both {
    /// foveate's.
    pub foveate: f64,
    /// The peer's.
    pub peer: f64,
}

impl Measured {
    /// What the table says of it in words.
    fn marks(&self) -> String {
        let busy = self.other_cores.is_some_and(|cores| cores > BUSY);
        let marks = [(!self.right, "WRONG"), (busy, "others busy")];
        let marks: Vec<&str> = marks
            .into_iter()
            .filter_map(|(holds, mark)| holds.then_some(mark))
            .collect();
        marks.join(", ")
    }

    /// Adds to the note.
    pub fn remark(&mut self, text: &str) {
        if !self.note.is_empty() && !text.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(text);
    }
}

impl Row {
    /// A row.
    pub fn new(workload: &Workload, peer: &Peer, variant: &str, outcome: Outcome) -> Self {
        Self {
            peer: peer.name.clone(),
            variant: variant.into(),
            compared_as: Some(peer.kind),
            ..Self::of_own(workload, outcome)
        }
    }

    /// A row of foveate alone.
    pub fn of_own(workload: &Workload, outcome: Outcome) -> Self {
        Self {
            kind: "row",
            workload: workload.name().into(),
            shape: workload.describe(),
            dtype: workload.dtype(),
            peer: OWN.into(),
            variant: OWN.into(),
            compared_as: None,
            outcome,
        }
    }

    /// Whether foveate ran, and was right.
    pub fn foveate_is_well(&self) -> bool {
        match &self.outcome {
            Outcome::Measured(measured) => measured.foveate_right,
            Outcome::Failed { cause, .. } => *cause != Cause::Foveate,
        }
    }

    /// The numbers, where there are any.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed { .. } => None,
        }
    }
}

/// The fastest portable peer, among those whose result is right: a wrong one is never the best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Best {
    kind: &'static str,
    workload: String,
    dtype: DType,
    /// The peer; `None` when no portable one was right.
    pub best: Option<Ranked>,
    /// Portable peers that were faster, or ran at all where there is no best, and wrong.
    pub faster_but_wrong: Vec<Ranked>,
}

/// A peer and how it did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranked {
    /// The peer's name.
    pub peer: String,
    /// Which of its ways.
    pub variant: String,
    /// Its time over foveate's, pair by pair.
    pub ratio: Spread,
    /// Its error.
    pub err: f64,
}

impl Best {
    /// The best among the rows of one workload; `None` of no rows.
    pub fn of(rows: &[Row]) -> Option<Self> {
        let first = rows.first()?;
        let mut ranked: Vec<(&Row, &Measured)> = rows
            .iter()
            .filter(|row| row.compared_as == Some(Kind::Portable))
            .filter_map(|row| Some((row, row.measured()?)))
            .collect();
        ranked.sort_by(|(_, a), (_, b)| a.ratio.median.total_cmp(&b.ratio.median));
        let mut places = ranked.into_iter().map(|(row, measured)| {
            let ranked = Ranked {
                peer: row.peer.clone(),
                variant: row.variant.clone(),
                ratio: measured.ratio,
                err: measured.err.peer,
            };
            (ranked, measured.right)
        });
        let mut faster_but_wrong = Vec::new();
        let best = places.find_map(|(place, right)| {
            if right {
                return Some(place);
            }
            faster_but_wrong.push(place);
            None
        });
        Some(Self {
            kind: "best",
            workload: first.workload.clone(),
            dtype: first.dtype,
            best,
            faster_but_wrong,
        })
    }

    /// The same in words.
    pub fn words(&self) -> String {
        let mut lines = vec![match &self.best {
            Some(best) => format!(
                "best portable peer with a right result: {} {}, {:.2} times foveate's time (p10-p90 {:.2}-{:.2})",
                best.peer, best.variant, best.ratio.median, best.ratio.p10, best.ratio.p90
            ),
            None => "no portable peer gave a right result".into(),
        }];
        for place in &self.faster_but_wrong {
            lines.push(format!(
                "not counted: {} {}, {:.2} times foveate's time, with an error of {:.1e}",
                place.peer, place.variant, place.ratio.median, place.err
            ));
        }
        lines.join("\n")
    }
}

/// The rows of one workload, for people.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "peer",
        "as",
        "ms",
        "foveate ms",
        "ratio",
        "p10-p90",
        "GFLOP/s",
        "GB/s",
        "error",
        "others",
        "",
    ]);
    let mut failures = Vec::new();
    for row in rows {
        let name = format!("{} {}", row.peer, row.variant);
        match &row.outcome {
            Outcome::Measured(m) => {
                table.add_row([
                    name,
                    row.compared_as
                        .map_or_else(String::new, |kind| kind.to_string()),
                    format!("{:.2}", m.peer_ms),
                    format!("{:.2}", m.foveate_ms),
                    format!("{:.2}", m.ratio.median),
                    format!("{:.2}-{:.2}", m.ratio.p10, m.ratio.p90),
                    format!("{:.1}", m.gflops.peer),
                    format!("{:.2}", m.gbps.peer),
                    format!("{:.1e}", m.err.peer),
                    m.other_cores
                        .map_or_else(String::new, |cores| format!("{cores:.2}")),
                    m.marks(),
                ]);
            }
            Outcome::Failed { failed, .. } => failures.push(format!("{name}: {failed}")),
        }
    }
    let mut text = rows.first().map_or_else(String::new, |row| {
        format!("{}: {}", row.workload, row.shape)
    });
    if let Some(measured) = rows.iter().find_map(Row::measured) {
        let wrong = if measured.foveate_right {
            ""
        } else {
            ": WRONG"
        };
        text += &format!(
            "; foveate: {}, error {:.1e}, at most {:.1e} is right{wrong}\n{table}",
            measured.foveate_note, measured.err.foveate, measured.err_limit
        );
    }
    for failure in failures {
        text += "\n";
        text += &failure;
    }
    text
}

/// The versions and devices of the peers that ran, one a line.
pub fn versions(rows: &[Row]) -> String {
    let mut lines: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let measured = row.measured()?;
            let copy = measured
                .copy_gbps
                .map_or_else(String::new, |gbps| format!(", copy {gbps:.0} GB/s"));
            Some(format!(
                "{} {}: {}{copy}",
                row.peer, measured.version, measured.device
            ))
        })
        .collect();
    lines.sort();
    lines.dedup_by(|a, b| a.split(": ").next() == b.split(": ").next());
    lines.join("\n")
}
