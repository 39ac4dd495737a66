//! What the samples of a DICOM file stand for: bytes of gray or color, or measurements, rescaled as the file says.

use anyhow::{Context, Result, ensure};

use super::frame::Frame;
use super::header::{Color, Header, Palette};
use crate::data::decode::raster::{Raster, Samples};

/// How a sample as it is stored becomes a number.
struct Scale {
    shift: u32,
    mask: u32,
    /// Of signed ones, that of the sign.
    sign: u32,
    /// What the stored bits can hold.
    ends: [i64; 2],
    inverted: bool,
    padding: Option<[i64; 2]>,
    slope: f64,
    intercept: f64,
}

impl Scale {
    fn of(header: &Header, frame: &Frame) -> Self {
        let mask = u32::MAX >> (32 - header.stored);
        let sign = if header.signed { 1 << (header.stored - 1) } else { 0 };
        let scale = Self {
            // What a JPEG holds are the stored bits alone.
            shift: if frame.width * 8 == header.allocated as usize { header.high + 1 - header.stored } else { 0 },
            mask,
            sign,
            ends: if header.signed { [-i64::from(sign), i64::from(mask >> 1)] } else { [0, mask.into()] },
            inverted: header.color == Color::Inverted,
            padding: None,
            slope: header.slope,
            intercept: header.intercept,
        };
        let padding = header.padding.filter(|_| header.samples == 1).map(|ends| ends.map(|end| scale.stored(end)));
        // First and last may come in either order.
        Self { padding: padding.map(|[a, b]| [a.min(b), a.max(b)]), ..scale }
    }

    fn stored(&self, bits: u32) -> i64 {
        let bits = bits & self.mask;
        i64::from(bits) - if bits & self.sign != 0 { i64::from(self.mask) + 1 } else { 0 }
    }

    fn rescaled(&self, stored: i64) -> f64 {
        stored as f64 * self.slope + self.intercept
    }

    /// Not a number for padding.
    fn value(&self, bits: u32) -> f32 {
        let stored = self.stored(bits >> self.shift);
        if self.padding.is_some_and(|[first, last]| (first..=last).contains(&stored)) {
            return f32::NAN;
        }
        let [low, high] = self.ends;
        self.rescaled(if self.inverted { low + high - stored } else { stored }) as f32
    }

    /// What the lowest and the highest that can be stored stand for, in order.
    fn range(&self) -> [f64; 2] {
        let [a, b] = self.ends.map(|end| self.rescaled(end));
        [a.min(b), a.max(b)]
    }
}

/// The image of a frame.
pub(super) fn raster(header: &Header, mut frame: Frame) -> Result<Raster> {
    let size = (header.width, header.height);
    let color = |bytes| Raster::picture(size, (3, false), Samples::U8(bytes));
    if let Some(palette) = &header.palette {
        let scale = Scale { padding: None, ..Scale::of(header, &frame) };
        let index = |bits: u32| scale.stored(bits >> scale.shift);
        return Ok(color(looked_up(palette, numbers(&frame).map(index), header.big)?));
    }
    let (channels, planar) = (header.samples, frame.planar && header.samples > 1);
    if frame.color == Color::Ybr {
        ensure!(header.is_8_bit(), "found YBR_FULL of other than 8 bits in the DICOM file, expected 8 or RGB");
        let bytes = rgb(&frame.bytes, planar);
        return Ok(Raster { planar, ..color(bytes) });
    }
    if header.is_8_bit() && frame.width == 1 {
        if frame.color == Color::Inverted {
            frame.bytes.to_mut().iter_mut().for_each(|byte| *byte = !*byte);
        }
        let samples = Samples::U8(frame.bytes.into_owned());
        return Ok(Raster { planar, ..Raster::picture(size, (channels, false), samples) });
    }
    let scale = Scale::of(header, &frame);
    let samples = Samples::F32(numbers(&frame).map(|bits| scale.value(bits)).collect());
    Ok(Raster { planar, full: Some(scale.range()), ..Raster::picture(size, (channels, false), samples) })
}

/// The samples as they are stored.
fn numbers<'a>(frame: &'a Frame) -> Box<dyn Iterator<Item = u32> + 'a> {
    let (bytes, big) = (&frame.bytes, frame.big);
    match frame.width {
        1 => Box::new(bytes.iter().map(|byte| u32::from(*byte))),
        2 if big => Box::new(bytes.as_chunks().0.iter().map(|bytes| u16::from_be_bytes(*bytes).into())),
        2 => Box::new(bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes).into())),
        _ if big => Box::new(bytes.as_chunks().0.iter().map(|bytes| u32::from_be_bytes(*bytes))),
        _ => Box::new(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes))),
    }
}

/// RGB of luma and chroma, as in the standard.
fn rgb(bytes: &[u8], planar: bool) -> Vec<u8> {
    let convert = |[y, cb, cr]: [u8; 3]| {
        let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
        let green = y - 0.114 * 1.772 / 0.587 * cb - 0.299 * 1.402 / 0.587 * cr;
        [y + 1.402 * cr, green, y + 1.772 * cb].map(|value| (value + 0.5).floor() as u8)
    };
    if !planar {
        return bytes.as_chunks().0.iter().flat_map(|pixel| convert(*pixel)).collect();
    }
    let count = bytes.len() / 3;
    let mut out = vec![0; bytes.len()];
    for at in 0..count {
        let places = [at, at + count, at + 2 * count];
        for (place, value) in places.into_iter().zip(convert(places.map(|place| bytes[place]))) {
            out[place] = value;
        }
    }
    out
}

/// The colors of samples; those outside the palette get its nearest end.
fn looked_up(palette: &Palette, samples: impl Iterator<Item = i64>, big: bool) -> Result<Vec<u8>> {
    let &Palette { first, count, bits, colors } = palette;
    let entry = |color: &[u8], at: usize| -> Option<u8> {
        if color.len() < 2 * count {
            return color.get(at).copied();
        }
        let pair = *color.as_chunks::<2>().0.get(at)?;
        let [low, high] = if big { [pair[1], pair[0]] } else { pair };
        Some(if bits == 16 { high } else { low })
    };
    let table: Option<Vec<[u8; 3]>> = (0..count)
        .map(|at| {
            let [red, green, blue] = colors.map(|color| entry(color, at));
            Some([red?, green?, blue?])
        })
        .collect();
    let table = table.context("found a palette that is too short in the DICOM file: it is damaged")?;
    let last = count as i64 - 1;
    Ok(samples.flat_map(|sample| table[(sample - first).clamp(0, last) as usize]).collect())
}
