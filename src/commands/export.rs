//! `byol export-encoder`: a trained encoder becomes a file that other software loads.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tch::Device;

use crate::backend;
use crate::cli::ExportArgs;
use crate::config::Config;
use crate::data::loader::{BadImages, EvalLoader, LoaderOptions};
use crate::data::{self, Dataset};
use crate::eval::{Encoder, EncoderOptions, Which};
use crate::export::{self, Format, GraphOptions, ImageSize};

/// Images of a batch whose statistics BatchNorm gets.
const BATCH: usize = 256;

/// Runs the command; the value is the process's exit code.
/// # Errors
/// One line: what is wrong, where, and what to do.
pub fn run(args: &ExportArgs) -> Result<u8> {
    let format = args.format;
    check_options(args)?;
    export::check_output(&args.output, args.force)?;
    backend::set_threads(backend::default_threads(Device::Cpu).0);
    let given = args.config.as_ref().map(|path| Config::load(path, &args.set)).transpose()?;
    let augment = given.as_ref().map(|config| config.augment.clone());
    let options = EncoderOptions { which: args.network, augment, ..EncoderOptions::default() };
    let mut encoder = Encoder::open(&args.checkpoint, &options)?;
    if same_file(&args.output, &encoder.source) {
        bail!("--output {}: is the encoder that is read; choose another name", args.output.display());
    }
    if encoder.run.is_none() && args.network == Which::Target {
        bail!("--network target: found a single file, expected a run's or a checkpoint's folder; leave it out");
    }
    export::check_size(&encoder, format)?;
    if given.is_none() && !args.set.is_empty() {
        let base = match &encoder.run {
            Some(run) => Config::of_run(&run.config)?,
            None => Config { augment: encoder.augment.clone(), ..Config::default() },
        };
        encoder.augment = base.with(&args.set)?.augment;
    }
    if let (Some(run), Some(given)) = (&encoder.run, &given) {
        let trained = Config::of_run(&run.config)?.augment;
        if (trained.mean, trained.std) != (given.augment.mean, given.augment.std) {
            log::warn!(
                "mean {:?} and std {:?} of --config are exported; the run trained with {:?} and {:?}",
                given.augment.mean,
                given.augment.std,
                trained.mean,
                trained.std
            );
        }
    }
    if let (Which::Target, Some(config)) = (args.network, &given) {
        recompute(&mut encoder, config, args.batchnorm_images as usize)?;
    }
    let size = ImageSize::Fixed(encoder.augment.size as i64);
    let default = if format == Format::Torchscript { ImageSize::Dynamic } else { size };
    let image_size = args.image_size.unwrap_or(default);
    let normalize = args.normalize || (format != Format::Safetensors && !args.no_normalize);
    let graph = GraphOptions { normalize, fold_batchnorm: args.fold_batchnorm, image_size };
    export::write(&encoder, format, &graph, &args.output)?;
    let output = args.output.display();
    let difference = export::verify(&encoder, format, &graph, &args.output)
        .with_context(|| format!("{output}: was written, but cannot be read back"))?;
    let measured = format!(
        "largest difference to the encoder {:.1e}, {:.1e} of the largest feature ({:.3})",
        difference.largest,
        difference.relative(),
        difference.scale
    );
    if !difference.is_small() {
        bail!(
            "{output}: was written, but is not the encoder: {measured}, expected at most {:.0e} of it",
            export::TOLERANCE
        );
    }
    let about = match format {
        Format::Onnx => format!("onnx opset {}", export::OPSET),
        Format::Safetensors => "safetensors".into(),
        Format::Torchscript => "torchscript".into(),
    };
    let ResultLine { arch, width, params } = ResultLine::of(&encoder);
    let text = format!(
        "{output}: {about}, {arch} of width {width}, {params:.2} M parameters, from {}; read back: {measured}\n{}\n",
        encoder.source.display(),
        export::load_in_python(&encoder, format, &graph, &args.output)
    );
    // A reader that went away is no failure of the export.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(0)
}

struct ResultLine {
    arch: String,
    width: f64,
    params: f64,
}

impl ResultLine {
    fn of(encoder: &Encoder) -> Self {
        let arch = format!("{:?}", encoder.config.arch).to_lowercase();
        Self { arch, width: encoder.config.width, params: encoder.params.count() as f64 / 1e6 }
    }
}

/// Options that a format has no place for.
fn check_options(args: &ExportArgs) -> Result<()> {
    if args.network == Which::Target && args.config.is_none() {
        bail!(
            "--network target: its BatchNorm statistics have to be recomputed on images; add --config FILE that names \
             them, such as the run's own config.yaml"
        );
    }
    match args.format {
        Format::Safetensors if args.normalize => bail!(
            "--normalize: safetensors holds weights, no graph to put it in (the metadata names mean and std); leave it \
             out, or use --format onnx or torchscript"
        ),
        Format::Safetensors | Format::Torchscript if args.fold_batchnorm => {
            bail!(
                "--fold-batchnorm: is for --format onnx (torchscript folds always, safetensors keeps torchvision's names)"
            )
        }
        Format::Torchscript if args.image_size.is_some() => {
            bail!("--image-size: is for --format onnx and safetensors; a torchscript module takes any size")
        }
        Format::Safetensors if args.image_size == Some(ImageSize::Dynamic) => {
            bail!("--image-size dynamic: is for --format onnx; weights take any size")
        }
        _ => Ok(()),
    }
}

fn same_file(output: &Path, source: &Path) -> bool {
    let Ok(output) = output.canonicalize() else { return false };
    source.canonicalize().is_ok_and(|source| output == source || output.parent() == Some(&source))
}

/// Gives the target encoder the BatchNorm statistics of its own activations on the config's training images: in
/// training it normalised every batch by that batch, and its running statistics lag behind its moving weights.
fn recompute(encoder: &mut Encoder, config: &Config, images: usize) -> Result<()> {
    let device = backend::choose_device(config.train.device)?;
    let dataset: Arc<dyn Dataset> = data::open_train(&config.data).context("data.path")?;
    let count = images.min(dataset.len());
    // Spread over the whole set, which may be sorted by class.
    let indices = (0..count).map(|i| (i * dataset.len() / count) as u32).collect();
    let (workers, prefetch) = (config.data.workers, config.data.prefetch_batches);
    let workers = if workers == 0 { backend::default_threads(device).1 } else { workers };
    let options = LoaderOptions { workers, prefetch, ..LoaderOptions::default() };
    let bad = BadImages::new(config.data.on_bad_image);
    let loader = EvalLoader::new(dataset, encoder.augment.clone(), indices, BATCH, bad, options)?;
    log::info!("recomputing BatchNorm's statistics on {count} images on {}", backend::describe_device(device));
    let here = EncoderOptions { which: encoder.which, device, channels_last: true, ..EncoderOptions::default() };
    let mut there = Encoder::open(&encoder.source, &here)?;
    let (size, mean, std) = (encoder.augment.size as i64, encoder.augment.mean, encoder.augment.std);
    let mut done = 0;
    let batches = loader.map(|batch| {
        let batch = batch?;
        done += batch.labels.len();
        log::debug!("{done} of {count} images");
        backend::normalised(&batch.pixels, [batch.labels.len() as i64, size, size, 3], mean, std, device, false)
    });
    encoder.batches_tracked = there.recompute_batchnorm(batches)?;
    let _no_grad = tch::no_grad_guard();
    for (to, from) in encoder.params.buffers.iter().zip(&there.params.buffers) {
        to.tensor.shallow_clone().f_copy_(&from.tensor)?;
    }
    Ok(())
}
