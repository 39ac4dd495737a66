//! ResNet encoders, "v1.5": the stride of a bottleneck is on its 3x3 convolution, as in torchvision, whose
//! parameter names these are. The paper's family: 50/101/152/200 layers, widths 1x to 4x (section 3.3);
//! the width multiplies every channel count, the stem's too. Beside it ResNeXt (arXiv 1611.05431), whose 3x3
//! convolutions are grouped, and Wide ResNet (arXiv 1605.07146), whose are twice as wide.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::arch::{Arch, Family};
use super::graph::{Conv, Graph, Layer, Op};
use super::params::Init;
use super::{EncoderConfig, Norm};

impl Arch {
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

/// The first convolution.
const STEM: &str = "conv1.weight";

/// The layers under torchvision's names: `conv1`, `bn1`, `layerI.J.convK`, `layerI.J.downsample.0`.
pub(super) fn layers(config: &EncoderConfig) -> Vec<Layer> {
    let mut graph = Graph::default();
    let base = (64.0 * config.width).round() as i64;
    let (kernel, stride) = match config.stem {
        Stem::Imagenet => (7, 2),
        Stem::Cifar => (3, 1),
    };
    let norm = config.norm;
    let mut x = conv_norm(&mut graph, norm, ["conv1", "bn1"], 0, conv(config.channels, base, kernel, stride), 1.0);
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
            (x, channels) = residual(&mut graph, config, &name, x, &convs);
        }
    }
    graph.push("avgpool", Op::GlobalAvgPool, &[x]);
    graph.layers
}

/// Those of a block of `planes` channels, which the inner layers of a bottleneck share among the groups.
fn convolutions(arch: Arch, input: i64, planes: i64, stride: i64) -> Vec<Conv> {
    if !arch.bottleneck() {
        return vec![conv(input, planes, 3, stride), conv(planes, planes, 3, 1)];
    }
    let (groups, per_group) = arch.groups();
    let inner = planes * per_group / 64 * groups;
    let middle = Conv { groups, ..conv(inner, inner, 3, stride) };
    vec![conv(input, inner, 1, 1), middle, conv(inner, 4 * planes, 1, 1)]
}

/// A convolution of odd kernel with torchvision's initial weights: normal with standard deviation
/// `sqrt(2 / (output * kernel * kernel))` (Kaiming over fan-out for ReLU, which does not know groups).
fn conv(input: i64, output: i64, kernel: i64, stride: i64) -> Conv {
    let init = Init::Normal((2.0 / (output * kernel * kernel) as f64).sqrt());
    Conv { padding: kernel / 2, ..Conv::new(input, output, kernel, stride, init) }
}

/// A convolution and its normalization; the value is its output.
fn conv_norm(graph: &mut Graph, norm: Norm, names: [&str; 2], x: usize, conv: Conv, weight: f64) -> usize {
    let x = graph.push(names[0], Op::Conv(Conv { standardized: norm == Norm::GroupWs, ..conv }), &[x]);
    graph.push(names[1], norm.op(conv.output, weight), &[x])
}

/// A residual block; the value is its output and that one's channels.
fn residual(graph: &mut Graph, config: &EncoderConfig, name: &str, x: usize, convs: &[Conv]) -> (usize, i64) {
    let (input, stride) = (convs[0].input, convs.iter().map(|conv| conv.stride).product());
    let (mut y, mut output) = (x, input);
    for (i, conv) in (1..).zip(convs) {
        let weight = if i == convs.len() && config.zero_init_residual { 0.0 } else { 1.0 };
        let names = [&*format!("{name}.conv{i}"), &format!("{name}.bn{i}")];
        y = conv_norm(graph, config.norm, names, y, *conv, weight);
        if i < convs.len() {
            y = graph.push(format!("{name}.relu{i}"), Op::Relu, &[y]);
        }
        output = conv.output;
    }
    let mut shortcut = x;
    if stride != 1 || input != output {
        let names = [&*format!("{name}.downsample.0"), &format!("{name}.downsample.1")];
        shortcut = conv_norm(graph, config.norm, names, x, conv(input, output, 1, stride), 1.0);
    }
    let sum = graph.push(format!("{name}.add"), Op::Add, &[y, shortcut]);
    (graph.push(format!("{name}.relu"), Op::Relu, &[sum]), output)
}

/// The ResNets with the first convolution and the first normalization of these tensors.
/// # Errors
/// Missing, or of another kind.
pub(super) fn candidates(found: &BTreeMap<&str, Vec<i64>>) -> Result<Vec<EncoderConfig>> {
    let (channels, input, kernel) = match found.get(STEM).map(Vec::as_slice) {
        Some(&[output, input @ 1..=64, height, width]) if height == width => (output, input, height),
        Some(shape) => {
            bail!("{STEM}: found shape {shape:?}, expected that of a square convolution of images of 1 to 64 channels")
        }
        None => bail!("found no {STEM}, expected a ResNet"),
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
    let norm = if found.contains_key("bn1.running_mean") { Norm::Batch } else { Norm::GroupWs };
    let config = |arch| EncoderConfig { arch, width, stem, norm, channels: input, ..EncoderConfig::default() };
    Ok(Arch::of(Family::Resnet).map(config).collect())
}
