//! Mixture-of-Head attention: outputs of heads weighted per token by gates, most of them 0.

use super::{
    case::Values,
    linear::linear,
    problem::{AttentionProblem, Input, Problem, Reader},
    routed::listed,
};
use crate::{
    DType, Layout, Scatter, Softmax, TopK,
    ops::{Slot, dims},
};

/// Linear layers on the host; the gates, which heads they leave open, and attention, on the device.
pub(super) fn mixture_of_heads(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    let [batch, heads, len, _] = dims(&problem.op.o);
    let (x, [_, _, width]) = reader.shaped("x")?;
    let (shared, active) = (reader.size("shared_head")?, reader.size("routed_head")?);
    let routed = heads
        .checked_sub(shared)
        .ok_or("there are more shared heads than heads")?;
    let mut logits = |name: &str, count: u64| -> Result<Values, String> {
        let (weight, [outputs, _]) = reader.shaped::<2>(name)?;
        if outputs as u64 != count {
            return Err(format!("{outputs} gates in {name} for {count}"));
        }
        let all = linear(x, weight, width, None).into_iter();
        Ok(Values::Real(all.collect()))
    };
    if active == 0 && routed > 0 {
        return Err(format!("{routed} routed heads that no token takes"));
    }
    problem.output_heads_inside();
    let gates = Layout::f32([batch, len, heads]);
    problem.op.gate = Some(gates.clone().transposed(1, 2));
    problem.bind(Slot::Gate, Input::Shared(0));
    let rows = |count: u64| Layout::f32([batch, len, count]);
    // A range of the heads.
    let part = |first: u64, count: u64| rows(count).with_strides(gates.strides.clone()).at(first);

    let mut calls = Problem::none();
    let softmax = |count: u64| Softmax::new(rows(count), 2);
    let open = logits("wg_1_weight", shared)?;
    let open = calls.call(softmax(shared), [(Slot::X, open.into())]);
    let branches = match active {
        0 => None,
        _ => {
            let branches = logits("wg_0_weight", 2)?;
            Some(calls.call(softmax(2), [(Slot::X, branches.into())]))
        }
    };
    // The share of a branch in a token, times 2 for two of them.
    let branch = |op: Scatter, number: u64| match branches {
        None => (op, None),
        Some(call) => {
            let share = Layout::f32([batch, len]).with_strides([2 * len, 2]);
            let factor = 2.0 * op.factor.0;
            let input = (Slot::Gate, Input::Output(call, Slot::Y));
            (op.factor(factor).gate(share.at(number)), Some(input))
        }
    };
    let every = Layout::new(DType::U32, [batch, len, shared]).with_strides([0, 0, 1]);
    let op = Scatter::new(rows(shared), every, shared)
        .factor(shared as f32)
        .output(part(0, shared));
    let (op, share) = branch(op, 0);
    let numbers = Values::Integer((0..shared as i64).collect());
    let inputs = [
        (Slot::X, Input::Output(open, Slot::Y)),
        (Slot::Index, numbers.into()),
        (Slot::Y, Input::Shared(0)),
    ];
    calls.call(op, inputs.into_iter().chain(share));
    if active == 0 {
        calls.then(problem.done());
        return Ok(calls.expect(Slot::O, "o"));
    }
    // A softmax of the logits that are taken is that of all, over its sum.
    let routes = logits("wg_weight", routed)?;
    let top = TopK::new(rows(routed), active);
    let index = Layout::new(DType::U32, [batch, len, active]);
    let top = calls.call(top, [(Slot::X, routes.into())]);
    let taken = calls.call(
        softmax(active),
        [(Slot::X, Input::Output(top, Slot::Values))],
    );
    let op = Scatter::new(rows(active), index, routed)
        .factor(active as f32)
        .output(part(shared, routed));
    let (op, share) = branch(op, 1);
    let inputs = [
        (Slot::X, Input::Output(taken, Slot::Y)),
        (Slot::Index, Input::Output(top, Slot::Indices)),
        (Slot::Y, Input::Shared(0)),
    ];
    calls.call(op, inputs.into_iter().chain(share));
    calls.then(problem.done());
    Ok(calls.expect(Slot::O, "o").expect_sets(
        "routed_topk",
        move |outputs| listed(outputs, top, active),
        |_, _| true,
    ))
}
