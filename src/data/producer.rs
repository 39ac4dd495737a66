//! A thread that makes batches ahead of their use with a pool of workers, hands them over in
//! order, and is gone when its owner is.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::decode::panic_message;
use super::{Dataset, OnBadImage};
use crate::pixels::Pixels;

/// Most images in a row that may be bad before that is an error.
const MOST_REPLACEMENTS: usize = 100;

/// What became of the unreadable images of a run. Shared by all its loaders.
#[derive(Default)]
pub struct BadImages {
    policy: OnBadImage,
    seen: Mutex<BTreeSet<String>>,
}

impl BadImages {
    /// None seen yet.
    pub fn new(policy: OnBadImage) -> Arc<Self> {
        Arc::new(Self { policy, ..Default::default() })
    }

    /// Number of different bad images seen so far.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Loads an image. A bad one is named in the log the first time and gives `false`, or an error
    /// if the policy is to fail.
    pub(super) fn load(&self, set: &dyn Dataset, index: usize, out: &mut Pixels) -> Result<bool> {
        let Err(error) = set.load(index, out) else { return Ok(true) };
        let name = set.describe(index);
        if self.policy == OnBadImage::Fail {
            return Err(error.context(format!("bad image {name}")));
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.insert(name.clone()) {
            log::warn!("skipping bad image {name}: {error:#}");
        }
        Ok(false)
    }

    /// Loads the first readable image from `index` on, after the last the first, and returns which.
    pub fn load_next(&self, set: &dyn Dataset, index: usize, out: &mut Pixels) -> Result<usize> {
        let tries = set.len().min(MOST_REPLACEMENTS);
        for next in (index..index + tries).map(|next| next % set.len()) {
            if self.load(set, next, out)? {
                return Ok(next);
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
        let message = panic_message(panic.as_ref());
        bail!("a loader thread panicked at {}: {message}", set.describe(index))
    })
}

/// See the module. Dropping it stops the work at the next image and waits for the thread.
pub(super) struct Producer<T> {
    /// `None` only while dropping.
    batches: Option<Receiver<Result<T>>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl<T: Send + 'static> Producer<T> {
    /// `make` is called until it returns `None` or an error, and runs on a pool of `workers`
    /// threads (0: one per core); it should give up soon once the flag it gets is set. At most
    /// `prefetch` finished batches wait.
    pub(super) fn start(
        workers: usize,
        prefetch: usize,
        mut make: impl FnMut(&AtomicBool) -> Result<Option<T>> + Send + 'static,
    ) -> Result<Self> {
        ensure!(prefetch > 0, "found 0 batches to prefetch, expected at least 1");
        let pool: ThreadPool = ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(|number| format!("byol-loader-{number}"))
            .build()
            .context("cannot start the loader threads (lower data.workers)")?;
        // One more finished batch is in the thread's hands while the channel is full.
        let (sender, receiver) = sync_channel(prefetch - 1);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let run = move || {
            while let Some(batch) = pool.install(|| make(&stopped)).transpose() {
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("byol-loader".to_string()).spawn(run);
        let thread = Some(thread.context("cannot start the loader thread")?);
        Ok(Self { batches: Some(receiver), thread, stop })
    }

    /// The next batch, waiting for it; `None` after the last one and after an error.
    pub(super) fn next(&mut self) -> Option<Result<T>> {
        self.batches.as_ref()?.recv().ok()
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread if it waits in a full channel.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has no one left to tell.
            thread.join().ok();
        }
    }
}
