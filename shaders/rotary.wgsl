// Rotary position embedding: each pair of channels of a token is turned by an angle of its position.
//
// Formula:   y_a = x_a cos - x_b sin, y_b = x_a sin + x_b cos, for pairs (a, b) = (2i, 2i + 1)
//            (INTERLEAVED) or (i, i + rotary_dim / 2); channels from rotary_dim on are copied.
// Grid:      one invocation per (WIDTH pairs, or WIDTH channels to copy; token; `each` heads), channels
//            fastest.
// Workgroup: 64 invocations.
// Memory:    none.
//
// An invocation reads its cosines and sines once for all of its heads. It alone touches its channels, so
// that the output may be the input (IN_PLACE). Tables are indexed by the token, or by what POSITIONS say.

//@import grid

//@if F16
enable f16;
alias Scalar = f16;
//@else
alias Scalar = f32;
//@endif
//@if F16_TABLES
enable f16;
alias TableScalar = f16;
//@else
alias TableScalar = f32;
//@endif
//@if VEC4
alias Stored = vec4<Scalar>;
alias TableStored = vec4<TableScalar>;
alias Unit = vec4<f32>;
const WIDTH: u32 = 4u;
//@else
alias Stored = Scalar;
alias TableStored = TableScalar;
alias Unit = f32;
const WIDTH: u32 = 1u;
//@endif

const WORKGROUP: u32 = 64u; //@variant

struct Params {
    invocations: u32,
    units: u32,             // per token and head: WIDTH pairs or copied channels each
    pairs: u32,             // those of them that are pairs
    rotary_dim: u32,
    seq: u32,
    heads: u32,
    each: u32,              // heads per invocation
    groups: u32,            // heads / each, rounded up
    last_position: u32,
    sign: f32,              // of the angle
    x_at: u32, x_batch: u32, x_head: u32, x_token: u32, x_channel: u32,
    y_at: u32, y_batch: u32, y_head: u32, y_token: u32, y_channel: u32,
    cos_at: u32, cos_batch: u32, cos_row: u32, cos_pair: u32,
    sin_at: u32, sin_batch: u32, sin_row: u32, sin_pair: u32,
    positions_at: u32, positions_batch: u32, positions_token: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<Stored>; // [batch, heads, seq, head_dim]
//@if !IN_PLACE
@group(0) @binding(2) var<storage, read> x: array<Stored>; // [batch, heads, seq, head_dim]
//@endif
@group(0) @binding(3) var<storage, read> cos: array<TableStored>; // [positions, rotary_dim / 2] or [batch, seq, rotary_dim / 2]
@group(0) @binding(4) var<storage, read> sin: array<TableStored>; // as cos
//@if POSITIONS
@group(0) @binding(5) var<storage, read> positions: array<u32>; // [batch, seq]
//@endif

fn load(at: u32) -> Stored {
//@if IN_PLACE
    return y[at / WIDTH];
//@else
    return x[at / WIDTH];
//@endif
}

// Two units of x as the first and the second of their pairs, and back.
struct Pairs {
    a: Unit,
    b: Unit,
}

//@if INTERLEAVED
//@if VEC4
fn paired(u: Unit, v: Unit) -> Pairs {
    return Pairs(Unit(u.xz, v.xz), Unit(u.yw, v.yw));
}
fn unpaired(p: Pairs) -> Pairs {
    return Pairs(Unit(p.a.x, p.b.x, p.a.y, p.b.y), Unit(p.a.z, p.b.z, p.a.w, p.b.w));
}
//@else
fn paired(u: Unit, v: Unit) -> Pairs {
    return Pairs(u, v);
}
fn unpaired(p: Pairs) -> Pairs {
    return p;
}
//@endif
//@else
fn paired(u: Unit, v: Unit) -> Pairs {
    return Pairs(u, v);
}
fn unpaired(p: Pairs) -> Pairs {
    return p;
}
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
    let unit = number % params.units;
    let rest = number / params.units;
    let token = rest % params.seq;
    let batch = rest / params.seq / params.groups;
    let first = rest / params.seq % params.groups * params.each;
    let count = min(params.each, params.heads - first);
    var source = params.x_at + batch * params.x_batch + first * params.x_head + token * params.x_token;
    var place = params.y_at + batch * params.y_batch + first * params.y_head + token * params.y_token;

    if (unit >= params.pairs) {
        let channel = params.rotary_dim + (unit - params.pairs) * WIDTH;
        source += channel * params.x_channel;
        place += channel * params.y_channel;
        for (var h = 0u; h < count; h++) {
            y[place / WIDTH] = load(source);
            source += params.x_head;
            place += params.y_head;
        }
        return;
    }

//@if POSITIONS
    let said = positions[params.positions_at + batch * params.positions_batch + token * params.positions_token];
    let row = min(said, params.last_position);
//@else
    let row = token;
//@endif
    let pair = unit * WIDTH;
    let cos_at = params.cos_at + batch * params.cos_batch + row * params.cos_row + pair * params.cos_pair;
    let sin_at = params.sin_at + batch * params.sin_batch + row * params.sin_row + pair * params.sin_pair;
    let c = Unit(cos[cos_at / WIDTH]);
    let s = Unit(sin[sin_at / WIDTH]) * params.sign;

//@if INTERLEAVED
    let channel = 2u * pair;
    let gap = WIDTH;
//@else
    let channel = pair;
    let gap = params.rotary_dim / 2u;
//@endif
    source += channel * params.x_channel;
    place += channel * params.y_channel;
    for (var h = 0u; h < count; h++) {
        let p = paired(Unit(load(source)), Unit(load(source + gap * params.x_channel)));
        let turned = unpaired(Pairs(fma(p.a, c, -(p.b * s)), fma(p.a, s, p.b * c)));
        y[place / WIDTH] = Stored(turned.a);
        y[(place + gap * params.y_channel) / WIDTH] = Stored(turned.b);
        source += params.x_head;
        place += params.y_head;
    }
}
