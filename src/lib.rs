//! Attention on any GPU: WGSL compute shaders, planned, specialised and cached by Rust on [`wgpu`].
//!
//! An op ([`Attention`], [`Merge`], [`Rotary`], [`ShortConv`], [`Softmax`], [`Weights`]) is plain data: what to
//! compute, on tensors of which layout. For a device, it is planned (a schedule is chosen and compiled), bound to
//! buffers, and recorded into a compute pass. Planning may compile, binding may allocate, recording does neither.
//!
//! # With no device of your own
//!
//! [`Gpu`] opens an adapter; a [`Tensor`] lives in a buffer of its own.
//!
//! ```
//! use foveate::{Causal, Gpu};
//!
//! fn main() -> foveate::Result<()> {
//!     let gpu = Gpu::open(None)?;
//!
//!     // [batch, heads, seq, head_dim]
//!     let shape = [1, 2, 16, 8];
//!     let wave = |step: f32| -> Vec<f32> { (0..256).map(|i| (i as f32 * step).sin()).collect() };
//!     let q = gpu.upload(&wave(0.37), shape)?;
//!     let k = gpu.upload(&wave(0.53), shape)?;
//!     let v = gpu.upload(&wave(0.71), shape)?;
//!
//!     let o = gpu.attention(&q, &k, &v, |op| op.causal(Causal::TopLeft))?;
//!     let o = gpu.download(&o)?;
//!
//!     // The first query of a head sees the first key only, so it returns the first value.
//!     assert!((o[1] - 0.71f32.sin()).abs() < 1e-5);
//!     Ok(())
//! }
//! ```
//!
//! # On a device that your app owns
//!
//! [`Engine`] borrows a device. It never submits, polls or installs error handlers, and records
//! into your own compute pass. Plan and bind once; record as often as you like.
//!
//! ```
//! use foveate::{Attention, AttentionArgs, Call, Causal, Engine, Layout, View, wgpu};
//!
//! /// Self-attention on the app's buffers, each `[batch, seq, heads, head_dim]`.
//! fn attention(engine: &Engine, [q, k, v, o]: [&wgpu::Buffer; 4]) -> foveate::Result<Call> {
//!     // Ops want [batch, heads, seq, head_dim]: the same buffer with exchanged strides, no copy.
//!     let layout = Layout::f32([1, 16, 2, 8]).transposed(1, 2);
//!     let op = Attention::new(layout.clone(), layout.clone(), layout.clone())
//!         .output(layout.clone())
//!         .causal(Causal::BottomRight);
//!     let view = |buffer| View::new(buffer, layout.clone());
//!     let args = AttentionArgs::new(view(q), view(k), view(v), view(o));
//!
//!     let plan = engine.plan(&op.into())?;
//!     println!("{}", plan.explain());
//!     plan.bind(args)
//! }
//!
//! /// In the app's frame: compiles and allocates nothing.
//! fn frame(call: &Call, encoder: &mut wgpu::CommandEncoder) {
//!     let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
//!     call.record(&mut pass);
//! }
//! # // Stands in for the app.
//! # fn main() -> foveate::Result<()> {
//! #     let gpu = foveate::Gpu::open(None)?;
//! #     let ones = || gpu.upload(&[1.0; 256], [256]);
//! #     let (q, k, v, o) = (ones()?, ones()?, ones()?, gpu.upload(&[0.0; 256], [256])?);
//! #     let engine = Engine::new(gpu.device());
//! #     let buffers = [q.buffer(), k.buffer(), v.buffer(), o.buffer()];
//! #     let call = attention(&engine, buffers)?;
//! #     let mut encoder = gpu.device().create_command_encoder(&Default::default());
//! #     frame(&call, &mut encoder);
//! #     gpu.queue().submit([encoder.finish()]);
//! #     assert!(gpu.download(&o)?.iter().all(|x| (x - 1.0).abs() < 1e-5));
//! #     Ok(())
//! # }
//! ```
//!
//! Create the device with [`Engine::wanted_features`] and the adapter's own limits where you can:
//! what it was created with decides what is used. [`Engine::warm_up`] compiles ahead of time, and
//! [`Engine::with_cache`] remembers on disk what was compiled.
//!
//! # A map of the crate
//!
//! | module or type | what it is |
//! |---|---|
//! | [`ops`]: [`Attention`], [`Merge`], [`Rotary`], [`Softmax`], [`Weights`], [`LinearAttention`], [`RandomFeatures`], [`ShortConv`], [`Scan`], [`HrrAttention`], [`FlowAttention`], [`AftFull`], [`Gather`], [`Sort`], [`ScatterMean`], [`Scatter`], [`ClusterUpdate`], [`Evict`], [`TopK`], [`TopP`], [`Pool`], [`RouteScores`], [`Route`], [`VerticalSlash`], [`Divergence`], [`Op`] | what to compute, as data that can be compared, hashed and serialised |
//! | [`presets`] | known changes to attention as mods: ALiBi, relative positions, neighbourhoods, documents, trees ... |
//! | [`Layout`], [`View`], [`DType`] | where a tensor's elements lie in a buffer |
//! | [`caps`]: [`Caps`] | what a device can do, as data |
//! | [`plan`]: [`plan::Outline`], [`Schedule`], [`Tuning`] | op + caps to dispatches, with reasons, without touching a device |
//! | [`portable`]: [`portable::PortablePlan`] | a plan as JSON, for other WebGPU hosts |
//! | [`Engine`], [`Plan`], [`Call`], [`Counters`] | planning, binding and recording on a device |
//! | [`Gpu`], [`Tensor`], [`adapters`], [`choose`] | for those with no device |
//! | [`kernels`], [`shader`] | the kernels' variants, and the WGSL made for each |
//! | [`reference`](mod@reference) | the ops in f64 on the CPU, and the error measure |
//! | [`Error`] | errors; those about arguments name the argument, what was found, and the remedy |
//!
//! # Features
//!
//! - `cli` (default): the `foveate` program, and what it is made of. Libraries switch it off with
//!   `default-features = false`.
//! - `noop`: wgpu's device that computes nothing, for tests of host code on machines with no driver.
#![deny(missing_docs)]

#[cfg(feature = "cli")]
pub mod bench;
mod cache_file;
mod call;
pub mod caps;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod compare;
#[cfg(feature = "cli")]
pub mod conformance;
mod engine;
mod error;
pub mod kernels;
pub mod ops;
mod pipeline;
pub mod plan;
pub mod portable;
pub mod reference;
pub mod shader;
mod standalone;
mod tensor;
pub mod tune;

pub use call::Call;
pub use caps::Caps;
pub use engine::{Engine, Plan};
pub use error::{Error, Result};
pub use ops::presets;
pub use ops::{
    Activation, AftFull, AftFullArgs, Attention, AttentionArgs, BiasTerm, BlockMask, Causal,
    Corner, Decay, Denominator, FeatureMap, FlowAttention, FlowAttentionArgs, Guard, HrrAttention,
    HrrAttentionArgs, KeyIndex, LinearAttention, LinearAttentionArgs, Local, LocalWeights, Merge,
    MergeArgs, Mod, ModBuffer, Normaliser, Op, PositionBias, PositionBiasArgs, RandomFeatures,
    RandomFeaturesArgs, RandomKernel, Reach, Real, Rotary, RotaryArgs, Scan, ScanArgs, ScanRule,
    Scores, ShortConv, ShortConvArgs, Similarity, Softmax, SoftmaxArgs, Stabiliser, Stage,
    Statistic, UpdateRule, Weights, Window, rotary_tables,
};
pub use ops::{
    Blocks, ClusterUpdate, ClusterUpdateArgs, Divergence, DivergenceArgs, Divisor, Evict,
    EvictArgs, FirstQuery, Gather, GatherArgs, Keep, NONE, Pool, PoolArgs, PoolRule, Route,
    RouteArgs, RouteMass, RouteScores, RouteScoresArgs, Scatter, ScatterArgs, ScatterMean,
    ScatterMeanArgs, ScoreRule, Sort, SortArgs, VerticalSlash, VerticalSlashArgs, Visible,
};
pub use ops::{TopK, TopKArgs, TopP, TopPArgs};
pub use pipeline::Counters;
pub use plan::{Schedule, Tuning};
#[cfg(feature = "cli")]
pub(crate) use standalone::vendor;
pub use standalone::{ADAPTER_VARIABLE, Gpu, Tensor, adapters, choose};
pub use tensor::{DType, Layout, View};
pub use tune::TuningMode;

/// The wgpu whose devices and buffers this crate takes.
pub use wgpu;

/// The examples in the README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
