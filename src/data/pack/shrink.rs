//! Makes an image that is larger than wanted smaller, and encodes it again.

use std::io::Cursor;

use anyhow::{Context, Result, bail};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::augment::{Part, Scratch, Size, resized};
use crate::data::DataConfig;
use crate::data::decode::{DecodeOptions, decode_values, look};
use crate::data::values::{ValueRange, Values};
use crate::pixels::Pixels;

/// The largest image that stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Pixels of the longer side.
    MaxSide(usize),
    /// Pixels of the shorter side.
    ShortSide(usize),
}

impl Limit {
    /// Size of an image of `width` x `height` pixels after shrinking; `None` if it is within the limit.
    pub fn applied(self, width: usize, height: usize) -> Option<Size> {
        let (side, most) = match self {
            Self::MaxSide(most) => (width.max(height), most),
            Self::ShortSide(most) => (width.min(height), most),
        };
        let scaled = |length: usize| ((length as f64 * most as f64 / side as f64).round() as usize).max(1);
        (side > most).then(|| Size { height: scaled(height), width: scaled(width) })
    }
}

/// The bytes of a smaller image and the ending of its name: JPEG for a JPEG, PNG, which loses nothing, for all others.
/// `None` for an image within the limit, or whose samples are no bytes of gray or RGB. Upright, without metadata; alpha is
/// dropped unless `data.channels` counts it.
/// # Errors
/// The image cannot be decoded.
pub fn shrink(
    encoded: &[u8],
    limit: Limit,
    quality: u8,
    config: &DataConfig,
    (pixels, scratch): &mut (Pixels, Scratch),
) -> Result<Option<(Vec<u8>, &'static str)>> {
    let stored = look(encoded, config.axes)?;
    let channels = config.channels.count().unwrap_or(stored.channels - usize::from(stored.alpha));
    if stored.sample != "u8" || !matches!(channels, 1 | 3) {
        return Ok(None);
    }
    let mut size = None;
    let mut want = |width, height| {
        size = limit.applied(width, height);
        let whole = Part::whole(width, height);
        Part { reduction: size.map_or(1, |size| whole.crop.reduction(size)), ..whole }
    };
    // Any image may be decoded at a lower resolution that leaves twice the wanted one.
    let options = DecodeOptions { scaled_above: 0, ..config.decode_options() };
    let values = Values { channels, range: ValueRange::Full, axes: config.axes };
    let (part, _) = decode_values(encoded, options, &values, &mut want, pixels)?;
    let Some(size) = size else { return Ok(None) };
    let made = resized(pixels, part, size, scratch);
    if encoded.starts_with(&[0xff, 0xd8]) {
        return Ok(Some((native::jpeg::encode(&made, [size.width, size.height, channels], quality)?, "jpg")));
    }
    Ok(Some((png(&made, size, channels)?, "png")))
}

/// Encodes an image of pixels of 1 or 3 bytes.
/// # Errors
/// Other numbers of channels.
pub fn png(pixels: &[u8], size: Size, channels: usize) -> Result<Vec<u8>> {
    let color = match channels {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        channels => bail!("found {channels} channels, expected 1 or 3 for a png"),
    };
    let mut png = Cursor::new(Vec::new());
    let encoder = PngEncoder::new(&mut png);
    encoder.write_image(pixels, size.width as u32, size.height as u32, color).context("cannot encode the png")?;
    Ok(png.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_beyond_the_limit_shrink_and_keep_their_aspect() {
        let size = |height, width| Some(Size { height, width });
        assert_eq!(Limit::MaxSide(100).applied(400, 300), size(75, 100));
        assert_eq!(Limit::ShortSide(100).applied(400, 300), size(100, 133));
        assert_eq!(Limit::ShortSide(100).applied(30, 4000), None);
        assert_eq!(Limit::MaxSide(10).applied(3, 4000), size(10, 1));
        assert_eq!((Limit::MaxSide(400).applied(400, 300), Limit::ShortSide(300).applied(400, 300)), (None, None));
    }
}
