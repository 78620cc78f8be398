//! Routing from its definition.

use crate::ops::{Keep, RouteMass, Visible};

/// Inputs of [`route`].
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are those of the op")]
pub struct RouteInputs<'a> {
    pub batch: usize,
    pub heads: usize,
    pub group: usize,
    pub rows: usize,
    pub blocks: usize,
    /// `[batch, heads, rows, blocks]`
    pub scores: &'a [f64],
    pub keep: Keep,
    pub visible: Visible,
    pub own: bool,
    pub first: usize,
    pub recent: usize,
    /// First query of each row and the end of its queries, for each batch entry and head after summing.
    pub row_ranges: &'a [Vec<(usize, usize)>],
    /// First position of each block and its end, likewise.
    pub block_ranges: &'a [Vec<(usize, usize)>],
    /// Valid positions of each batch entry; all when empty.
    pub lens: &'a [usize],
    /// Where sequences begin, and the last ends; one of all positions when empty.
    pub cu_seqlens: &'a [usize],
}

/// What a row takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Routed {
    /// The blocks, ascending.
    pub blocks: Vec<usize>,
    /// The difference between the lowest score taken and the highest left; infinite where the row has no choice.
    pub margin: f64,
    /// With [`Keep::TopP`], how far the mass of the taken ones is from the share, and that of one fewer; else infinite.
    pub share_margin: f64,
}

/// What each row takes, `[batch, heads / group, rows]`.
pub fn route(a: &RouteInputs<'_>) -> Vec<Routed> {
    let heads = a.heads / a.group;
    let mut all = Vec::new();
    for b in 0..a.batch {
        for h in 0..heads {
            for i in 0..a.rows {
                all.push(row(a, b, h, i));
            }
        }
    }
    all
}

struct Candidate {
    block: usize,
    forced: bool,
    score: f64,
}

fn row(a: &RouteInputs<'_>, b: usize, h: usize, i: usize) -> Routed {
    let sequence = b * (a.heads / a.group) + h;
    let (query, query_end) = a.row_ranges[sequence][i];
    let blocks = &a.block_ranges[sequence];
    // Positions that the row's sequence has.
    let (begin, end) = match a.cu_seqlens {
        [] => (0, usize::MAX),
        starts => {
            let own = starts.windows(2).find(|w| (w[0]..w[1]).contains(&query));
            own.map_or((0, 0), |w| (w[0], w[1]))
        }
    };
    let end = end.min(a.lens.get(b).copied().unwrap_or(usize::MAX));
    // Begins in the sequence.
    let there = |j: usize| (begin..end).contains(&blocks[j].0) && query < query_end;
    let up_to_last = |j: usize| blocks[j].0 < query_end;
    let visible = |j: usize| match a.visible {
        Visible::All => true,
        Visible::Causal => up_to_last(j),
        Visible::Complete => blocks[j].1 <= query + 1,
    };
    let of_row: Vec<usize> = (0..a.blocks).filter(|&j| there(j)).collect();
    let recent: Vec<usize> = of_row
        .iter()
        .copied()
        .filter(|&j| up_to_last(j))
        .rev()
        .take(a.recent)
        .collect();
    let first: Vec<usize> = of_row
        .iter()
        .copied()
        .take(a.first)
        .filter(|&j| a.visible == Visible::All || up_to_last(j))
        .collect();
    let forced = |j: usize| {
        let holds = blocks[j].0 < query_end.min(end) && query < blocks[j].1.min(end);
        (a.own && holds) || recent.contains(&j) || first.contains(&j)
    };
    let score = |j: usize| -> f64 {
        let of_head = |g: usize| {
            let head = b * a.heads + h * a.group + g;
            a.scores[(head * a.rows + i) * a.blocks + j]
        };
        let scores: Vec<f64> = (0..a.group).map(of_head).collect();
        if scores.iter().any(|x| x.is_nan() || *x == f64::NEG_INFINITY) {
            return f64::NEG_INFINITY;
        }
        scores.iter().sum::<f64>().min(f32::MAX.into())
    };
    let mut order: Vec<Candidate> = of_row
        .into_iter()
        .filter(|&j| blocks[j].0 < blocks[j].1)
        .map(|j| Candidate {
            block: j,
            forced: forced(j),
            score: score(j),
        })
        .filter(|c| c.forced || (visible(c.block) && c.score > f64::NEG_INFINITY))
        .collect();
    // Stable: of equal ones, lower blocks stay first.
    order.sort_by(|x, y| {
        (y.forced, y.score)
            .partial_cmp(&(x.forced, x.score))
            .expect("numbers")
    });
    let forced_first = order.partition_point(|c| c.forced);
    order[..forced_first].sort_by_key(|c| c.block);

    let mut margin = f64::INFINITY;
    let mut share_margin = f64::INFINITY;
    let count = match a.keep {
        Keep::TopK { k } => (k as usize).min(order.len()),
        Keep::TopP { p, mass, min, max } => {
            let top = order.iter().map(|c| c.score).fold(f64::MIN, f64::max);
            let worth: Vec<f64> = order
                .iter()
                .map(|c| match mass {
                    RouteMass::Softmax => (c.score - top).exp(),
                    RouteMass::Given => c.score.max(0.0),
                })
                .collect();
            let total: f64 = worth.iter().sum();
            let p = f64::from(p.0);
            let mut count = 0;
            let mut sum = 0.0;
            // The shortest prefix that reaches the share; and no less than what is forced.
            while count < order.len() && (p >= 1.0 || sum < p * total || count < forced_first) {
                sum += worth[count];
                count += 1;
                if p < 1.0 {
                    share_margin = share_margin.min((sum / total - p).abs());
                }
            }
            count.max(min as usize).min(max as usize).min(order.len())
        }
    };
    if let [.., last] = &order[..count]
        && let Some(next) = order.get(count)
        && !last.forced
    {
        margin = margin.min(last.score - next.score);
    }
    let mut taken: Vec<usize> = order[..count].iter().map(|c| c.block).collect();
    taken.sort_unstable();
    Routed {
        blocks: taken,
        margin,
        share_margin,
    }
}
