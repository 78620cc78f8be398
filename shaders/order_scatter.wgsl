// Puts elements in the order of one digit of their buckets: the third step of a stable sort.
//
// Formula:   order[p] = element, p the number of elements with a smaller digit, and of those before it with the same.
//            OUTPUT: indices[p] = element, and inverse[element] = p (INVERSE).
// Grid:      one workgroup per (chunk; sequence), chunks fastest, as where they were counted.
// Workgroup: 64 invocations, each with `each` elements that follow one another.
// Memory:    a count per digit and invocation.

//@import grid

const WORKGROUP: u32 = 64u; //@variant
const DIGITS: u32 = 16u; //@variant

struct Params {
    workgroups: u32,
    chunks: u32,
    n: u32,                 // elements of a sequence
    each: u32,              // elements of an invocation
    shift: u32,             // of the digit
    histogram_at: u32,      // sums before each entry
    source_at: u32,         // the order so far
    target_at: u32,         // the order after this step
    heads: u32,
    buckets: u32,
    keys_at: u32, keys_batch: u32, keys_head: u32, keys_outer: u32, keys_inner: u32, keys_width: u32,
    indices_at: u32, indices_batch: u32, indices_head: u32, indices_place: u32,
    inverse_at: u32, inverse_batch: u32, inverse_head: u32, inverse_element: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>; // [sequences, digits, chunks], and more
//@if OUTPUT
@group(0) @binding(3) var<storage, read_write> indices: array<u32>; // [batch, heads, n]
//@endif
//@if INVERSE
@group(0) @binding(4) var<storage, read_write> inverse: array<u32>; // [batch, heads, n]
//@endif

//@import order_keys
//@import order_digits

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.workgroups) {
        return;
    }
    let sequence = number / params.chunks;
    let chunk = number % params.chunks;
    let own = own_places(chunk, local);
    count_own(sequence, own, local);
    workgroupBarrier();
    if (local < DIGITS) {
        var running = scratch[params.histogram_at + (sequence * DIGITS + local) * params.chunks + chunk];
        for (var i = 0u; i < WORKGROUP; i++) {
            let count = counts[local * WORKGROUP + i];
            counts[local * WORKGROUP + i] = running;
            running += count;
        }
    }
    workgroupBarrier();
//@if OUTPUT
    let batch = sequence / params.heads;
    let head = sequence % params.heads;
    let indices_at = params.indices_at + batch * params.indices_batch + head * params.indices_head;
//@endif
//@if INVERSE
    let inverse_at = params.inverse_at + batch * params.inverse_batch + head * params.inverse_head;
//@endif
    for (var place = own.x; place < own.y; place++) {
        let element = element_at(sequence, place);
        let at = digit_of(sequence, element) * WORKGROUP + local;
        let p = counts[at];
        counts[at] = p + 1u;
//@if OUTPUT
        indices[indices_at + p * params.indices_place] = element;
//@else
        scratch[params.target_at + sequence * params.n + p] = element;
//@endif
//@if INVERSE
        inverse[inverse_at + element * params.inverse_element] = p;
//@endif
    }
}
