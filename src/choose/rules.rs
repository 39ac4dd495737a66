//! The rules of `byol train PATH`, as data, with their sources; "opinion" where there is no evidence. [`super::decide`]
//! applies them.

use crate::train::updates::BATCH_NORM_IMAGES;

/// The share of the free memory that a run may need by the estimate. Opinion: the estimate is within 10 %.
pub const SHARE_OF_MEMORY: f64 = 0.85;

/// Network, batch and optimizer for images of some size.
pub struct Kind {
    /// Short side of the images in pixels, the median, at most.
    pub side: usize,
    /// Number of images, below.
    pub images: usize,
    /// Side of a view, pixels.
    pub size: usize,
    pub stem: &'static str,
    pub arch: &'static str,
    pub width: f64,
    /// Hidden units of the projector, dimension of a projection, hidden units of the predictor.
    pub heads: [i64; 3],
    pub optimizer: &'static str,
    pub base_lr: f64,
    pub weight_decay: f64,
    /// Trust coefficient and cap of LARS.
    pub eta: f64,
    pub clip: bool,
    pub batch: usize,
    pub source: &'static str,
}

pub const ANY: usize = usize::MAX;

/// The same in every row but for what it says itself: solo-learn's LARS, which "helps with smaller datasets" (issue 109).
const LARS: Kind = Kind {
    side: ANY,
    images: ANY,
    size: 224,
    stem: "imagenet",
    arch: "resnet18",
    width: 1.0,
    heads: [4096, 256, 4096],
    optimizer: "lars",
    base_lr: 0.5,
    weight_decay: 1e-5,
    eta: 0.02,
    clip: true,
    batch: 256,
    source: "",
};

/// With a GPU. Where sizes change, and ResNet-18 below 100 000 images: opinion.
pub const GPU: [Kind; 4] = [
    Kind {
        side: 48,
        size: 32,
        stem: "cifar",
        weight_decay: 2e-5,
        source: "as cifar10_resnet18 (solo-learn: 92.58 % online)",
        ..LARS
    },
    Kind { side: 160, size: 128, source: "size as imagenette_resnet18 (DeepMind), LARS as solo-learn", ..LARS },
    Kind { images: 100_000, source: "as imagenet100_resnet18 (solo-learn: 80.3 %)", ..LARS },
    Kind {
        arch: "resnet50",
        base_lr: 0.45,
        weight_decay: 1e-6,
        eta: 1e-3,
        clip: false,
        source: "as imagenet_resnet50_100ep_batch256 (lightly: 62.5 %)",
        ..LARS
    },
];

/// Without a GPU: what cifar10_cpu does, k-NN 26.5 to 38.6 % in half an hour on two cores. Larger views and networks
/// learn more per update, but make too few of them; opinion, and so is their learning rate.
pub const CPU: [Kind; 2] = [
    Kind { side: 48, size: 32, stem: "cifar", width: 0.25, base_lr: 0.2, source: "no GPU: as cifar10_cpu", ..SMALL },
    Kind { size: 64, width: 0.5, source: "no GPU: small views, half the channels (opinion)", ..SMALL },
];

const SMALL: Kind = Kind {
    heads: [512, 128, 512],
    optimizer: "sgd",
    base_lr: 0.6,
    weight_decay: 5e-4,
    eta: 1e-3,
    clip: false,
    batch: 128,
    ..LARS
};

/// Below so many images the batch is 128, else updates are too few; opinion.
pub const FEW_IMAGES: usize = 2000;

/// The fewest images for BatchNorm: the paper's table 16 (300 epochs of ImageNet): 256 -> 71.8 %, 128 -> 69.6, 64 -> 59.7.
pub const BATCH_NORM: usize = BATCH_NORM_IMAGES;

/// The smallest micro-batch where memory leaves no choice; opinion.
pub const MIN_MICRO_BATCH: usize = 8;

/// Below so many images crops cover at least 20 %, not 8: used by several projects for small sets, never ablated.
pub const SMALL_SET: usize = 10_000;

/// Updates without `--epochs` and `--hours` on a GPU, and most epochs. CIFAR-10: k-NN 86.8 % after 20 000 updates, 91.0
/// after 78 000; solo-learn trains for 195 000. Opinion between them.
pub const UPDATES: f64 = 100_000.0;
pub const MAX_EPOCHS: f64 = 3000.0;

/// Hours without `--epochs` and `--hours` on a CPU; opinion.
pub const CPU_HOURS: f64 = 1.0;

/// EMA decay up to so many updates. The paper keeps 1 / (1 - tau) at 0.8 epochs for both batch sizes; at 300 epochs
/// 0.9 -> 68.4 %, 0.99 -> 72.5, 0.999 -> 69.8 (table 5). Short runs: measured with cifar10_cpu.
pub const TAU: [(f64, f64); 3] = [(12_000.0, 0.97), (200_000.0, 0.99), (f64::INFINITY, 0.996)];

/// Warmup: so many epochs (all published recipes), but at most this share of the run (opinion).
pub const WARMUP_EPOCHS: f64 = 10.0;
pub const WARMUP_SHARE: f64 = 0.1;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    #[test]
    fn networks_are_trained_as_the_recipes_that_their_sources_name() {
        for (kind, recipe) in [
            (&GPU[0], "cifar10_resnet18"),
            (&GPU[2], "imagenet100_resnet18"),
            (&GPU[3], "imagenet_resnet50_100ep_batch256"),
            (&CPU[0], "cifar10_cpu"),
        ] {
            assert!(kind.source.contains(&format!("as {recipe}")), "{recipe}: {}", kind.source);
            let Config { optimizer, train, augment, model, .. } = Config::load(recipe.as_ref(), &[]).unwrap();
            let (arch, size) = (model.arch.to_string(), augment.size);
            assert_eq!((kind.arch, kind.width, kind.size.into()), (arch.as_str(), model.width, size), "{recipe}");
            assert_eq!((json!(kind.optimizer), kind.batch), (json!(optimizer.name), train.batch_size), "{recipe}");
            let [ours, theirs] = [[kind.base_lr, kind.weight_decay], [optimizer.base_lr, optimizer.weight_decay]];
            assert_eq!(ours, theirs, "{recipe}");
        }
    }
}
