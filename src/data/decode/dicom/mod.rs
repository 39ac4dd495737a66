//! DICOM files of CT, MR, X-ray, ultrasound and so on: the first frame, as the values that it stands for (rescaled, for
//! example to Hounsfield units) or as color. What a viewer's window would show of them is not applied:
//! `data.value_range` says that for all images alike.
//!
//! The elements are read here rather than by a library: these build sequences recursively and allocate what a length
//! says, so that a damaged file of some kilobytes could end the process.

use anyhow::Result;

use super::raster::Raster;
use super::{DecodeOptions, ensure_pixels};
use header::Header;

mod elements;
mod frame;
mod header;
mod jpegs;
mod rle;
mod samples;
pub(super) mod single;
mod stored;
mod syntax;

pub(in crate::data) use header::is_dicom;

/// Channels, and the type of the samples.
pub(super) fn look(bytes: &[u8]) -> Result<(usize, &'static str)> {
    let header = Header::read(bytes)?;
    Ok((header.channels(), if header.is_8_bit() { "u8" } else { "DICOM" }))
}

/// The first frame.
pub(super) fn raster(bytes: &[u8], options: DecodeOptions) -> Result<Raster> {
    let header = Header::read(bytes)?;
    ensure_pixels(header.width, header.height, options)?;
    samples::raster(&header, stored::first(&header, options)?)
}
