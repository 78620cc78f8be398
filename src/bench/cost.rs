//! What an op costs at least: operations and bytes, from its definition.

use crate::{
    Attention, Layout, LinearAttention, Merge, Op, Rotary, Scan, ScanRule, ScoreRule, ShortConv,
    Softmax, UpdateRule,
    bench::Ceilings,
    ops::{Slot, dims},
};

/// The least that an op can cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts as two.
    pub operations: f64,
    /// Bytes read: every input once.
    pub read_bytes: f64,
    /// Bytes written: every output once.
    pub written_bytes: f64,
}

impl Cost {
    /// GFLOP/s when it takes this long.
    pub fn gflops(&self, ms: f64) -> f64 {
        self.operations / ms / 1e6
    }

    /// GB/s (10^9 bytes) when it takes this long.
    pub fn gbps(&self, ms: f64) -> f64 {
        self.bytes() / ms / 1e6
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> f64 {
        self.read_bytes + self.written_bytes
    }

    /// The least time that the device's arithmetic allows, in ms.
    pub fn arithmetic_ms(&self, ceilings: &Ceilings) -> f64 {
        self.operations / ceilings.fma_gflops / 1e6
    }

    /// The least time that the device's memory allows, in ms: bytes that are read and written pass
    /// at the rate of the copy, the rest at that of the read.
    pub fn memory_ms(&self, ceilings: &Ceilings) -> f64 {
        let copied = 2.0 * self.read_bytes.min(self.written_bytes);
        let rest = self.bytes() - copied;
        (copied / ceilings.copy_gbps + rest / ceilings.read_gbps) / 1e6
    }

    /// Share of the lower roofline: the least time that the device's ceilings allow, over the time
    /// taken.
    pub fn share(&self, ms: f64, ceilings: &Ceilings) -> f64 {
        self.arithmetic_ms(ceilings).max(self.memory_ms(ceilings)) / ms
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            operations: self.operations + other.operations,
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
        }
    }
}

/// The least that an op can cost. Attention counts `2 (head_dim + value_dim)` operations per visible
/// pair of query and key (bar `kv_len`, which only the device knows), softmax 5 per element, a merge 2
/// per element of its parts, rotary embedding 3 per element that it turns, linear attention 2 per element of
/// the state for each update (delta rule: 4) and each query, a convolution 2 per tap of
/// an element, a scan 1 to 7 per element, the attention-free transformer 5 per channel of each pair of positions,
/// pooling and choosing 1 per element, scores for choosing 2 per channel of a pair (bounds: 4).
///
/// The count of linear attention is that of the recurrence, whatever the schedule: `k vᵀ` added to the state, and
/// `q S`, each a multiplication and an addition per element. The delta rule reads the state once more per update.
/// Decays, feature maps and normalisers are not counted; a schedule that does more work than the recurrence to have
/// larger products is not paid for it. A state that is carried on in place is read and written.
pub fn cost(op: &Op) -> Cost {
    let mut read_bytes = 0.0;
    let mut written_bytes = 0.0;
    for (slot, layout) in op.tensors() {
        let bytes = touched(op, slot, layout);
        if op.is_output(slot) {
            written_bytes += bytes;
        }
        if !op.is_output(slot) || op.overwrites(slot) {
            read_bytes += bytes;
        }
    }
    let operations = match op {
        Op::Softmax(Softmax { x, .. }) => 5.0 * x.elements() as f64,
        Op::Attention(op) => attention_operations(op),
        // Scores alone: what is made of them is less.
        Op::Weights(op) => 2.0 * dims(&op.attention.q)[3] as f64 * op.visible_pairs(),
        Op::Merge(Merge { o_parts, .. }) => 2.0 * o_parts.elements() as f64,
        Op::Rotary(op) => 3.0 * op.x.elements() as f64 * turned(op),
        Op::LinearAttention(op) => linear_attention_operations(op),
        Op::RandomFeatures(op) => 2.0 * op.y.elements() as f64 * dims(&op.x)[3] as f64,
        Op::ShortConv(ShortConv { x, weight, .. }) => {
            2.0 * x.elements() as f64 * weight.shape.last().map_or(0, |&taps| taps) as f64
        }
        Op::Scan(op) => scan_operations(op),
        Op::HrrAttention(op) => 4.0 * dims(&op.q)[3] as f64 * op.o.elements() as f64,
        Op::FlowAttention(op) => {
            let [batch, heads, q_len, key_dim] = dims(&op.q);
            let [_, _, kv_len, value_dim] = dims(&op.v);
            (2 * key_dim * value_dim * batch * heads * (q_len + kv_len)) as f64
        }
        Op::AftFull(op) => {
            let seq = dims(&op.q)[2] as f64;
            let seen = if op.causal { (seq + 1.0) / 2.0 } else { seq };
            5.0 * seen * op.o.elements() as f64
        }
        Op::Pool(op) => op.x.elements() as f64,
        Op::RouteScores(op) => {
            let [batch, heads, rows, channels] = dims(&op.q);
            let [_, _, columns, _] = dims(&op.k);
            let each = match op.rule {
                ScoreRule::Product => 2,
                ScoreRule::Bounds => 4,
            };
            (each * channels * batch * heads) as f64 * (rows * columns) as f64
        }
        Op::Route(op) => op.scores.elements() as f64,
        // They move numbers.
        Op::Gather(_) | Op::Sort(_) | Op::Scatter(_) => 0.0,
        Op::ScatterMean(op) => op.x.elements() as f64,
        Op::ClusterUpdate(op) => {
            let clusters = op.means.shape.get(1).map_or(0, |&clusters| clusters);
            (2.0 * clusters as f64 + 1.0) * op.x.elements() as f64
        }
        Op::Evict(op) => 2.0 * op.indices.elements() as f64,
        Op::VerticalSlash(op) => {
            let rows = op.bits.shape.get(2).map_or(1, |&rows| rows);
            (op.columns.elements() as f64 + op.diagonals.elements() as f64) * rows as f64
        }
        Op::Divergence(op) => 8.0 * op.sample.elements() as f64,
        Op::TopK(op) => op.x.elements() as f64,
        Op::TopP(op) => op.x.elements() as f64,
    };
    Cost {
        operations,
        read_bytes,
        written_bytes,
    }
}

/// Bytes of a tensor that the op needs to touch.
fn touched(op: &Op, slot: Slot, layout: &Layout) -> f64 {
    let all = stored(layout) as f64;
    match (op, slot) {
        (Op::Rotary(op), Slot::Y) if op.in_place => all * turned(op),
        (Op::Rotary(op), Slot::Cos | Slot::Sin) => {
            // With positions on the device, at most one row per token.
            let tokens = op.positions.as_ref().map_or(u64::MAX, stored_elements);
            let row = (op.rotary_dim / 2 * layout.dtype.size()) as f64;
            let rows = stored(&op.rows_read(layout)) as f64;
            rows.min(tokens as f64 * row)
        }
        _ => all,
    }
}

/// The part of the channels that a rotary embedding turns.
fn turned(op: &Rotary) -> f64 {
    let [.., head_dim] = dims(&op.x);
    op.rotary_dim as f64 / head_dim as f64
}

/// Bytes of the elements that are really there: repeated ones count once.
fn stored(layout: &Layout) -> u64 {
    stored_elements(layout) * layout.dtype.size()
}

fn stored_elements(layout: &Layout) -> u64 {
    layout
        .shape
        .iter()
        .zip(&layout.strides)
        .map(|(&len, &stride)| if stride == 0 { 1 } else { len })
        .product()
}

fn attention_operations(op: &Attention) -> f64 {
    let [batch, heads, _, head_dim] = dims(&op.q);
    let [.., value_dim] = dims(&op.v);
    2.0 * (head_dim + value_dim) as f64 * op.visible_pairs() * (batch * heads) as f64
}

/// For each element a multiplication and an addition, and what its exponential counts: 2 for a decay, 5 for a softmax
/// or its logarithm.
fn scan_operations(op: &Scan) -> f64 {
    let elements = op.input().elements() as f64;
    match op.rule {
        ScanRule::Sum { decay: None, .. } => elements,
        ScanRule::Sum { .. } => 4.0 * elements,
        ScanRule::LogSumExp { .. } => 5.0 * elements,
        ScanRule::Softmax { .. } => 7.0 * elements,
    }
}

/// Those of the recurrence: a multiplication and an addition per element of the state for each update (two in the delta
/// rule, three in the low-rank one) and for each query.
fn linear_attention_operations(op: &LinearAttention) -> f64 {
    let [batch, heads, updates, value_dim] = dims(&op.v);
    let [_, o_heads, seq, _] = dims(&op.o);
    let state = (op.state_rows() * value_dim) as f64;
    let passes = match op.rule {
        UpdateRule::Linear => 1,
        // What is held under a key is read before it is corrected.
        UpdateRule::Delta { .. } => 2,
        // `k vᵀ`, `aᵀ S` and `b (aᵀ S)`.
        UpdateRule::LowRank { .. } => 3,
    };
    2.0 * state * (batch * (passes * heads * updates + o_heads * seq)) as f64
}
