//! Watching a run: has it collapsed, and do its features tell classes apart?

use std::sync::Arc;

use anyhow::Result;
use tch::Tensor;

use super::{Byol, MonitorConfig};
use crate::augment::AugmentConfig;
use crate::data::Dataset;
use crate::data::sampler::Sampler;
use crate::dist::Group;
use crate::eval::{self, ExtractOptions, Features};

/// Warns, once, when the projections of different images become alike.
pub struct CollapseWatch {
    /// Below this deviation the run has collapsed.
    limit: f64,
    healthy: f64,
    /// It has happened.
    pub collapsed: bool,
}

impl CollapseWatch {
    /// Healthy projections spread over all D directions: a deviation of about 1/sqrt(D).
    pub fn new(config: &MonitorConfig, byol: &Byol) -> Self {
        let healthy = 1.0 / (byol.online.projection_dim as f64).sqrt();
        Self { limit: config.collapse_threshold * healthy, healthy, collapsed: false }
    }

    /// Looks at the deviation after `step` steps.
    pub fn look(&mut self, step: u64, z_std: f64) {
        if z_std < self.limit && !self.collapsed {
            self.collapsed = true;
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
    /// Held-out images to classify; without them those of the bank classify each other.
    pub queries: Option<Arc<dyn Dataset>>,
    /// Section `monitor`.
    pub monitor: MonitorConfig,
    /// Section `augment`: how an image is brought to size.
    pub augment: AugmentConfig,
    /// Batches, threads and what to do with bad images.
    pub options: ExtractOptions,
    /// The processes that share the work.
    pub group: Option<Arc<Group>>,
}

impl KnnWatch {
    /// Top-1 accuracy, 0 to 1; `None` where a signal cut it short, in whichever process.
    /// # Errors
    /// Unreadable images where the config says `fail`; images without labels; what libtorch says.
    pub fn top1(&self, byol: &Byol) -> Result<Option<f64>> {
        let Some(bank) = self.features(byol, &self.bank, self.monitor.knn_train_images)? else { return Ok(None) };
        let bank = self.gathered(bank)?;
        let (k, temperature) = (self.monitor.knn_k, self.monitor.knn_temperature);
        let Some(set) = &self.queries else { return eval::knn_top1(&bank, None, k, temperature).map(Some) };
        let Some(queries) = self.features(byol, set, self.monitor.knn_eval_images)? else { return Ok(None) };
        let Some(group) = &self.group else { return eval::knn_top1(&bank, Some(&queries), k, temperature).map(Some) };
        // Each process classifies its own share.
        let own = queries.labels.len() as f64;
        let right = if own > 0.0 { own * eval::knn_top1(&bank, Some(&queries), k, temperature)? } else { 0.0 };
        let sums = group.sum(&[right, own])?;
        Ok(Some(sums[0] / sums[1]))
    }

    /// Features of this process's share of `most` images (0: of all) of a set; `None` after a signal.
    fn features(&self, byol: &Byol, dataset: &Arc<dyn Dataset>, most: usize) -> Result<Option<Features>> {
        let count = if most == 0 { dataset.len() } else { most.min(dataset.len()) };
        // Spread over the whole set, which may be sorted by class.
        let indices: Vec<u32> = (0..count).map(|i| (i * dataset.len() / count) as u32).collect();
        let indices = match &self.group {
            Some(group) => Sampler::share(&indices, group.place.rank, group.place.world)?.to_vec(),
            None => indices,
        };
        let found = eval::extract(byol, dataset, indices, &self.augment, &self.options, "k-NN: images");
        let interrupted = (self.options.interrupted)();
        let stop = match &self.group {
            Some(group) if found.is_ok() || interrupted => group.sum(&[f64::from(interrupted)])?[0] > 0.0,
            _ => interrupted && found.is_err(),
        };
        if stop { Ok(None) } else { found.map(Some) }
    }

    /// The shares of all processes.
    fn gathered(&self, own: Features) -> Result<Features> {
        let Some(group) = &self.group else { return Ok(own) };
        let labels = group.gather_rows(&Tensor::from_slice(&own.labels))?;
        Ok(Features { values: group.gather_rows(&own.values)?, labels: Vec::try_from(labels)? })
    }
}
