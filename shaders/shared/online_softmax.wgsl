// Online softmax in base 2: numbers that stand in for minus infinity, since some drivers do not
// honour arithmetic on infinities.

const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Score of a hidden key.
const FLOOR: f32 = -1e30;
// Scores at or below this are hidden; also the running maximum before any visible key.
const HIDDEN: f32 = -5e29;

// exp2(score - maximum), exactly 0 for a hidden key: exp2 alone need not reach 0.
fn weight(score: f32, maximum: f32) -> f32 {
    return select(exp2(score - maximum), 0.0, score <= HIDDEN);
}

// A score from outside, where minus infinity means hidden. NaN passes.
fn floored(score: f32) -> f32 {
    return select(score, FLOOR, score <= FLOOR);
}

// 1 / total, or 0 where nothing was visible.
fn reciprocal(total: f32) -> f32 {
    return select(1.0 / total, 0.0, total == 0.0);
}
