//! The demo page: its plans are what foveate makes of their ops now, and it works in a browser.

mod common;

use std::{fs, path::Path};

use foveate::{Caps, Op, Tuning, plan::Outline};

#[test]
fn committed_plans_are_what_is_exported_now() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/web");
    for name in ["attention", "weights"] {
        let read = |kind: &str| {
            let path = folder.join(kind).join(format!("{name}.json"));
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let op: Op = serde_json::from_str(&read("ops")).unwrap();
        let caps = Caps::minimum();
        let plan = Outline::new(&op, &caps, &Tuning::default())
            .and_then(|outline| outline.portable(&caps))
            .unwrap();
        let made = serde_json::to_string_pretty(&plan).unwrap();
        assert!(
            read("plans").trim_end() == made,
            "examples/web/plans/{name}.json is of another foveate: its README says how to make it again"
        );
    }
}

#[test]
fn the_page_works_in_a_browser() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/web/test.mjs");
    let output = match std::process::Command::new("node").arg(script).output() {
        Ok(output) => output,
        Err(error) => {
            common::say(format_args!("skipped the page: node: {error} (1 skipped)"));
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        common::say(format_args!("skipped the page: {text}{errors} (1 skipped)"));
        return;
    }
    assert!(output.status.success(), "{text}{errors}");
    assert!(!text.contains("FAILED") && text.contains("ok "), "{text}");
}
