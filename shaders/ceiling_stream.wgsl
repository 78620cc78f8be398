// The device's own rate of streaming through memory, measured: a read, or a copy.
//
// Formula:   y = sum of x, or y = x.
// Grid:      one workgroup per LOADS * WORKGROUP vectors.
// Workgroup: WORKGROUP invocations. Neighbours read neighbours, or each invocation a stretch of its own
//            (STRETCH). The best of both, and the best size, differ by device.
// Memory:    none.

//@import grid

const WORKGROUP: u32 = 64u; //@variant
const LOADS: u32 = 16u; //@variant
const BLOCK: u32 = 4u;
//@if STRETCH
const PACE: u32 = 1u;
//@else
const PACE: u32 = WORKGROUP;
//@endif

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
//@if STRETCH
    let first = (group * WORKGROUP + local) * LOADS;
//@else
    let first = group * LOADS * WORKGROUP + local;
//@endif
    var sum = vec4<f32>();
    for (var n = 0u; n < LOADS; n += BLOCK) {
        //@unroll
        for (var b = 0u; b < BLOCK; b++) {
            let at = first + (n + b) * PACE;
//@if COPY
            y[at] = x[at];
//@else
            sum += x[at];
//@endif
        }
    }
//@if !COPY
    y[group * WORKGROUP + local] = sum;
//@endif
}
