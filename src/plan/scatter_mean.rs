//! Rows put back where an index says: places sorted by token, then the rows of each token summed.

use super::{
    Outline, Schedule, by_fours,
    order::{KeyPlaces, Order},
    ranges::{Plan, by_batch_and_head},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        list_sums::{Params, Variant, WORKGROUP},
        order_count::Keys,
    },
    ops::{ScatterMean, Slot},
    tensor::DType,
};

/// Iterations besides those over entries.
const BESIDES: u64 = 8;

pub(super) fn outline(op: &ScatterMean, caps: &Caps) -> Result<Outline> {
    let &[batch, heads, groups, width, dim] = op.x.shape.as_slice() else {
        // The op has been checked.
        return Err(Error::invalid("x", "not five axes", "give it five"));
    };
    let n = op.y.shape[2];
    let places = groups * width;
    let order = Order::new([batch * heads, places, n], 0, true, caps)?;
    let most = u64::from(caps.loop_budget).saturating_sub(BESIDES).max(1);
    let dispatches = places.div_ceil(most);
    if dispatches > 1 && op.y.dtype == DType::F16 {
        return Err(Error::unsupported(
            format!("a mean of up to {places} rows of f16"),
            format!(
                "a kernel may loop {} times on this device, and sums so far would be rounded to f16",
                caps.loop_budget
            ),
            "measure the device's loop budget (Engine::measure), or store the tensors as f32",
        ));
    }
    let variant = Variant {
        parts: false,
        f16: op.x.dtype == DType::F16,
        vec4: by_fours(&op.x) && by_fours(&op.y),
    };
    let plan = Plan {
        op: op.clone().into(),
        caps,
        lens: [batch, heads],
        lies: &by_batch_and_head,
        floats: order.end + n + 1,
        splits: 1,
        schedule: Schedule::Rows,
        why: "places are sorted by token, and each token sums its rows",
    };
    plan.outline(|slice| {
        let (at, strides) = slice.axes(Slot::Index);
        let keys = KeyPlaces {
            keys: Keys::Index,
            at,
            strides,
            width,
        };
        order.push(slice, keys, false)?;
        order.push_starts(slice, keys, order.end)?;
        let units = dim / u64::from(variant.width());
        let invocations = slice.sequences * n * units;
        let (x_at, [x_batch, x_head, x_outer, x_inner, x_dim]) = slice.axes(Slot::X);
        let (y_at, [y_batch, y_head, y_list, y_dim]) = slice.axes(Slot::Y);
        for dispatch in 0..dispatches {
            let params = Params {
                invocations: small(invocations),
                units: small(units),
                dim: small(dim),
                parts: 1,
                lists: small(n),
                heads: small(slice.heads),
                places: small(places),
                width: small(width),
                skip: small(dispatch * most),
                most: small(most),
                epsilon: op.epsilon.0,
                order_at: slice.at(order.place()),
                starts_at: slice.at(order.end),
                parts_at: 0,
                x_at,
                x_batch,
                x_head,
                x_outer,
                x_inner,
                x_dim,
                y_at,
                y_batch,
                y_head,
                y_list,
                y_dim,
            };
            let workgroups = invocations.div_ceil(WORKGROUP.into());
            slice.push(variant, &[Slot::X, Slot::Y], params.bytes(), workgroups)?;
        }
        Ok(())
    })
}
