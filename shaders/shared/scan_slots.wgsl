// States in scratch, one slot per segment, and in the caller's tensors. Each slot has the parts of a state one after
// the other, [slots, parts, rows].

//@if SUM
const PARTS: u32 = 2u;
//@else
//@if VALUES
const PARTS: u32 = 3u;
//@else
const PARTS: u32 = 2u;
//@endif
//@endif

//@if SPLIT
fn load_slot(slot: u32, row: u32) -> State {
    let at = slot * PARTS * params.rows + row;
//@if VALUES
    return State(scratch[at], scratch[at + params.rows], scratch[at + 2u * params.rows]);
//@else
    return State(scratch[at], scratch[at + params.rows]);
//@endif
}

fn store_slot(slot: u32, row: u32, state: State) {
    let at = slot * PARTS * params.rows + row;
//@if SUM
    scratch[at] = state.a;
    scratch[at + params.rows] = state.h;
//@else
    scratch[at] = state.m;
    scratch[at + params.rows] = state.u;
//@if VALUES
    scratch[at + 2u * params.rows] = state.w;
//@endif
//@endif
}
//@endif

// Where a part of a state lies, of channels from `channel` on: [parts, channels], or (PER_HEAD) m, u and then w,
// [2 + channels]. SUM and the log-sum-exp have one part.
fn part_at(base: u32, part: u32, channel: u32, part_step: u32, channel_step: u32) -> u32 {
//@if PER_HEAD
    return base + part * part_step + select(0u, channel * channel_step, part == 2u);
//@else
    return base + part * part_step + channel * channel_step;
//@endif
}

// How far the next channel's part lies.
fn channel_step_of(part: u32, channel_step: u32) -> u32 {
//@if PER_HEAD
    return select(0u, channel_step, part == 2u);
//@else
    return channel_step;
//@endif
}

//@if INITIAL
//@if IN_PLACE
fn initial_scalar(at: u32) -> f32 {
    return final_state[at];
}
//@else
fn initial_scalar(at: u32) -> f32 {
    return initial_state[at];
}
//@endif

fn initial_part(base: u32, part: u32, channel: u32) -> Unit {
    let at = part_at(base, part, channel, params.initial_part, params.initial_channel);
//@if VEC4
    let step = channel_step_of(part, params.initial_channel);
    return Unit(
        initial_scalar(at), initial_scalar(at + step), initial_scalar(at + 2u * step), initial_scalar(at + 3u * step));
//@else
    return initial_scalar(at);
//@endif
}

// The state before the first token.
fn initial(base: u32, channel: u32) -> State {
//@if SUM
    return State(Unit(1.0), initial_part(base, 0u, channel));
//@else
//@if VALUES
    let m = initial_part(base, 0u, channel);
    let u = initial_part(base, 1u, channel);
    let w = initial_part(base, 2u, channel);
    // A sum of nothing may come with any maximum.
    let none = u == Unit(0.0);
    return State(select(m, Unit(FLOOR), none), u, select(w, Unit(0.0), none));
//@else
    let z = initial_part(base, 0u, channel);
    let none = is_minus_infinity(z);
    return State(select(z, Unit(FLOOR), none), select(Unit(1.0), Unit(0.0), none));
//@endif
//@endif
}
//@endif
