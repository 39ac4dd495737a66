//! What a loader promises when things go wrong: a panic anywhere ends it with that message, its memory has a bound in
//! bytes, and a thousand bad images do not fill the log.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use byol::augment::AugmentConfig;
use byol::data::loader::sampler::Sampler;
use byol::data::loader::{BadImages, EvalLoader, Loader, LoaderOptions};
use byol::data::{Dataset, OnBadImage};
use byol::pixels::Pixels;
use log::{LevelFilter, Log, Metadata, Record};
use native::peak_bytes;

use crate::alone;

use crate::support::run::PATIENCE;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Nowhere,
    Load,
    Describe,
    Label,
}

/// Waits until the loaders have made all that they may: until all of their threads sleep, twice in a row.
fn settle() {
    let (start, mut asleep) = (Instant::now(), 0);
    while asleep < 2 {
        assert!(start.elapsed() < PATIENCE, "the loaders' threads do not come to rest");
        std::thread::sleep(Duration::from_millis(10));
        asleep = if loaders_sleep() { asleep + 1 } else { 0 };
    }
}

/// A thread that waits for a core counts as running, so a busy machine makes no difference.
fn loaders_sleep() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
    // "TID (NAME) STATE ..."; a thread may end meanwhile.
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok()).all(|stat| {
        let (name, state) = stat.rsplit_once(") ").expect("a name and a state");
        !name.contains("(byol-loader") || state.starts_with('S')
    })
}

/// Gray images, some of them bad; image `at` panics.
#[derive(Clone)]
struct Trapped {
    images: usize,
    good: usize,
    place: Place,
    at: usize,
}

impl Trapped {
    fn spring(&self, place: Place, index: usize) {
        assert!(self.place != place || self.at != index, "a trap sprang in {place:?}");
    }
}

impl Dataset for Trapped {
    fn len(&self) -> usize {
        self.images
    }
    fn label(&self, index: usize) -> Option<i64> {
        self.spring(Place::Label, index);
        Some(0)
    }
    fn class_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        self.spring(Place::Load, index);
        if index >= self.good || self.place == Place::Describe && self.at == index {
            bail!("found dust");
        }
        out.resize(16, 16);
        Ok(())
    }
    fn describe(&self, index: usize) -> String {
        self.spring(Place::Describe, index);
        format!("trap {index}")
    }
    fn name(&self, index: usize) -> String {
        self.describe(index)
    }
    fn fingerprint(&self) -> String {
        String::new()
    }
}

fn augment(size: usize) -> AugmentConfig {
    AugmentConfig { size: size.into(), ..Default::default() }
}

/// Fails instead of hanging.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(work()).ok());
    receiver.recv_timeout(PATIENCE).expect("it hangs")
}

#[test]
fn a_panic_in_any_worker_ends_the_loader_with_its_message() {
    let _alone = alone();
    for place in [Place::Load, Place::Describe, Place::Label] {
        for workers in [1, 2, 8] {
            let set = Trapped { images: 60, good: 60, place, at: 41 };
            let name = if place == Place::Describe { "image 41" } else { "trap 41" };
            let expected = format!("a loader thread panicked at {name}: a trap sprang in {place:?}");
            let options = LoaderOptions { workers, prefetch: 2, ..Default::default() };
            let bad = || BadImages::new(OnBadImage::Skip);
            let training = set.clone();
            let message = in_time(move || {
                let sampler = Sampler::new(60, 10, 1, 7).unwrap();
                let mut loader = Loader::new(Arc::new(training), augment(16), sampler, 0, bad(), options).unwrap();
                let error = (0..6).find_map(|_| loader.next_batch().err()).expect("the sixth batch at the latest");
                let again = format!("{:#}", loader.next_batch().unwrap_err());
                assert_eq!(again, "the loader has stopped after an earlier error");
                format!("{error:#}")
            });
            assert_eq!(message, expected, "training, {workers} workers");
            let found = in_time(move || {
                let loader = EvalLoader::new(Arc::new(set), augment(16), (0..60).collect(), 10, bad(), options);
                loader.unwrap().map(|batch| batch.map(|batch| batch.labels.len())).collect::<Vec<_>>()
            });
            // Never a shorter set without a word.
            assert_eq!(found.iter().flatten().collect::<Vec<_>>(), [&10; 4], "evaluation, {workers} workers");
            assert_eq!(format!("{:#}", found[4].as_ref().unwrap_err()), expected, "evaluation, {workers} workers");
            assert_eq!(found.len(), 5);
        }
    }
}

/// Bytes of a training batch of 8 images of 64 px.
const BATCH: u64 = 8 * (2 * 64 * 64 * 3 + 12);

/// What a loader takes at most, besides what threads and their scratch images take, while each of three rounds uses
/// `held` batches and gives them back.
fn peak(bytes: u64, held: usize) -> u64 {
    let options = LoaderOptions { workers: 1, prefetch: 16, prefetch_bytes: bytes as usize, ..Default::default() };
    let set = Arc::new(Trapped { images: 400, good: 400, place: Place::Nowhere, at: 0 });
    let run = || {
        let sampler = Sampler::new(400, 8, 1, 7).unwrap();
        let bad = BadImages::new(OnBadImage::Skip);
        let mut loader = Loader::new(set.clone(), augment(64), sampler, 0, bad, options).unwrap();
        for _ in 0..3 {
            let batches: Vec<_> = (0..held).map(|_| loader.next_batch().unwrap()).collect();
            settle();
            batches.into_iter().for_each(|batch| loader.recycle(batch));
        }
    };
    peak_bytes(run).1
}

#[test]
fn a_loaders_batches_have_a_bound_in_bytes() {
    let _alone = alone();
    // Threads, channels, the scratch of 64 px.
    let slack = 2 * BATCH;
    peak(BATCH, 1);
    for (bytes, held) in [(1, 1), (BATCH, 3), (4 * BATCH + BATCH / 2, 1), (6 * BATCH, 5)] {
        let bound = bytes.max(BATCH) + held as u64 * BATCH;
        let found = peak(bytes, held);
        assert!(found <= bound + slack, "{bytes} bytes, {held} held: {found}, expected at most {bound} + {slack}");
    }
    // The count is a bound as before: 16 that wait, one that is asked for, and those in use.
    let found = peak(1 << 30, 1);
    assert!(found <= 18 * BATCH + slack && found > 12 * BATCH, "{found}");
}

#[test]
fn an_evaluation_loader_has_the_same_bound() {
    let _alone = alone();
    let batch = 8 * (64 * 64 * 3 + 12);
    // The first round makes what the process makes once.
    for (bytes, most) in [(1, 1 << 20), (1, 2), (3 * batch, 4), (1 << 30, 18)] {
        let options = LoaderOptions { workers: 1, prefetch: 16, prefetch_bytes: bytes, ..Default::default() };
        let set = Arc::new(Trapped { images: 400, good: 400, place: Place::Nowhere, at: 0 });
        let run = || {
            let bad = BadImages::new(OnBadImage::Skip);
            let loader = EvalLoader::new(set, augment(64), (0..400).collect(), 8, bad, options).unwrap();
            let images = loader.enumerate().map(|(number, batch)| {
                if number < 2 {
                    settle();
                }
                batch.unwrap().labels.len()
            });
            assert_eq!(images.sum::<usize>(), 400);
        };
        let found = peak_bytes(run).1;
        let (bound, slack) = (most * batch as u64, 3 * batch as u64);
        assert!(found <= bound + slack, "{bytes} bytes: {found}, expected at most {bound} + {slack}");
        assert!(bytes < 1 << 30 || found > 8 * batch as u64, "{found}: nothing was bounded");
    }
}

struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }
    fn log(&self, record: &Record) {
        self.0.lock().unwrap().push(format!("{}: {}", record.level(), record.args()));
    }
    fn flush(&self) {}
}

#[test]
fn many_bad_images_are_named_up_to_a_limit_and_counted_all() {
    let _alone = alone();
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Debug);
    let set = Arc::new(Trapped { images: 1000, good: 250, place: Place::Nowhere, at: 0 });
    let bad = BadImages::new(OnBadImage::Skip);
    let options = LoaderOptions { workers: 4, ..Default::default() };
    // Twice: what was seen is not said again.
    for _ in 0..2 {
        let loader = EvalLoader::new(set.clone(), augment(16), (0..1000).collect(), 64, bad.clone(), options).unwrap();
        assert_eq!(loader.map(|batch| batch.unwrap().labels.len()).sum::<usize>(), 250);
        assert_eq!(bad.count(), 750);
    }
    log::set_max_level(LevelFilter::Off);
    let lines = LINES.0.lock().unwrap();
    let warnings: Vec<&String> = lines.iter().filter(|line| line.starts_with("WARN")).collect();
    assert_eq!(warnings.len(), 21);
    assert!(warnings[..20].iter().all(|line| line.starts_with("WARN: skipping bad image trap ")), "{warnings:?}");
    let last = "WARN: more than 20 bad images: the others are counted, not named (--verbose names all)";
    assert_eq!(warnings[20], last);
    assert_eq!(lines.iter().filter(|line| line.starts_with("DEBUG: skipping bad image trap ")).count(), 730);
}
