//! Merging attention results from the formula.

use super::AttentionOutputs;

/// `lse = log sum_p exp(lse_p)` and `o = sum_p exp(lse_p - lse) o_p` of contiguous parts,
/// `[parts, rows, value_dim]` and `[parts, rows]`.
///
/// A part whose `lse` is minus infinity counts for nothing.
pub fn merge(o_parts: &[f64], lse_parts: &[f64], parts: usize) -> AttentionOutputs {
    let (weights, lse) = softmax_weights(lse_parts, parts);
    AttentionOutputs {
        o: weighted_sum(o_parts, &weights, parts),
        lse,
    }
}

/// `o = sum_p gate_p o_p` of contiguous parts, `[parts, rows, value_dim]` and `[parts, rows]`; with log-sum-exps, of
/// which a merge makes weights, `o = sum_p gate_p exp(lse_p - lse) o_p`.
///
/// A part whose gate is 0 counts for nothing.
pub fn merge_gated(
    o_parts: &[f64],
    lse_parts: Option<&[f64]>,
    gates: &[f64],
    parts: usize,
) -> Vec<f64> {
    let Some(lse_parts) = lse_parts else {
        return weighted_sum(o_parts, gates, parts);
    };
    let (mut weights, _) = softmax_weights(lse_parts, parts);
    for (weight, gate) in weights.iter_mut().zip(gates) {
        *weight *= gate;
    }
    weighted_sum(o_parts, &weights, parts)
}

/// `exp(lse_p - lse)`, and `lse`.
fn softmax_weights(lse_parts: &[f64], parts: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = lse_parts.len() / parts.max(1);
    let mut weights = vec![0.0; lse_parts.len()];
    let mut all = vec![f64::NEG_INFINITY; rows];
    for (row, lse) in all.iter_mut().enumerate() {
        let seen: Vec<usize> = (0..parts)
            .map(|part| part * rows + row)
            .filter(|&at| lse_parts[at] != f64::NEG_INFINITY)
            .collect();
        if seen.is_empty() {
            continue;
        }
        let max = seen
            .iter()
            .fold(f64::NEG_INFINITY, |max, &at| max.max(lse_parts[at]));
        let total: f64 = seen.iter().map(|&at| (lse_parts[at] - max).exp()).sum();
        *lse = max + total.ln();
        for at in seen {
            weights[at] = (lse_parts[at] - max).exp() / total;
        }
    }
    (weights, all)
}

/// What has a weight of 0 may hold anything.
fn weighted_sum(o_parts: &[f64], weights: &[f64], parts: usize) -> Vec<f64> {
    let rows = weights.len() / parts.max(1);
    let value_dim = o_parts.len() / weights.len().max(1);
    let mut o = vec![0.0; rows * value_dim];
    for (at, &weight) in weights.iter().enumerate().filter(|(_, w)| **w != 0.0) {
        for d in 0..value_dim {
            o[at % rows * value_dim + d] += weight * o_parts[at * value_dim + d];
        }
    }
    o
}
