//! JPEGs, most of what is ever decoded, by `zune-jpeg` itself: the wrapper in `image` copies the
//! input and reads all headers twice, a third of the time at 32 px.

use anyhow::{Error, Result, ensure};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::orientation::Orientation;
use super::{DecodeOptions, ensure_pixels};
use crate::pixels::Pixels;

/// Each scan goes over all pixels, however few bytes it has; encoders make about ten.
const MOST_SCANS: usize = 50;

/// Decodes a JPEG and says how it is to be turned. Truncation is an error, as in Pillow; damage
/// within the data may not be noticed.
pub(super) fn decode(bytes: &[u8], options: DecodeOptions, out: &mut Pixels) -> Result<Option<Orientation>> {
    let settings = DecoderOptions::default()
        // Only lenient is as strict as libjpeg; what it lets pass beyond that is checked here.
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_max_scans(MOST_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), settings);
    decoder.decode_headers().map_err(|error| readable("cannot read the header of the jpeg", error))?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    ensure_pixels(width, height, options)?;
    // Every block of 8 x 8 pixels takes a bit at least: no memory for a promise that cannot be kept.
    ensure!(
        width * height <= bytes.len() * 8 * 64,
        "found {} bytes for {width} x {height} pixels: the jpeg is damaged or truncated",
        bytes.len()
    );
    ensure!(!is_truncated(bytes), "the jpeg is truncated: its end marker is missing");
    let components = decoder.info().map_or(0, |info| info.components);
    ensure!([1, 3, 4].contains(&components), "found a jpeg of {components} channels, expected 1, 3 or 4");
    let exif = decoder.exif().and_then(|exif| Orientation::from_exif(exif));
    let orientation = exif.or_else(|| decoder.xmp().and_then(|xmp| Orientation::from_xmp(xmp)));
    out.resize(width, height);
    decoder.decode_into(&mut out.data).map_err(|error| readable("cannot decode the jpeg", error))?;
    Ok(orientation)
}

fn readable(what: &str, error: DecodeErrors) -> Error {
    // Some are quoted as Rust would.
    let text = error.to_string().replace("\\n", " ");
    Error::msg(format!("{what}: {}", text.trim_matches(['"', ' '])))
}

/// Whether the end marker is missing: the decoder would paint what is missing grey. Something else
/// may follow the image, such as the film of a "motion photo".
fn is_truncated(bytes: &[u8]) -> bool {
    !bytes.ends_with(&[0xff, 0xd9]) && end(bytes).is_none()
}

/// Where the end marker is, past all segments and scans.
fn end(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        // Entropy-coded data, fill bytes or garbage, up to a marker.
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        match bytes.get(at + 1)? {
            // A stuffed 0xff, a restart, or a fill byte before the real marker.
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            0xff => at += 1,
            0xd9 => return Some(at),
            _ => at += 2 + u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]) as usize,
        }
    }
}
