// What every attention schedule shares: parameters, rows and visibility.
//
// A workgroup owns a tile of packed rows: the q_len queries of all query heads of one KV head,
// head by head, so that K and V are read once per group. Key and row indices are local to the
// slice that a dispatch covers; key_start and row_start place it in the whole.

struct Params {
    tiles: u32,             // workgroups with work
    row_tiles: u32,         // tiles over the packed rows of one KV head
    splits: u32,            // key ranges in this dispatch
    split_keys: u32,        // keys per range
    split_start: u32,       // number of the first range
    all_splits: u32,        // ranges in all dispatches
    kv_heads: u32,
    group: u32,             // query heads per KV head, in this slice
    all_group: u32,         // query heads per KV head
    q_len: u32,
    kv_len: u32,            // keys in this slice
    all_keys: u32,          // keys in the tensor
    head_dim: u32,
    value_dim: u32,
    row_start: u32,
    key_start: u32,
    diagonal: i32,          // key j is visible to query i when j <= i + diagonal ...
    diagonal_lens: i32,     // ... + diagonal_lens * valid keys
    scale: f32,             // times log2(e)
    minus_infinity: f32,
    q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
    k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
    o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
    lse_at: u32, lse_batch: u32, lse_head: u32, lse_row: u32,
    mask_at: u32, mask_batch: u32, mask_head: u32, mask_row: u32, mask_key: u32,
    bias_at: u32, bias_batch: u32, bias_head: u32, bias_row: u32, bias_key: u32,
    kv_len_at: u32, kv_len_batch: u32,
}

// A workgroup's work: batch entry, KV head, first packed row, range of keys.
struct Tile {
    batch: u32,
    kv_head: u32,
    first_row: u32,
    split: u32,
}

fn tile_of(number: u32, tile_rows: u32, p: Params) -> Tile {
    let row_tile = number % p.row_tiles;
    let rest = number / p.row_tiles;
    let split = rest % p.splits;
    let head = rest / p.splits;
    return Tile(head / p.kv_heads, head % p.kv_heads, row_tile * tile_rows, split);
}

// Keys of this slice that query `row` (local) sees, out of `valid` in the whole tensor: those
// before the result.
fn visible_keys(row: u32, valid: u32, p: Params) -> u32 {
    let diagonal = p.diagonal + p.diagonal_lens * i32(valid);
    let end = min(i32(valid), i32(p.row_start + row) + diagonal + 1);
    return u32(clamp(end - i32(p.key_start), 0, i32(p.kv_len)));
}

// The same for a run of packed rows: the most that any of them sees.
fn visible_keys_of_run(first: u32, last: u32, valid: u32, p: Params) -> u32 {
    // A run that crosses heads holds some head's last query.
    let crosses = first / p.q_len != last / p.q_len;
    return visible_keys(select(last % p.q_len, p.q_len - 1u, crosses), valid, p);
}

// First element of the partial result of a packed row: value_dim sums, maximum, total.
fn partial_at(tile: Tile, row: u32, p: Params) -> u32 {
    let rows = p.q_len * p.group;
    let number = (tile.batch * p.kv_heads + tile.kv_head) * rows + row;
    return (number * p.all_splits + p.split_start + tile.split) * (p.value_dim + 2u);
}

// First elements of a packed row in each tensor.
fn head_of(tile: Tile, row: u32, p: Params) -> u32 {
    return tile.kv_head * p.all_group + row / p.q_len;
}

fn q_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.q_at + tile.batch * p.q_batch + head_of(tile, row, p) * p.q_head + row % p.q_len * p.q_row;
}

fn o_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.o_at + tile.batch * p.o_batch + head_of(tile, row, p) * p.o_head + row % p.q_len * p.o_row;
}

fn lse_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.lse_at + tile.batch * p.lse_batch + head_of(tile, row, p) * p.lse_head + row % p.q_len * p.lse_row;
}

fn mask_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.mask_at + tile.batch * p.mask_batch + head_of(tile, row, p) * p.mask_head + row % p.q_len * p.mask_row;
}

fn bias_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.bias_at + tile.batch * p.bias_batch + head_of(tile, row, p) * p.bias_head + row % p.q_len * p.bias_row;
}
