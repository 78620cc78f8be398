// Joins the sums of ranges of tokens, in their order.
//
// Formula:   totals[n, c] = sum_r sums[n, r, c]; or, with `prefixes`, sums[n, r, c] becomes the sum of the ranges
//            before r.
// Grid:      one invocation per (element c; sequence n), elements fastest.
// Workgroup: 64 invocations.
// Memory:    none.

//@import grid

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    invocations: u32,
    width: u32,             // elements c
    ranges: u32,
    prefixes: u32,          // 1 for sums before each range, 0 for totals
    sums_at: u32,           // where sums begin in scratch
    totals_at: u32,         // where totals do
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>; // [sequences, ranges, width], and more

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
    let c = number % params.width;
    var at = params.sums_at + number / params.width * params.ranges * params.width + c;
    var sum = 0.0;
    for (var r = 0u; r < params.ranges; r++) {
        let own = scratch[at];
        if (params.prefixes != 0u) {
            scratch[at] = sum;
        }
        sum += own;
        at += params.width;
    }
    if (params.prefixes == 0u) {
        scratch[params.totals_at + number] = sum;
    }
}
