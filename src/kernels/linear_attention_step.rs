//! Linear attention of one token: the state is read, changed and written, column by column.

use serde::{Deserialize, Serialize};

use super::linear_attention as walk;
pub use super::linear_attention::Params;
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel: that of a walk with broadcast, bar the numbers of its tokens and columns.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Variant(pub walk::Variant);

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        self.0.terms()
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.0.q_below_top || self.0.softmax_k || self.0.safe || self.0.packed {
            return Err("rows of lanes have no common maximum here, nor packed sequences".into());
        }
        self.0.supports(caps)
    }
}
