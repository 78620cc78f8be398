// The best key of each group of neighbouring elements: what is not in one of the k best groups is not among the k best
// elements, so only those are read again.
//
// Formula:   keys[row, g] = max over the elements e of group g of key(x[row, e]); see shared/selection.wgsl.
// Grid:      LANES invocations per (row, run of `run` groups); runs fastest.
// Workgroup: WORKGROUP invocations. LANES 1: each reads a stretch of its own. Else neighbours read neighbours.
// Memory:    a key per invocation where LANES are joined.
//
// Rows come from a tensor (X, SCORES) or from scratch: numbers, or keys (KEYS). A dispatch has the elements of a row
// from `first` on.

//@import grid
//@import selection

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = u32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
alias Keys = vec4<i32>;
const WIDTH: u32 = 4u;
//@else
alias Stored = Scalar;
alias Keys = i32;
const WIDTH: u32 = 1u;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const LANES: u32 = 1u; //@variant
const BLOCK: u32 = 4u;

struct Params {
    teams: u32,
    runs: u32,              // of a row
    run: u32,               // groups
    groups: u32,            // of a row, in this dispatch
    group: u32,             // elements of a group, a power of two from 16
    first: u32,             // element that the dispatch begins with, and its group
    first_group: u32,
    length: u32,            // elements of the row in this dispatch
    flip: u32,
    size_1: u32,
    size_2: u32,
    x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
    len_at: u32, len_0: u32, len_1: u32, len_2: u32,
    keys_at: u32, keys_row: u32,
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
@group(0) @binding(3) var<storage, read_write> scratch: array<u32>; // rows, and keys of groups

//@if JOINED
var<workgroup> partial: array<i32, WORKGROUP>;
//@endif

fn key_of(bits: u32) -> i32 {
//@if KEYS
    return bitcast<i32>(bits);
//@else
    let key = order_key(bits, params.flip);
//@if IN_SCRATCH
    return select(key, ABSENT, bits == NOTHING);
//@else
    return key;
//@endif
//@endif
}

// The keys of WIDTH elements from one on, of the row that starts at `start`.
fn keys_at(start: u32, element: u32) -> Keys {
    let at = (start + element * params.x_element) / WIDTH;
//@if X
    let stored = x[at];
//@endif
//@if SCORES
    let stored = scores[at];
//@endif
//@if IN_SCRATCH
    let stored = scratch[at];
//@endif
//@if VEC4
//@if F16
    let bits = bitcast<vec4<u32>>(vec4<f32>(stored));
//@else
    let bits = stored;
//@endif
    return vec4<i32>(key_of(bits.x), key_of(bits.y), key_of(bits.z), key_of(bits.w));
//@else
//@if F16
    return key_of(bitcast<u32>(f32(stored)));
//@else
    return key_of(stored);
//@endif
//@endif
}

fn best_of(keys: Keys) -> i32 {
//@if VEC4
    return max(max(keys.x, keys.y), max(keys.z, keys.w));
//@else
    return keys;
//@endif
}

// The best key of the elements from `begin` to `end`, those of this lane.
fn best_between(start: u32, begin: u32, end: u32, lane: u32) -> i32 {
    let pace = LANES * WIDTH;
    var best = Keys(ABSENT);
    var element = begin + lane * WIDTH;
    for (; element + (BLOCK - 1u) * pace + WIDTH <= end; element += BLOCK * pace) {
        //@unroll
        for (var b = 0u; b < BLOCK; b++) {
            best = max(best, keys_at(start, element + b * pace));
        }
    }
    for (; element < end; element += pace) {
        var keys = keys_at(start, element);
//@if VEC4
        let there = vec4<u32>(element, element + 1u, element + 2u, element + 3u) < vec4<u32>(end);
        keys = select(Keys(ABSENT), keys, there);
//@endif
        best = max(best, keys);
    }
    return best_of(best);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if (params.teams == 0u) {
        return;
    }
    let team = linear_workgroup(workgroup, grid) * (WORKGROUP / LANES) + local / LANES;
    let lane = local % LANES;
    let exists = team < params.teams;
    let row = min(team, params.teams - 1u) / params.runs;
    let start = place_of(row, params.x_at, params.x_0, params.x_1, params.x_2);
    var length = params.length;
//@if LENS
    let valid = row_len[place_of(row, params.len_at, params.len_0, params.len_1, params.len_2)];
    length = min(length, max(valid, params.first) - params.first);
//@endif
    let begin = team % params.runs * params.run;
    let end = min(begin + params.run, params.groups);
    let to = params.keys_at + row * params.keys_row + params.first_group;
//@if JOINED
    // A run is one group here.
    let element = begin * params.group;
    partial[local] = best_between(start, min(element, length), min(element + params.group, length), lane);
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane < step) {
            partial[local] = max(partial[local], partial[local + step]);
        }
    }
    if (exists && lane == 0u) {
        scratch[to + begin] = bitcast<u32>(partial[local]);
    }
//@else
    if (exists) {
        for (var group = begin; group < end; group++) {
            let element = group * params.group;
            let best = best_between(start, min(element, length), min(element + params.group, length), lane);
            scratch[to + group] = bitcast<u32>(best);
        }
    }
//@endif
}
