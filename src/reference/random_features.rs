//! Random features from their formula.

use crate::ops::{RandomFeatures, RandomKernel, Stabiliser, dims};

/// The features of contiguous rows `x`, in the shapes that the op's layouts give.
pub fn random_features(op: &RandomFeatures, x: &[f64], projection: &[f64]) -> Vec<f64> {
    let [_, _, seq, dim] = dims(&op.x).map(|len| len as usize);
    let features = dims(&op.y)[3] as usize;
    let (scale, eps) = (f64::from(op.effective_scale()), f64::from(op.eps.0));
    let mut y = Vec::new();
    for head in x.chunks(seq * dim) {
        let rows: Vec<Vec<f64>> = (head.chunks(dim))
            .map(|row| row.iter().map(|x| scale * x).collect())
            .collect();
        let products = |row: &[f64]| -> Vec<f64> {
            (projection.chunks(dim))
                .map(|p| p.iter().zip(row).map(|(p, u)| p * u).sum())
                .collect()
        };
        let most = |row: &[f64]| products(row).into_iter().fold(f64::NEG_INFINITY, f64::max);
        let of_all = rows
            .iter()
            .map(|row| most(row))
            .fold(f64::NEG_INFINITY, f64::max);
        for row in &rows {
            let half_square = row.iter().map(|u| u * u).sum::<f64>() / 2.0;
            let less = match op.kernel {
                RandomKernel::Softmax {
                    stabiliser: Stabiliser::Row,
                } => most(row),
                _ => of_all,
            };
            y.extend(products(row).into_iter().map(|product| match op.kernel {
                RandomKernel::Relu => product.max(0.0) + eps,
                RandomKernel::Softmax { .. } => {
                    ((product - half_square - less).exp() + eps) / (features as f64).sqrt()
                }
            }));
        }
    }
    y
}
