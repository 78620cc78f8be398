//! Mixture-of-Head attention: outputs of heads weighted per token by gates, most of them 0.

use super::{
    case::Values,
    linear::{linear, softmax},
    outputs::Outputs,
    problem::{AttentionProblem, Input, Problem, Reader},
    routed::listed,
};
use crate::{
    DType, Layout, TopK,
    ops::{Slot, dims},
};

/// Gates, a linear layer each, on the host; which heads they leave open, and attention, on the device.
pub(super) fn mixture_of_heads(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    let [batch, heads, len, _] = dims(&problem.op.o);
    let (x, [_, _, width]) = reader.shaped("x")?;
    let (shared, active) = (reader.size("shared_head")?, reader.size("routed_head")?);
    let routed = heads
        .checked_sub(shared)
        .ok_or("there are more shared heads than heads")?;
    let mut scores = |name: &str, count: u64| -> Result<Vec<f64>, String> {
        let (weight, [outputs, _]) = reader.shaped::<2>(name)?;
        if outputs as u64 != count {
            return Err(format!("{outputs} gates in {name} for {count}"));
        }
        Ok(softmax(&linear(x, weight, width, None), outputs))
    };
    let mut open = scores("wg_1_weight", shared)?;
    for gate in &mut open {
        *gate *= shared as f64;
    }
    problem.output_heads_inside();
    problem.op.gate = Some(Layout::f32([batch, len, heads]).transposed(1, 2));
    if active == 0 {
        if routed > 0 {
            return Err(format!("{routed} routed heads that no token takes"));
        }
        let gates = open.into_iter().map(|gate| gate as f32).collect();
        problem.bind(Slot::Gate, Values::Real(gates));
        return Ok(problem.expect("o"));
    }
    let routes = scores("wg_weight", routed)?;
    let branches = scores("wg_0_weight", 2)?;
    let mut calls = Problem::none();
    let top = TopK::new(Layout::f32([batch, len, routed]), active);
    let routes = routes.into_iter().map(|gate| gate as f32).collect();
    let top = calls.call(top, [(Slot::X, Values::Real(routes).into())]);
    let gates = move |outputs: &Outputs| -> Result<Values, String> {
        let values = outputs.of(top, Slot::Values)?;
        let taken = outputs.integers(top, Slot::Indices)?;
        let rows = values
            .chunks(active as usize)
            .zip(taken.chunks(active as usize))
            .zip(open.chunks(shared.max(1) as usize))
            .zip(branches.chunks(2));
        let mut all = Vec::new();
        for (((values, taken), open), branch) in rows {
            let [to_shared, to_routed] = [0, 1].map(|at| 2.0 * branch.get(at).unwrap_or(&0.0));
            all.extend(open.iter().map(|gate| (gate * to_shared) as f32));
            all.extend(shut_others(values, taken, routed as usize, to_routed));
        }
        Ok(Values::Real(all))
    };
    problem.bind(Slot::Gate, Input::Made(Box::new(gates)));
    calls.then(problem.done());
    Ok(calls.expect(Slot::O, "o").expect_sets(
        "routed_topk",
        move |outputs| listed(outputs, top, active),
        |_, _| true,
    ))
}

/// Gates of all routed heads: those taken share `weight` times their number, by their values; the others are 0.
fn shut_others(values: &[f32], taken: &[i64], heads: usize, weight: f64) -> Vec<f32> {
    let total: f64 = values.iter().map(|&value| f64::from(value)).sum();
    let share = weight * values.len() as f64 / total.max(f64::EPSILON);
    let mut gates = vec![0.0; heads];
    for (&value, &head) in values.iter().zip(taken) {
        if let Some(gate) = usize::try_from(head)
            .ok()
            .and_then(|head| gates.get_mut(head))
        {
            *gate = (f64::from(value) * share) as f32;
        }
    }
    gates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_gates_share_their_number() {
        let gates = shut_others(&[0.5, 0.25], &[3, 1], 4, 1.5);
        assert_eq!(gates, [0.0, 1.0, 0.0, 2.0]);
    }
}
