//! Encoded image bytes to RGB8 pixels, with the rules of Pillow's `.convert("RGB")` after
//! `ImageOps.exif_transpose`: grey is repeated, alpha is dropped (not composited), palettes are
//! looked up, CMYK and YCCK are converted, the first frame of an animation is taken, the EXIF
//! orientation is applied.
//!
//! Deliberate deviations: 16-bit channels keep their high byte in grey images too, where Pillow
//! clips at 255; a JPEG without an end marker counts as truncated even if no pixel is missing,
//! because the decoder would silently paint what is missing grey.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, bail, ensure};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::pixels::Pixels;

/// What a single image may cost; checked before anything of its size is allocated.
#[derive(Clone, Copy, Debug)]
pub struct DecodeLimits {
    /// Most pixels of an image.
    pub max_pixels: usize,
    /// Most bytes of its encoded form.
    pub max_bytes: usize,
}

/// Decodes `bytes` into `out`, reusing its memory. Any byte string that is not an image ends in a
/// one-line error, also when a decoder panics; `out` is then unspecified.
pub fn decode(bytes: &[u8], limits: DecodeLimits, out: &mut Pixels) -> Result<()> {
    ensure!(!bytes.is_empty(), "found no bytes, expected an image");
    ensure!(
        bytes.len() <= limits.max_bytes,
        "found {} bytes, expected at most {} (data.max_bytes)",
        bytes.len(),
        limits.max_bytes
    );
    caught(|| decode_unchecked(bytes, limits, out))
        // Some decoder messages span lines; a log line must not.
        .map_err(|error| anyhow::anyhow!(format!("{error:#}").replace(['\n', '\r'], " ")))
}

/// Makes an error of a panic: libraries that read untrusted files have bugs, too.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| bail!("decoder panicked: {}", panic_message(panic.as_ref())))
}

/// The text of a caught panic.
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_string())
}

fn decode_unchecked(bytes: &[u8], limits: DecodeLimits, out: &mut Pixels) -> Result<()> {
    let format = image::guess_format(bytes)
        .map_err(|_| anyhow::anyhow!("found an unknown file type, expected JPEG, PNG, WebP, BMP, GIF or TIFF"))?;
    if format == ImageFormat::Jpeg {
        ensure!(!jpeg_is_truncated(bytes), "jpeg is truncated: its end marker is missing");
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut allocation = Limits::default();
    // At most 16 bytes a pixel (RGBA in f32) for the pixels and as much again for the decoder.
    allocation.max_alloc = Some(limits.max_pixels as u64 * 32 + (1 << 20));
    reader.limits(allocation);
    let mut decoder = reader.into_decoder().context("cannot read the header")?;
    let (width, height) = decoder.dimensions();
    let pixels = width as u64 * height as u64;
    ensure!(
        pixels > 0 && pixels <= limits.max_pixels as u64,
        "found {width} x {height} pixels, expected between 1 and {} in all (data.max_pixels)",
        limits.max_pixels
    );
    // Asking a JPEG for its orientation parses all headers again: a quarter of the time at 32 px.
    let may_turn = format != ImageFormat::Jpeg || jpeg_has_exif(bytes);
    // Damaged metadata is no reason to lose the pixels.
    let orientation = may_turn.then(|| decoder.orientation().ok()).flatten();
    out.resize(width as usize, height as usize);
    let color = decoder.color_type();
    let (channels, depth) = (color.channel_count() as usize, color.bytes_per_pixel() as usize);
    if (channels, depth) == (3, 3) {
        decoder.read_image(&mut out.data).context("cannot decode")?;
    } else {
        let mut raw = vec![0; pixels as usize * depth];
        decoder.read_image(&mut raw).context("cannot decode")?;
        to_rgb8(&raw, channels, depth / channels, &mut out.data);
    }
    apply_orientation(orientation.unwrap_or(Orientation::NoTransforms), out)
}

/// Whether the last scan of a JPEG lacks an end marker. Entropy-coded data cannot contain one, and
/// in a whole file it is the last thing, so the search from the end stops at once.
fn jpeg_is_truncated(bytes: &[u8]) -> bool {
    let mut from_end = bytes.windows(2).rev();
    from_end.find(|pair| matches!(pair, [0xff, 0xd9 | 0xda])) != Some(&[0xff, 0xd9])
}

/// Whether one of the segments before the first scan is EXIF metadata.
fn jpeg_has_exif(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xe1 if bytes[at + 4..].starts_with(b"Exif\0") => return true,
            0xda => return false,
            _ => at += 2 + u16::from_be_bytes([high, low]) as usize,
        }
    }
    // Fill bytes or damage: let the decoder find out.
    true
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

fn apply_orientation(orientation: Orientation, out: &mut Pixels) -> Result<()> {
    if orientation == Orientation::NoTransforms {
        return Ok(());
    }
    let data = std::mem::take(&mut out.data);
    let image = RgbImage::from_raw(out.width as u32, out.height as u32, data)
        .context("decoded bytes do not match the image size")?;
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    (out.width, out.height) = (image.width() as usize, image.height() as usize);
    out.data = image.into_rgb8().into_raw();
    Ok(())
}
