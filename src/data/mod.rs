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

pub use config::{DataConfig, KeyRule, OnBadImage};
pub use formats::{Format, open_eval};
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
    /// The name of an image within the set, the same wherever the set is: `cat/1.png` below the root, the member
    /// `shard.tar/1.png`, the row `file.parquet/17`, the record `data_batch_1.bin/17`.
    fn name(&self, index: usize) -> String;
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
    subset::subset(formats::open_train(config)?, config.fraction, config.limit)
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
