//! A workload with its input files and the right result.

use std::{
    fs,
    path::{Path, PathBuf},
};

use foveate::{
    bench::{Cost, Expected, Workload, cost},
    reference,
};
use serde::Deserialize;
use tempfile::TempDir;

use crate::{Error, Result, protocol::Job};

/// A workload, its inputs in files, and what should come out.
#[derive(Debug)]
pub struct Task {
    /// The workload.
    pub workload: Workload,
    /// What it costs at least.
    pub cost: Cost,
    expected: Expected,
    inputs: Vec<PathBuf>,
    folder: TempDir,
}

impl Task {
    /// Makes the inputs, and computes the result in f64.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be written.
    pub fn new(workload: &Workload) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("foveate-peers-")
            .tempdir()
            .map_err(|error| Error::file(&std::env::temp_dir(), error))?;
        let data = workload.inputs(0);
        let mut inputs = Vec::new();
        for (place, tensor) in data.iter().enumerate() {
            let path = folder.path().join(format!("input{place}.f32"));
            write(&path, tensor)?;
            inputs.push(path);
        }
        Ok(Self {
            workload: workload.clone(),
            cost: cost(&workload.op()),
            expected: workload.expected(&data),
            inputs,
            folder,
        })
    }

    /// The job of a worker.
    pub fn job(&self, worker: &str, variant: &str) -> Job {
        Job {
            workload: self.workload.clone(),
            variant: variant.into(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            inputs: self.inputs.clone(),
            output: self.folder.path().join(format!("{worker}-{variant}.f32")),
        }
    }

    /// The error of the result that a worker has left; infinite when it left none.
    pub fn error(&self, job: &Job) -> f64 {
        read(&job.output).map_or(f64::INFINITY, |output| {
            reference::error(&output, &self.expected.values)
        })
    }

    /// The most that an error may be.
    pub fn err_limit(&self) -> f64 {
        self.expected.err_limit
    }
}

/// Reads a file of little-endian f32.
///
/// # Errors
/// [`Error::File`].
pub fn read(path: &Path) -> Result<Vec<f32>> {
    let bytes = fs::read(path).map_err(|error| Error::file(path, error))?;
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Error::file(path, "is not a whole number of f32"));
    }
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

/// Writes a file of little-endian f32.
///
/// # Errors
/// [`Error::File`].
pub fn write(path: &Path, data: &[f32]) -> Result<()> {
    let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    fs::write(path, bytes).map_err(|error| Error::file(path, error))
}

/// The library's version.
pub fn foveate_version() -> String {
    #[derive(Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        version: String,
    }
    toml::from_str(include_str!("../../../Cargo.toml"))
        .map_or_else(|_| "unknown".into(), |file: Manifest| file.package.version)
}
