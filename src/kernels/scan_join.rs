//! Starts of the segments of scans.

use serde::{Deserialize, Serialize};

use super::{
    params,
    scan::{Carried, WORKGROUP},
};
use crate::{caps::Caps, shader::Constants};

/// Slots that are loaded at once.
pub const BLOCK: u32 = 4;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What is carried.
    pub carried: Carried,
    /// Whether only sums of values are joined.
    pub sums: bool,
    /// Whether channels of a head share their scores.
    pub per_head: bool,
    /// Whether there is a state before the first token.
    pub initial: bool,
    /// Whether it is where the final one goes.
    pub in_place: bool,
    /// Whether channels are read and written four at a time.
    pub vec4: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let mut list = vec![
            ("WORKGROUP", WORKGROUP),
            ("BLOCK", BLOCK),
            ("VEC4", self.vec4.into()),
            ("PER_HEAD", self.per_head.into()),
            ("INITIAL", self.initial.into()),
            ("IN_PLACE", self.in_place.into()),
            ("SUMS", self.sums.into()),
            ("SPLIT", 1),
        ];
        list.extend(self.carried.constants());
        list
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if WORKGROUP > caps.max_invocations {
            return Err(format!(
                "{WORKGROUP} invocations per workgroup, and the device allows {}",
                caps.max_invocations
            ));
        }
        let buffers = 1 + u32::from(self.initial);
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
    /// Parameters of the join.
    Params {
        invocations: u32, units: u32, heads: u32, rows: u32, segments: u32, carry_slot: u32,
        first_window: u32, channel_start: u32,
        initial_at: u32, initial_batch: u32, initial_head: u32, initial_part: u32, initial_channel: u32,
    }
}
