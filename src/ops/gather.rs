//! Rows that an index names.

use serde::{Deserialize, Serialize};

use super::{Args, Slot, check, dims};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// The rows of a tensor that an index names, in its order: `y[b, h, i * block + r] = x[b, h, index[b, h, i] * block +
/// r]` for `r < block`.
///
/// An entry that names no row ([`NONE`](crate::NONE), or one past the end) gives zeros, and so do rows past the end of
/// a last block. So the index of a selection serves as it is: keys that a `TopK` took, tokens in the
/// order of a [`Sort`](crate::Sort), or, with the inverse of that order, back. Elements are copied to the bit; u32
/// tensors move positions.
///
/// Batch entries and heads: those of `x` and of the index may be one for all; and heads of either may be shared by as
/// many of the other as follow one another (`x` of KV heads, an index of query heads: then `y` has query heads).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gather {
    /// Rows, f32, f16 or u32 `[batch or 1, heads, n, dim]`.
    pub x: Layout,
    /// Which rows, or blocks of them: u32 `[batch or 1, heads, count]`.
    pub index: Layout,
    /// Output, `[batch, heads, count * block, dim]`, of the input's element type, with the heads of that of the two
    /// that has more.
    pub y: Layout,
    /// Rows per entry of the index.
    #[serde(default = "one")]
    pub block: u64,
}

fn one() -> u64 {
    1
}

impl Gather {
    /// Single rows of `x` into a contiguous output.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(x: Layout, index: Layout) -> Self {
        let mut op = Self {
            y: Layout::new(x.dtype, Vec::new()),
            x,
            index,
            block: 1,
        };
        op.y = Layout::new(op.x.dtype, op.shape());
        op
    }

    /// Takes blocks of this many rows; the output stays contiguous.
    #[must_use]
    pub fn block(mut self, block: u64) -> Self {
        self.block = block;
        self.y = Layout::new(self.x.dtype, self.shape());
        self
    }

    /// Writes to this layout.
    #[must_use]
    pub fn output(mut self, y: Layout) -> Self {
        self.y = y;
        self
    }

    /// The shape of the output.
    fn shape(&self) -> [u64; 4] {
        let axis = |layout: &Layout, axis: usize| layout.shape.get(axis).copied().unwrap_or(1);
        [
            axis(&self.x, 0).max(axis(&self.index, 0)),
            axis(&self.x, 1).max(axis(&self.index, 1)),
            axis(&self.index, 2).saturating_mul(self.block),
            axis(&self.x, 3),
        ]
    }

    pub(super) fn check(&self) -> Result<()> {
        self.x.check("x")?;
        check::dtype(Slot::X, &self.x, &[DType::F32, DType::F16, DType::U32])?;
        check::axes(Slot::X, &self.x, 4)?;
        self.index.check("index")?;
        check::dtype(Slot::Index, &self.index, &[DType::U32])?;
        check::axes(Slot::Index, &self.index, 3)?;
        if self.block == 0 {
            return Err(Error::invalid("block", "0 rows", "give at least 1"));
        }
        let [x_batch, x_heads, ..] = dims(&self.x);
        let [batch, heads, ..] = self.shape();
        let &[index_batch, index_heads, _] = self.index.shape.as_slice() else {
            return Ok(());
        };
        for (slot, own, own_heads) in [
            (Slot::X, x_batch, x_heads),
            (Slot::Index, index_batch, index_heads),
        ] {
            if (own != batch && own != 1) || !heads.is_multiple_of(own_heads) {
                return Err(Error::invalid(
                    slot.name(),
                    format!(
                        "{own} batch entries and {own_heads} heads, where the other has more: {batch} and {heads}"
                    ),
                    "give it as many batch entries, or 1; and as many heads, or a number that divides them",
                ));
            }
        }
        check::tensor(Slot::Y, &self.y, &[self.x.dtype], &self.shape())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        vec![
            (Slot::X, &self.x),
            (Slot::Index, &self.index),
            (Slot::Y, &self.y),
        ]
    }
}

/// The tensors of a [`Gather`].
#[derive(Debug, Clone)]
pub struct GatherArgs<'a> {
    /// Rows.
    pub x: View<'a>,
    /// Which of them.
    pub index: View<'a>,
    /// Output.
    pub y: View<'a>,
}

impl<'a> From<GatherArgs<'a>> for Args<'a> {
    fn from(args: GatherArgs<'a>) -> Self {
        Self(vec![
            (Slot::X, args.x),
            (Slot::Index, args.index),
            (Slot::Y, args.y),
        ])
    }
}
