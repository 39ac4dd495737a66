//! Encoded image bytes to RGB8 pixels, as Pillow's `ImageOps.exif_transpose` and `.convert("RGB")`
//! make them: gray is repeated, alpha is dropped (not composited), palettes are looked up, CMYK and
//! YCCK are converted, color profiles are ignored, the first frame of an animation is taken, and
//! the image is rotated as EXIF (or else XMP) says.
//!
//! Deliberate differences: 16-bit gray keeps its high byte, where Pillow clips at 255 and leaves most
//! images white; pixels that the first frame of a GIF does not cover are black, not the palette's first
//! color. Other channels and ranges of values are those that `Values` asks for, in `convert.rs`.

use std::cell::Cell;
use std::io::{Cursor, Read};
use std::path::Path;
use std::thread::LocalKey;

use anyhow::{Context, Error, Result, ensure};
use image::{ImageDecoder, ImageFormat, ImageReader, Limits};

use super::values::{Axes, Values};
use super::{Dataset, PartFor};
use crate::augment::Part;
use crate::files;
use crate::pixels::Pixels;
use orientation::Orientation;
use raster::Raster;

mod convert;
pub(super) mod dicom;
mod frames;
mod jpeg;
mod jpeg2000;
mod npy;
mod orientation;
mod pages;
pub(super) mod raster;
mod source;
mod stack;
mod tiff;
pub(super) mod unsupported;

/// How images are decoded, and the limits of a single one, which are checked before any memory of the image's size
/// is allocated.
///
/// Memory and time are proportional to the pixels that the header declares, however few bytes there are: at most
/// 32 bytes per pixel, thrice that for bands of a TIFF (a TIFF header may reserve 256 MiB, which is not filled), and for
/// the worst known JPEG, 50 nearly empty scans, 0.03 microseconds per pixel on one core; an ordinary photo takes 0.006.
#[derive(Clone, Copy, Debug)]
pub struct DecodeOptions {
    /// Maximum pixels of an image.
    pub max_pixels: usize,
    /// Maximum encoded bytes of an image.
    pub max_bytes: usize,
    /// Whether to apply the orientation in the metadata.
    pub exif_orientation: bool,
    /// JPEGs of more pixels may be decoded at a lower resolution where that will do.
    pub scaled_above: usize,
}

thread_local! {
    /// Buffers for encoded bytes and for pixels that are not yet RGB8 or upright. Reused, so that a thread allocates
    /// only for an image larger than all before it.
    static ENCODED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static RAW: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Of the samples of a picture while it is decoded, and at most of all bands of a TIFF.
const MAX_BYTES_PER_PIXEL: usize = 32;

/// Larger buffers are freed rather than kept by every thread.
const MAX_KEPT: usize = 16 << 20;

/// Decodes `bytes` into `out`, reusing its memory. Anything that is not an image is a one-line error, even if a
/// decoder panics; `out` is then unspecified.
pub fn decode(bytes: &[u8], options: DecodeOptions, out: &mut Pixels) -> Result<()> {
    decode_part(bytes, options, &mut Part::whole, out).map(drop)
}

/// Decodes at least a part, as [`super::Dataset::load_part`] says.
pub fn decode_part(bytes: &[u8], options: DecodeOptions, want: &mut PartFor, out: &mut Pixels) -> Result<Part> {
    ensure_bytes(bytes, options)?;
    caught(|| with_buffer(&RAW, |raw| decode_unchecked(bytes, options, want, raw, out))).map_err(concise)
}

/// The same with the channels and the range of `values`; also returns how many values were clipped.
pub(super) fn decode_values(
    bytes: &[u8],
    options: DecodeOptions,
    values: &Values,
    want: &mut PartFor,
    out: &mut Pixels,
) -> Result<(Part, u64)> {
    ensure_bytes(bytes, options)?;
    caught(|| with_buffer(&RAW, |raw| convert::convert(bytes, options, values, want, raw, out))).map_err(concise)
}

pub(super) use convert::{Look, look};
pub(super) use stack::{frames_of, with_frame_of};

/// The image as it is stored; its orientation is not applied.
pub(super) fn decode_raster(bytes: &[u8], options: DecodeOptions, axes: Axes) -> Result<Raster> {
    ensure_bytes(bytes, options)?;
    caught(|| with_buffer(&RAW, |raw| Ok(convert::stored(bytes, options, axes, raw)?.0))).map_err(concise)
}

fn ensure_bytes(bytes: &[u8], options: DecodeOptions) -> Result<()> {
    ensure!(!bytes.is_empty(), "found no bytes, expected an image");
    ensure_size(bytes.len() as u64, options)
}

/// Decodes at least a part of an image of a set of encoded ones.
pub(super) fn decode_of(
    set: &(impl Dataset + ?Sized),
    index: usize,
    options: DecodeOptions,
    want: &mut PartFor,
    out: &mut Pixels,
) -> Result<Part> {
    let mut part = None;
    set.with_encoded(index, &mut |bytes| {
        part = Some(decode_part(bytes, options, want, out)?);
        Ok(())
    })?;
    part.context("found a set without encoded images")
}

/// Has `work` done with the bytes that `read` puts into an empty buffer.
pub(super) fn with_read(
    work: &mut dyn FnMut(&[u8]) -> Result<()>,
    read: impl FnOnce(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    with_buffer(&ENCODED, |encoded| {
        encoded.clear();
        read(encoded)?;
        work(encoded)
    })
}

/// The same with a file's bytes. Also fails for anything but a regular file.
pub(super) fn with_bytes_of(
    path: &Path,
    options: DecodeOptions,
    work: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    with_read(work, |encoded| {
        let file = files::open_regular(path)?;
        let metadata = file.metadata().context("cannot read the file")?;
        ensure_size(metadata.len(), options)?;
        encoded.reserve(metadata.len() as usize + 1);
        // The file may grow meanwhile; `decode` rejects one byte too many.
        file.take(options.max_bytes as u64 + 1).read_to_end(encoded).context("cannot read the file")?;
        Ok(())
    })
}

/// Fails for an encoded image of more than `max_bytes`.
pub(super) fn ensure_size(bytes: u64, options: DecodeOptions) -> Result<()> {
    let most = options.max_bytes;
    ensure!(bytes <= most as u64, "found {bytes} bytes, expected at most {most} (data.max_bytes)");
    Ok(())
}

/// Turns a panic into an error: libraries that read untrusted files have bugs.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    native::caught_in("decoder", work)
}

/// Maximum length of an error message in characters: one library lists the depth of each of 20 000 channels.
const MAX_ERROR_CHARS: usize = 300;

/// The error and its causes on one short line, each once: many libraries repeat the cause in the message.
pub(super) fn concise(error: Error) -> Error {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    if let Some((end, _)) = text.char_indices().nth(MAX_ERROR_CHARS) {
        text.truncate(end);
        text += "...";
    }
    Error::msg(text)
}

fn with_buffer<T>(key: &'static LocalKey<Cell<Vec<u8>>>, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut buffer = key.take();
    let result = work(&mut buffer);
    if buffer.capacity() <= MAX_KEPT {
        key.set(buffer);
    }
    result
}

fn decode_unchecked(
    bytes: &[u8],
    options: DecodeOptions,
    want: &mut PartFor,
    raw: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<Part> {
    if convert::is_bands(bytes) {
        return Ok(convert::convert(bytes, options, &Values::default(), want, raw, out)?.0);
    }
    let format = format(bytes)?;
    if format == ImageFormat::Jpeg {
        return jpeg::decode(bytes, options, want, raw, out);
    }
    let decoded = decode_other(bytes, format, options, raw, out);
    let orientation =
        if format == ImageFormat::Tiff { decoded.map_err(|error| tiff::explain(bytes, error))? } else { decoded? };
    if let (Some(orientation), true) = (orientation, options.exif_orientation) {
        orientation.apply(out, raw);
    }
    want(out.width, out.height);
    Ok(Part::whole(out.width, out.height))
}

fn format(bytes: &[u8]) -> Result<ImageFormat> {
    if tiff::is_big(bytes) {
        return Ok(ImageFormat::Tiff);
    }
    image::guess_format(bytes).map_err(|_| unsupported::error(bytes))
}

/// The ending of a file name for an encoded image, by its first bytes.
pub(super) fn ending_of(bytes: &[u8]) -> Result<&'static str> {
    if npy::is_npy(bytes) {
        return Ok("npy");
    }
    if dicom::is_dicom(bytes) {
        return Ok("dcm");
    }
    if jpeg2000::is_jpeg2000(bytes) {
        return Ok(if bytes.starts_with(&[0xff]) { "j2k" } else { "jp2" });
    }
    format(bytes)?.extensions_str().first().copied().context("found an image format without an ending")
}

fn decode_other(
    bytes: &[u8],
    format: ImageFormat,
    options: DecodeOptions,
    raw: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<Option<Orientation>> {
    let (decoder, orientation) = open_picture(bytes, format, options)?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let (channels, depth) = (color.channel_count() as usize, color.bytes_per_pixel() as usize);
    out.resize(width as usize, height as usize);
    if (channels, depth) == (3, 3) {
        decoder.read_image(&mut out.data).context("cannot decode")?;
    } else {
        raw.resize(width as usize * height as usize * depth, 0);
        decoder.read_image(raw).context("cannot decode")?;
        to_rgb8(raw, channels, depth / channels, &mut out.data);
    }
    Ok(orientation)
}

/// Reads the header of an image other than JPEG, and finds its orientation.
fn open_picture<'a>(
    bytes: &'a [u8],
    format: ImageFormat,
    options: DecodeOptions,
) -> Result<(impl ImageDecoder + use<'a>, Option<Orientation>)> {
    frames::ensure_sizes(bytes, format, options)?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allocation(options.max_pixels));
    let mut decoder = reader.into_decoder().context("cannot read the header")?;
    let (width, height) = decoder.dimensions();
    ensure_pixels(width as usize, height as usize, options)?;
    let pixels = width as usize * height as usize;
    decoder.set_limits(allocation(pixels)).context("cannot read the header")?;
    let orientation = orientation::find(bytes, format, &mut decoder);
    Ok((decoder, orientation))
}

/// At most 16 bytes per pixel (RGBA in f32) for the pixels and the same again for the decoder.
fn allocation(pixels: usize) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(pixels as u64 * 32 + (1 << 20));
    limits
}

fn ensure_pixels(width: usize, height: usize, options: DecodeOptions) -> Result<()> {
    ensure!(
        (1..=options.max_pixels).contains(&(width * height)),
        "found {width} x {height} pixels, expected between 1 and {} in all (data.max_pixels)",
        options.max_pixels
    );
    Ok(())
}

/// Keeps the first three channels (repeats the first of one or two), and of each channel the high
/// byte (u16, native endian) or 255 times the value (f32).
fn to_rgb8(raw: &[u8], channels: usize, bytes_per_channel: usize, out: &mut [u8]) {
    let step = if channels < 3 { 0 } else { bytes_per_channel };
    let pixels = raw.chunks_exact(channels * bytes_per_channel);
    for (source, target) in pixels.zip(out.chunks_exact_mut(3)) {
        for (channel, value) in target.iter_mut().enumerate() {
            let at = &source[channel * step..];
            *value = match bytes_per_channel {
                1 => at[0],
                2 => (u16::from_ne_bytes([at[0], at[1]]) >> 8) as u8,
                _ => (f32::from_ne_bytes([at[0], at[1], at[2], at[3]]) * 255.0 + 0.5) as u8,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_short_line_with_each_cause_once() {
        let error = Error::msg("bad\n  checksum").context("Format error: bad checksum").context("cannot decode");
        assert_eq!(concise(error).to_string(), "cannot decode: Format error: bad checksum");
        let long = concise(Error::msg("é".repeat(100_000))).to_string();
        assert_eq!(long.chars().count(), MAX_ERROR_CHARS + 3);
    }
}
