//! What a device can do at most, measured by small kernels.

use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Measured, Sample, Spread,
    probe::{Probe, Probes},
    time,
};
use crate::{
    Call, DType, Error, Gpu, Result, Tensor,
    engine::{read_buffer, wait},
    kernels::{Variant as _, ceiling_fma, ceiling_matrix, ceiling_stream, ceiling_workgroup},
    ops::Slot,
    pipeline::checked,
};

/// The device's own ceilings.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Ceilings {
    /// f32 multiply-adds, in GFLOP/s (two operations each).
    pub fma_gflops: f64,
    /// f16 multiply-adds in pairs, in GFLOP/s, where the device has f16.
    pub fma_f16_gflops: Option<f64>,
    /// Multiply-adds of cooperative matrices with f32 sums, in GFLOP/s: the best of the kinds that the
    /// device has, where it has any.
    #[serde(default)]
    pub matrix_gflops: Option<f64>,
    /// Streaming read, in GB/s (10^9 bytes).
    pub read_gbps: f64,
    /// Copy, bytes read plus bytes written, in GB/s.
    pub copy_gbps: f64,
    /// Reads of workgroup memory, in GB/s, where there is enough of it to measure.
    pub workgroup_gbps: Option<f64>,
    /// A further dispatch in a pass, in microseconds: recording, launch and end.
    pub dispatch_us: f64,
    /// A submission of one dispatch and the wait for it, in microseconds.
    pub submit_us: f64,
    /// From host memory to a buffer of the device, in GB/s.
    pub upload_gbps: f64,
    /// From a buffer of the device to host memory, in GB/s.
    pub readback_gbps: f64,
}

impl Ceilings {
    /// What the kernels reached later, around the runs of a row: their median where that is more. A machine that was
    /// busy when they were measured first has higher ones.
    pub fn raise(&mut self, measured: &Measured) {
        let median = |rate: fn(&Sample) -> f64| {
            let spread = Spread::of(measured.samples.iter().map(rate).collect());
            spread.map_or(0.0, |spread| spread.median)
        };
        self.fma_gflops = self.fma_gflops.max(median(|run| run.pace_gflops));
        if let Some(rate) = &mut self.matrix_gflops {
            *rate = rate.max(median(|run| run.pace_matrix_gflops.unwrap_or(0.0)));
        }
        self.read_gbps = self.read_gbps.max(median(|run| run.pace_read_gbps));
        self.copy_gbps = self.copy_gbps.max(median(|run| run.pace_copy_gbps));
    }
}

/// Measures the ceilings: the best of a few workgroup sizes and access patterns, each a median of
/// `runs`, over buffers well past any cache.
///
/// # Errors
/// [`crate::Error::Device`] when a launch fails.
pub fn ceilings(gpu: &Gpu, runs: usize) -> Result<Ceilings> {
    Ok(survey(gpu, runs)?.0)
}

/// Measures the ceilings, and keeps the kernels that reached them, to be run again as [`Probes`].
///
/// # Errors
/// [`crate::Error::Device`] when a launch fails.
pub fn survey(gpu: &Gpu, runs: usize) -> Result<(Ceilings, Probes)> {
    let caps = gpu.engine().caps();
    let sizes: Vec<u32> = WORKGROUPS
        .into_iter()
        .filter(|&size| size <= caps.max_invocations)
        .collect();
    let best = |measure: &dyn Fn(u32) -> Result<Best>| {
        sizes
            .iter()
            .try_fold(Best::default(), |best, &size| Ok(best.or(measure(size)?)))
    };
    // As large as one binding may be, within reason: caches are smaller.
    let bytes = caps.max_binding_bytes.min(512 << 20);
    let x = gpu.empty(DType::F32, [bytes / 4])?;
    let y = gpu.empty(DType::F32, [bytes / 4])?;
    let streams = |copy| {
        best(&|workgroup| {
            [false, true]
                .into_iter()
                .try_fold(Best::default(), |best, stretch| {
                    let variant = ceiling_stream::Variant {
                        copy,
                        stretch,
                        workgroup,
                    };
                    Ok(best.or(stream(gpu, variant, (&x, &y), runs)?))
                })
        })
    };
    let multiply_adds =
        |f16| best(&|workgroup| fma(gpu, ceiling_fma::Variant { f16, workgroup }, runs));
    let shared = ceiling_workgroup::Variant { workgroup: 64 };
    let (dispatch_us, submit_us) = launches(gpu, runs)?;
    let fma = multiply_adds(false)?;
    let matrices = matrices(gpu, runs)?;
    let read = streams(false)?;
    let copy = streams(true)?;
    let (upload_gbps, readback_gbps) = transfers(gpu, &x, runs)?;
    let ceilings = Ceilings {
        fma_gflops: fma.rate,
        fma_f16_gflops: caps
            .f16
            .then(|| multiply_adds(true).map(|best| best.rate))
            .transpose()?,
        matrix_gflops: matrices.as_ref().map(|best| best.rate),
        read_gbps: read.rate,
        copy_gbps: copy.rate,
        workgroup_gbps: shared
            .supports(caps)
            .is_ok()
            .then(|| {
                best(&|workgroup| self::shared(gpu, ceiling_workgroup::Variant { workgroup }, runs))
            })
            .transpose()?
            .map(|best| best.rate),
        dispatch_us,
        submit_us,
        upload_gbps,
        readback_gbps,
    };
    let probes = Probes {
        fma: fma.probe,
        matrix: matrices.and_then(|best| best.probe),
        read: read.probe,
        copy: copy.probe,
    };
    Ok((ceilings, probes))
}

/// The highest rate seen, and what reached it; nothing at first.
#[derive(Default)]
struct Best {
    rate: f64,
    probe: Option<Probe>,
}

impl Best {
    fn or(self, other: Self) -> Self {
        if other.rate > self.rate { other } else { self }
    }
}

/// Workgroup sizes tried: hardware wants few, software many invocations per launch.
const WORKGROUPS: [u32; 3] = [64, 256, 1024];
/// How long arithmetic should run at least, in ms, for the launch not to count.
const LEAST_MS: f64 = 20.0;
/// Loop iterations to begin with, where the loop budget allows: little, since software may be slow at
/// what hardware is made for.
const FIRST_ITERATIONS: u32 = 8;
/// Loop iterations past which more workgroups are tried first.
const FEW_ITERATIONS: u32 = 512;
/// The most workgroups of one launch.
const MOST_WORKGROUPS: u32 = 1 << 14;
/// Dispatches of one pass whose launches are timed.
const LAUNCHES: usize = 256;
/// The most bytes that are uploaded and read back at once.
const MOST_TRANSFERRED: u64 = 64 << 20;

/// The rate of a kernel that loops over arithmetic, in 10^9 per second: `work` is what a workgroup
/// does in one iteration. The kernel grows until a launch takes long enough to time; the probe is a smaller one.
fn rate(
    gpu: &Gpu,
    runs: usize,
    work: f64,
    make: impl Fn(u32, u32) -> Result<Call>,
) -> Result<Best> {
    let mut workgroups = 64u32;
    let most = gpu.engine().caps().loop_budget;
    let mut iterations = FIRST_ITERATIONS.min(most);
    loop {
        let call = [make(workgroups, iterations)?];
        let largest = iterations > most / 2 && workgroups == MOST_WORKGROUPS;
        if largest || time(gpu, &call, 1)?.median() >= LEAST_MS {
            let done = |iterations: u32| work * f64::from(iterations) * f64::from(workgroups);
            let ms = time(gpu, &call, runs)?.median();
            let share = (Probe::WANTED_MS / ms).min(1.0);
            let few = ((f64::from(iterations) * share) as u32).max(1);
            return Ok(Best {
                rate: done(iterations) / ms / 1e6,
                probe: Some(Probe {
                    call: make(workgroups, few)?,
                    work: done(few),
                }),
            });
        }
        // Enough per launch first, then a full device, then more of each.
        if workgroups < MOST_WORKGROUPS && (iterations >= FEW_ITERATIONS || iterations > most / 2) {
            workgroups *= 2;
        } else {
            iterations *= 2;
        }
    }
}

/// GFLOP/s of multiply-adds.
fn fma(gpu: &Gpu, variant: ceiling_fma::Variant, runs: usize) -> Result<Best> {
    let y = gpu.empty(DType::F32, [MOST_WORKGROUPS.into()])?;
    let work = variant.operations() as f64 * f64::from(variant.workgroup);
    rate(gpu, runs, work, |workgroups, iterations| {
        let params = ceiling_fma::Params {
            iterations,
            a: 0.999,
            b: 0.001,
        };
        gpu.engine().single(
            variant.into(),
            &params.bytes(),
            [workgroups, 1, 1],
            &[(Slot::Y, y.buffer())],
        )
    })
}

/// GFLOP/s of matrix multiply-adds; none where the device has no matrices.
fn matrices(gpu: &Gpu, runs: usize) -> Result<Option<Best>> {
    let caps = gpu.engine().caps();
    let y = gpu.empty(DType::F32, [MOST_WORKGROUPS.into()])?;
    let mut best: Option<Best> = None;
    for shape in &caps.matrices {
        let variant = ceiling_matrix::Variant {
            side: shape.side,
            f16: shape.f16,
            lanes: caps.subgroup.map_or(0, |(_, largest)| largest),
        };
        if variant.supports(caps).is_err() {
            continue;
        }
        let rate = rate(
            gpu,
            runs,
            variant.operations() as f64,
            |workgroups, iterations| {
                // Sums stay small: a matrix of 1/64 times one of 1/64 adds at most 1/256.
                let params = ceiling_matrix::Params {
                    iterations,
                    a: 1.0 / 64.0,
                    b: 1.0 / 64.0,
                };
                gpu.engine().single(
                    variant.into(),
                    &params.bytes(),
                    [workgroups, 1, 1],
                    &[(Slot::Y, y.buffer())],
                )
            },
        )?;
        best = Some(best.unwrap_or_default().or(rate));
    }
    Ok(best)
}

/// GB/s of reads from workgroup memory.
fn shared(gpu: &Gpu, variant: ceiling_workgroup::Variant, runs: usize) -> Result<Best> {
    let y = gpu.empty(DType::F32, [u64::from(MOST_WORKGROUPS) * 4])?;
    let work = (ceiling_workgroup::READS * 16 * u64::from(variant.workgroup)) as f64;
    rate(gpu, runs, work, |workgroups, iterations| {
        gpu.engine().single(
            variant.into(),
            &ceiling_workgroup::Params { iterations }.bytes(),
            [workgroups, 1, 1],
            &[(Slot::Y, y.buffer())],
        )
    })
}

/// GB/s through two buffers of the same size, or through the first alone; 0 where they are too small.
fn stream(
    gpu: &Gpu,
    variant: ceiling_stream::Variant,
    (x, y): (&Tensor, &Tensor),
    runs: usize,
) -> Result<Best> {
    let per_group = u64::from(variant.loads()) * u64::from(variant.workgroup);
    let side = u64::from(gpu.engine().caps().max_workgroups);
    let groups = (x.layout().elements() / 4 / per_group).min(side * side);
    if groups == 0 {
        return Ok(Best::default());
    }
    let wide = groups.min(side);
    let call = gpu.engine().single(
        variant.into(),
        &ceiling_stream::Params {
            groups: groups as u32,
        }
        .bytes(),
        [wide as u32, groups.div_ceil(wide) as u32, 1],
        &[(Slot::X, x.buffer()), (Slot::Y, y.buffer())],
    )?;
    let bytes = groups * per_group * 16 * if variant.copy { 2 } else { 1 };
    let call = [call];
    let ms = time(gpu, &call, runs)?.median();
    let [call] = call;
    Ok(Best {
        rate: bytes as f64 / ms / 1e6,
        // All of it, so that caches hold nothing else afterwards.
        probe: Some(Probe {
            call,
            work: bytes as f64,
        }),
    })
}

/// GB/s of an upload and of a readback, in wall time.
fn transfers(gpu: &Gpu, x: &Tensor, runs: usize) -> Result<(f64, f64)> {
    let size = x.buffer().size().min(MOST_TRANSFERRED);
    let data = vec![0u8; usize::try_from(size).unwrap_or(usize::MAX)];
    let rate = |transfer: &dyn Fn() -> Result<()>| -> Result<f64> {
        let mut times = Vec::new();
        // The first run, in which memory is set up, does not count.
        for run in 0..=runs.max(1) {
            let start = Instant::now();
            transfer()?;
            if run > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(Spread::of(times).map_or(0.0, |spread| size as f64 / spread.median / 1e9))
    };
    let upload = rate(&|| {
        let index = checked(gpu.device(), || {
            gpu.queue().write_buffer(x.buffer(), 0, &data);
            gpu.queue().submit([])
        })
        .map_err(Error::Device)?;
        wait(gpu.device(), index)
    })?;
    let readback =
        rate(&|| read_buffer(gpu.device(), gpu.queue(), x.buffer(), 0, size).map(|_| ()))?;
    Ok((upload, readback))
}

/// Wall time of a dispatch that does next to nothing, in microseconds: one more in a pass, and one
/// submitted and waited for.
fn launches(gpu: &Gpu, runs: usize) -> Result<(f64, f64)> {
    let y = gpu.empty(DType::F32, [4])?;
    let params = ceiling_fma::Params::default();
    let variant = ceiling_fma::Variant {
        f16: false,
        workgroup: 64,
    };
    let call = gpu.engine().single(
        variant.into(),
        &params.bytes(),
        [1, 1, 1],
        &[(Slot::Y, y.buffer())],
    )?;
    let pass = |dispatches: usize| -> Result<f64> {
        let mut times = Vec::new();
        // The first run, in which drivers compile, does not count.
        for run in 0..=runs.max(1) {
            let start = Instant::now();
            let index = checked(gpu.device(), || {
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    (0..dispatches).for_each(|_| call.record(&mut pass));
                }
                gpu.queue().submit([encoder.finish()])
            })
            .map_err(Error::Device)?;
            wait(gpu.device(), index)?;
            if run > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        Spread::of(times)
            .map(|spread| spread.median)
            .ok_or_else(|| Error::invalid("runs", "0", "run at least once"))
    };
    let one = pass(1)?;
    let many = pass(LAUNCHES + 1)?;
    Ok(((many - one).max(0.0) / LAUNCHES as f64, one))
}
