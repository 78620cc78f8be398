//! The demo as a user runs it: the built program, its figures and its page.
#![cfg(feature = "cli")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;

/// A folder of the test's own, removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("demo-{name}"));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Figures of one run would suffer from another at the same time.
static ALONE: Mutex<()> = Mutex::new(());

fn demo(folder: &Folder, arguments: &[&str]) -> Output {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Command::new(env!("CARGO_BIN_EXE_foveate"))
        .arg("demo")
        .args(arguments)
        .current_dir(&folder.0)
        .env_remove("FOVEATE_ADAPTER")
        .output()
        .unwrap()
}

fn numbers(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The JSON in the page's data element.
fn data(page: &str) -> Value {
    let (_, rest) = page
        .split_once("<script id=\"data\" type=\"application/json\">")
        .unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

#[test]
fn every_adapter_computes_the_encoder_right() {
    let folder = Folder::new("all");
    let output = demo(&folder, &["--json", "--html", "page.html"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");

    let rows = numbers(&output);
    let adapters: Vec<String> = foveate::adapters()
        .iter()
        .map(|adapter| adapter.get_info().name)
        .collect();
    let ran: Vec<&str> = rows
        .iter()
        .map(|row| row["adapter"].as_str().unwrap())
        .collect();
    assert!(!ran.is_empty());
    assert_eq!(ran, adapters);
    for row in &rows {
        assert_eq!(row["reason"], Value::Null, "{row}");
        assert!(row["schedule"].is_string(), "{row}");
        let layers = row["errors"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        for layer in layers {
            for name in ["o", "lse", "stored_o", "stored_lse", "weights", "row_sum"] {
                let error = layer[name].as_f64().unwrap();
                assert!(error <= 2e-5, "{name} {error} in {row}");
            }
        }
        let share = row["share"].as_f64().unwrap();
        assert!(share > 0.0 && share <= 1.5, "share {share} in {row}");
        assert!(row["wall_ms"]["median"].as_f64().unwrap() > 0.0);
        assert!(row["gpu_ms"]["median"].as_f64().unwrap() > 0.0);
        assert!(row["ceilings"]["fma_gflops"].as_f64().unwrap() > 0.0);
        assert!(row["ceilings"]["read_gbps"].as_f64().unwrap() > 0.0);
    }

    let page = std::fs::read_to_string(folder.0.join("page.html")).unwrap();
    for load in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(load), "the page has `{load}`");
    }
    for href in page.split("href=").skip(1) {
        assert!(href.starts_with("\"data:"), "a link to {:.40}", href);
    }
    let data = data(&page);
    assert_eq!(data["adapters"], Value::Array(rows));
    let tokens = [(0, 79, "neighbourhood"), (1, 50, "alice")];
    for (passage, count, word) in tokens {
        let list = data["passages"][passage].as_array().unwrap();
        assert_eq!(list.len(), count);
        assert!(list.contains(&Value::from(word)), "no {word}");
    }
    // Two layers, two passages, four heads.
    let maps = data["maps"].as_array().unwrap();
    assert_eq!(maps.len(), 16);
    let unit = data["unit"].as_f64().unwrap();
    for map in maps {
        let passage = map["passage"].as_u64().unwrap() as usize;
        let rows = map["weights"].as_array().unwrap();
        assert_eq!(rows.len(), tokens[passage].1);
        for row in rows {
            let row = row.as_array().unwrap();
            assert_eq!(row.len(), tokens[passage].1);
            let sum: f64 = row.iter().map(|w| w.as_f64().unwrap() * unit).sum();
            assert!((sum - 1.0).abs() < 1e-3, "a row sums to {sum}");
        }
    }
    // Head 2 of the first layer is known to look at the token before.
    let before = maps
        .iter()
        .find(|map| map["layer"] == 0 && map["passage"] == 0 && map["head"] == 2)
        .unwrap();
    assert!(before["weights"][10][9].as_f64().unwrap() * unit > 0.9);
}

#[test]
fn one_adapter_layer_and_head_can_be_chosen() {
    let folder = Folder::new("one");
    let output = demo(
        &folder,
        &["--adapter", "0", "--layer", "5", "--heads", "3,3"],
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("Of peak"), "{table}");

    let page = std::fs::read_to_string(folder.0.join("foveate-demo.html")).unwrap();
    let data = data(&page);
    assert_eq!(data["layers"], serde_json::json!([5]));
    assert_eq!(data["heads"], serde_json::json!([3]));
    assert_eq!(data["adapters"].as_array().unwrap().len(), 1);
    assert_eq!(data["maps"].as_array().unwrap().len(), 2);
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let folder = Folder::new("refused");
    for (arguments, code, reason) in [
        (&["--heads", "12"][..], 2, "12"),
        (&["--layer", "3"], 2, "possible values: 0, 5, both"),
        (&["--adapter", "no such adapter"], 1, "no such adapter"),
    ] {
        let output = demo(&folder, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(errors.contains(reason), "{errors}");
        assert!(!folder.0.join("foveate-demo.html").exists());
    }
    let output = demo(&folder, &["--adapter", "0", "--html", "missing/page.html"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("missing/page.html") && errors.contains("--html"),
        "{errors}"
    );
}

#[test]
fn the_variable_chooses_an_adapter() {
    let folder = Folder::new("variable");
    let output = Command::new(env!("CARGO_BIN_EXE_foveate"))
        .arg("demo")
        .current_dir(&folder.0)
        .env("FOVEATE_ADAPTER", "no such adapter")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("`no such adapter`"), "{errors}");
}

#[test]
fn no_adapter_is_an_error() {
    let folder = Folder::new("none");
    let output = Command::new(env!("CARGO_BIN_EXE_foveate"))
        .arg("demo")
        .current_dir(&folder.0)
        .env_remove("FOVEATE_ADAPTER")
        .env("WGPU_BACKEND", "noop")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no adapter"), "{errors}");
}
