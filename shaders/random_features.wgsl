// Random features of queries and keys (FAVOR+).
//
// Formula:   y_f = features^(-1/2) (exp(u . p_f - |u|^2 / 2 - max) + eps), u = scale x; RELU: max(u . p_f, 0) + eps.
// Grid:      one workgroup per (batch, head, tile of ROWS rows). MAXIMA: a dispatch before leaves the largest u . p_f
//            of each tile in scratch.
// Workgroup: WORKGROUP invocations, each with every WORKGROUP-th feature of all rows.
// Memory:    the rows times the scale, half of their squares, and a number per invocation and row. 5 KiB.

//@import grid

struct Params {
    tiles: u32,         // workgroups with work
    heads: u32,         // heads in this slice
    rows: u32,          // rows of a head in this slice
    dim: u32,
    features: u32,
    row_tiles: u32,     // tiles of a head in this slice
    all_tiles: u32,     // tiles of a head
    all_heads: u32,
    batch_start: u32,
    head_start: u32,
    tile_start: u32,
    scale: f32,
    factor: f32,        // features^(-1/2)
    eps: f32,
    x_at: u32, x_batch: u32, x_head: u32, x_row: u32, x_dim: u32,
    projection_at: u32, projection_feature: u32, projection_dim: u32,
    y_at: u32, y_batch: u32, y_head: u32, y_row: u32, y_dim: u32,
}

//@if X_F16
enable f16;
alias Read = f16;
//@else
alias Read = f32;
//@endif
//@if Y_F16
enable f16;
alias Written = f16;
//@else
alias Written = f32;
//@endif

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Read>; // [batch, heads, seq, dim]
@group(0) @binding(2) var<storage, read> projection: array<f32>; // [features, dim]
//@if !MAXIMA
@group(0) @binding(3) var<storage, read_write> y: array<Written>; // [batch, heads, seq, features]
//@endif
//@if SCRATCH
@group(0) @binding(4) var<storage, read_write> scratch: array<f32>; // [batch, heads, tiles]
//@endif

const WORKGROUP: u32 = 64u;
const ROWS: u32 = 4u;
const MAX_DIM: u32 = 256u;
const LEAST: f32 = -3e38;

var<workgroup> rows: array<f32, ROWS * MAX_DIM>;
//@if !RELU
var<workgroup> partial: array<f32, ROWS * WORKGROUP>;
//@endif
//@if SQUARES
var<workgroup> squares: array<f32, ROWS>;
//@endif

// u . p_f of all rows.
fn products(feature: u32) -> vec4<f32> {
    let at = params.projection_at + feature * params.projection_feature;
    // Some dims are summed before they are added: fewer additions to a large number.
    var sum = vec4<f32>();
    var part = vec4<f32>();
    for (var d = 0u; d < params.dim; d++) {
        let u = vec4<f32>(rows[d], rows[MAX_DIM + d], rows[2u * MAX_DIM + d], rows[3u * MAX_DIM + d]);
        part = fma(u, vec4<f32>(projection[at + d * params.projection_dim]), part);
        if (d % 16u == 15u) {
            sum += part;
            part = vec4<f32>();
        }
    }
    return sum + part;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.tiles) {
        return;
    }
    let tile = number % params.row_tiles;
    let head = number / params.row_tiles % params.heads;
    let batch = number / params.row_tiles / params.heads;
    let x_at = params.x_at + batch * params.x_batch + head * params.x_head;

    for (var n = local; n < ROWS * params.dim; n += WORKGROUP) {
        // Rows past the last are the last again.
        let row = min(tile * ROWS + n / params.dim, params.rows - 1u);
        let d = n % params.dim;
        rows[n / params.dim * MAX_DIM + d] = params.scale * f32(x[x_at + row * params.x_row + d * params.x_dim]);
    }
    workgroupBarrier();

//@if SCRATCH
    let first = ((params.batch_start + batch) * params.all_heads + params.head_start + head) * params.all_tiles;
//@endif
//@if !RELU
    var highest = vec4<f32>(LEAST);
//@if ALL
    for (var n = local; n < params.all_tiles; n += WORKGROUP) {
        highest = max(highest, vec4<f32>(scratch[first + n]));
    }
//@else
    for (var f = local; f < params.features; f += WORKGROUP) {
        highest = max(highest, products(f));
    }
//@endif
    //@unroll
    for (var a = 0u; a < ROWS; a++) {
        partial[a * WORKGROUP + local] = highest[a];
    }
//@if SQUARES
    if (local < ROWS) {
        var sum = 0.0;
        for (var d = 0u; d < params.dim; d++) {
            let u = rows[local * MAX_DIM + d];
            sum = fma(u, u, sum);
        }
        squares[local] = 0.5 * sum;
    }
//@endif
    workgroupBarrier();
    for (var n = 0u; n < WORKGROUP; n++) {
        //@unroll
        for (var a = 0u; a < ROWS; a++) {
            highest[a] = max(highest[a], partial[a * WORKGROUP + n]);
        }
    }
//@endif
//@if MAXIMA
    if (local == 0u) {
        scratch[first + params.tile_start + tile] = max(max(highest.x, highest.y), max(highest.z, highest.w));
    }
//@else
    let y_at = params.y_at + batch * params.y_batch + head * params.y_head;
    for (var f = local; f < params.features; f += WORKGROUP) {
        let sum = products(f);
        //@unroll
        for (var a = 0u; a < ROWS; a++) {
            let row = tile * ROWS + a;
            if (row < params.rows) {
//@if RELU
                let feature = max(sum[a], 0.0) + params.eps;
//@else
                let feature = params.factor * (exp((sum[a] - highest[a]) - squares[a]) + params.eps);
//@endif
                y[y_at + row * params.y_row + f * params.y_dim] = Written(feature);
            }
        }
    }
//@endif
}
