//! What the formats of weights have in common: torchvision's names, which options they refuse, and the lines of Python
//! that build the network.

use anyhow::{Result, bail};

use super::{ExportOptions, ImageSize};
use crate::model::{Arch, EncoderConfig, Family, Norm, Pool, Stem};

/// Refuses options for graphs; `format` is the name of a format of weights.
pub(super) fn check_options(format: &str, options: &ExportOptions) -> Result<()> {
    if options.normalize == Some(true) {
        bail!(
            "--normalize: {format} holds weights, no graph to put it in (mean and std are said beside them); leave it \
             out, or use --format onnx or torchscript"
        );
    }
    if options.fold_batchnorm {
        bail!("--fold-batchnorm: is for --format onnx; {format} keeps every layer");
    }
    if options.image_size == Some(ImageSize::Dynamic) {
        bail!("--image-size dynamic: is for --format onnx; {format} names the size for its readers");
    }
    Ok(())
}

/// Python code that builds torchvision's network and loads `state_dict` into it; `import` is what the latter needs.
pub(super) fn load_in_python(config: &EncoderConfig, import: &str, state_dict: &str) -> String {
    let (missing, lines) = model_in_python(config);
    format!(
        "import torchvision; {import}\n\
         {lines}\n\
         print(model.load_state_dict({state_dict}, strict=False))  # {missing} missing{}",
        after_loading(config)
    )
}

/// Whether `torchvision.models` has a function for it, up to the stem.
fn is_torchvisions(config: &EncoderConfig) -> bool {
    config.width == 1.0 && config.arch != Arch::Resnet200
}

/// What the file lacks, and Python code that builds `model`, torchvision's or timm's with the same layers.
fn model_in_python(config: &EncoderConfig) -> (&'static str, String) {
    let group_norm = "norm_layer=lambda channels: torch.nn.GroupNorm(16, channels)";
    let lines = match config.norm {
        Norm::Batch => resnet(config),
        Norm::GroupWs => ("import torch; ".to_string() + &resnet(config))
            .replace("BatchNorm2d(", "GroupNorm(16, ")
            .replace(&format!("{}()", config.arch), &format!("{}({group_norm})", config.arch))
            .replace("[1, 1, 1, 1]", &format!("[1, 1, 1, 1], {group_norm}")),
    };
    match config.arch.family() {
        Family::Resnet if is_torchvisions(config) => ("only fc.weight and fc.bias are", lines),
        Family::Resnet => ("nothing is", lines),
        Family::Convnext => ("only classifier.2.weight and classifier.2.bias are", convnext(config)),
        Family::Vit if config.arch == Arch::VitBase => ("only heads.head.weight and heads.head.bias are", vit(config)),
        Family::Vit => ("nothing is", vit(config)),
    }
}

/// More Python code after loading: standardized weights are what the convolutions compute with.
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
    if config.width == 1.0 && patch == arch.patch_size() && config.channels == 3 {
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
         model.features[0][0] = torch.nn.Conv2d({}, {base}, {patch}, {patch})",
        sizes.join(", "),
        config.channels
    )
}

fn vit(config: &EncoderConfig) -> String {
    let EncoderConfig { arch, patch_size: patch, image_size: [height, width], .. } = *config;
    let channels = config.layers()[0].tensors()[0].1[0];
    let mean = config.pool == Pool::Mean;
    if arch == Arch::VitBase {
        let pool = if mean { "  # the representation is the mean of its patches after encoder.ln" } else { "" };
        let mut lines = format!(
            "model = torchvision.models.VisionTransformer({height}, {patch}, 12, 12, {channels}, {}){pool}",
            4 * channels
        );
        if height != width {
            // torchvision's own is for squares.
            let tokens = 1 + (height / patch) * (width / patch);
            lines += &format!(
                "\nimport torch; model.encoder.pos_embedding = torch.nn.Parameter(torch.empty(1, {tokens}, {channels}))\n\
                 model._process_input = lambda x: model.conv_proj(x).flatten(2).transpose(1, 2)"
            );
        }
        return lines;
    }
    let pool = if mean { ", global_pool=\"avg\", fc_norm=False" } else { "" };
    format!(
        "import timm\n\
         model = timm.create_model(\"{arch}_patch16_224\", num_classes=0, img_size=({height}, {width}), \
         patch_size={patch}, embed_dim={channels}, in_chans={}{pool})",
        config.channels
    )
}

/// torchvision's ResNet.
fn resnet(config: &EncoderConfig) -> String {
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
