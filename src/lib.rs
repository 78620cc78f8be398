//! foveate (work in progress)
#![deny(missing_docs)]
#[cfg(feature = "cli")]
pub mod bench;
mod cache_file;
mod call;
pub mod caps;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod conformance;
mod engine;
mod error;
pub mod kernels;
pub mod ops;
mod pipeline;
pub mod plan;
pub mod reference;
pub mod shader;
mod standalone;
mod tensor;

pub use call::Call;
pub use caps::Caps;
pub use engine::{Engine, Plan};
pub use error::{Error, Result};
pub use ops::{Attention, AttentionArgs, Causal, Op, Softmax, SoftmaxArgs};
pub use pipeline::Counters;
pub use plan::{Schedule, Tuning};
pub use standalone::{ADAPTER_VARIABLE, Gpu, Tensor, adapters, choose};
pub use tensor::{DType, Layout, View};
