//! Puts elements in the order of one digit of their buckets.

use serde::{Deserialize, Serialize};

use super::{
    order_count::{Keys, WORKGROUP},
    params,
};
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// Where buckets are.
    pub keys: Keys,
    /// Bits of a digit.
    pub bits: u32,
    /// Whether elements are still in their first order.
    pub first: bool,
    /// Whether the order goes to a tensor; else to scratch.
    pub output: bool,
    /// Whether its inverse does too.
    pub inverse: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = self.keys.constants();
        list.extend([
            ("WORKGROUP", WORKGROUP),
            ("DIGITS", 1 << self.bits),
            ("FIRST", self.first.into()),
            ("OUTPUT", self.output.into()),
            ("INVERSE", self.inverse.into()),
        ]);
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let outputs = u32::from(self.output) + u32::from(self.inverse);
        super::fits(caps, false, WORKGROUP, 1 + self.keys.buffers() + outputs)
    }
}

params! {
    /// Parameters of the scatter.
    Params {
        workgroups: u32, chunks: u32, n: u32, each: u32, shift: u32, histogram_at: u32, source_at: u32,
        target_at: u32, heads: u32, buckets: u32,
        keys_at: u32, keys_batch: u32, keys_head: u32, keys_outer: u32, keys_inner: u32, keys_width: u32,
        indices_at: u32, indices_batch: u32, indices_head: u32, indices_place: u32,
        inverse_at: u32, inverse_batch: u32, inverse_head: u32, inverse_element: u32,
    }
}
