// Where each bucket begins in a sorted order, found by bisection.
//
// Formula:   starts[b] = number of elements whose bucket is below b, for b from 0 to the number of buckets.
// Grid:      one invocation per (bucket; sequence), buckets fastest.
// Workgroup: 64 invocations.
// Memory:    none.

//@import grid

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    invocations: u32,
    n: u32,                 // elements of a sequence
    order_at: u32,          // the order, in scratch
    starts_at: u32,
    starts_batch: u32, starts_head: u32, starts_bucket: u32,
    heads: u32,
    buckets: u32,
    keys_at: u32, keys_batch: u32, keys_head: u32, keys_outer: u32, keys_inner: u32, keys_width: u32,
    indices_at: u32, indices_batch: u32, indices_head: u32, indices_place: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
//@if OUTPUT
@group(0) @binding(2) var<storage, read> indices: array<u32>; // [batch, heads, n]
@group(0) @binding(3) var<storage, read_write> starts: array<u32>; // [batch, heads, buckets + 1]
//@else
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>; // [sequences, n] and [sequences, buckets + 1], and more
//@endif

//@import order_keys

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
    let bucket = number % (params.buckets + 1u);
    let sequence = number / (params.buckets + 1u);
    let batch = sequence / params.heads;
    let head = sequence % params.heads;
    var low = 0u;
    var high = params.n;
    while (low < high) {
        let middle = (low + high) / 2u;
//@if OUTPUT
        let element = indices[params.indices_at + batch * params.indices_batch + head * params.indices_head + middle * params.indices_place];
//@else
        let element = scratch[params.order_at + sequence * params.n + middle];
//@endif
        if (key_of(sequence, min(element, params.n - 1u)) < bucket) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
//@if OUTPUT
    starts[params.starts_at + batch * params.starts_batch + head * params.starts_head + bucket * params.starts_bucket] = low;
//@else
    scratch[params.starts_at + number] = low;
//@endif
}
