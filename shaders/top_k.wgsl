// The best k elements of each row, by radix selection.
//
// Formula:   see shared/selection.wgsl for the order; of equal elements those of the lowest index.
// Grid:      one workgroup per row.
// Workgroup: WORKGROUP invocations. Four times they count keys by eight of their bits, which leaves the k-th best key.
//            Then each invocation counts what it takes of a stretch of its own, sums over the invocations before it say
//            where that goes, and it is written in the order of its indices, or to a list that is sorted.
// Memory:    256 counts, a pair per invocation, and ROOM places of a list (0: lists are in scratch).
//
// Rows come from a tensor (X, SCORES) or from scratch: numbers (NUMBERS), or keys. LISTED: element i of a row stands for
// element i % group of the group that a list in scratch names.

//@import grid
//@import selection

//@if F16
enable f16;
alias Stored = f16;
//@else
alias Stored = u32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const ROOM: u32 = 64u; //@variant
const BINS: u32 = 256u;
const COARSE: u32 = 16u;
//@if STRETCH
const PACE: u32 = 1u;
//@else
const PACE: u32 = WORKGROUP;
//@endif

struct Params {
    rows: u32,
    length: u32,            // elements of a row
    share: u32,             // elements per invocation
    k: u32,
    places: u32,            // of a list that is sorted: a power of two
    flip: u32,
    worst: u32,             // bits of the value of a place that holds nothing
    size_1: u32,
    size_2: u32,
    x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
    len_at: u32, len_0: u32, len_1: u32, len_2: u32,
    values_at: u32, values_0: u32, values_1: u32, values_2: u32, values_element: u32,
    indices_at: u32, indices_0: u32, indices_1: u32, indices_2: u32, indices_element: u32,
    list_at: u32, list_row: u32, group: u32,
    sort_at: u32,           // lists that are sorted in scratch: [rows, 2, places]
}

@group(0) @binding(0) var<uniform> params: Params;
//@if X
@group(0) @binding(1) var<storage, read> x: array<Stored>; // [size_0, size_1, size_2, length]
//@endif
//@if SCORES
@group(0) @binding(1) var<storage, read> scores: array<Stored>; // [size_0, size_1, size_2, length]
//@endif
//@if LENS
@group(0) @binding(2) var<storage, read> row_len: array<u32>; // [size_0, size_1, size_2]
//@endif
//@if VALUES
@group(0) @binding(3) var<storage, read_write> values: array<Stored>; // [size_0, size_1, size_2, k]
//@endif
//@if INDICES
@group(0) @binding(4) var<storage, read_write> indices: array<u32>; // [size_0, size_1, size_2, k]
//@endif
//@if USES_SCRATCH
@group(0) @binding(5) var<storage, read_write> scratch: array<u32>; // rows, lists of groups, results
//@endif

var<workgroup> counts: array<atomic<u32>, BINS>;
var<workgroup> coarse: array<u32, COARSE>;
// Elements before those of an invocation: better than the k-th, and equal to it.
var<workgroup> before: array<vec2<u32>, WORKGROUP>;
//@if HELD
var<workgroup> list_keys: array<u32, ROOM>;
var<workgroup> list_places: array<u32, ROOM>;
//@endif

// What is stored of an element of the row that starts at `start`.
fn stored_at(start: u32, element: u32) -> u32 {
    let at = start + element * params.x_element;
//@if X
//@if F16
    return bitcast<u32>(f32(x[at]));
//@else
    return x[at];
//@endif
//@endif
//@if SCORES
//@if F16
    return bitcast<u32>(f32(scores[at]));
//@else
    return scores[at];
//@endif
//@endif
//@if IN_SCRATCH
    return scratch[at];
//@endif
}

// The key as an unsigned number; 0 is absent.
fn key_at(start: u32, element: u32, length: u32) -> u32 {
    let stored = stored_at(start, min(element, params.length - 1u));
//@if KEYS
    var key = bitcast<i32>(stored);
//@else
    var key = order_key(stored, params.flip);
//@if IN_SCRATCH
    key = select(key, ABSENT, stored == NOTHING);
//@endif
//@endif
    key = select(ABSENT, key, element < length);
    return bitcast<u32>(key) ^ 0x80000000u;
}

//@if SORTED
fn list_get(row: u32, place: u32) -> vec2<u32> {
//@if HELD
    return vec2<u32>(list_keys[place], list_places[place]);
//@else
    let at = params.sort_at + row * 2u * params.places + place;
    return vec2<u32>(scratch[at], scratch[at + params.places]);
//@endif
}

fn list_set(row: u32, place: u32, entry: vec2<u32>) {
//@if HELD
    list_keys[place] = entry.x;
    list_places[place] = entry.y;
//@else
    let at = params.sort_at + row * 2u * params.places + place;
    scratch[at] = entry.x;
    scratch[at + params.places] = entry.y;
//@endif
}
//@endif

// Writes a place of the result. `element` may be NONE.
fn emit(row: u32, start: u32, place: u32, element: u32) {
    let there = element != NONE;
//@if VALUES
    let bits = select(params.worst, stored_at(start, min(element, params.length - 1u)), there);
    let value = place_of(row, params.values_at, params.values_0, params.values_1, params.values_2)
        + place * params.values_element;
//@if F16
    values[value] = f16(bitcast<f32>(bits));
//@else
    values[value] = bits;
//@endif
//@endif
    var index = element;
//@if LISTED
    if (there) {
        let group = scratch[params.list_at + row * params.list_row + element / params.group];
        index = group * params.group + element % params.group;
    }
//@endif
    let at = place_of(row, params.indices_at, params.indices_0, params.indices_1, params.indices_2)
        + place * params.indices_element;
//@if INDICES
    indices[at] = index;
//@endif
//@if TO_SCRATCH
    scratch[at] = index;
//@endif
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
    var length = params.length;
//@if LENS
    length = min(length, row_len[place_of(row, params.len_at, params.len_0, params.len_1, params.len_2)]);
//@endif
    let share = params.share;

    // The k-th best key, eight bits at a time.
    var found = 0u;
    var mask = 0u;
    var wanted = params.k;
    for (var pass_number = 0u; pass_number < 4u; pass_number++) {
        let shift = 24u - 8u * pass_number;
        for (var bin = lane; bin < BINS; bin += WORKGROUP) {
            atomicStore(&counts[bin], 0u);
        }
        workgroupBarrier();
//@if STRETCH
        let first = lane * share;
//@else
        let first = lane;
//@endif
        for (var i = 0u; i < share; i++) {
            let key = key_at(start, first + i * PACE, length);
            if (((key ^ found) & mask) == 0u) {
                atomicAdd(&counts[(key >> shift) & 255u], 1u);
            }
        }
        workgroupBarrier();
        for (var c = lane; c < COARSE; c += WORKGROUP) {
            var sum = 0u;
            for (var bin = 0u; bin < BINS / COARSE; bin++) {
                sum += atomicLoad(&counts[c * (BINS / COARSE) + bin]);
            }
            coarse[c] = sum;
        }
        workgroupBarrier();
        var c = COARSE - 1u;
        for (; c > 0u && coarse[c] < wanted; c--) {
            wanted -= coarse[c];
        }
        let lowest = c * (BINS / COARSE);
        var bin = lowest + BINS / COARSE - 1u;
        for (; bin > lowest; bin--) {
            let count = atomicLoad(&counts[bin]);
            if (count >= wanted) {
                break;
            }
            wanted -= count;
        }
        found |= bin << shift;
        mask |= 255u << shift;
        workgroupBarrier();
    }
    // What is absent is not taken.
    let better = params.k - wanted;
    let equal = select(wanted, 0u, found == 0u);

    // What this invocation takes of its stretch, and what those before it do.
    var own = vec2<u32>();
    for (var i = 0u; i < share; i++) {
        let key = key_at(start, lane * share + i, length);
        own += vec2<u32>(vec2<bool>(key > found, key == found));
    }
    before[lane] = own;
    for (var step = 1u; step < WORKGROUP; step *= 2u) {
        workgroupBarrier();
        let other = select(vec2<u32>(), before[max(lane, step) - step], lane >= step);
        workgroupBarrier();
        before[lane] += other;
    }
    workgroupBarrier();
    var equals = before[lane].y - own.y;
    let total = before[WORKGROUP - 1u];
    let taken = total.x + min(total.y, equal);
    var place = before[lane].x - own.x + min(equals, equal);
    let end = before[lane].x + min(before[lane].y, equal);
    for (var i = 0u; place < end && i < share; i++) {
        let element = lane * share + i;
        let key = key_at(start, element, length);
        let as_good = key == found && equals < equal;
        equals += u32(as_good);
        if (key > found || as_good) {
//@if SORTED
            list_set(row, place, vec2<u32>(key, element));
//@else
            emit(row, start, place, element);
//@endif
            place++;
        }
    }
//@if SORTED
    for (var p = taken + lane; p < params.places; p += WORKGROUP) {
        list_set(row, p, vec2<u32>(0u, NONE));
    }
    for (var size = 2u; size <= params.places; size *= 2u) {
        for (var step = size / 2u; step > 0u; step /= 2u) {
//@if HELD
            workgroupBarrier();
//@else
            storageBarrier();
//@endif
            for (var pair = lane; pair < params.places / 2u; pair += WORKGROUP) {
                let low = pair / step * 2u * step + pair % step;
                let a = list_get(row, low);
                let b = list_get(row, low + step);
                let first = a.x > b.x || (a.x == b.x && a.y < b.y);
                // Half of the runs are sorted the other way round, but for the last.
                if (first != ((low & size) == 0u)) {
                    list_set(row, low, b);
                    list_set(row, low + step, a);
                }
            }
        }
    }
//@if HELD
    workgroupBarrier();
//@else
    storageBarrier();
//@endif
    for (var p = lane; p < params.k; p += WORKGROUP) {
        emit(row, start, p, list_get(row, p).y);
    }
//@else
    for (var p = taken + lane; p < params.k; p += WORKGROUP) {
        emit(row, start, p, NONE);
    }
//@endif
}
