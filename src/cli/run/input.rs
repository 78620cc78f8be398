//! A tensor on its way from a file to the device.

use std::path::PathBuf;

use crate::{
    DType, Error, Gpu, Layout, Result, Tensor,
    cli::tensor_file::{Elements, FileTensor},
    ops::Slot,
};

/// Whether a tensor holds lengths, places or bits.
fn counts(slot: Slot) -> bool {
    matches!(
        slot,
        Slot::KvLen
            | Slot::QLen
            | Slot::PrefixLen
            | Slot::CuQ
            | Slot::CuKv
            | Slot::CuSeqlens
            | Slot::HeadWindows
            | Slot::Blocks
            | Slot::Index
            | Slot::BlockStarts
            | Slot::Positions
    )
}

fn buffer(slot: Slot) -> bool {
    Slot::BUFFERS.contains(&slot)
}

/// A tensor that was read for a slot.
pub(super) struct Input {
    pub(super) slot: Slot,
    pub(super) path: PathBuf,
    pub(super) tensor: FileTensor,
}

impl Input {
    /// How the device stores this tensor, when reals are stored as `reals`.
    pub(super) fn device_type(&self, reals: DType) -> Result<DType> {
        let (dtype, want) = match (self.slot, &self.tensor.elements) {
            (Slot::Mask, Elements::Bool(_)) => return Ok(DType::Bool),
            (slot, Elements::Integer(_)) if counts(slot) || buffer(slot) => return Ok(DType::U32),
            // These stay f32 whatever q is stored as.
            (slot, Elements::Real(_)) if buffer(slot) => return Ok(DType::F32),
            (Slot::Sinks | Slot::Gate, Elements::Real(_)) => return Ok(DType::F32),
            (Slot::Mask, _) => (self.tensor.stored, "bool"),
            (slot, _) if counts(slot) => (self.tensor.stored, "i32, i64 or u32"),
            (_, Elements::Real(_)) => return Ok(reals),
            _ => (self.tensor.stored, "f32, f16, bf16 or f64"),
        };
        Err(self.wrong(format!("elements are {dtype}"), format!("give {want}")))
    }

    pub(super) fn wrong(&self, found: String, remedy: impl Into<String>) -> Error {
        let place = self.path.display();
        Error::invalid(self.slot.name(), format!("{found} in {place}"), remedy)
    }

    /// Uploads the tensor, as the op's layout has it.
    pub(super) fn upload(&self, gpu: &Gpu, layout: &Layout) -> Result<Tensor> {
        let shape = self.tensor.shape.clone();
        let tensor = match &self.tensor.elements {
            Elements::Bool(data) => gpu.upload_bool(data, shape)?,
            Elements::Integer(data) => {
                let numbers = data
                    .iter()
                    .map(|&number| {
                        u32::try_from(number).map_err(|_| {
                            let remedy = "lengths and positions are from 0 to 4294967295";
                            self.wrong(format!("{number}"), remedy)
                        })
                    })
                    .collect::<Result<Vec<u32>>>()?;
                gpu.upload_u32(&numbers, shape)?
            }
            Elements::Real(data) => {
                if layout.dtype == DType::F16 {
                    self.check_f16(data)?;
                }
                gpu.upload_as(layout.dtype, data, shape)?
            }
        };
        Ok(tensor.with_layout(layout.clone()))
    }

    fn check_f16(&self, data: &[f32]) -> Result<()> {
        let infinite = |x: f32| half::f16::from_f32(x).is_infinite();
        match data.iter().find(|x| x.is_finite() && infinite(**x)) {
            None => Ok(()),
            Some(x) => Err(self.wrong(
                format!("{x} is past the range of f16"),
                "use --dtype f32, or scale the tensor",
            )),
        }
    }
}
