// Rows of a tensor that an index names, or blocks of them.
//
// Formula:   y[b, h, i * block + r] = x[b, h, index[b, h, i] * block + r]; zeros where x has no such row.
// Grid:      one invocation per (lane of a row; `each` rows of y; head; batch entry), lanes fastest.
// Workgroup: 64 invocations.
// Memory:    none.
//
// Numbers are moved as they are: f32, u32 and pairs of f16 as u32. Where x does not fit a binding, dispatches follow
// one another, each with a window of its rows; the first writes zeros where a row lies outside.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = u32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
//@else
alias Stored = Scalar;
//@endif

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    invocations: u32,
    lanes: u32,             // invocations that share a row
    units: u32,             // vectors, or numbers, of a row
    each: u32,              // rows of y per invocation
    chunks: u32,            // rows / each, rounded up
    rows: u32,              // of y
    block: u32,
    outer: u32,             // heads of the tensor that has fewer
    inner: u32,             // heads of the other for each
    n: u32,                 // rows of x
    blocks: u32,            // n / block, rounded up
    window: u32,            // the first row of x that is bound
    window_rows: u32,
    first: u32,             // whether rows that are not bound are written as zeros
    x_at: u32, x_batch: u32, x_outer: u32, x_inner: u32, x_row: u32, x_unit: u32,
    index_at: u32, index_batch: u32, index_outer: u32, index_inner: u32, index_entry: u32,
    y_at: u32, y_batch: u32, y_outer: u32, y_inner: u32, y_row: u32, y_unit: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>; // [batch, heads, n, dim]
@group(0) @binding(2) var<storage, read> index: array<u32>; // [batch, heads, rows / block]
@group(0) @binding(3) var<storage, read_write> y: array<Stored>; // [batch, heads, rows, dim]

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
    let lane = number % params.lanes;
    let chunk = number / params.lanes % params.chunks;
    let head = number / params.lanes / params.chunks;
    let inner = head % params.inner;
    let outer = head / params.inner % params.outer;
    let batch = head / params.inner / params.outer;
    let x_at = params.x_at + batch * params.x_batch + outer * params.x_outer + inner * params.x_inner + lane * params.x_unit;
    let y_at = params.y_at + batch * params.y_batch + outer * params.y_outer + inner * params.y_inner + lane * params.y_unit;
    let index_at = params.index_at + batch * params.index_batch + outer * params.index_outer + inner * params.index_inner;

    let begin = chunk * params.each;
    let end = min(begin + params.each, params.rows);
    var entry = begin / params.block;
    var place = begin % params.block;
    for (var row = begin; row < end; row++) {
        let named = index[index_at + entry * params.index_entry];
        // Where it names no block, the product may wrap, and is not used.
        let source = named * params.block + place;
        let there = named < params.blocks && source < params.n;
        let bound = there && source >= params.window && source - params.window < params.window_rows;
        if (bound || params.first != 0u) {
            var read_at = x_at + select(0u, source - params.window, bound) * params.x_row;
            var write_at = y_at + row * params.y_row;
            for (var unit = lane; unit < params.units; unit += params.lanes) {
                var value = Stored();
                if (bound) {
                    value = x[read_at];
                }
                y[write_at] = value;
                read_at += params.lanes * params.x_unit;
                write_at += params.lanes * params.y_unit;
            }
        }
        place++;
        if (place == params.block) {
            place = 0u;
            entry++;
        }
    }
}
