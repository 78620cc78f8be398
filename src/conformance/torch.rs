//! PyTorch's `scaled_dot_product_attention`, and the layers of a real encoder.

use safetensors::Dtype;

use super::problem::{AttentionProblem, Problem, Reader};
use crate::{Causal, DType};

/// `o = softmax(scale q k^T + mask) v`. A boolean mask says what is visible.
pub(super) fn sdpa(reader: &mut Reader<'_>, half: DType) -> Result<Problem, String> {
    let case = reader.case;
    let f16 = case.params["inputs_f16_exact"] == true;
    let dtype = if f16 { half } else { DType::F32 };
    let mut problem = AttentionProblem::of(reader, dtype)?;
    problem.op.causal = match &case.params["causal"] {
        serde_json::Value::Null => Causal::None,
        name if name == "top_left" => Causal::TopLeft,
        name if name == "bottom_right" => Causal::BottomRight,
        other => return Err(format!("causal {other}")),
    };
    if let Some(mask) = reader.optional("attn_mask") {
        problem.mask_or_bias(DType::F32, mask.clone())?;
    }
    problem.op = problem.op.with_lse();
    let mut problem = problem.expect("o");
    problem.storage = f16.then_some(Dtype::F16);
    Ok(problem)
}

/// Key `j` of sequence `b` is visible when `j < kv_len[b]`.
pub(super) fn real(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    problem.kv_len(reader.input("kv_len")?.lengths()?);
    problem.op = problem.op.with_lse();
    Ok(problem.expect("o"))
}
