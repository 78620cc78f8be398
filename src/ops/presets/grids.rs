//! Windows on images and other grids whose places lie in row-major order, both as queries and as keys.

use std::fmt::Write;

use super::{MASK, RANGE, check_length};
use crate::{
    error::{Error, Result},
    ops::Mod,
};

/// One axis of a [`neighborhood`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighborhoodAxis {
    /// Length of the axis.
    pub length: u64,
    /// Keys in the window of a query.
    pub window: u64,
    /// Neighbouring queries of one group that share a window: that of the one in the middle, or of the last one
    /// on a causal axis.
    pub stride: u64,
    /// Distance between neighbours: places whose numbers leave the same remainder form a group.
    pub dilation: u64,
    /// Whether keys after the query are hidden. The window then ends at the query, and is cut off at the start of
    /// the axis; otherwise it is moved inwards at the borders, so that every query has all its keys.
    pub causal: bool,
}

impl NeighborhoodAxis {
    /// An axis with a window around each query.
    pub fn new(length: u64, window: u64) -> Self {
        Self {
            length,
            window,
            stride: 1,
            dilation: 1,
            causal: false,
        }
    }

    /// Sets the stride.
    #[must_use]
    pub fn stride(mut self, stride: u64) -> Self {
        self.stride = stride;
        self
    }

    /// Sets the dilation.
    #[must_use]
    pub fn dilation(mut self, dilation: u64) -> Self {
        self.dilation = dilation;
        self
    }

    /// Hides keys after the query.
    #[must_use]
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    fn check(&self, number: usize) -> Result<()> {
        let name = |field: &str| format!("axes[{number}].{field}");
        check_length(&name("length"), self.length, 1)?;
        check_length(&name("window"), self.window, 1)?;
        check_length(&name("dilation"), self.dilation, 1)?;
        if self.window * self.dilation > self.length {
            return Err(Error::invalid(
                name("window"),
                format!(
                    "{} keys at dilation {} on an axis of {}",
                    self.window, self.dilation, self.length
                ),
                "window times dilation must not be longer than the axis",
            ));
        }
        if self.stride == 0 || self.stride > self.window {
            return Err(Error::invalid(
                name("stride"),
                format!("{} with a window of {}", self.stride, self.window),
                "give from 1 to the window",
            ));
        }
        Ok(())
    }

    /// A function from a query's place on this axis to the first and the last key of its window.
    fn function(&self, number: usize) -> String {
        let Self {
            length,
            window,
            stride,
            dilation,
            causal,
        } = *self;
        let body = if causal {
            let last = stride - 1;
            let before = window - 1;
            format!(
                "let leader = min(own / {stride}u * {stride}u + {last}u, count - 1u);
    let first = max(leader, {before}u) - {before}u;
    let last = own;"
            )
        } else {
            let middle = stride / 2;
            let left = window / 2;
            let right = window - 1 - left;
            format!(
                "let leader = min(own / {stride}u * {stride}u + {middle}u, count - 1u);
    let first = clamp(leader, {left}u, count - 1u - {right}u) - {left}u;
    let last = first + {}u;",
                window - 1
            )
        };
        format!(
            "fn keys_{number}(place: u32) -> vec2<u32> {{
    let group = place % {dilation}u;
    let own = place / {dilation}u;
    let count = ({length}u - group + {}u) / {dilation}u;
    {body}
    return vec2<u32>(first, last) * {dilation}u + group;
}}
",
            dilation - 1
        )
    }
}

/// Neighbourhood attention in up to three dimensions: along each axis, a query sees the `window` keys of its
/// dilation group around it.
///
/// Along an axis, place `x` is number `x / dilation` of group `x % dilation`. The window of a query begins at
/// `clamp(leader - window / 2, 0, count - window)` in its group of `count` places; `leader` is the query, or the
/// middle of its stride. A causal axis: keys from `leader - window + 1` to the query itself. Places lie in row-major
/// order; those past the product of the lengths see nothing and are not seen.
///
/// Source: Hassani et al., NATTEN (arXiv:2204.07143; dilation: arXiv:2209.15001; stride: arXiv:2504.16922).
///
/// # Errors
/// [`Error::Invalid`] for no or more than three axes, or windows that do not fit.
pub fn neighborhood(axes: &[NeighborhoodAxis]) -> Result<Mod> {
    if !(1..=3).contains(&axes.len()) {
        return Err(Error::invalid(
            "axes",
            format!("{} axes", axes.len()),
            "give one to three",
        ));
    }
    for (number, axis) in axes.iter().enumerate() {
        axis.check(number)?;
    }
    let lengths: Vec<u64> = axes.iter().map(|axis| axis.length).collect();
    let total = grid_size("axes", &lengths)?;
    let mut source = String::new();
    let (mut tests, mut firsts, mut lasts) = (Vec::new(), Vec::new(), Vec::new());
    let mut step = total;
    for (number, axis) in axes.iter().enumerate() {
        source.push_str(&axis.function(number));
        step /= axis.length;
        let of = |index: &str| format!("{index} / {step}u % {}u", axis.length);
        let (q, k, dilation) = (of("q_index"), of("kv_index"), axis.dilation);
        tests.push(format!(
            "    let window_{number} = keys_{number}({q});
    let key_{number} = {k};
    if key_{number} < window_{number}.x || key_{number} > window_{number}.y {{
        return false;
    }}
    if (key_{number} - window_{number}.x) % {dilation}u != 0u {{
        return false;
    }}\n"
        ));
        firsts.push(format!("keys_{number}({q}).x * {step}u"));
        lasts.push(format!("keys_{number}({q}).y * {step}u"));
    }
    let tests = tests.concat();
    let (first, last) = (firsts.join(" + "), lasts.join(" + "));
    let _ = write!(
        source,
        "{MASK} {{
    if q_index >= {total}u || kv_index >= {total}u {{
        return false;
    }}
{tests}    return true;
}}
{RANGE} {{
    if q_index >= {total}u {{
        return vec2<u32>(0u, 0u);
    }}
    return vec2<u32>({first}, {last} + 1u);
}}"
    );
    Ok(Mod::new(source))
}

/// HaloNet's blocks: an image is cut into squares of `block`, and the queries of each see the keys of their square
/// and those at most `halo` away from it, along each axis.
///
/// `image` is height and width. Source: Vaswani et al. (arXiv:2103.12731).
///
/// # Errors
/// [`Error::Invalid`] for an empty image or block.
pub fn halo_blocks(image: [u64; 2], block: u64, halo: u64) -> Result<Mod> {
    check_length("block", block, 1)?;
    check_length("halo", halo, 0)?;
    image_mask(image, |length| {
        format!(
            "let start = place / {block}u * {block}u;
    return vec2<u32>(max(start, {halo}u) - {halo}u, min(start + {}u, {length}u));",
            block + halo
        )
    })
}

/// Windows on an image that do not overlap: a query sees the keys of its own window.
///
/// Along each axis, windows begin at `shift` and every `window` from there on; what is before `shift`, and what is left
/// at the end, is a smaller window. With `shift` of half a window these are the shifted windows of Swin, without
/// moving the image. `image`, `window` and `shift` are along height and width. Source: Liu et al., Swin Transformer
/// (arXiv:2103.14030).
///
/// # Errors
/// [`Error::Invalid`] for an empty image or window, or a shift of a window or more.
pub fn image_windows(image: [u64; 2], window: [u64; 2], shift: [u64; 2]) -> Result<Mod> {
    for (window, shift) in window.into_iter().zip(shift) {
        check_length("window", window, 1)?;
        if shift >= window {
            return Err(Error::invalid(
                "shift",
                format!("{shift} with windows of {window}"),
                "give less than a window",
            ));
        }
    }
    let mut axes = window.into_iter().zip(shift);
    image_mask(image, |length| {
        let (window, shift) = axes.next().unwrap_or((1, 0));
        let before = (window - shift) % window;
        let first_end = window - before;
        format!(
            "let end = (place + {before}u) / {window}u * {window}u + {first_end}u;
    return vec2<u32>(max(end, {window}u) - {window}u, min(end, {length}u));"
        )
    })
}

/// A mask of rectangles on an image: `keys` writes the body of a function from a `place` on an axis of the given
/// length to the first key and the end of its keys there.
fn image_mask(image: [u64; 2], mut keys: impl FnMut(u64) -> String) -> Result<Mod> {
    let total = grid_size("image", &image)?;
    let [height, width] = image;
    let (rows, columns) = (keys(height), keys(width));
    Ok(Mod::new(format!(
        "fn rows(place: u32) -> vec2<u32> {{
    {rows}
}}
fn columns(place: u32) -> vec2<u32> {{
    {columns}
}}
{MASK} {{
    if q_index >= {total}u || kv_index >= {total}u {{
        return false;
    }}
    let r = rows(q_index / {width}u);
    let c = columns(q_index % {width}u);
    let y = kv_index / {width}u;
    let x = kv_index % {width}u;
    return y >= r.x && y < r.y && x >= c.x && x < c.y;
}}
{RANGE} {{
    if q_index >= {total}u {{
        return vec2<u32>(0u, 0u);
    }}
    let r = rows(q_index / {width}u);
    let c = columns(q_index % {width}u);
    return vec2<u32>(r.x * {width}u + c.x, (r.y - 1u) * {width}u + c.y);
}}"
    )))
}

/// Places of a grid.
fn grid_size(name: &str, lengths: &[u64]) -> Result<u64> {
    let mut total = 1u64;
    for length in lengths {
        check_length(name, *length, 1)?;
        total = total.saturating_mul(*length);
    }
    check_length(name, total, 1)?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let axis = NeighborhoodAxis::new(9, 3);
        for (result, part) in [
            (neighborhood(&[]), "0 axes"),
            (neighborhood(&[axis; 4]), "4 axes"),
            (
                neighborhood(&[axis, NeighborhoodAxis::new(9, 10)]),
                "axes[1].window",
            ),
            (neighborhood(&[axis.dilation(4)]), "dilation 4"),
            (neighborhood(&[axis.dilation(0)]), "axes[0].dilation"),
            (
                neighborhood(&[NeighborhoodAxis::new(9, 0)]),
                "axes[0].window",
            ),
            (
                neighborhood(&[NeighborhoodAxis::new(0, 1)]),
                "axes[0].length",
            ),
            (neighborhood(&[axis.stride(0)]), "axes[0].stride"),
            (neighborhood(&[axis.stride(4)]), "axes[0].stride"),
            (
                neighborhood(&[NeighborhoodAxis::new(1 << 20, 3); 2]),
                "2^28",
            ),
            (
                neighborhood(&[NeighborhoodAxis::new(u64::MAX, u64::MAX)]),
                "2^28",
            ),
            (halo_blocks([4, 4], 0, 1), "block"),
            (halo_blocks([0, 4], 2, 1), "image"),
            (image_windows([4, 4], [2, 0], [0, 0]), "window"),
            (image_windows([4, 4], [2, 2], [2, 0]), "shift"),
        ] {
            let error = result.expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
