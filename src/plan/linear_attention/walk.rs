//! Linear attention as a recurrence: which slices and segments, and where states go between them.

use super::super::{
    Outline, Range, Schedule, Step, Tuning, WANTED_WORKGROUPS, by_fours, grid, layout_places,
    slice::{self, Operand, Part},
    small,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        Feature, Variant as _,
        linear_attention::{Divisor, Fading, Give, Params, Rule, Strength, Take, Variant},
        linear_attention_join as join, linear_attention_step as step,
    },
    ops::{Decay, FeatureMap, Guard, LinearAttention, Reach, Similarity, Slot, UpdateRule, dims},
    tensor::{DType, Layout},
};

// The iteration space: batch entries, units of heads, tokens.
const BATCH: usize = 0;
const UNIT: usize = 1;
const TOKEN: usize = 2;
const AXES: usize = 3;

/// Tokens are counted in 32 bits.
const MAX_TOKENS: u64 = 1 << 29;
/// Invocations of a workgroup without broadcast.
const LANES: u32 = 64;
/// Segments of fewer tokens are not worth their states.
const MIN_SEGMENT: u64 = 256;
/// Workgroups that keep a software device busy.
const SOFTWARE_WORKGROUPS: u64 = 2;
/// Vectors of four columns of a state that an invocation takes, for one token: with more, the loop's code leaves the
/// instruction cache of llvmpipe's CPU.
const STEP_COLUMNS: u64 = 8;
/// The largest of no keys.
const LOWEST: f32 = -3e38;

/// What a pass over the tokens does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Outputs and updates, one token after the other.
    Both,
    /// Updates alone: what segments add to a state.
    Update,
    /// Outputs alone, from a state that does not change.
    Output,
}

/// The numbers of an op.
struct Walk<'a> {
    op: &'a LinearAttention,
    caps: &'a Caps,
    variant: Variant,
    /// Heads of q, k, v and o.
    heads: [u64; 4],
    /// Groups of heads that share nothing with each other.
    units: u64,
    batch: u64,
    /// Queries, and tokens of keys.
    tokens: [u64; 2],
    key_dim: u64,
    value_dim: u64,
    sequences: u64,
}

/// How states lie in scratch.
#[derive(Debug, Clone, Copy, Default)]
struct Slots {
    /// Heads that have states of their own.
    heads: u64,
    /// States per head: those of segments, then the one that is carried on.
    each: u64,
    /// Elements of a state, with its sums and products.
    size: u64,
    sums_at: u64,
    products_at: u64,
}

pub(super) fn outline(op: &LinearAttention, caps: &Caps, tuning: &Tuning) -> Result<Outline> {
    let mut walk = Walk::new(op, caps, tuning)?;
    let (steps, scratch_bytes, splits) = walk.steps(tuning)?;
    let broadcast = walk.variant.broadcast;
    Ok(Outline {
        op: op.clone().into(),
        schedule: if broadcast {
            Schedule::Subgroup
        } else {
            Schedule::Tile
        },
        why: if broadcast {
            "lanes own columns of the state, and rows of keys go round by broadcast".into()
        } else {
            "lanes own columns of the state, and rows of keys pass through workgroup memory".into()
        },
        rejected: if broadcast {
            Vec::new()
        } else {
            vec![(
                Schedule::Subgroup,
                "broadcasts pay where lanes are parts of a CPU's vectors".into(),
            )]
        },
        splits,
        steps,
        scratch_bytes,
    })
}

impl<'a> Walk<'a> {
    fn new(op: &'a LinearAttention, caps: &'a Caps, tuning: &Tuning) -> Result<Self> {
        let [batch, q_heads, seq, key_dim] = dims(&op.q);
        let [_, k_heads, updates, _] = dims(&op.k);
        let [_, v_heads, _, value_dim] = dims(&op.v);
        let tokens = [seq, updates / op.updates_per_token];
        if tokens[0].max(updates) > MAX_TOKENS {
            return Err(Error::unsupported(
                format!("a sequence of {} tokens", tokens[0].max(updates)),
                format!("tokens are counted up to {MAX_TOKENS}"),
                "split the sequence, and carry the state on",
            ));
        }
        let mut walk = Self {
            op,
            caps,
            variant: base_variant(op),
            heads: [q_heads, k_heads, v_heads, q_heads.max(v_heads)],
            units: gcd(q_heads, k_heads),
            batch,
            tokens,
            key_dim,
            value_dim,
            sequences: op.sequences(),
        };
        walk.choose_shape(tuning)?;
        Ok(walk)
    }

    /// Lanes, columns per lane and tokens per step.
    fn choose_shape(&mut self, tuning: &Tuning) -> Result<()> {
        let broadcast = self.caps.fixed_subgroup().filter(|&size| {
            self.caps.cpu_vectors()
                && size <= super::super::SMALL_SUBGROUP
                && tuning.schedule != Some(Schedule::Tile)
        });
        let variant = &mut self.variant;
        match broadcast {
            Some(lanes) => {
                variant.broadcast = true;
                variant.lanes = lanes;
                let vectors = self.value_dim.div_ceil(4 * u64::from(lanes)).max(1);
                // Workgroups that there are with all columns in one.
                let tasks = self.sequences * self.heads[3];
                let rows = u64::from(4 * variant.rows4());
                let columns = if vectors > 1 && tasks >= SOFTWARE_WORKGROUPS && rows <= 128 {
                    2
                } else {
                    1
                };
                variant.columns = tuning.rows.unwrap_or(columns).clamp(1, 2);
                variant.tokens = tuning.keys.unwrap_or(2).clamp(1, lanes);
                let op = self.op;
                variant.vec4_values = by_fours(&op.v) && by_fours(&op.o);
                let gate = |layout: Option<&Layout>| layout.is_none_or(by_fours);
                if let Decay::Value(layout) = &op.decay {
                    variant.vec4_values &= by_fours(layout);
                }
                if let UpdateRule::Delta {
                    beta: Some(beta), ..
                } = &op.rule
                    && beta.rank() == 4
                {
                    variant.vec4_values &= by_fours(beta);
                }
                variant.vec4_state =
                    gate(op.initial_state.as_ref()) && gate(op.final_state.as_ref());
            }
            None if tuning.schedule == Some(Schedule::Subgroup) => {
                return Err(Error::unsupported(
                    "the subgroup schedule of linear attention",
                    "broadcasts pay where lanes are parts of a CPU's vectors, of one size up to 8",
                    "leave the schedule open",
                ));
            }
            None => {
                variant.lanes = LANES.min(self.caps.max_invocations);
                variant.columns = 1;
                let room = self.caps.workgroup_bytes.min(16 << 10);
                let token = 16 * variant.row_tensors() * variant.rows4();
                variant.tokens = (room / token).clamp(1, 16);
            }
        }
        Ok(())
    }

    /// The variant of a pass.
    fn variant(&self, pass: Pass, take: Take, give: Give) -> Variant {
        let mut variant = Variant {
            take,
            give,
            ..self.variant
        };
        let direct =
            matches!(take, Take::Initial | Take::InPlace) || matches!(give, Give::Final { .. });
        if !direct {
            variant.vec4_state = false;
            variant.f16_state = false;
        }
        match pass {
            Pass::Both => {}
            Pass::Update => {
                variant.output = false;
                variant.before = false;
                variant.softmax_q = false;
                variant.q_below_top = false;
                variant.feature_q = Feature::Identity;
                variant.bonus = false;
                // What guards a division: there is none.
                variant.divisor = variant.divisor.map(|_| Divisor::Add);
            }
            Pass::Output => {
                variant.update = false;
                variant.safe = false;
                variant.softmax_k = false;
                variant.feature_k = Feature::Identity;
                variant.fading = Fading::None;
                variant.rule = Rule::Linear;
                variant.before = false;
                variant.kv_len = false;
            }
        }
        variant
    }

    fn supported(&self, variant: &Variant) -> Result<()> {
        variant.supports(self.caps).map_err(|reason| {
            Error::unsupported(
                format!("linear attention of {}", self.op.q.dtype),
                reason,
                "create the device with these features and limits, store the tensors as f32, or leave \
                 lengths and states out",
            )
        })
    }

    /// The dispatches, the bytes of scratch and the number of segments.
    fn steps(&mut self, tuning: &Tuning) -> Result<(Vec<Step>, u64, u64)> {
        let op = self.op;
        let widths = self.value_dim.div_ceil(self.variant.width().into());
        let steps_budget = u64::from(self.caps.loop_budget).saturating_sub(8);
        let most = steps_budget / self.variant.step_iterations() * u64::from(self.variant.tokens);
        let most = (most / op.updates_per_token).min(MAX_TOKENS);
        if most == 0 {
            return Err(Error::unsupported(
                "linear attention",
                format!(
                    "a kernel may loop {} times on this device, and one token takes more",
                    self.caps.loop_budget
                ),
                "raise the loop budget of the caps",
            ));
        }
        let rows = op.state_rows();
        let state = rows * self.value_dim;
        let sums = if self.variant.divisor.is_some() {
            widths * (rows + 1)
        } else {
            0
        };
        let products = match self.variant.fading {
            Fading::None => 0,
            Fading::Head | Fading::Token => 1,
            Fading::Key => self.key_dim,
            Fading::Value => self.value_dim,
        };
        let mut slots = Slots {
            heads: self.heads[2],
            each: 1,
            size: state + sums + products,
            sums_at: state,
            products_at: state + sums,
        };
        let plain = op.rule == UpdateRule::Linear && !self.variant.safe;
        let wanted = if self.caps.software {
            SOFTWARE_WORKGROUPS
        } else {
            WANTED_WORKGROUPS
        };
        let tasks = (self.sequences * self.heads[3] * widths).max(1);
        let long = self.tokens[0].max(self.tokens[1]);
        let open = tuning
            .splits
            .map_or_else(|| wanted.div_ceil(tasks).min(long / MIN_SEGMENT), u64::from);
        let may_split = plain && op.cu_seqlens.is_none();
        // A join loops over them.
        let budget = u64::from(self.caps.loop_budget).saturating_sub(2).max(1);
        let segments = if may_split {
            open.clamp(1, long).min(budget)
        } else {
            1
        };
        let mut plan = Plan {
            walk: self,
            slots: &mut slots,
            most,
            segments,
            steps: Vec::new(),
            scratch_bytes: 0,
            one_token: false,
        };
        match op.reach {
            Reach::All => plan.all()?,
            Reach::BeforeBucket { tokens } => plan.buckets(tokens)?,
            _ if segments > 1 => plan.segmented()?,
            _ => plan.in_turn()?,
        }
        Ok((plan.steps, plan.scratch_bytes, segments))
    }

    /// Each tensor of a pass over the iteration space.
    fn operands(&self, pass: Pass, variant: &Variant, slots: &Slots) -> Vec<(Slot, Operand<AXES>)> {
        let op = self.op;
        let packed = op.cu_seqlens.is_some();
        let mut list = Vec::new();
        // A tensor's batch, head and token axes, what `times` of its tokens one of the space has, and further axes.
        let mut add = |slot: Slot, layout: &Layout, axes: [Option<usize>; 3], times: u64| {
            let stride = |axis: usize| match layout.shape.get(axis) {
                None | Some(1) => 0,
                Some(_) => layout.strides.get(axis).copied().unwrap_or(0),
            };
            let len = |axis: usize| layout.shape.get(axis).copied().unwrap_or(1);
            let [batch, head, token] = axes;
            let heads = head.map_or(1, len) / self.units.min(head.map_or(1, len)).max(1);
            let mut inner = 1 + head.map_or(0, stride) * (heads - 1);
            inner += token.map_or(0, stride) * (times - 1);
            for axis in (0..layout.rank()).filter(|&axis| !axes.contains(&Some(axis))) {
                inner += stride(axis) * (len(axis) - 1);
            }
            let strides = [
                batch.map_or(0, stride),
                head.map_or(0, stride) * heads,
                token.map_or(0, stride) * times,
            ];
            list.push((slot, Operand::new(slot.name(), layout, strides, inner)));
        };
        let rows = [Some(0), Some(1), Some(2)];
        let n = op.updates_per_token;
        if variant.output {
            add(Slot::Q, &op.q, rows, 1);
            add(Slot::O, &op.o, rows, 1);
        }
        if variant.update {
            add(Slot::K, &op.k, rows, n);
            add(Slot::V, &op.v, rows, n);
            match &op.decay {
                Decay::None => {}
                Decay::Head(layout) => add(Slot::Decay, layout, [None, Some(0), None], 1),
                Decay::Token(layout) | Decay::Key(layout) | Decay::Value(layout) => {
                    add(Slot::Decay, layout, rows, 1);
                }
            }
            match &op.rule {
                UpdateRule::Linear => {}
                UpdateRule::Delta { beta, read } => {
                    if let Some(beta) = beta {
                        add(Slot::Beta, beta, rows, n);
                    }
                    if let Some(read) = read {
                        add(Slot::Read, read, rows, n);
                    }
                }
                UpdateRule::LowRank { read, write } => {
                    add(Slot::Read, read, rows, n);
                    add(Slot::Write, write, rows, n);
                }
            }
        }
        if let Some(bonus) = op.bonus.as_ref().filter(|_| variant.bonus) {
            add(Slot::Bonus, bonus, [None, Some(0), None], 1);
        }
        if let Some(lens) = op.kv_len.as_ref().filter(|_| variant.kv_len) {
            add(Slot::KvLen, lens, [Some(0), None, None], 1);
        }
        if let Some(cu) = &op.cu_seqlens {
            add(Slot::CuSeqlens, cu, [None; 3], 1);
        }
        let of_states = [(!packed).then_some(0), Some(1), None];
        let mut state = |slot: Slot, layout: &Option<Layout>, there: bool| {
            if let Some(layout) = layout.as_ref().filter(|_| there) {
                add(slot, layout, of_states, 1);
            }
        };
        let sum = variant.divisor.is_some();
        let in_place = variant.take == Take::InPlace;
        let initial = variant.take == Take::Initial;
        let (given, given_sum) = match variant.give {
            Give::Final { sum } => (true, sum),
            _ => (false, false),
        };
        state(Slot::InitialState, &op.initial_state, initial);
        state(Slot::InitialSum, &op.initial_sum, initial && sum);
        state(Slot::FinalState, &op.final_state, given || in_place);
        state(Slot::FinalSum, &op.final_sum, given_sum || in_place && sum);
        if variant.take == Take::Scratch || matches!(variant.give, Give::Scratch { .. }) {
            list.push(self.scratch(slots));
        }
        debug_assert!(pass != Pass::Output || !variant.update);
        list
    }

    /// Scratch over the iteration space.
    fn scratch(&self, slots: &Slots) -> (Slot, Operand<AXES>) {
        let packed = self.op.cu_seqlens.is_some();
        let head = slots.each * slots.size;
        let unit = slots.heads / self.units * head;
        let sequence = slots.heads * head;
        let inner = unit
            + if packed {
                (self.sequences - 1) * sequence
            } else {
                0
            };
        let strides = [
            if packed || self.batch == 1 {
                0
            } else {
                sequence
            },
            if self.units == 1 { 0 } else { unit },
            0,
        ];
        let layout = Layout::new(DType::F32, [1]);
        (
            Slot::Scratch,
            Operand::new("scratch", &layout, strides, inner),
        )
    }

    fn scratch_bytes(&self, slots: &Slots) -> u64 {
        [4, self.sequences, slots.heads, slots.each, slots.size]
            .into_iter()
            .fold(1, u64::saturating_mul)
    }
}

/// The dispatches of an op, as they are put together.
struct Plan<'a, 'b> {
    walk: &'a Walk<'b>,
    slots: &'a mut Slots,
    /// Tokens that a workgroup may walk over.
    most: u64,
    segments: u64,
    steps: Vec<Step>,
    scratch_bytes: u64,
    /// Whether the walk is one token long.
    one_token: bool,
}

impl Plan<'_, '_> {
    /// The boxes of batch entries and heads, and the tokens of a slice, for all passes with these variants.
    fn boxes(
        &self,
        passes: &[(Pass, Variant)],
        tokens: u64,
        most: u64,
    ) -> Result<(Vec<Part<AXES>>, u64)> {
        let walk = self.walk;
        let caps = walk.caps;
        let lens = [walk.batch, walk.units, tokens];
        let alignment = u64::from(caps.storage_alignment);
        let limit = caps.max_binding_bytes;
        let mut list: Vec<Operand<AXES>> = Vec::new();
        for (pass, variant) in passes {
            walk.supported(variant)?;
            let operands = walk.operands(*pass, variant, self.slots);
            list.extend(operands.into_iter().map(|(_, operand)| operand));
        }
        let states = list
            .iter()
            .find(|operand| operand.name == "scratch" && 4 * operand.inner + alignment > limit);
        if let Some(states) = states {
            return Err(Error::unsupported(
                format!("{} bytes of states in scratch", 4 * states.inner),
                format!("a binding holds {limit} bytes"),
                "pack fewer sequences, ask for fewer segments, or use smaller heads",
            ));
        }
        let mut part = slice::fit(lens, &list, limit, alignment)?;
        part[TOKEN] = part[TOKEN].min(most).max(1);
        slice::check_count(lens, part, limit)?;
        let whole = Part {
            start: [0; AXES],
            len: lens,
        };
        Ok((slice::parts(whole, part, &[BATCH, UNIT]), part[TOKEN]))
    }

    fn needs_scratch(&mut self) {
        self.scratch_bytes = self.scratch_bytes.max(self.walk.scratch_bytes(self.slots));
    }

    fn take(&self) -> Take {
        let op = self.walk.op;
        match (&op.initial_state, op.in_place) {
            (None, _) => Take::Nothing,
            (Some(_), false) => Take::Initial,
            (Some(_), true) => Take::InPlace,
        }
    }

    fn give(&self) -> Give {
        let op = self.walk.op;
        match &op.final_state {
            None => Give::Nothing,
            Some(_) => Give::Final {
                sum: op.final_sum.is_some(),
            },
        }
    }

    /// One walk over all tokens, or several, one after the other.
    fn in_turn(&mut self) -> Result<()> {
        let walk = self.walk;
        let op = walk.op;
        let tokens = walk.tokens[0];
        let direct = walk.variant(Pass::Both, self.take(), self.give());
        let group = walk.heads[3] / walk.heads[2];
        let blocks = walk.value_dim.div_ceil(direct.width().into());
        let one = step::Variant(direct);
        if tokens * op.updates_per_token == 1
            && group == 1
            // Invocations that share a sum must not overwrite it while others may still read it.
            && !(op.in_place && direct.divisor.is_some() && walk.value_dim > 4 * STEP_COLUMNS)
            && direct.broadcast
            && one.supports(walk.caps).is_ok()
        {
            return self.one_token(direct);
        }
        // Workgroups that share a state must not overwrite it while others may still read it.
        let shared = op.in_place && (group > 1 || direct.divisor.is_some() && blocks > 1);
        if !shared && walk.supported(&direct).is_ok() {
            let boxes = self.boxes(&[(Pass::Both, direct)], tokens, self.most)?;
            if boxes.1 >= tokens {
                for piece in boxes.0 {
                    self.walk_step(Pass::Both, direct, &piece, [tokens, 1], tokens)?;
                }
                return Ok(());
            }
        }
        // A state of its own for each head of the output.
        self.slots.heads = walk.heads[3];
        self.slots.each = 1;
        let variant = walk.variant(Pass::Both, Take::Scratch, Give::Scratch { products: false });
        let (boxes, each) = self.boxes(&[(Pass::Both, variant)], tokens, self.most)?;
        self.needs_scratch();
        for piece in boxes {
            self.begin(&piece, 0)?;
            for slice in slice::parts(piece, [1, 1, each], &[TOKEN]) {
                self.walk_step(Pass::Both, variant, &slice, [each, 1], tokens)?;
            }
            self.end(&piece, 0)?;
        }
        Ok(())
    }

    /// One token: each invocation takes the state of a head, or some columns of it.
    fn one_token(&mut self, variant: Variant) -> Result<()> {
        self.one_token = true;
        let variant = Variant {
            columns: small(self.walk.value_dim.div_ceil(4).min(STEP_COLUMNS)),
            ..variant
        };
        let (boxes, _) = self.boxes(&[(Pass::Both, variant)], 1, 1)?;
        for piece in boxes {
            self.walk_step(Pass::Both, variant, &piece, [1, 1], 1)?;
        }
        Ok(())
    }

    /// Segments side by side: what each adds to the state, their states, then each with its own.
    fn segmented(&mut self) -> Result<()> {
        let walk = self.walk;
        let tokens = walk.tokens[0];
        self.slots.each = self.segments + 1;
        let products = walk.variant.fading != Fading::None;
        let update = walk.variant(Pass::Update, Take::Nothing, Give::Scratch { products });
        let both = walk.variant(Pass::Both, Take::Scratch, Give::Nothing);
        let most = self.most.saturating_mul(self.segments);
        let (boxes, each) =
            self.boxes(&[(Pass::Update, update), (Pass::Both, both)], tokens, most)?;
        self.needs_scratch();
        for piece in boxes {
            self.begin(&piece, self.segments)?;
            for slice in slice::parts(piece, [1, 1, each], &[TOKEN]) {
                let segment = slice.len[TOKEN].div_ceil(self.segments);
                let count = slice.len[TOKEN].div_ceil(segment);
                self.walk_step(Pass::Update, update, &slice, [segment, count], tokens)?;
                self.join(&slice, count, join::Before::Carried, false)?;
                self.walk_step(Pass::Both, both, &slice, [segment, count], tokens)?;
            }
            self.end(&piece, self.segments)?;
        }
        Ok(())
    }

    /// The state of all tokens, then all outputs.
    fn all(&mut self) -> Result<()> {
        let walk = self.walk;
        let [queries, keys] = walk.tokens;
        let segments = if walk.op.cu_seqlens.is_some() {
            1
        } else {
            self.segments.min(keys)
        };
        self.slots.each = segments + 1;
        if walk.variant.safe {
            // Its sums are relative to the largest key, which segments do not share: one after the other.
            self.slots.each = 1;
        }
        let (give, take) = if walk.variant.safe {
            (Give::Scratch { products: false }, Take::Scratch)
        } else {
            (Give::Scratch { products: false }, Take::Nothing)
        };
        let update = walk.variant(Pass::Update, take, give);
        let most = if walk.variant.safe {
            self.most
        } else {
            self.most.saturating_mul(segments)
        };
        let (boxes, each) = self.boxes(&[(Pass::Update, update)], keys, most)?;
        self.needs_scratch();
        let carried = self.slots.each - 1;
        for piece in boxes {
            self.begin(&piece, carried)?;
            for slice in slice::parts(piece, [1, 1, each], &[TOKEN]) {
                if walk.variant.safe {
                    self.walk_step(Pass::Update, update, &slice, [each, 1], keys)?;
                } else {
                    let segment = slice.len[TOKEN].div_ceil(segments);
                    let count = slice.len[TOKEN].div_ceil(segment);
                    self.walk_step(Pass::Update, update, &slice, [segment, count], keys)?;
                    self.join(&slice, count, join::Before::Carried, false)?;
                }
            }
            self.end(&piece, carried)?;
        }
        let output = walk.variant(Pass::Output, Take::Scratch, Give::Nothing);
        let segments = self.segments.min(queries);
        let most = self.most.saturating_mul(segments);
        let (boxes, each) = self.boxes(&[(Pass::Output, output)], queries, most)?;
        for piece in boxes {
            for slice in slice::parts(piece, [1, 1, each], &[TOKEN]) {
                let segment = slice.len[TOKEN].div_ceil(segments);
                let count = slice.len[TOKEN].div_ceil(segment);
                self.walk_step(Pass::Output, output, &slice, [segment, count], queries)?;
            }
        }
        Ok(())
    }

    /// A segment per bucket: what each adds, the state before each, then outputs from that.
    fn buckets(&mut self, bucket: u64) -> Result<()> {
        let walk = self.walk;
        let tokens = walk.tokens[0];
        let bucket = bucket.min(tokens);
        let fail = |found: String, reason: String| {
            Err(Error::unsupported(
                found,
                reason,
                "use Reach::Before, or call once per part of the sequence and carry the state on",
            ))
        };
        if bucket > self.most {
            return fail(
                format!("buckets of {bucket} tokens"),
                format!(
                    "a workgroup walks over at most {} on this device",
                    self.most
                ),
            );
        }
        if walk.op.rule != UpdateRule::Linear || walk.variant.safe {
            return fail(
                "buckets with another rule than Linear, or with a safe normaliser".into(),
                "the states of buckets are joined as sums".into(),
            );
        }
        let products = walk.variant.fading != Fading::None;
        let update = walk.variant(Pass::Update, Take::Nothing, Give::Scratch { products });
        let output = walk.variant(Pass::Output, Take::Scratch, Give::Nothing);
        // As many buckets at once as a binding has room for, and as a join may loop over.
        let limit = walk.caps.max_binding_bytes / 2;
        let per_slot = [4, walk.sequences, self.slots.heads, self.slots.size]
            .into_iter()
            .fold(1, u64::saturating_mul);
        let room = (limit / per_slot).saturating_sub(1);
        let budget = u64::from(walk.caps.loop_budget).saturating_sub(2);
        let at_once = tokens.div_ceil(bucket).min(room.max(1)).min(budget.max(1));
        self.slots.each = at_once + 1;
        let passes = [(Pass::Update, update), (Pass::Output, output)];
        let (boxes, each) = self.boxes(&passes, tokens, at_once * bucket)?;
        let each = if each >= tokens {
            each
        } else {
            each / bucket * bucket
        };
        if each == 0 || walk.op.cu_seqlens.is_some() && each < tokens {
            return fail(
                format!("buckets of {bucket} tokens of {tokens}"),
                "slices of packed sequences would cut buckets, or one is past a binding".into(),
            );
        }
        self.needs_scratch();
        for piece in boxes {
            self.begin(&piece, at_once)?;
            for slice in slice::parts(piece, [1, 1, each], &[TOKEN]) {
                let count = slice.len[TOKEN].div_ceil(bucket);
                self.walk_step(Pass::Update, update, &slice, [bucket, count], tokens)?;
                self.join(&slice, count, join::Before::Carried, false)?;
                self.walk_step(Pass::Output, output, &slice, [bucket, count], tokens)?;
            }
            self.end(&piece, at_once)?;
        }
        Ok(())
    }

    /// Puts the state before the first token into scratch.
    fn begin(&mut self, piece: &Part<AXES>, carried: u64) -> Result<()> {
        debug_assert_eq!(carried, self.slots.each - 1);
        let before = match self.take() {
            Take::Initial => join::Before::Initial,
            Take::InPlace => join::Before::InPlace,
            _ => join::Before::Nothing,
        };
        self.join(piece, 0, before, false)
    }

    /// Hands the state after the last token to the caller.
    fn end(&mut self, piece: &Part<AXES>, carried: u64) -> Result<()> {
        debug_assert_eq!(carried, self.slots.each - 1);
        if self.walk.op.final_state.is_none() {
            return Ok(());
        }
        self.join(piece, 0, join::Before::Carried, true)
    }

    fn join(
        &mut self,
        piece: &Part<AXES>,
        segments: u64,
        before: join::Before,
        last: bool,
    ) -> Result<()> {
        let walk = self.walk;
        let op = walk.op;
        let slots = *self.slots;
        let sums = walk.variant.divisor.is_some();
        let in_place = before == join::Before::InPlace;
        let initial = before == join::Before::Initial;
        let variant = join::Variant {
            f16_state: walk.variant.f16_state && (initial || in_place || last),
            before,
            fading: if segments > 0 {
                walk.variant.fading
            } else {
                Fading::None
            },
            sums,
            safe: walk.variant.safe,
            last,
            last_sum: last && op.final_sum.is_some(),
        };
        variant.supports(walk.caps).map_err(|reason| {
            Error::unsupported(
                "states of linear attention",
                reason,
                "store them as f32, or ask for the adapter's own limits",
            )
        })?;
        let packed = op.cu_seqlens.is_some();
        let sequences = if packed {
            walk.sequences
        } else {
            piece.len[BATCH]
        };
        let heads = slots.heads / walk.units * piece.len[UNIT];
        let elements = slots.products_at;
        let invocations = sequences * heads * elements;
        let mut params = join::Params {
            invocations: small(invocations),
            elements: small(elements),
            rows: small(op.state_rows()),
            key_dim: small(walk.key_dim),
            value_dim: small(walk.value_dim),
            heads: small(heads),
            slot_heads: small(slots.heads),
            group: small(slots.heads / walk.heads[2]),
            segments: small(segments),
            slots: small(slots.each),
            carried: small(slots.each - 1),
            slot_size: small(slots.size),
            products_at: small(slots.products_at),
            lowest: LOWEST,
            ..join::Params::default()
        };
        let p = &mut params;
        if let Some(layout) = &op.initial_state {
            [
                p.initial_batch,
                p.initial_head,
                p.initial_row,
                p.initial_dim,
            ] = layout_places(layout);
        }
        if let Some(layout) = &op.initial_sum {
            [p.initial_sum_batch, p.initial_sum_head, p.initial_sum_row] = layout_places(layout);
        }
        if let Some(layout) = &op.final_state {
            [p.final_batch, p.final_head, p.final_row, p.final_dim] = layout_places(layout);
        }
        if let Some(layout) = &op.final_sum {
            [p.final_sum_batch, p.final_sum_head, p.final_sum_row] = layout_places(layout);
        }
        // The walk's view of the states, and scratch.
        let as_walk = Variant {
            output: false,
            update: false,
            kv_len: false,
            bonus: false,
            take: if in_place {
                Take::InPlace
            } else if initial {
                Take::Initial
            } else {
                Take::Nothing
            },
            give: if last {
                Give::Final {
                    sum: variant.last_sum,
                }
            } else {
                Give::Nothing
            },
            ..walk.variant
        };
        let mut operands = walk.operands(Pass::Output, &as_walk, &slots);
        operands.retain(|(slot, _)| *slot != Slot::CuSeqlens);
        operands.push(walk.scratch(&slots));
        let alignment = u64::from(walk.caps.storage_alignment);
        let mut ranges = Vec::new();
        for (slot, operand) in &operands {
            let window = operand.window(piece, alignment);
            match slot {
                Slot::InitialState => p.initial_at = window.first,
                Slot::InitialSum => p.initial_sum_at = window.first,
                Slot::FinalState => p.final_at = window.first,
                Slot::FinalSum => p.final_sum_at = window.first,
                _ => p.scratch_at = window.first,
            }
            ranges.push(Range {
                slot: *slot,
                offset: window.offset,
                size: window.size,
            });
        }
        if in_place {
            p.initial_at = p.final_at;
            p.initial_sum_at = p.final_sum_at;
        }
        self.steps.push(Step {
            kernel: variant.into(),
            ranges,
            params: params.bytes(),
            grid: grid(invocations.div_ceil(join::WORKGROUP.into()), walk.caps)?,
        });
        Ok(())
    }

    /// A walk over a slice, in `count` segments of `segment` tokens; `tokens` are those of a batch entry.
    fn walk_step(
        &mut self,
        pass: Pass,
        variant: Variant,
        piece: &Part<AXES>,
        [segment, count]: [u64; 2],
        tokens: u64,
    ) -> Result<()> {
        let walk = self.walk;
        let op = walk.op;
        let slots = *self.slots;
        let [q_heads, k_heads, state_heads, o_heads] = walk.heads;
        let packed = op.cu_seqlens.is_some();
        let sequences = if packed {
            walk.sequences
        } else {
            piece.len[BATCH]
        };
        // Tokens after the last of the packed sequences have outputs too.
        let walks = sequences + u64::from(packed && variant.output);
        let heads_there = if variant.output { o_heads } else { state_heads };
        let heads = heads_there / walk.units * piece.len[UNIT];
        let width = if self.one_token {
            4 * variant.columns
        } else {
            variant.width()
        };
        let blocks = walk.value_dim.div_ceil(width.into());
        let tasks = walks * count * heads * blocks;
        let workgroup = if self.one_token {
            u64::from(step::WORKGROUP)
        } else {
            1
        };
        let group = heads_there / state_heads;
        let scratch_gives = matches!(variant.give, Give::Scratch { .. });
        let in_segments = slots.each > 1 && !(pass == Pass::Output && op.reach == Reach::All);
        let mut params = Params {
            tasks: small(tasks),
            blocks: small(blocks),
            heads: small(heads),
            segments: small(count),
            sequences: small(sequences),
            segment_tokens: small(segment),
            token_start: small(piece.start[TOKEN]),
            token_end: small(piece.start[TOKEN] + piece.len[TOKEN]),
            tokens: small(tokens),
            updates: small(op.updates_per_token),
            key_dim: small(walk.key_dim),
            value_dim: small(walk.value_dim),
            group: small(group),
            q_share: small(o_heads / q_heads),
            k_share: small(state_heads / k_heads),
            slot_heads: small(slots.heads),
            slot_group: small(heads_there / slots.heads.min(heads_there)),
            slots: small(slots.each),
            slot_first: if in_segments {
                0
            } else {
                small(slots.each - 1)
            },
            slot_step: in_segments.into(),
            // In scratch, each head that has a slot leaves its own.
            giving: if scratch_gives { 1 } else { small(group) },
            slot_size: small(slots.size),
            sums_at: small(slots.sums_at),
            products_at: small(slots.products_at),
            cosine_length: match op.similarity {
                Similarity::Cosine { length } => small(length),
                _ => 0,
            },
            scale: op.effective_scale(),
            eps: op.normaliser.map_or(0.0, |normaliser| normaliser.eps.0),
            factor_q: Feature::factor(op.feature_q),
            factor_k: Feature::factor(op.feature_k),
            ..Params::default()
        };
        places(op, &mut params);
        let alignment = u64::from(walk.caps.storage_alignment);
        let p = &mut params;
        let mut ranges = Vec::new();
        for (slot, operand) in walk.operands(pass, &variant, &slots) {
            let window = operand.window(piece, alignment);
            let at = match slot {
                Slot::Q => &mut p.q_at,
                Slot::K => &mut p.k_at,
                Slot::V => &mut p.v_at,
                Slot::O => &mut p.o_at,
                Slot::Decay => &mut p.decay_at,
                Slot::Beta => &mut p.beta_at,
                Slot::Read => &mut p.read_at,
                Slot::Write => &mut p.write_at,
                Slot::Bonus => &mut p.bonus_at,
                Slot::InitialState => &mut p.initial_at,
                Slot::InitialSum => &mut p.initial_sum_at,
                Slot::FinalState => &mut p.final_at,
                Slot::FinalSum => &mut p.final_sum_at,
                Slot::KvLen => &mut p.kv_len_at,
                Slot::CuSeqlens => &mut p.cu_at,
                _ => &mut p.scratch_at,
            };
            *at = window.first;
            ranges.push(Range {
                slot,
                offset: window.offset,
                size: window.size,
            });
        }
        if variant.take == Take::InPlace {
            p.initial_at = p.final_at;
            p.initial_sum_at = p.final_sum_at;
        }
        self.steps.push(Step {
            kernel: if self.one_token {
                step::Variant(variant).into()
            } else {
                variant.into()
            },
            ranges,
            params: params.bytes(),
            grid: grid(tasks.div_ceil(workgroup), walk.caps)?,
        });
        Ok(())
    }
}

fn base_variant(op: &LinearAttention) -> Variant {
    let f16 = |layout: Option<&Layout>| layout.is_some_and(|layout| layout.dtype == DType::F16);
    let mut vec4_keys = by_fours(&op.q) && by_fours(&op.k);
    let rule = match &op.rule {
        UpdateRule::Linear => Rule::Linear,
        UpdateRule::Delta { beta, read } => {
            vec4_keys &= read.as_ref().is_none_or(by_fours);
            Rule::Delta {
                strength: match beta {
                    None => Strength::One,
                    Some(beta) if beta.rank() == 3 => Strength::Update,
                    Some(_) => Strength::Value,
                },
                read: read.is_some(),
            }
        }
        UpdateRule::LowRank { read, write } => {
            vec4_keys &= by_fours(read) && by_fours(write);
            Rule::LowRank
        }
    };
    let fading = match &op.decay {
        Decay::None => Fading::None,
        Decay::Head(_) => Fading::Head,
        Decay::Token(_) => Fading::Token,
        Decay::Key(layout) => {
            vec4_keys &= by_fours(layout);
            Fading::Key
        }
        Decay::Value(_) => Fading::Value,
    };
    let safe = op.normaliser.is_some_and(|normaliser| normaliser.safe);
    Variant {
        k4: small(dims(&op.k)[3].div_ceil(4)),
        cosine: matches!(op.similarity, Similarity::Cosine { .. }),
        f16: op.q.dtype == DType::F16,
        f16_gates: f16(op.decay_per_token()) || f16(op.beta()),
        f16_state: f16(op.initial_state.as_ref()) || f16(op.final_state.as_ref()),
        vec4_keys,
        feature_q: op.feature_q.into(),
        feature_k: op.feature_k.into(),
        // With a safe normaliser queries lose their largest exponent too.
        q_below_top: op.feature_q == FeatureMap::Softmax
            || safe && Feature::from(op.feature_q) == Feature::Exp,
        softmax_q: op.feature_q == FeatureMap::Softmax,
        softmax_k: op.feature_k == FeatureMap::Softmax,
        safe,
        fading,
        rule,
        divisor: op.normaliser.map(|normaliser| match normaliser.guard {
            Guard::Add => Divisor::Add,
            Guard::AtLeast => Divisor::AtLeast,
            Guard::Keys => Divisor::Keys,
        }),
        before: op.reach == Reach::Before,
        bonus: op.bonus.is_some(),
        output: true,
        update: true,
        kv_len: op.kv_len.is_some(),
        packed: op.cu_seqlens.is_some(),
        ..Variant::default()
    }
}

fn places(op: &LinearAttention, params: &mut Params) {
    let p = params;
    [p.q_batch, p.q_head, p.q_token, p.q_dim] = layout_places(&op.q);
    [p.k_batch, p.k_head, p.k_token, p.k_dim] = layout_places(&op.k);
    [p.v_batch, p.v_head, p.v_token, p.v_dim] = layout_places(&op.v);
    [p.o_batch, p.o_head, p.o_token, p.o_dim] = layout_places(&op.o);
    match &op.decay {
        Decay::None => {}
        Decay::Head(layout) => [p.decay_head] = layout_places(layout),
        Decay::Token(layout) | Decay::Key(layout) | Decay::Value(layout) => {
            [p.decay_batch, p.decay_head, p.decay_token, p.decay_dim] = layout_places(layout);
        }
    }
    if let Some(beta) = op.beta() {
        [p.beta_batch, p.beta_head, p.beta_token, p.beta_dim] = layout_places(beta);
    }
    let (read, write) = match &op.rule {
        UpdateRule::Linear => (None, None),
        UpdateRule::Delta { read, .. } => (read.as_ref(), None),
        UpdateRule::LowRank { read, write } => (Some(read), Some(write)),
    };
    if let Some(read) = read {
        [p.read_batch, p.read_head, p.read_token, p.read_dim] = layout_places(read);
    }
    if let Some(write) = write {
        [p.write_batch, p.write_head, p.write_token, p.write_dim] = layout_places(write);
    }
    if let Some(bonus) = &op.bonus {
        [p.bonus_head, p.bonus_dim] = layout_places(bonus);
    }
    if let Some(layout) = &op.initial_state {
        [
            p.initial_batch,
            p.initial_head,
            p.initial_row,
            p.initial_dim,
        ] = layout_places(layout);
    }
    if let Some(layout) = &op.initial_sum {
        [p.initial_sum_batch, p.initial_sum_head, p.initial_sum_row] = layout_places(layout);
    }
    if let Some(layout) = &op.final_state {
        [p.final_batch, p.final_head, p.final_row, p.final_dim] = layout_places(layout);
    }
    if let Some(layout) = &op.final_sum {
        [p.final_sum_batch, p.final_sum_head, p.final_sum_row] = layout_places(layout);
    }
    if let Some(lens) = &op.kv_len {
        [p.kv_len_batch] = layout_places(lens);
    }
    if let Some(cu) = &op.cu_seqlens {
        [p.cu_step] = layout_places(cu);
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_largest_of_no_keys_is_that_of_the_shaders() {
        let shader = include_str!("../../../shaders/shared/linear_tensors.wgsl");
        assert!(shader.contains(&format!("const LOWEST: f32 = {:e};", super::LOWEST)));
    }
}
