//! A list of kept keys, one step on.

use serde::{Deserialize, Serialize};

use super::{Args, Slot, check};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// One step of a decode loop that keeps `budget` keys per head, those of the largest weight so far (H2O's heavy
/// hitters): what the last query gave to each kept key is added to its score, the key with the lowest score is
/// dropped where the list is full, and the new token is put in.
///
/// In turn, for each batch entry and head:
///
/// 1. `scores[j] += sum of weight`, over the query heads of the head, for each place `j` of the list that holds a key;
/// 2. where no place is free, the one with the lowest score is dropped, the first of equal ones. Keys at the last
///    `recent` positions, the new token's counted, are dropped only where there is no other;
/// 3. the new token is put in, with score 0: with [`Evict::ascending`] (the default) after the last key, those behind
///    a dropped one moved up, so that a list that ascends stays so; else at the place of the dropped one, so that the
///    keys and values of a cache of `budget` rows stay where they are.
///
/// A step takes the list (positions, [`NONE`](crate::NONE) where a place is free, at the end) and the scores from one
/// pair of tensors to another, or changes them in place ([`Evict::in_place`]); with the position on the device too, a
/// recorded call can be repeated for every token, and nothing is read back. Scores must be finite.
///
/// Source: Zhang et al., H2O (2023, arXiv:2306.14048).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evict {
    /// The list before the step, u32 `[batch, heads, budget]`.
    pub index: Layout,
    /// The scores of its keys, f32 `[batch, heads, budget]`.
    pub scores: Layout,
    /// What the last query gave to each place of the list, f32 or f16 `[batch, q_heads, budget]`, `q_heads` a multiple
    /// of `heads`; or, with [`Evict::by_position`], to each position, `[batch, q_heads, n]`.
    pub weight: Layout,
    /// The position of the new token, u32 `[batch or 1]`; where it is [`NONE`](crate::NONE), scores are added and
    /// nothing else is done.
    pub positions: Layout,
    /// Output: the list after the step.
    pub indices: Layout,
    /// Output: its scores.
    pub new_scores: Layout,
    /// Output: the place of the new token, u32 `[batch, heads]`, when wanted.
    #[serde(default)]
    pub places: Option<Layout>,
    /// Whether weights are by position, and not by place. A key at a position past them has weight 0.
    #[serde(default)]
    pub by_position: bool,
    /// Positions that are kept whatever their score, the new token's counted.
    #[serde(default)]
    pub recent: u64,
    /// Whether the list ascends.
    #[serde(default = "yes")]
    pub ascending: bool,
    /// Whether `indices` is `index`, and `new_scores` is `scores`: one buffer, one layout each.
    #[serde(default)]
    pub in_place: bool,
}

fn yes() -> bool {
    true
}

impl Evict {
    /// A step into contiguous outputs, weights by place, no recent positions kept, positions u32 `[batch]`.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(index: Layout, scores: Layout, weight: Layout) -> Self {
        let batch = index.shape.first().copied().unwrap_or(1);
        Self {
            indices: Layout::new(DType::U32, index.shape.clone()),
            new_scores: Layout::f32(index.shape.clone()),
            positions: Layout::new(DType::U32, [batch]),
            index,
            scores,
            weight,
            places: None,
            by_position: false,
            recent: 0,
            ascending: true,
            in_place: false,
        }
    }

    /// Takes weights by position.
    #[must_use]
    pub fn by_position(mut self) -> Self {
        self.by_position = true;
        self
    }

    /// Keeps the keys at the last positions, the new token's counted.
    #[must_use]
    pub fn recent(mut self, recent: u64) -> Self {
        self.recent = recent;
        self
    }

    /// Puts the new token at the place of the dropped one.
    #[must_use]
    pub fn keeping_places(mut self) -> Self {
        self.ascending = false;
        self
    }

    /// Reads positions from this layout.
    #[must_use]
    pub fn positions(mut self, positions: Layout) -> Self {
        self.positions = positions;
        self
    }

    /// Asks for the place of the new token, in a contiguous tensor.
    #[must_use]
    pub fn with_places(mut self) -> Self {
        let shape = self.index.shape.get(..2).unwrap_or_default();
        self.places = Some(Layout::new(DType::U32, shape));
        self
    }

    /// Overwrites the list and its scores.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        self.indices = self.index.clone();
        self.new_scores = self.scores.clone();
        self.in_place = true;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        self.index.check("index")?;
        check::axes(Slot::Index, &self.index, 3)?;
        let &[batch, heads, budget] = self.index.shape.as_slice() else {
            return Ok(());
        };
        let shape = [batch, heads, budget];
        for (slot, layout, dtype) in [
            (Slot::Index, &self.index, DType::U32),
            (Slot::Scores, &self.scores, DType::F32),
            (Slot::Indices, &self.indices, DType::U32),
            (Slot::NewScores, &self.new_scores, DType::F32),
        ] {
            check::tensor(slot, layout, &[dtype], &shape)?;
        }
        if self.in_place && (self.indices != self.index || self.new_scores != self.scores) {
            return Err(Error::invalid(
                "indices",
                "the layouts of the list or its scores differ, but the call is in place",
                "use one layout for both",
            ));
        }
        self.weight.check("weight")?;
        check::axes(Slot::Weight, &self.weight, 3)?;
        let &[_, q_heads, columns] = self.weight.shape.as_slice() else {
            return Ok(());
        };
        if !q_heads.is_multiple_of(heads) {
            return Err(Error::invalid(
                "weight",
                format!("{q_heads} query heads, and the list has {heads} heads"),
                "give a multiple of them",
            ));
        }
        let columns = if self.by_position { columns } else { budget };
        let shape = [batch, q_heads, columns];
        check::tensor(
            Slot::Weight,
            &self.weight,
            &[DType::F32, DType::F16],
            &shape,
        )?;
        self.positions.check("positions")?;
        check::axes(Slot::Positions, &self.positions, 1)?;
        let entries = self.positions.shape.first().copied().unwrap_or(1);
        let wanted = if entries == 1 { 1 } else { batch };
        check::tensor(Slot::Positions, &self.positions, &[DType::U32], &[wanted])?;
        if let Some(places) = &self.places {
            check::tensor(Slot::Places, places, &[DType::U32], &[batch, heads])?;
        }
        if self.recent > budget {
            return Err(Error::invalid(
                "recent",
                format!("{} of {budget} places", self.recent),
                "keep no more positions than the list has places",
            ));
        }
        Ok(())
    }

    pub(crate) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = Vec::new();
        if !self.in_place {
            list.extend([(Slot::Index, &self.index), (Slot::Scores, &self.scores)]);
        }
        list.extend([
            (Slot::Weight, &self.weight),
            (Slot::Positions, &self.positions),
            (Slot::Indices, &self.indices),
            (Slot::NewScores, &self.new_scores),
        ]);
        list.extend(self.places.as_ref().map(|l| (Slot::Places, l)));
        list
    }
}

/// The tensors of an [`Evict`].
#[derive(Debug, Clone)]
pub struct EvictArgs<'a> {
    /// The list and its scores before the step; none in place.
    pub before: Option<(View<'a>, View<'a>)>,
    /// What the last query gave.
    pub weight: View<'a>,
    /// Positions of new tokens.
    pub positions: View<'a>,
    /// The list after the step.
    pub indices: View<'a>,
    /// Its scores.
    pub new_scores: View<'a>,
    /// Places of new tokens, where the op has them.
    pub places: Option<View<'a>>,
}

impl<'a> From<EvictArgs<'a>> for Args<'a> {
    fn from(args: EvictArgs<'a>) -> Self {
        let mut list = Vec::new();
        if let Some((index, scores)) = args.before {
            list.extend([(Slot::Index, index), (Slot::Scores, scores)]);
        }
        list.extend([
            (Slot::Weight, args.weight),
            (Slot::Positions, args.positions),
            (Slot::Indices, args.indices),
            (Slot::NewScores, args.new_scores),
        ]);
        list.extend(args.places.map(|view| (Slot::Places, view)));
        Self(list)
    }
}
