//! Linear attention from its formula, twice: as the recurrence over tokens, and as a sum over pairs.

use std::ops::Range;

use crate::ops::{
    Decay, FeatureMap, Guard, LinearAttention, LocalWeights, Reach, Real, Similarity, UpdateRule,
    dims,
};

/// The largest `factor * x` of a key where there is none yet ([`Normaliser::safe`](crate::Normaliser::safe)).
const NONE_YET: f64 = -3e38;

/// What linear attention is computed from: the op, for its terms, and contiguous tensors of any number type as f64,
/// in the shapes that the op gives them.
#[derive(Debug, Clone)]
pub struct LinearAttentionInputs<'a> {
    /// The op; its layouts count by their shapes alone.
    pub op: &'a LinearAttention,
    /// Queries.
    pub q: &'a [f64],
    /// Keys.
    pub k: &'a [f64],
    /// Values.
    pub v: &'a [f64],
    /// Logarithms of the factors on the state.
    pub decay: Option<&'a [f64]>,
    /// β of the delta rule.
    pub beta: Option<&'a [f64]>,
    /// `p` of the delta rule, `a` of the low-rank one.
    pub read: Option<&'a [f64]>,
    /// `b` of the low-rank rule.
    pub write: Option<&'a [f64]>,
    /// Factors on the own token.
    pub bonus: Option<&'a [f64]>,
    /// Queries of the attention inside groups.
    pub local_q: Option<&'a [f64]>,
    /// Its keys.
    pub local_k: Option<&'a [f64]>,
    /// Its bias.
    pub bias: Option<&'a [f64]>,
    /// State before the first token.
    pub initial_state: Option<&'a [f64]>,
    /// Sum of keys before the first token.
    pub initial_sum: Option<&'a [f64]>,
    /// Valid tokens per batch entry.
    pub kv_len: Option<&'a [usize]>,
    /// Where packed sequences begin.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// What linear attention computes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LinearAttentionOutputs {
    /// `[batch, max(q_heads, state_heads), seq, value_dim]`
    pub o: Vec<f64>,
    /// `[sequences, state_heads, rows, value_dim]`, where there is a row per feature of a key: see [`Similarity`].
    pub state: Vec<f64>,
    /// `[sequences, state_heads, rows]`, and the largest `factor * x` where the normaliser is safe; empty without a
    /// normaliser.
    pub sum: Vec<f64>,
}

/// Lengths, as the op's layouts have them.
struct Sizes {
    batch: usize,
    q_heads: usize,
    k_heads: usize,
    state_heads: usize,
    o_heads: usize,
    seq: usize,
    /// Tokens of the keys.
    tokens: usize,
    updates: usize,
    key_dim: usize,
    value_dim: usize,
}

/// Tokens that share a state.
struct Sequence {
    /// Its number among the states.
    number: usize,
    batch: usize,
    queries: Range<usize>,
    /// The tokens of its keys.
    keys: Range<usize>,
}

impl<'a> LinearAttentionInputs<'a> {
    /// The inputs of an op. What lies in tensors besides `q`, `k` and `v` is for the caller to add.
    pub fn of(op: &'a LinearAttention, q: &'a [f64], k: &'a [f64], v: &'a [f64]) -> Self {
        Self {
            op,
            q,
            k,
            v,
            decay: None,
            beta: None,
            read: None,
            write: None,
            bonus: None,
            local_q: None,
            local_k: None,
            bias: None,
            initial_state: None,
            initial_sum: None,
            kv_len: None,
            cu_seqlens: None,
        }
    }

    fn sizes(&self) -> Sizes {
        let [batch, q_heads, seq, key_dim] = dims(&self.op.q).map(|len| len as usize);
        let [_, k_heads, updates, _] = dims(&self.op.k).map(|len| len as usize);
        let [_, state_heads, _, value_dim] = dims(&self.op.v).map(|len| len as usize);
        let per_token = self.op.updates_per_token as usize;
        Sizes {
            batch,
            q_heads,
            k_heads,
            state_heads,
            o_heads: q_heads.max(state_heads),
            seq,
            tokens: updates / per_token,
            updates: per_token,
            key_dim,
            value_dim,
        }
    }

    fn sequences(&self, sizes: &Sizes) -> Vec<Sequence> {
        match self.cu_seqlens {
            Some(cu) => (cu.windows(2).enumerate())
                .map(|(number, ends)| Sequence {
                    number,
                    batch: 0,
                    queries: ends[0]..ends[1],
                    keys: ends[0]..ends[1],
                })
                .collect(),
            None => (0..sizes.batch)
                .map(|batch| Sequence {
                    number: batch,
                    batch,
                    queries: 0..sizes.seq,
                    keys: 0..self
                        .kv_len
                        .map_or(sizes.tokens, |lens| lens[batch].min(sizes.tokens)),
                })
                .collect(),
        }
    }

    /// How many tokens the state holds that a query reads, the query given by its place in the sequence.
    fn seen(&self, place: usize, keys: usize) -> usize {
        let seen = match self.op.reach {
            Reach::Causal => place + 1,
            Reach::Before => place,
            Reach::BeforeBucket { tokens } => place - place % tokens as usize,
            Reach::All => keys,
        };
        seen.min(keys)
    }

    /// `g` of a token, for a key channel and a value channel.
    fn log_decay(
        &self,
        sizes: &Sizes,
        [batch, head, token]: [usize; 3],
        [c, e]: [usize; 2],
    ) -> f64 {
        let Some(decay) = self.decay else {
            return 0.0;
        };
        let row = (batch * sizes.state_heads + head) * sizes.tokens + token;
        match self.op.decay {
            Decay::None => 0.0,
            Decay::Head(_) => decay[head],
            Decay::Token(_) => decay[row],
            Decay::Key(_) => decay[row * sizes.key_dim + c],
            Decay::Value(_) => decay[row * sizes.value_dim + e],
        }
    }

    /// A key as it is stored, or what lies in its shape.
    fn key_row(
        &self,
        sizes: &Sizes,
        tensor: &'a [f64],
        [batch, head, update]: [usize; 3],
    ) -> &'a [f64] {
        let head = head / (sizes.state_heads / sizes.k_heads);
        let row = (batch * sizes.k_heads + head) * sizes.tokens * sizes.updates + update;
        &tensor[row * sizes.key_dim..][..sizes.key_dim]
    }

    fn value_row(&self, sizes: &Sizes, [batch, head, update]: [usize; 3]) -> &'a [f64] {
        let row = (batch * sizes.state_heads + head) * sizes.tokens * sizes.updates + update;
        &self.v[row * sizes.value_dim..][..sizes.value_dim]
    }

    fn query_row(&self, sizes: &Sizes, [batch, head, token]: [usize; 3]) -> Vec<f64> {
        let row = (batch * sizes.q_heads + head) * sizes.seq + token;
        let q = &self.q[row * sizes.key_dim..][..sizes.key_dim];
        map(self.op.feature_q, q, self.largest(self.op.feature_q, q))
    }

    /// Query heads that read the state of a head, and the heads of the output that each of them writes.
    fn readers(&self, sizes: &Sizes, head: usize) -> Vec<[usize; 2]> {
        if sizes.q_heads >= sizes.state_heads {
            let group = sizes.q_heads / sizes.state_heads;
            (head * group..(head + 1) * group).map(|h| [h, h]).collect()
        } else {
            vec![[head / (sizes.state_heads / sizes.q_heads), head]]
        }
    }

    fn safe(&self) -> bool {
        self.op.normaliser.is_some_and(|normaliser| normaliser.safe)
    }

    /// The largest `factor * x` of a query or key, where the normaliser is safe.
    fn largest(&self, feature: FeatureMap, row: &[f64]) -> f64 {
        match feature {
            FeatureMap::Exp {
                factor: Real(factor),
            } if self.safe() => row
                .iter()
                .map(|x| f64::from(factor) * x)
                .fold(NONE_YET, f64::max),
            _ => 0.0,
        }
    }

    /// Features of a mapped query at a place (from 0): their product with those of a key is what the pair counts.
    fn query_features(&self, q: &[f64], place: usize) -> Vec<f64> {
        let q: Vec<f64> = q.iter().map(|x| self.scale() * x).collect();
        match self.op.similarity {
            Similarity::Product => q,
            Similarity::Taylor => taylor(&q),
            Similarity::Square => squares(&q),
            Similarity::Cosine { length } => waves(&q, place, length),
        }
    }

    /// Features of a mapped key.
    fn key_features(&self, k: &[f64], place: usize) -> Vec<f64> {
        match self.op.similarity {
            Similarity::Product => k.to_vec(),
            Similarity::Taylor => taylor(k),
            Similarity::Square => squares(k),
            Similarity::Cosine { length } => waves(k, place, length),
        }
    }

    fn scale(&self) -> f64 {
        f64::from(self.op.effective_scale())
    }

    /// What the output is divided by, from `den` and from the sum of the query's features.
    fn denominator(&self, den: f64, features: impl FnOnce() -> f64) -> f64 {
        let Some(normaliser) = self.op.normaliser else {
            return 1.0;
        };
        let eps = f64::from(normaliser.eps.0);
        match normaliser.guard {
            Guard::Add => den + eps,
            Guard::AtLeast => den.max(eps),
            Guard::Keys => den + eps * features(),
        }
    }

    /// `Σ_c scale φ(q)_c u_c φ(k)_c` of a query's own token.
    fn bonus(
        &self,
        sizes: &Sizes,
        [batch, head, token]: [usize; 3],
        q: &[f64],
        sequence: &Sequence,
    ) -> f64 {
        let Some(u) = self.bonus else {
            return 0.0;
        };
        if !sequence.keys.contains(&token) {
            return 0.0;
        }
        let u = &u[head * sizes.key_dim..][..sizes.key_dim];
        let k = self.key_row(sizes, self.k, [batch, head, token]);
        let k = map(self.op.feature_k, k, 0.0);
        let products = q.iter().zip(u).zip(&k).map(|((q, u), k)| q * u * k);
        self.scale() * products.sum::<f64>()
    }
}

/// What is applied to a query or key; `largest` is taken off the exponents.
fn map(map: FeatureMap, x: &[f64], largest: f64) -> Vec<f64> {
    let each = |f: fn(f64) -> f64| x.iter().map(|&x| f(x)).collect();
    match map {
        FeatureMap::Identity => x.to_vec(),
        FeatureMap::EluPlusOne => each(|x| if x > 0.0 { x + 1.0 } else { x.exp() }),
        FeatureMap::Relu => each(|x| x.max(0.0)),
        FeatureMap::SquaredRelu => each(|x| x.max(0.0).powi(2)),
        FeatureMap::Exp {
            factor: Real(factor),
        } => x
            .iter()
            .map(|x| (f64::from(factor) * x - largest).exp())
            .collect(),
        FeatureMap::Softmax => {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = x.iter().map(|x| (x - max).exp()).sum();
            x.iter().map(|x| (x - max).exp() / total).collect()
        }
        FeatureMap::Sigmoid => each(|x| 1.0 / (1.0 + (-x).exp())),
        FeatureMap::Silu => each(|x| x / (1.0 + (-x).exp())),
    }
}

fn squares(x: &[f64]) -> Vec<f64> {
    x.iter()
        .flat_map(|a| x.iter().map(move |b| a * b))
        .collect()
}

fn taylor(x: &[f64]) -> Vec<f64> {
    let squares = squares(x);
    let squares = squares.iter().map(|x| x / 2f64.sqrt());
    [1.0]
        .into_iter()
        .chain(x.iter().copied())
        .chain(squares)
        .collect()
}

fn waves(x: &[f64], place: usize, length: u64) -> Vec<f64> {
    let angle = std::f64::consts::PI * (place + 1) as f64 / (2.0 * length as f64);
    let sines = x.iter().map(|x| x * angle.sin());
    sines.chain(x.iter().map(|x| x * angle.cos())).collect()
}

/// A division by 0 gives 0.
fn divided(x: f64, by: f64) -> f64 {
    if by == 0.0 { 0.0 } else { x / by }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `Sᵀ x`
fn read(state: &[f64], x: &[f64], value_dim: usize) -> Vec<f64> {
    let mut out = vec![0.0; value_dim];
    for (row, x) in state.chunks(value_dim).zip(x) {
        for (out, s) in out.iter_mut().zip(row) {
            *out += s * x;
        }
    }
    out
}

/// `S += x yᵀ`
fn add(state: &mut [f64], x: &[f64], y: &[f64]) {
    for (row, x) in state.chunks_mut(y.len()).zip(x) {
        for (s, y) in row.iter_mut().zip(y) {
            *s += x * y;
        }
    }
}

/// The state of a head.
#[derive(Clone)]
struct State {
    /// `[rows, value_dim]`
    matrix: Vec<f64>,
    /// Sum of the keys' features.
    sum: Vec<f64>,
    /// The largest `factor * x` of a key, where the normaliser is safe.
    largest: f64,
}

impl State {
    fn initial(a: &LinearAttentionInputs<'_>, sizes: &Sizes, number: usize) -> Self {
        let rows = a.key_features(&vec![0.0; sizes.key_dim], 0).len();
        let matrix = match a.initial_state {
            Some(all) => all[number * rows * sizes.value_dim..][..rows * sizes.value_dim].to_vec(),
            None => vec![0.0; rows * sizes.value_dim],
        };
        let length = rows + usize::from(a.safe());
        let mut sum = match a.initial_sum {
            Some(all) => all[number * length..][..length].to_vec(),
            None => [vec![0.0; rows], vec![NONE_YET]].concat(),
        };
        let largest = sum.get(rows).copied().unwrap_or(0.0);
        sum.truncate(rows);
        Self {
            matrix,
            sum,
            largest: if a.safe() { largest } else { 0.0 },
        }
    }

    /// Takes in a token of a sequence.
    fn step(
        &mut self,
        a: &LinearAttentionInputs<'_>,
        sizes: &Sizes,
        [batch, head, token]: [usize; 3],
        place: usize,
    ) {
        // One rule alone reads the state before the decay.
        let low_rank = matches!(a.op.rule, UpdateRule::LowRank { .. });
        let mut before = if low_rank {
            self.matrix.clone()
        } else {
            Vec::new()
        };
        for (c, row) in self.matrix.chunks_mut(sizes.value_dim).enumerate() {
            let g = |e| a.log_decay(sizes, [batch, head, token], [c % sizes.key_dim, e]);
            match a.op.decay {
                Decay::None => {}
                Decay::Value(_) => (row.iter_mut().enumerate()).for_each(|(e, s)| *s *= g(e).exp()),
                _ => {
                    let factor = g(0).exp();
                    row.iter_mut().for_each(|s| *s *= factor);
                }
            }
        }
        for (c, z) in self.sum.iter_mut().enumerate() {
            let channel = c % sizes.key_dim;
            *z *= a.log_decay(sizes, [batch, head, token], [channel, 0]).exp();
        }
        for update in token * sizes.updates..(token + 1) * sizes.updates {
            let at = [batch, head, update];
            let stored = a.key_row(sizes, a.k, at);
            let largest = self.largest.max(a.largest(a.op.feature_k, stored));
            let shrink = (self.largest - largest).exp();
            for s in self.matrix.iter_mut().chain(&mut self.sum) {
                *s *= shrink;
            }
            self.largest = largest;
            let mapped = map(a.op.feature_k, stored, largest);
            let k = a.key_features(&mapped, place);
            let v = a.value_row(sizes, at);
            match &a.op.rule {
                UpdateRule::Linear => add(&mut self.matrix, &k, v),
                UpdateRule::Delta { .. } => {
                    let p = a.read.map_or(&k[..], |read| a.key_row(sizes, read, at));
                    let held = read(&self.matrix, p, sizes.value_dim);
                    let row =
                        (batch * sizes.state_heads + head) * sizes.tokens * sizes.updates + update;
                    let beta = |e: usize| match (a.beta, a.op.beta()) {
                        (Some(beta), Some(layout)) if layout.rank() == 4 => {
                            beta[row * sizes.value_dim + e]
                        }
                        (Some(beta), _) => beta[row],
                        _ => 1.0,
                    };
                    let u: Vec<f64> = (v.iter().zip(&held).enumerate())
                        .map(|(e, (v, held))| beta(e) * (v - held))
                        .collect();
                    add(&mut self.matrix, &k, &u);
                }
                UpdateRule::LowRank { .. } => {
                    let [from, to] =
                        [a.read, a.write].map(|all| a.key_row(sizes, all.unwrap_or(&[]), at));
                    let held = read(&before, from, sizes.value_dim);
                    add(&mut self.matrix, &k, v);
                    add(&mut self.matrix, to, &held);
                }
            }
            for (z, k) in self.sum.iter_mut().zip(&k) {
                *z += k;
            }
            if low_rank {
                before.clone_from(&self.matrix);
            }
        }
    }

    fn output(
        &self,
        a: &LinearAttentionInputs<'_>,
        sizes: &Sizes,
        q: &[f64],
        place: usize,
    ) -> Vec<f64> {
        let features = a.query_features(q, place);
        let by = a.denominator(dot(&features, &self.sum), || features.iter().sum());
        let out = read(&self.matrix, &features, sizes.value_dim);
        out.into_iter().map(|x| divided(x, by)).collect()
    }
}

/// Token by token: decay, update, output. Tokens that no sequence holds give 0.
pub fn linear_attention(a: &LinearAttentionInputs<'_>) -> LinearAttentionOutputs {
    let sizes = a.sizes();
    let mut out = LinearAttentionOutputs {
        o: vec![0.0; sizes.batch * sizes.o_heads * sizes.seq * sizes.value_dim],
        ..LinearAttentionOutputs::default()
    };
    for sequence in a.sequences(&sizes) {
        for head in 0..sizes.state_heads {
            let number = sequence.number * sizes.state_heads + head;
            let mut state = State::initial(a, &sizes, number);
            let mut emit = |state: &State, place: usize| {
                let token = sequence.queries.start + place;
                for [q_head, o_head] in a.readers(&sizes, head) {
                    let q = a.query_row(&sizes, [sequence.batch, q_head, token]);
                    let mut o = state.output(a, &sizes, &q, place);
                    let own = [sequence.batch, head, token];
                    let bonus = a.bonus(&sizes, own, &q, &sequence);
                    if bonus != 0.0 {
                        let v = a.value_row(&sizes, own);
                        o.iter_mut().zip(v).for_each(|(o, v)| *o += bonus * v);
                    }
                    let row = (sequence.batch * sizes.o_heads + o_head) * sizes.seq + token;
                    out.o[row * sizes.value_dim..][..sizes.value_dim].copy_from_slice(&o);
                }
            };
            // Queries in the order of the states that they read.
            let keys = sequence.keys.len();
            let mut next = 0;
            let mut queries: Vec<usize> = (0..sequence.queries.len()).collect();
            queries.sort_by_key(|&place| a.seen(place, keys));
            for place in queries {
                while next < a.seen(place, keys) {
                    let token = sequence.keys.start + next;
                    state.step(a, &sizes, [sequence.batch, head, token], next);
                    next += 1;
                }
                emit(&state, place);
            }
            for place in next..keys {
                let token = sequence.keys.start + place;
                state.step(a, &sizes, [sequence.batch, head, token], place);
            }
            out.state.extend(state.matrix);
            if a.op.normaliser.is_some() {
                out.sum.extend(state.sum);
                if a.safe() {
                    out.sum.push(state.largest);
                }
            }
        }
    }
    add_local(a, &sizes, &mut out.o);
    out
}

/// The output as a sum over pairs: `o_i = Σ_j w_ij v_j`, where `w_ij` is what the pair counts times the decays of the
/// tokens between. For [`UpdateRule::Linear`]; none for other rules.
pub fn linear_attention_quadratic(a: &LinearAttentionInputs<'_>) -> Option<Vec<f64>> {
    if a.op.rule != UpdateRule::Linear {
        return None;
    }
    let sizes = a.sizes();
    let mut out = vec![0.0; sizes.batch * sizes.o_heads * sizes.seq * sizes.value_dim];
    for sequence in a.sequences(&sizes) {
        for head in 0..sizes.state_heads {
            for [q_head, o_head] in a.readers(&sizes, head) {
                for (place, token) in sequence.queries.clone().enumerate() {
                    let q = a.query_row(&sizes, [sequence.batch, q_head, token]);
                    let o = pairs(a, &sizes, &sequence, head, (place, &q));
                    let row = (sequence.batch * sizes.o_heads + o_head) * sizes.seq + token;
                    out[row * sizes.value_dim..][..sizes.value_dim].copy_from_slice(&o);
                }
            }
        }
    }
    add_local(a, &sizes, &mut out);
    Some(out)
}

/// Mixes the attention inside groups into an output.
fn add_local(a: &LinearAttentionInputs<'_>, sizes: &Sizes, o: &mut [f64]) {
    let Some(local) = &a.op.local else {
        return;
    };
    let [Real(of_linear), Real(of_local)] = local.mix;
    o.iter_mut().for_each(|o| *o *= f64::from(of_linear));
    let (q, k) = (a.local_q.unwrap_or(a.q), a.local_k.unwrap_or(a.k));
    let width = local
        .q
        .as_ref()
        .map_or(sizes.key_dim, |q| dims(q)[3] as usize);
    let scale = match local.scale {
        Some(Real(scale)) => scale.into(),
        None => 1.0 / (width as f64).sqrt(),
    };
    let tokens = local.tokens as usize;
    for sequence in a.sequences(sizes) {
        for (head, place) in (0..sizes.o_heads)
            .flat_map(|head| (0..sequence.queries.len()).map(move |place| (head, place)))
        {
            let batch = sequence.batch;
            let state_head = head / (sizes.o_heads / sizes.state_heads);
            let row_of = |heads: usize, token: usize| {
                (batch * heads + head / (sizes.o_heads / heads)) * sizes.seq + token
            };
            let query = row_of(sizes.q_heads, sequence.queries.start + place);
            let start = place / tokens * tokens;
            let end = match a.op.reach {
                Reach::All => start + tokens,
                _ => place + 1,
            };
            let seen = start..end.min(sequence.keys.len());
            let scores: Vec<f64> = (seen.clone())
                .map(|j| {
                    let key = row_of(sizes.k_heads, sequence.keys.start + j);
                    let bias = a.bias.map_or(0.0, |bias| {
                        let heads = bias.len() / (tokens * tokens);
                        let row = head % heads * tokens + place - start;
                        bias[row * tokens + j - start]
                    });
                    scale * dot(&q[query * width..][..width], &k[key * width..][..width]) + bias
                })
                .collect();
            let weights: Vec<f64> = match local.weights {
                LocalWeights::Softmax => {
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                    scores.iter().map(|s| (s - most).exp() / total).collect()
                }
                LocalWeights::SquaredRelu => scores.iter().map(|s| s.max(0.0).powi(2)).collect(),
                LocalWeights::Laplace => (scores.iter())
                    .map(|s| {
                        let deviation = (4.0 * std::f64::consts::PI).recip().sqrt();
                        let from_mean = (s - 0.5f64.sqrt()) / (deviation * 2f64.sqrt());
                        (1.0 + erf(from_mean)) / 2.0
                    })
                    .collect(),
            };
            let row = row_of(sizes.o_heads, sequence.queries.start + place);
            let o = &mut o[row * sizes.value_dim..][..sizes.value_dim];
            for (j, weight) in seen.zip(weights) {
                let v = a.value_row(sizes, [batch, state_head, sequence.keys.start + j]);
                for (o, v) in o.iter_mut().zip(v) {
                    *o += f64::from(of_local) * weight * v;
                }
            }
        }
    }
}

/// The error function by its series, to 1e-9; past 4, where it is 1 to 2e-8, by that.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let mut power = x;
    let mut sum = x;
    for n in 1..100 {
        power *= -x * x / f64::from(n);
        sum += power / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// The decays of the tokens past each of those that a state holds, multiplied.
struct Tail {
    /// `[tokens + 1, width]`
    factors: Vec<f64>,
    width: usize,
    /// Whether key channels, and value channels, have one of their own or share one.
    per: [bool; 2],
    shared: bool,
}

impl Tail {
    fn new(
        a: &LinearAttentionInputs<'_>,
        sizes: &Sizes,
        [batch, head]: [usize; 2],
        tokens: Range<usize>,
    ) -> Self {
        let per = [
            matches!(a.op.decay, Decay::Key(_)),
            matches!(a.op.decay, Decay::Value(_)),
        ];
        let width = match per {
            [true, _] => sizes.key_dim,
            [_, true] => sizes.value_dim,
            _ => 1,
        };
        let mut sums = vec![0.0; width];
        let mut rows = vec![sums.clone()];
        for token in tokens.rev() {
            for (channel, sum) in sums.iter_mut().enumerate() {
                *sum += a.log_decay(sizes, [batch, head, token], [channel; 2]);
            }
            rows.push(sums.clone());
        }
        rows.reverse();
        Self {
            factors: rows.concat().iter().map(|g| g.exp()).collect(),
            width,
            per,
            shared: per == [false; 2],
        }
    }

    /// The factor on a key channel where the state holds what came before token `j`.
    fn keys(&self, j: usize, channel: usize) -> f64 {
        if self.per[0] {
            self.factors[j * self.width + channel]
        } else {
            1.0
        }
    }

    /// The factor on a value channel, or on all of the state.
    fn values(&self, j: usize, channel: usize) -> f64 {
        match (self.per[1], self.shared) {
            (true, _) => self.factors[j * self.width + channel],
            (_, true) => self.factors[j],
            _ => 1.0,
        }
    }
}

/// A row of the output, from every pair of the query.
fn pairs(
    a: &LinearAttentionInputs<'_>,
    sizes: &Sizes,
    sequence: &Sequence,
    head: usize,
    (place, q): (usize, &[f64]),
) -> Vec<f64> {
    let batch = sequence.batch;
    let start = sequence.keys.start;
    let seen = a.seen(place, sequence.keys.len());
    let tail = Tail::new(a, sizes, [batch, head], start..start + seen);
    let number = sequence.number * sizes.state_heads + head;
    let initial = State::initial(a, sizes, number);
    let largest = (start * sizes.updates..(start + seen) * sizes.updates)
        .map(|update| a.largest(a.op.feature_k, a.key_row(sizes, a.k, [batch, head, update])))
        .fold(initial.largest, f64::max);

    let mut o = vec![0.0; sizes.value_dim];
    let mut den = 0.0;
    // The initial state, a row per feature, as though it were a key each.
    let features = a.query_features(q, place);
    let shrink = (initial.largest - largest).exp();
    for (c, feature) in features.iter().enumerate() {
        let channel = c % sizes.key_dim;
        let feature = shrink * feature * tail.keys(0, channel);
        den += feature * initial.sum[c] * tail.values(0, 0);
        for (e, o) in o.iter_mut().enumerate() {
            *o += feature * initial.matrix[c * sizes.value_dim + e] * tail.values(0, e);
        }
    }
    for j in 0..seen {
        for update in 0..sizes.updates {
            let at = [batch, head, (start + j) * sizes.updates + update];
            let k = map(a.op.feature_k, a.key_row(sizes, a.k, at), largest);
            let products = q.iter().zip(&k).enumerate();
            let decayed = products.map(|(c, (q, k))| q * k * tail.keys(j + 1, c));
            let s = a.scale() * decayed.sum::<f64>();
            let counts = match a.op.similarity {
                Similarity::Product => s,
                Similarity::Taylor => 1.0 + s + s * s / 2.0,
                Similarity::Square => s * s,
                Similarity::Cosine { length } => {
                    let apart = place as f64 - j as f64;
                    s * (std::f64::consts::PI * apart / (2.0 * length as f64)).cos()
                }
            };
            den += counts * tail.values(j + 1, 0);
            let v = a.value_row(sizes, at);
            for (e, o) in o.iter_mut().enumerate() {
                *o += counts * tail.values(j + 1, e) * v[e];
            }
        }
    }
    let by = a.denominator(den, || features.iter().sum());
    let own = [batch, head, sequence.queries.start + place];
    let bonus = a.bonus(sizes, own, q, sequence);
    (o.iter().enumerate())
        .map(|(e, o)| {
            let own = if bonus == 0.0 {
                0.0
            } else {
                bonus * a.value_row(sizes, own)[e]
            };
            divided(*o, by) + own
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, Normaliser, Op, reference::noise};

    /// Random inputs of an op.
    fn wide(seed: u64, count: u64) -> Vec<f64> {
        noise(seed, count as usize)
            .iter()
            .map(|&x| x.into())
            .collect()
    }

    fn close(got: &[f64], want: &[f64], label: &str) {
        assert_eq!(got.len(), want.len(), "{label}");
        let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt();
        for (at, (got, want)) in got.iter().zip(want).enumerate() {
            let difference = (got - want).abs();
            assert!(
                difference <= 1e-11 * rms.max(1e-30),
                "{label}: {got} and {want} at {at}"
            );
        }
    }

    /// Both forms, with noise in every tensor that the op has; decays are 0, 1, strong and weak.
    fn both(op: &LinearAttention, cu: Option<&[usize]>, lens: Option<&[usize]>) {
        let sum = |layout: &Option<Layout>| layout.as_ref().map(Layout::elements);
        let [q, k, v] = [(1, &op.q), (2, &op.k), (3, &op.v)].map(|(n, x)| wide(n, x.elements()));
        let g: Vec<f64> = wide(4, op.decay.layout().map_or(1, Layout::elements))
            .iter()
            .enumerate()
            .map(|(at, x)| match at % 7 {
                0 => -1000.0,
                1 => 0.0,
                2 => -20.0 * x.abs(),
                _ => -0.1 * x.abs(),
            })
            .collect();
        let u = op.bonus.as_ref().map(|u| wide(5, u.elements()));
        let state = sum(&op.initial_state).map(|count| wide(6, count));
        let z: Option<Vec<f64>> =
            sum(&op.initial_sum).map(|count| wide(7, count).iter().map(|x| x.abs()).collect());
        let a = LinearAttentionInputs {
            decay: op.decay.layout().map(|_| &g[..]),
            bonus: u.as_deref(),
            initial_state: state.as_deref(),
            initial_sum: z.as_deref(),
            kv_len: lens,
            cu_seqlens: cu,
            ..LinearAttentionInputs::of(op, &q, &k, &v)
        };
        let out = linear_attention(&a);
        let pairs = linear_attention_quadratic(&a);
        assert!(pairs.is_some());
        close(&out.o, &pairs.unwrap_or_default(), &format!("{op:?}"));
        assert!(out.o.iter().any(|x| x.abs() > 1e-3), "{op:?}");
    }

    fn small([q, k, s]: [u64; 3], seq: u64) -> LinearAttention {
        LinearAttention::new(
            Layout::f32([2, q, seq, 3]),
            Layout::f32([2, k, seq, 3]),
            Layout::f32([2, s, seq, 4]),
        )
    }

    fn reaches() -> [Reach; 4] {
        [
            Reach::Causal,
            Reach::Before,
            Reach::BeforeBucket { tokens: 4 },
            Reach::All,
        ]
    }

    fn decays() -> [Decay; 5] {
        [
            Decay::None,
            Decay::Head(Layout::f32([2])),
            Decay::Token(Layout::f32([2, 2, 11])),
            Decay::Key(Layout::f32([2, 2, 11, 3])),
            Decay::Value(Layout::f32([2, 2, 11, 4])),
        ]
    }

    #[test]
    fn the_recurrence_is_the_sum_over_pairs() {
        for reach in reaches() {
            for decay in decays() {
                for similarity in [
                    Similarity::Product,
                    Similarity::Taylor,
                    Similarity::Square,
                    Similarity::Cosine { length: 20 },
                ] {
                    for heads in [[2, 2, 2], [4, 1, 2], [1, 2, 2]] {
                        let mut op = small(heads, 11)
                            .reach(reach)
                            .decay(decay.clone())
                            .similarity(similarity);
                        if Op::from(op.clone()).check().is_err() {
                            continue;
                        }
                        both(&op, None, Some(&[11, 6]));
                        if matches!(similarity, Similarity::Product | Similarity::Cosine { .. }) {
                            op = op.with_final_state();
                            op.initial_state = op.final_state.clone();
                            both(&op, None, Some(&[0, 99]));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn normalisers_and_features() {
        let maps = [
            FeatureMap::EluPlusOne,
            FeatureMap::Relu,
            FeatureMap::SquaredRelu,
            FeatureMap::Softmax,
            FeatureMap::Sigmoid,
            FeatureMap::Silu,
            FeatureMap::Exp { factor: Real(3.0) },
        ];
        for reach in reaches() {
            for decay in decays() {
                for feature in maps {
                    for guard in [Guard::Add, Guard::AtLeast, Guard::Keys] {
                        let safe = matches!(feature, FeatureMap::Exp { .. });
                        let normaliser = Normaliser {
                            eps: Real(0.1),
                            guard,
                            safe,
                        };
                        let mut op = small([2, 1, 2], 11)
                            .reach(reach)
                            .decay(decay.clone())
                            .features(feature, feature)
                            .normaliser(normaliser);
                        if Op::from(op.clone()).check().is_err() {
                            continue;
                        }
                        both(&op, None, None);
                        op = op.with_final_state();
                        op.initial_state = op.final_state.clone();
                        op.initial_sum = op.final_sum.clone();
                        both(&op, None, Some(&[11, 5]));
                    }
                }
            }
        }
    }

    #[test]
    fn bonuses_and_packed_sequences() {
        let bonus = small([4, 2, 2], 11)
            .reach(Reach::Before)
            .bonus(Layout::f32([2, 3]));
        both(&bonus, None, Some(&[11, 4]));
        for reach in reaches() {
            let mut op = LinearAttention::new(
                Layout::f32([1, 2, 11, 3]),
                Layout::f32([1, 1, 11, 3]),
                Layout::f32([1, 1, 11, 2]),
            )
            .reach(reach)
            .similarity(Similarity::Cosine { length: 11 })
            .normalised(0.5);
            op.feature_q = FeatureMap::Sigmoid;
            op.feature_k = FeatureMap::Sigmoid;
            // One token, none, five, three; two tokens of no sequence.
            op = op
                .packed(Layout::new(crate::DType::U32, [5]))
                .with_final_state();
            both(&op, Some(&[0, 1, 1, 6, 9]), None);
            op.initial_state = op.final_state.clone();
            op.initial_sum = op.final_sum.clone();
            both(&op, Some(&[0, 1, 1, 6, 9]), None);
        }
    }

    /// A state that is carried from call to call gives what one call gives, for every rule.
    #[test]
    fn calls_in_turn_are_one_call() {
        let [tokens, first] = [9, 4];
        let keys = Layout::f32([1, 1, 2 * tokens, 3]);
        for rule in [
            UpdateRule::Linear,
            UpdateRule::Delta {
                beta: Some(Layout::f32([1, 1, 2 * tokens])),
                read: None,
            },
            UpdateRule::Delta {
                beta: Some(Layout::f32([1, 1, 2 * tokens, 2])),
                read: Some(keys.clone()),
            },
            UpdateRule::LowRank {
                read: keys.clone(),
                write: keys.clone(),
            },
        ] {
            let part = |from: u64, to: u64, state: Option<&[f64]>| {
                let cut = |all: Vec<f64>, per: u64| {
                    all[(from * per) as usize..(to * per) as usize].to_vec()
                };
                let len = to - from;
                let keys = Layout::f32([1, 1, 2 * len, 3]);
                let values = Layout::f32([1, 1, 2 * len, 2]);
                let mut op = LinearAttention::new(Layout::f32([1, 1, len, 3]), keys, values)
                    .decay(Decay::Token(Layout::f32([1, 1, len])))
                    .rule(rule.clone())
                    .updates_per_token(2);
                op.scale = Some(Real(0.7));
                let wide_beta = op.beta().is_some_and(|beta| beta.rank() == 4);
                let q = cut(wide(1, 3 * tokens), 3);
                let k = cut(wide(2, 6 * tokens), 6);
                let v = cut(wide(3, 4 * tokens), 4);
                let g: Vec<f64> = wide(4, tokens).iter().map(|x| -x.abs()).collect();
                let (beta, read, write) = (
                    wide(5, 4 * tokens),
                    wide(6, 6 * tokens),
                    wide(7, 6 * tokens),
                );
                let beta = cut(beta, if wide_beta { 4 } else { 2 });
                linear_attention(&LinearAttentionInputs {
                    decay: Some(&cut(g, 1)),
                    beta: Some(&beta),
                    read: (rule != UpdateRule::Linear
                        && !matches!(rule, UpdateRule::Delta { read: None, .. }))
                    .then_some(&cut(read, 6)[..]),
                    write: Some(&cut(write, 6)),
                    initial_state: state,
                    ..LinearAttentionInputs::of(&op, &q, &k, &v)
                })
            };
            let whole = part(0, tokens, None);
            let start = part(0, first, None);
            let rest = part(first, tokens, Some(&start.state));
            close(&[start.o, rest.o].concat(), &whole.o, &format!("{rule:?}"));
            close(&rest.state, &whole.state, &format!("{rule:?}"));
        }
    }

    /// Rules and updates by hand: one channel, two tokens.
    #[test]
    fn rules_by_hand() {
        let scalar = |updates: u64| {
            let keys = Layout::f32([1, 1, updates, 1]);
            LinearAttention::new(Layout::f32([1, 1, 1, 1]), keys.clone(), keys)
                .scale(1.0)
                .decay(Decay::Head(Layout::f32([1])))
                .updates_per_token(updates)
        };
        let half = [-(2f64.ln())];
        let run = |op: &LinearAttention, beta: Option<&[f64]>, extra: Option<[&[f64]; 2]>| {
            let given = LinearAttentionInputs::of(op, &[3.0], &[2.0, 5.0], &[7.0, 11.0]);
            linear_attention(&LinearAttentionInputs {
                decay: Some(&half),
                beta,
                read: extra.map(|[read, _]| read),
                write: extra.map(|[_, write]| write),
                initial_state: Some(&[8.0]),
                ..given
            })
            .state[0]
        };
        // 8 is halved, once.
        assert!((run(&scalar(2), None, None) - (4.0 + 14.0 + 55.0)).abs() < 1e-12);
        let delta = scalar(2).rule(UpdateRule::Delta {
            beta: Some(Layout::f32([1, 1, 2])),
            read: None,
        });
        // u = 0.5 (7 - 4 * 2), then 0.25 (11 - 3 * 5).
        let want = 4.0 + 2.0 * 0.5 * (7.0 - 8.0);
        let want = want + 5.0 * 0.25 * (11.0 - want * 5.0);
        assert!((run(&delta, Some(&[0.5, 0.25]), None) - want).abs() < 1e-12);
        let low_rank = scalar(1).rule(UpdateRule::LowRank {
            read: Layout::f32([1; 4]),
            write: Layout::f32([1; 4]),
        });
        // a reads the 8 before it is halved.
        let want = 4.0 + 14.0 + 0.5 * (0.25 * 8.0);
        assert!((run(&low_rank, None, Some([&[0.25], &[0.5]])) - want).abs() < 1e-12);
    }
}
