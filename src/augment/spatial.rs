//! Turning a view that has no up: vertical flip, quarter turns, and rotation by an angle, on byte planes.
//!
//! Inside the image, rotation equals Pillow's `Image.rotate` (Geometry.c), which torchvision's `rotate` calls, byte for
//! byte; outside of it, where Pillow puts a color, the image is reflected at its edges.

use super::blur::turn;
use super::color::plane_length;
use super::{Interpolation, Size};

/// Swaps top and bottom.
pub(super) fn flip_rows(plane: &mut [u8], size: Size) {
    let (top, bottom) = plane[..size.pixels()].split_at_mut(size.height / 2 * size.width);
    for (upper, lower) in top.chunks_exact_mut(size.width).zip(bottom.chunks_exact_mut(size.width).rev()) {
        upper.swap_with_slice(lower);
    }
}

/// Turns by `turns` times 90 degrees counterclockwise, as `numpy.rot90`. `size` is that of the plane before.
pub(super) fn quarter_turns(plane: &mut [u8], size: Size, turns: u8, spare: &mut Vec<u8>) {
    let pixels = size.pixels();
    if turns.is_multiple_of(2) {
        if turns % 4 == 2 {
            plane[..pixels].reverse();
        }
        return;
    }
    spare.resize(pixels, 0);
    turn(&plane[..pixels], size, spare);
    plane[..pixels].copy_from_slice(spare);
    match turns % 4 {
        1 => flip_rows(plane, size.turned()),
        _ => plane[..pixels].chunks_exact_mut(size.height).for_each(<[u8]>::reverse),
    }
}

/// Rotates all planes by `degrees` counterclockwise around the center.
pub(super) fn rotate(planes: &mut [u8], size: Size, degrees: f64, kernel: Interpolation, spare: &mut Vec<u8>) {
    let Size { height, width } = size;
    let angle = -degrees.rem_euclid(360.0).to_radians();
    // To 15 digits, as Pillow does.
    let [cos, sin] = [angle.cos(), angle.sin()].map(|v| (v * 1e15).round() / 1e15);
    let (center_x, center_y) = (width as f64 / 2.0, height as f64 / 2.0);
    let shift_x = cos * -center_x + sin * -center_y + center_x;
    let shift_y = -sin * -center_x + cos * -center_y + center_y;
    spare.clear();
    spare.extend_from_slice(planes);
    let (length, planes_from) = (plane_length(size.pixels()), spare.as_slice());
    for y in 0..height {
        for x in 0..width {
            let (x_out, y_out) = (x as f64 + 0.5, y as f64 + 0.5);
            let from_x = reflect(cos * x_out + sin * y_out + shift_x, width);
            let from_y = reflect(-sin * x_out + cos * y_out + shift_y, height);
            let (columns, right) = taps(from_x, width);
            let (rows, down) = taps(from_y, height);
            let planes = planes.chunks_exact_mut(length).zip(planes_from.chunks_exact(length));
            for (to, from) in planes {
                let at = |row: usize, column: usize| f64::from(from[rows[row] * width + columns[column]]);
                to[y * width + x] = match kernel {
                    Interpolation::Bicubic => {
                        let line = |row| cubic([0, 1, 2, 3].map(|column| at(row, column)), right);
                        cubic([0, 1, 2, 3].map(line), down).clamp(0.0, 255.0) as u8
                    }
                    Interpolation::Bilinear => {
                        let line = |row| at(row, 1) + (at(row, 2) - at(row, 1)) * right;
                        (line(1) + (line(2) - line(1)) * down) as u8
                    }
                };
            }
        }
    }
}

/// A coordinate from 0 to `length`, reflected at both ends if it is outside.
fn reflect(at: f64, length: usize) -> f64 {
    let length = length as f64;
    if (0.0..length).contains(&at) {
        return at;
    }
    let at = at.rem_euclid(2.0 * length);
    if at < length { at } else { 2.0 * length - at }
}

/// The four pixels around a coordinate, the second and third next to it, and where it is between these.
fn taps(at: f64, length: usize) -> ([usize; 4], f64) {
    let (at, last) = (at - 0.5, length as isize - 1);
    let first = at.floor();
    ([-1, 0, 1, 2].map(|step| (first as isize + step).clamp(0, last) as usize), at - first)
}

/// Cubic convolution with a = -1, which Pillow uses for rotations (to resize it has -0.5).
fn cubic([a, b, c, d]: [f64; 4], at: f64) -> f64 {
    b + at * ((c - a) + at * ((2.0 * (a - b) + c - d) + at * (-a + b - c + d)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(size: Size) -> Vec<u8> {
        let mut plane = vec![0; plane_length(size.pixels())];
        plane[..size.pixels()].iter_mut().zip(0usize..).for_each(|(v, i)| *v = (i * i * 7 + i / 3) as u8);
        plane
    }

    #[test]
    fn four_quarter_turns_and_two_flips_are_none() {
        let size = Size { height: 3, width: 5 };
        let (before, mut spare) = (plane(size), Vec::new());
        let mut turned = before.clone();
        quarter_turns(&mut turned, size, 1, &mut spare);
        // Counterclockwise: the last column becomes the first row.
        assert_eq!(turned[..3], [4, 9, 14].map(|i| before[i]));
        let mut again = turned.clone();
        quarter_turns(&mut again, size.turned(), 1, &mut spare);
        let mut half = before.clone();
        quarter_turns(&mut half, size, 2, &mut spare);
        assert_eq!(again, half);
        quarter_turns(&mut turned, size.turned(), 3, &mut spare);
        assert_eq!(turned, before);
        let mut flipped = before.clone();
        flip_rows(&mut flipped, size);
        assert_eq!(flipped[..5], before[10..15]);
        flip_rows(&mut flipped, size);
        assert_eq!(flipped, before);
    }

    /// By a right angle, a rotation is a quarter turn; and what lies outside mirrors what lies inside.
    #[test]
    fn rotations_reflect_at_the_edges() {
        let size = Size { height: 24, width: 24 };
        let (before, mut spare) = (plane(size), Vec::new());
        for kernel in [Interpolation::Bicubic, Interpolation::Bilinear] {
            let (mut rotated, mut turned) = (before.clone(), before.clone());
            rotate(&mut rotated, size, 90.0, kernel, &mut spare);
            quarter_turns(&mut turned, size, 1, &mut spare);
            assert_eq!(rotated, turned);
            let mut flat = vec![77; before.len()];
            rotate(&mut flat, size, 31.0, kernel, &mut spare);
            assert!(flat[..size.pixels()].iter().all(|v| *v == 77));
        }
        assert_eq!([-0.25, 0.25, 9.75, 10.25, 20.25].map(|at| reflect(at, 10)), [0.25, 0.25, 9.75, 9.75, 0.25]);
    }
}
