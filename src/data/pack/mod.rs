//! `byol pack`: any data set as webdataset shards, `train-000000.tar` and so on, held-out images in `val-000000.tar`.
//!
//! Every finished shard is noted in `pack.json`, so that a packing that was killed continues after the last one. Images
//! keep their order, names and classes. Their bytes are copied, unless a limit makes an image smaller.

mod shard;
mod shrink;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::decode::ending_of;
use super::formats::names::{ending, is_image_name};
use super::values::{Channels, ValueRange};
use super::{DataConfig, Dataset, Format, OnBadImage, Paths, fingerprint, open_eval, open_train};
use crate::augment::{Part, Scratch, Size, resized};
use crate::files;
use crate::pixels::Pixels;
use shard::{Item, Shard};
pub use shrink::Limit;

/// Images that are read, and shrunk, at the same time.
const AT_ONCE: usize = 64;

/// Name of the file that says what is done.
const STATE: &str = "pack.json";

/// What becomes of the images.
#[derive(Clone, Copy, Debug)]
pub struct PackOptions {
    /// Larger images are made smaller.
    pub limit: Option<Limit>,
    /// Quality of smaller JPEGs, 1 to 100.
    pub quality: u8,
    /// A shard ends with the image that reaches as many bytes.
    pub shard_size: u64,
}

/// What is done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Of the images and the options.
    source: String,
    sets: [Vec<Done>; 2],
}

impl State {
    fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(STATE);
        files::remove_stale(&path); // of a packing that was killed
        files::write_atomic(&path, &serde_json::to_vec_pretty(self)?)
    }
}

/// A finished shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Done {
    name: String,
    /// Images of the set up to and with this shard's, skipped ones included.
    end: usize,
    images: usize,
    bytes: u64,
}

/// The result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Images in all shards.
    pub images: usize,
    /// Images that could not be read.
    pub skipped: usize,
    /// Shards.
    pub shards: usize,
    /// Bytes of all shards.
    pub bytes: u64,
}

thread_local! {
    static WORKER: RefCell<(Pixels, Scratch)> = RefCell::default();
}

struct Packing<'a> {
    config: &'a DataConfig,
    options: PackOptions,
    folder: &'a Path,
    state: State,
}

/// Packs the training images and, if there are any, the held-out ones into `folder`, and opens the result. `progress` is
/// called with the name of the set, the images done and their number.
/// # Errors
/// The folder holds something else; images that cannot be read if `data.on_bad_image` is `fail`; the disk is full; the
/// shards do not have the images and classes of the set.
pub fn pack(
    config: &DataConfig,
    options: PackOptions,
    folder: &Path,
    mut progress: impl FnMut(&str, usize, usize),
) -> Result<Packed> {
    // What the config makes of channels and values is for the training on the shards.
    let stored = DataConfig { channels: Channels::Auto, value_range: ValueRange::Auto, ..config.clone() };
    let train = open_train(&stored).context("data.path")?;
    let held_out = open_eval(&stored).context("data.eval_path")?;
    held_out.iter().try_for_each(|set| ensure_classes(&train, set))?;
    let prints = [Some(&train), held_out.as_ref()].map(|set| set.map_or(String::new(), |set| fingerprint(&**set)));
    let PackOptions { limit, quality, shard_size } = options;
    let source = format!("{} {} {limit:?} {quality} {shard_size} {:?}", prints[0], prints[1], config.channels);
    files::create_output_folder(folder)?;
    let mut packing = Packing { config, options, folder, state: state(folder, source)? };
    let mut packed = Packed::default();
    for (at, (name, set)) in [("train", Some(&train)), ("val", held_out.as_ref())].into_iter().enumerate() {
        let Some(set) = set else { continue };
        packing.set(at, name, set, &mut |done| progress(name, done, set.len()))?;
        let done = &packing.state.sets[at];
        let images: usize = done.iter().map(|shard| shard.images).sum();
        packed.images += images;
        packed.skipped += set.len() - images;
        packed.shards += done.len();
        packed.bytes += done.iter().map(|shard| shard.bytes).sum::<u64>();
    }
    let path: Option<Paths> = Some(folder.into());
    let result = DataConfig { format: Format::Webdataset, path, ..DataConfig::default() };
    ensure_same(&train, &open_train(&result)?, packing.images(0))?;
    if let Some(set) = &held_out {
        let opened = open_eval(&result)?.context("found no held-out shards, expected val-000000.tar")?;
        ensure_same(set, &opened, packing.images(1))?;
    }
    Ok(packed)
}

/// Fails for a held-out class without a training image: shards number the classes that their training images name.
fn ensure_classes(train: &Arc<dyn Dataset>, held_out: &Arc<dyn Dataset>) -> Result<()> {
    let labels = |set: &Arc<dyn Dataset>| -> BTreeSet<i64> {
        (0..set.len()).filter_map(|index| set.label(index)).filter(|label| *label >= 0).collect()
    };
    let (known, names) = (labels(train), held_out.class_names());
    let unknown = labels(held_out).into_iter().find(|label| !known.contains(label));
    let name = unknown.filter(|_| !known.is_empty()).and_then(|label| names.get(label as usize));
    if let Some(name) = name {
        bail!(
            "found held-out images of class {name}, expected classes of the training images, as shards know no others; \
             raise data.limit and data.fraction, or name other images in data.eval_path"
        );
    }
    Ok(())
}

/// What an earlier packing into `folder` did.
fn state(folder: &Path, source: String) -> Result<State> {
    let path = folder.join(STATE);
    if !path.exists() {
        let other = std::fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).find(|name| {
            let name = name.to_string_lossy();
            name.ends_with(".tar")
        });
        if let Some(name) = other {
            bail!("--output: {} already has {}; choose another folder", folder.display(), name.display());
        }
        let state = State { source, ..State::default() };
        state.save(folder)?; // before the first shard, so that a folder with shards always has it
        return Ok(state);
    }
    let bytes = files::read_regular(&path, 1 << 30).with_context(|| path.display().to_string())?;
    let state: State = serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        state.source == source,
        "--output: {} holds another packing, of other images or with other options; choose another folder, or remove it",
        folder.display()
    );
    Ok(state)
}

impl Packing<'_> {
    fn images(&self, at: usize) -> usize {
        self.state.sets[at].iter().map(|shard| shard.images).sum()
    }

    /// Packs what is missing of a set.
    fn set(&mut self, at: usize, name: &str, set: &Arc<dyn Dataset>, progress: &mut dyn FnMut(usize)) -> Result<()> {
        // A shard that is gone, and those after it, are made again.
        let kept = |shard: &Done| self.folder.join(&shard.name).is_file();
        let whole = self.state.sets[at].iter().take_while(|shard| kept(shard)).count();
        self.state.sets[at].truncate(whole);
        let mut next = self.state.sets[at].last().map_or(0, |shard| shard.end);
        if next > 0 && next < set.len() {
            log::info!("{name}: continuing after {next} of {} images", set.len());
        }
        let classes = set.class_names();
        while next < set.len() {
            let file = format!("{name}-{:06}.tar", self.state.sets[at].len());
            let mut shard = Shard::create(&self.folder.join(&file))?;
            while next < set.len() && shard.bytes < self.options.shard_size {
                let end = set.len().min(next + AT_ONCE);
                let items: Vec<Result<Option<Item>>> =
                    (next..end).into_par_iter().map(|index| self.item(&**set, index, &classes)).collect();
                for item in items {
                    if shard.bytes >= self.options.shard_size {
                        break;
                    }
                    if let Some(item) = item? {
                        shard.add(&item)?;
                    }
                    next += 1;
                }
                progress(next);
            }
            let (images, bytes) = (shard.images, shard.bytes);
            shard.finish()?;
            self.state.sets[at].push(Done { name: file, end: next, images, bytes });
            self.state.save(self.folder)?;
        }
        Ok(())
    }

    /// An image; `None` for one that cannot be read and is skipped.
    fn item(&self, set: &dyn Dataset, index: usize, classes: &[String]) -> Result<Option<Item>> {
        let error = match self.read(set, index) {
            Ok((bytes, ending)) => {
                let label = set.label(index).filter(|label| *label >= 0);
                let class = label.map(|label| classes.get(label as usize).cloned().unwrap_or(label.to_string()));
                return Ok(Some(Item { name: set.name(index), ending, bytes, class }));
            }
            Err(error) => error,
        };
        if self.config.on_bad_image == OnBadImage::Fail {
            return Err(error.context(format!("bad image {}", set.describe(index))));
        }
        log::warn!("skipping bad image {}: {error:#}", set.describe(index));
        Ok(None)
    }

    /// The bytes to pack, and the ending for their name.
    fn read(&self, set: &dyn Dataset, index: usize) -> Result<(Vec<u8>, String)> {
        let (mut packed, name) = (None, set.name(index));
        let encoded = set.with_encoded(index, &mut |bytes| {
            packed = Some(self.encoded(Path::new(&name), bytes)?);
            Ok(())
        })?;
        if encoded {
            return packed.context("found no encoded image");
        }
        // The pixels themselves, without loss.
        WORKER.with_borrow_mut(|(pixels, scratch)| {
            set.load(index, pixels)?;
            let (width, height, channels) = (pixels.width, pixels.height, pixels.channels);
            let smaller = self.options.limit.and_then(|limit| limit.applied(width, height));
            let png = match smaller {
                Some(size) => shrink::png(&resized(pixels, Part::whole(width, height), size, scratch), size, channels),
                None => shrink::png(&pixels.data, Size { height, width }, channels),
            };
            Ok((png?, "png".to_string()))
        })
    }

    /// The same for an image that is stored encoded.
    fn encoded(&self, name: &Path, bytes: &[u8]) -> Result<(Vec<u8>, String)> {
        ensure!(!bytes.is_empty(), "found no bytes, expected an image");
        if let Some(limit) = self.options.limit {
            let smaller = WORKER
                .with_borrow_mut(|worker| shrink::shrink(bytes, limit, self.options.quality, self.config, worker))?;
            if let Some((bytes, ending)) = smaller {
                return Ok((bytes, ending.to_string()));
            }
        }
        let ending = if is_image_name(name) { ending(name) } else { ending_of(bytes)?.to_string() };
        Ok((bytes.to_vec(), ending))
    }
}

/// Fails unless `packed` has as many images as were packed, in the same classes.
fn ensure_same(set: &Arc<dyn Dataset>, packed: &Arc<dyn Dataset>, images: usize) -> Result<()> {
    ensure!(packed.len() == images, "found {} images in the shards, expected {images}", packed.len());
    let classes = [set, packed].map(|set| set.class_names());
    let class = |set: &Arc<dyn Dataset>, classes: &[String], index| {
        let label = set.label(index).filter(|label| *label >= 0)?;
        Some(classes.get(label as usize).cloned().unwrap_or(label.to_string()))
    };
    if images < set.len() {
        return Ok(()); // of the others, which were skipped is in the log
    }
    for index in 0..images {
        let (was, is) = (class(set, &classes[0], index), class(packed, &classes[1], index));
        ensure!(was == is, "image {index} was of class {was:?}, and is of class {is:?} in the shards");
    }
    Ok(())
}
