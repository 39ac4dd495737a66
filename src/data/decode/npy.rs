//! Arrays of numpy's `save`: height x width, and three axes in the order of `data.axes`.

use anyhow::{Context, Result, bail, ensure};

use super::raster::{Raster, Samples};
use crate::data::values::{Axes, MAX_CHANNELS};

const MAGIC: &[u8] = b"\x93NUMPY";

/// An array's header.
pub(super) struct Header<'a> {
    /// Such as `<u2`.
    kind: &'a str,
    shape: Vec<usize>,
    data: &'a [u8],
}

/// Whether these are the bytes of an array.
pub(super) fn is_npy(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

impl<'a> Header<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self> {
        let damaged = "the header of the npy file is damaged or truncated";
        let version = *bytes.get(MAGIC.len()).context(damaged)?;
        let rest = bytes.get(MAGIC.len() + 2..).context(damaged)?;
        let (length, rest) = match version {
            1 => rest.split_first_chunk::<2>().map(|(length, rest)| (u16::from_le_bytes(*length) as usize, rest)),
            _ => rest.split_first_chunk::<4>().map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest)),
        }
        .context(damaged)?;
        let (header, data) = rest.split_at_checked(length).context(damaged)?;
        let text = str::from_utf8(header).context(damaged)?;
        let value = |key: &str| text.split_once(key).map(|(_, rest)| rest.trim_start_matches([':', ' ']));
        let kind = value("'descr'").and_then(|rest| rest.strip_prefix('\'')?.split('\'').next());
        let kind = kind.context("found an npy file of records, expected numbers")?;
        let c_order = value("'fortran_order'").is_some_and(|rest| rest.starts_with("False"));
        ensure!(c_order, "found an npy file in Fortran order, expected C order; save numpy.ascontiguousarray(x)");
        let shape = value("'shape'").and_then(|rest| rest.strip_prefix('(')?.split(')').next()).context(damaged)?;
        let lengths = shape.split(',').map(str::trim).filter(|length| !length.is_empty());
        let shape = lengths.map(str::parse).collect::<Result<_, _>>().context(damaged)?;
        Ok(Self { kind, shape, data })
    }

    /// Whether it has bytes, not larger numbers.
    pub fn is_8_bit(&self) -> bool {
        self.kind.ends_with("u1")
    }

    /// Its type, such as `u2`.
    pub fn kind(&self) -> &str {
        self.kind.trim_start_matches(['<', '>', '|', '='])
    }

    /// Width, height and channels.
    pub fn size(&self, axes: Axes) -> Result<[usize; 3]> {
        let size = match (&self.shape[..], axes) {
            (&[height, width], _) => [width, height, 1],
            (&[height, width, channels], Axes::Hwc) | (&[channels, height, width], Axes::Chw) => {
                [width, height, channels]
            }
            (shape, _) => bail!("found an npy file of {} axes, expected 2 or 3 (data.axes)", shape.len()),
        };
        let [width, height, _] = size;
        ensure!(
            width.max(height) <= u32::MAX as usize,
            "found an npy file of shape {:?}, too large an image",
            self.shape
        );
        ensure!(
            (1..=MAX_CHANNELS).contains(&size[2]),
            "found an npy file of shape {:?}, which has {} channels, expected 1 to {MAX_CHANNELS}; set data.axes to the \
             order of its axes, hwc or chw",
            self.shape,
            size[2]
        );
        Ok(size)
    }

    /// The image.
    pub fn raster(&self, axes: Axes) -> Result<Raster> {
        let [width, height, channels] = self.size(axes)?;
        let count = width * height * channels;
        let big = self.kind.starts_with('>');
        macro_rules! numbers {
            ($kind:ty, $samples:path) => {{
                let found = self.data.as_chunks::<{ size_of::<$kind>() }>().0;
                ensure!(found.len() >= count, "found {} values, expected {count}: the file is truncated", found.len());
                let read = |bytes: &[u8; size_of::<$kind>()]| match big {
                    true => <$kind>::from_be_bytes(*bytes),
                    false => <$kind>::from_le_bytes(*bytes),
                };
                $samples(found[..count].iter().map(read).collect())
            }};
        }
        let samples = match self.kind() {
            "u1" => numbers!(u8, Samples::U8),
            "i1" => numbers!(i8, Samples::I8),
            "u2" => numbers!(u16, Samples::U16),
            "i2" => numbers!(i16, Samples::I16),
            "u4" => numbers!(u32, Samples::U32),
            "i4" => numbers!(i32, Samples::I32),
            "f4" => numbers!(f32, Samples::F32),
            "f8" => numbers!(f64, Samples::F64),
            other => bail!(
                "found an npy file of type {other}, expected u1, i1, u2, i2, u4, i4, f4 or f8; convert it with \
                 x.astype(\"float32\")"
            ),
        };
        let planar = axes == Axes::Chw && self.shape.len() == 3;
        Ok(Raster { width, height, channels, planar, alpha: false, picture: false, full: None, samples })
    }
}
