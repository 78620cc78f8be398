//! Softmax and log-softmax of rows.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// What a dispatch does of the two passes over a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Both: maximum and total, then the weights.
    Whole,
    /// Maximum and total of a range, to scratch.
    Reduce,
    /// The weights of a range, from scratch.
    Apply,
}

/// How the lanes of a row put their results together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// One lane per row: nothing to do.
    None,
    /// A tree in workgroup memory.
    Workgroup,
    /// Subgroup operations: each subgroup has a row.
    Subgroup,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// Invocations per row: a power of two that divides the workgroup.
    pub lanes: u32,
    /// How they put their results together.
    pub reduction: Reduction,
    /// Vectors, or elements, that a lane holds in registers; 0 unless the phase is whole.
    pub held: u32,
    /// Whether there may be more, which is read twice.
    pub rest: bool,
    /// Vectors, or elements, that a lane reads per step of the rest.
    pub block: u32,
    /// Whether each lane takes a stretch of the row, instead of every `lanes`-th unit; then `held` is 0.
    pub stretch: bool,
    /// What it does.
    pub phase: Phase,
    /// f16 storage.
    pub f16: bool,
    /// Whether elements are read and written four at a time.
    pub vec4: bool,
    /// Whether the output is the input.
    pub in_place: bool,
    /// Whether it returns the logarithm.
    pub log: bool,
}

impl Variant {
    /// Workgroup memory, in bytes: a maximum and a total per invocation.
    pub fn workgroup_bytes(&self) -> u32 {
        if self.reduction == Reduction::Workgroup && self.phase != Phase::Apply {
            self.workgroup * 8
        } else {
            0
        }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let write = self.phase != Phase::Reduce;
        let read = self.phase != Phase::Apply;
        vec![
            ("WORKGROUP", self.workgroup),
            ("LANES", self.lanes),
            ("HELD", self.held),
            ("REST", self.rest.into()),
            ("BLOCK", self.block),
            ("STRETCH", self.stretch.into()),
            ("F16", self.f16.into()),
            ("VEC4", self.vec4.into()),
            ("IN_PLACE", self.in_place.into()),
            ("LOG", self.log.into()),
            ("READ", read.into()),
            ("WRITE", write.into()),
            ("SPLIT", (self.phase != Phase::Whole).into()),
            ("SHARED", (self.reduction == Reduction::Workgroup).into()),
            (
                "SUBGROUP_REDUCE",
                (self.reduction == Reduction::Subgroup).into(),
            ),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.f16 && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if self.workgroup > caps.max_invocations {
            return Err(format!(
                "{} invocations per workgroup, and the device allows {}",
                self.workgroup, caps.max_invocations
            ));
        }
        if self.workgroup_bytes() > caps.workgroup_bytes {
            return Err(format!(
                "{} bytes of workgroup memory, and the device has {}",
                self.workgroup_bytes(),
                caps.workgroup_bytes
            ));
        }
        let buffers = 2 - u32::from(self.in_place) + u32::from(self.phase != Phase::Whole);
        if buffers > caps.max_storage_buffers {
            return Err(format!(
                "{buffers} storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        if self.reduction == Reduction::Subgroup && caps.fixed_subgroup() != Some(self.lanes) {
            return Err(format!("subgroups do not have {} lanes", self.lanes));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the softmax kernel (`shaders/shared/softmax_rows.wgsl`).
    Params {
        groups: u32, rows: u32, length: u32, splits: u32, split_length: u32, split_start: u32,
        all_splits: u32, size_1: u32, size_2: u32, scale: f32, minus_infinity: f32,
        x_at: u32, x_0: u32, x_1: u32, x_2: u32, x_element: u32,
        y_at: u32, y_0: u32, y_1: u32, y_2: u32, y_element: u32,
    }
}
