//! LongHeads: queries past the trained length attend to a few chunks, whose keys are numbered anew.

use super::{
    case::Values,
    problem::{AttentionProblem, Input, Problem, Reader},
    routed::{given, listed, rows},
};
use crate::{
    Attention, Causal, DType, FirstQuery, Gather, Layout, NONE, Pool, Rotary, Route, RouteScores,
    Visible,
    ops::{Slot, dims},
    rotary_tables,
};

/// Tables of cosines and sines, and rotary embeddings by them.
struct Turn {
    table: Layout,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turn {
    /// Adds the embedding of a tensor; the number of its call, and the layout of its contiguous result. Positions
    /// are places where none are given.
    fn call(
        &self,
        calls: &mut Problem,
        x: Layout,
        input: Input,
        positions: Option<Vec<i64>>,
    ) -> (usize, Layout) {
        let mut op = Rotary::new(x, self.table.clone(), self.table.clone());
        let mut inputs = vec![
            (Slot::X, input),
            (Slot::Cos, Values::Real(self.cos.clone()).into()),
            (Slot::Sin, Values::Real(self.sin.clone()).into()),
        ];
        if let Some(positions) = positions {
            let [batch, _, seq, _] = dims(&op.x);
            op = op.positions(Layout::new(DType::U32, [batch, seq]));
            inputs.push((Slot::Positions, Values::Integer(positions).into()));
        }
        let y = op.y.clone();
        (calls.call(op, inputs), y)
    }
}

/// Queries before `begin_selective_length` attend as ever. Each later one is a batch entry with chunks of its own:
/// the first chunk, the two last ones and the best of the others, by a key for each chunk that comes of attention
/// inside it.
pub(super) fn chunks(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let whole = AttentionProblem::of(reader, DType::F32)?.op;
    let window = reader.count("window")? as u64;
    let seen = reader.count("atten_length")? as u64;
    let begin = reader.count("begin_selective_length")? as u64;
    let base = reader.number("rope_base")? as f64;
    let [batch, heads, len, dim] = dims(&whole.q);
    let picked = seen / window;
    if batch != 1
        || whole.k.shape != whole.q.shape
        || !seen.is_multiple_of(window)
        || picked < 3
        || begin < seen
        || len <= begin
    {
        return Err(format!(
            "{len} tokens in chunks of {window}, {seen} seen, selective from {begin} on"
        ));
    }
    let [q, k, v] = ["q", "k", "v"].map(|name| given(reader, name));
    let (q, k, v) = (q?, k?, v?);
    let (cos, sin) = rotary_tables(0..begin, dim, base).map_err(|error| error.to_string())?;
    let turn = Turn {
        table: Layout::f32([begin, dim / 2]),
        cos,
        sin,
    };
    let mut calls = Problem::none();

    let early = |layout| rows(layout, 0, begin);
    let (early_q, early_layout) = turn.call(&mut calls, early(&whole.q), q.clone().into(), None);
    let (early_k, _) = turn.call(&mut calls, early(&whole.k), k.clone().into(), None);
    calls.call(
        Attention::new(early_layout.clone(), early_layout, early(&whole.v))
            .causal(Causal::TopLeft)
            .output(early(&whole.o)),
        [
            (Slot::Q, Input::Output(early_q, Slot::Y)),
            (Slot::K, Input::Output(early_k, Slot::Y)),
            (Slot::V, v.clone().into()),
            (Slot::O, Input::Shared(0)),
        ],
    );

    // Whole chunks: the last is filled up with zeros, which take part.
    let chunks = len.div_ceil(window);
    let padded = chunks * window;
    let index: Vec<i64> = (0..padded)
        .map(|row| {
            if row < len {
                row as i64
            } else {
                i64::from(NONE)
            }
        })
        .collect();
    let by_chunk = Layout::f32([chunks, heads, window, dim]).with_strides([
        window * dim,
        padded * dim,
        dim,
        1,
    ]);
    let mut whole_chunks = |values: &Values| {
        calls.call(
            Gather::new(whole.k.clone(), Layout::new(DType::U32, [1, 1, padded])),
            [
                (Slot::X, values.clone().into()),
                (Slot::Index, Values::Integer(index.clone()).into()),
            ],
        )
    };
    let [q_chunks, k_chunks, v_chunks] = [&q, &k, &v].map(&mut whole_chunks);
    let [(chunk_q, chunk_layout), (chunk_k, _)] = [q_chunks, k_chunks].map(|call| {
        turn.call(
            &mut calls,
            by_chunk.clone(),
            Input::Output(call, Slot::Y),
            None,
        )
    });
    let inside = Attention::new(chunk_layout.clone(), chunk_layout.clone(), by_chunk);
    let pool = Pool::new(inside.o.clone(), window);
    let feature_layout = pool.y.clone();
    let inside = calls.call(
        inside,
        [
            (Slot::Q, Input::Output(chunk_q, Slot::Y)),
            (Slot::K, Input::Output(chunk_k, Slot::Y)),
            (Slot::V, Input::Output(v_chunks, Slot::Y)),
        ],
    );
    let feature = calls.call(pool, [(Slot::X, Input::Output(inside, Slot::O))]);
    let keys_layout = Layout::f32([1, heads, chunks, dim]);
    let chunk_keys = calls.call(
        Attention::new(feature_layout, chunk_layout.clone(), chunk_layout)
            .output(Layout::f32([chunks, heads, 1, dim]).with_strides([dim, chunks * dim, dim, 1])),
        [
            (Slot::Q, Input::Output(feature, Slot::Y)),
            (Slot::K, Input::Output(chunk_k, Slot::Y)),
            (Slot::V, Input::Output(chunk_k, Slot::Y)),
        ],
    );

    let late = len - begin;
    let op = RouteScores::new(rows(&whole.q, begin, late), keys_layout);
    let scores_layout = op.out.clone();
    let scores = calls.call(
        op,
        [
            (Slot::Q, q.clone().into()),
            (Slot::K, Input::Output(chunk_keys, Slot::O)),
        ],
    );
    let route = Route::new(scores_layout, picked)
        .blocks(1, window)
        .first_query(FirstQuery::At(begin))
        .visible(Visible::Causal)
        .forced(1, 2);
    let route = calls.call(route, [(Slot::Scores, Input::Output(scores, Slot::Out))]);

    // A batch entry per query: the keys of its chunks in their order, and the query after those that it sees.
    let list = Layout::new(DType::U32, [1, heads, late * picked]);
    let mut gathered = |values: &Values| {
        calls.call(
            Gather::new(whole.k.clone(), list.clone()).block(window),
            [
                (Slot::X, values.clone().into()),
                (Slot::Index, Input::Output(route, Slot::Indices)),
            ],
        )
    };
    let (late_k, late_v) = (gathered(&k), gathered(&v));
    let by_query =
        Layout::f32([late, heads, seen, dim]).with_strides([seen * dim, late * seen * dim, dim, 1]);
    let single = Layout::f32([late, heads, 1, dim])
        .with_strides([dim, len * dim, dim, 1])
        .at(begin * dim);
    let places: Vec<i64> = (begin..len)
        .map(|query| (seen - window + query % window) as i64)
        .collect();
    let (late_k, late_k_layout) = turn.call(
        &mut calls,
        by_query.clone(),
        Input::Output(late_k, Slot::Y),
        None,
    );
    let (late_q, late_q_layout) =
        turn.call(&mut calls, single.clone(), q.into(), Some(places.clone()));
    calls.call(
        Attention::new(late_q_layout, late_k_layout, by_query)
            .kv_len(Layout::new(DType::U32, [late]))
            .output(single),
        [
            (Slot::Q, Input::Output(late_q, Slot::Y)),
            (Slot::K, Input::Output(late_k, Slot::Y)),
            (Slot::V, Input::Output(late_v, Slot::Y)),
            (Slot::KvLen, Values::Integer(places).into()),
            (Slot::O, Input::Shared(0)),
        ],
    );
    Ok(calls
        .expect_shared(0, "o")
        .expect_of(chunk_keys, Slot::O, "chunk_keys")
        .expect_sets(
            "selected_chunks",
            move |outputs| listed(outputs, route, picked),
            |_, _| true,
        ))
}
