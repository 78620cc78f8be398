//! Recurrences of flash-linear-attention.

use super::{
    case::Values,
    linear_attention::LinearProblem,
    problem::{Input, Operand, Problem, Reader},
};
use crate::{
    DType, Decay, Layout, LinearAttention, Real, Softmax,
    ops::{Slot, dims},
};

/// Any family that is one call. Their scale is `1 / sqrt(key_dim)` where the case has none.
pub(super) fn recurrence(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = LinearProblem::of(reader)?;
    match reader.case.family.as_str() {
        "fla_linear_attn" => {
            if reader.flag("normalize") {
                problem.op = problem.op.normalised(1e-10);
            }
        }
        "fla_retention" => {
            let heads = dims(&problem.op.v)[1] as usize;
            problem.head_decays(LinearAttention::retention_decays(heads));
        }
        "fla_simple_gla" => problem.decay_of(reader, Decay::Token, "g")?,
        "fla_gla" => problem.decay_of(reader, Decay::Key, "gk")?,
        "fla_delta_rule" => delta(&mut problem, reader, None)?,
        "fla_gated_delta_rule" => {
            problem.decay_of(reader, Decay::Token, "g")?;
            delta(&mut problem, reader, None)?;
        }
        "fla_gated_delta_product" => {
            // This one has no scale.
            problem.op.scale = Some(Real(1.0));
            problem.op.updates_per_token = reader.size("num_householder")?;
            problem.decay_of(reader, Decay::Token, "g")?;
            delta(&mut problem, reader, None)?;
        }
        "fla_kda" => {
            problem.decay_of(reader, Decay::Key, "g")?;
            delta(&mut problem, reader, None)?;
        }
        "fla_comba" => {
            problem.decay_of(reader, Decay::Token, "g")?;
            delta(&mut problem, reader, Some("p"))?;
        }
        "fla_rwkv6" => {
            problem.decay_of(reader, Decay::Key, "w")?;
            problem.bonus(reader, "u")?;
        }
        "fla_iplr" => problem.low_rank(reader, "alpha", "beta")?,
        "fla_dplr" => {
            problem.decay_of(reader, Decay::Key, "gk")?;
            problem.low_rank(reader, "alpha", "beta")?;
        }
        family => return Err(format!("no op covers {family}")),
    }
    with_states(problem, reader)
}

fn delta(
    problem: &mut LinearProblem,
    reader: &mut Reader<'_>,
    read: Option<&str>,
) -> Result<(), String> {
    let beta = Operand::whole(reader.input("beta")?, DType::F32);
    let read = match read {
        Some(name) => Some(Operand::whole(reader.input(name)?, DType::F32)),
        None => None,
    };
    problem.delta(beta, read);
    Ok(())
}

/// States before and after; a pair of them (`_a`, `_b`) where there is a sum of keys too.
fn with_states(mut problem: LinearProblem, reader: &mut Reader<'_>) -> Result<Problem, String> {
    for name in ["initial_state", "initial_state_a"] {
        if let Some(state) = reader.optional(name) {
            problem.initial_state(Operand::whole(state, DType::F32));
        }
    }
    if let Some(sum) = reader.optional("initial_state_b") {
        problem.initial_sum(sum);
    }
    let wanted = ["final_state", "final_state_a", "final_state_b"]
        .into_iter()
        .filter(|name| reader.case.roles.expected.iter().any(|other| other == name));
    let wanted: Vec<&str> = wanted.collect();
    if !wanted.is_empty() {
        problem.final_state(DType::F32);
    }
    let problem = problem.expect();
    Ok(wanted.into_iter().fold(problem, |problem, name| {
        let slot = match name {
            "final_state_b" => Slot::FinalSum,
            _ => Slot::FinalState,
        };
        problem.expect(slot, name)
    }))
}

/// Gated slot attention: queries read the slots' keys, whose state decays per slot; the softmax of what they read
/// weights the slots' values.
pub(super) fn slots(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut given = |name: &str| -> Result<Operand, String> {
        Ok(Operand::whole(reader.input(name)?, DType::F32))
    };
    let (q, k, v) = (given("q")?, given("k")?, given("v")?);
    // Both calls read the slots and their decays.
    let (slots, decay) = ([given("s")?, given("s")?], [given("g")?, given("g")?]);
    let ([slots, again], [decay, decay_again]) = (slots, decay);

    let mut keys = LinearProblem::new(q, k, slots)?;
    keys.decay(Decay::Value, decay);
    state(&mut keys, reader, "initial_state_a");
    let scores = keys.op.o.clone();
    let mut problem = keys.done();

    problem.then(Problem::new(Softmax::new(scores.clone(), 3)).input(Slot::X, made_by(0, Slot::O)));
    let weights = Operand {
        input: made_by(1, Slot::Y),
        layout: Layout::f32(scores.shape),
    };
    let mut values = LinearProblem::new(weights, again, v)?;
    values.op.scale = Some(Real(1.0));
    values.decay(Decay::Key, decay_again);
    state(&mut values, reader, "initial_state_b");
    problem.then(values.done());
    let expected = &reader.case.roles.expected;
    for (name, call, slot) in [
        ("o", 2, Slot::O),
        ("final_state_a", 0, Slot::FinalState),
        ("final_state_b", 2, Slot::FinalState),
    ] {
        if expected.iter().any(|other| other == name) {
            problem = problem.expect_of(call, slot, name);
        }
    }
    Ok(problem)
}

/// A state before, where there is one, and after.
fn state(problem: &mut LinearProblem, reader: &mut Reader<'_>, name: &str) {
    if let Some(state) = reader.optional(name) {
        problem.initial_state(Operand::whole(state, DType::F32));
    }
    problem.final_state(DType::F32);
}

/// What an earlier call gave.
fn made_by(call: usize, slot: Slot) -> Input {
    Input::Made(Box::new(move |outputs| {
        Ok(Values::Real(outputs.of(call, slot)?.to_vec()))
    }))
}
