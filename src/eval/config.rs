//! Section `linear_eval` of a config: the paper's protocols (arXiv 2006.07733, appendix C.1), all of it configurable.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Protocol;
use crate::augment::Size;
use crate::section::{Keys, Problems, Section, Words, distinct};

/// `linear_eval.features`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// `linear_eval.solver`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// L-BFGS for cached features, SGD for augmented ones.
    #[default]
    Auto,
    /// Logistic regression with an L2 penalty, solved by L-BFGS in f64: the paper's protocol for transfer.
    Lbfgs,
    /// SGD: the paper's protocol for ImageNet.
    Sgd,
}

/// `linear_eval.class_weights`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClassWeights {
    /// Every image counts the same.
    #[default]
    None,
    /// Every class counts the same, in training and in the choice of the setting.
    Balanced,
}

/// Section `linear_eval`. Learning rates are for 256 images a step and scaled by `batch_size / 256`, as in DeepMind's
/// code; they decay to 0 along half a cosine, without warmup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LinearEvalConfig {
    /// auto, cached or augmented. Default auto.
    pub features: FeatureMode,
    /// auto, lbfgs or sgd. Default auto: lbfgs for cached features, sgd for augmented ones.
    pub solver: Solver,
    /// none or balanced. Default none.
    pub class_weights: ClassWeights,
    /// L2 penalties that lbfgs tries: of half the sum of squared weights beside the sum of cross-entropies, so
    /// scikit-learn's C is their inverse. Default null: the paper's 45 from 1e-6 to 1e5, logarithmically spaced.
    pub penalties: Option<Vec<f64>>,
    /// Passes of SGD over the training images. Default 80.
    pub epochs: u64,
    /// Images per step, all of them if there are fewer. Default 1024.
    pub batch_size: usize,
    /// Learning rates per 256 images, tried side by side; the best on held-out training images is tested. Default [0.4, 0.3, 0.2, 0.1, 0.05].
    #[serde(deserialize_with = "distinct")]
    pub learning_rates: Vec<f64>,
    /// Momentum of SGD, 0 to below 1. Default 0.9.
    pub momentum: f64,
    /// Nesterov momentum. Default true.
    pub nesterov: bool,
    /// L2 penalty. Default 0.
    pub weight_decay: f64,
    /// Training images held out, stratified, to choose the learning rate or penalty: at most a tenth of them. None are
    /// held out if there is nothing to choose; lbfgs chooses by five-fold cross-validation if there are at most
    /// 10000 training images. Default 10009.
    pub validation_images: usize,
    /// Train the chosen setting once more, on the held-out images too, before the test. Never with
    /// `--fraction`, which limits the labels. Default null: with cached features.
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
            solver: Solver::Auto,
            class_weights: ClassWeights::None,
            penalties: None,
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
    /// Whether features of images of this size are computed once.
    pub fn cached(&self, size: Size) -> bool {
        match self.features {
            FeatureMode::Auto => size.short() < 96 || self.solver == Solver::Lbfgs,
            mode => mode == FeatureMode::Cached,
        }
    }

    /// How linear classifiers are trained on images of this size.
    pub fn protocol(&self, size: Size) -> Protocol {
        match (self.cached(size), self.solver) {
            (true, Solver::Auto | Solver::Lbfgs) => Protocol::Lbfgs,
            _ => Protocol::Sgd,
        }
    }

    /// The penalties to try, the strongest first, each once.
    pub fn penalties(&self) -> Vec<f64> {
        let paper = || (0..45).map(|i| 10f64.powf(11.0 * i as f64 / 44.0 - 6.0)).collect();
        let mut penalties: Vec<f64> = self.penalties.clone().unwrap_or_else(paper);
        penalties.sort_by(|a, b| b.total_cmp(a));
        penalties.dedup();
        penalties
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
        if let Some(penalties) = &self.penalties {
            let right = (1..=100).contains(&penalties.len()) && penalties.iter().all(|p| (1e-9..=1e9).contains(p));
            problems.require(right, "penalties", &penalties[..], "null or 1 to 100 numbers from 1e-9 to 1e9");
        }
        let right = self.solver != Solver::Lbfgs || self.features != FeatureMode::Augmented;
        problems.require(right, "solver", Words("lbfgs"), "auto or sgd with features augmented");
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
        assert_eq!((config.cached(95.into()), config.cached(96.into())), (true, false));
        let penalties = config.penalties();
        assert_eq!((penalties.len(), penalties[0], penalties[44]), (45, 1e5, 1e-6));
        assert!((penalties[24] - 0.1).abs() < 1e-15, "{penalties:?}");
        let given = LinearEvalConfig { penalties: Some(vec![1.0, 2.0, 1.0]), ..config.clone() };
        assert_eq!(given.penalties(), [2.0, 1.0]);
        let lbfgs = LinearEvalConfig { solver: Solver::Lbfgs, ..config.clone() };
        let augmented = LinearEvalConfig { features: FeatureMode::Augmented, ..config.clone() };
        let sgd = LinearEvalConfig { solver: Solver::Sgd, ..config.clone() };
        let protocols =
            [&config, &lbfgs, &augmented, &sgd].map(|config| [95, 96].map(|size: usize| config.protocol(size.into())));
        let [l, s] = [Protocol::Lbfgs, Protocol::Sgd];
        assert_eq!(protocols, [[l, s], [l, l], [s, s], [s, s]]);
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
            penalties: Some(vec![0.0]),
            solver: Solver::Lbfgs,
            features: FeatureMode::Augmented,
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
            "penalties",
            "solver",
            "finetune_epochs",
        ];
        assert_eq!(keys, expected);
    }
}
