// Which keys a query sees as far as ranges of keys tell, and which a tile of queries visits.
//
// A query sees the keys first .. limit, and those of start .. early. Numbers are local to the slice.

//@import attention

//@if KV_LEN
@group(0) @binding(8) var<storage, read> kv_len: array<u32>; // [batch]
//@endif
//@if Q_LEN
@group(0) @binding(9) var<storage, read> q_len: array<u32>; // [batch]
//@endif
//@if PREFIX
@group(0) @binding(10) var<storage, read> prefix_len: array<u32>; // [batch]
//@endif
//@if PACKED
@group(0) @binding(11) var<storage, read> cu_q: array<u32>; // [sequences + 1]
@group(0) @binding(12) var<storage, read> cu_kv: array<u32>; // [sequences + 1]
//@endif
//@if HEAD_WINDOWS
@group(0) @binding(13) var<storage, read> head_windows: array<u32>; // [q_heads, (recent, early)]
//@endif
//@if BLOCKS
@group(0) @binding(14) var<storage, read> blocks: array<u32>; // bits [batch, q_heads, q_blocks, kv_blocks]
//@endif
//@if BLOCK_STARTS
@group(0) @binding(23) var<storage, read> block_starts: array<u32>; // [kv_blocks + 1]
//@endif
//@if LISTS
@group(0) @binding(22) var<storage, read> index: array<u32>; // [batch, heads, lists, entries]
//@endif

// Keys below which a range is not worth a workgroup of its own.
const LEAST_KEYS: u32 = 128u;

struct Sight {
    start: u32,
    early: u32,
    first: u32,
    limit: u32,
}

// The valid keys and queries of a batch entry (counted from the slice's first).
fn keys_of(batch: u32) -> u32 {
//@if KV_LEN
    return min(kv_len[params.kv_len_at + batch * params.kv_len_batch], params.all_keys);
//@else
    return params.all_keys;
//@endif
}

fn queries_of(batch: u32) -> u32 {
//@if Q_LEN
    return min(q_len[params.q_len_at + batch * params.q_len_batch], params.all_rows);
//@else
    return params.all_rows;
//@endif
}

// The same for mods, which count batch entries from the tensor's first.
fn valid_keys(batch: u32) -> u32 {
    return keys_of(batch - params.batch_start);
}

fn valid_queries(batch: u32) -> u32 {
    return queries_of(batch - params.batch_start);
}

// The sequence that a query belongs to: where its queries and keys begin, and how many there are.
struct Sequence {
    first_query: u32,
    queries: u32,
    first_key: u32,
    keys: u32,
}

fn sequence_of(batch: u32, query: u32) -> Sequence {
//@if PACKED
    // The last sequence that begins at the query or before; empty ones never hold it.
    var low = 0u;
    var high = params.sequences;
    for (; low < high;) {
        let middle = (low + high + 1u) / 2u;
        if (cu_q[params.cu_q_at + middle * params.cu_q_sequence] <= query) {
            low = middle;
        } else {
            high = middle - 1u;
        }
    }
    let s = min(low, params.sequences - 1u);
    let q0 = cu_q[params.cu_q_at + s * params.cu_q_sequence];
    let q1 = min(cu_q[params.cu_q_at + (s + 1u) * params.cu_q_sequence], params.all_rows);
    let k0 = min(cu_kv[params.cu_kv_at + s * params.cu_kv_sequence], params.all_keys);
    let k1 = min(cu_kv[params.cu_kv_at + (s + 1u) * params.cu_kv_sequence], params.all_keys);
    return Sequence(q0, max(q1, q0) - q0, k0, max(k1, k0) - k0);
//@else
    return Sequence(0u, queries_of(batch), 0u, keys_of(batch));
//@endif
}

// A key of the tensor as one of the slice.
fn local_key(key: i32) -> u32 {
    return u32(clamp(key - i32(params.key_start), 0, i32(params.kv_len)));
}

// What query `query` of query head `head` (both local) sees.
fn sight_of(batch: u32, head: u32, query: u32) -> Sight {
    let row = params.row_start + query;
    let sequence = sequence_of(batch, row);
    let queries = i32(sequence.queries);
    let keys = i32(sequence.keys);
    let i = i32(row) - i32(sequence.first_query);
    let place = i + params.corner * (keys - queries);
    var left = params.left;
    var early = i32(params.early);
//@if HEAD_WINDOWS
    let at = params.head_windows_at + head * params.head_windows_head;
    left = i32(min(head_windows[at], 0x40000000u)) - 1;
    early = i32(min(head_windows[at + params.head_windows_part], 0x40000000u));
//@endif
    var limit = clamp(place + params.right + 1, 0, keys);
    var first = clamp(place - left, 0, limit);
    early = min(early, limit);
//@if PREFIX
    let prefix = min(i32(min(prefix_len[params.prefix_len_at + batch * params.prefix_len_batch], params.all_keys)), keys);
//@if EARLY
    early = max(early, prefix);
//@else
    limit = max(limit, prefix);
//@endif
//@endif
    if (i < 0 || i >= queries) {
        early = 0;
        limit = first;
    }
    let base = i32(sequence.first_key);
//@if KEY_RANGE
    let range = mods_keys(params.batch_start + batch, params.head_start + head, row);
    let low = i32(min(range.x, params.all_keys));
    let high = i32(min(range.y, params.all_keys));
    return Sight(
        local_key(max(base, low)),
        local_key(min(base + early, high)),
        local_key(max(base + first, low)),
        local_key(min(base + limit, high)),
    );
//@else
    return Sight(local_key(base), local_key(base + early), local_key(base + first), local_key(base + limit));
//@endif
}

fn sees(sight: Sight, key: u32) -> bool {
    var visible = key < sight.limit;
//@if LOWER
    visible = visible && key >= sight.first;
//@endif
//@if EARLY
    visible = visible || (key >= sight.start && key < sight.early);
//@endif
    return visible;
}

// What a workgroup visits: the keys start .. early and first .. limit, as far as they lie in its range.
struct Walk {
    start: u32,
    early: u32,
    first: u32,
    limit: u32,
    begin: u32,
    end: u32,
    batch: u32,
    kv_head: u32,
    first_row: u32,
    last_row: u32,
    list: u32,  // where the list of keys begins
    keys: u32,  // listed keys count before this one
}

fn walk_of(tile: Tile, last_row: u32) -> Walk {
//@if LISTS
    // All entries of its range: they are in any order.
    let low = min(tile.split * params.split_keys, params.entries);
    let high = min(low + params.split_keys, params.entries);
    let list = params.index_at + tile.batch * params.index_batch + tile.kv_head * params.index_head
        + tile.list * params.index_row;
//@if PACKED
    let valid = min(cu_kv[params.cu_kv_at + params.sequences * params.cu_kv_sequence], params.all_keys);
//@else
    let valid = keys_of(tile.batch);
//@endif
    let keys = local_key(i32(valid));
    return Walk(low, low, low, high, low, high, tile.batch, tile.kv_head, tile.first_row, last_row, list, keys);
//@else
    var keys = params.split_keys;
//@if KV_LEN
    // What is valid is shared out among all ranges, as long as each has some keys to work on.
    if (params.all_splits == params.splits) {
        // A multiple of 4, so that steps begin where masks have words.
        let share = ((keys_of(tile.batch) + params.splits - 1u) / params.splits + 3u) / 4u * 4u;
        keys = min(keys, max(LEAST_KEYS, share));
    }
//@endif
    let begin = min(tile.split * keys, params.kv_len);
    let end = min(begin + keys, params.kv_len);
//@if LOWER
    // All that any row of the tile sees.
    var all = Sight(end, begin, end, begin);
    for (var row = tile.first_row; row <= last_row; row++) {
        let sight = sight_of(tile.batch, head_of(tile, row, params), query_of(tile, row, params));
        if (sight.first < sight.limit) {
            all.first = min(all.first, sight.first);
            all.limit = max(all.limit, sight.limit);
        }
        if (sight.start < sight.early) {
            all.start = min(all.start, sight.start);
            all.early = max(all.early, sight.early);
        }
    }
//@else
    // A run of rows that crosses heads holds some head's last query, which sees the most.
    let crosses = tile.first_row / params.q_len != last_row / params.q_len;
    let head = head_of(tile, last_row, params);
    let all = sight_of(tile.batch, head, select(last_row % params.q_len, params.q_len - 1u, crosses));
//@endif
    let limit = clamp(all.limit, begin, end);
    let first = clamp(all.first, begin, limit);
    let early = clamp(all.early, begin, end);
    let start = clamp(all.start, begin, early);
    var walk = Walk(start, early, first, limit, begin, end, tile.batch, tile.kv_head, tile.first_row, last_row, 0u, 0u);
//@if RUNS
    // What overlaps, or follows within a few keys, is one run.
    if (start < early && (first <= early + 8u || first == limit)) {
        walk.limit = max(limit, early);
        walk.first = select(min(start, first), start, first == limit);
        walk.early = walk.start;
    }
//@endif
    return walk;
//@endif
}

// A query's sight within the range of its workgroup.
fn clip(sight: Sight, walk: Walk) -> Sight {
//@if LISTS
    return sight;
//@else
    return Sight(sight.start, min(sight.early, walk.end), sight.first, min(sight.limit, walk.end));
//@endif
}

// The key at a place of a walk that ends at `end`: past the last one where there is none.
fn key_at(walk: Walk, place: u32, end: u32) -> u32 {
//@if LISTS
    let key = index[walk.list + min(place, end - 1u) * params.index_entry] - params.key_start;
    return select(0xffffffffu, key, place < end && key < walk.keys);
//@else
    return place;
//@endif
}

// The last key that a run to `end` may read; of a list, where there is none, what is read counts for nothing.
fn last_key(end: u32) -> u32 {
//@if LISTS
    return params.kv_len - 1u;
//@else
    return end - 1u;
//@endif
}

// Where the bits of a query's row of blocks begin.
fn blocks_start(batch: u32, head: u32, query: u32) -> u32 {
//@if BLOCKS
    return params.blocks_at + batch * params.blocks_batch + head / params.blocks_heads * params.blocks_head
        + (params.row_start + query) / params.block_q * params.blocks_row;
//@else
    return 0u;
//@endif
}

//@if BLOCKS
//@if BLOCK_STARTS
// Where a block of keys begins, and the one before it ends.
fn block_start(block: u32) -> u32 {
    return block_starts[params.block_starts_at + block * params.block_starts_block];
}

// The last block that begins at a key of the tensor or before; the first where none does.
fn block_of(key: u32) -> u32 {
    var low = 0u;
    var high = params.kv_blocks - 1u;
    for (; low < high;) {
        let middle = (low + high + 1u) / 2u;
        if (block_start(middle) <= key) {
            low = middle;
        } else {
            high = middle - 1u;
        }
    }
    return low;
}

// A row's bit that tells of a key. No block holds the keys between two.
fn bits_of(at: u32, key: u32) -> u32 {
    let place = params.key_start + key;
    let block = block_of(place);
    let bit = (blocks[at + block / 32u * params.blocks_word] >> (block % 32u)) & 1u;
    return select(0u, bit, place >= block_start(block) && place < block_start(block + 1u));
}

fn in_block(bits: u32, key: u32) -> bool {
    return bits != 0u;
}
//@else
// The block that holds a key of the tensor.
fn block_of(key: u32) -> u32 {
    return key / params.block_kv;
}

// The word of a row of bits that tells of a key.
fn bits_of(at: u32, key: u32) -> u32 {
    return blocks[at + block_of(params.key_start + key) / 32u * params.blocks_word];
}

fn in_block(bits: u32, key: u32) -> bool {
    return ((bits >> (block_of(params.key_start + key) % 32u)) & 1u) != 0u;
}
//@endif

// 32 blocks of keys as any row of the tile sees them.
fn block_word(walk: Walk, word: u32) -> u32 {
    var bits = 0u;
    for (var row = walk.first_row; row <= walk.last_row;) {
        let query = row % params.q_len;
        let head = walk.kv_head * params.all_group + row / params.q_len;
        bits |= blocks[blocks_start(walk.batch, head, query) + word * params.blocks_word];
        row += min(params.block_q - (params.row_start + query) % params.block_q, params.q_len - query);
    }
    return bits;
}
//@endif

//@if BLOCKS
// The blocks of keys of the next run, x .. y, of those from `low` to `high`: side by side, as far as one word tells of
// them. x is past `high` where there is none.
fn next_blocks(walk: Walk, low: u32, high: u32) -> vec2<u32> {
    var found = vec2<u32>(high + 1u);
    for (var word = low / 32u; word <= high / 32u && found.x > high; word++) {
        var bits = block_word(walk, word);
        if (word == low / 32u) {
            bits &= 0xffffffffu << (low % 32u);
        }
        if (bits != 0u) {
            let skipped = firstTrailingBit(bits);
            let first = word * 32u + skipped;
            found = vec2<u32>(first, first + min(firstTrailingBit(~(bits >> skipped)), 32u));
        }
    }
    return found;
}
//@endif

//@if RUNS
// The next run of keys to visit, from `at` on: x .. y, or none where x is not below y.
fn next_run(walk: Walk, at: u32) -> vec2<u32> {
    var next = max(at, walk.first);
    var stop = walk.limit;
    if (max(at, walk.start) < walk.early) {
        next = max(at, walk.start);
        stop = walk.early;
    }
//@if BLOCKS
    // Both parts, with what lies between: the blocks tell what is needed.
    next = max(at, select(walk.first, min(walk.start, walk.first), walk.start < walk.early));
    stop = max(walk.limit, walk.early);
    if (next < stop) {
        let high = block_of(params.key_start + stop - 1u);
//@if BLOCK_STARTS
        // One block at a time, passing over those without keys.
        var low = block_of(params.key_start + next);
        var run = vec2<u32>(stop);
        for (var open = true; open;) {
            let found = next_blocks(walk, low, high).x;
            open = found <= high;
            if (open) {
                let first = clamp(block_start(found), params.key_start + next, params.key_start + stop);
                let last = clamp(block_start(found + 1u), params.key_start + next, params.key_start + stop);
                // What begins where an empty block does is one look, however many blocks begin there.
                low = max(found + 1u, block_of(max(first, last)));
                if (first < last) {
                    run = vec2<u32>(first, last) - params.key_start;
                    open = false;
                }
            }
        }
        return run;
//@else
        let found = next_blocks(walk, block_of(params.key_start + next), high);
        if (found.x > high) {
            return vec2<u32>(stop, stop);
        }
        next = max(next, max(found.x * params.block_kv, params.key_start) - params.key_start);
        stop = min(stop, min(found.y, high + 1u) * params.block_kv - params.key_start);
//@endif
    }
//@endif
    return vec2<u32>(next, stop);
}
//@endif
