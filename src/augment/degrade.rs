//! What sensors and scanners do to single channels and pixels: per-channel brightness and contrast, Gaussian noise,
//! random erasing. All act on any number of channels.

use super::color::blend;
use super::{Crop, Size};
use crate::rng::{Purpose, Stream};

/// Additive Gaussian noise, independent for every value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Standard deviation, on the scale of 0 to 1.
    pub std: f64,
    /// Chooses the noise.
    pub seed: u64,
}

/// Brightness, then contrast of one channel, as torchvision's `adjust_brightness` and `adjust_contrast` of a gray image.
pub(super) fn adjust_channel(plane: &mut [u8], [brightness, contrast]: [f64; 2]) {
    let adjust = |plane: &mut [u8], from: f32, factor: f64| {
        plane.iter_mut().for_each(|v| *v = blend(from, f32::from(*v), factor as f32) as u8);
    };
    adjust(plane, 0.0, brightness);
    let mean = mean(plane.iter());
    adjust(plane, f32::from(mean), contrast);
}

/// Adds noise to every value of a view.
pub(super) fn add_noise(view: &mut [u8], noise: Noise) {
    let mut rng = Stream::new(noise.seed, Purpose::Noise, 0, 0, 0);
    for values in view.chunks_mut(2) {
        let (first, second) = rng.normal_pair();
        for (value, normal) in values.iter_mut().zip([first, second]) {
            // Rounds, and clips at 0 and 255.
            *value = (f64::from(*value) + normal * noise.std * 255.0).round() as u8;
        }
    }
}

/// Fills a box of a view of `size` with the mean of each channel, which is about 0 after normalization, as in torchvision's
/// `RandomErasing` with its default value.
pub(super) fn erase(view: &mut [u8], size: Size, area: Crop) {
    let channels = view.len() / size.pixels();
    for channel in 0..channels {
        let mean = mean(view[channel..].iter().step_by(channels));
        for row in view.chunks_exact_mut(size.width * channels).skip(area.top).take(area.height) {
            let row = &mut row[area.left * channels..][..area.width * channels];
            row[channel..].iter_mut().step_by(channels).for_each(|v| *v = mean);
        }
    }
}

/// torchvision's `RandomErasing.get_params`: up to 10 boxes, of uniform area and log-uniform aspect (height over width),
/// the first that is smaller than the view in both directions; none if none is.
pub(super) fn erased_box(size: Size, scale: [f64; 2], ratio: [f64; 2], rng: &mut Stream) -> Option<Crop> {
    for _ in 0..10 {
        let area = size.pixels() as f64 * rng.uniform(scale[0], scale[1]);
        let aspect = rng.uniform(ratio[0].ln(), ratio[1].ln()).exp();
        let [height, width] = [area * aspect, area / aspect].map(|v| v.sqrt().round_ties_even() as usize);
        if (1..size.height).contains(&height) && (1..size.width).contains(&width) {
            let (top, left) = (rng.below(size.height - height + 1), rng.below(size.width - width + 1));
            return Some(Crop { left, top, width, height });
        }
    }
    None
}

/// Rounded as in Pillow's contrast.
fn mean<'a>(values: impl ExactSizeIterator<Item = &'a u8>) -> u8 {
    let count = values.len();
    (values.map(|v| u64::from(*v)).sum::<u64>() as f64 / count as f64 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_normal_with_the_given_deviation_and_repeats() {
        let noise = Noise { std: 0.05, seed: 3 };
        let mut view = vec![128; 100_001];
        add_noise(&mut view, noise);
        let mut again = vec![128; 100_001];
        add_noise(&mut again, noise);
        assert_eq!(view, again);
        let n = view.len() as f64;
        let offsets: Vec<f64> = view.iter().map(|v| f64::from(*v) - 128.0).collect();
        let mean = offsets.iter().sum::<f64>() / n;
        let std = (offsets.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
        let neighbors = offsets.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / n;
        // 12.75, and a twelfth for the rounding.
        assert!(mean.abs() < 0.2 && (std - 12.753).abs() < 0.15 && neighbors.abs() < 2.6, "{mean} {std} {neighbors}");
        let beyond = offsets.iter().filter(|v| v.abs() > 2.0 * 12.75).count() as f64 / n;
        assert!((beyond - 0.0455).abs() < 0.005, "{beyond}");
        let mut dark = vec![0; 1000];
        add_noise(&mut dark, noise);
        assert!(dark.iter().all(|v| *v < 128) && dark.contains(&0));
    }

    #[test]
    fn an_erased_box_has_each_channels_mean() {
        let size = Size { height: 4, width: 6 };
        let before: Vec<u8> = (0..48).map(|i| if i % 2 == 0 { i } else { 100 }).collect();
        let mut view = before.clone();
        erase(&mut view, size, Crop { left: 1, top: 2, width: 3, height: 1 });
        for (i, (now, before)) in view.iter().zip(&before).enumerate() {
            let inside = i / 12 == 2 && (1..4).contains(&(i / 2 % 6));
            let expected = if inside { [23, 100][i % 2] } else { *before };
            assert_eq!(*now, expected, "{i}");
        }
    }

    #[test]
    fn erased_boxes_have_the_configured_area_and_stay_inside() {
        let size = Size { height: 60, width: 90 };
        let mut areas = Vec::new();
        for index in 0..2000 {
            let mut rng = Stream::new(1, Purpose::Views, 0, index, 0);
            let area = erased_box(size, [0.02, 0.33], [0.3, 3.3], &mut rng).expect("some box fits");
            assert!(area.left + area.width <= 90 && area.top + area.height <= 60);
            areas.push((area.width * area.height) as f64 / 5400.0);
        }
        let mean = areas.iter().sum::<f64>() / areas.len() as f64;
        assert!((mean - 0.17).abs() < 0.015 && areas.iter().all(|a| (0.015..0.34).contains(a)), "{mean}");
        assert_eq!(erased_box(size, [1.0, 1.0], [1.0, 1.0], &mut Stream::new(1, Purpose::Views, 0, 0, 0)), None);
    }
}
