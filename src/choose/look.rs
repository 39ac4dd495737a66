//! What a sample of the images shows: sizes, gray or color, mean and standard deviation, labels, time to decode.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rayon::prelude::*;

use super::Choices;
use crate::config::Config;
use crate::data::subset::spread;
use crate::data::values::{Channels, ValueRange};
use crate::data::{self, DataConfig, Dataset, measure};
use crate::inspect::Colors;
use crate::pixels::Pixels;
use crate::rng::{Purpose, Stream};

/// Images that are looked at, and the time after which no more are.
const SAMPLE: usize = 512;
const TIME: Duration = Duration::from_secs(8);

/// What the rules need to know of the images.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Number of images.
    pub images: usize,
    /// Images that were looked at and could be read.
    pub sampled: usize,
    /// Images that were looked at and could not.
    pub bad: usize,
    /// The first of them, and why.
    pub first_bad: String,
    /// Short sides in pixels: smallest, median, largest.
    pub sides: [usize; 3],
    /// Channels that the run will have, and whether the values are those of 8 bits.
    pub channels: (usize, bool),
    /// Images without color.
    pub gray: usize,
    /// Per channel, in 0..1.
    pub mean: Vec<f64>,
    /// Per channel, in 0..1.
    pub std: Vec<f64>,
    /// Images with a label, if these have several classes.
    pub labeled: Option<usize>,
    /// Number of classes.
    pub classes: usize,
    /// Labeled held-out images.
    pub held_out: usize,
    /// Seconds to read and decode an image on one thread, the mean.
    pub decode_seconds: f64,
}

/// What one image says.
struct Look {
    side: usize,
    colors: Colors,
    seconds: f64,
}

/// Opens the images of a config, and looks at a sample.
/// # Errors
/// They cannot be opened; none of the sample can be read.
pub fn look(config: &Config) -> Result<Facts> {
    let set = data::open_train(&config.data)?;
    let (channels, range) = measure::measure(&*set, &config.data, true)?;
    let (own, is_full) = (Channels::Count(channels), range == ValueRange::Full);
    let set = data::converted(set, &DataConfig { channels: own, value_range: range, ..config.data.clone() });
    let mut order = spread(set.len(), SAMPLE);
    Stream::new(0, Purpose::Subset, 0, 0, 0).shuffle(&mut order);
    let (started, mut looks, mut errors) = (Instant::now(), Vec::new(), Vec::new());
    for part in order.chunks(32) {
        let seen: Vec<_> =
            part.par_iter().map(|&at| look_at(&*set, at as usize).map_err(|error| (at, error))).collect();
        for look in seen {
            match look {
                Ok(look) => looks.push(look),
                Err((at, error)) => errors.push(format!("{}: {error:#}", set.describe(at as usize))),
            }
        }
        if started.elapsed() > TIME && !looks.is_empty() {
            break;
        }
    }
    if looks.is_empty() {
        bail!("none of {} images can be read: {}", errors.len(), errors.first().cloned().unwrap_or_default());
    }
    Ok(Facts { channels: (channels, is_full), ..summary(&set, &looks, &errors, config) })
}

fn summary(set: &Arc<dyn Dataset>, looks: &[Look], errors: &[String], config: &Config) -> Facts {
    let [mean, std] = Colors::summary(looks.iter().map(|look| &look.colors));
    let mut sides: Vec<usize> = looks.iter().map(|look| look.side).collect();
    sides.sort_unstable();
    let labels: Vec<i64> = (0..set.len()).filter_map(|at| set.label(at)).collect();
    let classes = labels.iter().collect::<BTreeSet<_>>().len(); // not all formats name them
    let held_out = data::open_eval(&config.data).ok().flatten();
    let held_out = held_out.filter(|set| (0..set.len()).all(|at| set.label(at).is_some_and(|label| label >= 0)));
    Facts {
        images: set.len(),
        sampled: looks.len(),
        bad: errors.len(),
        first_bad: errors.first().cloned().unwrap_or_default(),
        sides: [sides[0], sides[sides.len() / 2], sides[sides.len() - 1]],
        gray: looks.iter().filter(|look| look.colors.gray).count(),
        mean,
        std,
        labeled: (classes > 1).then_some(labels.len()),
        classes,
        held_out: held_out.map_or(0, |set| set.len()),
        channels: (3, true),
        decode_seconds: looks.iter().map(|look| look.seconds).sum::<f64>() / looks.len() as f64,
    }
}

fn look_at(set: &dyn Dataset, index: usize) -> Result<Look> {
    let (started, mut pixels) = (Instant::now(), Pixels::default());
    set.load(index, &mut pixels)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Look { side: pixels.width.min(pixels.height), colors: Colors::of(&pixels), seconds })
}

impl Facts {
    /// The table's rows about the images themselves.
    pub fn rows(&self, choices: &mut Choices) {
        let [smallest, median, largest] = self.sides;
        let mut about =
            format!("short sides {smallest} to {largest} px, median {median} (of {} looked at)", self.sampled);
        match self.gray {
            0 => {}
            all if all == self.sampled => about += "; all gray",
            some => about += &format!("; {some} gray"),
        }
        choices.row("images", self.images.to_string(), about, &["data.limit", "data.fraction"]);
        if self.bad > 0 {
            let reason = format!("of {} looked at; skipped in training. {}", self.sampled + self.bad, self.first_bad);
            choices.row("bad images", self.bad.to_string(), reason, &[]);
        }
    }
}
