//! Attention sinks: first keys that stay in view (DuoAttention's streaming heads), and learned logits in the
//! denominator (gpt-oss).

use super::problem::{AttentionProblem, Problem, Reader};
use crate::{Causal, DType, Window, ops::dims};

/// Each head sees its `recent` last keys and the `sink` first ones.
pub(super) fn duo(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    let size = |name| {
        let size = reader.size(name)?;
        u32::try_from(size).map_err(|_| format!("`{name}` in params is {size}"))
    };
    let window = [size("recent")?, size("sink")?];
    problem.op.causal = Causal::TopLeft;
    problem.head_windows(&vec![window; dims(&problem.op.q)[1] as usize]);
    Ok(problem.expect("o").expect_visible("allowed"))
}

/// A logit per head in the denominator; a window of `window` keys, the query's own among them.
pub(super) fn sink(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    problem.sinks(reader.input("sinks")?.reals()?.to_vec());
    if reader.flag("causal") {
        problem.op.causal = Causal::TopLeft;
    }
    problem.op.window = window(reader, "window")?;
    Ok(problem.expect("o").expect_visible("allowed"))
}

/// A window of that many keys, if there is one.
pub(super) fn window(reader: &Reader<'_>, name: &str) -> Result<Option<Window>, String> {
    match reader.optional_size(name)? {
        None => Ok(None),
        Some(0) => Err(format!("`{name}` in params is 0, and leaves no key")),
        Some(keys) => Ok(Some(Window {
            left: Some(keys - 1),
            ..Window::default()
        })),
    }
}
