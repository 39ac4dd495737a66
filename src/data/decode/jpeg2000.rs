//! JPEG 2000: pictures (`.jp2`), bare codestreams (`.j2k`), and those inside DICOM files, at their own depth.

use anyhow::{Context, Error, Result, bail, ensure};
use hayro_jpeg2000::{ColorSpace, DecodeSettings, DecoderContext, Image};

use super::raster::{Raster, Samples};
use super::{DecodeOptions, ensure_pixels};
use crate::data::values::MAX_CHANNELS;

const FILE: &[u8] = b"\0\0\0\x0cjP  ";
/// The first two markers of a codestream, SOC and SIZ.
const CODESTREAM: &[u8] = b"\xff\x4f\xff\x51";
const TILE_PART: &[u8] = b"\xff\x90";
const DAMAGED: &str = "the JPEG 2000 file is damaged or truncated";

/// All channels of a pixel together.
pub(super) struct Decoded {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    alpha: bool,
    /// Of a sample: 1 to 16.
    pub bits: u32,
    /// Half of the range is added to the samples of such images.
    pub signed: bool,
    pub samples: Vec<u16>,
}

/// Whether these are the bytes of a JPEG 2000 file or codestream.
pub(super) fn is_jpeg2000(bytes: &[u8]) -> bool {
    bytes.starts_with(FILE) || bytes.starts_with(CODESTREAM)
}

/// Channels, whether the last is alpha, and the type of the samples.
pub(super) fn look(bytes: &[u8]) -> Result<(usize, bool, &'static str)> {
    let image = open(bytes)?;
    let sample = match (signed(bytes)?, image.original_bit_depth()) {
        (true, _) => "i16",
        (false, ..=8) => "u8",
        _ => "u16",
    };
    Ok((channels(&image), image.has_alpha(), sample))
}

/// The image of a file.
pub(super) fn raster(bytes: &[u8], options: DecodeOptions) -> Result<Raster> {
    let Decoded { width, height, channels, alpha, bits, signed, samples } = decode(bytes, options)?;
    let (most, half) = (u32::from(u16::MAX) >> (16 - bits), 1 << (bits - 1));
    let stored = match (signed, bits) {
        (true, _) => Samples::I16(samples.iter().map(|value| (i32::from(*value) - half) as i16).collect()),
        (false, ..=8) => Samples::U8(samples.iter().map(|value| (u32::from(*value) * 255 / most) as u8).collect()),
        _ => Samples::U16(samples),
    };
    let low = if signed { -f64::from(half) } else { 0.0 };
    let full = (bits > 8 && bits < 16 || signed).then_some([low, low + f64::from(most)]);
    Ok(Raster { full, ..Raster::picture((width, height), (channels, alpha), stored) })
}

/// The samples of a file, or of a codestream.
pub(super) fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Decoded> {
    let image = open(bytes)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    ensure_pixels(width, height, options)?;
    ensure!(!matches!(image.color_space(), ColorSpace::CMYK), "found JPEG 2000 in CMYK, expected gray or RGB");
    ensure_whole(codestream(bytes)?)?;
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(library)?;
    let parts = decoded.components();
    let (channels, bits) = (parts.len(), parts.iter().map(|part| part.bit_depth()).max().unwrap_or(0));
    ensure!((1..=16).contains(&bits), "found JPEG 2000 of {bits} bits, expected 1 to 16");
    let mut samples = vec![0; width * height * channels];
    for (channel, part) in parts.iter().enumerate() {
        let most = |bits: u8| f32::from(u16::MAX >> (16 - bits.clamp(1, 16)));
        // Alpha may have fewer bits than the colors.
        let (highest, factor) = (most(bits), most(bits) / most(part.bit_depth()));
        ensure!(part.samples().len() == width * height, DAMAGED);
        for (target, value) in samples[channel..].iter_mut().step_by(channels).zip(part.samples()) {
            *target = (value * factor).round().clamp(0.0, highest) as u16;
        }
    }
    let (bits, alpha) = (bits.into(), image.has_alpha());
    Ok(Decoded { width, height, channels, alpha, bits, signed: signed(bytes)?, samples })
}

fn open(bytes: &[u8]) -> Result<Image<'_>> {
    // Each costs memory for every pixel, whether it becomes a channel or not.
    let count = components(codestream(bytes)?)?.len();
    ensure!(count <= MAX_CHANNELS, "found JPEG 2000 of {count} components, expected at most {MAX_CHANNELS}");
    let image = Image::new(bytes, &DecodeSettings::default()).map_err(library)?;
    ensure!(channels(&image) <= MAX_CHANNELS, DAMAGED);
    Ok(image)
}

fn channels(image: &Image) -> usize {
    usize::from(image.color_space().num_channels()) + usize::from(image.has_alpha())
}

fn library(error: impl std::fmt::Display) -> Error {
    anyhow::anyhow!("{error}").context("cannot decode the JPEG 2000")
}

/// Where a file has its one codestream.
fn codestream(bytes: &[u8]) -> Result<&[u8]> {
    if !bytes.starts_with(FILE) {
        return Ok(bytes);
    }
    let (mut rest, mut found) = (bytes, None);
    while let Some((&[a, b, c, d, kind @ ..], _)) = rest.split_first_chunk::<8>() {
        let (head, length) = match u32::from_be_bytes([a, b, c, d]) {
            0 => (8, rest.len()),
            1 => (16, u64::from_be_bytes(*rest[8..].first_chunk().context(DAMAGED)?) as usize),
            length => (8, length as usize),
        };
        let data = rest.get(head..length).context(DAMAGED)?;
        if &kind == b"jp2c" && found.replace(data).is_some() {
            bail!("found JPEG 2000 of several images in a file, expected one");
        }
        rest = &rest[length..];
    }
    found.context(DAMAGED)
}

/// Of each component its bits and sign, and how it is subsampled.
fn components(codestream: &[u8]) -> Result<&[[u8; 3]]> {
    let size = codestream.strip_prefix(CODESTREAM).context(DAMAGED)?;
    let count: [u8; 2] = *size.get(36..).and_then(|rest| rest.first_chunk()).context(DAMAGED)?;
    let list = size.get(38..38 + 3 * usize::from(u16::from_be_bytes(count))).context(DAMAGED)?;
    Ok(list.as_chunks().0)
}

/// Whether all components are; some are not.
fn signed(bytes: &[u8]) -> Result<bool> {
    let components = components(codestream(bytes)?)?;
    let signed = components.iter().filter(|[bits, ..]| bits & 0x80 != 0).count();
    ensure!([0, components.len()].contains(&signed), "found JPEG 2000 of signed and unsigned components");
    Ok(signed > 0)
}

/// Fails where the last part of a tile is cut off: the decoder would leave out detail, or make it gray.
fn ensure_whole(codestream: &[u8]) -> Result<()> {
    let mut rest = codestream.get(2..).unwrap_or_default();
    while let Some((&[mark, kind, high, low], _)) = rest.split_first_chunk::<4>() {
        let length = match [mark, kind] == TILE_PART {
            false if mark != 0xff || kind == 0xd9 => return Ok(()),
            false => 2 + usize::from(u16::from_be_bytes([high, low])),
            true => match rest.get(6..10).and_then(|bytes| bytes.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes))
            {
                // Up to the end of the codestream.
                Some(0) => return Ok(()),
                length => length.context(DAMAGED)? as usize,
            },
        };
        rest = rest.get(length..).context(DAMAGED)?;
    }
    Ok(())
}
