// The device's own rate of matrix multiply-adds, measured.
//
// Formula:   CHAINS independent chains X = A B + X of matrices, STEPS of each per iteration.
// Grid:      any; each workgroup does iterations * GROUPS * CHAINS * STEPS multiply-adds.
// Workgroup: GROUPS subgroups of up to LANES invocations; more, where they turn out smaller, rest.
// Memory:    one A, one B, and a sum per subgroup; one result per workgroup that nothing can leave
//            out.

enable wgpu_cooperative_matrix;
//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

const SIDE: u32 = 16u; //@variant
const LANES: u32 = 32u; //@variant
const GROUPS: u32 = 4u;
const CHAINS: u32 = 8u;
const STEPS: u32 = 8u;
// Room for a subgroup's chains, each four elements on from the last: no two begin alike, and a part
// of each stays at the end, so that none can be left out.
const ROOM: u32 = SIDE * SIDE + CHAINS * 4u;

//@if WIDE
alias Left = coop_mat16x16<Scalar, A>;
alias Right = coop_mat16x16<Scalar, B>;
alias Sum = coop_mat16x16<f32, C>;
//@else
alias Left = coop_mat8x8<Scalar, A>;
alias Right = coop_mat8x8<Scalar, B>;
alias Sum = coop_mat8x8<f32, C>;
//@endif

struct Params {
    iterations: u32,
    a: f32,
    b: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [workgroups]

var<workgroup> left: array<Scalar, SIDE * SIDE>;
var<workgroup> right: array<Scalar, SIDE * SIDE>;
var<workgroup> sums: array<f32, GROUPS * ROOM>;

@compute @workgroup_size(GROUPS * LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    for (var n = local; n < SIDE * SIDE; n += GROUPS * LANES) {
        left[n] = Scalar(params.a);
        right[n] = Scalar(params.b);
    }
    for (var n = local; n < GROUPS * ROOM; n += GROUPS * LANES) {
        sums[n] = f32(n);
    }
    workgroupBarrier();
    // An `if` that naga's uniformity analysis takes.
    for (var group = subgroup; group < GROUPS; group += GROUPS) {
        let a = coopLoadT<Left>(&left[0], SIDE);
        let b = coopLoadT<Right>(&right[0], SIDE);
        var chain: array<Sum, CHAINS>;
        //@unroll
        for (var c = 0u; c < CHAINS; c++) {
            chain[c] = coopLoadT<Sum>(&sums[group * ROOM + c * 4u], SIDE);
        }
        for (var n = 0u; n < params.iterations; n++) {
            //@unroll
            for (var s = 0u; s < STEPS; s++) {
                //@unroll
                for (var c = 0u; c < CHAINS; c++) {
                    chain[c] = coopMultiplyAdd(a, b, chain[c]);
                }
            }
        }
        //@unroll
        for (var c = 0u; c < CHAINS; c++) {
            coopStoreT(chain[c], &sums[group * ROOM + c * 4u], SIDE);
        }
    }
    workgroupBarrier();
    if (local == 0u) {
        var sum = 0.0;
        for (var n = 0u; n < GROUPS * ROOM; n++) {
            sum += sums[n];
        }
        y[workgroup.x] = sum;
    }
}
