//! Row softmax and log-softmax.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::{Args, Slot, same_bits};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// `y = softmax(scale * x)` along one axis, or its logarithm.
///
/// `softmax(z)_j = exp(z_j - max z) / sum_k exp(z_k - max z)`;
/// `log_softmax(z)_j = z_j - max z - log sum_k exp(z_k - max z)`.
///
/// Any rank, any axis, any strides that leave at most three groups of other axes after
/// neighbouring axes have been merged. An entry of minus infinity has weight 0; a row that holds
/// nothing else gives 0 (log: minus infinity). A NaN or plus infinity makes its row undefined, and so
/// does a scale of 0 with an infinity.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Softmax {
    /// Input.
    pub x: Layout,
    /// Output, of the same shape and element type. It may be the input's own place (see
    /// [`Softmax::in_place`]).
    pub y: Layout,
    /// The axis along which the weights sum to 1.
    pub axis: usize,
    /// Factor on the input; 1 when absent.
    #[serde(default)]
    pub scale: Option<f32>,
    /// Whether to return the logarithm.
    #[serde(default)]
    pub log: bool,
    /// Whether `y` is `x`: one buffer, one layout.
    #[serde(default)]
    pub in_place: bool,
}

impl Softmax {
    /// Softmax of `x` along `axis` into a contiguous tensor of its own.
    pub fn new(x: Layout, axis: usize) -> Self {
        let y = Layout::new(x.dtype, x.shape.clone());
        Self {
            x,
            y,
            axis,
            scale: None,
            log: false,
            in_place: false,
        }
    }

    /// Returns the logarithm of the weights instead.
    #[must_use]
    pub fn log(mut self) -> Self {
        self.log = true;
        self
    }

    /// Multiplies the input by `scale` first.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Writes to this layout.
    #[must_use]
    pub fn output(mut self, y: Layout) -> Self {
        self.y = y;
        self
    }

    /// Overwrites the input.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        self.y = self.x.clone();
        self.in_place = true;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        self.x.check("x")?;
        self.y.check("y")?;
        if !matches!(self.x.dtype, DType::F32 | DType::F16) {
            return Err(Error::invalid(
                "x",
                format!("elements are {}", self.x.dtype),
                "softmax takes f32 or f16",
            ));
        }
        if self.x.shape != self.y.shape || self.x.dtype != self.y.dtype {
            return Err(Error::invalid(
                "y",
                format!(
                    "{} {:?} where x is {} {:?}",
                    self.y.dtype, self.y.shape, self.x.dtype, self.x.shape
                ),
                "give the output the input's shape and element type",
            ));
        }
        if self.axis >= self.x.rank() {
            return Err(Error::invalid(
                "axis",
                format!("{} of a tensor with {} axes", self.axis, self.x.rank()),
                "count axes from 0",
            ));
        }
        if self.scale.is_some_and(|scale| !scale.is_finite()) {
            return Err(Error::invalid(
                "scale",
                "is not finite",
                "give a finite number",
            ));
        }
        if self.in_place && self.x != self.y {
            return Err(Error::invalid(
                "y",
                "its layout differs from x's, but the call is in place",
                "use one layout for both",
            ));
        }
        self.y.check_output("y")
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        if self.in_place {
            vec![(Slot::Y, &self.y)]
        } else {
            vec![(Slot::X, &self.x), (Slot::Y, &self.y)]
        }
    }
}

impl PartialEq for Softmax {
    fn eq(&self, other: &Self) -> bool {
        self.x == other.x
            && self.y == other.y
            && self.axis == other.axis
            && same_bits(self.scale, other.scale)
            && self.log == other.log
            && self.in_place == other.in_place
    }
}

impl Eq for Softmax {}

impl Hash for Softmax {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.x, &self.y, self.axis, self.log, self.in_place).hash(state);
        self.scale.map(f32::to_bits).hash(state);
    }
}

/// The tensors of a [`Softmax`].
#[derive(Debug, Clone)]
pub struct SoftmaxArgs<'a> {
    /// Input; absent when the call is in place.
    pub x: Option<View<'a>>,
    /// Output.
    pub y: View<'a>,
}

impl<'a> From<SoftmaxArgs<'a>> for Args<'a> {
    fn from(args: SoftmaxArgs<'a>) -> Self {
        let mut list: Vec<_> = args.x.into_iter().map(|x| (Slot::X, x)).collect();
        list.push((Slot::Y, args.y));
        Self(list)
    }
}
