//! From files on disk to batches of augmented views in memory; no tensors here.
//!
//! `open_train` / `open_eval` give a [`Dataset`] (one module per format), [`loader::sampler`] chooses the
//! images of each step, [`loader`] decodes and augments them in parallel. A batch depends on the seed and its number
//! only, never on the number of workers.

use std::sync::Arc;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::augment::Part;
use crate::files;
use crate::pixels::Pixels;

mod config;
mod converted;
pub mod decode;
pub mod formats;
pub mod loader;
pub mod measure;
pub mod pack;
mod paths;
pub mod subset;
pub mod values;

pub use config::{DataConfig, Frames, KeyRule, OnBadImage, ScaledDecoding};
pub use converted::converted;
pub use formats::Format;
pub use paths::Paths;

/// Called with an image's width and height, returns the part of it that is needed, and the lowest resolution.
pub type PartFor<'a> = dyn FnMut(usize, usize) -> Part + 'a;

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
    /// holds, at the wanted resolution or a higher one. Unless reduced, the pixels of the wanted part equal those of the
    /// whole image; others may differ. `want` is called once, or at most once for an unreadable image; whether an image
    /// is unreadable does not depend on it.
    fn load_part(&self, index: usize, want: &mut PartFor, out: &mut Pixels) -> Result<Part> {
        self.load(index, out)?;
        want(out.width, out.height);
        Ok(Part::whole(out.width, out.height))
    }
    /// Passes the encoded bytes of an image to `work`; `false`, without a call, for a set that has none but holds
    /// pixels.
    fn with_encoded(&self, _index: usize, _work: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        Ok(false)
    }
    /// How many values were clipped to `data.value_range`, and of how many, in the images loaded so far; zeros where
    /// nothing is clipped.
    fn clipped(&self) -> [u64; 2] {
        [0; 2]
    }
    /// The source of an image, for messages: a path, or `file.parquet row 17`, `shard.tar member x.jpg` and so on.
    fn describe(&self, index: usize) -> String;
    /// The name of an image within the set, the same wherever the set is: `cat/1.png` below the root, the frame
    /// `scan.dcm/12`, the member `shard.tar/1.png`, the row `file.parquet/17`, the record `data_batch_1.bin/17`.
    fn name(&self, index: usize) -> String;
    /// SHA-256 (hex) over the names, sizes and number of the images, but not their contents: detects whether a resumed
    /// run reads the same set.
    fn fingerprint(&self) -> String;
    /// Whether there are no images. What `open_*` returns is never empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Opens the training images, reduced to `fraction` and `limit`. While `channels` or `value_range` are `auto`, they are
/// read as 8-bit RGB ([`measure`] finds what they are).
pub fn open_train(config: &DataConfig) -> Result<Arc<dyn Dataset>> {
    Ok(converted(subset::subset(formats::open_train(config)?, config.fraction, config.limit)?, config))
}

/// Opens the held-out images, all of them, with labels of the same meaning; `None` if the
/// configuration names none and none are found beside the training images.
pub fn open_eval(config: &DataConfig) -> Result<Option<Arc<dyn Dataset>>> {
    Ok(formats::open_eval(config)?.map(|set| converted(set, config)))
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
