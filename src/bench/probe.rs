//! How fast the device is at the moment: the kernels that reached its ceilings, run again beside what is timed.

use crate::{
    Call, Result,
    bench::{Bound, Ceilings, Cost, Spread, Timer},
};

/// A kernel that reached a ceiling.
#[derive(Debug)]
pub(super) struct Probe {
    pub call: Call,
    /// Operations or bytes of one run.
    pub work: f64,
}

impl Probe {
    /// How long a probe of arithmetic should run, in ms: as long as the pace of a busy machine needs to show.
    pub const WANTED_MS: f64 = 5.0;

    /// GFLOP/s or GB/s, right now: over so many ms, at least.
    fn rate(&self, timer: &Timer<'_>, least_ms: f64) -> Result<f64> {
        let (mut work, mut ms) = (0.0, 0.0);
        for _ in 0..MOST_REPEATS {
            ms += timer.run(&self.call)?.ms();
            work += self.work;
            if ms >= least_ms {
                break;
            }
        }
        Ok(work / ms / 1e6)
    }
}

/// The most runs of one probe.
const MOST_REPEATS: usize = 8;

/// The kernels that reached the ceilings, as [`super::survey`] found them.
#[derive(Debug)]
pub struct Probes {
    pub(super) fma: Option<Probe>,
    pub(super) matrix: Option<Probe>,
    pub(super) read: Option<Probe>,
    pub(super) copy: Option<Probe>,
}

/// What bounds an op, and the rates to look at while it is timed.
#[derive(Debug)]
pub(super) struct Bounds<'a> {
    probes: &'a Probes,
    ceilings: &'a Ceilings,
    cost: Cost,
    matrix: bool,
}

/// Rates at one moment, in GFLOP/s and GB/s.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Of multiply-adds in f32.
    pub fma: f64,
    /// Of matrices, where the op runs on them.
    pub matrix: Option<f64>,
    pub read: f64,
    pub copy: f64,
}

impl<'a> Bounds<'a> {
    pub fn new(probes: &'a Probes, ceilings: &'a Ceilings, cost: Cost, matrix: bool) -> Self {
        Self {
            probes,
            ceilings,
            cost,
            matrix: matrix && probes.matrix.is_some(),
        }
    }

    /// Runs the probes, each for so many ms at least. Those of memory also leave nothing else in the caches. A ceiling
    /// that has no probe stays as it was.
    pub fn pace(&self, timer: &Timer<'_>, least_ms: f64) -> Result<Pace> {
        let rate = |probe: &Option<Probe>, else_: f64| match probe {
            Some(probe) => probe.rate(timer, least_ms),
            None => Ok(else_),
        };
        Ok(Pace {
            fma: rate(&self.probes.fma, self.ceilings.fma_gflops)?,
            matrix: match &self.probes.matrix {
                Some(probe) if self.matrix => Some(probe.rate(timer, least_ms)?),
                _ => None,
            },
            read: rate(&self.probes.read, self.ceilings.read_gbps)?,
            copy: rate(&self.probes.copy, self.ceilings.copy_gbps)?,
        })
    }

    /// The ceilings at a pace; matrices instead of multiply-adds where the op runs on them.
    fn at(&self, pace: Pace) -> Ceilings {
        Ceilings {
            fma_gflops: pace.matrix.unwrap_or(pace.fma),
            read_gbps: pace.read,
            copy_gbps: pace.copy,
            ..*self.ceilings
        }
    }

    /// Share of the lower roofline of a run, at the pace of its moment.
    pub fn share(&self, ms: f64, pace: Pace) -> f64 {
        self.cost.share(ms, &self.at(pace))
    }

    /// Which ceiling is the lower one at a pace.
    pub fn bound(&self, pace: Pace) -> Bound {
        let now = self.at(pace);
        if self.cost.arithmetic_ms(&now) > self.cost.memory_ms(&now) {
            if self.matrix {
                Bound::Matrix
            } else {
                Bound::MultiplyAdd
            }
        } else if 4.0 * self.cost.written_bytes.min(self.cost.read_bytes) > self.cost.bytes() {
            Bound::Copy
        } else {
            Bound::Read
        }
    }
}

impl Pace {
    /// The pace between two moments: rates whose times are the means of the two.
    pub fn between(self, other: Self) -> Self {
        let mean = |a: f64, b: f64| 2.0 / (1.0 / a + 1.0 / b);
        Self {
            fma: mean(self.fma, other.fma),
            matrix: self.matrix.zip(other.matrix).map(|(a, b)| mean(a, b)),
            read: mean(self.read, other.read),
            copy: mean(self.copy, other.copy),
        }
    }

    /// The medians of several.
    pub fn median(paces: &[Self]) -> Option<Self> {
        let of = |rate: fn(&Self) -> f64| {
            Spread::of(paces.iter().map(rate).collect()).map(|spread| spread.median)
        };
        Some(Self {
            fma: of(|pace| pace.fma)?,
            matrix: {
                let rates: Option<Vec<f64>> = paces.iter().map(|pace| pace.matrix).collect();
                rates.and_then(Spread::of).map(|spread| spread.median)
            },
            read: of(|pace| pace.read)?,
            copy: of(|pace| pace.copy)?,
        })
    }
}
