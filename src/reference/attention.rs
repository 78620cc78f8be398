//! Attention from its formula.

use std::fmt;

use crate::ops::{Attention, BlockMask, Causal, Corner, KeyIndex, Window, dims};

/// A batch entry, a query head, a query and a key, each by its number in the tensors.
pub type Pair = [usize; 4];

/// What takes the place of a score or of a weight.
pub type Change<'a> = &'a dyn Fn(f64, Pair) -> f64;

/// What attention is computed from: contiguous tensors of any number type as f64.
#[derive(Clone, Default)]
pub struct AttentionInputs<'a> {
    /// Batch entries.
    pub batch: usize,
    /// Query heads.
    pub q_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Dims of q and k.
    pub head_dim: usize,
    /// Dims of v and o.
    pub value_dim: usize,
    /// `[batch, q_heads, q_len, head_dim]`
    pub q: &'a [f64],
    /// `[batch, kv_heads, kv_len, head_dim]`
    pub k: &'a [f64],
    /// `[batch, kv_heads, kv_len, value_dim]`
    pub v: &'a [f64],
    /// `[batch, q_heads, q_len, kv_len]`, true is visible.
    pub mask: Option<&'a [bool]>,
    /// `[batch, q_heads, q_len, kv_len]`
    pub bias: Option<&'a [f64]>,
    /// Valid keys, `[batch]`
    pub lens: Option<&'a [usize]>,
    /// Valid queries, `[batch]`
    pub q_lens: Option<&'a [usize]>,
    /// Keys that every query sees, `[batch]`
    pub prefix: Option<&'a [usize]>,
    /// Where packed queries begin, `[sequences + 1]`
    pub cu_q: Option<&'a [usize]>,
    /// Where packed keys begin, `[sequences + 1]`
    pub cu_kv: Option<&'a [usize]>,
    /// Sliding window.
    pub window: Option<Window>,
    /// Recent and first keys of each head, `[q_heads]`
    pub head_windows: Option<&'a [[u32; 2]]>,
    /// Logits in the denominator, `[q_heads]`
    pub sinks: Option<&'a [f64]>,
    /// A factor on each row of the output, `[batch, q_heads, q_len]`.
    pub gate: Option<&'a [f64]>,
    /// Scaled scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// A block mask and the words of its bits, row-major.
    pub blocks: Option<(&'a BlockMask, &'a [u32])>,
    /// Where the blocks of keys begin, `[kv_blocks + 1]`, where that is anywhere.
    pub block_starts: Option<&'a [u32]>,
    /// Lists of keys, and their entries, row-major.
    pub lists: Option<(&'a KeyIndex, &'a [u32])>,
    /// The `mask_mod`.
    pub visible: Option<&'a dyn Fn(Pair) -> bool>,
    /// The `score_mod`, after the bias.
    pub score: Option<Change<'a>>,
    /// The `prob_mod`, after the softmax.
    pub prob: Option<Change<'a>>,
    /// Factor on `q k^T`.
    pub scale: f64,
    /// Causal masking.
    pub causal: Causal,
}

impl fmt::Debug for AttentionInputs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = [self.batch, self.q_heads, self.kv_heads];
        f.debug_struct("AttentionInputs")
            .field("batch and heads", &heads)
            .field("lengths", &[self.q_len, self.kv_len])
            .field("dims", &[self.head_dim, self.value_dim])
            .finish_non_exhaustive()
    }
}

/// The queries and keys that may see each other: where they begin, and how many there are.
struct Sequence {
    q_start: usize,
    q_len: usize,
    kv_start: usize,
    kv_len: usize,
}

impl<'a> AttentionInputs<'a> {
    /// The inputs of an op, with all that it says itself. What lies in tensors besides `q`, `k` and `v` is
    /// for the caller to add.
    pub fn of(op: &Attention, q: &'a [f64], k: &'a [f64], v: &'a [f64]) -> Self {
        let [batch, q_heads, q_len, head_dim] = dims(&op.q).map(|len| len as usize);
        let [_, kv_heads, kv_len, value_dim] = dims(&op.v).map(|len| len as usize);
        Self {
            batch,
            q_heads,
            kv_heads,
            q_len,
            kv_len,
            head_dim,
            value_dim,
            q,
            k,
            v,
            window: op.window,
            softcap: op.softcap.map(f64::from),
            scale: op.effective_scale().into(),
            causal: op.causal,
            ..Self::default()
        }
    }

    /// The sequence of a query; none when it belongs to none.
    fn sequence(&self, batch: usize, query: usize) -> Option<Sequence> {
        let valid =
            |lens: Option<&[usize]>, all: usize| lens.map_or(all, |lens| lens[batch].min(all));
        let (Some(cu_q), Some(cu_kv)) = (self.cu_q, self.cu_kv) else {
            return Some(Sequence {
                q_start: 0,
                q_len: valid(self.q_lens, self.q_len),
                kv_start: 0,
                kv_len: valid(self.lens, self.kv_len),
            });
        };
        let number = cu_q
            .windows(2)
            .position(|ends| (ends[0]..ends[1]).contains(&query))?;
        Some(Sequence {
            q_start: cu_q[number],
            q_len: cu_q[number + 1] - cu_q[number],
            kv_start: cu_kv[number],
            kv_len: cu_kv[number + 1].saturating_sub(cu_kv[number]),
        })
    }

    /// Whether a query sees a key.
    pub fn sees(&self, pair: Pair) -> bool {
        let [b, h, i, j] = pair;
        let Some(sequence) = self.sequence(b, i) else {
            return false;
        };
        // Places within the sequence. Wide numbers: windows may be as long as u64 has them.
        let [i, j, q_start, q_len, kv_start, kv_len] = [
            i,
            j,
            sequence.q_start,
            sequence.q_len,
            sequence.kv_start,
            sequence.kv_len,
        ]
        .map(|number| number as i128);
        let (query, key) = (i - q_start, j - kv_start);
        if query >= q_len || key < 0 || key >= kv_len {
            return false;
        }

        let window = self.window.unwrap_or_default();
        let corner = match self.causal {
            Causal::None => window.corner,
            Causal::TopLeft => Corner::TopLeft,
            Causal::BottomRight => Corner::BottomRight,
        };
        // The key at which the query stands.
        let place = match corner {
            Corner::TopLeft => query,
            Corner::BottomRight => query + kv_len - q_len,
        };
        let in_order = self.causal == Causal::None || key <= place;
        let near_left = window
            .left
            .is_none_or(|left| key >= place - i128::from(left));
        let near_right = window
            .right
            .is_none_or(|right| key <= place + i128::from(right));
        let in_window = (near_left || key < i128::from(window.first)) && near_right;
        let in_prefix = self.prefix.is_some_and(|prefix| key < prefix[b] as i128);
        let in_head_window = self.head_windows.is_none_or(|windows| {
            let [recent, first] = windows[h].map(i128::from);
            recent == i128::from(u32::MAX) || key > place - recent || key < first
        });

        let [_, _, i, j] = pair;
        let number = ((b * self.q_heads + h) * self.q_len + i) * self.kv_len + j;
        (in_order && in_window && in_head_window || in_prefix)
            && self.mask.is_none_or(|mask| mask[number])
            && self
                .blocks
                .is_none_or(|(mask, bits)| self.in_block(mask, bits, pair))
            && self.times(pair) > 0.0
            && self.visible.is_none_or(|visible| visible(pair))
    }

    /// The bit of a pair's block.
    fn in_block(&self, mask: &BlockMask, bits: &[u32], [b, h, i, j]: Pair) -> bool {
        let [batch, heads, rows, words] = dims(&mask.bits).map(|len| len as usize);
        let row = i / mask.block_q as usize;
        let block = match self.block_starts {
            Some(starts) => {
                let mut ends = starts.windows(2);
                let Some(block) = ends.position(|ends| (ends[0]..ends[1]).contains(&(j as u32)))
                else {
                    return false;
                };
                block
            }
            None => j / mask.block_kv as usize,
        };
        // Axes of length 1 serve all, and those of KV heads their groups.
        let head = h * heads / self.q_heads;
        let at = ((b % batch * heads + head) * rows + row) * words + block / 32;
        bits[at] >> (block % 32) & 1 == 1
    }

    /// How often a key is in the query's list; once where there are no lists.
    fn times(&self, [b, h, i, j]: Pair) -> f64 {
        let Some((lists, numbers)) = self.lists else {
            return 1.0;
        };
        let [batch, heads, rows, entries] = dims(&lists.index).map(|len| len as usize);
        let head = h * heads / self.q_heads;
        let row = (b % batch * heads + head) * rows + i / lists.block_q as usize;
        let list = numbers[row * entries..].iter().take(entries);
        list.filter(|&&key| key as usize == j).count() as f64
    }

    /// `scale q k^T`, whether the key is visible or not.
    pub(super) fn scaled_score(&self, [b, h, i, j]: Pair) -> f64 {
        let row = (b * self.q_heads + h) * self.q_len + i;
        let kv = b * self.kv_heads + h / (self.q_heads / self.kv_heads);
        let q = &self.q[row * self.head_dim..][..self.head_dim];
        let k = &self.k[(kv * self.kv_len + j) * self.head_dim..][..self.head_dim];
        let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
        self.scale * dot
    }

    /// The same after the soft cap.
    pub(super) fn capped_score(&self, pair: Pair) -> f64 {
        let score = self.scaled_score(pair);
        self.softcap.map_or(score, |cap| cap * (score / cap).tanh())
    }

    /// The score that goes into the softmax; minus infinity where the key is hidden.
    pub(super) fn final_score(&self, pair: Pair) -> f64 {
        let [b, h, i, j] = pair;
        if !self.sees(pair) {
            return f64::NEG_INFINITY;
        }
        let row = (b * self.q_heads + h) * self.q_len + i;
        let mut score = self.capped_score(pair);
        if let Some(bias) = self.bias {
            score += bias[row * self.kv_len + j];
        }
        match self.score {
            // A bias of minus infinity hides the key, whatever a modification makes of it.
            Some(change) if score > f64::NEG_INFINITY => change(score, pair),
            _ => score,
        }
    }
}

/// What attention computes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AttentionOutputs {
    /// `[batch, q_heads, q_len, value_dim]`
    pub o: Vec<f64>,
    /// `[batch, q_heads, q_len]`
    pub lse: Vec<f64>,
}

/// `softmax(score_mod(softcap(scale q k^T) + bias), visible) v` and the log-sum-exp, row by row.
pub fn attention(a: &AttentionInputs<'_>) -> AttentionOutputs {
    let mut out = AttentionOutputs::default();
    for b in 0..a.batch {
        for h in 0..a.q_heads {
            let kv = b * a.kv_heads + h / (a.q_heads / a.kv_heads);
            for i in 0..a.q_len {
                let scores: Vec<f64> = (0..a.kv_len).map(|j| a.final_score([b, h, i, j])).collect();
                let sink = a.sinks.map_or(f64::NEG_INFINITY, |sinks| sinks[h]);
                let max = scores.iter().copied().fold(sink, f64::max);
                if max == f64::NEG_INFINITY {
                    out.o.resize(out.o.len() + a.value_dim, 0.0);
                    out.lse.push(f64::NEG_INFINITY);
                    continue;
                }
                let times: Vec<f64> = (0..a.kv_len).map(|j| a.times([b, h, i, j])).collect();
                let each = scores.iter().zip(&times);
                let total: f64 = each.map(|(s, times)| times * (s - max).exp()).sum();
                let total = total + (sink - max).exp();
                out.lse.push(max + total.ln());
                let mut o = vec![0.0; a.value_dim];
                for (j, s) in scores.iter().enumerate() {
                    if *s == f64::NEG_INFINITY {
                        continue;
                    }
                    let mut w = (s - max).exp() / total;
                    if let Some(change) = a.prob {
                        w = change(w, [b, h, i, j]);
                    }
                    w *= times[j];
                    let v = &a.v[(kv * a.kv_len + j) * a.value_dim..][..a.value_dim];
                    for (o, v) in o.iter_mut().zip(v) {
                        *o += w * v;
                    }
                }
                let gate = a.gate.map_or(1.0, |gate| gate[out.lse.len() - 1]);
                out.o.extend(o.iter().map(|x| gate * x));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Layout};

    const M: usize = 4;
    const N: usize = 6;

    /// Four queries, six keys of equal scores; the output is the mean of the numbers of the keys seen.
    fn flat<'a>(v: &'a [f64]) -> AttentionInputs<'a> {
        AttentionInputs {
            batch: 1,
            q_heads: 1,
            kv_heads: 1,
            q_len: M,
            kv_len: N,
            head_dim: 1,
            value_dim: 1,
            q: &[1.0; M],
            k: &[0.0; N],
            v,
            scale: 1.0,
            ..AttentionInputs::default()
        }
    }

    /// The keys that each query sees, as digits.
    fn seen(a: &AttentionInputs<'_>) -> Vec<String> {
        (0..M)
            .map(|i| {
                let keys = (0..N).filter(|&j| a.sees([0, 0, i, j]));
                keys.map(|j| j.to_string()).collect()
            })
            .collect()
    }

    #[test]
    fn windows() {
        let a = flat(&[0.0; N]);
        let window = |left, right, first, corner| Window {
            left,
            right,
            first,
            corner,
        };
        for (set, causal, want) in [
            (
                window(Some(1), Some(1), 0, Corner::TopLeft),
                Causal::None,
                ["01", "012", "123", "234"],
            ),
            (
                window(Some(1), Some(0), 0, Corner::BottomRight),
                Causal::None,
                ["12", "23", "34", "45"],
            ),
            (
                window(Some(0), None, 2, Corner::TopLeft),
                Causal::None,
                ["012345", "012345", "012345", "01345"],
            ),
            // The first keys are no further right than causal masking lets a query see.
            (
                window(Some(0), None, 2, Corner::TopLeft),
                Causal::TopLeft,
                ["0", "01", "012", "013"],
            ),
            (
                window(Some(1), None, 1, Corner::TopLeft),
                Causal::BottomRight,
                ["012", "023", "034", "045"],
            ),
            (
                window(Some(u64::MAX), Some(u64::MAX), u64::MAX, Corner::TopLeft),
                Causal::None,
                ["012345", "012345", "012345", "012345"],
            ),
        ] {
            let a = AttentionInputs {
                window: Some(set),
                causal,
                ..a.clone()
            };
            assert_eq!(seen(&a), want, "{set:?} {causal:?}");
        }
    }

    #[test]
    fn lengths_and_prefixes() {
        let a = flat(&[0.0; N]);
        let causal = Causal::BottomRight;
        let short = AttentionInputs {
            q_lens: Some(&[3]),
            lens: Some(&[4]),
            causal,
            ..a.clone()
        };
        assert_eq!(seen(&short), ["01", "012", "0123", ""]);
        let prefix = AttentionInputs {
            prefix: Some(&[3]),
            lens: Some(&[2]),
            causal: Causal::TopLeft,
            window: Some(Window {
                left: Some(0),
                ..Window::default()
            }),
            ..a.clone()
        };
        assert_eq!(seen(&prefix), ["01", "01", "01", "01"]);
        let prefix = AttentionInputs {
            lens: None,
            ..prefix
        };
        assert_eq!(seen(&prefix), ["012", "012", "012", "0123"]);
    }

    #[test]
    fn windows_of_heads() {
        let a = AttentionInputs {
            head_windows: Some(&[[2, 1]]),
            causal: Causal::TopLeft,
            ..flat(&[0.0; N])
        };
        assert_eq!(seen(&a), ["0", "01", "012", "023"]);
        let a = AttentionInputs {
            head_windows: Some(&[[0, 1]]),
            ..a
        };
        assert_eq!(seen(&a), ["0", "0", "0", "0"]);
        let a = AttentionInputs {
            head_windows: Some(&[[u32::MAX, 0]]),
            ..a
        };
        assert_eq!(seen(&a), ["0", "01", "012", "0123"]);
    }

    #[test]
    fn packed_sequences_see_their_own_keys() {
        // One query and two keys, none and one, two and two; a query and a key of no sequence.
        let a = AttentionInputs {
            cu_q: Some(&[0, 1, 1, 3]),
            cu_kv: Some(&[0, 2, 3, 5]),
            ..flat(&[0.0; N])
        };
        assert_eq!(seen(&a), ["01", "34", "34", ""]);
        let a = AttentionInputs {
            causal: Causal::BottomRight,
            ..a
        };
        assert_eq!(seen(&a), ["01", "3", "34", ""]);
        let fewer_keys = AttentionInputs {
            cu_q: Some(&[0, 4]),
            cu_kv: Some(&[1, 3]),
            ..a
        };
        assert_eq!(seen(&fewer_keys), ["", "", "1", "12"]);
    }

    #[test]
    fn blocks_that_divide_nothing() {
        let mask = BlockMask {
            bits: Layout::new(DType::U32, [1, 1, 2, 1]),
            block_q: 3,
            block_kv: 4,
        };
        let a = AttentionInputs {
            blocks: Some((&mask, &[0b01, 0b10])),
            ..flat(&[0.0; N])
        };
        assert_eq!(seen(&a), ["0123", "0123", "0123", "45"]);
        // 33 blocks of keys take two words.
        let mask = BlockMask {
            bits: Layout::new(DType::U32, [1, 2, 1, 2]),
            block_q: 8,
            block_kv: 1,
        };
        let bits = [0, 1, 1, 0];
        // As many heads as there are query heads, and half as many.
        for q_heads in [2, 4] {
            let a = AttentionInputs {
                q_heads,
                ..flat(&[0.0; N])
            };
            let last = q_heads - 1;
            assert!(a.in_block(&mask, &bits, [5, 0, 7, 32]));
            assert!(!a.in_block(&mask, &bits, [5, 0, 7, 0]));
            assert!(a.in_block(&mask, &bits, [5, last, 7, 0]));
            assert!(!a.in_block(&mask, &bits, [5, last, 7, 32]));
        }
    }

    #[test]
    fn lists() {
        let lists = KeyIndex {
            index: Layout::new(DType::U32, [1, 1, 2, 4]),
            block_q: 3,
        };
        let numbers = [4, 1, 1, 99, u32::MAX, u32::MAX, 6, u32::MAX];
        let v = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let a = AttentionInputs {
            lists: Some((&lists, &numbers)),
            ..flat(&v)
        };
        assert_eq!(seen(&a), ["14", "14", "14", ""]);
        // Key 1 counts twice.
        let out = attention(&a);
        assert_eq!(out.o, [2.0, 2.0, 2.0, 0.0]);
        assert_eq!(out.lse[3], f64::NEG_INFINITY);
        assert!((out.lse[0] - 3f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn scores_in_their_order() {
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        // scale 2, q 1, k 3: 6, capped 4 tanh(1.5), biased + 1, modified x 2.
        let a = AttentionInputs {
            q_len: 1,
            kv_len: 2,
            q: &[1.0],
            k: &[3.0, 0.0],
            v: &[1.0, 0.0],
            scale: 2.0,
            softcap: Some(4.0),
            bias: Some(&[1.0, 0.0]),
            score: Some(&|score, [_, _, _, j]| 2.0 * score + j as f64),
            ..flat(&[])
        };
        let first = 2.0 * (4.0 * 1.5f64.tanh() + 1.0);
        let total = first.exp() + 1f64.exp();
        let out = attention(&a);
        close(out.lse[0], total.ln());
        close(out.o[0], first.exp() / total);
        // A weight is changed after the softmax, and is not normalised again.
        let halved = attention(&AttentionInputs {
            prob: Some(&|weight, _| weight / 2.0),
            ..a.clone()
        });
        close(halved.o[0], out.o[0] / 2.0);
        close(halved.lse[0], out.lse[0]);
        // A sink takes part in the denominator alone.
        let sunk = attention(&AttentionInputs {
            sinks: Some(&[7.0]),
            ..a.clone()
        });
        close(sunk.lse[0], (total + 7f64.exp()).ln());
        close(sunk.o[0], first.exp() / (total + 7f64.exp()));
        // All that a row without keys has is its sink.
        let empty = attention(&AttentionInputs {
            sinks: Some(&[7.0]),
            visible: Some(&|_| false),
            ..a.clone()
        });
        assert_eq!((empty.o[0], empty.lse[0]), (0.0, 7.0));
        // What a bias hides stays hidden.
        let hidden = attention(&AttentionInputs {
            bias: Some(&[f64::NEG_INFINITY, 0.0]),
            score: Some(&|_, _| 1.0),
            ..a
        });
        assert_eq!((hidden.o[0], hidden.lse[0]), (0.0, 1.0));
    }
}
