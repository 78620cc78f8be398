//! What each token reads of sums over tokens, in flow attention.

use serde::{Deserialize, Serialize};

use super::params;
use crate::{caps::Caps, shader::Constants};

/// Invocations per workgroup.
pub const WORKGROUP: u32 = 64;

/// What is read, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Queries read the sum of keys: the incoming flow.
    Incoming,
    /// Keys read the sum of queries: the outgoing flow.
    Outgoing,
    /// Queries read the sum of keys with their flow: what is allocated to each.
    Allocate,
    /// Keys read the sum of queries with their flow: with what each competes.
    Compete,
    /// Each token reads the sum of exponentials: its share.
    Share,
    /// Queries read the sum of keys times values: the output.
    Output,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// What is read.
    pub role: Role,
    /// Whether sums end with the token.
    pub causal: bool,
    /// Vectors of four rows that an invocation has room for.
    pub units: u32,
    /// f16 storage.
    pub f16: bool,
}

impl Variant {
    /// Whether queries read.
    fn queries(&self) -> bool {
        matches!(self.role, Role::Incoming | Role::Allocate | Role::Output)
    }

    /// Whether anything is read but sums and numbers per token.
    fn rows(&self) -> bool {
        self.role != Role::Share
    }

    /// Whether queries and keys are bound.
    pub fn uses(&self) -> [bool; 2] {
        [true, false].map(|queries| self.rows() && (self.causal || self.queries() == queries))
    }

    /// Whether tokens that are added have weights.
    pub fn weighted(&self) -> bool {
        self.causal && !matches!(self.role, Role::Incoming | Role::Outgoing)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let [uses_q, uses_k] = self.uses();
        let flow = matches!(self.role, Role::Incoming | Role::Outgoing);
        vec![
            ("WORKGROUP", WORKGROUP),
            ("UNITS", self.units),
            ("CAUSAL", self.causal.into()),
            ("F16", self.f16.into()),
            ("ROWS", self.rows().into()),
            ("QUERIES", self.queries().into()),
            ("USES_Q", uses_q.into()),
            ("USES_K", uses_k.into()),
            ("WEIGHTED", self.weighted().into()),
            ("FLOW", flow.into()),
            ("ALLOCATE", (self.role == Role::Allocate).into()),
            ("COMPETE", (self.role == Role::Compete).into()),
            ("SHARE", (self.role == Role::Share).into()),
            ("OUTPUT", (self.role == Role::Output).into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        let [uses_q, uses_k] = self.uses();
        let output = self.role == Role::Output;
        let bound = [true, uses_q, uses_k, output, output && self.causal];
        let buffers = bound.into_iter().map(u32::from).sum();
        super::fits(caps, self.f16, WORKGROUP, buffers)
    }
}

params! {
    /// Parameters of what tokens read.
    Params {
        invocations: u32, dim: u32, units: u32, columns: u32, heads: u32, len: u32, ranges: u32,
        range_length: u32, eps: f32, factor: f32, sums_at: u32, sums_range: u32, sums_sequence: u32,
        weights_at: u32, out_at: u32,
        q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
        k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
        o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
    }
}
