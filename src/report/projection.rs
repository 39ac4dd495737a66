//! Features as points in a plane: principal components, and t-SNE (van der Maaten and Hinton). Both are reproducible:
//! signs are fixed, and t-SNE starts from the principal components.

use anyhow::Result;
use bhtsne::tSNE;
use rayon::ThreadPoolBuilder;
use tch::{Kind, Tensor};

use crate::byol::loss::l2_normalize;

/// Dimensions that t-SNE sees.
const DIMENSIONS: i64 = 50;
/// Neighbors that count for a point of t-SNE.
const PERPLEXITY: f32 = 30.0;
/// Updates of t-SNE.
const UPDATES: usize = 750;
/// Most points of t-SNE.
pub const MAX_POINTS: usize = 4000;

/// The first `most` principal components of the normalized rows of `[N, D]`: `[N, most]`, and their shares of the
/// variance.
pub fn principal(features: &Tensor, most: i64) -> Result<(Tensor, Vec<f64>)> {
    let _no_grad = tch::no_grad_guard();
    let rows = l2_normalize(&features.to_kind(Kind::Double));
    let centered = &rows - rows.mean_dim(Some([0].as_slice()), true, Kind::Double);
    let covariance = centered.tr().f_matmul(&centered)?;
    let (values, vectors) = covariance.f_linalg_eigh("L")?; // ascending
    let most = most.min(values.size()[0]);
    let vectors = vectors.narrow(1, values.size()[0] - most, most).flip([1]);
    // An eigenvector's sign is arbitrary: its largest component is made positive.
    let largest = vectors.f_gather(0, &vectors.abs().argmax(0, true), false)?;
    let vectors = vectors * largest.sign();
    let total = values.clamp_min(0.0).sum(Kind::Double).double_value(&[]).max(f64::MIN_POSITIVE);
    let shares = values.narrow(0, values.size()[0] - most, most).flip([0]).clamp_min(0.0) / total;
    Ok((centered.f_matmul(&vectors)?, Vec::try_from(shares)?))
}

/// Two columns as points.
pub fn points(columns: &Tensor) -> Result<Vec<(f64, f64)>> {
    let rows = Vec::<Vec<f64>>::try_from(columns.to_kind(Kind::Double))?;
    Ok(rows.into_iter().map(|row| (row[0], row.get(1).copied().unwrap_or(0.0))).collect())
}

/// t-SNE of the rows of `[N, D]`, at most [`MAX_POINTS`]; `None` for too few.
pub fn tsne(features: &Tensor) -> Result<Option<Vec<(f64, f64)>>> {
    let (components, _) = principal(features, DIMENSIONS)?;
    let [count, dimensions] = [components.size()[0] as usize, components.size()[1] as usize];
    // Three times the perplexity is the number of neighbors that are looked at.
    let perplexity = PERPLEXITY.min((count as f32 - 2.0) / 3.0);
    if perplexity < 2.0 || dimensions < 2 || count > MAX_POINTS {
        return Ok(None);
    }
    let values = Vec::<f32>::try_from(components.to_kind(Kind::Float).contiguous().flatten(0, -1))?;
    let rows: Vec<&[f32]> = values.chunks(dimensions).collect();
    let first = components.narrow(1, 0, 2);
    let start = &first / first.std(false).clamp_min(1e-12) * 1e-4;
    let start = Vec::<f32>::try_from(start.to_kind(Kind::Float).contiguous().flatten(0, -1))?;
    let distance = |a: &&[f32], b: &&[f32]| a.iter().zip(*b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    // On one thread: the sums of several come in another order each time, and the map would not repeat.
    let pool = ThreadPoolBuilder::new().num_threads(1).build()?;
    let embedding = pool.install(|| {
        tSNE::<f32, &[f32], 2>::new(&rows)
            .perplexity(perplexity)
            .epochs(UPDATES)
            .initial_embedding(start)
            .barnes_hut(0.5, distance)
            .embedding()
    });
    Ok(Some(embedding.chunks(2).map(|point| (point[0].into(), point[1].into())).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};
    use tch::Device;

    /// Rows around as many centers as there are groups.
    fn groups(count: usize, groups: usize, dim: usize) -> Tensor {
        let mut rng = Stream::new(3, Purpose::Verify, 0, 0, 0);
        let values: Vec<f32> = (0..count * dim)
            .map(|at| rng.normal_pair().0 as f32 * 0.3 + if at / dim % groups == at % dim { 3.0 } else { 0.0 })
            .collect();
        Tensor::from_slice(&values).reshape([count as i64, dim as i64])
    }

    #[test]
    fn components_are_those_of_the_singular_value_decomposition() -> Result<()> {
        let features = groups(80, 4, 16);
        let (components, shares) = principal(&features, 3)?;
        let rows = l2_normalize(&features.to_kind(Kind::Double));
        let centered = &rows - rows.mean_dim(Some([0].as_slice()), true, Kind::Double);
        let (u, s, _) = centered.svd(true, true);
        let expected = (u * &s).narrow(1, 0, 3);
        let apart = (components.abs() - expected.abs()).abs().max().double_value(&[]);
        assert!(apart < 1e-9, "{apart}");
        let variance = s.square();
        let share = (variance.get(0) / variance.sum(Kind::Double)).double_value(&[]);
        assert!((shares[0] - share).abs() < 1e-9 && shares.len() == 3);
        Ok(())
    }

    #[test]
    fn tsne_keeps_neighbors_together_and_repeats() -> Result<()> {
        let features = groups(240, 4, 16);
        let first = tsne(&features)?.expect("enough points");
        assert_eq!(first, tsne(&features)?.expect("enough points"));
        let distance = |a: usize, b: usize| (first[a].0 - first[b].0).hypot(first[a].1 - first[b].1);
        let nearest = |a: usize| {
            let others = (0..first.len()).filter(|&b| b != a);
            others.min_by(|&b, &c| distance(a, b).total_cmp(&distance(a, c))).expect("others")
        };
        let same = (0..first.len()).filter(|&a| nearest(a) % 4 == a % 4).count();
        assert!(same > 235, "{same} of 240 lie beside one of their own group");
        assert_eq!(tsne(&Tensor::zeros([5, 8], (Kind::Float, Device::Cpu)))?, None);
        Ok(())
    }
}
