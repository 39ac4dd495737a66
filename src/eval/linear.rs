//! Linear evaluation: linear classifiers on a frozen encoder (arXiv 2006.07733, appendices C.1 and D.2), one for each
//! setting of a grid; the best on held-out training images is tested, once.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use tch::{Device, Kind, Tensor};

use super::{Accuracy, ClassWeights, Classes, ExtractOptions, LinearEvalConfig, Represent, Tally, extract, stratified};
use crate::augment::AugmentConfig;
use crate::data::Dataset;

/// Up to this many labels the penalty is chosen by cross-validation, since a tenth of them would be too few.
const CROSS_VALIDATED: usize = 10_000;
/// Folds of cross-validation.
pub const FOLDS: usize = 5;

/// An evaluation's data and settings, independent of the encoder.
pub struct Task {
    /// Labeled images to train on.
    pub train: Arc<dyn Dataset>,
    /// Labeled images to test on.
    pub test: Arc<dyn Dataset>,
    /// The classes of both.
    pub classes: Classes,
    /// The split of the training images.
    pub split: Split,
    /// How images are resized.
    pub augment: AugmentConfig,
    /// Section `linear_eval`.
    pub config: LinearEvalConfig,
    /// Batches, threads, bad images, signals.
    pub options: ExtractOptions,
    /// Threads of libtorch for L-BFGS, whatever the number of processes: sums depend on it in the last digits.
    pub threads: usize,
}

/// How classifiers are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Logistic regression on features in memory, one for each penalty.
    Lbfgs,
    /// SGD on features, one for each learning rate.
    Sgd,
    /// SGD on the encoder, too, one for each learning rate and length.
    Finetune,
}

impl Protocol {
    /// Settings to choose from.
    fn trials(self, config: &LinearEvalConfig) -> usize {
        match self {
            Self::Lbfgs => config.penalties().len(),
            Self::Sgd => config.learning_rates.len(),
            Self::Finetune => config.finetune_epochs.len() * config.finetune_learning_rates.len(),
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Lbfgs => "give one penalty (--set linear_eval.penalties=[1])",
            Self::Sgd => "give one learning rate (--set linear_eval.learning_rates=[0.2])",
            Self::Finetune => {
                "give one setting (--set linear_eval.finetune_epochs=[30] --set linear_eval.finetune_learning_rates=[0.02])"
            }
        }
    }
}

/// A split of the training images; positions in the set, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Trained on.
    pub train: Vec<u32>,
    /// Held out to choose among trials; empty with a single trial or cross-validation.
    pub validation: Vec<u32>,
    /// The trial is chosen by cross-validation.
    pub cross_validated: bool,
    /// Fraction of the labels that is used, if not all are.
    pub fraction: Option<f64>,
}

impl Split {
    /// Draws them, stratified and seeded. With a `fraction` of every class for training the held-out images come from
    /// the rest of the set, as in the paper, else from the whole of it.
    /// # Errors
    /// Several trials, and too few images to hold any out.
    pub fn new(
        set: &dyn Dataset,
        config: &LinearEvalConfig,
        fraction: Option<f64>,
        protocol: Protocol,
    ) -> Result<Self> {
        let (trials, advice) = (protocol.trials(config), protocol.advice());
        let all: Vec<u32> = (0..set.len() as u32).collect();
        let some = |share: f64| move |n: usize| ((n as f64 * share).round() as usize).max(1);
        let (train, pool) = match fraction {
            Some(fraction) => stratified(set, &all, (config.seed, 1), some(fraction)),
            None => (all.clone(), all),
        };
        let few = fraction.is_none() && set.len() <= CROSS_VALIDATED && config.refit != Some(false);
        let cross_validated = trials > 1 && few && protocol == Protocol::Lbfgs;
        if trials < 2 || cross_validated {
            return Ok(Self { train, validation: Vec::new(), cross_validated, fraction });
        }
        let share = config.validation_images.min(set.len() / 10) as f64 / pool.len().max(1) as f64;
        // Every class keeps at least one training image.
        let take = |n: usize| ((n as f64 * share).round() as usize).min(n - usize::from(fraction.is_none()));
        let (validation, rest) = stratified(set, &pool, (config.seed, 2), take);
        if let (Some(fraction), true) = (fraction, validation.is_empty()) {
            bail!(
                "--fraction: found {fraction}, which leaves {} of {} images to choose from {trials} settings by; lower it, \
                 or {advice}",
                pool.len(),
                set.len()
            );
        }
        ensure!(!validation.is_empty(), "{}", too_few(trials, set.len(), advice));
        let train = if fraction.is_some() { train } else { rest };
        Ok(Self { train, validation, cross_validated, fraction })
    }
}

/// The error if nothing can be held out.
pub(super) fn too_few(trials: usize, images: usize, advice: &str) -> String {
    format!(
        "linear_eval: found {trials} settings to choose from, but {images} training images are too few to hold some \
         out; {advice}"
    )
}

/// Settings of a trial.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Setting {
    /// For SGD.
    Sgd {
        /// For 256 images a step.
        learning_rate: f64,
        /// As used, scaled for the batch.
        peak_learning_rate: f64,
        /// Passes over the training images.
        epochs: u64,
    },
    /// For logistic regression.
    Lbfgs {
        /// Of the sum of squared weights, halved; scikit-learn's C is its inverse.
        penalty: f64,
    },
}

/// A trial and its results.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Trial {
    /// The settings.
    #[serde(flatten)]
    pub setting: Setting,
    /// Accuracy on the held-out images, 0 to 1; `None` without them.
    pub validation_top1: Option<f64>,
    /// Mean over the classes of the same.
    pub validation_balanced_top1: Option<f64>,
    /// Cross-entropy on them; `None` also if not finite.
    pub validation_loss: Option<f64>,
}

impl Trial {
    pub(super) fn new(setting: Setting) -> Self {
        Self { setting, validation_top1: None, validation_balanced_top1: None, validation_loss: None }
    }

    pub(super) fn sgd(learning_rate: f64, batch: usize, epochs: u64) -> Self {
        let peak_learning_rate = LinearEvalConfig::scaled(learning_rate, batch);
        Self::new(Setting::Sgd { learning_rate, peak_learning_rate, epochs })
    }

    pub(super) fn judged(&mut self, accuracy: &Accuracy) {
        self.validation_loss = Some(accuracy.loss).filter(|loss| loss.is_finite());
        self.validation_top1 = Some(accuracy.top1);
        self.validation_balanced_top1 = Some(accuracy.balanced_top1());
    }

    /// The accuracy that trials are compared by: with balanced class weights every class counts the same.
    pub(super) fn score(&self, weights: ClassWeights) -> Option<f64> {
        match weights {
            ClassWeights::None => self.validation_top1,
            ClassWeights::Balanced => self.validation_balanced_top1,
        }
    }
}

/// The trial with the highest held-out accuracy; ties are broken by the lower loss, which must be finite.
pub(super) fn best(trials: &[Trial], weights: ClassWeights) -> Result<usize> {
    if trials.len() == 1 {
        return Ok(0);
    }
    let key = |trial: &Trial| Some((trial.score(weights)?, -trial.validation_loss?));
    let sound = trials.iter().enumerate().filter_map(|(at, trial)| Some((key(trial)?, at)));
    match sound.max_by(|(a, i), (b, j)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(j.cmp(i))) {
        Some((_, at)) => Ok(at),
        None => bail!("linear_eval: every classifier diverged; lower the learning rates"),
    }
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The protocol used.
    pub protocol: Protocol,
    /// All trials.
    pub trials: Vec<Trial>,
    /// Index of the trial that was tested.
    pub chosen: usize,
    /// On the test images.
    pub accuracy: Accuracy,
    /// Readable images: trained on by the tested classifier, held out (by cross-validation one after another), tested.
    pub images: [usize; 3],
    /// Images per step of SGD.
    pub batch_size: Option<usize>,
    /// The chosen setting was trained again, on the held-out images too.
    pub refit: bool,
    /// Seconds of training, without extracting features into memory.
    pub training_seconds: f64,
}

/// Features `[N, D]` and class numbers `[N]` on one device.
pub(super) struct Rows {
    pub features: Tensor,
    pub classes: Tensor,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.classes.size()[0] as usize
    }

    /// Those at positions `[n]` (int64).
    pub fn at(&self, positions: &Tensor) -> Self {
        Self { features: self.features.index_select(0, positions), classes: self.classes.index_select(0, positions) }
    }
}

impl Task {
    /// Class numbers of labels, on `device`.
    pub(super) fn numbers(&self, labels: &[i64], device: Device) -> Tensor {
        let numbers: Vec<i64> = labels.iter().map(|&label| self.classes.number(label)).collect();
        Tensor::from_slice(&numbers).to_device(device)
    }

    pub(super) fn rows(
        &self,
        encoder: &impl Represent,
        set: &Arc<dyn Dataset>,
        images: &[u32],
        what: &str,
    ) -> Result<Rows> {
        let found = extract(encoder, set, images.to_vec(), &self.augment, &self.options, what)?;
        ensure!(images.is_empty() || !found.labels.is_empty(), "none of the images could be read: {what}");
        Ok(Rows { classes: self.numbers(&found.labels, found.values.device()), features: found.values })
    }

    /// All positions of the test images.
    pub(super) fn test_images(&self) -> Vec<u32> {
        (0..self.test.len() as u32).collect()
    }

    /// Weight of each class `[C]` (f64), `None` for 1: scikit-learn's `class_weight="balanced"` for images of these
    /// classes.
    pub(super) fn class_weights(&self, classes: &Tensor) -> Option<Tensor> {
        (self.config.class_weights == ClassWeights::Balanced).then(|| {
            let (images, count) = (classes.size()[0] as f64, self.classes.count());
            let each = classes.bincount::<Tensor>(None, count).clamp_min(1).to_kind(Kind::Double);
            (each * count as f64).reciprocal() * images
        })
    }

    /// Trains and tests on `encoder`, with features cached or, under augmentation, computed anew.
    /// # Errors
    /// Unreadable images if the options make them fatal; a signal; divergence.
    pub fn linear(&self, encoder: &impl Represent) -> Result<Outcome> {
        match self.config.protocol(self.augment.size) {
            Protocol::Lbfgs => self.logistic_regression(encoder),
            _ => self.sgd(encoder),
        }
    }

    /// Accuracy of L classifiers with scores `[B, L, C]` on `rows`.
    pub(super) fn judge(
        &self,
        tally: &mut Tally,
        rows: &Rows,
        scores: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for start in (0..rows.len()).step_by(1024) {
            let length = (rows.len() - start).min(1024) as i64;
            let part = |t: &Tensor| t.narrow(0, start as i64, length);
            tally.add(&scores(&part(&rows.features))?, &part(&rows.classes))?;
        }
        Ok(())
    }

    /// Counters for L classifiers, at 0.
    pub(super) fn tally(&self, classifiers: i64, device: Device) -> Tally {
        Tally::new(self.classes.count(), classifiers, device)
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::tests::Labels;
    use super::*;

    #[test]
    fn the_split_is_the_papers() -> Result<()> {
        let set = Labels((0..5000).map(|i| i % 10).collect(), vec![]);
        let config = LinearEvalConfig::default();
        let one = LinearEvalConfig { learning_rates: vec![0.2], ..config.clone() };
        let sizes = |config: &LinearEvalConfig, fraction| -> Result<(usize, usize)> {
            let split = Split::new(&set, config, fraction, Protocol::Sgd)?;
            let both: std::collections::BTreeSet<u32> = split.train.iter().chain(&split.validation).copied().collect();
            assert_eq!(both.len(), split.train.len() + split.validation.len(), "no image serves for both");
            Ok((split.train.len(), split.validation.len()))
        };
        assert_eq!(sizes(&config, None)?, (4500, 500)); // a tenth at most
        assert_eq!(sizes(&LinearEvalConfig { validation_images: 50, ..config.clone() }, None)?, (4950, 50));
        assert_eq!(sizes(&one, None)?, (5000, 0)); // nothing to choose
        // All labels of the fraction are trained on, others are held out.
        assert_eq!(sizes(&config, Some(0.01))?, (50, 500));
        assert_eq!(sizes(&one, Some(0.1))?, (500, 0));
        let few = Labels(vec![0, 1, 0, 1], vec![]);
        let error = Split::new(&few, &config, None, Protocol::Sgd).expect_err("too few").to_string();
        assert!(error.contains("found 5 settings to choose from, but 4 training images"), "{error}");
        // Few labels: cross-validation holds each of them out once.
        let split = Split::new(&set, &config, None, Protocol::Lbfgs)?;
        assert_eq!((split.train.len(), split.validation.len(), split.cross_validated), (5000, 0, true));
        let kept = LinearEvalConfig { refit: Some(false), ..config.clone() };
        let many = Labels((0..11_000).map(|i| i % 10).collect(), vec![]);
        let fraction = Split::new(&set, &config, Some(0.1), Protocol::Lbfgs)?;
        for (split, sizes) in [
            (Split::new(&set, &kept, None, Protocol::Lbfgs)?, (4500, 500)),
            (Split::new(&many, &config, None, Protocol::Lbfgs)?, (9900, 1100)),
            (fraction, (500, 500)),
        ] {
            assert_eq!((split.train.len(), split.validation.len(), split.cross_validated), (sizes.0, sizes.1, false));
        }
        Ok(())
    }

    #[test]
    fn the_best_trial_has_a_finite_loss() -> Result<()> {
        let none = ClassWeights::None;
        let trial = |top1, loss: f64| {
            let mut trial = Trial::sgd(0.1, 256, 1);
            trial.judged(&Accuracy { top1, top5: 1.0, loss, per_class: vec![] });
            trial
        };
        assert_eq!(best(&[trial(0.5, 1.0), trial(0.9, f64::NAN), trial(0.6, 2.0), trial(0.6, 1.0)], none)?, 3);
        assert_eq!(best(&[trial(0.5, 1.0), trial(0.5, 1.0)], none)?, 0);
        assert!(best(&[trial(0.9, f64::NAN), trial(0.9, f64::INFINITY)], none).is_err());
        assert_eq!(best(&[Trial::sgd(0.1, 256, 1)], none)?, 0);
        Ok(())
    }
}
