//! ConvNeXt (arXiv 2201.03545) with torchvision's names and initial weights. A representation is the mean over the
//! feature map, normalized by the classifier's LayerNorm, as torchvision's last linear layer gets it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::EncoderConfig;
use super::arch::{Arch, Family};
use super::graph::{Conv, Graph, Layer, Op};
use super::params::Init;

/// A weight by which a file's ConvNeXt is detected.
pub(super) const MARKER: &str = "features.1.0.layer_scale";
const STEM: &str = "features.0.0.weight";

/// torchvision truncates at 100 standard deviations, which no draw reaches.
const WEIGHT: Init = Init::Normal(0.02);
const ZERO: Init = Init::Constant(0.0);

/// Channels of the first stage at width 1; every stage doubles them.
fn base(arch: Arch) -> i64 {
    if arch == Arch::ConvnextBase { 128 } else { 96 }
}

/// Channels of the first stage, a whole number only for some widths.
pub(super) fn channels(arch: Arch, width: f64) -> f64 {
    base(arch) as f64 * width
}

pub(super) fn layers(config: &EncoderConfig) -> Vec<Layer> {
    let (mut graph, patch) = (Graph::default(), config.patch_size);
    let mut channels = channels(config.arch, config.width).round() as i64;
    let patches = Conv { bias: Some(ZERO), ..Conv::new(config.channels, channels, patch, patch, WEIGHT) };
    let mut x = graph.push("features.0.0", Op::Conv(patches), &[0]);
    x = norm(&mut graph, "features.0.1", channels, x);
    let blocks = config.arch.blocks();
    let (mut index, all) = (0, blocks.iter().sum::<usize>());
    for (stage, &count) in blocks.iter().enumerate() {
        if stage > 0 {
            let name = format!("features.{}", 2 * stage);
            x = norm(&mut graph, &format!("{name}.0"), channels, x);
            let halve = Conv { bias: Some(ZERO), ..Conv::new(channels, 2 * channels, 2, 2, WEIGHT) };
            x = graph.push(format!("{name}.1"), Op::Conv(halve), &[x]);
            channels *= 2;
        }
        for block in 0..count {
            // Linearly from 0 in the first block, as in torchvision.
            let rate = config.drop_path * index as f64 / (all - 1) as f64;
            let name = format!("features.{}.{block}", 2 * stage + 1);
            x = residual(&mut graph, &name, channels, x, index, rate);
            index += 1;
        }
    }
    x = graph.push("avgpool", Op::GlobalAvgPool, &[x]);
    graph.push("classifier.0", Op::LayerNorm { channels }, &[x]);
    graph.layers
}

/// torchvision's `LayerNorm2d`.
fn norm(graph: &mut Graph, name: &str, channels: i64, x: usize) -> usize {
    let x = graph.push(format!("{name}.last"), Op::ChannelsLast, &[x]);
    let x = graph.push(name, Op::LayerNorm { channels }, &[x]);
    graph.push(format!("{name}.first"), Op::ChannelsFirst, &[x])
}

/// torchvision's `CNBlock`.
fn residual(graph: &mut Graph, name: &str, channels: i64, x: usize, index: usize, rate: f64) -> usize {
    let part = |at: usize| format!("{name}.block.{at}");
    let depthwise = Conv::new(channels, channels, 7, 1, WEIGHT);
    let depthwise = Conv { padding: 3, groups: channels, bias: Some(ZERO), ..depthwise };
    let linear = |input, output| Op::Linear { input, output, init: WEIGHT, bias: ZERO, separator: '.' };
    let mut y = graph.push(part(0), Op::Conv(depthwise), &[x]);
    y = graph.push(part(1), Op::ChannelsLast, &[y]);
    y = graph.push(part(2), Op::LayerNorm { channels }, &[y]);
    y = graph.push(part(3), linear(channels, 4 * channels), &[y]);
    y = graph.push(part(4), Op::Gelu, &[y]);
    y = graph.push(part(5), linear(4 * channels, channels), &[y]);
    y = graph.push(part(6), Op::ChannelsFirst, &[y]);
    y = graph.push(format!("{name}.layer_scale"), Op::LayerScale { channels }, &[y]);
    y = graph.drop_path(name, index, rate, y);
    graph.push(format!("{name}.add"), Op::Add, &[y, x])
}

/// The ConvNeXts with the first convolution of these tensors.
/// # Errors
/// Missing, or of another kind.
pub(super) fn candidates(found: &BTreeMap<&str, Vec<i64>>) -> Result<Vec<EncoderConfig>> {
    let ((channels, input), patch_size) = match found.get(STEM).map(Vec::as_slice) {
        Some(&[output, input, height, width]) if height == width => ((output, input), height),
        Some(shape) => bail!("{STEM}: found shape {shape:?}, expected that of a square convolution"),
        None => bail!("found no {STEM}, expected a ConvNeXt with torchvision's names"),
    };
    let config = |arch| {
        let width = channels as f64 / base(arch) as f64;
        EncoderConfig { arch, width, patch_size, channels: input, ..EncoderConfig::default() }
    };
    Ok(Arch::of(Family::Convnext).map(config).collect())
}
