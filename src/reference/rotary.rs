//! Rotary position embedding from its formula.

/// Inputs of [`rotary`], contiguous.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the names are those of the op")]
pub struct RotaryInputs<'a> {
    pub batch: usize,
    pub heads: usize,
    pub seq: usize,
    pub head_dim: usize,
    pub rotary_dim: usize,
    pub interleaved: bool,
    pub inverse: bool,
    /// `[batch, heads, seq, head_dim]`
    pub x: &'a [f64],
    /// `[rows, rotary_dim / 2]`
    pub cos: &'a [f64],
    /// `[rows, rotary_dim / 2]`
    pub sin: &'a [f64],
    /// The row of each token, `[batch, seq]`.
    pub rows: &'a [usize],
}

/// Each pair of channels as a complex number, times that of its angle: `(a + ib)(cos + i sin)`.
pub fn rotary(inputs: &RotaryInputs<'_>) -> Vec<f64> {
    let mut y = inputs.x.to_vec();
    let half = inputs.rotary_dim / 2;
    for b in 0..inputs.batch {
        for h in 0..inputs.heads {
            for token in 0..inputs.seq {
                let row = inputs.rows[b * inputs.seq + token];
                let start = ((b * inputs.heads + h) * inputs.seq + token) * inputs.head_dim;
                let channels = &mut y[start..start + inputs.head_dim];
                for i in 0..half {
                    let (first, second) = if inputs.interleaved {
                        (2 * i, 2 * i + 1)
                    } else {
                        (i, i + half)
                    };
                    let (re, im) = (channels[first], channels[second]);
                    let cos = inputs.cos[row * half + i];
                    // The inverse of a number on the unit circle is its conjugate.
                    let sin = inputs.sin[row * half + i] * if inputs.inverse { -1.0 } else { 1.0 };
                    channels[first] = re * cos - im * sin;
                    channels[second] = re * sin + im * cos;
                }
            }
        }
    }
    y
}
