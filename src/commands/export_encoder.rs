//! `byol export-encoder`: a trained encoder becomes a file that other software loads.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::augment::PerChannel;
use crate::cli::ExportArgs;
use crate::config::Config;
use crate::data;
use crate::data::loader::{BadImages, EvalLoader};
use crate::eval::{Branch, Encoder, EncoderOptions};
use crate::export::{self, ExportOptions};
use crate::files;
use crate::logging::progress::Bar;
use crate::run::machine::Machine;
use native::{self, ImageLayout, Normalizer};

/// Batch size for recomputing BatchNorm statistics.
const BATCH: usize = 256;

/// Runs the command; the value is the process's exit code.
pub fn run(args: &ExportArgs) -> Result<u8> {
    files::end_clean_on_signals()?;
    let format = args.format;
    let graph = ExportOptions {
        normalize: (args.normalize || args.no_normalize).then_some(args.normalize),
        fold_batchnorm: args.fold_batchnorm,
        image_size: args.image_size,
    };
    check_network(args)?;
    format.check_options(&graph)?;
    export::check_output(format, &args.output, args.force)?;
    // The export is made and verified on the CPU in fp32, whatever the run was trained on.
    native::set_threads(native::default_threads(tch::Device::Cpu).0);
    let options = EncoderOptions { which: args.network, prefix: args.prefix.clone(), ..EncoderOptions::default() };
    let mut encoder = Encoder::open(&args.checkpoint, &options)?;
    if is_part_of(&args.output, &encoder.source) {
        bail!("--output {}: is the input of the export; choose another name", args.output.display());
    }
    format.check_encoder(&encoder.config)?;
    format.check_size(encoder.params.count())?;
    let config = config(args, &encoder)?;
    encoder.augment = config.augment.clone();
    encoder.check_inputs()?;
    // Without BatchNorm there is nothing to recompute.
    if args.network == Branch::Target && !encoder.params.buffers.is_empty() {
        if args.config.is_none() {
            bail!(
                "--network target: its BatchNorm statistics have to be recomputed on images; add --config FILE that \
                 names them in its section data, such as the run's own config.yaml"
            );
        }
        recompute(&mut encoder, &config, args.batchnorm_images as usize)?;
    }

    export::write(&encoder, format, &graph, &args.output)?;
    let output = args.output.display();
    let difference = export::verify(&encoder, format, &graph, &args.output);
    let measured = difference.and_then(|d| d.check()).with_context(|| output.to_string())?;
    let text = format!(
        "{output}: {}, {} of width {}, {:.2} M parameters, from {}; read back: {measured}\n{}\n",
        format.describe(&encoder),
        encoder.config.arch,
        encoder.config.width,
        encoder.params.count() as f64 / 1e6,
        encoder.source.display(),
        export::load_in_python(&encoder, format, &graph, &args.output)
    );
    // A closed stdout is not a failure of the export.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(0)
}

/// The run's config, or the encoder's own preprocessing, with what --config and --set change.
fn config(args: &ExportArgs, encoder: &Encoder) -> Result<Config> {
    let config = match &encoder.run {
        Some(run) => Config::of_run(&run.config)?,
        None => Config { augment: encoder.augment.clone(), ..Config::default() },
    };
    let mut config = Config::load_over(config, args.config.as_deref(), &args.set)?;
    if let Some(run) = &encoder.run {
        config.adopt(&run.config)?;
    }
    check_channels(encoder, &config)?;
    let (ours, theirs) = (&config.augment, &encoder.augment);
    if (&theirs.mean, &theirs.std) != (&ours.mean, &ours.std) {
        let [mean, std, own_mean, own_std] = [&ours.mean, &ours.std, &theirs.mean, &theirs.std].map(PerChannel::values);
        log::warn!("mean {mean:?} and std {std:?} instead of {own_mean:?} and {own_std:?}, as --config or --set say");
    }
    Ok(config)
}

/// Fails unless mean and std have a number for each of the encoder's channels.
fn check_channels(encoder: &Encoder, config: &Config) -> Result<()> {
    let (channels, augment) = (encoder.config.channels as usize, &config.augment);
    for (key, values) in [("mean", augment.mean.values()), ("std", augment.std.values())] {
        let count = values.len();
        ensure!(
            count == channels,
            "augment.{key}: found {count} numbers, expected {channels}, one for each channel of the encoder's images; \
             add --set augment.{key}=[...]"
        );
    }
    Ok(())
}

/// What `--network target` needs.
fn check_network(args: &ExportArgs) -> Result<()> {
    if args.network == Branch::Target && args.checkpoint.is_file() && !args.checkpoint.ends_with("model.safetensors") {
        bail!("--network target: found a file, expected a run's or a checkpoint's folder; remove the option");
    }
    Ok(())
}

/// Whether `output` is the file `source`, or inside the checkpoint `source`.
fn is_part_of(output: &Path, source: &Path) -> bool {
    let Ok(output) = output.canonicalize() else { return false };
    source.canonicalize().is_ok_and(|source| output.starts_with(source))
}

/// Gives the target encoder the BatchNorm statistics of its own activations on the config's training images: in
/// training it normalizes every batch by that batch, and its running statistics lag behind its moving weights.
fn recompute(encoder: &mut Encoder, config: &Config, images: usize) -> Result<()> {
    let machine = Machine::set_up(config)?;
    let dataset = data::open_train(&config.data).context("data.path")?;
    let indices = data::subset::spread(dataset.len(), images);
    let count = indices.len();
    let bad = BadImages::new(config.data.on_bad_image);
    let loader = EvalLoader::new(dataset, config.augment.clone(), indices, BATCH, bad, machine.loader)?;
    log::info!("BatchNorm's statistics from {count} images on {}", native::describe_device(machine.device));
    let (device, channels_last) = (machine.device, config.train.channels_last);
    let options = EncoderOptions { which: encoder.which, device, channels_last, ..EncoderOptions::default() };
    let mut there = Encoder::open(&encoder.source, &options)?;
    let (augment, [height, width]) = (&config.augment, config.augment.size.shape());
    let normalizer = Normalizer::new(
        augment.mean.values(),
        augment.std.values(),
        device,
        ImageLayout { channels_last, bf16: false },
    )?;
    let channels = encoder.config.channels;
    let (bar, mut done) = (Bar::new("BatchNorm's statistics", count), 0);
    let batches = loader.map(|batch| {
        let batch = batch?;
        bar.set(done);
        done += batch.labels.len();
        let shape = [batch.labels.len() as i64, height, width, channels];
        normalizer.bytes(&batch.pixels, shape)
    });
    encoder.batches_tracked = there.recompute_batchnorm(batches)?;
    let _no_grad = tch::no_grad_guard();
    for (to, from) in encoder.params.buffers.iter().zip(&there.params.buffers) {
        to.tensor.shallow_clone().f_copy_(&from.tensor)?;
    }
    Ok(())
}
