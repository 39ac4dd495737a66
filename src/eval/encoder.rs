//! A trained encoder, loaded for evaluation or export: from a run, from one of its checkpoints, or from a file, whoever
//! trained it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::branch::Branch;
use super::metadata;
use crate::augment::AugmentConfig;
use crate::byol::Byol;
use crate::checkpoint::{self, Manifest};
use crate::data::values::ValueRange;
use crate::model::{self, BATCH_NORM_MOMENTUM, EncoderConfig, Family, ModelConfig, Named, Params, Represent, resample};
use crate::section::Shown;
use crate::weights::{Choice, Place, WeightFile, check_values, find, locate};
use native::Autocast;

/// Options for loading an encoder.
#[derive(Clone, Debug)]
pub struct EncoderOptions {
    /// Which of a run's encoders.
    pub which: Branch,
    /// Device.
    pub device: Device,
    /// Forward passes in bf16 autocast.
    pub bf16: bool,
    /// Channels-last convolution weights (`torch.channels_last`).
    pub channels_last: bool,
    /// Size, mean and std of its inputs, instead of those of the run or the file.
    pub augment: Option<AugmentConfig>,
    /// Which of several encoders in a file, see [`Choice::prefix`].
    pub prefix: Option<String>,
    /// What a file holds, if its shapes and metadata do not tell, see [`Choice::known`].
    pub known: Option<EncoderConfig>,
}

impl Default for EncoderOptions {
    /// The online encoder, in fp32 on the CPU.
    fn default() -> Self {
        let (which, device) = (Branch::Online, Device::Cpu);
        Self { which, device, bf16: false, channels_last: false, augment: None, prefix: None, known: None }
    }
}

/// A frozen encoder, with the preprocessing of its inputs.
#[derive(Debug)]
pub struct Encoder {
    /// The network.
    pub net: model::Encoder,
    /// Its tensors, under torchvision's names.
    pub params: Params,
    /// Its architecture.
    pub config: EncoderConfig,
    /// Preprocessing of images: only `size`, `mean`, `std` and `eval_resize` are used.
    pub augment: AugmentConfig,
    /// Which values became 0 and 255 in its images; `Auto` if that is not known.
    pub value_range: ValueRange,
    /// The run's checkpoint manifest, with its whole config; `None` for a foreign file.
    pub run: Option<Manifest>,
    /// Which of the run's encoders.
    pub which: Branch,
    /// Batches that BatchNorm's running statistics were computed from.
    pub batches_tracked: i64,
    /// Device.
    pub device: Device,
    /// Whether it computes in bf16 autocast.
    pub bf16: bool,
    /// Whether its convolution weights, and so its images, have their channels innermost.
    pub channels_last: bool,
    /// The checkpoint folder or the file.
    pub source: PathBuf,
}

impl Encoder {
    /// Loads the encoder at `path`: a run's folder (its latest valid checkpoint; damaged ones are skipped with
    /// a warning), a checkpoint's folder, the `model.safetensors` in one, or a safetensors or PyTorch file with the names
    /// of another trainer, see [`find`].
    /// # Errors
    /// No such path; damaged; no encoder, or several; not one of this program, with all differences.
    pub fn open(path: &Path, options: &EncoderOptions) -> Result<Self> {
        let encoder = Self::find(path, options)?;
        encoder.check_inputs()?;
        Ok(encoder)
    }

    fn find(path: &Path, options: &EncoderOptions) -> Result<Self> {
        let place = locate(path)?;
        if let (Some(prefix), Place::Run(_) | Place::Checkpoint(_)) = (&options.prefix, &place) {
            bail!("--prefix {prefix}: found a run, expected a file with several encoders; remove --prefix");
        }
        match place {
            Place::Run(checkpoints) => Self::newest(path, &checkpoints, options),
            Place::Checkpoint(folder) => Self::of_checkpoint(&folder, options),
            Place::File(file) => Self::of_file(&file, options),
        }
    }

    fn newest(path: &Path, all: &[PathBuf], options: &EncoderOptions) -> Result<Self> {
        for folder in all {
            match Self::of_checkpoint(folder, options) {
                Ok(encoder) => return Ok(encoder),
                Err(error) => log::warn!("skipping a checkpoint: {error:#}"),
            }
        }
        bail!("{}: none of its {} checkpoints can be used", path.display(), all.len())
    }

    fn of_checkpoint(folder: &Path, options: &EncoderOptions) -> Result<Self> {
        let encoder = Self::of_manifest(checkpoint::read_manifest(folder)?, folder, options)?;
        let prefix = format!("{}.encoder.", options.which.name());
        checkpoint::load_part(folder, &prefix, &encoder.params.state_dict(0))?;
        encoder.finished(options)
    }

    /// The online encoder of a run in training, copied to the CPU; `checkpoint` is where the same weights are saved.
    /// # Errors
    /// The networks are not those of the manifest's config.
    pub fn of_online(byol: &Byol, manifest: Manifest, checkpoint: &Path) -> Result<Self> {
        let manifest = Manifest { batches_tracked: byol.batches_tracked(), ..manifest };
        let encoder = Self::of_manifest(manifest, checkpoint, &EncoderOptions::default())?;
        let _no_grad = tch::no_grad_guard();
        let (own, trained) = (&encoder.params, &byol.online.params);
        for (own, trained) in [(&own.parameters, &trained.parameters), (&own.buffers, &trained.buffers)] {
            let trained = trained.iter().filter(|named| named.name.starts_with("encoder."));
            for (to, from) in own.iter().zip(trained) {
                ensure!(from.name.ends_with(&to.name), "found {}, expected encoder.{}", from.name, to.name);
                to.tensor.shallow_clone().f_copy_(&from.tensor)?;
            }
        }
        Ok(encoder)
    }

    /// The encoder of a run's config, its tensors zeros.
    fn of_manifest(manifest: Manifest, folder: &Path, options: &EncoderOptions) -> Result<Self> {
        let section =
            |name: &str| (manifest.config[name].clone(), format!("{}: its config's {name}", folder.display()));
        let (model, place) = section("model");
        let mut config = serde_json::from_value::<ModelConfig>(model).context(place)?.encoder();
        config.channels = manifest.config["data"]["channels"].as_i64().unwrap_or(config.channels);
        let value_range = manifest.config["data"]["value_range"].clone();
        let (augment, place) = section("augment");
        let augment = serde_json::from_value(augment).context(place)?;
        let batches_tracked = manifest.batches_tracked[options.which as usize];
        let mut encoder = Self::empty(config, augment, Some(manifest), batches_tracked, folder, options);
        encoder.value_range = serde_json::from_value(value_range).unwrap_or(ValueRange::Full);
        Ok(encoder)
    }

    fn of_file(path: &Path, options: &EncoderOptions) -> Result<Self> {
        let place = || path.display().to_string();
        let file = WeightFile::read(path)?;
        let tensors = file.tensors()?;
        let metadata = file.metadata()?;
        let known = metadata.as_ref().map(metadata::encoder).transpose().with_context(place)?.flatten();
        let known = known.or(options.known);
        let (prefix, network) = (options.prefix.as_deref(), options.which.name());
        let choice = Choice { prefix, option: "--prefix", network, known };
        let found = find(&tensors, &choice).with_context(place)?;
        let said = metadata.as_ref().map(metadata::inputs).transpose().with_context(place)?.flatten();
        let augment = match (&options.augment, said) {
            (None, None) => {
                log::info!(
                    "{}: does not say how inputs are prepared: unless --config or --set augment.* do, ImageNet's mean \
                     and std and 224 px are assumed",
                    path.display()
                );
                AugmentConfig::default()
            }
            (chosen, said) => chosen.clone().or(said).unwrap_or_default(),
        };
        let mut encoder = Self::empty(found.config, augment, None, found.batches_tracked, path, options);
        encoder.value_range =
            metadata.as_ref().map(metadata::value_range).transpose().with_context(place)?.unwrap_or_default();
        found.load_into(&encoder.params.state_dict(0), found.config.image_size).with_context(place)?;
        if known.is_none() && found.config.arch.family() == Family::Vit {
            log::info!(
                "{}: does not say how many heads its ViT has: unless a section model of --config does, it is {}",
                path.display(),
                found.config
            );
        }
        if let Some(ignored) = found.ignored(&[]) {
            let where_ = if found.prefix.is_empty() { "the encoder".into() } else { format!("{}*", found.prefix) };
            log::info!("{where_}: {} tensors loaded, {ignored}", found.count());
        }
        if let Some(types) = found.other_types() {
            log::info!("{types} tensors are converted to F32");
        }
        encoder.finished(options)
    }

    fn empty(
        config: EncoderConfig,
        augment: AugmentConfig,
        run: Option<Manifest>,
        batches_tracked: i64,
        source: &Path,
        options: &EncoderOptions,
    ) -> Self {
        let mut params = Params::new(options.device, None);
        let net = model::Encoder::new(params.root(), &config);
        let (which, device, bf16) = (options.which, options.device, options.bf16);
        let (augment, source) = (options.augment.clone().unwrap_or(augment), source.to_path_buf());
        let channels_last = options.channels_last;
        let value_range = ValueRange::Auto;
        Self {
            net,
            params,
            config,
            augment,
            value_range,
            run,
            which,
            batches_tracked,
            device,
            bf16,
            channels_last,
            source,
        }
    }

    fn finished(mut self, options: &EncoderOptions) -> Result<Self> {
        check_values(&self.params).with_context(|| self.source.display().to_string())?;
        if options.channels_last {
            self.params.to_channels_last();
        }
        Ok(self)
    }

    /// Whether it takes images of the size in [`Self::augment`].
    /// # Errors
    /// The size found and expected.
    pub fn check_inputs(&self) -> Result<()> {
        let size = self.augment.size;
        let checked = self.config.check_size(size.shape());
        checked.map_err(|expected| {
            anyhow!("augment.size: found {}, expected {expected} for {}", size.shown(), self.config)
        })
    }

    /// The manifest of the run or checkpoint at `path`, the latest one that can be read, without its weights. `None`
    /// for a foreign file, and if [`Self::open`] will report what is wrong.
    pub fn manifest(path: &Path) -> Option<Manifest> {
        let folders = match locate(path).ok()? {
            Place::Run(checkpoints) => checkpoints,
            Place::Checkpoint(folder) => vec![folder],
            Place::File(_) => Vec::new(),
        };
        folders.iter().find_map(|folder| checkpoint::read_manifest(folder).ok())
    }

    /// SHA-256 of all its tensors.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        for Named { name, tensor } in self.params.parameters.iter().chain(&self.params.buffers) {
            let values = tensor.detach().f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
            let mut bytes = vec![0; values.numel() * 4];
            values.f_copy_data_u8(&mut bytes, values.numel())?;
            hasher.update(name);
            hasher.update(bytes);
        }
        Ok(crate::files::hex(&hasher.finalize()))
    }

    /// The same architecture as it is before training: fresh weights, a function of `seed`.
    pub fn random(&self, seed: u64) -> Self {
        let mut params = Params::new(self.device, Some(seed));
        let net = model::Encoder::new(params.root(), &self.config);
        if self.channels_last {
            params.to_channels_last();
        }
        let (augment, value_range, run) = (self.augment.clone(), self.value_range.clone(), self.run.clone());
        Self { net, params, augment, value_range, run, batches_tracked: 0, source: self.source.clone(), ..*self }
    }

    /// The same encoder, its position embeddings, if it is a ViT, for images of this height and width.
    /// # Errors
    /// Out of memory.
    pub fn resized(&self, image_size: [i64; 2]) -> Result<Self> {
        let config = EncoderConfig { image_size, ..self.config };
        let options = EncoderOptions { which: self.which, device: self.device, ..EncoderOptions::default() };
        let (augment, run) = (self.augment.clone(), self.run.clone());
        let mut encoder = Self::empty(config, augment, run, self.batches_tracked, &self.source, &options);
        encoder.value_range = self.value_range.clone();
        let _no_grad = tch::no_grad_guard();
        let (own, all) = (&encoder.params, self.params.parameters.iter().chain(&self.params.buffers));
        let positions = self.config.positions().zip(config.positions());
        for (to, from) in own.parameters.iter().chain(&own.buffers).zip(all) {
            let from = match &positions {
                Some(((name, grid), (_, wanted))) if *name == from.name => resample(&from.tensor, *grid, *wanted),
                _ => from.tensor.shallow_clone(),
            };
            to.tensor.shallow_clone().f_copy_(&from)?;
        }
        Ok(encoder)
    }

    /// Replaces BatchNorm's running statistics by the average over `batches` of normalized images, every batch with
    /// the same weight: `torch.optim.swa_utils.update_bn`. Returns the number of batches.
    pub fn recompute_batchnorm(&mut self, batches: impl Iterator<Item = Result<Tensor>>) -> Result<i64> {
        let _no_grad = tch::no_grad_guard();
        let buffers = &self.params.buffers;
        let mut sums: Vec<Tensor> =
            buffers.iter().map(|b| Tensor::zeros(b.tensor.size(), (Kind::Double, self.device))).collect();
        let mut count = 0;
        for images in batches {
            let images = images?;
            if images.size()[0] < 2 {
                continue; // one image has no variance in the last layers
            }
            // Starting from 0, a forward pass leaves exactly momentum times the batch's statistics.
            buffers.iter().for_each(|b| drop(b.tensor.shallow_clone().zero_()));
            let _autocast = Autocast::bf16(self.device, self.bf16)?;
            drop(self.net.forward(&images, true));
            for (sum, buffer) in sums.iter_mut().zip(buffers) {
                let _ = sum.f_add_(&(buffer.tensor.to_kind(Kind::Double) / BATCH_NORM_MOMENTUM))?;
            }
            count += 1;
        }
        if count == 0 {
            bail!("recomputing BatchNorm's statistics: found no batch of two images or more");
        }
        for (sum, buffer) in sums.iter().zip(buffers) {
            buffer.tensor.shallow_clone().f_copy_(&(sum / count as f64))?;
        }
        self.batches_tracked = count;
        Ok(count)
    }
}

impl Represent for Encoder {
    fn represent(&self, images: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let _autocast = Autocast::bf16(self.device, self.bf16)?;
        Ok(self.net.forward(images, false).f_to_kind(Kind::Float)?)
    }

    fn device(&self) -> Device {
        self.device
    }

    fn feature_dim(&self) -> i64 {
        self.net.feature_dim
    }
}
