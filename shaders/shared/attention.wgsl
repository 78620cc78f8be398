// What every attention schedule shares: parameters, tiles, and where rows lie.
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
    batch_start: u32,
    head_start: u32,        // first query head of this slice
    all_rows: u32,          // queries in the tensor
    corner: i32,            // 1: the last query stands at the last key; 0: the first at the first
    left: i32, right: i32,  // keys before and after a query's place that it sees
    early: u32,             // keys at the start that it sees besides
    sequences: u32,         // packed sequences
    partial_start: u32,     // where partial results begin in scratch
    block_q: u32, block_kv: u32,
    blocks_heads: u32,      // query heads that share a row of bits
    kv_blocks: u32,         // blocks of keys, where they begin anywhere
    list_rows: u32,         // queries that share a list of keys
    entries: u32,           // entries of a list
    scale: f32,             // times log2(e)
    softcap: f32,           // times log2(e)
    minus_infinity: f32,
    q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
    k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
    v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
    o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
    lse_at: u32, lse_batch: u32, lse_head: u32, lse_row: u32,
    mask_at: u32, mask_batch: u32, mask_head: u32, mask_row: u32, mask_key: u32,
    bias_at: u32, bias_batch: u32, bias_head: u32, bias_row: u32, bias_key: u32,
    kv_len_at: u32, kv_len_batch: u32,
    q_len_at: u32, q_len_batch: u32,
    prefix_len_at: u32, prefix_len_batch: u32,
    cu_q_at: u32, cu_q_sequence: u32,
    cu_kv_at: u32, cu_kv_sequence: u32,
    head_windows_at: u32, head_windows_head: u32, head_windows_part: u32,
    sinks_at: u32, sinks_head: u32,
    gate_at: u32, gate_batch: u32, gate_head: u32, gate_row: u32,
    blocks_at: u32, blocks_batch: u32, blocks_head: u32, blocks_row: u32, blocks_word: u32,
    block_starts_at: u32, block_starts_block: u32,
    index_at: u32, index_batch: u32, index_head: u32, index_row: u32, index_entry: u32,
    buffer_0_at: u32, buffer_1_at: u32, buffer_2_at: u32, buffer_3_at: u32,
}

// A workgroup's work: batch entry, KV head, first packed row, range of keys.
struct Tile {
    batch: u32,
    kv_head: u32,
    first_row: u32,
    split: u32,
//@if LISTS
    list: u32,
//@endif
}

fn tile_of(number: u32, tile_rows: u32, p: Params) -> Tile {
    let row_tile = number % p.row_tiles;
    let rest = number / p.row_tiles;
    let split = rest % p.splits;
    let head = rest / p.splits;
//@if LISTS
    // Rows are packed list by list: head by head the queries that share one.
    let list_tiles = (p.list_rows * p.group + tile_rows - 1u) / tile_rows;
    let list = row_tile / list_tiles;
    let first_row = list * p.list_rows * p.group + row_tile % list_tiles * tile_rows;
    return Tile(head / p.kv_heads, head % p.kv_heads, first_row, split, list);
//@else
    return Tile(head / p.kv_heads, head % p.kv_heads, row_tile * tile_rows, split);
//@endif
}

//@if LISTS
// Queries that share the tile's list: fewer at the end.
fn list_queries(tile: Tile, p: Params) -> u32 {
    return min(p.list_rows, p.q_len - tile.list * p.list_rows);
}
//@endif

// The row after the last one of a tile. Not past the first where queries at the end leave it empty.
fn rows_end(tile: Tile, tile_rows: u32, p: Params) -> u32 {
//@if LISTS
    return min(tile.first_row + tile_rows, (tile.list * p.list_rows + list_queries(tile, p)) * p.group);
//@else
    return min(tile.first_row + tile_rows, p.q_len * p.group);
//@endif
}

// Number of a packed row among those of the slice, head by head.
fn partial_number(tile: Tile, row: u32, p: Params) -> u32 {
    let first = (tile.batch * p.kv_heads + tile.kv_head) * p.q_len * p.group;
//@if LISTS
    return first + (head_of(tile, row, p) - tile.kv_head * p.all_group) * p.q_len + query_of(tile, row, p);
//@else
    return first + row;
//@endif
}

// First element of the partial result of a packed row: value_dim sums, maximum, total.
fn partial_at(tile: Tile, row: u32, p: Params) -> u32 {
    let number = partial_number(tile, row, p) * p.all_splits + p.split_start + tile.split;
    return p.partial_start + number * (p.value_dim + 2u);
}

// Query head and query of a packed row.
fn head_of(tile: Tile, row: u32, p: Params) -> u32 {
//@if LISTS
    return tile.kv_head * p.all_group + (row - tile.list * p.list_rows * p.group) / list_queries(tile, p);
//@else
    return tile.kv_head * p.all_group + row / p.q_len;
//@endif
}

fn query_of(tile: Tile, row: u32, p: Params) -> u32 {
//@if LISTS
    let queries = list_queries(tile, p);
    return tile.list * p.list_rows + (row - tile.list * p.list_rows * p.group) % queries;
//@else
    return row % p.q_len;
//@endif
}

// First elements of a packed row in each tensor.

fn q_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.q_at + tile.batch * p.q_batch + head_of(tile, row, p) * p.q_head + query_of(tile, row, p) * p.q_row;
}

fn o_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.o_at + tile.batch * p.o_batch + head_of(tile, row, p) * p.o_head + query_of(tile, row, p) * p.o_row;
}

fn lse_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.lse_at + tile.batch * p.lse_batch + head_of(tile, row, p) * p.lse_head + query_of(tile, row, p) * p.lse_row;
}

fn mask_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.mask_at + tile.batch * p.mask_batch + head_of(tile, row, p) * p.mask_head + query_of(tile, row, p) * p.mask_row;
}

fn bias_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.bias_at + tile.batch * p.bias_batch + head_of(tile, row, p) * p.bias_head + query_of(tile, row, p) * p.bias_row;
}

fn gate_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.gate_at + tile.batch * p.gate_batch + head_of(tile, row, p) * p.gate_head + query_of(tile, row, p) * p.gate_row;
}
