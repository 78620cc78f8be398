//! Measures the rate of matrix multiply-adds.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{
    caps::{Caps, MatrixShape},
    shader::Constants,
};

/// Subgroups that multiply.
const GROUPS: u32 = 4;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Rows and columns of a matrix.
    pub side: u32,
    /// Factors in f16; else in f32. Sums are f32.
    pub f16: bool,
    /// Lanes of the largest subgroup that the device may choose.
    pub lanes: u32,
}

impl Variant {
    /// Floating-point operations of a workgroup per iteration: 8 chains of 8 multiply-adds in each
    /// subgroup.
    pub fn operations(&self) -> u64 {
        u64::from(GROUPS) * 8 * 8 * 2 * u64::from(self.side).pow(3)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("F16", self.f16.into()),
            ("WIDE", (self.side == 16).into()),
            ("SIDE", self.side),
            ("LANES", self.lanes),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let shape = MatrixShape {
            side: self.side,
            f16: self.f16,
            emulated: false,
        };
        if !caps.matrices.contains(&shape) {
            return Err(format!("no {0}x{0} matrices", self.side));
        }
        if caps.subgroup.map(|(_, largest)| largest) != Some(self.lanes) {
            return Err(format!("subgroups of up to {} lanes", self.lanes));
        }
        if GROUPS * self.lanes > caps.max_invocations {
            return Err(format!("{} invocations per workgroup", GROUPS * self.lanes));
        }
        if self.f16 && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        Ok(())
    }
}

params! {
    /// Parameters of the matrix measurement.
    Params { iterations: u32, a: f32, b: f32 }
}
