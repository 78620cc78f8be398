//! Sums over ranges of tokens.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// What the rows of a sum come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Nothing: there is one, and it counts as 1.
    One,
    /// Channels of queries.
    Queries,
    /// Channels of keys.
    Keys,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What rows come from.
    pub rows: Rows,
    /// Whether the logistic function is applied to them.
    pub sigmoid: bool,
    /// Whether columns are channels of values; else there is one.
    pub values: bool,
    /// Whether tokens have weights, in scratch.
    pub weighted: bool,
    /// f16 storage.
    pub f16: bool,
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        vec![
            ("WORKGROUP", WORKGROUP),
            ("QUERIES", (self.rows == Rows::Queries).into()),
            ("KEYS", (self.rows == Rows::Keys).into()),
            ("ROWS", (self.rows != Rows::One).into()),
            ("SIGMOID", self.sigmoid.into()),
            ("VALUES", self.values.into()),
            ("WEIGHTED", self.weighted.into()),
            ("F16", self.f16.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let buffers = 1 + u32::from(self.rows != Rows::One) + u32::from(self.values);
        super::fits(caps, self.f16, WORKGROUP, buffers)
    }
}

params! {
    /// Parameters of the sums.
    Params {
        invocations: u32, dim: u32, units: u32, columns: u32, heads: u32, len: u32, ranges: u32,
        range_length: u32, sums_at: u32, weights_at: u32,
        x_at: u32, x_batch: u32, x_head: u32, x_row: u32, x_dim: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
    }
}
