//! The picture of `byol preview`: a grid with one row per image, the original first, then draws of view 1 and of
//! view 2. [`Layout`] computes positions, [`Picture`] draws.

use image::RgbImage;

use crate::augment::Size;
use crate::drawing::{BOLD, Canvas, GRAY, INK, PLAIN, TITLE};
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

/// Where the cells of a grid lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    rows: u32,
    draws: u32,
    /// Of a view.
    size: Size,
    cell: u32,
}

impl Layout {
    /// A grid for `rows` images with `draws` draws of each of two views of this size. Views keep their
    /// size, but small ones are enlarged by an integer factor, and those that would make the picture too wide are
    /// reduced.
    pub fn new(rows: usize, draws: usize, size: Size) -> Self {
        let [rows, draws, long] = [rows, draws, size.long()].map(|n| n as u32);
        let around = 2 * MARGIN + LABEL + 3 * GROUP_GAP + 2 * (draws - 1) * GAP;
        let room = (MAX_WIDTH.saturating_sub(around) / (1 + 2 * draws)).clamp(8, MAX_CELL);
        let cell = if long > room { room } else { long * (room.min(ENLARGED) / long).max(1) };
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
        match (self.cell / self.size.long() as u32, self.cell) {
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
        let mut picture = Self { layout, canvas: Canvas::new(width, height) };
        let wide = width - 2 * MARGIN;
        picture.canvas.text(title, TITLE, INK, (MARGIN, HEADER[0]), wide);
        picture.canvas.text(about, PLAIN, GRAY, (MARGIN, HEADER[1]), wide);
        let draws = layout.draws as usize;
        for (name, column) in [("original", 0), ("view 1", 1), ("view 2", 1 + draws)] {
            picture.canvas.text(name, BOLD, INK, (layout.corner(0, column).0, HEADER[2]), layout.cell);
        }
        for draw in 0..draws {
            for column in [1 + draw, 1 + draws + draw] {
                let place = (layout.corner(0, column).0, HEADER[3]);
                picture.canvas.text(&format!("epoch {draw}"), PLAIN, GRAY, place, layout.cell);
            }
        }
        picture
    }

    /// Draws an original, and the lines of its label, the first in bold.
    pub fn original(&mut self, row: usize, label: &[String], image: &Pixels) {
        let (left, top) = self.layout.corner(row, 0);
        for (number, line) in (0..).zip(label) {
            let (font, ink) = if number == 0 { (BOLD, INK) } else { (PLAIN, GRAY) };
            self.canvas.text(line, font, ink, (MARGIN, top + number * LINE), LABEL);
        }
        self.canvas.image((left, top), self.layout.cell, image);
    }

    /// Draws a view, `height * width * 3` bytes, into a column (see [`Layout::corner`]).
    pub fn view(&mut self, row: usize, column: usize, view: &[u8]) {
        let Size { height, width } = self.layout.size;
        let view = Pixels { width, height, channels: 3, data: view.to_vec() };
        self.canvas.image(self.layout.corner(row, column), self.layout.cell, &view);
    }

    /// The finished picture.
    pub fn finish(self) -> RgbImage {
        self.canvas.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_lie_apart_inside_a_picture_of_bounded_width() {
        for (draws, size) in [(1, 8), (4, 32), (3, 96), (4, 224), (16, 224), (16, 1024), (1, 1024)] {
            let layout = Layout::new(3, draws, size.into());
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
        let shown = |draws, size: usize| {
            (Layout::new(1, draws, size.into()).cell(), Layout::new(1, draws, size.into()).scale())
        };
        assert_eq!(shown(4, 32), (160, "enlarged 5 times".to_string()));
        assert_eq!(shown(4, 96), (96, "pixel by pixel".to_string()));
        assert_eq!(shown(4, 224), (224, "pixel by pixel".to_string()));
        assert_eq!(shown(8, 224).1, format!("reduced to {} px", shown(8, 224).0));
    }
}
