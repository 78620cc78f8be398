//! Workloads: an op on a shape, with inputs of its own and a reference to check against.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use std::time::Instant;

use super::{Ceilings, Profile, Timing, cost, time};
use crate::{
    Attention, Causal, DType, Decay, Error, FeatureMap, Gpu, Layout, LinearAttention, Mod, Op,
    Plan, Reach, Result, Rotary, Schedule, Softmax, Tensor, TopK, Tuning, UpdateRule, Window,
    ops::{Args, Slot},
    reference::{self, AttentionInputs, LinearAttentionInputs, RotaryInputs, TopKRule},
};

const IDENTITY_MOD: &str =
    "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
    return score;
}";

const SUITE: &str = include_str!("../../benches/shapes.toml");

/// An op on a shape, as the files of workloads say it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// Attention on contiguous tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// Factors on the state of a linear attention, as the files of workloads say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// One row of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Always "row": tells it from other lines of JSON.
    pub kind: &'static str,
    /// What the workload is called.
    pub workload: String,
    /// The op and its shape, in words.
    pub shape: String,
    /// The schedule chosen.
    pub schedule: String,
    /// Why.
    pub why: String,
    /// Median that counts: GPU time where the device has timestamps, else wall time.
    pub median_ms: f64,
    /// Both clocks, with their spread.
    pub timing: Timing,
    /// GFLOP/s.
    pub gflops: f64,
    /// GB/s, each input read once and each output written once.
    pub gbps: f64,
    /// Share of the lower roofline.
    pub ceiling_share: f64,
    /// `max |o - reference| / RMS(reference)` against f64.
    pub err: f64,
    /// The most that `err` may be: 2e-5 (f16 storage: 2e-3; times the square root of `kv_len / 1024` in longer
    /// attention), or 1e-6 (1e-3) of the largest element
    /// where that is more, as in a softmax of long rows.
    pub err_limit: f64,
    /// Scratch.
    pub scratch_bytes: u64,
    /// Where host time goes.
    pub profile: Profile,
}

impl Row {
    /// Whether the result is right, and nothing was compiled while the clock ran.
    pub fn passed(&self) -> bool {
        self.err <= self.err_limit && self.profile.late_pipelines == 0
    }
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

    /// The workloads of a file, or, without one, those of the suite with these letters.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read or is not of workloads; [`Error::Invalid`]
    /// for a letter that is not in the suite.
    pub fn choose(suite: &str, file: Option<&Path>) -> Result<Vec<Self>> {
        if let Some(path) = file {
            let text = fs::read_to_string(path)
                .map_err(|error| Error::file(path, format!("{error}; check the path")))?;
            return Self::parse(&text).map_err(|error| Error::file(path, error));
        }
        let all = Self::parse(SUITE)?;
        if suite.is_empty() {
            return Err(Error::invalid(
                "--suite",
                "is empty",
                "give letters of the suite, as abcdef",
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
                            format!("choose among {}", names.join(", ")),
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
        }
    }

    /// Times the workload on a device and checks its result. Without a tuning, the engine chooses.
    ///
    /// # Errors
    /// As planning, binding and running have them.
    pub fn measure(
        &self,
        gpu: &Gpu,
        tuning: Option<&Tuning>,
        ceilings: &Ceilings,
        runs: usize,
    ) -> Result<Row> {
        let op = self.op();
        let make_plan = || match tuning {
            Some(tuning) => gpu.engine().plan_with(&op, tuning),
            None => gpu.engine().plan(&op),
        };
        let start = Instant::now();
        let plan = make_plan()?;
        let create = start.elapsed();
        let cost = cost(&op);
        // Sets of tensors in turn, so that none is still in a cache.
        let count = ((PAST_CACHES / cost.bytes()) as usize).clamp(1, MOST_SETS);
        let mut sets = Vec::with_capacity(count);
        let mut inputs = Vec::new();
        for seed in 0..count as u64 {
            inputs = self.inputs(seed);
            sets.push(Tensors::upload(gpu, &op, &inputs)?);
        }
        let calls = sets
            .iter()
            .map(|set| set.bind(&plan))
            .collect::<Result<Vec<_>>>()?;
        // From here on nothing may be compiled: neither by planning again nor by running.
        let compiled = gpu.engine().counters().misses;
        let mut profile = Profile::new(gpu, create, calls.first(), make_plan, || {
            sets.first().map(|set| set.bind(&plan)).transpose()
        })?;
        let timing = time(gpu, &calls, runs)?;
        profile.late_pipelines = gpu.engine().counters().misses - compiled;
        // Every set was run in the timed loop or just before; the last one is looked at.
        let expected = self.expected(&inputs);
        drop(calls);
        if inputs_of(&op).any(|(slot, _)| op.is_output(slot)) {
            // A state that was carried on is another one after each run.
            sets.clear();
            sets.push(Tensors::upload(gpu, &op, &inputs)?);
            let call = sets.last().map(|set| set.bind(&plan)).transpose()?;
            call.map(|call| gpu.run(&call)).transpose()?;
        }
        let err = match sets.last() {
            Some(set) => set.error(gpu, &expected)?,
            None => f64::INFINITY,
        };
        let ms = timing.median();
        // Matrix units have a ceiling of their own.
        let mut of_schedule = *ceilings;
        if let (Schedule::Matrix, Some(rate)) = (plan.outline().schedule, ceilings.matrix_gflops) {
            of_schedule.fma_gflops = rate;
        }
        Ok(Row {
            kind: "row",
            workload: self.name().into(),
            shape: self.describe(),
            schedule: plan.outline().schedule.to_string(),
            why: plan.outline().why.clone(),
            median_ms: ms,
            timing,
            gflops: cost.gflops(ms),
            gbps: cost.gbps(ms),
            ceiling_share: cost.share(ms, &of_schedule),
            err,
            err_limit: expected.err_limit,
            scratch_bytes: plan.scratch_bytes(),
            profile,
        })
    }

    /// The op and its shape, in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Attention(a) => {
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
                    "attention {} [{}, {heads}, {} x {}, {dims}]{causal}{terms}",
                    a.dtype, a.batch, a.q_len, a.kv_len
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
            Self::LinearAttention(l) => l.describe(),
            Self::TopK(t) => {
                let order = if t.unsorted { " unsorted" } else { "" };
                format!("top_k {} {:?} k {}{order}", t.dtype, t.shape, t.k)
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
                if layout.dtype == DType::F16 {
                    for x in &mut data {
                        *x = half::f16::from_f32(*x).to_f32();
                    }
                }
                if layout.dtype == DType::Bool {
                    // Noise lies evenly between -1 and 1.
                    for x in &mut data {
                        *x = f32::from(u8::from(*x > -0.8));
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

/// The right result of a workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// The output, in f64.
    pub values: Vec<f64>,
    /// The state that is carried on, in f64; empty without one.
    pub state: Vec<f64>,
    /// The indices beside the values of a selection; empty of other ops.
    pub indices: Vec<u32>,
    /// The most that [`reference::error`] may be against them; see [`Row::err_limit`].
    pub err_limit: f64,
}

/// The tensors that an op reads, with those that it overwrites.
fn inputs_of(op: &Op) -> impl Iterator<Item = (Slot, &Layout)> {
    let carried = matches!(op, Op::LinearAttention(op) if op.in_place);
    let tensors = op.tensors().into_iter();
    tensors.filter(move |(slot, _)| {
        !op.is_output(*slot) || carried && matches!(slot, Slot::FinalState | Slot::FinalSum)
    })
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

    fn describe(&self) -> String {
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
            "linear_attention {} [{}, {heads}, {}, {dims}]{reach}{decay}{rule}{normalised}{state}",
            self.dtype, self.batch, self.seq
        )
    }
}

/// The tensor that counts of those that it writes.
fn output_of(op: &Op) -> (Slot, &Layout) {
    match op {
        Op::Attention(op) => (Slot::O, &op.o),
        Op::Softmax(op) => (Slot::Y, &op.y),
        Op::Merge(op) => (Slot::O, &op.o),
        Op::Rotary(op) => (Slot::Y, &op.y),
        Op::Weights(op) => (Slot::Out, &op.out),
        Op::LinearAttention(op) => (Slot::O, &op.o),
        Op::RandomFeatures(op) => (Slot::Y, &op.y),
        Op::ShortConv(op) => (Slot::Y, &op.y),
        Op::Scan(scan) => {
            let first = scan
                .tensors()
                .into_iter()
                .find(|(slot, _)| op.is_output(*slot));
            first.unwrap_or((Slot::V, scan.input()))
        }
        Op::HrrAttention(op) => (Slot::O, &op.o),
        Op::FlowAttention(op) => (Slot::O, &op.o),
        Op::AftFull(op) => (Slot::O, &op.o),
        Op::Pool(op) => (Slot::Y, &op.y),
        Op::TopK(top_k) => {
            let first = op
                .tensors()
                .into_iter()
                .find(|(slot, _)| op.is_output(*slot));
            first.unwrap_or((Slot::X, &top_k.x))
        }
        Op::TopP(op) => (Slot::Indices, &op.indices),
        Op::RouteScores(op) => (Slot::Out, &op.out),
        Op::Route(route) => {
            let tensors = route.tensors();
            let first = tensors.into_iter().find(|(slot, _)| op.is_output(*slot));
            first.unwrap_or((Slot::Scores, &route.scores))
        }
        Op::Gather(op) => (Slot::Y, &op.y),
        Op::Sort(op) => (Slot::Indices, &op.indices),
        Op::ScatterMean(op) => (Slot::Y, &op.y),
        Op::ClusterUpdate(op) => (Slot::NewMeans, &op.new_means),
        Op::Evict(op) => (Slot::NewScores, &op.new_scores),
        Op::VerticalSlash(op) => (Slot::Bits, &op.bits),
        Op::Scatter(op) => (Slot::Y, &op.y),
        Op::Divergence(op) => (Slot::Chosen, &op.chosen),
    }
}

/// Bytes past which sets of tensors do not fit a cache together.
const PAST_CACHES: f64 = 256e6;
const MOST_SETS: usize = 8;

/// The tensors of one call: inputs by their place in the op, and the output.
#[derive(Debug)]
pub struct Tensors {
    inputs: Vec<(Slot, Tensor)>,
    output: (Slot, Tensor),
    /// What else is written.
    others: Vec<(Slot, Tensor)>,
}

impl Tensors {
    /// Uploads the inputs of an op, in its order, and makes room for its output.
    ///
    /// # Errors
    /// As [`Gpu::upload_as`].
    pub fn upload(gpu: &Gpu, op: &Op, inputs: &[Vec<f32>]) -> Result<Self> {
        let inputs = inputs_of(op)
            .zip(inputs)
            .map(|((slot, layout), data)| {
                let shape = layout.shape.clone();
                let tensor = match layout.dtype {
                    DType::Bool => {
                        let visible: Vec<bool> = data.iter().map(|&x| x != 0.0).collect();
                        gpu.upload_bool(&visible, shape)?
                    }
                    dtype => gpu.upload_as(dtype, data, shape)?,
                };
                Ok((slot, tensor))
            })
            .collect::<Result<Vec<_>>>()?;
        let (slot, layout) = output_of(op);
        let others = op.tensors().into_iter().filter(|&(other, _)| {
            op.is_output(other) && other != slot && inputs.iter().all(|(input, _)| *input != other)
        });
        let others = others
            .map(|(slot, layout)| Ok((slot, gpu.allocate(layout.clone())?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            others,
            inputs,
            output: (slot, gpu.allocate(layout.clone())?),
        })
    }

    /// Binds a plan of the op to them.
    ///
    /// # Errors
    /// As [`Plan::bind`].
    pub fn bind(&self, plan: &Plan) -> Result<crate::Call> {
        let all = self.inputs.iter().chain([&self.output]).chain(&self.others);
        let args = Args(all.map(|(slot, tensor)| (*slot, tensor.view())).collect());
        plan.bind(args)
    }

    /// The output.
    pub fn output(&self) -> &Tensor {
        &self.output.1
    }

    /// The error of the output, or of the state that is carried on where that is more.
    fn error(&self, gpu: &Gpu, expected: &Expected) -> Result<f64> {
        let output = reference::error(&gpu.download(self.output())?, &expected.values);
        let indices = (self.others.iter()).find(|(slot, _)| *slot == Slot::Indices);
        if let Some((_, indices)) = indices
            && gpu.download_u32(indices)? != expected.indices
        {
            return Ok(f64::INFINITY);
        }
        let state = (self.inputs.iter()).find(|(slot, _)| *slot == Slot::FinalState);
        match state {
            Some((_, state)) => {
                let state = reference::error(&gpu.download(state)?, &expected.state);
                Ok(output.max(state))
            }
            None => Ok(output),
        }
    }
}
