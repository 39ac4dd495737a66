//! The training images of a command, and what `auto` becomes for them.

use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::augment::{AugmentConfig, PerChannel};
use crate::config::Config;
use crate::data::values::{Channels, MAX_CHANNELS, ValueRange};
use crate::data::{self, Dataset};
use crate::distributed::Group;

/// Whether anything in a config depends on the images that [`open_train`] finds out.
pub fn is_open(config: &Config) -> bool {
    let (mean, std) = open_statistics(config);
    config.data.channels == Channels::Auto || config.data.value_range == ValueRange::Auto || mean || std
}

/// Whether mean and standard deviation are to be computed: `auto`, or for other than RGB the default.
fn open_statistics(config: &Config) -> (bool, bool) {
    let (default, other) = (AugmentConfig::default(), config.channels() != 3);
    let open = |value: &PerChannel, default| *value == PerChannel::Auto || other && *value == default;
    (open(&config.augment.mean, default.mean), open(&config.augment.std, default.std))
}

/// Completes a config for random bytes in place of images.
pub fn assume_noise(config: &mut Config) {
    let (channels, (mean, std)) = (config.channels(), open_statistics(config));
    if mean {
        config.augment.mean = PerChannel::Values(vec![0.5; channels]);
    }
    if std {
        config.augment.std = PerChannel::Values(vec![0.25; channels]);
    }
}

/// Opens the training images, and replaces what is `auto` in their section and in `augment.mean` and `augment.std` by
/// what these images need: as rank 0 finds it, for all processes.
/// # Errors
/// They cannot be opened; their numbers of channels differ; mean, standard deviation or, `with_views`, some
/// augmentations are for other numbers.
pub fn open_train(config: &mut Config, group: &Group, with_views: bool) -> Result<Arc<dyn Dataset>> {
    let mut set = data::open_train(&config.data)?;
    let open = config.data.channels == Channels::Auto || config.data.value_range == ValueRange::Auto;
    // Rank 0 may have taken them from the run that is resumed, so it decides for all.
    let found = match (group.is_first(), open) {
        (true, true) => {
            let (channels, range) = data::measure::measure(&*set, &config.data, true)?;
            numbers(channels, &range)
        }
        (true, false) => numbers(config.channels(), &config.data.value_range),
        (false, _) => vec![0.0; numbers(3, &ValueRange::Full).len()],
    };
    let (channels, range) = from_numbers(&group.from_first(&found)?);
    if open {
        (config.data.channels, config.data.value_range) = (Channels::Count(channels), range);
        if channels != 3 {
            log::info!("data.channels: {channels}");
        }
        set = data::converted(set, &config.data);
    }
    config.connect();
    complete(config, &*set, group)?;
    let mut problems = config.channel_problems(config.channels());
    problems.retain(|(key, _)| with_views || !key.starts_with("augment.view"));
    let problems: Vec<String> = problems.into_iter().map(|(key, message)| format!("{key}: {message}")).collect();
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(set)
}

/// Computes mean and standard deviation where they are `auto`.
fn complete(config: &mut Config, set: &dyn Dataset, group: &Group) -> Result<()> {
    let channels = config.channels();
    let (mean, std) = open_statistics(config);
    let found = match (group.is_first(), mean || std) {
        (true, true) => data::measure::mean_and_std(set, channels, true)?.concat(),
        _ => vec![0.0; 2 * channels],
    };
    let own = |value: &PerChannel, open: bool, at: usize| match value {
        PerChannel::Values(values) if !open && values.len() == channels => values.clone(),
        _ => found[at..at + channels].to_vec(),
    };
    let augment = &config.augment;
    let all = [own(&augment.mean, mean, 0), own(&augment.std, std, channels)].concat();
    let all = group.from_first(&all)?;
    if mean {
        config.augment.mean = PerChannel::Values(all[..channels].to_vec());
    }
    if std {
        config.augment.std = PerChannel::Values(all[channels..].to_vec());
    }
    Ok(())
}

/// Logs how many values of the images were clipped, in all processes.
/// # Errors
/// Another process was lost or timed out.
pub fn report_clipped(set: &dyn Dataset, config: &Config, group: &Group) -> Result<()> {
    if config.data.value_range == ValueRange::Full {
        return Ok(());
    }
    let counts = group.sum(&set.clipped().map(|count| count as f64))?;
    let (clipped, all) = (counts[0], counts[1]);
    if clipped > 0.0 {
        log::info!("data.value_range: {clipped} of {all} values ({:.2} %) were clipped", 100.0 * clipped / all);
    }
    Ok(())
}

/// Channels and range as numbers, always as many: the channels, the number of ranges, the ranges.
fn numbers(channels: usize, range: &ValueRange) -> Vec<f64> {
    let ranges: &[[f64; 2]] = match range {
        ValueRange::Auto | ValueRange::Full => &[],
        ValueRange::All(range) => std::slice::from_ref(range),
        ValueRange::Each(ranges) => ranges,
    };
    let mut numbers = vec![channels as f64, ranges.len() as f64];
    numbers.extend(ranges.as_flattened());
    numbers.resize(2 + 2 * MAX_CHANNELS, 0.0);
    numbers
}

fn from_numbers(numbers: &[f64]) -> (usize, ValueRange) {
    let ranges = &numbers[2..].as_chunks::<2>().0[..numbers[1] as usize];
    let range = match ranges {
        [] => ValueRange::Full,
        [one] => ValueRange::All(*one),
        ranges => ValueRange::Each(ranges.to_vec()),
    };
    (numbers[0] as usize, range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_survive_as_numbers() {
        for (channels, range) in [
            (3, ValueRange::Full),
            (1, ValueRange::All([-1000.5, 3071.0])),
            (64, ValueRange::Each((0..64).map(|c| [f64::from(c), 1e9]).collect())),
        ] {
            assert_eq!(from_numbers(&numbers(channels, &range)), (channels, range));
        }
    }
}
