//! Patterns of blocks, from columns and diagonals, and the choice among patterns.

/// The blocks that rows take: row `i` is of queries `first_query + block_q i ..`, block `j` of keys `block_kv j ..`;
/// true where a query of the row has a listed diagonal in the block, or the block holds a listed column at or before the
/// row's last query. `[rows, blocks]`.
pub fn vertical_slash(
    (columns, diagonals): (&[u32], &[u32]),
    [block_q, block_kv]: [usize; 2],
    [rows, blocks]: [usize; 2],
    first_query: usize,
) -> Vec<bool> {
    let mut taken = vec![false; rows * blocks];
    let mut take = |row: usize, key: usize| {
        if key / block_kv < blocks {
            taken[row * blocks + key / block_kv] = true;
        }
    };
    for row in 0..rows {
        for query in first_query + row * block_q..first_query + (row + 1) * block_q {
            for &back in diagonals {
                if let Some(key) = query.checked_sub(back as usize) {
                    take(row, key);
                }
            }
            for &column in columns {
                if column as usize <= query {
                    take(row, column as usize);
                }
            }
        }
    }
    taken
}

/// The Jensen-Shannon distance of two rows, each over its sum; `sqrt(ln 2)` where a sum is not above 0.
pub fn jensen_shannon(sample: &[f64], estimate: &[f64]) -> f64 {
    let sum = |row: &[f64]| row.iter().map(|x| x.max(0.0)).sum::<f64>();
    let [of_sample, of_estimate] = [sum(sample), sum(estimate)];
    if of_sample <= 0.0 || of_estimate <= 0.0 {
        return std::f64::consts::LN_2.sqrt();
    }
    let mut divergence = 0.0;
    for (&p, &r) in sample.iter().zip(estimate) {
        let (p, r) = (p.max(0.0) / of_sample, r.max(0.0) / of_estimate);
        let middle = (p + r) / 2.0;
        for x in [p, r] {
            if x > 0.0 {
                divergence += x * (x / middle).ln() / 2.0;
            }
        }
    }
    divergence.max(0.0).sqrt()
}
