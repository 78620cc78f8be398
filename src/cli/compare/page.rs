//! The page: one file with plots and tables, which loads nothing.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    plots,
    tables::{bound, digits, error, flags, interval, ms, opened, percent},
};
use crate::{
    DType, Result,
    compare::{Cell, Column, Comparison, Figures, Row, State},
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Lengths of which a series is worth a plot.
const FEWEST_LENGTHS: usize = 3;

pub(super) fn html(comparison: &Comparison) -> Result<String> {
    let ops = ops(comparison);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "foveate: " (labels(comparison)) }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) (PreEscaped(colours())) }
            }
            body {
                main {
                    h1 { (labels(comparison)) }
                    p {
                        "Attention and its kin, timed with " b { "foveate" } ". Each device is measured against its own \
                         ceilings, and every result was checked against a calculation in double precision."
                    }
                    (devices(comparison))
                    (means(comparison))
                    (unusual(comparison))
                    h2 { "Share of the roofline" }
                    p.soft {
                        "The least time that a device's own ceilings allow, over the time taken. The line marks all that \
                         the device can do."
                    }
                    (legend(comparison.columns.iter().map(|column| column.label.as_str())))
                    (bars(comparison, &ops)?)
                    (rooflines(comparison, &ops)?)
                    (lengths(comparison)?)
                    (errors(comparison)?)
                    (rows(comparison, &ops))
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

fn labels(comparison: &Comparison) -> String {
    let labels: Vec<&str> = comparison
        .columns
        .iter()
        .map(|column| column.label.as_str())
        .collect();
    labels.join(" and ")
}

/// The ops in the order of the rows.
fn ops(comparison: &Comparison) -> Vec<&str> {
    let mut ops: Vec<&str> = Vec::new();
    for row in &comparison.rows {
        if !ops.contains(&row.op.as_str()) {
            ops.push(&row.op);
        }
    }
    ops
}

/// Rules that give the plots' colours the page's.
fn colours() -> String {
    let places = plots::COLOURS.iter().enumerate();
    let rules = places.map(|(place, plotters::style::RGBColor(r, g, b))| {
        let hex = format!("#{r:02X}{g:02X}{b:02X}");
        format!(
            "svg [fill=\"{hex}\"]{{fill:var(--c{place})}}svg [stroke=\"{hex}\"]{{stroke:var(--c{place})}}\
             .c{place}{{background:var(--c{place})}}"
        )
    });
    rules.collect()
}

fn swatch(place: usize) -> Markup {
    let class = format!("swatch c{}", place % plots::COLOURS.len());
    html! { i class=(class) {} }
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> Markup {
    html! {
        ul.legend { @for (place, name) in names.enumerate() { li { (swatch(place)) (name) } } }
    }
}

/// A legend of points.
fn forms<'a>(names: impl Iterator<Item = &'a str>) -> Result<Markup> {
    Ok(html! {
        ul.legend { @for (place, name) in names.enumerate() {
            li { span.form { (PreEscaped(plots::form(place)?)) } (name) }
        } }
    })
}

fn figure(caption: &str, svg: &str) -> Markup {
    html! {
        @if !svg.is_empty() {
            figure { figcaption { (caption) } (PreEscaped(svg)) }
        }
    }
}

fn devices(comparison: &Comparison) -> Markup {
    let rate = |column: &Column, value: fn(&crate::bench::Ceilings) -> f64| {
        let ceilings = column.ceilings.as_ref();
        ceilings.map_or_else(String::new, |ceilings| digits(value(ceilings)))
    };
    html! {
        h2 { "Devices" }
        div.scroll { table.cards {
            thead { tr {
                th { "Record" } th { "Device" } th { "foveate" }
                th.n { "Multiply-adds" br; "GFLOP/s" } th.n { "Read" br; "GB/s" } th.n { "Copy" br; "GB/s" }
                th.n { "Upload" br; "GB/s" } th.n { "Readback" br; "GB/s" } th.n { "Launch" br; "us" }
            } }
            tbody { @for (place, column) in comparison.columns.iter().enumerate() { tr {
                th scope="row" {
                    (swatch(place)) (column.label)
                    @if let Some(words) = column.against.words() { small { (words) } }
                }
                td data-label="Device" {
                    (column.adapter.name)
                    small { (column.adapter.backend) ", " (column.adapter.driver_info) }
                    @if let Some(words) = opened(column) { small { (words) } }
                    @if let Some(error) = &column.error { small.bad { "failed: " (error) } }
                }
                td data-label="foveate" {
                    (column.foveate) small { (column.commit.as_deref().unwrap_or("commit unknown")) }
                }
                td.n data-label="Multiply-adds, GFLOP/s" { (rate(column, |c| c.fma_gflops)) }
                td.n data-label="Read, GB/s" { (rate(column, |c| c.read_gbps)) }
                td.n data-label="Copy, GB/s" { (rate(column, |c| c.copy_gbps)) }
                td.n data-label="Upload, GB/s" { (rate(column, |c| c.upload_gbps)) }
                td.n data-label="Readback, GB/s" { (rate(column, |c| c.readback_gbps)) }
                td.n data-label="Launch, us" { (rate(column, |c| c.dispatch_us)) }
            } } }
        } }
    }
}

fn means(comparison: &Comparison) -> Markup {
    html! {
        h2 { "Ratios to the reference" }
        p.soft {
            "Geometric means over rows that are right on both sides; above 1 is slower. " b { "Time" }
            " is that of the times. " b { "Paced" } " is at equal pace, which was measured around each run, so that other work on the machine \
             counts little; between different devices it is that of their shares of the roofline."
        }
        div.scroll { table {
            thead { tr { th { "Op" } th { "Record" } th.n { "Rows" } th.n { "Time" } th.n { "Paced" } } }
            tbody { @for mean in &comparison.means { tr.total[mean.op.is_none()] {
                th scope="row" { (mean.op.as_deref().unwrap_or("all")) }
                td {
                    (swatch(mean.column))
                    (comparison.columns.get(mean.column).map_or("", |column| &column.label))
                }
                td.n { (mean.rows) } td.n { (format!("{:.2}", mean.time)) } td.n { (format!("{:.2}", mean.paced)) }
            } } }
        } }
    }
}

/// What is flagged, in words.
fn unusual(comparison: &Comparison) -> Markup {
    let flagged = comparison.rows.iter().flat_map(|row| {
        let cells = row.cells.iter().zip(&comparison.columns).enumerate();
        cells
            .filter(|(_, (cell, _))| !cell.flags.is_empty())
            .map(move |(place, (cell, column))| (row, place, cell, column))
    });
    let flagged: Vec<(&Row, usize, &Cell, &Column)> = flagged.collect();
    html! {
        h2 { "What is unusual" }
        @if flagged.is_empty() { p { "Nothing." } }
        @else {
            ul.unusual { @for (row, place, cell, column) in flagged { li {
                b { (row.workload) } " " (swatch(place)) (column.label) ": " (flags(cell))
                @if let Some(reason) = &cell.reason { span.soft { " (" (reason) ")" } }
            } } }
        }
    }
}

/// Bars of each op, in pieces that fit a page.
fn bars(comparison: &Comparison, ops: &[&str]) -> Result<Markup> {
    const MOST_ROWS: usize = 12;
    Ok(html! {
        div.bars { @for op in ops {
            @let rows: Vec<&Row> = comparison.rows.iter().filter(|row| row.op == *op).collect();
            @let pieces = rows.len().div_ceil(MOST_ROWS).max(1);
            @for rows in rows.chunks(rows.len().div_ceil(pieces).max(1)) {
                (figure(op, &plots::bars(comparison, rows)?))
            }
        } }
    })
}

fn rooflines(comparison: &Comparison, ops: &[&str]) -> Result<Markup> {
    Ok(html! {
        h2 { "Rooflines" }
        p.soft {
            "Each device below its own ceilings: multiply-adds, streaming reads (bold) and copies (thin). Rows to the \
             left of the corner are bound by memory, those to the right by arithmetic."
        }
        (forms(ops.iter().copied())?)
        div.plots {
            @for (place, column) in comparison.columns.iter().enumerate() {
                @if let Some(ceilings) = &column.ceilings {
                    (figure(&column.label, &plots::roofline(comparison, place, ceilings, ops)?))
                }
            }
        }
    })
}

fn lengths(comparison: &Comparison) -> Result<Markup> {
    let mut series: Vec<(&str, Vec<u64>)> = Vec::new();
    for row in &comparison.rows {
        let (Some(name), Some(length)) = (row.series.as_deref(), row.length) else {
            continue;
        };
        match series.iter_mut().find(|(known, _)| *known == name) {
            Some((_, lengths)) if lengths.contains(&length) => {}
            Some((_, lengths)) => lengths.push(length),
            None => series.push((name, vec![length])),
        }
    }
    series.retain(|(_, lengths)| lengths.len() >= FEWEST_LENGTHS);
    Ok(html! {
        @if !series.is_empty() {
            h2 { "Speed over the length of the sequence" }
            (forms(comparison.columns.iter().map(|column| column.label.as_str()))?)
            div.plots { @for (name, _) in series { (figure(name, &plots::lengths(comparison, name)?)) } }
        }
    })
}

fn errors(comparison: &Comparison) -> Result<Markup> {
    Ok(html! {
        h2 { "Error beside speed" }
        p.soft {
            "The largest difference from the result in double precision, in parts of what counts as right (the line), \
             beside the share of the roofline. Further right is faster, further down is more exact."
        }
        (forms(comparison.columns.iter().map(|column| column.label.as_str()))?)
        div.plots {
            @for dtype in [DType::F32, DType::F16] {
                @if comparison.rows.iter().any(|row| row.dtype == dtype) {
                    (figure(&dtype.to_string(), &plots::errors(comparison, dtype)?))
                }
            }
        }
    })
}

fn rows(comparison: &Comparison, ops: &[&str]) -> Markup {
    html! {
        h2 id="rows" { "All rows" }
        form.controls hidden {
            label { "Search " input type="search" name="text" autocomplete="off"; }
            label { "Op " select name="op" {
                option value="" { "all" } @for op in ops { option { (op) } }
            } }
            label { "Record " select name="record" {
                option value="" { "all" }
                @for (place, column) in comparison.columns.iter().enumerate() {
                    option value=(place) { (column.label) }
                }
            } }
            label { "Sort " select name="sort" { option value="" { "as measured" } } }
            label.check { input type="checkbox" name="unusual"; " unusual only" }
            output name="count" {}
        }
        div.scroll { table.cards.rows aria-labelledby="rows" {
            thead { tr {
                th { "Workload" } th { "Record" } th { "Schedule" } th.n { "ms" } th.n { "GFLOP/s" }
                th.n { "GB/s" } th.n { "Share" } th.n { "Error" } th.n { "Compile, ms" } th.n { "Time" }
                th.n { "Paced" } th { "Notes" }
            } }
            tbody {
                @for row in &comparison.rows {
                    @for (place, (cell, column)) in row.cells.iter().zip(&comparison.columns).enumerate() {
                        (line(row, cell, place, column))
                    }
                }
            }
        } }
        p.soft {
            "ms: median, and from the lowest to the highest tenth. Error: max |x - reference| / RMS(reference). Compile: in \
             a new engine, and again with what the pipeline cache holds. Ratios with their 95 % intervals."
        }
    }
}

/// A workload on a device. The figures that are sorted by stand in the cells as they are.
fn line(row: &Row, cell: &Cell, place: usize, column: &Column) -> Markup {
    let unusual = !cell.flags.is_empty();
    html! {
        tr data-op=(row.op) data-record=(place) data-unusual[unusual] {
            th scope="row" data-v=(row.workload) { (row.workload) small { (row.shape) } }
            td data-label="Record" data-v=(place) { (swatch(place)) (column.label) }
            @match &cell.figures {
                Some(figures) => (measured(figures, cell)),
                // As many cells as a row with figures has, so that sorting finds them.
                None => {
                    td data-label="Schedule" {
                        (cell.state.word())
                        @if let Some(reason) = &cell.reason { small { (reason) } }
                    }
                    @for _ in 0..8 { td.none {} }
                },
            }
            td.bad[cell.state == State::Wrong || cell.state == State::Failed] data-label="Notes" data-v=(cell.flags.len()) {
                (flags(cell))
            }
        }
    }
}

fn measured(figures: &Figures, cell: &Cell) -> Markup {
    let f = figures;
    html! {
        td data-label="Schedule" data-v=(f.schedule) { (f.schedule) small { "bound by " (bound(f.bound)) } }
        td.n data-label="ms" data-v=(f.ms.median) { (ms(f.ms.median)) small { (ms(f.ms.p10)) "-" (ms(f.ms.p90)) } }
        td.n data-label="GFLOP/s" data-v=(f.gflops) { (digits(f.gflops)) }
        td.n data-label="GB/s" data-v=(f.gbps) { (digits(f.gbps)) }
        td.n data-label="Share" data-v=(f.share.median) {
            (percent(f.share.median)) small { (percent(f.share.p10)) "-" (percent(f.share.p90)) }
        }
        td.n data-label="Error" data-v=[f.err] { (error(f.err)) small { "limit " (error(Some(f.err_limit))) } }
        td.n data-label="Compile, ms" data-v=(f.first_compile_ms) {
            (digits(f.first_compile_ms)) small { "cached " (digits(f.cached_compile_ms)) }
        }
        @match cell.ratios {
            Some(ratios) => {
                td.n data-label="Time" data-v=(ratios.time.ratio) { (split(&interval(ratios.time))) }
                td.n data-label="Paced" data-v=(ratios.paced.ratio) { (split(&interval(ratios.paced))) }
            }
            None => { td.none {} td.none {} }
        }
    }
}

/// A ratio above its interval.
fn split(text: &str) -> Markup {
    let (ratio, rest) = text.split_once(' ').unwrap_or((text, ""));
    html! { (ratio) small { (rest) } }
}
