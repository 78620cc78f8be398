//! Decoding with linear attention: a prompt fills a state, and then one plan and one bound call take one token after
//! the other. The state stays on the device, where each call overwrites it; a token costs the same however many came
//! before, and nothing is planned, compiled or allocated.
//!
//! ```sh
//! cargo run --release --example linear_decode
//! ```

use std::{error::Error, time::Instant};

use foveate::{
    Decay, Gpu, Layout, LinearAttention, LinearAttentionArgs,
    reference::{self, LinearAttentionInputs},
};

const HEADS: usize = 8;
const PROMPT: usize = 512;
const TOKENS: usize = 2048;
const DIM: usize = 64;
/// Tokens whose median time is one line.
const ROUND: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::open(None)?;
    println!("{} through {}", gpu.info().name, gpu.info().backend);

    let rows = |tokens: usize| Layout::f32([1, HEADS, tokens, DIM].map(|len| len as u64));
    let decays = LinearAttention::lightning_decays(HEADS, None);
    let op = |tokens| {
        LinearAttention::new(rows(tokens), rows(tokens), rows(tokens))
            .decay(Decay::Head(Layout::f32([HEADS as u64])))
            .carried_state()
    };
    // In an app, earlier layers write these on the device.
    let all: Vec<Vec<f32>> = (0..3)
        .map(|seed| reference::noise(seed, HEADS * (PROMPT + TOKENS) * DIM))
        .collect();
    // Some tokens of all heads.
    let part = |data: &[f32], from: usize, count: usize| -> Vec<f32> {
        let heads = data.chunks((PROMPT + TOKENS) * DIM);
        let parts = heads.flat_map(|head| head.iter().skip(from * DIM).take(count * DIM));
        parts.copied().collect()
    };
    let decay = gpu.upload(&decays, [HEADS as u64])?;
    let state = gpu.upload(
        &vec![0.0; HEADS * DIM * DIM],
        [1, HEADS as u64, DIM as u64, DIM as u64],
    )?;

    let prompt = (all.iter())
        .map(|data| gpu.upload(&part(data, 0, PROMPT), rows(PROMPT).shape))
        .collect::<Result<Vec<_>, _>>()?;
    let token = (0..3)
        .map(|_| gpu.allocate(rows(1)))
        .collect::<Result<Vec<_>, _>>()?;
    let [prompt_o, o] = [gpu.allocate(rows(PROMPT))?, gpu.allocate(rows(1))?];
    let bound = |inputs: &[foveate::Tensor], o: &foveate::Tensor, tokens| {
        let plan = gpu.engine().plan(&op(tokens).into())?;
        print!("{}", plan.explain());
        plan.bind(LinearAttentionArgs {
            decay: Some(decay.view()),
            final_state: Some(state.view()),
            ..LinearAttentionArgs::new(
                inputs[0].view(),
                inputs[1].view(),
                inputs[2].view(),
                o.view(),
            )
        })
    };
    let fill = bound(&prompt, &prompt_o, PROMPT)?;
    let step = bound(&token, &o, 1)?;
    // The first run compiles; then the state is empty again.
    gpu.run(&step)?;
    gpu.write(&state, bytemuck::cast_slice(&vec![0f32; HEADS * DIM * DIM]))?;
    gpu.run(&fill)?;
    let before = gpu.engine().counters();

    let mut outputs = vec![0.0; HEADS * TOKENS * DIM];
    println!("  tokens before   median ms");
    let mut times = Vec::with_capacity(ROUND);
    for place in 0..TOKENS {
        for (tensor, data) in token.iter().zip(&all) {
            let row = part(data, PROMPT + place, 1);
            gpu.write(tensor, bytemuck::cast_slice(&row))?;
        }
        let start = Instant::now();
        gpu.run(&step)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        for (head, row) in gpu.download(&o)?.chunks(DIM).enumerate() {
            outputs[(head * TOKENS + place) * DIM..][..DIM].copy_from_slice(row);
        }
        if times.len() == ROUND {
            times.sort_by(f64::total_cmp);
            println!(
                "{:15} {:11.3}",
                PROMPT + place + 1 - ROUND,
                times[ROUND / 2]
            );
            times.clear();
        }
    }
    let after = gpu.engine().counters();
    assert_eq!(
        (before.misses, before.buffers, before.bind_groups),
        (after.misses, after.buffers, after.bind_groups),
        "something was compiled or allocated"
    );
    println!("nothing was compiled or allocated");

    let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|&x| x.into()).collect() };
    let whole = op(PROMPT + TOKENS);
    let expected = reference::linear_attention(&LinearAttentionInputs {
        decay: Some(&wide(&decays)),
        ..LinearAttentionInputs::of(&whole, &wide(&all[0]), &wide(&all[1]), &wide(&all[2]))
    });
    let rows: Vec<f64> = (expected.o.chunks((PROMPT + TOKENS) * DIM))
        .flat_map(|head| head.iter().skip(PROMPT * DIM).copied())
        .collect();
    let errors = [
        reference::error(&outputs, &rows),
        reference::error(&gpu.download(&state)?, &expected.state),
    ];
    println!(
        "error of the outputs {:.1e}, of the state {:.1e}",
        errors[0], errors[1]
    );
    if errors.iter().any(|&error| error > 5e-5) {
        return Err("wrong".into());
    }
    Ok(())
}
