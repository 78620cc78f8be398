//! The pipeline cache: one compilation per variant, nothing in `record`, warm-ups that dispatch,
//! and a file that may be in any state.

mod small;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Barrier,
    time::Instant,
};

use foveate::{
    Attention, AttentionArgs, Engine, Error, Layout, Op, Softmax, SoftmaxArgs, Tuning, View,
    kernels::{AttentionIo, Kernel, attention_merge, attention_subgroup, attention_tile},
};
use small::App;

/// An op of one small kernel.
fn softmax() -> Op {
    Softmax::new(Layout::f32([3, 5]), 1).into()
}

#[test]
fn many_threads_compile_once() {
    const THREADS: u64 = 8;
    let app = App::open();
    let barrier = Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let engine = app.engine.clone();
                barrier.wait();
                engine.plan(&softmax()).expect("plans");
            });
        }
    });
    let counters = app.engine.counters();
    assert_eq!((counters.misses, counters.hits), (1, THREADS - 1));
    assert!(!counters.compile_time.is_zero());
    app.saw_no_error();
}

#[test]
fn counters_count_variants_and_allocations() {
    let app = App::open();
    let count = || {
        let counters = app.engine.counters();
        (
            counters.misses,
            counters.hits,
            counters.buffers,
            counters.bind_groups,
        )
    };
    assert_eq!(count(), (0, 0, 0, 0));
    let plan = app.engine.plan(&softmax()).expect("plans");
    assert_eq!(count(), (1, 0, 0, 0));
    // Another shape and scale, the same variant.
    let other = Softmax::new(Layout::f32([7, 6]), 1).scale(2.0);
    app.engine.plan(&other.into()).expect("plans");
    assert_eq!(count(), (1, 1, 0, 0));
    let logarithm = Softmax::new(Layout::f32([3, 5]), 1).log();
    app.engine.plan(&logarithm.into()).expect("plans");
    assert_eq!(count(), (2, 1, 0, 0));
    // An op that cannot be planned compiles nothing.
    let wrong = Softmax::new(Layout::f32([3, 5]), 2);
    app.engine.plan(&wrong.into()).expect_err("no such axis");
    assert_eq!(count(), (2, 1, 0, 0));
    let [x, y] = [60, 60].map(|size| app.buffer(size));
    let layout = Layout::f32([3, 5]);
    plan.bind(SoftmaxArgs {
        x: Some(View::new(&x, layout.clone())),
        y: View::new(&y, layout),
    })
    .expect("binds");
    assert_eq!(count(), (2, 1, 1, 1));
    // Clones share the cache; a new engine has its own.
    assert_eq!(app.engine.clone().counters(), app.engine.counters());
    assert_eq!(Engine::new(&app.device).counters().misses, 0);
}

#[test]
fn record_compiles_and_allocates_nothing() {
    let app = App::open();
    let [q, kv] = [[1, 2, 4, 8], [1, 1, 64, 8]].map(Layout::f32);
    let op = Attention::new(q, kv.clone(), kv);
    let [q, k, v, o] = [&op.q, &op.k, &op.v, &op.o].map(|layout| app.buffer(layout.end_bytes()));
    // Two ranges of keys and a merge: scratch, two pipelines.
    let tuning = Tuning {
        splits: Some(2),
        ..small::tuning()
    };
    let plan = app
        .engine
        .plan_with(&op.clone().into(), &tuning)
        .expect("plans");
    let call = plan
        .bind(AttentionArgs::new(
            View::new(&q, op.q),
            View::new(&k, op.k),
            View::new(&v, op.v),
            View::new(&o, op.o),
        ))
        .expect("binds");
    let before = app.engine.counters();
    assert_eq!(
        (before.misses, before.buffers, before.bind_groups),
        (2, 2, 2)
    );
    for _ in 0..3 {
        app.run(&call);
    }
    assert_eq!(app.engine.counters(), before);
    app.saw_no_error();
}

#[test]
fn warm_up_dispatches_and_leaves_nothing_to_compile() {
    let app = App::open();
    let op = small::attention();
    let ops = [Op::from(op.clone()), softmax()];
    app.engine.warm_up(&app.queue, &ops).expect("warms up");
    let warm = app.engine.counters();
    assert_eq!(warm.misses, 2);
    // One dispatch each, which is where late compilers compile.
    assert_eq!(warm.bind_groups, 2);

    let [q, k, v, o] = [256, 192, 192, 256].map(|size| app.buffer(size));
    let start = Instant::now();
    let plan = app.engine.plan(&ops[0]).expect("plans");
    let call = plan
        .bind(AttentionArgs::new(
            View::new(&q, op.q),
            View::new(&k, op.k),
            View::new(&v, op.v),
            View::new(&o, op.o),
        ))
        .expect("binds");
    app.run(&call);
    let first = start.elapsed();
    let after = app.engine.counters();
    assert_eq!((after.misses, after.hits), (2, warm.hits + 1));
    assert_eq!(after.compile_time, warm.compile_time);
    assert!(
        first < warm.compile_time,
        "the first run took {first:?}, and all compilation {:?}",
        warm.compile_time
    );
    app.still_works();
}

/// The one cache file in a folder.
fn file_in(folder: &Path) -> PathBuf {
    let files: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// How many pipelines a new process finds in the file.
fn found(app: &App, folder: &Path) -> usize {
    let engine = Engine::with_cache(&app.device, folder);
    let found = engine.warm_up_cached(&app.queue).expect("never an error");
    let counters = engine.counters();
    assert_eq!(counters.bind_groups, found as u64, "each is dispatched");
    // Whatever the file says, the engine works.
    engine.plan(&softmax()).expect("plans");
    found
}

fn save(app: &App, folder: &Path) -> Result<(), Error> {
    let engine = Engine::with_cache(&app.device, folder);
    engine.plan(&softmax()).expect("plans");
    engine.save_cache()
}

#[test]
fn a_second_process_finds_what_the_first_compiled() {
    let app = App::open();
    let folder = tempfile::tempdir().expect("a folder");
    // A folder that is not there yet is made.
    let folder = folder.path().join("a/b");
    assert_eq!(found(&app, &folder), 0);
    let first = Engine::with_cache(&app.device, &folder);
    first.plan(&softmax()).expect("plans");
    let logarithm: Op = Softmax::new(Layout::f32([3, 5]), 1).log().into();
    first.plan(&logarithm).expect("plans");
    first.save_cache().expect("saves");
    assert_eq!(found(&app, &folder), 2);

    let second = Engine::with_cache(&app.device, &folder);
    assert_eq!(second.warm_up_cached(&app.queue), Ok(2));
    let warm = second.counters();
    assert_eq!(warm.misses, 2);
    for op in [softmax(), logarithm] {
        second.plan(&op).expect("plans");
    }
    assert_eq!(second.counters().misses, 2);

    // A process that compiles nothing loses nothing from the list.
    let idle = Engine::with_cache(&app.device, &folder);
    idle.save_cache().expect("saves");
    assert_eq!(found(&app, &folder), 2);

    // Without a folder there is no file, and no error.
    assert_eq!(app.engine.warm_up_cached(&app.queue), Ok(0));
    assert_eq!(app.engine.save_cache(), Ok(()));
    app.saw_no_error();
}

/// A cache file in parts.
struct File {
    header: serde_json::Value,
    blob: Vec<u8>,
}

impl File {
    fn read(bytes: &[u8]) -> Self {
        let length = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
        Self {
            header: serde_json::from_slice(&bytes[16..16 + length]).expect("the header is JSON"),
            blob: bytes[16 + length..].to_vec(),
        }
    }

    /// With a checksum that is right.
    fn bytes(&self) -> Vec<u8> {
        sealed(
            &serde_json::to_vec(&self.header).expect("JSON"),
            None,
            &self.blob,
        )
    }
}

/// A file with a right checksum over any header, length and data.
fn sealed(header: &[u8], length: Option<u32>, blob: &[u8]) -> Vec<u8> {
    let mut body = length.unwrap_or(header.len() as u32).to_le_bytes().to_vec();
    body.extend_from_slice(header);
    body.extend_from_slice(blob);
    let mut bytes = b"FOVEATE1".to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_file_of_no_use_is_ignored_and_replaced() {
    let app = App::open();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    save(&app, folder).expect("saves");
    let path = file_in(folder);
    let good = fs::read(&path).expect("readable");
    // The parts are understood: put together again, they are as good.
    fs::write(&path, File::read(&good).bytes()).expect("writable");
    assert_eq!(found(&app, folder), 1);

    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for length in [
        0,
        1,
        7,
        8,
        9,
        11,
        12,
        13,
        15,
        16,
        17,
        40,
        good.len() / 2,
        good.len() - 1,
    ] {
        files.push((format!("{length} bytes"), good[..length].to_vec()));
    }
    for place in [0, 7, 8, 11, 12, 15, 16, 30, good.len() / 2, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[place] ^= 0x20;
        files.push((format!("byte {place} changed"), bytes));
    }
    files.push(("longer".into(), [&good[..], b"x"].concat()));
    files.push((
        "something else".into(),
        b"{\"not\": \"a cache\"}".repeat(10),
    ));
    for field in ["name", "backend", "driver", "driver_info", "version"] {
        let mut file = File::read(&good);
        file.header["owner"][field] = "another".into();
        files.push((format!("another {field}"), file.bytes()));
    }
    for field in ["vendor", "device"] {
        let mut file = File::read(&good);
        file.header["owner"][field] = 0xdead_u32.into();
        files.push((format!("another {field}"), file.bytes()));
    }
    for length in [u32::MAX, good.len() as u32, 0] {
        let header = serde_json::to_vec(&File::read(&good).header).expect("JSON");
        files.push((
            format!("header of {length} bytes"),
            sealed(&header, Some(length), b""),
        ));
    }
    files.push(("no header".into(), sealed(b"", None, b"")));
    files.push(("not JSON".into(), sealed(b"\xff\xfe{", None, b"")));
    files.push(("other JSON".into(), sealed(b"[1, 2]", None, b"")));
    let mut file = File::read(&good);
    file.header["kernels"] = serde_json::json!([{ "kernel_of_the_future": { "size": 4 } }]);
    files.push(("an unknown kernel".into(), file.bytes()));

    for (what, bytes) in files {
        fs::write(&path, bytes).expect("writable");
        assert_eq!(found(&app, folder), 0, "{what}");
        save(&app, folder).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(found(&app, folder), 1, "{what} was not replaced");
    }
    app.saw_no_error();
}

#[test]
fn kernels_that_cannot_run_are_skipped() {
    let app = App::open();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    save(&app, folder).expect("saves");
    let path = file_in(folder);
    let mut file = File::read(&fs::read(&path).expect("readable"));
    let io = AttentionIo::default();
    let kernels: [Kernel; 3] = [
        // No subgroup has 3 lanes.
        attention_subgroup::Variant {
            subgroup: 3,
            rows: 1,
            keys: 1,
            d4: 1,
            v4: 1,
            vec4: false,
            io,
        }
        .into(),
        // Nonsense that only a compiler notices: arrays of length 0.
        attention_tile::Variant { v_chunks: 0, io }.into(),
        attention_merge::Variant {
            source: attention_merge::Source::Scratch,
            f16: false,
            lse: false,
            gate: false,
        }
        .into(),
    ];
    file.header["kernels"] = serde_json::to_value(kernels).expect("JSON");
    // Data that no driver wrote.
    file.blob = vec![0x5a; 4096];
    fs::write(&path, file.bytes()).expect("writable");
    assert_eq!(found(&app, folder), 1);
    app.still_works();
}

#[test]
fn places_that_cannot_be_read_or_written() {
    let app = App::open();
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path().join("cache");
    save(&app, &folder).expect("saves");
    // A folder where the file should be.
    let path = file_in(&folder);
    fs::remove_file(&path).expect("removable");
    fs::create_dir(&path).expect("writable");
    assert_eq!(found(&app, &folder), 0);
    let error = save(&app, &folder).expect_err("a folder is in the way");
    assert!(
        matches!(&error, Error::File { path: named, .. } if *named == path.display().to_string()),
        "{error}"
    );
    assert_eq!(file_in(&folder), path, "nothing is left behind");

    // A file where the folder should be: not writable even for those who may write anywhere.
    let blocked = temporary.path().join("file");
    fs::write(&blocked, "in the way").expect("writable");
    for folder in [blocked.clone(), blocked.join("below")] {
        assert_eq!(found(&app, &folder), 0);
        let error = save(&app, &folder).expect_err("no folder can be made here");
        assert!(matches!(error, Error::File { .. }), "{error}");
    }
    app.still_works();
}

#[test]
fn saves_at_the_same_time_leave_a_file_that_is_right() {
    const THREADS: usize = 8;
    let app = App::open();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let engine = Engine::with_cache(&app.device, folder);
    engine.plan(&softmax()).expect("plans");
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..20 {
                    engine.save_cache().expect("saves");
                    // A reader sees an old or a new file, never half of one.
                    let bytes = fs::read(only_cache_file(folder)).expect("readable");
                    let checksum = crc32fast::hash(&bytes[12..]).to_le_bytes();
                    assert_eq!(bytes[8..12], checksum);
                }
            });
        }
    });
    assert_eq!(
        file_in(folder),
        only_cache_file(folder),
        "nothing is left behind"
    );
    assert_eq!(found(&app, folder), 1);
}

/// The file with the cache's ending; others may be there while a save is under way.
fn only_cache_file(folder: &Path) -> PathBuf {
    fs::read_dir(folder)
        .expect("the folder is there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "foveate"))
        .expect("saved")
}
