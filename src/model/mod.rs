//! The networks of BYOL (paper, section 3.1): online = encoder f, projector g, predictor q; target = the
//! same f and g with weights of their own.

mod encoder;
mod flops;
mod graph;
mod heads;
mod layers;
mod params;
mod represent;
mod resnet;
mod size;

use std::cell::Cell;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::section::{Problems, Section};
pub use encoder::Encoder;
pub use graph::{Layer, Op};
pub use heads::Mlp;
pub use layers::{BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, BatchNorm, Conv2d, Linear};
pub use params::{Init, Named, Params, Scope};
pub use represent::Represent;
pub use resnet::{Arch, Stem};
pub use size::Size;

/// Section `model` of a config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Encoder: resnet18, resnet34, resnet50, resnet101, resnet152, resnet200, resnext50_32x4d, resnext101_32x8d,
    /// wide_resnet50_2 or wide_resnet101_2. Default resnet50.
    pub arch: Arch,
    /// Factor on every channel count, 0.25 to 4 in steps of 1/64. Default 1.
    pub width: f64,
    /// First layers: imagenet (7x7 stride 2, max-pooling) or cifar (3x3 stride 1). Default imagenet.
    pub stem: Stem,
    /// Start every residual block as the identity (last BatchNorm weight 0). Default false, as in the paper.
    pub zero_init_residual: bool,
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
            projector_hidden: 4096,
            projection_dim: 256,
            predictor_hidden: 4096,
            output_bias: false,
            sync_batchnorm: SyncBatchNorm::Auto,
            channels: rgb(),
            init: None,
            init_heads: InitHeads::Auto,
            init_prefix: None,
        }
    }
}

impl ModelConfig {
    /// The encoder's architecture.
    pub fn encoder(&self) -> EncoderConfig {
        let &Self { arch, width, stem, zero_init_residual, channels, .. } = self;
        EncoderConfig { arch, width, stem, zero_init_residual, channels }
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
    /// Channels of the images.
    pub channels: i64,
}

impl Section for ModelConfig {
    fn check(&self, problems: &mut Problems) {
        let right = (0.25..=4.0).contains(&self.width) && (self.width * 64.0).fract() == 0.0;
        problems.require(right, "width", self.width, "0.25 to 4 in steps of 1/64");
        problems.range("projector_hidden", self.projector_hidden, 1..=65536);
        problems.range("projection_dim", self.projection_dim, 1..=65536);
        problems.range("predictor_hidden", self.predictor_hidden, 1..=65536);
        let prefix = self.init_prefix.as_deref().unwrap_or_default();
        problems.require(
            self.init.is_some() || self.init_prefix.is_none(),
            "init_prefix",
            prefix,
            "null without model.init",
        );
    }

    fn added(&self) -> &'static [&'static str] {
        &["init", "init_heads", "init_prefix"]
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        self.init.iter_mut().collect()
    }
}

/// The online network, or (without predictor) the target network.
#[derive(Debug)]
pub struct Network {
    /// f: images to representations.
    pub encoder: Encoder,
    projector: Mlp,
    predictor: Option<Mlp>,
    /// D: length of a projection.
    pub projection_dim: i64,
    /// Every tensor, named `encoder.*`, `projector.*`, `predictor.*`.
    pub params: Params,
    /// Forward passes in train mode so far: PyTorch's `num_batches_tracked` of every BatchNorm.
    pub batches_tracked: Cell<i64>,
}

impl Network {
    /// The online network, its initial weights from `seed`.
    pub fn online(config: &ModelConfig, device: Device, seed: u64) -> Self {
        Self::new(config, Params::new(device, Some(seed)), true)
    }

    /// The target network as it starts: a copy of the online encoder and projector, never given gradients.
    pub fn target_of(online: &Self, config: &ModelConfig, device: Device) -> Self {
        let target = Self::new(config, Params::new(device, None), false);
        let _no_grad = tch::no_grad_guard();
        for (to, from) in target.params.parameters.iter().zip(&online.params.parameters) {
            debug_assert_eq!(to.name, from.name);
            to.tensor.shallow_clone().copy_(&from.tensor);
        }
        target
    }

    fn new(config: &ModelConfig, mut params: Params, predicts: bool) -> Self {
        let mut root = params.root();
        let encoder = Encoder::new(root.sub("encoder"), &config.encoder());
        let (hidden, dim, bias) = (config.projector_hidden, config.projection_dim, config.output_bias);
        let projector = Mlp::new(root.sub("projector"), encoder.feature_dim, hidden, dim, bias);
        let predictor = predicts.then(|| Mlp::new(root.sub("predictor"), dim, config.predictor_hidden, dim, bias));
        Self { encoder, projector, predictor, projection_dim: dim, params, batches_tracked: Cell::new(0) }
    }

    /// z = g(f(x)): images `[N, C, H, W]` to projections `[N, projection_dim]`, in train mode.
    pub fn project(&self, images: &Tensor) -> Tensor {
        self.batches_tracked.set(self.batches_tracked.get() + 1);
        self.projector.forward(&self.encoder.forward(images, true), true)
    }

    /// q(z): projections to predictions, in train mode. Only the online network predicts.
    pub fn predict(&self, projections: &Tensor) -> Tensor {
        let predictor = self.predictor.as_ref().expect("the online network has a predictor");
        predictor.forward(projections, true)
    }

    /// f(x) with the running statistics: `[N, C, H, W]` to fp32 representations `[N, feature_dim]`.
    pub fn represent(&self, images: &Tensor) -> Tensor {
        self.encoder.forward(images, false).to_kind(Kind::Float)
    }

    /// f(x) and g(f(x)), both fp32, with the running statistics, which stay as they are: `[N, feature_dim]` and
    /// `[N, projection_dim]`.
    pub fn evaluate(&self, images: &Tensor) -> [Tensor; 2] {
        let representations = self.encoder.forward(images, false);
        let projections = self.projector.forward(&representations, false);
        [representations, projections].map(|x| x.to_kind(Kind::Float))
    }
}
