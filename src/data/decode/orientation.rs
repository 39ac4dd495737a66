//! An image's orientation: read from its metadata, applied to its pixels.

use image::{ImageDecoder, ImageFormat, metadata};

use super::frames;
use crate::augment::Crop;
use crate::pixels::Pixels;

/// The value of the EXIF tag 0x0112: 1 is upright, 2 to 8 are the other rotations and flips of a
/// rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orientation(u8);

impl Orientation {
    /// As the pixels are stored.
    pub(super) const UPRIGHT: Self = Self(1);

    /// Reads EXIF, with or without the prefix used in JPEG.
    pub(super) fn from_exif(mut exif: &[u8]) -> Option<Self> {
        while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
            exif = rest;
        }
        metadata::Orientation::from_exif_chunk(exif).map(|found| Self(found.to_exif()))
    }

    /// The value of a TIFF's own tag.
    pub(super) fn from_tiff(value: u32) -> Self {
        Self(u8::try_from(value).unwrap_or(1))
    }

    /// Looks for `tiff:Orientation="6"` or `<tiff:Orientation>6`, as Pillow does.
    pub(super) fn from_xmp(xmp: &[u8]) -> Option<Self> {
        const KEY: &[u8] = b"tiff:Orientation";
        let mut keys = xmp.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY);
        keys.find_map(|(at, _)| {
            let after = &xmp[at + KEY.len()..];
            let value = after.strip_prefix(b"=\"").or_else(|| after.strip_prefix(b">"))?;
            value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| Self(digit - b'0'))
        })
    }

    /// Width and height of an image after orientation is applied.
    pub(super) fn size(self, (width, height): (usize, usize)) -> (usize, usize) {
        if (5..=8).contains(&self.0) { (height, width) } else { (width, height) }
    }

    /// The orientation that undoes this one.
    pub(super) fn inverse(self) -> Self {
        match self.0 {
            6 => Self(8),
            8 => Self(6),
            _ => self,
        }
    }

    /// At most `reduction`, such that an image of this size is a whole number of reduced pixels in each direction if it
    /// is turned: they are counted from the other edge then.
    pub(super) fn reduction(self, (width, height): (usize, usize), mut reduction: usize) -> usize {
        while (2..=8).contains(&self.0) && (width % reduction != 0 || height % reduction != 0) {
            reduction /= 2;
        }
        reduction
    }

    /// Where a part of an image of this size is after orientation is applied.
    pub(super) fn turned(self, part: Crop, (width, height): (usize, usize)) -> Crop {
        let mut turned = part;
        if [2, 3, 7, 8].contains(&self.0) {
            turned.left = width - part.left - part.width;
        }
        if [3, 4, 6, 7].contains(&self.0) {
            turned.top = height - part.top - part.height;
        }
        if (5..=8).contains(&self.0) {
            let Crop { left, top, width, height } = turned;
            turned = Crop { left: top, top: left, width: height, height: width };
        }
        turned
    }

    /// Rotates and flips the pixels; `spare` is a scratch buffer.
    pub(super) fn apply(self, image: &mut Pixels, spare: &mut Vec<u8>) {
        if !(2..=8).contains(&self.0) {
            return;
        }
        let (width, height) = (image.width, image.height);
        let size = self.size((width, height));
        let (from_right, from_bottom) = ([2, 3, 7, 8].contains(&self.0), [3, 4, 6, 7].contains(&self.0));
        let source = |x: usize, y: usize| {
            let (x, y) = if self.0 >= 5 { (y, x) } else { (x, y) };
            let x = if from_right { width - 1 - x } else { x };
            let y = if from_bottom { height - 1 - y } else { y };
            y * width + x
        };
        spare.resize(image.data.len(), 0);
        let places = (0..size.1).flat_map(|y| (0..size.0).map(move |x| (x, y)));
        match image.channels {
            3 => {
                let sources = image.data.as_chunks::<3>().0;
                for (target, (x, y)) in spare.as_chunks_mut::<3>().0.iter_mut().zip(places) {
                    *target = sources[source(x, y)];
                }
            }
            channels => {
                for (target, (x, y)) in spare.chunks_exact_mut(channels).zip(places) {
                    target.copy_from_slice(&image.data[source(x, y) * channels..][..channels]);
                }
            }
        }
        std::mem::swap(&mut image.data, spare);
        (image.width, image.height) = size;
    }
}

/// The orientation of an image other than JPEG. Damaged metadata is ignored, so that the pixels can still be
/// used.
pub(super) fn find(bytes: &[u8], format: ImageFormat, decoder: &mut impl ImageDecoder) -> Option<Orientation> {
    let webp = |wanted: &[u8; 4]| frames::webp_chunks(bytes).find(|(kind, _)| kind == wanted).map(|(_, data)| data);
    let exif = match format {
        ImageFormat::Tiff => return decoder.orientation().ok().map(|found| Orientation(found.to_exif())),
        ImageFormat::WebP => {
            // `image` would allocate the size that a chunk claims.
            let exif = webp(b"EXIF").and_then(Orientation::from_exif);
            return exif.or_else(|| webp(b"XMP ").and_then(Orientation::from_xmp));
        }
        ImageFormat::Png => png_exif(bytes).and_then(Orientation::from_exif),
        _ => None,
    };
    exif.or_else(|| decoder.xmp_metadata().ok().flatten().and_then(|xmp| Orientation::from_xmp(&xmp)))
}

/// The chunk `eXIf`, which may come after the pixels, where `image` does not look for it.
fn png_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(8..)?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        if kind == b"eXIf" {
            return after.get(..length);
        }
        rest = after.get(length + 4..)?;
    }
}
