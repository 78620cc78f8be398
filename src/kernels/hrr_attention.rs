//! Attention of holographic reduced representations.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// What a dispatch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Adds up the wrapped diagonals of the sum of keys times values.
    Bind,
    /// Compares each value with the answer to its query.
    Score {
        /// Invocations per token: a power of two.
        lanes: u32,
        /// Channels per invocation.
        channels: u32,
        /// Whether there is a mask.
        mask: bool,
    },
    /// Writes values times their weights.
    Output,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What it does.
    pub role: Role,
    /// f16 storage.
    pub f16: bool,
}

impl Variant {
    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        match self.role {
            Role::Score { .. } => 2 * 256 * 4 + WORKGROUP * 16,
            _ => 0,
        }
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = vec![
            ("WORKGROUP", WORKGROUP),
            ("BIND", (self.role == Role::Bind).into()),
            ("OUTPUT", (self.role == Role::Output).into()),
            ("F16", self.f16.into()),
        ];
        let (score, masked) = match self.role {
            Role::Score {
                lanes,
                channels,
                mask,
            } => {
                list.extend([("LANES", lanes), ("CHANNELS", channels)]);
                (true, mask)
            }
            _ => (false, false),
        };
        list.extend([("SCORE", score.into()), ("MASK", masked.into())]);
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.workgroup_bytes() > caps.workgroup_bytes {
            return Err(format!(
                "{} bytes of workgroup memory, and the device has {}",
                self.workgroup_bytes(),
                caps.workgroup_bytes
            ));
        }
        let buffers = match self.role {
            Role::Bind => 1,
            Role::Score { mask, .. } => 3 + u32::from(mask),
            Role::Output => 3,
        };
        super::fits(caps, self.f16, WORKGROUP, buffers)
    }
}

params! {
    /// Parameters of the attention of holographic reduced representations.
    Params {
        count: u32, dim: u32, heads: u32, len: u32, matrix_at: u32, beta_at: u32, weights_at: u32,
        totals_at: u32,
        q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
        o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
        mask_at: u32, mask_batch: u32, mask_token: u32,
    }
}
