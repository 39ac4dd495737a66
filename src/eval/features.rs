//! Images of a data set in batches on the device, and their representations by a frozen encoder.

use std::sync::Arc;

use anyhow::{Result, bail};
use tch::{Device, Kind, Tensor};

use super::Represent;
use crate::augment::{self, AugmentConfig, ViewConfig};
use crate::backend::Normaliser;
use crate::data::Dataset;
use crate::data::loader::{BadImages, EvalBatch, EvalLoader, LoaderOptions};
use crate::logging::progress::Bar;
use crate::rng::{Purpose, Stream};

/// Features and labels of some images, row by row.
#[derive(Debug)]
pub struct Features {
    /// `[N, feature_dim]`, fp32.
    pub values: Tensor,
    /// Class of each row, -1 where unknown.
    pub labels: Vec<i64>,
}

/// How to go through the images.
#[derive(Clone)]
pub struct ExtractOptions {
    /// Images per forward pass.
    pub batch_size: usize,
    /// Threads and prefetching.
    pub loader: LoaderOptions,
    /// Bad images: left out and counted, or fatal.
    pub bad: Arc<BadImages>,
    /// Memory layout of the images, that of the weights.
    pub channels_last: bool,
    /// Asked between batches: give up?
    pub interrupted: Arc<dyn Fn() -> bool>,
    /// Show progress on stderr.
    pub progress: bool,
}

impl ExtractOptions {
    /// Gives up where a signal has come.
    /// # Errors
    /// It has.
    pub fn check(&self) -> Result<()> {
        if (self.interrupted)() {
            bail!("interrupted by a signal");
        }
        Ok(())
    }

    /// Progress over `total` things, where it is wanted.
    pub fn bar(&self, what: &str, total: usize) -> Option<Bar> {
        self.progress.then(|| Bar::new(what, total))
    }
}

/// What is made of an image.
#[derive(Clone, Copy, Debug)]
pub enum View {
    /// The centre, as the sections `augment` says.
    Plain,
    /// A random-resized crop, flipped or not, drawn for this epoch: the training view of linear evaluation.
    Crop {
        /// Of the draws.
        seed: u64,
        /// From 0.
        epoch: u64,
    },
}

/// Normalised images `[N, 3, H, W]` on `device`, with their labels and positions, loaded ahead. Unreadable images are
/// left out where the options allow it.
/// # Errors
/// Items fail for what the options call fatal, and after a signal.
pub fn images<'a>(
    dataset: &Arc<dyn Dataset>,
    indices: Vec<u32>,
    view: View,
    augment: &'a AugmentConfig,
    device: Device,
    options: &'a ExtractOptions,
) -> Result<impl Iterator<Item = Result<(Tensor, EvalBatch)>> + use<'a>> {
    let (set, bad, workers) = (dataset.clone(), options.bad.clone(), options.loader);
    let (size, batch) = (augment.size, options.batch_size);
    let loader = match view {
        View::Plain => EvalLoader::new(set, augment.clone(), indices, batch, bad, workers)?,
        View::Crop { seed, epoch } => {
            let crop = ViewConfig { jitter_prob: 0.0, grayscale_prob: 0.0, blur_prob: 0.0, ..ViewConfig::paper(1) };
            let make = move |index: u32, image: &_, scratch: &mut _, out: &mut [u8]| {
                let image: &crate::pixels::Pixels = image;
                let mut rng = Stream::new(seed, Purpose::Augment, epoch, index.into(), 2);
                let draws = crop.draw(image.width, image.height, &mut rng);
                augment::apply(image, &draws, size, crop.interpolation, scratch, out);
            };
            EvalLoader::with_view(set, size, make, indices, batch, bad, workers)?
        }
    };
    let normaliser = Normaliser::new(augment.mean, augment.std, device, options.channels_last, false)?;
    let on_device = move |batch: EvalBatch| {
        options.check()?;
        let shape = [batch.labels.len() as i64, size as i64, size as i64, 3];
        Ok((normaliser.bytes(&batch.pixels, shape)?, batch))
    };
    let some = |batch: &Result<EvalBatch>| batch.as_ref().is_ok_and(|b| !b.labels.is_empty()) || batch.is_err();
    Ok(loader.filter(some).map(move |batch| batch.and_then(&on_device)))
}

/// Features of the images at `indices` by a frozen encoder, without augmentation, batch by batch to `each`; `what`
/// they are is shown with the progress.
/// # Errors
/// As [`images`]; what libtorch says; `each`'s own.
pub fn stream(
    encoder: &impl Represent,
    dataset: &Arc<dyn Dataset>,
    indices: Vec<u32>,
    augment: &AugmentConfig,
    options: &ExtractOptions,
    what: &str,
    mut each: impl FnMut(Tensor, EvalBatch) -> Result<()>,
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let (bar, mut done) = (options.bar(what, indices.len()), 0);
    for item in images(dataset, indices, View::Plain, augment, encoder.device(), options)? {
        let (images, batch) = item?;
        done += batch.labels.len();
        each(encoder.represent(&images)?, batch)?;
        bar.iter().for_each(|bar| bar.set(done));
    }
    Ok(())
}

/// The same, all at once.
/// # Errors
/// As [`stream`].
pub fn extract(
    encoder: &impl Represent,
    dataset: &Arc<dyn Dataset>,
    indices: Vec<u32>,
    augment: &AugmentConfig,
    options: &ExtractOptions,
    what: &str,
) -> Result<Features> {
    // In place, so that they are never in memory twice.
    let shape = [indices.len() as i64, encoder.feature_dim()];
    let (values, mut labels) = (Tensor::f_empty(shape, (Kind::Float, encoder.device()))?, Vec::new());
    stream(encoder, dataset, indices, augment, options, what, |features, batch| {
        values.narrow(0, labels.len() as i64, features.size()[0]).f_copy_(&features)?;
        labels.extend(batch.labels);
        Ok(())
    })?;
    Ok(Features { values: values.narrow(0, 0, labels.len() as i64), labels })
}
