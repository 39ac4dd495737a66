//! What is in a data set: `byol data`. Every image is decoded once, on all cores; only a few numbers of each are kept.

mod alike;
mod image;
mod report;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use rayon::prelude::*;

use crate::augment::Size;
use crate::data::{DataConfig, Dataset, measure};
use crate::logging::progress::Bar;
use crate::pixels::Pixels;
pub use alike::NEAR_BITS;
pub use image::Colors;
pub use report::{Count, Group, Report};

/// Images between two looks at the clock and at signals.
const CHUNK: usize = 256;

/// What is kept of an image.
struct Seen {
    width: u32,
    height: u32,
    kind: String,
    colors: Colors,
    exact: u128,
    near: Option<u64>,
}

/// Looks at all images of a set, opened as `config` says; those with a side below that of `size` would be upscaled.
/// `stop` is asked ever so often.
/// # Errors
/// That of `stop`.
pub fn inspect(
    set: &Arc<dyn Dataset>,
    config: &DataConfig,
    size: Size,
    stop: &dyn Fn() -> Result<()>,
) -> Result<Report> {
    let (started, bar) = (Instant::now(), Bar::new("looking at images", set.len()));
    let (mut seen, mut bad) = (Vec::new(), Vec::new());
    for start in (0..set.len()).step_by(CHUNK) {
        stop()?;
        let part: Vec<_> =
            (start..set.len().min(start + CHUNK)).into_par_iter().map(|at| (at, look(&**set, config, at))).collect();
        for (at, result) in part {
            match result {
                Ok(image) => seen.push((at as u32, image)),
                Err(error) => bad.push((at as u32, format!("{error:#}"))),
            }
        }
        bar.set(start + CHUNK);
    }
    let seconds = started.elapsed().as_secs_f64();
    let exact: Vec<(u32, u128)> = seen.iter().map(|(at, image)| (*at, image.exact)).collect();
    let duplicates = alike::equal(&exact);
    // Equal images are near, too: of each group only the first is compared with others.
    let copies: std::collections::HashSet<u32> =
        duplicates.iter().flat_map(|group| group[1..].iter().copied()).collect();
    let hashes: Vec<(u32, u64)> =
        seen.iter().filter(|(at, _)| !copies.contains(at)).filter_map(|(at, image)| Some((*at, image.near?))).collect();
    let near = alike::near(&hashes);
    let sides: Vec<(u32, u32)> = seen.iter().map(|(_, image)| (image.width, image.height)).collect();
    let pixels: u64 = sides.iter().map(|(width, height)| u64::from(*width) * u64::from(*height)).sum();
    let [mean, std] = Colors::summary(seen.iter().map(|(_, image)| &image.colors));
    let groups = |groups: &[Vec<u32>]| report::groups(&**set, groups);
    Ok(Report {
        images: set.len(),
        readable: seen.len(),
        formats: formats(&**set),
        kinds: most_frequent(seen.iter().map(|(_, image)| image.kind.clone())),
        value_range: config.value_range.clone(),
        classes: classes(&**set),
        unlabeled: (0..set.len()).filter(|&at| set.label(at).is_none_or(|label| label < 0)).count(),
        gray: seen.iter().filter(|(_, image)| image.colors.gray).count(),
        upscaled: sides.iter().filter(|(w, h)| (*w as usize) < size.width || (*h as usize) < size.height).count(),
        view_size: size,
        sides: sides.iter().map(|(width, height)| *width.min(height)).collect(),
        mean,
        std,
        bad: bad.iter().map(|(at, why)| (set.describe(*at as usize), why.clone())).collect(),
        duplicates: groups(&duplicates),
        near_duplicates: groups(&near),
        excluded: bad.iter().map(|(at, _)| *at).chain(copies).collect(),
        megapixels_per_second: pixels as f64 / 1e6 / seconds.max(1e-9),
        images_per_second: seen.len() as f64 / seconds.max(1e-9),
    })
}

fn look(set: &dyn Dataset, config: &DataConfig, index: usize) -> Result<Seen> {
    let mut pixels = Pixels::default();
    native::caught_in("decoder", || set.load(index, &mut pixels))?;
    let (width, height) = (pixels.width as u32, pixels.height as u32);
    let (exact, near) = (image::exact_hash(&pixels), image::difference_hash(&pixels));
    let kind = measure::kind(set, index, config).unwrap_or_else(|| format!("{}-channel 8-bit", pixels.channels));
    Ok(Seen { width, height, kind, colors: Colors::of(&pixels), exact, near })
}

/// Images of each class, in the order of the classes.
fn classes(set: &dyn Dataset) -> Vec<Count> {
    let names = set.class_names();
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for label in (0..set.len()).filter_map(|at| set.label(at)).filter(|label| *label >= 0) {
        *counts.entry(label).or_default() += 1;
    }
    let name = |label: i64| names.get(label as usize).cloned().unwrap_or_else(|| label.to_string());
    counts.into_iter().map(|(label, count)| Count { name: name(label), count }).collect()
}

/// Images by the ending of their names, the most frequent first.
fn formats(set: &dyn Dataset) -> Vec<Count> {
    most_frequent((0..set.len()).map(|at| {
        let place = set.describe(at);
        let ending = Path::new(&place).extension().map(|ending| ending.to_string_lossy().to_lowercase());
        let known = ending.filter(|ending| ending.len() <= 5 && ending.chars().all(char::is_alphanumeric));
        known.unwrap_or_else(|| "without an ending".into())
    }))
}

fn most_frequent(names: impl Iterator<Item = String>) -> Vec<Count> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    let mut counts: Vec<Count> = counts.into_iter().map(|(name, count)| Count { name, count }).collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.count));
    counts
}
