//! TIFFs that hold measurements rather than pictures: any number of bands of any type, interleaved or planar, in strips
//! or tiles, also as BigTIFF. Says which kinds are supported, which the libraries' errors do not.

use std::io::Cursor;

use anyhow::{Context, Error, Result, anyhow, ensure};
use tiff::decoder::{ChunkType, Decoder, Limits};
use tiff::tags::Tag;

use super::jpeg::ycbcr_to_rgb;
use super::orientation::Orientation;
use super::raster::{Raster, Samples};
use super::{DecodeOptions, MAX_BYTES_PER_PIXEL, ensure_pixels};
use crate::data::values::MAX_CHANNELS;

const SUPPORTED: &str = "gray, RGB, CMYK or up to 64 bands of 8, 16, 32 or 64 bits each";

/// Maximum entries of a directory that are read.
const MAX_ENTRIES: u64 = 4096;

type Bytes<'a> = Decoder<Cursor<&'a [u8]>>;

/// Compressions whose result depends on the kind of color.
const JPEG: [u32; 2] = [6, 7];

/// The pixel format of a file's first image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub bands: u32,
    pub bits: u32,
    /// 1 unsigned, 2 signed, 3 floating point, others are rare.
    sample_format: u32,
    /// 0 and 1 gray, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr.
    photometric: u32,
    /// The place of that in the file.
    photometric_at: Option<usize>,
    compression: u32,
    planar: bool,
    tiled: bool,
    /// The places of the entries with width and height.
    size_at: [Option<usize>; 2],
    /// Of the bands behind gray or RGB, whether the first is alpha.
    alpha: bool,
    /// As in EXIF.
    orientation: u32,
    little: bool,
    /// The variant for files over 4 GB.
    big: bool,
}

/// The decoder's error, or a better one for an unsupported kind of TIFF.
pub(super) fn explain(bytes: &[u8], error: Error) -> Error {
    match Kind::read(bytes) {
        Some(kind) if !kind.is_picture() || kind.other_compression().is_some() => kind.error(),
        _ => error,
    }
}

impl Kind {
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let little = bytes.starts_with(b"II");
        let big = is_big(bytes);
        let number = |at: usize, length: usize| {
            let mut all = [0; 8];
            let found = bytes.get(at..at.checked_add(length)?)?;
            Some(if little {
                all[..length].copy_from_slice(found);
                u64::from_le_bytes(all)
            } else {
                all[8 - length..].copy_from_slice(found);
                u64::from_be_bytes(all)
            })
        };
        // Lengths of an offset, of the number of entries, and of an entry.
        let (offset, count, entry) = if big { (8, 8, 20) } else { (4, 2, 12) };
        let directory = usize::try_from(number(if big { 8 } else { 4 }, offset)?).ok()?;
        let mut kind = Self::of(little, big);
        for at in 0..number(directory, count)?.min(MAX_ENTRIES) as usize {
            let at = directory.checked_add(count + entry * at)?;
            let (tag, kind_of_value, values) = (number(at, 2)?, number(at + 2, 2)?, number(at + 4, offset)?);
            if let 256 | 257 = tag {
                kind.size_at[tag as usize - 256] = Some(at);
            }
            // The values themselves, or their offset if they take more than that.
            let place = at + 4 + offset;
            let length = match kind_of_value {
                3 => 2,
                4 => 4,
                _ => continue,
            };
            let inside = values.checked_mul(length as u64)? <= offset as u64;
            let place = if inside { place } else { usize::try_from(number(place, offset)?).ok()? };
            let value = number(place, length)? as u32;
            match tag {
                258 => kind.bits = value,
                259 => kind.compression = value,
                262 => (kind.photometric, kind.photometric_at) = (value, (length == 2).then_some(place)),
                274 => kind.orientation = value,
                277 => kind.bands = value,
                284 => kind.planar = value == 2,
                322 => kind.tiled = true,
                338 => kind.alpha = value == 1 || value == 2,
                339 => kind.sample_format = value,
                _ => {}
            }
        }
        Some(kind)
    }

    /// What a file without any tags has.
    fn of(little: bool, big: bool) -> Self {
        Self {
            bands: 1,
            bits: 1,
            sample_format: 1,
            photometric: 1,
            photometric_at: None,
            compression: 1,
            planar: false,
            tiled: false,
            size_at: [None; 2],
            alpha: false,
            orientation: 1,
            little,
            big,
        }
    }

    /// Whether it is one of the usual kinds of pictures, which the image library reads.
    pub fn is_picture(&self) -> bool {
        let bands = match self.photometric {
            0 | 1 => self.bands == 1,
            2 => self.bands == 3 || self.bands == 4,
            5 => self.bands == 4,
            _ => false,
        };
        let float = self.photometric == 2 && (self.sample_format, self.bits) == (3, 32);
        let values = self.sample_format == 1 && [1, 8, 16].contains(&self.bits) || float;
        bands && values && !self.planar && !self.big
    }

    /// Whether it is such a picture in tiles that the library cannot read in part, as those at the edges are: it may
    /// miss the end of LZW data.
    pub fn is_torn(&self) -> bool {
        self.tiled && self.compression == 5 && (self.bands != 4 || self.alpha)
    }

    /// Whether it is a JPEG of luma and chroma, as aerial images often are.
    fn is_jpeg(&self) -> bool {
        (self.compression, self.photometric, self.bands, self.bits, self.planar) == (7, 6, 3, 8, false)
    }

    /// Whether [`raster`] reads its bands as they are: gray, RGB, or a palette of 8 bits; or makes RGB of a JPEG's.
    pub fn is_bands(&self) -> bool {
        let bits = match self.photometric {
            0..=2 => [8, 16, 32, 64].contains(&self.bits),
            3 => self.bits == 8 && self.bands == 1,
            _ => false,
        };
        bits && self.bands as usize <= MAX_CHANNELS && !JPEG.contains(&self.compression) || self.is_jpeg()
    }

    /// How it is compressed, if that is not read.
    fn other_compression(&self) -> Option<&'static str> {
        match self.compression {
            // None, fax, LZW, JPEG, deflate (twice), PackBits, Zstandard.
            1 | 4..=8 | 32946 | 32773 | 50000 => None,
            2 | 3 => Some("group 3 fax"),
            34712 => Some("JPEG 2000"),
            34887 => Some("LERC"),
            34925 => Some("LZMA"),
            34933 => Some("PNG"),
            50001 => Some("WebP"),
            50002 => Some("JPEG XL"),
            _ => Some("an unknown method"),
        }
    }

    /// Its kind of color, if that is not read.
    fn other_color(&self) -> Option<&'static str> {
        match self.photometric {
            0..=3 | 5 => None,
            6 => Some("YCbCr"),
            8..=10 => Some("Lab"),
            _ => Some("an unknown"),
        }
    }

    /// Channels, whether the last one is alpha, and the type of the samples.
    pub fn look(&self) -> (usize, bool, String) {
        match self.photometric {
            0..=2 => {
                let sign = if self.sample_format == 3 {
                    "f"
                } else if self.sample_format == 2 {
                    "i"
                } else {
                    "u"
                };
                let pictured = if self.photometric == 2 { 3 } else { 1 };
                (self.bands as usize, self.alpha && self.bands == pictured + 1, format!("{sign}{}", self.bits.max(8)))
            }
            _ => (3, false, "u8".into()),
        }
    }

    /// Writes another width and height into the header: those of whole tiles. Of tiles at the edges the decoder otherwise
    /// skips what lies outside, planar ones only in the first band, and LZW data with an error now and then.
    fn resize(&self, bytes: &mut [u8], size: [usize; 2]) -> Result<()> {
        for (at, value) in self.size_at.into_iter().zip(size) {
            let value = u32::try_from(value).ok();
            let value_at = if self.big { 12 } else { 8 };
            let entry = at.and_then(|at| bytes.get_mut(at..at + value_at + 4));
            let (entry, value) = entry.zip(value).context("found no width or height: the TIFF is damaged")?;
            // A 32-bit number, whatever it was.
            let (kind, value) = match self.little {
                true => (4u16.to_le_bytes(), value.to_le_bytes()),
                false => (4u16.to_be_bytes(), value.to_be_bytes()),
            };
            entry[2..4].copy_from_slice(&kind);
            entry[value_at..].copy_from_slice(&value);
        }
        Ok(())
    }

    pub fn orientation(&self) -> Orientation {
        Orientation::from_tiff(self.orientation)
    }

    fn error(&self) -> Error {
        let Self { bands, bits, sample_format, photometric, compression, .. } = self;
        if let Some(name) = self.other_compression() {
            return anyhow!(
                "found a TIFF compressed with {name} ({compression}), expected none, LZW, deflate, PackBits, Zstandard, \
                 JPEG or group 4 fax; convert it, for example with tiffcp -c lzw FILE OUT.tif"
            );
        }
        if let Some(name) = self.other_color() {
            return anyhow!(
                "found a TIFF of {name} color (photometric interpretation {photometric}), expected {SUPPORTED}; convert \
                 it, for example with mogrify -colorspace sRGB -compress lzw FILE"
            );
        }
        let values = match sample_format {
            2 => format!("signed {bits}-bit values"),
            3 => format!("{bits}-bit floating-point values"),
            _ => format!("{bits}-bit values"),
        };
        let (what, command) = match (photometric, bands) {
            (3, _) => ("with a palette".into(), "mogrify -format png FILE"),
            (_, 1) => (format!("of 1 band of {values}"), "gdal_translate -ot UInt16 -scale FILE OUT.tif"),
            (_, bands) => (format!("of {bands} bands of {values}"), "gdal_translate -ot UInt16 -scale FILE OUT.tif"),
        };
        anyhow!("found a TIFF {what}, expected {SUPPORTED}; convert it, for example with {command}")
    }
}

/// Whether it is a BigTIFF.
pub(super) fn is_big(bytes: &[u8]) -> bool {
    bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+")
}

/// The bands of a TIFF of the kind [`Kind::is_bands`], as they are stored.
pub(super) fn raster(bytes: &[u8], kind: &Kind, options: DecodeOptions) -> Result<Raster> {
    // As gray with further bands, which the decoder passes on as they are: of RGB it would drop those behind blue.
    let mut copy = bytes.to_vec();
    let renamed = kind.photometric_at.filter(|_| !kind.is_jpeg());
    if let Some(place) = renamed.and_then(|at| copy.get_mut(at..at + 2)) {
        place.copy_from_slice(&if kind.little { 1u16.to_le_bytes() } else { 1u16.to_be_bytes() });
    }
    let mut decoder = open(&copy, options)?;
    let (width, height) = size(decoder.dimensions().context("cannot read the header")?);
    ensure_pixels(width, height, options)?;
    if decoder.get_chunk_type() == ChunkType::Tile {
        let (tile_width, tile_height) = size(decoder.chunk_dimensions());
        let most = options.max_pixels;
        ensure!(
            tile_width.saturating_mul(tile_height) <= most,
            "found tiles of {tile_width} x {tile_height} pixels, expected at most {most} in each (data.max_pixels)"
        );
        kind.resize(&mut copy, [width.next_multiple_of(tile_width), height.next_multiple_of(tile_height)])?;
        decoder = open(&copy, options)?;
    }
    let bands = kind.bands as usize;
    let samples = read(&mut decoder, [width, height, bands * kind.bits as usize / 8], options)?;
    let raster = |samples, channels, alpha, planar| Raster {
        width,
        height,
        channels,
        planar,
        alpha,
        picture: false,
        full: None,
        samples,
    };
    match (kind.photometric, samples) {
        (3, Samples::U8(indices)) => {
            let map = decoder.get_tag_u16_vec(Tag::ColorMap).context("cannot read the palette")?;
            let color =
                |index: &u8| [0, 1, 2].map(|c| map.get(c * 256 + *index as usize).map_or(0, |v| (v >> 8) as u8));
            Ok(raster(Samples::U8(indices.iter().flat_map(color).collect()), 3, false, false))
        }
        (6, Samples::U8(mut values)) => {
            ycbcr_to_rgb(&mut values);
            Ok(raster(Samples::U8(values), 3, false, false))
        }
        (photometric, mut samples) => {
            match (photometric, &mut samples) {
                // White is zero.
                (0, Samples::U8(values)) => values.iter_mut().for_each(|v| *v = !*v),
                (0, Samples::U16(values)) => values.iter_mut().for_each(|v| *v = !*v),
                (0, Samples::U32(values)) => values.iter_mut().for_each(|v| *v = !*v),
                (0, Samples::U64(values)) => values.iter_mut().for_each(|v| *v = !*v),
                _ => {}
            }
            Ok(raster(samples, bands, kind.look().1, kind.planar))
        }
    }
}

fn open(bytes: &[u8], options: DecodeOptions) -> Result<Bytes<'_>> {
    Ok(Decoder::new(Cursor::new(bytes)).context("cannot read the header")?.with_limits(limits(options)))
}

fn limits(options: DecodeOptions) -> Limits {
    let most = options.max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL);
    let mut limits = Limits::default();
    (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (most, most);
    limits
}

fn size((width, height): (u32, u32)) -> (usize, usize) {
    (width as usize, height as usize)
}

/// All samples of an image whose pixels have so many bytes.
fn read(decoder: &mut Bytes, [width, height, pixel]: [usize; 3], options: DecodeOptions) -> Result<Samples> {
    let (most, limits) = (options.max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL), limits(options));
    let (whole_width, whole_height) = size(decoder.dimensions().context("cannot read the header")?);
    let mut layout = decoder.image_buffer_layout().context("cannot decode")?;
    let (found, expected) = (layout.complete_len, whole_width.saturating_mul(whole_height).saturating_mul(pixel));
    ensure!(found == expected, "found {found} bytes of samples, expected {expected}: the TIFF is damaged");
    layout.complete_len = width * height * pixel;
    ensure!(
        layout.complete_len <= most,
        "found {} bytes of samples, expected at most {most}, {MAX_BYTES_PER_PIXEL} for each of data.max_pixels",
        layout.complete_len
    );
    let mut samples = Samples::U8(Vec::new());
    samples.resize_to(&layout, &limits).context("cannot decode")?;
    let mut buffer = samples.as_buffer(0);
    if decoder.get_chunk_type() == ChunkType::Tile {
        read_tiles(decoder, buffer.as_bytes_mut(), [width, height, layout.planes])?;
    } else {
        decoder.read_image_bytes(buffer.as_bytes_mut()).context("cannot decode")?;
    }
    Ok(samples)
}

/// Fills `out` with an image whose header says that it is made of whole tiles.
fn read_tiles(decoder: &mut Bytes, out: &mut [u8], [width, height, planes]: [usize; 3]) -> Result<()> {
    let (tile_width, tile_height) = size(decoder.chunk_dimensions());
    let pixel = out.len() / (width * height * planes);
    let across = width.div_ceil(tile_width);
    let in_plane = across * height.div_ceil(tile_height);
    for index in 0..in_plane * planes {
        let mut tile = decoder.read_chunk(index as u32).context("cannot decode")?;
        let (plane, place) = (index / in_plane, index % in_plane);
        let (top, left) = (place / across * tile_height, place % across * tile_width);
        let (start, used) = (((plane * height + top) * width + left) * pixel, tile_width.min(width - left) * pixel);
        let targets = out[start..].chunks_mut(width * pixel).take(tile_height.min(height - top));
        for (source, target) in tile.as_buffer(0).as_bytes().chunks_exact(tile_width * pixel).zip(targets) {
            target[..used].copy_from_slice(&source[..used]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of 16-bit values at byte 8.
    fn tiff(entries: &[(u16, u16)], little: bool) -> Vec<u8> {
        let short = |value: u16| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let long = |value: u32| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let mut bytes = [&b"MM"[..], &b"II"[..]][little as usize].to_vec();
        bytes.extend([short(42).as_slice(), &long(8), &short(entries.len() as u16)].concat());
        for &(tag, value) in entries {
            bytes.extend([&short(tag)[..], &short(3), &long(1), &short(value), &[0, 0]].concat());
        }
        bytes
    }

    #[test]
    fn kinds_are_read_in_both_byte_orders() {
        for little in [true, false] {
            let bytes = tiff(&[(258, 24), (262, 1), (277, 12), (339, 3)], little);
            let kind = Kind::read(&bytes).expect("a directory");
            assert_eq!((kind.bands, kind.bits, kind.sample_format, kind.photometric), (12, 24, 3, 1));
            assert!(!kind.is_picture() && !kind.is_bands());
            let text = explain(&bytes, anyhow!("the library's")).to_string();
            let start =
                "found a TIFF of 12 bands of 24-bit floating-point values, expected gray, RGB, CMYK or up to 64";
            assert!(text.starts_with(start) && text.contains("gdal_translate"), "{text}");
            let whole = tiff(&[(258, 8), (262, 2), (277, 3)], little);
            assert_eq!(explain(&whole, anyhow!("the library's")).to_string(), "the library's");
            (0..bytes.len()).for_each(|end| {
                let _ = Kind::read(&bytes[..end]);
            });
        }
    }
}
