//! The augmentations as the networks see them.

use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use super::pictures::picture;
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

/// Views of some images, exactly as drawn in training.
pub fn rows(config: &Config, train: &Arc<dyn Dataset>, bad: &BadImages) -> Result<Vec<ViewRow>> {
    let (augment, seed) = (&config.augment, config.train.seed);
    let (Size { height, width }, channels) = (augment.size, augment.channels());
    let (mut image, mut scratch) = (Pixels::default(), Scratch::default());
    let mut rows = Vec::new();
    for index in spread(train.len(), IMAGES.min(train.len())) {
        bad.load_next(&**train, index as usize, &mut Part::whole, &mut image)?;
        let original = picture(&image)?;
        let mut view = |epoch: u64| -> Result<[String; 2]> {
            let [mut first, mut second] =
                [(); 2].map(|()| Pixels { width, height, channels, data: vec![0; augment.view_bytes()] });
            let (_, draws) = load_for_views(&**train, index, bad, augment, seed, epoch, &mut image)?;
            augment.apply(&image, &draws, &mut scratch, [&mut first.data, &mut second.data]);
            Ok([picture(&first)?, picture(&second)?])
        };
        let views = (0..EPOCHS).map(&mut view).collect::<Result<_>>()?;
        rows.push(ViewRow { original, views });
    }
    Ok(rows)
}
