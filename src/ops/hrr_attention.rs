//! Attention of holographic reduced representations.

use serde::{Deserialize, Serialize};

use super::{Args, Slot, check, linear_attention::MAX_DIM};
use crate::{
    error::Result,
    tensor::{DType, Layout, View},
};

/// Attention of holographic reduced representations: keys bound to values are added up, each query asks the sum for
/// its value, and each value is weighted by how much it looks like the answer.
///
/// With `⊛` for circular convolution over the head dim, `(a ⊛ b)_d = Σ_e a_e b_{(d - e) mod dim}`:
///
/// - `β = Σ_t k_t ⊛ v_t` over all tokens of a batch entry and head, masked ones too;
/// - `v̂_t = β ⊛ inv(q_t)`, where `inv(x)_d = x_{-d mod dim}` is the involution, which is near an inverse;
/// - `s_t = cos(v_t, v̂_t)`; the cosine with a vector of zeros counts as 0;
/// - `w = softmax(s)` over the sequence;
/// - `o_t = w_t v_t`: a row per token, and no sum.
///
/// A token that the mask hides has weight 0, so its output is 0; where it hides all, the whole output is. Time per
/// token does not depend on how many there are. Inputs must be finite, and so must sums of products of keys and
/// values; arithmetic is f32 whatever the storage.
///
/// Source: Alam et al., Recasting Self-Attention with Holographic Reduced Representations (2023,
/// arXiv:2305.19534), there by Fourier transforms.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HrrAttention {
    /// Queries, f32 or f16 `[batch, heads, seq, dim]`.
    pub q: Layout,
    /// Keys, of the queries' shape and element type.
    pub k: Layout,
    /// Values, the same.
    pub v: Layout,
    /// Output, the same.
    pub o: Layout,
    /// Which tokens have a weight, bool `[batch, seq]`; all of them when absent.
    #[serde(default)]
    pub mask: Option<Layout>,
}

impl HrrAttention {
    /// Of `q`, `k` and `v` into a contiguous output.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(q: Layout, k: Layout, v: Layout) -> Self {
        Self {
            o: Layout::new(v.dtype, v.shape.clone()),
            q,
            k,
            v,
            mask: None,
        }
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, o: Layout) -> Self {
        self.o = o;
        self
    }

    /// Gives a weight to these tokens only, bool `[batch, seq]`.
    #[must_use]
    pub fn mask(mut self, mask: Layout) -> Self {
        self.mask = Some(mask);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let [batch, _, seq, _] = check::queries(&self.q)?;
        for (slot, layout) in self.tensors() {
            if slot == Slot::Mask {
                check::tensor(slot, layout, &[DType::Bool], &[batch, seq])?;
            } else {
                check::tensor(slot, layout, &[self.q.dtype], &self.q.shape)?;
            }
        }
        check::most_channels(Slot::Q, &self.q, MAX_DIM)
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![
            (Slot::Q, &self.q),
            (Slot::K, &self.k),
            (Slot::V, &self.v),
            (Slot::O, &self.o),
        ];
        list.extend(self.mask.as_ref().map(|mask| (Slot::Mask, mask)));
        list
    }
}

/// The tensors of a [`HrrAttention`].
#[derive(Debug, Clone)]
pub struct HrrAttentionArgs<'a> {
    /// Queries.
    pub q: View<'a>,
    /// Keys.
    pub k: View<'a>,
    /// Values.
    pub v: View<'a>,
    /// Output.
    pub o: View<'a>,
    /// Which tokens have a weight, where the op has it.
    pub mask: Option<View<'a>>,
}

impl<'a> From<HrrAttentionArgs<'a>> for Args<'a> {
    fn from(args: HrrAttentionArgs<'a>) -> Self {
        let mut list = vec![
            (Slot::Q, args.q),
            (Slot::K, args.k),
            (Slot::V, args.v),
            (Slot::O, args.o),
        ];
        list.extend(args.mask.map(|mask| (Slot::Mask, mask)));
        Self(list)
    }
}
