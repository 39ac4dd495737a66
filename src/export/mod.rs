//! A trained encoder for other software: torchvision-named weights, a TorchScript module or an ONNX model, each
//! read back from the written file and compared with the encoder before success is reported.
//! To add a format, write a file with an [`Exporter`], and add it to [`Format::ALL`].

mod onnx;
mod onnx_layers;
mod onnx_proto;
mod onnx_run;
mod safetensors;
mod torchscript;

use std::fmt;
use std::ops::Deref;
use std::panic::RefUnwindSafe;
use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use tch::Tensor;

use crate::checkpoint::write_file;
use crate::eval::{Encoder, Represent};
use crate::model::{Family, Norm, Pool};
use crate::rng::{Purpose, Stream};
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
        options.image_size.unwrap_or(ImageSize::Fixed(encoder.augment.size as i64))
    }

    /// The file's bytes.
    /// # Errors
    /// The encoder does not fit into the format.
    fn serialize(&self, encoder: &Encoder, options: &ExportOptions) -> Result<Vec<u8>>;

    /// Reads a file back.
    fn open(&self, encoder: &Encoder, path: &Path) -> Result<Reader>;

    /// The lines of Python that load `file`, a name as it stands between quotes.
    fn load_in_python(&self, encoder: &Encoder, options: &ExportOptions, file: &str) -> String;
}

/// What an opened export computes: images to features.
pub type Reader = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// A value of `--format`.
#[derive(Clone, Copy)]
pub struct Format(&'static dyn Exporter);

impl Format {
    /// All formats.
    pub const ALL: [Self; 3] = [Self(&safetensors::Safetensors), Self(&torchscript::TorchScript), Self(&onnx::Onnx)];
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
    /// Squares of this many pixels.
    Fixed(i64),
    /// Any size.
    Dynamic,
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

/// Writes the encoder to `output` atomically. It must be on the CPU, in fp32 and contiguous (not channels-last).
/// # Errors
/// It does not fit into the format; the disk is full.
pub fn write(encoder: &Encoder, format: Format, options: &ExportOptions, output: &Path) -> Result<()> {
    write_file(output, &format.serialize(encoder, options)?)
}

/// Reads the written file back, runs it on a batch of random images, and compares its features with the encoder's.
/// The batch size differs from the traced one; if the image size is free, a second batch has larger images.
pub fn verify(encoder: &Encoder, format: Format, options: &ExportOptions, output: &Path) -> Result<Difference> {
    let _no_grad = tch::no_grad_guard();
    let written = format.open(encoder, output)?;
    let sizes = match format.image_size(encoder, options) {
        ImageSize::Fixed(size) => vec![size],
        ImageSize::Dynamic => vec![encoder.augment.size as i64, encoder.augment.size as i64 + 33],
    };
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for size in sizes {
        let shape = [BATCH, size, size, 3];
        let mut random = Stream::new(0, Purpose::Verify, 0, size as u64, 0);
        let bytes: Vec<u8> = (0..shape.iter().product()).map(|_: i64| random.below(256) as u8).collect();
        let (mean, std) = (encoder.augment.mean, encoder.augment.std);
        let normalized =
            |mean, std| Normalizer::new(mean, std, encoder.device, ImageLayout::default())?.bytes(&bytes, shape);
        let images = normalized(mean, std)?;
        expected.push(encoder.represent(&images)?);
        let plain = format.normalizes(options);
        found.push(written(&if plain { normalized([0.0; 3], [1.0; 3])? } else { images })?);
    }
    Difference::between(&Tensor::f_cat(&expected, 0)?, &Tensor::f_cat(&found, 0)?)
}

/// Python code that loads the file at `output`.
pub fn load_in_python(encoder: &Encoder, format: Format, options: &ExportOptions, output: &Path) -> String {
    let file = output.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format.load_in_python(encoder, options, &file)
}

/// A comment on a graph's inputs and outputs.
fn shapes_in_python(encoder: &Encoder, size: ImageSize, normalizes: bool) -> String {
    let side = match size {
        ImageSize::Fixed(side) => format!("{side}, {side}"),
        ImageSize::Dynamic => "H, W".into(),
    };
    let input = if normalizes { "RGB in 0..1" } else { "normalized RGB" };
    format!("# images: float32 [N, 3, {side}], {input}; features: [N, {}]", encoder.net.feature_dim)
}

/// A file's metadata, for readers and for [`Encoder::open`]; values are JSON.
fn metadata(encoder: &Encoder, size: ImageSize, normalizes: bool) -> Vec<(String, String)> {
    let (config, augment) = (&encoder.config, &encoder.augment);
    let size = match size {
        ImageSize::Fixed(size) => size,
        ImageSize::Dynamic => augment.size as i64,
    };
    // Chosen for the run's size; for another one the rule gives it.
    let resize = augment.eval_resize.filter(|_| size == augment.size as i64);
    let mut entries = vec![
        ("byol", env!("CARGO_PKG_VERSION").to_string()),
        ("arch", config.arch.to_string()),
        ("width", config.width.to_string()),
        ("stem", config.stem.to_string()),
        ("feature_dim", encoder.net.feature_dim.to_string()),
        ("mean", format!("{:?}", augment.mean)),
        ("std", format!("{:?}", augment.std)),
        ("image_size", size.to_string()),
        ("eval_resize", resize.map_or("null".into(), |pixels| pixels.to_string())),
        ("input", if normalizes { "RGB in 0..1" } else { "RGB in 0..1, (x - mean) / std" }.into()),
        ("source", encoder.source.display().to_string()),
    ];
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
