//! Ratios of what two devices took, with intervals from the spread of their runs.

use schemars::JsonSchema;
use serde::Serialize;

use super::rows::Runs;
use crate::bench::Spread;

/// A ratio to the reference: above 1 is slower than the reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Interval {
    /// The ratio of the medians.
    pub ratio: f64,
    /// Lower end of the 95 % interval; 0 where a side has fewer than 5 runs, of which too little is known.
    pub low: f64,
    /// Upper end of it; none (here: infinite) where a side has fewer than 5 runs.
    #[schemars(with = "Option<f64>")]
    pub high: f64,
}

/// How a row compares with its reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Ratios {
    /// Time over the reference's time.
    pub time: Interval,
    /// What the ratio of times would be if both devices had had the same pace. On the same kind of device: of each
    /// run's time multiplied by its pace, the geometric mean of the rates of the three kernels that ran around it. On
    /// different ones: the reference's share of its roofline over this one's.
    pub paced: Interval,
}

/// What a ratio counts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// At equal pace: other work on the machine counts little.
    Paced,
    /// Times.
    Time,
}

/// What an interval says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All of it is beyond the margin.
    Slower,
    /// All of it is beyond the margin on the other side.
    Faster,
    /// Neither.
    Alike,
}

/// Resamplings that an interval comes from.
const RESAMPLES: usize = 2000;
/// Where their sequence of random numbers starts.
const SEED: u64 = 0x0f0e_a7e5;
/// Runs of a side, of fewer of which nothing is known but the median.
const FEWEST: usize = 5;
/// The parts of the resamplings left out below and above.
const TAILS: f64 = 0.025;

impl Ratios {
    /// Those of a row on devices that are `alike` or not.
    pub(super) fn of(reference: &Runs, runs: &Runs, alike: bool) -> Option<Self> {
        Some(Self {
            time: interval(&runs.ms, &reference.ms)?,
            paced: if alike {
                interval(&runs.paced, &reference.paced)?
            } else {
                interval(&reference.shares, &runs.shares)?
            },
        })
    }

    /// The one that counts.
    pub fn by(&self, by: By) -> Interval {
        match by {
            By::Paced => self.paced,
            By::Time => self.time,
        }
    }
}

impl Interval {
    /// Whether there were runs enough for it.
    pub fn is_known(&self) -> bool {
        self.high.is_finite()
    }

    /// What it says with a margin, as 0.1 of 10 %.
    pub fn verdict(&self, margin: f64) -> Verdict {
        if self.low > 1.0 + margin {
            Verdict::Slower
        } else if self.high < 1.0 / (1.0 + margin) {
            Verdict::Faster
        } else {
            Verdict::Alike
        }
    }
}

/// The ratio of the medians of two lists of runs, with its interval by bootstrap (Efron, 1979). Runs of several
/// records are drawn in two steps, records first: what differs from one process to the next counts too.
fn interval(over: &[Vec<f64>], under: &[Vec<f64>]) -> Option<Interval> {
    let ratio = median(over.concat())? / median(under.concat())?;
    let count = |runs: &[Vec<f64>]| runs.iter().map(Vec::len).sum::<usize>();
    if count(over).min(count(under)) < FEWEST {
        return Some(Interval {
            ratio,
            low: 0.0,
            high: f64::INFINITY,
        });
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut ratios = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        ratios.push(median(drawn(over, &mut random))? / median(drawn(under, &mut random))?);
    }
    ratios.sort_by(f64::total_cmp);
    let at = |part: f64| ratios.get((part * RESAMPLES as f64) as usize).copied();
    Some(Interval {
        ratio,
        low: at(TAILS)?,
        high: at(1.0 - TAILS)?,
    })
}

/// As many runs as there are, drawn with replacement.
fn drawn(records: &[Vec<f64>], random: &mut fastrand::Rng) -> Vec<f64> {
    let mut runs = Vec::new();
    for _ in records {
        let Some(record) = random.choice(records) else {
            continue;
        };
        runs.extend(record.iter().filter_map(|_| random.choice(record)));
    }
    runs
}

fn median(values: Vec<f64>) -> Option<f64> {
    Spread::of(values)
        .map(|spread| spread.median)
        .filter(|median| *median > 0.0)
}

/// The geometric mean; 1 of none.
pub(super) fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| {
        (count + 1, sum + value.ln())
    });
    (sum / f64::from(count.max(1))).exp()
}
