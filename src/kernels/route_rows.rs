//! Routing of rows, each by one invocation.

use serde::{Deserialize, Serialize};

pub use super::RouteParams as Params;
use super::{RouteIo, RouteOutputs};
use crate::{caps::Caps, shader::Constants};

/// Places of the longest list.
pub const MOST_PLACES: u64 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Room for the best ranks: a power of two.
    pub places: u32,
    /// Whether mass decides how many are taken.
    pub share: bool,
    /// Whether scores are masses; else their exponentials are.
    pub given: bool,
    /// What it reads.
    pub io: RouteIo,
    /// What it writes.
    pub outputs: RouteOutputs,
}

impl Variant {
    /// Iterations of all loops of an invocation, the checks that end them counted, for so many blocks and heads that are
    /// summed, and lists of `k` places.
    pub fn iterations(&self, blocks: u64, group: u64, k: u64) -> u64 {
        // One walk for the ranks, one more for the mass, and the last by words of bits.
        let turns = blocks.div_ceil(4) * (1 + group) + 1;
        let walks = if self.share { 3 } else { 2 };
        self.io.searches() + walks * turns + 2 * blocks.div_ceil(32) + k + 1
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.io.constants(self.given);
        list.extend(self.outputs.constants());
        list.extend([("K", self.places), ("SHARE", self.share.into())]);
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        self.io.supports(caps, self.outputs.count())
    }
}
