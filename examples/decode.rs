//! Decoding over a cache that is longer than what is filled: one plan and one bound call serve every length,
//! which stays on the device. Each step writes new keys and values behind the last ones and their count
//! into a buffer of one number; nothing is planned, compiled, allocated or read back.
//!
//! ```sh
//! cargo run --release --example decode
//! ```

use std::{error::Error, time::Instant};

use foveate::{
    Attention, AttentionArgs, Causal, DType, Gpu, Layout,
    reference::{self, AttentionInputs},
};

const HEADS: usize = 8;
const TOKENS: usize = 16;
const CACHE: usize = 8192;
const DIM: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::open(None)?;
    println!("{} through {}", gpu.info().name, gpu.info().backend);

    let cache = Layout::f32([1, HEADS, CACHE, DIM].map(|len| len as u64));
    let new = Layout::f32([1, HEADS, TOKENS, DIM].map(|len| len as u64));
    // The last query sees the last valid key, however many there are.
    let op = Attention::new(new.clone(), cache.clone(), cache.clone())
        .causal(Causal::BottomRight)
        .kv_len(Layout::new(DType::U32, [1]));

    // In an app, earlier layers write these on the device.
    let keys = reference::noise(1, HEADS * CACHE * DIM);
    let values = reference::noise(2, HEADS * CACHE * DIM);
    let queries = reference::noise(3, HEADS * TOKENS * DIM);
    let q = gpu.upload(&queries, new.shape.clone())?;
    let k = gpu.upload(&keys, cache.shape.clone())?;
    let v = gpu.upload(&values, cache.shape.clone())?;
    let o = gpu.allocate(new.clone())?;
    let length = gpu.upload_u32(&[0], [1])?;

    let plan = gpu.engine().plan(&op.clone().into())?;
    print!("{}", plan.explain());
    let call = plan.bind(AttentionArgs {
        kv_len: Some(length.view()),
        ..AttentionArgs::new(q.view(), k.view(), v.view(), o.view())
    })?;
    gpu.run(&call)?;
    let before = gpu.engine().counters();

    println!("  kv_len       ms     error");
    for filled in [1, 16, 64, 256, 1024, 2048, 4096, 8192] {
        gpu.write(&length, bytemuck::bytes_of(&(filled as u32)))?;
        let mut times: Vec<f64> = (0..9)
            .map(|_| {
                let start = Instant::now();
                gpu.run(&call).map(|()| start.elapsed().as_secs_f64() * 1e3)
            })
            .collect::<Result<_, _>>()?;
        times.sort_by(f64::total_cmp);
        let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|&x| x.into()).collect() };
        let expected = reference::attention(&AttentionInputs {
            lens: Some(&[filled]),
            ..AttentionInputs::of(&op, &wide(&queries), &wide(&keys), &wide(&values))
        });
        let error = reference::error(&gpu.download(&o)?, &expected.o);
        println!("{filled:8} {:8.3}  {error:.1e}", times[times.len() / 2]);
        if error > 2e-5 {
            return Err(format!("wrong for {filled} keys: {error:e}").into());
        }
    }
    let after = gpu.engine().counters();
    assert_eq!(
        (before.misses, before.buffers, before.bind_groups),
        (after.misses, after.buffers, after.bind_groups),
        "something was compiled or allocated"
    );
    println!("nothing was compiled or allocated");
    Ok(())
}
