//! Attention to blocks of keys that somebody else has chosen: FlexPrefill's masks.

use super::{
    case::Values,
    problem::{AttentionProblem, Problem, Reader},
};
use crate::{Attention, BlockMask, Causal, DType, Layout, ops::dims};

/// The blocks are an input of the case: `[heads, q_blocks, k_blocks]`.
pub(super) fn flexprefill(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let mut problem = AttentionProblem::of(reader, DType::F32)?;
    let block = reader.count("block_size")? as u64;
    let mask = reader.input("block_mask")?;
    let Values::Boolean(seen) = &mask.values else {
        return Err("block_mask holds no booleans".into());
    };
    let [heads, rows, columns] = mask.shape[..] else {
        return Err(format!("block_mask has shape {:?}", mask.shape));
    };
    if [heads, rows, columns] != expected(&problem.op, block) {
        return Err(format!("block_mask has shape {:?}", mask.shape));
    }
    let words: Vec<i64> = seen.chunks(columns as usize).flat_map(packed).collect();
    let bits = Layout::new(DType::U32, [1, heads, rows, columns.div_ceil(32)]);
    problem.blocks(
        BlockMask {
            bits,
            block_q: block,
            block_kv: block,
        },
        Values::Integer(words),
    );
    problem.op.causal = Causal::TopLeft;
    Ok(problem.expect("o"))
}

/// Heads, blocks of queries and blocks of keys of an attention.
fn expected(op: &Attention, block: u64) -> [u64; 3] {
    let ([_, heads, queries, _], [_, _, keys, _]) = (dims(&op.q), dims(&op.k));
    [heads, queries.div_ceil(block), keys.div_ceil(block)]
}

/// Booleans as bits, 32 in a word, the first the lowest.
fn packed(row: &[bool]) -> Vec<i64> {
    let word = |some: &[bool]| {
        some.iter()
            .rev()
            .fold(0, |word, &bit| word << 1 | i64::from(bit))
    };
    row.chunks(32).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bit_is_the_lowest() {
        let mut row = vec![false; 34];
        (row[0], row[3], row[33]) = (true, true, true);
        assert_eq!(packed(&row), [9, 2]);
    }
}
