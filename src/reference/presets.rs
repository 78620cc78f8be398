//! What [`crate::presets`] compute, in f64 from their formulas.
//!
//! Score functions take a score and a [`Pair`]: a batch entry, a query head, a query and a key; masks take the pair alone.
//! `ahead` holds, per batch entry, the key at which query 0 stands: 0 for the top left corner, `kv_len - q_len` of
//! the entry for the bottom right.

use super::Pair;
use crate::presets::{NeighborhoodAxis, T5Buckets};

/// The key at which a query stands.
fn place(ahead: &[i64], [batch, _, query, _]: Pair) -> i64 {
    query as i64 + ahead[batch]
}

/// The row of an array that may have one for all.
fn row(index: usize, count: usize) -> usize {
    if count == 1 { 0 } else { index }
}

/// `score + slope[h] (j - i)`
pub fn alibi<'a>(slopes: &'a [f64], ahead: &'a [i64]) -> impl Fn(f64, Pair) -> f64 + 'a {
    move |score, at| score + slopes[at[1]] * (at[3] as i64 - place(ahead, at)) as f64
}

/// `score - slope[h] |i - j|`
pub fn alibi_symmetric<'a>(slopes: &'a [f64], ahead: &'a [i64]) -> impl Fn(f64, Pair) -> f64 + 'a {
    move |score, at| score - slopes[at[1]] * (at[3] as i64 - place(ahead, at)).abs() as f64
}

/// `score + table[h, clamp(j - i)]`, `table` `[heads, 2 span - 1]`.
pub fn relative_positions<'a>(
    table: &'a [f64],
    heads: usize,
    ahead: &'a [i64],
) -> impl Fn(f64, Pair) -> f64 + 'a {
    let length = table.len() / heads;
    let span = length.div_ceil(2) as i64;
    move |score, at| {
        let distance = (at[3] as i64 - place(ahead, at)).clamp(1 - span, span - 1);
        score + table[row(at[1], heads) * length + (distance + span - 1) as usize]
    }
}

/// `score + table[(yi - yj + height - 1) (2 width - 1) + xi - xj + width - 1, h]`, with places past the image left as
/// they are.
pub fn image_positions<'a>(
    table: &'a [f64],
    heads: usize,
    [height, width]: [usize; 2],
) -> impl Fn(f64, Pair) -> f64 + 'a {
    move |score, [_, h, i, j]| {
        if i >= height * width || j >= height * width {
            return score;
        }
        let y = i / width + height - 1 - j / width;
        let x = i % width + width - 1 - j % width;
        score + table[(y * (2 * width - 1) + x) * heads + row(h, heads)]
    }
}

/// The bucket of a distance `j - i`.
pub fn t5_bucket(distance: i64, buckets: T5Buckets) -> usize {
    let (one_way, start, n) = if buckets.bidirectional {
        let half = buckets.buckets as usize / 2;
        (half, if distance > 0 { half } else { 0 }, distance.abs())
    } else {
        (buckets.buckets as usize, 0, (-distance).max(0))
    };
    let exact = one_way / 2;
    if (n as usize) < exact {
        return start + n as usize;
    }
    let far = (n as f64 / exact as f64).ln() / (buckets.max_distance as f64 / exact as f64).ln();
    // A whole number that rounding has made a little less is that number.
    let bucket = exact + (far * (one_way - exact) as f64 + 1e-9).floor() as usize;
    start + bucket.min(one_way - 1)
}

/// `score + table[bucket(j - i), h]`, `table` `[buckets, heads]`.
pub fn t5_positions<'a>(
    table: &'a [f64],
    buckets: T5Buckets,
    ahead: &'a [i64],
) -> impl Fn(f64, Pair) -> f64 + 'a {
    let heads = table.len() / buckets.buckets as usize;
    move |score, at| {
        let bucket = t5_bucket(at[3] as i64 - place(ahead, at), buckets);
        score + table[bucket * heads + row(at[1], heads)]
    }
}

/// `score + G[i] - G[j]`, `sums` `[batch, heads, length]`.
pub fn forgetting_gates<'a>(
    sums: &'a [f64],
    [batches, heads, length]: [usize; 3],
    ahead: &'a [i64],
) -> impl Fn(f64, Pair) -> f64 + 'a {
    move |score, at| {
        let sums = &sums[(row(at[0], batches) * heads + row(at[1], heads)) * length..][..length];
        let i = place(ahead, at).clamp(0, length as i64 - 1) as usize;
        score + sums[i] - sums[at[3]]
    }
}

/// `score + ln(factor[h])` at key 0.
pub fn first_key_scale(factors: &[f64]) -> impl Fn(f64, Pair) -> f64 + '_ {
    move |score, [_, h, _, j]| {
        if j == 0 {
            score + factors[row(h, factors.len())].ln()
        } else {
            score
        }
    }
}

/// Whether a query sees a key along one axis of a neighbourhood.
fn is_neighbor(axis: &NeighborhoodAxis, query: usize, key: usize) -> bool {
    let [length, window, stride, dilation] =
        [axis.length, axis.window, axis.stride, axis.dilation].map(|n| n as usize);
    // The places of the query's group, and where in it the query is.
    let group: Vec<usize> = (query % dilation..length).step_by(dilation).collect();
    let own = query / dilation;
    let first_of_stride = own - own % stride;
    let window = if axis.causal {
        let leader = (first_of_stride + stride - 1).min(group.len() - 1);
        &group[(leader + 1).saturating_sub(window)..=own]
    } else {
        let leader = (first_of_stride + stride / 2).min(group.len() - 1);
        let start = leader.saturating_sub(window / 2).min(group.len() - window);
        &group[start..start + window]
    };
    window.contains(&key)
}

/// Neighbourhood attention: a key is seen when it is in the window along each axis.
pub fn neighborhood(axes: &[NeighborhoodAxis]) -> impl Fn(Pair) -> bool + '_ {
    move |[_, _, mut query, mut key]| {
        for axis in axes.iter().rev() {
            let length = axis.length as usize;
            if !is_neighbor(axis, query % length, key % length) {
                return false;
            }
            query /= length;
            key /= length;
        }
        query == 0 && key == 0
    }
}

/// A key is seen when it is in the query's square of the image, or within `halo` of it.
pub fn halo_blocks(
    [height, width]: [usize; 2],
    block: usize,
    halo: usize,
) -> impl Fn(Pair) -> bool {
    let near = move |query: usize, key: usize| {
        let start = query - query % block;
        key + halo >= start && key < start + block + halo
    };
    move |[_, _, i, j]| {
        i < height * width
            && j < height * width
            && near(i / width, j / width)
            && near(i % width, j % width)
    }
}

/// A key is seen when it is in the query's window of the image: as Swin does it, by moving the image by `shift`, cutting
/// it up, and keeping apart what was not side by side before.
pub fn image_windows(
    [height, width]: [usize; 2],
    window: [usize; 2],
    shift: [usize; 2],
) -> impl Fn(Pair) -> bool {
    let part = move |place: usize, axis: usize| {
        if place < shift[axis] {
            (true, 0)
        } else {
            (false, (place - shift[axis]) / window[axis])
        }
    };
    move |[_, _, i, j]| {
        i < height * width
            && j < height * width
            && part(i / width, 0) == part(j / width, 0)
            && part(i % width, 1) == part(j % width, 1)
    }
}

/// A key is seen when its document is the query's; `q_ids` `[batches, q_len]`, `kv_ids` `[batches, kv_len]`.
pub fn documents<'a>(q_ids: &'a [Vec<u32>], kv_ids: &'a [Vec<u32>]) -> impl Fn(Pair) -> bool + 'a {
    move |[b, _, i, j]| q_ids[row(b, q_ids.len())][i] == kv_ids[row(b, kv_ids.len())][j]
}

/// `j - i` is one of `-left dilation, ..., -dilation, 0, dilation, ..., right dilation`.
pub fn dilated_window(
    left: i64,
    right: i64,
    dilation: i64,
    ahead: &[i64],
) -> impl Fn(Pair) -> bool + '_ {
    move |at| {
        let distance = at[3] as i64 - place(ahead, at);
        (-left..=right).any(|step| step * dilation == distance)
    }
}

/// LongLoRA's shifted groups; `joined` as [`crate::presets::shifted_groups`] has it.
pub fn shifted_groups(
    q_heads: usize,
    group: usize,
    joined: Option<usize>,
) -> impl Fn(Pair) -> bool {
    move |[_, h, i, j]| {
        if joined.is_some_and(|length| i >= length || j >= length) {
            return false;
        }
        if h < q_heads / 2 {
            return i / group == j / group;
        }
        // The last half of a group is moved to its first.
        let group_of = |place: usize| match place.checked_sub(group / 2) {
            Some(moved) => Some(moved / group),
            None => joined.map(|length| length / group - 1),
        };
        group_of(i) == group_of(j)
    }
}

/// A tree of drafts at the end of `valid[b]` keys; `ancestors` `[batches][draft][draft]`, true where the first sees the second.
pub fn tree<'a>(
    ancestors: &'a [Vec<Vec<bool>>],
    valid: &'a [usize],
    ahead: &'a [i64],
) -> impl Fn(Pair) -> bool + 'a {
    move |at| {
        let seen = &ancestors[row(at[0], ancestors.len())];
        let start = valid[at[0]] as i64 - seen.len() as i64;
        let (own, other) = (place(ahead, at), at[3] as i64);
        if own < start {
            return other <= own;
        }
        if other < start {
            return true;
        }
        let draft = seen.get((own - start) as usize);
        draft.is_some_and(|seen| seen.get((other - start) as usize) == Some(&true))
    }
}

/// A mask of bits, `[batches, heads, rows, words]`.
pub fn bit_mask(
    bits: &[u32],
    [batches, heads, rows, words]: [usize; 4],
) -> impl Fn(Pair) -> bool + '_ {
    move |[b, h, i, j]| {
        let at = (row(b, batches) * heads + row(h, heads)) * rows + i;
        i < rows && j < 32 * words && bits[at * words + j / 32] & (1 << (j % 32)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Swin's own way to its mask: roll the image, cut windows, number the regions.
    fn swin_mask(image: [usize; 2], window: [usize; 2], shift: [usize; 2]) -> Vec<bool> {
        let [height, width] = image;
        let region = |rolled: usize, axis: usize| {
            if shift[axis] == 0 || rolled < image[axis] - window[axis] {
                0
            } else if rolled < image[axis] - shift[axis] {
                1
            } else {
                2
            }
        };
        let of = |place: usize, axis: usize| {
            let rolled = (place + image[axis] - shift[axis]) % image[axis];
            (rolled / window[axis], region(rolled, axis))
        };
        let all = 0..height * width;
        all.clone()
            .flat_map(|i| {
                all.clone().map(move |j| {
                    of(i / width, 0) == of(j / width, 0) && of(i % width, 1) == of(j % width, 1)
                })
            })
            .collect()
    }

    #[test]
    fn windows_are_those_of_swin() {
        for (image, window, shift) in [
            ([8, 12], [4, 4], [2, 2]),
            ([6, 6], [3, 2], [1, 0]),
            ([6, 6], [3, 3], [0, 0]),
            ([4, 4], [4, 4], [2, 1]),
        ] {
            let seen = image_windows(image, window, shift);
            let n = image[0] * image[1];
            let pairs = (0..n).flat_map(|i| (0..n).map(move |j| [0, 0, i, j]));
            let ours: Vec<bool> = pairs.map(seen).collect();
            assert_eq!(
                ours,
                swin_mask(image, window, shift),
                "{image:?} {window:?} {shift:?}"
            );
        }
    }

    #[test]
    fn groups_are_those_of_longlora() {
        // Rolled by half a group, cut up.
        let (group, length) = (6, 24);
        let seen = shifted_groups(4, group, Some(length));
        for i in 0..length {
            for j in 0..length {
                let rolled = |place: usize| (place + length - group / 2) % length / group;
                assert_eq!(seen([0, 1, i, j]), i / group == j / group);
                assert_eq!(seen([0, 2, i, j]), rolled(i) == rolled(j), "{i} {j}");
            }
        }
    }
}

/// `(1 - factor[h]) weight`, and `factor[h]` more where the query stands.
pub fn toward_identity<'a>(factors: &'a [f64], ahead: &'a [i64]) -> impl Fn(f64, Pair) -> f64 + 'a {
    move |weight, at| {
        let factor = factors[row(at[1], factors.len())];
        let own = if at[3] as i64 == place(ahead, at) {
            1.0
        } else {
            0.0
        };
        (1.0 - factor) * weight + factor * own
    }
}

/// `(1 - factor[h]) weight + factor[h] / keys`, with the keys that each query of each batch entry sees.
pub fn toward_uniform<'a>(
    factors: &'a [f64],
    keys: impl Fn(usize, usize) -> usize + 'a,
) -> impl Fn(f64, Pair) -> f64 + 'a {
    move |weight, [batch, head, query, _]| {
        let factor = factors[row(head, factors.len())];
        (1.0 - factor) * weight + factor / keys(batch, query) as f64
    }
}
