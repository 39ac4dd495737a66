//! ResNet encoders, "v1.5": the stride of a bottleneck is on its 3x3 convolution, as in torchvision, whose
//! parameter names these are. The paper's family: 50/101/152/200 layers, widths 1x to 4x (section 3.3);
//! the width multiplies every channel count, the stem's too. Beside it ResNeXt (arXiv 1611.05431), whose 3x3
//! convolutions are grouped, and Wide ResNet (arXiv 1605.07146), whose are twice as wide.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::EncoderConfig;
use super::graph::{Graph, Layer, Op};

/// `model.arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// Basic blocks 2, 2, 2, 2.
    Resnet18,
    /// Basic blocks 3, 4, 6, 3.
    Resnet34,
    /// Bottlenecks 3, 4, 6, 3.
    Resnet50,
    /// Bottlenecks 3, 4, 23, 3.
    Resnet101,
    /// Bottlenecks 3, 8, 36, 3.
    Resnet152,
    /// Bottlenecks 3, 24, 36, 3.
    Resnet200,
    /// Bottlenecks of ResNet-50 with 32 groups of 4 channels.
    Resnext50_32x4d,
    /// Bottlenecks of ResNet-101 with 32 groups of 8 channels.
    Resnext101_32x8d,
    /// Bottlenecks of ResNet-50 with twice the inner channels.
    WideResnet50_2,
    /// Bottlenecks of ResNet-101 with twice the inner channels.
    WideResnet101_2,
}

impl Arch {
    /// All architectures.
    pub const ALL: [Self; 10] = [
        Self::Resnet18,
        Self::Resnet34,
        Self::Resnet50,
        Self::Resnet101,
        Self::Resnet152,
        Self::Resnet200,
        Self::Resnext50_32x4d,
        Self::Resnext101_32x8d,
        Self::WideResnet50_2,
        Self::WideResnet101_2,
    ];

    /// Residual blocks of each stage.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 | Self::Resnext50_32x4d | Self::WideResnet50_2 => [3, 4, 6, 3],
            Self::Resnet101 | Self::Resnext101_32x8d | Self::WideResnet101_2 => [3, 4, 23, 3],
            Self::Resnet152 => [3, 8, 36, 3],
            Self::Resnet200 => [3, 24, 36, 3],
        }
    }

    /// Whether its blocks are bottlenecks (1x1, 3x3, 1x1) or basic ones (3x3, 3x3).
    pub fn bottleneck(self) -> bool {
        !matches!(self, Self::Resnet18 | Self::Resnet34)
    }

    /// Groups of a bottleneck's 3x3 convolution, and the channels of each in the first stage at width 1: torchvision's
    /// `groups` and `width_per_group`.
    pub fn groups(self) -> (i64, i64) {
        match self {
            Self::Resnext50_32x4d => (32, 4),
            Self::Resnext101_32x8d => (32, 8),
            Self::WideResnet50_2 | Self::WideResnet101_2 => (1, 128),
            _ => (1, 64),
        }
    }
}

/// `model.stem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 7x7 convolution of stride 2, then 3x3 max-pooling of stride 2.
    Imagenet,
    /// 3x3 convolution of stride 1, no pooling: for images of some 32 px.
    Cifar,
}

/// The first convolution, and that of the first block, by which a file's ResNet is detected.
const STEM: &str = "conv1.weight";
pub(super) const MARKER: &str = "layer1.0.conv1.weight";

/// The layers under torchvision's names: `conv1`, `bn1`, `layerI.J.convK`, `layerI.J.downsample.0`.
pub(super) fn layers(config: &EncoderConfig) -> Vec<Layer> {
    let mut graph = Graph::default();
    let base = (64.0 * config.width).round() as i64;
    let (kernel, stride) = match config.stem {
        Stem::Imagenet => (7, 2),
        Stem::Cifar => (3, 1),
    };
    let mut x = conv_bn(&mut graph, ["conv1", "bn1"], 0, Conv::new(config.channels, base, kernel, stride), 1.0);
    x = graph.push("relu", Op::Relu, &[x]);
    if config.stem == Stem::Imagenet {
        x = graph.push("maxpool", Op::MaxPool { kernel: 3, stride: 2, padding: 1 }, &[x]);
    }
    let mut channels = base;
    for (stage, count) in config.arch.blocks().into_iter().enumerate() {
        for block in 0..count {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let convs = convolutions(config.arch, channels, base << stage, stride);
            let name = format!("layer{}.{block}", stage + 1);
            (x, channels) = residual(&mut graph, &name, x, &convs, config.zero_init_residual);
        }
    }
    graph.push("avgpool", Op::GlobalAvgPool, &[x]);
    graph.layers
}

/// A convolution of a block.
#[derive(Clone, Copy)]
struct Conv {
    input: i64,
    output: i64,
    kernel: i64,
    stride: i64,
    groups: i64,
}

impl Conv {
    fn new(input: i64, output: i64, kernel: i64, stride: i64) -> Self {
        Self { input, output, kernel, stride, groups: 1 }
    }
}

/// Those of a block of `planes` channels, which the inner layers of a bottleneck share among the groups.
fn convolutions(arch: Arch, input: i64, planes: i64, stride: i64) -> Vec<Conv> {
    if !arch.bottleneck() {
        return vec![Conv::new(input, planes, 3, stride), Conv::new(planes, planes, 3, 1)];
    }
    let (groups, per_group) = arch.groups();
    let inner = planes * per_group / 64 * groups;
    let middle = Conv { groups, ..Conv::new(inner, inner, 3, stride) };
    vec![Conv::new(input, inner, 1, 1), middle, Conv::new(inner, 4 * planes, 1, 1)]
}

/// A convolution and its BatchNorm; the value is its output.
fn conv_bn(graph: &mut Graph, names: [&str; 2], x: usize, conv: Conv, weight: f64) -> usize {
    let Conv { input, output, kernel, stride, groups } = conv;
    let op = Op::Conv { input, output, kernel, stride, padding: kernel / 2, groups };
    let x = graph.push(names[0], op, &[x]);
    graph.push(names[1], Op::BatchNorm { channels: output, weight }, &[x])
}

/// A residual block; the value is its output and that one's channels.
fn residual(graph: &mut Graph, name: &str, x: usize, convs: &[Conv], zero_init: bool) -> (usize, i64) {
    let (input, stride) = (convs[0].input, convs.iter().map(|conv| conv.stride).product());
    let (mut y, mut output) = (x, input);
    for (i, conv) in (1..).zip(convs) {
        let weight = if i == convs.len() && zero_init { 0.0 } else { 1.0 };
        y = conv_bn(graph, [&format!("{name}.conv{i}"), &format!("{name}.bn{i}")], y, *conv, weight);
        if i < convs.len() {
            y = graph.push(format!("{name}.relu{i}"), Op::Relu, &[y]);
        }
        output = conv.output;
    }
    let mut shortcut = x;
    if stride != 1 || input != output {
        let names = [&*format!("{name}.downsample.0"), &format!("{name}.downsample.1")];
        shortcut = conv_bn(graph, names, x, Conv::new(input, output, 1, stride), 1.0);
    }
    let sum = graph.push(format!("{name}.add"), Op::Add, &[y, shortcut]);
    (graph.push(format!("{name}.relu"), Op::Relu, &[sum]), output)
}

/// The ResNets with the first convolution of these tensors.
/// # Errors
/// Missing, or of another kind.
pub(super) fn candidates(found: &BTreeMap<&str, Vec<i64>>) -> Result<Vec<EncoderConfig>> {
    let (channels, input, kernel) = match found.get(STEM).map(Vec::as_slice) {
        Some(&[output, input @ 1..=64, height, width]) if height == width => (output, input, height),
        Some(shape) => {
            bail!("{STEM}: found shape {shape:?}, expected that of a square convolution of images of 1 to 64 channels")
        }
        None => bail!("found no {STEM}, expected a ResNet with torchvision's names"),
    };
    let stem = match kernel {
        7 => Stem::Imagenet,
        3 => Stem::Cifar,
        _ => bail!("{STEM}: found a kernel of {kernel}, expected 7 (stem imagenet) or 3 (stem cifar)"),
    };
    if !(16..=256).contains(&channels) {
        bail!("{STEM}: found {channels} output channels, expected 16 to 256 (width 0.25 to 4)");
    }
    let width = channels as f64 / 64.0;
    Ok(Arch::ALL.map(|arch| EncoderConfig { arch, width, stem, zero_init_residual: false, channels: input }).to_vec())
}
