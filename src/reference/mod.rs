//! The ops on the CPU in f64, written from their formulas: what the kernels are checked against.

mod attention;
mod softmax;

pub use attention::{AttentionInputs, AttentionOutputs, attention};
pub use softmax::softmax;

/// The error measure used everywhere: `max |x - reference| / RMS(reference)`.
///
/// Entries that are infinite in the reference must be equal; where one is not, or a number is
/// NaN, or the lengths differ, the error is infinite. A reference of all zeros is measured
/// absolutely. Non-finite entries do not count in the RMS.
pub fn error(x: &[f32], reference: &[f64]) -> f64 {
    if x.len() != reference.len() {
        return f64::INFINITY;
    }
    let finite = reference.iter().filter(|r| r.is_finite());
    let (count, squares) = finite.fold((0u64, 0.0), |(n, sum), r| (n + 1, sum + r * r));
    let rms = (squares / count.max(1) as f64).sqrt();
    let mut worst = 0.0f64;
    for (&x, &r) in x.iter().zip(reference) {
        let difference = if r.is_finite() {
            (f64::from(x) - r).abs()
        } else if f64::from(x) == r {
            0.0
        } else {
            f64::INFINITY
        };
        // Not max(): it would lose NaN.
        if difference.is_nan() {
            return f64::INFINITY;
        }
        worst = worst.max(difference);
    }
    if rms > 0.0 { worst / rms } else { worst }
}
