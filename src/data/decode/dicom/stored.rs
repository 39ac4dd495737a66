//! How a DICOM file stores its first frame: plain, or compressed in fragments.

use std::borrow::Cow;

use anyhow::{Context, Result, ensure};

use super::elements::fragments;
use super::frame::Frame;
use super::header::{Color, Header};
use super::syntax::Packing;
use super::{jpegs, rle};
use crate::data::decode::DecodeOptions;

/// Reads the first frame. The caller has checked the number of pixels.
pub(super) fn first<'a>(header: &Header<'a>, options: DecodeOptions) -> Result<Frame<'a>> {
    match header.packing {
        Packing::None => plain(header),
        Packing::Rle => {
            let (pixels, bytes) = (header.width * header.height, header.allocated as usize / 8);
            let unpacked = rle::unpack(&compressed(header)?, pixels, header.samples, bytes)?;
            let color = if header.color == Color::HalfYbr { Color::Ybr } else { header.color };
            Ok(Frame { bytes: Cow::Owned(unpacked), width: bytes, big: false, planar: true, color })
        }
        Packing::Jpeg => jpegs::read(header, &compressed(header)?, options),
        Packing::Jpeg2000 => jpegs::read_2000(header, &compressed(header)?, options),
    }
}

/// Bytes of a frame that is not compressed.
pub(super) fn length(header: &Header) -> Result<usize> {
    let (half, bytes) = (header.color == Color::HalfYbr, header.allocated as usize / 8);
    ensure!(
        !half || bytes == 1 && header.width.is_multiple_of(2),
        "found YBR_FULL_422 of an odd width or of more than 8 bits"
    );
    Ok(header.width * header.height * if half { 2 } else { header.samples * bytes })
}

fn plain<'a>(header: &Header<'a>) -> Result<Frame<'a>> {
    let (length, width, half) = (length(header)?, header.allocated as usize / 8, header.color == Color::HalfYbr);
    let found = header.pixels.len();
    let bytes = header.pixels.get(..length).with_context(|| {
        format!("found {found} bytes of pixels, expected {length}: the DICOM file is damaged or truncated")
    })?;
    let (mut bytes, mut color) = (Cow::Borrowed(bytes), header.color);
    if header.swapped {
        let whole = &header.pixels[..header.pixels.len().min(length.next_multiple_of(2))];
        let mut pairs: Vec<u8> = whole.chunks(2).flat_map(|pair| pair.iter().rev().copied()).collect();
        pairs.truncate(length);
        bytes = Cow::Owned(pairs);
    }
    if half {
        // Two luma, then their chroma.
        let pairs = bytes.as_chunks::<4>().0.iter();
        bytes = Cow::Owned(pairs.flat_map(|&[first, second, cb, cr]| [first, cb, cr, second, cb, cr]).collect());
        color = Color::Ybr;
    }
    let planar = header.planar && header.samples > 1 && !half;
    Ok(Frame { bytes, width, big: header.big, planar, color })
}

/// The first frame's bytes.
fn compressed<'a>(header: &Header<'a>) -> Result<Cow<'a, [u8]>> {
    let (table, parts) = fragments(header.pixels)?;
    let second = table.as_chunks().0.get(1).map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let count = match second {
        _ if header.frames == 1 => parts.len(),
        _ if header.frames == parts.len() => 1,
        // The offset of the second frame, from the first fragment's head on.
        Some(second) => {
            let ends = parts.iter().scan(0, |at, part| {
                *at += part.len() + 8;
                Some(*at)
            });
            1 + ends.take_while(|end| *end < second).count()
        }
        None => 1 + parts[1..].iter().take_while(|part| !jpegs::begins(part)).count(),
    };
    Ok(match &parts[..count.min(parts.len())] {
        [one] => Cow::Borrowed(*one),
        several => Cow::Owned(several.concat()),
    })
}
