// Sums before each entry of a histogram: the second step of a stable sort.
//
// Formula:   histogram[sequence, e] becomes the sum of the entries before e.
// Grid:      one workgroup per sequence.
// Workgroup: WORKGROUP invocations, each with `each` entries that follow one another.
// Memory:    a sum per invocation.

//@import grid

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    sequences: u32,
    entries: u32,           // of a sequence
    each: u32,              // entries / WORKGROUP, rounded up
    histogram_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<u32>; // [sequences, entries], and more

var<workgroup> sums: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let sequence = linear_workgroup(workgroup, grid);
    if (sequence >= params.sequences) {
        return;
    }
    let at = params.histogram_at + sequence * params.entries;
    let begin = min(local * params.each, params.entries);
    let end = min(begin + params.each, params.entries);
    var sum = 0u;
    for (var i = begin; i < end; i++) {
        sum += scratch[at + i];
    }
    sums[local] = sum;
    workgroupBarrier();
    for (var step = 1u; step < WORKGROUP; step *= 2u) {
        var before = 0u;
        if (local >= step) {
            before = sums[local - step];
        }
        workgroupBarrier();
        sums[local] += before;
        workgroupBarrier();
    }
    var running = sums[local] - sum;
    for (var i = begin; i < end; i++) {
        let own = scratch[at + i];
        scratch[at + i] = running;
        running += own;
    }
}
