//! Orders by bucket, and the k-means step that is made of them.

/// What a sort of one row gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sorted {
    /// The element at each place.
    pub indices: Vec<u32>,
    /// The place of each element.
    pub inverse: Vec<u32>,
    /// The first place of each bucket, and the number of elements that have one.
    pub starts: Vec<u32>,
}

/// The stable order of elements by bucket; those with no bucket below `buckets` come last.
pub fn sort(x: &[u32], buckets: u32) -> Sorted {
    let mut indices: Vec<u32> = (0..x.len() as u32).collect();
    indices.sort_by_key(|&i| x[i as usize].min(buckets));
    let mut inverse = vec![0; x.len()];
    for (place, &i) in indices.iter().enumerate() {
        inverse[i as usize] = place as u32;
    }
    let starts = (0..=buckets)
        .map(|bucket| indices.partition_point(|&i| x[i as usize] < bucket) as u32)
        .collect();
    Sorted {
        indices,
        inverse,
        starts,
    }
}

/// Inputs of a k-means step, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct ClusterUpdateInputs<'a> {
    /// Batch entries.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Channels.
    pub dim: usize,
    /// Tokens, `[batch, heads, n, dim]`.
    pub x: &'a [f64],
    /// Centroids, `[heads, clusters, dim]`.
    pub means: &'a [f64],
    /// What stays of them.
    pub decay: f64,
}

/// Centroids after a step, `[heads, clusters, dim]`, and the cluster of each token, `[batch, heads, n]`.
pub fn cluster_update(inputs: &ClusterUpdateInputs<'_>) -> (Vec<f64>, Vec<u32>) {
    let ClusterUpdateInputs {
        batch,
        heads,
        dim,
        x,
        means,
        decay,
    } = *inputs;
    let (n, clusters) = (x.len() / (batch * heads * dim), means.len() / (heads * dim));
    let mut sums = vec![0.0; means.len()];
    let mut counts = vec![0; heads * clusters];
    let mut assigned = Vec::new();
    for (token, row) in x.chunks(dim).enumerate() {
        let head = token / n % heads;
        let mut best = (0, f64::NEG_INFINITY);
        for c in 0..clusters {
            let mean = &means[(head * clusters + c) * dim..][..dim];
            let product: f64 = row.iter().zip(mean).map(|(x, m)| x * m).sum();
            if product > best.1 {
                best = (c, product);
            }
        }
        assigned.push(best.0 as u32);
        let cluster = head * clusters + best.0;
        counts[cluster] += 1;
        for (sum, x) in sums[cluster * dim..].iter_mut().zip(row) {
            *sum += x;
        }
    }
    let mut new_means = Vec::new();
    for (cluster, sum) in sums.chunks(dim).enumerate() {
        let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        for (old, sum) in means[cluster * dim..].iter().zip(sum) {
            let own = if counts[cluster] > 0 {
                sum / norm
            } else {
                *old
            };
            new_means.push(decay * old + (1.0 - decay) * own);
        }
    }
    (new_means, assigned)
}
