//! Antialiased resizing: Pillow's `Image.resize` with BICUBIC or BILINEAR (Resample.c), byte for byte.
//!
//! Pillow resamples along rows and then along columns (or the other way round, see [`Resizer::run`]), with weights
//! in 22-bit fixed point, and rounds to bytes after each pass; so does this. Rows are resampled eight at a time,
//! transposed so that the pixels of a column are adjacent and one weight serves many lanes. The result is transposed
//! back, split into planes, and kept in a ring buffer with just the rows that an output row needs.

use super::color::plane_length;
use super::taps::{BITS, Input, Taps};
use super::{Crop, Interpolation, Size};
use crate::pixels::Pixels;

/// Rows resampled together.
const ROWS: usize = 8;
/// Lanes of an output row computed together, in four arrays of `ROWS`.
const CHUNK: usize = 4 * ROWS;

/// The output: an image of `width` x `height`, of which only the part of `size` at (left, top) is computed.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub width: usize,
    pub height: usize,
    pub left: usize,
    pub top: usize,
    pub size: Size,
    /// Horizontal flip.
    pub flip: bool,
}

/// The resampler and its buffers.
#[derive(Default)]
pub(super) struct Resizer {
    across: Taps,
    down: Taps,
    block: Block,
    ring: Ring,
    /// Rows after the vertical pass.
    rows: Vec<u8>,
}

impl Resizer {
    /// Resizes the crop of `image`, counted in `reduction` pixels for one of it, to `target`. `planes` becomes one
    /// plane for each channel, of [`plane_length`] bytes.
    #[inline(always)]
    pub fn run(
        &mut self,
        image: &Pixels,
        crop: Crop,
        reduction: usize,
        target: Target,
        kernel: Interpolation,
        planes: &mut Vec<u8>,
    ) {
        let Target { width, height, left, top, size, .. } = target;
        let (wanted, crop) = (crop, crop.reduced(reduction));
        let across = Input::new(wanted.left, wanted.width, reduction, crop.width);
        let down = Input::new(wanted.top, wanted.height, reduction, crop.height);
        self.across.fill(kernel, across, width, left..left + size.width);
        self.down.fill(kernel, down, height, top..top + size.height);
        planes.resize(plane_length(size.pixels()) * image.channels, 0);
        // Pillow's rule since version 13; older versions always start with the rows.
        if crop.height > height + 2 * crop.width.saturating_sub(width) {
            self.columns_first(image, crop, target, planes);
        } else {
            self.rows_first(image, crop, target, planes);
        }
    }

    #[inline(always)]
    fn rows_first(&mut self, image: &Pixels, crop: Crop, target: Target, planes: &mut [u8]) {
        let (size, channels) = (target.size, image.channels);
        let mut made = self.down.spans[0].0;
        self.ring.clear(size.width * channels, self.down.stride + ROWS - 1);
        self.rows.resize(size.width * channels, 0);
        for y in 0..size.height {
            while made < self.down.spans[y].1 {
                // Past the last row it is repeated, and not used.
                let row = |lane: usize| crop.row(image, (made + lane).min(crop.height - 1));
                self.block.gather(crop.width * channels, row);
                let put = |lane, channel, part: &[u8]| {
                    self.ring.row_mut(made + lane)[channel * size.width..][..part.len()].copy_from_slice(part);
                };
                self.block.resample(&self.across, channels, target.flip, put);
                made += ROWS;
            }
            resample_down(&self.down, y, |row| self.ring.row(row), &mut self.rows);
            store(&self.rows, size, y, planes);
        }
    }

    #[inline(always)]
    fn columns_first(&mut self, image: &Pixels, crop: Crop, target: Target, planes: &mut [u8]) {
        let (size, stride) = (target.size, crop.width * image.channels);
        self.rows.resize(ROWS * stride, 0);
        for start in (0..size.height).step_by(ROWS) {
            let lines = start..(start + ROWS).min(size.height);
            for (y, out) in lines.clone().zip(self.rows.chunks_exact_mut(stride)) {
                resample_down(&self.down, y, |row| crop.row(image, row), out);
            }
            self.block.gather(stride, |lane| &self.rows[lane * stride..][..stride]);
            let put = |lane, channel, part: &[u8]| {
                if start + lane < lines.end {
                    store(part, size, start + lane, &mut planes[channel * plane_length(size.pixels())..]);
                }
            };
            self.block.resample(&self.across, image.channels, target.flip, put);
        }
    }
}

impl Crop {
    /// The bytes of row `y` of the crop.
    #[inline(always)]
    fn row<'a>(&self, image: &'a Pixels, y: usize) -> &'a [u8] {
        let start = ((self.top + y) * image.width + self.left) * image.channels;
        &image.data[start..][..self.width * image.channels]
    }
}

/// `ROWS` rows side by side.
#[derive(Default)]
struct Block {
    /// `columns[x]`: the first channel of all rows, the second, and so on.
    columns: Vec<u8>,
    /// Some channels of the output: all of the first, `ROWS` for each pixel, then the next channel.
    made: Vec<u8>,
    spare: Vec<u8>,
}

impl Block {
    /// Takes the rows `row(0)` to `row(ROWS - 1)` of `n` bytes.
    #[inline(always)]
    fn gather<'a>(&mut self, n: usize, row: impl Fn(usize) -> &'a [u8]) {
        self.columns.resize(n * ROWS, 0);
        self.spare.resize(self.spare.len().max(n * ROWS), 0);
        // Interleaving at doubled distance each time is a transposition: rows 0 4, then 0 2 4 6, then all.
        for (i, out) in self.columns.chunks_exact_mut(2 * n).enumerate() {
            interleave(&row(i)[..n], &row(i + 4)[..n], out);
        }
        let quarter = |i: usize| &self.columns[2 * n * i..][..2 * n];
        let (even, odd) = self.spare[..n * ROWS].split_at_mut(4 * n);
        interleave(quarter(0), quarter(2), even);
        interleave(quarter(1), quarter(3), odd);
        interleave(even, odd, &mut self.columns);
    }

    /// Resamples horizontally, up to four channels at a time. `put` gets the results: which of the rows, which channel
    /// comes first, and the values, all of that channel before the next.
    #[inline(always)]
    fn resample(&mut self, taps: &Taps, channels: usize, flip: bool, mut put: impl FnMut(usize, usize, &[u8])) {
        match channels {
            1 => self.resample_channels::<1>(taps, 1, 0, flip, &mut put),
            2 => self.resample_channels::<2>(taps, 2, 0, flip, &mut put),
            3 => self.resample_channels::<3>(taps, 3, 0, flip, &mut put),
            _ => {
                // The last four may overlap those before.
                for channel in (0..channels - 4).step_by(4).chain([channels - 4]) {
                    self.resample_channels::<4>(taps, channels, channel, flip, &mut put);
                }
            }
        }
    }

    /// `N` of the channels, from `channel` on. `N` is known to the compiler, because it makes no vectors of loops over a
    /// number of channels that it does not know: they take two to three times as long.
    #[inline(always)]
    fn resample_channels<const N: usize>(
        &mut self,
        taps: &Taps,
        channels: usize,
        channel: usize,
        flip: bool,
        put: &mut impl FnMut(usize, usize, &[u8]),
    ) {
        let size = taps.spans.len();
        let length = size * N * ROWS;
        self.made.resize(length, 0);
        self.spare.resize(self.spare.len().max(length), 0);
        let columns = &self.columns.as_chunks::<ROWS>().0[channel..];
        let mut made = self.made.as_chunks_mut::<ROWS>().0.chunks_exact_mut(size);
        let mut made: [_; N] = std::array::from_fn(|_| made.next().expect("N channels"));
        for x in 0..size {
            let (first, weights) = taps.at(x);
            let to = if flip { size - 1 - x } else { x };
            let pixels = weights.iter().zip((first * channels..).step_by(channels));
            let taps = pixels.map_while(|(weight, at)| Some((weight, columns.get(at..)?.first_chunk()?)));
            weigh(taps, made.each_mut().map(|made| &mut made[to]));
        }
        // The inverse transposition: even and odd rows, then rows equal modulo 4, modulo 8.
        let (made, spare) = (&mut self.made[..], &mut self.spare[..length]);
        let half = length / 2;
        separate(made, spare);
        spare.chunks_exact(half).zip(made.chunks_exact_mut(half)).for_each(|(pairs, out)| separate(pairs, out));
        made.chunks_exact(half / 2).zip(spare.chunks_exact_mut(half / 2)).for_each(|(pairs, out)| separate(pairs, out));
        // It leaves the rows in bit-reversed order.
        for (row, lane) in spare.chunks_exact(size * N).zip([0, 4, 2, 6, 1, 5, 3, 7]) {
            put(lane, channel, row);
        }
    }
}

/// The rows that the next output rows need; row y is in slot `y % capacity`.
#[derive(Default)]
struct Ring {
    bytes: Vec<u8>,
    stride: usize,
    /// A power of two, because the innermost loop takes a modulus by it.
    capacity: usize,
}

impl Ring {
    /// Makes room for at least `capacity` rows of `stride` bytes.
    fn clear(&mut self, stride: usize, capacity: usize) {
        (self.stride, self.capacity) = (stride, capacity.next_power_of_two());
        self.bytes.resize(self.capacity * stride, 0);
    }

    #[inline(always)]
    fn row(&self, y: usize) -> &[u8] {
        &self.bytes[(y & (self.capacity - 1)) * self.stride..][..self.stride]
    }

    #[inline(always)]
    fn row_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.bytes[(y & (self.capacity - 1)) * self.stride..][..self.stride]
    }
}

/// Resamples vertically: the rows from `row` into output row `y`.
#[inline(always)]
fn resample_down<'a>(taps: &Taps, y: usize, row: impl Fn(usize) -> &'a [u8], out: &mut [u8]) {
    let (first, weights) = taps.at(y);
    let rows = || weights.iter().zip((first..).map(&row));
    let n = out.len();
    if n < CHUNK {
        for (at, out) in out.iter_mut().enumerate() {
            let taps = rows().map_while(|(weight, row)| Some((weight, row[at..].as_chunks().0.first_chunk()?)));
            weigh::<1, 1>(taps, [std::array::from_mut(out)]);
        }
        return;
    }
    // The last chunk may overlap the one before it.
    for at in (0..n - CHUNK).step_by(CHUNK).chain([n - CHUNK]) {
        let taps = rows().map_while(|(weight, row)| Some((weight, row[at..].as_chunks().0.first_chunk()?)));
        let [a, b, c, d, ..] = out[at..].as_chunks_mut::<ROWS>().0 else { unreachable!("a chunk has four parts") };
        weigh(taps, [a, b, c, d]);
    }
}

/// Weighted sums in Pillow's fixed point, rounded half up and clipped.
///
/// Written for the auto-vectorizer: lanes in arrays of eight, and a loop over taps that could end early. Otherwise it
/// vectorizes over eight taps, one lane at a time, which takes three times as long.
#[inline(always)]
fn weigh<'a, const L: usize, const N: usize>(
    taps: impl Iterator<Item = (&'a i32, &'a [[u8; L]; N])>,
    out: [&mut [u8; L]; N],
) {
    let mut sums = [[1 << (BITS - 1); L]; N];
    for (&weight, values) in taps {
        for (sums, values) in sums.iter_mut().zip(values) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += weight * i32::from(value);
            }
        }
    }
    for (out, sums) in out.into_iter().zip(sums) {
        for (byte, sum) in out.iter_mut().zip(sums) {
            *byte = (sum >> BITS).clamp(0, 255) as u8;
        }
    }
}

/// `a[0] b[0] a[1] b[1] ...`
#[inline(always)]
fn interleave(a: &[u8], b: &[u8], out: &mut [u8]) {
    for ((out, &a), &b) in out.as_chunks_mut().0.iter_mut().zip(a).zip(b) {
        *out = [a, b];
    }
}

/// The bytes at even indices into the first half of `out`, the others into the second.
#[inline(always)]
fn separate(pairs: &[u8], out: &mut [u8]) {
    let (even, odd) = out.split_at_mut(pairs.len() / 2);
    for ((&[a, b], even), odd) in pairs.as_chunks().0.iter().zip(even).zip(odd) {
        (*even, *odd) = (a, b);
    }
}

/// Writes row `y` of planes.
#[inline(always)]
fn store(row: &[u8], size: Size, y: usize, planes: &mut [u8]) {
    for (plane, line) in planes.chunks_exact_mut(plane_length(size.pixels())).zip(row.chunks_exact(size.width)) {
        plane[y * size.width..][..size.width].copy_from_slice(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both passes in integers, directly from the definition.
    fn slow(image: &Pixels, crop: Crop, size: usize, kernel: Interpolation) -> Vec<u8> {
        let channels = image.channels;
        let (mut across, mut down) = (Taps::default(), Taps::default());
        across.fill(kernel, Input::new(0, crop.width, 1, crop.width), size, 0..size);
        down.fill(kernel, Input::new(0, crop.height, 1, crop.height), size, 0..size);
        let pass = |taps: &Taps, i: usize, at: &dyn Fn(usize) -> u8| {
            let (first, weights) = taps.at(i);
            let products = (first..).zip(weights).map(|(k, &w)| i64::from(w) * i64::from(at(k)));
            ((products.sum::<i64>() + (1 << 21)) >> 22).clamp(0, 255) as u8
        };
        let at =
            |x: usize, y: usize, c: usize| image.data[((crop.top + y) * image.width + crop.left + x) * channels + c];
        let columns_first = crop.height > size + 2 * crop.width.saturating_sub(size);
        let mut out = vec![0; size * size * channels];
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

    /// A view that is not square is made of the same rows and columns; and a crop of an image reduced by averages that
    /// do not change a plane's values is that plane.
    #[test]
    fn sides_differ_and_reduced_crops_keep_their_place() {
        let (width, height) = (90, 130);
        let data = (0..width * height).map(|i: usize| (i * i * 13 + i / 7) as u8).collect();
        let image = Pixels { width, height, channels: 1, data };
        let crop = Crop { left: 7, top: 3, width: 61, height: 90 };
        let (mut resizer, mut planes) = (Resizer::default(), Vec::new());
        let mut run = |image: &Pixels, crop, reduction, size: Size| {
            let target = Target { width: size.width, height: size.height, left: 0, top: 0, size, flip: false };
            resizer.run(image, crop, reduction, target, Interpolation::Bicubic, &mut planes);
            planes[..size.pixels()].to_vec()
        };
        // Both passes of the square, then the middle rows of one of another height.
        let wide = run(&image, crop, 1, Size { height: 20, width: 33 });
        let tall = run(&image, crop, 1, Size { height: 40, width: 33 });
        assert_eq!((wide.len(), tall.len()), (20 * 33, 40 * 33));
        let mean = |plane: &[u8]| plane.iter().map(|v| f64::from(*v)).sum::<f64>() / plane.len() as f64;
        assert!((mean(&wide) - mean(&tall)).abs() < 1.0);
        // A ramp: reduced by 4, its pixels are the means of 4 x 4.
        let ramp = |by: usize| {
            let (width, height) = (160 / by, 80 / by);
            let value = |i: usize| ((i % width * by) as f64 + (by - 1) as f64 / 2.0).round() as u8;
            Pixels { width, height, channels: 1, data: (0..width * height).map(value).collect() }
        };
        let crop = Crop { left: 21, top: 6, width: 97, height: 66 };
        let size = Size { height: 8, width: 12 };
        let (full, reduced) = (run(&ramp(1), crop, 1, size), run(&ramp(4), crop, 4, size));
        let difference = full.iter().zip(&reduced).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(difference <= Some(1), "{full:?} {reduced:?}");
    }

    #[test]
    fn crops_equal_plain_integer_sums() {
        let (width, height) = (90, 130);
        let mut resizer = Resizer::default();
        let mut planes = Vec::new();
        // Half, third and quarter sizes make exact halves, which are rounded up.
        let crops = [(16, 16), (32, 32), (48, 48), (64, 64), (1, 1), (90, 130), (90, 40), (20, 130), (5, 7), (17, 18)];
        let kernels = [(Interpolation::Bicubic, 16), (Interpolation::Bilinear, 16), (Interpolation::Bicubic, 21)];
        for channels in [3, 1, 2, 4, 13] {
            let data = (0..width * height * channels).map(|i: usize| (i * i * 13 + i / 7) as u8).collect();
            let image = Pixels { width, height, channels, data };
            for ((w, h), (kernel, size)) in crops.into_iter().flat_map(|crop| kernels.map(|kernel| (crop, kernel))) {
                let crop = Crop { left: (width - w) / 2, top: (height - h) / 3, width: w, height: h };
                let mut target = Target { width: size, height: size, left: 0, top: 0, size: size.into(), flip: false };
                resizer.run(&image, crop, 1, target, kernel, &mut planes);
                let made: Vec<&[u8]> =
                    planes.chunks(plane_length(size * size)).map(|plane| &plane[..size * size]).collect();
                let made = made.concat();
                assert!(made == slow(&image, crop, size, kernel), "{channels}: {w} x {h} to {size}, {kernel:?}");
                target.flip = true;
                resizer.run(&image, crop, 1, target, kernel, &mut planes);
                let flipped =
                    planes.chunks(plane_length(size * size)).flat_map(|plane| plane[..size * size].chunks(size));
                assert!(flipped.eq(made.chunks(size).map(|row| row.iter().rev().copied().collect::<Vec<_>>())));
            }
        }
    }
}
