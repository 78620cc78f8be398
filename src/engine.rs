//! The engine: a device, its caps and its pipeline cache.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    cache_file::{CacheFile, Contents},
    call::Call,
    caps::Caps,
    error::{Error, Result},
    kernels::{Kernel, loop_count},
    ops::{Args, Op, Slot},
    pipeline::{Counters, Pipeline, Pipelines, checked},
    plan::{Outline, Tuning},
    reference,
    tensor::{DType, Layout, View},
    tune::{self, Entry, Failed, Table, TableFile, Timed, Tuned, Tuner, TuningMode},
};

/// Attention on a device that somebody owns.
///
/// The engine never submits, polls, or installs error handlers, except in the calls that take a
/// queue for just that: [`Engine::warm_up`], [`Engine::warm_up_cached`], [`Engine::measure`] and
/// [`Engine::tune`]. Clones share the pipeline cache and the tuning table.
#[derive(Debug, Clone)]
pub struct Engine {
    device: wgpu::Device,
    caps: Caps,
    pipelines: Arc<Pipelines>,
    disk: Option<Arc<Disk>>,
    tuner: Arc<Tuner>,
}

/// What an engine keeps on disk.
#[derive(Debug)]
struct Disk {
    file: CacheFile,
    contents: Contents,
    table: TableFile,
}

impl Engine {
    /// An engine for a device.
    ///
    /// What the device was created with decides what is used: ask for
    /// [`Engine::wanted_features`] and the adapter's own limits where you can.
    pub fn new(device: &wgpu::Device) -> Self {
        Self {
            device: device.clone(),
            caps: Caps::of(device),
            pipelines: Arc::new(Pipelines::new(device, None)),
            disk: None,
            tuner: Arc::new(Tuner::new(TuningMode::default(), Table::default())),
        }
    }

    /// An engine whose pipelines and tuning table are remembered in a folder, two files per adapter.
    /// Its plans go by what was measured ([`TuningMode::Measured`]).
    ///
    /// A file that is of no use is ignored with a warning. See [`Engine::warm_up_cached`],
    /// [`Engine::tune`] and [`Engine::save_cache`].
    pub fn with_cache(device: &wgpu::Device, folder: impl AsRef<Path>) -> Self {
        let info = device.adapter_info();
        let file = CacheFile::new(folder.as_ref(), &info);
        let contents = file.load();
        let table = TableFile::new(folder.as_ref(), &info);
        let tuner = Tuner::new(TuningMode::Measured, table.load());
        let blob = (!contents.blob.is_empty()).then_some(contents.blob.as_slice());
        Self {
            device: device.clone(),
            caps: Caps::of(device),
            pipelines: Arc::new(Pipelines::new(device, blob)),
            disk: Some(Arc::new(Disk {
                file,
                contents,
                table,
            })),
            tuner: Arc::new(tuner),
        }
    }

    /// The features that the engine uses where an adapter has them, but for one that wgpu calls
    /// experimental: `EXPERIMENTAL_COOPERATIVE_MATRIX`, for the matrix schedule. To opt in, add it,
    /// with `ExperimentalFeatures::enabled()` in the device's descriptor, and give the engine the
    /// adapter's list by [`Engine::with_caps`] with [`Caps::with_matrices`]. [`crate::Gpu`] does.
    pub fn wanted_features() -> wgpu::Features {
        wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::TIMESTAMP_QUERY
    }

    /// An engine on the same device that has compiled nothing yet, and keeps nothing on disk. It gets what a driver
    /// handed out of another one's pipelines, if that is given.
    #[cfg(feature = "cli")]
    pub(crate) fn fresh(&self, compiled: Option<&Self>) -> Self {
        let blob = compiled.map(|engine| engine.pipelines.contents().blob);
        let blob = blob.filter(|blob| !blob.is_empty());
        Self {
            pipelines: Arc::new(Pipelines::new(&self.device, blob.as_deref())),
            disk: None,
            ..self.clone()
        }
    }

    /// The same engine, planning for other caps: fewer features, smaller limits.
    #[must_use]
    pub fn with_caps(mut self, caps: Caps) -> Self {
        self.caps = caps;
        self
    }

    /// The same engine, with plans that choose in another way.
    #[must_use]
    pub fn with_tuning(mut self, mode: TuningMode) -> Self {
        self.tuner = Arc::new(self.tuner.with_mode(mode));
        self
    }

    /// How plans choose.
    pub fn tuning(&self) -> TuningMode {
        self.tuner.mode
    }

    /// What was measured on this adapter so far.
    pub fn tuning_table(&self) -> Table {
        self.tuner.table()
    }

    /// What plans are made for.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// What was compiled and allocated so far.
    pub fn counters(&self) -> Counters {
        self.pipelines.counters()
    }

    /// Plans an op, as the tuning mode chooses, and compiles what it needs. Never measures.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::Unsupported`] as the op and the device have it.
    pub fn plan(&self, op: &Op) -> Result<Plan> {
        self.compile(self.tuner.outline(op, &self.caps)?)
    }

    /// Plans an op with some choices fixed; the fixed rules choose the rest. With nothing fixed, as
    /// [`Engine::plan`].
    ///
    /// # Errors
    /// As [`Engine::plan`]; also when a fixed choice cannot run here.
    pub fn plan_with(&self, op: &Op, tuning: &Tuning) -> Result<Plan> {
        if *tuning == Tuning::default() {
            return self.plan(op);
        }
        self.compile(Outline::new(op, &self.caps, tuning)?)
    }

    fn compile(&self, outline: Outline) -> Result<Plan> {
        let pipelines = outline
            .steps
            .iter()
            .map(|step| self.pipelines.get(step.kernel))
            .collect::<Result<Vec<_>>>()?;
        Ok(Plan {
            engine: self.clone(),
            outline,
            pipelines,
        })
    }

    /// Compiles what these ops need, and runs each pipeline once, doing nothing: drivers compile
    /// late, some only at the first dispatch. Submits to the queue and waits.
    ///
    /// # Errors
    /// As [`Engine::plan`], and [`Error::Device`] when the device fails.
    pub fn warm_up(&self, queue: &wgpu::Queue, ops: &[Op]) -> Result<()> {
        let mut kernels = BTreeSet::new();
        for op in ops {
            let plan = self.plan(op)?;
            kernels.extend(plan.outline.steps.iter().map(|step| step.kernel));
        }
        self.run_idle(queue, kernels)
    }

    /// Warms up what earlier processes compiled, as the cache file lists it. Returns how many
    /// pipelines that were; none without [`Engine::with_cache`].
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails.
    pub fn warm_up_cached(&self, queue: &wgpu::Queue) -> Result<usize> {
        let Some(disk) = &self.disk else {
            return Ok(0);
        };
        // A kernel from the file that this device cannot run is skipped, like the rest of a file
        // that does not fit.
        let kernels: BTreeSet<Kernel> = disk
            .contents
            .kernels
            .iter()
            .copied()
            .filter(|kernel| kernel.supports(&self.caps).is_ok())
            .filter(|kernel| match self.pipelines.get(*kernel) {
                Ok(_) => true,
                Err(error) => {
                    log::warn!("from the cache file: {error}; skipped");
                    false
                }
            })
            .collect();
        let count = kernels.len();
        self.run_idle(queue, kernels)?;
        Ok(count)
    }

    /// Writes the cache file and the tuning table; does nothing without [`Engine::with_cache`]. What
    /// earlier processes compiled and measured stays listed.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be written.
    pub fn save_cache(&self) -> Result<()> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        disk.table.save(&self.tuner.table())?;
        let file = &disk.file;
        // Other processes may have saved since this one loaded.
        let before = file.load();
        let mut contents = self.pipelines.contents();
        let mut kernels: BTreeSet<Kernel> = before.kernels.into_iter().collect();
        kernels.extend(contents.kernels);
        if contents.blob.is_empty() {
            contents.blob = before.blob;
        }
        contents.kernels = kernels.into_iter().collect();
        file.save(&contents)?;
        log::debug!("saved {}", file.path().display());
        Ok(())
    }

    /// Measures on the device what cannot be asked: how many iterations of a loop it really does.
    /// Submits to the queue and waits. Without it, plans assume the least that is known of any
    /// device.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails.
    pub fn measure(&mut self, queue: &wgpu::Queue) -> Result<()> {
        const TRIED: u32 = 1 << 22;
        let params = loop_count::Params { iterations: TRIED };
        let kernel = loop_count::Variant {}.into();
        let result = self.buffer("loop count", 8)?;
        let call = self.single(kernel, &params.bytes(), [1, 1, 1], &[(Slot::Y, &result)])?;
        let words = self.run_and_read(queue, &call, &result)?;
        let done = words.first().copied().unwrap_or(0);
        if done == TRIED && words.get(1) == Some(&loop_count::last_state(TRIED)) {
            self.caps.loop_budget = TRIED;
        } else {
            log::info!("the device leaves a loop after {done} of {TRIED} iterations");
            self.caps.loop_budget = self.caps.loop_budget.min(done.max(1));
        }
        Ok(())
    }

    /// Times the `limit` candidates of each op that should cost least, and the rules' own choice, on
    /// tensors of its own, and remembers the best for [`TuningMode::Measured`]. A candidate whose
    /// results differ from those of the rules' choice is of no use; the rules' choice stays unless
    /// another takes less by more than 3 %, and among those within 3 % of the fastest, the one that
    /// was ready first is taken. Submits to the queue and waits, for as long as that takes: candidates
    /// are compiled too, up to seconds each.
    ///
    /// # Errors
    /// As [`Engine::plan`], and [`Error::Device`] when the rules' choice does not run, or the device
    /// cannot allocate the tensors.
    pub fn tune(&self, queue: &wgpu::Queue, ops: &[Op], limit: usize) -> Result<Vec<Tuned>> {
        ops.iter()
            .map(|op| self.tune_one(queue, op, limit))
            .collect()
    }

    fn tune_one(&self, queue: &wgpu::Queue, op: &Op, limit: usize) -> Result<Tuned> {
        const ROUNDS: usize = 5;
        let rules = Tuning::default();
        // What cannot be planned at all says so here.
        Outline::new(op, &self.caps, &rules)?;
        let tensors = self.stand_ins(queue, op)?;
        let mut chosen = tune::candidates(op, &self.caps);
        // Candidates are all different; the rules' choice is the one with nothing fixed.
        let place = chosen.iter().position(|c| c.tuning == rules);
        let first = place.map(|place| chosen.remove(place));
        chosen.truncate(limit);

        let mut failed = Vec::new();
        let mut running = Vec::new();
        let mut expected: Option<Vec<f32>> = None;
        for candidate in first.into_iter().chain(chosen) {
            let tuning = candidate.tuning;
            let result = self
                .first_run(queue, op, &tuning, &tensors)
                .and_then(|(call, time)| Ok((call, time, self.results(queue, op, &tensors)?)));
            match (result, &expected) {
                (Ok((call, time, results)), None) => {
                    expected = Some(results);
                    running.push((candidate, call, time, Vec::new()));
                }
                (Err(error), None) => return Err(error),
                (Ok((call, time, results)), Some(expected)) => {
                    match tune::difference(&results, expected, op) {
                        None => running.push((candidate, call, time, Vec::new())),
                        Some(reason) => failed.push(Failed { tuning, reason }),
                    }
                }
                (Err(error), Some(_)) => failed.push(Failed {
                    tuning,
                    reason: error.to_string(),
                }),
            }
        }
        // In turn, so that a device that slows down slows down for all.
        for _ in 0..ROUNDS {
            for (_, call, _, times) in &mut running {
                let start = Instant::now();
                self.run(queue, call)?;
                times.push(start.elapsed());
            }
        }
        // Tenths of a microsecond: few digits, which come back from JSON as they were.
        let ms = |time: Duration| (time.as_secs_f64() * 1e7).round() / 1e4;
        let mut timed: Vec<Timed> = running
            .into_iter()
            .filter_map(|(candidate, _, first, mut times)| {
                times.sort();
                Some(Timed {
                    tuning: candidate.tuning,
                    estimated_ms: candidate.estimate.ms,
                    ms: ms(*times.get(ROUNDS / 2)?),
                    first_ms: ms(first),
                })
            })
            .collect();
        timed.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        let bucket = tune::bucket(op);
        if let Some(best) = tune::best(&timed) {
            let entry = Entry {
                tuning: best.tuning,
                ms: best.ms,
                tried: timed.len(),
            };
            self.tuner.remember(bucket.clone(), entry);
        }
        Ok(Tuned {
            bucket,
            timed,
            failed,
        })
    }

    /// Plans, compiles, binds and runs a candidate on cleared outputs.
    fn first_run(
        &self,
        queue: &wgpu::Queue,
        op: &Op,
        tuning: &Tuning,
        tensors: &[(Slot, Layout, wgpu::Buffer)],
    ) -> Result<(Call, Duration)> {
        // What a candidate does not write must not look like the result of the one before.
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for (slot, _, buffer) in tensors {
            if op.is_output(*slot) {
                encoder.clear_buffer(buffer, 0, None);
            }
        }
        queue.submit([encoder.finish()]);
        let start = Instant::now();
        let views = tensors
            .iter()
            .map(|(slot, layout, buffer)| (*slot, View::new(buffer, layout.clone())));
        let args = Args(views.collect());
        let outline = Outline::new(op, &self.caps, tuning)?;
        let call = self.compile(outline)?.bind(args)?;
        self.run(queue, &call)?;
        Ok((call, start.elapsed()))
    }

    /// The beginning and the end of each output.
    fn results(
        &self,
        queue: &wgpu::Queue,
        op: &Op,
        tensors: &[(Slot, Layout, wgpu::Buffer)],
    ) -> Result<Vec<f32>> {
        const MOST: u64 = 4 << 20;
        let mut results = Vec::new();
        for (_, layout, buffer) in tensors.iter().filter(|(slot, ..)| op.is_output(*slot)) {
            let size = buffer.size();
            let part = size.min(MOST);
            for offset in [0, size - part] {
                let bytes = read_buffer(&self.device, queue, buffer, offset, part)?;
                match layout.dtype {
                    DType::F16 => results.extend(
                        bytemuck::pod_collect_to_vec::<u8, half::f16>(&bytes)
                            .into_iter()
                            .map(half::f16::to_f32),
                    ),
                    _ => results.extend(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)),
                }
            }
        }
        Ok(results)
    }

    /// Buffers for the tensors of an op: all keys visible, noise as numbers; but zeros where the output
    /// is the input.
    fn stand_ins(&self, queue: &wgpu::Queue, op: &Op) -> Result<Vec<(Slot, Layout, wgpu::Buffer)>> {
        let noise = reference::noise(1, 1 << 18);
        let noise_of = |dtype| match dtype {
            DType::F16 => noise
                .iter()
                .flat_map(|&x| half::f16::from_f32(x).to_le_bytes())
                .collect(),
            DType::F32 => bytemuck::cast_slice(&noise).to_vec(),
            // Lengths far past the end count as all keys, and masks as all ones.
            _ => vec![0x01; 1 << 18],
        };
        op.tensors()
            .into_iter()
            .map(|(slot, layout)| {
                let size = layout.end_bytes().next_multiple_of(4);
                let block: Vec<u8> = match slot {
                    // Sequences of the same length, all blocks, and no prefix.
                    Slot::CuQ | Slot::CuKv => even_starts(op, slot, layout),
                    Slot::BlockStarts => even_starts(op, slot, layout),
                    Slot::Index => spread(op),
                    Slot::Blocks => vec![0xff; 1 << 18],
                    Slot::PrefixLen => vec![0; 1 << 18],
                    _ => noise_of(layout.dtype),
                };
                let buffer = checked(&self.device, || {
                    let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                        label: Some("foveate tuning"),
                        size,
                        usage: wgpu::BufferUsages::STORAGE
                            | wgpu::BufferUsages::COPY_DST
                            | wgpu::BufferUsages::COPY_SRC,
                        mapped_at_creation: false,
                    });
                    if !op.is_output(slot) {
                        for offset in (0..size).step_by(block.len()) {
                            let part = (size - offset).min(block.len() as u64) as usize;
                            queue.write_buffer(&buffer, offset, &block[..part]);
                        }
                    }
                    buffer
                })
                .map_err(Error::Device)?;
                Ok((slot, layout.clone(), buffer))
            })
            .collect()
    }

    /// One dispatch of a kernel outside any op: warm-ups and measurements.
    pub(crate) fn single(
        &self,
        kernel: Kernel,
        params: &[u8],
        grid: [u32; 3],
        buffers: &[(Slot, &wgpu::Buffer)],
    ) -> Result<Call> {
        let pipeline = self.pipelines.get(kernel)?;
        Call::single(
            &self.device,
            &self.pipelines,
            pipeline,
            params,
            grid,
            buffers,
        )
    }

    fn buffer(&self, label: &str, size: u64) -> Result<wgpu::Buffer> {
        self.pipelines.add_allocations(1, 0);
        checked(&self.device, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        })
        .map_err(Error::Device)
    }

    /// Dispatches each kernel once with parameters of zero, which make it return at once.
    fn run_idle(&self, queue: &wgpu::Queue, kernels: BTreeSet<Kernel>) -> Result<()> {
        for kernel in kernels {
            let pipeline = self.pipelines.get(kernel)?;
            let buffers = pipeline
                .bindings
                .iter()
                .map(|&(_, slot, _)| Ok((slot, self.buffer("warm-up", 1 << 16)?)))
                .collect::<Result<Vec<_>>>()?;
            let params = vec![0; kernel.param_fields().len() * 4];
            let borrowed: Vec<_> = buffers
                .iter()
                .map(|(slot, buffer)| (*slot, buffer))
                .collect();
            let call = self.single(kernel, &params, [1, 1, 1], &borrowed)?;
            let start = Instant::now();
            self.run(queue, &call)?;
            self.pipelines.add_compile_time(start.elapsed());
        }
        Ok(())
    }

    /// Submits a call and waits for it.
    pub(crate) fn run(&self, queue: &wgpu::Queue, call: &Call) -> Result<()> {
        self.run_all(queue, [call])
    }

    /// Submits calls in one pass and waits for the last.
    pub(crate) fn run_all<'a>(
        &self,
        queue: &wgpu::Queue,
        calls: impl IntoIterator<Item = &'a Call>,
    ) -> Result<()> {
        let index = checked(&self.device, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for call in calls {
                call.record(&mut pass);
            }
            drop(pass);
            queue.submit([encoder.finish()])
        })
        .map_err(Error::Device)?;
        wait(&self.device, index)
    }

    fn run_and_read(
        &self,
        queue: &wgpu::Queue,
        call: &Call,
        buffer: &wgpu::Buffer,
    ) -> Result<Vec<u32>> {
        self.run(queue, call)?;
        let bytes = read_buffer(&self.device, queue, buffer, 0, buffer.size())?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }
}

/// Waits for a submission.
pub(crate) fn wait(device: &wgpu::Device, index: wgpu::SubmissionIndex) -> Result<()> {
    device
        .poll(wgpu::PollType::Wait {
            submission_index: Some(index),
            timeout: None,
        })
        .map(|_| ())
        .map_err(|error| Error::Device(error.to_string()))
}

/// Copies part of a buffer back. Offset and size are multiples of 4.
pub(crate) fn read_buffer(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    buffer: &wgpu::Buffer,
    offset: u64,
    size: u64,
) -> Result<Vec<u8>> {
    let (sender, receiver) = futures::channel::oneshot::channel();
    let (staging, index) = checked(device, || {
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("foveate readback"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, size);
        let index = queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |result| {
            // The receiver is gone only when the wait below failed, and said so.
            let _ = sender.send(result);
        });
        (staging, index)
    })
    .map_err(Error::Device)?;
    wait(device, index)?;
    pollster::block_on(receiver)
        .map_err(|_| Error::Device("the readback was dropped".into()))?
        .map_err(|error| Error::Device(error.to_string()))?;
    let mapped = staging
        .get_mapped_range(..)
        .map_err(|error| Error::Device(error.to_string()))?;
    Ok(mapped.to_vec())
}

/// An op planned for a device, with its pipelines compiled.
#[derive(Debug, Clone)]
pub struct Plan {
    engine: Engine,
    outline: Outline,
    pipelines: Vec<Arc<Pipeline>>,
}

impl Plan {
    /// Binds the caller's tensors; allocates scratch and parameters, and nothing later.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a tensor does not fit the plan; [`Error::Device`] when the device
    /// cannot allocate.
    pub fn bind<'a>(&self, args: impl Into<Args<'a>>) -> Result<Call> {
        Call::bind(
            &self.engine.device,
            &self.engine.pipelines,
            &self.outline,
            &self.pipelines,
            &args.into(),
        )
    }

    /// The plan as data.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// The choice and the reasons, for people.
    pub fn explain(&self) -> String {
        self.outline.explain()
    }

    /// Bytes that [`Plan::bind`] allocates for partial results.
    pub fn scratch_bytes(&self) -> u64 {
        self.outline.scratch_bytes
    }
}

/// Numbers below those of what an index names, far from one another.
fn spread(op: &Op) -> Vec<u8> {
    let total = match op {
        Op::Attention(op) => op.k.shape.get(2).copied(),
        _ => None,
    };
    let total = total.unwrap_or(1).max(1);
    let words: Vec<u32> = (0..1u64 << 16)
        .map(|number| (number * 0x9e37_79b1 % total) as u32)
        .collect();
    bytemuck::cast_slice(&words).to_vec()
}

/// Where sequences of the same length begin, as the bytes of a buffer.
fn even_starts(op: &Op, slot: Slot, layout: &Layout) -> Vec<u8> {
    let total = match (op, slot) {
        (Op::Attention(op), Slot::CuQ) => op.q.shape.get(2),
        (Op::Attention(op), _) => op.k.shape.get(2),
        _ => None,
    };
    let total = total.copied().unwrap_or(0);
    let count = layout.elements();
    let stride = layout.strides.first().copied().unwrap_or(1);
    let mut words = vec![0u32; layout.end_bytes().div_ceil(4) as usize];
    for number in 0..count {
        let place = (layout.offset + number * stride) as usize;
        if let Some(word) = words.get_mut(place) {
            *word = (total * number / (count - 1).max(1)) as u32;
        }
    }
    bytemuck::cast_slice(&words).to_vec()
}
