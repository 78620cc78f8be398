//! Rows of blocks, pooled.

use serde::{Deserialize, Serialize};

use super::{Args, Slot, check};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// Positions that kernels count to.
pub(crate) const MOST_POSITIONS: u64 = 1 << 31;

/// How a sequence is cut into blocks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// So many positions each; the last may have fewer.
    Size(u64),
    /// Block `j` begins at number `j` of this tensor and ends before number `j + 1`: u32 `[blocks + 1]`, or
    /// `[batch, heads, blocks + 1]` where the first two axes may be 1. Numbers must not fall; what lies past the
    /// sequence does not count.
    Starts(Layout),
}

impl Blocks {
    /// Positions of a block, where all have as many.
    pub(crate) fn size(&self) -> Option<u64> {
        match self {
            Self::Size(size) => Some(*size),
            Self::Starts(_) => None,
        }
    }

    pub(crate) fn starts(&self) -> Option<&Layout> {
        match self {
            Self::Size(_) => None,
            Self::Starts(starts) => Some(starts),
        }
    }

    /// Checks blocks of `[batch, heads]` sequences, `count` of them each.
    pub(super) fn check(
        &self,
        argument: &str,
        slot: Slot,
        [batch, heads]: [u64; 2],
        count: u64,
    ) -> Result<()> {
        match self {
            Self::Size(0) => Err(Error::invalid(
                argument,
                "blocks of no positions",
                "give a size from 1",
            )),
            Self::Size(size) if size.saturating_mul(count) > MOST_POSITIONS => {
                Err(Error::unsupported(
                    format!("{argument}: {count} blocks of {size} positions"),
                    format!("positions are counted to {MOST_POSITIONS}"),
                    "split the sequence",
                ))
            }
            Self::Size(_) => Ok(()),
            Self::Starts(starts) => {
                starts.check(slot.name())?;
                check::dtype(slot, starts, &[DType::U32])?;
                let axis_fits = |found: u64, all: u64| found == all || found == 1;
                let fits = match starts.shape[..] {
                    [len] => len == count + 1,
                    [b, h, len] => axis_fits(b, batch) && axis_fits(h, heads) && len == count + 1,
                    _ => false,
                };
                if fits {
                    return Ok(());
                }
                Err(Error::invalid(
                    slot.name(),
                    format!(
                        "shape {:?} where [{1}] or [{batch} or 1, {heads} or 1, {1}] is expected",
                        starts.shape,
                        count + 1
                    ),
                    "give the start of each block, and the end of the last",
                ))
            }
        }
    }
}

/// What a sum over a block's rows is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divisor {
    /// Its rows: the mean.
    #[default]
    Len,
    /// The rows of a whole block, also where the last has fewer: as if it were filled up with zeros (NSA).
    Block,
    /// The square root of its rows, which keeps the size of scores apart from how long blocks are (DHSA).
    SqrtLen,
}

/// What becomes of a block's rows, for each channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolRule {
    /// Their sum over a divisor.
    Mean(Divisor),
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

impl Default for PoolRule {
    fn default() -> Self {
        Self::Mean(Divisor::Len)
    }
}

/// One row for each block of rows: `y_j = mean, maximum or minimum over the rows of block j`, per batch entry, head
/// and channel. What methods of sparse attention score blocks of keys by.
///
/// Blocks may overlap ([`Pool::step`]). A block with no rows gives zeros. Blocks of one row with
/// [`Pool::normalise`] are rows of length 1.
///
/// Windows of an image are pooled along one axis and then along the other: means and maxima of equal windows come out
/// the same.
///
/// Sources: mean, MoBA (Lu et al., 2025, arXiv:2502.13189); maximum and minimum, Quest (Tang et al., 2024,
/// arXiv:2406.10774); by whole blocks, NSA (Yuan et al., 2025, arXiv:2502.11089); by square roots of lengths,
/// DHSA (Xiong et al., 2025, arXiv:2510.24606).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Rows, f32 or f16 `[batch, heads, rows, channels]`.
    pub x: Layout,
    /// Pooled rows, f32 or f16 `[batch, heads, blocks, channels]`. Blocks of a size: as many as begin inside the
    /// sequence, or fewer, which leaves out the last.
    pub y: Layout,
    /// How rows are cut.
    pub blocks: Blocks,
    /// Rows from the start of a block of a size to that of the next; the size when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// What becomes of the rows.
    #[serde(default)]
    pub rule: PoolRule,
    /// Whether each pooled row is divided by its length (the square root of the sum of its squares, at least 1e-12).
    #[serde(default)]
    pub normalise: bool,
    /// Valid rows of each batch entry, u32 `[batch]`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_len: Option<Layout>,
}

impl Pool {
    /// Means of blocks of `block` rows, into a contiguous output of the input's element type.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(x: Layout, block: u64) -> Self {
        let mut shape = x.shape.clone();
        if let Some(rows) = shape.get_mut(2) {
            *rows = rows.div_ceil(block.max(1));
        }
        Self {
            y: Layout::new(x.dtype, shape),
            x,
            blocks: Blocks::Size(block),
            step: None,
            rule: PoolRule::default(),
            normalise: false,
            kv_len: None,
        }
    }

    /// Means of blocks that begin and end where a tensor says (see [`Blocks::Starts`]).
    pub fn by_starts(x: Layout, starts: Layout) -> Self {
        let mut pool = Self::new(x, 1);
        if let (Some(rows), Some(len)) = (pool.y.shape.get_mut(2), starts.shape.last()) {
            *rows = len.saturating_sub(1);
        }
        pool.y = Layout::new(pool.y.dtype, pool.y.shape);
        pool.blocks = Blocks::Starts(starts);
        pool
    }

    /// Lets blocks begin every `step` rows; makes a contiguous output of as many blocks as are whole, or one.
    #[must_use]
    pub fn step(mut self, step: u64) -> Self {
        if let (Some(rows), Some(&len), Some(size)) = (
            self.y.shape.get_mut(2),
            self.x.shape.get(2),
            self.blocks.size(),
        ) {
            *rows = len.saturating_sub(size) / step.max(1) + 1;
        }
        self.y = Layout::new(self.y.dtype, self.y.shape);
        self.step = Some(step);
        self
    }

    /// Sets what becomes of the rows.
    #[must_use]
    pub fn rule(mut self, rule: PoolRule) -> Self {
        self.rule = rule;
        self
    }

    /// Divides each pooled row by its length.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        self.normalise = true;
        self
    }

    /// Pools the first rows of each batch entry only.
    #[must_use]
    pub fn kv_len(mut self, kv_len: Layout) -> Self {
        self.kv_len = Some(kv_len);
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, y: Layout) -> Self {
        self.y = y;
        self
    }

    /// Rows from the start of a block to that of the next, where blocks have a size.
    pub(crate) fn stride(&self) -> u64 {
        self.step.or(self.blocks.size()).unwrap_or(0)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.x.check("x")?;
        check::axes(Slot::X, &self.x, 4)?;
        check::dtype(Slot::X, &self.x, &[DType::F32, DType::F16])?;
        let [batch, heads, rows, channels] = super::dims(&self.x);
        if rows > MOST_POSITIONS {
            return Err(Error::unsupported(
                format!("x with {rows} rows"),
                format!("positions are counted to {MOST_POSITIONS}"),
                "split the sequence",
            ));
        }
        check::axes(Slot::Y, &self.y, 4)?;
        let [_, _, blocks, _] = super::dims(&self.y);
        check::tensor(
            Slot::Y,
            &self.y,
            &[DType::F32, DType::F16],
            &[batch, heads, blocks, channels],
        )?;
        let sequences = [batch, heads];
        self.blocks
            .check("blocks", Slot::BlockStarts, sequences, blocks)?;
        if self.blocks.starts().is_some() {
            if self.step.is_some() {
                return Err(Error::invalid(
                    "step",
                    "is given beside block_starts",
                    "leave it out: the tensor says where blocks begin",
                ));
            }
            if self.rule == PoolRule::Mean(Divisor::Block) {
                return Err(Error::invalid(
                    "rule",
                    "divides by the rows of a whole block, and block_starts gives each its own",
                    "divide by Len or SqrtLen",
                ));
            }
        } else {
            let step = self.stride();
            if step == 0 {
                return Err(Error::invalid("step", "0 rows", "give at least 1"));
            }
            if step > MOST_POSITIONS {
                return Err(Error::unsupported(
                    format!("steps of {step} rows"),
                    format!("positions are counted to {MOST_POSITIONS}"),
                    "give a step of at most as many rows as x has",
                ));
            }
            let most = rows.div_ceil(step);
            if blocks > most {
                return Err(Error::invalid(
                    "y",
                    format!("{blocks} blocks, and {most} begin inside {rows} rows"),
                    format!("give y at most {most} rows"),
                ));
            }
        }
        match &self.kv_len {
            Some(lens) => check::tensor(Slot::KvLen, lens, &[DType::U32], &[batch]),
            None => Ok(()),
        }
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![(Slot::X, &self.x)];
        list.extend(self.blocks.starts().map(|s| (Slot::BlockStarts, s)));
        list.extend(self.kv_len.as_ref().map(|l| (Slot::KvLen, l)));
        list.push((Slot::Y, &self.y));
        list
    }
}

/// The tensors of a [`Pool`].
#[derive(Debug, Clone)]
pub struct PoolArgs<'a> {
    /// Rows.
    pub x: View<'a>,
    /// Starts of blocks, where the op has them.
    pub block_starts: Option<View<'a>>,
    /// Lengths, where the op has them.
    pub kv_len: Option<View<'a>>,
    /// Pooled rows.
    pub y: View<'a>,
}

impl<'a> From<PoolArgs<'a>> for Args<'a> {
    fn from(args: PoolArgs<'a>) -> Self {
        let mut list = vec![(Slot::X, args.x)];
        list.extend(args.block_starts.map(|view| (Slot::BlockStarts, view)));
        list.extend(args.kv_len.map(|view| (Slot::KvLen, view)));
        list.push((Slot::Y, args.y));
        Self(list)
    }
}
