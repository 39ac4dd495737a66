//! Weighted k-nearest-neighbour classification (arXiv 1805.01978, section 3.4; lightly's `knn_predict`): the k
//! training features of largest cosine vote for their class with weight exp(cosine / temperature).

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use tch::{Kind, Tensor};

use super::Features;

/// Rows classified at once: memory is this times the number of training images, not times the test images too.
const BLOCK: i64 = 256;

/// Fraction of `queries` whose class is found by their `k` nearest of `bank`. Without `queries` every image of the
/// bank is classified by the others (leave one out). `k` is cut to the size of the bank.
/// # Errors
/// An image without a label; no images.
pub fn knn_top1(bank: &Features, queries: Option<&Features>, k: usize, temperature: f64) -> Result<f64> {
    let leave_one_out = queries.is_none();
    let queries = queries.unwrap_or(bank);
    let others = bank.labels.len() - usize::from(leave_one_out && !bank.labels.is_empty());
    if others == 0 || queries.labels.is_empty() {
        bail!("k-NN: found {} training and {} test images, expected some of both", others, queries.labels.len());
    }
    if bank.labels.iter().chain(&queries.labels).any(|&label| label < 0) {
        bail!("k-NN: found images without a label, expected labels for all; set monitor.knn_every=0");
    }
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
    let bank_rows = crate::loss::l2_normalise(&bank.values).tr(); // [D, N]
    let query_rows = crate::loss::l2_normalise(&queries.values);
    let total = queries.labels.len() as i64;
    let mut correct = 0;
    for start in (0..total).step_by(BLOCK as usize) {
        let rows = BLOCK.min(total - start);
        let mut cosine = query_rows.narrow(0, start, rows).f_matmul(&bank_rows)?; // [rows, N]
        if leave_one_out {
            let own = Tensor::arange_start(start, start + rows, (Kind::Int64, device)).unsqueeze(1);
            cosine = cosine.scatter_value(1, &own, f64::NEG_INFINITY);
        }
        let (nearest, index) = cosine.topk(k.min(others) as i64, 1, true, true);
        let weights = (nearest / temperature).exp();
        let votes = Tensor::zeros([rows, classes], (Kind::Float, device)).scatter_add(
            1,
            &bank_labels.index_select(0, &index.flatten(0, -1)).view_as(&index),
            &weights,
        );
        let hits = votes.argmax(1, false).eq_tensor(&query_labels.narrow(0, start, rows));
        correct += hits.sum(Kind::Int64).int64_value(&[]);
    }
    Ok(correct as f64 / total as f64)
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

    /// The definition, a query at a time, in f64.
    fn brute_force(bank: &Features, queries: &Features, leave_out: bool, k: usize, temperature: f64) -> f64 {
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
        let mut correct = 0;
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
            let best = (0..10).max_by(|&a, &b| votes[a].total_cmp(&votes[b])).unwrap_or(0);
            correct += usize::from(best as i64 == queries.labels[q]);
        }
        correct as f64 / queries.labels.len() as f64
    }

    #[test]
    fn blocks_agree_with_the_definition() -> Result<()> {
        let (bank, queries) = (random(700, 16, 10, 1), random(300, 16, 10, 2));
        for (k, temperature) in [(1, 0.1), (20, 0.1), (200, 0.07), (10_000, 1.0)] {
            let expected = brute_force(&bank, &queries, false, k, temperature);
            assert_eq!(knn_top1(&bank, Some(&queries), k, temperature)?, expected, "k {k}");
            let expected = brute_force(&bank, &bank, true, k, temperature);
            assert_eq!(knn_top1(&bank, None, k, temperature)?, expected, "leave one out, k {k}");
        }
        Ok(())
    }

    #[test]
    fn missing_labels_are_an_error() {
        let mut bank = random(10, 16, 10, 3);
        bank.labels[4] = -1;
        assert!(knn_top1(&bank, None, 5, 0.1).expect_err("a label is missing").to_string().contains("without a label"));
    }
}
