//! What modules do around attention, on the host in f64: linear layers, sums.

/// `x w^T + bias` for each row of `x`; `w` is `[out, in]`, as PyTorch keeps it.
pub(super) fn linear(x: &[f32], w: &[f32], inputs: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let mut y = Vec::new();
    for row in x.chunks_exact(inputs.max(1)) {
        for (out, weights) in w.chunks_exact(inputs.max(1)).enumerate() {
            let products = row.iter().zip(weights);
            let dot: f64 = products.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            let start = bias.and_then(|bias| bias.get(out)).copied().unwrap_or(0.0);
            y.push((dot + f64::from(start)) as f32);
        }
    }
    y
}

/// The columns `from..from + count` of rows of `width`.
pub(super) fn columns(x: &[f32], width: usize, from: usize, count: usize) -> Vec<f32> {
    x.chunks_exact(width.max(1))
        .flat_map(|row| row.iter().skip(from).take(count).copied())
        .collect()
}

/// Elements of a row-major tensor in another order of its axes: axis `n` of the result is `order[n]` of `x`.
pub(super) fn permuted<const RANK: usize>(
    x: &[f32],
    shape: [usize; RANK],
    order: [usize; RANK],
) -> Vec<f32> {
    let mut strides = [1; RANK];
    for axis in (0..RANK.saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1];
    }
    let axes = order.map(|axis| (shape[axis], strides[axis]));
    (0..x.len())
        .map(|number| {
            let mut rest = number;
            let mut at = 0;
            for (len, stride) in axes.iter().rev() {
                at += rest % len * stride;
                rest /= len;
            }
            x[at]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_times_weights() {
        let y = linear(
            &[1.0, 2.0, 3.0, 4.0],
            &[1.0, 0.0, 0.5, 1.0, -1.0, 1.0],
            2,
            Some(&[0.0, 10.0, 0.0]),
        );
        assert_eq!(y, [1.0, 12.5, 1.0, 3.0, 15.5, 1.0]);
        assert_eq!(columns(&y, 3, 1, 2), [12.5, 1.0, 15.5, 1.0]);
    }

    #[test]
    fn axes_exchanged() {
        let x = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(permuted(&x, [2, 3], [1, 0]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(permuted(&x, [1, 2, 3], [0, 1, 2]), x);
    }
}
