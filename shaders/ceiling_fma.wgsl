// The device's own rate of fused multiply-adds, measured: f32, or pairs of f16.
//
// Formula:   CHAINS independent chains x = fma(x, a, b), STEPS of each per iteration.
// Grid:      any; each invocation does iterations * CHAINS * STEPS multiply-adds.
// Workgroup: WORKGROUP invocations. The best size differs by device.
// Memory:    none, but for one result per workgroup that nothing can leave out.

//@if F16
enable f16;
alias Scalar = f16;
alias Number = vec2<f16>;
//@else
alias Scalar = f32;
alias Number = f32;
//@endif

const CHAINS: u32 = 12u;
const STEPS: u32 = 16u;
const WORKGROUP: u32 = 64u; //@variant

struct Params {
    iterations: u32,
    a: f32,
    b: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [workgroups]

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let a = Number(Scalar(params.a));
    let b = Number(Scalar(params.b));
    var chain: array<Number, CHAINS>;
    //@unroll
    for (var c = 0u; c < CHAINS; c++) {
        chain[c] = Number(Scalar(local % 64u * CHAINS + c));
    }
    for (var n = 0u; n < params.iterations; n++) {
        //@unroll
        for (var s = 0u; s < STEPS; s++) {
            //@unroll
            for (var c = 0u; c < CHAINS; c++) {
                chain[c] = fma(chain[c], a, b);
            }
        }
    }
    var sum = Number();
    //@unroll
    for (var c = 0u; c < CHAINS; c++) {
        sum += chain[c];
    }
    if (local == 0u) {
//@if F16
        y[workgroup.x] = f32(sum.x + sum.y);
//@else
        y[workgroup.x] = sum;
//@endif
    }
}
