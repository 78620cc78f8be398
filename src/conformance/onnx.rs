//! The operators Softmax, LogSoftmax, Attention and RotaryEmbedding of ONNX.

use safetensors::Dtype;
use serde_json::Value;

use super::{
    case::{Array, Values},
    problem::{Operand, Problem, Reader, made},
};
use crate::{
    Causal, DType, Layout, Rotary, Softmax,
    ops::{Slot, dims},
};

/// Storage for floats of this width.
fn storage(array: &Array, half: DType) -> Result<DType, String> {
    match array.dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(half),
        other => Err(format!("no op stores {other}")),
    }
}

/// The name of the node's input or output in this slot, if it is used.
fn slot<'a>(reader: &Reader<'a>, list: &str, index: usize) -> Option<&'a str> {
    reader.case.params[list]
        .get(index)?
        .as_str()
        .filter(|name| !name.is_empty())
}

fn input<'a>(reader: &mut Reader<'a>, index: usize) -> Option<&'a Array> {
    let name = slot(reader, "node_inputs", index)?;
    reader.optional(&format!("in.{name}"))
}

fn required<'a>(reader: &mut Reader<'a>, index: usize) -> Result<&'a Array, String> {
    input(reader, index).ok_or_else(|| format!("the node has no input {index}"))
}

fn output(reader: &Reader<'_>, index: usize) -> Result<String, String> {
    slot(reader, "node_outputs", index)
        .map(|name| format!("out.{name}"))
        .ok_or_else(|| format!("the node has no output {index}"))
}

/// Softmax and LogSoftmax along `axis`, the last one by default, as of opset 13.
pub(super) fn softmax(reader: &mut Reader<'_>, half: DType) -> Result<Problem, String> {
    let case = reader.case;
    let log = match case.op.as_str() {
        "Softmax" => false,
        "LogSoftmax" => true,
        other => return Err(format!("no op covers {other}")),
    };
    let opset = case.params["opset"]["ai.onnx"].as_i64().unwrap_or(0);
    if opset < 13 {
        return Err(format!(
            "opset {opset}: before 13, the input was seen as a matrix"
        ));
    }
    let x = required(reader, 0)?;
    let rank = x.shape.len() as i64;
    let axis = match &case.params["attributes"]["axis"] {
        Value::Null => -1,
        axis => axis.as_i64().ok_or("axis is no whole number")?,
    };
    let axis = if axis < 0 { axis + rank } else { axis };
    let axis = usize::try_from(axis).map_err(|_| format!("axis {axis} of {rank}"))?;
    let dtype = storage(x, half)?;
    let op = Softmax::new(Layout::new(dtype, x.shape.clone()), axis);
    let op = if log { op.log() } else { op };
    let mut problem = Problem::new(op)
        .input(Slot::X, x.values.clone())
        .expect(Slot::Y, &output(reader, 0)?);
    problem.half = x.dtype == Dtype::F16;
    Ok(problem)
}

/// RotaryEmbedding: inputs X, cos_cache, sin_cache, position_ids.
pub(super) fn rotary(reader: &mut Reader<'_>, half: DType) -> Result<Problem, String> {
    let case = reader.case;
    let mut interleaved = false;
    let mut heads = None;
    let mut rotary_dim = None;
    let Some(attributes) = case.params["attributes"].as_object() else {
        return Err("params has no attributes".into());
    };
    for (name, value) in attributes {
        match (name.as_str(), value.as_u64()) {
            ("interleaved", Some(number @ (0 | 1))) => interleaved = number == 1,
            ("num_heads", Some(number)) => heads = Some(number),
            // 0: all channels.
            ("rotary_embedding_dim", Some(number)) => {
                rotary_dim = Some(number).filter(|&number| number != 0);
            }
            _ => return Err(format!("no op has {name} = {value}")),
        }
    }
    let array = required(reader, 0)?;
    let x = operand(array, heads, half)?;
    let (cos, sin) = (required(reader, 1)?, required(reader, 2)?);
    let table = |array: &Array| -> Result<Layout, String> {
        Ok(Layout::new(storage(array, half)?, array.shape.clone()))
    };
    let mut op = Rotary::new(x.layout.clone(), table(cos)?, table(sin)?);
    // The output lies as the input does.
    op.y = x.layout;
    op.interleaved = interleaved;
    if let Some(rotary_dim) = rotary_dim {
        op = op.rotary_dim(rotary_dim);
    }
    let positions = input(reader, 3);
    op.positions = positions.map(|ids| Layout::new(DType::U32, ids.shape.clone()));
    let mut problem = Problem::new(op)
        .input(Slot::X, x.values)
        .input(Slot::Cos, cos.values.clone())
        .input(Slot::Sin, sin.values.clone())
        .expect(Slot::Y, &output(reader, 0)?);
    if let Some(ids) = positions {
        ids.integers()?;
        problem = problem.input(Slot::Positions, ids.values.clone());
    }
    problem.half = array.dtype == Dtype::F16;
    Ok(problem)
}

/// Attention without a cache: inputs Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen.
pub(super) fn attention(reader: &mut Reader<'_>, half: DType) -> Result<Problem, String> {
    let case = reader.case;
    let attributes = Attributes::read(&case.params["attributes"])?;
    let q = required(reader, 0)?;
    let half_storage = q.dtype == Dtype::F16;
    let kv_heads = attributes.kv_heads;
    let q = operand(q, attributes.q_heads, half)?;
    let k = operand(required(reader, 1)?, kv_heads, half)?;
    let v = operand(required(reader, 2)?, kv_heads, half)?;
    let flat = q.layout != Layout::new(q.layout.dtype, q.layout.shape.clone());
    let mut problem = Problem::attention(q, k, v)?;
    problem.op.scale = attributes.scale;
    let keys = dims(&problem.op.k)[2];
    if let Some(mask) = input(reader, 3) {
        let dtype = match mask.values {
            Values::Real(_) => storage(mask, half)?,
            _ => DType::Bool,
        };
        problem.mask_or_bias(dtype, padded(mask, keys)?)?;
    }
    if slot(reader, "node_inputs", 4).is_some() {
        return Err("no op joins past and present keys".into());
    }
    let lengths = input(reader, 6);
    if let Some(lengths) = lengths {
        problem.kv_len(lengths.lengths()?);
    }
    problem.op.causal = match (attributes.causal, lengths) {
        (false, _) => Causal::None,
        (true, None) => Causal::TopLeft,
        (true, Some(_)) => Causal::BottomRight,
    };
    if flat {
        // The output is [batch, seq, heads * dim], as the inputs are.
        let o = &problem.op.o;
        let &[batch, heads, len, dim] = o.shape.as_slice() else {
            return Err("o has not four axes".into());
        };
        problem.op.o = Layout::new(o.dtype, [batch, len, heads, dim]).transposed(1, 2);
    }
    let mut problem = problem.expect(&output(reader, 0)?);
    problem.half = half_storage;
    Ok(problem)
}

struct Attributes {
    causal: bool,
    scale: Option<f32>,
    q_heads: Option<u64>,
    kv_heads: Option<u64>,
}

impl Attributes {
    /// Reads attributes; an `Err` names one that asks for what no op does.
    fn read(attributes: &Value) -> Result<Self, String> {
        let mut read = Self {
            causal: false,
            scale: None,
            q_heads: None,
            kv_heads: None,
        };
        let Some(attributes) = attributes.as_object() else {
            return Err("params has no attributes".into());
        };
        for (name, value) in attributes {
            let number = value.as_f64();
            match name.as_str() {
                "is_causal" => read.causal = number == Some(1.0),
                "scale" => read.scale = number.map(|scale| scale as f32),
                "q_num_heads" => read.q_heads = value.as_u64(),
                "kv_num_heads" => read.kv_heads = value.as_u64(),
                // What the optional output shows; without that output, nothing.
                "qk_matmul_output_mode" => {}
                // At most the f32 that is used in any case: float, float16, bfloat16.
                "softmax_precision" if matches!(value.as_u64(), Some(1 | 10 | 16)) => {}
                "softcap" if number == Some(0.0) => {}
                // -1: no bound on this side.
                "left_window_size" | "right_window_size" if number == Some(-1.0) => {}
                _ => return Err(format!("no op has {name} = {value}")),
            }
        }
        Ok(read)
    }
}

/// Queries, keys or values, [batch, heads, seq, dim] or [batch, seq, heads * dim], as
/// [batch, heads, seq, dim] and without a copy.
fn operand(array: &Array, heads: Option<u64>, half: DType) -> Result<Operand, String> {
    let dtype = storage(array, half)?;
    match (array.shape.as_slice(), heads) {
        ([_, _, _, _], _) => Ok(Operand::whole(array, dtype)),
        (&[batch, len, width], Some(heads)) if heads > 0 && width % heads == 0 => Ok(Operand {
            values: array.values.clone(),
            layout: Layout::new(dtype, [batch, len, heads, width / heads]).transposed(1, 2),
        }),
        (shape, _) => Err(format!("shape {shape:?} with {heads:?} heads")),
    }
}

/// The mask with its last axis made as long as the keys: those that it leaves out are hidden.
fn padded(mask: &Array, keys: u64) -> Result<Array, String> {
    fn pad<T: Copy>(values: &[T], from: u64, to: u64, hidden: T) -> Vec<T> {
        values
            .chunks(from.max(1) as usize)
            .flat_map(|row| {
                let missing = (to - from) as usize;
                row.iter()
                    .copied()
                    .chain(std::iter::repeat_n(hidden, missing))
            })
            .collect()
    }
    let mut mask = mask.clone();
    let Some(last) = mask.shape.last_mut().filter(|last| **last < keys) else {
        return Ok(mask);
    };
    let short = std::mem::replace(last, keys);
    made(&mask.shape)?;
    mask.values = match &mask.values {
        Values::Real(values) => Values::Real(pad(values, short, keys, f32::NEG_INFINITY)),
        Values::Boolean(values) => Values::Boolean(pad(values, short, keys, false)),
        Values::Integer(values) => Values::Integer(pad(values, short, keys, 0)),
    };
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_mask_hides_the_keys_it_leaves_out() {
        let mask = Array {
            dtype: Dtype::BOOL,
            shape: vec![2, 2],
            values: Values::Boolean(vec![true, false, true, true]),
        };
        let padded = padded(&mask, 3).expect("a small mask");
        assert_eq!(padded.shape, [2, 3]);
        assert_eq!(
            padded.values,
            Values::Boolean(vec![true, false, false, true, true, false])
        );
    }

    #[test]
    fn attributes_without_an_op_are_named() {
        for (text, named) in [
            (r#"{"softcap": 2.0}"#, "softcap"),
            (r#"{"left_window_size": 2}"#, "left_window_size"),
            (r#"{"softmax_precision": 11}"#, "softmax_precision"),
        ] {
            let value: Value = serde_json::from_str(text).expect("valid JSON");
            let reason = Attributes::read(&value).err().unwrap_or_default();
            assert!(reason.contains(named), "{text}: {reason}");
        }
        let none = serde_json::json!({"left_window_size": -1, "softcap": 0.0});
        assert!(Attributes::read(&none).is_ok());
    }
}
