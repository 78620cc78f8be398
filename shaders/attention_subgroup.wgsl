// Attention, subgroup-broadcast schedule: for devices where a load costs more than arithmetic.
//
// Formula:   o = softmax(scale q k^T + bias, visible) v; lse = log sum exp; online over keys.
// Grid:      one workgroup per (batch, KV head, key range, tile of ROWS * SUBGROUP packed rows).
// Workgroup: one subgroup. Each lane owns ROWS rows of q and o in registers. Per step of KEYS
//            keys, each lane loads its share of K and V once and subgroupBroadcast hands it round.
// Memory:    no workgroup memory. Partial results go to scratch when keys are split.

//@import grid
//@import attention_tensors

//@if VEC4
alias Stored = vec4<Scalar>;
//@else
alias Stored = Scalar;
//@endif

const SUBGROUP: u32 = 8u; //@variant
const ROWS: u32 = 4u; //@variant
const KEYS: u32 = 4u; //@variant
const D4: u32 = 16u; //@variant
const V4: u32 = 16u; //@variant
const K_LOADS: u32 = (KEYS * D4 + SUBGROUP - 1u) / SUBGROUP;
const V_LOADS: u32 = (KEYS * V4 + SUBGROUP - 1u) / SUBGROUP;

fn load_q(at: u32, d4: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(q[at / 4u + d4]);
//@else
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = d4 * 4u + c;
        if (d < params.head_dim) {
            x[c] = f32(q[at + d * params.q_dim]);
        }
    }
    return x;
//@endif
}

fn load_k(at: u32, d4: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(k[at / 4u + d4]);
//@else
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = d4 * 4u + c;
        if (d < params.head_dim) {
            x[c] = f32(k[at + d * params.k_dim]);
        }
    }
    return x;
//@endif
}

fn load_v(at: u32, d4: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(v[at / 4u + d4]);
//@else
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = d4 * 4u + c;
        if (d < params.value_dim) {
            x[c] = f32(v[at + d * params.v_dim]);
        }
    }
    return x;
//@endif
}

@compute @workgroup_size(SUBGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.tiles) {
        return;
    }
    let tile = tile_of(number, ROWS * SUBGROUP, params);
    let rows = params.q_len * params.group;
    let last_row = min(tile.first_row + ROWS * SUBGROUP, rows) - 1u;
    let valid = valid_keys(tile.batch);
    let begin = tile.split * params.split_keys;
    let seen = visible_keys_of_run(tile.first_row, last_row, valid, params);
    let end = min(seen, begin + params.split_keys);

    var query: array<vec4<f32>, ROWS * D4>;
    var acc: array<vec4<f32>, ROWS * V4>;
    var maximum: array<f32, ROWS>;
    var total: array<f32, ROWS>;
    var seen_by: array<Row, ROWS>;
    //@unroll
    for (var r = 0u; r < ROWS; r++) {
        let row = min(tile.first_row + r * SUBGROUP + lane, last_row);
        let at = q_start(tile, row, params);
        //@unroll
        for (var d = 0u; d < D4; d++) {
            query[r * D4 + d] = load_q(at, d) * params.scale;
        }
        //@unroll
        for (var d = 0u; d < V4; d++) {
            acc[r * V4 + d] = vec4<f32>();
        }
        maximum[r] = HIDDEN;
        total[r] = 0.0;
        seen_by[r] = row_of(tile, row, valid, end);
    }

    let k_base = params.k_at + tile.batch * params.k_batch + tile.kv_head * params.k_head;
    let v_base = params.v_at + tile.batch * params.v_batch + tile.kv_head * params.v_head;
    for (var j = begin; j < end; j += KEYS) {
        // Keys past the end are read as the last one and hidden below.
        var share: array<vec4<f32>, K_LOADS>;
        //@unroll
        for (var t = 0u; t < K_LOADS; t++) {
            let n = t * SUBGROUP + lane;
            share[t] = load_k(k_base + min(j + n / D4, end - 1u) * params.k_row, n % D4);
        }
        var share_v: array<vec4<f32>, V_LOADS>;
        //@unroll
        for (var t = 0u; t < V_LOADS; t++) {
            let n = t * SUBGROUP + lane;
            share_v[t] = load_v(v_base + min(j + n / V4, end - 1u) * params.v_row, n % V4);
        }

        var score: array<f32, ROWS * KEYS>;
        //@unroll
        for (var n = 0u; n < ROWS * KEYS; n++) {
            score[n] = 0.0;
        }
        //@unroll
        for (var d = 0u; d < D4; d++) {
            //@unroll
            for (var c = 0u; c < KEYS; c++) {
                let key = subgroupBroadcast(share[(c * D4 + d) / SUBGROUP], (c * D4 + d) % SUBGROUP);
                //@unroll
                for (var r = 0u; r < ROWS; r++) {
                    let x = query[r * D4 + d];
                    // Four dims are summed first: fewer additions to a large number.
                    score[r * KEYS + c] += fma(x.w, key.w, fma(x.z, key.z, fma(x.y, key.y, x.x * key.x)));
                }
            }
        }

        var rescale: array<f32, ROWS>;
        //@unroll
        for (var r = 0u; r < ROWS; r++) {
            var highest = maximum[r];
            //@unroll
            for (var c = 0u; c < KEYS; c++) {
                let s = final_score(score[r * KEYS + c], seen_by[r], j + c, end - 1u);
                highest = max(highest, s);
                score[r * KEYS + c] = s;
            }
            rescale[r] = exp2(maximum[r] - highest);
            maximum[r] = highest;
            var sum = 0.0;
            //@unroll
            for (var c = 0u; c < KEYS; c++) {
                score[r * KEYS + c] = weight(score[r * KEYS + c], highest);
                sum += score[r * KEYS + c];
            }
            total[r] = fma(total[r], rescale[r], sum);
        }

        //@unroll
        for (var d = 0u; d < V4; d++) {
            var value: array<vec4<f32>, KEYS>;
            //@unroll
            for (var c = 0u; c < KEYS; c++) {
                value[c] = subgroupBroadcast(share_v[(c * V4 + d) / SUBGROUP], (c * V4 + d) % SUBGROUP);
            }
            //@unroll
            for (var r = 0u; r < ROWS; r++) {
                // The keys of a step are summed first: fewer additions to a large number.
                var sum = vec4<f32>();
                //@unroll
                for (var c = 0u; c < KEYS; c++) {
                    sum = fma(vec4<f32>(score[r * KEYS + c]), value[c], sum);
                }
                acc[r * V4 + d] = fma(acc[r * V4 + d], vec4<f32>(rescale[r]), sum);
            }
        }
    }

    //@unroll
    for (var r = 0u; r < ROWS; r++) {
        let row = tile.first_row + r * SUBGROUP + lane;
        if (row <= last_row) {
//@if PARTIAL
            let at = partial_at(tile, row, params);
            //@unroll
            for (var d = 0u; d < V4; d++) {
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    if (d * 4u + c < params.value_dim) {
                        scratch[at + d * 4u + c] = acc[r * V4 + d][c];
                    }
                }
            }
            scratch[at + params.value_dim] = maximum[r];
            scratch[at + params.value_dim + 1u] = total[r];
//@else
            let at = o_start(tile, row, params);
            let inverse = reciprocal(total[r]);
            //@unroll
            for (var d = 0u; d < V4; d++) {
//@if VEC4
                o[at / 4u + d] = Stored(acc[r * V4 + d] * inverse);
//@else
                //@unroll
                for (var c = 0u; c < 4u; c++) {
                    if (d * 4u + c < params.value_dim) {
                        o[at + (d * 4u + c) * params.o_dim] = Scalar(acc[r * V4 + d][c] * inverse);
                    }
                }
//@endif
            }
//@if LSE
            lse[lse_start(tile, row, params)] = log_sum_exp(maximum[r], total[r]);
//@endif
//@endif
        }
    }
}
