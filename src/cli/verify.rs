//! `foveate verify`

use std::{path::PathBuf, process::ExitCode};

use comfy_table::{CellAlignment, Table, presets};

use super::{
    Globals, open,
    output::{note, print, print_json},
    progress,
};
use crate::{
    Error, Gpu, Result, Tuning,
    conformance::{Case, Listed, Status, Summary, carried, load, run_all},
};

/// Arguments of `foveate verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of cases, <family>/<case>.safetensors. Default: the cases that the program carries.
    dir: Option<PathBuf>,
    /// Run only cases whose `family/case` contains this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let cases = cases(args)?;
    let gpu = open(globals)?;
    let bar = progress(cases.len() as u64, globals);
    let mut printed = Ok(());
    let listed = Listed::carried();
    let summary = run_all(&gpu, &cases, &Tuning::default(), &listed, |verdict| {
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
        print_summary(&gpu, &summary)?;
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
    Ok(cases)
}

fn print_summary(gpu: &Gpu, summary: &Summary) -> Result<()> {
    let info = gpu.info();
    print(format!("{} ({})", info.name, info.backend))?;
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
