//! What an encoder makes of a run's images: a map of them, neighbors, typical and isolated ones, classes.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use tch::Tensor;

use super::charts::{self, CLASSES};
use super::classes::{self, ByClass};
use super::pictures::{self, TILE, picture};
use super::projection::{self, MAX_POINTS};
use super::tensorboard;
use super::views::{self, ViewRow};
use crate::data::Dataset;
use crate::data::subset::spread;
use crate::eval::{Images, Nearest, View, extract_views};
use crate::logging::one_line;
use crate::run::evaluation::Evaluation;
use crate::run::pictures::Named;

/// Images whose neighbors are shown.
const QUERIES: usize = 12;
/// Neighbors of each.
const SHOWN: usize = 8;
/// Neighbors that say how typical an image is.
const NEAR: usize = 20;
/// Typical images shown, and isolated ones.
const EXTREMES: usize = 12;

/// An image on the page.
#[derive(Serialize)]
pub struct Picture {
    /// `data:` URI.
    uri: String,
    name: String,
    class: Option<String>,
    /// Cosine to the image beside it, or the mean of those to its neighbors.
    cosine: Option<String>,
    /// Of the same class as the image beside it.
    same: Option<bool>,
}

/// An image and its neighbors.
#[derive(Serialize)]
pub struct Neighbors {
    query: Picture,
    near: Vec<Picture>,
}

/// A class in the legend of a map.
#[derive(Serialize)]
pub struct LegendEntry {
    /// Its name.
    pub name: String,
    /// Its color.
    pub color: String,
    /// Which of [`CLASSES`].
    pub index: usize,
}

/// What the page shows of one run's encoder.
#[derive(Serialize)]
pub struct Looks {
    /// Checkpoint, architecture and device in one line.
    encoder: String,
    /// Images that were encoded.
    images: usize,
    /// `held-out` or `training`.
    kind: &'static str,
    /// Points of the map: all of the images, or a part.
    points: usize,
    sprite: String,
    tile: u32,
    columns: usize,
    names: Vec<String>,
    classes: Vec<String>,
    /// Which of the legend's entries each point is.
    labels: Vec<usize>,
    legend: Vec<LegendEntry>,
    pca: String,
    /// Shares of the variance of the two components, in percent.
    variance: [String; 2],
    tsne: Option<String>,
    neighbors: Vec<Neighbors>,
    typical: Vec<Picture>,
    isolated: Vec<Picture>,
    by_class: Option<ByClass>,
    views: Vec<ViewRow>,
    bad: Vec<String>,
}

/// How much to look at.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Images to encode.
    pub images: usize,
    /// Points of the map.
    pub points: usize,
}

impl Looks {
    /// Encodes images of the run's data; they are also written to this TensorBoard folder.
    pub fn of(evaluation: &Evaluation, extent: Extent, events: Option<&Path>) -> Result<Self> {
        let Evaluation { encoder, options, config, .. } = evaluation;
        let train = evaluation.train_set()?;
        let held_out = evaluation.held_out()?;
        let (set, kind) = held_out.map_or((train.clone(), "training"), |set| (set, "held-out"));
        evaluation.check_memory(extent.images.min(set.len()), "lower --images")?;
        let indices = spread(set.len(), extent.images);
        let images = Images { dataset: &set, indices, view: View::Plain, augment: &config.augment };
        let (features, rows) = extract_views(encoder, images, options, "report: images")?;
        anyhow::ensure!(rows.len() >= 3, "found {} images that can be read, expected at least 3", rows.len());
        let named = Named::new(set.clone());
        let near = Nearest::new(&features.values, None).all(NEAR, |_| options.check())?;
        let by_class = classes::by_class(evaluation, &train, &set, &features, extent.images)?;
        if let Some(folder) = events {
            tensorboard::write_representations(folder, &named, &features.values, &rows)?;
            let step = encoder.run.as_ref().map_or(0, |run| run.step);
            tensorboard::write_views(folder, config, &train, &options.bad, step)?;
        }
        let gallery = Gallery { named: &named, rows: &rows, near: &near };
        let map = Map::of(&features.values, &set, &named, &rows, extent.points)?;
        let [typical, isolated] = gallery.extremes()?;
        Ok(Self {
            encoder: evaluation.encoder_line(),
            images: rows.len(),
            kind,
            points: map.names.len(),
            sprite: map.sprite,
            tile: TILE,
            columns: map.columns,
            names: map.names,
            classes: map.classes,
            labels: map.labels,
            legend: map.legend,
            pca: map.pca,
            variance: map.variance,
            tsne: map.tsne,
            neighbors: gallery.neighbors()?,
            typical,
            isolated,
            by_class,
            views: views::rows(config, &train, &options.bad)?,
            bad: options.bad.names().iter().map(|name| one_line(name)).collect(),
        })
    }
}

/// Images with their neighbors.
struct Gallery<'a> {
    named: &'a Named,
    /// Position in the set of each row of features.
    rows: &'a [u32],
    near: &'a [Vec<(usize, f64)>],
}

impl Gallery<'_> {
    fn picture(&self, row: usize, cosine: Option<f64>) -> Result<Picture> {
        let at = self.rows[row] as usize;
        Ok(Picture {
            uri: picture(&self.named.image(at)?)?,
            name: one_line(&self.named.name(at)),
            class: self.named.class(at).map(|class| one_line(&class)),
            cosine: cosine.map(|cosine| format!("{cosine:.3}")),
            same: None,
        })
    }

    fn neighbors(&self) -> Result<Vec<Neighbors>> {
        let row = |row: u32| -> Result<Neighbors> {
            let query = self.picture(row as usize, None)?;
            let near = self.near[row as usize].iter().take(SHOWN).map(|&(position, cosine)| {
                let near = self.picture(position, Some(cosine))?;
                let same = query.class.as_ref().zip(near.class.as_ref()).map(|(a, b)| a == b);
                Ok(Picture { same, ..near })
            });
            let near = near.collect::<Result<_>>()?;
            Ok(Neighbors { query, near })
        };
        spread(self.rows.len(), QUERIES).into_iter().map(row).collect()
    }

    /// The images with the largest and with the smallest mean cosine to their neighbors.
    fn extremes(&self) -> Result<[Vec<Picture>; 2]> {
        let mean = |near: &Vec<(usize, f64)>| near.iter().map(|(_, cosine)| cosine).sum::<f64>() / near.len() as f64;
        let mut order: Vec<(usize, f64)> = self.near.iter().map(mean).enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok([self.pictures(order.iter())?, self.pictures(order.iter().rev())?])
    }

    fn pictures<'b>(&self, of: impl Iterator<Item = &'b (usize, f64)>) -> Result<Vec<Picture>> {
        of.take(EXTREMES).map(|&(row, cosine)| self.picture(row, Some(cosine))).collect()
    }
}

/// The map and its thumbnails.
struct Map {
    sprite: String,
    columns: usize,
    names: Vec<String>,
    classes: Vec<String>,
    labels: Vec<usize>,
    legend: Vec<LegendEntry>,
    pca: String,
    variance: [String; 2],
    tsne: Option<String>,
}

impl Map {
    /// Of at most `most` images; the principal components are those of all.
    fn of(features: &Tensor, set: &Arc<dyn Dataset>, named: &Named, rows: &[u32], most: usize) -> Result<Self> {
        let (components, variance) = projection::principal(features, 2).context("principal components")?;
        let chosen = spread(rows.len(), most.min(MAX_POINTS));
        let index = Tensor::from_slice(&chosen.iter().map(|&row| i64::from(row)).collect::<Vec<_>>());
        let index = index.to_device(features.device());
        let images: Vec<usize> = chosen.iter().map(|&row| rows[row as usize] as usize).collect();
        let (legend, labels) = legend(set, named, &images);
        let colors: Vec<usize> = labels.iter().map(|&label| legend[label].index).collect();
        let pca = charts::map(&projection::points(&components.index_select(0, &index))?, &colors)?;
        let tsne = projection::tsne(&features.index_select(0, &index)).context("t-SNE")?;
        let columns = ((images.len() as f64).sqrt().ceil() as usize).max(1);
        Ok(Self {
            sprite: pictures::sprite(images.iter().map(|&at| named.image(at)), images.len(), columns)?,
            columns,
            names: images.iter().map(|&at| one_line(&named.name(at))).collect(),
            classes: images.iter().map(|&at| named.class(at).map_or(String::new(), |class| one_line(&class))).collect(),
            labels,
            legend,
            pca,
            variance: [0, 1].map(|at| format!("{:.0}", 100.0 * variance.get(at).unwrap_or(&0.0))),
            tsne: tsne.map(|points| charts::map(&points, &colors)).transpose()?,
        })
    }
}

/// The classes of images, in the order of their numbers, and which of them each image is of.
fn legend(set: &Arc<dyn Dataset>, named: &Named, images: &[usize]) -> (Vec<LegendEntry>, Vec<usize>) {
    let label = |at: usize| set.label(at).filter(|label| *label >= 0);
    let mut classes: Vec<Option<i64>> = images.iter().map(|&at| label(at)).collect();
    classes.sort_unstable();
    classes.dedup();
    let entry = |(at, class): (usize, &Option<i64>)| LegendEntry {
        name: class.map_or("no class".to_string(), |class| one_line(&named.class_name(class))),
        color: charts::hex(CLASSES[at % CLASSES.len()]),
        index: at % CLASSES.len(),
    };
    let place = |&at: &usize| classes.binary_search(&label(at)).unwrap_or_default();
    (classes.iter().enumerate().map(entry).collect(), images.iter().map(place).collect())
}
