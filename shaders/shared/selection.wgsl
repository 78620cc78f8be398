// The order of numbers as that of integers, made of their bits: exact, also among denormal numbers, and total.

// A place that holds no index.
const NONE: u32 = 0xffffffffu;
// What is not there comes after all that is.
const ABSENT: i32 = -2147483647 - 1;
// NaN comes after the worse infinity.
const LAST: i32 = -2139095041;
const WORSE_INFINITY: i32 = -2139095040;
// What stands in scratch where there is no element: a NaN that no other is stored as.
const NOTHING: u32 = 0xffffffffu;

// The key of a number: larger is better. -0 and +0 have the same. `flip` is the sign bit when the smallest are wanted.
fn order_key(bits: u32, flip: u32) -> i32 {
    let magnitude = i32(bits & 0x7fffffffu);
    var key = select(magnitude, -magnitude, bitcast<i32>(bits ^ flip) < 0);
    key = select(key, LAST, magnitude > 0x7f800000);
//@if SKIP
    key = select(key, ABSENT, key <= WORSE_INFINITY);
//@endif
    return key;
}

// Where a row begins in a tensor of [size_0, size_1, size_2] rows; they are numbered with the last of these axes fastest.
fn place_of(row: u32, at: u32, stride_0: u32, stride_1: u32, stride_2: u32) -> u32 {
    let rest = row / params.size_2;
    return at + rest / params.size_1 * stride_0 + rest % params.size_1 * stride_1 + row % params.size_2 * stride_2;
}
