//! Slicing tensors that do not fit one binding: along which axes, and what each slice binds.

use crate::{
    error::{Error, Result},
    tensor::Layout,
};

/// How many axes an iteration space has.
pub(super) const AXES: usize = 4;

/// A tensor as an iteration space sees it: a stride per axis of the space, and what one point
/// spans by itself.
#[derive(Debug, Clone)]
pub(super) struct Operand {
    pub name: &'static str,
    pub element: u64,
    pub offset: u64,
    pub strides: [u64; AXES],
    /// Elements from the first to the last of one point.
    pub inner: u64,
}

impl Operand {
    /// An operand whose axes are those of the space followed by one axis of its own.
    pub fn new(name: &'static str, layout: &Layout, strides: [u64; AXES], inner: u64) -> Self {
        Self {
            name,
            element: layout.dtype.size(),
            offset: layout.offset,
            strides,
            inner,
        }
    }

    /// Elements from the first to the last of a box.
    fn span(&self, lens: &[u64; AXES]) -> u64 {
        self.strides
            .iter()
            .zip(lens)
            .fold(self.inner, |span, (stride, len)| span + stride * (len - 1))
    }

    /// The binding of a box: byte offset and size, and the first element's place within it.
    pub fn window(&self, part: &Part, alignment: u64) -> Window {
        let first = self
            .strides
            .iter()
            .zip(&part.start)
            .fold(self.offset, |at, (stride, start)| at + stride * start);
        let start = first * self.element / alignment * alignment;
        let end = (first + self.span(&part.len)) * self.element;
        Window {
            offset: start,
            // Bindings are counted in words of four bytes.
            size: (end - start).next_multiple_of(4),
            first: ((first * self.element - start) / self.element) as u32,
        }
    }
}

/// A range of a buffer, and the first element's place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub offset: u64,
    pub size: u64,
    pub first: u32,
}

/// A box of the iteration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub start: [u64; AXES],
    pub len: [u64; AXES],
}

/// Lengths of the parts along each axis, small enough that every operand's window fits.
///
/// The axis that spans most of the tensor that fits worst is halved until all fit.
pub(super) fn fit(
    lens: [u64; AXES],
    operands: &[Operand],
    limit: u64,
    alignment: u64,
) -> Result<[u64; AXES]> {
    let mut part = lens;
    loop {
        let worst = operands
            .iter()
            .map(|operand| {
                let bytes = operand.span(&part) * operand.element + alignment;
                (bytes, operand)
            })
            .max_by_key(|&(bytes, _)| bytes);
        let Some((bytes, operand)) = worst.filter(|&(bytes, _)| bytes > limit) else {
            return Ok(part);
        };
        let axis = (0..AXES)
            .filter(|&axis| part[axis] > 1 && operand.strides[axis] > 0)
            .max_by_key(|&axis| operand.strides[axis] * (part[axis] - 1));
        match axis {
            Some(axis) => part[axis] = part[axis].div_ceil(2),
            None => {
                return Err(Error::unsupported(
                    format!("{} with one row spanning {bytes} bytes", operand.name),
                    format!("a binding holds {limit} bytes"),
                    "use strides that keep a row together",
                ));
            }
        }
    }
}

/// More parts than this are refused: recording them would take longer than the work in them.
const MOST_PARTS: u64 = 1 << 14;

/// Checks that a space makes no absurd number of parts, before they are listed.
pub(super) fn check_count(lens: [u64; AXES], part: [u64; AXES], limit: u64) -> Result<()> {
    let count = lens.iter().zip(&part).fold(1u64, |count, (len, part)| {
        count.saturating_mul(len.div_ceil(*part))
    });
    if count > MOST_PARTS {
        return Err(Error::unsupported(
            format!("tensors in {count} slices"),
            format!("a binding holds {limit} bytes, and a plan at most {MOST_PARTS} slices"),
            "use strides that keep neighbours together, or call once per batch entry or head",
        ));
    }
    Ok(())
}

/// The parts of a space along the given axes, the last axis fastest; other axes stay at `base`.
pub(super) fn parts(base: Part, part: [u64; AXES], axes: &[usize]) -> Vec<Part> {
    let mut list = vec![base];
    for &axis in axes {
        list = list
            .into_iter()
            .flat_map(|whole| {
                let end = whole.start[axis] + whole.len[axis];
                (whole.start[axis]..end)
                    .step_by(part[axis].max(1) as usize)
                    .map(move |start| {
                        let mut piece = whole;
                        piece.start[axis] = start;
                        piece.len[axis] = part[axis].min(end - start);
                        piece
                    })
            })
            .collect();
    }
    list
}
