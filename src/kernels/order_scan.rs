//! Sums before each entry of a histogram.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Invocations per workgroup: a power of two.
    pub workgroup: u32,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![("WORKGROUP", self.workgroup)]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, false, self.workgroup, 1)
    }
}

params! {
    /// Parameters of the sums.
    Params {
        sequences: u32, entries: u32, each: u32, histogram_at: u32,
    }
}
