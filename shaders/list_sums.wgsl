// Sums of the rows of lists: the places of a sorted order that belong to one bucket.
//
// Formula:   sum[l] = sum_e x[order[e]] over the entries e of list l. To scratch (PARTS): sums of parts of each list;
//            else y[l] = sum[l] / (count + epsilon), 0 for an empty list.
// Grid:      one invocation per (WIDTH channels; part; list; sequence), channels fastest.
// Workgroup: 64 invocations.
// Memory:    none.
//
// Lists longer than one dispatch may walk along take several; y holds the sum so far between them.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
alias Unit = vec4<f32>;
const WIDTH: u32 = 4u;
//@else
alias Stored = Scalar;
alias Unit = f32;
const WIDTH: u32 = 1u;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const BLOCK: u32 = 64u;

struct Params {
    invocations: u32,
    units: u32,             // channels / WIDTH
    dim: u32,
    parts: u32,
    lists: u32,
    heads: u32,
    places: u32,            // entries of all lists, and those of none
    width: u32,             // places of a row of them
    skip: u32,              // entries that dispatches before have taken
    most: u32,              // entries for this one
    epsilon: f32,
    order_at: u32,
    starts_at: u32,
    parts_at: u32,
    x_at: u32, x_batch: u32, x_head: u32, x_outer: u32, x_inner: u32, x_dim: u32,
    y_at: u32, y_batch: u32, y_head: u32, y_list: u32, y_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>; // [batch, heads, groups, places, dim]
//@if PARTS
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>; // [sequences, lists, parts, dim], and more
//@else
@group(0) @binding(2) var<storage, read> scratch: array<u32>; // [sequences, places], [sequences, lists + 1]
@group(0) @binding(3) var<storage, read_write> y: array<Stored>; // [batch, heads, lists, dim]
//@endif

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
    let d = number % params.units * WIDTH;
    let part = number / params.units % params.parts;
    let list = number / params.units / params.parts % params.lists;
    let sequence = number / params.units / params.parts / params.lists;
    let batch = sequence / params.heads;
    let head = sequence % params.heads;

    let starts_at = params.starts_at + sequence * (params.lists + 1u) + list;
    let begin = scratch[starts_at];
    let count = scratch[starts_at + 1u] - begin;
    let each = count / params.parts + select(0u, 1u, count % params.parts != 0u);
    let first = min(params.skip + part * each, count);
    let last = min(first + min(each, params.most), count);
    let x_at = params.x_at + batch * params.x_batch + head * params.x_head + d * params.x_dim;
    let order_at = params.order_at + sequence * params.places + begin;

    // Sums of blocks are summed, which keeps rounding small.
    var sum = Unit();
    var block = Unit();
    for (var e = first; e < last; e++) {
        let place = scratch[order_at + e];
        let at = x_at + place / params.width * params.x_outer + place % params.width * params.x_inner;
        block += Unit(x[at / WIDTH]);
        if (e % BLOCK == BLOCK - 1u) {
            sum += block;
            block = Unit();
        }
    }
    sum += block;

//@if PARTS
    let to = params.parts_at + ((sequence * params.lists + list) * params.parts + part) * params.dim + d;
//@if VEC4
    for (var i = 0u; i < 4u; i++) {
        scratch[to + i] = bitcast<u32>(sum[i]);
    }
//@else
    scratch[to] = bitcast<u32>(sum);
//@endif
//@else
    if (params.skip > 0u && params.skip >= count) {
        return;
    }
    let to = (params.y_at + batch * params.y_batch + head * params.y_head + list * params.y_list + d * params.y_dim) / WIDTH;
    if (params.skip > 0u) {
        sum += Unit(y[to]);
    }
    if (last == count && count > 0u) {
        sum = sum / (f32(count) + params.epsilon);
    }
    y[to] = Stored(sum);
//@endif
}
