//! What a single decoded image says: its colors, and hashes by which equal and similar ones are found.

use sha2::{Digest, Sha256};

use crate::pixels::Pixels;

/// Pixels of an image that its mean and standard deviation are taken from, about.
const PIXELS: usize = 1 << 16;

/// Values of an image.
#[derive(Clone, Debug)]
pub struct Colors {
    /// Whether all channels are the same.
    pub gray: bool,
    /// Mean of each channel, in 0..1.
    pub mean: Vec<f64>,
    /// Mean of its square.
    pub square: Vec<f64>,
}

impl Colors {
    /// From up to [`PIXELS`] pixels, spread over the image.
    pub fn of(pixels: &Pixels) -> Self {
        let step = (pixels.width * pixels.height).div_ceil(PIXELS).max(1);
        let channels = pixels.channels;
        let (mut mean, mut square, mut gray, mut count) = (vec![0.0; channels], vec![0.0; channels], true, 0.0);
        for pixel in pixels.data.chunks_exact(channels).step_by(step) {
            gray &= pixel.iter().all(|value| *value == pixel[0]);
            count += 1.0;
            for (channel, value) in pixel.iter().enumerate() {
                let value = f64::from(*value) / 255.0;
                mean[channel] += value;
                square[channel] += value * value;
            }
        }
        [&mut mean, &mut square].into_iter().flatten().for_each(|sum| *sum /= count);
        Self { gray, mean, square }
    }

    /// Mean and standard deviation per channel over all images, each of which counts the same.
    pub fn summary<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> [Vec<f64>; 2] {
        let channels = all.clone().next().map_or(0, |colors| colors.mean.len());
        let count = all.clone().count().max(1) as f64;
        let average =
            |of: fn(&Self) -> &Vec<f64>, at: usize| all.clone().map(|colors| of(colors)[at]).sum::<f64>() / count;
        let mean: Vec<f64> = (0..channels).map(|at| average(|colors| &colors.mean, at)).collect();
        let variance = mean.iter().enumerate().map(|(at, mean)| average(|colors| &colors.square, at) - mean * mean);
        [mean.clone(), variance.map(|variance| variance.max(0.0).sqrt()).collect()]
    }
}

/// The first half of SHA-256 over size and pixels: equal for images with the same pixels, whatever file they are in.
pub fn exact_hash(pixels: &Pixels) -> u128 {
    let mut hasher = Sha256::new();
    hasher.update((pixels.width as u64).to_le_bytes());
    hasher.update(&pixels.data);
    hasher.finalize().iter().take(16).fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}

/// A thousand times the brightness of a pixel.
fn luminance(pixel: &[u8]) -> u64 {
    match *pixel {
        [red, green, blue] => 299 * u64::from(red) + 587 * u64::from(green) + 114 * u64::from(blue),
        _ => 1000 * pixel.iter().map(|value| u64::from(*value)).sum::<u64>() / pixel.len() as u64,
    }
}

/// Columns and rows of the difference hash.
const GRID: (usize, usize) = (9, 8);

/// dHash: whether each cell of an 8 x 8 grid is darker than the one to its right, of luminance (other than RGB: the mean
/// of the channels) averaged over the cells
/// of a 9 x 8 grid. Small changes of size, compression and brightness change few of the 64 bits. `None` for an image
/// without structure, of which any two would be alike.
pub fn difference_hash(pixels: &Pixels) -> Option<u64> {
    let (columns, rows) = GRID;
    if pixels.width < columns || pixels.height < rows {
        return None;
    }
    let mut cells = [[0.0f64; GRID.0]; GRID.1];
    for (row, line) in cells.iter_mut().enumerate() {
        let (top, bottom) = (row * pixels.height / rows, (row + 1) * pixels.height / rows);
        for (column, cell) in line.iter_mut().enumerate() {
            let (left, right) = (column * pixels.width / columns, (column + 1) * pixels.width / columns);
            let (mut sum, mut count) = (0u64, 0u64);
            // Every pixel of a small cell, one of a few in a large one.
            let (down, along) = (1 + (bottom - top) / 32, 1 + (right - left) / 32);
            for y in (top..bottom).step_by(down) {
                for x in (left..right).step_by(along) {
                    let at = (y * pixels.width + x) * pixels.channels;
                    sum += luminance(&pixels.data[at..at + pixels.channels]);
                    count += 1;
                }
            }
            *cell = sum as f64 / count as f64;
        }
    }
    let flat = cells.iter().flatten().fold((f64::MAX, f64::MIN), |(low, high), cell| (low.min(*cell), high.max(*cell)));
    if flat.1 - flat.0 < 2000.0 {
        return None; // two of 255 levels
    }
    let bits = cells.iter().flat_map(|line| line.windows(2)).map(|pair| u64::from(pair[0] < pair[1]));
    Some(bits.fold(0, |hash, bit| hash << 1 | bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(width: usize, height: usize, brightness: f64) -> Pixels {
        let value = |x: usize, y: usize| {
            let (x, y) = (x as f64 / width as f64, y as f64 / height as f64);
            (127.0 + brightness + 60.0 * (9.0 * x + 4.0 * y).sin() + 40.0 * (5.0 * y - 7.0 * x).cos()) as u8
        };
        let at = |i: usize| value(i / 3 % width, i / 3 / width);
        Pixels { width, height, channels: 3, data: (0..width * height * 3).map(at).collect() }
    }

    #[test]
    fn a_scaled_and_brightened_copy_has_nearly_the_same_hash_and_another_image_not() {
        let hash = |pixels: &Pixels| difference_hash(pixels).expect("structure");
        let image = waves(300, 200, 0.0);
        let copy = hash(&waves(150, 100, 12.0));
        assert!((hash(&image) ^ copy).count_ones() <= 4, "{:b} {copy:b}", hash(&image));
        let mirrored: Vec<u8> = image.data.chunks(900).flat_map(|row| row.chunks(3).rev().flatten().copied()).collect();
        let mirrored = Pixels { data: mirrored, ..image.clone() };
        assert!((hash(&image) ^ hash(&mirrored)).count_ones() > 10);
        assert_ne!(exact_hash(&image), exact_hash(&mirrored));
        assert_eq!(difference_hash(&Pixels { width: 20, height: 20, channels: 3, data: vec![7; 1200] }), None);
    }

    #[test]
    fn colors_are_averaged_over_images() {
        let flat = |rgb: [u8; 3]| Pixels { width: 2, height: 2, channels: 3, data: rgb.repeat(4) };
        let colors = [flat([0, 51, 255]), flat([255, 51, 255])].map(|pixels| Colors::of(&pixels));
        let [mean, std] = Colors::summary(colors.iter());
        for (found, expected) in mean.iter().chain(&std).zip([0.5, 0.2, 1.0, 0.5, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-7, "{mean:?} {std:?}");
        }
        assert!(!colors[0].gray && Colors::of(&flat([9, 9, 9])).gray);
    }
}
