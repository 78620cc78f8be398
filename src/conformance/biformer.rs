//! BiFormer: regions of an image choose regions, by their means, and their tokens attend to all tokens of those.

use super::{
    case::Values,
    problem::{Input, Problem, Reader},
    routed::listed,
};
use crate::{
    Attention, BlockMask, DType, Gather, Layout, Pool, Route, RouteScores, Softmax, TopK, ops::Slot,
};

/// An image in regions, row by row.
struct Regions {
    /// Regions along the height and along the width.
    count: [u64; 2],
    /// Their size.
    size: [u64; 2],
}

impl Regions {
    /// `count` by `count` regions.
    fn new(count: u64, [height, width]: [u64; 2]) -> Result<Self, String> {
        if count == 0 || !height.is_multiple_of(count) || !width.is_multiple_of(count) {
            return Err(format!(
                "{height} x {width} pixels in {count} x {count} regions"
            ));
        }
        Ok(Self {
            count: [count; 2],
            size: [height / count, width / count],
        })
    }

    fn regions(&self) -> u64 {
        self.count.iter().product()
    }

    fn tokens(&self) -> u64 {
        self.size.iter().product()
    }

    /// The pixel of each token, region by region.
    fn order(&self) -> Vec<i64> {
        let ([_, columns], [height, width]) = (self.count, self.size);
        let tokens = 0..self.regions() * self.tokens();
        let pixel = |token: u64| {
            let (region, place) = (token / (height * width), token % (height * width));
            let y = region / columns * height + place / width;
            let x = region % columns * width + place % width;
            (y * columns * width + x) as i64
        };
        tokens.map(pixel).collect()
    }
}

/// For each place that a permutation names, where it does.
fn inverse(order: &[i64]) -> Vec<i64> {
    let mut places: Vec<(i64, i64)> = order.iter().copied().zip(0..).collect();
    places.sort_unstable();
    places.into_iter().map(|(_, place)| place).collect()
}

/// Tokens are put in the order of regions and back on the device, by gathers with a constant index. The means of
/// regions are over all heads, whose channels lie side by side.
pub(super) fn regions(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let (heads, dim) = (
        reader.count("heads")? as u64,
        reader.count("head_dim")? as u64,
    );
    let most = reader.count("topk")? as u64;
    let image = [
        reader.count("height")? as u64,
        reader.count("width")? as u64,
    ];
    let regions = Regions::new(reader.count("n_win")? as u64, image)?;
    let (pixels, channels) = (image[0] * image[1], heads * dim);
    let shape = reader.input("q")?.shape.clone();
    let &[batch, ..] = shape.as_slice() else {
        return Err("q has no axes".into());
    };
    let steps = if shape == [batch, channels, image[0], image[1]] {
        [channels * pixels, dim * pixels, 1, pixels]
    } else if shape == [batch, image[0], image[1], channels] {
        [pixels * channels, dim, channels, 1]
    } else {
        return Err(format!("q has shape {shape:?}"));
    };
    let channels_last = steps[3] == 1;
    if reader.flag("soft_routing") || reader.flag("lepe") {
        return Err("soft routing and local convolutions".into());
    }
    let scale = reader.case.scale.unwrap_or((channels as f32).powf(-0.5));

    let in_image = Layout::f32([batch, heads, pixels, dim]).with_strides(steps);
    let index = Layout::new(DType::U32, [1, 1, pixels]);
    let order = regions.order();
    let back = Values::Integer(inverse(&order));
    let mut calls = Problem::none();
    let mut put = |name| -> Result<_, String> {
        let input = reader.input(name)?;
        if input.shape != shape {
            return Err(format!("{name} has shape {:?}", input.shape));
        }
        let op = Gather::new(in_image.clone(), index.clone());
        let layout = op.y.clone();
        let inputs = [
            (Slot::X, input.values.clone().into()),
            (Slot::Index, Values::Integer(order.clone()).into()),
        ];
        Ok((calls.call(op, inputs), layout))
    };
    let ((q, layout), (k, _), (v, _)) = (put("q")?, put("k")?, put("v")?);
    let by_region = Layout::f32([batch, heads, regions.regions(), dim]).with_strides([
        regions.regions() * channels,
        dim,
        channels,
        1,
    ]);
    let means = [q, k].map(|call| {
        let op = Pool::new(layout.clone(), regions.tokens()).output(by_region.clone());
        calls.call(op, [(Slot::X, Input::Output(call, Slot::Y))])
    });
    let all_heads = Layout::f32([batch, 1, regions.regions(), channels]);
    let mut op = RouteScores::new(all_heads.clone(), all_heads);
    if channels_last {
        op = op.scale(scale);
    }
    let scores_layout = op.out.clone();
    let scores = calls.call(
        op,
        [
            (Slot::Q, Input::Output(means[0], Slot::Y)),
            (Slot::K, Input::Output(means[1], Slot::Y)),
        ],
    );
    let route = Route::new(scores_layout.clone(), most).with_bits();
    let bits = route.bits.clone().ok_or("a route without bits")?;
    let route = calls.call(route, [(Slot::Scores, Input::Output(scores, Slot::Out))]);
    let attention = Attention::new(layout.clone(), layout.clone(), layout.clone())
        .scale(scale)
        .block_mask(BlockMask {
            bits,
            block_q: regions.tokens(),
            block_kv: regions.tokens(),
        });
    let attended = calls.call(
        attention,
        [
            (Slot::Q, Input::Output(q, Slot::Y)),
            (Slot::K, Input::Output(k, Slot::Y)),
            (Slot::V, Input::Output(v, Slot::Y)),
            (Slot::Blocks, Input::Output(route, Slot::Bits)),
        ],
    );
    calls.call(
        Gather::new(layout, index).output(in_image),
        [
            (Slot::X, Input::Output(attended, Slot::O)),
            (Slot::Index, back.into()),
        ],
    );
    let mut calls = calls.expect(Slot::Y, "o").expect_sets(
        "region_topk",
        move |outputs| listed(outputs, route, most),
        |_, _| true,
    );
    if channels_last {
        // The older source keeps the weights of the regions too, best first.
        let top = TopK::new(scores_layout, most);
        let softmax = Softmax::new(top.values.clone().ok_or("no values")?, 3);
        let top = calls.call(top, [(Slot::X, Input::Output(scores, Slot::Out))]);
        calls.call(softmax, [(Slot::X, Input::Output(top, Slot::Values))]);
        return Ok(calls.expect(Slot::Y, "region_weight"));
    }
    Ok(calls.expect_of(scores, Slot::Out, "region_scores"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_lie_region_by_region() {
        let regions = Regions::new(2, [2, 4]).expect("regions");
        assert_eq!(
            regions.order(),
            [0, 1, 2, 3, 4, 5, 6, 7].map(|t| [0, 1, 2, 3, 4, 5, 6, 7][t])
        );
        let regions = Regions::new(2, [4, 4]).expect("regions");
        let order = regions.order();
        assert_eq!(order[..8], [0, 1, 4, 5, 2, 3, 6, 7]);
        let back = inverse(&order);
        assert!((0..16).all(|pixel| order[back[pixel] as usize] == pixel as i64));
        assert!(Regions::new(3, [4, 3]).is_err());
    }
}
