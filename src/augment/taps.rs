//! The weights of a resize along one axis, as in Pillow's `Image.resize` (Resample.c).

use std::ops::Range;

use super::Interpolation;

/// Fractional bits of the weights.
pub(super) const BITS: u32 = 22;

/// The input along one axis: a stretch of it, of which the ends may lie between pixels.
#[derive(Clone, Copy)]
pub(super) struct Input {
    /// Pixels that cover the stretch.
    pub pixels: usize,
    /// Where it starts, 0 to 1.
    start: f64,
    /// Its length in pixels.
    length: f64,
}

impl Input {
    /// The `length` pixels from `start` on of an axis, of which `pixels` of `reduction` each cover them.
    pub fn new(start: usize, length: usize, reduction: usize, pixels: usize) -> Self {
        let reduced = |length: usize| length as f64 / reduction as f64;
        Self { pixels, start: reduced(start % reduction), length: reduced(length) }
    }
}

/// Weights of the input pixels for each output pixel along one axis.
#[derive(Default)]
pub(super) struct Taps {
    /// First input pixel and one past the last, for each output pixel.
    pub spans: Vec<(usize, usize)>,
    /// `stride` weights for each output pixel, in fixed point.
    weights: Vec<i32>,
    pub stride: usize,
    exact: Vec<f64>,
}

impl Taps {
    /// Sets the weights of the output pixels `wanted` of `output`.
    #[inline(always)]
    pub fn fill(&mut self, kernel: Interpolation, input: Input, output: usize, wanted: Range<usize>) {
        match kernel {
            Interpolation::Bicubic => self.fill_with(cubic, 2.0, input, output, wanted),
            Interpolation::Bilinear => self.fill_with(triangle, 1.0, input, output, wanted),
        }
    }

    #[inline(always)]
    fn fill_with(
        &mut self,
        filter: impl Fn(f64) -> f64,
        reach: f64,
        input: Input,
        output: usize,
        wanted: Range<usize>,
    ) {
        let scale = input.length / output as f64;
        let (support, shrink) = (reach * scale.max(1.0), 1.0 / scale.max(1.0));
        self.stride = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.weights.clear();
        self.weights.resize(wanted.len() * self.stride, 0);
        for (i, weights) in wanted.zip(self.weights.chunks_exact_mut(self.stride)) {
            let center = input.start + (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input.pixels);
            self.spans.push((first, end));
            self.exact.clear();
            self.exact.extend((first..end).map(|x| filter((x as f64 - center + 0.5) * shrink)));
            let total: f64 = self.exact.iter().sum();
            for (weight, exact) in weights.iter_mut().zip(&self.exact) {
                let fixed = exact / total * f64::from(1 << BITS);
                *weight = (fixed + 0.5f64.copysign(fixed)) as i32;
            }
        }
    }

    /// Span and weights of output pixel `i`.
    #[inline(always)]
    pub fn at(&self, i: usize) -> (usize, &[i32]) {
        let (first, end) = self.spans[i];
        (first, &self.weights[i * self.stride..][..end - first])
    }
}

#[inline(always)]
fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Cubic convolution with a = -0.5.
#[inline(always)]
fn cubic(x: f64) -> f64 {
    let (a, x) = (-0.5, x.abs());
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}
