//! `foveate verify`

use std::{path::PathBuf, process::ExitCode};

use comfy_table::{CellAlignment, Table, presets};

use super::{
    AttentionSchedule, Globals, open,
    output::{note, print, print_json},
    progress,
};
use crate::{
    Error, Gpu, Result, Tuning, adapters, choose,
    conformance::{Case, Device, Host, Listed, Status, Summary, carried, load, run_all},
};

/// Arguments of `foveate verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of cases, <family>/<case>.safetensors. Default: the cases that the program carries.
    dir: Option<PathBuf>,
    /// Run only cases whose `family/case` contains this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Leave out cases whose `family/case` contains this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    skip: Vec<String>,
    /// Run the cases on another WebGPU implementation: a program that executes portable plans, with its arguments,
    /// as "node web/dawn.mjs" (docs/portable-plans.md).
    #[arg(long, value_name = "PROGRAM", conflicts_with = "minimum")]
    host: Option<String>,
    /// Open the adapter with no features and the least limits that WebGPU allows.
    #[arg(long)]
    minimum: bool,
    /// Attention schedule, instead of the plan's choice.
    #[arg(long, value_enum)]
    schedule: Option<AttentionSchedule>,
    /// The variants of attention that compile fastest: for SwiftShader, whose compiler is slow.
    #[arg(long)]
    quick_start: bool,
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let cases = cases(args)?;
    let device = device(args, globals)?;
    let tuning = Tuning {
        schedule: args.schedule.map(Into::into),
        ..if args.quick_start {
            Tuning::QUICK_START
        } else {
            Tuning::default()
        }
    };
    let bar = progress(cases.len() as u64, globals);
    let mut printed = Ok(());
    let listed = Listed::carried();
    let summary = run_all(&device, &cases, &tuning, &listed, |verdict| {
        if globals.json {
            // JSON has no infinity: an infinite error is null, and the reason says more.
            let result = print_json(&verdict);
            if printed.is_ok() {
                printed = result;
            }
        }
        bar.inc(1);
    });
    bar.finish_and_clear();
    printed?;
    if !globals.json {
        print_summary(&device, &summary)?;
    }
    if summary.count(Status::Passed) == 0 {
        note("no case passed");
    }
    Ok(if summary.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Where the cases run.
fn device(args: &Args, globals: &Globals) -> Result<Device> {
    if let Some(command) = &args.host {
        if globals.adapter.is_some() || globals.cache.is_some() {
            note("--host has an adapter of its own choice: --adapter and --cache do not count");
        }
        let words = shlex::split(command).unwrap_or_default();
        let (program, arguments) = words.split_first().ok_or_else(|| {
            Error::invalid(
                "--host",
                format!("`{command}` names no program"),
                "name one with its arguments, quoted as in a shell: \"node web/dawn.mjs\"",
            )
        })?;
        return Ok(Device::Host(Host::start(program, arguments)?));
    }
    if !args.minimum {
        return Ok((&open(globals)?).into());
    }
    let adapter = choose(&adapters(), globals.adapter.as_deref())?;
    let none = wgpu::Features::empty();
    let mut gpu = Gpu::with(&adapter, none, wgpu::Limits::default(), None)?;
    gpu.measure()?;
    Ok((&gpu).into())
}

fn cases(args: &Args) -> Result<Vec<Case>> {
    let mut cases = match &args.dir {
        Some(folder) => load(folder)?,
        None => carried()?,
    };
    if let Some(text) = &args.filter {
        let count = cases.len();
        cases.retain(|case| case.path().contains(text));
        if cases.is_empty() {
            return Err(Error::invalid(
                "--filter",
                format!("none of {count} cases has `{text}` in its family/case"),
                "give a part of a name",
            ));
        }
    }
    if !args.skip.is_empty() {
        let count = cases.len();
        cases.retain(|case| !args.skip.iter().any(|text| case.path().contains(text)));
        note(format_args!(
            "{} of {count} cases left out",
            count - cases.len()
        ));
    }
    Ok(cases)
}

fn print_summary(device: &Device, summary: &Summary) -> Result<()> {
    print(device.name())?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["family", "passed", "failed", "unsupported", "worst error"]);
    for (family, row) in summary.families() {
        table.add_row([
            family.to_owned(),
            row.passed.to_string(),
            row.failed.to_string(),
            row.unsupported.to_string(),
            row.worst.map_or("-".into(), |worst| format!("{worst:.1e}")),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    print(&table)?;
    for verdict in summary.bad() {
        print(format!(
            "{} {}/{}: {}",
            match verdict.status {
                Status::Unsupported => "unsupported",
                _ => "failed",
            },
            verdict.family,
            verdict.case,
            verdict.reason.as_deref().unwrap_or("no reason given")
        ))?;
    }
    print(format!(
        "{} passed, {} failed, {} unsupported",
        summary.count(Status::Passed),
        summary.count(Status::Failed),
        summary.count(Status::Unsupported)
    ))?;
    for (remark, count) in summary.remarks() {
        print(format!("{count} passed with the remark: {remark}"))?;
    }
    Ok(())
}
