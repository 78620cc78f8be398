// Linear attention: states of segments joined, and moved between the caller's tensors and scratch.
//
// Formula:   S = what was before; for each segment: its slot takes S, then S = products S + what the segment added.
//            What comes out goes to a slot of its own, and to the caller (FINAL).
// Grid:      one invocation per (sequence, head of scratch, element of a slot: the state's, then the sums').
// Workgroup: 64 invocations.
// Memory:    none.

//@import grid

const WORKGROUP: u32 = 64u; //@variant
const SAFE: u32 = 0u; //@variant

//@if F16_STATE
enable f16;
alias StateScalar = f16;
//@else
alias StateScalar = f32;
//@endif

struct Params {
    invocations: u32,
    elements: u32,          // of a slot: rows * value_dim, then blocks * (rows + 1) of sums
    rows: u32,
    key_dim: u32,
    value_dim: u32,
    heads: u32,             // of the dispatch
    slot_heads: u32,        // in scratch
    group: u32,             // of them that share a state
    segments: u32,
    slots: u32,             // per head
    carried: u32,           // the slot of what comes out
    slot_size: u32,
    products_at: u32,
    lowest: f32,            // the largest of no keys
    initial_at: u32, initial_batch: u32, initial_head: u32, initial_row: u32, initial_dim: u32,
    final_at: u32, final_batch: u32, final_head: u32, final_row: u32, final_dim: u32,
    initial_sum_at: u32, initial_sum_batch: u32, initial_sum_head: u32, initial_sum_row: u32,
    final_sum_at: u32, final_sum_batch: u32, final_sum_head: u32, final_sum_row: u32,
    scratch_at: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>; // [sequences, heads, slots, slot_size]
//@if INITIAL
//@if !IN_PLACE
@group(0) @binding(2) var<storage, read> initial_state: array<StateScalar>; // [sequences, state_heads, rows, value_dim]
//@if SUMS
@group(0) @binding(3) var<storage, read> initial_sum: array<StateScalar>; // [sequences, state_heads, rows]
//@endif
//@endif
//@endif
//@if BIND_FINAL
@group(0) @binding(4) var<storage, read_write> final_state: array<StateScalar>; // [sequences, state_heads, rows, value_dim]
//@endif
//@if BIND_FINAL_SUM
@group(0) @binding(5) var<storage, read_write> final_sum: array<StateScalar>; // [sequences, state_heads, rows]
//@endif

// The factor of a segment on row `row` and column `column` of what was before it.
fn product(slot: u32, row: u32, column: u32) -> f32 {
//@if DECAY_SCALAR
    return scratch[slot + params.products_at];
//@else
//@if DECAY_KEY
    return scratch[slot + params.products_at + row % params.key_dim];
//@else
//@if DECAY_VALUE
    return scratch[slot + params.products_at + column];
//@else
    return 1.0;
//@endif
//@endif
//@endif
}

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
    let element = number % params.elements;
    let head = number / params.elements % params.heads;
    let sequence = number / params.elements / params.heads;
    let state_head = head / params.group;
    let of_state = params.rows * params.value_dim;
    let sums = element >= of_state;
    // In each block's copy of the sums, the last element is the largest of the keys.
    let row = select(element / params.value_dim, (element - of_state) % (params.rows + 1u), sums);
    let column = element % params.value_dim;
    let at = params.scratch_at + (sequence * params.slot_heads + head) * params.slots * params.slot_size;
    let carry = at + params.carried * params.slot_size + element;

    var x = select(0.0, params.lowest, sums && row == params.rows);
//@if CARRY
    x = scratch[carry];
//@endif
//@if INITIAL
    if (!sums) {
        let i = params.initial_at + sequence * params.initial_batch + state_head * params.initial_head
            + row * params.initial_row + column * params.initial_dim;
//@if IN_PLACE
        x = f32(final_state[i]);
//@else
        x = f32(initial_state[i]);
//@endif
    }
//@if SUMS
    if (sums && row < params.rows + SAFE) {
        let i = params.initial_sum_at + sequence * params.initial_sum_batch + state_head * params.initial_sum_head
            + row * params.initial_sum_row;
//@if IN_PLACE
        x = f32(final_sum[i]);
//@else
        x = f32(initial_sum[i]);
//@endif
    }
//@endif
//@endif
    for (var n = 0u; n < params.segments; n++) {
        let slot = at + n * params.slot_size;
        let added = scratch[slot + element];
        scratch[slot + element] = x;
        x = fma(x, product(slot, row, column), added);
    }
    scratch[carry] = x;
//@if FINAL
    if (head % params.group == 0u && !sums) {
        final_state[params.final_at + sequence * params.final_batch + state_head * params.final_head
            + row * params.final_row + column * params.final_dim] = StateScalar(x);
    }
//@if FINAL_SUM
    // Every block has the same.
    if (head % params.group == 0u && sums && element - of_state < params.rows + SAFE) {
        final_sum[params.final_sum_at + sequence * params.final_sum_batch + state_head * params.final_sum_head
            + row * params.final_sum_row] = StateScalar(x);
    }
//@endif
//@endif
}
