//! Mixture-of-Head attention: outputs of heads weighted per token by gates, most of them 0.

use super::{
    case::Values,
    linear::{linear, softmax},
    problem::{AttentionProblem, Problem, Reader},
};
use crate::{
    DType,
    ops::{Slot, dims},
};

/// Attention on the device; gates, a linear layer each, on the host.
pub(super) fn mixture_of_heads(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let problem = AttentionProblem::of(reader, DType::F32)?;
    let [batch, heads, len, dim] = dims(&problem.op.o).map(|len| len as usize);
    let (x, [_, _, width]) = reader.shaped("x")?;
    let (shared, active) = (
        reader.size("shared_head")? as usize,
        reader.size("routed_head")? as usize,
    );
    let routed = heads
        .checked_sub(shared)
        .ok_or("there are more shared heads than heads")?;
    let mut scores = |name: &str| -> Result<_, String> {
        let (weight, [outputs, _]) = reader.shaped::<2>(name)?;
        Ok((softmax(&linear(x, weight, width, None), outputs), outputs))
    };
    let (mut gates, outputs) = scores("wg_1_weight")?;
    if outputs != shared {
        return Err(format!("{outputs} gates for {shared} shared heads"));
    }
    for gate in &mut gates {
        *gate *= shared as f64;
    }
    let mut chosen = Vec::new();
    if active > 0 {
        let (routes, count) = scores("wg_weight")?;
        let (branches, two) = scores("wg_0_weight")?;
        if (count, two) != (routed, 2) {
            return Err(format!(
                "{count} and {two} gates for {routed} routed heads, and 2 branches"
            ));
        }
        let rows = gates
            .chunks(shared.max(1))
            .zip(routes.chunks(routed.max(1)))
            .zip(branches.chunks(2));
        let mut all = Vec::new();
        for ((shared, routes), branch) in rows {
            let (top, weights) = top_gates(routes, active);
            chosen.extend(top);
            let [to_shared, to_routed] = [0, 1].map(|at| 2.0 * branch.get(at).unwrap_or(&0.0));
            all.extend(shared.iter().map(|gate| gate * to_shared));
            all.extend(weights.iter().map(|gate| gate * to_routed * active as f64));
        }
        gates = all;
    }
    let mut problem = problem.done().expect_host("o", move |outputs| {
        let o = outputs.of(0, Slot::O)?;
        // [batch, heads, len, dim] to [batch, len, heads * dim].
        let places = (0..batch * len * heads * dim).map(|number| {
            let (d, h, token) = (number % dim, number / dim % heads, number / dim / heads);
            let from = ((token / len * heads + h) * len + token % len) * dim + d;
            let gate = gates.get(token * heads + h);
            let value = o.get(from).zip(gate).map(|(o, gate)| f64::from(*o) * gate);
            value
                .map(|value| value as f32)
                .ok_or("a gate is missing".into())
        });
        places.collect()
    });
    if active > 0 {
        problem
            .decided
            .push(("routed_topk".into(), Values::Integer(chosen)));
    }
    Ok(problem)
}

/// The largest gates, from the largest on, and all gates with the others 0 and a sum of 1.
fn top_gates(gates: &[f64], count: usize) -> (Vec<i64>, Vec<f64>) {
    let mut order: Vec<usize> = (0..gates.len()).collect();
    order.sort_by(|&a, &b| gates[b].total_cmp(&gates[a]));
    order.truncate(count);
    let total: f64 = order.iter().map(|&at| gates[at]).sum();
    let mut weights = vec![0.0; gates.len()];
    for &at in &order {
        weights[at] = gates[at] / total.max(f64::EPSILON);
    }
    (order.iter().map(|&at| at as i64).collect(), weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gates_share_1() {
        let (top, weights) = top_gates(&[0.1, 0.4, 0.2, 0.3], 2);
        assert_eq!(top, [1, 3]);
        assert_eq!(weights, [0.0, 0.4 / 0.7, 0.0, 0.3 / 0.7]);
    }
}
