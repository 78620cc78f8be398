// Scores and weights one at a time, for kernels that look at pairs of query and key. What they write takes
// the place of v and o in the parameters: o_* says where `out` lies, v_* where `keys` does.

//@import attention_scores

alias Stored = Scalar;

//@if LSE
@group(0) @binding(5) var<storage, read> lse: array<f32>; // [batch, q_heads, q_len]
//@endif

// The scaled score of the rows of q and k that start at these places, base 2.
fn pair_score(q_at: u32, k_at: u32) -> f32 {
    var sum = 0.0;
    for (var d = 0u; d < params.head_dim; d += 4u) {
        // Four dims are summed first: fewer additions to a large number. Those past the last count for nothing.
        var part = 0.0;
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            let near = min(d + c, params.head_dim - 1u);
            let product = f32(q[q_at + near * params.q_dim]) * params.scale * f32(k[k_at + near * params.k_dim]);
            part += select(0.0, product, d + c == near);
        }
        sum += part;
    }
    return sum;
}

//@if LSE
// The log-sum-exp of a row, base 2. A row that sees nothing has hidden scores alone: any number will do.
fn row_sum(tile: Tile, row: u32) -> f32 {
    let sum = lse[lse_start(tile, row, params)];
    return select(sum * LOG2_E, 0.0, bitcast<u32>(sum) == MINUS_INFINITY_BITS);
}

// The weight of a key by its final score.
fn pair_weight(score: f32, sum: f32, row: Row, key: u32) -> f32 {
    let w = weight(score, sum);
//@if PROB_MOD
    let changed = mods_prob(w, row.batch, row.head, row.query, params.key_start + key);
    return select(changed, 0.0, score <= HIDDEN);
//@else
    return w;
//@endif
}
//@endif

// A walk over all keys of the slice, for rows that are asked about each.
fn whole_walk(tile: Tile, row: u32) -> Walk {
    return Walk(0u, 0u, 0u, params.kv_len, 0u, params.kv_len, tile.batch, tile.kv_head, row, row, 0u, 0u);
}
