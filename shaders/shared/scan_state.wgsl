// What scans carry from token to token, and how the states of neighbouring segments are joined.
//
// Unit is one channel, or four (VEC4). SUM: the product of the decays and the sum. Otherwise the largest score m,
// u = sum exp(x - m), and (VALUES) w = sum exp(x - m) v; with STEP, w = sum of exp(x) v over the u exp(m) of then.

//@import online_softmax

//@if VEC4
alias Unit = vec4<f32>;
const WIDTH: u32 = 4u;
//@else
alias Unit = f32;
const WIDTH: u32 = 1u;
//@endif

//@if !SUM
//@if VEC4
fn is_minus_infinity(x: Unit) -> vec4<bool> {
    return bitcast<vec4<u32>>(x) == vec4<u32>(MINUS_INFINITY_BITS);
}
//@else
fn is_minus_infinity(x: Unit) -> bool {
    return bitcast<u32>(x) == MINUS_INFINITY_BITS;
}
//@endif
//@endif

// Scores further apart than this have a weight of exactly 0: exp2 alone need not reach 0.
const FAR: f32 = 87.0;

//@if SUM
struct State {
    a: Unit,
    h: Unit,
}

fn nothing() -> State {
    return State(Unit(1.0), Unit(0.0));
}

// The state after a stretch, from those of its two halves.
fn joined(before: State, after: State) -> State {
    return State(before.a * after.a, fma(after.a, before.h, after.h));
}
//@else
struct State {
    m: Unit,
    u: Unit,
//@if VALUES
    w: Unit,
//@endif
}

fn nothing() -> State {
//@if VALUES
    return State(Unit(FLOOR), Unit(0.0), Unit(0.0));
//@else
    return State(Unit(FLOOR), Unit(0.0));
//@endif
}

// exp(a - m) and exp(b - m), where m is the larger of a and b.
struct Shares {
    a: Unit,
    b: Unit,
}

fn shares(a: Unit, b: Unit) -> Shares {
    let apart = abs(a - b);
    let less = select(exp2(-LOG2_E * min(apart, Unit(FAR))), Unit(0.0), apart > Unit(FAR));
    return Shares(select(Unit(1.0), less, a < b), select(Unit(1.0), less, b < a));
}

// The state after a stretch, from those of its two halves. With STEP, w of the second counts already what came
// before it.
fn joined(before: State, after: State) -> State {
    let s = shares(before.m, after.m);
    let m = max(before.m, after.m);
    let u = fma(before.u, s.a, after.u * s.b);
//@if VALUES
//@if STEP
    return State(m, u, before.w + after.w);
//@else
    return State(m, u, fma(before.w, s.a, after.w * s.b));
//@endif
//@else
    return State(m, u);
//@endif
}
//@endif
