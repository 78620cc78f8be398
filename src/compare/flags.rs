//! What is unusual about a row.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    columns::Device,
    ratio::Verdict,
    rows::{Cell, Figures, Row, State},
};
use crate::bench::Spread;

/// Something unusual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// The result is wrong.
    Wrong,
    /// It did not run.
    Failed,
    /// The device cannot run it.
    Skipped,
    /// The record has no such row.
    Missing,
    /// At equal pace it is slower than its reference by more than a twentieth, with its whole interval.
    Slower,
    /// The same, faster.
    Faster,
    /// Its share of the roofline is less than half the median of this device's rows that the same ceiling bounds.
    SlowForClass,
    /// Its error is more than four times the median of this device's rows of the same op and storage, or of its
    /// reference's.
    ErrorHigh,
    /// The schedule is not that of its reference.
    OtherSchedule,
    /// Records of this device that were taken together have different schedules.
    MixedSchedules,
    /// The other record's clock is another one; ratios are of wall times.
    OtherClock,
    /// Runs differ much, even at equal pace: one in ten took less than half as long as another one in ten.
    Noisy,
}

impl Flag {
    /// In a few words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Wrong => State::Wrong.word(),
            Self::Failed => State::Failed.word(),
            Self::Skipped => State::Skipped.word(),
            Self::Missing => State::Missing.word(),
            Self::Slower => "slower",
            Self::Faster => "faster",
            Self::SlowForClass => "slow for its class",
            Self::ErrorHigh => "error high",
            Self::OtherSchedule => "other schedule",
            Self::MixedSchedules => "mixed schedules",
            Self::OtherClock => "other clock",
            Self::Noisy => "noisy",
        }
    }
}

/// Ratios nearer to 1 than this are not worth a flag.
const MARGIN: f64 = 0.05;
/// A share below this part of the class's median is unusual.
const SLOW: f64 = 0.5;
/// Rows of a class, without which it says nothing.
const CLASS: usize = 4;
/// An error past this many times the usual one is unusual.
const HIGH: f64 = 4.0;
/// Errors below this part of the limit are never high.
const NEAR_LIMIT: f64 = 0.05;
/// Ratio of the upper to the lower tenth of the shares that is unusual.
const NOISY: f64 = 2.0;

/// Flags every cell.
pub(super) fn mark(devices: &[Device<'_>], rows: &mut [Row]) {
    let flags: Vec<Vec<Vec<Flag>>> = rows
        .iter()
        .map(|row| {
            let cells = devices.iter().enumerate();
            cells
                .map(|(column, device)| flags(rows, row, column, device.column.reference))
                .collect()
        })
        .collect();
    for (row, flags) in rows.iter_mut().zip(flags) {
        for (cell, flags) in row.cells.iter_mut().zip(flags) {
            cell.flags = flags;
        }
    }
}

fn flags(rows: &[Row], row: &Row, column: usize, reference: Option<usize>) -> Vec<Flag> {
    let Some(cell) = row.cells.get(column) else {
        return Vec::new();
    };
    let twin = reference.and_then(|place| row.cells.get(place));
    let twin = twin.and_then(Cell::right);
    let mut flags = Vec::new();
    match cell.state {
        State::Right => {}
        State::Wrong => flags.push(Flag::Wrong),
        State::Failed => flags.push(Flag::Failed),
        State::Skipped => flags.push(Flag::Skipped),
        State::Missing => flags.push(Flag::Missing),
    }
    match cell.ratios.map(|ratios| ratios.paced.verdict(MARGIN)) {
        Some(Verdict::Slower) => flags.push(Flag::Slower),
        Some(Verdict::Faster) => flags.push(Flag::Faster),
        Some(Verdict::Alike) | None => {}
    }
    // Speed and error of what is wrong say nothing more.
    let Some(figures) = cell.right() else {
        return flags;
    };
    let class = |of_class: &dyn Fn(&Row, &Figures) -> Option<f64>| {
        let figures = rows.iter().filter_map(|other| {
            let figures = other.cells.get(column)?.right()?;
            of_class(other, figures)
        });
        let class = Spread::of(figures.collect());
        class
            .filter(|spread| spread.runs >= CLASS)
            .map(|spread| spread.median)
    };
    let usual = class(&|_, other| (other.bound == figures.bound).then_some(other.share.median));
    if usual.is_some_and(|usual| figures.share.median < SLOW * usual) {
        flags.push(Flag::SlowForClass);
    }
    // Errors in parts of what is right, so that storages and lengths compare.
    let part = |figures: &Figures| Some(figures.err? / figures.err_limit);
    let usual = class(&|other, figures| {
        (other.op == row.op && other.dtype == row.dtype).then(|| part(figures))?
    });
    let high =
        |usual: f64| part(figures).is_some_and(|part| part > NEAR_LIMIT && part > HIGH * usual);
    if usual.is_some_and(high) || twin.and_then(part).is_some_and(high) {
        flags.push(Flag::ErrorHigh);
    }
    if twin.is_some_and(|twin| twin.schedule != figures.schedule) {
        flags.push(Flag::OtherSchedule);
    }
    if figures.mixed_schedules {
        flags.push(Flag::MixedSchedules);
    }
    if twin.is_some_and(|twin| twin.clock != figures.clock) {
        flags.push(Flag::OtherClock);
    }
    if figures.share.p90 > NOISY * figures.share.p10 {
        flags.push(Flag::Noisy);
    }
    flags
}
