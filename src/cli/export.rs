//! `foveate export`: plans as JSON for other WebGPU hosts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{
    AttentionSchedule, Globals, open,
    output::{check_place, note, print},
    suite::Suite,
};
use crate::{Caps, Error, Op, Result, Tuning, plan::Outline};

/// Arguments of `foveate export`.
///
/// The plan is that of the fixed rules, for the least device that WebGPU allows, or for the caps of one.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The op in JSON, shapes included, or a file that holds it; --print-op shows the form.
    #[arg(long, value_name = "JSON", conflicts_with_all = ["suite", "shapes"])]
    op: Option<String>,
    #[command(flatten)]
    suite: Suite,
    /// File of the caps of a device, as capsOf() of web/foveate.js gives them.
    #[arg(long, value_name = "FILE")]
    caps: Option<PathBuf>,
    /// Plan for an adapter of this machine, the one that --adapter names.
    #[arg(long, conflicts_with = "caps")]
    here: bool,
    /// Attention schedule, instead of the plan's choice.
    #[arg(long, value_enum)]
    schedule: Option<AttentionSchedule>,
    /// Print the op instead of its plan.
    #[arg(long)]
    print_op: bool,
    /// File to write to; without it, the plan is printed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    if let Some(file) = &args.out {
        check_place(file, "--out")?;
    }
    let op = op(args)?;
    let text = if args.print_op {
        json(&op)?
    } else {
        let caps = caps(args, globals)?;
        let tuning = Tuning {
            schedule: args.schedule.map(Into::into),
            ..Tuning::default()
        };
        let plan = Outline::new(&op, &caps, &tuning)?.portable(&caps)?;
        note(format_args!(
            "{} dispatches of {} shaders, schedule {}; needs {}",
            plan.dispatches.len(),
            plan.shaders.len(),
            plan.schedule,
            match plan.requires.features.as_slice() {
                [] => "no features".to_owned(),
                features => features.join(", "),
            }
        ));
        json(&plan)?
    };
    match &args.out {
        None => print(text)?,
        Some(file) => {
            fs::write(file, text + "\n").map_err(|error| Error::file(file, error))?;
            note(format_args!("wrote {}", file.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::file("JSON", error))
}

/// The one op that is asked for.
fn op(args: &Args) -> Result<Op> {
    if let Some(text) = &args.op {
        let wrong = |error: serde_json::Error| {
            Error::invalid(
                "--op",
                error.to_string(),
                "give an op as `foveate export --suite a --print-op` prints it",
            )
        };
        return if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(wrong)
        } else {
            serde_json::from_str(&read(Path::new(text))?).map_err(wrong)
        };
    }
    let mut workloads = args.suite.workloads()?.into_iter();
    match (workloads.next(), workloads.next()) {
        (Some(workload), None) => Ok(workload.op()),
        _ => Err(Error::invalid(
            "--suite",
            "names more than one workload",
            "export one at a time, as --suite a, or give --op",
        )),
    }
}

fn caps(args: &Args, globals: &Globals) -> Result<Caps> {
    match &args.caps {
        Some(file) => serde_json::from_str(&read(file)?).map_err(|error| {
            Error::file(
                file,
                format!("{error}; give caps as capsOf() of web/foveate.js tells them"),
            )
        }),
        None if args.here => Ok(open(globals)?.engine().caps().clone()),
        None => Ok(Caps::minimum()),
    }
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|error| Error::file(file, format!("{error}; check the path")))
}
