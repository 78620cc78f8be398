//! Attention of holographic reduced representations from its formula.

/// Inputs of [`hrr_attention`], contiguous.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the names are those of the op")]
pub struct HrrAttentionInputs<'a> {
    pub batch: usize,
    pub heads: usize,
    pub seq: usize,
    pub dim: usize,
    /// `[batch, heads, seq, dim]`, as `k` and `v`.
    pub q: &'a [f64],
    pub k: &'a [f64],
    pub v: &'a [f64],
    /// `[batch, seq]`
    pub mask: Option<&'a [bool]>,
}

/// The output, `[batch, heads, seq, dim]`.
pub fn hrr_attention(a: &HrrAttentionInputs<'_>) -> Vec<f64> {
    let mut o = Vec::new();
    for sequence in 0..a.batch * a.heads {
        let rows = |x: &'_ [f64], t: usize| -> Vec<f64> {
            let start = (sequence * a.seq + t) * a.dim;
            x[start..start + a.dim].to_vec()
        };
        let mut beta = vec![0.0; a.dim];
        for t in 0..a.seq {
            for (sum, x) in beta.iter_mut().zip(convolve(&rows(a.k, t), &rows(a.v, t))) {
                *sum += x;
            }
        }
        let weights: Vec<f64> = (0..a.seq)
            .map(|t| {
                let q = rows(a.q, t);
                let inverse: Vec<f64> = (0..a.dim).map(|d| q[(a.dim - d) % a.dim]).collect();
                let seen = a
                    .mask
                    .is_none_or(|mask| mask[sequence / a.heads * a.seq + t]);
                let score = cosine(&rows(a.v, t), &convolve(&beta, &inverse));
                if seen { score.exp() } else { 0.0 }
            })
            .collect();
        let total: f64 = weights.iter().sum();
        for (t, weight) in weights.into_iter().enumerate() {
            let weight = if total > 0.0 { weight / total } else { 0.0 };
            o.extend(rows(a.v, t).into_iter().map(|v| weight * v));
        }
    }
    o
}

/// `c_d = Σ_e a_e b_{d - e}`, indices modulo the length.
fn convolve(a: &[f64], b: &[f64]) -> Vec<f64> {
    let n = a.len();
    let at = |d: usize| (0..n).map(|e| a[e] * b[(d + n - e) % n]).sum();
    (0..n).map(at).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        dot(a, b) / lengths
    } else {
        0.0
    }
}
