//! What a device can do, as plain data: the only thing besides the op that a plan depends on.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Iterations that an invocation may spend in all its loops together when nothing was measured: llvmpipe leaves its
/// loops silently after 65,535.
pub const UNMEASURED_LOOP_BUDGET: u32 = 65_535;

/// Largest binding that plans use: elements are counted in 32 bits.
const MOST_BINDING_BYTES: u64 = 1 << 31;

/// A kind of cooperative matrices: both factors and the sum are `side` x `side`, and products are added
/// up in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MatrixShape {
    /// Rows and columns.
    pub side: u32,
    /// Whether the factors are f16; else they are f32.
    pub f16: bool,
    /// Loops in place of the device's instructions, for tests where there are none. No device is said
    /// to have it, and no plan takes it without being asked for the matrix schedule.
    #[doc(hidden)]
    #[serde(default)]
    pub emulated: bool,
}

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
    /// Whether the device runs on a CPU, as Mesa's lavapipe does. With subgroups, those are the CPU's
    /// vectors: loads are loops over the lanes, and barriers cost much.
    #[serde(default)]
    pub software: bool,
    /// Cooperative matrices; none unless the caps were made by [`Caps::with_matrices`].
    pub matrices: Vec<MatrixShape>,
    /// Whether plans may choose the matrix schedule by themselves. It has been tested by emulation only,
    /// so nothing sets this but a caller who has checked a device; [`crate::Engine::tune`] compares
    /// results before it takes it, and [`crate::Tuning::schedule`] asks for it.
    #[serde(default)]
    pub matrices_checked: bool,
    /// Iterations that one invocation may take, all its loops together, inner ones and those that follow one another.
    /// [`UNMEASURED_LOOP_BUDGET`] until [`crate::Engine::measure`] has looked.
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
            software: info.device_type == wgpu::DeviceType::Cpu,
            matrices_checked: false,
            matrices: Vec::new(),
            loop_budget: UNMEASURED_LOOP_BUDGET,
        }
    }

    /// The caps of a device with its cooperative matrices, which only its adapter can list. There are
    /// none unless the device was created with `EXPERIMENTAL_COOPERATIVE_MATRIX`.
    pub fn with_matrices(device: &wgpu::Device, adapter: &wgpu::Adapter) -> Self {
        let mut caps = Self::of(device);
        if device
            .features()
            .contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
        {
            caps.matrices = matrix_shapes(&adapter.cooperative_matrix_properties());
        }
        caps
    }

    /// The largest matrices of f16, or of f32, factors.
    pub fn matrix(&self, f16: bool) -> Option<MatrixShape> {
        self.matrices
            .iter()
            .copied()
            .filter(|shape| shape.f16 == f16)
            .max_by_key(|shape| shape.side)
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
            software: false,
            matrices: Vec::new(),
            matrices_checked: false,
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

    /// Whether lanes are parts of a CPU's vectors.
    pub fn cpu_vectors(&self) -> bool {
        self.software && self.fixed_subgroup().is_some()
    }

    /// The subgroup size, when there is only one.
    pub fn fixed_subgroup(&self) -> Option<u32> {
        self.subgroup
            .filter(|(min, max)| min == max && min.is_power_of_two())
            .map(|(size, _)| size)
    }
}

/// Those that WGSL has types for and kernels can use.
fn matrix_shapes(listed: &[wgpu::CooperativeMatrixProperties]) -> Vec<MatrixShape> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let mut shapes: Vec<MatrixShape> = listed
        .iter()
        .filter(|shape| [8, 16].contains(&shape.m_size))
        .filter(|shape| shape.n_size == shape.m_size && shape.k_size == shape.m_size)
        .filter(|shape| shape.cr_type == F32 && [F16, F32].contains(&shape.ab_type))
        .map(|shape| MatrixShape {
            side: shape.m_size,
            f16: shape.ab_type == F16,
            emulated: false,
        })
        .collect();
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}

#[cfg(test)]
mod tests {
    use wgpu::{CooperativeMatrixProperties, CooperativeScalarType as Scalar};

    use super::*;

    #[test]
    fn only_square_matrices_with_sums_in_f32_are_used() {
        let listed = |sides: [u32; 3], ab_type, cr_type| CooperativeMatrixProperties {
            m_size: sides[0],
            n_size: sides[1],
            k_size: sides[2],
            ab_type,
            cr_type,
            saturating_accumulation: false,
        };
        let shapes = matrix_shapes(&[
            listed([16, 8, 16], Scalar::F16, Scalar::F32),
            listed([8, 16, 16], Scalar::F16, Scalar::F32),
            listed([16, 16, 16], Scalar::F16, Scalar::F16),
            listed([16, 16, 16], Scalar::F16, Scalar::F32),
            listed([16, 16, 16], Scalar::F16, Scalar::F32),
            listed([16, 16, 16], Scalar::I32, Scalar::I32),
            listed([8, 8, 8], Scalar::F32, Scalar::F32),
        ]);
        let shape = |side, f16| MatrixShape {
            side,
            f16,
            emulated: false,
        };
        assert_eq!(shapes, [shape(8, false), shape(16, true)]);
        let caps = Caps {
            matrices: vec![shape(8, true), shape(16, true)],
            ..Caps::minimum()
        };
        assert_eq!(caps.matrix(true), Some(shape(16, true)));
        assert_eq!(caps.matrix(false), None);
    }
}
