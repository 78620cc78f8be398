//! Linear attention by all pairs of query and key, and attention inside groups beside it.

use serde::{Deserialize, Serialize};

pub use super::linear_attention::Divisor;
use super::{Feature, params};
use crate::{caps::Caps, shader::Constants};

/// Rows and keys of a tile, dims of a chunk; a test ties them to the WGSL.
pub const TILE: u32 = 32;
/// Invocations per workgroup.
pub const THREADS: u32 = 64;
/// Numbers of a row that dispatches hand on besides its sums of values.
pub const STATE: u64 = 3;
/// How a pair counts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Pair {
    /// The product of features.
    #[default]
    Product,
    /// `1 + s + s² / 2`
    Taylor,
    /// `s²`
    Square,
    /// `s` times a cosine of the distance.
    Cosine,
    /// `max(s, 0)²`
    SquaredRelu,
    /// The normal distribution of mean `sqrt(1 / 2)` and deviation `sqrt(1 / (4 π))`.
    Laplace,
    /// `exp(s)`, less the largest.
    Softmax,
}

/// Which keys a query sees.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// Those up to its own.
    #[default]
    Causal,
    /// Those before its own.
    Before,
    /// Those of the buckets before its own.
    Bucket,
    /// All.
    All,
    /// Those of its group.
    Group,
    /// Those of its group up to its own.
    GroupCausal,
}

/// Factors on pairs.
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
    /// One per token and head.
    Token {
        /// f16 storage.
        f16: bool,
    },
}

/// A variant of the kernel.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Variant {
    /// Chunks of 32 in a row of v and o.
    pub v_chunks: u32,
    /// f16 storage.
    pub f16: bool,
    /// How a pair counts.
    pub pair: Pair,
    /// Which keys a query sees.
    pub sight: Sight,
    /// Factors on pairs.
    pub fading: Fading,
    /// What queries are mapped by.
    pub feature_q: Feature,
    /// What keys are mapped by.
    pub feature_k: Feature,
    /// Queries are mapped by a softmax over channels.
    pub softmax_q: bool,
    /// Keys are.
    pub softmax_k: bool,
    /// Keys are exponentials less their largest exponent so far.
    pub safe: bool,
    /// Division by the sum of what pairs count.
    pub divisor: Option<Divisor>,
    /// The own token counts besides.
    pub bonus: bool,
    /// The output is added to what is there.
    pub local: bool,
    /// Queries of their own, in a tensor named so.
    pub own_q: bool,
    /// Keys of their own.
    pub own_k: bool,
    /// A bias on scores, by places in the group.
    pub bias: bool,
    /// Valid keys per batch entry.
    pub kv_len: bool,
    /// Packed sequences.
    pub packed: bool,
    /// Dispatches hand sums on.
    pub scratch: bool,
}

impl Variant {
    fn online(&self) -> bool {
        self.safe || self.pair == Pair::Softmax
    }

    fn key_numbers(&self) -> bool {
        self.safe || self.softmax_k
    }

    fn row_numbers(&self) -> bool {
        self.bonus || self.divisor == Some(Divisor::Keys)
    }

    /// Loop iterations, of all loops of an invocation: once, and for each tile of keys.
    pub fn iterations(&self, key_dim: u64, sequences: u64) -> (u64, u64) {
        let tile = u64::from(TILE);
        let loads = tile * tile / 4 / u64::from(THREADS) + 1;
        let vectors = key_dim.div_ceil(4);
        let passes = |wanted: bool, count: u64| if wanted { count * (vectors + 1) } else { 0 };
        // A search per row, and a few besides.
        let search = if self.packed {
            u64::from(u64::BITS - sequences.leading_zeros()) + 2
        } else {
            0
        };
        let once =
            12 * search + passes(self.softmax_q, 2) + passes(self.row_numbers(), 2) + 4 * 9 + 2;
        let scores = key_dim.div_ceil(tile) * (loads + tile / 4 + 2) + 1;
        let numbers = passes(self.key_numbers(), 2);
        let fading = match self.fading {
            Fading::Token { .. } => tile + 1,
            _ => 0,
        };
        let rows = if self.online() { 4 * 9 } else { 0 };
        let values = u64::from(self.v_chunks) * (loads + tile + 1);
        (once, 1 + numbers + scores + fading + rows + values)
    }

    /// Workgroup memory, in bytes.
    pub fn workgroup_bytes(&self) -> u32 {
        let token = matches!(self.fading, Fading::Token { .. });
        let numbers = 2 + 2 + u32::from(token);
        4 * (2 * TILE * (TILE + 4) + TILE * (TILE + 1) + TILE * 8 + TILE * numbers)
    }

    /// Storage buffers that it binds.
    fn buffers(&self) -> u32 {
        4 + u32::from(self.fading != Fading::None)
            + u32::from(self.bonus || self.bias)
            + u32::from(self.kv_len || self.packed)
            + u32::from(self.scratch)
    }
}

impl super::Variant for Variant {
    fn constants(&self) -> Constants {
        let token = matches!(self.fading, Fading::Token { .. });
        vec![
            ("V_CHUNKS", self.v_chunks),
            ("F16", self.f16.into()),
            ("PAIR", self.pair as u32),
            ("REACH", self.sight as u32),
            ("DECAY_HEAD", (self.fading == Fading::Head).into()),
            ("DECAY_TOKEN", token.into()),
            (
                "DECAY_F16",
                (self.fading == Fading::Token { f16: true }).into(),
            ),
            ("FEATURE_Q", self.feature_q.code()),
            ("FEATURE_K", self.feature_k.code()),
            ("SOFTMAX_Q", self.softmax_q.into()),
            ("SOFTMAX_K", self.softmax_k.into()),
            ("TILE_NUMBERS", (self.key_numbers() || token).into()),
            ("KEY_NUMBERS", self.key_numbers().into()),
            ("ONLINE", self.online().into()),
            ("SAFE", self.safe.into()),
            ("NORMALISED", self.divisor.is_some().into()),
            ("GUARD", self.divisor.map_or(0, |divisor| divisor as u32)),
            ("ROW_NUMBERS", self.row_numbers().into()),
            ("BONUS", self.bonus.into()),
            ("LOCAL", self.local.into()),
            ("OWN_Q", self.own_q.into()),
            ("OWN_K", self.own_k.into()),
            ("BIAS", self.bias.into()),
            ("KV_LEN", self.kv_len.into()),
            ("PACKED", self.packed.into()),
            ("SCRATCH", self.scratch.into()),
        ]
    }

    fn supports(&self, caps: &Caps) -> Result<(), String> {
        if self.f16 && !caps.f16 {
            return Err("the device has no f16 (SHADER_F16)".into());
        }
        for (name, needs, has) in [
            (
                "bytes of workgroup memory",
                self.workgroup_bytes(),
                caps.workgroup_bytes,
            ),
            ("invocations per workgroup", THREADS, caps.max_invocations),
            ("storage buffers", self.buffers(), caps.max_storage_buffers),
        ] {
            if needs > has {
                return Err(format!("{needs} {name}, and the device has {has}"));
            }
        }
        Ok(())
    }
}

params! {
    /// Parameters of the kernel.
    Params {
        tiles: u32,
        heads: u32,
        rows: u32,
        keys: u32,
        row_start: u32,
        key_start: u32,
        tokens: u32,
        updates: u32,
        key_dim: u32,
        value_dim: u32,
        q_share: u32,
        k_share: u32,
        v_share: u32,
        first: u32,
        last: u32,
        reach: u32,
        length: u32,
        sequences: u32,
        scale: f32,
        factor_q: f32,
        factor_k: f32,
        eps: f32,
        mix_o: f32,
        mix_local: f32,
        q_at: u32, q_batch: u32, q_head: u32, q_row: u32, q_dim: u32,
        k_at: u32, k_batch: u32, k_head: u32, k_row: u32, k_dim: u32,
        v_at: u32, v_batch: u32, v_head: u32, v_row: u32, v_dim: u32,
        o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
        decay_at: u32, decay_batch: u32, decay_head: u32, decay_token: u32,
        bonus_at: u32, bonus_head: u32, bonus_dim: u32,
        bias_at: u32, bias_head: u32, bias_row: u32, bias_key: u32,
        kv_len_at: u32, kv_len_batch: u32,
        cu_seqlens_at: u32, cu_seqlens_sequence: u32,
    }
}
