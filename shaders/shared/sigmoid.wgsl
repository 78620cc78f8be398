// The logistic function, with no exponential of a positive number, which might overflow.
fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    let t = exp(-abs(x));
    return select(t, vec4<f32>(1.0), x >= vec4<f32>()) / (1.0 + t);
}
