//! Rows taken and put back by an index.

/// Inputs of a gather of one batch entry and head, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct GatherInputs<'a, T> {
    /// `[n, dim]`
    pub x: &'a [T],
    /// Channels.
    pub dim: usize,
    /// Which blocks of rows.
    pub index: &'a [u32],
    /// Rows of a block.
    pub block: usize,
}

/// `y[i * block + r] = x[index[i] * block + r]`, zeros past the end of `x`.
pub fn gather<T: Copy + Default>(inputs: &GatherInputs<'_, T>) -> Vec<T> {
    let mut y = Vec::new();
    for &named in inputs.index {
        for r in 0..inputs.block {
            let row = named as usize * inputs.block + r;
            match inputs.x.get(row * inputs.dim..(row + 1) * inputs.dim) {
                Some(values) => y.extend_from_slice(values),
                None => y.extend(std::iter::repeat_n(T::default(), inputs.dim)),
            }
        }
    }
    y
}

/// The mean of the rows of `x`, `[places, dim]`, that name each of `n` tokens, with `epsilon` added to counts.
pub fn scatter_mean(x: &[f64], dim: usize, index: &[u32], n: usize, epsilon: f64) -> Vec<f64> {
    let mut sums = vec![0.0; n * dim];
    let mut counts = vec![0.0f64; n];
    for (row, &token) in x.chunks(dim).zip(index) {
        let token = token as usize;
        if token < n {
            counts[token] += 1.0;
            for (sum, x) in sums[token * dim..].iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
    for (row, &count) in sums.chunks_mut(dim).zip(&counts) {
        for sum in row {
            *sum = if count > 0.0 {
                *sum / (count + epsilon)
            } else {
                0.0
            };
        }
    }
    sums
}
