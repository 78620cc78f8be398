//! `foveate demo`: attention of a real sentence encoder on every adapter.

mod adapter;
mod encoder;
mod page;

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use self::{
    adapter::{LIMIT, Report, STEPS},
    encoder::{HEADS, Layer},
};
use super::{
    Globals,
    output::{check_place, print, print_json},
    progress,
};
use crate::{Error, Result, adapters, choose};

/// Arguments of `foveate demo`.
///
/// Every adapter of the machine takes part, unless --adapter names one. The exit code is 1 when an
/// adapter fails.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to write the page.
    #[arg(long, value_name = "FILE", default_value = "foveate-demo.html")]
    html: PathBuf,
    /// Heads to draw, 0 to 11, separated by commas.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(0..HEADS as i64),
        default_value = "2,4,5,8"
    )]
    heads: Vec<u16>,
    /// Layers of the encoder to compute.
    #[arg(long, default_value = "both")]
    layer: LayerChoice,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LayerChoice {
    #[value(name = "0")]
    First,
    #[value(name = "5")]
    Last,
    Both,
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let found = adapters();
    let used = match &globals.adapter {
        None if !found.is_empty() => found,
        choice => vec![choose(&found, choice.as_deref())?],
    };
    check_place(&args.html, "--html")?;
    let layers = match args.layer {
        LayerChoice::First => vec![Layer::first()?],
        LayerChoice::Last => vec![Layer::last()?],
        LayerChoice::Both => vec![Layer::first()?, Layer::last()?],
    };

    let bar = progress(used.len() as u64 * STEPS, globals);
    let reports: Vec<Report> = used
        .iter()
        .enumerate()
        .map(|(number, adapter)| {
            let report = Report::of(adapter, &layers, |step| {
                bar.set_message(format!("{}: {step}", adapter.get_info().name));
                bar.inc(1);
            });
            // A failure may have skipped steps.
            bar.set_position((number + 1) as u64 * STEPS);
            report
        })
        .collect();
    bar.finish_and_clear();

    let page = page::html(&layers, &heads(&args.heads), &reports)?;
    std::fs::write(&args.html, page).map_err(|error| {
        Error::file(
            &args.html,
            format!("{error}; name a file that can be written with --html"),
        )
    })?;

    if globals.json {
        for report in &reports {
            print_json(report)?;
        }
    } else {
        print(table(&reports).to_string())?;
        for report in &reports {
            if let Some(reason) = &report.reason {
                print(format!(
                    "{} ({}) failed: {reason}",
                    report.adapter, report.backend
                ))?;
            }
        }
        for (column, text) in meaning() {
            print(format!("{column:8} {text}"))?;
        }
        print(format!("Heat maps: {}", args.html.display()))?;
    }
    Ok(if reports.iter().all(Report::passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The heads in the order asked for, each once.
fn heads(asked: &[u16]) -> Vec<usize> {
    let mut heads = Vec::new();
    for head in asked.iter().copied().map(usize::from) {
        if !heads.contains(&head) {
            heads.push(head);
        }
    }
    heads
}

fn table(reports: &[Report]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header([
            "Adapter", "Driver", "Backend", "Schedule", "GPU ms", "Wall ms", "Of peak", "Error", "",
        ]);
    for report in reports {
        let mut row = vec![
            Cell::new(&report.adapter),
            Cell::new(&report.driver),
            Cell::new(&report.backend),
        ];
        let number = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        match &report.figures {
            Some(figures) => row.extend([
                Cell::new(figures.schedule),
                number(format!("{:.3}", figures.gpu_ms.median)),
                number(format!("{:.3}", figures.wall_ms.median)),
                number(format!("{:.0} %", figures.share * 100.0)),
                number(format!("{:.1e}", figures.worst())),
            ]),
            None => row.extend((0..5).map(|_| number("-".into()))),
        }
        row.push(Cell::new(if report.passed() { "ok" } else { "FAILED" }));
        table.add_row(row);
    }
    table
}

/// The columns of figures, and what each means.
fn meaning() -> [(&'static str, String); 4] {
    [
        (
            "GPU ms",
            "one layer of many that follow each other without a pause, median".into(),
        ),
        (
            "Wall ms",
            "one layer alone, from submission to the end of the wait, median".into(),
        ),
        (
            "Of peak",
            "the least time that the adapter's peaks allow, as measured in this run, over its GPU \
             time"
                .into(),
        ),
        (
            "Error",
            format!(
                "largest difference from the f64 reference, over the reference's root mean square \
                 (attention weights: the difference itself); at most {LIMIT:e} is right"
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_drawn_once_in_the_order_asked_for() {
        assert_eq!(heads(&[5, 2, 5, 0]), [5, 2, 0]);
    }
}
