//! Columns: the devices of the records, each with the one that it is compared with.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::bench::{Adapter, Ceilings, DeviceRecord, Record};

/// A record with the name that it goes by, or several of the same devices, whose runs count together.
#[derive(Debug, Clone)]
pub struct Source {
    /// What the columns are called: the stem of the file.
    pub name: String,
    /// The records.
    pub records: Vec<Record>,
}

/// A device of a record.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Column {
    /// What it is called: the name of the record, and the device where the record has several.
    pub label: String,
    /// Place of the record among those given.
    pub source: usize,
    /// What this column is compared with.
    pub against: Against,
    /// Place of the column that this one is compared with, if any.
    pub reference: Option<usize>,
    /// The adapter.
    pub adapter: Adapter,
    /// Version of foveate.
    pub foveate: String,
    /// Commit of foveate; several where records that are taken together differ.
    pub commit: Option<String>,
    /// What differs from how the reference was opened, where that is the same device.
    pub differences: Vec<String>,
    /// The device's own ceilings; of records that are taken together, those of the first.
    pub ceilings: Option<Ceilings>,
    /// Why there are no rows.
    pub error: Option<String>,
}

/// What a column is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// It is the first one.
    Reference,
    /// The same adapter and backend in the first record.
    Same,
    /// Another device: the first one of the same record, or the only one of the first record, where this record
    /// has but one as well.
    Other,
    /// Nothing: the first record has no such device.
    Nothing,
}

impl Against {
    /// What is to be said of it, if anything.
    pub fn words(self) -> Option<&'static str> {
        match self {
            Self::Reference => Some("reference"),
            Self::Same => None,
            Self::Other => Some("compared with another device"),
            Self::Nothing => Some("compared with nothing"),
        }
    }
}

/// A column with the records of its device: more than one where runs count together.
#[derive(Debug)]
pub(super) struct Device<'a> {
    /// The label, before equal ones have numbers.
    pub called: String,
    pub column: Column,
    pub records: Vec<&'a DeviceRecord>,
}

/// The devices of all records.
pub(super) fn devices(sources: &[Source]) -> Vec<Device<'_>> {
    let mut devices: Vec<Device<'_>> = Vec::new();
    let alone = |source: &Source| {
        let mut records = source.records.iter();
        records.all(|record| record.devices.len() == 1)
    };
    let only_ones = sources.iter().all(alone);
    for (source, Source { name, records }) in sources.iter().enumerate() {
        let several = records.iter().any(|record| record.devices.len() > 1);
        for record in records {
            // Two equal devices in one machine are two columns: the first of one record goes with the first of the
            // next.
            let mut taken = Vec::new();
            for device in &record.devices {
                let twin = (0..).zip(&devices).position(|(place, other): (usize, _)| {
                    other.column.source == source
                        && !taken.contains(&place)
                        && same(&other.column.adapter, &device.adapter)
                });
                taken.push(twin.unwrap_or(devices.len()));
                if let Some(twin) = twin.and_then(|place| devices.get_mut(place)) {
                    twin.records.push(device);
                    if let (Some(known), Some(commit)) = (&mut twin.column.commit, &record.commit)
                        && !known.split(", ").any(|other| other == commit)
                    {
                        *known = format!("{known}, {commit}");
                    }
                    twin.column.error = twin.column.error.take().or(device.error.clone());
                    continue;
                }
                let adapter = &device.adapter;
                let called = if several {
                    format!("{name}: {} ({})", adapter.name, adapter.backend)
                } else {
                    name.clone()
                };
                // The one of as many equal ones before it.
                let before = devices.iter().filter(|other| {
                    other.column.source == source && same(&other.column.adapter, adapter)
                });
                let twin = (0..).zip(&devices).filter(|(_, first): &(usize, _)| {
                    source > 0 && first.column.source == 0 && same(&first.column.adapter, adapter)
                });
                let twin = twin.map(|(place, _)| place).nth(before.count());
                // Two equal devices of one record have numbers.
                let alike = devices.iter();
                let alike = alike.filter(|other| other.column.source == source);
                let number = 1 + alike.filter(|other| other.called == called).count();
                let label = match number {
                    1 => called.clone(),
                    number => format!("{called} #{number}"),
                };
                // Devices of one record are there to be compared with one another; those of several are not.
                let (against, reference) = match twin {
                    _ if devices.is_empty() => (Against::Reference, None),
                    Some(place) => (Against::Same, Some(place)),
                    None if source == 0 || only_ones => (Against::Other, Some(0)),
                    None => (Against::Nothing, None),
                };
                let twin = devices.get(reference.unwrap_or(usize::MAX));
                let before = twin.filter(|_| against == Against::Same);
                let before = before.and_then(|twin| twin.records.first());
                let differences =
                    before.map_or_else(Vec::new, |before| differences(before, device));
                devices.push(Device {
                    called,
                    column: Column {
                        label,
                        source,
                        against,
                        reference,
                        adapter: adapter.clone(),
                        foveate: record.foveate.clone(),
                        commit: record.commit.clone(),
                        differences,
                        ceilings: device.ceilings,
                        error: device.error.clone(),
                    },
                    records: vec![device],
                });
            }
        }
    }
    devices
}

/// What differs in how the same device was opened, field by field.
fn differences(before: &DeviceRecord, now: &DeviceRecord) -> Vec<String> {
    let fields = |device: &DeviceRecord| -> Vec<(String, Value)> {
        let mut fields = vec![(
            "driver".to_owned(),
            device.adapter.driver_info.clone().into(),
        )];
        let opened = device.opened.map(|opened| serde_json::json!(opened));
        for (name, value) in opened.iter().filter_map(Value::as_object).flatten() {
            match value.as_object() {
                Some(parts) => {
                    let parts = parts
                        .iter()
                        .map(|(name, value)| (name.clone(), value.clone()));
                    fields.extend(parts);
                }
                // Measured, and so never quite the same.
                None if name == "loop_budget" => {}
                None => fields.push((name.clone(), value.clone())),
            }
        }
        fields
    };
    let before = fields(before);
    let differ = |(name, value): (String, Value)| {
        let (_, other) = before.iter().find(|(other, _)| *other == name)?;
        (*other != value).then(|| format!("{name} {value}, not {other}"))
    };
    fields(now).into_iter().filter_map(differ).collect()
}

/// Whether two records are of the same kind of device.
pub(super) fn same(a: &Adapter, b: &Adapter) -> bool {
    a.name == b.name && a.backend == b.backend
}
