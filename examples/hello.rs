//! Attention in a few lines, on whatever GPU is there.
//!
//! ```sh
//! cargo run --release --example hello
//! ```

use foveate::{Causal, Gpu};

fn main() -> foveate::Result<()> {
    let gpu = Gpu::open(None)?;
    println!("{} through {}", gpu.info().name, gpu.info().backend);

    // [batch, heads, seq, head_dim]
    let shape = [1, 8, 128, 64];
    let wave =
        |step: f32| -> Vec<f32> { (0..8 * 128 * 64).map(|i| (i as f32 * step).sin()).collect() };
    let q = gpu.upload(&wave(0.37), shape)?;
    let k = gpu.upload(&wave(0.53), shape)?;
    let v = gpu.upload(&wave(0.71), shape)?;

    let o = gpu.attention(&q, &k, &v, |op| op.causal(Causal::TopLeft))?;
    let o = gpu.download(&o)?;
    println!("first outputs: {:?}", &o[..4]);
    Ok(())
}
