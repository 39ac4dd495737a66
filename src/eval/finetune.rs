//! Semi-supervised evaluation (arXiv 2006.07733, appendix C.1): the whole network is trained on few labels.

use std::time::Instant;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use super::features::{Images, View, stream};
use super::linear::{Outcome, Protocol, Task, Trial, best};
use super::{Accuracy, Encoder, Represent};
use crate::model::{self, EncoderConfig, Linear, Params};
use crate::optim::{Algorithm, Optimizer, OptimizerConfig};
use native::Autocast;

/// An encoder with a linear classifier, both trained.
struct Tuned {
    net: model::Encoder,
    head: Linear,
    params: Params,
    device: Device,
    bf16: bool,
}

impl Tuned {
    /// A copy of `encoder` under a new classifier.
    fn new(encoder: &Encoder, classes: i64, seed: u64) -> Self {
        let mut params = Params::new(encoder.device, Some(seed));
        let whole = EncoderConfig { drop_path: 0.0, freeze_patch_projection: false, ..encoder.config };
        let net = model::Encoder::new(params.root(), &whole);
        let head = Linear::new(params.root().sub("fc"), net.feature_dim, classes, true);
        let _no_grad = tch::no_grad_guard();
        let own = params.parameters.iter().chain(&params.buffers).filter(|n| !n.name.starts_with("fc."));
        for (to, from) in own.zip(encoder.params.parameters.iter().chain(&encoder.params.buffers)) {
            debug_assert_eq!(to.name, from.name);
            to.tensor.shallow_clone().copy_(&from.tensor);
        }
        if encoder.channels_last {
            params.to_channels_last();
        }
        Self { net, head, params, device: encoder.device, bf16: encoder.bf16 }
    }

    /// Scores `[N, C]` in fp32.
    fn scores(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let features = {
            let _autocast = Autocast::bf16(self.device, self.bf16)?;
            self.net.forward(images, train)
        };
        Ok(self.head.forward(&features.f_to_kind(Kind::Float)?))
    }
}

/// Images instead of features, for a network that is trained.
struct Identity(Device);

impl Represent for Identity {
    fn represent(&self, images: &Tensor) -> Result<Tensor> {
        Ok(images.shallow_clone())
    }

    fn device(&self) -> Device {
        self.0
    }

    fn feature_dim(&self) -> i64 {
        0
    }
}

impl Task {
    /// Trains encoder and classifier together for every learning rate and length, one after the other, and tests the
    /// best on the held-out images. BatchNorm is trained too.
    /// # Errors
    /// Unreadable images if the options make them fatal; a signal; divergence.
    pub fn finetune(&self, encoder: &Encoder) -> Result<Outcome> {
        let config = &self.config;
        let settings: Vec<(u64, f64)> = (config.finetune_epochs.iter())
            .flat_map(|&epochs| config.finetune_learning_rates.iter().map(move |&rate| (epochs, rate)))
            .collect();
        let mut training_seconds = 0.0;
        let (mut trials, mut kept, mut batch_size) = (Vec::new(), None, 0);
        for (at, &(epochs, rate)) in settings.iter().enumerate() {
            let what = format!("fine-tuning {} of {}, learning rate {rate}: images", at + 1, settings.len());
            let tuned = Tuned::new(encoder, self.classes.count(), config.seed);
            let started = Instant::now();
            batch_size = self.tune(&tuned, epochs, rate, &what)?;
            training_seconds += started.elapsed().as_secs_f64();
            let mut trial = Trial::sgd(rate, batch_size, epochs);
            if !self.split.validation.is_empty() {
                let accuracy = self.judge_tuned(&tuned, false)?;
                trial.judged(&accuracy);
                log::info!(
                    "{epochs} epochs, learning rate {rate}: {:.2} % on the held-out images",
                    100.0 * accuracy.top1
                );
            }
            trials.push(trial);
            if best(&trials, config.class_weights).ok() == Some(at) {
                kept = Some(tuned);
            }
        }
        let chosen = best(&trials, config.class_weights)?;
        // The best trial's network was kept when it was trained, as no later one was better.
        let tuned = kept.ok_or_else(|| anyhow::anyhow!("linear_eval: nothing to test"))?;
        let accuracy = self.judge_tuned(&tuned, true)?;
        ensure!(accuracy.loss.is_finite(), "linear_eval: the network diverged; lower finetune_learning_rates");
        let tested = accuracy.per_class.iter().map(|(images, _)| *images as usize).sum();
        let images = [self.split.train.len(), self.split.validation.len(), tested];
        let (protocol, batch_size) = (Protocol::Finetune, Some(batch_size));
        Ok(Outcome { protocol, trials, chosen, accuracy, images, batch_size, refit: false, training_seconds })
    }

    fn tune(&self, tuned: &Tuned, epochs: u64, rate: f64, what: &str) -> Result<usize> {
        let config = &self.config;
        let sgd = OptimizerConfig {
            name: Algorithm::Sgd,
            momentum: config.momentum,
            nesterov: config.nesterov,
            weight_decay: config.weight_decay,
            ..OptimizerConfig::default()
        };
        let mut optimizer = Optimizer::new(&sgd, &tuned.params);
        let classes = self.classes_of(&self.split.train, tuned.device);
        let weights = self.class_weights(&classes).map(|weights| weights.to_kind(Kind::Float));
        self.crops(&self.split.train, epochs, &Identity(tuned.device), what, |step| {
            optimizer.zero_grad()?;
            let classes = self.numbers(step.labels, tuned.device);
            let mut start = 0;
            for images in step.micro_batches {
                let rows = images.size()[0];
                let own = classes.narrow(0, start, rows);
                let scores = tuned.scores(images, true)?;
                let loss = match &weights {
                    None => scores.cross_entropy_for_logits(&own),
                    Some(weights) => {
                        let losses = -scores.log_softmax(1, Kind::Float).gather(1, &own.unsqueeze(1), false);
                        (losses.squeeze_dim(1) * weights.index_select(0, &own)).mean(Kind::Float)
                    }
                };
                // Gradients sum to that of the mean over the step.
                (loss * (rows as f64 / step.labels.len() as f64)).f_backward()?;
                start += rows;
            }
            let peak = super::LinearEvalConfig::scaled(rate, step.batch_size);
            optimizer.step(peak * step.factor, step.number)
        })
    }

    fn judge_tuned(&self, tuned: &Tuned, test: bool) -> Result<Accuracy> {
        let _no_grad = tch::no_grad_guard();
        let (set, indices, what) = match test {
            true => (&self.test, self.test_images(), "test images"),
            false => (&self.train, self.split.validation.clone(), "held-out images"),
        };
        let (bar, mut done) = (self.options.bar(what, indices.len()), 0);
        let mut tally = self.tally(1, tuned.device);
        let images = Images { dataset: set, indices, view: View::Plain, augment: &self.augment };
        stream(&Identity(tuned.device), images, &self.options, |batch| {
            if !batch.labels.is_empty() {
                let scores = tuned.scores(&batch.features, false)?.unsqueeze(1);
                tally.add(&scores, &self.numbers(&batch.labels, tuned.device))?;
            }
            done += batch.labels.len();
            bar.iter().for_each(|bar| bar.set(done));
            Ok(())
        })?;
        Ok(tally.accuracies()?.swap_remove(0))
    }
}
