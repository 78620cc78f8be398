// The logistic function; an exponential that would overflow is cut.
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp2(min(-1.4426950408889634 * x, 126.0)));
}
