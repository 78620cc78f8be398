//! Tensors as bits, for ops that move numbers and never change them.

use foveate::{DType, Gpu, Layout, Tensor};

use super::place_of;

/// What is around tensors, and in outputs before a call.
fn sentinel(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 0xbeef,
        _ => 0xdead_beef,
    }
}

/// A tensor of any layout with these elements (row-major), sentinels everywhere else; no elements: sentinels only.
pub fn put(gpu: &Gpu, layout: &Layout, bits: &[u32]) -> Tensor {
    let tensor = gpu.allocate(layout.clone()).expect("fits");
    let count = tensor.buffer().size() / layout.dtype.size();
    let mut all = vec![sentinel(layout.dtype); count as usize];
    for (number, &bits) in bits.iter().enumerate() {
        all[place_of(layout, number as u64) as usize] = bits;
    }
    let bytes: Vec<u8> = match layout.dtype {
        DType::F16 => all
            .iter()
            .flat_map(|&bits| (bits as u16).to_le_bytes())
            .collect(),
        _ => all.iter().flat_map(|bits| bits.to_le_bytes()).collect(),
    };
    gpu.write(&tensor, &bytes).expect("writes");
    tensor
}

/// The elements of an output (row-major), all of them written, and nothing around it.
pub fn get(gpu: &Gpu, tensor: &Tensor) -> Vec<u32> {
    let layout = tensor.layout();
    let words = tensor.with_layout(Layout::new(DType::U32, [tensor.buffer().size() / 4]));
    let words = gpu.download_u32(&words).expect("reads back");
    let all: Vec<u32> = match layout.dtype {
        DType::F16 => words
            .iter()
            .flat_map(|word| [word & 0xffff, word >> 16])
            .collect(),
        _ => words,
    };
    let mut inside = vec![false; all.len()];
    let mut bits = Vec::new();
    for number in 0..layout.elements() {
        let at = place_of(layout, number) as usize;
        inside[at] = true;
        bits.push(all[at]);
    }
    let sentinel = sentinel(layout.dtype);
    for (at, (&bits, inside)) in all.iter().zip(inside).enumerate() {
        assert_eq!(
            inside,
            bits != sentinel,
            "element {at} of {layout:?} is {bits:x}"
        );
    }
    bits
}

/// Whole numbers that look random, below a bound, the same for the same seed.
pub fn numbers(seed: u64, count: usize, bound: u32) -> Vec<u32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % u64::from(bound)) as u32
        })
        .collect()
}

/// The same adapter with other caps.
pub fn with_caps(gpu: &Gpu, change: impl FnOnce(&mut foveate::Caps)) -> Gpu {
    let mut caps = gpu.engine().caps().clone();
    change(&mut caps);
    let mut changed = gpu.clone();
    *changed.engine_mut() = gpu.engine().clone().with_caps(caps);
    changed
}
