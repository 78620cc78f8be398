//! A list of kept keys, one step on: a workgroup per list.

use super::{
    Outline, Schedule,
    ranges::{Plan, by_batch_and_head},
    slice::Operand,
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::evict::{Params, Variant, WORKGROUP},
    ops::{Evict, Slot, dims},
    tensor::{DType, Layout},
};

pub(super) fn outline(op: &Evict, caps: &Caps) -> Result<Outline> {
    let [batch, heads, budget, _] = dims(&op.indices);
    let [_, q_heads, columns, _] = dims(&op.weight);
    let group = q_heads / heads;
    let rounds = budget.div_ceil(WORKGROUP.into());
    let walk = rounds * (group + 3) + u64::from(WORKGROUP);
    if walk >= caps.loop_budget.into() {
        return Err(Error::unsupported(
            format!("lists of {budget} keys for {group} query heads each"),
            format!(
                "a kernel may loop {} times on this device",
                caps.loop_budget
            ),
            "measure the device's loop budget (Engine::measure), or keep fewer keys",
        ));
    }
    let variant = Variant {
        f16: op.weight.dtype == DType::F16,
        in_place: op.in_place,
        places: op.places.is_some(),
    };
    let lies = |slot: Slot, layout: &Layout| match (slot, layout.strides.as_slice()) {
        (Slot::Weight, &[b, head, column]) => {
            let inner = head * (group - 1) + column * (columns - 1) + 1;
            Operand::new(slot.name(), layout, [b, head * group], inner)
        }
        (Slot::Places, &[b, head]) => Operand::new(slot.name(), layout, [b, head], 1),
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
        why: "a workgroup per list",
    };
    plan.outline(|slice| {
        let [index_at, index_batch, index_head, index_place, _] = slice.places(Slot::Index);
        let [scores_at, scores_batch, scores_head, scores_place, _] = slice.places(Slot::Scores);
        let [weight_at, weight_batch, weight_head, weight_column, _] = slice.places(Slot::Weight);
        let [positions_at, positions_batch, ..] = slice.places(Slot::Positions);
        let [indices_at, indices_batch, indices_head, indices_place, _] =
            slice.places(Slot::Indices);
        let [
            new_scores_at,
            new_scores_batch,
            new_scores_head,
            new_scores_place,
            _,
        ] = slice.places(Slot::NewScores);
        let [places_at, places_batch, places_head, ..] = slice.places(Slot::Places);
        let params = Params {
            workgroups: small(slice.sequences),
            heads: small(slice.heads),
            group: small(group),
            budget: small(budget),
            rounds: small(rounds),
            columns: small(columns),
            by_position: op.by_position.into(),
            recent: small(op.recent),
            ascending: op.ascending.into(),
            index_at,
            index_batch,
            index_head,
            index_place,
            scores_at,
            scores_batch,
            scores_head,
            scores_place,
            weight_at,
            weight_batch,
            weight_head,
            weight_column,
            positions_at,
            positions_batch,
            indices_at,
            indices_batch,
            indices_head,
            indices_place,
            new_scores_at,
            new_scores_batch,
            new_scores_head,
            new_scores_place,
            places_at,
            places_batch,
            places_head,
        };
        let all = op.tensors();
        let slots: Vec<Slot> = all.into_iter().map(|(slot, _)| slot).collect();
        slice.push(variant, &slots, params.bytes(), slice.sequences)
    })
}
