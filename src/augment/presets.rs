//! Augmentations for other images than ImageNet's: `augment.preset`, the base for the keys beside it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AugmentConfig, ViewConfig};

/// What the images are of.
///
/// A view may lose what does not matter for what is in the image, and nothing else: the network learns to ignore
/// whatever two views of an image do not share. Each preset departs from the paper's views only where that is plain for
/// its kind of image, and says why; try it with `byol preview`, and set the keys beside it for what is known better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// The paper's views (arXiv 2006.07733, table 6): photos of things, as in ImageNet.
    #[default]
    Paper,
    /// Photos of 32 to 96 pixels, as in CIFAR and STL-10: views of 32 pixels without blur, which would leave nothing of
    /// details of two or three pixels (SimCLR, arXiv 2002.05709, appendix B.9).
    SmallImages,
    /// Satellite and aerial images. There is no up: all flips and quarter turns. The scale of things is known from the
    /// pixel's size on the ground and small things fill few pixels: crops of at least 20 % of the area. The color tells
    /// land cover: little hue, half the grayscale, no solarization. As SSL4EO-S12 (arXiv 2211.07044) and SeCo
    /// (arXiv 2103.16607) do. Haze and sun differ by band: a brightness and contrast for each channel.
    Aerial,
    /// Microscopy: histology, cells, materials. There is no up: all flips, quarter turns, any angle. Magnification is
    /// fixed: crops of at least 40 % of the area and hardly stretched. Stains and exposures differ by channel: a
    /// brightness and contrast for each, and some hue, but no grayscale and no solarization, which would take the stain
    /// away (arXiv 2212.04690 for histology). Sensor noise; blur as a focus that is slightly off.
    Microscopy,
    /// X-ray, CT, MRI and the like. Findings are small and their place matters: crops of at least 30 % of the area,
    /// small rotations (MoCo-CXR, arXiv 2010.05352). Window and exposure differ: brightness and contrast, no hue,
    /// saturation, grayscale or solarization. Little blur, as texture is diagnostic; some noise. Horizontal flips as in
    /// arXiv 2101.05224: set `flip_prob: 0` where left and right are to be told apart.
    Medical,
    /// Scanned and photographed pages. Writing has a direction: no flips, rotations of a scan's skew only. Letters have
    /// to stay legible: crops of at least 20 % of the area, hardly stretched, and little blur. Paper and light differ:
    /// brightness and contrast, grayscale as a copier's; noise and blur of scanners (arXiv 2208.14558).
    Documents,
}

/// The section with this preset and no key beside it.
impl From<Preset> for AugmentConfig {
    fn from(preset: Preset) -> Self {
        let paper = AugmentConfig::paper();
        let (first, second) = (ViewConfig::view1(), ViewConfig::view2());
        let views = |change: &dyn Fn(ViewConfig) -> ViewConfig| [change(first.clone()), change(second.clone())];
        let size = if preset == Preset::SmallImages { 32.into() } else { paper.size };
        let [view1, view2] = match preset {
            Preset::Paper => views(&|view| view),
            Preset::SmallImages => views(&|view| ViewConfig { blur_prob: 0.0, ..view }),
            Preset::Aerial => views(&aerial),
            Preset::Microscopy => views(&microscopy),
            Preset::Medical => views(&medical),
            Preset::Documents => views(&documents),
        };
        Self { preset, size, view1, view2, ..paper }
    }
}

fn aerial(view: ViewConfig) -> ViewConfig {
    ViewConfig {
        crop_scale: [0.2, 1.0],
        vertical_flip_prob: 0.5,
        quarter_turn_prob: 0.75,
        channel_jitter_prob: 0.3,
        channel_brightness: 0.15,
        channel_contrast: 0.15,
        hue: 0.03,
        grayscale_prob: 0.1,
        blur_prob: view.blur_prob / 2.0,
        solarize_prob: 0.0,
        ..view
    }
}

fn microscopy(view: ViewConfig) -> ViewConfig {
    ViewConfig {
        crop_scale: [0.4, 1.0],
        crop_ratio: [0.9, 1.0 / 0.9],
        vertical_flip_prob: 0.5,
        quarter_turn_prob: 0.75,
        rotation_prob: 0.5,
        rotation_degrees: [-45.0, 45.0],
        channel_jitter_prob: 0.5,
        channel_brightness: 0.1,
        channel_contrast: 0.1,
        brightness: 0.3,
        contrast: 0.3,
        hue: 0.05,
        grayscale_prob: 0.0,
        blur_prob: view.blur_prob / 2.0,
        blur_sigma: [0.1, 1.5],
        solarize_prob: 0.0,
        noise_prob: 0.3,
        noise_std: [0.005, 0.03],
        ..view
    }
}

fn medical(view: ViewConfig) -> ViewConfig {
    ViewConfig {
        crop_scale: [0.3, 1.0],
        rotation_prob: 0.5,
        rotation_degrees: [-10.0, 10.0],
        brightness: 0.3,
        contrast: 0.3,
        saturation: 0.0,
        hue: 0.0,
        grayscale_prob: 0.0,
        blur_prob: view.blur_prob / 2.0,
        blur_sigma: [0.1, 1.0],
        solarize_prob: 0.0,
        noise_prob: 0.2,
        noise_std: [0.005, 0.03],
        ..view
    }
}

fn documents(view: ViewConfig) -> ViewConfig {
    ViewConfig {
        crop_scale: [0.2, 1.0],
        crop_ratio: [0.9, 1.0 / 0.9],
        flip_prob: 0.0,
        rotation_prob: 0.5,
        rotation_degrees: [-4.0, 4.0],
        brightness: 0.3,
        hue: 0.05,
        blur_prob: view.blur_prob / 2.0,
        blur_sigma: [0.1, 1.0],
        solarize_prob: 0.0,
        noise_prob: 0.3,
        noise_std: [0.005, 0.04],
        ..view
    }
}
