// Linear attention: a walk over the tokens of a sequence with the state in registers.
//
// Formula:   per update: S' = diag(e^g) S; S = S' + k u^T, where u = v, or beta (v - S'^T p) (DELTA); LOW_RANK adds
//            b (a^T S_before). Per token: o = scale q S, divided by scale q . z (NORMALISED), z = e^g z + k.
// Grid:      one workgroup per (sequence, segment of its tokens, head, block of value columns), columns fastest.
// Workgroup: BROADCAST: one subgroup; each lane owns COLS vectors of four columns; it loads its share of the rows of
//            a step of TOKENS updates, and subgroupBroadcast hands them round. Else: a column per lane, and rows pass
//            through workgroup memory. No sum over rows of the state crosses lanes.
// Memory:    without BROADCAST, a step's rows of q, k and what else has rows like them.
//
// A state has 4 * ROWS4 rows in registers: those of the keys, four by four, padded with rows of 0; for a cosine
// twice, for sine and cosine. Where BEFORE is set, a query reads the state before its own token.

//@import grid
//@import linear_tensors

const LANES: u32 = 8u; //@variant
const TOKENS: u32 = 2u; //@variant
const COLS: u32 = 2u; //@variant
const TENSORS: u32 = 2u; //@variant
const WORDS: u32 = (TOKENS * ROWS4 + LANES - 1u) / LANES;

//@if !BROADCAST
var<workgroup> tile: array<vec4<f32>, TENSORS * TOKENS * ROWS4>;
//@endif

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
//@if BROADCAST
    @builtin(subgroup_invocation_id) lane: u32,
//@else
    @builtin(local_invocation_index) lane: u32,
//@endif
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.tasks) {
        return;
    }
    let block = number % params.blocks;
    let head = number / params.blocks % params.heads;
    let segment = number / params.blocks / params.heads % params.segments;
    let sequence = number / params.blocks / params.heads / params.segments;
    let state_head = head / params.group;
//@if PACKED
    // After the last sequence come the tokens of none: they have a state of 0, and leave none.
    let batch = 0u;
    let real = sequence < params.sequences;
    let start = min(cu_seqlens[params.cu_at + sequence * params.cu_step], params.tokens);
    var end = params.tokens;
    if (real) {
        end = min(cu_seqlens[params.cu_at + (sequence + 1u) * params.cu_step], params.tokens);
    }
//@else
    let real = true;
    let batch = sequence;
    let start = 0u;
    let end = params.tokens;
//@endif
    // The walk's tokens, and those of them that there are keys for.
    let first = max(params.token_start, start) + segment * params.segment_tokens;
    let stop = max(first, min(min(params.token_end, end), first + params.segment_tokens));
//@if KV_LEN
    let valid = clamp(kv_len[params.kv_len_at + batch * params.kv_len_batch], first, stop);
//@else
    let valid = select(first, stop, real);
//@endif

    let at = places_of(batch, head, state_head);
    let slot = (sequence * params.slot_heads + head / params.slot_group) * params.slots
        + params.slot_first + segment * params.slot_step;
    let place = state_place(sequence, state_head, slot, block);
    var columns: array<u32, COLS>;
    var s: array<Col, 4u * ROWS4 * COLS>;
    var z: array<vec4<f32>, ROWS4>;
    var highest = LOWEST;
    //@unroll
    for (var n = 0u; n < COLS; n++) {
        columns[n] = ((block * COLS + n) * LANES + lane) * WIDTH;
    }
    //@unroll
    for (var b = 0u; b < ROWS4; b++) {
        z[b] = vec4<f32>();
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            //@unroll
            for (var n = 0u; n < COLS; n++) {
                s[(b * 4u + c) * COLS + n] = Col();
//@if TAKE
                if (real && channel_of(b, c) < params.key_dim && columns[n] < params.value_dim) {
                    s[(b * 4u + c) * COLS + n] = take_state(place, row_of(b, c), columns[n]);
                }
//@endif
            }
//@if TAKE_SUM
            if (real && channel_of(b, c) < params.key_dim) {
                z[b][c] = take_sum(place, row_of(b, c));
            }
//@endif
        }
    }
//@if SAFE
//@if TAKE_SUM
    if (real) {
        highest = take_sum(place, PARTS * params.key_dim);
    }
//@endif
//@endif
//@if DECAY_HEAD
    let head_fade = factor_of(decay[at.decay]);
//@endif
//@if BONUS
    var bonuses: array<vec4<f32>, ROWS4>;
    //@unroll
    for (var b = 0u; b < ROWS4; b++) {
        bonuses[b] = bonus_quad(state_head, b);
    }
//@endif
//@if PRODUCTS
    var product = 1.0;
    var key_products: array<vec4<f32>, ROWS4>;
    var column_products: array<Col, COLS>;
    //@unroll
    for (var b = 0u; b < ROWS4; b++) {
        key_products[b] = vec4<f32>(1.0);
    }
    //@unroll
    for (var n = 0u; n < COLS; n++) {
        column_products[n] = Col(1.0);
    }
//@endif

    // Updates are counted from the slice's first token, where the windows of the tensors begin.
    let begin = (first - params.token_start) * params.updates;
    let last = (stop - params.token_start) * params.updates;
    let last_valid = (valid - params.token_start) * params.updates;
    for (var step = begin; step < last; step += TOKENS) {
//@if BROADCAST
        var share: array<vec4<f32>, TENSORS * WORDS>;
//@endif
        //@unroll BROADCAST
        for (var w = 0u; w < WORDS; w++) {
            let word = w * LANES + lane;
            let update = update_of(step + word / ROWS4, last, last_valid, start);
            //@unroll
            for (var x = 0u; x < TENSORS; x++) {
//@if BROADCAST
                share[x * WORDS + w] = row_quad(x, at, update, word % ROWS4);
//@else
                if (word < TOKENS * ROWS4) {
                    tile[x * TOKENS * ROWS4 + word] = row_quad(x, at, update, word % ROWS4);
                }
//@endif
            }
        }
//@if BROADCAST
        // A lane of the subgroup for each update of the step.
        let lanes_update = update_of(step + lane, last, last_valid, start);
        let lanes_fade = fade_of(at, lanes_update);
        let lanes_strength = strength_of(at, lanes_update);
//@else
        workgroupBarrier();
//@endif

        //@unroll BROADCAST
        for (var t = 0u; t < TOKENS; t++) {
            let update = update_of(step + t, last, last_valid, start);
            var row: array<vec4<f32>, TENSORS * ROWS4>;
            //@unroll
            for (var x = 0u; x < TENSORS; x++) {
                //@unroll
                for (var b = 0u; b < ROWS4; b++) {
//@if BROADCAST
                    row[x * ROWS4 + b] = subgroupBroadcast(share[x * WORDS + (t * ROWS4 + b) / LANES], (t * ROWS4 + b) % LANES);
//@else
                    row[x * ROWS4 + b] = tile[(x * TOKENS + t) * ROWS4 + b];
//@endif
                }
            }
            // What the whole state is multiplied with, and what the change of the state is.
//@if BROADCAST
            var fade = subgroupBroadcast(lanes_fade, t);
            let strength = subgroupBroadcast(lanes_strength, t);
//@else
            var fade = fade_of(at, update);
            let strength = strength_of(at, update);
//@endif
//@if DECAY_HEAD
            fade = select(1.0, head_fade, update.fades);
//@endif
//@if SCALAR_DECAY
            product *= fade;
//@endif
//@if K_TOP
            var top_k = LOWEST;
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
                top_k = max(top_k, largest(row[ROW_K * ROWS4 + b]));
            }
//@if SAFE
            // The largest key so far: the state holds exponentials of what keys are below it.
            top_k = max(top_k, highest);
            fade *= exp(highest - top_k);
            highest = top_k;
//@endif
            var sum_k = 0.0;
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
                row[ROW_K * ROWS4 + b] = exp_below(row[ROW_K * ROWS4 + b], top_k);
                sum_k += select(0.0, sum_of(row[ROW_K * ROWS4 + b]), b < K4);
            }
//@if K_SUM
            let part_k = select(0.0, 1.0 / sum_k, update.there);
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
                row[ROW_K * ROWS4 + b] *= part_k;
            }
//@endif
//@if COSINE
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
                row[ROW_K * ROWS4 + b] = turned(row[ROW_K * ROWS4 + b], b, update.place);
            }
//@endif
//@endif
//@if Q_TOP
            var top_q = LOWEST;
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
                top_q = max(top_q, largest(row[ROW_Q * ROWS4 + b]));
            }
            var sum_q = 0.0;
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
                row[ROW_Q * ROWS4 + b] = exp_below(row[ROW_Q * ROWS4 + b], top_q);
                sum_q += select(0.0, sum_of(row[ROW_Q * ROWS4 + b]), b < K4);
            }
//@if Q_SUM
            let part_q = params.scale / sum_q;
//@else
            let part_q = params.scale;
//@endif
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
                row[ROW_Q * ROWS4 + b] = turned(row[ROW_Q * ROWS4 + b] * part_q, b, update.place);
            }
//@endif

            var u: array<Col, COLS>;
            var out: array<Col, COLS>;
            var fades: array<Col, COLS>;
//@if BONUS
            var value: array<Col, COLS>;
//@endif
            //@unroll
            for (var n = 0u; n < COLS; n++) {
                out[n] = Col();
                fades[n] = Col(fade);
//@if UPDATE
                u[n] = value_columns(VALUES, at.v + update.row * params.v_token, columns[n], params.v_dim);
//@if BONUS
                value[n] = select(Col(), u[n], update.there);
//@endif
//@endif
//@if DECAY_VALUE
                let g = value_columns(VALUE_DECAY, at.decay + update.token * params.decay_token, columns[n], params.decay_dim);
                fades[n] = select(Col(1.0), column_factors(g), update.fades);
//@if PRODUCTS
                column_products[n] *= fades[n];
//@endif
//@endif
            }

//@if HELD
            // What the state holds for the reading key: before the decay for LOW_RANK, after it for DELTA.
            var held: array<Col, COLS>;
            //@unroll
            for (var n = 0u; n < COLS; n++) {
                held[n] = Col();
            }
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
//@if READ
                var p = row[ROW_READ * ROWS4 + b];
//@else
                var p = row[ROW_K * ROWS4 + b];
//@endif
//@if DECAY_KEY
//@if !LOW_RANK
                p *= row[ROW_DECAY * ROWS4 + b];
//@endif
//@endif
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    //@unroll
                    for (var n = 0u; n < COLS; n++) {
                        held[n] = fma(Col(p[c]), s[(b * 4u + c) * COLS + n], held[n]);
                    }
                }
            }
//@if !LOW_RANK
            //@unroll
            for (var n = 0u; n < COLS; n++) {
                u[n] = (u[n] - fades[n] * held[n]) * strength;
//@if BETA_VALUE
                u[n] *= value_columns(VALUE_BETA, at.beta + update.row * params.beta_token, columns[n], params.beta_dim);
//@endif
            }
//@endif
//@endif
//@if KV_LEN
//@if UPDATE
            // Whatever lies past the valid tokens, a product with a key of 0 must not take it for a number.
            //@unroll
            for (var n = 0u; n < COLS; n++) {
                u[n] = select(Col(), u[n], update.there);
            }
//@endif
//@endif

            var den = 0.0;
            var queries = 0.0;
            var own = 0.0;
            //@unroll
            for (var b = 0u; b < ROWS4; b++) {
//@if NORMALISED
//@if OUTPUT
//@if BEFORE
                den += dot(row[ROW_Q * ROWS4 + b], z[b]);
//@endif
                queries += sum_of(row[ROW_Q * ROWS4 + b]);
//@endif
//@if UPDATE
                z[b] *= fade;
//@if DECAY_KEY
                z[b] *= row[ROW_DECAY * ROWS4 + b];
//@endif
                z[b] += row[ROW_K * ROWS4 + b];
//@endif
//@if OUTPUT
//@if !BEFORE
                den += dot(row[ROW_Q * ROWS4 + b], z[b]);
//@endif
//@endif
//@endif
//@if BONUS
                own += dot(row[ROW_Q * ROWS4 + b] * bonuses[b], row[ROW_K * ROWS4 + b]);
//@endif
//@if PRODUCTS
//@if DECAY_KEY
                key_products[b] *= row[ROW_DECAY * ROWS4 + b];
//@endif
//@endif
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    //@unroll
                    for (var n = 0u; n < COLS; n++) {
                        let old = s[(b * 4u + c) * COLS + n];
                        var next = old;
//@if UPDATE
//@if FADES
                        next *= fades[n];
//@endif
//@if DECAY_KEY
                        next *= row[ROW_DECAY * ROWS4 + b][c];
//@endif
                        next = fma(Col(row[ROW_K * ROWS4 + b][c]), u[n], next);
//@if LOW_RANK
                        next = fma(Col(row[ROW_WRITE * ROWS4 + b][c]), held[n], next);
//@endif
                        s[(b * 4u + c) * COLS + n] = next;
//@endif
//@if OUTPUT
//@if BEFORE
                        out[n] = fma(Col(row[ROW_Q * ROWS4 + b][c]), old, out[n]);
//@else
                        out[n] = fma(Col(row[ROW_Q * ROWS4 + b][c]), next, out[n]);
//@endif
//@endif
                    }
                }
            }

//@if OUTPUT
            var factor = 1.0;
//@if NORMALISED
            factor = guarded_reciprocal(den, queries);
//@endif
            if (update.number < last && update.number % params.updates == params.updates - 1u) {
                //@unroll
                for (var n = 0u; n < COLS; n++) {
//@if BONUS
                    out[n] = fma(Col(own), value[n], out[n]);
//@endif
                    store_o(at.o + update.token * params.o_token, columns[n], select(Col(), out[n] * factor, real));
                }
            }
//@endif
        }
//@if !BROADCAST
        workgroupBarrier();
//@endif
    }

//@if GIVE
//@if TAKE
    // A sequence of other slices leaves its state alone.
    let leaves = first < stop || params.token_start == 0u;
//@else
    let leaves = true;
//@endif
    // Heads of a group have the same state.
    if (real && head % params.giving == 0u && leaves) {
        //@unroll
        for (var b = 0u; b < ROWS4; b++) {
            //@unroll
            for (var c = 0u; c < 4u; c++) {
                if (channel_of(b, c) < params.key_dim) {
                    //@unroll
                    for (var n = 0u; n < COLS; n++) {
                        if (columns[n] < params.value_dim) {
                            give_state(place, row_of(b, c), columns[n], s[(b * 4u + c) * COLS + n]);
                        }
                    }
//@if NORMALISED
                    give_sum(place, row_of(b, c), z[b][c]);
//@endif
                }
            }
        }
//@if SAFE
        give_sum(place, PARTS * params.key_dim, highest);
//@endif
//@if PRODUCTS
//@if SCALAR_DECAY
        scratch[place.slot + params.products_at] = product;
//@endif
//@if DECAY_KEY
        //@unroll
        for (var b = 0u; b < ROWS4; b++) {
            //@unroll
            for (var c = 0u; c < 4u; c++) {
                if (channel_of(b, c) < params.key_dim) {
                    scratch[place.slot + params.products_at + channel_of(b, c)] = key_products[b][c];
                }
            }
        }
//@endif
//@if DECAY_VALUE
        //@unroll
        for (var n = 0u; n < COLS; n++) {
            //@unroll
            for (var c = 0u; c < WIDTH; c++) {
                if (columns[n] + c < params.value_dim) {
                    scratch[place.slot + params.products_at + columns[n] + c] = lane_part(column_products[n], c);
                }
            }
        }
//@endif
//@endif
    }
//@endif
}
