//! Neighbourhood attention as NATTEN has it: windows that are shifted at the borders, along 1 to 3 axes.

use serde_json::Value;

use super::problem::{AttentionProblem, Problem, Reader};
use crate::{
    DType,
    ops::dims,
    presets::{self, NeighborhoodAxis},
};

/// Each query sees `kernel_size` keys along each axis, every `dilation`-th; `stride` queries share those of
/// one of them.
pub(super) fn neighborhood(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    let shape = list(reader, "shape", Value::as_u64)?;
    let kernel = list(reader, "kernel_size", Value::as_u64)?;
    let stride = list(reader, "stride", Value::as_u64)?;
    let dilation = list(reader, "dilation", Value::as_u64)?;
    let causal = list(reader, "is_causal", Value::as_bool)?;
    let places = shape
        .iter()
        .try_fold(1u64, |all, &len| all.checked_mul(len));
    if places != Some(dims(&problem.op.q)[2]) {
        return Err(format!("shape {shape:?} is not that of the queries"));
    }
    let axes = shape
        .iter()
        .zip(kernel)
        .zip(stride)
        .zip(dilation)
        .zip(causal);
    let axes: Vec<NeighborhoodAxis> = axes
        .map(|((((&len, kernel), stride), dilation), causal)| {
            let axis = NeighborhoodAxis::new(len, kernel)
                .stride(stride)
                .dilation(dilation);
            if causal { axis.causal() } else { axis }
        })
        .collect();
    problem.preset(presets::neighborhood(&axes), Vec::new())?;
    problem.op = problem.op.with_lse();
    Ok(problem.expect("o").expect_visible("allowed"))
}

/// A value per axis.
fn list<T>(
    reader: &Reader<'_>,
    name: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, String> {
    let axes = reader.case.params["shape"].as_array().map_or(0, Vec::len);
    reader.case.params[name]
        .as_array()
        .filter(|values| values.len() == axes)
        .and_then(|values| values.iter().map(read).collect())
        .ok_or_else(|| format!("params has no list `{name}` of a value per axis"))
}
