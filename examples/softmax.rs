//! Row softmax in a few lines, and its logarithm, on whatever GPU is there.
//!
//! ```sh
//! cargo run --release --example softmax
//! ```

use foveate::{Gpu, reference};

const ROWS: u64 = 1000;
const COLUMNS: u64 = 777;

fn main() -> foveate::Result<()> {
    let gpu = Gpu::open(None)?;
    println!("{} through {}", gpu.info().name, gpu.info().backend);

    let logits: Vec<f32> = (0..ROWS * COLUMNS)
        .map(|i| 4.0 * (i as f32 * 0.37).sin())
        .collect();
    let x = gpu.upload(&logits, [ROWS, COLUMNS])?;

    // Along axis 1; `log` and `scale` are options of the op.
    let y = gpu.softmax(&x, 1, |op| op)?;
    let log_y = gpu.softmax(&x, 1, |op| op.log().scale(0.5))?;

    let y = gpu.download(&y)?;
    let sum: f32 = y[..COLUMNS as usize].iter().sum();
    println!("the weights of the first row sum to {sum}");

    // The same on the CPU, in f64.
    let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
    let shape = [ROWS as usize, COLUMNS as usize];
    let want = reference::softmax(&logits, &shape, 1, 1.0, false);
    let want_log = reference::softmax(&logits, &shape, 1, 0.5, true);
    let error = reference::error(&y, &want);
    let log_error = reference::error(&gpu.download(&log_y)?, &want_log);
    println!("softmax: error {error:.1e}; log-softmax with scale 0.5: error {log_error:.1e}");
    assert!(
        error < 1e-5 && log_error < 1e-5,
        "the device computes wrong"
    );
    Ok(())
}
