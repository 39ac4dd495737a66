//! Weighted k-nearest-neighbor classification (arXiv 1805.01978, section 3.4; lightly's `knn_predict`): the k
//! training features of largest cosine vote for their class with weight exp(cosine / temperature).

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde::Serialize;
use tch::{Kind, Tensor};

use super::Features;
use crate::byol::loss::l2_normalize;
use crate::distributed::Group;

/// Test images classified at once.
const QUERIES: i64 = 1024;
/// Training images they are compared with at once: memory is the product of the two, whatever the sets' sizes.
const BANK: i64 = 8192;

/// Accuracy with k neighbors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KnnAccuracy {
    /// Neighbors that vote.
    pub k: usize,
    /// Share of images whose class has most votes, 0 to 1.
    pub top1: f64,
    /// Share of images whose class is among the five with most votes, and has any.
    pub top5: f64,
}

/// Accuracies on `queries` for each of `ks`, from one pass, in f64: as exact as neighbors of fp32 features can be.
/// Without `queries` every image of the bank is classified
/// by the others (leave one out). Processes of a `group`, which all have all features, share the images to classify,
/// in the same blocks as one process. `tick` hears, block by block, how many images are done, in each process equally
/// often, and may give up.
/// # Errors
/// An image without a label; no images; a k larger than the number of images to compare with; `tick`'s own; a process
/// is gone, or late.
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

/// How the work is cut up.
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

/// Top-1 accuracy, 0 to 1, for one `k`, which is cut to the number of images to compare with; in fp32, for a quick look.
/// # Errors
/// As [`knn`].
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
    &Blocks { kind, queries: query_block, bank: bank_block, group }: &Blocks,
    tick: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<KnnAccuracy>> {
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
    let most = ks.iter().copied().max().unwrap_or(1) as i64;
    let _no_grad = tch::no_grad_guard();
    let device = bank.values.device();
    // Labels may be any numbers; votes are counted by their rank.
    let ranks: BTreeSet<i64> = bank.labels.iter().chain(&queries.labels).copied().collect();
    let ranks: Vec<i64> = ranks.into_iter().collect();
    let ranked = |labels: &[i64]| {
        let rank = |label| ranks.binary_search(label).map_or(0, |rank| rank as i64);
        Tensor::from_slice(&labels.iter().map(rank).collect::<Vec<i64>>()).to_device(device)
    };
    let (bank_labels, query_labels) = (ranked(&bank.labels), ranked(&queries.labels));
    let classes = ranks.len() as i64;
    let rows_of = |f: &Features, start, length| l2_normalize(&f.values.narrow(0, start, length).to_kind(kind));
    let (total, bank_total) = (queries.labels.len() as i64, bank.labels.len() as i64);
    let (rank, world) = group.map_or((0, 1), |group| (group.rank() as i64, group.world() as i64));
    let mut correct = vec![[0; 2]; ks.len()];
    // A round is a block for each process, at the end fewer.
    for round in (0..total).step_by((world * query_block) as usize) {
        tick(round as usize)?;
        let start = round + rank * query_block;
        let rows = query_block.min(total - start);
        if rows <= 0 {
            continue;
        }
        let query_rows = rows_of(queries, start, rows);
        let mut best: Option<(Tensor, Tensor)> = None; // cosines and labels of the nearest so far, both [rows, <= most]
        for from in (0..bank_total).step_by(bank_block as usize) {
            let count = bank_block.min(bank_total - from);
            let mut cosine = query_rows.f_matmul(&rows_of(bank, from, count).tr())?; // [rows, count]
            if leave_one_out {
                // Each image's own place, where it falls into this block.
                let own = Tensor::arange_start(start - from, start - from + rows, (Kind::Int64, device)).unsqueeze(1);
                let here = Tensor::arange(count, (Kind::Int64, device)).eq_tensor(&own);
                cosine = cosine.f_masked_fill(&here, f64::NEG_INFINITY)?;
            }
            let (near, index) = cosine.f_topk(most.min(count), 1, true, true)?;
            let labels = bank_labels.narrow(0, from, count).take(&index);
            best = Some(match best {
                None => (near, labels),
                Some((cosines, known)) => {
                    let (all, labels) = (Tensor::f_cat(&[cosines, near], 1)?, Tensor::f_cat(&[known, labels], 1)?);
                    let (near, index) = all.f_topk(most.min(all.size()[1]), 1, true, true)?;
                    let labels = labels.f_gather(1, &index, false)?;
                    (near, labels)
                }
            });
        }
        let Some((near, labels)) = best else { continue };
        // The nearest neighbor's weight is 1: only ratios count, and exp(1 / temperature) may be infinite.
        let weights = ((&near - near.narrow(1, 0, 1)) / temperature).exp();
        let own = query_labels.narrow(0, start, rows).unsqueeze(1);
        for (&k, correct) in ks.iter().zip(&mut correct) {
            let (weights, labels) = (weights.narrow(1, 0, k as i64), labels.narrow(1, 0, k as i64));
            let votes = Tensor::zeros([rows, classes], (kind, device)).f_scatter_add(1, &labels, &weights)?;
            let (counts, ranking) = votes.f_topk(classes.min(5), 1, true, true)?;
            let hits = ranking.eq_tensor(&own).f_logical_and(&counts.gt(0.0))?;
            correct[0] += hits.select(1, 0).sum(Kind::Int64).int64_value(&[]);
            correct[1] += hits.sum(Kind::Int64).int64_value(&[]);
        }
    }
    tick(total as usize)?;
    let hits: Vec<f64> = correct.into_iter().flatten().map(|hits| hits as f64).collect();
    let hits = group.map_or(Ok(hits.clone()), |group| group.sum(&hits))?;
    let shares = |hits: &[f64]| [0, 1].map(|at| hits[at] / total as f64);
    let results = ks.iter().zip(hits.chunks(2).map(shares));
    Ok(results.map(|(&k, [top1, top5])| KnnAccuracy { k, top1, top5 }).collect())
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

    /// The definition, a query at a time, in f64: top-1 and top-5.
    fn brute_force(bank: &Features, queries: &Features, leave_out: bool, k: usize, temperature: f64) -> [f64; 2] {
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
        let mut correct = [0; 2];
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
        }
        correct.map(|hits| hits as f64 / queries.labels.len() as f64)
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
                    let found: Vec<_> = found.iter().map(|f| [f.top1, f.top5]).collect();
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
