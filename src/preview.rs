//! The picture of `byol preview`: a grid with one row per image, the original first, then draws of view 1 and of
//! view 2. [`Layout`] computes positions, [`Picture`] draws.

use std::convert::Infallible;

use embedded_graphics::mono_font::iso_8859_1::{FONT_7X13, FONT_7X13_BOLD, FONT_9X18_BOLD};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{Dimensions, DrawTarget, Drawable, OriginDimensions, Pixel, Point, Size};
use embedded_graphics::text::{Baseline, Text};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::pixels::Pixels;

/// In pixels, as all lengths here.
const MARGIN: u32 = 20;
/// Width of the text before each row.
const LABEL: u32 = 210;
/// Between two draws, and between two rows.
const GAP: u32 = 6;
/// Between label, original, view 1 and view 2.
const GROUP_GAP: u32 = 20;
/// From the picture's top to the two lines about it, to the group names, to the captions, to the first row.
const HEADER: [u32; 5] = [16, 38, 66, 83, 100];
/// Between two lines of a label.
const LINE: u32 = 16;
/// Maximum width of a picture, about that of a screen.
const MAX_WIDTH: u32 = 2400;
/// Small views are enlarged as long as they stay within this.
const ENLARGED: u32 = 160;
/// Large views are reduced to this.
const MAX_CELL: u32 = 320;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
/// Around an original that does not fill its cell.
const FRAME: Rgb<u8> = Rgb([232, 234, 237]);
const INK: Rgb888 = Rgb888::new(32, 33, 36);
const GRAY: Rgb888 = Rgb888::new(110, 114, 120);

/// Where the cells of a grid lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    rows: u32,
    draws: u32,
    size: u32,
    cell: u32,
}

impl Layout {
    /// A grid for `rows` images with `draws` draws of each of two views of `size` x `size` pixels. Views keep their
    /// size, but small ones are enlarged by an integer factor, and those that would make the picture too wide are
    /// reduced.
    pub fn new(rows: usize, draws: usize, size: usize) -> Self {
        let [rows, draws, size] = [rows, draws, size].map(|n| n as u32);
        let around = 2 * MARGIN + LABEL + 3 * GROUP_GAP + 2 * (draws - 1) * GAP;
        let room = (MAX_WIDTH.saturating_sub(around) / (1 + 2 * draws)).clamp(8, MAX_CELL);
        let cell = if size > room { room } else { size * (room.min(ENLARGED) / size).max(1) };
        Self { rows, draws, size, cell }
    }

    /// Side of a cell.
    pub fn cell(&self) -> u32 {
        self.cell
    }

    /// Width and height of the picture.
    pub fn dimensions(&self) -> (u32, u32) {
        let (left, top) = self.corner(self.rows as usize - 1, 2 * self.draws as usize);
        (left + self.cell + MARGIN, top + self.cell + MARGIN)
    }

    /// Left and top of a cell. Column 0 is the original, then come the draws of view 1, then those of view 2.
    pub fn corner(&self, row: usize, column: usize) -> (u32, u32) {
        let [row, column] = [row, column].map(|n| n as u32);
        let groups = if column == 0 { 0 } else { 1 + (column - 1) / self.draws };
        let left = MARGIN + LABEL + (1 + groups) * GROUP_GAP + column * self.cell + (column - groups) * GAP;
        (left, HEADER[4] + row * (self.cell + GAP))
    }

    /// How the views are scaled, in words.
    pub fn scale(&self) -> String {
        match (self.cell / self.size, self.cell) {
            (0, cell) => format!("reduced to {cell} px"),
            (1, _) => "pixel by pixel".to_string(),
            (factor, _) => format!("enlarged {factor} times"),
        }
    }
}

/// A picture being drawn.
pub struct Picture {
    layout: Layout,
    canvas: Canvas,
}

impl Picture {
    /// Draws the header: title, description, and names of the columns.
    pub fn new(layout: Layout, title: &str, about: &str) -> Self {
        let (width, height) = layout.dimensions();
        let mut picture = Self { layout, canvas: Canvas(RgbImage::from_pixel(width, height, PAPER)) };
        let wide = width - 2 * MARGIN;
        picture.text(title, &FONT_9X18_BOLD, INK, (MARGIN, HEADER[0]), wide);
        picture.text(about, &FONT_7X13, GRAY, (MARGIN, HEADER[1]), wide);
        let draws = layout.draws as usize;
        for (name, column) in [("original", 0), ("view 1", 1), ("view 2", 1 + draws)] {
            picture.text(name, &FONT_7X13_BOLD, INK, (layout.corner(0, column).0, HEADER[2]), layout.cell);
        }
        for draw in 0..draws {
            for column in [1 + draw, 1 + draws + draw] {
                let place = (layout.corner(0, column).0, HEADER[3]);
                picture.text(&format!("epoch {draw}"), &FONT_7X13, GRAY, place, layout.cell);
            }
        }
        picture
    }

    /// Draws an original, and the lines of its label, the first in bold.
    pub fn original(&mut self, row: usize, label: &[String], image: &Pixels) {
        let (left, top) = self.layout.corner(row, 0);
        for (number, line) in (0..).zip(label) {
            let (font, ink) = if number == 0 { (&FONT_7X13_BOLD, INK) } else { (&FONT_7X13, GRAY) };
            self.text(line, font, ink, (MARGIN, top + number * LINE), LABEL);
        }
        let cell = self.layout.cell;
        let (width, height) = (image.width as u32, image.height as u32);
        let (wide, high) = fit(width, height, cell);
        let enlarged = wide > width || high > height;
        let shown = scaled(&image.data, (width, height), (wide, high), enlarged);
        imageops::replace(&mut self.canvas.0, &RgbImage::from_pixel(cell, cell, FRAME), left.into(), top.into());
        let (left, top) = (left + (cell - wide) / 2, top + (cell - high) / 2);
        imageops::replace(&mut self.canvas.0, &shown, left.into(), top.into());
    }

    /// Draws a view, `size * size * 3` bytes, into a column (see [`Layout::corner`]).
    pub fn view(&mut self, row: usize, column: usize, view: &[u8]) {
        let (left, top) = self.layout.corner(row, column);
        let Layout { size, cell, .. } = self.layout;
        let shown = scaled(view, (size, size), (cell, cell), cell > size);
        imageops::replace(&mut self.canvas.0, &shown, left.into(), top.into());
    }

    /// The finished picture.
    pub fn finish(self) -> RgbImage {
        self.canvas.0
    }

    /// Writes a line, shortened to `width`.
    fn text(&mut self, text: &str, font: &MonoFont, color: Rgb888, (left, top): (u32, u32), width: u32) {
        let advance = font.character_size.width + font.character_spacing;
        let text = shorten(text, (width / advance) as usize);
        let place = Point::new(left as i32, top as i32);
        let text = Text::with_baseline(&text, place, MonoTextStyle::new(font, color), Baseline::Top);
        let Ok(_) = text.draw(&mut self.canvas);
    }
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

/// The image as a drawing target for fonts.
struct Canvas(RgbImage);

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
    fn cells_lie_apart_inside_a_picture_of_bounded_width() {
        for (draws, size) in [(1, 8), (4, 32), (3, 96), (4, 224), (16, 224), (16, 1024), (1, 1024)] {
            let layout = Layout::new(3, draws, size);
            let (width, height) = layout.dimensions();
            assert!(width <= MAX_WIDTH, "{width} px for {draws} draws of {size}");
            // The widest caption, and four lines of label beside a row.
            assert!(layout.cell() >= 56 && layout.cell() + GAP >= 3 * LINE + 13, "{layout:?}");
            let cell = layout.cell();
            let corners: Vec<_> = (0..3).flat_map(|r| (0..=2 * draws).map(move |c| layout.corner(r, c))).collect();
            for (at, &(x, y)) in corners.iter().enumerate() {
                assert!(x >= MARGIN + LABEL && y >= HEADER[4], "{layout:?}");
                assert!(x + cell + MARGIN <= width && y + cell + MARGIN <= height, "{layout:?}");
                let apart = |&(u, v): &(u32, u32)| u.abs_diff(x) >= cell + GAP || v.abs_diff(y) >= cell + GAP;
                assert!(corners[at + 1..].iter().all(apart), "{layout:?}");
            }
        }
    }

    #[test]
    fn views_are_enlarged_by_integer_factors_unscaled_or_reduced() {
        let shown = |draws, size| (Layout::new(1, draws, size).cell(), Layout::new(1, draws, size).scale());
        assert_eq!(shown(4, 32), (160, "enlarged 5 times".to_string()));
        assert_eq!(shown(4, 96), (96, "pixel by pixel".to_string()));
        assert_eq!(shown(4, 224), (224, "pixel by pixel".to_string()));
        assert_eq!(shown(8, 224).1, format!("reduced to {} px", shown(8, 224).0));
    }

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
