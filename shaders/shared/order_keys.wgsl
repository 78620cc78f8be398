// The bucket of an element, for the kernels of a sort: from tensor x (KEYS_X), tensor index (KEYS_INDEX), or scratch
// (KEYS_SCRATCH). What is past the last bucket has the number of buckets.
//
// Asks of params: heads, buckets, keys_at, keys_batch, keys_head, keys_outer, keys_inner, keys_width. Sequences are
// batch entries and heads; elements of a sequence lie in rows of keys_width.

//@if KEYS_X
@group(0) @binding(1) var<storage, read> x: array<u32>; // [batch, heads, n]
//@endif
//@if KEYS_INDEX
@group(0) @binding(1) var<storage, read> index: array<u32>; // [batch, heads, groups, places]
//@endif

fn key_of(sequence: u32, element: u32) -> u32 {
    let at = params.keys_at + sequence / params.heads * params.keys_batch + sequence % params.heads * params.keys_head
        + element / params.keys_width * params.keys_outer + element % params.keys_width * params.keys_inner;
//@if KEYS_X
    let key = x[at];
//@endif
//@if KEYS_INDEX
    let key = index[at];
//@endif
//@if KEYS_SCRATCH
    let key = scratch[at];
//@endif
    return min(key, params.buckets);
}
