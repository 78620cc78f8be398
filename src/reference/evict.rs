//! A list of kept keys, one step on.

use crate::ops::NONE;

/// A list and its scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Positions, [`NONE`] where a place is free.
    pub index: Vec<u32>,
    /// Scores.
    pub scores: Vec<f64>,
}

/// What a step on one list takes.
#[derive(Debug, Clone, Copy)]
pub struct EvictInputs<'a> {
    /// The last query's weight of each place, or position, summed over query heads.
    pub weight: &'a [f64],
    /// Whether weights are by position.
    pub by_position: bool,
    /// Position of the new token; [`NONE`] where there is none.
    pub position: u32,
    /// Positions that are kept.
    pub recent: u64,
    /// Whether the list ascends.
    pub ascending: bool,
}

/// Adds weights, drops the lowest score of a full list, puts the new token in: the place where it went.
pub fn evict(kept: &mut Kept, inputs: &EvictInputs<'_>) -> Option<usize> {
    for (j, (&key, score)) in kept.index.iter().zip(&mut kept.scores).enumerate() {
        if key != NONE {
            let at = if inputs.by_position { key as usize } else { j };
            *score += inputs.weight.get(at).copied().unwrap_or(0.0);
        }
    }
    if inputs.position == NONE {
        return None;
    }
    let free = kept.index.iter().position(|&key| key == NONE);
    let place = free.unwrap_or_else(|| {
        let is_recent =
            |key: u32| key <= inputs.position && u64::from(inputs.position - key) < inputs.recent;
        let mut lowest = 0;
        for j in 1..kept.index.len() {
            let rank = |j: usize| (is_recent(kept.index[j]), kept.scores[j]);
            if rank(j) < rank(lowest) {
                lowest = j;
            }
        }
        lowest
    });
    if inputs.ascending && free.is_none() {
        kept.index.remove(place);
        kept.scores.remove(place);
        kept.index.push(inputs.position);
        kept.scores.push(0.0);
        return Some(kept.index.len() - 1);
    }
    kept.index[place] = inputs.position;
    kept.scores[place] = 0.0;
    Some(place)
}
