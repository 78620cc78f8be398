// How many iterations of one loop a device really does: some leave a long loop silently.
//
// Formula:   y = iterations done, and the last state of a generator that only all of them reach.
// Grid:      one workgroup.
// Workgroup: one invocation.
// Memory:    none.

struct Params {
    iterations: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<u32>; // [2]

@compute @workgroup_size(1)
fn main() {
    var state = 1u;
    var done = 0u;
    for (var n = 0u; n < params.iterations; n++) {
        state = state * 1664525u + 1013904223u;
        done += 1u;
    }
    y[0] = done;
    y[1] = state;
}
