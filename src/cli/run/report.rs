//! What `foveate run` has to say.

use serde::Serialize;

use crate::{DType, Op, Schedule, bench};

/// The figures that `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    pub(super) adapter: &'a str,
    pub(super) backend: String,
    pub(super) op: &'a Op,
    pub(super) schedule: Schedule,
    pub(super) scratch_bytes: u64,
    pub(super) out: String,
    pub(super) outputs: Vec<Written>,
    /// What was converted or left out on the way.
    pub(super) notes: &'a [String],
    pub(super) timing: Option<bench::Timing>,
    pub(super) gflops: Option<f64>,
    pub(super) gbps: Option<f64>,
    pub(super) plan: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Written {
    pub(super) name: &'static str,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
}

impl Report<'_> {
    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!(
            "{} through {}, schedule {}",
            self.adapter, self.backend, self.schedule
        )];
        if let Some(plan) = &self.plan {
            lines.push(plan.trim_end().to_owned());
        }
        if let Some(timing) = &self.timing {
            let spread = |name: &str, spread: &bench::Spread| {
                format!(
                    "{name}: median {:.3} ms, p10 {:.3} ms, p90 {:.3} ms of {} runs",
                    spread.median, spread.p10, spread.p90, spread.runs
                )
            };
            lines.extend(timing.gpu.as_ref().map(|gpu| spread("GPU time", gpu)));
            lines.push(spread("wall time", &timing.wall));
        }
        if let (Some(gflops), Some(gbps)) = (self.gflops, self.gbps) {
            lines.push(format!("{gflops:.1} GFLOP/s, {gbps:.2} GB/s"));
        }
        for written in &self.outputs {
            lines.push(format!(
                "{}: {} {:?} in {}",
                written.name, written.dtype, written.shape, self.out
            ));
        }
        lines.join("\n")
    }
}
