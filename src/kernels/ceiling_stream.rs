//! Measures the rate of streaming through memory.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Vectors of four f32 per workgroup: 64 invocations, 16 loads each.
pub const VECTORS: u64 = 64 * 16;
/// Invocations per workgroup.
pub const WORKGROUP: u64 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Copy instead of read.
    pub copy: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![("COPY", self.copy.into())]
    }

    fn supports(&self, _: &Caps) -> Result<(), String> {
        Ok(())
    }
}

params! {
    /// Parameters of the streaming measurement.
    Params { vectors: u32 }
}
