//! Short convolution from its formula.

/// Inputs of [`short_conv`], contiguous.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the names are those of the op")]
pub struct ShortConvInputs<'a> {
    pub batch: usize,
    pub channels: usize,
    pub seq: usize,
    pub heads: usize,
    pub taps: usize,
    pub padding_left: usize,
    pub softmax: bool,
    pub renormalise: bool,
    pub silu: bool,
    /// `[batch, channels, seq]`
    pub x: &'a [f64],
    /// `[heads, taps]`, or `[batch, seq, heads, taps]` where `dynamic`.
    pub weight: &'a [f64],
    pub dynamic: bool,
    /// `[channels]`
    pub bias: Option<&'a [f64]>,
    /// `[batch or sequences, channels, taps - 1]`
    pub initial_state: Option<&'a [f64]>,
    /// `[sequences + 1]`, rising from 0.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// What [`short_conv`] computes.
#[derive(Debug, Clone, Default)]
pub struct ShortConvOutputs {
    /// `[batch, channels, seq]`
    pub y: Vec<f64>,
    /// `[batch or sequences, channels, taps - 1]`
    pub final_state: Vec<f64>,
}

/// Each channel of each sequence by itself: the state or zeros before it, zeros after it, and a sum per token.
pub fn short_conv(inputs: &ShortConvInputs<'_>) -> ShortConvOutputs {
    let i = inputs;
    let mut y = vec![0.0; i.batch * i.channels * i.seq];
    let mut final_state = Vec::new();
    let sequences: Vec<(usize, usize, usize)> = match i.cu_seqlens {
        None => (0..i.batch).map(|b| (b, 0, i.seq)).collect(),
        Some(cu) => cu.windows(2).map(|ends| (0, ends[0], ends[1])).collect(),
    };
    let before = i.taps - 1;
    for (number, &(b, first, end)) in sequences.iter().enumerate() {
        for c in 0..i.channels {
            let row = (b * i.channels + c) * i.seq;
            // What comes before the first token, then the tokens.
            let mut line = match i.initial_state {
                Some(state) => state[(number * i.channels + c) * before..][..before].to_vec(),
                None => vec![0.0; before],
            };
            line.extend_from_slice(&i.x[row + first..row + end]);
            for t in first..end {
                let head = c / (i.channels / i.heads);
                let at = if i.dynamic {
                    ((b * i.seq + t) * i.heads + head) * i.taps
                } else {
                    head * i.taps
                };
                let weights = &i.weight[at..at + i.taps];
                // The input under each tap, and whether it is inside.
                let under: Vec<(f64, bool)> = (0..i.taps)
                    .map(|k| {
                        let place = (t - first + before + k).checked_sub(i.padding_left);
                        let value = place.and_then(|place| line.get(place)).copied();
                        let start = if i.initial_state.is_some() { 0 } else { before };
                        let inside = value.is_some() && place >= Some(start);
                        (value.unwrap_or(0.0), inside)
                    })
                    .collect();
                let counts = |k: usize| !i.renormalise || under[k].1;
                let weights: Vec<f64> = if i.softmax {
                    let largest = (0..i.taps).filter(|&k| counts(k)).map(|k| weights[k]);
                    let largest = largest.fold(f64::NEG_INFINITY, f64::max);
                    let exps = (0..i.taps).map(|k| match counts(k) {
                        true => (weights[k] - largest).exp(),
                        false => 0.0,
                    });
                    let exps: Vec<f64> = exps.collect();
                    let total: f64 = exps.iter().sum();
                    exps.iter().map(|exp| exp / total).collect()
                } else {
                    weights.to_vec()
                };
                let products = weights.iter().zip(&under);
                let mut sum: f64 = products.map(|(w, (x, _))| w * x).sum();
                sum += i.bias.map_or(0.0, |bias| bias[c]);
                y[row + t] = if i.silu {
                    sum / (1.0 + (-sum).exp())
                } else {
                    sum
                };
            }
            final_state.extend_from_slice(&line[line.len() - before..]);
        }
    }
    ShortConvOutputs { y, final_state }
}
