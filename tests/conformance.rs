//! The fixtures on every adapter of this machine, and the judgement itself.
//!
//! With FOVEATE_FIXTURES=DIR every case of that folder runs too, on the default adapter.
#![cfg(feature = "cli")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use common::say;
use foveate::{
    Error, Gpu, Schedule, Tuning,
    conformance::{Case, Device, Host, Listed, Status, Summary, carried, load, run, run_all},
};
use safetensors::tensor::TensorView;

/// Cases left out where each kernel takes llvmpipe seconds to compile: through GL, and for the
/// tile schedule on it. What they test there, head dims past 64, other cases test elsewhere.
const SLOW_TO_COMPILE: [&str; 3] = [
    "torch_sdpa/dv_differs_d80_dv16",
    "torch_sdpa/n19_d256",
    "torch_sdpa/n35_d96",
];

/// How cases begin that SwiftShader's compiler takes long for: the first two for ever, the others for seconds.
/// `docs/adapters.md` has what came of the whole set.
const SLOW_ON_SWIFTSHADER: [&str; 6] = [
    "light_dynamic_conv/dynamic",
    "lln/",
    "mossformer/n67",
    "fla_kda/init",
    "fla_simple_gla/init",
    "davit/channel_n67",
];

/// The software adapters that a development machine should have: what people call it, a part of
/// its name, and its backend. SwiftShader has a test of its own.
const SOFTWARE: [(&str, &str, &str); 2] = [
    ("lavapipe", "llvmpipe", "vulkan"),
    ("llvmpipe through GL", "llvmpipe", "gl"),
];

fn check(summary: &Summary, place: &str) {
    let bad: Vec<String> = summary
        .bad()
        .map(|verdict| {
            let reason = verdict.reason.as_deref().unwrap_or_default();
            format!("{}/{}: {reason}", verdict.family, verdict.case)
        })
        .collect();
    assert!(summary.is_good(), "{place}:\n{}", bad.join("\n"));
    say(format_args!(
        "{place}: {} cases passed",
        summary.count(Status::Passed)
    ));
}

#[test]
fn carried_cases_pass_on_every_adapter() {
    let cases = carried().expect("the carried cases can be read");
    let quick: Vec<Case> = cases
        .iter()
        .filter(|case| !SLOW_TO_COMPILE.contains(&case.path().as_str()))
        .cloned()
        .collect();
    let adapters = foveate::adapters();
    let mut skipped = 0;
    for (name, part, backend) in SOFTWARE {
        let here = adapters.iter().any(|adapter| {
            let info = adapter.get_info();
            info.name.contains(part) && info.backend.to_string() == backend
        });
        if !here {
            skipped += 1;
            say(format_args!(
                "skipped {name}: this machine has no such adapter"
            ));
        }
    }
    let mut ran = 0;
    for adapter in &adapters {
        let info = adapter.get_info();
        if info.backend == wgpu::Backend::Noop {
            continue;
        }
        let gpu = Gpu::on(adapter).expect("a device on every adapter");
        let place = format!("{} ({})", info.name, info.backend);
        let software = info.device_type == wgpu::DeviceType::Cpu;
        let few = software && gpu.engine().caps().subgroup.is_none();
        let chosen = if few { &quick } else { &cases };
        if few {
            say(format_args!("{place}: without {SLOW_TO_COMPILE:?}"));
        }
        let listed = Listed::carried();
        let summary = run_all(&gpu, chosen, &Tuning::default(), &listed, |_| {});
        check(&summary, &place);
        if gpu.engine().caps().fixed_subgroup().is_some() {
            // The schedule that was not chosen.
            let other = Tuning {
                schedule: Some(not_chosen(&gpu)),
                ..Tuning::default()
            };
            let summary = run_all(&gpu, &quick, &other, &listed, |_| {});
            check(&summary, &format!("{place}, {:?}", other.schedule));
        }
        ran += 1;
    }
    assert!(ran > 0, "no adapter: nothing was tested");
    say(format_args!("{ran} adapters tested, {skipped} skipped"));
}

/// The first case of each family that is none of these.
fn one_per_family(slow: &[&str]) -> Vec<Case> {
    let mut chosen: Vec<Case> = Vec::new();
    for case in carried().expect("the carried cases can be read") {
        let known = chosen.iter().any(|other| other.family == case.family);
        if !known && !slow.iter().any(|slow| case.path().starts_with(slow)) {
            chosen.push(case);
        }
    }
    chosen
}

/// A device with no features and the least limits of WebGPU: what runs there runs everywhere.
#[test]
fn a_case_of_each_family_passes_on_the_least_device() {
    let cases = one_per_family(&SLOW_TO_COMPILE);
    let adapters = foveate::adapters();
    let adapter = foveate::choose(&adapters, None).expect("an adapter");
    let none = wgpu::Features::empty();
    let gpu = Gpu::with(&adapter, none, wgpu::Limits::default(), None).expect("a device");
    let caps = gpu.engine().caps();
    assert_eq!((caps.subgroup, caps.f16), (None, false));
    assert_eq!(caps.max_storage_buffers, 8);
    assert_eq!(caps.workgroup_bytes, 16 << 10);
    assert_eq!(caps.max_binding_bytes, 128 << 20);
    let summary = run_all(&gpu, &cases, &Tuning::default(), &Listed::carried(), |_| {});
    check(&summary, "the least device");
}

/// The same plans through another WebGPU implementation, whose compiler of WGSL is not naga.
fn check_host(command: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(command);
    let host = match Host::start("node", [script]) {
        Ok(host) => host,
        Err(error @ Error::NoAdapter { .. }) => {
            say(format_args!("skipped {command}: {error} (1 skipped)"));
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let cases = one_per_family(&SLOW_ON_SWIFTSHADER);
    assert!(cases.len() > 40, "only {} cases", cases.len());
    let device = Device::Host(host);
    // What the runner promises of any device is what plans keep to.
    let budget = device.caps().loop_budget;
    assert_eq!(budget, foveate::caps::UNMEASURED_LOOP_BUDGET);
    let listed = Listed::carried();
    let summary = run_all(&device, &cases, &Tuning::QUICK_START, &listed, |_| {});
    check(&summary, &device.name());
}

#[test]
fn a_case_of_each_family_passes_on_dawn() {
    check_host("web/dawn.mjs");
}

#[test]
fn a_case_of_each_family_passes_in_chromium() {
    check_host("web/chromium.mjs");
}

#[test]
fn hosts_that_are_none_are_errors() {
    let start = |script: &str| Host::start("sh", ["-c", script]).expect_err("is no host");
    let error = Host::start("no-such-program-at-all", [""; 0]).expect_err("is no program");
    assert!(matches!(error, Error::NoAdapter { .. }), "{error}");
    let error = start("exit 77");
    assert!(matches!(error, Error::NoAdapter { .. }), "{error}");
    for (script, said) in [
        ("true", "ended"),
        ("echo text", "not an answer"),
        // Never reads, and never stops to write.
        ("yes", "not an answer"),
        ("echo '{\"error\": \"lost\"}'", "lost"),
        ("echo '{\"caps\": 1}'", "its caps"),
        ("echo 1", "its caps"),
    ] {
        match start(script) {
            Error::Device(message) => assert!(message.contains(said), "{message}"),
            other => panic!("{script}: {other:?}"),
        }
    }
    for command in ["", "'", "no-such-program-at-all"] {
        let output = Command::new(env!("CARGO_BIN_EXE_foveate"))
            .args(["verify", "--host", command])
            .output()
            .expect("the program starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && text.contains("program"),
            "{text}"
        );
    }
}

/// The attention schedule that this device would not choose itself.
fn not_chosen(gpu: &Gpu) -> Schedule {
    let layout = foveate::Layout::f32([1, 1, 64, 32]);
    let op = foveate::Attention::new(layout.clone(), layout.clone(), layout);
    let plan = gpu.engine().plan(&op.into()).expect("a plan");
    match plan.outline().schedule {
        Schedule::Subgroup => Schedule::Tile,
        _ => Schedule::Subgroup,
    }
}

/// SwiftShader shows itself only to processes that are told of it, so `foveate verify` is one.
#[test]
fn carried_onnx_cases_pass_on_swiftshader() {
    let driver = "/usr/lib/chromium/vk_swiftshader_icd.json";
    if !Path::new(driver).exists() {
        say(format_args!(
            "skipped SwiftShader: there is no {driver} (1 skipped)"
        ));
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_foveate"))
        .args(["--adapter", "SwiftShader", "verify"])
        .args(["--filter", "onnx_"])
        .env("VK_ICD_FILENAMES", driver)
        .output()
        .expect("the program starts");
    say(format_args!("{}", String::from_utf8_lossy(&output.stdout)));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_case_of_a_given_folder_passes() {
    let Some(folder) = std::env::var_os("FOVEATE_FIXTURES") else {
        say(format_args!(
            "skipped: FOVEATE_FIXTURES names no folder (1 skipped)"
        ));
        return;
    };
    let cases = load(Path::new(&folder)).expect("the folder of FOVEATE_FIXTURES");
    let gpu = Gpu::open(None).expect("an adapter");
    let summary = run_all(&gpu, &cases, &Tuning::default(), &Listed::carried(), |_| {});
    assert_eq!(summary.verdicts().len(), cases.len());
    check(&summary, &folder.to_string_lossy());
}

/// An empty folder of this name, for one test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("last run's folder goes");
    }
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn fixture(path: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fs::read(root.join(path)).expect("a fixture of this repository")
}

/// A folder with one case.
fn folder_with(name: &str, path: &str, bytes: &[u8]) -> PathBuf {
    let folder = folder(name);
    let file = folder.join(path);
    fs::create_dir_all(file.parent().expect("a family")).expect("a folder");
    fs::write(file, bytes).expect("a file");
    folder
}

fn verify(folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_foveate"))
        .args(["verify", "--json"])
        .arg(folder)
        .output()
        .expect("the program starts")
}

/// The one line that the program prints for a folder with one case, when the run is not good.
fn bad_line(folder: &Path) -> serde_json::Value {
    let output = verify(folder);
    assert_eq!(output.status.code(), Some(1));
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

#[test]
fn a_wrong_number_fails() {
    let line = bad_line(&wrong_case("wrong"));
    assert_eq!(line["status"], "failed");
    assert_eq!(line["family"], "onnx_attention");
    assert_eq!(line["case"], "changed");
    assert!(line["error"].as_f64().expect("an error") > 1.0);
    let reason = line["reason"].as_str().expect("a reason");
    assert!(reason.contains("1 of 192 numbers off"), "{reason}");
}

/// A case of this repository with its last expected number wrong.
fn with_wrong_number() -> Vec<u8> {
    let mut bytes = fixture("onnx_attention/test_attention_4d.safetensors");
    // The last number in the file is one of the expected output.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&1000f32.to_le_bytes());
    bytes
}

/// The same, alone in a folder.
fn wrong_case(name: &str) -> PathBuf {
    folder_with(
        name,
        "onnx_attention/changed.safetensors",
        &with_wrong_number(),
    )
}

#[test]
fn a_failure_is_told_to_a_reader_that_left() {
    let folder = wrong_case("reader-left");
    for args in [&["verify", "--json"][..], &["verify"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_foveate"))
            .args(args)
            .arg(&folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the program ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("no case passed"), "{args:?}: {stderr}");
    }
}

#[test]
fn a_wrong_mask_fails() {
    let path = "torch_flex/causal_n67_d40.safetensors";
    let bytes = fixture(path);
    let gpu = Gpu::open(None).expect("an adapter");
    let good = Case::parse("torch_flex", "causal_n67_d40", &bytes).expect("a case");
    let verdict = run(&gpu, &good, &Tuning::default());
    assert_eq!(verdict.status, Status::Passed, "{verdict:?}");
    // Booleans lie last in the file: the last one is whether the last query sees the last key.
    let mut changed = bytes;
    *changed.last_mut().expect("a file with bytes") ^= 1;
    let bad = Case::parse("torch_flex", "causal_n67_d40", &changed).expect("a case");
    let verdict = run(&gpu, &bad, &Tuning::default());
    assert_eq!(verdict.status, Status::Failed);
    let reason = verdict.reason.unwrap_or_default();
    let said = "allowed: 1 of 4489 pairs are seen and should not be, or the other way round";
    assert!(reason.contains(said), "{reason}");
    assert!(reason.contains("query 66, key 66"), "{reason}");
}

#[test]
fn what_the_list_does_not_know_is_told() {
    let bytes = fixture("onnx_attention/test_attention_4d.safetensors");
    let folder = folder_with("unlisted", "new_family/case.safetensors", &bytes);
    let line = bad_line(&folder);
    assert_eq!(line["status"], "unsupported");
    let reason = line["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("not listed"), "{reason}");
}

/// What comes of a case that a list has, with these bytes.
fn listed(bytes: &[u8]) -> foveate::conformance::Verdict {
    let gpu = Gpu::open(None).expect("an adapter");
    let case = Case::parse("onnx_attention", "listed", bytes).expect("a case");
    let list = Listed::parse("onnx_attention/listed # not yet");
    let summary = run_all(&gpu, &[case], &Tuning::default(), &list, |_| {});
    summary.verdicts()[0].clone()
}

#[test]
fn a_listed_case_that_passes_fails() {
    let verdict = listed(&fixture("onnx_attention/test_attention_4d.safetensors"));
    assert_eq!(verdict.status, Status::Failed);
    let reason = verdict.reason.expect("a reason");
    assert!(reason.contains("unsupported.txt"), "{reason}");
}

#[test]
fn a_listed_case_with_wrong_numbers_fails() {
    let verdict = listed(&with_wrong_number());
    assert_eq!(verdict.status, Status::Failed);
    let reason = verdict.reason.expect("a reason");
    assert!(reason.contains("1 of 192 numbers off"), "{reason}");
}

/// A case of PyTorch's FlexAttention with these parameters, and q, k and v of these shapes.
fn flex_case(name: &str, params: &str, shapes: [&[usize]; 3]) -> Case {
    let zeros = shapes.map(|shape| vec![0u8; shape.iter().product::<usize>() * 4]);
    let views = ["q", "k", "v"].into_iter().zip(shapes).zip(&zeros);
    let views = views.map(|((name, shape), bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes);
        (name, view.expect("bytes fit the shape"))
    });
    let texts = [
        ("params", params),
        ("roles", r#"{"inputs": ["q", "k", "v"], "expected": []}"#),
        ("tol", r#"{"rtol": 0}"#),
    ];
    let texts = texts.map(|(key, text)| (key.to_owned(), text.to_owned()));
    let bytes = safetensors::serialize(views, Some(texts.into())).expect("names differ");
    Case::parse("torch_flex", name, &bytes).expect("a case")
}

#[test]
fn cases_that_make_no_sense_are_refused_with_a_reason() {
    let gpu = Gpu::open(None).expect("an adapter");
    let small: &[usize] = &[1, 1, 4, 8];
    // Few numbers, and an output that memory does not hold.
    let long: &[usize] = &[1, 1, 1 << 20, 1];
    let empty: &[usize] = &[1 << 20, 1 << 20, 0, 1 << 20];
    for (name, params, [q, k, v], said) in [
        (
            "window_dilated2x4_causal",
            r#"{"window": 2, "dilation": 0}"#,
            [small; 3],
            "`dilation`",
        ),
        (
            "neighborhood2d",
            r#"{"width": 0, "radius": 1}"#,
            [small; 3],
            "`width`",
        ),
        (
            "neighborhood2d",
            r#"{"width": -3, "radius": 1}"#,
            [small; 3],
            "`width`",
        ),
        ("neighborhood2d", "[]", [small; 3], "`width`"),
        (
            "relative_distance",
            "{}",
            [&[4, 8], small, small],
            "q has not",
        ),
        (
            "relative_distance",
            "{}",
            [small, &[4, 8], small],
            "k has not",
        ),
        ("relative_distance", "{}", [empty, small, small], "q: shape"),
        (
            "relative_distance",
            "{}",
            [small, &[1, 1, 0, 8], small],
            "k: shape",
        ),
        (
            "noop",
            "{}",
            [long, small, &[1, 1, 1, 1 << 20]],
            "1048576, 1048576",
        ),
    ] {
        let case = flex_case(name, params, [q, k, v]);
        let verdict = run(&gpu, &case, &Tuning::default());
        assert_eq!(verdict.status, Status::Unsupported, "{verdict:?}");
        let reason = verdict.reason.unwrap_or_default();
        assert!(reason.contains(said), "{name} {params}: {reason}");
    }
}

#[test]
fn folders_and_files_that_cannot_be_read_are_errors() {
    let bytes = fixture("onnx_softmax/test_softmax_axis_2.safetensors");
    let half = &bytes[..bytes.len() / 2];
    let missing = folder("missing");
    fs::remove_dir(&missing).expect("the folder goes");
    for (folder, said) in [
        (folder("empty"), "holds no case"),
        (missing, "check the path"),
        (
            folder_with("file", "real/case.safetensors", half).join("real/case.safetensors"),
            "give the folder that holds it",
        ),
        (
            folder_with("truncated", "onnx_softmax/half.safetensors", half),
            "half.safetensors",
        ),
        (
            folder_with("nothing", "real/nothing.safetensors", &[]),
            "nothing.safetensors",
        ),
    ] {
        let output = verify(&folder);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(said) && !text.contains("panicked"), "{text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn remarks_stand_below_the_table() {
    let output = Command::new(env!("CARGO_BIN_EXE_foveate"))
        .args(["verify", "--filter", "torch_flex/grad_"])
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let line = "2 passed with the remark: backward: unsupported";
    assert!(text.lines().any(|other| other == line), "{text}");
}

#[test]
fn a_filter_that_matches_nothing_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_foveate"))
        .args(["verify", "--filter", "no such case"])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--filter"), "{text}");
}

#[test]
fn no_carried_case_is_listed_as_unsupported() {
    let cases = carried().expect("the carried cases can be read");
    let listed = Listed::carried();
    assert!(listed.names().all(|name| name.split('/').count() == 2));
    for case in &cases {
        assert!(listed.names().all(|name| name != case.path()));
    }
}
