//! Pooling from its formula.

use crate::ops::{Divisor, PoolRule};

/// Inputs of [`pool`], contiguous.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the names are those of the op")]
pub struct PoolInputs<'a> {
    /// Batch entries times heads.
    pub sequences: usize,
    pub rows: usize,
    pub channels: usize,
    /// `[sequences, rows, channels]`
    pub x: &'a [f64],
    /// First row and end of each block, of each sequence.
    pub blocks: &'a [Vec<(usize, usize)>],
    /// Rows of a whole block.
    pub block: usize,
    pub rule: PoolRule,
    pub normalise: bool,
    /// Valid rows of each sequence; all when empty.
    pub lens: &'a [usize],
}

/// Pooled rows, `[sequences, blocks, channels]`.
pub fn pool(a: &PoolInputs<'_>) -> Vec<f64> {
    let mut y = Vec::new();
    for (sequence, blocks) in a.blocks.iter().enumerate().take(a.sequences) {
        let len = a.lens.get(sequence).map_or(a.rows, |&len| len.min(a.rows));
        for &(begin, end) in blocks {
            let rows = begin.min(len)..end.min(len);
            let count = rows.len() as f64;
            let column = |d: usize| {
                let rows = rows.clone();
                rows.map(move |row| a.x[(sequence * a.rows + row) * a.channels + d])
            };
            let pooled = |d: usize| match a.rule {
                _ if rows.is_empty() => 0.0,
                PoolRule::Max => column(d).fold(f64::NEG_INFINITY, f64::max),
                PoolRule::Min => column(d).fold(f64::INFINITY, f64::min),
                PoolRule::Mean(divisor) => {
                    let divisor = match divisor {
                        Divisor::Len => count,
                        Divisor::Block => a.block as f64,
                        Divisor::SqrtLen => count.sqrt(),
                    };
                    column(d).sum::<f64>() / divisor
                }
            };
            let mut row: Vec<f64> = (0..a.channels).map(pooled).collect();
            if a.normalise {
                let length = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
                row.iter_mut().for_each(|x| *x /= length);
            }
            y.extend(row);
        }
    }
    y
}
