// Attention, tile schedule: for any GPU, no subgroups needed.
//
// Formula:   o = softmax(scale q k^T + bias, visible) v; lse = log sum exp; online over keys.
// Grid:      one workgroup per (batch, KV head, key range, tile of ROWS packed rows).
// Workgroup: THREADS invocations as 8 x 8. Invocation (y, x) owns a 4 x 4 piece of the scores
//            (rows 4y.., keys x, x + 8, ..) and of each chunk of the output (rows 4y.., dims x, ..).
// Memory:    chunks of q and of k or v, the weights, and one column of row reductions; rows are
//            padded by one element against bank conflicts. 13.5 KiB.

//@import grid
//@import attention_tensors

alias Stored = Scalar;

const V_CHUNKS: u32 = 2u; //@variant
const ROWS: u32 = 32u;
const KEYS: u32 = 32u;
const CHUNK: u32 = 32u;
const THREADS: u32 = 64u;
const LOADS: u32 = ROWS * CHUNK / THREADS;
const PITCH: u32 = CHUNK + 1u;

var<workgroup> left: array<f32, ROWS * PITCH>;      // q chunk, [row, dim]
var<workgroup> right: array<f32, KEYS * PITCH>;     // k or v chunk, [key, dim]
var<workgroup> weights: array<f32, ROWS * PITCH>;   // [row, key]
var<workgroup> columns: array<f32, ROWS * 8u>;      // one number per row and x
var<workgroup> row_at: array<u32, ROWS>;            // first element of each row of q

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
    let tile = tile_of(number, ROWS, params);
    let end_row = rows_end(tile, ROWS, params);
//@if LISTS
    if (tile.first_row >= end_row) {
        return;
    }
//@endif
    let last_row = end_row - 1u;
    let walk = walk_of(tile, last_row);
    let x = local % 8u;
    let y = local / 8u;

    if (local < ROWS) {
        row_at[local] = q_start(tile, min(tile.first_row + local, last_row), params);
    }

    var acc: array<f32, V_CHUNKS * 16u>;
    //@unroll
    for (var n = 0u; n < V_CHUNKS * 16u; n++) {
        acc[n] = 0.0;
    }
    var maximum: array<f32, 4>;
    var total: array<f32, 4>;
    var seen_by: array<Row, 4>;
    //@unroll
    for (var a = 0u; a < 4u; a++) {
        let row = min(tile.first_row + y * 4u + a, last_row);
        maximum[a] = start_maximum(tile, row);
        total[a] = select(0.0, start_total(maximum[a]), x == 0u);
        seen_by[a] = row_of(tile, row, walk);
    }

    let k_base = params.k_at + tile.batch * params.k_batch + tile.kv_head * params.k_head;
    let v_base = params.v_at + tile.batch * params.v_batch + tile.kv_head * params.v_head;
    let load_row = local / CHUNK;
    let load_dim = local % CHUNK;

//@if RUNS
    for (var run = next_run(walk, walk.begin); run.x < run.y; run = next_run(walk, run.y)) {
    let begin = run.x;
    let end = run.y;
//@if MIXED_BLOCKS
    //@unroll
    for (var r = 0u; r < 4u; r++) {
        seen_by[r] = row_in_run(seen_by[r], begin);
    }
//@endif
//@else
    let begin = walk.first;
    let end = walk.limit;
//@endif
    let last = last_key(end);
    for (var j = begin; j < end; j += KEYS) {
        var score: array<f32, 16>;
        //@unroll
        for (var n = 0u; n < 16u; n++) {
            score[n] = 0.0;
        }
        for (var d0 = 0u; d0 < params.head_dim; d0 += CHUNK) {
            let d = d0 + load_dim;
            workgroupBarrier();
            for (var n = 0u; n < LOADS; n++) {
                let row = load_row + n * (THREADS / CHUNK);
                // Keys past the end are read as the last one and hidden below.
                let key = min(key_at(walk, j + row, end), last);
                var query_value = 0.0;
                var key_value = 0.0;
                if (d < params.head_dim) {
                    query_value = f32(q[row_at[row] + d * params.q_dim]);
                    key_value = f32(k[k_base + key * params.k_row + d * params.k_dim]);
                }
                left[row * PITCH + load_dim] = query_value * params.scale;
                right[row * PITCH + load_dim] = key_value;
            }
            workgroupBarrier();
            // The dims of a chunk, like the keys of a tile below, are summed first: fewer additions to
            // a large number.
            var part: array<f32, 16>;
            //@unroll
            for (var n = 0u; n < 16u; n++) {
                part[n] = 0.0;
            }
            for (var n = 0u; n < min(CHUNK, params.head_dim - d0); n++) {
                let k0 = right[x * PITCH + n];
                let k1 = right[(x + 8u) * PITCH + n];
                let k2 = right[(x + 16u) * PITCH + n];
                let k3 = right[(x + 24u) * PITCH + n];
                //@unroll
                for (var a = 0u; a < 4u; a++) {
                    let query_value = left[(y * 4u + a) * PITCH + n];
                    part[a * 4u] = fma(query_value, k0, part[a * 4u]);
                    part[a * 4u + 1u] = fma(query_value, k1, part[a * 4u + 1u]);
                    part[a * 4u + 2u] = fma(query_value, k2, part[a * 4u + 2u]);
                    part[a * 4u + 3u] = fma(query_value, k3, part[a * 4u + 3u]);
                }
            }
            //@unroll
            for (var n = 0u; n < 16u; n++) {
                score[n] += part[n];
            }
        }

        //@unroll
        for (var a = 0u; a < 4u; a++) {
            var highest = HIDDEN;
            //@unroll
            for (var b = 0u; b < 4u; b++) {
                let key = key_at(walk, j + x + b * 8u, end);
                let s = final_score(score[a * 4u + b], seen_by[a], key, last, unmasked(seen_by[a], key, last));
                highest = max(highest, s);
                score[a * 4u + b] = s;
            }
            columns[(y * 4u + a) * 8u + x] = highest;
        }
        workgroupBarrier();
        var rescale: array<f32, 4>;
        //@unroll
        for (var a = 0u; a < 4u; a++) {
            var highest = maximum[a];
            for (var n = 0u; n < 8u; n++) {
                highest = max(highest, columns[(y * 4u + a) * 8u + n]);
            }
            highest = raised(maximum[a], highest);
            rescale[a] = exp2(maximum[a] - highest);
            maximum[a] = highest;
            // Each invocation sums its own keys; the rows are added up at the end.
            var sum = 0.0;
            //@unroll
            for (var b = 0u; b < 4u; b++) {
                let key = key_at(walk, j + x + b * 8u, end);
                let w = weight_of(score[a * 4u + b], highest, seen_by[a], key, last);
                weights[(y * 4u + a) * PITCH + x + b * 8u] = w;
                sum += w;
            }
            total[a] = fma(total[a], rescale[a], sum);
        }

        //@unroll
        for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
            let d = chunk * CHUNK + load_dim;
            workgroupBarrier();
            for (var n = 0u; n < LOADS; n++) {
                let row = load_row + n * (THREADS / CHUNK);
                let key = key_at(walk, j + row, end);
                var value = 0.0;
                if (d < params.value_dim) {
                    value = f32(v[v_base + min(key, last) * params.v_row + d * params.v_dim]);
                }
//@if LISTS
                // Nothing times what is not listed may be NaN.
                value = select(0.0, value, key <= last);
//@endif
                right[row * PITCH + load_dim] = value;
            }
            workgroupBarrier();
            var piece: array<f32, 16>;
            //@unroll
            for (var n = 0u; n < 16u; n++) {
                piece[n] = 0.0;
            }
            for (var n = 0u; n < KEYS; n++) {
                let v0 = right[n * PITCH + x];
                let v1 = right[n * PITCH + x + 8u];
                let v2 = right[n * PITCH + x + 16u];
                let v3 = right[n * PITCH + x + 24u];
                //@unroll
                for (var a = 0u; a < 4u; a++) {
                    let w = weights[(y * 4u + a) * PITCH + n];
                    piece[a * 4u] = fma(w, v0, piece[a * 4u]);
                    piece[a * 4u + 1u] = fma(w, v1, piece[a * 4u + 1u]);
                    piece[a * 4u + 2u] = fma(w, v2, piece[a * 4u + 2u]);
                    piece[a * 4u + 3u] = fma(w, v3, piece[a * 4u + 3u]);
                }
            }
            //@unroll
            for (var n = 0u; n < 16u; n++) {
                acc[chunk * 16u + n] = fma(acc[chunk * 16u + n], rescale[n / 4u], piece[n]);
            }
        }
    }
//@if RUNS
    }
//@endif

    workgroupBarrier();
    //@unroll
    for (var a = 0u; a < 4u; a++) {
        columns[(y * 4u + a) * 8u + x] = total[a];
    }
    workgroupBarrier();
    //@unroll
    for (var a = 0u; a < 4u; a++) {
        let row = tile.first_row + y * 4u + a;
        var sum = 0.0;
        for (var n = 0u; n < 8u; n++) {
            sum += columns[(y * 4u + a) * 8u + n];
        }
        if (row <= last_row) {
//@if PARTIAL
            let at = partial_at(tile, row, params);
            //@unroll
            for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
                //@unroll
                for (var b = 0u; b < 4u; b++) {
                    let d = chunk * CHUNK + x + b * 8u;
                    if (d < params.value_dim) {
                        scratch[at + d] = acc[chunk * 16u + a * 4u + b];
                    }
                }
            }
            if (x == 0u) {
                store_state(at, maximum[a], sum, tile.split);
            }
//@else
            let at = o_start(tile, row, params);
            let inverse = normaliser(sum, tile, row);
            //@unroll
            for (var chunk = 0u; chunk < V_CHUNKS; chunk++) {
                //@unroll
                for (var b = 0u; b < 4u; b++) {
                    let d = chunk * CHUNK + x + b * 8u;
                    if (d < params.value_dim) {
                        o[at + d * params.o_dim] = Scalar(acc[chunk * 16u + a * 4u + b] * inverse);
                    }
                }
            }
//@if LSE
            if (x == 0u) {
                lse[lse_start(tile, row, params)] = log_sum_exp(maximum[a], sum);
            }
//@endif
//@endif
        }
    }
}
