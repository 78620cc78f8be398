//! Weights after the softmax, blended with other weights.

use super::{Causal, Corner, Mod, Result, axis, check, place, shared};
use crate::tensor::{DType, Layout};

const PROB: &str =
    "fn prob_mod(weight: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32";

/// Blended toward identity attention: `(1 - factor[head]) weight`, and `factor[head]` more at the key where the
/// query stands, if that key is visible.
///
/// `factors` is f32 `[q_heads or 1]`. The other choice of a corner counts places as elsewhere in this module.
/// Source: perturbed attention guidance (Ahn et al., arXiv:2403.17377), with a degree per head.
///
/// # Errors
/// [`crate::Error::Invalid`] for another layout.
pub fn toward_identity(factors: Layout, corner: Corner) -> Result<Mod> {
    check("factors", &factors, DType::F32, 1)?;
    let head = shared("head", axis(&factors, 0));
    let place = place(corner);
    Ok(Mod::new(format!(
        "{PROB} {{
    let factor = factors({head});
    return weight + factor * (select(0.0, 1.0, i32(kv_index) == {place}) - weight);
}}"
    ))
    .buffer("factors", factors))
}

/// Blended toward uniform attention: `(1 - factor[head]) weight + factor[head] / keys`, where `keys` counts those
/// that lengths and `causal` let the query see: nothing else may hide keys if the weights are to sum to 1.
///
/// `factors` is f32 `[q_heads or 1]`; `causal` is that of the op.
///
/// # Errors
/// [`crate::Error::Invalid`] for another layout.
pub fn toward_uniform(factors: Layout, causal: Causal) -> Result<Mod> {
    check("factors", &factors, DType::F32, 1)?;
    let head = shared("head", axis(&factors, 0));
    let keys = match causal {
        Causal::None => "i32(valid_keys(batch))".to_owned(),
        Causal::TopLeft => seen(Corner::TopLeft),
        Causal::BottomRight => seen(Corner::BottomRight),
    };
    Ok(Mod::new(format!(
        "{PROB} {{
    let factor = factors({head});
    return weight + factor * (1.0 / f32(max({keys}, 1)) - weight);
}}"
    ))
    .buffer("factors", factors))
}

/// The keys up to a query's own place.
fn seen(corner: Corner) -> String {
    format!("min({} + 1, i32(valid_keys(batch)))", place(corner))
}
