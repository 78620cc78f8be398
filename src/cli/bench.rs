//! `foveate bench`: ops on a list of shapes, beside the adapter's own ceilings.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{
    AttentionSchedule, Globals,
    output::{print, print_json},
};
use crate::{
    Result, Tuning,
    bench::{Ceilings, Row, Workload, ceilings},
};

/// Arguments of `foveate bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Workloads of the suite to run, by letter.
    #[arg(long, default_value = "abcde", conflicts_with = "shapes")]
    suite: String,
    /// TOML file of workloads, of the form of benches/shapes.toml, instead of the suite.
    #[arg(long)]
    shapes: Option<PathBuf>,
    /// Timed runs of each workload.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Attention schedule, instead of the plan's choice.
    #[arg(long, value_enum)]
    schedule: Option<AttentionSchedule>,
}

/// What was measured where.
#[derive(Serialize)]
struct Adapter<'a> {
    kind: &'static str,
    adapter: &'a str,
    backend: String,
    driver: &'a str,
    ceilings: &'a Ceilings,
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let workloads = Workload::choose(&args.suite, args.shapes.as_deref())?;
    let gpu = super::open(globals)?;
    let progress = super::progress(workloads.len() as u64 + 1, globals);
    progress.set_message("ceilings");
    let ceilings = ceilings(&gpu, args.runs as usize)?;
    progress.inc(1);
    let info = gpu.info();
    let adapter = Adapter {
        kind: "adapter",
        adapter: &info.name,
        backend: info.backend.to_string(),
        driver: &info.driver_info,
        ceilings: &ceilings,
    };

    let mut failed = false;
    let mut rows: Vec<(Workload, Result<Row>)> = Vec::new();
    for workload in workloads {
        progress.set_message(workload.name().to_owned());
        let tuning = Tuning {
            schedule: match (&workload, args.schedule) {
                (Workload::Attention(_), Some(schedule)) => Some(schedule.into()),
                _ => None,
            },
            ..Tuning::default()
        };
        let row = workload.measure(&gpu, &tuning, &ceilings, args.runs as usize);
        failed |= !row.as_ref().is_ok_and(Row::passed);
        rows.push((workload, row));
        progress.inc(1);
    }
    progress.finish_and_clear();

    if globals.json {
        print_json(&adapter)?;
        for (workload, row) in &rows {
            match row {
                Ok(row) => print_json(row)?,
                Err(error) => print_json(&serde_json::json!({
                    "kind": "row",
                    "workload": workload.name(),
                    "failed": error.to_string(),
                }))?,
            }
        }
    } else {
        print(format!(
            "{} ({}, {})\nceilings: {:.1} GFLOP/s multiply-add, {:.2} GB/s read, {:.2} GB/s copy\n\n{}",
            adapter.adapter,
            adapter.backend,
            adapter.driver,
            ceilings.fma_gflops,
            ceilings.read_gbps,
            ceilings.copy_gbps,
            table(&rows),
        ))?;
        for (workload, row) in &rows {
            match row {
                Ok(row) if row.passed() => {}
                Ok(row) => print(format!(
                    "{}: wrong, error {:.1e}, at most {:.1e} is right",
                    row.workload, row.err, row.err_limit
                ))?,
                Err(error) => print(format!("{}: {error}", workload.name()))?,
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn table(rows: &[(Workload, Result<Row>)]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "", "workload", "schedule", "ms", "p10-p90", "wall ms", "GFLOP/s", "GB/s", "ceiling",
        "error",
    ]);
    for (workload, row) in rows {
        match row {
            Ok(row) => {
                let spread = row.timing.gpu.unwrap_or(row.timing.wall);
                table.add_row([
                    row.workload.clone(),
                    row.shape.clone(),
                    row.schedule.clone(),
                    format!("{:.2}", row.median_ms),
                    format!("{:.2}-{:.2}", spread.p10, spread.p90),
                    format!("{:.2}", row.timing.wall.median),
                    format!("{:.1}", row.gflops),
                    format!("{:.2}", row.gbps),
                    format!("{:.0} %", row.ceiling_share * 100.0),
                    format!("{:.1e}", row.err),
                ]);
            }
            Err(_) => {
                table.add_row([workload.name(), "failed"]);
            }
        }
    }
    table
}
