//! Collinear constrained attention (CoCA): scores from a query, the same query turned by its position, and a
//! turned key that is collinear with it.

use super::{
    case::Values,
    problem::{Input, Operand, Problem, Reader},
};
use crate::{
    Causal, DType, Layout, Rotary,
    ops::{Slot, dims},
    rotary_tables,
};

/// `softmax(sum_d q[i, d] q_rot[i, d] t_rot[j, d] / sqrt(dim), causal) v`: attention of `q q_rot` to `t_rot`,
/// where `t` has the mean of its halves, at least 0, in both. Two rotary embeddings and an attention on the device.
pub(super) fn collinear(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let (q, t) = (reader.input("q")?, reader.input("t")?);
    let v = Operand::whole(reader.input("v")?, DType::F32);
    let layout = Layout::f32(q.shape.clone());
    layout.check("q").map_err(|error| error.to_string())?;
    let [_, _, len, dim] = dims(&layout);
    if layout.rank() != 4 || t.shape != q.shape || dim % 2 != 0 {
        return Err(format!("q and t of shapes {:?} and {:?}", q.shape, t.shape));
    }
    if reader.case.params["rotary_pct"] != 1.0 {
        return Err("a rotary embedding of part of the dims".into());
    }
    let base = reader.number("rope_base")? as f64;
    let (cos, sin) = rotary_tables(0..len, dim, base).map_err(|error| error.to_string())?;
    let table = Layout::f32([len, dim / 2]);
    let turned = |x: Vec<f32>| {
        Problem::new(Rotary::new(layout.clone(), table.clone(), table.clone()))
            .input(Slot::X, Values::Real(x))
            .input(Slot::Cos, Values::Real(cos.clone()))
            .input(Slot::Sin, Values::Real(sin.clone()))
    };
    let halves = t.reals()?.chunks_exact(dim as usize).flat_map(|row| {
        let (first, second) = row.split_at(row.len() / 2);
        let means = first.iter().zip(second);
        let means: Vec<f32> = means.map(|(a, b)| ((a + b) / 2.0).max(0.0)).collect();
        means.repeat(2)
    });
    let mut problem = turned(halves.collect()).expect(Slot::Y, "t_rotated");
    let turned_q = problem.then(turned(q.reals()?.to_vec()));
    let plain = q.reals()?.to_vec();
    let product: super::problem::Make<Values> = Box::new(move |outputs| {
        let turned = outputs.of(turned_q, Slot::Y)?.iter();
        Ok(Values::Real(
            turned.zip(&plain).map(|(a, b)| a * b).collect(),
        ))
    });
    let [q, t] = [Input::Made(product), Input::Output(0, Slot::Y)].map(|input| Operand {
        input,
        layout: layout.clone(),
    });
    let mut attention = Problem::attention(q, t, v)?;
    attention.op.causal = Causal::TopLeft;
    problem.then(attention.done());
    Ok(problem.expect(Slot::O, "o"))
}
