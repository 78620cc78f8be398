//! What ops on `[batch, heads, seq, dim]` tensors check alike.

use super::{Slot, dims};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout},
};

/// The four axes of the queries, f32 or f16.
pub(super) fn queries(q: &Layout) -> Result<[u64; 4]> {
    rows(Slot::Q, q)
}

/// The four axes of a tensor of f32 or f16.
pub(super) fn rows(slot: Slot, layout: &Layout) -> Result<[u64; 4]> {
    layout.check(slot.name())?;
    axes(slot, layout, 4)?;
    dtype(slot, layout, &[DType::F32, DType::F16])?;
    Ok(dims(layout))
}

/// A tensor that must have one of these element types and this shape.
pub(super) fn tensor(slot: Slot, layout: &Layout, types: &[DType], shape: &[u64]) -> Result<()> {
    layout.check(slot.name())?;
    dtype(slot, layout, types)?;
    axes(slot, layout, shape.len())?;
    if layout.shape != shape {
        return Err(Error::invalid(
            slot.name(),
            format!("shape {:?} where {shape:?} is expected", layout.shape),
            "make it agree with the other tensors",
        ));
    }
    if slot.is_output() {
        layout.check_output(slot.name())?;
    }
    Ok(())
}

/// A tensor that must have one of these element types.
pub(super) fn dtype(slot: Slot, layout: &Layout, types: &[DType]) -> Result<()> {
    if types.contains(&layout.dtype) {
        return Ok(());
    }
    let names: Vec<String> = types.iter().map(DType::to_string).collect();
    Err(Error::invalid(
        slot.name(),
        format!("elements are {}", layout.dtype),
        format!("give {}", names.join(" or ")),
    ))
}

/// A tensor that must have so many axes.
pub(super) fn axes(slot: Slot, layout: &Layout, count: usize) -> Result<()> {
    if layout.rank() == count {
        return Ok(());
    }
    Err(Error::invalid(
        slot.name(),
        format!("{} axes in shape {:?}", layout.rank(), layout.shape),
        format!("give it {count} axes, as the docs of the op list them"),
    ))
}

/// A row that kernels must hold.
pub(super) fn most_channels(slot: Slot, layout: &Layout, most: u64) -> Result<()> {
    let [.., channels] = dims(layout);
    if channels <= most {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("{} with {channels} channels", slot.name()),
        format!("kernels hold a row of at most {most}"),
        "use more heads of fewer channels",
    ))
}
