// A selection, written into dense rows.
//
// Formula:   y[row, index[row, j]] = factor gate[row] x[row, j], the last j where several name a place; else fill.
//            Without VALUES, x is 1.
// Grid:      one workgroup per tile of rows and columns, of at most SLOTS places; tiles of columns fastest.
// Workgroup: 64 invocations. They read the lists of the tile's rows, then write its places.
// Memory:    the last entry that names each place of the tile. 4 KiB.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const SLOTS: u32 = 1024u;

struct Params {
    workgroups: u32,
    rows: u32,
    columns: u32,
    first_column: u32,      // of this slice, in the whole row
    entries: u32,           // of each list
    tile_rows: u32,
    tile_columns: u32,
    column_tiles: u32,
    len_b: u32, len_c: u32, // the last two axes of rows
    fill: f32,
    factor: f32,
    x_at: u32, x_a: u32, x_b: u32, x_c: u32, x_entry: u32,
    index_at: u32, index_a: u32, index_b: u32, index_c: u32, index_entry: u32,
    gate_at: u32, gate_a: u32, gate_b: u32, gate_c: u32,
    y_at: u32, y_a: u32, y_b: u32, y_c: u32, y_column: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> index: array<u32>; // [.., entries]
@group(0) @binding(2) var<storage, read_write> y: array<Scalar>; // [.., n]
//@if VALUES
@group(0) @binding(3) var<storage, read> x: array<Scalar>; // [.., entries]
//@endif
//@if GATE
@group(0) @binding(4) var<storage, read> gate: array<f32>; // [..]
//@endif

// For each place of the tile, one more than the last entry that names it; 0 for none.
var<workgroup> last: array<atomic<u32>, SLOTS>;

// The three axes of a row.
fn row_of(number: u32) -> vec3<u32> {
    let rest = number / params.len_c;
    return vec3<u32>(rest / params.len_b, rest % params.len_b, number % params.len_c);
}

fn place(row: vec3<u32>, at: u32, strides: vec3<u32>) -> u32 {
    return at + row.x * strides.x + row.y * strides.y + row.z * strides.z;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.workgroups) {
        return;
    }
    let first_row = number / params.column_tiles * params.tile_rows;
    let first = number % params.column_tiles * params.tile_columns;
    let rows = min(params.tile_rows, params.rows - first_row);
    let columns = min(params.tile_columns, params.columns - first);
    let slots = rows * columns;
    for (var i = local; i < slots; i += WORKGROUP) {
        atomicStore(&last[i], 0u);
    }
    workgroupBarrier();

    let entries = rows * params.entries;
    for (var i = local; i < entries; i += WORKGROUP) {
        let own = i / params.entries;
        let entry = i % params.entries;
        let at = place(row_of(first_row + own), params.index_at, vec3<u32>(params.index_a, params.index_b, params.index_c));
        // What is before the tile wraps round, to past its end.
        let column = index[at + entry * params.index_entry] - (params.first_column + first);
        if (column < columns) {
            atomicMax(&last[own * columns + column], entry + 1u);
        }
    }
    workgroupBarrier();

    for (var i = local; i < slots; i += WORKGROUP) {
        let row = row_of(first_row + i / columns);
        let column = first + i % columns;
        let named = atomicLoad(&last[i]);
        var value = Scalar(params.fill);
        if (named > 0u) {
//@if VALUES
            value = x[place(row, params.x_at, vec3<u32>(params.x_a, params.x_b, params.x_c)) + (named - 1u) * params.x_entry];
//@else
            value = Scalar(1.0);
//@endif
//@if GATE
            let factor = params.factor * gate[place(row, params.gate_at, vec3<u32>(params.gate_a, params.gate_b, params.gate_c))];
            value = Scalar(f32(value) * factor);
//@else
//@if FACTOR
            value = Scalar(f32(value) * params.factor);
//@endif
//@endif
        }
        y[place(row, params.y_at, vec3<u32>(params.y_a, params.y_b, params.y_c)) + column * params.y_column] = value;
    }
}
