//! Softmax attention.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::{Args, Slot, same_bits};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// Largest head dimension of queries, keys and values.
pub(crate) const MAX_HEAD_DIM: u64 = 256;

/// Which keys a query may see by its place in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Causal {
    /// All of them.
    #[default]
    None,
    /// Key `j` is visible to query `i` when `j <= i`: the first query sees the first key.
    TopLeft,
    /// Key `j` is visible to query `i` when `j <= i + kv_len - q_len`: the last query sees the
    /// last key. `kv_len` is the batch entry's own where [`Attention::kv_len`] is given.
    BottomRight,
}

/// `o = softmax(scale * q k^T + bias, over the visible keys) v`, per batch entry and query head,
/// without the `q_len x kv_len` matrix in memory.
///
/// Query head `h` reads KV head `h / (q_heads / kv_heads)` (grouped-query attention; one KV head
/// is multi-query attention). Sums, maxima and products are f32 whatever the storage. A query
/// that sees no key gives `o = 0` and `lse = -inf`.
///
/// Inputs must be finite, but for `bias`, where minus infinity hides a key; a bias below -1e38 counts as
/// -1e38, and scores (scaled, before the bias) must stay within 5e37. Keys and values past
/// `kv_len` are never read, and a score that a mask hides is never used; a value that is not
/// finite at a hidden place before `kv_len` may still reach the output as 0 * inf.
///
/// Source: Dao et al., FlashAttention (arXiv:2205.14135); the definition is that of PyTorch's
/// `scaled_dot_product_attention`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Queries, `[batch, q_heads, q_len, head_dim]`.
    pub q: Layout,
    /// Keys, `[batch, kv_heads, kv_len, head_dim]`.
    pub k: Layout,
    /// Values, `[batch, kv_heads, kv_len, value_dim]`.
    pub v: Layout,
    /// Output, `[batch, q_heads, q_len, value_dim]`.
    pub o: Layout,
    /// Log-sum-exp of the scores (natural logarithm), f32 `[batch, q_heads, q_len]`, when wanted.
    #[serde(default)]
    pub lse: Option<Layout>,
    /// Boolean mask, broadcast to `[batch, q_heads, q_len, kv_len]`; true is visible.
    #[serde(default)]
    pub mask: Option<Layout>,
    /// Additive bias on the scaled scores, f32 or f16, broadcast to
    /// `[batch, q_heads, q_len, kv_len]`.
    #[serde(default)]
    pub bias: Option<Layout>,
    /// Valid keys per batch entry, u32 `[batch]`; a length past the keys counts as all of them.
    #[serde(default)]
    pub kv_len: Option<Layout>,
    /// Factor on `q k^T`; `1 / sqrt(head_dim)` when absent.
    #[serde(default)]
    pub scale: Option<f32>,
    /// Causal masking.
    #[serde(default)]
    pub causal: Causal,
}

impl Attention {
    /// Attention of `q`, `k` and `v` into a contiguous output, with no mask.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(q: Layout, k: Layout, v: Layout) -> Self {
        let mut shape = q.shape.clone();
        if let (Some(last), Some(dim)) = (shape.last_mut(), v.shape.last()) {
            *last = *dim;
        }
        let o = Layout::new(q.dtype, shape);
        Self {
            q,
            k,
            v,
            o,
            lse: None,
            mask: None,
            bias: None,
            kv_len: None,
            scale: None,
            causal: Causal::None,
        }
    }

    /// Sets the causal mask.
    #[must_use]
    pub fn causal(mut self, causal: Causal) -> Self {
        self.causal = causal;
        self
    }

    /// Sets the factor on `q k^T`.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, o: Layout) -> Self {
        self.o = o;
        self
    }

    /// Asks for the log-sum-exp, in a contiguous tensor.
    #[must_use]
    pub fn with_lse(mut self) -> Self {
        let rows = self.q.shape.len().saturating_sub(1);
        self.lse = Some(Layout::f32(self.q.shape[..rows].to_vec()));
        self
    }

    /// Sets the boolean mask.
    #[must_use]
    pub fn mask(mut self, mask: Layout) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Sets the additive bias.
    #[must_use]
    pub fn bias(mut self, bias: Layout) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Sets the valid keys per batch entry.
    #[must_use]
    pub fn kv_len(mut self, kv_len: Layout) -> Self {
        self.kv_len = Some(kv_len);
        self
    }

    /// The factor on `q k^T` that holds.
    pub fn effective_scale(&self) -> f32 {
        self.scale
            .unwrap_or_else(|| 1.0 / (*self.q.shape.last().unwrap_or(&1) as f32).sqrt())
    }

    /// Pairs of query and key that causal masking leaves, per batch entry and query head. Masks and
    /// `kv_len`, which only the device knows, are not counted.
    pub fn visible_pairs(&self) -> f64 {
        let [_, _, m, _] = dims(&self.q);
        let [_, _, n, _] = dims(&self.k);
        // Query i sees i + 1 + ahead keys, at least 0 and at most n.
        let ahead = match self.causal {
            Causal::None => return m as f64 * n as f64,
            Causal::TopLeft => 0.0,
            Causal::BottomRight => n as f64 - m as f64,
        };
        let (m, n) = (m as f64, n as f64);
        let first = (1.0 + ahead).clamp(0.0, n);
        let blind = (-ahead).clamp(0.0, m);
        // Rows that see more with each row, then rows that see all.
        let rising = (n - ahead - blind).clamp(0.0, m - blind);
        let start = if blind > 0.0 { 1.0 } else { first };
        let sloped = rising * (start + (start + rising - 1.0).min(n)) / 2.0;
        sloped + (m - blind - rising) * n
    }

    pub(super) fn check(&self) -> Result<()> {
        for (slot, layout) in self.tensors() {
            let name = slot.name();
            layout.check(name)?;
            let rank = match slot {
                Slot::Lse => 3,
                Slot::KvLen => 1,
                // Masks broadcast from any rank up to 4.
                Slot::Mask | Slot::Bias => layout.rank().min(4),
                _ => 4,
            };
            if layout.rank() != rank {
                return Err(Error::invalid(
                    name,
                    format!("{} axes in shape {:?}", layout.rank(), layout.shape),
                    format!("give it {rank} axes, as the docs of Attention list them"),
                ));
            }
            let (good, want) = match slot {
                Slot::Mask => (layout.dtype == DType::Bool, "bool (one byte each)"),
                Slot::KvLen => (layout.dtype == DType::U32, "u32"),
                Slot::Lse => (layout.dtype == DType::F32, "f32"),
                Slot::K | Slot::V | Slot::O => (layout.dtype == self.q.dtype, "q's element type"),
                _ => (
                    matches!(layout.dtype, DType::F32 | DType::F16),
                    "f32 or f16",
                ),
            };
            if !good {
                return Err(Error::invalid(
                    name,
                    format!("elements are {}", layout.dtype),
                    format!("give {want}"),
                ));
            }
        }
        let [batch, q_heads, q_len, head_dim] = dims(&self.q);
        let [_, kv_heads, kv_len, _] = dims(&self.k);
        let value_dim = dims(&self.v)[3];
        for (name, dim) in [("q", head_dim), ("v", value_dim)] {
            if dim > MAX_HEAD_DIM {
                return Err(Error::unsupported(
                    format!("{name} with head_dim {dim}"),
                    format!("kernels hold a row of at most {MAX_HEAD_DIM}"),
                    "split the head",
                ));
            }
        }
        if q_heads % kv_heads != 0 {
            return Err(Error::invalid(
                "k",
                format!("{kv_heads} KV heads do not divide {q_heads} query heads"),
                "each KV head serves a whole group of query heads",
            ));
        }
        let shape = |name: &str, layout: &Layout, want: &[u64]| {
            if layout.shape == want {
                Ok(())
            } else {
                Err(Error::invalid(
                    name,
                    format!("shape {:?} where {want:?} is expected", layout.shape),
                    "make it agree with q, k and v",
                ))
            }
        };
        shape("k", &self.k, &[batch, kv_heads, kv_len, head_dim])?;
        shape("v", &self.v, &[batch, kv_heads, kv_len, value_dim])?;
        shape("o", &self.o, &[batch, q_heads, q_len, value_dim])?;
        if let Some(lse) = &self.lse {
            shape("lse", lse, &[batch, q_heads, q_len])?;
            lse.check_output("lse")?;
        }
        if let Some(lens) = &self.kv_len {
            shape("kv_len", lens, &[batch])?;
        }
        let scores = [batch, q_heads, q_len, kv_len];
        for (name, layout) in [("mask", &self.mask), ("bias", &self.bias)] {
            if let Some(layout) = layout {
                layout.broadcast(name, &scores)?;
            }
        }
        // Kernels work in base 2, so the scale times log2(e) must be finite too.
        if !(self.effective_scale() * std::f32::consts::LOG2_E).is_finite() {
            return Err(Error::invalid(
                "scale",
                format!("{} is not finite, or too large", self.effective_scale()),
                "give a number below 2e38",
            ));
        }
        self.o.check_output("o")
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![
            (Slot::Q, &self.q),
            (Slot::K, &self.k),
            (Slot::V, &self.v),
            (Slot::O, &self.o),
        ];
        for (slot, layout) in [
            (Slot::Lse, &self.lse),
            (Slot::Mask, &self.mask),
            (Slot::Bias, &self.bias),
            (Slot::KvLen, &self.kv_len),
        ] {
            list.extend(layout.as_ref().map(|layout| (slot, layout)));
        }
        list
    }
}

/// The four axes of a layout that has been checked to have four.
pub(crate) fn dims(layout: &Layout) -> [u64; 4] {
    std::array::from_fn(|axis| layout.shape.get(axis).copied().unwrap_or(1))
}

impl PartialEq for Attention {
    fn eq(&self, other: &Self) -> bool {
        self.tensors() == other.tensors()
            && self.causal == other.causal
            && same_bits(self.scale, other.scale)
    }
}

impl Eq for Attention {}

impl Hash for Attention {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.tensors().hash(state);
        self.causal.hash(state);
        self.scale.map(f32::to_bits).hash(state);
    }
}

/// The tensors of an [`Attention`].
#[derive(Debug, Clone)]
pub struct AttentionArgs<'a> {
    /// Queries.
    pub q: View<'a>,
    /// Keys.
    pub k: View<'a>,
    /// Values.
    pub v: View<'a>,
    /// Output.
    pub o: View<'a>,
    /// Log-sum-exp, where the op asks for it.
    pub lse: Option<View<'a>>,
    /// Boolean mask, where the op has one.
    pub mask: Option<View<'a>>,
    /// Additive bias, where the op has one.
    pub bias: Option<View<'a>>,
    /// Valid keys per batch entry, where the op has them.
    pub kv_len: Option<View<'a>>,
}

impl<'a> AttentionArgs<'a> {
    /// The four tensors that every call has.
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, o: View<'a>) -> Self {
        Self {
            q,
            k,
            v,
            o,
            lse: None,
            mask: None,
            bias: None,
            kv_len: None,
        }
    }
}

impl<'a> From<AttentionArgs<'a>> for Args<'a> {
    fn from(args: AttentionArgs<'a>) -> Self {
        let mut list = vec![
            (Slot::Q, args.q),
            (Slot::K, args.k),
            (Slot::V, args.v),
            (Slot::O, args.o),
        ];
        for (slot, view) in [
            (Slot::Lse, args.lse),
            (Slot::Mask, args.mask),
            (Slot::Bias, args.bias),
            (Slot::KvLen, args.kv_len),
        ] {
            list.extend(view.map(|view| (slot, view)));
        }
        Self(list)
    }
}
