// What each token reads of sums over tokens, in flow attention.
//
// Formula:   y[n, t, m] = sum_d (x[n, t, d] + e) (S[n, d, m] + e), where x is the logistic function of q (QUERIES) or
//            k, or 1 where neither is read (not ROWS). S is a total; or, CAUSAL, the sum before the token's range plus
//            u[n, j, d] v[n, j, m] w[n, j] for its tokens j <= t, with u of the other of q and k. Then, with a count c
//            of the tokens t + 1 so far (not CAUSAL: 1):
//            FLOW:     out = c / y
//            ALLOCATE: out = sigmoid(factor y / c) flow / c, in the place of flow
//            COMPETE:  out = exp(clamp(y / c, -1, 1))
//            SHARE:    out = out c / y (not CAUSAL: c is `factor`)
//            OUTPUT:   o = gate y
// Grid:      one invocation per (column m; range of tokens; sequence n, a batch entry and head), columns fastest.
// Workgroup: 64 invocations.
// Memory:    none. An invocation has its column of S, up to 4 UNITS rows, to itself.

//@import grid
//@import sigmoid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const UNITS: u32 = 4u; //@variant

struct Params {
    invocations: u32,
    dim: u32,               // rows d
    units: u32,             // dim / 4, rounded up
    columns: u32,           // columns m
    heads: u32,
    len: u32,               // tokens
    ranges: u32,
    range_length: u32,
    eps: f32,
    factor: f32,
    sums_at: u32,           // where S begins in scratch
    sums_range: u32,        // from one range's S to the next one's
    sums_sequence: u32,     // from one sequence's S to the next one's
    weights_at: u32,        // where w does: [sequences, len]
    out_at: u32,            // where what is written does, or gate: [sequences, len]
    q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
    k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
    o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>; // sums, and numbers per token
//@if USES_Q
@group(0) @binding(2) var<storage, read> q: array<Scalar>; // [batch, heads, len, dim]

fn query(t: u32, head: u32, batch: u32, d: vec4<u32>) -> vec4<f32> {
    let at = vec4<u32>(params.q_at + batch * params.q_batch + head * params.q_head + t * params.q_row) + d * params.q_dim;
    return sigmoid(vec4<f32>(f32(q[at.x]), f32(q[at.y]), f32(q[at.z]), f32(q[at.w])));
}
//@endif
//@if USES_K
@group(0) @binding(3) var<storage, read> k: array<Scalar>; // [batch, heads, len, dim]

fn key(t: u32, head: u32, batch: u32, d: vec4<u32>) -> vec4<f32> {
    let at = vec4<u32>(params.k_at + batch * params.k_batch + head * params.k_head + t * params.k_row) + d * params.k_dim;
    return sigmoid(vec4<f32>(f32(k[at.x]), f32(k[at.y]), f32(k[at.z]), f32(k[at.w])));
}
//@endif
//@if OUTPUT
//@if CAUSAL
@group(0) @binding(4) var<storage, read> v: array<Scalar>; // [batch, heads, len, columns]
//@endif
@group(0) @binding(5) var<storage, read_write> o: array<Scalar>; // [batch, heads, len, columns]
//@endif

// The token that reads, and the one that is added.
fn reader(t: u32, head: u32, batch: u32, d: vec4<u32>) -> vec4<f32> {
//@if ROWS
//@if QUERIES
    return query(t, head, batch, d);
//@else
    return key(t, head, batch, d);
//@endif
//@else
    return vec4<f32>(1.0);
//@endif
}

//@if CAUSAL
fn added(t: u32, head: u32, batch: u32, d: vec4<u32>) -> vec4<f32> {
//@if ROWS
//@if QUERIES
    return key(t, head, batch, d);
//@else
    return query(t, head, batch, d);
//@endif
//@else
    return vec4<f32>(1.0);
//@endif
}
//@endif

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
    let range = number / params.columns % params.ranges;
    let sequence = number / params.columns / params.ranges;
    let first = range * params.range_length;
    let batch = sequence / params.heads;
    let head = sequence % params.heads;
    let last = vec4<u32>(params.dim - 1u);

    var state: array<vec4<f32>, UNITS>;
    let sums = params.sums_at + sequence * params.sums_sequence + range * params.sums_range + m;
    for (var unit = 0u; unit < params.units; unit++) {
        let d = min(vec4<u32>(4u * unit) + vec4<u32>(0u, 1u, 2u, 3u), last) * params.columns;
        state[unit] = vec4<f32>(scratch[sums + d.x], scratch[sums + d.y], scratch[sums + d.z], scratch[sums + d.w]);
    }

    let end = min(first + params.range_length, params.len);
    for (var t = first; t < end; t++) {
        let token = sequence * params.len + t;
//@if CAUSAL
        let count = f32(t + 1u);
        var factor = 1.0;
//@if WEIGHTED
        factor = scratch[params.weights_at + token];
//@endif
//@if OUTPUT
        factor *= f32(v[params.v_at + batch * params.v_batch + head * params.v_head + t * params.v_row + m * params.v_dim]);
//@endif
//@else
        let count = 1.0;
//@endif
        var sum = vec4<f32>();
        for (var unit = 0u; unit < params.units; unit++) {
            let d = vec4<u32>(4u * unit) + vec4<u32>(0u, 1u, 2u, 3u);
            let place = min(d, last);
            var own = state[unit];
//@if CAUSAL
            own = fma(added(t, head, batch, place), vec4<f32>(factor), own);
            state[unit] = own;
//@endif
            // Rows past the last, which are read as the last, add nothing.
            let x = select(vec4<f32>(), reader(t, head, batch, place) + params.eps, d <= last);
            sum = fma(x, own + params.eps, sum);
        }
        let y = sum.x + sum.y + (sum.z + sum.w);
        let out = params.out_at + token;
//@if FLOW
        // Flows are positive; nothing is divided by 0 where they vanish.
        scratch[out] = count / max(y, 1e-30);
//@endif
//@if ALLOCATE
        scratch[out] *= sigmoid(vec4<f32>(params.factor * y / count)).x / count;
//@endif
//@if COMPETE
        scratch[out] = exp(clamp(y / count, -1.0, 1.0));
//@endif
//@if SHARE
        scratch[out] *= count * params.factor / y;
//@endif
//@if OUTPUT
        o[params.o_at + batch * params.o_batch + head * params.o_head + t * params.o_row + m * params.o_dim] = Scalar(scratch[out] * y);
//@endif
    }
}
