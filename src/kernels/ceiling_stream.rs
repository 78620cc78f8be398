//! Measures the rate of streaming through memory.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Copy instead of read.
    pub copy: bool,
    /// Whether each invocation streams through a stretch of its own.
    pub stretch: bool,
    /// Invocations per workgroup.
    pub workgroup: u32,
}

impl Variant {
    /// Vectors of four f32 per invocation; stretches are well past a page, which on a CPU is what
    /// prefetching goes by.
    pub fn loads(&self) -> u32 {
        if self.stretch { 1024 } else { 16 }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("COPY", self.copy.into()),
            ("STRETCH", self.stretch.into()),
            ("LOADS", self.loads()),
            ("WORKGROUP", self.workgroup),
        ]
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
