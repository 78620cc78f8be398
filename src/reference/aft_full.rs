//! The attention-free transformer from its formula.

/// Inputs of [`aft_full`], contiguous.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the names are those of the op")]
pub struct AftFullInputs<'a> {
    /// Batch entries times heads.
    pub sequences: usize,
    pub seq: usize,
    pub dim: usize,
    pub causal: bool,
    /// Whether keys are multiplied by the bias; else it is added.
    pub multiply: bool,
    /// `[sequences, seq, dim]`, as `k` and `v`.
    pub q: &'a [f64],
    pub k: &'a [f64],
    pub v: &'a [f64],
    /// `[seq, seq]`
    pub bias: &'a [f64],
}

/// The output, `[sequences, seq, dim]`.
pub fn aft_full(a: &AftFullInputs<'_>) -> Vec<f64> {
    let mut o = Vec::new();
    for sequence in 0..a.sequences {
        for i in 0..a.seq {
            for d in 0..a.dim {
                let at = |t: usize| (sequence * a.seq + t) * a.dim + d;
                let end = if a.causal { i + 1 } else { a.seq };
                let score = |j: usize| {
                    let bias = a.bias[i * a.seq + j];
                    if a.multiply {
                        a.k[at(j)] * bias
                    } else {
                        a.k[at(j)] + bias
                    }
                };
                let scores: Vec<f64> = (0..end).map(score).collect();
                let weights = super::softmax(&scores, &[end], 0, 1.0, false);
                let sum: f64 = weights
                    .iter()
                    .enumerate()
                    .map(|(j, w)| w * a.v[at(j)])
                    .sum();
                o.push(sum / (1.0 + (-a.q[at(i)]).exp()));
            }
        }
    }
    o
}
