// Softmax or log-softmax of rows, reading each element once or twice.
//
// Formula:   y = exp(z - m) / sum exp(z - m), or z - m - log sum exp(z - m); z = scale x, m = max z.
// Grid:      one workgroup per (WORKGROUP / LANES rows, range of the row).
// Workgroup: LANES neighbouring invocations share a row: unit by unit in turn, or a stretch each
//            (STRETCH), for devices that read best when every lane stays in pages of its own. LANES 1
//            serves short rows, rows side by side, and there any rows of which there are enough.
// Memory:    one (maximum, total) per invocation, unless the lanes are a subgroup.
//
// Each lane holds the first HELD of its units in registers, which are read once. The REST, of rows longer
// than that, is read twice, BLOCK units at a step. Three phases: READ and WRITE together do whole rows.
// For rows too long for that, a dispatch with READ leaves (maximum, total) of each range in scratch, and
// one with WRITE adds them up.

//@import grid
//@import online_softmax
//@import softmax_rows

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
const LANES: u32 = 16u; //@variant
const HELD: u32 = 4u; //@variant
const BLOCK: u32 = 8u; //@variant
//@if STRETCH
const PACE: u32 = 1u;
//@else
const PACE: u32 = LANES;
//@endif

@group(0) @binding(0) var<uniform> params: Params;
//@if WRITE
@group(0) @binding(1) var<storage, read_write> y: array<Stored>; // [size_0, size_1, size_2, length]
//@endif
//@if !IN_PLACE
@group(0) @binding(2) var<storage, read> x: array<Stored>; // [size_0, size_1, size_2, length]
//@else
//@if !WRITE
@group(0) @binding(1) var<storage, read> y: array<Stored>; // [size_0, size_1, size_2, length]
//@endif
//@endif
//@if SPLIT
//@if READ
@group(0) @binding(3) var<storage, read_write> scratch: array<vec2<f32>>; // [rows, splits]
//@else
@group(0) @binding(3) var<storage, read> scratch: array<vec2<f32>>; // [rows, splits]
//@endif
//@endif
//@if READ
//@if SHARED
var<workgroup> partial: array<vec2<f32>, WORKGROUP>; // (maximum, total)
//@endif
//@endif

//@if VEC4
fn highest_of(u: Unit) -> f32 {
    return max(max(u.x, u.y), max(u.z, u.w));
}
fn sum_of(u: Unit) -> f32 {
    return (u.x + u.y) + (u.z + u.w);
}
//@else
fn highest_of(u: Unit) -> f32 {
    return u;
}
fn sum_of(u: Unit) -> f32 {
    return u;
}
//@endif

// Where unit `n` is of a row that starts at `at`, with elements `stride` apart.
fn place(at: u32, n: u32, stride: u32) -> u32 {
//@if VEC4
    return at / 4u + n;
//@else
    return at + n * stride;
//@endif
}

// z at unit `n` of a row that starts at `at`. It may be minus infinity, which is told by its bits; and it
// is only taken less a finite maximum: no sum or difference of infinities.
fn load(at: u32, n: u32) -> Unit {
//@if IN_PLACE
    return Unit(y[place(at, n, params.x_element)]) * params.scale;
//@else
    return Unit(x[place(at, n, params.x_element)]) * params.scale;
//@endif
}

// The least finite number: where maxima start.
const LOWEST: f32 = -3.4028234663852886e38;

//@if VEC4
fn is_hidden(z: Unit) -> vec4<bool> {
    return bitcast<vec4<u32>>(z) == vec4<u32>(MINUS_INFINITY_BITS);
}
//@else
fn is_hidden(z: Unit) -> bool {
    return bitcast<u32>(z) == MINUS_INFINITY_BITS;
}
//@endif

// exp(z - maximum), exactly 0 where z is minus infinity.
fn weights(z: Unit, maximum: f32) -> Unit {
    return select(exp2((z - maximum) * LOG2_E), Unit(0.0), is_hidden(z));
}

// z - maximum - log total, minus infinity where z is.
fn log_weights(z: Unit, maximum: f32, total: f32) -> Unit {
    let y = (z - maximum) - log2(total) * LN_2;
    return select(y, Unit(params.minus_infinity), is_hidden(z));
}

//@if WRITE
// Writes the result of z to unit `n` of a row that starts at `at`.
fn store(at: u32, n: u32, z: Unit, maximum: f32, total: f32, inverse: f32) {
    let to = place(at, n, params.y_element);
//@if LOG
    y[to] = Stored(log_weights(z, maximum, total));
//@else
    y[to] = Stored(weights(z, maximum) * inverse);
//@endif
}
//@endif

// The sum of two partial results (maximum, total).
fn merged(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let maximum = max(a.x, b.x);
    let total = a.y * exp2((a.x - maximum) * LOG2_E) + b.y * exp2((b.x - maximum) * LOG2_E);
    return vec2<f32>(maximum, total);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
//@if SUBGROUP_REDUCE
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
//@else
    @builtin(local_invocation_index) local: u32,
//@endif
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.groups) {
        return;
    }
    let split = number % params.splits;
//@if SUBGROUP_REDUCE
    let row = number / params.splits * (WORKGROUP / LANES) + subgroup;
//@else
    let row = number / params.splits * (WORKGROUP / LANES) + local / LANES;
    let lane = local % LANES;
//@endif
    let exists = row < params.rows;
    let x_row = x_start(min(row, params.rows - 1u), params);
    let begin = split * params.split_length / WIDTH;
    let range_end = min((split + 1u) * params.split_length, params.length) / WIDTH;
//@if STRETCH
    let stretch = (range_end - begin + LANES - 1u) / LANES;
    let first = min(begin + lane * stretch, range_end);
    let end = min(first + stretch, range_end);
//@else
    let first = begin + lane;
    let end = range_end;
//@endif

    var maximum = LOWEST;
    var total = 0.0;
//@if HELD
    var held: array<Unit, HELD>;
    //@unroll
    for (var b = 0u; b < HELD; b++) {
        let unit = first + b * PACE;
//@if REST
        held[b] = load(x_row, unit);
//@else
        // Units past the end are read as the last one and hidden.
        held[b] = select(Unit(params.minus_infinity), load(x_row, min(unit, end - 1u)), unit < end);
//@endif
        maximum = max(maximum, highest_of(held[b]));
    }
    var held_sum = Unit(0.0);
    //@unroll
    for (var b = 0u; b < HELD; b++) {
//@if LOG
        held_sum += weights(held[b], maximum);
//@else
        held[b] = weights(held[b], maximum);
        held_sum += held[b];
//@endif
    }
    total = sum_of(held_sum);
    let held_maximum = maximum;
//@endif
//@if READ
//@if REST
    var n = first + HELD * PACE;
    for (; n + (BLOCK - 1u) * PACE < end; n += PACE * BLOCK) {
        var z: array<Unit, BLOCK>;
        var highest = maximum;
        //@unroll
        for (var b = 0u; b < BLOCK; b++) {
            z[b] = load(x_row, n + b * PACE);
            highest = max(highest, highest_of(z[b]));
        }
        var sum = Unit(0.0);
        //@unroll
        for (var b = 0u; b < BLOCK; b++) {
            // Not exactly 0 where z is hidden, which no total shows: a row with nothing else is
            // told by its elements.
            sum += exp2((z[b] - highest) * LOG2_E);
        }
        total = fma(total, exp2((maximum - highest) * LOG2_E), sum_of(sum));
        maximum = highest;
    }
    for (; n < end; n += PACE) {
        let z = load(x_row, n);
        let highest = max(maximum, highest_of(z));
        total = fma(total, exp2((maximum - highest) * LOG2_E), sum_of(exp2((z - highest) * LOG2_E)));
        maximum = highest;
    }
//@endif
//@endif
//@if READ
//@if SHARED
    partial[local] = vec2<f32>(maximum, total);
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane < step) {
            partial[local] = merged(partial[local], partial[local + step]);
        }
    }
    workgroupBarrier();
    let whole = partial[local - lane];
    maximum = whole.x;
    total = whole.y;
//@endif
//@if SUBGROUP_REDUCE
    let highest = subgroupMax(maximum);
    total = subgroupAdd(total * exp2((maximum - highest) * LOG2_E));
    maximum = highest;
//@endif
//@endif

//@if SPLIT
//@if READ
    if (exists && lane == 0u) {
        scratch[row * params.all_splits + params.split_start + split] = vec2<f32>(maximum, total);
    }
//@else
    for (var s = 0u; s < params.all_splits; s++) {
        let whole = merged(vec2<f32>(maximum, total), scratch[min(row, params.rows - 1u) * params.all_splits + s]);
        maximum = whole.x;
        total = whole.y;
    }
//@endif
//@endif

//@if WRITE
    let y_row = y_start(min(row, params.rows - 1u), params);
    if (exists) {
//@if HELD
        // The weights are relative to the maximum of what this lane holds.
        let factor = exp2((held_maximum - maximum) * LOG2_E) * reciprocal(total);
        //@unroll
        for (var b = 0u; b < HELD; b++) {
            let n = first + b * PACE;
            if (n < end) {
                let to = place(y_row, n, params.y_element);
//@if LOG
                y[to] = Stored(log_weights(held[b], maximum, total));
//@else
                y[to] = Stored(held[b] * factor);
//@endif
            }
        }
//@endif
//@if REST
        let inverse = reciprocal(total);
        var n = first + HELD * PACE;
        for (; n + (BLOCK - 1u) * PACE < end; n += PACE * BLOCK) {
            //@unroll
            for (var b = 0u; b < BLOCK; b++) {
                store(y_row, n + b * PACE, load(x_row, n + b * PACE), maximum, total, inverse);
            }
        }
        for (; n < end; n += PACE) {
            store(y_row, n, load(x_row, n), maximum, total, inverse);
        }
//@endif
    }
//@endif
}
