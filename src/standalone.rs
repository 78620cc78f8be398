//! For those with no device of their own: an adapter, a device, tensors.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    call::Call,
    caps::Caps,
    engine::{Engine, read_buffer},
    error::{Error, Result},
    ops::{
        Args, Attention, AttentionArgs, Merge, MergeArgs, Op, Rotary, RotaryArgs, Softmax,
        SoftmaxArgs, Statistic, Weights,
    },
    pipeline::checked,
    tensor::{DType, Layout, View},
};

/// The environment variable that chooses an adapter when the caller does not.
pub const ADAPTER_VARIABLE: &str = "FOVEATE_ADAPTER";

const NO_DRIVER: &str = "install a GPU driver, or Mesa's software device (Debian and Ubuntu: \
                         apt-get install mesa-vulkan-drivers libvulkan1)";

/// The adapters of this machine, in wgpu's order.
pub fn adapters() -> Vec<wgpu::Adapter> {
    let instance = instance();
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// The checks that instances are made with, from the build and the environment.
#[cfg(feature = "cli")]
pub(crate) fn instance_flags() -> wgpu::InstanceFlags {
    wgpu::InstanceDescriptor::new_without_display_handle_from_env().flags
}

/// Who made an adapter, by the number that its driver gives: a PCI vendor, or one of Khronos's own.
pub(crate) fn vendor(info: &wgpu::AdapterInfo) -> Option<&'static str> {
    const VENDORS: [(u32, &str); 12] = [
        (0x1002, "AMD"),
        (0x1010, "Imagination"),
        (0x106b, "Apple"),
        (0x10de, "NVIDIA"),
        (0x13b5, "ARM"),
        (0x1414, "Microsoft"),
        (0x144d, "Samsung"),
        (0x14e4, "Broadcom"),
        (0x1ae0, "Google"),
        (0x5143, "Qualcomm"),
        (0x8086, "Intel"),
        (0x1_0005, "Mesa"),
    ];
    let known = VENDORS.iter().find(|(number, _)| *number == info.vendor);
    known.map(|(_, name)| *name)
}

/// Chooses an adapter: by number, or by a part of its name, vendor, driver or backend; without a choice,
/// by [`ADAPTER_VARIABLE`], else real GPUs before software.
///
/// # Errors
/// [`Error::NoAdapter`], with the adapters that are there.
pub fn choose(adapters: &[wgpu::Adapter], choice: Option<&str>) -> Result<wgpu::Adapter> {
    let variable = std::env::var(ADAPTER_VARIABLE).ok();
    let choice = choice
        .map(str::to_owned)
        .or(variable)
        .filter(|choice| !choice.is_empty());
    if adapters.is_empty() {
        return Err(Error::NoAdapter {
            found: "this machine has none that wgpu can use".into(),
            remedy: NO_DRIVER.into(),
        });
    }
    let found = match &choice {
        Some(choice) => {
            let number = choice.parse::<usize>().ok();
            let by_number = number.and_then(|number| adapters.get(number));
            by_number.or_else(|| {
                adapters
                    .iter()
                    .find(|adapter| is_called(&adapter.get_info(), choice))
            })
        }
        None => adapters
            .iter()
            .min_by_key(|adapter| match adapter.get_info().device_type {
                wgpu::DeviceType::DiscreteGpu => 0,
                wgpu::DeviceType::IntegratedGpu => 1,
                wgpu::DeviceType::VirtualGpu => 2,
                // OpenGL does not tell; where it is software, wgpu knows by the name.
                wgpu::DeviceType::Other => 3,
                wgpu::DeviceType::Cpu => 4,
            }),
    };
    found.cloned().ok_or_else(|| {
        let names: Vec<String> = adapters
            .iter()
            .enumerate()
            .map(|(number, adapter)| {
                let info = adapter.get_info();
                format!("{number}: {} ({})", info.name, info.backend)
            })
            .collect();
        Error::NoAdapter {
            found: format!(
                "`{}` (from --adapter or {ADAPTER_VARIABLE}) matches none of these: {}",
                choice.unwrap_or_default(),
                names.join("; ")
            ),
            remedy: "give a number, or a part of a name, vendor, driver or backend".into(),
        }
    })
}

/// Whether a text is part of an adapter's name, vendor, driver or backend.
fn is_called(info: &wgpu::AdapterInfo, text: &str) -> bool {
    let wanted = text.to_lowercase();
    [
        info.name.as_str(),
        vendor(info).unwrap_or_default(),
        &info.driver,
        &info.driver_info,
        &info.backend.to_string(),
    ]
    .iter()
    .any(|name| name.to_lowercase().contains(&wanted))
}

/// A device of one's own, with an engine on it.
#[derive(Clone)]
pub struct Gpu {
    info: wgpu::AdapterInfo,
    queue: wgpu::Queue,
    engine: Engine,
    errors: Arc<Mutex<Vec<String>>>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("info", &self.info).finish()
    }
}

impl Gpu {
    /// Opens an adapter of this machine; see [`choose`] for the choice.
    ///
    /// # Errors
    /// [`Error::NoAdapter`]; [`Error::Device`] when the adapter gives no device.
    pub fn open(choice: Option<&str>) -> Result<Self> {
        Self::on(&choose(&adapters(), choice)?)
    }

    /// Opens a device on an adapter, with all features and limits that the engine can use.
    ///
    /// # Errors
    /// [`Error::Device`] when the adapter gives no device.
    pub fn on(adapter: &wgpu::Adapter) -> Result<Self> {
        Self::with(adapter, Self::wanted_features(), adapter.limits(), None)
    }

    /// [`Engine::wanted_features`] and cooperative matrices, which wgpu calls experimental.
    pub fn wanted_features() -> wgpu::Features {
        Engine::wanted_features() | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    }

    /// Opens a device with at most these features and just these limits, and a folder for the
    /// pipeline cache.
    ///
    /// # Errors
    /// [`Error::Device`] when the adapter gives no such device.
    pub fn with(
        adapter: &wgpu::Adapter,
        features: wgpu::Features,
        limits: wgpu::Limits,
        cache: Option<&Path>,
    ) -> Result<Self> {
        let required_features = features & adapter.features();
        let matrices = required_features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("foveate"),
            required_features,
            required_limits: limits,
            experimental_features: if matrices {
                // SAFETY: what wgpu asks for is care with features whose checks have gaps. Of these,
                // kernels use cooperative matrices alone: within workgroup memory, on shapes that
                // the adapter lists, and in control flow that is uniform in each subgroup.
                unsafe { wgpu::ExperimentalFeatures::enabled() }
            } else {
                wgpu::ExperimentalFeatures::disabled()
            },
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| Error::Device(error.to_string()))?;
        let errors: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = errors.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut list = kept.lock().unwrap_or_else(PoisonError::into_inner);
            list.push(error.to_string());
        }));
        let engine = match cache {
            Some(folder) => Engine::with_cache(&device, folder),
            None => Engine::new(&device),
        }
        .with_caps(Caps::with_matrices(&device, adapter));
        Ok(Self {
            info: adapter.get_info(),
            queue,
            engine,
            errors,
        })
    }

    /// The adapter.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The engine, to change its caps or to measure.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        self.engine.device()
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// Measures what cannot be asked of the device; see [`Engine::measure`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn measure(&mut self) -> Result<()> {
        self.engine.measure(&self.queue)
    }

    /// An uninitialised tensor (wgpu makes it zero).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a shape without elements; [`Error::Unsupported`] past the largest
    /// buffer; [`Error::Device`] when memory runs out.
    pub fn empty(&self, dtype: DType, shape: impl Into<Vec<u64>>) -> Result<Tensor> {
        self.allocate(Layout::new(dtype, shape))
    }

    /// A tensor of any layout, in a buffer that ends where the layout does.
    ///
    /// # Errors
    /// As [`Gpu::empty`].
    pub fn allocate(&self, layout: Layout) -> Result<Tensor> {
        layout.check("shape")?;
        let size = layout.end_bytes().next_multiple_of(4);
        let most = self.device().limits().max_buffer_size;
        if size > most {
            return Err(Error::unsupported(
                format!("a tensor of {size} bytes"),
                format!("a buffer holds at most {most} bytes on this device"),
                "split it",
            ));
        }
        let buffer = checked(self.device(), || {
            self.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("tensor"),
                size,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
        .map_err(Error::Device)?;
        Ok(Tensor { buffer, layout })
    }

    /// A contiguous tensor with these bytes: little-endian elements of `dtype`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when their number does not fit the shape; else as [`Gpu::empty`].
    pub fn upload_bytes(
        &self,
        bytes: &[u8],
        dtype: DType,
        shape: impl Into<Vec<u64>>,
    ) -> Result<Tensor> {
        let tensor = self.empty(dtype, shape)?;
        if bytes.len() as u64 != tensor.layout.end_bytes() {
            return Err(Error::invalid(
                "data",
                format!(
                    "{} bytes, and {dtype} {:?} takes {}",
                    bytes.len(),
                    tensor.layout.shape,
                    tensor.layout.end_bytes()
                ),
                "give one value per element",
            ));
        }
        self.write(&tensor, bytes)?;
        Ok(tensor)
    }

    /// Overwrites a tensor's buffer from its start.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the bytes do not fit; [`Error::Device`].
    pub fn write(&self, tensor: &Tensor, bytes: &[u8]) -> Result<()> {
        // Writes count in words of four bytes.
        let whole = bytes.len() / 4 * 4;
        let mut rest = [0; 4];
        rest[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
        if bytes.len().next_multiple_of(4) as u64 > tensor.buffer.size() {
            return Err(Error::invalid(
                "data",
                format!(
                    "{} bytes for a buffer of {}",
                    bytes.len(),
                    tensor.buffer.size()
                ),
                "write no more than the tensor holds",
            ));
        }
        checked(self.device(), || {
            self.queue.write_buffer(&tensor.buffer, 0, &bytes[..whole]);
            if whole < bytes.len() {
                self.queue.write_buffer(&tensor.buffer, whole as u64, &rest);
            }
            // Starts the copy, so that staging memory is freed before the next upload.
            self.queue.submit([]);
        })
        .map_err(Error::Device)
    }

    /// A contiguous f32 tensor.
    ///
    /// # Errors
    /// As [`Gpu::upload_bytes`].
    pub fn upload(&self, data: &[f32], shape: impl Into<Vec<u64>>) -> Result<Tensor> {
        self.upload_bytes(bytemuck::cast_slice(data), DType::F32, shape)
    }

    /// A contiguous tensor of `dtype` f32 or f16, rounded from f32.
    ///
    /// # Errors
    /// As [`Gpu::upload_bytes`].
    pub fn upload_as(
        &self,
        dtype: DType,
        data: &[f32],
        shape: impl Into<Vec<u64>>,
    ) -> Result<Tensor> {
        match dtype {
            DType::F32 => self.upload(data, shape),
            DType::F16 => {
                let half: Vec<half::f16> = data.iter().map(|&x| half::f16::from_f32(x)).collect();
                self.upload_bytes(bytemuck::cast_slice(&half), dtype, shape)
            }
            DType::Bool | DType::U32 => Err(Error::invalid(
                "dtype",
                format!("{dtype} for real numbers"),
                "give f32 or f16; upload_bool and upload_u32 take the others",
            )),
        }
    }

    /// A contiguous tensor of lengths.
    ///
    /// # Errors
    /// As [`Gpu::upload_bytes`].
    pub fn upload_u32(&self, data: &[u32], shape: impl Into<Vec<u64>>) -> Result<Tensor> {
        self.upload_bytes(bytemuck::cast_slice(data), DType::U32, shape)
    }

    /// A contiguous boolean mask.
    ///
    /// # Errors
    /// As [`Gpu::upload_bytes`].
    pub fn upload_bool(&self, data: &[bool], shape: impl Into<Vec<u64>>) -> Result<Tensor> {
        let bytes: Vec<u8> = data.iter().map(|&b| u8::from(b)).collect();
        self.upload_bytes(&bytes, DType::Bool, shape)
    }

    /// The elements of an f32 or f16 tensor, in row-major order whatever its strides.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails; [`Error::Invalid`] for other element types, and for
    /// a layout that the buffer does not hold.
    pub fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        match tensor.layout.dtype {
            DType::F32 => Ok(in_order(
                &tensor.layout,
                bytemuck::pod_collect_to_vec(&self.bytes_of(tensor)?),
            )),
            DType::F16 => {
                let halves: Vec<half::f16> = bytemuck::pod_collect_to_vec(&self.bytes_of(tensor)?);
                let all = halves.into_iter().map(half::f16::to_f32).collect();
                Ok(in_order(&tensor.layout, all))
            }
            DType::U32 => Err(Error::invalid(
                "tensor",
                "elements are u32",
                "call Gpu::download_u32",
            )),
            other @ DType::Bool => Err(Error::invalid(
                "tensor",
                format!("elements are {other}"),
                "only f32, f16 and u32 tensors are downloaded",
            )),
        }
    }

    /// The elements of a u32 tensor, in row-major order whatever its strides.
    ///
    /// # Errors
    /// As [`Gpu::download`].
    pub fn download_u32(&self, tensor: &Tensor) -> Result<Vec<u32>> {
        if tensor.layout.dtype != DType::U32 {
            return Err(Error::invalid(
                "tensor",
                format!("elements are {}", tensor.layout.dtype),
                "call Gpu::download for f32 and f16",
            ));
        }
        let all = bytemuck::pod_collect_to_vec(&self.bytes_of(tensor)?);
        Ok(in_order(&tensor.layout, all))
    }

    /// The bytes of a tensor's buffer as far as its layout reaches.
    fn bytes_of(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let layout = &tensor.layout;
        layout.check("tensor")?;
        let size = layout.end_bytes().next_multiple_of(4);
        if size > tensor.buffer.size() {
            return Err(Error::invalid(
                "tensor",
                format!(
                    "its layout ends at byte {size}, and its buffer at {}",
                    tensor.buffer.size()
                ),
                "give a layout that its buffer holds",
            ));
        }
        // Staging buffers are kept small, whatever the tensor's size.
        const PIECE: u64 = 64 << 20;
        let mut bytes = Vec::with_capacity(size as usize);
        for start in (0..size).step_by(PIECE as usize) {
            let piece = PIECE.min(size - start);
            bytes.extend(read_buffer(
                self.device(),
                &self.queue,
                &tensor.buffer,
                start,
                piece,
            )?);
        }
        self.take_errors()?;
        Ok(bytes)
    }

    /// Submits a call and waits for it.
    ///
    /// # Errors
    /// [`Error::Device`] when the device reports anything.
    pub fn run(&self, call: &Call) -> Result<()> {
        self.engine.run(&self.queue, call)?;
        self.take_errors()
    }

    /// Submits calls, one after another, and waits for the last. Each sees what those before it wrote, and nothing
    /// comes back to the host in between.
    ///
    /// # Errors
    /// [`Error::Device`] when the device reports anything.
    pub fn run_all<'a>(&self, calls: impl IntoIterator<Item = &'a Call>) -> Result<()> {
        self.engine.run_all(&self.queue, calls)?;
        self.take_errors()
    }

    /// Plans, binds and runs an op.
    ///
    /// # Errors
    /// As [`Engine::plan`], [`crate::Plan::bind`] and [`Gpu::run`].
    pub fn compute<'a>(&self, op: &Op, args: impl Into<Args<'a>>) -> Result<()> {
        let plan = self.engine.plan(op)?;
        self.run(&plan.bind(args)?)
    }

    /// Attention of `q`, `k` and `v` (`[batch, heads, seq, dim]`), with what `options` sets on the
    /// op: scale and causality. Masks, biases and lengths go through [`Gpu::compute`].
    ///
    /// # Errors
    /// As [`Gpu::compute`].
    pub fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        options: impl FnOnce(Attention) -> Attention,
    ) -> Result<Tensor> {
        let op = options(Attention::new(
            q.layout.clone(),
            k.layout.clone(),
            v.layout.clone(),
        ));
        has_no_more(&op, "call Gpu::compute with AttentionArgs")?;
        let o = self.allocate(op.o.clone())?;
        let args = AttentionArgs::new(q.view(), k.view(), v.view(), o.view());
        self.compute(&op.into(), args)?;
        Ok(o)
    }

    /// Scores or weights of the attention of `q` and `k` (`[batch, heads, seq, dim]`), or a statistic of
    /// them, with what `options` sets on the attention: scale and causality. The second tensor holds
    /// numbers of keys, where the statistic has them. Weights take two calls, of which the first finds the
    /// log-sum-exp. Masks, biases and lengths go through [`Gpu::compute`].
    ///
    /// # Errors
    /// As [`Gpu::compute`].
    pub fn weights(
        &self,
        q: &Tensor,
        k: &Tensor,
        statistic: Statistic,
        options: impl FnOnce(Attention) -> Attention,
    ) -> Result<(Tensor, Option<Tensor>)> {
        // The values take no part: any that fit will do.
        let mut attention = options(Attention::new(
            q.layout.clone(),
            k.layout.clone(),
            k.layout.clone(),
        ));
        has_no_more(&attention, "call Gpu::compute with Weights::args")?;
        if statistic.needs_lse() {
            attention = attention.with_lse();
        }
        let op = Weights::new(attention, statistic);
        let o = self.allocate(op.attention.o.clone())?;
        let mut args = AttentionArgs::new(q.view(), k.view(), k.view(), o.view());
        let lse = match &op.attention.lse {
            Some(lse) => Some(self.allocate(lse.clone())?),
            None => None,
        };
        if let Some(lse) = &lse {
            args.lse = Some(lse.view());
            self.compute(&op.attention.clone().into(), args.clone())?;
        }
        let out = self.allocate(op.out.clone())?;
        let keys = match &op.keys {
            Some(keys) => Some(self.allocate(keys.clone())?),
            None => None,
        };
        let args = op.args(args, out.view(), keys.as_ref().map(Tensor::view));
        self.compute(&op.into(), args)?;
        Ok((out, keys))
    }

    /// Merges attention results over parts of the keys, outputs `[parts, batch, heads, seq,
    /// value_dim]` and log-sum-exps `[parts, batch, heads, seq]`, into that over all, with what
    /// `options` sets on the op. The log-sum-exp of the whole, and gates, go through [`Gpu::compute`].
    ///
    /// # Errors
    /// As [`Gpu::compute`].
    pub fn merge(
        &self,
        o_parts: &Tensor,
        lse_parts: &Tensor,
        options: impl FnOnce(Merge) -> Merge,
    ) -> Result<Tensor> {
        let op = options(Merge::new(o_parts.layout.clone(), lse_parts.layout.clone()));
        for (name, given) in [("lse", &op.lse), ("gates", &op.gates)] {
            if given.is_some() {
                return Err(Error::invalid(
                    name,
                    "has no tensor in this call",
                    "call Gpu::compute with MergeArgs",
                ));
            }
        }
        let o = self.allocate(op.o.clone())?;
        let args = MergeArgs::new(o_parts.view(), lse_parts.view(), o.view());
        self.compute(&op.into(), args)?;
        Ok(o)
    }

    /// Rotary position embedding of `x`, `[batch, heads, seq, head_dim]`, by tables of cosines and sines
    /// ([`crate::rotary_tables`] makes them), with what `options` sets on the op. In place, the result is
    /// `x` itself. Positions in a tensor go through [`Gpu::compute`].
    ///
    /// # Errors
    /// As [`Gpu::compute`].
    pub fn rotary(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        options: impl FnOnce(Rotary) -> Rotary,
    ) -> Result<Tensor> {
        let op = options(Rotary::new(
            x.layout.clone(),
            cos.layout.clone(),
            sin.layout.clone(),
        ));
        if op.positions.is_some() {
            return Err(Error::invalid(
                "positions",
                "have no tensor in this call",
                "call Gpu::compute with RotaryArgs",
            ));
        }
        let y = if op.in_place {
            x.clone()
        } else {
            self.allocate(op.y.clone())?
        };
        let args = RotaryArgs {
            x: (!op.in_place).then(|| x.view()),
            cos: cos.view(),
            sin: sin.view(),
            positions: None,
            y: y.view(),
        };
        self.compute(&op.into(), args)?;
        Ok(y)
    }

    /// Softmax of `x` along an axis, with what `options` sets on the op. In place, the result is
    /// `x` itself.
    ///
    /// # Errors
    /// As [`Gpu::compute`].
    pub fn softmax(
        &self,
        x: &Tensor,
        axis: usize,
        options: impl FnOnce(Softmax) -> Softmax,
    ) -> Result<Tensor> {
        let op = options(Softmax::new(x.layout.clone(), axis));
        let y = if op.in_place {
            x.clone()
        } else {
            self.allocate(op.y.clone())?
        };
        let args = SoftmaxArgs {
            x: (!op.in_place).then(|| x.view()),
            y: y.view(),
        };
        self.compute(&op.into(), args)?;
        Ok(y)
    }

    /// What the device reported since the last call, outside any error scope.
    fn take_errors(&self) -> Result<()> {
        let mut list = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if list.is_empty() {
            Ok(())
        } else {
            Err(Error::Device(std::mem::take(&mut *list).join("; ")))
        }
    }
}

/// A tensor in a buffer of its own.
#[derive(Debug, Clone)]
pub struct Tensor {
    buffer: wgpu::Buffer,
    layout: Layout,
}

impl Tensor {
    /// The tensor as an op takes it.
    pub fn view(&self) -> View<'_> {
        View::new(&self.buffer, self.layout.clone())
    }

    /// Where its elements lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its buffer.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// The same buffer with another layout.
    #[must_use]
    pub fn with_layout(&self, layout: Layout) -> Self {
        Self {
            buffer: self.buffer.clone(),
            layout,
        }
    }
}

/// Elements of a layout in row-major order, from those of its buffer.
pub(crate) fn in_order<T: Copy>(layout: &Layout, mut all: Vec<T>) -> Vec<T> {
    if *layout == Layout::new(layout.dtype, layout.shape.clone()) {
        all.truncate(layout.elements() as usize);
        return all;
    }
    (0..layout.elements())
        .map(|number| {
            let mut rest = number;
            let mut at = layout.offset;
            for (len, stride) in layout.shape.iter().zip(&layout.strides).rev() {
                at += rest % len * stride;
                rest /= len;
            }
            all[at as usize]
        })
        .collect()
}

/// Checks that an attention asks for no tensor that a call has no place for.
fn has_no_more(op: &Attention, remedy: &str) -> Result<()> {
    for (slot, layout) in [
        ("lse", op.lse.as_ref()),
        ("mask", op.mask.as_ref()),
        ("bias", op.bias.as_ref()),
        ("kv_len", op.kv_len.as_ref()),
    ] {
        if layout.is_some() {
            return Err(Error::invalid(slot, "has no tensor in this call", remedy));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_go_by_name_vendor_driver_and_backend() {
        let info = wgpu::AdapterInfo {
            name: "GeForce 9".into(),
            vendor: 0x10de,
            driver_info: "570.1".into(),
            ..wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, wgpu::Backend::Vulkan)
        };
        for text in ["geforce", "nvidia", "NVIDIA", "570", "vulkan"] {
            assert!(is_called(&info, text), "{text}");
        }
        for text in ["amd", "metal", "geforce 8"] {
            assert!(!is_called(&info, text), "{text}");
        }
        let unknown = wgpu::AdapterInfo { vendor: 1, ..info };
        assert_eq!(vendor(&unknown), None);
        assert!(!is_called(&unknown, "nvidia"));
    }
}
