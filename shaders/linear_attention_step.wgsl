// Linear attention of one token: the state is read, changed and written, row by row.
//
// Formula:   that of linear_attention.wgsl, for one update.
// Grid:      one invocation per (sequence, head, chunk of CHUNK vectors of four value columns).
// Workgroup: 64 invocations; neighbours have states of their own, so that on a CPU each reads in pages of its own.
// Memory:    none.

//@import grid
//@import linear_tensors

const WORKGROUP: u32 = 64u; //@variant
const CHUNK: u32 = 16u; //@variant

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.tasks) {
        return;
    }
    let block = number % params.blocks;
    let head = number / params.blocks % params.heads;
    let sequence = number / params.blocks / params.heads;
    let first = block * CHUNK * 4u;
    let at = places_of(sequence, head, head);
    let place = state_place(sequence, head, 0u, 0u);
//@if KV_LEN
    let there = kv_len[params.kv_len_at + sequence * params.kv_len_batch] > 0u;
//@else
    let there = true;
//@endif
    let update = Update(0u, 0u, 0u, 0u, there, there);
    var fade = fade_of(at, update);
//@if DECAY_HEAD
    fade = select(1.0, factor_of(decay[at.decay]), there);
//@endif

    var u: array<vec4<f32>, CHUNK>;
    var fades: array<vec4<f32>, CHUNK>;
    var out: array<vec4<f32>, CHUNK>;
    var held: array<vec4<f32>, CHUNK>;
    //@unroll
    for (var n = 0u; n < CHUNK; n++) {
        u[n] = select(vec4<f32>(), value_columns(VALUES, at.v, first + 4u * n, params.v_dim), there);
        fades[n] = vec4<f32>(fade);
//@if DECAY_VALUE
        let g = value_columns(VALUE_DECAY, at.decay, first + 4u * n, params.decay_dim);
        fades[n] = select(vec4<f32>(1.0), column_factors(g), there);
//@endif
        out[n] = vec4<f32>();
        held[n] = vec4<f32>();
    }

//@if HELD
    // What the state holds for the reading key: before the decay for LOW_RANK, after it for DELTA.
    for (var b = 0u; b < ROWS4; b++) {
//@if READ
        var p = row_quad(ROW_READ, at, update, b);
//@else
        var p = row_quad(ROW_K, at, update, b);
//@endif
//@if DECAY_KEY
//@if !LOW_RANK
        p *= row_quad(ROW_DECAY, at, update, b);
//@endif
//@endif
        for (var c = 0u; c < min(4u, params.key_dim - b % K4 * 4u); c++) {
            //@unroll
            for (var n = 0u; n < CHUNK; n++) {
                held[n] = fma(vec4<f32>(p[c]), state_quad(place, row_of(b, c), first + 4u * n), held[n]);
            }
        }
    }
//@if !LOW_RANK
    let strength = strength_of(at, update);
    //@unroll
    for (var n = 0u; n < CHUNK; n++) {
        u[n] = (u[n] - fades[n] * held[n]) * strength;
//@if BETA_VALUE
        u[n] *= value_columns(VALUE_BETA, at.beta, first + 4u * n, params.beta_dim);
//@endif
    }
    //@unroll
    for (var n = 0u; n < CHUNK; n++) {
        u[n] = select(vec4<f32>(), u[n], there);
    }
//@endif
//@endif

    var den = 0.0;
    var queries = 0.0;
    var own = 0.0;
    for (var b = 0u; b < ROWS4; b++) {
        let query = row_quad(ROW_Q, at, update, b);
        let key = row_quad(ROW_K, at, update, b);
        queries += sum_of(query);
//@if LOW_RANK
        let write = row_quad(ROW_WRITE, at, update, b);
//@endif
        var fading = vec4<f32>(1.0);
//@if DECAY_KEY
        fading = row_quad(ROW_DECAY, at, update, b);
//@endif
//@if BONUS
        own += dot(query * bonus_quad(head, b), key);
//@endif
        for (var c = 0u; c < min(4u, params.key_dim - b % K4 * 4u); c++) {
            let row = row_of(b, c);
//@if NORMALISED
            var z = 0.0;
//@if TAKE_SUM
            z = take_sum(place, row);
//@endif
            let sum = fma(z, fade * fading[c], key[c]);
//@if BEFORE
            den = fma(query[c], z, den);
//@else
            den = fma(query[c], sum, den);
//@endif
//@if GIVE
            if (block == 0u) {
                give_sum(place, row, sum);
            }
//@endif
//@endif
            //@unroll
            for (var n = 0u; n < CHUNK; n++) {
                let old = state_quad(place, row, first + 4u * n);
                var next = fma(vec4<f32>(key[c]), u[n], old * fades[n] * fading[c]);
//@if LOW_RANK
                next = fma(vec4<f32>(write[c]), held[n], next);
//@endif
//@if BEFORE
                out[n] = fma(vec4<f32>(query[c]), old, out[n]);
//@else
                out[n] = fma(vec4<f32>(query[c]), next, out[n]);
//@endif
//@if GIVE
                if (first + 4u * n < params.value_dim) {
                    give_state(place, row, first + 4u * n, next);
                }
//@endif
            }
        }
    }

    var factor = 1.0;
//@if NORMALISED
    factor = guarded_reciprocal(den, queries);
//@endif
    //@unroll
    for (var n = 0u; n < CHUNK; n++) {
//@if BONUS
        let value = value_columns(VALUES, at.v, first + 4u * n, params.v_dim);
        out[n] = fma(vec4<f32>(own), select(vec4<f32>(), value, there), out[n]);
//@endif
        store_o(at.o, first + 4u * n, out[n] * factor);
    }
}

// Four columns of a row of the state before the token; 0 past the last.
fn state_quad(place: StatePlace, row: u32, column: u32) -> vec4<f32> {
    var x = vec4<f32>();
//@if TAKE
    if (column < params.value_dim) {
        x = take_state(place, row, column);
    }
//@endif
    return x;
}
