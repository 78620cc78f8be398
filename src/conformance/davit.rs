//! DaViT: attention among the tokens of a window, and among channels.

use super::problem::{AttentionProblem, Operand, Problem, Reader};
use crate::{DType, Layout, ops::dims};

/// Windows are batch entries. Channels attend to channels in the same op, with tokens for dims: the channels of
/// k are the queries, those of v the keys, and those of q the values.
pub(super) fn davit(reader: &mut Reader<'_>) -> Result<Problem, String> {
    match reader.case.op.as_str() {
        "window_attention" => Ok(AttentionProblem::of(reader, DType::F32)?.expect("o")),
        "channel_attention" => {
            let mut turned = |name| -> Result<Operand, String> {
                let mut operand = Operand::whole(reader.input(name)?, DType::F32);
                if operand.layout.rank() != 4 {
                    return Err(format!("{name} has not four axes"));
                }
                operand.layout = operand.layout.transposed(2, 3);
                Ok(operand)
            };
            let mut problem = Problem::attention(turned("k")?, turned("v")?, turned("q")?)?;
            let [batch, groups, channels, tokens] = dims(&problem.op.o);
            problem.op.o = Layout::f32([batch, groups, tokens, channels]).transposed(2, 3);
            problem.op.scale = Some((channels as f32).powf(-0.5));
            Ok(problem.expect("o"))
        }
        other => Err(format!("no op covers {other}")),
    }
}
