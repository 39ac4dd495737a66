//! Linear evaluation: linear classifiers on a frozen encoder (arXiv 2006.07733, appendix C.1), one for each learning
//! rate, trained side by side; the best on held-out training images is tested, once.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use tch::{Device, Tensor};

use super::features::{Images, View, stream};
use super::{Accuracy, Classes, ExtractOptions, LinearEvalConfig, Probes, Represent, Tally, extract, stratified};
use crate::augment::AugmentConfig;
use crate::data::Dataset;
use crate::data::loader::sampler::Sampler;
use crate::optim::learning_rate;

/// What is learnt and tested, whatever the encoder.
pub struct Task {
    /// Labelled images to train on.
    pub train: Arc<dyn Dataset>,
    /// Labelled images to test on.
    pub test: Arc<dyn Dataset>,
    /// The classes of both.
    pub classes: Classes,
    /// Which of the training images serve for what.
    pub split: Split,
    /// How images are brought to size.
    pub augment: AugmentConfig,
    /// Section `linear_eval`.
    pub config: LinearEvalConfig,
    /// Batches, threads, bad images, signals.
    pub options: ExtractOptions,
}

/// Parts of the training images; positions in the set, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Trained on.
    pub train: Vec<u32>,
    /// Held out to choose among trials; none where there is one trial.
    pub validation: Vec<u32>,
    /// Share of the labels that is used, where not all are.
    pub fraction: Option<f64>,
}

impl Split {
    /// Draws them, stratified and seeded. With a `fraction` of every class for training the held-out images come from
    /// the rest of the set, as in the paper, else from the whole of it.
    /// # Errors
    /// Several `trials`, and too few images to hold any out.
    pub fn new(set: &dyn Dataset, config: &LinearEvalConfig, fraction: Option<f64>, trials: usize) -> Result<Self> {
        let all: Vec<u32> = (0..set.len() as u32).collect();
        let some = |share: f64| move |n: usize| ((n as f64 * share).round() as usize).max(1);
        let (train, pool) = match fraction {
            Some(fraction) => stratified(set, &all, (config.seed, 1), some(fraction)),
            None => (all.clone(), all),
        };
        if trials < 2 {
            return Ok(Self { train, validation: Vec::new(), fraction });
        }
        let share = config.validation_images.min(set.len() / 10) as f64 / pool.len().max(1) as f64;
        // A class keeps an image to be trained on.
        let take = |n: usize| ((n as f64 * share).round() as usize).min(n - usize::from(fraction.is_none()));
        let (validation, rest) = stratified(set, &pool, (config.seed, 2), take);
        if let (Some(fraction), true) = (fraction, validation.is_empty()) {
            bail!(
                "--fraction: found {fraction}, which leaves {} of {} images to choose from {trials} settings by; lower it, \
                 or give one learning rate (--set linear_eval.learning_rates=[0.2])",
                pool.len(),
                set.len()
            );
        }
        ensure!(
            !validation.is_empty(),
            "linear_eval: found {trials} settings to choose from, but {} training images are too few to hold some out; \
             give one learning rate (--set linear_eval.learning_rates=[0.2])",
            set.len()
        );
        Ok(Self { train: if fraction.is_some() { train } else { rest }, validation, fraction })
    }
}

/// One setting that was tried.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Trial {
    /// For 256 images a step.
    pub learning_rate: f64,
    /// As it was used, for the batch.
    pub peak_learning_rate: f64,
    /// Passes over the training images.
    pub epochs: u64,
    /// Accuracy on the held-out images, 0 to 1; none where there are none.
    pub validation_top1: Option<f64>,
    /// Cross-entropy on them; none too where it is not finite.
    pub validation_loss: Option<f64>,
}

impl Trial {
    pub(super) fn new(learning_rate: f64, batch: usize, epochs: u64) -> Self {
        let peak_learning_rate = LinearEvalConfig::scaled(learning_rate, batch);
        Self { learning_rate, peak_learning_rate, epochs, validation_top1: None, validation_loss: None }
    }

    pub(super) fn judged(&mut self, accuracy: &Accuracy) {
        self.validation_loss = Some(accuracy.loss).filter(|loss| loss.is_finite());
        self.validation_top1 = Some(accuracy.top1);
    }
}

/// The trial with the largest held-out accuracy, of equal ones that with the lower loss, which must be finite.
pub(super) fn best(trials: &[Trial]) -> Result<usize> {
    if trials.len() == 1 {
        return Ok(0);
    }
    let key = |trial: &Trial| Some((trial.validation_top1?, -trial.validation_loss?));
    let sound = trials.iter().enumerate().filter_map(|(at, trial)| Some((key(trial)?, at)));
    match sound.max_by(|(a, i), (b, j)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(j.cmp(i))) {
        Some((_, at)) => Ok(at),
        None => bail!("linear_eval: every classifier diverged; lower the learning rates"),
    }
}

/// What the evaluation came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Everything that was tried.
    pub trials: Vec<Trial>,
    /// Which of them was tested.
    pub chosen: usize,
    /// On the test images.
    pub accuracy: Accuracy,
    /// Readable images: trained on by the tested classifier, held out, tested.
    pub images: [usize; 3],
    /// Images per step.
    pub batch_size: usize,
    /// The chosen setting was trained again, on the held-out images too.
    pub refit: bool,
    /// Seconds that training took, features in memory left out.
    pub training_seconds: f64,
}

/// Features `[N, D]` and class numbers `[N]` on one device.
struct Rows {
    features: Tensor,
    classes: Tensor,
}

impl Rows {
    fn len(&self) -> usize {
        self.classes.size()[0] as usize
    }
}

impl Task {
    /// Numbers of the classes of labels, on `device`.
    pub(super) fn numbers(&self, labels: &[i64], device: Device) -> Tensor {
        let numbers: Vec<i64> = labels.iter().map(|&label| self.classes.number(label)).collect();
        Tensor::from_slice(&numbers).to_device(device)
    }

    fn rows(&self, encoder: &impl Represent, set: &Arc<dyn Dataset>, images: &[u32], what: &str) -> Result<Rows> {
        let found = extract(encoder, set, images.to_vec(), &self.augment, &self.options, what)?;
        ensure!(images.is_empty() || !found.labels.is_empty(), "none of the images could be read: {what}");
        Ok(Rows { classes: self.numbers(&found.labels, found.values.device()), features: found.values })
    }

    /// All positions of the test images.
    pub(super) fn test_images(&self) -> Vec<u32> {
        (0..self.test.len() as u32).collect()
    }

    /// Trains and tests on `encoder`, with features cached or, under augmentation, computed anew.
    /// # Errors
    /// Unreadable images where these are fatal; a signal; divergence; what libtorch says.
    pub fn linear(&self, encoder: &impl Represent) -> Result<Outcome> {
        let (config, split) = (&self.config, &self.split);
        let cached = config.cached(self.augment.size);
        let rates = &config.learning_rates;
        let validation = self.rows(encoder, &self.train, &split.validation, "features of the held-out images")?;
        let train = match cached {
            true => Some(self.rows(encoder, &self.train, &split.train, "features of the training images")?),
            false => None,
        };
        let mut training_seconds = 0.0;
        let mut fit = |rates: &[f64], rows: &Option<Rows>, images: &[u32]| {
            let started = Instant::now();
            let fitted = match rows {
                Some(rows) => self.fit_cached(rows, rates),
                None => self.fit_augmented(encoder, images, rates),
            };
            training_seconds += started.elapsed().as_secs_f64();
            fitted
        };
        let (mut probes, mut batch_size) = fit(rates, &train, &split.train)?;
        let mut trials: Vec<Trial> = rates.iter().map(|&rate| Trial::new(rate, batch_size, config.epochs)).collect();
        if validation.len() > 0 {
            let accuracies = self.judge(&probes, &validation)?;
            trials.iter_mut().zip(&accuracies).for_each(|(trial, accuracy)| trial.judged(accuracy));
        }
        let chosen = best(&trials)?;
        let mut count = train.as_ref().map_or(split.train.len(), Rows::len);
        let refit = validation.len() > 0 && split.fraction.is_none() && config.refit.unwrap_or(cached);
        let mut tested = chosen;
        if refit {
            count += validation.len();
            let both = |train: Rows| Rows {
                features: Tensor::cat(&[&train.features, &validation.features], 0),
                classes: Tensor::cat(&[&train.classes, &validation.classes], 0),
            };
            let mut images = [&split.train[..], &split.validation].concat();
            images.sort_unstable();
            (probes, batch_size) = fit(&[rates[chosen]], &train.map(both), &images)?;
            tested = 0;
        }
        let test = self.rows(encoder, &self.test, &self.test_images(), "features of the test images")?;
        let accuracy = self.judge(&probes, &test)?.swap_remove(tested);
        ensure!(accuracy.loss.is_finite(), "linear_eval: the classifier diverged; lower the learning rates");
        let images = [count, validation.len(), test.len()];
        Ok(Outcome { trials, chosen, accuracy, images, batch_size, refit, training_seconds })
    }

    fn probes(&self, encoder_dim: i64, rates: &[f64], batch: usize, device: Device) -> Probes {
        let rates: Vec<f64> = rates.iter().map(|&rate| LinearEvalConfig::scaled(rate, batch)).collect();
        Probes::new(encoder_dim, self.classes.count(), &rates, &self.config, device)
    }

    /// Classifiers trained on features in memory, and the images of a step. Every one of several processes trains the
    /// same ones on all features: next to their computation it is little work, and all have the result.
    fn fit_cached(&self, rows: &Rows, rates: &[f64]) -> Result<(Probes, usize)> {
        let config = &self.config;
        let batch = config.batch_size.min(rows.len());
        let mut probes = self.probes(rows.features.size()[1], rates, batch, rows.features.device());
        let sampler = Sampler::new(rows.len(), batch, 1, config.seed)?;
        let steps = rows.len() / batch;
        let total = config.epochs * steps as u64;
        let bar = self.options.bar("training classifiers: epochs", config.epochs as usize);
        for epoch in 0..config.epochs {
            let order: Vec<i64> = sampler.epoch_order(epoch).into_iter().map(i64::from).collect();
            let order = Tensor::from_slice(&order).to_device(rows.features.device());
            for step in 0..steps {
                self.options.check()?;
                let index = order.narrow(0, (step * batch) as i64, batch as i64);
                let factor = learning_rate(epoch * steps as u64 + step as u64, 0, total, 1.0, 0.0);
                let (x, y) = (rows.features.index_select(0, &index), rows.classes.index_select(0, &index));
                probes.step(&x, &y, factor)?;
            }
            bar.iter().for_each(|bar| bar.set(epoch as usize + 1));
        }
        Ok((probes, batch))
    }

    /// The same on random crops, each batch going through the encoder once for all classifiers. Several processes share
    /// the encoding, where the time goes, and train the same classifiers on all of it.
    fn fit_augmented(&self, encoder: &impl Represent, images: &[u32], rates: &[f64]) -> Result<(Probes, usize)> {
        let device = encoder.device();
        let mut probes = None;
        let batch = self.crops(images, self.config.epochs, encoder, "training classifiers: images", |part| {
            let probes =
                probes.get_or_insert_with(|| self.probes(encoder.feature_dim(), rates, part.batch_size, device));
            let features = Tensor::f_cat(part.micro_batches, 0)?;
            probes.step(&features, &self.numbers(part.labels, device), part.factor)
        })?;
        match probes {
            Some(probes) => Ok((probes, batch)),
            None => bail!("none of the training images could be read"),
        }
    }

    /// Goes through what `encoder` makes of random crops of the images at `train` for some epochs, a step's worth at a
    /// time to `each`. Returns the images of a step: `batch_size`, or a little less where forward passes of equal size
    /// would not add up to it.
    pub(super) fn crops(
        &self,
        train: &[u32],
        epochs: u64,
        encoder: &impl Represent,
        what: &str,
        mut each: impl FnMut(Step) -> Result<()>,
    ) -> Result<usize> {
        let (wanted, seed) = (self.config.batch_size.min(train.len()), self.config.seed);
        let parts = wanted.div_ceil(self.options.batch_size);
        let options = ExtractOptions { batch_size: wanted / parts, ..self.options.clone() };
        let batch_size = options.batch_size * parts;
        let sampler = Sampler::new(train.len(), batch_size, 1, seed)?;
        let steps = train.len() / batch_size;
        let total = epochs * steps as u64;
        let bar = self.options.bar(what, total as usize * batch_size);
        for epoch in 0..epochs {
            let order = sampler.epoch_order(epoch).into_iter().take(steps * batch_size);
            let indices = order.map(|at| train[at as usize]).collect();
            let (dataset, augment, view) = (&self.train, &self.augment, View::Crop { seed, epoch });
            let (mut number, mut seen) = (epoch * steps as u64, 0);
            let (mut micro_batches, mut labels) = (Vec::with_capacity(parts), Vec::with_capacity(batch_size));
            stream(encoder, Images { dataset, indices, view, augment }, &options, |batch| {
                seen += 1;
                if !batch.labels.is_empty() {
                    micro_batches.push(batch.features);
                    labels.extend(batch.labels);
                }
                if seen % parts > 0 {
                    return Ok(());
                }
                if !labels.is_empty() {
                    let factor = learning_rate(number, 0, total, 1.0, 0.0);
                    each(Step { number, factor, batch_size, micro_batches: &micro_batches, labels: &labels })?;
                }
                micro_batches.clear();
                labels.clear();
                number += 1;
                bar.iter().for_each(|bar| bar.set(number as usize * batch_size));
                Ok(())
            })?;
        }
        Ok(batch_size)
    }

    fn judge(&self, probes: &Probes, rows: &Rows) -> Result<Vec<Accuracy>> {
        let _no_grad = tch::no_grad_guard();
        let classifiers = probes.count();
        let mut tally = Tally::new(self.classes.count(), classifiers, rows.features.device());
        for start in (0..rows.len()).step_by(1024) {
            let length = (rows.len() - start).min(1024) as i64;
            let part = |t: &Tensor| t.narrow(0, start as i64, length);
            tally.add(&probes.scores(&part(&rows.features))?, &part(&rows.classes))?;
        }
        tally.accuracies()
    }
}

/// The images of one optimizer step.
pub(super) struct Step<'a> {
    /// From 0.
    pub number: u64,
    /// Factor of the peak learning rate.
    pub factor: f64,
    /// Images of a full step.
    pub batch_size: usize,
    /// What the encoder made of the crops, each `[n, ...]`.
    pub micro_batches: &'a [Tensor],
    /// Labels of all of them.
    pub labels: &'a [i64],
}

#[cfg(test)]
mod tests {
    use super::super::labels::tests::Labels;
    use super::*;

    #[test]
    fn the_split_is_the_papers() -> Result<()> {
        let set = Labels((0..5000).map(|i| i % 10).collect(), vec![]);
        let config = LinearEvalConfig::default();
        let sizes = |config: &LinearEvalConfig, fraction, trials| -> Result<(usize, usize)> {
            let split = Split::new(&set, config, fraction, trials)?;
            let both: std::collections::BTreeSet<u32> = split.train.iter().chain(&split.validation).copied().collect();
            assert_eq!(both.len(), split.train.len() + split.validation.len(), "no image serves for both");
            Ok((split.train.len(), split.validation.len()))
        };
        assert_eq!(sizes(&config, None, 5)?, (4500, 500)); // a tenth at most
        assert_eq!(sizes(&LinearEvalConfig { validation_images: 50, ..config.clone() }, None, 5)?, (4950, 50));
        assert_eq!(sizes(&config, None, 1)?, (5000, 0)); // nothing to choose
        // The labels of the fraction are all trained on, the held-out ones are others.
        assert_eq!(sizes(&config, Some(0.01), 5)?, (50, 500));
        assert_eq!(sizes(&config, Some(0.1), 1)?, (500, 0));
        let few = Labels(vec![0, 1, 0, 1], vec![]);
        let error = Split::new(&few, &config, None, 5).expect_err("too few").to_string();
        assert!(error.contains("found 5 settings to choose from, but 4 training images"), "{error}");
        Ok(())
    }

    #[test]
    fn the_best_trial_has_a_finite_loss() -> Result<()> {
        let trial = |top1, loss: f64| {
            let mut trial = Trial::new(0.1, 256, 1);
            trial.judged(&Accuracy { top1, top5: 1.0, loss, per_class: vec![] });
            trial
        };
        assert_eq!(best(&[trial(0.5, 1.0), trial(0.9, f64::NAN), trial(0.6, 2.0), trial(0.6, 1.0)])?, 3);
        assert_eq!(best(&[trial(0.5, 1.0), trial(0.5, 1.0)])?, 0);
        assert!(best(&[trial(0.9, f64::NAN), trial(0.9, f64::INFINITY)]).is_err());
        assert_eq!(best(&[Trial::new(0.1, 256, 1)])?, 0);
        Ok(())
    }
}
