//! What is said to a worker, and what it answers: one line of JSON each, but for the word `run`.

use std::path::PathBuf;

use foveate::bench::Workload;
use serde::{Deserialize, Serialize};

/// The word that asks for one run.
pub const RUN: &str = "run";

/// The first line that a worker reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// What to compute.
    pub workload: Workload,
    /// In which of the peer's ways.
    pub variant: String,
    /// Threads of a worker that computes on the CPU.
    pub threads: usize,
    /// Files of little-endian f32, contiguous, in the order of the op: q, k, v, or x.
    pub inputs: Vec<PathBuf>,
    /// The file in which the worker leaves its result, of the same kind.
    pub output: PathBuf,
}

/// A line that a worker prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// The worker is warm, and its result is in the file.
    Ready(Ready),
    /// How long the run took.
    Run {
        /// Wall time from submission to the end of the wait.
        ms: f64,
    },
    /// The worker cannot do it.
    Failed {
        /// Why.
        failed: String,
        /// Whether that is because the peer is not set up.
        #[serde(default)]
        missing: bool,
    },
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Ready {
    /// Always true: tells it from other lines.
    pub ready: bool,
    /// The peer's version.
    pub version: String,
    /// The device that it runs on, in its own words.
    pub device: String,
    /// What a reader of its row should know.
    #[serde(default)]
    pub note: String,
    /// What a copy on its device reaches, bytes read plus written, where it measured that.
    #[serde(default)]
    pub copy_gbps: Option<f64>,
}
