//! Detects unsupported kinds of TIFF: many hold measurements rather than pictures, and the libraries' errors do not say
//! which kinds are supported.

use anyhow::{Error, Result, anyhow, ensure};

const SUPPORTED: &str = "gray, RGB, RGBA or CMYK of 8 or 16 bits";

/// The pixel format of a file's first image.
#[derive(Debug, PartialEq, Eq)]
struct Kind {
    bands: u32,
    bits: u32,
    /// 1 unsigned, 2 signed, 3 floating point, others are rare.
    sample_format: u32,
    /// 0 and 1 gray, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr.
    photometric: u32,
}

/// Fails for a BigTIFF, the variant for files over 4 GB.
pub(super) fn refuse_big(bytes: &[u8]) -> Result<()> {
    ensure!(
        !bytes.starts_with(b"II+\0") && !bytes.starts_with(b"MM\0+"),
        "found a BigTIFF, expected a plain TIFF of {SUPPORTED}; convert it, for example with gdal_translate -co \
         BIGTIFF=NO FILE OUT.tif"
    );
    Ok(())
}

/// The decoder's error, or a better one for an unsupported kind of TIFF.
pub(super) fn explain(bytes: &[u8], error: Error) -> Error {
    match Kind::read(bytes) {
        Some(kind) if !kind.is_supported() => kind.error(),
        _ => error,
    }
}

impl Kind {
    fn read(bytes: &[u8]) -> Option<Self> {
        let little = bytes.starts_with(b"II");
        let short = |at: usize| {
            let pair = *bytes.get(at..)?.first_chunk()?;
            Some(u32::from(if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }))
        };
        let long = |at: usize| {
            let four = *bytes.get(at..)?.first_chunk()?;
            Some(if little { u32::from_le_bytes(four) } else { u32::from_be_bytes(four) })
        };
        let mut kind = Self { bands: 1, bits: 1, sample_format: 1, photometric: 1 };
        let directory = long(4)? as usize;
        for entry in 0..short(directory)? as usize {
            let at = directory.checked_add(2 + 12 * entry)?;
            let (tag, kind_of_value, count) = (short(at)?, short(at + 2)?, long(at + 4)?);
            // The values themselves, or their offset if they take more than four bytes.
            let value = match (kind_of_value, count) {
                (3, ..=2) => short(at + 8)?,
                (3, _) => short(long(at + 8)? as usize)?,
                (4, 1) => long(at + 8)?,
                _ => continue,
            };
            match tag {
                258 => kind.bits = value,
                262 => kind.photometric = value,
                277 => kind.bands = value,
                339 => kind.sample_format = value,
                _ => {}
            }
        }
        Some(kind)
    }

    fn is_supported(&self) -> bool {
        let bands = match self.photometric {
            0 | 1 => self.bands == 1,
            2 | 6 => self.bands == 3 || self.bands == 4,
            5 => self.bands == 4,
            _ => false,
        };
        let float = self.photometric == 2 && (self.sample_format, self.bits) == (3, 32);
        bands && (self.sample_format == 1 && [1, 8, 16].contains(&self.bits) || float)
    }

    fn error(&self) -> Error {
        let Self { bands, bits, sample_format, photometric } = self;
        let values = match sample_format {
            2 => format!("signed {bits}-bit values"),
            3 => format!("{bits}-bit floating-point values"),
            _ => format!("{bits}-bit values"),
        };
        let (what, command) = match (photometric, bands) {
            (3, _) => ("with a palette".into(), "mogrify -format png FILE"),
            (_, 1) => (format!("of 1 band of {values}"), "gdal_translate -ot Byte -scale FILE OUT.tif"),
            (_, 2) => (format!("of 2 bands of {values}"), "gdal_translate -ot Byte -scale -b 1 FILE OUT.tif"),
            (_, bands) => (
                format!("of {bands} bands of {values}"),
                "gdal_translate -ot Byte -scale -b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB FILE OUT.tif",
            ),
        };
        anyhow!("found a TIFF {what}, expected {SUPPORTED}; convert it, for example with {command}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of 16-bit values at byte 8.
    fn tiff(entries: &[(u16, u16)], little: bool) -> Vec<u8> {
        let short = |value: u16| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let long = |value: u32| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let mut bytes = [&b"MM"[..], &b"II"[..]][little as usize].to_vec();
        bytes.extend([short(42).as_slice(), &long(8), &short(entries.len() as u16)].concat());
        for &(tag, value) in entries {
            bytes.extend([&short(tag)[..], &short(3), &long(1), &short(value), &[0, 0]].concat());
        }
        bytes
    }

    #[test]
    fn kinds_are_read_in_both_byte_orders() {
        for little in [true, false] {
            let bytes = tiff(&[(258, 32), (262, 1), (277, 12), (339, 3)], little);
            assert_eq!(Kind::read(&bytes), Some(Kind { bands: 12, bits: 32, sample_format: 3, photometric: 1 }));
            let text = explain(&bytes, anyhow!("the library's")).to_string();
            let start =
                "found a TIFF of 12 bands of 32-bit floating-point values, expected gray, RGB, RGBA or CMYK of 8";
            assert!(text.starts_with(start) && text.contains("-b 1 -b 2 -b 3"), "{text}");
            let whole = tiff(&[(258, 8), (262, 2), (277, 3)], little);
            assert_eq!(explain(&whole, anyhow!("the library's")).to_string(), "the library's");
            (0..bytes.len()).for_each(|end| {
                let _ = Kind::read(&bytes[..end]);
            });
        }
    }
}
