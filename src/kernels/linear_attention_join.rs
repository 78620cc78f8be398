//! Linear attention: states of segments joined, and moved between the caller's tensors and scratch.

use serde::{Deserialize, Serialize};

use super::{linear_attention::Fading, params};
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// What was before the first segment.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// Nothing.
    #[default]
    Nothing,
    /// The caller's state.
    Initial,
    /// The caller's state, which takes the final one.
    InPlace,
    /// What came out of the dispatch before.
    Carried,
}

/// A variant of the kernel.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Variant {
    /// f16 states.
    pub f16_state: bool,
    /// What was before.
    pub before: Before,
    /// What segments multiply it with.
    pub fading: Fading,
    /// Whether there are sums of keys.
    pub sums: bool,
    /// Whether they have a last element, the largest of the keys.
    pub safe: bool,
    /// Whether what comes out goes to the caller.
    pub last: bool,
    /// Whether its sum does too.
    pub last_sum: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let in_place = self.before == Before::InPlace;
        vec![
            ("WORKGROUP", WORKGROUP),
            ("SAFE", self.safe.into()),
            ("F16_STATE", self.f16_state.into()),
            (
                "INITIAL",
                matches!(self.before, Before::Initial | Before::InPlace).into(),
            ),
            ("IN_PLACE", in_place.into()),
            ("CARRY", (self.before == Before::Carried).into()),
            ("SUMS", self.sums.into()),
            ("DECAY_SCALAR", self.fading.is_scalar().into()),
            ("DECAY_KEY", (self.fading == Fading::Key).into()),
            ("DECAY_VALUE", (self.fading == Fading::Value).into()),
            ("FINAL", self.last.into()),
            ("FINAL_SUM", self.last_sum.into()),
            ("BIND_FINAL", (self.last || in_place).into()),
            (
                "BIND_FINAL_SUM",
                (self.last_sum || in_place && self.sums).into(),
            ),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.f16_state && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if WORKGROUP > caps.max_invocations {
            return Err(format!(
                "{WORKGROUP} invocations per workgroup, and the device allows {}",
                caps.max_invocations
            ));
        }
        if caps.max_storage_buffers < 5 {
            return Err(format!(
                "5 storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the join.
    Params {
        invocations: u32, elements: u32, rows: u32, key_dim: u32, value_dim: u32, heads: u32,
        slot_heads: u32, group: u32, segments: u32, slots: u32, carried: u32, slot_size: u32, products_at: u32,
        lowest: f32,
        initial_at: u32, initial_batch: u32, initial_head: u32, initial_row: u32, initial_dim: u32,
        final_at: u32, final_batch: u32, final_head: u32, final_row: u32, final_dim: u32,
        initial_sum_at: u32, initial_sum_batch: u32, initial_sum_head: u32, initial_sum_row: u32,
        final_sum_at: u32, final_sum_batch: u32, final_sum_head: u32, final_sum_row: u32,
        scratch_at: u32,
    }
}
