//! Performer: random features of queries and of keys, then linear attention on them.

use super::{
    outputs::Outputs,
    problem::{Input, Problem, Reader},
};
use crate::{
    Layout,
    ops::{Guard, LinearAttention, Normaliser, RandomFeatures, Reach, Real, Slot, dims},
};

pub(super) fn favor(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let (q, k, v) = (reader.input("q")?, reader.input("k")?, reader.input("v")?);
    let projection = reader.input("projection")?;
    let kernel = reader.case.params["kernel"].as_str().unwrap_or_default();
    let relu = match kernel {
        "softmax, eps 1e-4" => false,
        "relu+1e-3" => true,
        other => return Err(format!("kernel `{other}`")),
    };
    let causal = reader.flag("causal");
    let layout = |shape: &[u64]| Layout::f32(shape.to_vec());
    let directions = || layout(&projection.shape);
    let features = |x: &super::case::Array, softmax: fn(Layout, Layout) -> RandomFeatures| {
        let make = if relu { RandomFeatures::relu } else { softmax };
        let op = make(layout(&x.shape), directions());
        let y = op.y.clone();
        let problem = Problem::new(op)
            .input(Slot::X, x.values.clone())
            .input(Slot::Projection, projection.values.clone());
        (problem, y)
    };
    let (mut problem, q_layout) = features(q, RandomFeatures::queries);
    let (keys, k_layout) = features(k, RandomFeatures::keys);
    if v.shape.len() != 4 || dims(&q_layout)[2] != dims(&k_layout)[2] {
        return Err("q, k and v of unlike shapes".into());
    }
    let attention = LinearAttention::new(q_layout, k_layout, layout(&v.shape))
        .scale(1.0)
        .reach(if causal { Reach::Causal } else { Reach::All })
        .normaliser(Normaliser {
            eps: Real(if causal { 1e-6 } else { 0.0 }),
            guard: if causal { Guard::Keys } else { Guard::Add },
            safe: false,
        });
    let of = |call: usize| move |outputs: &Outputs| Ok(outputs.of(call, Slot::Y)?.to_vec());
    let number = problem.then(keys);
    problem.then(Problem::new(attention));
    let mut problem = problem
        .input(Slot::Q, Input::Output(0, Slot::Y))
        .input(Slot::K, Input::Output(number, Slot::Y))
        .input(Slot::V, v.values.clone())
        .expect(Slot::O, "o");
    for (name, call) in [("q_prime", 0), ("k_prime", number)] {
        if reader
            .case
            .roles
            .intermediate
            .iter()
            .any(|other| other == name)
        {
            problem = problem.expect_host(name, of(call));
        }
    }
    Ok(problem)
}
