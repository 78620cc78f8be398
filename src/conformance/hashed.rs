//! Attention among tokens of one hash: Reformer, and the hash-sparse and the key- and query-sparse attention of
//! dynamic sparse flash attention.

use super::{
    case::Values,
    problem::{Input, Problem, Reader},
    routed::given,
};
use crate::{
    Attention, BlockMask, Causal, DType, Gather, Layout, Merge, Mod, Pool, Sort, Stage, Statistic,
    TopK,
    ops::{Slot, Weights, dims},
};

/// The largest of the products with directions and their opposites: `argmax([x R, -x R])`. Rows are
/// `[batch, heads, n, dim]`, directions `[batch, heads, count, dim]`; gives the call whose indices are the hashes,
/// `[batch, heads, n]`.
fn hashes(
    calls: &mut Problem,
    (x, x_input): (&Layout, impl Fn() -> Input),
    (directions, input): (&Layout, impl Fn() -> Input),
    buffer: usize,
) -> usize {
    let [batch, heads, n, _] = dims(x);
    let [_, _, count, _] = dims(directions);
    let both = Layout::f32([batch, heads, n, 2 * count]);
    for (number, scale) in [1.0, -1.0].into_iter().enumerate() {
        let attention =
            Attention::new(x.clone(), directions.clone(), directions.clone()).scale(scale);
        let statistic = Statistic::Matrix {
            stage: Stage::Scaled,
            heads: 0..heads,
            rows: 0..n,
        };
        let mut half = both.clone().at(number as u64 * count);
        half.shape[3] = count;
        calls.call(
            Weights::new(attention, statistic).output(half),
            [
                (Slot::Q, x_input()),
                (Slot::K, input()),
                (Slot::Out, Input::Shared(buffer)),
            ],
        );
    }
    let mut top = TopK::new(both, 1);
    top.values = None;
    calls.call(top, [(Slot::X, Input::Shared(buffer))])
}

/// Reformer: in each round tokens are sorted by hash and cut into chunks, which attend to themselves and the chunk
/// before, the first to the last of all rounds; rounds are merged by their log-sum-exps.
pub(super) fn reformer(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let &[batch, n, dim] = reader.input("qk")?.shape.as_slice() else {
        return Err("qk has not three axes".into());
    };
    let (qk, v) = (given(reader, "qk")?, given(reader, "v")?);
    let rounds = reader.count("n_hashes")? as u64;
    let buckets = reader.count("n_buckets")? as u64;
    let chunk = reader.count("bucket_size")? as u64;
    let value_dim = reader.input("v")?.shape.last().copied().unwrap_or(dim);
    let half = buckets / 2;
    if reader.input("rotations")?.shape != [dim, rounds, half] || n % chunk != 0 {
        return Err(format!(
            "{n} tokens in chunks of {chunk}, or rotations of another shape"
        ));
    }
    let rotations = given(reader, "rotations")?;
    let mut calls = Problem::none();
    // Rounds are heads; the rows are the same for all.
    let x = Layout::f32([batch, rounds, n, dim]).with_strides([n * dim, 0, dim, 1]);
    let directions =
        Layout::f32([batch, rounds, half, dim]).with_strides([0, half, 1, rounds * half]);
    let hashed = hashes(
        &mut calls,
        (&x, || qk.clone().into()),
        (&directions, || rotations.clone().into()),
        0,
    );
    let numbers = || Layout::new(DType::U32, [batch, rounds, n]);
    let sorted = calls.call(
        Sort::new(numbers(), buckets).with_inverse(),
        [(Slot::X, Input::Output(hashed, Slot::Indices))],
    );
    let pool = Pool::new(Layout::f32([batch, 1, n, dim]), 1).normalised();
    let normalised = calls.call(pool, [(Slot::X, qk.clone().into())]);
    let mut gathered = |input: Input, dim: u64| {
        let op = Gather::new(Layout::f32([batch, 1, n, dim]), numbers());
        calls.call(
            op,
            [
                (Slot::X, input),
                (Slot::Index, Input::Output(sorted, Slot::Indices)),
            ],
        )
    };
    let queries = gathered(qk.into(), dim);
    let keys = gathered(Input::Output(normalised, Slot::Y), dim);
    let values = gathered(v.into(), value_dim);

    let all = rounds * n;
    let chunks = all / chunk;
    let words = chunks.div_ceil(32);
    let mut bits = vec![0i64; (chunks * words) as usize];
    for row in 0..chunks {
        for seen in [row, (row + chunks - 1) % chunks] {
            if let Some(word) = bits.get_mut((row * words + seen / 32) as usize) {
                *word |= 1 << (seen % 32);
            }
        }
    }
    let causal = if reader.flag("causal") {
        "if (other > own) { s = -1e30; }"
    } else {
        ""
    };
    let change = Mod::new(format!(
        "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {{
            let own = tokens(batch * {all}u + q_index);
            let other = tokens(batch * {all}u + kv_index);
            var s = score;
            {causal}
            if (other == own) {{ s = -5e4; }}
            return s;
        }}"
    ))
    .buffer("tokens", Layout::new(DType::U32, [batch, all]));
    let row = |dim: u64| Layout::f32([batch, 1, all, dim]);
    let op = Attention::new(row(dim), row(dim), row(value_dim))
        .scale((1.0 / (dim as f64).sqrt()) as f32)
        .with_lse()
        .block_mask(BlockMask {
            bits: Layout::new(DType::U32, [1, 1, chunks, words]),
            block_q: chunk,
            block_kv: chunk,
        })
        .modified(change);
    let attended = calls.call(
        op,
        [
            (Slot::Q, Input::Output(queries, Slot::Y)),
            (Slot::K, Input::Output(keys, Slot::Y)),
            (Slot::V, Input::Output(values, Slot::Y)),
            (Slot::Blocks, Values::Integer(bits).into()),
            (Slot::Buffer0, Input::Output(sorted, Slot::Indices)),
        ],
    );
    let mut back = |slot: Slot, dim: u64| {
        let op = Gather::new(Layout::f32([batch, rounds, n, dim]), numbers());
        calls.call(
            op,
            [
                (Slot::X, Input::Output(attended, slot)),
                (Slot::Index, Input::Output(sorted, Slot::Inverse)),
            ],
        )
    };
    let (o, lse) = (back(Slot::O, value_dim), back(Slot::Lse, 1));
    let parts = |dim: u64| {
        Layout::f32([rounds, batch, 1, n, dim]).with_strides([
            n * dim,
            rounds * n * dim,
            n * dim,
            dim,
            1,
        ])
    };
    let lse_parts = Layout::f32([rounds, batch, 1, n]).with_strides([n, rounds * n, n, 1]);
    calls.call(
        Merge::new(parts(value_dim), lse_parts),
        [
            (Slot::OParts, Input::Output(o, Slot::Y)),
            (Slot::LseParts, Input::Output(lse, Slot::Y)),
        ],
    );
    // Stored hashes count on from round to round.
    let offset = move |at: usize| (at as u64 / n % rounds * buckets) as i64;
    Ok(calls
        .expect(Slot::O, "o")
        .expect_counted(hashed, Slot::Indices, "buckets", offset))
}

/// Hash-sparse attention: tokens sorted by hash are packed sequences, in which a token sees those before it.
pub(super) fn hash_sparse(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let shape = reader.input("q")?.shape.clone();
    let &[1, 1, n, dim] = shape.as_slice() else {
        return Err(format!(
            "q of shape {shape:?}: packed sequences are of one head"
        ));
    };
    let (q, k, v) = (
        given(reader, "q")?,
        given(reader, "k")?,
        given(reader, "v")?,
    );
    let count = reader.count("nb_hash")? as u64;
    let half = count / 2;
    let stored = given(reader, "hash_q")?;
    if given(reader, "hash_k")? != stored {
        return Err("queries and keys of unlike hashes".into());
    }
    if reader.input("projection")?.shape != [1, dim, half] {
        return Err("projections of another shape".into());
    }
    let projection = given(reader, "projection")?;
    let mut calls = Problem::none();
    let directions = Layout::f32([1, 1, half, dim]).with_strides([0, 0, 1, half]);
    let pool = Pool::new(directions, 1).normalised();
    let normalised = pool.y.clone();
    let pooled = calls.call(pool, [(Slot::X, projection.into())]);
    let row = Layout::f32([1, 1, n, dim]);
    let hashed = hashes(
        &mut calls,
        (&row, || q.clone().into()),
        (&normalised, || Input::Output(pooled, Slot::Y)),
        0,
    );
    let numbers = || Layout::new(DType::U32, [1, 1, n]);
    let sorted = calls.call(
        Sort::new(numbers(), count).with_inverse().with_starts(),
        [(Slot::X, Input::Output(hashed, Slot::Indices))],
    );
    let mut gathered = |input: Input, slot: Slot| {
        calls.call(
            Gather::new(row.clone(), numbers()),
            [(Slot::X, input), (Slot::Index, Input::Output(sorted, slot))],
        )
    };
    let queries = gathered(q.into(), Slot::Indices);
    let keys = gathered(k.into(), Slot::Indices);
    let values = gathered(v.into(), Slot::Indices);
    let starts = Layout::new(DType::U32, [count + 1]);
    let mut op = Attention::new(row.clone(), row.clone(), row.clone())
        .causal(Causal::TopLeft)
        .modified(Mod::new(
            "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {
                return q_index != kv_index;
            }",
        ));
    op = op.packed(starts.clone(), starts);
    let attended = calls.call(
        op,
        [
            (Slot::Q, Input::Output(queries, Slot::Y)),
            (Slot::K, Input::Output(keys, Slot::Y)),
            (Slot::V, Input::Output(values, Slot::Y)),
            (Slot::CuQ, Input::Output(sorted, Slot::Starts)),
            (Slot::CuKv, Input::Output(sorted, Slot::Starts)),
        ],
    );
    calls.call(
        Gather::new(row, numbers()),
        [
            (Slot::X, Input::Output(attended, Slot::O)),
            (Slot::Index, Input::Output(sorted, Slot::Inverse)),
        ],
    );
    Ok(calls
        .expect(Slot::Y, "o")
        .expect_integers(hashed, Slot::Indices, "hash_q"))
}

/// Keys and queries that are dropped: a sort with one bucket puts those that are kept first, and says how many.
pub(super) fn query_key_sparse(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let shape = reader.input("q")?.shape.clone();
    let &[batch, heads, n, dim] = shape.as_slice() else {
        return Err(format!("q of shape {shape:?}"));
    };
    let (q, k, v) = (
        given(reader, "q")?,
        given(reader, "k")?,
        given(reader, "v")?,
    );
    let mut dropped = |name: &str| match &reader.input(name)?.values {
        Values::Boolean(kept) => Ok(Values::Integer(
            kept.iter().map(|&kept| i64::from(!kept)).collect(),
        )),
        _ => Err(format!("{name} holds no booleans")),
    };
    let (keep_q, keep_k) = (dropped("keep_q")?, dropped("keep_k")?);
    // Lengths are per batch entry, so that heads are entries here.
    let entries = batch * heads;
    let row = Layout::f32([entries, 1, n, dim]);
    let numbers = || Layout::new(DType::U32, [entries, 1, n]);
    let mut calls = Problem::none();
    let mut sort = |kept: Values| {
        calls.call(
            Sort::new(numbers(), 1).with_inverse().with_starts(),
            [(Slot::X, kept.into())],
        )
    };
    let (by_q, by_k) = (sort(keep_q), sort(keep_k));
    let key_rows = if reader.flag("key_l2norm") {
        let pool = Pool::new(row.clone(), 1).normalised();
        Input::Output(calls.call(pool, [(Slot::X, k.into())]), Slot::Y)
    } else {
        k.into()
    };
    let mut gathered = |input: Input, (sorted, slot): (usize, Slot)| {
        calls.call(
            Gather::new(row.clone(), numbers()),
            [(Slot::X, input), (Slot::Index, Input::Output(sorted, slot))],
        )
    };
    let queries = gathered(q.into(), (by_q, Slot::Indices));
    let keys = gathered(key_rows, (by_k, Slot::Indices));
    let values = gathered(v.into(), (by_k, Slot::Indices));
    let change = Mod::new(format!(
        "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {{
            return key_tokens(batch * {n}u + kv_index) <= query_tokens(batch * {n}u + q_index);
        }}"
    ))
    .buffer("query_tokens", numbers())
    .buffer("key_tokens", numbers());
    // starts[1], the number of those that are kept.
    let counts = Layout::new(DType::U32, [entries]).with_strides([2]).at(1);
    let op = Attention::new(row.clone(), row.clone(), row.clone())
        .q_len(counts.clone())
        .kv_len(counts)
        .modified(change);
    let attended = calls.call(
        op,
        [
            (Slot::Q, Input::Output(queries, Slot::Y)),
            (Slot::K, Input::Output(keys, Slot::Y)),
            (Slot::V, Input::Output(values, Slot::Y)),
            (Slot::QLen, Input::Output(by_q, Slot::Starts)),
            (Slot::KvLen, Input::Output(by_k, Slot::Starts)),
            (Slot::Buffer0, Input::Output(by_q, Slot::Indices)),
            (Slot::Buffer1, Input::Output(by_k, Slot::Indices)),
        ],
    );
    calls.call(
        Gather::new(row, numbers()),
        [
            (Slot::X, Input::Output(attended, Slot::O)),
            (Slot::Index, Input::Output(by_q, Slot::Inverse)),
        ],
    );
    Ok(calls.expect(Slot::Y, "o"))
}
