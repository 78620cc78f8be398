//! Fixtures made by other people's code, run through the public API: what `foveate verify` does.
//!
//! A case ([`Case`]) holds inputs, expected outputs and a tolerance. Its family's file here turns
//! it into an op with inputs and expected values (a `Problem`), on the host and with nothing but
//! the case's definition and its inputs; [`run`] computes it on a device and compares.

mod biformer;
mod block_sparse;
mod case;
mod clusters;
mod coca;
mod compare;
mod conv;
mod davit;
mod device;
mod eviction;
mod fla;
mod flex;
mod forms;
mod gates;
mod halonet;
mod hashed;
mod hilo;
#[cfg(test)]
mod host;
mod landmark;
mod linear;
mod linear_attention;
mod longheads;
mod moh;
mod natten;
mod onnx;
mod onnx_linear;
mod outputs;
mod pairs;
mod performer;
mod problem;
mod relative;
mod report;
mod routed;
mod scan;
mod streaming;
mod torch;

pub use case::{Case, carried, load};
pub use device::{Device, Host};
pub use report::{FamilyRow, Listed, Status, Summary, Verdict};

use std::collections::BTreeMap;

use safetensors::Dtype;

use case::Values;
use device::{Piece, Prepared};
use outputs::{Held, Outputs};
use problem::{Call, Input, Problem, Source};

use crate::{
    Attention, DType, Error, Layout, Op, Result, Tuning,
    ops::{Slot, dims},
};

/// Runs a case on a device and compares. `tuning` holds for attention.
pub fn run(device: impl Into<Device>, case: &Case, tuning: &Tuning) -> Verdict {
    let device = device.into();
    let f16 = device.caps().f16;
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
    match compute(&device, &problem, tuning) {
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
    device: impl Into<Device>,
    cases: &[Case],
    tuning: &Tuning,
    listed: &Listed,
    mut after: impl FnMut(&Verdict),
) -> Summary {
    let device = device.into();
    let mut summary = Summary::default();
    for case in cases {
        let verdict = listed.judge(run(&device, case, tuning));
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

/// Runs the calls in order. What later calls take of earlier ones stays on the device.
fn compute(device: &Device, problem: &Problem, tuning: &Tuning) -> Result<Computed> {
    let mut computed = Computed::default();
    computed.outputs.shared = shared_buffers(device, problem)?;
    for (number, call) in problem.calls.iter().enumerate() {
        let plan = match &call.op {
            Op::Attention(_) => device.prepare(&call.op, tuning)?,
            _ => device.prepare(&call.op, &Tuning::default())?,
        };
        let tensors = call
            .op
            .tensors()
            .into_iter()
            .map(|(slot, layout)| {
                let tensor = bound(device, call, slot, layout, &computed.outputs)?;
                Ok((slot, tensor))
            })
            .collect::<Result<Vec<_>>>()?;
        device.launch(&plan, &tensors)?;
        if let Op::Attention(op) = &call.op
            && (problem.expected.iter())
                .any(|(_, source)| matches!(source, Source::Visible(n) if *n == number))
        {
            let seen = probe(device, &plan, op, &tensors)?;
            computed.visible.insert(number, seen);
        }
        let held = tensors.into_iter().map(|(slot, tensor)| {
            let own = !matches!(call.input(slot), Some(Input::Shared(_)));
            let tensor = if call.op.is_output(slot) && own {
                in_memory(&tensor)
            } else {
                tensor
            };
            (slot, Held::new(device, tensor))
        });
        computed.outputs.calls.push(held.collect());
    }
    Ok(computed)
}

/// The buffers that several calls write parts of, each as long as its longest layout.
fn shared_buffers(device: &Device, problem: &Problem) -> Result<BTreeMap<usize, Held>> {
    let mut layouts: BTreeMap<usize, Layout> = BTreeMap::new();
    for call in &problem.calls {
        for (slot, layout) in call.op.tensors() {
            if let Some(Input::Shared(number)) = call.input(slot) {
                let longest = layouts.entry(*number).or_insert_with(|| layout.clone());
                if layout.end_bytes() > longest.end_bytes() {
                    *longest = layout.clone();
                }
            }
        }
    }
    let buffers = layouts.into_iter();
    buffers
        .map(|(number, layout)| {
            let memory = Layout::new(layout.dtype, [layout.end_bytes() / layout.dtype.size()]);
            Ok((number, Held::new(device, blank(device, &memory)?)))
        })
        .collect()
}

/// A tensor for an output. What a kernel leaves unwritten must not look like a zero: 1.3e36, f16 6.1e4.
fn blank(device: &Device, layout: &Layout) -> Result<Piece> {
    let tensor = device.allocate(layout)?;
    device.write(&tensor, &vec![0x7b; layout.end_bytes() as usize])?;
    Ok(tensor)
}

/// The tensor that a call binds in a slot.
fn bound(
    device: &Device,
    call: &Call,
    slot: Slot,
    layout: &Layout,
    outputs: &Outputs,
) -> Result<Piece> {
    let missing = || Error::invalid(slot.name(), "has no values", "give the problem this input");
    match call.input(slot) {
        Some(Input::Shared(number)) => Ok(outputs
            .shared_tensor(*number)
            .ok_or_else(missing)?
            .with_layout(layout.clone())),
        _ if call.op.is_output(slot) => blank(device, layout),
        Some(Input::Output(call, source)) => {
            Ok(outputs.tensor(*call, *source)?.with_layout(layout.clone()))
        }
        Some(Input::Given(values)) => device.upload(slot, layout, values),
        Some(Input::Made(make)) => {
            device.upload(slot, layout, &problem::make(make, slot, outputs)?)
        }
        None => Err(missing()),
    }
}

/// The elements of a tensor in the order in which they lie in memory, which is that of a case.
fn in_memory(tensor: &Piece) -> Piece {
    let layout = tensor.layout();
    tensor.with_layout(Layout::new(layout.dtype, [layout.elements()]))
}

/// Asks the device which pairs an attention sees: with keys of 0 and one-hot values the output is the
/// weights of as many keys as values have dims, so a run for each such group of keys tells all of them.
fn probe(
    device: &Device,
    plan: &Prepared,
    op: &Attention,
    tensors: &[(Slot, Piece)],
) -> Result<Seen> {
    let [batch, heads, queries, width] = dims(&op.o);
    let [_, kv_heads, keys, _] = dims(&op.v);
    let shape = [batch, heads, queries, keys];
    let elements = problem::made(&shape)
        .map_err(|message| Error::unsupported("a stored mask", message, "take a smaller case"))?;
    let mut pairs = vec![false; elements as usize];
    let mut tensors = tensors.to_vec();
    for (slot, tensor) in &mut tensors {
        if *slot == Slot::K {
            *tensor = device.upload(*slot, &op.k, &zeros(&op.k))?;
        } else if op.lse.is_some() && *slot == Slot::Lse || *slot == Slot::O {
            // What the call gave stays as it is.
            *tensor = blank(device, &tensor.layout().clone())?;
        }
    }
    for first in (0..keys).step_by(width.max(1) as usize) {
        let mut one_hot = zeros(&op.v);
        if let Values::Real(values) = &mut one_hot {
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
        let one_hot = device.upload(Slot::V, &op.v, &one_hot)?;
        for (slot, tensor) in &mut tensors {
            if *slot == Slot::V {
                *tensor = one_hot.clone();
            }
        }
        device.launch(plan, &tensors)?;
        let Some((_, o)) = tensors.iter().find(|(slot, _)| *slot == Slot::O) else {
            continue;
        };
        let Values::Real(o) = device.download(o)? else {
            continue;
        };
        for row in 0..batch * heads * queries {
            for dim in 0..width.min(keys - first) {
                let weight = o.get((row * width + dim) as usize).copied();
                if let Some(pair) = pairs.get_mut((row * keys + first + dim) as usize) {
                    *pair = weight != Some(0.0);
                }
            }
        }
    }
    Ok(Seen { shape, pairs })
}

/// Zeros for all of a layout's buffer.
fn zeros(layout: &Layout) -> Values {
    let places = layout.end_bytes() / layout.dtype.size();
    Values::Real(vec![0.0; places as usize])
}
