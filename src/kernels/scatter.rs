//! A selection, written into dense rows.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;
/// Places that a workgroup holds; a test ties it to the WGSL.
pub const SLOTS: u32 = 1024;

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// f16 elements.
    pub f16: bool,
    /// Elements to write; else ones.
    pub values: bool,
    /// A factor on each row.
    pub gate: bool,
    /// A factor on all.
    pub factor: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("F16", self.f16.into()),
            ("VALUES", self.values.into()),
            ("GATE", self.gate.into()),
            ("FACTOR", self.factor.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let buffers = 2 + u32::from(self.values) + u32::from(self.gate);
        super::fits(caps, self.f16, WORKGROUP, buffers)?;
        if caps.workgroup_bytes < 4 * SLOTS {
            return Err(format!(
                "{} bytes of workgroup memory, and the device has {}",
                4 * SLOTS,
                caps.workgroup_bytes
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the kernel.
    Params {
        workgroups: u32, rows: u32, columns: u32, first_column: u32, entries: u32,
        tile_rows: u32, tile_columns: u32, column_tiles: u32, len_b: u32, len_c: u32,
        fill: f32, factor: f32,
        x_at: u32, x_a: u32, x_b: u32, x_c: u32, x_entry: u32,
        index_at: u32, index_a: u32, index_b: u32, index_c: u32, index_entry: u32,
        gate_at: u32, gate_a: u32, gate_b: u32, gate_c: u32,
        y_at: u32, y_a: u32, y_b: u32, y_c: u32, y_column: u32,
    }
}
