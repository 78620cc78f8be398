//! The operator LinearAttention of ONNX.

use serde_json::Value;

use super::{
    case::Array,
    linear_attention::LinearProblem,
    onnx::{input, operand, output, required, storage},
    problem::{Input, Operand, Problem, Reader},
};
use crate::{
    DType, Decay, Layout, Real,
    ops::{Slot, dims},
};

/// Inputs query, key, value, past_state, decay, beta; outputs output, present_state. The rule says which of them
/// count.
pub(super) fn linear_attention(reader: &mut Reader<'_>, half: DType) -> Result<Problem, String> {
    let Some(attributes) = reader.case.params["attributes"].as_object() else {
        return Err("params has no attributes".into());
    };
    let (mut q_heads, mut kv_heads, mut scale) = (None, None, None);
    let mut rule = "gated_delta";
    for (name, value) in attributes {
        match (name.as_str(), value) {
            ("q_num_heads", Value::Number(heads)) => q_heads = heads.as_u64(),
            ("kv_num_heads", Value::Number(heads)) => kv_heads = heads.as_u64(),
            // 0: the default one.
            ("scale", Value::Number(number)) => {
                scale = number.as_f64().filter(|&number| number != 0.0);
            }
            ("update_rule", Value::String(name)) => rule = name.as_str(),
            // How it is computed, not what.
            ("chunk_size", Value::Number(_)) => {}
            _ => return Err(format!("no op has {name} = {value}")),
        }
    }
    let (gated, delta) = match rule {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(format!("no op has update_rule = {other}")),
    };

    let q = required(reader, 0)?;
    let stored = q.dtype;
    let dtype = storage(q, half)?;
    let q = operand(q, q_heads, half)?;
    let k = operand(required(reader, 1)?, kv_heads, half)?;
    let v = operand(required(reader, 2)?, kv_heads, half)?;
    let mut problem = LinearProblem::new(q, k, v)?;
    problem.op.scale = scale.map(|scale| Real(scale as f32));
    let [batch, heads, seq, _] = dims(&problem.op.v);
    let key_dim = dims(&problem.op.k)[3];
    if let Some(state) = input(reader, 3) {
        problem.initial_state(Operand::whole(state, storage(state, half)?));
    }
    // `[batch, seq, heads]`, or the same with a number per key channel.
    let gates = |array: &Array| -> Result<Operand, String> {
        Ok(Operand {
            input: Input::Given(array.values.clone()),
            layout: Layout::new(storage(array, half)?, [batch, seq, heads]).transposed(1, 2),
        })
    };
    if gated {
        let decay = required(reader, 4)?;
        if decay.shape == [batch, seq, heads] {
            problem.decay(Decay::Token, gates(decay)?);
        } else if decay.shape == [batch, seq, heads * key_dim] {
            let input = Input::Given(decay.values.clone());
            let shape = [batch, seq, heads, key_dim];
            let decay = Operand::heads_inside(input, storage(decay, half)?, shape);
            problem.decay(Decay::Key, decay);
        } else {
            return Err(format!("decay of shape {:?}", decay.shape));
        }
    }
    if delta {
        let beta = required(reader, 5)?;
        let mut operand = gates(beta)?;
        if beta.shape == [batch, seq, 1] {
            // One for all heads.
            operand.layout.strides = vec![seq, 0, 1];
        } else if beta.shape != [batch, seq, heads] {
            return Err(format!("beta of shape {:?}", beta.shape));
        }
        problem.delta(operand, None);
    }
    problem.final_state(dtype);

    // The output lies as the queries do.
    let [batch, heads, seq, dim] = dims(&problem.op.o);
    problem.op.o = Layout::new(dtype, [batch, seq, heads, dim]).transposed(1, 2);
    let mut problem = problem.done().expect(Slot::O, &output(reader, 0)?);
    if let Ok(present) = output(reader, 1) {
        problem = problem.expect(Slot::FinalState, &present);
    }
    problem.storage = Some(stored);
    Ok(problem)
}
