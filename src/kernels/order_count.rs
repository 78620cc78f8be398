//! Counts one digit of the buckets of chunks of elements.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// Bits of a digit, at most: counts of all digits and invocations fit 16 KiB.
pub const MOST_BITS: u32 = 6;

/// Where the buckets of elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// In a tensor of buckets.
    X,
    /// In an index.
    Index,
    /// In scratch.
    Scratch,
}

impl Keys {
    /// The flags that the shared file asks for.
    pub(super) fn constants(self) -> Constants {
        vec![
            ("KEYS_X", (self == Self::X).into()),
            ("KEYS_INDEX", (self == Self::Index).into()),
            ("KEYS_SCRATCH", (self == Self::Scratch).into()),
        ]
    }

    /// Storage buffers that they take besides scratch.
    pub(super) fn buffers(self) -> u32 {
        u32::from(self != Self::Scratch)
    }
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Where buckets are.
    pub keys: Keys,
    /// Bits of a digit.
    pub bits: u32,
    /// Whether elements are still in their first order.
    pub first: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.keys.constants();
        list.extend([
            ("WORKGROUP", WORKGROUP),
            ("DIGITS", 1 << self.bits),
            ("FIRST", self.first.into()),
        ]);
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, false, WORKGROUP, 1 + self.keys.buffers())
    }
}

params! {
    /// Parameters of the count.
    Params {
        workgroups: u32, chunks: u32, n: u32, each: u32, shift: u32, histogram_at: u32, source_at: u32, heads: u32,
        buckets: u32,
        keys_at: u32, keys_batch: u32, keys_head: u32, keys_outer: u32, keys_inner: u32, keys_width: u32,
    }
}
