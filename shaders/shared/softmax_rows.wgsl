// What the softmax kernel shares with its parameters: rows of any strides.
//
// A tensor is [size_0, size_1, size_2] rows of `length` elements; rows are numbered with the last
// of these axes fastest.

struct Params {
    groups: u32,            // workgroups with work
    rows: u32,
    length: u32,            // elements of a row in this slice
    splits: u32,            // ranges of a row in this dispatch
    split_length: u32,
    split_start: u32,       // number of the first range
    all_splits: u32,        // ranges in all dispatches
    size_1: u32,
    size_2: u32,
    scale: f32,
    minus_infinity: f32,
    x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
    y_at: u32, y_0: u32, y_1: u32, y_2: u32, y_element: u32,
}

fn x_start(row: u32, p: Params) -> u32 {
    let rest = row / p.size_2;
    return p.x_at + rest / p.size_1 * p.x_0 + rest % p.size_1 * p.x_1 + row % p.size_2 * p.x_2;
}

fn y_start(row: u32, p: Params) -> u32 {
    let rest = row / p.size_2;
    return p.y_at + rest / p.size_1 * p.y_0 + rest % p.size_1 * p.y_1 + row % p.size_2 * p.y_2;
}
