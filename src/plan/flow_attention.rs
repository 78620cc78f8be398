//! Flow attention: sums over tokens, and what each token reads of them, in turn.

use super::{
    Outline, Schedule, Tuning,
    ranges::{Cut, Plan, SUM, Slice, Sums, Walk, by_batch_and_head},
    small,
};
use crate::{
    caps::Caps,
    error::Result,
    kernels::{
        flow_read::{Params, Role, Variant, WORKGROUP},
        range_sums::Rows,
    },
    ops::{FlowAttention, Slot, dims},
    tensor::DType,
};

/// How the tokens of each walk are cut.
struct Cuts {
    sums_q: Cut,
    sums_k: Cut,
    state: Cut,
    reads_q: Cut,
    reads_k: Cut,
    output: Cut,
}

impl Cuts {
    fn new(op: &FlowAttention, caps: &Caps, tuning: &Tuning) -> Result<Self> {
        let [batch, heads, q_len, dim] = dims(&op.q);
        let [_, _, kv_len, columns] = dims(&op.v);
        let sequences = batch * heads;
        let units = dim.div_ceil(4);
        // A column of the state is loaded; then each token takes a turn of its own, and one per four rows.
        let read = Walk {
            per_token: units + 2,
            besides: units + 2,
        };
        let cut = |len, lanes, walk| Cut::new(len, lanes, walk, caps, tuning);
        let output = cut(q_len, sequences * columns, read)?;
        let reads_q = cut(q_len, sequences, read)?;
        if op.causal {
            // A walk begins with the sum of the ranges before it.
            return Ok(Self {
                sums_q: reads_q,
                sums_k: reads_q,
                state: output,
                reads_q,
                reads_k: reads_q,
                output,
            });
        }
        Ok(Self {
            sums_q: cut(q_len, sequences * units, SUM)?,
            sums_k: cut(kv_len, sequences * units, SUM)?,
            state: cut(kv_len, sequences * units * columns, SUM)?,
            reads_q,
            reads_k: cut(kv_len, sequences, read)?,
            output,
        })
    }
}

/// Places in scratch, in floats per sequence.
struct Places {
    /// `1 / I` of the formula's queries, which become factors on the output.
    gate: u64,
    outgoing: u64,
    /// Exponentials of the keys' sources, which become their shares.
    shares: u64,
    /// Sums of ranges, of keys or of the state; then those of queries.
    parts: u64,
    parts_q: u64,
    totals: u64,
    totals_q: u64,
    end: u64,
}

impl Places {
    fn new(op: &FlowAttention, cuts: &Cuts) -> Self {
        let [_, _, q_len, dim] = dims(&op.q);
        let [_, _, kv_len, columns] = dims(&op.v);
        let parts = q_len + 2 * kv_len;
        let parts_q = parts + cuts.sums_k.ranges * dim;
        let rows_end = parts_q + cuts.sums_q.ranges * dim;
        let totals = rows_end.max(parts + cuts.state.ranges * dim * columns);
        Self {
            gate: 0,
            outgoing: q_len,
            shares: q_len + kv_len,
            parts,
            parts_q,
            totals,
            totals_q: totals + dim,
            end: totals + dim * columns.max(2),
        }
    }
}

/// What tokens read.
struct Read {
    role: Role,
    len: u64,
    cut: Cut,
    dim: u64,
    columns: u64,
    parts: u64,
    totals: u64,
    weights: u64,
    out: u64,
    factor: f32,
}

pub(super) fn outline(op: &FlowAttention, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let [batch, heads, ..] = dims(&op.q);
    let cuts = Cuts::new(op, caps, tuning)?;
    let places = Places::new(op, &cuts);
    let plan = Plan {
        op: op.clone().into(),
        caps,
        lens: [batch, heads],
        lies: &by_batch_and_head,
        floats: places.end,
        splits: cuts.state.ranges,
        schedule: Schedule::Ranges,
        why: "sums over ranges of tokens are joined, and each token reads them",
    };
    plan.outline(|slice| build(op, &cuts, &places, slice))
}

fn build(op: &FlowAttention, cuts: &Cuts, places: &Places, slice: &mut Slice<'_>) -> Result<()> {
    let [_, _, q_len, dim] = dims(&op.q);
    let [_, _, kv_len, columns] = dims(&op.v);
    let whole = |total| (!op.causal).then_some(total);
    let keys = Sums {
        rows: Rows::Keys,
        sigmoid: true,
        values: false,
        weights: None,
        dim,
        columns: 1,
        len: kv_len,
        cut: cuts.sums_k,
        parts: places.parts,
        totals: whole(places.totals),
    };
    let queries = Sums {
        rows: Rows::Queries,
        len: q_len,
        cut: cuts.sums_q,
        parts: places.parts_q,
        totals: whole(places.totals_q),
        ..keys
    };
    let shares = Sums {
        rows: Rows::One,
        sigmoid: false,
        weights: Some(places.shares),
        dim: 1,
        ..keys
    };
    let state = Sums {
        values: true,
        weights: Some(places.shares),
        columns,
        cut: cuts.state,
        ..keys
    };
    // Queries read sums of keys, and keys those of queries.
    let by_query = |role| Read {
        role,
        len: q_len,
        cut: cuts.reads_q,
        dim,
        columns: 1,
        parts: places.parts,
        totals: places.totals,
        weights: places.outgoing,
        out: places.gate,
        factor: 1.0,
    };
    let by_key = |role, out| Read {
        len: kv_len,
        cut: cuts.reads_k,
        parts: places.parts_q,
        totals: places.totals_q,
        weights: places.gate,
        out,
        ..by_query(role)
    };
    let of_all = |factor: f64| if op.causal { 1.0 } else { factor as f32 };

    slice.sum(&keys)?;
    slice.sum(&queries)?;
    read(op, slice, &by_query(Role::Incoming))?;
    read(op, slice, &by_key(Role::Outgoing, places.outgoing))?;
    slice.sum(&Sums {
        weights: Some(places.outgoing),
        ..keys
    })?;
    slice.sum(&Sums {
        weights: Some(places.gate),
        ..queries
    })?;
    // In this order: what is allocated takes the place of the incoming flow.
    read(op, slice, &by_key(Role::Compete, places.shares))?;
    let allocate = Read {
        factor: of_all(q_len as f64 / kv_len as f64),
        ..by_query(Role::Allocate)
    };
    read(op, slice, &allocate)?;
    slice.sum(&shares)?;
    let share = Read {
        dim: 1,
        parts: places.parts,
        totals: places.totals,
        weights: places.shares,
        factor: of_all(kv_len as f64),
        ..by_key(Role::Share, places.shares)
    };
    read(op, slice, &share)?;
    slice.sum(&state)?;
    let output = Read {
        columns,
        cut: cuts.output,
        weights: places.shares,
        ..by_query(Role::Output)
    };
    read(op, slice, &output)
}

/// Room for so many vectors, in steps that keep variants few.
fn room(units: u64) -> u32 {
    [1, 4, 16]
        .into_iter()
        .find(|&room| units <= room.into())
        .unwrap_or(64)
}

fn read(op: &FlowAttention, slice: &mut Slice<'_>, read: &Read) -> Result<()> {
    let units = read.dim.div_ceil(4);
    let variant = Variant {
        role: read.role,
        causal: op.causal,
        units: room(units),
        f16: op.q.dtype == DType::F16 && read.role != Role::Share,
    };
    let Cut { length, ranges } = read.cut;
    let invocations = slice.sequences * ranges * read.columns;
    let width = read.dim * read.columns;
    let plain = matches!(read.role, Role::Share | Role::Output);
    let (sums, sums_range, sums_sequence) = if op.causal {
        (read.parts, width, ranges * width)
    } else {
        (read.totals, 0, width)
    };
    let mut params = Params {
        invocations: small(invocations),
        dim: small(read.dim),
        units: small(units),
        columns: small(read.columns),
        heads: small(slice.heads),
        len: small(read.len),
        ranges: small(ranges),
        range_length: small(length),
        eps: if plain { 0.0 } else { op.eps.0 },
        factor: read.factor,
        sums_at: slice.at(sums),
        sums_range: small(sums_range),
        sums_sequence: small(sums_sequence),
        weights_at: slice.at(read.weights),
        out_at: slice.at(read.out),
        ..Params::default()
    };
    let p = &mut params;
    [p.q_at, p.q_batch, p.q_head, p.q_row, p.q_dim] = slice.places(Slot::Q);
    [p.k_at, p.k_batch, p.k_head, p.k_row, p.k_dim] = slice.places(Slot::K);
    [p.v_at, p.v_batch, p.v_head, p.v_row, p.v_dim] = slice.places(Slot::V);
    [p.o_at, p.o_batch, p.o_head, p.o_row, p.o_dim] = slice.places(Slot::O);
    let [uses_q, uses_k] = variant.uses();
    let output = read.role == Role::Output;
    let slots: Vec<Slot> = [
        (uses_q, Slot::Q),
        (uses_k, Slot::K),
        (output && op.causal, Slot::V),
        (output, Slot::O),
    ]
    .into_iter()
    .filter_map(|(bound, slot)| bound.then_some(slot))
    .collect();
    let workgroups = invocations.div_ceil(WORKGROUP.into());
    slice.push(variant, &slots, params.bytes(), workgroups)
}
