//! Convolutions along the sequence: ONNX's CausalConvWithState, lightweight and dynamic convolutions of fairseq.

use super::{
    onnx,
    problem::{Problem, Reader},
};
use crate::{Layout, ShortConv, ops::Slot};

/// CausalConvWithState: inputs input, weight, bias, past_state.
pub(super) fn causal(reader: &mut Reader<'_>, half: crate::DType) -> Result<Problem, String> {
    let case = reader.case;
    let Some(attributes) = case.params["attributes"].as_object() else {
        return Err("params has no attributes".into());
    };
    let mut silu = false;
    for (name, value) in attributes {
        match (name.as_str(), value.as_str()) {
            ("activation", Some("none")) => {}
            ("activation", Some("silu" | "swish")) => silu = true,
            _ => return Err(format!("no op has {name} = {value}")),
        }
    }
    let x = onnx::required(reader, 0)?;
    let weight = onnx::required(reader, 1)?;
    let dtype = onnx::storage(x, half)?;
    let &[channels, 1, taps] = weight.shape.as_slice() else {
        return Err(format!(
            "weights of shape {:?}, not [channels, 1, taps]",
            weight.shape
        ));
    };
    let mut op = ShortConv::new(
        Layout::new(dtype, x.shape.clone()),
        Layout::new(onnx::storage(weight, half)?, [channels, taps]),
    );
    if silu {
        op = op.silu();
    }
    let bias = onnx::input(reader, 2);
    if let Some(bias) = bias {
        op = op.bias(Layout::new(onnx::storage(bias, half)?, bias.shape.clone()));
    }
    let past = onnx::input(reader, 3);
    if let Some(past) = past {
        op = op.initial_state(Layout::new(onnx::storage(past, half)?, past.shape.clone()));
    }
    let present = onnx::output(reader, 1).ok();
    if present.is_some() {
        op = op.with_final_state();
    }
    let mut problem = Problem::new(op)
        .input(Slot::X, x.values.clone())
        .input(Slot::Weight, weight.values.clone())
        .expect(Slot::Y, &onnx::output(reader, 0)?);
    for (slot, array) in [(Slot::Bias, bias), (Slot::InitialState, past)] {
        if let Some(array) = array {
            problem = problem.input(slot, array.values.clone());
        }
    }
    if let Some(name) = present {
        problem = problem.expect(Slot::FinalState, &name);
    }
    problem.storage = Some(x.dtype);
    Ok(problem)
}

/// Weights per head, or per token and head; tensors are `[batch, seq, channels]`.
pub(super) fn light_or_dynamic(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let case = reader.case;
    let name = match case.op.as_str() {
        "lightweight_conv" => "weight",
        "dynamic_conv" => "weight_logits",
        other => return Err(format!("no op covers {other}")),
    };
    let dynamic = name == "weight_logits";
    let x = reader.input("x")?;
    let weight = reader.input(name)?;
    let mut op = ShortConv::new(
        Layout::f32(x.shape.clone()).transposed(1, 2),
        Layout::f32(weight.shape.clone()),
    )
    .padding_left(reader.size("padding_l")?);
    // What params say of the shapes.
    let told = [reader.size("heads")?, reader.size("kernel")?];
    if weight.shape.get(weight.shape.len().saturating_sub(2)..) != Some(&told[..]) {
        return Err(format!(
            "weights of shape {:?}, and params say {told:?}",
            weight.shape
        ));
    }
    if dynamic || reader.flag("weight_softmax") {
        op = op.softmax();
    }
    if reader.flag("renorm_padding") {
        op = op.renormalised();
    }
    Ok(Problem::new(op)
        .input(Slot::X, x.values.clone())
        .input(Slot::Weight, weight.values.clone())
        .expect(Slot::Y, "o"))
}
