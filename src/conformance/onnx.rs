//! The operators Softmax, LogSoftmax, Attention, FlexAttention and RotaryEmbedding of ONNX.

use safetensors::Dtype;
use serde_json::Value;

use super::{
    case::{Array, Values},
    linear::permuted,
    problem::{Input, Operand, Problem, Reader, made},
};
use crate::{
    Attention, Causal, Corner, DType, Layout, Mod, Rotary, Softmax, Window,
    ops::{Slot, Stage, Statistic, dims},
};

/// Storage for floats of this width.
pub(super) fn storage(array: &Array, half: DType) -> Result<DType, String> {
    match array.dtype {
        Dtype::F32 | Dtype::BF16 => Ok(DType::F32),
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

pub(super) fn input<'a>(reader: &mut Reader<'a>, index: usize) -> Option<&'a Array> {
    let name = slot(reader, "node_inputs", index)?;
    reader.optional(&format!("in.{name}"))
}

pub(super) fn required<'a>(reader: &mut Reader<'a>, index: usize) -> Result<&'a Array, String> {
    input(reader, index).ok_or_else(|| format!("the node has no input {index}"))
}

pub(super) fn output(reader: &Reader<'_>, index: usize) -> Result<String, String> {
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
    problem.storage = Some(x.dtype);
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
        .input(Slot::X, x.input)
        .input(Slot::Cos, cos.values.clone())
        .input(Slot::Sin, sin.values.clone())
        .expect(Slot::Y, &output(reader, 0)?);
    if let Some(ids) = positions {
        ids.integers()?;
        problem = problem.input(Slot::Positions, ids.values.clone());
    }
    problem.storage = Some(array.dtype);
    Ok(problem)
}

/// Attention: inputs Q, K, V, attn_mask, past_key, past_value, nonpad_kv_seqlen.
pub(super) fn attention(reader: &mut Reader<'_>, half: DType) -> Result<Problem, String> {
    let case = reader.case;
    let attributes = Attributes::read(&case.params["attributes"])?;
    let q = required(reader, 0)?;
    let storage_type = q.dtype;
    let flat = q.shape.len() == 3;
    let kv_heads = attributes.kv_heads;
    let q = operand(q, attributes.q_heads, half)?;
    let k = operand(required(reader, 1)?, kv_heads, half)?;
    let v = operand(required(reader, 2)?, kv_heads, half)?;
    let fresh = dims(&k.layout)[2];
    let past = match (input(reader, 4), input(reader, 5)) {
        (None, None) => None,
        (Some(keys), Some(values)) => Some((keys, values)),
        _ => return Err("past keys without past values, or the other way round".into()),
    };
    let past_len = past.and_then(|(keys, _)| keys.shape.get(2).copied());
    let (k, v) = match past {
        None => (k, v),
        Some((keys, values)) => (cache(keys, k)?, cache(values, v)?),
    };
    let mut problem = Problem::attention(q, k, v)?;
    problem.op.scale = attributes.scale;
    problem.op.softcap = attributes.softcap;
    let keys = dims(&problem.op.k)[2];
    if let Some(mask) = input(reader, 3) {
        let dtype = match mask.values {
            Values::Real(_) => storage(mask, half)?,
            _ => DType::Bool,
        };
        problem.mask_or_bias(dtype, padded(mask, keys)?)?;
    }
    let lengths = input(reader, 6);
    if let Some(lengths) = lengths {
        problem.kv_len(lengths.lengths()?);
    }
    let place = match (lengths, past_len) {
        (None, None) => Place::Corner(Corner::TopLeft),
        (Some(_), None) => Place::Corner(Corner::BottomRight),
        (None, Some(past)) => Place::After { past, fresh },
        (Some(_), Some(_)) => return Err("past keys with lengths of a cache".into()),
    };
    attributes.mask(&mut problem.op, place)?;
    if flat {
        // The output is [batch, seq, heads * dim], as the inputs are.
        problem.output_heads_inside();
    }
    let rows = dims(&problem.op.q);
    let mut problem = problem.expect(&output(reader, 0)?);
    for (index, slot) in [(1, Slot::K), (2, Slot::V)] {
        if let Ok(name) = output(reader, index) {
            problem = problem.expect(slot, &name);
        }
    }
    if let Ok(name) = output(reader, 3) {
        let statistic = Statistic::Matrix {
            stage: attributes.stage,
            heads: 0..rows[1],
            rows: 0..rows[2],
        };
        problem = problem.expect_statistic(statistic, &name)?;
    }
    problem.left_out.extend(attributes.double);
    problem.storage = Some(storage_type);
    Ok(problem)
}

/// FlexAttention: the functions on scores and weights are graphs, which are written out here in WGSL by name.
pub(super) fn flex_attention(reader: &mut Reader<'_>, half: DType) -> Result<Problem, String> {
    let case = reader.case;
    let attributes = Attributes::read(&case.params["attributes"])?;
    let q = required(reader, 0)?;
    let storage_type = q.dtype;
    let q = operand(q, None, half)?;
    let k = operand(required(reader, 1)?, None, half)?;
    let v = operand(required(reader, 2)?, None, half)?;
    let mut problem = Problem::attention(q, k, v)?;
    problem.op.scale = attributes.scale;
    if let Some(graphs) = case.params["subgraphs"].as_object() {
        for (role, graph) in graphs {
            let name = graph
                .as_str()
                .and_then(|text| text.split_whitespace().next());
            let name = name.unwrap_or_default();
            let (_, _, text) = GRAPHS
                .into_iter()
                .find(|(a, b, _)| (*a, *b) == (role, name))
                .ok_or_else(|| format!("no function in WGSL for the {role} {name}"))?;
            problem.modified(Mod::new(text), Vec::new());
        }
    }
    let mut problem = problem.expect(&output(reader, 0)?);
    problem.storage = Some(storage_type);
    Ok(problem)
}

/// What graphs of FlexAttention say: their role, their name, and the same in WGSL.
const GRAPHS: [(&str, &str, &str); 3] = [
    // Where(q >= k, scores, -inf).
    (
        "score_mod",
        "score_mod_causal_mask",
        "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {
            return q_index >= kv_index;
        }",
    ),
    // Add(scores, Cast(Sub(q, k))).
    (
        "score_mod",
        "score_mod_relative_positional",
        "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
            return score + f32(i32(q_index) - i32(kv_index));
        }",
    ),
    // Mul(probs, 0.5).
    (
        "prob_mod",
        "prob_mod_scale",
        "fn prob_mod(weight: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
            return weight * 0.5;
        }",
    ),
];

/// Where the first query stands among the keys.
#[derive(Clone, Copy)]
enum Place {
    Corner(Corner),
    /// At the first of the `fresh` keys, after those of the past. There may be more or fewer queries.
    After {
        past: u64,
        fresh: u64,
    },
}

struct Attributes {
    causal: bool,
    left: Option<u64>,
    right: Option<u64>,
    scale: Option<f32>,
    softcap: Option<f32>,
    stage: Stage,
    /// Precision that is asked for and not there.
    double: Option<String>,
    q_heads: Option<u64>,
    kv_heads: Option<u64>,
}

impl Attributes {
    /// Reads attributes; an `Err` names one that asks for what no op does.
    fn read(attributes: &Value) -> Result<Self, String> {
        let mut read = Self {
            causal: false,
            left: None,
            right: None,
            scale: None,
            softcap: None,
            stage: Stage::Scaled,
            double: None,
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
                // What the optional output shows.
                "qk_matmul_output_mode" => {
                    read.stage = match value.as_u64() {
                        Some(0) => Stage::Scaled,
                        Some(1) => Stage::Capped,
                        Some(2) => Stage::Final,
                        Some(3) => Stage::Weights,
                        _ => return Err(format!("no op has {name} = {value}")),
                    }
                }
                "softmax_precision" if value.as_u64() == Some(11) => {
                    read.double = Some("softmax in double precision".into());
                }
                // At most the f32 that is used in any case: float, float16, bfloat16.
                "softmax_precision" if matches!(value.as_u64(), Some(1 | 10 | 16)) => {}
                // 0: none.
                "softcap" => {
                    let cap = number.map(|cap| cap as f32);
                    read.softcap = cap.filter(|cap| *cap != 0.0);
                }
                // -1: no bound on this side.
                "left_window_size" | "right_window_size" if number == Some(-1.0) => {}
                "left_window_size" if value.is_u64() => read.left = value.as_u64(),
                "right_window_size" if value.is_u64() => read.right = value.as_u64(),
                _ => return Err(format!("no op has {name} = {value}")),
            }
        }
        Ok(read)
    }

    /// Causal masking and window, for queries that stand at this place.
    fn mask(&self, op: &mut Attention, place: Place) -> Result<(), String> {
        let queries = dims(&op.q)[2];
        let corner = match place {
            Place::Corner(corner) => corner,
            Place::After { fresh, .. } if fresh == queries => Corner::BottomRight,
            Place::After { past, fresh } => return self.shifted(op, past, fresh),
        };
        op.causal = match (self.causal, corner) {
            (false, _) => Causal::None,
            (true, Corner::TopLeft) => Causal::TopLeft,
            (true, Corner::BottomRight) => Causal::BottomRight,
        };
        if self.left.is_some() || self.right.is_some() {
            op.window = Some(Window {
                left: self.left,
                right: self.right,
                first: 0,
                corner,
            });
        }
        Ok(())
    }

    /// The same for queries that stand in no corner: a window that reaches further on one side and less far on
    /// the other says so, as long as both reach from 0 on.
    fn shifted(&self, op: &mut Attention, past: u64, fresh: u64) -> Result<(), String> {
        let right = if self.causal { Some(0) } else { self.right };
        if self.left.is_none() && right.is_none() {
            return Ok(());
        }
        let queries = dims(&op.q)[2] as i64;
        let shifts = [
            (Corner::TopLeft, past as i64),
            (Corner::BottomRight, queries - fresh as i64),
        ];
        for (corner, shift) in shifts {
            let moved = |side: Option<u64>, by: i64| match side {
                None => Some(None),
                Some(side) => side.checked_add_signed(by).map(Some),
            };
            if let (Some(left), Some(right)) = (moved(self.left, -shift), moved(right, shift)) {
                op.window = Some(Window {
                    left,
                    right,
                    first: 0,
                    corner,
                });
                return Ok(());
            }
        }
        Err(format!(
            "no op has a window for {queries} queries at the first of {fresh} keys after {past}"
        ))
    }
}

/// A cache of keys or values: those of the past, then the new ones, then room for more. The room holds what
/// may not be read.
fn cache(past: &Array, fresh: Operand) -> Result<Operand, String> {
    let Input::Given(Values::Real(new)) = &fresh.input else {
        return Err("new keys or values that are no floats".into());
    };
    let [batch, heads, len, dim] = dims(&fresh.layout);
    let &[past_batch, past_heads, past_len, past_dim] = past.shape.as_slice() else {
        return Err(format!("past keys or values of shape {:?}", past.shape));
    };
    if [past_batch, past_heads, past_dim] != [batch, heads, dim] {
        return Err(format!("past keys or values of shape {:?}", past.shape));
    }
    let room = past_len + len + 3;
    made(&[batch, heads, room, dim])?;
    // Where heads lie inside, they are brought outside first.
    let outside = fresh.layout == Layout::new(fresh.layout.dtype, [batch, heads, len, dim]);
    let new = if outside {
        new.clone()
    } else {
        let shape = [batch, len, heads, dim].map(|len| len as usize);
        permuted(new, shape, [0, 2, 1, 3])
    };
    let [past_row, new_row, rest] = [past_len, len, 3].map(|rows| (rows * dim) as usize);
    let mut values = Vec::new();
    let rows = past.reals()?.chunks_exact(past_row.max(1));
    for (past, new) in rows.zip(new.chunks_exact(new_row.max(1))) {
        values.extend_from_slice(past);
        values.extend_from_slice(new);
        values.extend(std::iter::repeat_n(f32::NAN, rest));
    }
    let strides = [heads * room * dim, room * dim, dim, 1];
    Ok(Operand {
        input: Input::Given(Values::Real(values)),
        layout: Layout::new(fresh.layout.dtype, [batch, heads, past_len + len, dim])
            .with_strides(strides),
    })
}

/// Queries, keys or values, [batch, heads, seq, dim] or [batch, seq, heads * dim], as
/// [batch, heads, seq, dim] and without a copy.
pub(super) fn operand(array: &Array, heads: Option<u64>, half: DType) -> Result<Operand, String> {
    let dtype = storage(array, half)?;
    match (array.shape.as_slice(), heads) {
        ([_, _, _, _], _) => Ok(Operand::whole(array, dtype)),
        (&[batch, len, width], Some(heads)) if heads > 0 && width % heads == 0 => {
            let shape = [batch, len, heads, width / heads];
            let input = Input::Given(array.values.clone());
            Ok(Operand::heads_inside(input, dtype, shape))
        }
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

    /// Windows that are shifted see what the definition says: `i + past - left <= j <= i + past + right`.
    #[test]
    fn queries_in_no_corner() {
        use crate::reference::AttentionInputs;
        for (queries, past, fresh, left, right) in [
            (4, 8, 2, Some(2), 0),
            (4, 12, 6, None, 0),
            (2, 3, 5, Some(7), 1),
            (5, 0, 3, Some(0), 2),
        ] {
            let keys = Layout::f32([1, 1, past + fresh, 1]);
            let mut op = Attention::new(Layout::f32([1, 1, queries, 1]), keys.clone(), keys);
            let attributes = Attributes {
                causal: right == 0,
                left,
                right: Some(right),
                scale: None,
                softcap: None,
                stage: Stage::Scaled,
                double: None,
                q_heads: None,
                kv_heads: None,
            };
            attributes
                .mask(&mut op, Place::After { past, fresh })
                .expect("a window says it");
            let reference = AttentionInputs::of(&op, &[], &[], &[]);
            for i in 0..queries {
                for j in 0..past + fresh {
                    let after = left.is_none_or(|left| j + left >= i + past);
                    let want = after && j <= i + past + right;
                    let seen = reference.sees([0, 0, i as usize, j as usize]);
                    assert_eq!(seen, want, "{queries} {past} {fresh}: {i} {j}");
                }
            }
        }
    }

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
            (r#"{"left_window_size": -2}"#, "left_window_size"),
            (r#"{"softmax_precision": 5}"#, "softmax_precision"),
            (r#"{"qk_matmul_output_mode": 4}"#, "qk_matmul_output_mode"),
            (r#"{"spare": 11}"#, "spare"),
        ] {
            let value: Value = serde_json::from_str(text).expect("valid JSON");
            let reason = Attributes::read(&value).err().unwrap_or_default();
            assert!(reason.contains(named), "{text}: {reason}");
        }
        let none = serde_json::json!({"left_window_size": -1, "softcap": 0.0});
        let read = Attributes::read(&none).expect("attributes that ask for nothing");
        assert_eq!((read.left, read.softcap), (None, None));
    }
}
