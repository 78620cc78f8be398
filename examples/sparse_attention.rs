//! Block-sparse attention from the selection to the output, on the device: queries and keys are pooled by blocks, each
//! block of queries keeps the blocks of keys that score best, and attention reads those alone. Nothing comes back to
//! the host in between, and the index may serve further calls, as that of another layer or step.
//!
//! ```sh
//! cargo run --release --example sparse_attention
//! cargo run --release --example sparse_attention -- 2048 4096
//! ```
//!
//! The numbers after `--` are lengths of sequences.

use std::{error::Error, time::Instant};

use foveate::{
    Attention, AttentionArgs, BlockMask, Call, Causal, Gpu, Layout, Op, Pool, PoolArgs, Route,
    RouteArgs, RouteScores, RouteScoresArgs, Tensor, Visible, reference,
};

const HEADS: u64 = 4;
const DIM: u64 = 64;
const BLOCK: u64 = 64;
/// Blocks of keys that each block of queries keeps: an eighth, and a sixteenth, of what causal queries among 16,384
/// see.
const KEPT: [u64; 2] = [16, 8];
const RUNS: usize = 5;

/// Queries, keys, values and outputs.
struct Tensors {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dense: Tensor,
    sparse: Tensor,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut lengths = std::env::args()
        .skip(1)
        .map(|length| length.parse())
        .collect::<Result<Vec<u64>, _>>()?;
    if lengths.is_empty() {
        lengths = vec![2048, 4096, 8192, 16_384];
    }
    let gpu = Gpu::open(None)?;
    println!("{} through {}", gpu.info().name, gpu.info().backend);
    println!(
        "{HEADS} heads of {DIM} dims, causal, blocks of {BLOCK}; medians of {RUNS} runs, in ms\n"
    );
    println!("  length  kept  attended     dense    select    attend   of dense      error");
    for length in lengths {
        let shape = [1, HEADS, length, DIM];
        let noise = |seed| reference::noise(seed, shape.iter().product::<u64>() as usize);
        // In an app, earlier layers write these on the device.
        let tensors = Tensors {
            q: gpu.upload(&noise(1), shape)?,
            k: gpu.upload(&noise(2), shape)?,
            v: gpu.upload(&noise(3), shape)?,
            dense: gpu.allocate(Layout::f32(shape))?,
            sparse: gpu.allocate(Layout::f32(shape))?,
        };
        let dense = median(&gpu, &[attend(&gpu, &tensors, None)?])?;
        for kept in KEPT {
            let (bits, counts, select) = selection(&gpu, &tensors, kept)?;
            let attend = attend(&gpu, &tensors, Some(&bits))?;
            let select_ms = median(&gpu, &select)?;
            let both: Vec<Call> = select.into_iter().chain([attend]).collect();
            let both_ms = median(&gpu, &both)?;
            let blocks = length.div_ceil(BLOCK);
            let visible = HEADS * blocks * (blocks + 1) / 2;
            let taken: u64 = gpu
                .download_u32(&counts)?
                .iter()
                .map(|&n| u64::from(n))
                .sum();
            println!(
                "{length:8} {kept:5} {:8.1} % {dense:9.1} {select_ms:9.1} {:9.1} {:10.3} {:10.1e}",
                100.0 * taken as f64 / visible as f64,
                both_ms - select_ms,
                both_ms / dense,
                error(&gpu, &tensors, &bits)?,
            );
        }
    }
    Ok(())
}

/// The calls that choose the blocks, and what they write: bits, and how many blocks each row kept.
fn selection(
    gpu: &Gpu,
    tensors: &Tensors,
    kept: u64,
) -> Result<(Tensor, Tensor, Vec<Call>), Box<dyn Error>> {
    let bind = |op: Op, args: foveate::ops::Args<'_>| gpu.engine().plan(&op)?.bind(args);
    let mut calls = Vec::new();
    let mut pooled = Vec::new();
    for x in [&tensors.q, &tensors.k] {
        let op = Pool::new(x.layout().clone(), BLOCK);
        let y = gpu.allocate(op.y.clone())?;
        let args = PoolArgs {
            x: x.view(),
            y: y.view(),
            block_starts: None,
            kv_len: None,
        };
        calls.push(bind(op.into(), args.into())?);
        pooled.push(y);
    }
    let [q, k] = [&pooled[0], &pooled[1]];
    let op = RouteScores::new(q.layout().clone(), k.layout().clone());
    let scores = gpu.allocate(op.out.clone())?;
    let args = RouteScoresArgs {
        q: q.view(),
        k: k.view(),
        k_min: None,
        head_weights: None,
        out: scores.view(),
    };
    calls.push(bind(op.into(), args.into())?);

    let op = Route::new(scores.layout().clone(), kept)
        .blocks(BLOCK, BLOCK)
        .visible(Visible::Causal)
        .own()
        .with_counts()
        .bits_only();
    let missing = "the op was made with it";
    let bits = gpu.allocate(op.bits.clone().ok_or(missing)?)?;
    let counts = gpu.allocate(op.counts.clone().ok_or(missing)?)?;
    let mut args = RouteArgs::new(scores.view());
    args.bits = Some(bits.view());
    args.counts = Some(counts.view());
    calls.push(bind(op.into(), args.into())?);
    Ok((bits, counts, calls))
}

/// Causal attention, to the blocks that an index takes where there is one.
fn attend(gpu: &Gpu, tensors: &Tensors, bits: Option<&Tensor>) -> foveate::Result<Call> {
    let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v];
    let mut op = Attention::new(q.layout().clone(), k.layout().clone(), v.layout().clone())
        .causal(Causal::TopLeft);
    op.block_mask = bits.map(|bits| BlockMask {
        bits: bits.layout().clone(),
        block_q: BLOCK,
        block_kv: BLOCK,
    });
    let o = match bits {
        Some(_) => &tensors.sparse,
        None => &tensors.dense,
    };
    let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
    args.blocks = bits.map(Tensor::view);
    gpu.engine().plan(&op.into())?.bind(args)
}

/// The median time of calls that run one after another in one submission.
fn median(gpu: &Gpu, calls: &[Call]) -> foveate::Result<f64> {
    // The first run compiles.
    gpu.run_all(calls)?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = Instant::now();
        gpu.run_all(calls)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

/// The largest error of some rows of the first head, relative to their RMS, against the formula in f64 on the blocks
/// that the device chose.
fn error(gpu: &Gpu, tensors: &Tensors, bits: &Tensor) -> Result<f64, Box<dyn Error>> {
    const ROWS: usize = 16;
    let [q, k, v, o] = [&tensors.q, &tensors.k, &tensors.v, &tensors.sparse];
    let (q, k, v, o) = (
        gpu.download(q)?,
        gpu.download(k)?,
        gpu.download(v)?,
        gpu.download(o)?,
    );
    let words = gpu.download_u32(bits)?;
    let (dim, block) = (DIM as usize, BLOCK as usize);
    let length = q.len() / HEADS as usize / dim;
    let per_row = words.len() / HEADS as usize / length.div_ceil(block);
    let scale = 1.0 / (DIM as f64).sqrt();
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for row in (0..ROWS).map(|n| n * (length - 1) / (ROWS - 1)) {
        let own = &words[row / block * per_row..][..per_row];
        let keys = (0..=row).filter(|key| own[key / block / 32] >> (key / block % 32) & 1 == 1);
        let dot = |key: usize| -> f64 {
            let pairs = q[row * dim..][..dim].iter().zip(&k[key * dim..][..dim]);
            pairs
                .map(|(&x, &y)| f64::from(x) * f64::from(y))
                .sum::<f64>()
                * scale
        };
        let weights: Vec<(usize, f64)> = keys.map(|key| (key, dot(key).exp())).collect();
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        for d in 0..dim {
            let sum: f64 = weights
                .iter()
                .map(|(key, w)| w * f64::from(v[key * dim + d]))
                .sum();
            expected.push(sum / total);
            found.push(o[row * dim + d]);
        }
    }
    Ok(reference::error(&found, &expected))
}
