//! The public ops, as plain data: what to compute on tensors of which layout.

mod aft_full;
mod attention;
mod check;
mod flow_attention;
mod hrr_attention;
mod linear_attention;
mod merge;
mod modification;
pub mod presets;
mod random_features;
mod rotary;
mod scan;
mod short_conv;
mod softmax;
mod weights;

pub use aft_full::{AftFull, AftFullArgs, BiasTerm, PositionBias, PositionBiasArgs};
pub(crate) use attention::dims;
pub use attention::{Attention, AttentionArgs, BlockMask, Causal, Corner, Window};
pub use flow_attention::{FlowAttention, FlowAttentionArgs};
pub use hrr_attention::{HrrAttention, HrrAttentionArgs};
pub use linear_attention::{
    Decay, FeatureMap, Guard, LinearAttention, LinearAttentionArgs, Local, LocalWeights,
    Normaliser, Reach, Similarity, UpdateRule,
};
pub use merge::{Merge, MergeArgs};
pub use modification::{Mod, ModBuffer};
pub use random_features::{RandomFeatures, RandomFeaturesArgs, RandomKernel, Stabiliser};
pub use rotary::{Rotary, RotaryArgs, rotary_tables};
pub(crate) use scan::ScanStrides;
pub use scan::{Denominator, Scan, ScanArgs, ScanRule, Scores};
pub use short_conv::{Activation, ShortConv, ShortConvArgs};
pub use softmax::{Softmax, SoftmaxArgs};
pub use weights::{Stage, Statistic, Weights};

use serde::{Deserialize, Serialize};

use crate::{error::Result, tensor::View};

/// Any op.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(
    clippy::large_enum_variant,
    reason = "ops are few, and matched on directly"
)]
pub enum Op {
    /// Row softmax or log-softmax.
    Softmax(Softmax),
    /// Softmax attention.
    Attention(Attention),
    /// Attention results over parts of the keys, merged.
    Merge(Merge),
    /// Attention's scores and weights, or statistics of them.
    Weights(Weights),
    /// Rotary position embedding.
    Rotary(Rotary),
    /// Linear attention.
    LinearAttention(LinearAttention),
    /// Random features of queries and keys.
    RandomFeatures(RandomFeatures),
    /// Short depthwise convolution along the sequence.
    ShortConv(ShortConv),
    /// Scan along the sequence.
    Scan(Scan),
    /// Attention of holographic reduced representations.
    HrrAttention(HrrAttention),
    /// Flow attention.
    FlowAttention(FlowAttention),
    /// The attention-free transformer.
    AftFull(AftFull),
}

impl Op {
    /// Checks everything about the op that does not depend on a device.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`], naming the argument.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Softmax(op) => op.check(),
            Self::Attention(op) => op.check(),
            Self::Merge(op) => op.check(),
            Self::Weights(op) => op.check(),
            Self::Rotary(op) => op.check(),
            Self::LinearAttention(op) => op.check(),
            Self::RandomFeatures(op) => op.check(),
            Self::ShortConv(op) => op.check(),
            Self::Scan(op) => op.check(),
            Self::HrrAttention(op) => op.check(),
            Self::FlowAttention(op) => op.check(),
            Self::AftFull(op) => op.check(),
        }
    }

    /// The tensors of the op, in a fixed order.
    pub fn tensors(&self) -> Vec<(Slot, &crate::Layout)> {
        match self {
            Self::Softmax(op) => op.tensors(),
            Self::Attention(op) => op.tensors(),
            Self::Merge(op) => op.tensors(),
            Self::Weights(op) => op.tensors(),
            Self::Rotary(op) => op.tensors(),
            Self::LinearAttention(op) => op.tensors(),
            Self::RandomFeatures(op) => op.tensors(),
            Self::ShortConv(op) => op.tensors(),
            Self::Scan(op) => op.tensors(),
            Self::HrrAttention(op) => op.tensors(),
            Self::FlowAttention(op) => op.tensors(),
            Self::AftFull(op) => op.tensors(),
        }
    }

    /// Whether the op writes this tensor.
    pub fn is_output(&self, slot: Slot) -> bool {
        slot.is_output() && !(slot == Slot::Lse && matches!(self, Self::Weights(_)))
    }
}

impl From<Softmax> for Op {
    fn from(op: Softmax) -> Self {
        Self::Softmax(op)
    }
}

impl From<Attention> for Op {
    fn from(op: Attention) -> Self {
        Self::Attention(op)
    }
}

impl From<Merge> for Op {
    fn from(op: Merge) -> Self {
        Self::Merge(op)
    }
}

impl From<Weights> for Op {
    fn from(op: Weights) -> Self {
        Self::Weights(op)
    }
}

impl From<Rotary> for Op {
    fn from(op: Rotary) -> Self {
        Self::Rotary(op)
    }
}

impl From<RandomFeatures> for Op {
    fn from(op: RandomFeatures) -> Self {
        Self::RandomFeatures(op)
    }
}

impl From<LinearAttention> for Op {
    fn from(op: LinearAttention) -> Self {
        Self::LinearAttention(op)
    }
}

impl From<ShortConv> for Op {
    fn from(op: ShortConv) -> Self {
        Self::ShortConv(op)
    }
}

impl From<Scan> for Op {
    fn from(op: Scan) -> Self {
        Self::Scan(op)
    }
}

impl From<HrrAttention> for Op {
    fn from(op: HrrAttention) -> Self {
        Self::HrrAttention(op)
    }
}

impl From<FlowAttention> for Op {
    fn from(op: FlowAttention) -> Self {
        Self::FlowAttention(op)
    }
}

impl From<AftFull> for Op {
    fn from(op: AftFull) -> Self {
        Self::AftFull(op)
    }
}

/// A place for a tensor in an op. The names are those of the bindings in `shaders/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// Input of softmax, rotary embedding and convolution.
    X,
    /// Their output.
    Y,
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// Log-sum-exp of each query's scores: an output of attention and merging, an input of [`Weights`].
    Lse,
    /// Boolean mask.
    Mask,
    /// Additive bias, of attention's scores or of a convolution.
    Bias,
    /// Valid keys of each batch entry.
    KvLen,
    /// Valid queries of each batch entry.
    QLen,
    /// Keys of each batch entry that every query sees.
    PrefixLen,
    /// Where packed queries begin.
    CuQ,
    /// Where packed keys begin.
    CuKv,
    /// A window per query head.
    HeadWindows,
    /// Logits in the softmax's denominator.
    Sinks,
    /// Factors on the rows of attention's output.
    Gate,
    /// Bits of a block mask.
    Blocks,
    /// The first buffer of an attention's mods.
    Buffer0,
    /// The second.
    Buffer1,
    /// The third.
    Buffer2,
    /// The fourth.
    Buffer3,
    /// Outputs of parts that are merged.
    OParts,
    /// Log-sum-exps of parts that are merged.
    LseParts,
    /// Attention's scores or weights, or a statistic of them.
    Out,
    /// Numbers of keys.
    Keys,
    /// Cosines of a rotary embedding.
    Cos,
    /// Its sines.
    Sin,
    /// Positions of tokens.
    Positions,
    /// Decays of a linear attention's state.
    Decay,
    /// β of the delta rule.
    Beta,
    /// What reads the state in an update.
    Read,
    /// Where a low-rank update writes.
    Write,
    /// Factors on the own token.
    Bonus,
    /// A state before the first token.
    InitialState,
    /// A state after the last token.
    FinalState,
    /// A sum of keys before the first token.
    InitialSum,
    /// A sum of keys after the last token.
    FinalSum,
    /// Where packed sequences begin.
    CuSeqlens,
    /// Queries of an attention inside groups, beside a linear one.
    LocalQ,
    /// Its keys.
    LocalK,
    /// Random directions.
    Projection,
    /// Weights of a convolution.
    Weight,
    /// Decays of a running log-sum-exp.
    LogDecay,
    /// Shares of tokens in a running log-sum-exp.
    Weights,
    /// States after every token.
    States,
    /// Factors of a position bias, of the position that asks.
    BiasRows,
    /// Factors of a position bias, of the other position.
    BiasColumns,
    /// Partial results, allocated by the engine.
    Scratch,
}

impl Slot {
    /// Every slot.
    pub const ALL: [Self; 49] = [
        Self::X,
        Self::Y,
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Lse,
        Self::Mask,
        Self::Bias,
        Self::KvLen,
        Self::QLen,
        Self::PrefixLen,
        Self::CuQ,
        Self::CuKv,
        Self::HeadWindows,
        Self::Sinks,
        Self::Gate,
        Self::Blocks,
        Self::Buffer0,
        Self::Buffer1,
        Self::Buffer2,
        Self::Buffer3,
        Self::OParts,
        Self::LseParts,
        Self::Out,
        Self::Keys,
        Self::Cos,
        Self::Sin,
        Self::Positions,
        Self::Decay,
        Self::Beta,
        Self::Read,
        Self::Write,
        Self::Bonus,
        Self::InitialState,
        Self::FinalState,
        Self::InitialSum,
        Self::FinalSum,
        Self::CuSeqlens,
        Self::LocalQ,
        Self::LocalK,
        Self::Projection,
        Self::Weight,
        Self::LogDecay,
        Self::Weights,
        Self::States,
        Self::BiasRows,
        Self::BiasColumns,
        Self::Scratch,
    ];

    /// The slots for buffers of an attention's mods.
    pub const BUFFERS: [Self; 4] = [Self::Buffer0, Self::Buffer1, Self::Buffer2, Self::Buffer3];

    /// The name of the slot: of its field in the op, and of its binding in a shader.
    pub fn name(self) -> &'static str {
        match self {
            Self::X => "x",
            Self::Y => "y",
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
            Self::Lse => "lse",
            Self::Mask => "mask",
            Self::Bias => "bias",
            Self::KvLen => "kv_len",
            Self::QLen => "q_len",
            Self::PrefixLen => "prefix_len",
            Self::CuQ => "cu_q",
            Self::CuKv => "cu_kv",
            Self::HeadWindows => "head_windows",
            Self::Sinks => "sinks",
            Self::Gate => "gate",
            Self::Blocks => "blocks",
            Self::Buffer0 => "buffer_0",
            Self::Buffer1 => "buffer_1",
            Self::Buffer2 => "buffer_2",
            Self::Buffer3 => "buffer_3",
            Self::OParts => "o_parts",
            Self::LseParts => "lse_parts",
            Self::Out => "out",
            Self::Keys => "keys",
            Self::Cos => "cos",
            Self::Sin => "sin",
            Self::Positions => "positions",
            Self::Decay => "decay",
            Self::Beta => "beta",
            Self::Read => "read_keys",
            Self::Write => "write_keys",
            Self::Bonus => "bonus",
            Self::InitialState => "initial_state",
            Self::FinalState => "final_state",
            Self::InitialSum => "initial_sum",
            Self::FinalSum => "final_sum",
            Self::CuSeqlens => "cu_seqlens",
            Self::LocalQ => "local_q",
            Self::LocalK => "local_k",
            Self::Projection => "projection",
            Self::Weight => "weight",
            Self::LogDecay => "log_decay",
            Self::Weights => "weights",
            Self::States => "states",
            Self::BiasRows => "bias_rows",
            Self::BiasColumns => "bias_columns",
            Self::Scratch => "scratch",
        }
    }

    /// Whether an op writes this tensor; but see [`Op::is_output`].
    pub fn is_output(self) -> bool {
        matches!(
            self,
            Self::Y
                | Self::O
                | Self::Lse
                | Self::Out
                | Self::Keys
                | Self::FinalState
                | Self::FinalSum
                | Self::LogDecay
                | Self::Weights
                | Self::States
                | Self::Scratch
        )
    }
}

/// The caller's tensors for one op, by slot.
#[derive(Debug, Clone)]
pub struct Args<'a>(pub Vec<(Slot, View<'a>)>);

/// Real numbers in ops compare and hash by their bits, so that ops can be keys.
pub(crate) fn same_bits(a: Option<f32>, b: Option<f32>) -> bool {
    a.map(f32::to_bits) == b.map(f32::to_bits)
}

/// A real number of an op. It compares and hashes by its bits, so that ops can be keys.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Real(pub f32);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl std::hash::Hash for Real {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl From<f32> for Real {
    fn from(number: f32) -> Self {
        Self(number)
    }
}
