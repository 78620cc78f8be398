//! Orders by bucket.

use super::{
    Outline, Schedule,
    order::{KeyPlaces, Order},
    ranges::{Plan, by_batch_and_head},
};
use crate::{
    caps::Caps,
    error::Result,
    kernels::order_count::Keys,
    ops::{Slot, Sort, dims},
};

pub(super) fn outline(op: &Sort, caps: &Caps) -> Result<Outline> {
    let [batch, heads, n, _] = dims(&op.x);
    let order = Order::new([batch * heads, n, op.buckets], 0, false, caps)?;
    let plan = Plan {
        op: op.clone().into(),
        caps,
        lens: [batch, heads],
        lies: &by_batch_and_head,
        floats: order.end,
        splits: 1,
        schedule: Schedule::Rows,
        why: "buckets are counted in chunks, digit by digit, and elements put in order",
    };
    plan.outline(|slice| {
        let [at, keys_batch, keys_head, element, _] = slice.places(Slot::X);
        let keys = KeyPlaces {
            keys: Keys::X,
            at,
            strides: [keys_batch, keys_head, 0, element],
            width: n,
        };
        order.push(slice, keys, op.inverse.is_some())?;
        if op.starts.is_some() {
            order.push_starts(slice, keys, 0)?;
        }
        Ok(())
    })
}
