// Scans along the sequence with a state that is carried on: every channel for itself.
//
// Formula:   SUM: h_t = exp(g_t) h_{t-1} + x_t, o = h. Otherwise m_t = max(m_{t-1}, x_t) and
//            u_t = u_{t-1} exp(m_{t-1} - m_t) + exp(x_t - m_t); without VALUES o = z = m + log u, the weight is
//            exp(x_t - z_t), the log decay z_{t-1} - z_t; with VALUES w as u, each term times v_t, and o = w / u; with
//            STEP w_t = w_{t-1} + exp(x_t - m_t) / u_t v_t, and o = w. GATE: o times sigmoid(gate).
// Grid:      one invocation per (WIDTH channels; head; segment; batch entry or sequence), channels fastest.
// Workgroup: 64 invocations.
// Memory:    none.
//
// Phases: APPLY walks over a segment from its start, and writes what is asked for; where there are several
// (SPLIT), its start is in scratch. Before that, REDUCE leaves what a segment alone makes of nothing, and
// scan_join makes starts of these; with STEP this is done for m and u first, then (SUMS) for w, which depends on the
// u of then. SPREAD writes o = w / u of the whole sequence to all tokens, CLEAR zeros to those past the last sequence.

//@import grid
//@import scan_state
//@import scan_slots

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if F16_DECAY
enable f16;
alias DecayScalar = f16;
//@else
alias DecayScalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
alias DecayStored = vec4<DecayScalar>;
//@else
alias Stored = Scalar;
alias DecayStored = DecayScalar;
//@endif

const WORKGROUP: u32 = 64u; //@variant
// Tokens that are loaded at once.
const BLOCK: u32 = 8u; //@variant

struct Params {
    invocations: u32,
    units: u32,             // of channels, WIDTH each
    heads: u32,
    segments: u32,          // of each batch entry or sequence, in this dispatch
    last_segment: u32,      // of those of this window; sequences end where they say
    segment_length: u32,
    length: u32,            // tokens in this window
    rows: u32,              // units x heads x batch entries or sequences: of a part of a slot
    start_slot: u32,        // of segment 0
    carry_slot: u32,        // where the state after this window goes
    carries: u32,           // whether another window follows
    maxima: u32,            // whether what the channels of a head share is written here (PER_HEAD)
    channel_start: u32,     // of the first channel here, in the states
    entry_start: u32,       // of the first sequence here
    sequences: u32,
    scores_at: u32,         // of scores in scratch, [batch, heads, length]
    minus_infinity: f32,
    x_at: u32, x_batch: u32, x_head: u32, x_token: u32, x_channel: u32,
    decay_at: u32, decay_batch: u32, decay_head: u32, decay_token: u32, decay_channel: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_token: u32, v_channel: u32,
    gate_at: u32, gate_batch: u32, gate_head: u32, gate_token: u32, gate_channel: u32,
    o_at: u32, o_batch: u32, o_head: u32, o_token: u32, o_channel: u32,
    log_decay_at: u32, log_decay_batch: u32, log_decay_head: u32, log_decay_token: u32, log_decay_channel: u32,
    weights_at: u32, weights_batch: u32, weights_head: u32, weights_token: u32, weights_channel: u32,
    states_at: u32, states_batch: u32, states_head: u32, states_token: u32, states_part: u32, states_channel: u32,
    initial_at: u32, initial_batch: u32, initial_head: u32, initial_part: u32, initial_channel: u32,
    final_at: u32, final_batch: u32, final_head: u32, final_part: u32, final_channel: u32,
    cu_at: u32, cu_step: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
//@if OUTPUT
@group(0) @binding(1) var<storage, read_write> o: array<Stored>; // [batch, heads, seq, channels]
//@endif
//@if X
//@if PER_HEAD
@group(0) @binding(2) var<storage, read> x: array<Scalar>; // [batch, heads, seq]
//@else
@group(0) @binding(2) var<storage, read> x: array<Stored>; // [batch, heads, seq, channels]
//@endif
//@endif
//@if DECAY
@group(0) @binding(3) var<storage, read> decay: array<DecayStored>; // [batch, heads, seq, channels]
//@endif
//@if V
@group(0) @binding(4) var<storage, read> v: array<Stored>; // [batch, heads, seq, channels]
//@endif
//@if GATE
@group(0) @binding(5) var<storage, read> gate: array<Stored>; // [batch, heads, seq, channels]
//@endif
//@if LOG_DECAY
@group(0) @binding(6) var<storage, read_write> log_decay: array<DecayStored>; // [batch, heads, seq, channels]
//@endif
//@if WEIGHTS
@group(0) @binding(7) var<storage, read_write> weights: array<Stored>; // [batch, heads, seq, channels]
//@endif
//@if STATES
@group(0) @binding(8) var<storage, read_write> states: array<f32>; // [batch, heads, seq, state]
//@endif
//@if INITIAL
//@if !IN_PLACE
@group(0) @binding(9) var<storage, read> initial_state: array<f32>; // [batch or sequences, heads, state]
//@endif
//@endif
//@if FINAL
@group(0) @binding(10) var<storage, read_write> final_state: array<f32>; // [batch or sequences, heads, state]
//@endif
//@if SPLIT
@group(0) @binding(11) var<storage, read_write> scratch: array<Unit>; // [slots, parts, rows], then scores
//@endif
//@if PACKED
@group(0) @binding(12) var<storage, read> cu_seqlens: array<u32>; // [sequences + 1]
//@endif

// Where the first token's channels of this invocation lie in each tensor.
struct Row {
    x: u32,
    decay: u32,
    v: u32,
    gate: u32,
    o: u32,
    log_decay: u32,
    weights: u32,
    states: u32,
    head: u32,
    channel: u32,
}

fn row_of(batch: u32, head: u32, channel: u32) -> Row {
    return Row(
//@if PER_HEAD
        params.x_at + batch * params.x_batch + head * params.x_head,
//@else
        params.x_at + batch * params.x_batch + head * params.x_head + channel * params.x_channel,
//@endif
        params.decay_at + batch * params.decay_batch + head * params.decay_head + channel * params.decay_channel,
        params.v_at + batch * params.v_batch + head * params.v_head + channel * params.v_channel,
        params.gate_at + batch * params.gate_batch + head * params.gate_head + channel * params.gate_channel,
        params.o_at + batch * params.o_batch + head * params.o_head + channel * params.o_channel,
        params.log_decay_at + batch * params.log_decay_batch + head * params.log_decay_head
            + channel * params.log_decay_channel,
        params.weights_at + batch * params.weights_batch + head * params.weights_head
            + channel * params.weights_channel,
        params.states_at + batch * params.states_batch + head * params.states_head,
        params.scores_at + (batch * params.heads + head) * params.length,
        channel,
    );
}

//@if STATES
fn store_state(part: u32, base: u32, channel: u32, value: Unit) {
    let at = part_at(base, part, channel, params.states_part, params.states_channel);
//@if VEC4
    let step = channel_step_of(part, params.states_channel);
    //@unroll
    for (var i = 0u; i < 4u; i++) {
        states[at + i * step] = value[i];
    }
//@else
    states[at] = value;
//@endif
}
//@endif

//@if GATE
fn gated(value: Unit, row: Row, t: u32) -> Unit {
    let g = Unit(gate[(row.gate + t * params.gate_token) / WIDTH]);
    // Of the size alone, so that no exponential overflows.
    let e = exp2(-LOG2_E * min(abs(g), Unit(FAR)));
    return value * select(Unit(1.0), e, g < Unit(0.0)) / (1.0 + e);
}
//@else
fn gated(value: Unit, row: Row, t: u32) -> Unit {
    return value;
}
//@endif

//@if !SUM
// m as a caller sees it.
fn maximum_of(state: State) -> Unit {
    return select(state.m, Unit(params.minus_infinity), state.u == Unit(0.0));
}

// value / u, or 0 where there is nothing.
fn over(value: Unit, u: Unit) -> Unit {
    return value / select(u, Unit(1.0), u == Unit(0.0));
}

// m + log u, or minus infinity where there is nothing.
fn log_sum(state: State) -> Unit {
    let z = fma(Unit(LN_2), log2(max(state.u, Unit(1e-37))), state.m);
    return select(z, Unit(params.minus_infinity), state.u == Unit(0.0));
}
//@endif

//@if LOG_DECAY
// z_before - z_after, where the token between them has this weight.
fn log_decay_of(before: State, after: State, share: Unit) -> Unit {
    // log(1 - share) of a small share: the series of 2 artanh.
    let y = share / (Unit(2.0) - share);
    let y2 = y * y;
    let series = fma(y2, fma(y2, fma(y2, fma(y2, fma(y2, fma(y2, Unit(1.0 / 13.0), Unit(1.0 / 11.0)), Unit(1.0 / 9.0)),
        Unit(1.0 / 7.0)), Unit(1.0 / 5.0)), Unit(1.0 / 3.0)), Unit(1.0));
    let near = -2.0 * y * series;
    let some = before.u > Unit(0.0);
    let ratio = select(Unit(1.0), before.u, some) / select(Unit(1.0), after.u, some);
    let far = (select(after.m, before.m, some) - after.m) + LN_2 * log2(ratio);
    return select(Unit(0.0), select(far, near, share < Unit(0.5)), some);
}
//@endif

//@if FINAL
fn store_final(part: u32, base: u32, channel: u32, value: Unit) {
    let at = part_at(base, part, channel, params.final_part, params.final_channel);
//@if VEC4
    let step = channel_step_of(part, params.final_channel);
    //@unroll
    for (var i = 0u; i < 4u; i++) {
        final_state[at + i * step] = value[i];
    }
//@else
    final_state[at] = value;
//@endif
}

fn write_final(entry: u32, head: u32, channel: u32, state: State) {
    let base = params.final_at + entry * params.final_batch + head * params.final_head;
    let place = params.channel_start + channel;
//@if SUM
    store_final(0u, base, place, state.h);
//@else
//@if VALUES
//@if PER_HEAD
    if (params.maxima == 1u && channel == 0u) {
        store_final(0u, base, place, maximum_of(state));
        store_final(1u, base, place, state.u);
    }
//@else
    store_final(0u, base, place, maximum_of(state));
    store_final(1u, base, place, state.u);
//@endif
    store_final(2u, base, place, state.w);
//@else
    store_final(0u, base, place, log_sum(state));
//@endif
//@endif
}
//@endif

//@if WALK
// x at a token.
fn load_x(row: Row, t: u32) -> Unit {
//@if X
//@if PER_HEAD
    return Unit(f32(x[row.x + t * params.x_token]));
//@else
    return Unit(x[(row.x + t * params.x_token) / WIDTH]);
//@endif
//@else
    let at = row.head + t;
//@if VEC4
    return Unit(scratch[at / 4u][at % 4u]);
//@else
    return scratch[at];
//@endif
//@endif
}

// The decay or the value of a token, where the scan has one.
fn load_other(row: Row, t: u32) -> Unit {
//@if DECAY
    return Unit(decay[(row.decay + t * params.decay_token) / WIDTH]);
//@else
//@if V
    return Unit(v[(row.v + t * params.v_token) / WIDTH]);
//@else
    return Unit(0.0);
//@endif
//@endif
}

struct Advance {
    state: State,
    term: Unit,     // exp(x - m)
}

// The state after a token.
fn advance(before: State, x_t: Unit, other: Unit) -> Advance {
//@if SUM
//@if DECAY
    let e = max(other * LOG2_E, Unit(-200.0));
    // A decay that f32 cannot tell from 0 is 0.
    let factor = select(exp2(e), Unit(0.0), e < Unit(-126.0));
    return Advance(State(before.a * factor, fma(factor, before.h, x_t)), x_t);
//@else
    return Advance(State(before.a, before.h + x_t), x_t);
//@endif
//@else
    let score = select(x_t, Unit(FLOOR), is_minus_infinity(x_t));
    let s = shares(before.m, score);
    let term = select(s.b, Unit(0.0), score <= Unit(HIDDEN));
    let m = max(before.m, score);
    let u = fma(before.u, s.a, term);
//@if VALUES
//@if STEP
    return Advance(State(m, u, before.w + over(term, u) * other), term);
//@else
    return Advance(State(m, u, fma(before.w, s.a, term * other)), term);
//@endif
//@else
    return Advance(State(m, u), term);
//@endif
//@endif
}

// Writes what is asked for of a token.
fn write(row: Row, t: u32, before: State, now: Advance) {
    let after = now.state;
//@if OUTPUT
    let o_at = (row.o + t * params.o_token) / WIDTH;
//@if SUM
    o[o_at] = Stored(gated(after.h, row, t));
//@else
//@if VALUES
//@if STEP
    o[o_at] = Stored(gated(after.w, row, t));
//@else
    o[o_at] = Stored(gated(over(after.w, after.u), row, t));
//@endif
//@else
    o[o_at] = Stored(log_sum(after));
//@endif
//@endif
//@endif
//@if WEIGHTS
    weights[(row.weights + t * params.weights_token) / WIDTH] = Stored(over(now.term, after.u));
//@endif
//@if LOG_DECAY
    log_decay[(row.log_decay + t * params.log_decay_token) / WIDTH] =
        DecayStored(log_decay_of(before, after, over(now.term, after.u)));
//@endif
//@if STATES
    let base = row.states + t * params.states_token;
    let place = params.channel_start + row.channel;
//@if PER_HEAD
    if (params.maxima == 1u && row.channel == 0u) {
        store_state(0u, base, place, maximum_of(after));
        store_state(1u, base, place, after.u);
    }
//@else
    store_state(0u, base, place, maximum_of(after));
    store_state(1u, base, place, after.u);
//@endif
    store_state(2u, base, place, after.w);
//@endif
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
    let unit = number % params.units;
    var rest = number / params.units;
    let head = rest % params.heads;
    rest /= params.heads;
    let segment = rest % params.segments;
    let entry = rest / params.segments;
    let channel = unit * WIDTH;
    let slot_row = (entry * params.heads + head) * params.units + unit;

//@if PACKED
    let cu = params.cu_at + (params.entry_start + entry) * params.cu_step;
//@if CLEAR
    let begin = 0u;
    let stop = params.length;
    let cleared = min(cu_seqlens[params.cu_at + params.sequences * params.cu_step], params.length);
//@else
    let begin = min(cu_seqlens[cu], params.length);
    let stop = clamp(cu_seqlens[cu + params.cu_step], begin, params.length);
//@endif
    let row = row_of(0u, head, channel);
    let first = min(begin + segment * params.segment_length, stop);
    let end = min(first + params.segment_length, stop);
    let last_segment = (max(stop - begin, 1u) - 1u) / params.segment_length;
//@else
    let row = row_of(entry, head, channel);
    let first = segment * params.segment_length;
    let end = min(first + params.segment_length, params.length);
    let last_segment = params.last_segment;
//@endif

//@if CLEAR
    for (var t = max(first, cleared); t < end; t++) {
//@if OUTPUT
        o[(row.o + t * params.o_token) / WIDTH] = Stored(Unit(0.0));
//@endif
//@if WEIGHTS
        weights[(row.weights + t * params.weights_token) / WIDTH] = Stored(Unit(0.0));
//@endif
//@if LOG_DECAY
        log_decay[(row.log_decay + t * params.log_decay_token) / WIDTH] = DecayStored(Unit(0.0));
//@endif
//@if STATES
        let base = row.states + t * params.states_token;
        //@unroll
        for (var part = 0u; part < PARTS; part++) {
            store_state(part, base, params.channel_start + channel, Unit(0.0));
        }
//@endif
    }
//@endif

//@if SPREAD
    let state = load_slot(params.start_slot, slot_row);
//@if OUTPUT
    let value = over(state.w, state.u);
    for (var t = first; t < end; t++) {
        o[(row.o + t * params.o_token) / WIDTH] = Stored(gated(value, row, t));
    }
//@endif
//@if FINAL
    if (segment == 0u && params.carries == 0u) {
        write_final(entry, head, channel, state);
    }
//@endif
//@endif

//@if WALK
//@if APPLY
//@if SPLIT
    var state = load_slot(params.start_slot + segment, slot_row);
//@else
//@if INITIAL
    var state = initial(
        params.initial_at + entry * params.initial_batch + head * params.initial_head, params.channel_start + channel);
//@else
    var state = nothing();
//@endif
//@endif
//@else
    var state = nothing();
//@if SUMS
    let start = load_slot(params.start_slot + segment, slot_row);
    state.m = start.m;
    state.u = start.u;
//@endif
//@endif

    var t = first;
    for (; t + BLOCK <= end; t += BLOCK) {
        var xs: array<Unit, BLOCK>;
        var others: array<Unit, BLOCK>;
        //@unroll
        for (var b = 0u; b < BLOCK; b++) {
            xs[b] = load_x(row, t + b);
            others[b] = load_other(row, t + b);
        }
        //@unroll
        for (var b = 0u; b < BLOCK; b++) {
            let now = advance(state, xs[b], others[b]);
//@if APPLY
            write(row, t + b, state, now);
//@endif
            state = now.state;
        }
    }
    for (; t < end; t++) {
        let now = advance(state, load_x(row, t), load_other(row, t));
//@if APPLY
        write(row, t, state, now);
//@endif
        state = now.state;
    }

//@if APPLY
    if (segment == last_segment) {
        if (params.carries == 0u) {
//@if FINAL
            write_final(entry, head, channel, state);
//@endif
        } else {
//@if SPLIT
            store_slot(params.carry_slot, slot_row, state);
//@endif
        }
    }
//@else
//@if SUMS
    // The slot keeps the m and u of its start.
    state.m = start.m;
    state.u = start.u;
//@endif
    store_slot(params.start_slot + segment, slot_row, state);
//@endif
//@endif
}
