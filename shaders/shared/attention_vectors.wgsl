// Rows of q, k, v and o in vectors of four elements, for schedules that keep them in registers. With
// VEC4 the tensors are stored that way; else elements may be anywhere, and those past a row's end are 0.

//@import attention_tensors

//@if VEC4
alias Stored = vec4<Scalar>;
//@else
alias Stored = Scalar;
//@endif

// Vector `d4` of the row of q that starts at `at`.
fn load_q(at: u32, d4: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(q[at / 4u + d4]);
//@else
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = d4 * 4u + c;
        if (d < params.head_dim) {
            x[c] = f32(q[at + d * params.q_dim]);
        }
    }
    return x;
//@endif
}

// The same of k.
fn load_k(at: u32, d4: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(k[at / 4u + d4]);
//@else
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = d4 * 4u + c;
        if (d < params.head_dim) {
            x[c] = f32(k[at + d * params.k_dim]);
        }
    }
    return x;
//@endif
}

// The same of v.
fn load_v(at: u32, d4: u32) -> vec4<f32> {
//@if VEC4
    return vec4<f32>(v[at / 4u + d4]);
//@else
    var x = vec4<f32>();
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        let d = d4 * 4u + c;
        if (d < params.value_dim) {
            x[c] = f32(v[at + d * params.v_dim]);
        }
    }
    return x;
//@endif
}

// Writes vector `d4` of a row that starts at `at`: of the output, or of a partial result.
fn store_o(at: u32, d4: u32, x: vec4<f32>) {
//@if PARTIAL
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (d4 * 4u + c < params.value_dim) {
            scratch[at + d4 * 4u + c] = x[c];
        }
    }
//@else
//@if VEC4
    o[at / 4u + d4] = Stored(x);
//@else
    //@unroll
    for (var c = 0u; c < 4u; c++) {
        if (d4 * 4u + c < params.value_dim) {
            o[at + (d4 * 4u + c) * params.o_dim] = Scalar(x[c]);
        }
    }
//@endif
//@endif
}
