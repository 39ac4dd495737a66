//! Settings of the augmentation and their checks. Defaults are Table 6 of the paper
//! (arXiv 2006.07733, appendix B); their meaning is torchvision's on 8-bit images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ViewConfig;
use super::stats::PerChannel;
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Side of a view, pixels, 8 to 1024 (224).
    pub size: usize,
    /// Mean of each channel to subtract, 0 to 1 as pixels on the 0..1 scale, or `auto`: that of up to 512 training
    /// images (RGB: ImageNet's 0.485, 0.456, 0.406; otherwise auto).
    pub mean: PerChannel,
    /// Standard deviation to divide by, above 0, at most 1, or `auto` (RGB: ImageNet's 0.229, 0.224, 0.225; otherwise
    /// auto).
    pub std: PerChannel,
    /// Evaluation: length of the short side before the center crop, pixels, at least `size`
    /// (by default `size` below 96, else `size * 256 / 224`).
    pub eval_resize: Option<usize>,
    /// The first view, the paper's T.
    pub view1: ViewConfig,
    /// The second view, the paper's T', with defaults of its own for `blur_prob` and `solarize_prob`.
    #[serde(deserialize_with = "ViewConfig::read_view2")]
    pub view2: ViewConfig,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            size: 224,
            mean: [0.485, 0.456, 0.406].into(),
            std: [0.229, 0.224, 0.225].into(),
            eval_resize: None,
            view1: ViewConfig::view1(),
            view2: ViewConfig::view2(),
        }
    }
}

impl AugmentConfig {
    /// Channels of the images: those of the mean, 3 while it is `auto`.
    pub fn channels(&self) -> usize {
        if self.mean == PerChannel::Auto { 3 } else { self.mean.values().len() }
    }

    /// Bytes of a view.
    pub fn view_bytes(&self) -> usize {
        self.size * self.size * self.channels()
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
        let scaled = (self.size as f64 * 256.0 / 224.0).round() as usize;
        let default = if self.size < 96 { self.size } else { scaled };
        self.eval_resize.unwrap_or(default)
    }
}

impl Section for AugmentConfig {
    fn check(&self, problems: &mut Problems) {
        let size = self.size;
        problems.range("size", size, 8..=1024);
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
        problems.require(side >= size, "eval_resize", side, format!("null or at least size ({size})"));
        self.view1.check("view1", size, problems);
        self.view2.check("view2", size, problems);
    }

    fn no_effect(&self) -> Keys {
        Keys::Only(&["eval_resize"])
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
        let sides = [32, 95, 96, 128, 224].map(|size| AugmentConfig { size, ..config.clone() }.eval_side());
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
    fn every_bad_value_is_named_with_its_key() {
        let bad: AugmentConfig = serde_json::from_str(
            r#"{"size": 4, "std": [1, 0, 1], "eval_resize": 3,
                "view1": {"crop_scale": [0.5, 0.2], "crop_ratio": [0, 1], "flip_prob": 1.5, "hue": 0.6, "brightness": -1},
                "view2": {"jitter_prob": -0.1, "contrast": -1, "saturation": -1, "grayscale_prob": 2, "blur_prob": 2,
                          "solarize_prob": 2, "blur_sigma": [2, 1]}}"#,
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
            "view2.contrast",
            "view2.grayscale_prob",
            "view2.jitter_prob",
            "view2.saturation",
            "view2.solarize_prob",
        ];
        assert_eq!(keys, expected);
        let message = |key: &str| &problems.iter().find(|(k, _)| k == key).unwrap().1;
        assert_eq!(message("view1.crop_scale"), "found [0.5, 0.2], expected [low, high] with 0 < low <= high <= 1");
        assert!(message("view1.blur_sigma").contains("at sigma 2 it is 13 px"));
        let nan = AugmentConfig { mean: [f64::NAN; 3].into(), std: [f64::INFINITY; 3].into(), ..Default::default() };
        assert_eq!(nan.problems().len(), 2);
        let window = |size| AugmentConfig { size, ..Default::default() }.problems().len();
        assert_eq!((window(12), window(13)), (2, 0));
    }
}
