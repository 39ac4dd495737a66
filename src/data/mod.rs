//! From files on disk to batches of augmented views in memory; no tensors here.
//!
//! `open_train` / `open_eval` give a [`Dataset`] (one module per format), [`loader::sampler`] says which
//! images make up a step, [`loader`] decodes and augments them in parallel. What a batch holds
//! depends on the seed and its number only, never on the workers.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::augment::Crop;
use crate::files;
use crate::pixels::Pixels;
use decode::DecodeOptions;

pub mod decode;
pub mod formats;
pub mod loader;
mod paths;
pub mod subset;

pub use paths::Paths;

/// Called with an image's width and height, returns the part of it that is needed.
pub type CropFor<'a> = dyn FnMut(usize, usize) -> Crop + 'a;

/// A set of images that any thread can read in any order.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;
    /// Class of an image, if it has one.
    fn label(&self, index: usize) -> Option<i64>;
    /// Names of the classes in the order of the labels; empty where they have none.
    fn class_names(&self) -> Vec<String>;
    /// Decodes an image into `out`, reusing its memory. Fails for an unreadable image.
    fn load(&self, index: usize, out: &mut Pixels) -> Result<()>;
    /// Decodes at least the part of an image that `want` returns, which may be cheaper, and returns the part that `out`
    /// holds. The pixels of the wanted part equal those of the whole image; others may differ. `want` is called once,
    /// or at most once for an unreadable image; which images are unreadable does not depend on it.
    fn load_part(&self, index: usize, want: &mut CropFor, out: &mut Pixels) -> Result<Crop> {
        self.load(index, out)?;
        want(out.width, out.height);
        Ok(Crop::whole(out.width, out.height))
    }
    /// Where an image comes from, for messages: a path, or `file.parquet row 17`, `shard.tar member x.jpg` and so on.
    fn describe(&self, index: usize) -> String;
    /// SHA-256 (hex) over the names, sizes and number of the images, but not their contents: shows whether a resumed
    /// run reads the same set.
    fn fingerprint(&self) -> String;
    /// Whether there are no images. What `open_*` returns is never empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How the images are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Drawn on the fly; needs no files.
    #[default]
    Synthetic,
    /// Parquet shards with encoded images, as Hugging Face datasets publish them.
    Parquet,
    /// A folder of image files, one subfolder per class or none, or a text file that lists them.
    ImageFolder,
    /// Tar shards as the webdataset tool writes them.
    Webdataset,
    /// The binary version of CIFAR-10.
    Cifar10,
    /// The binary version of CIFAR-100, with its fine labels.
    Cifar100,
    /// The binary version of STL-10.
    Stl10,
}

impl Format {
    /// Whether the held-out images are part of the set.
    fn has_own_test_set(self) -> bool {
        matches!(self, Self::Cifar10 | Self::Cifar100 | Self::Stl10)
    }
}

/// Which part of the names of a webdataset shard's members is the key that a sample shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRule {
    /// Up to the first dot behind the last slash, as in the webdataset tool: `a.seg.png` belongs to `a.png`.
    #[default]
    FirstDot,
    /// Up to the last dot: `cam00.t3.png` and `cam00.t4.png` are two samples.
    LastDot,
}

/// What to do with an image that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadImage {
    /// Name it once in the log, count it, train on the next readable image instead.
    #[default]
    Skip,
    /// End the run with an error that names it.
    Fail,
}

/// The `data` section of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// `synthetic`, `parquet`, `image_folder`, `webdataset`, `cifar10`, `cifar100` or `stl10`. Default synthetic.
    pub format: Format,
    /// The training images: a path or a list of paths, in which `~` and `$NAME` are replaced. Parquet and webdataset: a
    /// file, a brace pattern (`train-{000..123}.tar`) or a folder of shards (those named `train*`, or else all), also
    /// one with subfolders as data set repositories have. Image folder: a folder (its `train` or `training` subfolder
    /// if it has one beside held-out ones) or a text file of paths. CIFAR: the archive, the unpacked folder, or the
    /// folder with either; STL-10: the unpacked folder, or the one that holds it. Required unless synthetic.
    pub path: Option<Paths>,
    /// Held-out labelled images for k-NN, a path or a list. Default: of the shards or subfolders named `val`, `valid`,
    /// `validation`, `dev`, `eval` or `test` next to the training ones the first found; none if there are none. CIFAR
    /// and STL-10 have their own, always.
    pub eval_path: Option<Paths>,
    /// Folder that relative paths start at: those in a list of images (default: the list's folder), and those in
    /// parquet files without the images themselves (default: the file's folder, or its `images`).
    pub root: Option<PathBuf>,
    /// Webdataset: `first_dot` or `last_dot`, where the key ends that the members of a sample share. Default first_dot.
    pub key: KeyRule,
    /// The images of STL-10 to train on: `train` (5 000 with labels), `unlabeled` (100 000) or `train+unlabeled`.
    /// Default `train+unlabeled`.
    pub split: Option<formats::stl10::Split>,
    /// Parquet column with the images. Default: `image`, `img`, or the only one of that type.
    pub image_column: Option<String>,
    /// Parquet column with the classes, numbers or text. Default: `label`, `labels`, `fine_label`, `class`, `category`,
    /// `cls` or `target`, if any.
    pub label_column: Option<String>,
    /// Train on this many images, the first of the set (of the chosen ones with `fraction`).
    /// At least 1. Default all.
    pub limit: Option<usize>,
    /// Train on this share of the images, chosen at random but the same in every run; (0, 1].
    /// Default all.
    pub fraction: Option<f64>,
    /// `skip` or `fail`. Default skip.
    pub on_bad_image: OnBadImage,
    /// Turn and mirror images as their EXIF orientation says. Default true.
    pub exif_orientation: bool,
    /// Images of more pixels count as bad; at least 1. They cost up to 32 bytes a pixel and worker
    /// while they are decoded. Default 100 000 000.
    pub max_pixels: usize,
    /// Images of more encoded bytes count as bad; at least 1. Default 67 108 864 (64 MiB).
    pub max_bytes: usize,
    /// Parquet sets of at most this many bytes are kept in memory, still encoded; larger ones are
    /// unpacked to a temporary file. Default 1 073 741 824 (1 GiB).
    pub cache_bytes: usize,
    /// Folder of that temporary file; it needs room for the whole set. Default TMPDIR, or /tmp.
    pub spill_dir: Option<PathBuf>,
    /// Threads that decode and augment, 0 to 1024; 0: automatic, by command, device and cores. Default 0.
    pub workers: usize,
    /// Finished batches that wait for the trainer, 1 to 1024. Default 4.
    pub prefetch_batches: usize,
    /// Most bytes of batches that wait, are being made or are kept for reuse, in each loader; at least 1, and one
    /// batch is always made. Default 4 294 967 296 (4 GiB: two batches of 4096 images of 224 px, and one being made).
    pub prefetch_bytes: usize,
    /// The drawn images of format `synthetic`.
    pub synthetic: formats::synthetic::SyntheticConfig,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            format: Format::default(),
            path: None,
            eval_path: None,
            root: None,
            key: KeyRule::default(),
            split: None,
            image_column: None,
            label_column: None,
            limit: None,
            fraction: None,
            on_bad_image: OnBadImage::default(),
            exif_orientation: true,
            max_pixels: 100_000_000,
            max_bytes: 64 << 20,
            cache_bytes: 1 << 30,
            spill_dir: None,
            workers: 0,
            prefetch_batches: 4,
            prefetch_bytes: 4 << 30,
            synthetic: formats::synthetic::SyntheticConfig::default(),
        }
    }
}

impl DataConfig {
    /// What is wrong with the values: (key below `data`, "found X, expected Y").
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, key: &str, message: String| {
            if !ok {
                problems.push((key.to_string(), message));
            }
        };
        let format = serde_json::json!(self.format);
        let synthetic = self.format == Format::Synthetic;
        let empty = |paths: &Paths| paths.is_empty() || paths.iter().any(|path| path.as_os_str().is_empty());
        let named = self.path.as_ref().is_some_and(|paths| !empty(paths));
        check(synthetic || named, "path", format!("found nothing, expected a path for format {format}"));
        for (key, path) in [("path", &self.path), ("eval_path", &self.eval_path)] {
            let found = path.as_ref().map_or(String::new(), |path| path.to_string());
            let found = if found.is_empty() { "an empty path".to_string() } else { found };
            let refused = synthetic || key == "eval_path" && self.format.has_own_test_set();
            let why = if synthetic { " (set data.format)" } else { ", which has its own test images" };
            check(!refused || path.is_none(), key, format!("found {found}, expected none for format {format}{why}"));
        }
        for (key, path) in [("spill_dir", &self.spill_dir), ("root", &self.root)] {
            let empty = path.as_ref().is_some_and(|path| path.as_os_str().is_empty());
            check(!empty, key, "found an empty path, expected null or a path".into());
        }
        let eval = self.eval_path.as_ref();
        check(!eval.is_some_and(empty), "eval_path", "found an empty path, expected null or a path".into());
        let count = self.path.as_ref().map_or(1, |paths| paths.len());
        let one = count <= 1 || !self.format.has_own_test_set();
        check(one, "path", format!("found {count} paths, expected one for format {format}"));
        for (key, paths) in [("path", &self.path), ("eval_path", &self.eval_path)] {
            let paths: &[PathBuf] = paths.as_deref().map_or(&[], |paths| paths);
            let twice = (1..paths.len()).find(|&at| paths[..at].contains(&paths[at]));
            let text =
                twice.map_or(String::new(), |at| format!("found {} twice, expected it once", paths[at].display()));
            check(twice.is_none(), key, text);
        }
        let rooted = matches!(self.format, Format::ImageFolder | Format::Parquet);
        check(rooted || self.root.is_none(), "root", format!("found a path, expected none for format {format}"));
        let keyed = self.format == Format::Webdataset || self.key == KeyRule::FirstDot;
        check(keyed, "key", format!("found last_dot, expected first_dot for format {format}, which has no keys"));
        let split = serde_json::json!(self.split);
        check(
            self.format == Format::Stl10 || self.split.is_none(),
            "split",
            format!("found {split}, expected none for format {format}"),
        );
        for (key, column) in [("image_column", &self.image_column), ("label_column", &self.label_column)] {
            check(
                self.format == Format::Parquet || column.is_none(),
                key,
                format!("found {:?}, expected none for format {format}", column.as_deref().unwrap_or_default()),
            );
        }
        for (key, value, low, high) in [
            ("limit", self.limit.unwrap_or(1), 1, u32::MAX as usize),
            ("max_pixels", self.max_pixels, 1, u32::MAX as usize),
            ("max_bytes", self.max_bytes, 1, usize::MAX),
            ("workers", self.workers, 0, 1024),
            ("prefetch_batches", self.prefetch_batches, 1, 1024),
            ("prefetch_bytes", self.prefetch_bytes, 1, usize::MAX),
        ] {
            check((low..=high).contains(&value), key, format!("found {value}, expected {low} to {high}"));
        }
        let fraction = self.fraction.unwrap_or(1.0);
        check(
            fraction > 0.0 && fraction <= 1.0,
            "fraction",
            format!("found {fraction}, expected more than 0 and at most 1"),
        );
        let inner = self.synthetic.problems().into_iter();
        problems.extend(inner.map(|(key, message)| (format!("synthetic.{key}"), message)));
        problems
    }

    /// How a loader of these images works on one machine alone.
    pub fn loader(&self, workers: usize) -> loader::LoaderOptions {
        let (prefetch, prefetch_bytes) = (self.prefetch_batches, self.prefetch_bytes);
        loader::LoaderOptions { workers, prefetch, prefetch_bytes, ..Default::default() }
    }

    /// With the paths as they are opened: `~` and environment variables replaced.
    fn expanded(&self) -> Result<Self> {
        let expand = |paths: &Option<Paths>| paths.as_ref().map(Paths::expanded).transpose();
        let expand_one = |path: &Option<PathBuf>| path.as_ref().map(|path| files::expanded(path)).transpose();
        Ok(Self {
            path: expand(&self.path)?,
            eval_path: expand(&self.eval_path)?,
            root: expand_one(&self.root)?,
            spill_dir: expand_one(&self.spill_dir)?,
            ..self.clone()
        })
    }

    /// The one path of a format that takes no list.
    fn only_path(&self) -> Option<&PathBuf> {
        self.path.as_ref().and_then(|paths| paths.first())
    }

    fn decode_options(&self) -> DecodeOptions {
        let Self { max_pixels, max_bytes, exif_orientation, .. } = *self;
        DecodeOptions { max_pixels, max_bytes, exif_orientation }
    }
}

/// Opens the training images, reduced to `fraction` and `limit`.
pub fn open_train(config: &DataConfig) -> Result<Arc<dyn Dataset>> {
    let config = &config.expanded()?;
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
    let config = &config.expanded()?;
    Ok(match config.format {
        Format::Synthetic => Some(Arc::new(formats::synthetic::Synthetic::eval(&config.synthetic))),
        Format::Parquet => formats::parquet::Parquet::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::ImageFolder => formats::image_folder::ImageFolder::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Webdataset => formats::webdataset::WebDataset::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Cifar10 | Format::Cifar100 => formats::cifar::Cifar::open_eval(config)?.map(|set| Arc::new(set) as _),
        Format::Stl10 => formats::stl10::Stl10::open_eval(config)?.map(|set| Arc::new(set) as _),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(config: &DataConfig) -> Vec<String> {
        config.problems().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn problems_name_the_key() {
        let mut config = DataConfig::default();
        assert_eq!(keys(&config), Vec::<String>::new());
        config.format = Format::Parquet;
        assert_eq!(keys(&config), ["path"]);
        config.path = Some("train.parquet".into());
        config.label_column = Some("label".into());
        assert_eq!(keys(&config), Vec::<String>::new());
        config.format = Format::Synthetic;
        assert_eq!(keys(&config), ["path", "label_column"]);
        let message = &config.problems()[0].1;
        assert!(message.starts_with("found train.parquet, expected none"), "{message}");
        config = DataConfig { path: config.path, eval_path: Some("test".into()), ..Default::default() };
        for (format, expected) in [
            (Format::Cifar10, ["eval_path", "split"].as_slice()),
            (Format::Cifar100, &["eval_path", "split"]),
            (Format::Stl10, &["eval_path"]),
            (Format::Webdataset, &["split"]),
            (Format::ImageFolder, &["split"]),
        ] {
            config = DataConfig { format, split: Some(formats::stl10::Split::Train), ..config };
            assert_eq!(keys(&config), expected, "{format:?}");
        }
    }

    #[test]
    fn problems_check_every_range() {
        let mut config = DataConfig {
            limit: Some(0),
            fraction: Some(1.5),
            max_pixels: 0,
            max_bytes: 0,
            workers: 5000,
            prefetch_batches: 0,
            prefetch_bytes: 0,
            ..Default::default()
        };
        config.synthetic.classes = 1;
        let expected = [
            "limit",
            "max_pixels",
            "max_bytes",
            "workers",
            "prefetch_batches",
            "prefetch_bytes",
            "fraction",
            "synthetic.classes",
        ];
        assert_eq!(keys(&config), expected);
        config.fraction = Some(f64::NAN);
        assert!(keys(&config).contains(&"fraction".to_string()));
    }

    #[test]
    fn words_are_the_fields_own() {
        let json = |format: Format| serde_json::to_value(format).unwrap();
        let names = [Format::Webdataset, Format::Cifar10, Format::Cifar100, Format::Stl10].map(json);
        assert_eq!(names, ["webdataset", "cifar10", "cifar100", "stl10"]);
        let json = r#"{"format": "stl10", "split": "train+unlabeled"}"#;
        let config: DataConfig = serde_json::from_str(json).unwrap();
        assert_eq!(config.split, Some(formats::stl10::Split::TrainUnlabeled));
    }

    #[test]
    fn keys_are_snake_case_and_unknown_ones_refused() {
        let json = r#"{"format": "image_folder", "on_bad_image": "fail"}"#;
        let config: DataConfig = serde_json::from_str(json).unwrap();
        assert_eq!(config.format, Format::ImageFolder);
        assert_eq!(config.on_bad_image, OnBadImage::Fail);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<DataConfig>(&text).unwrap(), config);
        assert!(serde_json::from_str::<DataConfig>(r#"{"paths": 1}"#).is_err());
    }
}
