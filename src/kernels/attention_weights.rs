//! Attention's scores and weights, and statistics of each row of them.

use serde::{Deserialize, Serialize};

use super::AttentionIo;
pub use super::AttentionParams as Params;
use crate::{caps::Caps, ops::Stage, shader::Constants};

/// Invocations per workgroup; a test ties it to the WGSL.
pub const WORKGROUP: u32 = 64;
/// The longest list of keys; a test ties it to the WGSL.
pub const MOST: u32 = 64;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Scores or weights.
    Matrix {
        /// How far they have come.
        stage: Stage,
        /// f16 output.
        f16: bool,
    },
    /// The entropy of the weights.
    Entropy,
    /// The largest weight and its key.
    LargestWeight,
    /// The largest score.
    LargestScore,
    /// The largest weights and their keys.
    Top,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What is written.
    pub kind: Kind,
    /// What it reads.
    pub io: AttentionIo,
}

impl Variant {
    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        match self.kind {
            Kind::Matrix { .. } => 0,
            Kind::Entropy | Kind::LargestScore => 4 * WORKGROUP,
            Kind::LargestWeight => 8 * WORKGROUP,
            Kind::Top => 8 * (WORKGROUP + MOST),
        }
    }

    fn has_keys(&self) -> bool {
        matches!(self.kind, Kind::LargestWeight | Kind::Top)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let (stage, f16) = match self.kind {
            Kind::Matrix { stage, f16 } => (Some(stage), f16),
            _ => (None, false),
        };
        let all = matches!(stage, Some(Stage::Scaled | Stage::Capped));
        let capped = stage == Some(Stage::Capped) && self.io.softcap;
        let reduced = matches!(self.kind, Kind::Entropy | Kind::LargestScore);
        let mut list = self.io.of_pairs();
        list.extend([
            ("MATRIX", stage.is_some().into()),
            ("ALL", all.into()),
            ("CAPPED", capped.into()),
            ("OUT_F16", f16.into()),
            ("ENTROPY", (self.kind == Kind::Entropy).into()),
            ("LARGEST", (self.kind == Kind::LargestWeight).into()),
            ("LARGEST_SCORE", (self.kind == Kind::LargestScore).into()),
            ("REDUCED", reduced.into()),
            ("TOP", (self.kind == Kind::Top).into()),
            ("KEYS", self.has_keys().into()),
        ]);
        list
    }

    fn mods(&self) -> &'static str {
        self.io.mods.text()
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if !caps.f16 && matches!(self.kind, Kind::Matrix { f16: true, .. }) {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        supports(self.io, 1 + u32::from(self.has_keys()), caps)?;
        if caps.workgroup_bytes < self.workgroup_bytes() {
            return Err(format!(
                "{} bytes of workgroup memory, and the device has {}",
                self.workgroup_bytes(),
                caps.workgroup_bytes
            ));
        }
        Ok(())
    }
}

/// Whether a device can run a kernel that looks at pairs of query and key, with so many outputs.
pub(super) fn supports(io: AttentionIo, outputs: u32, caps: &Caps) -> Result<(), String> {
    if WORKGROUP > caps.max_invocations {
        return Err(format!(
            "{WORKGROUP} invocations per workgroup, and the device allows {}",
            caps.max_invocations
        ));
    }
    // Queries and keys besides.
    io.supports_with(2 + outputs, caps)
}
