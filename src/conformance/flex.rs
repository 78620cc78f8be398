//! PyTorch's FlexAttention: a score modification and a mask, each a function of batch entry `b`,
//! head `h`, query `i` and key `j`. Here they become a bias and a boolean mask.

use super::{
    case::Values,
    problem::{Operand, Problem, Reader, made},
};
use crate::{Causal, DType, ops::dims};

/// Batch entry, head, query, key.
type Place = [i64; 4];

/// What a case adds to plain attention.
#[derive(Default)]
struct Modification<'a> {
    /// Key `j` is visible when `j <= i`.
    causal: bool,
    /// What else must hold for a key to be visible.
    mask: Option<Box<dyn Fn(Place) -> bool + 'a>>,
    /// Whether the mask differs between batch entries, and between heads.
    mask_per: [bool; 2],
    /// What is added to the scaled score, per head.
    bias: Option<Box<dyn Fn(Place) -> f32 + 'a>>,
}

impl<'a> Modification<'a> {
    fn causal() -> Self {
        Self {
            causal: true,
            ..Self::default()
        }
    }

    fn mask(mut self, visible: impl Fn(Place) -> bool + 'a) -> Self {
        self.mask = Some(Box::new(visible));
        self
    }

    fn bias(mut self, bias: impl Fn(Place) -> f32 + 'a) -> Self {
        self.bias = Some(Box::new(bias));
        self
    }

    fn visible(&self, place: Place) -> bool {
        let [_, _, i, j] = place;
        (!self.causal || j <= i) && self.mask.as_ref().is_none_or(|mask| mask(place))
    }
}

/// `o = softmax(score_mod(scale q k^T), where mask_mod holds) v`.
pub(super) fn flex(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let change = modification(reader)?;
    let mut problem = Problem::attention(
        Operand::whole(reader.input("q")?, DType::F32),
        Operand::whole(reader.input("k")?, DType::F32),
        Operand::whole(reader.input("v")?, DType::F32),
    )?;
    let [batch, heads, queries, _] = dims(&problem.op.q);
    let keys = dims(&problem.op.k)[2];
    let per = |yes, count| if yes { count } else { 1 };
    let [per_batch, per_head] = change.mask_per;
    let shape = [per(per_batch, batch), per(per_head, heads), queries, keys];
    problem.op.scale = reader.case.scale;
    if change.causal {
        problem.op.causal = Causal::TopLeft;
    }
    if let Some(mask) = &change.mask {
        let visible = places(shape)?.map(mask).collect();
        problem.mask(shape.to_vec(), visible);
    }
    if let Some(bias) = &change.bias {
        let shape = [1, heads, queries, keys];
        let bias = places(shape)?.map(bias).collect();
        problem.bias(DType::F32, shape.to_vec(), bias);
    }
    problem.op = problem.op.with_lse();
    let mut problem = problem.expect("o");
    if change.causal || change.mask.is_some() {
        let visible = places(shape)?.map(|place| change.visible(place)).collect();
        problem
            .decided
            .push(("allowed".into(), Values::Boolean(visible)));
    }
    Ok(problem)
}

/// The definitions, by the words of the case's name that say neither size nor gradient.
fn modification<'a>(reader: &mut Reader<'a>) -> Result<Modification<'a>, String> {
    let plain = Modification::default();
    let causal = Modification::causal();
    let name = definition(&reader.case.name);
    Ok(match name.as_str() {
        "noop" => plain,
        "causal" => causal,
        "alibi" => plain.bias(alibi(reader)?),
        "alibi_causal_gqa" => causal.bias(alibi(reader)?),
        "document_causal_alibi" => {
            let doc = reader.input("extra.doc")?.integers()?;
            causal
                .mask(|[_, _, i, j]| at(doc, i) == at(doc, j))
                .bias(alibi(reader)?)
        }
        "prefix_lm" => {
            let prefix = reader.number("prefix")?;
            plain.mask(move |[_, _, i, j]| j <= i || j < prefix)
        }
        "prefix_lm_per_batch" => {
            let prefix = reader.input("extra.prefix")?.integers()?;
            Modification {
                mask_per: [true, false],
                ..plain.mask(|[b, _, i, j]| j <= i || j < at(prefix, b))
            }
        }
        "padding_empty" => {
            let lengths = reader.input("extra.lengths")?.integers()?;
            Modification {
                mask_per: [true, false],
                ..plain.mask(|[b, _, i, j]| i.max(j) < at(lengths, b))
            }
        }
        "per_head_mask" => {
            let window = reader.input("extra.window")?.integers()?;
            Modification {
                mask_per: [false, true],
                ..causal.mask(|[_, h, i, j]| i - j <= at(window, h))
            }
        }
        "sliding_causal" => {
            let window = reader.number("window")?;
            causal.mask(move |[_, _, i, j]| i - j <= window)
        }
        "window_bidir" => {
            let window = reader.number("window")?;
            plain.mask(move |[_, _, i, j]| (i - j).abs() <= window)
        }
        "window_dilated_causal" => {
            let (window, dilation) = (reader.number("window")?, reader.count("dilation")?);
            causal.mask(move |[_, _, i, j]| i - j < window && (i - j) % dilation == 0)
        }
        "streaming_sink_win" => {
            let (sink, window) = (reader.number("sink")?, reader.number("window")?);
            causal.mask(move |[_, _, i, j]| j < sink || i - j < window)
        }
        "neighborhood" => {
            let (width, radius) = (reader.count("width")?, reader.number("radius")?);
            plain.mask(move |[_, _, i, j]| {
                let near = |a: i64, b: i64| (a - b).abs() <= radius;
                near(i / width, j / width) && near(i % width, j % width)
            })
        }
        "relative_distance" => plain.bias(|[_, _, i, j]| (i - j) as f32),
        "relbias_table" => {
            let table = reader.input("extra.bias")?;
            let values = table.reals()?;
            // Distances from -(n-1) to n-1, one row per head.
            let &[_, row] = table.shape.as_slice() else {
                return Err("extra.bias has not two axes".into());
            };
            let row = row as i64;
            plain.bias(move |[_, h, i, j]| at(values, h * row + i - j + row / 2))
        }
        other => return Err(format!("no tensor says what {other} does to scores")),
    })
}

/// `slope[h] * (j - i)`.
fn alibi<'a>(reader: &mut Reader<'a>) -> Result<impl Fn(Place) -> f32 + 'a, String> {
    let slopes = reader.input("extra.slopes")?.reals()?;
    Ok(|[_, h, i, j]: Place| at(slopes, h) * (j - i) as f32)
}

/// An entry of a table, or the type's zero past its end; a case whose tables are too short then
/// fails by its numbers.
fn at<T: Copy + Default>(table: &[T], index: i64) -> T {
    let index = usize::try_from(index).ok();
    index
        .and_then(|index| table.get(index))
        .copied()
        .unwrap_or_default()
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

/// Every place of a shape, in row-major order.
fn places(shape: [u64; 4]) -> Result<impl Iterator<Item = Place>, String> {
    let count = made(&shape)? as i64;
    let [_, heads, queries, keys] = shape.map(|len| len as i64);
    Ok((0..count).map(move |n| {
        [
            n / (heads * queries * keys),
            n / (queries * keys) % heads,
            n / keys % queries,
            n % keys,
        ]
    }))
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
        ] {
            assert_eq!(definition(name), want);
        }
    }

    #[test]
    fn places_are_row_major() {
        let all: Vec<Place> = places([1, 2, 2, 2]).expect("few").collect();
        assert_eq!(all.len(), 8);
        assert_eq!(all[1], [0, 0, 0, 1]);
        assert_eq!(all[2], [0, 0, 1, 0]);
        assert_eq!(all[7], [0, 1, 1, 1]);
    }
}
