// What routing selects from: scores, or their sums over groups, with what may not be taken left out and what must be
// taken above all.
//
// Formula:   in scratch, for each row and block: the score; plus infinity where the block must be taken; the bits
//            0xffffffff where it may not. SHARE: and the scores themselves, what must be taken with its own.
// Grid:      `parts` invocations per row, each with `stretch` blocks.
// Workgroup: 64 invocations.
// Memory:    none.

//@import route

const WORKGROUP: u32 = 64u; //@variant
const NOT_THERE: u32 = 0xffffffffu;
const ABOVE_ALL: u32 = 0x7f800000u;

@group(0) @binding(6) var<storage, read_write> scratch: array<vec4<u32>>; // [rows, pitch], twice with SHARE

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.count * params.parts) {
        return;
    }
    let of_row = number / params.parts;
    let row = row_of(of_row);
    let first = number % params.parts * params.stretch;
    for (var j = first; j < min(first + params.stretch, params.pitch); j += 4u) {
        let score = summed(row, j);
        var rank: vec4<u32>;
//@if SHARE
        var own: vec4<u32>;
//@endif
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            let place = rank_of(row, j + c, score[c]);
            rank[c] = select(select(score[c], ABOVE_ALL, place == FORCED), NOT_THERE, place == HIDDEN);
//@if SHARE
            own[c] = select(score[c], NOT_THERE, place == HIDDEN || score[c] == NAN);
//@endif
        }
        let at = of_row * params.pitch + j;
        scratch[(params.ranks_at + at) / 4u] = rank;
//@if SHARE
        scratch[(params.masses_at + at) / 4u] = own;
//@endif
    }
}
