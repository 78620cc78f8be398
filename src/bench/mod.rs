//! Speed on a device, beside that device's own ceilings.

mod ceilings;
mod cost;
mod profile;
mod timing;
mod workload;

pub use ceilings::{Ceilings, ceilings};
pub use cost::{Cost, cost};
pub use profile::Profile;
pub use timing::{Spread, Timing, time};
pub use workload::{
    AttentionShape, DecayKind, Expected, LinearAttentionShape, RotaryShape, Row, RuleKind,
    SoftmaxShape, Tensors, Workload,
};
