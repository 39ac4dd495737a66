//! An image as it is stored, with any number of channels of any type, and what becomes of it as bytes.

use anyhow::{Result, bail};

use crate::data::values::Values;
use crate::pixels::Pixels;

/// The types that samples have.
pub(in crate::data) use tiff::decoder::DecodingResult as Samples;

/// An image as it is stored.
pub(in crate::data) struct Raster {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    /// One channel after the other; otherwise all channels of a pixel together.
    pub planar: bool,
    /// The last channel is alpha.
    pub alpha: bool,
    /// From a format that holds nothing but gray or RGB, with alpha or without.
    pub picture: bool,
    /// The whole range of values, where the type of the samples does not tell.
    pub full: Option<[f64; 2]>,
    pub samples: Samples,
}

/// What a channel is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::data) enum Pick {
    /// This channel of the file.
    Channel(usize),
    /// The luma of red, green and blue.
    Luma,
    /// The alpha of an image without.
    Opaque,
}

/// Matches the type of samples.
macro_rules! with_samples {
    ($samples:expr, $values:ident => $work:expr) => {
        match $samples {
            Samples::U8($values) => $work,
            Samples::U16($values) => $work,
            Samples::U32($values) => $work,
            Samples::U64($values) => $work,
            Samples::F16(halves) => {
                let $values = &halves.iter().map(|half| half.to_f32()).collect::<Vec<f32>>();
                $work
            }
            Samples::F32($values) => $work,
            Samples::F64($values) => $work,
            Samples::I8($values) => $work,
            Samples::I16($values) => $work,
            Samples::I32($values) => $work,
            Samples::I64($values) => $work,
        }
    };
}

/// A number that a file may hold.
trait Sample: Copy {
    /// The ends of its range, those that become 0 and 255.
    const FULL: Scale;

    fn value(self) -> f64;
}

/// How values become bytes: `(value - low) * factor + round`, truncated. Others than `low` to `high` are clipped.
#[derive(Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    factor: f64,
    round: f64,
}

macro_rules! sample {
    ($($kind:ty: $low:expr, $high:expr, $factor:expr, $round:expr;)*) => {
        // A cast is none for one of the types.
        $(#[allow(clippy::unnecessary_cast)]
        impl Sample for $kind {
            const FULL: Scale = Scale { low: $low as f64, high: $high as f64, factor: $factor, round: $round };

            #[inline(always)]
            fn value(self) -> f64 {
                self as f64
            }
        })*
    };
}

// Of integers the highest byte.
sample! {
    u8: u8::MIN, u8::MAX, 1.0, 0.0;
    u16: u16::MIN, u16::MAX, 1.0 / 256.0, 0.0;
    u32: u32::MIN, u32::MAX, 1.0 / 16_777_216.0, 0.0;
    u64: u64::MIN, u64::MAX, 1.0 / 72_057_594_037_927_936.0, 0.0;
    i8: i8::MIN, i8::MAX, 1.0, 0.0;
    i16: i16::MIN, i16::MAX, 1.0 / 256.0, 0.0;
    i32: i32::MIN, i32::MAX, 1.0 / 16_777_216.0, 0.0;
    i64: i64::MIN, i64::MAX, 1.0 / 72_057_594_037_927_936.0, 0.0;
    f32: 0f32, 1f32, 255.0, 0.5;
    f64: 0f32, 1f32, 255.0, 0.5;
}

impl Scale {
    fn new([low, high]: [f64; 2]) -> Self {
        Self { low, high, factor: 255.0 / (high - low), round: 0.5 }
    }

    /// Not a number becomes 0.
    #[inline(always)]
    fn byte(self, value: f64) -> u8 {
        ((value - self.low) * self.factor + self.round) as u8
    }
}

/// A channel's samples in a list: the first and the distance to the next.
#[derive(Clone, Copy)]
struct Steps {
    pixel: usize,
    channel: usize,
}

impl Raster {
    /// Of a format that holds nothing but gray or RGB; `channels` is their number, and whether the last is alpha.
    pub fn picture((width, height): (usize, usize), (channels, alpha): (usize, bool), samples: Samples) -> Self {
        Self { width, height, channels, planar: false, alpha, picture: true, full: None, samples }
    }

    /// What each of `channels` channels is made of.
    /// # Errors
    /// An image of this many channels has no meaning as one of so many.
    pub fn picks(&self, channels: usize) -> Result<Vec<Pick>> {
        use Pick::{Channel, Luma, Opaque};
        Ok(match (self.channels, self.alpha, channels) {
            (found, _, wanted) if found == wanted => (0..found).map(Channel).collect(),
            (1, false, 3) | (2, true, 3) => vec![Channel(0); 3],
            (4, true, 3) => (0..3).map(Channel).collect(),
            (2, true, 1) => vec![Channel(0)],
            (3, false, 1) | (4, true, 1) => vec![Luma],
            (2, true, 4) => [0, 0, 0, 1].map(Channel).to_vec(),
            (1, false, 4) if self.picture => vec![Channel(0), Channel(0), Channel(0), Opaque],
            (3, false, 4) if self.picture => vec![Channel(0), Channel(1), Channel(2), Opaque],
            (1, false, 2) if self.picture => vec![Channel(0), Opaque],
            (found, _, wanted) => {
                let plural = if found == 1 { "" } else { "s" };
                bail!("found an image of {found} channel{plural}, expected {wanted} (data.channels)")
            }
        })
    }

    /// Passes the values of `picks` at every `step`-th pixel to `see`, with the number of the pick.
    pub fn sample(&self, picks: &[Pick], step: usize, mut see: impl FnMut(usize, f64)) {
        let steps = self.steps();
        with_samples!(&self.samples, values => {
            for (at, &pick) in picks.iter().enumerate() {
                each(values, steps, pick, step, |value| see(at, value));
            }
        });
    }

    /// Makes bytes of it in `out`, as `values` says; returns how many values were clipped.
    /// # Errors
    /// Another number of channels than wanted.
    pub fn fill(&self, values: &Values, out: &mut Pixels) -> Result<u64> {
        let picks = self.picks(values.channels)?;
        out.reshape(self.width, self.height, values.channels);
        let steps = self.steps();
        let mut clipped = 0;
        with_samples!(&self.samples, samples => {
            for (at, &pick) in picks.iter().enumerate() {
                let scale = match (values.range.of(at), pick) {
                    (Some(range), Pick::Channel(_) | Pick::Luma) => Scale::new(range),
                    (None, Pick::Channel(_) | Pick::Luma) => self.full.map_or(full(samples), Scale::new),
                    _ => full(samples),
                };
                let mut targets = out.data[at..].iter_mut().step_by(values.channels);
                each(samples, steps, pick, 1, |value| {
                    clipped += u64::from(!(scale.low..=scale.high).contains(&value));
                    targets.next().into_iter().for_each(|target| *target = scale.byte(value));
                });
                if pick == Pick::Opaque {
                    targets.for_each(|target| *target = 255);
                }
            }
        });
        Ok(clipped)
    }

    fn steps(&self) -> Steps {
        match self.planar || self.channels == 1 {
            true => Steps { pixel: 1, channel: self.width * self.height },
            false => Steps { pixel: self.channels, channel: 1 },
        }
    }
}

fn full<T: Sample>(_: &[T]) -> Scale {
    T::FULL
}

/// Passes a channel's value at every `every`-th pixel to `see`.
#[inline(always)]
fn each<T: Sample>(samples: &[T], steps: Steps, pick: Pick, every: usize, mut see: impl FnMut(f64)) {
    let channel = |channel: usize| {
        let end = if steps.pixel == 1 { (channel + 1) * steps.channel } else { samples.len() };
        samples[channel * steps.channel..end.min(samples.len())].iter().step_by(steps.pixel * every)
    };
    match pick {
        Pick::Channel(at) => channel(at).for_each(|value| see(value.value())),
        Pick::Opaque => {}
        Pick::Luma => {
            for ((red, green), blue) in channel(0).zip(channel(1)).zip(channel(2)) {
                see(luma([red.value(), green.value(), blue.value()], T::FULL.high > 255.0 || T::FULL.high == 1.0));
            }
        }
    }
}

/// ITU-R 601 luma as Pillow computes it, rounded to a whole number unless `exact`.
fn luma([red, green, blue]: [f64; 3], exact: bool) -> f64 {
    let luma = red * 19595.0 + green * 38470.0 + blue * 7471.0;
    if exact { luma / 65536.0 } else { ((luma + 32768.0) / 65536.0).floor() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::values::{Axes, ValueRange};

    fn raster(channels: usize, alpha: bool, samples: Samples) -> Raster {
        Raster { width: 2, height: 1, channels, planar: false, alpha, picture: true, full: None, samples }
    }

    fn bytes(raster: &Raster, channels: usize, range: ValueRange) -> (Vec<u8>, u64) {
        let mut out = Pixels::default();
        let clipped = raster.fill(&Values { channels, range, axes: Axes::Hwc }, &mut out).expect("it fits");
        assert_eq!((out.width, out.height, out.channels), (2, 1, channels));
        (out.data, clipped)
    }

    #[test]
    fn the_whole_range_of_a_type_is_its_highest_byte_and_of_floats_0_to_1() {
        let found = |samples| bytes(&raster(1, false, samples), 1, ValueRange::Full);
        assert_eq!(found(Samples::U8(vec![0, 255])).0, [0, 255]);
        assert_eq!(found(Samples::U16(vec![0x12ff, 0xff00])).0, [0x12, 0xff]);
        assert_eq!(found(Samples::I16(vec![-32768, 0])).0, [0, 128]);
        assert_eq!(found(Samples::U32(vec![0x8123_4567, u32::MAX])).0, [0x81, 255]);
        assert_eq!(found(Samples::F32(vec![0.5, 1.5])), (vec![128, 255], 1));
        assert_eq!(found(Samples::F64(vec![f64::NAN, -1.0])), (vec![0, 0], 2));
    }

    #[test]
    fn a_range_becomes_0_to_255_and_what_lies_outside_is_counted() {
        let twelve = raster(2, false, Samples::U16(vec![0, 100, 4095, 5000]));
        let (found, clipped) = bytes(&twelve, 2, ValueRange::All([0.0, 4095.0]));
        assert_eq!((found, clipped), (vec![0, 6, 255, 255], 1));
        let (found, clipped) = bytes(&twelve, 2, ValueRange::Each(vec![[0.0, 4095.0], [100.0, 10100.0]]));
        assert_eq!((found, clipped), (vec![0, 0, 255, 125], 0));
        let planar = Raster { planar: true, ..raster(2, false, Samples::I16(vec![-1000, 2048, 7, 8])) };
        let (found, _) = bytes(&planar, 2, ValueRange::Each(vec![[-1000.0, 2048.0], [7.0, 8.0]]));
        assert_eq!(found, [0, 0, 255, 255]);
    }

    #[test]
    fn channels_are_repeated_dropped_or_mixed_as_in_pillow() {
        let rgba = raster(4, true, Samples::U8(vec![51, 102, 153, 9, 0, 255, 0, 8]));
        let gray = raster(1, false, Samples::U8(vec![3, 4]));
        let made = |raster: &Raster, channels| bytes(raster, channels, ValueRange::Full).0;
        assert_eq!(made(&rgba, 3), [51, 102, 153, 0, 255, 0]);
        assert_eq!(made(&rgba, 4), [51, 102, 153, 9, 0, 255, 0, 8]);
        assert_eq!(made(&rgba, 1), [93, 150]); // Image.convert("L")
        assert_eq!(made(&gray, 3), [3, 3, 3, 4, 4, 4]);
        assert_eq!(made(&gray, 4), [3, 3, 3, 255, 4, 4, 4, 255]);
        let bands = Raster { picture: false, ..raster(1, false, Samples::U8(vec![3, 4])) };
        let error = bands.picks(4).unwrap_err().to_string();
        assert_eq!(error, "found an image of 1 channel, expected 4 (data.channels)");
    }
}
