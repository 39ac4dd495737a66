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
        ours: c_int,
    ) -> c_int;
    fn byol_jpeg_encode(
        pixels: *const c_uchar,
        shape: *const c_uint,
        quality: c_int,
        out: *mut *mut c_uchar,
        length: *mut c_ulong,
        message: *mut c_char,
    ) -> c_int;
    fn byol_jpeg_release(bytes: *mut c_uchar);
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
        self.decode_with(true, reduction, region, out)
    }

    /// With `ours`, `huffman.c` decodes the Huffman codes where it applies; the result is the same.
    fn decode_with(self, ours: bool, reduction: usize, region: [usize; 4], out: &mut Vec<u8>) -> Result<[usize; 4]> {
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
            let out = out.as_mut_ptr();
            byol_jpeg_decode(self.handle.as_ptr(), reduction as c_uint, region, out, length, c_int::from(ours))
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

/// libjpeg's `JMSG_LENGTH_MAX`, with room to spare.
const MESSAGE: usize = 512;

/// Encodes `width` x `height` pixels of `channels` bytes, 1 (gray) or 3 (RGB). From quality 90 on, chroma keeps its
/// resolution.
/// # Errors
/// Other numbers of channels; sides over 65500 pixels; no memory.
pub fn encode(pixels: &[u8], [width, height, channels]: [usize; 3], quality: u8) -> Result<Vec<u8>> {
    ensure!([1, 3].contains(&channels), "found {channels} channels, expected 1 or 3 for a jpeg");
    ensure!(pixels.len() == width * height * channels, "found {} bytes of pixels", pixels.len());
    ensure!((1..=65500).contains(&width) && (1..=65500).contains(&height), "found {width} x {height} pixels");
    let shape = [width, height, channels].map(|value| value as c_uint);
    let (mut out, mut length, mut message) = (std::ptr::null_mut(), 0, [0 as c_char; MESSAGE]);
    // SAFETY: `pixels` has as many bytes as `shape` says, checked above; the callee writes the two results and a message
    // of at most JMSG_LENGTH_MAX (200) bytes, with its NUL.
    let status = unsafe {
        let quality = c_int::from(quality.clamp(1, 100));
        byol_jpeg_encode(pixels.as_ptr(), shape.as_ptr(), quality, &mut out, &mut length, message.as_mut_ptr())
    };
    let bytes = match (status, out.is_null()) {
        // SAFETY: on success `out` is `length` bytes from malloc, ours until they are released.
        (0, false) => Ok(unsafe { std::slice::from_raw_parts(out, length as usize) }.to_vec()),
        // SAFETY: NUL-terminated, as it was zeroed and is longer than the longest message.
        _ => Err(unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned()),
    };
    // SAFETY: null or from malloc, released once.
    unsafe { byol_jpeg_release(out) };
    bytes.map_err(|message| anyhow::anyhow!("cannot encode the jpeg: {message}"))
}

fn check(handle: NonNull<Handle>, status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the message is NUL-terminated and part of the object, which does not change meanwhile.
    let message = unsafe { CStr::from_ptr(byol_jpeg_message(handle.as_ptr())) }.to_string_lossy().into_owned();
    bail!("{message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn byol_jpeg_is_ours(jpeg: *const Handle) -> c_int;
    }

    type Decoded = Result<([usize; 4], Vec<u8>), String>;

    /// Decodes `region`, in percent of the image, with our Huffman decoder or the library's. The second result tells
    /// whether ours decoded it to the end.
    fn decode(bytes: &[u8], reduction: usize, region: [usize; 4], ours: bool) -> (Decoded, bool) {
        let mut decoder = Decoder::new(50).unwrap();
        let decoded = decoder.open(bytes).and_then(|opened| {
            let [width, height] = [opened.width, opened.height].map(|side| side.div_ceil(reduction));
            let [left, top] = [width * region[0] / 100, height * region[1] / 100];
            let [wide, high] = [width * region[2] / 100, height * region[3] / 100].map(|side| side.max(1));
            let region = [left, top, wide.min(width - left), high.min(height - top)];
            let mut out = Vec::new();
            opened.decode_with(ours, reduction, region, &mut out).map(|decoded| (decoded, out))
        });
        // SAFETY: the handle lives as long as the decoder.
        let ours = unsafe { byol_jpeg_is_ours(decoder.0.as_ptr()) } != 0;
        (decoded.map_err(|e| e.to_string()), ours)
    }

    fn fixtures() -> Vec<(String, Vec<u8>)> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/data/images");
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let jpegs = paths.filter(|path| path.extension().is_some_and(|e| e == "jpg"));
        let named = jpegs.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path));
        named.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
    }

    #[test]
    fn our_huffman_decoder_finds_the_library_s_pixels() {
        for (name, bytes) in fixtures() {
            let library_s = name.contains("progressive");
            for reduction in [1, 2, 4, 8] {
                for region in [[0, 0, 100, 100], [0, 55, 100, 30], [40, 0, 20, 100], [30, 30, 50, 60]] {
                    let what = format!("{name} at 1/{reduction}, {region:?}");
                    let (found, ours) = decode(&bytes, reduction, region, true);
                    assert_eq!(found, decode(&bytes, reduction, region, false).0, "{what}");
                    assert_eq!(ours, !library_s, "{what}");
                }
            }
        }
    }

    #[test]
    fn coefficients_of_all_sizes_and_codes_of_all_lengths_are_found() {
        let mut random = std::iter::successors(Some(1_u64), |x| Some(x.wrapping_mul(0x5851_f42d_4c95_7f2d) + 1));
        let mut noise = |spread: u64| (random.next().unwrap() >> 33) % spread;
        for (quality, spread) in [(1, 256), (50, 40), (92, 256), (100, 256), (100, 3), (75, 1)] {
            for channels in [1, 3] {
                let pixels =
                    (0..200 * 120 * channels).map(|i| ((i / 7 % 100) as u64 / 2 + noise(spread)).min(255) as u8);
                let bytes = encode(&pixels.collect::<Vec<_>>(), [200, 120, channels], quality).unwrap();
                let (found, ours) = decode(&bytes, 1, [0, 0, 100, 100], true);
                assert!(ours, "quality {quality}");
                assert_eq!(found, decode(&bytes, 1, [0, 0, 100, 100], false).0, "quality {quality}");
            }
        }
    }

    #[test]
    fn damaged_data_become_what_the_library_makes_of_them() {
        let mut random = std::iter::successors(Some(7_u64), |x| Some(x.wrapping_mul(0x5851_f42d_4c95_7f2d) + 1));
        let mut below = |end: usize| (random.next().unwrap() >> 33) as usize % end;
        let (mut ours, mut library_s) = (0, 0);
        for (name, bytes) in fixtures().iter().filter(|(name, _)| name.starts_with("large")) {
            for round in 0..1000 {
                let mut damaged = bytes.clone();
                for _ in 0..=round % 3 {
                    let at = below(damaged.len());
                    damaged[at] = [0xff, 0xd3, 0, below(256) as u8][below(4)];
                }
                damaged.truncate(if round % 4 == 0 { below(bytes.len()) } else { bytes.len() });
                let region = [below(50), below(50), 50, 50];
                let (found, by_us) = decode(&damaged, 1 << (round % 4), region, true);
                assert_eq!(found, decode(&damaged, 1 << (round % 4), region, false).0, "{name}, round {round}");
                *(if by_us { &mut ours } else { &mut library_s }) += 1;
            }
        }
        assert!(ours > 50 && library_s > 50, "found {ours} by our decoder, {library_s} by the library");
    }
}
