//! Linear attention: what a case's tensors are to the op, and the families that are one call of it with a feature map
//! or a decay per head.

use super::{
    case::{Array, Values},
    problem::{Input, Operand, Problem, Reader, made},
};
use crate::{
    DType, Decay, FeatureMap, Guard, Layout, LinearAttention, Normaliser, Reach, Real, Similarity,
    UpdateRule,
    ops::{Slot, dims},
};

/// A linear attention in the making.
pub(super) struct LinearProblem {
    pub op: LinearAttention,
    inputs: Vec<(Slot, Input)>,
}

impl LinearProblem {
    /// Linear attention without a decay, of the default scale.
    pub fn new(q: Operand, k: Operand, v: Operand) -> Result<Self, String> {
        for (name, operand) in [("q", &q), ("k", &k), ("v", &v)] {
            let check = operand.layout.check(name);
            check.map_err(|error| error.to_string())?;
            if operand.layout.rank() != 4 {
                return Err(format!("{name} has not four axes"));
            }
        }
        let op = LinearAttention::new(q.layout, k.layout, v.layout);
        made(&op.o.shape)?;
        Ok(Self {
            op,
            inputs: vec![(Slot::Q, q.input), (Slot::K, k.input), (Slot::V, v.input)],
        })
    }

    /// That of the case's tensors `q`, `k` and `v`, of the case's scale.
    pub fn of(reader: &mut Reader<'_>) -> Result<Self, String> {
        let mut problem = Self::new(
            Operand::whole(reader.input("q")?, DType::F32),
            Operand::whole(reader.input("k")?, DType::F32),
            Operand::whole(reader.input("v")?, DType::F32),
        )?;
        problem.op.scale = reader.case.scale.map(Real);
        Ok(problem)
    }

    /// Takes an input, and returns its layout.
    fn give(&mut self, slot: Slot, operand: Operand) -> Layout {
        self.inputs.push((slot, operand.input));
        operand.layout
    }

    fn take(&mut self, reader: &mut Reader<'_>, slot: Slot, name: &str) -> Result<Layout, String> {
        let operand = Operand::whole(reader.input(name)?, DType::F32);
        Ok(self.give(slot, operand))
    }

    /// A decay, of the kind that `kind` makes.
    pub fn decay(&mut self, kind: fn(Layout) -> Decay, operand: Operand) {
        self.op.decay = kind(self.give(Slot::Decay, operand));
    }

    /// The same from a tensor of the case.
    pub fn decay_of(
        &mut self,
        reader: &mut Reader<'_>,
        kind: fn(Layout) -> Decay,
        name: &str,
    ) -> Result<(), String> {
        self.op.decay = kind(self.take(reader, Slot::Decay, name)?);
        Ok(())
    }

    /// A decay per head.
    pub fn head_decays(&mut self, decays: Vec<f32>) {
        let layout = Layout::f32([decays.len() as u64]);
        let input = Input::Given(Values::Real(decays));
        self.decay(Decay::Head, Operand { input, layout });
    }

    /// The delta rule.
    pub fn delta(&mut self, beta: Operand, read: Option<Operand>) {
        self.op.rule = UpdateRule::Delta {
            beta: Some(self.give(Slot::Beta, beta)),
            read: read.map(|read| self.give(Slot::Read, read)),
        };
    }

    /// The low-rank rule, from tensors of the case.
    pub fn low_rank(
        &mut self,
        reader: &mut Reader<'_>,
        read: &str,
        write: &str,
    ) -> Result<(), String> {
        self.op.rule = UpdateRule::LowRank {
            read: self.take(reader, Slot::Read, read)?,
            write: self.take(reader, Slot::Write, write)?,
        };
        Ok(())
    }

    /// Factors on the own token, for queries that see those before it.
    pub fn bonus(&mut self, reader: &mut Reader<'_>, name: &str) -> Result<(), String> {
        self.op.reach = Reach::Before;
        self.op.bonus = Some(self.take(reader, Slot::Bonus, name)?);
        Ok(())
    }

    pub fn kv_len(&mut self, lengths: Vec<u32>) {
        self.op.kv_len = Some(Layout::new(DType::U32, [lengths.len() as u64]));
        let lengths = lengths.into_iter().map(i64::from).collect();
        self.inputs
            .push((Slot::KvLen, Input::Given(Values::Integer(lengths))));
    }

    pub fn initial_state(&mut self, state: Operand) {
        self.op.initial_state = Some(self.give(Slot::InitialState, state));
    }

    /// A sum of keys, of any shape that holds one per head.
    pub fn initial_sum(&mut self, sum: &Array) {
        let [batch, heads, ..] = dims(&self.op.v);
        let layout = Layout::f32([batch, heads, dims(&self.op.k)[3]]);
        let input = Input::Given(sum.values.clone());
        self.op.initial_sum = Some(self.give(Slot::InitialSum, Operand { input, layout }));
    }

    /// The final state, stored as this type.
    pub fn final_state(&mut self, dtype: DType) {
        self.op = self.op.clone().with_final_state();
        for layout in [&mut self.op.final_state, &mut self.op.final_sum] {
            *layout = (layout.take()).map(|layout| Layout::new(dtype, layout.shape));
        }
    }

    /// Done; nothing is compared yet.
    pub fn done(self) -> Problem {
        let mut problem = Problem::new(self.op);
        if let Some(call) = problem.calls.last_mut() {
            call.inputs = self.inputs;
        }
        problem
    }

    /// Done; the output is the case's tensor `o`.
    pub fn expect(self) -> Problem {
        self.done().expect(Slot::O, "o")
    }
}

/// Lightning attention: slopes of the heads, where there is a decay.
pub(super) fn lightning(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = LinearProblem::of(reader)?;
    if reader.flag("decay") {
        let (slopes, [heads]) = reader.shaped("slopes")?;
        let made = LinearAttention::lightning_decays(heads, None);
        // Some cases have slopes of their own.
        let decays = if same(&made, slopes) {
            made
        } else {
            slopes.iter().map(|slope| -slope).collect()
        };
        problem.head_decays(decays);
    }
    Ok(problem.expect())
}

/// That of MiniMax, whose slopes depend on the layer; its state too, after all tokens and after the prompt.
pub(super) fn minimax(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = LinearProblem::of(reader)?;
    // No scale, whatever the default is.
    problem.op.scale = Some(Real(1.0));
    let (slopes, [heads]) = reader.shaped("slopes")?;
    let layer = (reader.size("layer_idx")?, reader.size("num_hidden_layers")?);
    let decays = LinearAttention::lightning_decays(heads, Some(layer));
    if !same(&decays, slopes) {
        return Err(format!("slopes {slopes:?} where layers have {decays:?}"));
    }
    let (prompt, rest) = (reader.size("prefill")?, reader.size("decode")?);
    if rest != 0 || prompt != dims(&problem.op.q)[2] {
        return Err(format!(
            "a state after {prompt} tokens, of {rest} more: it takes a call of its own"
        ));
    }
    problem.head_decays(decays);
    problem.final_state(DType::F32);
    Ok(problem
        .expect()
        .expect(Slot::FinalState, "state_after_prefill")
        .expect(Slot::FinalState, "final_state"))
}

/// Whether decays are those of slopes, up to the last bits.
fn same(decays: &[f32], slopes: &[f32]) -> bool {
    let close = |(decay, slope): (&f32, &f32)| (decay + slope).abs() <= 1e-6 * slope.abs();
    decays.len() == slopes.len() && decays.iter().zip(slopes).all(close)
}

/// `elu(x) + 1` of queries and keys, which all see each other, up to lengths.
pub(super) fn elu(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = LinearProblem::of(reader)?;
    problem.op.scale = Some(Real(1.0));
    problem.op = problem
        .op
        .features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne)
        .reach(Reach::All)
        .normalised(epsilon(reader)?);
    if let Some(lengths) = reader.optional("key_lengths") {
        problem.kv_len(lengths.lengths()?);
    }
    Ok(problem.expect())
}

/// cosFormer: cosines of distances, over as many tokens as there are.
pub(super) fn cosformer(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = LinearProblem::of(reader)?;
    let length = dims(&problem.op.q)[2].max(dims(&problem.op.k)[2]);
    let reach = if reader.flag("causal") {
        Reach::Causal
    } else {
        Reach::All
    };
    problem.op.scale = Some(Real(1.0));
    problem.op = problem
        .op
        .features(FeatureMap::Relu, FeatureMap::Relu)
        .similarity(Similarity::Cosine { length })
        .reach(reach)
        .normaliser(at_least(epsilon(reader)?));
    Ok(problem.expect())
}

/// Softmax of queries, exponentials of keys, and the buckets before the query's own; buckets of one token hold it.
pub(super) fn bucketed(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = LinearProblem::of(reader)?;
    let reach = match reader.size("bucket")? {
        1 => Reach::Causal,
        tokens => Reach::BeforeBucket { tokens },
    };
    let exp = FeatureMap::Exp { factor: Real(1.0) };
    problem.op = problem
        .op
        .features(FeatureMap::Softmax, exp)
        .reach(reach)
        .normaliser(at_least(1e-3));
    Ok(problem.expect())
}

fn at_least(eps: f32) -> Normaliser {
    Normaliser {
        eps: Real(eps),
        guard: Guard::AtLeast,
        safe: false,
    }
}

fn epsilon(reader: &Reader<'_>) -> Result<f32, String> {
    let eps = reader.case.params["eps"].as_f64();
    Ok(eps.ok_or("params has no `eps`")? as f32)
}
