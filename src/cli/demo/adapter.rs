//! One adapter: does it compute right, and how fast.

use serde::{Serialize, Serializer};

use super::{
    super::open_on,
    encoder::{HEADS, Layer, identity},
};
use crate::{
    Attention, AttentionArgs, Call, DType, Error, Gpu, Layout, Op, Result, Schedule, Tensor,
    bench::{Ceilings, Cost, Spread, ceilings, cost, time},
    reference::error,
};

/// The most that an output may differ from its reference, as [`error`] measures it.
pub(super) const LIMIT: f64 = 2e-5;
/// How often a [`Report`] says what it does next.
pub(super) const STEPS: u64 = 5;

/// How long the layers in a row take at least, in ms: as long as what measures the peaks, so that
/// other work on the machine disturbs both alike.
const ROW_MS: f64 = 25.0;
/// Time for each of the two timings, in ms, within these numbers of runs.
const TIMED_MS: f64 = 600.0;
const RUNS: (f64, f64) = (5.0, 100.0);
const CEILING_RUNS: usize = 3;

/// What one adapter did.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub adapter: String,
    pub driver: String,
    pub backend: String,
    /// Why it failed, when it did.
    pub reason: Option<String>,
    #[serde(flatten)]
    pub figures: Option<Figures>,
    /// Weights by layer, `[2, 12, len, len]` each.
    #[serde(skip)]
    pub weights: Vec<Vec<f32>>,
}

/// What was measured on one adapter.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    #[serde(serialize_with = "name")]
    pub schedule: Schedule,
    /// Time of one layer in ms, from a row of layers that follow each other without a pause;
    /// between timestamps where the adapter has them.
    pub gpu_ms: Spread,
    /// Time of one layer alone in ms, from submission to the end of the wait.
    pub wall_ms: Spread,
    /// Least time that the adapter's ceilings allow, over the time taken.
    pub share: f64,
    /// The ceiling that sets the least time.
    pub bound: &'static str,
    pub ceilings: Ceilings,
    pub gflops: f64,
    pub gbps: f64,
    pub errors: Vec<Errors>,
}

/// Errors of one layer, as [`error`] measures them.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Errors {
    pub layer: u32,
    /// Output, against the f64 reference.
    pub o: f64,
    /// Log-sum-exp, against the f64 reference.
    pub lse: f64,
    /// Output, against the stored one.
    pub stored_o: f64,
    /// Log-sum-exp, against the stored one.
    pub stored_lse: f64,
    /// Attention weights, against the f64 reference: the largest difference. Their root mean
    /// square says nothing about them, as most are near 0.
    pub weights: f64,
    /// Largest distance of a row of weights from a sum of 1.
    pub row_sum: f64,
}

fn name<S: Serializer>(schedule: &Schedule, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(schedule)
}

impl Errors {
    fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("o against the f64 reference", self.o),
            ("lse against the f64 reference", self.lse),
            ("o against the stored values", self.stored_o),
            ("lse against the stored values", self.stored_lse),
            ("the attention weights", self.weights),
            ("the row sums of the attention weights", self.row_sum),
        ]
    }
}

impl Figures {
    /// The largest error of any output.
    pub(super) fn worst(&self) -> f64 {
        largest(
            self.errors
                .iter()
                .flat_map(Errors::named)
                .map(|(_, error)| error),
        )
    }

    /// What is wrong about the results, if anything is.
    fn reason(&self) -> Option<String> {
        let wrong: Vec<String> = self
            .errors
            .iter()
            .flat_map(|errors| {
                errors
                    .named()
                    .map(|(what, error)| (errors.layer, what, error))
            })
            // Not `error > LIMIT`: that would let NaN pass.
            .filter(|(_, _, error)| error.is_nan() || *error > LIMIT)
            .map(|(layer, what, error)| format!("layer {layer}, {what}: error {error:.1e}"))
            .collect();
        (!wrong.is_empty()).then(|| format!("{}; at most {LIMIT:e} is right", wrong.join("; ")))
    }
}

impl Report {
    /// Runs the layers on an adapter; says before each step what comes next.
    pub(super) fn of(
        adapter: &wgpu::Adapter,
        layers: &[Layer],
        next: impl FnMut(&'static str),
    ) -> Self {
        let info = adapter.get_info();
        let mut report = Self {
            adapter: info.name,
            driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
            backend: info.backend.to_string(),
            reason: None,
            figures: None,
            weights: Vec::new(),
        };
        match measure(adapter, layers, next) {
            Ok((figures, weights)) => {
                report.reason = figures.reason();
                report.figures = Some(figures);
                report.weights = weights;
            }
            Err(error) => report.reason = Some(error.to_string()),
        }
        report
    }

    pub(super) fn passed(&self) -> bool {
        self.reason.is_none()
    }
}

fn measure(
    adapter: &wgpu::Adapter,
    layers: &[Layer],
    mut next: impl FnMut(&'static str),
) -> Result<(Figures, Vec<Vec<f32>>)> {
    next("opening");
    let gpu = open_on(adapter, None)?;
    next("attention");
    let bound = layers
        .iter()
        .map(|layer| Bound::new(&gpu, layer))
        .collect::<Result<Vec<_>>>()?;
    let outputs = bound
        .iter()
        .map(|bound| bound.outputs(&gpu))
        .collect::<Result<Vec<_>>>()?;
    next("attention weights");
    let weights = bound
        .iter()
        .map(|bound| bound.weights(&gpu))
        .collect::<Result<Vec<_>>>()?;
    next("its own peaks");
    let ceilings = ceilings(&gpu, CEILING_RUNS)?;
    next("timing");
    let (Some(first), Some(schedule)) = (layers.first(), bound.first().map(|b| b.schedule)) else {
        return Err(Error::invalid("layers", "none", "compute at least one"));
    };
    let cost = least(first);
    let calls: Vec<Call> = bound.into_iter().map(|bound| bound.call).collect();
    let runs = |ms: f64| (TIMED_MS / ms).clamp(RUNS.0, RUNS.1) as usize;
    let rough = time(&gpu, &calls, calls.len())?.median();
    let alone = time(&gpu, &calls, runs(rough))?;
    let rounds = (ROW_MS / alone.median() / calls.len() as f64).clamp(1.0, 1000.0) as usize;
    let count = (rounds * calls.len()) as f64;
    let row = Call::sequence(calls.iter().cycle().take(rounds * calls.len()));
    let in_a_row = time(&gpu, &[row], runs(alone.median() * count))?;

    let gpu_ms = in_a_row.gpu.unwrap_or(in_a_row.wall).scaled(1.0 / count);
    let ms = gpu_ms.median;
    let memory_bound = cost.memory_ms(&ceilings) > cost.arithmetic_ms(&ceilings);
    let figures = Figures {
        schedule,
        gpu_ms,
        wall_ms: alone.wall,
        share: cost.share(ms, &ceilings),
        bound: if memory_bound { "memory" } else { "arithmetic" },
        ceilings,
        gflops: cost.gflops(ms),
        gbps: cost.gbps(ms),
        errors: layers
            .iter()
            .zip(&outputs)
            .zip(&weights)
            .map(|((layer, (o, lse)), weights)| Errors {
                layer: layer.number,
                o: error(o, &layer.reference.o),
                lse: error(lse, &layer.reference.lse),
                stored_o: error(o, &layer.stored.o),
                stored_lse: error(lse, &layer.stored.lse),
                weights: largest_difference(weights, &layer.weights),
                row_sum: row_sum_error(layer, weights),
            })
            .collect(),
    };
    Ok((figures, weights))
}

/// The least that a layer costs: that of each passage with its valid keys alone.
fn least(layer: &Layer) -> Cost {
    let [_, heads, len, dim] = layer.shape();
    layer.lens.iter().fold(Cost::default(), |sum, &keys| {
        let keys = Layout::f32([1, heads, keys.into(), dim]);
        let op = Attention::new(Layout::f32([1, heads, len, dim]), keys.clone(), keys).with_lse();
        sum + cost(&op.into())
    })
}

fn largest_difference(x: &[f32], reference: &[f64]) -> f64 {
    if x.len() != reference.len() {
        return f64::INFINITY;
    }
    largest(
        x.iter()
            .zip(reference)
            .map(|(&x, r)| (f64::from(x) - r).abs()),
    )
}

fn row_sum_error(layer: &Layer, weights: &[f32]) -> f64 {
    let rows = (0..layer.lens.len())
        .flat_map(|passage| (0..HEADS).map(move |head| (passage, head)))
        .flat_map(|(passage, head)| layer.map(weights, passage, head));
    largest(rows.map(|row| (row.iter().copied().map(f64::from).sum::<f64>() - 1.0).abs()))
}

/// The largest of some errors; infinite, not lost, where one is not a number.
fn largest(errors: impl IntoIterator<Item = f64>) -> f64 {
    errors
        .into_iter()
        .map(|error| if error.is_nan() { f64::INFINITY } else { error })
        .fold(0.0, f64::max)
}

/// A layer's tensors on a device, and its attention, ready to run.
struct Bound {
    q: Tensor,
    k: Tensor,
    lens: Tensor,
    o: Tensor,
    lse: Tensor,
    op: Attention,
    schedule: Schedule,
    call: Call,
}

impl Bound {
    fn new(gpu: &Gpu, layer: &Layer) -> Result<Self> {
        let shape = layer.shape();
        let [batch, heads, len, _] = shape;
        let q = gpu.upload(&layer.q, shape)?;
        let k = gpu.upload(&layer.k, shape)?;
        let v = gpu.upload(&layer.v, shape)?;
        let lens = gpu.upload_u32(&layer.lens, [batch])?;
        let o = gpu.empty(DType::F32, shape)?;
        let lse = gpu.empty(DType::F32, [batch, heads, len])?;
        let op = Attention::new(q.layout().clone(), k.layout().clone(), v.layout().clone())
            .kv_len(lens.layout().clone())
            .scale(layer.scale)
            .with_lse();
        let plan = gpu.engine().plan(&Op::from(op.clone()))?;
        let call = plan.bind(AttentionArgs {
            lse: Some(lse.view()),
            kv_len: Some(lens.view()),
            ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
        })?;
        Ok(Self {
            schedule: plan.outline().schedule,
            q,
            k,
            lens,
            o,
            lse,
            op,
            call,
        })
    }

    fn outputs(&self, gpu: &Gpu) -> Result<(Vec<f32>, Vec<f32>)> {
        gpu.run(&self.call)?;
        Ok((gpu.download(&self.o)?, gpu.download(&self.lse)?))
    }

    /// The attention weights: the output for values that are the identity matrix, which all
    /// passages and heads share.
    fn weights(&self, gpu: &Gpu) -> Result<Vec<f32>> {
        let shape = &self.op.k.shape;
        let (lead, len) = (&shape[..2], shape[2]);
        let square = [lead, &[len, len]].concat();
        let v = gpu.upload(&identity(len as usize), [len, len])?;
        let v = v.with_layout(v.layout().broadcast("v", &square)?);
        let o = gpu.empty(DType::F32, square)?;
        let op = Attention {
            v: v.layout().clone(),
            o: o.layout().clone(),
            lse: None,
            ..self.op.clone()
        };
        gpu.compute(
            &op.into(),
            AttentionArgs {
                kv_len: Some(self.lens.view()),
                ..AttentionArgs::new(self.q.view(), self.k.view(), v.view(), o.view())
            },
        )?;
        gpu.download(&o)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(o: f64, row_sum: f64) -> Figures {
        let spread = Spread::of(vec![1.0]).unwrap();
        Figures {
            schedule: Schedule::Tile,
            gpu_ms: spread,
            wall_ms: spread,
            share: 0.5,
            bound: "arithmetic",
            ceilings: Ceilings {
                fma_gflops: 1.0,
                read_gbps: 1.0,
                copy_gbps: 1.0,
                fma_f16_gflops: None,
                matrix_gflops: None,
                workgroup_gbps: None,
                dispatch_us: 1.0,
                submit_us: 1.0,
                upload_gbps: 1.0,
                readback_gbps: 1.0,
            },
            gflops: 1.0,
            gbps: 1.0,
            errors: vec![Errors {
                layer: 0,
                o,
                lse: 1e-7,
                stored_o: 1e-7,
                stored_lse: 1e-7,
                weights: 1e-7,
                row_sum,
            }],
        }
    }

    #[test]
    fn wrong_and_missing_numbers_fail() {
        assert_eq!(figures(1e-6, 1e-6).reason(), None);
        assert_eq!(figures(1e-6, 1e-6).worst(), 1e-6);
        let reason = figures(3e-5, 0.0).reason().unwrap();
        assert!(
            reason.contains("layer 0, o against the f64 reference"),
            "{reason}"
        );
        assert!(figures(f64::NAN, 0.0).reason().is_some());
        assert_eq!(figures(0.0, f64::NAN).worst(), f64::INFINITY);
    }

    #[test]
    fn padding_costs_nothing() {
        let mut layer = Layer::first().unwrap();
        let cost = least(&layer);
        // 2 (dim + dim) operations for each query, head and valid key.
        assert_eq!(cost.operations, 2.0 * 64.0 * 79.0 * 12.0 * (79.0 + 50.0));
        layer.lens = vec![79, 79];
        assert!(least(&layer).bytes() > cost.bytes());
    }
}
