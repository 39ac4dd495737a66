//! Linear classifiers trained by SGD (arXiv 2006.07733, appendix C.1), one for each learning rate, side by side.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use tch::{Device, Tensor};

use super::features::{Images, View, stream};
use super::linear::{Outcome, Protocol, Rows, Task, Trial, best};
use super::{ExtractOptions, LinearEvalConfig, Probes, Represent};
use crate::data::loader::sampler::Sampler;
use crate::optim::learning_rate;

/// Number of updates below which SGD has rarely converged.
const FEW_UPDATES: u64 = 1000;

impl Task {
    /// Trains a classifier for every learning rate and tests the best of them.
    pub(super) fn sgd(&self, encoder: &impl Represent) -> Result<Outcome> {
        let (config, split) = (&self.config, &self.split);
        let cached = config.cached(self.augment.size);
        let rates = &config.learning_rates;
        let validation = self.rows(encoder, &self.train, &split.validation, "features of the held-out images")?;
        let train = match cached {
            true => Some(self.rows(encoder, &self.train, &split.train, "features of the training images")?),
            false => None,
        };
        self.warn_of_few_updates(train.as_ref().map_or(split.train.len(), Rows::len));
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
        let mut trials: Vec<Trial> = rates.iter().map(|&rate| Trial::sgd(rate, batch_size, config.epochs)).collect();
        if validation.len() > 0 {
            let accuracies = self.accuracies(&probes, &validation)?;
            trials.iter_mut().zip(&accuracies).for_each(|(trial, accuracy)| trial.judged(accuracy));
        }
        let chosen = best(&trials, config.class_weights)?;
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
        let accuracy = self.accuracies(&probes, &test)?.swap_remove(tested);
        ensure!(accuracy.loss.is_finite(), "linear_eval: the classifier diverged; lower the learning rates");
        let images = [count, validation.len(), test.len()];
        let batch_size = Some(batch_size);
        Ok(Outcome { protocol: Protocol::Sgd, trials, chosen, accuracy, images, batch_size, refit, training_seconds })
    }

    fn warn_of_few_updates(&self, images: usize) {
        let epochs = self.config.epochs;
        let updates = epochs * (images / self.config.batch_size.min(images).max(1)) as u64;
        if updates < FEW_UPDATES && self.options.place().0 == 0 {
            log::warn!(
                "linear_eval: {updates} SGD updates ({epochs} epochs of {images} images) are too few to converge, so that \
                 accuracy may be several points low; raise linear_eval.epochs, lower linear_eval.batch_size, or set \
                 linear_eval.solver=lbfgs, which uses cached features"
            );
        }
    }

    fn accuracies(&self, probes: &Probes, rows: &Rows) -> Result<Vec<super::Accuracy>> {
        let mut tally = self.tally(probes.count(), rows.features.device());
        self.judge(&mut tally, rows, |features| probes.scores(features))?;
        tally.accuracies()
    }

    /// Classifiers for these images.
    fn probes(&self, encoder_dim: i64, rates: &[f64], batch: usize, classes: &Tensor) -> Probes {
        let rates: Vec<f64> = rates.iter().map(|&rate| LinearEvalConfig::scaled(rate, batch)).collect();
        let probes = Probes::new(encoder_dim, self.classes.count(), &rates, &self.config, classes.device());
        probes.with_class_weights(self.class_weights(classes))
    }

    /// Class numbers of training images, on `device`.
    pub(super) fn classes_of(&self, images: &[u32], device: Device) -> Tensor {
        let label = |&image: &u32| self.train.label(image as usize).unwrap_or(-1);
        self.numbers(&images.iter().map(label).collect::<Vec<_>>(), device)
    }

    /// Classifiers trained on features in memory, and the images of a step. With several processes each
    /// trains the same ones on all features: that is cheap compared to extracting them, and all have the result.
    fn fit_cached(&self, rows: &Rows, rates: &[f64]) -> Result<(Probes, usize)> {
        let config = &self.config;
        let batch = config.batch_size.min(rows.len());
        let mut probes = self.probes(rows.features.size()[1], rates, batch, &rows.classes);
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
        let classes = self.classes_of(images, device);
        let mut probes = None;
        let batch = self.crops(images, self.config.epochs, encoder, "training classifiers: images", |part| {
            let probes =
                probes.get_or_insert_with(|| self.probes(encoder.feature_dim(), rates, part.batch_size, &classes));
            let features = Tensor::f_cat(part.micro_batches, 0)?;
            probes.step(&features, &self.numbers(part.labels, device), part.factor)
        })?;
        match probes {
            Some(probes) => Ok((probes, batch)),
            None => bail!("none of the training images could be read"),
        }
    }

    /// Passes the output of `encoder` on random crops of the images at `train` to `each`, one step at a time, for some
    /// epochs. Returns the images per step: `batch_size`, or a little less if forward passes of equal size do not add
    /// up to it.
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
}

/// The images of one optimizer step.
pub(super) struct Step<'a> {
    /// From 0.
    pub number: u64,
    /// Factor of the peak learning rate.
    pub factor: f64,
    /// Images per full step.
    pub batch_size: usize,
    /// Outputs of the encoder for the crops, each `[n, ...]`.
    pub micro_batches: &'a [Tensor],
    /// Labels of all of them.
    pub labels: &'a [i64],
}
