//! A selection written into dense rows, from the formula.

/// `y[index[j]] = factor * x[j]` for each row of `k` entries, the last one that names a place; `fill` elsewhere.
/// `factors` are those of the rows; without `x`, its elements are 1.
pub fn scatter(x: Option<&[f64]>, index: &[u32], factors: &[f64], n: usize, fill: f64) -> Vec<f64> {
    let entries = index.len() / factors.len().max(1);
    let mut y = vec![fill; factors.len() * n];
    for (row, (index, factor)) in index.chunks(entries.max(1)).zip(factors).enumerate() {
        for (entry, &place) in index.iter().enumerate() {
            if (place as usize) < n {
                let value = x.map_or(1.0, |x| x[row * entries + entry]);
                y[row * n + place as usize] = value * factor;
            }
        }
    }
    y
}
