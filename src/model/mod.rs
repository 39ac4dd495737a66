//! The networks of BYOL (paper, section 3.1): online = encoder f, projector g, predictor q; target = the
//! same f and g with weights of their own.

mod arch;
mod config;
mod convnext;
mod drop_path;
mod encoder;
mod flops;
mod graph;
mod heads;
mod layers;
mod params;
mod represent;
mod resnet;
mod size;
mod tokens;
mod vit;

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

pub use arch::{Arch, Family};
pub use config::{EncoderConfig, InitHeads, ModelConfig, Norm, Pool, SyncBatchNorm};
pub use drop_path::DropPath;
pub use encoder::Encoder;
pub use graph::{Conv, Layer, Op};
pub use heads::Mlp;
pub use layers::{BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, GROUP_NORM_EPS, GROUPS, LAYER_NORM_EPS};
pub use layers::{BatchNorm, Conv2d, GroupNorm, LayerNorm, Linear, standardized};
pub use params::{Init, Named, Params, Scope};
pub use represent::Represent;
pub use resnet::Stem;
pub use size::Size;
pub use tokens::resample;

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

    /// The target network as it starts: a copy of the online encoder and projector. It is used only where gradients are
    /// off.
    pub fn target_of(online: &Self, config: &ModelConfig, device: Device) -> Self {
        let target = Self::new(config, Params::new(device, None), false);
        let _no_grad = tch::no_grad_guard();
        for (to, from) in target.params.parameters.iter().zip(&online.params.parameters) {
            debug_assert_eq!(to.name, from.name);
            to.tensor.shallow_clone().copy_(&from.tensor);
            // Without it autocast would cast them for each view: it keeps only what may need gradients.
            let _ = to.tensor.set_requires_grad(true);
        }
        target
    }

    fn new(config: &ModelConfig, mut params: Params, predicts: bool) -> Self {
        let mut root = params.root();
        let encoder = Encoder::new(root.sub("encoder"), &config.encoder());
        let (hidden, dim, bias) = (config.projector_hidden, config.projection_dim, config.output_bias);
        let norm = config.norm;
        let projector = Mlp::new(root.sub("projector"), encoder.feature_dim, hidden, dim, bias, norm);
        let predictor =
            predicts.then(|| Mlp::new(root.sub("predictor"), dim, config.predictor_hidden, dim, bias, norm));
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
