//! A k-means step: tokens choose centroids, are sorted by them, and summed.

use super::{
    Outline, Schedule, by_fours,
    order::{KeyPlaces, Order},
    ranges::{Plan, Slice},
    slice::Operand,
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{cluster_assign, cluster_join, list_sums, order_count::Keys},
    ops::{ClusterUpdate, Slot, dims},
    tensor::{DType, Layout},
};

/// Invocations that keep a device busy.
const WANTED_INVOCATIONS: u64 = 1 << 16;
/// The same on a software device.
const WANTED_SOFTWARE_INVOCATIONS: u64 = 1 << 10;
/// Tokens of a cluster that are worth a part.
const LEAST_PART: u64 = 32;
/// Iterations besides those over tokens, centroids or parts.
const BESIDES: u64 = 80;

/// What of scratch is where, in words per head.
struct Places {
    assigned: u64,
    best: u64,
    starts: u64,
    parts: u64,
    end: u64,
}

pub(super) fn outline(op: &ClusterUpdate, caps: &Caps) -> Result<Outline> {
    let [batch, heads, n, dim] = dims(&op.x);
    let clusters = op.means.shape[1];
    let tokens = batch * n;
    let order = Order::new([heads, tokens, clusters], 2 * tokens, true, caps)?;
    let budget = u64::from(caps.loop_budget).saturating_sub(BESIDES);
    // Centroids are taken in fours, each walked along in fours of channels.
    let walk = dim.div_ceil(4) + 2;
    let at_once = 4 * (budget / walk);
    let wanted = if caps.software {
        WANTED_SOFTWARE_INVOCATIONS
    } else {
        WANTED_INVOCATIONS
    };
    let parts = (wanted / (heads * clusters * dim.div_ceil(4)).max(1))
        .min(tokens / clusters / LEAST_PART)
        .max(tokens.div_ceil(budget.max(1)))
        .max(1);
    let joined = dim.div_ceil(cluster_join::WORKGROUP.into()) * (parts + 3);
    if at_once == 0 || joined > budget {
        return Err(Error::unsupported(
            format!("{clusters} clusters of {tokens} tokens with {dim} channels"),
            format!(
                "a kernel may loop {} times on this device",
                caps.loop_budget
            ),
            "measure the device's loop budget (Engine::measure), or take the step on fewer tokens",
        ));
    }
    let starts = order.end;
    let at = starts + clusters + 1;
    let places = Places {
        assigned: 0,
        best: tokens,
        starts,
        parts: at,
        end: at + clusters * parts * dim,
    };
    let plan = Plan {
        op: op.clone().into(),
        caps,
        lens: [1, heads],
        lies: &by_head,
        floats: places.end,
        splits: parts,
        schedule: Schedule::Rows,
        why: "tokens choose centroids, are sorted by them, and summed",
    };
    plan.outline(|slice| {
        assign(op, at_once, &places, slice)?;
        let keys = KeyPlaces {
            keys: Keys::Scratch,
            at: slice.at(places.assigned),
            strides: [0, small(tokens), 0, 1],
            width: tokens,
        };
        order.push(slice, keys, false)?;
        order.push_starts(slice, keys, places.starts)?;
        sum(op, parts, &order, &places, slice)
    })
}

fn assign(op: &ClusterUpdate, at_once: u64, places: &Places, slice: &mut Slice<'_>) -> Result<()> {
    let [batch, _, n, dim] = dims(&op.x);
    let clusters = op.means.shape[1];
    let variant = cluster_assign::Variant {
        f16: op.x.dtype == DType::F16,
        vec4: by_fours(&op.x) && by_fours(&op.means),
        output: op.assigned.is_some(),
    };
    let quads = n.div_ceil(4);
    let invocations = slice.heads * batch * quads;
    let [x_at, x_batch, x_head, x_token, x_dim] = slice.places(Slot::X);
    let [means_at, means_head, means_cluster, means_dim, _] = slice.places(Slot::Means);
    let [
        assigned_at,
        assigned_batch,
        assigned_head,
        assigned_token,
        _,
    ] = slice.places(Slot::Assigned);
    let mut slots = vec![Slot::X, Slot::Means];
    slots.extend(variant.output.then_some(Slot::Assigned));
    let mut first = 0;
    while first < clusters {
        let count = at_once.min(clusters - first);
        let params = cluster_assign::Params {
            invocations: small(invocations),
            quads: small(quads),
            n: small(n),
            batch: small(batch),
            dim: small(dim),
            clusters: small(clusters),
            first: small(first),
            count: small(count),
            last: (first + count == clusters).into(),
            assigned_place: slice.at(places.assigned),
            best_place: slice.at(places.best),
            x_at,
            x_batch,
            x_head,
            x_token,
            x_dim,
            means_at,
            means_head,
            means_cluster,
            means_dim,
            assigned_at,
            assigned_batch,
            assigned_head,
            assigned_token,
        };
        let workgroups = invocations.div_ceil(cluster_assign::WORKGROUP.into());
        slice.push(variant, &slots, params.bytes(), workgroups)?;
        first += count;
    }
    Ok(())
}

fn sum(
    op: &ClusterUpdate,
    parts: u64,
    order: &Order,
    places: &Places,
    slice: &mut Slice<'_>,
) -> Result<()> {
    let [batch, _, n, dim] = dims(&op.x);
    let clusters = op.means.shape[1];
    let variant = list_sums::Variant {
        parts: true,
        f16: op.x.dtype == DType::F16,
        vec4: by_fours(&op.x),
    };
    let units = dim / u64::from(variant.width());
    let invocations = slice.heads * clusters * parts * units;
    let [x_at, x_batch, x_head, x_token, x_dim] = slice.places(Slot::X);
    let params = list_sums::Params {
        invocations: small(invocations),
        units: small(units),
        dim: small(dim),
        parts: small(parts),
        lists: small(clusters),
        heads: small(slice.heads),
        places: small(batch * n),
        width: small(n),
        most: u32::MAX,
        order_at: slice.at(order.place()),
        starts_at: slice.at(places.starts),
        parts_at: slice.at(places.parts),
        x_at,
        x_head,
        x_outer: x_batch,
        x_inner: x_token,
        x_dim,
        ..Default::default()
    };
    let workgroups = invocations.div_ceil(list_sums::WORKGROUP.into());
    slice.push(variant, &[Slot::X], params.bytes(), workgroups)?;

    let workgroups = slice.heads * clusters;
    let [means_at, means_head, means_cluster, means_dim, _] = slice.places(Slot::Means);
    let [
        new_means_at,
        new_means_head,
        new_means_cluster,
        new_means_dim,
        _,
    ] = slice.places(Slot::NewMeans);
    let params = cluster_join::Params {
        workgroups: small(workgroups),
        clusters: small(clusters),
        dim: small(dim),
        parts: small(parts),
        decay: op.decay.0,
        starts_at: slice.at(places.starts),
        parts_at: slice.at(places.parts),
        means_at,
        means_head,
        means_cluster,
        means_dim,
        new_means_at,
        new_means_head,
        new_means_cluster,
        new_means_dim,
    };
    let slots = [Slot::Means, Slot::NewMeans];
    slice.push(cluster_join::Variant {}, &slots, params.bytes(), workgroups)
}

/// A tensor over heads alone: all batch entries of a head go together.
fn by_head(slot: Slot, layout: &Layout) -> Operand<2> {
    let axis = match slot {
        Slot::Means | Slot::NewMeans => 0,
        _ => 1,
    };
    let along = layout.shape.iter().zip(&layout.strides).enumerate();
    let inner = along
        .filter(|(own, _)| *own != axis)
        .fold(1, |span, (_, (len, stride))| span + stride * (len - 1));
    let stride = layout.strides.get(axis).copied().unwrap_or(0);
    Operand::new(slot.name(), layout, [0, stride], inner)
}
