//! `foveate bench`: ops on a list of shapes, beside the adapter's own ceilings.

use std::{fs, path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{
    AttentionSchedule, Globals,
    output::{note, print},
    suite::Suite,
};
use crate::{
    Error, Result, Tuning, TuningMode,
    bench::{Ceilings, Row, Workload, ceilings},
};

/// Arguments of `foveate bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    suite: Suite,
    /// Timed runs of each workload.
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
    /// Folder to write the lines of JSON to, in a file named for the adapter.
    #[arg(long, value_name = "FOLDER")]
    record: Option<PathBuf>,
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

/// What was measured where.
#[derive(Serialize)]
struct Adapter<'a> {
    kind: &'static str,
    adapter: &'a str,
    backend: String,
    driver: &'a str,
    driver_info: &'a str,
    version: &'static str,
    /// The commit of the folder that the program was built in, if it is still there.
    commit: Option<String>,
    tuning: TuningMode,
    ceilings: &'a Ceilings,
}

impl Adapter<'_> {
    /// The name of the adapter's record.
    fn file_name(&self) -> String {
        let words = format!("{} {}", self.backend, self.adapter).to_lowercase();
        let words: Vec<&str> = words
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        format!("{}.jsonl", words.join("-"))
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
    let mut gpu = super::open(globals)?;
    if let Some(mode) = args.tuning {
        *gpu.engine_mut() = gpu.engine().clone().with_tuning(mode.into());
    }
    let progress = super::progress(workloads.len() as u64 + 1, globals);
    progress.set_message("ceilings");
    let ceilings = ceilings(&gpu, args.runs as usize)?;
    progress.inc(1);
    let info = gpu.info();
    let adapter = Adapter {
        kind: "adapter",
        adapter: &info.name,
        backend: info.backend.to_string(),
        driver: &info.driver,
        driver_info: &info.driver_info,
        version: env!("CARGO_PKG_VERSION"),
        commit: commit(),
        tuning: gpu.engine().tuning(),
        ceilings: &ceilings,
    };

    let mut failed = false;
    let mut rows: Vec<(Workload, Result<Row>)> = Vec::new();
    for workload in workloads {
        progress.set_message(workload.name().to_owned());
        let base = if args.quick_start {
            Tuning::QUICK_START
        } else {
            Tuning::default()
        };
        let tuning = match (&workload, args.schedule) {
            (Workload::Attention(_), Some(schedule)) => Some(Tuning {
                schedule: Some(schedule.into()),
                ..base
            }),
            _ => args.quick_start.then_some(base),
        };
        let row = workload.measure(&gpu, tuning.as_ref(), &ceilings, args.runs as usize);
        failed |= !row.as_ref().is_ok_and(Row::passed);
        rows.push((workload, row));
        progress.inc(1);
    }
    progress.finish_and_clear();

    let lines = lines(&adapter, &rows)?;
    if let Some(folder) = &args.record {
        let path = folder.join(adapter.file_name());
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, &lines))
            .map_err(|error| Error::file(&path, error))?;
        note(format_args!("wrote {}", path.display()));
    }
    if globals.json {
        print(lines.trim_end())?;
    } else {
        print(format!("{}\n\n{}", heading(&adapter), table(&rows)))?;
        if args.profile {
            print(format!("host time\n{}", profile_table(&rows)))?;
        }
        for (workload, row) in &rows {
            match row {
                Ok(row) if row.passed() => {}
                Ok(row) if row.profile.late_pipelines > 0 => print(format!(
                    "{}: {} pipelines were created after the first plan",
                    row.workload, row.profile.late_pipelines
                ))?,
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

/// The adapter and the rows as lines of JSON.
fn lines(adapter: &Adapter<'_>, rows: &[(Workload, Result<Row>)]) -> Result<String> {
    let mut lines = vec![serde_json::to_string(adapter)];
    lines.extend(rows.iter().map(|(workload, row)| match row {
        Ok(row) => serde_json::to_string(row),
        Err(error) => serde_json::to_string(&serde_json::json!({
            "kind": "row",
            "workload": workload.name(),
            "failed": error.to_string(),
        })),
    }));
    let lines: Vec<String> = lines
        .into_iter()
        .collect::<serde_json::Result<_>>()
        .map_err(|error| Error::file("JSON", error))?;
    Ok(lines.join("\n") + "\n")
}

fn heading(adapter: &Adapter<'_>) -> String {
    let c = adapter.ceilings;
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
        "{} ({}, {})\nceilings: {:.1} GFLOP/s multiply-add{half}{matrix}, {:.2} GB/s read, {:.2} GB/s copy{shared}, \
         {:.1} us per dispatch, {:.0} us per submission",
        adapter.adapter,
        adapter.backend,
        adapter.driver_info,
        c.fma_gflops,
        c.read_gbps,
        c.copy_gbps,
        c.dispatch_us,
        c.submit_us,
    )
}

fn profile_table(rows: &[(Workload, Result<Row>)]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "",
        "create ms",
        "first run ms",
        "plan us",
        "bind us",
        "record us",
        "submit us",
    ]);
    for row in rows.iter().filter_map(|(_, row)| row.as_ref().ok()) {
        let p = row.profile;
        table.add_row([
            row.workload.clone(),
            format!("{:.1}", p.create_ms),
            format!("{:.1}", p.first_ms),
            format!("{:.1}", p.plan_us),
            format!("{:.1}", p.bind_us),
            format!("{:.2}", p.record_us),
            format!("{:.1}", p.submit_us),
        ]);
    }
    table
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
