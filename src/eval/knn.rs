//! Weighted k-nearest-neighbor classification (arXiv 1805.01978, section 3.4; lightly's `knn_predict`): the k
//! training features of largest cosine vote for their class with weight exp(cosine / temperature).

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde::Serialize;
use tch::{Kind, Tensor};

use super::Features;
use super::nearest::{BANK, Nearest, QUERIES};
use crate::distributed::Group;

/// Accuracy with k neighbors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KnnAccuracy {
    /// Number of neighbors.
    pub k: usize,
    /// Share of images whose class has most votes, 0 to 1.
    pub top1: f64,
    /// Mean over the classes of the same (mean recall).
    pub balanced_top1: f64,
    /// Share of images whose class is among the five with most votes, with at least one vote; `None` with five classes
    /// or fewer.
    pub top5: Option<f64>,
}

/// Accuracies on `queries` for each of `ks`, from one pass, in f64: as exact as neighbors of fp32 features can be.
/// Without `queries` every image of the bank is classified
/// by the others (leave one out). Processes of a `group`, which all have all features, share the images to classify,
/// in the same blocks as one process. `tick` is called for every block with the number of images done, in each process
/// equally often, and may return an error.
/// # Errors
/// An image without a label; no images; a k larger than the number of images to compare with; those of `tick`;
/// another process was lost or timed out.
pub fn knn(
    bank: &Features,
    queries: Option<&Features>,
    ks: &[usize],
    temperature: f64,
    group: Option<&Group>,
    tick: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<KnnAccuracy>> {
    in_blocks(bank, queries, ks, temperature, &Blocks { kind: Kind::Double, ..Blocks::of(group) }, tick)
}

/// Block sizes.
struct Blocks<'a> {
    kind: Kind,
    queries: i64,
    bank: i64,
    group: Option<&'a Group>,
}

impl<'a> Blocks<'a> {
    fn of(group: Option<&'a Group>) -> Self {
        Self { kind: Kind::Float, queries: QUERIES, bank: BANK, group }
    }
}

/// Top-1 accuracy, 0 to 1, for one `k`, which is limited to the number of images to compare with; in fp32, for
/// monitoring.
pub fn knn_top1(
    bank: &Features,
    queries: Option<&Features>,
    k: usize,
    temperature: f64,
    group: Option<&Group>,
) -> Result<f64> {
    let others = bank.labels.len().saturating_sub(usize::from(queries.is_none())).max(1);
    Ok(in_blocks(bank, queries, &[k.min(others)], temperature, &Blocks::of(group), &mut |_| Ok(()))?[0].top1)
}

fn in_blocks(
    bank: &Features,
    queries: Option<&Features>,
    ks: &[usize],
    temperature: f64,
    blocks: &Blocks,
    tick: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<KnnAccuracy>> {
    let _no_grad = tch::no_grad_guard();
    let search = Search::new(bank, queries, ks, temperature, blocks)?;
    let most = ks.iter().copied().max().unwrap_or(1) as i64;
    let total = search.queries.labels.len() as i64;
    let (rank, world) = blocks.group.map_or((0, 1), |group| (group.rank() as i64, group.world() as i64));
    let mut counts = Vec::new();
    ks.iter().for_each(|_| counts.push(Tensor::zeros([search.classes + 1], (Kind::Int64, bank.values.device()))));
    // A round is one block per process, fewer at the end.
    for round in (0..total).step_by((world * blocks.queries) as usize) {
        tick(round as usize)?;
        let start = round + rank * blocks.queries;
        let rows = blocks.queries.min(total - start);
        if rows > 0 {
            let (near, found) = search.nearest.of(start, rows, most)?;
            search.vote(start, &near, &search.bank_labels.f_take(&found)?, &mut counts)?;
        }
    }
    tick(total as usize)?;
    let mut hits: Vec<f64> = Vec::new();
    for counts in &counts {
        hits.extend(Vec::<i64>::try_from(counts)?.into_iter().map(|count| count as f64));
    }
    let hits = blocks.group.map_or(Ok(hits.clone()), |group| group.sum(&hits))?;
    let images = Vec::<i64>::try_from(search.query_labels.bincount::<Tensor>(None, search.classes))?;
    let results = ks.iter().zip(hits.chunks(search.classes as usize + 1));
    Ok(results.map(|(&k, hits)| KnnAccuracy::new(k, hits, &images)).collect())
}

impl KnnAccuracy {
    /// From the hits of each class followed by those among the first five; `images` of each class.
    fn new(k: usize, hits: &[f64], images: &[i64]) -> Self {
        let (first, five) = hits.split_at(images.len());
        let total = images.iter().sum::<i64>() as f64;
        let shares: Vec<f64> =
            first.iter().zip(images).filter(|(_, n)| **n > 0).map(|(hits, &n)| hits / n as f64).collect();
        Self {
            k,
            top1: first.iter().sum::<f64>() / total,
            balanced_top1: shares.iter().sum::<f64>() / shares.len() as f64,
            top5: (images.len() > 5).then(|| five[0] / total),
        }
    }
}

/// The features to compare.
struct Search<'a> {
    nearest: Nearest<'a>,
    queries: &'a Features,
    ks: &'a [usize],
    temperature: f64,
    // Labels may be any numbers; votes are counted by their index among the sorted labels.
    bank_labels: Tensor,
    query_labels: Tensor,
    classes: i64,
}

impl<'a> Search<'a> {
    fn new(
        bank: &'a Features,
        queries: Option<&'a Features>,
        ks: &'a [usize],
        temperature: f64,
        blocks: &Blocks,
    ) -> Result<Self> {
        let leave_one_out = queries.is_none();
        let queries = queries.unwrap_or(bank);
        let others = bank.labels.len().saturating_sub(usize::from(leave_one_out));
        if others == 0 || queries.labels.is_empty() {
            bail!("k-NN: found {others} training and {} test images, expected some of both", queries.labels.len());
        }
        if bank.labels.iter().chain(&queries.labels).any(|&label| label < 0) {
            bail!("k-NN: found images without a label, expected labels for all");
        }
        if let Some(k) = ks.iter().find(|&&k| k == 0 || k > others) {
            bail!("k-NN: found k = {k}, expected 1 to {others}, the number of training images to compare with");
        }
        let ranks: BTreeSet<i64> = bank.labels.iter().chain(&queries.labels).copied().collect();
        let ranks: Vec<i64> = ranks.into_iter().collect();
        let ranked = |labels: &[i64]| {
            let rank = |label| ranks.binary_search(label).map_or(0, |rank| rank as i64);
            Tensor::from_slice(&labels.iter().map(rank).collect::<Vec<i64>>()).to_device(bank.values.device())
        };
        let (bank_labels, query_labels) = (ranked(&bank.labels), ranked(&queries.labels));
        let (kind, block, classes) = (blocks.kind, blocks.bank, ranks.len() as i64);
        let nearest = Nearest { bank: &bank.values, queries: &queries.values, leave_one_out, kind, block };
        Ok(Self { nearest, queries, ks, temperature, bank_labels, query_labels, classes })
    }

    /// Adds the hits of each k among the queries from `start` on: by class, and behind them those of the first five.
    fn vote(&self, start: i64, near: &Tensor, labels: &Tensor, counts: &mut [Tensor]) -> Result<()> {
        // The nearest neighbor's weight is 1: only ratios count, and exp(1 / temperature) may be infinite.
        let weights = ((near - near.narrow(1, 0, 1)) / self.temperature).exp();
        let rows = near.size()[0];
        let own = self.query_labels.narrow(0, start, rows);
        for (&k, counts) in self.ks.iter().zip(counts) {
            let (weights, labels) = (weights.narrow(1, 0, k as i64), labels.narrow(1, 0, k as i64));
            let votes = Tensor::zeros([rows, self.classes], (near.kind(), near.device()));
            let votes = votes.f_scatter_add(1, &labels, &weights)?;
            let (most, ranking) = votes.f_topk(self.classes.min(5), 1, true, true)?;
            let hits = ranking.eq_tensor(&own.unsqueeze(1)).f_logical_and(&most.gt(0.0))?.to_kind(Kind::Int64);
            let _ = counts.f_index_add_(0, &own, &hits.select(1, 0))?;
            let _ = counts.get(self.classes).f_add_(&hits.sum(Kind::Int64))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn random(count: usize, dim: usize, classes: usize, seed: u64) -> Features {
        let mut rng = Stream::new(seed, Purpose::Init, 0, 0, 0);
        let labels: Vec<i64> = (0..count).map(|_| rng.below(classes) as i64).collect();
        let values: Vec<f32> = (0..count * dim)
            .map(|i| rng.normal_pair().0 as f32 + if i % dim == labels[i / dim] as usize { 1.0 } else { 0.0 })
            .collect();
        Features { values: Tensor::from_slice(&values).reshape([count as i64, dim as i64]), labels }
    }

    /// The definition, a query at a time, in f64: top-1, balanced top-1 and top-5.
    fn brute_force(bank: &Features, queries: &Features, leave_out: bool, k: usize, temperature: f64) -> [f64; 3] {
        let rows = |f: &Features| -> Vec<Vec<f64>> {
            let dim = f.values.size()[1];
            (0..f.labels.len())
                .map(|i| {
                    let row: Vec<f64> = (0..dim).map(|d| f.values.double_value(&[i as i64, d])).collect();
                    let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                    row.iter().map(|v| v / norm).collect()
                })
                .collect()
        };
        let (bank_rows, query_rows) = (rows(bank), rows(queries));
        let (mut correct, mut by_class) = ([0; 2], [[0; 2]; 10]);
        for (q, query) in query_rows.iter().enumerate() {
            let mut near: Vec<(f64, i64)> = bank_rows
                .iter()
                .enumerate()
                .filter(|(b, _)| !leave_out || *b != q)
                .map(|(b, row)| (row.iter().zip(query).map(|(x, y)| x * y).sum(), bank.labels[b]))
                .collect();
            near.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut votes = [0.0; 10];
            for (cosine, label) in near.into_iter().take(k) {
                votes[label as usize] += (cosine / temperature).exp();
            }
            let mut order: Vec<usize> = (0..10).filter(|&class| votes[class] > 0.0).collect();
            order.sort_by(|&a, &b| votes[b].total_cmp(&votes[a]));
            let place = order.iter().position(|&class| class as i64 == queries.labels[q]);
            correct[0] += usize::from(place == Some(0));
            correct[1] += usize::from(place.is_some_and(|place| place < 5));
            by_class[queries.labels[q] as usize][0] += usize::from(place == Some(0));
            by_class[queries.labels[q] as usize][1] += 1;
        }
        let [top1, top5] = correct.map(|hits| hits as f64 / queries.labels.len() as f64);
        let shares = by_class.map(|[hits, images]| hits as f64 / images as f64);
        [top1, shares.iter().sum::<f64>() / 10.0, top5]
    }

    #[test]
    fn blocks_of_any_size_agree_with_the_definition() -> Result<()> {
        let (bank, queries) = (random(300, 16, 10, 1), random(120, 16, 10, 2));
        for (ks, temperature) in [(vec![20, 1, 3, 200], 0.1), (vec![299], 0.07), (vec![5], 0.01)] {
            for (leave_out, queries) in [(false, &queries), (true, &bank)] {
                let expected: Vec<_> =
                    ks.iter().map(|&k| brute_force(&bank, queries, leave_out, k, temperature)).collect();
                for (kind, blocks) in [
                    (Kind::Double, [QUERIES, BANK]),
                    (Kind::Double, [64, 100]),
                    (Kind::Double, [7, 11]),
                    (Kind::Float, [64, 100]),
                ] {
                    let given = (!leave_out).then_some(queries);
                    let mut done = 0;
                    let mut tick = |n: usize| {
                        done = n;
                        Ok(())
                    };
                    let blocks = Blocks { kind, queries: blocks[0], bank: blocks[1], group: None };
                    let found = in_blocks(&bank, given, &ks, temperature, &blocks, &mut tick)?;
                    assert_eq!(found.iter().map(|f| f.k).collect::<Vec<_>>(), ks);
                    let found: Vec<_> =
                        found.iter().map(|f| [f.top1, f.balanced_top1, f.top5.expect("ten classes")]).collect();
                    assert_eq!(found, expected, "k {ks:?}, leave one out {leave_out}, blocks {}", blocks.queries);
                    assert_eq!(done, queries.labels.len());
                }
            }
        }
        Ok(())
    }

    #[test]
    fn too_large_a_k_is_cut_or_refused() -> Result<()> {
        let (bank, queries) = (random(50, 16, 10, 1), random(30, 16, 10, 2));
        assert_eq!(knn_top1(&bank, Some(&queries), 999, 0.1, None)?, brute_force(&bank, &queries, false, 50, 0.1)[0]);
        assert_eq!(knn_top1(&bank, None, 999, 0.1, None)?, brute_force(&bank, &bank, true, 49, 0.1)[0]);
        for (queries, k, most) in [(Some(&queries), 51, 50), (None, 50, 49), (None, 0, 49)] {
            let error = knn(&bank, queries, &[1, k], 0.1, None, &mut |_| Ok(())).expect_err("refused");
            assert!(error.to_string().contains(&format!("found k = {k}, expected 1 to {most}")), "{error}");
        }
        Ok(())
    }

    #[test]
    fn a_tiny_temperature_does_not_overflow() -> Result<()> {
        let (bank, queries) = (random(300, 16, 10, 1), random(100, 16, 10, 2));
        // The nearest neighbor decides alone.
        let nearest = knn_top1(&bank, Some(&queries), 1, 0.1, None)?;
        assert_eq!(knn_top1(&bank, Some(&queries), 100, 1e-6, None)?, nearest);
        Ok(())
    }

    #[test]
    fn five_classes_have_no_top_5() -> Result<()> {
        let (five, six) = (random(60, 16, 5, 1), random(60, 16, 6, 1));
        let found = |bank| Ok::<_, anyhow::Error>(knn(bank, None, &[3], 0.1, None, &mut |_| Ok(()))?[0].top5);
        assert!(found(&five)?.is_none() && found(&six)?.is_some());
        Ok(())
    }

    #[test]
    fn missing_labels_are_an_error() {
        let mut bank = random(10, 16, 10, 3);
        bank.labels[4] = -1;
        assert!(
            knn_top1(&bank, None, 5, 0.1, None)
                .expect_err("a label is missing")
                .to_string()
                .contains("without a label")
        );
    }
}
