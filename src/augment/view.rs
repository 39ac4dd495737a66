//! One view: its settings, the random choices made from them, and the pixels. To add an operation, put its settings,
//! its [`Draws`] and its call in [`apply`] here, and its pixels in a file of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::Interpolation;
use super::blur::{self, Blur};
use super::color::{ColorOp, Steps, plane_length};
use super::crop::Crop;
use super::resize::{Resizer, Target};
use super::stages::{Laps, Stages};
use crate::pixels::Pixels;
use crate::rng::Stream;
use crate::section::{Problems, Shown};
use native::simd::widest;

/// The random operations of one view, in the order of its fields. In parentheses: the default, the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default = "ViewConfig::view1", deny_unknown_fields)]
pub struct ViewConfig {
    /// Area of the crop as a fraction of the image, low and high, in 0 to 1 (0.08, 1).
    pub crop_scale: [f64; 2],
    /// Width over height of the crop, low and high, above 0, drawn log-uniformly (3/4, 4/3).
    pub crop_ratio: [f64; 2],
    /// Kernel that resizes the crop, `bicubic` or `bilinear` (bicubic).
    pub interpolation: Interpolation,
    /// Probability of a horizontal flip, 0 to 1 (0.5).
    pub flip_prob: f64,
    /// Probability of the four color changes, together and in random order, 0 to 1 (0.8).
    pub jitter_prob: f64,
    /// Brightness factor in 1 - b to 1 + b and not below 0; b at least 0 (0.4).
    pub brightness: f64,
    /// Contrast factor, the same (0.4).
    pub contrast: f64,
    /// Saturation factor, the same (0.2).
    pub saturation: f64,
    /// Hue shift in -h to h of a turn; h in 0 to 0.5 (0.1).
    pub hue: f64,
    /// Probability of grayscale, 0 to 1 (0.2).
    pub grayscale_prob: f64,
    /// Probability of blur, 0 to 1 (view 1: 1.0, view 2: 0.1).
    pub blur_prob: f64,
    /// Standard deviation of the blur, low and high, pixels, above 0 (0.1, 2).
    pub blur_sigma: [f64; 2],
    /// Probability of solarization, 0 to 1 (view 1: 0.0, view 2: 0.2).
    pub solarize_prob: f64,
    /// Solarization inverts values from this one on, 0 to 255 (128).
    pub solarize_threshold: u8,
}

/// Reads view 2: [`ViewConfig`] with other defaults.
#[derive(Deserialize)]
#[serde(remote = "ViewConfig", default = "ViewConfig::view2", deny_unknown_fields)]
struct View2 {
    crop_scale: [f64; 2],
    crop_ratio: [f64; 2],
    interpolation: Interpolation,
    flip_prob: f64,
    jitter_prob: f64,
    brightness: f64,
    contrast: f64,
    saturation: f64,
    hue: f64,
    grayscale_prob: f64,
    blur_prob: f64,
    blur_sigma: [f64; 2],
    solarize_prob: f64,
    solarize_threshold: u8,
}

impl ViewConfig {
    /// The paper's T (table 6): view 1's defaults.
    pub fn view1() -> Self {
        Self {
            crop_scale: [0.08, 1.0],
            crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
            flip_prob: 0.5,
            jitter_prob: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
            grayscale_prob: 0.2,
            blur_prob: 1.0,
            blur_sigma: [0.1, 2.0],
            solarize_prob: 0.0,
            solarize_threshold: 128,
        }
    }

    /// The paper's T': view 2's defaults.
    pub fn view2() -> Self {
        Self { blur_prob: 0.1, solarize_prob: 0.2, ..Self::view1() }
    }

    /// A random resized crop and a flip, nothing else: the training view of linear evaluation and fine-tuning.
    pub fn crop_only() -> Self {
        Self { jitter_prob: 0.0, grayscale_prob: 0.0, blur_prob: 0.0, solarize_prob: 0.0, ..Self::view1() }
    }

    /// For `serde(deserialize_with)`: a view whose keys default to those of [`Self::view2`].
    pub(super) fn read_view2<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        View2::deserialize(deserializer)
    }

    /// Reports every value out of range, for views of `size` pixels; `view` is the section's name.
    pub(super) fn check(&self, view: &str, size: usize, problems: &mut Problems) {
        let key = |name: &str| format!("{view}.{name}");
        for (name, value) in [
            ("flip_prob", self.flip_prob),
            ("jitter_prob", self.jitter_prob),
            ("grayscale_prob", self.grayscale_prob),
            ("blur_prob", self.blur_prob),
            ("solarize_prob", self.solarize_prob),
        ] {
            problems.require((0.0..=1.0).contains(&value), &key(name), value, "a probability, 0 to 1");
        }
        for (name, value) in
            [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)]
        {
            problems.require((0.0..=f64::MAX).contains(&value), &key(name), value, "a finite number, at least 0");
        }
        problems.range(&key("hue"), self.hue, 0.0..=0.5);
        let ordered = |[low, high]: [f64; 2], most: f64| 0.0 < low && low <= high && high <= most;
        for (name, range, most, expected) in [
            ("crop_scale", self.crop_scale, 1.0, "[low, high] with 0 < low <= high <= 1"),
            ("crop_ratio", self.crop_ratio, f64::MAX, "[low, high] with 0 < low <= high"),
            ("blur_sigma", self.blur_sigma, f64::MAX, "[low, high] with 0 < low <= high"),
        ] {
            problems.require(ordered(range, most), &key(name), range, expected);
        }
        let sigma = self.blur_sigma;
        if self.blur_prob > 0.0 && ordered(sigma, f64::MAX) {
            let window = blur::window(sigma[1]);
            let (high, window, fits) = (sigma[1].shown(), window.shown(), window <= size as f64);
            let expected = format!("a blur window of at most size, {size} px (at sigma {high} it is {window} px)");
            problems.require(fits, &key("blur_sigma"), sigma, expected);
        }
    }
}

impl ViewConfig {
    /// Reports the operations that images of so many channels do not have. Of one channel the saturation and the hue are
    /// none, as in torchvision.
    pub(super) fn check_channels(&self, view: &str, channels: usize, problems: &mut Problems) {
        let jitter = if self.jitter_prob > 0.0 { 1.0 } else { 0.0 };
        for (name, value) in [
            ("saturation", self.saturation * jitter),
            ("hue", self.hue * jitter),
            ("grayscale_prob", self.grayscale_prob),
        ] {
            let expected = format!("0: it is for RGB, the images have {channels} channels");
            problems.require(matches!(channels, 1 | 3) || value == 0.0, &format!("{view}.{name}"), value, expected);
        }
    }
}

/// The random choices of one view.
#[derive(Clone, Debug, PartialEq)]
pub struct Draws {
    /// Part of the image to keep.
    pub crop: Crop,
    /// Pixels that `crop` counts, in both directions, for one of the image in memory: above 1 if that was decoded at a
    /// lower resolution.
    pub reduction: usize,
    /// Horizontal flip.
    pub flip: bool,
    /// Color changes, first to last.
    pub color: [Option<ColorOp>; 4],
    /// Grayscale.
    pub grayscale: bool,
    /// Standard deviation of the blur, pixels.
    pub blur: Option<f64>,
    /// Values from this one on are inverted.
    pub solarize: Option<u8>,
}

impl ViewConfig {
    /// Makes the choices for an image of `width` x `height` pixels. All values are drawn whether or not
    /// they are used, and the crop last, so that changing one setting leaves the other choices alone.
    pub fn draw(&self, width: usize, height: usize, rng: &mut Stream) -> Draws {
        let flip = rng.chance(self.flip_prob);
        let jitter = rng.chance(self.jitter_prob);
        let mut factor = |strength: f64| rng.uniform((1.0 - strength).max(0.0), 1.0 + strength);
        let mut color = [
            (self.brightness, ColorOp::Brightness(factor(self.brightness))),
            (self.contrast, ColorOp::Contrast(factor(self.contrast))),
            (self.saturation, ColorOp::Saturation(factor(self.saturation))),
            (self.hue, ColorOp::Hue(rng.uniform(-self.hue, self.hue))),
        ];
        rng.shuffle(&mut color);
        let grayscale = rng.chance(self.grayscale_prob);
        let blur = rng.chance(self.blur_prob);
        let sigma = rng.uniform(self.blur_sigma[0], self.blur_sigma[1]);
        let solarize = rng.chance(self.solarize_prob);
        Draws {
            crop: Crop::random(width, height, self.crop_scale, self.crop_ratio, rng),
            reduction: 1,
            flip,
            color: color.map(|(strength, op)| (jitter && strength > 0.0).then_some(op)),
            grayscale,
            blur: blur.then_some(sigma),
            solarize: solarize.then_some(self.solarize_threshold),
        }
    }
}

/// Scratch buffers of one worker, reused so that no memory is allocated after the first few images.
#[derive(Default)]
pub struct Scratch {
    pub(super) resizer: Resizer,
    blur: Blur,
    pub(super) steps: Steps,
    /// The channels, `size * size` bytes each plus padding.
    pub(super) planes: Vec<u8>,
    /// If set, the time of every stage is added to it.
    pub stages: Option<Stages>,
}

/// Makes one view of `image` from `draws`: `out[(y * size + x) * channels + channel]`, with the image's channels.
/// Saturation, hue and grayscale are for RGB, and leave other images as they are.
/// Panics unless `out` has `size * size * channels` bytes and the crop lies inside the image.
pub fn apply(
    image: &Pixels,
    draws: &Draws,
    size: usize,
    interpolation: Interpolation,
    scratch: &mut Scratch,
    out: &mut [u8],
) {
    let Scratch { resizer, blur, steps, planes, stages } = scratch;
    let mut laps = Laps::new(stages);
    let target = Target { width: size, height: size, left: 0, top: 0, size, flip: draws.flip };
    widest(
        #[inline(always)]
        || resizer.run(image, draws.crop, draws.reduction, target, interpolation, planes),
    );
    laps.end(|stages| &mut stages.resize);
    for &op in draws.color.iter().flatten() {
        widest(
            #[inline(always)]
            || steps.color(op, planes, size),
        );
    }
    if draws.grayscale {
        steps.grayscale();
    }
    let mut planes = &mut planes[..];
    if let Some(sigma) = draws.blur {
        widest(
            #[inline(always)]
            || steps.flush(planes, size),
        );
        laps.end(|stages| &mut stages.color);
        if draws.grayscale && image.channels == 3 {
            // All planes are equal and stay so: one is enough.
            planes = &mut planes[..plane_length(size)];
        }
        for plane in planes.chunks_exact_mut(plane_length(size)) {
            widest(
                #[inline(always)]
                || blur.run(&mut plane[..size * size], size, sigma),
            );
        }
        laps.end(|stages| &mut stages.blur);
    }
    if let Some(threshold) = draws.solarize {
        steps.solarize(threshold);
    }
    widest(
        #[inline(always)]
        || steps.finish(planes, size, image.channels, out),
    );
    laps.end(|stages| &mut stages.color);
}
