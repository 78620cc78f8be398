//! Scans from their formulas.

use crate::ops::Denominator;

/// A scan over one sequence of one channel.
#[derive(Debug, Clone, Copy)]
pub enum ScanInputs<'a> {
    /// `h_t = exp(g_t) h_{t-1} + x_t`.
    Sum {
        /// Summands.
        x: &'a [f64],
        /// Logarithms of factors; 0 when absent.
        g: Option<&'a [f64]>,
        /// The sum before the first token.
        initial: f64,
    },
    /// `z_t = log sum_{j<=t} exp(x_j)`.
    LogSumExp {
        /// Numbers whose exponentials are summed up.
        x: &'a [f64],
        /// The log-sum-exp before the first token; minus infinity for nothing.
        initial: f64,
    },
    /// Weighted means of values.
    Softmax {
        /// Scores.
        s: &'a [f64],
        /// Values.
        v: &'a [f64],
        /// What weights are divided by.
        denominator: Denominator,
        /// `m`, `u` and `w` before the first token; minus infinity, 0 and 0 for nothing.
        initial: [f64; 3],
    },
}

/// What each token gives: the output; its weight and the decay before it, for a log-sum-exp; the state after it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScanOutputs {
    /// The output.
    pub o: Vec<f64>,
    /// `exp(x_t - z_t)`.
    pub weights: Vec<f64>,
    /// `z_{t-1} - z_t`, 0 where nothing came before.
    pub log_decay: Vec<f64>,
    /// `m`, `u` and `w`; of the other rules the output, 0 and 0.
    pub states: Vec<[f64; 3]>,
}

/// A scan in f64. Sums of exponentials are relative to the largest score of the whole sequence, so scores that
/// far exceed those before them (by 600 and more) lose these.
pub fn scan(inputs: &ScanInputs<'_>) -> ScanOutputs {
    match *inputs {
        ScanInputs::Sum { x, g, initial } => {
            let mut out = ScanOutputs::default();
            let mut h = initial;
            for (t, x) in x.iter().enumerate() {
                h = g.map_or(1.0, |g| g[t].exp()) * h + x;
                out.o.push(h);
                out.states.push([h, 0.0, 0.0]);
            }
            out
        }
        ScanInputs::LogSumExp { x, initial } => {
            let u0 = if initial == f64::NEG_INFINITY {
                0.0
            } else {
                1.0
            };
            let sums = Sums::new(x, initial, u0);
            let mut out = ScanOutputs::default();
            let mut before = initial;
            for (t, &x) in x.iter().enumerate() {
                let z = sums.log(t);
                let none = before == f64::NEG_INFINITY;
                out.o.push(z);
                out.weights.push(if z == f64::NEG_INFINITY {
                    0.0
                } else {
                    (x - z).exp()
                });
                out.log_decay.push(if none { 0.0 } else { before - z });
                out.states.push([z, 0.0, 0.0]);
                before = z;
            }
            out
        }
        ScanInputs::Softmax {
            s,
            v,
            denominator,
            initial: [m0, u0, w0],
        } => {
            let sums = Sums::new(s, m0, u0);
            let step = denominator == Denominator::Step;
            let mut out = ScanOutputs::default();
            let mut values = if step { w0 } else { w0 * sums.share(m0) };
            let mut m = if u0 == 0.0 { f64::NEG_INFINITY } else { m0 };
            for (t, (&s, v)) in s.iter().zip(v).enumerate() {
                m = m.max(s);
                let total = sums.totals[t];
                let term = sums.share(s) * v;
                values += match (step, total == 0.0) {
                    (false, _) => term,
                    (true, true) => 0.0,
                    (true, false) => term / total,
                };
                // From relative to the largest of all to relative to the largest so far.
                let back = if m == f64::NEG_INFINITY {
                    0.0
                } else {
                    (sums.most - m).exp()
                };
                out.o.push(match (step, total == 0.0) {
                    (true, _) => values,
                    (false, true) => 0.0,
                    (false, false) => values / total,
                });
                out.states
                    .push([m, total * back, if step { values } else { values * back }]);
            }
            if denominator == Denominator::All
                && let Some(&last) = out.o.last()
            {
                out.o.fill(last);
            }
            out
        }
    }
}

/// Sums of `exp(x - most)` up to each token.
struct Sums {
    most: f64,
    totals: Vec<f64>,
}

impl Sums {
    fn new(x: &[f64], m0: f64, u0: f64) -> Self {
        let m0 = if u0 == 0.0 { f64::NEG_INFINITY } else { m0 };
        let most = x.iter().copied().fold(m0, f64::max);
        let mut sums = Self {
            most,
            totals: Vec::new(),
        };
        let mut total = u0 * sums.share(m0);
        for &x in x {
            total += sums.share(x);
            sums.totals.push(total);
        }
        sums
    }

    /// `exp(x - most)`, 0 for minus infinity.
    fn share(&self, x: f64) -> f64 {
        if x == f64::NEG_INFINITY {
            0.0
        } else {
            (x - self.most).exp()
        }
    }

    fn log(&self, t: usize) -> f64 {
        if self.totals[t] == 0.0 {
            f64::NEG_INFINITY
        } else {
            self.most + self.totals[t].ln()
        }
    }
}
