//! Where cases run: a device of this process, or another WebGPU host that executes portable plans.

use std::{
    cell::RefCell,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    rc::Rc,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::case::Values;
use crate::{
    Caps, DType, Error, Gpu, Layout, Op, Plan, Result, Tensor, Tuning,
    ops::{Args, Slot},
    plan::Outline,
    portable::PortablePlan,
    standalone::in_order,
};

/// Where cases run.
#[derive(Debug, Clone)]
pub enum Device {
    /// A device of this process.
    Gpu(Box<Gpu>),
    /// Another WebGPU host.
    Host(Host),
}

impl From<&Gpu> for Device {
    fn from(gpu: &Gpu) -> Self {
        Self::Gpu(Box::new(gpu.clone()))
    }
}

impl From<&Self> for Device {
    fn from(device: &Self) -> Self {
        device.clone()
    }
}

/// A tensor on a device.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    Gpu(Tensor),
    Host(Rc<HostBuffer>, Layout),
}

impl Piece {
    pub fn layout(&self) -> &Layout {
        match self {
            Self::Gpu(tensor) => tensor.layout(),
            Self::Host(_, layout) => layout,
        }
    }

    /// The same buffer with another layout.
    pub fn with_layout(&self, layout: Layout) -> Self {
        match self {
            Self::Gpu(tensor) => Self::Gpu(tensor.with_layout(layout)),
            Self::Host(buffer, _) => Self::Host(buffer.clone(), layout),
        }
    }
}

/// A plan for a device.
pub(super) enum Prepared {
    Gpu(Box<Plan>),
    Host(Box<PortablePlan>),
}

impl Device {
    /// What plans are made for.
    pub fn caps(&self) -> &Caps {
        match self {
            Self::Gpu(gpu) => gpu.engine().caps(),
            Self::Host(host) => &host.caps,
        }
    }

    /// What people call it.
    pub fn name(&self) -> String {
        match self {
            Self::Gpu(gpu) => {
                let info = gpu.info();
                format!("{} ({})", info.name, info.backend)
            }
            Self::Host(host) => host.name.clone(),
        }
    }

    pub(super) fn prepare(&self, op: &Op, tuning: &Tuning) -> Result<Prepared> {
        Ok(match self {
            Self::Gpu(gpu) => Prepared::Gpu(Box::new(gpu.engine().plan_with(op, tuning)?)),
            Self::Host(host) => {
                let outline = Outline::new(op, &host.caps, tuning)?;
                Prepared::Host(Box::new(outline.portable(&host.caps)?))
            }
        })
    }

    /// Runs a plan on these tensors.
    pub(super) fn launch(&self, plan: &Prepared, tensors: &[(Slot, Piece)]) -> Result<()> {
        match (self, plan) {
            (Self::Gpu(gpu), Prepared::Gpu(plan)) => {
                let views = tensors
                    .iter()
                    .map(|(slot, piece)| match piece {
                        Piece::Gpu(tensor) => Ok((*slot, tensor.view())),
                        Piece::Host(..) => Err(elsewhere()),
                    })
                    .collect::<Result<_>>()?;
                gpu.run(&plan.bind(Args(views))?)
            }
            (Self::Host(host), Prepared::Host(plan)) => {
                let mut names = serde_json::Map::new();
                for (slot, piece) in tensors {
                    let Piece::Host(buffer, _) = piece else {
                        return Err(elsewhere());
                    };
                    names.insert(slot.name().into(), buffer.number.into());
                }
                let request = json!({"do": "run", "plan": plan, "tensors": names});
                host.ask(&request).map(|_| ())
            }
            _ => Err(elsewhere()),
        }
    }

    /// A tensor of any layout.
    pub(super) fn allocate(&self, layout: &Layout) -> Result<Piece> {
        match self {
            Self::Gpu(gpu) => gpu.allocate(layout.clone()).map(Piece::Gpu),
            Self::Host(host) => {
                layout.check("shape")?;
                let bytes = layout.end_bytes().next_multiple_of(4);
                let buffer = host.create(bytes)?;
                Ok(Piece::Host(Rc::new(buffer), layout.clone()))
            }
        }
    }

    /// Overwrites a tensor's buffer from its start.
    pub(super) fn write(&self, piece: &Piece, bytes: &[u8]) -> Result<()> {
        match (self, piece) {
            (Self::Gpu(gpu), Piece::Gpu(tensor)) => gpu.write(tensor, bytes),
            (Self::Host(host), Piece::Host(buffer, _)) => {
                let mut bytes = bytes.to_vec();
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                let data = BASE64.encode(bytes);
                let request = json!({"do": "write", "buffer": buffer.number, "data": data});
                host.ask(&request).map(|_| ())
            }
            _ => Err(elsewhere()),
        }
    }

    /// Elements as they lie in a buffer of their own, with the layout in which an op reads them.
    pub(super) fn upload(&self, slot: Slot, layout: &Layout, values: &Values) -> Result<Piece> {
        let (count, bytes): (usize, Vec<u8>) = match values {
            Values::Real(values) if layout.dtype == DType::F16 => {
                let halves = values.iter().map(|&x| half::f16::from_f32(x));
                let bytes = halves.flat_map(|half| half.to_le_bytes()).collect();
                (values.len(), bytes)
            }
            Values::Real(values) => (values.len(), bytemuck::cast_slice(values).to_vec()),
            Values::Boolean(values) => {
                (values.len(), values.iter().map(|&b| u8::from(b)).collect())
            }
            Values::Integer(values) => {
                let counts = values.iter().map(|&n| u32::try_from(n));
                let counts: Vec<u32> = counts.collect::<Result<_, _>>().map_err(|error| {
                    Error::invalid(slot.name(), error.to_string(), "give counts")
                })?;
                (counts.len(), bytemuck::cast_slice(&counts).to_vec())
            }
        };
        let dtype = match values {
            Values::Real(_) if layout.dtype == DType::F16 => DType::F16,
            Values::Real(_) => DType::F32,
            Values::Boolean(_) => DType::Bool,
            Values::Integer(_) => DType::U32,
        };
        if dtype != layout.dtype {
            return Err(Error::invalid(
                slot.name(),
                format!("values of {dtype} for {}", layout.dtype),
                "give the problem values of the op's type",
            ));
        }
        let piece = self.allocate(&Layout::new(dtype, [count as u64]))?;
        self.write(&piece, &bytes)?;
        Ok(piece.with_layout(layout.clone()))
    }

    /// The elements of a tensor, in row-major order whatever its strides.
    pub(super) fn download(&self, piece: &Piece) -> Result<Values> {
        match (self, piece) {
            (Self::Gpu(gpu), Piece::Gpu(tensor)) => match tensor.layout().dtype {
                DType::U32 => gpu.download_u32(tensor).map(integers),
                _ => gpu.download(tensor).map(Values::Real),
            },
            (Self::Host(host), Piece::Host(buffer, layout)) => {
                let bytes = host.read(buffer, layout.end_bytes().next_multiple_of(4))?;
                match layout.dtype {
                    DType::F32 => {
                        let all = bytemuck::pod_collect_to_vec(&bytes);
                        Ok(Values::Real(in_order(layout, all)))
                    }
                    DType::F16 => {
                        let halves: Vec<half::f16> = bytemuck::pod_collect_to_vec(&bytes);
                        let all = halves.into_iter().map(half::f16::to_f32).collect();
                        Ok(Values::Real(in_order(layout, all)))
                    }
                    DType::U32 => {
                        let all = bytemuck::pod_collect_to_vec(&bytes);
                        Ok(integers(in_order(layout, all)))
                    }
                    DType::Bool => Err(Error::invalid(
                        "tensor",
                        "elements are booleans",
                        "only numbers are read back",
                    )),
                }
            }
            _ => Err(elsewhere()),
        }
    }
}

fn integers(numbers: Vec<u32>) -> Values {
    Values::Integer(numbers.into_iter().map(i64::from).collect())
}

fn elsewhere() -> Error {
    Error::Device("a tensor or a plan is of another device".into())
}

/// How long an answer may take: SwiftShader compiles for minutes.
const LONGEST_ANSWER: Duration = Duration::from_secs(900);
/// How long a host may take to end.
const LONGEST_END: Duration = Duration::from_secs(10);

/// The exit code of a host that cannot run here: something that it needs is not installed.
const HOST_MISSING: i32 = 77;

/// Another WebGPU host: a program that executes portable plans (`docs/portable-plans.md`).
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    caps: Caps,
    pipe: Rc<RefCell<Pipe>>,
}

#[derive(Debug)]
struct Pipe {
    child: Child,
    requests: Option<ChildStdin>,
    /// Lines, as a thread reads them; gone once the host is told to end.
    answers: Option<Receiver<io::Result<String>>>,
    /// Number of the last buffer made.
    buffers: u64,
}

/// A buffer of a host, freed with the last tensor in it.
#[derive(Debug)]
pub(super) struct HostBuffer {
    host: Host,
    number: u64,
}

impl Host {
    /// Starts a program with its arguments.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when there is no such program, or it says by exit code 77 that it cannot run here;
    /// [`Error::Device`] when it does not start, or does not answer as a host does.
    pub fn start(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self> {
        let mut started = Command::new(program);
        started.args(arguments);
        let words = std::iter::once(started.get_program()).chain(started.get_args());
        let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
        let command = words.join(" ");
        let fail = |error: &dyn std::fmt::Display| {
            Error::Device(format!("the host `{command}` does not start: {error}"))
        };
        let child = started.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoAdapter {
                    found: format!("there is no program for `{command}`"),
                    remedy: "install it, or name another host".into(),
                });
            }
            Err(error) => return Err(fail(&error)),
        };
        let requests = child.stdin.take();
        let answers = child
            .stdout
            .take()
            .ok_or_else(|| fail(&"it has no output"))?;
        let mut host = Self {
            name: command.clone(),
            caps: Caps::minimum(),
            pipe: Rc::new(RefCell::new(Pipe {
                child,
                requests,
                answers: Some(lines(answers)),
                buffers: 0,
            })),
        };
        let mut answer = host.ask(&json!({"do": "open"}))?;
        let caps = answer.get_mut("caps").map(Value::take).unwrap_or_default();
        host.caps = serde_json::from_value(caps)
            .map_err(|error| Error::Device(format!("{command}: its caps: {error}")))?;
        host.caps.check()?;
        if let Some(name) = answer["name"].as_str() {
            host.name = name.into();
        }
        Ok(host)
    }

    /// A request and its answer.
    fn ask(&self, request: &Value) -> Result<Value> {
        let mut pipe = self.pipe.borrow_mut();
        let name = &self.name;
        let ended = |error: &dyn std::fmt::Display| {
            Error::Device(format!("the host {name} ended: {error}"))
        };
        let pipe = &mut *pipe;
        let line = format!("{request}\n");
        let requests = pipe.requests.as_mut().ok_or_else(|| ended(&"no input"))?;
        // A host that has ended may have said why, and tells by its exit code.
        let sent = requests
            .write_all(line.as_bytes())
            .and_then(|()| requests.flush());
        let answers = pipe.answers.as_ref().ok_or_else(|| ended(&"no output"))?;
        let line = match answers.recv_timeout(LONGEST_ANSWER) {
            Ok(line) => line.map_err(|error| ended(&error))?,
            Err(RecvTimeoutError::Disconnected) => String::new(),
            Err(RecvTimeoutError::Timeout) => {
                // What it was doing has no end in sight.
                let _ = pipe.child.kill();
                let seconds = LONGEST_ANSWER.as_secs();
                return Err(ended(&format!("no answer in {seconds} s")));
            }
        };
        if line.is_empty() {
            if let Err(error) = sent
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                return Err(ended(&error));
            }
            let status = pipe.child.wait().map_err(|error| ended(&error))?;
            if status.code() == Some(HOST_MISSING) {
                return Err(Error::NoAdapter {
                    found: format!("the host {name} lacks what it needs"),
                    remedy: "do what it says above".into(),
                });
            }
            return Err(ended(&format!("{status}; what it said is above")));
        }
        let answer: Value = serde_json::from_str(&line)
            .map_err(|error| Error::Device(format!("{name}: not an answer: {error}")))?;
        match answer["error"].as_str() {
            Some(error) => Err(Error::Device(format!("{name}: {error}"))),
            None => Ok(answer),
        }
    }

    fn create(&self, bytes: u64) -> Result<HostBuffer> {
        let number = {
            let mut pipe = self.pipe.borrow_mut();
            pipe.buffers += 1;
            pipe.buffers
        };
        self.ask(&json!({"do": "create", "buffer": number, "bytes": bytes}))?;
        Ok(HostBuffer {
            host: self.clone(),
            number,
        })
    }

    fn read(&self, buffer: &HostBuffer, bytes: u64) -> Result<Vec<u8>> {
        let request = json!({"do": "read", "buffer": buffer.number, "bytes": bytes});
        let answer = self.ask(&request)?;
        let data = answer["data"].as_str().unwrap_or_default();
        let data = BASE64
            .decode(data)
            .map_err(|error| Error::Device(format!("{}: its data: {error}", self.name)))?;
        if data.len() as u64 == bytes {
            Ok(data)
        } else {
            let found = data.len();
            Err(Error::Device(format!(
                "{}: {found} bytes where {bytes} were asked for",
                self.name
            )))
        }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // A host that ended has freed it already.
        let _ = self.host.ask(&json!({"do": "free", "buffer": self.number}));
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // The end of its input tells the host to end; it is waited for, so that none stays behind.
        drop(self.requests.take());
        drop(self.answers.take());
        let start = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if start.elapsed() > LONGEST_END {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The lines of an output, read by a thread: a read cannot be given up after a time. The channel ends with the output.
fn lines(output: impl io::Read + Send + 'static) -> Receiver<io::Result<String>> {
    let (sender, receiver) = sync_channel(1);
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        loop {
            let mut line = String::new();
            let read = match reader.read_line(&mut line) {
                Ok(0) => return,
                Ok(_) => Ok(line),
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            // Nobody listens any more once the host is told to end.
            if sender.send(read).is_err() || failed {
                return;
            }
        }
    });
    receiver
}
