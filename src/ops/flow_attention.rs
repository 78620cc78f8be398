//! Flow attention.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, check, linear_attention::MAX_DIM};
use crate::{
    error::{Error, Result},
    tensor::{Layout, View},
};

/// Flow attention: linear attention whose keys compete for a fixed flow, and whose queries share it out.
///
/// With `φ` the logistic function, `q = φ(queries)`, `k = φ(keys)`, `e` a small number that is added to each channel,
/// and `L` queries and `S` keys:
///
/// - incoming and outgoing flow: `I_i = 1 / ((q_i + e) · (Σ_j k_j + e))`, `O_j = 1 / ((k_j + e) · (Σ_i q_i + e))`;
/// - conserved: `sink_i = (q_i + e) · (Σ_j O_j k_j + e)`, `source_j = clamp((k_j + e) · (Σ_i I_i q_i + e), -1, 1)`;
/// - `o_i = φ(sink_i L / S) (I_i q_i) · Σ_j k_j (v_j S softmax(source)_j)ᵀ`.
///
/// Causal, every sum ends with the own token; with `n = i + 1` tokens so far, `I`, `O` and the softmax (which is that
/// of the tokens so far) are times `n`, `sink` and `source` are over `n`, and `q_i` enters the last product with
/// `I_i / n`; there is no `L / S`. Then there are as many queries as keys.
///
/// Time per token does not depend on how many there are. Inputs must be finite; arithmetic is f32 whatever the
/// storage.
///
/// Source: Wu et al., Flowformer (2022, arXiv:2202.06258).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowAttention {
    /// Queries, f32 or f16 `[batch, heads, q_len, key_dim]`.
    pub q: Layout,
    /// Keys, `[batch, heads, kv_len, key_dim]`, of the queries' element type, as all tensors.
    pub k: Layout,
    /// Values, `[batch, heads, kv_len, value_dim]`.
    pub v: Layout,
    /// Output, `[batch, heads, q_len, value_dim]`.
    pub o: Layout,
    /// Whether each token sees those up to itself only.
    #[serde(default)]
    pub causal: bool,
    /// `e`.
    #[serde(default = "eps")]
    pub eps: Real,
}

fn eps() -> Real {
    Real(1e-6)
}

impl FlowAttention {
    /// Of `q`, `k` and `v` into a contiguous output, every token seeing all, with `e = 1e-6`.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(q: Layout, k: Layout, v: Layout) -> Self {
        let mut shape = q.shape.clone();
        if let (Some(dim), Some(&value_dim)) = (shape.last_mut(), v.shape.last()) {
            *dim = value_dim;
        }
        Self {
            o: Layout::new(q.dtype, shape),
            q,
            k,
            v,
            causal: false,
            eps: eps(),
        }
    }

    /// Lets each token see those up to itself only.
    #[must_use]
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// Sets `e`.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = Real(eps);
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, o: Layout) -> Self {
        self.o = o;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let [batch, heads, q_len, key_dim] = check::queries(&self.q)?;
        check::axes(Slot::K, &self.k, 4)?;
        check::axes(Slot::V, &self.v, 4)?;
        let kv_len = if self.causal { q_len } else { self.k.shape[2] };
        let value_dim = self.v.shape[3];
        for (slot, layout) in self.tensors() {
            let shape = match slot {
                Slot::Q => continue,
                Slot::K => [batch, heads, kv_len, key_dim],
                Slot::V => [batch, heads, kv_len, value_dim],
                _ => [batch, heads, q_len, value_dim],
            };
            check::tensor(slot, layout, &[self.q.dtype], &shape)?;
        }
        if !(self.eps.0 >= 0.0 && self.eps.0.is_finite()) {
            return Err(Error::invalid(
                "eps",
                format!("{}", self.eps.0),
                "give a finite number from 0",
            ));
        }
        check::most_channels(Slot::Q, &self.q, MAX_DIM)
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        vec![
            (Slot::Q, &self.q),
            (Slot::K, &self.k),
            (Slot::V, &self.v),
            (Slot::O, &self.o),
        ]
    }
}

/// The tensors of a [`FlowAttention`].
#[derive(Debug, Clone)]
pub struct FlowAttentionArgs<'a> {
    /// Queries.
    pub q: View<'a>,
    /// Keys.
    pub k: View<'a>,
    /// Values.
    pub v: View<'a>,
    /// Output.
    pub o: View<'a>,
}

impl<'a> From<FlowAttentionArgs<'a>> for Args<'a> {
    fn from(args: FlowAttentionArgs<'a>) -> Self {
        Self(vec![
            (Slot::Q, args.q),
            (Slot::K, args.k),
            (Slot::V, args.v),
            (Slot::O, args.o),
        ])
    }
}
