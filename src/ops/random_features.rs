//! Random features of queries and keys, whose products stand for softmax attention's weights.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, dims};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// Largest dimension of a row: kernels keep it in workgroup memory.
pub(crate) const MAX_DIM: u64 = 256;

/// What the products of features stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RandomKernel {
    /// `exp(q · k)`: `y_f = features^(-1/2) (exp(u · p_f - |u|²/2 - max) + eps)`, where `u = scale * x`.
    Softmax {
        /// What the maximum is taken over.
        stabiliser: Stabiliser,
    },
    /// A kernel of its own: `y_f = max(u · p_f, 0) + eps`, `u` as above.
    Relu,
}

/// What the maximum of `u · p_f` is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stabiliser {
    /// The features of each row: for queries, whose factor goes out with the division.
    Row,
    /// Tokens and features of each batch entry and head: for keys, which must share a factor.
    All,
}

/// Random features: FAVOR+ of Performers, Choromanski et al. (arXiv:2009.14794). [`crate::LinearAttention`] on them,
/// with a scale of 1 and a normaliser, is Performer attention; causal, it guards by [`crate::Guard::Keys`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomFeatures {
    /// Queries or keys, f32 or f16 `[batch, heads, seq, dim]`.
    pub x: Layout,
    /// Random directions, f32 `[features, dim]`.
    pub projection: Layout,
    /// Features, f32 or f16 `[batch, heads, seq, features]`.
    pub y: Layout,
    /// What their products stand for.
    pub kernel: RandomKernel,
    /// Factor on `x`; `dim^(-1/4)` when absent, so that the scores of softmax are divided by `sqrt(dim)`.
    #[serde(default)]
    pub scale: Option<Real>,
    /// Added to each feature, 0 or more.
    pub eps: Real,
}

impl RandomFeatures {
    fn new(x: Layout, projection: Layout, kernel: RandomKernel, eps: f32) -> Self {
        let mut shape = x.shape.clone();
        if let (Some(last), Some(&features)) = (shape.last_mut(), projection.shape.first()) {
            *last = features;
        }
        Self {
            y: Layout::f32(shape),
            x,
            projection,
            kernel,
            scale: None,
            eps: Real(eps),
        }
    }

    /// Softmax features of queries, into a contiguous f32 tensor.
    pub fn queries(x: Layout, projection: Layout) -> Self {
        let stabiliser = Stabiliser::Row;
        Self::new(x, projection, RandomKernel::Softmax { stabiliser }, 1e-4)
    }

    /// Softmax features of keys.
    pub fn keys(x: Layout, projection: Layout) -> Self {
        let stabiliser = Stabiliser::All;
        Self::new(x, projection, RandomKernel::Softmax { stabiliser }, 1e-4)
    }

    /// Relu features of queries or keys.
    pub fn relu(x: Layout, projection: Layout) -> Self {
        Self::new(x, projection, RandomKernel::Relu, 1e-3)
    }

    /// Writes to this layout.
    #[must_use]
    pub fn output(mut self, y: Layout) -> Self {
        self.y = y;
        self
    }

    /// Sets the factor on `x`.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(Real(scale));
        self
    }

    /// Sets what is added to each feature.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = Real(eps);
        self
    }

    /// The factor on `x` that holds.
    pub fn effective_scale(&self) -> f32 {
        match self.scale {
            Some(Real(scale)) => scale,
            None => (*self.x.shape.last().unwrap_or(&1) as f32).powf(-0.25),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        for (slot, layout) in self.tensors() {
            let name = slot.name();
            layout.check(name)?;
            let rank = if slot == Slot::Projection { 2 } else { 4 };
            if layout.rank() != rank {
                return Err(Error::invalid(
                    name,
                    format!("{} axes in shape {:?}", layout.rank(), layout.shape),
                    format!("give it {rank} axes"),
                ));
            }
            let half = slot != Slot::Projection && layout.dtype == DType::F16;
            if layout.dtype != DType::F32 && !half {
                return Err(Error::invalid(
                    name,
                    format!("elements are {}", layout.dtype),
                    "give x and y as f32 or f16, the projection as f32",
                ));
            }
        }
        let [batch, heads, seq, dim] = dims(&self.x);
        let features = self.projection.shape[0];
        for (slot, layout, want) in [
            (Slot::Projection, &self.projection, vec![features, dim]),
            (Slot::Y, &self.y, vec![batch, heads, seq, features]),
        ] {
            if layout.shape != want {
                return Err(Error::invalid(
                    slot.name(),
                    format!("shape {:?} where {want:?} is expected", layout.shape),
                    "make it agree with x and the projection",
                ));
            }
        }
        if dim > MAX_DIM {
            return Err(Error::unsupported(
                format!("x with {dim} channels"),
                format!("kernels hold a row of at most {MAX_DIM}"),
                "use smaller heads",
            ));
        }
        let (scale, Real(eps)) = (self.effective_scale(), self.eps);
        if !(scale.is_finite() && eps >= 0.0 && eps.is_finite()) {
            return Err(Error::invalid(
                "scale",
                format!("a scale of {scale}, an eps of {eps}"),
                "give a finite scale, and an eps of 0 or a small positive number",
            ));
        }
        self.y.check_output("y")
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        vec![
            (Slot::X, &self.x),
            (Slot::Projection, &self.projection),
            (Slot::Y, &self.y),
        ]
    }
}

/// The tensors of a [`RandomFeatures`].
#[derive(Debug, Clone)]
pub struct RandomFeaturesArgs<'a> {
    /// Queries or keys.
    pub x: View<'a>,
    /// Random directions.
    pub projection: View<'a>,
    /// Features.
    pub y: View<'a>,
}

impl<'a> From<RandomFeaturesArgs<'a>> for Args<'a> {
    fn from(args: RandomFeaturesArgs<'a>) -> Self {
        Self(vec![
            (Slot::X, args.x),
            (Slot::Projection, args.projection),
            (Slot::Y, args.y),
        ])
    }
}
