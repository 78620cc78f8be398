// Attention, matrix schedule: for devices that multiply small matrices in hardware.
//
// Formula:   o = softmax(scale q k^T + bias, visible) v; lse = log sum exp; online over keys.
// Grid:      one workgroup per (batch, KV head, key range, tile of ROWS packed rows).
// Workgroup: GROUPS subgroups of up to LANES invocations. Each owns STRIPS strips of SIDE rows: q
//            and the sums of o stay in its matrices. The softmax between the two products, for
//            which matrices have no operations, is done row by row, one invocation per row.
// Memory:    tiles of k and v, scores in f32, weights as they are multiplied; rows are padded
//            against bank conflicts and with zeros up to whole matrices. 22 to 48 KiB.
//
// The two products are the only work of matrices, behind six functions. EMULATED writes those six
// out as loops, so that all else runs, and is tested, on devices that have no matrices.

//@import grid
//@import attention_tensors

//@if VEC4
alias Stored = vec4<Scalar>;
//@else
alias Stored = Scalar;
//@endif

const SIDE: u32 = 16u; //@variant
const LANES: u32 = 32u; //@variant
const STRIPS: u32 = 2u; //@variant
const KEYS: u32 = 32u; //@variant
const D_STEPS: u32 = 4u; //@variant
const V_STEPS: u32 = 4u; //@variant
const GROUPS: u32 = 4u;
const THREADS: u32 = GROUPS * LANES;
const ROWS: u32 = GROUPS * STRIPS * SIDE;
// Rows that an invocation owns in the softmax.
const ROW_TURNS: u32 = (ROWS + THREADS - 1u) / THREADS;
const KEY_STEPS: u32 = KEYS / SIDE;
// Places in workgroup memory are counted in fours of elements.
const SIDE4: u32 = SIDE / 4u;
const KEYS4: u32 = KEYS / 4u;
const D4: u32 = D_STEPS * SIDE4;
const V4: u32 = V_STEPS * SIDE4;
const K_PITCH: u32 = D4 + 2u;
const V_PITCH: u32 = V4 + 2u;
const W_PITCH: u32 = KEYS4 + 2u;
const S_PITCH: u32 = KEYS4 + 1u;

// Weights lie below 2^(PEAK + SLACK): f16 ends at 2^16, and the higher they lie, the less of a small
// one is lost.
const PEAK: f32 = 7.0;
// A row's maximum may grow by this much (in base 2) before its sums are brought to the new one. The
// sums are in matrices, which only know products, so that is a way through workgroup memory and
// back. It is rare, and exact: whatever number is taken for the maximum, the division at the end
// takes out.
const SLACK: f32 = 8.0;

//@if WIDE
// Four at a time.
const WORDS: u32 = 1u;
alias Tiled = vec4<Scalar>;
alias Summed = vec4<f32>;
//@else
// MSL loads matrices through pointers to scalars.
const WORDS: u32 = 4u;
alias Tiled = Scalar;
alias Summed = f32;
//@endif

var<workgroup> keys: array<Tiled, KEYS * K_PITCH * WORDS>;      // [key, dim]
var<workgroup> values: array<Tiled, KEYS * V_PITCH * WORDS>;    // [key, dim]
var<workgroup> weights: array<Tiled, ROWS * W_PITCH * WORDS>;   // [row, key], at first q [row, dim]
var<workgroup> scores: array<Summed, ROWS * S_PITCH * WORDS>;   // [row, key], or sums [row, dim]
var<workgroup> factors: array<f32, ROWS>;                       // what a row's sums are to be scaled by
var<workgroup> moves: atomic<u32>;                              // how often a maximum outgrew SLACK

fn set_keys(at: u32, x: vec4<Scalar>) {
//@if WIDE
    keys[at] = x;
//@else
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        keys[at * 4u + c] = x[c];
    }
//@endif
}

fn set_values(at: u32, x: vec4<Scalar>) {
//@if WIDE
    values[at] = x;
//@else
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        values[at * 4u + c] = x[c];
    }
//@endif
}

fn set_weights(at: u32, x: vec4<Scalar>) {
//@if WIDE
    weights[at] = x;
//@else
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        weights[at * 4u + c] = x[c];
    }
//@endif
}

fn set_scores(at: u32, x: vec4<f32>) {
//@if WIDE
    scores[at] = x;
//@else
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        scores[at * 4u + c] = x[c];
    }
//@endif
}

fn scores_at(at: u32) -> vec4<f32> {
//@if WIDE
    return scores[at];
//@else
    let n = at * 4u;
    return vec4<f32>(scores[n], scores[n + 1u], scores[n + 2u], scores[n + 3u]);
//@endif
}

// Matrices: `Left * Right + Sum`, each SIDE x SIDE and spread over the lanes of a subgroup.
//@if EMULATED
// Left and Sum: row `lane` is in lane `lane`, and lanes past the last row hold nothing. Right: stays
// where it is until it is multiplied.
struct Left {
    row: array<vec4<f32>, SIDE4>,
}

struct Right {
    at: u32,
    of_keys: bool,
}

struct Sum {
    row: array<vec4<f32>, SIDE4>,
}

var<private> lane: u32;

fn load_left(at: u32) -> Left {
    var left: Left;
    let first = at + min(lane, SIDE - 1u) * W_PITCH;
    //@unroll
    for (var n = 0u; n < SIDE4; n++) {
//@if WIDE
        left.row[n] = vec4<f32>(weights[first + n]);
//@else
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            left.row[n][c] = f32(weights[(first + n) * 4u + c]);
        }
//@endif
    }
    return left;
}

fn load_keys(at: u32) -> Right {
    return Right(at, true);
}

fn load_values(at: u32) -> Right {
    return Right(at, false);
}

fn load_sum(at: u32) -> Sum {
    var sum: Sum;
    //@unroll
    for (var n = 0u; n < SIDE4; n++) {
        sum.row[n] = scores_at(at + min(lane, SIDE - 1u) * S_PITCH + n);
    }
    return sum;
}

fn store_sum(at: u32, sum: Sum) {
    if (lane < SIDE) {
        //@unroll
        for (var n = 0u; n < SIDE4; n++) {
            set_scores(at + lane * S_PITCH + n, sum.row[n]);
        }
    }
}

fn multiply_add(left: Left, right: Right, sum: Sum) -> Sum {
    var result = sum;
    if (lane < SIDE) {
        var row = left.row;
        for (var n = 0u; n < SIDE; n++) {
            if (right.of_keys) {
                // A row of `keys` is a column of the matrix.
                var product = 0.0;
                //@unroll
                for (var m = 0u; m < SIDE4; m++) {
                    let at = right.at + n * K_PITCH + m;
//@if WIDE
                    product += dot(row[m], vec4<f32>(keys[at]));
//@else
                    //@unroll
                    for (var c = 0u; c < 4u; c++) {
                        product += row[m][c] * f32(keys[at * 4u + c]);
                    }
//@endif
                }
                result.row[n / 4u][n % 4u] += product;
            } else {
                let x = row[n / 4u][n % 4u];
                //@unroll
                for (var m = 0u; m < SIDE4; m++) {
                    let at = right.at + n * V_PITCH + m;
//@if WIDE
                    result.row[m] += x * vec4<f32>(values[at]);
//@else
                    //@unroll
                    for (var c = 0u; c < 4u; c++) {
                        result.row[m][c] += x * f32(values[at * 4u + c]);
                    }
//@endif
                }
            }
        }
    }
    return result;
}
//@else
enable wgpu_cooperative_matrix;
//@if WIDE
alias Left = coop_mat16x16<Scalar, A>;
alias Right = coop_mat16x16<Scalar, B>;
alias Sum = coop_mat16x16<f32, C>;
//@else
alias Left = coop_mat8x8<Scalar, A>;
alias Right = coop_mat8x8<Scalar, B>;
alias Sum = coop_mat8x8<f32, C>;
//@endif

// The T of a built-in means row by row; without it a column lies in one piece.
fn load_left(at: u32) -> Left {
    return coopLoadT<Left>(&weights[at * WORDS], W_PITCH * WORDS);
}

// A row of `keys` is a column of the matrix.
fn load_keys(at: u32) -> Right {
    return coopLoad<Right>(&keys[at * WORDS], K_PITCH * WORDS);
}

fn load_values(at: u32) -> Right {
    return coopLoadT<Right>(&values[at * WORDS], V_PITCH * WORDS);
}

fn load_sum(at: u32) -> Sum {
    return coopLoadT<Sum>(&scores[at * WORDS], S_PITCH * WORDS);
}

fn store_sum(at: u32, sum: Sum) {
    coopStoreT(sum, &scores[at * WORDS], S_PITCH * WORDS);
}

fn multiply_add(left: Left, right: Right, sum: Sum) -> Sum {
    return coopMultiplyAdd(left, right, sum);
}
//@endif

// Four dims of a row that begins at `at`, zeros past the last.
fn load_q(at: u32, d4: u32) -> vec4<Scalar> {
    var x = vec4<Scalar>();
//@if VEC4
    if (d4 * 4u < params.head_dim) {
        x = q[at / 4u + d4];
    }
//@else
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = d4 * 4u + c;
        if (d < params.head_dim) {
            x[c] = q[at + d * params.q_dim];
        }
    }
//@endif
    return x;
}

// Keys past the end are read as the last one; their scores are hidden.
fn stage_keys(base: u32, first: u32, end: u32, local: u32) {
    for (var n = local; n < KEYS * D4; n += THREADS) {
        let at = base + min(first + n / D4, end - 1u) * params.k_row;
        let d4 = n % D4;
        var x = vec4<Scalar>();
//@if VEC4
        if (d4 * 4u < params.head_dim) {
            x = k[at / 4u + d4];
        }
//@else
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            let d = d4 * 4u + c;
            if (d < params.head_dim) {
                x[c] = k[at + d * params.k_dim];
            }
        }
//@endif
        set_keys(n / D4 * K_PITCH + d4, x);
    }
}

fn stage_values(base: u32, first: u32, end: u32, local: u32) {
    for (var n = local; n < KEYS * V4; n += THREADS) {
        let at = base + min(first + n / V4, end - 1u) * params.v_row;
        let d4 = n % V4;
        var x = vec4<Scalar>();
//@if VEC4
        if (d4 * 4u < params.value_dim) {
            x = v[at / 4u + d4];
        }
//@else
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            let d = d4 * 4u + c;
            if (d < params.value_dim) {
                x[c] = v[at + d * params.v_dim];
            }
        }
//@endif
        set_values(n / V4 * V_PITCH + d4, x);
    }
}

// Four dims of a packed row's sums to where they belong.
fn write_out(tile: Tile, row: u32, d4: u32, sums: vec4<f32>, factor: f32) {
//@if PARTIAL
    let at = partial_at(tile, row, params);
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (d4 * 4u + c < params.value_dim) {
            scratch[at + d4 * 4u + c] = sums[c] * factor;
        }
    }
//@else
    let at = o_start(tile, row, params);
//@if VEC4
    if (d4 * 4u < params.value_dim) {
        o[at / 4u + d4] = Stored(sums * factor);
    }
//@else
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = d4 * 4u + c;
        if (d < params.value_dim) {
            o[at + d * params.o_dim] = Scalar(sums[c] * factor);
        }
    }
//@endif
//@endif
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
//@if !EMULATED
    @builtin(subgroup_id) subgroup: u32,
//@endif
) {
//@if EMULATED
    let subgroup = local / LANES;
    lane = local % LANES;
//@endif
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.tiles) {
        return;
    }
    let tile = tile_of(number, ROWS, params);
    let last_row = rows_end(tile, ROWS, params) - 1u;
    let walk = walk_of(tile, last_row);
    let k_base = params.k_at + tile.batch * params.k_batch + tile.kv_head * params.k_head;
    let v_base = params.v_at + tile.batch * params.v_batch + tile.kv_head * params.v_head;

    var maximum: array<f32, ROW_TURNS>;
    var total: array<f32, ROW_TURNS>;
    // The total of the weights as they are multiplied, rounded: what o is divided by, so that o stays
    // a mean of v. lse takes the exact total.
    var mass: array<f32, ROW_TURNS>;
    var seen_by: array<Row, ROW_TURNS>;
    //@unroll
    for (var r = 0u; r < ROW_TURNS; r++) {
        let row = min(tile.first_row + r * THREADS + local, last_row);
        maximum[r] = start_maximum(tile, row);
        total[r] = start_total(maximum[r]);
        mass[r] = total[r];
        seen_by[r] = row_of(tile, row, walk);
    }
    if (local == 0u) {
        atomicStore(&moves, 0u);
    }
    var moved = 0u;

    // Where subgroups turn out smaller than LANES there are more than GROUPS, and some have no strip.
    // `for (var group = subgroup; ..)` is an `if` on that: one that naga's uniformity analysis takes.
    var query: array<Left, STRIPS * D_STEPS>;
    var acc: array<Sum, STRIPS * V_STEPS>;
    //@unroll !EMULATED
    for (var chunk = 0u; chunk < (D_STEPS + KEY_STEPS - 1u) / KEY_STEPS; chunk++) {
        workgroupBarrier();
        for (var n = local; n < ROWS * KEYS4; n += THREADS) {
            let at = q_start(tile, min(tile.first_row + n / KEYS4, last_row), params);
            set_weights(n / KEYS4 * W_PITCH + n % KEYS4, load_q(at, chunk * KEYS4 + n % KEYS4));
        }
        workgroupBarrier();
        for (var group = subgroup; group < GROUPS; group += GROUPS) {
            //@unroll
            for (var s = 0u; s < STRIPS; s++) {
                let row = (group * STRIPS + s) * SIDE;
                //@unroll !EMULATED
                for (var t = 0u; t < min(KEY_STEPS, D_STEPS - chunk * KEY_STEPS); t++) {
                    query[s * D_STEPS + chunk * KEY_STEPS + t] = load_left(row * W_PITCH + t * SIDE4);
                }
            }
        }
    }

//@if RUNS
    for (var run = next_run(walk, walk.begin); run.x < run.y; run = next_run(walk, run.y)) {
    let begin = run.x;
    let end = run.y;
//@if MIXED_BLOCKS
    //@unroll
    for (var r = 0u; r < ROW_TURNS; r++) {
        seen_by[r] = row_in_run(seen_by[r], begin);
    }
//@endif
//@else
    let begin = walk.first;
    let end = walk.limit;
//@endif
    if (begin < end) {
        stage_keys(k_base, begin, end, local);
    }
    for (var j = begin; j < end; j += KEYS) {
        workgroupBarrier();
        // This tile's values come in beside the scores, the next tile's keys beside the softmax.
        stage_values(v_base, j, end, local);
        for (var group = subgroup; group < GROUPS; group += GROUPS) {
            for (var n = 0u; n < KEY_STEPS; n++) {
                var sum: array<Sum, STRIPS>;
                //@unroll
                for (var s = 0u; s < STRIPS; s++) {
                    sum[s] = Sum();
                }
                //@unroll !EMULATED
                for (var d = 0u; d < D_STEPS; d++) {
                    let right = load_keys(n * SIDE * K_PITCH + d * SIDE4);
                    //@unroll
                    for (var s = 0u; s < STRIPS; s++) {
                        sum[s] = multiply_add(query[s * D_STEPS + d], right, sum[s]);
                    }
                }
                //@unroll
                for (var s = 0u; s < STRIPS; s++) {
                    store_sum((group * STRIPS + s) * SIDE * S_PITCH + n * SIDE4, sum[s]);
                }
            }
        }
        workgroupBarrier();
        if (j + KEYS < end) {
            stage_keys(k_base, j + KEYS, end, local);
        }
        //@unroll
        for (var r = 0u; r < ROW_TURNS; r++) {
            let row = r * THREADS + local;
            if (row < ROWS) {
                var score: array<vec4<f32>, KEYS4>;
                var highest = HIDDEN;
                //@unroll
                for (var n = 0u; n < KEYS4; n++) {
                    // The scale is not in q, where f16 would round it.
                    var x = scores_at(row * S_PITCH + n) * params.scale;
                    //@unroll
                    for (var c = 0u; c < 4u; c++) {
                        let key = j + n * 4u + c;
                        x[c] = final_score(x[c], seen_by[r], key, end - 1u, unmasked(seen_by[r], key, end - 1u));
                        highest = max(highest, x[c]);
                    }
                    score[n] = x;
                }
                var factor = 1.0;
                highest = raised(maximum[r], highest);
                if (highest > maximum[r] + PEAK + SLACK) {
                    factor = exp2(maximum[r] + PEAK - highest);
                    maximum[r] = highest - PEAK;
                    if (total[r] > 0.0) {
                        atomicAdd(&moves, 1u);
                    }
                }
                factors[row] = factor;
                var sum = vec4<f32>();
                var rounded_sum = vec4<f32>();
                //@unroll
                for (var n = 0u; n < KEYS4; n++) {
                    var w = score[n];
                    //@unroll
                    for (var c = 0u; c < 4u; c++) {
                        w[c] = weight_of(w[c], maximum[r], seen_by[r], j + n * 4u + c, end - 1u);
                    }
                    let rounded = vec4<Scalar>(w);
                    set_weights(row * W_PITCH + n, rounded);
                    sum += w;
                    rounded_sum += vec4<f32>(rounded);
                }
                total[r] = fma(total[r], factor, dot(sum, vec4<f32>(1.0)));
                mass[r] = fma(mass[r], factor, dot(rounded_sum, vec4<f32>(1.0)));
            }
        }
        workgroupBarrier();
        // At most once: an `if` again, and all invocations read the same number.
        for (let now = atomicLoad(&moves); moved != now; moved = now) {
            //@unroll !EMULATED
            for (var chunk = 0u; chunk < (V_STEPS + KEY_STEPS - 1u) / KEY_STEPS; chunk++) {
                for (var group = subgroup; group < GROUPS; group += GROUPS) {
                    //@unroll
                    for (var s = 0u; s < STRIPS; s++) {
                        let row = (group * STRIPS + s) * SIDE;
                        //@unroll !EMULATED
                        for (var t = 0u; t < min(KEY_STEPS, V_STEPS - chunk * KEY_STEPS); t++) {
                            store_sum(row * S_PITCH + t * SIDE4, acc[s * V_STEPS + chunk * KEY_STEPS + t]);
                        }
                    }
                }
                workgroupBarrier();
                for (var n = local; n < ROWS * KEYS4; n += THREADS) {
                    let at = n / KEYS4 * S_PITCH + n % KEYS4;
                    set_scores(at, scores_at(at) * factors[n / KEYS4]);
                }
                workgroupBarrier();
                for (var group = subgroup; group < GROUPS; group += GROUPS) {
                    //@unroll
                    for (var s = 0u; s < STRIPS; s++) {
                        let row = (group * STRIPS + s) * SIDE;
                        //@unroll !EMULATED
                        for (var t = 0u; t < min(KEY_STEPS, V_STEPS - chunk * KEY_STEPS); t++) {
                            acc[s * V_STEPS + chunk * KEY_STEPS + t] = load_sum(row * S_PITCH + t * SIDE4);
                        }
                    }
                }
                workgroupBarrier();
            }
        }
        for (var group = subgroup; group < GROUPS; group += GROUPS) {
            for (var n = 0u; n < KEY_STEPS; n++) {
                var left: array<Left, STRIPS>;
                //@unroll
                for (var s = 0u; s < STRIPS; s++) {
                    left[s] = load_left((group * STRIPS + s) * SIDE * W_PITCH + n * SIDE4);
                }
                //@unroll !EMULATED
                for (var d = 0u; d < V_STEPS; d++) {
                    let right = load_values(n * SIDE * V_PITCH + d * SIDE4);
                    //@unroll
                    for (var s = 0u; s < STRIPS; s++) {
                        acc[s * V_STEPS + d] = multiply_add(left[s], right, acc[s * V_STEPS + d]);
                    }
                }
            }
        }
    }
//@if RUNS
    }
//@endif

    //@unroll
    for (var r = 0u; r < ROW_TURNS; r++) {
        let row = r * THREADS + local;
        if (row < ROWS) {
//@if PARTIAL
            // The merge divides by the total.
//@if PROB_MOD
            factors[row] = 1.0;
//@else
            factors[row] = total[r] * reciprocal(mass[r]);
//@endif
//@else
            factors[row] = normaliser(mass[r], tile, min(tile.first_row + row, last_row));
//@endif
            if (tile.first_row + row <= last_row) {
//@if PARTIAL
                store_state(partial_at(tile, tile.first_row + row, params), maximum[r], total[r], tile.split);
//@else
//@if LSE
                lse[lse_start(tile, tile.first_row + row, params)] = log_sum_exp(maximum[r], total[r]);
//@endif
//@endif
            }
        }
    }
    //@unroll !EMULATED
    for (var chunk = 0u; chunk < (V_STEPS + KEY_STEPS - 1u) / KEY_STEPS; chunk++) {
        workgroupBarrier();
        for (var group = subgroup; group < GROUPS; group += GROUPS) {
            //@unroll
            for (var s = 0u; s < STRIPS; s++) {
                let row = (group * STRIPS + s) * SIDE;
                //@unroll !EMULATED
                for (var t = 0u; t < min(KEY_STEPS, V_STEPS - chunk * KEY_STEPS); t++) {
                    store_sum(row * S_PITCH + t * SIDE4, acc[s * V_STEPS + chunk * KEY_STEPS + t]);
                }
            }
        }
        workgroupBarrier();
        for (var n = local; n < ROWS * KEYS4; n += THREADS) {
            let row = n / KEYS4;
            if (tile.first_row + row <= last_row) {
                let sums = scores_at(row * S_PITCH + n % KEYS4);
                write_out(tile, tile.first_row + row, chunk * KEYS4 + n % KEYS4, sums, factors[row]);
            }
        }
    }
}
