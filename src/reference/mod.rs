//! The ops on the CPU in f64, written from their formulas: what the kernels are checked against.

mod aft_full;
mod attention;
mod evict;
mod flow_attention;
mod gather;
mod hrr_attention;
mod linear_attention;
mod merge;
mod patterns;
mod pool;
pub mod presets;
mod random_features;
mod rotary;
mod route;
mod route_scores;
mod scan;
mod scatter;
mod short_conv;
mod softmax;
mod sort;
mod top_k;
mod weights;

pub use aft_full::{AftFullInputs, aft_full};
pub use attention::{AttentionInputs, AttentionOutputs, Change, Pair, attention};
pub use evict::{EvictInputs, Kept, evict};
pub use flow_attention::{FlowAttentionInputs, flow_attention};
pub use gather::{GatherInputs, gather, scatter_mean};
pub use hrr_attention::{HrrAttentionInputs, hrr_attention};
pub use linear_attention::{
    LinearAttentionInputs, LinearAttentionOutputs, linear_attention, linear_attention_quadratic,
};
pub use merge::{merge, merge_gated};
pub use patterns::{jensen_shannon, vertical_slash};
pub use pool::{PoolInputs, pool};
pub use random_features::random_features;
pub use rotary::{RotaryInputs, rotary};
pub use route::{RouteInputs, Routed, route};
pub use route_scores::{RouteScoresInputs, route_scores};
pub use scan::{ScanInputs, ScanOutputs, scan};
pub use scatter::scatter;
pub use short_conv::{ShortConvInputs, ShortConvOutputs, short_conv};
pub use softmax::softmax;
pub use sort::{ClusterUpdateInputs, Sorted, cluster_update, sort};
pub use top_k::{TopKRule, TopPRule, top_k, top_p};
pub use weights::{Matrix, weights};

/// The error measure used everywhere: `max |x - reference| / RMS(reference)`.
///
/// Entries that are infinite in the reference must be equal; where one is not, or a number is
/// NaN, or the lengths differ, the error is infinite. A reference of all zeros is measured
/// absolutely. Non-finite entries do not count in the RMS.
pub fn error(x: &[f32], reference: &[f64]) -> f64 {
    if x.len() != reference.len() {
        return f64::INFINITY;
    }
    let finite = reference.iter().filter(|r| r.is_finite());
    let (count, squares) = finite.fold((0u64, 0.0), |(n, sum), r| (n + 1, sum + r * r));
    let rms = (squares / count.max(1) as f64).sqrt();
    let mut worst = 0.0f64;
    for (&x, &r) in x.iter().zip(reference) {
        let difference = if r.is_finite() {
            (f64::from(x) - r).abs()
        } else if f64::from(x) == r {
            0.0
        } else {
            f64::INFINITY
        };
        // Not max(): it would lose NaN.
        if difference.is_nan() {
            return f64::INFINITY;
        }
        worst = worst.max(difference);
    }
    if rms > 0.0 { worst / rms } else { worst }
}

/// `count` numbers that look like a standard normal sample, the same for the same seed: inputs for
/// checks and measurements.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    // SplitMix64 (Steele et al., 2014), then Box-Muller.
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count)
        .map(|_| {
            let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
        })
        .collect()
}
