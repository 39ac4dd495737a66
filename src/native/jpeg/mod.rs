//! The Rust side of `jpeg.c`: libjpeg-turbo as Pillow uses it, with the accurate DCT and fancy chroma upsampling.
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulong};
use std::marker::PhantomData;
use std::ptr::NonNull;

use anyhow::{Context, Result, bail, ensure};
// Only its build script is used: it compiles and links the library.
use turbojpeg_sys as _;

#[repr(C)]
struct Handle {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn byol_jpeg_new(most_scans: c_int) -> *mut Handle;
    fn byol_jpeg_free(jpeg: *mut Handle);
    fn byol_jpeg_message(jpeg: *const Handle) -> *const c_char;
    fn byol_jpeg_open(jpeg: *mut Handle, bytes: *const c_uchar, length: c_ulong, shape: *mut c_uint) -> c_int;
    fn byol_jpeg_decode(
        jpeg: *mut Handle,
        reduction: c_uint,
        region: *mut c_uint,
        out: *mut c_uchar,
        capacity: c_ulong,
    ) -> c_int;
}

const MAX_ADDED: usize = 4 + 31 + 4;

/// A decoder, to be used for one image after another.
pub struct Decoder(NonNull<Handle>);

/// An image whose header has been read.
pub struct Opened<'a> {
    handle: NonNull<Handle>,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// As stored in the file.
    pub channels: usize,
    borrowed: PhantomData<(&'a mut Decoder, &'a [u8])>,
}

impl Decoder {
    /// Each scan of a progressive image costs a pass over all its pixels: images with more than `most_scans` are
    /// refused.
    pub fn new(most_scans: u16) -> Result<Self> {
        // SAFETY: a plain integer in, a pointer or null out.
        let handle = NonNull::new(unsafe { byol_jpeg_new(most_scans.into()) });
        Ok(Self(handle.context("no memory for a jpeg decoder")?))
    }

    /// Reads the header.
    pub fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Opened<'a>> {
        let mut shape = [0; 3];
        // SAFETY: the handle is ours alone; the bytes stay borrowed as long as the image that may read them; `shape`
        // has room for three.
        check(self.0, unsafe {
            byol_jpeg_open(self.0.as_ptr(), bytes.as_ptr(), bytes.len() as c_ulong, shape.as_mut_ptr())
        })?;
        let [width, height, channels] = shape.map(|value| value as usize);
        Ok(Opened { handle: self.0, width, height, channels, borrowed: PhantomData })
    }
}

impl Opened<'_> {
    /// Bytes per decoded pixel: red, green, blue, or, for four stored channels, cyan, magenta, yellow, black.
    pub fn pixel_bytes(&self) -> usize {
        if self.channels == 4 { 4 } else { 3 }
    }

    /// Decodes `region` (left, top, width, height) of the image at 1/`reduction` of its size, sides rounded up, into
    /// `out`. It may decode more columns: returns the region that `out` then holds, row by row. Within `region` the
    /// pixels of a sequential image equal those of the whole image, and whether it fails does not depend on the
    /// region's columns. Warnings about damaged data are ignored.
    pub fn decode(self, reduction: usize, region: [usize; 4], out: &mut Vec<u8>) -> Result<[usize; 4]> {
        ensure!([1, 2, 4, 8].contains(&reduction), "found 1/{reduction} of the size, expected 1, 1/2, 1/4 or 1/8");
        let [left, top, width, height] = region;
        let (most_width, most_height) = (self.width.div_ceil(reduction), self.height.div_ceil(reduction));
        ensure!(
            width > 0 && height > 0 && left + width <= most_width && top + height <= most_height,
            "found a region {region:?} of {most_width} x {most_height} pixels, expected a part of them"
        );
        // Room for the columns that the decoder may add: a margin, up to the next MCU boundary.
        let most = most_width.min(width + MAX_ADDED);
        out.resize(most * height * self.pixel_bytes(), 0);
        let mut decoded = region.map(|value| value as c_uint);
        // SAFETY: the handle and the bytes given to `open` are still borrowed; `decoded` has four values; the callee
        // writes at most the capacity that is passed.
        check(self.handle, unsafe {
            let (region, length) = (decoded.as_mut_ptr(), out.len() as c_ulong);
            byol_jpeg_decode(self.handle.as_ptr(), reduction as c_uint, region, out.as_mut_ptr(), length)
        })?;
        let decoded = decoded.map(|value| value as usize);
        out.truncate(decoded[2] * height * self.pixel_bytes());
        Ok(decoded)
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: made by `byol_jpeg_new`, not used after this.
        unsafe { byol_jpeg_free(self.0.as_ptr()) }
    }
}

fn check(handle: NonNull<Handle>, status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the message is NUL-terminated and part of the object, which does not change meanwhile.
    let message = unsafe { CStr::from_ptr(byol_jpeg_message(handle.as_ptr())) }.to_string_lossy().into_owned();
    bail!("{message}")
}
