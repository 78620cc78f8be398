//! Landmark attention: a softmax over the tokens of a query's own block and the landmarks of those before, whose
//! weights are shared out among the tokens of their blocks by a softmax in each.

use super::{
    case::Values,
    problem::{AttentionProblem, Input, Problem, Reader},
};
use crate::{
    Attention, Causal, DType, Layout, Mod, Stage, Statistic,
    ops::{Slot, Weights, dims},
};

/// A token of an earlier block has the weight `exp(s - lse) exp(s_landmark) / Z`, where `lse` is over the ordinary
/// tokens of its block. So there is an attention per block for `lse`, a matrix of scores of landmarks, and one
/// attention with `s_landmark - lse` added to the scores. All of it on the device.
pub(super) fn grouped(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut whole = AttentionProblem::of(reader, DType::F32)?;
    let block = reader.count("block")? as u64;
    let [batch, heads, len, dim] = dims(&whole.op.q);
    if whole.op.q.shape != whole.op.k.shape || block < 2 {
        return Err(format!("blocks of {block}, or q and k of unlike shapes"));
    }
    let Values::Boolean(marked) = &reader.input("is_landmark")?.values else {
        return Err("is_landmark holds no booleans".into());
    };
    let last = |token: u64| token % block == block - 1;
    let expected = (0..batch).flat_map(|_| (0..len).map(last));
    if !expected.eq(marked.iter().copied()) {
        return Err("landmarks that are not the last tokens of blocks".into());
    }
    whole.op.causal = Causal::TopLeft;
    let blocks = len / block;
    let mut source = format!(
        "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {{
            return kv_index % {block}u != {block}u - 1u;
        }}"
    );
    if blocks == 0 {
        whole.modified(Mod::new(source), Vec::new());
        return Ok(whole.expect("o"));
    }
    source += &format!(
        "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {{
            let block = kv_index / {block}u;
            if (block >= q_index / {block}u) {{
                return score;
            }}
            let row = (batch * {heads}u + head) * {len}u + q_index;
            let part = ((batch * {blocks}u + block) * {heads}u + head) * {len}u + q_index;
            return score + (landmarks(row * {blocks}u + block) - lse(part));
        }}"
    );
    let given = |name: &str, reader: &mut Reader<'_>| Ok(reader.input(name)?.values.clone());
    let (q, k): (Values, Result<Values, String>) = (given("q", reader)?, given("k", reader));
    let k = k?;
    let scale = whole.op.effective_scale();
    // A batch entry at a time, whose blocks take the place of the batch: all queries to each block.
    let parts = Layout::f32([batch, blocks, heads, len]);
    let row = heads * len * dim;
    let mut problem: Option<Problem> = None;
    for entry in 0..batch {
        let queries = Layout::f32([blocks, heads, len, dim]).with_strides([0, len * dim, dim, 1]);
        let tokens = Layout::f32([blocks, heads, block - 1, dim])
            .with_strides([block * dim, len * dim, dim, 1])
            .at(entry * row);
        let mut op = Attention::new(queries.at(entry * row), tokens.clone(), tokens).scale(scale);
        op.lse = Some(Layout::f32([blocks, heads, len]).at(entry * (blocks * heads * len)));
        let part = Problem::new(op)
            .input(Slot::Q, q.clone())
            .input(Slot::K, k.clone())
            .input(Slot::V, k.clone())
            .input(Slot::Lse, Input::Shared(0));
        match &mut problem {
            Some(problem) => {
                problem.then(part);
            }
            None => problem = Some(part),
        }
    }
    let mut problem = problem.ok_or("q without batch entries")?;
    let landmarks = Layout::f32([batch, heads, blocks, dim])
        .with_strides([row, len * dim, block * dim, 1])
        .at((block - 1) * dim);
    let of_landmarks = Attention::new(whole.op.q.clone(), landmarks.clone(), landmarks);
    let statistic = Statistic::Matrix {
        stage: Stage::Scaled,
        heads: 0..heads,
        rows: 0..len,
    };
    let scores = Weights::new(of_landmarks.scale(scale), statistic);
    let scores_layout = scores.out.clone();
    let number = problem.then(Problem::new(scores).input(Slot::Q, q).input(Slot::K, k));
    whole.op = whole.op.modified(
        Mod::new(source)
            .buffer("landmarks", scores_layout)
            .buffer("lse", parts),
    );
    problem.then(whole.done());
    Ok(problem
        .input(Slot::Buffer0, Input::Output(number, Slot::Out))
        .input(Slot::Buffer1, Input::Shared(0))
        .expect(Slot::O, "o"))
}
