//! `foveate bench`: ops on a list of shapes, beside the adapter's own ceilings.

use std::{fs, path::PathBuf, process::ExitCode};

use indicatif::ProgressBar;

use super::{
    AttentionSchedule, Globals,
    output::{check_place, note, print, print_json},
    suite::Suite,
};
use crate::{
    Error, Result, Tuning, TuningMode,
    bench::{
        Adapter, Bench, Ceilings, DeviceRecord, Measured, Opened, Outcome, Record, Row, Workload,
    },
};

/// Arguments of `foveate bench`.
///
/// Each timed run lies between two short runs of the kernels that reached the adapter's ceilings, so that shares of
/// the roofline say the same on a busy machine. Results are checked against f64. The exit code is 1 when an adapter
/// cannot be opened, a launch fails or a result is wrong; what an adapter cannot run is skipped.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    suite: Suite,
    /// Timed runs of each workload; short ones are timed up to four times as often.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Attention schedule, instead of the plan's choice.
    #[arg(long, value_enum)]
    schedule: Option<AttentionSchedule>,
    /// Where other choices come from: fixed rules, what is known of this class of device, or what
    /// `foveate tune` measured here (the default with --cache).
    #[arg(long, value_enum)]
    tuning: Option<Mode>,
    /// The variants that compile fastest.
    #[arg(long, conflicts_with = "tuning")]
    quick_start: bool,
    /// Show where host time goes, too.
    #[arg(long)]
    profile: bool,
    /// File to write the record to: JSON, as docs/bench-records.md has it, for `foveate compare`.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A tuning mode, as an argument.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Mode {
    Off,
    Heuristic,
    Measured,
}

impl From<Mode> for TuningMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Off => Self::Off,
            Mode::Heuristic => Self::Heuristic,
            Mode::Measured => Self::Measured,
        }
    }
}

/// What git says of the folder that the program was built in, with `-dirty` where files differ from the commit.
fn commit() -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR")])
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let workloads = args.suite.workloads()?;
    if let Some(path) = &args.out {
        check_place(path, "--out")?;
    }
    let adapters = super::one_or_all(globals)?;
    let steps = adapters.len() * (workloads.len() * (Bench::ROUNDS + 1) + 1);
    let progress = super::progress(steps as u64, globals);
    let record = Record {
        format: Record::FORMAT.into(),
        version: Record::VERSION,
        foveate: env!("CARGO_PKG_VERSION").into(),
        commit: commit(),
        suite: args.suite.name(),
        runs: args.runs,
        devices: adapters
            .iter()
            .map(|adapter| device(adapter, args, globals, &workloads, &progress))
            .collect(),
    };
    progress.finish_and_clear();
    if let Some(path) = &args.out {
        fs::write(path, record.to_json()? + "\n").map_err(|error| Error::file(path, error))?;
        note(format_args!("wrote {}", path.display()));
    }
    if globals.json {
        print_json(&record)?;
    } else {
        for device in &record.devices {
            print(text(device, args.profile))?;
        }
    }
    Ok(if record.devices.iter().all(DeviceRecord::passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Measures one adapter. What goes wrong with it is part of its record.
fn device(
    adapter: &wgpu::Adapter,
    args: &Args,
    globals: &Globals,
    workloads: &[Workload],
    progress: &ProgressBar,
) -> DeviceRecord {
    let mut record = DeviceRecord {
        adapter: Adapter::of(adapter),
        opened: None,
        ceilings: None,
        error: None,
        rows: Vec::new(),
    };
    if let Err(error) = measure(&mut record, adapter, args, globals, workloads, progress) {
        record.error = Some(error.to_string());
    }
    record
}

fn measure(
    record: &mut DeviceRecord,
    adapter: &wgpu::Adapter,
    args: &Args,
    globals: &Globals,
    workloads: &[Workload],
    progress: &ProgressBar,
) -> Result<()> {
    progress.set_message(format!("{}: ceilings", record.adapter.name));
    let mut gpu = super::open_on(adapter, globals.cache.as_deref())?;
    if let Some(mode) = args.tuning {
        *gpu.engine_mut() = gpu.engine().clone().with_tuning(mode.into());
    }
    record.opened = Some(Opened::of(&gpu));
    let bench = Bench::new(&gpu, args.runs as usize)?;
    record.ceilings = Some(*bench.ceilings());
    progress.inc(1);
    let base = if args.quick_start {
        Tuning::QUICK_START
    } else {
        Tuning::default()
    };
    let tuned: Vec<(&Workload, Option<Tuning>)> = workloads
        .iter()
        .map(|workload| match (workload, args.schedule) {
            (Workload::Attention(_), Some(schedule)) => {
                let schedule = Some(schedule.into());
                (workload, Some(Tuning { schedule, ..base }))
            }
            _ => (workload, args.quick_start.then_some(base)),
        })
        .collect();
    record.rows = bench.rows(&tuned, |workload| {
        progress.set_message(workload.name().to_owned());
        progress.inc(1);
    });
    if let Some(ceilings) = &mut record.ceilings {
        for measured in record.rows.iter().filter_map(Row::measured) {
            ceilings.raise(measured);
        }
    }
    Ok(())
}

/// A device's figures for the terminal.
fn text(device: &DeviceRecord, profile: bool) -> String {
    let adapter = &device.adapter;
    let mut parts = vec![format!(
        "{} ({}, {})",
        adapter.name, adapter.backend, adapter.driver_info
    )];
    parts.extend(device.ceilings.as_ref().map(ceilings));
    parts.extend(
        device
            .error
            .as_ref()
            .map(|error| format!("failed: {error}")),
    );
    if !device.rows.is_empty() {
        parts.push(format!("\n{}", table(&device.rows)));
        if profile {
            parts.push(format!("host time\n{}", profile_table(&device.rows)));
        }
    }
    parts.extend(device.rows.iter().filter_map(problem));
    parts.join("\n")
}

/// What is to be said of a row that is not right.
fn problem(row: &Row) -> Option<String> {
    let problem = match &row.outcome {
        Outcome::Skipped { reason } => format!("skipped, {reason}"),
        Outcome::Failed { reason } => format!("failed, {reason}"),
        Outcome::Measured(measured) if measured.right => return None,
        Outcome::Measured(measured) if measured.host.late_pipelines > 0 => format!(
            "{} pipelines were created after the first plan",
            measured.host.late_pipelines
        ),
        Outcome::Measured(measured) => format!(
            "wrong, error {}, at most {:.1e} is right",
            error(measured),
            measured.err_limit
        ),
    };
    Some(format!("{}: {problem}", row.workload))
}

fn error(measured: &Measured) -> String {
    let err = measured.err.map(|err| format!("{err:.1e}"));
    err.unwrap_or_else(|| "without bound".into())
}

fn ceilings(c: &Ceilings) -> String {
    let half = c
        .fma_f16_gflops
        .map_or(String::new(), |rate| format!(", {rate:.1} GFLOP/s f16"));
    let matrix = c.matrix_gflops.map_or(String::new(), |rate| {
        format!(", {rate:.1} GFLOP/s matrices")
    });
    let shared = c.workgroup_gbps.map_or(String::new(), |rate| {
        format!(", {rate:.1} GB/s workgroup memory")
    });
    format!(
        "ceilings: {:.1} GFLOP/s multiply-add{half}{matrix}, {:.2} GB/s read, {:.2} GB/s copy{shared}, \
         {:.2} GB/s upload, {:.2} GB/s readback, {:.1} us per dispatch, {:.0} us per submission",
        c.fma_gflops,
        c.read_gbps,
        c.copy_gbps,
        c.upload_gbps,
        c.readback_gbps,
        c.dispatch_us,
        c.submit_us,
    )
}

fn profile_table(rows: &[Row]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "",
        "create ms",
        "first run ms",
        "compile ms",
        "cached ms",
        "plan us",
        "bind us",
        "record us",
        "submit us",
    ]);
    for row in rows {
        let Some(measured) = row.measured() else {
            continue;
        };
        let p = measured.host;
        table.add_row([
            row.workload.clone(),
            format!("{:.1}", p.create_ms),
            format!("{:.1}", p.first_ms),
            format!("{:.1}", measured.first_compile_ms),
            format!("{:.1}", measured.cached_compile_ms),
            format!("{:.1}", p.plan_us),
            format!("{:.1}", p.bind_us),
            format!("{:.2}", p.record_us),
            format!("{:.1}", p.submit_us),
        ]);
    }
    table
}

fn table(rows: &[Row]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "", "workload", "schedule", "ms", "p10-p90", "wall ms", "GFLOP/s", "GB/s", "ceiling",
        "error",
    ]);
    for row in rows {
        match &row.outcome {
            Outcome::Measured(measured) => {
                let ms = measured.ms();
                table.add_row([
                    row.workload.clone(),
                    row.shape.clone(),
                    measured.schedule.clone(),
                    format!("{:.2}", ms.median),
                    format!("{:.2}-{:.2}", ms.p10, ms.p90),
                    format!("{:.2}", measured.wall_ms.median),
                    format!("{:.1}", measured.gflops),
                    format!("{:.2}", measured.gbps),
                    format!("{:.0} %", measured.share.median * 100.0),
                    error(measured),
                ]);
            }
            Outcome::Skipped { .. } => {
                table.add_row([&row.workload, &row.shape, "skipped"]);
            }
            Outcome::Failed { .. } => {
                table.add_row([&row.workload, &row.shape, "failed"]);
            }
        }
    }
    table
}
