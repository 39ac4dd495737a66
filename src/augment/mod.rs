//! Views: what BYOL does to an image before the networks see it (paper section 3.1, appendix B).
//!
//! Every operation gives torchvision's result on an 8-bit Pillow image, byte for byte, so that
//! published recipes keep their meaning: crop and resize, flip, brightness, contrast,
//! saturation and hue in random order, grayscale, blur, solarize.
//! The float code of these operations is exact because their inputs are bytes: either the rounding was checked for
//! every input, or results too close to a rounding boundary are recomputed in integers.
//!
//! Random choices ([`Draws`]) are separate from the work on pixels ([`apply`]).

mod apply;
mod blur;
mod color;
mod config;
mod crop;
mod degrade;
mod draws;
mod presets;
mod resize;
mod size;
mod spatial;
mod stages;
mod stats;
mod taps;
mod view;

pub use apply::{Scratch, apply};
pub use color::ColorOp;
pub use config::{AugmentConfig, Interpolation};
pub use crop::{Crop, Part};
pub use degrade::Noise;
pub use draws::Draws;
pub use presets::Preset;
pub use size::Size;
pub use stages::Stages;
pub use stats::PerChannel;
pub use view::ViewConfig;

use crate::pixels::Pixels;
use crate::rng::{Purpose, Stream};
use native::simd::widest;
use resize::Target;

impl AugmentConfig {
    /// Makes the choices for both views of image `index`, of `width` x `height` pixels: a function of
    /// (seed, epoch, index).
    pub fn draw(&self, width: usize, height: usize, seed: u64, epoch: u64, index: u64) -> [Draws; 2] {
        [(&self.view1, 0), (&self.view2, 1)].map(|(view, part)| {
            let mut draws = view.draw(width, height, &mut Stream::new(seed, Purpose::Augment, epoch, index, part));
            let more = |number: u64| Stream::new(seed, Purpose::Views, epoch, index, 2 * number + part);
            view.draw_more(self.size, more, &mut draws);
            draws
        })
    }

    /// What these views need of the image.
    pub fn wanted(&self, draws: &[Draws; 2]) -> Part {
        let [first, second] = draws.each_ref().map(|draws| draws.crop);
        let reduction = draws.iter().map(|draws| draws.crop.reduction(draws.unturned(self.size))).min();
        Part { crop: first.around(second), reduction: reduction.unwrap_or(1) }
    }

    /// Makes both views; see [`apply`].
    pub fn apply(&self, image: &Pixels, draws: &[Draws; 2], scratch: &mut Scratch, out: [&mut [u8]; 2]) {
        for ((view, draws), out) in [&self.view1, &self.view2].into_iter().zip(draws).zip(out) {
            apply(image, draws, self.size, view.interpolation, scratch, out);
        }
    }
}

/// Makes the two training views of image `index`, whose choices are a function of (seed, epoch, index).
pub fn two_views(
    config: &AugmentConfig,
    image: &Pixels,
    seed: u64,
    epoch: u64,
    index: u64,
    scratch: &mut Scratch,
    out: [&mut [u8]; 2],
) {
    config.apply(image, &config.draw(image.width, image.height, seed, epoch, index), scratch, out);
}

/// Makes the evaluation view: bicubic resize of the short side to `config.eval_side()`, then the central
/// `config.size` square, as torchvision's `Resize` and `CenterCrop`. For a view that is not square, the image is resized
/// to just cover it, enlarged as `eval_side()` enlarges its short side. `out` as in [`apply`].
pub fn eval_view(config: &AugmentConfig, image: &Pixels, scratch: &mut Scratch, out: &mut [u8]) {
    let (size, side) = (config.size, config.eval_side());
    let to_cover = |length: usize| length * side / size.short();
    let (wide, high) = (to_cover(size.width), to_cover(size.height));
    // torchvision divides as floats and truncates; integers give the same for sizes below 2^26.
    let (width, height) = match image.width * high <= image.height * wide {
        true => (wide, wide * image.height / image.width),
        false => (high * image.width / image.height, high),
    };
    let offset = |length: usize, view: usize| ((length - view) as f64 / 2.0).round_ties_even() as usize;
    let (left, top) = (offset(width, size.width), offset(height, size.height));
    let target = Target { width, height, left, top, size, flip: false };
    let whole = Crop::whole(image.width, image.height);
    let Scratch { resizer, steps, planes, .. } = scratch;
    widest(
        #[inline(always)]
        || resizer.run(image, whole, 1, target, Interpolation::Bicubic, planes),
    );
    widest(
        #[inline(always)]
        || steps.finish(planes, size.pixels(), image.channels, out),
    );
}

/// The whole image, of which `part` is in memory, in another size: Pillow's `resize` with BICUBIC. Rows of
/// `channels` bytes for each pixel.
pub fn resized(image: &Pixels, part: Part, size: Size, scratch: &mut Scratch) -> Vec<u8> {
    let target = Target { width: size.width, height: size.height, left: 0, top: 0, size, flip: false };
    let Scratch { resizer, steps, planes, .. } = scratch;
    let mut out = vec![0; size.pixels() * image.channels];
    widest(
        #[inline(always)]
        || resizer.run(image, part.crop, part.reduction, target, Interpolation::Bicubic, planes),
    );
    widest(
        #[inline(always)]
        || steps.finish(planes, size.pixels(), image.channels, &mut out),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> Pixels {
        let mut rng = Stream::new(9, Purpose::Synthetic, 0, 0, 0);
        Pixels { width, height, channels: 3, data: (0..width * height * 3).map(|_| rng.below(256) as u8).collect() }
    }

    /// Within 5 standard deviations of `p` in `n` trials.
    fn assert_frequency(what: &str, hits: usize, n: usize, p: f64) {
        let n = n as f64;
        let deviation = (hits as f64 - n * p).abs();
        assert!(deviation <= 5.0 * (n * p * (1.0 - p)).sqrt(), "{what}: {hits} of {n}, expected {p}");
    }

    /// Mean and spread of a uniform distribution, the mean within 5 standard errors.
    fn assert_uniform(what: &str, values: &[f64], low: f64, high: f64) {
        let n = values.len() as f64;
        assert!(values.iter().all(|v| (low..=high).contains(v)), "{what} leaves {low}..{high}");
        let mean = values.iter().sum::<f64>() / n;
        let error = (high - low) / (12.0 * n).sqrt();
        assert!((mean - (low + high) / 2.0).abs() < 5.0 * error, "{what}: mean {mean}");
        let low_half = values.iter().filter(|v| **v < (3.0 * low + high) / 4.0).count();
        assert_frequency(what, low_half, values.len(), 0.25);
    }

    /// Against `PIL.Image.resize` of Pillow 13.0.
    #[test]
    fn other_widths_and_heights_equal_pillow() {
        let tall =
            [78, 150, 139, 124, 126, 137, 134, 122, 135, 118, 129, 127, 118, 129, 112, 137, 119, 116, 142, 130, 121];
        let wide =
            [67, 148, 144, 137, 103, 108, 132, 120, 93, 138, 138, 124, 120, 136, 126, 121, 133, 124, 152, 130, 89, 81];
        for ([width, height], [w, h], expected) in [([13, 30], [3, 7], &tall[..]), ([40, 9], [11, 2], &wide[..])] {
            let size = Size { height: h, width: w };
            let at = |x: usize, y: usize| (x * x * 7 + y * 13 + (x * y) % 31 * 5) as u8;
            for channels in [1, 3] {
                let pixels = (0..width * height).flat_map(|i| vec![at(i % width, i / width); channels]);
                let image = Pixels { width, height, channels, data: pixels.collect() };
                let made = resized(&image, Part::whole(width, height), size, &mut Scratch::default());
                assert!(
                    made.iter().copied().eq(expected.iter().flat_map(|v| vec![*v; channels])),
                    "{size:?}: {made:?}"
                );
            }
        }
    }

    #[test]
    fn draws_have_the_configured_distribution() {
        check_distribution(&AugmentConfig::default().view1, 0);
        check_distribution(&AugmentConfig::default().view2, 1);
    }

    fn check_distribution(view: &ViewConfig, part: u64) {
        let n = 20_000;
        let draws: Vec<Draws> = (0..n as u64)
            .map(|index| view.draw(2000, 2000, &mut Stream::new(5, Purpose::Augment, 1, index, part)))
            .collect();
        let frequency = |what: &str, p: f64, hit: &dyn Fn(&Draws) -> bool| {
            assert_frequency(what, draws.iter().filter(|d| hit(d)).count(), n, p);
        };
        frequency("flip", 0.5, &|d| d.flip);
        frequency("jitter", 0.8, &|d| d.color.iter().all(Option::is_some));
        frequency("no jitter", 0.2, &|d| d.color.iter().all(Option::is_none));
        frequency("grayscale", 0.2, &|d| d.grayscale);
        frequency("jitter and grayscale", 0.16, &|d| d.grayscale && d.color[0].is_some());
        frequency("blur", view.blur_prob, &|d| d.blur.is_some());
        frequency("solarize", view.solarize_prob, &|d| d.solarize == Some(128));
        for place in 0..4 {
            frequency("hue's place", 0.2, &|d| matches!(d.color[place], Some(ColorOp::Hue(_))));
            frequency("contrast's place", 0.2, &|d| matches!(d.color[place], Some(ColorOp::Contrast(_))));
        }
        let values = |pick: &dyn Fn(&Draws) -> Option<f64>| draws.iter().filter_map(pick).collect::<Vec<_>>();
        let factors = |pick: fn(ColorOp) -> Option<f64>| values(&|d| d.color.iter().flatten().find_map(|op| pick(*op)));
        let brightness = |op| if let ColorOp::Brightness(v) = op { Some(v) } else { None };
        let contrast = |op| if let ColorOp::Contrast(v) = op { Some(v) } else { None };
        let saturation = |op| if let ColorOp::Saturation(v) = op { Some(v) } else { None };
        let hue = |op| if let ColorOp::Hue(v) = op { Some(v) } else { None };
        assert_uniform("brightness", &factors(brightness), 0.6, 1.4);
        assert_uniform("contrast", &factors(contrast), 0.6, 1.4);
        assert_uniform("saturation", &factors(saturation), 0.8, 1.2);
        assert_uniform("hue", &factors(hue), -0.1, 0.1);
        assert_uniform("sigma", &values(&|d| d.blur), 0.1, 2.0);
        // Up to 0.75 of a square, every aspect fits, so there are no retries.
        let area = |d: &Draws| (d.crop.width * d.crop.height) as f64 / 4e6;
        let fits: Vec<&Draws> = draws.iter().filter(|d| area(d) < 0.749).collect();
        let areas: Vec<f64> = fits.iter().map(|d| area(d)).filter(|a| *a > 0.081).collect();
        assert_uniform("area", &areas, 0.081, 0.749);
        let aspect = |d: &&Draws| (d.crop.width as f64 / d.crop.height as f64).ln();
        let aspects: Vec<f64> = fits.iter().map(aspect).collect();
        // Sides are whole pixels, so an aspect may miss its range by a little.
        let edge = (4f64 / 3.0).ln() + 2e-3;
        assert_uniform("log aspect", &aspects, -edge, edge);
        let left = |d: &&Draws| (d.crop.left as f64 + 0.5) / (2001 - d.crop.width) as f64;
        assert_uniform("left", &fits.iter().map(left).collect::<Vec<_>>(), 0.0, 1.0);
        let top = |d: &&Draws| (d.crop.top as f64 + 0.5) / (2001 - d.crop.height) as f64;
        assert_uniform("top", &fits.iter().map(top).collect::<Vec<_>>(), 0.0, 1.0);
    }

    #[test]
    fn one_setting_does_not_disturb_the_other_choices() {
        let stream = || Stream::new(1, Purpose::Augment, 2, 3, 0);
        let base = ViewConfig::view1();
        let draws = base.draw(100, 80, &mut stream());
        let other = ViewConfig { jitter_prob: 0.0, flip_prob: 0.0, blur_prob: 0.0, ..base.clone() };
        let changed = other.draw(100, 80, &mut stream());
        let expected = Draws { flip: false, color: [None; 4], blur: None, ..draws.clone() };
        assert_eq!(changed, expected);
        let no_hue = ViewConfig { hue: 0.0, jitter_prob: 1.0, ..base };
        let ops = no_hue.draw(100, 80, &mut stream()).color;
        assert_eq!(ops.iter().flatten().count(), 3);
    }

    /// Each of the operations that the paper lacks has its own random numbers, and its configured frequency.
    #[test]
    fn added_operations_move_no_other_choice() {
        let off = AugmentConfig { size: 32.into(), ..Default::default() };
        let mut on = off.clone();
        for view in [&mut on.view1, &mut on.view2] {
            view.vertical_flip_prob = 0.3;
            view.quarter_turn_prob = 0.75;
            (view.rotation_prob, view.channel_jitter_prob) = (0.3, 0.3);
            (view.noise_prob, view.erase_prob) = (0.3, 0.3);
        }
        let n = 4000;
        let mut drawn = Vec::new();
        for index in 0..n as u64 {
            let (plain, draws) = (off.draw(100, 80, 1, 2, index), on.draw(100, 80, 1, 2, index));
            for (plain, draws) in plain.into_iter().zip(draws) {
                let Draws { crop, reduction, flip, color, grayscale, blur, solarize, .. } = draws.clone();
                assert_eq!(plain, Draws { reduction, flip, color, grayscale, blur, solarize, ..Draws::of(crop) });
                drawn.push(draws);
            }
        }
        let frequency = |what: &str, p: f64, hit: &dyn Fn(&Draws) -> bool| {
            assert_frequency(what, drawn.iter().filter(|draws| hit(draws)).count(), 2 * n, p);
        };
        frequency("vertical flip", 0.3, &|d| d.vertical_flip);
        (0..4).for_each(|turns| frequency("turns", 0.25, &|d| d.quarter_turns == turns));
        frequency("rotation", 0.3, &|d| d.rotation.is_some());
        frequency("flip and rotation", 0.09, &|d| d.vertical_flip && d.rotation.is_some());
        frequency("channels", 0.3, &|d| d.channels.as_ref().is_some_and(|factors| factors.len() == 64));
        frequency("noise", 0.3, &|d| d.noise.is_some());
        frequency("erase", 0.3, &|d| d.erase.is_some());
        let values = |pick: &dyn Fn(&Draws) -> Option<f64>| drawn.iter().filter_map(pick).collect::<Vec<_>>();
        assert_uniform("degrees", &values(&|d| d.rotation), -15.0, 15.0);
        assert_uniform("noise", &values(&|d| d.noise.map(|noise| noise.std)), 0.01, 0.05);
        let factor = |at: usize| values(&|d| d.channels.as_ref().map(|factors| factors[63][at]));
        (0..2).for_each(|at| assert_uniform("factor", &factor(at), 0.8, 1.2));
    }

    /// Both views, every operation, any number of channels, sides that differ: nothing panics, and it repeats.
    #[test]
    fn every_operation_works_on_any_image() {
        let mut config = AugmentConfig { size: Size { height: 24, width: 40 }, ..Default::default() };
        for view in [&mut config.view1, &mut config.view2] {
            (view.vertical_flip_prob, view.quarter_turn_prob, view.rotation_prob) = (0.5, 0.75, 0.5);
            (view.channel_jitter_prob, view.noise_prob, view.erase_prob, view.blur_prob) = (0.5, 0.5, 0.5, 0.5);
        }
        let mut scratch = Scratch::default();
        for index in 0..60 {
            let channels = [3, 1, 2, 5, 13][index % 5];
            let (width, height) = (30 + index, 70 - index);
            let data = (0..width * height * channels).map(|i| (i * i / 7) as u8).collect();
            let image = Pixels { width, height, channels, data };
            let mut make = || {
                let mut out = [vec![0; 24 * 40 * channels], vec![0; 24 * 40 * channels]];
                let [a, b] = &mut out;
                two_views(&config, &image, 1, 0, index as u64, &mut scratch, [a, b]);
                out
            };
            let views = make();
            assert!(views == make() && views[0] != views[1]);
            let mut out = vec![0; 24 * 40 * channels];
            eval_view(&config, &image, &mut scratch, &mut out);
        }
    }

    #[test]
    fn views_depend_on_seed_epoch_index_and_view_only() {
        let (image, config) = (noise(60, 50), AugmentConfig { size: 32.into(), ..Default::default() });
        let views = |seed, epoch, index, scratch: &mut Scratch| {
            let mut out = [vec![0; 32 * 32 * 3], vec![0; 32 * 32 * 3]];
            let [a, b] = &mut out;
            two_views(&config, &image, seed, epoch, index, scratch, [a, b]);
            out
        };
        let first = views(1, 2, 3, &mut Scratch::default());
        // Scratch buffers used for other images and sizes make no difference.
        let mut used = Scratch::default();
        eval_view(
            &AugmentConfig { size: 100.into(), ..Default::default() },
            &noise(200, 300),
            &mut used,
            &mut [0; 30_000],
        );
        views(7, 7, 7, &mut used);
        assert!(first == views(1, 2, 3, &mut used));
        assert!(first[0] != first[1]);
        for other in [views(2, 2, 3, &mut used), views(1, 3, 3, &mut used), views(1, 2, 4, &mut used)] {
            assert!(first[0] != other[0] && first[1] != other[1]);
        }
    }

    #[test]
    fn an_evaluation_view_of_the_right_size_is_the_image() {
        let image = noise(32, 32);
        let mut out = vec![0; 32 * 32 * 3];
        eval_view(&AugmentConfig { size: 32.into(), ..Default::default() }, &image, &mut Scratch::default(), &mut out);
        assert!(out == image.data);
        // Thin images are enlarged until the square fits.
        let mut out = vec![0; 32 * 32 * 3];
        eval_view(
            &AugmentConfig { size: 32.into(), ..Default::default() },
            &noise(1, 40),
            &mut Scratch::default(),
            &mut out,
        );
        assert!(out.chunks_exact(96).all(|row| row.as_chunks::<3>().0.iter().all(|pixel| *pixel == row[..3])));
    }
}
