//! `foveate compare`: records of benchmarks side by side.

mod page;
mod plots;
mod tables;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::ValueEnum;

use super::{
    Globals,
    output::{check_place, note, print, print_json},
};
use crate::{
    Error, Result,
    bench::Record,
    compare::{By, Comparison, Source, regressions},
};

/// Arguments of `foveate compare`.
///
/// Each device of each record is a column; the first is the reference. Two ratios are shown, and above 1 is slower:
/// that of times, and that at equal pace. The pace is how fast the kernels of the ceilings ran just before and after
/// each timed run, so that other work on the machine counts little. Between different devices the second ratio is the
/// reference's share of its own ceilings over this one's.
///
/// With --fail-over the exit code is 1 when a row became slower than the limit allows: when the whole 95 % interval
/// (bootstrap over the runs of both records) is past it. Rows that were right in the first record and are missing,
/// skipped, failed or wrong in another one fail too, and so does a record that has no row in common with the first.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// Records that `foveate bench --out` wrote, the reference first. Files joined by commas count as one: their runs
    /// are taken together.
    #[arg(required = true, value_name = "FILE")]
    records: Vec<String>,
    /// What to print; a table where nothing is said.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Also write a page with plots and tables, which needs no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Fail when a row takes longer than the reference by more than this, as 10% or 0.1 (without the sign: below 1).
    #[arg(long, value_name = "SHARE", value_parser = limit)]
    fail_over: Option<f64>,
    /// The ratio that --fail-over goes by.
    #[arg(long, value_enum, default_value = "paced")]
    by: Measure,
}

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for the terminal.
    Table,
    /// A table in Markdown.
    Markdown,
    /// A line per workload and device.
    Csv,
    /// All of it, as docs/comparison.schema.json has it.
    Json,
}

/// A ratio, as an argument.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Measure {
    /// At equal pace; between different devices, of shares of the roofline.
    Paced,
    /// Of times.
    Time,
}

impl From<Measure> for By {
    fn from(measure: Measure) -> Self {
        match measure {
            Measure::Paced => Self::Paced,
            Measure::Time => Self::Time,
        }
    }
}

/// A share, as 10% or 0.1.
fn limit(text: &str) -> Result<f64, String> {
    let percent = text.trim().strip_suffix('%');
    let number = percent.unwrap_or(text).trim();
    let wrong = || "give a share of 0 or more, as 10% or 0.1".to_owned();
    let value: f64 = number.parse().map_err(|_| wrong())?;
    if !value.is_finite() || value < 0.0 {
        return Err(wrong());
    }
    match percent {
        Some(_) => Ok(value / 100.0),
        None if value < 1.0 => Ok(value),
        None => Err(format!("did you mean {number}%?")),
    }
}

impl Args {
    /// What to print: --format and --json may not say different things.
    fn format(&self, globals: &Globals) -> Result<Format> {
        match (globals.json, self.format) {
            (false, format) => Ok(format.unwrap_or(Format::Table)),
            (true, None | Some(Format::Json)) => Ok(Format::Json),
            (true, Some(_)) => Err(Error::invalid(
                "--json",
                "is given beside another --format",
                "leave one of them out",
            )),
        }
    }
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    if let Some(path) = &args.html {
        check_place(path, "--html")?;
    }
    args.format(globals)?;
    let comparison = Comparison::new(&sources(&args.records)?)?;
    if let Some(path) = &args.html {
        let page = page::html(&comparison)?;
        std::fs::write(path, page).map_err(|error| Error::file(path, error))?;
        note(format_args!("wrote {}", path.display()));
    }
    match args.format(globals)? {
        Format::Table => print(tables::terminal(&comparison))?,
        Format::Markdown => print(tables::markdown(&comparison))?,
        Format::Csv => print(tables::csv(&comparison)?.trim_end())?,
        Format::Json => print_json(&comparison)?,
    }
    let Some(limit) = args.fail_over else {
        return Ok(ExitCode::SUCCESS);
    };
    let gate = regressions(&comparison, limit, args.by.into())?;
    for regression in &gate.worse {
        note(tables::one_line(&format!("worse: {regression}")));
    }
    note(&gate);
    Ok(if gate.worse.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Reads the records. What they are called is the stem of the file, or the path where stems are equal.
fn sources(arguments: &[String]) -> Result<Vec<Source>> {
    let paths: Vec<Vec<&Path>> = arguments
        .iter()
        .map(|argument| argument.split(',').map(Path::new).collect())
        .collect();
    let stem = |path: &Path| {
        path.file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
    };
    let firsts: Vec<&Path> = paths
        .iter()
        .filter_map(|list| list.first().copied())
        .collect();
    let name = |path: &Path| {
        let alike = firsts.iter().filter(|other| stem(other) == stem(path));
        if alike.count() > 1 {
            path.display().to_string()
        } else {
            stem(path)
        }
    };
    firsts
        .iter()
        .zip(&paths)
        .map(|(first, list)| {
            Ok(Source {
                name: name(first),
                records: list
                    .iter()
                    .map(|path| Record::read(path))
                    .collect::<Result<_>>()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::limit;

    #[test]
    fn limits_are_shares() {
        assert_eq!(limit("10%"), Ok(0.1));
        assert_eq!(limit("0.25"), Ok(0.25));
        assert_eq!(limit(" 5 % "), Ok(0.05));
        assert_eq!(limit("250%"), Ok(2.5));
        for wrong in ["", "%", "-1%", "inf", "ten", "NaN"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
        for whole in ["10", "1"] {
            assert_eq!(limit(whole), Err(format!("did you mean {whole}%?")));
        }
    }
}
