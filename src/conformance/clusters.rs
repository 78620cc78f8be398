//! Routing Transformer: queries and keys that clusters choose, attention inside each cluster, and k-means steps.

use super::{
    case::Values,
    problem::{Input, Problem, Reader},
    routed::given,
};
use crate::{
    Attention, ClusterUpdate, DType, Gather, Layout, Mod, Pool, ScatterMean, Stage, Statistic,
    TopK,
    ops::{Slot, Weights, dims},
};

/// What stands for the lowest number of the source's masks: it is finite there too, so that a row of which all is
/// masked has equal weights.
const MASKED: &str = "-1e30";

/// A k-means step: the new centroids, and their moving average.
pub(super) fn k_means(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let [x, means] = [reader.input("x")?, reader.input("means")?];
    let (x_layout, means_layout) = (
        Layout::f32(x.shape.clone()),
        Layout::f32(means.shape.clone()),
    );
    let decay = reader.case.params["ema_decay"]
        .as_f64()
        .ok_or("params has no number `ema_decay`")?;
    let mut calls = Problem::none();
    let mut step = |decay: f32| {
        let op = ClusterUpdate::new(x_layout.clone(), means_layout.clone(), decay);
        calls.call(
            op.with_assigned(),
            [
                (Slot::X, x.values.clone().into()),
                (Slot::Means, means.values.clone().into()),
            ],
        )
    };
    let (new, averaged) = (step(0.0), step(decay as f32));
    Ok(calls
        .expect_of(new, Slot::NewMeans, "new_means")
        .expect_of(averaged, Slot::NewMeans, "means_after_ema")
        .expect_integers(averaged, Slot::Assigned, "buckets"))
}

/// Products of rows, `[batch, heads, n, dim]` of a call, with the centroids, and the tokens that each cluster takes.
struct Chosen {
    /// Rows of length 1, by their call.
    rows: usize,
    /// `[batch, heads, n, clusters]`, by its call.
    products: usize,
    /// `[batch, heads, clusters, window]`, by its call.
    tokens: usize,
}

fn choose(
    calls: &mut Problem,
    x: (&Layout, &Values),
    means: (&Layout, &Values),
    window: u64,
) -> Chosen {
    let [batch, heads, n, dim] = dims(x.0);
    let [_, clusters, ..] = dims(means.0);
    let pool = Pool::new(x.0.clone(), 1).normalised();
    let normalised = pool.y.clone();
    let rows = calls.call(pool, [(Slot::X, x.1.clone().into())]);
    let centroids =
        Layout::f32([batch, heads, clusters, dim]).with_strides([0, clusters * dim, dim, 1]);
    let statistic = Statistic::Matrix {
        stage: Stage::Scaled,
        heads: 0..heads,
        rows: 0..n,
    };
    let attention = Attention::new(normalised, centroids.clone(), centroids).scale(1.0);
    let products = calls.call(
        Weights::new(attention, statistic),
        [
            (Slot::Q, Input::Output(rows, Slot::Y)),
            (Slot::K, means.1.clone().into()),
        ],
    );
    let by_cluster = Layout::f32([batch, heads, n, clusters]).transposed(2, 3);
    let mut top = TopK::new(by_cluster, window);
    top.sorted = false;
    top.values = None;
    let tokens = calls.call(top, [(Slot::X, Input::Output(products, Slot::Out))]);
    Chosen {
        rows,
        products,
        tokens,
    }
}

/// Attention inside clusters. Every step is a call on the device: rows of length 1, products with the centroids, the
/// best tokens of each cluster, their rows side by side, attention with a head per cluster, and the means of what each
/// token got.
pub(super) fn routing(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let shared = reader.flag("shared_qk");
    let causal = reader.flag("causal");
    let of = |name: &str, reader: &mut Reader<'_>| {
        let array = reader.input(name)?;
        Ok::<_, String>((Layout::f32(array.shape.clone()), array.values.clone()))
    };
    let q = of("q", reader)?;
    let v = of("v", reader)?;
    let k = if shared { q.clone() } else { of("k", reader)? };
    let means = of("means", reader)?;
    let [batch, heads, n, dim] = dims(&q.0);
    let [_, _, keys, value_dim] = dims(&v.0);
    let [_, clusters, ..] = dims(&means.0);
    let window = reader.count("window_size")? as u64;
    let kv_window = reader.count("context_window_size")? as u64;
    let memory = reader.size("num_mem_kv")?;
    let commitment = reader.case.params["commitment"]
        .as_f64()
        .ok_or("params has no number `commitment`")?;
    if dims(&k.0)[2] != keys || dims(&means.0)[0] != heads {
        return Err("k, v and means of unlike shapes".into());
    }

    let mut calls = Problem::none();
    let means_of = (&means.0, &means.1);
    let by_q = choose(&mut calls, (&q.0, &q.1), means_of, window);
    let by_k = choose(&mut calls, (&k.0, &k.1), means_of, kv_window);

    // A head per cluster, of queries, keys and values; memories come before keys.
    let all = heads * clusters;
    let total = memory + kv_window;
    let mut gathered = |x: (&Layout, Input), tokens: usize, width: u64, shared: Option<usize>| {
        let [.., dim] = dims(x.0);
        let index = Layout::new(DType::U32, [batch, all, width]);
        let mut op = Gather::new(x.0.clone(), index);
        let mut inputs = vec![
            (Slot::X, x.1),
            (Slot::Index, Input::Output(tokens, Slot::Indices)),
        ];
        if let Some(number) = shared {
            op = op.output(
                Layout::f32([batch, all, width, dim])
                    .with_strides([all * total * dim, total * dim, dim, 1])
                    .at(memory * dim),
            );
            inputs.push((Slot::Y, Input::Shared(number)));
        }
        calls.call(op, inputs)
    };
    let queries = gathered((&q.0, q.1.clone().into()), by_q.tokens, window, None);
    let key_rows = if shared {
        Input::Output(by_k.rows, Slot::Y)
    } else {
        k.1.clone().into()
    };
    gathered((&k.0, key_rows), by_k.tokens, kv_window, Some(0));
    gathered((&v.0, v.1.clone().into()), by_k.tokens, kv_window, Some(1));
    if memory > 0 {
        for (number, name, dim) in [(0, "mem_key", dim), (1, "mem_value", value_dim)] {
            let values = given(reader, name)?;
            let x = Layout::f32([batch, all, memory, dim]).with_strides([0, memory * dim, dim, 1]);
            let op = Gather::new(x, Layout::new(DType::U32, [1, 1, memory])).output(
                Layout::f32([batch, all, memory, dim]).with_strides([
                    all * total * dim,
                    total * dim,
                    dim,
                    1,
                ]),
            );
            let index: Vec<i64> = (0..memory as i64).collect();
            calls.call(
                op,
                [
                    (Slot::X, values.into()),
                    (Slot::Index, Values::Integer(index).into()),
                    (Slot::Y, Input::Shared(number)),
                ],
            );
        }
    }

    let mut op = Attention::new(
        Layout::f32([batch, all, window, dim]),
        Layout::f32([batch, all, total, dim]),
        Layout::f32([batch, all, total, value_dim]),
    )
    .scale((1.0 / (dim as f64).sqrt()) as f32);
    let query_mask = match reader.optional("query_mask") {
        Some(array) => match &array.values {
            Values::Boolean(seen) => Some(Values::Integer(
                seen.iter().map(|&seen| i64::from(seen)).collect(),
            )),
            _ => return Err("query_mask holds no booleans".into()),
        },
        None => None,
    };
    let mut lines = String::new();
    if query_mask.is_some() {
        // A token that does not ask is not asked either.
        lines += &format!(
            "if (min(asks(batch * {n}u + own), asks(batch * {n}u + other)) == 0u) {{ s = {MASKED}; }}\n"
        );
    }
    if causal {
        lines += &format!("if (other > own) {{ s = {MASKED}; }}\n");
    }
    if shared {
        lines += "if (other == own) { s = -5e4; }\n";
    }
    let mut inputs = vec![
        (Slot::Q, Input::Output(queries, Slot::Y)),
        (Slot::K, Input::Shared(0)),
        (Slot::V, Input::Shared(1)),
    ];
    if !lines.is_empty() {
        let source = format!(
            "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {{
                if (kv_index < {memory}u) {{
                    return score;
                }}
                let cluster = batch * {all}u + head;
                let own = queries(cluster * {window}u + q_index);
                let other = tokens(cluster * {kv_window}u + (kv_index - {memory}u));
                var s = score;
                {lines}
                return s;
            }}"
        );
        let mut change = Mod::new(source)
            .buffer("queries", Layout::new(DType::U32, [batch, all, window]))
            .buffer("tokens", Layout::new(DType::U32, [batch, all, kv_window]));
        inputs.extend([
            (Slot::Buffer0, Input::Output(by_q.tokens, Slot::Indices)),
            (Slot::Buffer1, Input::Output(by_k.tokens, Slot::Indices)),
        ]);
        if let Some(mask) = query_mask {
            change = change.buffer("asks", Layout::new(DType::U32, [batch, n]));
            inputs.push((Slot::Buffer2, mask.into()));
        }
        op = op.modified(change);
    }
    let attended = calls.call(op, inputs);
    let mean = ScatterMean::new(
        Layout::f32([batch, heads, clusters, window, value_dim]),
        Layout::new(DType::U32, [batch, heads, clusters, window]),
        n,
    )
    .epsilon(1e-5);
    calls.call(
        mean,
        [
            (Slot::X, Input::Output(attended, Slot::O)),
            (Slot::Index, Input::Output(by_q.tokens, Slot::Indices)),
        ],
    );

    // The source's loss counts the rows of queries and keys together.
    let sides: Vec<&Chosen> = if shared {
        vec![&by_q]
    } else {
        vec![&by_q, &by_k]
    };
    let sides: Vec<(usize, usize)> = sides
        .into_iter()
        .map(|side| (side.rows, side.products))
        .collect();
    let Values::Real(centroids) = means.1 else {
        return Err("means hold no real numbers".into());
    };
    let lens = [heads, n, clusters, dim].map(|len| len as usize);
    let problem = calls
        .expect(Slot::Y, "o")
        .expect_host("aux_loss", move |outputs| {
            let (mut sum, mut count) = (0.0, 0usize);
            for &(rows, products) in &sides {
                let (rows, products) =
                    (outputs.of(rows, Slot::Y)?, outputs.of(products, Slot::Out)?);
                let [heads, _, clusters, dim] = lens;
                let tokens = products.len() / clusters / heads / batch as usize;
                for (token, (row, products)) in
                    rows.chunks(dim).zip(products.chunks(clusters)).enumerate()
                {
                    let head = token / tokens % heads;
                    let best = (1..clusters).fold(0, |best, c| {
                        if products[c] > products[best] {
                            c
                        } else {
                            best
                        }
                    });
                    let mean = &centroids[(head * clusters + best) * dim..][..dim];
                    sum += row
                        .iter()
                        .zip(mean)
                        .map(|(x, m)| f64::from(x - m).powi(2))
                        .sum::<f64>();
                    count += dim;
                }
            }
            Ok(vec![(commitment * sum / count as f64) as f32])
        });
    let mut problem = problem
        .expect_of(by_q.products, Slot::Out, "q_dists")
        .expect_of(by_k.products, Slot::Out, "k_dists");
    for (call, name, width) in [
        (by_q.tokens, "q_indices", window),
        (by_k.tokens, "k_indices", kv_window),
    ] {
        problem = problem.expect_sets(
            name,
            move |outputs| super::routed::listed(outputs, call, width),
            |_, _| true,
        );
    }
    Ok(problem)
}
