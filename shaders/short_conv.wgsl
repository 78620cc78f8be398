// Short depthwise convolution along the sequence, with weights per channel, head or token.
//
// Formula:   y_t = act(sum_k w_k x_{t - padding + k} + bias), inputs before the first token from the state or zero,
//            zero after the last; w is the softmax over k of the weights (SOFTMAX), of the taps inside alone (RENORM).
// Grid:      one invocation per (unit; run of `each` tokens; batch entry), where a unit is a channel, or four side by
//            side (CHANNELS4); units fastest, or runs.
// Workgroup: WORKGROUP invocations.
// Memory:    none.
//
// All taps in registers (!LONG): an invocation walks along its run with the last TAPS inputs in registers, so that it
// reads each input of the run once, and TAPS - 1 before it. Many taps (LONG): a run is BLOCK tokens, and the
// invocation walks along the taps, TAPS at a time, with the inputs under them in registers.
// A run takes PACKED sequences one after the other: where one begins, the inputs before it are those of its own state.
// An invocation with the whole sequence also writes the state after it (FINAL), which may be the one it read
// (IN_PLACE): no other reads it.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if F16_WEIGHT
enable f16;
alias WeightScalar = f16;
//@else
alias WeightScalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
const WIDTH: u32 = 4u;
//@else
alias Stored = Scalar;
const WIDTH: u32 = 1u;
//@endif
//@if CHANNELS4
alias Unit = vec4<f32>;
//@else
alias Unit = f32;
//@endif
//@if WEIGHT4
alias WeightStored = vec4<WeightScalar>;
const WEIGHT_WIDTH: u32 = 4u;
//@else
alias WeightStored = WeightScalar;
const WEIGHT_WIDTH: u32 = 1u;
//@endif

const WORKGROUP: u32 = 64u; //@variant
const TAPS: u32 = 4u; //@variant
const BLOCK: u32 = 8u; //@variant
const LOG2_E: f32 = 1.4426950408889634;

struct Params {
    invocations: u32,
    units: u32,             // per batch entry
    inner: u32,             // units that share a row of weights
    runs: u32,
    runs_first: u32,        // whether neighbours are runs
    each: u32,              // tokens per run
    tokens: u32,
    before: u32,            // tokens that the window of x has before the first
    window: u32,            // tokens in it
    window_start: u32,      // the first one's place in the sequence, for PACKED
    taps: u32,
    padding: u32,
    sequences: u32,
    x_at: u32, x_batch: u32, x_outer: u32, x_unit: u32, x_token: u32,
    y_at: u32, y_batch: u32, y_outer: u32, y_unit: u32, y_token: u32,
    weight_at: u32, weight_batch: u32, weight_token: u32, weight_outer: u32, weight_lane: u32, weight_tap: u32,
    bias_at: u32, bias_outer: u32, bias_unit: u32, bias_lane: u32,
    initial_state_at: u32, initial_state_batch: u32, initial_state_outer: u32, initial_state_unit: u32,
    initial_state_lane: u32, initial_state_tap: u32,
    final_state_at: u32, final_state_batch: u32, final_state_outer: u32, final_state_unit: u32,
    final_state_lane: u32, final_state_tap: u32,
    cu_seqlens_at: u32, cu_seqlens_step: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<Stored>; // [batch, channels, seq]
@group(0) @binding(2) var<storage, read> x: array<Stored>; // [batch, channels, seq]
@group(0) @binding(3) var<storage, read> weight: array<WeightStored>; // [heads, taps] or [batch, seq, heads, taps]
//@if BIAS
@group(0) @binding(4) var<storage, read> bias: array<WeightScalar>; // [channels]
//@endif
//@if INITIAL
//@if !IN_PLACE
@group(0) @binding(5) var<storage, read> initial_state: array<Scalar>; // [batch or sequences, channels, taps - 1]
//@endif
//@endif
//@if STATE
@group(0) @binding(6) var<storage, read_write> final_state: array<Scalar>; // as initial_state
//@endif
//@if PACKED
@group(0) @binding(7) var<storage, read> cu_seqlens: array<u32>; // [sequences + 1]
//@endif

// Where the inputs of an invocation lie. Places of tokens count from the first of the window.
struct Line {
    x: u32,
    initial_state: u32,
    start: i32,             // of the sequence
    end: i32,
}

//@if INITIAL
fn stored_state(at: u32) -> f32 {
//@if IN_PLACE
    return f32(final_state[at]);
//@else
    return f32(initial_state[at]);
//@endif
}
//@endif

// The input at a place: of the state before the sequence, zero after it.
fn input(line: Line, place: i32) -> Unit {
    if (place >= line.end) {
        return Unit(0.0);
    }
    if (place < line.start) {
//@if INITIAL
        let tap = u32(place - line.start + i32(params.taps) - 1);
        let at = line.initial_state + tap * params.initial_state_tap;
//@if CHANNELS4
        let lane = params.initial_state_lane;
        return Unit(stored_state(at), stored_state(at + lane), stored_state(at + 2u * lane), stored_state(at + 3u * lane));
//@else
        return stored_state(at);
//@endif
//@else
        return Unit(0.0);
//@endif
    }
    let at = line.x + u32(place) * params.x_token;
//@if TOKENS4
    return f32(x[at / 4u][at % 4u]);
//@else
    return Unit(x[at / WIDTH]);
//@endif
}

// Weights of TAPS taps.
struct Taps {
    w: array<Unit, TAPS>,
}

// Those from the tap `first` on of the row at `row`, zero past the last.
fn stored_weights(row: u32, first: u32) -> Taps {
    var taps: Taps;
//@if WEIGHT4
    let at = (row + first) / WEIGHT_WIDTH;
    //@unroll
    for (var q = 0u; q < TAPS / 4u; q++) {
//@if LANES4
        let lane = params.weight_lane / WEIGHT_WIDTH;
        let a = vec4<f32>(weight[at + q]);
        let b = vec4<f32>(weight[at + q + lane]);
        let c = vec4<f32>(weight[at + q + 2u * lane]);
        let d = vec4<f32>(weight[at + q + 3u * lane]);
        taps.w[4u * q] = Unit(a.x, b.x, c.x, d.x);
        taps.w[4u * q + 1u] = Unit(a.y, b.y, c.y, d.y);
        taps.w[4u * q + 2u] = Unit(a.z, b.z, c.z, d.z);
        taps.w[4u * q + 3u] = Unit(a.w, b.w, c.w, d.w);
//@else
        let a = vec4<f32>(weight[at + q]);
        taps.w[4u * q] = Unit(a.x);
        taps.w[4u * q + 1u] = Unit(a.y);
        taps.w[4u * q + 2u] = Unit(a.z);
        taps.w[4u * q + 3u] = Unit(a.w);
//@endif
    }
//@else
    //@unroll
    for (var k = 0u; k < TAPS; k++) {
        let at = row + min(first + k, params.taps - 1u) * params.weight_tap;
//@if LANES4
        let lane = params.weight_lane;
        let w = Unit(
            f32(weight[at]),
            f32(weight[at + lane]),
            f32(weight[at + 2u * lane]),
            f32(weight[at + 3u * lane]),
        );
//@else
        let w = Unit(f32(weight[at]));
//@endif
        taps.w[k] = select(Unit(0.0), w, first + k < params.taps);
    }
//@endif
    return taps;
}

//@if SOFTMAX
// Numbers that stand in for infinities.
fn finite(w: Unit) -> Unit {
    return clamp(w, Unit(-1e38), Unit(1e38));
}

// The exponential of what is 0 or less.
fn power(x: Unit) -> Unit {
    return exp2(clamp(x, Unit(-200.0), Unit(0.0)) * LOG2_E);
}

// The taps that count: all, or those inside the sequence of a token whose first tap is at `place`.
fn counted(line: Line, place: i32) -> vec2<i32> {
//@if RENORM
//@if INITIAL
    let first = 0;
//@else
    let first = max(line.start - place, 0);
//@endif
    return vec2<i32>(first, min(line.end - place, i32(params.taps)));
//@else
    return vec2<i32>(0, i32(params.taps));
//@endif
}

// The softmax so far: its largest number, and the sum of exponentials.
struct Sum {
    maximum: Unit,
    total: Unit,
}

fn with_more(sum: Sum, taps: Taps, first: u32, range: vec2<i32>) -> Sum {
    var maximum = sum.maximum;
    //@unroll
    for (var k = 0u; k < TAPS; k++) {
        let counts = i32(first + k) >= range.x && i32(first + k) < range.y;
        maximum = max(maximum, select(Unit(-2e38), finite(taps.w[k]), counts));
    }
    var total = sum.total * power(sum.maximum - maximum);
    //@unroll
    for (var k = 0u; k < TAPS; k++) {
        let counts = i32(first + k) >= range.x && i32(first + k) < range.y;
        total += select(Unit(0.0), power(finite(taps.w[k]) - maximum), counts);
    }
    return Sum(maximum, total);
}

// Weights by the softmax that they are part of.
fn shares(taps: Taps, sum: Sum, first: u32, range: vec2<i32>) -> Taps {
    var out: Taps;
    let factor = 1.0 / sum.total;
    //@unroll
    for (var k = 0u; k < TAPS; k++) {
        let counts = i32(first + k) >= range.x && i32(first + k) < range.y;
        let share = power(finite(taps.w[k]) - sum.maximum) * factor;
        out.w[k] = select(Unit(0.0), share, counts);
    }
    return out;
}

//@if LONG
// Over all taps of a row.
fn whole_sum(row: u32, range: vec2<i32>) -> Sum {
    var sum = Sum(Unit(-2e38), Unit(0.0));
    for (var first = 0u; first < params.taps; first += TAPS) {
        sum = with_more(sum, stored_weights(row, first), first, range);
    }
    return sum;
}
//@endif
//@endif

//@if !LONG
// All weights of the row at `row`, for a token whose first tap is at `place`.
fn all_weights(line: Line, row: u32, place: i32) -> Taps {
    let taps = stored_weights(row, 0u);
//@if SOFTMAX
    let range = counted(line, place);
    let sum = with_more(Sum(Unit(-2e38), Unit(0.0)), taps, 0u, range);
    return shares(taps, sum, 0u, range);
//@else
    return taps;
//@endif
}
//@endif

fn activated(sum: Unit) -> Unit {
//@if SILU
    // At -80 the exponential is still finite, and the quotient is as good as 0.
    return sum / (1.0 + exp2(min(-sum, Unit(80.0)) * LOG2_E));
//@else
    return sum;
//@endif
}

//@if PACKED
fn sequence_place(number: u32) -> u32 {
    return cu_seqlens[params.cu_seqlens_at + number * params.cu_seqlens_step];
}
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
    var run: u32;
    var place_in_batch: u32;
    let batch = number / params.units / params.runs;
    if (params.runs_first != 0u) {
        run = number % params.runs;
        place_in_batch = number / params.runs % params.units;
    } else {
        place_in_batch = number % params.units;
        run = number / params.units % params.runs;
    }
    let outer = place_in_batch / params.inner;
    let unit = place_in_batch % params.inner;
    let first = run * params.each;
    let end = min(first + params.each, params.tokens);
    let out_at = params.y_at + batch * params.y_batch + outer * params.y_outer + unit * params.y_unit;
    let row = params.weight_at + batch * params.weight_batch + outer * params.weight_outer;

    var line: Line;
    line.x = params.x_at + batch * params.x_batch + outer * params.x_outer + unit * params.x_unit;
    line.start = 0;
    line.end = i32(params.window);
    let states = outer * params.initial_state_outer + unit * params.initial_state_unit;
    line.initial_state = params.initial_state_at + batch * params.initial_state_batch + states;

//@if BIAS
    let bias_at = params.bias_at + outer * params.bias_outer + unit * params.bias_unit;
//@if CHANNELS4
    let start = Unit(
        f32(bias[bias_at]),
        f32(bias[bias_at + params.bias_lane]),
        f32(bias[bias_at + 2u * params.bias_lane]),
        f32(bias[bias_at + 3u * params.bias_lane]),
    );
//@else
    let start = f32(bias[bias_at]);
//@endif
//@else
    let start = Unit(0.0);
//@endif

//@if LONG
//@if !DYNAMIC
//@if SOFTMAX
    let range = counted(line, 0);
    let sum = whole_sum(row, range);
//@endif
//@endif
//@else
//@if !DYNAMIC
    let taps = all_weights(line, row, 0);
//@endif
    // The inputs under the taps of the token before.
    var recent: array<Unit, TAPS>;
//@if !PACKED
    //@unroll
    for (var k = 0u; k < TAPS - 1u; k++) {
        recent[k + 1u] = input(line, i32(params.before + first + k) - i32(params.padding));
    }
//@endif
//@endif

//@if PACKED
    var reached = first;
    while (reached < end) {
        // The last sequence that begins at or before the token.
        let token = params.window_start + params.before + reached;
        var low = 0u;
        var high = params.sequences;
        while (low + 1u < high) {
            let middle = (low + high) / 2u;
            if (sequence_place(middle) <= token) {
                low = middle;
            } else {
                high = middle;
            }
        }
        let begin = sequence_place(low);
        let next = sequence_place(low + 1u);
        let alive = begin <= token && token < next;
        line.start = i32(begin) - i32(params.window_start);
        line.end = min(i32(min(next, 0x7fffffffu)) - i32(params.window_start), i32(params.window));
        line.initial_state = params.initial_state_at + low * params.initial_state_batch + states;
        // As far as the run and the sequence go; past the last sequence, as far as the run goes.
        let stop = select(end, min(end, next - params.window_start - params.before), alive);
//@if !LONG
        //@unroll
        for (var k = 0u; k < TAPS - 1u; k++) {
            recent[k + 1u] = input(line, i32(params.before + reached + k) - i32(params.padding));
        }
//@endif
//@else
    let reached = first;
    let stop = end;
//@endif
    for (var t = reached; t < stop; t += BLOCK) {
        // Where the first tap of the first token is.
        let place = i32(params.before + t) - i32(params.padding);
        var out: array<Unit, BLOCK>;
//@if LONG
        //@unroll
        for (var i = 0u; i < BLOCK; i++) {
            out[i] = start;
        }
//@if DYNAMIC
//@if SOFTMAX
        var sums: array<Sum, BLOCK>;
        //@unroll
        for (var i = 0u; i < BLOCK; i++) {
            let token_row = row + min(t + i, stop - 1u) * params.weight_token;
            sums[i] = whole_sum(token_row, counted(line, place + i32(i)));
        }
//@endif
//@endif
        var under: array<Unit, BLOCK + TAPS - 1u>;
        //@unroll
        for (var i = 0u; i < BLOCK - 1u; i++) {
            under[i] = input(line, place + i32(i));
        }
        for (var tap = 0u; tap < params.taps; tap += TAPS) {
            //@unroll
            for (var k = 0u; k < TAPS; k++) {
                under[BLOCK - 1u + k] = input(line, place + i32(tap + BLOCK - 1u + k));
            }
//@if !DYNAMIC
            var taps = stored_weights(row, tap);
//@if SOFTMAX
            taps = shares(taps, sum, tap, range);
//@endif
//@endif
            //@unroll
            for (var i = 0u; i < BLOCK; i++) {
//@if DYNAMIC
                var taps = stored_weights(row + min(t + i, stop - 1u) * params.weight_token, tap);
//@if SOFTMAX
                taps = shares(taps, sums[i], tap, counted(line, place + i32(i)));
//@endif
//@endif
                var more = Unit(0.0);
                //@unroll
                for (var k = 0u; k < TAPS; k++) {
//@if WEIGHT4
                    more = fma(under[i + k], taps.w[k], more);
//@else
                    // Past the last tap are later inputs, which no token may see.
                    let added = fma(under[i + k], taps.w[k], more);
                    more = select(more, added, tap + k < params.taps);
//@endif
                }
                out[i] += more;
            }
            //@unroll
            for (var i = 0u; i < BLOCK - 1u; i++) {
                under[i] = under[i + TAPS];
            }
        }
        //@unroll
        for (var i = 0u; i < BLOCK; i++) {
            out[i] = activated(out[i]);
        }
//@else
        var fresh: array<Unit, BLOCK>;
//@if TOKENS4
        //@unroll
        for (var q = 0u; q < BLOCK / 4u; q++) {
            let four = vec4<f32>(x[(line.x + params.before + t) / 4u + q]);
            fresh[4u * q] = four.x;
            fresh[4u * q + 1u] = four.y;
            fresh[4u * q + 2u] = four.z;
            fresh[4u * q + 3u] = four.w;
        }
//@else
        //@unroll
        for (var i = 0u; i < BLOCK; i++) {
//@if AHEAD
            fresh[i] = input(line, place + i32(TAPS - 1u + i));
//@else
            fresh[i] = Unit(x[(line.x + (params.before + min(t + i, stop - 1u)) * params.x_token) / WIDTH]);
//@endif
        }
//@endif
        //@unroll
        for (var i = 0u; i < BLOCK; i++) {
//@if DYNAMIC
            let token_row = row + min(t + i, stop - 1u) * params.weight_token;
            let taps = all_weights(line, token_row, place + i32(i));
//@endif
            //@unroll
            for (var k = 0u; k < TAPS - 1u; k++) {
                recent[k] = recent[k + 1u];
            }
            recent[TAPS - 1u] = fresh[i];
            var sum = start;
            //@unroll
            for (var k = 0u; k < TAPS; k++) {
                sum = fma(recent[k], taps.w[k], sum);
            }
            out[i] = activated(sum);
        }
//@endif

//@if PACKED
        if (!alive) {
            //@unroll
            for (var i = 0u; i < BLOCK; i++) {
                out[i] = Unit(0.0);
            }
        }
//@endif
//@if TOKENS4
        //@unroll
        for (var q = 0u; q < BLOCK / 4u; q++) {
            let four = vec4<f32>(out[4u * q], out[4u * q + 1u], out[4u * q + 2u], out[4u * q + 3u]);
            y[(out_at + t) / 4u + q] = Stored(four);
        }
//@else
        //@unroll
        for (var i = 0u; i < BLOCK; i++) {
            if (t + i < stop) {
                y[(out_at + (t + i) * params.y_token) / WIDTH] = Stored(out[i]);
            }
        }
//@endif
    }
//@if PACKED
        reached = stop;
    }
//@endif

//@if FINAL
    var last: array<Unit, TAPS>;
    //@unroll
    for (var k = 0u; k < TAPS - 1u; k++) {
        last[k] = input(line, line.end - i32(TAPS - 1u) + i32(k));
    }
    let final_at = params.final_state_at + batch * params.final_state_batch
        + outer * params.final_state_outer + unit * params.final_state_unit;
    //@unroll
    for (var k = 0u; k < TAPS - 1u; k++) {
//@if CHANNELS4
        //@unroll
        for (var lane = 0u; lane < 4u; lane++) {
            let at = final_at + k * params.final_state_tap + lane * params.final_state_lane;
            final_state[at] = Scalar(last[k][lane]);
        }
//@else
        final_state[final_at + k * params.final_state_tap] = Scalar(last[k]);
//@endif
    }
//@endif
}
