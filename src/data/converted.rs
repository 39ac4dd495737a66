//! A data set whose images get other channels or another range of values than those of 8-bit RGB.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

use super::decode::raster::{Raster, Samples};
use super::decode::{DecodeOptions, decode_values};
use super::values::{ValueRange, Values};
use super::{DataConfig, Dataset, PartFor};
use crate::augment::Part;
use crate::pixels::Pixels;

struct Converted {
    inner: Arc<dyn Dataset>,
    options: DecodeOptions,
    values: Values,
    clipped: AtomicU64,
    all: AtomicU64,
}

/// The set as `data.channels` and `data.value_range` say: the same one for 8-bit RGB, also where they are still `auto`.
pub fn converted(inner: Arc<dyn Dataset>, config: &DataConfig) -> Arc<dyn Dataset> {
    let mut values = config.values();
    if values.range == ValueRange::Auto {
        values.range = ValueRange::Full;
    }
    if values == Values::default() {
        return inner;
    }
    let (options, clipped, all) = (config.decode_options(), AtomicU64::new(0), AtomicU64::new(0));
    Arc::new(Converted { inner, options, values, clipped, all })
}

impl Converted {
    /// Of images that a set has as pixels.
    fn load_pixels(&self, index: usize, want: &mut PartFor, out: &mut Pixels) -> Result<(Part, u64)> {
        self.inner.load(index, out)?;
        let (size, channels) = ((out.width, out.height), out.channels);
        let raster = Raster::picture(size, (channels, false), Samples::U8(std::mem::take(&mut out.data)));
        let clipped = raster.fill(&self.values, out)?;
        want(out.width, out.height);
        Ok((Part::whole(out.width, out.height), clipped))
    }
}

impl Dataset for Converted {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn label(&self, index: usize) -> Option<i64> {
        self.inner.label(index)
    }

    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }

    fn class_names(&self) -> Vec<String> {
        self.inner.class_names()
    }

    fn load(&self, index: usize, out: &mut Pixels) -> Result<()> {
        self.load_part(index, &mut Part::whole, out).map(drop)
    }

    fn load_part(&self, index: usize, want: &mut PartFor, out: &mut Pixels) -> Result<Part> {
        let mut made = None;
        let encoded = self.inner.with_encoded(index, &mut |bytes| {
            made = Some(decode_values(bytes, self.options, &self.values, want, out)?);
            Ok(())
        })?;
        let (part, clipped) = match encoded {
            true => made.context("found no encoded image")?,
            false => self.load_pixels(index, want, out)?,
        };
        self.clipped.fetch_add(clipped, Ordering::Relaxed);
        self.all.fetch_add(out.data.len() as u64, Ordering::Relaxed);
        Ok(part)
    }

    fn with_encoded(&self, index: usize, work: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        self.inner.with_encoded(index, work)
    }

    fn clipped(&self) -> [u64; 2] {
        [&self.clipped, &self.all].map(|count| count.load(Ordering::Relaxed))
    }

    fn describe(&self, index: usize) -> String {
        self.inner.describe(index)
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
}
