//! Rows put back where an index says.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, check};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// Rows put back where an index says, those of one token averaged: `y[b, h, t] = sum x[b, h, g, j] / (count +
/// epsilon)` over the `count` places `(g, j)` with `index[b, h, g, j] = t`; zeros where no place names the token.
///
/// The other way of a [`Gather`](crate::Gather) by clusters, where a token may be in several, or in none. Places that
/// name no token ([`NONE`](crate::NONE), or one past the end) are left out. Rows are added in the order of their
/// places, in f32: results are the same in every run. Time grows with places and tokens, not with their product.
///
/// Source: Roy et al., Routing Transformer (2020, arXiv:2003.05997), with `epsilon = 1e-5`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScatterMean {
    /// Rows, f32 or f16 `[batch, heads, groups, places, dim]`.
    pub x: Layout,
    /// The token of each row, u32 `[batch, heads, groups, places]`.
    pub index: Layout,
    /// Output, `[batch, heads, n, dim]`, of the rows' element type.
    pub y: Layout,
    /// What is added to counts, from 0.
    #[serde(default)]
    pub epsilon: Real,
}

impl ScatterMean {
    /// Plain means of `n` tokens, into a contiguous output.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(x: Layout, index: Layout, n: u64) -> Self {
        let axis = |axis: usize| x.shape.get(axis).copied().unwrap_or(1);
        Self {
            y: Layout::new(x.dtype, [axis(0), axis(1), n, axis(4)]),
            x,
            index,
            epsilon: Real(0.0),
        }
    }

    /// Sets what is added to counts.
    #[must_use]
    pub fn epsilon(mut self, epsilon: f32) -> Self {
        self.epsilon = Real(epsilon);
        self
    }

    /// Writes to this layout.
    #[must_use]
    pub fn output(mut self, y: Layout) -> Self {
        self.y = y;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        self.x.check("x")?;
        check::dtype(Slot::X, &self.x, &[DType::F32, DType::F16])?;
        check::axes(Slot::X, &self.x, 5)?;
        self.y.check("y")?;
        check::axes(Slot::Y, &self.y, 4)?;
        let &[batch, heads, groups, places, dim] = self.x.shape.as_slice() else {
            return Ok(());
        };
        let shape = [batch, heads, groups, places];
        check::tensor(Slot::Index, &self.index, &[DType::U32], &shape)?;
        let n = self.y.shape.get(2).copied().unwrap_or(1);
        let shape = [batch, heads, n, dim];
        check::tensor(Slot::Y, &self.y, &[self.x.dtype], &shape)?;
        if !(self.epsilon.0 >= 0.0 && self.epsilon.0.is_finite()) {
            return Err(Error::invalid(
                "epsilon",
                format!("{}", self.epsilon.0),
                "give a finite number from 0",
            ));
        }
        if n.max(groups.saturating_mul(places)) > 1 << 31 {
            return Err(Error::unsupported(
                format!("{groups} groups of {places} places, and {n} tokens"),
                "places and tokens are counted in 32 bits",
                "use fewer of them per head",
            ));
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        vec![
            (Slot::X, &self.x),
            (Slot::Index, &self.index),
            (Slot::Y, &self.y),
        ]
    }
}

/// The tensors of a [`ScatterMean`].
#[derive(Debug, Clone)]
pub struct ScatterMeanArgs<'a> {
    /// Rows.
    pub x: View<'a>,
    /// The token of each.
    pub index: View<'a>,
    /// Output.
    pub y: View<'a>,
}

impl<'a> From<ScatterMeanArgs<'a>> for Args<'a> {
    fn from(args: ScatterMeanArgs<'a>) -> Self {
        Self(vec![
            (Slot::X, args.x),
            (Slot::Index, args.index),
            (Slot::Y, args.y),
        ])
    }
}
