//! Fixtures made by other people's code, run through the public API: what `foveate verify` does.
//!
//! A case ([`Case`]) holds inputs, expected outputs and a tolerance. Its family's file here turns
//! it into an op with inputs and expected values (a `Problem`), on the host and with nothing but
//! the case's definition and its inputs; [`run`] computes it on a device and compares.

mod case;
mod compare;
mod flex;
mod onnx;
mod problem;
mod report;
mod torch;

pub use case::{Case, carried, load};
pub use report::{FamilyRow, Listed, Status, Summary, Verdict};

use problem::Problem;

use crate::{
    DType, Error, Gpu, Layout, Op, Result, Tensor, Tuning,
    ops::{Args, Slot},
};

/// Runs a case on a device and compares. `tuning` holds for attention.
pub fn run(gpu: &Gpu, case: &Case, tuning: &Tuning) -> Verdict {
    let f16 = gpu.engine().caps().f16;
    let half = if f16 { DType::F16 } else { DType::F32 };
    let problem = match problem::prepare(case, half) {
        Ok(problem) => problem,
        Err(reason) => return Verdict::new(case, Status::Unsupported, None, reason),
    };
    let mut remarks = Vec::new();
    if case.op.ends_with("_fwd_bwd") {
        remarks.push("backward: unsupported".to_owned());
    }
    if problem.half && !f16 {
        remarks.push("f16 run as f32: the adapter has no f16".to_owned());
    }
    match compute(gpu, &problem, tuning) {
        Ok(outputs) => {
            let (error, complaints) = compare::outputs(case, &problem, &outputs);
            if complaints.is_empty() {
                Verdict::new(case, Status::Passed, Some(error), remarks.join("; "))
            } else {
                Verdict::new(case, Status::Failed, Some(error), complaints.join("; "))
            }
        }
        Err(error @ Error::Unsupported { .. }) => {
            Verdict::new(case, Status::Unsupported, None, error.to_string())
        }
        Err(error) => Verdict::new(case, Status::Failed, None, error.to_string()),
    }
}

/// Runs cases one after the other; `listed` are those that no op covers yet. `after` is told each
/// result.
pub fn run_all(
    gpu: &Gpu,
    cases: &[Case],
    tuning: &Tuning,
    listed: &Listed,
    mut after: impl FnMut(&Verdict),
) -> Summary {
    let mut summary = Summary::default();
    for case in cases {
        let verdict = listed.judge(run(gpu, case, tuning));
        after(&verdict);
        summary.add(verdict);
    }
    summary
}

/// The outputs, in the order in which they lie in memory, which is that of the case.
fn compute(gpu: &Gpu, problem: &Problem, tuning: &Tuning) -> Result<Vec<(Slot, Vec<f32>)>> {
    let tensors = problem
        .op
        .tensors()
        .into_iter()
        .map(|(slot, layout)| {
            let tensor = if slot.is_output() {
                let tensor = gpu.allocate(layout.clone())?;
                // What a kernel leaves unwritten must not look like a zero: 1.3e36, f16 6.1e4.
                gpu.write(&tensor, &vec![0x7b; layout.end_bytes() as usize])?;
                tensor
            } else {
                problem.upload(gpu, slot, layout)?
            };
            Ok((slot, tensor))
        })
        .collect::<Result<Vec<(Slot, Tensor)>>>()?;
    let plan = match &problem.op {
        Op::Attention(_) => gpu.engine().plan_with(&problem.op, tuning)?,
        _ => gpu.engine().plan(&problem.op)?,
    };
    let args = Args(tensors.iter().map(|(slot, t)| (*slot, t.view())).collect());
    gpu.run(&plan.bind(args)?)?;
    tensors
        .iter()
        .filter(|(slot, _)| slot.is_output())
        .map(|(slot, tensor)| {
            let layout = tensor.layout();
            let memory = Layout::new(layout.dtype, [layout.elements()]);
            Ok((*slot, gpu.download(&tensor.with_layout(memory))?))
        })
        .collect()
}
