//! Drawing pictures of images with lines of text: what the sheets of `byol preview` and `byol neighbors` share.

use std::convert::Infallible;

use embedded_graphics::mono_font::iso_8859_1::{FONT_7X13, FONT_7X13_BOLD, FONT_9X18_BOLD};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{Dimensions, DrawTarget, Drawable, OriginDimensions, Pixel, Point, Size};
use embedded_graphics::text::{Baseline, Text};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::pixels::Pixels;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
/// Around an image that does not fill its cell.
const FRAME: Rgb<u8> = Rgb([232, 234, 237]);
/// Color of text.
pub const INK: Rgb888 = Rgb888::new(32, 33, 36);
/// Color of text that matters less.
pub const GRAY: Rgb888 = Rgb888::new(110, 114, 120);
/// Font of a picture's title.
pub const TITLE: &MonoFont = &FONT_9X18_BOLD;
/// Font of text.
pub const PLAIN: &MonoFont = &FONT_7X13;
/// Font of headings.
pub const BOLD: &MonoFont = &FONT_7X13_BOLD;

/// A picture being drawn.
pub struct Canvas(RgbImage);

impl Canvas {
    /// A white one.
    pub fn new(width: u32, height: u32) -> Self {
        Self(RgbImage::from_pixel(width, height, PAPER))
    }

    /// The picture.
    pub fn finish(self) -> RgbImage {
        self.0
    }

    /// Draws an image in its own size.
    pub fn put(&mut self, image: &RgbImage, (left, top): (u32, u32)) {
        imageops::replace(&mut self.0, image, left.into(), top.into());
    }

    /// Draws an image into a square cell: enlarged by an integer factor or reduced, with its aspect ratio.
    pub fn image(&mut self, (left, top): (u32, u32), cell: u32, image: &Pixels) {
        let shown = thumbnail(image, cell);
        let (wide, high) = shown.dimensions();
        self.put(&RgbImage::from_pixel(cell, cell, FRAME), (left, top));
        self.put(&shown, (left + (cell - wide) / 2, top + (cell - high) / 2));
    }

    /// Writes a line, shortened to `width`.
    pub fn text(&mut self, text: &str, font: &MonoFont, color: Rgb888, (left, top): (u32, u32), width: u32) {
        let advance = font.character_size.width + font.character_spacing;
        let text = shorten(text, (width / advance) as usize);
        let place = Point::new(left as i32, top as i32);
        let text = Text::with_baseline(&text, place, MonoTextStyle::new(font, color), Baseline::Top);
        let Ok(_) = text.draw(self);
    }
}

/// An image as large as fits a square cell: enlarged by an integer factor or reduced, with its aspect ratio.
pub fn thumbnail(image: &Pixels, cell: u32) -> RgbImage {
    let (width, height) = (image.width as u32, image.height as u32);
    let (wide, high) = fit(width, height, cell);
    scaled(&rgb(image), (width, height), (wide, high), wide > width || high > height)
}

/// The first three channels, or the first one in gray.
fn rgb(image: &Pixels) -> Vec<u8> {
    let shown = if image.channels < 3 { [0; 3] } else { [0, 1, 2] };
    image.data.chunks_exact(image.channels).flat_map(|pixel| shown.map(|channel| pixel[channel])).collect()
}

/// Size at which an image fits a square cell: enlarged by an integer factor, or reduced, its aspect ratio kept.
fn fit(width: u32, height: u32, cell: u32) -> (u32, u32) {
    let long = width.max(height);
    match cell / long {
        0 => {
            let reduced = |side: u32| (side as u64 * cell as u64 / long as u64).max(1) as u32;
            (reduced(width), reduced(height))
        }
        factor => (width * factor, height * factor),
    }
}

/// RGB bytes as an image of another size; pixels are repeated to enlarge, averaged to reduce.
fn scaled(bytes: &[u8], (width, height): (u32, u32), (wide, high): (u32, u32), enlarged: bool) -> RgbImage {
    let image = RgbImage::from_raw(width, height, bytes.to_vec()).expect("width * height * 3 bytes");
    if (width, height) == (wide, high) {
        return image;
    }
    imageops::resize(&image, wide, high, if enlarged { FilterType::Nearest } else { FilterType::Triangle })
}

/// A text on one line, shortened in the middle to at most `most` characters.
fn shorten(text: &str, most: usize) -> String {
    let letters: Vec<char> = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if letters.len() <= most {
        return letters.into_iter().collect();
    }
    let kept = most.saturating_sub(3);
    let (start, end) = (kept / 2, letters.len() - (kept - kept / 2));
    letters[..start].iter().chain(&['.'; 3]).chain(&letters[end..]).collect()
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        use embedded_graphics::prelude::RgbColor;
        let inside = self.bounding_box();
        for Pixel(at, color) in pixels.into_iter().filter(|Pixel(at, _)| inside.contains(*at)) {
            self.0.put_pixel(at.x as u32, at.y as u32, Rgb([color.r(), color.g(), color.b()]));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn originals_keep_their_aspect() {
        assert_eq!(fit(500, 375, 224), (224, 168));
        assert_eq!(fit(32, 32, 160), (160, 160));
        assert_eq!(fit(30, 20, 100), (90, 60));
        assert_eq!(fit(1, 10_000, 160), (1, 160));
    }

    #[test]
    fn long_texts_lose_their_middle() {
        assert_eq!(shorten("short", 5), "short");
        assert_eq!(shorten("a-very-long-name.jpeg", 11), "a-ve...jpeg");
        assert_eq!(shorten("né\nà", 9), "né à");
        assert_eq!(shorten("日本語日本語", 5), "日...語");
    }
}
