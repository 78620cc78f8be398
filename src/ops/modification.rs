//! What callers add to attention in WGSL.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    shader::mods::Mods,
    tensor::Layout,
};

/// Functions in WGSL that change attention's scores, weights or visibility, compiled into every schedule.
///
/// The text defines at least one of these, and whatever else they need:
///
/// ```wgsl
/// // The score that takes the place of `score` (scaled; natural units).
/// fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32
/// // Whether a key is visible.
/// fn mask_mod(batch: u32, head: u32, q_index: u32, kv_index: u32) -> bool
/// // The weight that takes the place of `weight`, after the softmax; it is not normalised again.
/// fn prob_mod(weight: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32
/// // The keys that a query can see lie in x..y: keys outside are hidden, and not read where a whole tile of
/// // queries has no use for them.
/// fn key_range(batch: u32, head: u32, q_index: u32) -> vec2<u32>
/// ```
///
/// `head` is the query head; all numbers are places in the tensors, also where sequences are packed. A score of
/// minus infinity hides the key, and one that `bias` has hidden so stays hidden. Each of [`Mod::buffers`] is a
/// function of its name: `slopes(head)` is that element of the buffer `slopes`, counted along the layout's rows;
/// places past its end give some element or 0. `valid_keys(batch)` and `valid_queries(batch)` give the lengths of a
/// batch entry (with packed sequences, of the whole tensor). Buffers are bound in the order of all mods of an op.
///
/// The text is plain functions of numbers, with `const`, `struct` and `alias` beside them: no variables outside of
/// functions, entry points, extensions, barriers, textures or pointers as parameters, and no loops, since some drivers
/// end long ones without a word: write the steps out, or use a buffer as a table. Its names are its own: kernels and
/// other mods may have the same. All of it is checked by [`Op::check`](super::Op::check), and errors say the place in
/// the text.
///
/// [`crate::presets`] makes mods of many kinds.
///
/// Source: the functions are those of PyTorch's FlexAttention (arXiv:2412.05496).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mod {
    /// The text.
    pub source: String,
    /// What the text reads.
    #[serde(default)]
    pub buffers: Vec<ModBuffer>,
}

/// A buffer that a [`Mod`] reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModBuffer {
    /// The name of the function that reads it.
    pub name: String,
    /// Contiguous elements, f32 or u32.
    pub layout: Layout,
}

impl Mod {
    /// Functions in WGSL that read no buffer.
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            buffers: Vec::new(),
        }
    }

    /// Adds a buffer.
    #[must_use]
    pub fn buffer(mut self, name: impl Into<String>, layout: Layout) -> Self {
        self.buffers.push(ModBuffer {
            name: name.into(),
            layout,
        });
        self
    }

    pub(super) fn check_all(mods: &[Self]) -> Result<()> {
        for (number, change) in mods.iter().enumerate() {
            for (place, ModBuffer { layout, .. }) in change.buffers.iter().enumerate() {
                let contiguous = Layout::new(layout.dtype, layout.shape.clone());
                let mut axes = layout
                    .shape
                    .iter()
                    .zip(&layout.strides)
                    .zip(&contiguous.strides);
                if axes.any(|((&len, stride), wanted)| len > 1 && stride != wanted) {
                    return Err(Error::invalid(
                        format!("mods[{number}].buffers[{place}].layout"),
                        format!("strides {:?} of shape {:?}", layout.strides, layout.shape),
                        "give contiguous elements, as Layout::new makes them",
                    ));
                }
            }
        }
        Mods::link(mods).map(|_| ())
    }
}
