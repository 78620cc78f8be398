//! The stored inputs and outputs of the encoder, and their references.

use std::fmt::Display;

use safetensors::{Dtype, SafeTensors};

use crate::{
    Causal, Error, Result,
    reference::{AttentionInputs, AttentionOutputs, attention},
};

/// Heads of each layer.
pub(super) const HEADS: usize = 12;
const BATCH: usize = 2;

/// One layer of the encoder on the two passages. Tensors are `[2, 12, len, dim]`, contiguous.
pub(super) struct Layer {
    /// Which layer of the encoder.
    pub number: u32,
    /// Tokens of the longer passage, and so rows of every tensor.
    pub len: usize,
    /// Dims of a head.
    pub dim: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    /// Valid tokens of each passage.
    pub lens: Vec<u32>,
    pub scale: f32,
    /// The valid tokens of each passage.
    pub tokens: Vec<Vec<String>>,
    /// Where the numbers come from, as the file says it.
    pub source: String,
    /// Stored outputs.
    pub stored: AttentionOutputs,
    /// Outputs computed here in f64.
    pub reference: AttentionOutputs,
    /// Attention weights computed here in f64, `[2, 12, len, len]`.
    pub weights: Vec<f64>,
}

impl Layer {
    pub(super) fn first() -> Result<Self> {
        let bytes = include_bytes!("../../../tests/fixtures/real/minilm_layer0.safetensors");
        Self::load(0, bytes)
    }

    pub(super) fn last() -> Result<Self> {
        let bytes = include_bytes!("../../../tests/fixtures/real/minilm_layer5.safetensors");
        Self::load(5, bytes)
    }

    fn load(number: u32, bytes: &[u8]) -> Result<Self> {
        let fail = |error: &dyn Display| {
            Error::file(
                format!("minilm_layer{number}.safetensors"),
                format!("{error}; the program was built from a damaged file, build it again"),
            )
        };
        let file = SafeTensors::deserialize(bytes).map_err(|error| fail(&error))?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| fail(&error))?;
        let notes = header
            .metadata()
            .as_ref()
            .ok_or_else(|| fail(&"no notes in the header"))?;
        let note = |name: &str| {
            notes
                .get(name)
                .ok_or_else(|| fail(&format!("no note `{name}`")))
        };
        let words = |name: &str, dtype: Dtype| {
            let tensor = file.tensor(name).map_err(|error| fail(&error))?;
            if tensor.dtype() != dtype {
                return Err(fail(&format!("{name} is {:?}", tensor.dtype())));
            }
            Ok((tensor.shape().to_vec(), tensor.data().to_vec()))
        };
        let floats = |name: &str| -> Result<Vec<f32>> {
            Ok(bytemuck::pod_collect_to_vec(&words(name, Dtype::F32)?.1))
        };

        let (shape, q) = words("q", Dtype::F32)?;
        let [BATCH, HEADS, len, dim] = shape[..] else {
            return Err(fail(&format!("q has shape {shape:?}")));
        };
        let q: Vec<f32> = bytemuck::pod_collect_to_vec(&q);
        let (k, v) = (floats("k")?, floats("v")?);
        let lens: Vec<u32> = bytemuck::pod_collect_to_vec(&words("kv_len", Dtype::I32)?.1);
        let mut tokens: Vec<Vec<String>> =
            serde_json::from_str(note("tokens")?).map_err(|error| fail(&error))?;
        for (tokens, &len) in tokens.iter_mut().zip(&lens) {
            tokens.truncate(len as usize);
        }
        let scale: f32 = note("scale_value")?
            .parse()
            .map_err(|error| fail(&format!("scale: {error}")))?;
        let stored = AttentionOutputs {
            o: wide(&floats("o")?),
            lse: wide(&floats("lse")?),
        };

        let (wide_q, wide_k, wide_v) = (wide(&q), wide(&k), wide(&v));
        let usize_lens: Vec<usize> = lens.iter().map(|&len| len as usize).collect();
        let inputs = AttentionInputs {
            batch: BATCH,
            q_heads: HEADS,
            kv_heads: HEADS,
            q_len: len,
            kv_len: len,
            head_dim: dim,
            value_dim: dim,
            q: &wide_q,
            k: &wide_k,
            v: &wide_v,
            lens: Some(&usize_lens),
            scale: scale.into(),
            causal: Causal::None,
            ..AttentionInputs::default()
        };
        let reference = attention(&inputs);
        let weights = attention(&AttentionInputs {
            value_dim: len,
            v: &wide(&identity(len)).repeat(BATCH * HEADS),
            ..inputs.clone()
        });
        Ok(Self {
            number,
            len,
            dim,
            q,
            k,
            v,
            lens,
            scale,
            tokens,
            source: note("source")?.clone(),
            stored,
            reference,
            weights: weights.o,
        })
    }

    /// `[2, 12, len, dim]`
    pub(super) fn shape(&self) -> [u64; 4] {
        [BATCH, HEADS, self.len, self.dim].map(|axis| axis as u64)
    }

    /// The part of `[2, 12, len, len]` weights that belongs to one passage and head, without the
    /// padding: `lens[passage]` rows of as many columns.
    pub(super) fn map<'a>(
        &self,
        weights: &'a [f32],
        passage: usize,
        head: usize,
    ) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let valid = self.lens[passage] as usize;
        let rows = self.len * self.len;
        weights[(passage * HEADS + head) * rows..][..rows]
            .chunks_exact(self.len)
            .take(valid)
            .map(move |row| &row[..valid])
    }
}

/// The values that make attention's output its weights, `[len, len]`.
pub(super) fn identity(len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len * len];
    values.iter_mut().step_by(len + 1).for_each(|x| *x = 1.0);
    values
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::error;

    #[test]
    fn stored_outputs_are_those_of_the_stored_inputs() {
        for layer in [Layer::first().unwrap(), Layer::last().unwrap()] {
            let narrow = |x: &[f64]| -> Vec<f32> { x.iter().map(|&x| x as f32).collect() };
            assert!(error(&narrow(&layer.stored.o), &layer.reference.o) < 1e-6);
            assert!(error(&narrow(&layer.stored.lse), &layer.reference.lse) < 1e-6);
            let tokens: Vec<usize> = layer.tokens.iter().map(Vec::len).collect();
            assert_eq!(tokens, [79, 50]);
        }
    }

    #[test]
    fn maps_hold_the_valid_part_whose_rows_sum_to_one() {
        let layer = Layer::first().unwrap();
        let weights: Vec<f32> = layer.weights.iter().map(|&w| w as f32).collect();
        for (passage, valid) in [(0, 79), (1, 50)] {
            let rows: Vec<&[f32]> = layer.map(&weights, passage, 7).collect();
            assert_eq!(rows.len(), valid);
            for row in rows {
                assert_eq!(row.len(), valid);
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
    }
}
