//! Gaussian blur: Pillow's `GaussianBlur` (BoxBlur.c), byte for byte: three box blurs along the rows, then
//! three along the columns, each rounded to bytes, with the edge pixels repeated.
//!
//! A box of real radius weighs `2 * whole + 1` pixels alike and the next one on either side less. Its sum
//! slides along, so the cost does not depend on sigma. As in [`super::resize`], sums are single precision
//! and those near a rounding boundary are computed again in integers.

use super::color::{MAGIC, narrow, widen};

/// Lines blurred side by side.
const STRIP: usize = 64;
/// Box blurs in each direction.
const PASSES: usize = 3;
/// One in the fixed point of the weights.
const ONE: f32 = 16_777_216.0;

/// A box: `whole` pixels to each side with `inner` weight, one more with `outer`, in units of 2^-24.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kernel {
    whole: usize,
    inner: u32,
    outer: u32,
}

impl Kernel {
    /// The box whose threefold application has standard deviation `sigma`; all single precision, as in Pillow.
    fn new(sigma: f32) -> Self {
        let radius = radius(sigma);
        let whole = radius as usize;
        let inner = (ONE / (radius * 2.0 + 1.0)) as u32;
        let outer = (ONE as u32 - (whole as u32 * 2 + 1) * inner) / 2;
        Self { whole, inner, outer }
    }
}

/// Radius of a box (Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering").
fn radius(sigma: f32) -> f32 {
    let variance = sigma * sigma / PASSES as f32;
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let rest = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    whole + rest / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
}

/// Pixels that contribute to a blurred one along an axis; a float, as sigma may be huge.
pub(super) fn window(sigma: f64) -> f64 {
    f64::from(radius(sigma as f32)).ceil() * 2.0 * PASSES as f64 + 1.0
}

/// The blur and its buffers.
#[derive(Default)]
pub(super) struct Blur {
    /// The lines of a strip, `STRIP` apart; or one padded row.
    lines: Vec<f32>,
    blurred: Vec<f32>,
    sums: Vec<f32>,
}

impl Blur {
    /// Blurs a plane of `size` x `size` bytes with standard deviation `sigma` in pixels.
    pub fn run(&mut self, plane: &mut [u8], size: usize, sigma: f64) {
        let kernel = Kernel::new(sigma as f32);
        let edge = kernel.whole + 1;
        let length = (size * STRIP).max(size + 2 * edge);
        self.lines.resize(length, 0.0);
        self.blurred.resize(length, 0.0);
        self.sums.resize(size.max(STRIP), 0.0);
        if kernel.whole <= 2 {
            self.rows(plane, size, kernel);
        } else {
            self.turned_rows(plane, size, kernel);
        }
        for left in (0..size).step_by(STRIP) {
            let columns = left..(left + STRIP).min(size);
            for (line, row) in self.lines.chunks_exact_mut(STRIP).zip(plane.chunks_exact(size)) {
                widen(&row[columns.clone()], line);
            }
            self.passes(columns.len(), size, kernel);
            for (line, row) in self.lines.chunks_exact(STRIP).zip(plane.chunks_exact_mut(size)) {
                narrow(line, &mut row[columns.clone()]);
            }
        }
    }

    /// Blurs along the rows with a small box: adding its pixels up beats turning the image.
    fn rows(&mut self, plane: &mut [u8], size: usize, kernel: Kernel) {
        let edge = kernel.whole + 1;
        for row in plane.chunks_exact_mut(size) {
            widen(row, &mut self.lines[edge..]);
            for _ in 0..PASSES {
                let (first, last) = (self.lines[edge], self.lines[edge + size - 1]);
                self.lines[..edge].fill(first);
                self.lines[edge + size..][..edge].fill(last);
                let near = |offset: usize| &self.lines[offset..][..size];
                let mut sums = near(1);
                if kernel.whole > 0 {
                    self.sums[..size].copy_from_slice(sums);
                    (2..=2 * kernel.whole + 1).for_each(|offset| add(&mut self.sums, near(offset)));
                    sums = &self.sums[..size];
                }
                kernel.weigh(sums, near(0), near(2 * edge), &mut self.blurred[edge..][..size]);
                std::mem::swap(&mut self.lines, &mut self.blurred);
            }
            narrow(&self.lines[edge..], row);
        }
    }

    /// Blurs along the rows, turned by a quarter.
    fn turned_rows(&mut self, plane: &mut [u8], size: usize, kernel: Kernel) {
        for rows in plane.chunks_mut(size * STRIP) {
            for (lane, row) in rows.chunks_exact(size).enumerate() {
                let lines = self.lines.chunks_exact_mut(STRIP);
                lines.zip(row).for_each(|(line, &v)| line[lane] = f32::from(v));
            }
            self.passes(rows.len() / size, size, kernel);
            for (lane, row) in rows.chunks_exact_mut(size).enumerate() {
                let lines = self.lines.chunks_exact(STRIP);
                lines.zip(row).for_each(|(line, v)| *v = (line[lane] + MAGIC).to_bits() as u8);
            }
        }
    }

    /// Blurs `width` lanes of `count` lines, all lanes alike.
    fn passes(&mut self, width: usize, count: usize, kernel: Kernel) {
        let whole = kernel.whole;
        let sums = &mut self.sums[..width];
        for _ in 0..PASSES {
            let line = |i: usize| &self.lines[i.min(count - 1) * STRIP..][..width];
            // Sums of the pixels alike around the line before the first.
            sums.iter_mut().zip(line(0)).for_each(|(sum, v)| *sum = v * (whole + 1) as f32);
            (0..whole).for_each(|i| add(sums, line(i)));
            for (i, out) in self.blurred.chunks_exact_mut(STRIP).take(count).enumerate() {
                let before = line(i.saturating_sub(whole + 1));
                for ((sum, entering), leaving) in sums.iter_mut().zip(line(i + whole)).zip(before) {
                    *sum += entering - leaving;
                }
                kernel.weigh(sums, before, line(i + whole + 1), &mut out[..width]);
            }
            std::mem::swap(&mut self.lines, &mut self.blurred);
        }
    }
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
}

impl Kernel {
    /// Weighs the sums of the pixels alike and the two beyond them, and rounds half up.
    #[inline(never)]
    fn weigh(self, sums: &[f32], before: &[f32], after: &[f32], out: &mut [f32]) {
        let (inner, outer) = (self.inner as f32 / ONE, self.outer as f32 / ONE);
        let mut unsure = 0;
        let pixels = || sums.iter().zip(before).zip(after);
        for (((sum, before), after), out) in pixels().zip(out.iter_mut()) {
            let value = sum * inner + (before + after) * outer;
            *out = value + MAGIC - MAGIC;
            // The products err by 2^-24 of 255 together, and so does their sum.
            unsure |= u32::from((value - *out).abs() >= 0.5 - 3.1e-5);
        }
        if unsure != 0 {
            let integer = |v: f32| (v + MAGIC).to_bits() & 0x7f_ffff;
            for (((sum, before), after), out) in pixels().zip(out) {
                let exact = integer(*sum) * self.inner + integer(before + after) * self.outer;
                *out = ((exact + (1 << 23)) >> 24) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_match_the_standard_deviation() {
        for (sigma, expected) in [(0.1, 0.0017), (0.5, 0.0455), (1.0, 0.25), (2.0, 1.375)] {
            assert!((radius(sigma) - expected).abs() < 5e-5, "{sigma}: {}", radius(sigma));
        }
        assert_eq!([0.1, 1.4, 1.5, 2.0, 3.0].map(window), [7.0, 7.0, 13.0, 13.0, 19.0]);
        let Kernel { whole, inner, outer } = Kernel::new(2.0);
        assert_eq!((whole, inner, outer), (1, 4_473_924, 1_677_722));
    }

    /// Any sigma, also beyond the image, against sums over the window in integers.
    #[test]
    fn blurs_equal_plain_integer_sums() {
        let size = 37;
        let noise: Vec<u8> = (0..size * size).map(|i| (i * i * 31 + i * 7 + i / 5) as u8).collect();
        for sigma in [0.1, 0.5, 0.9, 1.0, 1.7, 2.0, 3.1, 4.0, 9.0, 30.0, 80.0] {
            let Kernel { whole, inner, outer } = Kernel::new(sigma as f32);
            let slow = |plane: &[u8], step: usize, line_step: usize| {
                let mut blurred = plane.to_vec();
                for (line, i) in (0..size * size).map(|k| (k / size, k % size)) {
                    let at = |offset: isize| {
                        let i = (i as isize + offset).clamp(0, size as isize - 1) as usize;
                        u64::from(plane[line * line_step + i * step])
                    };
                    let whole = whole as isize;
                    let near: u64 = (-whole..=whole).map(at).sum();
                    let far = at(-whole - 1) + at(whole + 1);
                    let sum = near * u64::from(inner) + far * u64::from(outer);
                    blurred[line * line_step + i * step] = ((sum + (1 << 23)) >> 24) as u8;
                }
                blurred
            };
            let mut expected = noise.clone();
            (0..3).for_each(|_| expected = slow(&expected, 1, size));
            (0..3).for_each(|_| expected = slow(&expected, size, 1));
            let mut plane = noise.clone();
            Blur::default().run(&mut plane, size, sigma);
            assert!(plane == expected, "sigma {sigma}");
        }
    }
}
