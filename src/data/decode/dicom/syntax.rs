//! Transfer syntaxes: how a DICOM file's elements and pixels are written.

use anyhow::{Result, bail};

use super::elements::Encoding;

/// How pixels are compressed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Packing {
    None,
    Rle,
    Jpeg,
    Jpeg2000,
}

/// Those that are read.
const READ: &str = "uncompressed pixels, RLE, JPEG (8 bits or lossless), JPEG-LS in gray or JPEG 2000";

/// What decodes the others.
const GDCM: &str = "gdcmconv --raw FILE OUT.dcm";
const PYDICOM: &str = "decompress() and save_as() of Python's pydicom";
const VIDEO: &str = "gdcmraw FILE OUT.mpg and ffmpeg -i OUT.mpg OUT-%05d.png";

/// How elements are written, and how pixels are compressed.
/// # Errors
/// A syntax that is not read.
pub(super) fn of(uid: &str) -> Result<(Encoding, Packing)> {
    let explicit = Encoding { explicit: true, big: false };
    let (name, command) = match uid.strip_prefix("1.2.840.10008.1.2").unwrap_or("?") {
        "" => return Ok((Encoding { explicit: false, big: false }, Packing::None)),
        ".1" => return Ok((explicit, Packing::None)),
        ".2" => return Ok((Encoding { explicit: true, big: true }, Packing::None)),
        ".5" => return Ok((explicit, Packing::Rle)),
        ".4.50" | ".4.51" | ".4.53" | ".4.55" | ".4.57" | ".4.70" | ".4.80" | ".4.81" => {
            return Ok((explicit, Packing::Jpeg));
        }
        ".4.90" | ".4.91" | ".4.92" | ".4.93" => return Ok((explicit, Packing::Jpeg2000)),
        ".1.99" => ("deflated elements", GDCM),
        ".4.110" | ".4.111" | ".4.112" => ("JPEG XL", PYDICOM),
        ".4.201" | ".4.202" | ".4.203" => ("high-throughput JPEG 2000", PYDICOM),
        other if other.starts_with(".4.10") => ("a video", VIDEO),
        _ => ("an unknown transfer syntax", GDCM),
    };
    // It comes from the file.
    let uid: String = uid.chars().filter(|c| c.is_ascii_digit() || *c == '.').take(64).collect();
    bail!("found DICOM with {name} ({uid}), expected {READ}; convert it, for example with {command}")
}

/// The error for JPEGs of another kind.
pub(super) fn other_jpeg(kind: &str) -> anyhow::Error {
    anyhow::anyhow!("found DICOM with {kind}, expected {READ}; convert it, for example with {GDCM}")
}
