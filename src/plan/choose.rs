//! Attention: which schedule, and which variant of it.

use super::{SMALL_SUBGROUP, Schedule, Tuning, by_fours, small};
use crate::{
    caps::{Caps, MatrixShape},
    error::{Error, Result},
    kernels::{
        AttentionIo, Kernel, attention_decode, attention_matrix, attention_merge,
        attention_subgroup, attention_tile,
    },
    ops::{Attention, KeyIndex, dims},
    shader::mods::Mods,
    tensor::DType,
};

/// Rows per KV head below which most of a matrix would be empty.
const LEAST_MATRIX_ROWS: u64 = 16;
/// Rows per KV head up to which reading K and V once counts for more than sharing loads.
const MOST_DECODE_ROWS: u64 = 8;
/// Vectors of q, all rows of a workgroup, that the decode schedule holds.
const DECODE_VECTORS: u64 = 256;
/// Rows that one invocation owns in any schedule.
const MOST_OWN_ROWS: u64 = 8;
/// Key ranges that a second pass looks at, twice for each of an invocation's rows.
pub(super) const MOST_PROB_RANGES: u64 = 1024;
/// Bytes of K that a lane of a software device reads before the lanes move on: two pages.
const STRETCH_BYTES: u64 = 8192;

/// A schedule with its variant, as far as planning needs to know it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    Decode(attention_decode::Variant),
    Subgroup(attention_subgroup::Variant),
    Tile(attention_tile::Variant),
    Matrix(attention_matrix::Variant),
}

impl Choice {
    /// The schedule and variant of a kernel, if it is one of these.
    pub(super) fn of(kernel: Kernel) -> Option<Self> {
        match kernel {
            Kernel::AttentionDecode(variant) => Some(Self::Decode(variant)),
            Kernel::AttentionSubgroup(variant) => Some(Self::Subgroup(variant)),
            Kernel::AttentionTile(variant) => Some(Self::Tile(variant)),
            Kernel::AttentionMatrix(variant) => Some(Self::Matrix(variant)),
            _ => None,
        }
    }

    pub(super) fn schedule(self) -> Schedule {
        match self {
            Self::Decode(_) => Schedule::Decode,
            Self::Subgroup(_) => Schedule::Subgroup,
            Self::Tile(_) => Schedule::Tile,
            Self::Matrix(_) => Schedule::Matrix,
        }
    }

    /// The kernel of a pass: one that leaves partial results, and one that reads what such a pass has left.
    pub(super) fn kernel(self, partial: bool, probs: bool, mixed_blocks: bool) -> Kernel {
        let io = |io: AttentionIo| AttentionIo {
            partial,
            probs,
            mixed_blocks,
            // The pass that knows the sums writes it.
            lse: io.lse && !partial && !probs,
            // The sums that a second pass reads hold them already.
            sinks: io.sinks && !probs,
            // The pass that writes the output applies it.
            gate: io.gate && !partial,
            ..io
        };
        match self {
            Self::Decode(variant) => attention_decode::Variant {
                io: io(variant.io),
                ..variant
            }
            .into(),
            Self::Subgroup(variant) => attention_subgroup::Variant {
                io: io(variant.io),
                ..variant
            }
            .into(),
            Self::Tile(variant) => attention_tile::Variant {
                io: io(variant.io),
                ..variant
            }
            .into(),
            Self::Matrix(variant) => attention_matrix::Variant {
                io: io(variant.io),
                ..variant
            }
            .into(),
        }
    }

    pub(super) fn tile_rows(self) -> u64 {
        match self {
            Self::Decode(variant) => variant.rows.into(),
            Self::Subgroup(variant) => variant.tile_rows().into(),
            Self::Tile(_) => attention_tile::TILE.into(),
            Self::Matrix(variant) => variant.tile_rows().into(),
        }
    }

    /// Keys per iteration of the loop over keys.
    pub(super) fn step_keys(self) -> u64 {
        match self {
            Self::Decode(variant) => variant.subgroup.into(),
            Self::Subgroup(variant) => variant.keys.into(),
            Self::Tile(_) => attention_tile::TILE.into(),
            Self::Matrix(variant) => variant.keys.into(),
        }
    }

    fn io(self) -> AttentionIo {
        match self {
            Self::Decode(variant) => variant.io,
            Self::Subgroup(variant) => variant.io,
            Self::Tile(variant) => variant.io,
            Self::Matrix(variant) => variant.io,
        }
    }

    /// Loop iterations for a run of keys.
    fn iterations(self, keys: u64, head_dim: u64) -> u64 {
        match self {
            Self::Decode(variant) => variant.iterations(keys),
            Self::Subgroup(variant) => variant.iterations(keys),
            Self::Tile(variant) => variant.iterations(keys, head_dim),
            Self::Matrix(variant) => variant.iterations(keys),
        }
    }

    /// The most keys that one invocation may loop over.
    pub(super) fn most_keys(self, op: &Attention, budget: u32) -> Option<u64> {
        let [_, _, q_len, head_dim] = dims(&op.q);
        let io = self.io();
        let rows = self.tile_rows();
        let step = self.step_keys();
        // Drivers may count the iterations of all loops of an invocation together, and the check that ends
        // each loop as one: a little is kept for those that are not counted one by one.
        let budget = u64::from(budget);
        let mut budget = (budget - budget / 64).checked_sub(16)?;
        if io.lower {
            // Every row of the tile is asked what it sees, and once more each that an invocation owns; in
            // packed sequences by a search.
            let sequences = op.cu_q.as_ref().map_or(1, |starts| dims(starts)[0]);
            let search = u64::from(u64::BITS - sequences.leading_zeros());
            budget = budget.checked_sub((rows + MOST_OWN_ROWS) * (2 + search))?;
        }
        if io.mods.has_prob() {
            // A second pass first looks at what the ranges of the first have left: see MOST_PROB_RANGES.
            budget = budget.checked_sub(MOST_PROB_RANGES * 2 * MOST_OWN_ROWS)?;
        }
        if io.early {
            // A second run, and a step or a stretch that it does not fill.
            let unfilled = match self {
                Self::Decode(variant) => u64::from(variant.stretch),
                _ => self.iterations(step, head_dim),
            };
            budget = budget.checked_sub(6 + unfilled)?;
        }
        let keys = match &op.block_mask {
            None => {
                let each = self.iterations(step, head_dim);
                match self {
                    Self::Decode(variant) => variant.keys_in(budget),
                    _ => budget / each * step,
                }
            }
            Some(mask) => {
                // Each block is a run, and found by a look at the words of all of the tile's rows.
                let heads = rows.div_ceil(q_len) + 1;
                let pieces =
                    (heads * q_len.div_ceil(mask.block_q)).min(rows.div_ceil(mask.block_q) + heads);
                let looks = 2 + pieces.min(rows);
                let words = dims(&mask.bits)[3].saturating_mul(1 + looks);
                let budget = budget.checked_sub(words)?;
                // Blocks of any length are searched for, at both ends of what is left and for each row; and there may
                // be some without keys before each.
                let (block_kv, looks) = match &op.block_starts {
                    Some(starts) => {
                        let search = u64::from(u64::BITS - dims(starts)[0].leading_zeros()) + 1;
                        (1, 2 * (2 + looks) + search * (4 + MOST_OWN_ROWS))
                    }
                    None => (mask.block_kv, looks),
                };
                let most = |run: u64| {
                    let run_keys = run.saturating_mul(step);
                    let each = self.iterations(run_keys, head_dim) + looks + 6;
                    // Blocks begin anywhere in a range: one more of them.
                    (budget / each)
                        .saturating_sub(1)
                        .saturating_mul(run_keys.min(block_kv))
                };
                let keys = most(block_kv.div_ceil(step).min(1 << 16)).max(most(1));
                if keys > step {
                    keys / step * step
                } else {
                    keys
                }
            }
        };
        (keys > 0).then_some(keys)
    }
}

/// The schedules not chosen, each with its reason.
pub(super) type Rejected = Vec<(Schedule, String)>;

/// The first schedule that runs and suits, in a fixed order; or the one that is asked for.
pub(super) fn choose(
    op: &Attention,
    caps: &Caps,
    tuning: &Tuning,
) -> Result<(Choice, String, Rejected)> {
    let io = given(op)?;
    let [.., value_dim] = dims(&op.v);
    check_numbers(tuning)?;
    let decode = Choice::Decode(decode_variant(op, io, caps, tuning));
    let subgroup = Choice::Subgroup(subgroup_variant(op, io, caps, tuning));
    let tile = Choice::Tile(attention_tile::Variant {
        v_chunks: small(value_dim.div_ceil(attention_tile::TILE.into())),
        io,
    });
    let matrix = matrix_variant(op, io, caps);
    let forced = |schedule| tuning.schedule.is_some_and(|wanted| wanted != schedule);
    let mut rejected = Rejected::new();
    let mut chosen: Option<(Choice, String)> = None;
    for (candidate, why) in [
        (
            decode,
            "few rows per KV head: reading keys and values once is the cost, so each lane reads keys \
             of its own",
        ),
        (
            subgroup,
            "a load costs more than arithmetic on devices with subgroups this small, so each is \
             shared by broadcast",
        ),
        (
            Choice::Matrix(matrix),
            "matrix instructions do both products, and fill on this many rows",
        ),
        (
            tile,
            "needs no subgroup operations: keys and values are shared in workgroup memory",
        ),
    ] {
        let schedule = candidate.schedule();
        // The whole kernel must run, and so must the partial one and the merge.
        let merge = attention_merge::Variant {
            source: attention_merge::Source::Scratch,
            f16: io.f16,
            lse: io.lse,
            gate: io.gate,
        };
        let probs = io.mods.has_prob();
        let mut kernels = vec![
            candidate.kernel(false, probs, false),
            candidate.kernel(true, false, false),
            merge.into(),
        ];
        if probs {
            kernels.push(candidate.kernel(true, true, false));
        }
        let runs = kernels
            .into_iter()
            .try_for_each(|kernel| kernel.supports(caps));
        let reason = if forced(schedule) {
            Some("the caller asked for another".to_owned())
        } else if let Err(reason) = runs {
            Some(reason)
        } else if candidate.most_keys(op, caps.loop_budget).is_none() {
            Some("the loop budget is smaller than one step: measure it (Engine::measure)".into())
        } else if tuning.schedule.is_none()
            && let Some(reason) = unsuited(schedule, op, caps)
        {
            Some(reason)
        } else if chosen.is_some() {
            Some("the one before it fits better".into())
        } else {
            None
        };
        match reason {
            Some(reason) => rejected.push((schedule, reason)),
            None if tuning.schedule.is_some() => {
                chosen = Some((candidate, "the caller asked for it".into()));
            }
            None => chosen = Some((candidate, why.into())),
        }
    }
    let Some((choice, why)) = chosen else {
        let reasons: Vec<String> = rejected
            .iter()
            .map(|(schedule, reason)| format!("{schedule}: {reason}"))
            .collect();
        return Err(Error::unsupported(
            format!("attention with {} tensors", op.q.dtype),
            reasons.join("; "),
            "create the device with these features and limits, or store the tensors as f32",
        ));
    };
    Ok((choice, why, rejected))
}

/// What an op reads and writes.
pub(super) fn given(op: &Attention) -> Result<AttentionIo> {
    Ok(AttentionIo {
        f16: op.q.dtype == DType::F16,
        mask: op.mask.is_some(),
        bias: op.bias.as_ref().map(|bias| bias.dtype == DType::F16),
        lse: op.lse.is_some(),
        partial: false,
        ..terms(op)?
    })
}

/// What an op adds to plain attention.
fn terms(op: &Attention) -> Result<AttentionIo> {
    let reach = op.reach();
    let head_windows = op.head_windows.is_some();
    let left = reach.left.is_some() || head_windows;
    let early = reach.early > 0 || head_windows || (op.prefix_len.is_some() && left);
    let packed = op.cu_q.is_some();
    let mods = Mods::link(&op.mods)?;
    Ok(AttentionIo {
        kv_len: op.kv_len.is_some(),
        q_len: op.q_len.is_some(),
        prefix: op.prefix_len.is_some(),
        packed,
        head_windows,
        // Rows past q_len see nothing, while those before see more with each row.
        lower: left || early || packed || op.q_len.is_some() || mods.has_range(),
        early,
        blocks: op.block_mask.is_some(),
        block_starts: op.block_starts.is_some(),
        lists: op.key_index.is_some(),
        sinks: op.sinks.is_some(),
        gate: op.gate.is_some(),
        softcap: op.softcap.is_some(),
        mods,
        ..AttentionIo::default()
    })
}

/// The matrix variant; without matrices on the device one that it does not support, which says so.
fn matrix_variant(op: &Attention, io: AttentionIo, caps: &Caps) -> attention_matrix::Variant {
    let [.., head_dim] = dims(&op.q);
    let [.., value_dim] = dims(&op.v);
    let shape = caps.matrix(io.f16).unwrap_or(MatrixShape {
        side: if io.f16 { 16 } else { 8 },
        f16: io.f16,
        emulated: false,
    });
    let sizes = (packed_rows(op), small(head_dim), small(value_dim));
    let mut variant = attention_matrix::Variant::new(shape, caps, io, sizes);
    variant.vec4 = [&op.q, &op.k, &op.v, &op.o].into_iter().all(by_fours);
    variant
}

/// Why a schedule that could run is not for this op or device, unless the caller asks for it.
fn unsuited(schedule: Schedule, op: &Attention, caps: &Caps) -> Option<String> {
    let rows = packed_rows(op);
    let wide = caps
        .fixed_subgroup()
        .is_some_and(|size| size > SMALL_SUBGROUP)
        && !caps.software;
    match schedule {
        Schedule::Decode if rows > MOST_DECODE_ROWS => Some(format!(
            "{rows} rows per KV head are enough to share each load among"
        )),
        Schedule::Decode if wide => Some(
            "subgroups of more than 8 lanes: it keeps more per lane than hardware has registers"
                .into(),
        ),
        Schedule::Subgroup if wide => Some(
            "subgroups of more than 8 lanes: workgroup memory is the faster way to share".into(),
        ),
        Schedule::Matrix if rows < LEAST_MATRIX_ROWS => Some(format!(
            "{rows} rows per KV head leave most of a matrix empty"
        )),
        Schedule::Matrix
            if caps
                .matrix(op.q.dtype == DType::F16)
                .is_some_and(|m| m.emulated) =>
        {
            Some("emulated matrices are for tests alone".into())
        }
        Schedule::Matrix if !caps.matrices_checked => Some(
            "not checked on this device: ask for it, tune, or set Caps::matrices_checked".into(),
        ),
        _ => None,
    }
}

fn check_numbers(tuning: &Tuning) -> Result<()> {
    for (name, number) in [("rows", tuning.rows), ("keys", tuning.keys)] {
        if let Some(number) = number
            && !(1..=8).contains(&number)
        {
            return Err(Error::invalid(
                format!("tuning.{name}"),
                number.to_string(),
                "give a number from 1 to 8",
            ));
        }
    }
    Ok(())
}

/// Query rows that share a KV head.
fn packed_rows(op: &Attention) -> u64 {
    let [_, q_heads, q_len, _] = dims(&op.q);
    let [_, kv_heads, ..] = dims(&op.k);
    let group = q_heads / kv_heads.max(1);
    match &op.key_index {
        // Rows that share a list.
        Some(KeyIndex { index, block_q }) => {
            let each = ![1, kv_heads].contains(&dims(index)[1]);
            let heads = if each { 1 } else { group };
            heads * q_len.min(*block_q)
        }
        None => group * q_len,
    }
}

fn decode_variant(
    op: &Attention,
    io: AttentionIo,
    caps: &Caps,
    tuning: &Tuning,
) -> attention_decode::Variant {
    let [.., head_dim] = dims(&op.q);
    let [.., value_dim] = dims(&op.v);
    let vec4 = [&op.q, &op.k, &op.v, &op.o].into_iter().all(by_fours);
    let (d4, v4) = (vectors(head_dim, vec4), vectors(value_dim, vec4));
    // Each row of q stays in registers, or in what takes their place.
    let fit = (DECODE_VECTORS / u64::from(d4.max(v4))).max(1);
    let rows = packed_rows(op)
        .next_power_of_two()
        .min(MOST_DECODE_ROWS)
        .min(fit);
    // A software device reads best when each lane stays in pages of its own; hardware, when
    // neighbours read neighbours.
    let software = caps.cpu_vectors();
    let row_bytes =
        op.k.strides
            .get(2)
            // The stride of an axis of length 1 is whatever the caller left there.
            .map_or(1, |stride| stride.saturating_mul(op.k.dtype.size()))
            .max(1);
    let stretch = if op.key_index.is_some() {
        1
    } else if software {
        small(
            (STRETCH_BYTES / row_bytes)
                .clamp(1, 256)
                .next_power_of_two(),
        )
    } else {
        1
    };
    attention_decode::Variant {
        subgroup: caps.subgroup.map_or(0, |(min, _)| min),
        rows: tuning.rows.unwrap_or(small(rows)),
        stretch,
        d4,
        v4,
        vec4,
        io,
    }
}

fn subgroup_variant(
    op: &Attention,
    io: AttentionIo,
    caps: &Caps,
    tuning: &Tuning,
) -> attention_subgroup::Variant {
    let [.., head_dim] = dims(&op.q);
    let [.., value_dim] = dims(&op.v);
    let vec4 = [&op.q, &op.k, &op.v, &op.o].into_iter().all(by_fours);
    // As many rows as stay near, each with a row of q and one of o; as many keys as keep the code of a
    // step within a CPU's instruction cache, past which it runs at half the speed.
    let (rows, keys) = match head_dim.max(value_dim) {
        ..=16 => (4, 4),
        17..=64 => (4, 2),
        65..=96 => (4, 1),
        97..=128 => (3, 1),
        129..=192 => (2, 1),
        _ => (1, 1),
    };
    let keys = tuning.keys.unwrap_or(keys);
    attention_subgroup::Variant {
        subgroup: caps.subgroup.map_or(0, |(min, _)| min),
        rows: tuning.rows.unwrap_or(rows),
        keys,
        d4: vectors(head_dim, vec4),
        v4: vectors(value_dim, vec4),
        vec4,
        io: AttentionIo {
            mask_words: mask_words(op, caps, keys, io),
            ..io
        },
    }
}

/// Whether the mask's bytes for the keys of each step lie in one word: steps begin at multiples of their length
/// where rows begin at words, and no slice or run of keys begins elsewhere.
fn mask_words(op: &Attention, caps: &Caps, keys: u32, io: AttentionIo) -> bool {
    let Some(mask) = &op.mask else {
        return false;
    };
    let mut axes = mask.strides.iter().zip(&mask.shape).rev();
    let along = axes
        .next()
        .is_some_and(|(&stride, &len)| stride == 1 && len > 1);
    let words = axes.all(|(stride, &len)| len == 1 || stride.is_multiple_of(4));
    let whole = op.tensors().into_iter().all(|(_, layout)| {
        layout.end_bytes() + u64::from(caps.storage_alignment) <= caps.max_binding_bytes
    });
    let steps = matches!(keys, 2 | 4) && !io.lower && !io.runs();
    let steps = steps && op.key_index.is_none();
    along && words && mask.offset.is_multiple_of(4) && whole && steps
}

/// Vectors of four in a row. Rows that are read element by element are padded, so that few
/// variants serve all dims.
fn vectors(dim: u64, vec4: bool) -> u32 {
    let padded = if vec4 {
        dim
    } else if dim <= 8 {
        dim.next_multiple_of(4)
    } else if dim <= 64 {
        dim.next_multiple_of(16)
    } else {
        dim.next_multiple_of(64)
    };
    small(padded.div_ceil(4))
}
