//! The loader: same bytes for any number of workers and after a resume, bad images, panics and
//! shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Result, bail};
use byol::augment::{AugmentConfig, Scratch, two_views};
use byol::data::formats::synthetic::{Synthetic, SyntheticConfig};
use byol::data::loader::sampler::Sampler;
use byol::data::loader::{BadImages, Batch, EvalLoader, Loader, LoaderOptions};
use byol::data::{DataConfig, Dataset, Format, OnBadImage, open_train};
use byol::pixels::Pixels;

use crate::support::run::PATIENCE;

/// Synthetic images of which some are bad, and one may panic.
struct Trapped {
    inner: Synthetic,
    bad: Vec<usize>,
    panics: Option<usize>,
    loads: AtomicUsize,
    delay: Duration,
}

impl Dataset for Trapped {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn label(&self, index: usize) -> Option<i64> {
        self.inner.label(index)
    }
    fn class_names(&self) -> Vec<String> {
        self.inner.class_names()
    }
    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.delay);
        if self.bad.contains(&index) {
            bail!("found dust, expected light");
        }
        assert!(self.panics != Some(index), "a trap sprang");
        self.inner.load(index, out)
    }
    fn describe(&self, index: usize) -> String {
        format!("trap {index}")
    }
    fn name(&self, index: usize) -> String {
        self.describe(index)
    }
    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
}

fn set(images: usize, bad: &[usize], panics: Option<usize>) -> Trapped {
    let config = SyntheticConfig { images, size: 24, ..Default::default() };
    let inner = Synthetic::train(&config);
    let loads = AtomicUsize::new(0);
    Trapped { inner, bad: bad.to_vec(), panics, loads, delay: Duration::ZERO }
}

fn augment() -> AugmentConfig {
    AugmentConfig { size: 16.into(), ..Default::default() }
}

fn options(workers: usize) -> LoaderOptions {
    LoaderOptions { workers, prefetch: 2, ..Default::default() }
}

struct Start {
    batch: usize,
    first: u64,
    options: LoaderOptions,
}

fn loader(set: Trapped, start: Start, bad: &Arc<BadImages>) -> Result<Loader> {
    let sampler = Sampler::new(set.len(), start.batch, 1, 7)?;
    Loader::new(Arc::new(set), augment(), sampler, start.first, bad.clone(), start.options)
}

fn skip() -> Arc<BadImages> {
    BadImages::new(OnBadImage::Skip)
}

/// `count` batches, every second one given back.
fn batches(set: Trapped, start: Start, count: usize) -> Vec<Batch> {
    let mut loader = loader(set, start, &skip()).unwrap();
    let next = |number: usize| {
        let batch = loader.next_batch().unwrap();
        if number % 2 == 1 {
            loader.recycle(batch.clone());
        }
        batch
    };
    (0..count).map(next).collect()
}

/// Fails instead of hanging.
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(work()).ok());
    receiver.recv_timeout(PATIENCE).expect("it hangs")
}

#[test]
fn bytes_do_not_depend_on_the_workers() {
    let run = |workers| {
        let start = Start { batch: 10, first: 0, options: options(workers) };
        batches(set(53, &[3, 4, 52], None), start, 12)
    };
    let one = run(1);
    assert!(one == run(2) && one == run(8));
    let positions: Vec<_> = one.iter().map(|batch| (batch.epoch, batch.batch_in_epoch)).collect();
    assert_eq!(positions[4..7], [(0, 4), (1, 0), (1, 1)]);
    let views = &one[0].views;
    assert_eq!((views[0].len(), views[1].len()), (10 * 16 * 16 * 3, 10 * 16 * 16 * 3));
    assert_ne!(views[0], views[1]);
    // The same image gets new views in another epoch.
    let view_of = |batch: &Batch, index: u32| {
        let at = batch.indices.iter().position(|&other| other == index)?;
        Some(batch.views[0][at * 768..][..768].to_vec())
    };
    let index = one[0].indices[0];
    let later = one[5..10].iter().find_map(|batch| view_of(batch, index)).unwrap();
    assert_ne!(view_of(&one[0], index).unwrap(), later);
}

#[test]
fn a_batch_holds_the_sampled_images() {
    let sampler = Sampler::new(53, 10, 1, 7).unwrap();
    let start = Start { batch: 10, first: 0, options: options(2) };
    for (number, batch) in batches(set(53, &[], None), start, 7).iter().enumerate() {
        let (epoch, step) = sampler.position(number as u64);
        let order = sampler.epoch_order(epoch);
        assert_eq!(batch.indices, sampler.batch(&order, step));
        let labels = batch.indices.iter().map(|&index| index as i64 % 10);
        assert_eq!(batch.labels, labels.collect::<Vec<_>>());
    }
}

/// The loader decodes only what the crops need; the views are those of whole images.
#[test]
fn views_are_those_of_whole_images() {
    let folder = tempfile::tempdir().unwrap();
    let images = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/images");
    for name in ["large_420.jpg", "large_444.jpg", "large_cmyk.jpg", "large_exif7.jpg", "large_420_progressive.jpg"] {
        std::fs::copy(images.join(name), folder.path().join(name)).unwrap();
    }
    let path = Some(folder.path().into());
    let set = open_train(&DataConfig { format: Format::ImageFolder, path, ..Default::default() }).unwrap();
    let sampler = Sampler::new(5, 5, 1, 7).unwrap();
    let mut loader = Loader::new(set.clone(), augment(), sampler, 0, skip(), options(2)).unwrap();
    let (size, mut image, mut scratch) = (augment().size, Pixels::default(), Scratch::default());
    let mut expected = [vec![0; size.pixels() * 3], vec![0; size.pixels() * 3]];
    for _ in 0..20 {
        let batch = loader.next_batch().unwrap();
        for (at, &index) in batch.indices.iter().enumerate() {
            set.load(index as usize, &mut image).unwrap();
            let [first, second] = &mut expected;
            two_views(&augment(), &image, 7, batch.epoch, index.into(), &mut scratch, [first, second]);
            for (view, expected) in batch.views.iter().zip(&expected) {
                let found = &view[at * expected.len()..][..expected.len()];
                assert!(found == expected, "{} in epoch {}", set.describe(index as usize), batch.epoch);
            }
        }
    }
}

#[test]
fn a_resumed_loader_continues_the_same_batches() {
    let run = |first, count| {
        let start = Start { batch: 10, first, options: options(2) };
        batches(set(53, &[3], None), start, count)
    };
    let whole = run(0, 12);
    for first in [1, 4, 5, 11] {
        assert!(whole[first..] == run(first as u64, 12 - first), "from batch {first}");
    }
}

#[test]
fn ranks_share_a_batch() {
    let part = |rank, world| {
        let options = LoaderOptions { rank, world, ..options(2) };
        batches(set(53, &[], None), Start { batch: 10, first: 0, options }, 6)
    };
    for (whole, (first, second)) in part(0, 1).iter().zip(part(0, 2).iter().zip(&part(1, 2))) {
        assert_eq!([first.views[1].clone(), second.views[1].clone()].concat(), whole.views[1]);
        assert_eq!([first.indices.clone(), second.indices.clone()].concat(), whole.indices);
    }
    let options = LoaderOptions { world: 11, ..options(2) };
    assert!(loader(set(53, &[], None), Start { batch: 10, first: 0, options }, &skip()).is_err());
}

#[test]
fn bad_images_are_replaced_and_counted_once() {
    let bad = skip();
    let start = Start { batch: 20, first: 0, options: options(3) };
    let mut loader = loader(set(20, &[4, 5, 19], None), start, &bad).unwrap();
    for epoch in 0..3 {
        let batch = loader.next_batch().unwrap();
        let wanted = Sampler::new(20, 20, 1, 7).unwrap().epoch_order(epoch);
        for ((wanted, found), label) in wanted.iter().zip(&batch.indices).zip(&batch.labels) {
            let expected = match wanted {
                4 | 5 => 6,
                19 => 0,
                good => *good,
            };
            assert_eq!((*found, *label), (expected, expected as i64 % 10));
        }
        // Image 6 stands in for 4 and 5 as well, in views of their own.
        let views: Vec<&[u8]> =
            (0..20).filter(|&at| batch.indices[at] == 6).map(|at| &batch.views[0][at * 768..][..768]).collect();
        assert!(views.len() == 3 && views[0] != views[1] && views[1] != views[2]);
    }
    drop(loader);
    assert_eq!(bad.count(), 3);
}

#[test]
fn bad_images_can_be_fatal() {
    let start = Start { batch: 20, first: 0, options: options(2) };
    let bad = BadImages::new(OnBadImage::Fail);
    let mut loader = loader(set(20, &[13], None), start, &bad).unwrap();
    let message = format!("{:#}", loader.next_batch().unwrap_err());
    assert_eq!(message, "bad image trap 13: found dust, expected light");
    let message = format!("{:#}", loader.next_batch().unwrap_err());
    assert_eq!(message, "the loader has stopped after an earlier error");
}

#[test]
fn a_set_of_bad_images_is_an_error() {
    let all: Vec<usize> = (0..20).collect();
    let start = Start { batch: 5, first: 0, options: options(2) };
    let mut loader = loader(set(20, &all, None), start, &skip()).unwrap();
    let message = format!("{:#}", loader.next_batch().unwrap_err());
    assert!(message.starts_with("found 20 bad images in a row from trap"), "{message}");
    assert!(!message.contains('\n'));
}

#[test]
fn a_panic_in_a_worker_is_an_error_that_names_the_image() {
    let start = Start { batch: 20, first: 0, options: options(2) };
    let mut loader = loader(set(20, &[], Some(11)), start, &skip()).unwrap();
    let message = ends(move || format!("{:#}", loader.next_batch().unwrap_err()));
    assert_eq!(message, "a loader thread panicked at trap 11: a trap sprang");
}

#[test]
fn dropping_a_loader_ends_its_threads() {
    // With a full channel, in the middle of a slow batch, and before the first one.
    for (wait, delay) in [(300, 0), (50, 20), (0, 20)] {
        ends(move || {
            let set = Trapped { delay: Duration::from_millis(delay), ..set(2000, &[], None) };
            let set = Arc::new(set);
            let sampler = Sampler::new(2000, 1000, 1, 0).unwrap();
            let loader = Loader::new(set.clone(), augment(), sampler, 0, skip(), options(2)).unwrap();
            std::thread::sleep(Duration::from_millis(wait));
            drop(loader);
            // Nobody else holds the data set, so the thread and its closure are gone.
            assert_eq!(Arc::strong_count(&set), 1);
            let loads = set.loads.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(60));
            assert_eq!(set.loads.load(Ordering::Relaxed), loads);
        });
    }
}

#[test]
fn only_the_prefetched_batches_are_made() {
    for prefetch in [1, 3] {
        let set = Arc::new(set(1000, &[], None));
        let sampler = Sampler::new(1000, 10, 1, 0).unwrap();
        let options = LoaderOptions { workers: 2, prefetch, ..Default::default() };
        let mut loader = Loader::new(set.clone(), augment(), sampler, 0, skip(), options).unwrap();
        let loads_settle_at = |expected: usize| {
            for _ in 0..PATIENCE.as_millis() / 20 {
                std::thread::sleep(Duration::from_millis(20));
                if set.loads.load(Ordering::Relaxed) >= expected {
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(60));
            assert_eq!(set.loads.load(Ordering::Relaxed), expected, "prefetch {prefetch}");
        };
        loads_settle_at(10 * prefetch);
        loader.next_batch().unwrap();
        loads_settle_at(10 * (prefetch + 1));
    }
}

#[test]
fn evaluation_is_in_order_without_bad_images() {
    let config = SyntheticConfig { eval_images: 25, size: 16, ..Default::default() };
    let eval = Trapped { inner: Synthetic::eval(&config), ..set(1, &[3, 24], None) };
    let eval = Arc::new(eval);
    let bad = skip();
    let start = |indices: Vec<u32>, bad: &Arc<BadImages>| {
        EvalLoader::new(eval.clone(), augment(), indices, 10, bad.clone(), options(2)).unwrap()
    };
    let found: Vec<_> = start((0..25).collect(), &bad).map(Result::unwrap).collect();
    let sizes: Vec<usize> = found.iter().map(|batch| batch.labels.len()).collect();
    assert_eq!((sizes, bad.count()), (vec![9, 10, 4], 2));
    let indices: Vec<u32> = found.iter().flat_map(|batch| batch.indices.clone()).collect();
    assert_eq!(indices, (0..25).filter(|index| ![3, 24].contains(index)).collect::<Vec<u32>>());
    let mut image = Pixels::default();
    for batch in &found {
        for (at, &index) in batch.indices.iter().enumerate() {
            // At its own size the evaluation view is the image itself.
            eval.inner.load(index as usize, &mut image).unwrap();
            assert_eq!(batch.pixels[at * 768..][..768], image.data);
            assert_eq!(batch.labels[at], index as i64 % 10);
        }
        assert_eq!(batch.pixels.len(), batch.labels.len() * 768);
    }
    let mut chosen = start(vec![7, 2, 7], &bad);
    assert_eq!(chosen.next().unwrap().unwrap().indices, [7, 2, 7]);
    assert!(chosen.next().is_none());
    let mut fatal = start(vec![1, 3], &BadImages::new(OnBadImage::Fail));
    assert!(fatal.next().unwrap().is_err());
    assert!(fatal.next().is_none());
}

#[test]
fn a_batch_larger_than_the_set_is_refused() {
    let start = Start { batch: 21, first: 0, options: options(1) };
    let error = loader(set(20, &[], None), start, &skip()).err().unwrap();
    assert_eq!(error.to_string(), "found batch size 21, expected 1 to 20, the number of images");
}
