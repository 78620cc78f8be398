//! From scores to the blocks or keys that queries attend.

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, check, pool::Blocks, pool::MOST_POSITIONS};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// Most blocks that a row's list holds.
pub const MOST_KEPT: u64 = 4096;

/// How many blocks a row keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// So many, or all where fewer may be taken.
    TopK {
        /// 1 to 4096; more than there are blocks is fine.
        k: u64,
    },
    /// As many, best first, as it takes for their share of the row's mass to reach `p`.
    TopP {
        /// Above 0, at most 1, which takes all.
        p: Real,
        /// What a score is worth.
        mass: RouteMass,
        /// At least so many, or all where fewer may be taken.
        min: u64,
        /// At most so many: 1 to 4096.
        max: u64,
    },
}

impl Keep {
    /// Places in a row's list.
    pub(crate) fn most(&self) -> u64 {
        match self {
            Self::TopK { k } => *k,
            Self::TopP { max, .. } => *max,
        }
    }
}

/// What a score is worth in [`Keep::TopP`], as a share of what may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteMass {
    /// Its exponential.
    #[default]
    Softmax,
    /// Itself; those below 0 are worth nothing.
    Given,
}

/// Where the queries of the first row begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstQuery {
    /// At this position.
    At(u64),
    /// So many positions before the end of each batch entry's keys, which `kv_len` says, or at 0 where there are fewer:
    /// 1 for a step of decoding.
    BeforeEnd(u64),
}

impl Default for FirstQuery {
    fn default() -> Self {
        Self::At(0)
    }
}

/// Which blocks a row may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visible {
    /// All of them.
    #[default]
    All,
    /// Those that begin at or before the row's last query.
    Causal,
    /// Those that end at or before the row's first query, that query included.
    Complete,
}

/// Chooses for each row of scores the blocks that it keeps: an index for [`crate::Attention`] and gathering, which stays
/// on the device. Blocks of one position are keys.
///
/// # What a row may take
///
/// Row `i` stands for queries at positions `first_query + block_q i ..` (or those that [`Blocks::Starts`] say), column
/// `j` for the positions of block `j`. A block may be taken when all of these hold:
///
/// - its score is neither NaN nor minus infinity, in none of the heads of a group;
/// - it is visible ([`Visible`]);
/// - it begins before `kv_len`, where that is given, and has positions at all;
/// - it begins inside the row's sequence, where `cu_seqlens` are given: that of the row's first query.
///
/// # What it must take
///
/// Forced blocks come before all others, whatever their scores (also of NaN): those that hold a query of the row at a
/// position before `kv_len` and the end of its sequence (`own`); the first blocks of the sequence (`first`); and the last blocks up to the one that holds the row's last
/// query, or the sequence's last position where that is earlier (`recent`; like `first`, it counts blocks without
/// positions). The last two rules of the list above hold for them too, and but for [`Visible::All`], they begin at or
/// before the row's last query. They count among the `k`.
///
/// # What it takes
///
/// The largest of the scores, as [`Keep`] says how many; of equal ones, those of lower blocks. Scores of `group` heads
/// are summed first, in f32 and in the order of the heads. Infinity counts as the largest finite number.
///
/// Mass (in [`Keep::TopP`]) is that of all blocks that may be taken or must be, forced ones with their own scores, worth
/// nothing where those are NaN or minus infinity. Forced blocks come first in what is added up.
///
/// Sources: MoBA (Lu et al., 2025, arXiv:2502.13189); NSA (Yuan et al., 2025, arXiv:2502.11089); Quest (Tang et al.,
/// 2024, arXiv:2406.10774); Loki (Singhania et al., 2024, arXiv:2406.02542); SpAtten (Wang et al., 2021,
/// arXiv:2012.09852); LongHeads (Lu et al., 2024, arXiv:2402.10685); BiFormer (Zhu et al., 2023, arXiv:2303.08810).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// f32 or f16 `[batch, heads, rows, blocks]`.
    pub scores: Layout,
    /// How many blocks a row keeps.
    pub keep: Keep,
    /// Queries of each row.
    #[serde(default = "one_each")]
    pub rows: Blocks,
    /// Positions of each block.
    #[serde(default = "one_each")]
    pub blocks: Blocks,
    /// Where the queries of the first row begin. Starts of rows are counted from there.
    #[serde(default)]
    pub first_query: FirstQuery,
    /// Which blocks a row may take.
    #[serde(default)]
    pub visible: Visible,
    /// Whether a row must take the blocks that hold its queries.
    #[serde(default)]
    pub own: bool,
    /// How many of the sequence's first blocks it must take.
    #[serde(default)]
    pub first: u64,
    /// How many of the last blocks up to its last query it must take.
    #[serde(default)]
    pub recent: u64,
    /// Heads whose scores are summed.
    #[serde(default = "one")]
    pub group: u64,
    /// Valid positions of each batch entry, u32 `[batch]`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_len: Option<Layout>,
    /// Where packed sequences begin, and the last ends, u32 `[sequences + 1]`: for rows and blocks alike, in each batch
    /// entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cu_seqlens: Option<Layout>,
    /// The blocks taken, u32 `[batch, heads / group, rows, k or max]`, ascending; [`crate::NONE`] fills what is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indices: Option<Layout>,
    /// How many were taken, u32 `[batch, heads / group, rows]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Layout>,
    /// The same as bits, as [`crate::BlockMask`] has them: u32 `[batch, heads / group, rows, ceil(blocks / 32)]`, bit
    /// `j % 32` of word `j / 32` for block `j`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<Layout>,
}

fn one_each() -> Blocks {
    Blocks::Size(1)
}

fn one() -> u64 {
    1
}

impl Route {
    /// The `k` best blocks of each row, as a contiguous list; everything is visible.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(scores: Layout, k: u64) -> Self {
        let mut op = Self {
            scores,
            keep: Keep::TopK { k },
            rows: one_each(),
            blocks: one_each(),
            first_query: FirstQuery::default(),
            visible: Visible::All,
            own: false,
            first: 0,
            recent: 0,
            group: 1,
            kv_len: None,
            cu_seqlens: None,
            indices: None,
            counts: None,
            bits: None,
        };
        op.indices = Some(op.output_of(Slot::Indices));
        op
    }

    /// A contiguous layout for an output.
    fn output_of(&self, slot: Slot) -> Layout {
        let axis = |axis: usize| self.scores.shape.get(axis).copied().unwrap_or(1);
        let mut shape = vec![axis(0), axis(1) / self.group.max(1), axis(2)];
        match slot {
            Slot::Bits => shape.push(axis(3).div_ceil(32)),
            Slot::Counts => {}
            _ => shape.push(self.keep.most()),
        }
        Layout::new(DType::U32, shape)
    }

    /// Makes outputs that are there contiguous, of the shapes that the op now has.
    fn renew_outputs(mut self) -> Self {
        for slot in [Slot::Indices, Slot::Counts, Slot::Bits] {
            let layout = self.output_of(slot);
            let output = match slot {
                Slot::Indices => &mut self.indices,
                Slot::Counts => &mut self.counts,
                _ => &mut self.bits,
            };
            if output.is_some() {
                *output = Some(layout);
            }
        }
        self
    }

    /// Sets how many blocks a row keeps; outputs become contiguous.
    #[must_use]
    pub fn keep(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self.renew_outputs()
    }

    /// Sums the scores of so many heads; outputs become contiguous.
    #[must_use]
    pub fn group(mut self, heads: u64) -> Self {
        self.group = heads;
        self.renew_outputs()
    }

    /// Sets the queries of a row and the positions of a block.
    #[must_use]
    pub fn blocks(mut self, block_q: u64, block_kv: u64) -> Self {
        self.rows = Blocks::Size(block_q);
        self.blocks = Blocks::Size(block_kv);
        self
    }

    /// Sets which blocks a row may take.
    #[must_use]
    pub fn visible(mut self, visible: Visible) -> Self {
        self.visible = visible;
        self
    }

    /// Sets where the queries of the first row begin.
    #[must_use]
    pub fn first_query(mut self, first_query: FirstQuery) -> Self {
        self.first_query = first_query;
        self
    }

    /// Makes rows take the blocks that hold their queries.
    #[must_use]
    pub fn own(mut self) -> Self {
        self.own = true;
        self
    }

    /// Makes rows take the first blocks of the sequence and the last ones up to their queries.
    #[must_use]
    pub fn forced(mut self, first: u64, recent: u64) -> Self {
        self.first = first;
        self.recent = recent;
        self
    }

    /// Limits each batch entry to its own length.
    #[must_use]
    pub fn kv_len(mut self, kv_len: Layout) -> Self {
        self.kv_len = Some(kv_len);
        self
    }

    /// Keeps rows to blocks of their own sequence.
    #[must_use]
    pub fn packed(mut self, cu_seqlens: Layout) -> Self {
        self.cu_seqlens = Some(cu_seqlens);
        self
    }

    /// Asks for the number of blocks taken, in a contiguous output.
    #[must_use]
    pub fn with_counts(mut self) -> Self {
        self.counts = Some(self.output_of(Slot::Counts));
        self
    }

    /// Asks for bits, in a contiguous output.
    #[must_use]
    pub fn with_bits(mut self) -> Self {
        self.bits = Some(self.output_of(Slot::Bits));
        self
    }

    /// Asks for bits, in a contiguous output, and for no list.
    #[must_use]
    pub fn bits_only(mut self) -> Self {
        self.indices = None;
        self.with_bits()
    }

    pub(super) fn check(&self) -> Result<()> {
        self.scores.check("scores")?;
        check::axes(Slot::Scores, &self.scores, 4)?;
        check::dtype(Slot::Scores, &self.scores, &[DType::F32, DType::F16])?;
        let [batch, heads, rows, blocks] = super::dims(&self.scores);
        if self.group == 0 || !heads.is_multiple_of(self.group) {
            return Err(Error::invalid(
                "group",
                format!("{} of {heads} heads", self.group),
                "give a number from 1 that divides the heads of the scores",
            ));
        }
        if rows > MOST_POSITIONS || blocks > MOST_POSITIONS {
            return Err(Error::unsupported(
                format!("scores of {rows} rows and {blocks} blocks"),
                format!("positions are counted to {MOST_POSITIONS}"),
                "split the sequence",
            ));
        }
        let sequences = [batch, heads / self.group];
        self.rows.check("rows", Slot::RowStarts, sequences, rows)?;
        self.blocks
            .check("blocks", Slot::BlockStarts, sequences, blocks)?;
        self.check_first_query(rows)?;
        self.check_keep(blocks)?;
        if let Some(lens) = &self.kv_len {
            check::tensor(Slot::KvLen, lens, &[DType::U32], &[batch])?;
        }
        if let Some(starts) = &self.cu_seqlens {
            starts.check("cu_seqlens")?;
            check::dtype(Slot::CuSeqlens, starts, &[DType::U32])?;
            if starts.rank() != 1 || starts.elements() < 2 {
                return Err(Error::invalid(
                    "cu_seqlens",
                    format!("shape {:?}", starts.shape),
                    "give [sequences + 1] numbers: where each sequence begins, and where the last ends",
                ));
            }
        }
        let outputs = [
            (Slot::Indices, &self.indices),
            (Slot::Counts, &self.counts),
            (Slot::Bits, &self.bits),
        ];
        if outputs.iter().all(|(_, output)| output.is_none()) {
            return Err(Error::invalid(
                "indices",
                "no output is asked for",
                "ask for indices, counts or bits",
            ));
        }
        for (slot, output) in outputs {
            if let Some(output) = output {
                let shape = self.output_of(slot).shape;
                check::tensor(slot, output, &[DType::U32], &shape)?;
            }
        }
        Ok(())
    }

    fn check_first_query(&self, rows: u64) -> Result<()> {
        match self.first_query {
            FirstQuery::At(at) => {
                let end = rows
                    .saturating_mul(self.rows.size().unwrap_or(1))
                    .saturating_add(at);
                if end > MOST_POSITIONS {
                    return Err(Error::unsupported(
                        format!("queries up to position {end}"),
                        format!("positions are counted to {MOST_POSITIONS}"),
                        "split the sequence",
                    ));
                }
                Ok(())
            }
            FirstQuery::BeforeEnd(_) if self.cu_seqlens.is_some() => Err(Error::invalid(
                "first_query",
                "counts from the end of a batch entry, whose sequences are packed",
                "give a position, as FirstQuery::At",
            )),
            FirstQuery::BeforeEnd(_) if self.kv_len.is_none() => Err(Error::invalid(
                "first_query",
                "counts from the end of the keys, and there is no kv_len",
                "give kv_len, or a position, as FirstQuery::At",
            )),
            FirstQuery::BeforeEnd(back) if back > MOST_POSITIONS => Err(Error::invalid(
                "first_query",
                format!("{back} positions before the end"),
                format!("give at most {MOST_POSITIONS}"),
            )),
            FirstQuery::BeforeEnd(_) => Ok(()),
        }
    }

    fn check_keep(&self, blocks: u64) -> Result<()> {
        let most = self.keep.most();
        let name = match self.keep {
            Keep::TopK { .. } => "k",
            Keep::TopP { .. } => "max",
        };
        if !(1..=MOST_KEPT).contains(&most) {
            return Err(Error::invalid(
                name,
                most.to_string(),
                format!("give 1 to {MOST_KEPT}"),
            ));
        }
        if let Keep::TopP { p, min, .. } = self.keep {
            if !(p.0 > 0.0 && p.0 <= 1.0) {
                return Err(Error::invalid(
                    "p",
                    format!("{}", p.0),
                    "give a share above 0 and at most 1",
                ));
            }
            if min > most {
                return Err(Error::invalid(
                    "min",
                    format!("{min} where max is {most}"),
                    "give at most max",
                ));
            }
        }
        let forced = self.forced_at_most().min(blocks);
        if forced > most {
            return Err(Error::invalid(
                name,
                format!("{most}, and up to {forced} blocks are forced (own, first, recent)"),
                format!("give at least {forced}, or force fewer"),
            ));
        }
        Ok(())
    }

    /// Blocks that a row must take, at most, as far as sizes tell.
    fn forced_at_most(&self) -> u64 {
        let own = match (self.own, self.rows.size(), self.blocks.size()) {
            (false, ..) => 0,
            (true, Some(q), Some(kv)) if kv > 0 => {
                let aligned = match self.first_query {
                    FirstQuery::At(at) => at.is_multiple_of(q.min(kv).max(1)),
                    FirstQuery::BeforeEnd(_) => false,
                };
                match aligned {
                    true if q.is_multiple_of(kv) => q / kv,
                    true if kv.is_multiple_of(q) => 1,
                    _ => q.saturating_sub(1).div_ceil(kv) + 1,
                }
            }
            (true, ..) => 1,
        };
        self.first.saturating_add(own.max(self.recent))
    }

    pub(crate) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![(Slot::Scores, &self.scores)];
        let given = [
            (Slot::RowStarts, self.rows.starts()),
            (Slot::BlockStarts, self.blocks.starts()),
            (Slot::KvLen, self.kv_len.as_ref()),
            (Slot::CuSeqlens, self.cu_seqlens.as_ref()),
            (Slot::Indices, self.indices.as_ref()),
            (Slot::Counts, self.counts.as_ref()),
            (Slot::Bits, self.bits.as_ref()),
        ];
        list.extend(
            given
                .into_iter()
                .filter_map(|(slot, layout)| layout.map(|layout| (slot, layout))),
        );
        list
    }
}

/// The tensors of a [`Route`].
#[derive(Debug, Clone)]
pub struct RouteArgs<'a> {
    /// Scores.
    pub scores: View<'a>,
    /// Starts of rows, where the op has them.
    pub row_starts: Option<View<'a>>,
    /// Starts of blocks, where the op has them.
    pub block_starts: Option<View<'a>>,
    /// Lengths, where the op has them.
    pub kv_len: Option<View<'a>>,
    /// Starts of sequences, where the op has them.
    pub cu_seqlens: Option<View<'a>>,
    /// The blocks taken, where the op has them.
    pub indices: Option<View<'a>>,
    /// Their number, where the op has it.
    pub counts: Option<View<'a>>,
    /// Their bits, where the op has them.
    pub bits: Option<View<'a>>,
}

impl<'a> RouteArgs<'a> {
    /// Of scores alone.
    pub fn new(scores: View<'a>) -> Self {
        Self {
            scores,
            row_starts: None,
            block_starts: None,
            kv_len: None,
            cu_seqlens: None,
            indices: None,
            counts: None,
            bits: None,
        }
    }
}

impl<'a> From<RouteArgs<'a>> for Args<'a> {
    fn from(args: RouteArgs<'a>) -> Self {
        let mut list = vec![(Slot::Scores, args.scores)];
        let given = [
            (Slot::RowStarts, args.row_starts),
            (Slot::BlockStarts, args.block_starts),
            (Slot::KvLen, args.kv_len),
            (Slot::CuSeqlens, args.cu_seqlens),
            (Slot::Indices, args.indices),
            (Slot::Counts, args.counts),
            (Slot::Bits, args.bits),
        ];
        list.extend(
            given
                .into_iter()
                .filter_map(|(slot, view)| view.map(|view| (slot, view))),
        );
        Self(list)
    }
}
