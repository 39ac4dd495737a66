//! Label-free metrics: the quality of representations and projections on fixed views of fixed images, and what their
//! trend says about the run.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use native::Autocast;
use tch::{Device, Tensor};

use super::{MonitorConfig, QualityEvery};
use crate::augment::AugmentConfig;
use crate::byol::Byol;
use crate::data::Dataset;
use crate::data::subset::spread;
use crate::eval::{ExtractOptions, Images, Interrupted, Represent, View, ViewPairs, extract_views};
use crate::logging::Quality;

/// Seed of the views, the same in every run, so that runs compare.
const SEED: u64 = 0;

/// How many images to evaluate, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QualityPlan {
    /// Images of each evaluation.
    pub images: usize,
    /// Epochs between two.
    pub every: u64,
}

impl QualityPlan {
    /// Share of a run's computation that evaluations may take.
    const SHARE: f64 = 0.01;
    /// Forward passes for an image of a training step (a backward pass is as much as two): two views, each forward and
    /// backward through the online network, forward through the target.
    const STEP: f64 = 8.0;
    /// For an evaluated image: both views through the online network, one through the target, and what is around it.
    const EVALUATION: f64 = 4.0;
    /// Fewer images say little.
    const MIN_IMAGES: usize = 128;
    /// Evaluations that a run should have: before, during, and after training.
    const MIN_EVALUATIONS: f64 = 4.0;

    /// For `available` images and a run of `epochs` epochs over `trained` images each; `None` if the config says so.
    pub fn new(config: &MonitorConfig, available: usize, trained: u64, epochs: u64) -> Option<Self> {
        let most = config.quality_images.min(available);
        if let QualityEvery::Epochs(every) = config.quality_every? {
            return Some(Self { images: most, every });
        }
        let budget = Self::SHARE * Self::STEP * (trained * epochs) as f64 / Self::EVALUATION; // images
        let affordable = ((budget / Self::MIN_EVALUATIONS) as usize).max(Self::MIN_IMAGES);
        let images = affordable.min(most);
        // One of them is of the random encoder.
        let evaluations = (budget / images as f64).floor().max(2.0);
        let least = (epochs as f64 / (evaluations - 1.0)).ceil() as u64;
        Some(Self { images, every: least.max(1) })
    }
}

/// What measurements take by the clock. The plan counts forward passes alone, which a step captured as a CUDA graph may
/// make several times as fast as a measurement does.
#[derive(Clone, Copy, Debug, Default)]
pub struct QualityCost {
    spent: f64,
    last: f64,
}

impl QualityCost {
    /// The share of a run that `quality_every: auto` promises not to exceed.
    const SHARE: f64 = 0.02;
    /// Seconds that measurements may take in the shortest of runs.
    const FREE: f64 = 2.0;

    /// Nothing so far; `None` where the config says how often to measure.
    pub fn of(config: &MonitorConfig) -> Option<Self> {
        (config.quality_every == Some(QualityEvery::Auto)).then(Self::default)
    }

    /// Notes the seconds of a measurement.
    pub fn measured(&mut self, seconds: f64) {
        self.spent += seconds;
        self.last = seconds;
    }

    /// Whether one more like the last is within the share of a run that has taken so many seconds.
    pub fn allows_another(&self, seconds: f64) -> bool {
        self.spent + self.last <= (Self::SHARE * seconds).max(Self::FREE)
    }
}

/// Quality on fixed images.
pub struct QualityWatch {
    /// The images to choose from.
    pub dataset: Arc<dyn Dataset>,
    /// How many of them, and how often.
    pub plan: QualityPlan,
    /// What they took so far, with `quality_every: auto`.
    pub cost: Option<QualityCost>,
    /// Section `augment`: the views.
    pub augment: AugmentConfig,
    /// Batches, threads, what to do with bad images, and the processes that share the work.
    pub options: ExtractOptions,
}

impl QualityWatch {
    /// The numbers; `None` if there are none, which is logged, or a signal to any process stopped it. Changes nothing in
    /// the networks.
    /// # Errors
    /// Unreadable images if the config says `fail`.
    pub fn measure(&mut self, byol: &Byol) -> Result<Option<Quality>> {
        let started = Instant::now();
        let quality = self.quality(byol);
        self.cost.iter_mut().for_each(|cost| cost.measured(started.elapsed().as_secs_f64()));
        quality
    }

    fn quality(&self, byol: &Byol) -> Result<Option<Quality>> {
        let indices = spread(self.dataset.len(), self.plan.images);
        let images =
            Images { dataset: &self.dataset, indices, view: View::Pair { seed: SEED }, augment: &self.augment };
        let both = BothNetworks(byol);
        let rows = match extract_views(&both, images, &self.options, "quality: images") {
            Err(error) if error.is::<Interrupted>() => return Ok(None),
            rows => rows?.0.values,
        };
        match both.pairs(&rows).quality() {
            Ok(quality) => Ok(Some(quality)),
            // A monitor stops no run. Where the weights are broken, the next step says so.
            Err(error) => {
                if self.options.group.is_first() {
                    log::warn!("quality: {error:#}");
                }
                Ok(None)
            }
        }
    }
}

/// Encodes pairs of views: a row is the representations of both and the online and target projection of the first.
struct BothNetworks<'a>(&'a Byol);

impl BothNetworks<'_> {
    fn widths(&self) -> [i64; 4] {
        let online = &self.0.online;
        [online.encoder.feature_dim, online.encoder.feature_dim, online.projection_dim, online.projection_dim]
    }

    fn pairs(&self, rows: &Tensor) -> ViewPairs {
        let parts = rows.split_with_sizes(self.widths(), 1);
        let part = |at: usize| parts[at].shallow_clone();
        ViewPairs { representations: [part(0), part(1)], projections: [part(2), part(3)] }
    }
}

impl Represent for BothNetworks<'_> {
    fn represent(&self, images: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let Byol { online, target, device, bf16, .. } = self.0;
        let _autocast = Autocast::bf16(*device, *bf16)?;
        let [representations, projections] = online.evaluate(images);
        let view = |rows: &Tensor, at: i64| rows.view([-1, 2, rows.size()[1]]).select(1, at);
        let size = images.size();
        let first = images.view([-1, 2, size[1], size[2], size[3]]).select(1, 0);
        let [_, of_target] = target.evaluate(&first);
        let parts = [view(&representations, 0), view(&representations, 1), view(&projections, 0), of_target];
        Ok(Tensor::f_cat(&parts, 1)?)
    }

    fn device(&self) -> Device {
        self.0.device
    }

    fn feature_dim(&self) -> i64 {
        self.widths().iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_that_takes_too_long_is_not_repeated_before_the_run_is_long_enough() {
        let mut cost = QualityCost::default();
        cost.measured(1.0);
        assert!(cost.allows_another(0.0));
        cost.measured(1.0);
        assert!(!cost.allows_another(149.0) && cost.allows_another(150.0));
    }

    #[test]
    fn evaluations_take_a_hundredth_of_a_run() {
        let config = MonitorConfig::default();
        let plan = |available, trained, epochs| QualityPlan::new(&config, available, trained, epochs).expect("on");
        for (available, trained, epochs) in
            [(50_000, 1_281_167, 100), (10_000, 50_000, 200), (10_000, 50_000, 10), (1000, 4000, 14), (5000, 2000, 800)]
        {
            let QualityPlan { images, every } = plan(available, trained, epochs);
            let evaluations = 1 + epochs.div_ceil(every);
            let share = evaluations as f64 * images as f64 * QualityPlan::EVALUATION;
            let share = share / ((trained * epochs) as f64 * QualityPlan::STEP);
            assert!(share <= 0.0125 && images >= 128 && evaluations >= 4, "{images} every {every}: {share}");
        }
        assert_eq!(plan(50_000, 1_281_167, 100), QualityPlan { images: 1024, every: 1 });
        assert_eq!(plan(30, 64, 3), QualityPlan { images: 30, every: 3 });
        let config = MonitorConfig { quality_every: Some(QualityEvery::Epochs(20)), quality_images: 256, ..config };
        assert_eq!(QualityPlan::new(&config, 9999, 50, 200), Some(QualityPlan { images: 256, every: 20 }));
        assert_eq!(QualityPlan::new(&MonitorConfig { quality_every: None, ..config }, 9, 9, 9), None);
    }
}
