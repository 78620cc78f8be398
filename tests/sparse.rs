//! From pooled blocks to attention over the blocks that queries choose, on every adapter, as calls that run one after
//! the other with nothing read back between; and a second layer that attends over the same index.

mod common;

use common::{gpus, name};
use foveate::{
    Attention, AttentionArgs, BlockMask, Call, Causal, DType, Gpu, Layout, Pool, PoolArgs, Route,
    RouteArgs, RouteScores, RouteScoresArgs, Tensor, Visible,
    reference::{self, AttentionInputs, noise},
};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;
/// Queries that choose together, and keys of a block; the last are fewer.
const BLOCK: usize = 16;
const TOKENS: usize = 317;
const BLOCKS: usize = TOKENS.div_ceil(BLOCK);
/// Blocks that each row of queries keeps: its own, the first, and the best of the others.
const KEPT: usize = 5;

/// A layer's queries, keys and values, on both sides, and its output.
struct Layer {
    data: [Vec<f32>; 3],
    tensors: [Tensor; 3],
    o: Tensor,
}

impl Layer {
    fn new(gpu: &Gpu, seed: u64) -> Self {
        let numbers = [(0, HEADS), (1, KV_HEADS), (2, KV_HEADS)];
        let data = numbers.map(|(number, heads)| noise(seed + number, heads * TOKENS * DIM));
        let tensors = data.each_ref().map(|data| {
            let heads = (data.len() / TOKENS / DIM) as u64;
            let shape = [1, heads, TOKENS as u64, DIM as u64];
            gpu.upload(data, shape).expect("a tensor")
        });
        let o = gpu.allocate(tensors[0].layout().clone()).expect("a tensor");
        Self { data, tensors, o }
    }

    fn op(&self, mask: &BlockMask) -> Attention {
        let [q, k, v] = self.tensors.each_ref().map(|t| t.layout().clone());
        Attention::new(q, k, v)
            .causal(Causal::TopLeft)
            .block_mask(mask.clone())
    }

    fn attend(&self, gpu: &Gpu, mask: &BlockMask, bits: &Tensor) -> Call {
        let [q, k, v] = self.tensors.each_ref().map(Tensor::view);
        let plan = gpu.engine().plan(&self.op(mask).into()).expect("a plan");
        plan.bind(AttentionArgs {
            blocks: Some(bits.view()),
            ..AttentionArgs::new(q, k, v, self.o.view())
        })
        .expect("a call")
    }

    /// The error against a reference that goes by these bits.
    fn error(&self, gpu: &Gpu, mask: &BlockMask, words: &[u32]) -> f64 {
        let [q, k, v] = self.data.each_ref().map(|data| wide(data));
        let op = self.op(mask);
        let expected = reference::attention(&AttentionInputs {
            blocks: Some((mask, words)),
            ..AttentionInputs::of(&op, &q, &k, &v)
        });
        reference::error(&gpu.download(&self.o).expect("an output"), &expected.o)
    }
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| x.into()).collect()
}

/// The calls that choose blocks for a layer, and the tensor of their bits.
fn choose(gpu: &Gpu, layer: &Layer) -> (Vec<Call>, BlockMask, Tensor) {
    let engine = gpu.engine();
    let mut calls = Vec::new();
    let means = [&layer.tensors[0], &layer.tensors[1]].map(|x| {
        let op = Pool::new(x.layout().clone(), BLOCK as u64);
        let y = gpu.allocate(op.y.clone()).expect("a tensor");
        let args = PoolArgs {
            x: x.view(),
            block_starts: None,
            kv_len: None,
            y: y.view(),
        };
        let plan = engine.plan(&op.into()).expect("a plan");
        calls.push(plan.bind(args).expect("a call"));
        y
    });
    let op = RouteScores::new(means[0].layout().clone(), means[1].layout().clone());
    let scores = gpu.allocate(op.out.clone()).expect("a tensor");
    let args = RouteScoresArgs {
        q: means[0].view(),
        k: means[1].view(),
        k_min: None,
        head_weights: None,
        out: scores.view(),
    };
    let plan = engine.plan(&op.into()).expect("a plan");
    calls.push(plan.bind(args).expect("a call"));
    let op = Route::new(scores.layout().clone(), KEPT as u64)
        .group((HEADS / KV_HEADS) as u64)
        .blocks(BLOCK as u64, BLOCK as u64)
        .visible(Visible::Causal)
        .own()
        .forced(1, 0)
        .bits_only();
    let layout = op.bits.clone().expect("bits");
    let bits = gpu.allocate(layout.clone()).expect("a tensor");
    let plan = engine.plan(&op.into()).expect("a plan");
    let args = RouteArgs {
        bits: Some(bits.view()),
        ..RouteArgs::new(scores.view())
    };
    calls.push(plan.bind(args).expect("a call"));
    let mask = BlockMask {
        bits: layout,
        block_q: BLOCK as u64,
        block_kv: BLOCK as u64,
    };
    (calls, mask, bits)
}

/// The mean of each block of a head.
fn means(data: &[f32], head: usize) -> Vec<Vec<f64>> {
    let rows: Vec<&[f32]> = data[head * TOKENS * DIM..][..TOKENS * DIM]
        .chunks(DIM)
        .collect();
    let mean = |block: &[&[f32]]| -> Vec<f64> {
        let sum = |d: usize| block.iter().map(|row| f64::from(row[d])).sum::<f64>();
        (0..DIM).map(|d| sum(d) / block.len() as f64).collect()
    };
    rows.chunks(BLOCK).map(mean).collect()
}

/// Checks the choice by the scores in f64.
fn check_choice(layer: &Layer, words: &[u32], place: &str) {
    let group = HEADS / KV_HEADS;
    for kv_head in 0..KV_HEADS {
        let keys = means(&layer.data[1], kv_head);
        let queries: Vec<_> = (0..group)
            .map(|head| means(&layer.data[0], kv_head * group + head))
            .collect();
        for row in 0..BLOCKS {
            let score = |block: usize| -> f64 {
                let heads = queries
                    .iter()
                    .map(|rows| rows[row].iter().zip(&keys[block]));
                heads
                    .map(|pairs| pairs.map(|(q, k)| q * k).sum::<f64>())
                    .sum()
            };
            let at = (kv_head * BLOCKS + row) * BLOCKS.div_ceil(32);
            let taken = |block: usize| words[at + block / 32] >> (block % 32) & 1 == 1;
            let said = format!("{place}: KV head {kv_head}, row {row}");
            assert_eq!(
                (0..BLOCKS).filter(|&block| taken(block)).count(),
                KEPT.min(row + 1),
                "{said}"
            );
            assert!(taken(0) && taken(row), "{said}");
            assert!((row + 1..BLOCKS).all(|block| !taken(block)), "{said}");
            let free = || (1..row).map(|block| (taken(block), score(block)));
            let worst = free().filter(|(taken, _)| *taken).map(|(_, score)| score);
            let best = free().filter(|(taken, _)| !taken).map(|(_, score)| score);
            let (worst, best) = (
                worst.fold(f64::MAX, f64::min),
                best.fold(f64::MIN, f64::max),
            );
            assert!(worst > best - 1e-5, "{said}: {worst} taken, {best} left");
        }
    }
}

#[test]
fn a_choice_on_the_device_serves_two_layers() {
    for gpu in gpus() {
        let place = name(gpu);
        let [first, second] = [Layer::new(gpu, 1), Layer::new(gpu, 4)];
        let (mut calls, mask, bits) = choose(gpu, &first);
        assert_eq!(mask.bits.shape[1], KV_HEADS as u64);
        calls.push(first.attend(gpu, &mask, &bits));
        calls.push(second.attend(gpu, &mask, &bits));
        // The same calls again, on what the first run left.
        for _ in 0..2 {
            gpu.run_all(&calls).expect("the calls run");
            let words = gpu.download_u32(&bits).expect("bits");
            check_choice(&first, &words, &place);
            for layer in [&first, &second] {
                let error = layer.error(gpu, &mask, &words);
                assert!(error < 1e-5, "{place}: {error:.1e}");
            }
        }
    }
}

/// Blocks that are all taken change nothing.
#[test]
fn all_blocks_are_plain_attention() {
    for gpu in gpus() {
        let layer = Layer::new(gpu, 7);
        let words = BLOCKS.div_ceil(32);
        let mask = BlockMask {
            bits: Layout::new(DType::U32, [1, 1, BLOCKS as u64, words as u64]),
            block_q: BLOCK as u64,
            block_kv: BLOCK as u64,
        };
        let all = vec![u32::MAX; BLOCKS * words];
        let bits = gpu.upload_u32(&all, mask.bits.shape.clone()).expect("bits");
        let run = |call: &Call| -> Vec<f32> {
            gpu.run(call).expect("the call runs");
            gpu.download(&layer.o).expect("an output")
        };
        let sparse = run(&layer.attend(gpu, &mask, &bits));
        let mut op = layer.op(&mask);
        op.block_mask = None;
        let [q, k, v] = layer.tensors.each_ref().map(Tensor::view);
        let plan = gpu.engine().plan(&op.into()).expect("a plan");
        let args = AttentionArgs::new(q, k, v, layer.o.view());
        let dense = run(&plan.bind(args).expect("a call"));
        let error = reference::error(&sparse, &wide(&dense));
        assert!(error < 1e-5, "{}: {error:.1e}", name(gpu));
    }
}
