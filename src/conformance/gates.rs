//! Softmax attention of flash-linear-attention: forget gates, whose sums are added to scores, windows and
//! sinks.

use super::{
    case::{Array, Values},
    problem::{AttentionProblem, Problem, Reader},
    streaming::window,
};
use crate::{
    Causal, DType, Layout,
    ops::{Statistic, dims},
    presets,
};

/// `softmax(scale q k^T + G_i - G_j, causal) v`, where `G` sums up the gates.
pub(super) fn forgetting(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    problem.op.causal = Causal::TopLeft;
    problem.op.window = window(reader, "window_size")?;
    let gates = reader.input("g")?;
    forget(&mut problem, gates)?;
    Ok(problem.expect("o"))
}

/// The same with gates or without, in a window, with a sink.
pub(super) fn sink_gate(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    if reader.case.params["causal"] != false {
        problem.op.causal = Causal::TopLeft;
    }
    problem.op.window = window(reader, "window_size")?;
    if let Some(gates) = reader.optional("g") {
        forget(&mut problem, gates)?;
    }
    if let Some(sinks) = reader.optional("sink_bias") {
        problem.sinks(sinks.reals()?.to_vec());
    }
    let problem = problem.expect("o");
    problem.expect_statistic(Statistic::LargestScore, "max_logits")
}

/// Adds the sum of the gates between key and query, from logarithms of gates `[batch, q_heads, len]`.
fn forget(problem: &mut AttentionProblem, gates: &Array) -> Result<(), String> {
    let [batch, heads, len, _] = dims(&problem.op.q);
    if gates.shape != [batch, heads, len] {
        return Err(format!("gates of shape {:?}", gates.shape));
    }
    let mut sums = Vec::new();
    for row in gates.reals()?.chunks_exact(len.max(1) as usize) {
        let mut sum = 0.0;
        sums.extend(row.iter().map(|&gate| {
            sum += f64::from(gate);
            sum as f32
        }));
    }
    let change = presets::forgetting_gates(Layout::f32(gates.shape.clone()));
    problem.preset(change, vec![Values::Real(sums)])
}
