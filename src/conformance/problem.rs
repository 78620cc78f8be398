//! What a case asks of the library: an op, its inputs, and which expected tensor each output is
//! compared with.

use std::collections::BTreeSet;

use super::{
    case::{Array, Case, Values},
    flex, onnx, torch,
};
use crate::{Attention, DType, Error, Gpu, Layout, Op, Result, Tensor, ops::Slot};

/// An op on host tensors.
#[derive(Debug)]
pub(super) struct Problem {
    pub op: Op,
    /// Elements of each input, in the order in which they lie in the buffer.
    pub inputs: Vec<(Slot, Values)>,
    /// Outputs, by their names in the case.
    pub expected: Vec<(Slot, String)>,
    /// Masks built here from the definition, to be compared with the intermediates of this name.
    pub decided: Vec<(String, Values)>,
    /// Whether the case is meant for f16 storage.
    pub half: bool,
}

impl Problem {
    pub fn new(op: impl Into<Op>) -> Self {
        Self {
            op: op.into(),
            inputs: Vec::new(),
            expected: Vec::new(),
            decided: Vec::new(),
            half: false,
        }
    }

    pub fn input(mut self, slot: Slot, values: Values) -> Self {
        self.inputs.push((slot, values));
        self
    }

    pub fn expect(mut self, slot: Slot, name: &str) -> Self {
        self.expected.push((slot, name.to_owned()));
        self
    }

    /// Attention, with room for what a family adds. `q`, `k` and `v` have four axes and elements,
    /// so masks can be built for them.
    pub fn attention(q: Operand, k: Operand, v: Operand) -> Result<AttentionProblem, String> {
        for (name, operand) in [("q", &q), ("k", &k), ("v", &v)] {
            let check = operand.layout.check(name);
            check.map_err(|error| error.to_string())?;
            if operand.layout.rank() != 4 {
                return Err(format!("{name} has not four axes"));
            }
        }
        let op = Attention::new(q.layout, k.layout, v.layout);
        made(&op.o.shape)?;
        Ok(AttentionProblem {
            op,
            inputs: vec![
                (Slot::Q, q.values),
                (Slot::K, k.values),
                (Slot::V, v.values),
            ],
        })
    }

    /// The tensor of an input.
    pub fn upload(&self, gpu: &Gpu, slot: Slot, layout: &Layout) -> Result<Tensor> {
        let (_, values) = self
            .inputs
            .iter()
            .find(|(other, _)| *other == slot)
            .ok_or_else(|| {
                Error::invalid(slot.name(), "has no values", "give the problem this input")
            })?;
        let tensor = match values {
            Values::Real(values) => {
                gpu.upload_as(layout.dtype, values, vec![values.len() as u64])?
            }
            Values::Boolean(values) => gpu.upload_bool(values, vec![values.len() as u64])?,
            Values::Integer(values) => {
                let lengths = values.iter().map(|&n| u32::try_from(n));
                let lengths: Vec<u32> = lengths.collect::<Result<_, _>>().map_err(|error| {
                    Error::invalid(slot.name(), error.to_string(), "give counts")
                })?;
                gpu.upload_u32(&lengths, vec![lengths.len() as u64])?
            }
        };
        Ok(tensor.with_layout(layout.clone()))
    }
}

/// A tensor with the layout in which the op reads it.
pub(super) struct Operand {
    pub values: Values,
    pub layout: Layout,
}

impl Operand {
    /// A whole tensor, as it lies in the file.
    pub fn whole(array: &Array, dtype: DType) -> Self {
        Self {
            values: array.values.clone(),
            layout: Layout::new(dtype, array.shape.clone()),
        }
    }
}

/// An attention in the making.
pub(super) struct AttentionProblem {
    pub op: Attention,
    inputs: Vec<(Slot, Values)>,
}

impl AttentionProblem {
    pub fn mask(&mut self, shape: Vec<u64>, visible: Vec<bool>) {
        self.op.mask = Some(Layout::new(DType::Bool, shape));
        self.inputs.push((Slot::Mask, Values::Boolean(visible)));
    }

    pub fn bias(&mut self, dtype: DType, shape: Vec<u64>, bias: Vec<f32>) {
        self.op.bias = Some(Layout::new(dtype, shape));
        self.inputs.push((Slot::Bias, Values::Real(bias)));
    }

    /// A mask as PyTorch and ONNX take them: booleans that say what is visible, or an addend.
    pub fn mask_or_bias(&mut self, dtype: DType, mask: Array) -> Result<(), String> {
        match mask.values {
            Values::Boolean(visible) => self.mask(mask.shape, visible),
            Values::Real(bias) => self.bias(dtype, mask.shape, bias),
            Values::Integer(_) => return Err("a mask of integers".into()),
        }
        Ok(())
    }

    pub fn kv_len(&mut self, lengths: Vec<u32>) {
        let layout = Layout::new(DType::U32, [lengths.len() as u64]);
        self.op.kv_len = Some(layout);
        let lengths = lengths.into_iter().map(i64::from).collect();
        self.inputs.push((Slot::KvLen, Values::Integer(lengths)));
    }

    /// Done; the output is the case's tensor `o`, the log-sum-exp (where asked for) `lse`.
    pub fn expect(self, o: &str) -> Problem {
        let lse = self.op.lse.is_some();
        let problem = Problem {
            inputs: self.inputs,
            ..Problem::new(self.op)
        }
        .expect(Slot::O, o);
        if lse {
            problem.expect(Slot::Lse, "lse")
        } else {
            problem
        }
    }
}

/// Hands out the inputs of a case, and no other tensor, and keeps count of those not asked for.
pub(super) struct Reader<'a> {
    pub case: &'a Case,
    unused: BTreeSet<&'a str>,
}

impl<'a> Reader<'a> {
    pub fn new(case: &'a Case) -> Self {
        Self {
            case,
            unused: case.roles.inputs.iter().map(String::as_str).collect(),
        }
    }

    /// An input, where the case has it.
    pub fn optional(&mut self, name: &str) -> Option<&'a Array> {
        let inputs = &self.case.roles.inputs;
        inputs.iter().find(|input| *input == name)?;
        self.unused.remove(name);
        self.case.tensor(name)
    }

    /// An input that the case must have.
    pub fn input(&mut self, name: &str) -> Result<&'a Array, String> {
        self.optional(name)
            .ok_or_else(|| format!("there is no input {name}"))
    }

    /// A whole number from 1 among the case's parameters.
    pub fn count(&self, name: &str) -> Result<i64, String> {
        match self.number(name)? {
            count @ 1.. => Ok(count),
            other => Err(format!("`{name}` in params is {other}, and not at least 1")),
        }
    }

    /// A whole number among the case's parameters.
    pub fn number(&self, name: &str) -> Result<i64, String> {
        self.case.params[name]
            .as_i64()
            .ok_or_else(|| format!("params has no whole number `{name}`"))
    }
}

/// Most elements of a mask, bias or output that is made here for a case: a file of some bytes may
/// ask for one that no memory holds.
const MOST_MADE: u64 = 1 << 28;

/// The number of elements of a tensor to be made here, as long as memory can hold them.
pub(super) fn made(shape: &[u64]) -> Result<u64, String> {
    shape
        .iter()
        .try_fold(1u64, |product, &len| product.checked_mul(len))
        .filter(|&elements| elements <= MOST_MADE)
        .ok_or_else(|| format!("it takes a tensor of shape {shape:?}, past {MOST_MADE} elements"))
}

/// The problem that a case poses. f16 tensors are stored as `half`. An `Err` says what no op
/// covers.
pub(super) fn prepare(case: &Case, half: DType) -> Result<Problem, String> {
    let mut reader = Reader::new(case);
    let problem = match case.family.as_str() {
        "torch_sdpa" => torch::sdpa(&mut reader, half),
        "real" => torch::real(&mut reader),
        "torch_flex" => flex::flex(&mut reader),
        "onnx_softmax" => onnx::softmax(&mut reader, half),
        "onnx_attention" => onnx::attention(&mut reader, half),
        "onnx_rotary" => onnx::rotary(&mut reader, half),
        family => Err(format!("no op covers {family}")),
    }?;
    // A case is understood only when all of it is.
    if let Some(name) = reader.unused.first() {
        return Err(format!("input {name} is of no use to any op"));
    }
    let computed = |name: &String| problem.expected.iter().any(|(_, other)| other == name);
    if let Some(name) = case.roles.expected.iter().find(|name| !computed(name)) {
        return Err(format!("no op computes {name}"));
    }
    let decided = |name: &String| problem.decided.iter().any(|(other, _)| other == name);
    if let Some(name) = case.roles.intermediate.iter().find(|name| !decided(name)) {
        return Err(format!("nothing to compare intermediate {name} with"));
    }
    Ok(problem)
}
