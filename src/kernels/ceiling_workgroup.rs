//! Measures the rate of reading workgroup memory.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Vectors of four f32 that an invocation reads per iteration.
pub const READS: u64 = 16;
/// Workgroup memory, in bytes.
pub const WORKGROUP_BYTES: u32 = 512 * 16;

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
        if caps.workgroup_bytes < WORKGROUP_BYTES {
            return Err(format!("{WORKGROUP_BYTES} bytes of workgroup memory"));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the measurement.
    Params { iterations: u32 }
}
