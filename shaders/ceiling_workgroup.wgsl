// The device's own rate of reading workgroup memory, measured.
//
// Formula:   y = sum of READS vectors per iteration.
// Grid:      any.
// Workgroup: WORKGROUP invocations; neighbours read neighbours. The best size differs by device.
// Memory:    SIZE vectors.

const WORKGROUP: u32 = 64u; //@variant
const READS: u32 = 16u;
const SIZE: u32 = 512u;

struct Params {
    iterations: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [workgroups]

var<workgroup> shelf: array<vec4<f32>, SIZE>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    for (var n = local; n < SIZE; n += WORKGROUP) {
        shelf[n] = vec4<f32>(f32(n + params.iterations));
    }
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var n = 0u; n < params.iterations; n++) {
        // Each iteration begins elsewhere, so that no read can be taken out of the loop.
        //@unroll
        for (var b = 0u; b < READS; b++) {
            sum += shelf[(n + local + b * 33u) % SIZE];
        }
    }
    if (local == 0u) {
        y[workgroup.x] = sum;
    }
}
