//! Images embedded in the page: `data:` URIs of small PNG and JPEG files, and one large file of all thumbnails.

use std::io::Cursor;

use anyhow::{Context, Result};
use base64ct::{Base64, Encoding};
use image::codecs::jpeg::JpegEncoder;
use image::imageops;
use image::{ImageFormat, RgbImage};

use crate::drawing::thumbnail;
use crate::pixels::Pixels;

/// JPEG quality.
const QUALITY: u8 = 82;
/// Pictures up to this width are PNG files, which are about as small and exact.
const SMALL: u32 = 64;
/// Side of a thumbnail among many.
pub const TILE: u32 = 44;
/// Side of a picture that is looked at.
pub const PICTURE: u32 = 112;

/// An image as a picture of at most [`PICTURE`] pixels; smaller ones keep their size.
pub fn picture(image: &Pixels) -> Result<String> {
    let side = image.width.max(image.height) as u32;
    uri(&thumbnail(image, side.min(PICTURE)))
}

/// Thumbnails in rows of `columns`, as one picture.
pub fn sprite(images: impl Iterator<Item = Result<Pixels>>, count: usize, columns: usize) -> Result<String> {
    uri(&tiles(images, count, columns, TILE)?)
}

/// Thumbnails of `side` pixels in rows of `columns`.
pub fn tiles(
    images: impl Iterator<Item = Result<Pixels>>,
    count: usize,
    columns: usize,
    side: u32,
) -> Result<RgbImage> {
    let rows = count.div_ceil(columns).max(1) as u32;
    let mut all = RgbImage::from_pixel(columns as u32 * side, rows * side, image::Rgb([128; 3]));
    for (at, image) in images.enumerate() {
        let tile = thumbnail(&image?, side);
        let (column, row) = ((at % columns) as u32, (at / columns) as u32);
        let (wide, high) = tile.dimensions();
        let (left, top) = (column * side + (side - wide) / 2, row * side + (side - high) / 2);
        imageops::replace(&mut all, &tile, left.into(), top.into());
    }
    Ok(all)
}

/// The bytes of a PNG file.
pub fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, ImageFormat::Png).context("encoding a PNG file")?;
    Ok(file.into_inner())
}

fn uri(image: &RgbImage) -> Result<String> {
    let mut file = Cursor::new(Vec::new());
    let kind = if image.width() <= SMALL {
        image.write_to(&mut file, ImageFormat::Png).context("encoding a PNG file")?;
        "png"
    } else {
        JpegEncoder::new_with_quality(&mut file, QUALITY).encode_image(image).context("encoding a JPEG file")?;
        "jpeg"
    };
    Ok(format!("data:image/{kind};base64,{}", Base64::encode_string(&file.into_inner())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pictures_keep_their_pixels_and_large_ones_are_reduced() -> Result<()> {
        let image =
            |side: usize| Pixels { width: side, height: side / 2, channels: 3, data: vec![77; side * (side / 2) * 3] };
        assert!(picture(&image(32))?.starts_with("data:image/png;base64,iVBORw0KGgo"));
        let large = picture(&image(400))?;
        assert!(large.starts_with("data:image/jpeg;base64,/9j/") && large.len() < 4000, "{}", large.len());
        assert!(sprite((0..5).map(|_| Ok(image(100))), 5, 3)?.starts_with("data:image/jpeg"));
        Ok(())
    }
}
