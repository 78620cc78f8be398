//! Plots as SVG. Colours are names: the page's style sheet says what they look like in light and in dark.

use plotters::{
    coord::{Shift, combinators::LogCoord, ranged1d::AsRangedCoord},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::tables::{digits, percent};
use crate::{
    DType, Error, Result,
    bench::Ceilings,
    compare::{Cell, Comparison, Figures, Row},
};

/// Text and axes, as the page's style sheet knows them.
const INK: RGBColor = RGBColor(0x1d, 0x21, 0x25);
const SOFT: RGBColor = RGBColor(0x5f, 0x67, 0x6e);
const LINE: RGBColor = RGBColor(0xdf, 0xe2, 0xe4);
/// Colours that eyes of all kinds tell apart (Okabe and Ito, 2008), the darker ones first.
pub(super) const COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
];
/// Width of a plot; the page scales it to its column. A phone's width, so that letters stay readable there.
const WIDTH: u32 = 350;
const HEIGHT: u32 = 250;
/// Size of letters. plotters counts in other units than SVG.
const LETTERS: f64 = 15.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The colour of a place in a list.
pub(super) fn colour(place: usize) -> RGBColor {
    let colours = COLOURS.iter().cycle();
    colours.copied().nth(place % COLOURS.len()).unwrap_or(INK)
}

fn letters(colour: RGBColor, x: HPos, y: VPos) -> TextStyle<'static> {
    ("sans-serif", LETTERS)
        .into_font()
        .color(&colour)
        .pos(Pos::new(x, y))
}

/// Draws on a canvas of this size and returns the SVG, without the name space, which a page does not need.
fn svg([width, height]: [u32; 2], draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        draw(&area)
            .and_then(|()| Ok(area.present()?))
            .map_err(|error| Error::file("a plot", error))?;
    }
    let size = format!("width=\"{width}\" height=\"{height}\" ");
    Ok(text.replacen(&size, "role=\"img\" ", 1).replacen(
        " xmlns=\"http://www.w3.org/2000/svg\"",
        "",
        1,
    ))
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Shares of the roofline of some rows, a bar per device.
pub(super) fn bars(comparison: &Comparison, rows: &[&Row]) -> Result<String> {
    const LABEL: i32 = 18;
    const BAR: i32 = 14;
    const GAP: i32 = 8;
    let devices = comparison.columns.len() as i32;
    let group = LABEL + devices * BAR + GAP;
    let height = (rows.len() as i32 * group).max(group);
    // The same scale for all.
    let shares = comparison.rows.iter().flat_map(|row| &row.cells);
    let most = shares
        .filter_map(Cell::right)
        .fold(1.0, |most: f64, figures| most.max(figures.share.median));
    svg([WIDTH, height.unsigned_abs()], |area| {
        // Room for the figure at the end of the longest bar.
        let scale = f64::from(WIDTH - 52) / most;
        for (place, row) in (0..).zip(rows) {
            let top = place * group;
            let style = letters(INK, HPos::Left, VPos::Top);
            area.draw_text(&row.workload, &style, (0, top))?;
            for ((bar, number), cell) in (0..).zip(0..).zip(&row.cells) {
                let y = top + LABEL + bar * BAR;
                let Some(figures) = cell.right() else {
                    let style = letters(SOFT, HPos::Left, VPos::Center);
                    area.draw_text(cell.state.word(), &style, (4, y + BAR / 2))?;
                    continue;
                };
                let end = (figures.share.median * scale) as i32;
                area.draw(&Rectangle::new(
                    [(0, y), (end.max(1), y + BAR - 3)],
                    colour(number).filled(),
                ))?;
                let style = letters(SOFT, HPos::Left, VPos::Center);
                let text = percent(figures.share.median);
                area.draw_text(&text, &style, (end + 5, y + BAR / 2 - 1))?;
            }
        }
        // All that the device can do.
        let all = scale as i32;
        area.draw(&PathElement::new(vec![(all, 0), (all, height)], LINE))?;
        Ok(())
    })
}

/// The range of some numbers on a logarithmic axis, with room at both ends.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let values = values.filter(|value| value.is_finite() && *value > 0.0);
    let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), value| {
        (low.min(value), high.max(value))
    });
    (high > 0.0).then_some((low / 1.6, high * 1.9))
}

/// A chart with its frame drawn: names of the axes, and ticks of the y axis.
fn axes<'a, 'b, X>(
    area: &'b Area<'a>,
    x: X,
    (low, high): (f64, f64),
    [x_name, y_name]: [&str; 2],
) -> std::result::Result<Chart<'b, 'a, X::CoordDescType>, Box<dyn std::error::Error>>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64>,
{
    let chart = ChartBuilder::on(area)
        .margin_top(26)
        .margin_right(14)
        .x_label_area_size(42)
        .y_label_area_size(44)
        .build_cartesian_2d(x, (low..high).log_scale())?;
    let (left, right) = {
        let (xs, _) = chart.plotting_area().get_pixel_range();
        (xs.start, xs.end)
    };
    let style = letters(SOFT, HPos::Right, VPos::Center);
    for tick in ticks(low, high) {
        let x = chart.plotting_area().get_x_range().start;
        let (_, y) = chart.backend_coord(&(x, tick));
        area.draw(&PathElement::new(vec![(left, y), (right, y)], LINE))?;
        area.draw_text(&plain(tick), &style, (left - 6, y))?;
    }
    let style = letters(SOFT, HPos::Left, VPos::Top);
    area.draw_text(y_name, &style, (0, 0))?;
    let style = letters(SOFT, HPos::Right, VPos::Bottom);
    area.draw_text(x_name, &style, (right, HEIGHT as i32))?;
    // The frame's lower edge, over the lines of the ticks.
    let (_, ys) = chart.plotting_area().get_pixel_range();
    area.draw(&PathElement::new(
        vec![(left, ys.end), (right, ys.end)],
        SOFT,
    ))?;
    Ok(chart)
}

/// Writes the ticks of the x axis, but for those that would stand on one another.
fn x_ticks<X: Ranged<ValueType = f64>>(
    area: &Area<'_>,
    chart: &Chart<'_, '_, X>,
    ticks: impl Iterator<Item = (f64, String)>,
) -> Drawn {
    /// Width of a letter, at most.
    const LETTER: i32 = 8;
    let low = chart.plotting_area().get_y_range().start;
    let style = letters(SOFT, HPos::Center, VPos::Top);
    let mut free = i32::MIN;
    for (tick, text) in ticks {
        let (x, bottom) = chart.backend_coord(&(tick, low));
        let half = text.chars().count() as i32 * LETTER / 2;
        if x - half < free {
            continue;
        }
        area.draw_text(&text, &style, (x, bottom + 6))?;
        free = x + half;
    }
    Ok(())
}

type Chart<'b, 'a, X> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<X, LogCoord<f64>>>;

/// Ticks of a logarithmic axis: powers of ten, with their doubles and fives where there is room.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = || (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
    let of = |steps: &[f64]| -> Vec<f64> {
        let all = powers().flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        all.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let fine = of(&[1.0, 2.0, 5.0]);
    if fine.len() <= 5 {
        return fine;
    }
    let coarse = of(&[1.0]);
    let every = coarse.len().div_ceil(5).max(1);
    coarse.into_iter().step_by(every).collect()
}

/// A tick in as few digits as it has.
fn plain(tick: f64) -> String {
    let power = tick.log10().round();
    if power < -3.0 {
        format!("{tick:.0e}")
    } else {
        let places = (-tick.log10().floor()).max(0.0) as usize;
        format!("{tick:.places$}")
    }
}

/// A point whose form differs with its place in a list, as its colour does.
fn mark<X: Ranged<ValueType = f64>>(
    chart: &mut Chart<'_, '_, X>,
    place: usize,
    at: (f64, f64),
) -> Drawn {
    const SIZE: i32 = 4;
    let filled = colour(place).filled();
    let line = colour(place).stroke_width(2);
    match place % FORMS {
        0 => chart.draw_series([Circle::new(at, SIZE, filled)])?,
        1 => chart.draw_series([TriangleMarker::new(at, SIZE + 2, filled)])?,
        2 => chart.draw_series([Cross::new(at, SIZE, line)])?,
        _ => chart.draw_series([Circle::new(at, SIZE, line)])?,
    };
    Ok(())
}

/// Forms of points.
const FORMS: usize = 4;

/// The form of a place's points, to stand in text.
pub(super) fn form(place: usize) -> Result<String> {
    svg([12, 12], |area| {
        let mut chart =
            ChartBuilder::on(area).build_cartesian_2d(0.0..2.0, (0.1..10.0).log_scale())?;
        mark(&mut chart, place, (1.0, 1.0))
    })
}

/// A device's rows below its own ceilings: speed over operations per byte.
pub(super) fn roofline(
    comparison: &Comparison,
    column: usize,
    ceilings: &Ceilings,
    ops: &[&str],
) -> Result<String> {
    let points: Vec<(usize, &Figures)> = comparison
        .rows
        .iter()
        .filter_map(|row| {
            let figures = row.cells.get(column)?.right()?;
            let op = ops.iter().position(|op| *op == row.op)?;
            (figures.intensity > 0.0).then_some((op, figures))
        })
        .collect();
    let roof = ceilings
        .fma_gflops
        .max(ceilings.matrix_gflops.unwrap_or(0.0));
    let rates = [ceilings.fma_gflops, ceilings.read_gbps, ceilings.copy_gbps];
    if rates.iter().any(|rate| !rate.is_normal() || *rate <= 0.0) {
        // There is no roof.
        return Ok(String::new());
    }
    // So that the corner can be seen, whatever the rows are.
    let corner = roof / ceilings.read_gbps;
    let x = points.iter().map(|(_, figures)| figures.intensity);
    let y = points.iter().map(|(_, figures)| figures.gflops);
    let (Some(x), Some(y)) = (
        span(x.chain([corner / 4.0, corner * 4.0])),
        span(y.chain([roof])),
    ) else {
        return Ok(String::new());
    };
    svg([WIDTH, HEIGHT], |area| {
        let names = ["operations per byte", "GFLOP/s"];
        let mut chart = axes(area, (x.0..x.1).log_scale(), y, names)?;
        let labels = ticks(x.0, x.1).into_iter().map(|tick| (tick, plain(tick)));
        x_ticks(area, &chart, labels)?;
        let slope = |rate: f64, most: f64| {
            let start = x.0.max(y.0 / rate);
            let bend = (most / rate).clamp(start, x.1);
            vec![
                (start, start * rate),
                (bend, bend * rate),
                (x.1, (bend * rate).min(most)),
            ]
        };
        chart.draw_series([PathElement::new(
            slope(ceilings.copy_gbps, ceilings.fma_gflops),
            SOFT.stroke_width(1),
        )])?;
        chart.draw_series([PathElement::new(
            slope(ceilings.read_gbps, ceilings.fma_gflops),
            INK.stroke_width(2),
        )])?;
        if let Some(rate) = ceilings.matrix_gflops {
            let from = (rate / ceilings.read_gbps).min(x.1);
            chart.draw_series([PathElement::new(
                vec![(from, rate), (x.1, rate)],
                INK.stroke_width(2),
            )])?;
        }
        for (op, figures) in points {
            mark(&mut chart, op, (figures.intensity, figures.gflops))?;
        }
        let style = letters(INK, HPos::Right, VPos::Bottom);
        for (rate, name) in [
            (Some(ceilings.fma_gflops), "multiply-adds"),
            (ceilings.matrix_gflops, "matrices"),
        ] {
            let Some(rate) = rate else { continue };
            let (right, top) = chart.backend_coord(&(x.1, rate));
            let text = format!("{name} {}", digits(rate));
            area.draw_text(&text, &style, (right, top - 4))?;
        }
        Ok(())
    })
}

/// Speed over the length of the sequence, a line per device.
pub(super) fn lengths(comparison: &Comparison, series: &str) -> Result<String> {
    let points = |column: usize| {
        let mut points: Vec<(f64, f64)> = comparison
            .rows
            .iter()
            .filter(|row| row.series.as_deref() == Some(series))
            .filter_map(|row| {
                let figures = row.cells.get(column)?.right()?;
                Some((row.length? as f64, figures.gflops))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by(|a, b| a.0 == b.0);
        points
    };
    let lines: Vec<Vec<(f64, f64)>> = (0..comparison.columns.len()).map(points).collect();
    let all = || lines.iter().flatten();
    let (Some(x), Some(y)) = (span(all().map(|p| p.0)), span(all().map(|p| p.1))) else {
        return Ok(String::new());
    };
    svg([WIDTH, HEIGHT], |area| {
        let names = ["length", "GFLOP/s"];
        let mut chart = axes(area, (x.0..x.1).log_scale(), y, names)?;
        let mut lengths: Vec<f64> = all().map(|point| point.0).collect();
        lengths.sort_by(f64::total_cmp);
        lengths.dedup();
        let labels = lengths
            .into_iter()
            .map(|length| (length, length.to_string()));
        x_ticks(area, &chart, labels)?;
        for (place, line) in lines.iter().enumerate() {
            chart.draw_series([PathElement::new(
                line.clone(),
                colour(place).stroke_width(2),
            )])?;
            for point in line {
                mark(&mut chart, place, *point)?;
            }
        }
        Ok(())
    })
}

/// Errors, in parts of what is right, beside the share of the roofline.
pub(super) fn errors(comparison: &Comparison, dtype: DType) -> Result<String> {
    /// Exact results have a place too.
    const LEAST: f64 = 1e-4;
    let points: Vec<(usize, f64, f64)> = comparison
        .rows
        .iter()
        .filter(|row| row.dtype == dtype)
        .flat_map(|row| row.cells.iter().enumerate())
        .filter_map(|(column, cell)| {
            let figures = cell.right()?;
            let part = (figures.err? / figures.err_limit).max(LEAST);
            Some((column, figures.share.median, part))
        })
        .collect();
    let most = points
        .iter()
        .fold(1.0, |most: f64, point| most.max(point.1));
    let Some(y) = span(points.iter().map(|point| point.2).chain([1.0])) else {
        return Ok(String::new());
    };
    svg([WIDTH, HEIGHT], |area| {
        let names = ["share of the roofline", "error, in parts of what is right"];
        let x = 0.0..most * 1.05;
        let mut chart = axes(area, x.clone(), y, names)?;
        let labels = (0..=10).map(|part| f64::from(part) / 4.0);
        let labels = labels.filter(|share| x.contains(share));
        x_ticks(area, &chart, labels.map(|share| (share, percent(share))))?;
        chart.draw_series([PathElement::new(
            vec![(x.start, 1.0), (x.end, 1.0)],
            SOFT.stroke_width(1),
        )])?;
        for (column, share, part) in points {
            mark(&mut chart, column, (share, part))?;
        }
        Ok(())
    })
}
