//! A contact sheet: rows of images with two lines of text below each, such as an image and its nearest neighbors.

use image::RgbImage;

use crate::drawing::{BOLD, Canvas, GRAY, INK, PLAIN, TITLE};
use crate::pixels::Pixels;

/// In pixels, as all lengths here.
const MARGIN: u32 = 24;
/// Side of a cell.
const CELL: u32 = 128;
/// Between two cells.
const GAP: u32 = 12;
/// From the top to the first row.
const HEADER: u32 = 72;
/// Height of the text below an image, and the distance to the next row.
const CAPTION: u32 = 50;

/// Most rows and columns of a sheet.
pub const MAX: [usize; 2] = [64, 16];

/// A sheet being drawn.
pub struct Sheet(Canvas);

impl Sheet {
    /// An empty sheet with a title and a line about it.
    pub fn new(rows: usize, columns: usize, title: &str, about: &str) -> Self {
        let (width, height) = dimensions(rows, columns);
        let mut canvas = Canvas::new(width, height);
        canvas.text(title, TITLE, INK, (MARGIN, 18), width - 2 * MARGIN);
        canvas.text(about, PLAIN, GRAY, (MARGIN, 42), width - 2 * MARGIN);
        Self(canvas)
    }

    /// Draws an image with its caption: a line in bold, and one in gray.
    pub fn image(&mut self, row: usize, column: usize, image: &Pixels, caption: [&str; 2]) {
        let (left, top) = corner(row, column);
        self.0.image((left, top), CELL, image);
        self.0.text(caption[0], BOLD, INK, (left, top + CELL + 4), CELL);
        self.0.text(caption[1], PLAIN, GRAY, (left, top + CELL + 20), CELL);
    }

    /// The picture.
    pub fn finish(self) -> RgbImage {
        self.0.finish()
    }
}

fn corner(row: usize, column: usize) -> (u32, u32) {
    (MARGIN + column as u32 * (CELL + GAP), HEADER + row as u32 * (CELL + CAPTION))
}

fn dimensions(rows: usize, columns: usize) -> (u32, u32) {
    let (right, bottom) = corner(rows, columns.max(4));
    (right - GAP + MARGIN, bottom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_captions_lie_inside_the_sheet() {
        let mut sheet = Sheet::new(2, 5, "title", "about");
        let image = Pixels { width: 2, height: 1, channels: 3, data: vec![200, 0, 0, 0, 0, 200] };
        sheet.image(1, 4, &image, ["0.993", "a-name-that-is-much-too-long-for-a-cell.jpeg"]);
        let picture = sheet.finish();
        let (left, top) = corner(1, 4);
        assert_eq!(picture.dimensions(), (left + CELL + MARGIN, top + CELL + CAPTION));
        assert_eq!(picture.get_pixel(left, top + CELL / 2).0, [200, 0, 0]);
        assert_eq!(picture.get_pixel(left + CELL - 1, top + CELL / 2).0, [0, 0, 200]);
        // Text, and none of it in the margin.
        let dark = |x: u32, y: u32| picture.get_pixel(x, y).0[0] < 128;
        assert!((left..left + CELL).any(|x| (top + CELL + 20..top + CELL + CAPTION).any(|y| dark(x, y))));
        assert!((left + CELL..picture.width()).all(|x| (0..picture.height()).all(|y| !dark(x, y))));
    }
}
