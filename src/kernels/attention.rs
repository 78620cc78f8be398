//! What the attention schedules share: what they read and write, and their parameters.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// What an attention kernel reads and writes; part of every schedule's variant.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct AttentionIo {
    /// f16 storage.
    pub f16: bool,
    /// Boolean mask.
    pub mask: bool,
    /// Additive bias; whether it is stored as f16.
    pub bias: Option<bool>,
    /// Valid keys per batch entry.
    pub lens: bool,
    /// Log-sum-exp output.
    pub lse: bool,
    /// Partial results to scratch instead of outputs.
    pub partial: bool,
}

impl AttentionIo {
    pub(super) fn constants(self) -> Constants {
        vec![
            ("F16", self.f16.into()),
            ("MASK", self.mask.into()),
            ("BIAS", self.bias.is_some().into()),
            ("BIAS_F16", (self.bias == Some(true)).into()),
            ("LENS", self.lens.into()),
            ("LSE", self.lse.into()),
            ("PARTIAL", self.partial.into()),
        ]
    }

    pub(super) fn supports(self, caps: &Caps) -> Result<(), String> {
        if (self.f16 || self.bias == Some(true)) && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        let buffers = 4
            + u32::from(self.mask)
            + u32::from(self.bias.is_some())
            + u32::from(self.lens)
            + u32::from(self.lse && !self.partial);
        if buffers > caps.max_storage_buffers {
            return Err(format!(
                "{buffers} storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

/// What kernels need whose workgroup is one subgroup of this many lanes.
pub(super) fn one_subgroup(lanes: u32, caps: &Caps) -> Result<(), String> {
    match caps.subgroup {
        None => return Err("the device has no subgroup operations".into()),
        Some((min, max)) if min != max => {
            return Err(format!(
                "the subgroup size may be anything from {min} to {max}"
            ));
        }
        Some((size, _)) if size != lanes => {
            return Err(format!("subgroups have {size} lanes"));
        }
        Some(_) => {}
    }
    if lanes > caps.max_invocations {
        return Err("a subgroup is larger than a workgroup may be".into());
    }
    Ok(())
}

params! {
    /// Parameters of every attention schedule (`shaders/shared/attention.wgsl`).
    AttentionParams {
        tiles: u32, row_tiles: u32, splits: u32, split_keys: u32, split_start: u32, all_splits: u32,
        kv_heads: u32, group: u32, all_group: u32, q_len: u32, kv_len: u32, all_keys: u32,
        head_dim: u32, value_dim: u32, row_start: u32, key_start: u32,
        diagonal: i32, diagonal_lens: i32, scale: f32, minus_infinity: f32,
        q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
        k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
        o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
        lse_at: u32, lse_batch: u32, lse_head: u32, lse_row: u32,
        mask_at: u32, mask_batch: u32, mask_head: u32, mask_row: u32, mask_key: u32,
        bias_at: u32, bias_batch: u32, bias_head: u32, bias_row: u32, bias_key: u32,
        kv_len_at: u32, kv_len_batch: u32,
    }
}
