//! The one image type: 8-bit RGB, rows top to bottom, no padding.

/// An RGB image, `data[(y * width + x) * 3 + channel]`. Decoders refill it in place, so a worker
/// allocates only when an image is larger than all before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pixels {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width * height * 3` bytes.
    pub data: Vec<u8>,
}

impl Pixels {
    /// Sets the size and makes `data` that long; old bytes may remain in it.
    pub fn resize(&mut self, width: usize, height: usize) {
        self.width = width;
        self.height = height;
        self.data.resize(width * height * 3, 0);
    }
}
