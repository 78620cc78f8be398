//! Scores for routing from their formula.

/// Inputs of [`route_scores`], contiguous.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the names are those of the op")]
pub struct RouteScoresInputs<'a> {
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub rows: usize,
    pub columns: usize,
    pub channels: usize,
    /// `[batch, q_heads, rows, channels]`
    pub q: &'a [f64],
    /// `[batch, kv_heads, columns, channels]`
    pub k: &'a [f64],
    /// Lower bounds; products where there are none.
    pub k_min: Option<&'a [f64]>,
    /// `[batch, q_heads, rows]`
    pub head_weights: Option<&'a [f64]>,
    pub scale: f64,
    pub relu: bool,
    pub sum_heads: bool,
}

/// Scores, `[batch, q_heads or kv_heads, rows, columns]`.
pub fn route_scores(a: &RouteScoresInputs<'_>) -> Vec<f64> {
    let group = a.q_heads / a.kv_heads;
    let score = |b: usize, h: usize, i: usize, j: usize| -> f64 {
        let at = ((b * a.q_heads + h) * a.rows + i) * a.channels;
        let q = &a.q[at..at + a.channels];
        let at = ((b * a.kv_heads + h / group) * a.columns + j) * a.channels;
        let k = &a.k[at..at + a.channels];
        let product: f64 = match a.k_min {
            None => q.iter().zip(k).map(|(q, k)| q * k).sum(),
            Some(k_min) => {
                let bounds = k.iter().zip(&k_min[at..at + a.channels]);
                let terms = q.iter().zip(bounds);
                terms.map(|(q, (high, low))| (q * high).max(q * low)).sum()
            }
        };
        let mut score = a.scale * product;
        if a.relu {
            score = score.max(0.0);
        }
        let weight = a.head_weights.map(|w| w[(b * a.q_heads + h) * a.rows + i]);
        score * weight.unwrap_or(1.0)
    };
    let (heads, summed) = if a.sum_heads {
        (a.kv_heads, group)
    } else {
        (a.q_heads, 1)
    };
    let mut out = Vec::new();
    for b in 0..a.batch {
        for h in 0..heads {
            for i in 0..a.rows {
                for j in 0..a.columns {
                    out.push((0..summed).map(|g| score(b, h * summed + g, i, j)).sum());
                }
            }
        }
    }
    out
}
