//! A plan bound to the caller's buffers, ready to record. The only caller of
//! `dispatch_workgroups`.

use std::sync::Arc;

use crate::{
    error::{Error, Result},
    ops::{Args, Op, Slot},
    pipeline::{Pipeline, Pipelines, checked},
    plan::{Outline, Range},
    tensor::View,
};

/// A bound op: recording it allocates and compiles nothing, and may be done any number of times.
#[derive(Debug)]
pub struct Call {
    steps: Vec<(Arc<Pipeline>, wgpu::BindGroup, [u32; 3])>,
}

impl Call {
    /// Records the op into a compute pass of the caller's.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        for (pipeline, group, [x, y, z]) in &self.steps {
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        }
    }

    /// Several bound ops as one call that runs them in order.
    pub fn sequence<'a>(calls: impl IntoIterator<Item = &'a Self>) -> Self {
        let steps = calls
            .into_iter()
            .flat_map(|call| call.steps.iter().cloned());
        Self {
            steps: steps.collect(),
        }
    }

    pub(crate) fn bind(
        device: &wgpu::Device,
        cache: &Pipelines,
        outline: &Outline,
        pipelines: &[Arc<Pipeline>],
        args: &Args<'_>,
    ) -> Result<Self> {
        check(&outline.op, args)?;
        let alignment = device.limits().min_uniform_buffer_offset_alignment;
        let buffers = 1 + u64::from(outline.scratch_bytes > 0);
        let steps = checked(device, || {
            let scratch = (outline.scratch_bytes > 0).then(|| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("foveate scratch"),
                    size: outline.scratch_bytes,
                    usage: wgpu::BufferUsages::STORAGE,
                    mapped_at_creation: false,
                })
            });
            let contents: Vec<&[u8]> = outline.steps.iter().map(|s| s.params.as_slice()).collect();
            let (uniforms, places) = uniforms(device, &contents, u64::from(alignment))?;
            let steps: Vec<_> = outline
                .steps
                .iter()
                .zip(pipelines)
                .zip(places)
                .map(|((step, pipeline), place)| {
                    let buffer_of = |slot| {
                        let own = (slot == Slot::Scratch)
                            .then_some(scratch.as_ref())
                            .flatten();
                        own.or_else(|| find(args, slot).map(|view| view.buffer))
                    };
                    let group = bind_group(
                        device,
                        pipeline,
                        (&uniforms, place),
                        &step.ranges,
                        buffer_of,
                    );
                    (pipeline.clone(), group, step.grid)
                })
                .collect();
            Ok(steps)
        })
        .map_err(Error::Device)??;
        cache.add_allocations(buffers, steps.len() as u64);
        Ok(Self { steps })
    }

    /// One dispatch of one kernel outside any op.
    pub(crate) fn single(
        device: &wgpu::Device,
        cache: &Pipelines,
        pipeline: Arc<Pipeline>,
        params: &[u8],
        grid: [u32; 3],
        buffers: &[(Slot, &wgpu::Buffer)],
    ) -> Result<Self> {
        let group = checked(device, || {
            let (uniforms, places) = uniforms(device, &[params], 4)?;
            let ranges: Vec<Range> = buffers
                .iter()
                .map(|&(slot, buffer)| Range {
                    slot,
                    offset: 0,
                    size: buffer.size(),
                })
                .collect();
            let buffer_of = |slot| {
                let pair = buffers.iter().find(|(other, _)| *other == slot);
                pair.map(|&(_, buffer)| buffer)
            };
            let uniforms = (&uniforms, places[0]);
            Ok(bind_group(device, &pipeline, uniforms, &ranges, buffer_of))
        })
        .map_err(Error::Device)??;
        cache.add_allocations(1, 1);
        Ok(Self {
            steps: vec![(pipeline, group, grid)],
        })
    }
}

/// One buffer with every step's parameters, and each one's offset and size.
fn uniforms(
    device: &wgpu::Device,
    contents: &[&[u8]],
    alignment: u64,
) -> Result<(wgpu::Buffer, Vec<(u64, u64)>)> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut places = Vec::new();
    for content in contents {
        bytes.resize(bytes.len().next_multiple_of(alignment.max(4) as usize), 0);
        // Uniform bindings come in multiples of 16 bytes.
        let size = content.len().next_multiple_of(16);
        places.push((bytes.len() as u64, size as u64));
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + size - content.len(), 0);
    }
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("foveate params"),
        size: bytes.len() as u64,
        usage: wgpu::BufferUsages::UNIFORM,
        mapped_at_creation: true,
    });
    buffer
        .get_mapped_range_mut(..)
        .map_err(|error| Error::Device(error.to_string()))?
        .copy_from_slice(&bytes);
    buffer.unmap();
    Ok((buffer, places))
}

fn bind_group<'a>(
    device: &wgpu::Device,
    pipeline: &Pipeline,
    (uniforms, (offset, size)): (&wgpu::Buffer, (u64, u64)),
    ranges: &[Range],
    buffer_of: impl Fn(Slot) -> Option<&'a wgpu::Buffer>,
) -> wgpu::BindGroup {
    let binding = |buffer, offset, size| {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: wgpu::BufferSize::new(size),
        })
    };
    let mut entries = vec![wgpu::BindGroupEntry {
        binding: 0,
        resource: binding(uniforms, offset, size),
    }];
    for &(index, slot, _) in &pipeline.bindings {
        let range = ranges.iter().find(|range| range.slot == slot);
        // A slot without a range or a buffer is a bug in a plan; leaving it out makes wgpu say so.
        if let (Some(range), Some(buffer)) = (range, buffer_of(slot)) {
            entries.push(wgpu::BindGroupEntry {
                binding: index,
                resource: binding(buffer, range.offset, range.size),
            });
        }
    }
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(pipeline.kernel.stem()),
        layout: &pipeline.group,
        entries: &entries,
    })
}

fn find<'a, 'b>(args: &'b Args<'a>, slot: Slot) -> Option<&'b View<'a>> {
    args.0
        .iter()
        .find(|(other, _)| *other == slot)
        .map(|(_, view)| view)
}

/// Checks the caller's buffers against the op.
fn check(op: &Op, args: &Args<'_>) -> Result<()> {
    let tensors = op.tensors();
    for (place, (slot, _)) in args.0.iter().enumerate() {
        if args
            .0
            .iter()
            .skip(place + 1)
            .any(|(other, _)| other == slot)
        {
            return Err(Error::invalid(
                slot.name(),
                "is given more than once",
                "bind one view for it",
            ));
        }
        if !tensors.iter().any(|(other, _)| other == slot) {
            return Err(Error::invalid(
                slot.name(),
                "is given, but the planned op has none",
                "leave it out, or plan an op that has it",
            ));
        }
    }
    for &(slot, layout) in &tensors {
        let name = slot.name();
        let Some(view) = find(args, slot) else {
            return Err(Error::invalid(
                name,
                "is missing, and the planned op has one",
                "bind a view for it",
            ));
        };
        if view.layout != *layout {
            return Err(Error::invalid(
                name,
                format!(
                    "layout {:?}, and the plan was made for {layout:?}",
                    view.layout
                ),
                "plan the op with the layouts that you bind",
            ));
        }
        if !view.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::invalid(
                name,
                format!("its buffer has usage {:?}", view.buffer.usage()),
                "create it with BufferUsages::STORAGE",
            ));
        }
        let needed = layout.end_bytes().next_multiple_of(4);
        if view.buffer.size() < needed {
            return Err(Error::invalid(
                name,
                format!(
                    "its buffer holds {} bytes, and the layout ends at {needed}",
                    view.buffer.size()
                ),
                "make the buffer larger; sizes count in multiples of 4 bytes",
            ));
        }
        for (other, _) in &tensors {
            if *other != slot
                && op.is_output(slot)
                && find(args, *other).is_some_and(|other| other.buffer == view.buffer)
            {
                return Err(Error::invalid(
                    name,
                    format!("is in the buffer of {}", other.name()),
                    "give each output a buffer of its own: a dispatch cannot read and write one \
                     buffer, whatever the ranges",
                ));
            }
        }
    }
    Ok(())
}
