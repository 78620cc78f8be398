// Routing of rows, each by one invocation: the best blocks of each row of scores, as a list, a number and bits.
//
// Formula:   ranks are the bits of scores, or of their sums over groups, as numbers that rise with them; what must be
//            taken ranks above all. The K best ranks pass along a chain of registers; the last that is taken is a
//            threshold, and a second walk takes what is above it, and of those that equal it the first so many.
//            SHARE: how many are taken, the mass of the best decides.
// Grid:      one invocation per row.
// Workgroup: 64 invocations.
// Memory:    none.

//@import route

const WORKGROUP: u32 = 64u; //@variant
const K: u32 = 8u; //@variant

//@if INDICES
@group(0) @binding(6) var<storage, read_write> indices: array<u32>; // [batch, heads, rows, k]
//@endif
//@if COUNTS
@group(0) @binding(7) var<storage, read_write> counts: array<u32>; // [batch, heads, rows]
//@endif
//@if BITS
@group(0) @binding(8) var<storage, read_write> bits: array<u32>; // [batch, heads, rows, words]
//@endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.count) {
        return;
    }
    let row = row_of(number);
    let begin = row.begin / 4u * 4u;

    var best: array<u32, K>;
    //@unroll
    for (var place = 0u; place < K; place++) {
        best[place] = HIDDEN;
    }
//@if SHARE
    var largest = bitcast<f32>(LARGEST | 0x80000000u);
//@endif
    for (var j = begin; j < row.end; j += 4u) {
        let score = summed(row, j);
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            var rank = rank_of(row, j + c, score[c]);
//@if SHARE
            if (rank != HIDDEN && score[c] != NAN) {
                largest = max(largest, bitcast<f32>(score[c]));
            }
//@endif
            //@unroll
            for (var place = 0u; place < K; place++) {
                let above = max(best[place], rank);
                rank = min(best[place], rank);
                best[place] = above;
            }
        }
    }

//@if SHARE
    var total = 0.0;
    var share = 0.0;
    for (var j = begin; j < row.end; j += 4u) {
        let score = summed(row, j);
        var all_of_four = 0.0;
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            let rank = rank_of(row, j + c, score[c]);
            if (rank != HIDDEN && score[c] != NAN) {
                let mass = mass_of(bitcast<f32>(score[c]), largest);
                all_of_four += mass;
                share += select(0.0, mass, rank == FORCED);
            }
        }
        total += all_of_four;
    }
    let enough = params.p * total;
    var wanted = 0u;
    var there = 0u;
    //@unroll
    for (var place = 0u; place < K; place++) {
        if (best[place] != HIDDEN) {
            there++;
            if (best[place] == FORCED) {
                wanted++;
            } else if ((params.p >= 1.0 || share < enough) && wanted == place) {
                // All of it is all of them, whatever rounding says.
                wanted++;
                share += mass_of(score_of(best[place]), largest);
            }
        }
    }
    wanted = min(min(max(wanted, params.least), params.k), there);
//@else
    let wanted = params.k;
//@endif

    // The last rank that is taken, and how many equal it.
    var threshold = FORCED;
    var equal = 0u;
    //@unroll
    for (var place = 0u; place < K; place++) {
        if (place < wanted) {
            equal = select(1u, equal + 1u, best[place] == threshold);
            threshold = best[place];
        }
    }

    var taken = 0u;
//@if INDICES
    let list = params.indices_at + row.batch * params.indices_batch + row.head * params.indices_head
        + row.row * params.indices_row;
//@endif
//@if BITS
    let words = params.bits_at + row.batch * params.bits_batch + row.head * params.bits_head + row.row * params.bits_row;
    let first_word = 0u;
    let last_word = (params.blocks + 31u) / 32u;
//@else
    let first_word = begin / 32u;
    let last_word = (row.end + 31u) / 32u;
//@endif
    for (var word = first_word; word < last_word; word++) {
        var taken_bits = 0u;
        for (var j = max(word * 32u, begin); j < min(word * 32u + 32u, row.end); j += 4u) {
            let score = summed(row, j);
            // Not unrolled: SwiftShader would take half a minute to compile it.
            for (var c = 0u; c < 4u; c++) {
                let rank = rank_of(row, j + c, score[c]);
                let ties = rank == threshold && equal > 0u;
                if (rank != HIDDEN && (rank > threshold || ties)) {
//@if INDICES
                    indices[list + taken * params.indices_place] = j + c;
//@endif
                    taken_bits |= 1u << ((j + c) % 32u);
                    taken++;
                    equal -= u32(ties);
                }
            }
        }
//@if BITS
        bits[words + word * params.bits_word] = taken_bits;
//@endif
    }
//@if INDICES
    for (var place = taken; place < params.k; place++) {
        indices[list + place * params.indices_place] = 0xffffffffu;
    }
//@endif
//@if COUNTS
    counts[params.counts_at + row.batch * params.counts_batch + row.head * params.counts_head
        + row.row * params.counts_row] = taken;
//@endif
}
