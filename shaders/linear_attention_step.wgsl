// Linear attention of one token: the state is read, changed and written, column by column.
//
// Formula:   that of linear_attention.wgsl, for one update.
// Grid:      `each` (sequence, head) per workgroup.
// Workgroup: one subgroup. Each lane owns QUADS neighbouring vectors of four rows, so that it reads in a page of its
//            own, and takes four columns at a time; sums over rows are subgroup sums.
// Memory:    none.

//@import grid
//@import linear_tensors

const LANES: u32 = 8u; //@variant
const QUADS: u32 = (ROWS4 + LANES - 1u) / LANES;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let begin = linear_workgroup(workgroup, grid) * params.each;
    for (var task = begin; task < min(begin + params.each, params.tasks); task++) {
        let head = task % params.heads;
        let sequence = task / params.heads;
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
        let strength = strength_of(at, update);

        // The lane's rows: those of the query and the key, and what else has rows like them.
        var query: array<vec4<f32>, QUADS>;
        var key: array<vec4<f32>, QUADS>;
        var reader: array<vec4<f32>, QUADS>;
        var writer: array<vec4<f32>, QUADS>;
        var fading: array<vec4<f32>, QUADS>;
        var den = 0.0;
        var queries = 0.0;
        var own = 0.0;
        //@unroll
        for (var j = 0u; j < QUADS; j++) {
            let b = lane * QUADS + j;
            let mine = b < ROWS4;
            query[j] = select(vec4<f32>(), row_quad(ROW_Q, at, update, min(b, ROWS4 - 1u)), mine);
            key[j] = select(vec4<f32>(), row_quad(ROW_K, at, update, min(b, ROWS4 - 1u)), mine);
            reader[j] = key[j];
//@if READ
            reader[j] = select(vec4<f32>(), row_quad(ROW_READ, at, update, min(b, ROWS4 - 1u)), mine);
//@endif
//@if LOW_RANK
            writer[j] = select(vec4<f32>(), row_quad(ROW_WRITE, at, update, min(b, ROWS4 - 1u)), mine);
//@endif
            fading[j] = vec4<f32>(fade);
//@if DECAY_KEY
            fading[j] = row_quad(ROW_DECAY, at, update, min(b, ROWS4 - 1u));
//@endif
//@if BONUS
            own += dot(query[j] * bonus_quad(head, min(b, ROWS4 - 1u)), key[j]);
//@endif
//@if NORMALISED
            //@unroll
            for (var c = 0u; c < 4u; c++) {
                if (mine && channel_of(b, c) < params.key_dim) {
                    var z = 0.0;
//@if TAKE_SUM
                    z = take_sum(place, row_of(b, c));
//@endif
//@if BEFORE
                    den = fma(query[j][c], z, den);
                    z = fma(z, fading[j][c], key[j][c]);
//@else
                    z = fma(z, fading[j][c], key[j][c]);
                    den = fma(query[j][c], z, den);
//@endif
//@if GIVE
                    give_sum(place, row_of(b, c), z);
//@endif
                }
            }
            queries += sum_of(query[j]);
//@endif
        }
        var factor = 1.0;
//@if NORMALISED
        factor = guarded_reciprocal(subgroupAdd(den), subgroupAdd(queries));
//@endif
//@if BONUS
        own = subgroupAdd(own);
//@endif

        for (var column = 0u; column < params.value_dim; column += 4u) {
            var u = value_columns(VALUES, at.v, column, params.v_dim);
            var fades = vec4<f32>(1.0);
//@if DECAY_VALUE
            fades = select(fades, column_factors(value_columns(VALUE_DECAY, at.decay, column, params.decay_dim)), there);
//@endif
            var s: array<vec4<f32>, 4u * QUADS>;
            //@unroll
            for (var j = 0u; j < QUADS; j++) {
                let b = lane * QUADS + j;
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    s[4u * j + c] = vec4<f32>();
//@if TAKE
                    if (b < ROWS4 && channel_of(b, c) < params.key_dim) {
                        s[4u * j + c] = take_state(place, row_of(b, c), column);
                    }
//@endif
                }
            }
//@if HELD
            // What the state holds for the reading key: before the decay for LOW_RANK, after it for DELTA.
            var held = vec4<f32>();
            //@unroll
            for (var j = 0u; j < QUADS; j++) {
                //@unroll
                for (var c = 0u; c < 4u; c++) {
//@if LOW_RANK
                    held = fma(vec4<f32>(reader[j][c]), s[4u * j + c], held);
//@else
                    held = fma(vec4<f32>(reader[j][c] * fading[j][c]), s[4u * j + c], held);
//@endif
                }
            }
            held = subgroupAdd(held);
//@if !LOW_RANK
            u = (u - fades * held) * strength;
//@if BETA_VALUE
            u *= value_columns(VALUE_BETA, at.beta, column, params.beta_dim);
//@endif
//@endif
//@endif
            var out = vec4<f32>();
            //@unroll
            for (var j = 0u; j < QUADS; j++) {
                let b = lane * QUADS + j;
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    let old = s[4u * j + c];
                    var next = fma(vec4<f32>(key[j][c]), u, old * fades * fading[j][c]);
//@if LOW_RANK
                    next = fma(vec4<f32>(writer[j][c]), held, next);
//@endif
//@if BEFORE
                    out = fma(vec4<f32>(query[j][c]), old, out);
//@else
                    out = fma(vec4<f32>(query[j][c]), next, out);
//@endif
//@if GIVE
                    if (b < ROWS4 && channel_of(b, c) < params.key_dim) {
                        give_state(place, row_of(b, c), column, next);
                    }
//@endif
                }
            }
            out = subgroupAdd(out);
//@if BONUS
            out = fma(vec4<f32>(own), u, out);
//@endif
            if (lane == 0u) {
                store_o(at.o, column, out * factor);
            }
        }
    }
}
