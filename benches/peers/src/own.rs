//! foveate's own worker: the library on resident tensors, timed as the peers are.

use std::{
    io::{self, BufRead, Write},
    time::Instant,
};

use foveate::{
    Call, Gpu, adapters,
    bench::{Tensors, Workload},
    choose,
};

use crate::{
    Error, Result,
    protocol::{Answer, Job, RUN, Ready},
    task,
};

/// Runs that do not count, before the worker is ready.
const WARM_UPS: usize = 3;

/// Serves one job from standard input on standard output.
///
/// # Errors
/// When standard input or output is gone; what the job runs into is an answer.
pub fn serve(adapter: Option<&str>) -> Result<()> {
    let mut lines = io::stdin().lock().lines();
    let gone = |error: io::Error| Error::Protocol(error.to_string());
    let Some(line) = lines.next().transpose().map_err(gone)? else {
        return Err(Error::Protocol("no job on standard input".into()));
    };
    let prepared = serde_json::from_str(&line)
        .map_err(|error| Error::Protocol(error.to_string()))
        .and_then(|job| prepare(&job, adapter));
    let (gpu, call) = match prepared {
        Ok((gpu, call, ready)) => {
            say(&Answer::Ready(ready))?;
            (gpu, call)
        }
        Err(error) => return fail(&error),
    };
    for line in lines {
        if line.map_err(gone)? == RUN {
            match run(&gpu, &call) {
                Ok(ms) => say(&Answer::Run { ms })?,
                Err(error) => return fail(&error),
            }
        }
    }
    Ok(())
}

fn say(answer: &Answer) -> Result<()> {
    let gone = |error: &dyn std::fmt::Display| Error::Protocol(error.to_string());
    let text = serde_json::to_string(answer).map_err(|error| gone(&error))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| gone(&error))
}

fn fail(error: &Error) -> Result<()> {
    say(&Answer::Failed {
        failed: error.to_string(),
        missing: false,
    })
}

fn prepare(job: &Job, adapter: Option<&str>) -> Result<(Gpu, Call, Ready)> {
    let mut gpu = Gpu::on(&choose(&adapters(), adapter)?)?;
    gpu.measure()?;
    let inputs = job
        .inputs
        .iter()
        .map(|path| task::read(path))
        .collect::<Result<Vec<_>>>()?;
    if matches!(&job.workload, Workload::LinearAttention(shape) if shape.state) {
        return Err(Error::Argument {
            argument: "state",
            message: "a carried state changes from run to run; measure it with foveate bench"
                .into(),
        });
    }
    let op = Workload::op(&job.workload);
    let tensors = Tensors::upload(&gpu, &op, &inputs)?;
    let plan = gpu.engine().plan(&op)?;
    let call = tensors.bind(&plan)?;
    for _ in 0..WARM_UPS {
        gpu.run(&call)?;
    }
    task::write(&job.output, &gpu.download(tensors.output())?)?;
    let ready = Ready {
        ready: true,
        version: task::foveate_version(),
        device: format!("{} ({})", gpu.info().name, gpu.info().backend),
        note: format!("schedule {}", plan.outline().schedule),
        copy_gbps: None,
    };
    Ok((gpu, call, ready))
}

fn run(gpu: &Gpu, call: &Call) -> Result<f64> {
    let start = Instant::now();
    gpu.run(call)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
