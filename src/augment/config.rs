//! Settings of the augmentation and their checks. Defaults are Table 6 of the paper
//! (arXiv 2006.07733, appendix B); their meaning is torchvision's on 8-bit images.

use super::blur;
use serde::{Deserialize, Deserializer, Serialize};

/// Resampling kernel, both with antialiasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Cubic convolution with a = -0.5, support 2.
    #[default]
    Bicubic,
    /// Triangle, support 1.
    Bilinear,
}

/// How an image becomes two views for training, or one for evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Side of a view, pixels, 8 to 1024 (224).
    pub size: usize,
    /// Mean of red, green and blue to subtract, on the 0 to 1 scale (ImageNet: 0.485, 0.456, 0.406).
    pub mean: [f64; 3],
    /// Standard deviation to divide by, above 0 (ImageNet: 0.229, 0.224, 0.225).
    pub std: [f64; 3],
    /// Evaluation: length of the short side before the center crop, pixels, at least `size`
    /// (by default `size` below 96, else `size * 256 / 224`).
    pub eval_resize: Option<usize>,
    /// The first view, the paper's T.
    #[serde(deserialize_with = "view::<_, 1>")]
    pub view1: ViewConfig,
    /// The second view, the paper's T': blur 0.1 and solarize 0.2 where `view1` has 1.0 and 0.0.
    #[serde(deserialize_with = "view::<_, 2>")]
    pub view2: ViewConfig,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            size: 224,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            eval_resize: None,
            view1: ViewConfig::paper(1),
            view2: ViewConfig::paper(2),
        }
    }
}

/// Stands for a probability that the config leaves out, until it is known which view this is: a NaN that no config
/// can write.
const LEFT_OUT: f64 = f64::from_bits(0x7ff8_0000_0000_b401);

/// Reads a view; the two probabilities in which the paper's views differ default to those of view `VIEW`.
fn view<'de, D: Deserializer<'de>, const VIEW: u8>(deserializer: D) -> Result<ViewConfig, D::Error> {
    let mut view = ViewConfig::deserialize(deserializer)?;
    let paper = ViewConfig::paper(VIEW);
    for (value, default) in [(&mut view.blur_prob, paper.blur_prob), (&mut view.solarize_prob, paper.solarize_prob)] {
        if value.to_bits() == LEFT_OUT.to_bits() {
            *value = default;
        }
    }
    Ok(view)
}

/// The random pipeline of one view, in the order of its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default = "ViewConfig::unresolved", deny_unknown_fields)]
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
    /// Probability of blur, 0 to 1 (1.0; `view2` 0.1).
    pub blur_prob: f64,
    /// Standard deviation of the blur, low and high, pixels, above 0 (0.1, 2).
    pub blur_sigma: [f64; 2],
    /// Probability of solarization, 0 to 1 (0.0; `view2` 0.2).
    pub solarize_prob: f64,
    /// Solarization inverts values from this one on, 0 to 255 (128).
    pub solarize_threshold: u8,
}

impl ViewConfig {
    /// View 1 or 2 of the paper's table 6.
    pub fn paper(view: u8) -> Self {
        let (blur_prob, solarize_prob) = if view == 1 { (1.0, 0.0) } else { (0.1, 0.2) };
        Self { blur_prob, solarize_prob, ..Self::unresolved() }
    }

    fn unresolved() -> Self {
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
            blur_prob: LEFT_OUT,
            blur_sigma: [0.1, 2.0],
            solarize_prob: LEFT_OUT,
            solarize_threshold: 128,
        }
    }
}

impl AugmentConfig {
    /// Length of the short side before the evaluation crop, pixels.
    pub fn eval_side(&self) -> usize {
        let scaled = (self.size as f64 * 256.0 / 224.0).round() as usize;
        let default = if self.size < 96 { self.size } else { scaled };
        self.eval_resize.unwrap_or(default)
    }

    /// Every value out of range, as (key below `augment`, "found ..., expected ..."); empty if all are right.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Found(Vec::new());
        let size = self.size;
        let finite = |v: &f64| v.is_finite();
        found.check((8..=1024).contains(&size), "size", &size, "8 to 1024");
        found.check(self.mean.iter().all(finite), "mean", &self.mean, "finite numbers");
        let positive = self.std.iter().all(|v| finite(v) && *v > 0.0);
        found.check(positive, "std", &self.std, "finite numbers above 0");
        if let Some(side) = self.eval_resize {
            found.check(side >= size, "eval_resize", &side, &format!("at least size, {size}"));
        }
        self.view1.check("view1", size, &mut found);
        self.view2.check("view2", size, &mut found);
        found.0
    }
}

impl ViewConfig {
    fn check(&self, view: &str, size: usize, found: &mut Found) {
        for (key, value) in [
            ("flip_prob", self.flip_prob),
            ("jitter_prob", self.jitter_prob),
            ("grayscale_prob", self.grayscale_prob),
            ("blur_prob", self.blur_prob),
            ("solarize_prob", self.solarize_prob),
        ] {
            let right = (0.0..=1.0).contains(&value);
            found.check(right, &format!("{view}.{key}"), &value, "a probability in 0 to 1");
        }
        for (key, value, high, expected) in [
            ("brightness", self.brightness, f64::MAX, "a finite number, at least 0"),
            ("contrast", self.contrast, f64::MAX, "a finite number, at least 0"),
            ("saturation", self.saturation, f64::MAX, "a finite number, at least 0"),
            ("hue", self.hue, 0.5, "0 to 0.5"),
        ] {
            let right = (0.0..=high).contains(&value);
            found.check(right, &format!("{view}.{key}"), &value, expected);
        }
        for (key, [low, high], most, expected) in [
            ("crop_scale", self.crop_scale, 1.0, "0 < low <= high <= 1"),
            ("crop_ratio", self.crop_ratio, f64::MAX, "0 < low <= high, finite"),
            ("blur_sigma", self.blur_sigma, f64::MAX, "0 < low <= high, finite"),
        ] {
            let right = 0.0 < low && low <= high && high <= most;
            found.check(right, &format!("{view}.{key}"), &[low, high], expected);
            if key == "blur_sigma" && right && self.blur_prob > 0.0 {
                let window = blur::window(high);
                let expected = format!("a blur window of at most size, {size} px (at sigma {high} it is {window} px)");
                found.check(window <= size as f64, &format!("{view}.{key}"), &[low, high], &expected);
            }
        }
    }
}

/// Collects the values that fail their check.
struct Found(Vec<(String, String)>);

impl Found {
    fn check(&mut self, right: bool, key: &str, value: &dyn std::fmt::Debug, expected: &str) {
        if !right {
            self.0.push((key.to_owned(), format!("found {value:?}, expected {expected}")));
        }
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
        assert_eq!(message("view1.crop_scale"), "found [0.5, 0.2], expected 0 < low <= high <= 1");
        assert!(message("view1.blur_sigma").contains("at sigma 2 it is 13 px"));
        let nan = AugmentConfig { mean: [f64::NAN; 3], std: [f64::INFINITY; 3], ..Default::default() };
        assert_eq!(nan.problems().len(), 2);
        let window = |size| AugmentConfig { size, ..Default::default() }.problems().len();
        assert_eq!((window(12), window(13)), (2, 0));
    }
}
