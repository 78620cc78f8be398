//! Recurrences along the sequence: HGRN, Aaren, AFT-simple, and attention with bounded memory.

use super::{
    case::Values,
    problem::{Input, Operand, Problem, Reader},
};
use crate::{
    DType, Decay, Denominator, Layout, LinearAttention, Scan, Scores, Softmax,
    ops::{Slot, dims},
};

/// `h = exp(g) h + x`, with the state in and out.
pub(super) fn hgrn(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let x = Operand::whole(reader.input("x")?, DType::F32);
    let g = Operand::whole(reader.input("g")?, DType::F32);
    let initial = reader.optional("initial_state");
    let mut op = Scan::decayed_sum(x.layout, g.layout);
    let state = Layout::f32(op.state_shape());
    op = op.carried(initial.map(|_| state.clone()), Some(state));
    let mut problem = Problem::new(op)
        .input(Slot::X, x.input)
        .input(Slot::Decay, g.input);
    if let Some(initial) = initial {
        problem = problem.input(Slot::InitialState, initial.values.clone());
    }
    Ok(problem
        .expect(Slot::O, "o")
        .expect(Slot::FinalState, "final_state"))
}

/// Softmax attention by one query per head over all prefixes, with the state of every token.
pub(super) fn aaren(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let q = Operand::whole(reader.input("q")?, DType::F32);
    let k = Operand::whole(reader.input("k")?, DType::F32);
    let v = Operand::whole(reader.input("v")?, DType::F32);
    let width = dims(&v.layout)[3] as usize + 2;
    let scores = Scores::Query {
        q: q.layout,
        k: k.layout,
        scale: reader.case.scale.map(Into::into),
    };
    let op = Scan::softmax(scores, v.layout).with_states();
    let mut problem = Problem::new(op)
        .input(Slot::Q, q.input)
        .input(Slot::K, k.input)
        .input(Slot::V, v.input)
        .expect(Slot::O, "o");
    for (name, columns) in [("state_m", 0..1), ("state_u", 1..2), ("state_w", 2..width)] {
        problem = problem.expect_host(name, move |outputs| {
            let rows = outputs.of(0, Slot::States)?.chunks_exact(width);
            let parts = rows.filter_map(|row| row.get(columns.clone()));
            Ok(parts.flatten().copied().collect())
        });
    }
    Ok(problem)
}

/// AFT-simple: softmax over the tokens of each channel's keys, and the sigmoid of `q`.
pub(super) fn aft_simple(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let q = Operand::whole(reader.input("q")?, DType::F32);
    let k = Operand::whole(reader.input("k")?, DType::F32);
    let v = Operand::whole(reader.input("v")?, DType::F32);
    let denominator = match reader.case.op.as_str() {
        "aft_simple" => Denominator::All,
        // Its source divides by the sum up to the value's own token.
        "aft_simple_causal" => Denominator::Step,
        other => return Err(format!("no op covers {other}")),
    };
    let op = Scan::softmax(Scores::Channel(k.layout), v.layout)
        .denominator(denominator)
        .gate(q.layout);
    Ok(Problem::new(op)
        .input(Slot::Gate, q.input)
        .input(Slot::X, k.input)
        .input(Slot::V, v.input)
        .expect(Slot::O, "o"))
}

/// Attention with bounded memory: slots whose weights a running log-sum-exp normalises, then gated slot attention,
/// which is two linear attentions with a softmax between them.
pub(super) fn bounded_memory(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut given = |name: &str| -> Result<Operand, String> {
        Ok(Operand::whole(reader.input(name)?, DType::F32))
    };
    let (q, k, v, s) = (given("q")?, given("k")?, given("v")?, given("s")?);
    let slots = s.layout.clone();
    let mut problem = Problem::new(
        Scan::log_sum_exp(slots.clone())
            .without_output()
            .with_weights(),
    )
    .input(Slot::X, s.input);

    let keys =
        LinearAttention::new(q.layout, k.layout, slots.clone()).decay(Decay::Value(slots.clone()));
    let scores = keys.o.clone();
    problem.then(
        Problem::new(keys)
            .input(Slot::Q, q.input)
            .input(Slot::K, k.input)
            .input(Slot::V, made_by(0, Slot::Weights))
            .input(Slot::Decay, made_by(0, Slot::LogDecay)),
    );
    problem.then(Problem::new(Softmax::new(scores.clone(), 3)).input(Slot::X, made_by(1, Slot::O)));
    let values = LinearAttention::new(scores, slots.clone(), v.layout)
        .scale(1.0)
        .decay(Decay::Key(slots));
    problem.then(
        Problem::new(values)
            .input(Slot::Q, made_by(2, Slot::Y))
            .input(Slot::K, made_by(0, Slot::Weights))
            .input(Slot::V, v.input)
            .input(Slot::Decay, made_by(0, Slot::LogDecay)),
    );
    Ok(problem.expect(Slot::O, "o"))
}

/// What an earlier call gave.
fn made_by(call: usize, slot: Slot) -> Input {
    Input::Made(Box::new(move |outputs| {
        Ok(Values::Real(outputs.of(call, slot)?.to_vec()))
    }))
}
