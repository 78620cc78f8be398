//! Random features: which slices, and whether maxima over all tokens come first.

use super::{
    Outline, Range, Schedule, Step, grid, layout_places,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::random_features::{Params, Phase, ROWS, Variant},
    ops::{RandomFeatures, RandomKernel, Slot, Stabiliser, dims},
    tensor::{DType, Layout},
};

// The iteration space: batch entries, heads, rows.
const ROW: usize = 2;
const AXES: usize = 3;

pub(super) fn outline(op: &RandomFeatures, caps: &Caps) -> Result<Outline> {
    let [batch, heads, seq, dim] = dims(&op.x);
    let features = dims(&op.y)[3];
    let rows = u64::from(ROWS);
    let tiles = seq.div_ceil(rows);
    let (phases, why): (&[Phase], _) = match op.kernel {
        RandomKernel::Relu => (&[Phase::Relu], "a workgroup owns four rows"),
        RandomKernel::Softmax {
            stabiliser: Stabiliser::Row,
        } => (&[Phase::Row], "a workgroup owns four rows"),
        RandomKernel::Softmax {
            stabiliser: Stabiliser::All,
        } => (
            &[Phase::Maxima, Phase::All],
            "the largest product of all tokens comes first",
        ),
    };
    let variants = phases.iter().map(|&phase| Variant {
        phase,
        x_f16: op.x.dtype == DType::F16,
        y_f16: phase != Phase::Maxima && op.y.dtype == DType::F16,
    });
    let limit = caps.max_binding_bytes;
    for variant in variants.clone() {
        if let Err(reason) = crate::kernels::Variant::supports(&variant, caps) {
            return Err(Error::unsupported(
                format!("random features of {}", op.x.dtype),
                reason,
                "create the device with these features and limits, or store the tensors as f32",
            ));
        }
        let loops = variant.iterations(dim, features, tiles);
        if loops > caps.loop_budget.into() {
            return Err(Error::unsupported(
                format!("{features} random features of {seq} tokens"),
                format!(
                    "a kernel may loop {} times on this device, and would {loops} times",
                    caps.loop_budget
                ),
                "use fewer features, or shorter sequences",
            ));
        }
    }
    let scratch_bytes = if phases.len() > 1 {
        (batch * heads).saturating_mul(tiles * 4)
    } else {
        0
    };
    if scratch_bytes > limit {
        return Err(Error::unsupported(
            format!("maxima of {seq} tokens in {scratch_bytes} bytes"),
            format!("a binding holds {limit} bytes"),
            "call once per batch entry or head",
        ));
    }

    let lens = [batch, heads, seq];
    let alignment = u64::from(caps.storage_alignment);
    let operand = |slot: Slot, layout: &Layout| {
        let strides = |axis: usize| layout.strides.get(axis).copied().unwrap_or(0);
        let inner = strides(3) * (dims(layout)[3] - 1) + 1;
        let axes = std::array::from_fn(strides);
        (slot, Operand::<AXES>::new(slot.name(), layout, axes, inner))
    };
    let mut projection = Operand::new("projection", &op.projection, [0; AXES], 1);
    let ends = op.projection.strides.iter().zip(&op.projection.shape);
    projection.inner += ends.map(|(stride, len)| stride * (len - 1)).sum::<u64>();
    let operands = [
        operand(Slot::X, &op.x),
        (Slot::Projection, projection),
        operand(Slot::Y, &op.y),
    ];
    let list: Vec<Operand<AXES>> = operands.iter().map(|(_, o)| o.clone()).collect();
    let mut part = slice::fit(lens, &list, limit, alignment)?;
    if part[ROW] < seq {
        // Tiles are counted through all slices.
        part[ROW] = part[ROW] / rows * rows;
        if part[ROW] == 0 {
            return Err(Error::unsupported(
                format!("x or y with fewer than {rows} rows in {limit} bytes"),
                "a binding holds no more",
                "use strides that keep neighbours together",
            ));
        }
    }
    slice::check_count(lens, part, limit)?;

    let whole = Part {
        start: [0; AXES],
        len: lens,
    };
    let mut shared = Params {
        dim: small(dim),
        features: small(features),
        all_tiles: small(tiles),
        all_heads: small(heads),
        scale: op.effective_scale(),
        factor: (features as f32).sqrt().recip(),
        eps: op.eps.0,
        ..Params::default()
    };
    let p = &mut shared;
    [p.x_batch, p.x_head, p.x_row, p.x_dim] = layout_places(&op.x);
    [p.projection_feature, p.projection_dim] = layout_places(&op.projection);
    [p.y_batch, p.y_head, p.y_row, p.y_dim] = layout_places(&op.y);
    let mut steps = Vec::new();
    for variant in variants {
        for piece in slice::parts(whole, part, &[0, 1, ROW]) {
            let row_tiles = piece.len[ROW].div_ceil(rows);
            let workgroups = piece.len[0] * piece.len[1] * row_tiles;
            let mut params = Params {
                tiles: small(workgroups),
                heads: small(piece.len[1]),
                rows: small(piece.len[ROW]),
                row_tiles: small(row_tiles),
                batch_start: small(piece.start[0]),
                head_start: small(piece.start[1]),
                tile_start: small(piece.start[ROW] / rows),
                ..shared
            };
            let mut ranges = Vec::new();
            for (slot, operand) in &operands {
                let window = operand.window(&piece, alignment);
                match slot {
                    Slot::X => params.x_at = window.first,
                    Slot::Y if variant.phase == Phase::Maxima => continue,
                    Slot::Y => params.y_at = window.first,
                    _ => params.projection_at = window.first,
                }
                ranges.push(Range {
                    slot: *slot,
                    offset: window.offset,
                    size: window.size,
                });
            }
            if scratch_bytes > 0 {
                ranges.push(Range {
                    slot: Slot::Scratch,
                    offset: 0,
                    size: scratch_bytes,
                });
            }
            steps.push(Step {
                kernel: variant.into(),
                ranges,
                params: params.bytes(),
                grid: grid(workgroups, caps)?,
            });
        }
    }
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: why.into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes,
    })
}
