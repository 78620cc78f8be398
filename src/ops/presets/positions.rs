//! What positions add to scores.

use std::fmt::Write;

use super::{SCORE, axis, check, check_length, place, shared};
use crate::{
    error::{Error, Result},
    ops::{Corner, Mod},
    tensor::{DType, Layout},
};

/// ALiBi: `score + slope[head] * (j - i)`, for query place `i` and key `j`. For causal attention.
///
/// `slopes` is f32 `[q_heads]`, such as [`alibi_slopes`]. Source: Press et al. (arXiv:2108.12409).
///
/// # Errors
/// [`Error::Invalid`] for another layout.
pub fn alibi(slopes: Layout, corner: Corner) -> Result<Mod> {
    slope_times(slopes, corner, "distance")
}

/// ALiBi for attention that looks both ways: `score - slope[head] * |i - j|`.
///
/// # Errors
/// [`Error::Invalid`] for another layout than f32 `[q_heads]`.
pub fn alibi_symmetric(slopes: Layout, corner: Corner) -> Result<Mod> {
    slope_times(slopes, corner, "-abs(distance)")
}

fn slope_times(slopes: Layout, corner: Corner, distance: &str) -> Result<Mod> {
    check("slopes", &slopes, DType::F32, 1)?;
    let place = place(corner);
    Ok(Mod::new(format!(
        "{SCORE} {{
    let distance = f32(i32(kv_index) - {place});
    return score + slopes(head) * {distance};
}}"
    ))
    .buffer("slopes", slopes))
}

/// The slopes of [`alibi`] for any number of heads: `2^(-8 (h + 1) / heads)` for a power of two; otherwise those
/// of the power of two below, then every other one of the power of two above.
///
/// Source: Press et al. (arXiv:2108.12409), with the rule of their code for other numbers of heads.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let of_power =
        |count: usize, h: usize| (-8.0 * (h as f64 + 1.0) / count.max(1) as f64).exp2() as f32;
    let power = if heads == 0 { 1 } else { 1 << heads.ilog2() };
    (0..heads.min(power))
        .map(|h| of_power(power, h))
        .chain((power..heads).map(|h| of_power(2 * power, 2 * (h - power))))
        .collect()
}

/// A learned bias per head and distance: `score + table[head, clamp(j - i, 1 - span, span - 1) + span - 1]`.
///
/// `table` is f32 `[q_heads or 1, 2 span - 1]`. Source: Shaw et al. (arXiv:1803.02155), as a bias on scores.
///
/// # Errors
/// [`Error::Invalid`] for another layout, or a row of even length.
pub fn relative_positions(table: Layout, corner: Corner) -> Result<Mod> {
    check("table", &table, DType::F32, 2)?;
    let (heads, length) = (axis(&table, 0), axis(&table, 1));
    check_length("table", length, 1)?;
    if length % 2 == 0 {
        return Err(Error::invalid(
            "table",
            format!("{length} distances"),
            "give 2 span - 1: from 1 - span to span - 1",
        ));
    }
    let (place, head, far) = (place(corner), shared("head", heads), length / 2);
    Ok(Mod::new(format!(
        "{SCORE} {{
    let distance = clamp(i32(kv_index) - {place}, -{far}, {far});
    return score + table({head} * {length}u + u32(distance + {far}));
}}"
    ))
    .buffer("table", table))
}

/// A learned bias per head and distance in an image, whose tokens lie row by row, both as queries and keys:
/// `score + table[(yi - yj + height - 1) * (2 width - 1) + xi - xj + width - 1, head]`.
///
/// `image` is height and width; `table` is f32 `[(2 height - 1) (2 width - 1), q_heads]`. Places past
/// the image are left as they are. Source: Liu et al., Swin Transformer (arXiv:2103.14030).
///
/// # Errors
/// [`Error::Invalid`] for another layout.
pub fn image_positions(table: Layout, image: [u64; 2]) -> Result<Mod> {
    check("table", &table, DType::F32, 2)?;
    for length in image {
        check_length("image", length, 1)?;
    }
    let [height, width] = image;
    let (rows, columns) = (2 * height - 1, 2 * width - 1);
    if axis(&table, 0) != rows * columns {
        return Err(Error::invalid(
            "table",
            format!("{} distances for an image of {image:?}", axis(&table, 0)),
            format!("give {rows} x {columns}"),
        ));
    }
    let heads = axis(&table, 1);
    let (down, right) = (height - 1, width - 1);
    let (head, places) = (shared("head", heads), height * width);
    Ok(Mod::new(format!(
        "{SCORE} {{
    if max(q_index, kv_index) >= {places}u {{
        return score;
    }}
    let down = i32(q_index / {width}u) - i32(kv_index / {width}u);
    let right = i32(q_index % {width}u) - i32(kv_index % {width}u);
    let row = (down + {down}) * {columns} + right + {right};
    return score + table(u32(row) * {heads}u + {head});
}}"
    ))
    .buffer("table", table))
}

/// How T5 puts distances into buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct T5Buckets {
    /// Number of buckets.
    pub buckets: u64,
    /// Whether keys after the query have buckets of their own, half of them; otherwise they share that of
    /// distance 0.
    pub bidirectional: bool,
    /// From this distance on, all is in the last bucket.
    pub max_distance: u64,
}

impl T5Buckets {
    /// Most buckets.
    const MAX: u64 = 512;

    /// Buckets of one direction.
    fn one_way(&self) -> u64 {
        if self.bidirectional {
            self.buckets / 2
        } else {
            self.buckets
        }
    }

    /// The first distance of each bucket after those that hold one distance each.
    ///
    /// Bucket `exact + k` begins at `exact * (max_distance / exact)^(k / rest)`. Where that is a whole number,
    /// rounding must not miss it.
    fn thresholds(&self) -> Vec<u64> {
        let exact = self.one_way() / 2;
        let rest = self.one_way() - exact;
        let ratio = self.max_distance as f64 / exact as f64;
        (1..rest)
            .map(|k| {
                let start = exact as f64 * ratio.powf(k as f64 / rest as f64);
                (start * (1.0 - 1e-12)).ceil() as u64
            })
            .collect()
    }
}

/// T5's relative positions: `score + table[bucket(j - i), head]`.
///
/// With `b` buckets in one direction and `e = b / 2`, distance `n` is in bucket `n` below `e`, and from there on in
/// `min(b - 1, e + floor((b - e) ln(n / e) / ln(max_distance / e)))`; keys after the query are in bucket 0
/// or, when `bidirectional`, in `b` more. `table` is f32 `[buckets, q_heads]`. T5 does not scale its scores: set
/// the op's scale to 1. Source: Raffel et al. (arXiv:1910.10683).
///
/// # Errors
/// [`Error::Invalid`] for another layout, or buckets that cannot be.
pub fn t5_positions(table: Layout, buckets: T5Buckets, corner: Corner) -> Result<Mod> {
    check("table", &table, DType::F32, 2)?;
    let one_way = buckets.one_way();
    let exact = one_way / 2;
    let odd = buckets.bidirectional && buckets.buckets % 2 == 1;
    if exact == 0 || buckets.buckets > T5Buckets::MAX || odd {
        return Err(Error::invalid(
            "buckets",
            format!("{} buckets", buckets.buckets),
            format!(
                "give at least 2 for each direction, as many for both, and at most {}",
                T5Buckets::MAX
            ),
        ));
    }
    check_length("max_distance", buckets.max_distance, exact + 1)?;
    if axis(&table, 0) != buckets.buckets {
        return Err(Error::invalid(
            "table",
            format!("{} rows for {} buckets", axis(&table, 0), buckets.buckets),
            "give a row per bucket",
        ));
    }
    let heads = axis(&table, 1);
    let (place, head) = (place(corner), shared("head", heads));
    let mut source = format!("fn bucket(n: u32) -> u32 {{\n    var b = min(n, {exact}u);\n");
    for start in buckets.thresholds() {
        // Writing to a String cannot fail.
        let _ = writeln!(source, "    b += u32(n >= {start}u);");
    }
    let after = if buckets.bidirectional {
        format!("bucket(u32(abs(distance))) + select(0u, {one_way}u, distance > 0)")
    } else {
        "bucket(u32(max(-distance, 0)))".into()
    };
    let _ = write!(
        source,
        "    return b;
}}
{SCORE} {{
    let distance = i32(kv_index) - {place};
    let row = {after};
    return score + table(row * {heads}u + {head});
}}"
    );
    Ok(Mod::new(source).buffer("table", table))
}

/// Forgetting attention: `score + G[i] - G[j]` for query place `i` (bottom right) and key `j`, where `G` is the
/// running sum of the logarithms of forget gates. For causal attention.
///
/// `sums` is f32 `[batch or 1, q_heads or 1, kv_len]`. Its differences are taken in f32, so sums of large absolute
/// value lose digits. Source: Lin et al. (arXiv:2503.02130).
///
/// # Errors
/// [`Error::Invalid`] for another layout.
pub fn forgetting_gates(sums: Layout) -> Result<Mod> {
    check("sums", &sums, DType::F32, 3)?;
    let (batches, heads, length) = (axis(&sums, 0), axis(&sums, 1), axis(&sums, 2));
    check_length("sums", length, 1)?;
    let place = place(Corner::BottomRight);
    let (batch, head) = (shared("batch", batches), shared("head", heads));
    let last = length - 1;
    Ok(Mod::new(format!(
        "{SCORE} {{
    let row = ({batch} * {heads}u + {head}) * {length}u;
    let i = u32(clamp({place}, 0, {last}));
    return score + (sums(row + i) - sums(row + min(kv_index, {last}u)));
}}"
    ))
    .buffer("sums", sums))
}

/// The weight of key 0 times a factor per head, before the weights are made to sum to 1:
/// `score + ln(factor[head])` at key 0. Factors below 1e-30 count as that.
///
/// `factors` is f32 `[q_heads or 1]`. Source: Han et al., ZeroTuning (arXiv:2505.11739).
///
/// # Errors
/// [`Error::Invalid`] for another layout.
pub fn first_key_scale(factors: Layout) -> Result<Mod> {
    check("factors", &factors, DType::F32, 1)?;
    let head = shared("head", axis(&factors, 0));
    Ok(Mod::new(format!(
        "{SCORE} {{
    if kv_index != 0u {{
        return score;
    }}
    return score + log(max(factors({head}), 1e-30));
}}"
    ))
    .buffer("factors", factors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_any_number_of_heads() {
        assert!(alibi_slopes(0).is_empty());
        assert_eq!(alibi_slopes(1), [1.0 / 256.0]);
        assert_eq!(alibi_slopes(4), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
        // Every other one of eight after those of four.
        assert_eq!(alibi_slopes(6)[4..], [0.5, 0.125]);
        assert_eq!(alibi_slopes(8)[..2], [0.5, 0.25]);
        assert_eq!(alibi_slopes(13).len(), 13);
    }

    #[test]
    fn buckets_begin_where_t5_begins_them() {
        // 8 (128 / 8)^(k / 8) is 8 * 2^(k / 2): whole for even k.
        let both = T5Buckets {
            buckets: 32,
            bidirectional: true,
            max_distance: 128,
        };
        assert_eq!(both.thresholds(), [12, 16, 23, 32, 46, 64, 91]);
        let one = T5Buckets {
            bidirectional: false,
            ..both
        };
        assert_eq!(
            one.thresholds(),
            [19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let f32s = |shape: &[u64]| Layout::f32(shape);
        let t5 = |buckets, bidirectional, max_distance| {
            t5_positions(
                f32s(&[32, 2]),
                T5Buckets {
                    buckets,
                    bidirectional,
                    max_distance,
                },
                Corner::TopLeft,
            )
        };
        assert!(t5(32, true, 128).is_ok());
        for (result, part) in [
            (alibi(f32s(&[2, 2]), Corner::TopLeft), "1 axes"),
            (alibi(Layout::f16([2]), Corner::TopLeft), "f16"),
            (alibi(f32s(&[0]), Corner::TopLeft), "elements"),
            (
                relative_positions(f32s(&[2, 4]), Corner::TopLeft),
                "4 distances",
            ),
            (image_positions(f32s(&[9, 2]), [2, 3]), "3 x 5"),
            (image_positions(f32s(&[9, 2]), [0, 3]), "image: 0"),
            (t5(31, true, 128), "31 buckets"),
            (t5(2, true, 128), "2 buckets"),
            (t5(1, false, 128), "1 buckets"),
            (t5(16, false, 128), "32 rows for 16 buckets"),
            (t5(32, true, 8), "max_distance: 8"),
            (t5(32, true, u64::MAX), "max_distance"),
            (forgetting_gates(f32s(&[4])), "3 axes"),
            (first_key_scale(f32s(&[1, 4])), "1 axes"),
        ] {
            let error = result.expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
