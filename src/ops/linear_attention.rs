//! Linear attention: attention as a recurrence over a state of constant size.

mod terms;

pub use terms::{
    Decay, FeatureMap, Guard, Local, LocalWeights, Normaliser, Reach, Similarity, UpdateRule,
};

use serde::{Deserialize, Serialize};

use super::{Args, Real, Slot, dims};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout, View},
};

/// Largest key and value dimension.
pub(crate) const MAX_DIM: u64 = 256;

/// Linear attention: `o = scale * φ(q) · S`, where the state `S`, a `key_dim x value_dim` matrix per batch entry and
/// head, takes in one token after the other; or, without decay and with [`UpdateRule::Linear`], the same as
/// `o_i = Σ_j (scale * φ(q_i) · φ(k_j)) v_j` over the tokens that [`Reach`] names. Time per token does not depend on
/// how many there are.
///
/// # Heads
///
/// There is a state per head of `v` (`state_heads`). `k` has as many heads, or fewer that divide them; `q` has a
/// multiple of them (grouped queries share a state) or a divisor. `o` has as many as `q` or `v`, whichever are more.
/// Head `h` of the more stands beside head `h / (more / fewer)` of the fewer.
///
/// # Order
///
/// Per token: the decay; the update; the output. So a token's own contribution is never decayed, and the first
/// token decays `initial_state`. With [`Reach::Before`], the output comes first, from the state before the decay.
///
/// # Numbers
///
/// Sums, products and exponentials are f32 whatever the storage. Inputs must be finite. Decays are never
/// divided by: a decay of exp(-inf) (any `g` below -87) clears the state. A number that is not finite stays
/// within its batch entry and head (its sequence, where several are packed).
///
/// Sources: Katharopoulos et al. (arXiv:2006.16236); Qin et al., Lightning Attention-2 (arXiv:2401.04658); Yang et
/// al., GLA (arXiv:2312.06635); operator LinearAttention of ONNX, opset 27.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearAttention {
    /// Queries, f32 or f16 `[batch, q_heads, seq, key_dim]`.
    pub q: Layout,
    /// Keys, `[batch, k_heads, updates, key_dim]`, where `updates` is `seq` (but see
    /// [`LinearAttention::updates_per_token`] and [`Reach::All`]).
    pub k: Layout,
    /// Values, `[batch, state_heads, updates, value_dim]`.
    pub v: Layout,
    /// Output, `[batch, max(q_heads, state_heads), seq, value_dim]`.
    pub o: Layout,
    /// Factor on `φ(q) · φ(k)`; `1 / sqrt(key_dim)` when absent.
    #[serde(default)]
    pub scale: Option<Real>,
    /// What is applied to queries.
    #[serde(default)]
    pub feature_q: FeatureMap,
    /// What is applied to keys.
    #[serde(default)]
    pub feature_k: FeatureMap,
    /// What a pair counts.
    #[serde(default)]
    pub similarity: Similarity,
    /// Factors on the state.
    #[serde(default)]
    pub decay: Decay,
    /// How a token changes the state.
    #[serde(default)]
    pub rule: UpdateRule,
    /// Which tokens a query's state holds.
    #[serde(default)]
    pub reach: Reach,
    /// Division by the sum of the keys.
    #[serde(default)]
    pub normaliser: Option<Normaliser>,
    /// `u`, f32 `[state_heads, key_dim]`, for [`Reach::Before`]: adds `(Σ_c scale φ(q)_c u_c φ(k)_c) v` of the query's
    /// own token (RWKV-6, arXiv:2404.05892). Not with a normaliser.
    #[serde(default)]
    pub bonus: Option<Layout>,
    /// Updates per token, each with a key, a value and a β of its own, one after the other: DeltaProduct
    /// (arXiv:2502.10297). A token's decay comes before its first update.
    #[serde(default = "one")]
    pub updates_per_token: u64,
    /// State before the first token, f32 or f16 `[batch, state_heads, key_dim, value_dim]`; 0 when absent. Batch
    /// counts sequences where they are packed.
    #[serde(default)]
    pub initial_state: Option<Layout>,
    /// State after the last token, of the same shape, when wanted.
    #[serde(default)]
    pub final_state: Option<Layout>,
    /// Sum of keys before the first token, `[batch, state_heads, key_dim]`, with a normaliser; the states' type.
    #[serde(default)]
    pub initial_sum: Option<Layout>,
    /// Sum of keys after the last token.
    #[serde(default)]
    pub final_sum: Option<Layout>,
    /// Whether the final state and sum take the place of the initial ones: one buffer and one layout for both.
    #[serde(default)]
    pub in_place: bool,
    /// Valid tokens per batch entry, u32 `[batch]`: tokens past them neither decay a state nor update it, and their
    /// queries see what is there as far as they reach. A number past the tokens counts as all of them.
    #[serde(default)]
    pub kv_len: Option<Layout>,
    /// Packed sequences: where each begins and, last, where the last one ends, u32 `[sequences + 1]`, rising from 0.
    /// Needs a batch of 1. Each sequence has a state of its own. Outputs of tokens past the last end are 0.
    #[serde(default)]
    pub cu_seqlens: Option<Layout>,
    /// Attention inside groups, beside this one.
    #[serde(default)]
    pub local: Option<Local>,
}

fn one() -> u64 {
    1
}

impl LinearAttention {
    /// Causal linear attention of `q`, `k` and `v` into a contiguous output, with no decay and no normaliser.
    ///
    /// Shapes are checked when the op is planned, so this takes any.
    pub fn new(q: Layout, k: Layout, v: Layout) -> Self {
        let axis = |layout: &Layout, axis: usize| layout.shape.get(axis).copied().unwrap_or(0);
        let shape = [
            axis(&q, 0),
            axis(&q, 1).max(axis(&v, 1)),
            axis(&q, 2),
            axis(&v, 3),
        ];
        Self {
            o: Layout::new(q.dtype, shape),
            q,
            k,
            v,
            scale: None,
            feature_q: FeatureMap::Identity,
            feature_k: FeatureMap::Identity,
            similarity: Similarity::Product,
            decay: Decay::None,
            rule: UpdateRule::Linear,
            reach: Reach::Causal,
            normaliser: None,
            bonus: None,
            updates_per_token: 1,
            initial_state: None,
            final_state: None,
            initial_sum: None,
            final_sum: None,
            in_place: false,
            kv_len: None,
            cu_seqlens: None,
            local: None,
        }
    }

    /// Sets the factor on `φ(q) · φ(k)`.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(Real(scale));
        self
    }

    /// Applies a map to queries and keys.
    #[must_use]
    pub fn features(mut self, q: FeatureMap, k: FeatureMap) -> Self {
        self.feature_q = q;
        self.feature_k = k;
        self
    }

    /// Sets what a pair counts.
    #[must_use]
    pub fn similarity(mut self, similarity: Similarity) -> Self {
        self.similarity = similarity;
        self
    }

    /// Sets the decay.
    #[must_use]
    pub fn decay(mut self, decay: Decay) -> Self {
        self.decay = decay;
        self
    }

    /// Sets the update rule.
    #[must_use]
    pub fn rule(mut self, rule: UpdateRule) -> Self {
        self.rule = rule;
        self
    }

    /// Sets which tokens a query's state holds.
    #[must_use]
    pub fn reach(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// Divides by the sum of keys, `den + eps`.
    #[must_use]
    pub fn normalised(self, eps: f32) -> Self {
        self.normaliser(Normaliser {
            eps: Real(eps),
            guard: Guard::Add,
            safe: false,
        })
    }

    /// Divides by the sum of keys.
    #[must_use]
    pub fn normaliser(mut self, normaliser: Normaliser) -> Self {
        self.normaliser = Some(normaliser);
        self
    }

    /// Writes the output to this layout.
    #[must_use]
    pub fn output(mut self, o: Layout) -> Self {
        self.o = o;
        self
    }

    /// Adds the own token with these factors ([`Reach::Before`]).
    #[must_use]
    pub fn bonus(mut self, bonus: Layout) -> Self {
        self.bonus = Some(bonus);
        self
    }

    /// Sets the number of updates per token.
    #[must_use]
    pub fn updates_per_token(mut self, updates: u64) -> Self {
        self.updates_per_token = updates;
        self
    }

    /// Starts from this state.
    #[must_use]
    pub fn initial_state(mut self, state: Layout) -> Self {
        self.initial_state = Some(state);
        self
    }

    /// Starts from this sum of keys.
    #[must_use]
    pub fn initial_sum(mut self, sum: Layout) -> Self {
        self.initial_sum = Some(sum);
        self
    }

    /// Asks for the state after the last token (and for the sum of keys, with a normaliser), in contiguous f32
    /// tensors.
    #[must_use]
    pub fn with_final_state(mut self) -> Self {
        self.final_state = Some(Layout::f32(self.state_shape()));
        self.final_sum = self.normaliser.map(|_| Layout::f32(self.sum_shape()));
        self
    }

    /// Carries the state (and the sum of keys, with a normaliser) on from call to call in contiguous f32 tensors,
    /// which are read and overwritten.
    #[must_use]
    pub fn carried_state(mut self) -> Self {
        self = self.with_final_state();
        self.initial_state = self.final_state.clone();
        self.initial_sum = self.final_sum.clone();
        self.in_place = true;
        self
    }

    /// Sets the valid tokens per batch entry.
    #[must_use]
    pub fn kv_len(mut self, kv_len: Layout) -> Self {
        self.kv_len = Some(kv_len);
        self
    }

    /// Sets where packed sequences begin and end.
    #[must_use]
    pub fn packed(mut self, cu_seqlens: Layout) -> Self {
        self.cu_seqlens = Some(cu_seqlens);
        self
    }

    /// Adds attention inside groups.
    #[must_use]
    pub fn local(mut self, local: Local) -> Self {
        self.local = Some(local);
        self
    }

    /// The factors `[α, β]` of linear log-normal attention, for [`FeatureMap::Exp`] of queries and keys, from the
    /// (unbiased) standard deviations of all queries and of all keys: those with which the logarithms of the weights
    /// vary as those of softmax attention do. `a` and `b` are those of the paper's fit, to a model's
    /// number of channels. Nahshan et al. (arXiv:2311.13541).
    ///
    /// # Errors
    /// [`Error::Invalid`] where they give no positive finite factors.
    pub fn log_normal_factors(
        deviation_q: f64,
        deviation_k: f64,
        (a, b): (f64, f64),
    ) -> Result<[f32; 2]> {
        let deviation = (((deviation_q * deviation_k).powi(2) - b) / (2.0 * a)).sqrt();
        let factors = [deviation / deviation_q, deviation / deviation_k].map(|x| x as f32);
        if factors.iter().all(|x| x.is_finite() && *x > 0.0) {
            Ok(factors)
        } else {
            Err(Error::invalid(
                "deviation_q",
                format!("deviations {deviation_q} and {deviation_k} with a {a} and b {b}"),
                "give positive deviations, a above 0 and b below their squared product",
            ))
        }
    }

    /// The factor on `φ(q) · φ(k)` that holds.
    pub fn effective_scale(&self) -> f32 {
        match self.scale {
            Some(Real(scale)) => scale,
            None => 1.0 / (*self.q.shape.last().unwrap_or(&1) as f32).sqrt(),
        }
    }

    /// Decays of lightning attention, `-slope`, for [`Decay::Head`]: slopes are those of ALiBi, 2^(-8(h+1)/heads) for
    /// a power of two, times `1 - layer / (layers - 1 + 1e-5) + 1e-5` where a layer and the number of layers are given
    /// (MiniMax-01).
    pub fn lightning_decays(heads: usize, layer: Option<(u64, u64)>) -> Vec<f32> {
        let factor = layer.map_or(1.0, |(layer, layers)| {
            1.0 - layer as f64 / (layers as f64 - 1.0 + 1e-5) + 1e-5
        });
        super::presets::alibi_slopes(heads)
            .into_iter()
            .map(|slope| (-f64::from(slope) * factor) as f32)
            .collect()
    }

    /// Decays of RetNet (arXiv:2307.08621), `ln(1 - 2^(-5-h))`, for [`Decay::Head`].
    pub fn retention_decays(heads: usize) -> Vec<f32> {
        (0..heads)
            .map(|head| (-(-5.0 - head as f64).exp2()).ln_1p() as f32)
            .collect()
    }

    /// Checks decays on the host: that none of them makes a state grow.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the first that is above 0 or not a number.
    pub fn check_decays(decays: &[f32]) -> Result<()> {
        match decays.iter().position(|&g| g.is_nan() || g > 0.0) {
            None => Ok(()),
            Some(place) => Err(Error::invalid(
                "decay",
                format!("{} at {place}", decays[place]),
                "give natural logarithms of the factors, 0 or less",
            )),
        }
    }

    /// Checks the delta rule's β on the host: from 0 to 1, or to 2 where a state may have negative eigenvalues
    /// (arXiv:2411.12537).
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the first that is out of range.
    pub fn check_betas(betas: &[f32], negative_eigenvalues: bool) -> Result<()> {
        let most = if negative_eigenvalues { 2.0 } else { 1.0 };
        match betas.iter().position(|beta| !(0.0..=most).contains(beta)) {
            None => Ok(()),
            Some(place) => Err(Error::invalid(
                "beta",
                format!("{} at {place}", betas[place]),
                format!("give numbers from 0 to {most}"),
            )),
        }
    }

    /// Rows of a state.
    pub(crate) fn state_rows(&self) -> u64 {
        let [.., key_dim] = dims(&self.k);
        match self.similarity {
            Similarity::Cosine { .. } => key_dim.saturating_mul(2),
            _ => key_dim,
        }
    }

    /// Batch entries, or packed sequences: how many states each head has.
    pub(crate) fn sequences(&self) -> u64 {
        match &self.cu_seqlens {
            Some(cu) => cu.shape.first().map_or(1, |len| len.saturating_sub(1)),
            None => self.q.shape.first().copied().unwrap_or(0),
        }
    }

    fn state_shape(&self) -> [u64; 4] {
        let [_, heads, _, value_dim] = dims(&self.v);
        [self.sequences(), heads, self.state_rows(), value_dim]
    }

    fn sum_shape(&self) -> [u64; 3] {
        let [_, heads, ..] = dims(&self.v);
        let safe = self.normaliser.is_some_and(|normaliser| normaliser.safe);
        [
            self.sequences(),
            heads,
            self.state_rows().saturating_add(safe.into()),
        ]
    }

    pub(super) fn check(&self) -> Result<()> {
        self.check_tensors()?;
        self.check_heads()?;
        self.check_shapes()?;
        self.check_states()?;
        self.check_terms()?;
        self.check_local()?;
        if !self.effective_scale().is_finite() {
            return Err(Error::invalid(
                "scale",
                format!("{} is not finite", self.effective_scale()),
                "give a finite number",
            ));
        }
        self.o.check_output("o")
    }

    fn check_local(&self) -> Result<()> {
        let Some(local) = &self.local else {
            return Ok(());
        };
        let [_, _, seq, key_dim] = dims(&self.q);
        let width = |own: &Option<Layout>| own.as_ref().map_or(key_dim, |own| dims(own)[3]);
        let fail = |what: &str, found: String, remedy: &str| {
            Err(Error::invalid(format!("local.{what}"), found, remedy))
        };
        if local.tokens == 0 {
            return fail("tokens", "0".into(), "give at least one token per group");
        }
        if width(&local.q) != width(&local.k) {
            return fail(
                "q",
                format!(
                    "{} channels beside {} of the keys",
                    width(&local.q),
                    width(&local.k)
                ),
                "give both queries and keys of its own, of one width",
            );
        }
        if width(&local.q) > MAX_DIM {
            return Err(Error::unsupported(
                format!("local.q with {} channels", width(&local.q)),
                format!("kernels take at most {MAX_DIM}"),
                "split the head",
            ));
        }
        if self.updates_per_token != 1 || dims(&self.k)[2] != seq {
            return fail(
                "tokens",
                format!("groups of {seq} queries and {} keys", dims(&self.k)[2]),
                "give as many keys as queries, one per token",
            );
        }
        let numbers = local.scale.iter().chain(&local.mix);
        if let Some(Real(x)) = numbers.into_iter().find(|Real(x)| !x.is_finite()) {
            return fail("scale", x.to_string(), "give finite factors, also in mix");
        }
        Ok(())
    }

    /// Axes and element types.
    fn check_tensors(&self) -> Result<()> {
        for (slot, layout) in self.tensors() {
            let name = slot.name();
            layout.check(name)?;
            let ranks: &[usize] = match (slot, &self.decay) {
                (Slot::Decay, Decay::Head(_)) | (Slot::KvLen | Slot::CuSeqlens, _) => &[1],
                (Slot::Decay, Decay::Token(_))
                | (Slot::InitialSum | Slot::FinalSum | Slot::Bias, _) => &[3],
                (Slot::Beta, _) => &[3, 4],
                (Slot::Bonus, _) => &[2],
                _ => &[4],
            };
            if !ranks.contains(&layout.rank()) {
                return Err(Error::invalid(
                    name,
                    format!("{} axes in shape {:?}", layout.rank(), layout.shape),
                    format!(
                        "give it {} axes, as the docs of LinearAttention list them",
                        ranks[0]
                    ),
                ));
            }
            let real = matches!(layout.dtype, DType::F32 | DType::F16);
            let (good, want) = match (slot, &self.decay) {
                (Slot::KvLen | Slot::CuSeqlens, _) => (layout.dtype == DType::U32, "u32"),
                (Slot::Decay, Decay::Head(_)) | (Slot::Bonus | Slot::Bias, _) => {
                    (layout.dtype == DType::F32, "f32")
                }
                (
                    Slot::Q
                    | Slot::InitialState
                    | Slot::FinalState
                    | Slot::InitialSum
                    | Slot::FinalSum,
                    _,
                ) => (real, "f32 or f16"),
                (Slot::Decay | Slot::Beta, _) => (
                    layout.dtype == DType::F32 || layout.dtype == self.q.dtype,
                    "f32, or q's element type",
                ),
                _ => (layout.dtype == self.q.dtype, "q's element type"),
            };
            if !good {
                return Err(Error::invalid(
                    name,
                    format!("elements are {}", layout.dtype),
                    format!("give {want}"),
                ));
            }
        }
        let gates = [self.decay_per_token(), self.beta()];
        if let [Some(decay), Some(beta)] = gates
            && decay.dtype != beta.dtype
        {
            return Err(Error::invalid(
                "beta",
                format!("{} where the decay is {}", beta.dtype, decay.dtype),
                "give both one element type",
            ));
        }
        let states: Vec<_> = [
            ("initial_state", &self.initial_state),
            ("final_state", &self.final_state),
            ("initial_sum", &self.initial_sum),
            ("final_sum", &self.final_sum),
        ]
        .into_iter()
        .filter_map(|(name, layout)| layout.as_ref().map(|layout| (name, layout.dtype)))
        .collect();
        if let Some((name, dtype)) = states.iter().find(|(_, dtype)| *dtype != states[0].1) {
            return Err(Error::invalid(
                *name,
                format!("{dtype} where {} is {}", states[0].0, states[0].1),
                "give states and sums one element type",
            ));
        }
        Ok(())
    }

    fn check_heads(&self) -> Result<()> {
        let [_, q_heads, _, key_dim] = dims(&self.q);
        let [_, k_heads, _, _] = dims(&self.k);
        let [_, state_heads, _, value_dim] = dims(&self.v);
        for (name, dim) in [("q", key_dim), ("v", value_dim)] {
            if dim > MAX_DIM {
                return Err(Error::unsupported(
                    format!("{name} with {dim} channels"),
                    format!("kernels hold a row of at most {MAX_DIM}"),
                    "split the head: values into parts with the same q and k, or keys into parts whose \
                     outputs are added",
                ));
            }
        }
        if state_heads % k_heads != 0 {
            return Err(Error::invalid(
                "k",
                format!("{k_heads} heads do not divide the {state_heads} of v"),
                "each head of k serves a whole group of v's",
            ));
        }
        if q_heads % state_heads != 0 && state_heads % q_heads != 0 {
            return Err(Error::invalid(
                "q",
                format!("{q_heads} heads beside the {state_heads} of v"),
                "give a multiple of them, or a divisor",
            ));
        }
        Ok(())
    }

    fn check_shapes(&self) -> Result<()> {
        let [batch, q_heads, seq, key_dim] = dims(&self.q);
        let [_, k_heads, k_len, _] = dims(&self.k);
        let [_, heads, _, value_dim] = dims(&self.v);
        if self.updates_per_token == 0 {
            return Err(Error::invalid(
                "updates_per_token",
                "0",
                "give at least one",
            ));
        }
        let updates = if self.reach == Reach::All {
            k_len
        } else {
            seq.saturating_mul(self.updates_per_token)
        };
        let tokens = if self.reach == Reach::All { k_len } else { seq };
        let o_heads = q_heads.max(heads);
        let shape = |slot: Slot, layout: &Layout, want: &[u64]| {
            if layout.shape == want {
                Ok(())
            } else {
                Err(Error::invalid(
                    slot.name(),
                    format!("shape {:?} where {want:?} is expected", layout.shape),
                    "make it agree with q, k and v",
                ))
            }
        };
        for (slot, layout) in self.tensors() {
            match slot {
                Slot::K | Slot::Read | Slot::Write => {
                    shape(slot, layout, &[batch, k_heads, updates, key_dim])?;
                }
                Slot::V => shape(slot, layout, &[batch, heads, updates, value_dim])?,
                Slot::O => shape(slot, layout, &[batch, o_heads, seq, value_dim])?,
                Slot::Decay => match self.decay {
                    Decay::None => {}
                    Decay::Head(_) => shape(slot, layout, &[heads])?,
                    Decay::Token(_) => shape(slot, layout, &[batch, heads, tokens])?,
                    Decay::Key(_) => shape(slot, layout, &[batch, heads, tokens, key_dim])?,
                    Decay::Value(_) => shape(slot, layout, &[batch, heads, tokens, value_dim])?,
                },
                Slot::Beta if layout.rank() == 3 => {
                    shape(slot, layout, &[batch, heads, updates])?;
                }
                Slot::Beta => shape(slot, layout, &[batch, heads, updates, value_dim])?,
                Slot::Bonus => shape(slot, layout, &[heads, key_dim])?,
                Slot::KvLen => shape(slot, layout, &[batch])?,
                Slot::LocalQ => shape(slot, layout, &[batch, q_heads, seq, dims(layout)[3]])?,
                Slot::LocalK => shape(slot, layout, &[batch, k_heads, updates, dims(layout)[3]])?,
                Slot::Bias => {
                    let tokens = self.local.as_ref().map_or(0, |local| local.tokens);
                    let heads = if dims(layout)[0] == 1 { 1 } else { o_heads };
                    shape(slot, layout, &[heads, tokens, tokens])?;
                }
                Slot::InitialState | Slot::FinalState => {
                    shape(slot, layout, &self.state_shape())?;
                }
                Slot::InitialSum | Slot::FinalSum => shape(slot, layout, &self.sum_shape())?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_states(&self) -> Result<()> {
        let pairs = [
            ("final_state", &self.initial_state, &self.final_state),
            ("final_sum", &self.initial_sum, &self.final_sum),
        ];
        for (name, initial, last) in pairs {
            if let Some(last) = last {
                last.check_output(name)?;
            }
            if self.in_place && initial != last {
                return Err(Error::invalid(
                    name,
                    "its layout differs from the initial one's, but the call is in place",
                    "use one layout for both",
                ));
            }
        }
        if self.normaliser.is_none() && (self.initial_sum.is_some() || self.final_sum.is_some()) {
            return Err(Error::invalid(
                "initial_sum",
                "sums of keys without a normaliser",
                "leave them out, or set the normaliser",
            ));
        }
        if self.final_sum.is_some() && self.final_state.is_none() {
            return Err(Error::invalid(
                "final_sum",
                "a sum of keys without the state that it belongs to",
                "give final_state too",
            ));
        }
        let states = [&self.initial_state, &self.final_state];
        if self.normaliser.is_some_and(|normaliser| normaliser.safe)
            && states
                .into_iter()
                .flatten()
                .any(|layout| layout.dtype == DType::F16)
        {
            return Err(Error::invalid(
                "final_state",
                "f16 states with a safe normaliser, whose largest exponent f16 cannot hold",
                "give f32 states",
            ));
        }
        if self.normaliser.is_some() && self.initial_state.is_some() != self.initial_sum.is_some() {
            return Err(Error::invalid(
                "initial_sum",
                "only one of initial_state and initial_sum is given",
                "with a normaliser give both: a state without its sum cannot be divided rightly",
            ));
        }
        Ok(())
    }

    /// What goes together and what does not.
    fn check_terms(&self) -> Result<()> {
        if let Some(cu) = &self.cu_seqlens {
            if cu.shape[0] < 2 {
                return Err(Error::invalid(
                    "cu_seqlens",
                    format!("shape {:?}", cu.shape),
                    "give [sequences + 1] numbers",
                ));
            }
            if self.sequences() > u32::MAX.into() {
                return Err(Error::invalid(
                    "cu_seqlens",
                    format!("{} sequences", self.sequences()),
                    "pack fewer than 2^32",
                ));
            }
            if dims(&self.q)[0] != 1 || self.kv_len.is_some() {
                return Err(Error::invalid(
                    "cu_seqlens",
                    "packed sequences in a batch, or with kv_len",
                    "pack all sequences into one batch entry; cu_seqlens holds their lengths",
                ));
            }
            if self.reach == Reach::All && dims(&self.k)[2] != dims(&self.q)[2] {
                return Err(Error::invalid(
                    "cu_seqlens",
                    "as many keys as queries are needed, since one list says where both begin",
                    "call once per sequence",
                ));
            }
        }
        let plain = self.decay == Decay::None && self.rule == UpdateRule::Linear;
        if !plain && matches!(self.reach, Reach::All) {
            return Err(Error::invalid(
                "reach",
                "all tokens, with a decay or another rule than Linear",
                "these depend on the order of tokens: use Causal",
            ));
        }
        if self.rule != UpdateRule::Linear && self.normaliser.is_some() {
            return Err(Error::invalid(
                "normaliser",
                "a sum of keys with a rule that takes away what was there",
                "leave it out, or use the linear rule",
            ));
        }
        if matches!(self.decay, Decay::Value(_)) && self.normaliser.is_some() {
            return Err(Error::invalid(
                "normaliser",
                "one sum of keys where each value channel decays on its own",
                "give a further value channel of ones, and divide by its output",
            ));
        }
        if self.bonus.is_some() && self.reach != Reach::Before {
            return Err(Error::invalid(
                "bonus",
                "a bonus for the own token, which the state holds already",
                "use Reach::Before",
            ));
        }
        if self.bonus.is_some() && self.normaliser.is_some() {
            return Err(Error::invalid(
                "bonus",
                "a bonus with a normaliser, whose sum of keys does not hold the own token",
                "leave one of them out",
            ));
        }
        if self.updates_per_token > 1 && (self.reach != Reach::Causal) {
            return Err(Error::invalid(
                "updates_per_token",
                format!("{} with {:?}", self.updates_per_token, self.reach),
                "use Reach::Causal",
            ));
        }
        if let Reach::BeforeBucket { tokens } = self.reach
            && tokens == 0
        {
            return Err(Error::invalid(
                "reach",
                "buckets of no tokens",
                "give at least one",
            ));
        }
        if let Some(normaliser) = self.normaliser {
            let Real(eps) = normaliser.eps;
            if !(eps >= 0.0 && eps.is_finite()) {
                return Err(Error::invalid(
                    "normaliser.eps",
                    eps.to_string(),
                    "give 0 or a small positive number",
                ));
            }
            let exp = matches!(self.feature_k, FeatureMap::Exp { .. });
            if normaliser.safe && !exp {
                return Err(Error::invalid(
                    "normaliser.safe",
                    format!("keys mapped by {:?}", self.feature_k),
                    "map keys by FeatureMap::Exp, or leave it out",
                ));
            }
        }
        for (name, map) in [("feature_q", self.feature_q), ("feature_k", self.feature_k)] {
            if let FeatureMap::Exp { factor: Real(x) } = map
                && !x.is_finite()
            {
                return Err(Error::invalid(name, x.to_string(), "give a finite factor"));
            }
        }
        match self.similarity {
            Similarity::Product => Ok(()),
            Similarity::Cosine { length } => {
                let tokens = dims(&self.q)[2].max(dims(&self.k)[2]);
                if length < tokens || self.rule != UpdateRule::Linear || self.bonus.is_some() {
                    return Err(Error::invalid(
                        "similarity",
                        format!("a cosine over {length} tokens, of {tokens}"),
                        "give at least as many as there are, and the linear rule without a bonus",
                    ));
                }
                if matches!(self.decay, Decay::Key(_)) {
                    return Err(Error::unsupported(
                        "a cosine with a decay per key channel",
                        "its state has two rows per channel",
                        "use a decay per head or token",
                    ));
                }
                Ok(())
            }
            Similarity::Taylor | Similarity::Square => {
                if self.rule != UpdateRule::Linear
                    || matches!(self.decay, Decay::Key(_) | Decay::Value(_))
                    || self.bonus.is_some()
                    || self.reach == Reach::Before
                    || self
                        .normaliser
                        .is_some_and(|n| n.guard == Guard::Keys || n.safe)
                {
                    return Err(Error::unsupported(
                        format!("{:?} with these terms", self.similarity),
                        "it is defined for the linear rule with no decay or one per head or token",
                        "use Similarity::Product",
                    ));
                }
                if self.initial_state.is_some() || self.final_state.is_some() {
                    return Err(Error::unsupported(
                        format!("a state of {:?}", self.similarity),
                        "it would have as many rows as the square of the key dimension",
                        "call once for the whole sequence",
                    ));
                }
                Ok(())
            }
        }
    }

    /// The decay, where it is given per token.
    pub(crate) fn decay_per_token(&self) -> Option<&Layout> {
        match &self.decay {
            Decay::None | Decay::Head(_) => None,
            Decay::Token(layout) | Decay::Key(layout) | Decay::Value(layout) => Some(layout),
        }
    }

    /// β of the delta rule.
    pub(crate) fn beta(&self) -> Option<&Layout> {
        match &self.rule {
            UpdateRule::Delta { beta, .. } => beta.as_ref(),
            _ => None,
        }
    }

    pub(crate) fn tensors(&self) -> Vec<(Slot, &Layout)> {
        let mut list = vec![
            (Slot::Q, &self.q),
            (Slot::K, &self.k),
            (Slot::V, &self.v),
            (Slot::O, &self.o),
        ];
        list.extend(self.decay.layout().map(|layout| (Slot::Decay, layout)));
        match &self.rule {
            UpdateRule::Linear => {}
            UpdateRule::Delta { beta, read } => {
                list.extend(beta.as_ref().map(|layout| (Slot::Beta, layout)));
                list.extend(read.as_ref().map(|layout| (Slot::Read, layout)));
            }
            UpdateRule::LowRank { read, write } => {
                list.extend([(Slot::Read, read), (Slot::Write, write)]);
            }
        }
        let local = self.local.as_ref();
        let initial = |layout| if self.in_place { None } else { layout };
        for (slot, layout) in [
            (Slot::Bonus, self.bonus.as_ref()),
            (Slot::InitialState, initial(self.initial_state.as_ref())),
            (Slot::FinalState, self.final_state.as_ref()),
            (Slot::InitialSum, initial(self.initial_sum.as_ref())),
            (Slot::FinalSum, self.final_sum.as_ref()),
            (Slot::KvLen, self.kv_len.as_ref()),
            (Slot::CuSeqlens, self.cu_seqlens.as_ref()),
            (Slot::LocalQ, local.and_then(|local| local.q.as_ref())),
            (Slot::LocalK, local.and_then(|local| local.k.as_ref())),
            (Slot::Bias, local.and_then(|local| local.bias.as_ref())),
        ] {
            list.extend(layout.map(|layout| (slot, layout)));
        }
        list
    }
}

/// The tensors of a [`LinearAttention`], as far as the op has them.
#[derive(Debug, Clone)]
pub struct LinearAttentionArgs<'a> {
    /// Queries.
    pub q: View<'a>,
    /// Keys.
    pub k: View<'a>,
    /// Values.
    pub v: View<'a>,
    /// Output.
    pub o: View<'a>,
    /// Factors on the state.
    pub decay: Option<View<'a>>,
    /// β of the delta rule.
    pub beta: Option<View<'a>>,
    /// What reads the state: `p` of the delta rule, `a` of the low-rank one.
    pub read: Option<View<'a>>,
    /// `b` of the low-rank rule.
    pub write: Option<View<'a>>,
    /// Factors on the own token.
    pub bonus: Option<View<'a>>,
    /// State before the first token; absent when the call is in place.
    pub initial_state: Option<View<'a>>,
    /// State after the last token, or the one of a call in place.
    pub final_state: Option<View<'a>>,
    /// Sum of keys before the first token; absent when the call is in place.
    pub initial_sum: Option<View<'a>>,
    /// Sum of keys after the last token, or the one of a call in place.
    pub final_sum: Option<View<'a>>,
    /// Valid tokens per batch entry.
    pub kv_len: Option<View<'a>>,
    /// Where packed sequences begin.
    pub cu_seqlens: Option<View<'a>>,
    /// Queries of the attention inside groups.
    pub local_q: Option<View<'a>>,
    /// Its keys.
    pub local_k: Option<View<'a>>,
    /// Its bias.
    pub bias: Option<View<'a>>,
}

impl<'a> LinearAttentionArgs<'a> {
    /// Tensors of an op with nothing optional.
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, o: View<'a>) -> Self {
        Self {
            q,
            k,
            v,
            o,
            decay: None,
            beta: None,
            read: None,
            write: None,
            bonus: None,
            initial_state: None,
            final_state: None,
            initial_sum: None,
            final_sum: None,
            kv_len: None,
            cu_seqlens: None,
            local_q: None,
            local_k: None,
            bias: None,
        }
    }
}

impl<'a> From<LinearAttentionArgs<'a>> for Args<'a> {
    fn from(args: LinearAttentionArgs<'a>) -> Self {
        let mut list = vec![
            (Slot::Q, args.q),
            (Slot::K, args.k),
            (Slot::V, args.v),
            (Slot::O, args.o),
        ];
        for (slot, view) in [
            (Slot::Decay, args.decay),
            (Slot::Beta, args.beta),
            (Slot::Read, args.read),
            (Slot::Write, args.write),
            (Slot::Bonus, args.bonus),
            (Slot::InitialState, args.initial_state),
            (Slot::FinalState, args.final_state),
            (Slot::InitialSum, args.initial_sum),
            (Slot::FinalSum, args.final_sum),
            (Slot::KvLen, args.kv_len),
            (Slot::CuSeqlens, args.cu_seqlens),
            (Slot::LocalQ, args.local_q),
            (Slot::LocalK, args.local_k),
            (Slot::Bias, args.bias),
        ] {
            list.extend(view.map(|view| (slot, view)));
        }
        Self(list)
    }
}
