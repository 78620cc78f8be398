// Feature maps of linear attention: what is applied to each query and key, and cosFormer's angles.
//
// `factor` and `less` count for FEATURE_EXP alone, exp(factor * x - less). A softmax over channels is FEATURE_EXP
// with a factor of 1 less the row's maximum, divided by the row's sum after.

const FEATURE_Q: u32 = 0u; //@variant
const FEATURE_K: u32 = 0u; //@variant

const FEATURE_IDENTITY: u32 = 0u;
const FEATURE_ELU_PLUS_ONE: u32 = 1u;
const FEATURE_RELU: u32 = 2u;
const FEATURE_SQUARED_RELU: u32 = 3u;
const FEATURE_EXP: u32 = 4u;
const FEATURE_SIGMOID: u32 = 5u;
const FEATURE_SILU: u32 = 6u;

//@import sigmoid

fn feature(kind: u32, x: vec4<f32>, factor: f32, less: f32) -> vec4<f32> {
    switch kind {
        case FEATURE_ELU_PLUS_ONE: {
            return select(exp(min(x, vec4<f32>())), x + 1.0, x > vec4<f32>());
        }
        case FEATURE_RELU: {
            return max(x, vec4<f32>());
        }
        case FEATURE_SQUARED_RELU: {
            let y = max(x, vec4<f32>());
            return y * y;
        }
        case FEATURE_EXP: {
            return exp(factor * x - less);
        }
        case FEATURE_SIGMOID: {
            return sigmoid(x);
        }
        case FEATURE_SILU: {
            return x * sigmoid(x);
        }
        default: {
            return x;
        }
    }
}

fn map_q(x: vec4<f32>, factor: f32, less: f32) -> vec4<f32> {
    return feature(FEATURE_Q, x, factor, less);
}

fn map_k(x: vec4<f32>, factor: f32, less: f32) -> vec4<f32> {
    return feature(FEATURE_K, x, factor, less);
}

// Sine and cosine of a quarter turn times part / whole, for part <= whole, to about 1e-7 of each: WGSL's own promise
// 2^-11. Angles past an eighth of a turn are taken from the other end, where whole - part is exact.
fn quarter_turn(part: u32, whole: u32) -> vec2<f32> {
    let rest = whole - min(part, whole);
    let x = 1.5707963267948966 * f32(min(part, rest)) / f32(max(whole, 1u));
    let y = x * x;
    let sine = x * fma(y, fma(y, fma(y, fma(y, 2.7557319e-6, -1.9841270e-4), 8.3333333e-3), -0.16666667), 1.0);
    let cosine = fma(y, fma(y, fma(y, fma(y, fma(y, -2.7557319e-7, 2.4801587e-5), -1.3888889e-3), 4.1666667e-2), -0.5), 1.0);
    return select(vec2<f32>(cosine, sine), vec2<f32>(sine, cosine), part <= rest);
}
