//! What the tests on adapters share: the adapters, and one way to run an op and compare it.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod bits;
pub mod linear;

use std::sync::OnceLock;

use foveate::{
    Attention, AttentionArgs, BlockMask, Causal, DType, Gpu, KeyIndex, Layout, Op, Result,
    Schedule, Tensor, Tuning, Window,
    caps::MatrixShape,
    reference::{self, AttentionInputs, AttentionOutputs, noise},
};

/// Variants that compile fast, for sweeps over shapes.
pub const CHEAP: Tuning = Tuning {
    schedule: Some(Schedule::Subgroup),
    rows: Some(1),
    keys: Some(2),
    splits: None,
};
/// The same of the decode schedule.
pub const DECODE: Tuning = Tuning {
    schedule: Some(Schedule::Decode),
    rows: Some(2),
    keys: None,
    splits: None,
};
/// The tile schedule, which has one variant per set of terms.
pub const TILE: Tuning = Tuning {
    schedule: Some(Schedule::Tile),
    rows: None,
    keys: None,
    splits: None,
};

/// Every adapter of this machine, opened. A kind that is missing is a skip that is printed; a
/// machine with none fails.
pub fn gpus() -> &'static [Gpu] {
    static GPUS: OnceLock<Vec<Gpu>> = OnceLock::new();
    GPUS.get_or_init(|| {
        let gpus: Vec<Gpu> = foveate::adapters()
            .iter()
            .map(|adapter| {
                let gpu = Gpu::on(adapter).expect("an adapter that is listed opens");
                // What an adapter has is asked for, or tests that need it would skip in silence.
                let f16 = adapter.features().contains(wgpu::Features::SHADER_F16);
                assert_eq!(gpu.engine().caps().f16, f16);
                let subgroups = adapter.features().contains(wgpu::Features::SUBGROUP);
                assert_eq!(gpu.engine().caps().subgroup.is_some(), subgroups);
                gpu
            })
            .collect();
        assert!(!gpus.is_empty(), "no adapter: run scripts/vulkan.sh");
        for gpu in &gpus {
            say(format_args!("adapter: {}", name(gpu)));
        }
        for wanted in ["llvmpipe (vulkan)", "llvmpipe (gl)", "SwiftShader"] {
            if !gpus.iter().any(|gpu| name(gpu).contains(wanted)) {
                say(format_args!("skipped: {wanted} is not there"));
            }
        }
        gpus
    })
}

/// The same adapter with the matrix schedule on emulated matrices of one kind: everything of that
/// schedule but the device's own matrix instructions.
pub fn with_emulated_matrices(gpu: &Gpu, side: u32, f16: bool) -> Gpu {
    let mut caps = gpu.engine().caps().clone();
    caps.matrices = vec![MatrixShape {
        side,
        f16,
        emulated: true,
    }];
    let mut emulated = gpu.clone();
    *emulated.engine_mut() = gpu.engine().clone().with_caps(caps);
    emulated
}

/// Prints past the test harness, which hides what passing tests print.
pub fn say(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A short name: device and backend.
pub fn name(gpu: &Gpu) -> String {
    let info = gpu.info();
    let device = info.name.split(" (").next().unwrap_or(&info.name);
    format!("{device} ({})", info.backend)
}

/// What a tensor is filled with before it is written, so that what stays unwritten shows.
pub const SENTINEL: f32 = -12345.0;

/// An attention problem with random inputs.
#[derive(Debug, Clone)]
pub struct Problem {
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub q_len: usize,
    pub kv_len: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub causal: Causal,
    /// Shape of a random boolean mask.
    pub mask: Option<[usize; 4]>,
    /// Shape of a random bias.
    pub bias: Option<[usize; 4]>,
    pub lens: Option<Vec<u32>>,
    pub scale: Option<f32>,
    pub dtype: DType,
    /// [batch, seq, heads, dim] in memory, rows padded and shifted by this many elements.
    pub bshd: Option<u64>,
    pub terms: Terms,
}

/// What else an attention may have.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    pub q_lens: Option<Vec<u32>>,
    pub prefix: Option<Vec<u32>>,
    /// Where packed queries and keys begin.
    pub packed: Option<[Vec<u32>; 2]>,
    pub window: Option<Window>,
    pub head_windows: Option<Vec<[u32; 2]>>,
    pub sinks: Option<Vec<f32>>,
    /// Noise for every row, or one number for all rows of a head.
    pub gate: Option<[u64; 3]>,
    pub softcap: Option<f32>,
    pub blocks: Option<Blocks>,
    /// Where blocks of keys begin.
    pub block_starts: Option<Vec<u32>>,
    pub lists: Option<Lists>,
}

/// A block mask of random bits.
#[derive(Debug, Clone)]
pub struct Blocks {
    pub block_q: u64,
    pub block_kv: u64,
    /// Whether each batch entry has bits of its own.
    pub per_batch: bool,
    pub heads: Heads,
}

/// Lists of random keys, some of them twice, and some that are none.
#[derive(Debug, Clone)]
pub struct Lists {
    pub block_q: u64,
    pub entries: u64,
    /// Whether each batch entry has lists of its own.
    pub per_batch: bool,
    pub heads: Heads,
}

/// Which heads have an index of their own.
#[derive(Debug, Clone, Copy)]
pub enum Heads {
    Shared,
    Kv,
    Query,
}

impl Problem {
    pub fn new(
        [batch, q_heads, kv_heads]: [usize; 3],
        [q_len, kv_len]: [usize; 2],
        dim: usize,
    ) -> Self {
        Self {
            batch,
            q_heads,
            kv_heads,
            q_len,
            kv_len,
            head_dim: dim,
            value_dim: dim,
            causal: Causal::None,
            mask: None,
            bias: None,
            lens: None,
            scale: None,
            dtype: DType::F32,
            bshd: None,
            terms: Terms::default(),
        }
    }

    /// The block mask, and its bits: about a third of the blocks are seen, and no block by the first row
    /// of blocks.
    fn block_mask(&self) -> Option<(BlockMask, Vec<u32>)> {
        let Blocks {
            block_q,
            block_kv,
            per_batch,
            heads,
        } = *self.terms.blocks.as_ref()?;
        let rows = (self.q_len as u64).div_ceil(block_q);
        let blocks = match &self.terms.block_starts {
            Some(starts) => starts.len() as u64 - 1,
            None => (self.kv_len as u64).div_ceil(block_kv),
        };
        let words = blocks.div_ceil(32);
        let [batch, heads] = self.index_axes(per_batch, heads);
        let shape = [batch, heads, rows, words];
        let bits = noise(6, 32 * shape.iter().product::<u64>() as usize)
            .chunks(32)
            .enumerate()
            .map(|(at, chunk)| {
                let first_row = (at as u64 / words).is_multiple_of(rows);
                let bits = chunk.iter().rev();
                bits.fold(0, |word, &x| word << 1 | u32::from(x > 0.4 && !first_row))
            })
            .collect();
        let mask = BlockMask {
            bits: Layout::new(DType::U32, shape),
            block_q,
            block_kv,
        };
        Some((mask, bits))
    }

    /// The first two axes of an index.
    fn index_axes(&self, per_batch: bool, heads: Heads) -> [u64; 2] {
        let batch = if per_batch { self.batch } else { 1 };
        let heads = match heads {
            Heads::Shared => 1,
            Heads::Kv => self.kv_heads,
            Heads::Query => self.q_heads,
        };
        [batch, heads].map(|n| n as u64)
    }

    /// The lists of keys, and their entries. The first list is of nothing.
    fn key_index(&self) -> Option<(KeyIndex, Vec<u32>)> {
        let Lists {
            block_q,
            entries,
            per_batch,
            heads,
        } = *self.terms.lists.as_ref()?;
        let [batch, heads] = self.index_axes(per_batch, heads);
        let shape = [batch, heads, (self.q_len as u64).div_ceil(block_q), entries];
        let numbers = noise(8, shape.iter().product::<u64>() as usize)
            .iter()
            .enumerate()
            .map(|(at, &x)| {
                let key = ((x + 1.0) / 2.0 * (self.kv_len + 3) as f32) as u32;
                let none = at as u64 / entries == 0 || at % 7 == 6;
                if none { u32::MAX } else { key }
            })
            .collect();
        let index = KeyIndex {
            index: Layout::new(DType::U32, shape),
            block_q,
        };
        Some((index, numbers))
    }

    fn layout(&self, heads: usize, seq: usize, dim: usize) -> Layout {
        let [batch, heads, seq, dim] = [self.batch, heads, seq, dim].map(|n| n as u64);
        match self.bshd {
            None => Layout::new(self.dtype, [batch, heads, seq, dim]),
            Some(pad) => {
                let row = dim + pad;
                Layout::new(self.dtype, [batch, seq, heads, dim])
                    .with_strides([seq * heads * row, heads * row, row, 1])
                    .at(pad)
                    .transposed(1, 2)
            }
        }
    }

    /// Runs it and compares `o` and `lse` with the reference; returns the two errors.
    pub fn errors(&self, gpu: &Gpu, tuning: &Tuning) -> Result<(f64, f64)> {
        let ([q, k, v], mask, bias) = self.random();
        self.check(gpu, tuning, (&q, &k, &v), mask.as_ref(), bias.as_ref())
    }

    /// Random q, k and v, mask and bias.
    #[allow(clippy::type_complexity, reason = "taken apart where it is made")]
    pub fn random(
        &self,
    ) -> (
        [Vec<f32>; 3],
        Option<([usize; 4], Vec<bool>)>,
        Option<([usize; 4], Vec<f32>)>,
    ) {
        let random = |seed: u64, count: usize| -> Vec<f32> {
            let mut data = noise(seed, count);
            if self.dtype == DType::F16 {
                for x in &mut data {
                    *x = half::f16::from_f32(*x).to_f32();
                }
            }
            data
        };
        let q = random(1, self.batch * self.q_heads * self.q_len * self.head_dim);
        let k = random(2, self.batch * self.kv_heads * self.kv_len * self.head_dim);
        let v = random(3, self.batch * self.kv_heads * self.kv_len * self.value_dim);
        let mask = self.mask.map(|shape| {
            let data: Vec<bool> = noise(4, shape.iter().product())
                .iter()
                .map(|&x| x > -0.5)
                .collect();
            (shape, data)
        });
        let bias = self.bias.map(|shape| {
            let mut data = random(5, shape.iter().product());
            for x in data.iter_mut().step_by(7) {
                *x = f32::NEG_INFINITY;
            }
            (shape, data)
        });
        ([q, k, v], mask, bias)
    }

    /// The same with given tensors.
    pub fn check(
        &self,
        gpu: &Gpu,
        tuning: &Tuning,
        (q, k, v): (&[f32], &[f32], &[f32]),
        mask: Option<&([usize; 4], Vec<bool>)>,
        bias: Option<&([usize; 4], Vec<f32>)>,
    ) -> Result<(f64, f64)> {
        let expected = self.reference((q, k, v), mask, bias);
        let (o, lse) = self.run(gpu, tuning, (q, k, v), mask, bias)?;
        Ok((
            reference::error(&o, &expected.o),
            reference::error(&lse, &expected.lse),
        ))
    }

    /// The gate as it is stored, and for every row.
    fn gate(&self) -> Option<(Vec<f32>, Vec<f64>)> {
        let shape = self.terms.gate?;
        let all = [self.batch, self.q_heads, self.q_len];
        let own = reference::noise(77, shape.iter().product::<u64>() as usize);
        let mut rows = Vec::new();
        for row in 0..all.iter().product::<usize>() {
            let place = [row / (all[1] * all[2]), row / all[2] % all[1], row % all[2]];
            let at = (0..3).fold(0, |at, axis| {
                at * shape[axis] as usize + place[axis] % shape[axis] as usize
            });
            rows.push(own[at].into());
        }
        Some((own, rows))
    }

    pub fn reference(
        &self,
        (q, k, v): (&[f32], &[f32], &[f32]),
        mask: Option<&([usize; 4], Vec<bool>)>,
        bias: Option<&([usize; 4], Vec<f32>)>,
    ) -> AttentionOutputs {
        self.with_inputs((q, k, v), mask, bias, reference::attention)
    }

    /// What `look` sees in the reference's inputs.
    pub fn with_inputs<T>(
        &self,
        (q, k, v): (&[f32], &[f32], &[f32]),
        mask: Option<&([usize; 4], Vec<bool>)>,
        bias: Option<&([usize; 4], Vec<f32>)>,
        look: impl FnOnce(&AttentionInputs<'_>) -> T,
    ) -> T {
        let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|&x| x.into()).collect() };
        let full = [self.batch, self.q_heads, self.q_len, self.kv_len];
        let mask = mask.map(|(shape, data)| spread(*shape, full, data));
        let bias = bias.map(|(shape, data)| spread(*shape, full, &wide(data)));
        let numbers = |lens: Option<&Vec<u32>>| -> Option<Vec<usize>> {
            lens.map(|lens| lens.iter().map(|&len| len as usize).collect())
        };
        let terms = &self.terms;
        let (cu_q, cu_kv) = match &terms.packed {
            Some([cu_q, cu_kv]) => (numbers(Some(cu_q)), numbers(Some(cu_kv))),
            None => (None, None),
        };
        let sinks = terms.sinks.as_deref().map(wide);
        let gate = self.gate();
        let blocks = self.block_mask();
        let lists = self.key_index();
        let scale = self
            .scale
            .unwrap_or_else(|| 1.0 / (self.head_dim as f32).sqrt());
        look(&AttentionInputs {
            batch: self.batch,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            q_len: self.q_len,
            kv_len: self.kv_len,
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            q: &wide(q),
            k: &wide(k),
            v: &wide(v),
            mask: mask.as_deref(),
            bias: bias.as_deref(),
            lens: numbers(self.lens.as_ref()).as_deref(),
            q_lens: numbers(terms.q_lens.as_ref()).as_deref(),
            prefix: numbers(terms.prefix.as_ref()).as_deref(),
            cu_q: cu_q.as_deref(),
            cu_kv: cu_kv.as_deref(),
            window: terms.window,
            head_windows: terms.head_windows.as_deref(),
            sinks: sinks.as_deref(),
            gate: gate.as_ref().map(|(_, all)| &all[..]),
            softcap: terms.softcap.map(f64::from),
            blocks: blocks.as_ref().map(|(mask, bits)| (mask, &bits[..])),
            block_starts: terms.block_starts.as_deref(),
            lists: lists.as_ref().map(|(index, list)| (index, &list[..])),
            scale: scale.into(),
            causal: self.causal,
            ..AttentionInputs::default()
        })
    }

    /// Runs it on the device; everything that no layout covers must stay as it was.
    pub fn run(
        &self,
        gpu: &Gpu,
        tuning: &Tuning,
        (q, k, v): (&[f32], &[f32], &[f32]),
        mask: Option<&([usize; 4], Vec<bool>)>,
        bias: Option<&([usize; 4], Vec<f32>)>,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        self.with_op(gpu, (q, k, v), mask, bias, |op, args, [o, lse]| {
            let plan = gpu.engine().plan_with(&op.into(), tuning)?;
            gpu.run(&plan.bind(args)?)?;
            untouched_around(gpu, o)?;
            Ok((gpu.download(o)?, gpu.download(lse)?))
        })
    }

    /// What `run` makes of the op and its tensors on the device; `o` and `lse` hold sentinels.
    pub fn with_op<T>(
        &self,
        gpu: &Gpu,
        (q, k, v): (&[f32], &[f32], &[f32]),
        mask: Option<&([usize; 4], Vec<bool>)>,
        bias: Option<&([usize; 4], Vec<f32>)>,
        run: impl FnOnce(Attention, AttentionArgs<'_>, [&Tensor; 2]) -> Result<T>,
    ) -> Result<T> {
        let q = place(gpu, self.layout(self.q_heads, self.q_len, self.head_dim), q)?;
        let k = place(
            gpu,
            self.layout(self.kv_heads, self.kv_len, self.head_dim),
            k,
        )?;
        let v = place(
            gpu,
            self.layout(self.kv_heads, self.kv_len, self.value_dim),
            v,
        )?;
        let o = place(
            gpu,
            self.layout(self.q_heads, self.q_len, self.value_dim),
            &[],
        )?;
        let lse = place(
            gpu,
            Layout::f32([self.batch, self.q_heads, self.q_len].map(|n| n as u64)),
            &[],
        )?;
        let mut op = Attention::new(q.layout().clone(), k.layout().clone(), v.layout().clone())
            .output(o.layout().clone())
            .causal(self.causal)
            .with_lse();
        op.scale = self.scale;
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
        args.lse = Some(lse.view());
        let mask = mask
            .map(|(shape, data)| gpu.upload_bool(data, shape.map(|n| n as u64)))
            .transpose()?;
        if let Some(mask) = &mask {
            op = op.mask(mask.layout().clone());
            args.mask = Some(mask.view());
        }
        let bias = bias
            .map(|(shape, data)| gpu.upload_as(self.dtype, data, shape.map(|n| n as u64)))
            .transpose()?;
        if let Some(bias) = &bias {
            op = op.bias(bias.layout().clone());
            args.bias = Some(bias.view());
        }
        let terms = &self.terms;
        op.window = terms.window;
        op.softcap = terms.softcap;
        let numbers = |list: Option<&Vec<u32>>| {
            list.map(|list| gpu.upload_u32(list, [list.len() as u64]))
                .transpose()
        };
        let (cu_q, cu_kv) = match &terms.packed {
            Some([cu_q, cu_kv]) => (Some(cu_q), Some(cu_kv)),
            None => (None, None),
        };
        let lens = numbers(self.lens.as_ref())?;
        let q_lens = numbers(terms.q_lens.as_ref())?;
        let prefix = numbers(terms.prefix.as_ref())?;
        let block_starts = numbers(terms.block_starts.as_ref())?;
        let (cu_q, cu_kv) = (numbers(cu_q)?, numbers(cu_kv)?);
        let windows = match &terms.head_windows {
            Some(windows) => {
                Some(gpu.upload_u32(windows.as_flattened(), [windows.len() as u64, 2])?)
            }
            None => None,
        };
        let sinks = match &terms.sinks {
            Some(sinks) => Some(gpu.upload(sinks, [sinks.len() as u64])?),
            None => None,
        };
        let gate = match (self.gate(), terms.gate) {
            (Some((own, _)), Some(shape)) => Some(gpu.upload(&own, shape)?),
            _ => None,
        };
        let blocks = match self.block_mask() {
            Some((mask, bits)) => {
                let bits = gpu.upload_u32(&bits, mask.bits.shape.clone())?;
                op.block_mask = Some(mask);
                Some(bits)
            }
            None => None,
        };
        let lists = match self.key_index() {
            Some((index, list)) => {
                let list = gpu.upload_u32(&list, index.index.shape.clone())?;
                op.key_index = Some(index);
                Some(list)
            }
            None => None,
        };
        for (tensor, layout, arg) in [
            (&lens, &mut op.kv_len, &mut args.kv_len),
            (&q_lens, &mut op.q_len, &mut args.q_len),
            (&prefix, &mut op.prefix_len, &mut args.prefix_len),
            (&block_starts, &mut op.block_starts, &mut args.block_starts),
            (&cu_q, &mut op.cu_q, &mut args.cu_q),
            (&cu_kv, &mut op.cu_kv, &mut args.cu_kv),
            (&windows, &mut op.head_windows, &mut args.head_windows),
            (&sinks, &mut op.sinks, &mut args.sinks),
            (&gate, &mut op.gate, &mut args.gate),
        ] {
            *layout = tensor.as_ref().map(|tensor| tensor.layout().clone());
            *arg = tensor.as_ref().map(Tensor::view);
        }
        args.blocks = blocks.as_ref().map(Tensor::view);
        args.index = lists.as_ref().map(Tensor::view);
        run(op, args, [&o, &lse])
    }
}

/// A tensor of any layout with these elements (row-major), sentinels everywhere else; no elements:
/// sentinels only.
pub fn place(gpu: &Gpu, layout: Layout, data: &[f32]) -> Result<Tensor> {
    let tensor = gpu.allocate(layout)?;
    let layout = tensor.layout();
    let count = tensor.buffer().size() / layout.dtype.size();
    let mut all = vec![SENTINEL; count as usize];
    for (number, &x) in data.iter().enumerate() {
        all[place_of(layout, number as u64) as usize] = x;
    }
    let bytes: Vec<u8> = match layout.dtype {
        DType::F16 => all
            .iter()
            .flat_map(|&x| half::f16::from_f32(x).to_le_bytes())
            .collect(),
        _ => all.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    gpu.write(&tensor, &bytes)?;
    Ok(tensor)
}

/// Checks that no element outside the layout was written.
pub fn untouched_around(gpu: &Gpu, tensor: &Tensor) -> Result<()> {
    let layout = tensor.layout();
    let count = tensor.buffer().size() / layout.dtype.size();
    let flat = tensor.with_layout(Layout::new(layout.dtype, [count]));
    let all = gpu.download(&flat)?;
    let mut inside = vec![false; count as usize];
    for number in 0..layout.elements() {
        inside[place_of(layout, number) as usize] = true;
    }
    let sentinel = match layout.dtype {
        DType::F16 => half::f16::from_f32(SENTINEL).to_f32(),
        _ => SENTINEL,
    };
    for (at, (&x, inside)) in all.iter().zip(inside).enumerate() {
        assert!(
            inside || x == sentinel,
            "element {at} outside the output was written"
        );
        assert!(
            !inside || x != sentinel,
            "element {at} of the output was not written"
        );
    }
    Ok(())
}

/// Where a row-major element lies.
pub fn place_of(layout: &Layout, number: u64) -> u64 {
    let mut rest = number;
    let mut at = layout.offset;
    for (len, stride) in layout.shape.iter().zip(&layout.strides).rev() {
        at += rest % len * stride;
        rest /= len;
    }
    at
}

fn spread<T: Copy>(shape: [usize; 4], full: [usize; 4], data: &[T]) -> Vec<T> {
    let mut out = Vec::with_capacity(full.iter().product());
    for b in 0..full[0] {
        for h in 0..full[1] {
            for i in 0..full[2] {
                for j in 0..full[3] {
                    let at = [b, h, i, j]
                        .iter()
                        .zip(shape)
                        .fold(0, |at, (&x, len)| at * len + if len == 1 { 0 } else { x });
                    out.push(data[at]);
                }
            }
        }
    }
    out
}

/// Plans an op on a device; for tests that look at the plan.
pub fn steps(gpu: &Gpu, op: impl Into<Op>, tuning: &Tuning) -> usize {
    let plan = gpu.engine().plan_with(&op.into(), tuning).expect("plans");
    plan.outline().steps.len()
}
