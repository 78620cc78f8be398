//! Merging attention results from the formula.

use super::AttentionOutputs;

/// `lse = log sum_p exp(lse_p)` and `o = sum_p exp(lse_p - lse) o_p` of contiguous parts,
/// `[parts, rows, value_dim]` and `[parts, rows]`.
///
/// A part whose `lse` is minus infinity counts for nothing.
pub fn merge(o_parts: &[f64], lse_parts: &[f64], parts: usize) -> AttentionOutputs {
    let rows = lse_parts.len() / parts.max(1);
    let value_dim = o_parts.len() / lse_parts.len().max(1);
    let mut out = AttentionOutputs {
        o: vec![0.0; rows * value_dim],
        lse: vec![f64::NEG_INFINITY; rows],
    };
    for row in 0..rows {
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
        out.lse[row] = max + total.ln();
        for &at in &seen {
            let weight = (lse_parts[at] - max).exp() / total;
            for d in 0..value_dim {
                out.o[row * value_dim + d] += weight * o_parts[at * value_dim + d];
            }
        }
    }
    out
}
