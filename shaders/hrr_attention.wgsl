// Attention of holographic reduced representations, from the sum over tokens of k v^T of each sequence n, a batch
// entry and head.
//
// Formula:   BIND:   beta[d] = sum_a (k v^T)[a, d - a], indices modulo the head dim: its wrapped diagonals
//            SCORE:  weight[t] = exp(cos(v_t, sum_a beta[a] q_t[a - d])), 0 for what the MASK hides
//            OUTPUT: o_t = v_t weight[t] / total
// Grid:      BIND, OUTPUT: one invocation per element of the result, channels fastest. SCORE: one workgroup per
//            WORKGROUP / LANES tokens.
// Workgroup: SCORE: LANES neighbouring invocations share a token; each has every LANES-th channel, CHANNELS in all.
// Memory:    SCORE: beta, the queries, and a vector per invocation.
//
// Cosines are within -1 and 1, so that the softmax needs no maximum.

//@import grid
//@import online_softmax

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    count: u32,             // invocations; SCORE: workgroups
    dim: u32,
    heads: u32,
    len: u32,               // tokens
    matrix_at: u32,         // where k v^T begins in scratch: [sequences, dim, dim]
    beta_at: u32,           // where beta does: [sequences, dim]
    weights_at: u32,        // where weights do: [sequences, len]
    totals_at: u32,         // where their sums do: [sequences]
    q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
    o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
    mask_at: u32, mask_batch: u32, mask_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>; // k v^T, beta, weights and totals
//@if SCORE
@group(0) @binding(2) var<storage, read> q: array<Scalar>; // [batch, heads, len, dim]
//@endif
//@if !BIND
@group(0) @binding(3) var<storage, read> v: array<Scalar>; // [batch, heads, len, dim]

fn value(sequence: u32, t: u32, d: u32) -> f32 {
    let batch = sequence / params.heads;
    let head = sequence % params.heads;
    return f32(v[params.v_at + batch * params.v_batch + head * params.v_head + t * params.v_row + d * params.v_dim]);
}
//@endif
//@if MASK
@group(0) @binding(4) var<storage, read> mask: array<u32>; // bytes [batch, len]
//@endif
//@if OUTPUT
@group(0) @binding(5) var<storage, read_write> o: array<Scalar>; // [batch, heads, len, dim]
//@endif

//@if SCORE
const LANES: u32 = 16u; //@variant
const CHANNELS: u32 = 1u; //@variant
const TOKENS: u32 = WORKGROUP / LANES;
const MOST: u32 = 256u;

var<workgroup> beta: array<f32, MOST>;
var<workgroup> queries: array<f32, MOST>;
var<workgroup> joined: array<vec4<f32>, WORKGROUP>;

// 1 / x, and 0 for what is as good as 0.
fn inverse(x: f32) -> f32 {
    return select(1.0 / x, 0.0, x < 1e-37);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.count) {
        return;
    }
    let groups = (params.len + TOKENS - 1u) / TOKENS;
    let sequence = number / groups;
    let batch = sequence / params.heads;
    let head = sequence % params.heads;
    let lane = local % LANES;
    let own = local / LANES;
    // Tokens past the last are read as the last, and not written.
    let token = number % groups * TOKENS + own;
    let t = min(token, params.len - 1u);
    let dim = params.dim;

    for (var d = local; d < dim; d += WORKGROUP) {
        beta[d] = scratch[params.beta_at + sequence * dim + d];
    }
    let q_at = params.q_at + batch * params.q_batch + head * params.q_head + t * params.q_row;
    for (var d = lane; d < dim; d += LANES) {
        queries[own * dim + d] = f32(q[q_at + d * params.q_dim]);
    }
    workgroupBarrier();

    var answer: array<f32, CHANNELS>;
    var wanted: array<f32, CHANNELS>;
    var largest = vec4<f32>();
    //@unroll
    for (var i = 0u; i < CHANNELS; i++) {
        let d = lane + i * LANES;
        if (d < dim) {
            var sum = 0.0;
            // (a - d) modulo dim.
            var other = select(dim - d, 0u, d == 0u);
            for (var a = 0u; a < dim; a++) {
                sum = fma(beta[a], queries[own * dim + other], sum);
                other = select(other + 1u, 0u, other + 1u == dim);
            }
            answer[i] = sum;
            wanted[i] = value(sequence, t, d);
            largest = max(largest, vec4<f32>(abs(sum), abs(wanted[i]), 0.0, 0.0));
        }
    }
    // Both vectors over their largest elements, so that no square overflows.
    joined[local] = largest;
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        workgroupBarrier();
        if (lane < reach) {
            joined[local] = max(joined[local], joined[local + reach]);
        }
    }
    workgroupBarrier();
    largest = joined[own * LANES];
    workgroupBarrier();
    var sums = vec4<f32>();
    //@unroll
    for (var i = 0u; i < CHANNELS; i++) {
        let a = answer[i] * inverse(largest.x);
        let b = wanted[i] * inverse(largest.y);
        sums += vec4<f32>(a * b, a * a, b * b, 0.0);
    }
    joined[local] = sums;
    for (var reach = LANES / 2u; reach > 0u; reach /= 2u) {
        workgroupBarrier();
        if (lane < reach) {
            joined[local] += joined[local + reach];
        }
    }
    if (lane == 0u && token < params.len) {
        sums = joined[local];
        let squares = sums.y * sums.z;
        let cosine = select(sums.x * inverseSqrt(squares), 0.0, squares == 0.0);
        var weight = exp(cosine);
//@if MASK
        let byte = params.mask_at + batch * params.mask_batch + t * params.mask_token;
        if (((mask[byte / 4u] >> (byte % 4u * 8u)) & 255u) == 0u) {
            weight = 0.0;
        }
//@endif
        scratch[params.weights_at + sequence * params.len + t] = weight;
    }
}
//@else
@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.count) {
        return;
    }
    let dim = params.dim;
    let d = number % dim;
//@if BIND
    let start = params.matrix_at + number / dim * dim * dim;
    var sum = 0.0;
    for (var a = 0u; a < dim; a++) {
        sum += scratch[start + a * dim + select(d + dim - a, d - a, d >= a)];
    }
    scratch[params.beta_at + number] = sum;
//@endif
//@if OUTPUT
    let token = number / dim;
    let sequence = token / params.len;
    let t = token % params.len;
    let weight = scratch[params.weights_at + token] * reciprocal(scratch[params.totals_at + sequence]);
    let at = params.o_at + sequence / params.heads * params.o_batch + sequence % params.heads * params.o_head;
    o[at + t * params.o_row + d * params.o_dim] = Scalar(weight * value(sequence, t, d));
//@endif
}
//@endif
