//! The one image type: bytes, rows top to bottom, no padding.

/// An image of bytes, `data[(y * width + x) * channels + channel]`; RGB unless the data set has other channels.
/// Decoders refill it in place, so a worker allocates only when an image is larger than all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Values of a pixel, at least 1.
    pub channels: usize,
    /// `width * height * channels` bytes.
    pub data: Vec<u8>,
}

/// Empty, RGB.
impl Default for Pixels {
    fn default() -> Self {
        Self { width: 0, height: 0, channels: 3, data: Vec::new() }
    }
}

impl Pixels {
    /// Sets the size of an RGB image and makes `data` that long; old bytes may remain in it.
    pub fn resize(&mut self, width: usize, height: usize) {
        self.reshape(width, height, 3);
    }

    /// The same for any number of channels.
    pub fn reshape(&mut self, width: usize, height: usize, channels: usize) {
        (self.width, self.height, self.channels) = (width, height, channels);
        self.data.resize(width * height * channels, 0);
    }
}
