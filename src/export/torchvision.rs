//! What the formats of weights have in common: torchvision's names, which options they refuse, and the lines of Python
//! that build the network.

use anyhow::{Result, bail};

use super::{ExportOptions, ImageSize};
use crate::model::{Arch, EncoderConfig, Stem};

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
    let missing = if is_torchvisions(config) { "only fc.weight and fc.bias are" } else { "nothing is" };
    format!(
        "import torchvision; {import}\n\
         {}\n\
         print(model.load_state_dict({state_dict}, strict=False))  # {missing} missing",
        model_in_python(config)
    )
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
