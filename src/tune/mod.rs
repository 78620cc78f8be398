//! Choosing among the ways to run an op: candidates, ranked by what they should cost, optionally
//! timed on the device, and remembered per adapter.
//!
//! A plan never measures by itself. [`Engine::tune`](crate::Engine::tune) does, when the caller asks
//! for it, and keeps the fastest candidate per [`bucket`] of problems in a [`Table`], which
//! [`Engine::save_cache`](crate::Engine::save_cache) writes and
//! [`Engine::with_cache`](crate::Engine::with_cache) reads.

mod estimate;
mod table;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

pub use estimate::Estimate;
pub(crate) use table::TableFile;
pub use table::{Entry, Table};

use crate::{
    caps::Caps,
    error::Result,
    ops::{Attention, Causal, Corner, Op, ScanRule, dims},
    plan::{Outline, Schedule, Tuning},
    tensor::{DType, Layout},
};

/// Where a plan's choices come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TuningMode {
    /// Fixed rules: the same plan for the same op and caps.
    Off,
    /// On devices that run on a CPU: a table that comes with this crate, else, for large problems, the
    /// candidate that should cost least. Else the fixed rules.
    #[default]
    Heuristic,
    /// What was measured on this adapter; else as [`TuningMode::Heuristic`].
    Measured,
}

impl fmt::Display for TuningMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Heuristic => "heuristic",
            Self::Measured => "measured",
        })
    }
}

/// A way to run an op, and what it should cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// What it fixes.
    pub tuning: Tuning,
    /// What it should cost.
    pub estimate: Estimate,
}

/// A candidate that was timed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timed {
    /// What it fixes.
    pub tuning: Tuning,
    /// What it should cost, in ms on the device that the model was made on.
    pub estimated_ms: f64,
    /// Median wall time of a submission, in ms.
    pub ms: f64,
    /// First dispatch with the compilation, in ms; a driver's cache may make it short.
    pub first_ms: f64,
}

/// What [`Engine::tune`](crate::Engine::tune) found for one op: the candidates, fastest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tuned {
    /// The bucket that the best is remembered for.
    pub bucket: String,
    /// All that ran.
    pub timed: Vec<Timed>,
    /// Candidates that could not run, or whose results differ.
    pub failed: Vec<Failed>,
}

/// A candidate that is of no use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failed {
    /// What it fixes.
    pub tuning: Tuning,
    /// Why.
    pub reason: String,
}

/// Rows and keys of the subgroup schedule that are tried.
const ROWS: [u32; 6] = [1, 2, 3, 4, 6, 8];
const KEYS: [u32; 3] = [1, 2, 4];
/// Longest compilation that is worth trying, as the model has it, in ms.
const LONGEST_COMPILE_MS: f64 = 2500.0;
/// Work from which choosing by estimate counts, in ms on the model's device.
const LEAST_MS: f64 = 1.0;

/// The ways to run an op on a device, cheapest first as the model has it. Without those that
/// would compile very long.
pub fn candidates(op: &Op, caps: &Caps) -> Vec<Candidate> {
    let mut list: Vec<(Outline, Candidate)> = Vec::new();
    for tuning in tunings(op) {
        let Ok(outline) = Outline::new(op, caps, &tuning) else {
            continue;
        };
        let estimate = Estimate::of(&outline, caps);
        let slow = estimate.compile_ms > LONGEST_COMPILE_MS && !list.is_empty();
        if !slow && !list.iter().any(|(other, _)| other.steps == outline.steps) {
            list.push((outline, Candidate { tuning, estimate }));
        }
    }
    let mut list: Vec<Candidate> = list.into_iter().map(|(_, candidate)| candidate).collect();
    list.sort_by(|a, b| a.estimate.ms.total_cmp(&b.estimate.ms));
    list
}

/// The numbers to try; the first is what the rules choose.
fn tunings(op: &Op) -> Vec<Tuning> {
    let open = Tuning::default();
    let with = |schedule| Tuning {
        schedule: Some(schedule),
        ..open
    };
    let splits = [None, Some(1), Some(2), Some(4), Some(8), Some(16)];
    let mut list = vec![open];
    match op {
        Op::Softmax(_) | Op::Scan(_) => {
            list.push(with(Schedule::Rows));
            list.extend(splits.map(|splits| Tuning {
                splits,
                ..with(Schedule::Ranges)
            }));
        }
        Op::Attention(op) => {
            let [.., q_len, _] = dims(&op.q);
            if q_len <= MOST_DECODE_QUERIES {
                for rows in [None, Some(1), Some(2), Some(4), Some(8)] {
                    list.extend(splits.map(|splits| Tuning {
                        rows,
                        splits,
                        ..with(Schedule::Decode)
                    }));
                }
            }
            for rows in ROWS {
                list.extend(KEYS.map(|keys| Tuning {
                    rows: Some(rows),
                    keys: Some(keys),
                    ..with(Schedule::Subgroup)
                }));
            }
            for schedule in [Schedule::Matrix, Schedule::Tile] {
                list.extend(splits.map(|splits| Tuning {
                    splits,
                    ..with(schedule)
                }));
            }
        }
        // The others have one way.
        _ => {}
    }
    list
}

/// Queries up to which the decode schedule is tried.
const MOST_DECODE_QUERIES: u64 = 64;

/// The name of the problems that share a choice: the op, its inputs and dims, and the sizes that
/// matter to their power of two.
pub fn bucket(op: &Op) -> String {
    let log2 = |number: u64| number.max(1).ilog2();
    match op {
        Op::Softmax(op) => {
            // Any op may be asked about, also one that no plan would take.
            let length = op.x.shape.get(op.axis).copied().unwrap_or(1);
            let rows = op.x.elements() / length.max(1);
            let along = op.x.strides.get(op.axis) == Some(&1);
            format!(
                "softmax {} rows 2^{} length 2^{}{}{}{}",
                op.x.dtype,
                log2(rows),
                log2(length),
                if along { "" } else { " strided" },
                if op.log { " log" } else { "" },
                if op.in_place { " in place" } else { "" },
            )
        }
        Op::Scan(op) => {
            let sizes = op.sizes();
            let carried = match op.rule {
                ScanRule::Sum { .. } => "sum",
                ScanRule::LogSumExp { .. } => "log-sum-exp",
                ScanRule::Softmax { .. } => "softmax",
            };
            format!(
                "scan {carried} {} rows 2^{} length 2^{}",
                op.input().dtype,
                log2(op.sequences() * sizes.heads * sizes.channels),
                log2(sizes.seq)
            )
        }
        Op::Attention(op) => attention_bucket(op),
        // They have one way, and nothing is looked up.
        _ => {
            let tensors = op.tensors();
            let most = tensors.iter().map(|(_, layout)| layout.elements()).max();
            format!("{} of 2^{} elements", op.name(), log2(most.unwrap_or(1)))
        }
    }
}

fn attention_bucket(op: &Attention) -> String {
    let log2 = |number: u64| number.max(1).ilog2();
    let [batch, q_heads, q_len, head_dim] = dims(&op.q);
    let [_, kv_heads, kv_len, value_dim] = dims(&op.v);
    let group = q_heads / kv_heads.max(1);
    let has = |there: bool, word: &str| {
        if there {
            format!(" {word}")
        } else {
            String::new()
        }
    };
    let fours = |layout: &Layout| layout.strides.last() == Some(&1);
    format!(
        "attention {} dims {head_dim}+{value_dim} heads 2^{} rows 2^{} keys 2^{}{}{}{}{}{}{}",
        op.q.dtype,
        log2(batch.saturating_mul(kv_heads)),
        log2(q_len.saturating_mul(group)),
        log2(kv_len),
        has(op.causal != Causal::None, "causal"),
        has(op.mask.is_some(), "mask"),
        has(op.bias.is_some(), "bias"),
        has(op.kv_len.is_some(), "lengths"),
        has(![&op.q, &op.k, &op.v].into_iter().all(fours), "strided"),
        terms(op),
    )
}

/// What else decides how many keys a tile visits, and what a score costs.
fn terms(op: &Attention) -> String {
    let window = op.window.unwrap_or_default();
    let reach = [window.left, window.right, Some(window.first)];
    let mut words = Vec::new();
    if op.window.is_some() {
        let log2 =
            |keys: Option<u64>| keys.map_or("all".into(), |n| format!("2^{}", n.max(1).ilog2()));
        let corner = match window.corner {
            Corner::TopLeft => "",
            Corner::BottomRight => " at the end",
        };
        words.push(format!("window {}{corner}", reach.map(log2).join("+")));
    }
    for (there, word) in [
        (op.q_len.is_some(), "q_len"),
        (op.prefix_len.is_some(), "prefix"),
        (op.cu_q.is_some(), "packed"),
        (op.head_windows.is_some(), "head_windows"),
        (op.sinks.is_some(), "sinks"),
        (op.gate.is_some(), "gate"),
        (op.softcap.is_some(), "softcap"),
    ] {
        if there {
            words.push(word.into());
        }
    }
    if let Some(mask) = &op.block_mask {
        let size = match &op.block_starts {
            Some(_) => "any".into(),
            None => mask.block_kv.to_string(),
        };
        words.push(format!("blocks {}x{size}", mask.block_q));
    }
    if let Some(lists) = &op.key_index {
        let [_, heads, _, entries] = dims(&lists.index);
        let rows = lists.block_q;
        words.push(format!(
            "lists of {entries} for {rows} queries of {heads} heads"
        ));
    }
    if !op.mods.is_empty() {
        // The same text in every process gives the same number.
        let text: String = op
            .mods
            .iter()
            .map(|change| format!("{} {}", change.source.len(), change.source))
            .collect();
        words.push(format!("mods {:08x}", crc32fast::hash(text.as_bytes())));
    }
    words.iter().map(|word| format!(" {word}")).collect()
}

/// How results differ, if by more than rounding: `max |a - b| / RMS(b)`.
pub(crate) fn difference(results: &[f32], expected: &[f32], op: &Op) -> Option<String> {
    let half = op
        .tensors()
        .iter()
        .any(|(slot, layout)| op.is_output(*slot) && layout.dtype == DType::F16);
    let most = if half { 2e-2 } else { 1e-3 };
    let finite = expected.iter().filter(|x| x.is_finite());
    let squares: f64 = finite.map(|&x| f64::from(x).powi(2)).sum();
    let rms = (squares / expected.len().max(1) as f64).sqrt();
    let differs = |(&a, &b): (&f32, &f32)| {
        // Infinities are equal or not. NaN differs, also from itself.
        let apart = f64::from(a - b).abs();
        a != b && (apart.is_nan() || apart > most * rms)
    };
    let wrong = results
        .iter()
        .zip(expected)
        .filter(|&pair| differs(pair))
        .count();
    if results.len() != expected.len() {
        return Some("gives other tensors than the fixed rules' choice".into());
    }
    (wrong > 0).then(|| {
        format!(
            "{wrong} of {} numbers differ from the fixed rules' choice",
            expected.len()
        )
    })
}

/// The one to take: the rules' choice unless another takes less by more than 3 %; among those within
/// 3 % of the fastest, the one that was ready first.
pub(crate) fn best(timed: &[Timed]) -> Option<&Timed> {
    const NOISE: f64 = 1.03;
    let least = timed.iter().map(|t| t.ms).min_by(f64::total_cmp)?;
    let close = || timed.iter().filter(|t| t.ms <= least * NOISE);
    close()
        .find(|t| t.tuning == Tuning::default())
        .or_else(|| close().min_by(|a, b| a.first_ms.total_cmp(&b.first_ms)))
}

/// What chooses for an engine.
#[derive(Debug, Default)]
pub(crate) struct Tuner {
    pub mode: TuningMode,
    measured: Arc<Mutex<Table>>,
    // Choices made by estimate, which take a while to make.
    estimated: Mutex<HashMap<(String, Caps), Option<Tuning>>>,
}

impl Tuner {
    pub fn new(mode: TuningMode, measured: Table) -> Self {
        Self {
            mode,
            measured: Arc::new(Mutex::new(measured)),
            estimated: Mutex::default(),
        }
    }

    /// The same table, looked at in another way.
    pub fn with_mode(&self, mode: TuningMode) -> Self {
        Self {
            mode,
            measured: self.measured.clone(),
            estimated: Mutex::default(),
        }
    }

    /// The table of measurements as it stands.
    pub fn table(&self) -> Table {
        self.measured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn remember(&self, bucket: String, entry: Entry) {
        self.measured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entries
            .insert(bucket, entry);
    }

    /// Plans an op as the mode has it. A choice from a table that does not fit this very op gives
    /// way to the fixed rules.
    pub fn outline(&self, op: &Op, caps: &Caps) -> Result<Outline> {
        op.check()?;
        if let Some((tuning, why)) = self.choose(op, caps) {
            match Outline::new(op, caps, &tuning) {
                Ok(mut outline) => {
                    outline.why = format!("{why}; {}", outline.why);
                    return Ok(outline);
                }
                Err(error) => log::debug!("{why}, but: {error}"),
            }
        }
        Outline::new(op, caps, &Tuning::default())
    }

    fn choose(&self, op: &Op, caps: &Caps) -> Option<(Tuning, String)> {
        if self.mode == TuningMode::Off {
            return None;
        }
        let bucket = bucket(op);
        if self.mode == TuningMode::Measured
            && let Some(entry) = self
                .measured
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entries
                .get(&bucket)
        {
            let why = format!("the fastest of {} measured on this adapter", entry.tried);
            return Some((entry.tuning, why));
        }
        if let Some(entry) = Table::shipped(caps).and_then(|table| table.entries.get(&bucket)) {
            let why = format!("the best of {} on llvmpipe with 2 cores", entry.tried);
            return Some((entry.tuning, why));
        }
        // The model is made for software devices; on others the rules know better.
        if !caps.cpu_vectors() {
            return None;
        }
        let key = (bucket, caps.clone());
        let lock = || {
            self.estimated
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let known = lock().get(&key).copied();
        // The search takes milliseconds, so it holds no lock.
        let tuning = known.unwrap_or_else(|| {
            let tuning = canonical(op).and_then(|op| by_estimate(&op, caps));
            lock().insert(key, tuning);
            tuning
        });
        Some((tuning?, "should cost least".into()))
    }
}

/// The one op that stands for its bucket, so that a choice does not hang on which op came first. None
/// where the rules know the one way worth taking.
fn canonical(op: &Op) -> Option<Op> {
    let Op::Attention(op) = op else {
        return None;
    };
    let round = |number: u64| 1u64 << number.max(1).ilog2();
    let [batch, q_heads, q_len, head_dim] = dims(&op.q);
    let [_, kv_heads, kv_len, value_dim] = dims(&op.v);
    let heads = round(batch.saturating_mul(kv_heads));
    let rows = round(q_len.saturating_mul(q_heads / kv_heads.max(1)));
    let layout = |len, dim| Layout::new(op.q.dtype, [1, heads, len, dim]);
    let keys = round(kv_len);
    let op = Attention::new(
        layout(rows, head_dim),
        layout(keys, head_dim),
        layout(keys, value_dim),
    )
    .causal(op.causal);
    Some(op.into())
}

/// Whether a model's word is enough for a choice: not for matrices that nobody has checked, which
/// software devices may list too.
fn trusted(tuning: &Tuning, caps: &Caps) -> bool {
    tuning.schedule != Some(Schedule::Matrix) || caps.matrices_checked
}

/// The cheapest candidate, when it is worth the search.
fn by_estimate(op: &Op, caps: &Caps) -> Option<Tuning> {
    let best = candidates(op, caps)
        .into_iter()
        .find(|candidate| trusted(&candidate.tuning, caps))?;
    (best.estimate.ms >= LEAST_MS).then_some(best.tuning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_that_differ_are_seen() {
        let layout = Layout::f32([1, 1, 2, 2]);
        let op: Op = Attention::new(layout.clone(), layout.clone(), layout).into();
        let expected = [1.0, -2.0, f32::NEG_INFINITY, 0.5];
        assert_eq!(difference(&expected, &expected, &op), None);
        assert_eq!(
            difference(&[1.00001, -2.0, f32::NEG_INFINITY, 0.5], &expected, &op),
            None
        );
        for wrong in [
            [1.1, -2.0, f32::NEG_INFINITY, 0.5],
            [f32::NAN, -2.0, f32::NEG_INFINITY, 0.5],
            [1.0, -2.0, 3.0, 0.5],
            [0.0, 0.0, 0.0, 0.0],
        ] {
            assert!(difference(&wrong, &expected, &op).is_some(), "{wrong:?}");
        }
        assert!(difference(&expected[..2], &expected, &op).is_some());
    }

    #[test]
    fn the_model_alone_takes_no_unchecked_matrices() {
        let of = |schedule| Tuning {
            schedule: Some(schedule),
            ..Tuning::default()
        };
        let mut caps = Caps::minimum();
        assert!(trusted(&of(Schedule::Tile), &caps));
        assert!(!trusted(&of(Schedule::Matrix), &caps));
        caps.matrices_checked = true;
        assert!(trusted(&of(Schedule::Matrix), &caps));
    }

    #[test]
    fn noise_does_not_decide() {
        let timed = |rows, ms, first_ms| Timed {
            tuning: Tuning {
                rows,
                ..Tuning::default()
            },
            estimated_ms: 1.0,
            ms,
            first_ms,
        };
        let rows = |list: &[Timed]| best(list).and_then(|timed| timed.tuning.rows);
        // The rules' choice, though another was 2 % faster.
        assert_eq!(
            rows(&[timed(Some(1), 0.98, 5.0), timed(None, 1.0, 9.0)]),
            None
        );
        let far = timed(None, 2.0, 1.0);
        // The one that compiles faster of two that are as fast.
        let near = [timed(Some(1), 1.0, 900.0), timed(Some(2), 1.01, 30.0), far];
        assert_eq!(rows(&near), Some(2));
        assert!(best(&[]).is_none());
    }
}
