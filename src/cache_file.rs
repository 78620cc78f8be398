//! The cache on disk: which kernels a process compiled, and the driver's own data.
//!
//! One file per adapter. Layout: 8 bytes of magic, a CRC-32 of all that follows, the length of
//! the header, the header (JSON), the driver's data. A file that is missing, truncated, foreign or
//! corrupted is ignored with a warning and replaced at the next save.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    kernels::Kernel,
};

const MAGIC: &[u8; 8] = b"FOVEATE1";

/// What a cache file is good for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Contents {
    pub kernels: Vec<Kernel>,
    pub blob: Vec<u8>,
}

/// Whom the data belongs to: another adapter or driver cannot use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    version: String,
    name: String,
    backend: String,
    vendor: u32,
    device: u32,
    driver: String,
    driver_info: String,
}

impl Owner {
    pub fn of(info: &wgpu::AdapterInfo) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            name: info.name.clone(),
            backend: info.backend.to_string(),
            vendor: info.vendor,
            device: info.device,
            driver: info.driver.clone(),
            driver_info: info.driver_info.clone(),
        }
    }

    /// The name of the adapter's files, without what tells their kind.
    pub fn stem(&self) -> String {
        let name: String = self
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .take(48)
            .collect();
        format!(
            "{}-{:x}-{:x}-{name}",
            self.backend, self.vendor, self.device
        )
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    owner: Owner,
    kernels: Vec<Kernel>,
}

/// The place of one adapter's cache.
#[derive(Debug, Clone)]
pub(crate) struct CacheFile {
    path: PathBuf,
    owner: Owner,
}

impl CacheFile {
    pub fn new(folder: &Path, info: &wgpu::AdapterInfo) -> Self {
        let owner = Owner::of(info);
        let path = folder.join(format!("{}.foveate", owner.stem()));
        Self { path, owner }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds; nothing, with a warning, when it is of no use.
    pub fn load(&self) -> Contents {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Contents::default(),
            Err(error) => {
                log::warn!("{}: {error}; starting empty", self.path.display());
                return Contents::default();
            }
        };
        self.parse(&bytes).unwrap_or_else(|reason| {
            log::warn!(
                "{}: {reason}; ignored, and replaced at the next save",
                self.path.display()
            );
            Contents::default()
        })
    }

    fn parse(&self, bytes: &[u8]) -> Result<Contents, &'static str> {
        let word = |at: usize| {
            bytes
                .get(at..at + 4)
                .and_then(|word| word.try_into().ok())
                .map(u32::from_le_bytes)
                .ok_or("truncated")
        };
        if bytes.get(..8) != Some(MAGIC) {
            return Err("not a foveate cache");
        }
        let checksum = word(8)?;
        let length = word(12)? as usize;
        if crc32fast::hash(&bytes[12..]) != checksum {
            return Err("truncated or corrupted");
        }
        let rest = &bytes[16..];
        let header = rest.get(..length).ok_or("truncated")?;
        let header: Header =
            serde_json::from_slice(header).map_err(|_| "written by another version")?;
        if header.owner != self.owner {
            return Err("made by another adapter, driver or version");
        }
        Ok(Contents {
            kernels: header.kernels,
            blob: rest[length..].to_vec(),
        })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// [`Error::File`] when the folder cannot be written.
    pub fn save(&self, contents: &Contents) -> Result<()> {
        let header = serde_json::to_vec(&Header {
            owner: self.owner.clone(),
            kernels: contents.kernels.clone(),
        })
        .map_err(|error| Error::file(&self.path, error))?;
        let length = u32::try_from(header.len()).map_err(|error| Error::file(&self.path, error))?;
        let mut body = length.to_le_bytes().to_vec();
        body.extend_from_slice(&header);
        body.extend_from_slice(&contents.blob);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        bytes.extend_from_slice(&body);

        write_whole(&self.path, &bytes)
    }
}

/// Replaces a file in one step: a reader sees the old or the new one. Makes its folder.
///
/// # Errors
/// [`Error::File`] when the folder cannot be written.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // A name of its own, so that no two saves, of any process or thread, write into one file.
        static SAVES: AtomicU64 = AtomicU64::new(0);
        let number = SAVES.fetch_add(1, Ordering::Relaxed);
        let part = path.with_extension(format!("{}-{number}.part", std::process::id()));
        fs::write(&part, bytes)
            .and_then(|()| fs::rename(&part, path))
            .inspect_err(|_| {
                let _ = fs::remove_file(&part);
            })
    };
    write().map_err(|error| Error::file(path, error))
}
