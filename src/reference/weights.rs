//! Attention's scores and weights, and statistics of them, from their definitions.

use super::AttentionInputs;
use crate::ops::{Stage, Statistic};

/// All scores of an attention at some stage, or its weights: `[batch, q_heads, q_len, kv_len]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Rows of `kv_len` numbers.
    pub rows: Vec<Vec<f64>>,
    /// Which of them are visible.
    pub visible: Vec<Vec<bool>>,
}

impl Matrix {
    /// Of an attention.
    pub fn of(a: &AttentionInputs<'_>, stage: Stage) -> Self {
        let mut matrix = Self {
            rows: Vec::new(),
            visible: Vec::new(),
        };
        for b in 0..a.batch {
            for h in 0..a.q_heads {
                for i in 0..a.q_len {
                    let pairs = (0..a.kv_len).map(|j| [b, h, i, j]);
                    let scores: Vec<f64> = pairs.clone().map(|pair| a.final_score(pair)).collect();
                    matrix
                        .visible
                        .push(scores.iter().map(|s| *s > f64::NEG_INFINITY).collect());
                    matrix.rows.push(match stage {
                        Stage::Scaled => pairs.map(|pair| a.scaled_score(pair)).collect(),
                        Stage::Capped => pairs.map(|pair| a.capped_score(pair)).collect(),
                        Stage::Final => scores,
                        Stage::Weights => {
                            let sink = a.sinks.map_or(f64::NEG_INFINITY, |sinks| sinks[h]);
                            let all = || scores.iter().chain([&sink]);
                            let max = all().copied().fold(f64::NEG_INFINITY, f64::max);
                            let total: f64 = all().map(|s| (s - max).exp()).sum();
                            let weight = |(s, pair): (&f64, _)| match a.prob {
                                _ if *s == f64::NEG_INFINITY => 0.0,
                                Some(change) => change((s - max).exp() / total, pair),
                                None => (s - max).exp() / total,
                            };
                            scores.iter().zip(pairs).map(weight).collect()
                        }
                    });
                }
            }
        }
        matrix
    }
}

/// A statistic of an attention, and the keys that go with it where there are any.
pub fn weights(a: &AttentionInputs<'_>, statistic: &Statistic) -> (Vec<f64>, Vec<u32>) {
    let stage = match statistic {
        Statistic::Matrix { stage, .. } => *stage,
        Statistic::LargestScore => Stage::Final,
        _ => Stage::Weights,
    };
    let matrix = Matrix::of(a, stage);
    let rows = matrix.rows.iter().zip(&matrix.visible);
    let mut out = Vec::new();
    let mut keys = Vec::new();
    match statistic {
        Statistic::Matrix {
            heads,
            rows: wanted,
            ..
        } => {
            for (number, row) in matrix.rows.iter().enumerate() {
                let head = (number / a.q_len % a.q_heads) as u64;
                let query = (number % a.q_len) as u64;
                if heads.contains(&head) && wanted.contains(&query) {
                    out.extend(row);
                }
            }
        }
        Statistic::Entropy => {
            let part = |w: &f64| if *w > 0.0 { -w * w.ln() } else { 0.0 };
            out.extend(rows.map(|(row, _)| row.iter().map(part).sum::<f64>()));
        }
        Statistic::LargestScore => {
            for (number, row) in matrix.rows.iter().enumerate() {
                let head = number / a.q_len % a.q_heads;
                let sink = a.sinks.map_or(f64::NEG_INFINITY, |sinks| sinks[head]);
                out.push(row.iter().copied().fold(sink, f64::max));
            }
        }
        Statistic::Mass => {
            for head in matrix.rows.chunks(a.q_len) {
                out.extend((0..a.kv_len).map(|j| head.iter().map(|row| row[j]).sum::<f64>()));
            }
        }
        Statistic::LargestWeight | Statistic::Top { .. } => {
            let count = match statistic {
                Statistic::Top { count } => *count as usize,
                _ => 1,
            };
            for (row, visible) in rows {
                let mut order: Vec<usize> = (0..a.kv_len).filter(|&j| visible[j]).collect();
                // Stable: ties keep their order.
                order.sort_by(|&x, &y| row[y].total_cmp(&row[x]));
                for place in 0..count {
                    let key = order.get(place);
                    out.push(key.map_or(0.0, |&key| row[key]));
                    keys.push(key.map_or(u32::MAX, |&key| key as u32));
                }
            }
        }
    }
    (out, keys)
}
