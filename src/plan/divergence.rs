//! The distance of two distributions: a workgroup per head.

use super::{
    Outline, Schedule,
    ranges::{Plan, by_batch_and_head},
    slice::Operand,
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::divergence::{Params, Variant, WORKGROUP},
    ops::{Divergence, Slot, dims},
    tensor::Layout,
};

pub(super) fn outline(op: &Divergence, caps: &Caps) -> Result<Outline> {
    let [batch, heads, length, _] = dims(&op.sample);
    let iterations = 2 * (length.div_ceil(WORKGROUP.into()) + u64::from(WORKGROUP)) + 4;
    if iterations > caps.loop_budget.into() {
        return Err(Error::unsupported(
            format!("distributions over {length} places"),
            format!(
                "a kernel may loop {} times on this device, and takes {iterations}",
                caps.loop_budget
            ),
            "measure the device's loop budget (Engine::measure), or pool them first",
        ));
    }
    let variant = Variant {
        distance: op.distance.is_some(),
    };
    let lies = |slot: Slot, layout: &Layout| match (slot, layout.strides.as_slice()) {
        (Slot::Chosen | Slot::Distance, &[b, head]) => {
            Operand::new(slot.name(), layout, [b, head], 1)
        }
        _ => by_batch_and_head(slot, layout),
    };
    let plan = Plan {
        op: op.clone().into(),
        caps,
        lens: [batch, heads],
        lies: &lies,
        floats: 0,
        splits: 1,
        schedule: Schedule::Rows,
        why: "a workgroup per head",
    };
    plan.outline(|slice| {
        let [sample_at, sample_batch, sample_head, sample_place, _] = slice.places(Slot::Sample);
        let [
            estimate_at,
            estimate_batch,
            estimate_head,
            estimate_place,
            _,
        ] = slice.places(Slot::Estimate);
        let [chosen_at, chosen_batch, chosen_head, ..] = slice.places(Slot::Chosen);
        let [distance_at, distance_batch, distance_head, ..] = slice.places(Slot::Distance);
        let params = Params {
            workgroups: small(slice.sequences),
            heads: small(slice.heads),
            length: small(length),
            threshold: op.threshold.0,
            sample_at,
            sample_batch,
            sample_head,
            sample_place,
            estimate_at,
            estimate_batch,
            estimate_head,
            estimate_place,
            chosen_at,
            chosen_batch,
            chosen_head,
            distance_at,
            distance_batch,
            distance_head,
        };
        let all = op.tensors();
        let slots: Vec<Slot> = all.into_iter().map(|(slot, _)| slot).collect();
        slice.push(variant, &slots, params.bytes(), slice.sequences)
    })
}
