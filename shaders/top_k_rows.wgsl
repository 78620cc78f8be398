// The best k elements of each short row, by insertion into a sorted list.
//
// Formula:   see shared/selection.wgsl for the order; of equal elements those of the lowest index.
// Grid:      one invocation per run of rows, which lie side by side: a CPU reads them as one stretch.
// Workgroup: WORKGROUP invocations, which share nothing.
// Memory:    none: a list of ROOM keys and places is in registers.
//
// Elements come in the order of their indices, and only better ones go before others: so ties stay in that order.

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
const WIDTH: u32 = 4u;
//@else
alias Stored = Scalar;
const WIDTH: u32 = 1u;
//@endif
//@if OUT4
alias Value = vec4<Scalar>;
alias Index = vec4<u32>;
//@else
alias Value = Scalar;
alias Index = u32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const ROOM: u32 = 8u; //@variant
const PLACES: u32 = ROOM - 1u;

struct Params {
    rows: u32,
    run: u32,               // rows of an invocation
    length: u32,            // elements of a row
    k: u32,
    flip: u32,
    worst: u32,             // bits of the value of a place that holds nothing
    size_1: u32,
    size_2: u32,
    x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
    len_at: u32, len_0: u32, len_1: u32, len_2: u32,
    values_at: u32, values_0: u32, values_1: u32, values_2: u32, values_element: u32,
    indices_at: u32, indices_0: u32, indices_1: u32, indices_2: u32, indices_element: u32,
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
@group(0) @binding(3) var<storage, read_write> values: array<Value>; // [size_0, size_1, size_2, k]
//@endif
//@if INDICES
@group(0) @binding(4) var<storage, read_write> indices: array<Index>; // [size_0, size_1, size_2, k]
//@endif
//@if USES_SCRATCH
@group(0) @binding(5) var<storage, read_write> scratch: array<u32>; // rows, results
//@endif

//@if VALUES
// The element at a place of the row that starts at `start`, read again: keys do not tell zeros and NaN apart.
fn value_of(start: u32, place: u32) -> Scalar {
    let there = place != NONE;
    let at = start + select(0u, place, there) * params.x_element;
//@if IN_SCRATCH
    let bits = scratch[at];
//@else
//@if X
//@if VEC4
    let stored = x[at / 4u][at % 4u];
//@else
    let stored = x[at];
//@endif
//@endif
//@if SCORES
//@if VEC4
    let stored = scores[at / 4u][at % 4u];
//@else
    let stored = scores[at];
//@endif
//@endif
//@if F16
    let bits = bitcast<u32>(f32(stored));
//@else
    let bits = stored;
//@endif
//@endif
    let value = select(params.worst, bits, there);
//@if F16
    return f16(bitcast<f32>(value));
//@else
    return value;
//@endif
}
//@endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (linear_workgroup(workgroup, grid) * WORKGROUP + local) * params.run;
    let end = min(first + params.run, params.rows);
    for (var row = first; row < end; row++) {
        let start = place_of(row, params.x_at, params.x_0, params.x_1, params.x_2);
        var length = params.length;
//@if LENS
        length = min(length, row_len[place_of(row, params.len_at, params.len_0, params.len_1, params.len_2)]);
//@endif
        var keys: array<i32, ROOM>;
        var places: array<u32, ROOM>;
        //@unroll
        for (var i = 0u; i < ROOM; i++) {
            keys[i] = ABSENT;
            places[i] = NONE;
        }
        for (var element = 0u; element < length; element += WIDTH) {
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
            let all = bitcast<vec4<u32>>(vec4<f32>(stored));
//@else
            let all = stored;
//@endif
//@endif
            //@unroll
            for (var w = 0u; w < WIDTH; w++) {
//@if VEC4
                let bits = all[w];
//@else
//@if IN_SCRATCH
                let bits = stored;
//@else
//@if F16
                let bits = bitcast<u32>(f32(stored));
//@else
                let bits = stored;
//@endif
//@endif
//@endif
                var key = order_key(bits, params.flip);
//@if IN_SCRATCH
                key = select(key, ABSENT, bits == NOTHING);
//@endif
//@if LENS
                key = select(ABSENT, key, element + w < length);
//@endif
                //@unroll
                for (var b = 0u; b < PLACES; b++) {
                    let i = PLACES - b;
                    let place = select(places[i], element + w, key > keys[i]);
                    places[i] = select(place, places[i - 1u], key > keys[i - 1u]);
                    keys[i] = max(keys[i], min(keys[i - 1u], key));
                }
                places[0] = select(places[0], element + w, key > keys[0]);
                keys[0] = max(keys[0], key);
            }
        }
//@if !SORTED
        // By place: those past k, and what is not there, last.
        //@unroll
        for (var i = 0u; i < ROOM; i++) {
            places[i] = select(NONE, places[i], i < params.k);
        }
        //@unroll
        for (var turn = 0u; turn < ROOM; turn++) {
            //@unroll
            for (var i = 0u; i < PLACES; i++) {
                let swap = places[i] > places[i + 1u];
                let key = keys[i];
                let place = places[i];
                keys[i] = select(key, keys[i + 1u], swap);
                places[i] = select(place, places[i + 1u], swap);
                keys[i + 1u] = select(keys[i + 1u], key, swap);
                places[i + 1u] = select(places[i + 1u], place, swap);
            }
        }
//@endif
        let value = place_of(row, params.values_at, params.values_0, params.values_1, params.values_2);
        let index = place_of(row, params.indices_at, params.indices_0, params.indices_1, params.indices_2);
//@if OUT4
        //@unroll
        for (var q = 0u; q < ROOM / 4u; q++) {
            let i = 4u * q;
            if (i < params.k) {
//@if VALUES
                values[value / 4u + q] = Value(
                    value_of(start, places[i]),
                    value_of(start, places[i + 1u]),
                    value_of(start, places[i + 2u]),
                    value_of(start, places[i + 3u]),
                );
//@endif
//@if INDICES
                indices[index / 4u + q] = vec4<u32>(places[i], places[i + 1u], places[i + 2u], places[i + 3u]);
//@endif
            }
        }
//@else
        //@unroll
        for (var i = 0u; i < ROOM; i++) {
            if (i < params.k) {
//@if VALUES
                values[value + i * params.values_element] = value_of(start, places[i]);
//@endif
//@if INDICES
                indices[index + i * params.indices_element] = places[i];
//@endif
//@if TO_SCRATCH
                scratch[index + i * params.indices_element] = places[i];
//@endif
            }
        }
//@endif
    }
}
