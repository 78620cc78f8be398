//! What a case asks of the library: an op, its inputs, and which expected tensor each output is
//! compared with.

use std::collections::BTreeSet;

use safetensors::Dtype;
use serde_json::Value;

use super::{
    biformer, block_sparse,
    case::{Array, Case, Values},
    clusters, coca, conv, davit, eviction, fla, flex, forms, gates, halonet, hashed, hilo,
    landmark, linear_attention, longheads, moh, natten, onnx, onnx_linear,
    outputs::Outputs,
    pairs, performer, relative, routed, scan, streaming, torch,
};
use crate::{
    Attention, BlockMask, DType, Error, Layout, Mod, Op, Result,
    ops::{Similarity, Slot, Statistic, Weights, dims},
};

/// Ops on host tensors.
pub(super) struct Problem {
    /// In order: later calls may take what earlier ones gave.
    pub calls: Vec<Call>,
    /// What is compared with the case's tensors of these names.
    pub expected: Vec<(String, Source)>,
    /// What was decided on the host, to be equal to the intermediates of these names.
    pub decided: Vec<(String, Values)>,
    /// Outputs of the case that no op computes; the others are compared.
    pub left_out: Vec<String>,
    /// How the case's tensors are stored where that is not f32.
    pub storage: Option<Dtype>,
}

/// An op with its inputs.
pub(super) struct Call {
    pub op: Op,
    pub inputs: Vec<(Slot, Input)>,
}

/// Where a tensor of a call comes from.
pub(super) enum Input {
    /// Elements in the order in which they lie in the buffer.
    Given(Values),
    /// Made on the host of what earlier calls gave.
    Made(Make<Values>),
    /// A tensor of an earlier call, where it lies on the device, by its call: the op's own layout says how its
    /// buffer is read.
    Output(usize, Slot),
    /// A buffer of this number, shared by calls that write parts of it and calls that read it, each by the
    /// layout that its op has there. Outputs have it too.
    Shared(usize),
}

impl From<Values> for Input {
    fn from(values: Values) -> Self {
        Self::Given(values)
    }
}

/// What a compared tensor comes from.
pub(super) enum Source {
    /// An output of a call, as it lies in memory; or one of its inputs or a part of a shared buffer, read back
    /// through its layout.
    Call(usize, Slot),
    /// A buffer that calls share, as it lies in memory.
    Shared(usize),
    /// Whole numbers, which are to be equal.
    Integers(Make<Vec<i64>>),
    /// What a selection took: the numbers of each row, in any order.
    Sets(Sets),
    /// The pairs of query and key that a call's attention sees.
    Visible(usize),
    /// What the host makes of the outputs.
    Host(Make<Vec<f32>>),
}

/// Something made of the outputs so far.
pub(super) type Make<T> = Box<dyn Fn(&Outputs) -> Result<T, String>>;

/// A selection: what was taken in each row, and which of the stored numbers count.
pub(super) struct Sets {
    /// The numbers taken, row by row.
    pub taken: Make<Vec<Vec<i64>>>,
    /// Whether a number that is stored for a row counts: sources also store picks that nothing sees.
    pub counts: Box<dyn Fn(usize, i64) -> bool>,
}

impl Call {
    /// Where the tensor of a slot comes from; outputs without an entry have a buffer of their own.
    pub fn input(&self, slot: Slot) -> Option<&Input> {
        let mut inputs = self.inputs.iter();
        inputs
            .find(|(other, _)| *other == slot)
            .map(|(_, input)| input)
    }
}

/// Elements for a slot that the host makes of the outputs.
pub(super) fn make(make: &Make<Values>, slot: Slot, outputs: &Outputs) -> Result<Values> {
    make(outputs)
        .map_err(|message| Error::invalid(slot.name(), message, "give the call what it is made of"))
}

impl Problem {
    pub fn new(op: impl Into<Op>) -> Self {
        let mut problem = Self::none();
        problem.call(op, []);
        problem
    }

    /// No calls yet.
    pub fn none() -> Self {
        Self {
            calls: Vec::new(),
            expected: Vec::new(),
            decided: Vec::new(),
            left_out: Vec::new(),
            storage: None,
        }
    }

    /// Adds a call; returns its number.
    pub fn call(
        &mut self,
        op: impl Into<Op>,
        inputs: impl IntoIterator<Item = (Slot, Input)>,
    ) -> usize {
        self.calls.push(Call {
            op: op.into(),
            inputs: inputs.into_iter().collect(),
        });
        self.calls.len() - 1
    }

    /// Gives the last call an input.
    pub fn input(mut self, slot: Slot, input: impl Into<Input>) -> Self {
        if let Some(call) = self.calls.last_mut() {
            call.inputs.push((slot, input.into()));
        }
        self
    }

    /// Adds the calls of another problem, and what it expects of the host; returns the number of its first
    /// call.
    pub fn then(&mut self, other: Self) -> usize {
        let first = self.calls.len();
        self.calls.extend(other.calls);
        first
    }

    /// Adds a statistic of the last call's attention, which is compared with the case's tensor of this name.
    pub fn expect_statistic(mut self, statistic: Statistic, name: &str) -> Result<Self, String> {
        let last = self.calls.len().saturating_sub(1);
        let Some(Call {
            op: Op::Attention(attention),
            inputs,
        }) = self.calls.last_mut()
        else {
            return Err("a statistic of what is no attention".into());
        };
        if statistic.needs_lse() && attention.lse.is_none() {
            *attention = attention.clone().with_lse();
        }
        let op = Op::from(Weights::new(attention.clone(), statistic));
        let mut call = Call {
            op,
            inputs: Vec::new(),
        };
        for (slot, _) in call.op.tensors() {
            let input = if slot == Slot::Lse {
                Input::Output(last, Slot::Lse)
            } else if let Some((_, Input::Given(values))) =
                inputs.iter().find(|(other, _)| *other == slot)
            {
                Input::Given(values.clone())
            } else {
                continue;
            };
            call.inputs.push((slot, input));
        }
        self.calls.push(call);
        Ok(self.expect(Slot::Out, name))
    }

    /// Compares an output of the last call.
    pub fn expect(mut self, slot: Slot, name: &str) -> Self {
        let last = self.calls.len().saturating_sub(1);
        self.expected
            .push((name.to_owned(), Source::Call(last, slot)));
        self
    }

    /// Compares an output of any call.
    pub fn expect_of(mut self, call: usize, slot: Slot, name: &str) -> Self {
        self.expected
            .push((name.to_owned(), Source::Call(call, slot)));
        self
    }

    /// Compares a buffer that calls share, as it lies in memory.
    pub fn expect_shared(mut self, number: usize, name: &str) -> Self {
        self.expected
            .push((name.to_owned(), Source::Shared(number)));
        self
    }

    /// Compares the pairs that the last call sees with a stored mask.
    pub fn expect_visible(mut self, name: &str) -> Self {
        let last = self.calls.len().saturating_sub(1);
        self.expected.push((name.to_owned(), Source::Visible(last)));
        self
    }

    /// Compares what the host makes of the outputs.
    pub fn expect_host(
        mut self,
        name: &str,
        make: impl Fn(&Outputs) -> Result<Vec<f32>, String> + 'static,
    ) -> Self {
        self.expected
            .push((name.to_owned(), Source::Host(Box::new(make))));
        self
    }

    /// Compares whole numbers of a call, which are to be equal to the stored ones.
    pub fn expect_integers(self, call: usize, slot: Slot, name: &str) -> Self {
        self.expect_counted(call, slot, name, |_| 0)
    }

    /// The same, where the stored ones count on from another number at each place.
    pub fn expect_counted(
        mut self,
        call: usize,
        slot: Slot,
        name: &str,
        from: impl Fn(usize) -> i64 + 'static,
    ) -> Self {
        let make = move |outputs: &Outputs| {
            let all = outputs.integers(call, slot)?.iter().enumerate();
            Ok(all.map(|(at, number)| number + from(at)).collect())
        };
        self.expected
            .push((name.to_owned(), Source::Integers(Box::new(make))));
        self
    }

    /// Compares what a selection took with a stored one, as sets: rows of numbers, negative ones unused, or rows
    /// of booleans. Stored numbers for which `counts(row, number)` is false are left out.
    pub fn expect_sets(
        mut self,
        name: &str,
        taken: impl Fn(&Outputs) -> Result<Vec<Vec<i64>>, String> + 'static,
        counts: impl Fn(usize, i64) -> bool + 'static,
    ) -> Self {
        let sets = Sets {
            taken: Box::new(taken),
            counts: Box::new(counts),
        };
        self.expected.push((name.to_owned(), Source::Sets(sets)));
        self
    }

    /// Attention, with room for what a family adds.
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
            inputs: vec![(Slot::Q, q.input), (Slot::K, k.input), (Slot::V, v.input)],
        })
    }
}

/// A tensor with the layout in which the op reads it.
pub(super) struct Operand {
    pub input: Input,
    pub layout: Layout,
}

impl Operand {
    /// A whole tensor, as it lies in the file.
    pub fn whole(array: &Array, dtype: DType) -> Self {
        Self {
            input: Input::Given(array.values.clone()),
            layout: Layout::new(dtype, array.shape.clone()),
        }
    }

    /// `[batch, len, heads, dim]` in memory, as `[batch, heads, len, dim]`.
    pub fn heads_inside(input: Input, dtype: DType, shape: [u64; 4]) -> Self {
        Self {
            input,
            layout: Layout::new(dtype, shape).transposed(1, 2),
        }
    }
}

/// An attention in the making.
pub(super) struct AttentionProblem {
    pub op: Attention,
    inputs: Vec<(Slot, Input)>,
}

impl AttentionProblem {
    /// Plain attention of the case's tensors `q`, `k` and `v`.
    pub fn of(reader: &mut Reader<'_>, dtype: DType) -> Result<Self, String> {
        let mut problem = Problem::attention(
            Operand::whole(reader.input("q")?, dtype),
            Operand::whole(reader.input("k")?, dtype),
            Operand::whole(reader.input("v")?, dtype),
        )?;
        problem.op.scale = reader.case.scale;
        Ok(problem)
    }

    pub fn mask(&mut self, shape: Vec<u64>, visible: Vec<bool>) {
        self.op.mask = Some(Layout::new(DType::Bool, shape));
        self.give(Slot::Mask, Values::Boolean(visible));
    }

    pub fn bias(&mut self, dtype: DType, shape: Vec<u64>, bias: Vec<f32>) {
        self.op.bias = Some(Layout::new(dtype, shape));
        self.give(Slot::Bias, Values::Real(bias));
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
        self.op.kv_len = Some(self.counts(Slot::KvLen, lengths));
    }

    pub fn q_len(&mut self, lengths: Vec<u32>) {
        self.op.q_len = Some(self.counts(Slot::QLen, lengths));
    }

    pub fn prefix_len(&mut self, lengths: Vec<u32>) {
        self.op.prefix_len = Some(self.counts(Slot::PrefixLen, lengths));
    }

    /// Recent and first keys of each head.
    pub fn head_windows(&mut self, windows: &[[u32; 2]]) {
        let counts = self.counts(Slot::HeadWindows, windows.as_flattened().to_vec());
        let shape = [windows.len() as u64, 2];
        self.op.head_windows = Some(Layout::new(counts.dtype, shape));
    }

    /// Blocks of keys that are skipped.
    pub fn blocks(&mut self, mask: BlockMask, words: impl Into<Input>) {
        self.op.block_mask = Some(mask);
        self.bind(Slot::Blocks, words);
    }

    pub fn sinks(&mut self, sinks: Vec<f32>) {
        self.op.sinks = Some(Layout::f32([sinks.len() as u64]));
        self.give(Slot::Sinks, Values::Real(sinks));
    }

    /// Adds a preset, with the elements of its buffers.
    pub fn preset(&mut self, change: Result<Mod>, buffers: Vec<Values>) -> Result<(), String> {
        self.modified(change.map_err(|error| error.to_string())?, buffers);
        Ok(())
    }

    /// Adds a modification, with the elements of its buffers.
    pub fn modified(&mut self, change: Mod, buffers: Vec<Values>) {
        let bound = self.op.mods.iter().map(|change| change.buffers.len());
        let first: usize = bound.sum();
        let slots = Slot::BUFFERS.into_iter().skip(first);
        self.inputs.extend(
            slots
                .zip(buffers)
                .map(|(slot, values)| (slot, Input::Given(values))),
        );
        self.op.mods.push(change);
    }

    /// Binds a tensor to a slot that the op has by now.
    pub fn bind(&mut self, slot: Slot, input: impl Into<Input>) {
        self.inputs.push((slot, input.into()));
    }

    fn give(&mut self, slot: Slot, values: Values) {
        self.bind(slot, values);
    }

    fn counts(&mut self, slot: Slot, counts: Vec<u32>) -> Layout {
        let layout = Layout::new(DType::U32, [counts.len() as u64]);
        let counts = counts.into_iter().map(i64::from).collect();
        self.give(slot, Values::Integer(counts));
        layout
    }

    /// The output as `[batch, len, heads * dim]` in memory.
    pub fn output_heads_inside(&mut self) {
        let [batch, heads, len, dim] = dims(&self.op.o);
        let inside = Layout::new(self.op.o.dtype, [batch, len, heads, dim]);
        self.op.o = inside.transposed(1, 2);
    }

    /// Done; nothing is compared yet.
    pub fn done(self) -> Problem {
        let mut problem = Problem::new(self.op);
        if let Some(call) = problem.calls.last_mut() {
            call.inputs = self.inputs;
        }
        problem
    }

    /// Done; the output is the case's tensor `o`, the log-sum-exp (where asked for) `lse`.
    pub fn expect(self, o: &str) -> Problem {
        let lse = self.op.lse.is_some();
        let problem = self.done().expect(Slot::O, o);
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

    /// A whole number from 0 among the case's parameters.
    pub fn size(&self, name: &str) -> Result<u64, String> {
        let number = self.number(name)?;
        u64::try_from(number).map_err(|_| format!("`{name}` in params is {number}, and negative"))
    }

    /// A size among the case's parameters that may be null.
    pub fn optional_size(&self, name: &str) -> Result<Option<u64>, String> {
        match self.case.params.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.size(name).map(Some),
        }
    }

    /// Whether a parameter is true; it may be missing.
    pub fn flag(&self, name: &str) -> bool {
        self.case.params[name] == true
    }

    /// An input with as many axes as asked for.
    pub fn shaped<const RANK: usize>(
        &mut self,
        name: &str,
    ) -> Result<(&'a [f32], [usize; RANK]), String> {
        let array = self.input(name)?;
        let shape: Vec<usize> = array.shape.iter().map(|&len| len as usize).collect();
        let shape = shape
            .try_into()
            .map_err(|_| format!("{name} has shape {:?}, not {RANK} axes", array.shape))?;
        Ok((array.reals()?, shape))
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
        "onnx_flex_attention" => onnx::flex_attention(&mut reader, half),
        "natten" => natten::neighborhood(&mut reader),
        "halonet" => halonet::halo(&mut reader),
        "hilo" => hilo::hilo(&mut reader),
        "moh" => moh::mixture_of_heads(&mut reader),
        "davit" => davit::davit(&mut reader),
        "duo_attention" => streaming::duo(&mut reader),
        "gpt_oss_sink" => streaming::sink(&mut reader),
        "fla_softmax_sink_gate" => gates::sink_gate(&mut reader),
        "fla_forgetting_attention" => gates::forgetting(&mut reader),
        "coca" => coca::collinear(&mut reader),
        "music_transformer" => relative::skewed(&mut reader),
        "onnx_rotary" => onnx::rotary(&mut reader, half),
        "fla_based" => pairs::powers(&mut reader, Similarity::Taylor),
        "fla_rebased" => pairs::powers(&mut reader, Similarity::Square),
        "mossformer" => pairs::mixed(&mut reader),
        "lln" => pairs::log_normal(&mut reader),
        "performer" => performer::favor(&mut reader),
        "onnx_linear_attention" => onnx_linear::linear_attention(&mut reader, half),
        "lightning_attention" => linear_attention::lightning(&mut reader),
        "minimax_lightning" => linear_attention::minimax(&mut reader),
        "cosformer" => linear_attention::cosformer(&mut reader),
        "lucidrains_linear" => linear_attention::bucketed(&mut reader),
        "fast_transformers" if case.op == "linear_attention_elu" => {
            linear_attention::elu(&mut reader)
        }
        "fla_linear_attn"
        | "fla_retention"
        | "fla_simple_gla"
        | "fla_gla"
        | "fla_delta_rule"
        | "fla_gated_delta_rule"
        | "fla_gated_delta_product"
        | "fla_kda"
        | "fla_comba"
        | "fla_rwkv6"
        | "fla_iplr"
        | "fla_dplr" => fla::recurrence(&mut reader),
        "fla_gated_slot_attention" => fla::slots(&mut reader),
        "onnx_causal_conv" => conv::causal(&mut reader, half),
        "light_dynamic_conv" => conv::light_or_dynamic(&mut reader),
        "fla_hgrn" => scan::hgrn(&mut reader),
        "fla_abc" => scan::bounded_memory(&mut reader),
        "flexprefill" => block_sparse::flexprefill(&mut reader),
        "moba" => routed::moba(&mut reader),
        "nsa" => routed::nsa(&mut reader),
        "quest" => routed::quest(&mut reader),
        "loki" => routed::loki(&mut reader),
        "biformer" => biformer::regions(&mut reader),
        "longheads" => longheads::chunks(&mut reader),
        "landmark" => landmark::grouped(&mut reader),
        "aaren" => scan::aaren(&mut reader),
        "fast_transformers" if case.op.starts_with("aft_simple") => scan::aft_simple(&mut reader),
        "routing_transformer" if case.op == "kmeans_update" => clusters::k_means(&mut reader),
        "routing_transformer" => clusters::routing(&mut reader),
        "reformer_lsh" => hashed::reformer(&mut reader),
        "dynamic_sparse" if case.op.starts_with("hash") => hashed::hash_sparse(&mut reader),
        "dynamic_sparse" => hashed::query_key_sparse(&mut reader),
        "h2o" => eviction::heavy_hitters(&mut reader),
        "spatten" => eviction::prune(&mut reader),
        "hrrformer" => forms::hrr(&mut reader),
        "flowformer" => forms::flow(&mut reader),
        "fast_transformers" if case.op == "aft_full" => forms::aft_full(&mut reader),
        family => Err(format!("no op covers {family}")),
    }?;
    // A case is understood only when all of it is.
    if let Some(name) = reader.unused.first() {
        return Err(format!("input {name} is of no use to any op"));
    }
    let compared = |name: &String| {
        let outputs = problem.expected.iter().map(|(other, _)| other);
        let decided = problem.decided.iter().map(|(other, _)| other);
        outputs.chain(decided).any(|other| other == name)
    };
    let computed = |name: &String| compared(name) || problem.left_out.contains(name);
    if let Some(name) = case.roles.expected.iter().find(|name| !computed(name)) {
        return Err(format!("no op computes {name}"));
    }
    if let Some(name) = case.roles.intermediate.iter().find(|name| !compared(name)) {
        return Err(format!("nothing to compare intermediate {name} with"));
    }
    Ok(problem)
}
