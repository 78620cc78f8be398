//! What is known of an adapter, and of how a device on it was opened. No serial numbers, no bus, no host.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Gpu, TuningMode, pipeline, vendor};

/// An adapter with its features and limits. Devices are opened with all of these limits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Adapter {
    /// Its name, as the driver gives it.
    pub name: String,
    /// Who made it, where the driver's number for that is known.
    pub vendor: Option<String>,
    /// How wgpu reaches it: "vulkan", "metal", "dx12", "gl".
    pub backend: String,
    /// "discrete GPU", "integrated GPU", "virtual GPU", "software on the CPU" or "other".
    pub device_type: String,
    /// The driver's name.
    pub driver: String,
    /// The driver's version, in its own words.
    pub driver_info: String,
    /// Smallest and largest subgroup, where shaders can use subgroups.
    pub subgroup: Option<[u32; 2]>,
    /// Whether there is f16 storage.
    pub f16: bool,
    /// Whether there are timestamps, and with them GPU times.
    pub timestamps: bool,
    /// Whether the driver hands out what it compiled.
    pub pipeline_cache: bool,
    /// Shapes of cooperative matrices that the driver lists.
    pub cooperative_matrices: Vec<Matrix>,
    /// Largest storage binding, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Workgroup memory, in bytes.
    pub workgroup_bytes: u32,
    /// Invocations per workgroup.
    pub max_invocations: u32,
    /// Workgroups per axis of a grid.
    pub max_workgroups: u32,
    /// Storage buffers per shader.
    pub max_storage_buffers: u32,
    /// Alignment of a storage binding's offset, in bytes.
    pub storage_alignment: u32,
}

/// A shape of cooperative matrix: `m x k` times `k x n`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Matrix {
    /// Rows of the first factor.
    pub m: u32,
    /// Columns of the second factor.
    pub n: u32,
    /// Columns of the first factor.
    pub k: u32,
    /// Elements of the factors.
    pub input: String,
    /// Elements of the sum.
    pub output: String,
}

impl Adapter {
    /// What an adapter says of itself.
    pub fn of(adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let has = |feature| adapter.features().contains(feature);
        Self {
            vendor: vendor(&info).map(str::to_owned),
            backend: info.backend.to_string(),
            device_type: device_type(info.device_type).into(),
            subgroup: has(wgpu::Features::SUBGROUP)
                .then_some([info.subgroup_min_size, info.subgroup_max_size]),
            name: info.name,
            driver: info.driver,
            driver_info: info.driver_info,
            f16: has(wgpu::Features::SHADER_F16),
            timestamps: has(wgpu::Features::TIMESTAMP_QUERY),
            pipeline_cache: has(wgpu::Features::PIPELINE_CACHE),
            cooperative_matrices: adapter
                .cooperative_matrix_properties()
                .into_iter()
                .map(|shape| Matrix {
                    m: shape.m_size,
                    n: shape.n_size,
                    k: shape.k_size,
                    input: format!("{:?}", shape.ab_type).to_lowercase(),
                    output: format!("{:?}", shape.cr_type).to_lowercase(),
                })
                .collect(),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            storage_alignment: limits.min_storage_buffer_offset_alignment,
        }
    }
}

fn device_type(kind: wgpu::DeviceType) -> &'static str {
    match kind {
        wgpu::DeviceType::DiscreteGpu => "discrete GPU",
        wgpu::DeviceType::IntegratedGpu => "integrated GPU",
        wgpu::DeviceType::VirtualGpu => "virtual GPU",
        wgpu::DeviceType::Cpu => "software on the CPU",
        wgpu::DeviceType::Other => "other",
    }
}

/// How the device was opened, and what it was seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Opened {
    /// Iterations that the loops of one invocation may take, all together, before the device leaves them.
    pub loop_budget: u32,
    /// Where the plans' choices came from.
    pub tuning: TuningMode,
    /// Which checks were on.
    pub checks: Checks,
}

/// Checks that cost time when they are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Checks {
    /// Shaders check indices of buffers and arrays.
    pub shader_bounds: bool,
    /// Shaders bound their loops, where the backend's compiler needs that.
    pub shader_loops: bool,
    /// Workgroup memory is cleared before a kernel runs.
    pub workgroup_memory_cleared: bool,
    /// wgpu asked for the validation of the graphics API.
    pub api_validation: bool,
    /// wgpu asked for validation on the GPU.
    pub gpu_validation: bool,
    /// The program was built with debug assertions.
    pub debug_assertions: bool,
}

impl Opened {
    /// How this device was opened.
    pub fn of(gpu: &Gpu) -> Self {
        let flags = crate::standalone::instance_flags();
        Self {
            loop_budget: gpu.engine().caps().loop_budget,
            tuning: gpu.engine().tuning(),
            checks: Checks {
                shader_bounds: pipeline::SHADER_CHECKS.bounds_checks,
                shader_loops: pipeline::SHADER_CHECKS.force_loop_bounding,
                workgroup_memory_cleared: pipeline::CLEAR_WORKGROUP_MEMORY,
                api_validation: flags.contains(wgpu::InstanceFlags::VALIDATION),
                gpu_validation: flags.contains(wgpu::InstanceFlags::GPU_BASED_VALIDATION),
                debug_assertions: cfg!(debug_assertions),
            },
        }
    }
}
