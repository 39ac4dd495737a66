//! Images of any number of channels, of any type, as bytes.

use std::io::Cursor;

use anyhow::{Context, Result};
use image::{ImageDecoder, ImageFormat, ImageReader};

use super::orientation::Orientation;
use super::raster::{Raster, Samples};
use super::{
    DecodeOptions, caught, concise, decode_unchecked, dicom, ensure_pixels, format, jpeg, jpeg2000, npy, open_picture,
    tiff,
};
use crate::augment::Part;
use crate::data::PartFor;
use crate::data::values::{Axes, Values};
use crate::pixels::Pixels;

/// What an image's header says of its samples.
pub(in crate::data) struct Look {
    pub channels: usize,
    /// The last channel is alpha.
    pub alpha: bool,
    /// Such as `u8` or `f32`; `DICOM` for the rescaled ones of such files.
    pub sample: String,
}

/// Reads a header.
pub(in crate::data) fn look(bytes: &[u8], axes: Axes) -> Result<Look> {
    let read = || -> Result<Look> {
        if npy::is_npy(bytes) {
            let header = npy::Header::read(bytes)?;
            let sample = if header.is_8_bit() { "u8".into() } else { header.kind().into() };
            return Ok(Look { channels: header.size(axes)?[2], alpha: false, sample });
        }
        if dicom::is_dicom(bytes) {
            let (channels, sample) = dicom::look(bytes)?;
            return Ok(Look { channels, alpha: false, sample: sample.into() });
        }
        if jpeg2000::is_jpeg2000(bytes) {
            let (channels, alpha, sample) = jpeg2000::look(bytes)?;
            return Ok(Look { channels, alpha, sample: sample.into() });
        }
        let format = format(bytes)?;
        if let (ImageFormat::Tiff, Some(kind)) = (format, tiff::Kind::read(bytes)) {
            let (channels, alpha, sample) = kind.look();
            return Ok(Look { channels, alpha, sample });
        }
        if format == ImageFormat::Jpeg {
            return Ok(Look { channels: jpeg::channels(bytes)?, alpha: false, sample: "u8".into() });
        }
        let color = ImageReader::with_format(Cursor::new(bytes), format).into_decoder()?.color_type();
        let (channels, alpha) = (color.channel_count() as usize, color.has_alpha());
        let sample = match color.bytes_per_pixel() as usize / channels {
            1 => "u8",
            2 => "u16",
            _ => "f32",
        };
        Ok(Look { channels, alpha, sample: sample.into() })
    };
    caught(read).map_err(concise)
}

/// Whether it is an array, a DICOM file, JPEG 2000 or a TIFF that the image library does not read.
pub(super) fn is_bands(bytes: &[u8]) -> bool {
    let tiff = || tiff::Kind::read(bytes).is_some_and(|kind| (!kind.is_picture() || kind.is_torn()) && kind.is_bands());
    let others = [npy::is_npy, dicom::is_dicom, jpeg2000::is_jpeg2000];
    others.iter().any(|is| is(bytes)) || matches!(format(bytes), Ok(ImageFormat::Tiff)) && tiff()
}

/// Decodes at least a part with the channels and the range of `values`, and counts the values that were clipped.
pub(super) fn convert(
    bytes: &[u8],
    options: DecodeOptions,
    values: &Values,
    want: &mut PartFor,
    raw: &mut Vec<u8>,
    out: &mut Pixels,
) -> Result<(Part, u64)> {
    if !dicom::is_dicom(bytes) && matches!(format(bytes), Ok(ImageFormat::Jpeg)) {
        let part = jpeg::decode(bytes, options, want, raw, out)?;
        std::mem::swap(&mut out.data, raw);
        let raster = Raster::picture((out.width, out.height), (3, false), Samples::U8(std::mem::take(raw)));
        let clipped = raster.fill(values, out);
        if let Samples::U8(buffer) = raster.samples {
            *raw = buffer;
        }
        return Ok((part, clipped?));
    }
    let (raster, orientation) = stored(bytes, options, values.axes, raw)?;
    let clipped = raster.fill(values, out)?;
    if let (Some(orientation), true) = (orientation, options.exif_orientation) {
        orientation.apply(out, raw);
    }
    want(out.width, out.height);
    Ok((Part::whole(out.width, out.height), clipped))
}

/// An image as it is stored, and its orientation.
pub(super) fn stored(
    bytes: &[u8],
    options: DecodeOptions,
    axes: Axes,
    raw: &mut Vec<u8>,
) -> Result<(Raster, Option<Orientation>)> {
    if npy::is_npy(bytes) {
        let header = npy::Header::read(bytes)?;
        let [width, height, _] = header.size(axes)?;
        ensure_pixels(width, height, options)?;
        return Ok((header.raster(axes)?, None));
    }
    if dicom::is_dicom(bytes) {
        return Ok((dicom::raster(bytes, options)?, None));
    }
    if jpeg2000::is_jpeg2000(bytes) {
        return Ok((jpeg2000::raster(bytes, options)?, None));
    }
    let format = format(bytes)?;
    if let (ImageFormat::Tiff, Some(kind)) = (format, tiff::Kind::read(bytes).filter(tiff::Kind::is_bands)) {
        return Ok((tiff::raster(bytes, &kind, options)?, Some(kind.orientation())));
    }
    if format == ImageFormat::Jpeg || format == ImageFormat::Tiff {
        let mut rgb = Pixels::default();
        decode_unchecked(bytes, options, &mut Part::whole, raw, &mut rgb)?;
        return Ok((Raster::picture((rgb.width, rgb.height), (3, false), Samples::U8(rgb.data)), None));
    }
    let (decoder, orientation) = open_picture(bytes, format, options)?;
    let (width, height) = decoder.dimensions();
    let size = (width as usize, height as usize);
    let color = decoder.color_type();
    let channels = color.channel_count() as usize;
    let mut read = vec![0; size.0 * size.1 * color.bytes_per_pixel() as usize];
    decoder.read_image(&mut read).context("cannot decode")?;
    let samples = match color.bytes_per_pixel() as usize / channels {
        1 => Samples::U8(read),
        2 => Samples::U16(read.as_chunks().0.iter().map(|bytes| u16::from_ne_bytes(*bytes)).collect()),
        _ => Samples::F32(read.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()),
    };
    Ok((Raster::picture(size, (channels, color.has_alpha()), samples), orientation))
}
