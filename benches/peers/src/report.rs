//! Rows, the table, and the best peer.

use comfy_table::{ContentArrangement, Table, presets};
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
        /// Whether the peer is just not set up.
        missing: bool,
    },
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
    /// Cores that the side which waited kept busy.
    pub waiting_cores: Option<f64>,
    /// What a reader should know.
    pub note: String,
}

/// A number of each side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Both {
    /// foveate's.
    pub foveate: f64,
    /// The peer's.
    pub peer: f64,
}

impl Measured {
    /// Adds to the note.
    pub fn note(&mut self, text: &str) {
        if !self.note.is_empty() {
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
            dtype: dtype(workload),
            peer: OWN.into(),
            variant: OWN.into(),
            compared_as: None,
            outcome,
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

/// The storage of a workload.
pub fn dtype(workload: &Workload) -> DType {
    match workload {
        Workload::Attention(shape) => shape.dtype,
        Workload::Softmax(shape) => shape.dtype,
    }
}

/// The fastest portable peer, among those whose result is right: a wrong one is never the best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Best {
    kind: &'static str,
    workload: String,
    dtype: DType,
    /// The peer's name.
    pub peer: String,
    /// Which of its ways.
    pub variant: String,
    /// Its time over foveate's, pair by pair.
    pub ratio: Spread,
}

impl Best {
    /// The best among the rows of one workload; `None` when no portable peer is right.
    pub fn of(rows: &[Row]) -> Option<Self> {
        let (row, measured) = rows
            .iter()
            .filter(|row| row.compared_as == Some(Kind::Portable))
            .filter_map(|row| Some((row, row.measured()?)))
            .filter(|(_, measured)| measured.right)
            .min_by(|(_, a), (_, b)| a.ratio.median.total_cmp(&b.ratio.median))?;
        Some(Self {
            kind: "best",
            workload: row.workload.clone(),
            dtype: row.dtype,
            peer: row.peer.clone(),
            variant: row.variant.clone(),
            ratio: measured.ratio,
        })
    }
}

/// The rows of one workload, for people.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
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
    for row in rows {
        let name = format!("{} {}", row.peer, row.variant);
        let compared_as = match row.compared_as {
            Some(Kind::Portable) => "portable",
            Some(Kind::Yardstick) => "yardstick",
            None => "",
        };
        match &row.outcome {
            Outcome::Measured(m) => table.add_row([
                name,
                compared_as.into(),
                format!("{:.2}", m.peer_ms),
                format!("{:.2}", m.foveate_ms),
                format!("{:.2}", m.ratio.median),
                format!("{:.2}-{:.2}", m.ratio.p10, m.ratio.p90),
                format!("{:.1}", m.gflops.peer),
                format!("{:.2}", m.gbps.peer),
                format!("{:.1e}", m.err.peer),
                m.other_cores
                    .map_or_else(String::new, |cores| format!("{cores:.2}")),
                if m.right { "" } else { "WRONG" }.into(),
            ]),
            Outcome::Failed { failed, .. } => {
                let mut cells = vec![name, compared_as.into()];
                cells.resize(10, String::new());
                cells.push(failed.clone());
                table.add_row(cells)
            }
        };
    }
    let title = rows.first().map_or_else(String::new, |row| {
        format!("{}: {}", row.workload, row.shape)
    });
    let own = rows.iter().find_map(Row::measured).map(|measured| {
        let wrong = if measured.foveate_right {
            ""
        } else {
            ": WRONG"
        };
        format!(
            "; foveate: {}, error {:.1e}, at most {:.1e} is right{wrong}",
            measured.foveate_note, measured.err.foveate, measured.err_limit
        )
    });
    format!("{title}{}\n{table}", own.unwrap_or_default())
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
