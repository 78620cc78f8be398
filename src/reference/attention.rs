//! Attention from its formula.

use crate::ops::Causal;

/// What attention is computed from: contiguous tensors of any number type as f64.
#[derive(Debug, Clone, Default)]
pub struct AttentionInputs<'a> {
    /// Batch entries.
    pub batch: usize,
    /// Query heads.
    pub q_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Dims of q and k.
    pub head_dim: usize,
    /// Dims of v and o.
    pub value_dim: usize,
    /// `[batch, q_heads, q_len, head_dim]`
    pub q: &'a [f64],
    /// `[batch, kv_heads, kv_len, head_dim]`
    pub k: &'a [f64],
    /// `[batch, kv_heads, kv_len, value_dim]`
    pub v: &'a [f64],
    /// `[batch, q_heads, q_len, kv_len]`, true is visible.
    pub mask: Option<&'a [bool]>,
    /// `[batch, q_heads, q_len, kv_len]`
    pub bias: Option<&'a [f64]>,
    /// `[batch]`
    pub lens: Option<&'a [usize]>,
    /// Factor on `q k^T`.
    pub scale: f64,
    /// Causal masking.
    pub causal: Causal,
}

/// What attention computes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AttentionOutputs {
    /// `[batch, q_heads, q_len, value_dim]`
    pub o: Vec<f64>,
    /// `[batch, q_heads, q_len]`
    pub lse: Vec<f64>,
}

/// `softmax(scale q k^T + bias, visible) v` and the log-sum-exp, row by row.
pub fn attention(a: &AttentionInputs<'_>) -> AttentionOutputs {
    let group = a.q_heads / a.kv_heads;
    let mut out = AttentionOutputs::default();
    for b in 0..a.batch {
        let valid = a.lens.map_or(a.kv_len, |lens| lens[b].min(a.kv_len));
        for h in 0..a.q_heads {
            let kv = b * a.kv_heads + h / group;
            for i in 0..a.q_len {
                let row = (b * a.q_heads + h) * a.q_len + i;
                let q = &a.q[row * a.head_dim..][..a.head_dim];
                let scores: Vec<f64> = (0..a.kv_len)
                    .map(|j| {
                        let in_order = match a.causal {
                            Causal::None => true,
                            Causal::TopLeft => j <= i,
                            Causal::BottomRight => j + a.q_len <= i + valid,
                        };
                        let place = row * a.kv_len + j;
                        let allowed = a.mask.is_none_or(|mask| mask[place]);
                        if j >= valid || !in_order || !allowed {
                            return f64::NEG_INFINITY;
                        }
                        let k = &a.k[(kv * a.kv_len + j) * a.head_dim..][..a.head_dim];
                        let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                        a.scale * dot + a.bias.map_or(0.0, |bias| bias[place])
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                if max == f64::NEG_INFINITY {
                    out.o.resize(out.o.len() + a.value_dim, 0.0);
                    out.lse.push(f64::NEG_INFINITY);
                    continue;
                }
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                out.lse.push(max + total.ln());
                let mut o = vec![0.0; a.value_dim];
                for (j, s) in scores.iter().enumerate() {
                    if *s == f64::NEG_INFINITY {
                        continue;
                    }
                    let w = (s - max).exp() / total;
                    let v = &a.v[(kv * a.kv_len + j) * a.value_dim..][..a.value_dim];
                    for (o, v) in o.iter_mut().zip(v) {
                        *o += w * v;
                    }
                }
                out.o.extend(o);
            }
        }
    }
    out
}
