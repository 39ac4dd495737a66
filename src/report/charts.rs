//! Charts as SVG. Their colors are fixed here; in dark mode the page's style replaces them, by name.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Colors of runs; the first is the page's accent.
pub const RUNS: [RGBColor; 6] = [
    RGBColor(37, 99, 235),
    RGBColor(217, 119, 6),
    RGBColor(5, 150, 105),
    RGBColor(219, 39, 119),
    RGBColor(124, 58, 237),
    RGBColor(100, 116, 139),
];
/// Colors of classes, which differ in lightness too; later classes repeat them.
pub const CLASSES: [RGBColor; 12] = [
    RGBColor(59, 130, 246),
    RGBColor(245, 158, 11),
    RGBColor(16, 185, 129),
    RGBColor(239, 68, 68),
    RGBColor(139, 92, 246),
    RGBColor(20, 148, 160),
    RGBColor(236, 72, 153),
    RGBColor(132, 150, 22),
    RGBColor(120, 113, 108),
    RGBColor(249, 115, 22),
    RGBColor(99, 102, 241),
    RGBColor(34, 160, 80),
];
const INK: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);
/// Of a chart, in pixels.
const SIZE: (u32, u32) = (360, 190);
/// Side of a map.
const MAP: u32 = 560;
/// Most points of a line; more are averaged.
const MAX_POINTS: usize = 400;

/// A color as the page has it.
pub fn hex(color: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2)
}

/// One run in a chart.
pub struct Line {
    /// Which of [`RUNS`].
    pub color: usize,
    /// (epoch, value).
    pub points: Vec<(f64, f64)>,
    /// Epochs to mark: the run was resumed there.
    pub marks: Vec<f64>,
}

/// Lines over epochs 0 to `epochs`.
pub fn lines(lines: &[Line], epochs: f64) -> Result<String> {
    let values = || lines.iter().flat_map(|line| line.points.iter().map(|(_, value)| *value));
    let (low, high) = padded(values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin_top(10)
            .margin_right(12)
            .x_label_area_size(26)
            .y_label_area_size(52)
            .build_cartesian_2d(Axis((0.0..epochs.max(1e-9)).into()), Axis((low..high).into()))
            .map_err(failed)?;
        let label = ("sans-serif", 12).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .x_label_formatter(&|epoch: &f64| number(*epoch, epochs).trim_end_matches(".0").to_string())
            .y_label_formatter(&|value: &f64| number(*value, high - low))
            .x_label_style(label.clone())
            .y_label_style(label)
            .draw()
            .map_err(failed)?;
        for line in lines {
            let color = RUNS[line.color % RUNS.len()];
            for &mark in &line.marks {
                let ends = [(mark, low), (mark, high)];
                chart.draw_series(DashedLineSeries::new(ends, 3, 4, color.stroke_width(1))).map_err(failed)?;
            }
            let points = thinned(&line.points);
            if let [(x, y)] = points[..] {
                chart.draw_series([Circle::new((x, y), 3, color.filled())]).map_err(failed)?;
            }
            chart.draw_series(LineSeries::new(points, color.stroke_width(2))).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Points of a plane, a circle each, in order; `classes` are indices into [`CLASSES`].
pub fn map(points: &[(f64, f64)], classes: &[usize]) -> Result<String> {
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points
            .iter()
            .map(of)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        padded(low, high)
    };
    let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
    let radius = if points.len() > 1000 { 3 } else { 4 };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (MAP, MAP)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area).margin(8).build_cartesian_2d(left..right, low..high).map_err(failed)?;
        let circle = |(point, class): (&(f64, f64), &usize)| {
            Circle::new(*point, radius, CLASSES[class % CLASSES.len()].mix(0.75).filled())
        };
        chart.draw_series(points.iter().zip(classes).map(circle)).map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// A bar for every value from 0 to 1, for lists of classes.
pub fn bar(share: f64) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (120, 8)).into_drawing_area();
        let bar = |to: f64, color: RGBColor| Rectangle::new([(0, 0), ((120.0 * to) as i32, 8)], color.filled());
        area.draw(&bar(1.0, GRID)).map_err(failed)?;
        area.draw(&bar(share.clamp(0.0, 1.0), RUNS[0])).map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing a chart: {error}")
}

/// A range with some room around the values.
fn padded(low: f64, high: f64) -> (f64, f64) {
    if !low.is_finite() || !high.is_finite() {
        return (0.0, 1.0);
    }
    let room = ((high - low) * 0.06).max(low.abs().max(high.abs()) * 1e-3).max(1e-9);
    (low - room, high + room)
}

/// An axis with ticks at [`ticks`]: plotters' own choice may be a single one.
struct Axis(RangedCoordf64);

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.0.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let range = self.range();
        ticks(range.start, range.end)
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.0.range()
    }
}

/// The multiples of 1, 2 or 5 times a power of ten in a range: two to six.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let power = 10f64.powf(((high - low) / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| (high - low) / step <= 5.0);
    let step = step.unwrap_or(10.0 * power);
    ((low / step).ceil() as i64..=(high / step).floor() as i64).map(|at| at as f64 * step).collect()
}

/// A number with as many digits as a range needs.
fn number(value: f64, range: f64) -> String {
    let value = if value.abs() < range * 1e-9 { 0.0 } else { value };
    let digits = (1.5 - range.abs().max(1e-12).log10()).ceil().clamp(0.0, 6.0) as usize;
    match value.abs() {
        size if size >= 1e5 => format!("{:.0}k", value / 1e3),
        _ => format!("{value:.digits$}"),
    }
}

/// At most [`MAX_POINTS`] points: means of as many stretches.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let (x, y) = part.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        (x / part.len() as f64, y / part.len() as f64)
    };
    points.chunks(stretch).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_have_a_line_for_each_run_and_marks_where_it_was_resumed() -> Result<()> {
        let points: Vec<(f64, f64)> = (0..1000).map(|at| (at as f64 / 10.0, (at as f64).sqrt())).collect();
        let line = |color, marks| Line { color, points: points.clone(), marks };
        let svg = lines(&[line(0, vec![40.0]), line(1, Vec::new())], 100.0)?;
        assert!(svg.starts_with("<svg") && svg.contains("viewBox"), "{}", &svg[..200]);
        for color in &RUNS[..2] {
            assert!(svg.contains(&format!("stroke=\"{}\"", hex(*color))), "{}", hex(*color));
        }
        assert!(svg.len() < 60_000, "{}", svg.len());
        // Nothing, one point, and equal values can be drawn.
        for points in [vec![], vec![(0.0, 1.0)], vec![(0.0, 0.0), (1.0, 0.0)]] {
            lines(&[Line { color: 0, points, marks: Vec::new() }], 1.0)?;
        }
        Ok(())
    }

    #[test]
    fn an_axis_has_two_to_six_round_ticks() {
        assert_eq!(ticks(0.95, 2.05), [1.0, 1.5, 2.0]);
        assert_eq!(ticks(-0.3, 0.4), [-0.2, 0.0, 0.2, 0.4]);
        for at in 0..2000 {
            let (low, range) = ((at as f64 * 0.37).sin() * 1e3, 10f64.powf(at as f64 % 9.3 - 5.0));
            let found = ticks(low, low + range);
            assert!((2..=6).contains(&found.len()), "{low} {range}: {found:?}");
            assert!(found.iter().all(|tick| (low..=low + range).contains(tick)), "{low} {range}: {found:?}");
        }
    }

    #[test]
    fn a_map_has_a_circle_for_each_point_in_order() -> Result<()> {
        let svg = map(&[(0.0, 0.0), (1.0, 5.0), (3.0, 2.0)], &[0, 1, 13])?;
        let fills: Vec<&str> = svg.split("<circle").skip(1).collect();
        assert_eq!(fills.len(), 3);
        for (circle, class) in fills.iter().zip([0, 1, 1]) {
            assert!(circle.contains(&hex(CLASSES[class])), "{circle}");
        }
        Ok(())
    }

    #[test]
    fn numbers_have_the_digits_that_their_range_needs() {
        assert_eq!(number(0.123456, 1.0), "0.12");
        assert_eq!(number(12.0, 14.0), "12.0");
        assert_eq!(number(50.0, 200.0), "50");
        assert_eq!(number(0.00123, 0.01), "0.0012");
        assert_eq!(number(250_000.0, 1e6), "250k");
        assert_eq!(number(1e-17, 1.0), "0.00");
    }
}
