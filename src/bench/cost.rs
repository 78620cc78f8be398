//! What an op costs at least: operations and bytes, from its definition.

use crate::{
    Attention, Causal, DType, Op, Softmax,
    bench::Ceilings,
    ops::{Slot, dims},
};

/// The least that an op can cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts as two.
    pub operations: f64,
    /// Bytes: every input read once, every output written once.
    pub bytes: f64,
}

impl Cost {
    /// GFLOP/s when it takes this long.
    pub fn gflops(&self, ms: f64) -> f64 {
        self.operations / ms / 1e6
    }

    /// GB/s (10^9 bytes) when it takes this long.
    pub fn gbps(&self, ms: f64) -> f64 {
        self.bytes / ms / 1e6
    }

    /// Share of the lower roofline: the least time that the device's ceilings allow, over the time
    /// taken.
    pub fn share(&self, ms: f64, ceilings: &Ceilings) -> f64 {
        let arithmetic = self.operations / ceilings.fma_gflops / 1e6;
        let memory = self.bytes / ceilings.read_gbps / 1e6;
        arithmetic.max(memory) / ms
    }
}

/// The least that an op can cost. Attention counts `2 (head_dim + value_dim)` operations per visible
/// pair of query and key (bar `kv_len`, which only the device knows), softmax 5 per element.
pub fn cost(op: &Op) -> Cost {
    let bytes = op
        .tensors()
        .into_iter()
        .map(|(slot, layout)| {
            let passes = if in_place(op) && slot == Slot::Y {
                2
            } else {
                1
            };
            (stored(layout) * passes) as f64
        })
        .sum();
    let operations = match op {
        Op::Softmax(Softmax { x, .. }) => 5.0 * x.elements() as f64,
        Op::Attention(op) => attention_operations(op),
    };
    Cost { operations, bytes }
}

fn in_place(op: &Op) -> bool {
    matches!(op, Op::Softmax(op) if op.in_place)
}

/// Bytes of the elements that are really there: repeated ones count once.
fn stored(layout: &crate::Layout) -> u64 {
    let elements: u64 = layout
        .shape
        .iter()
        .zip(&layout.strides)
        .map(|(&len, &stride)| if stride == 0 { 1 } else { len })
        .product();
    elements * layout.dtype.size().max(DType::Bool.size())
}

fn attention_operations(op: &Attention) -> f64 {
    let [batch, heads, m, head_dim] = dims(&op.q);
    let [_, _, n, value_dim] = dims(&op.v);
    let visible: f64 = match op.causal {
        Causal::None => m as f64 * n as f64,
        Causal::TopLeft => (0..m).map(|i| (i + 1).min(n) as f64).sum(),
        Causal::BottomRight => (0..m)
            .map(|i| (i + 1 + n).saturating_sub(m).min(n) as f64)
            .sum(),
    };
    2.0 * (head_dim + value_dim) as f64 * visible * (batch * heads) as f64
}
