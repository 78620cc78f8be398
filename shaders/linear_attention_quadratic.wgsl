// Linear attention, quadratic schedule: all pairs of query and key, as the formula has them. No subgroups needed.
// With LOCAL, the attention inside groups of tokens that is added to a linear one.
//
// Formula:   o_i = sum_j w_ij v_j / den_i over the keys j that i sees, w_ij = similarity(scale map(q_i) . map(k_j))
//            times the decays of the tokens after j. LOCAL: o_i = mix_o o_i + mix_local sum_j w_ij v_j.
// Grid:      one workgroup per (batch, head of o, tile of ROWS queries). Keys are visited from the last to the first,
//            so that decays add up; dispatches over ranges of keys follow one another in that order, and hand their
//            sums on in scratch.
// Workgroup: THREADS invocations as 8 x 8. Invocation (y, x) owns the weights of rows 4y.. and keys x, x + 8, ..,
//            and four dims of each chunk of the output of these rows.
// Memory:    chunks of q and of k or v in vectors of four, the weights, a column of row reductions, and numbers of
//            each row and key. Rows are padded against bank conflicts. 15 KiB.

//@import grid
//@import features

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

struct Params {
    tiles: u32,             // workgroups with work
    heads: u32,             // heads of o, in this slice
    rows: u32,              // queries in this slice
    keys: u32,              // keys in this slice
    row_start: u32,
    key_start: u32,
    tokens: u32,            // tokens of keys in the tensor
    updates: u32,           // keys per token
    key_dim: u32,
    value_dim: u32,
    q_share: u32,           // heads of o per head of q
    k_share: u32,           // heads of o per head of k
    v_share: u32,           // heads of o per head of v
    first: u32,             // 1 in the first dispatch over these queries
    last: u32,              // 1 in the last
    reach: u32,             // tokens per bucket or group
    length: u32,            // tokens of a quarter turn
    sequences: u32,         // packed sequences
    scale: f32,
    factor_q: f32,
    factor_k: f32,
    eps: f32,
    mix_o: f32,
    mix_local: f32,
    q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
    k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
    o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
    decay_at: u32, decay_batch: u32, decay_head: u32, decay_token: u32,
    bonus_at: u32, bonus_head: u32, bonus_dim: u32,
    bias_at: u32, bias_head: u32, bias_row: u32, bias_key: u32,
    kv_len_at: u32, kv_len_batch: u32,
    cu_seqlens_at: u32, cu_seqlens_sequence: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
//@if OWN_Q
@group(0) @binding(1) var<storage, read> local_q: array<Scalar>; // [batch, q_heads, seq, local_dim]
//@else
@group(0) @binding(1) var<storage, read> q: array<Scalar>; // [batch, q_heads, seq, key_dim]
//@endif
//@if OWN_K
@group(0) @binding(2) var<storage, read> local_k: array<Scalar>; // [batch, k_heads, updates, local_dim]
//@else
@group(0) @binding(2) var<storage, read> k: array<Scalar>; // [batch, k_heads, updates, key_dim]
//@endif
@group(0) @binding(3) var<storage, read> v: array<Scalar>; // [batch, state_heads, updates, value_dim]
@group(0) @binding(4) var<storage, read_write> o: array<Scalar>; // [batch, heads, seq, value_dim]
//@if DECAY_HEAD
@group(0) @binding(5) var<storage, read> decay: array<f32>; // [state_heads]
//@endif
//@if DECAY_TOKEN
//@if DECAY_F16
@group(0) @binding(5) var<storage, read> decay: array<f16>; // [batch, state_heads, tokens]
//@else
@group(0) @binding(5) var<storage, read> decay: array<f32>; // [batch, state_heads, tokens]
//@endif
//@endif
//@if BONUS
@group(0) @binding(6) var<storage, read> bonus: array<f32>; // [state_heads, key_dim]
//@endif
//@if BIAS
@group(0) @binding(6) var<storage, read> bias: array<f32>; // [heads, group, group]
//@endif
//@if KV_LEN
@group(0) @binding(7) var<storage, read> kv_len: array<u32>; // [batch]
//@endif
//@if PACKED
@group(0) @binding(7) var<storage, read> cu_seqlens: array<u32>; // [sequences + 1]
//@endif
//@if SCRATCH
@group(0) @binding(8) var<storage, read_write> scratch: array<f32>; // [batch, heads, rows, value_dim + 3]
//@endif

const V_CHUNKS: u32 = 2u; //@variant
const ROWS: u32 = 32u;
const KEYS: u32 = 32u;
const CHUNK: u32 = 32u;
const VECTORS: u32 = CHUNK / 4u;
const THREADS: u32 = 64u;
const LOADS: u32 = ROWS * VECTORS / THREADS;
const PITCH: u32 = VECTORS + 1u;
const WEIGHTS_PITCH: u32 = KEYS + 1u;
// Stands for the largest exponent where there is none yet.
const NONE_YET: f32 = -3e38;
// What lies below counts as a factor of 0; sums of so many stay finite.
const LEAST_DECAY: f32 = -200.0;
const CLEARED: f32 = -104.0;

// How a pair counts.
const PAIR: u32 = 0u; //@variant
const PAIR_PRODUCT: u32 = 0u;
const PAIR_TAYLOR: u32 = 1u;
const PAIR_SQUARE: u32 = 2u;
const PAIR_COSINE: u32 = 3u;
const PAIR_SQUARED_RELU: u32 = 4u;
const PAIR_LAPLACE: u32 = 5u;
const PAIR_SOFTMAX: u32 = 6u;

// Which tokens a query sees.
const REACH: u32 = 0u; //@variant
const REACH_CAUSAL: u32 = 0u;
const REACH_BEFORE: u32 = 1u;
const REACH_BUCKET: u32 = 2u;
const REACH_ALL: u32 = 3u;
const REACH_GROUP: u32 = 4u;
const REACH_GROUP_CAUSAL: u32 = 5u;

const GUARD: u32 = 0u; //@variant
const GUARD_ADD: u32 = 0u;
const GUARD_AT_LEAST: u32 = 1u;
const GUARD_KEYS: u32 = 2u;

var<workgroup> left: array<vec4<f32>, ROWS * PITCH>;       // q chunk, [row, vector]
var<workgroup> right: array<vec4<f32>, KEYS * PITCH>;      // k or v chunk, [key, vector]
var<workgroup> weights: array<f32, ROWS * WEIGHTS_PITCH>;  // [row, key]
var<workgroup> columns: array<f32, ROWS * 8u>;             // one number per row and x
var<workgroup> row_numbers: array<vec2<f32>, ROWS>;        // exponent and factor of each row of q
var<workgroup> key_numbers: array<vec2<f32>, KEYS>;        // the same of each key
//@if DECAY_TOKEN
var<workgroup> tile_decays: array<f32, KEYS>;              // decay before each key
//@endif

// Zeros for the channels past a row's end.
fn within(x: vec4<f32>, vector: u32, width: u32) -> vec4<f32> {
    let d = vec4<u32>(vector * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(), x, d < vec4<u32>(width));
}

fn stored_q(at: u32, vector: u32) -> vec4<f32> {
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = vector * 4u + c;
        if (d < params.key_dim) {
//@if OWN_Q
            x[c] = f32(local_q[at + d * params.q_dim]);
//@else
            x[c] = f32(q[at + d * params.q_dim]);
//@endif
        }
    }
    return x;
}

fn stored_k(at: u32, vector: u32) -> vec4<f32> {
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = vector * 4u + c;
        if (d < params.key_dim) {
//@if OWN_K
            x[c] = f32(local_k[at + d * params.k_dim]);
//@else
            x[c] = f32(k[at + d * params.k_dim]);
//@endif
        }
    }
    return x;
}

fn stored_v(at: u32, vector: u32) -> vec4<f32> {
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = vector * 4u + c;
        if (d < params.value_dim) {
            x[c] = f32(v[at + d * params.v_dim]);
        }
    }
    return x;
}

fn query_vector(at: u32, vector: u32, numbers: vec2<f32>) -> vec4<f32> {
    return within(map_q(stored_q(at, vector), params.factor_q, numbers.x) * numbers.y, vector, params.key_dim);
}

fn key_vector(at: u32, vector: u32, numbers: vec2<f32>) -> vec4<f32> {
    return within(map_k(stored_k(at, vector), params.factor_k, numbers.x) * numbers.y, vector, params.key_dim);
}

// Where the sequence of a query begins, and where its valid tokens end. Nothing lies in that of a query past the
// last end.
fn sequence_of(batch: u32, query: u32) -> vec2<u32> {
    var first = 0u;
    var valid = params.tokens;
//@if PACKED
    // The last sequence that begins at the query or before; empty ones never hold it.
    var low = 0u;
    var high = params.sequences;
    for (; low < high;) {
        let middle = (low + high + 1u) / 2u;
        if (cu_seqlens[params.cu_seqlens_at + middle * params.cu_seqlens_sequence] <= query) {
            low = middle;
        } else {
            high = middle - 1u;
        }
    }
    let ends = min(low + 1u, params.sequences);
    first = cu_seqlens[params.cu_seqlens_at + low * params.cu_seqlens_sequence];
    valid = min(cu_seqlens[params.cu_seqlens_at + ends * params.cu_seqlens_sequence], params.tokens);
//@endif
//@if KV_LEN
    valid = min(kv_len[params.kv_len_at + batch * params.kv_len_batch], params.tokens);
//@endif
    return vec2<u32>(first, valid);
}

// The keys that a query sees: x .. y. Both rise with the query.
fn sight_of(batch: u32, query: u32) -> vec2<u32> {
    let sequence = sequence_of(batch, query);
    var first = sequence.x;
    var limit = sequence.y;
    let place = query - first;
    switch REACH {
        case REACH_CAUSAL: {
            limit = first + place + 1u;
        }
        case REACH_BEFORE: {
            limit = first + place;
        }
        case REACH_BUCKET: {
            limit = first + place / params.reach * params.reach;
        }
        case REACH_GROUP: {
            first += place / params.reach * params.reach;
            limit = first + params.reach;
        }
        case REACH_GROUP_CAUSAL: {
            first += place / params.reach * params.reach;
            limit = query + 1u;
        }
        default: {}
    }
    limit = min(limit, sequence.y);
    return vec2<u32>(min(first, limit), limit) * params.updates;
}

//@if BONUS
// Whether a query's own token is there, among the keys of this slice.
fn has_own(batch: u32, i: u32) -> bool {
    let sequence = sequence_of(batch, i);
    return i >= max(sequence.x, params.key_start) && i < min(sequence.y, params.key_start + params.keys);
}
//@endif

fn store(at: u32, x: f32) {
//@if LOCAL
    // A sum with what the linear attention has left there.
    o[at] = Scalar(fma(params.mix_o, f32(o[at]), params.mix_local * x));
//@else
    o[at] = Scalar(x);
//@endif
}

// The factor that a sum of logarithms stands for.
fn faded(sum: f32) -> f32 {
    return select(exp(sum), 0.0, sum < CLEARED);
}

// The error function's complement, to about 1e-7 of it (Numerical Recipes, erfcc).
fn erfc(x: f32) -> f32 {
    let z = abs(x);
    let t = 1.0 / (1.0 + 0.5 * z);
    var sum = fma(t, 0.17087277, -0.82215223);
    sum = fma(t, sum, 1.48851587);
    sum = fma(t, sum, -1.13520398);
    sum = fma(t, sum, 0.27886807);
    sum = fma(t, sum, -0.18628806);
    sum = fma(t, sum, 0.09678418);
    sum = fma(t, sum, 0.37409196);
    sum = fma(t, sum, 1.00002368);
    let y = t * exp(fma(t, sum, -z * z - 1.26551223));
    return select(y, 2.0 - y, x < 0.0);
}

// What a pair counts whose score is `s`; the query is at token `i`, the key at token `j`.
fn counts(s: f32, i: u32, j: u32) -> f32 {
    switch PAIR {
        case PAIR_TAYLOR: {
            return fma(s, 0.5 * s, 1.0 + s);
        }
        case PAIR_SQUARE: {
            return s * s;
        }
        case PAIR_COSINE: {
            return s * quarter_turn(max(i, j) - min(i, j), params.length).y;
        }
        case PAIR_SQUARED_RELU: {
            let y = max(s, 0.0);
            return y * y;
        }
        case PAIR_LAPLACE: {
            // The normal distribution of mean sqrt(1 / 2) and deviation sqrt(1 / (4 pi)).
            return 0.5 * erfc((0.70710678 - s) * 2.5066283);
        }
        default: {
            return s;
        }
    }
}

fn state_at(batch: u32, head: u32, row: u32) -> u32 {
    return ((batch * params.heads + head) * params.rows + row) * (params.value_dim + 3u);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.tiles) {
        return;
    }
    let row_tiles = (params.rows + ROWS - 1u) / ROWS;
    let head = number / row_tiles % params.heads;
    let batch = number / row_tiles / params.heads;
    let first_row = number % row_tiles * ROWS;
    let last_row = min(first_row + ROWS, params.rows) - 1u;
    let x = local % 8u;
    let y = local / 8u;
    let vectors = (params.key_dim + 3u) / 4u;
    let state_head = head / params.v_share;
    let q_base = params.q_at + batch * params.q_batch + head / params.q_share * params.q_head;
    let k_base = params.k_at + batch * params.k_batch + head / params.k_share * params.k_head;
    let v_base = params.v_at + batch * params.v_batch + state_head * params.v_head;

    // Sights rise, so these are all that any row sees.
    let key_end = params.key_start + params.keys;
    let begin = max(sight_of(batch, params.row_start + first_row).x, params.key_start);
    let end = min(sight_of(batch, params.row_start + last_row).y, key_end);

    if (local < ROWS) {
        var numbers = vec2<f32>(0.0, 1.0);
//@if SOFTMAX_Q
        let at = q_base + min(first_row + local, last_row) * params.q_row;
        var highest = NONE_YET;
        for (var n = 0u; n < vectors; n++) {
            let past = within(vec4<f32>(1.0), n, params.key_dim) == vec4<f32>();
            let z = select(stored_q(at, n), vec4<f32>(NONE_YET), past);
            highest = max(highest, max(max(z.x, z.y), max(z.z, z.w)));
        }
        numbers.x = highest;
        var total = 0.0;
        for (var n = 0u; n < vectors; n++) {
            total += dot(query_vector(at, n, numbers), vec4<f32>(1.0));
        }
        numbers.y = 1.0 / total;
//@endif
        row_numbers[local] = numbers;
        key_numbers[local] = vec2<f32>(0.0, 1.0);
    }

    var acc: array<vec4<f32>, V_CHUNKS * 4u>;
    var den: array<f32, 4>;
    var seen: array<vec2<u32>, 4>;
//@if DECAY_TOKEN
    var rest: array<f32, 4>; // decays between the tile and what the row sees last
//@endif
//@if DECAY_HEAD
    let slope = max(decay[params.decay_at + state_head * params.decay_head], LEAST_DECAY);
//@endif
//@if ONLINE
    var largest: array<f32, 4>;
//@endif
    //@unroll
    for (var a = 0u; a < 4u; a++) {
        let row = min(first_row + y * 4u + a, last_row);
        seen[a] = sight_of(batch, params.row_start + row);
        den[a] = 0.0;
        //@unroll
        for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
            acc[chunk * 4u + a] = vec4<f32>();
        }
//@if DECAY_TOKEN
        rest[a] = 0.0;
//@endif
//@if ONLINE
        largest[a] = NONE_YET;
//@endif
//@if SCRATCH
        if (params.first == 0u) {
            let at = state_at(batch, head, row);
            //@unroll
            for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    let d = chunk * CHUNK + x * 4u + c;
                    if (d < params.value_dim) {
                        acc[chunk * 4u + a][c] = scratch[at + d];
                    }
                }
            }
            den[a] = select(0.0, scratch[at + params.value_dim], x == 0u);
//@if DECAY_TOKEN
            rest[a] = scratch[at + params.value_dim + 1u];
//@endif
//@if ONLINE
            largest[a] = scratch[at + params.value_dim + 2u];
//@endif
        }
//@endif
    }

    for (var stop = end; stop > begin;) {
        let start = stop - min(KEYS, stop - begin);
        let last = stop - 1u;
//@if TILE_NUMBERS
        workgroupBarrier();
        if (local < KEYS) {
            let key = min(start + local, last);
//@if DECAY_TOKEN
            let token = key / params.updates - params.key_start / params.updates;
            let at_decay = params.decay_at + batch * params.decay_batch + state_head * params.decay_head;
            let g = max(f32(decay[at_decay + token * params.decay_token]), LEAST_DECAY);
            tile_decays[local] = select(0.0, g, key % params.updates == 0u);
//@endif
//@if KEY_NUMBERS
            let at = k_base + (key - params.key_start) * params.k_row;
            var highest = NONE_YET;
            for (var n = 0u; n < vectors; n++) {
                let past = within(vec4<f32>(1.0), n, params.key_dim) == vec4<f32>();
                let z = select(stored_k(at, n) * params.factor_k, vec4<f32>(NONE_YET), past);
                highest = max(highest, max(max(z.x, z.y), max(z.z, z.w)));
            }
            var numbers = vec2<f32>(highest, 1.0);
//@if SOFTMAX_K
            var total = 0.0;
            for (var n = 0u; n < vectors; n++) {
                total += dot(key_vector(at, n, numbers), vec4<f32>(1.0));
            }
            numbers.y = 1.0 / total;
//@endif
            key_numbers[local] = numbers;
//@endif
        }
//@endif

        var score: array<f32, 16>;
        //@unroll
        for (var n = 0u; n < 16u; n++) {
            score[n] = 0.0;
        }
        for (var v0 = 0u; v0 < vectors; v0 += VECTORS) {
            workgroupBarrier();
            for (var n = 0u; n < LOADS; n++) {
                let place = (n * THREADS + local) / VECTORS;
                let vector = local % VECTORS;
                // One chunk of q stays for all keys.
                if (vectors > VECTORS || stop == end) {
                    let row = min(first_row + place, last_row);
                    left[place * PITCH + vector] = query_vector(q_base + row * params.q_row, v0 + vector, row_numbers[place]);
                }
                // Keys past the end are read as the last one and hidden below.
                let key = min(start + place, last) - params.key_start;
                right[place * PITCH + vector] = key_vector(k_base + key * params.k_row, v0 + vector, key_numbers[place]);
            }
            workgroupBarrier();
            // The dims of a chunk, like the keys of a tile below, are summed first: fewer additions to a large number.
            var part: array<f32, 16>;
            //@unroll
            for (var n = 0u; n < 16u; n++) {
                part[n] = 0.0;
            }
            for (var n = 0u; n < min(VECTORS, vectors - v0); n++) {
                let k0 = right[x * PITCH + n];
                let k1 = right[(x + 8u) * PITCH + n];
                let k2 = right[(x + 16u) * PITCH + n];
                let k3 = right[(x + 24u) * PITCH + n];
                //@unroll
                for (var a = 0u; a < 4u; a++) {
                    let query = left[(y * 4u + a) * PITCH + n];
                    part[a * 4u] += dot(query, k0);
                    part[a * 4u + 1u] += dot(query, k1);
                    part[a * 4u + 2u] += dot(query, k2);
                    part[a * 4u + 3u] += dot(query, k3);
                }
            }
            //@unroll
            for (var n = 0u; n < 16u; n++) {
                score[n] += part[n];
            }
        }

//@if DECAY_TOKEN
        // Sums over the tokens after each key, as far as the row sees: never a difference of sums.
        var fall: array<f32, 16>;
        var through: array<f32, 4>;
        //@unroll
        for (var n = 0u; n < 16u; n++) {
            fall[n] = 0.0;
        }
        //@unroll
        for (var a = 0u; a < 4u; a++) {
            through[a] = 0.0;
        }
        for (var n = 0u; n < stop - start; n++) {
            //@unroll
            for (var a = 0u; a < 4u; a++) {
                let g = select(0.0, tile_decays[n], start + n < seen[a].y);
                through[a] += g;
                fall[a * 4u] += select(0.0, g, n > x);
                fall[a * 4u + 1u] += select(0.0, g, n > x + 8u);
                fall[a * 4u + 2u] += select(0.0, g, n > x + 16u);
                fall[a * 4u + 3u] += select(0.0, g, n > x + 24u);
            }
        }
//@endif

        //@unroll
        for (var a = 0u; a < 4u; a++) {
            let i = params.row_start + min(first_row + y * 4u + a, last_row);
//@if ONLINE
            var highest = NONE_YET;
//@endif
            //@unroll
            for (var b = 0u; b < 4u; b++) {
                let key = start + x + b * 8u;
                let visible = key >= seen[a].x && key < min(seen[a].y, stop);
                let token = key / params.updates;
                var s = params.scale * score[a * 4u + b];
//@if BIAS
                // What is hidden may lie outside of the group.
                let pair = min(vec2<u32>(i, token) - vec2<u32>(seen[a].x / params.updates), vec2<u32>(params.reach - 1u));
                s += bias[params.bias_at + head * params.bias_head + pair.x * params.bias_row + pair.y * params.bias_key];
//@endif
//@if ONLINE
//@if SAFE
                highest = select(highest, max(highest, key_numbers[x + b * 8u].x), visible);
//@else
                highest = select(highest, max(highest, s), visible);
//@endif
//@endif
                var w = counts(s, i, token);
//@if DECAY_HEAD
                w *= faded(slope * f32(seen[a].y / params.updates - 1u - token));
//@endif
//@if DECAY_TOKEN
                w *= faded(rest[a] + fall[a * 4u + b]);
//@endif
                score[a * 4u + b] = select(0.0, w, visible);
            }
//@if ONLINE
            columns[(y * 4u + a) * 8u + x] = highest;
//@endif
//@if DECAY_TOKEN
            rest[a] = rest[a] + through[a];
//@endif
        }
//@if ONLINE
        workgroupBarrier();
        var rescale: array<f32, 4>;
        //@unroll
        for (var a = 0u; a < 4u; a++) {
            var highest = largest[a];
            for (var n = 0u; n < 8u; n++) {
                highest = max(highest, columns[(y * 4u + a) * 8u + n]);
            }
            rescale[a] = faded(max(largest[a] - highest, LEAST_DECAY));
            largest[a] = highest;
            den[a] *= rescale[a];
            //@unroll
            for (var b = 0u; b < 4u; b++) {
                let key = start + x + b * 8u;
                let visible = key >= seen[a].x && key < min(seen[a].y, stop);
//@if SAFE
                let w = score[a * 4u + b] * faded(min(key_numbers[x + b * 8u].x - highest, 0.0));
//@else
                let w = faded(min(score[a * 4u + b] - highest, 0.0));
//@endif
                score[a * 4u + b] = select(0.0, w, visible);
            }
        }
//@endif
        //@unroll
        for (var a = 0u; a < 4u; a++) {
            den[a] += (score[a * 4u] + score[a * 4u + 1u]) + (score[a * 4u + 2u] + score[a * 4u + 3u]);
            //@unroll
            for (var b = 0u; b < 4u; b++) {
                weights[(y * 4u + a) * WEIGHTS_PITCH + x + b * 8u] = score[a * 4u + b];
            }
        }

        //@unroll
        for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
            workgroupBarrier();
            for (var n = 0u; n < LOADS; n++) {
                let place = (n * THREADS + local) / VECTORS;
                let vector = local % VECTORS;
                let key = min(start + place, last) - params.key_start;
                right[place * PITCH + vector] = stored_v(v_base + key * params.v_row, chunk * VECTORS + vector);
            }
            workgroupBarrier();
            var piece: array<vec4<f32>, 4>;
            //@unroll
            for (var a = 0u; a < 4u; a++) {
                piece[a] = vec4<f32>();
            }
            for (var n = 0u; n < stop - start; n++) {
                let value = right[n * PITCH + x];
                //@unroll
                for (var a = 0u; a < 4u; a++) {
                    let w = weights[(y * 4u + a) * WEIGHTS_PITCH + n];
//@if PACKED
                    // What is not finite stays in its sequence.
                    piece[a] = select(fma(vec4<f32>(w), value, piece[a]), piece[a], w == 0.0);
//@else
                    piece[a] = fma(vec4<f32>(w), value, piece[a]);
//@endif
                }
            }
            //@unroll
            for (var a = 0u; a < 4u; a++) {
//@if ONLINE
                acc[chunk * 4u + a] = fma(acc[chunk * 4u + a], vec4<f32>(rescale[a]), piece[a]);
//@else
                acc[chunk * 4u + a] += piece[a];
//@endif
            }
        }
        stop = start;
    }

    workgroupBarrier();
    //@unroll
    for (var a = 0u; a < 4u; a++) {
        columns[(y * 4u + a) * 8u + x] = den[a];
    }
//@if ROW_NUMBERS
    // What one invocation finds for a row: the sum of the query's features, and what its own token counts.
    if (local < ROWS) {
        let row = min(first_row + local, last_row);
        let at = q_base + row * params.q_row;
        let i = params.row_start + row;
        var sum = 0.0;
        for (var n = 0u; n < vectors; n++) {
            sum += dot(query_vector(at, n, row_numbers[local]), vec4<f32>(1.0));
        }
        if (PAIR == PAIR_COSINE) {
            let wave = quarter_turn(i + 1u - sequence_of(batch, i).x, params.length);
            sum *= wave.x + wave.y;
        }
        weights[local] = sum * params.scale;
//@if BONUS
        var own = 0.0;
        if (has_own(batch, i)) {
            let k_own = k_base + (i - params.key_start) * params.k_row;
            for (var n = 0u; n < vectors; n++) {
                var u = vec4<f32>();
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    if (n * 4u + c < params.key_dim) {
                        u[c] = bonus[params.bonus_at + state_head * params.bonus_head + (n * 4u + c) * params.bonus_dim];
                    }
                }
                own += dot(query_vector(at, n, row_numbers[local]) * u, key_vector(k_own, n, vec2<f32>(0.0, 1.0)));
            }
        }
        weights[ROWS + local] = own * params.scale;
//@endif
    }
//@endif
    workgroupBarrier();
    //@unroll
    for (var a = 0u; a < 4u; a++) {
        let row = first_row + y * 4u + a;
        var total = 0.0;
        for (var n = 0u; n < 8u; n++) {
            total += columns[(y * 4u + a) * 8u + n];
        }
        if (row <= last_row) {
            var factor = 1.0;
//@if NORMALISED
            var by = total + params.eps;
            if (GUARD == GUARD_AT_LEAST) {
                by = max(total, params.eps);
            }
//@if ROW_NUMBERS
            if (GUARD == GUARD_KEYS) {
                by = fma(params.eps, weights[y * 4u + a], total);
            }
//@endif
            factor = select(1.0 / by, 0.0, by == 0.0);
//@endif
            var own = 0.0;
            var own_at = v_base;
//@if BONUS
            if (has_own(batch, params.row_start + row)) {
                own = weights[ROWS + y * 4u + a];
                own_at += (params.row_start + row - params.key_start) * params.v_row;
            }
//@endif
//@if SCRATCH
            if (params.last == 0u) {
                factor = 1.0;
            }
            let kept = state_at(batch, head, row);
//@endif
            let o_at = params.o_at + batch * params.o_batch + head * params.o_head + row * params.o_row;
            //@unroll
            for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
                var sum = acc[chunk * 4u + a] * factor;
//@if BONUS
                if (own != 0.0) {
                    sum = fma(vec4<f32>(own), stored_v(own_at, chunk * VECTORS + x), sum);
                }
//@endif
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    let d = chunk * CHUNK + x * 4u + c;
                    if (d < params.value_dim) {
//@if SCRATCH
                        if (params.last == 0u) {
                            scratch[kept + d] = sum[c];
                        } else {
                            store(o_at + d * params.o_dim, sum[c]);
                        }
//@else
                        store(o_at + d * params.o_dim, sum[c]);
//@endif
                    }
                }
            }
//@if SCRATCH
            if (params.last == 0u && x == 0u) {
                scratch[kept + params.value_dim] = total;
//@if DECAY_TOKEN
                scratch[kept + params.value_dim + 1u] = rest[a];
//@endif
//@if ONLINE
                scratch[kept + params.value_dim + 2u] = largest[a];
//@endif
            }
//@endif
        }
    }
}
