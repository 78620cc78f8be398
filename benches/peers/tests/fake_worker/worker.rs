//! A worker with faults: its variant says which, or the environment variable FAULT. Softmax only, computed by foveate's reference.

use std::{
    io::{self, BufRead, Write},
    time::Duration,
};

use foveate::bench::Workload;
use foveate_peers::{
    protocol::{Answer, Job, RUN, Ready},
    task,
};

fn say(text: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").unwrap();
    out.flush().unwrap();
}

fn answer(answer: &Answer) {
    say(&serde_json::to_string(answer).unwrap());
}

/// Dies the first time only: a file tells.
fn stumble(job: &Job) {
    let mark = job.output.with_extension("mark");
    if !mark.exists() {
        std::fs::write(mark, "").unwrap();
        panic!("stumbled");
    }
}

fn main() {
    let mut lines = io::stdin().lock().lines();
    let job: Job = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let fault = std::env::var("FAULT").unwrap_or_else(|_| job.variant.clone());
    let fault = fault.as_str();
    let hang = || std::thread::sleep(Duration::from_secs(600));

    match fault {
        "hangs" => hang(),
        "dies" => panic!("the device is gone"),
        "refuses" => {
            answer(&Answer::Failed {
                failed: "no such operator".into(),
                missing: false,
            });
            return;
        }
        "babbles" => say("loading weights ..."),
        "stumbles" => stumble(&job),
        _ => {}
    }

    let inputs: Vec<Vec<f32>> = job
        .inputs
        .iter()
        .map(|path| task::read(path).unwrap())
        .collect();
    let Workload::Softmax(_) = &job.workload else {
        panic!("softmax only");
    };
    let mut output: Vec<f32> = job
        .workload
        .expected(&inputs)
        .values
        .iter()
        .map(|&x| x as f32)
        .collect();
    match fault {
        "wrong" => output[0] += 0.5,
        "short" => output.truncate(1),
        _ => {}
    }
    if fault != "mute" {
        task::write(&job.output, &output).unwrap();
    }
    answer(&Answer::Ready(Ready {
        ready: true,
        version: "1.2.3".into(),
        device: "none".into(),
        note: String::new(),
        copy_gbps: None,
    }));
    let mut runs = 0;
    for line in lines {
        assert_eq!(line.unwrap(), RUN);
        runs += 1;
        match (fault, runs) {
            ("hangs-later", 3) => hang(),
            ("dies-later", 3) => panic!("the device is gone"),
            ("stumbles-later", 3) => stumble(&job),
            _ => {}
        }
        // Times that a test can count on: 2 ms, or twice that.
        let ms = match fault {
            "slow" => 4.0,
            "fast" | "wrong" => 1.0,
            _ => 2.0,
        };
        answer(&Answer::Run { ms });
    }
}
