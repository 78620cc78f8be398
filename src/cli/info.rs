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
    name: String,
    backend: String,
    device_type: &'static str,
    driver: String,
    driver_info: String,
    /// Smallest and largest subgroup, where shaders can use subgroups.
    subgroup: Option<[u32; 2]>,
    f16: bool,
    timestamps: bool,
    pipeline_cache: bool,
    cooperative_matrices: Vec<Matrix>,
    max_binding_bytes: u64,
    max_buffer_bytes: u64,
    workgroup_bytes: u32,
    max_invocations: u32,
    max_workgroups: u32,
    max_storage_buffers: u32,
    storage_alignment: u32,
    /// What a device opened on it was seen to do.
    measured: Option<Measured>,
    /// Why it could not be opened or measured.
    error: Option<String>,
}

/// A shape of cooperative matrix: `m x k` times `k x n`.
#[derive(Debug, Serialize)]
struct Matrix {
    m: u32,
    n: u32,
    k: u32,
    input: String,
    output: String,
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
    let info = adapter.get_info();
    let limits = adapter.limits();
    let has = |feature| adapter.features().contains(feature);
    let (measured, error) = match measure(adapter, ceilings) {
        Ok(measured) => (Some(measured), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Facts {
        number,
        backend: info.backend.to_string(),
        device_type: device_type(info.device_type),
        subgroup: has(wgpu::Features::SUBGROUP)
            .then_some([info.subgroup_min_size, info.subgroup_max_size]),
        name: info.name,
        driver: info.driver,
        driver_info: info.driver_info,
        f16: has(wgpu::Features::SHADER_F16),
        timestamps: has(wgpu::Features::TIMESTAMP_QUERY),
        pipeline_cache: has(wgpu::Features::PIPELINE_CACHE),
        cooperative_matrices: adapter
            .cooperative_matrix_properties()
            .into_iter()
            .map(|shape| Matrix {
                m: shape.m_size,
                n: shape.n_size,
                k: shape.k_size,
                input: format!("{:?}", shape.ab_type).to_lowercase(),
                output: format!("{:?}", shape.cr_type).to_lowercase(),
            })
            .collect(),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        max_workgroups: limits.max_compute_workgroups_per_dimension,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        storage_alignment: limits.min_storage_buffer_offset_alignment,
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

fn device_type(kind: wgpu::DeviceType) -> &'static str {
    match kind {
        wgpu::DeviceType::DiscreteGpu => "discrete GPU",
        wgpu::DeviceType::IntegratedGpu => "integrated GPU",
        wgpu::DeviceType::VirtualGpu => "virtual GPU",
        wgpu::DeviceType::Cpu => "software on the CPU",
        wgpu::DeviceType::Other => "other",
    }
}

/// A column per adapter, a row per fact.
fn table(list: &[Facts]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    let head = list.iter().map(|f| format!("{}: {}", f.number, f.name));
    table.set_header(std::iter::once("adapter".to_owned()).chain(head));
    let mut row = |name: &str, cell: &dyn Fn(&Facts) -> String| {
        let cells = list.iter().map(cell);
        table.add_row(std::iter::once(name.to_owned()).chain(cells));
    };
    let yes = |there: bool| if there { "yes" } else { "no" }.to_owned();
    row("backend", &|f| f.backend.clone());
    row("device", &|f| f.device_type.into());
    row("driver", &|f| {
        format!("{} {}", f.driver, f.driver_info).trim().to_owned()
    });
    row("subgroups", &|f| match f.subgroup {
        None => "no".into(),
        Some([min, max]) if min == max => format!("of {min}"),
        Some([min, max]) => format!("of {min} to {max}"),
    });
    row("f16 storage", &|f| yes(f.f16));
    row("timestamps", &|f| yes(f.timestamps));
    row("pipeline cache", &|f| yes(f.pipeline_cache));
    row("cooperative matrices", &|f| {
        if f.cooperative_matrices.is_empty() {
            return "no".into();
        }
        let shapes = f.cooperative_matrices.iter();
        shapes
            .map(|s| format!("{}x{}x{} {} to {}", s.m, s.n, s.k, s.input, s.output))
            .collect::<Vec<_>>()
            .join("\n")
    });
    row("largest binding", &|f| {
        BinaryBytes(f.max_binding_bytes).to_string()
    });
    row("largest buffer", &|f| {
        BinaryBytes(f.max_buffer_bytes).to_string()
    });
    row("workgroup memory", &|f| {
        BinaryBytes(f.workgroup_bytes.into()).to_string()
    });
    row("invocations per workgroup", &|f| {
        f.max_invocations.to_string()
    });
    row("workgroups per axis", &|f| {
        HumanCount(f.max_workgroups.into()).to_string()
    });
    row("storage buffers per shader", &|f| {
        f.max_storage_buffers.to_string()
    });
    row("storage alignment", &|f| {
        format!("{} bytes", f.storage_alignment)
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
    }
    if list.iter().any(|f| f.error.is_some()) {
        row("error", &|f| f.error.clone().unwrap_or_default());
    }
    table
}
