//! Flow attention from its formula.

/// Inputs of [`flow_attention`], contiguous.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the names are those of the op")]
pub struct FlowAttentionInputs<'a> {
    /// Batch entries times heads.
    pub sequences: usize,
    pub q_len: usize,
    pub kv_len: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub causal: bool,
    pub eps: f64,
    /// `[sequences, q_len, key_dim]`
    pub q: &'a [f64],
    /// `[sequences, kv_len, key_dim]`
    pub k: &'a [f64],
    /// `[sequences, kv_len, value_dim]`
    pub v: &'a [f64],
}

/// The output, `[sequences, q_len, value_dim]`.
pub fn flow_attention(a: &FlowAttentionInputs<'_>) -> Vec<f64> {
    (0..a.sequences)
        .flat_map(|sequence| one(a, sequence))
        .collect()
}

fn one(a: &FlowAttentionInputs<'_>, sequence: usize) -> Vec<f64> {
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    let rows = |x: &[f64], len: usize, width: usize| -> Vec<Vec<f64>> {
        let all = &x[sequence * len * width..(sequence + 1) * len * width];
        all.chunks(width).map(<[f64]>::to_vec).collect()
    };
    let mapped = |x: &[f64], len: usize| -> Vec<Vec<f64>> {
        let mut rows = rows(x, len, a.key_dim);
        rows.iter_mut().flatten().for_each(|x| *x = logistic(*x));
        rows
    };
    let (q, k) = (mapped(a.q, a.q_len), mapped(a.k, a.kv_len));
    let v = rows(a.v, a.kv_len, a.value_dim);
    // The number of tokens so far.
    let count = |t: usize| if a.causal { (t + 1) as f64 } else { 1.0 };
    // (row_t + e) . (Σ_s factor_s other_s + e), over all others or those up to t.
    let flow = |row: &[f64], t: usize, others: &[Vec<f64>], factors: &[f64]| -> f64 {
        let end = if a.causal { t + 1 } else { others.len() };
        let sum = |d: usize| -> f64 { (0..end).map(|s| factors[s] * others[s][d]).sum() };
        let products = row.iter().enumerate();
        products.map(|(d, x)| (x + a.eps) * (sum(d) + a.eps)).sum()
    };
    let flows = |rows: &[Vec<f64>], others: &[Vec<f64>], factors: &[f64]| -> Vec<f64> {
        let each = rows.iter().enumerate();
        each.map(|(t, row)| flow(row, t, others, factors)).collect()
    };
    let inverse = |flows: Vec<f64>| -> Vec<f64> {
        let each = flows.iter().enumerate();
        each.map(|(t, flow)| count(t) / flow).collect()
    };
    let incoming = inverse(flows(&q, &k, &vec![1.0; a.kv_len]));
    let outgoing = inverse(flows(&k, &q, &vec![1.0; a.q_len]));
    let sinks = flows(&q, &k, &outgoing);
    let sources = flows(&k, &q, &incoming);

    let powers: Vec<f64> = sources
        .iter()
        .enumerate()
        .map(|(t, source)| (source / count(t)).clamp(-1.0, 1.0).exp())
        .collect();
    let share = |t: usize| {
        if a.causal {
            powers[t] / powers[..=t].iter().sum::<f64>() * count(t)
        } else {
            powers[t] / powers.iter().sum::<f64>() * a.kv_len as f64
        }
    };
    let shares: Vec<f64> = (0..a.kv_len).map(share).collect();
    let ratio = if a.causal {
        1.0
    } else {
        a.q_len as f64 / a.kv_len as f64
    };

    let mut o = Vec::new();
    for (i, query) in q.iter().enumerate() {
        let end = if a.causal { i + 1 } else { a.kv_len };
        let mut row = vec![0.0; a.value_dim];
        for j in 0..end {
            let dot: f64 = query.iter().zip(&k[j]).map(|(q, k)| q * k).sum();
            for (sum, v) in row.iter_mut().zip(&v[j]) {
                *sum += dot * shares[j] * v;
            }
        }
        let gate = logistic(sinks[i] / count(i) * ratio) * incoming[i] / count(i);
        o.extend(row.into_iter().map(|x| gate * x));
    }
    o
}
