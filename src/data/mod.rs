//! From files on disk to batches of augmented views in memory; no tensors here.
//!
//! `open_train` / `open_eval` give a [`Dataset`] (one module per format), [`loader::sampler`] chooses the
//! images of each step, [`loader`] decodes and augments them in parallel. A batch depends on the seed and its number
//! only, never on the number of workers.

use std::sync::Arc;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::augment::Crop;
use crate::files;
use crate::pixels::Pixels;

mod config;
pub mod decode;
pub mod formats;
pub mod loader;
mod paths;
pub mod subset;

pub use config::{DataConfig, Format, KeyRule, OnBadImage};
pub use paths::Paths;

/// Called with an image's width and height, returns the part of it that is needed.
pub type CropFor<'a> = dyn FnMut(usize, usize) -> Crop + 'a;

/// A set of images that any thread can read in any order.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;
    /// Class of an image, if it has one.
    fn label(&self, index: usize) -> Option<i64>;
    /// Names of the classes in the order of the labels; empty if they have none.
    fn class_names(&self) -> Vec<String>;
    /// Decodes an image into `out`, reusing its memory. Fails for an unreadable image.
    fn load(&self, index: usize, out: &mut Pixels) -> Result<()>;
    /// Decodes at least the part of an image that `want` returns, which may be cheaper, and returns the part that `out`
    /// holds. The pixels of the wanted part equal those of the whole image; others may differ. `want` is called once,
    /// or at most once for an unreadable image; whether an image is unreadable does not depend on it.
    fn load_part(&self, index: usize, want: &mut CropFor, out: &mut Pixels) -> Result<Crop> {
        self.load(index, out)?;
        want(out.width, out.height);
        Ok(Crop::whole(out.width, out.height))
    }
    /// The source of an image, for messages: a path, or `file.parquet row 17`, `shard.tar member x.jpg` and so on.
    fn describe(&self, index: usize) -> String;
    /// SHA-256 (hex) over the names, sizes and number of the images, but not their contents: detects whether a resumed
    /// run reads the same set.
    fn fingerprint(&self) -> String;
    /// Whether there are no images. What `open_*` returns is never empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Opens the training images, reduced to `fraction` and `limit`.
pub fn open_train(config: &DataConfig) -> Result<Arc<dyn Dataset>> {
    let all: Arc<dyn Dataset> = match config.format {
        Format::Synthetic => Arc::new(formats::synthetic::Synthetic::train(&config.synthetic)),
        Format::Parquet => Arc::new(formats::parquet::Parquet::open_train(config)?),
        Format::ImageFolder => Arc::new(formats::image_folder::ImageFolder::open_train(config)?),
        Format::Webdataset => Arc::new(formats::webdataset::WebDataset::open_train(config)?),
        Format::Cifar10 | Format::Cifar100 => Arc::new(formats::cifar::Cifar::open_train(config)?),
        Format::Stl10 => Arc::new(formats::stl10::Stl10::open_train(config)?),
    };
    subset::subset(all, config.fraction, config.limit)
}

/// Opens the held-out images, all of them, with labels of the same meaning; `None` if the
/// configuration names none and none are found beside the training images.
pub fn open_eval(config: &DataConfig) -> Result<Option<Arc<dyn Dataset>>> {
    Ok(match config.format {
        Format::Synthetic => Some(Arc::new(formats::synthetic::Synthetic::eval(&config.synthetic))),
        Format::Parquet => formats::parquet::Parquet::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::ImageFolder => formats::image_folder::ImageFolder::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Webdataset => formats::webdataset::WebDataset::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Cifar10 | Format::Cifar100 => formats::cifar::Cifar::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Stl10 => formats::stl10::Stl10::open_eval(config)?.map(|set| Arc::new(set) as _),
    })
}

/// [`Dataset::fingerprint`], and after a dash another of the labels and the classes' names, if there are any.
pub fn fingerprint(set: &dyn Dataset) -> String {
    let labels: Vec<i64> = (0..set.len()).map(|index| set.label(index).unwrap_or(-1)).collect();
    let own = set.fingerprint();
    if labels.iter().all(|&label| label < 0) {
        return own;
    }
    let mut hasher = Sha256::new();
    labels.iter().for_each(|label| hasher.update(label.to_le_bytes()));
    format!("{own}-{}", digest([files::hex(&hasher.finalize())].into_iter().chain(set.class_names())))
}

/// Whether two of [`fingerprint`]'s are of the same set; older ones know nothing of labels.
pub fn same(then: &str, now: &str) -> bool {
    then == now || now.split_once('-').is_some_and(|(images, _)| images == then)
}

/// The beginning of a fingerprint's parts, for messages.
pub fn short(fingerprint: &str) -> String {
    let parts = fingerprint.split('-').map(|part| part.chars().take(8).collect::<String>() + "...");
    parts.collect::<Vec<_>>().join(", labels ")
}

/// SHA-256 (hex) of a list of texts.
pub(crate) fn digest(parts: impl IntoIterator<Item = String>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
        hasher.update([0]);
    }
    files::hex(&hasher.finalize())
}
