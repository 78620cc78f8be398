//! Layouts and views: how a tensor lies in a buffer.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How an element is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision; needs [`wgpu::Features::SHADER_F16`]. Arithmetic stays in f32.
    F16,
    /// One byte per element, zero is false: boolean masks.
    Bool,
    /// Unsigned 32-bit integers: lengths.
    U32,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> u64 {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
            Self::Bool => 1,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bool => "bool",
            Self::U32 => "u32",
        })
    }
}

/// Where the elements of a tensor lie in a buffer: element type, shape, strides and offset.
///
/// Strides and offset count elements. A stride of 0 repeats an axis (a broadcast); outputs may not
/// have one. A layout says nothing about which buffer; [`View`] adds that.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Element type.
    pub dtype: DType,
    /// Length of each axis.
    pub shape: Vec<u64>,
    /// Distance, in elements, between neighbours along each axis.
    pub strides: Vec<u64>,
    /// The first element's place, in elements from the start of the buffer.
    #[serde(default)]
    pub offset: u64,
}

impl Layout {
    /// A contiguous, row-major layout at the start of its buffer.
    pub fn new(dtype: DType, shape: impl Into<Vec<u64>>) -> Self {
        let shape = shape.into();
        let mut strides = vec![0; shape.len()];
        let mut step = 1u64;
        for (stride, &len) in strides.iter_mut().zip(&shape).rev() {
            *stride = step;
            step = step.saturating_mul(len.max(1));
        }
        Self {
            dtype,
            shape,
            strides,
            offset: 0,
        }
    }

    /// A contiguous f32 layout.
    pub fn f32(shape: impl Into<Vec<u64>>) -> Self {
        Self::new(DType::F32, shape)
    }

    /// A contiguous f16 layout.
    pub fn f16(shape: impl Into<Vec<u64>>) -> Self {
        Self::new(DType::F16, shape)
    }

    /// The same layout `elements` further into the buffer.
    #[must_use]
    pub fn at(mut self, elements: u64) -> Self {
        self.offset = self.offset.saturating_add(elements);
        self
    }

    /// The same elements with other strides, one per axis.
    #[must_use]
    pub fn with_strides(mut self, strides: impl Into<Vec<u64>>) -> Self {
        self.strides = strides.into();
        self
    }

    /// The same elements with two axes exchanged: a `[batch, seq, heads, dim]` buffer seen as
    /// `[batch, heads, seq, dim]` is `layout.transposed(1, 2)`. Axes past the rank change nothing.
    #[must_use]
    pub fn transposed(mut self, a: usize, b: usize) -> Self {
        if a < self.shape.len() && b < self.shape.len() {
            self.shape.swap(a, b);
            self.strides.swap(a, b);
        }
        self
    }

    /// The layout repeated to `shape` without a copy: missing leading axes and axes of length 1
    /// get stride 0.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an axis has another length than 1 or the one asked for.
    pub fn broadcast(&self, argument: &str, shape: &[u64]) -> Result<Self> {
        let fail = || {
            Error::invalid(
                argument,
                format!("shape {:?} does not broadcast to {shape:?}", self.shape),
                "give each axis its full length or 1",
            )
        };
        let lead = shape.len().checked_sub(self.rank()).ok_or_else(fail)?;
        let mut strides = vec![0; shape.len()];
        for (axis, (&len, &stride)) in self.shape.iter().zip(&self.strides).enumerate() {
            let want = shape[lead + axis];
            if len == want {
                strides[lead + axis] = stride;
            } else if len != 1 {
                return Err(fail());
            }
        }
        Ok(Self {
            dtype: self.dtype,
            shape: shape.to_vec(),
            strides,
            offset: self.offset,
        })
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements, repeated ones counted each time. Saturates.
    pub fn elements(&self) -> u64 {
        self.shape
            .iter()
            .fold(1u64, |product, &len| product.saturating_mul(len))
    }

    /// Bytes from the start of the buffer to the end of the last element. Saturates.
    pub fn end_bytes(&self) -> u64 {
        if self.elements() == 0 {
            return 0;
        }
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .fold(self.offset, |at, (&len, &stride)| {
                at.saturating_add((len - 1).saturating_mul(stride))
            });
        last.saturating_add(1).saturating_mul(self.dtype.size())
    }

    /// Checks what holds for every tensor: a stride per axis, no axis of length 0, a size that
    /// 64 bits can count.
    pub(crate) fn check(&self, argument: &str) -> Result<()> {
        if self.shape.len() != self.strides.len() {
            return Err(Error::invalid(
                argument,
                format!(
                    "{} axes but {} strides",
                    self.shape.len(),
                    self.strides.len()
                ),
                "give one stride per axis",
            ));
        }
        if self.shape.is_empty() || self.shape.contains(&0) {
            return Err(Error::invalid(
                argument,
                format!("shape {:?} holds no element", self.shape),
                "every axis must be at least 1 long; skip the call for empty work",
            ));
        }
        if self.elements() >= 1 << 62 || self.end_bytes() >= 1 << 62 {
            return Err(Error::invalid(
                argument,
                format!(
                    "shape {:?} with strides {:?} and offset {} is past what memory can hold",
                    self.shape, self.strides, self.offset
                ),
                "check the shape",
            ));
        }
        Ok(())
    }

    /// Checks that no two elements share a place, as an output needs.
    pub(crate) fn check_output(&self, argument: &str) -> Result<()> {
        let mut axes: Vec<(u64, u64)> = self
            .strides
            .iter()
            .copied()
            .zip(self.shape.iter().copied())
            .filter(|&(_, len)| len > 1)
            .collect();
        axes.sort_unstable();
        let mut span = 1u64;
        for (stride, len) in axes {
            if stride < span {
                return Err(Error::invalid(
                    argument,
                    format!(
                        "strides {:?} put several elements of shape {:?} in one place",
                        self.strides, self.shape
                    ),
                    "give an output strides that keep its elements apart",
                ));
            }
            span = stride.saturating_mul(len - 1).saturating_add(span);
        }
        Ok(())
    }
}

/// A tensor on a buffer that somebody owns: the buffer and the [`Layout`] in it.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// The buffer; needs [`wgpu::BufferUsages::STORAGE`].
    pub buffer: &'a wgpu::Buffer,
    /// Where the elements lie in it.
    pub layout: Layout,
}

impl<'a> View<'a> {
    /// A view of `buffer`.
    pub fn new(buffer: &'a wgpu::Buffer, layout: Layout) -> Self {
        Self { buffer, layout }
    }
}
