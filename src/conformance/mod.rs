//! Fixtures made by other people's code, run through the public API: what `foveate verify` does.
//!
//! A case ([`Case`]) holds inputs, expected outputs and a tolerance. Its family's file here turns
//! it into an op with inputs and expected values (a `Problem`), on the host and with nothing but
//! the case's definition and its inputs; [`run`] computes it on a device and compares.

mod case;
mod coca;
mod compare;
mod conv;
mod davit;
mod fla;
mod flex;
mod forms;
mod gates;
mod halonet;
mod hilo;
#[cfg(test)]
mod host;
mod linear;
mod linear_attention;
mod moh;
mod natten;
mod onnx;
mod onnx_linear;
mod pairs;
mod performer;
mod problem;
mod relative;
mod report;
mod scan;
mod streaming;
mod torch;

pub use case::{Case, carried, load};
pub use report::{FamilyRow, Listed, Status, Summary, Verdict};

use std::collections::BTreeMap;

use safetensors::Dtype;

use case::Values;
use problem::{Call, Input, Outputs, Problem, Source};

use crate::{
    Attention, DType, Error, Gpu, Layout, Op, Plan, Result, Tensor, Tuning,
    ops::{Args, Slot, dims},
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
    match problem.storage {
        Some(Dtype::F16) if !f16 => {
            remarks.push("f16 run as f32: the adapter has no f16".to_owned());
        }
        Some(Dtype::BF16) => {
            remarks.push("bf16 run as f32: outputs within the roundings of bf16".to_owned());
        }
        _ => {}
    }
    let left_out = problem.left_out.iter();
    remarks.extend(left_out.map(|name| format!("{name}: unsupported")));
    match compute(gpu, &problem, tuning) {
        Ok(computed) => {
            let (error, complaints) = compare::outputs(case, &problem, &computed);
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

/// What a problem's calls gave.
#[derive(Default)]
struct Computed {
    outputs: Outputs,
    /// The pairs of query and key that an attention sees, row-major, by its call.
    visible: BTreeMap<usize, Seen>,
}

/// Which of `[batch, heads, queries, keys]` are seen.
struct Seen {
    shape: [u64; 4],
    pairs: Vec<bool>,
}

fn compute(gpu: &Gpu, problem: &Problem, tuning: &Tuning) -> Result<Computed> {
    let mut computed = Computed::default();
    for (number, call) in problem.calls.iter().enumerate() {
        let plan = match &call.op {
            Op::Attention(_) => gpu.engine().plan_with(&call.op, tuning)?,
            _ => gpu.engine().plan(&call.op)?,
        };
        let inputs = given(call, &computed.outputs)?;
        let wanted = |slot| {
            let mut sources = problem.expected.iter().map(|(_, source)| source);
            sources.any(|source| matches!(source, Source::Call(n, s) if (*n, *s) == (number, slot)))
        };
        let outputs = launch(gpu, &plan, &call.op, &inputs, wanted)?;
        computed.outputs.0.push(outputs);
        if let Op::Attention(op) = &call.op
            && (problem.expected.iter())
                .any(|(_, source)| matches!(source, Source::Visible(n) if *n == number))
        {
            let seen = probe(gpu, &plan, op, &inputs)?;
            computed.visible.insert(number, seen);
        }
    }
    Ok(computed)
}

/// The elements of a call's inputs.
fn given(call: &Call, outputs: &Outputs) -> Result<Vec<(Slot, Values)>> {
    let values = call.inputs.iter().map(|(slot, input)| {
        let values = match input {
            Input::Given(values) => values.clone(),
            Input::Made(make) => make(outputs).map_err(|message| {
                Error::invalid(slot.name(), message, "give the call what it is made of")
            })?,
        };
        Ok((*slot, values))
    });
    values.collect()
}

/// Runs an op. Outputs come in the order in which they lie in memory, which is that of the case; inputs
/// that are wanted back, through their layouts.
fn launch(
    gpu: &Gpu,
    plan: &Plan,
    op: &Op,
    inputs: &[(Slot, Values)],
    wanted: impl Fn(Slot) -> bool,
) -> Result<Vec<(Slot, Vec<f32>)>> {
    let tensors = op
        .tensors()
        .into_iter()
        .map(|(slot, layout)| {
            let tensor = if op.is_output(slot) {
                let tensor = gpu.allocate(layout.clone())?;
                // What a kernel leaves unwritten must not look like a zero: 1.3e36, f16 6.1e4.
                gpu.write(&tensor, &vec![0x7b; layout.end_bytes() as usize])?;
                tensor
            } else {
                let values = inputs.iter().find(|(other, _)| *other == slot);
                let (_, values) = values.ok_or_else(|| {
                    Error::invalid(slot.name(), "has no values", "give the problem this input")
                })?;
                problem::upload(gpu, slot, layout, values)?
            };
            Ok((slot, tensor))
        })
        .collect::<Result<Vec<(Slot, Tensor)>>>()?;
    let args = Args(tensors.iter().map(|(slot, t)| (*slot, t.view())).collect());
    gpu.run(&plan.bind(args)?)?;
    tensors
        .iter()
        .filter(|(slot, _)| op.is_output(*slot) || wanted(*slot))
        .map(|(slot, tensor)| {
            let layout = tensor.layout();
            let memory = Layout::new(layout.dtype, [layout.elements()]);
            let read = if op.is_output(*slot) {
                tensor.with_layout(memory)
            } else {
                tensor.clone()
            };
            Ok((*slot, gpu.download(&read)?))
        })
        .collect()
}

/// Asks the device which pairs an attention sees: with keys of 0 and one-hot values the output is the
/// weights of as many keys as values have dims, so a run for each such group of keys tells all of them.
fn probe(gpu: &Gpu, plan: &Plan, op: &Attention, inputs: &[(Slot, Values)]) -> Result<Seen> {
    let [batch, heads, queries, width] = dims(&op.o);
    let [_, kv_heads, keys, _] = dims(&op.v);
    let shape = [batch, heads, queries, keys];
    let elements = problem::made(&shape)
        .map_err(|message| Error::unsupported("a stored mask", message, "take a smaller case"))?;
    let mut pairs = vec![false; elements as usize];
    let mut inputs = inputs.to_vec();
    for (slot, values) in &mut inputs {
        if let (Slot::K, Values::Real(values)) = (slot, values) {
            values.fill(0.0);
        }
    }
    for first in (0..keys).step_by(width.max(1) as usize) {
        for (slot, values) in &mut inputs {
            let (Slot::V, Values::Real(values)) = (slot, values) else {
                continue;
            };
            values.fill(0.0);
            for head in 0..batch * kv_heads {
                for dim in 0..width.min(keys - first) {
                    let place = [head / kv_heads, head % kv_heads, first + dim, dim];
                    let steps = place.iter().zip(&op.v.strides);
                    let at = op.v.offset + steps.map(|(place, stride)| place * stride).sum::<u64>();
                    if let Some(value) = values.get_mut(at as usize) {
                        *value = 1.0;
                    }
                }
            }
        }
        let op_o = &op.o;
        let outputs = launch(gpu, plan, &op.clone().into(), &inputs, |_| false)?;
        let Some((_, o)) = outputs.into_iter().find(|(slot, _)| *slot == Slot::O) else {
            continue;
        };
        for row in 0..batch * heads * queries {
            for dim in 0..width.min(keys - first) {
                let place = [
                    row / (heads * queries),
                    row / queries % heads,
                    row % queries,
                    dim,
                ];
                let steps = place.iter().zip(&op_o.strides);
                let at = op_o.offset + steps.map(|(place, stride)| place * stride).sum::<u64>();
                let weight = o.get(at as usize).copied().unwrap_or(f32::NAN);
                if let Some(pair) = pairs.get_mut((row * keys + first + dim) as usize) {
                    *pair = weight != 0.0;
                }
            }
        }
    }
    Ok(Seen { shape, pairs })
}
