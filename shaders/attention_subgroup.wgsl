// Attention, subgroup-broadcast schedule: for devices where a load costs more than arithmetic.
//
// Formula:   o = softmax(scale q k^T + bias, visible) v; lse = log sum exp; online over keys.
// Grid:      one workgroup per (batch, KV head, key range, tile of ROWS * SUBGROUP packed rows).
// Workgroup: one subgroup. Each lane owns ROWS rows of q and o in registers. Per step of KEYS
//            keys, each lane loads its share of K and V once and subgroupBroadcast hands it round.
//            A step's code should stay within the instruction cache, which is what bounds KEYS.
// Memory:    no workgroup memory. Partial results go to scratch when keys are split.

//@import grid
//@import attention_vectors

const SUBGROUP: u32 = 8u; //@variant
const ROWS: u32 = 4u; //@variant
const KEYS: u32 = 4u; //@variant
const D4: u32 = 16u; //@variant
const V4: u32 = 16u; //@variant
// Vectors of a row that are loaded, handed round and used before the next: small blocks of code.
const K_CHUNK: u32 = 8u; //@variant
const V_CHUNK: u32 = 8u; //@variant
const K_CHUNKS: u32 = (D4 + K_CHUNK - 1u) / K_CHUNK;
const V_CHUNKS: u32 = (V4 + V_CHUNK - 1u) / V_CHUNK;
const K_LOADS: u32 = (KEYS * K_CHUNK + SUBGROUP - 1u) / SUBGROUP;
const V_LOADS: u32 = (KEYS * V_CHUNK + SUBGROUP - 1u) / SUBGROUP;

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
    let end_row = rows_end(tile, ROWS * SUBGROUP, params);
//@if LISTS
    if (tile.first_row >= end_row) {
        return;
    }
//@endif
    let last_row = end_row - 1u;
    let walk = walk_of(tile, last_row);

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
        maximum[r] = start_maximum(tile, row);
        total[r] = start_total(maximum[r]);
        seen_by[r] = row_of(tile, row, walk);
    }

    let k_base = params.k_at + tile.batch * params.k_batch + tile.kv_head * params.k_head;
    let v_base = params.v_at + tile.batch * params.v_batch + tile.kv_head * params.v_head;
//@if RUNS
    for (var run = next_run(walk, walk.begin); run.x < run.y; run = next_run(walk, run.y)) {
    let begin = run.x;
    let end = run.y;
//@if MIXED_BLOCKS
    //@unroll
    for (var r = 0u; r < ROWS; r++) {
        seen_by[r] = row_in_run(seen_by[r], begin);
    }
//@endif
//@else
    let begin = walk.first;
    let end = walk.limit;
//@endif
    let last = last_key(end);
    for (var j = begin; j < end; j += KEYS) {
        var key: array<u32, KEYS>;
        //@unroll
        for (var c = 0u; c < KEYS; c++) {
            key[c] = key_at(walk, j + c, end);
        }
        var score: array<f32, ROWS * KEYS>;
        //@unroll
        for (var n = 0u; n < ROWS * KEYS; n++) {
            score[n] = 0.0;
        }
        // Keys and vectors past the end are read as the last one; the keys are hidden below.
        //@unroll
        for (var chunk = 0u; chunk < K_CHUNKS; chunk++) {
            var share: array<vec4<f32>, K_LOADS>;
            //@unroll
            for (var t = 0u; t < K_LOADS; t++) {
                let n = t * SUBGROUP + lane;
                let d = min(chunk * K_CHUNK + n % K_CHUNK, D4 - 1u);
                let key = min(key_at(walk, j + n / K_CHUNK, end), last);
                share[t] = load_k(k_base + key * params.k_row, d);
            }
            //@unroll
            for (var e = 0u; e < K_CHUNK; e++) {
                if (chunk * K_CHUNK + e < D4) {
                    //@unroll
                    for (var c = 0u; c < KEYS; c++) {
                        let key = subgroupBroadcast(share[(c * K_CHUNK + e) / SUBGROUP], (c * K_CHUNK + e) % SUBGROUP);
                        //@unroll
                        for (var r = 0u; r < ROWS; r++) {
                            let x = query[r * D4 + min(chunk * K_CHUNK + e, D4 - 1u)];
                            // Four dims are summed first: fewer additions to a large number.
                            score[r * KEYS + c] += fma(x.w, key.w, fma(x.z, key.z, fma(x.y, key.y, x.x * key.x)));
                        }
                    }
                }
            }
        }

        var rescale: array<f32, ROWS>;
        //@unroll
        for (var r = 0u; r < ROWS; r++) {
            var highest = maximum[r];
//@if !LISTS
            var bytes: array<u32, (KEYS + 3u) / 4u>;
            //@unroll
            for (var n = 0u; n < (KEYS + 3u) / 4u; n++) {
                bytes[n] = mask_bytes(seen_by[r], j + n * 4u, min(KEYS - n * 4u, 4u), last);
            }
//@endif
            //@unroll
            for (var c = 0u; c < KEYS; c++) {
//@if LISTS
                let kept = unmasked(seen_by[r], key[c], last);
//@else
                let kept = ((bytes[c / 4u] >> (c % 4u * 8u)) & 255u) != 0u;
//@endif
                let s = final_score(score[r * KEYS + c], seen_by[r], key[c], last, kept);
                highest = max(highest, s);
                score[r * KEYS + c] = s;
            }
            highest = raised(maximum[r], highest);
            rescale[r] = exp2(maximum[r] - highest);
            maximum[r] = highest;
            var sum = 0.0;
            //@unroll
            for (var c = 0u; c < KEYS; c++) {
                score[r * KEYS + c] = weight_of(score[r * KEYS + c], highest, seen_by[r], key[c], last);
                sum += score[r * KEYS + c];
            }
            total[r] = fma(total[r], rescale[r], sum);
        }

        //@unroll
        for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
            var share: array<vec4<f32>, V_LOADS>;
            //@unroll
            for (var t = 0u; t < V_LOADS; t++) {
                let n = t * SUBGROUP + lane;
                let d = min(chunk * V_CHUNK + n % V_CHUNK, V4 - 1u);
                let key = key_at(walk, j + n / V_CHUNK, end);
                share[t] = load_v(v_base + min(key, last) * params.v_row, d);
//@if LISTS
                // Nothing times what is not listed may be NaN.
                share[t] = select(vec4<f32>(), share[t], key <= last);
//@endif
            }
            //@unroll
            for (var e = 0u; e < V_CHUNK; e++) {
                if (chunk * V_CHUNK + e < V4) {
                    var value: array<vec4<f32>, KEYS>;
                    //@unroll
                    for (var c = 0u; c < KEYS; c++) {
                        value[c] = subgroupBroadcast(share[(c * V_CHUNK + e) / SUBGROUP], (c * V_CHUNK + e) % SUBGROUP);
                    }
                    //@unroll
                    for (var r = 0u; r < ROWS; r++) {
                        let at = r * V4 + min(chunk * V_CHUNK + e, V4 - 1u);
                        // The keys of a step are summed first: fewer additions to a large number.
                        var sum = vec4<f32>();
                        //@unroll
                        for (var c = 0u; c < KEYS; c++) {
                            sum = fma(vec4<f32>(score[r * KEYS + c]), value[c], sum);
                        }
                        acc[at] = fma(acc[at], vec4<f32>(rescale[r]), sum);
                    }
                }
            }
        }
    }
//@if RUNS
    }
//@endif

    //@unroll
    for (var r = 0u; r < ROWS; r++) {
        let row = tile.first_row + r * SUBGROUP + lane;
        if (row <= last_row) {
//@if PARTIAL
            let at = partial_at(tile, row, params);
            let factor = 1.0;
            store_state(at, maximum[r], total[r], tile.split);
//@else
            let at = o_start(tile, row, params);
            let factor = normaliser(total[r], tile, row);
//@if LSE
            lse[lse_start(tile, row, params)] = log_sum_exp(maximum[r], total[r]);
//@endif
//@endif
            //@unroll
            for (var d = 0u; d < V4; d++) {
                store_o(at, d, acc[r * V4 + d] * factor);
            }
        }
    }
}
