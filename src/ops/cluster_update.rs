//! Centroids of clusters, by a moving average.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, check};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// One step of online k-means on the sphere: each token goes to the centroid with the largest product, and centroids
/// move towards the direction of their tokens' sum.
///
/// - `assigned[b, h, i] = argmax_c x[b, h, i] · means[h, c]`, the lowest `c` of equal ones;
/// - `m[h, c] = s / max(|s|, 1e-12)`, `s` the sum of the rows `x[b, h, i]` of the cluster, over all batch entries and
///   tokens; the old centroid where it has none;
/// - `new_means = decay means + (1 - decay) m`, not normalised again. With `decay = 0` they are the new centroids.
///
/// Source: Roy et al., Routing Transformer (2020, arXiv:2003.05997).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterUpdate {
    /// Tokens, f32 or f16 `[batch, heads, n, dim]`.
    pub x: Layout,
    /// Centroids, f32 `[heads, clusters, dim]`.
    pub means: Layout,
    /// Output: centroids after the step, f32 `[heads, clusters, dim]`.
    pub new_means: Layout,
    /// Output: the cluster of each token, u32 `[batch, heads, n]`, when wanted.
    #[serde(default)]
    pub assigned: Option<Layout>,
    /// What stays of the old centroids, from 0 to 1.
    pub decay: Real,
}

impl ClusterUpdate {
    /// A step with this decay, into a contiguous output.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(x: Layout, means: Layout, decay: f32) -> Self {
        Self {
            new_means: Layout::f32(means.shape.clone()),
            x,
            means,
            assigned: None,
            decay: Real(decay),
        }
    }

    /// Asks for the cluster of each token, in a contiguous tensor.
    #[must_use]
    pub fn with_assigned(mut self) -> Self {
        let shape = self.x.shape.get(..3).unwrap_or_default();
        self.assigned = Some(Layout::new(DType::U32, shape));
        self
    }

    /// Writes the centroids to this layout.
    #[must_use]
    pub fn output(mut self, new_means: Layout) -> Self {
        self.new_means = new_means;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let [batch, heads, n, dim] = check::rows(Slot::X, &self.x)?;
        self.means.check("means")?;
        check::axes(Slot::Means, &self.means, 3)?;
        let clusters = self.means.shape.get(1).copied().unwrap_or(1);
        let shape = [heads, clusters, dim];
        check::tensor(Slot::Means, &self.means, &[DType::F32], &shape)?;
        check::tensor(Slot::NewMeans, &self.new_means, &[DType::F32], &shape)?;
        if let Some(assigned) = &self.assigned {
            check::tensor(Slot::Assigned, assigned, &[DType::U32], &[batch, heads, n])?;
        }
        if !(0.0..=1.0).contains(&self.decay.0) {
            return Err(Error::invalid(
                "decay",
                format!("{}", self.decay.0),
                "give a number from 0 to 1",
            ));
        }
        if clusters.max(batch.saturating_mul(n)) > 1 << 31 {
            return Err(Error::unsupported(
                format!("{clusters} clusters of {batch} x {n} tokens"),
                "they are counted in 32 bits",
                "take the step on fewer tokens",
            ));
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![
            (Slot::X, &self.x),
            (Slot::Means, &self.means),
            (Slot::NewMeans, &self.new_means),
        ];
        list.extend(self.assigned.as_ref().map(|l| (Slot::Assigned, l)));
        list
    }
}

/// The tensors of a [`ClusterUpdate`].
#[derive(Debug, Clone)]
pub struct ClusterUpdateArgs<'a> {
    /// Tokens.
    pub x: View<'a>,
    /// Centroids.
    pub means: View<'a>,
    /// Centroids after the step.
    pub new_means: View<'a>,
    /// The cluster of each token, where the op has it.
    pub assigned: Option<View<'a>>,
}

impl<'a> From<ClusterUpdateArgs<'a>> for Args<'a> {
    fn from(args: ClusterUpdateArgs<'a>) -> Self {
        let mut list = vec![
            (Slot::X, args.x),
            (Slot::Means, args.means),
            (Slot::NewMeans, args.new_means),
        ];
        list.extend(args.assigned.map(|view| (Slot::Assigned, view)));
        Self(list)
    }
}
