//! Elements in the order of their buckets.

use serde::{Deserialize, Serialize};

use super::{Args, Slot, check};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// The most buckets, and the most elements of a row.
const MOST: u64 = 1 << 31;

/// The order that sorts the elements of each row by their bucket, elements of one bucket in the order in which they
/// are: a stable sort of small whole numbers.
///
/// - `indices[b, h, p]` is the element at place `p` of the order;
/// - `inverse[b, h, i]` is the place of element `i`: `inverse[indices[p]] = p`;
/// - `starts[b, h, c]` is the first place of bucket `c`, and `starts[b, h, buckets]` the number of elements that have
///   a bucket.
///
/// An element whose number is not below `buckets` ([`NONE`](crate::NONE) among them) has no bucket: such come last, in
/// the order in which they are. [`Gather`](crate::Gather) puts rows in the order, and back by the inverse. With one
/// batch entry and one head, `starts` says where sequences begin as packed attention takes it.
///
/// The same input gives the same order on every device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sort {
    /// The bucket of each element, u32 `[batch, heads, n]`.
    pub x: Layout,
    /// How many buckets there are, from 1 to 2^31.
    pub buckets: u64,
    /// The order, u32 `[batch, heads, n]`.
    pub indices: Layout,
    /// Its inverse, u32 `[batch, heads, n]`, when wanted.
    #[serde(default)]
    pub inverse: Option<Layout>,
    /// Where buckets begin, u32 `[batch, heads, buckets + 1]`, when wanted.
    #[serde(default)]
    pub starts: Option<Layout>,
}

impl Sort {
    /// The order alone, in a contiguous tensor.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(x: Layout, buckets: u64) -> Self {
        Self {
            indices: Layout::new(DType::U32, x.shape.clone()),
            x,
            buckets,
            inverse: None,
            starts: None,
        }
    }

    /// Asks for the inverse, in a contiguous tensor.
    #[must_use]
    pub fn with_inverse(mut self) -> Self {
        self.inverse = Some(Layout::new(DType::U32, self.x.shape.clone()));
        self
    }

    /// Asks for where buckets begin, in a contiguous tensor.
    #[must_use]
    pub fn with_starts(mut self) -> Self {
        let mut shape = self.x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = self.buckets.saturating_add(1);
        }
        self.starts = Some(Layout::new(DType::U32, shape));
        self
    }

    /// Writes the order to this layout.
    #[must_use]
    pub fn output(mut self, indices: Layout) -> Self {
        self.indices = indices;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        self.x.check("x")?;
        check::dtype(Slot::X, &self.x, &[DType::U32])?;
        check::axes(Slot::X, &self.x, 3)?;
        if !(1..=MOST).contains(&self.buckets) {
            return Err(Error::invalid(
                "buckets",
                self.buckets.to_string(),
                "give a number from 1 to 2^31",
            ));
        }
        let &[batch, heads, n] = self.x.shape.as_slice() else {
            return Ok(());
        };
        if n > MOST {
            return Err(Error::unsupported(
                format!("x with rows of {n} elements"),
                "places are counted in 32 bits",
                "sort shorter rows",
            ));
        }
        check::tensor(
            Slot::Indices,
            &self.indices,
            &[DType::U32],
            &[batch, heads, n],
        )?;
        if let Some(inverse) = &self.inverse {
            check::tensor(Slot::Inverse, inverse, &[DType::U32], &[batch, heads, n])?;
        }
        if let Some(starts) = &self.starts {
            let shape = [batch, heads, self.buckets + 1];
            check::tensor(Slot::Starts, starts, &[DType::U32], &shape)?;
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![(Slot::X, &self.x), (Slot::Indices, &self.indices)];
        list.extend(self.inverse.as_ref().map(|l| (Slot::Inverse, l)));
        list.extend(self.starts.as_ref().map(|l| (Slot::Starts, l)));
        list
    }
}

/// The tensors of a [`Sort`].
#[derive(Debug, Clone)]
pub struct SortArgs<'a> {
    /// Buckets.
    pub x: View<'a>,
    /// The order.
    pub indices: View<'a>,
    /// Its inverse, where the op has it.
    pub inverse: Option<View<'a>>,
    /// Where buckets begin, where the op has it.
    pub starts: Option<View<'a>>,
}

impl<'a> From<SortArgs<'a>> for Args<'a> {
    fn from(args: SortArgs<'a>) -> Self {
        let mut list = vec![(Slot::X, args.x), (Slot::Indices, args.indices)];
        list.extend(args.inverse.map(|view| (Slot::Inverse, view)));
        list.extend(args.starts.map(|view| (Slot::Starts, view)));
        Self(list)
    }
}
