//! The tensors of calls that ran: they stay on the device, and are read back when something asks for them.

use std::{cell::OnceCell, collections::BTreeMap};

use super::{
    case::Values,
    device::{Device, Piece},
};
use crate::{Error, Result, ops::Slot};

/// The tensors of the calls so far.
#[derive(Default)]
pub(super) struct Outputs {
    /// Those of each call, inputs among them.
    pub calls: Vec<Vec<(Slot, Held)>>,
    /// Buffers that calls share, by number, as they lie in memory.
    pub shared: BTreeMap<usize, Held>,
}

/// A tensor of a call, and its elements once they have been asked for.
pub(super) struct Held {
    place: Option<(Device, Piece)>,
    elements: OnceCell<Result<Values, String>>,
}

impl Held {
    /// A tensor on the device; its elements are those of this layout of its buffer.
    pub fn new(device: &Device, tensor: Piece) -> Self {
        Self {
            place: Some((device.clone(), tensor)),
            elements: OnceCell::new(),
        }
    }

    /// Elements that were computed on the host.
    #[cfg(test)]
    pub fn of(values: Vec<f32>) -> Self {
        Self {
            place: None,
            elements: OnceCell::from(Ok(Values::Real(values))),
        }
    }

    fn elements(&self) -> Result<&Values, String> {
        let read = || {
            let (device, tensor) = self.place.as_ref().ok_or("it is on no device")?;
            device.download(tensor).map_err(|error| error.to_string())
        };
        self.elements
            .get_or_init(read)
            .as_ref()
            .map_err(Clone::clone)
    }
}

impl Outputs {
    fn held(&self, call: usize, slot: Slot) -> Result<&Held, String> {
        self.calls
            .get(call)
            .and_then(|slots| slots.iter().find(|(other, _)| *other == slot))
            .map(|(_, held)| held)
            .ok_or_else(|| format!("call {call} gives no {}", slot.name()))
    }

    /// A buffer that calls share.
    pub fn shared(&self, number: usize) -> Result<&[f32], String> {
        let held = self.shared.get(&number);
        match held.ok_or("no call shares it")?.elements()? {
            Values::Real(values) => Ok(values),
            _ => Err(format!("shared buffer {number} holds no real numbers")),
        }
    }

    /// What a call has in a slot: outputs as they lie in memory, inputs and parts of shared buffers through
    /// their layouts.
    pub fn of(&self, call: usize, slot: Slot) -> Result<&[f32], String> {
        match self.held(call, slot)?.elements()? {
            Values::Real(values) => Ok(values),
            _ => Err(format!("{} holds no real numbers", slot.name())),
        }
    }

    /// The same of a slot with whole numbers.
    pub fn integers(&self, call: usize, slot: Slot) -> Result<&[i64], String> {
        match self.held(call, slot)?.elements()? {
            Values::Integer(values) => Ok(values),
            _ => Err(format!("{} holds no whole numbers", slot.name())),
        }
    }

    /// A buffer that calls share, on the device.
    pub fn shared_tensor(&self, number: usize) -> Option<&Piece> {
        let (_, tensor) = self.shared.get(&number)?.place.as_ref()?;
        Some(tensor)
    }

    /// The buffer of a slot on the device.
    pub fn tensor(&self, call: usize, slot: Slot) -> Result<&Piece> {
        let held = self.held(call, slot).ok();
        let place = held.and_then(|held| held.place.as_ref());
        place.map(|(_, tensor)| tensor).ok_or_else(|| {
            Error::invalid(
                slot.name(),
                format!("comes from call {call}, which has none on the device"),
                "name a tensor of an earlier call",
            )
        })
    }
}
