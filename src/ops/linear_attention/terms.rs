//! What a linear attention is made of: feature maps, similarities, decays, rules, reaches, normalisers, and attention
//! inside groups beside it.

use serde::{Deserialize, Serialize};

use super::super::Real;
use crate::tensor::Layout;

/// What is applied to each query or key before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureMap {
    /// Nothing.
    #[default]
    Identity,
    /// `elu(x) + 1`: `x + 1` above 0, `exp(x)` below. Katharopoulos et al. (arXiv:2006.16236).
    EluPlusOne,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    SquaredRelu,
    /// `exp(factor * x)` per channel: linear log-normal attention (arXiv:2311.13541). See
    /// [`Normaliser::safe`] for large numbers.
    Exp {
        /// Factor on each channel.
        factor: Real,
    },
    /// Softmax over the channels of each row: efficient attention (arXiv:1812.01243).
    Softmax,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x / (1 + exp(-x))`: what MiniMax-01 puts before lightning attention.
    Silu,
}

/// What a pair of query and key counts, as a function of `s = scale * φ(q) · φ(k)`.
///
/// All of these are products of features, so that a state can carry them; that of Taylor and Square has as
/// many rows as the square of the key dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// `s`.
    #[default]
    Product,
    /// `1 + s + s² / 2`, the start of `exp(s)`: Based (arXiv:2402.18668).
    Taylor,
    /// `s²`: ReBased (arXiv:2402.10644).
    Square,
    /// `s cos(π (i - j) / (2 length))` for the query at `i` and the key at `j`: cosFormer (arXiv:2202.08791).
    /// States have twice as many rows: those of the sines of the keys' places (counted from 1 in each call and
    /// sequence), then those of the cosines.
    Cosine {
        /// The number of tokens over which the cosine falls to 0; at least as many as there are.
        length: u64,
    },
}

/// Factors `exp(g)` on the state before each token's own contribution. The tensors hold `g`, the natural
/// logarithms, which are 0 or less where a state must not grow; f32, or the queries' element type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// None: the state is a plain sum.
    #[default]
    None,
    /// A constant per head, f32 `[state_heads]`: lightning attention, RetNet. See
    /// [`LinearAttention::lightning_decays`](super::LinearAttention::lightning_decays) and [`LinearAttention::retention_decays`](super::LinearAttention::retention_decays).
    Head(Layout),
    /// One per token and head, `[batch, state_heads, seq]`: Mamba-2, simple GLA, the gated delta rule.
    Token(Layout),
    /// One per token, head and key channel, `[batch, state_heads, seq, key_dim]`: GLA, RWKV-6, Kimi delta
    /// attention.
    Key(Layout),
    /// One per token, head and value channel, `[batch, state_heads, seq, value_dim]`: the first half of gated
    /// slot attention.
    Value(Layout),
}

impl Decay {
    /// The tensor, where there is one.
    pub fn layout(&self) -> Option<&Layout> {
        match self {
            Self::None => None,
            Self::Head(layout) | Self::Token(layout) | Self::Key(layout) | Self::Value(layout) => {
                Some(layout)
            }
        }
    }
}

/// How a token changes the state `S`, of which `S'` is the decayed one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateRule {
    /// `S = S' + k vᵀ`.
    #[default]
    Linear,
    /// `u = β (v - S'ᵀ p)`, `S = S' + k uᵀ`, where `p` is `read`, or the key: DeltaNet (arXiv:2406.06484), and,
    /// with a decay, gated DeltaNet (arXiv:2412.06464) and Kimi delta attention (arXiv:2510.26692); with `read`,
    /// Comba (arXiv:2506.02475). Keys should have length 1; nothing here scales them.
    Delta {
        /// `β`, `[batch, state_heads, updates]`, or `[batch, state_heads, updates, value_dim]` for one per channel;
        /// 1 when absent.
        #[serde(default)]
        beta: Option<Layout>,
        /// `p`, of the keys' shape.
        #[serde(default)]
        read: Option<Layout>,
    },
    /// `S = S' + k vᵀ + b (aᵀ S_before)`, where `S_before` is the state before the decay: diagonal plus low rank,
    /// as in RWKV-7 (arXiv:2503.14456); without a decay, identity plus low rank.
    LowRank {
        /// `a`, of the keys' shape.
        read: Layout,
        /// `b`, of the keys' shape.
        write: Layout,
    },
}

/// Which tokens a query's state holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Those up to its own.
    #[default]
    Causal,
    /// Those before its own (see [`LinearAttention::bonus`](super::LinearAttention::bonus)).
    Before,
    /// Those of the buckets of `tokens` tokens before its own bucket: the state as the last of these left it.
    BeforeBucket {
        /// Tokens per bucket.
        tokens: u64,
    },
    /// All of them; queries need not be as many as keys.
    All,
}

/// Division of the output by `den = scale * φ(q) · z`, where `z` is the state of the keys: it decays as the state
/// does, and adds `φ(k)`. A division by 0 gives 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normaliser {
    /// A small number against divisions by 0.
    pub eps: Real,
    /// What it does.
    #[serde(default)]
    pub guard: Guard,
    /// For keys mapped by [`FeatureMap::Exp`]: whether to keep `exp(x - m)`, where `m` is the largest `factor * x`
    /// of a key so far, over all channels. No exponential overflows then. State and sum are those of
    /// `exp(x - m)`, and [`LinearAttention::initial_sum`](super::LinearAttention::initial_sum) and `final_sum` have one more element than the keys:
    /// `m`, the last; -3e38 where there is no key yet. Queries mapped by [`FeatureMap::Exp`] lose the largest of their
    /// own channels likewise. `eps` counts in these units.
    #[serde(default)]
    pub safe: bool,
}

/// How a small number guards a division.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// `den + eps`.
    #[default]
    Add,
    /// `max(den, eps)`.
    AtLeast,
    /// `scale * φ(q) · (z + eps)`.
    Keys,
}

/// Attention inside groups of tokens, beside the linear one: the output is `mix[0] * linear + mix[1] * local`. A query
/// sees the keys of its group that are there, and, unless all tokens are in [`Reach`], none after its own. FLASH
/// (arXiv:2202.10447), MossFormer (arXiv:2302.11824), linear log-normal attention (arXiv:2311.13541).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Local {
    /// Tokens per group, counted from the first of each sequence; the last group may have fewer.
    pub tokens: u64,
    /// What a pair counts, as a function of `s = scale * q · k + bias`.
    pub weights: LocalWeights,
    /// Factor on `q · k`; `1 / sqrt` of their dimension when absent.
    #[serde(default)]
    pub scale: Option<Real>,
    /// Queries of its own, `[batch, q_heads, seq, local_dim]`; those of the linear one, before any feature map, when
    /// absent.
    #[serde(default)]
    pub q: Option<Layout>,
    /// Keys of its own, `[batch, k_heads, seq, local_dim]`.
    #[serde(default)]
    pub k: Option<Layout>,
    /// Added to the scores, by the places of query and key in the group: f32 `[heads, tokens, tokens]`, with as many
    /// heads as the output, or 1.
    #[serde(default)]
    pub bias: Option<Layout>,
    /// Factors of the linear and of the local output.
    pub mix: [Real; 2],
}

impl Local {
    /// Attention inside groups of `tokens` tokens, added to the linear one.
    pub fn new(tokens: u64, weights: LocalWeights) -> Self {
        Self {
            tokens,
            weights,
            scale: None,
            q: None,
            k: None,
            bias: None,
            mix: [Real(1.0); 2],
        }
    }

    /// Sets the factor on `q · k`.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(Real(scale));
        self
    }

    /// Gives it queries and keys of its own.
    #[must_use]
    pub fn own(mut self, q: Layout, k: Layout) -> Self {
        self.q = Some(q);
        self.k = Some(k);
        self
    }

    /// Adds a bias to the scores.
    #[must_use]
    pub fn bias(mut self, bias: Layout) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Sets the factors of the linear and of the local output.
    #[must_use]
    pub fn mix(mut self, linear: f32, local: f32) -> Self {
        self.mix = [Real(linear), Real(local)];
        self
    }
}

/// What a pair of an attention inside groups counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalWeights {
    /// Softmax over the keys that the query sees.
    Softmax,
    /// `max(s, 0)²`, not normalised.
    SquaredRelu,
    /// `(1 + erf((s - sqrt(1/2)) sqrt(2 π))) / 2`, not normalised: Mega (arXiv:2209.10655).
    Laplace,
}
