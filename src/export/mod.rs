//! A trained encoder for other software: torchvision-named weights, a TorchScript module or an ONNX model, each
//! read back from the written file and compared with the encoder before anyone is told that it is there.

mod onnx;
mod onnx_proto;
mod onnx_run;
mod python;
mod safetensors;
mod torchscript;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tch::{CModule, Kind, Tensor};

use crate::checkpoint::write_file;
use crate::eval::{Encoder, EncoderOptions, Represent};
use crate::rng::{Purpose, Stream};
use native::{ImageLayout, Normalizer};

pub use python::load_in_python;

/// Largest difference between an export's features and the encoder's, as a part of the largest feature.
pub const TOLERANCE: f64 = 1e-4;

/// Images of the batch that an export is verified on.
const BATCH: i64 = 3;

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Weights under torchvision's names, for `load_state_dict`.
    Safetensors,
    /// A traced and frozen module, for `torch.jit.load`.
    Torchscript,
    /// A graph for onnxruntime and others.
    Onnx,
}

impl Format {
    /// Its name, and what of it a reader has to know.
    pub fn describe(self) -> String {
        match self {
            Self::Safetensors => "safetensors".into(),
            Self::Torchscript => "torchscript, batch and image size free".into(),
            Self::Onnx => format!("onnx opset {}, batch size free", onnx::OPSET),
        }
    }
}

/// Height and width of a graph's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSize {
    /// Squares of this many pixels.
    Fixed(i64),
    /// Anything.
    Dynamic,
}

/// How a graph is to be made; weights alone know none of this.
#[derive(Clone, Copy, Debug)]
pub struct GraphOptions {
    /// The graph takes RGB in 0 to 1 and subtracts the mean and divides by the standard deviation itself.
    pub normalize: bool,
    /// ONNX: BatchNorm as part of the convolutions. (TorchScript's freezing does so always.)
    pub fold_batchnorm: bool,
    /// ONNX: what the input's shape says. A TorchScript module says nothing and takes any.
    pub image_size: ImageSize,
}

/// How far the written file's features are from the encoder's.
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
        let [expected, found] = [expected, found].map(|t| t.to_kind(Kind::Double));
        Ok(Self { largest: largest(&found - &expected), scale: largest(expected) })
    }

    /// Difference over scale; NaN where a feature is.
    pub fn relative(&self) -> f64 {
        if self.largest == 0.0 { 0.0 } else { self.largest / self.scale }
    }

    /// What was measured, in words.
    /// # Errors
    /// The same words, where it is more than [`TOLERANCE`] or not a number.
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
        bail!(
            "it was written, but does not compute what the encoder does: {measured}, expected at most {TOLERANCE:e} of it"
        )
    }
}

/// Writes the encoder to `output`, whole or not at all. It has to be on the CPU, in fp32 and planar.
/// # Errors
/// It does not fit into the format; the disk is full; what libtorch says.
pub fn write(encoder: &Encoder, format: Format, options: &GraphOptions, output: &Path) -> Result<()> {
    let bytes = match format {
        Format::Safetensors => safetensors::serialize(encoder, metadata(encoder, options, false))?,
        Format::Onnx => onnx::serialize(encoder, options, metadata(encoder, options, options.normalize))?,
        Format::Torchscript => torchscript::serialize(encoder, options)?,
    };
    write_file(output, &bytes)
}

/// Refuses a number of parameters that a format cannot hold, before any work.
/// # Errors
/// The limit, the size found and what to do.
pub fn check_size(parameters: i64, format: Format) -> Result<()> {
    if format == Format::Onnx { onnx::check_size(parameters) } else { Ok(()) }
}

/// An export, read back.
enum Written {
    Weights(Box<Encoder>),
    Module(CModule),
    Graph(Vec<u8>),
}

impl Written {
    fn open(encoder: &Encoder, format: Format, path: &Path) -> Result<Self> {
        Ok(match format {
            Format::Safetensors => {
                let options = EncoderOptions { augment: Some(encoder.augment.clone()), ..EncoderOptions::default() };
                Self::Weights(Box::new(Encoder::open(path, &options)?))
            }
            Format::Torchscript => Self::Module(CModule::load(path)?),
            Format::Onnx => Self::Graph(fs::read(path).with_context(|| format!("reading {}", path.display()))?),
        })
    }

    fn run(&self, images: &Tensor) -> Result<Tensor> {
        match self {
            Self::Weights(encoder) => encoder.represent(images),
            Self::Module(module) => Ok(module.forward_ts(&[images])?),
            Self::Graph(bytes) => onnx_run::run(bytes, images),
        }
    }
}

/// Reads the written file back, runs it on a batch of random images, and compares its features with the encoder's.
/// The batch is not of the size that was traced; where the image size is free, a second one is larger.
/// # Errors
/// The file cannot be read or run.
pub fn verify(encoder: &Encoder, format: Format, options: &GraphOptions, output: &Path) -> Result<Difference> {
    let _no_grad = tch::no_grad_guard();
    let written = Written::open(encoder, format, output)?;
    let sizes = match options.image_size {
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
        let plain = format != Format::Safetensors && options.normalize;
        found.push(written.run(&if plain { normalized([0.0; 3], [1.0; 3])? } else { images })?);
    }
    Difference::between(&Tensor::f_cat(&expected, 0)?, &Tensor::f_cat(&found, 0)?)
}

/// What a file says of itself, for readers and for [`Encoder::open`]; values are JSON.
fn metadata(encoder: &Encoder, options: &GraphOptions, normalized_inside: bool) -> Vec<(String, String)> {
    let (config, augment) = (&encoder.config, &encoder.augment);
    let size = match options.image_size {
        ImageSize::Fixed(size) => size,
        ImageSize::Dynamic => augment.size as i64,
    };
    // Chosen for the run's size; for another one the rule gives it.
    let resize = augment.eval_resize.filter(|_| size == augment.size as i64);
    let mut entries = vec![
        ("byol", env!("CARGO_PKG_VERSION").to_string()),
        ("arch", python::name(config.arch)),
        ("width", config.width.to_string()),
        ("stem", python::name(config.stem)),
        ("feature_dim", encoder.net.feature_dim.to_string()),
        ("mean", format!("{:?}", augment.mean)),
        ("std", format!("{:?}", augment.std)),
        ("image_size", size.to_string()),
        ("eval_resize", resize.map_or("null".into(), |pixels| pixels.to_string())),
        ("input", if normalized_inside { "RGB in 0..1" } else { "RGB in 0..1, (x - mean) / std" }.into()),
        ("source", encoder.source.display().to_string()),
    ];
    if let Some(run) = &encoder.run {
        entries.push(("network", encoder.which.name().into()));
        entries.push(("step", run.step.to_string()));
    }
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}
