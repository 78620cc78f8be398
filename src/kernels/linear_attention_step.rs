//! Linear attention of one token: the state is read, changed and written, row by row.

use serde::{Deserialize, Serialize};

use super::linear_attention as walk;
pub use super::linear_attention::Params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel: that of a walk with broadcast, bar the number of its tokens; its columns
/// are those of an invocation.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Variant(pub walk::Variant);

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut constants = self.0.terms();
        constants.extend([("WORKGROUP", WORKGROUP), ("CHUNK", self.0.columns)]);
        constants
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.0.q_below_top || self.0.softmax_k || self.0.safe || self.0.packed {
            return Err("rows of lanes have no common maximum here, nor packed sequences".into());
        }
        if WORKGROUP > caps.max_invocations {
            return Err(format!(
                "{WORKGROUP} invocations per workgroup, and the device allows {}",
                caps.max_invocations
            ));
        }
        self.0.supports(caps)
    }
}
