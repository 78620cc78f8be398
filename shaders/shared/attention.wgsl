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
    row_tile_blocks: u32,   // 1 where the rows of a tile may lie in several blocks of a block mask
    batch_start: u32,
    head_start: u32,        // first query head of this slice
    all_rows: u32,          // queries in the tensor
    corner: i32,            // 1: the last query stands at the last key; 0: the first at the first
    left: i32, right: i32,  // keys before and after a query's place that it sees
    early: u32,             // keys at the start that it sees besides
    sequences: u32,         // packed sequences
    partial_start: u32,     // where partial results begin in scratch
    block_q: u32, block_kv: u32,
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
    buffer_0_at: u32, buffer_1_at: u32, buffer_2_at: u32, buffer_3_at: u32,
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

// Number of a packed row among those of the slice.
fn partial_number(tile: Tile, row: u32, p: Params) -> u32 {
    return (tile.batch * p.kv_heads + tile.kv_head) * p.q_len * p.group + row;
}

// First element of the partial result of a packed row: value_dim sums, maximum, total.
fn partial_at(tile: Tile, row: u32, p: Params) -> u32 {
    let number = partial_number(tile, row, p) * p.all_splits + p.split_start + tile.split;
    return p.partial_start + number * (p.value_dim + 2u);
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

fn gate_start(tile: Tile, row: u32, p: Params) -> u32 {
    return p.gate_at + tile.batch * p.gate_batch + head_of(tile, row, p) * p.gate_head + row % p.q_len * p.gate_row;
}
