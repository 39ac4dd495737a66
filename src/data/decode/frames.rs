//! The sizes of the frames inside WebP and TIFF files: libraries decode a frame, at its own size, before they compare
//! that with the size in the file's header.

use anyhow::Result;
use image::ImageFormat;

use super::{DecodeOptions, ensure_pixels};

/// Fails for a frame of more than `max_pixels`.
pub(super) fn ensure_sizes(bytes: &[u8], format: ImageFormat, options: DecodeOptions) -> Result<()> {
    let check = |(width, height): (u16, u16)| ensure_pixels(width as usize, height as usize, options);
    match format {
        ImageFormat::WebP => webp_chunks(bytes).try_for_each(|(kind, data)| match &kind {
            // A frame of an animation contains chunks.
            b"ANMF" => chunks(data.get(16..).unwrap_or_default())
                .filter_map(|(kind, data)| webp_size(kind, data))
                .try_for_each(check),
            _ => webp_size(kind, data).map_or(Ok(()), check),
        }),
        ImageFormat::Tiff => bytes.windows(9).filter_map(jpeg_size).try_for_each(check),
        _ => Ok(()),
    }
}

/// Kind and data of each chunk of a WebP file; the last may be truncated.
pub(super) fn webp_chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    chunks(bytes.get(12..).unwrap_or_default())
}

fn chunks(mut rest: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        // Chunks start at even offsets.
        rest = after.get(length + length % 2..).unwrap_or_default();
        Some((*kind, &after[..length.min(after.len())]))
    })
}

fn webp_size(kind: [u8; 4], data: &[u8]) -> Option<(u16, u16)> {
    let bits =
        |at: usize| data.get(at..at + 4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let side = |bits: u32| (bits & 0x3fff) as u16;
    match &kind {
        b"VP8 " => bits(6).map(|bits| (side(bits), side(bits >> 16))),
        b"VP8L" => bits(1).map(|bits| (side(bits) + 1, side(bits >> 14) + 1)),
        _ => None,
    }
    .filter(|&(width, height)| width > 0 && height > 0)
}

/// The size in a JPEG's frame header, which compressed TIFFs contain; other bytes match by chance
/// once in 2^38.
fn jpeg_size(window: &[u8]) -> Option<(u16, u16)> {
    match *window {
        [0xff, 0xc0..=0xc2, 0, 11 | 17 | 20, 8, a, b, c, d] => {
            let size = (u16::from_be_bytes([c, d]), u16::from_be_bytes([a, b]));
            (size.0 > 0 && size.1 > 0).then_some(size)
        }
        _ => None,
    }
}
