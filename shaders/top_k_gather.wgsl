// Copies the elements of groups that a list names.
//
// Formula:   scratch[row, p, i] = x[row, list[row, p] group + i], or NOTHING where there is no such element.
// Grid:      one invocation per run of `run` elements (of one group), runs fastest.
// Workgroup: 64 invocations.
// Memory:    none.
//
// Rows come from a tensor (X, SCORES) or from scratch: numbers, or keys (KEYS). A dispatch has the elements of a row
// from `first` on, and leaves the places of others alone; the first one writes what is nowhere.

//@import grid
//@import selection

//@if F16
enable f16;
alias Stored = f16;
//@else
alias Stored = u32;
//@endif

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    invocations: u32,
    runs: u32,              // of a row
    run: u32,               // elements; divides group
    group: u32,
    first: u32,             // element that the dispatch begins with
    length: u32,            // elements that it has of the row
    whole: u32,             // elements of the row
    size_1: u32,
    size_2: u32,
    x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
    len_at: u32, len_0: u32, len_1: u32, len_2: u32,
    list_at: u32, list_row: u32,
    out_at: u32, out_row: u32,
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
@group(0) @binding(3) var<storage, read_write> scratch: array<u32>; // rows, lists and results

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.invocations) {
        return;
    }
    let row = number / params.runs;
    let candidate = number % params.runs * params.run;
    let start = place_of(row, params.x_at, params.x_0, params.x_1, params.x_2);
    var whole = params.whole;
//@if LENS
    whole = min(whole, row_len[place_of(row, params.len_at, params.len_0, params.len_1, params.len_2)]);
//@endif
    let group = scratch[params.list_at + row * params.list_row + candidate / params.group];
    let begin = group * params.group + candidate % params.group;
    let to = params.out_at + row * params.out_row + candidate;
    for (var i = 0u; i < params.run; i++) {
        let element = begin + i;
        let there = group != NONE && element < whole;
        if (there && element >= params.first && element - params.first < params.length) {
            let at = start + (element - params.first) * params.x_element;
//@if X
            let stored = x[at];
//@endif
//@if SCORES
            let stored = scores[at];
//@endif
//@if IN_SCRATCH
            let bits = scratch[at];
//@else
//@if F16
            var bits = bitcast<u32>(f32(stored));
//@else
            var bits = stored;
//@endif
            // A NaN that looks like nothing becomes another.
            bits = select(bits, 0x7fffffffu, bits == NOTHING);
//@endif
            scratch[to + i] = bits;
        } else if (!there && params.first == 0u) {
//@if KEYS
            scratch[to + i] = bitcast<u32>(ABSENT);
//@else
            scratch[to + i] = NOTHING;
//@endif
        }
    }
}
