//! The `foveate` program.

mod bench;
mod compare;
mod demo;
mod export;
mod info;
mod output;
mod run;
mod suite;
mod tensor_file;
mod tune;
mod verify;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{ADAPTER_VARIABLE, Error, Gpu, Result, Schedule, adapters, choose};

/// Attention on any GPU: look at adapters, run ops, check and time them.
#[derive(Debug, Parser)]
#[command(name = "foveate", version, about)]
struct Program {
    /// Adapter to use: a number, or a part of its name, vendor, driver or backend; `all` has `bench`
    /// take every adapter in turn. Default: the environment variable FOVEATE_ADAPTER; without it,
    /// `info` and `demo` take every adapter, the other commands a real GPU before software.
    #[arg(long, global = true)]
    adapter: Option<String>,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    /// Folder of the table that `tune` writes, and that plans of `bench`, `run` and `verify` then go by.
    /// Default: the environment variable FOVEATE_CACHE; without it, there is none.
    #[arg(long, global = true, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show adapters, drivers, features, limits and measured facts.
    Info(info::Args),
    /// Run an op on tensors from files.
    Run(Box<run::Args>),
    /// Check that a GPU and its driver compute right.
    Verify(verify::Args),
    /// Time ops beside the adapter's own ceilings.
    Bench(bench::Args),
    /// Put records of `bench` side by side, and find what became slower.
    Compare(compare::Args),
    /// Time the ways to run ops on this adapter, and remember the fastest.
    Tune(tune::Args),
    /// Write a plan as JSON that any WebGPU host can execute, browsers among them.
    Export(Box<export::Args>),
    /// Attention of a real sentence encoder on every adapter, with a page to look at.
    Demo(demo::Args),
}

/// What all commands share.
#[derive(Debug, Clone)]
struct Globals {
    /// The adapter asked for, by argument or by variable.
    adapter: Option<String>,
    json: bool,
    cache: Option<PathBuf>,
}

/// A schedule of attention, as an argument.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum AttentionSchedule {
    /// Few rows, keys of its own for each lane.
    Decode,
    /// Lanes own rows; keys and values go round by broadcast.
    Subgroup,
    /// Cooperative matrices, where the device has them.
    Matrix,
    /// Tiles in workgroup memory; needs no subgroups.
    Tile,
}

impl From<AttentionSchedule> for Schedule {
    fn from(schedule: AttentionSchedule) -> Self {
        match schedule {
            AttentionSchedule::Decode => Self::Decode,
            AttentionSchedule::Subgroup => Self::Subgroup,
            AttentionSchedule::Matrix => Self::Matrix,
            AttentionSchedule::Tile => Self::Tile,
        }
    }
}

/// Runs the program. Exit code 0: all well; 1: something failed, or did not verify; 2: wrong
/// usage, that is an argument, or the shape or type of a tensor, that cannot be right.
pub fn main() -> ExitCode {
    // EGL reports each display that it tries in vain, on machines where all is well.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(
        "warn,wgpu=error,wgpu_hal=error,wgpu_core=error,wgpu_hal::gles::egl=off",
    ))
    .init();
    let program = Program::parse();
    let globals = Globals {
        adapter: program
            .adapter
            .or_else(|| std::env::var(ADAPTER_VARIABLE).ok()),
        json: program.json,
        cache: program
            .cache
            .or_else(|| std::env::var_os(CACHE_VARIABLE).map(PathBuf::from)),
    };
    let result = match program.command {
        Command::Info(args) => info::run(&args, &globals),
        Command::Run(args) => run::run(&args, &globals),
        Command::Verify(args) => verify::run(&args, &globals),
        Command::Bench(args) => bench::run(&args, &globals),
        Command::Compare(args) => compare::run(&args, &globals),
        Command::Tune(args) => tune::run(&args, &globals),
        Command::Export(args) => export::run(&args, &globals),
        Command::Demo(args) => demo::run(&args, &globals),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::note(&error);
            match error {
                Error::Invalid { .. } => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Environment variable that names the folder of the cache.
const CACHE_VARIABLE: &str = "FOVEATE_CACHE";

/// Opens the adapter that the arguments choose, with their cache, and measures what cannot be asked
/// of it.
fn open(globals: &Globals) -> Result<Gpu> {
    let adapter = choose(&adapters(), globals.adapter.as_deref())?;
    open_on(&adapter, globals.cache.as_deref())
}

/// What `--adapter` says for every adapter, where a command takes several.
const EVERY_ADAPTER: &str = "all";

/// The adapter that the arguments choose, or all of them.
fn one_or_all(globals: &Globals) -> Result<Vec<wgpu::Adapter>> {
    let found = adapters();
    match globals.adapter.as_deref() {
        Some(choice) if choice.eq_ignore_ascii_case(EVERY_ADAPTER) && !found.is_empty() => {
            Ok(found)
        }
        choice => Ok(vec![choose(&found, choice)?]),
    }
}

/// Opens an adapter, and measures what cannot be asked of it.
fn open_on(adapter: &wgpu::Adapter, cache: Option<&Path>) -> Result<Gpu> {
    let features = Gpu::wanted_features();
    let mut gpu = Gpu::with(adapter, features, adapter.limits(), cache)?;
    gpu.measure()?;
    Ok(gpu)
}

/// A progress bar on stderr; hidden where nobody looks.
fn progress(steps: u64, globals: &Globals) -> indicatif::ProgressBar {
    if globals.json {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    indicatif::ProgressBar::new(steps).with_style(style)
}
