//! Linear attentions that cannot be, and what is said of each. None of it needs a device.

use foveate::{
    Caps, DType, Decay, Error, FeatureMap, Guard, Layout, LinearAttention, Normaliser, Op, Reach,
    Real, Similarity, Tuning, UpdateRule, plan::Outline,
};
use proptest::prelude::*;

/// Four query heads, one key head, two states, six tokens.
fn small() -> LinearAttention {
    LinearAttention::new(
        Layout::f32([2, 4, 6, 8]),
        Layout::f32([2, 1, 6, 8]),
        Layout::f32([2, 2, 6, 5]),
    )
}

fn check(op: &LinearAttention) -> Result<(), Error> {
    Op::from(op.clone()).check()
}

/// What is wrong with `small`, changed.
fn refused(change: impl FnOnce(&mut LinearAttention)) -> Error {
    let mut op = small();
    change(&mut op);
    let error = check(&op).expect_err("the op is wrong");
    // Whatever the device.
    let planned = Outline::new(&op.into(), &Caps::minimum(), &Tuning::default());
    assert_eq!(planned.expect_err("it has no plan"), error);
    error
}

fn gate(tokens: u64) -> Layout {
    Layout::f32([2, 2, tokens])
}

fn state() -> Layout {
    Layout::f32([2, 2, 8, 5])
}

fn sum() -> Layout {
    Layout::f32([2, 2, 8])
}

fn delta() -> UpdateRule {
    UpdateRule::Delta {
        beta: Some(gate(6)),
        read: None,
    }
}

fn exp() -> FeatureMap {
    FeatureMap::Exp { factor: Real(1.0) }
}

fn safe() -> Normaliser {
    Normaliser {
        eps: Real(0.0),
        guard: Guard::Add,
        safe: true,
    }
}

const AGREE: &str = "make it agree with q, k and v";

fn shape(argument: &str, found: &[u64], want: &[u64]) -> Error {
    let found = format!("shape {found:?} where {want:?} is expected");
    Error::invalid(argument, found, AGREE)
}

#[test]
fn what_is_right_passes() {
    let mut all = small()
        .decay(Decay::Key(Layout::f32([2, 2, 6, 8])))
        .carried_state();
    all.rule = delta();
    assert_eq!(check(&all), Ok(()));
    assert_eq!(all.final_state, Some(state()));
    assert_eq!(all.final_sum, None);
    let normalised = small().normalised(0.0).carried_state();
    assert_eq!(check(&normalised), Ok(()));
    assert_eq!(normalised.final_sum, Some(sum()));
    let cosine = small()
        .similarity(Similarity::Cosine { length: 6 })
        .normalised(0.0)
        .with_final_state();
    assert_eq!(check(&cosine), Ok(()));
    assert_eq!(cosine.final_state, Some(Layout::f32([2, 2, 16, 5])));
    assert_eq!(cosine.final_sum, Some(Layout::f32([2, 2, 16])));
    let safe = small()
        .features(FeatureMap::Softmax, exp())
        .normaliser(safe())
        .with_final_state();
    assert_eq!(check(&safe), Ok(()));
    assert_eq!(safe.final_sum, Some(Layout::f32([2, 2, 9])));
}

#[test]
fn shapes() {
    type Change = fn(&mut LinearAttention);
    let cases: [(Change, Error); 15] = [
        (
            |op| op.k = Layout::f32([2, 1, 5, 8]),
            shape("k", &[2, 1, 5, 8], &[2, 1, 6, 8]),
        ),
        (
            |op| op.k = Layout::f32([2, 1, 6, 7]),
            shape("k", &[2, 1, 6, 7], &[2, 1, 6, 8]),
        ),
        (
            |op| op.v = Layout::f32([1, 2, 6, 5]),
            shape("v", &[1, 2, 6, 5], &[2, 2, 6, 5]),
        ),
        (
            |op| op.o = Layout::f32([2, 2, 6, 5]),
            shape("o", &[2, 2, 6, 5], &[2, 4, 6, 5]),
        ),
        (
            |op| op.updates_per_token = 2,
            shape("k", &[2, 1, 6, 8], &[2, 1, 12, 8]),
        ),
        (
            |op| op.decay = Decay::Head(Layout::f32([4])),
            shape("decay", &[4], &[2]),
        ),
        (
            |op| op.decay = Decay::Token(gate(5)),
            shape("decay", &[2, 2, 5], &[2, 2, 6]),
        ),
        (
            |op| op.decay = Decay::Key(Layout::f32([2, 2, 6, 5])),
            shape("decay", &[2, 2, 6, 5], &[2, 2, 6, 8]),
        ),
        (
            |op| op.decay = Decay::Value(Layout::f32([2, 2, 6, 8])),
            shape("decay", &[2, 2, 6, 8], &[2, 2, 6, 5]),
        ),
        (
            |op| {
                op.rule = UpdateRule::Delta {
                    beta: Some(gate(7)),
                    read: None,
                }
            },
            shape("beta", &[2, 2, 7], &[2, 2, 6]),
        ),
        (
            |op| {
                op.rule = UpdateRule::LowRank {
                    read: op.k.clone(),
                    write: op.q.clone(),
                }
            },
            shape("write_keys", &[2, 4, 6, 8], &[2, 1, 6, 8]),
        ),
        (
            |op| {
                op.reach = Reach::Before;
                op.bonus = Some(Layout::f32([4, 8]));
            },
            shape("bonus", &[4, 8], &[2, 8]),
        ),
        (
            |op| op.kv_len = Some(Layout::new(DType::U32, [3])),
            shape("kv_len", &[3], &[2]),
        ),
        // A state as others store it.
        (
            |op| op.initial_state = Some(Layout::f32([2, 2, 5, 8])),
            shape("initial_state", &[2, 2, 5, 8], &[2, 2, 8, 5]),
        ),
        (
            |op| {
                op.normaliser = Some(safe());
                op.feature_k = exp();
                op.final_sum = Some(sum());
            },
            shape("final_sum", &[2, 2, 8], &[2, 2, 9]),
        ),
    ];
    for (change, error) in cases {
        assert_eq!(refused(change), error);
    }
}

#[test]
fn axes_and_heads() {
    assert_eq!(
        refused(|op| op.decay = Decay::Token(Layout::f32([2, 2, 6, 1]))),
        Error::invalid(
            "decay",
            "4 axes in shape [2, 2, 6, 1]",
            "give it 3 axes, as the docs of LinearAttention list them",
        )
    );
    assert_eq!(
        refused(|op| op.k = Layout::f32([2, 3, 6, 8])),
        Error::invalid(
            "k",
            "3 heads do not divide the 2 of v",
            "each head of k serves a whole group of v's",
        )
    );
    assert_eq!(
        refused(|op| op.q = Layout::f32([2, 3, 6, 8])),
        Error::invalid(
            "q",
            "3 heads beside the 2 of v",
            "give a multiple of them, or a divisor",
        )
    );
    assert_eq!(
        refused(|op| op.updates_per_token = 0),
        Error::invalid("updates_per_token", "0", "give at least one")
    );
    let error = refused(|op| {
        op.q = Layout::f32([2, 4, 6, 257]);
        op.k = Layout::f32([2, 1, 6, 257]);
    });
    let text = error.to_string();
    assert!(
        text.starts_with("q with 257 channels is not supported here"),
        "{text}"
    );
    assert!(text.contains("at most 256"), "{text}");
}

#[test]
fn element_types() {
    let f16 = |layout: Layout| Layout::new(DType::F16, layout.shape);
    let elements = |argument: &str, found: &str, want: &str| {
        Error::invalid(
            argument,
            format!("elements are {found}"),
            format!("give {want}"),
        )
    };
    assert_eq!(
        refused(|op| op.v = f16(op.v.clone())),
        elements("v", "f16", "q's element type")
    );
    assert_eq!(
        refused(|op| op.q = Layout::new(DType::U32, [2, 4, 6, 8])),
        elements("q", "u32", "f32 or f16")
    );
    assert_eq!(
        refused(|op| op.decay = Decay::Head(Layout::f16([2]))),
        elements("decay", "f16", "f32")
    );
    // Gates are f32, or as wide as the queries.
    assert_eq!(
        refused(|op| op.decay = Decay::Token(f16(gate(6)))),
        elements("decay", "f16", "f32, or q's element type")
    );
    assert_eq!(
        refused(|op| {
            op.decay = Decay::Token(gate(6));
            op.rule = UpdateRule::Delta {
                beta: Some(f16(gate(6))),
                read: None,
            };
        }),
        elements("beta", "f16", "f32, or q's element type")
    );
    let mut half = small();
    for layout in [&mut half.q, &mut half.k, &mut half.v, &mut half.o] {
        *layout = f16(layout.clone());
    }
    half.decay = Decay::Token(gate(6));
    assert_eq!(check(&half), Ok(()));
    half.rule = UpdateRule::Delta {
        beta: Some(f16(gate(6))),
        read: None,
    };
    assert_eq!(
        check(&half),
        Err(Error::invalid(
            "beta",
            "f16 where the decay is f32",
            "give both one element type",
        ))
    );
    assert_eq!(
        refused(|op| {
            op.initial_state = Some(state());
            op.final_state = Some(f16(state()));
        }),
        Error::invalid(
            "final_state",
            "f16 where initial_state is f32",
            "give states and sums one element type",
        )
    );
    assert_eq!(
        refused(|op| op.kv_len = Some(Layout::f32([2]))),
        elements("kv_len", "f32", "u32")
    );
}

#[test]
fn states_and_sums() {
    assert_eq!(
        refused(|op| op.final_sum = Some(sum())),
        Error::invalid(
            "initial_sum",
            "sums of keys without a normaliser",
            "leave them out, or set the normaliser",
        )
    );
    for (with_state, with_sum) in [(true, false), (false, true)] {
        assert_eq!(
            refused(|op| {
                *op = op.clone().normalised(1e-6);
                op.initial_state = with_state.then(state);
                op.initial_sum = with_sum.then(sum);
            }),
            Error::invalid(
                "initial_sum",
                "only one of initial_state and initial_sum is given",
                "with a normaliser give both: a state without its sum cannot be divided rightly",
            )
        );
    }
    let one_layout = |name: &str| {
        Error::invalid(
            name,
            "its layout differs from the initial one's, but the call is in place",
            "use one layout for both",
        )
    };
    assert_eq!(
        refused(|op| {
            op.in_place = true;
            op.initial_state = Some(state());
        }),
        one_layout("final_state")
    );
    assert_eq!(
        refused(|op| {
            *op = op.clone().normalised(1e-6).carried_state();
            op.final_sum = Some(sum().at(1));
        }),
        one_layout("final_sum")
    );
    assert_eq!(
        refused(|op| op.final_state = Some(state().with_strides([80, 40, 5, 0]))),
        Error::invalid(
            "final_state",
            "strides [80, 40, 5, 0] put several elements of shape [2, 2, 8, 5] in one place",
            "give an output strides that keep its elements apart",
        )
    );
}

#[test]
fn packed_sequences() {
    let cu = |count: u64| Some(Layout::new(DType::U32, [count]));
    let single = |op: &mut LinearAttention| {
        op.q = Layout::f32([1, 1, 6, 8]);
        op.k = Layout::f32([1, 1, 6, 8]);
        op.v = Layout::f32([1, 1, 6, 5]);
        op.o = Layout::f32([1, 1, 6, 5]);
    };
    assert_eq!(
        refused(|op| op.cu_seqlens = cu(3)),
        Error::invalid(
            "cu_seqlens",
            "packed sequences in a batch, or with kv_len",
            "pack all sequences into one batch entry; cu_seqlens holds their lengths",
        )
    );
    assert_eq!(
        refused(|op| {
            single(op);
            op.cu_seqlens = cu(1);
        }),
        Error::invalid("cu_seqlens", "shape [1]", "give [sequences + 1] numbers")
    );
    assert_eq!(
        refused(|op| {
            single(op);
            op.cu_seqlens = cu(3);
            op.reach = Reach::All;
            op.k = Layout::f32([1, 1, 7, 8]);
            op.v = Layout::f32([1, 1, 7, 5]);
        }),
        Error::invalid(
            "cu_seqlens",
            "as many keys as queries are needed, since one list says where both begin",
            "call once per sequence",
        )
    );
    // A state per sequence, not per batch entry.
    assert_eq!(
        refused(|op| {
            single(op);
            op.cu_seqlens = cu(4);
            op.final_state = Some(Layout::f32([1, 1, 8, 5]));
        }),
        shape("final_state", &[1, 1, 8, 5], &[3, 1, 8, 5])
    );
}

#[test]
fn terms_that_do_not_go_together() {
    let order = Error::invalid(
        "reach",
        "all tokens, with a decay or another rule than Linear",
        "these depend on the order of tokens: use Causal",
    );
    assert_eq!(
        refused(|op| {
            op.reach = Reach::All;
            op.decay = Decay::Head(Layout::f32([2]));
        }),
        order
    );
    assert_eq!(
        refused(|op| {
            op.reach = Reach::All;
            op.rule = delta();
        }),
        order
    );
    assert_eq!(
        refused(|op| op.reach = Reach::BeforeBucket { tokens: 0 }),
        Error::invalid("reach", "buckets of no tokens", "give at least one")
    );
    assert_eq!(
        refused(|op| {
            *op = op.clone().normalised(1e-6).rule(delta());
        }),
        Error::invalid(
            "normaliser",
            "a sum of keys with a rule that takes away what was there",
            "leave it out, or use the linear rule",
        )
    );
    assert_eq!(
        refused(|op| {
            *op = op.clone().normalised(1e-6);
            op.decay = Decay::Value(Layout::f32([2, 2, 6, 5]));
        }),
        Error::invalid(
            "normaliser",
            "one sum of keys where each value channel decays on its own",
            "give a further value channel of ones, and divide by its output",
        )
    );
    assert_eq!(
        refused(|op| op.bonus = Some(Layout::f32([2, 8]))),
        Error::invalid(
            "bonus",
            "a bonus for the own token, which the state holds already",
            "use Reach::Before",
        )
    );
    assert_eq!(
        refused(|op| {
            *op = op.clone().normalised(1e-6).reach(Reach::Before);
            op.bonus = Some(Layout::f32([2, 8]));
        }),
        Error::invalid(
            "bonus",
            "a bonus with a normaliser, whose sum of keys does not hold the own token",
            "leave one of them out",
        )
    );
    assert_eq!(
        refused(|op| {
            op.reach = Reach::Before;
            op.updates_per_token = 2;
            op.k = Layout::f32([2, 1, 12, 8]);
            op.v = Layout::f32([2, 2, 12, 5]);
        }),
        Error::invalid("updates_per_token", "2 with Before", "use Reach::Causal",)
    );
}

#[test]
fn numbers() {
    for (eps, text) in [
        (-1e-6, "-0.000001"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
    ] {
        assert_eq!(
            refused(|op| *op = op.clone().normalised(eps)),
            Error::invalid("normaliser.eps", text, "give 0 or a small positive number")
        );
    }
    assert_eq!(
        refused(|op| {
            *op = op.clone().normaliser(safe());
            op.feature_k = FeatureMap::Relu;
        }),
        Error::invalid(
            "normaliser.safe",
            "keys mapped by Relu",
            "map keys by FeatureMap::Exp, or leave it out",
        )
    );
    let infinite = FeatureMap::Exp {
        factor: Real(f32::NEG_INFINITY),
    };
    assert_eq!(
        refused(|op| op.feature_q = infinite),
        Error::invalid("feature_q", "-inf", "give a finite factor")
    );
    assert_eq!(
        refused(|op| op.scale = Some(Real(f32::NAN))),
        Error::invalid("scale", "NaN is not finite", "give a finite number")
    );
    assert_eq!(
        refused(|op| op.similarity = Similarity::Cosine { length: 5 }),
        Error::invalid(
            "similarity",
            "a cosine over 5 tokens, of 6",
            "give at least as many as there are, and the linear rule without a bonus",
        )
    );
    for (change, what) in [
        (
            (|op| op.decay = Decay::Key(Layout::f32([2, 2, 6, 8]))) as fn(&mut LinearAttention),
            "Taylor with these terms",
        ),
        (|op| op.final_state = Some(state()), "a state of Taylor"),
    ] {
        let error = refused(|op| {
            op.similarity = Similarity::Taylor;
            change(op);
        });
        assert!(
            matches!(&error, Error::Unsupported { what: found, .. } if found == what),
            "{error}"
        );
    }
}

#[test]
fn host_values() {
    assert_eq!(LinearAttention::check_decays(&[0.0, -1e30, -0.0]), Ok(()));
    let remedy = "give natural logarithms of the factors, 0 or less";
    for (decays, found) in [
        (vec![-1.0, 0.5], "0.5 at 1"),
        (vec![f32::NAN], "NaN at 0"),
        (vec![0.0, 0.0, f32::INFINITY, 1.0], "inf at 2"),
    ] {
        assert_eq!(
            LinearAttention::check_decays(&decays),
            Err(Error::invalid("decay", found, remedy))
        );
    }
    assert_eq!(LinearAttention::check_betas(&[0.0, 1.0], false), Ok(()));
    assert_eq!(LinearAttention::check_betas(&[2.0], true), Ok(()));
    for (betas, negative, found, most) in [
        (vec![0.5, 1.5], false, "1.5 at 1", 1),
        (vec![-0.1], true, "-0.1 at 0", 2),
        (vec![2.5], true, "2.5 at 0", 2),
        (vec![f32::NAN], false, "NaN at 0", 1),
    ] {
        assert_eq!(
            LinearAttention::check_betas(&betas, negative),
            Err(Error::invalid(
                "beta",
                found,
                format!("give numbers from 0 to {most}"),
            ))
        );
    }
}

/// Decays as papers define them.
#[test]
fn decays_of_heads() {
    let close = |got: &[f32], want: &[f64]| {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!(
                (f64::from(*got) - want).abs() <= 1e-7 * want.abs(),
                "{got} {want}"
            );
        }
    };
    close(
        &LinearAttention::lightning_decays(4, None),
        &[-0.25, -0.0625, -0.015625, -0.00390625],
    );
    // The last of four layers.
    let left = 1.0 - 3.0 / (3.0 + 1e-5) + 1e-5;
    close(
        &LinearAttention::lightning_decays(2, Some((3, 4))),
        &[-0.0625 * left, -0.00390625 * left],
    );
    close(
        &LinearAttention::retention_decays(2),
        &[(31.0f64 / 32.0).ln(), (63.0f64 / 64.0).ln()],
    );
    for decays in [
        LinearAttention::lightning_decays(12, Some((0, 1))),
        LinearAttention::retention_decays(100),
    ] {
        assert_eq!(LinearAttention::check_decays(&decays), Ok(()));
    }
}

/// Ops are data: what is left out has its default, what is not known is an error.
#[test]
fn ops_are_text() {
    let op = small()
        .decay(Decay::Token(gate(6)))
        .rule(delta())
        .scale(0.5)
        .carried_state();
    let text = serde_json::to_string(&op).expect("it is data");
    assert_eq!(
        serde_json::from_str::<LinearAttention>(&text).expect("text"),
        op
    );
    let layouts = serde_json::json!({
        "q": small().q, "k": small().k, "v": small().v, "o": small().o,
    });
    let plain: LinearAttention = serde_json::from_value(layouts.clone()).expect("four tensors");
    assert_eq!(plain, small());
    let mut misspelt = layouts;
    misspelt["normalizer"] = serde_json::json!(null);
    assert!(serde_json::from_value::<LinearAttention>(misspelt).is_err());
}

fn any_layout() -> impl Strategy<Value = Layout> {
    let len = prop_oneof![8 => 1u64..9, 1 => Just(0), 1 => Just(257), 1 => Just(u64::MAX)];
    let dtype = prop_oneof![6 => Just(DType::F32), 1 => Just(DType::F16), 1 => Just(DType::U32)];
    (dtype, prop::collection::vec(len, 0..6)).prop_map(|(dtype, shape)| Layout::new(dtype, shape))
}

/// A layout that fits, most of the time.
fn mostly(layout: Layout) -> impl Strategy<Value = Layout> {
    prop_oneof![12 => Just(layout), 1 => any_layout()]
}

fn any_op() -> impl Strategy<Value = LinearAttention> {
    let sizes = (
        1u64..3,
        1u64..5,
        1u64..3,
        1u64..5,
        1u64..20,
        (1u64..20, 1u64..20),
    );
    sizes
        .prop_flat_map(|(batch, q, k, v, seq, (key_dim, value_dim))| {
            let op = LinearAttention::new(
                Layout::f32([batch, q, seq, key_dim]),
                Layout::f32([batch, k, seq, key_dim]),
                Layout::f32([batch, v, seq, value_dim]),
            );
            let gate = Layout::f32([batch, v, seq]);
            let decay = prop_oneof![
                Just(Decay::None),
                mostly(Layout::f32([v])).prop_map(Decay::Head),
                mostly(gate.clone()).prop_map(Decay::Token),
                mostly(Layout::f32([batch, v, seq, key_dim])).prop_map(Decay::Key),
                mostly(Layout::f32([batch, v, seq, value_dim])).prop_map(Decay::Value),
            ];
            let rule = prop_oneof![
                Just(UpdateRule::Linear),
                mostly(gate).prop_map(|beta| UpdateRule::Delta {
                    beta: Some(beta),
                    read: None
                }),
                (mostly(op.k.clone()), mostly(op.k.clone()))
                    .prop_map(|(read, write)| UpdateRule::LowRank { read, write }),
            ];
            let reach = prop_oneof![
                Just(Reach::Causal),
                Just(Reach::Before),
                (0u64..9).prop_map(|tokens| Reach::BeforeBucket { tokens }),
                Just(Reach::All),
            ];
            let similarity = prop_oneof![
                3 => Just(Similarity::Product),
                1 => Just(Similarity::Taylor),
                1 => Just(Similarity::Square),
                1 => (0u64..40).prop_map(|length| Similarity::Cosine { length }),
            ];
            let cu = prop::option::weighted(0.3, mostly(Layout::new(DType::U32, [3])));
            let tensors = (mostly(op.q), mostly(op.k), mostly(op.v));
            let terms = (decay, rule, reach, similarity);
            (tensors, terms, any::<[bool; 4]>(), cu, 0u64..3)
        })
        .prop_map(
            |((q, k, v), (decay, rule, reach, similarity), flags, cu, updates)| {
                let mut op = LinearAttention::new(q, k, v)
                    .decay(decay)
                    .rule(rule)
                    .reach(reach)
                    .similarity(similarity);
                op.updates_per_token = if updates == 2 { 2 } else { updates.max(1) };
                op.cu_seqlens = cu;
                let [normalised, safe, states, carried] = flags;
                if normalised {
                    op = op.normaliser(Normaliser {
                        safe,
                        ..self::safe()
                    });
                    op.feature_k = exp();
                }
                match (states, carried) {
                    (true, true) => op.carried_state(),
                    (true, false) => op.with_final_state(),
                    _ => op,
                }
            },
        )
}

#[test]
fn any_op_plans_or_fails_cleanly() {
    let right = std::cell::Cell::new(0);
    let cases = 3000;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&any_op(), |op| {
            let checked = check(&op);
            let planned = Outline::new(&op.into(), &Caps::minimum(), &Tuning::default());
            match (checked, planned) {
                (Ok(()), Ok(_) | Err(Error::Unsupported { .. })) => right.set(right.get() + 1),
                (Err(checked), Err(planned)) => prop_assert_eq!(checked, planned),
                (checked, planned) => {
                    let planned = planned.map(|_| ());
                    return Err(TestCaseError::fail(format!("{checked:?} and {planned:?}")));
                }
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(right.get() > cases / 20, "only {} ops", right.get());
}
