//! `byol bench loader`: throughput of the data loader (decoded images, two augmented views of each) by itself.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::augment::{Scratch, Size, Stages};
use crate::cli::BenchLoaderArgs;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::loader::sampler::Sampler;
use crate::data::loader::{BadImages, Loader, load_for_views};
use crate::distributed::Group;
use crate::files;
use crate::pixels::Pixels;
use crate::run::images;

/// The line of JSON on stdout.
#[derive(Serialize)]
struct Report {
    bench: &'static str,
    /// Images per second, two views of each.
    images_per_second: f64,
    workers: usize,
    /// Side of a view, pixels, or height and width.
    size: Size,
    /// Images of the data set.
    images: usize,
    /// Unreadable images so far.
    images_skipped: usize,
    /// Images per batch.
    batch: usize,
    /// Measured time of the loader, seconds.
    seconds: f64,
    /// On one thread, microseconds per image.
    stages_us: StageTimes,
    /// Heap allocations of the loader in the steady state.
    bytes_allocated_per_image: f64,
    /// Resident memory before and after the measurement, megabytes.
    resident_mb: [f64; 2],
    /// Vector instructions that the augmentations use.
    simd: &'static str,
}

#[derive(Serialize)]
struct StageTimes {
    /// Reading and decoding.
    decode: f64,
    /// Crop, resize and flip of both views.
    resize: f64,
    color: f64,
    blur: f64,
    rest: f64,
}

/// Runs the command.
pub fn run(args: &BenchLoaderArgs) -> Result<u8> {
    files::end_clean_on_signals()?;
    let mut config = Config::load(&args.source.config, &args.source.set)?;
    let place = |key: &str| Config::place(&args.source.config, &args.source.set, key);
    let path = format!("{}: data.path", place("data.path"));
    let dataset = images::open_train(&mut config, &Group::single(), true).context(path)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = args.workers.or(config.data.workers).unwrap_or(cores);
    let batch = config.train.micro_batch().min(dataset.len());
    let sampler = Sampler::new(dataset.len(), batch, 1, config.train.seed)?;
    let bad = BadImages::new(config.data.on_bad_image);

    log::info!("{} images, batch size {batch}, {workers} workers: {} s", dataset.len(), args.seconds);
    let total = Duration::from_secs_f64(args.seconds);
    let stages_us = stages(&config, &*dataset, &sampler, &bad, total / 4)?;

    let options = config.data.loader(workers);
    let mut loader = Loader::new(dataset.clone(), config.augment.clone(), sampler, 0, bad.clone(), options)?;
    let mut next = || -> Result<()> {
        let batch = loader.next_batch()?;
        loader.recycle(batch);
        Ok(())
    };
    // Warm-up: until every buffer and thread has been used.
    let warm_up = Instant::now();
    for done in 0.. {
        if done > options.prefetch && warm_up.elapsed() > total / 8 {
            break;
        }
        next()?;
    }
    let resident = native::resident_bytes();
    let allocated = native::allocated_bytes();
    let (started, mut batches) = (Instant::now(), 0);
    while started.elapsed() < total * 5 / 8 || batches == 0 {
        next()?;
        batches += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    let allocated = native::allocated_bytes() - allocated;
    let made = (batches * batch) as f64;
    let report = Report {
        bench: "loader",
        images_per_second: made / seconds,
        workers,
        size: config.augment.size,
        images: dataset.len(),
        images_skipped: bad.count(),
        batch,
        seconds,
        stages_us,
        bytes_allocated_per_image: allocated as f64 / made,
        resident_mb: [resident, native::resident_bytes()].map(|bytes| bytes as f64 / 1e6),
        simd: native::simd::level(),
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?).context("cannot write to stdout")?;
    Ok(0)
}

/// Microseconds per image in each stage, on this thread, measured for about `time`.
fn stages(
    config: &Config,
    dataset: &dyn Dataset,
    sampler: &Sampler,
    bad: &Arc<BadImages>,
    time: Duration,
) -> Result<StageTimes> {
    let bytes = config.augment.view_bytes();
    let (mut first, mut second) = (vec![0; bytes], vec![0; bytes]);
    let (mut pixels, mut scratch) = (Pixels::default(), Scratch::default());
    let (mut decode, mut images) = (Duration::ZERO, 0);
    let order = sampler.epoch_order(0);
    let mut started = Instant::now();
    for (round, &index) in order.iter().cycle().enumerate() {
        let before = Instant::now();
        let (seed, epoch) = (sampler.seed(), round as u64);
        let (_, draws) = load_for_views(dataset, index, bad, &config.augment, seed, epoch, &mut pixels)?;
        decode += before.elapsed();
        config.augment.apply(&pixels, &draws, &mut scratch, [&mut first[..], &mut second[..]]);
        images += 1;
        if scratch.stages.is_none() {
            // The first image has allocated the buffers: measure from here on.
            (decode, images, scratch.stages) = (Duration::ZERO, 0, Some(Stages::default()));
            started = Instant::now();
        } else if started.elapsed() > time {
            break;
        }
    }
    let all = started.elapsed();
    let Stages { resize, color, blur } = scratch.stages.unwrap_or_default();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / images as f64;
    let rest = all.saturating_sub(decode + resize + color + blur);
    Ok(StageTimes {
        decode: each(decode),
        resize: each(resize),
        color: each(color),
        blur: each(blur),
        rest: each(rest),
    })
}
