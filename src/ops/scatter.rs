//! A selection, written into dense rows.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, check, top_k::rows_of};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// A selection written into dense rows: `y[.., index[.., j]] = factor * gate[..] * x[.., j]`, and `fill` in every place
/// that the index does not name. Without `x` its elements are 1.
///
/// What makes of the lists of a [`TopK`](crate::TopK) or a [`Route`](crate::Route) what other ops read in dense form:
/// a gate per head and token, 0 for heads that a token does not take ([`Attention::gate`](crate::Attention::gate),
/// mixture of heads), heads switched off by their importance, flags per key.
///
/// Entries that name no place ([`NONE`](crate::NONE), or one past the end) are passed over. A place that a row names more than
/// once has the value of its last entry: results are the same in every run, and on every device. With a factor of 1 and
/// no gate, elements are copied to the bit; else arithmetic is f32 whatever the storage.
///
/// Sources: `torch.scatter`, whose result is not defined where an index repeats; Jin et al., MoH (2024,
/// arXiv:2410.11842).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scatter {
    /// What is written, of the output's element type, `[.., k]`; ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<Layout>,
    /// Where, u32 `[.., k]`, 1 to 4 axes, any strides.
    pub index: Layout,
    /// A factor on each row, f32 with the axes of `index` but the last (`[1]` for one row).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Layout>,
    /// A factor on all that is written, finite.
    #[serde(default = "one")]
    pub factor: Real,
    /// What is in all other places.
    #[serde(default)]
    pub fill: Real,
    /// Output, f32 or f16 `[.., n]`.
    pub y: Layout,
}

fn one() -> Real {
    Real(1.0)
}

impl Scatter {
    /// These elements in rows of `n`, zeros elsewhere, into a contiguous output.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(x: Layout, index: Layout, n: u64) -> Self {
        let dtype = x.dtype;
        let mut op = Self::ones(index, n);
        op.y.dtype = dtype;
        op.x = Some(x);
        op
    }

    /// Ones in rows of `n`, zeros elsewhere, into a contiguous output of f32.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn ones(index: Layout, n: u64) -> Self {
        let mut shape = index.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        Self {
            x: None,
            index,
            gate: None,
            factor: one(),
            fill: Real(0.0),
            y: Layout::f32(shape),
        }
    }

    /// Multiplies what is written to each row by a factor of its own.
    #[must_use]
    pub fn gate(mut self, gate: Layout) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Multiplies all that is written.
    #[must_use]
    pub fn factor(mut self, factor: f32) -> Self {
        self.factor = Real(factor);
        self
    }

    /// Sets what is in places that the index does not name.
    #[must_use]
    pub fn fill(mut self, fill: f32) -> Self {
        self.fill = Real(fill);
        self
    }

    /// Writes to this layout.
    #[must_use]
    pub fn output(mut self, y: Layout) -> Self {
        self.y = y;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        self.index.check("index")?;
        check::dtype(Slot::Index, &self.index, &[DType::U32])?;
        self.y.check("y")?;
        check::dtype(Slot::Y, &self.y, &[DType::F32, DType::F16])?;
        let (Some((&n, _)), 1..=4) = (self.y.shape.split_last(), self.index.rank()) else {
            return Err(Error::invalid(
                "index",
                format!("{} axes in shape {:?}", self.index.rank(), self.index.shape),
                "give it 1 to 4 axes, the last along a row's entries",
            ));
        };
        let mut shape = self.index.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        check::tensor(Slot::Y, &self.y, &[self.y.dtype], &shape)?;
        if let Some(x) = &self.x {
            check::tensor(Slot::X, x, &[self.y.dtype], &self.index.shape)?;
        }
        if let Some(gate) = &self.gate {
            check::tensor(Slot::Gate, gate, &[DType::F32], &rows_of(&self.index))?;
        }
        if !self.factor.0.is_finite() {
            return Err(Error::invalid(
                "factor",
                format!("{}", self.factor.0),
                "give a finite number",
            ));
        }
        let longest = shape.last().max(self.index.shape.last());
        if longest.is_some_and(|&len| len > 1 << 31) {
            return Err(Error::unsupported(
                format!("rows of {n} places and {:?} entries", self.index.shape),
                "places and entries are counted in 32 bits",
                "cut the rows",
            ));
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list: Vec<_> = self.x.iter().map(|x| (Slot::X, x)).collect();
        list.push((Slot::Index, &self.index));
        list.extend(self.gate.as_ref().map(|gate| (Slot::Gate, gate)));
        list.push((Slot::Y, &self.y));
        list
    }
}

/// The tensors of a [`Scatter`].
#[derive(Debug, Clone)]
pub struct ScatterArgs<'a> {
    /// What is written, where the op has it.
    pub x: Option<View<'a>>,
    /// Where.
    pub index: View<'a>,
    /// Factors on rows, where the op has them.
    pub gate: Option<View<'a>>,
    /// Output.
    pub y: View<'a>,
}

impl<'a> From<ScatterArgs<'a>> for Args<'a> {
    fn from(args: ScatterArgs<'a>) -> Self {
        let mut list = vec![(Slot::Index, args.index), (Slot::Y, args.y)];
        list.extend(args.x.map(|view| (Slot::X, view)));
        list.extend(args.gate.map(|view| (Slot::Gate, view)));
        Self(list)
    }
}
