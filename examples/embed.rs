//! Attention in an app that has its own device: planned once, recorded into the app's own compute
//! pass, submitted and read back by the app. Tensors stay in the app's buffers, `[batch, seq,
//! heads, dim]`, and are not copied.
//!
//! ```sh
//! cargo run --release --example embed
//! ```

use std::error::Error;

use foveate::{
    Attention, AttentionArgs, Causal, Engine, Layout, View,
    reference::{self, AttentionInputs},
};
use wgpu::util::DeviceExt;

const BATCH: usize = 2;
const SEQ: usize = 96;
const HEADS: usize = 4;
const DIM: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    // The app's own device. Ask for what the engine can use where the adapter has it.
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: Engine::wanted_features() & adapter.features(),
        required_limits: adapter.limits(),
        ..Default::default()
    }))?;
    println!("{}", adapter.get_info().name);

    // The app's own buffers.
    let wave = |step: f32| -> Vec<f32> {
        (0..BATCH * SEQ * HEADS * DIM)
            .map(|i| (i as f32 * step).sin())
            .collect()
    };
    let data = [wave(0.37), wave(0.53), wave(0.71)];
    let buffers = data.each_ref().map(|data| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(data),
            usage: wgpu::BufferUsages::STORAGE,
        })
    });
    let [q, k, v] = &buffers;
    let output = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("output"),
        size: q.size(),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });

    // Ops take [batch, heads, seq, dim]: exchange two axes, and nothing moves.
    let layout = Layout::f32([BATCH, SEQ, HEADS, DIM].map(|len| len as u64)).transposed(1, 2);
    let op = Attention::new(layout.clone(), layout.clone(), layout.clone())
        .output(layout.clone())
        .causal(Causal::TopLeft);

    // Planning compiles and binding allocates; recording does neither.
    let engine = Engine::new(&device);
    let plan = engine.plan(&op.clone().into())?;
    print!("{}", plan.explain());
    let view = |buffer| View::new(buffer, layout.clone());
    let call = plan.bind(AttentionArgs::new(view(q), view(k), view(v), view(&output)))?;

    // The app's own pass, submission and readback.
    let readback = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("readback"),
        size: output.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        call.record(&mut pass);
        // The app's other dispatches go here, in the same pass.
    }
    encoder.copy_buffer_to_buffer(&output, 0, &readback, 0, output.size());
    queue.submit([encoder.finish()]);
    readback.map_async(wgpu::MapMode::Read, .., |result| {
        result.expect("the buffer can be mapped");
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let o: Vec<f32> = bytemuck::pod_collect_to_vec(&readback.get_mapped_range(..)?);

    // The same on the CPU, in f64; the reference takes [batch, heads, seq, dim] without strides.
    let [q, k, v] = data.each_ref().map(|data| {
        let data: Vec<f64> = exchange(data, SEQ, HEADS).map(f64::from).collect();
        data
    });
    let want = reference::attention(&AttentionInputs {
        batch: BATCH,
        q_heads: HEADS,
        kv_heads: HEADS,
        q_len: SEQ,
        kv_len: SEQ,
        head_dim: DIM,
        value_dim: DIM,
        q: &q,
        k: &k,
        v: &v,
        scale: f64::from(op.effective_scale()),
        causal: Causal::TopLeft,
        ..Default::default()
    });
    let o: Vec<f32> = exchange(&o, SEQ, HEADS).collect();
    let error = reference::error(&o, &want.o);
    println!("error {error:.1e}");
    assert!(error < 1e-5, "the device computes wrong");
    Ok(())
}

/// `[batch, a, b, dim]` in the order `[batch, b, a, dim]`.
fn exchange(data: &[f32], a: usize, b: usize) -> impl Iterator<Item = f32> {
    (0..data.len()).map(move |i| {
        let (dim, rest) = (i % DIM, i / DIM);
        let (in_a, rest) = (rest % a, rest / a);
        let (in_b, batch) = (rest % b, rest / b);
        data[((batch * a + in_a) * b + in_b) * DIM + dim]
    })
}
