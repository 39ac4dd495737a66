//! Batches of augmented views for training and of plain views for evaluation.
//!
//! Threads take the sampler's batches in order, a pool of workers decodes and augments their images,
//! and a bounded channel holds the finished ones. A batch is a pure function of
//! the seed and its number: neither the number of workers nor a resume changes a byte.

pub mod producer;
pub mod sampler;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::augment::{AugmentConfig, Draws, Scratch, eval_view};
use crate::data::Dataset;
use crate::pixels::Pixels;
use native::resize;
pub use producer::BadImages;
use producer::{Producer, guarded};
use sampler::Sampler;

thread_local! {
    /// Every worker reuses one image and one scratch buffer.
    static WORKER: RefCell<(Pixels, Scratch)> = RefCell::default();
}

/// Options of a loader. None of them changes the content of batches, except which part of them a
/// rank loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Threads; 0 means one per core.
    pub workers: usize,
    /// Maximum finished batches in the queue, at least 1.
    pub prefetch: usize,
    /// Maximum bytes of all batches that are finished, in progress or kept for reuse; one batch is always made.
    pub prefetch_bytes: usize,
    /// Rank of this process among the `world` that share each batch.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self { workers: 0, prefetch: 4, prefetch_bytes: 4 << 30, rank: 0, world: 1 }
    }
}

impl LoaderOptions {
    /// Batches of `bytes` each that may be queued while one more is made.
    fn waiting(&self, bytes: usize) -> Result<usize> {
        ensure!(self.prefetch > 0, "found 0 batches to prefetch, expected at least 1");
        Ok(self.prefetch.min((self.prefetch_bytes / bytes.max(1)).saturating_sub(1)))
    }
}

/// Bytes of a label and an index.
const LABEL_BYTES: usize = size_of::<i64>() + size_of::<u32>();

/// Two augmented views of B images of H x W pixels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// View 1 and view 2, each [B, H, W, channels].
    pub views: [Vec<u8>; 2],
    /// B classes, -1 for unknown.
    pub labels: Vec<i64>,
    /// B positions in the data set (of the replacement if an image was bad).
    pub indices: Vec<u32>,
    /// Epoch from 0.
    pub epoch: u64,
    /// Micro-batch in the epoch from 0.
    pub batch_in_epoch: usize,
}

impl Batch {
    /// Heap memory it occupies.
    fn bytes(&self) -> usize {
        self.views.iter().map(Vec::capacity).sum::<usize>() + self.labels.capacity() * LABEL_BYTES
    }
}

/// Used batches kept for reuse, and the bytes of these and of all batches that are not delivered yet.
#[derive(Default)]
struct Spare {
    batches: Vec<Batch>,
    bytes: usize,
}

impl Spare {
    fn lock(this: &Mutex<Self>) -> std::sync::MutexGuard<'_, Self> {
        this.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An endless source of training batches.
pub struct Loader {
    producer: Producer<Batch>,
    spare: Arc<Mutex<Spare>>,
    max_bytes: usize,
}

impl Loader {
    /// Starts loading at global batch `first_batch` of the sampler's order. Fails if sampler and
    /// data set differ in size, if a rank would get no image, or if no thread can be started.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        augment: AugmentConfig,
        sampler: Sampler,
        first_batch: u64,
        bad: Arc<BadImages>,
        options: LoaderOptions,
    ) -> Result<Self> {
        let LoaderOptions { workers, prefetch_bytes: max_bytes, rank, world, .. } = options;
        ensure!(
            sampler.images() == dataset.len(),
            "found a sampler for {} images, expected one for {}",
            sampler.images(),
            dataset.len()
        );
        let spare = Arc::new(Mutex::new(Spare::default()));
        let maker = Maker { dataset, augment, bad, seed: sampler.seed(), spare: spare.clone() };
        let mut order = (0, sampler.epoch_order(0));
        let images = Sampler::share(sampler.batch(&order.1, 0), rank, world)?.len();
        let waiting = options.waiting(images * (2 * maker.view_bytes() + LABEL_BYTES))?;
        let mut number = first_batch;
        let plan = move || {
            let (epoch, batch_in_epoch) = sampler.position(number);
            number += 1;
            if order.0 != epoch {
                order = (epoch, sampler.epoch_order(epoch));
            }
            let share = Sampler::share(sampler.batch(&order.1, batch_in_epoch), rank, world);
            Some((epoch, batch_in_epoch, share.map(<[u32]>::to_vec)))
        };
        let make = move |(epoch, batch_in_epoch, share): (u64, usize, Result<Vec<u32>>), stop: &AtomicBool| {
            maker.make(epoch, batch_in_epoch, &share?, stop)
        };
        Ok(Self { producer: Producer::start(workers, waiting, plan, make)?, spare, max_bytes })
    }

    /// Waits for the next batch. Fails for a bad image if these are fatal, for too many bad images in a row, for a
    /// panic in a worker, and on every call after an error.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let batch = self.producer.next().context("the loader has stopped after an earlier error")??;
        let mut spare = Spare::lock(&self.spare);
        spare.bytes = spare.bytes.saturating_sub(batch.bytes());
        Ok(batch)
    }

    /// Returns a used batch, so that its memory is reused, or freed if enough is kept.
    pub fn recycle(&self, batch: Batch) {
        let mut spare = Spare::lock(&self.spare);
        if spare.bytes + batch.bytes() <= self.max_bytes {
            spare.bytes += batch.bytes();
            spare.batches.push(batch);
        }
    }
}

/// The inputs of training batches.
struct Maker {
    dataset: Arc<dyn Dataset>,
    augment: AugmentConfig,
    bad: Arc<BadImages>,
    seed: u64,
    spare: Arc<Mutex<Spare>>,
}

impl Maker {
    fn view_bytes(&self) -> usize {
        self.augment.view_bytes()
    }

    /// The batch of these images, in the memory of a used one if available.
    fn make(&self, epoch: u64, batch_in_epoch: usize, images: &[u32], stop: &AtomicBool) -> Result<Batch> {
        let old = Spare::lock(&self.spare).batches.pop().unwrap_or_default();
        let mut batch = Batch { epoch, batch_in_epoch, ..old };
        let (before, view_bytes) = (batch.bytes(), self.view_bytes());
        batch.views.iter_mut().try_for_each(|view| resize(view, images.len() * view_bytes, 0))?;
        batch.labels.resize(images.len(), -1);
        batch.indices.resize(images.len(), 0);
        Spare::lock(&self.spare).bytes += batch.bytes() - before;
        let [first, second] = &mut batch.views;
        let views = first.par_chunks_mut(view_bytes).zip(second.par_chunks_mut(view_bytes));
        let about = batch.indices.par_iter_mut().zip(&mut batch.labels);
        views.zip(about).zip(images).try_for_each(|(((first, second), (index, label)), &wanted)| {
            let (set, augment) = (&*self.dataset, &self.augment);
            on_worker(set, wanted, stop, |pixels, scratch| {
                let (found, draws) = load_for_views(set, wanted, &self.bad, augment, self.seed, epoch, pixels)?;
                (*index, *label) = (found as u32, set.label(found).unwrap_or(-1));
                augment.apply(pixels, &draws, scratch, [first, second]);
                Ok(())
            })
        })?;
        Ok(batch)
    }
}

/// Loads what both views of image `wanted` need of it, or of the next readable one: returns which image it is, and
/// the choices for the views of `out`.
pub fn load_for_views(
    dataset: &dyn Dataset,
    wanted: u32,
    bad: &BadImages,
    augment: &AugmentConfig,
    seed: u64,
    epoch: u64,
    out: &mut Pixels,
) -> Result<(usize, [Draws; 2])> {
    let mut draws = None;
    let mut want = |width, height| {
        // Keyed by the wanted image: if its replacement is in the same batch, their views still differ.
        augment.wanted(draws.insert(augment.draw(width, height, seed, epoch, wanted.into())))
    };
    let (found, part) = bad.load_next(dataset, wanted as usize, &mut want, out)?;
    let mut draws = draws.context("the data set did not ask which part of the image is needed")?;
    for Draws { crop, reduction, .. } in &mut draws {
        (crop.left, crop.top) = (crop.left - part.crop.left, crop.top - part.crop.top);
        *reduction = part.reduction;
    }
    Ok((found, draws))
}

/// Evaluation views of B images of H x W pixels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvalBatch {
    /// [B, H, W, channels].
    pub pixels: Vec<u8>,
    /// B classes, -1 for unknown.
    pub labels: Vec<i64>,
    /// B positions in the data set.
    pub indices: Vec<u32>,
}

/// The evaluation views of chosen images, once, in order. Bad images are skipped.
pub struct EvalLoader {
    producer: Producer<EvalBatch>,
}

impl EvalLoader {
    /// Loads the images at `indices` in batches of `batch_size`, the last one possibly smaller.
    /// Rank and world of the options have no effect. Fails if no thread can be started.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        augment: AugmentConfig,
        indices: Vec<u32>,
        batch_size: usize,
        bad: Arc<BadImages>,
        options: LoaderOptions,
    ) -> Result<Self> {
        let view_bytes = augment.view_bytes();
        let view = move |_: u32, image: &Pixels, scratch: &mut Scratch, out: &mut [u8]| {
            eval_view(&augment, image, scratch, out);
        };
        Self::with_view(dataset, view_bytes, view, indices, batch_size, bad, options)
    }

    /// The same with other views, of `view_bytes` bytes: `view` makes one from an image and its position in the set.
    pub fn with_view(
        dataset: Arc<dyn Dataset>,
        view_bytes: usize,
        view: impl Fn(u32, &Pixels, &mut Scratch, &mut [u8]) + Send + Sync + 'static,
        indices: Vec<u32>,
        batch_size: usize,
        bad: Arc<BadImages>,
        options: LoaderOptions,
    ) -> Result<Self> {
        ensure!(batch_size > 0, "found batch size 0, expected at least 1");
        let waiting = options.waiting(batch_size.min(indices.len()) * (view_bytes + LABEL_BYTES))?;
        let mut done = 0;
        let plan = move || {
            let part = indices[done..indices.len().min(done + batch_size)].to_vec();
            done += part.len();
            (!part.is_empty()).then_some(part)
        };
        let make = move |part: Vec<u32>, stop: &AtomicBool| {
            let mut pixels = Vec::new();
            resize(&mut pixels, part.len() * view_bytes, 0)?;
            let fill = |(out, &index): (&mut [u8], &u32)| {
                on_worker(&*dataset, index, stop, |image, scratch| {
                    let good = bad.load(&*dataset, index as usize, image)?;
                    if good {
                        view(index, image, scratch, out);
                    }
                    Ok(good)
                })
            };
            let good: Vec<bool> = pixels.par_chunks_mut(view_bytes).zip(&part).map(fill).collect::<Result<_>>()?;
            let kept: Vec<usize> = (0..part.len()).filter(|&at| good[at]).collect();
            for (to, &from) in kept.iter().enumerate() {
                pixels.copy_within(from * view_bytes..(from + 1) * view_bytes, to * view_bytes);
            }
            pixels.truncate(kept.len() * view_bytes);
            let indices: Vec<u32> = kept.iter().map(|&at| part[at]).collect();
            let label = |index: usize| guarded(&*dataset, index, || Ok(dataset.label(index).unwrap_or(-1)));
            let labels = indices.iter().map(|&index| label(index as usize)).collect::<Result<_>>()?;
            Ok(EvalBatch { pixels, labels, indices })
        };
        Ok(Self { producer: Producer::start(options.workers, waiting, plan, make)? })
    }
}

impl Iterator for EvalLoader {
    type Item = Result<EvalBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.producer.next()
    }
}

/// Runs `work` with this thread's image and scratch, unless the loader is being dropped.
fn on_worker<T>(
    dataset: &dyn Dataset,
    index: u32,
    stop: &AtomicBool,
    work: impl FnOnce(&mut Pixels, &mut Scratch) -> Result<T>,
) -> Result<T> {
    ensure!(!stop.load(Ordering::Relaxed), "the loader is being dropped");
    guarded(dataset, index as usize, || WORKER.with_borrow_mut(|(pixels, scratch)| work(pixels, scratch)))
}
