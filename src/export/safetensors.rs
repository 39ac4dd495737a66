//! An encoder's weights under torchvision's names.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, bail};

use super::{ExportOptions, Exporter, ImageSize, Reader, metadata};
use crate::checkpoint;
use crate::eval::{Encoder, EncoderOptions, Represent};
use crate::model::{Arch, EncoderConfig, Stem};

pub(super) struct Safetensors;

impl Exporter for Safetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn help(&self) -> &'static str {
        "Weights under torchvision's names, for load_state_dict"
    }

    fn describe(&self) -> String {
        self.name().into()
    }

    fn check_options(&self, options: &ExportOptions) -> Result<()> {
        if options.normalize == Some(true) {
            bail!(
                "--normalize: safetensors holds weights, no graph to put it in (the metadata has mean and std); leave \
                 it out, or use --format onnx or torchscript"
            );
        }
        if options.fold_batchnorm {
            bail!("--fold-batchnorm: is for --format onnx; safetensors keeps torchvision's names");
        }
        if options.image_size == Some(ImageSize::Dynamic) {
            bail!("--image-size dynamic: is for --format onnx; safetensors names the size for its readers");
        }
        Ok(())
    }

    fn normalizes(&self, _: &ExportOptions) -> bool {
        false
    }

    /// Everything in torchvision's `state_dict` except the classifier, with its types.
    fn serialize(&self, encoder: &Encoder, options: &ExportOptions) -> Result<Vec<u8>> {
        let metadata = metadata(encoder, self.image_size(encoder, options), false);
        let metadata: HashMap<String, String> = metadata.into_iter().chain([("format".into(), "pt".into())]).collect();
        checkpoint::serialize(&encoder.params.state_dict(encoder.batches_tracked), metadata)
    }

    fn open(&self, encoder: &Encoder, path: &Path) -> Result<Reader> {
        let options = EncoderOptions { augment: Some(encoder.augment.clone()), ..EncoderOptions::default() };
        let written = Encoder::open(path, &options)?;
        Ok(Box::new(move |images| written.represent(images)))
    }

    fn load_in_python(&self, encoder: &Encoder, _: &ExportOptions, file: &str) -> String {
        let missing = if is_torchvisions(&encoder.config) { "only fc.weight and fc.bias are" } else { "nothing is" };
        format!(
            "import torchvision; from safetensors.torch import load_file\n\
             {}\n\
             print(model.load_state_dict(load_file(\"{file}\"), strict=False))  # {missing} missing",
            model_in_python(&encoder.config)
        )
    }
}

/// Whether `torchvision.models` has a function for it, up to the stem.
fn is_torchvisions(config: &EncoderConfig) -> bool {
    config.width == 1.0 && config.arch != Arch::Resnet200
}

/// Python code that builds `model`, the torchvision ResNet with the same layers.
fn model_in_python(config: &EncoderConfig) -> String {
    let (arch, input) = (config.arch, config.channels);
    let conv = |channels: i64| format!("model.conv1 = torch.nn.Conv2d({input}, {channels}, 3, padding=1, bias=False)");
    let identity = "model.maxpool = torch.nn.Identity()";
    match (is_torchvisions(config), config.stem) {
        (true, Stem::Imagenet) if input == 3 => format!("model = torchvision.models.{arch}()"),
        (true, Stem::Imagenet) => format!(
            "import torch; model = torchvision.models.{arch}()\nmodel.conv1 = torch.nn.Conv2d({input}, 64, 7, 2, 3, bias=False)"
        ),
        (true, Stem::Cifar) => {
            format!("import torch; model = torchvision.models.{arch}()\n{}; {identity}", conv(64))
        }
        (false, stem) => {
            let base = (64.0 * config.width).round() as i64;
            let block = if arch.bottleneck() { "Bottleneck" } else { "BasicBlock" };
            let inner = match arch.groups() {
                (1, 64) => String::new(),
                (groups, per_group) => format!(", groups={groups}, width_per_group={per_group}"),
            };
            let mut lines = format!(
                "import torch; from torchvision.models.resnet import ResNet, {block}\n\
                 model = ResNet({block}, [1, 1, 1, 1]{inner})\n\
                 model.conv1, model.bn1 = torch.nn.Conv2d({input}, {base}, 7, 2, 3, bias=False), torch.nn.BatchNorm2d({base})\n\
                 model.inplanes = {base}\n\
                 for i, blocks in enumerate({:?}):\n    \
                 setattr(model, f\"layer{{i + 1}}\", model._make_layer({block}, {base} << i, blocks, 1 if i == 0 else 2))",
                arch.blocks()
            );
            if stem == Stem::Cifar {
                lines += &format!("\n{}; {identity}", conv(base));
            }
            lines += "\nmodel.fc = torch.nn.Identity()";
            lines
        }
    }
}
