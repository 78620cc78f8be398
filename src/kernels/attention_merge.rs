//! Merges partial attention results.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// f16 output.
    pub f16: bool,
    /// Log-sum-exp output.
    pub lse: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("F16", self.f16.into()),
            ("LSE", self.lse.into()),
            ("WORKGROUP", WORKGROUP),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.f16 && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if WORKGROUP > caps.max_invocations {
            return Err(format!(
                "{WORKGROUP} invocations per workgroup to merge results, and the device allows {}",
                caps.max_invocations
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the merge.
    Params {
        elements: u32, splits: u32, value_dim: u32, q_len: u32, heads: u32, minus_infinity: f32,
        o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
        lse_at: u32, lse_batch: u32, lse_head: u32, lse_row: u32,
    }
}
