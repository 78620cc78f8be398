//! Attention's scores and weights: which slices, and how much of a row or a column a dispatch takes.

use super::{
    super::{
        Outline, Range, Schedule, Step, choose,
        choose::Choice,
        grid, layout_places,
        slice::{self, Operand, Part},
        small,
    },
    AXES, BATCH, GROUP, HEAD, KEY, Pass, ROW, Space, strides,
};
use crate::{
    caps::Caps,
    error::{Error, Result},
    kernels::{
        AttentionIo, Kernel, attention_mass, attention_tile,
        attention_weights::{self, Kind, WORKGROUP},
    },
    ops::{Slot, Statistic, Weights, dims},
    tensor::{DType, Layout},
};

pub(in crate::plan) fn outline(op: &Weights, caps: &Caps) -> Result<Outline> {
    let pairs = Pairs::new(op, caps)?;
    if let Err(reason) = pairs.kernel.supports(caps) {
        return Err(Error::unsupported(
            format!("weights of attention with {} tensors", op.attention.q.dtype),
            reason,
            "create the device with these features and limits, or store the tensors as f32",
        ));
    }
    let mut steps = Vec::new();
    for whole in pairs.boxes() {
        pairs.add_steps(whole, &mut steps)?;
    }
    let why = match op.statistic {
        Statistic::Mass => "a workgroup owns eight keys of a head, and looks at all queries",
        _ => "a workgroup owns a row",
    };
    Ok(Outline {
        op: op.clone().into(),
        schedule: Schedule::Rows,
        why: why.into(),
        rejected: Vec::new(),
        splits: 1,
        steps,
        scratch_bytes: 0,
    })
}

/// An op over the iteration space of its attention.
struct Pairs<'a> {
    op: &'a Weights,
    caps: &'a Caps,
    space: Space<'a>,
    io: AttentionIo,
    kernel: Kernel,
}

impl<'a> Pairs<'a> {
    fn new(op: &'a Weights, caps: &'a Caps) -> Result<Self> {
        let attention = &op.attention;
        let io = choose::given(attention)?;
        let mut io = AttentionIo {
            // An input here.
            lse: op.statistic.needs_lse(),
            probs: op.statistic.needs_lse() && io.mods.has_prob(),
            gate: false,
            sinks: io.sinks && op.statistic == Statistic::LargestScore,
            ..io
        };
        if op.statistic.sees_all() {
            io = AttentionIo {
                f16: io.f16,
                softcap: io.softcap,
                ..AttentionIo::default()
            };
        }
        let kind = match op.statistic {
            Statistic::Matrix { stage, .. } => Some(Kind::Matrix {
                stage,
                f16: op.out.dtype == DType::F16,
            }),
            Statistic::Entropy => Some(Kind::Entropy),
            Statistic::LargestWeight => Some(Kind::LargestWeight),
            Statistic::LargestScore => Some(Kind::LargestScore),
            Statistic::Top { .. } => Some(Kind::Top),
            Statistic::Mass => None,
        };
        let kernel = match kind {
            Some(kind) => attention_weights::Variant { kind, io }.into(),
            None => attention_mass::Variant { io }.into(),
        };
        // No tile spans rows; what depends on the schedule is set below.
        let choice = Choice::Tile(attention_tile::Variant { v_chunks: 1, io });
        let mut space = Space::new(attention, caps, choice)?;
        let tensors = op.tensors();
        let reads = |wanted: Slot| tensors.iter().any(|(slot, _)| *slot == wanted);
        space.operands.retain(|(slot, _)| reads(*slot));
        Ok(Self {
            op,
            caps,
            space,
            io,
            kernel,
        })
    }

    /// The axis that dispatches add up over, after one another.
    fn summed(&self) -> usize {
        match self.op.statistic {
            Statistic::Mass => ROW,
            _ => KEY,
        }
    }

    /// What is computed, as boxes of the iteration space: a range of query heads may begin and end inside
    /// the groups of KV heads.
    fn boxes(&self) -> Vec<Part<AXES>> {
        let whole = Part {
            start: [0; AXES],
            len: self.space.lens,
        };
        let Statistic::Matrix { heads, rows, .. } = &self.op.statistic else {
            return vec![whole];
        };
        let group = whole.len[GROUP];
        let mut boxes = Vec::new();
        let mut head = heads.start;
        while head < heads.end {
            let mut piece = whole;
            piece.start[HEAD] = head / group;
            piece.start[GROUP] = head % group;
            piece.start[ROW] = rows.start;
            piece.len[ROW] = rows.end - rows.start;
            let left = heads.end - head;
            if piece.start[GROUP] == 0 && left >= group {
                piece.len[HEAD] = left / group;
            } else {
                piece.len[HEAD] = 1;
                piece.len[GROUP] = left.min(group - piece.start[GROUP]);
            }
            head += piece.len[HEAD] * piece.len[GROUP];
            boxes.push(piece);
        }
        boxes
    }

    /// The outputs over a box, whose first point is at their own places.
    fn outputs(&self, whole: &Part<AXES>) -> Vec<(Slot, Operand<AXES>)> {
        let group = self.space.lens[GROUP];
        let queries = |[b, h, m, n]: [u64; 4]| [b, h * group, h, m, n];
        let outputs = self.op.outputs();
        outputs
            .map(|(slot, layout)| {
                let [b, h, third, fourth] = strides(layout);
                let (axes, inner) = match &self.op.statistic {
                    Statistic::Matrix { .. } => (queries([b, h, third, fourth]), 1),
                    Statistic::Mass => (queries([b, h, 0, third]), 1),
                    Statistic::Top { count } => {
                        (queries([b, h, third, 0]), fourth * (count - 1) + 1)
                    }
                    _ => (queries([b, h, third, 0]), 1),
                };
                let mut operand = Operand::new(slot.name(), layout, axes, inner);
                if let Statistic::Matrix { heads, .. } = &self.op.statistic {
                    let head = whole.start[HEAD] * group + whole.start[GROUP];
                    operand.offset += (head - heads.start) * h;
                }
                (slot, operand)
            })
            .collect()
    }

    fn add_steps(&self, whole: Part<AXES>, steps: &mut Vec<Step>) -> Result<()> {
        let outputs = self.outputs(&whole);
        let operands: Vec<Operand<AXES>> = self
            .space
            .operands
            .iter()
            .chain(&outputs)
            .map(|(_, operand)| operand.clone())
            .collect();
        let limit = self.caps.max_binding_bytes;
        let alignment = u64::from(self.caps.storage_alignment);
        let mut part = slice::fit(whole.len, &operands, limit, alignment)?;
        let summed = self.summed();
        let most = self.most_at_once().ok_or_else(|| {
            Error::unsupported(
                "a row of weights",
                format!(
                    "a kernel may loop {} times on this device, fewer than one step takes",
                    self.caps.loop_budget
                ),
                "measure the device (Engine::measure), or use a smaller head_dim or fewer sequences",
            )
        })?;
        part[summed] = part[summed].min(most);
        // A grid that is too large becomes several.
        let side = u64::from(self.caps.max_workgroups);
        let workgroups = side.saturating_mul(side).min(u32::MAX.into());
        while self.tiles(&part) > workgroups {
            let axes = (0..AXES).filter(|&axis| axis != summed && part[axis] > 1);
            match axes.max_by_key(|&axis| part[axis]) {
                Some(axis) => part[axis] = part[axis].div_ceil(2),
                None => break,
            }
        }
        slice::check_count(whole.len, part, limit)?;
        let others: Vec<usize> = (0..AXES).filter(|&axis| axis != summed).collect();
        for base in slice::parts(whole, part, &others) {
            // All but the first add to what is in the output.
            let first = u64::from(self.op.accumulate);
            for (number, piece) in (first..).zip(slice::parts(base, part, &[summed])) {
                steps.push(self.step(&piece, &whole, &outputs, number)?);
            }
        }
        Ok(())
    }

    /// Workgroups for a part.
    fn tiles(&self, part: &[u64; AXES]) -> u64 {
        let heads = part[BATCH] * part[HEAD] * part[GROUP];
        match self.op.statistic {
            Statistic::Mass => heads * part[KEY].div_ceil(attention_mass::KEYS.into()),
            _ => heads * part[ROW],
        }
    }

    /// The most keys of a row, or queries of a column, that a dispatch may loop over.
    ///
    /// All loops of an invocation count here, also one after another, and the check that ends a loop: that is
    /// how llvmpipe counts.
    fn most_at_once(&self) -> Option<u64> {
        let attention = &self.op.attention;
        let budget = u64::from(self.caps.loop_budget).checked_sub(1)?;
        // What a row sees is found by a search in packed sequences.
        let sequences = attention.cu_q.as_ref().map_or(1, |starts| dims(starts)[0]);
        let search = 2 + u64::from(u64::BITS - sequences.leading_zeros());
        let dot = 2 + dims(&attention.q)[3].div_ceil(4);
        let lanes = u64::from(WORKGROUP);
        // Blocks of any length are searched for: for each pair, and at both ends of a run.
        let starts = attention
            .block_starts
            .as_ref()
            .map(|starts| dims(starts)[0]);
        let look = starts.map_or(0, |starts| {
            u64::from(u64::BITS - starts.leading_zeros()) + 1
        });
        let dot = dot + look;
        let (each, others) = match self.op.statistic {
            Statistic::Mass => {
                let rows = u64::from(attention_mass::ROWS);
                let most = budget.checked_sub(rows + 1)? / (dot + search) * rows;
                return (most > 0).then_some(most);
            }
            Statistic::Matrix { .. } => (dot, 0),
            Statistic::Top { count } => (dot + 1 + lanes + count, 0),
            // Invocations are added up.
            _ => (dot, lanes + 1),
        };
        let budget = budget.checked_sub(others + 2 * search + 2)?;
        let runs = self.io.runs() && !matches!(self.op.statistic, Statistic::Matrix { .. });
        let most = match &attention.block_mask {
            Some(mask) if runs => {
                // Each block is a run, with a step that it does not fill, and found by looks at words.
                let block = if starts.is_some() {
                    1
                } else {
                    mask.block_kv.min(1 << 20)
                };
                // Before each there may be a block without keys.
                let run = each + 8 + if starts.is_some() { 8 + 4 * look } else { 0 };
                // Words without a bit are walked over, and empty blocks may make them many.
                let words = if starts.is_some() {
                    dims(&mask.bits)[3]
                } else {
                    0
                };
                let budget = budget.checked_sub(3 * run)?;
                let budget = budget.checked_sub(words.saturating_mul(3))?;
                let by_length = budget * lanes * block / (each * block + lanes * run);
                // No more of them than there are.
                let by_count =
                    |starts: u64| budget.saturating_sub(starts.saturating_mul(run)) / each * lanes;
                by_length.max(starts.map_or(0, by_count))
            }
            // A second run, and a step that it does not fill.
            _ if runs => budget.checked_sub(each + 5)? / each * lanes,
            _ => budget / each * lanes,
        };
        (most > 0).then_some(most)
    }

    fn step(
        &self,
        part: &Part<AXES>,
        whole: &Part<AXES>,
        outputs: &[(Slot, Operand<AXES>)],
        number: u64,
    ) -> Result<Step> {
        let pass = Pass {
            partial: false,
            probs: false,
            start: 0,
        };
        let (_, mut params, mut ranges) =
            self.space
                .bindings(part, part.len[KEY], (number, 1, 1), pass);
        let tiles = self.tiles(&part.len);
        params.tiles = small(tiles);
        params.row_tiles = small(part.len[GROUP] * part.len[ROW]);
        match self.op.statistic {
            Statistic::Mass => {
                params.row_tiles = small(part.len[KEY].div_ceil(attention_mass::KEYS.into()));
            }
            Statistic::Top { count } => params.value_dim = small(count),
            _ => {}
        }
        let mut relative = *part;
        for (start, first) in relative.start.iter_mut().zip(whole.start) {
            *start -= first;
        }
        let alignment = u64::from(self.caps.storage_alignment);
        for (slot, operand) in outputs {
            let window = operand.window(&relative, alignment);
            ranges.push(Range {
                slot: *slot,
                offset: window.offset,
                size: window.size,
            });
            let places = |layout: &Layout| match self.op.statistic {
                Statistic::Mass => {
                    let [batch, head, key] = layout_places(layout);
                    [batch, head, 0, key]
                }
                _ => layout_places(layout),
            };
            match (slot, &self.op.keys) {
                (Slot::Keys, Some(keys)) => {
                    params.v_at = window.first;
                    [params.v_batch, params.v_head, params.v_row, params.v_dim] = places(keys);
                }
                _ => {
                    params.o_at = window.first;
                    [params.o_batch, params.o_head, params.o_row, params.o_dim] =
                        places(&self.op.out);
                }
            }
        }
        Ok(Step {
            kernel: self.kernel,
            ranges,
            params: params.bytes(),
            grid: grid(tiles, self.caps)?,
        })
    }
}
