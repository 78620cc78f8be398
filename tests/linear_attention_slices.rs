//! Linear attention where a device's loops or bindings end early, and states that workgroups share.

mod common;

use common::{
    gpus,
    linear::{Case, Sizes},
    name,
};
use foveate::{
    Call, Decay, Gpu, Layout, LinearAttention, Op, Reach, Schedule, Similarity, Tuning, View,
    ops::{Args, Slot},
};

const OPEN: Tuning = Tuning {
    schedule: None,
    rows: None,
    keys: None,
    splits: None,
};

/// A device whose loops, or bindings, end early.
fn narrowed(gpu: &Gpu, loops: u32, bytes: u64) -> Gpu {
    let mut caps = gpu.engine().caps().clone();
    caps.loop_budget = loops;
    caps.max_binding_bytes = bytes;
    let mut narrow = gpu.clone();
    *narrow.engine_mut() = gpu.engine().clone().with_caps(caps);
    narrow
}

/// Runs a case with loops that end early, and at least so many dispatches.
fn close(case: &Case, loops: u32, bytes: u64, least: usize) {
    for gpu in gpus() {
        let narrow = narrowed(gpu, loops, bytes);
        let op = Op::from(case.op.clone());
        let plan = narrow.engine().plan_with(&op, &OPEN).expect("plans");
        let steps = plan.outline().steps.len();
        assert!(steps >= least, "{steps} of {least} dispatches: {op:?}");
        case.close_with(&narrow, &OPEN, &name(gpu), 2e-5);
    }
}

fn with_states(op: LinearAttention) -> LinearAttention {
    let op = op.with_final_state();
    LinearAttention {
        initial_state: op.final_state.clone(),
        initial_sum: op.final_sum.clone(),
        ..op
    }
}

#[test]
fn tokens_in_turn() {
    let sizes = Sizes::new(90, [8, 8]).heads(2, [4, 2, 2]);
    let decayed = sizes.op().decay(sizes.key_decay());
    close(&Case::new(with_states(decayed)), 40, 1 << 20, 4);
    let delta = sizes.op().rule(sizes.delta(false));
    close(&Case::new(delta.carried_state()), 40, 1 << 20, 4);
}

#[test]
fn packed_sequences_of_which_all_tokens_count() {
    let sizes = Sizes::new(90, [8, 8]).heads(1, [2, 2, 2]);
    let op = sizes
        .op()
        .reach(Reach::All)
        .packed(Layout::new(foveate::DType::U32, [4]));
    let case = Case::new(with_states(op)).packed(&[0, 5, 40, 90]);
    close(&case, 40, 1 << 20, 5);
}

#[test]
fn heads_in_turn_where_all_tokens_count() {
    let sizes = Sizes::new(90, [8, 8]).heads(1, [4, 4, 4]);
    let op = sizes
        .op()
        .reach(Reach::All)
        .packed(Layout::new(foveate::DType::U32, [3]));
    let case = Case::new(op.with_final_state()).packed(&[0, 30, 90]);
    // Two heads of four fit a binding.
    close(&case, 65_535, 8 << 10, 5);
}

#[test]
fn one_token_with_a_sum_that_columns_share() {
    for value_dim in [32, 96, 256] {
        let sizes = Sizes::new(1, [8, value_dim]).heads(3, [3, 3, 3]);
        let op = sizes.op().normalised(0.5).carried_state();
        let mut case = Case::new(op);
        for slot in [Slot::Q, Slot::K, Slot::FinalSum] {
            case.of(slot).iter_mut().for_each(|x| *x = x.abs());
        }
        close(&case, 65_535, 1 << 27, 1);
    }
}

#[test]
fn more_segments_than_a_join_may_loop_over() {
    let sizes = Sizes::new(300, [4, 4]);
    let case = Case::new(sizes.op().decay(sizes.token_decay()));
    for gpu in gpus() {
        let narrow = narrowed(gpu, 60, 1 << 27);
        let tuning = Tuning {
            splits: Some(100_000),
            ..OPEN
        };
        case.close_with(&narrow, &tuning, &name(gpu), 2e-5);
    }
}

#[test]
fn powers_of_the_score_have_one_schedule() {
    let sizes = Sizes::new(9, [4, 4]);
    for gpu in gpus() {
        for schedule in [Schedule::Tile, Schedule::Subgroup] {
            let op = sizes.op().similarity(Similarity::Taylor);
            let tuning = Tuning {
                schedule: Some(schedule),
                ..OPEN
            };
            let error = gpu.engine().plan_with(&op.into(), &tuning);
            let message = error.expect_err("it has no such schedule").to_string();
            assert!(message.contains("quadratic"), "{message}");
        }
    }
}

#[test]
fn a_sum_without_its_state_is_refused() {
    let op = Sizes::new(9, [4, 4])
        .op()
        .normalised(1e-6)
        .with_final_state();
    let op = LinearAttention {
        final_state: None,
        ..op
    };
    let error = Op::from(op).check().expect_err("a sum alone");
    assert!(error.to_string().contains("final_state"), "{error}");
}

/// A state that is carried on from call to call ends as that of one call over all tokens.
#[test]
fn a_thousand_calls_are_one() {
    let (calls, seq, dim) = (1000, 64, 8);
    let all = calls * seq;
    let sizes = Sizes::new(all, [dim, dim]);
    let op = sizes.op().decay(sizes.token_decay());
    let mut whole = Case::new(op.carried_state());
    whole.of(Slot::Decay).iter_mut().for_each(|g| *g *= 0.1);
    for gpu in gpus() {
        let rows = |slot| whole.data.iter().find(|(other, _)| *other == slot);
        let upload = |slot, layout: &Layout| match rows(slot) {
            Some((_, data)) => gpu.upload(data, layout.shape.clone()),
            None => gpu.allocate(layout.clone()),
        };
        let op = Op::from(whole.op.clone());
        let tensors: Vec<_> = op
            .tensors()
            .into_iter()
            .map(|(slot, layout)| (slot, upload(slot, layout).expect("room")))
            .collect();
        let parts = (0..calls).map(|call| {
            let part = |layout: &Layout| {
                let mut part = layout.clone().at(call * seq * layout.strides[2]);
                part.shape[2] = seq;
                part
            };
            let op = LinearAttention {
                q: part(&whole.op.q),
                k: part(&whole.op.k),
                v: part(&whole.op.v),
                o: part(&whole.op.o),
                decay: Decay::Token(part(whole.op.decay.layout().expect("a decay"))),
                ..whole.op.clone()
            };
            let op = Op::from(op);
            let plan = gpu.engine().plan(&op).expect("plans");
            let views = op.tensors().into_iter().map(|(slot, layout)| {
                let tensor = tensors.iter().find(|(other, _)| *other == slot);
                let view = tensor.expect("the same tensors").1.view();
                (slot, View::new(view.buffer, layout.clone()))
            });
            plan.bind(Args(views.collect())).expect("binds")
        });
        let parts: Vec<Call> = parts.collect();
        for some in parts.chunks(100) {
            gpu.run(&Call::sequence(some)).expect("runs");
        }
        let want = whole.expected();
        for (slot, want) in [(Slot::O, &want.o), (Slot::FinalState, &want.state)] {
            let tensor = tensors.iter().find(|(other, _)| *other == slot);
            let got = gpu.download(&tensor.expect("an output").1).expect("read");
            let error = foveate::reference::error(&got, want);
            println!("{}: {} {error:e}", name(gpu), slot.name());
            assert!(error < 1e-4, "{}: {} {error:e}", name(gpu), slot.name());
        }
    }
}
