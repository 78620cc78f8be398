//! What becomes of workers with faults: always a row.

use std::{process::Command, time::Duration};

use foveate::bench::Workload;
use foveate_peers::{
    compare::Comparison,
    pairs::{Effort, summary},
    peer::{Kind, PEERS, Peer, Place},
    report::{Best, Cause, Outcome, Row, table},
    task::Task,
    worker::{Trouble, Worker},
};

const SMALL: &str = "[[workload]]\nname = \"s\"\nop = \"softmax\"\nshape = [4, 16]\naxis = 1\n";

fn task() -> Task {
    Task::new(&Workload::parse(SMALL).unwrap()[0]).unwrap()
}

fn fake() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fake-worker"))
}

fn peer(tries: u32) -> Peer {
    let text = format!(
        "[[peer]]\nname = \"fake\"\nkind = \"portable\"\nsetup = \"fake\"\nprogram = \"no/such\"\n\
         attention = []\nsoftmax = []\ndtypes = [\"f32\"]\nlimit_s = 8\ntries = {tries}\n"
    );
    Peer::parse(&text).unwrap().remove(0)
}

const EFFORT: Effort = Effort {
    pairs: 5,
    budget: Duration::from_secs(1),
};

/// The row of a fake worker with a fault, beside a fake worker without one.
fn row_after(fault: &str, tries: u32) -> Row {
    let task = task();
    let mut comparison = Comparison::start(&task, fake(), EFFORT).unwrap();
    assert!(comparison.own_is_right());
    comparison.row(&peer(tries), fault, Ok(fake()))
}

fn failure(row: &Row) -> &str {
    match &row.outcome {
        Outcome::Failed { failed, .. } => failed,
        Outcome::Measured(measured) => panic!("should have failed: {measured:?}"),
    }
}

#[test]
fn a_healthy_worker_is_measured() {
    let row = row_after("slow", 1);
    let measured = row.measured().unwrap();
    assert!(measured.right && measured.foveate_right);
    assert_eq!((measured.foveate_ms, measured.peer_ms), (2.0, 4.0));
    assert_eq!((measured.ratio.median, measured.ratio.runs), (2.0, 5));
    assert_eq!(measured.version, "1.2.3");
    // 64 elements at 5 operations in 2 and 4 ms.
    assert_eq!(measured.gflops.foveate, 320.0 / 2.0 / 1e6);
    assert_eq!(measured.gflops.peer, 320.0 / 4.0 / 1e6);
    let line = serde_json::to_value(&row).unwrap();
    assert_eq!(line["peer_ms"], 4.0);
    assert_eq!(line["ratio"]["median"], 2.0);
    assert_eq!(line["compared_as"], "portable");
}

#[test]
fn a_wrong_result_is_marked_and_never_the_best() {
    let [wrong, slow] = ["wrong", "slow"].map(|fault| row_after(fault, 1));
    let measured = wrong.measured().unwrap();
    assert!(!measured.right);
    assert_eq!(measured.peer_ms, 1.0);
    let rows = [wrong.clone(), slow];
    let best = Best::of(&rows).unwrap();
    assert_eq!(best.best.as_ref().unwrap().variant, "slow");
    assert_eq!(best.faster_but_wrong[0].variant, "wrong");
    assert!(best.words().contains("not counted: fake wrong, 0.50 times"));
    assert_eq!(Best::of(&[wrong]).unwrap().best, None);
    let text = table(&rows);
    let line = text.lines().find(|line| line.contains("fake wrong"));
    assert!(line.unwrap().contains("WRONG"), "{text}");
}

#[test]
fn a_yardstick_is_never_the_best() {
    let mut fast = row_after("fast", 1);
    let best = |row: &Row| Best::of(std::slice::from_ref(row)).unwrap().best;
    assert_eq!(best(&fast).unwrap().variant, "fast");
    fast.compared_as = Some(Kind::Yardstick);
    assert_eq!(best(&fast), None);
}

#[test]
fn a_result_that_is_short_or_absent_is_wrong() {
    for fault in ["short", "mute"] {
        let row = row_after(fault, 1);
        let measured = row.measured().unwrap();
        assert!(
            !measured.right && measured.err.peer.is_infinite(),
            "{fault}"
        );
    }
}

#[test]
fn a_worker_that_hangs_is_ended_and_tried_again() {
    // Limits of 8 s to get ready and 2 s for a run.
    let row = row_after("hangs-later", 2);
    assert_eq!(
        failure(&row),
        "no answer within 2 s (to run); ended (started 2 times)"
    );
}

#[test]
fn a_worker_that_never_gets_ready_is_ended() {
    let task = task();
    let trouble = Worker::start(
        &mut fake(),
        &task.job("fake", "hangs"),
        Duration::from_millis(300),
    );
    assert!(matches!(
        trouble.err(),
        Some(Trouble::Silent {
            when: "to get ready",
            ..
        })
    ));
}

#[test]
#[cfg(target_os = "linux")]
fn a_worker_that_is_dropped_is_gone() {
    let task = task();
    let job = task.job("fake", "slow");
    let worker = Worker::start(&mut fake(), &job, Duration::from_secs(8)).unwrap();
    let process = std::path::PathBuf::from(format!("/proc/{}", worker.process()));
    assert!(process.exists());
    drop(worker);
    assert!(!process.exists());
}

#[test]
fn a_worker_that_dies_leaves_its_last_words() {
    let row = row_after("dies", 3);
    let failed = failure(&row);
    assert!(failed.contains("the device is gone"), "{failed}");
    assert!(failed.ends_with("(started 3 times)"), "{failed}");
}

#[test]
fn trouble_of_foveate_is_not_laid_on_the_peer() {
    let task = task();
    for fault in ["dies-later", "hangs-later"] {
        let mut own = fake();
        own.env("FAULT", fault);
        let mut comparison = Comparison::start(&task, own, EFFORT).unwrap();
        let row = comparison.row(&peer(3), "slow", Ok(fake()));
        assert!(failure(&row).starts_with("foveate: "), "{row:?}");
        assert!(!row.foveate_is_well());
    }
    let mut own = fake();
    own.env("FAULT", "wrong");
    let mut comparison = Comparison::start(&task, own, EFFORT).unwrap();
    let row = comparison.row(&peer(1), "slow", Ok(fake()));
    assert!(row.measured().unwrap().right && !row.foveate_is_well());
    assert!(table(&[row]).contains("at most 2.0e-5 is right: WRONG"));
}

#[test]
fn foveate_is_started_again_for_the_next_row() {
    let task = task();
    let mut own = fake();
    own.env("FAULT", "stumbles-later");
    let mut comparison = Comparison::start(&task, own, EFFORT).unwrap();
    let rows = [(); 2].map(|()| comparison.row(&peer(1), "slow", Ok(fake())));
    assert!(!rows[0].foveate_is_well());
    assert_eq!(rows[1].measured().unwrap().ratio.median, 2.0);
}

#[test]
fn a_second_start_can_help() {
    let row = row_after("stumbles", 2);
    assert_eq!(row.measured().unwrap().note, "started 2 times");
}

#[test]
fn a_refusal_is_not_tried_again() {
    let row = row_after("refuses", 3);
    assert_eq!(failure(&row), "no such operator");
    assert!(row.foveate_is_well());
    let Outcome::Failed { cause, .. } = row.outcome else {
        unreachable!()
    };
    assert_eq!(cause, Cause::Peer);
}

#[test]
fn noise_on_standard_output_is_a_fault_of_the_worker() {
    let row = row_after("babbles", 1);
    assert_eq!(failure(&row), "its answer is no JSON: loading weights ...");
}

#[test]
fn a_peer_that_is_not_set_up_is_a_row() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place {
        tools: folder.path().into(),
        source: folder.path().into(),
        drivers: None,
    };
    let task = task();
    let mut comparison = Comparison::start(&task, fake(), EFFORT).unwrap();
    for peer in Peer::parse(PEERS).unwrap() {
        let row = comparison.row(&peer, "any", peer.command(&place));
        let expected = format!("not set up; run benches/peers/setup.sh {}", peer.setup);
        assert_eq!(failure(&row), expected);
        assert_eq!(serde_json::to_value(&row).unwrap()["cause"], "missing");
    }
}

#[test]
fn storage_that_a_worker_does_not_have_is_a_row() {
    let mut peer = peer(1);
    peer.dtypes.clear();
    let task = task();
    let mut comparison = Comparison::start(&task, fake(), EFFORT).unwrap();
    let row = comparison.row(&peer, "slow", Ok(fake()));
    assert_eq!(failure(&row), "its worker has no f32");
}

#[test]
fn the_ratio_is_that_of_the_pairs() {
    // The machine slowed down by ten in the middle, for both: each pair says 2, 3 or 4.
    let pairs = [
        (1.0, 2.0),
        (1.0, 4.0),
        (10.0, 30.0),
        (10.0, 30.0),
        (1.0, 3.0),
    ];
    let (own, peer, ratio) = summary(&pairs).unwrap();
    assert_eq!((own.median, peer.median), (1.0, 4.0));
    assert_eq!((ratio.median, ratio.p10, ratio.p90), (3.0, 2.0, 4.0));
    assert_eq!(summary(&[]), None);
}
