// Scores of tokens by one query per head, to scratch.
//
// Formula:   score = scale q . k.
// Grid:      one invocation per (token, head, batch entry), tokens fastest.
// Workgroup: 64 invocations.
// Memory:    none.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
alias Unit = vec4<f32>;
const WIDTH: u32 = 4u;
//@else
alias Stored = Scalar;
alias Unit = f32;
const WIDTH: u32 = 1u;
//@endif

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    invocations: u32,
    length: u32,            // tokens in this window
    heads: u32,
    units: u32,             // of WIDTH dims
    scores_at: u32,         // in scratch, [batch, heads, length]
    scale: f32,
    q_at: u32, q_head: u32, q_dim: u32,
    k_at: u32, k_batch: u32, k_head: u32, k_token: u32, k_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Stored>; // [heads, dim]
@group(0) @binding(2) var<storage, read> k: array<Stored>; // [batch, heads, seq, dim]
@group(0) @binding(3) var<storage, read_write> scratch: array<f32>;

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
    let token = number % params.length;
    let head = number / params.length % params.heads;
    let batch = number / params.length / params.heads;
    let q_row = params.q_at + head * params.q_head;
    let k_row = params.k_at + batch * params.k_batch + head * params.k_head + token * params.k_token;
    var sum = Unit(0.0);
    for (var d = 0u; d < params.units; d++) {
        let at = d * WIDTH;
        let key = Unit(k[(k_row + at * params.k_dim) / WIDTH]);
        sum = fma(Unit(q[(q_row + at * params.q_dim) / WIDTH]), key, sum);
    }
//@if VEC4
    let score = (sum.x + sum.y) + (sum.z + sum.w);
//@else
    let score = sum;
//@endif
    scratch[params.scores_at + number] = score * params.scale;
}
