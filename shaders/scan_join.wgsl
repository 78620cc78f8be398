// Starts of the segments of scans, from what each segment makes of nothing.
//
// Formula:   start_0 is the state before the window, start_{s+1} = start_s joined with the result of segment s.
// Grid:      one invocation per (WIDTH channels, head, batch entry or sequence), channels fastest.
// Workgroup: 64 invocations.
// Memory:    none.
//
// Slot s has the result of segment s, then its start. SUMS: only w is joined, a plain sum; m and u are starts already.

//@import grid
//@import scan_state
//@import scan_slots

const WORKGROUP: u32 = 64u; //@variant
// Slots that are loaded at once.
const BLOCK: u32 = 4u; //@variant

struct Params {
    invocations: u32,
    units: u32,             // of channels, WIDTH each
    heads: u32,
    rows: u32,
    segments: u32,          // those that have a result
    carry_slot: u32,        // where the state before a later window is
    first_window: u32,
    channel_start: u32,     // of the first channel here, in the states
    initial_at: u32, initial_batch: u32, initial_head: u32, initial_part: u32, initial_channel: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
//@if INITIAL
//@if IN_PLACE
@group(0) @binding(1) var<storage, read> final_state: array<f32>; // [batch or sequences, heads, state]
//@else
@group(0) @binding(1) var<storage, read> initial_state: array<f32>; // [batch or sequences, heads, state]
//@endif
//@endif
@group(0) @binding(2) var<storage, read_write> scratch: array<Unit>; // [slots, parts, rows]

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (row >= params.invocations) {
        return;
    }
    var state = nothing();
    if (params.first_window == 1u) {
//@if INITIAL
        let head = row / params.units % params.heads;
        let entry = row / params.units / params.heads;
        state = initial(
            params.initial_at + entry * params.initial_batch + head * params.initial_head,
            params.channel_start + row % params.units * WIDTH);
//@endif
    } else {
        state = load_slot(params.carry_slot, row);
    }
    var s = 0u;
    for (; s + BLOCK <= params.segments; s += BLOCK) {
        var results: array<State, BLOCK>;
        //@unroll
        for (var b = 0u; b < BLOCK; b++) {
            results[b] = load_slot(s + b, row);
        }
        //@unroll
        for (var b = 0u; b < BLOCK; b++) {
            store_start(s + b, row, state);
            state = joined(state, results[b]);
        }
    }
    for (; s < params.segments; s++) {
        let result = load_slot(s, row);
        store_start(s, row, state);
        state = joined(state, result);
    }
    store_start(params.segments, row, state);
}

fn store_start(slot: u32, row: u32, state: State) {
//@if SUMS
    scratch[(slot * PARTS + 2u) * params.rows + row] = state.w;
//@else
    store_slot(slot, row, state);
//@endif
}
