//! What a device can do at most, measured by small kernels.

use serde::{Deserialize, Serialize};

use super::time;
use crate::{
    DType, Gpu, Result, Tensor,
    kernels::{ceiling_fma, ceiling_stream},
    ops::Slot,
};

/// The device's own ceilings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// f32 multiply-adds, in GFLOP/s (two operations each).
    pub fma_gflops: f64,
    /// Streaming read, in GB/s (10^9 bytes).
    pub read_gbps: f64,
    /// Copy, bytes read plus bytes written, in GB/s.
    pub copy_gbps: f64,
}

/// Measures the ceilings: the best of a few workgroup sizes, each a median of `runs`, over buffers
/// well past any cache.
///
/// # Errors
/// [`crate::Error::Device`] when a launch fails.
pub fn ceilings(gpu: &Gpu, runs: usize) -> Result<Ceilings> {
    let sizes = WORKGROUPS
        .into_iter()
        .filter(|&size| size <= gpu.engine().caps().max_invocations);
    let mut best = Ceilings {
        fma_gflops: 0.0,
        read_gbps: 0.0,
        copy_gbps: 0.0,
    };
    // As large as one binding may be, within reason: caches are smaller.
    let bytes = gpu.engine().caps().max_binding_bytes.min(512 << 20);
    let x = gpu.empty(DType::F32, [bytes / 4])?;
    let y = gpu.empty(DType::F32, [bytes / 4])?;
    for workgroup in sizes {
        best.fma_gflops = best.fma_gflops.max(fma(gpu, workgroup, runs)?);
        if bytes < ceiling_stream::LOADS * 16 * u64::from(workgroup) {
            continue;
        }
        let stream = |copy| stream(gpu, workgroup, copy, (&x, &y), runs);
        best.read_gbps = best.read_gbps.max(stream(false)?);
        best.copy_gbps = best.copy_gbps.max(stream(true)?);
    }
    Ok(best)
}

/// Workgroup sizes tried: hardware wants few, software many invocations per launch.
const WORKGROUPS: [u32; 3] = [64, 256, 1024];
/// How long the multiply-adds should run at least, in ms, for the launch not to count.
const LEAST_MS: f64 = 20.0;
/// Loop iterations to begin with, where the loop budget allows.
const FIRST_ITERATIONS: u32 = 512;
/// The most workgroups of one launch.
const MOST_WORKGROUPS: u32 = 1 << 14;

/// GFLOP/s of multiply-adds.
fn fma(gpu: &Gpu, workgroup: u32, runs: usize) -> Result<f64> {
    let mut workgroups = 256u32;
    let most = gpu.engine().caps().loop_budget;
    let mut iterations = FIRST_ITERATIONS.min(most);
    // Grow the work until a launch takes long enough to time: first fill the device.
    loop {
        let y = gpu.empty(DType::F32, [u64::from(workgroups)])?;
        let params = ceiling_fma::Params {
            iterations,
            a: 0.999,
            b: 0.001,
        };
        let call = [gpu.engine().single(
            ceiling_fma::Variant { workgroup }.into(),
            &params.bytes(),
            [workgroups, 1, 1],
            &[(Slot::Y, y.buffer())],
        )?];
        let largest = iterations > most / 2 && workgroups == MOST_WORKGROUPS;
        if largest || time(gpu, &call, 1)?.median() >= LEAST_MS {
            let operations = ceiling_fma::OPERATIONS as f64
                * f64::from(iterations)
                * f64::from(workgroups)
                * f64::from(workgroup);
            return Ok(operations / time(gpu, &call, runs)?.median() / 1e6);
        }
        if workgroups < MOST_WORKGROUPS {
            workgroups *= 2;
        } else {
            iterations *= 2;
        }
    }
}

/// GB/s through two buffers of the same size, or through the first alone.
fn stream(
    gpu: &Gpu,
    workgroup: u32,
    copy: bool,
    (x, y): (&Tensor, &Tensor),
    runs: usize,
) -> Result<f64> {
    let per_group = ceiling_stream::LOADS * u64::from(workgroup);
    let side = u64::from(gpu.engine().caps().max_workgroups);
    let groups = (x.layout().elements() / 4 / per_group).min(side * side);
    let wide = groups.min(side);
    let call = gpu.engine().single(
        ceiling_stream::Variant { copy, workgroup }.into(),
        &ceiling_stream::Params {
            groups: groups as u32,
        }
        .bytes(),
        [wide as u32, groups.div_ceil(wide) as u32, 1],
        &[(Slot::X, x.buffer()), (Slot::Y, y.buffer())],
    )?;
    let bytes = groups * per_group * 16 * if copy { 2 } else { 1 };
    Ok(bytes as f64 / time(gpu, &[call], runs)?.median() / 1e6)
}
