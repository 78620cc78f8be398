//! Known modifications of attention as [`Mod`]s: biases by position, windows of images,
//! masks, and blends of weights.
//!
//! Each is WGSL with its numbers written into it; what is large lies in buffers, which are bound in the order
//! that the constructor takes them. Several may be given to one op, with or without mods of the caller's own.
//! The same functions in f64 are in [`crate::reference::presets`].
//!
//! Places of queries: where a preset takes a [`Corner`], query `i` stands at key `i` (top left), or at key
//! `i + kv_len - q_len` with the batch entry's own lengths (bottom right). The others count queries and keys
//! from 0.
//!
//! ```
//! use foveate::{Attention, Layout, Op, presets::{self, NeighborhoodAxis}};
//!
//! # fn main() -> foveate::Result<()> {
//! // Each pixel of a 14 x 14 image sees the 7 x 7 around it.
//! let image = Layout::f32([1, 8, 14 * 14, 32]);
//! let near = presets::neighborhood(&[NeighborhoodAxis::new(14, 7); 2])?;
//! let op = Attention::new(image.clone(), image.clone(), image).modified(near);
//! Op::from(op).check()
//! # }
//! ```

mod grids;
mod masks;
mod positions;
mod weights;

pub use grids::{NeighborhoodAxis, halo_blocks, image_windows, neighborhood};
pub use masks::{bit_mask, dilated_window, documents, shifted_groups, tree};
pub use positions::{
    T5Buckets, alibi, alibi_slopes, alibi_symmetric, first_key_scale, forgetting_gates,
    image_positions, relative_positions, t5_positions,
};
pub use weights::{toward_identity, toward_uniform};

use super::{Causal, Corner, Mod};
use crate::{
    error::{Error, Result},
    tensor::{DType, Layout},
};

/// Longest axis, window, distance: sums of a few of them fit 32 bits with a sign.
const MAX_LENGTH: u64 = 1 << 28;

const SCORE: &str =
    "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32";
const MASK: &str = "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool";
const RANGE: &str = "fn key_range(batch: u32, head: u32, q_index: u32) -> vec2<u32>";

/// Takes a buffer of this type and rank, whose places 32 bits can count.
fn check(name: &str, layout: &Layout, dtype: DType, rank: usize) -> Result<()> {
    if layout.dtype != dtype || layout.rank() != rank {
        return Err(Error::invalid(
            name,
            format!("{} of shape {:?}", layout.dtype, layout.shape),
            format!("give {dtype} with {rank} axes"),
        ));
    }
    if layout.elements() == 0 || layout.elements() > u64::from(u32::MAX) {
        return Err(Error::invalid(
            name,
            format!("shape {:?}", layout.shape),
            "give from 1 to 2^32 - 1 elements",
        ));
    }
    Ok(())
}

/// Takes a length, window or distance.
fn check_length(name: &str, length: u64, least: u64) -> Result<()> {
    if (least..=MAX_LENGTH).contains(&length) {
        Ok(())
    } else {
        Err(Error::invalid(
            name,
            length.to_string(),
            format!("give from {least} to 2^28"),
        ))
    }
}

/// An axis of a layout that has been checked to have it.
fn axis(layout: &Layout, axis: usize) -> u64 {
    layout.shape.get(axis).copied().unwrap_or(1)
}

/// The number of a batch entry or head in a buffer that may hold one for all.
fn shared(index: &str, count: u64) -> &str {
    if count == 1 { "0u" } else { index }
}

/// The key at which a query stands, as i32.
fn place(corner: Corner) -> &'static str {
    match corner {
        Corner::TopLeft => "i32(q_index)",
        Corner::BottomRight => {
            "(i32(q_index) + i32(valid_keys(batch)) - i32(valid_queries(batch)))"
        }
    }
}
