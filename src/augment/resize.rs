//! Antialiased resizing: Pillow's `Image.resize` with BICUBIC or BILINEAR (Resample.c), byte for byte.
//!
//! Pillow resamples along rows and then along columns (or the other way round, see [`Resizer::run`]), with weights in 22-bit fixed point, and rounds to
//! bytes after each. Here the sums are single precision, whose error has a bound: a sum that comes nearer
//! than that to a rounding boundary is computed again in integers. Rows are made in blocks, the pixels of a
//! column side by side so that one weight serves many lanes, and kept in a ring that holds just the rows an
//! output row needs.

use super::color::{MAGIC, narrow, widen};
use super::{Crop, Interpolation};
use crate::pixels::Pixels;

/// Rows resampled together.
const ROWS: usize = 8;
/// Lanes of such a block.
const BLOCK: usize = ROWS * 3;
/// Lanes of an output row computed together.
const CHUNK: usize = 24;
/// One in the fixed point of the weights.
const ONE: f32 = 4_194_304.0;

/// What to make: an image of `width` x `height`, of which only the square of `size` at (left, top) is wanted.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub width: usize,
    pub height: usize,
    pub left: usize,
    pub top: usize,
    pub size: usize,
}

/// Weights of the input pixels for each output pixel along one axis.
#[derive(Default)]
struct Taps {
    /// First input pixel and one past the last, for each output pixel.
    spans: Vec<(usize, usize)>,
    /// `stride` places for each output pixel, multiples of 2^-22.
    weights: Vec<f32>,
    stride: usize,
    /// A sum that is nearer than this to a rounding boundary may be on the wrong side.
    margin: f32,
    exact: Vec<f64>,
}

impl Taps {
    /// Sets the weights of output pixels `start..start + len` of `output`.
    fn fill(&mut self, kernel: Interpolation, input: usize, output: usize, start: usize, len: usize) {
        let (filter, support): (fn(f64) -> f64, f64) = match kernel {
            Interpolation::Bicubic => (cubic, 2.0),
            Interpolation::Bilinear => (triangle, 1.0),
        };
        let scale = input as f64 / output as f64;
        let (support, shrink) = (support * scale.max(1.0), 1.0 / scale.max(1.0));
        self.stride = support.ceil() as usize * 2 + 1;
        self.spans.clear();
        self.weights.clear();
        self.weights.resize(len * self.stride, 0.0);
        let mut largest = 0f32;
        for (i, weights) in (start..).zip(self.weights.chunks_exact_mut(self.stride)) {
            let center = (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            self.spans.push((first, end));
            self.exact.clear();
            self.exact.extend((first..end).map(|x| filter((x as f64 - center + 0.5) * shrink)));
            let total: f64 = self.exact.iter().sum();
            for (weight, exact) in weights.iter_mut().zip(&self.exact) {
                let fixed = exact / total * f64::from(ONE);
                *weight = (fixed + 0.5f64.copysign(fixed)) as i32 as f32 / ONE;
            }
            largest = weights.iter().map(|w| w.abs()).sum::<f32>().max(largest);
        }
        // Each product and each partial sum errs by at most half an ulp of 255 * largest.
        self.margin = (2 * self.stride + 2) as f32 * 255.0 * largest * f32::EPSILON / 2.0;
    }

    /// Span and weights of output pixel `i`.
    fn at(&self, i: usize) -> (usize, &[f32]) {
        let (first, end) = self.spans[i];
        (first, &self.weights[i * self.stride..][..end - first])
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Cubic convolution with a = -0.5.
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

/// The resampler and its buffers.
#[derive(Default)]
pub(super) struct Resizer {
    across: Taps,
    down: Taps,
    block: Block,
    ring: Ring,
    /// The rows that leave a pass, as bytes.
    rows: Vec<u8>,
    /// `ROWS` rows that leave the second pass, if columns came first.
    wide: Vec<f32>,
}

impl Resizer {
    /// Resizes the crop of `image` to `target`. `planes` becomes red, green and blue, `size * size` bytes each.
    pub fn run(&mut self, image: &Pixels, crop: Crop, target: Target, kernel: Interpolation, planes: &mut Vec<u8>) {
        self.across.fill(kernel, crop.width, target.width, target.left, target.size);
        self.down.fill(kernel, crop.height, target.height, target.top, target.size);
        planes.resize(target.size * target.size * 3, 0);
        // Pillow's rule since version 13; older ones always begin with the rows.
        if crop.height > target.height + 2 * crop.width.saturating_sub(target.width) {
            self.columns_first(image, crop, target.size, planes);
        } else {
            self.rows_first(image, crop, target.size, planes);
        }
    }

    fn rows_first(&mut self, image: &Pixels, crop: Crop, size: usize, planes: &mut [u8]) {
        let mut made = self.down.spans[0].0;
        let stride = self.ring.clear(made, size * 3, self.down.stride + ROWS - 1);
        self.rows.resize(stride, 0);
        for y in 0..size {
            let end = self.down.spans[y].1;
            while made < end {
                // Below the last row it is repeated, and not used.
                let row = |lane: usize| crop.row(image, (made + lane).min(crop.height - 1));
                self.block.gather(crop.width, row);
                self.block.resample(&self.across, self.ring.rows(made, ROWS), stride);
                made += ROWS;
            }
            self.ring.resample(&self.down, y, &mut self.rows);
            to_planes(&self.rows, size, y, planes);
        }
    }

    fn columns_first(&mut self, image: &Pixels, crop: Crop, size: usize, planes: &mut [u8]) {
        let mut made = self.down.spans[0].0;
        let stride = self.ring.clear(made, crop.width * 3, self.down.stride);
        let out_stride = (size * 3).next_multiple_of(CHUNK);
        self.rows.resize(ROWS * stride.max(out_stride), 0);
        self.wide.resize(ROWS * out_stride, 0.0);
        for start in (0..size).step_by(ROWS) {
            let lines = start..(start + ROWS).min(size);
            for (y, row) in lines.clone().zip(self.rows.chunks_exact_mut(stride)) {
                let end = self.down.spans[y].1;
                while made < end {
                    widen(crop.row(image, made), self.ring.rows(made, 1));
                    made += 1;
                }
                self.ring.resample(&self.down, y, row);
            }
            self.block.gather(crop.width, |lane| &self.rows[lane * stride..][..crop.width * 3]);
            self.block.resample(&self.across, &mut self.wide, out_stride);
            narrow(&self.wide, &mut self.rows);
            for (y, row) in lines.zip(self.rows.chunks_exact(out_stride)) {
                to_planes(row, size, y, planes);
            }
        }
    }
}

impl Crop {
    /// The bytes of row `y` of the crop.
    fn row<'a>(&self, image: &'a Pixels, y: usize) -> &'a [u8] {
        &image.data[((self.top + y) * image.width + self.left) * 3..][..self.width * 3]
    }
}

/// `ROWS` rows, column by column.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    wide: Vec<f32>,
}

impl Block {
    /// Takes the rows `row(0)` to `row(ROWS - 1)`, RGB.
    fn gather<'a>(&mut self, width: usize, row: impl Fn(usize) -> &'a [u8]) {
        self.bytes.resize(width * BLOCK, 0);
        self.wide.resize(width * BLOCK, 0.0);
        let rows: [_; ROWS] = std::array::from_fn(|lane| &row(lane).as_chunks::<3>().0[..width]);
        for (x, column) in self.bytes.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            for (row, pixel) in rows.iter().zip(column.as_chunks_mut::<3>().0) {
                *pixel = row[x];
            }
        }
        widen(&self.bytes, &mut self.wide);
    }

    /// Resamples across into `ROWS` rows of `stride`.
    fn resample(&self, taps: &Taps, rows: &mut [f32], stride: usize) {
        let columns = self.wide.as_chunks::<BLOCK>().0;
        let mut rows = rows.chunks_exact_mut(stride);
        let mut rows: [_; ROWS] =
            std::array::from_fn(|_| rows.next().expect("a block has ROWS rows").as_chunks_mut::<3>().0);
        for x in 0..taps.spans.len() {
            let (first, weights) = taps.at(x);
            let columns = &columns[first..][..weights.len()];
            let mut sums = [0f32; BLOCK];
            for (column, weight) in columns.iter().zip(weights) {
                add(&mut sums, *weight, column);
            }
            if !round(&mut sums, taps.margin) {
                sums = exact_sums(columns.iter(), weights);
            }
            for (row, pixel) in rows.iter_mut().zip(sums.as_chunks::<3>().0) {
                row[x] = *pixel;
            }
        }
    }
}

/// The rows that the next output rows need; row y is in slot `(y - base) % capacity`.
#[derive(Default)]
struct Ring {
    chunks: Vec<[f32; CHUNK]>,
    base: usize,
    /// Chunks of a row.
    stride: usize,
    capacity: usize,
    /// Where the rows of the current output row begin.
    starts: Vec<usize>,
}

impl Ring {
    /// Makes room for `capacity` rows of `lanes` from row `base` on. Returns the length of a row.
    fn clear(&mut self, base: usize, lanes: usize, capacity: usize) -> usize {
        self.base = base;
        self.stride = lanes.div_ceil(CHUNK);
        self.capacity = capacity.next_multiple_of(ROWS);
        self.chunks.resize(self.capacity * self.stride, [0.0; CHUNK]);
        self.stride * CHUNK
    }

    fn start(&self, y: usize) -> usize {
        (y - self.base) % self.capacity * self.stride
    }

    /// The `count` rows from `y` on, which must not wrap around.
    fn rows(&mut self, y: usize, count: usize) -> &mut [f32] {
        let start = self.start(y);
        self.chunks[start..][..count * self.stride].as_flattened_mut()
    }

    /// Resamples down into output row `y`.
    fn resample(&mut self, taps: &Taps, y: usize, out: &mut [u8]) {
        let (first, weights) = taps.at(y);
        let mut starts = std::mem::take(&mut self.starts);
        starts.clear();
        starts.extend((first..first + weights.len()).map(|row| self.start(row)));
        for (c, out) in out.as_chunks_mut::<CHUNK>().0.iter_mut().enumerate() {
            let mut sums = [0f32; CHUNK];
            for (start, weight) in starts.iter().zip(weights) {
                add(&mut sums, *weight, &self.chunks[start + c]);
            }
            if !round(&mut sums, taps.margin) {
                sums = exact_sums(starts.iter().map(|start| &self.chunks[start + c]), weights);
            }
            narrow(&sums, out);
        }
        self.starts = starts;
    }
}

/// Writes RGB row `y`.
fn to_planes(row: &[u8], size: usize, y: usize, planes: &mut [u8]) {
    let (red, rest) = planes.split_at_mut(size * size);
    let (green, blue) = rest.split_at_mut(size * size);
    let line = y * size..(y + 1) * size;
    let (red, green, blue) = (&mut red[line.clone()], &mut green[line.clone()], &mut blue[line]);
    for (((r, g), b), pixel) in red.iter_mut().zip(green).zip(blue).zip(row.as_chunks::<3>().0) {
        [*r, *g, *b] = *pixel;
    }
}

#[inline(always)]
fn add<const N: usize>(sums: &mut [f32; N], weight: f32, values: &[f32; N]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += weight * value;
    }
}

/// Clips to 0 to 255 and rounds; false if a value was too near the middle of two integers.
#[inline(always)]
fn round<const N: usize>(sums: &mut [f32; N], margin: f32) -> bool {
    let mut worst = [0f32; N];
    for (sum, worst) in sums.iter_mut().zip(&mut worst) {
        let clipped = sum.clamp(0.0, 255.0);
        *sum = clipped + MAGIC - MAGIC;
        *worst = (clipped - *sum).abs();
    }
    worst.iter().all(|worst| *worst < 0.5 - margin)
}

/// The sums in Pillow's fixed point, rounded half up and clipped.
#[inline(never)]
fn exact_sums<'a, const N: usize>(rows: impl Iterator<Item = &'a [f32; N]>, weights: &[f32]) -> [f32; N] {
    let mut sums = [ONE as i32 / 2; N];
    for (row, weight) in rows.zip(weights) {
        let weight = (weight * ONE) as i32;
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += weight * ((value + MAGIC).to_bits() & 0xff) as i32;
        }
    }
    sums.map(|sum| (sum >> 22).clamp(0, 255) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both passes in integers, straight from the definition.
    fn slow(image: &Pixels, crop: Crop, size: usize, kernel: Interpolation) -> Vec<u8> {
        let (mut across, mut down) = (Taps::default(), Taps::default());
        across.fill(kernel, crop.width, size, 0, size);
        down.fill(kernel, crop.height, size, 0, size);
        let pass = |taps: &Taps, i: usize, at: &dyn Fn(usize) -> u8| {
            let (first, weights) = taps.at(i);
            let products = (first..).zip(weights).map(|(k, w)| (w * ONE) as i64 * i64::from(at(k)));
            ((products.sum::<i64>() + (1 << 21)) >> 22).clamp(0, 255) as u8
        };
        let at = |x: usize, y: usize, c: usize| image.data[((crop.top + y) * image.width + crop.left + x) * 3 + c];
        let columns_first = crop.height > size + 2 * crop.width.saturating_sub(size);
        let mut out = vec![0; size * size * 3];
        for (i, v) in out.iter_mut().enumerate() {
            let (c, y, x) = (i / (size * size), i / size % size, i % size);
            *v = if columns_first {
                pass(&across, x, &|k| pass(&down, y, &|j| at(k, j, c)))
            } else {
                pass(&down, y, &|k| pass(&across, x, &|j| at(j, k, c)))
            };
        }
        out
    }

    #[test]
    fn crops_equal_plain_integer_sums() {
        let (width, height) = (90, 130);
        let data = (0..width * height * 3).map(|i: usize| (i * i * 13 + i / 7) as u8).collect();
        let image = Pixels { width, height, data };
        let mut resizer = Resizer::default();
        let mut planes = Vec::new();
        // Half, third and quarter sizes make exact halves, which are rounded up.
        for (w, h) in [(16, 16), (32, 32), (48, 48), (64, 64), (1, 1), (90, 130), (90, 40), (20, 130), (5, 7), (17, 18)]
        {
            for (kernel, size) in
                [(Interpolation::Bicubic, 16), (Interpolation::Bilinear, 16), (Interpolation::Bicubic, 21)]
            {
                let crop = Crop { left: (width - w) / 2, top: (height - h) / 3, width: w, height: h };
                let target = Target { width: size, height: size, left: 0, top: 0, size };
                resizer.run(&image, crop, target, kernel, &mut planes);
                assert!(planes == slow(&image, crop, size, kernel), "{w} x {h} to {size}, {kernel:?}");
            }
        }
    }
}
