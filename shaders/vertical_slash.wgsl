// The blocks that columns and diagonals of the scores pass through, as bits.
//
// Formula:   row i, of queries q0 .. q1, takes block j where it holds a listed column c <= q1, or q - d for a listed d and
//            a query q of the row; and the blocks of another index, or those instead.
// Grid:      one workgroup per (512 words of a row; row; head; batch entry), words fastest.
// Workgroup: 64 invocations, each with every 64th place of the lists.
// Memory:    bits of 16,384 blocks: 2 KiB.

//@import grid

const WORKGROUP: u32 = 64u; //@variant
const WORDS: u32 = 512u; //@variant

struct Params {
    workgroups: u32,
    windows: u32,           // of WORDS words, in a row
    rows: u32,
    heads: u32,
    words: u32,             // of a row
    blocks: u32,
    block_q: u32,
    block_kv: u32,
    first_query: u32,
    column_count: u32,
    diagonal_count: u32,
    by_key: u32,            // whether diagonals are named by keys of a query
    sample_query: u32,      // that query
    columns_at: u32, columns_batch: u32, columns_head: u32, columns_place: u32,
    diagonals_at: u32, diagonals_batch: u32, diagonals_head: u32, diagonals_place: u32,
    bits_at: u32, bits_batch: u32, bits_head: u32, bits_row: u32, bits_word: u32,
    blocks_at: u32, blocks_batch: u32, blocks_head: u32, blocks_row: u32, blocks_word: u32,
    head_choice_at: u32, head_choice_batch: u32, head_choice_head: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> columns: array<u32>; // [batch, heads, column_count]
@group(0) @binding(2) var<storage, read> diagonals: array<u32>; // [batch, heads, diagonal_count]
@group(0) @binding(3) var<storage, read_write> bits: array<u32>; // [batch, heads, rows, words]
//@if OTHER
@group(0) @binding(4) var<storage, read> blocks: array<u32>; // [batch, heads, rows, words]
//@endif
//@if BY_HEAD
@group(0) @binding(5) var<storage, read> head_choice: array<u32>; // [batch, heads]
//@endif

var<workgroup> taken: array<atomic<u32>, WORDS>;

// Marks blocks low .. high, both counted from the first block of the window.
fn mark(low: u32, high: u32) {
    let last = high / 32u;
    for (var word = low / 32u; word <= last; word++) {
        let from_low = select(0xffffffffu, 0xffffffffu << (low % 32u), word == low / 32u);
        let to_high = select(0xffffffffu, 0xffffffffu >> (31u - high % 32u), word == last);
        atomicOr(&taken[word], from_low & to_high);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid);
    if (number >= params.workgroups) {
        return;
    }
    let first_word = number % params.windows * WORDS;
    let row = number / params.windows % params.rows;
    let sequence = number / params.windows / params.rows;
    let head = sequence % params.heads;
    let batch = sequence / params.heads;
    let count = min(WORDS, params.words - first_word);
    let first_block = first_word * 32u;
    let end_block = min(first_block + count * 32u, params.blocks);
    let first_query = params.first_query + row * params.block_q;
    let last_query = first_query + params.block_q - 1u;
    // Positions from where on blocks are of later windows, or of none.
    let end = min(end_block * params.block_kv, last_query + 1u);

    for (var word = local; word < count; word += WORKGROUP) {
        atomicStore(&taken[word], 0u);
    }
    workgroupBarrier();
    var column_count = params.column_count;
    var diagonal_count = params.diagonal_count;
//@if BY_HEAD
    let choice = head_choice[params.head_choice_at + batch * params.head_choice_batch + head * params.head_choice_head];
    column_count = select(column_count, 0u, choice != 0u);
    diagonal_count = select(diagonal_count, 0u, choice != 0u);
//@endif
    let columns_at = params.columns_at + batch * params.columns_batch + head * params.columns_head;
    for (var i = local; i < column_count; i += WORKGROUP) {
        let column = columns[columns_at + i * params.columns_place];
        let block = column / params.block_kv;
        if (column < end && block >= first_block) {
            mark(block - first_block, block - first_block);
        }
    }
    let diagonals_at = params.diagonals_at + batch * params.diagonals_batch + head * params.diagonals_head;
    for (var i = local; i < diagonal_count; i += WORKGROUP) {
        let number = diagonals[diagonals_at + i * params.diagonals_place];
        let named = params.by_key == 0u || number <= params.sample_query;
        let back = select(number, params.sample_query - number, params.by_key != 0u);
        if (named && back <= last_query) {
            let low = max((max(first_query, back) - back) / params.block_kv, first_block);
            let high = min((last_query - back) / params.block_kv, end_block - 1u);
            if (low <= high) {
                mark(low - first_block, high - first_block);
            }
        }
    }
    workgroupBarrier();
    let bits_at = params.bits_at + batch * params.bits_batch + head * params.bits_head + row * params.bits_row;
//@if OTHER
    let blocks_at =
        params.blocks_at + batch * params.blocks_batch + head * params.blocks_head + row * params.blocks_row;
//@endif
    for (var word = local; word < count; word += WORKGROUP) {
        var result = atomicLoad(&taken[word]);
//@if OTHER
        let other = blocks[blocks_at + (first_word + word) * params.blocks_word];
//@if BY_HEAD
        result = select(result, other, choice != 0u);
//@else
        result |= other;
//@endif
//@endif
        bits[bits_at + (first_word + word) * params.bits_word] = result;
    }
}
