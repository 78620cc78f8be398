//! Columns and diagonals, as blocks.

use serde::{Deserialize, Serialize};

use super::{Args, Slot, check, pool::MOST_POSITIONS};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// The blocks that columns and diagonals of the scores pass through: an index for causal attention
/// ([`crate::BlockMask`]), as bits, which stays on the device.
///
/// Row `i` stands for queries at positions `first_query + block_q i ..`, `block_q` of them, block `j` for the keys at
/// `block_kv j ..`. A row takes a block that holds
///
/// - a key that `columns` lists, at or before the row's last query ("vertical"); or
/// - the key `d` positions before a query of the row, for a `d` that `diagonals` lists ("slash"; 0 is the query's own).
///
/// Lists are in any order; what lies past the blocks, as [`NONE`](crate::NONE) does, is passed over.
///
/// Where there is another index ([`VerticalSlash::other`]), the row takes its blocks as well; or, with
/// [`VerticalSlash::head_choice`], each head has either the one or the other: patterns per head, as
/// [`crate::Divergence`] chooses them.
///
/// The lists come from a sample of queries: [`crate::Weights`] gives its matrix, [`crate::Pool`] sums it along columns
/// and, in a view with a row stride of one more, along diagonals, [`crate::TopK`] or [`crate::TopP`] takes the best.
/// `tests/patterns.rs` has it in full.
///
/// Sources: MInference (Jiang et al., 2024, arXiv:2407.02490); FlexPrefill (Lai et al., 2025, arXiv:2502.20766).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerticalSlash {
    /// Positions of keys, u32 `[batch, heads, columns]`.
    pub columns: Layout,
    /// How far before a query, u32 `[batch, heads, diagonals]`; but see `sample_query`.
    pub diagonals: Layout,
    /// Queries of a row.
    pub block_q: u64,
    /// Keys of a block.
    pub block_kv: u64,
    /// Blocks of keys.
    pub blocks: u64,
    /// Where the queries of the first row begin.
    #[serde(default)]
    pub first_query: u64,
    /// Where there is one, diagonals are named by the keys that the query at this position has on them: number `j` is
    /// `sample_query - j` before a query. Numbers past it are passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_query: Option<u64>,
    /// Bits of another index, as of `bits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Layout>,
    /// Which heads have the other index instead, u32 `[batch, heads]`: those of a number other than 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_choice: Option<Layout>,
    /// Output, u32 `[batch, heads, rows, ceil(blocks / 32)]`: bit `j % 32` of word `j / 32` for block `j`.
    pub bits: Layout,
}

impl VerticalSlash {
    /// Rows of `block_q` queries from position 0 on and blocks of `block_kv` keys, for `q_len` queries and `kv_len`
    /// keys, in contiguous bits.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(
        columns: Layout,
        diagonals: Layout,
        [block_q, block_kv]: [u64; 2],
        [q_len, kv_len]: [u64; 2],
    ) -> Self {
        let axis = |axis: usize| columns.shape.get(axis).copied().unwrap_or(1);
        let rows = q_len.div_ceil(block_q.max(1));
        let blocks = kv_len.div_ceil(block_kv.max(1));
        Self {
            bits: Layout::new(DType::U32, [axis(0), axis(1), rows, blocks.div_ceil(32)]),
            columns,
            diagonals,
            block_q,
            block_kv,
            blocks,
            first_query: 0,
            sample_query: None,
            other: None,
            head_choice: None,
        }
    }

    /// Sets where the queries of the first row begin.
    #[must_use]
    pub fn first_query(mut self, first_query: u64) -> Self {
        self.first_query = first_query;
        self
    }

    /// Names diagonals by the keys that the query at this position has on them.
    #[must_use]
    pub fn diagonals_of(mut self, query: u64) -> Self {
        self.sample_query = Some(query);
        self
    }

    /// Takes the blocks of another index too, of contiguous bits.
    #[must_use]
    pub fn or(mut self) -> Self {
        self.other = Some(Layout::new(DType::U32, self.bits.shape.clone()));
        self
    }

    /// Has the blocks of another index, of contiguous bits, instead in the heads that a tensor says.
    #[must_use]
    pub fn or_by_head(self) -> Self {
        let heads = self.bits.shape.get(..2).unwrap_or_default();
        let choice = Layout::new(DType::U32, heads);
        Self {
            head_choice: Some(choice),
            ..self.or()
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        self.bits.check("bits")?;
        check::axes(Slot::Bits, &self.bits, 4)?;
        let [batch, heads, rows, _] = super::dims(&self.bits);
        for (name, size) in [("block_q", self.block_q), ("block_kv", self.block_kv)] {
            if size == 0 {
                return Err(Error::invalid(name, "0", "give a size from 1"));
            }
        }
        let queries = rows
            .saturating_mul(self.block_q)
            .saturating_add(self.first_query);
        let keys = self.blocks.saturating_mul(self.block_kv);
        let queries = queries.max(self.sample_query.unwrap_or(0));
        if queries.max(keys) > MOST_POSITIONS {
            return Err(Error::unsupported(
                format!("queries up to position {queries} and keys up to {keys}"),
                format!("positions are counted to {MOST_POSITIONS}"),
                "split the sequence",
            ));
        }
        if self.blocks == 0 {
            return Err(Error::invalid("blocks", "0", "give at least 1"));
        }
        for (slot, list) in [
            (Slot::Columns, &self.columns),
            (Slot::Diagonals, &self.diagonals),
        ] {
            list.check(slot.name())?;
            check::axes(slot, list, 3)?;
            let places = list.shape.last().copied().unwrap_or(1);
            check::tensor(slot, list, &[DType::U32], &[batch, heads, places])?;
        }
        let shape = [batch, heads, rows, self.blocks.div_ceil(32)];
        check::tensor(Slot::Bits, &self.bits, &[DType::U32], &shape)?;
        if let Some(other) = &self.other {
            check::tensor(Slot::Blocks, other, &[DType::U32], &shape)?;
        }
        match (&self.head_choice, &self.other) {
            (Some(_), None) => Err(Error::invalid(
                "head_choice",
                "there is no other index to choose",
                "give VerticalSlash::other",
            )),
            (Some(choice), _) => {
                check::tensor(Slot::HeadChoice, choice, &[DType::U32], &[batch, heads])
            }
            (None, _) => Ok(()),
        }
    }

    pub(crate) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![
            (Slot::Columns, &self.columns),
            (Slot::Diagonals, &self.diagonals),
            (Slot::Bits, &self.bits),
        ];
        list.extend(self.other.as_ref().map(|l| (Slot::Blocks, l)));
        list.extend(self.head_choice.as_ref().map(|l| (Slot::HeadChoice, l)));
        list
    }
}

/// The tensors of a [`VerticalSlash`].
#[derive(Debug, Clone)]
pub struct VerticalSlashArgs<'a> {
    /// Columns.
    pub columns: View<'a>,
    /// Diagonals.
    pub diagonals: View<'a>,
    /// Bits of the other index, where the op has one.
    pub other: Option<View<'a>>,
    /// Which heads have it, where the op says so.
    pub head_choice: Option<View<'a>>,
    /// Output.
    pub bits: View<'a>,
}

impl<'a> From<VerticalSlashArgs<'a>> for Args<'a> {
    fn from(args: VerticalSlashArgs<'a>) -> Self {
        let mut list = vec![
            (Slot::Columns, args.columns),
            (Slot::Diagonals, args.diagonals),
            (Slot::Bits, args.bits),
        ];
        list.extend(args.other.map(|view| (Slot::Blocks, view)));
        list.extend(args.head_choice.map(|view| (Slot::HeadChoice, view)));
        Self(list)
    }
}
