//! Portable plans: complete, true to their shaders, and executed by the runner in JavaScript.
#![cfg(feature = "cli")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::say;
use foveate::{
    Attention, Caps, DType, Error, Layout, LinearAttention, Op, Schedule, Softmax, TopK, Tuning,
    caps::MatrixShape,
    plan::Outline,
    portable::{Access, BindingKind, FORMAT, PortablePlan, VERSION},
};

fn attention(dtype: DType) -> Op {
    let layout = Layout::new(dtype, [1, 4, 70, 32]);
    Attention::new(layout.clone(), layout.clone(), layout)
        .with_lse()
        .into()
}

/// A device with subgroups of 8 and f16.
fn rich() -> Caps {
    Caps {
        subgroup: Some((8, 8)),
        software: true,
        f16: true,
        ..Caps::minimum()
    }
}

fn portable(op: &Op, caps: &Caps) -> PortablePlan {
    let outline = Outline::new(op, caps, &Tuning::default()).expect("plans");
    outline.portable(caps).expect("is portable")
}

/// Ops of several families: one shader or many, with scratch, state in place, selections.
fn ops() -> Vec<Op> {
    let linear = Layout::f32([1, 2, 64, 16]);
    vec![
        attention(DType::F32),
        attention(DType::F16),
        Softmax::new(Layout::f32([3, 100_000]), 1).into(),
        Softmax::new(Layout::f32([3, 8]), 1).in_place().into(),
        LinearAttention::new(linear.clone(), linear.clone(), linear)
            .carried_state()
            .into(),
        TopK::new(Layout::f32([2, 200_000]), 5).into(),
    ]
}

#[test]
fn a_plan_says_all_that_a_host_needs() {
    for caps in [Caps::minimum(), rich()] {
        for op in ops() {
            if !caps.f16 && format!("{op:?}").contains("F16") {
                continue;
            }
            let plan = portable(&op, &caps);
            assert_eq!((plan.format.as_str(), plan.version), (FORMAT, VERSION));
            assert_eq!(plan.op, op);
            assert!(!plan.dispatches.is_empty());
            let tensors: BTreeMap<&str, u64> = plan
                .tensors
                .iter()
                .map(|tensor| (tensor.name.as_str(), tensor.bytes))
                .chain([("scratch", plan.scratch_bytes)])
                .collect();
            let mut written = Vec::new();
            for dispatch in &plan.dispatches {
                let shader = &plan.shaders[dispatch.shader];
                let storage = shader
                    .bindings
                    .iter()
                    .filter(|binding| binding.kind != BindingKind::Uniform);
                let wanted: Vec<u32> = storage.clone().map(|binding| binding.binding).collect();
                let bound: Vec<u32> = dispatch.bindings.iter().map(|b| b.binding).collect();
                assert_eq!(bound, wanted, "{}", shader.name);
                for (bound, binding) in dispatch.bindings.iter().zip(storage) {
                    let bytes = tensors[bound.tensor.as_str()];
                    assert!(bound.bytes > 0 && bound.offset + bound.bytes <= bytes);
                    let limits = plan.requires.limits;
                    assert!(bound.bytes <= limits.max_storage_buffer_binding_size);
                    let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
                    assert!(bound.offset.is_multiple_of(alignment));
                    if binding.kind == BindingKind::Storage {
                        written.push(bound.tensor.clone());
                    }
                }
            }
            for tensor in &plan.tensors {
                let writes = written.contains(&tensor.name);
                assert_eq!(
                    writes,
                    tensor.access != Access::Read,
                    "{} of {op:?}",
                    tensor.name
                );
            }
            let text = serde_json::to_string(&plan).expect("is JSON");
            let back: PortablePlan = serde_json::from_str(&text).expect("reads back");
            assert_eq!(back, plan);
        }
    }
}

#[test]
fn a_plan_asks_for_what_its_shaders_use_and_no_more() {
    let least = portable(&attention(DType::F32), &Caps::minimum());
    assert!(least.requires.features.is_empty());
    assert_eq!(least.requires.subgroup_size, None);
    assert!(least.requires.limits.max_compute_workgroup_storage_size <= 16 << 10);
    assert!(!least.shaders.iter().any(|s| s.wgsl.contains("enable")));

    let rich = portable(&attention(DType::F16), &rich());
    assert_eq!(rich.requires.features, ["shader-f16", "subgroups"]);
    assert_eq!(rich.requires.subgroup_size, Some(8));
    // Directives come before everything else, or WGSL refuses them.
    assert!(rich.shaders[0].wgsl.starts_with("enable subgroups;\n"));
    assert!(rich.shaders[0].wgsl.contains("enable f16;"));
}

#[test]
fn tensors_that_are_carried_on_are_read_and_written() {
    let accesses = |op: &Op| -> Vec<(String, Access)> {
        let plan = portable(op, &Caps::minimum());
        let tensors = plan.tensors.into_iter();
        tensors.map(|tensor| (tensor.name, tensor.access)).collect()
    };
    let [.., softmax, linear, _] = &ops()[..] else {
        unreachable!("there are as many ops")
    };
    assert_eq!(accesses(softmax), [("y".to_owned(), Access::ReadWrite)]);
    let linear = accesses(linear);
    assert!(linear.contains(&("final_state".into(), Access::ReadWrite)));
    assert!(linear.contains(&("o".into(), Access::Write)));
    assert!(linear.contains(&("q".into(), Access::Read)));
}

#[test]
fn matrices_are_refused_with_a_remedy() {
    let caps = Caps {
        matrices: vec![MatrixShape {
            side: 16,
            f16: true,
            emulated: false,
        }],
        subgroup: Some((32, 32)),
        workgroup_bytes: 48 << 10,
        ..rich()
    };
    let tuning = Tuning {
        schedule: Some(Schedule::Matrix),
        ..Tuning::default()
    };
    let outline = Outline::new(&attention(DType::F16), &caps, &tuning).expect("plans");
    let error = outline.portable(&caps).expect_err("is not portable");
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("another schedule"), "{error}");
}

fn foveate(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_foveate"))
        .args(args)
        .output()
        .expect("the program starts")
}

/// A file of this test run.
fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn export_takes_ops_caps_and_suites() {
    let op = place("portable-op.json");
    let output = foveate(&[
        "export",
        "--suite",
        "a",
        "--print-op",
        "--out",
        op.to_str().expect("a path"),
    ]);
    assert!(output.status.success());
    let caps = place("portable-caps.json");
    fs::write(&caps, serde_json::to_string(&rich()).expect("is JSON")).expect("a file");
    let output = foveate(&[
        "export",
        "--op",
        op.to_str().expect("a path"),
        "--caps",
        caps.to_str().expect("a path"),
    ]);
    let plan: PortablePlan = serde_json::from_slice(&output.stdout).expect("a plan");
    assert_eq!(plan.schedule, "subgroup");
    for (args, said) in [
        (&["export", "--op", "{"][..], "--print-op"),
        (&["export", "--op", "no-such-file.json"], "check the path"),
        (&["export", "--suite", "ab"], "one at a time"),
        (
            &["export", "--suite", "a", "--schedule", "matrix"],
            "matrices",
        ),
    ] {
        let output = foveate(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{args:?}");
        assert!(text.contains(said), "{args:?}: {text}");
    }
}

#[test]
fn the_runner_in_javascript_executes_plans() {
    let op: Op = Softmax::new(Layout::f32([4, 8]), 1).into();
    let plan = place("portable-softmax.json");
    let text = serde_json::to_string(&portable(&op, &Caps::minimum())).expect("is JSON");
    fs::write(&plan, text).expect("a file");
    let test = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/test.mjs");
    let node = Command::new("node")
        .arg("--test-reporter=tap")
        .arg(test)
        .env("PLAN", plan)
        .output();
    let output = match node {
        Ok(output) => output,
        Err(error) => {
            say(format_args!("skipped: node: {error} (1 skipped)"));
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        say(format_args!("skipped the runner: {errors} (1 skipped)"));
        return;
    }
    assert!(output.status.success(), "{text}{errors}");
    assert!(
        text.contains("# fail 0") && text.contains("# pass 7"),
        "{text}"
    );
}
