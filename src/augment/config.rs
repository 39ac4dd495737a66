//! Settings of the augmentation and their checks. Defaults are Table 6 of the paper
//! (arXiv 2006.07733, appendix B); their meaning is torchvision's on 8-bit images.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::view::{ADDED, GivenView, given};
use super::{PerChannel, Preset, Size, ViewConfig};
use crate::section::{Keys, Problems, Section, Words};

/// Resampling kernel, both with antialiasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Cubic convolution with a = -0.5, support 2.
    #[default]
    Bicubic,
    /// Triangle, support 1.
    Bilinear,
}

/// How an image becomes two views for training, or one for evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// The base of all keys that are not given: `paper`, `small_images`, `aerial`, `microscopy`, `medical` or
    /// `documents` (paper). Their reasons are with `byol::augment::Preset`.
    pub preset: Preset,
    /// Side of a view, pixels, 8 to 1024, or `[height, width]` (224).
    pub size: Size,
    /// Mean of each channel to subtract, 0 to 1 as pixels on the 0..1 scale, or `auto`: that of up to 512 training
    /// images (RGB: ImageNet's 0.485, 0.456, 0.406; otherwise auto).
    pub mean: PerChannel,
    /// Standard deviation to divide by, above 0, at most 1, or `auto` (RGB: ImageNet's 0.229, 0.224, 0.225; otherwise
    /// auto).
    pub std: PerChannel,
    /// Evaluation: length of the short side before the center crop, pixels, at least the view's
    /// (by default `size` below 96, else `size * 256 / 224`).
    pub eval_resize: Option<usize>,
    /// The first view, the paper's T.
    pub view1: ViewConfig,
    /// The second view, the paper's T', with defaults of its own for `blur_prob` and `solarize_prob`.
    pub view2: ViewConfig,
}

/// What a config gives of the section.
#[derive(Deserialize)]
#[serde(rename = "AugmentConfig", default, deny_unknown_fields)]
#[derive(Default)]
struct Given {
    preset: Preset,
    #[serde(deserialize_with = "given")]
    size: Option<Size>,
    #[serde(deserialize_with = "given")]
    mean: Option<PerChannel>,
    #[serde(deserialize_with = "given")]
    std: Option<PerChannel>,
    eval_resize: Option<usize>,
    view1: GivenView,
    view2: GivenView,
}

impl<'de> Deserialize<'de> for AugmentConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = Given::deserialize(deserializer)?;
        let base = Self::from(given.preset);
        Ok(Self {
            preset: given.preset,
            size: given.size.unwrap_or(base.size),
            mean: given.mean.unwrap_or(base.mean),
            std: given.std.unwrap_or(base.std),
            eval_resize: given.eval_resize.or(base.eval_resize),
            view1: given.view1.over(base.view1),
            view2: given.view2.over(base.view2),
        })
    }
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self::paper()
    }
}

impl AugmentConfig {
    /// The defaults of [`Preset::Paper`].
    pub(super) fn paper() -> Self {
        Self {
            preset: Preset::Paper,
            size: 224.into(),
            mean: [0.485, 0.456, 0.406].into(),
            std: [0.229, 0.224, 0.225].into(),
            eval_resize: None,
            view1: ViewConfig::view1(),
            view2: ViewConfig::view2(),
        }
    }

    /// The same on another preset: what is as in its own preset becomes what it is in that one.
    pub fn on(self, preset: Option<Preset>) -> Self {
        let Some(preset) = preset else { return self };
        let values = [&self, &self.preset.into(), &preset.into()].map(serde_json::to_value);
        let [Ok(mut own), Ok(before), Ok(now)] = values else { return self };
        rebase(&mut own, &before, &now);
        serde_json::from_value(own).unwrap_or(self)
    }

    /// Channels of the images: those of the mean, 3 while it is `auto`.
    pub fn channels(&self) -> usize {
        if self.mean == PerChannel::Auto { 3 } else { self.mean.values().len() }
    }

    /// Bytes of a view.
    pub fn view_bytes(&self) -> usize {
        self.size.pixels() * self.channels()
    }

    /// Reports the values that are for images of another number of channels.
    pub fn check_channels(&self, channels: usize, problems: &mut Problems) {
        let default = Self::default();
        for (key, values, default) in [("mean", &self.mean, default.mean), ("std", &self.std, default.std)] {
            let right = *values == PerChannel::Auto || values.values().len() == channels || *values == default;
            let found = format!("{} numbers", values.values().len());
            problems.require(right, key, Words(&found), format!("auto or {channels}, one for each channel"));
        }
        self.view1.check_channels("view1", channels, problems);
        self.view2.check_channels("view2", channels, problems);
    }

    /// Length of the short side before the evaluation crop, pixels.
    pub fn eval_side(&self) -> usize {
        let short = self.size.short();
        let default = if short < 96 { short } else { (short as f64 * 256.0 / 224.0).round() as usize };
        self.eval_resize.unwrap_or(default)
    }
}

/// Replaces the leaves that are as in `before` by those of `now`.
fn rebase(own: &mut Value, before: &Value, now: &Value) {
    match own {
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| rebase(value, &before[key], &now[key])),
        _ if *own == *before => *own = now.clone(),
        _ => {}
    }
}

impl Section for AugmentConfig {
    fn check(&self, problems: &mut Problems) {
        let size = self.size;
        problems.ranges("size", size, &[size.height, size.width], 8..=1024);
        let scale = |values: &[f64]| match values.iter().any(|v| *v > 1.0 && v.is_finite()) {
            true => ", on the 0..1 scale; divide by 255",
            false => "",
        };
        let right = |values: &PerChannel, inside: fn(&f64) -> bool| {
            *values == PerChannel::Auto || !values.values().is_empty() && values.values().iter().all(inside)
        };
        let (mean, std) = (self.mean.values(), self.std.values());
        let expected = format!("auto or a number from 0 to 1 for each channel{}", scale(mean));
        problems.require(right(&self.mean, |v| (0.0..=1.0).contains(v)), "mean", mean, expected);
        let expected = format!("auto or a number above 0, at most 1, for each channel{}", scale(std));
        problems.require(right(&self.std, |v| *v > 0.0 && *v <= 1.0), "std", std, expected);
        let side = self.eval_side();
        let short = size.short();
        problems.require(side >= short, "eval_resize", side, format!("null or at least size ({short})"));
        self.view1.check("view1", size, problems);
        self.view2.check("view2", size, problems);
    }

    fn added(&self) -> &'static [&'static str] {
        &ADDED
    }

    fn no_effect(&self) -> Keys {
        // What a preset changes shows in the keys.
        Keys::Only(&["preset", "eval_resize"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_papers_and_valid() {
        let config = AugmentConfig::default();
        assert_eq!(config.problems(), []);
        assert_eq!((config.view1.blur_prob, config.view1.solarize_prob), (1.0, 0.0));
        assert_eq!((config.view2.blur_prob, config.view2.solarize_prob), (0.1, 0.2));
        let sides =
            [32, 95, 96, 128, 224].map(|size| AugmentConfig { size: size.into(), ..config.clone() }.eval_side());
        assert_eq!(sides, [32, 95, 110, 146, 256]);
    }

    #[test]
    fn a_part_of_a_view_keeps_the_views_own_defaults() {
        let text = r#"{"view1": {"hue": 0.2}, "view2": {"hue": 0.2, "interpolation": "bilinear"}}"#;
        let config: AugmentConfig = serde_json::from_str(text).unwrap();
        let mut expected = AugmentConfig::default();
        (expected.view1.hue, expected.view2.hue) = (0.2, 0.2);
        expected.view2.interpolation = Interpolation::Bilinear;
        assert_eq!(config, expected);
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<AugmentConfig>(&again).unwrap(), config);
        for (text, reason) in [
            (r#"{"view2": {"huge": 0.2}}"#, "unknown field `huge`"),
            (r#"{"view2": {"hue": "x"}}"#, "invalid type: string"),
            (r#"{"view3": {}}"#, "unknown field `view3`"),
        ] {
            let error = serde_json::from_str::<AugmentConfig>(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_preset_is_the_base_of_the_keys_beside_it() {
        let read = |text: &str| serde_json::from_str::<AugmentConfig>(text).unwrap();
        assert_eq!(read(r#"{"preset": "paper"}"#), AugmentConfig::default());
        for name in ["small_images", "aerial", "microscopy", "medical", "documents"] {
            let config = read(&format!(r#"{{"preset": "{name}"}}"#));
            assert_eq!(config.problems(), [], "{name}");
            assert!(config.view1 != ViewConfig::view1() && config.view2 != ViewConfig::view2(), "{name}");
            assert_eq!(read(&serde_json::to_string(&config).unwrap()), config, "{name}");
        }
        let small = read(r#"{"preset": "small_images"}"#);
        assert_eq!((small.size, small.view1.blur_prob, small.view2.solarize_prob), (32.into(), 0.0, 0.2));
        let mut aerial = read(r#"{"preset": "aerial"}"#);
        let changed = read(r#"{"view2": {"hue": 0.2}, "preset": "aerial", "size": [64, 128]}"#);
        (aerial.view2.hue, aerial.size) = (0.2, Size { height: 64, width: 128 });
        assert_eq!(changed, aerial);
        // Chosen later, it changes the same keys.
        let own = read(r#"{"preset": "small_images", "view2": {"hue": 0.2}, "size": [64, 128]}"#);
        assert_eq!((own.clone().on(Some(Preset::Aerial)), own.clone().on(None)), (aerial, own));
    }

    #[test]
    fn the_added_keys_are_those_that_version_0_1_0_lacked() {
        let old = [
            "crop_scale",
            "crop_ratio",
            "interpolation",
            "flip_prob",
            "jitter_prob",
            "brightness",
            "contrast",
            "saturation",
            "hue",
            "grayscale_prob",
            "blur_prob",
            "blur_sigma",
            "solarize_prob",
            "solarize_threshold",
        ];
        let new = super::super::view::KEYS.iter().filter(|key| !old.contains(*key));
        let new = ["view1", "view2"].iter().flat_map(|view| new.clone().map(move |key| format!("{view}.{key}")));
        assert_eq!(new.collect::<Vec<_>>(), ADDED);
    }

    #[test]
    fn every_bad_value_is_named_with_its_key() {
        let bad: AugmentConfig = serde_json::from_str(
            r#"{"size": 4, "std": [1, 0, 1], "eval_resize": 3,
                "view1": {"crop_scale": [0.5, 0.2], "crop_ratio": [0, 1], "flip_prob": 1.5, "hue": 0.6, "brightness": -1},
                "view2": {"jitter_prob": -0.1, "contrast": -1, "saturation": -1, "grayscale_prob": 2, "blur_prob": 2,
                          "solarize_prob": 2, "blur_sigma": [2, 1], "vertical_flip_prob": 2, "quarter_turn_prob": 2,
                          "rotation_prob": 2, "rotation_degrees": [9, 200], "channel_jitter_prob": 2,
                          "channel_brightness": -1, "channel_contrast": -1, "noise_prob": 2, "noise_std": [0, 2],
                          "erase_prob": 2, "erase_scale": [0.3, 0.2], "erase_ratio": [0, 1]}}"#,
        )
        .unwrap();
        let problems = bad.problems();
        let mut keys: Vec<&str> = problems.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        let expected = [
            "eval_resize",
            "size",
            "std",
            "view1.blur_sigma",
            "view1.brightness",
            "view1.crop_ratio",
            "view1.crop_scale",
            "view1.flip_prob",
            "view1.hue",
            "view2.blur_prob",
            "view2.blur_sigma",
            "view2.channel_brightness",
            "view2.channel_contrast",
            "view2.channel_jitter_prob",
            "view2.contrast",
            "view2.erase_prob",
            "view2.erase_ratio",
            "view2.erase_scale",
            "view2.grayscale_prob",
            "view2.jitter_prob",
            "view2.noise_prob",
            "view2.noise_std",
            "view2.quarter_turn_prob",
            "view2.rotation_degrees",
            "view2.rotation_prob",
            "view2.saturation",
            "view2.solarize_prob",
            "view2.vertical_flip_prob",
        ];
        assert_eq!(keys, expected);
        let message = |key: &str| &problems.iter().find(|(k, _)| k == key).unwrap().1;
        assert_eq!(message("view1.crop_scale"), "found [0.5, 0.2], expected [low, high] with 0 < low <= high <= 1");
        assert!(message("view1.blur_sigma").contains("at sigma 2 it is 13 px"));
        let nan = AugmentConfig { mean: [f64::NAN; 3].into(), std: [f64::INFINITY; 3].into(), ..Default::default() };
        assert_eq!(nan.problems().len(), 2);
        let window = |size: usize| AugmentConfig { size: size.into(), ..Default::default() }.problems().len();
        assert_eq!((window(12), window(13)), (2, 0));
    }
}
