//! Comparisons as text: tables, Markdown, CSV.

use comfy_table::{Cell as TableCell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{
    Error, Result,
    bench::{Bound, Clock},
    compare::{Cell, Column, Comparison, Interval, State},
};

/// Times with three digits that count.
pub(super) fn ms(value: f64) -> String {
    digits(value)
}

/// A number with three digits that count, without an exponent where it can be read without.
pub(super) fn digits(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() || size == 0.0 {
        format!("{value:.0}")
    } else if !(1e-3..1e7).contains(&size) {
        format!("{value:.1e}")
    } else {
        let places = (2 - size.log10().floor() as i32).max(0) as usize;
        format!("{value:.places$}")
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

pub(super) fn interval(interval: Interval) -> String {
    let Interval { ratio, low, high } = interval;
    if interval.is_known() {
        format!("{ratio:.2} ({low:.2}-{high:.2})")
    } else {
        format!("{ratio:.2} (too few runs)")
    }
}

pub(super) fn error(err: Option<f64>) -> String {
    err.map_or_else(|| "without bound".into(), |err| format!("{err:.1e}"))
}

pub(super) fn flags(cell: &Cell) -> String {
    let words: Vec<&str> = cell.flags.iter().map(|flag| flag.words()).collect();
    words.join(", ")
}

/// Which ceiling it is, in words.
pub(super) fn bound(bound: Bound) -> &'static str {
    match bound {
        Bound::MultiplyAdd => "multiply-adds",
        Bound::Matrix => "matrices",
        Bound::Read => "reads",
        Bound::Copy => "copies",
    }
}

/// A clock in a word.
fn clock(clock: Clock) -> &'static str {
    match clock {
        Clock::Gpu => "gpu",
        Clock::Wall => "wall",
    }
}

/// An adapter in a few words.
pub(super) fn device(column: &Column) -> String {
    let adapter = &column.adapter;
    let words = format!(
        "{} ({}, {})",
        adapter.name, adapter.backend, adapter.driver_info
    );
    let commit = column.commit.as_deref().unwrap_or("commit unknown");
    format!("{words}, foveate {} {commit}", column.foveate)
}

/// What differs from how the reference was opened.
pub(super) fn opened(column: &Column) -> Option<String> {
    let there = !column.differences.is_empty();
    there.then(|| format!("opened differently: {}", column.differences.join("; ")))
}

const MEANING: &str = "Ratios are to the reference; above 1 is slower. Time: of the medians. Paced: at equal pace, \
                       measured around each run; between different devices, of the shares of the roofline. In brackets: 95 % intervals.";

/// A text without control characters, which a terminal would obey.
pub(super) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A text that Markdown shows as it is.
fn escaped(text: &str) -> String {
    let mut inert = String::with_capacity(text.len());
    for letter in one_line(text).chars() {
        if MARKS.contains(letter) {
            inert.push('\\');
        }
        inert.push(letter);
        // What Markdown is made into is searched for names again.
        if letter == '@' {
            inert.push('\u{200b}');
        }
    }
    inert
}

/// Characters that mean something to Markdown within a line.
const MARKS: &str = "\\`*_[]<>|&@!~$#";

/// A text that a spreadsheet does not take for a formula.
fn no_formula(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        format!("'{text}")
    } else {
        text.into()
    }
}

/// A comparison with every text in it that comes from a record made inert.
fn inert(comparison: &Comparison, change: fn(&str) -> String) -> Comparison {
    let mut inert = comparison.clone();
    let apply = |text: &mut String| *text = change(text);
    for column in &mut inert.columns {
        let adapter = &mut column.adapter;
        for text in [
            &mut column.label,
            &mut column.foveate,
            &mut adapter.name,
            &mut adapter.backend,
            &mut adapter.driver_info,
        ] {
            apply(text);
        }
        column.differences.iter_mut().for_each(apply);
        column.commit.as_mut().map(apply);
        column.error.as_mut().map(apply);
    }
    for row in &mut inert.rows {
        apply(&mut row.workload);
        apply(&mut row.op);
        apply(&mut row.shape);
        for cell in &mut row.cells {
            cell.reason.as_mut().map(apply);
            if let Some(figures) = &mut cell.figures {
                apply(&mut figures.schedule);
            }
        }
    }
    for mean in &mut inert.means {
        mean.op.as_mut().map(apply);
    }
    inert
}

pub(super) fn terminal(comparison: &Comparison) -> String {
    text(&inert(comparison, one_line), |table| {
        table
            .load_style(presets::UTF8_HORIZONTAL_ONLY)
            .set_content_arrangement(ContentArrangement::Dynamic);
    })
}

/// The same in Markdown.
pub(super) fn markdown(comparison: &Comparison) -> String {
    text(&inert(comparison, escaped), |table| {
        table.load_style(presets::ASCII_MARKDOWN);
    })
}

fn text(comparison: &Comparison, style: impl Fn(&mut Table)) -> String {
    let mut parts: Vec<String> = Vec::new();
    for column in &comparison.columns {
        let against = column.against.words();
        let against = against.map_or_else(String::new, |words| format!(" ({words})"));
        let error = column
            .error
            .as_ref()
            .map(|error| format!("; failed: {error}"));
        parts.push(format!(
            "- {}{against}: {}{}{}",
            column.label,
            device(column),
            opened(column).map_or_else(String::new, |words| format!("; {words}")),
            error.unwrap_or_default()
        ));
    }
    let mut table = rows(comparison);
    style(&mut table);
    let mut means = means(comparison);
    style(&mut means);
    parts.extend([
        String::new(),
        table.to_string(),
        String::new(),
        "Geometric means of the ratios:".into(),
        String::new(),
        means.to_string(),
        String::new(),
        MEANING.into(),
    ]);
    parts.extend(problems(comparison));
    parts.join("\n")
}

fn right(text: String) -> TableCell {
    TableCell::new(text).set_alignment(CellAlignment::Right)
}

fn rows(comparison: &Comparison) -> Table {
    let mut table = Table::new();
    let mut head = vec!["workload".to_owned(), "shape".to_owned()];
    for column in &comparison.columns {
        let label = &column.label;
        head.extend([format!("{label}: ms"), "share".into()]);
        if column.reference.is_some() {
            head.extend(["time".into(), "paced".into()]);
        }
        head.push("notes".into());
    }
    table.set_header(head);
    for row in &comparison.rows {
        let mut cells = vec![TableCell::new(&row.workload), TableCell::new(&row.shape)];
        for (cell, column) in row.cells.iter().zip(&comparison.columns) {
            match &cell.figures {
                Some(figures) => cells.extend([
                    right(ms(figures.ms.median)),
                    right(percent(figures.share.median)),
                ]),
                None => cells.extend([TableCell::new(cell.state.word()), right(String::new())]),
            }
            if column.reference.is_some() {
                let ratios = cell.ratios;
                cells.extend([
                    right(ratios.map_or_else(String::new, |r| interval(r.time))),
                    right(ratios.map_or_else(String::new, |r| interval(r.paced))),
                ]);
            }
            cells.push(TableCell::new(flags(cell)));
        }
        table.add_row(cells);
    }
    table
}

fn means(comparison: &Comparison) -> Table {
    let mut table = Table::new();
    table.set_header(["op", "record", "rows", "time", "paced"]);
    for mean in &comparison.means {
        let column = comparison.columns.get(mean.column);
        table.add_row([
            TableCell::new(mean.op.as_deref().unwrap_or("all")),
            TableCell::new(column.map_or("", |column| &column.label)),
            right(mean.rows.to_string()),
            right(format!("{:.2}", mean.time)),
            right(format!("{:.2}", mean.paced)),
        ]);
    }
    table
}

/// What is to be said of rows that are not right.
fn problems(comparison: &Comparison) -> Vec<String> {
    let mut problems = Vec::new();
    for row in &comparison.rows {
        for (cell, column) in row.cells.iter().zip(&comparison.columns) {
            let what = match (&cell.figures, cell.state) {
                (_, State::Right | State::Missing) => continue,
                (Some(figures), _) if figures.late_pipelines > 0 => format!(
                    "{} pipelines were created after the first plan",
                    figures.late_pipelines
                ),
                (Some(figures), _) => format!(
                    "error {}, at most {:.1e} is right",
                    error(figures.err),
                    figures.err_limit
                ),
                (None, _) => cell.reason.clone().unwrap_or_default(),
            };
            let word = cell.state.word();
            problems.push(format!(
                "- {}, {}: {word}, {what}",
                column.label, row.workload
            ));
        }
    }
    problems
}

/// A line of CSV.
#[derive(Serialize)]
struct Line<'a> {
    workload: &'a str,
    op: &'a str,
    dtype: String,
    shape: &'a str,
    record: &'a str,
    adapter: &'a str,
    backend: &'a str,
    outcome: &'static str,
    schedule: Option<&'a str>,
    bound: Option<&'static str>,
    clock: Option<&'static str>,
    ms: Option<f64>,
    ms_p10: Option<f64>,
    ms_p90: Option<f64>,
    gflops: Option<f64>,
    gbps: Option<f64>,
    share: Option<f64>,
    err: Option<f64>,
    err_limit: Option<f64>,
    first_compile_ms: Option<f64>,
    cached_compile_ms: Option<f64>,
    scratch_bytes: Option<u64>,
    time_ratio: Option<f64>,
    time_ratio_low: Option<f64>,
    time_ratio_high: Option<f64>,
    paced_ratio: Option<f64>,
    paced_ratio_low: Option<f64>,
    paced_ratio_high: Option<f64>,
    flags: String,
}

pub(super) fn csv(comparison: &Comparison) -> Result<String> {
    let comparison = &inert(comparison, no_formula);
    let failed = |error: &dyn std::fmt::Display| Error::file("CSV", error);
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in &comparison.rows {
        for (cell, column) in row.cells.iter().zip(&comparison.columns) {
            let figures = cell.figures.as_ref();
            let (time, paced) = cell.ratios.map(|r| (r.time, r.paced)).unzip();
            let line = Line {
                workload: &row.workload,
                op: &row.op,
                dtype: row.dtype.to_string(),
                shape: &row.shape,
                record: &column.label,
                adapter: &column.adapter.name,
                backend: &column.adapter.backend,
                outcome: cell.state.word(),
                schedule: figures.map(|f| f.schedule.as_str()),
                bound: figures.map(|f| bound(f.bound)),
                clock: figures.map(|f| clock(f.clock)),
                ms: figures.map(|f| f.ms.median),
                ms_p10: figures.map(|f| f.ms.p10),
                ms_p90: figures.map(|f| f.ms.p90),
                gflops: figures.map(|f| f.gflops),
                gbps: figures.map(|f| f.gbps),
                share: figures.map(|f| f.share.median),
                err: figures.and_then(|f| f.err),
                err_limit: figures.map(|f| f.err_limit),
                first_compile_ms: figures.map(|f| f.first_compile_ms),
                cached_compile_ms: figures.map(|f| f.cached_compile_ms),
                scratch_bytes: figures.map(|f| f.scratch_bytes),
                time_ratio: time.map(|i| i.ratio),
                time_ratio_low: time.filter(Interval::is_known).map(|i| i.low),
                time_ratio_high: time.filter(Interval::is_known).map(|i| i.high),
                paced_ratio: paced.map(|i| i.ratio),
                paced_ratio_low: paced.filter(Interval::is_known).map(|i| i.low),
                paced_ratio_high: paced.filter(Interval::is_known).map(|i| i.high),
                flags: flags(cell),
            };
            writer.serialize(line).map_err(|error| failed(&error))?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| failed(&error))?;
    String::from_utf8(bytes).map_err(|error| failed(&error))
}
