use foveate::*;
use std::time::Instant;
fn main() {
    let gpu = Gpu::open(None).unwrap();
    println!("{:?}", gpu.info().name);
    let ceil = foveate::bench::ceilings(&gpu, 3).unwrap();
    println!("{ceil:?}");
    let cases: Vec<(&str, ShortConv)> = vec![
        (
            "bsc 1x2048x1024 k4",
            ShortConv::new(
                Layout::f32([1, 2048, 1024]).transposed(1, 2),
                Layout::f32([1024, 4]),
            ),
        ),
        (
            "bcs 1x1024x2048 k4",
            ShortConv::new(Layout::f32([1, 1024, 2048]), Layout::f32([1024, 4])),
        ),
        (
            "bsc silu bias state",
            ShortConv::new(
                Layout::f32([1, 2048, 1024]).transposed(1, 2),
                Layout::f32([1024, 4]),
            )
            .bias(Layout::f32([1024]))
            .silu()
            .carried_state(),
        ),
        (
            "bcs odd 1x1024x2047",
            ShortConv::new(Layout::f32([1, 1024, 2047]), Layout::f32([1024, 4])),
        ),
        (
            "bsc k31 h16 softmax",
            ShortConv::new(
                Layout::f32([1, 2048, 1024]).transposed(1, 2),
                Layout::f32([16, 31]),
            )
            .softmax(),
        ),
        (
            "dyn k7 h16",
            ShortConv::new(
                Layout::f32([1, 2048, 1024]).transposed(1, 2),
                Layout::f32([1, 2048, 16, 7]),
            )
            .renormalised(),
        ),
        (
            "packed bsc",
            ShortConv::new(
                Layout::f32([1, 2048, 1024]).transposed(1, 2),
                Layout::f32([1024, 4]),
            )
            .packed(Layout::new(DType::U32, [5])),
        ),
        (
            "decode 16x4096",
            ShortConv::new(Layout::f32([16, 4096, 1]), Layout::f32([4096, 4])).carried_state(),
        ),
        (
            "f16 bsc",
            ShortConv::new(
                Layout::f16([1, 2048, 1024]).transposed(1, 2),
                Layout::f16([1024, 4]),
            ),
        ),
    ];
    let pick = std::env::args().nth(1);
    for (name, op) in cases {
        if pick.as_ref().is_some_and(|p| !name.contains(p.as_str())) {
            continue;
        }
        let x = gpu.allocate(op.x.clone()).unwrap();
        let y = gpu.allocate(op.y.clone()).unwrap();
        let w = gpu.allocate(op.weight.clone()).unwrap();
        let b = op.bias.clone().map(|l| gpu.allocate(l).unwrap());
        let s = op.final_state.clone().map(|l| gpu.allocate(l).unwrap());
        let cu = op
            .cu_seqlens
            .clone()
            .map(|_| gpu.upload_u32(&[0, 100, 1000, 1500, 2048], [5]).unwrap());
        let mut args = ShortConvArgs::new(x.view(), w.view(), y.view());
        args.bias = b.as_ref().map(|t| t.view());
        args.final_state = s.as_ref().map(|t| t.view());
        args.cu_seqlens = cu.as_ref().map(|t| t.view());
        let t0 = Instant::now();
        let plan = gpu.engine().plan(&op.clone().into()).unwrap();
        let call = plan.bind(args).unwrap();
        gpu.run(&call).unwrap();
        let first = t0.elapsed();
        let many = Call::sequence(std::iter::repeat_n(&call, 8));
        let mut best = f64::MAX;
        let mut all = vec![];
        for _ in 0..12 {
            let t = Instant::now();
            gpu.run(&many).unwrap();
            let ms = t.elapsed().as_secs_f64() * 1e3 / 8.0;
            best = best.min(ms);
            all.push(ms);
        }
        all.sort_by(f64::total_cmp);
        let bytes = 2.0 * op.x.elements() as f64 * op.x.dtype.size() as f64;
        println!(
            "{name:24} first {first:?} best {best:.2} ms median {:.2} -> {:.1} GB/s (best)",
            all[6],
            bytes / best / 1e6
        );
    }
}
