//! The workloads that `bench` and `tune` are asked for.

use std::path::PathBuf;

use crate::{Result, bench::Workload};

/// Arguments that choose workloads.
#[derive(Debug, clap::Args)]
pub(super) struct Suite {
    /// Workloads: `quick` (under two minutes on a software device), `full` (long), or letters of
    /// benches/shapes.toml.
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

    /// What the suite is called.
    pub fn name(&self) -> String {
        let file = self.shapes.as_ref().and_then(|path| path.file_name());
        file.map_or_else(
            || self.suite.clone(),
            |name| name.to_string_lossy().into_owned(),
        )
    }
}
