//! Keys that are kept while others are dropped: H2O, token by token, and SpAtten's pruning of a cache.

use super::{
    case::Values,
    problem::{AttentionProblem, Input, Problem, Reader},
    routed::{given, listed, rows},
};
use crate::{
    Attention, Causal, DType, Evict, Gather, Layout, NONE, Pool, Stage, Statistic, TopK,
    ops::{Slot, Weights, dims},
};

/// H2O: weights of the whole causal attention are added up for the keys of a list; at each token the lowest is dropped
/// and the token put in, and its query attends to the list. A step is two calls, with nothing read back.
pub(super) fn heavy_hitters(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut whole = AttentionProblem::of(reader, DType::F32)?;
    whole.op.causal = Causal::TopLeft;
    let budget = reader.count("heavy_budget")? as u64;
    let [batch, heads, len, _] = dims(&whole.op.q);
    if dims(&whole.op.k)[..3] != [batch, heads, len] || budget > len {
        return Err(format!("{budget} keys of {:?}", whole.op.k.shape));
    }
    let (q, k, v) = (
        given(reader, "q")?,
        given(reader, "k")?,
        given(reader, "v")?,
    );
    let mut calls = Problem::none();
    let attention = whole.op.clone().with_lse();
    let inputs = || {
        let [q, k] = [&q, &k].map(|values| Input::Given(values.clone()));
        [(Slot::Q, q), (Slot::K, k)]
    };
    let first = calls.call(
        attention.clone(),
        inputs().into_iter().chain([(Slot::V, v.clone().into())]),
    );
    let statistic = Statistic::Matrix {
        stage: Stage::Weights,
        heads: 0..heads,
        rows: 0..len,
    };
    let weights = calls.call(
        Weights::new(attention, statistic),
        inputs()
            .into_iter()
            .chain([(Slot::Lse, Input::Output(first, Slot::Lse))]),
    );

    let lists = batch * heads;
    let shape = [batch, heads, budget];
    let mut before: Option<usize> = None;
    let mut steps = Vec::new();
    for token in 0..len {
        // What the query before gave; nothing is in the list before the first.
        let row = Layout::f32([batch, heads, len])
            .with_strides([heads * len * len, len * len, 1])
            .at(token.saturating_sub(1) * len);
        let op = Evict::new(Layout::new(DType::U32, shape), Layout::f32(shape), row)
            .by_position()
            .positions(Layout::new(DType::U32, [1]));
        let state = match before {
            Some(step) => [
                (Slot::Index, Input::Output(step, Slot::Indices)),
                (Slot::Scores, Input::Output(step, Slot::NewScores)),
            ],
            None => [
                (
                    Slot::Index,
                    Values::Integer(vec![NONE.into(); (lists * budget) as usize]).into(),
                ),
                (
                    Slot::Scores,
                    Values::Real(vec![0.0; (lists * budget) as usize]).into(),
                ),
            ],
        };
        let step = calls.call(
            op,
            state.into_iter().chain([
                (Slot::Weight, Input::Output(weights, Slot::Out)),
                (Slot::Positions, Values::Integer(vec![token as i64]).into()),
            ]),
        );
        let query = |layout: &Layout| rows(layout, token, 1);
        let op = Attention::new(query(&whole.op.q), whole.op.k.clone(), whole.op.v.clone())
            .scale(whole.op.effective_scale())
            .output(query(&whole.op.o))
            .key_index(Layout::new(DType::U32, [batch, heads, 1, budget]), 1);
        calls.call(
            op,
            inputs().into_iter().chain([
                (Slot::V, v.clone().into()),
                (Slot::Index, Input::Output(step, Slot::Indices)),
                (Slot::O, Input::Shared(0)),
            ]),
        );
        steps.push(step);
        before = Some(step);
    }
    Ok(calls.expect_shared(0, "o").expect_sets(
        "kept",
        move |outputs| {
            let mut kept = Vec::new();
            for list in 0..lists as usize {
                for &step in &steps {
                    let all = listed(outputs, step, budget)?;
                    kept.push(all.get(list).cloned().ok_or("a list is missing")?);
                }
            }
            Ok(kept)
        },
        |_, _| true,
    ))
}

/// SpAtten as its language-model code prunes: the first tokens, those of the largest sums of scores, and the last.
pub(super) fn prune(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let [q_shape, k_shape, v_shape] = [
        reader.input("q")?.shape.clone(),
        reader.input("k")?.shape.clone(),
        reader.input("v")?.shape.clone(),
    ];
    let (q, k, v) = (
        given(reader, "q")?,
        given(reader, "k")?,
        given(reader, "v")?,
    );
    let &[1, heads, len, dim] = k_shape.as_slice() else {
        return Err(format!("k of shape {k_shape:?}, not of one batch entry"));
    };
    if q_shape != k_shape || v_shape != k_shape {
        return Err("q, k and v of unlike shapes".into());
    }
    // It is computed here too, and compared.
    reader.input("importance")?;
    let start = reader.size("start")?;
    let recent = reader.size("recent")?;
    let important = reader.size("important")?;
    let coming = reader.size("num_coming")?;
    if len + coming <= start + recent + important || recent < coming || start == 0 {
        return Err("a cache of which nothing is pruned".into());
    }
    let last = recent - coming;
    let candidates = len - last - start;

    // The sum over queries of their scores is the score of their sum.
    let mut calls = Problem::none();
    let layout = Layout::f32(k_shape.clone());
    let pool = Pool::new(layout.clone(), len);
    let mean = pool.y.clone();
    let pooled = calls.call(pool, [(Slot::X, q.into())]);
    let scale = len as f64 / (dim as f64).sqrt();
    let attention = Attention::new(mean, layout.clone(), layout.clone()).scale(scale as f32);
    let statistic = Statistic::Matrix {
        stage: Stage::Scaled,
        heads: 0..heads,
        rows: 0..1,
    };
    let scores = calls.call(
        Weights::new(attention, statistic),
        [
            (Slot::Q, Input::Output(pooled, Slot::Y)),
            (Slot::K, k.clone().into()),
        ],
    );
    let x = Layout::f32([heads, candidates])
        .with_strides([len, 1])
        .at(start);
    let mut top = TopK::new(x, important);
    top.sorted = false;
    top.values = None;
    let top = calls.call(top, [(Slot::X, Input::Output(scores, Slot::Out))]);

    let kept = start + important + last;
    let whole = Layout::f32([1, heads, kept, dim]);
    for (number, values) in [k, v].into_iter().enumerate() {
        let count = |first: u64, n: u64| -> Input {
            Values::Integer((first..first + n).map(|row| row as i64).collect()).into()
        };
        let parts = [
            (rows(&layout, 0, len), 0, start, None),
            (
                rows(&layout, start, candidates),
                start,
                important,
                Some(top),
            ),
            (
                rows(&layout, len - last, last.max(1)),
                start + important,
                last,
                None,
            ),
        ];
        for (x, at, n, chosen) in parts {
            if n == 0 {
                continue;
            }
            let index_heads = if chosen.is_some() { heads } else { 1 };
            let index = Layout::new(DType::U32, [1, index_heads, n]);
            let input = match chosen {
                Some(top) => Input::Output(top, Slot::Indices),
                None => count(0, n),
            };
            calls.call(
                Gather::new(x, index).output(rows(&whole, at, n)),
                [
                    (Slot::X, values.clone().into()),
                    (Slot::Index, input),
                    (Slot::Y, Input::Shared(number)),
                ],
            );
        }
    }
    Ok(calls
        .expect_of(scores, Slot::Out, "importance")
        .expect_shared(0, "k_kept")
        .expect_shared(1, "v_kept"))
}
