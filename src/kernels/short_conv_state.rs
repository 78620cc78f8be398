//! The state after a short convolution.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// f16 input and states.
    pub f16: bool,
    /// Whether there are inputs before the first token.
    pub initial: bool,
    /// Whether the state written is the one that was read.
    pub in_place: bool,
    /// Whether sequences are packed.
    pub packed: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("F16", self.f16.into()),
            ("INITIAL", self.initial.into()),
            ("IN_PLACE", self.in_place.into()),
            ("PACKED", self.packed.into()),
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
        let buffers = 2 + u32::from(self.initial && !self.in_place) + u32::from(self.packed);
        if buffers > caps.max_storage_buffers {
            return Err(format!(
                "{buffers} storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the state's kernel.
    Params {
        invocations: u32, channels: u32, before: u32, window: u32, window_start: u32, seq: u32,
        elements: u32,
        x_at: u32, x_batch: u32, x_channel: u32, x_token: u32,
        initial_state_at: u32, initial_state_batch: u32, initial_state_channel: u32,
        initial_state_tap: u32,
        final_state_at: u32, final_state_batch: u32, final_state_channel: u32, final_state_tap: u32,
        cu_seqlens_at: u32, cu_seqlens_step: u32,
    }
}
