//! Which files are images, and which folders belong to the system, by their names.

use std::io::Read;
use std::path::Path;

use crate::data::decode::dicom::is_dicom;
use crate::files;

/// File name extensions of supported images, in lower case.
pub(super) const IMAGE_ENDINGS: [&str; 25] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "qoi", "npy",
    "dcm", "dicom", "ima", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx",
];

/// Folders that file managers, storage devices and archive tools create, in lower case.
const SYSTEM_FOLDERS: [&str; 8] = [
    "@eadir",
    "__macosx",
    "lost+found",
    "$recycle.bin",
    "system volume information",
    "#recycle",
    "@recycle",
    "__pycache__",
];

/// The extension of a file name in lower case, without the dot; empty if it has none.
pub(in crate::data) fn ending(path: &Path) -> String {
    path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// Whether a file is an image, by its name.
pub(in crate::data) fn is_image_name(path: &Path) -> bool {
    IMAGE_ENDINGS.contains(&ending(path).as_str())
}

/// Whether a file is an image, by its name, or by its first bytes where the name says nothing: scanners and hospitals
/// write DICOM files without an ending, or named by numbers with dots.
pub(super) fn is_image(path: &Path) -> bool {
    is_image_name(path) || is_unnamed(path) && has_dicom_mark(path)
}

/// Whether a file may hold several images, by its name.
pub(super) fn has_frames_name(path: &Path) -> bool {
    !is_image_name(path) || ["dcm", "dicom", "ima", "tif", "tiff"].contains(&ending(path).as_str())
}

fn is_unnamed(path: &Path) -> bool {
    // The list of the files on a medium.
    let index = path.file_name().is_some_and(|name| name.eq_ignore_ascii_case("dicomdir"));
    !index && ending(path).bytes().all(|byte| byte.is_ascii_digit())
}

fn has_dicom_mark(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = files::open_regular(path).map(|file| file.take(132).read_to_end(&mut start));
    matches!(read, Ok(Ok(_))) && is_dicom(&start)
}

/// Whether a file is an array of numbers, by its name: an image, unless it lies beside pictures.
pub(super) fn is_array_name(path: &Path) -> bool {
    ending(path) == "npy"
}

/// Whether a file or folder is hidden or belongs to the system, such as `.thumbnails`, and those of [`SYSTEM_FOLDERS`].
pub(super) fn is_skipped(name: &Path) -> bool {
    let text = name.to_string_lossy();
    text.starts_with('.') || SYSTEM_FOLDERS.contains(&text.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dicom_files_without_an_ending_show_in_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let dicom = [&[0; 128][..], b"DICM", &[2, 0]].concat();
        for (name, bytes, expected) in [
            ("IM000001", &dicom[..], true),
            ("1.2.840.113619.2.55", &dicom, true),
            ("IM000002", &dicom[..131], false),
            ("README", b"text", false),
            ("DICOMDIR", &dicom, false),
            ("report.txt", &dicom, false),
            ("scan.DCM", b"", true),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(is_image(&path), expected, "{name}");
        }
    }
}
