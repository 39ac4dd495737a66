//! The JPEGs of a DICOM file: lossy and lossless ones, JPEG-LS and JPEG 2000.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};

use super::frame::Frame;
use super::header::{Color, Header};
use super::syntax::other_jpeg;
use crate::augment::Part;
use crate::data::decode::{DecodeOptions, jpeg, jpeg2000};
use crate::pixels::Pixels;

/// Scans of a lossless JPEG, each of which costs a pass over all pixels.
const MAX_SCANS: usize = 4;

/// Whether these are the first bytes of a JPEG, of a JPEG-LS or of a JPEG 2000.
pub(super) fn begins(bytes: &[u8]) -> bool {
    matches!(bytes, [0xff, 0xd8 | 0x4f, ..])
}

/// Reads a JPEG or a JPEG-LS.
pub(super) fn read(header: &Header, bytes: &[u8], options: DecodeOptions) -> Result<Frame<'static>> {
    let is_frame = |marker: u8| matches!(marker, 0xc0..=0xcf | 0xf7) && ![0xc4, 0xc8, 0xcc].contains(&marker);
    let (marker, [precision, h1, h0, w1, w0, components, ..]) = jpeg::header(bytes)
        .find(|(marker, _)| is_frame(*marker))
        .context("found no frame in the JPEG of the DICOM file: it is damaged or truncated")?
    else {
        bail!("the JPEG of the DICOM file is damaged or truncated");
    };
    let size = [u16::from_be_bytes([*w1, *w0]), u16::from_be_bytes([*h1, *h0]), u16::from(*components)];
    ensure_shape(header, size.map(usize::from))?;
    match (marker, precision) {
        (0xc0..=0xc2, 8) => lossy(header, bytes, options),
        (0xc3, _) => lossless(header, bytes),
        (0xf7, _) => jpeg_ls(header, bytes),
        (0xc0..=0xc2, bits) => Err(other_jpeg(&format!("JPEG of {bits} bits"))),
        _ => Err(other_jpeg("JPEG of a rare kind")),
    }
}

fn ensure_shape(header: &Header, found: [usize; 3]) -> Result<()> {
    let expected = [header.width, header.height, header.samples];
    ensure!(
        found == expected,
        "found a JPEG of width, height and channels {found:?} in the DICOM file, expected {expected:?}"
    );
    Ok(())
}

fn lossy(header: &Header, bytes: &[u8], options: DecodeOptions) -> Result<Frame<'static>> {
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

fn lossless(header: &Header, bytes: &[u8]) -> Result<Frame<'static>> {
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
    Ok(Frame { width, big: cfg!(target_endian = "big"), ..interleaved(header, decoded) })
}

fn jpeg_ls(header: &Header, bytes: &[u8]) -> Result<Frame<'static>> {
    if header.samples > 1 {
        return Err(other_jpeg("JPEG-LS in color"));
    }
    let decoded = jpegls::decode(bytes, header.width as u32, header.height as u32);
    let (samples, ..) = decoded.context("cannot decode the JPEG-LS of the DICOM file")?;
    ensure!(samples.len() == header.width * header.height, "the JPEG-LS of the DICOM file is damaged or truncated");
    Ok(narrowed(header, samples.into_iter()))
}

/// Reads a JPEG 2000.
pub(super) fn read_2000(header: &Header, bytes: &[u8], options: DecodeOptions) -> Result<Frame<'static>> {
    let image = jpeg2000::decode(bytes, options)?;
    ensure_shape(header, [image.width, image.height, image.channels])?;
    ensure!(
        image.bits <= header.allocated,
        "found JPEG 2000 of {} bits in the DICOM file, expected at most {}",
        image.bits,
        header.allocated
    );
    let half = if image.signed { 1 << (image.bits - 1) } else { 0 };
    Ok(narrowed(header, image.samples.into_iter().map(|value| value.wrapping_sub(half))))
}

/// Of samples of which the file has bytes or 16 bits.
fn narrowed(header: &Header, samples: impl Iterator<Item = u16>) -> Frame<'static> {
    match header.allocated {
        8 => Frame { width: 1, ..interleaved(header, samples.map(|value| value as u8).collect()) },
        _ => Frame { width: 2, ..interleaved(header, samples.flat_map(u16::to_le_bytes).collect()) },
    }
}

fn interleaved(header: &Header, bytes: Vec<u8>) -> Frame<'static> {
    let color = if header.color == Color::HalfYbr { Color::Ybr } else { header.color };
    Frame { bytes: Cow::Owned(bytes), width: 1, big: false, planar: false, color }
}
