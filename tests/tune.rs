//! The tuner: what is measured is remembered, on disk too, and changes speed but no result.

mod common;

use common::{Problem, gpus, name};
use foveate::plan::Outline;
use foveate::{
    Attention, Caps, Causal, DType, Engine, Layout, Op, Schedule, Softmax, Tuning, TuningMode, tune,
};

fn attention(m: u64, n: u64) -> Op {
    let q = Layout::f32([1, 2, m, 16]);
    let k = Layout::f32([1, 2, n, 16]);
    Attention::new(q, k.clone(), k)
        .causal(Causal::BottomRight)
        .into()
}

#[test]
fn candidates_are_different_and_sorted() {
    for gpu in gpus() {
        let caps = gpu.engine().caps();
        for op in [
            attention(1, 300),
            attention(70, 300),
            Softmax::new(Layout::f32([9, 70_000]), 1).into(),
        ] {
            let list = tune::candidates(&op, caps);
            assert!(
                list.iter().any(|c| c.tuning == Tuning::default()),
                "{list:?}"
            );
            assert!(list.is_sorted_by(|a, b| a.estimate.ms <= b.estimate.ms));
            let steps = |tuning: &Tuning| Outline::new(&op, caps, tuning).expect("plans").steps;
            for (place, candidate) in list.iter().enumerate() {
                let same =
                    |other: &tune::Candidate| steps(&other.tuning) == steps(&candidate.tuning);
                assert!(!list[..place].iter().any(same), "{:?}", candidate.tuning);
                let e = candidate.estimate;
                assert!(
                    e.ms > 0.0 && e.bytes > 0.0 && e.workgroups >= 1.0 && e.visited_tiles > 0.0,
                    "{e:?}"
                );
            }
        }
        // A causal mask hides half of the tiles, and the model knows.
        let visited = |causal| {
            let q = Layout::f32([1, 1, 4096, 32]);
            let op: Op = Attention::new(q.clone(), q.clone(), q)
                .causal(causal)
                .into();
            let outline = Outline::new(&op, caps, &Tuning::default()).expect("plans");
            tune::Estimate::of(&outline, caps).visited_tiles
        };
        let share = visited(Causal::TopLeft) / visited(Causal::None);
        assert!((0.5..0.55).contains(&share), "{share}");
    }
}

#[test]
fn what_is_measured_is_remembered() {
    for gpu in gpus() {
        let folder = tempfile::tempdir().expect("a folder");
        let engine = Engine::with_cache(gpu.device(), folder.path());
        assert_eq!(engine.tuning(), TuningMode::Measured);
        let op = attention(5, 200);
        let before = engine.plan(&op).expect("plans").explain();
        assert!(!before.contains("measured"), "{before}");

        let list = engine
            .tune(gpu.queue(), std::slice::from_ref(&op), 2)
            .expect("tunes");
        let [tuned] = list.as_slice() else {
            panic!("{list:?}");
        };
        assert!(
            tuned.timed.len() >= 2 && tuned.failed.is_empty(),
            "{tuned:?}"
        );
        assert!(tuned.timed.is_sorted_by(|a, b| a.ms <= b.ms));
        assert!(
            tuned
                .timed
                .iter()
                .any(|timed| timed.tuning == Tuning::default())
        );
        // One of the fastest: within 3 % it is the rules' choice, or what was ready first.
        let kept = engine.tuning_table().entries[&tuned.bucket];
        assert!(tuned.timed.iter().any(|timed| timed.tuning == kept.tuning));
        assert!(kept.ms <= tuned.timed[0].ms * 1.03, "{kept:?}, {tuned:?}");
        let after = engine.plan(&op).expect("plans").explain();
        assert!(after.contains("measured on this adapter"), "{after}");

        // Another process.
        engine.save_cache().expect("saves");
        let later = Engine::with_cache(gpu.device(), folder.path());
        assert_eq!(later.tuning_table(), engine.tuning_table());
        assert_eq!(later.plan(&op).expect("plans").explain(), after);
        // Other modes do not look at it.
        for mode in [TuningMode::Off, TuningMode::Heuristic] {
            let other = later.clone().with_tuning(mode);
            let text = other.plan(&op).expect("plans").explain();
            assert!(!text.contains("measured"), "{mode}: {text}");
        }
    }
}

#[test]
fn a_table_of_no_use_is_ignored() {
    for gpu in gpus() {
        let folder = tempfile::tempdir().expect("a folder");
        let engine = Engine::with_cache(gpu.device(), folder.path());
        let op = attention(3, 64);
        engine.tune(gpu.queue(), &[op], 1).expect("tunes");
        engine.save_cache().expect("saves");
        let file = table_in(folder.path());
        let good = std::fs::read_to_string(&file).expect("readable");
        for bad in [
            String::new(),
            good[..good.len() / 2].to_owned(),
            good.replacen("\"version\": 1", "\"version\": 999", 1),
            good.replacen("\"vendor\": ", "\"vendor\": 9", 1),
        ] {
            assert_ne!(bad, good);
            std::fs::write(&file, &bad).expect("writable");
            let engine = Engine::with_cache(gpu.device(), folder.path());
            assert!(engine.tuning_table().entries.is_empty(), "{bad}");
        }
    }
}

/// A choice that cannot run, here one for another device, gives way to the rules.
#[test]
fn a_choice_that_does_not_fit_gives_way() {
    let gpu = gpus().first().expect("an adapter");
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::with_cache(gpu.device(), folder.path());
    let op = attention(3, 64);
    engine
        .tune(gpu.queue(), std::slice::from_ref(&op), 3)
        .expect("tunes");
    engine.save_cache().expect("saves");
    let file = table_in(folder.path());
    let mut json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).expect("readable")).expect("JSON");
    json["table"]["entries"][tune::bucket(&op)]["tuning"] =
        serde_json::json!({"schedule": "subgroup", "rows": 2});
    std::fs::write(&file, json.to_string()).expect("writable");

    let engine = Engine::with_cache(gpu.device(), folder.path());
    let text = engine.plan(&op).expect("plans").explain();
    assert_eq!(
        text.contains("measured on this adapter"),
        engine.caps().fixed_subgroup().is_some(),
        "{text}"
    );
    let mut caps = engine.caps().clone();
    caps.subgroup = None;
    let narrowed = engine.clone().with_caps(caps.clone());
    let text = narrowed.plan(&op).expect("tiles run").explain();
    assert!(text.contains("schedule tile"), "{text}");
    assert!(!text.contains("measured"), "{text}");
    caps.workgroup_bytes = 0;
    let error = engine.with_caps(caps).plan(&op).expect_err("nothing runs");
    assert!(error.to_string().contains("workgroup memory"), "{error}");
}

/// The table in a cache folder.
fn table_in(folder: &std::path::Path) -> std::path::PathBuf {
    std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("readable").path())
        .find(|path| path.to_string_lossy().ends_with(".tuning.json"))
        .expect("a table")
}

/// What ships is found by the buckets of the suite, and plans.
#[test]
fn what_is_shipped_is_used() {
    let caps = Caps {
        subgroup: Some((8, 8)),
        software: true,
        workgroup_bytes: 32 << 10,
        max_invocations: 1024,
        ..Caps::minimum()
    };
    let table = tune::Table::shipped(&caps).expect("there is one for CPU vectors");
    let attention = |len, causal| -> Op {
        let q = Layout::f32([1, 8, len, 64]);
        Attention::new(q.clone(), q.clone(), q)
            .causal(causal)
            .into()
    };
    for op in [
        attention(1024, Causal::None),
        attention(2048, Causal::TopLeft),
    ] {
        let entry = &table.entries[&tune::bucket(&op)];
        Outline::new(&op, &caps, &entry.tuning).expect("plans");
    }
    let hardware = Caps {
        software: false,
        ..caps
    };
    assert!(tune::Table::shipped(&hardware).is_none());
}

#[test]
fn tuned_and_untuned_agree() {
    for gpu in gpus() {
        let mut problem = Problem::new([1, 4, 2], [9, 150], 16);
        problem.causal = Causal::BottomRight;
        let k = Layout::f32([1, 2, 150, 16]);
        let op: Op = Attention::new(Layout::f32([1, 4, 9, 16]), k.clone(), k).into();
        let list = tune::candidates(&op, gpu.engine().caps());
        // One of each schedule, the quick start, and what the rules choose.
        let mut chosen = vec![Tuning::default(), Tuning::QUICK_START];
        for schedule in [Schedule::Decode, Schedule::Subgroup, Schedule::Tile] {
            chosen.extend(
                list.iter()
                    .map(|candidate| candidate.tuning)
                    .find(|tuning| tuning.schedule == Some(schedule)),
            );
        }
        for tuning in chosen {
            let (o, lse) = problem.errors(gpu, &tuning).expect("runs");
            assert!(
                o <= 1e-5 && lse <= 1e-5,
                "{}: {tuning}: {o:e} {lse:e}",
                name(gpu)
            );
        }
    }
}

#[test]
fn buckets_tell_apart_what_matters() {
    let layout = |dtype| Layout::new(dtype, [1, 2, 64, 16]);
    let plain = |dtype| Attention::new(layout(dtype), layout(dtype), layout(dtype));
    let buckets = [
        tune::bucket(&plain(DType::F32).into()),
        tune::bucket(&plain(DType::F16).into()),
        tune::bucket(&plain(DType::F32).causal(Causal::TopLeft).into()),
        tune::bucket(&attention(64, 64)),
        tune::bucket(&attention(1, 64)),
        tune::bucket(&attention(64, 1024)),
        tune::bucket(&Softmax::new(Layout::f32([64, 64]), 1).into()),
        tune::bucket(&Softmax::new(Layout::f32([64, 64]), 0).into()),
    ];
    let mut different = buckets.to_vec();
    different.sort();
    different.dedup();
    // Both causal alignments share a bucket.
    assert_eq!(different.len(), buckets.len() - 1, "{buckets:?}");
    // Sizes that differ by little share one too.
    assert_eq!(
        tune::bucket(&attention(64, 1024)),
        tune::bucket(&attention(70, 1100))
    );
}

#[test]
fn an_op_that_is_wrong_is_an_error() {
    let gpu = gpus().first().expect("an adapter");
    let wrong: Op = Softmax::new(Layout::f32([64]), 7).into();
    assert!(tune::candidates(&wrong, gpu.engine().caps()).is_empty());
    let flat = Layout::f32([3]);
    let flat: Op = Attention::new(flat.clone(), flat.clone(), flat).into();
    for op in [wrong, flat] {
        tune::bucket(&op);
        assert!(gpu.engine().plan(&op).is_err());
        assert!(gpu.engine().tune(gpu.queue(), &[op], 1).is_err());
    }
}
