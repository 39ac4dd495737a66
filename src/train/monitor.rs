//! Monitoring of a run: collapse of the projections, k-NN accuracy of the features.

use std::sync::Arc;

use anyhow::Result;

use super::MonitorConfig;
use crate::augment::AugmentConfig;
use crate::byol::Byol;
use crate::data::Dataset;
use crate::data::subset::spread;
use crate::eval::{self, ExtractOptions, Features, Interrupted};

/// Warns, once, when the projections of different images become nearly equal.
pub struct CollapseWatch {
    /// A deviation below this is a collapse.
    limit: f64,
    healthy: f64,
    /// The projections collapsed at some step.
    pub collapsed: bool,
}

impl CollapseWatch {
    /// Healthy projections spread over all D directions: a deviation of about 1/sqrt(D).
    pub fn new(config: &MonitorConfig, byol: &Byol) -> Self {
        let healthy = 1.0 / (byol.online.projection_dim as f64).sqrt();
        Self { limit: config.collapse_threshold * healthy, healthy, collapsed: false }
    }

    /// Checks the deviation after `step` steps, and logs a collapse in rank 0.
    pub fn check(&mut self, step: u64, z_std: f64, warn: bool) {
        if z_std < self.limit && !self.collapsed {
            self.collapsed = true;
            if !warn {
                return;
            }
            log::warn!(
                "step {step}: the run has collapsed: projections of different images are nearly the same (deviation \
                 {z_std:.5}, healthy is about {:.5}). What helps: a lower optimizer.base_lr, ema.base_tau closer to 1, \
                 a larger batch, augmentation as in the paper",
                self.healthy
            );
        }
    }
}

/// k-NN accuracy of the online encoder on fixed sets of images, without augmentation.
pub struct KnnWatch {
    /// Images to compare with.
    pub bank: Arc<dyn Dataset>,
    /// Held-out images to classify; without them leave-one-out on the bank.
    pub queries: Option<Arc<dyn Dataset>>,
    /// Section `monitor`.
    pub monitor: MonitorConfig,
    /// Section `augment`: how an image is resized.
    pub augment: AugmentConfig,
    /// Batches, threads, what to do with bad images, and the processes that share the work.
    pub options: ExtractOptions,
}

impl KnnWatch {
    /// Top-1 accuracy, 0 to 1; `None` if a signal to any process stopped it.
    /// # Errors
    /// Unreadable images if the config says `fail`; images without labels.
    pub fn top1(&self, byol: &Byol) -> Result<Option<f64>> {
        match self.accuracy(byol) {
            Err(error) if error.is::<Interrupted>() => Ok(None),
            other => other.map(Some),
        }
    }

    fn accuracy(&self, byol: &Byol) -> Result<f64> {
        let bank = self.features(byol, &self.bank, self.monitor.knn_train_images)?;
        let queries = self.queries.as_ref().map(|set| self.features(byol, set, self.monitor.knn_eval_images));
        let (k, temperature) = (self.monitor.knn_k, self.monitor.knn_temperature);
        eval::knn_top1(&bank, queries.transpose()?.as_ref(), k, temperature, Some(&self.options.group))
    }

    /// Features of at most `limit` images of a set.
    fn features(&self, byol: &Byol, dataset: &Arc<dyn Dataset>, limit: Option<usize>) -> Result<Features> {
        let indices = spread(dataset.len(), limit.unwrap_or(usize::MAX));
        eval::extract(byol, dataset, indices, &self.augment, &self.options, "k-NN: images")
    }
}
