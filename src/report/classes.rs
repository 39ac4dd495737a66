//! Accuracy by class where there are labels: weighted nearest neighbors among training images, as in [`crate::eval::knn`].

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use super::charts;
use crate::data::Dataset;
use crate::data::subset::{labeled, spread};
use crate::eval::{Features, Images, Nearest, View, extract_views};
use crate::logging::one_line;
use crate::run::evaluation::Evaluation;
use crate::run::pictures::Named;

/// Neighbors that vote.
const K: usize = 20;
/// Training images to compare with, as a multiple of the images shown.
const BANK: usize = 2;
/// Most classes of the matrix.
const MAX_CLASSES: usize = 24;
/// Most confusions of the list.
const MAX_CONFUSIONS: usize = 12;

/// A row of the table.
#[derive(Serialize)]
struct ClassRow {
    name: String,
    images: usize,
    accuracy: f64,
    percent: String,
    bar: String,
}

/// Images of one class taken for another.
#[derive(Serialize)]
struct Confusion {
    of: String,
    taken_for: String,
    images: usize,
    share: f64,
}

/// Accuracy by class.
#[derive(Serialize)]
pub struct ByClass {
    k: usize,
    bank: usize,
    images: usize,
    top1: String,
    rows: Vec<ClassRow>,
    /// Shares of each class's images by the class found, in the order of `rows`; none for many classes.
    matrix: Option<Vec<Vec<f64>>>,
    /// The most frequent confusions.
    confusions: Vec<Confusion>,
}

/// `None` without labels. `set` are the images of `features`.
pub fn by_class(
    evaluation: &Evaluation,
    train: &Arc<dyn Dataset>,
    set: &Arc<dyn Dataset>,
    features: &Features,
    images: usize,
) -> Result<Option<ByClass>> {
    let Some(bank_set) = labeled(train.clone()).filter(|_| features.labels.iter().any(|&label| label >= 0)) else {
        return Ok(None);
    };
    let (temperature, own) = (evaluation.config.monitor.knn_temperature, Arc::ptr_eq(train, set));
    let Evaluation { encoder, options, config, .. } = evaluation;
    let indices = spread(bank_set.len(), BANK * images);
    let found;
    let bank = if own {
        features
    } else {
        let images = Images { dataset: &bank_set, indices, view: View::Plain, augment: &config.augment };
        found = extract_views(encoder, images, options, "report: training images")?.0;
        &found
    };
    let queries = (!own).then_some(&features.values);
    let near = Nearest::new(&bank.values, queries).all(K, |_| options.check())?;
    let pairs = features.labels.iter().zip(&near).filter(|(label, _)| **label >= 0);
    let pairs: Vec<(i64, i64)> = pairs.map(|(&label, near)| (label, vote(near, &bank.labels, temperature))).collect();
    let bank_images = bank.labels.len();
    Ok(Some(count(&pairs, &Named::new(set.clone()), bank_images)?))
}

/// The class with most votes, each weighing exp(cosine / temperature).
fn vote(near: &[(usize, f64)], labels: &[i64], temperature: f64) -> i64 {
    let first = near.first().map_or(0.0, |(_, cosine)| *cosine);
    let mut votes: BTreeMap<i64, f64> = BTreeMap::new();
    for &(position, cosine) in near.iter().filter(|(position, _)| labels[*position] >= 0) {
        *votes.entry(labels[position]).or_default() += ((cosine - first) / temperature).exp();
    }
    votes.into_iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map_or(-1, |(label, _)| label)
}

/// The tables for pairs of (class, class found).
fn count(pairs: &[(i64, i64)], named: &Named, bank: usize) -> Result<ByClass> {
    let mut counts: BTreeMap<i64, BTreeMap<i64, usize>> = BTreeMap::new();
    for &(label, found) in pairs {
        *counts.entry(label).or_default().entry(found).or_default() += 1;
    }
    let name = |label: i64| if label < 0 { "none".to_string() } else { one_line(&named.class_name(label)) };
    let hits = |label: i64, found: &BTreeMap<i64, usize>| found.get(&label).copied().unwrap_or(0);
    let total = |found: &BTreeMap<i64, usize>| found.values().sum::<usize>();
    let row = |(&label, found): (&i64, &BTreeMap<i64, usize>)| -> Result<ClassRow> {
        let accuracy = hits(label, found) as f64 / total(found) as f64;
        let percent = format!("{:.1}", 100.0 * accuracy);
        Ok(ClassRow { name: name(label), images: total(found), accuracy, percent, bar: charts::bar(accuracy)? })
    };
    let shares = |found: &BTreeMap<i64, usize>| {
        counts.keys().map(|label| hits(*label, found) as f64 / total(found) as f64).collect::<Vec<_>>()
    };
    let mut confusions: Vec<Confusion> = counts
        .iter()
        .flat_map(|(&label, found)| {
            found.iter().filter(move |(other, _)| **other != label).map(move |of| (label, found, of))
        })
        .map(|(label, found, (&other, &images))| Confusion {
            of: name(label),
            taken_for: name(other),
            images,
            share: images as f64 / total(found) as f64,
        })
        .collect();
    confusions.sort_by(|a, b| b.images.cmp(&a.images).then(a.of.cmp(&b.of)));
    confusions.truncate(MAX_CONFUSIONS);
    let right: usize = counts.iter().map(|(&label, found)| hits(label, found)).sum();
    Ok(ByClass {
        k: K.min(bank),
        bank,
        images: pairs.len(),
        top1: format!("{:.1}", 100.0 * right as f64 / pairs.len() as f64),
        rows: counts.iter().map(row).collect::<Result<_>>()?,
        matrix: (counts.len() <= MAX_CLASSES).then(|| counts.values().map(shares).collect()),
        confusions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::synthetic::{Synthetic, SyntheticConfig};

    #[test]
    fn the_nearest_vote_by_their_weight() {
        let labels = [4, 4, 7, -1];
        assert_eq!(vote(&[(2, 0.9), (0, 0.5), (1, 0.5)], &labels, 0.1), 7);
        assert_eq!(vote(&[(2, 0.9), (0, 0.85), (1, 0.85)], &labels, 0.1), 4);
        assert_eq!(vote(&[(3, 0.9)], &labels, 0.1), -1);
    }

    #[test]
    fn the_tables_count_what_was_found_of_each_class() -> Result<()> {
        let set = Synthetic::train(&SyntheticConfig { images: 4, ..Default::default() });
        let table = count(&[(0, 0), (0, 1), (0, 1), (1, 1), (1, 1)], &Named::new(Arc::new(set)), 100)?;
        assert_eq!((table.top1.as_str(), table.images, table.k), ("60.0", 5, 20));
        assert_eq!(table.matrix.expect("few classes"), [[1.0 / 3.0, 2.0 / 3.0], [0.0, 1.0]]);
        assert_eq!((table.confusions.len(), table.confusions[0].images), (1, 2));
        Ok(())
    }
}
