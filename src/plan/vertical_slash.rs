//! Blocks that columns and diagonals pass through: a workgroup per row.

use super::{
    Outline, Schedule,
    ranges::{Plan, by_batch_and_head},
    slice::Operand,
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::vertical_slash::{Params, Variant, WORDS, WORKGROUP},
    ops::{Slot, VerticalSlash, dims},
    tensor::Layout,
};

pub(super) fn outline(op: &VerticalSlash, caps: &Caps) -> Result<Outline> {
    let [batch, heads, rows, words] = dims(&op.bits);
    let count = |list: &Layout| list.shape.last().copied().unwrap_or(1);
    let [columns, diagonals] = [count(&op.columns), count(&op.diagonals)];
    let each = |places: u64| places.div_ceil(WORKGROUP.into());
    // Words that a diagonal passes through.
    let span = (op.block_q.div_ceil(op.block_kv) / 32 + 2).min(WORDS.into());
    let of_diagonals = each(diagonals).saturating_mul(2 + span);
    let others = 3 * each(columns) + 2 * each(WORDS.into()) + 4;
    let iterations = of_diagonals.saturating_add(others);
    if iterations > caps.loop_budget.into() {
        return Err(Error::unsupported(
            format!(
                "{columns} columns and {diagonals} diagonals, in rows of {} queries",
                op.block_q
            ),
            format!(
                "a kernel may loop {} times on this device, and takes {iterations}",
                caps.loop_budget
            ),
            "measure the device's loop budget (Engine::measure), or list fewer",
        ));
    }
    let variant = Variant {
        other: op.other.is_some(),
        by_head: op.head_choice.is_some(),
    };
    let lies = |slot: Slot, layout: &Layout| match (slot, layout.strides.as_slice()) {
        (Slot::HeadChoice, &[b, head]) => Operand::new(slot.name(), layout, [b, head], 1),
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
        why: "a workgroup per row of blocks marks what the lists pass through",
    };
    plan.outline(|slice| {
        let windows = words.div_ceil(WORDS.into());
        let workgroups = slice.sequences * rows * windows;
        let [columns_at, columns_batch, columns_head, columns_place, _] =
            slice.places(Slot::Columns);
        let [
            diagonals_at,
            diagonals_batch,
            diagonals_head,
            diagonals_place,
            _,
        ] = slice.places(Slot::Diagonals);
        let [bits_at, bits_batch, bits_head, bits_row, bits_word] = slice.places(Slot::Bits);
        let [
            blocks_at,
            blocks_batch,
            blocks_head,
            blocks_row,
            blocks_word,
        ] = slice.places(Slot::Blocks);
        let [head_choice_at, head_choice_batch, head_choice_head, ..] =
            slice.places(Slot::HeadChoice);
        let params = Params {
            workgroups: small(workgroups),
            windows: small(windows),
            rows: small(rows),
            heads: small(slice.heads),
            words: small(words),
            blocks: small(op.blocks),
            block_q: small(op.block_q),
            block_kv: small(op.block_kv),
            first_query: small(op.first_query),
            column_count: small(columns),
            diagonal_count: small(diagonals),
            by_key: op.sample_query.is_some().into(),
            sample_query: small(op.sample_query.unwrap_or(0)),
            columns_at,
            columns_batch,
            columns_head,
            columns_place,
            diagonals_at,
            diagonals_batch,
            diagonals_head,
            diagonals_place,
            bits_at,
            bits_batch,
            bits_head,
            bits_row,
            bits_word,
            blocks_at,
            blocks_batch,
            blocks_head,
            blocks_row,
            blocks_word,
            head_choice_at,
            head_choice_batch,
            head_choice_head,
        };
        let all = op.tensors();
        let slots: Vec<Slot> = all.into_iter().map(|(slot, _)| slot).collect();
        slice.push(variant, &slots, params.bytes(), workgroups)
    })
}
