//! Feature maps as `shaders/shared/features.wgsl` has them.

use serde::{Deserialize, Serialize};

use crate::ops::{FeatureMap, Real};

/// A feature map, as far as it changes code. A softmax over channels is [`Feature::Exp`], with the row's maximum
/// and sum found by the kernel.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Nothing.
    #[default]
    Identity,
    /// `elu(x) + 1`.
    EluPlusOne,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    SquaredRelu,
    /// `exp(factor * x - less)`.
    Exp,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x / (1 + exp(-x))`.
    Silu,
}

impl Feature {
    /// The number that the WGSL knows it by: `FEATURE_Q` or `FEATURE_K`.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The factor of an exponential; 1 for other maps, which have none.
    pub fn factor(map: FeatureMap) -> f32 {
        match map {
            FeatureMap::Exp {
                factor: Real(factor),
            } => factor,
            _ => 1.0,
        }
    }
}

impl From<FeatureMap> for Feature {
    fn from(map: FeatureMap) -> Self {
        match map {
            FeatureMap::Identity => Self::Identity,
            FeatureMap::EluPlusOne => Self::EluPlusOne,
            FeatureMap::Relu => Self::Relu,
            FeatureMap::SquaredRelu => Self::SquaredRelu,
            FeatureMap::Exp { .. } | FeatureMap::Softmax => Self::Exp,
            FeatureMap::Sigmoid => Self::Sigmoid,
            FeatureMap::Silu => Self::Silu,
        }
    }
}
