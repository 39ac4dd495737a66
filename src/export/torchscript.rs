//! An encoder as a TorchScript module: traced, so that its weights are constants of the graph, then frozen.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, getrlimit};
use tch::{CModule, Kind, Tensor};

use super::{Contents, ExportOptions, Exporter, ImageSize, Reader, shapes_in_python};
use crate::augment::PerChannel;
use crate::eval::Encoder;
use crate::model::Family;

/// More than the graph of the deepest encoder takes, besides its weights.
const GRAPH_BYTES: u64 = 4 << 20;

pub(super) struct TorchScript;

impl Exporter for TorchScript {
    fn name(&self) -> &'static str {
        "torchscript"
    }

    fn help(&self) -> &'static str {
        "A traced and frozen module, for torch.jit.load"
    }

    fn describe(&self, encoder: &Encoder) -> String {
        match self.image_size(encoder, &ExportOptions::default()) {
            ImageSize::Fixed(_) => "torchscript, batch size free".into(),
            ImageSize::Dynamic => "torchscript, batch and image size free".into(),
        }
    }

    fn check_options(&self, options: &ExportOptions) -> Result<()> {
        if options.fold_batchnorm {
            bail!("--fold-batchnorm: is for --format onnx; torchscript always folds");
        }
        if options.image_size.is_some() {
            bail!("--image-size: is for the other formats; a torchscript module takes any size");
        }
        Ok(())
    }

    /// The trace holds no shape, except a ViT's position embeddings.
    fn image_size(&self, encoder: &Encoder, _: &ExportOptions) -> ImageSize {
        match encoder.config.arch.family() {
            Family::Vit => ImageSize::Fixed(encoder.augment.size),
            Family::Resnet | Family::Convnext => ImageSize::Dynamic,
        }
    }

    fn serialize(&self, encoder: &Encoder, options: &ExportOptions) -> Result<Contents> {
        // libtorch writes to paths only, and aborts the process if the disk is full: it gets a memfd, which is
        // subject to nothing but the limit on file sizes.
        let tensors = encoder.params.parameters.iter().chain(&encoder.params.buffers);
        let needed = tensors.map(|named| named.tensor.numel() as u64 * 4).sum::<u64>() + GRAPH_BYTES;
        let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
        ensure!(
            needed <= limit,
            "the module needs up to {:.1} MB, files may have {:.1} MB here; raise the limit (ulimit -f) or use another \
             format",
            needed as f64 / 1e6,
            limit as f64 / 1e6
        );
        let memory = memfd_create("byol-torchscript", MemfdFlags::CLOEXEC).context("cannot make a file in memory")?;
        let path = &PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
        let _no_grad = tch::no_grad_guard();
        let (mean, std) = (&encoder.augment.mean, &encoder.augment.std);
        let of = |values: &PerChannel| Tensor::from_slice(values.values()).to_kind(Kind::Float).reshape([1, -1, 1, 1]);
        let [mean, std] = [mean, std].map(of);
        let [height, width] = match self.image_size(encoder, options) {
            ImageSize::Fixed(size) => size.shape(),
            ImageSize::Dynamic => [64.max(8 * encoder.config.patch_size); 2],
        };
        let example = Tensor::f_zeros([2, encoder.config.channels, height, width], (Kind::Float, encoder.device))?;
        let normalizes = self.normalizes(options);
        let mut forward = |inputs: &[Tensor]| {
            let x = if normalizes { (&inputs[0] - &mean) / &std } else { inputs[0].shallow_clone() };
            vec![encoder.net.forward(&x, false)]
        };
        CModule::create_by_tracing("Encoder", "forward", &[example], &mut forward)?.save(path)?;
        native::freeze_torchscript(path)?;
        fs::read(path).map(Contents::File).context("reading the module back")
    }

    fn open(&self, _: &Encoder, path: &Path) -> Result<Reader> {
        let module = CModule::load(path)?;
        Ok(Box::new(move |images| Ok(module.forward_ts(&[images])?)))
    }

    fn load_in_python(&self, encoder: &Encoder, options: &ExportOptions, file: &str) -> String {
        format!(
            "import torch\n\
             encoder = torch.jit.load(\"{file}\", map_location=\"cpu\")  # or \"cuda\": .to() does not move its constants\n\
             features = encoder(images)  {}",
            shapes_in_python(encoder, self.image_size(encoder, options), self.normalizes(options))
        )
    }
}
