//! Attention of holographic reduced representations: the sum of keys times values, scores against it, and weights.

use super::{
    Outline, Schedule, Tuning,
    ranges::{Cut, Plan, SUM, Slice, Sums, by_batch_and_head},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        hrr_attention::{Params, Role, Variant, WORKGROUP},
        range_sums::Rows,
    },
    ops::{HrrAttention, Slot, dims},
    tensor::DType,
};

pub(super) fn outline(op: &HrrAttention, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let [batch, heads, len, dim] = dims(&op.q);
    let sequences = batch * heads;
    let lanes = dim.next_power_of_two().min(WORKGROUP.into());
    let channels = dim.div_ceil(lanes);
    // Two loops that stage a row, one over it per channel, and two that join.
    let score = (channels + 1) * 2 + channels * (dim + 1) + 16;
    if score > caps.loop_budget.into() {
        return Err(Error::unsupported(
            format!("heads of {dim} channels"),
            format!(
                "a kernel may loop {} times on this device, and takes {score} to compare a value",
                caps.loop_budget
            ),
            "use more heads of fewer channels, or measure the device's loop budget (Engine::measure)",
        ));
    }
    let matrix = Cut::new(len, sequences * dim.div_ceil(4) * dim, SUM, caps, tuning)?;
    let total = Cut::new(len, sequences, SUM, caps, tuning)?;

    // Floats per sequence: weights, sums of ranges, and what becomes of them.
    let parts = len;
    let matrix_at = parts + (matrix.ranges * dim * dim).max(total.ranges);
    let beta = matrix_at + dim * dim;
    let totals = beta + dim;
    let plan = Plan {
        op: op.clone().into(),
        caps,
        lens: [batch, heads],
        lies: &by_batch_and_head,
        floats: totals + 1,
        splits: matrix.ranges,
        schedule: Schedule::Ranges,
        why: "keys times values are summed over ranges of tokens; each value is compared with the sum's answer",
    };
    let f16 = op.q.dtype == DType::F16;
    plan.outline(|slice: &mut Slice<'_>| {
        let bound = Sums {
            rows: Rows::Keys,
            sigmoid: false,
            values: true,
            weights: None,
            dim,
            columns: dim,
            len,
            cut: matrix,
            parts,
            totals: Some(matrix_at),
        };
        let weights = Sums {
            rows: Rows::One,
            values: false,
            weights: Some(0),
            dim: 1,
            columns: 1,
            cut: total,
            totals: Some(totals),
            ..bound
        };
        let mut params = Params {
            dim: small(dim),
            heads: small(slice.heads),
            len: small(len),
            matrix_at: slice.at(matrix_at),
            beta_at: slice.at(beta),
            weights_at: slice.at(0),
            totals_at: slice.at(totals),
            ..Params::default()
        };
        let p = &mut params;
        [p.q_at, p.q_batch, p.q_head, p.q_row, p.q_dim] = slice.places(Slot::Q);
        [p.v_at, p.v_batch, p.v_head, p.v_row, p.v_dim] = slice.places(Slot::V);
        [p.o_at, p.o_batch, p.o_head, p.o_row, p.o_dim] = slice.places(Slot::O);
        [p.mask_at, p.mask_batch, p.mask_token, _, _] = slice.places(Slot::Mask);
        let step = |slice: &mut Slice<'_>, role, slots: &[Slot], count: u64, each: u64| {
            let params = Params {
                count: small(count),
                ..params
            };
            // Nothing is stored in the tensors' type where sums are bound.
            let f16 = f16 && role != Role::Bind;
            let variant = Variant { role, f16 };
            slice.push(variant, slots, params.bytes(), count.div_ceil(each))
        };

        let score = Role::Score {
            lanes: small(lanes),
            channels: small(channels),
            mask: op.mask.is_some(),
        };
        let elements = slice.sequences * len * dim;
        let groups = slice.sequences * len.div_ceil(u64::from(WORKGROUP) / lanes);
        slice.sum(&bound)?;
        let answers = slice.sequences * dim;
        step(slice, Role::Bind, &[], answers, WORKGROUP.into())?;
        step(slice, score, &[Slot::Q, Slot::V, Slot::Mask], groups, 1)?;
        slice.sum(&weights)?;
        let slots = [Slot::V, Slot::O];
        step(slice, Role::Output, &slots, elements, WORKGROUP.into())
    })
}
