//! Softmax attention.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::{Args, Mod, Slot, same_bits};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// Largest head dimension of queries, keys and values.
pub(crate) const MAX_HEAD_DIM: u64 = 256;

/// Which keys a query may see by its place in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Causal {
    /// All of them.
    #[default]
    None,
    /// Key `j` is visible to query `i` when `j <= i`: the first query sees the first key.
    TopLeft,
    /// Key `j` is visible to query `i` when `j <= i + kv_len - q_len`: the last query sees the
    /// last key. Both lengths are the batch entry's own where [`Attention::kv_len`] and
    /// [`Attention::q_len`] are given, and the sequence's own where sequences are packed.
    BottomRight,
}

/// Where the diagonal of a window lies when there are more keys than queries, or fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Corner {
    /// Query `i` stands at key `i`.
    #[default]
    TopLeft,
    /// Query `i` stands at key `i + kv_len - q_len`, with the batch entry's own lengths where they are
    /// given: the last query stands at the last key.
    BottomRight,
}

/// A sliding window: the keys around the place of each query that it sees, itself always among them.
///
/// Mistral's window of `w` keys is `left = w - 1`, `right = 0`; ONNX and PyTorch's `left_window_size` is
/// `left`. Source: Beltagy et al., Longformer (arXiv:2004.05150); first keys: Xiao et al., StreamingLLM
/// (arXiv:2309.17453).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Window {
    /// Keys before a query's own place; all of them when absent.
    pub left: Option<u64>,
    /// Keys after a query's own place; all of them when absent. Causal masking takes them away.
    pub right: Option<u64>,
    /// Keys at the start of the sequence that stay visible wherever the window is (attention sinks of
    /// streaming), as far as `right` and causal masking allow.
    pub first: u64,
    /// Where the diagonal lies; that of [`Attention::causal`] when that is set.
    pub corner: Corner,
}

/// Which blocks of queries see which blocks of keys, as bits: blocks that are not seen are neither read nor
/// computed.
///
/// The tensor is u32 `[batch, q_heads, q_blocks, words]`, where each of the first two axes may be 1, and the second
/// may be `kv_heads`, where the query heads of a group share their blocks:
/// bit `b % 32` of word `b / 32` tells whether the block of keys `b` is seen, `q_blocks` is
/// `ceil(q_len / block_q)` and `words` is `ceil(ceil(kv_len / block_kv) / 32)`. Blocks count from the start of the
/// tensors, also where these hold packed sequences. See [`Attention::block_starts`] for blocks of various lengths.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockMask {
    /// The bits.
    pub bits: Layout,
    /// Queries per block.
    pub block_q: u64,
    /// Keys per block.
    pub block_kv: u64,
}

/// Lists of the keys that queries attend to, one for each `block_q` queries: whatever others hold, they count for nothing.
///
/// The tensor is u32 `[batch, heads, lists, entries]`, where the first axis may be 1, `heads` is 1, `kv_heads` or
/// `q_heads`, and `lists` is `ceil(q_len / block_q)`. Entries are numbers of keys, in any order. One that is no key
/// of the batch entry, as `u32::MAX` is none ever, is passed over; one that is listed twice counts twice, so that
/// its weight doubles. What else hides keys, causal masking and masks among it, goes by their numbers. A list of
/// nothing gives `o = 0` and `lse = -inf`.
///
/// Source: the fine-grained selections of Singhania et al., Loki (arXiv:2406.02542), and DeepSeek-V3.2's sparse
/// attention (2025).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyIndex {
    /// Numbers of keys.
    pub index: Layout,
    /// Queries that share a list.
    pub block_q: u64,
}

/// `o = softmax(scale * q k^T + bias, over the visible keys) v`, per batch entry and query head,
/// without the `q_len x kv_len` matrix in memory.
///
/// # Scores
///
/// In this order: `scale * q k^T`; [`Attention::softcap`]; [`Attention::bias`]; the `score_mod` of each of
/// [`Attention::mods`]; the softmax over the visible keys, with [`Attention::sinks`] in its denominator.
///
/// # Visibility
///
/// A key is visible when everything that is given allows it: `kv_len`, `q_len`, causal masking, window and
/// `head_windows` (`prefix_len` adds keys to those three), sequences, `mask`, `block_mask`, the `mask_mod` of
/// each of `mods`, and, where there is a `key_index`, when it is listed. Ranges of keys that none of a tile's queries sees are not read: those that follow from
/// lengths, causal masking, windows, sequences, block masks and the `key_range` of mods. (Where a tile holds queries
/// of several packed sequences, keys between those of the first and the last may be read.)
///
/// Query head `h` reads KV head `h / (q_heads / kv_heads)` (grouped-query attention; one KV head
/// is multi-query attention). Sums, maxima and products are f32 whatever the storage. A query
/// that sees no key gives `o = 0` and `lse = -inf` (its sink's logit, where it has one).
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
    /// Valid queries per batch entry, u32 `[batch]`: those past it see nothing. A length past the
    /// queries counts as all of them.
    #[serde(default)]
    pub q_len: Option<Layout>,
    /// Keys per batch entry, u32 `[batch]`, at the start of the sequence, that every query sees in spite of
    /// causal masking and windows (prefix-LM).
    #[serde(default)]
    pub prefix_len: Option<Layout>,
    /// Packed sequences of different lengths: where the queries of each begin and, last, where those of the
    /// last one end, u32 `[sequences + 1]`, rising from 0. Needs [`Attention::cu_kv`] and a batch of 1.
    /// Queries see keys of their own sequence alone; places, causal masking and windows count within it.
    /// Queries past the last end see nothing. Lengths that fall or overrun give some defined result.
    #[serde(default)]
    pub cu_q: Option<Layout>,
    /// The same for keys and values.
    #[serde(default)]
    pub cu_kv: Option<Layout>,
    /// Sliding window.
    #[serde(default)]
    pub window: Option<Window>,
    /// A window of its own for each query head, u32 `[q_heads, 2]`: how many keys before and including its
    /// own place a query sees, and how many at the start. `u32::MAX` recent keys are all of them (DuoAttention:
    /// full and streaming heads in one call; arXiv:2410.10819). Keys after a query's place are for causal masking
    /// and `right` of the window to hide.
    #[serde(default)]
    pub head_windows: Option<Layout>,
    /// A learned logit per query head, f32 `[q_heads]`, that takes part in the softmax's denominator alone
    /// (attention sinks as in gpt-oss). It is not scaled; `lse` includes it.
    #[serde(default)]
    pub sinks: Option<Layout>,
    /// A factor on each row of the output, f32 broadcast to `[batch, q_heads, q_len]` (mixture of heads: a gate
    /// per token and head; arXiv:2410.11842). `lse` stays as it is.
    #[serde(default)]
    pub gate: Option<Layout>,
    /// Scaled scores become `softcap * tanh(score / softcap)`, before the bias (Gemma 2).
    #[serde(default)]
    pub softcap: Option<f32>,
    /// Blocks of keys that are skipped.
    #[serde(default)]
    pub block_mask: Option<BlockMask>,
    /// Where the blocks of keys of `block_mask` begin, and the last one ends, u32 `[kv_blocks + 1]`, for chunks of
    /// various lengths: block `j` holds the keys `starts[j] .. starts[j + 1]`, and `block_kv` counts for nothing. Keys
    /// of no block are not seen. Starts must not decrease: which keys are seen where they do, nothing says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_starts: Option<Layout>,
    /// The keys that each block of queries attends to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_index: Option<KeyIndex>,
    /// Functions in WGSL on scores and visibility, applied in this order.
    #[serde(default)]
    pub mods: Vec<Mod>,
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
            q_len: None,
            prefix_len: None,
            cu_q: None,
            cu_kv: None,
            window: None,
            head_windows: None,
            sinks: None,
            gate: None,
            softcap: None,
            block_mask: None,
            block_starts: None,
            key_index: None,
            mods: Vec::new(),
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

    /// Sets the valid queries per batch entry.
    #[must_use]
    pub fn q_len(mut self, q_len: Layout) -> Self {
        self.q_len = Some(q_len);
        self
    }

    /// Sets the keys at the start that every query sees.
    #[must_use]
    pub fn prefix_len(mut self, prefix_len: Layout) -> Self {
        self.prefix_len = Some(prefix_len);
        self
    }

    /// Sets where packed sequences begin and end.
    #[must_use]
    pub fn packed(mut self, cu_q: Layout, cu_kv: Layout) -> Self {
        self.cu_q = Some(cu_q);
        self.cu_kv = Some(cu_kv);
        self
    }

    /// Sets the sliding window.
    #[must_use]
    pub fn window(mut self, window: Window) -> Self {
        self.window = Some(window);
        self
    }

    /// Sets a window per query head.
    #[must_use]
    pub fn head_windows(mut self, windows: Layout) -> Self {
        self.head_windows = Some(windows);
        self
    }

    /// Sets the logits in the denominator.
    #[must_use]
    pub fn sinks(mut self, sinks: Layout) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Sets the factors on the output's rows.
    #[must_use]
    pub fn gate(mut self, gate: Layout) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Sets the soft cap on scaled scores.
    #[must_use]
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// Lets the blocks of keys of the block mask begin where this tensor says. See [`Attention::block_starts`].
    #[must_use]
    pub fn block_starts(mut self, starts: Layout) -> Self {
        self.block_starts = Some(starts);
        self
    }

    /// Attends to listed keys alone, one list for each `block_q` queries. See [`KeyIndex`].
    #[must_use]
    pub fn key_index(mut self, index: Layout, block_q: u64) -> Self {
        self.key_index = Some(KeyIndex { index, block_q });
        self
    }

    /// Sets the block mask.
    #[must_use]
    pub fn block_mask(mut self, mask: BlockMask) -> Self {
        self.block_mask = Some(mask);
        self
    }

    /// Adds a modification in WGSL.
    #[must_use]
    pub fn modified(mut self, change: Mod) -> Self {
        self.mods.push(change);
        self
    }

    /// The factor on `q k^T` that holds.
    pub fn effective_scale(&self) -> f32 {
        self.scale
            .unwrap_or_else(|| 1.0 / (*self.q.shape.last().unwrap_or(&1) as f32).sqrt())
    }

    /// How far a query sees from its own place: keys before it, keys after it, and keys at the start;
    /// `None` is all of them. What only the device knows is left out.
    pub(crate) fn reach(&self) -> Reach {
        let window = self.window.unwrap_or_default();
        let (corner, right) = match self.causal {
            Causal::None => (window.corner, window.right),
            Causal::TopLeft => (Corner::TopLeft, Some(0)),
            Causal::BottomRight => (Corner::BottomRight, Some(0)),
        };
        Reach {
            corner,
            left: window.left,
            right,
            early: window.first,
        }
    }

    /// Pairs of query and key that causal masking and the window leave, per batch entry and query head.
    /// What only the device knows (masks, lengths, where packed sequences begin, mods) is not counted.
    pub fn visible_pairs(&self) -> f64 {
        let [_, _, m, _] = dims(&self.q);
        let [_, _, n, _] = dims(&self.k);
        if let Some(lists) = &self.key_index {
            return (m * dims(&lists.index)[3]) as f64;
        }
        let (m, n) = (m as f64, n as f64);
        let reach = self.reach();
        let ahead = match reach.corner {
            Corner::TopLeft => 0.0,
            Corner::BottomRight => n - m,
        };
        let limits = match reach.right {
            Some(right) => ramp(m, ahead + right as f64 + 1.0, n),
            None => m * n,
        };
        match reach.left {
            Some(left) => {
                let first = ahead - left as f64;
                // A window may end before the first keys do.
                let early = (reach.early as f64).min(n);
                limits - ramp(m, first, n) + ramp(m, first, early)
            }
            None => limits,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        for (slot, layout) in self.tensors() {
            let name = slot.name();
            layout.check(name)?;
            let rank = match slot {
                Slot::Lse => 3,
                Slot::KvLen
                | Slot::QLen
                | Slot::PrefixLen
                | Slot::CuQ
                | Slot::CuKv
                | Slot::BlockStarts
                | Slot::Sinks => 1,
                Slot::HeadWindows => 2,
                Slot::Gate => layout.rank().min(3),
                Slot::Buffer0 | Slot::Buffer1 | Slot::Buffer2 | Slot::Buffer3 => layout.rank(),
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
                Slot::KvLen
                | Slot::QLen
                | Slot::PrefixLen
                | Slot::CuQ
                | Slot::CuKv
                | Slot::HeadWindows
                | Slot::Index
                | Slot::BlockStarts
                | Slot::Blocks => (layout.dtype == DType::U32, "u32"),
                Slot::Sinks | Slot::Gate => (layout.dtype == DType::F32, "f32"),
                Slot::Buffer0 | Slot::Buffer1 | Slot::Buffer2 | Slot::Buffer3 => (
                    matches!(layout.dtype, DType::F32 | DType::U32),
                    "f32 or u32",
                ),
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
        for (slot, lens) in [
            (Slot::KvLen, &self.kv_len),
            (Slot::QLen, &self.q_len),
            (Slot::PrefixLen, &self.prefix_len),
        ] {
            if let Some(lens) = lens {
                shape(slot.name(), lens, &[batch])?;
            }
        }
        if let Some(sinks) = &self.sinks {
            shape("sinks", sinks, &[q_heads])?;
        }
        if let Some(windows) = &self.head_windows {
            shape("head_windows", windows, &[q_heads, 2])?;
        }
        self.check_packed()?;
        self.check_window()?;
        self.check_block_mask()?;
        self.check_key_index()?;
        Mod::check_all(&self.mods)?;
        if let Some(cap) = self.softcap
            && !(cap.is_normal() && cap > 0.0 && cap < 1e30)
        {
            return Err(Error::invalid(
                "softcap",
                cap.to_string(),
                "give a number above 0 and below 1e30, or none",
            ));
        }
        let scores = [batch, q_heads, q_len, kv_len];
        if let Some(gate) = &self.gate {
            gate.broadcast("gate", &scores[..3])?;
        }
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

    fn check_packed(&self) -> Result<()> {
        let (cu_q, cu_kv) = match (&self.cu_q, &self.cu_kv) {
            (None, None) => return Ok(()),
            (Some(cu_q), Some(cu_kv)) => (cu_q, cu_kv),
            _ => {
                return Err(Error::invalid(
                    "cu_q",
                    "only one of cu_q and cu_kv is given",
                    "give both: where the queries of each sequence begin, and where its keys do",
                ));
            }
        };
        if cu_q.shape != cu_kv.shape || cu_q.shape[0] < 2 {
            return Err(Error::invalid(
                "cu_q",
                format!(
                    "shapes {:?} and {:?} of cu_q and cu_kv",
                    cu_q.shape, cu_kv.shape
                ),
                "give both [sequences + 1] numbers",
            ));
        }
        if dims(&self.q)[0] != 1 || self.q_len.is_some() || self.kv_len.is_some() {
            return Err(Error::invalid(
                "cu_q",
                "packed sequences in a batch, or with q_len or kv_len",
                "pack all sequences into one batch entry; cu_q and cu_kv hold their lengths",
            ));
        }
        if self.prefix_len.is_some() {
            return Err(Error::unsupported(
                "packed sequences with prefix_len",
                "it counts from the start of the tensor",
                "give a mask_mod, or call once per sequence",
            ));
        }
        Ok(())
    }

    fn check_window(&self) -> Result<()> {
        let Some(window) = self.window else {
            return Ok(());
        };
        let corner = match self.causal {
            Causal::None => window.corner,
            Causal::TopLeft => Corner::TopLeft,
            Causal::BottomRight => Corner::BottomRight,
        };
        if window.corner != corner && window.corner != Corner::default() {
            return Err(Error::invalid(
                "window",
                format!(
                    "a window at {:?} with causal masking at {corner:?}",
                    window.corner
                ),
                "give both the same corner",
            ));
        }
        if self.head_windows.is_some() && (window.left.is_some() || window.first > 0) {
            return Err(Error::invalid(
                "window",
                "a window to the left, or first keys, beside head_windows",
                "head_windows says both for each head: leave `left` and `first` of the window out",
            ));
        }
        Ok(())
    }

    fn check_block_mask(&self) -> Result<()> {
        let Some(mask) = &self.block_mask else {
            if self.block_starts.is_some() {
                return Err(Error::invalid(
                    "block_starts",
                    "are given without a block_mask",
                    "give the mask whose blocks begin there",
                ));
            }
            return Ok(());
        };
        let [batch, q_heads, q_len, _] = dims(&self.q);
        let [_, _, kv_len, _] = dims(&self.k);
        if mask.block_q == 0 || (mask.block_kv == 0 && self.block_starts.is_none()) {
            return Err(Error::invalid(
                "block_mask",
                format!("blocks of {} x {}", mask.block_q, mask.block_kv),
                "give blocks of at least one query and one key",
            ));
        }
        let rows = q_len.div_ceil(mask.block_q);
        let blocks = match &self.block_starts {
            Some(starts) if starts.shape[0] < 2 => {
                return Err(Error::invalid(
                    "block_starts",
                    format!("shape {:?}", starts.shape),
                    "give [kv_blocks + 1] numbers: where each block begins, and where the last ends",
                ));
            }
            Some(starts) => starts.shape[0] - 1,
            None => kv_len.div_ceil(mask.block_kv),
        };
        let words = blocks.div_ceil(32);
        let [b, h, r, w] = dims(&mask.bits);
        let heads = [1, dims(&self.k)[1], q_heads];
        if !(b == 1 || b == batch) || !heads.contains(&h) || r != rows || w != words {
            return Err(Error::invalid(
                "block_mask",
                format!(
                    "bits of shape {:?} where {:?} is expected",
                    mask.bits.shape,
                    [batch, q_heads, rows, words]
                ),
                "give a row of bits per block of queries, 32 blocks of keys in each word",
            ));
        }
        Ok(())
    }

    fn check_key_index(&self) -> Result<()> {
        let Some(KeyIndex { index, block_q }) = &self.key_index else {
            return Ok(());
        };
        let [batch, q_heads, q_len, _] = dims(&self.q);
        let [b, h, lists, entries] = dims(index);
        if *block_q == 0 {
            return Err(Error::invalid(
                "key_index",
                "lists for 0 queries each",
                "give a block_q of at least 1",
            ));
        }
        let heads = [1, dims(&self.k)[1], q_heads];
        let want = [batch, q_heads, q_len.div_ceil(*block_q), entries];
        if !(b == 1 || b == batch) || !heads.contains(&h) || lists != want[2] {
            return Err(Error::invalid(
                "index",
                format!("shape {:?} where {want:?} is expected", index.shape),
                "give a list per block of queries; the first axis may be 1, the second 1 or kv_heads",
            ));
        }
        if self.block_mask.is_some() {
            return Err(Error::unsupported(
                "a key_index with a block_mask",
                "lists are not cut into blocks",
                "leave the keys that blocks hide out of the lists",
            ));
        }
        Ok(())
    }

    pub(crate) fn tensors(&self) -> Vec<(Slot, &Layout)> {
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
            (Slot::QLen, &self.q_len),
            (Slot::PrefixLen, &self.prefix_len),
            (Slot::CuQ, &self.cu_q),
            (Slot::CuKv, &self.cu_kv),
            (Slot::HeadWindows, &self.head_windows),
            (Slot::Sinks, &self.sinks),
            (Slot::Gate, &self.gate),
            (Slot::BlockStarts, &self.block_starts),
        ] {
            list.extend(layout.as_ref().map(|layout| (slot, layout)));
        }
        list.extend(
            self.block_mask
                .iter()
                .map(|mask| (Slot::Blocks, &mask.bits)),
        );
        list.extend(
            self.key_index
                .iter()
                .map(|lists| (Slot::Index, &lists.index)),
        );
        let buffers = self.mods.iter().flat_map(|change| &change.buffers);
        list.extend(
            Slot::BUFFERS
                .into_iter()
                .zip(buffers.map(|buffer| &buffer.layout)),
        );
        list
    }
}

/// See [`Attention::reach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    pub corner: Corner,
    pub left: Option<u64>,
    pub right: Option<u64>,
    pub early: u64,
}

/// The sum of `i + start`, at least 0 and at most `top`, for `i` from 0 to `count - 1`.
fn ramp(count: f64, start: f64, top: f64) -> f64 {
    let low = (-start).clamp(0.0, count);
    let high = (top - start).clamp(low, count);
    (high - low) * (start + (low + high - 1.0) / 2.0) + (count - high) * top
}

/// The four axes of a layout that has been checked to have four.
pub(crate) fn dims(layout: &Layout) -> [u64; 4] {
    std::array::from_fn(|axis| layout.shape.get(axis).copied().unwrap_or(1))
}

impl PartialEq for Attention {
    fn eq(&self, other: &Self) -> bool {
        self.tensors() == other.tensors()
            && self.causal == other.causal
            && self.window == other.window
            && self.block_mask == other.block_mask
            && self.key_index == other.key_index
            && self.mods == other.mods
            && same_bits(self.scale, other.scale)
            && same_bits(self.softcap, other.softcap)
    }
}

impl Eq for Attention {}

impl Hash for Attention {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.tensors().hash(state);
        self.causal.hash(state);
        self.window.hash(state);
        self.block_mask.hash(state);
        self.key_index.hash(state);
        self.mods.hash(state);
        self.scale.map(f32::to_bits).hash(state);
        self.softcap.map(f32::to_bits).hash(state);
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
    /// Valid queries per batch entry, where the op has them.
    pub q_len: Option<View<'a>>,
    /// Keys that every query sees, where the op has them.
    pub prefix_len: Option<View<'a>>,
    /// Where packed queries begin, where the op has them.
    pub cu_q: Option<View<'a>>,
    /// Where packed keys begin, where the op has them.
    pub cu_kv: Option<View<'a>>,
    /// A window per query head, where the op has them.
    pub head_windows: Option<View<'a>>,
    /// Logits in the denominator, where the op has them.
    pub sinks: Option<View<'a>>,
    /// Factors on rows, where the op has them.
    pub gate: Option<View<'a>>,
    /// The bits of the block mask, where the op has one.
    pub blocks: Option<View<'a>>,
    /// Where blocks of keys begin, where the op has that.
    pub block_starts: Option<View<'a>>,
    /// The lists of the key index, where the op has one.
    pub index: Option<View<'a>>,
    /// The buffers of all mods, in their order.
    pub buffers: Vec<View<'a>>,
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
            q_len: None,
            prefix_len: None,
            cu_q: None,
            cu_kv: None,
            head_windows: None,
            sinks: None,
            gate: None,
            blocks: None,
            block_starts: None,
            index: None,
            buffers: Vec::new(),
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
            (Slot::QLen, args.q_len),
            (Slot::PrefixLen, args.prefix_len),
            (Slot::CuQ, args.cu_q),
            (Slot::CuKv, args.cu_kv),
            (Slot::HeadWindows, args.head_windows),
            (Slot::Sinks, args.sinks),
            (Slot::Gate, args.gate),
            (Slot::Blocks, args.blocks),
            (Slot::BlockStarts, args.block_starts),
            (Slot::Index, args.index),
        ] {
            list.extend(view.map(|view| (slot, view)));
        }
        // Buffers past the last slot take it again, which binding refuses.
        let slots = Slot::BUFFERS
            .into_iter()
            .chain(std::iter::repeat(Slot::Buffer3));
        list.extend(slots.zip(args.buffers));
        Self(list)
    }
}
