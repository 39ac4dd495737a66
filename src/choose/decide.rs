//! Decides by the [rules](super::rules): from the number and the size of the images, memory, speed and hours to views,
//! network, optimizer, batch and length.

use anyhow::{Result, ensure};
use serde_json::json;

use super::look::Facts;
use super::rules::{
    ANY, BATCH_NORM, CPU, CPU_HOURS, FEW_IMAGES, GPU, Kind, MAX_EPOCHS, MIN_MICRO_BATCH, SMALL_SET, TAU, UPDATES,
    WARMUP_EPOCHS, WARMUP_SHARE,
};
use super::{Choices, watch};
use crate::augment::PerChannel;
use crate::config::Config;
use crate::optim::Algorithm;

/// What is decided upon.
pub struct Case<'a> {
    /// The images.
    pub facts: &'a Facts,
    /// Whether a GPU is used.
    pub gpu: bool,
    /// The recipe that the user named; network, optimizer and length stay its own.
    pub preset: Option<&'a str>,
    /// Whether a config fits into memory.
    pub fits: &'a dyn Fn(&Config) -> bool,
}

/// How long to train.
pub struct Length {
    /// `--epochs`.
    pub epochs: Option<u64>,
    /// `--hours`.
    pub hours: Option<f64>,
    /// Images per second, about.
    pub rate: f64,
}

/// Chooses views, network, optimizer and batch.
/// # Errors
/// Fewer than two images.
pub fn network(case: &Case, choices: &mut Choices) -> Result<()> {
    let facts = case.facts;
    ensure!(facts.images >= 2, "found {} image, expected at least 2", facts.images);
    if case.preset.is_none() {
        let kinds: &[Kind] = if case.gpu { &GPU } else { &CPU };
        let fits = |kind: &&Kind| facts.sides[1] <= kind.side && facts.images < kind.images;
        let kind = kinds.iter().find(fits).unwrap_or(&kinds[kinds.len() - 1]);
        of_kind(kind, facts, choices)?;
    } else {
        let (size, name) = (choices.config.augment.size, case.preset.unwrap_or_default());
        choices.row("image size", format!("{size} px"), format!("preset {name}"), &["augment.size"]);
        let arch = choices.config.model.arch.to_string();
        choices.row("encoder", arch, format!("preset {name}"), &["model.arch", "model.width"]);
    }
    colors(facts, choices)?;
    batch(case, choices)
}

fn of_kind(kind: &Kind, facts: &Facts, choices: &mut Choices) -> Result<()> {
    let source = kind.source;
    let median = format!("images of about {} px; {source}", facts.sides[1]);
    choices.set("augment.size", kind.size, &median)?;
    let size = choices.config.augment.size;
    choices.row("image size", format!("{size} px"), median, &["augment.size"]);
    if size.long() <= 48 {
        let reason = "no blur at this size, as solo-learn and lightly";
        choices.set("augment.view1.blur_prob", 0.0, reason)?;
        choices.set("augment.view2.blur_prob", 0.0, reason)?;
    }
    if facts.images < SMALL_SET {
        let reason = format!("below {SMALL_SET} images (used, never ablated)");
        choices.set("augment.view1.crop_scale", [0.2, 1.0], &reason)?;
        choices.set("augment.view2.crop_scale", [0.2, 1.0], &reason)?;
    }
    choices.set("model.arch", kind.arch, source)?;
    choices.set("model.width", kind.width, source)?;
    // The user's size may need another stem.
    choices.set("model.stem", if size.long() <= 48 { "cifar" } else { kind.stem }, source)?;
    for (key, units) in ["projector_hidden", "projection_dim", "predictor_hidden"].iter().zip(kind.heads) {
        choices.set(&format!("model.{key}"), units, source)?;
    }
    choices.set("model.output_bias", kind.optimizer == "lars", source)?;
    let model = &choices.config.model;
    let width = if model.width == 1.0 { String::new() } else { format!(", width {}", model.width) };
    let encoder = format!("{}{width}, stem {}", model.arch, model.stem);
    let why = if kind.images == ANY { source.to_string() } else { format!("below {} images; {source}", kind.images) };
    choices.row("encoder", encoder, why, &["model.arch", "model.width", "model.stem"]);
    choices.set("optimizer.name", kind.optimizer, source)?;
    choices.set("optimizer.base_lr", kind.base_lr, source)?;
    choices.set("optimizer.weight_decay", kind.weight_decay, source)?;
    choices.set("optimizer.eta", kind.eta, source)?;
    let lars = choices.config.optimizer.name == Algorithm::Lars; // the user may want another one
    choices.set("optimizer.clip_lr", kind.clip && lars, source)?;
    choices.set("train.batch_size", kind.batch, source)
}

/// Mean and standard deviation, as measured.
fn colors(facts: &Facts, choices: &mut Choices) -> Result<()> {
    if facts.channels != (3, true) {
        return other_channels(facts, choices);
    }
    let reason = format!("measured on {} images", facts.sampled);
    let rounded = |values: &[f64], low: f64| -> Vec<f64> {
        values.iter().map(|value| (value.clamp(low, 1.0) * 1e3).round() / 1e3).collect()
    };
    choices.set("augment.mean", rounded(&facts.mean, 0.0), &reason)?;
    // Images of one color would be divided by nothing.
    choices.set("augment.std", rounded(&facts.std, 0.05), &reason)?;
    let shown =
        |values: &PerChannel| values.values().iter().map(|value| format!("{value:.3}")).collect::<Vec<_>>().join(" ");
    let augment = &choices.config.augment;
    let (mean, std) = (shown(&augment.mean), shown(&augment.std));
    choices.row("mean", mean, reason.clone(), &["augment.mean"]);
    choices.row("std", std, reason, &["augment.std"]);
    Ok(())
}

/// Images other than 8-bit RGB: the run itself finds range, mean and standard deviation; color jitter is for RGB.
fn other_channels(facts: &Facts, choices: &mut Choices) -> Result<()> {
    let (channels, reason) = (facts.channels.0, "computed when the run starts");
    choices.set("augment.mean", "auto", reason)?;
    choices.set("augment.std", "auto", reason)?;
    if !matches!(channels, 1 | 3) {
        for key in ["saturation", "hue", "grayscale_prob"] {
            for view in ["view1", "view2"] {
                choices.set(&format!("augment.{view}.{key}"), 0.0, "for RGB only")?;
            }
        }
    }
    choices.row("channels", channels.to_string(), "of all that were looked at".into(), &["data.channels"]);
    choices.row("mean, std", "auto".into(), reason.into(), &["augment.mean", "augment.std"]);
    Ok(())
}

/// The batch: that of the recipe, lowered to what the data and the memory have room for.
fn batch(case: &Case, choices: &mut Choices) -> Result<()> {
    let (images, recipe) = (case.facts.images, choices.config.train.batch_size);
    let fixed = choices.is_fixed("train.batch_size");
    let (mut batch, mut reason) = (recipe, "as in the recipe".to_string());
    if case.preset.is_none() && images < FEW_IMAGES && batch > BATCH_NORM {
        (batch, reason) = (BATCH_NORM, format!("below {FEW_IMAGES} images"));
    }
    if batch > images {
        batch = 1 << images.ilog2();
        reason = format!("lowered from {recipe}: there are {images} images");
    }
    let with = |batch: usize, parts: usize, choices: &Choices| {
        let mut config = choices.config.clone();
        (config.train.batch_size, config.train.accumulation_steps) = (batch, parts);
        config
    };
    let own = choices.config.train.accumulation_steps;
    let mut parts = if batch.is_multiple_of(own) && batch / own >= BATCH_NORM { own } else { 1 };
    while batch / parts / 2 >= BATCH_NORM && !(case.fits)(&with(batch, parts, choices)) {
        batch /= 2;
        reason = format!("lowered from {recipe}: more does not fit into memory");
    }
    while batch / parts / 2 >= MIN_MICRO_BATCH && !(case.fits)(&with(batch, parts, choices)) {
        parts *= 2;
        reason = format!("in {parts} micro-batches: more does not fit into memory");
    }
    let factor = batch as f64 / recipe as f64;
    if !fixed {
        choices.set("train.batch_size", batch, &reason)?;
        choices.set("train.accumulation_steps", parts, &reason)?;
        if case.preset.is_some() && factor < 1.0 {
            let tau = choices.config.ema.base_tau.powf(factor);
            choices.set("ema.base_tau", (tau * 1e5).round() / 1e5, "the preset's, for the lower batch: tau^factor")?;
        }
    }
    let train = &choices.config.train;
    let micro = match train.accumulation_steps {
        1 => String::new(),
        parts => format!(" in {parts} micro-batches"),
    };
    let value = format!("{}{micro}", train.batch_size);
    choices.row("batch", value, reason, &["train.batch_size"]);
    let optimizer = &choices.config.optimizer;
    let rate = format!(
        "{} {:.4}",
        json!(optimizer.name).as_str().unwrap_or_default(),
        optimizer.peak_lr(choices.config.train.batch_size)
    );
    let scaled = format!("peak rate: {} per 256 images", optimizer.base_lr);
    choices.row("optimizer", rate, scaled, &["optimizer.name", "optimizer.base_lr"]);
    Ok(())
}

/// Chooses epochs, warmup, tau, and how often to evaluate, log and save.
pub fn length(case: &Case, length: &Length, choices: &mut Choices) -> Result<()> {
    let (images, batch) = (case.facts.images, choices.config.train.batch_size.max(1));
    let per_epoch = (images / batch).max(1) as f64;
    let fit = |hours: f64| hours * 3600.0 * length.rate / batch as f64;
    let hours = length.hours.or(choices.config.schedule.hours);
    let own = choices.is_fixed("schedule.epochs") || case.preset.is_some();
    let hours = hours.or((length.epochs.is_none() && !case.gpu && !own).then_some(CPU_HOURS));
    let (epochs, reason) = match (length.epochs, hours) {
        (Some(epochs), _) => (epochs as f64, "your --epochs".to_string()),
        (None, Some(hours)) => {
            let why = if length.hours.is_some() {
                "your --hours"
            } else {
                "no GPU: an hour unless --hours or --epochs say otherwise"
            };
            ((fit(hours) / per_epoch).ceil(), format!("{why}; set once the speed is known"))
        }
        (None, None) if own => (choices.config.schedule.epochs as f64, "as in the recipe".to_string()),
        (None, None) => {
            let epochs = (UPDATES / per_epoch).ceil();
            let why =
                if epochs > MAX_EPOCHS { format!("at most {MAX_EPOCHS} epochs") } else { "100 000 updates".into() };
            (epochs.min(MAX_EPOCHS), why)
        }
    };
    let epochs = epochs.clamp(1.0, 1e6);
    let updates = hours.map_or(f64::INFINITY, fit).min(epochs * per_epoch).max(1.0);
    choices.set("schedule.epochs", epochs as u64, &reason)?;
    choices.set("schedule.hours", hours, &reason)?;
    let value = match hours {
        Some(hours) => format!("{hours} h, about {updates:.0} updates"),
        None => format!("{epochs:.0} epochs, {updates:.0} updates"),
    };
    choices.row("length", value, reason, &["schedule.epochs", "schedule.hours"]);
    let warmup = WARMUP_EPOCHS.min(epochs * WARMUP_SHARE);
    let warmup = (warmup * 1e4).round() / 1e4;
    choices.set("schedule.warmup_epochs", warmup, "10 epochs, at most a tenth of the run")?;
    if case.preset.is_none() {
        let (below, tau) = TAU.into_iter().find(|(most, _)| updates < *most).unwrap_or(TAU[2]);
        let reason = if below.is_finite() { format!("below {below:.0} updates") } else { "a long run".into() };
        choices.set("ema.base_tau", tau, &reason)?;
        choices.row("tau", format!("{tau} to 1"), reason, &["ema.base_tau"]);
    }
    let warmup = choices.config.schedule.warmup_epochs;
    choices.row(
        "warmup",
        format!("{warmup} epochs"),
        "10 epochs, at most a tenth of the run".into(),
        &["schedule.warmup_epochs"],
    );
    watch::watch(case.facts, epochs, updates, batch, choices)
}

#[cfg(test)]
mod tests {
    use super::super::rules::SHARE_OF_MEMORY;
    use super::*;
    use crate::run::memory::Estimate;
    use tch::Device;

    fn facts(images: usize, side: usize) -> Facts {
        let labeled = images.is_multiple_of(2).then_some(images);
        let (mean, std) = ([0.5; 3], [0.2; 3]);
        Facts {
            channels: (3, true),
            images,
            sampled: images.min(512),
            sides: [side; 3],
            mean: mean.to_vec(),
            std: std.to_vec(),
            labeled,
            classes: 3,
            ..Facts::default()
        }
    }

    /// Every choice is a valid config that fits data, memory and time.
    #[test]
    fn a_grid_of_images_sizes_memory_and_hours_gives_valid_configs() {
        let gigabytes = [4u64, 8, 24, 80];
        for images in [2, 3, 60, 127, 128, 500, 1999, 2000, 9_999, 50_000, 99_999, 100_000, 1_300_000, 20_000_000] {
            for side in [8, 32, 48, 49, 96, 160, 161, 375, 4000] {
                for (gpu, memory) in gigabytes.into_iter().flat_map(|memory| [(true, memory), (false, memory)]) {
                    for (hours, rate) in [(None, 1000.0), (Some(0.01), 5.0), (Some(2.0), 300.0), (Some(200.0), 5000.0)]
                    {
                        check(images, side, gpu, memory, hours, rate);
                    }
                }
            }
        }
    }

    fn check(images: usize, side: usize, gpu: bool, memory: u64, hours: Option<f64>, rate: f64) {
        let case = format!("{images} images, {side} px, gpu {gpu}, {memory} GB, {hours:?} h");
        let device = if gpu { Device::Cuda(0) } else { Device::Cpu };
        let fits = |config: &Config| {
            let (host, on_device) = Estimate::new(config, gpu).peaks(device, config.train.cuda_graph);
            on_device.unwrap_or(host) as f64 <= SHARE_OF_MEMORY * memory as f64 * 1e9
        };
        let facts = facts(images, side);
        let given = Case { facts: &facts, gpu, preset: None, fits: &fits };
        let mut choices = Choices::new(Config::default(), &[]);
        network(&given, &mut choices).expect(&case);
        length(&given, &Length { epochs: None, hours, rate }, &mut choices).expect(&case);
        let config = &choices.config;
        for (name, section) in config.sections() {
            assert_eq!(section.problems(), [], "{case}: {name}");
        }
        let train = &config.train;
        assert!(train.batch_size <= images && train.batch_size.is_multiple_of(train.accumulation_steps), "{case}");
        assert!(train.batch_size >= BATCH_NORM || images < BATCH_NORM, "{case}: batch {}", train.batch_size);
        assert!(fits(config) || train.micro_batch() <= MIN_MICRO_BATCH, "{case}: {}", train.batch_size);
        assert!(memory < 8 || fits(config), "{case}: 8 GB are enough");
        assert_eq!(config.schedule.hours, hours.or((!gpu).then_some(CPU_HOURS)), "{case}");
        assert_eq!(config.monitor.knn_every.is_some(), facts.labeled.is_some(), "{case}");
        if let Some(hours) = hours {
            let updates = (config.schedule.epochs * (images / train.batch_size) as u64) as f64;
            let fit = hours * 3600.0 * rate / train.batch_size as f64;
            assert!(updates + 1.0 >= fit.floor() || config.schedule.epochs == 1_000_000, "{case}: {updates} of {fit}");
        }
        assert!(choices.rows.iter().all(|row| !row.reason.is_empty() && !row.value.is_empty()), "{case}");
    }

    #[test]
    fn sizes_and_numbers_choose_the_encoder() {
        for (images, side, gpu, size, arch) in [
            (50_000, 32, true, 32usize, "resnet18"),
            (9_469, 160, true, 128, "resnet18"),
            (20_000, 500, true, 224, "resnet18"),
            (1_281_167, 375, true, 224, "resnet50"),
            (1_281_167, 375, false, 64, "resnet18"),
            (50_000, 32, false, 32, "resnet18"),
        ] {
            let facts = facts(images, side);
            let mut choices = Choices::new(Config::default(), &[]);
            network(&Case { facts: &facts, gpu, preset: None, fits: &|_| true }, &mut choices).unwrap();
            let found = (choices.config.augment.size, choices.config.model.arch.to_string());
            assert_eq!(found, (size.into(), arch.to_string()), "{images} {side}");
        }
    }

    #[test]
    fn one_image_is_refused() {
        let (facts, mut choices) = (facts(1, 32), Choices::new(Config::default(), &[]));
        let error =
            network(&Case { facts: &facts, gpu: false, preset: None, fits: &|_| true }, &mut choices).unwrap_err();
        assert_eq!(error.to_string(), "found 1 image, expected at least 2");
    }
}
