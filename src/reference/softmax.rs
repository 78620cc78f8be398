//! Softmax from its formula.

/// `softmax(scale * x)`, or its logarithm, along `axis` of a contiguous tensor.
///
/// A row of minus infinities gives 0, or minus infinity.
pub fn softmax(x: &[f64], shape: &[usize], axis: usize, scale: f64, log: bool) -> Vec<f64> {
    let length = shape[axis];
    let inner: usize = shape[axis + 1..].iter().product();
    let mut y = vec![0.0; x.len()];
    for outer in 0..x.len() / (length * inner).max(1) {
        for column in 0..inner {
            let at = |j: usize| (outer * length + j) * inner + column;
            let z: Vec<f64> = (0..length).map(|j| scale * x[at(j)]).collect();
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = z.iter().map(|z| weight(*z, max)).sum();
            for (j, &z) in z.iter().enumerate() {
                y[at(j)] = match (log, max == f64::NEG_INFINITY) {
                    (false, true) => 0.0,
                    (true, true) => f64::NEG_INFINITY,
                    (false, false) => weight(z, max) / total,
                    (true, false) => z - max - total.ln(),
                };
            }
        }
    }
    y
}

fn weight(z: f64, max: f64) -> f64 {
    if z == f64::NEG_INFINITY {
        0.0
    } else {
        (z - max).exp()
    }
}
