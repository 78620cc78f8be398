//! How far two distributions are from one another.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, check};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// The Jensen-Shannon distance of two distributions of each head, and a choice by it: what an estimate of attention is
/// worth, next to the weights of a sample of queries.
///
/// With `p` and `r` the rows over their sums and `m = (p + r) / 2`,
/// `distance = sqrt(sum p ln(p / m) / 2 + sum r ln(r / m) / 2)`, from 0 (the same) to `sqrt(ln 2)`. A row whose sum is
/// not between 1e-36 and 3e38 is no distribution: its distance is `sqrt(ln 2)`. Negative elements count as 0; elements
/// must be finite.
///
/// Source: FlexPrefill (Lai et al., 2025, arXiv:2502.20766), where heads of a distance below 0.1 follow the estimate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Divergence {
    /// One distribution, f32 `[batch, heads, n]`.
    pub sample: Layout,
    /// The other, of the same shape.
    pub estimate: Layout,
    /// Below it, a head is chosen: above 0.
    pub threshold: Real,
    /// Output: 1 for heads that are chosen, else 0; u32 `[batch, heads]`.
    pub chosen: Layout,
    /// Output: the distance, f32 `[batch, heads]`, when wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<Layout>,
}

impl Divergence {
    /// The choice alone, in a contiguous tensor.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(sample: Layout, estimate: Layout, threshold: f32) -> Self {
        let heads = sample.shape.get(..2).unwrap_or_default();
        Self {
            chosen: Layout::new(DType::U32, heads),
            sample,
            estimate,
            threshold: Real(threshold),
            distance: None,
        }
    }

    /// Asks for the distance, in a contiguous tensor.
    #[must_use]
    pub fn with_distance(mut self) -> Self {
        self.distance = Some(Layout::f32(self.chosen.shape.clone()));
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        self.sample.check("sample")?;
        check::axes(Slot::Sample, &self.sample, 3)?;
        check::dtype(Slot::Sample, &self.sample, &[DType::F32])?;
        let shape = &self.sample.shape;
        check::tensor(Slot::Estimate, &self.estimate, &[DType::F32], shape)?;
        let heads = shape.get(..2).unwrap_or_default();
        check::tensor(Slot::Chosen, &self.chosen, &[DType::U32], heads)?;
        if let Some(distance) = &self.distance {
            check::tensor(Slot::Distance, distance, &[DType::F32], heads)?;
        }
        if self.threshold.0.is_nan() || self.threshold.0 <= 0.0 {
            return Err(Error::invalid(
                "threshold",
                format!("{}", self.threshold.0),
                "give a number above 0; above 0.8326 all heads are chosen",
            ));
        }
        Ok(())
    }

    pub(crate) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![
            (Slot::Sample, &self.sample),
            (Slot::Estimate, &self.estimate),
            (Slot::Chosen, &self.chosen),
        ];
        list.extend(self.distance.as_ref().map(|l| (Slot::Distance, l)));
        list
    }
}

/// The tensors of a [`Divergence`].
#[derive(Debug, Clone)]
pub struct DivergenceArgs<'a> {
    /// One distribution.
    pub sample: View<'a>,
    /// The other.
    pub estimate: View<'a>,
    /// Which heads are chosen.
    pub chosen: View<'a>,
    /// Distances, where the op has them.
    pub distance: Option<View<'a>>,
}

impl<'a> From<DivergenceArgs<'a>> for Args<'a> {
    fn from(args: DivergenceArgs<'a>) -> Self {
        let mut list = vec![
            (Slot::Sample, args.sample),
            (Slot::Estimate, args.estimate),
            (Slot::Chosen, args.chosen),
        ];
        list.extend(args.distance.map(|view| (Slot::Distance, view)));
        Self(list)
    }
}
