//! HaloNet: the queries of a block of the image see the block and a halo of pixels around it.

use super::{
    case::Values,
    linear::{columns, linear, permuted},
    problem::{Input, Operand, Problem, Reader},
};
use crate::{DType, Layout, Mod, ops::Slot, presets};

/// Linear layers on the host, among them the products of queries and the vectors of relative rows and columns;
/// visibility, and which product belongs to a pair, in the op. Padding is never a key.
pub(super) fn halo(reader: &mut Reader<'_>) -> Result<Problem, String> {
    let size = |name: &str| reader.count(name).map(|size| size as usize);
    let (block, halo) = (size("block")?, reader.size("halo")? as usize);
    let (heads, dim) = (size("heads")?, size("head_dim")?);
    let (x, [batch, channels, height, width]) = reader.shaped("x")?;
    if height % block != 0 || width % block != 0 {
        return Err(format!("{height} x {width} pixels in blocks of {block}"));
    }
    let pixels = height * width;
    let inner = heads * dim;
    let pixels_first = permuted(x, [batch, channels, pixels], [0, 2, 1]);
    let (to_q, [_, _]) = reader.shaped("w.to_q.weight")?;
    let (to_kv, [_, _]) = reader.shaped("w.to_kv.weight")?;
    let q = linear(&pixels_first, to_q, channels, None);
    let kv = linear(&pixels_first, to_kv, channels, None);
    if [q.len(), kv.len()] != [batch * pixels * inner, 2 * batch * pixels * inner] {
        return Err("layers of another size than heads and head_dim say".into());
    }
    let (rel_height, [distances, _]) = reader.shaped("w.rel_pos_emb.rel_height")?;
    let (rel_width, [across, _]) = reader.shaped("w.rel_pos_emb.rel_width")?;
    let window = block + 2 * halo;
    if [distances, across] != [2 * window - 1; 2] {
        return Err(format!("tables of {distances} and {across} distances"));
    }
    // Of scaled queries: [batch, pixels, heads, distances].
    let scale = (dim as f64).powf(-0.5) as f32;
    let scaled: Vec<f32> = q.iter().map(|x| x * scale).collect();
    let [by_row, by_column] =
        [rel_height, rel_width].map(|table| linear(&scaled, table, dim, None));

    let shape = [batch, pixels, heads, dim].map(|len| len as u64);
    let operand =
        |values| Operand::heads_inside(Input::Given(Values::Real(values)), DType::F32, shape);
    let mut problem = Problem::attention(
        operand(q),
        operand(columns(&kv, 2 * inner, 0, inner)),
        operand(columns(&kv, 2 * inner, inner, inner)),
    )?;
    problem.output_heads_inside();
    let image = [height, width].map(|len| len as u64);
    problem.preset(
        presets::halo_blocks(image, block as u64, halo as u64),
        Vec::new(),
    )?;
    let change = Mod::new(format!(
        "// How far a key is from the first key that the query's block sees, less how far the query is from the
        // first of its block.
        fn from_window(query: u32, key: u32) -> i32 {{
            return i32(key + {halo}u) - i32(query);
        }}
        fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32 {{
            let last = (({pixels}u * batch + q_index) * {heads}u + head) * {distances}u + {window}u - 1u;
            let row = i32(last) + from_window(q_index / {width}u, kv_index / {width}u);
            let column = i32(last) + from_window(q_index % {width}u, kv_index % {width}u);
            return score + by_row(u32(row)) + by_column(u32(column));
        }}"
    ));
    let layout = Layout::f32([batch, pixels, heads, distances].map(|len| len as u64));
    problem.modified(
        change
            .buffer("by_row", layout.clone())
            .buffer("by_column", layout),
        vec![Values::Real(by_row), Values::Real(by_column)],
    );
    Ok(problem.done().expect_host("o", move |outputs| {
        // [batch, pixels, heads * dim] to [batch, heads * dim, height, width].
        Ok(permuted(
            outputs.of(0, Slot::O)?,
            [batch, pixels, inner],
            [0, 2, 1],
        ))
    }))
}
