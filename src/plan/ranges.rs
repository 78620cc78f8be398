//! Sums over ranges of tokens, of which forms of linear time are made: how tokens are cut into ranges, which sequences
//! go together, and the steps that sum and join.

use super::{
    Outline, Range, Schedule, Step, Tuning, grid, layout_places,
    slice::{self, Operand, Part, Window},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Kernel, range_join,
        range_sums::{self, Rows},
    },
    ops::{Op, Slot},
    tensor::{DType, Layout},
};

/// Invocations that keep a device busy.
const WANTED_INVOCATIONS: u64 = 1 << 16;
/// The same on a software device.
const WANTED_SOFTWARE_INVOCATIONS: u64 = 1 << 9;
/// Tokens that are worth a range.
const LEAST_RANGE: u64 = 16;

/// Tokens in ranges of one length; the last may be shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub length: u64,
    pub ranges: u64,
}

/// What an invocation that walks along a range costs in iterations of loops, checks that end them counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    pub per_token: u64,
    pub besides: u64,
}

impl Cut {
    /// Ranges of `len` tokens, each walked along by `invocations`: as many as a device has use for, and short enough
    /// for its loop budget. So many as the caller wants, where that is said.
    pub fn new(
        len: u64,
        invocations: u64,
        walk: Walk,
        caps: &Caps,
        tuning: &Tuning,
    ) -> Result<Self> {
        let budget = u64::from(caps.loop_budget);
        let most = budget.saturating_sub(walk.besides) / walk.per_token;
        let busy = if caps.software {
            WANTED_SOFTWARE_INVOCATIONS
        } else {
            WANTED_INVOCATIONS
        };
        let length = match tuning.splits {
            Some(0) => {
                return Err(Error::invalid(
                    "tuning.splits",
                    "0",
                    "give at least 1 range",
                ));
            }
            Some(splits) => len.div_ceil(splits.into()),
            None => len
                .div_ceil((busy / invocations.max(1)).max(1))
                .max(LEAST_RANGE),
        };
        let length = length.min(len).min(most);
        let ranges = len.div_ceil(length.max(1));
        if most == 0 || ranges >= budget {
            return Err(Error::unsupported(
                format!("sequences of {len} tokens"),
                format!(
                    "a kernel may loop {budget} times on this device, and takes {} for a token and {} besides; \
                     and it loops over ranges of tokens",
                    walk.per_token, walk.besides
                ),
                "measure the device's loop budget (Engine::measure), or use fewer channels per head",
            ));
        }
        Ok(Self { length, ranges })
    }
}

/// An op on sequences, one per batch entry and head, as steps that follow one another for each slice of them.
pub(super) struct Plan<'a> {
    pub op: Op,
    pub caps: &'a Caps,
    /// Batch entries and heads.
    pub lens: [u64; 2],
    /// How a tensor lies over them.
    pub lies: &'a dyn Fn(Slot, &Layout) -> Operand<2>,
    /// Floats of scratch per sequence.
    pub floats: u64,
    /// Ranges of the longest walk.
    pub splits: u64,
    pub schedule: Schedule,
    pub why: &'a str,
}

impl Plan<'_> {
    /// Cuts the op into slices, for each of which `build` makes the steps.
    pub fn outline(self, build: impl Fn(&mut Slice<'_>) -> Result<()>) -> Result<Outline> {
        let caps = self.caps;
        let alignment = u64::from(caps.storage_alignment);
        let limit = caps.max_binding_bytes;
        let tensors = self.op.tensors();
        let operands: Vec<Operand<2>> = tensors.iter().map(|(s, l)| (self.lies)(*s, l)).collect();
        let mut part = slice::fit(self.lens, &operands, limit, alignment)?;
        let bytes = |part: [u64; 2]| part.iter().product::<u64>().saturating_mul(self.floats * 4);
        while bytes(part) > limit.min(caps.max_buffer_bytes) {
            match (0..2).rev().find(|&axis| part[axis] > 1) {
                Some(axis) => part[axis] = part[axis].div_ceil(2),
                None => {
                    return Err(Error::unsupported(
                        format!("scratch of {} bytes for one head", bytes(part)),
                        format!("a binding holds {limit} bytes"),
                        "ask for the adapter's own limits when you create the device, use fewer tokens or \
                         channels per head, or fix fewer ranges (Tuning::splits)",
                    ));
                }
            }
        }
        slice::check_count(self.lens, part, limit)?;
        let whole = Part {
            start: [0; 2],
            len: self.lens,
        };
        let mut steps = Vec::new();
        for piece in slice::parts(whole, part, &[0, 1]) {
            let [batch, heads] = piece.len;
            let windows = tensors.iter().zip(&operands);
            let mut slice = Slice {
                caps,
                sequences: batch * heads,
                heads,
                tensors: windows
                    .map(|((slot, layout), operand)| {
                        (*slot, *layout, operand.window(&piece, alignment))
                    })
                    .collect(),
                scratch_bytes: bytes(piece.len),
                steps: Vec::new(),
            };
            build(&mut slice)?;
            steps.append(&mut slice.steps);
        }
        let scratch_bytes = bytes(part);
        Ok(Outline {
            schedule: self.schedule,
            why: self.why.into(),
            rejected: Vec::new(),
            splits: self.splits,
            steps,
            scratch_bytes,
            op: self.op,
        })
    }
}

/// A tensor over batch entries and heads: these are its first axes; or a mask, `[batch, seq]`.
pub(super) fn by_batch_and_head(slot: Slot, layout: &Layout) -> Operand<2> {
    let axis = |axis: usize| match layout.shape.get(axis) {
        None | Some(1) => 0,
        Some(_) => layout.strides.get(axis).copied().unwrap_or(0),
    };
    let (strides, own) = match layout.rank() {
        3.. => ([axis(0), axis(1)], 2),
        _ => ([axis(0), 0], 1),
    };
    let along = layout.shape.iter().zip(&layout.strides).skip(own);
    let inner = along.fold(1, |span, (len, stride)| span + stride * (len - 1));
    Operand::new(slot.name(), layout, strides, inner)
}

/// Sequences that are computed together.
pub(super) struct Slice<'a> {
    caps: &'a Caps,
    pub sequences: u64,
    pub heads: u64,
    tensors: Vec<(Slot, &'a Layout, Window)>,
    scratch_bytes: u64,
    steps: Vec<Step>,
}

/// Sums over tokens, and where they go. Places in scratch count floats per sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    pub rows: Rows,
    /// Whether the logistic function is applied to rows.
    pub sigmoid: bool,
    /// Whether columns are channels of values.
    pub values: bool,
    /// Where weights of the tokens are.
    pub weights: Option<u64>,
    pub dim: u64,
    pub columns: u64,
    pub len: u64,
    pub cut: Cut,
    /// Where the sum of each range goes.
    pub parts: u64,
    /// Where their total goes; none: parts become sums of the ranges before them.
    pub totals: Option<u64>,
}

/// What summing costs: an iteration per token, and up to four elements that are written.
pub(super) const SUM: Walk = Walk {
    per_token: 1,
    besides: 6,
};

impl Slice<'_> {
    /// A place in scratch for a shader.
    pub fn at(&self, place: u64) -> u32 {
        small(place * self.sequences)
    }

    /// First element of a tensor in what is bound, and its strides; zeros of one that the op has not.
    pub fn places(&self, slot: Slot) -> [u32; 5] {
        let (first, [a, b, c, d]) = self.axes(slot);
        [first, a, b, c, d]
    }

    /// The same of a tensor with any number of axes.
    pub fn axes<const AXES: usize>(&self, slot: Slot) -> (u32, [u32; AXES]) {
        let found = self.tensors.iter().find(|(other, ..)| *other == slot);
        found.map_or((0, [0; AXES]), |(_, layout, window)| {
            (window.first, layout_places(layout))
        })
    }

    /// Adds a step that binds scratch and these tensors.
    pub fn push(
        &mut self,
        kernel: impl Into<Kernel>,
        slots: &[Slot],
        params: Vec<u8>,
        workgroups: u64,
    ) -> Result<()> {
        let kernel = kernel.into();
        if let Err(reason) = kernel.supports(self.caps) {
            let f16 = self.tensors.iter().any(|(_, l, _)| l.dtype == DType::F16);
            return Err(Error::unsupported(
                format!(
                    "{} of {}",
                    kernel.stem(),
                    if f16 { DType::F16 } else { DType::F32 }
                ),
                reason,
                "create the device with these features and limits, or store the tensors as f32",
            ));
        }
        let bound = self.tensors.iter().filter(|(s, ..)| slots.contains(s));
        let mut ranges: Vec<Range> = bound
            .map(|(slot, _, window)| Range {
                slot: *slot,
                offset: window.offset,
                size: window.size,
            })
            .collect();
        ranges.push(Range {
            slot: Slot::Scratch,
            offset: 0,
            size: self.scratch_bytes,
        });
        self.steps.push(Step {
            kernel,
            ranges,
            params,
            grid: grid(workgroups, self.caps)?,
        });
        Ok(())
    }

    /// Sums ranges, and joins them.
    pub fn sum(&mut self, sums: &Sums) -> Result<()> {
        let Cut { length, ranges } = sums.cut;
        let units = sums.dim.div_ceil(4);
        let invocations = self.sequences * ranges * units * sums.columns;
        let rows = match sums.rows {
            Rows::One => None,
            Rows::Queries => Some(Slot::Q),
            Rows::Keys => Some(Slot::K),
        };
        let mut slots: Vec<Slot> = rows.into_iter().collect();
        slots.extend(sums.values.then_some(Slot::V));
        let f16 = |(slot, layout, _): &(Slot, &Layout, Window)| {
            slots.contains(slot) && layout.dtype == DType::F16
        };
        let variant = range_sums::Variant {
            rows: sums.rows,
            sigmoid: sums.sigmoid,
            values: sums.values,
            weighted: sums.weights.is_some(),
            f16: self.tensors.iter().any(f16),
        };
        let mut params = range_sums::Params {
            invocations: small(invocations),
            dim: small(sums.dim),
            units: small(units),
            columns: small(sums.columns),
            heads: small(self.heads),
            len: small(sums.len),
            ranges: small(ranges),
            range_length: small(length),
            sums_at: self.at(sums.parts),
            weights_at: self.at(sums.weights.unwrap_or(0)),
            ..Default::default()
        };
        let p = &mut params;
        if let Some(rows) = rows {
            [p.x_at, p.x_batch, p.x_head, p.x_row, p.x_dim] = self.places(rows);
        }
        [p.v_at, p.v_batch, p.v_head, p.v_row, p.v_dim] = self.places(Slot::V);
        let workgroups = invocations.div_ceil(range_sums::WORKGROUP.into());
        self.push(variant, &slots, params.bytes(), workgroups)?;

        let width = sums.dim * sums.columns;
        let invocations = self.sequences * width;
        let params = range_join::Params {
            invocations: small(invocations),
            width: small(width),
            ranges: small(ranges),
            prefixes: sums.totals.is_none().into(),
            sums_at: self.at(sums.parts),
            totals_at: self.at(sums.totals.unwrap_or(0)),
        };
        let workgroups = invocations.div_ceil(range_join::WORKGROUP.into());
        self.push(range_join::Variant {}, &[], params.bytes(), workgroups)
    }
}
