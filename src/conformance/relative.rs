//! Music Transformer: a learned vector per distance, whose product with the query is added to the score.

use super::{
    case::Values,
    linear::linear,
    problem::{AttentionProblem, Problem, Reader},
};
use crate::{Causal, DType, Layout, Mod, ops::dims};

/// The products of queries and vectors are a linear layer, on the host; the op takes those of the distance.
///
/// The last row of `E` is distance 0. Keys after the query have no such term.
pub(super) fn skewed(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    if reader.flag("causal") {
        problem.op.causal = Causal::TopLeft;
    }
    let [batch, heads, len, dim] = dims(&problem.op.q);
    let (q, [_, _, _, _]) = reader.shaped("q")?;
    let (table, [distances, width]) = reader.shaped("E")?;
    if width as u64 != dim || (distances as u64) < len {
        return Err(format!("E is {distances} x {width}"));
    }
    let products = linear(q, table, width, None);
    let scale = problem.op.effective_scale();
    let change = Mod::new(format!(
        "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {{
            if (kv_index > q_index) {{
                return score;
            }}
            let row = (batch * {heads}u + head) * {len}u + q_index;
            return score + {scale:?} * products((row + 1u) * {distances}u - 1u - (q_index - kv_index));
        }}"
    ));
    let layout = Layout::f32([batch, heads, len, distances as u64]);
    // As the source keeps them: queries by keys.
    let (len, last) = (len as usize, distances.saturating_sub(1));
    let square: Vec<f32> = products
        .chunks_exact(distances.max(1))
        .enumerate()
        .flat_map(|(row, products)| {
            let query = row % len.max(1);
            (0..len).map(move |key| match query.checked_sub(key) {
                Some(distance) => products.get(last - distance).copied().unwrap_or(f32::NAN),
                None => 0.0,
            })
        })
        .collect();
    problem.modified(
        change.buffer("products", layout),
        vec![Values::Real(products)],
    );
    let problem = problem.expect("o");
    Ok(problem.expect_host("srel", move |_| Ok(square.clone())))
}
