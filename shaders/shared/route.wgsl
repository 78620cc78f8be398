// What routing reads: scores, and what a row may and must take of them.

//@import grid
//@import route_mass

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
//@else
alias Stored = Scalar;
//@endif

struct Params {
    count: u32,             // rows of all heads and batch entries
    heads: u32,             // after summing
    rows: u32,              // of a head
    blocks: u32,
    group: u32,             // heads that are summed
    first_row: u32,         // number of the first row of the slice
    k: u32,                 // places of a list
    p: f32,
    least: u32,             // blocks taken at least, where the mass decides
    block_q: u32,
    block_kv: u32,
    first_query: u32,       // its position, or its distance from the end
    from_end: u32,
    visible: u32,           // 0: all, 1: causal, 2: complete
    own: u32,
    first: u32,
    recent: u32,
    sequences: u32,
    scores_at: u32, scores_batch: u32, scores_head: u32, scores_row: u32, scores_block: u32,
    row_starts_at: u32, row_starts_batch: u32, row_starts_head: u32, row_starts_row: u32,
    starts_at: u32, starts_batch: u32, starts_head: u32, starts_block: u32,
    lens_at: u32, lens_batch: u32,
    cu_at: u32, cu_step: u32,
    indices_at: u32, indices_batch: u32, indices_head: u32, indices_row: u32, indices_place: u32,
    counts_at: u32, counts_batch: u32, counts_head: u32, counts_row: u32,
    bits_at: u32, bits_batch: u32, bits_head: u32, bits_row: u32, bits_word: u32,
    parts: u32,             // invocations that share a row
    stretch: u32,           // blocks of each
    ranks_at: u32,          // in scratch: ranks, [count, pitch]
    masses_at: u32,         // and what mass is made of, likewise
    pitch: u32,
    list_at: u32,           // and what was selected, [count, k]
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scores: array<Stored>; // [batch, heads * group, rows, blocks]
//@if ROW_STARTS
@group(0) @binding(2) var<storage, read> row_starts: array<u32>; // [batch, heads, rows + 1]
//@endif
//@if STARTS
@group(0) @binding(3) var<storage, read> block_starts: array<u32>; // [batch, heads, blocks + 1]
//@endif
//@if LENGTHS
@group(0) @binding(4) var<storage, read> kv_len: array<u32>; // [batch]
//@endif
//@if PACKED
@group(0) @binding(5) var<storage, read> cu_seqlens: array<u32>; // [sequences + 1]
//@endif

const MOST_POSITIONS: u32 = 0x7fffffffu;
// Ranks: the bits of scores as numbers that rise with them, between what is not taken and what is forced.
const HIDDEN: u32 = 0u;
const FORCED: u32 = 0xffffffffu;
const LARGEST: u32 = 0x7f7fffffu;
const NAN: u32 = 0x7fc00000u;

// A row: where it is, and which blocks it may and must take, as ranges.
struct Row {
    batch: u32,
    head: u32,
    row: u32,
    scores: u32,
    starts: u32,
    low: u32,               // visible: low .. high
    high: u32,
    first: u32,             // forced: low .. first, and tail .. tail_end
    tail: u32,
    tail_end: u32,
    begin: u32,             // all of these lie in begin .. end
    end: u32,
}

// Blocks that begin before a position.
fn blocks_before(starts: u32, position: u32) -> u32 {
//@if STARTS
    var low = 0u;
    var high = params.blocks;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (block_starts[starts + middle * params.starts_block] < position) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
//@else
    let whole = position / params.block_kv;
    return min(whole + select(0u, 1u, whole * params.block_kv < position), params.blocks);
//@endif
}

// Where a block begins, or the last ends.
fn start_of(starts: u32, block: u32) -> u32 {
//@if STARTS
    return block_starts[starts + block * params.starts_block];
//@else
    return block * params.block_kv;
//@endif
}

// Blocks that end at a position or before.
fn blocks_until(starts: u32, position: u32) -> u32 {
//@if STARTS
    // As many as begin there or before, but for the one that has not ended; no start is the largest number.
    let begun = blocks_before(starts, max(position, position + 1u));
    if (begun == 0u) {
        return 0u;
    }
    return select(begun - 1u, begun, start_of(starts, begun) <= position);
//@else
    return min(position / params.block_kv, params.blocks);
//@endif
}

fn row_of(number: u32) -> Row {
    var row: Row;
    row.row = number % params.rows;
    row.head = number / params.rows % params.heads;
    row.batch = number / params.rows / params.heads;
    row.scores = params.scores_at + row.batch * params.scores_batch + row.head * params.group * params.scores_head
        + row.row * params.scores_row;
    row.starts = params.starts_at + row.batch * params.starts_batch + row.head * params.starts_head;

    var limit = 0xffffffffu;
//@if LENGTHS
    limit = kv_len[params.lens_at + row.batch * params.lens_batch];
//@endif
    var origin = params.first_query;
    if (params.from_end > 0u) {
        let len = min(limit, MOST_POSITIONS);
        origin = max(len, origin) - origin;
    }
//@if ROW_STARTS
    let at = params.row_starts_at + row.batch * params.row_starts_batch + row.head * params.row_starts_head
        + row.row * params.row_starts_row;
    let query = origin + min(row_starts[at], MOST_POSITIONS);
    let query_end = origin + min(row_starts[at + params.row_starts_row], MOST_POSITIONS);
//@else
    let query = origin + (params.first_row + row.row) * params.block_q;
    let query_end = query + params.block_q;
//@endif
    var start = 0u;
//@if PACKED
    var low = 0u;
    var high = params.sequences + 1u;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (cu_seqlens[params.cu_at + middle * params.cu_step] <= query) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    if (low == 0u || low > params.sequences) {
        return row;
    }
    start = cu_seqlens[params.cu_at + (low - 1u) * params.cu_step];
    limit = min(limit, cu_seqlens[params.cu_at + low * params.cu_step]);
//@endif
    if (query >= query_end || start >= limit) {
        return row;
    }

    let low_block = blocks_before(row.starts, start);
    let all = max(blocks_before(row.starts, limit), low_block);
    let begun = max(blocks_before(row.starts, min(query_end, limit)), low_block);
    row.low = low_block;
    row.high = all;
    var first_end = all;
    if (params.visible > 0u) {
        first_end = begun;
        row.high = begun;
        if (params.visible == 2u) {
            row.high = min(all, blocks_until(row.starts, query + 1u));
        }
    }
    row.first = low_block + min(params.first, first_end - low_block);
    row.tail_end = begun;
    row.tail = begun - min(params.recent, begun - low_block);
    if (params.own > 0u && query < limit) {
        // The last block that begins at the query or before holds it, but for one that ends before it.
        let before = blocks_before(row.starts, query + 1u);
        let holds = before > 0u && start_of(row.starts, before) > query;
        row.tail = min(row.tail, max(before - u32(holds), low_block));
    }
    row.begin = row.low;
    row.end = max(row.high, max(row.first, row.tail_end));
    return row;
}

// A score, or the sum of those of a group, as bits; NaN for what is hidden.
fn taken_bits(score: f32, sum: u32) -> u32 {
    let bits = bitcast<u32>(score);
    let size = bits & 0x7fffffffu;
    if (sum == NAN || size > 0x7f800000u || bits == 0xff800000u) {
        return NAN;
    }
    if (size == 0x7f800000u) {
        return LARGEST;
    }
    return bits;
}

fn added(sum: u32, score: u32) -> u32 {
    if (sum == NAN || score == NAN) {
        return NAN;
    }
    let result = bitcast<u32>(bitcast<f32>(sum) + bitcast<f32>(score));
    if ((result & 0x7fffffffu) >= 0x7f800000u) {
        // Too large: the largest of its sign.
        return (result & 0x80000000u) | LARGEST;
    }
    return result;
}

// Scores of four blocks from `j` on; past the last block, those of the last.
fn load(at: u32, j: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(scores[(at + j) / 4u]);
//@else
    let block = min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(params.blocks - 1u)) * params.scores_block + at;
    return vec4<f32>(f32(scores[block.x]), f32(scores[block.y]), f32(scores[block.z]), f32(scores[block.w]));
//@endif
}

// Bits of the scores of four blocks, summed over a group.
fn summed(row: Row, j: u32) -> vec4<u32> {
    let score = load(row.scores, j);
    var bits = vec4<u32>(taken_bits(score.x, 0u), taken_bits(score.y, 0u), taken_bits(score.z, 0u), taken_bits(score.w, 0u));
    for (var g = 1u; g < params.group; g++) {
        let other = load(row.scores + g * params.scores_head, j);
        //@unroll
        for (var c = 0u; c < 4u; c++) {
            bits[c] = added(bits[c], taken_bits(other[c], bits[c]));
        }
    }
    return bits;
}

// Whether a block is one that must be taken.
fn forced(row: Row, j: u32) -> bool {
    return (j >= row.low && j < row.first) || (j >= row.tail && j < row.tail_end);
}

fn has_positions(row: Row, j: u32) -> bool {
//@if STARTS
    let block = min(j, params.blocks - 1u);
    return start_of(row.starts, block) < start_of(row.starts, block + 1u);
//@else
    return true;
//@endif
}

// The rank of a block with a score of these bits.
fn rank_of(row: Row, j: u32, bits: u32) -> u32 {
    var rank = HIDDEN;
    if (j >= row.low && j < row.high && bits != NAN) {
        // -0 is 0.
        let number = select(bits, 0u, bits == 0x80000000u);
        rank = select(number | 0x80000000u, ~number, number >= 0x80000000u);
    }
    if (forced(row, j)) {
        rank = FORCED;
    }
    return select(HIDDEN, rank, has_positions(row, j));
}

// The score of a rank, between HIDDEN and FORCED.
fn score_of(rank: u32) -> f32 {
    return bitcast<f32>(select(~rank, rank & 0x7fffffffu, rank >= 0x80000000u));
}
