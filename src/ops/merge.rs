//! Merging attention results.

use serde::{Deserialize, Serialize};

use super::{Args, Slot};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// One attention result from several, weighted by their log-sum-exps, by gates that are given, or by both:
///
/// | given | output |
/// |---|---|
/// | `lse_parts` | `o = sum_p exp(lse_p - lse) o_p` with `lse = log sum_p exp(lse_p)` |
/// | `gates` | `o = sum_p gate_p o_p` |
/// | both | `o = sum_p gate_p exp(lse_p - lse) o_p`, with the same `lse` |
///
/// # By log-sum-exps
///
/// The result is that of one attention over the keys of all parts, as long as no key is in two of them.
/// So attention can be computed in parts:
///
/// - keys split over several calls, as they come in or as memory allows;
/// - a prefix that many sequences share: one attention of all their queries to it, one of each sequence
///   to the keys of its own;
/// - a sequence sharded over devices: each attends to the keys that it has;
/// - local and selected keys: one call with a window's keys, one with those that were picked.
///
/// Parts need not be copied together: give the calls that compute them outputs ([`Attention::output`],
/// and [`Attention::lse`]) that are views of one buffer, [`Merge::o_part`] and [`Merge::lse_part`], and
/// merge them where they lie. Any strides will do. A merge of merges is a merge too, given the
/// log-sum-exp of each ([`Merge::with_lse`]).
///
/// A part whose `lse` is minus infinity has seen no key and
/// counts for nothing, whatever its `o` holds, NaN included; where all are so, `o = 0` and
/// `lse = -inf`. Else the log-sum-exps must be finite and below 1e38, and one below -1e38 counts as
/// -1e38; an `o` that is not finite in a part that counts makes its element undefined.
///
/// # By gates
///
/// [`Merge::gated`] adds branches up, each times a gate per query and head: what native sparse attention does with
/// its compressed, selected and windowed branches. Gates need not add up to 1, and may be negative; gates per head or
/// per token alone are a layout with strides of 0. A sum by gates alone has no log-sum-exp. One part by its gate is a
/// tensor whose rows are multiplied by factors.
///
/// With log-sum-exps too ([`Merge::gates`]), gates are factors on the weights, which are not divided by their
/// sum again, and the log-sum-exp is that without gates: as with [`Attention::gate`](crate::Attention::gate) in each
/// of the calls that were split.
///
/// A part whose gate is 0 counts for nothing, whatever its `o` holds: a branch that was not computed needs no zeros.
/// Gates must be finite.
///
/// There may be any number of parts from 1. Arithmetic is f32 whatever the storage.
///
/// Sources: Ye et al., FlashInfer (2025, arXiv:2501.01005), where the merge by log-sum-exps is called `merge_states`;
/// its formula is the online softmax of Milakov and Gimelshein (2018, arXiv:1805.02867). Gates: Yuan et al., Native
/// Sparse Attention (2025, arXiv:2502.11089), equation 5.
///
/// [`Attention::output`]: crate::Attention::output
/// [`Attention::lse`]: crate::Attention::lse
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// Outputs of the parts, f32 or f16 `[parts, batch, q_heads, q_len, value_dim]`.
    pub o_parts: Layout,
    /// Log-sum-exps of the parts (natural logarithm), f32 `[parts, batch, q_heads, q_len]`; none where gates alone
    /// weight them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lse_parts: Option<Layout>,
    /// Factors of the parts, f32 or f16 `[parts, batch, q_heads, q_len]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Layout>,
    /// Output, `[batch, q_heads, q_len, value_dim]`, of the parts' element type.
    pub o: Layout,
    /// Log-sum-exp of the whole (natural logarithm), f32 `[batch, q_heads, q_len]`, when wanted: of parts that have
    /// theirs.
    #[serde(default)]
    pub lse: Option<Layout>,
}

impl Merge {
    /// Merges parts by their log-sum-exps into a contiguous output.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(o_parts: Layout, lse_parts: Layout) -> Self {
        Self {
            lse_parts: Some(lse_parts),
            ..Self::of(o_parts)
        }
    }

    /// Adds parts up, each times its gate, into a contiguous output.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn gated(o_parts: Layout, gates: Layout) -> Self {
        Self::of(o_parts).gates(gates)
    }

    fn of(o_parts: Layout) -> Self {
        Self {
            o: Layout::new(o_parts.dtype, o_parts.shape.get(1..).unwrap_or_default()),
            o_parts,
            lse_parts: None,
            gates: None,
            lse: None,
        }
    }

    /// Multiplies the weight of each part by a gate.
    #[must_use]
    pub fn gates(mut self, gates: Layout) -> Self {
        self.gates = Some(gates);
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, o: Layout) -> Self {
        self.o = o;
        self
    }

    /// Asks for the log-sum-exp, in a contiguous tensor.
    #[must_use]
    pub fn with_lse(mut self) -> Self {
        let rows = self.o_parts.shape.split_last().map(|(_, rows)| rows);
        let shape = rows.and_then(|rows| rows.get(1..));
        self.lse = Some(Layout::f32(shape.unwrap_or_default()));
        self
    }

    /// The output of one part, as the op that computes it takes it: `[batch, q_heads, q_len,
    /// value_dim]` in the buffer of all parts. None past the last part.
    pub fn o_part(&self, part: u64) -> Option<Layout> {
        of_part(&self.o_parts, part)
    }

    /// The log-sum-exp of one part, `[batch, q_heads, q_len]` in the buffer of all parts. None past
    /// the last part, and where parts have none.
    pub fn lse_part(&self, part: u64) -> Option<Layout> {
        of_part(self.lse_parts.as_ref()?, part)
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.lse_parts.is_none() {
            let (name, found, remedy) = if self.gates.is_none() {
                (
                    "lse_parts",
                    "is missing, and so are gates",
                    "give what weights the parts: log-sum-exps, gates or both",
                )
            } else {
                (
                    "lse",
                    "is asked for, and a sum by gates alone has none",
                    "leave it out, or give lse_parts too",
                )
            };
            if self.gates.is_none() || self.lse.is_some() {
                return Err(Error::invalid(name, found, remedy));
            }
        }
        for (slot, layout) in self.tensors() {
            let name = slot.name();
            layout.check(name)?;
            let rank = match slot {
                Slot::OParts => 5,
                Slot::Lse => 3,
                _ => 4,
            };
            if layout.rank() != rank {
                return Err(Error::invalid(
                    name,
                    format!("{} axes in shape {:?}", layout.rank(), layout.shape),
                    format!("give it {rank} axes, as the docs of Merge list them"),
                ));
            }
            let (good, want) = match slot {
                Slot::OParts | Slot::Gates => (
                    matches!(layout.dtype, DType::F32 | DType::F16),
                    "f32 or f16",
                ),
                Slot::O => (
                    layout.dtype == self.o_parts.dtype,
                    "the element type of o_parts",
                ),
                _ => (layout.dtype == DType::F32, "f32"),
            };
            if !good {
                return Err(Error::invalid(
                    name,
                    format!("elements are {}", layout.dtype),
                    format!("give {want}"),
                ));
            }
        }
        let all = self.o_parts.shape.as_slice();
        for (slot, layout) in self.tensors() {
            let want = match slot {
                Slot::OParts => all,
                Slot::LseParts | Slot::Gates => &all[..4],
                Slot::O => &all[1..],
                _ => &all[1..4],
            };
            if layout.shape != want {
                return Err(Error::invalid(
                    slot.name(),
                    format!("shape {:?} where {want:?} is expected", layout.shape),
                    "make it agree with o_parts",
                ));
            }
            if slot.is_output() {
                layout.check_output(slot.name())?;
            }
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![(Slot::OParts, &self.o_parts)];
        list.extend(self.lse_parts.as_ref().map(|l| (Slot::LseParts, l)));
        list.extend(self.gates.as_ref().map(|l| (Slot::Gates, l)));
        list.push((Slot::O, &self.o));
        list.extend(self.lse.as_ref().map(|lse| (Slot::Lse, lse)));
        list
    }
}

/// One entry along the first axis.
fn of_part(parts: &Layout, part: u64) -> Option<Layout> {
    let (&len, shape) = parts.shape.split_first()?;
    let (&stride, strides) = parts.strides.split_first()?;
    (part < len).then(|| {
        Layout::new(parts.dtype, shape)
            .with_strides(strides)
            .at(parts.offset.saturating_add(part.saturating_mul(stride)))
    })
}

/// The tensors of a [`Merge`].
#[derive(Debug, Clone)]
pub struct MergeArgs<'a> {
    /// Outputs of the parts.
    pub o_parts: View<'a>,
    /// Log-sum-exps of the parts, where the op has them.
    pub lse_parts: Option<View<'a>>,
    /// Their gates, where the op has them.
    pub gates: Option<View<'a>>,
    /// Output.
    pub o: View<'a>,
    /// Log-sum-exp, where the op asks for it.
    pub lse: Option<View<'a>>,
}

impl<'a> MergeArgs<'a> {
    /// The tensors of a merge by log-sum-exps.
    pub fn new(o_parts: View<'a>, lse_parts: View<'a>, o: View<'a>) -> Self {
        Self {
            o_parts,
            lse_parts: Some(lse_parts),
            gates: None,
            o,
            lse: None,
        }
    }

    /// The tensors of a sum by gates.
    pub fn gated(o_parts: View<'a>, gates: View<'a>, o: View<'a>) -> Self {
        Self {
            o_parts,
            lse_parts: None,
            gates: Some(gates),
            o,
            lse: None,
        }
    }
}

impl<'a> From<MergeArgs<'a>> for Args<'a> {
    fn from(args: MergeArgs<'a>) -> Self {
        let mut list = vec![(Slot::OParts, args.o_parts), (Slot::O, args.o)];
        list.extend(args.lse_parts.map(|view| (Slot::LseParts, view)));
        list.extend(args.gates.map(|view| (Slot::Gates, view)));
        list.extend(args.lse.map(|lse| (Slot::Lse, lse)));
        Self(list)
    }
}
