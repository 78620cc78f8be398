//! Workloads: an op on a shape, with inputs of its own and a reference to check against.

use serde::{Deserialize, Serialize};

use std::time::Instant;

use super::{Ceilings, Profile, Timing, cost, time};
use crate::{
    Attention, AttentionArgs, Causal, DType, Error, Gpu, Layout, Op, Plan, Result, Softmax,
    SoftmaxArgs, Tensor, Tuning,
    ops::Args,
    reference::{self, AttentionInputs},
};

/// An op on a shape, as the files of workloads say it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Workload {
    /// Softmax attention.
    Attention(AttentionShape),
    /// Row softmax.
    Softmax(SoftmaxShape),
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
    /// The most that `err` may be: 2e-5 (f16 storage: 2e-3), or 1e-6 (1e-3) of the largest element
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

    /// What the row is called.
    pub fn name(&self) -> &str {
        match self {
            Self::Attention(shape) => &shape.name,
            Self::Softmax(shape) => &shape.name,
        }
    }

    /// The op on contiguous tensors.
    pub fn op(&self) -> Op {
        match self {
            Self::Attention(a) => {
                let value_dim = a.value_dim.unwrap_or(a.head_dim);
                Attention::new(
                    Layout::new(a.dtype, [a.batch, a.q_heads, a.q_len, a.head_dim]),
                    Layout::new(a.dtype, [a.batch, a.kv_heads, a.kv_len, a.head_dim]),
                    Layout::new(a.dtype, [a.batch, a.kv_heads, a.kv_len, value_dim]),
                )
                .causal(a.causal)
                .into()
            }
            Self::Softmax(s) => {
                let op = Softmax::new(Layout::new(s.dtype, s.shape.clone()), s.axis);
                if s.log { op.log().into() } else { op.into() }
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
        let sets = ((PAST_CACHES / cost.bytes()) as usize).clamp(1, MOST_SETS);
        let sets = (0..sets as u64)
            .map(|seed| Set::new(gpu, &op, seed))
            .collect::<Result<Vec<_>>>()?;
        let calls = sets
            .iter()
            .map(|set| set.bind(&plan))
            .collect::<Result<Vec<_>>>()?;
        let mut profile = Profile::new(gpu, create, calls.first(), make_plan, || {
            sets.first().map(|set| set.bind(&plan)).transpose()
        })?;
        let compiled = gpu.engine().counters().misses;
        let timing = time(gpu, &calls, runs)?;
        profile.late_pipelines = gpu.engine().counters().misses - compiled;
        // Every set was run in the timed loop or just before; the last one is looked at.
        let (err, err_limit) = match sets.last() {
            Some(set) => set.error(gpu, &op)?,
            None => (f64::INFINITY, 0.0),
        };
        let ms = timing.median();
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
            ceiling_share: cost.share(ms, ceilings),
            err,
            err_limit,
            scratch_bytes: plan.scratch_bytes(),
            profile,
        })
    }

    fn describe(&self) -> String {
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
                format!(
                    "attention {} [{}, {heads}, {} x {}, {dims}]{causal}",
                    a.dtype, a.batch, a.q_len, a.kv_len
                )
            }
            Self::Softmax(s) => {
                let log = if s.log { "log_" } else { "" };
                format!("{log}softmax {} {:?} axis {}", s.dtype, s.shape, s.axis)
            }
        }
    }
}

/// Bytes past which sets of tensors do not fit a cache together.
const PAST_CACHES: f64 = 256e6;
const MOST_SETS: usize = 8;

/// The tensors of one call: inputs by their place in the op, and the output.
struct Set {
    inputs: Vec<(Vec<f32>, Tensor)>,
    output: Tensor,
}

impl Set {
    fn new(gpu: &Gpu, op: &Op, seed: u64) -> Result<Self> {
        let (inputs, output) = match op {
            Op::Attention(op) => (vec![&op.q, &op.k, &op.v], &op.o),
            Op::Softmax(op) => (vec![&op.x], &op.y),
        };
        let inputs = inputs
            .into_iter()
            .enumerate()
            .map(|(place, layout)| {
                let seed = seed * 16 + place as u64;
                let mut data = reference::noise(seed, layout.elements() as usize);
                if layout.dtype == DType::F16 {
                    for x in &mut data {
                        *x = half::f16::from_f32(*x).to_f32();
                    }
                }
                let tensor = gpu.upload_as(layout.dtype, &data, layout.shape.clone())?;
                Ok((data, tensor))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            inputs,
            output: gpu.allocate(output.clone())?,
        })
    }

    fn bind(&self, plan: &Plan) -> Result<crate::Call> {
        let views: Vec<_> = self
            .inputs
            .iter()
            .map(|(_, tensor)| tensor.view())
            .collect();
        let out = self.output.view();
        let args: Args<'_> = match views.as_slice() {
            [q, k, v] => AttentionArgs::new(q.clone(), k.clone(), v.clone(), out).into(),
            views => SoftmaxArgs {
                x: views.first().cloned(),
                y: out,
            }
            .into(),
        };
        plan.bind(args)
    }

    /// The error, and the most that it may be.
    fn error(&self, gpu: &Gpu, op: &Op) -> Result<(f64, f64)> {
        let wide: Vec<Vec<f64>> = self
            .inputs
            .iter()
            .map(|(data, _)| data.iter().map(|&x| x.into()).collect())
            .collect();
        let expected = match (op, wide.as_slice()) {
            (Op::Attention(op), [q, k, v]) => {
                let [batch, q_heads, q_len, head_dim] = crate::ops::dims(&op.q);
                let [_, kv_heads, kv_len, value_dim] = crate::ops::dims(&op.v);
                reference::attention(&AttentionInputs {
                    batch: batch as usize,
                    q_heads: q_heads as usize,
                    kv_heads: kv_heads as usize,
                    q_len: q_len as usize,
                    kv_len: kv_len as usize,
                    head_dim: head_dim as usize,
                    value_dim: value_dim as usize,
                    q,
                    k,
                    v,
                    scale: op.effective_scale().into(),
                    causal: op.causal,
                    ..AttentionInputs::default()
                })
                .o
            }
            (Op::Softmax(op), [x]) => {
                let shape: Vec<usize> = op.x.shape.iter().map(|&len| len as usize).collect();
                let scale = op.scale.unwrap_or(1.0).into();
                reference::softmax(x, &shape, op.axis, scale, op.log)
            }
            _ => Vec::new(),
        };
        let (of_rms, of_largest) = match self.output.layout().dtype {
            DType::F16 => (2e-3, 1e-3),
            _ => (2e-5, 1e-6),
        };
        let squares: f64 = expected.iter().map(|x| x * x).sum();
        let rms = (squares / expected.len().max(1) as f64).sqrt();
        let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        // f64::max passes over NaN, from a reference of zeros.
        let limit = (of_largest * largest / rms).max(of_rms);
        Ok((
            reference::error(&gpu.download(&self.output)?, &expected),
            limit,
        ))
    }
}
