// From what was selected of each row to ascending lists, numbers and bits.
//
// Formula:   without SHARE, all that was selected; with it, as many of the best as it takes for their share of the
//            row's mass to reach p, those that must be taken first.
// Grid:      one workgroup per row.
// Workgroup: 64 invocations.
// Memory:    bits of 65,536 blocks at a time, and a number per invocation; 8.5 KiB.

//@import grid
//@import route_mass

const WORKGROUP: u32 = 64u; //@variant
const WORDS: u32 = 2048u;
const NONE: u32 = 0xffffffffu;
const ABOVE_ALL: u32 = 0x7f800000u;

struct Params {
    count: u32,             // rows of all heads and batch entries
    heads: u32,
    rows: u32,              // of a head
    blocks: u32,
    k: u32,                 // places of a list
    selected: u32,          // of them, that were selected
    p: f32,
    least: u32,
    indices_at: u32, indices_batch: u32, indices_head: u32, indices_row: u32, indices_place: u32,
    counts_at: u32, counts_batch: u32, counts_head: u32, counts_row: u32,
    bits_at: u32, bits_batch: u32, bits_head: u32, bits_row: u32, bits_word: u32,
    ranks_at: u32,
    masses_at: u32,
    pitch: u32,
    list_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<u32>; // [rows, pitch], [rows, pitch], [rows, selected]
//@if INDICES
@group(0) @binding(2) var<storage, read_write> indices: array<u32>; // [batch, heads, rows, k]
//@endif
//@if COUNTS
@group(0) @binding(3) var<storage, read_write> counts: array<u32>; // [batch, heads, rows]
//@endif
//@if BITS
@group(0) @binding(4) var<storage, read_write> bits: array<u32>; // [batch, heads, rows, words]
//@endif

var<workgroup> words: array<atomic<u32>, WORDS>;
var<workgroup> numbers: array<u32, WORKGROUP>;

//@if SHARE
// The largest of a number over the workgroup.
fn largest_of(number: f32, local: u32) -> f32 {
    workgroupBarrier();
    numbers[local] = bitcast<u32>(number);
    workgroupBarrier();
    var result = number;
    for (var lane = 0u; lane < WORKGROUP; lane++) {
        result = max(result, bitcast<f32>(numbers[lane]));
    }
    return result;
}

// The sum of a number over the workgroup.
fn sum_of(number: f32, local: u32) -> f32 {
    workgroupBarrier();
    numbers[local] = bitcast<u32>(number);
    workgroupBarrier();
    var result = 0.0;
    for (var lane = 0u; lane < WORKGROUP; lane++) {
        result += bitcast<f32>(numbers[lane]);
    }
    return result;
}

// How many of the selected ones, best first, are taken.
fn wanted_of(row: u32, local: u32) -> u32 {
    let own = params.masses_at + row * params.pitch;
    let ranks = params.ranks_at + row * params.pitch;
    var largest = bitcast<f32>(0xff7fffffu);
    for (var j = local; j < params.blocks; j += WORKGROUP) {
        let score = scratch[own + j];
        if (score != NONE) {
            largest = max(largest, bitcast<f32>(score));
        }
    }
    largest = largest_of(largest, local);
    var total = 0.0;
    var share = 0.0;
    for (var j = local; j < params.blocks; j += WORKGROUP) {
        let score = scratch[own + j];
        if (score != NONE) {
            let mass = mass_of(bitcast<f32>(score), largest);
            total += mass;
            share += select(0.0, mass, scratch[ranks + j] == ABOVE_ALL);
        }
    }
    let enough = params.p * sum_of(total, local);
    share = sum_of(share, local);
    // The same in all invocations.
    var wanted = 0u;
    var there = 0u;
    for (var place = 0u; place < params.selected; place++) {
        let block = scratch[params.list_at + row * params.selected + place];
        if (block >= params.blocks) {
            break;
        }
        there++;
        let rank = scratch[ranks + block];
        if (rank == ABOVE_ALL) {
            wanted++;
        } else if (params.p >= 1.0 || share < enough) {
            // All of it is all of them, whatever rounding says.
            wanted++;
            share += mass_of(bitcast<f32>(rank), largest);
        } else if (there > params.least) {
            break;
        }
    }
    return min(max(wanted, params.least), there);
}
//@endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.count) {
        return;
    }
    let row = number % params.rows;
    let head = number / params.rows % params.heads;
    let batch = number / params.rows / params.heads;
//@if SHARE
    let wanted = wanted_of(number, local);
//@else
    let wanted = params.selected;
//@endif
    let selected = params.list_at + number * params.selected;
//@if INDICES
    let list = params.indices_at + batch * params.indices_batch + head * params.indices_head + row * params.indices_row;
//@endif
//@if BITS
    let row_bits = params.bits_at + batch * params.bits_batch + head * params.bits_head + row * params.bits_row;
//@endif

    let all_words = (params.blocks + 31u) / 32u;
    var taken = 0u;
    for (var first_word = 0u; first_word < all_words; first_word += WORDS) {
        let count = min(WORDS, all_words - first_word);
        let each = (count + WORKGROUP - 1u) / WORKGROUP;
        let begin = min(local * each, count);
        let end = min(begin + each, count);
        workgroupBarrier();
        for (var word = begin; word < end; word++) {
            atomicStore(&words[word], 0u);
        }
        workgroupBarrier();
        for (var place = local; place < wanted; place += WORKGROUP) {
            let block = scratch[selected + place];
            let word = block / 32u - first_word;
            if (block < params.blocks && block / 32u >= first_word && word < count) {
                atomicOr(&words[word], 1u << (block % 32u));
            }
        }
        workgroupBarrier();
        var own = 0u;
        for (var word = begin; word < end; word++) {
            own += countOneBits(atomicLoad(&words[word]));
        }
        numbers[local] = own;
        workgroupBarrier();
        var place = taken;
        for (var lane = 0u; lane < WORKGROUP; lane++) {
            let other = numbers[lane];
            place += select(0u, other, lane < local);
            taken += other;
        }
        for (var word = begin; word < end; word++) {
            var left = atomicLoad(&words[word]);
//@if BITS
            bits[row_bits + (first_word + word) * params.bits_word] = left;
//@endif
//@if INDICES
            while (left != 0u) {
                indices[list + place * params.indices_place] = (first_word + word) * 32u + firstTrailingBit(left);
                left &= left - 1u;
                place++;
            }
//@endif
        }
    }
//@if INDICES
    for (var place = taken + local; place < params.k; place += WORKGROUP) {
        indices[list + place * params.indices_place] = NONE;
    }
//@endif
//@if COUNTS
    if (local == 0u) {
        counts[params.counts_at + batch * params.counts_batch + head * params.counts_head + row * params.counts_row] = taken;
    }
//@endif
}
