// How much weight each key of attention gets from all queries of a head.
//
// Formula:   out[key] = sum over queries of exp(score - lse), visible.
// Grid:      one workgroup per (batch, query head, tile of KEYS keys). A dispatch adds what its queries say to
//            what those before it (of lower split_start) have left in the output.
// Workgroup: KEYS x ROWS invocations: each has one key, and every ROWS-th query.
// Memory:    one sum per invocation. 256 bytes.

//@import grid
//@import attention_pairs

const KEYS: u32 = 8u;
const ROWS: u32 = 8u;
const WORKGROUP: u32 = KEYS * ROWS;

@group(0) @binding(4) var<storage, read_write> out: array<f32>; // [batch, q_heads, kv_len]

var<workgroup> sums: array<f32, WORKGROUP>;

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
    let key_tile = number % params.row_tiles;
    let rest = number / params.row_tiles;
    let head = rest / params.group;
    let first_row = rest % params.group * params.q_len;
    let tile = Tile(head / params.kv_heads, head % params.kv_heads, first_row, 0u);
    let key = key_tile * KEYS + local % KEYS;
    let last = params.kv_len - 1u;
    let k_at = params.k_at + tile.batch * params.k_batch + tile.kv_head * params.k_head + min(key, last) * params.k_row;

    var total = 0.0;
    for (var query = local / KEYS; query < params.q_len; query += ROWS) {
        let row = first_row + query;
        let seen_by = row_of(tile, row, whole_walk(tile, row));
        if (key <= last && sees(seen_by.sight, key)) {
            let s = final_score(pair_score(q_start(tile, row, params), k_at), seen_by, key, last, unmasked(seen_by, key, last));
            total += pair_weight(s, row_sum(tile, row), seen_by, key);
        }
    }
    sums[local] = total;
    workgroupBarrier();
    if (local < KEYS && key <= last) {
        total = 0.0;
        for (var n = 0u; n < ROWS; n++) {
            total += sums[n * KEYS + local];
        }
        // Keys take the place of rows in this output: o_row is 0.
        let at = o_start(tile, first_row, params) + key * params.o_dim;
        if (params.split_start > 0u) {
            total += out[at];
        }
        out[at] = total;
    }
}
