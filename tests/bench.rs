//! `foveate bench` and its records: what is written, whether the schema says so, and what cannot be run.
#![cfg(feature = "cli")]

mod schema;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use foveate::{
    bench::{Outcome, Record},
    compare::Comparison,
};
use serde_json::Value;
use tempfile::TempDir;

/// Set to write the schemas anew.
const WRITE: &str = "FOVEATE_WRITE_SCHEMAS";

const SHAPES: &str = r#"
[[workload]]
name = "attention"
op = "attention"
q_heads = 2
kv_heads = 1
q_len = 40
kv_len = 40
head_dim = 16
causal = "top_left"

[[workload]]
name = "state"
op = "linear_attention"
heads = 2
seq = 1
key_dim = 16
decay = "head"
state = true
normalised = true

[[workload]]
name = "half"
op = "softmax"
shape = [8, 64]
axis = 1
dtype = "f16"

[[workload]]
name = "best"
op = "top_k"
shape = [4, 100]
k = 3

[[workload]]
name = "merge"
op = "merge"
parts = 3
shape = [1, 2, 5, 16]

[[workload]]
name = "scan"
op = "scan"
shape = [2, 33, 8]

[[workload]]
name = "conv"
op = "short_conv"
shape = [2, 8, 33]
taps = 3

[[workload]]
name = "too large"
op = "softmax"
shape = [1, 99999999999]
axis = 1
"#;

fn foveate(folder: &TempDir, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_foveate"))
        .args(words)
        .current_dir(folder)
        .env_remove(foveate::ADAPTER_VARIABLE)
        .output()
        .unwrap()
}

/// Whether a file in docs/ is what the types give now.
fn is_current(file: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(file);
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, now).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == now,
        "docs/{file} is not what the types say; write it anew with: {WRITE}=1 cargo test --test bench schemas"
    );
}

#[test]
fn schemas_are_those_of_the_types() {
    is_current("bench-record.schema.json", &Record::schema().unwrap());
    is_current("comparison.schema.json", &Comparison::schema().unwrap());
}

#[test]
fn a_record_follows_the_schema() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("shapes.toml"), SHAPES).unwrap();
    let words = "bench --shapes shapes.toml --runs 2 --out a.json --json";
    let output = foveate(&folder, &words.split(' ').collect::<Vec<_>>());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");

    let text = fs::read_to_string(folder.path().join("a.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        json,
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    );
    let schema: Value = serde_json::from_str(&Record::schema().unwrap()).unwrap();
    schema::check(&schema, &json).unwrap();
    for (field, value) in [("bound", "luck".into()), ("err_limit", Value::Null)] {
        let mut wrong = json.clone();
        wrong["devices"][0]["rows"][0][field] = value;
        let error = schema::check(&schema, &wrong).unwrap_err();
        assert!(error.contains(field), "{error}");
    }

    let record = Record::parse(&text).unwrap();
    assert_eq!(record.suite, "shapes.toml");
    let [device] = record.devices.as_slice() else {
        panic!("one device, not {}", record.devices.len());
    };
    let ceilings = device.ceilings.unwrap();
    for rate in [
        ceilings.fma_gflops,
        ceilings.read_gbps,
        ceilings.copy_gbps,
        ceilings.upload_gbps,
        ceilings.readback_gbps,
    ] {
        assert!(rate > 0.0, "{ceilings:?}");
    }
    let rows = device.rows.iter();
    let names: Vec<&str> = rows.clone().map(|row| row.workload.as_str()).collect();
    let expected = [
        "attention",
        "state",
        "half",
        "best",
        "merge",
        "scan",
        "conv",
        "too large",
    ];
    assert_eq!(names, expected);
    for row in rows {
        match &row.outcome {
            Outcome::Measured(measured) => {
                assert!(measured.right, "{row:?}");
                assert!(measured.samples.len() >= 2, "{row:?}");
                assert!(measured.share.median > 0.0, "{row:?}");
                assert!(measured.samples.iter().all(|run| run.pace_read_gbps > 0.0));
                assert_eq!(measured.sets, 2, "{row:?}");
            }
            Outcome::Skipped { reason } => {
                let lacks_f16 = row.workload == "half" && !device.adapter.f16;
                assert!(row.workload == "too large" || lacks_f16, "{reason}");
            }
            Outcome::Failed { reason } => panic!("{}: {reason}", row.workload),
        }
    }
    let too_large = &device.rows.last().unwrap().outcome;
    assert!(
        matches!(too_large, Outcome::Skipped { .. }),
        "{too_large:?}"
    );

    // What it says of the machine names no host.
    if let Ok(host) = fs::read_to_string("/etc/hostname")
        && host.trim().len() > 3
    {
        assert!(!text.contains(host.trim()));
    }
}

#[test]
fn every_adapter_takes_its_turn() {
    let folder = TempDir::new().unwrap();
    let shape = SHAPES.split("\n\n").next().unwrap();
    fs::write(folder.path().join("shapes.toml"), shape).unwrap();
    let words = "bench --adapter all --shapes shapes.toml --runs 1 --out all.json";
    let output = foveate(&folder, &words.split(' ').collect::<Vec<_>>());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let record = Record::read(&folder.path().join("all.json")).unwrap();
    let ran: Vec<String> = record
        .devices
        .into_iter()
        .map(|device| device.adapter.name)
        .collect();
    let there = foveate::adapters();
    let there: Vec<String> = there
        .iter()
        .map(|adapter| adapter.get_info().name)
        .collect();
    assert_eq!(ran, there);
}

#[test]
fn what_is_no_record_is_refused_with_a_remedy() {
    let refused = |text: &str| Record::parse(text).unwrap_err().to_string();
    for (text, parts) in [
        ("{}", &["foveate-bench", "foveate bench --out"][..]),
        (
            "{\"kind\":\"row\"}\n{\"kind\":\"row\"}",
            &["JSON", "foveate bench --out"],
        ),
        (
            r#"{"format":"foveate-bench","version":2}"#,
            &["version 2", "reads version 1"],
        ),
        (r#"{"format":"foveate-bench"}"#, &["no version"]),
        (
            r#"{"format":"foveate-bench","version":1}"#,
            &["schema.json", "missing field"],
        ),
    ] {
        let error = refused(text);
        for part in parts {
            assert!(error.contains(part), "no `{part}` in {error}");
        }
    }
}

#[test]
fn arguments_are_checked_before_anything_is_timed() {
    let folder = TempDir::new().unwrap();
    for (words, code, part) in [
        ("bench --suite quickly", 2, "give quick, full, or letters"),
        ("bench --out none/a.json", 1, "--out"),
        (
            "bench --adapter nowhere",
            1,
            "name, vendor, driver or backend",
        ),
        ("bench --runs 0", 2, "--runs"),
    ] {
        let output = foveate(&folder, &words.split(' ').collect::<Vec<_>>());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words}: {errors}");
        assert!(errors.contains(part), "no `{part}` in {errors}");
    }
}
