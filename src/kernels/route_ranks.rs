//! What routing selects from.

use serde::{Deserialize, Serialize};

use super::RouteIo;
pub use super::RouteParams as Params;
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Whether scores are left as well, for their mass.
    pub share: bool,
    /// What it reads.
    pub io: RouteIo,
}

impl Variant {
    /// Iterations of all loops of an invocation that has a stretch of blocks, the checks that end them counted.
    pub fn iterations(&self, stretch: u64, group: u64) -> u64 {
        self.io.searches() + stretch.div_ceil(4) * (1 + group) + 1
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.io.constants(false);
        list.push(("SHARE", self.share.into()));
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        self.io.supports(caps, 1)
    }
}
