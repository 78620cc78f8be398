//! Measures the rate of f32 multiply-adds.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Floating-point operations of an invocation per iteration: 12 chains of 16 multiply-adds.
pub const OPERATIONS: u64 = 12 * 16 * 2;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Invocations per workgroup.
    pub workgroup: u32,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![("WORKGROUP", self.workgroup)]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
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
