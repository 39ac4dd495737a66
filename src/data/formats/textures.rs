//! The shapes of the synthetic classes: periodic black-and-white patterns. Each is a signed distance
//! function of the plane: the distance to the nearest edge, positive inside the ink, in units of the pattern's period.
//! It is (nearly) exact close to edges, as antialiasing needs.

use std::f32::consts::TAU;

const SQRT_3: f32 = 1.732_050_8;

/// A pattern of the plane; the argument order is (x, y) in periods.
pub type Pattern = fn(f32, f32) -> f32;

/// Name and pattern of every class, by label.
pub const PATTERNS: [(&str, Pattern); 14] = [
    ("stripes", stripes),
    ("checkerboard", checkerboard),
    ("dots", dots),
    ("rings", rings),
    ("grid", grid),
    ("zigzag", zigzag),
    ("bricks", bricks),
    ("triangles", triangles),
    ("crosses", crosses),
    ("honeycomb", honeycomb),
    ("waves", waves),
    ("spiral", spiral),
    ("dashes", dashes),
    ("rays", rays),
];

/// Distance to the nearest integer, 0 to 0.5.
fn fold(x: f32) -> f32 {
    (x - x.round()).abs()
}

fn stripes(x: f32, _: f32) -> f32 {
    0.25 - fold(x)
}

fn checkerboard(x: f32, y: f32) -> f32 {
    let (a, b) = (0.25 - fold(x), 0.25 - fold(y));
    a.abs().min(b.abs()).copysign(a * b)
}

/// Distances to the nearest and second nearest point of a hexagonal lattice with spacing 1.
fn lattice(x: f32, y: f32) -> (f32, f32) {
    let (mut nearest, mut second) = (f32::MAX, f32::MAX);
    for offset in [0.0, 0.5] {
        let dy = (y / SQRT_3 - offset).floor();
        for row in [dy, dy + 1.0] {
            let left = (x - offset).floor();
            for column in [left, left + 1.0] {
                let d = (x - offset - column).hypot(y - (row + offset) * SQRT_3);
                second = second.min(d.max(nearest));
                nearest = nearest.min(d);
            }
        }
    }
    (nearest, second)
}

fn dots(x: f32, y: f32) -> f32 {
    0.3 - lattice(x, y).0
}

fn rings(x: f32, y: f32) -> f32 {
    0.25 - fold(x.hypot(y))
}

fn grid(x: f32, y: f32) -> f32 {
    0.13 - fold(x).min(fold(y))
}

fn zigzag(x: f32, y: f32) -> f32 {
    // The lines lean by 1.2 to either side, which shortens the distance across them.
    (0.25 - fold(x + 2.0 * fold(0.6 * y))) / 1.2f32.hypot(1.0)
}

fn bricks(x: f32, y: f32) -> f32 {
    let row = (2.0 * y).floor();
    0.08 - (0.5 * fold(2.0 * y)).min(fold(x + 0.5 * row))
}

fn triangles(x: f32, y: f32) -> f32 {
    let (a, b) = (x - y / SQRT_3, 2.0 * y / SQRT_3);
    let (a, b) = (a - a.floor(), b - b.floor());
    let up = a.min(b).min(1.0 - a - b);
    let down = (1.0 - a).min(1.0 - b).min(a + b - 1.0);
    0.5 * SQRT_3 * if a + b < 1.0 { up } else { -down }
}

fn crosses(x: f32, y: f32) -> f32 {
    let (x, y) = (fold(x), fold(y));
    (0.33 - x).min(0.13 - y).max((0.13 - x).min(0.33 - y))
}

fn honeycomb(x: f32, y: f32) -> f32 {
    let (nearest, second) = lattice(x, y);
    0.11 - 0.5 * (second - nearest)
}

fn waves(x: f32, y: f32) -> f32 {
    0.8 * (0.25 - fold(x + 0.3 * (0.5 * TAU * y).sin()))
}

fn spiral(x: f32, y: f32) -> f32 {
    0.25 - fold(x.hypot(y) - 2.0 * y.atan2(x) / TAU)
}

fn dashes(x: f32, y: f32) -> f32 {
    let row = (2.0 * y).round();
    (0.3 - fold(x + 0.5 * row)).min(0.12 - 0.5 * fold(2.0 * y))
}

fn rays(x: f32, y: f32) -> f32 {
    let width = TAU * x.hypot(y) / 10.0;
    (0.25 - fold(10.0 * y.atan2(x) / TAU)) * width
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points on a fine mesh around the origin.
    fn mesh() -> impl Iterator<Item = (f32, f32)> {
        (0..200 * 200).map(|i| ((i % 200) as f32 * 0.0311 - 3.0, (i / 200) as f32 * 0.0297 - 3.0))
    }

    #[test]
    fn every_pattern_has_ink_and_ground() {
        for (name, pattern) in PATTERNS {
            let ink = mesh().filter(|&(x, y)| pattern(x, y) > 0.0).count() as f64 / 40_000.0;
            assert!((0.2..0.65).contains(&ink), "{name}: {ink}");
        }
    }

    #[test]
    fn distances_change_no_faster_than_the_plane() {
        for (name, pattern) in PATTERNS {
            let step = 1e-3;
            for (x, y) in mesh().filter(|(x, y)| x.hypot(*y) > 0.7) {
                let d = pattern(x, y);
                // The distance may jump far from edges, but not near them.
                if d.abs() < 0.02 {
                    let slope = (pattern(x + step, y) - d).hypot(pattern(x, y + step) - d) / step;
                    assert!(slope < 1.45, "{name} at {x} {y}: {slope}");
                }
            }
        }
    }

    #[test]
    fn patterns_differ_from_each_other() {
        for (i, (name, a)) in PATTERNS.iter().enumerate() {
            for (other, b) in &PATTERNS[..i] {
                let same = mesh().filter(|&(x, y)| (a(x, y) > 0.0) == (b(x, y) > 0.0)).count();
                let share = same as f64 / 40_000.0;
                assert!((0.15..0.85).contains(&share), "{name} {other}: {share}");
            }
        }
    }
}
