// How many of the best elements of each row it takes for their share of the row's mass to reach p.
//
// Formula:   m_j = exp(x_j - max x) or max(x_j, 0); count = the least c with sum of the first c masses >= p sum_j m_j (all
//            where p is 1, whatever rounding says), at least `least` and at most `most`, as far as the list goes.
// Grid:      one workgroup per row.
// Workgroup: WORKGROUP invocations. Each sums a stretch of the row, and a stretch of the list, which is sorted by now;
//            sums over the invocations before it say where the bound is reached. Every sum has a fixed order.
// Memory:    two sums per invocation, and what is found.
//
// A list in scratch has the row's best elements, NONE after the last.

//@import grid
//@import selection
//@import mass_scale

//@if F16
enable f16;
alias Stored = f16;
//@else
alias Stored = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const BLOCK: u32 = 32u;
const LARGEST: f32 = 3.4028234663852886e38;

struct Params {
    rows: u32,
    length: u32,            // elements of a row
    share: u32,             // elements of an invocation
    least: u32,
    most: u32,              // places of the list
    list_share: u32,        // places of an invocation
    places: u32,            // of a list that is sorted by index: a power of two
    p: f32,
    size_1: u32,
    size_2: u32,
    x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
    len_at: u32, len_0: u32, len_1: u32, len_2: u32,
    indices_at: u32, indices_0: u32, indices_1: u32, indices_2: u32, indices_element: u32,
    counts_at: u32, counts_0: u32, counts_1: u32, counts_2: u32,
    list_at: u32,           // lists in scratch: [rows, places]
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>; // [size_0, size_1, size_2, length]
//@if LENS
@group(0) @binding(2) var<storage, read> row_len: array<u32>; // [size_0, size_1, size_2]
//@endif
@group(0) @binding(3) var<storage, read_write> indices: array<u32>; // [size_0, size_1, size_2, most]
//@if COUNTS
@group(0) @binding(4) var<storage, read_write> counts: array<u32>; // [size_0, size_1, size_2]
//@endif
@group(0) @binding(5) var<storage, read_write> scratch: array<u32>; // lists

// Of the row, and of the list.
var<workgroup> sums: array<vec2<f32>, WORKGROUP>;
var<workgroup> reached: atomic<u32>;
var<workgroup> listed: atomic<u32>;

fn number_at(start: u32, element: u32) -> f32 {
    return min(f32(x[start + min(element, params.length - 1u) * params.x_element]), LARGEST);
}

// NaN and what is hidden have none: they are told by their bits. `scale` is that of given masses.
fn mass_at(start: u32, element: u32, highest: f32, scale: f32) -> f32 {
    let stored = f32(x[start + min(element, params.length - 1u) * params.x_element]);
    let there = order_key(bitcast<u32>(stored), 0u) != ABSENT;
    let number = select(0.0, min(stored, LARGEST), there);
//@if SOFTMAX
    // The difference is finite, and its exponential 0 where it is far below.
    let mass = exp(max(number * 0.5 - highest * 0.5, -100.0) * 2.0);
//@else
    let mass = max(number, 0.0) * scale;
//@endif
    return select(0.0, mass, there);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = linear_workgroup(workgroup, grid);
    if (row >= params.rows) {
        return;
    }
    let start = place_of(row, params.x_at, params.x_0, params.x_1, params.x_2);
    let list = params.list_at + row * params.places;
    var length = params.length;
//@if LENS
    length = min(length, row_len[place_of(row, params.len_at, params.len_0, params.len_1, params.len_2)]);
//@endif
    if (lane == 0u) {
        atomicStore(&reached, NONE);
        atomicStore(&listed, 0u);
    }
    let best = scratch[list];
    let highest = select(0.0, number_at(start, best), best != NONE);
    let scale = mass_scale(highest);

    // Sums of blocks are summed, which keeps rounding small.
    var whole = 0.0;
    var block = 0.0;
    for (var i = 0u; i < params.share; i++) {
        let element = lane * params.share + i;
        block += select(0.0, mass_at(start, element, highest, scale), element < length);
        if (i % BLOCK == BLOCK - 1u) {
            whole += block;
            block = 0.0;
        }
    }
    whole += block;
    let first = lane * params.list_share;
    let end = min(first + params.list_share, params.most);
    var own = 0.0;
    var there = 0u;
    for (var i = first; i < end; i++) {
        let element = scratch[list + i];
        own += select(0.0, mass_at(start, element, highest, scale), element != NONE);
        there += u32(element != NONE);
    }
    sums[lane] = vec2<f32>(whole, own);
    workgroupBarrier();
    atomicAdd(&listed, there);
    var total = 0.0;
    var before = 0.0;
    for (var i = 0u; i < WORKGROUP; i++) {
        total += sums[i].x;
        before += select(0.0, sums[i].y, i < lane);
    }
    let bound = params.p * total;
    // Sums before an invocation are rounded apart from those that the one before it walks along: where the bound falls
    // between the two, it is reached where this stretch begins.
    var found = select(NONE, first, first < end && before >= bound);
    for (var i = first; i < end; i++) {
        let element = scratch[list + i];
        // A bound of nothing is reached by nothing.
        if (element != NONE && before < bound) {
            before += mass_at(start, element, highest, scale);
            found = select(found, i + 1u, before >= bound && found == NONE);
        }
    }
    if (params.p < 1.0) {
        atomicMin(&reached, select(found, 0u, bound <= 0.0));
    }
    workgroupBarrier();
    let count = min(max(atomicLoad(&reached), params.least), atomicLoad(&listed));
    for (var i = count + lane; i < params.places; i += WORKGROUP) {
        scratch[list + i] = NONE;
    }
//@if !SORTED
    for (var size = 2u; size <= params.places; size *= 2u) {
        for (var step = size / 2u; step > 0u; step /= 2u) {
            storageBarrier();
            for (var pair = lane; pair < params.places / 2u; pair += WORKGROUP) {
                let low = list + pair / step * 2u * step + pair % step;
                let a = scratch[low];
                let b = scratch[low + step];
                if ((a <= b) != (((low - list) & size) == 0u)) {
                    scratch[low] = b;
                    scratch[low + step] = a;
                }
            }
        }
    }
//@endif
    storageBarrier();
    let to = place_of(row, params.indices_at, params.indices_0, params.indices_1, params.indices_2);
    for (var i = lane; i < params.most; i += WORKGROUP) {
        indices[to + i * params.indices_element] = scratch[list + i];
    }
//@if COUNTS
    if (lane == 0u) {
        counts[place_of(row, params.counts_at, params.counts_0, params.counts_1, params.counts_2)] = count;
    }
//@endif
}
