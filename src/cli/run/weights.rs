//! `foveate run weights`

use std::{ops::Range, str::FromStr};

use clap::ValueEnum;
use serde::Deserialize;

use super::{AxisOrder, causal_parser};
use crate::{Attention, Causal, DType, Layout, Stage, Statistic, Weights, ops::dims};

/// What to say of attention's weights; all of the attention but its tensors.
#[derive(Debug, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(super) struct WeightsSettings {
    /// What to compute.
    #[arg(value_enum)]
    statistic: Name,
    /// Matrix: how far the scores have come.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    stage: StageName,
    /// Matrix: the query heads, A..B without B. Default: all.
    #[arg(long, value_name = "A..B")]
    #[serde(default)]
    heads: Option<Span>,
    /// Matrix: the queries, A..B without B. Default: all.
    #[arg(long, value_name = "A..B")]
    #[serde(default)]
    rows: Option<Span>,
    /// Top: how many keys of each row, 1 to 64.
    #[arg(long, default_value_t = 8)]
    #[serde(default = "eight")]
    count: u64,
    /// Which keys a query sees by its place.
    #[arg(long, default_value = "none", value_parser = causal_parser())]
    #[serde(default)]
    causal: Causal,
    /// Factor on q k^T. Default: 1 / sqrt(dim of q).
    #[arg(long, allow_negative_numbers = true)]
    #[serde(default)]
    scale: Option<f32>,
    /// Order of the axes of q and k.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    layout: AxisOrder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Name {
    /// A range of the matrix itself
    Matrix,
    /// The entropy of each row's weights
    Entropy,
    /// The largest weight of each row, and its key
    LargestWeight,
    /// The largest score of each row
    LargestScore,
    /// How much weight each key gets
    Mass,
    /// The largest weights of each row, and their keys
    Top,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum StageName {
    /// scale q k^T
    Scaled,
    /// After the soft cap
    Capped,
    /// As it goes into the softmax
    Final,
    /// After the softmax
    #[default]
    Weights,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
struct Span(Range<u64>);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once("..");
        let parsed = numbers.and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
        parsed
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no range; write A..B, for example 0..4"))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

fn eight() -> u64 {
    8
}

impl WeightsSettings {
    pub(super) fn has_keys(&self) -> bool {
        matches!(self.statistic, Name::LargestWeight | Name::Top)
    }

    /// The attention of these queries and keys; values take no part.
    pub(super) fn attention(&self, q: Layout, k: Layout) -> Attention {
        let [q, k] = [q, k].map(|layout| self.layout.exchange(layout));
        let mut op = Attention::new(q, k.clone(), k).causal(self.causal);
        op.scale = self.scale;
        op
    }

    /// The op; a matrix is stored as `dtype`.
    pub(super) fn op(&self, attention: Attention, dtype: DType) -> Weights {
        let [_, q_heads, q_len, _] = dims(&attention.q);
        let span = |span: &Option<Span>, all| span.clone().map_or(0..all, |Span(range)| range);
        let statistic = match self.statistic {
            Name::Matrix => Statistic::Matrix {
                stage: match self.stage {
                    StageName::Scaled => Stage::Scaled,
                    StageName::Capped => Stage::Capped,
                    StageName::Final => Stage::Final,
                    StageName::Weights => Stage::Weights,
                },
                heads: span(&self.heads, q_heads),
                rows: span(&self.rows, q_len),
            },
            Name::Entropy => Statistic::Entropy,
            Name::LargestWeight => Statistic::LargestWeight,
            Name::LargestScore => Statistic::LargestScore,
            Name::Mass => Statistic::Mass,
            Name::Top => Statistic::Top { count: self.count },
        };
        let mut op = Weights::new(attention, statistic);
        if self.statistic == Name::Matrix {
            op.out.dtype = dtype;
        }
        op
    }
}
