//! Gaussian blur: Pillow's `GaussianBlur` (BoxBlur.c), byte for byte: three box blurs along the rows, then
//! three along the columns, each rounded to bytes, with the edge pixels repeated.
//!
//! A box of real radius weights `2 * whole + 1` pixels equally and the next one on either side less. It is a running
//! sum, so the cost does not depend on sigma.

use super::Size;

/// Box blurs in each direction.
const PASSES: usize = 3;
/// Maximum pixels on each side of a box that is summed directly instead of by a running sum.
const MAX_ADDED: usize = 2;
/// 1 in the weights' fixed point.
const ONE: f32 = 16_777_216.0;

/// A box: `whole` pixels to each side with `inner` weight, one more with `outer`, in units of 2^-24.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kernel {
    whole: usize,
    inner: u32,
    outer: u32,
}

impl Kernel {
    /// The box that has standard deviation `sigma` when applied three times; in single precision, as in Pillow.
    #[inline(always)]
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
    /// Planes with padding.
    from: Vec<u8>,
    to: Vec<u8>,
    /// Rows with padding.
    lines: [Vec<u8>; 2],
    sums: Vec<u32>,
}

impl Blur {
    /// Blurs a plane of `size` bytes with standard deviation `sigma` in pixels.
    #[inline(always)]
    pub fn run(&mut self, plane: &mut [u8], size: Size, sigma: f64) {
        let kernel = Kernel::new(sigma as f32);
        let length = size.pixels() + (2 * MAX_ADDED + 2) * size.width;
        self.from.resize(length, 0);
        self.to.resize(length, 0);
        match kernel.whole {
            0 => self.small::<3>(plane, size, kernel),
            1 => self.small::<5>(plane, size, kernel),
            MAX_ADDED => self.small::<{ 2 * MAX_ADDED + 3 }>(plane, size, kernel),
            _ => {
                for size in [size, size.turned()] {
                    turn(plane, size, &mut self.to);
                    plane.copy_from_slice(&self.to[..size.pixels()]);
                    self.columns(plane, size.turned(), kernel);
                }
            }
        }
    }

    /// Blurs with a box of `N` pixels, few enough to be summed directly.
    #[inline(always)]
    fn small<const N: usize>(&mut self, plane: &mut [u8], size: Size, kernel: Kernel) {
        let Size { height, width } = size;
        let edge = N / 2;
        let [a, b] = &mut self.lines;
        a.resize(width + 2 * edge, 0);
        b.resize(width + 2 * edge, 0);
        let inside = edge..edge + width;
        let from = &mut self.from[..(height + 2 * edge) * width];
        let to = &mut self.to[..(height + 2 * edge) * width];
        for (row, out) in plane.chunks_exact(width).zip(from[edge * width..].chunks_exact_mut(width)) {
            a[inside.clone()].copy_from_slice(row);
            kernel.pass::<N>(a, 1, &mut b[inside.clone()]);
            kernel.pass::<N>(b, 1, &mut a[inside.clone()]);
            kernel.pass::<N>(a, 1, out);
        }
        // All columns at once: the pixel below is one row further.
        let inside = edge * width..(edge + height) * width;
        kernel.pass::<N>(from, width, &mut to[inside.clone()]);
        kernel.pass::<N>(to, width, &mut from[inside]);
        kernel.pass::<N>(from, width, plane);
    }

    /// Blurs along the columns, all of them side by side.
    #[inline(always)]
    fn columns(&mut self, plane: &mut [u8], size: Size, kernel: Kernel) {
        let Size { height, width } = size;
        let whole = kernel.whole;
        self.sums.resize(width, 0);
        self.from[..height * width].copy_from_slice(plane);
        for _ in 0..PASSES {
            let line = |y: usize| &self.from[y.min(height - 1) * width..][..width];
            // Sums of the equally weighted pixels around the line before the first.
            self.sums.iter_mut().zip(line(0)).for_each(|(sum, &v)| *sum = u32::from(v) * (whole as u32 + 1));
            for y in 0..whole {
                self.sums.iter_mut().zip(line(y)).for_each(|(sum, &v)| *sum += u32::from(v));
            }
            for (y, out) in self.to.chunks_exact_mut(width).take(height).enumerate() {
                let (before, entering, after) =
                    (line(y.saturating_sub(whole + 1)), line(y + whole), line(y + whole + 1));
                let lines = self.sums.iter_mut().zip(before).zip(entering).zip(after).zip(out);
                for ((((sum, &before), &entering), &after), out) in lines {
                    *sum = *sum + u32::from(entering) - u32::from(before);
                    *out = kernel.weigh(*sum, u16::from(before) + u16::from(after));
                }
            }
            std::mem::swap(&mut self.from, &mut self.to);
        }
        plane.copy_from_slice(&self.from[..height * width]);
    }
}

/// Transposes the rows and columns of a plane of `size`.
pub(super) fn turn(plane: &[u8], size: Size, out: &mut [u8]) {
    for (y, row) in plane.chunks_exact(size.width).enumerate() {
        row.iter().zip(out[y..].iter_mut().step_by(size.height)).for_each(|(v, out)| *out = *v);
    }
}

impl Kernel {
    /// Blurs with a box of `N` pixels that lie `step` apart. `pixels` start and end with padding for `N / 2` steps,
    /// which this fills with the first and last one.
    #[inline(always)]
    fn pass<const N: usize>(self, pixels: &mut [u8], step: usize, out: &mut [u8]) {
        let (edge, length) = (N / 2 * step, out.len());
        for at in (0..edge).step_by(step) {
            pixels.copy_within(edge..edge + step, at);
            pixels.copy_within(edge + length - step..edge + length, edge + length + at);
        }
        let mut lines: [&[u8]; N] = [&[]; N];
        for (i, line) in lines.iter_mut().enumerate() {
            *line = &pixels[i * step..][..length];
        }
        for (x, out) in out.iter_mut().enumerate() {
            let mut near = 0;
            for line in &lines[1..N - 1] {
                near += u16::from(line[x]);
            }
            *out = self.weigh(near.into(), u16::from(lines[0][x]) + u16::from(lines[N - 1][x]));
        }
    }

    /// Weights the sum of the inner pixels and that of the two outer ones, and rounds half up.
    #[inline(always)]
    fn weigh(self, near: u32, far: u16) -> u8 {
        // At most 255.5 in this fixed point, which fits.
        ((near * self.inner + u32::from(far) * self.outer + (1 << 23)) >> 24) as u8
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

    /// Any sigma, also with boxes larger than the image, against integer sums over the window.
    #[test]
    fn blurs_equal_plain_integer_sums() {
        for size in [Size::from(37), Size { height: 21, width: 45 }, Size { height: 45, width: 21 }] {
            blurs_of(size);
        }
    }

    fn blurs_of(size: Size) {
        let Size { height, width } = size;
        let noise: Vec<u8> = (0..size.pixels()).map(|i| (i * i * 31 + i * 7 + i / 5) as u8).collect();
        for sigma in [0.1, 0.5, 0.9, 1.0, 1.7, 2.0, 3.1, 4.0, 9.0, 30.0, 80.0] {
            let Kernel { whole, inner, outer } = Kernel::new(sigma as f32);
            let slow = |plane: &[u8], length: usize, step: usize, line_step: usize| {
                let mut blurred = plane.to_vec();
                for (line, i) in (0..size.pixels()).map(|k| (k / length, k % length)) {
                    let at = |offset: isize| {
                        let i = (i as isize + offset).clamp(0, length as isize - 1) as usize;
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
            (0..3).for_each(|_| expected = slow(&expected, width, 1, width));
            (0..3).for_each(|_| expected = slow(&expected, height, width, 1));
            let mut plane = noise.clone();
            Blur::default().run(&mut plane, size, sigma);
            assert!(plane == expected, "sigma {sigma}");
        }
    }
}
