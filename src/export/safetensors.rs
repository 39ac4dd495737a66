//! An encoder's weights under torchvision's names.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, bail};

use super::{ExportOptions, Exporter, ImageSize, Reader, metadata};
use crate::checkpoint;
use crate::eval::{Encoder, EncoderOptions, Represent};
use crate::model::{Arch, EncoderConfig, Family, Norm, Pool, Stem};

pub(super) struct Safetensors;

impl Exporter for Safetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn help(&self) -> &'static str {
        "Weights under torchvision's names, for load_state_dict"
    }

    fn describe(&self, _: &Encoder) -> String {
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
        let (missing, lines) = model_in_python(&encoder.config);
        format!(
            "import torchvision; from safetensors.torch import load_file\n\
             {lines}\n\
             print(model.load_state_dict(load_file(\"{file}\"), strict=False))  # {missing} missing{}",
            after_loading(&encoder.config)
        )
    }
}

/// Whether `torchvision.models` has a function for it, up to the stem.
fn is_torchvisions(config: &EncoderConfig) -> bool {
    config.width == 1.0 && config.arch != Arch::Resnet200
}

/// What the file lacks, and Python code that builds `model`, torchvision's or timm's with the same layers.
fn model_in_python(config: &EncoderConfig) -> (&'static str, String) {
    match config.arch.family() {
        Family::Resnet if is_torchvisions(config) => ("only fc.weight and fc.bias are", resnet(config)),
        Family::Resnet => ("nothing is", resnet(config)),
        Family::Convnext => ("only classifier.2.weight and classifier.2.bias are", convnext(config)),
        Family::Vit if config.arch == Arch::VitBase => ("only heads.head.weight and heads.head.bias are", vit(config)),
        Family::Vit => ("nothing is", vit(config)),
    }
}

/// More Python code: standardized weights are what the convolutions compute with.
fn after_loading(config: &EncoderConfig) -> &'static str {
    if config.norm == Norm::Batch || config.arch.family() != Family::Resnet {
        return "";
    }
    "\nfor conv in model.modules():\n    \
     if isinstance(conv, torch.nn.Conv2d):  # weight standardization\n        \
     var, mean = torch.var_mean(conv.weight.data, (1, 2, 3), correction=0, keepdim=True)\n        \
     conv.weight.data = (conv.weight.data - mean) / (var + 1e-6) ** 0.5"
}

fn convnext(config: &EncoderConfig) -> String {
    let EncoderConfig { arch, patch_size: patch, .. } = *config;
    if config.width == 1.0 && patch == arch.patch_size() {
        return format!("model = torchvision.models.{arch}()");
    }
    let stages = config.arch.blocks();
    let base = config.layers()[0].tensors()[0].1[0];
    let sizes: Vec<String> = (0..stages.len())
        .map(|stage| {
            let next = if stage + 1 < stages.len() { (base << (stage + 1)).to_string() } else { "None".into() };
            format!("CNBlockConfig({}, {next}, {})", base << stage, stages[stage])
        })
        .collect();
    format!(
        "import torch; from torchvision.models.convnext import CNBlockConfig, ConvNeXt\n\
         model = ConvNeXt([{}])\n\
         model.features[0][0] = torch.nn.Conv2d(3, {base}, {patch}, {patch})",
        sizes.join(", ")
    )
}

fn vit(config: &EncoderConfig) -> String {
    let EncoderConfig { arch, patch_size: patch, image_size: [height, width], .. } = *config;
    let channels = config.layers()[0].tensors()[0].1[0];
    let mean = config.pool == Pool::Mean;
    if arch == Arch::VitBase {
        let pool = if mean { "  # the representation is the mean of its patches after encoder.ln" } else { "" };
        return format!(
            "model = torchvision.models.VisionTransformer({height}, {patch}, 12, 12, {channels}, {}){pool}",
            4 * channels
        );
    }
    let pool = if mean { ", global_pool=\"avg\", fc_norm=False" } else { "" };
    format!(
        "import timm\n\
         model = timm.create_model(\"{arch}_patch16_224\", num_classes=0, img_size=({height}, {width}), \
         patch_size={patch}, embed_dim={channels}{pool})"
    )
}

fn resnet(config: &EncoderConfig) -> String {
    let arch = config.arch;
    let conv = |channels: i64| format!("model.conv1 = torch.nn.Conv2d(3, {channels}, 3, padding=1, bias=False)");
    let identity = "model.maxpool = torch.nn.Identity()";
    let (norm, norm_layer) = match config.norm {
        Norm::Batch => ("torch.nn.BatchNorm2d(", ""),
        Norm::GroupWs => ("torch.nn.GroupNorm(16, ", "norm_layer=lambda channels: torch.nn.GroupNorm(16, channels)"),
    };
    match (is_torchvisions(config), config.stem) {
        (true, Stem::Imagenet) if norm_layer.is_empty() => format!("model = torchvision.models.{arch}()"),
        (true, Stem::Imagenet) => format!("import torch; model = torchvision.models.{arch}({norm_layer})"),
        (true, Stem::Cifar) => {
            format!("import torch; model = torchvision.models.{arch}({norm_layer})\n{}; {identity}", conv(64))
        }
        (false, stem) => {
            let base = (64.0 * config.width).round() as i64;
            let block = if arch.bottleneck() { "Bottleneck" } else { "BasicBlock" };
            let inner = match arch.groups() {
                (1, 64) => String::new(),
                (groups, per_group) => format!(", groups={groups}, width_per_group={per_group}"),
            };
            let norm_layer = if norm_layer.is_empty() { String::new() } else { format!(", {norm_layer}") };
            let mut lines = format!(
                "import torch; from torchvision.models.resnet import ResNet, {block}\n\
                 model = ResNet({block}, [1, 1, 1, 1]{inner}{norm_layer})\n\
                 model.conv1, model.bn1 = torch.nn.Conv2d(3, {base}, 7, 2, 3, bias=False), {norm}{base})\n\
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
