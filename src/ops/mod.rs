//! The public ops, as plain data: what to compute on tensors of which layout.

mod aft_full;
mod attention;
mod check;
mod cluster_update;
mod divergence;
mod evict;
mod flow_attention;
mod gather;
mod hrr_attention;
mod linear_attention;
mod merge;
mod modification;
mod pool;
pub mod presets;
mod random_features;
mod rotary;
mod route;
mod route_scores;
mod scan;
mod scatter;
mod scatter_mean;
mod short_conv;
mod softmax;
mod sort;
mod top_k;
mod vertical_slash;
mod weights;

pub use aft_full::{AftFull, AftFullArgs, BiasTerm, PositionBias, PositionBiasArgs};
pub(crate) use attention::dims;
pub use attention::{Attention, AttentionArgs, BlockMask, Causal, Corner, KeyIndex, Window};
pub use cluster_update::{ClusterUpdate, ClusterUpdateArgs};
pub use divergence::{Divergence, DivergenceArgs};
pub use evict::{Evict, EvictArgs};
pub use flow_attention::{FlowAttention, FlowAttentionArgs};
pub use gather::{Gather, GatherArgs};
pub use hrr_attention::{HrrAttention, HrrAttentionArgs};
pub use linear_attention::{
    Decay, FeatureMap, Guard, LinearAttention, LinearAttentionArgs, Local, LocalWeights,
    Normaliser, Reach, Similarity, UpdateRule,
};
pub use merge::{Merge, MergeArgs};
pub use modification::{Mod, ModBuffer};
pub use pool::{Blocks, Divisor, Pool, PoolArgs, PoolRule};
pub use random_features::{RandomFeatures, RandomFeaturesArgs, RandomKernel, Stabiliser};
pub use rotary::{Rotary, RotaryArgs, rotary_tables};
pub use route::{FirstQuery, Keep, MOST_KEPT, Route, RouteArgs, RouteMass, Visible};
pub use route_scores::{RouteScores, RouteScoresArgs, ScoreRule};
pub(crate) use scan::ScanStrides;
pub use scan::{Denominator, Scan, ScanArgs, ScanRule, Scores};
pub use scatter::{Scatter, ScatterArgs};
pub use scatter_mean::{ScatterMean, ScatterMeanArgs};
pub use short_conv::{Activation, ShortConv, ShortConvArgs};
pub use softmax::{Softmax, SoftmaxArgs};
pub use sort::{Sort, SortArgs};
pub use top_k::{TopK, TopKArgs, TopP, TopPArgs};
pub use vertical_slash::{VerticalSlash, VerticalSlashArgs};
pub use weights::{Stage, Statistic, Weights};

use serde::{Deserialize, Serialize};

use crate::{error::Result, tensor::View};

/// Declares [`Op`]: one line per op.
macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Any op.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(
            clippy::large_enum_variant,
            reason = "ops are few, and matched on directly"
        )]
        pub enum Op {
            $($(#[$doc])* $name($name),)*
        }

        impl Op {
            /// Checks everything about the op that does not depend on a device.
            ///
            /// # Errors
            /// [`crate::Error::Invalid`], naming the argument.
            pub fn check(&self) -> Result<()> {
                match self {
                    $(Self::$name(op) => op.check(),)*
                }
            }

            /// The name of its type.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }

            /// The tensors of the op, in a fixed order.
            pub fn tensors(&self) -> Vec<(Slot, &crate::Layout)> {
                match self {
                    $(Self::$name(op) => op.tensors(),)*
                }
            }
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Self {
                Self::$name(op)
            }
        })*
    };
}

ops! {
    /// Row softmax or log-softmax.
    Softmax,
    /// Softmax attention.
    Attention,
    /// Attention results over parts of the keys, merged.
    Merge,
    /// Attention's scores and weights, or statistics of them.
    Weights,
    /// Rotary position embedding.
    Rotary,
    /// Linear attention.
    LinearAttention,
    /// Random features of queries and keys.
    RandomFeatures,
    /// Short depthwise convolution along the sequence.
    ShortConv,
    /// Scan along the sequence.
    Scan,
    /// Attention of holographic reduced representations.
    HrrAttention,
    /// Flow attention.
    FlowAttention,
    /// The attention-free transformer.
    AftFull,
    /// Rows of blocks, pooled.
    Pool,
    /// Scores that routing chooses by.
    RouteScores,
    /// From scores to the blocks or keys that queries attend.
    Route,
    /// Columns and diagonals, as blocks.
    VerticalSlash,
    /// How far two distributions are from one another.
    Divergence,
    /// Rows that an index names.
    Gather,
    /// Elements in the order of their buckets.
    Sort,
    /// Rows put back where an index says.
    ScatterMean,
    /// A selection, written into dense rows.
    Scatter,
    /// Centroids of clusters, by a moving average.
    ClusterUpdate,
    /// A list of kept keys, one step on.
    Evict,
    /// The best elements of each row.
    TopK,
    /// The best elements of each row, up to a share of its mass.
    TopP,
}

impl Op {
    /// Whether the op writes this tensor.
    pub fn is_output(&self, slot: Slot) -> bool {
        slot.is_output() && !(slot == Slot::Lse && matches!(self, Self::Weights(_)))
    }

    /// Whether what the op writes to a tensor takes the place of what it reads there.
    pub fn overwrites(&self, slot: Slot) -> bool {
        match self {
            Self::Softmax(op) => op.in_place && slot == Slot::Y,
            Self::Weights(op) => op.accumulate && slot == Slot::Out,
            Self::Rotary(op) => op.in_place && slot == Slot::Y,
            Self::Scan(op) => op.in_place && slot == Slot::FinalState,
            Self::LinearAttention(op) => {
                op.in_place && matches!(slot, Slot::FinalState | Slot::FinalSum)
            }
            Self::ShortConv(op) => op.in_place && slot == Slot::FinalState,
            Self::Evict(op) => op.in_place && matches!(slot, Slot::Indices | Slot::NewScores),
            _ => false,
        }
    }
}

/// Declares [`Slot`]: one line per slot, `in` or `out`, with its name.
macro_rules! slots {
    (@out in) => { false };
    (@out out) => { true };
    ($($(#[$doc:meta])* $slot:ident: $way:tt $text:literal,)*) => {
        /// A place for a tensor in an op. The names are those of the bindings in `shaders/`.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum Slot {
            $($(#[$doc])* $slot,)*
        }

        impl Slot {
            /// Every slot.
            pub const ALL: &[Self] = &[$(Self::$slot),*];

            /// The name of the slot: of its field in the op, and of its binding in a shader.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$slot => $text,)*
                }
            }

            /// Whether an op writes this tensor; but see [`Op::is_output`].
            pub fn is_output(self) -> bool {
                match self {
                    $(Self::$slot => slots!(@out $way),)*
                }
            }
        }
    };
}

slots! {
    /// Input of softmax, rotary embedding and convolution.
    X: in "x",
    /// Their output.
    Y: out "y",
    /// Queries.
    Q: in "q",
    /// Keys.
    K: in "k",
    /// Values.
    V: in "v",
    /// Attention output.
    O: out "o",
    /// Log-sum-exp of each query's scores: an output of attention and merging, an input of [`Weights`].
    Lse: out "lse",
    /// Boolean mask.
    Mask: in "mask",
    /// Additive bias, of attention's scores or of a convolution.
    Bias: in "bias",
    /// Valid keys of each batch entry.
    KvLen: in "kv_len",
    /// Valid queries of each batch entry.
    QLen: in "q_len",
    /// Keys of each batch entry that every query sees.
    PrefixLen: in "prefix_len",
    /// Where packed queries begin.
    CuQ: in "cu_q",
    /// Where packed keys begin.
    CuKv: in "cu_kv",
    /// A window per query head.
    HeadWindows: in "head_windows",
    /// Logits in the softmax's denominator.
    Sinks: in "sinks",
    /// Factors on the rows of attention's output.
    Gate: in "gate",
    /// Bits of a block mask.
    Blocks: in "blocks",
    /// The first buffer of an attention's mods.
    Buffer0: in "buffer_0",
    /// The second.
    Buffer1: in "buffer_1",
    /// The third.
    Buffer2: in "buffer_2",
    /// The fourth.
    Buffer3: in "buffer_3",
    /// Outputs of parts that are merged.
    OParts: in "o_parts",
    /// Log-sum-exps of parts that are merged.
    LseParts: in "lse_parts",
    /// Attention's scores or weights, or a statistic of them.
    Out: out "out",
    /// Numbers of keys.
    Keys: out "keys",
    /// Cosines of a rotary embedding.
    Cos: in "cos",
    /// Its sines.
    Sin: in "sin",
    /// Positions of tokens.
    Positions: in "positions",
    /// Decays of a linear attention's state.
    Decay: in "decay",
    /// β of the delta rule.
    Beta: in "beta",
    /// What reads the state in an update.
    Read: in "read_keys",
    /// Where a low-rank update writes.
    Write: in "write_keys",
    /// Factors on the own token.
    Bonus: in "bonus",
    /// A state before the first token.
    InitialState: in "initial_state",
    /// A state after the last token.
    FinalState: out "final_state",
    /// A sum of keys before the first token.
    InitialSum: in "initial_sum",
    /// A sum of keys after the last token.
    FinalSum: out "final_sum",
    /// Where packed sequences begin.
    CuSeqlens: in "cu_seqlens",
    /// Queries of an attention inside groups, beside a linear one.
    LocalQ: in "local_q",
    /// Its keys.
    LocalK: in "local_k",
    /// Random directions.
    Projection: in "projection",
    /// Weights of a convolution, or of keys that are kept.
    Weight: in "weight",
    /// Decays of a running log-sum-exp.
    LogDecay: out "log_decay",
    /// Shares of tokens in a running log-sum-exp.
    Weights: out "weights",
    /// States after every token.
    States: out "states",
    /// Factors of a position bias, of the position that asks.
    BiasRows: in "bias_rows",
    /// Factors of a position bias, of the other position.
    BiasColumns: in "bias_columns",
    /// Elements that a selection took.
    Values: out "values",
    /// Where a selection found them: an index.
    Indices: out "indices",
    /// How many a selection took of each row.
    Counts: out "counts",
    /// A selection as bits.
    Bits: out "bits",
    /// An index that says which rows or keys to read.
    Index: in "index",
    /// Scores to choose by.
    Scores: in "scores",
    /// Valid elements of each row.
    RowLen: in "row_len",
    /// For each place of a sorted order, where it went.
    Inverse: out "inverse",
    /// Where groups of a sorted order begin.
    Starts: out "starts",
    /// Centroids of clusters.
    Means: in "means",
    /// The cluster of each token.
    Assigned: out "assigned",
    /// Scores after a step.
    NewScores: out "new_scores",
    /// Places of new tokens.
    Places: out "places",
    /// Factors of parts that are merged.
    Gates: in "gates",
    /// Centroids after an update.
    NewMeans: out "new_means",
    /// Where blocks begin, and the last ends.
    BlockStarts: in "block_starts",
    /// Where the queries of rows begin, and those of the last end.
    RowStarts: in "row_starts",
    /// Lower bounds of the keys of a block.
    KMin: in "k_min",
    /// Columns of scores.
    Columns: in "columns",
    /// Diagonals of scores.
    Diagonals: in "diagonals",
    /// Which heads have another index.
    HeadChoice: in "head_choice",
    /// Weights of a sample of queries.
    Sample: in "sample",
    /// What is held for them.
    Estimate: in "estimate",
    /// Heads whose estimate is near.
    Chosen: out "chosen",
    /// How far it is.
    Distance: out "distance",
    /// Factors on the scores of each head.
    HeadWeights: in "head_weights",
    /// Partial results, allocated by the engine.
    Scratch: out "scratch",
}

impl Slot {
    /// The slots for buffers of an attention's mods.
    pub const BUFFERS: [Self; 4] = [Self::Buffer0, Self::Buffer1, Self::Buffer2, Self::Buffer3];
}

/// Marks an unused place of an index.
pub const NONE: u32 = u32::MAX;

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
