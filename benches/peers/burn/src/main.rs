//! burn's attention and softmax on its wgpu backend, as a worker: see the protocol in ../README.md.

use std::{
    error::Error,
    fs,
    io::{self, BufRead, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Instant,
};

use burn_backend::{
    Backend, TensorData,
    ops::{ActivationOps, AttentionModuleOptions, FloatTensorOps},
};
use burn_cubecl::{
    CubeBackend, CubeDevice,
    kernel::attention::{AttentionStrategy, attention},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// As pinned in Cargo.toml.
const VERSION: &str = "0.23.0-pre.1";
const WARM_UPS: usize = 3;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Tensor = burn_cubecl::tensor::CubeTensor;

#[derive(Deserialize)]
struct Job {
    workload: Workload,
    variant: String,
    inputs: Vec<PathBuf>,
    output: PathBuf,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Workload {
    Attention {
        batch: usize,
        q_heads: usize,
        kv_heads: usize,
        q_len: usize,
        kv_len: usize,
        head_dim: usize,
        value_dim: Option<usize>,
        causal: String,
    },
    Softmax {
        shape: Vec<usize>,
        axis: usize,
        log: bool,
    },
}

fn main() {
    let result = catch_unwind(AssertUnwindSafe(work));
    let failed = match result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            format!("panicked: {}", text.unwrap_or("without words"))
        }
    };
    // With nobody left to read it there is nothing more to do.
    let _ = say(&json!({ "failed": failed }));
    // Not a return: burn's threads may hang.
    std::process::exit(1);
}

fn say(answer: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{answer}")?;
    out.flush()
}

fn work() -> Result<()> {
    let mut lines = io::stdin().lock().lines();
    let job: Job = serde_json::from_str(&lines.next().ok_or("no job on stdin")??)?;
    let device = CubeDevice::wgpu(Default::default())?;
    let mut run = prepare(&job, &device)?;

    for _ in 0..WARM_UPS {
        run()?;
        CubeBackend::sync(&device)?;
    }
    // Not of the first run, which compares kernels.
    let output = burn_backend::read_sync(CubeBackend::float_into_data(run()?))?
        .try_to_vec::<f32>()
        .map_err(|error| format!("{error:?}"))?;
    let bytes: Vec<u8> = output.iter().flat_map(|x| x.to_le_bytes()).collect();
    fs::write(&job.output, bytes)?;

    let mut timed = || -> Result<f64> {
        let start = Instant::now();
        let _output = run()?;
        CubeBackend::sync(&device)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    say(&json!({
        "ready": true,
        "version": VERSION,
        "device": format!("{}, its default adapter", CubeBackend::name(&device)),
    }))?;
    for line in lines {
        if line? == "run" {
            say(&json!({ "ms": timed()? }))?;
        }
    }
    Ok(())
}

/// The op on resident tensors.
fn prepare(job: &Job, device: &CubeDevice) -> Result<Box<dyn FnMut() -> Result<Tensor>>> {
    let upload = |place: usize, shape: Vec<usize>| -> Result<Tensor> {
        let path = job.inputs.get(place).ok_or("too few inputs")?;
        let data = TensorData::new(read(path)?, shape);
        let tensor = CubeBackend::float_from_data(data, device);
        CubeBackend::sync(device)?;
        Ok(tensor)
    };
    match &job.workload {
        Workload::Attention {
            batch,
            q_heads,
            kv_heads,
            q_len,
            kv_len,
            head_dim,
            value_dim,
            causal,
        } => {
            if causal != "none" && q_len != kv_len {
                return Err("causal with q_len other than kv_len is not written here".into());
            }
            let q = upload(0, vec![*batch, *q_heads, *q_len, *head_dim])?;
            let k = upload(1, vec![*batch, *kv_heads, *kv_len, *head_dim])?;
            let v = upload(
                2,
                vec![*batch, *kv_heads, *kv_len, value_dim.unwrap_or(*head_dim)],
            )?;
            let options = AttentionModuleOptions {
                is_causal: causal != "none",
                ..Default::default()
            };
            let strategy: fn() -> AttentionStrategy = match job.variant.as_str() {
                "auto" => AttentionStrategy::default,
                "flash" => || AttentionStrategy::FlashUnit,
                "fallback" => || AttentionStrategy::Fallback,
                other => return Err(format!("no variant is called {other}").into()),
            };
            Ok(Box::new(move || {
                attention(
                    q.clone(),
                    k.clone(),
                    v.clone(),
                    None,
                    None,
                    options,
                    strategy(),
                )
                .map_err(|error| format!("{error:?}").into())
            }))
        }
        Workload::Softmax { shape, axis, log } => {
            let (axis, log) = (*axis, *log);
            let x = upload(0, shape.clone())?;
            Ok(Box::new(move || {
                Ok(if log {
                    CubeBackend::log_softmax(x.clone(), axis)
                } else {
                    CubeBackend::softmax(x.clone(), axis)
                })
            }))
        }
    }
}

fn read(path: &Path) -> Result<Vec<f32>> {
    let bytes = fs::read(path)?;
    Ok(bytes
        .chunks_exact(4)
        .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}
