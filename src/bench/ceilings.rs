//! What a device can do at most, measured by small kernels.

use serde::{Deserialize, Serialize};

use super::time;
use crate::{
    DType, Gpu, Result, Tensor,
    kernels::{Kernel, ceiling_fma, ceiling_stream},
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

/// Measures the ceilings: medians of `runs`, over buffers well past any cache.
///
/// # Errors
/// [`crate::Error::Device`] when a launch fails.
pub fn ceilings(gpu: &Gpu, runs: usize) -> Result<Ceilings> {
    let (read_gbps, copy_gbps) = stream(gpu, runs)?;
    Ok(Ceilings {
        fma_gflops: fma(gpu, runs)?,
        read_gbps,
        copy_gbps,
    })
}

/// How long a ceiling kernel should run at least, in ms, for launches not to count.
const LEAST_MS: f64 = 20.0;
/// The most that one launch may loop; see [`crate::Caps::loop_budget`].
const MOST_ITERATIONS: u32 = 32_768;

fn fma(gpu: &Gpu, runs: usize) -> Result<f64> {
    let mut workgroups = 256u32;
    let mut iterations = 512u32;
    // Grow the work until a launch takes long enough to time.
    loop {
        let y = gpu.empty(DType::F32, [u64::from(workgroups)])?;
        let params = ceiling_fma::Params {
            iterations,
            a: 0.999,
            b: 0.001,
        };
        let call = gpu.engine().single(
            ceiling_fma::Variant {}.into(),
            &params.bytes(),
            [workgroups, 1, 1],
            &[(Slot::Y, y.buffer())],
        )?;
        let operations = ceiling_fma::OPERATIONS as f64
            * f64::from(iterations)
            * f64::from(workgroups)
            * f64::from(ceiling_fma::WORKGROUP);
        let calls = [call];
        let ms = time(gpu, &calls, 1)?.median();
        if ms >= LEAST_MS || (iterations == MOST_ITERATIONS && workgroups >= 1 << 14) {
            let ms = time(gpu, &calls, runs)?.median();
            return Ok(operations / ms / 1e6);
        }
        if iterations < MOST_ITERATIONS {
            iterations *= 2;
        } else {
            workgroups *= 2;
        }
    }
}

fn stream(gpu: &Gpu, runs: usize) -> Result<(f64, f64)> {
    // As large as one binding may be, within reason: caches are smaller.
    let bytes = gpu.engine().caps().max_binding_bytes.min(512 << 20);
    let vectors = bytes / 16 / ceiling_stream::VECTORS * ceiling_stream::VECTORS;
    let x = gpu.empty(DType::F32, [vectors * 4])?;
    let y = gpu.empty(DType::F32, [vectors * 4])?;
    let rate = |copy: bool, y: &Tensor, bytes: u64| -> Result<f64> {
        let kernel: Kernel = ceiling_stream::Variant { copy }.into();
        let params = ceiling_stream::Params {
            vectors: vectors as u32,
        };
        let workgroups = vectors / ceiling_stream::VECTORS;
        let side = workgroups.min(65_535);
        let grid = [side as u32, workgroups.div_ceil(side) as u32, 1];
        let call = gpu.engine().single(
            kernel,
            &params.bytes(),
            grid,
            &[(Slot::X, x.buffer()), (Slot::Y, y.buffer())],
        )?;
        let ms = time(gpu, &[call], runs)?.median();
        Ok(bytes as f64 / ms / 1e6)
    };
    let read = rate(false, &y, vectors * 16)?;
    let copy = rate(true, &y, vectors * 32)?;
    Ok((read, copy))
}
