//! What `auto` stands for, from a bounded number of a set's images: how many channels they have, which of their values
//! become 0 and 255, and the mean and standard deviation of each channel. The images are drawn with a fixed seed, so
//! the result is the same in every run.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use super::decode::{self, Look};
use super::values::{Channels, ValueRange};
use super::{DataConfig, Dataset};
use crate::logging::progress::Bar;
use crate::pixels::Pixels;
use crate::rng::{Purpose, Stream};

/// Headers that are read at first: enough if they are of ordinary pictures.
const FIRST_LOOKS: usize = 64;
/// Headers that are read at most.
const LOOKS: usize = 1024;
/// Images whose values are read for the range, and for mean and standard deviation.
const SCANNED: usize = 512;
/// Values of all channels that are kept for the range.
const KEPT: usize = 1 << 22;
/// The percentiles that become 0 and 255.
const PERCENTILES: [f64; 2] = [0.1, 99.9];

/// Channels and range of a set's images: those of the config, or where these are `auto` those found.
pub fn measure(set: &dyn Dataset, config: &DataConfig, progress: bool) -> Result<(usize, ValueRange)> {
    let looks = looks(set, config);
    let channels = match config.channels {
        Channels::Count(count) => count,
        Channels::Auto => channels(set, &looks)?,
    };
    let range = match &config.value_range {
        ValueRange::Auto => range(set, config, channels, &looks, progress)?,
        set => set.clone(),
    };
    Ok((channels, range))
}

/// Channels and type of an image's values, such as `3-channel 8-bit`; `None` where the set has pixels, or no such image.
pub fn kind(set: &dyn Dataset, index: usize, config: &DataConfig) -> Option<String> {
    let mut found = None;
    let read = set.with_encoded(index, &mut |bytes| {
        found = Some(decode::look(bytes, config.axes)?);
        Ok(())
    });
    let look = read.ok().and(found)?;
    let bits = look.sample.trim_start_matches(char::is_alphabetic);
    let (before, after) = match look.sample.as_bytes().first() {
        Some(b'i') => ("signed ", ""),
        Some(b'f') => ("", " float"),
        _ => ("", ""),
    };
    Some(format!("{}-channel {before}{bits}-bit{after}", look.channels))
}

/// Positions of images, in an order that is the same in every run.
fn chosen(set: &dyn Dataset, count: usize) -> Vec<usize> {
    let mut all: Vec<u32> = (0..set.len() as u32).collect();
    Stream::new(0, Purpose::Subset, 0, 0, 2).shuffle(&mut all);
    all.into_iter().take(count).map(|index| index as usize).collect()
}

/// The headers of some images; none for a set that has pixels. Unreadable images are left out.
fn looks(set: &dyn Dataset, config: &DataConfig) -> BTreeMap<usize, Look> {
    let look = |&index: &usize| {
        let mut found = None;
        let read = set.with_encoded(index, &mut |bytes| {
            found = Some(decode::look(bytes, config.axes)?);
            Ok(())
        });
        read.ok().and(found).map(|look| (index, look))
    };
    let indices = chosen(set, LOOKS);
    let (first, more) = indices.split_at(FIRST_LOOKS.min(indices.len()));
    let mut looks: BTreeMap<usize, Look> = first.par_iter().filter_map(look).collect();
    let ordinary = looks.values().all(|look| look.sample == "u8" && [1, 3].contains(&colors(look)));
    if !(ordinary && (looks.is_empty() || looks.values().any(|look| colors(look) == 3))) {
        looks.extend(more.par_iter().filter_map(look).collect::<Vec<_>>());
    }
    looks
}

/// Channels without alpha.
fn colors(look: &Look) -> usize {
    look.channels - usize::from(look.alpha)
}

fn channels(set: &dyn Dataset, looks: &BTreeMap<usize, Look>) -> Result<usize> {
    let mut kinds: BTreeMap<usize, usize> = BTreeMap::new();
    looks.iter().for_each(|(&index, look)| {
        kinds.entry(colors(look)).or_insert(index);
    });
    if let Some((index, _)) = looks.iter().find(|(_, look)| look.alpha && look.channels == 4) {
        log::debug!("{}: alpha is dropped; data.channels=4 keeps it", set.describe(*index));
    }
    match kinds.keys().copied().collect::<Vec<_>>()[..] {
        [] | [1, 3] => Ok(3),
        [one] => Ok(one),
        _ => {
            let kinds: Vec<String> =
                kinds.iter().take(3).map(|(n, &index)| format!("{n} in {}", set.describe(index))).collect();
            bail!(
                "data.channels: found images with other numbers of channels ({}), expected the same in all; set \
                 data.channels to the number of those to use, or put them into folders of their own",
                kinds.join(", ")
            )
        }
    }
}

fn range(
    set: &dyn Dataset,
    config: &DataConfig,
    channels: usize,
    looks: &BTreeMap<usize, Look>,
    progress: bool,
) -> Result<ValueRange> {
    let samples: BTreeMap<&str, usize> = looks.iter().map(|(&index, look)| (look.sample.as_str(), index)).collect();
    if samples.len() > 1 {
        let kinds: Vec<String> = samples.iter().map(|(kind, &at)| format!("{kind} in {}", set.describe(at))).collect();
        log::warn!(
            "data.value_range: found values of several types ({}): full, the whole range of each file's type, is used; \
             set data.value_range if they have the same unit",
            kinds.join(", ")
        );
    }
    match samples.keys().next() {
        Some(&kind) if samples.len() == 1 && kind != "u8" => scan(set, config, channels, kind, progress),
        _ => Ok(ValueRange::Full),
    }
}

/// Progress of work that several threads do.
struct Done(Mutex<(Option<Bar>, usize)>);

impl Done {
    fn new(progress: bool, what: &str, total: usize) -> Self {
        Self(Mutex::new((progress.then(|| Bar::new(what, total)), 0)))
    }

    fn add_one(&self) {
        let mut done = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        done.1 += 1;
        if let (Some(bar), count) = &*done {
            bar.set(*count);
        }
    }
}

/// Percentiles of the values of some images.
fn scan(set: &dyn Dataset, config: &DataConfig, channels: usize, kind: &str, progress: bool) -> Result<ValueRange> {
    let indices = chosen(set, SCANNED);
    let per_image = KEPT / channels.max(4) / indices.len().max(1);
    let done = Done::new(progress, "range of values", indices.len());
    let read = |&index: &usize| -> Option<Vec<Vec<f64>>> {
        let mut values = vec![Vec::new(); channels];
        let read = set.with_encoded(index, &mut |bytes| {
            let raster = decode::decode_raster(bytes, config.decode_options(), config.axes)?;
            let step = (raster.width * raster.height).div_ceil(per_image.max(1));
            raster.sample(&raster.picks(channels)?, step, |channel, value| {
                if value.is_finite() {
                    values[channel].push(value);
                }
            });
            Ok(())
        });
        done.add_one();
        read.ok().filter(|read| *read).map(|_| values)
    };
    let images: Vec<Vec<Vec<f64>>> = indices.par_iter().filter_map(read).collect();
    ensure!(!images.is_empty(), "data.value_range: found no readable image among {}, expected one", indices.len());
    let (mut ranges, mut outside, mut all) = (Vec::new(), 0, 0);
    for channel in 0..channels {
        let mut values: Vec<f64> = images.iter().flat_map(|image| image[channel].iter().copied()).collect();
        let [low, mut high] = percentiles(&mut values);
        if low == high {
            log::warn!("data.value_range: channel {} has the value {low} everywhere", channel + 1);
            high = low + 1.0;
        }
        outside += values.iter().filter(|value| !(low..=high).contains(*value)).count();
        all += values.len();
        ranges.push([low, high]);
    }
    let range = if channels == 1 { ValueRange::All(ranges[0]) } else { ValueRange::Each(ranges) };
    log::info!(
        "data.value_range: {range}, the percentiles {} and {} of {kind} values in {} images; {:.2} % of the values lie \
         outside and are clipped",
        PERCENTILES[0],
        PERCENTILES[1],
        images.len(),
        100.0 * outside as f64 / (all as f64).max(1.0)
    );
    Ok(range)
}

/// As `numpy.percentile`. Sorts the values.
fn percentiles(values: &mut [f64]) -> [f64; 2] {
    values.sort_unstable_by(f64::total_cmp);
    PERCENTILES.map(|percent| {
        let place = percent / 100.0 * values.len().saturating_sub(1) as f64;
        let at = |place: f64| values.get(place as usize).copied().unwrap_or(0.0);
        at(place.floor()) + (at(place.ceil()) - at(place.floor())) * place.fract()
    })
}

/// Mean and standard deviation of each channel of a set's images, on the 0..1 scale, over all pixels of some of them.
///
/// # Errors
/// None of them can be read.
pub fn mean_and_std(set: &dyn Dataset, channels: usize, progress: bool) -> Result<[Vec<f64>; 2]> {
    let indices = chosen(set, SCANNED);
    let done = Done::new(progress, "mean and standard deviation", indices.len());
    let none = || vec![[0u64; 3]; channels];
    let add = |mut sums: Vec<[u64; 3]>, other: Vec<[u64; 3]>| {
        sums.iter_mut().flatten().zip(other.into_iter().flatten()).for_each(|(sum, more)| *sum += more);
        sums
    };
    let sums = indices.par_iter().map_init(Pixels::default, |image, &index| {
        let mut sums = none();
        if set.load(index, image).is_ok() && image.channels == channels {
            for (channel, sums) in sums.iter_mut().enumerate() {
                let values = image.data[channel..].iter().step_by(channels).map(|v| u64::from(*v));
                *sums = values.fold(*sums, |[count, sum, squares], v| [count + 1, sum + v, squares + v * v]);
            }
        }
        done.add_one();
        sums
    });
    let sums = sums.reduce(none, add);
    ensure!(sums[0][0] > 0, "augment.mean: found no readable image among {}, expected one", indices.len());
    // Four digits, as such numbers are published.
    let rounded = |value: f64| (value * 1e4).round() / 1e4;
    let means = sums.iter().map(|&[count, sum, _]| sum as f64 / count as f64);
    let stds = sums.iter().zip(means.clone()).map(|(&[count, _, squares], mean)| {
        let variance = squares as f64 / count as f64 - mean * mean;
        rounded(variance.max(0.0).sqrt() / 255.0).max(1e-4)
    });
    let [mean, std] = [means.map(|mean| rounded(mean / 255.0)).collect::<Vec<_>>(), stds.collect()];
    log::info!("augment.mean: {mean:?}, augment.std: {std:?}, of {} images", indices.len());
    Ok([mean, std])
}

#[cfg(test)]
mod tests {
    use super::*;

    // >>> np.percentile(np.arange(1001.0)**2, [0.1, 99.9])
    #[test]
    fn percentiles_are_numpys() {
        let mut values: Vec<f64> = (0..1001).rev().map(|v| f64::from(v * v)).collect();
        let [low, high] = percentiles(&mut values);
        assert!((low - 1.0).abs() < 1e-9 && (high - 998_001.0).abs() < 1e-6, "{low} {high}");
        // >>> np.percentile([3.0, 1.0, 2.0], [0.1, 99.9])
        let [low, high] = percentiles(&mut [3.0, 1.0, 2.0]);
        assert!((low - 1.002).abs() < 1e-12 && (high - 2.998).abs() < 1e-12, "{low} {high}");
        assert_eq!(percentiles(&mut [7.0]), [7.0, 7.0]);
    }
}
