//! Where each bucket begins in a sorted order.

use serde::{Deserialize, Serialize};

use super::{order_count::Keys, params};
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Where buckets are.
    pub keys: Keys,
    /// Whether order and starts are tensors; else they are in scratch.
    pub output: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.keys.constants();
        list.extend([("WORKGROUP", WORKGROUP), ("OUTPUT", self.output.into())]);
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, false, WORKGROUP, 2 + self.keys.buffers())
    }
}

params! {
    /// Parameters of the bisection.
    Params {
        invocations: u32, n: u32, order_at: u32, starts_at: u32, starts_batch: u32, starts_head: u32,
        starts_bucket: u32, heads: u32, buckets: u32,
        keys_at: u32, keys_batch: u32, keys_head: u32, keys_outer: u32, keys_inner: u32, keys_width: u32,
        indices_at: u32, indices_batch: u32, indices_head: u32, indices_place: u32,
    }
}
