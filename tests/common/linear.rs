//! One way to make, run and compare a linear attention.

use foveate::{
    Decay, Gpu, Layout, LinearAttention, Op, Result, Tensor, Tuning, UpdateRule,
    ops::{Args, Slot},
    reference::{self, LinearAttentionInputs, LinearAttentionOutputs, noise},
};

use super::{place, untouched_around};

/// An op with elements for each of its inputs.
#[derive(Debug, Clone)]
pub struct Case {
    pub op: LinearAttention,
    /// Row-major, whatever the layouts.
    pub data: Vec<(Slot, Vec<f32>)>,
    pub lens: Option<Vec<u32>>,
    pub cu: Option<Vec<u32>>,
}

/// The sizes of an op: heads of q, of k and of v; tokens; dims of keys and of values.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub batch: u64,
    pub heads: [u64; 3],
    pub seq: u64,
    pub dims: [u64; 2],
}

impl Sizes {
    /// One batch entry, one head.
    pub fn new(seq: u64, dims: [u64; 2]) -> Self {
        Self {
            batch: 1,
            heads: [1, 1, 1],
            seq,
            dims,
        }
    }

    pub fn heads(mut self, batch: u64, heads: [u64; 3]) -> Self {
        self.batch = batch;
        self.heads = heads;
        self
    }

    /// Contiguous f32 tensors.
    pub fn op(&self) -> LinearAttention {
        let [q, k, v] = self.heads;
        LinearAttention::new(
            Layout::f32([self.batch, q, self.seq, self.dims[0]]),
            Layout::f32([self.batch, k, self.seq, self.dims[0]]),
            Layout::f32([self.batch, v, self.seq, self.dims[1]]),
        )
    }

    fn gates(&self) -> [u64; 3] {
        [self.batch, self.heads[2], self.seq]
    }

    pub fn head_decay(&self) -> Decay {
        Decay::Head(Layout::f32([self.heads[2]]))
    }

    pub fn token_decay(&self) -> Decay {
        Decay::Token(Layout::f32(self.gates()))
    }

    pub fn key_decay(&self) -> Decay {
        let [batch, heads, seq] = self.gates();
        Decay::Key(Layout::f32([batch, heads, seq, self.dims[0]]))
    }

    pub fn value_decay(&self) -> Decay {
        let [batch, heads, seq] = self.gates();
        Decay::Value(Layout::f32([batch, heads, seq, self.dims[1]]))
    }

    /// No decay, and each kind of decay.
    pub fn decays(&self) -> [Decay; 5] {
        [
            Decay::None,
            self.head_decay(),
            self.token_decay(),
            self.key_decay(),
            self.value_decay(),
        ]
    }

    /// The delta rule with a β per token, or per channel with keys of its own to read.
    pub fn delta(&self, rich: bool) -> UpdateRule {
        let [batch, heads, seq] = self.gates();
        if rich {
            UpdateRule::Delta {
                beta: Some(Layout::f32([batch, heads, seq, self.dims[1]])),
                read: Some(self.op().k),
            }
        } else {
            UpdateRule::Delta {
                beta: Some(Layout::f32([batch, heads, seq])),
                read: None,
            }
        }
    }

    pub fn low_rank(&self) -> UpdateRule {
        UpdateRule::LowRank {
            read: self.op().k,
            write: self.op().k,
        }
    }
}

/// Whether an op is one at all: sweeps leave out what does not go together.
pub fn is_op(op: &LinearAttention) -> bool {
    Op::from(op.clone()).check().is_ok()
}

/// What a case computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    pub o: Vec<f32>,
    pub state: Option<Vec<f32>>,
    pub sum: Option<Vec<f32>>,
}

fn elements(layout: &Layout) -> usize {
    layout.elements() as usize
}

impl Case {
    /// Random numbers for all that the op has: decays of 0 and 1, strong and weak ones; keys of length 1 for rules that
    /// need them.
    pub fn new(op: LinearAttention) -> Self {
        let mut data = Vec::new();
        for (slot, layout) in Op::from(op.clone()).tensors() {
            let in_place = op.in_place && matches!(slot, Slot::FinalState | Slot::FinalSum);
            let seed = 100 + slot.name().bytes().map(u64::from).sum::<u64>();
            let mut x = noise(seed, elements(layout));
            match slot {
                Slot::O | Slot::KvLen | Slot::CuSeqlens => continue,
                Slot::FinalState | Slot::FinalSum if !in_place => continue,
                Slot::K | Slot::Read | Slot::Write if op.rule != UpdateRule::Linear => {
                    let width = *layout.shape.last().expect("a key") as usize;
                    for row in x.chunks_mut(width) {
                        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                        row.iter_mut().for_each(|x| *x /= length);
                    }
                }
                Slot::Decay => gates(&mut x),
                Slot::Beta => x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
                Slot::InitialSum | Slot::FinalSum => {
                    x.iter_mut().for_each(|x| *x = x.abs() + 0.5);
                }
                _ => {}
            }
            data.push((slot, x));
        }
        // What is written takes away some of what is read, so that states stay small.
        if let UpdateRule::LowRank { .. } = op.rule {
            let read = data.iter().find(|(slot, _)| *slot == Slot::Read).cloned();
            for (slot, x) in &mut data {
                if let (Slot::Write, Some((_, read))) = (*slot, &read) {
                    *x = read.iter().map(|x| -0.7 * x).collect();
                }
            }
        }
        let mut case = Self {
            op,
            data,
            lens: None,
            cu: None,
        };
        case.round();
        case
    }

    /// As stored.
    fn round(&mut self) {
        let op = Op::from(self.op.clone());
        for (slot, layout) in op.tensors() {
            if layout.dtype == foveate::DType::F16
                && let Some((_, x)) = self.data.iter_mut().find(|(other, _)| *other == slot)
            {
                for x in x {
                    *x = half::f16::from_f32(*x).to_f32();
                }
            }
        }
    }

    pub fn lens(mut self, lens: &[u32]) -> Self {
        self.op = self
            .op
            .kv_len(Layout::new(foveate::DType::U32, [lens.len() as u64]));
        self.lens = Some(lens.to_vec());
        self
    }

    /// Of an op that has `cu_seqlens` already.
    pub fn packed(mut self, cu: &[u32]) -> Self {
        self.cu = Some(cu.to_vec());
        self
    }

    /// The elements of an input.
    pub fn of(&mut self, slot: Slot) -> &mut Vec<f32> {
        let found = self.data.iter_mut().find(|(other, _)| *other == slot);
        &mut found.expect("the case has this input").1
    }

    /// Moves every tensor; states and sums that are in place have one layout.
    pub fn laid_out(mut self, layout: impl Fn(Slot, &Layout) -> Layout) -> Self {
        let place = if self.op.in_place {
            [Slot::FinalState, Slot::FinalSum]
        } else {
            [Slot::InitialState, Slot::InitialSum]
        };
        let op = &mut self.op;
        let (beta, read, write) = match &mut op.rule {
            UpdateRule::Linear => (None, None, None),
            UpdateRule::Delta { beta, read } => (beta.as_mut(), read.as_mut(), None),
            UpdateRule::LowRank { read, write } => (None, Some(read), Some(write)),
        };
        let (local_q, local_k, bias) = match &mut op.local {
            None => (None, None, None),
            Some(local) => (local.q.as_mut(), local.k.as_mut(), local.bias.as_mut()),
        };
        let decay = match &mut op.decay {
            Decay::None => None,
            Decay::Head(x) | Decay::Token(x) | Decay::Key(x) | Decay::Value(x) => Some(x),
        };
        for (slot, old) in [
            (Slot::Q, Some(&mut op.q)),
            (Slot::K, Some(&mut op.k)),
            (Slot::V, Some(&mut op.v)),
            (Slot::O, Some(&mut op.o)),
            (Slot::Decay, decay),
            (Slot::Beta, beta),
            (Slot::Read, read),
            (Slot::Write, write),
            (Slot::Bonus, op.bonus.as_mut()),
            (Slot::LocalQ, local_q),
            (Slot::LocalK, local_k),
            (Slot::Bias, bias),
            (place[0], op.initial_state.as_mut()),
            (Slot::FinalState, op.final_state.as_mut()),
            (place[1], op.initial_sum.as_mut()),
            (Slot::FinalSum, op.final_sum.as_mut()),
        ] {
            if let Some(old) = old {
                *old = layout(slot, old);
            }
        }
        self.round();
        self
    }

    /// What the reference makes of it.
    pub fn expected(&self) -> LinearAttentionOutputs {
        let wide: Vec<(Slot, Vec<f64>)> = (self.data.iter())
            .map(|(slot, x)| (*slot, x.iter().map(|&x| x.into()).collect()))
            .collect();
        let of = |slot: Slot| {
            let found = wide.iter().find(|(other, _)| *other == slot);
            found.map(|(_, x)| &x[..])
        };
        let counts = |list: &Option<Vec<u32>>| -> Option<Vec<usize>> {
            list.as_ref()
                .map(|list| list.iter().map(|&n| n as usize).collect())
        };
        let given = |slot| of(slot).unwrap_or_default();
        let in_place = |initial: Slot, last: Slot| of(initial).or_else(|| of(last));
        reference::linear_attention(&LinearAttentionInputs {
            decay: of(Slot::Decay),
            beta: of(Slot::Beta),
            read: of(Slot::Read),
            write: of(Slot::Write),
            bonus: of(Slot::Bonus),
            local_q: of(Slot::LocalQ),
            local_k: of(Slot::LocalK),
            bias: of(Slot::Bias),
            initial_state: in_place(Slot::InitialState, Slot::FinalState),
            initial_sum: in_place(Slot::InitialSum, Slot::FinalSum),
            kv_len: counts(&self.lens).as_deref(),
            cu_seqlens: counts(&self.cu).as_deref(),
            ..LinearAttentionInputs::of(&self.op, given(Slot::Q), given(Slot::K), given(Slot::V))
        })
    }

    /// Runs it; what no output's layout covers must stay as it was, and what one covers be written.
    pub fn run(&self, gpu: &Gpu) -> Result<Outputs> {
        self.run_with(gpu, &Tuning::default())
    }

    /// The same with a tuning.
    pub fn run_with(&self, gpu: &Gpu, tuning: &Tuning) -> Result<Outputs> {
        let op = Op::from(self.op.clone());
        let mut tensors: Vec<(Slot, Tensor)> = Vec::new();
        for (slot, layout) in op.tensors() {
            let counts = match slot {
                Slot::KvLen => self.lens.as_ref(),
                Slot::CuSeqlens => self.cu.as_ref(),
                _ => None,
            };
            let tensor = if let Some(counts) = counts {
                gpu.upload_u32(counts, [counts.len() as u64])?
            } else {
                let data = self.data.iter().find(|(other, _)| *other == slot);
                place(gpu, layout.clone(), data.map_or(&[], |(_, x)| x))?
            };
            tensors.push((slot, tensor));
        }
        let args = Args(tensors.iter().map(|(slot, t)| (*slot, t.view())).collect());
        let plan = gpu.engine().plan_with(&op, tuning)?;
        gpu.run(&plan.bind(args)?)?;
        let read = |slot: Slot| -> Result<Option<Vec<f32>>> {
            let Some((_, tensor)) = tensors.iter().find(|(other, _)| *other == slot) else {
                return Ok(None);
            };
            untouched_around(gpu, tensor)?;
            Ok(Some(gpu.download(tensor)?))
        };
        Ok(Outputs {
            o: read(Slot::O)?.unwrap_or_default(),
            state: read(Slot::FinalState)?,
            sum: read(Slot::FinalSum)?,
        })
    }

    /// Runs it and compares all outputs with the reference.
    pub fn close(&self, gpu: &Gpu, label: &str, most: f64) {
        self.close_with(gpu, &Tuning::default(), label, most);
    }

    /// The same with a tuning.
    pub fn close_with(&self, gpu: &Gpu, tuning: &Tuning, label: &str, most: f64) {
        let got = (self.run_with(gpu, tuning))
            .unwrap_or_else(|error| panic!("{label}: {error}: {self:?}"));
        let want = self.expected();
        self.compare(label, "o", &got.o, &want.o, most);
        if let Some(state) = &got.state {
            self.compare(label, "state", state, &want.state, most);
        }
        if let Some(sum) = &got.sum {
            // The largest number so far beside the sums, which may be far smaller.
            let safe = self.op.normaliser.is_some_and(|n| n.safe);
            let width = *want_shape(&self.op).last().expect("a sum") as usize;
            let keys = if safe { width - 1 } else { width };
            let part = |x: &[f64], from: usize, to: usize| -> Vec<f64> {
                x.chunks(width)
                    .flat_map(|row| row[from..to].to_vec())
                    .collect()
            };
            let wide: Vec<f64> = sum.iter().map(|&x| x.into()).collect();
            for (name, from, to) in [("sum", 0, keys), ("largest", keys, width)] {
                let got: Vec<f32> = part(&wide, from, to).iter().map(|&x| x as f32).collect();
                self.compare(label, name, &got, &part(&want.sum, from, to), most);
            }
        }
    }

    fn compare(&self, label: &str, name: &str, got: &[f32], want: &[f64], most: f64) {
        let error = reference::error(got, want);
        assert!(
            error <= most,
            "{label}: {name} {error:e} {:?}: {:?} {:?} {:?}",
            first_off(got, want, most),
            self.op,
            self.lens,
            self.cu
        );
    }
}

/// The first element that is off, for messages.
fn first_off(got: &[f32], want: &[f64], most: f64) -> Option<(usize, f32, f64)> {
    let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    let mut pairs = got.iter().zip(want).enumerate();
    pairs
        .find(|(_, (x, want))| {
            let difference = (f64::from(**x) - **want).abs();
            difference.is_nan() || difference > most * rms
        })
        .map(|(at, (x, want))| (at, *x, *want))
}

fn want_shape(op: &LinearAttention) -> Vec<u64> {
    let sum = op.final_sum.as_ref();
    sum.map_or(vec![1], |layout| layout.shape.clone())
}

/// Logarithms of decays that keep what a state holds over some hundred tokens.
pub fn gentle(noise: &mut [f32]) {
    for x in noise {
        *x = -0.01 * x.abs();
    }
}

/// Logarithms of decays from noise: some that clear a state, some that keep it, strong and weak ones.
pub fn gates(noise: &mut [f32]) {
    for (at, x) in noise.iter_mut().enumerate() {
        *x = match (at * 7 + at / 5 + 4) % 11 {
            0 => -1000.0,
            1 | 2 => 0.0,
            3 => -20.0 * x.abs(),
            _ => -0.1 * x.abs(),
        };
    }
}
