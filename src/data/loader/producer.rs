//! Threads that prefetch batches with a pool of workers, deliver them in order, and end when their owner is dropped.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::augment::Part;
use crate::data::{Dataset, OnBadImage, PartFor};
use crate::pixels::Pixels;
use native::{caught_in, panic_line};

/// Maximum bad images in a row before that is an error.
const MAX_REPLACEMENTS: usize = 100;

/// Maximum bad images named in the log; more are only counted, unless the log is verbose.
const MAX_NAMED: usize = 20;

/// The unreadable images of a run and how they are handled. Shared by all its loaders.
#[derive(Default)]
pub struct BadImages {
    policy: OnBadImage,
    seen: Mutex<BTreeSet<String>>,
}

impl BadImages {
    /// No bad images yet.
    pub fn new(policy: OnBadImage) -> Arc<Self> {
        Arc::new(Self { policy, ..Default::default() })
    }

    /// Number of distinct bad images so far.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Their names.
    pub fn names(&self) -> BTreeSet<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads an image. For a bad one returns `false`, and logs it the first time, or fails if the policy is to
    /// fail.
    pub(super) fn load(&self, set: &dyn Dataset, index: usize, out: &mut Pixels) -> Result<bool> {
        Ok(self.load_part(set, index, &mut Part::whole, out)?.is_some())
    }

    fn load_part(&self, set: &dyn Dataset, index: usize, want: &mut PartFor, out: &mut Pixels) -> Result<Option<Part>> {
        let error = match set.load_part(index, want, out) {
            Ok(part) => return Ok(Some(part)),
            Err(error) => error,
        };
        let name = set.describe(index);
        if self.policy == OnBadImage::Fail {
            return Err(error.context(format!("bad image {name}")));
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.insert(name.clone()) {
            match seen.len() {
                ..=MAX_NAMED => log::warn!("skipping bad image {name}: {error:#}"),
                _ => log::debug!("skipping bad image {name}: {error:#}"),
            }
            if seen.len() == MAX_NAMED + 1 {
                log::warn!("more than {MAX_NAMED} bad images: the others are counted, not named (--verbose names all)");
            }
        }
        Ok(None)
    }

    /// Loads the first readable image from `index` on, wrapping around at the end, and returns its index, and the part
    /// loaded ([`Dataset::load_part`]).
    pub fn load_next(
        &self,
        set: &dyn Dataset,
        index: usize,
        want: &mut PartFor,
        out: &mut Pixels,
    ) -> Result<(usize, Part)> {
        let tries = set.len().min(MAX_REPLACEMENTS);
        for next in (index..index + tries).map(|next| next % set.len()) {
            if let Some(part) = self.load_part(set, next, want, out)? {
                return Ok((next, part));
            }
        }
        bail!(
            "found {tries} bad images in a row from {} on, expected a set of readable images (see \
               the log for the reasons)",
            set.describe(index)
        )
    }
}

/// Runs `work` on an image; a panic becomes an error that names the image.
pub(super) fn guarded<T>(set: &dyn Dataset, index: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic_line(panic.as_ref());
        let name = catch_unwind(AssertUnwindSafe(|| set.describe(index)));
        bail!("a loader thread panicked at {}: {message}", name.unwrap_or_else(|_| format!("image {index}")))
    })
}

/// Start of the error message for a panic.
const THREAD: &str = "a loader thread";

/// Batches in progress at the same time: while the last images of one are finished, other workers start the next.
const IN_WORK: usize = 2;

/// See the module. Dropping it stops the work at the next image and waits for the threads.
pub(super) struct Producer<T> {
    /// Receivers of batches in order, each of which gets its batch when it is finished. `None` after an error and while
    /// dropping.
    batches: Option<Receiver<Receiver<Result<T>>>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl<T: Send + 'static> Producer<T> {
    /// `plan` returns the content of the next batch, or `None` at the end; `make` makes it, on a pool of
    /// `workers` threads (0: one per core), and should stop soon after its flag is set. At most
    /// `prefetch` batches are finished or in progress besides the one being waited for. A panic in
    /// either becomes an error in place of the batch.
    pub(super) fn start<P: Send>(
        workers: usize,
        prefetch: usize,
        plan: impl FnMut() -> Option<P> + Send + 'static,
        make: impl Fn(P, &AtomicBool) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let pool: ThreadPool = ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|number| format!("byol-loader-{number}"))
            .build()
            .context("cannot start the loader threads (lower data.workers)")?;
        let (sender, receiver) = sync_channel(prefetch);
        let stop = Arc::new(AtomicBool::new(false));
        let mut producer = Self { batches: Some(receiver), threads: Vec::new(), stop: stop.clone() };
        let shared = Arc::new((pool, Mutex::new((plan, sender)), make, stop));
        for _ in 0..IN_WORK {
            let shared = shared.clone();
            let run = move || {
                let (pool, next, make, stop) = &*shared;
                loop {
                    let (done, batch) = sync_channel(1);
                    let planned = {
                        // Planned and queued under one lock, to keep batches in order.
                        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
                        let planned = caught_in(THREAD, || Ok((next.0)()));
                        if matches!(planned, Ok(None)) || next.1.send(batch).is_err() {
                            break;
                        }
                        planned
                    };
                    let made = planned.and_then(|planned| {
                        let planned = planned.expect("the end is seen above");
                        caught_in(THREAD, || pool.install(|| make(planned, stop)))
                    });
                    let failed = made.is_err();
                    if done.send(made).is_err() || failed {
                        break;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("byol-loader".to_string()).spawn(run);
            producer.threads.push(thread.context("cannot start the loader thread")?);
        }
        Ok(producer)
    }

    /// Waits for the next batch; `None` after the last one and after an error.
    pub(super) fn next(&mut self) -> Option<Result<T>> {
        let promised = self.batches.as_ref()?.recv().ok()?;
        let made = promised.recv().unwrap_or_else(|_| bail!("a loader thread died"));
        if made.is_err() {
            self.batches = None;
        }
        Some(made)
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes threads that are blocked on a full channel.
        self.batches = None;
        for thread in self.threads.drain(..) {
            // A panic can no longer be reported.
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches 0 to 2 are made, the next one panics outside of an image.
    #[test]
    fn a_panic_outside_of_an_image_is_an_error_in_its_place() {
        for planning in [true, false] {
            for (workers, prefetch) in [(1, 1), (2, 0), (8, 4)] {
                let mut number = 0;
                let plan = move || {
                    number += 1;
                    assert!(!planning || number < 4, "a plan went wrong");
                    (number < 9).then_some(number - 1)
                };
                let make = move |number: usize, _: &AtomicBool| {
                    assert!(planning || number < 3, "a batch went wrong");
                    Ok(number)
                };
                let mut producer = Producer::start(workers, prefetch, plan, make).unwrap();
                let made: Vec<usize> = (0..3).map(|_| producer.next().unwrap().unwrap()).collect();
                assert_eq!(made, [0, 1, 2]);
                let message = producer.next().unwrap().unwrap_err().to_string();
                let what = if planning { "plan" } else { "batch" };
                assert_eq!(message, format!("a loader thread panicked: a {what} went wrong"));
                assert!(producer.next().is_none());
            }
        }
    }
}
