//! What a device can do, as plain data: the only thing besides the op that a plan depends on.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Iterations that a kernel may spend in one outermost loop nest when nothing was measured:
/// llvmpipe leaves a nest silently after 65,535.
pub const UNMEASURED_LOOP_BUDGET: u32 = 65_535;

/// Largest binding that plans use: elements are counted in 32 bits.
const MOST_BINDING_BYTES: u64 = 1 << 31;

/// Limits, features and measured facts of a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Caps {
    /// Largest storage binding, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Storage buffers per pipeline.
    pub max_storage_buffers: u32,
    /// Alignment of a storage binding's offset, in bytes.
    pub storage_alignment: u32,
    /// Alignment of a uniform binding's offset, in bytes.
    pub uniform_alignment: u32,
    /// Workgroup memory, in bytes.
    pub workgroup_bytes: u32,
    /// Invocations per workgroup, and along x.
    pub max_invocations: u32,
    /// Workgroups per grid axis.
    pub max_workgroups: u32,
    /// Smallest and largest subgroup, when the device has subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// Whether f16 storage is available.
    pub f16: bool,
    /// Iterations that one outermost loop nest may take. [`UNMEASURED_LOOP_BUDGET`] until
    /// [`crate::Engine::measure`] has looked.
    pub loop_budget: u32,
}

impl Caps {
    /// The caps of a device, from its features, limits and adapter. Nothing runs on it.
    pub fn of(device: &wgpu::Device) -> Self {
        let limits = device.limits();
        let features = device.features();
        let info = device.adapter_info();
        Self {
            max_binding_bytes: limits
                .max_storage_buffer_binding_size
                .min(MOST_BINDING_BYTES)
                & !255,
            max_buffer_bytes: limits.max_buffer_size,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            storage_alignment: limits.min_storage_buffer_offset_alignment,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            subgroup: features
                .contains(wgpu::Features::SUBGROUP)
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            f16: features.contains(wgpu::Features::SHADER_F16),
            loop_budget: UNMEASURED_LOOP_BUDGET,
        }
    }

    /// The smallest device that WebGPU allows: what runs here runs everywhere.
    pub fn minimum() -> Self {
        Self {
            max_binding_bytes: 128 << 20,
            max_buffer_bytes: 256 << 20,
            max_storage_buffers: 8,
            storage_alignment: 256,
            uniform_alignment: 256,
            workgroup_bytes: 16 << 10,
            max_invocations: 256,
            max_workgroups: 65_535,
            subgroup: None,
            f16: false,
            loop_budget: UNMEASURED_LOOP_BUDGET,
        }
    }

    /// Checks what plans rely on, and what every device that wgpu opens has.
    pub(crate) fn check(&self) -> Result<()> {
        let fail = |name: &str, found: String, remedy: &str| {
            Err(Error::invalid(format!("caps.{name}"), found, remedy))
        };
        for (name, bytes) in [
            ("storage_alignment", self.storage_alignment),
            ("uniform_alignment", self.uniform_alignment),
        ] {
            if bytes < 4 || !bytes.is_power_of_two() {
                return fail(name, bytes.to_string(), "give a power of two from 4");
            }
        }
        let bytes = self.max_binding_bytes;
        if !(1024..=MOST_BINDING_BYTES).contains(&bytes) || !bytes.is_multiple_of(4) {
            return fail(
                "max_binding_bytes",
                bytes.to_string(),
                "give a multiple of 4 from 1024 to 2^31",
            );
        }
        if let Some((min, max)) = self.subgroup
            && !(min.is_power_of_two() && max.is_power_of_two() && min <= max && max <= 128)
        {
            return fail(
                "subgroup",
                format!("from {min} to {max} lanes"),
                "give two powers of two up to 128, the smaller first",
            );
        }
        Ok(())
    }

    /// The subgroup size, when there is only one.
    pub fn fixed_subgroup(&self) -> Option<u32> {
        self.subgroup
            .filter(|(min, max)| min == max && min.is_power_of_two())
            .map(|(size, _)| size)
    }
}
