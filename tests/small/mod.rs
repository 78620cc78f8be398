//! A device as an app has one, and a small attention with a known answer.
#![allow(dead_code, reason = "not every test asks for all of it")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use foveate::{
    Attention, AttentionArgs, Call, Engine, Layout, Tuning, View,
    reference::{self, AttentionInputs},
};

/// A device that is not the engine's own: it has its own handler of uncaptured errors.
pub struct App {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub engine: Engine,
    uncaptured: Arc<AtomicUsize>,
}

impl App {
    /// On the adapter that the environment names, or the best; a machine without one fails.
    pub fn open() -> Self {
        Self::open_on(&adapter())
    }

    /// Another device, on an adapter at hand.
    pub fn open_on(adapter: &wgpu::Adapter) -> Self {
        let descriptor = wgpu::DeviceDescriptor {
            required_features: Engine::wanted_features() & adapter.features(),
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .expect("the adapter gives a device");
        Self::on(device, queue)
    }

    pub fn on(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let uncaptured = Arc::new(AtomicUsize::new(0));
        let count = uncaptured.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            eprintln!("the app's own handler was called: {error}");
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let engine = Engine::new(&device);
        Self {
            device,
            queue,
            engine,
            uncaptured,
        }
    }

    /// Fails when an error ever reached the app's own handler.
    pub fn saw_no_error(&self) {
        assert_eq!(self.uncaptured.load(Ordering::Relaxed), 0);
    }

    pub fn buffer(&self, size: u64) -> wgpu::Buffer {
        self.buffer_for(
            size,
            wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
        )
    }

    pub fn buffer_for(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("the app's"),
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    pub fn filled(&self, data: &[f32]) -> wgpu::Buffer {
        let buffer = self.buffer(data.len() as u64 * 4);
        self.queue
            .write_buffer(&buffer, 0, bytemuck::cast_slice(data));
        buffer
    }

    /// Records a call as an app does, submits it and waits.
    pub fn run(&self, call: &Call) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        call.record(&mut encoder.begin_compute_pass(&Default::default()));
        self.queue.submit([encoder.finish()]);
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("the device answers");
    }

    pub fn read(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        let size = buffer.size();
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = self.buffer_for(size, usage);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |result| result.expect("maps"));
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("the device answers");
        let mapped = staging.get_mapped_range(..).expect("is mapped");
        bytemuck::pod_collect_to_vec(&mapped)
    }

    /// Runs the small attention and compares it with the reference.
    pub fn still_works(&self) {
        let [q, k, v] = inputs();
        let [q_buffer, k_buffer, v_buffer] = [&q, &k, &v].map(|data| self.filled(data));
        let o = self.buffer(ROWS * 8 * 4);
        let op = attention();
        let plan = self
            .engine
            .plan_with(&op.clone().into(), &tuning())
            .expect("plans");
        let args = AttentionArgs::new(
            View::new(&q_buffer, op.q),
            View::new(&k_buffer, op.k),
            View::new(&v_buffer, op.v),
            View::new(&o, op.o),
        );
        self.run(&plan.bind(args).expect("binds"));
        let error = reference::error(&self.read(&o), &expected());
        assert!(error < 1e-5, "error {error}");
        self.saw_no_error();
    }
}

/// The adapter that the environment names, or the best; a machine without one fails.
pub fn adapter() -> wgpu::Adapter {
    foveate::choose(&foveate::adapters(), None).expect("tests need an adapter")
}

const ROWS: u64 = 2 * 4;

/// Two query heads of four rows, one KV head of six keys, dims of 8.
pub fn attention() -> Attention {
    Attention::new(
        Layout::f32([1, 2, 4, 8]),
        Layout::f32([1, 1, 6, 8]),
        Layout::f32([1, 1, 6, 8]),
    )
}

/// Kernels that drivers compile fast.
pub fn tuning() -> Tuning {
    Tuning {
        rows: Some(1),
        keys: Some(1),
        ..Tuning::default()
    }
}

/// q, k and v.
pub fn inputs() -> [Vec<f32>; 3] {
    let wave = |count: usize, step: f32| (0..count).map(|i| (i as f32 * step).sin()).collect();
    [wave(64, 0.37), wave(48, 0.53), wave(48, 0.71)]
}

/// The small attention's output.
pub fn expected() -> Vec<f64> {
    let [q, k, v] = inputs().map(|data| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let inputs = AttentionInputs {
        batch: 1,
        q_heads: 2,
        kv_heads: 1,
        q_len: 4,
        kv_len: 6,
        head_dim: 8,
        value_dim: 8,
        q: &q,
        k: &k,
        v: &v,
        scale: 1.0 / 8f64.sqrt(),
        ..Default::default()
    };
    reference::attention(&inputs).o
}
