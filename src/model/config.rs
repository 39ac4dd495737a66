//! Section `model` of a config, and the part of it that describes the encoder.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::arch::{Arch, Family};
use super::convnext;
use super::graph::Op;
use super::layers::GROUPS;
use super::resnet::Stem;
use crate::section::{Problems, Section, Words};

/// Section `model` of a config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Encoder: resnet18, resnet34, resnet50, resnet101, resnet152, resnet200, resnext50_32x4d, resnext101_32x8d,
    /// wide_resnet50_2, wide_resnet101_2, convnext_tiny, convnext_small, convnext_base, vit_tiny, vit_small or
    /// vit_base. Default resnet50.
    pub arch: Arch,
    /// Factor on every channel count, 0.25 to 4 in steps of 1/64 (ConvNeXt: 1/32). Default 1.
    pub width: f64,
    /// First layers of a ResNet: imagenet (7x7 stride 2, max-pooling) or cifar (3x3 stride 1). Default imagenet.
    pub stem: Stem,
    /// Start every residual block of a ResNet as the identity (last BatchNorm weight 0). Default false, as in the paper.
    pub zero_init_residual: bool,
    /// Normalization of a ResNet and of the heads: batch, or group_ws, which is GroupNorm with weight standardization
    /// and independent of the batch (arXiv 2010.10241). Default batch.
    pub norm: Norm,
    /// ConvNeXt and ViT: stochastic depth, the probability that the last residual branch is skipped; it grows linearly
    /// from 0 in the first. Default 0.
    pub drop_path: f64,
    /// ConvNeXt and ViT: side of the patches of the first convolution in pixels. Default null: 4 for ConvNeXt, 16 for
    /// ViT.
    pub patch_size: Option<i64>,
    /// ViT: height and width of the images that its position embeddings are for; other sizes get them interpolated.
    /// Default null: augment.size.
    pub image_size: Option<[i64; 2]>,
    /// ViT: the representation, token (the class token) or mean (of all patches). Default token.
    pub pool: Pool,
    /// ViT: keep the first convolution as it is initialized, which makes training stable (MoCo v3, arXiv 2104.02057).
    /// Default false.
    pub freeze_patch_projection: bool,
    /// Hidden units of the projector. Default 4096.
    pub projector_hidden: i64,
    /// Length of a projection. Default 256.
    pub projection_dim: i64,
    /// Hidden units of the predictor. Default 4096.
    pub predictor_hidden: i64,
    /// A bias on the last layer of projector and predictor. Default false, as in the paper.
    pub output_bias: bool,
    /// BatchNorm's statistics over the batches of all processes of a run (`on`), or of each alone (`off`). Default
    /// auto: on.
    pub sync_batchnorm: SyncBatchNorm,
    /// Weights to start from: a safetensors or PyTorch file, or the folder of a run or of a checkpoint. Null for random
    /// ones. Default null.
    pub init: Option<PathBuf>,
    /// With `init`: projector and predictor of the file, if it has them in the same shape (auto), or random ones (fresh).
    /// Default auto.
    pub init_heads: InitHeads,
    /// With `init`: which of several encoders in the file, by what their names begin with. Default null.
    pub init_prefix: Option<String>,
    /// Channels of the images: not a key, but what `data.channels` is.
    #[serde(skip, default = "rgb")]
    pub channels: i64,
}

fn rgb() -> i64 {
    3
}

/// `model.norm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// BatchNorm.
    Batch,
    /// GroupNorm of 16 groups; the weights before it are standardized.
    GroupWs,
}

impl Norm {
    /// A layer of an encoder; `weight` is its initial weight.
    pub(super) fn op(self, channels: i64, weight: f64) -> Op {
        match self {
            Self::Batch => Op::BatchNorm { channels, weight },
            Self::GroupWs => Op::GroupNorm { channels, weight },
        }
    }
}

/// `model.pool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The class token.
    Token,
    /// The mean of all patches.
    Mean,
}

/// `model.init_heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InitHeads {
    /// Those of the file if they have the same shape, else random ones.
    Auto,
    /// Random ones.
    Fresh,
}

/// `model.sync_batchnorm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SyncBatchNorm {
    /// On if there are several processes.
    Auto,
    /// Every process sees the statistics of the global batch: a run's result does not depend on their number.
    On,
    /// Every process has its own statistics; checkpoints hold those of rank 0.
    Off,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            arch: Arch::Resnet50,
            width: 1.0,
            stem: Stem::Imagenet,
            zero_init_residual: false,
            norm: Norm::Batch,
            drop_path: 0.0,
            patch_size: None,
            image_size: None,
            pool: Pool::Token,
            freeze_patch_projection: false,
            projector_hidden: 4096,
            projection_dim: 256,
            predictor_hidden: 4096,
            output_bias: false,
            sync_batchnorm: SyncBatchNorm::Auto,
            init: None,
            init_heads: InitHeads::Auto,
            init_prefix: None,
            channels: rgb(),
        }
    }
}

impl ModelConfig {
    /// The encoder's architecture.
    pub fn encoder(&self) -> EncoderConfig {
        let &Self { arch, width, stem, zero_init_residual, norm, drop_path, pool, freeze_patch_projection, .. } = self;
        EncoderConfig {
            arch,
            width,
            stem,
            zero_init_residual,
            norm,
            drop_path,
            patch_size: self.patch_size.unwrap_or(arch.patch_size()),
            image_size: self.image_size.unwrap_or(EncoderConfig::default().image_size),
            pool,
            freeze_patch_projection,
            channels: self.channels,
        }
    }

    /// Reports keys that have no meaning for the architecture.
    fn check_family(&self, problems: &mut Problems) {
        let (family, vit) = (self.arch.family(), self.arch.family() == Family::Vit);
        let resnet = family == Family::Resnet;
        let but = |value: &str, who: &str| format!("{value}: model.arch {} is no {who}", self.arch);
        let (for_resnets, for_others) = (|value| but(value, "ResNet"), |value| but(value, "ConvNeXt or ViT"));
        let stem = resnet || self.stem == Stem::Imagenet;
        problems.require(stem, "stem", Words("cifar"), for_resnets("imagenet") + "; lower model.patch_size instead");
        let zero = resnet || !self.zero_init_residual;
        problems.require(zero, "zero_init_residual", true, for_resnets("false"));
        problems.require(!resnet || self.drop_path == 0.0, "drop_path", self.drop_path, for_others("0"));
        let patch = self.patch_size.unwrap_or(1);
        problems.require(!resnet || self.patch_size.is_none(), "patch_size", patch, for_others("null"));
        let size = self.image_size.unwrap_or_default();
        problems.require(vit || self.image_size.is_none(), "image_size", size, but("null", "ViT"));
        problems.require(vit || self.pool == Pool::Token, "pool", Words("mean"), but("token", "ViT"));
        let frozen = self.freeze_patch_projection;
        problems.require(vit || !frozen, "freeze_patch_projection", true, but("false", "ViT"));
    }

    /// Reports channels that cannot be shared evenly.
    fn check_channels(&self, problems: &mut Problems) {
        if self.arch.family() == Family::Convnext {
            let right = convnext::channels(self.arch, self.width).fract() == 0.0;
            problems.require(right, "width", self.width, "0.25 to 4 in steps of 1/32 for a ConvNeXt");
        }
        if self.norm == Norm::GroupWs {
            let right = self.arch.family() != Family::Resnet || (self.width * 4.0).fract() == 0.0;
            problems.require(right, "width", self.width, "0.25 to 4 in steps of 1/4 with model.norm group_ws");
            for (key, hidden) in
                [("projector_hidden", self.projector_hidden), ("predictor_hidden", self.predictor_hidden)]
            {
                let expected = format!("a multiple of {GROUPS} with model.norm group_ws");
                problems.require(hidden % GROUPS == 0, key, hidden, expected);
            }
        }
    }
}

/// An encoder's architecture: part of section `model`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Architecture.
    pub arch: Arch,
    /// Factor on every channel count; `64 * width` must be a whole number.
    pub width: f64,
    /// First layers.
    pub stem: Stem,
    /// Start the last BatchNorm of every residual block at 0, so that blocks start as identities.
    pub zero_init_residual: bool,
    /// Normalization of a ResNet.
    pub norm: Norm,
    /// Stochastic depth of the last branch.
    pub drop_path: f64,
    /// Side of the patches of ConvNeXt or ViT.
    pub patch_size: i64,
    /// Height and width of the images that a ViT's position embeddings are for.
    pub image_size: [i64; 2],
    /// Representation of a ViT.
    pub pool: Pool,
    /// Whether a ViT's first convolution keeps its initial weights.
    pub freeze_patch_projection: bool,
    /// Channels of the images.
    pub channels: i64,
}

impl Default for EncoderConfig {
    /// A ResNet-50; the rest is that of the section's defaults, for images of 224 px.
    fn default() -> Self {
        Self {
            arch: Arch::Resnet50,
            width: 1.0,
            stem: Stem::Imagenet,
            zero_init_residual: false,
            norm: Norm::Batch,
            drop_path: 0.0,
            patch_size: 1,
            image_size: [224; 2],
            pool: Pool::Token,
            freeze_patch_projection: false,
            channels: 3,
        }
    }
}

impl Section for ModelConfig {
    fn check(&self, problems: &mut Problems) {
        let right = (0.25..=4.0).contains(&self.width) && (self.width * 64.0).fract() == 0.0;
        problems.require(right, "width", self.width, "0.25 to 4 in steps of 1/64");
        problems.require((0.0..1.0).contains(&self.drop_path), "drop_path", self.drop_path, "0 to below 1");
        problems.range_or_null("patch_size", self.patch_size, 1..=64);
        if let Some((size, Err(expected))) = self.image_size.map(|size| (size, self.encoder().check_size(size))) {
            problems.require(false, "image_size", size, expected);
        }
        self.check_family(problems);
        self.check_channels(problems);
        problems.range("projector_hidden", self.projector_hidden, 1..=65536);
        problems.range("projection_dim", self.projection_dim, 1..=65536);
        problems.range("predictor_hidden", self.predictor_hidden, 1..=65536);
        let prefix = self.init_prefix.as_deref().unwrap_or_default();
        let possible = self.init.is_some() || self.init_prefix.is_none();
        problems.require(possible, "init_prefix", prefix, "null without model.init");
    }

    fn added(&self) -> &'static [&'static str] {
        &["init", "init_heads", "init_prefix"]
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        self.init.iter_mut().collect()
    }

    fn as_before(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[
            ("norm", &["\"batch\""]),
            ("drop_path", &["0.0"]),
            ("patch_size", &["null"]),
            ("image_size", &["null"]),
            ("pool", &["\"token\""]),
            ("freeze_patch_projection", &["false"]),
        ]
    }
}
