//! Training steps outside a run, to measure them: on real batches, or on noise, without a loader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::byol::Byol;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::loader::sampler::Sampler;
use crate::data::loader::{BadImages, Batch, Loader, LoaderOptions};
use crate::distributed::Group;
use crate::rng::{Purpose, Stream};
use crate::run::machine::{self as setup, Machine};
use crate::run::ranks;
use crate::train::{Executor, Feed, Plan};
use native::stream::PendingScalars;

/// Where batches come from.
enum Source {
    Loader(Box<Loader>),
    Noise(Batch),
}

/// Networks, optimizer and batches of a config.
pub struct Trial {
    source: Source,
    feed: Feed,
    /// Networks and optimizer.
    pub byol: Byol,
    /// Runs the steps.
    pub executor: Executor,
    /// Lengths and schedules.
    pub plan: Plan,
    /// Images that were unreadable.
    pub bad: Arc<BadImages>,
    micro_batches: usize,
    /// Of the step before.
    pending: Option<PendingScalars>,
}

impl Trial {
    /// With batches of `dataset`, or else of noise; `source_of` names the place of a key.
    /// # Errors
    /// A batch that the processes cannot share, or larger than the set.
    pub fn new(
        config: &Config,
        machine: &Machine,
        dataset: Option<Arc<dyn Dataset>>,
        group: &Group,
        source_of: &dyn Fn(&str) -> String,
    ) -> Result<Self> {
        let (train, world) = (&config.train, group.world());
        ranks::check_shares(config, world).with_context(|| source_of("train.batch_size"))?;
        let images = dataset.as_ref().map_or(train.batch_size, |set| set.len());
        let plan = Plan::new(images, train, &config.optimizer, &config.schedule, &config.ema)
            .with_context(|| source_of("train.batch_size"))?;
        let bad = BadImages::new(config.data.on_bad_image);
        let source = match dataset {
            None => Source::Noise(noise(train.micro_batch() / world, config.augment.view_bytes())),
            Some(dataset) => {
                let sampler = Sampler::new(images, train.batch_size, train.accumulation_steps, train.seed)?;
                ranks::agree_on_data(group, "data", &*dataset)?;
                let own = LoaderOptions { rank: group.rank(), world, ..machine.loader };
                let loader = Loader::new(dataset, config.augment.clone(), sampler, 0, bad.clone(), own)?;
                Source::Loader(Box::new(loader))
            }
        };
        let executor = setup::executor(config, machine, group)?;
        let byol = setup::byol(config, machine, group)?;
        let feed = Feed::new(&config.augment, machine.device, machine.image_layout(config))?;
        Ok(Self { source, feed, byol, executor, plan, bad, micro_batches: train.accumulation_steps, pending: None })
    }

    /// One step; returns the seconds of waiting for data.
    pub fn step(&mut self, step: u64) -> Result<f64> {
        let start = Instant::now();
        let fresh = match &mut self.source {
            Source::Loader(loader) => (0..self.micro_batches).map(|_| loader.next_batch()).collect::<Result<_>>()?,
            Source::Noise(_) => Vec::new(),
        };
        let waited = start.elapsed().as_secs_f64();
        let batches: Vec<&Batch> = match &self.source {
            Source::Loader(_) => fresh.iter().collect(),
            Source::Noise(batch) => vec![batch; self.micro_batches],
        };
        let rates = self.plan.rates(step);
        let output = self.executor.step(&mut self.byol, &mut self.feed, &batches, rates)?;
        // As in training, the host reads the numbers of the step before.
        let numbers = output.fetch()?;
        if let Some(before) = self.pending.replace(numbers) {
            before.get()?;
        }
        if let Source::Loader(loader) = &self.source {
            fresh.into_iter().for_each(|batch| loader.recycle(batch));
        }
        Ok(waited)
    }

    /// Waits for the device (`torch.cuda.synchronize`).
    pub fn wait(&mut self) -> Result<()> {
        self.pending.take().map_or(Ok(()), |numbers| numbers.get().map(|_| ()))
    }

    /// Seconds of a step, the mean over those after the first ones, which allocate: of `steps`, or fewer where they
    /// take longer than `limit` in all.
    pub fn seconds_per_step(&mut self, steps: u64, limit: Duration) -> Result<f64> {
        let (warm_up, whole) = (if self.byol.device.is_cuda() { 8 } else { 1 }, Instant::now());
        (0..warm_up).try_for_each(|step| self.step(step).map(drop))?;
        self.wait()?;
        let (started, mut done) = (Instant::now(), 0);
        while done == 0 || done < steps && whole.elapsed() < limit {
            self.step(warm_up + done)?;
            done += 1;
        }
        self.wait()?;
        Ok(started.elapsed().as_secs_f64() / done as f64)
    }
}

/// A micro-batch of random bytes.
fn noise(images: usize, view_bytes: usize) -> Batch {
    let mut random = Stream::new(0, Purpose::Verify, 0, 0, 0);
    let mut view = || (0..images * view_bytes).map(|_| random.below(256) as u8).collect();
    Batch { views: [view(), view()], labels: vec![-1; images], indices: vec![0; images], ..Batch::default() }
}
