//! Problems computed on the host by the references: whether a case is understood, without a device.

use super::{
    Computed,
    case::{Case, Values, carried},
    compare, load,
    outputs::{Held, Outputs},
    problem::{self, Call, Input, Problem},
};
use crate::{
    DType, Layout, LinearAttention, Op,
    ops::Slot,
    reference::{self, LinearAttentionInputs},
};

/// Where the elements of a layout lie, in the order of its axes.
fn places(layout: &Layout) -> Vec<usize> {
    (0..layout.elements())
        .map(|number| {
            let mut rest = number;
            let mut at = layout.offset;
            for (len, stride) in layout.shape.iter().zip(&layout.strides).rev() {
                at += rest % len * stride;
                rest /= len;
            }
            at as usize
        })
        .collect()
}

/// The elements of a tensor as an op reads them.
fn read(layout: &Layout, values: &Values) -> Vec<f64> {
    let all: Vec<f64> = match values {
        Values::Real(values) => values.iter().map(|&x| x.into()).collect(),
        Values::Integer(values) => values.iter().map(|&x| x as f64).collect(),
        Values::Boolean(values) => values.iter().map(|&x| f64::from(x)).collect(),
    };
    places(layout).into_iter().map(|at| all[at]).collect()
}

/// An output as it lies in memory.
fn written(layout: &Layout, values: &[f64]) -> Vec<f32> {
    let mut memory = vec![f32::NAN; values.len()];
    for (at, &value) in places(layout).into_iter().zip(values) {
        memory[at] = match layout.dtype {
            DType::F16 => half::f16::from_f64(value).to_f32(),
            _ => value as f32,
        };
    }
    memory
}

fn linear_attention(op: &LinearAttention, inputs: &[(Slot, Vec<f64>)]) -> Vec<(Slot, Vec<f32>)> {
    let of = |slot| {
        let found = inputs.iter().find(|(other, _)| *other == slot);
        found.map(|(_, values)| &values[..])
    };
    let lens: Option<Vec<usize>> =
        of(Slot::KvLen).map(|lens| lens.iter().map(|&len| len as usize).collect());
    let [q, k, v] = [Slot::Q, Slot::K, Slot::V].map(|slot| of(slot).expect("an input"));
    let out = reference::linear_attention(&LinearAttentionInputs {
        decay: of(Slot::Decay),
        beta: of(Slot::Beta),
        read: of(Slot::Read),
        write: of(Slot::Write),
        bonus: of(Slot::Bonus),
        local_q: of(Slot::LocalQ),
        local_k: of(Slot::LocalK),
        bias: of(Slot::Bias),
        initial_state: of(Slot::InitialState),
        initial_sum: of(Slot::InitialSum),
        kv_len: lens.as_deref(),
        ..LinearAttentionInputs::of(op, q, k, v)
    });
    let mut outputs = vec![(Slot::O, written(&op.o, &out.o))];
    if let Some(layout) = &op.final_state {
        outputs.push((Slot::FinalState, written(layout, &out.state)));
    }
    if let Some(layout) = &op.final_sum {
        outputs.push((Slot::FinalSum, written(layout, &out.sum)));
    }
    outputs
}

/// The elements that a call reads in a slot.
fn given(call: &Call, slot: Slot, outputs: &Outputs) -> Option<Values> {
    match call.input(slot)? {
        Input::Given(values) => Some(values.clone()),
        Input::Made(make) => Some(problem::make(make, slot, outputs).expect("made")),
        Input::Output(call, source) => {
            let values = outputs.of(*call, *source).expect("an output");
            Some(Values::Real(values.to_vec()))
        }
        Input::Shared(_) => panic!("a shared buffer"),
    }
}

/// What the references make of a problem; none where it has other ops than linear attention and softmax.
fn compute(problem: &Problem) -> Option<Computed> {
    let mut computed = Computed::default();
    for call in &problem.calls {
        call.op.check().expect("an op");
        let inputs: Vec<(Slot, Vec<f64>)> = call
            .op
            .tensors()
            .into_iter()
            .filter_map(|(slot, layout)| {
                let values = given(call, slot, &computed.outputs)?;
                Some((slot, read(layout, &values)))
            })
            .collect();
        let outputs = match &call.op {
            Op::LinearAttention(op) => linear_attention(op, &inputs),
            Op::Softmax(op) => {
                let shape: Vec<usize> = op.x.shape.iter().map(|&len| len as usize).collect();
                let scale = op.scale.unwrap_or(1.0).into();
                let y = reference::softmax(&inputs[0].1, &shape, op.axis, scale, op.log);
                vec![(Slot::Y, written(&op.y, &y))]
            }
            _ => return None,
        };
        let held = outputs.into_iter();
        let held = held.map(|(slot, values)| (slot, Held::of(values)));
        computed.outputs.calls.push(held.collect());
    }
    Some(computed)
}

/// Checks the cases that linear attention computes; returns how many there are.
fn check(cases: &[Case]) -> usize {
    let mut count = 0;
    for case in cases {
        let Ok(problem) = problem::prepare(case, DType::F16) else {
            continue;
        };
        let linear = |call: &Call| matches!(call.op, Op::LinearAttention(_));
        if !problem.calls.iter().any(linear) {
            continue;
        }
        for call in &problem.calls {
            for (slot, input) in &call.inputs {
                let Input::Given(Values::Real(values)) = input else {
                    continue;
                };
                // What the checks on the host are for passes them.
                match slot {
                    Slot::Decay => LinearAttention::check_decays(values),
                    Slot::Beta => LinearAttention::check_betas(values, true),
                    _ => Ok(()),
                }
                .unwrap_or_else(|error| panic!("{}: {error}", case.path()));
            }
        }
        let Some(computed) = compute(&problem) else {
            continue;
        };
        let (error, complaints) = compare::outputs(case, &problem, &computed);
        assert!(complaints.is_empty(), "{}: {complaints:?}", case.path());
        println!("{} {error:.1e}", case.path());
        count += 1;
    }
    count
}

/// With FOVEATE_FIXTURES=DIR those of that folder too.
#[test]
fn the_reference_computes_cases_of_linear_attention() {
    assert!(check(&carried().expect("cases")) > 0);
    if let Some(folder) = std::env::var_os("FOVEATE_FIXTURES") {
        let cases = load(std::path::Path::new(&folder)).expect("cases");
        assert!(check(&cases) > 0);
    }
}
