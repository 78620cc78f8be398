// The state after a short convolution: the last inputs of each sequence and channel.
//
// Formula:   state_k = the input taps - 1 - k tokens before the end, from the state before where x has none.
// Grid:      one invocation per (channel; sequence), channels fastest.
// Workgroup: 64 invocations.
// Memory:    none.
//
// IN_PLACE, an element is written after those that come from it were read: they are never later ones.
// PACKED sequences whose last token is in another slice of x are left to that slice, empty ones to the first.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    invocations: u32,
    channels: u32,
    before: u32,            // tokens that the window of x has before the first of the slice
    window: u32,            // tokens in it
    window_start: u32,      // the first one's place in the sequence
    seq: u32,               // tokens in all
    elements: u32,          // of a state: taps - 1
    x_at: u32, x_batch: u32, x_channel: u32, x_token: u32,
    initial_state_at: u32, initial_state_batch: u32, initial_state_channel: u32, initial_state_tap: u32,
    final_state_at: u32, final_state_batch: u32, final_state_channel: u32, final_state_tap: u32,
    cu_seqlens_at: u32, cu_seqlens_step: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> final_state: array<Scalar>; // [batch or sequences, channels, taps - 1]
@group(0) @binding(2) var<storage, read> x: array<Scalar>; // [batch, channels, seq]
//@if INITIAL
//@if !IN_PLACE
@group(0) @binding(3) var<storage, read> initial_state: array<Scalar>; // as final_state
//@endif
//@endif
//@if PACKED
@group(0) @binding(4) var<storage, read> cu_seqlens: array<u32>; // [sequences + 1]
//@endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.invocations) {
        return;
    }
    let channel = number % params.channels;
    let sequence = number / params.channels;
//@if PACKED
    let at = params.cu_seqlens_at + sequence * params.cu_seqlens_step;
    let start = min(cu_seqlens[at], params.seq);
    let end = clamp(cu_seqlens[at + params.cu_seqlens_step], start, params.seq);
    let slice = params.window_start + params.before;
    let window_end = params.window_start + params.window;
    if (end == start) {
        if (slice != 0u) {
            return;
        }
    } else if (end - 1u < slice || end > window_end) {
        return;
    }
    let source = params.x_at + channel * params.x_channel;
//@else
    let start = 0u;
    let end = params.seq;
    let source = params.x_at + sequence * params.x_batch + channel * params.x_channel;
//@endif
    let count = end - start;
//@if INITIAL
    let initial_at = params.initial_state_at + sequence * params.initial_state_batch + channel * params.initial_state_channel;
//@endif
    var place = params.final_state_at + sequence * params.final_state_batch + channel * params.final_state_channel;
    for (var k = 0u; k < params.elements; k++) {
        var value = Scalar(0.0);
        if (k + count >= params.elements) {
            value = x[source + (start + (k + count - params.elements) - params.window_start) * params.x_token];
        } else {
//@if INITIAL
//@if IN_PLACE
            value = final_state[initial_at + (k + count) * params.initial_state_tap];
//@else
            value = initial_state[initial_at + (k + count) * params.initial_state_tap];
//@endif
//@endif
        }
        final_state[place] = value;
        place += params.final_state_tap;
    }
}
