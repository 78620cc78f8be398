//! Measures the rate of streaming through memory.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Vectors of four f32 per invocation.
pub const LOADS: u64 = 16;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Copy instead of read.
    pub copy: bool,
    /// Invocations per workgroup.
    pub workgroup: u32,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![("COPY", self.copy.into()), ("WORKGROUP", self.workgroup)]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.workgroup > caps.max_invocations {
            return Err(format!("{} invocations per workgroup", self.workgroup));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the streaming measurement.
    Params { groups: u32 }
}
