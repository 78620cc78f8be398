//! Comparing records: pairing, ratios, noise, what is flagged and what fails; and the program's formats and page.
//! Without a device.
#![cfg(feature = "cli")]

mod schema;

use std::{
    fs,
    process::{Command, Output},
};

use foveate::{
    TuningMode,
    bench::{
        Adapter, Bound, Ceilings, Checks, Clock, DeviceRecord, Measured, Opened, Outcome, Profile,
        Record, Row, Sample, Spread, Workload,
    },
    compare::{Against, By, Cause, Comparison, Flag, Source, State, regressions},
};
use serde_json::Value;
use tempfile::TempDir;

/// Runs of a row.
const RUNS: usize = 15;

/// Attention of this length.
fn workload(name: &str, length: u64) -> Workload {
    let text = format!(
        "[[workload]]\nname = {name:?}\nop = \"attention\"\nq_heads = 2\nkv_heads = 2\nq_len = {length}\n\
         kv_len = {length}\nhead_dim = 64\n"
    );
    Workload::parse(&text).unwrap().remove(0)
}

/// Runs whose times scatter evenly by `noise` around `ms`, on a device whose pace is `pace` of its ceilings'.
fn measured(ms: f64, noise: f64, pace: f64) -> Measured {
    let samples: Vec<Sample> = (0..RUNS)
        .map(|run| {
            // In an order of no meaning.
            let place = (run * 7 % RUNS) as f64 / (RUNS - 1) as f64 - 0.5;
            let time = ms * (1.0 + 2.0 * noise * place);
            Sample {
                wall_ms: time / pace,
                gpu_ms: None,
                pace_gflops: 100.0 * pace,
                pace_matrix_gflops: None,
                pace_read_gbps: 10.0 * pace,
                pace_copy_gbps: 8.0 * pace,
                share: 1.0 / time,
            }
        })
        .collect();
    let spread =
        |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value).collect()).unwrap();
    Measured {
        schedule: "tile".into(),
        why: "a test".into(),
        clock: Clock::Wall,
        gpu_ms: None,
        wall_ms: spread(|run| run.wall_ms),
        gflops: 1.0,
        gbps: 1.0,
        operations: 1e8,
        bytes: 1e6,
        bound: Bound::MultiplyAdd,
        share: spread(|run| run.share),
        samples,
        err: Some(1e-6),
        err_limit: 2e-5,
        right: true,
        first_compile_ms: 100.0,
        cached_compile_ms: 1.0,
        scratch_bytes: 0,
        sets: 2,
        host: Profile::default(),
    }
}

fn row(name: &str, length: u64, measured: Measured) -> Row {
    Row::new(
        &workload(name, length),
        Outcome::Measured(Box::new(measured)),
    )
}

fn device(name: &str, rows: Vec<Row>) -> DeviceRecord {
    DeviceRecord {
        adapter: Adapter {
            name: name.into(),
            backend: "vulkan".into(),
            ..Adapter::default()
        },
        opened: None,
        ceilings: Some(Ceilings {
            fma_gflops: 100.0,
            read_gbps: 10.0,
            copy_gbps: 8.0,
            ..Ceilings::default()
        }),
        error: None,
        rows,
    }
}

fn record(devices: Vec<DeviceRecord>) -> Record {
    Record {
        format: Record::FORMAT.into(),
        version: Record::VERSION,
        foveate: "0.1.0".into(),
        commit: None,
        suite: "test".into(),
        runs: RUNS as u32,
        devices,
    }
}

/// A record of one device with these rows, called by their lengths.
fn one(rows: &[(u64, Measured)]) -> Record {
    let rows = rows
        .iter()
        .map(|(length, measured)| row(&format!("row {length}"), *length, measured.clone()));
    record(vec![device("gpu", rows.collect())])
}

fn compared(records: &[(&str, Vec<Record>)]) -> Comparison {
    let sources: Vec<Source> = records
        .iter()
        .map(|(name, records)| Source {
            name: (*name).into(),
            records: records.clone(),
        })
        .collect();
    Comparison::new(&sources).unwrap()
}

fn two(old: Record, new: Record) -> Comparison {
    compared(&[("old", vec![old]), ("new", vec![new])])
}

/// What became worse than this, as workload and cause.
fn worse(comparison: &Comparison, limit: f64, by: By) -> Vec<(Option<String>, Cause)> {
    let gate = regressions(comparison, limit, by).unwrap();
    gate.worse
        .into_iter()
        .map(|regression| (regression.workload, regression.cause))
        .collect()
}

#[test]
fn ratios_are_of_medians_and_intervals_hold_them() {
    let old = one(&[(64, measured(10.0, 0.05, 1.0))]);
    let new = one(&[(64, measured(12.0, 0.05, 1.0))]);
    let comparison = two(old, new);
    let ratios = comparison.rows[0].cells[1].ratios.unwrap();
    for interval in [ratios.time, ratios.paced] {
        assert!((interval.ratio - 1.2).abs() < 1e-9, "{interval:?}");
        assert!(interval.low > 1.12 && interval.low < 1.2, "{interval:?}");
        assert!(interval.high > 1.2 && interval.high < 1.28, "{interval:?}");
    }
    assert_eq!(comparison.rows[0].cells[0].ratios, None);
    assert!(comparison.rows[0].cells[1].flags.contains(&Flag::Slower));
    let mean = &comparison.means[0];
    assert!(
        (mean.paced - 1.2).abs() < 1e-9 && mean.rows == 1,
        "{mean:?}"
    );
}

#[test]
fn only_what_is_past_the_limit_beyond_noise_fails() {
    let old = |noise| one(&[(64, measured(10.0, noise, 1.0))]);
    let new = |noise| one(&[(64, measured(12.0, noise, 1.0))]);
    // 20 % slower, quiet: past 10 %, not past 25 %.
    let quiet = two(old(0.02), new(0.02));
    let found = worse(&quiet, 0.1, By::Paced);
    assert!(
        matches!(found.as_slice(), [(_, Cause::Slower(_))]),
        "{found:?}"
    );
    assert_eq!(worse(&quiet, 0.25, By::Paced), []);
    // The same medians in noise: nothing is known.
    assert_eq!(worse(&two(old(0.5), new(0.5)), 0.1, By::Paced), []);
    // Faster is never worse.
    assert_eq!(worse(&two(new(0.02), old(0.02)), 0.0, By::Paced), []);
}

#[test]
fn a_busy_machine_slows_times_and_not_paced_ones() {
    let old = one(&[(64, measured(10.0, 0.02, 1.0))]);
    let busy = one(&[(64, measured(10.0, 0.02, 0.6))]);
    let comparison = two(old, busy);
    assert_eq!(worse(&comparison, 0.1, By::Paced), []);
    let by_time = worse(&comparison, 0.1, By::Time);
    assert!(
        matches!(by_time.as_slice(), [(_, Cause::Slower(_))]),
        "{by_time:?}"
    );
    assert_eq!(comparison.rows[0].cells[1].flags, []);
}

/// Runs on matrices, whose rate is that many times as high as that of multiply-adds.
fn on_matrices(mut measured: Measured, times: f64) -> Measured {
    measured.schedule = "matrix".into();
    measured.bound = Bound::Matrix;
    for sample in &mut measured.samples {
        sample.pace_matrix_gflops = Some(times * sample.pace_gflops);
    }
    measured
}

#[test]
fn a_schedule_that_changes_and_a_pace_that_changes_stay_apart() {
    let tile = || one(&[(64, measured(10.0, 0.02, 1.0))]);
    let matrix = || one(&[(64, on_matrices(measured(5.0, 0.02, 0.6), 7.0))]);
    for (old, new, expected) in [(tile(), matrix(), 0.5), (matrix(), tile(), 2.0)] {
        let comparison = two(old, new);
        let cell = &comparison.rows[0].cells[1];
        let ratio = cell.ratios.unwrap().paced.ratio;
        assert!((ratio - expected).abs() < 1e-9, "{ratio}");
        assert!(cell.flags.contains(&Flag::OtherSchedule));
    }
}

#[test]
fn the_gate_says_how_much_it_sees() {
    let few = |ms| {
        let mut few = measured(ms, 0.02, 1.0);
        few.samples.truncate(4);
        few
    };
    let comparison = two(
        one(&[
            (64, measured(10.0, 0.02, 1.0)),
            (65, measured(10.0, 0.5, 1.0)),
            (66, few(10.0)),
        ]),
        one(&[
            (64, measured(10.0, 0.02, 1.0)),
            (65, measured(10.0, 0.5, 1.0)),
            (66, few(30.0)),
        ]),
    );
    let gate = regressions(&comparison, 0.1, By::Paced).unwrap();
    // Three times as long, by runs too few to say so.
    assert_eq!(gate.worse, []);
    let unknown = comparison.rows[2].cells[1].ratios.unwrap().paced;
    assert!(
        (unknown.ratio - 3.0).abs() < 0.1 && !unknown.is_known(),
        "{unknown:?}"
    );
    assert_eq!((gate.compared, gate.too_noisy), (3, 2));
    let half = gate.half_width.unwrap();
    assert!(half > 0.01 && half < 0.5, "{half}");
    let words = gate.to_string();
    assert!(
        words.starts_with("3 rows compared, median interval +-"),
        "{words}"
    );
    assert!(
        words.ends_with("2 rows too noisy for this limit"),
        "{words}"
    );
}

#[test]
fn another_device_is_no_substitute() {
    let rows = |ms| vec![row("row 64", 64, measured(ms, 0.02, 1.0))];
    let gpu = |ms| device("gpu", rows(ms));
    let software = |ms| device("software", rows(ms));
    // The only device is gone: compared, and lost.
    let swapped = two(record(vec![gpu(1.0)]), record(vec![software(1.0)]));
    assert_eq!(swapped.columns[1].against, Against::Other);
    assert!(swapped.rows[0].cells[1].ratios.is_some());
    assert_eq!(
        worse(&swapped, 0.1, By::Paced),
        [(None, Cause::Lost(State::Missing))]
    );
    // A further device: nothing to compare with, nothing lost.
    let further = two(
        record(vec![gpu(1.0)]),
        record(vec![gpu(1.0), software(50.0)]),
    );
    let against: Vec<_> = further.columns.iter().map(|c| c.against).collect();
    assert_eq!(
        against,
        [Against::Reference, Against::Same, Against::Nothing]
    );
    assert_eq!(further.rows[0].cells[2].ratios, None);
    assert_eq!(worse(&further, 0.1, By::Time), []);
}

#[test]
fn clocks_are_not_mixed() {
    // The GPU takes a tenth of the wall time.
    let on_gpu = |ms: f64| {
        let mut measured = measured(ms, 0.02, 1.0);
        measured.clock = Clock::Gpu;
        for sample in &mut measured.samples {
            sample.gpu_ms = Some(sample.wall_ms / 10.0);
            sample.share *= 10.0;
        }
        measured
    };
    let wall = || measured(10.0, 0.02, 1.0);
    for (old, new) in [(on_gpu(10.0), wall()), (wall(), on_gpu(10.0))] {
        let comparison = two(one(&[(64, old)]), one(&[(64, new)]));
        let cell = &comparison.rows[0].cells[1];
        for interval in [cell.ratios.unwrap().time, cell.ratios.unwrap().paced] {
            assert!((interval.ratio - 1.0).abs() < 1e-9, "{interval:?}");
        }
        assert_eq!(cell.flags, [Flag::OtherClock]);
    }
    // Between different devices shares are by the clock that both have, too.
    let other = record(vec![device("other", vec![row("row 64", 64, on_gpu(10.0))])]);
    let comparison = two(one(&[(64, wall())]), other);
    let ratio = comparison.rows[0].cells[1].ratios.unwrap().paced.ratio;
    assert!((ratio - 1.0).abs() < 1e-9, "{ratio}");
    let both = two(one(&[(64, on_gpu(10.0))]), one(&[(64, on_gpu(12.0))]));
    let figures = both.rows[0].cells[1].figures.as_ref().unwrap();
    assert_eq!(figures.clock, Clock::Gpu);
    assert!((figures.ms.median - 1.2).abs() < 1e-9 && (figures.wall_ms.median - 12.0).abs() < 1e-9);
}

#[test]
fn wrong_rows_are_no_measure_of_others() {
    let usual = || measured(2.0, 0.02, 1.0);
    let wrong = Measured {
        right: false,
        ..measured(0.1, 0.02, 1.0)
    };
    let mut rows: Vec<_> = (64..68).map(|length| (length, usual())).collect();
    rows.extend((70..76).map(|length| (length, wrong.clone())));
    let comparison = two(one(&rows), one(&rows));
    for row in &comparison.rows {
        let cell = &row.cells[1];
        let expected: &[Flag] = match cell.state {
            State::Right => &[],
            _ => &[Flag::Wrong],
        };
        assert_eq!(cell.flags, expected, "{}", row.workload);
        assert_eq!(cell.right().is_some(), cell.state == State::Right);
    }
}

#[test]
fn records_taken_together_keep_what_differs() {
    let tile = measured(10.0, 0.02, 1.0);
    let matrix = on_matrices(tile.clone(), 7.0);
    let with = |outcome: Outcome, commit: &str| Record {
        commit: Some(commit.into()),
        ..record(vec![device(
            "gpu",
            vec![
                Row::new(&workload("row 64", 64), outcome),
                row("row 65", 65, tile.clone()),
            ],
        )])
    };
    let ran = |measured: &Measured| Outcome::Measured(Box::new(measured.clone()));
    let comparison = compared(&[
        ("old", vec![with(ran(&tile), "a")]),
        (
            "new",
            vec![
                with(ran(&tile), "a"),
                with(ran(&matrix), "b"),
                with(ran(&tile), "a"),
            ],
        ),
    ]);
    let flags = &comparison.rows[0].cells[1].flags;
    assert!(flags.contains(&Flag::MixedSchedules), "{flags:?}");
    assert!(
        !comparison.rows[1].cells[1]
            .flags
            .contains(&Flag::MixedSchedules)
    );
    assert_eq!(comparison.columns[1].commit.as_deref(), Some("a, b"));
    // The reason is that of the state, whatever came first.
    let reason = |reason: &str| reason.to_owned();
    let skipped = Outcome::Skipped {
        reason: reason("small"),
    };
    let failed = Outcome::Failed {
        reason: reason("lost"),
    };
    let comparison = compared(&[
        ("old", vec![with(ran(&tile), "a")]),
        ("new", vec![with(skipped, "a"), with(failed, "a")]),
    ]);
    let cell = &comparison.rows[0].cells[1];
    assert_eq!(
        (cell.state, cell.reason.as_deref()),
        (State::Failed, Some("lost"))
    );
    // Two of a kind in one machine.
    let twins = || record(vec![device("gpu", vec![]), device("gpu", vec![])]);
    let comparison = two(twins(), twins());
    let labels: Vec<&str> = comparison
        .columns
        .iter()
        .map(|c| c.label.as_str())
        .collect();
    assert_eq!(labels[..2], ["old: gpu (vulkan)", "old: gpu (vulkan) #2"]);
}

#[test]
fn what_was_opened_differently_is_said() {
    let with = |debug_assertions, driver: &str| {
        let mut record = one(&[(64, measured(10.0, 0.02, 1.0))]);
        record.devices[0].adapter.driver_info = driver.into();
        record.devices[0].opened = Some(Opened {
            loop_budget: if debug_assertions { 1 } else { 2 },
            tuning: TuningMode::Off,
            checks: Checks {
                shader_bounds: false,
                shader_loops: false,
                workgroup_memory_cleared: false,
                api_validation: false,
                gpu_validation: false,
                debug_assertions,
            },
        });
        record
    };
    let comparison = two(with(false, "one"), with(true, "two"));
    assert_eq!(
        comparison.columns[1].differences,
        [
            "driver \"two\", not \"one\"",
            "debug_assertions true, not false"
        ]
    );
    let comparison = two(with(false, "one"), with(false, "one"));
    assert!(comparison.columns[1].differences.is_empty());
}

#[test]
fn rows_of_another_version_belong_together() {
    let with = |name: &str, op: &str, further: u64| {
        let mut row = row("row", 64, measured(10.0, 0.02, 1.0));
        row.definition["name"] = name.into();
        row.definition["op"] = op.into();
        row.definition["further"] = further.into();
        let text = record(vec![device("gpu", vec![row])]).to_json().unwrap();
        Record::parse(&text).unwrap()
    };
    let comparison = two(with("a", "fresh", 1), with("b", "fresh", 1));
    assert_eq!(comparison.rows.len(), 1);
    assert!(comparison.rows[0].cells[1].ratios.is_some());
    assert_eq!(
        two(with("a", "fresh", 1), with("a", "fresh", 2)).rows.len(),
        2
    );
}

#[test]
fn figures_that_cannot_be_are_refused() {
    let good = one(&[(64, measured(10.0, 0.02, 1.0))]).to_json().unwrap();
    let row = "/devices/0/rows/0";
    for (at, value, field) in [
        (format!("{row}/bytes"), 0.0, "bytes"),
        (format!("{row}/operations"), 1.5e308, "operations"),
        (
            format!("{row}/samples/3/wall_ms"),
            0.0,
            "samples[3].wall_ms",
        ),
        (
            format!("{row}/samples/0/pace_read_gbps"),
            -1.0,
            "samples[0].pace_read_gbps",
        ),
        (format!("{row}/share/median"), 0.0, "share"),
        (format!("{row}/err_limit"), 0.0, "err_limit"),
        (
            "/devices/0/ceilings/copy_gbps".into(),
            -1.0,
            "ceilings.copy_gbps",
        ),
    ] {
        let mut json: Value = serde_json::from_str(&good).unwrap();
        *json.pointer_mut(&at).unwrap() = value.into();
        let error = Record::parse(&json.to_string()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{at}: {error}");
    }
    let mut json: Value = serde_json::from_str(&good).unwrap();
    json["devices"][0]["rows"][0]["samples"] = Value::Array(vec![]);
    let error = Record::parse(&json.to_string()).unwrap_err().to_string();
    assert!(error.contains("`samples`"), "{error}");
    // A ceiling that could not be measured is 0, and gives a page without that roof.
    let mut json: Value = serde_json::from_str(&good).unwrap();
    json["devices"][0]["ceilings"]["copy_gbps"] = 0.into();
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("a.json"), json.to_string()).unwrap();
    fs::write(folder.path().join("b.json"), good).unwrap();
    printed(&folder, "compare a.json b.json --html page.html", 0);
}

#[test]
fn records_that_differ_from_run_to_run_widen_the_interval() {
    let run = |ms| one(&[(64, measured(ms, 0.01, 1.0))]);
    let single = two(run(10.0), run(12.0));
    assert_eq!(worse(&single, 0.1, By::Paced).len(), 1);
    let pooled = compared(&[
        ("old", vec![run(10.0), run(12.0)]),
        ("new", vec![run(12.0), run(10.0)]),
    ]);
    assert_eq!(pooled.columns.len(), 2);
    assert_eq!(worse(&pooled, 0.1, By::Paced), []);
    let steady = compared(&[
        ("old", vec![run(10.0), run(10.1)]),
        ("new", vec![run(12.0), run(12.1)]),
    ]);
    assert_eq!(worse(&steady, 0.1, By::Paced).len(), 1);
}

#[test]
fn what_was_right_and_is_not_fails() {
    let right = || measured(10.0, 0.02, 1.0);
    let wrong = Measured {
        right: false,
        err: None,
        ..right()
    };
    let old = one(&[
        (64, right()),
        (65, right()),
        (66, right()),
        (67, right()),
        (68, right()),
    ]);
    let mut new = one(&[(64, right()), (65, wrong)]);
    let reason = || "no reason".to_owned();
    new.devices[0].rows.extend([
        Row::new(
            &workload("row 66", 66),
            Outcome::Failed { reason: reason() },
        ),
        Row::new(
            &workload("row 67", 67),
            Outcome::Skipped { reason: reason() },
        ),
        // Only in the new record: nothing is lost.
        row("row 70", 70, right()),
    ]);
    let comparison = two(old.clone(), new.clone());
    let lost: Vec<_> = worse(&comparison, 0.1, By::Paced);
    let expected = [
        ("row 65", State::Wrong),
        ("row 66", State::Failed),
        ("row 67", State::Skipped),
        ("row 68", State::Missing),
    ];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(name, state)| (Some(name.to_owned()), Cause::Lost(state)))
        .collect();
    assert_eq!(lost, expected);
    // What was not right before cannot be lost.
    assert_eq!(
        worse(&two(new, old), 0.1, By::Paced),
        [(Some("row 70".into()), Cause::Lost(State::Missing))]
    );
}

#[test]
fn a_comparison_of_nothing_fails() {
    let old = one(&[(64, measured(10.0, 0.02, 1.0))]);
    let new = one(&[(65, measured(10.0, 0.02, 1.0))]);
    let found = worse(&two(old.clone(), new), 0.1, By::Paced);
    assert!(found.contains(&(None, Cause::NothingPaired)), "{found:?}");
    // A device that the new record does not have.
    let both = record(vec![
        old.devices[0].clone(),
        device("other", old.devices[0].rows.clone()),
    ]);
    let found = worse(&two(both, old), 0.1, By::Paced);
    assert_eq!(found, [(None, Cause::Lost(State::Missing))]);
    let none = Comparison::new(&[]).unwrap_err().to_string();
    assert!(none.contains("two records"), "{none}");
}

#[test]
fn rows_belong_together_by_definition_not_by_name() {
    let runs = || measured(10.0, 0.02, 1.0);
    let old = record(vec![device(
        "gpu",
        vec![row("A", 64, runs()), row("B", 96, runs())],
    )]);
    let new = record(vec![device(
        "gpu",
        vec![row("B", 64, runs()), row("A", 128, runs())],
    )]);
    let comparison = two(old, new);
    let names: Vec<&str> = comparison
        .rows
        .iter()
        .map(|row| row.workload.as_str())
        .collect();
    assert_eq!(names, ["A", "B", "A"]);
    let states = comparison.rows.iter().map(|row| row.cells[1].state);
    let expected = [State::Right, State::Missing, State::Right];
    assert_eq!(states.collect::<Vec<_>>(), expected);
}

#[test]
fn devices_are_compared_with_their_own_kind() {
    let rows = |ms| vec![row("A", 64, measured(ms, 0.02, 1.0))];
    let machine = |fast, slow| record(vec![device("fast", rows(fast)), device("slow", rows(slow))]);
    let comparison = two(machine(1.0, 50.0), machine(1.0, 80.0));
    let references: Vec<_> = comparison.columns.iter().map(|c| c.reference).collect();
    assert_eq!(references, [None, Some(0), Some(0), Some(1)]);
    let found = regressions(&comparison, 0.1, By::Paced).unwrap().worse;
    let columns: Vec<&str> = found.iter().map(|r| r.column.as_str()).collect();
    assert_eq!(columns, ["new: slow (vulkan)"]);
    // One record of several devices: the first is the reference of the others.
    let alone = compared(&[("all", vec![machine(1.0, 50.0)])]);
    let ratio = alone.rows[0].cells[1].ratios.unwrap();
    assert!((ratio.time.ratio - 50.0).abs() < 1e-9);
}

#[test]
fn what_is_unusual_is_flagged() {
    let usual = || measured(2.0, 0.02, 1.0);
    let slow = measured(8.0, 0.02, 1.0);
    let inexact = Measured {
        err: Some(1.2e-5),
        ..usual()
    };
    let other = Measured {
        schedule: "matrix".into(),
        ..usual()
    };
    let noisy = measured(2.0, 0.7, 1.0);
    let lengths = [64, 65, 66, 67, 68, 69];
    let old: Vec<_> = lengths.iter().map(|&length| (length, usual())).collect();
    let mut new = old.clone();
    new[0].1 = slow;
    new[1].1 = inexact;
    new[2].1 = other;
    new[3].1 = noisy;
    let comparison = two(one(&old), one(&new));
    let flags: Vec<&[Flag]> = comparison
        .rows
        .iter()
        .map(|row| &*row.cells[1].flags)
        .collect();
    assert_eq!(flags[0], [Flag::Slower, Flag::SlowForClass]);
    assert_eq!(flags[1], [Flag::ErrorHigh]);
    assert_eq!(flags[2], [Flag::OtherSchedule]);
    assert_eq!(flags[3], [Flag::Noisy]);
    assert!(flags[4].is_empty() && flags[5].is_empty(), "{flags:?}");
    assert!(
        comparison
            .rows
            .iter()
            .all(|row| row.cells[0].flags.is_empty())
    );
}

/// Two records in a folder, `old.json` and `new.json`, with names that try to be markup.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let lengths = [64, 128, 256, 512];
    let rows = |factor: f64| {
        let times = (1..).map(|ms| measured(factor * f64::from(ms), 0.02, 1.0));
        let mut rows: Vec<Row> = lengths
            .iter()
            .zip(times)
            .map(|(&length, runs)| row(&format!("row {length}"), length, runs))
            .collect();
        rows.push(hostile(1024, measured(factor * 9.0, 0.02, 1.0)));
        let reason = format!("not here: {HOSTILE}");
        rows.push(Row::new(
            &workload("skipped", 7),
            Outcome::Skipped { reason },
        ));
        rows
    };
    for (file, factor) in [("old", 1.0), ("new", 1.5)] {
        let mut gpu = device(HOSTILE, rows(factor));
        gpu.adapter.backend = HOSTILE.into();
        gpu.adapter.driver_info = HOSTILE.into();
        gpu.error = Some(HOSTILE.into());
        let record = Record {
            foveate: HOSTILE.into(),
            commit: Some(HOSTILE.into()),
            ..record(vec![gpu])
        };
        let text = record.to_json().unwrap();
        fs::write(folder.path().join(format!("{file}.json")), text).unwrap();
    }
    folder
}

const HOSTILE: &str =
    "</script><script>alert(1)</script>|\"'&<b>\n# [a](b) ![c](d) `e` @f *g* _h_ \u{1b}[31m\\";

/// A row with a hostile text wherever a record has one.
fn hostile(length: u64, mut runs: Measured) -> Row {
    runs.schedule = HOSTILE.into();
    Row {
        shape: HOSTILE.into(),
        op: HOSTILE.into(),
        workload: HOSTILE.into(),
        ..row("row", length, runs)
    }
}

fn foveate(folder: &TempDir, words: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_foveate"))
        .args(words.split(' '))
        .current_dir(folder)
        .output()
        .unwrap()
}

#[track_caller]
fn printed(folder: &TempDir, words: &str, code: i32) -> String {
    let output = foveate(folder, words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{words}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_exit_code_tells_a_regression() {
    let folder = folder();
    printed(&folder, "compare old.json new.json", 0);
    printed(&folder, "compare old.json new.json --fail-over 60%", 0);
    printed(&folder, "compare new.json old.json --fail-over 0.1", 0);
    let output = foveate(&folder, "compare old.json new.json --fail-over 10%");
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("worse: new, row 64: 1.500"), "{errors}");
    assert!(
        errors.contains("5 rows compared, median interval +-"),
        "{errors}"
    );
    printed(
        &folder,
        "compare old.json,old.json new.json,new.json --fail-over 10%",
        1,
    );
    for (words, code) in [
        ("compare old.json", 2),
        ("compare old.json none.json", 1),
        ("compare old.json new.json --fail-over ten", 2),
        ("compare old.json new.json --fail-over 10", 2),
        ("compare old.json new.json --json --format csv", 2),
        ("compare old.json new.json --html none/page.html", 1),
        ("compare", 2),
    ] {
        printed(&folder, words, code);
    }
}

#[test]
fn formats_have_every_row() {
    let folder = folder();
    let names = ["row 64", "row 128", "row 256", "row 512", "skipped"];
    for format in ["table", "markdown", "csv", "json"] {
        let text = printed(
            &folder,
            &format!("compare old.json new.json --format {format}"),
            0,
        );
        for name in names {
            assert!(text.contains(name), "no `{name}` as {format}: {text}");
        }
    }
    let csv = printed(&folder, "compare old.json new.json --format csv", 0);
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let head = reader.headers().unwrap().clone();
    let at = |name: &str| head.iter().position(|other| other == name).unwrap();
    let lines: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
    assert_eq!(lines.len(), 12);
    assert_eq!(&lines[8][at("workload")], HOSTILE);
    assert_eq!(lines[1][at("paced_ratio")].parse::<f64>().unwrap(), 1.5);
    assert_eq!(&lines[0][at("paced_ratio")], "");

    let json = printed(&folder, "compare old.json new.json --json", 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    let schema: Value = serde_json::from_str(&Comparison::schema().unwrap()).unwrap();
    schema::check(&schema, &json).unwrap();
    assert_eq!(json["rows"][0]["cells"][1]["ratios"]["time"]["ratio"], 1.5);

    let markdown = printed(&folder, "compare old.json new.json --format markdown", 0);
    let head = markdown
        .lines()
        .find(|line| line.starts_with("| workload"))
        .unwrap();
    let columns = head.matches('|').count();
    let rows = markdown.lines().filter(|line| line.starts_with('|'));
    // What a backslash stands before is text.
    let live = |text: &str| {
        let mut letters = text.chars();
        let mut live = String::new();
        while let Some(letter) = letters.next() {
            if letter == '\\' {
                letters.next();
            } else {
                live.push(letter);
            }
        }
        live
    };
    let bars = |line: &str| live(line).matches('|').count();
    assert!(rows.clone().filter(|line| bars(line) == columns).count() >= 7);
    let live = live(&markdown);
    for mark in ["<", ">", "`", "[", "!", "@", "*", "_", "&", "\n#", "\u{1b}"] {
        assert!(!live.contains(mark), "`{mark}` is alive: {markdown}");
    }
    let table = printed(&folder, "compare old.json new.json", 0);
    assert!(
        !table.contains(|c: char| c.is_control() && c != '\n'),
        "{table:?}"
    );
    assert!(!table.contains("\n# "), "{table}");
}

#[test]
fn the_page_is_one_file_that_loads_nothing() {
    let folder = folder();
    printed(&folder, "compare old.json new.json --html page.html", 0);
    let page = fs::read_to_string(folder.path().join("page.html")).unwrap();
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
    for load in ["http:", "https:", "src=", "@import", "url(", "xlink"] {
        assert!(!page.contains(load), "the page has `{load}`");
    }
    for href in page.split("href=").skip(1) {
        assert!(href.starts_with("\"data:"), "a link to {href:.40}");
    }
    // The page's own script is the only one, and what records say is text.
    assert_eq!(page.matches("<script").count(), 1);
    assert_eq!(page.matches("</script>").count(), 1);
    assert!(!page.contains("<b>|") && !page.contains("&<b>"));
    assert!(page.contains("&lt;/script&gt;&lt;script&gt;alert(1)"));
    // As many cells in each line, so that sorting finds them.
    let lines = page.split("<tr data-op=").skip(1);
    let lines = lines.filter_map(|line| line.split("</tr>").next());
    let cells: Vec<usize> = lines.map(|line| line.matches("<td").count()).collect();
    assert!(cells.iter().all(|count| *count == cells[0]), "{cells:?}");
    // Two lines for each of six rows.
    assert_eq!(page.matches("<tr data-op=").count(), 12);
    for name in ["row 64", "row 128", "row 256", "row 512", "skipped"] {
        assert!(page.contains(&format!("data-v=\"{name}\"")), "no {name}");
    }
    // Bars of two ops, a roofline for each device, a series and the errors.
    assert_eq!(page.matches("<figure>").count(), 6);
    assert!(page.contains("attention f32 [1, 2, n x n, 64]"));
}
