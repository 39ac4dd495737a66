//! The settings of one view. To add an operation, put its settings here, its choices in `draws.rs`, its call in
//! `apply.rs`, and its pixels in a file of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Interpolation, Size, blur};
use crate::section::{Problems, Shown};

/// The keys of a view, each with its type: [`ViewConfig`], and what a config file says of one.
macro_rules! view {
    ($($(#[$doc:meta])* $key:ident: $type:ty,)*) => {
        /// The random operations of one view. In parentheses: the default, the paper's; the operations that the paper
        /// does not have are off. They are applied in the order of the keys, with `interpolation` for crop and rotation.
        #[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
        #[schemars(default = "ViewConfig::view1", deny_unknown_fields)]
        pub struct ViewConfig {
            $($(#[$doc])* pub $key: $type,)*
        }

        /// The keys of a view that a config gives.
        #[derive(Default, Deserialize)]
        #[serde(rename = "ViewConfig", default, deny_unknown_fields)]
        pub(super) struct GivenView {
            $(#[serde(deserialize_with = "given")] $key: Option<$type>,)*
        }

        impl GivenView {
            /// The view with `base` for the other keys.
            pub fn over(self, base: ViewConfig) -> ViewConfig {
                ViewConfig { $($key: self.$key.unwrap_or(base.$key),)* }
            }
        }

        /// The names of the keys.
        #[cfg(test)]
        pub(super) const KEYS: &[&str] = &[$(stringify!($key)),*];
    };
}

/// For `serde(deserialize_with)`: a key that is given, and not null.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

view! {
    /// Area of the crop as a fraction of the image, low and high, in 0 to 1 (0.08, 1).
    crop_scale: [f64; 2],
    /// Width over height of the crop, low and high, above 0, drawn log-uniformly (3/4, 4/3).
    crop_ratio: [f64; 2],
    /// Kernel that resizes the crop, and rotates, `bicubic` or `bilinear` (bicubic).
    interpolation: Interpolation,
    /// Probability of a horizontal flip, 0 to 1 (0.5).
    flip_prob: f64,
    /// Probability of a vertical flip, 0 to 1 (0).
    vertical_flip_prob: f64,
    /// Probability of a rotation by 90, 180 or 270 degrees, 0 to 1 (0); at 0.75 all four directions are equally likely.
    quarter_turn_prob: f64,
    /// Probability of a rotation, 0 to 1 (0). What lies outside of the view is filled by reflection.
    rotation_prob: f64,
    /// Angle, low and high, degrees counterclockwise, in -180 to 180 (-15, 15).
    rotation_degrees: [f64; 2],
    /// Probability that every channel gets a brightness and a contrast of its own, 0 to 1 (0).
    channel_jitter_prob: f64,
    /// Brightness factor of a channel in 1 - b to 1 + b and not below 0; b at least 0 (0.2).
    channel_brightness: f64,
    /// Contrast factor of a channel in 1 - c to 1 + c and not below 0; c at least 0 (0.2).
    channel_contrast: f64,
    /// Probability of the four color changes, together and in random order, 0 to 1 (0.8).
    jitter_prob: f64,
    /// Brightness factor in 1 - b to 1 + b and not below 0; b at least 0 (0.4).
    brightness: f64,
    /// Contrast factor in 1 - c to 1 + c and not below 0; c at least 0 (0.4).
    contrast: f64,
    /// Saturation factor in 1 - s to 1 + s and not below 0; s at least 0 (0.2). Only RGB has a saturation, a hue and a
    /// grayscale.
    saturation: f64,
    /// Hue shift in -h to h of the color circle; h in 0 to 0.5 (0.1).
    hue: f64,
    /// Probability of grayscale, 0 to 1 (0.2).
    grayscale_prob: f64,
    /// Probability of blur, 0 to 1 (view 1: 1.0, view 2: 0.1).
    blur_prob: f64,
    /// Standard deviation of the blur, low and high, pixels, above 0 (0.1, 2).
    blur_sigma: [f64; 2],
    /// Probability of solarization, 0 to 1 (view 1: 0.0, view 2: 0.2).
    solarize_prob: f64,
    /// Solarization inverts values from this one on, 0 to 255 (128).
    solarize_threshold: u8,
    /// Probability of additive Gaussian noise, 0 to 1 (0).
    noise_prob: f64,
    /// Standard deviation of the noise, low and high, above 0, at most 1, with pixels on the 0..1 scale (0.01, 0.05).
    noise_std: [f64; 2],
    /// Probability that a random box is filled with the mean of each channel, 0 to 1 (0).
    erase_prob: f64,
    /// Area of the box as a fraction of the view, low and high, in 0 to 1 (0.02, 0.33).
    erase_scale: [f64; 2],
    /// Height over width of the box, low and high, above 0, drawn log-uniformly (0.3, 3.3).
    erase_ratio: [f64; 2],
}

/// The keys that version 0.1.0 did not have, of both views.
pub(super) const ADDED: [&str; 24] = [
    "view1.vertical_flip_prob",
    "view1.quarter_turn_prob",
    "view1.rotation_prob",
    "view1.rotation_degrees",
    "view1.channel_jitter_prob",
    "view1.channel_brightness",
    "view1.channel_contrast",
    "view1.noise_prob",
    "view1.noise_std",
    "view1.erase_prob",
    "view1.erase_scale",
    "view1.erase_ratio",
    "view2.vertical_flip_prob",
    "view2.quarter_turn_prob",
    "view2.rotation_prob",
    "view2.rotation_degrees",
    "view2.channel_jitter_prob",
    "view2.channel_brightness",
    "view2.channel_contrast",
    "view2.noise_prob",
    "view2.noise_std",
    "view2.erase_prob",
    "view2.erase_scale",
    "view2.erase_ratio",
];

impl ViewConfig {
    /// The paper's T (table 6): view 1's defaults.
    pub fn view1() -> Self {
        Self {
            crop_scale: [0.08, 1.0],
            crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
            flip_prob: 0.5,
            vertical_flip_prob: 0.0,
            quarter_turn_prob: 0.0,
            rotation_prob: 0.0,
            rotation_degrees: [-15.0, 15.0],
            channel_jitter_prob: 0.0,
            channel_brightness: 0.2,
            channel_contrast: 0.2,
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
            noise_prob: 0.0,
            noise_std: [0.01, 0.05],
            erase_prob: 0.0,
            erase_scale: [0.02, 0.33],
            erase_ratio: [0.3, 3.3],
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

    /// Reports every value out of range, for views of this size; `view` is the section's name.
    pub(super) fn check(&self, view: &str, size: Size, problems: &mut Problems) {
        let key = |name: &str| format!("{view}.{name}");
        for (name, value) in [
            ("flip_prob", self.flip_prob),
            ("vertical_flip_prob", self.vertical_flip_prob),
            ("quarter_turn_prob", self.quarter_turn_prob),
            ("rotation_prob", self.rotation_prob),
            ("channel_jitter_prob", self.channel_jitter_prob),
            ("noise_prob", self.noise_prob),
            ("erase_prob", self.erase_prob),
            ("jitter_prob", self.jitter_prob),
            ("grayscale_prob", self.grayscale_prob),
            ("blur_prob", self.blur_prob),
            ("solarize_prob", self.solarize_prob),
        ] {
            problems.require((0.0..=1.0).contains(&value), &key(name), value, "a probability, 0 to 1");
        }
        for (name, value) in [
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
            ("channel_brightness", self.channel_brightness),
            ("channel_contrast", self.channel_contrast),
        ] {
            problems.require((0.0..=f64::MAX).contains(&value), &key(name), value, "a finite number, at least 0");
        }
        problems.range(&key("hue"), self.hue, 0.0..=0.5);
        let ordered = |[low, high]: [f64; 2], most: f64| 0.0 < low && low <= high && high <= most;
        for (name, range, most, expected) in [
            ("crop_scale", self.crop_scale, 1.0, "[low, high] with 0 < low <= high <= 1"),
            ("crop_ratio", self.crop_ratio, f64::MAX, "[low, high] with 0 < low <= high"),
            ("blur_sigma", self.blur_sigma, f64::MAX, "[low, high] with 0 < low <= high"),
            ("noise_std", self.noise_std, 1.0, "[low, high] with 0 < low <= high <= 1"),
            ("erase_scale", self.erase_scale, 1.0, "[low, high] with 0 < low <= high <= 1"),
            ("erase_ratio", self.erase_ratio, f64::MAX, "[low, high] with 0 < low <= high"),
        ] {
            problems.require(ordered(range, most), &key(name), range, expected);
        }
        let [low, high] = self.rotation_degrees;
        let right = -180.0 <= low && low <= high && high <= 180.0;
        let expected = "[low, high] with -180 <= low <= high <= 180";
        problems.require(right, &key("rotation_degrees"), self.rotation_degrees, expected);
        let sigma = self.blur_sigma;
        if self.blur_prob > 0.0 && ordered(sigma, f64::MAX) {
            let (window, short) = (blur::window(sigma[1]), size.short());
            let (high, window, fits) = (sigma[1].shown(), window.shown(), window <= size.short() as f64);
            let expected = format!("a blur window of at most size, {short} px (at sigma {high} it is {window} px)");
            problems.require(fits, &key("blur_sigma"), sigma, expected);
        }
    }

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
