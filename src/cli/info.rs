//! `foveate info`

use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{BinaryBytes, HumanCount};
use serde::Serialize;

use super::{Globals, output, progress};
use crate::{Result, adapters, bench, caps::UNMEASURED_LOOP_BUDGET, choose};

/// Arguments of `foveate info`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also measure each adapter's ceilings: multiply-adds, streaming reads and copies. Takes some
    /// seconds on a software adapter.
    #[arg(long)]
    ceilings: bool,
}

/// What is known of an adapter.
#[derive(Debug, Serialize)]
struct Facts {
    /// Its number for `--adapter`.
    number: usize,
    #[serde(flatten)]
    adapter: bench::Adapter,
    /// What a device opened on it was seen to do.
    measured: Option<Measured>,
    /// Why it could not be opened or measured.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Measured {
    /// Iterations that the loops of one invocation may take, all together, before the device leaves them.
    loop_budget: u32,
    ceilings: Option<bench::Ceilings>,
}

pub(super) fn run(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let all = adapters();
    // Also the error when there is none, or none that matches.
    let chosen = choose(&all, globals.adapter.as_deref())?;
    let shown: Vec<_> = all
        .iter()
        .enumerate()
        .filter(|(_, adapter)| globals.adapter.is_none() || **adapter == chosen)
        .collect();
    let bar = progress(shown.len() as u64, globals);
    let list: Vec<Facts> = shown
        .into_iter()
        .map(|(number, adapter)| {
            bar.set_message(format!("measuring {}", adapter.get_info().name));
            let facts = facts(number, adapter, args.ceilings);
            bar.inc(1);
            facts
        })
        .collect();
    bar.finish_and_clear();
    if globals.json {
        output::print_json(&list)?;
    } else {
        output::print(table(&list))?;
    }
    let failed = list.iter().any(|facts| facts.error.is_some());
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn facts(number: usize, adapter: &wgpu::Adapter, ceilings: bool) -> Facts {
    let (measured, error) = match measure(adapter, ceilings) {
        Ok(measured) => (Some(measured), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Facts {
        number,
        adapter: bench::Adapter::of(adapter),
        measured,
        error,
    }
}

fn measure(adapter: &wgpu::Adapter, ceilings: bool) -> Result<Measured> {
    const RUNS: usize = 5;
    let gpu = super::open_on(adapter, None)?;
    Ok(Measured {
        loop_budget: gpu.engine().caps().loop_budget,
        ceilings: ceilings.then(|| bench::ceilings(&gpu, RUNS)).transpose()?,
    })
}

/// A column per adapter, a row per fact.
fn table(list: &[Facts]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    let head = list
        .iter()
        .map(|f| format!("{}: {}", f.number, f.adapter.name));
    table.set_header(std::iter::once("adapter".to_owned()).chain(head));
    let mut row = |name: &str, cell: &dyn Fn(&Facts) -> String| {
        let cells = list.iter().map(cell);
        table.add_row(std::iter::once(name.to_owned()).chain(cells));
    };
    let yes = |there: bool| if there { "yes" } else { "no" }.to_owned();
    row("vendor", &|f| f.adapter.vendor.clone().unwrap_or_default());
    row("backend", &|f| f.adapter.backend.clone());
    row("device", &|f| f.adapter.device_type.clone());
    row("driver", &|f| {
        format!("{} {}", f.adapter.driver, f.adapter.driver_info)
            .trim()
            .to_owned()
    });
    row("subgroups", &|f| match f.adapter.subgroup {
        None => "no".into(),
        Some([min, max]) if min == max => format!("of {min}"),
        Some([min, max]) => format!("of {min} to {max}"),
    });
    row("f16 storage", &|f| yes(f.adapter.f16));
    row("timestamps", &|f| yes(f.adapter.timestamps));
    row("pipeline cache", &|f| yes(f.adapter.pipeline_cache));
    row("cooperative matrices", &|f| {
        if f.adapter.cooperative_matrices.is_empty() {
            return "no".into();
        }
        let shapes = f.adapter.cooperative_matrices.iter();
        shapes
            .map(|s| format!("{}x{}x{} {} to {}", s.m, s.n, s.k, s.input, s.output))
            .collect::<Vec<_>>()
            .join("\n")
    });
    row("largest binding", &|f| {
        BinaryBytes(f.adapter.max_binding_bytes).to_string()
    });
    row("largest buffer", &|f| {
        BinaryBytes(f.adapter.max_buffer_bytes).to_string()
    });
    row("workgroup memory", &|f| {
        BinaryBytes(f.adapter.workgroup_bytes.into()).to_string()
    });
    row("invocations per workgroup", &|f| {
        f.adapter.max_invocations.to_string()
    });
    row("workgroups per axis", &|f| {
        HumanCount(f.adapter.max_workgroups.into()).to_string()
    });
    row("storage buffers per shader", &|f| {
        f.adapter.max_storage_buffers.to_string()
    });
    row("storage alignment", &|f| {
        format!("{} bytes", f.adapter.storage_alignment)
    });
    row("loop iterations, measured", &|f| {
        f.measured.as_ref().map_or_else(String::new, |measured| {
            let count = HumanCount(measured.loop_budget.into());
            if measured.loop_budget > UNMEASURED_LOOP_BUDGET {
                format!("at least {count}")
            } else {
                format!("stops after {count}")
            }
        })
    });
    let ceilings = |f: &Facts| f.measured.as_ref().and_then(|measured| measured.ceilings);
    if list.iter().any(|f| ceilings(f).is_some()) {
        let mut ceiling = |name: &str, unit: &str, value: &dyn Fn(bench::Ceilings) -> f64| {
            row(name, &|f| {
                ceilings(f).map_or_else(String::new, |c| format!("{:.1} {unit}", value(c)))
            });
        };
        ceiling("multiply-adds, measured", "GFLOP/s", &|c| c.fma_gflops);
        ceiling("read, measured", "GB/s", &|c| c.read_gbps);
        ceiling("copy (read + write), measured", "GB/s", &|c| c.copy_gbps);
        ceiling("upload, measured", "GB/s", &|c| c.upload_gbps);
        ceiling("readback, measured", "GB/s", &|c| c.readback_gbps);
    }
    if list.iter().any(|f| f.error.is_some()) {
        row("error", &|f| f.error.clone().unwrap_or_default());
    }
    table
}
