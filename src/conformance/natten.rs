//! Neighbourhood attention as NATTEN has it: windows that are shifted at the borders, along 1 to 3 axes.

use serde_json::Value;

use super::problem::{AttentionProblem, Problem, Reader};
use crate::{DType, Mod, ops::dims};

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
    let mut text = String::from(AXIS);
    text += "fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool {
        var q = q_index;
        var k = kv_index;
        var seen = true;
";
    let axes = shape
        .iter()
        .zip(kernel)
        .zip(stride)
        .zip(dilation)
        .zip(causal);
    for ((((len, kernel), stride), dilation), causal) in axes.rev() {
        if [*len, kernel, stride, dilation].contains(&0) {
            return Err("an axis, kernel, stride or dilation of 0".into());
        }
        text += &format!(
            "seen = seen && near(q % {len}u, k % {len}u, {len}u, {kernel}u, {stride}u, {dilation}u, {causal});
            q /= {len}u;
            k /= {len}u;
"
        );
    }
    text += "return seen;\n}\n";
    problem.modified(Mod::new(text), Vec::new());
    problem.op = problem.op.with_lse();
    Ok(problem.expect("o").expect_visible("allowed"))
}

/// Whether a query sees a key along an axis of this length.
const AXIS: &str = "
fn near(q: u32, k: u32, len: u32, kernel: u32, stride: u32, dilation: u32, causal: bool) -> bool {
    if (q % dilation != k % dilation) {
        return false;
    }
    let last = (len - q % dilation + dilation - 1u) / dilation - 1u;
    let place = q / dilation;
    let key = k / dilation;
    let first = place / stride * stride;
    if (causal) {
        let leader = min(first + stride - 1u, last);
        return key <= place && key + kernel > leader;
    }
    let leader = min(first + stride / 2u, last);
    let start = clamp(i32(leader) - i32(kernel / 2u), 0, i32(last + 1u) - i32(kernel));
    return i32(key) >= start && i32(key) < start + i32(kernel);
}
";

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
