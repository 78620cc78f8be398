// Scores and weights of attention, and statistics of each row of them.
//
// Formula:   w = exp(score - lse), visible; MATRIX: scores or w; ENTROPY: -sum w ln w; LARGEST and TOP: the
//            largest w and their keys, ties by the lowest; else the largest score, sinks included.
// Grid:      one workgroup per (batch, query head, query). A dispatch adds what its keys say to what those
//            before it (of lower split_start) have left in the outputs.
// Workgroup: WORKGROUP invocations, each with every WORKGROUP-th key of a run.
// Memory:    one number, or a weight and a key, per invocation; TOP: also the list so far. At most 1 KiB.

//@import grid
//@import attention_pairs

const WORKGROUP: u32 = 64u;
const MOST: u32 = 64u; // keys that TOP lists

//@if OUT_F16
enable f16;
@group(0) @binding(4) var<storage, read_write> out: array<f16>; // [batch, heads, queries, kv_len]
alias Result = f16;
//@else
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [batch, q_heads, q_len, ..]
alias Result = f32;
//@endif
//@if KEYS
@group(0) @binding(3) var<storage, read_write> keys: array<u32>; // [batch, q_heads, q_len, ..]

const NO_KEY: u32 = 0xffffffffu;

struct Candidate {
    weight: f32,
    key: u32,
}

// The order of the list: larger weights first, then lower keys, then places without one.
fn before(a: Candidate, b: Candidate) -> bool {
    let better = a.weight > b.weight || (a.weight == b.weight && a.key < b.key);
    return a.key != NO_KEY && (b.key == NO_KEY || better);
}

fn keys_start(tile: Tile, row: u32) -> u32 {
    return params.v_at + tile.batch * params.v_batch + head_of(tile, row, params) * params.v_head
        + query_of(tile, row, params) * params.v_row;
}

// Place `n` of a row's list as the dispatches before have left it.
fn listed(tile: Tile, row: u32, n: u32) -> Candidate {
    if (params.split_start == 0u) {
        return Candidate(0.0, NO_KEY);
    }
    return Candidate(
        out[o_start(tile, row, params) + n * params.o_dim],
        keys[keys_start(tile, row) + n * params.v_dim],
    );
}

fn list(tile: Tile, row: u32, n: u32, candidate: Candidate) {
    out[o_start(tile, row, params) + n * params.o_dim] = candidate.weight;
    keys[keys_start(tile, row) + n * params.v_dim] = candidate.key;
}
//@endif

//@if TOP
// The list, and behind it a candidate of each invocation.
var<workgroup> weights: array<f32, MOST + WORKGROUP>;
var<workgroup> numbers: array<u32, MOST + WORKGROUP>;
//@endif
//@if LARGEST
var<workgroup> weights: array<f32, WORKGROUP>;
var<workgroup> numbers: array<u32, WORKGROUP>;
//@endif
//@if REDUCED
var<workgroup> partial: array<f32, WORKGROUP>;
//@endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.tiles) {
        return;
    }
    let tile = tile_of(number, 1u, params);
    let row = tile.first_row;
    let q_at = q_start(tile, row, params);
    let k_base = params.k_at + tile.batch * params.k_batch + tile.kv_head * params.k_head;
//@if LSE
    let sum = row_sum(tile, row);
//@endif

//@if MATRIX
    let at = o_start(tile, row, params);
    let seen_by = row_of(tile, row, whole_walk(tile, row));
    for (var key = local; key < params.kv_len; key += WORKGROUP) {
//@if ALL
        var s = pair_score(q_at, k_base + key * params.k_row);
//@if CAPPED
        s = capped(s);
//@endif
        out[at + key * params.o_dim] = Result(s * LN_2);
//@else
        var s = FLOOR;
        if (sees(seen_by.sight, key)) {
            s = final_score(pair_score(q_at, k_base + key * params.k_row), seen_by, key, params.kv_len - 1u, unmasked(seen_by, key, params.kv_len - 1u));
        }
//@if LSE
        out[at + key * params.o_dim] = Result(pair_weight(s, sum, seen_by, key));
//@else
        out[at + key * params.o_dim] = Result(select(s * LN_2, params.minus_infinity, s <= HIDDEN));
//@endif
//@endif
    }
//@else
    let walk = walk_of(tile, row);
    let seen_by = row_of(tile, row, walk);
//@if TOP
    let count = params.value_dim;
    if (local < count) {
        let place = listed(tile, row, local);
        weights[local] = place.weight;
        numbers[local] = place.key;
    }
//@endif
//@if LARGEST
    var best = Candidate(0.0, NO_KEY);
//@endif
//@if ENTROPY
    var value = 0.0;
//@endif
//@if LARGEST_SCORE
    var value = first_maximum(tile, row);
//@endif

//@if RUNS
    for (var run = next_run(walk, walk.begin); run.x < run.y; run = next_run(walk, run.y)) {
    let begin = run.x;
    let end = run.y;
//@else
    let begin = walk.first;
    let end = walk.limit;
//@endif
    for (var j = begin; j < end; j += WORKGROUP) {
        let key = j + local;
        var s = FLOOR;
        if (key < end) {
            s = final_score(pair_score(q_at, k_base + key * params.k_row), seen_by, key, end - 1u, unmasked(seen_by, key, end - 1u));
        }
//@if LSE
        let w = pair_weight(s, sum, seen_by, key);
//@endif
//@if ENTROPY
//@if PROB_MOD
        value -= select(w * log2(max(w, 1e-37)), 0.0, w <= 0.0);
//@else
        value -= select(w * (s - sum), 0.0, s <= HIDDEN);
//@endif
//@endif
//@if LARGEST_SCORE
        value = max(value, s);
//@endif
//@if KEYS
        let candidate = Candidate(w, select(params.key_start + key, NO_KEY, s <= HIDDEN));
//@endif
//@if LARGEST
        if (before(candidate, best)) {
            best = candidate;
        }
//@endif
//@if TOP
        // Each place of the list and each candidate counts those before it: its place in the new list.
        weights[count + local] = candidate.weight;
        numbers[count + local] = candidate.key;
        workgroupBarrier();
        var old = Candidate(0.0, NO_KEY);
        if (local < count) {
            old = Candidate(weights[local], numbers[local]);
        }
        var old_place = 0u;
        var new_place = 0u;
        for (var n = 0u; n < count + WORKGROUP; n++) {
            let other = Candidate(weights[n], numbers[n]);
            old_place += u32(before(other, old));
            new_place += u32(before(other, candidate));
        }
        workgroupBarrier();
        if (local < count) {
            weights[local] = 0.0;
            numbers[local] = NO_KEY;
        }
        workgroupBarrier();
        if (old.key != NO_KEY && old_place < count) {
            weights[old_place] = old.weight;
            numbers[old_place] = old.key;
        }
        if (candidate.key != NO_KEY && new_place < count) {
            weights[new_place] = candidate.weight;
            numbers[new_place] = candidate.key;
        }
        workgroupBarrier();
//@endif
    }
//@if RUNS
    }
//@endif

//@if TOP
    workgroupBarrier();
    if (local < count) {
        list(tile, row, local, Candidate(weights[local], numbers[local]));
    }
//@endif
//@if LARGEST
    weights[local] = best.weight;
    numbers[local] = best.key;
    workgroupBarrier();
    if (local == 0u) {
        best = listed(tile, row, 0u);
        for (var n = 0u; n < WORKGROUP; n++) {
            let other = Candidate(weights[n], numbers[n]);
            if (before(other, best)) {
                best = other;
            }
        }
        list(tile, row, 0u, best);
    }
//@endif
//@if REDUCED
    partial[local] = value;
    workgroupBarrier();
    if (local == 0u) {
        let at = o_start(tile, row, params);
//@if ENTROPY
        var total = 0.0;
        for (var n = 0u; n < WORKGROUP; n++) {
            total += partial[n];
        }
        total *= LN_2;
        if (params.split_start > 0u) {
            total += out[at];
        }
        out[at] = total;
//@else
        for (var n = 0u; n < WORKGROUP; n++) {
            value = max(value, partial[n]);
        }
        var highest = select(value * LN_2, FLOOR, value <= HIDDEN);
        if (params.split_start > 0u) {
            let so_far = out[at];
            highest = max(highest, select(so_far, FLOOR, bitcast<u32>(so_far) == MINUS_INFINITY_BITS));
        }
        out[at] = select(highest, params.minus_infinity, highest <= HIDDEN);
//@endif
    }
//@endif
//@endif
}
