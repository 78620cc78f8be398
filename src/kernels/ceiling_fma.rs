//! Measures the rate of f32 multiply-adds.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;
/// Floating-point operations of an invocation per iteration: 12 chains of 16 multiply-adds.
pub const OPERATIONS: u64 = 12 * 16 * 2;

/// The only variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        Vec::new()
    }

    fn supports(&self, _: &Caps) -> Result<(), String> {
        Ok(())
    }
}

params! {
    /// Parameters of the multiply-add measurement.
    Params { iterations: u32, a: f32, b: f32 }
}
