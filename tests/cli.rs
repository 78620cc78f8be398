//! The program on real files: what it computes, what it prints, how it ends.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use foveate::{
    Causal, Decay, FeatureMap, Layout, LinearAttention, UpdateRule,
    reference::{self, AttentionInputs, LinearAttentionInputs, RotaryInputs},
};
use half::{bf16, f16};
use npyz::WriterBuilder;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// How a run of the program ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the program starts");
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("messages are UTF-8"),
        }
    }

    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    #[track_caller]
    fn failed(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "no `{part}` in {self:#?}");
        }
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_foveate"))
}

/// `info`, with this in the variable that chooses an adapter.
fn info(args: &[&str], choice: Option<&str>) -> Ended {
    let mut program = program();
    program.arg("info").args(args);
    program.env_remove(foveate::ADAPTER_VARIABLE);
    Ended::of(program.envs(choice.map(|choice| (foveate::ADAPTER_VARIABLE, choice))))
}

/// A folder of its own for each test, in which the program runs.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{test}"));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the folder can be made");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs `foveate` with these words.
    fn foveate(&self, words: &str) -> Ended {
        self.foveate_args(&words.split_whitespace().collect::<Vec<_>>())
    }

    fn foveate_args(&self, args: &[&str]) -> Ended {
        Ended::of(program().args(args).current_dir(&self.0))
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("the file can be written");
    }

    fn write_npy<T: npyz::AutoSerialize + Copy>(&self, name: &str, shape: &[u64], data: &[T]) {
        let mut bytes = Vec::new();
        let mut writer = npyz::WriteOptions::new()
            .default_dtype()
            .shape(shape)
            .writer(&mut bytes)
            .begin_nd()
            .expect("the header is right");
        writer.extend(data.iter().copied()).expect("it fits");
        writer.finish().expect("it is whole");
        self.write(name, bytes);
    }

    fn write_safetensors(&self, name: &str, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.to_vec(), bytes).expect("bytes fit the shape");
            (*name, view)
        });
        self.write(
            name,
            safetensors::serialize(views, None).expect("names differ"),
        );
    }

    fn read_npy<T: npyz::Deserialize>(&self, name: &str) -> (Vec<u64>, Vec<T>) {
        let bytes = fs::read(self.path(name)).expect("the file is there");
        let file = npyz::NpyFile::new(&bytes[..]).expect("it is a .npy file");
        let shape = file.shape().to_vec();
        (shape, file.into_vec().expect("it has the type asked for"))
    }

    fn read_safetensors(&self, name: &str) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<f32>)> {
        let bytes = fs::read(self.path(name)).expect("the file is there");
        let file = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
        let read = |(name, view): (String, TensorView<'_>)| {
            let data: Vec<f32> = match view.dtype() {
                Dtype::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(view.data())
                    .into_iter()
                    .map(f16::to_f32)
                    .collect(),
                _ => bytemuck::pod_collect_to_vec(view.data()),
            };
            (name, (view.dtype(), view.shape().to_vec(), data))
        };
        file.tensors().into_iter().map(read).collect()
    }
}

fn wave(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|i| 2.0 * (i as f32 * step).sin()).collect()
}

fn bytes<T: bytemuck::Pod>(data: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(data).to_vec()
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().copied().map(f64::from).collect()
}

/// `[batch, a, b, dim]` in the order `[batch, b, a, dim]`.
fn exchange(data: &[f32], [batch, a, b, dim]: [usize; 4]) -> Vec<f32> {
    let mut out = Vec::with_capacity(data.len());
    for n in 0..batch {
        for j in 0..b {
            for i in 0..a {
                out.extend_from_slice(&data[((n * a + i) * b + j) * dim..][..dim]);
            }
        }
    }
    out
}

#[track_caller]
fn assert_close(x: &[f32], want: &[f64], tolerance: f64) {
    let error = reference::error(x, want);
    assert!(error < tolerance, "error {error:e}");
}

#[test]
fn info_lists_an_adapter() {
    let text = info(&[], None).succeeded().stdout;
    let json = info(&["--json"], None).succeeded().json();
    let list = json.as_array().expect("a list of adapters");
    assert!(!list.is_empty(), "no adapter: install Mesa's lavapipe");
    for (number, adapter) in list.iter().enumerate() {
        assert_eq!(adapter["number"], number);
        assert!(adapter["error"].is_null());
        assert!(adapter["measured"]["loop_budget"].as_u64() >= Some(1));
        assert!(adapter["max_binding_bytes"].as_u64() >= Some(128 << 20));
        assert!(adapter["vendor"].is_string() || adapter["vendor"].is_null());
        let name = adapter["name"].as_str().expect("a name");
        assert!(
            text.contains(name.split(' ').next().unwrap_or(name)),
            "{text}"
        );
    }
    let one = info(&["--json", "--adapter", "0"], Some("nowhere"));
    let one = one.succeeded().json();
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    assert_eq!(one[0]["name"], list[0]["name"]);

    let last = list.len() - 1;
    let one = info(&["--json"], Some(&last.to_string()));
    let one = one.succeeded().json();
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    assert_eq!(one[0]["number"], last);
    info(&[], Some("nowhere")).failed(1, &["nowhere", "none of these: 0:"]);
}

#[test]
fn attention_of_a_safetensors_file() {
    let folder = Folder::new("attention-safetensors");
    let (batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_dim) = (2, 4, 2, 9, 13, 40, 24);
    let q = wave(batch * q_heads * q_len * head_dim, 0.37);
    let k = wave(batch * kv_heads * kv_len * head_dim, 0.53);
    let v = wave(batch * kv_heads * kv_len * value_dim, 0.71);
    let bias = wave(q_heads * q_len * kv_len, 0.11);
    let mask: Vec<bool> = (0..q_len * kv_len).map(|i| i % 7 != 3).collect();
    folder.write_safetensors(
        "in.safetensors",
        &[
            (
                "q",
                Dtype::F32,
                &[batch, q_heads, q_len, head_dim],
                bytes(&q),
            ),
            (
                "k",
                Dtype::F32,
                &[batch, kv_heads, kv_len, head_dim],
                bytes(&k),
            ),
            (
                "v",
                Dtype::F32,
                &[batch, kv_heads, kv_len, value_dim],
                bytes(&v),
            ),
            (
                "bias",
                Dtype::F32,
                &[1, q_heads, q_len, kv_len],
                bytes(&bias),
            ),
            (
                "mask",
                Dtype::BOOL,
                &[q_len, kv_len],
                mask.iter().map(|&m| m.into()).collect(),
            ),
            ("kv_len", Dtype::I64, &[batch], bytes(&[13i64, 5])),
            ("spare", Dtype::F32, &[1], bytes(&[0.0f32])),
        ],
    );
    let want = reference::attention(&AttentionInputs {
        batch,
        q_heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim,
        value_dim,
        q: &wide(&q),
        k: &wide(&k),
        v: &wide(&v),
        mask: Some(&mask.repeat(batch * q_heads)),
        bias: Some(&wide(&bias).repeat(batch)),
        lens: Some(&[13, 5]),
        scale: 0.25,
        causal: Causal::BottomRight,
        ..Default::default()
    });
    for schedule in ["", "--schedule tile"] {
        let ended = folder
            .foveate(&format!(
                "run attention --in in.safetensors --out out.safetensors --causal bottom-right \
                 --scale 0.25 --lse --explain {schedule}"
            ))
            .succeeded();
        assert!(ended.stderr.contains("not used: spare"), "{ended:#?}");
        assert!(ended.stdout.contains("1 split"), "{ended:#?}");
        let out = folder.read_safetensors("out.safetensors");
        assert_eq!(out.len(), 2);
        assert_eq!(out["o"].1, [batch, q_heads, q_len, value_dim]);
        assert_eq!(out["lse"].1, [batch, q_heads, q_len]);
        assert_close(&out["o"].2, &want.o, 1e-5);
        assert_close(&out["lse"].2, &want.lse, 1e-5);
    }
}

#[test]
fn weights_of_files() {
    let folder = Folder::new("weights");
    let [heads, seq, dim] = [2, 9, 8];
    let shape = [1, heads, seq, dim].map(|len| len as u64);
    let [q, k] = [0.37, 0.53].map(|step| wave(heads * seq * dim, step));
    for (name, data) in [("q", &q), ("k", &k), ("v", &k)] {
        folder.write_npy(&format!("{name}.npy"), &shape, data);
    }
    folder
        .foveate("run attention --in q.npy k.npy v.npy --out o.safetensors --lse --causal top-left")
        .succeeded();
    let out = "--in q.npy k.npy --tensor lse=o.safetensors --causal top-left --out out.safetensors";
    folder
        .foveate(&format!("run weights matrix --heads 1..2 {out}"))
        .succeeded();
    let rows = folder.read_safetensors("out.safetensors")["out"].clone();
    assert_eq!(rows.1, [1, 1, seq, seq]);
    for (query, row) in rows.2.chunks(seq).enumerate() {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(row[query + 1..].iter().all(|&w| w == 0.0));
    }
    folder
        .foveate(&format!("run weights top --count 2 {out}"))
        .succeeded();
    let top = folder.read_safetensors("out.safetensors");
    assert_eq!(top["out"].1, [1, heads, seq, 2]);
    assert_eq!((top["keys"].0, &top["keys"].1), (Dtype::U32, &top["out"].1));
    // Of the last query of head 1.
    let at = top["out"].2.len() - 2;
    let key = top["keys"].2[at].to_bits() as usize;
    assert_eq!(rows.2[rows.2.len() - seq..][key], top["out"].2[at]);
    let json = r#"{"weights": {"statistic": "largest-score", "causal": "top_left"}}"#;
    folder
        .foveate_args(&[
            "run", "--op", json, "--in", "q.npy", "k.npy", "--out", "s.npy",
        ])
        .succeeded();
    assert_eq!(
        folder.read_npy::<f32>("s.npy").0,
        [1, heads as u64, seq as u64]
    );

    let weights = |rest: &str| folder.foveate(&format!("run weights {rest}"));
    weights("mass --in q.npy k.npy --out out.npy").failed(2, &["lse:", "is missing"]);
    weights("top --in q.npy k.npy --out out.npy").failed(2, &["out and keys"]);
    weights("matrix --stage final --heads 0 --in q.npy k.npy --out out.npy").failed(2, &["A..B"]);
    weights("matrix --stage final --heads 1..4 --in q.npy k.npy --out out.npy")
        .failed(2, &["heads 1..4 of 2"]);
}

/// A window, sinks, and WGSL with a buffer.
#[test]
fn attention_with_terms_and_wgsl() {
    let folder = Folder::new("attention-terms");
    let (heads, len, dim) = (2usize, 21usize, 8usize);
    let [q, k, v] = [0.37, 0.53, 0.71].map(|step| wave(heads * len * dim, step));
    let shape = [1, heads, len, dim];
    let (sinks, slopes) = ([0.5f32, -1.0], [0.25f32, 0.125]);
    folder.write_safetensors(
        "in.safetensors",
        &[
            ("q", Dtype::F32, &shape[..], bytes(&q)),
            ("k", Dtype::F32, &shape[..], bytes(&k)),
            ("v", Dtype::F32, &shape[..], bytes(&v)),
            ("sinks", Dtype::F32, &shape[1..2], bytes(&sinks)),
            ("buffer_0", Dtype::F32, &shape[1..2], bytes(&slopes)),
        ],
    );
    let hook =
        "fn score_mod(score: f32, batch: u32, head: u32, q_index: u32, kv_index: u32) -> f32";
    folder.write(
        "alibi.wgsl",
        format!("{hook} {{ return score + slopes(head) * (f32(kv_index) - f32(q_index)); }}"),
    );
    folder.write("wrong.wgsl", format!("{hook} {{\n    return scores;\n}}"));
    let run = |rest: &str| {
        folder.foveate(&format!(
            "run attention --in in.safetensors --out out.safetensors --causal top-left --left 5 --first 2 {rest}"
        ))
    };
    run("--mod alibi.wgsl:slopes").succeeded();
    let want = reference::attention(&AttentionInputs {
        batch: 1,
        q_heads: heads,
        kv_heads: heads,
        q_len: len,
        kv_len: len,
        head_dim: dim,
        value_dim: dim,
        q: &wide(&q),
        k: &wide(&k),
        v: &wide(&v),
        sinks: Some(&wide(&sinks)),
        score: Some(&|score, [_, h, i, j]| score + f64::from(slopes[h]) * (j as f64 - i as f64)),
        window: Some(foveate::Window {
            left: Some(5),
            first: 2,
            ..Default::default()
        }),
        scale: 1.0 / (dim as f64).sqrt(),
        causal: Causal::TopLeft,
        ..Default::default()
    });
    let out = folder.read_safetensors("out.safetensors");
    assert_close(&out["o"].2, &want.o, 1e-5);
    // The place in the caller's own text.
    run("--mod wrong.wgsl:slopes").failed(2, &["scores", "2"]);
    run("--mod alibi.wgsl:slopes,more").failed(2, &["buffer_1"]);
    run("").failed(2, &["buffer_0", "--mod"]);
    run("--mod nowhere.wgsl").failed(1, &["nowhere.wgsl"]);
}

/// `[batch, seq, heads, dim]` in and out, in .npy files, the op in JSON; also with one head, where
/// strides alone do not tell the order.
#[test]
fn attention_of_npy_files_with_heads_inside() {
    let folder = Folder::new("attention-npy");
    folder.write(
        "op.json",
        r#"{"attention": {"causal": "top_left", "layout": "bshd"}}"#,
    );
    for (heads, schedule) in [(1usize, ""), (3, "--schedule tile")] {
        let [batch, seq, dim] = [2, 17, 32];
        let shape = [batch, seq, heads, dim];
        let [q, k, v] = [0.37, 0.53, 0.71].map(|step| wave(shape.iter().product(), step));
        for (name, data) in [("q", &q), ("keys", &k), ("v", &v)] {
            folder.write_npy(&format!("{name}.npy"), &shape.map(|len| len as u64), data);
        }
        let json = folder
            .foveate(&format!(
                "run --json --op @op.json --in q.npy v.npy --tensor k=keys.npy --out o.npy \
                 --time 3 {schedule}"
            ))
            .succeeded()
            .json();
        if !schedule.is_empty() {
            assert_eq!(json["schedule"], "tile");
        }
        assert_eq!(json["outputs"][0]["name"], "o");
        assert_eq!(json["timing"]["wall"]["runs"], 3);
        assert!(json["gflops"].as_f64() > Some(0.0));
        let (out_shape, o) = folder.read_npy::<f32>("o.npy");
        assert_eq!(out_shape, shape.map(|len| len as u64));
        let [q, k, v] = [q, k, v].map(|data| wide(&exchange(&data, shape)));
        let want = reference::attention(&AttentionInputs {
            batch,
            q_heads: heads,
            kv_heads: heads,
            q_len: seq,
            kv_len: seq,
            head_dim: dim,
            value_dim: dim,
            q: &q,
            k: &k,
            v: &v,
            scale: 1.0 / (dim as f64).sqrt(),
            causal: Causal::TopLeft,
            ..Default::default()
        });
        assert_close(&exchange(&o, shape), &want.o, 1e-5);
    }
}

#[test]
fn softmax_of_both_formats() {
    let folder = Folder::new("softmax");
    let shape = [5usize, 7, 3];
    let x = wave(shape.iter().product(), 0.9);
    folder.write_npy("logits.npy", &shape.map(|len| len as u64), &x);
    folder.write_safetensors("x.safetensors", &[("x", Dtype::F32, &shape, bytes(&x))]);
    let x = wide(&x);

    folder
        .foveate("run softmax --in logits.npy --out y.npy")
        .succeeded();
    let (out_shape, y) = folder.read_npy::<f32>("y.npy");
    assert_eq!(out_shape, shape.map(|len| len as u64));
    assert_close(&y, &reference::softmax(&x, &shape, 2, 1.0, false), 1e-5);

    folder
        .foveate("run softmax --in x.safetensors --out y.safetensors --axis 1 --log --scale -1.5")
        .succeeded();
    let (dtype, out_shape, y) = &folder.read_safetensors("y.safetensors")["y"];
    assert_eq!((*dtype, &out_shape[..]), (Dtype::F32, &shape[..]));
    assert_close(y, &reference::softmax(&x, &shape, 1, -1.5, true), 1e-5);

    let op = r#"{"softmax": {"axis": 0, "scale": 2}}"#;
    folder
        .foveate_args(&["run", "--op", op, "--in", "logits.npy", "--out", "z.npy"])
        .succeeded();
    let (_, z) = folder.read_npy::<f32>("z.npy");
    assert_close(&z, &reference::softmax(&x, &shape, 0, 2.0, false), 1e-5);
}

/// `[batch, seq, heads, dim]` and positions in files; the op in words and in JSON.
#[test]
fn rotary_of_files() {
    let folder = Folder::new("rotary");
    let [batch, seq, heads, dim] = [2usize, 5, 3, 16];
    let shape = [batch, seq, heads, dim];
    let x = wave(shape.iter().product(), 0.9);
    let (cos, sin) = foveate::rotary_tables(0..20, 8, 10_000.0).expect("tables");
    let positions = [3i64, 0, 19, 7, 7, 1, 2, 3, 4, 5];
    folder.write_npy("x.npy", &shape.map(|len| len as u64), &x);
    folder.write_npy("cos.npy", &[20, 4], &cos);
    folder.write_npy("sin.npy", &[20, 4], &sin);
    folder.write_npy("positions.npy", &[2, 5], &positions);
    let (x, cos, sin) = (wide(&exchange(&x, shape)), wide(&cos), wide(&sin));
    let check = |file: &str, interleaved, rows: &[usize]| {
        let (out_shape, y) = folder.read_npy::<f32>(file);
        assert_eq!(out_shape, shape.map(|len| len as u64));
        let want = reference::rotary(&RotaryInputs {
            batch,
            heads,
            seq,
            head_dim: dim,
            rotary_dim: 8,
            interleaved,
            inverse: false,
            x: &x,
            cos: &cos,
            sin: &sin,
            rows,
        });
        assert_close(&exchange(&y, shape), &want, 1e-5);
    };

    let named = "run rotary --layout bshd --rotary-dim 8 --in x.npy cos.npy sin.npy";
    folder
        .foveate(&format!("{named} --offset 15 --interleaved --out y.npy"))
        .succeeded();
    let counted: Vec<usize> = (0..2).flat_map(|_| 15..20).collect();
    check("y.npy", true, &counted);

    let op = r#"{"rotary": {"layout": "bshd", "rotary_dim": 8}}"#;
    let files = ["x.npy", "cos.npy", "sin.npy", "positions.npy"];
    let mut words = vec!["run", "--op", op, "--out", "z.npy", "--in"];
    words.extend(files);
    folder.foveate_args(&words).succeeded();
    check("z.npy", false, &positions.map(|position| position as usize));

    folder
        .foveate(&format!("{named} --offset 16 --out w.npy"))
        .failed(2, &["cos", "20 positions", "the last token is at 20"]);
    folder
        .foveate("run rotary --in x.npy cos.npy --out w.npy")
        .failed(2, &["sin", "--tensor sin=FILE"]);
    folder.write_npy("positions.npy", &[1, 5], &[0i64, 1, -1, 2, 3]);
    folder
        .foveate(&format!("{named} positions.npy --out w.npy"))
        .failed(2, &["positions", "-1", "4294967295"]);
}

#[test]
fn linear_attention_carries_its_state_from_file_to_file() {
    let folder = Folder::new("linear");
    let (heads, seq, key_dim, value_dim) = (2usize, 6, 8, 4);
    let q = wave(heads * seq * key_dim, 0.7);
    let k: Vec<f32> = wave(heads * seq * key_dim, 1.1)
        .iter()
        .map(|x| x / 6.0)
        .collect();
    let v = wave(heads * seq * value_dim, 1.3);
    let decay: Vec<f32> = (0..heads * seq).map(|i| -0.05 * i as f32).collect();
    let beta: Vec<f32> = (0..heads * seq).map(|i| i as f32 / 12.0).collect();
    // Tokens from..to of all heads, in the file's order [batch, seq, heads, dim].
    let part = |data: &[f32], dim: usize, tokens: std::ops::Range<usize>| {
        let rows = tokens.flat_map(|token| (0..heads).map(move |head| head * seq + token));
        rows.flat_map(|row| data[row * dim..][..dim].to_vec())
            .collect::<Vec<f32>>()
    };
    for (name, tokens) in [("a.safetensors", 0..4), ("b.safetensors", 4..6)] {
        let len = tokens.len();
        let tensor = |data: &[f32], dim| bytes(&part(data, dim, tokens.clone()));
        folder.write_safetensors(
            name,
            &[
                (
                    "q",
                    Dtype::F32,
                    &[1, len, heads, key_dim],
                    tensor(&q, key_dim),
                ),
                (
                    "k",
                    Dtype::F32,
                    &[1, len, heads, key_dim],
                    tensor(&k, key_dim),
                ),
                (
                    "v",
                    Dtype::F32,
                    &[1, len, heads, value_dim],
                    tensor(&v, value_dim),
                ),
                ("decay", Dtype::F32, &[1, len, heads], tensor(&decay, 1)),
                ("beta", Dtype::F32, &[1, len, heads], tensor(&beta, 1)),
            ],
        );
    }
    let shape = |dim: usize| Layout::f32([1, heads, seq, dim].map(|len| len as u64));
    let gate = || Layout::f32([1, heads, seq].map(|len| len as u64));
    let op = LinearAttention::new(shape(key_dim), shape(key_dim), shape(value_dim))
        .decay(Decay::Token(gate()))
        .rule(UpdateRule::Delta {
            beta: Some(gate()),
            read: None,
        });
    let want = reference::linear_attention(&LinearAttentionInputs {
        decay: Some(&wide(&decay)),
        beta: Some(&wide(&beta)),
        ..LinearAttentionInputs::of(&op, &wide(&q), &wide(&k), &wide(&v))
    });

    let named = "run linear --layout bshd --delta --state";
    folder
        .foveate(&format!("{named} --in a.safetensors --out s.safetensors"))
        .succeeded();
    let carried = "--tensor initial_state=s.safetensors:final_state";
    folder
        .foveate(&format!(
            "{named} --in b.safetensors {carried} --out o.safetensors"
        ))
        .succeeded();
    let first = folder.read_safetensors("s.safetensors");
    let last = folder.read_safetensors("o.safetensors");
    assert_eq!(first["o"].1, [1, 4, heads, value_dim]);
    let all = [first["o"].2.clone(), last["o"].2.clone()].concat();
    assert_close(&exchange(&all, [1, seq, heads, value_dim]), &want.o, 1e-5);
    assert_eq!(last["final_state"].1, [1, heads, key_dim, value_dim]);
    assert_close(&last["final_state"].2, &want.state, 1e-5);

    // Decays by name, the rest as it lies.
    folder.write_npy("q.npy", &[1, 2, 6, 8], &q);
    folder.write_npy("k.npy", &[1, 2, 6, 8], &k);
    folder.write_npy("v.npy", &[1, 2, 6, 4], &v);
    let slopes = wide(&LinearAttention::lightning_decays(heads, None));
    let op = LinearAttention::new(shape(key_dim), shape(key_dim), shape(value_dim))
        .decay(Decay::Head(Layout::f32([2])))
        .features(FeatureMap::EluPlusOne, FeatureMap::EluPlusOne)
        .normalised(0.5);
    let want = reference::linear_attention(&LinearAttentionInputs {
        decay: Some(&slopes),
        ..LinearAttentionInputs::of(&op, &wide(&q), &wide(&k), &wide(&v))
    });
    let files = "--in q.npy k.npy v.npy --out y.npy";
    let maps = "--feature-q elu-plus-one --feature-k elu-plus-one --normalised 0.5";
    folder
        .foveate(&format!("run linear --lightning {maps} {files}"))
        .succeeded();
    assert_close(&folder.read_npy::<f32>("y.npy").1, &want.o, 1e-5);

    // Gates that are not gates, before anything runs.
    folder.write_npy("decay.npy", &[2], &[-0.5f32, 0.25]);
    folder
        .foveate(&format!("run linear --tensor decay=decay.npy {files}"))
        .failed(2, &["decay", "0.25 at 1", "0 or less"]);
    folder
        .foveate(&format!(
            "run linear --lightning --tensor decay=decay.npy {files}"
        ))
        .failed(2, &["decay"]);
    folder.write_npy("beta.npy", &[1, 2, 6], &[1.5f32; 12]);
    folder
        .foveate(&format!(
            "run linear --delta --tensor beta=beta.npy {files}"
        ))
        .failed(2, &["beta", "1.5 at 0", "from 0 to 1"]);
    folder
        .foveate(&format!("run linear --tensor beta=beta.npy {files}"))
        .failed(2, &["beta", "--delta"]);
}

#[test]
fn other_number_types_are_converted_and_it_is_said() {
    let folder = Folder::new("types");
    let x = wave(12, 0.9);
    let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    let doubles = wide(&x);
    let shape = [4usize, 3];
    folder.write_safetensors(
        "x.safetensors",
        &[
            ("f16", Dtype::F16, &shape, bytes(&halves)),
            ("bf16", Dtype::BF16, &shape, bytes(&brains)),
            ("f64", Dtype::F64, &shape, bytes(&doubles)),
        ],
    );
    let rounded = |values: Vec<f32>| reference::softmax(&wide(&values), &shape, 1, 1.0, false);
    for (name, want) in [
        ("f16", rounded(halves.iter().map(|x| x.to_f32()).collect())),
        ("bf16", rounded(brains.iter().map(|x| x.to_f32()).collect())),
        ("f64", rounded(x.clone())),
    ] {
        let ended = folder
            .foveate(&format!(
                "run softmax --tensor x=x.safetensors:{name} --out {name}.npy"
            ))
            .succeeded();
        let said = format!("x: {name} in x.safetensors, converted to f32");
        assert!(ended.stderr.contains(&said), "{ended:#?}");
        assert_close(
            &folder.read_npy::<f32>(&format!("{name}.npy")).1,
            &want,
            1e-5,
        );
    }

    // f16 storage, on the first adapter that has it.
    let adapters = folder.foveate("info --json").succeeded().json();
    let adapters = adapters.as_array().expect("a list of adapters");
    let half = adapters.iter().find(|adapter| adapter["f16"] == true);
    let command = "run softmax --tensor x=x.safetensors:f16 --out y.safetensors --dtype f16";
    match half {
        Some(adapter) => {
            folder
                .foveate(&format!("{command} --adapter {}", adapter["number"]))
                .succeeded();
            let (dtype, _, y) = &folder.read_safetensors("y.safetensors")["y"];
            assert_eq!(*dtype, Dtype::F16);
            let want = rounded(halves.iter().map(|x| x.to_f32()).collect());
            assert_close(y, &want, 2e-3);
        }
        None => folder.foveate(command).failed(1, &["f16", "not supported"]),
    }
}

#[test]
fn bad_input_is_refused_by_name() {
    let folder = Folder::new("bad");
    let x = wave(24, 0.9);
    folder.write_npy("x.npy", &[2, 12], &x);
    folder.write_npy("ints.npy", &[2, 12], &[1i32; 24]);
    folder.write_npy("lens.npy", &[1], &[-1i64]);
    folder.write_npy("big.npy", &[1, 1], &[70_000.0f32]);
    folder.write_npy("q.npy", &[1, 3, 2, 4], &x);
    folder.write_npy("k.npy", &[1, 2, 3, 4], &x);
    folder.write_npy("v.npy", &[1, 3, 2, 4], &x);
    folder.write_npy("flat.npy", &[24], &x);
    let whole = fs::read(folder.path("x.npy")).expect("it was written");
    folder.write("short.npy", &whole[..whole.len() - 3]);
    let text = String::from_utf8_lossy(&whole[..128]).replace("False", "True ");
    let header: Vec<u8> = [&whole[..10], &text.as_bytes()[text.len() - 118..]].concat();
    folder.write("fortran.npy", [&header, &whole[128..]].concat());
    folder.write_safetensors("x.safetensors", &[("a", Dtype::F32, &[2, 12], bytes(&x))]);
    let whole = fs::read(folder.path("x.safetensors")).expect("it was written");
    folder.write("short.safetensors", &whole[..whole.len() - 1]);
    folder.write("x.pt", "");
    folder.write("bad.json", r#"{"softmax": {"axis": "last"}}"#);

    let softmax = |rest: &str| folder.foveate(&format!("run softmax {rest}"));
    // Files.
    softmax("--in none.npy --out y.npy").failed(1, &["none.npy", "check the path"]);
    softmax("--in short.npy --out y.npy").failed(1, &["short.npy", "93 bytes", "96", "truncated"]);
    softmax("--in fortran.npy --out y.npy").failed(1, &["fortran.npy", "ascontiguousarray"]);
    softmax("--tensor x=short.safetensors:a --out y.npy").failed(1, &["short", "truncated"]);
    softmax("--tensor x=x.safetensors:b --out y.npy").failed(1, &["no tensor `b`", "it has: a"]);
    softmax("--in x.pt --out y.npy").failed(1, &["x.pt", ".safetensors or .npy"]);
    softmax("--in x.npy --out y.txt").failed(1, &["y.txt", ".safetensors or .npy"]);
    fs::create_dir(folder.path("there.npy")).expect("the folder can be made");
    // Said before anything is read: there is no such input either.
    softmax("--in none.npy --out none/y.npy").failed(1, &["none/y.npy", "make it", "--out"]);
    softmax("--in none.npy --out there.npy").failed(1, &["there.npy: is a folder", "--out"]);
    // Arguments.
    softmax("--in x.npy").failed(2, &["--out"]);
    softmax("--in x.npy --out ./x.npy").failed(2, &["--out", "is an input"]);
    softmax("--in x.safetensors --out y.npy").failed(2, &["x:", "--tensor x=FILE"]);
    softmax("--in x.npy --tensor x=x.npy --out y.npy").failed(2, &["x:", "give it once"]);
    softmax("--tensor q=x.npy --out y.npy").failed(2, &["no tensor `q`", "it takes x"]);
    softmax("--tensor x.npy --out y.npy").failed(2, &["SLOT=FILE"]);
    softmax("--in ints.npy --out y.npy").failed(2, &["x:", "i32", "ints.npy"]);
    softmax("--in x.npy --out y.npy --axis 2").failed(2, &["axis", "2 axes"]);
    softmax("--in x.npy --out y.npy --scale inf").failed(2, &["scale", "finite"]);
    softmax("--in x.npy --out y.npy --scale NaN").failed(2, &["scale", "finite"]);
    softmax("--in x.npy --out y.npy --time 0").failed(2, &["--time"]);
    softmax("--in x.npy --out y.npy --time 10001").failed(2, &["--time", "10000"]);
    softmax("--in big.npy --out y.npy --dtype f16").failed(2, &["x:", "70000", "f32"]);
    // Attention.
    let attention = |rest: &str| folder.foveate(&format!("run attention {rest}"));
    attention("--in q.npy --out o.npy").failed(2, &["k:", "--tensor k=FILE"]);
    attention("--in q.npy k.npy v.npy --out o.npy").failed(2, &["KV heads", "3"]);
    attention("--tensor q=flat.npy --in k.npy v.npy --out o.npy").failed(2, &["q:", "4 axes"]);
    attention("--in q.npy v.npy --tensor k=v.npy --out o.npy --lse").failed(2, &["o and lse"]);
    attention("--in q.npy v.npy --tensor k=v.npy --tensor mask=ints.npy --out o.npy")
        .failed(2, &["mask", "i32", "bool"]);
    attention("--in q.npy v.npy --tensor k=v.npy --tensor kv_len=lens.npy --out o.npy")
        .failed(2, &["kv_len", "-1"]);
    attention("--in q.npy k.npy v.npy --out o.npy --causal sideways").failed(2, &["top-left"]);
    // JSON.
    let op =
        |json: &str| folder.foveate_args(&["run", "--op", json, "--in", "x.npy", "--out", "y.npy"]);
    op(r#"{"softmax": {"axes": 1}}"#).failed(2, &["--op", "`axes`", "`axis`"]);
    op(r#"{"softmax": {"scale": 1e99}}"#).failed(2, &["scale", "finite"]);
    op(r#"{"softmax": {"#).failed(2, &["--op", "EOF"]);
    op(r#"{"convolution": {}}"#).failed(2, &["--op", "convolution", "attention"]);
    op("bad.json").failed(2, &["--op", "bad.json", "last"]);
    folder
        .foveate_args(&[
            "run",
            "--op",
            r#"{"softmax": {}}"#,
            "--schedule",
            "tile",
            "--in",
            "x.npy",
            "--out",
            "y.npy",
        ])
        .failed(2, &["--schedule", "attention"]);
    // A schedule is attention's alone, and belongs behind its name.
    softmax("--in x.npy --out y.npy --schedule tile").failed(2, &["--schedule"]);
    folder
        .foveate("run --schedule tile attention --in q.npy k.npy v.npy --out o.npy")
        .failed(2, &["--schedule", "after the name"]);
    for (op, offered) in [("softmax", false), ("attention", true)] {
        let help = folder.foveate(&format!("run {op} --help")).succeeded();
        assert_eq!(help.stdout.contains("--schedule"), offered, "{help:#?}");
    }
    op("none.json").failed(1, &["none.json"]);
    folder.foveate("run").failed(2, &["--op"]);
    folder
        .foveate("run --op op.json softmax --in x.npy --out y.npy")
        .failed(2, &["--op"]);
    assert!(!folder.path("y.npy").exists() && !folder.path("o.npy").exists());
}

#[test]
fn no_adapter_is_an_error_with_a_remedy() {
    let folder = Folder::new("no-adapter");
    folder
        .foveate("--adapter nowhere info")
        .failed(1, &["nowhere", "none of these: 0:"]);
    // A backend that this system cannot have.
    let backend = if cfg!(windows) { "metal" } else { "dx12" };
    for args in [&["info"][..], &["info", "--json"]] {
        Ended::of(program().args(args).env("WGPU_BACKEND", backend))
            .failed(1, &["no adapter", "install"]);
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for args in [&["info"][..], &["info", "--json"]] {
        let mut child = program()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the program ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}
