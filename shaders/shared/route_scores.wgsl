// Tensors of scores for routing, and the workgroups' share in them.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
//@else
alias Stored = Scalar;
//@endif

struct Params {
    tiles: u32,             // workgroups
    row_tiles: u32,
    ranges: u32,            // of columns
    range: u32,             // columns of one
    kv_heads: u32,
    heads: u32,             // output heads of each KV head
    summed: u32,            // query heads of each output head
    rows: u32,
    columns: u32,
    channels: u32,
    add: u32,               // whether scores are added to what is there
    scale: f32,
    q_at: u32, q_batch: u32, q_group: u32, q_head: u32, q_row: u32, q_channel: u32,
    k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_channel: u32,
    low_at: u32, low_batch: u32, low_head: u32, low_row: u32, low_channel: u32,
    weights_at: u32, weights_batch: u32, weights_group: u32, weights_head: u32, weights_row: u32,
    out_at: u32, out_batch: u32, out_group: u32, out_head: u32, out_row: u32, out_column: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Stored>; // [batch, q_heads, rows, channels]
@group(0) @binding(2) var<storage, read> k: array<Stored>; // [batch, kv_heads, columns, channels]
//@if OUT4
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [batch, heads, rows, columns]
//@else
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [batch, heads, rows, columns]
//@endif
//@if BOUNDS
@group(0) @binding(4) var<storage, read> k_min: array<Stored>; // [batch, kv_heads, columns, channels]
//@endif
//@if WEIGHTS
@group(0) @binding(5) var<storage, read> head_weights: array<f32>; // [batch, q_heads, rows]
//@endif

// Rows and columns of a workgroup, of one output head, and where the first elements of what they need are.
struct Share {
    first_row: u32,
    first_column: u32,
    end_column: u32,
    q: u32,                 // of the first of the summed heads
    k: u32,
    low: u32,
    weights: u32,
    out: u32,
}

fn share_of(number: u32, rows_each: u32) -> Share {
    let range = number / params.row_tiles % params.ranges;
    let rest = number / params.row_tiles / params.ranges;
    let head = rest % params.heads;
    let group = rest / params.heads % params.kv_heads;
    let batch = rest / params.heads / params.kv_heads;
    var share: Share;
    share.first_row = number % params.row_tiles * rows_each;
    share.first_column = range * params.range;
    share.end_column = min(share.first_column + params.range, params.columns);
    share.q = params.q_at + batch * params.q_batch + group * params.q_group + head * params.q_head;
    share.k = params.k_at + batch * params.k_batch + group * params.k_head;
    share.low = params.low_at + batch * params.low_batch + group * params.low_head;
    share.weights = params.weights_at + batch * params.weights_batch + group * params.weights_group
        + head * params.weights_head;
    share.out = params.out_at + batch * params.out_batch + group * params.out_group + head * params.out_head;
    return share;
}

// The factor on the scores of a row and a summed head.
fn factor_of(share: Share, summed: u32, row: u32) -> f32 {
//@if WEIGHTS
    return head_weights[share.weights + summed * params.weights_head + row * params.weights_row];
//@else
    return 1.0;
//@endif
}

fn finished(product: vec4<f32>, factor: f32) -> vec4<f32> {
    var score = product * params.scale;
//@if RELU
    score = max(score, vec4<f32>());
//@endif
    return score * factor;
}

// Writes `count` scores of a row from a column on.
fn store(share: Share, row: u32, column: u32, count: u32, score: vec4<f32>, add: bool) {
    let at = share.out + row * params.out_row + column * params.out_column;
//@if OUT4
    if (add) {
        out[at / 4u] += score;
    } else {
        out[at / 4u] = score;
    }
//@else
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (c < count) {
            if (add) {
                out[at + c * params.out_column] += score[c];
            } else {
                out[at + c * params.out_column] = score[c];
            }
        }
    }
//@endif
}
