//! Mods of attention: every preset, and mods together, in every schedule on every adapter, against the f64
//! reference.

mod common;

use common::{CHEAP, DECODE, TILE, gpus, name, say};
use foveate::{
    Attention, AttentionArgs, Causal, Corner, DType, Gpu, Layout, Mod, Result, Schedule, Tensor,
    Tuning,
    presets::{self, NeighborhoodAxis, T5Buckets},
    reference::{self, AttentionInputs, Pair, noise, presets as formula},
};

/// What a buffer of a mod holds.
enum Data {
    F32(Vec<f32>),
    U32(Vec<u32>),
}

type Score = Box<dyn Fn(f64, Pair) -> f64>;
type Visible = Box<dyn Fn(Pair) -> bool>;

/// Attention with mods, and what they mean.
struct Case {
    name: &'static str,
    /// Batch, query heads, KV heads.
    heads: [usize; 3],
    q_len: usize,
    kv_len: usize,
    /// Dims of q and k, and of v.
    dims: [usize; 2],
    causal: Causal,
    kv_lens: Option<Vec<u32>>,
    q_lens: Option<Vec<u32>>,
    mods: Vec<Mod>,
    buffers: Vec<Data>,
    score: Option<Score>,
    visible: Option<Visible>,
    prob: Option<Score>,
}

impl Case {
    fn new(name: &'static str, heads: [usize; 3], q_len: usize, kv_len: usize) -> Self {
        Self {
            name,
            heads,
            q_len,
            kv_len,
            dims: [16, 16],
            causal: Causal::None,
            kv_lens: None,
            q_lens: None,
            mods: Vec::new(),
            buffers: Vec::new(),
            score: None,
            visible: None,
            prob: None,
        }
    }

    fn causal(mut self, causal: Causal) -> Self {
        self.causal = causal;
        self
    }

    fn lens(mut self, kv: &[u32], q: &[u32]) -> Self {
        self.kv_lens = Some(kv.to_vec());
        self.q_lens = Some(q.to_vec());
        self
    }

    fn with(mut self, change: Result<Mod>, buffers: impl IntoIterator<Item = Data>) -> Self {
        self.mods
            .push(change.unwrap_or_else(|error| panic!("{}: {error}", self.name)));
        self.buffers.extend(buffers);
        self
    }

    fn score(mut self, score: impl Fn(f64, Pair) -> f64 + 'static) -> Self {
        self.score = Some(Box::new(score));
        self
    }

    fn visible(mut self, visible: impl Fn(Pair) -> bool + 'static) -> Self {
        self.visible = Some(Box::new(visible));
        self
    }

    /// Where query 0 of each batch entry stands.
    fn ahead(&self, corner: Corner) -> &'static [i64] {
        let len = |lens: &Option<Vec<u32>>, all: usize, b: usize| {
            lens.as_ref().map_or(all as i64, |lens| i64::from(lens[b]))
        };
        let ahead: Vec<i64> = (0..self.heads[0])
            .map(|b| match corner {
                Corner::TopLeft => 0,
                Corner::BottomRight => {
                    len(&self.kv_lens, self.kv_len, b) - len(&self.q_lens, self.q_len, b)
                }
            })
            .collect();
        ahead.leak()
    }

    /// Errors of `o` and `lse`.
    fn errors(&self, gpu: &Gpu, tuning: &Tuning) -> Result<(f64, f64)> {
        let [batch, q_heads, kv_heads] = self.heads;
        let [head_dim, value_dim] = self.dims;
        let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|&x| x.into()).collect() };
        let tensor = |seed, heads: usize, len: usize, dim: usize| {
            let data = noise(seed, batch * heads * len * dim);
            let shape = [batch, heads, len, dim].map(|n| n as u64);
            gpu.upload(&data, shape).map(|tensor| (tensor, wide(&data)))
        };
        let (q, q64) = tensor(1, q_heads, self.q_len, head_dim)?;
        let (k, k64) = tensor(2, kv_heads, self.kv_len, head_dim)?;
        let (v, v64) = tensor(3, kv_heads, self.kv_len, value_dim)?;
        let rows = [batch, q_heads, self.q_len, value_dim].map(|n| n as u64);
        let o = common::place(gpu, Layout::f32(rows), &[])?;
        let lse = common::place(gpu, Layout::f32(&rows[..3]), &[])?;
        let buffers = self
            .buffers
            .iter()
            .zip(self.mods.iter().flat_map(|change| &change.buffers))
            .map(|(data, buffer)| match data {
                Data::F32(data) => gpu.upload(data, buffer.layout.shape.clone()),
                Data::U32(data) => gpu.upload_u32(data, buffer.layout.shape.clone()),
            })
            .collect::<Result<Vec<Tensor>>>()?;
        let lens = |lens: &Option<Vec<u32>>| {
            lens.as_ref()
                .map(|lens| gpu.upload_u32(lens, [lens.len() as u64]))
                .transpose()
        };
        let (kv_lens, q_lens) = (lens(&self.kv_lens)?, lens(&self.q_lens)?);

        let mut op = Attention::new(q.layout().clone(), k.layout().clone(), v.layout().clone())
            .causal(self.causal)
            .with_lse();
        op.kv_len = kv_lens.as_ref().map(|lens| lens.layout().clone());
        op.q_len = q_lens.as_ref().map(|lens| lens.layout().clone());
        op.mods = self.mods.clone();
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
        args.lse = Some(lse.view());
        args.kv_len = kv_lens.as_ref().map(Tensor::view);
        args.q_len = q_lens.as_ref().map(Tensor::view);
        args.buffers = buffers.iter().map(Tensor::view).collect();

        let sizes = |lens: &Option<Vec<u32>>| -> Option<Vec<usize>> {
            lens.as_ref()
                .map(|lens| lens.iter().map(|&len| len as usize).collect())
        };
        let expected = reference::attention(&AttentionInputs {
            lens: sizes(&self.kv_lens).as_deref(),
            q_lens: sizes(&self.q_lens).as_deref(),
            score: self.score.as_deref(),
            visible: self.visible.as_deref(),
            prob: self.prob.as_deref(),
            ..AttentionInputs::of(&op, &q64, &k64, &v64)
        });
        let plan = gpu.engine().plan_with(&op.into(), tuning)?;
        gpu.run(&plan.bind(args)?)?;
        Ok((
            reference::error(&gpu.download(&o)?, &expected.o),
            reference::error(&gpu.download(&lse)?, &expected.lse),
        ))
    }
}

/// Runs the cases in every schedule on every adapter that can.
fn all_close(cases: &[Case]) {
    let mut ran = 0;
    for gpu in gpus() {
        for tuning in [Tuning::default(), CHEAP, DECODE, TILE] {
            let needs_subgroups = ![None, Some(Schedule::Tile)].contains(&tuning.schedule);
            if needs_subgroups && gpu.engine().caps().fixed_subgroup().is_none() {
                say(format_args!(
                    "skipped: {} has no fixed subgroup size",
                    name(gpu)
                ));
                continue;
            }
            // Functions that are written into each of a tile's scores make much code.
            if tuning != CHEAP && name(gpu).contains("SwiftShader") {
                say(format_args!(
                    "skipped: {} takes minutes and gigabytes to compile tiles of scores",
                    name(gpu)
                ));
                continue;
            }
            for case in cases {
                let label = format!("{}: {}, {:?}", case.name, name(gpu), tuning.schedule);
                let (o, lse) = case
                    .errors(gpu, &tuning)
                    .unwrap_or_else(|error| panic!("{label}: {error}"));
                assert!(o <= 1e-5 && lse <= 1e-5, "{label}: o {o:e}, lse {lse:e}");
                ran += 1;
            }
        }
    }
    assert!(ran > 0, "nothing ran");
}

fn f64s(data: &[f32]) -> &'static [f64] {
    data.iter().map(|&x| x.into()).collect::<Vec<f64>>().leak()
}

fn table(seed: u64, shape: &[u64]) -> (Vec<f32>, &'static [f64], Layout) {
    let data = noise(seed, shape.iter().product::<u64>() as usize);
    let wide = f64s(&data);
    (data, wide, Layout::f32(shape))
}

#[test]
fn slopes_and_relative_positions() {
    let (bottom, top) = (Corner::BottomRight, Corner::TopLeft);
    let slopes = presets::alibi_slopes(6);
    let wide = f64s(&slopes);
    let layout = || Layout::f32([6]);

    let case = Case::new("alibi", [2, 6, 2], 19, 45)
        .causal(Causal::BottomRight)
        .lens(&[45, 21], &[19, 11]);
    let formula = formula::alibi(wide, case.ahead(bottom));
    let alibi = case
        .with(
            presets::alibi(layout(), bottom),
            [Data::F32(slopes.clone())],
        )
        .score(formula);

    let case = Case::new("alibi both ways", [1, 6, 6], 33, 21);
    let formula = formula::alibi_symmetric(wide, case.ahead(top));
    let symmetric = case
        .with(presets::alibi_symmetric(layout(), top), [Data::F32(slopes)])
        .score(formula);

    let (data, wide, layout) = table(4, &[4, 13]);
    let mut case = Case::new("relative positions", [1, 4, 1], 17, 37);
    case.dims = [20, 12];
    let formula = formula::relative_positions(wide, 4, case.ahead(bottom));
    let relative = case
        .with(
            presets::relative_positions(layout, bottom),
            [Data::F32(data)],
        )
        .score(formula);

    let (data, wide, layout) = table(5, &[1, 1]);
    let case = Case::new("one relative position", [1, 3, 3], 5, 5);
    let formula = formula::relative_positions(wide, 1, case.ahead(top));
    let one = case
        .with(presets::relative_positions(layout, top), [Data::F32(data)])
        .score(formula);

    let (data, wide, layout) = table(6, &[7 * 9, 3]);
    let image = Case::new("positions in an image", [2, 3, 3], 20, 23)
        .with(presets::image_positions(layout, [4, 5]), [Data::F32(data)])
        .score(formula::image_positions(wide, 3, [4, 5]));
    all_close(&[alibi, symmetric, relative, one, image]);
}

#[test]
fn buckets_gates_and_first_keys() {
    let t5 = |name, bidirectional, buckets: u64, max_distance, corner| {
        let buckets = T5Buckets {
            buckets,
            bidirectional,
            max_distance,
        };
        let (data, wide, layout) = table(7, &[buckets.buckets, 2]);
        let case = Case::new(name, [1, 2, 1], 70, 150);
        let formula = formula::t5_positions(wide, buckets, case.ahead(corner));
        case.with(
            presets::t5_positions(layout, buckets, corner),
            [Data::F32(data)],
        )
        .score(formula)
    };
    let both = t5("T5 both ways", true, 32, 128, Corner::TopLeft);
    let causal = t5("T5 causal", false, 17, 50, Corner::BottomRight).causal(Causal::BottomRight);

    let sums: Vec<f32> = noise(8, 2 * 4 * 40)
        .chunks(40)
        .flat_map(|gates| {
            gates.iter().scan(0.0f32, |sum, gate| {
                *sum -= gate.abs() * 0.1;
                Some(*sum)
            })
        })
        .collect();
    let wide = f64s(&sums);
    let case = Case::new("forgetting gates", [2, 4, 2], 23, 40)
        .causal(Causal::BottomRight)
        .lens(&[40, 31], &[23, 20]);
    let formula = formula::forgetting_gates(wide, [2, 4, 40], case.ahead(Corner::BottomRight));
    let gates = case
        .with(
            presets::forgetting_gates(Layout::f32([2, 4, 40])),
            [Data::F32(sums)],
        )
        .score(formula);

    let factors = vec![1.0f32, 0.25, 3.5];
    let first = Case::new("first key", [1, 3, 3], 9, 30)
        .causal(Causal::BottomRight)
        .with(
            presets::first_key_scale(Layout::f32([3])),
            [Data::F32(factors.clone())],
        )
        .score(formula::first_key_scale(f64s(&factors)));
    all_close(&[both, causal, gates, first]);
}

#[test]
fn blends_of_weights() {
    let factors = vec![0.0f32, 0.25, 1.0];
    let wide = f64s(&factors);
    let layout = || Layout::f32([3]);
    let mut cases = Vec::new();
    for (causal, corner) in [
        (Causal::None, Corner::TopLeft),
        (Causal::TopLeft, Corner::TopLeft),
        (Causal::BottomRight, Corner::BottomRight),
    ] {
        let case = Case::new("toward identity", [2, 3, 1], 21, 40)
            .causal(causal)
            .lens(&[40, 25], &[21, 19]);
        let mut case = case.with(
            presets::toward_identity(layout(), corner),
            [Data::F32(factors.clone())],
        );
        case.prob = Some(Box::new(formula::toward_identity(wide, case.ahead(corner))));
        cases.push(case);
        let case = Case::new("toward uniform", [2, 3, 1], 21, 40)
            .causal(causal)
            .lens(&[40, 25], &[21, 19]);
        let ahead = case.ahead(corner);
        let mut case = case.with(
            presets::toward_uniform(layout(), causal),
            [Data::F32(factors.clone())],
        );
        case.prob = Some(Box::new(formula::toward_uniform(
            wide,
            move |batch, query| {
                let keys = [40, 25][batch];
                if causal == Causal::None {
                    keys
                } else {
                    (query as i64 + ahead[batch] + 1).min(keys as i64) as usize
                }
            },
        )));
        cases.push(case);
    }
    all_close(&cases);
}

#[test]
fn neighborhoods() {
    let axis = NeighborhoodAxis::new;
    let cases: Vec<Case> = [
        ("1-D", vec![axis(67, 5).dilation(3)]),
        ("1-D, strides", vec![axis(33, 8).stride(3)]),
        (
            "1-D, causal with strides",
            vec![axis(41, 7).stride(4).dilation(2).causal()],
        ),
        ("2-D", vec![axis(7, 3), axis(9, 4).stride(2)]),
        (
            "2-D, causal rows",
            vec![axis(8, 3).dilation(2).causal(), axis(9, 4)],
        ),
        ("2-D, all seen", vec![axis(4, 4), axis(5, 5)]),
        (
            "3-D",
            vec![axis(6, 3).dilation(2).causal(), axis(5, 2), axis(4, 3)],
        ),
    ]
    .into_iter()
    .map(|(name, axes)| {
        let places = axes.iter().map(|axis| axis.length as usize).product();
        let axes: &'static [NeighborhoodAxis] = axes.leak();
        Case::new(name, [1, 2, 1], places, places)
            .with(presets::neighborhood(axes), [])
            .visible(formula::neighborhood(axes))
    })
    .collect();
    all_close(&cases);
}

#[test]
fn windows_of_images_and_sequences() {
    let mut cases = Vec::new();
    for (name, image, block, halo) in [
        ("halo", [8, 12], 4, 2),
        ("halo, odd", [5, 7], 3, 1),
        ("halo past the image", [5, 7], 2, 9),
    ] {
        let [height, width]: [usize; 2] = image;
        cases.push(
            Case::new(name, [1, 2, 2], height * width, height * width)
                .with(
                    presets::halo_blocks(image.map(|n| n as u64), block, halo),
                    [],
                )
                .visible(formula::halo_blocks(image, block as usize, halo as usize)),
        );
    }
    for (name, image, window, shift) in [
        ("windows", [8, 12], [4, 4], [0, 0]),
        ("shifted windows", [8, 12], [4, 4], [2, 2]),
        ("odd windows", [5, 7], [3, 2], [2, 1]),
    ] {
        let [height, width]: [usize; 2] = image;
        let wide = |pair: [usize; 2]| pair.map(|n| n as u64);
        cases.push(
            Case::new(name, [2, 2, 1], height * width, height * width)
                .with(
                    presets::image_windows(wide(image), wide(window), wide(shift)),
                    [],
                )
                .visible(formula::image_windows(image, window, shift)),
        );
    }
    for (name, corner) in [
        ("gaps", Corner::TopLeft),
        ("gaps at the end", Corner::BottomRight),
    ] {
        let case = Case::new(name, [2, 2, 2], 31, 67).lens(&[67, 40], &[31, 9]);
        let formula = formula::dilated_window(4, 1, 3, case.ahead(corner));
        cases.push(
            case.with(presets::dilated_window(4, 1, 3, corner), [])
                .visible(formula),
        );
    }
    for (name, joined) in [("shifted groups", None), ("joined groups", Some(42))] {
        cases.push(
            Case::new(name, [1, 4, 2], 42, 45)
                .causal(Causal::TopLeft)
                .with(presets::shifted_groups(4, 14, joined), [])
                .visible(formula::shifted_groups(
                    4,
                    14,
                    joined.map(|length| length as usize),
                )),
        );
    }
    all_close(&cases);
}

#[test]
fn masks_in_buffers() {
    let ids = |seed: u64, count: usize| -> Vec<u32> {
        noise(seed, count)
            .iter()
            .map(|x| (x * 2.0).abs() as u32)
            .collect()
    };
    let (q_ids, kv_ids) = (ids(1, 2 * 25), ids(2, 47));
    let rows = |ids: &[u32], len: usize| -> &'static [Vec<u32>] {
        ids.chunks(len)
            .map(<[u32]>::to_vec)
            .collect::<Vec<_>>()
            .leak()
    };
    let documents = Case::new("documents", [2, 2, 1], 25, 47)
        .with(
            presets::documents(
                Layout::new(DType::U32, [2, 25]),
                Layout::new(DType::U32, [1, 47]),
            ),
            [Data::U32(q_ids.clone()), Data::U32(kv_ids.clone())],
        )
        .visible(formula::documents(rows(&q_ids, 25), rows(&kv_ids, 47)));

    // Drafts whose parent is the draft of half their number.
    let drafts = 40;
    let ancestors: Vec<Vec<bool>> = (0..drafts)
        .map(|own: usize| {
            let mut seen = vec![false; drafts];
            let mut at = own + 1;
            while at > 0 {
                seen[at - 1] = true;
                at /= 2;
            }
            seen
        })
        .collect();
    let bits: Vec<u32> = ancestors
        .iter()
        .flat_map(|seen| {
            seen.chunks(32).map(|word| {
                word.iter()
                    .rev()
                    .fold(0, |bits, &bit| bits << 1 | u32::from(bit))
            })
        })
        .collect();
    let ancestors: &'static [Vec<Vec<bool>>] = vec![ancestors].leak();
    let tree = |name, q_len, q_lens: &[u32; 2]| {
        let case = Case::new(name, [2, 4, 2], q_len, 75).lens(&[75, 52], q_lens);
        let formula = formula::tree(ancestors, &[75, 52], case.ahead(Corner::BottomRight));
        case.with(
            presets::tree(Layout::new(DType::U32, [1, 40, 2])),
            [Data::U32(bits.clone())],
        )
        .visible(formula)
    };
    let drafts = tree("drafts", 40, &[40, 40]);
    let more = tree("drafts and keys before them", 45, &[45, 43]);
    let last = tree("the last drafts", 7, &[7, 3]);

    let shape = [1usize, 3, 20, 2];
    let words: Vec<u32> = noise(9, shape.iter().product())
        .iter()
        .map(|x| x.to_bits().rotate_left(9))
        .collect();
    let mask = Case::new("bits", [2, 3, 1], 21, 66)
        .with(
            presets::bit_mask(Layout::new(DType::U32, shape.map(|n| n as u64))),
            [Data::U32(words.clone())],
        )
        .visible(formula::bit_mask(words.leak(), shape));
    all_close(&[documents, drafts, more, last, mask]);
}

#[test]
fn mods_on_emulated_matrices() {
    let case = together();
    let tuning = Tuning {
        schedule: Some(Schedule::Matrix),
        ..Tuning::default()
    };
    for gpu in gpus() {
        // SwiftShader takes gigabytes to compile emulated matrices.
        if gpu.engine().caps().fixed_subgroup().is_none() || name(gpu).contains("SwiftShader") {
            say(format_args!("skipped: {}: emulated matrices", name(gpu)));
            continue;
        }
        let emulated = common::with_emulated_matrices(gpu, 8, false);
        let (o, lse) = case.errors(&emulated, &tuning).expect("runs");
        assert!(
            o <= 1e-5 && lse <= 1e-5,
            "{}: o {o:e}, lse {lse:e}",
            name(gpu)
        );
    }
}

#[test]
fn mods_together() {
    let case = together();
    all_close(std::slice::from_ref(&case));
    for gpu in gpus() {
        if name(gpu).contains("SwiftShader") {
            say(format_args!("skipped: {}: tiles of scores", name(gpu)));
            continue;
        }
        let split = Tuning {
            splits: Some(3),
            ..TILE
        };
        let (o, lse) = case.errors(gpu, &split).expect("runs");
        assert!(
            o <= 1e-5 && lse <= 1e-5,
            "{}: o {o:e}, lse {lse:e}",
            name(gpu)
        );
    }
}

/// Two presets with buffers and a caller's mod between them, chained in their order.
fn together() -> Case {
    let slopes = presets::alibi_slopes(4);
    let (data, wide, layout) = table(3, &[4, 9]);
    let case = Case::new("together", [2, 4, 2], 30, 50)
        .causal(Causal::BottomRight)
        .lens(&[50, 44], &[30, 30]);
    let ahead = case.ahead(Corner::BottomRight);
    let alibi = formula::alibi(f64s(&slopes), ahead);
    let relative = formula::relative_positions(wide, 4, ahead);
    let gaps = formula::dilated_window(20, 3, 2, ahead);
    let own = "
        const FACTOR: f32 = 0.5;
        fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
            return score * FACTOR; // half
        }
        fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {
            return kv_index % 5u != head;
        }
        fn prob_mod(weight: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {
            return select(weight * 1.5, 0.0, kv_index % 3u == q_index % 3u);
        }
        fn key_range(batch: u32, head: u32, q_index: u32) -> vec2<u32> {
            return vec2<u32>(2u, valid_keys(batch) - 1u);
        }";
    let mut case = case
        .with(
            presets::alibi(Layout::f32([4]), Corner::BottomRight),
            [Data::F32(slopes)],
        )
        .with(Ok(Mod::new(own)), [])
        .with(presets::dilated_window(20, 3, 2, Corner::BottomRight), [])
        .with(
            presets::relative_positions(layout, Corner::BottomRight),
            [Data::F32(data)],
        )
        .score(move |score, at| relative(alibi(score, at) * 0.5, at))
        .visible(move |at| {
            let [batch, head, _, key] = at;
            let valid = [50, 44][batch];
            gaps(at) && key % 5 != head && key >= 2 && key < valid - 1
        });
    case.prob = Some(Box::new(|weight, [_, _, query, key]| {
        if key % 3 == query % 3 {
            0.0
        } else {
            weight * 1.5
        }
    }));
    case
}

#[test]
fn wrong_mods_are_errors_of_the_op() {
    // A mod that is wrong is an error of the op, before any device is asked.
    let layout = Layout::f32([1, 2, 8, 16]);
    let op = Attention::new(layout.clone(), layout.clone(), layout.clone())
        .modified(Mod::new("fn score_mod() {}"));
    let error = foveate::Op::from(op).check().unwrap_err().to_string();
    assert!(
        error.contains("mods[0].source: line 1, column 1"),
        "{error}"
    );
    let gaps = Layout::f32([2, 3]).with_strides([6, 2]);
    let op = Attention::new(layout.clone(), layout.clone(), layout)
        .modified(presets::relative_positions(gaps, Corner::TopLeft).expect("a table"));
    let error = foveate::Op::from(op).check().unwrap_err().to_string();
    assert!(error.contains("mods[0].buffers[0].layout"), "{error}");
}
