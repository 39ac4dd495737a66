//! Section `data` of a config.

use std::path::PathBuf;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decode::{DecodeOptions, decode_values};
use super::formats::Format;
use super::values::{Axes, Channels, ValueRange, Values};
use super::{Paths, formats, loader};
use crate::augment::Part;
use crate::pixels::Pixels;
use crate::section::{Keys, Problems, Section, Words, count_or_null};

/// Which part of the names of a webdataset shard's members is the key that a sample shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyRule {
    /// Up to the first dot behind the last slash, as in the webdataset tool: `a.seg.png` belongs to `a.png`.
    #[default]
    FirstDot,
    /// Up to the last dot: `cam00.t3.png` and `cam00.t4.png` are two samples.
    LastDot,
}

/// What to do with an image that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadImage {
    /// Log it once, count it, and train on the next readable image instead.
    #[default]
    Skip,
    /// Stop the run with an error that names it.
    Fail,
}

/// Which images of a file of several are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Frames {
    /// The first.
    #[default]
    First,
    /// Each, as an image of its own.
    All,
}

/// JPEGs of more pixels are decoded at a lower resolution where that will do. The images of sets like ImageNet, which
/// were reduced for download, have fewer, photos from a camera more.
const SCALED_ABOVE: usize = 4_000_000;

/// Whether large JPEGs are decoded at a lower resolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaledDecoding {
    /// JPEGs of more than 4 million pixels, where both crops leave at least twice the view's pixels in each direction.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Section `data` of a config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The kind of data set. Default synthetic.
    pub format: Format,
    /// The training images: a path or a list of paths, in which `~` and `$NAME` are replaced. Parquet and webdataset: a
    /// file, a brace pattern (`train-{000..123}.tar`) or a folder of shards (those named `train*`, or else all), also
    /// one with subfolders as data set repositories have. Image folder: a folder (its `train` or `training` subfolder
    /// if it has one beside held-out ones) or a text file of paths. CIFAR: the archive, the unpacked folder, or the
    /// folder with either; STL-10: the unpacked folder, or the one that holds it. Required unless synthetic.
    pub path: Option<Paths>,
    /// Held-out labeled images for k-NN, a path or a list. Default: of the shards or subfolders named `val`, `valid`,
    /// `validation`, `dev`, `eval` or `test` next to the training ones the first found; none if there are none. CIFAR
    /// and STL-10 have their own, always.
    pub eval_path: Option<Paths>,
    /// Folder that paths are relative to: those in a list of images (default: the list's folder), and those in
    /// parquet files without the images themselves (default: the file's folder, or its `images`).
    pub root: Option<PathBuf>,
    /// Webdataset: `first_dot` or `last_dot`, the end of the key that the members of a sample share. Default first_dot.
    pub key: KeyRule,
    /// The images of STL-10 to train on: `train` (5 000 with labels), `unlabeled` (100 000) or `train+unlabeled`.
    /// Default `train+unlabeled`.
    pub split: Option<formats::stl10::Split>,
    /// Channels of the images, 1 to 64. Others are converted where that has a meaning: gray is repeated, color becomes
    /// luma, alpha is dropped unless 4 are asked for; the rest count as bad images. Default auto, from a look at up to
    /// 1024 of the training images: their number, or 3 if gray and color are mixed.
    pub channels: Channels,
    /// What becomes 0 and 255 in the pipeline of bytes: `[low, high]`, or such a pair for each channel; values outside
    /// are clipped and counted. `full`: the range of the file's type, 0 to 255 of 8 bits, 0 to 1 of floats, and of
    /// larger integers their high byte. Default auto: full for 8-bit files; for deeper ones the percentiles 0.1 and
    /// 99.9 of each channel in up to 512 of the training images.
    pub value_range: ValueRange,
    /// Order of the axes of `.npy` files with three: `hwc` (height, width, channels) or `chw`. Default hwc.
    pub axes: Axes,
    /// Image folder: `first` or `all`, which frames of a DICOM file or pages of a TIFF are images of the set. Those of
    /// several are named `scan.dcm/0`, `scan.dcm/1` and so on. Default first.
    pub frames: Frames,
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
    /// Images that cannot be read: `skip` replaces each by the next image, logs and counts it; `fail` stops. Default skip.
    pub on_bad_image: OnBadImage,
    /// Apply the EXIF orientation of images. Default true.
    pub exif_orientation: bool,
    /// `auto` or `off`. In training, a JPEG of more than 4 million pixels is decoded at 1/2, 1/4 or 1/8 of its size where
    /// both crops then still have at least twice the view's pixels in each direction. Default auto.
    pub scaled_decoding: ScaledDecoding,
    /// Images of more pixels count as bad; at least 1. They take up to 32 bytes per pixel and worker
    /// while they are decoded. Default 100 000 000.
    pub max_pixels: usize,
    /// Images of more encoded bytes count as bad; at least 1. Default 67 108 864 (64 MiB).
    pub max_bytes: usize,
    /// Parquet sets of at most this many bytes are kept in memory, still encoded; larger ones are
    /// unpacked to a temporary file. Default 1 073 741 824 (1 GiB).
    pub cache_bytes: usize,
    /// Folder of the temporary file for parquet sets larger than `cache_bytes`; it needs room for the whole set. Default TMPDIR, or /tmp.
    pub spill_dir: Option<PathBuf>,
    /// Threads that decode and augment, 1 to 1024. Default null: by command, device and cores.
    #[serde(deserialize_with = "count_or_null")]
    pub workers: Option<usize>,
    /// Finished micro-batches queued for the trainer, 1 to 1024. Default 4.
    pub prefetch_batches: usize,
    /// Maximum bytes of batches that are queued, in progress or kept for reuse, in each loader; at least 1, and one
    /// batch is always made. Default 4 294 967 296 (4 GiB: two batches of 4096 images of 224 px, and one in progress).
    pub prefetch_bytes: usize,
    /// The generated images of format `synthetic`.
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
            channels: Channels::Auto,
            value_range: ValueRange::Auto,
            axes: Axes::Hwc,
            frames: Frames::default(),
            image_column: None,
            label_column: None,
            limit: None,
            fraction: None,
            on_bad_image: OnBadImage::default(),
            exif_orientation: true,
            scaled_decoding: ScaledDecoding::default(),
            max_pixels: 100_000_000,
            max_bytes: 64 << 20,
            cache_bytes: 1 << 30,
            spill_dir: None,
            workers: None,
            prefetch_batches: 4,
            prefetch_bytes: 4 << 30,
            synthetic: formats::synthetic::SyntheticConfig::default(),
        }
    }
}

impl DataConfig {
    /// Checks `path` or `eval_path`.
    fn check_paths(&self, key: &str, paths: Option<&Paths>, problems: &mut Problems) {
        let (format, synthetic) = (serde_json::json!(self.format), self.format == Format::Synthetic);
        let Some(paths) = paths else {
            let expected = format!("a path for format {format}");
            return problems.require(synthetic || key != "path", key, Words("nothing"), expected);
        };
        let empty = paths.is_empty() || paths.iter().any(|path| path.as_os_str().is_empty());
        let found = if empty { "an empty path".into() } else { paths.to_string() };
        if synthetic || key == "eval_path" && self.format.has_own_test_set() {
            let why = if synthetic { " (set data.format)" } else { ", which has its own test images" };
            return problems.require(false, key, Words(&found), format!("none for format {format}{why}"));
        }
        let expected = if key == "path" { format!("a path for format {format}") } else { "null or a path".into() };
        problems.require(!empty, key, Words("an empty path"), expected);
        let one = paths.len() <= 1 || !self.format.has_own_test_set();
        problems.require(one, key, Words(&format!("{} paths", paths.len())), format!("one for format {format}"));
        if let Some(at) = (1..paths.len()).find(|&at| paths[..at].contains(&paths[at])) {
            problems.require(false, key, Words(&format!("{} twice", paths[at].display())), "it once");
        }
    }

    /// Loader options for a single process.
    pub fn loader(&self, workers: usize) -> loader::LoaderOptions {
        let (prefetch, prefetch_bytes) = (self.prefetch_batches, self.prefetch_bytes);
        loader::LoaderOptions { workers, prefetch, prefetch_bytes, ..Default::default() }
    }

    /// The path for formats that take no list.
    pub(super) fn only_path(&self) -> Option<&PathBuf> {
        self.path.as_ref().and_then(|paths| paths.first())
    }

    /// Decodes the bytes of an image as those of the set.
    /// # Errors
    /// They are no image, or a larger one than the config allows.
    pub fn decode(&self, bytes: &[u8], out: &mut Pixels) -> Result<()> {
        let mut values = self.values();
        if values.range == ValueRange::Auto {
            values.range = ValueRange::Full;
        }
        decode_values(bytes, self.decode_options(), &values, &mut Part::whole, out).map(drop)
    }

    /// Channels and range of the images, 8-bit RGB where they are `auto`.
    pub(super) fn values(&self) -> Values {
        let channels = self.channels.count().unwrap_or(Values::default().channels);
        Values { channels, range: self.value_range.clone(), axes: self.axes }
    }

    pub(super) fn decode_options(&self) -> DecodeOptions {
        let Self { max_pixels, max_bytes, exif_orientation, scaled_decoding, .. } = *self;
        let scaled_above = if scaled_decoding == ScaledDecoding::Auto { SCALED_ABOVE } else { usize::MAX };
        DecodeOptions { max_pixels, max_bytes, exif_orientation, scaled_above }
    }
}

impl Section for DataConfig {
    fn check(&self, problems: &mut Problems) {
        let format = serde_json::json!(self.format);
        let none = format!("none for format {format}");
        for (key, paths) in [("path", &self.path), ("eval_path", &self.eval_path)] {
            self.check_paths(key, paths.as_ref(), problems);
        }
        for (key, path) in [("spill_dir", &self.spill_dir), ("root", &self.root)] {
            let empty = path.as_ref().is_some_and(|path| path.as_os_str().is_empty());
            problems.require(!empty, key, Words("an empty path"), "null or a path");
        }
        let rooted = matches!(self.format, Format::ImageFolder | Format::Parquet);
        problems.require(rooted || self.root.is_none(), "root", Words("a path"), &none);
        let keyed = self.format == Format::Webdataset || self.key == KeyRule::FirstDot;
        problems.require(keyed, "key", Words("last_dot"), format!("first_dot for format {format}, which has no keys"));
        let framed = self.format == Format::ImageFolder || self.frames == Frames::First;
        problems.require(framed, "frames", Words("all"), format!("first for format {format}"));
        let split = serde_json::json!(self.split);
        let allowed = self.split.is_none() || self.format == Format::Stl10;
        problems.require(allowed, "split", Words(&split.to_string()), &none);
        for (key, column) in [("image_column", &self.image_column), ("label_column", &self.label_column)] {
            let allowed = column.is_none() || self.format == Format::Parquet;
            problems.require(allowed, key, column.as_deref().unwrap_or_default(), &none);
        }
        problems.range_or_null("limit", self.limit, 1..=u32::MAX as usize);
        let fraction = self.fraction.unwrap_or(1.0);
        problems.require(fraction > 0.0 && fraction <= 1.0, "fraction", fraction, "null or above 0, at most 1");
        self.channels.check(problems);
        self.value_range.check(self.channels, problems);
        problems.range("max_pixels", self.max_pixels, 1..=u32::MAX as usize);
        problems.at_least_one("max_bytes", self.max_bytes);
        problems.range_or_null("workers", self.workers, 1..=1024);
        problems.range("prefetch_batches", self.prefetch_batches, 1..=1024);
        problems.at_least_one("prefetch_bytes", self.prefetch_bytes);
        problems.within("synthetic", &self.synthetic);
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let sets = [&mut self.path, &mut self.eval_path].into_iter().flatten().flat_map(|paths| paths.iter_mut());
        sets.chain(&mut self.spill_dir).chain(&mut self.root).collect()
    }

    fn added(&self) -> &'static [&'static str] {
        &["scaled_decoding", "frames"]
    }

    fn as_before(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("channels", &["\"auto\"", "3"]), ("value_range", &["\"auto\"", "\"full\""]), ("axes", &["\"hwc\""])]
    }

    fn no_effect(&self) -> Keys {
        Keys::Only(&[
            "path",
            "eval_path",
            "root",
            "key", // a change shows in the fingerprint of the images
            "on_bad_image",
            "workers",
            "prefetch_batches",
            "prefetch_bytes",
            "cache_bytes",
            "spill_dir",
        ])
    }
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
        config = DataConfig { frames: Frames::All, split: None, ..config };
        assert_eq!(keys(&config), Vec::<String>::new());
        assert_eq!(keys(&DataConfig { format: Format::Parquet, ..config }), ["frames"]);
    }

    #[test]
    fn problems_check_every_range() {
        let mut config = DataConfig {
            limit: Some(0),
            fraction: Some(1.5),
            max_pixels: 0,
            max_bytes: 0,
            workers: Some(5000),
            prefetch_batches: 0,
            prefetch_bytes: 0,
            ..Default::default()
        };
        config.synthetic.classes = 1;
        let expected = [
            "limit",
            "fraction",
            "max_pixels",
            "max_bytes",
            "workers",
            "prefetch_batches",
            "prefetch_bytes",
            "synthetic.classes",
        ];
        assert_eq!(keys(&config), expected);
        config.fraction = Some(f64::NAN);
        assert!(keys(&config).contains(&"fraction".to_string()));
    }

    #[test]
    fn formats_are_written_without_underscores() {
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
