//! JPEGs, the most common format: decoded by libjpeg-turbo, as in Pillow, and only the region that is needed.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};

use super::orientation::Orientation;
use super::{DecodeOptions, PartFor, ensure_pixels};
use crate::augment::{Crop, Part};
use crate::pixels::Pixels;
use native::jpeg::Decoder;

/// Each scan costs a pass over all pixels, however few bytes it has; encoders write about ten.
const MAX_SCANS: u16 = 50;

thread_local! {
    static DECODER: RefCell<Option<Decoder>> = const { RefCell::new(None) };
}

/// Decodes and orients a JPEG, or a region that contains the wanted part, a large one maybe reduced by the inverse DCT,
/// which keeps the low frequencies of each block. Truncation is an error, as in Pillow; damage
/// within the data may go unnoticed.
pub(super) fn decode(
    bytes: &[u8],
    options: DecodeOptions,
    want: &mut PartFor,
    raw: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<Part> {
    with_decoder(|decoder| {
        let opened = decoder.open(bytes).context("cannot read the header of the jpeg")?;
        let (width, height, channels) = (opened.width, opened.height, opened.channels);
        ensure_pixels(width, height, options)?;
        // Every block of 8 x 8 pixels takes at least a bit: nothing is allocated for an impossible size.
        ensure!(
            width * height <= bytes.len() * 8 * 64,
            "found {} bytes for {width} x {height} pixels: the jpeg is damaged or truncated",
            bytes.len()
        );
        ensure!(!is_truncated(bytes), "the jpeg is truncated: its end marker is missing");
        ensure!([1, 3, 4].contains(&channels), "found a jpeg of {channels} channels, expected 1, 3 or 4");
        let orientation = if options.exif_orientation { orientation(bytes) } else { Orientation::UPRIGHT };
        let turned = orientation.size((width, height));
        let Part { crop, reduction } = want(turned.0, turned.1);
        let crop = if in_parts(bytes) { crop } else { Crop::whole(turned.0, turned.1) };
        let reduction = if width * height > options.scaled_above { reduction } else { 1 };
        let reduction = orientation.reduction((width, height), reduction);
        let Crop { left, top, width: wide, height: high } =
            orientation.inverse().turned(crop, turned).reduced(reduction);
        let target = if channels == 4 { &mut *raw } else { &mut out.data };
        let decoded = opened.decode(reduction, [left, top, wide, high], target).context("cannot decode the jpeg")?;
        let [left, top, part_width, part_height] = decoded;
        out.resize(part_width, part_height);
        if channels == 4 {
            cmyk_to_rgb(raw, &mut out.data);
        }
        orientation.apply(out, raw);
        let (left, top) = (left * reduction, top * reduction);
        // The last pixel may stand for fewer.
        let (wide, high) = ((part_width * reduction).min(width - left), (part_height * reduction).min(height - top));
        let crop = orientation.turned(Crop { left, top, width: wide, height: high }, (width, height));
        Ok(Part { crop, reduction })
    })
}

/// 1 for a gray image, 3 for others, which become RGB.
pub(super) fn channels(bytes: &[u8]) -> Result<usize> {
    with_decoder(|decoder| {
        let opened = decoder.open(bytes).context("cannot read the header of the jpeg")?;
        Ok(if opened.channels == 1 { 1 } else { 3 })
    })
}

fn with_decoder<T>(work: impl FnOnce(&mut Decoder) -> Result<T>) -> Result<T> {
    DECODER.with_borrow_mut(|decoder| {
        work(match decoder {
            Some(decoder) => decoder,
            None => decoder.insert(Decoder::new(MAX_SCANS)?),
        })
    })
}

/// CMYK stored inverted, as Adobe does and Pillow always assumes; then Pillow's conversion.
fn cmyk_to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    for (source, target) in cmyk.as_chunks::<4>().0.iter().zip(rgb.as_chunks_mut::<3>().0) {
        let [inks @ .., white] = source.map(u32::from);
        *target = inks.map(|ink| {
            let shade = (255 - ink) * white + 128;
            (white - (((shade >> 8) + shade) >> 8)) as u8
        });
    }
}

/// JFIF's conversion, as libjpeg rounds it.
pub(super) fn ycbcr_to_rgb(pixels: &mut [u8]) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let [y, blue, red] = pixel.map(i32::from);
        let (blue, red) = (blue - 128, red - 128);
        // In 16-bit fixed point: 1.402, 0.34414 and 0.71414, 1.772.
        let shifts = [91881 * red, -22554 * blue - 46802 * red, 116130 * blue];
        *pixel = shifts.map(|shift| (y + ((shift + 32768) >> 16)).clamp(0, 255) as u8);
    }
}

/// The orientation of EXIF, or else of XMP.
fn orientation(bytes: &[u8]) -> Orientation {
    let found = |prefix: &'static [u8], read: fn(&[u8]) -> Option<Orientation>| {
        let mut segments = header(bytes).filter(|(marker, _)| *marker == 0xe1);
        segments.find_map(|(_, data)| data.strip_prefix(prefix)).and_then(read)
    };
    found(b"Exif\0\0", Orientation::from_exif)
        .or_else(|| found(b"http://ns.adobe.com/xap/1.0/\0", Orientation::from_xmp))
        .unwrap_or(Orientation::UPRIGHT)
}

/// Whether this kind of JPEG can be decoded in part: sequential ones. Lossless ones cannot, and damaged progressive
/// ones are smoothed across the edges of the part.
fn in_parts(bytes: &[u8]) -> bool {
    header(bytes).any(|(marker, _)| matches!(marker, 0xc0 | 0xc1 | 0xc9))
}

/// Whether the end marker is missing: the decoder would fill the missing part with gray. Other data
/// may follow the image, such as the video of a "motion photo".
fn is_truncated(bytes: &[u8]) -> bool {
    !bytes.ends_with(&[0xff, 0xd9]) && !segments(bytes).any(|(marker, _)| marker == 0xd9)
}

/// The segments up to the first scan.
pub(super) fn header(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    segments(bytes).take_while(|(marker, _)| !matches!(marker, 0xd9 | 0xda))
}

/// Marker and data of each segment, the last two possibly truncated; 0xd9 is the end. Skips the entropy-coded data
/// after a scan's header.
pub(super) fn segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        loop {
            // Entropy-coded data, fill bytes or garbage, up to a marker.
            let at = rest.iter().position(|&byte| byte == 0xff)?;
            rest = &rest[at + 1..];
            let (&marker, after) = rest.split_first()?;
            match marker {
                // A stuffed 0xff or a restart marker.
                0x00 | 0x01 | 0xd0..=0xd8 => rest = after,
                // A fill byte before the real marker.
                0xff => (),
                0xd9 => return Some((marker, &[][..])),
                _ => {
                    let (length, data) = after.split_first_chunk::<2>()?;
                    let length = (u16::from_be_bytes(*length) as usize).saturating_sub(2);
                    rest = data.get(length..).unwrap_or_default();
                    return Some((marker, &data[..length.min(data.len())]));
                }
            }
        }
    })
}
