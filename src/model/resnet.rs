//! ResNet encoders, "v1.5": the stride of a bottleneck is on its 3x3 convolution, as in torchvision, whose
//! parameter names these are. The paper's family: 50/101/152/200 layers, widths 1x to 4x (section 3.3);
//! the width multiplies every channel count, the stem's too.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::layers::{BatchNorm, Conv2d};
use super::params::Scope;

/// `model.arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
}

impl Arch {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Resnet18, Self::Resnet34, Self::Resnet50, Self::Resnet101, Self::Resnet152, Self::Resnet200];

    /// Residual blocks of each stage.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 => [3, 4, 6, 3],
            Self::Resnet101 => [3, 4, 23, 3],
            Self::Resnet152 => [3, 8, 36, 3],
            Self::Resnet200 => [3, 24, 36, 3],
        }
    }

    /// Whether its blocks are bottlenecks (1x1, 3x3, 1x1) or basic ones (3x3, 3x3).
    pub fn bottleneck(self) -> bool {
        !matches!(self, Self::Resnet18 | Self::Resnet34)
    }

    /// Output channels of a block over its inner ones: 1 for basic blocks, 4 for bottlenecks.
    fn expansion(self) -> i64 {
        if self.bottleneck() { 4 } else { 1 }
    }
}

/// `model.stem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 7x7 convolution of stride 2, then 3x3 max-pooling of stride 2.
    Imagenet,
    /// 3x3 convolution of stride 1, no pooling: for images of some 32 px.
    Cifar,
}

/// What a [`ResNet`] is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResNetConfig {
    /// Depth.
    pub arch: Arch,
    /// Factor on every channel count; `64 * width` must be a whole number.
    pub width: f64,
    /// First layers.
    pub stem: Stem,
    /// Start the last BatchNorm of every block at 0, so that blocks start as identities.
    pub zero_init_residual: bool,
}

/// A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) layers: Vec<(Conv2d, BatchNorm)>,
    pub(crate) downsample: Option<(Conv2d, BatchNorm)>,
}

impl Block {
    fn new(mut scope: Scope, config: &ResNetConfig, input: i64, inner: i64, stride: i64) -> Self {
        let output = inner * config.arch.expansion();
        // (input, output, kernel, stride) of each convolution.
        let shapes = match config.arch.expansion() {
            1 => vec![(input, inner, 3, stride), (inner, inner, 3, 1)],
            _ => vec![(input, inner, 1, 1), (inner, inner, 3, stride), (inner, output, 1, 1)],
        };
        let last = shapes.len();
        let layers = (1..).zip(shapes).map(|(i, (from, to, kernel, stride))| {
            let gamma = if i == last && config.zero_init_residual { 0.0 } else { 1.0 };
            let conv = Conv2d::new(scope.sub(format!("conv{i}")), from, to, kernel, stride, kernel / 2);
            (conv, BatchNorm::new(scope.sub(format!("bn{i}")), to, gamma))
        });
        let layers = layers.collect();
        let downsample = (stride != 1 || input != output).then(|| {
            let conv = Conv2d::new(scope.sub("downsample.0"), input, output, 1, stride, 0);
            (conv, BatchNorm::new(scope.sub("downsample.1"), output, 1.0))
        });
        Self { layers, downsample }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let mut y = x.shallow_clone();
        for (i, (conv, bn)) in self.layers.iter().enumerate() {
            y = bn.forward(&conv.forward(&y), train);
            if i + 1 < self.layers.len() {
                y = y.relu_();
            }
        }
        let shortcut = match &self.downsample {
            Some((conv, bn)) => bn.forward(&conv.forward(x), train),
            None => x.shallow_clone(),
        };
        y.g_add_(&shortcut).relu_()
    }
}

/// A ResNet without its classifier: the encoder f of BYOL.
#[derive(Debug)]
pub struct ResNet {
    pub(crate) conv1: Conv2d,
    pub(crate) bn1: BatchNorm,
    pub(crate) pool: bool,
    pub(crate) blocks: Vec<Block>,
    /// Length of a representation: 512 (basic blocks) or 2048 (bottlenecks) times the width.
    pub feature_dim: i64,
}

impl ResNet {
    /// Builds it under torchvision's names: `conv1`, `bn1`, `layerI.J.convK`, `layerI.J.downsample.0`.
    pub fn new(mut scope: Scope, config: &ResNetConfig) -> Self {
        let base = (64.0 * config.width).round() as i64;
        let (kernel, stride) = match config.stem {
            Stem::Imagenet => (7, 2),
            Stem::Cifar => (3, 1),
        };
        let conv1 = Conv2d::new(scope.sub("conv1"), 3, base, kernel, stride, kernel / 2);
        let bn1 = BatchNorm::new(scope.sub("bn1"), base, 1.0);
        let mut blocks = Vec::new();
        let mut channels = base;
        for (stage, count) in config.arch.blocks().into_iter().enumerate() {
            let inner = base << stage;
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let place = scope.sub(format!("layer{}.{block}", stage + 1));
                blocks.push(Block::new(place, config, channels, inner, stride));
                channels = inner * config.arch.expansion();
            }
        }
        Self { conv1, bn1, pool: config.stem == Stem::Imagenet, blocks, feature_dim: channels }
    }

    /// Images `[N, 3, H, W]` to representations `[N, feature_dim]`: the average over the last feature map.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let mut y = self.bn1.forward(&self.conv1.forward(x), train).relu_();
        if self.pool {
            y = y.max_pool2d(3, 2, 1, 1, false);
        }
        for block in &self.blocks {
            y = block.forward(&y, train);
        }
        y.adaptive_avg_pool2d([1, 1]).flatten(1, -1)
    }
}
