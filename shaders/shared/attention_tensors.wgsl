// The tensors that every attention schedule binds, and what becomes of a score before the softmax. The
// kernel that imports this says how q, k, v and o are stored (`Stored`).

//@import attention
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
@group(0) @binding(3) var<storage, read> v: array<Stored>; // [batch, kv_heads, kv_len, value_dim]
//@if PARTIAL
@group(0) @binding(4) var<storage, read_write> scratch: array<f32>; // [rows, splits, value_dim + 2]
//@else
@group(0) @binding(4) var<storage, read_write> o: array<Stored>; // [batch, q_heads, q_len, value_dim]
//@if LSE
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // [batch, q_heads, q_len]
//@endif
//@endif
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
//@if LENS
@group(0) @binding(8) var<storage, read> kv_len: array<u32>; // [batch]
//@endif

// The valid keys of a batch entry.
fn valid_keys(batch: u32) -> u32 {
//@if LENS
    return min(kv_len[params.kv_len_at + batch * params.kv_len_batch], params.all_keys);
//@else
    return params.all_keys;
//@endif
}

// What a packed row needs to know of masks: the keys that it sees, and where its mask and bias begin.
struct Row {
    limit: u32,
    mask: u32,
    bias: u32,
}

fn row_of(tile: Tile, row: u32, valid: u32, end: u32) -> Row {
    let limit = min(visible_keys(row % params.q_len, valid, params), end);
    return Row(limit, mask_start(tile, row, params), bias_start(tile, row, params));
}

// The score of a key with its bias, or FLOOR when it is hidden. A key past `last` is read as `last`.
fn final_score(score: f32, row: Row, key: u32, last: u32) -> f32 {
    var s = score;
//@if BIAS
    s = biased(s, f32(bias[row.bias + min(key, last) * params.bias_key]));
//@endif
    var visible = key < row.limit;
//@if MASK
    let byte = row.mask + min(key, last) * params.mask_key;
    visible = visible && ((mask[byte / 4u] >> (byte % 4u * 8u)) & 255u) != 0u;
//@endif
    return select(FLOOR, s, visible);
}

// The natural logarithm of a row's sum of exponentials.
fn log_sum_exp(maximum: f32, total: f32) -> f32 {
    return select((maximum + log2(total)) * LN_2, params.minus_infinity, total == 0.0);
}
