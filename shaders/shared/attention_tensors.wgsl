// The tensors that every attention schedule binds besides those of the scores. The kernel that imports
// this says how q, k, v and o are stored (`Stored`).

//@import attention_scores

@group(0) @binding(3) var<storage, read> v: array<Stored>; // [batch, kv_heads, kv_len, value_dim]
//@if !PARTIAL
@group(0) @binding(4) var<storage, read_write> o: array<Stored>; // [batch, q_heads, q_len, value_dim]
//@if LSE
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // [batch, q_heads, q_len]
//@endif
//@endif
//@if GATE
@group(0) @binding(21) var<storage, read> gate: array<f32>; // [batch, q_heads, q_len]
//@endif
//@if SCRATCH
@group(0) @binding(16) var<storage, read_write> scratch: array<f32>; // [rows, splits, value_dim + 2]
//@endif

// Weights come from scores in one of two ways. Online: 2 to the difference to the running maximum, and the
// output is divided by their total at the end. With PROB_MOD: as the softmax has them, since what mods make of
// them is not normalised again; an earlier pass has left maximum and total of each row in scratch.

// The running maximum of a row, and its running total, before any key.
fn start_maximum(tile: Tile, row: u32) -> f32 {
//@if PROB_MOD
    var maximum = HIDDEN;
    let at = partial_number(tile, row, params) * params.all_splits * (params.value_dim + 2u) + params.value_dim;
    for (var s = 0u; s < params.all_splits; s++) {
        maximum = max(maximum, scratch[at + s * (params.value_dim + 2u)]);
    }
    var total = 0.0;
    for (var s = 0u; s < params.all_splits; s++) {
        let part = at + s * (params.value_dim + 2u);
        total += select(exp2(scratch[part] - maximum) * scratch[part + 1u], 0.0, scratch[part] <= HIDDEN);
    }
    return select(maximum + log2(total), HIDDEN, total == 0.0);
//@else
    return first_maximum(tile, row);
//@endif
}

fn start_total(maximum: f32) -> f32 {
//@if PROB_MOD
    return 0.0;
//@else
    return first_total(maximum);
//@endif
}

// The running maximum after more scores, of which `highest` is the highest.
fn raised(maximum: f32, highest: f32) -> f32 {
//@if PROB_MOD
    return maximum;
//@else
    return max(maximum, highest);
//@endif
}

fn weight_of(score: f32, maximum: f32, row: Row, key: u32, last: u32) -> f32 {
    let w = weight(score, maximum);
//@if PROB_MOD
    let changed = mods_prob(w, row.batch, row.head, row.query, params.key_start + min(key, last));
    return select(changed, 0.0, score <= HIDDEN);
//@else
    return w;
//@endif
}

// What the output of a row is multiplied with in the end.
fn normaliser(total: f32, tile: Tile, row: u32) -> f32 {
//@if PROB_MOD
    var factor = 1.0;
//@else
    var factor = reciprocal(total);
//@endif
//@if GATE
    factor *= gate[gate_start(tile, row, params)];
//@endif
    return factor;
}

//@if PARTIAL
// Writes maximum and total of a partial result that begins at `at`.
fn store_state(at: u32, maximum: f32, total: f32, split: u32) {
//@if PROB_MOD
    // The merge adds up what is normalised already.
    scratch[at + params.value_dim] = 0.0;
    scratch[at + params.value_dim + 1u] = select(0.0, 1.0, params.split_start + split == 0u);
//@else
    scratch[at + params.value_dim] = maximum;
    scratch[at + params.value_dim + 1u] = total;
//@endif
}
//@endif
