//! Workloads: an op on a shape, with inputs of its own and a reference to check against.

use std::{fs, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tensors::{inputs_of, output_of};
use crate::{
    Attention, Causal, DType, Decay, Error, FeatureMap, Layout, LinearAttention, Merge, Mod, Op,
    Reach, Result, Rotary, Scan, ShortConv, Softmax, TopK, UpdateRule, Window,
    ops::Slot,
    reference::{
        self, AttentionInputs, LinearAttentionInputs, RotaryInputs, ScanInputs, ShortConvInputs,
        TopKRule,
    },
};

/// A tenth of a standard normal sample is below.
const LOWEST_TENTH: f32 = -1.281_551_6;

const IDENTITY_MOD: &str =
    "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
    return score;
}";

/// Workloads with a letter each.
const LETTERS: &str = include_str!("../../benches/shapes.toml");
/// A suite that takes less than two minutes on a software device.
const QUICK: &str = include_str!("../../benches/quick.toml");
/// All that there is.
const FULL: [&str; 6] = [
    QUICK,
    LETTERS,
    include_str!("../../benches/full.toml"),
    include_str!("../../benches/terms.toml"),
    include_str!("../../benches/sparse.toml"),
    include_str!("../../benches/linear.toml"),
];

/// An op on a shape, as the files of workloads say it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Workload {
    /// Softmax attention.
    Attention(AttentionShape),
    /// Row softmax.
    Softmax(SoftmaxShape),
    /// Rotary position embedding.
    Rotary(RotaryShape),
    /// Linear attention.
    LinearAttention(LinearAttentionShape),
    /// Selection of the best elements of rows.
    TopK(TopKShape),
    /// Attention results over parts of the keys into that over all.
    Merge(MergeShape),
    /// Sums with decay along a sequence.
    Scan(ScanShape),
    /// Short convolution along a sequence.
    ShortConv(ShortConvShape),
}

/// Attention on contiguous tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionShape {
    /// What the row is called.
    pub name: String,
    /// Batch entries.
    #[serde(default = "one")]
    pub batch: u64,
    /// Query heads.
    pub q_heads: u64,
    /// KV heads.
    pub kv_heads: u64,
    /// Queries.
    pub q_len: u64,
    /// Keys.
    pub kv_len: u64,
    /// Dims of q and k.
    pub head_dim: u64,
    /// Dims of v and o; `head_dim` when absent.
    #[serde(default)]
    pub value_dim: Option<u64>,
    /// Causal masking.
    #[serde(default)]
    pub causal: Causal,
    /// Sliding window.
    #[serde(default)]
    pub window: Option<Window>,
    /// Soft cap on scores.
    #[serde(default)]
    pub softcap: Option<f32>,
    /// A boolean mask of all heads, `[1, 1, q_len, kv_len]`, that hides one key in ten.
    #[serde(default)]
    pub mask: bool,
    /// An additive bias, f32 `[1, q_heads, q_len, kv_len]`.
    #[serde(default)]
    pub bias: bool,
    /// A logit per head in the denominator.
    #[serde(default)]
    pub sinks: bool,
    /// A `score_mod` that returns its argument.
    #[serde(default)]
    pub identity_mod: bool,
    /// Storage.
    #[serde(default = "f32")]
    pub dtype: DType,
}

/// Softmax of a contiguous tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SoftmaxShape {
    /// What the row is called.
    pub name: String,
    /// Shape of the tensor.
    pub shape: Vec<u64>,
    /// Axis of the rows.
    pub axis: usize,
    /// Whether to return the logarithm.
    #[serde(default)]
    pub log: bool,
    /// Storage.
    #[serde(default = "f32")]
    pub dtype: DType,
}

/// Rotary position embedding of a contiguous tensor, positions from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotaryShape {
    /// What the row is called.
    pub name: String,
    /// Batch entries, heads, tokens and channels.
    pub shape: [u64; 4],
    /// Channels that are turned; all when absent.
    #[serde(default)]
    pub rotary_dim: Option<u64>,
    /// Whether neighbours are pairs.
    #[serde(default)]
    pub interleaved: bool,
    /// Storage; tables are f32.
    #[serde(default = "f32")]
    pub dtype: DType,
}

/// Linear attention on contiguous tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearAttentionShape {
    /// What the row is called.
    pub name: String,
    /// Batch entries.
    #[serde(default = "one")]
    pub batch: u64,
    /// Query heads.
    pub heads: u64,
    /// Heads of keys, values and states; `heads` when absent.
    #[serde(default)]
    pub kv_heads: Option<u64>,
    /// Tokens.
    pub seq: u64,
    /// Dims of q and k.
    pub key_dim: u64,
    /// Dims of v and o; `key_dim` when absent.
    #[serde(default)]
    pub value_dim: Option<u64>,
    /// Factors on the state.
    #[serde(default)]
    pub decay: DecayKind,
    /// How a token changes the state.
    #[serde(default)]
    pub rule: RuleKind,
    /// Which tokens a query's state holds.
    #[serde(default)]
    pub reach: Reach,
    /// Queries and keys mapped by `elu(x) + 1`, and the output divided by the sum of the keys.
    #[serde(default)]
    pub normalised: bool,
    /// A state that is carried on in place, as in decoding.
    #[serde(default)]
    pub state: bool,
    /// Storage of q, k, v and o; the rest is f32.
    #[serde(default = "f32")]
    pub dtype: DType,
}

/// The best elements along the last axis of a contiguous tensor, values and indices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopKShape {
    /// What the row is called.
    pub name: String,
    /// Shape of the tensor.
    pub shape: Vec<u64>,
    /// How many are taken of each row.
    pub k: u64,
    /// Whether they stay in the order of their indices.
    #[serde(default)]
    pub unsorted: bool,
    /// Storage.
    #[serde(default = "f32")]
    pub dtype: DType,
}

/// Parts of attention results on contiguous tensors, each with its log-sum-exp.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeShape {
    /// What the row is called.
    pub name: String,
    /// Parts.
    pub parts: u64,
    /// Batch entries, heads, queries and value dims.
    pub shape: [u64; 4],
    /// Storage; log-sum-exps are f32.
    #[serde(default = "f32")]
    pub dtype: DType,
}

/// Sums of a contiguous tensor along the sequence, with a decay per element.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScanShape {
    /// What the row is called.
    pub name: String,
    /// Batch entries, tokens and channels.
    pub shape: [u64; 3],
    /// Storage.
    #[serde(default = "f32")]
    pub dtype: DType,
}

/// Causal convolution of a contiguous tensor along the sequence, with weights per channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShortConvShape {
    /// What the row is called.
    pub name: String,
    /// Batch entries, channels and tokens.
    pub shape: [u64; 3],
    /// Taps of each channel.
    pub taps: u64,
    /// Storage.
    #[serde(default = "f32")]
    pub dtype: DType,
}

/// Factors on the state of a linear attention, as the files of workloads say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecayKind {
    /// None.
    #[default]
    None,
    /// Those of lightning attention, a constant per head.
    Head,
    /// One per token and head.
    Token,
    /// One per token, head and key channel.
    Key,
}

/// The rule of a linear attention, as the files of workloads say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Sums of outer products.
    #[default]
    Linear,
    /// The delta rule, with a beta per token, on keys of length 1.
    Delta,
}

fn one() -> u64 {
    1
}

fn f32() -> DType {
    DType::F32
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    workload: Vec<Workload>,
}

impl Workload {
    /// Reads a TOML file of workloads.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the place in the text.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        let wrong = |found: String| {
            Error::invalid(
                "shapes",
                found,
                "write tables like: [[workload]] name = \"mine\" op = \"attention\" q_heads = 8 \
                 kv_heads = 8 q_len = 1024 kv_len = 1024 head_dim = 64, one setting a line",
            )
        };
        let file: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if file.workload.is_empty() {
            return Err(wrong("there is no workload".into()));
        }
        Ok(file.workload)
    }

    /// The workloads of a file, or, without one, those of a suite: "quick", "full", or letters of
    /// `benches/shapes.toml`.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read or is not of workloads; [`Error::Invalid`]
    /// for a suite that there is not.
    pub fn choose(suite: &str, file: Option<&Path>) -> Result<Vec<Self>> {
        if let Some(path) = file {
            let text = fs::read_to_string(path)
                .map_err(|error| Error::file(path, format!("{error}; check the path")))?;
            return Self::parse(&text).map_err(|error| Error::file(path, error));
        }
        match suite {
            "quick" => return Self::parse(QUICK),
            "full" => {
                let parts = FULL.iter().map(|text| Self::parse(text));
                return Ok(parts.collect::<Result<Vec<_>>>()?.concat());
            }
            _ => {}
        }
        let all = Self::parse(LETTERS)?;
        if suite.is_empty() {
            return Err(Error::invalid(
                "--suite",
                "is empty",
                "give quick, full, or letters, as abcdef",
            ));
        }
        suite
            .to_uppercase()
            .chars()
            .map(|letter| {
                all.iter()
                    .find(|workload| workload.name() == letter.to_string())
                    .cloned()
                    .ok_or_else(|| {
                        let names: Vec<&str> = all.iter().map(Self::name).collect();
                        Error::invalid(
                            "--suite",
                            format!("no workload is called {letter}"),
                            format!("give quick, full, or letters among {}", names.join(", ")),
                        )
                    })
            })
            .collect()
    }

    /// What the row is called.
    pub fn name(&self) -> &str {
        match self {
            Self::Attention(shape) => &shape.name,
            Self::Softmax(shape) => &shape.name,
            Self::Rotary(shape) => &shape.name,
            Self::LinearAttention(shape) => &shape.name,
            Self::TopK(shape) => &shape.name,
            Self::Merge(shape) => &shape.name,
            Self::Scan(shape) => &shape.name,
            Self::ShortConv(shape) => &shape.name,
        }
    }

    /// The op, as `op` in a file of workloads says it.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Attention(_) => "attention",
            Self::Softmax(_) => "softmax",
            Self::Rotary(_) => "rotary",
            Self::LinearAttention(_) => "linear_attention",
            Self::TopK(_) => "top_k",
            Self::Merge(_) => "merge",
            Self::Scan(_) => "scan",
            Self::ShortConv(_) => "short_conv",
        }
    }

    /// How its elements are stored.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Attention(shape) => shape.dtype,
            Self::Softmax(shape) => shape.dtype,
            Self::Rotary(shape) => shape.dtype,
            Self::LinearAttention(shape) => shape.dtype,
            Self::TopK(shape) => shape.dtype,
            Self::Merge(shape) => shape.dtype,
            Self::Scan(shape) => shape.dtype,
            Self::ShortConv(shape) => shape.dtype,
        }
    }

    /// The same with elements stored otherwise.
    #[must_use]
    pub fn stored_as(mut self, storage: DType) -> Self {
        let dtype = match &mut self {
            Self::Attention(shape) => &mut shape.dtype,
            Self::Softmax(shape) => &mut shape.dtype,
            Self::Rotary(shape) => &mut shape.dtype,
            Self::LinearAttention(shape) => &mut shape.dtype,
            Self::TopK(shape) => &mut shape.dtype,
            Self::Merge(shape) => &mut shape.dtype,
            Self::Scan(shape) => &mut shape.dtype,
            Self::ShortConv(shape) => &mut shape.dtype,
        };
        *dtype = storage;
        self
    }

    /// The op on contiguous tensors.
    pub fn op(&self) -> Op {
        match self {
            Self::Attention(a) => {
                let value_dim = a.value_dim.unwrap_or(a.head_dim);
                let mut op = Attention::new(
                    Layout::new(a.dtype, [a.batch, a.q_heads, a.q_len, a.head_dim]),
                    Layout::new(a.dtype, [a.batch, a.kv_heads, a.kv_len, a.head_dim]),
                    Layout::new(a.dtype, [a.batch, a.kv_heads, a.kv_len, value_dim]),
                )
                .causal(a.causal);
                op.window = a.window;
                op.softcap = a.softcap;
                op.mask = a
                    .mask
                    .then(|| Layout::new(DType::Bool, [1, 1, a.q_len, a.kv_len]));
                op.bias = a
                    .bias
                    .then(|| Layout::f32([1, a.q_heads, a.q_len, a.kv_len]));
                op.sinks = a.sinks.then(|| Layout::f32([a.q_heads]));
                if a.identity_mod {
                    op = op.modified(Mod::new(IDENTITY_MOD));
                }
                op.into()
            }
            Self::Softmax(s) => {
                let op = Softmax::new(Layout::new(s.dtype, s.shape.clone()), s.axis);
                if s.log { op.log().into() } else { op.into() }
            }
            Self::Rotary(r) => {
                let [_, _, tokens, channels] = r.shape;
                let rotary_dim = r.rotary_dim.unwrap_or(channels);
                let table = Layout::f32([tokens, rotary_dim / 2]);
                let x = Layout::new(r.dtype, r.shape);
                let mut op = Rotary::new(x, table.clone(), table).rotary_dim(rotary_dim);
                op.interleaved = r.interleaved;
                op.into()
            }
            Self::LinearAttention(l) => l.op().into(),
            Self::TopK(t) => {
                let op = TopK::new(Layout::new(t.dtype, t.shape.clone()), t.k);
                if t.unsorted {
                    op.unsorted().into()
                } else {
                    op.into()
                }
            }
            Self::Merge(m) => {
                let [batch, heads, queries, dims] = m.shape;
                Merge::new(
                    Layout::new(m.dtype, [m.parts, batch, heads, queries, dims]),
                    Layout::f32([m.parts, batch, heads, queries]),
                )
                .into()
            }
            Self::Scan(c) => {
                let x = Layout::new(c.dtype, c.shape);
                Scan::decayed_sum(x.clone(), x).into()
            }
            Self::ShortConv(c) => {
                let [_, channels, _] = c.shape;
                ShortConv::new(
                    Layout::new(c.dtype, c.shape),
                    Layout::f32([channels, c.taps]),
                )
                .into()
            }
        }
    }

    /// The op and its shape, in words.
    pub fn describe(&self) -> String {
        self.describe_with(None)
    }

    /// The length of the sequence, and the series of workloads that differ in it alone, in words; none of ops
    /// without a sequence.
    pub fn series(&self) -> Option<(u64, String)> {
        let length = match self {
            Self::Attention(shape) => shape.kv_len,
            Self::LinearAttention(shape) => shape.seq,
            Self::Scan(shape) => shape.shape[1],
            Self::ShortConv(shape) => shape.shape[2],
            Self::Softmax(_) | Self::Rotary(_) | Self::TopK(_) | Self::Merge(_) => return None,
        };
        Some((length, self.describe_with(Some("n"))))
    }

    /// The same under another name.
    #[must_use]
    pub fn named(mut self, new: &str) -> Self {
        let name = match &mut self {
            Self::Attention(shape) => &mut shape.name,
            Self::Softmax(shape) => &mut shape.name,
            Self::Rotary(shape) => &mut shape.name,
            Self::LinearAttention(shape) => &mut shape.name,
            Self::TopK(shape) => &mut shape.name,
            Self::Merge(shape) => &mut shape.name,
            Self::Scan(shape) => &mut shape.name,
            Self::ShortConv(shape) => &mut shape.name,
        };
        new.clone_into(name);
        self
    }

    /// The op and its shape, with a word in place of the length of the sequence.
    fn describe_with(&self, length: Option<&str>) -> String {
        let word = |len: u64| length.map_or_else(|| len.to_string(), str::to_owned);
        match self {
            Self::Attention(a) => {
                let queries = if a.q_len == a.kv_len {
                    word(a.q_len)
                } else {
                    a.q_len.to_string()
                };
                let heads = if a.q_heads == a.kv_heads {
                    a.q_heads.to_string()
                } else {
                    format!("{}/{}", a.q_heads, a.kv_heads)
                };
                let dims = match a.value_dim {
                    Some(value_dim) => format!("{}/{value_dim}", a.head_dim),
                    None => a.head_dim.to_string(),
                };
                let causal = match a.causal {
                    Causal::None => "",
                    Causal::TopLeft => " causal",
                    Causal::BottomRight => " causal (bottom-right)",
                };
                let mut terms = String::new();
                if let Some(window) = a.window {
                    let side = |keys: Option<u64>| keys.map_or("all".into(), |n| n.to_string());
                    terms = format!(" window {}+{}", side(window.left), side(window.right));
                    if window.first > 0 {
                        terms = format!("{terms} first {}", window.first);
                    }
                }
                for (there, word) in [
                    (a.softcap.is_some(), " softcap"),
                    (a.mask, " mask"),
                    (a.bias, " bias"),
                    (a.sinks, " sinks"),
                    (a.identity_mod, " score_mod"),
                ] {
                    terms.push_str(if there { word } else { "" });
                }
                format!(
                    "attention {} [{}, {heads}, {queries} x {}, {dims}]{causal}{terms}",
                    a.dtype,
                    a.batch,
                    word(a.kv_len)
                )
            }
            Self::Softmax(s) => {
                let log = if s.log { "log_" } else { "" };
                format!("{log}softmax {} {:?} axis {}", s.dtype, s.shape, s.axis)
            }
            Self::Rotary(r) => {
                let of = r
                    .rotary_dim
                    .map_or(String::new(), |dim| format!(" of {dim}"));
                let pairs = if r.interleaved { " interleaved" } else { "" };
                format!("rotary {} {:?}{of}{pairs}", r.dtype, r.shape)
            }
            Self::LinearAttention(l) => l.describe(&word(l.seq)),
            Self::TopK(t) => {
                let order = if t.unsorted { " unsorted" } else { "" };
                format!("top_k {} {:?} k {}{order}", t.dtype, t.shape, t.k)
            }
            Self::Merge(m) => format!("merge {} of {} parts {:?}", m.dtype, m.parts, m.shape),
            Self::Scan(c) => {
                let [batch, seq, channels] = c.shape;
                format!(
                    "scan {} [{batch}, {}, {channels}] decay",
                    c.dtype,
                    word(seq)
                )
            }
            Self::ShortConv(c) => {
                let [batch, channels, seq] = c.shape;
                let seq = word(seq);
                format!(
                    "short_conv {} [{batch}, {channels}, {seq}] taps {}",
                    c.dtype, c.taps
                )
            }
        }
    }

    /// The input tensors, in the order of the op: noise, rounded to what the storage holds. Gates of linear attention
    /// are what gates are: decays 0 or less, betas from 0 to 1, keys of the delta rule of length 1.
    pub fn inputs(&self, seed: u64) -> Vec<Vec<f32>> {
        let op = self.op();
        inputs_of(&op)
            .enumerate()
            .map(|(place, (slot, layout))| {
                let seed = seed * 16 + place as u64;
                let mut data = reference::noise(seed, layout.elements() as usize);
                if let Op::LinearAttention(op) = &op {
                    gate(op, slot, &mut data);
                }
                if let (Op::Scan(_), Slot::Decay) = (&op, slot) {
                    data.iter_mut().for_each(|x| *x = -0.1 * x.abs());
                }
                if layout.dtype == DType::F16 {
                    for x in &mut data {
                        *x = half::f16::from_f32(*x).to_f32();
                    }
                }
                if layout.dtype == DType::Bool {
                    for x in &mut data {
                        *x = f32::from(u8::from(*x > LOWEST_TENTH));
                    }
                }
                data
            })
            .collect()
    }

    /// What the op makes of these inputs, in f64.
    pub fn expected(&self, inputs: &[Vec<f32>]) -> Expected {
        let op = self.op();
        let wide: Vec<Vec<f64>> = inputs
            .iter()
            .map(|data| data.iter().map(|&x| x.into()).collect())
            .collect();
        let mut state = Vec::new();
        let mut sum = Vec::new();
        let mut indices = Vec::new();
        let values = match (&op, wide.as_slice()) {
            (Op::TopK(op), _) => {
                let rule = TopKRule {
                    k: op.k as usize,
                    largest: op.largest,
                    sorted: op.sorted,
                    skip_hidden: op.skip_hidden,
                };
                let length = op.x.shape.last().map_or(1, |&len| len as usize);
                let mut values = Vec::new();
                for row in inputs.iter().take(1).flat_map(|x| x.chunks(length)) {
                    let (row_values, row_indices) = reference::top_k(row, length, &rule);
                    values.extend(row_values.iter().map(|&x| f64::from(x)));
                    indices.extend(row_indices);
                }
                values
            }
            (Op::Attention(op), [q, k, v, rest @ ..]) => attention(op, [q, k, v], rest),
            (Op::LinearAttention(linear), [q, k, v, ..]) => {
                let tensor = |wanted: Slot| {
                    let all = inputs_of(&op).zip(&wide);
                    let mut found = all.filter(|((slot, _), _)| *slot == wanted);
                    found.next().map(|(_, data)| data.as_slice())
                };
                let outputs = reference::linear_attention(&LinearAttentionInputs {
                    decay: tensor(Slot::Decay),
                    beta: tensor(Slot::Beta),
                    initial_state: tensor(Slot::FinalState),
                    initial_sum: tensor(Slot::FinalSum),
                    ..LinearAttentionInputs::of(linear, q, k, v)
                });
                if linear.in_place {
                    state = outputs.state;
                    sum = outputs.sum;
                }
                outputs.o
            }
            (Op::Softmax(op), [x]) => {
                let shape: Vec<usize> = op.x.shape.iter().map(|&len| len as usize).collect();
                let scale = op.scale.unwrap_or(1.0).into();
                reference::softmax(x, &shape, op.axis, scale, op.log)
            }
            (Op::Merge(op), [o_parts, weights]) => {
                let parts = op.o_parts.shape.first().copied().unwrap_or(1) as usize;
                match op.gates {
                    None => reference::merge(o_parts, weights, parts).o,
                    Some(_) => reference::merge_gated(o_parts, None, weights, parts),
                }
            }
            (Op::Merge(op), [o_parts, lse_parts, gates]) => {
                let parts = op.o_parts.shape.first().copied().unwrap_or(1) as usize;
                reference::merge_gated(o_parts, Some(lse_parts), gates, parts)
            }
            (Op::Scan(op), [x, g]) => decayed_sums(op, x, g),
            (Op::ShortConv(op), [x, weight]) => {
                let shape: Vec<usize> = op.x.shape.iter().map(|&len| len as usize).collect();
                let [batch, channels, seq] = shape.try_into().unwrap_or_default();
                let taps = op.weight.shape.last().map_or(0, |&taps| taps as usize);
                reference::short_conv(&ShortConvInputs {
                    batch,
                    channels,
                    seq,
                    heads: channels,
                    taps,
                    padding_left: op.padding_left as usize,
                    softmax: op.softmax,
                    renormalise: op.renormalise,
                    silu: false,
                    x,
                    weight,
                    dynamic: false,
                    bias: None,
                    initial_state: None,
                    cu_seqlens: None,
                })
                .y
            }
            (Op::Rotary(op), [x, cos, sin]) => {
                let [batch, heads, seq, head_dim] = crate::ops::dims(&op.x).map(|n| n as usize);
                let rows: Vec<usize> = (0..batch).flat_map(|_| 0..seq).collect();
                reference::rotary(&RotaryInputs {
                    batch,
                    heads,
                    seq,
                    head_dim,
                    rotary_dim: op.rotary_dim as usize,
                    interleaved: op.interleaved,
                    inverse: op.inverse,
                    x,
                    cos,
                    sin,
                    rows: &rows,
                })
            }
            _ => Vec::new(),
        };
        // Sums of more keys round more often, and what they are measured by shrinks: both grow, by chance,
        // as the square root.
        let longer = match &op {
            Op::Attention(op) => (op.k.shape[2] as f64 / 1024.0).sqrt().max(1.0),
            Op::LinearAttention(op) => (crate::ops::dims(&op.k)[2] as f64 / 1024.0).sqrt().max(1.0),
            _ => 1.0,
        };
        let (of_rms, of_largest) = match output_of(&op).1.dtype {
            DType::F16 => (2e-3, 1e-3),
            _ => (2e-5 * longer, 1e-6),
        };
        let squares: f64 = values.iter().map(|x| x * x).sum();
        let rms = (squares / values.len().max(1) as f64).sqrt();
        let largest = values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        Expected {
            values,
            state,
            sum,
            indices,
            // f64::max passes over NaN, from a reference of zeros.
            err_limit: (of_largest * largest / rms).max(of_rms),
        }
    }
}

/// Attention's output, in f64; `rest` are the tensors after q, k and v, in the order of the op.
fn attention(op: &Attention, [q, k, v]: [&[f64]; 3], rest: &[Vec<f64>]) -> Vec<f64> {
    let mut rest = rest.iter();
    let [batch, heads, ..] = crate::ops::dims(&op.q).map(|len| len as usize);
    // A workload's mask and bias serve all batch entries, and the mask all heads.
    let mask: Option<Vec<bool>> = op.mask.as_ref().and_then(|_| {
        let one: Vec<bool> = rest.next()?.iter().map(|&x| x != 0.0).collect();
        Some(one.repeat(batch * heads))
    });
    let bias = op
        .bias
        .as_ref()
        .and_then(|_| Some(rest.next()?.repeat(batch)));
    let sinks = op.sinks.as_ref().and_then(|_| rest.next());
    reference::attention(&AttentionInputs {
        mask: mask.as_deref(),
        bias: bias.as_deref(),
        sinks: sinks.map(Vec::as_slice),
        ..AttentionInputs::of(op, q, k, v)
    })
    .o
}

/// Sums with decay of `[batch, seq, channels]`, in f64.
fn decayed_sums(op: &Scan, x: &[f64], g: &[f64]) -> Vec<f64> {
    let shape: Vec<usize> = op.input().shape.iter().map(|&len| len as usize).collect();
    let [batch, seq, channels] = shape.try_into().unwrap_or_default();
    let mut sums = vec![0.0; x.len()];
    for entry in 0..batch {
        for channel in 0..channels {
            let at = |token: usize| (entry * seq + token) * channels + channel;
            let of = |data: &[f64]| -> Vec<f64> {
                (0..seq)
                    .filter_map(|token| data.get(at(token)).copied())
                    .collect()
            };
            let outputs = reference::scan(&ScanInputs::Sum {
                x: &of(x),
                g: Some(&of(g)),
                initial: 0.0,
            });
            for (token, sum) in outputs.o.into_iter().enumerate() {
                if let Some(place) = sums.get_mut(at(token)) {
                    *place = sum;
                }
            }
        }
    }
    sums
}

/// The right result of a workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// The output, in f64.
    pub values: Vec<f64>,
    /// The state that is carried on, in f64; empty without one.
    pub state: Vec<f64>,
    /// The sum of keys that is carried on with it, in f64; empty without one.
    pub sum: Vec<f64>,
    /// The indices beside the values of a selection; empty of other ops.
    pub indices: Vec<u32>,
    /// The most that [`reference::error`] may be against them; see [`super::Measured::err_limit`].
    pub err_limit: f64,
}

/// Makes a gate of noise.
fn gate(op: &LinearAttention, slot: Slot, noise: &mut Vec<f32>) {
    match slot {
        Slot::Decay if matches!(op.decay, Decay::Head(_)) => {
            *noise = LinearAttention::lightning_decays(noise.len(), None);
        }
        Slot::Decay => noise.iter_mut().for_each(|x| *x = -0.1 * x.abs()),
        Slot::Beta => noise
            .iter_mut()
            .for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
        // Sums of positive keys.
        Slot::FinalSum => noise.iter_mut().for_each(|x| *x = x.abs()),
        Slot::K if op.rule != UpdateRule::Linear => {
            for key in noise.chunks_mut(crate::ops::dims(&op.k)[3].max(1) as usize) {
                let length = key.iter().map(|x| x * x).sum::<f32>().sqrt();
                key.iter_mut()
                    .for_each(|x| *x /= length.max(f32::MIN_POSITIVE));
            }
        }
        _ => {}
    }
}

impl LinearAttentionShape {
    fn op(&self) -> LinearAttention {
        let states = self.kv_heads.unwrap_or(self.heads);
        let value_dim = self.value_dim.unwrap_or(self.key_dim);
        let of = |heads, dim| Layout::new(self.dtype, [self.batch, heads, self.seq, dim]);
        let per_token = Layout::f32([self.batch, states, self.seq]);
        let op = LinearAttention::new(
            of(self.heads, self.key_dim),
            of(states, self.key_dim),
            of(states, value_dim),
        )
        .reach(self.reach)
        .decay(match self.decay {
            DecayKind::None => Decay::None,
            DecayKind::Head => Decay::Head(Layout::f32([states])),
            DecayKind::Token => Decay::Token(per_token.clone()),
            DecayKind::Key => Decay::Key(Layout::f32([self.batch, states, self.seq, self.key_dim])),
        })
        .rule(match self.rule {
            RuleKind::Linear => UpdateRule::Linear,
            RuleKind::Delta => UpdateRule::Delta {
                beta: Some(per_token),
                read: None,
            },
        });
        let op = if self.normalised {
            op.features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne)
                .normalised(1e-6)
        } else {
            op
        };
        if self.state { op.carried_state() } else { op }
    }

    fn describe(&self, seq: &str) -> String {
        let heads = match self.kv_heads {
            Some(states) if states != self.heads => format!("{}/{states}", self.heads),
            _ => self.heads.to_string(),
        };
        let dims = match self.value_dim {
            Some(value_dim) => format!("{}/{value_dim}", self.key_dim),
            None => self.key_dim.to_string(),
        };
        let reach = match self.reach {
            Reach::Causal => " causal".to_owned(),
            Reach::Before => " before".to_owned(),
            Reach::BeforeBucket { tokens } => format!(" before buckets of {tokens}"),
            Reach::All => String::new(),
        };
        let decay = match self.decay {
            DecayKind::None => "",
            DecayKind::Head => " lightning decay",
            DecayKind::Token => " decay per token",
            DecayKind::Key => " decay per key channel",
        };
        let rule = match self.rule {
            RuleKind::Linear => "",
            RuleKind::Delta => " delta rule",
        };
        let normalised = if self.normalised { " normalised" } else { "" };
        let state = if self.state { " state carried" } else { "" };
        format!(
            "linear_attention {} [{}, {heads}, {seq}, {dims}]{reach}{decay}{rule}{normalised}{state}",
            self.dtype, self.batch
        )
    }
}
