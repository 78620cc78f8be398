// A power of two for masses that are given, by the largest of them: with it, sums of as many as 32 bits count are finite,
// and tiny masses are not flushed to nothing.
fn mass_scale(highest: f32) -> f32 {
    let large = 18446744073709551616.0; // 2^64
    return select(select(1.0, large, highest < 1.0 / large), 1.0 / large, highest > large);
}
