// Rows of blocks, pooled.
//
// Formula:   y[b, h, j, d] = the sum over the rows of block j over a divisor, their maximum (MAX) or minimum (MIN);
//            0 where there are none. NORMALISE: over the square root of the sum of its squares over d.
// Grid:      LANES invocations per block; a workgroup has WORKGROUP / LANES blocks, all of batch entries and heads in
//            a line.
// Workgroup: 64 invocations. Each takes every LANES-th vector of four channels, and walks down the rows of its block,
//            four at a time.
// Memory:    NORMALISE: a number per invocation.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if F16_Y
enable f16;
alias OutScalar = f16;
//@else
alias OutScalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
//@else
alias Stored = Scalar;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const LANES: u32 = 16u; //@variant
// Turns whose sums are summed apart, which keeps rounding small.
const TURNS: u32 = 16u;

struct Params {
    count: u32,             // blocks of all sequences
    heads: u32,
    blocks: u32,            // of a sequence
    channels: u32,
    rows: u32,              // of a sequence
    block: u32,             // rows of a block, where blocks have a size
    step: u32,              // rows from block to block, likewise
    first_block: u32,       // the first block's number in its sequence
    first_row: u32,         // the row at x_at
    divisor: u32,           // 0: rows; 1: `block`; 2: square root of rows
    x_at: u32, x_batch: u32, x_head: u32, x_row: u32, x_channel: u32,
    y_at: u32, y_batch: u32, y_head: u32, y_row: u32, y_channel: u32,
    starts_at: u32, starts_batch: u32, starts_head: u32, starts_block: u32,
    lens_at: u32, lens_batch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Stored>; // [batch, heads, rows, channels]
@group(0) @binding(2) var<storage, read_write> y: array<OutScalar>; // [batch, heads, blocks, channels]
//@if STARTS
@group(0) @binding(3) var<storage, read> block_starts: array<u32>; // [batch, heads, blocks + 1]
//@endif
//@if LENGTHS
@group(0) @binding(4) var<storage, read> kv_len: array<u32>; // [batch]
//@endif

//@if NORMALISE
var<workgroup> parts: array<f32, WORKGROUP>;
//@endif

// Channels `c ..` of the row that starts at `at`; those past the last are read as the last.
fn load(at: u32, c: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(x[(at + c) / 4u]);
//@else
    let d = min(vec4<u32>(c, c + 1u, c + 2u, c + 3u), vec4<u32>(params.channels - 1u)) * params.x_channel + at;
    return vec4<f32>(f32(x[d.x]), f32(x[d.y]), f32(x[d.z]), f32(x[d.w]));
//@endif
}

fn joined(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
//@if MAX
    return max(a, b);
//@endif
//@if MIN
    return min(a, b);
//@endif
//@if MEAN
    return a + b;
//@endif
}

// Channels `c ..` of `count` rows, the first of which starts at `first`.
fn pooled(first: u32, count: u32, c: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4<f32>();
    }
//@if MEAN
    var sum = vec4<f32>();
    var part = vec4<f32>();
//@else
    var sum = load(first, c);
    var part = sum;
//@endif
    let turns = count / 4u;
    var at = first;
    for (var turn = 0u; turn < turns; turn++) {
        let a = joined(load(at, c), load(at + params.x_row, c));
        let b = joined(load(at + 2u * params.x_row, c), load(at + 3u * params.x_row, c));
        part = joined(part, joined(a, b));
        at += 4u * params.x_row;
//@if MEAN
        if (turn % TURNS == TURNS - 1u) {
            sum += part;
            part = vec4<f32>();
        }
//@endif
    }
    for (var row = turns * 4u; row < count; row++) {
        part = joined(part, load(at, c));
        at += params.x_row;
    }
    sum = joined(sum, part);
//@if MEAN
    let rows = f32(count);
    sum *= 1.0 / select(select(rows, f32(params.block), params.divisor == 1u), sqrt(rows), params.divisor == 2u);
//@endif
    return sum;
}

//@if NORMALISE
// The sum, or the maximum, of a number over the lanes of a block.
fn over_lanes(number: f32, local: u32, largest: bool) -> f32 {
    workgroupBarrier();
    parts[local] = number;
    workgroupBarrier();
    let first = local / LANES * LANES;
    var result = parts[first];
    for (var lane = 1u; lane < LANES; lane++) {
        let other = parts[first + lane];
        result = select(result + other, max(result, other), largest);
    }
    return result;
}
//@endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first_of_workgroup = linear_workgroup(workgroup, grid) * (WORKGROUP / LANES);
    if (first_of_workgroup >= params.count) {
        return;
    }
    let there = first_of_workgroup + local / LANES < params.count;
    let number = min(first_of_workgroup + local / LANES, params.count - 1u);
    let lane = local % LANES;
    let sequence = number / params.blocks;
    let block = number % params.blocks;
    let batch = sequence / params.heads;
    let head = sequence % params.heads;

    var len = params.rows;
//@if LENGTHS
    len = min(len, kv_len[params.lens_at + batch * params.lens_batch]);
//@endif
//@if STARTS
    let starts = params.starts_at + batch * params.starts_batch + head * params.starts_head + block * params.starts_block;
    let begin = min(block_starts[starts], len);
    let end = min(block_starts[starts + params.starts_block], len);
//@else
    let begin = min((params.first_block + block) * params.step, len);
    let end = min(begin + params.block, len);
//@endif
    let count = select(0u, end - begin, end > begin);
    let first = params.x_at + batch * params.x_batch + head * params.x_head
        + (max(begin, params.first_row) - params.first_row) * params.x_row;
    let out = params.y_at + batch * params.y_batch + head * params.y_head + block * params.y_row;

//@if NORMALISE
    // Rows are made twice: first for their length. Numbers are over the largest, so that squares stay small.
    var largest = 0.0;
    for (var c = lane * 4u; c < params.channels; c += LANES * 4u) {
        let size = abs(pooled(first, count, c));
        largest = max(largest, max(max(size.x, size.y), max(size.z, size.w)));
    }
    largest = over_lanes(largest, local, true);
    var squares = 0.0;
    if (largest > 0.0) {
        for (var c = lane * 4u; c < params.channels; c += LANES * 4u) {
            // Channels past the last do not count.
            let valid = vec4<u32>(c, c + 1u, c + 2u, c + 3u) < vec4<u32>(params.channels);
            let ratio = select(vec4<f32>(), pooled(first, count, c) / largest, valid);
            squares += dot(ratio, ratio);
        }
    }
    let factor = 1.0 / max(largest * sqrt(over_lanes(squares, local, false)), 1e-12);
//@endif
    if (there) {
        for (var c = lane * 4u; c < params.channels; c += LANES * 4u) {
            var row = pooled(first, count, c);
//@if NORMALISE
            row *= factor;
//@endif
            for (var i = 0u; i < min(4u, params.channels - c); i++) {
                y[out + (c + i) * params.y_channel] = OutScalar(row[i]);
            }
        }
    }
}
