//! `foveate tune`: the ways to run ops, timed on this adapter.

use std::process::ExitCode;

use serde::Serialize;

use super::{
    Globals,
    output::{note, print, print_json},
    suite::Suite,
};
use crate::{
    Result,
    tune::{Failed, Timed, Tuned},
};

/// Arguments of `foveate tune`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    suite: Suite,
    /// Candidates of each workload that are timed, those that should cost least first.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    limit: u32,
}

#[derive(Serialize)]
struct Row<'a> {
    kind: &'static str,
    workload: &'a str,
    #[serde(flatten)]
    tuned: &'a Tuned,
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let workloads = args.suite.workloads()?;
    let gpu = super::open(globals)?;
    let progress = super::progress(workloads.len() as u64, globals);
    for workload in &workloads {
        progress.set_message(workload.name().to_owned());
        let engine = gpu.engine();
        let list = engine.tune(gpu.queue(), &[workload.op()], args.limit as usize)?;
        // One file is written after each, so that an interrupted run keeps what it has.
        engine.save_cache()?;
        progress.inc(1);
        for tuned in &list {
            if globals.json {
                print_json(&Row {
                    kind: "tuned",
                    workload: workload.name(),
                    tuned,
                })?;
            } else {
                progress.suspend(|| {
                    print(format!(
                        "{}: {}\n{}",
                        workload.name(),
                        tuned.bucket,
                        table(tuned)
                    ))
                })?;
            }
        }
    }
    progress.finish_and_clear();
    if globals.cache.is_none() {
        note(
            "not kept: give a folder with --cache or FOVEATE_CACHE, which bench, run and verify then use",
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn table(tuned: &Tuned) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["candidate", "ms", "estimated", "first, with compilation"]);
    for Timed {
        tuning,
        estimated_ms,
        ms,
        first_ms,
    } in &tuned.timed
    {
        table.add_row([
            tuning.to_string(),
            format!("{ms:.2}"),
            format!("{estimated_ms:.2}"),
            format!("{first_ms:.0}"),
        ]);
    }
    for Failed { tuning, reason } in &tuned.failed {
        table.add_row([
            tuning.to_string(),
            "failed".into(),
            reason.clone(),
            String::new(),
        ]);
    }
    table
}
