// Merges the partial results of key ranges into the attention output.
//
// Formula:   o = sum_s 2^(m_s - m) o_s / sum_s 2^(m_s - m) l_s; lse = ln 2 (m + log2 l).
// Grid:      one invocation per output element.
// Workgroup: 64 invocations.
// Memory:    none.

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
    elements: u32,          // rows * value_dim
    splits: u32,
    value_dim: u32,
    q_len: u32,
    kv_heads: u32,
    group: u32,             // query heads per KV head, in this slice
    all_group: u32,         // query heads per KV head
    minus_infinity: f32,
    o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
    lse_at: u32, lse_batch: u32, lse_head: u32, lse_row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scratch: array<f32>; // [rows, splits, value_dim + 2]
@group(0) @binding(2) var<storage, read_write> o: array<Scalar>; // [batch, q_heads, q_len, value_dim]
//@if LSE
@group(0) @binding(3) var<storage, read_write> lse: array<f32>; // [batch, q_heads, q_len]
//@endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.elements) {
        return;
    }
    let row = number / params.value_dim;
    let d = number % params.value_dim;
    let stride = params.value_dim + 2u;
    let base = row * params.splits * stride;

    var maximum = HIDDEN;
    for (var s = 0u; s < params.splits; s++) {
        maximum = max(maximum, scratch[base + s * stride + params.value_dim]);
    }
    var total = 0.0;
    var sum = 0.0;
    for (var s = 0u; s < params.splits; s++) {
        let at = base + s * stride;
        let factor = exp2(scratch[at + params.value_dim] - maximum);
        total = fma(factor, scratch[at + params.value_dim + 1u], total);
        sum = fma(factor, scratch[at + d], sum);
    }

    let i = row % params.q_len;
    let in_group = row / params.q_len % params.group;
    let kv_head = row / params.q_len / params.group % params.kv_heads;
    let batch = row / params.q_len / params.group / params.kv_heads;
    let head = kv_head * params.all_group + in_group;
    o[params.o_at + batch * params.o_batch + head * params.o_head + i * params.o_row + d * params.o_dim] = Scalar(sum * reciprocal(total));
//@if LSE
    if (d == 0u) {
        lse[params.lse_at + batch * params.lse_batch + head * params.lse_head + i * params.lse_row] = select((maximum + log2(total)) * LN_2, params.minus_infinity, total == 0.0);
    }
//@endif
}
