// Merges attention results over parts of the keys into that over all: the partial results of key ranges,
// from scratch, or outputs that a caller has (PARTS), with their log-sum-exps (TOTALS), gates (GATES) or both.
//
// Formula:   o = sum_s 2^(m_s - m) o_s / sum_s 2^(m_s - m) l_s; lse = ln 2 (m + log2 l); m = max_s m_s.
//            PARTS: e^(m_s - m), with m_s = lse_s and l_s = 1. A part that saw no key is left out.
//            GATES: o_s times gate_s; without TOTALS, o = sum_s gate_s o_s. A part whose gate is 0 is left out.
// Grid:      one invocation per output element, or per vector of four (VEC4).
// Workgroup: 64 invocations.
// Memory:    none.

//@import grid
//@import online_softmax

//@if ANY_F16
enable f16;
//@endif
//@if F16
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
alias Unit = vec4<f32>;
const WIDTH: u32 = 4u;
//@else
alias Stored = Scalar;
alias Unit = f32;
const WIDTH: u32 = 1u;
//@endif
//@if GATES_F16
alias Gate = f16;
//@else
alias Gate = f32;
//@endif

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    elements: u32,          // rows * value_dim / WIDTH
    splits: u32,            // parts
    partial_start: u32,     // where they begin in scratch
    value_dim: u32,
    q_len: u32,
    kv_heads: u32,
    group: u32,             // query heads per KV head, in this slice
    all_group: u32,         // query heads per KV head
    minus_infinity: f32,
    o_at: u32, o_batch: u32, o_head: u32, o_row: u32, o_dim: u32,
    lse_at: u32, lse_batch: u32, lse_head: u32, lse_row: u32,
    gate_at: u32, gate_batch: u32, gate_head: u32, gate_row: u32,
    o_parts_at: u32, o_parts_part: u32, o_parts_batch: u32, o_parts_head: u32, o_parts_row: u32, o_parts_dim: u32,
    lse_parts_at: u32, lse_parts_part: u32, lse_parts_batch: u32, lse_parts_head: u32, lse_parts_row: u32,
    gates_at: u32, gates_part: u32, gates_batch: u32, gates_head: u32, gates_row: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
//@if PARTS
@group(0) @binding(1) var<storage, read> o_parts: array<Stored>; // [parts, batch, q_heads, q_len, value_dim]
//@if TOTALS
@group(0) @binding(4) var<storage, read> lse_parts: array<f32>; // [parts, batch, q_heads, q_len]
//@endif
//@if GATES
@group(0) @binding(6) var<storage, read> gates: array<Gate>; // [parts, batch, q_heads, q_len]
//@endif
//@else
@group(0) @binding(1) var<storage, read> scratch: array<f32>; // [rows, splits, value_dim + 2]
//@endif
@group(0) @binding(2) var<storage, read_write> o: array<Stored>; // [batch, q_heads, q_len, value_dim]
//@if LSE
@group(0) @binding(3) var<storage, read_write> lse: array<f32>; // [batch, q_heads, q_len]
//@endif
//@if GATE
@group(0) @binding(5) var<storage, read> gate: array<f32>; // [batch, q_heads, q_len]
//@endif

// Where a row is: in the output, and in all parts.
struct Row {
    batch: u32,
    head: u32,
    i: u32,
    number: u32,
}

fn row_of(number: u32) -> Row {
    let rest = number / params.q_len;
    let kv_head = rest / params.group % params.kv_heads;
    let head = kv_head * params.all_group + rest % params.group;
    return Row(rest / params.group / params.kv_heads, head, number % params.q_len, number);
}

//@if GATES
fn part_gate(row: Row, s: u32) -> f32 {
    let at = params.gates_at + row.batch * params.gates_batch + row.head * params.gates_head + row.i * params.gates_row;
    return f32(gates[at + s * params.gates_part]);
}

//@endif
//@if PARTS
//@if TOTALS
// The logarithm of a part's total; FLOOR where it saw no key. It stays natural until a difference is
// taken, which loses nothing of large ones.
fn part_maximum(row: Row, s: u32) -> f32 {
    let at = params.lse_parts_at + row.batch * params.lse_parts_batch + row.head * params.lse_parts_head + row.i * params.lse_parts_row;
    let part = lse_parts[at + s * params.lse_parts_part];
    return select(max(part, LEAST_BIAS), FLOOR, bitcast<u32>(part) == MINUS_INFINITY_BITS);
}

fn part_total(row: Row, s: u32) -> f32 {
    return 1.0;
}
//@endif

fn part_o(row: Row, s: u32, d: u32) -> Unit {
    let at = params.o_parts_at + row.batch * params.o_parts_batch + row.head * params.o_parts_head + row.i * params.o_parts_row;
    return Unit(o_parts[(at + s * params.o_parts_part + d * params.o_parts_dim) / WIDTH]);
}

fn power(difference: f32) -> f32 {
    return exp2(difference * LOG2_E);
}

fn log_sum_exp(maximum: f32, total: f32) -> f32 {
    return maximum + log2(total) * LN_2;
}
//@else
fn part_start(row: Row, s: u32) -> u32 {
    return params.partial_start + (row.number * params.splits + s) * (params.value_dim + 2u);
}

fn part_maximum(row: Row, s: u32) -> f32 {
    return scratch[part_start(row, s) + params.value_dim];
}

fn part_total(row: Row, s: u32) -> f32 {
    return scratch[part_start(row, s) + params.value_dim + 1u];
}

fn part_o(row: Row, s: u32, d: u32) -> Unit {
    return scratch[part_start(row, s) + d];
}

fn power(difference: f32) -> f32 {
    return exp2(difference);
}

fn log_sum_exp(maximum: f32, total: f32) -> f32 {
    return (maximum + log2(total)) * LN_2;
}
//@endif

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let number = linear_workgroup(workgroup, grid) * WORKGROUP + local;
    if (number >= params.elements) {
        return;
    }
    let units = params.value_dim / WIDTH;
    let row = row_of(number / units);
    let d = number % units * WIDTH;

    var sum = Unit();
//@if TOTALS
    var maximum = HIDDEN;
    for (var s = 0u; s < params.splits; s++) {
        maximum = max(maximum, part_maximum(row, s));
    }
    var total = 0.0;
//@endif
    for (var s = 0u; s < params.splits; s++) {
//@if TOTALS
        let part = part_maximum(row, s);
        // What a part that saw no key holds may be anything.
        if (part > HIDDEN) {
            let factor = power(part - maximum);
            total = fma(factor, part_total(row, s), total);
//@if GATES
            let gate = part_gate(row, s);
            if (gate != 0.0) {
                sum = fma(Unit(factor * gate), part_o(row, s, d), sum);
            }
//@else
            sum = fma(Unit(factor), part_o(row, s, d), sum);
//@endif
        }
//@else
        let gate = part_gate(row, s);
        if (gate != 0.0) {
            sum = fma(Unit(gate), part_o(row, s, d), sum);
        }
//@endif
    }

//@if TOTALS
    var factor = reciprocal(total);
//@else
    var factor = 1.0;
//@endif
//@if GATE
    factor *= gate[params.gate_at + row.batch * params.gate_batch + row.head * params.gate_head + row.i * params.gate_row];
//@endif
    let at = params.o_at + row.batch * params.o_batch + row.head * params.o_head + row.i * params.o_row;
    o[(at + d * params.o_dim) / WIDTH] = Stored(sum * factor);
//@if LSE
    if (d == 0u) {
        let lse_at = params.lse_at + row.batch * params.lse_batch + row.head * params.lse_head + row.i * params.lse_row;
        lse[lse_at] = select(log_sum_exp(maximum, total), params.minus_infinity, total == 0.0);
    }
//@endif
}
