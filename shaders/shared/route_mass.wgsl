//@import mass_scale

// What a score is worth, where the largest is known.
fn mass_of(score: f32, largest: f32) -> f32 {
//@if GIVEN
    return max(score, 0.0) * mass_scale(largest);
//@else
    // Halves, whose difference is finite.
    let below = 2.0 * max(score * 0.5 - largest * 0.5, -100.0);
    return select(exp(max(below, -100.0)), 0.0, below < -100.0);
//@endif
}
