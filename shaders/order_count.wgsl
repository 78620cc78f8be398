// Counts one digit of the buckets of chunks of elements: the first step of a stable sort.
//
// Formula:   histogram[sequence, digit, chunk] = number of elements of the chunk with that digit.
// Grid:      one workgroup per (chunk; sequence), chunks fastest.
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
    histogram_at: u32,
    source_at: u32,         // the order so far
    heads: u32,
    buckets: u32,
    keys_at: u32, keys_batch: u32, keys_head: u32, keys_outer: u32, keys_inner: u32, keys_width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>; // [sequences, digits, chunks], and more

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
    count_own(sequence, own_places(chunk, local), local);
    workgroupBarrier();
    if (local < DIGITS) {
        var sum = 0u;
        for (var i = 0u; i < WORKGROUP; i++) {
            sum += counts[local * WORKGROUP + i];
        }
        scratch[params.histogram_at + (sequence * DIGITS + local) * params.chunks + chunk] = sum;
    }
}
