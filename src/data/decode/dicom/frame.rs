//! The samples of a DICOM file's first frame, unpacked but not yet rescaled.

use std::borrow::Cow;

use super::header::Color;

/// Samples as they are stored.
pub(super) struct Frame<'a> {
    pub bytes: Cow<'a, [u8]>,
    /// Of a sample: 1, 2 or 4.
    pub width: usize,
    pub big: bool,
    /// One channel after the other.
    pub planar: bool,
    /// RGB or YBR, whatever the header says: what a JPEG becomes.
    pub color: Color,
}
