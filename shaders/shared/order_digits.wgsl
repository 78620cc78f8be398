// One digit of a sort by digits, as each invocation of a workgroup counts it in elements of its own.
//
// Asks of params, besides order_keys: n, each, chunks, shift, source_at; of constants: WORKGROUP, DIGITS, FIRST.

var<workgroup> counts: array<u32, DIGITS * WORKGROUP>; // [digit, invocation]

// The element at a place of the order so far.
fn element_at(sequence: u32, place: u32) -> u32 {
//@if FIRST
    return place;
//@else
    return scratch[params.source_at + sequence * params.n + place];
//@endif
}

fn digit_of(sequence: u32, element: u32) -> u32 {
    return (key_of(sequence, element) >> params.shift) & (DIGITS - 1u);
}

// The places that an invocation has.
fn own_places(chunk: u32, local: u32) -> vec2<u32> {
    let begin = min((chunk * WORKGROUP + local) * params.each, params.n);
    return vec2<u32>(begin, min(begin + params.each, params.n));
}

// Counts the digits of an invocation's elements.
fn count_own(sequence: u32, own: vec2<u32>, local: u32) {
    for (var digit = 0u; digit < DIGITS; digit++) {
        counts[digit * WORKGROUP + local] = 0u;
    }
    for (var place = own.x; place < own.y; place++) {
        let digit = digit_of(sequence, element_at(sequence, place));
        counts[digit * WORKGROUP + local] += 1u;
    }
}
