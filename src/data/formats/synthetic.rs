//! Generated images, for trying things out without any files. A class is a texture; position, tilt, scale, shape,
//! polarity, contrast and noise are drawn at random for each image. The images are nearly black and white: two
//! views of an image share its colors and brightness, and if these distinguish images, a short BYOL run learns them
//! instead of the texture.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::textures::PATTERNS;
use crate::data::{Dataset, digest};
use crate::pixels::Pixels;
use crate::rng::{Purpose, Stream};
use crate::section::{Problems, Section};

/// Largest rotation of a pattern to either side, radians.
const TILT: f64 = 0.4;
/// Period of a pattern as a share of the image side.
const PERIOD: [f64; 2] = [0.2, 0.36];
/// Largest factor by which one axis is longer than the other.
const STRETCH: f64 = 1.2;
/// Gray level of the dark parts, 0 to 1: a narrow range, see the module.
const DARK: [f64; 2] = [0.0, 0.05];
/// Gray level of the light parts, 0 to 1.
const LIGHT: [f64; 2] = [0.95, 1.0];
/// Standard deviation of the noise of a pixel, 0 to 1.
const NOISE: [f64; 2] = [0.04, 0.06];

/// The `data.synthetic` section of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SyntheticConfig {
    /// Training images, 1 to 10 000 000. Default 4000.
    pub images: usize,
    /// Held-out images, 1 to 10 000 000. Default 1000.
    pub eval_images: usize,
    /// Number of classes (textures), 2 to 14. Default 10.
    pub classes: usize,
    /// Side in pixels, 8 to 1024. Default 32.
    pub size: usize,
    /// Seed of the images; the run's seed does not change them. Default 0.
    pub seed: u64,
}

impl Default for SyntheticConfig {
    fn default() -> Self {
        Self { images: 4000, eval_images: 1000, classes: 10, size: 32, seed: 0 }
    }
}

impl Section for SyntheticConfig {
    fn check(&self, problems: &mut Problems) {
        problems.range("images", self.images, 1..=10_000_000);
        problems.range("eval_images", self.eval_images, 1..=10_000_000);
        problems.range("classes", self.classes, 2..=PATTERNS.len());
        problems.range("size", self.size, 8..=1024);
    }
}

/// One split of the generated set; image `i` has class `i % classes`.
pub struct Synthetic {
    config: SyntheticConfig,
    images: usize,
    /// 0 for training, 1 for held-out images.
    split: u64,
}

impl Synthetic {
    /// The training images.
    pub fn train(config: &SyntheticConfig) -> Self {
        Self { config: config.clone(), images: config.images, split: 0 }
    }

    /// The held-out images, generated independently of the training images.
    pub fn eval(config: &SyntheticConfig) -> Self {
        Self { config: config.clone(), images: config.eval_images, split: 1 }
    }
}

impl Dataset for Synthetic {
    fn len(&self) -> usize {
        self.images
    }

    fn label(&self, index: usize) -> Option<i64> {
        Some((index % self.config.classes) as i64)
    }

    fn class_names(&self) -> Vec<String> {
        PATTERNS[..self.config.classes].iter().map(|(name, _)| name.to_string()).collect()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        let seed = self.config.seed;
        let mut rng = Stream::new(seed, Purpose::Synthetic, 0, index as u64, self.split);
        out.resize(self.config.size, self.config.size);
        draw(index % self.config.classes, self.config.size, &mut rng, &mut out.data);
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        let split = if self.split == 0 { "training" } else { "held-out" };
        format!("synthetic {split} image {index}")
    }

    fn name(&self, index: usize) -> String {
        format!("{}/{index}", if self.split == 0 { "train" } else { "eval" })
    }

    fn fingerprint(&self) -> String {
        digest([format!("{:?} {}", self.config, self.split)])
    }
}

/// Draws a gray image of `class` into `out`, `size * size * 3` bytes.
fn draw(class: usize, size: usize, rng: &mut Stream, out: &mut [u8]) {
    let range = |rng: &mut Stream, [low, high]: [f64; 2]| rng.uniform(low, high);
    let period = range(rng, PERIOD) * size as f64;
    let (sin, cos) = rng.uniform(-TILT, TILT).sin_cos();
    let stretch = rng.uniform(-STRETCH.ln(), STRETCH.ln()).exp().sqrt();
    let (scale_x, scale_y) = (stretch / period, 1.0 / (stretch * period));
    // Anywhere in the image: the center of patterns that have one, the phase of the others.
    let center = [rng.unit() * size as f64, rng.unit() * size as f64];
    let (dark, light) = (range(rng, DARK), range(rng, LIGHT));
    let (ink, ground) = if rng.chance(0.5) { (dark, light) } else { (light, dark) };
    let noise = range(rng, NOISE);

    let pattern = PATTERNS[class].1;
    let mut spare = None;
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        let (column, row) = ((i % size) as f64 + 0.5, (i / size) as f64 + 0.5);
        let (dx, dy) = (column - center[0], row - center[1]);
        let (x, y) = ((cos * dx + sin * dy) * scale_x, (cos * dy - sin * dx) * scale_y);
        // The share of the pixel that ink covers, from its distance to the edge in pixels.
        let cover = (0.5 + pattern(x as f32, y as f32) * period as f32).clamp(0.0, 1.0);
        let normal = spare.take().unwrap_or_else(|| {
            let (now, later) = rng.normal_pair();
            spare = Some(later);
            now
        });
        let gray = ground as f32 + cover * (ink - ground) as f32 + (noise * normal) as f32;
        pixel.fill((gray * 255.0).round().clamp(0.0, 255.0) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(set: &Synthetic, index: usize) -> Pixels {
        let mut out = Pixels::default();
        set.load(index, &mut out).unwrap();
        out
    }

    #[test]
    fn images_repeat_and_splits_differ() {
        let config = SyntheticConfig { images: 50, eval_images: 30, ..Default::default() };
        let (train, eval) = (Synthetic::train(&config), Synthetic::eval(&config));
        assert_eq!((train.len(), eval.len()), (50, 30));
        assert_eq!(image(&train, 3), image(&train, 3));
        assert_ne!(image(&train, 3), image(&train, 13));
        assert_ne!(image(&train, 3), image(&eval, 3));
        assert_eq!((train.label(3), train.label(13)), (Some(3), Some(3)));
        assert_ne!(train.fingerprint(), eval.fingerprint());
        let reseeded = SyntheticConfig { seed: 1, ..config.clone() };
        assert_ne!(image(&train, 3), image(&Synthetic::train(&reseeded), 3));
    }

    #[test]
    fn gray_and_brightness_do_not_give_the_class_away() {
        let config = SyntheticConfig { images: 10_000, ..Default::default() };
        let set = Synthetic::train(&config);
        let mut sums = [0.0; 10];
        for index in 0..2000 {
            let pixels = image(&set, index).data;
            assert!(pixels.chunks_exact(3).all(|rgb| rgb[0] == rgb[1] && rgb[1] == rgb[2]));
            let mean = pixels.iter().map(|&v| v as f64).sum::<f64>() / pixels.len() as f64;
            sums[index % 10] += mean / 200.0;
        }
        // Polarity balances the classes: single images deviate by about 40.
        assert!(sums.iter().all(|mean| (115.0..140.0).contains(mean)), "{sums:?}");
    }

    #[test]
    fn works_at_any_allowed_size_and_class_count() {
        for (size, classes) in [(8, 2), (33, 14), (224, 14)] {
            let config = SyntheticConfig { size, classes, ..Default::default() };
            assert!(config.problems().is_empty());
            let set = Synthetic::train(&config);
            assert_eq!(set.class_names().len(), classes);
            for index in 0..classes {
                let pixels = image(&set, index);
                assert_eq!((pixels.width, pixels.height), (size, size));
                let (low, high) = pixels.data.iter().fold((255, 0), |(low, high), &v| (v.min(low), v.max(high)));
                assert!(high - low > 90, "class {index} at {size}: {low} to {high}");
            }
        }
    }

    #[test]
    fn problems_name_the_range() {
        let config = SyntheticConfig { classes: 15, size: 4, images: 0, ..Default::default() };
        let keys: Vec<String> = config.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["images", "classes", "size"]);
        assert_eq!(config.problems()[1].1, "found 15, expected 2 to 14");
    }
}
