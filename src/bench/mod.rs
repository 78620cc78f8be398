//! Speed on a device, beside that device's own ceilings.

mod ceilings;
mod cost;
mod device;
mod measure;
mod probe;
mod profile;
mod record;
mod tensors;
mod timing;
mod workload;

pub use ceilings::{Ceilings, ceilings, survey};
pub use cost::{Cost, cost};
pub use device::{Adapter, Checks, Matrix, Opened};
pub use measure::Bench;
pub use probe::Probes;
pub use profile::Profile;
pub(crate) use record::schema_text;
pub use record::{Bound, Clock, DeviceRecord, Measured, Outcome, Record, Row, Sample};
pub use tensors::Tensors;
pub use timing::{Lap, Spread, Timer, Timing, time};
pub use workload::{
    AttentionShape, DecayKind, Expected, LinearAttentionShape, MergeShape, RotaryShape, RuleKind,
    ScanShape, ShortConvShape, SoftmaxShape, TopKShape, Workload,
};
