// Tensors of linear attention's walk: parameters, bindings, and what a lane loads and stores.
//
//@import features

const K4: u32 = 16u; //@variant
const PARTS: u32 = 1u; //@variant
const ROWS4: u32 = K4 * PARTS;

// Numbers of the tensors with rows like those of keys, as far as the variant has them.
const ROW_Q: u32 = 0u; //@variant
const ROW_K: u32 = 1u; //@variant
const ROW_READ: u32 = 2u; //@variant
const ROW_WRITE: u32 = 3u; //@variant
const ROW_DECAY: u32 = 4u; //@variant

// Less than any number that a key may hold; also the largest of no keys.
const LOWEST: f32 = -3e38;

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if F16_GATES
alias Gate = f16;
//@else
alias Gate = f32;
//@endif
//@if F16_STATE
enable f16;
alias StateScalar = f16;
//@else
alias StateScalar = f32;
//@endif
//@if VEC4_KEYS
alias KeyStored = vec4<Scalar>;
alias KeyGate = vec4<Gate>;
alias KeyPart = vec4<f32>;
//@else
alias KeyStored = Scalar;
alias KeyGate = Gate;
alias KeyPart = f32;
//@endif
//@if VEC4_VALUES
alias ValueStored = vec4<Scalar>;
alias ValueGate = vec4<Gate>;
alias ValuePart = vec4<f32>;
//@else
alias ValueStored = Scalar;
alias ValueGate = Gate;
alias ValuePart = f32;
//@endif
//@if VEC4_STATE
alias StateStored = vec4<StateScalar>;
alias StatePart = vec4<f32>;
//@else
alias StateStored = StateScalar;
alias StatePart = f32;
//@endif
// What a lane holds of a row of the state.
//@if BROADCAST
alias Col = vec4<f32>;
const WIDTH: u32 = 4u;
//@else
alias Col = f32;
const WIDTH: u32 = 1u;
//@endif

struct Params {
    tasks: u32,
    blocks: u32,            // of value columns
    heads: u32,             // of the output; of the state where there is no output
    segments: u32,
    sequences: u32,
    segment_tokens: u32,
    token_start: u32,       // tokens of the slice, among those of the batch entry
    token_end: u32,
    tokens: u32,            // of the batch entry
    updates: u32,           // per token
    key_dim: u32,
    value_dim: u32,
    group: u32,             // heads that share a state
    q_share: u32,           // heads that share a query
    k_share: u32,           // states that share a key
    slot_heads: u32,        // states in scratch
    slot_group: u32,        // heads that share one
    slots: u32,             // states in scratch per head
    slot_first: u32,        // that of the first segment
    slot_step: u32,         // from one segment's to the next one's
    giving: u32,            // heads of which the first leaves its state
    slot_size: u32,
    sums_at: u32,           // place in a slot of the sums, one per block
    products_at: u32,       // place of the products of decays
    cosine_length: u32,
    scale: f32,
    eps: f32,
    factor_q: f32,
    factor_k: f32,
    q_at: u32, q_batch: u32, q_head: u32, q_token: u32, q_dim: u32,
    k_at: u32, k_batch: u32, k_head: u32, k_token: u32, k_dim: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_token: u32, v_dim: u32,
    o_at: u32, o_batch: u32, o_head: u32, o_token: u32, o_dim: u32,
    decay_at: u32, decay_batch: u32, decay_head: u32, decay_token: u32, decay_dim: u32,
    beta_at: u32, beta_batch: u32, beta_head: u32, beta_token: u32, beta_dim: u32,
    read_at: u32, read_batch: u32, read_head: u32, read_token: u32, read_dim: u32,
    write_at: u32, write_batch: u32, write_head: u32, write_token: u32, write_dim: u32,
    bonus_at: u32, bonus_head: u32, bonus_dim: u32,
    initial_at: u32, initial_batch: u32, initial_head: u32, initial_row: u32, initial_dim: u32,
    final_at: u32, final_batch: u32, final_head: u32, final_row: u32, final_dim: u32,
    initial_sum_at: u32, initial_sum_batch: u32, initial_sum_head: u32, initial_sum_row: u32,
    final_sum_at: u32, final_sum_batch: u32, final_sum_head: u32, final_sum_row: u32,
    kv_len_at: u32, kv_len_batch: u32,
    cu_at: u32, cu_step: u32,
    scratch_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
//@if OUTPUT
@group(0) @binding(1) var<storage, read> q: array<KeyStored>; // [batch, q_heads, seq, key_dim]
@group(0) @binding(2) var<storage, read_write> o: array<ValueStored>; // [batch, o_heads, seq, value_dim]
//@endif
//@if UPDATE
@group(0) @binding(3) var<storage, read> k: array<KeyStored>; // [batch, k_heads, updates, key_dim]
@group(0) @binding(4) var<storage, read> v: array<ValueStored>; // [batch, state_heads, updates, value_dim]
//@endif
//@if DECAY_HEAD
@group(0) @binding(5) var<storage, read> decay: array<f32>; // [state_heads]
//@endif
//@if DECAY_TOKEN
@group(0) @binding(5) var<storage, read> decay: array<Gate>; // [batch, state_heads, seq]
//@endif
//@if DECAY_KEY
@group(0) @binding(5) var<storage, read> decay: array<KeyGate>; // [batch, state_heads, seq, key_dim]
//@endif
//@if DECAY_VALUE
@group(0) @binding(5) var<storage, read> decay: array<ValueGate>; // [batch, state_heads, seq, value_dim]
//@endif
//@if BETA
@group(0) @binding(6) var<storage, read> beta: array<Gate>; // [batch, state_heads, updates]
//@endif
//@if BETA_VALUE
@group(0) @binding(6) var<storage, read> beta: array<ValueGate>; // [batch, state_heads, updates, value_dim]
//@endif
//@if READ
@group(0) @binding(7) var<storage, read> read_keys: array<KeyStored>; // [batch, k_heads, updates, key_dim]
//@endif
//@if LOW_RANK
@group(0) @binding(8) var<storage, read> write_keys: array<KeyStored>; // [batch, k_heads, updates, key_dim]
//@endif
//@if BONUS
@group(0) @binding(9) var<storage, read> bonus: array<f32>; // [state_heads, key_dim]
//@endif
//@if INITIAL
//@if !IN_PLACE
@group(0) @binding(10) var<storage, read> initial_state: array<StateStored>; // [sequences, state_heads, rows, value_dim]
//@if NORMALISED
@group(0) @binding(11) var<storage, read> initial_sum: array<StateScalar>; // [sequences, state_heads, rows]
//@endif
//@endif
//@endif
//@if BIND_FINAL
@group(0) @binding(12) var<storage, read_write> final_state: array<StateStored>; // [sequences, state_heads, rows, value_dim]
//@endif
//@if BIND_FINAL_SUM
@group(0) @binding(13) var<storage, read_write> final_sum: array<StateScalar>; // [sequences, state_heads, rows]
//@endif
//@if KV_LEN
@group(0) @binding(14) var<storage, read> kv_len: array<u32>; // [batch]
//@endif
//@if PACKED
@group(0) @binding(15) var<storage, read> cu_seqlens: array<u32>; // [sequences + 1]
//@endif
//@if SCRATCH
@group(0) @binding(16) var<storage, read_write> scratch: array<f32>; // [sequences, slot_heads, slot_segments, slot_size]
//@endif

// Four channels, or one, of a tensor with rows like those of keys.
fn key_part(tensor: u32, i: u32) -> KeyPart {
    switch tensor {
//@if OUTPUT
        case ROW_Q: {
            return KeyPart(q[i]);
        }
//@endif
//@if UPDATE
        case ROW_K: {
            return KeyPart(k[i]);
        }
//@endif
//@if READ
        case ROW_READ: {
            return KeyPart(read_keys[i]);
        }
//@endif
//@if LOW_RANK
        case ROW_WRITE: {
            return KeyPart(write_keys[i]);
        }
//@endif
//@if DECAY_KEY
        case ROW_DECAY: {
            return KeyPart(decay[i]);
        }
//@endif
        default: {
            return KeyPart();
        }
    }
}

// Channels 4 * quad to 4 * quad + 3 of the row that starts at `at`; `padding` past the last.
fn key_quad(tensor: u32, at: u32, quad: u32, stride: u32, padding: f32) -> vec4<f32> {
//@if VEC4_KEYS
    return key_part(tensor, at / 4u + quad);
//@else
    var x = vec4<f32>(padding);
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = quad * 4u + c;
        if (d < params.key_dim) {
            x[c] = key_part(tensor, at + d * stride);
        }
    }
    return x;
//@endif
}

const VALUES: u32 = 0u;
const VALUE_BETA: u32 = 1u;
const VALUE_DECAY: u32 = 2u;

// The same for a tensor with rows like those of values.
fn value_part(tensor: u32, i: u32) -> ValuePart {
    switch tensor {
//@if UPDATE
        case VALUES: {
            return ValuePart(v[i]);
        }
//@endif
//@if BETA_VALUE
        case VALUE_BETA: {
            return ValuePart(beta[i]);
        }
//@endif
//@if DECAY_VALUE
        case VALUE_DECAY: {
            return ValuePart(decay[i]);
        }
//@endif
        default: {
            return ValuePart();
        }
    }
}

// What a lane holds of the row that starts at `at`: its columns from `column` on, 0 past the last.
fn value_columns(tensor: u32, at: u32, column: u32, stride: u32) -> Col {
    var x = Col();
    if (column < params.value_dim) {
//@if VEC4_VALUES
        x = value_part(tensor, (at + column) / 4u);
//@else
//@if BROADCAST
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            if (column + c < params.value_dim) {
                x[c] = value_part(tensor, at + (column + c) * stride);
            }
        }
//@else
        x = value_part(tensor, at + column * stride);
//@endif
//@endif
    }
    return x;
}

//@if OUTPUT
fn store_o(at: u32, column: u32, x: Col) {
    if (column < params.value_dim) {
//@if VEC4_VALUES
        o[(at + column) / 4u] = ValueStored(x);
//@else
//@if BROADCAST
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            if (column + c < params.value_dim) {
                o[at + (column + c) * params.o_dim] = Scalar(x[c]);
            }
        }
//@else
        o[at + column * params.o_dim] = Scalar(x);
//@endif
//@endif
    }
}
//@endif

// The factor of a decay g. What float32 cannot hold is 0, so that such a decay clears the state.
fn factor_of(g: f32) -> f32 {
    return select(exp(g), 0.0, g < -87.0);
}

fn factors_of(g: vec4<f32>) -> vec4<f32> {
    return select(exp(g), vec4<f32>(), g < vec4<f32>(-87.0));
}

fn column_factors(g: Col) -> Col {
    return select(exp(g), Col(), g < Col(-87.0));
}

// The channel of row c of quad b, and the row's number in a state; past every channel where it is padding.
fn channel_of(b: u32, c: u32) -> u32 {
    return b % K4 * 4u + c;
}

fn row_of(b: u32, c: u32) -> u32 {
    return b / K4 * params.key_dim + channel_of(b, c);
}

// A query or key of a cosine: rows of sines, then rows of cosines; tokens are counted from 1.
fn turned(x: vec4<f32>, b: u32, place: u32) -> vec4<f32> {
//@if COSINE
    let turn = quarter_turn(place + 1u, params.cosine_length);
    return x * select(turn.y, turn.x, b < K4);
//@else
    return x;
//@endif
}

fn largest(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

// exp(x - top); of what is not there, 0.
fn exp_below(x: vec4<f32>, top: f32) -> vec4<f32> {
    return select(exp(x - top), vec4<f32>(), x == vec4<f32>(LOWEST));
}

fn sum_of(x: vec4<f32>) -> f32 {
    return dot(x, vec4<f32>(1.0));
}

// Where a walk finds the tensors of its sequence and head: the places of their first rows in the slice.
struct Places {
    q: u32,
    k: u32,
    v: u32,
    o: u32,
    decay: u32,
    beta: u32,
    read: u32,
    write: u32,
}

fn places_of(batch: u32, head: u32, state_head: u32) -> Places {
    let key_head = state_head / params.k_share;
    return Places(
        params.q_at + batch * params.q_batch + head / params.q_share * params.q_head,
        params.k_at + batch * params.k_batch + key_head * params.k_head,
        params.v_at + batch * params.v_batch + state_head * params.v_head,
        params.o_at + batch * params.o_batch + head * params.o_head,
        params.decay_at + batch * params.decay_batch + state_head * params.decay_head,
        params.beta_at + batch * params.beta_batch + state_head * params.beta_head,
        params.read_at + batch * params.read_batch + key_head * params.read_head,
        params.write_at + batch * params.write_batch + key_head * params.write_head,
    );
}

// One of a walk's updates.
struct Update {
    number: u32,            // counted from the slice's first token
    row: u32,               // the same, or that of the last one: a row that is there
    token: u32,             // of that row, counted from the slice's first
    place: u32,             // of that token, in its sequence
    there: bool,            // whether it changes the state
    fades: bool,            // whether a decay comes before it
}

fn update_of(number: u32, last: u32, last_valid: u32, start: u32) -> Update {
    let row = min(number, last - 1u);
    let token = row / params.updates;
    let there = number < last_valid;
    return Update(
        number,
        row,
        token,
        token + params.token_start - start,
        there,
        there && number % params.updates == 0u,
    );
}

// The factor of a decay per token; of others, 1.
fn fade_of(at: Places, update: Update) -> f32 {
//@if DECAY_TOKEN
    return select(1.0, factor_of(f32(decay[at.decay + update.token * params.decay_token])), update.fades);
//@else
    return 1.0;
//@endif
}

// The delta rule's beta per update; of others, 1.
fn strength_of(at: Places, update: Update) -> f32 {
//@if BETA
    return f32(beta[at.beta + update.row * params.beta_token]);
//@else
    return 1.0;
//@endif
}

//@if BONUS
fn bonus_quad(state_head: u32, b: u32) -> vec4<f32> {
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (channel_of(b, c) < params.key_dim) {
            x[c] = bonus[params.bonus_at + state_head * params.bonus_head + channel_of(b, c) * params.bonus_dim];
        }
    }
    return x;
}
//@endif

//@if NORMALISED
// `queries` is the sum of a query's channels.
fn guarded_reciprocal(den: f32, queries: f32) -> f32 {
//@if GUARD_KEYS
    let guarded = fma(params.eps, queries, den);
//@else
//@if GUARD_AT_LEAST
    let guarded = max(den, params.eps);
//@else
    let guarded = den + params.eps;
//@endif
//@endif
    return select(1.0 / guarded, 0.0, guarded == 0.0);
}
//@endif

//@if PRODUCTS
fn lane_part(x: Col, c: u32) -> f32 {
//@if BROADCAST
    return x[c];
//@else
    return x;
//@endif
}
//@endif

// Quad b of a row, mapped; padding, and rows that are not there, are 0 (LOWEST, where an exponential comes later).
fn row_quad(tensor: u32, at: Places, update: Update, b: u32) -> vec4<f32> {
    let quad = b % K4;
    let none = vec4<f32>(LOWEST);
    switch tensor {
//@if OUTPUT
        case ROW_Q: {
            let x = key_quad(ROW_Q, at.q + update.token * params.q_token, quad, params.q_dim, LOWEST);
//@if Q_TOP
            return select(params.factor_q * x, none, x == none);
//@else
            return turned(select(map_q(x, params.factor_q, 0.0) * params.scale, vec4<f32>(), x == none), b, update.place);
//@endif
        }
//@endif
//@if UPDATE
        case ROW_K: {
            let x = key_quad(ROW_K, at.k + update.row * params.k_token, quad, params.k_dim, LOWEST);
            let hidden = (x == none) | vec4<bool>(!update.there);
//@if K_TOP
            return select(params.factor_k * x, none, hidden);
//@else
            return turned(select(map_k(x, params.factor_k, 0.0), vec4<f32>(), hidden), b, update.place);
//@endif
        }
//@endif
//@if READ
        case ROW_READ: {
            let x = key_quad(ROW_READ, at.read + update.row * params.read_token, quad, params.read_dim, 0.0);
            return select(vec4<f32>(), x, update.there);
        }
//@endif
//@if LOW_RANK
        case ROW_WRITE: {
            let x = key_quad(ROW_WRITE, at.write + update.row * params.write_token, quad, params.write_dim, 0.0);
            return select(vec4<f32>(), x, update.there);
        }
//@endif
//@if DECAY_KEY
        case ROW_DECAY: {
            let g = key_quad(ROW_DECAY, at.decay + update.token * params.decay_token, quad, params.decay_dim, 0.0);
            return select(vec4<f32>(1.0), factors_of(g), update.fades);
        }
//@endif
        default: {
            return vec4<f32>();
        }
    }
}

// Where the state and the sum of a sequence and head lie: in the caller's tensors, or in a slot of scratch.
struct StatePlace {
    first: u32,
    last: u32,
    first_sum: u32,
    last_sum: u32,
    slot: u32,
    slot_sum: u32,
}

fn state_place(sequence: u32, state_head: u32, slot: u32, block: u32) -> StatePlace {
    let at = params.scratch_at + slot * params.slot_size;
    return StatePlace(
        params.initial_at + sequence * params.initial_batch + state_head * params.initial_head,
        params.final_at + sequence * params.final_batch + state_head * params.final_head,
        params.initial_sum_at + sequence * params.initial_sum_batch + state_head * params.initial_sum_head,
        params.final_sum_at + sequence * params.final_sum_batch + state_head * params.final_sum_head,
        at,
        at + params.sums_at + block * (PARTS * params.key_dim + 1u),
    );
}

//@if INITIAL
fn initial_part(i: u32) -> StatePart {
//@if IN_PLACE
    return StatePart(final_state[i]);
//@else
    return StatePart(initial_state[i]);
//@endif
}
//@endif

//@if TAKE
// What a lane holds of a row of the state before the first token.
fn take_state(at: StatePlace, row: u32, column: u32) -> Col {
    var x = Col();
//@if INITIAL
    let i = at.first + row * params.initial_row + column * params.initial_dim;
//@if VEC4_STATE
    x = initial_part(i / 4u);
//@else
//@if BROADCAST
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (column + c < params.value_dim) {
            x[c] = initial_part(i + c * params.initial_dim);
        }
    }
//@else
    x = initial_part(i);
//@endif
//@endif
//@else
    let i = at.slot + row * params.value_dim + column;
//@if BROADCAST
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (column + c < params.value_dim) {
            x[c] = scratch[i + c];
        }
    }
//@else
    x = scratch[i];
//@endif
//@endif
    return x;
}

//@if NORMALISED
fn take_sum(at: StatePlace, row: u32) -> f32 {
//@if INITIAL
//@if IN_PLACE
    return f32(final_sum[at.first_sum + row * params.initial_sum_row]);
//@else
    return f32(initial_sum[at.first_sum + row * params.initial_sum_row]);
//@endif
//@else
    return scratch[at.slot_sum + row];
//@endif
}
//@endif
//@endif

//@if GIVE
// Leaves what a lane holds of a row of the state after the last token.
fn give_state(at: StatePlace, row: u32, column: u32, x: Col) {
//@if FINAL
    let i = at.last + row * params.final_row + column * params.final_dim;
//@if VEC4_STATE
    final_state[i / 4u] = StateStored(x);
//@else
//@if BROADCAST
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (column + c < params.value_dim) {
            final_state[i + c * params.final_dim] = StateScalar(x[c]);
        }
    }
//@else
    final_state[i] = StateScalar(x);
//@endif
//@endif
//@else
    let i = at.slot + row * params.value_dim + column;
//@if BROADCAST
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (column + c < params.value_dim) {
            scratch[i + c] = x[c];
        }
    }
//@else
    scratch[i] = x;
//@endif
//@endif
}

fn give_sum(at: StatePlace, row: u32, x: f32) {
//@if FINAL
//@if FINAL_SUM
    final_sum[at.last_sum + row * params.final_sum_row] = StateScalar(x);
//@endif
//@else
    scratch[at.slot_sum + row] = x;
//@endif
}
//@endif
