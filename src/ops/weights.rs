//! Attention's scores and weights, and what can be said of them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Args, Attention, AttentionArgs, Slot, dims};
use crate::{
    error::{Error, Result},
    kernels::attention_weights,
    tensor::{DType, Layout, View},
};

/// The most keys that [`Statistic::Top`] lists for a row.
const MAX_TOP: u64 = attention_weights::MOST as u64;

/// How far a score has come when [`Statistic::Matrix`] writes it.
///
/// These are the modes of `qk_matmul_output` in ONNX's Attention, from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// `scale * q k^T`, also where a key is hidden.
    Scaled,
    /// After the soft cap, also where a key is hidden.
    Capped,
    /// What goes into the softmax, after biases and mods; minus infinity where a key is hidden.
    Final,
    /// The weights after the softmax and `prob_mod`; 0 where a key is hidden.
    Weights,
}

/// What [`Weights`] computes, and the shapes of its outputs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The matrix itself, for a range of query heads and a range of queries: f32 or f16
    /// `[batch, heads, queries, kv_len]`. What is past the range of f16 becomes infinite.
    Matrix {
        /// How far the scores have come.
        stage: Stage,
        /// Query heads.
        heads: Range<u64>,
        /// Queries.
        rows: Range<u64>,
    },
    /// The entropy of each row's weights, `-sum w ln w`: f32 `[batch, q_heads, q_len]`. Weights that a
    /// `prob_mod` makes 0 or less count for nothing.
    Entropy,
    /// The largest weight of each row and its key: f32 and u32 `[batch, q_heads, q_len]`.
    LargestWeight,
    /// The largest score of each row as it goes into the softmax, [`Attention::sinks`] included: f32
    /// `[batch, q_heads, q_len]`. Minus infinity where there is none.
    LargestScore,
    /// How much weight each key gets, all queries together: f32 `[batch, q_heads, kv_len]`.
    ///
    /// Source: Zhang et al., H2O (arXiv:2306.14048), where it picks the keys that are kept.
    Mass,
    /// The keys of the largest weights of each row, the largest first: f32 and u32
    /// `[batch, q_heads, q_len, count]`. Places that a row has no visible key for have weight 0 and the key
    /// `u32::MAX`.
    Top {
        /// How many, from 1 to 64.
        count: u64,
    },
}

impl Statistic {
    /// Whether it is made of weights, so that it needs [`Attention::lse`].
    pub fn needs_lse(&self) -> bool {
        !matches!(
            self,
            Self::LargestScore
                | Self::Matrix {
                    stage: Stage::Scaled | Stage::Capped | Stage::Final,
                    ..
                }
        )
    }

    /// Whether it looks at hidden keys too, and at nothing but q and k.
    pub(crate) fn sees_all(&self) -> bool {
        matches!(
            self,
            Self::Matrix {
                stage: Stage::Scaled | Stage::Capped,
                ..
            }
        )
    }

    /// Whether it has numbers of keys as a second output.
    pub fn has_keys(&self) -> bool {
        matches!(self, Self::LargestWeight | Self::Top { .. })
    }
}

/// Scores and weights of an [`Attention`], and statistics of them, without the `q_len x kv_len` matrix in
/// memory unless that is what is asked for.
///
/// All terms of the attention count: masks, bias, windows, lengths, packed sequences, sinks, soft cap, block
/// mask, mods; lists of keys ([`Attention::key_index`]) are refused. Its `v`, `o` and `gate` take no part. Statistics of weights read the log-sum-exp that the attention
/// wrote ([`Attention::with_lse`]), as an input: `w = exp(score - lse)`, changed by `prob_mod` where there is
/// one. A query that sees no key has weights of 0. Ties go to the key with the lowest index; weights are
/// compared as computed, in f32. Results are the same in every run on one device.
///
/// A workgroup owns a row, or eight keys of one head for [`Statistic::Mass`]; long rows take several
/// dispatches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Whose scores.
    pub attention: Attention,
    /// What of them.
    pub statistic: Statistic,
    /// Output.
    pub out: Layout,
    /// Output: numbers of keys, where the statistic has them.
    #[serde(default)]
    pub keys: Option<Layout>,
    /// Whether [`Statistic::Mass`] is added to what is in the output, instead of written to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accumulate: bool,
}

impl Weights {
    /// A statistic of an attention's scores or weights, into contiguous outputs.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(attention: Attention, statistic: Statistic) -> Self {
        let shape = shape_of(&attention, &statistic);
        let keys = statistic
            .has_keys()
            .then(|| Layout::new(DType::U32, shape.clone()));
        Self {
            attention,
            statistic,
            out: Layout::f32(shape),
            keys,
            accumulate: false,
        }
    }

    /// Adds the mass of keys to what is in the output: the weight that they get in several layers, or in several
    /// steps of decoding, which then picks the keys that go on.
    ///
    /// Source: Wang et al., SpAtten (2021, arXiv:2012.09852), cascade token pruning.
    #[must_use]
    pub fn accumulate(mut self) -> Self {
        self.accumulate = true;
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, out: Layout) -> Self {
        self.out = out;
        self
    }

    /// Writes the numbers of keys to this layout.
    #[must_use]
    pub fn keys_output(mut self, keys: Layout) -> Self {
        self.keys = Some(keys);
        self
    }

    /// The tensors of this op, of those of its attention and the outputs: what the statistic does not
    /// read is left out.
    pub fn args<'a>(
        &self,
        attention: AttentionArgs<'a>,
        out: View<'a>,
        keys: Option<View<'a>>,
    ) -> Args<'a> {
        let Args(mut list) = attention.into();
        list.retain(|(slot, _)| !self.unused(*slot));
        list.push((Slot::Out, out));
        list.extend(keys.map(|keys| (Slot::Keys, keys)));
        Args(list)
    }

    /// Whether the statistic has no use for this tensor of the attention.
    fn unused(&self, slot: Slot) -> bool {
        match slot {
            Slot::Q | Slot::K => false,
            Slot::V | Slot::O | Slot::Gate => true,
            _ if self.statistic.sees_all() => true,
            Slot::Lse => !self.statistic.needs_lse(),
            // Weights know of them by the log-sum-exp.
            Slot::Sinks => self.statistic != Statistic::LargestScore,
            _ => false,
        }
    }

    /// Pairs of query and key that it looks at, as far as causal masking and the window tell.
    #[cfg(feature = "cli")]
    pub(crate) fn visible_pairs(&self) -> f64 {
        let [batch, heads, ..] = dims(&self.attention.q);
        match self.statistic {
            Statistic::Matrix { .. } => self.out.elements() as f64,
            _ => self.attention.visible_pairs() * (batch * heads) as f64,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        self.attention.check()?;
        if self.attention.key_index.is_some() {
            return Err(Error::unsupported(
                "weights of an attention to listed keys",
                "they are made key by key of the whole tensor",
                "gather the listed keys, or give a block_mask with blocks of one key",
            ));
        }
        let [_, q_heads, q_len, _] = dims(&self.attention.q);
        let wrong = |found: String, remedy: &str| Err(Error::invalid("statistic", found, remedy));
        match &self.statistic {
            Statistic::Matrix { heads, rows, .. } => {
                for (range, all, what) in [(heads, q_heads, "heads"), (rows, q_len, "rows")] {
                    if range.start >= range.end || range.end > all {
                        return wrong(
                            format!("{what} {range:?} of {all}"),
                            "give a range that is not empty and lies within the queries",
                        );
                    }
                }
            }
            Statistic::Top { count } if !(1..=MAX_TOP).contains(count) => {
                return wrong(format!("the top {count} keys"), "give a count from 1 to 64");
            }
            _ => {}
        }
        if self.accumulate && self.statistic != Statistic::Mass {
            return Err(Error::invalid(
                "accumulate",
                "is asked for, and the statistic is not the mass of keys",
                "leave it out, or ask for Statistic::Mass",
            ));
        }
        if self.statistic.needs_lse() && self.attention.lse.is_none() {
            return Err(Error::invalid(
                "lse",
                "is missing, and weights are made with it",
                "plan the attention with_lse() too, and bind what it wrote",
            ));
        }
        if self.keys.is_some() != self.statistic.has_keys() {
            let (found, remedy) = if self.keys.is_some() {
                (
                    "is given, and the statistic has no numbers of keys",
                    "leave it out",
                )
            } else {
                ("is missing", "make the op with Weights::new")
            };
            return Err(Error::invalid("keys", found, remedy));
        }
        let want = shape_of(&self.attention, &self.statistic);
        let half = matches!(self.statistic, Statistic::Matrix { .. });
        for (slot, layout) in self.outputs() {
            let name = slot.name();
            layout.check(name)?;
            if layout.shape != want {
                return Err(Error::invalid(
                    name,
                    format!("shape {:?} where {want:?} is expected", layout.shape),
                    "make it agree with q, k and the statistic",
                ));
            }
            let good = match (slot, layout.dtype) {
                (Slot::Keys, dtype) => dtype == DType::U32,
                (_, DType::F16) => half,
                (_, dtype) => dtype == DType::F32,
            };
            if !good {
                let want = match slot {
                    Slot::Keys => "u32",
                    _ if half => "f32 or f16",
                    _ => "f32",
                };
                return Err(Error::invalid(
                    name,
                    format!("elements are {}", layout.dtype),
                    format!("give {want}"),
                ));
            }
            layout.check_output(name)?;
        }
        Ok(())
    }

    pub(crate) fn outputs(&self) -> impl Iterator<Item = (Slot, &Layout)> {
        let keys = self.keys.as_ref().map(|keys| (Slot::Keys, keys));
        [(Slot::Out, &self.out)].into_iter().chain(keys)
    }

    pub(crate) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = self.attention.tensors();
        list.retain(|(slot, _)| !self.unused(*slot));
        list.extend(self.outputs());
        list
    }
}

/// The shape of the outputs.
fn shape_of(attention: &Attention, statistic: &Statistic) -> Vec<u64> {
    let [batch, q_heads, q_len, _] = dims(&attention.q);
    let [_, _, kv_len, _] = dims(&attention.k);
    let len = |range: &Range<u64>| range.end.saturating_sub(range.start);
    match statistic {
        Statistic::Matrix { heads, rows, .. } => vec![batch, len(heads), len(rows), kv_len],
        Statistic::Entropy | Statistic::LargestWeight | Statistic::LargestScore => {
            vec![batch, q_heads, q_len]
        }
        Statistic::Mass => vec![batch, q_heads, kv_len],
        Statistic::Top { count } => vec![batch, q_heads, q_len, *count],
    }
}
