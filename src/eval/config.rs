//! Section `linear_eval` of a config: the paper's protocols (arXiv 2006.07733, appendix C.1), all of it configurable.

use serde::{Deserialize, Serialize};

use crate::section::{Keys, Problems, Section, distinct};

/// `linear_eval.features`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureMode {
    /// Cached below 96 px, augmented from there on.
    #[default]
    Auto,
    /// Computed once, from images without augmentation.
    Cached,
    /// Computed anew in every epoch, from random crops and flips: the paper's protocol.
    Augmented,
}

/// Section `linear_eval`. Learning rates are for 256 images a step and scaled by `batch_size / 256`, as in DeepMind's
/// code; they decay to 0 along half a cosine, without warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinearEvalConfig {
    /// auto, cached or augmented. Default auto.
    pub features: FeatureMode,
    /// Passes over the training images. Default 80.
    pub epochs: u64,
    /// Images per step, all of them where there are fewer. Default 1024.
    pub batch_size: usize,
    /// Tried side by side; the best on held-out training images is tested. Default [0.4, 0.3, 0.2, 0.1, 0.05].
    #[serde(deserialize_with = "distinct")]
    pub learning_rates: Vec<f64>,
    /// Momentum of SGD, 0 to below 1. Default 0.9.
    pub momentum: f64,
    /// Nesterov's form of it. Default true.
    pub nesterov: bool,
    /// L2 penalty. Default 0.
    pub weight_decay: f64,
    /// Training images held out, stratified, to choose the learning rate: at most a tenth of them. None are held out
    /// where there is nothing to choose. Default 10009.
    pub validation_images: usize,
    /// Train the chosen learning rate once more, on the held-out images too, before the test. Never with
    /// `--fraction`, whose labels would then not be the only ones. Default null: with cached features.
    pub refit: Option<bool>,
    /// Seed of the held-out part, the fraction, the order and the crops. Default 0.
    pub seed: u64,
    /// Lengths to try with `--finetune`. Default [30, 50].
    #[serde(deserialize_with = "distinct")]
    pub finetune_epochs: Vec<u64>,
    /// Learning rates to try with `--finetune`. Default [0.01, 0.02, 0.05, 0.1, 0.005].
    #[serde(deserialize_with = "distinct")]
    pub finetune_learning_rates: Vec<f64>,
}

impl Default for LinearEvalConfig {
    fn default() -> Self {
        Self {
            features: FeatureMode::Auto,
            epochs: 80,
            batch_size: 1024,
            learning_rates: vec![0.4, 0.3, 0.2, 0.1, 0.05],
            momentum: 0.9,
            nesterov: true,
            weight_decay: 0.0,
            validation_images: 10_009,
            refit: None,
            seed: 0,
            finetune_epochs: vec![30, 50],
            finetune_learning_rates: vec![0.01, 0.02, 0.05, 0.1, 0.005],
        }
    }
}

impl LinearEvalConfig {
    /// Whether features of images of `size` pixels are computed once.
    pub fn cached(&self, size: usize) -> bool {
        match self.features {
            FeatureMode::Auto => size < 96,
            mode => mode == FeatureMode::Cached,
        }
    }

    /// The learning rate of a step of `images` images.
    pub fn scaled(rate: f64, images: usize) -> f64 {
        rate * images as f64 / 256.0
    }
}

impl Section for LinearEvalConfig {
    fn check(&self, problems: &mut Problems) {
        problems.range("epochs", self.epochs, 1..=1_000_000);
        problems.range("batch_size", self.batch_size, 1..=1_000_000);
        problems.require((0.0..1.0).contains(&self.momentum), "momentum", self.momentum, "0 to below 1");
        let possible = !self.nesterov || self.momentum > 0.0;
        problems.require(possible, "nesterov", true, "false unless momentum is above 0");
        problems.range("weight_decay", self.weight_decay, 0.0..=1.0);
        problems.at_least_one("validation_images", self.validation_images);
        for (key, rates) in
            [("learning_rates", &self.learning_rates), ("finetune_learning_rates", &self.finetune_learning_rates)]
        {
            let right = (1..=100).contains(&rates.len()) && rates.iter().all(|rate| *rate > 0.0 && *rate <= 1e4);
            problems.require(right, key, &rates[..], "a list of 1 to 100 numbers above 0, at most 10000");
        }
        let epochs = &self.finetune_epochs[..];
        let right = (1..=100).contains(&epochs.len()) && epochs.iter().all(|n| (1..=1_000_000).contains(n));
        problems.require(right, "finetune_epochs", epochs, "a list of 1 to 100 numbers from 1 to 1000000");
    }

    fn no_effect(&self) -> Keys {
        Keys::All
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_papers_and_every_bad_value_is_named() {
        let config = LinearEvalConfig::default();
        assert_eq!(config.problems(), []);
        assert_eq!((config.cached(95), config.cached(96)), (true, false));
        assert_eq!(LinearEvalConfig::scaled(0.4, 1024), 1.6);
        let bad = LinearEvalConfig {
            epochs: 0,
            batch_size: 0,
            learning_rates: vec![],
            momentum: 0.0,
            weight_decay: -1.0,
            validation_images: 0,
            finetune_epochs: vec![0],
            finetune_learning_rates: vec![f64::NAN],
            ..config
        };
        let keys: Vec<String> = bad.problems().into_iter().map(|(key, _)| key).collect();
        let expected = [
            "epochs",
            "batch_size",
            "nesterov",
            "weight_decay",
            "validation_images",
            "learning_rates",
            "finetune_learning_rates",
            "finetune_epochs",
        ];
        assert_eq!(keys, expected);
    }
}
