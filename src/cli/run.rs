//! `foveate run`

mod input;
mod linear;
mod report;
mod weights;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
    value_parser,
};
use serde::Deserialize;

use self::{
    input::Input,
    linear::LinearSettings,
    report::{Report, Written},
    weights::WeightsSettings,
};
use super::{
    AttentionSchedule, Globals, output, progress,
    tensor_file::{self, Elements, FileTensor, Format, Numbers, Output, TensorFile},
};
use crate::{
    Attention, BlockMask, Causal, Corner, DType, Error, KeyIndex, Layout, Mod, Op, Result, Rotary,
    Schedule, Softmax, Tuning, Window, bench,
    ops::{Args as OpArgs, Slot},
};

const EXAMPLES: &str = "\
Examples:
  foveate run attention --in qkv.safetensors --out o.safetensors --causal top-left --lse
  foveate run attention --in q.npy k.npy v.npy --out o.npy --layout bshd --time 20
  foveate run attention --tensor q=a.npy --tensor k=kv.safetensors:keys \\
      --tensor v=kv.safetensors:values --out o.npy
  foveate run weights mass --in qkv.safetensors --tensor lse=o.safetensors --out mass.npy
  foveate run attention --in qkv.safetensors --out o.safetensors --causal top-left --left 255 \\
      --mod alibi.wgsl:slopes --tensor buffer_0=slopes.npy
  foveate run softmax --in x.npy --out y.npy --axis 1 --log
  foveate run rotary --in x.npy cos.npy sin.npy --out y.npy --layout bshd --offset 512
  foveate run linear --in qkv.safetensors --out o.safetensors --lightning --state
  foveate run --op '{\"attention\": {\"causal\": \"bottom_right\", \"scale\": 0.125}}' \\
      --in qkv.safetensors --out o.safetensors
  foveate run --op op.json --in x.npy --out y.npy

The fields of an op in JSON are the flags of the command of its name:
  {\"attention\": {\"causal\": \"none\" | \"top_left\" | \"bottom_right\", \"scale\": number,
                 \"lse\": bool, \"layout\": \"bhsd\" | \"bshd\"}}
  {\"softmax\": {\"axis\": number, \"log\": bool, \"scale\": number}}
  {\"rotary\": {\"rotary_dim\": number, \"interleaved\": bool, \"inverse\": bool, \"offset\": number,
              \"layout\": \"bhsd\" | \"bshd\"}}
  {\"linear\": {\"scale\": number, \"lightning\": bool, \"retention\": bool, \"delta\": bool, \"normalised\": number,
              \"feature_q\": \"elu-plus-one\" and others, \"feature_k\": the same, \"state\": bool,
              \"reach\": \"causal\" | \"before\" | \"all\", \"layout\": \"bhsd\" | \"bshd\"}}
  {\"weights\": {\"statistic\": \"matrix\" | \"entropy\" | \"largest-weight\" | \"largest-score\" | \"mass\" |
               \"top\", \"stage\": \"scaled\" | \"capped\" | \"final\" | \"weights\", \"heads\": \"A..B\",
               \"rows\": \"A..B\", \"count\": number, and attention's but for lse}}";

/// Arguments of `foveate run`.
#[derive(Debug, clap::Args)]
#[command(subcommand_negates_reqs = true, after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    named: Option<Named>,
    /// The op in JSON, or a file that holds it (FILE or @FILE).
    #[arg(long, value_name = "JSON|FILE", required = true)]
    op: Option<String>,
    #[command(flatten)]
    planning: Planning,
    #[command(flatten)]
    job: Option<Job>,
}

#[derive(Debug, clap::Subcommand)]
enum Named {
    /// softmax(scale q k^T + bias, over the visible keys) v
    ///
    /// Takes the tensors q, k and v, [batch, heads, seq, dim] each, and where they are given: mask
    /// (bool, true is visible) and bias, broadcast to [batch, heads, queries, keys], and kv_len
    /// (whole numbers, [batch]). Writes o, and lse with --lse.
    Attention {
        #[command(flatten)]
        settings: AttentionSettings,
        #[command(flatten)]
        planning: Planning,
        #[command(flatten)]
        job: Job,
    },
    /// Softmax or log-softmax along an axis
    ///
    /// Takes the tensor x (a .npy file may have any name) and writes y.
    Softmax {
        #[command(flatten)]
        settings: SoftmaxSettings,
        #[command(flatten)]
        job: Job,
    },
    /// Attention's scores or weights, or a statistic of them
    ///
    /// Takes q and k, [batch, heads, seq, dim] each, and where they are given mask, bias and kv_len, as
    /// attention does; statistics of weights also take the lse that attention writes with --lse. Writes
    /// out, and keys (u32) for the largest weights.
    Weights {
        #[command(flatten)]
        settings: WeightsSettings,
        #[command(flatten)]
        job: Job,
    },
    /// Rotary position embedding
    ///
    /// Takes the tensors x, [batch, heads, seq, dim], cos and sin, [positions, rotary dim / 2] or
    /// [batch or 1, seq, rotary dim / 2], and where it is given: positions (whole numbers, [batch or 1,
    /// seq]). Writes y.
    Rotary {
        #[command(flatten)]
        settings: RotarySettings,
        #[command(flatten)]
        job: Job,
    },
    /// Linear attention: scale q S, of a state S that takes in k v^T token by token
    ///
    /// Takes the tensors q, k and v, [batch, heads, seq, dim] each, and where they are given: decay (natural
    /// logarithms, 0 or less: [heads], [batch, heads, seq], or that with a last axis of key or value channels), beta
    /// ([batch, heads, seq], with --delta), initial_state ([batch, heads, key dim, value dim]), initial_sum ([batch,
    /// heads, key dim], with --normalised), kv_len and cu_seqlens. Writes o, and final_state with --state.
    Linear {
        #[command(flatten)]
        settings: LinearSettings,
        #[command(flatten)]
        job: Job,
    },
}

/// An op without its shapes, which come from the tensors.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Settings {
    Attention(AttentionSettings),
    Softmax(SoftmaxSettings),
    Weights(WeightsSettings),
    Rotary(RotarySettings),
    Linear(LinearSettings),
}

#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
struct AttentionSettings {
    /// Which keys a query sees by its place: j <= i (top-left), or j <= i + keys - queries
    /// (bottom-right).
    #[arg(long, default_value = "none", value_parser = causal_parser())]
    causal: Causal,
    /// Factor on q k^T. Default: 1 / sqrt(dim of q).
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Also write the log-sum-exp of the scores, f32 [batch, heads, queries].
    #[arg(long)]
    lse: bool,
    /// Sliding window: keys before a query's own place that it sees. Default: all.
    #[arg(long)]
    left: Option<u64>,
    /// Keys after its own place that it sees. Default: all, or none with --causal.
    #[arg(long)]
    right: Option<u64>,
    /// Keys at the start that stay visible to the left of the window.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// The last query stands at the last key, without --causal.
    #[arg(long)]
    last_at_last: bool,
    /// Scores become softcap * tanh(score / softcap), before bias.
    #[arg(long)]
    softcap: Option<f32>,
    /// Queries per block of the tensor `blocks`, or per list of the tensor `index`.
    #[arg(long, default_value_t = 128)]
    block_q: u64,
    /// Keys per block of the tensor `blocks`.
    #[arg(long, default_value_t = 128)]
    block_kv: u64,
    /// A file of WGSL that defines score_mod, mask_mod, prob_mod or key_range; may be given several times.
    /// FILE:NAME,NAME names the functions that read its buffers: the tensors buffer_0, buffer_1 and so on, in
    /// the order of all mods.
    #[arg(long = "mod", value_name = "FILE[:NAMES]")]
    mods: Vec<String>,
    /// Order of the axes of q, k, v and o.
    #[arg(long, value_enum, default_value_t)]
    layout: AxisOrder,
}

impl AttentionSettings {
    /// The files of WGSL, with the layouts of their buffers.
    fn mods(&self, layout: impl Fn(Slot) -> Result<Option<Layout>>) -> Result<Vec<Mod>> {
        let mut slots = Slot::BUFFERS.into_iter();
        self.mods
            .iter()
            .map(|source| {
                // A colon may be part of the path.
                let (path, names) = match source.rsplit_once(':') {
                    Some((path, names)) if !Path::new(source).exists() => (path, names),
                    _ => (source.as_str(), ""),
                };
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Error::file(path, format!("{error}; check the path")))?;
                let mut change = Mod::new(text);
                for name in names.split(',').filter(|name| !name.is_empty()) {
                    let slot = slots.next().ok_or_else(|| {
                        Error::invalid("--mod", "more buffers than are bound", "use at most 4")
                    })?;
                    let layout = layout(slot)?.ok_or_else(|| {
                        Error::invalid(
                            slot.name(),
                            format!("no file has this tensor, which {name} reads"),
                            format!("add --tensor {}=FILE", slot.name()),
                        )
                    })?;
                    change = change.buffer(name, layout);
                }
                Ok(change)
            })
            .collect()
    }

    fn window(&self) -> Option<Window> {
        let given =
            self.left.is_some() || self.right.is_some() || self.first > 0 || self.last_at_last;
        given.then_some(Window {
            left: self.left,
            right: self.right,
            first: self.first,
            corner: if self.last_at_last {
                Corner::BottomRight
            } else {
                Corner::TopLeft
            },
        })
    }
}

#[derive(Debug, Clone, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
struct SoftmaxSettings {
    /// The axis along which the weights sum to 1; negative ones count from the last.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    axis: i64,
    /// Give the logarithm of the weights.
    #[arg(long)]
    log: bool,
    /// Factor on x. Default: 1.
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<f32>,
}

impl Default for SoftmaxSettings {
    fn default() -> Self {
        Self {
            axis: -1,
            log: false,
            scale: None,
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
struct RotarySettings {
    /// Channels that are turned, an even number; those past them are copied. Default: all.
    #[arg(long)]
    rotary_dim: Option<u64>,
    /// Take neighbouring channels as pairs, instead of the two halves.
    #[arg(long)]
    interleaved: bool,
    /// Turn back.
    #[arg(long)]
    inverse: bool,
    /// Position of the first token, without a tensor of positions.
    #[arg(long, default_value_t = 0)]
    offset: u64,
    /// Order of the axes of x and y.
    #[arg(long, value_enum, default_value_t)]
    layout: AxisOrder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum AxisOrder {
    /// [batch, heads, seq, dim]
    #[default]
    Bhsd,
    /// [batch, seq, heads, dim]
    Bshd,
}

impl AxisOrder {
    /// From the order of the file to that of the op, or back.
    fn exchange(self, layout: Layout) -> Layout {
        match self {
            Self::Bhsd => layout,
            Self::Bshd => layout.transposed(1, 2),
        }
    }
}

fn causal_parser() -> impl TypedValueParser<Value = Causal> {
    PossibleValuesParser::new([
        PossibleValue::new("none"),
        PossibleValue::new("top-left").alias("top_left"),
        PossibleValue::new("bottom-right").alias("bottom_right"),
    ])
    .map(|name| match name.as_str() {
        "top-left" | "top_left" => Causal::TopLeft,
        "bottom-right" | "bottom_right" => Causal::BottomRight,
        _ => Causal::None,
    })
}

/// How to plan attention.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
struct Planning {
    /// Fix the schedule of attention, instead of letting the plan choose.
    #[arg(long, value_enum)]
    schedule: Option<AttentionSchedule>,
}

/// What to compute an op on, and how.
#[derive(Debug, Clone, clap::Args)]
struct Job {
    /// Files with the op's tensors: .safetensors by their names in the file, .npy by the name of
    /// the file (q.npy is q).
    #[arg(long = "in", value_name = "FILE", num_args = 1..)]
    inputs: Vec<PathBuf>,
    /// One tensor: SLOT=FILE.npy, SLOT=FILE.safetensors or SLOT=FILE.safetensors:NAME.
    #[arg(long = "tensor", value_name = "SLOT=FILE[:NAME]", value_parser = parse_source)]
    tensors: Vec<Source>,
    /// Where to write: .safetensors, or .npy when there is one output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How the device stores numbers, and the type written. Sums are f32 either way.
    #[arg(long, value_enum, default_value_t)]
    dtype: Storage,
    /// Also time this many runs, 1 to 10000.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000))]
    time: Option<u32>,
    /// Print the plan: the schedule, why it was chosen, and the dispatches.
    #[arg(long)]
    explain: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Storage {
    #[default]
    F32,
    F16,
}

impl From<Storage> for DType {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::F32 => Self::F32,
            Storage::F16 => Self::F16,
        }
    }
}

/// Where a tensor comes from.
#[derive(Debug, Clone)]
struct Source {
    slot: String,
    path: PathBuf,
    name: String,
}

fn parse_source(text: &str) -> Result<Source, String> {
    let (slot, file) = text
        .split_once('=')
        .ok_or("write SLOT=FILE, for example q=q.npy")?;
    // Only what follows the extension is a name: paths may hold colons.
    const MARK: &str = ".safetensors:";
    let (path, name) = match file.rfind(MARK) {
        Some(at) => (
            &file[..at + MARK.len() - 1],
            file[at + MARK.len()..].to_owned(),
        ),
        None => (file, slot.to_owned()),
    };
    Ok(Source {
        slot: slot.to_owned(),
        path: path.into(),
        name,
    })
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let request = args.request()?;
    request.check_out()?;
    let Request {
        settings,
        planning,
        job,
        ..
    } = request;
    let mut notes = Vec::new();
    let mut inputs = settings.read_inputs(job, &mut notes)?;
    if let Settings::Linear(settings) = &settings {
        settings.complete(&mut inputs)?;
    }
    for note in &notes {
        output::note(note);
    }
    let op = settings.op(&inputs, job.dtype.into())?;
    op.check()?;
    let task = Task {
        settings,
        planning,
        op,
        inputs,
        notes,
    };
    task.compute(job, globals)?;
    Ok(ExitCode::SUCCESS)
}

/// What is asked for, whichever way it was written.
struct Request<'a> {
    settings: Settings,
    planning: Planning,
    job: &'a Job,
    /// The file that the op was read from.
    op_file: Option<PathBuf>,
}

impl Args {
    fn request(&self) -> Result<Request<'_>> {
        let beside = |argument: &str, remedy: &str| {
            Error::invalid(argument, "is given beside the name of an op", remedy)
        };
        match (&self.named, &self.op, &self.job) {
            (Some(_), Some(_), _) => Err(beside("--op", "leave one of them out")),
            (Some(_), None, _) if self.planning.schedule.is_some() => Err(beside(
                "--schedule",
                "write it after the name: foveate run attention --schedule ...",
            )),
            (Some(named), None, _) => Ok(named.request()),
            (None, Some(op), Some(job)) => {
                let (settings, op_file) = parse_op(op)?;
                if self.planning.schedule.is_some() && !matches!(settings, Settings::Attention(_)) {
                    return Err(Error::invalid(
                        "--schedule",
                        "names a schedule of attention, and the op is another",
                        "leave it out",
                    ));
                }
                Ok(Request {
                    settings,
                    planning: self.planning,
                    job,
                    op_file,
                })
            }
            _ => Err(Error::invalid(
                "--op",
                "no op is given",
                "name one, or describe it in JSON; see foveate run --help",
            )),
        }
    }
}

impl Named {
    fn request(&self) -> Request<'_> {
        let (settings, planning, job) = match self {
            Self::Attention {
                settings,
                planning,
                job,
            } => (Settings::Attention(settings.clone()), *planning, job),
            Self::Softmax { settings, job } => (
                Settings::Softmax(settings.clone()),
                Planning::default(),
                job,
            ),
            Self::Weights { settings, job } => (
                Settings::Weights(settings.clone()),
                Planning::default(),
                job,
            ),
            Self::Rotary { settings, job } => {
                (Settings::Rotary(settings.clone()), Planning::default(), job)
            }
            Self::Linear { settings, job } => {
                (Settings::Linear(settings.clone()), Planning::default(), job)
            }
        };
        Request {
            settings,
            planning,
            job,
            op_file: None,
        }
    }
}

/// An op in JSON, from the argument itself or from a file, and that file.
fn parse_op(text: &str) -> Result<(Settings, Option<PathBuf>)> {
    let file = (!text.trim_start().starts_with('{'))
        .then(|| PathBuf::from(text.strip_prefix('@').unwrap_or(text)));
    let json = match &file {
        None => text.to_owned(),
        Some(path) => fs::read_to_string(path).map_err(|error| {
            Error::file(
                path,
                format!("{error}; --op takes JSON that starts with {{, or a file that holds it"),
            )
        })?,
    };
    let settings = serde_json::from_str(&json).map_err(|error| {
        let place = match &file {
            None => String::new(),
            Some(path) => format!("{}: ", path.display()),
        };
        Error::invalid(
            "--op",
            format!("{place}{error}"),
            "foveate run --help lists the ops and their fields",
        )
    })?;
    Ok((settings, file))
}

impl Request<'_> {
    /// Checks the output file before any work is done.
    fn check_out(&self) -> Result<()> {
        let job = self.job;
        let names = self.settings.outputs();
        if Format::of(&job.out)? == Format::Npy && names.len() > 1 {
            return Err(Error::invalid(
                "--out",
                format!(
                    "{} holds one tensor, and the op gives {}",
                    job.out.display(),
                    names.join(" and ")
                ),
                "write a .safetensors file",
            ));
        }
        output::check_place(&job.out, "--out")?;
        // A file that cannot be resolved is not there yet.
        let Ok(out) = job.out.canonicalize() else {
            return Ok(());
        };
        let mut read = job
            .inputs
            .iter()
            .map(PathBuf::as_path)
            .chain(self.op_file.as_deref());
        let mut sources = job.tensors.iter().map(|source| source.path.as_path());
        let same = |path: &Path| path.canonicalize().is_ok_and(|path| path == out);
        if read.any(same) || sources.any(same) {
            return Err(Error::invalid(
                "--out",
                format!("{} is an input", job.out.display()),
                "write to another file",
            ));
        }
        Ok(())
    }
}

impl Settings {
    /// What the op reads: the slots, and whether it needs them.
    fn inputs(&self) -> &'static [(Slot, bool)] {
        match self {
            Self::Attention(_) => &[
                (Slot::Q, true),
                (Slot::K, true),
                (Slot::V, true),
                (Slot::Mask, false),
                (Slot::Bias, false),
                (Slot::KvLen, false),
                (Slot::QLen, false),
                (Slot::PrefixLen, false),
                (Slot::CuQ, false),
                (Slot::CuKv, false),
                (Slot::HeadWindows, false),
                (Slot::Sinks, false),
                (Slot::Gate, false),
                (Slot::Blocks, false),
                (Slot::Index, false),
                (Slot::BlockStarts, false),
                (Slot::Buffer0, false),
                (Slot::Buffer1, false),
                (Slot::Buffer2, false),
                (Slot::Buffer3, false),
            ],
            Self::Softmax(_) => &[(Slot::X, true)],
            Self::Weights(_) => &[
                (Slot::Q, true),
                (Slot::K, true),
                (Slot::Lse, false),
                (Slot::Mask, false),
                (Slot::Bias, false),
                (Slot::KvLen, false),
            ],
            Self::Rotary(_) => &[
                (Slot::X, true),
                (Slot::Cos, true),
                (Slot::Sin, true),
                (Slot::Positions, false),
            ],
            Self::Linear(_) => LinearSettings::INPUTS,
        }
    }

    fn outputs(&self) -> &'static [&'static str] {
        match self {
            Self::Attention(AttentionSettings { lse: true, .. }) => &["o", "lse"],
            Self::Attention(_) => &["o"],
            Self::Softmax(_) | Self::Rotary(_) => &["y"],
            Self::Linear(settings) => settings.outputs(),
            Self::Weights(settings) if settings.has_keys() => &["out", "keys"],
            Self::Weights(_) => &["out"],
        }
    }

    /// An output of the op as its file has it.
    fn in_file(&self, slot: Slot, layout: Layout) -> Layout {
        match self {
            Self::Attention(settings) if slot == Slot::O => settings.layout.exchange(layout),
            Self::Rotary(settings) => settings.layout.exchange(layout),
            Self::Linear(settings) => settings.in_file(slot, layout),
            _ => layout,
        }
    }

    /// Finds and reads the tensors of the op.
    fn read_inputs(&self, job: &Job, notes: &mut Vec<String>) -> Result<Vec<Input>> {
        let slots = self.inputs();
        let mut found: Vec<Input> = Vec::new();
        let mut add = |slot: Slot, path: &Path, tensor: FileTensor| {
            if let Some(other) = found.iter().find(|other| other.slot == slot) {
                return Err(Error::invalid(
                    slot.name(),
                    format!(
                        "is given by {} and by {}",
                        other.path.display(),
                        path.display()
                    ),
                    "give it once",
                ));
            }
            found.push(Input {
                slot,
                path: path.to_owned(),
                tensor,
            });
            Ok(())
        };
        for source in &job.tensors {
            let Some(&(slot, _)) = slots.iter().find(|(slot, _)| slot.name() == source.slot) else {
                return Err(Error::invalid(
                    "--tensor",
                    format!("the op has no tensor `{}`", source.slot),
                    format!("it takes {}", names(slots)),
                ));
            };
            let tensor = TensorFile::open(&source.path)?.tensor(&source.name)?;
            add(slot, &source.path, tensor)?;
        }
        for path in &job.inputs {
            let file = TensorFile::open(path)?;
            let mut ignored = Vec::new();
            for name in file.names()? {
                let named = slots.iter().find(|(slot, _)| slot.name() == name);
                let only = match (file.format(), slots) {
                    (Format::Npy, [only]) => Some(only),
                    _ => None,
                };
                match named.or(only) {
                    Some(&(slot, _)) => add(slot, path, file.tensor(&name)?)?,
                    None => ignored.push(name),
                }
            }
            if !ignored.is_empty() {
                notes.push(format!(
                    "{}: not used: {}; the op takes {}",
                    path.display(),
                    ignored.join(", "),
                    names(slots)
                ));
            }
        }
        for &(slot, needed) in slots {
            if needed && !found.iter().any(|input| input.slot == slot) {
                return Err(Error::invalid(
                    slot.name(),
                    "no file has this tensor",
                    format!(
                        "name it so in a file given with --in, or add --tensor {slot}=FILE",
                        slot = slot.name()
                    ),
                ));
            }
        }
        let wanted = DType::from(job.dtype);
        for input in &found {
            let stored = input.tensor.stored.to_string();
            if matches!(input.tensor.elements, Elements::Real(_)) && stored != wanted.to_string() {
                notes.push(format!(
                    "{}: {stored} in {}, converted to {wanted}",
                    input.slot.name(),
                    input.path.display()
                ));
            }
        }
        Ok(found)
    }

    /// The op on these tensors.
    fn op(&self, inputs: &[Input], dtype: DType) -> Result<Op> {
        let layout = |slot: Slot| -> Result<Option<Layout>> {
            let input = inputs.iter().find(|input| input.slot == slot);
            input
                .map(|input| {
                    // These are never stored as f16.
                    let reals = match slot {
                        Slot::Lse
                        | Slot::Decay
                        | Slot::Beta
                        | Slot::InitialState
                        | Slot::InitialSum => DType::F32,
                        _ => dtype,
                    };
                    let dtype = input.device_type(reals)?;
                    Ok(Layout::new(dtype, input.tensor.shape.clone()))
                })
                .transpose()
        };
        // Every slot that is needed has been found.
        let given = |slot: Slot| Ok(layout(slot)?.unwrap_or_else(|| Layout::new(dtype, [])));
        match self {
            Self::Softmax(settings) => {
                let x = given(Slot::X)?;
                let axis = axis(settings.axis, x.rank())?;
                let mut op = Softmax::new(x, axis);
                op.log = settings.log;
                op.scale = settings.scale;
                Ok(op.into())
            }
            Self::Rotary(settings) => {
                let x = settings.layout.exchange(given(Slot::X)?);
                let mut op = Rotary::new(x.clone(), given(Slot::Cos)?, given(Slot::Sin)?);
                // As it lies in its file.
                op = op.output(x);
                if let Some(rotary_dim) = settings.rotary_dim {
                    op = op.rotary_dim(rotary_dim);
                }
                op.interleaved = settings.interleaved;
                op.inverse = settings.inverse;
                op.positions = layout(Slot::Positions)?;
                Ok(op.offset(settings.offset).into())
            }
            Self::Linear(settings) => Ok(settings.op(dtype, layout)?.into()),
            Self::Attention(settings) => {
                let seen = |layout| settings.layout.exchange(layout);
                let mut op = Attention::new(
                    seen(given(Slot::Q)?),
                    seen(given(Slot::K)?),
                    seen(given(Slot::V)?),
                );
                let shape_in_file = seen(op.o.clone()).shape;
                op.o = seen(Layout::new(dtype, shape_in_file));
                if settings.lse {
                    op = op.with_lse();
                }
                op.causal = settings.causal;
                op.scale = settings.scale;
                op.mask = layout(Slot::Mask)?;
                op.bias = layout(Slot::Bias)?;
                op.kv_len = layout(Slot::KvLen)?;
                op.q_len = layout(Slot::QLen)?;
                op.prefix_len = layout(Slot::PrefixLen)?;
                op.cu_q = layout(Slot::CuQ)?;
                op.cu_kv = layout(Slot::CuKv)?;
                op.head_windows = layout(Slot::HeadWindows)?;
                op.sinks = layout(Slot::Sinks)?;
                op.gate = layout(Slot::Gate)?;
                op.window = settings.window();
                op.softcap = settings.softcap;
                op.block_mask = layout(Slot::Blocks)?.map(|bits| BlockMask {
                    bits,
                    block_q: settings.block_q,
                    block_kv: settings.block_kv,
                });
                op.block_starts = layout(Slot::BlockStarts)?;
                op.key_index = layout(Slot::Index)?.map(|index| KeyIndex {
                    index,
                    block_q: settings.block_q,
                });
                op.mods = settings.mods(layout)?;
                let read = op.mods.iter().map(|change| change.buffers.len()).sum();
                if let Some(spare) = inputs.iter().find(|input| {
                    Slot::BUFFERS
                        .iter()
                        .skip(read)
                        .any(|slot| *slot == input.slot)
                }) {
                    return Err(spare.wrong(
                        "no --mod reads this tensor,".into(),
                        "name its reader: --mod FILE:NAME",
                    ));
                }
                Ok(op.into())
            }
            Self::Weights(settings) => {
                let [q, k] = [given(Slot::Q)?, given(Slot::K)?];
                let mut op = settings.attention(q, k);
                op.mask = layout(Slot::Mask)?;
                op.bias = layout(Slot::Bias)?;
                op.kv_len = layout(Slot::KvLen)?;
                op.lse = layout(Slot::Lse)?;
                Ok(settings.op(op, dtype).into())
            }
        }
    }
}

fn names(slots: &[(Slot, bool)]) -> String {
    let names: Vec<_> = slots.iter().map(|(slot, _)| slot.name()).collect();
    names.join(", ")
}

fn axis(axis: i64, rank: usize) -> Result<usize> {
    let counted = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(counted)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| {
            Error::invalid(
                "axis",
                format!("{axis} of a tensor with {rank} axes"),
                "count axes from 0, or from the last with -1",
            )
        })
}

/// An op on the tensors that were read for it.
struct Task {
    settings: Settings,
    planning: Planning,
    op: Op,
    inputs: Vec<Input>,
    notes: Vec<String>,
}

impl Task {
    /// Plans, runs, writes and reports.
    fn compute(&self, job: &Job, globals: &Globals) -> Result<()> {
        let gpu = super::open(globals)?;
        let tuning = Tuning {
            schedule: self.planning.schedule.map(Schedule::from),
            ..Tuning::default()
        };
        let bar = progress(2 + u64::from(job.time.is_some()), globals);
        bar.set_message("compiling");
        let plan = gpu.engine().plan_with(&self.op, &tuning)?;
        let tensors = self
            .op
            .tensors()
            .into_iter()
            .map(|(slot, layout)| {
                let tensor = match self.inputs.iter().find(|input| input.slot == slot) {
                    Some(input) => input.upload(&gpu, layout)?,
                    None => gpu.allocate(layout.clone())?,
                };
                Ok((slot, tensor))
            })
            .collect::<Result<Vec<_>>>()?;
        let views = tensors.iter().map(|(slot, tensor)| (*slot, tensor.view()));
        let call = plan.bind(OpArgs(views.collect()))?;
        bar.inc(1);
        bar.set_message("running");
        gpu.run(&call)?;
        let outputs = tensors
            .iter()
            .filter(|(slot, _)| self.op.is_output(*slot))
            .map(|(slot, tensor)| {
                let layout = self.settings.in_file(*slot, tensor.layout().clone());
                let (dtype, shape) = (layout.dtype, layout.shape.clone());
                let tensor = tensor.with_layout(layout);
                Ok(Output {
                    name: slot.name(),
                    dtype,
                    shape,
                    data: match dtype {
                        DType::U32 => Numbers::Whole(gpu.download_u32(&tensor)?),
                        _ => Numbers::Real(gpu.download(&tensor)?),
                    },
                })
            })
            .collect::<Result<Vec<_>>>()?;
        tensor_file::write(&job.out, &outputs)?;
        bar.inc(1);
        bar.set_message("timing");
        let timing = job
            .time
            .map(|runs| bench::time(&gpu, std::slice::from_ref(&call), runs as usize))
            .transpose()?;
        bar.finish_and_clear();

        let cost = bench::cost(&self.op);
        let report = Report {
            adapter: &gpu.info().name,
            backend: gpu.info().backend.to_string(),
            op: &self.op,
            schedule: plan.outline().schedule,
            scratch_bytes: plan.scratch_bytes(),
            out: job.out.display().to_string(),
            outputs: outputs
                .into_iter()
                .map(|output| Written {
                    name: output.name,
                    dtype: output.dtype,
                    shape: output.shape,
                })
                .collect(),
            notes: &self.notes,
            timing,
            gflops: timing.map(|timing| cost.gflops(timing.median())),
            gbps: timing.map(|timing| cost.gbps(timing.median())),
            plan: job.explain.then(|| plan.explain()),
        };
        if globals.json {
            output::print_json(&report)
        } else {
            output::print(report.text())
        }
    }
}
