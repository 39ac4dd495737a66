//! STL-10 in its binary version (<https://cs.stanford.edu/~acoates/stl10/>), unpacked: 96 x 96 images, plane by plane,
//! each plane column by column, and a file with one label byte (from 1) per labeled image.
//!
//! The unlabeled images are 2.8 GB. They are not held in memory but read from the file one by one, so the compressed
//! archive cannot be used, and gigabytes are not unpacked without being asked to.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shards;
use crate::data::{DataConfig, Dataset, digest};
use crate::files;
use crate::pixels::Pixels;

const SIDE: usize = 96;
const PLANE: usize = SIDE * SIDE;
const IMAGE: usize = 3 * PLANE;
const CLASSES: u8 = 10;
/// Maximum size of a file of labels or names.
const MAX_LABELS: u64 = 1 << 20;
const FOLDER: &str = "stl10_binary";
const ARCHIVE: &str = "stl10_binary.tar.gz";

thread_local! {
    /// Bytes per image in the file.
    static BUFFER: RefCell<Vec<u8>> = RefCell::default();
}

/// Which images to train on, by torchvision's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// The 5 000 labeled training images.
    Train,
    /// The 100 000 unlabeled images.
    Unlabeled,
    /// Both, the labeled ones first.
    #[serde(rename = "train+unlabeled")]
    TrainUnlabeled,
}

/// Some of the files of the set.
pub struct Stl10 {
    parts: Vec<Part>,
    classes: Vec<String>,
}

struct Part {
    path: PathBuf,
    file: File,
    images: usize,
    /// One per image, from 1; empty if there are none.
    labels: Vec<u8>,
}

impl Stl10 {
    /// Opens the images of `data.split` (both training sets by default, as solo-learn does) in `data.path`: the
    /// unpacked folder or the one that holds it.
    pub fn open_train(config: &DataConfig) -> Result<Self> {
        let names: &[&str] = match config.split.unwrap_or(Split::TrainUnlabeled) {
            Split::Train => &["train"],
            Split::Unlabeled => &["unlabeled"],
            Split::TrainUnlabeled => &["train", "unlabeled"],
        };
        Self::open(locate(config)?, names)
    }

    /// Opens the test images beside the training images; `None` if there are none.
    pub fn open_eval(config: &DataConfig) -> Result<Option<Self>> {
        let folder = locate(config)?;
        if folder.join("test_X.bin").exists() { Self::open(folder, &["test"]).map(Some) } else { Ok(None) }
    }

    fn open(folder: PathBuf, names: &[&str]) -> Result<Self> {
        let parts = names.iter().map(|name| Part::open(folder.join(format!("{name}_X.bin")), name));
        let parts = parts.collect::<Result<_>>()?;
        // Optional: nothing depends on the names.
        let text = files::read_regular(&folder.join("class_names.txt"), MAX_LABELS).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let classes = text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_string).collect();
        Ok(Self { parts, classes })
    }

    /// The part with an image, and the image's number in it.
    fn part(&self, index: usize) -> (&Part, usize) {
        let first = &self.parts[0];
        if index < first.images { (first, index) } else { (&self.parts[1], index - first.images) }
    }
}

impl Part {
    fn open(path: PathBuf, name: &str) -> Result<Self> {
        let context = || format!("cannot open {} (data.split says which files are read)", path.display());
        let file = files::open_regular(&path).with_context(context)?;
        let size = file.metadata().with_context(context)?.len() as usize;
        ensure!(
            size > 0 && size.is_multiple_of(IMAGE),
            "found {size} bytes in {}, expected a multiple of {IMAGE}: is the file truncated? unpack the archive again",
            path.display()
        );
        let images = size / IMAGE;
        let mut labels = Vec::new();
        if name != "unlabeled" {
            let path = path.with_file_name(format!("{name}_y.bin"));
            labels =
                files::read_regular(&path, MAX_LABELS).with_context(|| format!("cannot read {}", path.display()))?;
            let (found, path) = (labels.len(), path.display());
            ensure!(found == images, "found {found} labels in {path}, expected one for each of {images} images");
            if let Some(row) = labels.iter().position(|label| !(1..=CLASSES).contains(label)) {
                bail!("found label {} at byte {row} of {path}, expected 1 to {CLASSES}", labels[row]);
            }
        }
        Ok(Self { path, file, images, labels })
    }
}

impl Dataset for Stl10 {
    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.images).sum()
    }

    fn label(&self, index: usize) -> Option<i64> {
        let (part, row) = self.part(index);
        part.labels.get(row).map(|&label| label as i64 - 1)
    }

    fn class_names(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        let (part, row) = self.part(index);
        BUFFER.with_borrow_mut(|raw| {
            raw.resize(IMAGE, 0);
            part.file.read_exact_at(raw, (row * IMAGE) as u64).context("cannot read the image")?;
            out.resize(SIDE, SIDE);
            for (at, pixel) in out.data.chunks_exact_mut(3).enumerate() {
                let column_major = at % SIDE * SIDE + at / SIDE;
                for (channel, value) in pixel.iter_mut().enumerate() {
                    *value = raw[channel * PLANE + column_major];
                }
            }
            Ok(())
        })
    }

    fn describe(&self, index: usize) -> String {
        let (part, row) = self.part(index);
        format!("{} image {row}", part.path.display())
    }

    fn name(&self, index: usize) -> String {
        let (part, row) = self.part(index);
        format!("{}/{row}", part.path.file_name().unwrap_or_default().display())
    }

    fn fingerprint(&self) -> String {
        digest(self.parts.iter().map(|part| shards::name_and_size(&part.path)))
    }
}

/// The unpacked folder that `data.path` means.
fn locate(config: &DataConfig) -> Result<PathBuf> {
    let path = config.only_path().context("data.path: found nothing, expected a folder")?;
    ensure!(path.exists(), "no such folder: {}", path.display());
    let has_images = |folder: &PathBuf| {
        ["train_X.bin", "unlabeled_X.bin", "test_X.bin"].iter().any(|name| folder.join(name).is_file())
    };
    if let Some(folder) = [path.clone(), path.join(FOLDER)].into_iter().find(has_images) {
        return Ok(folder);
    }
    let archive = if path.is_dir() { path.join(ARCHIVE) } else { path.clone() };
    if archive.is_file() {
        let parent = archive.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.map_or(".".to_string(), |parent| parent.display().to_string());
        bail!(
            "found a packed archive, expected it unpacked, because its images are read one by one: tar -xzf {} -C \
             {parent}, then set data.path={parent}",
            archive.display()
        );
    }
    bail!("found no train_X.bin in {} or its folder {FOLDER}, expected the unpacked {ARCHIVE}", path.display())
}
