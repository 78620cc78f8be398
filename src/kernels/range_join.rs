//! Joins sums over ranges of tokens.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// The only variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![("WORKGROUP", WORKGROUP)]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        super::fits(caps, false, WORKGROUP, 1)
    }
}

params! {
    /// Parameters of the join.
    Params {
        invocations: u32, width: u32, ranges: u32, prefixes: u32, sums_at: u32, totals_at: u32,
    }
}
