//! The table of measured choices, and its file.

use std::{collections::BTreeMap, fs, io, path::PathBuf, sync::LazyLock};

use serde::{Deserialize, Serialize};

use crate::{
    cache_file::{Owner, write_whole},
    caps::Caps,
    error::{Error, Result},
    plan::Tuning,
};

/// The version of the format, and of what the numbers in a [`Tuning`] mean to the kernels: tables of
/// another version are ignored.
const VERSION: u32 = 1;

/// What was found for a bucket of problems.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The fastest.
    pub tuning: Tuning,
    /// Its median wall time, in ms, on the op that was tuned.
    pub ms: f64,
    /// How many candidates were timed.
    pub tried: usize,
}

/// Choices by [`bucket`](super::bucket).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The choices.
    pub entries: BTreeMap<String, Entry>,
}

/// A table that comes with this crate.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shipped {
    version: u32,
    /// Where it was measured.
    #[allow(dead_code, reason = "for readers of the file")]
    measured_on: String,
    /// The class of device: its subgroup size, the same for all kernels.
    subgroup: u32,
    table: Table,
}

static SHIPPED: LazyLock<Vec<Shipped>> = LazyLock::new(|| {
    // A test holds that the file parses; a table is never worth failing for.
    serde_json::from_str(include_str!("shipped.json")).unwrap_or_default()
});

impl Table {
    /// The table for a device's class, if there is one.
    pub fn shipped(caps: &Caps) -> Option<&'static Self> {
        let size = caps.fixed_subgroup().filter(|_| caps.cpu_vectors())?;
        SHIPPED
            .iter()
            .find(|shipped| shipped.version == VERSION && shipped.subgroup == size)
            .map(|shipped| &shipped.table)
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    owner: Owner,
    table: Table,
}

/// The place of one adapter's table: JSON, beside its pipeline cache.
#[derive(Debug, Clone)]
pub(crate) struct TableFile {
    path: PathBuf,
    owner: Owner,
}

impl TableFile {
    pub fn new(folder: &std::path::Path, info: &wgpu::AdapterInfo) -> Self {
        let owner = Owner::of(info);
        let path = folder.join(format!("{}.tuning.json", owner.stem()));
        Self { path, owner }
    }

    /// What the file holds; nothing, with a warning, when it is of no use.
    pub fn load(&self) -> Table {
        let useless = |reason: String| {
            log::warn!(
                "{}: {reason}; ignored, and replaced at the next save",
                self.path.display()
            );
            Table::default()
        };
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Table::default(),
            Err(error) => return useless(error.to_string()),
        };
        match serde_json::from_str::<File>(&text) {
            Ok(file) if file.version != VERSION => useless(format!("version {}", file.version)),
            Ok(file) if file.owner != self.owner => {
                useless("made by another adapter, driver or version".into())
            }
            Ok(file) => file.table,
            Err(error) => useless(error.to_string()),
        }
    }

    /// Adds a table to what the file holds; other processes may have saved since this one loaded.
    ///
    /// # Errors
    /// [`Error::File`] when the folder cannot be written.
    pub fn save(&self, table: &Table) -> Result<()> {
        if table.entries.is_empty() {
            return Ok(());
        }
        let mut whole = self.load();
        whole.entries.extend(
            table
                .entries
                .iter()
                .map(|(bucket, entry)| (bucket.clone(), *entry)),
        );
        let file = File {
            version: VERSION,
            owner: self.owner.clone(),
            table: whole,
        };
        let text =
            serde_json::to_vec_pretty(&file).map_err(|error| Error::file(&self.path, error))?;
        write_whole(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_parses() {
        let shipped: Vec<Shipped> =
            serde_json::from_str(include_str!("shipped.json")).expect("parses");
        assert!(!shipped.is_empty());
        for shipped in shipped {
            assert_eq!(shipped.version, VERSION);
            assert!(!shipped.table.entries.is_empty());
        }
    }
}
