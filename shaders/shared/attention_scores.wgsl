// What becomes of a score before the softmax: the tensors that change or hide it, and in which order.

//@import attention
//@import attention_visibility
//@import online_softmax

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Stored>; // [batch, q_heads, q_len, head_dim]
@group(0) @binding(2) var<storage, read> k: array<Stored>; // [batch, kv_heads, kv_len, head_dim]
//@if MASK
@group(0) @binding(6) var<storage, read> mask: array<u32>; // bytes [batch, q_heads, q_len, kv_len]
//@endif
//@if BIAS
//@if BIAS_F16
enable f16;
@group(0) @binding(7) var<storage, read> bias: array<f16>; // [batch, q_heads, q_len, kv_len]
//@else
@group(0) @binding(7) var<storage, read> bias: array<f32>; // [batch, q_heads, q_len, kv_len]
//@endif
//@endif
//@if SINKS
@group(0) @binding(15) var<storage, read> sinks: array<f32>; // [q_heads]
//@endif

//@mods

// What a packed row needs to know of its scores: what it sees, its place, and where its mask and bias begin.
struct Row {
    sight: Sight,
    batch: u32,
    head: u32,
    query: u32,
    mask: u32,
    bias: u32,
    blocks: u32,
    bits: u32,      // of the run that is visited
}

fn row_of(tile: Tile, row: u32, walk: Walk) -> Row {
    let head = head_of(tile, row, params);
    return Row(
        clip(sight_of(tile.batch, head, query_of(tile, row, params)), walk),
        params.batch_start + tile.batch,
        params.head_start + head,
        params.row_start + query_of(tile, row, params),
        mask_start(tile, row, params),
        bias_start(tile, row, params),
        blocks_start(tile.batch, head, query_of(tile, row, params)),
        0u,
    );
}

// The row at the start of a run. Where a tile lies in one block of queries, its walk visits what that block sees.
fn row_in_run(row: Row, begin: u32) -> Row {
    var here = row;
//@if MIXED_BLOCKS
    here.bits = bits_of(row.blocks, begin);
//@endif
    return here;
}

//@if SOFTCAP
fn capped(score: f32) -> f32 {
    return params.softcap * tangent(score / params.softcap);
}
//@endif

// Whether the mask leaves a key; one past `last` is read as `last`.
fn unmasked(row: Row, key: u32, last: u32) -> bool {
//@if MASK
    let byte = row.mask + min(key, last) * params.mask_key;
    return ((mask[byte / 4u] >> (byte % 4u * 8u)) & 255u) != 0u;
//@else
    return true;
//@endif
}

// The bytes of the mask from key `key` on, `count` of them (at most 4): one load with MASK_WORDS, where they lie in
// one word.
fn mask_bytes(row: Row, key: u32, count: u32, last: u32) -> u32 {
//@if MASK_WORDS
    return mask[(row.mask + min(key, last)) / 4u] >> (key % 4u * 8u);
//@else
    var bytes = select(0u, 255u, unmasked(row, key, last));
    if (count > 1u) {
        bytes |= select(0u, 255u << 8u, unmasked(row, key + 1u, last));
    }
    if (count > 2u) {
        bytes |= select(0u, 255u << 16u, unmasked(row, key + 2u, last));
    }
    if (count > 3u) {
        bytes |= select(0u, 255u << 24u, unmasked(row, key + 3u, last));
    }
    return bytes;
//@endif
}

// The score of a key with all that changes it, or FLOOR when it is hidden. A key past `last` is read as
// `last`, and hidden; `kept` is what the mask says of it.
fn final_score(score: f32, row: Row, key: u32, last: u32, kept: bool) -> f32 {
    var s = score;
    let near = min(key, last);
    var visible = sees(row.sight, key);
//@if SOFTCAP
    s = capped(s);
//@endif
//@if BIAS
    s = biased(s, f32(bias[row.bias + near * params.bias_key]));
//@endif
//@if SCORE_MOD
    // A bias of minus infinity hides the key, whatever a modification makes of it.
    visible = visible && s > HIDDEN;
    s = biased(0.0, mods_score(s * LN_2, row.batch, row.head, row.query, params.key_start + near));
//@endif
//@if RUNS
    visible = visible && key <= last;
//@endif
//@if MIXED_BLOCKS
//@if RUN_BITS
    visible = visible && in_block(row.bits, near);
//@else
    visible = visible && in_block(bits_of(row.blocks, near), near);
//@endif
//@endif
    visible = visible && kept;
//@if MASK_MOD
    visible = visible && mods_visible(row.batch, row.head, row.query, params.key_start + near);
//@endif
    return select(FLOOR, s, visible);
}

// The logarithm, base 2, of what stands in a row's denominator before any key.
fn first_maximum(tile: Tile, row: u32) -> f32 {
//@if SINKS
    if (params.split_start + tile.split == 0u) {
        return max(sinks[params.sinks_at + head_of(tile, row, params) * params.sinks_head] * LOG2_E, HIDDEN);
    }
//@endif
    return HIDDEN;
}

fn first_total(maximum: f32) -> f32 {
    return select(0.0, 1.0, maximum > HIDDEN);
}

// The natural logarithm of a row's sum of exponentials.
fn log_sum_exp(maximum: f32, total: f32) -> f32 {
    return select((maximum + log2(total)) * LN_2, params.minus_infinity, total == 0.0);
}
