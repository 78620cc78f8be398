//! What a plan should cost, from its outline alone.
//!
//! For devices that run on CPU vectors the model counts instructions: a vector load is a loop over
//! the lanes, products read an operand from the stack, and code past the instruction cache runs at
//! half the speed. Its constants were fitted to sweeps over rows, keys and dims on llvmpipe with two
//! cores (`the_model_agrees_with_sweeps` holds it to them). For hardware it is a roofline with
//! guessed shares: it says only what to try first.

use serde::Serialize;

use crate::{
    caps::Caps,
    kernels::{Kernel, attention_decode, attention_subgroup, attention_tile},
    ops::{Attention, Op, dims},
    plan::Outline,
};

/// What a plan should cost.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Estimate {
    /// Tiles of rows times steps of keys that are visited, or rows of a softmax.
    pub visited_tiles: f64,
    /// Bytes moved, those that several tiles read counted for each.
    pub bytes: f64,
    /// Workgroups of the largest dispatch.
    pub workgroups: f64,
    /// Code of the loop over keys, in bytes, on a device that runs on CPU vectors.
    pub code_bytes: f64,
    /// First compilation, in ms, there.
    pub compile_ms: f64,
    /// Time, in ms, on the device that the model was made on.
    pub ms: f64,
}

/// Cycles per ms of all cores of the model's device.
const CYCLES_PER_MS: f64 = 2.0 * 3.6e6;
/// Instructions executed for a load of a vector of four by eight lanes, and their code.
const LOAD_INSTRUCTIONS: f64 = 360.0;
const LOAD_BYTES: f64 = 900.0;
/// Bytes of an instruction, on average.
const INSTRUCTION_BYTES: f64 = 6.7;
/// Instructions of a product with its sum, for scores.
const SCORE_INSTRUCTIONS: f64 = 3.25;
/// Instructions of an accumulator per step besides its products: load, rescale, mask and store.
const CARRY_INSTRUCTIONS: f64 = 5.4;
/// Instructions of a weight: maximum, exponential and sum.
const WEIGHT_INSTRUCTIONS: f64 = 30.0;
/// Bytes of the first-level data cache that rows of q and o may fill.
const NEAR_BYTES: f64 = 40e3;
/// K and V past this many bytes come from memory each time.
const CACHE_BYTES: f64 = 16e6;
/// What waiting for memory adds to keys that are read in one stream, which prefetching serves badly.
const STALLED_BYTES_PER_MS: f64 = 14e6;
/// Cycles of launching a workgroup.
const LAUNCH_CYCLES: f64 = 8e3;

impl Estimate {
    /// The estimate for an outline on a device.
    pub fn of(outline: &Outline, caps: &Caps) -> Self {
        let software = caps.cpu_vectors();
        let workgroups = outline
            .steps
            .iter()
            .map(|step| step.grid.iter().map(|&side| f64::from(side)).product())
            .fold(1.0, f64::max);
        let kernel = outline.steps.first().map(|step| step.kernel);
        let loops = match (&outline.op, kernel) {
            (Op::Attention(op), Some(kernel)) => Some((op, Loop::of(op, kernel))),
            _ => None,
        };
        let Some((op, step)) = loops else {
            return Self::softmax(outline, workgroups);
        };
        let [batch, q_heads, q_len, head_dim] = dims(&op.q);
        let [_, kv_heads, kv_len, value_dim] = dims(&op.v);
        let heads = (batch * kv_heads) as f64;
        let rows = (q_heads / kv_heads.max(1) * q_len) as f64;
        let row_tiles = match &op.key_index {
            // Tiles hold the rows of one list.
            Some(lists) => {
                let shared = (lists.block_q as f64 / q_len.max(1) as f64).min(1.0) * rows;
                (rows / shared).ceil() * (shared / step.rows).ceil()
            }
            None => (rows / step.rows).ceil(),
        };
        // A tile visits what its rows see together: about half a tile more than each alone.
        let seen = op.visible_pairs() / q_len.max(1) as f64;
        let seen = if seen < kv_len as f64 {
            (seen + step.rows.min(q_len as f64) / 2.0).min(kv_len as f64)
        } else {
            seen
        };
        // A tile visits what any of its rows' blocks see. How many those are, nobody knows: what counts is how many
        // blocks of queries it spans, and that each row is then asked about each key.
        let spanned = match &op.block_mask {
            Some(mask) if mask.block_q as f64 % step.rows != 0.0 => {
                1.2 * (1.0 + step.rows / mask.block_q as f64).min(MOST_SPANNED)
            }
            _ => 1.0,
        };
        let seen = seen * spanned;
        let visited_tiles = heads * row_tiles * (seen / step.keys).ceil();
        let size = op.q.dtype.size() as f64;
        let read = heads * row_tiles * seen * (head_dim + value_dim) as f64 * size;
        let bytes = read + 2.0 * outline.scratch_bytes as f64;
        // What is left of the device when the last workgroups run, and the launches.
        let idle = if software {
            1.0 + 1.0 / workgroups
        } else {
            (HARDWARE_WORKGROUPS / workgroups).max(1.0)
        };
        let ms = if software {
            let cycles = visited_tiles * step.cycles() + workgroups * LAUNCH_CYCLES;
            let scratch = outline.scratch_bytes as f64 / 4.0 * 20.0;
            let far = heads * kv_len as f64 * (head_dim + value_dim) as f64 * size > CACHE_BYTES;
            let waiting = if far && step.one_stream {
                read / STALLED_BYTES_PER_MS
            } else {
                0.0
            };
            (cycles * idle + scratch) / CYCLES_PER_MS + waiting
        } else {
            let flops = visited_tiles * step.rows * step.keys * 2.0 * (head_dim + value_dim) as f64;
            (flops / step.hardware_flops).max(bytes / HARDWARE_BYTES) * idle * 1e3
        };
        Self {
            visited_tiles,
            bytes,
            workgroups,
            code_bytes: step.code_bytes,
            compile_ms: step.compile_ms,
            ms,
        }
    }

    fn softmax(outline: &Outline, workgroups: f64) -> Self {
        let bytes: f64 = outline
            .op
            .tensors()
            .into_iter()
            .map(|(_, layout)| (layout.elements() * layout.dtype.size()) as f64)
            .sum();
        let passes = if outline.splits > 1 { 1.5 } else { 1.0 };
        Self {
            visited_tiles: workgroups,
            bytes,
            workgroups,
            ms: bytes * passes / SOFTMAX_BYTES_PER_MS,
            ..Self::default()
        }
    }
}

/// Softmax on the model's device.
const SOFTMAX_BYTES_PER_MS: f64 = 8e6;
/// A mid-range GPU: bytes per second, and workgroups that fill it.
const HARDWARE_BYTES: f64 = 500e9;
const HARDWARE_WORKGROUPS: f64 = 256.0;

/// A guess, as no device has run the matrix schedule yet: well above what the tile schedule reaches.
const MATRIX_FLOPS: f64 = 2e13;

/// Blocks of queries in a tile past which it visits about all that anyone sees.
const MOST_SPANNED: f64 = 8.0;

/// The loop over keys of a kernel.
struct Loop {
    rows: f64,
    keys: f64,
    instructions: f64,
    code_bytes: f64,
    compile_ms: f64,
    near_bytes: f64,
    /// Whether all lanes read the same keys, one after another.
    one_stream: bool,
    /// What a mid-range GPU would do with it, per second.
    hardware_flops: f64,
}

impl Loop {
    fn of(op: &Attention, kernel: Kernel) -> Self {
        match kernel {
            Kernel::AttentionSubgroup(variant) => Self::subgroup(variant),
            Kernel::AttentionDecode(variant) => Self::decode(variant),
            Kernel::AttentionMatrix(variant) => Self {
                rows: variant.tile_rows().into(),
                keys: variant.keys.into(),
                hardware_flops: MATRIX_FLOPS,
                ..Self::tile(op)
            },
            _ => Self::tile(op),
        }
    }

    fn new(
        (rows, keys): (f64, f64),
        (loads, instructions): (f64, f64),
        near_bytes: f64,
        hardware_flops: f64,
    ) -> Self {
        let code_bytes = loads * LOAD_BYTES + instructions * INSTRUCTION_BYTES;
        Self {
            rows,
            keys,
            instructions: loads * LOAD_INSTRUCTIONS + instructions,
            code_bytes,
            compile_ms: 150.0 + code_bytes / 1e3 * 15.0,
            near_bytes,
            one_stream: true,
            hardware_flops,
        }
    }

    fn subgroup(variant: attention_subgroup::Variant) -> Self {
        let of = |number: u32| f64::from(number);
        let (rows, keys) = (of(variant.rows), of(variant.keys));
        let (d4, v4, lanes) = (of(variant.d4), of(variant.v4), of(variant.subgroup));
        let loads = (keys * d4 / lanes).ceil() + (keys * v4 / lanes).ceil();
        let scores = rows * keys * d4 * 4.0 * SCORE_INSTRUCTIONS;
        let values = rows * v4 * 4.0 * (2.0 * keys + CARRY_INSTRUCTIONS);
        let weights = rows * (keys + 1.0) * WEIGHT_INSTRUCTIONS;
        let vector = lanes * 4.0 * 4.0;
        Self::new(
            (rows * lanes, keys),
            // Elements one by one cost a load each.
            (
                if variant.vec4 { loads } else { 2.5 * loads },
                scores + values + weights,
            ),
            rows * (d4 + 2.0 * v4) * vector,
            1e12,
        )
    }

    fn decode(variant: attention_decode::Variant) -> Self {
        let of = |number: u32| f64::from(number);
        let (rows, lanes) = (of(variant.rows), of(variant.subgroup));
        let (d4, v4) = (of(variant.d4), of(variant.v4));
        let chunks = (v4 / lanes).ceil();
        let loads = d4 + lanes * chunks;
        let scores = rows * d4 * 4.0 * 2.5;
        let values = rows * chunks * 4.0 * (2.5 * lanes + CARRY_INSTRUCTIONS);
        let weights = rows * (3.0 * lanes + 2.0 * WEIGHT_INSTRUCTIONS);
        let vector = lanes * 4.0 * 4.0;
        let step = Self::new(
            (rows, lanes),
            (
                if variant.vec4 { loads } else { 2.5 * loads },
                scores + values + weights,
            ),
            rows * (d4 + 2.0 * chunks) * vector,
            3e12,
        );
        Self {
            one_stream: false,
            ..step
        }
    }

    fn tile(op: &Attention) -> Self {
        let [.., head_dim] = dims(&op.q);
        let [.., value_dim] = dims(&op.v);
        let side = f64::from(attention_tile::TILE);
        // Barriers and workgroup memory cost CPU vectors about 25 times what registers do.
        let instructions = side * side * (head_dim + value_dim) as f64 * 5.0;
        Self {
            rows: side,
            keys: side,
            instructions,
            code_bytes: 20e3,
            compile_ms: 400.0,
            near_bytes: 14e3,
            one_stream: true,
            hardware_flops: 5e12,
        }
    }

    /// Cycles of a turn of the loop.
    fn cycles(&self) -> f64 {
        let per_cycle = (6.35 - 0.05 * self.code_bytes / 1e3).clamp(3.0, 5.4);
        let far = (1.0 + 0.03 * (self.near_bytes - NEAR_BYTES) / 1e3).max(1.0);
        self.instructions / per_cycle * far
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Causal, Layout, Schedule, Tuning};

    /// (rows, keys, ms) of the subgroup schedule on llvmpipe, two cores, best variants of
    /// `foveate tune`; 8 heads and 1,024 queries and keys but where said.
    fn sweep(dim: u64, heads: u64, kv_heads: u64, causal: Causal, times: &[(u32, u32, f64)]) {
        let caps = Caps {
            subgroup: Some((8, 8)),
            software: true,
            workgroup_bytes: 32 << 10,
            ..Caps::minimum()
        };
        let q = Layout::f32([1, heads, 1024, dim]);
        let k = Layout::f32([1, kv_heads, 1024, dim]);
        let op: Op = Attention::new(q, k.clone(), k).causal(causal).into();
        let estimate = |&(rows, keys, _): &(u32, u32, f64)| {
            let tuning = Tuning {
                schedule: Some(Schedule::Subgroup),
                rows: Some(rows),
                keys: Some(keys),
                splits: None,
            };
            let outline = Outline::new(&op, &caps, &tuning).expect("plans");
            Estimate::of(&outline, &caps).ms
        };
        let least = times.iter().map(|time| time.2).fold(f64::MAX, f64::min);
        let chosen = times
            .iter()
            .min_by(|a, b| estimate(a).total_cmp(&estimate(b)))
            .expect("there are times");
        assert!(
            chosen.2 <= least * 1.12,
            "dim {dim}: the model prefers {chosen:?}, the best took {least} ms"
        );
        for time in times {
            let ratio = estimate(time) / time.2;
            assert!((0.5..2.0).contains(&ratio), "dim {dim}: {time:?}: {ratio}");
        }
    }

    #[test]
    fn the_model_agrees_with_sweeps() {
        let none = Causal::None;
        sweep(
            64,
            8,
            8,
            none,
            &[
                (4, 4, 37.7),
                (4, 2, 30.3),
                (4, 1, 30.9),
                (3, 2, 29.4),
                (3, 4, 42.1),
                (6, 2, 36.9),
                (8, 2, 33.6),
            ],
        );
        sweep(
            128,
            8,
            2,
            Causal::TopLeft,
            &[
                (2, 4, 52.7),
                (2, 2, 45.8),
                (2, 1, 38.0),
                (1, 4, 77.1),
                (1, 2, 50.2),
                (3, 1, 33.9),
                (3, 2, 45.4),
                (4, 1, 41.7),
            ],
        );
        sweep(
            96,
            4,
            4,
            none,
            &[
                (4, 1, 22.1),
                (3, 1, 24.7),
                (3, 2, 29.1),
                (2, 2, 23.9),
                (2, 1, 28.9),
            ],
        );
        sweep(192, 4, 4, none, &[(2, 1, 53.9), (1, 1, 79.6), (3, 1, 69.6)]);
        sweep(
            32,
            4,
            4,
            none,
            &[(4, 4, 8.7), (4, 2, 7.6), (3, 4, 7.7), (6, 4, 9.3)],
        );
    }
}
