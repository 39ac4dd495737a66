//! Images of a data set in batches on the device, and their representations by a frozen encoder: batch by batch in one
//! process, or in rounds of one batch for each of several. The batches and their order do not depend on the number of
//! processes, so neither do results.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::Represent;
use crate::augment::{self, AugmentConfig, ViewConfig};
use crate::data::Dataset;
use crate::data::loader::{BadImages, EvalBatch, EvalLoader, LoaderOptions};
use crate::distributed::Group;
use crate::logging::progress::Bar;
use crate::rng::{Purpose, Stream};
use native::{ImageLayout, Normalizer};

/// Features and labels of some images, row by row.
#[derive(Debug)]
pub struct Features {
    /// `[N, feature_dim]`, fp32.
    pub values: Tensor,
    /// Class of each row, -1 if unknown.
    pub labels: Vec<i64>,
}

/// The error of work that was interrupted by a signal; holds the exit code.
#[derive(Debug)]
pub struct Interrupted(pub i32);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("interrupted by a signal")
    }
}

impl std::error::Error for Interrupted {}

/// Options for iterating over images.
#[derive(Clone)]
pub struct ExtractOptions {
    /// Images per forward pass.
    pub batch_size: usize,
    /// Threads and prefetching.
    pub loader: LoaderOptions,
    /// Bad images: skipped and counted, or fatal.
    pub bad: Arc<BadImages>,
    /// Memory format of the images, that of the weights.
    pub channels_last: bool,
    /// Checked between batches: the exit code of a signal that has arrived.
    pub signal: Arc<dyn Fn() -> Option<i32>>,
    /// Show progress on stderr.
    pub progress: bool,
    /// The processes that share the batches.
    pub group: Arc<Group>,
}

impl ExtractOptions {
    /// Fails if any process received a signal: all processes must call this equally often.
    /// # Errors
    /// [`Interrupted`]; another process was lost or timed out.
    pub fn check(&self) -> Result<()> {
        let own = (self.signal)();
        let counts = self.group.sum(&[143, 130].map(|code| f64::from(u8::from(own == Some(code)))))?;
        let code = [143, 130].into_iter().zip(counts).find(|(_, count)| *count > 0.0).map(|(code, _)| code);
        code.map_or(Ok(()), |code| Err(Interrupted(code).into()))
    }

    /// A progress bar over `total` items, if enabled.
    pub fn bar(&self, what: &str, total: usize) -> Option<Bar> {
        self.progress.then(|| Bar::new(what, total))
    }

    /// Rank and world size.
    pub fn place(&self) -> (usize, usize) {
        (self.group.rank(), self.group.world())
    }
}

/// The view of an image.
#[derive(Clone, Copy, Debug)]
pub enum View {
    /// The center crop, as section `augment` says.
    Plain,
    /// A random-resized crop with a random flip, drawn for this epoch: the training view of linear evaluation.
    Crop {
        /// Seed of the random choices.
        seed: u64,
        /// From 0.
        epoch: u64,
    },
    /// Both training views, which a batch has one after the other: `[2 N, 3, H, W]`. The same in every call, and drawn
    /// by no epoch of training.
    Pair {
        /// Seed of the random choices.
        seed: u64,
    },
}

impl View {
    /// How many images of a batch are views of one image.
    fn count(self) -> usize {
        if matches!(self, Self::Pair { .. }) { 2 } else { 1 }
    }
}

/// The epoch of [`View::Pair`].
const NO_EPOCH: u64 = u64::MAX;

/// Images of a data set, and the view of each.
pub struct Images<'a> {
    /// The data set.
    pub dataset: &'a Arc<dyn Dataset>,
    /// Positions in the set.
    pub indices: Vec<u32>,
    /// The view of every image.
    pub view: View,
    /// How an image is resized.
    pub augment: &'a AugmentConfig,
}

impl<'a> Images<'a> {
    /// Normalized images `[N, C, H, W]` on `device`, batch by batch, with their labels and positions, loaded ahead.
    /// Unreadable images are skipped if the options allow it, so that N may be 0.
    /// # Errors
    /// Items fail for bad images if the options make them fatal.
    fn batches(
        self,
        device: Device,
        options: &'a ExtractOptions,
    ) -> Result<impl Iterator<Item = Result<(Tensor, EvalBatch)>> + use<'a>> {
        let Self { dataset, indices, view, augment } = self;
        let (set, bad, workers) = (dataset.clone(), options.bad.clone(), options.loader);
        let (size, channels, batch) = (augment.size, augment.channels(), options.batch_size);
        let bytes = view.count() * augment.view_bytes();
        let loader = match view {
            View::Plain => EvalLoader::new(set, augment.clone(), indices, batch, bad, workers)?,
            View::Pair { seed } => {
                let augment = augment.clone();
                let make = move |index: u32, image: &_, scratch: &mut _, out: &mut [u8]| {
                    let (first, second) = out.split_at_mut(bytes / 2);
                    augment::two_views(&augment, image, seed, NO_EPOCH, index.into(), scratch, [first, second]);
                };
                EvalLoader::with_view(set, bytes, make, indices, batch, bad, workers)?
            }
            View::Crop { seed, epoch } => {
                let crop = ViewConfig::crop_only();
                let make = move |index: u32, image: &_, scratch: &mut _, out: &mut [u8]| {
                    let image: &crate::pixels::Pixels = image;
                    let mut rng = Stream::new(seed, Purpose::Augment, epoch, index.into(), 2);
                    let draws = crop.draw(image.width, image.height, &mut rng);
                    augment::apply(image, &draws, size, crop.interpolation, scratch, out);
                };
                EvalLoader::with_view(set, bytes, make, indices, batch, bad, workers)?
            }
        };
        let layout = ImageLayout { channels_last: options.channels_last, bf16: false };
        let normalizer = Normalizer::new(augment.mean.values(), augment.std.values(), device, layout)?;
        Ok(loader.map(move |batch| {
            let batch = batch?;
            let [height, width] = size.shape();
            let shape = [(batch.labels.len() * view.count()) as i64, height, width, channels as i64];
            Ok((normalizer.bytes(&batch.pixels, shape)?, batch))
        }))
    }
}

/// The features of a batch, row by row.
pub struct Encoded {
    /// `[N, feature_dim]`; N is 0 if no image of the batch could be read.
    pub features: Tensor,
    /// Class of each row, -1 if unknown.
    pub labels: Vec<i64>,
    /// Positions in the data set.
    pub indices: Vec<u32>,
}

impl Encoded {
    /// The batches of all processes, by rank.
    fn gathered(self, group: &Group) -> Result<Vec<Self>> {
        let about = |(&label, &index): (&i64, &u32)| [label, index.into()];
        let about: Vec<i64> = self.labels.iter().zip(&self.indices).flat_map(about).collect();
        let about = group.gather_rows(&Tensor::from_slice(&about).view([-1, 2]))?;
        let batches = group.gather_rows(&self.features)?.into_iter().zip(about).map(|(features, about)| {
            let (labels, indices) = (about.select(1, 0), about.select(1, 1));
            let indices = Vec::<i64>::try_from(indices)?.into_iter().map(|index| index as u32).collect();
            Ok(Self { features, labels: Vec::try_from(labels)?, indices })
        });
        batches.collect()
    }
}

/// Features of images by a frozen encoder, passed to `each` batch by batch. Several processes take batches in turn, and
/// all of them get all features.
/// # Errors
/// Unreadable images if the options make them fatal; a signal ([`Interrupted`]); those of `each`; another process was
/// lost or timed out.
pub fn stream(
    encoder: &impl Represent,
    images: Images,
    options: &ExtractOptions,
    mut each: impl FnMut(Encoded) -> Result<()>,
) -> Result<()> {
    let ((rank, world), count) = (options.place(), images.indices.len().div_ceil(options.batch_size));
    let rows = (options.batch_size * images.view.count()) as i64;
    let own = images.indices.chunks(options.batch_size).skip(rank).step_by(world).flatten().copied().collect();
    let mut batches = Images { indices: own, ..images }.batches(encoder.device(), options)?;
    for first in (0..count).step_by(world) {
        options.check()?;
        let none = || Tensor::zeros([0, encoder.feature_dim()], (Kind::Float, encoder.device()));
        let own = match batches.next().transpose()? {
            Some((images, EvalBatch { labels, indices, .. })) if !labels.is_empty() => {
                let _no_grad = tch::no_grad_guard();
                // cuDNN looks for its fastest kernels anew for each shape, such as that of the last batch.
                let rows = if images.device().is_cuda() { rows } else { 0 };
                Encoded { features: represent_padded(encoder, &images, rows)?, labels, indices }
            }
            _ => Encoded { features: none(), labels: Vec::new(), indices: Vec::new() },
        };
        own.gathered(&options.group)?.into_iter().take(count - first).try_for_each(&mut each)?;
    }
    Ok(())
}

/// The representations of images, from a batch padded with zeros to at least `rows`. An encoder may make one of several
/// images, of the views of one, say.
fn represent_padded(encoder: &impl Represent, images: &Tensor, rows: i64) -> Result<Tensor> {
    let count = images.size()[0];
    if count >= rows {
        return encoder.represent(images);
    }
    let padded = images.f_constant_pad_nd([0, 0, 0, 0, 0, 0, 0, rows - count])?;
    let features = encoder.represent(&padded)?;
    let own = features.size()[0] * count / rows;
    Ok(features.f_narrow(0, 0, own)?)
}

/// The features of images without augmentation, all at once; `what` is the label of the progress bar.
pub fn extract(
    encoder: &impl Represent,
    dataset: &Arc<dyn Dataset>,
    indices: Vec<u32>,
    augment: &AugmentConfig,
    options: &ExtractOptions,
    what: &str,
) -> Result<Features> {
    Ok(extract_views(encoder, Images { dataset, indices, view: View::Plain, augment }, options, what)?.0)
}

/// The features of any view of images, and the images' positions in the set: one for each row.
pub fn extract_views(
    encoder: &impl Represent,
    images: Images,
    options: &ExtractOptions,
    what: &str,
) -> Result<(Features, Vec<u32>)> {
    // In place, so that they are not in memory twice.
    let shape = [images.indices.len() as i64, encoder.feature_dim()];
    let (values, mut labels, mut found) =
        (Tensor::f_empty(shape, (Kind::Float, encoder.device()))?, Vec::new(), Vec::new());
    let bar = options.bar(what, images.indices.len());
    stream(encoder, images, options, |batch| {
        let place = values.narrow(0, labels.len() as i64, batch.features.size()[0]);
        tch::no_grad(|| place.shallow_clone().f_copy_(&batch.features))?;
        labels.extend(batch.labels);
        found.extend(batch.indices);
        bar.iter().for_each(|bar| bar.set(labels.len()));
        Ok(())
    })?;
    Ok((Features { values: values.narrow(0, 0, labels.len() as i64), labels }, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::byol::Byol;

    /// One row of two images, as of the two views of one.
    struct Pairs(Byol);

    impl Represent for Pairs {
        fn represent(&self, images: &Tensor) -> Result<Tensor> {
            Ok(self.0.represent(images)?.reshape([-1, 2 * self.0.feature_dim()]))
        }

        fn device(&self) -> Device {
            self.0.device
        }

        fn feature_dim(&self) -> i64 {
            2 * self.0.feature_dim()
        }
    }

    fn assert_same_padded(encoder: &impl Represent) -> Result<()> {
        let images = native::channels_last(&Tensor::rand([6, 3, 16, 16], (Kind::Float, Device::Cpu)));
        let expected = represent_padded(encoder, &images, 0)?;
        let found = represent_padded(encoder, &images, 16)?;
        assert_eq!(found.size(), expected.size());
        assert!((found - expected).abs().max().double_value(&[]) < 1e-6);
        Ok(())
    }

    #[test]
    fn padding_changes_no_feature() -> Result<()> {
        assert_same_padded(&Byol::tiny())?;
        assert_same_padded(&Pairs(Byol::tiny()))
    }
}
