//! Selections of the best elements of each row: so many, or as many as their mass asks for.

use serde::{Deserialize, Serialize};

use super::{Args, Real, RouteMass, Slot, check, route::MOST_KEPT};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// The `k` largest, or smallest, elements of each row, and where they are.
///
/// The order is total: of equal elements the one of the lower index comes first, -0 equals +0, and NaN comes last,
/// after minus infinity (when the smallest are taken: after plus infinity). So results are the same on every device
/// and in every run. Elements are compared by their bits: no two different numbers are taken for equal.
///
/// Elements past `row_len` are not taken, and with `skip_hidden` neither are NaN and minus infinity (plus infinity when
/// the smallest are taken). Places that nothing is left for come last, with an index of `u32::MAX` and that infinity as
/// their value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// f32 or f16 `[.., n]`, 1 to 4 axes, any strides.
    pub x: Layout,
    /// How many are taken: 1 to 4096, at most `n`.
    pub k: u64,
    /// Whether the largest are taken; else the smallest.
    #[serde(default = "yes")]
    pub largest: bool,
    /// Whether the best comes first; else they are in the order of their indices.
    #[serde(default = "yes")]
    pub sorted: bool,
    /// Whether NaN and the worse infinity are left out.
    #[serde(default)]
    pub skip_hidden: bool,
    /// Valid elements of each row, u32 with the axes of `x` but the last (`[1]` for one row); all when absent. Lengths
    /// past `n` count as `n`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_len: Option<Layout>,
    /// The elements, of the type of `x`, `[.., k]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Layout>,
    /// Their indices along the last axis, u32 `[.., k]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indices: Option<Layout>,
}

fn yes() -> bool {
    true
}

/// The shape of `x` with another last axis.
fn with_last(x: &Layout, last: u64) -> Vec<u64> {
    let mut shape = x.shape.clone();
    if let Some(len) = shape.last_mut() {
        *len = last;
    }
    shape
}

/// The axes of `x` but the last; one axis for a single row.
pub(super) fn rows_of(x: &Layout) -> Vec<u64> {
    match x.shape.split_last() {
        Some((_, rows)) if !rows.is_empty() => rows.to_vec(),
        _ => vec![1],
    }
}

/// What the input of a selection must be; the length of its rows.
fn check_input(x: &Layout) -> Result<u64> {
    x.check(Slot::X.name())?;
    check::dtype(Slot::X, x, &[DType::F32, DType::F16])?;
    match x.shape[..] {
        [.., length] if x.rank() <= 4 && length < u64::from(u32::MAX) => Ok(length),
        [.., length] if x.rank() <= 4 => Err(Error::invalid(
            Slot::X.name(),
            format!("rows of {length} elements"),
            "an index has 32 bits, and its largest number is for places that hold none: cut the rows",
        )),
        _ => Err(Error::invalid(
            Slot::X.name(),
            format!("{} axes in shape {:?}", x.rank(), x.shape),
            "give it 1 to 4 axes, the last along a row",
        )),
    }
}

/// Checks how many are taken of rows of so many elements.
fn check_count(name: &str, count: u64, length: u64) -> Result<()> {
    if !(1..=MOST_KEPT).contains(&count) {
        return Err(Error::invalid(
            name,
            format!("{count}"),
            format!("give 1 to {MOST_KEPT}"),
        ));
    }
    if count > length {
        return Err(Error::invalid(
            name,
            format!("{count} of rows of {length} elements"),
            "take at most as many as a row has",
        ));
    }
    Ok(())
}

impl TopK {
    /// The `k` largest of each row, best first, values and indices in contiguous tensors of their own.
    pub fn new(x: Layout, k: u64) -> Self {
        let shape = with_last(&x, k);
        Self {
            k,
            largest: true,
            sorted: true,
            skip_hidden: false,
            row_len: None,
            values: Some(Layout::new(x.dtype, shape.clone())),
            indices: Some(Layout::new(DType::U32, shape)),
            x,
        }
    }

    /// Takes the smallest.
    #[must_use]
    pub fn smallest(mut self) -> Self {
        self.largest = false;
        self
    }

    /// Leaves what is taken in the order of the indices.
    #[must_use]
    pub fn unsorted(mut self) -> Self {
        self.sorted = false;
        self
    }

    /// Leaves out NaN and the worse infinity.
    #[must_use]
    pub fn skip_hidden(mut self) -> Self {
        self.skip_hidden = true;
        self
    }

    /// Takes elements before these lengths only.
    #[must_use]
    pub fn row_len(mut self, lengths: Layout) -> Self {
        self.row_len = Some(lengths);
        self
    }

    /// Writes values to this layout, or none.
    #[must_use]
    pub fn values(mut self, layout: Option<Layout>) -> Self {
        self.values = layout;
        self
    }

    /// Writes indices to this layout, or none.
    #[must_use]
    pub fn indices(mut self, layout: Option<Layout>) -> Self {
        self.indices = layout;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let length = check_input(&self.x)?;
        check_count("k", self.k, length)?;
        if self.values.is_none() && self.indices.is_none() {
            return Err(Error::invalid(
                "values",
                "neither values nor indices are asked for",
                "give at least one of them a layout",
            ));
        }
        let shape = with_last(&self.x, self.k);
        for (slot, layout) in self.tensors() {
            match slot {
                Slot::RowLen => check::tensor(slot, layout, &[DType::U32], &rows_of(&self.x))?,
                Slot::Values => check::tensor(slot, layout, &[self.x.dtype], &shape)?,
                Slot::Indices => check::tensor(slot, layout, &[DType::U32], &shape)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![(Slot::X, &self.x)];
        list.extend(self.row_len.as_ref().map(|layout| (Slot::RowLen, layout)));
        list.extend(self.values.as_ref().map(|layout| (Slot::Values, layout)));
        list.extend(self.indices.as_ref().map(|layout| (Slot::Indices, layout)));
        list
    }
}

/// The tensors of a [`TopK`].
#[derive(Debug, Clone)]
pub struct TopKArgs<'a> {
    /// Input.
    pub x: View<'a>,
    /// Valid elements of each row.
    pub row_len: Option<View<'a>>,
    /// Elements taken.
    pub values: Option<View<'a>>,
    /// Their indices.
    pub indices: Option<View<'a>>,
}

impl<'a> From<TopKArgs<'a>> for Args<'a> {
    fn from(args: TopKArgs<'a>) -> Self {
        let mut list = vec![(Slot::X, args.x)];
        for (slot, view) in [
            (Slot::RowLen, args.row_len),
            (Slot::Values, args.values),
            (Slot::Indices, args.indices),
        ] {
            list.extend(view.map(|view| (slot, view)));
        }
        Self(list)
    }
}

/// As many of the best elements of each row as it takes for their share of the row's mass to reach `p`.
///
/// Elements are ordered as [`TopK`] orders them, largest first, and NaN and minus infinity are never taken. With `m` the
/// mass of an element (`exp(x - max x)`, or `max(x, 0)`, see [`RouteMass`]), the smallest `c` is taken for which the sum
/// of the first `c` masses is at least `p` times the sum of all; then at least `min` and at most `max`, as far as there
/// are elements that may be taken. A `p` of 1 takes all of those, also the ones that are worth nothing. Plus infinity
/// counts as the largest finite number. Sums are f32, in an order that is the same in every run on a device: where sums
/// come within rounding of the bound, fewer or more elements are taken, as many as are worth that little together (one,
/// but for masses below the rounding of the sum).
///
/// Sources: nucleus sampling (Holtzman et al., 2020, arXiv:1904.09751); FlexPrefill (Lai et al., 2025,
/// arXiv:2502.20766).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopP {
    /// f32 or f16 `[.., n]`, 1 to 4 axes, any strides.
    pub x: Layout,
    /// Above 0, at most 1.
    pub p: Real,
    /// What an element is worth.
    #[serde(default)]
    pub mass: RouteMass,
    /// At least so many are taken.
    #[serde(default)]
    pub min: u64,
    /// At most so many are taken: 1 to 4096, at most `n`.
    pub max: u64,
    /// Whether the best comes first; else they are in the order of their indices.
    #[serde(default = "yes")]
    pub sorted: bool,
    /// Valid elements of each row, as of [`TopK`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_len: Option<Layout>,
    /// Indices of what is taken, u32 `[.., max]`; `u32::MAX` after those.
    pub indices: Layout,
    /// How many are taken of each row, u32 with the axes of `x` but the last (`[1]` for one row).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Layout>,
}

impl TopP {
    /// The best of each row up to a share `p` of its softmax, at most `max`, best first, in contiguous tensors.
    pub fn new(x: Layout, p: f32, max: u64) -> Self {
        Self {
            p: Real(p),
            mass: RouteMass::Softmax,
            min: 0,
            max,
            sorted: true,
            row_len: None,
            indices: Layout::new(DType::U32, with_last(&x, max)),
            counts: Some(Layout::new(DType::U32, rows_of(&x))),
            x,
        }
    }

    /// Says what an element is worth.
    #[must_use]
    pub fn mass(mut self, mass: RouteMass) -> Self {
        self.mass = mass;
        self
    }

    /// Takes at least so many.
    #[must_use]
    pub fn at_least(mut self, min: u64) -> Self {
        self.min = min;
        self
    }

    /// Leaves what is taken in the order of the indices.
    #[must_use]
    pub fn unsorted(mut self) -> Self {
        self.sorted = false;
        self
    }

    /// Takes elements before these lengths only.
    #[must_use]
    pub fn row_len(mut self, lengths: Layout) -> Self {
        self.row_len = Some(lengths);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let length = check_input(&self.x)?;
        check_count("max", self.max, length)?;
        if self.min > self.max {
            return Err(Error::invalid(
                "min",
                format!("{} where max is {}", self.min, self.max),
                "give at most as much as max",
            ));
        }
        if !(self.p.0 > 0.0 && self.p.0 <= 1.0) {
            return Err(Error::invalid(
                "p",
                format!("{}", self.p.0),
                "give a number above 0, at most 1",
            ));
        }
        let shape = with_last(&self.x, self.max);
        for (slot, layout) in self.tensors() {
            match slot {
                Slot::RowLen | Slot::Counts => {
                    check::tensor(slot, layout, &[DType::U32], &rows_of(&self.x))?;
                }
                Slot::Indices => check::tensor(slot, layout, &[DType::U32], &shape)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![(Slot::X, &self.x)];
        list.extend(self.row_len.as_ref().map(|layout| (Slot::RowLen, layout)));
        list.push((Slot::Indices, &self.indices));
        list.extend(self.counts.as_ref().map(|layout| (Slot::Counts, layout)));
        list
    }
}

/// The tensors of a [`TopP`].
#[derive(Debug, Clone)]
pub struct TopPArgs<'a> {
    /// Input.
    pub x: View<'a>,
    /// Valid elements of each row.
    pub row_len: Option<View<'a>>,
    /// Indices of what is taken.
    pub indices: View<'a>,
    /// How many are taken.
    pub counts: Option<View<'a>>,
}

impl<'a> From<TopPArgs<'a>> for Args<'a> {
    fn from(args: TopPArgs<'a>) -> Self {
        let mut list = vec![(Slot::X, args.x), (Slot::Indices, args.indices)];
        for (slot, view) in [(Slot::RowLen, args.row_len), (Slot::Counts, args.counts)] {
            list.extend(view.map(|view| (slot, view)));
        }
        Self(list)
    }
}
