//! From an op and the caps of a device to the steps that compute it. No device is touched here:
//! the same op and caps always give the same outline.

mod aft_full;
mod attention;
mod choose;
mod cluster_update;
mod divergence;
mod evict;
mod flow_attention;
mod gather;
mod hrr_attention;
mod linear_attention;
mod merge;
mod order;
mod pool;
mod random_features;
mod ranges;
mod rotary;
mod route;
mod route_scores;
mod scan;
mod scatter;
mod scatter_mean;
mod short_conv;
mod slice;
mod softmax;
mod sort;
mod top_k;
mod top_p;
mod vertical_slash;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::Kernel,
    ops::{Op, Slot},
    tensor::Layout,
};

/// A way to run an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Attention: lanes own rows, keys and values go round by subgroup broadcast.
    Subgroup,
    /// Attention: few rows, shared by the lanes of a subgroup, each of which reads keys of its own.
    Decode,
    /// Attention: tiles in workgroup memory.
    Tile,
    /// Attention: tiles multiplied by cooperative matrices.
    Matrix,
    /// Softmax, merging, rotary embedding, convolution, weights and scans: whole rows in one dispatch, as far as they go.
    Rows,
    /// Softmax: ranges of rows, in two dispatches. Scans: segments of the sequence, whose results are joined.
    /// Linear-time forms: ranges of tokens, whose sums are joined. The attention-free transformer: ranges of
    /// positions, merged.
    Ranges,
    /// Linear attention: all pairs of query and key.
    Quadratic,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subgroup => "subgroup",
            Self::Decode => "decode",
            Self::Tile => "tile",
            Self::Matrix => "matrix",
            Self::Rows => "rows",
            Self::Ranges => "ranges",
            Self::Quadratic => "quadratic",
        })
    }
}

/// What a caller may fix about a plan; what is left open, the plan chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// The schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Query rows per lane, subgroup schedule, or per workgroup, decode schedule: 1 to 8. Fewer
    /// compile faster. Linear attention: vectors of four columns of the state per lane, 1 or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u32>,
    /// Keys per step, subgroup schedule: 1 to 8. Fewer compile faster. Linear attention: updates per step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u32>,
    /// Ranges into which the keys, or the rows of a softmax, of each slice are split: more where the
    /// loop budget asks for it, fewer where a range would be shorter than a step. Linear attention: segments of
    /// tokens that are walked side by side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub splits: Option<u32>,
}

impl Tuning {
    /// The variants that compile fastest, at half the speed or less: for tests, and for first frames
    /// until a warm-up of the better ones is done.
    pub const QUICK_START: Self = Self {
        schedule: None,
        rows: Some(1),
        keys: Some(1),
        splits: None,
    };
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.schedule.map(|schedule| schedule.to_string()));
        for (name, number) in [
            ("rows", self.rows),
            ("keys", self.keys),
            ("splits", self.splits),
        ] {
            words.extend(number.map(|number| format!("{name} {number}")));
        }
        if words.is_empty() {
            words.push("open".into());
        }
        f.write_str(&words.join(", "))
    }
}

/// The range of a buffer that a step binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Which tensor.
    pub slot: Slot,
    /// First byte, from the start of the buffer.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// One dispatch.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The kernel and its variant.
    pub kernel: Kernel,
    /// What it binds.
    pub ranges: Vec<Range>,
    /// Its parameters, as the uniform buffer holds them.
    pub params: Vec<u8>,
    /// Workgroups along x, y and z.
    pub grid: [u32; 3],
}

/// The steps of an op on a device, and how they were chosen. Plain data.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// What is computed.
    pub op: Op,
    /// The schedule chosen.
    pub schedule: Schedule,
    /// Why, in words.
    pub why: String,
    /// The schedules not chosen, each with its reason.
    pub rejected: Vec<(Schedule, String)>,
    /// Ranges into which the keys, or each row of a softmax, are split.
    pub splits: u64,
    /// The dispatches, in order.
    pub steps: Vec<Step>,
    /// Bytes of scratch that a bound call allocates.
    pub scratch_bytes: u64,
}

impl Outline {
    /// Plans an op for a device.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an op that is wrong, [`Error::Unsupported`] for one that this device
    /// cannot run, both with the remedy.
    pub fn new(op: &Op, caps: &Caps, tuning: &Tuning) -> Result<Self> {
        caps.check()?;
        op.check()?;
        for (slot, layout) in op.tensors() {
            if layout.end_bytes() > caps.max_buffer_bytes {
                return Err(Error::unsupported(
                    format!("{} of {} bytes", slot.name(), layout.end_bytes()),
                    format!(
                        "a buffer holds at most {} bytes on this device",
                        caps.max_buffer_bytes
                    ),
                    "split the tensor over batch or heads, or ask for the adapter's own limits \
                     when you create the device",
                ));
            }
        }
        let schedules: &[Schedule] = match op {
            Op::Softmax(_) | Op::Scan(_) => &[Schedule::Rows, Schedule::Ranges],
            Op::Merge(_)
            | Op::Rotary(_)
            | Op::Weights(_)
            | Op::ShortConv(_)
            | Op::RandomFeatures(_) => &[Schedule::Rows],
            Op::LinearAttention(_) => &[Schedule::Subgroup, Schedule::Tile, Schedule::Quadratic],
            Op::HrrAttention(_) | Op::FlowAttention(_) => &[Schedule::Ranges],
            Op::AftFull(_) => &[Schedule::Rows, Schedule::Ranges],
            Op::Pool(_) | Op::Route(_) => &[Schedule::Rows],
            Op::TopK(_) | Op::TopP(_) => &[Schedule::Rows],
            Op::RouteScores(_) => &[Schedule::Subgroup, Schedule::Tile],
            Op::Gather(_)
            | Op::Sort(_)
            | Op::ScatterMean(_)
            | Op::Scatter(_)
            | Op::ClusterUpdate(_)
            | Op::Evict(_)
            | Op::VerticalSlash(_)
            | Op::Divergence(_) => &[Schedule::Rows],
            Op::Attention(_) => &[
                Schedule::Decode,
                Schedule::Subgroup,
                Schedule::Matrix,
                Schedule::Tile,
            ],
        };
        if let Some(wanted) = tuning.schedule
            && !schedules.contains(&wanted)
        {
            let names: Vec<String> = schedules.iter().map(Schedule::to_string).collect();
            return Err(Error::invalid(
                "tuning.schedule",
                format!("this op has no schedule `{wanted}`"),
                format!("choose among {}", names.join(", ")),
            ));
        }
        let outline = match op {
            Op::Softmax(op) => softmax::outline(op, caps, tuning)?,
            Op::Attention(op) => attention::outline(op, caps, tuning)?,
            Op::Merge(op) => merge::outline(op, caps)?,
            Op::Weights(op) => attention::weights::outline(op, caps)?,
            Op::Rotary(op) => rotary::outline(op, caps)?,
            Op::RandomFeatures(op) => random_features::outline(op, caps)?,
            Op::LinearAttention(op) => linear_attention::outline(op, caps, tuning)?,
            Op::ShortConv(op) => short_conv::outline(op, caps)?,
            Op::Scan(op) => scan::outline(op, caps, tuning)?,
            Op::HrrAttention(op) => hrr_attention::outline(op, caps, tuning)?,
            Op::FlowAttention(op) => flow_attention::outline(op, caps, tuning)?,
            Op::AftFull(op) => aft_full::outline(op, caps, tuning)?,
            Op::Pool(op) => pool::outline(op, caps)?,
            Op::RouteScores(op) => route_scores::outline(op, caps, tuning)?,
            Op::Route(op) => route::outline(op, caps)?,
            Op::Gather(op) => gather::outline(op, caps)?,
            Op::Sort(op) => sort::outline(op, caps)?,
            Op::TopK(op) => top_k::outline(op, caps)?,
            Op::TopP(op) => top_p::outline(op, caps)?,
            Op::Scatter(op) => scatter::outline(op, caps)?,
            Op::ScatterMean(op) => scatter_mean::outline(op, caps)?,
            Op::ClusterUpdate(op) => cluster_update::outline(op, caps)?,
            Op::Evict(op) => evict::outline(op, caps)?,
            Op::VerticalSlash(op) => vertical_slash::outline(op, caps)?,
            Op::Divergence(op) => divergence::outline(op, caps)?,
        };
        if outline.scratch_bytes > caps.max_buffer_bytes {
            return Err(Error::unsupported(
                format!("scratch of {} bytes", outline.scratch_bytes),
                format!(
                    "a buffer holds at most {} bytes on this device",
                    caps.max_buffer_bytes
                ),
                "split the op over batch or heads",
            ));
        }
        Ok(outline)
    }

    /// Key tiles that attention's workgroups visit, and those that they would without causal masking and
    /// window: what only the device knows (lengths, masks, mods) is left out. None for other ops, for packed
    /// sequences, and for more than a million tiles of queries, which would take long to count.
    pub fn visited_tiles(&self) -> Option<(u64, u64)> {
        match (&self.op, self.steps.first()) {
            (Op::Attention(op), Some(step)) => attention::visited_tiles(op, step.kernel),
            _ => None,
        }
    }

    /// The choice and the reasons, for people.
    pub fn explain(&self) -> String {
        let mut text = format!("schedule {}: {}\n", self.schedule, self.why);
        for (schedule, reason) in &self.rejected {
            text.push_str(&format!("  not {schedule}: {reason}\n"));
        }
        text.push_str(&format!(
            "{} dispatch{}, {} split{}, {} bytes of scratch\n",
            self.steps.len(),
            if self.steps.len() == 1 { "" } else { "es" },
            self.splits,
            if self.splits == 1 { "" } else { "s" },
            self.scratch_bytes
        ));
        if let Some((visited, all)) = self.visited_tiles() {
            text.push_str(&format!(
                "visits {visited} of {all} key tiles ({:.1} %), as far as causal masking and windows tell\n",
                visited as f64 / all as f64 * 100.0
            ));
        }
        let mut seen = Vec::new();
        for step in &self.steps {
            if !seen.contains(&step.kernel) {
                seen.push(step.kernel);
                let count = self
                    .steps
                    .iter()
                    .filter(|other| other.kernel == step.kernel)
                    .count();
                text.push_str(&format!(
                    "  {count} x {:?}, first grid {:?}\n",
                    step.kernel, step.grid
                ));
            }
        }
        text
    }
}

/// A grid of at least `workgroups`, folded over x and y.
fn grid(workgroups: u64, caps: &Caps) -> Result<[u32; 3]> {
    let side = u64::from(caps.max_workgroups);
    let x = workgroups.min(side);
    let y = workgroups.div_ceil(x.max(1));
    // The linear number is x + y * grid_x in 32 bits.
    if y > side || x * y > u64::from(u32::MAX) {
        return Err(Error::unsupported(
            format!("{workgroups} workgroups in one dispatch"),
            format!("the device allows {side} along each axis, and their number must fit 32 bits"),
            "split the op over batch or heads",
        ));
    }
    Ok([x as u32, y as u32, 1])
}

/// Ranges of keys, or of a row, are made until this many workgroups have work.
const WANTED_WORKGROUPS: u64 = 64;
/// Largest subgroup, but for CPU vectors, whose lanes may each own rows.
const SMALL_SUBGROUP: u32 = 8;

/// Strides for a shader: those of axes that are 1 long never count, and may be anything.
fn places<const AXES: usize>(strides: [u64; AXES], lens: [u64; AXES]) -> [u32; AXES] {
    std::array::from_fn(|axis| {
        if lens[axis] == 1 {
            0
        } else {
            small(strides[axis])
        }
    })
}

/// Strides of a tensor for offsets; those of axes that it lacks, or that are 1 long, are 0.
fn layout_strides<const AXES: usize>(layout: &Layout) -> [u64; AXES] {
    std::array::from_fn(
        |axis| match (layout.shape.get(axis), layout.strides.get(axis)) {
            (Some(2..), Some(&stride)) => stride,
            _ => 0,
        },
    )
}

/// The same for a shader. A slice that has more than one of an axis fits a binding, so what is too large for 32 bits is
/// multiplied by 0 there; offsets of slices are made of [`layout_strides`].
fn layout_places<const AXES: usize>(layout: &Layout) -> [u32; AXES] {
    layout_strides(layout).map(small)
}

/// Whether rows can be read four elements at a time.
fn by_fours(layout: &Layout) -> bool {
    let mut axes = layout.strides.iter().zip(&layout.shape).rev();
    let along = axes
        .next()
        .is_some_and(|(&stride, len)| stride == 1 && len % 4 == 0);
    along
        && layout.offset.is_multiple_of(4)
        && axes.all(|(stride, len)| stride % 4 == 0 || *len == 1)
}

/// A number for a shader; callers have checked that it fits, so saturation never shows.
fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
