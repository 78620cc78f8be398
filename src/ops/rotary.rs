//! Rotary position embedding.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Args, Slot, dims};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// Rotary position embedding (RoPE): each pair of channels `(a, b)` of a token is turned by an angle of
/// the token's position, `a' = a cos - b sin`, `b' = a sin + b cos`.
///
/// With angles `position * base^(-2i / rotary_dim)` of pair `i`, as [`rotary_tables`] makes their cosines
/// and sines, a product of a turned query and a turned key depends on the difference of their positions.
///
/// - **Pairs**: channels `i` and `i + rotary_dim / 2` (GPT-NeoX, Llama, Hugging Face), or neighbours,
///   `2i` and `2i + 1` (RoFormer, GPT-J), with [`Rotary::interleaved`]. Channels from `rotary_dim` on are
///   copied.
/// - **Positions**: those of a tensor ([`Rotary::positions`]), or the token's place in the sequence plus
///   [`Rotary::offset`]. A position past the table takes its last row; the host cannot see it.
/// - **Tables**: `cos` and `sin` by position, `[positions, rotary_dim / 2]`, or, for angles of the
///   caller's own, by token: `[batch, seq, rotary_dim / 2]`, where a batch of 1 serves all entries; then
///   there are neither positions nor an offset.
///
/// `x` and `y` may have any strides, so `[batch, seq, heads, head_dim]` and `[batch, seq, heads * head_dim]`
/// are views. Arithmetic is f32 whatever the storage; a number that is not finite makes its pair
/// undefined, and is copied as it is past `rotary_dim`.
///
/// Source: Su et al., RoFormer (2021, arXiv:2104.09864); tables and attributes are those of the
/// operator RotaryEmbedding of ONNX, opset 23.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// Input, f32 or f16 `[batch, heads, seq, head_dim]`.
    pub x: Layout,
    /// Output, of the same shape and element type. It may be the input's own place (see
    /// [`Rotary::in_place`]).
    pub y: Layout,
    /// Cosines, f32 or f16, `[positions, rotary_dim / 2]` or `[batch or 1, seq, rotary_dim / 2]`.
    pub cos: Layout,
    /// Sines, of the same shape and element type as the cosines.
    pub sin: Layout,
    /// Position of each token, u32 `[batch or 1, seq]`; its place in the sequence when absent.
    #[serde(default)]
    pub positions: Option<Layout>,
    /// Position of the first token, when there is no tensor of positions: the length of the past.
    #[serde(default)]
    pub offset: u64,
    /// Channels that are turned: an even number, at most `head_dim`.
    pub rotary_dim: u64,
    /// Whether neighbours are pairs, instead of the two halves.
    #[serde(default)]
    pub interleaved: bool,
    /// Whether to turn back: the inverse, which is also the gradient's way.
    #[serde(default)]
    pub inverse: bool,
    /// Whether `y` is `x`: one buffer, one layout.
    #[serde(default)]
    pub in_place: bool,
}

impl Rotary {
    /// Turns all channels of `x` into a contiguous tensor of its own, positions from 0.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(x: Layout, cos: Layout, sin: Layout) -> Self {
        Self {
            y: Layout::new(x.dtype, x.shape.clone()),
            rotary_dim: x.shape.last().copied().unwrap_or(0),
            x,
            cos,
            sin,
            positions: None,
            offset: 0,
            interleaved: false,
            inverse: false,
            in_place: false,
        }
    }

    /// Turns the first channels only.
    #[must_use]
    pub fn rotary_dim(mut self, rotary_dim: u64) -> Self {
        self.rotary_dim = rotary_dim;
        self
    }

    /// Takes neighbouring channels as pairs.
    #[must_use]
    pub fn interleaved(mut self) -> Self {
        self.interleaved = true;
        self
    }

    /// Reads the positions from a tensor, u32 `[batch or 1, seq]`.
    #[must_use]
    pub fn positions(mut self, positions: Layout) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Counts positions from this one.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Turns back what was turned forth.
    #[must_use]
    pub fn inverse(mut self) -> Self {
        self.inverse = true;
        self
    }

    /// Writes to this layout.
    #[must_use]
    pub fn output(mut self, y: Layout) -> Self {
        self.y = y;
        self
    }

    /// Overwrites the input.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        self.y = self.x.clone();
        self.in_place = true;
        self
    }

    /// Whether the tables have a row per token, and not per position.
    pub(crate) fn by_token(&self) -> bool {
        self.cos.rank() == 3
    }

    /// The rows of a table that can be read, as `[batch or 1, seq, rotary_dim / 2]`; all of them where
    /// positions are on the device. None of those of an op that [`Rotary::check`] refuses.
    pub(crate) fn rows_read(&self, table: &Layout) -> Layout {
        let &[_, _, seq, _] = &dims(&self.x);
        let mut rows = table.clone();
        if self.by_token() || self.positions.is_some() {
            return rows;
        }
        // The stride of an axis of length 1 means nothing.
        let stride = match (rows.shape.first(), rows.strides.first()) {
            (Some(2..), Some(&stride)) => stride,
            _ => 0,
        };
        rows = rows.at(self.offset.saturating_mul(stride));
        if let Some(len) = rows.shape.first_mut() {
            *len = seq;
        }
        rows.shape.insert(0, 1);
        rows.strides.insert(0, 0);
        rows
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, layout) in [("x", &self.x), ("y", &self.y)] {
            layout.check(name)?;
        }
        let &[batch, _, seq, head_dim] = self.x.shape.as_slice() else {
            return Err(Error::invalid(
                "x",
                format!("{} axes in shape {:?}", self.x.rank(), self.x.shape),
                "give it 4 axes, [batch, heads, seq, head_dim]",
            ));
        };
        real("x", &self.x)?;
        if self.x.shape != self.y.shape || self.x.dtype != self.y.dtype {
            return Err(Error::invalid(
                "y",
                format!(
                    "{} {:?} where x is {} {:?}",
                    self.y.dtype, self.y.shape, self.x.dtype, self.x.shape
                ),
                "give the output the input's shape and element type",
            ));
        }
        if self.in_place && self.x != self.y {
            return Err(Error::invalid(
                "y",
                "its layout differs from x's, but the call is in place",
                "use one layout for both",
            ));
        }
        self.y.check_output("y")?;
        if !(2..=head_dim).contains(&self.rotary_dim) || !self.rotary_dim.is_multiple_of(2) {
            return Err(Error::invalid(
                "rotary_dim",
                format!("{} of {head_dim} channels", self.rotary_dim),
                "give an even number from 2 to the number of channels",
            ));
        }
        self.check_tables([batch, seq])?;
        match &self.positions {
            Some(positions) => self.check_positions(positions, [batch, seq]),
            None => self.check_offset(seq),
        }
    }

    fn check_tables(&self, [batch, seq]: [u64; 2]) -> Result<()> {
        let half = self.rotary_dim / 2;
        for (name, table) in [("cos", &self.cos), ("sin", &self.sin)] {
            table.check(name)?;
            real(name, table)?;
            let fits = match *table.shape.as_slice() {
                [_, pairs] => pairs == half,
                [entries, tokens, pairs] => {
                    (entries == batch || entries == 1) && tokens == seq && pairs == half
                }
                _ => false,
            };
            if !fits {
                return Err(Error::invalid(
                    name,
                    format!(
                        "shape {:?} where [positions, {half}] or [{batch} or 1, {seq}, {half}] is \
                         expected",
                        table.shape
                    ),
                    "give one number per pair: half as many as rotary_dim",
                ));
            }
        }
        if self.cos.shape != self.sin.shape || self.cos.dtype != self.sin.dtype {
            return Err(Error::invalid(
                "sin",
                format!(
                    "{} {:?} where cos is {} {:?}",
                    self.sin.dtype, self.sin.shape, self.cos.dtype, self.cos.shape
                ),
                "give both tables one shape and element type",
            ));
        }
        Ok(())
    }

    fn check_positions(&self, positions: &Layout, [batch, seq]: [u64; 2]) -> Result<()> {
        positions.check("positions")?;
        if self.by_token() {
            return Err(Error::invalid(
                "positions",
                "are given beside tables that have a row per token",
                "leave them out, or give tables of shape [positions, rotary_dim / 2]",
            ));
        }
        if self.offset != 0 {
            return Err(Error::invalid(
                "offset",
                format!("{} beside a tensor of positions", self.offset),
                "leave one of them out",
            ));
        }
        if positions.dtype != DType::U32 {
            return Err(Error::invalid(
                "positions",
                format!("elements are {}", positions.dtype),
                "give u32",
            ));
        }
        if positions.shape != [batch, seq] && positions.shape != [1, seq] {
            return Err(Error::invalid(
                "positions",
                format!(
                    "shape {:?} where [{batch} or 1, {seq}] is expected",
                    positions.shape
                ),
                "give one per token",
            ));
        }
        Ok(())
    }

    fn check_offset(&self, seq: u64) -> Result<()> {
        if self.by_token() {
            if self.offset != 0 {
                return Err(Error::invalid(
                    "offset",
                    format!("{} beside tables that have a row per token", self.offset),
                    "leave it out, or give tables of shape [positions, rotary_dim / 2]",
                ));
            }
            return Ok(());
        }
        let rows = self.cos.shape.first().copied().unwrap_or(0);
        let end = self.offset.saturating_add(seq);
        if end > rows {
            return Err(Error::invalid(
                "cos",
                format!("{rows} positions, and the last token is at {}", end - 1),
                "make longer tables",
            ));
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = Vec::new();
        if !self.in_place {
            list.push((Slot::X, &self.x));
        }
        list.extend([(Slot::Cos, &self.cos), (Slot::Sin, &self.sin)]);
        list.extend(self.positions.as_ref().map(|p| (Slot::Positions, p)));
        list.push((Slot::Y, &self.y));
        list
    }
}

fn real(name: &str, layout: &Layout) -> Result<()> {
    if matches!(layout.dtype, DType::F32 | DType::F16) {
        Ok(())
    } else {
        Err(Error::invalid(
            name,
            format!("elements are {}", layout.dtype),
            "give f32 or f16",
        ))
    }
}

/// Cosines and sines for [`Rotary`], `[positions, rotary_dim / 2]` each: those of
/// `position * base^(-2i / rotary_dim)`. `base` is 10,000 in most models, more in some with long contexts.
///
/// Angles are computed in f64 and the results rounded once, so that tables are right to the last bit
/// also at positions past a million, where an angle in f32 is off by a tenth, and a shader's `cos` by more.
/// Models whose own code computed angles in f32 had other tables there.
///
/// # Errors
/// [`Error::Invalid`] for an odd `rotary_dim` or 0, a `base` that is not a positive number, no positions,
/// or more than memory holds.
///
/// ```
/// let (cos, sin) = foveate::rotary_tables(0..4096, 64, 10_000.0)?;
/// assert_eq!(cos.len(), 4096 * 32);
/// assert_eq!((cos[32], sin[32]), (1f64.cos() as f32, 1f64.sin() as f32));
/// # Ok::<(), foveate::Error>(())
/// ```
pub fn rotary_tables(
    positions: Range<u64>,
    rotary_dim: u64,
    base: f64,
) -> Result<(Vec<f32>, Vec<f32>)> {
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(Error::invalid(
            "rotary_dim",
            rotary_dim.to_string(),
            "give an even number from 2",
        ));
    }
    if !(base.is_finite() && base > 0.0) {
        return Err(Error::invalid(
            "base",
            base.to_string(),
            "give a positive number, such as 10000",
        ));
    }
    if positions.is_empty() {
        return Err(Error::invalid(
            "positions",
            format!("{positions:?} holds none"),
            "give at least one",
        ));
    }
    let half = rotary_dim / 2;
    let rows = positions.end - positions.start;
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    let room = rows
        .checked_mul(half)
        .and_then(|count| usize::try_from(count).ok())
        .is_some_and(|count| {
            cos.try_reserve_exact(count).is_ok() && sin.try_reserve_exact(count).is_ok()
        });
    if !room {
        return Err(Error::invalid(
            "positions",
            format!("{rows} rows of {half} numbers are past what memory can hold"),
            "make tables of fewer positions",
        ));
    }
    let frequencies: Vec<f64> = (0..half)
        .map(|i| base.powf(-2.0 * i as f64 / rotary_dim as f64))
        .collect();
    for position in positions {
        for frequency in &frequencies {
            let (s, c) = (position as f64 * frequency).sin_cos();
            cos.push(c as f32);
            sin.push(s as f32);
        }
    }
    Ok((cos, sin))
}

/// The tensors of a [`Rotary`].
#[derive(Debug, Clone)]
pub struct RotaryArgs<'a> {
    /// Input; absent when the call is in place.
    pub x: Option<View<'a>>,
    /// Cosines.
    pub cos: View<'a>,
    /// Sines.
    pub sin: View<'a>,
    /// Positions, where the op has them.
    pub positions: Option<View<'a>>,
    /// Output.
    pub y: View<'a>,
}

impl<'a> From<RotaryArgs<'a>> for Args<'a> {
    fn from(args: RotaryArgs<'a>) -> Self {
        let mut list: Vec<_> = args.x.into_iter().map(|x| (Slot::X, x)).collect();
        list.extend([(Slot::Cos, args.cos), (Slot::Sin, args.sin)]);
        list.extend(args.positions.map(|p| (Slot::Positions, p)));
        list.push((Slot::Y, args.y));
        Self(list)
    }
}
