//! Scores that routing chooses by.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, check};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// What a score is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreRule {
    /// `q · k`.
    #[default]
    Product,
    /// The most that `q · key` can be for any key between `k_min` and `k`, channel by channel:
    /// `Σ_d max(q_d k_d, q_d k_min_d)`.
    Bounds,
}

/// Scores of every row of `q` against every row of `k`: `out[h, i, j] = scale (q_hi · k_j)`, or sums of them over
/// heads. With rows of keys that [`crate::Pool`] made, these are the scores by which a query chooses blocks; with keys
/// themselves, in fewer channels or with heads of their own, those by which it chooses keys.
///
/// For each pair, in this order: the rule; times `scale`; not below 0 ([`RouteScores::relu`]); times
/// `head_weights[h, i]`; summed over the query heads of each KV head ([`RouteScores::sum_heads`]). The last three
/// are DeepSeek's lightning indexer, `Σ_h w_hi relu(q_hi · k_j)`.
///
/// Query head `h` goes with KV head `h / (q_heads / kv_heads)`. Arithmetic is f32 whatever the storage. Nothing is
/// hidden here: [`crate::Route`] does that.
///
/// Sources: MoBA (arXiv:2502.13189); bounds, Quest (arXiv:2406.10774); keys in fewer channels, Loki (Singhania et al.,
/// 2024, arXiv:2406.02542) and Sparsifiner (Wei et al., 2023, arXiv:2303.13755); the indexer, DeepSeek-V3.2 (2025).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteScores {
    /// f32 or f16 `[batch, q_heads, rows, channels]`.
    pub q: Layout,
    /// `[batch, kv_heads, columns, channels]`, of the element type of `q`; the upper bounds in
    /// [`ScoreRule::Bounds`].
    pub k: Layout,
    /// Lower bounds, of the shape and element type of `k`; present in [`ScoreRule::Bounds`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k_min: Option<Layout>,
    /// Factors on scores, f32 `[batch, q_heads, rows]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_weights: Option<Layout>,
    /// What a score is made of.
    #[serde(default)]
    pub rule: ScoreRule,
    /// Factor on products.
    #[serde(default = "one")]
    pub scale: Real,
    /// Whether products below 0 count as 0.
    #[serde(default)]
    pub relu: bool,
    /// Whether the query heads of each KV head are summed.
    #[serde(default)]
    pub sum_heads: bool,
    /// Scores, f32 `[batch, q_heads, rows, columns]`; `kv_heads` of them with `sum_heads`.
    pub out: Layout,
}

fn one() -> Real {
    Real(1.0)
}

impl RouteScores {
    /// Products of `q` and `k`, unscaled, into a contiguous output.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(q: Layout, k: Layout) -> Self {
        let mut op = Self {
            out: q.clone(),
            q,
            k,
            k_min: None,
            head_weights: None,
            rule: ScoreRule::Product,
            scale: one(),
            relu: false,
            sum_heads: false,
        };
        op.fresh_output();
        op
    }

    fn fresh_output(&mut self) {
        let mut shape = self.q.shape.clone();
        if let (Some(last), Some(&columns)) = (shape.get_mut(3), self.k.shape.get(2)) {
            *last = columns;
        }
        if let (true, Some(heads), Some(&kv_heads)) =
            (self.sum_heads, shape.get_mut(1), self.k.shape.get(1))
        {
            *heads = kv_heads;
        }
        self.out = Layout::f32(shape);
    }

    /// Takes `k` for upper and `k_min` for lower bounds.
    #[must_use]
    pub fn bounds(mut self, k_min: Layout) -> Self {
        self.rule = ScoreRule::Bounds;
        self.k_min = Some(k_min);
        self
    }

    /// Sets the factor on products.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Real(scale);
        self
    }

    /// Lets products below 0 count as 0.
    #[must_use]
    pub fn relu(mut self) -> Self {
        self.relu = true;
        self
    }

    /// Puts a factor on the scores of each head and row.
    #[must_use]
    pub fn head_weights(mut self, head_weights: Layout) -> Self {
        self.head_weights = Some(head_weights);
        self
    }

    /// Sums the query heads of each KV head; makes a contiguous output.
    #[must_use]
    pub fn sum_heads(mut self) -> Self {
        self.sum_heads = true;
        self.fresh_output();
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, out: Layout) -> Self {
        self.out = out;
        self
    }

    /// Query heads of each KV head.
    pub(crate) fn group(&self) -> u64 {
        super::dims(&self.q)[1] / super::dims(&self.k)[1].max(1)
    }

    pub(super) fn check(&self) -> Result<()> {
        let [batch, q_heads, rows, channels] = check::queries(&self.q)?;
        check::axes(Slot::K, &self.k, 4)?;
        let [_, kv_heads, columns, _] = super::dims(&self.k);
        let keys = [batch, kv_heads, columns, channels];
        check::tensor(Slot::K, &self.k, &[self.q.dtype], &keys)?;
        if !q_heads.is_multiple_of(kv_heads) {
            return Err(Error::invalid(
                "k",
                format!("{kv_heads} heads for {q_heads} query heads"),
                "give a number of heads that divides the query heads",
            ));
        }
        match (&self.k_min, self.rule) {
            (Some(k_min), ScoreRule::Bounds) => {
                check::tensor(Slot::KMin, k_min, &[self.q.dtype], &keys)?;
            }
            (None, ScoreRule::Product) => {}
            (None, ScoreRule::Bounds) => {
                return Err(Error::invalid(
                    "k_min",
                    "is absent, and the rule is bounds",
                    "give lower bounds beside the upper ones in k",
                ));
            }
            (Some(_), ScoreRule::Product) => {
                return Err(Error::invalid(
                    "k_min",
                    "is given, and the rule is product",
                    "leave it out, or set the rule to bounds",
                ));
            }
        }
        if let Some(weights) = &self.head_weights {
            let shape = [batch, q_heads, rows];
            check::tensor(Slot::HeadWeights, weights, &[DType::F32], &shape)?;
        }
        if !self.scale.0.is_finite() {
            return Err(Error::invalid(
                "scale",
                format!("{}", self.scale.0),
                "give a finite number",
            ));
        }
        let heads = if self.sum_heads { kv_heads } else { q_heads };
        let shape = [batch, heads, rows, columns];
        check::tensor(Slot::Out, &self.out, &[DType::F32], &shape)
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![(Slot::Q, &self.q), (Slot::K, &self.k)];
        list.extend(self.k_min.as_ref().map(|l| (Slot::KMin, l)));
        list.extend(self.head_weights.as_ref().map(|l| (Slot::HeadWeights, l)));
        list.push((Slot::Out, &self.out));
        list
    }
}

/// The tensors of a [`RouteScores`].
#[derive(Debug, Clone)]
pub struct RouteScoresArgs<'a> {
    /// Rows that choose.
    pub q: View<'a>,
    /// What they choose among.
    pub k: View<'a>,
    /// Lower bounds, where the op has them.
    pub k_min: Option<View<'a>>,
    /// Factors, where the op has them.
    pub head_weights: Option<View<'a>>,
    /// Scores.
    pub out: View<'a>,
}

impl<'a> From<RouteScoresArgs<'a>> for Args<'a> {
    fn from(args: RouteScoresArgs<'a>) -> Self {
        let mut list = vec![(Slot::Q, args.q), (Slot::K, args.k)];
        list.extend(args.k_min.map(|view| (Slot::KMin, view)));
        list.extend(args.head_weights.map(|view| (Slot::HeadWeights, view)));
        list.push((Slot::Out, args.out));
        Self(list)
    }
}
