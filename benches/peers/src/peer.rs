//! Who is compared, as `peers.toml` says, and how each is started.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use foveate::{DType, bench::Workload};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The peers that this crate knows.
pub const PEERS: &str = include_str!("../peers.toml");

/// What a peer is compared as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Runs on any GPU, as foveate does.
    Portable,
    /// Runs elsewhere, or on one vendor's devices.
    Yardstick,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Yardstick => "yardstick",
        })
    }
}

/// One peer; `peers.toml` says what the fields mean.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "peers.toml has a line on each")]
pub struct Peer {
    pub name: String,
    pub kind: Kind,
    pub setup: String,
    #[serde(default)]
    pub program: Option<PathBuf>,
    #[serde(default)]
    pub python: Option<PathBuf>,
    pub attention: Vec<String>,
    pub softmax: Vec<String>,
    /// Its variants for linear attention.
    #[serde(default)]
    pub linear_attention: Vec<String>,
    pub dtypes: Vec<DType>,
    #[serde(default)]
    pub layer: bool,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default = "limit_s")]
    pub limit_s: u64,
    #[serde(default = "tries")]
    pub tries: u32,
}

fn limit_s() -> u64 {
    120
}

fn tries() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    peer: Vec<Peer>,
}

impl Peer {
    /// Reads a file like `peers.toml`.
    ///
    /// # Errors
    /// [`Error::Argument`] with the place in the text.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        toml::from_str(text)
            .map(|file: File| file.peer)
            .map_err(|error| Error::Argument {
                argument: "peers.toml",
                message: error.to_string(),
            })
    }

    /// Whether a word of `--peers` means this peer: its name, or the word that sets it up.
    pub fn is_called(&self, word: &str) -> bool {
        self.name == word || self.setup == word
    }

    /// Its variants for a workload.
    pub fn variants(&self, workload: &Workload) -> &[String] {
        match workload {
            Workload::Attention(_) => &self.attention,
            Workload::Softmax(_) => &self.softmax,
            Workload::LinearAttention(_) => &self.linear_attention,
            // No peer has it yet.
            Workload::Rotary(_)
            | Workload::TopK(_)
            | Workload::Merge(_)
            | Workload::Scan(_)
            | Workload::ShortConv(_) => &[],
        }
    }

    /// How long the worker may take to get ready.
    pub fn ready_limit(&self) -> Duration {
        Duration::from_secs(self.limit_s)
    }

    /// How long one run may take.
    pub fn run_limit(&self) -> Duration {
        self.ready_limit() / 4
    }

    /// The command that starts its worker, or why there is none.
    ///
    /// # Errors
    /// The words of the row, when the peer is not set up.
    pub fn command(&self, place: &Place) -> Result<Command, String> {
        let missing = || {
            Err(format!(
                "not set up; run benches/peers/setup.sh {}",
                self.setup
            ))
        };
        let mut command = match (&self.program, &self.python) {
            (Some(program), _) => {
                let program = place.tools.join(program);
                if !program.is_file() {
                    return missing();
                }
                Command::new(program)
            }
            (None, Some(script)) => {
                let python = place.tools.join("venv/bin/python");
                if !python.is_file() {
                    return missing();
                }
                let mut command = Command::new(python);
                command.arg(place.source.join("python").join(script));
                // Its cache would lie beside the source.
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            (None, None) => return Err("peers.toml names neither program nor python".into()),
        };
        if self.layer && place.layer().is_dir() {
            command.env("VK_LAYER_PATH", place.layer());
            command.env("VK_INSTANCE_LAYERS", "VK_LAYER_FOVEATE_peers");
        }
        if let Some(drivers) = &place.drivers {
            command.env("VK_LOADER_DRIVERS_SELECT", drivers);
        }
        command.envs(&self.env);
        Ok(command)
    }
}

/// Where things are on this machine.
#[derive(Debug, Clone)]
pub struct Place {
    /// What setup.sh made: target/peers.
    pub tools: PathBuf,
    /// This crate's folder.
    pub source: PathBuf,
    /// Names of driver files that the Vulkan loader offers to peers, as a pattern.
    pub drivers: Option<OsString>,
}

impl Place {
    /// Where setup.sh leaves things, and the Vulkan driver of the adapter that foveate runs on: peers
    /// choose their device themselves, and are shown no other. What the user has set stays.
    pub fn new(adapter: &foveate::wgpu::AdapterInfo) -> Self {
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = source.ancestors().nth(2).unwrap_or(Path::new("."));
        let chosen = [
            "VK_DRIVER_FILES",
            "VK_ICD_FILENAMES",
            "VK_LOADER_DRIVERS_SELECT",
        ]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
        Self {
            tools: root.join("target/peers"),
            drivers: (!chosen)
                .then(|| driver_files(adapter))
                .flatten()
                .map(OsString::from),
            source,
        }
    }

    fn layer(&self) -> PathBuf {
        self.tools.join("layer")
    }
}

/// A pattern for the files that describe an adapter's Vulkan driver.
fn driver_files(adapter: &foveate::wgpu::AdapterInfo) -> Option<&'static str> {
    if adapter.backend != foveate::wgpu::Backend::Vulkan {
        return None;
    }
    let driver = format!("{} {}", adapter.driver, adapter.name).to_lowercase();
    [
        ("llvmpipe", "*lvp*"),
        ("swiftshader", "*swiftshader*"),
        ("nvk", "*nouveau*"),
        ("nvidia", "*nvidia*"),
        ("radv", "*radeon*"),
        ("amd", "*amd*"),
        ("intel", "*intel*"),
    ]
    .into_iter()
    .find(|(word, _)| driver.contains(word))
    .map(|(_, files)| files)
}
