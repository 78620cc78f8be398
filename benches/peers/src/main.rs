//! The `peers` program: foveate beside other implementations; see README.md.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};
use foveate::{DType, adapters, bench::Workload, choose, wgpu};
use foveate_peers::{
    Error, Result,
    compare::{Comparison, own_failed},
    own,
    pairs::{Effort, LEAST_PAIRS},
    peer::{PEERS, Peer, Place},
    report::{Best, Row, table, versions},
    task::{Task, foveate_version},
};
use serde::Serialize;

/// foveate beside other implementations of attention, on the same device, in alternating runs.
#[derive(Debug, Parser)]
#[command(name = "peers")]
struct Program {
    /// Adapter to use: a number, or a part of its name, driver or backend. Default: the environment
    /// variable FOVEATE_ADAPTER, else a real GPU before software.
    #[arg(long, global = true)]
    adapter: Option<String>,
    /// Workloads of the suite to run, by letter.
    #[arg(long, default_value = "abcdef", conflicts_with = "shapes")]
    suite: String,
    /// TOML file of workloads, of the form of benches/shapes.toml, instead of the suite.
    #[arg(long)]
    shapes: Option<PathBuf>,
    /// Run each workload with this storage, instead of the one that it names.
    #[arg(long, value_enum, value_delimiter = ',')]
    dtype: Vec<Storage>,
    /// Peers to compare with, with commas: names, or words of setup.sh. Default: all.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Pairs of runs; fewer, but at least 5, when they take long.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(LEAST_PAIRS as i64..=1000))]
    pairs: u32,
    /// Seconds after which no more than 5 pairs are run.
    #[arg(long, default_value_t = 60)]
    budget_s: u64,
    /// Print JSON, one object a line, instead of tables.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Word>,
}

#[derive(Debug, Subcommand)]
enum Word {
    /// foveate's own worker: reads its job from standard input.
    #[command(hide = true)]
    Worker,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Storage {
    F32,
    F16,
}

/// The first line of the JSON.
#[derive(Serialize)]
struct Header {
    kind: &'static str,
    adapter: String,
    backend: String,
    driver: String,
    /// What peers are shown of the Vulkan drivers, when it was not the user who chose.
    vulkan_drivers: Option<String>,
    foveate: String,
    commit: Option<String>,
    cpus: usize,
}

fn main() -> ExitCode {
    let program = Program::parse();
    let result = match program.command {
        Some(Word::Worker) => own::serve(program.adapter.as_deref()).map(|()| true),
        None => compare(&program),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&format!("peers: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells the user something that is not the result.
fn note(text: &str) {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| Error::File {
            path: "standard output".into(),
            message: error.to_string(),
        })
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|error| Error::Protocol(error.to_string()))?;
    print(&text)
}

/// Whether foveate ran and was right everywhere.
fn compare(program: &Program) -> Result<bool> {
    let peers = chosen(&Peer::parse(PEERS)?, &program.peers)?;
    let workloads = workloads(program)?;
    let adapter = choose(&adapters(), program.adapter.as_deref())?.get_info();
    let place = Place::new(&adapter);
    let header = header(&adapter, &place);
    if program.json {
        print_json(&header)?;
    } else {
        print(&format!(
            "foveate {} ({}) on {} ({}, {}), {} CPUs\n",
            header.foveate,
            header.commit.as_deref().unwrap_or("no commit"),
            header.adapter,
            header.backend,
            header.driver,
            header.cpus
        ))?;
    }
    let mut all = Vec::new();
    let mut well = true;
    for workload in &workloads {
        let rows = rows(program, workload, &peers, &place)?;
        well &= rows.iter().all(Row::foveate_is_well);
        if let Some(best) = Best::of(&rows) {
            if program.json {
                print_json(&best)?;
            } else {
                print(&format!("{}\n{}\n", table(&rows), best.words()))?;
            }
        }
        all.extend(rows);
    }
    if !program.json {
        print(&versions(&all))?;
    }
    Ok(well)
}

/// The rows of one workload; as JSON they are printed as soon as they are there.
fn rows(program: &Program, workload: &Workload, peers: &[Peer], place: &Place) -> Result<Vec<Row>> {
    let task = Task::new(workload)?;
    let effort = Effort {
        pairs: program.pairs as usize,
        budget: Duration::from_secs(program.budget_s),
    };
    let own = own_command(program.adapter.as_deref())?;
    let mut rows = Vec::new();
    let mut take = |row: Row| {
        let shown = if program.json {
            print_json(&row)
        } else {
            Ok(())
        };
        rows.push(row);
        shown
    };
    match Comparison::start(&task, own, effort) {
        Err(trouble) => take(own_failed(workload, &trouble))?,
        Ok(mut comparison) => {
            for peer in peers {
                for variant in peer.variants(workload) {
                    note(&format!("{}: {} {variant}", workload.name(), peer.name));
                    take(comparison.row(peer, variant, peer.command(place)))?;
                }
            }
        }
    }
    Ok(rows)
}

/// This program, as foveate's worker.
fn own_command(adapter: Option<&str>) -> Result<Command> {
    let path = std::env::current_exe().map_err(|error| Error::File {
        path: "this program".into(),
        message: error.to_string(),
    })?;
    let mut command = Command::new(path);
    command.arg("worker");
    if let Some(adapter) = adapter {
        command.args(["--adapter", adapter]);
    }
    Ok(command)
}

fn chosen(all: &[Peer], words: &[String]) -> Result<Vec<Peer>> {
    if words.is_empty() {
        return Ok(all.to_vec());
    }
    if let Some(word) = words
        .iter()
        .find(|word| !all.iter().any(|peer| peer.is_called(word)))
    {
        let names: Vec<&str> = all.iter().map(|peer| peer.name.as_str()).collect();
        return Err(Error::Argument {
            argument: "--peers",
            message: format!(
                "no peer is called `{word}`; choose among {}",
                names.join(", ")
            ),
        });
    }
    Ok(all
        .iter()
        .filter(|peer| words.iter().any(|word| peer.is_called(word)))
        .cloned()
        .collect())
}

fn workloads(program: &Program) -> Result<Vec<Workload>> {
    let named = Workload::choose(&program.suite, program.shapes.as_deref())?;
    if program.dtype.is_empty() {
        return Ok(named);
    }
    Ok(program
        .dtype
        .iter()
        .flat_map(|storage| {
            let dtype = match storage {
                Storage::F32 => DType::F32,
                Storage::F16 => DType::F16,
            };
            named
                .iter()
                .map(move |workload| workload.clone().stored_as(dtype))
        })
        .collect())
}

fn header(adapter: &wgpu::AdapterInfo, place: &Place) -> Header {
    Header {
        kind: "header",
        adapter: adapter.name.clone(),
        backend: adapter.backend.to_string(),
        driver: adapter.driver_info.clone(),
        vulkan_drivers: place
            .drivers
            .as_ref()
            .map(|pattern| pattern.to_string_lossy().into_owned()),
        foveate: foveate_version(),
        commit: commit(&place.source),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// The commit of the source, with a plus when it was changed since.
fn commit(source: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(source)
            .args(arguments)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let hash = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() {
        hash
    } else {
        format!("{hash}+")
    })
}
