//! The `foveate` program.

mod bench;
mod demo;
mod info;
mod run;
mod verify;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{Error, Result};

/// Attention on any GPU: look at adapters, run ops, check and time them.
#[derive(Debug, Parser)]
#[command(name = "foveate", version, about)]
struct Program {
    /// Adapter to use: a number, or a part of its name, driver or backend. Default: the
    /// environment variable FOVEATE_ADAPTER, else a real GPU before software.
    #[arg(long, global = true)]
    adapter: Option<String>,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show adapters, drivers, features, limits and measured facts.
    Info(info::Args),
    /// Run an op on tensors from files.
    Run(run::Args),
    /// Check that a GPU and its driver compute right.
    Verify(verify::Args),
    /// Time ops beside the adapter's own ceilings.
    Bench(bench::Args),
    /// Attention of a real sentence encoder on every adapter, with a page to look at.
    Demo(demo::Args),
}

/// What all commands share.
#[derive(Debug, Clone)]
struct Globals {
    adapter: Option<String>,
    json: bool,
}

/// Runs the program. Exit code 0: all well; 1: something failed, or did not verify; 2: wrong usage.
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(
        "warn,wgpu=error,wgpu_hal=error,wgpu_hal::gles::egl=off,wgpu_core=error",
    ))
    .init();
    let program = Program::parse();
    let globals = Globals {
        adapter: program.adapter,
        json: program.json,
    };
    let result = match program.command {
        Command::Info(args) => info::run(&args, &globals),
        Command::Run(args) => run::run(&args, &globals),
        Command::Verify(args) => verify::run(&args, &globals),
        Command::Bench(args) => bench::run(&args, &globals),
        Command::Demo(args) => demo::run(&args, &globals),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("foveate: {error}");
            ExitCode::FAILURE
        }
    }
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

/// Prints text and a line break. A reader that has gone away is no error.
fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::file("standard output", error))
        }
        _ => Ok(()),
    }
}

/// Prints a value as one line of JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string(value).map_err(|error| Error::file("standard output", error))?;
    print(&text)
}
