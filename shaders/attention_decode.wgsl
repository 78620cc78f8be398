// Attention, decode schedule: for few query rows and many keys, where reading K and V once is the cost.
//
// Formula:   o = softmax(scale q k^T + bias, visible) v; lse = log sum exp; online over keys.
// Grid:      one workgroup per (batch, KV head, key range, tile of ROWS packed rows).
// Workgroup: one subgroup, which shares ROWS rows. A step is one key per lane: for the scores each lane
//            reads its own key; for the output each lane owns every SUBGROUP-th vector of dims, and
//            subgroupBroadcast hands the weights round. Lanes read stretches of keys, so that each
//            stays in pages of its own.
// Memory:    no workgroup memory. Partial results go to scratch when keys are split.

//@import grid
//@import attention_vectors

const SUBGROUP: u32 = 8u; //@variant
const ROWS: u32 = 4u; //@variant
const D4: u32 = 32u; //@variant
const V4: u32 = 32u; //@variant
const STRETCH: u32 = 16u; //@variant
const Q_LOADS: u32 = (D4 + SUBGROUP - 1u) / SUBGROUP;
const CHUNKS: u32 = (V4 + SUBGROUP - 1u) / SUBGROUP;

// The key after `key` in a lane's stretch, or the first of its stretch in the next block.
fn next_key(key: u32, turn: ptr<function, u32>, stretch: u32) -> u32 {
    if (key + 1u < *turn) {
        return key + 1u;
    }
    *turn += SUBGROUP * stretch;
    return *turn - stretch;
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
    let tile = tile_of(number, ROWS, params);
    let end_row = rows_end(tile, ROWS, params);
//@if LISTS
    if (tile.first_row >= end_row) {
        return;
    }
//@endif
    let last_row = end_row - 1u;
    let walk = walk_of(tile, last_row);

    var query: array<vec4<f32>, ROWS * D4>;
    var acc: array<vec4<f32>, ROWS * CHUNKS>;
    var maximum: array<f32, ROWS>;
    var total: array<f32, ROWS>;
    var seen_by: array<Row, ROWS>;
    //@unroll
    for (var r = 0u; r < ROWS; r++) {
        let row = min(tile.first_row + r, last_row);
        let at = q_start(tile, row, params);
        var share: array<vec4<f32>, Q_LOADS>;
        //@unroll
        for (var t = 0u; t < Q_LOADS; t++) {
            share[t] = load_q(at, min(t * SUBGROUP + lane, D4 - 1u)) * params.scale;
        }
        //@unroll
        for (var d = 0u; d < D4; d++) {
            query[r * D4 + d] = subgroupBroadcast(share[d / SUBGROUP], d % SUBGROUP);
        }
        //@unroll
        for (var n = 0u; n < CHUNKS; n++) {
            acc[r * CHUNKS + n] = vec4<f32>();
        }
        maximum[r] = start_maximum(tile, row);
        // Each lane adds up its own keys; the first one holds what stands there before.
        total[r] = select(0.0, start_total(maximum[r]), lane == 0u);
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
    // Keys in blocks of a stretch per lane; short ranges are shared out evenly.
    let keys = max(end, begin) - begin;
    let stretch = clamp((keys + SUBGROUP - 1u) / SUBGROUP, 1u, STRETCH);
    // The key of lane 0, and the first one of the next block. Keys past the end are read as the last one
    // and hidden.
    var first = begin;
    var turn = begin + stretch;
    for (; first < end; first = next_key(first, &turn, stretch)) {
        let key = key_at(walk, first + lane * stretch, end);
        let k_row = k_base + min(key, last) * params.k_row;
        var score: array<f32, ROWS>;
        //@unroll
        for (var r = 0u; r < ROWS; r++) {
            score[r] = 0.0;
        }
        //@unroll
        for (var d = 0u; d < D4; d++) {
            let x = load_k(k_row, d);
            //@unroll
            for (var r = 0u; r < ROWS; r++) {
                let y = query[r * D4 + d];
                // Four dims are summed first: fewer additions to a large number.
                score[r] += fma(x.w, y.w, fma(x.z, y.z, fma(x.y, y.y, x.x * y.x)));
            }
        }

        var rescale: array<f32, ROWS>;
        //@unroll
        for (var r = 0u; r < ROWS; r++) {
            let s = final_score(score[r], seen_by[r], key, last, unmasked(seen_by[r], key, last));
            let highest = raised(maximum[r], subgroupMax(s));
            rescale[r] = exp2(maximum[r] - highest);
            maximum[r] = highest;
            score[r] = weight_of(s, highest, seen_by[r], key, last);
            // Each lane adds up its own keys; the lanes are added up at the end.
            total[r] = fma(total[r], rescale[r], score[r]);
        }

        var weights: array<f32, ROWS * SUBGROUP>;
        //@unroll
        for (var n = 0u; n < ROWS * SUBGROUP; n++) {
            weights[n] = subgroupBroadcast(score[n / SUBGROUP], n % SUBGROUP);
        }
        //@unroll
        for (var n = 0u; n < CHUNKS; n++) {
            let d = min(n * SUBGROUP + lane, V4 - 1u);
            var sum: array<vec4<f32>, ROWS>;
            //@unroll
            for (var r = 0u; r < ROWS; r++) {
                sum[r] = vec4<f32>();
            }
            //@unroll
            for (var c = 0u; c < SUBGROUP; c++) {
//@if LISTS
                let listed = subgroupBroadcast(key, c);
                // Nothing times what is not listed may be NaN.
                let x = select(vec4<f32>(), load_v(v_base + min(listed, last) * params.v_row, d), listed <= last);
//@else
                let x = load_v(v_base + min(first + c * stretch, last) * params.v_row, d);
//@endif
                //@unroll
                for (var r = 0u; r < ROWS; r++) {
                    sum[r] = fma(vec4<f32>(weights[r * SUBGROUP + c]), x, sum[r]);
                }
            }
            //@unroll
            for (var r = 0u; r < ROWS; r++) {
                acc[r * CHUNKS + n] = fma(acc[r * CHUNKS + n], vec4<f32>(rescale[r]), sum[r]);
            }
        }
    }
//@if RUNS
    }
//@endif

    //@unroll
    for (var r = 0u; r < ROWS; r++) {
        let row = tile.first_row + r;
        let sum = subgroupAdd(total[r]);
        if (row <= last_row) {
//@if PARTIAL
            let at = partial_at(tile, row, params);
            let factor = 1.0;
            if (lane == 0u) {
                store_state(at, maximum[r], sum, tile.split);
            }
//@else
            let at = o_start(tile, row, params);
            let factor = normaliser(sum, tile, row);
//@if LSE
            if (lane == 0u) {
                lse[lse_start(tile, row, params)] = log_sum_exp(maximum[r], sum);
            }
//@endif
//@endif
            //@unroll
            for (var n = 0u; n < CHUNKS; n++) {
                if (n * SUBGROUP + lane < V4) {
                    store_o(at, n * SUBGROUP + lane, acc[r * CHUNKS + n] * factor);
                }
            }
        }
    }
}
