//! foveate's own worker, on the default adapter where there is one.

use std::{process::Command, time::Duration};

use foveate::bench::Workload;
use foveate_peers::{
    task::Task,
    worker::{Trouble, Worker},
};

const SMALL: &str = "[[workload]]\nname = \"a\"\nop = \"attention\"\nq_heads = 4\nkv_heads = 2\n\
                     q_len = 33\nkv_len = 33\nhead_dim = 32\ncausal = \"top_left\"\n\
                     [[workload]]\nname = \"e\"\nop = \"softmax\"\nshape = [17, 40]\naxis = 1\n";

fn own() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peers"));
    command.arg("worker");
    command
}

#[test]
fn results_are_right_and_runs_take_time() {
    for workload in Workload::parse(SMALL).unwrap() {
        let task = Task::new(&workload).unwrap();
        let job = task.job("foveate", "foveate");
        let limit = Duration::from_secs(120);
        if foveate::adapters().is_empty() {
            eprintln!("skipped: no adapter");
            assert!(matches!(
                Worker::start(&mut own(), &job, limit),
                Err(Trouble::Failed(why)) if why.contains("no adapter")
            ));
            continue;
        }
        let mut worker = Worker::start(&mut own(), &job, limit).unwrap();
        assert!(task.error(&job) <= task.err_limit());
        assert!(worker.ready().note.starts_with("schedule "));
        assert!(worker.run(limit).unwrap() > 0.0);
    }
}

#[test]
fn an_unknown_peer_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_peers"))
        .args(["--peers", "nobody"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no peer is called `nobody`"), "{said}");
}
