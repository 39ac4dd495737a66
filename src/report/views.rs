//! The augmentations as the networks see them.

use std::sync::Arc;

use anyhow::Result;
use image::RgbImage;
use serde::Serialize;

use super::pictures::{PICTURE, picture, tiles};
use crate::augment::{Part, Scratch, Size};
use crate::config::Config;
use crate::data::Dataset;
use crate::data::loader::{BadImages, load_for_views};
use crate::data::subset::spread;
use crate::pixels::Pixels;

/// Images shown.
const IMAGES: usize = 6;
/// Epochs whose views are shown.
const EPOCHS: u64 = 2;

/// An image and its views.
#[derive(Serialize)]
pub struct ViewRow {
    original: String,
    /// View 1 and view 2 of each epoch.
    views: Vec<[String; 2]>,
}

/// An image, and its view 1 and view 2 of each epoch.
type Drawn = (Pixels, Vec<[Pixels; 2]>);

/// Views of some images for the page.
pub fn rows(config: &Config, train: &Arc<dyn Dataset>, bad: &BadImages) -> Result<Vec<ViewRow>> {
    let row = |(original, views): Drawn| -> Result<ViewRow> {
        let views = views.iter().map(|[first, second]| Ok([picture(first)?, picture(second)?]));
        Ok(ViewRow { original: picture(&original)?, views: views.collect::<Result<_>>()? })
    };
    draw(config, train, bad)?.into_iter().map(row).collect()
}

/// The same as one picture: a row for each image, which comes first.
pub fn grid(config: &Config, train: &Arc<dyn Dataset>, bad: &BadImages) -> Result<RgbImage> {
    let rows = draw(config, train, bad)?;
    let (count, columns) = (rows.len(), 1 + 2 * EPOCHS as usize);
    let cells =
        rows.into_iter().flat_map(|(original, views)| [original].into_iter().chain(views.into_iter().flatten()));
    tiles(cells.map(Ok), count * columns, columns, PICTURE)
}

/// Views of some images, exactly as drawn in training.
fn draw(config: &Config, train: &Arc<dyn Dataset>, bad: &BadImages) -> Result<Vec<Drawn>> {
    let (augment, seed) = (&config.augment, config.train.seed);
    let (Size { height, width }, channels) = (augment.size, augment.channels());
    let (mut image, mut scratch) = (Pixels::default(), Scratch::default());
    let mut rows = Vec::new();
    for index in spread(train.len(), IMAGES) {
        bad.load_next(&**train, index as usize, &mut Part::whole, &mut image)?;
        let original = image.clone();
        let mut views = |epoch: u64| -> Result<[Pixels; 2]> {
            let mut views = [(); 2].map(|()| Pixels { width, height, channels, data: vec![0; augment.view_bytes()] });
            let (_, draws) = load_for_views(&**train, index, bad, augment, seed, epoch, &mut image)?;
            let [first, second] = &mut views;
            augment.apply(&image, &draws, &mut scratch, [&mut first.data, &mut second.data]);
            Ok(views)
        };
        let views = (0..EPOCHS).map(&mut views).collect::<Result<_>>()?;
        rows.push((original, views));
    }
    Ok(rows)
}
