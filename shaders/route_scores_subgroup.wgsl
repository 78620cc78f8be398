// Scores for routing, subgroup-broadcast schedule: for devices where a load costs more than arithmetic.
//
// Formula:   out[h, i, j] = sum over heads of factor relu(scale q_i . k_j), with RELU and WEIGHTS; BOUNDS:
//            sum_d max(q_d k_d, q_d k_min_d) in place of the product.
// Grid:      one workgroup per (batch, KV head, output head, range of columns, tile of ROWS * SUBGROUP rows).
// Workgroup: one subgroup. Each lane owns ROWS rows of q in registers. Per step of 4 columns, each lane loads its
//            share of k once and subgroupBroadcast hands it round. Of summed heads, one follows the other, and later
//            ones add to what the same lane wrote.
// Memory:    no workgroup memory.

//@import route_scores

const SUBGROUP: u32 = 8u; //@variant
const ROWS: u32 = 4u; //@variant
const D4: u32 = 16u; //@variant
// Vectors of a row that are loaded, handed round and used before the next: small blocks of code.
const CHUNK: u32 = 8u; //@variant
const COLUMNS: u32 = 4u;
const CHUNKS: u32 = (D4 + CHUNK - 1u) / CHUNK;
const LOADS: u32 = (COLUMNS * CHUNK + SUBGROUP - 1u) / SUBGROUP;

// Vector `d4` of a row that starts at `at`; channels past its end are 0.
fn load_q(at: u32, d4: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(q[at / 4u + d4]);
//@else
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (d4 * 4u + c < params.channels) {
            x[c] = f32(q[at + (d4 * 4u + c) * params.q_channel]);
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
        if (d4 * 4u + c < params.channels) {
            x[c] = f32(k[at + (d4 * 4u + c) * params.k_channel]);
        }
    }
    return x;
//@endif
}

//@if BOUNDS
fn load_low(at: u32, d4: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(k_min[at / 4u + d4]);
//@else
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (d4 * 4u + c < params.channels) {
            x[c] = f32(k_min[at + (d4 * 4u + c) * params.low_channel]);
        }
    }
    return x;
//@endif
}
//@endif

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
    let share = share_of(number, ROWS * SUBGROUP);
    let last_row = params.rows - 1u;
    for (var summed = 0u; summed < params.summed; summed++) {
        let add = params.add + summed > 0u;
        var query: array<vec4<f32>, ROWS * D4>;
        var factor: array<f32, ROWS>;
        //@unroll
        for (var r = 0u; r < ROWS; r++) {
            // Rows past the last are read as the last, and not written.
            let row = min(share.first_row + r * SUBGROUP + lane, last_row);
            factor[r] = factor_of(share, summed, row);
            let at = share.q + summed * params.q_head + row * params.q_row;
            //@unroll
            for (var d = 0u; d < D4; d++) {
                query[r * D4 + d] = load_q(at, d);
            }
        }
        for (var j = share.first_column; j < share.end_column; j += COLUMNS) {
            var score: array<vec4<f32>, ROWS>;
            //@unroll
            for (var r = 0u; r < ROWS; r++) {
                score[r] = vec4<f32>();
            }
            //@unroll
            for (var chunk = 0u; chunk < CHUNKS; chunk++) {
                var part: array<vec4<f32>, LOADS>;
//@if BOUNDS
                var low_part: array<vec4<f32>, LOADS>;
//@endif
                //@unroll
                for (var t = 0u; t < LOADS; t++) {
                    let n = t * SUBGROUP + lane;
                    let d = min(chunk * CHUNK + n % CHUNK, D4 - 1u);
                    // Columns past the end are read as the last one, and not written.
                    let column = min(j + n / CHUNK, share.end_column - 1u);
                    part[t] = load_k(share.k + column * params.k_row, d);
//@if BOUNDS
                    low_part[t] = load_low(share.low + column * params.low_row, d);
//@endif
                }
                //@unroll
                for (var e = 0u; e < CHUNK; e++) {
                    if (chunk * CHUNK + e < D4) {
                        //@unroll
                        for (var c = 0u; c < COLUMNS; c++) {
                            let key = subgroupBroadcast(part[(c * CHUNK + e) / SUBGROUP], (c * CHUNK + e) % SUBGROUP);
//@if BOUNDS
                            let low = subgroupBroadcast(low_part[(c * CHUNK + e) / SUBGROUP], (c * CHUNK + e) % SUBGROUP);
//@endif
                            //@unroll
                            for (var r = 0u; r < ROWS; r++) {
                                let x = query[r * D4 + min(chunk * CHUNK + e, D4 - 1u)];
                                // Four channels are summed first: fewer additions to a large number.
//@if BOUNDS
                                let most = max(x * key, x * low);
                                score[r][c] += (most.x + most.y) + (most.z + most.w);
//@else
                                score[r][c] += fma(x.w, key.w, fma(x.z, key.z, fma(x.y, key.y, x.x * key.x)));
//@endif
                            }
                        }
                    }
                }
            }
            //@unroll
            for (var r = 0u; r < ROWS; r++) {
                let row = share.first_row + r * SUBGROUP + lane;
                if (row <= last_row) {
                    store(share, row, j, share.end_column - j, finished(score[r], factor[r]), add);
                }
            }
        }
    }
}
