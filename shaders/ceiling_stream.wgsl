// The device's own rate of streaming through memory, measured: a read, or a copy.
//
// Formula:   y = sum of x, or y = x.
// Grid:      one workgroup per LOADS * WORKGROUP vectors.
// Workgroup: WORKGROUP invocations, neighbours read neighbours. The best size differs by device.
// Memory:    none.

//@import grid

const WORKGROUP: u32 = 64u; //@variant
const LOADS: u32 = 16u;

struct Params {
    groups: u32,            // workgroups with work
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [groups * LOADS * WORKGROUP]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // as x, or one per invocation

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, grid);
    if (group >= params.groups) {
        return;
    }
    let first = group * LOADS * WORKGROUP + local;
//@if COPY
    //@unroll
    for (var n = 0u; n < LOADS; n++) {
        y[first + n * WORKGROUP] = x[first + n * WORKGROUP];
    }
//@else
    var sum = vec4<f32>();
    //@unroll
    for (var n = 0u; n < LOADS; n++) {
        sum += x[first + n * WORKGROUP];
    }
    y[group * WORKGROUP + local] = sum;
//@endif
}
