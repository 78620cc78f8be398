//! The workloads that `bench` and `tune` are asked for.

use std::path::PathBuf;

use crate::{Result, bench::Workload};

/// Arguments that choose workloads.
#[derive(Debug, clap::Args)]
pub(super) struct Suite {
    /// Workloads of the suite, by letter.
    #[arg(long, default_value = "abcdef", conflicts_with = "shapes")]
    suite: String,
    /// TOML file of workloads, of the form of benches/shapes.toml, instead of the suite.
    #[arg(long)]
    shapes: Option<PathBuf>,
}

impl Suite {
    pub fn workloads(&self) -> Result<Vec<Workload>> {
        Workload::choose(&self.suite, self.shapes.as_deref())
    }
}
