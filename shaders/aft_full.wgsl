// The attention-free transformer: per channel, a softmax over positions of the keys with a bias per pair of positions.
//
// Formula:   o_i = sigmoid(q_i) sum_j softmax_j(score_ij) v_j, score = k_j + w_ij (ADD) or k_j w_ij; w from a matrix,
//            or w_ij = rows_i . columns_j (FACTORS). CAUSAL: j <= i.
// Grid:      one workgroup per (64 channels; tile of ROWS positions i; range of positions j), channels fastest: those of
//            all batch entries and heads, since all of them share w.
// Workgroup: 64 invocations; each has a channel of its own, and ROWS sums of it.
// Memory:    the biases of ROWS x KEYS pairs, one made by each invocation.
//
// With several ranges (SPLIT), each leaves its output, maximum and total in scratch, for attention_merge.

//@import grid
//@import online_softmax
//@import sigmoid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if F16_BIAS
enable f16;
alias BiasScalar = f16;
//@else
alias BiasScalar = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const ROWS: u32 = 4u;
const KEYS: u32 = WORKGROUP / ROWS;
// No score is further from 0.
const MOST: f32 = 1e38;

struct Params {
    groups: u32,            // workgroups
    blocks: u32,            // of 64 channels
    tiles: u32,             // of ROWS positions i
    channels: u32,          // in all
    dim: u32,               // channels per head
    heads: u32,
    rows: u32,              // positions i
    first_row: u32,         // the first one's number in the sequence
    len: u32,               // positions j
    ranges: u32,
    range_length: u32,
    rank: u32,
    q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
    k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
    o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
    bias_at: u32, bias_row: u32, bias_column: u32,
    columns_at: u32, columns_row: u32, columns_column: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Scalar>; // [batch, heads, rows, dim]
@group(0) @binding(2) var<storage, read> k: array<Scalar>; // [batch, heads, len, dim]
@group(0) @binding(3) var<storage, read> v: array<Scalar>; // [batch, heads, len, dim]
//@if SPLIT
@group(0) @binding(4) var<storage, read_write> scratch: array<f32>; // [channels, rows, ranges, 3]
//@else
@group(0) @binding(4) var<storage, read_write> o: array<Scalar>; // [batch, heads, rows, dim]
//@endif
//@if FACTORS
@group(0) @binding(5) var<storage, read> bias_rows: array<BiasScalar>; // [rows, rank]
@group(0) @binding(6) var<storage, read> bias_columns: array<BiasScalar>; // [len, rank]
//@else
@group(0) @binding(5) var<storage, read> bias: array<BiasScalar>; // [rows, len]
//@endif

var<workgroup> biases: array<f32, WORKGROUP>;

fn bias_of(i: u32, j: u32) -> f32 {
//@if FACTORS
    let row = params.bias_at + i * params.bias_row;
    let column = params.columns_at + j * params.columns_row;
    var sum = 0.0;
    for (var r = 0u; r < params.rank; r++) {
        sum = fma(f32(bias_rows[row + r * params.bias_column]), f32(bias_columns[column + r * params.columns_column]), sum);
    }
    return sum;
//@else
    return f32(bias[params.bias_at + i * params.bias_row + j * params.bias_column]);
//@endif
}

// In base 2.
fn score(key: f32, bias: f32) -> f32 {
//@if ADD
    return biased(key * LOG2_E, bias);
//@else
    return clamp(key * bias, -MOST, MOST) * LOG2_E;
//@endif
}

// The largest score so far, in base 2, and sums of weights and of weighted values relative to it.
struct Softmax {
    maximum: f32,
    total: f32,
    sum: f32,
}

fn joined(a: Softmax, b: Softmax) -> Softmax {
    // One of the two factors is 1.
    let smaller = exp2(-abs(a.maximum - b.maximum));
    let grows = b.maximum > a.maximum;
    let kept = select(1.0, smaller, grows);
    let added = select(smaller, 1.0, grows);
    return Softmax(max(a.maximum, b.maximum), fma(a.total, kept, b.total * added), fma(a.sum, kept, b.sum * added));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.groups) {
        return;
    }
    let own = number % params.blocks * WORKGROUP + local;
    let row = number / params.blocks % params.tiles * ROWS;
    let range = number / params.blocks / params.tiles;
    let start = range * params.range_length;
    var end = min(start + params.range_length, params.len);
//@if CAUSAL
    end = min(end, params.first_row + row + ROWS);
//@endif
    // Channels past the last, and rows, are read as the last, and not written.
    let channel = min(own, params.channels - 1u);
    let d = channel % params.dim;
    let head = channel / params.dim % params.heads;
    let batch = channel / params.dim / params.heads;
    let k_at = params.k_at + batch * params.k_batch + head * params.k_head + d * params.k_dim;
    let v_at = params.v_at + batch * params.v_batch + head * params.v_head + d * params.v_dim;

    var whole: array<Softmax, ROWS>;
    //@unroll
    for (var r = 0u; r < ROWS; r++) {
        whole[r] = Softmax(HIDDEN, 0.0, 0.0);
    }
    for (var first = start; first < end; first += KEYS) {
        workgroupBarrier();
        biases[local] = bias_of(min(row + local / KEYS, params.rows - 1u), min(first + local % KEYS, params.len - 1u));
        workgroupBarrier();
        // Each block has sums of its own, which keeps rounding small.
        var block: array<Softmax, ROWS>;
        //@unroll
        for (var r = 0u; r < ROWS; r++) {
            block[r] = Softmax(HIDDEN, 0.0, 0.0);
        }
        let count = min(KEYS, end - first);
        for (var j = 0u; j < count; j++) {
            let key = f32(k[k_at + (first + j) * params.k_row]);
            let value = f32(v[v_at + (first + j) * params.v_row]);
            //@unroll
            for (var r = 0u; r < ROWS; r++) {
                var s = score(key, biases[r * KEYS + j]);
//@if CAUSAL
                s = select(s, FLOOR, first + j > params.first_row + row + r);
//@endif
                let seen = select(1.0, 0.0, s <= HIDDEN);
                block[r] = joined(block[r], Softmax(max(s, HIDDEN), seen, seen * value));
            }
        }
        //@unroll
        for (var r = 0u; r < ROWS; r++) {
            whole[r] = joined(whole[r], block[r]);
        }
    }

    //@unroll
    for (var r = 0u; r < ROWS; r++) {
        let i = row + r;
        if (own < params.channels && i < params.rows) {
            let asked = q[params.q_at + batch * params.q_batch + head * params.q_head + i * params.q_row + d * params.q_dim];
            let gate = sigmoid(vec4<f32>(f32(asked))).x;
//@if SPLIT
            let at = ((own * params.rows + i) * params.ranges + range) * 3u;
            scratch[at] = whole[r].sum * gate;
            scratch[at + 1u] = whole[r].maximum;
            scratch[at + 2u] = whole[r].total;
//@else
            let at = params.o_at + batch * params.o_batch + head * params.o_head + i * params.o_row;
            o[at + d * params.o_dim] = Scalar(whole[r].sum * reciprocal(whole[r].total) * gate);
//@endif
        }
    }
}
