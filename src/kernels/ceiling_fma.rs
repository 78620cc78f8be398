//! Measures the rate of multiply-adds.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Multiply-adds of an invocation per iteration: 12 chains of 16.
pub const MULTIPLY_ADDS: u64 = 12 * 16;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Pairs of f16 instead of f32.
    pub f16: bool,
    /// Invocations per workgroup.
    pub workgroup: u32,
}

impl Variant {
    /// Floating-point operations of an invocation per iteration.
    pub fn operations(&self) -> u64 {
        MULTIPLY_ADDS * if self.f16 { 4 } else { 2 }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![("F16", self.f16.into()), ("WORKGROUP", self.workgroup)]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.f16 && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if self.workgroup > caps.max_invocations {
            return Err(format!("{} invocations per workgroup", self.workgroup));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the multiply-add measurement.
    Params { iterations: u32, a: f32, b: f32 }
}
