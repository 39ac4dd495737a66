//! Color operations on byte planes: torchvision's `adjust_brightness`, `adjust_contrast`, `adjust_saturation`,
//! `adjust_hue`, `to_grayscale` and `solarize` on Pillow images (ImageEnhance, Blend.c, Convert.c).
//!
//! [`Steps`] are collected and applied together, a few pixels at a time: only contrast needs the whole image first, so
//! a typical view takes two passes.

/// 2^23: adding it to a float in 0 to 255 leaves the rounded value in the low bits.
const MAGIC: f32 = 8_388_608.0;
/// Pixels processed together.
const LANES: usize = 32;

/// Groups stored together.
const STRETCH: usize = 8;

/// Red, green and blue of some pixels, whole numbers from 0 to 255.
type Colors = [[f32; LANES]; 3];

/// Bytes of a plane of that many pixels: whole groups; the last pixels are padding.
pub(super) fn plane_length(pixels: usize) -> usize {
    pixels.next_multiple_of(LANES)
}

/// One color change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ColorOp {
    /// Multiplies by the factor.
    Brightness(f64),
    /// Scales the distance to the image's mean luma by the factor.
    Contrast(f64),
    /// Scales the distance to the pixel's luma by the factor.
    Saturation(f64),
    /// Shifts the hue by this part of a turn, -0.5 to 0.5, in steps of 1/256.
    Hue(f64),
}

/// A change of a pixel that does not depend on other pixels.
#[derive(Clone, Copy, Debug)]
enum Step {
    Blend { from: f32, factor: f32 },
    Saturate(f32),
    Hue(f32),
    Grayscale,
    Solarize(f32),
}

/// Changes not yet applied to the planes.
#[derive(Default)]
pub(super) struct Steps {
    pending: Vec<Step>,
}

impl Steps {
    /// Adds a color change. Contrast first applies the pending ones to the planes of `pixels` each.
    #[inline(always)]
    pub fn color(&mut self, op: ColorOp, planes: &mut [u8], pixels: usize) {
        let step = match op {
            ColorOp::Brightness(factor) => Step::Blend { from: 0.0, factor: factor as f32 },
            ColorOp::Contrast(factor) => Step::Blend { from: self.mean_luma(planes, pixels), factor: factor as f32 },
            ColorOp::Saturation(factor) => Step::Saturate(factor as f32),
            // As torchvision: truncated to an integer, then modulo 256.
            ColorOp::Hue(turn) => Step::Hue(((turn * 255.0) as i32 & 255) as f32),
        };
        self.pending.push(step);
    }

    /// Adds the conversion to luma.
    pub fn grayscale(&mut self) {
        self.pending.push(Step::Grayscale);
    }

    /// Adds solarization: inversion of values from `threshold` on.
    pub fn solarize(&mut self, threshold: u8) {
        self.pending.push(Step::Solarize(f32::from(threshold)));
    }

    /// Applies the pending changes to the planes.
    #[inline(always)]
    pub fn flush(&mut self, planes: &mut [u8], pixels: usize) {
        match (self.pending.is_empty(), planes.len() / plane_length(pixels)) {
            (true, _) => {}
            (_, 3) => self.each(planes, |_| {}),
            _ => self.each_channel(planes),
        }
    }

    /// Applies the pending changes and returns the mean luma, rounded.
    #[inline(always)]
    fn mean_luma(&mut self, planes: &mut [u8], pixels: usize) -> f32 {
        if planes.len() != 3 * plane_length(pixels) {
            return self.mean_value(planes, pixels);
        }
        let mut sums = [0.0; LANES];
        let mut left = pixels;
        self.each(
            planes,
            #[inline(always)]
            |colors| {
                let mut lumas = luma(colors);
                // All groups but the last are full.
                if left < LANES {
                    lumas[left..].fill(0.0);
                }
                left = left.saturating_sub(LANES);
                for (sum, luma) in sums.iter_mut().zip(lumas) {
                    *sum += luma;
                }
            },
        );
        // A view has at most 2^20 pixels: whole numbers below 2^23 are exact.
        (sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() / pixels as f64 + 0.5) as u8 as f32
    }

    /// Applies the pending changes and returns the mean over all channels, rounded: of one channel, as in torchvision.
    #[inline(always)]
    fn mean_value(&mut self, planes: &mut [u8], pixels: usize) -> f32 {
        self.flush(planes, pixels);
        let channels = planes.chunks_exact(plane_length(pixels)).map(|plane| &plane[..pixels]);
        let sums = channels.map(|plane| plane.iter().map(|v| u64::from(*v)).sum::<u64>());
        let (count, sum) = sums.fold((0, 0), |(count, sum), plane| (count + pixels, sum + plane));
        (sum as f64 / count as f64 + 0.5) as u8 as f32
    }

    /// Applies the pending changes to any number of channels.
    #[inline(always)]
    fn each_channel(&mut self, planes: &mut [u8]) {
        for group in planes.as_chunks_mut::<LANES>().0 {
            let mut values = widen(group);
            for step in &self.pending {
                step.run_one(&mut values);
            }
            *group = narrow(&values);
        }
        self.pending.clear();
    }

    /// Applies the pending changes and passes every group of pixels to `see`.
    #[inline(always)]
    fn each(&mut self, planes: &mut [u8], mut see: impl FnMut(&Colors)) {
        let length = planes.len() / LANES / 3;
        let (red, rest) = planes.as_chunks_mut::<LANES>().0.split_at_mut(length);
        let (green, blue) = rest.split_at_mut(red.len());
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            let mut colors = [widen(r), widen(g), widen(b)];
            for step in &self.pending {
                step.run(&mut colors);
            }
            if !self.pending.is_empty() {
                (*r, *g, *b) = (narrow(&colors[0]), narrow(&colors[1]), narrow(&colors[2]));
            }
            see(&colors);
        }
        self.pending.clear();
    }

    /// Applies the pending changes and writes pixels of `channels` channels. `planes` are as many, or one for a gray
    /// image in RGB.
    #[inline(always)]
    pub fn finish(&mut self, planes: &mut [u8], pixels: usize, channels: usize, out: &mut [u8]) {
        assert_eq!(out.len(), pixels * channels, "a view has height * width * channels bytes");
        if channels == 3 {
            return self.finish_rgb(planes, pixels, out);
        }
        self.flush(planes, pixels);
        for (channel, plane) in planes.chunks_exact(plane_length(pixels)).enumerate() {
            out[channel..].iter_mut().step_by(channels).zip(plane).for_each(|(out, v)| *out = *v);
        }
    }

    #[inline(always)]
    fn finish_rgb(&mut self, planes: &[u8], pixels: usize, out: &mut [u8]) {
        let plane = |channel: usize| planes.chunks_exact(plane_length(pixels)).nth(channel).unwrap_or(planes);
        let [red, green, blue] = [plane(0), plane(1), plane(2)];
        if self.pending.is_empty() {
            return interleave(red, green, blue, out);
        }
        let [red, green, blue] = [red, green, blue].map(|plane| plane.as_chunks::<LANES>().0.chunks(STRETCH));
        for (((r, g), b), out) in red.zip(green).zip(blue).zip(out.chunks_mut(STRETCH * LANES * 3)) {
            let mut bytes = [[[0; LANES]; STRETCH]; 3];
            for (i, ((r, g), b)) in r.iter().zip(g).zip(b).enumerate() {
                let mut colors = [widen(r), widen(g), widen(b)];
                for step in &self.pending {
                    step.run(&mut colors);
                }
                for (bytes, channel) in bytes.iter_mut().zip(&colors) {
                    bytes[i] = narrow(channel);
                }
            }
            interleave(bytes[0].as_flattened(), bytes[1].as_flattened(), bytes[2].as_flattened(), out);
        }
        self.pending.clear();
    }
}

impl Step {
    /// On values of one channel among any number. A config for other than RGB has no other steps.
    #[inline(always)]
    fn run_one(self, values: &mut [f32; LANES]) {
        match self {
            Self::Blend { from, factor } => values.iter_mut().for_each(|v| *v = blend(from, *v, factor)),
            Self::Solarize(threshold) => values.iter_mut().for_each(|v| *v = solarized(*v, threshold)),
            Self::Saturate(_) | Self::Hue(_) | Self::Grayscale => {}
        }
    }

    #[inline(always)]
    fn run(self, colors: &mut Colors) {
        match self {
            Self::Blend { from, factor } => {
                for v in colors.as_flattened_mut() {
                    *v = blend(from, *v, factor);
                }
            }
            Self::Saturate(factor) => {
                let lumas = luma(colors);
                for channel in colors {
                    for (v, luma) in channel.iter_mut().zip(lumas) {
                        *v = blend(luma, *v, factor);
                    }
                }
            }
            Self::Hue(shift) => shift_hue(colors, shift),
            Self::Grayscale => *colors = [luma(colors); 3],
            Self::Solarize(threshold) => {
                for v in colors.as_flattened_mut() {
                    *v = solarized(*v, threshold);
                }
            }
        }
    }
}

/// `r[0] g[0] b[0] r[1] g[1] b[1] ...`, as many as fit into `out`.
#[inline(always)]
fn interleave(red: &[u8], green: &[u8], blue: &[u8], out: &mut [u8]) {
    for (((pixel, r), g), b) in out.as_chunks_mut().0.iter_mut().zip(red).zip(green).zip(blue) {
        *pixel = [*r, *g, *b];
    }
}

// Arrays are filled in loops: `map` and `from_fn` are not always inlined, and so not vectorized for the target
// features.

/// Bytes as floats.
#[inline(always)]
fn widen(bytes: &[u8; LANES]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (lane, &byte) in lanes.iter_mut().zip(bytes) {
        *lane = f32::from(byte);
    }
    lanes
}

/// Whole floats in 0 to 255 as bytes.
#[inline(always)]
fn narrow(lanes: &[f32; LANES]) -> [u8; LANES] {
    let mut bytes = [0; LANES];
    for (byte, lane) in bytes.iter_mut().zip(lanes) {
        *byte = (lane + MAGIC).to_bits() as u8;
    }
    bytes
}

/// ITU-R 601 luma in 16-bit fixed point, rounded; sums below 2^24 are exact.
#[inline(always)]
fn luma([red, green, blue]: &Colors) -> [f32; LANES] {
    let mut lumas = [0.0; LANES];
    for (((luma, r), g), b) in lumas.iter_mut().zip(red).zip(green).zip(blue) {
        *luma = ((r * 19595.0 + g * 38470.0 + b * 7471.0 + 32768.0) * (1.0 / 65536.0)).floor();
    }
    lumas
}

/// `from + factor * (to - from)` in single precision, clipped and truncated.
#[inline(always)]
pub(super) fn blend(from: f32, to: f32, factor: f32) -> f32 {
    let value = from + factor * (to - from);
    let value = if value > 0.0 { value } else { 0.0 };
    (if value < 255.0 { value } else { 255.0 }).floor()
}

/// The value, inverted from `threshold` on.
#[inline(always)]
fn solarized(v: f32, threshold: f32) -> f32 {
    // Not `if ... { v } else { ... }`: that becomes a masked store, which is slow.
    let mirror = if v < threshold { 0.0 } else { 255.0 };
    f32::abs(mirror - v)
}

/// Converts to 8-bit HSV, adds `shift` (0 to 255) to the hue modulo 256 and converts back.
#[inline(always)]
fn shift_hue([red, green, blue]: &mut Colors, shift: f32) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let (hue, saturation, value) = to_hsv(*r, *g, *b);
        let hue = hue + shift;
        let hue = if hue > 255.0 { hue - 256.0 } else { hue };
        [*r, *g, *b] = to_rgb(hue, saturation, value);
    }
}

/// RGB to HSV, both 0 to 255. Equal to Pillow for all 2^24 colors.
#[inline(always)]
fn to_hsv(r: f32, g: f32, b: f32) -> (f32, f32, f32) {
    let max = |a: f32, b: f32| if a > b { a } else { b };
    let min = |a: f32, b: f32| if a < b { a } else { b };
    let value = max(max(r, g), b);
    let range = value - min(min(r, g), b);
    // The hue, in sixths of a turn, is offset from the largest channel's towards the middle channel.
    let (center, difference) = if g == value { (2.0, b - r) } else { (4.0, r - g) };
    let (center, difference) = if r == value { (0.0, g - b) } else { (center, difference) };
    let side = 1.0f32.copysign(difference);
    let sixths = center + side - side * ((range - difference.abs()) / max(range, 1.0));
    let turn = sixths / 6.0;
    let turn = if turn < 0.0 { turn + 1.0 } else { turn };
    let hue = if range > 0.0 { (turn * 255.0).floor() } else { 0.0 };
    (hue, (range / max(value, 1.0) * 255.0).floor(), value)
}

/// HSV to RGB, both 0 to 255. Equal to Pillow for all 2^24 inputs.
#[inline(always)]
fn to_rgb(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    // A channel is the value minus a trapezoid over the circle of 6 * 255 steps, exact until the division.
    let depth = value * saturation;
    [5.0, 3.0, 1.0].map(|start: f32| {
        let position = hue * 6.0 + start * 255.0;
        let position = if position >= 1530.0 { position - 1530.0 } else { position };
        let mirrored = 1020.0 - position;
        let nearer = if position < mirrored { position } else { mirrored };
        let fall = depth * nearer.clamp(0.0, 255.0) * (1.0 / 65025.0);
        value - fall + MAGIC - MAGIC
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies `ops` to an image of one pixel.
    fn changed(ops: &[ColorOp], pixel: [u8; 3]) -> [u8; 3] {
        let mut planes = [0; 3 * LANES];
        planes.iter_mut().step_by(LANES).zip(pixel).for_each(|(plane, v)| *plane = v);
        let mut steps = Steps::default();
        ops.iter().for_each(|&op| steps.color(op, &mut planes, 1));
        let mut out = [0; 3];
        steps.finish(&mut planes, 1, 3, &mut out);
        out
    }

    // >>> F.adjust_brightness(Image.new("RGB", (1, 1), (51, 102, 153)), 1.3).getpixel((0, 0)), and so on
    #[test]
    fn one_pixel_changes_as_in_torchvision() {
        let pixel = [51, 102, 153];
        assert_eq!(changed(&[ColorOp::Brightness(1.3)], pixel), [66, 132, 198]);
        assert_eq!(changed(&[ColorOp::Contrast(1.3)], pixel), [38, 104, 171]);
        assert_eq!(changed(&[ColorOp::Saturation(1.2)], pixel), [42, 103, 165]);
        assert_eq!(to_hsv(51.0, 102.0, 153.0), (148.0, 170.0, 153.0));
        assert_eq!(changed(&[ColorOp::Hue(0.05)], pixel), [51, 75, 153]);
        assert_eq!(changed(&[ColorOp::Hue(-0.05)], pixel), [51, 133, 153]);
        assert_eq!(changed(&[ColorOp::Hue(0.0)], [9, 9, 9]), [9, 9, 9]);
        assert_eq!(luma(&[51.0, 102.0, 153.0].map(|v| [v; LANES]))[0], 93.0);
    }

    #[test]
    fn changes_together_are_those_one_by_one() {
        let ops = [ColorOp::Hue(0.07), ColorOp::Brightness(0.7), ColorOp::Contrast(1.3), ColorOp::Saturation(0.8)];
        for pixel in [[51, 102, 153], [255, 3, 90], [0, 0, 1]] {
            let one_by_one = ops.iter().fold(pixel, |pixel, &op| changed(&[op], pixel));
            assert_eq!(changed(&ops, pixel), one_by_one);
        }
    }

    /// The mean covers the pixels of the view only, not the padding of the last group.
    #[test]
    fn contrast_moves_from_the_mean_of_the_whole_image() {
        let size = 7;
        let mut planes = vec![0; 3 * plane_length(size * size)];
        planes.chunks_exact_mut(plane_length(size * size)).for_each(|plane| plane[..size * size].fill(100));
        let (mut steps, mut out) = (Steps::default(), vec![0; size * size * 3]);
        steps.color(ColorOp::Brightness(1.5), &mut planes, size * size);
        steps.color(ColorOp::Contrast(0.0), &mut planes, size * size);
        steps.finish(&mut planes, size * size, 3, &mut out);
        assert!(out.iter().all(|v| *v == 150), "{out:?}");
    }

    /// Pillow's steps, with its mixture of single and double precision.
    fn slow_hsv(r: u8, g: u8, b: u8) -> [u8; 3] {
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        if max == min {
            return [0, 0, max];
        }
        let range = f32::from(max - min);
        let [rc, gc, bc] = [r, g, b].map(|v| f32::from(max - v) / range);
        let sixths = match max {
            _ if max == r => bc - gc,
            _ if max == g => (2.0 + f64::from(rc) - f64::from(bc)) as f32,
            _ => (4.0 + f64::from(gc) - f64::from(rc)) as f32,
        };
        let hue = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
        let saturation = range / f32::from(max);
        [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, max]
    }

    #[test]
    fn all_colors_convert_exactly() {
        for color in 0..1u32 << 24 {
            let [_, x, y, z] = color.to_be_bytes();
            let [a, b, c] = [x, y, z].map(f32::from);
            let (hue, saturation, value) = to_hsv(a, b, c);
            assert_eq!([hue, saturation, value].map(|v| v as u8), slow_hsv(x, y, z), "rgb {x} {y} {z}");
            // The same bytes as hue, saturation and value: exact fractions, which never lie midway.
            let (h, s, v) = (u32::from(x), u32::from(y), u32::from(z));
            let (sector, step) = (h * 6 / 255 % 6, h * 6 % 255);
            let less = |part: u32| ((2 * v * (65025 - s * part) + 65025) / 130_050) as u8;
            let (v, p, q, t) = (z, less(255), less(step), less(255 - step));
            let rgb = [[v, t, p], [q, v, p], [p, v, t], [p, q, v], [t, p, v], [v, p, q]][sector as usize];
            assert_eq!(to_rgb(a, b, c), rgb.map(f32::from), "hsv {x} {y} {z}");
        }
    }
}
