//! A trained encoder for other software: weights for torchvision, timm and transformers, a TorchScript module or an ONNX
//! model, each read back from what was written and compared with the encoder before success is reported.
//! To add a format, write a file with an [`Exporter`], and add it to [`Format::ALL`].

mod hf;
mod onnx;
mod onnx_layers;
mod onnx_proto;
mod onnx_run;
mod pth;
mod safetensors;
mod timm;
mod torchscript;
mod torchvision;

use std::fmt;
use std::fs;
use std::ops::Deref;
use std::panic::RefUnwindSafe;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde_json::json;
use tch::Tensor;

use crate::augment::{AugmentConfig, Size};
use crate::checkpoint::{self, write_file};
use crate::data::values::ValueRange;
use crate::eval::{Encoder, Represent};
use crate::files;
use crate::model::{EncoderConfig, Family, Norm, Pool};
use crate::rng::{Purpose, Stream};
use crate::section::Shown;
use native::{ImageLayout, Normalizer};

/// Largest difference between an export's features and the encoder's, as a part of the largest feature.
pub const TOLERANCE: f64 = 1e-4;

/// Images of the batch that an export is verified on.
const BATCH: i64 = 3;

/// A file format.
pub trait Exporter: Sync + RefUnwindSafe {
    /// Its name, as `--format` takes it.
    fn name(&self) -> &'static str;

    /// One line for `--help`.
    fn help(&self) -> &'static str;

    /// Its name and properties, for the log.
    fn describe(&self, encoder: &Encoder) -> String;

    /// Refuses options that it does not support.
    fn check_options(&self, options: &ExportOptions) -> Result<()>;

    /// Refuses encoders that it cannot describe.
    /// # Errors
    /// What was found, what it has, and what to do.
    fn check_encoder(&self, _config: &EncoderConfig) -> Result<()> {
        Ok(())
    }

    /// Refuses more parameters than it can hold.
    /// # Errors
    /// The limit, the size found and what to do.
    fn check_size(&self, _parameters: i64) -> Result<()> {
        Ok(())
    }

    /// Whether the file takes RGB in 0 to 1 and normalizes it itself.
    fn normalizes(&self, options: &ExportOptions) -> bool {
        options.normalize.unwrap_or(true)
    }

    /// The image size that it accepts.
    fn image_size(&self, encoder: &Encoder, options: &ExportOptions) -> ImageSize {
        options.image_size.unwrap_or(ImageSize::Fixed(encoder.augment.size))
    }

    /// The names of its files, if it is a folder.
    fn files(&self) -> Option<&'static [&'static str]> {
        None
    }

    /// What is written.
    /// # Errors
    /// The encoder does not fit into the format.
    fn serialize(&self, encoder: &Encoder, options: &ExportOptions) -> Result<Contents>;

    /// Reads a file or folder back.
    fn open(&self, encoder: &Encoder, path: &Path) -> Result<Reader>;

    /// The lines of Python that load `file`, a name as it stands between quotes.
    fn load_in_python(&self, encoder: &Encoder, options: &ExportOptions, file: &str) -> String;
}

/// What an export consists of.
pub enum Contents {
    /// One file.
    File(Vec<u8>),
    /// The files of a folder by name. The last one is that which readers begin with.
    Folder(Vec<(&'static str, Vec<u8>)>),
}

/// What an opened export computes: images to features.
pub type Reader = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// A value of `--format`.
#[derive(Clone, Copy)]
pub struct Format(&'static dyn Exporter);

impl Format {
    /// Weights under torchvision's names.
    pub const SAFETENSORS: Self = Self(&safetensors::Safetensors);

    /// All formats.
    pub const ALL: [Self; 6] = [
        Self::SAFETENSORS,
        Self(&pth::Pth),
        Self(&timm::Timm),
        Self(&hf::Hf),
        Self(&torchscript::TorchScript),
        Self(&onnx::Onnx),
    ];
}

/// What `--format safetensors` writes.
/// # Errors
/// Out of memory.
pub fn encoder_file(encoder: &Encoder) -> Result<Vec<u8>> {
    safetensors::weights(encoder, &ExportOptions::default(), &encoder.params.state_dict(encoder.batches_tracked))
}

impl Deref for Format {
    type Target = dyn Exporter;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(self.help()))
    }
}

/// Height and width of an export's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSize {
    /// This one.
    Fixed(Size),
    /// Any size.
    Dynamic,
}

/// A number for both sides, as `160x320` height and width, or `dynamic`.
impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|side| (8..=1024).contains(side));
        let sides: Vec<Option<usize>> = text.split('x').map(number).collect();
        match sides[..] {
            _ if text == "dynamic" => Ok(Self::Dynamic),
            [Some(side)] => Ok(Self::Fixed(side.into())),
            [Some(height), Some(width)] => Ok(Self::Fixed(Size { height, width })),
            _ => Err("expected 8 to 1024 pixels, a height and a width such as 160x320, or dynamic".into()),
        }
    }
}

/// Export options; `None` is the format's default.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportOptions {
    /// Whether the graph takes RGB in 0 to 1, subtracts the mean and divides by the standard deviation itself.
    pub normalize: Option<bool>,
    /// ONNX: fold BatchNorm into the convolutions. (TorchScript's freezing always does.)
    pub fold_batchnorm: bool,
    /// The shape of the input.
    pub image_size: Option<ImageSize>,
}

/// The difference between the written file's features and the encoder's.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// Largest absolute difference of a feature.
    pub largest: f64,
    /// Largest magnitude of a feature of the encoder.
    pub scale: f64,
}

impl Difference {
    fn between(expected: &Tensor, found: &Tensor) -> Result<Self> {
        if expected.size() != found.size() {
            bail!("found features of shape {:?}, expected {:?}", found.size(), expected.size());
        }
        let largest = |tensor: Tensor| tensor.abs().max().double_value(&[]);
        let [expected, found] = [expected, found].map(|t| t.to_kind(tch::Kind::Double));
        Ok(Self { largest: largest(&found - &expected), scale: largest(expected) })
    }

    /// Difference over scale; NaN if a feature is.
    pub fn relative(&self) -> f64 {
        if self.largest == 0.0 { 0.0 } else { self.largest / self.scale }
    }

    /// The measurement in words.
    pub fn check(&self) -> Result<String> {
        let measured = format!(
            "largest difference to the encoder {:.1e}, {:.1e} of the largest feature ({:.3})",
            self.largest,
            self.relative(),
            self.scale
        );
        if self.relative() <= TOLERANCE {
            return Ok(measured);
        }
        bail!("the file's features differ from the encoder's: {measured}, expected at most {TOLERANCE:e} of it")
    }
}

/// Checks before any work that `output` can be written.
/// # Errors
/// A file of the export exists and `force` is not set; a folder instead of a file, or the reverse; no folder to write to.
pub fn check_output(format: Format, output: &Path, force: bool) -> Result<()> {
    let Some(names) = format.files() else { return checkpoint::check_output(output, force) };
    let (name, format) = (output.display(), format.name());
    ensure!(!output.is_file(), "--output: found the file {name}, expected the name of a folder for --format {format}");
    if output.is_dir() {
        return names.iter().try_for_each(|name| checkpoint::check_output(&output.join(name), force));
    }
    checkpoint::check_output(output, force)
}

/// Writes the encoder to `output`, each file atomically. It must be on the CPU, in fp32 and contiguous (not
/// channels-last).
/// # Errors
/// It does not fit into the format; the disk is full.
pub fn write(encoder: &Encoder, format: Format, options: &ExportOptions, output: &Path) -> Result<()> {
    let files = match format.serialize(encoder, options)? {
        Contents::File(bytes) => return write_file(output, &bytes),
        Contents::Folder(files) => files,
    };
    files::create_output_folder(output)?;
    // Without the file that readers begin with, a folder that is not complete is none to them.
    let first_read = files.last().map(|(name, _)| output.join(name)).filter(|path| path.exists());
    first_read.map_or(Ok(()), |path| fs::remove_file(&path).with_context(|| format!("removing {}", path.display())))?;
    files.iter().try_for_each(|(name, bytes)| write_file(&output.join(name), bytes))
}

/// Reads the written file back, runs it on a batch of random images, and compares its features with the encoder's.
/// The batch size differs from the traced one; if the image size is free, a second batch has larger images.
pub fn verify(encoder: &Encoder, format: Format, options: &ExportOptions, output: &Path) -> Result<Difference> {
    let _no_grad = tch::no_grad_guard();
    let written = format.open(encoder, output)?;
    let sizes = match format.image_size(encoder, options) {
        ImageSize::Fixed(size) => vec![size.shape()],
        ImageSize::Dynamic => [0, 33].map(|more| encoder.augment.size.shape().map(|side| side + more)).to_vec(),
    };
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for size in sizes {
        let shape = [BATCH, size[0], size[1], encoder.config.channels];
        let mut random = Stream::new(0, Purpose::Verify, 0, size[1] as u64, 0);
        let bytes: Vec<u8> = (0..shape.iter().product()).map(|_: i64| random.below(256) as u8).collect();
        let (mean, std) = (encoder.augment.mean.values(), encoder.augment.std.values());
        let normalized = |mean: &[f64], std: &[f64]| {
            Normalizer::new(mean, std, encoder.device, ImageLayout::default())?.bytes(&bytes, shape)
        };
        let images = normalized(mean, std)?;
        expected.push(encoder.represent(&images)?);
        let plain = format.normalizes(options);
        found.push(written(&if plain { normalized(&vec![0.0; mean.len()], &vec![1.0; std.len()])? } else { images })?);
    }
    Difference::between(&Tensor::f_cat(&expected, 0)?, &Tensor::f_cat(&found, 0)?)
}

/// Python code that loads the file at `output`.
pub fn load_in_python(encoder: &Encoder, format: Format, options: &ExportOptions, output: &Path) -> String {
    // The inside of a literal: Python knows the escapes of JSON.
    let literal = json!(output.display().to_string()).to_string();
    format.load_in_python(encoder, options, &literal[1..literal.len() - 1])
}

/// A comment on a graph's inputs and outputs.
fn shapes_in_python(encoder: &Encoder, size: ImageSize, normalizes: bool) -> String {
    let side = match size {
        ImageSize::Fixed(size) => format!("{}, {}", size.height, size.width),
        ImageSize::Dynamic => "H, W".into(),
    };
    let (channels, pixels) = (encoder.config.channels, pixels(encoder));
    let input = if normalizes { format!("{pixels} in 0..1") } else { format!("normalized {pixels}") };
    format!("# images: float32 [N, {channels}, {side}], {input}; features: [N, {}]", encoder.net.feature_dim)
}

/// What the channels are.
fn pixels(encoder: &Encoder) -> String {
    match (encoder.config.channels, &encoder.value_range) {
        (3, ValueRange::Auto | ValueRange::Full) => "RGB".into(),
        (channels, ValueRange::Auto | ValueRange::Full) => format!("{channels} channels"),
        // As metadata, by name: the ranges of 64 channels are no comment.
        (channels, _) => format!("{channels} channels (value_range in the metadata)"),
    }
}

/// How images are preprocessed for an export of this image size.
fn inputs(encoder: &Encoder, size: ImageSize) -> AugmentConfig {
    let mut augment = encoder.augment.clone();
    if let ImageSize::Fixed(size) = size {
        // Chosen for the run's size; for another one the rule gives it.
        augment.eval_resize = augment.eval_resize.filter(|_| size == augment.size);
        augment.size = size;
    }
    augment
}

/// The encoder with a ViT's position embeddings for images of this size, the only one that other libraries take.
/// # Errors
/// Its patches do not divide the size.
fn resized(encoder: &Encoder, options: &ExportOptions, size: Size) -> Result<Encoder> {
    let key = if options.image_size.is_some() { "--image-size" } else { "augment.size" };
    let checked = encoder.config.check_size(size.shape());
    checked.map_err(|expected| anyhow!("{key}: found {}, expected {expected} for {}", size.shown(), encoder.config))?;
    encoder.resized(size.shape())
}

/// A file's metadata, for readers and for [`Encoder::open`]; values are JSON.
fn metadata(encoder: &Encoder, size: ImageSize, normalizes: bool) -> Vec<(String, String)> {
    let (config, augment) = (&encoder.config, inputs(encoder, size));
    let mut entries = vec![
        ("byol", env!("CARGO_PKG_VERSION").to_string()),
        ("arch", config.arch.to_string()),
        ("width", config.width.to_string()),
        ("stem", config.stem.to_string()),
        ("feature_dim", encoder.net.feature_dim.to_string()),
        ("channels", config.channels.to_string()),
        ("mean", format!("{:?}", augment.mean.values())),
        ("std", format!("{:?}", augment.std.values())),
        ("image_size", augment.size.shown()),
        ("eval_resize", augment.eval_resize.map_or("null".into(), |pixels| pixels.to_string())),
        ("input", format!("{} in 0..1{}", pixels(encoder), if normalizes { "" } else { ", (x - mean) / std" })),
        ("source", encoder.source.display().to_string()),
    ];
    if encoder.value_range != ValueRange::Auto {
        entries.push(("value_range", serde_json::to_string(&encoder.value_range).unwrap_or_default()));
    }
    if config.norm == Norm::GroupWs {
        entries.push(("norm", "group_ws".into()));
    }
    if config.arch.family() == Family::Vit {
        entries.push(("pool", if config.pool == Pool::Mean { "mean" } else { "token" }.into()));
        entries.push(("positions", format!("{:?}", config.image_size)));
    }
    if let Some(run) = &encoder.run {
        entries.push(("network", encoder.which.name().into()));
        entries.push(("step", run.step.to_string()));
    }
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}
