//! The workloads that `bench` and `tune` are asked for.

use std::{fs, path::PathBuf};

use crate::{Error, Result, bench::Workload};

const SHAPES: &str = include_str!("../../benches/shapes.toml");

/// Arguments that choose workloads.
#[derive(Debug, clap::Args)]
pub(super) struct Suite {
    /// Workloads of the suite, by letter.
    #[arg(long, default_value = "abcde", conflicts_with = "shapes")]
    suite: String,
    /// TOML file of workloads, of the form of benches/shapes.toml, instead of the suite.
    #[arg(long)]
    shapes: Option<PathBuf>,
}

impl Suite {
    pub fn workloads(&self) -> Result<Vec<Workload>> {
        if let Some(path) = &self.shapes {
            let text = fs::read_to_string(path)
                .map_err(|error| Error::file(path, format!("{error}; check the path")))?;
            return Workload::parse(&text).map_err(|error| Error::file(path, error));
        }
        let all = Workload::parse(SHAPES)?;
        if self.suite.is_empty() {
            return Err(Error::invalid(
                "--suite",
                "is empty",
                "give letters of the suite, as abcde",
            ));
        }
        self.suite
            .to_uppercase()
            .chars()
            .map(|letter| {
                all.iter()
                    .find(|workload| workload.name() == letter.to_string())
                    .cloned()
                    .ok_or_else(|| {
                        let names: Vec<&str> = all.iter().map(Workload::name).collect();
                        Error::invalid(
                            "--suite",
                            format!("no workload is called {letter}"),
                            format!("choose among {}", names.join(", ")),
                        )
                    })
            })
            .collect()
    }
}
