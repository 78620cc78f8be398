//! Linear attention with powers of the score, mixed with attention inside groups, and in the place of softmax:
//! Based, ReBased, MossFormer, FLASH, linear log-normal attention.

use super::{
    case::Values,
    linear::linear,
    problem::{Problem, Reader},
};
use crate::{
    Layout,
    ops::{
        FeatureMap, Guard, LinearAttention, Local, LocalWeights, Normaliser, Reach, Real,
        Similarity, Slot,
    },
};

/// Based and ReBased.
pub(super) fn powers(reader: &mut Reader<'_>, similarity: Similarity) -> Result<Problem, String> {
    let [q, k, v] = ["q", "k", "v"].map(|name| reader.input(name));
    let (q, k, v) = (q?, k?, v?);
    let layout = |shape: &[u64]| Layout::f32(shape.to_vec());
    let mut op = LinearAttention::new(layout(&q.shape), layout(&k.shape), layout(&v.shape))
        .similarity(similarity);
    if reader.flag("use_norm") {
        op = op.normalised(1e-6);
    }
    Ok(Problem::new(op)
        .input(Slot::Q, q.values.clone())
        .input(Slot::K, k.values.clone())
        .input(Slot::V, v.values.clone())
        .expect(Slot::O, "o"))
}

/// Queries and keys of both parts of a mixed attention, one head each; `[tokens, width]`.
struct Mixed {
    tokens: usize,
    group: u64,
    causal: bool,
    width: usize,
    linear_q: Vec<f32>,
    linear_k: Vec<f32>,
    local_q: Vec<f32>,
    local_k: Vec<f32>,
}

impl Mixed {
    /// The attention over values `[heads, tokens, value_dim]`, scores inside groups divided by the group's size.
    fn problem(
        self,
        values: Vec<f32>,
        heads: usize,
        local: impl FnOnce(Local) -> Local,
    ) -> Result<Problem, String> {
        let rows = (heads * self.tokens).max(1);
        let keys = || Layout::f32([1, 1, self.tokens as u64, self.width as u64]);
        let shape = [1, heads, self.tokens, values.len() / rows].map(|len| len as u64);
        // Causal: sums over the groups before, divided by a group's size as the rest is.
        let (reach, scale) = if self.causal {
            let tokens = self.group;
            (Reach::BeforeBucket { tokens }, 1.0 / self.group as f32)
        } else {
            (Reach::All, 1.0 / self.tokens as f32)
        };
        let inside = Local::new(self.group, LocalWeights::SquaredRelu)
            .scale(1.0 / self.group as f32)
            .own(keys(), keys());
        let op = LinearAttention::new(keys(), keys(), Layout::f32(shape))
            .reach(reach)
            .scale(scale)
            .local(local(inside));
        Ok(Problem::new(op)
            .input(Slot::Q, Values::Real(self.linear_q))
            .input(Slot::K, Values::Real(self.linear_k))
            .input(Slot::V, Values::Real(values))
            .input(Slot::LocalQ, Values::Real(self.local_q))
            .input(Slot::LocalK, Values::Real(self.local_k)))
    }
}

fn silu(x: f32) -> f32 {
    let x = f64::from(x);
    (x / (1.0 + (-x).exp())) as f32
}

/// MossFormer's joint attention over two values, and its gate; or FLASH's whole module.
pub(super) fn mixed(reader: &mut Reader<'_>) -> Result<Problem, String> {
    if reader.case.op == "flash_gau_mixed_chunk" {
        return flash(reader);
    }
    let (v, [batch, tokens, width]) = reader.shaped("v")?;
    let (u, _) = reader.shaped::<3>("u")?;
    let [linear_q, linear_k, local_q, local_k] =
        ["lin_q", "lin_k", "quad_q", "quad_k"].map(|name| reader.shaped::<3>(name));
    let (linear_q, [_, _, key_dim]) = linear_q?;
    if batch != 1 || u.len() != v.len() {
        return Err(format!(
            "{batch} batch entries, or u of another shape than v"
        ));
    }
    let mixed = Mixed {
        tokens,
        group: reader.count("group")? as u64,
        causal: reader.flag("causal"),
        width: key_dim,
        linear_q: linear_q.to_vec(),
        linear_k: linear_k?.0.to_vec(),
        local_q: local_q?.0.to_vec(),
        local_k: local_k?.0.to_vec(),
    };
    // Both values are heads that share their queries and keys.
    let problem = mixed.problem([v, u].concat(), 2, |local| local)?;
    let half = tokens * width;
    let part = move |o: &[f32], number: usize| -> Vec<f32> {
        o.iter().skip(number * half).take(half).copied().collect()
    };
    let (v, u) = (v.to_vec(), u.to_vec());
    Ok(problem
        .expect_host("o_v", move |outputs| Ok(part(outputs.of(0, Slot::O)?, 0)))
        .expect_host("o_u", move |outputs| Ok(part(outputs.of(0, Slot::O)?, 1)))
        .expect_host("gated", move |outputs| {
            let o = outputs.of(0, Slot::O)?;
            let (o_v, o_u) = (part(o, 0), part(o, 1));
            let inputs = v.iter().zip(&u);
            Ok(o_u
                .iter()
                .zip(&o_v)
                .zip(inputs)
                .map(|((o_u, o_v), (v, u))| {
                    let gate = 1.0 / (1.0 + (-f64::from(o_v * u)).exp());
                    (f64::from(o_u * v) * gate) as f32
                })
                .collect())
        }))
}

/// The bucket of a distance from query to key, as T5 has them without causality: half of them for keys after the
/// query, single distances first, then logarithmic ones up to 128.
fn bucket(distance: i64, buckets: usize) -> usize {
    let half = buckets / 2;
    let exact = half / 2;
    let far = distance.unsigned_abs() as usize;
    let place = if far < exact {
        far
    } else {
        let share = (far as f64 / exact as f64).ln() / (128.0 / exact as f64).ln();
        (exact + (share * (half - exact) as f64) as usize).min(half - 1)
    };
    if distance > 0 { place + half } else { place }
}

/// Linear layers, SiLU, offsets, bias and gate on the host.
fn flash(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let (x, [batch, tokens, dim]) = reader.shaped("x")?;
    let (to_hidden, [hidden, _]) = reader.shaped("w.to_hidden.0.weight")?;
    let (hidden_bias, [_]) = reader.shaped("w.to_hidden.0.bias")?;
    let (to_qk, [width, _]) = reader.shaped("w.to_qk.0.weight")?;
    let (qk_bias, [_]) = reader.shaped("w.to_qk.0.bias")?;
    let (gamma, [four, _]) = reader.shaped("w.qk_offset_scale.gamma")?;
    let (beta, _) = reader.shaped::<2>("w.qk_offset_scale.beta")?;
    let (to_out, _) = reader.shaped::<2>("w.to_out.weight")?;
    let (out_bias, [_]) = reader.shaped("w.to_out.bias")?;
    let (table, [buckets, one]) = reader.shaped("w.rel_pos_bias.relative_attention_bias.weight")?;
    let group = reader.count("group")? as usize;
    if batch != 1 || four != 4 || one != 1 || hidden % 2 != 0 || buckets < 4 || group > 1 << 12 {
        return Err(format!(
            "{batch} batch entries, {four} offsets, {one} heads of bias, {buckets} buckets, groups of {group}"
        ));
    }
    let layer = |weight: &[f32], bias: &[f32]| -> Vec<f32> {
        linear(x, weight, dim, Some(bias))
            .into_iter()
            .map(silu)
            .collect()
    };
    let hidden_rows = layer(to_hidden, hidden_bias);
    let half = hidden / 2;
    let part = |from: usize| super::linear::columns(&hidden_rows, hidden, from, half);
    let (v, gate) = (part(0), part(half));
    let qk = layer(to_qk, qk_bias);
    let offset = |number: usize| -> Vec<f32> {
        let row = |all: &[f32]| {
            all.iter()
                .skip(number * width)
                .take(width)
                .copied()
                .collect()
        };
        let (gamma, beta): (Vec<f32>, Vec<f32>) = (row(gamma), row(beta));
        let along = gamma.iter().zip(&beta).cycle();
        qk.iter().zip(along).map(|(x, (g, b))| x * g + b).collect()
    };
    let mut bias = Vec::new();
    for i in 0..group as i64 {
        for j in 0..group as i64 {
            let weight = table.get(bucket(j - i, buckets)).copied().unwrap_or(0.0);
            bias.push(weight * (width as f32).sqrt());
        }
    }
    let laplace = reader.flag("laplace");
    let mixed = Mixed {
        tokens,
        group: group as u64,
        causal: reader.flag("causal"),
        width,
        local_q: offset(0),
        linear_q: offset(1),
        local_k: offset(2),
        linear_k: offset(3),
    };
    let problem = mixed
        .problem(v, 1, |mut local| {
            if laplace {
                local.weights = LocalWeights::Laplace;
            }
            local.bias(Layout::f32([1, group as u64, group as u64]))
        })?
        .input(Slot::Bias, Values::Real(bias));
    let (x, to_out, out_bias) = (x.to_vec(), to_out.to_vec(), out_bias.to_vec());
    Ok(problem.expect_host("o", move |outputs| {
        let o = outputs.of(0, Slot::O)?;
        let gated: Vec<f32> = o.iter().zip(&gate).map(|(o, gate)| o * gate).collect();
        let y = linear(&gated, &to_out, half, Some(&out_bias));
        Ok(y.iter().zip(&x).map(|(y, x)| y + x).collect())
    }))
}

/// The unbiased standard deviation.
fn deviation(x: &[f32]) -> f64 {
    let count = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let squares = x.iter().map(|&x| (f64::from(x) - mean).powi(2));
    (squares.sum::<f64>() / (count - 1.0)).sqrt()
}

/// Linear log-normal attention, softmax in blocks, and the mean of both.
pub(super) fn log_normal(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let (q, [batch, heads, tokens, dim]) = reader.shaped("q")?;
    let (k, _) = reader.shaped::<4>("k")?;
    let (v, _) = reader.shaped::<4>("v")?;
    let number = |name: &str| {
        let number = reader.case.params[name].as_f64();
        number.ok_or_else(|| format!("params has no number `{name}`"))
    };
    let fit = (number("a")?, number("b")?);
    let [alpha, beta] = LinearAttention::log_normal_factors(deviation(q), deviation(k), fit)
        .map_err(|error| error.to_string())?;
    let eps = Real(number("eps")? as f32);
    let exp = |factor: f32| FeatureMap::Exp {
        factor: Real(factor),
    };
    let layout = || Layout::f32([batch, heads, tokens, dim].map(|len| len as u64));
    let blocks = Local::new(dim as u64, LocalWeights::Softmax);
    let linear = LinearAttention::new(layout(), layout(), layout())
        .features(exp(alpha), exp(beta))
        .scale(1.0)
        .reach(if reader.flag("causal") {
            Reach::Causal
        } else {
            Reach::All
        })
        .normaliser(Normaliser {
            eps,
            guard: Guard::Add,
            safe: true,
        });
    let problem = |op: LinearAttention| {
        Problem::new(op)
            .input(Slot::Q, Values::Real(q.to_vec()))
            .input(Slot::K, Values::Real(k.to_vec()))
            .input(Slot::V, Values::Real(v.to_vec()))
    };
    let mut all = problem(linear.clone().local(blocks.clone().mix(0.5, 0.5))).expect(Slot::O, "o");
    for (name, op) in [
        ("o_lln", linear.clone()),
        ("o_diag", linear.local(blocks.mix(0.0, 1.0))),
    ] {
        if reader
            .case
            .roles
            .intermediate
            .iter()
            .any(|other| other == name)
        {
            let number = all.then(problem(op));
            all = all.expect_host(name, move |outputs| {
                Ok(outputs.of(number, Slot::O)?.to_vec())
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_fall_into_buckets() {
        // Single distances up to 7, of keys before and after; then ranges; the last for all that is far.
        let got = [0, -1, 1, -7, 7, -8, -12, -200, 200].map(|distance| bucket(distance, 32));
        assert_eq!(got, [0, 1, 17, 7, 23, 8, 9, 15, 31]);
    }

    #[test]
    fn deviations_are_unbiased() {
        assert!((deviation(&[1.0, 2.0, 3.0, 4.0]) - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
