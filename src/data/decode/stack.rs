//! Files of several images: their number, and one of them as a file of its own, for `data.frames: all`.

use std::path::Path;

use anyhow::Result;

use super::source::Source;
use super::{DecodeOptions, caught, concise, dicom, pages, with_read};
use crate::files;

/// Number of images in a file: the frames of DICOM, the pages of TIFF, 1 for others.
/// # Errors
/// It has fewer than it says.
pub(in crate::data) fn frames_of(path: &Path, options: DecodeOptions) -> Result<usize> {
    let count = || {
        let file = files::open_regular(path)?;
        let source = Source::open(&file, options)?;
        match source.start(132)? {
            start if dicom::is_dicom(&start) => dicom::single::count(&source),
            start if pages::is_tiff(&start) => pages::count(&source),
            _ => Ok(1),
        }
    };
    caught(count).map_err(concise)
}

/// Has `work` done with a file of one image of several.
pub(in crate::data) fn with_frame_of(
    path: &Path,
    frame: usize,
    options: DecodeOptions,
    work: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    with_read(work, |encoded| {
        let file = files::open_regular(path)?;
        let source = Source::open(&file, options)?;
        let read = if pages::is_tiff(&source.start(4)?) { pages::read } else { dicom::single::read };
        caught(|| read(&source, frame, encoded)).map_err(concise)
    })
}
