// Online softmax in base 2: numbers that stand in for minus infinity, since compilers may assume that
// there are no infinities. Whether a number from outside is one is told by its bits.

const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Score of a hidden key.
const FLOOR: f32 = -3e38;
// Scores at or below this are hidden; also the running maximum before any visible key.
const HIDDEN: f32 = -2e38;
// The least bias: what is below counts as this, so that it stays far above hidden keys.
const LEAST_BIAS: f32 = -1e38;
const MINUS_INFINITY_BITS: u32 = 0xff800000u;

// exp2(score - maximum), exactly 0 for a hidden key: exp2 alone need not reach 0.
fn weight(score: f32, maximum: f32) -> f32 {
    return select(exp2(score - maximum), 0.0, score <= HIDDEN);
}

// A score with its bias, in base 2; a bias of minus infinity hides the key.
fn biased(score: f32, bias: f32) -> f32 {
    let sum = score + max(bias, LEAST_BIAS) * LOG2_E;
    return select(sum, FLOOR, bitcast<u32>(bias) == MINUS_INFINITY_BITS);
}

// 1 / total, or 0 where nothing was visible.
fn reciprocal(total: f32) -> f32 {
    return select(1.0 / total, 0.0, total == 0.0);
}

// The hyperbolic tangent to about 1e-7: WGSL's own promises less. Lambert's continued fraction where
// 1 - 2 t / (1 + t) would cancel.
fn tangent(x: f32) -> f32 {
    let y = x * x;
    let near = x * fma(y, y + 105.0, 945.0) / fma(y, fma(y, 15.0, 420.0), 945.0);
    let t = exp2(-2.0 * LOG2_E * abs(x));
    let far = 1.0 - 2.0 * t / (1.0 + t);
    return select(select(far, -far, x < 0.0), near, abs(x) < 0.6);
}
