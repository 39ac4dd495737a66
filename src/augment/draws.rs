//! The random choices of one view, apart from the work on pixels.

use super::degrade::{Noise, erased_box};
use super::{ColorOp, Crop, Size, ViewConfig};
use crate::rng::Stream;

/// Maximum number of channels of an image.
const MAX_CHANNELS: usize = 64;

/// The random choices of one view.
#[derive(Clone, Debug, PartialEq)]
pub struct Draws {
    /// Part of the image to keep.
    pub crop: Crop,
    /// How many of the pixels that `crop` counts one pixel of the image in memory stands for, in each direction: more than
    /// 1 if it was decoded at a lower resolution.
    pub reduction: usize,
    /// Horizontal flip.
    pub flip: bool,
    /// Vertical flip.
    pub vertical_flip: bool,
    /// Turns by 90 degrees counterclockwise, 0 to 3.
    pub quarter_turns: u8,
    /// Degrees counterclockwise.
    pub rotation: Option<f64>,
    /// Brightness and contrast factor of each channel, for as many as an image may have.
    pub channels: Option<Vec<[f64; 2]>>,
    /// Color changes, first to last.
    pub color: [Option<ColorOp>; 4],
    /// Grayscale.
    pub grayscale: bool,
    /// Standard deviation of the blur, pixels.
    pub blur: Option<f64>,
    /// Values from this one on are inverted.
    pub solarize: Option<u8>,
    /// Additive noise.
    pub noise: Option<Noise>,
    /// Box of the view that is filled.
    pub erase: Option<Crop>,
}

impl Draws {
    /// The size of a view before its quarter turns.
    pub(super) fn unturned(&self, view: Size) -> Size {
        if self.quarter_turns.is_multiple_of(2) { view } else { view.turned() }
    }

    /// A crop and nothing else.
    pub fn of(crop: Crop) -> Self {
        Self {
            crop,
            reduction: 1,
            flip: false,
            vertical_flip: false,
            quarter_turns: 0,
            rotation: None,
            channels: None,
            color: [None; 4],
            grayscale: false,
            blur: None,
            solarize: None,
            noise: None,
            erase: None,
        }
    }
}

impl ViewConfig {
    /// Makes the choices of the paper's operations for an image of `width` x `height` pixels; the others are off. All
    /// values are drawn whether or not they are used, and the crop last, so that changing one setting leaves the other
    /// choices alone.
    pub fn draw(&self, width: usize, height: usize, rng: &mut Stream) -> Draws {
        let flip = rng.chance(self.flip_prob);
        let jitter = rng.chance(self.jitter_prob);
        let mut factor = |strength: f64| around_one(strength, rng);
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
        let crop = Crop::random(width, height, self.crop_scale, self.crop_ratio, rng);
        Draws {
            flip,
            color: color.map(|(strength, op)| (jitter && strength > 0.0).then_some(op)),
            grayscale,
            blur: blur.then_some(sigma),
            solarize: solarize.then_some(self.solarize_threshold),
            ..Draws::of(crop)
        }
    }

    /// Makes the choices of the operations that the paper does not have, for a view of this size. Each has a stream of
    /// its own, by its number, so that none moves the choices of another.
    pub(super) fn draw_more(&self, size: Size, stream: impl Fn(u64) -> Stream, draws: &mut Draws) {
        let chance = |number: u64, probability: f64| {
            // Most are off, and then cost nothing.
            let mut rng = (probability > 0.0).then(|| stream(number))?;
            rng.chance(probability).then_some(rng)
        };
        draws.vertical_flip = chance(0, self.vertical_flip_prob).is_some();
        draws.quarter_turns = chance(1, self.quarter_turn_prob).map_or(0, |mut rng| 1 + rng.below(3) as u8);
        let [low, high] = self.rotation_degrees;
        draws.rotation = chance(2, self.rotation_prob).map(|mut rng| rng.uniform(low, high));
        let factors = |mut rng: Stream| {
            let mut pair = || [self.channel_brightness, self.channel_contrast].map(|v| around_one(v, &mut rng));
            (0..MAX_CHANNELS).map(|_| pair()).collect()
        };
        draws.channels = chance(3, self.channel_jitter_prob).map(factors);
        let [low, high] = self.noise_std;
        let noise = |mut rng: Stream| Noise { std: rng.uniform(low, high), seed: rng.below(usize::MAX) as u64 };
        draws.noise = chance(4, self.noise_prob).map(noise);
        let area = |mut rng: Stream| erased_box(size, self.erase_scale, self.erase_ratio, &mut rng);
        draws.erase = chance(5, self.erase_prob).and_then(area);
    }
}

/// A factor in 1 - `strength` to 1 + `strength`, not below 0.
fn around_one(strength: f64, rng: &mut Stream) -> f64 {
    rng.uniform((1.0 - strength).max(0.0), 1.0 + strength)
}
