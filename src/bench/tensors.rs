//! The tensors of a call, and copies of them on the device.

use super::Expected;
use crate::{
    DType, Error, Gpu, Layout, Op, Plan, Result, Tensor,
    engine::wait,
    ops::{Args, Slot},
    pipeline::checked,
    reference,
};

/// The tensors that an op reads, with those that it overwrites.
pub(super) fn inputs_of(op: &Op) -> impl Iterator<Item = (Slot, &Layout)> {
    let carried = matches!(op, Op::LinearAttention(op) if op.in_place);
    let tensors = op.tensors().into_iter();
    tensors.filter(move |(slot, _)| {
        !op.is_output(*slot) || carried && matches!(slot, Slot::FinalState | Slot::FinalSum)
    })
}

/// Whether the op writes to tensors that it reads.
pub(super) fn overwrites_inputs(op: &Op) -> bool {
    inputs_of(op).any(|(slot, _)| op.is_output(slot))
}

/// The tensor that counts of those that it writes.
pub(super) fn output_of(op: &Op) -> (Slot, &Layout) {
    match op {
        Op::Attention(op) => (Slot::O, &op.o),
        Op::Softmax(op) => (Slot::Y, &op.y),
        Op::Merge(op) => (Slot::O, &op.o),
        Op::Rotary(op) => (Slot::Y, &op.y),
        Op::Weights(op) => (Slot::Out, &op.out),
        Op::LinearAttention(op) => (Slot::O, &op.o),
        Op::RandomFeatures(op) => (Slot::Y, &op.y),
        Op::ShortConv(op) => (Slot::Y, &op.y),
        Op::Scan(scan) => {
            let first = scan
                .tensors()
                .into_iter()
                .find(|(slot, _)| op.is_output(*slot));
            first.unwrap_or((Slot::V, scan.input()))
        }
        Op::HrrAttention(op) => (Slot::O, &op.o),
        Op::FlowAttention(op) => (Slot::O, &op.o),
        Op::AftFull(op) => (Slot::O, &op.o),
        Op::Pool(op) => (Slot::Y, &op.y),
        Op::TopK(top_k) => {
            let first = op
                .tensors()
                .into_iter()
                .find(|(slot, _)| op.is_output(*slot));
            first.unwrap_or((Slot::X, &top_k.x))
        }
        Op::TopP(op) => (Slot::Indices, &op.indices),
        Op::RouteScores(op) => (Slot::Out, &op.out),
        Op::Route(route) => {
            let tensors = route.tensors();
            let first = tensors.into_iter().find(|(slot, _)| op.is_output(*slot));
            first.unwrap_or((Slot::Scores, &route.scores))
        }
        Op::Gather(op) => (Slot::Y, &op.y),
        Op::Sort(op) => (Slot::Indices, &op.indices),
        Op::ScatterMean(op) => (Slot::Y, &op.y),
        Op::ClusterUpdate(op) => (Slot::NewMeans, &op.new_means),
        Op::Evict(op) => (Slot::NewScores, &op.new_scores),
        Op::VerticalSlash(op) => (Slot::Bits, &op.bits),
        Op::Scatter(op) => (Slot::Y, &op.y),
        Op::Divergence(op) => (Slot::Chosen, &op.chosen),
    }
}

/// The tensors of one call: inputs by their place in the op, and the output.
#[derive(Debug)]
pub struct Tensors {
    inputs: Vec<(Slot, Tensor)>,
    output: (Slot, Tensor),
    /// What else is written.
    others: Vec<(Slot, Tensor)>,
}

impl Tensors {
    /// Uploads the inputs of an op, in its order, and makes room for its output.
    ///
    /// # Errors
    /// As [`Gpu::upload_as`].
    pub fn upload(gpu: &Gpu, op: &Op, inputs: &[Vec<f32>]) -> Result<Self> {
        let inputs = inputs_of(op)
            .zip(inputs)
            .map(|((slot, layout), data)| {
                let shape = layout.shape.clone();
                let tensor = match layout.dtype {
                    DType::Bool => {
                        let visible: Vec<bool> = data.iter().map(|&x| x != 0.0).collect();
                        gpu.upload_bool(&visible, shape)?
                    }
                    dtype => gpu.upload_as(dtype, data, shape)?,
                };
                Ok((slot, tensor))
            })
            .collect::<Result<Vec<_>>>()?;
        let (slot, layout) = output_of(op);
        let others = op.tensors().into_iter().filter(|&(other, _)| {
            op.is_output(other) && other != slot && inputs.iter().all(|(input, _)| *input != other)
        });
        let others = others
            .map(|(slot, layout)| Ok((slot, gpu.allocate(layout.clone())?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            others,
            inputs,
            output: (slot, gpu.allocate(layout.clone())?),
        })
    }

    /// Binds a plan of the op to them.
    ///
    /// # Errors
    /// As [`Plan::bind`].
    pub fn bind(&self, plan: &Plan) -> Result<crate::Call> {
        let all = self.inputs.iter().chain([&self.output]).chain(&self.others);
        let args = Args(all.map(|(slot, tensor)| (*slot, tensor.view())).collect());
        plan.bind(args)
    }

    /// The output.
    pub fn output(&self) -> &Tensor {
        &self.output.1
    }

    /// A copy of the inputs on the device, and outputs of its own.
    ///
    /// # Errors
    /// As [`Gpu::allocate`].
    pub(super) fn copied(&self, gpu: &Gpu) -> Result<Self> {
        let like =
            |(slot, tensor): &(Slot, Tensor)| Ok((*slot, gpu.allocate(tensor.layout().clone())?));
        let others = |list: &[(Slot, Tensor)]| list.iter().map(like).collect::<Result<Vec<_>>>();
        let copy = Self {
            inputs: others(&self.inputs)?,
            output: like(&self.output)?,
            others: others(&self.others)?,
        };
        let pairs = self.inputs.iter().zip(&copy.inputs);
        transfer(gpu, pairs.map(|((_, from), (_, to))| (from, to)))?;
        Ok(copy)
    }

    /// Makes inputs that the op overwrites what they were, from a set that never ran, and fills the outputs with
    /// what cannot be right.
    pub(super) fn reset(
        &self,
        gpu: &Gpu,
        op: &Op,
        original: Option<&Self>,
        wrong: &Tensor,
    ) -> Result<()> {
        let original = original.map_or(&[][..], |set| &set.inputs);
        let inputs = original.iter().zip(&self.inputs);
        let carried = inputs.filter(|((slot, _), _)| op.is_output(*slot));
        let written = std::iter::once(&self.output).chain(&self.others);
        let pairs = carried
            .map(|((_, from), (_, to))| (from, to))
            .chain(written.map(|(_, tensor)| (wrong, tensor)));
        transfer(gpu, pairs)
    }

    /// A tensor as large as the largest that is written, of numbers that cannot be right: NaN as f32 and as f16, and
    /// an index past all rows.
    pub(super) fn wrong(&self, gpu: &Gpu) -> Result<Tensor> {
        let written = std::iter::once(&self.output).chain(&self.others);
        let most = written.map(|(_, tensor)| tensor.buffer().size()).max();
        let words = most.unwrap_or(0).div_ceil(4);
        let count = usize::try_from(words).unwrap_or(usize::MAX);
        gpu.upload_u32(&vec![WRONG; count], [words])
    }

    /// The largest error of all that is written: the output, indices, and what is carried on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a tensor that nothing is expected of.
    pub(super) fn error(&self, gpu: &Gpu, op: &Op, expected: &Expected) -> Result<f64> {
        let carried = (self.inputs.iter()).filter(|(slot, _)| op.is_output(*slot));
        let beside = carried.chain(&self.others);
        let mut worst = reference::error(&gpu.download(self.output())?, &expected.values);
        for (slot, tensor) in beside {
            let error = match slot {
                Slot::Indices if gpu.download_u32(tensor)? == expected.indices => 0.0,
                Slot::Indices => f64::INFINITY,
                Slot::FinalState => reference::error(&gpu.download(tensor)?, &expected.state),
                Slot::FinalSum => reference::error(&gpu.download(tensor)?, &expected.sum),
                _ => {
                    return Err(Error::invalid(
                        "workload",
                        format!("writes {slot:?}, of which the benchmark expects nothing"),
                        "check that tensor in src/bench/tensors.rs",
                    ));
                }
            };
            worst = worst.max(error);
        }
        Ok(worst)
    }
}

/// Two f16 NaNs, or one of f32.
const WRONG: u32 = 0x7fff_7fff;

/// Copies buffers on the device, as far as the second one of a pair reaches.
fn transfer<'a>(gpu: &Gpu, pairs: impl Iterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<()> {
    let index = checked(gpu.device(), || {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for (from, to) in pairs {
            let size = from.buffer().size().min(to.buffer().size());
            encoder.copy_buffer_to_buffer(from.buffer(), 0, to.buffer(), 0, size);
        }
        gpu.queue().submit([encoder.finish()])
    })
    .map_err(Error::Device)?;
    wait(gpu.device(), index)
}
