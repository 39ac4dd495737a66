//! Colour operations on byte planes: torchvision's `adjust_brightness`, `adjust_contrast`,
//! `adjust_saturation`, `adjust_hue` and `to_grayscale` on Pillow images (ImageEnhance, Blend.c, Convert.c).

/// 2^23: adding it to a float in 0 to 255 leaves the rounded value in the low bits.
pub(super) const MAGIC: f32 = 8_388_608.0;

/// Bytes as floats.
pub(super) fn widen(bytes: &[u8], wide: &mut [f32]) {
    for (wide, &byte) in wide.iter_mut().zip(bytes) {
        *wide = f32::from(byte);
    }
}

/// Whole floats in 0 to 255 as bytes.
pub(super) fn narrow(wide: &[f32], bytes: &mut [u8]) {
    for (&wide, byte) in wide.iter().zip(bytes) {
        *byte = (wide + MAGIC).to_bits() as u8;
    }
}

/// One colour change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ColorOp {
    /// Multiplies by the factor.
    Brightness(f64),
    /// Moves away from the image's mean luma by the factor.
    Contrast(f64),
    /// Moves away from the pixel's luma by the factor.
    Saturation(f64),
    /// Shifts the hue by this part of a turn, -0.5 to 0.5, in steps of 1/256.
    Hue(f64),
}

impl ColorOp {
    /// Changes three planes. Curves that are the same for all channels only go into `tone`.
    pub(super) fn apply(self, planes: &mut [u8], tone: &mut Tone) {
        if !matches!(self, Self::Brightness(_)) {
            tone.flush(planes);
        }
        let (red, rest) = planes.split_at_mut(planes.len() / 3);
        let (green, blue) = rest.split_at_mut(red.len());
        match self {
            Self::Brightness(factor) => tone.then(|v| blend(0.0, f32::from(v), factor as f32)),
            Self::Contrast(factor) => {
                let mean = f32::from(mean_luma(red, green, blue));
                tone.then(|v| blend(mean, f32::from(v), factor as f32));
            }
            Self::Saturation(factor) => saturate(red, green, blue, factor as f32),
            Self::Hue(turn) => {
                // As torchvision: truncated to an integer, then modulo 256.
                shift_hue(red, green, blue, ((turn * 255.0) as i32 & 255) as f32);
            }
        }
    }
}

/// A byte curve not yet applied to the planes: consecutive curves cost one pass.
pub(super) struct Tone {
    curve: [u8; 256],
    identity: bool,
}

impl Default for Tone {
    fn default() -> Self {
        Self { curve: std::array::from_fn(|v| v as u8), identity: true }
    }
}

impl Tone {
    /// Adds an operation.
    pub fn then(&mut self, op: impl Fn(u8) -> u8) {
        self.curve = self.curve.map(op);
        self.identity = false;
    }

    /// Applies what is pending.
    #[inline(never)]
    pub fn flush(&mut self, planes: &mut [u8]) {
        if !self.identity {
            planes.iter_mut().for_each(|v| *v = self.curve[usize::from(*v)]);
            *self = Self::default();
        }
    }

    /// Nothing is pending?
    pub fn is_identity(&self) -> bool {
        self.identity
    }

    /// The pixel with what is pending applied.
    pub fn map(&self, pixel: [u8; 3]) -> [u8; 3] {
        pixel.map(|v| self.curve[usize::from(v)])
    }
}

/// Replaces the first plane of three by the luma.
pub(super) fn grayscale(planes: &mut [u8]) {
    let (red, rest) = planes.split_at_mut(planes.len() / 3);
    let (green, blue) = rest.split_at(red.len());
    for ((r, &g), &b) in red.iter_mut().zip(green).zip(blue) {
        *r = luma(*r, g, b) as u8;
    }
}

/// ITU-R 601 luma in 16-bit fixed point, rounded.
fn luma(r: u8, g: u8, b: u8) -> u32 {
    (u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16
}

#[inline(never)]
fn mean_luma(red: &[u8], green: &[u8], blue: &[u8]) -> u8 {
    let lumas = red.iter().zip(green).zip(blue).map(|((&r, &g), &b)| luma(r, g, b));
    // A view has at most 2^20 pixels: the sum fits.
    (f64::from(lumas.sum::<u32>()) / red.len() as f64 + 0.5) as u8
}

/// `from + factor * (to - from)` in single precision, clipped and truncated.
#[inline(always)]
fn blend(from: f32, to: f32, factor: f32) -> u8 {
    let value = from + factor * (to - from);
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 255.0 { value } else { 255.0 };
    (floor(value) + MAGIC).to_bits() as u8
}

/// Integer part of a value in 0 to 2^22. Unlike `f32::floor` and `as`, it is fast without SSE4.
#[inline(always)]
fn floor(value: f32) -> f32 {
    let nearest = value + MAGIC - MAGIC;
    if nearest > value { nearest - 1.0 } else { nearest }
}

#[inline(never)]
fn saturate(red: &mut [u8], green: &mut [u8], blue: &mut [u8], factor: f32) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let gray = luma(*r, *g, *b) as i32 as f32;
        *r = blend(gray, f32::from(*r), factor);
        *g = blend(gray, f32::from(*g), factor);
        *b = blend(gray, f32::from(*b), factor);
    }
}

/// Converts to 8-bit HSV, adds `shift` (0 to 255) to the hue modulo 256 and converts back.
#[inline(never)]
fn shift_hue(red: &mut [u8], green: &mut [u8], blue: &mut [u8], shift: f32) {
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let (hue, saturation, value) = to_hsv(f32::from(*r), f32::from(*g), f32::from(*b));
        let hue = hue + shift;
        let hue = if hue > 255.0 { hue - 256.0 } else { hue };
        [*r, *g, *b] = to_rgb(hue, saturation, value);
    }
}

/// RGB to HSV, both 0 to 255. Equal to Pillow for all 2^24 colours.
#[inline(always)]
fn to_hsv(r: f32, g: f32, b: f32) -> (f32, f32, f32) {
    let max = |a: f32, b: f32| if a > b { a } else { b };
    let min = |a: f32, b: f32| if a < b { a } else { b };
    let value = max(max(r, g), b);
    let range = value - min(min(r, g), b);
    // The hue, in sixths of a turn, lies on one side of the largest channel's, towards the middle channel.
    let (center, difference) = if g == value { (2.0, b - r) } else { (4.0, r - g) };
    let (center, difference) = if r == value { (0.0, g - b) } else { (center, difference) };
    let side = 1.0f32.copysign(difference);
    let sixths = center + side - side * ((range - difference.abs()) / max(range, 1.0));
    let turn = sixths / 6.0;
    let turn = if turn < 0.0 { turn + 1.0 } else { turn };
    let hue = if range > 0.0 { floor(turn * 255.0) } else { 0.0 };
    (hue, floor(range / max(value, 1.0) * 255.0), value)
}

/// HSV to RGB, both 0 to 255. Equal to Pillow for all 2^24 inputs.
#[inline(always)]
fn to_rgb(hue: f32, saturation: f32, value: f32) -> [u8; 3] {
    // A channel is the value less a trapezoid over the circle of 6 * 255 steps, all exact until the division.
    let depth = value * saturation;
    [5.0, 3.0, 1.0].map(|start: f32| {
        let position = hue * 6.0 + start * 255.0;
        let position = if position >= 1530.0 { position - 1530.0 } else { position };
        let mirrored = 1020.0 - position;
        let nearer = if position < mirrored { position } else { mirrored };
        let fall = depth * nearer.clamp(0.0, 255.0) * (1.0 / 65025.0);
        (value - fall + MAGIC).to_bits() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(op: ColorOp, pixel: [u8; 3]) -> [u8; 3] {
        let (mut planes, mut tone) = (pixel, Tone::default());
        op.apply(&mut planes, &mut tone);
        tone.map(planes)
    }

    // >>> F.adjust_brightness(Image.new("RGB", (1, 1), (51, 102, 153)), 1.3).getpixel((0, 0)), and so on
    #[test]
    fn one_pixel_changes_as_in_torchvision() {
        let pixel = [51, 102, 153];
        assert_eq!(changed(ColorOp::Brightness(1.3), pixel), [66, 132, 198]);
        assert_eq!(changed(ColorOp::Contrast(1.3), pixel), [38, 104, 171]);
        assert_eq!(changed(ColorOp::Saturation(1.2), pixel), [42, 103, 165]);
        assert_eq!(to_hsv(51.0, 102.0, 153.0), (148.0, 170.0, 153.0));
        assert_eq!(changed(ColorOp::Hue(0.05), pixel), [51, 75, 153]);
        assert_eq!(changed(ColorOp::Hue(-0.05), pixel), [51, 133, 153]);
        assert_eq!(changed(ColorOp::Hue(0.0), [9, 9, 9]), [9, 9, 9]);
        assert_eq!(luma(51, 102, 153), 93);
    }

    #[test]
    fn curves_add_up_and_are_applied_once() {
        let mut tone = Tone::default();
        tone.then(|v| v / 2);
        tone.then(|v| 255 - v);
        let mut planes = [0, 100, 201];
        assert_eq!(tone.map(planes), [255, 205, 155]);
        tone.flush(&mut planes);
        tone.flush(&mut planes);
        assert_eq!(planes, [255, 205, 155]);
        assert!(tone.is_identity());
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
            assert_eq!(to_rgb(a, b, c), rgb, "hsv {x} {y} {z}");
        }
    }
}
