//! Image formats that are not supported: their names, and the commands that convert them.

use anyhow::{Error, anyhow};

/// An unsupported image format.
pub(in crate::data) struct Unsupported {
    /// Its usual name.
    pub name: &'static str,
    /// File name extensions in lower case.
    endings: &'static [&'static str],
    /// Command of a common tool that converts the files given after it.
    pub command: &'static str,
}

const HEIC: Unsupported =
    Unsupported { name: "HEIC", endings: &["heic", "heif", "hif"], command: "mogrify -format jpg" };
const AVIF: Unsupported = Unsupported { name: "AVIF", endings: &["avif"], command: "mogrify -format jpg" };
const JPEG_XL: Unsupported = Unsupported { name: "JPEG XL", endings: &["jxl"], command: "mogrify -format png" };
/// libraw's tool, which writes 8-bit TIFFs.
const RAW: Unsupported = Unsupported {
    name: "camera raw",
    endings: &[
        "3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "iiq", "kdc", "mrw", "nef", "nrw", "orf", "pef", "raf", "raw",
        "rw2", "rwl", "sr2", "srf", "srw", "x3f",
    ],
    command: "dcraw_emu -w -T",
};
const OTHER: Unsupported = Unsupported {
    name: "not supported",
    endings: &["dds", "exr", "hdr", "ico", "jph", "jpm", "pam", "pcx", "pfm", "psd", "svg", "tga", "xcf"],
    command: "mogrify -format png",
};

/// The format of a file name extension, in lower case and without its dot.
pub(in crate::data) fn of_ending(ending: &str) -> Option<&'static Unsupported> {
    static ALL: [Unsupported; 5] = [HEIC, AVIF, JPEG_XL, RAW, OTHER];
    ALL.iter().find(|kind| kind.endings.contains(&ending))
}

fn of_bytes(bytes: &[u8]) -> Option<Unsupported> {
    let brand = bytes.get(8..12).filter(|_| bytes.get(4..8) == Some(b"ftyp"));
    match (bytes, brand) {
        (_, Some(b"avif" | b"avis")) => Some(AVIF),
        (_, Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1")) => Some(HEIC),
        (_, Some(b"crx ")) => Some(RAW),
        ([0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] | [0xff, 0x0a, ..], _) => Some(JPEG_XL),
        _ => None,
    }
}

/// The start of the pointer files in a repository cloned without Git LFS.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The error for such a file.
pub(in crate::data) fn lfs_pointer(bytes: &[u8]) -> Option<Error> {
    bytes.starts_with(LFS_POINTER).then(|| anyhow!("found a Git LFS pointer in place of the file: run git lfs pull"))
}

/// The error for bytes that no decoder supports.
pub(super) fn error(bytes: &[u8]) -> Error {
    let expected = "expected JPEG, PNG, WebP, BMP, GIF, TIFF, JPEG 2000, PNM, QOI, npy or DICOM";
    if let Some(error) = lfs_pointer(bytes) {
        return error;
    }
    match of_bytes(bytes) {
        Some(Unsupported { name, command, .. }) => {
            anyhow!("found {name}, {expected}; convert it, for example with {command} FILE")
        }
        None => anyhow!("found an unknown file type, {expected}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_formats_are_named_by_their_first_bytes() {
        for (bytes, start) in [
            (&b"\0\0\0\x18ftypheic\0\0\0\0"[..], "found HEIC, expected JPEG, PNG"),
            (b"\0\0\0\x1cftypavif\0\0\0\0", "found AVIF, "),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "found JPEG XL, "),
            (b"version https://git-lfs.github.com/spec/v1\noid", "found a Git LFS pointer in place of the file"),
            (b"hello", "found an unknown file type, expected JPEG"),
        ] {
            let text = error(bytes).to_string();
            assert!(text.starts_with(start), "{text}");
        }
        assert!(error(b"\0\0\0\x18ftypheic").to_string().ends_with("for example with mogrify -format jpg FILE"));
        assert_eq!(of_ending("nef").map(|kind| kind.command), Some("dcraw_emu -w -T"));
        assert!(of_ending("jpg").is_none() && of_ending("").is_none());
    }
}
