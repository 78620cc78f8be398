//! Linear attention: a walk over the tokens of a sequence with the state in registers.

use serde::{Deserialize, Serialize};

use super::{Feature, params};
use crate::{caps::Caps, shader::Constants};

/// A factor on the state.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Fading {
    /// None.
    #[default]
    None,
    /// A constant per head.
    Head,
    /// One per token.
    Token,
    /// One per token and row of the state.
    Key,
    /// One per token and column of the state.
    Value,
}

impl Fading {
    /// Whether it is one number for the whole state.
    pub fn is_scalar(self) -> bool {
        matches!(self, Self::Head | Self::Token)
    }
}

/// The delta rule's β.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// 1.
    #[default]
    One,
    /// One per update.
    Update,
    /// One per update and value channel.
    Value,
}

/// How an update changes the state.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A product is added.
    #[default]
    Linear,
    /// The delta rule.
    Delta {
        /// β.
        strength: Strength,
        /// Whether keys of its own read the state.
        read: bool,
    },
    /// A product and a low-rank change.
    LowRank,
}

/// What guards a division by the sum of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divisor {
    /// A number is added.
    Add,
    /// A number is the least.
    AtLeast,
    /// A number is added to each sum.
    Keys,
}

/// Where a walk's state comes from.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// It is 0.
    #[default]
    Nothing,
    /// The caller's tensors.
    Initial,
    /// The caller's tensors, which take the final one.
    InPlace,
    /// A slot of scratch.
    Scratch,
}

/// Where a walk's state goes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Give {
    /// It is dropped.
    #[default]
    Nothing,
    /// The caller's tensors.
    Final {
        /// The sum of keys too.
        sum: bool,
    },
    /// A slot of scratch.
    Scratch {
        /// With the products of decays.
        products: bool,
    },
}

/// A variant of the kernel.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Variant {
    /// Invocations per workgroup.
    pub lanes: u32,
    /// Whether they are a subgroup that hands rows round by broadcast.
    pub broadcast: bool,
    /// Updates per step.
    pub tokens: u32,
    /// Columns of the state per lane: vectors of four with broadcast, else 1.
    pub columns: u32,
    /// Vectors of four in a key.
    pub k4: u32,
    /// A cosine of places: the state has two rows per channel of a key.
    pub cosine: bool,
    /// f16 storage.
    pub f16: bool,
    /// f16 decays per token, and β.
    pub f16_gates: bool,
    /// f16 states.
    pub f16_state: bool,
    /// Keys and their like are read four channels at a time.
    pub vec4_keys: bool,
    /// Values and their like are read, and outputs written, four channels at a time.
    pub vec4_values: bool,
    /// The caller's states are read and written four columns at a time.
    pub vec4_state: bool,
    /// What queries are mapped by.
    pub feature_q: Feature,
    /// What keys are mapped by.
    pub feature_k: Feature,
    /// Queries are exponentials less their row's largest exponent.
    pub q_below_top: bool,
    /// Queries are mapped by a softmax over channels.
    pub softmax_q: bool,
    /// Keys are.
    pub softmax_k: bool,
    /// Keys are exponentials less the largest exponent so far.
    pub safe: bool,
    /// A factor on the state.
    pub fading: Fading,
    /// How an update changes the state.
    pub rule: Rule,
    /// Division by the sum of keys.
    pub divisor: Option<Divisor>,
    /// Queries read the state before their own token.
    pub before: bool,
    /// The own token counts besides.
    pub bonus: bool,
    /// Whether there are outputs.
    pub output: bool,
    /// Whether there are updates.
    pub update: bool,
    /// Valid tokens per batch entry.
    pub kv_len: bool,
    /// Packed sequences.
    pub packed: bool,
    /// Where the state comes from.
    pub take: Take,
    /// Where it goes.
    pub give: Give,
}

impl Variant {
    /// Vectors of four rows of a state.
    pub fn rows4(&self) -> u32 {
        self.k4 * (1 + u32::from(self.cosine))
    }

    /// Value columns of a workgroup.
    pub fn width(&self) -> u32 {
        self.lanes * self.columns * if self.broadcast { 4 } else { 1 }
    }

    /// Tensors with rows like those of keys.
    fn tensors(&self) -> [bool; 5] {
        let delta_reads = matches!(self.rule, Rule::Delta { read: true, .. });
        let low_rank = self.rule == Rule::LowRank;
        [
            self.output,
            self.update,
            delta_reads || low_rank,
            low_rank,
            self.fading == Fading::Key,
        ]
    }

    /// How many of them there are.
    pub fn row_tensors(&self) -> u32 {
        self.tensors().into_iter().map(u32::from).sum()
    }

    /// Bytes of workgroup memory.
    pub fn workgroup_bytes(&self) -> u32 {
        if self.broadcast {
            0
        } else {
            16 * self.row_tensors() * self.tokens * self.rows4()
        }
    }

    /// Iterations that a step of a walk takes, those of the loops in it counted.
    pub fn step_iterations(&self) -> u64 {
        if self.broadcast {
            1
        } else {
            // Loops may end with a check of their own.
            let words = (self.tokens * self.rows4()).div_ceil(self.lanes);
            u64::from(words + self.tokens + 3)
        }
    }

    fn storage_buffers(&self) -> u32 {
        let initial = self.take == Take::Initial;
        let (given, given_sum) = match self.give {
            Give::Final { sum } => (true, sum),
            _ => (false, false),
        };
        let in_place = self.take == Take::InPlace;
        let scratch = self.take == Take::Scratch || matches!(self.give, Give::Scratch { .. });
        let [_, _, read, write, _] = self.tensors();
        [
            self.output,
            self.output,
            self.update,
            self.update,
            self.fading != Fading::None,
            matches!(
                self.rule,
                Rule::Delta {
                    strength: Strength::Update | Strength::Value,
                    ..
                }
            ),
            read,
            write,
            self.bonus,
            initial,
            initial && self.divisor.is_some(),
            given || in_place,
            given_sum || (in_place && self.divisor.is_some()),
            self.kv_len,
            self.packed,
            scratch,
        ]
        .into_iter()
        .map(u32::from)
        .sum()
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let (strength, delta_reads) = match self.rule {
            Rule::Delta { strength, read } => (strength, read),
            _ => (Strength::One, false),
        };
        let low_rank = self.rule == Rule::LowRank;
        let initial = matches!(self.take, Take::Initial | Take::InPlace);
        let in_place = self.take == Take::InPlace;
        let (given, given_sum) = match self.give {
            Give::Final { sum } => (true, sum),
            _ => (false, false),
        };
        let products = self.give == Give::Scratch { products: true };
        let normalised = self.divisor.is_some();
        // Numbers of the tensors that are there, in a row.
        let mut next = 0;
        let mut numbers = [0; 5];
        for (number, there) in numbers.iter_mut().zip(self.tensors()) {
            *number = next;
            next += u32::from(there);
        }
        let [row_q, row_k, row_read, row_write, row_decay] = numbers;
        vec![
            ("LANES", self.lanes),
            ("BROADCAST", self.broadcast.into()),
            ("TOKENS", self.tokens),
            ("COLS", self.columns),
            ("K4", self.k4),
            ("PARTS", 1 + u32::from(self.cosine)),
            ("TENSORS", next),
            ("ROW_Q", row_q),
            ("ROW_K", row_k),
            ("ROW_READ", row_read),
            ("ROW_WRITE", row_write),
            ("ROW_DECAY", row_decay),
            ("COSINE", self.cosine.into()),
            ("F16", self.f16.into()),
            ("F16_GATES", self.f16_gates.into()),
            ("F16_STATE", self.f16_state.into()),
            ("VEC4_KEYS", self.vec4_keys.into()),
            ("VEC4_VALUES", self.vec4_values.into()),
            ("VEC4_STATE", self.vec4_state.into()),
            ("FEATURE_Q", self.feature_q.code()),
            ("FEATURE_K", self.feature_k.code()),
            ("Q_TOP", self.q_below_top.into()),
            ("Q_SUM", self.softmax_q.into()),
            ("K_TOP", (self.softmax_k || self.safe).into()),
            ("K_SUM", self.softmax_k.into()),
            ("SAFE", self.safe.into()),
            ("DECAY_HEAD", (self.fading == Fading::Head).into()),
            ("DECAY_TOKEN", (self.fading == Fading::Token).into()),
            ("DECAY_KEY", (self.fading == Fading::Key).into()),
            ("DECAY_VALUE", (self.fading == Fading::Value).into()),
            (
                "FADES",
                (self.fading.is_scalar() || self.fading == Fading::Value || self.safe).into(),
            ),
            ("BETA", (strength == Strength::Update).into()),
            ("BETA_VALUE", (strength == Strength::Value).into()),
            ("READ", (delta_reads || low_rank).into()),
            ("LOW_RANK", low_rank.into()),
            ("HELD", (self.rule != Rule::Linear).into()),
            ("NORMALISED", normalised.into()),
            ("GUARD_KEYS", (self.divisor == Some(Divisor::Keys)).into()),
            (
                "GUARD_AT_LEAST",
                (self.divisor == Some(Divisor::AtLeast)).into(),
            ),
            ("BEFORE", self.before.into()),
            ("BONUS", self.bonus.into()),
            ("OUTPUT", self.output.into()),
            ("UPDATE", self.update.into()),
            ("KV_LEN", self.kv_len.into()),
            ("PACKED", self.packed.into()),
            ("TAKE", (self.take != Take::Nothing).into()),
            (
                "TAKE_SUM",
                (self.take != Take::Nothing && normalised).into(),
            ),
            ("INITIAL", initial.into()),
            ("IN_PLACE", in_place.into()),
            ("GIVE", (self.give != Give::Nothing).into()),
            ("FINAL", given.into()),
            ("FINAL_SUM", given_sum.into()),
            ("BIND_FINAL", (given || in_place).into()),
            (
                "BIND_FINAL_SUM",
                (given_sum || in_place && normalised).into(),
            ),
            ("PRODUCTS", products.into()),
            ("SCALAR_DECAY", (products && self.fading.is_scalar()).into()),
            (
                "SCRATCH",
                (self.take == Take::Scratch || matches!(self.give, Give::Scratch { .. })).into(),
            ),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if (self.f16 || self.f16_gates || self.f16_state) && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        if self.broadcast && caps.fixed_subgroup() != Some(self.lanes) {
            return Err(format!("subgroups are not of {} lanes", self.lanes));
        }
        if self.lanes > caps.max_invocations {
            return Err(format!(
                "{} invocations per workgroup, and the device allows {}",
                self.lanes, caps.max_invocations
            ));
        }
        if self.workgroup_bytes() > caps.workgroup_bytes {
            return Err(format!(
                "{} bytes of workgroup memory, and the device has {}",
                self.workgroup_bytes(),
                caps.workgroup_bytes
            ));
        }
        let buffers = self.storage_buffers();
        if buffers > caps.max_storage_buffers {
            return Err(format!(
                "{buffers} storage buffers, and the device allows {}",
                caps.max_storage_buffers
            ));
        }
        Ok(())
    }
}

params! {
    /// Parameters of the walk.
    Params {
        tasks: u32, blocks: u32, heads: u32, segments: u32, sequences: u32, segment_tokens: u32,
        token_start: u32, token_end: u32, tokens: u32, updates: u32, key_dim: u32, value_dim: u32,
        group: u32, q_share: u32, k_share: u32, slot_heads: u32, slot_group: u32, slots: u32,
        slot_first: u32, slot_step: u32, giving: u32, slot_size: u32, sums_at: u32, products_at: u32,
        cosine_length: u32, scale: f32, eps: f32, factor_q: f32, factor_k: f32,
        q_at: u32, q_batch: u32, q_head: u32, q_token: u32, q_dim: u32,
        k_at: u32, k_batch: u32, k_head: u32, k_token: u32, k_dim: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_token: u32, v_dim: u32,
        o_at: u32, o_batch: u32, o_head: u32, o_token: u32, o_dim: u32,
        decay_at: u32, decay_batch: u32, decay_head: u32, decay_token: u32, decay_dim: u32,
        beta_at: u32, beta_batch: u32, beta_head: u32, beta_token: u32, beta_dim: u32,
        read_at: u32, read_batch: u32, read_head: u32, read_token: u32, read_dim: u32,
        write_at: u32, write_batch: u32, write_head: u32, write_token: u32, write_dim: u32,
        bonus_at: u32, bonus_head: u32, bonus_dim: u32,
        initial_at: u32, initial_batch: u32, initial_head: u32, initial_row: u32, initial_dim: u32,
        final_at: u32, final_batch: u32, final_head: u32, final_row: u32, final_dim: u32,
        initial_sum_at: u32, initial_sum_batch: u32, initial_sum_head: u32, initial_sum_row: u32,
        final_sum_at: u32, final_sum_batch: u32, final_sum_head: u32, final_sum_row: u32,
        kv_len_at: u32, kv_len_batch: u32, cu_at: u32, cu_step: u32, scratch_at: u32,
    }
}
