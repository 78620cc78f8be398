//! The pipeline cache: one compilation per kernel variant, however many threads ask.
//!
//! The only caller of `create_compute_pipeline`.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    cache_file::Contents,
    error::{Error, Result},
    kernels::Kernel,
    ops::Slot,
    shader::Binding,
};

/// The checks that compiled shaders have: what `create_shader_module` compiles them with.
#[cfg(feature = "cli")]
pub(crate) const SHADER_CHECKS: wgpu::ShaderRuntimeChecks = wgpu::ShaderRuntimeChecks::checked();
/// Kernels write workgroup memory before they read it.
pub(crate) const CLEAR_WORKGROUP_MEMORY: bool = false;

/// What the cache and its calls have done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Pipelines that were asked for and there.
    pub hits: u64,
    /// Pipelines that had to be compiled.
    pub misses: u64,
    /// Time spent on compiling, and on the first dispatch of a warm-up, where drivers compile.
    pub compile_time: Duration,
    /// Buffers created.
    pub buffers: u64,
    /// Bind groups created.
    pub bind_groups: u64,
}

/// A compiled kernel variant.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub kernel: Kernel,
    pub pipeline: wgpu::ComputePipeline,
    pub group: wgpu::BindGroupLayout,
    /// Number, slot and whether the shader may write; the parameters are binding 0.
    pub bindings: Vec<(u32, Slot, bool)>,
}

type Entry = Arc<OnceLock<Result<Arc<Pipeline>>>>;

/// Compiled pipelines of one device, by kernel variant.
#[derive(Debug)]
pub(crate) struct Pipelines {
    device: wgpu::Device,
    entries: Mutex<HashMap<Kernel, Entry>>,
    driver_cache: Option<wgpu::PipelineCache>,
    hits: AtomicU64,
    misses: AtomicU64,
    compile_nanos: AtomicU64,
    buffers: AtomicU64,
    bind_groups: AtomicU64,
}

impl Pipelines {
    /// An empty cache; `blob` is what an earlier process got from the driver on this adapter.
    pub fn new(device: &wgpu::Device, blob: Option<&[u8]>) -> Self {
        let driver_cache = device
            .features()
            .contains(wgpu::Features::PIPELINE_CACHE)
            .then(|| {
                // SAFETY: the blob, if any, is what `get_data` returned to a process with the same
                // adapter and driver: cache_file checks both, and a checksum over it.
                unsafe {
                    device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                        label: Some("foveate"),
                        data: blob,
                        fallback: true,
                    })
                }
            });
        Self {
            device: device.clone(),
            entries: Mutex::default(),
            driver_cache,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            compile_nanos: AtomicU64::new(0),
            buffers: AtomicU64::new(0),
            bind_groups: AtomicU64::new(0),
        }
    }

    /// The pipeline of a kernel variant, compiled if nobody has asked for it yet.
    pub fn get(&self, kernel: Kernel) -> Result<Arc<Pipeline>> {
        let entry = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.entry(kernel).or_default().clone()
        };
        let mut missed = false;
        let result = entry
            .get_or_init(|| {
                missed = true;
                let start = Instant::now();
                let compiled = self.compile(kernel);
                self.add_compile_time(start.elapsed());
                compiled.map(Arc::new)
            })
            .clone();
        if missed {
            self.misses.fetch_add(1, Ordering::Relaxed);
        } else if result.is_ok() {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        if result.is_err() {
            // Memory may be free again later: whoever asks next tries again.
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if entries
                .get(&kernel)
                .is_some_and(|now| Arc::ptr_eq(now, &entry))
            {
                entries.remove(&kernel);
            }
        }
        result
    }

    fn compile(&self, kernel: Kernel) -> Result<Pipeline> {
        let fail = |message: String| Error::Compile {
            kernel: kernel.stem().into(),
            message,
        };
        let shader = kernel.shader().map_err(fail)?;
        let mut bindings = Vec::new();
        for binding in shader.bindings.iter().filter(|binding| !binding.uniform) {
            let slot = Slot::ALL
                .iter()
                .copied()
                .find(|slot| slot.name() == binding.name)
                .ok_or_else(|| fail(format!("no slot is called {}", binding.name)))?;
            bindings.push((binding.index, slot, binding.writable));
        }
        // Not derived from the shader, which would leave out what it declares and does not use: a buffer
        // that a caller's function has no need of in this pass.
        let params = 4 * kernel.param_fields().len() as u64;
        let entry = |binding| layout_entry(binding, params);
        let entries: Vec<_> = shader.bindings.iter().map(entry).collect();
        let (pipeline, group) = checked(&self.device, || {
            let group = self
                .device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label: Some(kernel.stem()),
                    entries: &entries,
                });
            let layout = self
                .device
                .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label: Some(kernel.stem()),
                    bind_group_layouts: &[Some(&group)],
                    immediate_size: 0,
                });
            let module = self
                .device
                .create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: Some(kernel.stem()),
                    source: wgpu::ShaderSource::Wgsl(shader.wgsl.into()),
                });
            let pipeline = self
                .device
                .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(kernel.stem()),
                    layout: Some(&layout),
                    module: &module,
                    entry_point: Some("main"),
                    compilation_options: wgpu::PipelineCompilationOptions {
                        zero_initialize_workgroup_memory: CLEAR_WORKGROUP_MEMORY,
                        ..Default::default()
                    },
                    cache: self.driver_cache.as_ref(),
                });
            (pipeline, group)
        })
        .map_err(fail)?;
        log::debug!("compiled {kernel:?}");
        Ok(Pipeline {
            kernel,
            pipeline,
            group,
            bindings,
        })
    }

    /// Counts time that a driver spent on compiling.
    pub fn add_compile_time(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.compile_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Counts buffers and bind groups of a bound call.
    pub fn add_allocations(&self, buffers: u64, bind_groups: u64) {
        self.buffers.fetch_add(buffers, Ordering::Relaxed);
        self.bind_groups.fetch_add(bind_groups, Ordering::Relaxed);
    }

    pub fn counters(&self) -> Counters {
        Counters {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            compile_time: Duration::from_nanos(self.compile_nanos.load(Ordering::Relaxed)),
            buffers: self.buffers.load(Ordering::Relaxed),
            bind_groups: self.bind_groups.load(Ordering::Relaxed),
        }
    }

    /// What a cache file should hold: every kernel that compiled, and the driver's own data.
    pub fn contents(&self) -> Contents {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let kernels: BTreeSet<Kernel> = entries
            .iter()
            .filter(|(_, entry)| matches!(entry.get(), Some(Ok(_))))
            .map(|(kernel, _)| *kernel)
            .collect();
        Contents {
            kernels: kernels.into_iter().collect(),
            blob: self
                .driver_cache
                .as_ref()
                .and_then(wgpu::PipelineCache::get_data)
                .unwrap_or_default(),
        }
    }
}

/// Runs `work` and returns what the device had to say against it, so that an error never reaches
/// the handlers of a device that belongs to somebody else.
pub(crate) fn checked<T>(device: &wgpu::Device, work: impl FnOnce() -> T) -> Result<T, String> {
    let scopes = [
        wgpu::ErrorFilter::Internal,
        wgpu::ErrorFilter::OutOfMemory,
        wgpu::ErrorFilter::Validation,
    ]
    .map(|filter| device.push_error_scope(filter));
    let value = work();
    let mut first = None;
    for scope in scopes.into_iter().rev() {
        let error = pollster::block_on(scope.pop());
        first = first.or(error.map(|error| error.to_string()));
    }
    match first {
        Some(message) => Err(message),
        None => Ok(value),
    }
}

/// A binding's entry; the uniform holds so many bytes.
fn layout_entry(binding: &Binding, params: u64) -> wgpu::BindGroupLayoutEntry {
    let ty = if binding.uniform {
        wgpu::BufferBindingType::Uniform
    } else {
        wgpu::BufferBindingType::Storage {
            read_only: !binding.writable,
        }
    };
    wgpu::BindGroupLayoutEntry {
        binding: binding.index,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset: false,
            min_binding_size: binding
                .uniform
                .then_some(params)
                .and_then(wgpu::BufferSize::new),
        },
        count: None,
    }
}
