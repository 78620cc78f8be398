//! Hrrformer, Flowformer and the attention-free transformer: forms without a softmax over pairs of queries and keys.

use super::{
    case::Values,
    problem::{Problem, Reader},
};
use crate::{
    AftFull, BiasTerm, DType, FlowAttention, HrrAttention, Layout, Op, PositionBias, ops::Slot,
};

/// Layouts of the case's q, k and v.
fn layouts(reader: &mut Reader<'_>) -> Result<[Layout; 3], String> {
    let mut layout = |name| Ok::<_, String>(Layout::f32(reader.input(name)?.shape.clone()));
    Ok([layout("q")?, layout("k")?, layout("v")?])
}

/// An op on the case's q, k and v, whose output is compared with its o.
fn problem(reader: &mut Reader<'_>, op: impl Into<Op>) -> Result<Problem, String> {
    let mut problem = Problem::new(op);
    for (slot, name) in [(Slot::Q, "q"), (Slot::K, "k"), (Slot::V, "v")] {
        problem = problem.input(slot, reader.input(name)?.values.clone());
    }
    Ok(problem.expect(Slot::O, "o"))
}

/// Hrrformer; the mask is 1 for what is there.
pub(super) fn hrr(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let [q, k, v] = layouts(reader)?;
    let mask = reader.input("mask")?;
    let seen = mask.reals()?.iter().map(|&x| x != 0.0).collect();
    let op = HrrAttention::new(q, k, v).mask(Layout::new(DType::Bool, mask.shape.clone()));
    Ok(problem(reader, op)?.input(Slot::Mask, Values::Boolean(seen)))
}

/// Flowformer.
pub(super) fn flow(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let [q, k, v] = layouts(reader)?;
    let eps = reader.case.params["eps"]
        .as_f64()
        .ok_or("params has no number `eps`")?;
    let mut op = FlowAttention::new(q, k, v).eps(eps as f32);
    op.causal = reader.flag("causal");
    problem(reader, op)
}

/// AFT-full of pytorch-fast-transformers, which multiplies keys by the bias u w_v^T.
pub(super) fn aft_full(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let [q, k, v] = layouts(reader)?;
    let (u, w) = (reader.input("u")?, reader.input("w_v")?);
    let bias = PositionBias::Factors {
        rows: Layout::f32(u.shape.clone()),
        columns: Layout::f32(w.shape.clone()),
    };
    let op = AftFull::new(q, k, v, bias).term(BiasTerm::Multiply);
    Ok(problem(reader, op)?
        .input(Slot::BiasRows, u.values.clone())
        .input(Slot::BiasColumns, w.values.clone()))
}
