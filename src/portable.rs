//! Plans as JSON that any WebGPU host can execute: `docs/portable-plans.md` describes the format.

use serde::{Deserialize, Serialize};
use wgpu::naga;

use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::Kernel,
    ops::{Op, Slot},
    plan::Outline,
    tensor::{DType, Layout},
};

/// What `format` says.
pub const FORMAT: &str = "foveate-plan";
/// What `version` says. Another one comes when hosts for this one would compute something wrong.
pub const VERSION: u32 = 1;

/// A plan that needs nothing but WebGPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortablePlan {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The version of foveate that made it.
    pub foveate: String,
    /// What is computed.
    pub op: Op,
    /// The schedule chosen.
    pub schedule: String,
    /// Why, in words.
    pub why: String,
    /// What the device must have.
    pub requires: Requires,
    /// The caller's tensors.
    pub tensors: Vec<PortableTensor>,
    /// Bytes of the buffer that bindings call `scratch`; 0: none.
    pub scratch_bytes: u64,
    /// The shaders, each once.
    pub shaders: Vec<PortableShader>,
    /// The dispatches, in order.
    pub dispatches: Vec<Dispatch>,
}

/// What a plan asks of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Requires {
    /// Names of WebGPU features.
    pub features: Vec<String>,
    /// The one subgroup size that shaders were made for.
    pub subgroup_size: Option<u32>,
    /// Iterations that an invocation's loops may take, all together, on the device that was planned for. WebGPU has
    /// no such limit, and llvmpipe leaves loops after 65,535.
    pub loop_budget: u32,
    /// The least that WebGPU's limits must be; of alignments, the most.
    pub limits: Limits,
}

/// WebGPU's limits, by its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Bytes of a buffer.
    pub max_buffer_size: u64,
    /// Bytes of a storage binding.
    pub max_storage_buffer_binding_size: u64,
    /// Storage buffers of a shader.
    pub max_storage_buffers_per_shader_stage: u32,
    /// Bytes of workgroup memory.
    pub max_compute_workgroup_storage_size: u32,
    /// Invocations of a workgroup.
    pub max_compute_invocations_per_workgroup: u32,
    /// Invocations of a workgroup along x.
    pub max_compute_workgroup_size_x: u32,
    /// Workgroups along an axis of a dispatch.
    pub max_compute_workgroups_per_dimension: u32,
    /// Alignment of the offset of a storage binding.
    pub min_storage_buffer_offset_alignment: u32,
}

/// A tensor of the caller's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortableTensor {
    /// The name of its slot.
    pub name: String,
    /// Whether it is read or written.
    pub access: Access,
    /// Its elements.
    pub dtype: DType,
    /// Lengths of the axes.
    pub shape: Vec<u64>,
    /// Elements from one to the next along each axis.
    pub strides: Vec<u64>,
    /// Elements before the first.
    pub offset: u64,
    /// The least size of its buffer, a multiple of 4.
    pub bytes: u64,
}

/// How an op uses a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// An input.
    Read,
    /// An output; what is there does not matter.
    Write,
    /// What is there is taken and overwritten.
    ReadWrite,
}

/// A shader with entry point `main`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortableShader {
    /// The stem of its file.
    pub name: String,
    /// The text, with the directives that browsers want.
    pub wgsl: String,
    /// The entries of bind group 0.
    pub bindings: Vec<PortableBinding>,
}

/// An entry of a bind group layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortableBinding {
    /// Its number.
    pub binding: u32,
    /// WebGPU's word for its kind.
    #[serde(rename = "type")]
    pub kind: BindingKind,
}

/// WebGPU's kinds of buffer bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindingKind {
    /// The parameters.
    Uniform,
    /// A tensor that the shader reads.
    ReadOnlyStorage,
    /// A tensor that it may write.
    Storage,
}

/// One dispatch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Its shader, by place.
    pub shader: usize,
    /// Workgroups along x, y and z.
    pub workgroups: [u32; 3],
    /// The uniform at binding 0, word by word.
    pub params: Vec<u32>,
    /// What the other bindings are.
    pub bindings: Vec<Bound>,
}

/// A range of a buffer at a binding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Its number.
    pub binding: u32,
    /// The tensor, or `scratch`.
    pub tensor: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Outline {
    /// The plan for other WebGPU hosts than this library; `caps` are those that it was made with.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for cooperative matrices, which WebGPU does not have; [`Error::Compile`] for a kernel that
    /// does not compile, which is a bug.
    pub fn portable(&self, caps: &Caps) -> Result<PortablePlan> {
        let mut requires = Requires {
            features: Vec::new(),
            subgroup_size: None,
            loop_budget: caps.loop_budget,
            limits: Limits {
                max_buffer_size: self.scratch_bytes,
                min_storage_buffer_offset_alignment: 256,
                ..Limits::default()
            },
        };
        let tensors = self.op.tensors();
        let tensors: Vec<PortableTensor> = tensors
            .into_iter()
            .map(|(slot, layout)| portable_tensor(&self.op, slot, layout))
            .collect();
        for tensor in &tensors {
            requires.limits.max_buffer_size = requires.limits.max_buffer_size.max(tensor.bytes);
        }
        let mut kernels: Vec<Kernel> = Vec::new();
        let mut shaders = Vec::new();
        let mut numbers = Vec::new();
        let mut dispatches = Vec::new();
        for step in &self.steps {
            let known = kernels.iter().position(|kernel| *kernel == step.kernel);
            let shader = match known {
                Some(place) => place,
                None => {
                    let (shader, slots) = requires.shader(step.kernel, caps)?;
                    kernels.push(step.kernel);
                    shaders.push(shader);
                    numbers.push(slots);
                    kernels.len() - 1
                }
            };
            let mut bindings = Vec::new();
            for (binding, name) in numbers.get(shader).into_iter().flatten() {
                let range = step.ranges.iter().find(|range| range.slot.name() == name);
                let range = range.ok_or_else(|| Error::Compile {
                    kernel: step.kernel.stem().into(),
                    message: format!("the plan binds nothing to {name}"),
                })?;
                requires.limits.bind(range.offset, range.size);
                bindings.push(Bound {
                    binding: *binding,
                    tensor: name.clone(),
                    offset: range.offset,
                    bytes: range.size,
                });
            }
            let limits = &mut requires.limits;
            let most = step.grid.iter().copied().max().unwrap_or(1);
            limits.max_compute_workgroups_per_dimension =
                limits.max_compute_workgroups_per_dimension.max(most);
            dispatches.push(Dispatch {
                shader,
                workgroups: step.grid,
                params: bytemuck::pod_collect_to_vec(&step.params),
                bindings,
            });
        }
        Ok(PortablePlan {
            format: FORMAT.into(),
            version: VERSION,
            foveate: env!("CARGO_PKG_VERSION").into(),
            op: self.op.clone(),
            schedule: self.schedule.to_string(),
            why: self.why.clone(),
            requires,
            tensors,
            scratch_bytes: self.scratch_bytes,
            shaders,
            dispatches,
        })
    }
}

fn portable_tensor(op: &Op, slot: Slot, layout: &Layout) -> PortableTensor {
    let access = match (op.is_output(slot), op.overwrites(slot)) {
        (false, _) => Access::Read,
        (true, false) => Access::Write,
        (true, true) => Access::ReadWrite,
    };
    PortableTensor {
        name: slot.name().into(),
        access,
        dtype: layout.dtype,
        shape: layout.shape.clone(),
        strides: layout.strides.clone(),
        offset: layout.offset,
        bytes: layout.end_bytes().next_multiple_of(4),
    }
}

impl Limits {
    /// A binding that a dispatch has.
    fn bind(&mut self, offset: u64, size: u64) {
        self.max_storage_buffer_binding_size = self.max_storage_buffer_binding_size.max(size);
        // The largest power of two that divides the offset.
        let alignment = 1u64 << offset.trailing_zeros().min(31);
        self.min_storage_buffer_offset_alignment = self
            .min_storage_buffer_offset_alignment
            .min(u32::try_from(alignment).unwrap_or(u32::MAX));
    }
}

impl Requires {
    /// The text of a kernel, with what it asks for added here, and the numbers and names of its storage bindings.
    fn shader(
        &mut self,
        kernel: Kernel,
        caps: &Caps,
    ) -> Result<(PortableShader, Vec<(u32, String)>)> {
        let fail = |message: String| Error::Compile {
            kernel: kernel.stem().into(),
            message,
        };
        let shader = kernel.shader().map_err(fail)?;
        let enables = |what: &str| shader.wgsl.contains(&format!("enable {what};"));
        if enables("wgpu_cooperative_matrix") {
            return Err(Error::unsupported(
                "a portable plan of the matrix schedule",
                "WebGPU has no cooperative matrices",
                "plan with another schedule, or with caps without matrices",
            ));
        }
        let needs = Needs::of(&shader.wgsl).map_err(fail)?;
        let mut wgsl = shader.wgsl;
        if needs.subgroups {
            // naga knows subgroups without it, and refuses the directive that browsers ask for.
            wgsl.insert_str(0, "enable subgroups;\n");
            self.feature("subgroups");
            self.subgroup_size = caps.fixed_subgroup();
        }
        if needs.f16 {
            self.feature("shader-f16");
        }
        let bindings: Vec<PortableBinding> = shader
            .bindings
            .iter()
            .map(|binding| PortableBinding {
                binding: binding.index,
                kind: match (binding.uniform, binding.writable) {
                    (true, _) => BindingKind::Uniform,
                    (false, false) => BindingKind::ReadOnlyStorage,
                    (false, true) => BindingKind::Storage,
                },
            })
            .collect();
        let numbers: Vec<(u32, String)> = (shader.bindings.into_iter())
            .filter(|binding| !binding.uniform)
            .map(|binding| (binding.index, binding.name))
            .collect();
        let limits = &mut self.limits;
        let buffers = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        limits.max_storage_buffers_per_shader_stage =
            limits.max_storage_buffers_per_shader_stage.max(buffers);
        limits.max_compute_workgroup_storage_size = limits
            .max_compute_workgroup_storage_size
            .max(needs.workgroup_bytes);
        let [x, y, z] = needs.workgroup;
        limits.max_compute_workgroup_size_x = limits.max_compute_workgroup_size_x.max(x);
        limits.max_compute_invocations_per_workgroup =
            limits.max_compute_invocations_per_workgroup.max(x * y * z);
        let shader = PortableShader {
            name: kernel.stem().into(),
            wgsl,
            bindings,
        };
        Ok((shader, numbers))
    }

    fn feature(&mut self, name: &str) {
        if !self.features.iter().any(|feature| feature == name) {
            self.features.push(name.into());
            self.features.sort();
        }
    }
}

/// What a shader asks for, as naga reads it.
struct Needs {
    subgroups: bool,
    f16: bool,
    workgroup: [u32; 3],
    workgroup_bytes: u32,
}

impl Needs {
    fn of(wgsl: &str) -> Result<Self, String> {
        use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet};
        let module =
            naga::front::wgsl::parse_str(wgsl).map_err(|error| error.emit_to_string(wgsl))?;
        let valid = |capabilities| {
            let flags = naga::valid::ValidationFlags::all();
            naga::valid::Validator::new(flags, capabilities)
                .subgroup_stages(ShaderStages::COMPUTE)
                .subgroup_operations(SubgroupOperationSet::all())
                .validate(&module)
                .map(|_| ())
                .map_err(|error| error.emit_to_string(wgsl))
        };
        let all = Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
        valid(all)?;
        let mut layouter = naga::proc::Layouter::default();
        layouter
            .update(module.to_ctx())
            .map_err(|error| error.to_string())?;
        let shared = module.global_variables.iter();
        let workgroup_bytes = shared
            .filter(|(_, global)| global.space == naga::AddressSpace::WorkGroup)
            .map(|(_, global)| layouter[global.ty].size.next_multiple_of(16))
            .sum();
        let entry = module.entry_points.first().ok_or("there is no main")?;
        Ok(Self {
            subgroups: valid(all - Capabilities::SUBGROUP).is_err(),
            f16: valid(all - Capabilities::SHADER_FLOAT16).is_err(),
            workgroup: entry.workgroup_size,
            workgroup_bytes,
        })
    }
}
