// Sums over ranges of tokens.
//
// Formula:   sums[n, r, d, m] = sum_t f(x[n, t, d]) v[n, t, m] w[n, t] over the tokens t of range r of sequence n, a
//            batch entry and head. x is q (QUERIES) or k (KEYS); f the logistic function (SIGMOID) or nothing; what
//            is not there (neither; no VALUES; not WEIGHTED) counts as 1.
// Grid:      one invocation per (column m; four rows d; range; sequence), columns fastest.
// Workgroup: 64 invocations.
// Memory:    none.

//@import grid
//@if SIGMOID
//@import sigmoid
//@endif

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const BLOCK: u32 = 64u;

struct Params {
    invocations: u32,
    dim: u32,               // rows d
    units: u32,             // dim / 4, rounded up
    columns: u32,           // columns m
    heads: u32,
    len: u32,               // tokens
    ranges: u32,
    range_length: u32,
    sums_at: u32,           // where sums begin in scratch
    weights_at: u32,        // where weights do: [sequences, len]
    x_at: u32, x_batch: u32, x_head: u32, x_row: u32, x_dim: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>; // [sequences, ranges, dim, columns], and more
//@if QUERIES
@group(0) @binding(2) var<storage, read> q: array<Scalar>; // [batch, heads, len, dim]
//@endif
//@if KEYS
@group(0) @binding(2) var<storage, read> k: array<Scalar>; // [batch, heads, len, dim]
//@endif
//@if VALUES
@group(0) @binding(3) var<storage, read> v: array<Scalar>; // [batch, heads, len, columns]
//@endif

fn element(at: u32) -> f32 {
//@if QUERIES
    return f32(q[at]);
//@endif
//@if KEYS
    return f32(k[at]);
//@endif
//@if !ROWS
    return 1.0;
//@endif
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.invocations) {
        return;
    }
    let m = number % params.columns;
    let d = number / params.columns % params.units * 4u;
    let part = number / params.columns / params.units;
    let sequence = part / params.ranges;
    let first = part % params.ranges * params.range_length;
    let batch = sequence / params.heads;
    let head = sequence % params.heads;

    // Rows past the last are read as the last, and not written.
    let rows = min(vec4<u32>(d, d + 1u, d + 2u, d + 3u), vec4<u32>(params.dim - 1u)) * params.x_dim;
    var x_at = params.x_at + batch * params.x_batch + head * params.x_head + first * params.x_row;
//@if VALUES
    var v_at = params.v_at + batch * params.v_batch + head * params.v_head + first * params.v_row + m * params.v_dim;
//@endif
//@if WEIGHTED
    var weight_at = params.weights_at + sequence * params.len + first;
//@endif
    // Sums of blocks are summed, which keeps rounding small.
    var sum = vec4<f32>();
    var block = vec4<f32>();
    let count = min(params.range_length, params.len - first);
    for (var t = 0u; t < count; t++) {
        var factor = 1.0;
//@if VALUES
        factor = f32(v[v_at]);
        v_at += params.v_row;
//@endif
//@if WEIGHTED
        factor *= scratch[weight_at];
        weight_at++;
//@endif
        var x = vec4<f32>(element(x_at + rows.x), element(x_at + rows.y), element(x_at + rows.z), element(x_at + rows.w));
//@if SIGMOID
        x = sigmoid(x);
//@endif
        block = fma(x, vec4<f32>(factor), block);
        x_at += params.x_row;
        if (t % BLOCK == BLOCK - 1u) {
            sum += block;
            block = vec4<f32>();
        }
    }
    sum += block;

    let at = params.sums_at + (part * params.dim + d) * params.columns + m;
    for (var i = 0u; i < min(4u, params.dim - d); i++) {
        scratch[at + i * params.columns] = sum[i];
    }
}
