//! Which keys a query sees, along one sequence.

use super::{MASK, RANGE, axis, check, check_length, place, shared};
use crate::{
    error::{Error, Result},
    ops::{Corner, Mod},
    tensor::{DType, Layout},
};

/// Queries see keys of the same document: those with the same number.
///
/// `q_ids` is u32 `[batch or 1, q_len]` and `kv_ids` u32 `[batch or 1, kv_len]`. Documents may lie in any order, so no
/// keys are skipped: a block mask beside it does that, and `cu_q` and `cu_kv` of the op, where each lies in one piece.
///
/// # Errors
/// [`Error::Invalid`] for other layouts.
pub fn documents(q_ids: Layout, kv_ids: Layout) -> Result<Mod> {
    check("q_ids", &q_ids, DType::U32, 2)?;
    check("kv_ids", &kv_ids, DType::U32, 2)?;
    let id = |name: &str, layout: &Layout, index: &str| {
        let length = axis(layout, 1);
        let row = shared("batch", axis(layout, 0));
        format!("{name}({row} * {length}u + {index})")
    };
    let q = id("q_ids", &q_ids, "q_index");
    let k = id("kv_ids", &kv_ids, "kv_index");
    Ok(Mod::new(format!("{MASK} {{\n    return {q} == {k};\n}}"))
        .buffer("q_ids", q_ids)
        .buffer("kv_ids", kv_ids))
}

/// A sliding window with gaps: query place `i` sees key `j` when `j - i` is a multiple of `dilation`, from
/// `-left * dilation` to `right * dilation`.
///
/// Source: Beltagy et al., Longformer (arXiv:2004.05150).
///
/// # Errors
/// [`Error::Invalid`] for windows past 2^28.
pub fn dilated_window(left: u64, right: u64, dilation: u64, corner: Corner) -> Result<Mod> {
    check_length("dilation", dilation, 1)?;
    check_length("left", left, 0)?;
    check_length("right", right, 0)?;
    let (before, after) = (
        left.saturating_mul(dilation),
        right.saturating_mul(dilation),
    );
    check_length("left times dilation", before, 0)?;
    check_length("right times dilation", after, 0)?;
    let place = place(corner);
    Ok(Mod::new(format!(
        "{MASK} {{
    let distance = i32(kv_index) - {place};
    return distance >= -{before} && distance <= {after} && abs(distance) % {dilation} == 0;
}}
{RANGE} {{
    let place = {place};
    return vec2<u32>(u32(max(place - {before}, 0)), u32(max(place + {after} + 1, 0)));
}}"
    )))
}

/// LongLoRA's shifted groups: queries see keys of their own group of `group` places. In the first half of the query
/// heads groups begin at 0, in the second half at half a group.
///
/// The half groups at both ends of a sequence of `joined` places see each other in the second half of the heads, as
/// where the sequence is rolled, and places past it see nothing and are not seen; without `joined` each half group
/// stands alone. Source: Chen et al. (arXiv:2309.12307).
///
/// # Errors
/// [`Error::Invalid`] for groups of less than 2, less than 2 heads, or a joined sequence that is no whole number of
/// groups.
pub fn shifted_groups(q_heads: u64, group: u64, joined: Option<u64>) -> Result<Mod> {
    check_length("q_heads", q_heads, 2)?;
    check_length("group", group, 2)?;
    let (unshifted, half) = (q_heads / 2, group / 2);
    // Groups of both kinds of heads: of place `p`, moved on so that a group begins at a multiple of `group`.
    let (shifted, within, range) = match joined {
        None => {
            let moved = group - half;
            (
                format!("p + {moved}u"),
                String::new(),
                format!(
                    "let end = group_of(head, q_index) * {group}u + select({half}u, {group}u, head < {unshifted}u);
    return vec2<u32>(max(end, {group}u) - {group}u, end);"
                ),
            )
        }
        Some(length) => {
            check_length("joined", length, 1)?;
            if length % group != 0 {
                return Err(Error::invalid(
                    "joined",
                    format!("{length} places in groups of {group}"),
                    "give a whole number of groups",
                ));
            }
            let (moved, last) = (length - half, length / group - 1);
            (
                format!("(p + {moved}u) % {length}u"),
                format!("max(q_index, kv_index) < {length}u && "),
                format!(
                    "let group = group_of(head, q_index);
    let start = group * {group}u + select({half}u, 0u, head < {unshifted}u);
    if head >= {unshifted}u && group == {last}u {{
        return vec2<u32>(0u, {length}u);
    }}
    return vec2<u32>(start, start + {group}u);"
                ),
            )
        }
    };
    Ok(Mod::new(format!(
        "fn group_of(head: u32, p: u32) -> u32 {{
    return select({shifted}, p, head < {unshifted}u) / {group}u;
}}
{MASK} {{
    return {within}group_of(head, q_index) == group_of(head, kv_index);
}}
{RANGE} {{
    {range}
}}"
    )))
}

/// A tree of drafts at the end of the keys, for speculative decoding: the last of the valid keys are drafts, and
/// a draft sees all keys before them, and those drafts whose bits are set: itself and its ancestors.
///
/// `ancestors` is u32 `[batch or 1, drafts, words]`: bit `t % 32` of word `t / 32` in row `s` says whether draft `s` sees
/// draft `t`. Queries stand bottom right; one that stands before the drafts sees the keys up to its own place. Source:
/// Miao et al., SpecInfer (arXiv:2305.09781).
///
/// # Errors
/// [`Error::Invalid`] for another layout, or words that are not `ceil(drafts / 32)`.
pub fn tree(ancestors: Layout) -> Result<Mod> {
    check("ancestors", &ancestors, DType::U32, 3)?;
    let (drafts, words) = (axis(&ancestors, 1), axis(&ancestors, 2));
    check_length("ancestors", drafts, 1)?;
    if words != drafts.div_ceil(32) {
        return Err(Error::invalid(
            "ancestors",
            format!("{words} words for {drafts} drafts"),
            format!("give {}", drafts.div_ceil(32)),
        ));
    }
    let place = place(Corner::BottomRight);
    let batch = shared("batch", axis(&ancestors, 0));
    Ok(Mod::new(format!(
        "{MASK} {{
    let start = i32(valid_keys(batch)) - {drafts};
    let own = {place} - start;
    let other = i32(kv_index) - start;
    if own < 0 {{
        return other <= own;
    }}
    if other < 0 {{
        return true;
    }}
    if own >= {drafts} || other >= {drafts} {{
        return false;
    }}
    let word = ancestors(({batch} * {drafts}u + u32(own)) * {words}u + u32(other) / 32u);
    return ((word >> (u32(other) % 32u)) & 1u) != 0u;
}}
{RANGE} {{
    let place = {place};
    let valid = valid_keys(batch);
    let end = select(place + 1, i32(valid), place + {drafts} >= i32(valid));
    return vec2<u32>(0u, u32(max(end, 0)));
}}"
    ))
    .buffer("ancestors", ancestors))
}

/// A boolean mask of one bit per query and key.
///
/// `bits` is u32 `[batch or 1, q_heads or 1, q_len, words]`: bit `j % 32` of word `j / 32` says whether the query sees key
/// `j`. Keys past the words, and queries past the rows, are hidden.
///
/// # Errors
/// [`Error::Invalid`] for another layout.
pub fn bit_mask(bits: Layout) -> Result<Mod> {
    check("bits", &bits, DType::U32, 4)?;
    let [batches, heads, rows, words] = [0, 1, 2, 3].map(|n| axis(&bits, n));
    let (batch, head) = (shared("batch", batches), shared("head", heads));
    Ok(Mod::new(format!(
        "{MASK} {{
    if q_index >= {rows}u || kv_index / 32u >= {words}u {{
        return false;
    }}
    let row = ({batch} * {heads}u + {head}) * {rows}u + q_index;
    return ((bits(row * {words}u + kv_index / 32u) >> (kv_index % 32u)) & 1u) != 0u;
}}"
    ))
    .buffer("bits", bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused() {
        let u32s = |shape: &[u64]| Layout::new(DType::U32, shape);
        for (result, part) in [
            (documents(u32s(&[4]), u32s(&[1, 4])), "q_ids"),
            (documents(u32s(&[1, 4]), Layout::f32([1, 4])), "kv_ids"),
            (dilated_window(2, 2, 0, Corner::TopLeft), "dilation"),
            (
                dilated_window(1 << 20, 0, 1 << 20, Corner::TopLeft),
                "left times dilation",
            ),
            (dilated_window(0, u64::MAX, 2, Corner::TopLeft), "right"),
            (shifted_groups(1, 4, None), "q_heads"),
            (shifted_groups(2, 1, None), "group"),
            (shifted_groups(2, 4, Some(10)), "joined"),
            (tree(u32s(&[1, 33, 1])), "1 words for 33 drafts"),
            (tree(u32s(&[33, 2])), "3 axes"),
            (bit_mask(u32s(&[1, 1, 1 << 20, 1 << 20])), "elements"),
        ] {
            let error = result.expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
