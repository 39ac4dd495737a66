//! The samples of a DICOM file's first frame, unpacked but not yet rescaled.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};

use super::elements::fragments;
use super::header::{Color, Header};
use super::rle;
use super::syntax::{Packing, other_jpeg};
use crate::augment::Part;
use crate::data::decode::{DecodeOptions, jpeg};
use crate::pixels::Pixels;

/// Samples as they are stored.
pub(super) struct Frame<'a> {
    pub bytes: Cow<'a, [u8]>,
    /// Of a sample: 1, 2 or 4.
    pub width: usize,
    pub big: bool,
    /// One channel after the other.
    pub planar: bool,
    /// RGB or YBR, whatever the header says: what a JPEG becomes.
    pub color: Color,
}

/// Scans of a lossless JPEG, each of which costs a pass over all pixels.
const MAX_SCANS: usize = 4;

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
        Packing::Jpeg => from_jpeg(header, &compressed(header)?, options),
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
        // A JPEG begins with its mark.
        None => 1 + parts[1..].iter().take_while(|part| !part.starts_with(&[0xff, 0xd8])).count(),
    };
    Ok(match &parts[..count.min(parts.len())] {
        [one] => Cow::Borrowed(*one),
        several => Cow::Owned(several.concat()),
    })
}

fn from_jpeg<'a>(header: &Header, bytes: &[u8], options: DecodeOptions) -> Result<Frame<'a>> {
    let kind =
        jpeg::header(bytes).find(|(marker, _)| matches!(marker, 0xc0..=0xcf) && ![0xc4, 0xc8, 0xcc].contains(marker));
    let (marker, [precision, h1, h0, w1, w0, components, ..]) =
        kind.context("found no frame in the JPEG of the DICOM file: it is damaged or truncated")?
    else {
        bail!("the JPEG of the DICOM file is damaged or truncated");
    };
    let found = [u16::from_be_bytes([*w1, *w0]), u16::from_be_bytes([*h1, *h0]), u16::from(*components)];
    let expected = [header.width, header.height, header.samples];
    ensure!(
        found.map(usize::from) == expected,
        "found a JPEG of width, height and channels {found:?} in the DICOM file, expected {expected:?}"
    );
    match (marker, precision) {
        (0xc0..=0xc2, 8) => lossy(header, bytes, options),
        (0xc3, _) => lossless(header, bytes),
        (0xc0..=0xc2, bits) => Err(other_jpeg(&format!("JPEG of {bits} bits"))),
        _ => Err(other_jpeg("JPEG of a rare kind")),
    }
}

fn lossy<'a>(header: &Header, bytes: &[u8], options: DecodeOptions) -> Result<Frame<'a>> {
    ensure!(!header.signed, "found a lossy JPEG of signed values in the DICOM file, expected unsigned ones");
    let options = DecodeOptions { exif_orientation: false, scaled_above: usize::MAX, ..options };
    let (mut raw, mut out) = (Vec::new(), Pixels::default());
    // Where the JPEG does not say what its channels are, the file does.
    let marked = jpeg::header(bytes).any(|(marker, data)| {
        marker == 0xe0 && data.starts_with(b"JFIF") || marker == 0xee && data.starts_with(b"Adobe")
    });
    if header.color == Color::Rgb && !marked {
        const ADOBE_RGB: &[u8] = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00";
        let bytes = [ADOBE_RGB, bytes.get(2..).unwrap_or_default()].concat();
        jpeg::decode(&bytes, options, &mut Part::whole, &mut raw, &mut out)?;
    } else {
        jpeg::decode(bytes, options, &mut Part::whole, &mut raw, &mut out)?;
    }
    let (bytes, color) = match header.samples {
        1 => (out.data.iter().step_by(3).copied().collect(), header.color),
        _ => (out.data, Color::Rgb),
    };
    Ok(Frame { bytes: Cow::Owned(bytes), width: 1, big: false, planar: false, color })
}

fn lossless<'a>(header: &Header, bytes: &[u8]) -> Result<Frame<'a>> {
    let scans = jpeg::segments(bytes).filter(|(marker, _)| *marker == 0xda).count();
    ensure!((1..=MAX_SCANS).contains(&scans), "found a lossless JPEG of {scans} scans, expected 1 to {MAX_SCANS}");
    let samples = header.width * header.height * header.samples;
    // A sample takes at least a bit.
    ensure!(samples <= bytes.len() * 8, "found {} bytes for {samples} samples: the JPEG is truncated", bytes.len());
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    // As the file says, not as the JPEG does.
    decoder.set_color_transform(match header.samples {
        1 => jpeg_decoder::ColorTransform::Grayscale,
        _ => jpeg_decoder::ColorTransform::RGB,
    });
    let decoded = decoder.decode().context("cannot decode the lossless JPEG of the DICOM file")?;
    let width = decoded.len() / samples;
    ensure!(
        [1, 2].contains(&width) && decoded.len() == samples * width,
        "found {} bytes in the lossless JPEG of the DICOM file, expected {samples} samples",
        decoded.len()
    );
    let color = if header.color == Color::HalfYbr { Color::Ybr } else { header.color };
    Ok(Frame { bytes: Cow::Owned(decoded), width, big: cfg!(target_endian = "big"), planar: false, color })
}
