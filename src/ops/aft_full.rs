//! The attention-free transformer with a bias per pair of positions.

use serde::{Deserialize, Serialize};

use super::{Args, Slot, check};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// The bias `w_ij` of the pair of positions `i` (that asks) and `j`, the same for all batch entries, heads and
/// channels; f32, or the queries' element type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionBias {
    /// `[seq, seq]`.
    Matrix(Layout),
    /// `w_ij = rows_i · columns_j`, each `[positions, rank]` for at least `seq` positions.
    Factors {
        /// Of the position that asks.
        rows: Layout,
        /// Of the other, of the same rank and element type.
        columns: Layout,
    },
}

/// How a position bias and a key make a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasTerm {
    /// `k_j + w_ij`, as the paper has it. A bias of minus infinity hides `j` from `i`.
    #[default]
    Add,
    /// `k_j w_ij`, as the library pytorch-fast-transformers has it.
    Multiply,
}

/// The attention-free transformer, AFT-full: per channel, `o_i = φ(q_i) Σ_j softmax_j(score_ij) v_j`, where `φ` is
/// the logistic function and the score is that of [`BiasTerm`].
///
/// There are no products of queries and keys: a head is a group of channels and nothing else. Causal, `j` goes up to
/// `i`. A position that sees nothing gives 0. Inputs must be finite, but for a bias that hides, and
/// they and the scores within 1e37; arithmetic is f32 whatever the storage.
///
/// Source: Zhai et al., An Attention Free Transformer (2021, arXiv:2105.14103).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AftFull {
    /// Queries, f32 or f16 `[batch, heads, seq, dim]`.
    pub q: Layout,
    /// Keys, of the queries' shape and element type.
    pub k: Layout,
    /// Values, the same.
    pub v: Layout,
    /// Output, the same.
    pub o: Layout,
    /// The bias of each pair of positions.
    pub bias: PositionBias,
    /// How it makes a score.
    #[serde(default)]
    pub term: BiasTerm,
    /// Whether each token sees those up to itself only.
    #[serde(default)]
    pub causal: bool,
}

impl AftFull {
    /// Of `q`, `k` and `v` into a contiguous output, every token seeing all, the bias added.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(q: Layout, k: Layout, v: Layout, bias: PositionBias) -> Self {
        Self {
            o: Layout::new(q.dtype, q.shape.clone()),
            q,
            k,
            v,
            bias,
            term: BiasTerm::Add,
            causal: false,
        }
    }

    /// Sets how the bias makes a score.
    #[must_use]
    pub fn term(mut self, term: BiasTerm) -> Self {
        self.term = term;
        self
    }

    /// Lets each token see those up to itself only.
    #[must_use]
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, o: Layout) -> Self {
        self.o = o;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let [_, _, seq, _] = check::queries(&self.q)?;
        let types = [DType::F32, self.q.dtype];
        for (slot, layout) in self.tensors() {
            match slot {
                Slot::Bias => check::tensor(slot, layout, &types, &[seq, seq])?,
                Slot::BiasRows | Slot::BiasColumns => {
                    layout.check(slot.name())?;
                    check::dtype(slot, layout, &types)?;
                    check::axes(slot, layout, 2)?;
                    if layout.shape[0] < seq {
                        return Err(Error::invalid(
                            slot.name(),
                            format!("{} positions for {seq} tokens", layout.shape[0]),
                            "give a row per token",
                        ));
                    }
                }
                _ => check::tensor(slot, layout, &[self.q.dtype], &self.q.shape)?,
            }
        }
        if let PositionBias::Factors { rows, columns } = &self.bias
            && (rows.shape[1], rows.dtype) != (columns.shape[1], columns.dtype)
        {
            return Err(Error::invalid(
                "bias_columns",
                format!(
                    "{} of rank {} where bias_rows is {} of rank {}",
                    columns.dtype, columns.shape[1], rows.dtype, rows.shape[1]
                ),
                "give both one rank and one element type",
            ));
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![
            (Slot::Q, &self.q),
            (Slot::K, &self.k),
            (Slot::V, &self.v),
            (Slot::O, &self.o),
        ];
        match &self.bias {
            PositionBias::Matrix(bias) => list.push((Slot::Bias, bias)),
            PositionBias::Factors { rows, columns } => {
                list.extend([(Slot::BiasRows, rows), (Slot::BiasColumns, columns)]);
            }
        }
        list
    }
}

/// The tensors of an [`AftFull`].
#[derive(Debug, Clone)]
pub struct AftFullArgs<'a> {
    /// Queries.
    pub q: View<'a>,
    /// Keys.
    pub k: View<'a>,
    /// Values.
    pub v: View<'a>,
    /// Output.
    pub o: View<'a>,
    /// The bias.
    pub bias: PositionBiasArgs<'a>,
}

/// The tensors of a [`PositionBias`].
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a few views, and moved once")]
pub enum PositionBiasArgs<'a> {
    /// Of [`PositionBias::Matrix`].
    Matrix(View<'a>),
    /// Of [`PositionBias::Factors`].
    Factors {
        /// Of the position that asks.
        rows: View<'a>,
        /// Of the other.
        columns: View<'a>,
    },
}

impl<'a> From<AftFullArgs<'a>> for Args<'a> {
    fn from(args: AftFullArgs<'a>) -> Self {
        let mut list = vec![
            (Slot::Q, args.q),
            (Slot::K, args.k),
            (Slot::V, args.v),
            (Slot::O, args.o),
        ];
        match args.bias {
            PositionBiasArgs::Matrix(bias) => list.push((Slot::Bias, bias)),
            PositionBiasArgs::Factors { rows, columns } => {
                list.extend([(Slot::BiasRows, rows), (Slot::BiasColumns, columns)]);
            }
        }
        Self(list)
    }
}
