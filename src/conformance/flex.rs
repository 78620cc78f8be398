//! PyTorch's FlexAttention: a score modification and a mask, each a function of batch entry, head, query
//! and key. Here they are the op's own terms where it has them, and functions in WGSL where not.

use super::{
    case::Values,
    problem::{AttentionProblem, Problem, Reader},
};
use crate::{Causal, Corner, DType, Layout, Mod, Window, ops::dims, presets};

/// `o = softmax(score_mod(scale q k^T), where mask_mod holds) v`.
pub(super) fn flex(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    let masked = modify(reader, &mut problem)?;
    problem.op = problem.op.with_lse();
    let problem = problem.expect("o");
    Ok(if masked {
        problem.expect_visible("allowed")
    } else {
        problem
    })
}

/// Adds what a case's name, without size and gradient, says. Returns whether keys are hidden.
fn modify(reader: &mut Reader<'_>, problem: &mut AttentionProblem) -> Result<bool, String> {
    let batch = dims(&problem.op.q)[0];
    let name = definition(&reader.case.name);
    let causal = |problem: &mut AttentionProblem| problem.op.causal = Causal::TopLeft;
    match name.as_str() {
        "noop" => return Ok(false),
        "causal" => causal(problem),
        "alibi" => {
            alibi(reader, problem)?;
            return Ok(false);
        }
        "alibi_causal_gqa" => {
            causal(problem);
            alibi(reader, problem)?;
        }
        "document_causal_alibi" => {
            causal(problem);
            alibi(reader, problem)?;
            let doc = reader.input("extra.doc")?;
            let ids = Layout::new(DType::U32, [1, doc.values.len()]);
            problem.preset(
                presets::documents(ids.clone(), ids),
                vec![doc.values.clone(); 2],
            )?;
        }
        "prefix_lm" => {
            causal(problem);
            let prefix = count(reader.size("prefix")?)?;
            problem.prefix_len(vec![prefix; batch as usize]);
        }
        "prefix_lm_per_batch" => {
            causal(problem);
            problem.prefix_len(reader.input("extra.prefix")?.lengths()?);
        }
        "padding_empty" => {
            let lengths = reader.input("extra.lengths")?.lengths()?;
            problem.q_len(lengths.clone());
            problem.kv_len(lengths);
        }
        "per_head_mask" => {
            causal(problem);
            let windows = reader.input("extra.window")?.lengths()?;
            // A query's own place counts among the recent ones.
            let windows = windows.iter().map(|window| [window.saturating_add(1), 0]);
            problem.head_windows(&windows.collect::<Vec<_>>());
        }
        "sliding_causal" => {
            causal(problem);
            problem.op.window = Some(Window {
                left: Some(reader.size("window")?),
                ..Window::default()
            });
        }
        "window_bidir" => {
            let window = Some(reader.size("window")?);
            problem.op.window = Some(Window {
                left: window,
                right: window,
                ..Window::default()
            });
        }
        "window_dilated_causal" => {
            let (window, dilation) = (reader.count("window")?, reader.count("dilation")?);
            causal(problem);
            let left = (window as u64 - 1) / dilation as u64;
            let change = presets::dilated_window(left, 0, dilation as u64, Corner::TopLeft);
            problem.preset(change, Vec::new())?;
        }
        "streaming_sink_win" => {
            causal(problem);
            problem.op.window = Some(Window {
                left: Some(reader.count("window")? as u64 - 1),
                first: reader.size("sink")?,
                ..Window::default()
            });
        }
        // What is at most `radius` away along both axes: the halo of a block of one pixel.
        "neighborhood" => {
            let width = reader.count("width")? as u64;
            let image = [reader.count("height")? as u64, width];
            let change = presets::halo_blocks(image, 1, reader.size("radius")?);
            problem.preset(change, Vec::new())?;
        }
        "relative_distance" => {
            problem.modified(
                Mod::new(
                    "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
                        return score + f32(q_index) - f32(kv_index);
                    }",
                ),
                Vec::new(),
            );
            return Ok(false);
        }
        "relbias_table" => {
            let table = reader.input("extra.bias")?;
            // A row per head, of distances from key to query; the preset has those from query to key.
            let row = table.shape.last().map_or(1, |&row| row.max(1) as usize);
            let rows = table.reals()?.chunks_exact(row);
            let turned = rows.flat_map(|row| row.iter().rev().copied()).collect();
            let change =
                presets::relative_positions(Layout::f32(table.shape.clone()), Corner::TopLeft);
            problem.preset(change, vec![Values::Real(turned)])?;
            return Ok(false);
        }
        "softcap" | "softcap_causal" => {
            let cap = reader.case.params["softcap"].as_f64();
            problem.op.softcap = Some(cap.ok_or("params has no number `softcap`")? as f32);
            if name == "softcap" {
                return Ok(false);
            }
            causal(problem);
        }
        other => return Err(format!("no tensor says what {other} does to scores")),
    }
    Ok(true)
}

/// `slope[h] * (j - i)`.
fn alibi(reader: &mut Reader<'_>, problem: &mut AttentionProblem) -> Result<(), String> {
    let slopes = reader.input("extra.slopes")?.reals()?.to_vec();
    let layout = Layout::f32([slopes.len() as u64]);
    let change = presets::alibi(layout, Corner::TopLeft);
    problem.preset(change, vec![Values::Real(slopes)])
}

/// A number as tensors of counts hold it.
fn count(number: u64) -> Result<u32, String> {
    u32::try_from(number).map_err(|_| format!("{number} is past the counts of a tensor"))
}

/// `grad_prefix_lm5_n33_d32` is about `prefix_lm`: letters of each word up to its first digit,
/// without those that only name a size.
fn definition(case: &str) -> String {
    case.split('_')
        .map(|word| {
            let end = word.find(|c: char| c.is_ascii_digit());
            (&word[..end.unwrap_or(word.len())], end.is_some())
        })
        .filter(|&(letters, number)| !(letters == "grad" || number && letters.len() <= 1))
        .map(|(letters, _)| letters)
        .collect::<Vec<_>>()
        .join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_definitions() {
        for (name, want) in [
            ("grad_prefix_lm5_n33_d32", "prefix_lm"),
            ("prefix_lm_per_batch_n33_d32", "prefix_lm_per_batch"),
            ("neighborhood2d_7x9_k3_d32", "neighborhood"),
            ("streaming_sink4_win16_n129_d32", "streaming_sink_win"),
            ("padding_empty_b3_n33_d32", "padding_empty"),
            ("window_dilated2x4_causal_n67_d32", "window_dilated_causal"),
            ("grad_softcap20_causal_n67_d16", "softcap_causal"),
        ] {
            assert_eq!(definition(name), want);
        }
    }
}
