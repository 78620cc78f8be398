//! Scores of tokens by one query per head.

use serde::{Deserialize, Serialize};

use super::{params, scan::WORKGROUP};
use crate::{caps::Caps, shader::Constants};

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// f16 queries and keys.
    pub f16: bool,
    /// Whether dims are read four at a time.
    pub vec4: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("F16", self.f16.into()),
            ("VEC4", self.vec4.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.f16 && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if WORKGROUP > caps.max_invocations {
            return Err(format!(
                "{WORKGROUP} invocations per workgroup, and the device allows {}",
                caps.max_invocations
            ));
        }
        if caps.max_storage_buffers < 3 {
            return Err(format!(
                "3 storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the scores.
    Params {
        invocations: u32, length: u32, heads: u32, units: u32, scores_at: u32, scale: f32,
        q_at: u32, q_head: u32, q_dim: u32,
        k_at: u32, k_batch: u32, k_head: u32, k_token: u32, k_dim: u32,
    }
}
