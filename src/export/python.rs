//! The lines of Python that load an export.

use std::path::Path;

use serde::Serialize;

use super::{Format, GraphOptions};
use crate::eval::Encoder;
use crate::model::{Arch, Stem};

/// The config's word for an architecture or a stem.
pub(super) fn name(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
}

/// What to type in Python to load the file at `output`.
pub fn load_in_python(encoder: &Encoder, format: Format, options: &GraphOptions, output: &Path) -> String {
    let file = output.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    let input = if options.normalize { "RGB in 0..1" } else { "normalized RGB" };
    match format {
        Format::Torchscript => format!(
            "import torch\n\
             encoder = torch.jit.load(\"{file}\", map_location=\"cpu\")  # or \"cuda\": .to() does not move its constants\n\
             features = encoder(images)  # images: float32 [N, 3, H, W], {input}; features: [N, {}]",
            encoder.net.feature_dim
        ),
        Format::Onnx => format!(
            "import onnxruntime\n\
             session = onnxruntime.InferenceSession(\"{file}\")\n\
             features, = session.run(None, {{\"images\": images}})  # images: float32 [N, 3, H, W], {input}; features: [N, {}]",
            encoder.net.feature_dim
        ),
        Format::Safetensors => format!(
            "import torchvision; from safetensors.torch import load_file\n\
             {}\n\
             print(model.load_state_dict(load_file(\"{file}\"), strict=False))  # {} missing",
            model(encoder),
            if is_torchvisions(encoder) { "only fc.weight and fc.bias are" } else { "nothing is" }
        ),
    }
}

/// Whether `torchvision.models` has a function that makes it, but for the stem.
fn is_torchvisions(encoder: &Encoder) -> bool {
    encoder.config.width == 1.0 && encoder.config.arch != Arch::Resnet200
}

/// Lines that make `model`, the torchvision ResNet of the same layers.
fn model(encoder: &Encoder) -> String {
    let config = encoder.config;
    let standard = |arch: Arch| format!("model = torchvision.models.{}()", name(arch));
    let conv = |channels: i64| format!("model.conv1 = torch.nn.Conv2d(3, {channels}, 3, padding=1, bias=False)");
    let identity = "model.maxpool = torch.nn.Identity()";
    match (is_torchvisions(encoder), config.stem) {
        (true, Stem::Imagenet) => standard(config.arch),
        (true, Stem::Cifar) => format!("import torch; {}\n{}; {identity}", standard(config.arch), conv(64)),
        (false, stem) => {
            let base = (64.0 * config.width).round() as i64;
            let block = if config.arch.bottleneck() { "Bottleneck" } else { "BasicBlock" };
            let mut lines = format!(
                "import torch; from torchvision.models.resnet import ResNet, {block}\n\
                 model = ResNet({block}, [1, 1, 1, 1])\n\
                 model.conv1, model.bn1 = torch.nn.Conv2d(3, {base}, 7, 2, 3, bias=False), torch.nn.BatchNorm2d({base})\n\
                 model.inplanes = {base}\n\
                 for i, blocks in enumerate({:?}):\n    \
                 setattr(model, f\"layer{{i + 1}}\", model._make_layer({block}, {base} << i, blocks, 1 if i == 0 else 2))",
                config.arch.blocks()
            );
            if stem == Stem::Cifar {
                lines += &format!("\n{}; {identity}", conv(base));
            }
            lines += "\nmodel.fc = torch.nn.Identity()";
            lines
        }
    }
}
