//! Selections by sorting whole rows.

use std::cmp::Ordering;

use crate::ops::{NONE, RouteMass};

/// Which elements of a row are taken, and how; see [`crate::TopK`].
#[derive(Debug, Clone, Copy)]
pub struct TopKRule {
    /// How many.
    pub k: usize,
    /// The largest, or the smallest.
    pub largest: bool,
    /// Best first, or by index.
    pub sorted: bool,
    /// Without NaN and the worse infinity.
    pub skip_hidden: bool,
}

/// Best first; of equal ones the first.
fn order(row: &[f32], largest: bool, of: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut order: Vec<usize> = of.collect();
    // The sort is stable, and `partial_cmp` takes -0 for +0.
    order.sort_by(|&a, &b| {
        let (a, b) = if largest { (a, b) } else { (b, a) };
        match (row[a].is_nan(), row[b].is_nan()) {
            (false, false) => row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal),
            (x, y) if largest => x.cmp(&y),
            (x, y) => y.cmp(&x),
        }
    });
    order
}

/// The elements taken of one row and their indices, by sorting it. `len` of the row are valid.
pub fn top_k(row: &[f32], len: usize, rule: &TopKRule) -> (Vec<f32>, Vec<u32>) {
    let worst = if rule.largest {
        f32::NEG_INFINITY
    } else {
        f32::INFINITY
    };
    let valid = (0..len.min(row.len()))
        .filter(|&j| !rule.skip_hidden || !(row[j].is_nan() || row[j] == worst));
    let mut order = order(row, rule.largest, valid);
    order.truncate(rule.k);
    if !rule.sorted {
        order.sort_unstable();
    }
    let mut values: Vec<f32> = order.iter().map(|&j| row[j]).collect();
    let mut indices: Vec<u32> = order.iter().map(|&j| j as u32).collect();
    values.resize(rule.k, worst);
    indices.resize(rule.k, NONE);
    (values, indices)
}

/// Which elements of a row are taken by mass; see [`crate::TopP`].
#[derive(Debug, Clone, Copy)]
pub struct TopPRule {
    /// Share of the mass.
    pub p: f64,
    /// What an element is worth.
    pub mass: RouteMass,
    /// At least so many.
    pub min: usize,
    /// At most so many.
    pub max: usize,
    /// Best first, or by index.
    pub sorted: bool,
}

/// The indices of what is taken of one row, how many, and how far the mass is from the bound where the number was
/// decided, as a share of the whole: within rounding, a kernel may decide otherwise.
pub fn top_p(row: &[f32], len: usize, rule: &TopPRule) -> (Vec<u32>, usize, f64) {
    let valid =
        (0..len.min(row.len())).filter(|&j| !(row[j].is_nan() || row[j] == f32::NEG_INFINITY));
    let mut order = order(row, true, valid);
    let number = |j: usize| f64::from(row[j].min(f32::MAX));
    let highest = order.first().map_or(0.0, |&j| number(j));
    let masses: Vec<f64> = order
        .iter()
        .map(|&j| match rule.mass {
            RouteMass::Softmax => (number(j) - highest).exp(),
            RouteMass::Given => number(j).max(0.0),
        })
        .collect();
    let total: f64 = masses.iter().sum();
    let mut count = 0;
    let mut sum = 0.0;
    let mut margin = f64::INFINITY;
    while count < order.len() && (rule.p >= 1.0 || sum < rule.p * total) {
        sum += masses[count];
        count += 1;
        if rule.p < 1.0 {
            margin = margin.min((sum / total - rule.p).abs());
        }
    }
    let count = count.max(rule.min).min(rule.max).min(order.len());
    order.truncate(count);
    if !rule.sorted {
        order.sort_unstable();
    }
    let mut indices: Vec<u32> = order.iter().map(|&j| j as u32).collect();
    indices.resize(rule.max, NONE);
    (indices, count, margin)
}
